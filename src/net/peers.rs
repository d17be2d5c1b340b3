//! The mesh as the rest of the process sees it: start, calls to peers, who is suspected, shutdown.
//!
//! Each member dials two connections to each peer and keeps them open; the peer's own pair serves the peer's calls.
//! Who belongs to the mesh is given, at the start and again whenever it changes; everybody else is refused. Must not
//! know: what calls are for.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use quinn::Connection;
use tokio::runtime;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::AbortHandle;

use super::classes::{ClassGates, ClassLimits, Kind};
use super::endpoint::{self, CloseCode, MeshThread, RESET_SECRET_BYTES};
use super::gossip::gossip_address;
use super::memory::{ANSWER_MEMORY_DEFAULT_BYTES, Room, Share};
use super::tls::{TlsError, TlsFiles, TlsStore};
use super::{Answer, Call, CallError, Handler, Peers, client, link, server};
use crate::names::{self, Names, ResolveError};
use crate::proto::probe::INTERVAL;
use crate::rt::{Essential, UnderWay};
use crate::types::{MemberId, MeshId, limits};
use crate::wire::gossip::Unreached;
use crate::wire::verbs::Request;

/// Bytes of all requests but control calls that are held at once. One peer may hold half of it, and that is the largest call.
const CALL_MEMORY_DEFAULT_BYTES: usize = 2 * (limits::CALL_BODY_MAX_BYTES + limits::CALL_HEADER_MAX_BYTES);
/// Bytes of one peer's control calls that are held at once: two of the largest, and many small ones. Its connection holds
/// as many again before they are read.
const CONTROL_MEMORY_BYTES: usize = 16 << 20;
const _: () = assert!(CONTROL_MEMORY_BYTES > 2 * limits::LEDGER_ENCODED_MAX_BYTES);
/// Gossip messages that wait to be taken in.
const GOSSIP_IN_MAX: usize = 256;
/// Gossip messages that wait for one peer.
const GOSSIP_OUT_MAX: usize = 32;

/// What a mesh needs to start.
#[derive(Clone)]
pub struct MeshConfig {
    /// The own id.
    pub member: MemberId,
    /// The mesh, or [`MeshId::NONE`] until it is known; peers of another are refused.
    pub mesh_id: MeshId,
    /// The UDP address to listen on.
    pub listen: SocketAddr,
    /// The own certificates.
    pub tls: TlsFiles,
    /// From the store: the same in every process of this member, known to nobody else.
    pub reset_secret: [u8; RESET_SECRET_BYTES],
    /// The process's start number, from the store.
    pub start: u64,
    /// Time between probes.
    pub probe_interval: Duration,
    /// Time between looks at the certificate files.
    pub tls_poll_interval: Duration,
    /// Bytes of all requests but control calls held at once; a peer may hold as much as it leaves free, and a call beyond is
    /// answered `Busy`.
    pub call_memory_bytes: usize,
    /// Bytes of peers' answers held at once, small ones not counted; one beyond is as good as none.
    pub answer_memory_bytes: usize,
    /// Most calls of each class that one peer may have under way here; `None`: the defaults.
    pub served_max: Option<ClassLimits>,
    /// Is told when a task of the mesh ends that never should, such as the one that takes connections.
    pub essential: Essential,
}

impl MeshConfig {
    /// A configuration with the usual intervals and limits.
    pub fn new(
        member: MemberId,
        mesh_id: MeshId,
        listen: SocketAddr,
        tls: TlsFiles,
        reset_secret: [u8; RESET_SECRET_BYTES],
        start: u64,
    ) -> Self {
        Self {
            member,
            mesh_id,
            listen,
            tls,
            reset_secret,
            start,
            probe_interval: INTERVAL,
            tls_poll_interval: Duration::from_secs(3),
            call_memory_bytes: CALL_MEMORY_DEFAULT_BYTES,
            answer_memory_bytes: ANSWER_MEMORY_DEFAULT_BYTES,
            served_max: None,
            essential: Essential::default(),
        }
    }
}

/// A member of the mesh and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAddress {
    /// Its id.
    pub id: MemberId,
    /// `host:port`; looked up again for every attempt to connect.
    pub address: String,
}

/// Why the mesh did not start.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// The port is taken, or the address is not this host's.
    #[error("can't listen on UDP {listen} ([mesh] listen): {reason}")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// The system's reason.
        reason: io::Error,
    },
    /// No thread could be started.
    #[error("can't start the mesh thread: {source}")]
    Thread {
        /// The system's reason.
        source: io::Error,
    },
    /// Certificates that can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A peer's address that can't be one.
    #[error("the address of member {member}: {source}")]
    Address {
        /// The peer.
        member: MemberId,
        /// What is wrong.
        source: ResolveError,
    },
    /// The same member twice.
    #[error("member {member} is listed twice")]
    Twice {
        /// The member.
        member: MemberId,
    },
    /// Too many members.
    #[error("{count} members are more than a mesh can have ({})", limits::MEMBERS_MAX)]
    TooMany {
        /// How many were given.
        count: usize,
    },
}

/// A connection that this member keeps open to a peer.
#[derive(Clone)]
pub(super) enum LinkState {
    /// Open, and the peer has said who it is.
    Up {
        /// The connection.
        connection: Connection,
        /// The start number of the peer's process.
        peer_start: u64,
        /// The peer's version of the protocol.
        peer_version: u16,
    },
    /// Not open; why, for people.
    Down(String),
}

/// A peer and what is known of it.
pub(super) struct Peer {
    pub(super) id: MemberId,
    pub(super) address: String,
    pub(super) control: watch::Sender<LinkState>,
    pub(super) data: watch::Sender<LinkState>,
    /// The peer has just been heard of: dial now rather than at the end of the pause.
    pub(super) poke_control: Notify,
    pub(super) poke_data: Notify,
    pub(super) calls: ClassGates,
    pub(super) served: ClassGates,
    control_memory: Arc<Share>,
    call_memory: Arc<Share>,
    pub(super) probe: Mutex<link::ProbeState>,
    /// Something else than a probe went unanswered: the next probe comes sooner.
    pub(super) doubted: Notify,
    pub(super) gossip_out: mpsc::Sender<Bytes>,
    /// Where it was found when it was dialled last.
    pub(super) found_at: Mutex<Vec<IpAddr>>,
    /// The address by which chitchat knows it.
    pub(super) gossip_address: SocketAddr,
    /// What keeps its connections; ends when it is no member any more.
    pub(super) tasks: Mutex<Vec<AbortHandle>>,
}

impl Peer {
    fn new(
        id: MemberId,
        address: String,
        served: &ClassLimits,
        memory: &Arc<Room>,
    ) -> (Arc<Self>, mpsc::Receiver<Bytes>) {
        let (gossip_out, waiting) = mpsc::channel(GOSSIP_OUT_MAX);
        let down = || watch::Sender::new(LinkState::Down("not connected yet".to_owned()));
        let peer = Self {
            gossip_address: gossip_address(&id),
            id,
            address,
            control: down(),
            data: down(),
            poke_control: Notify::new(),
            poke_data: Notify::new(),
            calls: ClassGates::new(&ClassLimits::CALLED),
            served: ClassGates::new(served),
            control_memory: Share::alone(CONTROL_MEMORY_BYTES),
            call_memory: Share::of(Arc::clone(memory)),
            probe: Mutex::default(),
            doubted: Notify::new(),
            gossip_out,
            found_at: Mutex::default(),
            tasks: Mutex::default(),
        };
        (Arc::new(peer), waiting)
    }

    /// It is no member any more, or is one at another address: nothing is kept open to it.
    fn dismiss(&self) {
        for task in self.tasks.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
        for kind in [Kind::Control, Kind::Data] {
            let gone = LinkState::Down("it is no member of the mesh any more".to_owned());
            if let LinkState::Up { connection, .. } = self.link(kind).send_replace(gone) {
                connection.close(CloseCode::Refused.into(), b"no member of this mesh");
            }
        }
    }

    pub(super) fn link(&self, kind: Kind) -> &watch::Sender<LinkState> {
        match kind {
            Kind::Control => &self.control,
            Kind::Data => &self.data,
        }
    }

    /// The peer's process is known to be number `start`: connections to an earlier one lead nowhere.
    pub(super) fn started(&self, start: u64) {
        for kind in [Kind::Control, Kind::Data] {
            self.link(kind).send_if_modified(|state| match state {
                LinkState::Up { connection, peer_start, .. } if *peer_start < start => {
                    connection.close(CloseCode::Replaced.into(), b"the peer was restarted");
                    // At once, so that no call takes it any more.
                    *state = LinkState::Down("the peer was restarted".to_owned());
                    true
                }
                _ => false,
            });
        }
    }

    /// Where its calls on a connection are held.
    pub(super) fn memory(&self, kind: Kind) -> &Arc<Share> {
        match kind {
            Kind::Control => &self.control_memory,
            Kind::Data => &self.call_memory,
        }
    }

    pub(super) fn poke(&self, kind: Kind) -> &Notify {
        match kind {
            Kind::Control => &self.poke_control,
            Kind::Data => &self.poke_data,
        }
    }
}

/// Counts since the start of the process.
#[derive(Debug, Default)]
pub struct MeshCounters {
    /// Connections of peers that were refused.
    pub refused_connections: AtomicU64,
    /// Connections to peers that were made.
    pub connections: AtomicU64,
    /// Connections to peers that the peer's next process ended, because it did not know them.
    pub resets: AtomicU64,
    /// Calls of peers that were refused.
    pub refused_calls: AtomicU64,
    /// Probes that went unanswered.
    pub probes_lost: AtomicU64,
    /// Gossip messages that were not sent or not taken in.
    pub gossip_dropped: AtomicU64,
    /// Gossip messages that made no sense.
    pub gossip_malformed: AtomicU64,
    /// How often gossip was begun anew.
    pub gossip_restarts: AtomicU64,
    /// Readings of the certificate files that failed.
    pub tls_reloads_failed: AtomicU64,
}

impl MeshCounters {
    pub(super) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// What all tasks of the mesh share.
pub(super) struct Shared {
    pub(super) config: MeshConfig,
    pub(super) mesh_id: watch::Sender<MeshId>,
    // Readers take the Arc out; the lock is held for a pointer's copy only.
    peers: RwLock<Arc<BTreeMap<MemberId, Arc<Peer>>>>,
    pub(super) handler: OnceLock<Arc<dyn Handler>>,
    pub(super) main: runtime::Handle,
    pub(super) names: Names,
    pub(super) tls: Arc<TlsStore>,
    pub(super) suspects: watch::Sender<BTreeSet<MemberId>>,
    /// Whom each peer did not reach when it answered last.
    pub(super) unreached: watch::Sender<BTreeMap<MemberId, Unreached>>,
    pub(super) inbound: server::Inbound,
    call_memory: Arc<Room>,
    pub(super) answer_memory: Arc<Share>,
    /// Calls of peers, but those of class control, until their answers have been taken.
    pub(super) answering: UnderWay,
    pub(super) counters: MeshCounters,
    pub(super) gossip_in: mpsc::Sender<(MemberId, Bytes)>,
}

impl Shared {
    /// All other members.
    pub(super) fn peers(&self) -> Arc<BTreeMap<MemberId, Arc<Peer>>> {
        Arc::clone(&self.peers.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Another member; `None` for strangers and for the own member.
    pub(super) fn peer(&self, id: &MemberId) -> Option<Arc<Peer>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Whether a member was found at an address.
    pub(super) fn is_at(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let found = |peer: &Arc<Peer>| peer.found_at.lock().unwrap_or_else(PoisonError::into_inner).contains(&address);
        self.peers().values().any(found)
    }

    /// The mesh that this member belongs to now.
    pub(super) fn mesh_id(&self) -> MeshId {
        *self.mesh_id.borrow()
    }
}

/// A peer, for people and metrics.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerStatus {
    /// Where it is configured to be.
    pub address: String,
    /// Whether the control connection is open.
    pub control: bool,
    /// Whether the data connection is open.
    pub data: bool,
    /// Why a connection is not open.
    pub reason: Option<String>,
    /// Whether probes go unanswered.
    pub suspect: bool,
    /// How long the last answered probe took.
    pub rtt: Option<Duration>,
    /// The start number of the peer's process, while connected.
    pub start: Option<u64>,
    /// The peer's version of the protocol, while connected.
    pub version: Option<u16>,
}

/// The mesh, started.
pub struct Mesh {
    shared: Arc<Shared>,
    thread: MeshThread,
    gossip_in: Mutex<Option<mpsc::Receiver<(MemberId, Bytes)>>>,
}

impl Mesh {
    /// Binds the port, starts the mesh thread and dials all other members. Calls of peers are answered by `handler`, reads
    /// on the mesh thread and all others on the runtime `main`; without one (see [`Mesh::set_handler`]) they are refused until it is there.
    ///
    /// # Errors
    /// [`MeshError`]; nothing is left running then.
    pub fn start(
        config: MeshConfig,
        members: Vec<PeerAddress>,
        handler: Option<Arc<dyn Handler>>,
        main: runtime::Handle,
    ) -> Result<Self, MeshError> {
        let members = check_members(&config.member, members)?;
        let tls = Arc::new(TlsStore::load(config.tls.clone(), config.member.clone())?);
        let thread = endpoint::start(config.listen, &config.reset_secret, tls.current().server.clone(), &main)?;
        let (gossip_in, taken_in) = mpsc::channel(GOSSIP_IN_MAX);
        let shared = Arc::new(Shared {
            suspects: watch::Sender::default(),
            unreached: watch::Sender::default(),
            mesh_id: watch::Sender::new(config.mesh_id),
            call_memory: Room::new(config.call_memory_bytes),
            answer_memory: Share::alone(config.answer_memory_bytes),
            answering: UnderWay::default(),
            config,
            peers: RwLock::default(),
            handler: OnceLock::new(),
            main,
            names: Names::from_system(),
            tls,
            inbound: server::Inbound::default(),
            counters: MeshCounters::default(),
            gossip_in,
        });
        tracing::info!(
            member = %shared.config.member,
            listen = %thread.local_addr,
            mesh = %shared.mesh_id(),
            start = shared.config.start,
            peers = members.len(),
            gso_segments = thread.gso_segments,
            "mesh started"
        );
        let mesh = Self { shared, thread, gossip_in: Mutex::new(Some(taken_in)) };
        if let Some(handler) = handler {
            mesh.set_handler(handler);
        }
        let (on, essential) = (&mesh.thread.runtime, &mesh.shared.config.essential);
        let endpoint = || mesh.thread.endpoint.clone();
        on.spawn(essential.watched("taking connections of peers", server::accept(mesh.shared.clone(), endpoint())));
        on.spawn(essential.watched("the socket for calls", mesh.thread.calls_ended()));
        let certificates = link::watch_certificates(mesh.shared.clone(), endpoint());
        on.spawn(essential.watched("the watch on the certificates", certificates));
        mesh.take_members(members);
        Ok(mesh)
    }

    /// Says who belongs to the mesh from now on: newcomers are dialled, who is no longer listed or has another address is
    /// let go of.
    ///
    /// # Errors
    /// [`MeshError`]; those of before stay then.
    pub fn set_members(&self, members: Vec<PeerAddress>) -> Result<(), MeshError> {
        self.take_members(check_members(&self.shared.config.member, members)?);
        Ok(())
    }

    fn take_members(&self, members: BTreeMap<MemberId, String>) {
        let served = self.shared.config.served_max.unwrap_or(ClassLimits::SERVED);
        let mut slot = self.shared.peers.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = BTreeMap::clone(&slot);
        next.retain(|id, peer| {
            let stays = members.get(id) == Some(&peer.address);
            if !stays {
                peer.dismiss();
                self.shared.inbound.dismiss(id);
                self.shared.suspects.send_if_modified(|s| s.remove(id));
                self.shared.unreached.send_if_modified(|all| all.remove(id).is_some());
            }
            stays
        });
        let mut new = Vec::new();
        for (id, address) in members {
            next.entry(id).or_insert_with_key(|id| {
                let (peer, waiting) = Peer::new(id.clone(), address, &served, &self.shared.call_memory);
                new.push((Arc::clone(&peer), waiting));
                peer
            });
        }
        *slot = Arc::new(next);
        drop(slot);
        for (peer, waiting) in new {
            self.shared.suspects.send_if_modified(|s| s.insert(peer.id.clone()));
            self.keep(&peer, waiting);
        }
    }

    /// Starts what keeps the connections to a peer.
    fn keep(&self, peer: &Arc<Peer>, waiting: mpsc::Receiver<Bytes>) {
        let (on, shared) = (&self.thread.runtime, &self.shared);
        let link = |kind| {
            let endpoint = match kind {
                Kind::Control => &self.thread.endpoint,
                Kind::Data => &self.thread.calls,
            };
            let keep = link::keep(shared.clone(), endpoint.clone(), peer.clone(), kind);
            on.spawn(shared.config.essential.watched("the connection to a peer", keep)).abort_handle()
        };
        let probe = link::probe(shared.clone(), peer.clone());
        let gossip = link::send_gossip(shared.clone(), peer.clone(), waiting);
        let tasks = [
            link(Kind::Control),
            link(Kind::Data),
            on.spawn(shared.config.essential.watched("the probes of a peer", probe)).abort_handle(),
            on.spawn(shared.config.essential.watched("the gossip to a peer", gossip)).abort_handle(),
        ];
        peer.tasks.lock().unwrap_or_else(PoisonError::into_inner).extend(tasks);
    }

    /// Says which mesh this is, once it is known. New connections and calls name it.
    pub fn set_mesh_id(&self, id: MeshId) {
        self.shared.mesh_id.send_if_modified(|now| std::mem::replace(now, id) != id);
    }

    /// Sets what answers the calls of peers; the first one set stays.
    pub fn set_handler(&self, handler: Arc<dyn Handler>) {
        if self.shared.handler.set(handler).is_err() {
            tracing::warn!("a second handler of calls was given and is not used");
        }
    }

    /// Where the mesh listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.thread.local_addr
    }

    /// Segments that one send may carry (1: the system offers no offload).
    pub fn gso_segments(&self) -> usize {
        self.thread.gso_segments
    }

    /// The members whose probes go unanswered now, or to whom there is no connection.
    pub fn suspects(&self) -> watch::Receiver<BTreeSet<MemberId>> {
        self.shared.suspects.subscribe()
    }

    /// Whom each peer did not reach, by its answer to the last probe that it answered.
    pub fn unreached(&self) -> watch::Receiver<BTreeMap<MemberId, Unreached>> {
        self.shared.unreached.subscribe()
    }

    /// All peers, for people and metrics.
    pub fn status(&self) -> BTreeMap<MemberId, PeerStatus> {
        self.shared.peers().iter().map(|(id, peer)| (id.clone(), self.status_of(peer))).collect()
    }

    fn status_of(&self, peer: &Peer) -> PeerStatus {
        let (control, data) = (peer.control.borrow().clone(), peer.data.borrow().clone());
        let up = |state: &LinkState| match state {
            LinkState::Up { peer_start, peer_version, .. } => Ok((*peer_start, *peer_version)),
            LinkState::Down(reason) => Err(reason.clone()),
        };
        let (control, data) = (up(&control), up(&data));
        PeerStatus {
            address: peer.address.clone(),
            control: control.is_ok(),
            data: data.is_ok(),
            suspect: self.is_suspect(&peer.id),
            rtt: peer.probe.lock().unwrap_or_else(PoisonError::into_inner).rtt,
            start: control.as_ref().ok().map(|up| up.0),
            version: control.as_ref().ok().map(|up| up.1),
            reason: control.err().or(data.err()),
        }
    }

    /// Counts since the start of the process.
    pub fn counters(&self) -> &MeshCounters {
        &self.shared.counters
    }

    /// Waits until both connections to a peer are open; at once for the own member and for strangers.
    pub async fn connected(&self, to: &MemberId) {
        let Some(peer) = self.shared.peer(to) else { return };
        for kind in [Kind::Control, Kind::Data] {
            let mut state = peer.link(kind).subscribe();
            // The sender lives in `peer`.
            let _ = state.wait_for(|s| matches!(s, LinkState::Up { .. })).await;
        }
    }

    /// The last second since 1970 at which peers take this member's certificate.
    pub fn certificate_valid_until(&self) -> u64 {
        self.shared.tls.current().valid_until
    }

    /// Reads the certificate files again; new connections use them.
    ///
    /// # Errors
    /// [`TlsError`]; the certificates of before stay in use.
    pub fn reload_tls(&self) -> Result<(), TlsError> {
        link::reload(&self.shared, &self.thread.endpoint)
    }

    /// Waits until the answers of all calls of peers that are being handled now, but those of class control, have been taken:
    /// what is answered just before [`Mesh::shutdown`] would be lost with the connection. Bounded by the calls' deadlines.
    pub async fn answered(&self) {
        self.shared.answering.ended().await;
    }

    /// Tells all peers that this member goes, and ends the mesh. Calls under way end without an answer.
    pub async fn shutdown(&self, reason: &str) {
        self.shutdown_within(reason, Duration::MAX).await;
    }

    /// As [`Mesh::shutdown`], and waits for the peers to have heard no longer than `patience`.
    pub async fn shutdown_within(&self, reason: &str, patience: Duration) {
        self.thread.close(reason, patience).await;
    }

    /// Ends the mesh without a word, as a killed process does.
    pub async fn vanish_for_test(&self) {
        self.thread.vanish().await;
    }

    /// The mesh thread's runtime.
    pub(super) fn runtime(&self) -> &runtime::Handle {
        &self.thread.runtime
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Gossip messages as they come in; there is one taker.
    pub(super) fn take_gossip_in(&self) -> Option<mpsc::Receiver<(MemberId, Bytes)>> {
        self.gossip_in.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The other members by id, if all of them can be dialled.
fn check_members(own: &MemberId, members: Vec<PeerAddress>) -> Result<BTreeMap<MemberId, String>, MeshError> {
    if members.len() > limits::MEMBERS_MAX {
        return Err(MeshError::TooMany { count: members.len() });
    }
    let mut checked = BTreeMap::new();
    for PeerAddress { id, address } in members {
        names::split(&address).map_err(|source| MeshError::Address { member: id.clone(), source })?;
        if checked.insert(id.clone(), address).is_some() {
            return Err(MeshError::Twice { member: id });
        }
    }
    checked.remove(own);
    Ok(checked)
}

#[async_trait]
impl Peers for Mesh {
    async fn call(&self, to: &MemberId, call: Call) -> Result<Answer, CallError> {
        match self.shared.peer(to) {
            Some(peer) => {
                let replicates = matches!(call.request, Request::Journal);
                let answer = client::call(&self.shared, &peer, call).await;
                match &answer {
                    Ok(_) if replicates => link::answered(&self.shared, &peer, None),
                    Err(CallError::NoAnswer { .. }) if replicates => peer.doubted.notify_one(),
                    _ => {}
                }
                answer
            }
            None => {
                Err(CallError::NotSent { member: to.clone(), reason: "it is no other member of the mesh".to_owned() })
            }
        }
    }

    fn is_suspect(&self, member: &MemberId) -> bool {
        self.shared.suspects.borrow().contains(member)
    }
}
