//! Keeping the connections to one peer open, probing it, and sending it gossip; the tasks for it run on the mesh thread.
//!
//! Rule: a connection that is lost is dialled again, with a pause that grows and differs between members, and with the
//! peer's name looked up anew; a peer that is heard of is dialled at once. Must not know: calls.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{Connection, ConnectionError, Endpoint};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, timeout};

use super::classes::Kind;
use super::client;
use super::endpoint::{self, CloseCode};
use super::peers::{LinkState, MeshCounters, Peer, Shared};
use super::tls::TlsError;
use crate::proto::probe::{PATIENCE, Probing};
use crate::types::MemberId;
use crate::wire::frame::{Hello, PROTOCOL_VERSION, WELCOME_BYTES, Welcome};

/// One attempt to connect to one address, with hello and welcome.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// A connection that was open for so long was a good one: the next attempt comes soon.
const PROVEN_AFTER: Duration = Duration::from_secs(2);
/// An attempt this old is begun anew when the peer is heard of: its first packet may have met nobody.
const STALE_ATTEMPT: Duration = Duration::from_millis(250);
const GOSSIP_TIMEOUT: Duration = Duration::from_secs(2);

/// Small differences between members, so that they do not all dial at once. No secret depends on them.
struct Jitter(u64);

impl Jitter {
    fn new(shared: &Shared, peer: &MemberId, kind: Kind) -> Self {
        let seed = twox_hash::XxHash64::oneshot(shared.config.start, shared.config.member.as_str().as_bytes());
        let peer = twox_hash::XxHash64::oneshot(kind as u64, peer.as_str().as_bytes());
        Self((seed ^ peer).max(1))
    }

    /// Between half of `pause` and all of it.
    fn of(&mut self, pause: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let thousandths = u32::try_from(self.0 % 500).unwrap_or_default() + 500;
        pause * thousandths / 1_000
    }
}

/// Keeps one connection to a peer open for ever.
pub(super) async fn keep(shared: Arc<Shared>, endpoint: Endpoint, peer: Arc<Peer>, kind: Kind) {
    let mut jitter = Jitter::new(&shared, &peer.id, kind);
    let (mut pause, mut last_reason) = (PAUSE_MIN, String::new());
    loop {
        let reason = match dial_unless_stale(&shared, &endpoint, &peer, kind).await {
            Ok((connection, welcome)) => {
                let since = Instant::now();
                MeshCounters::add(&shared.counters.connections);
                tracing::info!(
                    peer = %peer.id, connection = kind.as_str(), address = %connection.remote_address(),
                    peer_start = welcome.start, "connected"
                );
                up(&shared, &peer, kind, &connection, &welcome);
                let error = connection.closed().await;
                if error == ConnectionError::Reset {
                    MeshCounters::add(&shared.counters.resets);
                }
                let reason = client::connection_reason(&error);
                down(&shared, &peer, kind, &reason);
                tracing::info!(peer = %peer.id, connection = kind.as_str(), reason, "disconnected");
                last_reason.clear();
                if since.elapsed() >= PROVEN_AFTER {
                    pause = PAUSE_MIN;
                }
                reason
            }
            Err(reason) => {
                down(&shared, &peer, kind, &reason);
                if reason == BEGUN_ANEW {
                    tracing::debug!(peer = %peer.id, connection = kind.as_str(), reason, "dialling again");
                } else if reason != last_reason {
                    tracing::warn!(peer = %peer.id, connection = kind.as_str(), reason, "can't connect");
                    last_reason.clone_from(&reason);
                }
                reason
            }
        };
        tracing::trace!(peer = %peer.id, reason, pause_ms = pause.as_millis(), "dialling again after a pause");
        if timeout(jitter.of(pause), peer.poke(kind).notified()).await.is_err() {
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

fn up(shared: &Shared, peer: &Peer, kind: Kind, connection: &Connection, welcome: &Welcome) {
    peer.link(kind).send_replace(LinkState::Up {
        connection: connection.clone(),
        peer_start: welcome.start,
        peer_version: welcome.version,
    });
    peer.started(welcome.start);
    if kind == Kind::Control {
        // Its mesh thread has just answered the hello, which is as good as a probe.
        answered(shared, peer, None);
    }
}

fn down(shared: &Shared, peer: &Peer, kind: Kind, reason: &str) {
    peer.link(kind).send_replace(LinkState::Down(reason.to_owned()));
    if kind == Kind::Control {
        suspect(shared, peer);
    }
}

/// Why a dial was ended that would have waited for a packet which nobody heard.
const BEGUN_ANEW: &str = "begun anew, because the peer has come up";

async fn dial_unless_stale(
    shared: &Shared,
    endpoint: &Endpoint,
    peer: &Peer,
    kind: Kind,
) -> Result<(Connection, Welcome), String> {
    let heard_of = async {
        tokio::time::sleep(STALE_ATTEMPT).await;
        peer.poke(kind).notified().await;
        // The next attempt is to begin now, not after a pause.
        peer.poke(kind).notify_one();
    };
    tokio::select! {
        biased;
        done = dial(shared, endpoint, peer, kind) => done,
        () = heard_of => Err(BEGUN_ANEW.to_owned()),
    }
}

async fn dial(shared: &Shared, endpoint: &Endpoint, peer: &Peer, kind: Kind) -> Result<(Connection, Welcome), String> {
    let addresses = shared.names.resolve(&peer.address).await.map_err(|e| e.to_string())?;
    *peer.found_at.lock().unwrap_or_else(PoisonError::into_inner) =
        addresses.iter().map(|a| a.ip().to_canonical()).collect();
    let v6 = endpoint.local_addr().is_ok_and(|a| a.is_ipv6());
    let mut reason = format!("{} has no address that a socket on {} can reach", peer.address, shared.config.listen);
    for address in addresses.into_iter().filter(|a| v6 || a.is_ipv4()) {
        match timeout(ATTEMPT_TIMEOUT, dial_address(shared, endpoint, peer, kind, address)).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(e)) => reason = format!("{address}: {e}"),
            Err(_) => reason = format!("{address}: no answer within {} s", ATTEMPT_TIMEOUT.as_secs()),
        }
    }
    Err(reason)
}

async fn dial_address(
    shared: &Shared,
    endpoint: &Endpoint,
    peer: &Peer,
    kind: Kind,
    address: SocketAddr,
) -> Result<(Connection, Welcome), String> {
    let tls = shared.tls.current();
    let crypto = if kind == Kind::Control { &tls.control } else { &tls.data };
    let config = endpoint::client_config(crypto.clone(), kind == Kind::Control);
    // The certificate must name the member that is dialled.
    let connection = endpoint
        .connect_with(config, address, peer.id.as_str())
        .map_err(|e| e.to_string())?
        .await
        .map_err(|e| client::connection_reason(&e))?;
    match say_hello(shared, &connection).await {
        Ok(welcome) => Ok((connection, welcome)),
        Err(reason) => {
            let told = connection.close_reason().map(|e| client::connection_reason(&e));
            connection.close(CloseCode::Replaced.into(), b"no welcome");
            Err(told.unwrap_or(reason))
        }
    }
}

async fn say_hello(shared: &Shared, connection: &Connection) -> Result<Welcome, String> {
    let config = &shared.config;
    let hello =
        Hello { version: PROTOCOL_VERSION, mesh: shared.mesh_id(), start: config.start, member: config.member.clone() };
    let (mut send, mut recv) = connection.open_bi().await.map_err(|e| client::connection_reason(&e))?;
    send.write_all(&hello.encode()).await.map_err(|e| e.to_string())?;
    send.finish().map_err(|e| e.to_string())?;
    let mut welcome = [0; WELCOME_BYTES];
    recv.read_exact(&mut welcome).await.map_err(|e| format!("no welcome: {e}"))?;
    Welcome::decode(&welcome).map_err(|e| e.to_string())
}

/// What is known of a peer by its probes.
#[derive(Debug, Default)]
pub(super) struct ProbeState {
    probing: Probing,
    pub(super) rtt: Option<Duration>,
}

/// Probes a peer for ever.
pub(super) async fn probe(shared: Arc<Shared>, peer: Arc<Peer>) {
    let every = shared.config.probe_interval;
    let mut pause = Duration::ZERO;
    loop {
        // Behind a pause of the whole process no missed probes are made up for: nobody failed to answer them.
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = doubted(&peer, every / 2) => {}
        }
        pause = every;
        let LinkState::Up { connection, .. } = peer.control.borrow().clone() else { continue };
        let due = peer.probe.lock().unwrap_or_else(PoisonError::into_inner).probing.due(every);
        pause = due.pause;
        if due.lost {
            MeshCounters::add(&shared.counters.probes_lost);
        }
        if due.suspect {
            suspect(&shared, &peer);
        }
        let (shared, peer) = (shared.clone(), peer.clone());
        tokio::spawn(async move {
            let sent = Instant::now();
            if let Ok(Ok(unreached)) = timeout(PATIENCE, client::probe(&shared, &connection)).await {
                shared
                    .unreached
                    .send_if_modified(|all| all.insert(peer.id.clone(), unreached.clone()) != Some(unreached));
                answered(&shared, &peer, Some(sent.elapsed()));
            }
        });
    }
}

/// Appends that go unanswered bring the next probe nearer, never so near that several of them make a suspect by themselves.
async fn doubted(peer: &Peer, least: Duration) {
    tokio::time::sleep(least).await;
    peer.doubted.notified().await;
}

fn suspect(shared: &Shared, peer: &Peer) {
    let new = shared.suspects.send_if_modified(|s| s.insert(peer.id.clone()));
    if new {
        tracing::warn!(peer = %peer.id, "suspected");
    }
}

/// The peer has shown that it lives, by a probe or by taking what is replicated.
pub(super) fn answered(shared: &Shared, peer: &Peer, rtt: Option<Duration>) {
    {
        let mut state = peer.probe.lock().unwrap_or_else(PoisonError::into_inner);
        state.probing.answered();
        state.rtt = rtt.or(state.rtt);
    }
    // The answer of a connection that has been lost since then says nothing of now.
    if matches!(*peer.control.borrow(), LinkState::Up { .. })
        && shared.suspects.send_if_modified(|s| s.remove(&peer.id))
    {
        tracing::info!(peer = %peer.id, "no longer suspected");
    }
}

/// Sends a peer its gossip for ever: each message on a stream of its own inside the control connection.
pub(super) async fn send_gossip(shared: Arc<Shared>, peer: Arc<Peer>, mut waiting: mpsc::Receiver<Bytes>) {
    while let Some(message) = waiting.recv().await {
        let LinkState::Up { connection, .. } = peer.control.borrow().clone() else {
            MeshCounters::add(&shared.counters.gossip_dropped);
            continue;
        };
        let sent = timeout(GOSSIP_TIMEOUT, async {
            let mut send = client::UniStream::open(&connection).await?;
            send.write(message).await
        });
        if !matches!(sent.await, Ok(Ok(()))) {
            MeshCounters::add(&shared.counters.gossip_dropped);
        }
    }
}

/// Looks at the certificate files for ever.
pub(super) async fn watch_certificates(shared: Arc<Shared>, endpoint: Endpoint) {
    let mut tick = tokio::time::interval(shared.config.tls_poll_interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_reason = String::new();
    loop {
        tick.tick().await;
        // A network file system may take its time; probes must not wait for it. What runs there holds on to no
        // connection, so that the port is free when the mesh has ended.
        let tls = shared.tls.clone();
        let read = tokio::task::spawn_blocking(move || tls.changed().then(|| tls.reload()));
        let taken = match read.await {
            Ok(None) => continue,
            Ok(Some(read)) => take_certificates(&shared, &endpoint, read),
            Err(error) => {
                tracing::error!(%error, "looking at the certificate files failed");
                continue;
            }
        };
        // What fails is tried again and again, and told once.
        let reason = taken.err().map(|e| e.to_string()).unwrap_or_default();
        if !reason.is_empty() && reason != last_reason {
            tracing::error!(
                error = reason,
                "the certificates were not read again; those of before stay in use, and it is tried again"
            );
        }
        last_reason = reason;
    }
}

/// Reads the certificates again and gives them to new connections.
pub(super) fn reload(shared: &Shared, endpoint: &Endpoint) -> Result<(), TlsError> {
    take_certificates(shared, endpoint, shared.tls.reload())
}

fn take_certificates(shared: &Shared, endpoint: &Endpoint, read: Result<(), TlsError>) -> Result<(), TlsError> {
    match read {
        Ok(()) => {
            endpoint.set_server_config(Some(endpoint::server_config(shared.tls.current().server.clone())));
            tracing::info!("the certificates were read again");
        }
        Err(_) => MeshCounters::add(&shared.counters.tls_reloads_failed),
    }
    read
}
