//! chitchat inside the control connections, and what it tells of the members.
//!
//! Rules: a message's sender is the member that the connection's certificate names; members that are not in the mesh's
//! list never enter chitchat's state; of several incarnations of a member only the latest known counts. chitchat's task
//! can end (a crafted message makes it panic), so it is watched and begun anew under the next start number. Must not
//! know: what is gossiped.
//!
//! chitchat knows members by socket addresses. It is given addresses made from the member ids, which nobody dials: real
//! ones differ from one host's view to another's (a host's own name is often 127.0.1.1 to itself), and change.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chitchat::transport::{Socket, Transport};
use chitchat::{
    ChitchatConfig, ChitchatHandle, ChitchatId, ChitchatMessage, Deserializable, FailureDetectorConfig, Serializable,
};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;

use super::peers::{Mesh, MeshCounters, Shared};
use crate::types::limits::GOSSIP_MESSAGE_MAX_BYTES;
use crate::types::{MemberId, MeshId};
use crate::wire::gossip::{GossipTooLarge, MemberGossip, Pairs};

/// Incarnations that are silent for so long are forgotten; after half of it they are no longer passed on.
const FORGET_AFTER: Duration = Duration::from_secs(600);
/// Deleted keys are remembered for so long.
const TOMBSTONES_KEPT: Duration = Duration::from_secs(3_600);
/// Between the end of chitchat's task and the next one.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// Most pieces of a message's delta; each unpacks to at most 64 KiB.
const DELTA_BLOCKS_MAX: usize = 128;

/// Gives the next start number of this member, from its store.
pub type NextStart = Arc<dyn Fn() -> Result<u64, Box<dyn std::error::Error + Send + Sync>> + Send + Sync>;

/// What gossip needs to start.
#[derive(Clone)]
pub struct GossipConfig {
    /// Time between rounds of gossip.
    pub interval: Duration,
    /// The process's start number: peers ignore what an earlier process said.
    pub start: u64,
    /// Gives a new start number when chitchat has to be begun anew; may block.
    pub next_start: NextStart,
}

/// Why gossip did not start.
#[derive(Debug, thiserror::Error)]
pub enum GossipError {
    /// There is one already.
    #[error("gossip runs already")]
    Runs,
    /// The own values are too large.
    #[error(transparent)]
    TooLarge(#[from] GossipTooLarge),
}

/// What the members that are alive say of themselves.
pub type Members = BTreeMap<MemberId, MemberGossip>;

/// Gossip, started; ends when it is dropped.
pub struct Gossip {
    own: watch::Sender<Pairs>,
    members: watch::Receiver<Members>,
    task: JoinHandle<()>,
}

impl Gossip {
    /// Starts gossip on the mesh thread.
    ///
    /// # Errors
    /// [`GossipError`].
    pub fn start(mesh: &Mesh, config: GossipConfig, own: &MemberGossip) -> Result<Self, GossipError> {
        let pairs = own.to_pairs()?;
        let incoming = mesh.take_gossip_in().ok_or(GossipError::Runs)?;
        let (own, changed) = watch::channel(pairs);
        let (tell, members) = watch::channel(Members::new());
        let port = Port::new(mesh.shared().clone(), incoming);
        let essential = mesh.shared().config.essential.clone();
        let task = mesh.runtime().spawn(essential.watched("gossip", keep(port, config, changed, tell)));
        Ok(Self { own, members, task })
    }

    /// Says something new of this member; only what changed travels.
    ///
    /// # Errors
    /// [`GossipTooLarge`]; what was said before stands.
    pub fn publish(&self, own: &MemberGossip) -> Result<(), GossipTooLarge> {
        let pairs = own.to_pairs()?;
        self.own.send_if_modified(|before| {
            let new = *before != pairs;
            *before = pairs;
            new
        });
        Ok(())
    }

    /// What the members say that are alive by chitchat's failure detector, this one among them.
    pub fn members(&self) -> watch::Receiver<Members> {
        self.members.clone()
    }
}

impl Drop for Gossip {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The address by which chitchat knows a member: a unique local one that no host has.
pub fn gossip_address(id: &MemberId) -> SocketAddr {
    let hash = Sha256::digest(id.as_str().as_bytes());
    let mut ip = [0xfd; 16];
    for (to, from) in ip[1..].iter_mut().zip(hash) {
        *to = from;
    }
    SocketAddr::new(Ipv6Addr::from(ip).into(), 1)
}

/// Runs chitchat, again and again.
async fn keep(port: Port, config: GossipConfig, mut own: watch::Receiver<Pairs>, tell: watch::Sender<Members>) {
    let mut start = config.start;
    let mut mesh = port.shared.mesh_id.subscribe();
    loop {
        let id = *mesh.borrow_and_update();
        let pairs = own.borrow_and_update().clone();
        match chitchat::spawn_chitchat(port.chitchat_config(&config, id, start), owned(&pairs), &port).await {
            Ok(handle) => {
                let ended = serve(&handle, &port, pairs, &mut own, &mut mesh, &tell).await;
                handle.abort();
                match ended {
                    Ended::Unwanted => return,
                    Ended::OtherMesh => {
                        tracing::info!(mesh = %*mesh.borrow(), "gossip is begun anew in its mesh")
                    }
                    Ended::Failed(reason) => tracing::error!(reason, start, "gossip ended and is begun anew"),
                }
            }
            Err(error) => tracing::error!(%error, start, "gossip did not start"),
        }
        MeshCounters::add(&port.shared.counters.gossip_restarts);
        start = loop {
            tokio::time::sleep(RESTART_PAUSE).await;
            let next = config.next_start.clone();
            match tokio::task::spawn_blocking(move || next()).await {
                Ok(Ok(next)) => break next,
                Ok(Err(error)) => tracing::error!(error, "no new start number for gossip"),
                Err(error) => tracing::error!(%error, "no new start number for gossip"),
            }
        };
    }
}

fn owned(pairs: &Pairs) -> Vec<(String, String)> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect()
}

/// Why chitchat is not used any longer.
enum Ended {
    /// Nobody wants gossip any more.
    Unwanted,
    /// The mesh has another id now; chitchat knows one mesh only.
    OtherMesh,
    /// Its task ended.
    Failed(String),
}

/// Carries changes in and out until chitchat ends.
async fn serve(
    handle: &ChitchatHandle,
    port: &Port,
    mut said: Pairs,
    own: &mut watch::Receiver<Pairs>,
    mesh: &mut watch::Receiver<MeshId>,
    tell: &watch::Sender<Members>,
) -> Ended {
    let chitchat = handle.chitchat();
    let mut live = chitchat.lock().await.live_nodes_watcher();
    let ended = handle.termination_watcher();
    tokio::pin!(ended);
    loop {
        tokio::select! {
            end = &mut ended => {
                return Ended::Failed(end.err().map_or_else(|| "it stopped".to_owned(), |e| e.to_string()));
            }
            // Its sender lives as long as `port`.
            _ = mesh.changed() => return Ended::OtherMesh,
            changed = live.changed() => {
                if changed.is_err() {
                    return Ended::Failed("it no longer tells who is alive".to_owned());
                }
                let _ = live.borrow_and_update();
                let members = port.members(&*chitchat.lock().await);
                tell.send_if_modified(|before| {
                    let new = *before != members;
                    *before = members;
                    new
                });
            }
            changed = own.changed() => {
                if changed.is_err() {
                    return Ended::Unwanted;
                }
                let pairs = own.borrow_and_update().clone();
                let mut chitchat = chitchat.lock().await;
                let state = chitchat.self_node_state();
                for key in said.keys().filter(|k| !pairs.contains_key(*k)) {
                    state.delete(key);
                }
                for (key, value) in pairs.iter().filter(|(k, v)| said.get(*k) != Some(*v)) {
                    state.set(key, value);
                }
                said = pairs;
            }
        }
    }
}

/// chitchat's way to the peers.
#[derive(Clone)]
struct Port {
    shared: Arc<Shared>,
    incoming: Arc<Mutex<mpsc::Receiver<(MemberId, Bytes)>>>,
}

impl Port {
    fn new(shared: Arc<Shared>, incoming: mpsc::Receiver<(MemberId, Bytes)>) -> Self {
        Self { shared, incoming: Arc::new(Mutex::new(incoming)) }
    }

    /// The address by which chitchat knows a member; `None` for strangers.
    fn address(&self, id: &MemberId) -> Option<SocketAddr> {
        if *id == self.shared.config.member {
            return Some(gossip_address(id));
        }
        self.shared.peer(id).map(|peer| peer.gossip_address)
    }

    fn chitchat_config(&self, config: &GossipConfig, mesh: MeshId, start: u64) -> ChitchatConfig {
        let own = &self.shared.config.member;
        let address = gossip_address(own);
        ChitchatConfig {
            chitchat_id: ChitchatId::new(own.as_str(), start, address),
            cluster_id: mesh.to_string(),
            gossip_interval: config.interval,
            listen_addr: address,
            // Numeric, because chitchat looks names up by the C library.
            seed_nodes: self.shared.peers().values().map(|peer| peer.gossip_address.to_string()).collect(),
            failure_detector_config: FailureDetectorConfig {
                // A member is dead after about 8 intervals of silence.
                initial_interval: config.interval * 2,
                max_interval: config.interval * 10,
                dead_node_grace_period: FORGET_AFTER,
                ..FailureDetectorConfig::default()
            },
            marked_for_deletion_grace_period: TOMBSTONES_KEPT,
            catchup_callback: None,
            extra_liveness_predicate: None,
        }
    }

    /// What live members say; of a member's incarnations the latest, and nothing if that one is not alive.
    fn members(&self, chitchat: &chitchat::Chitchat) -> Members {
        let mut members = Members::new();
        for id in latest_alive(chitchat.node_states().keys(), chitchat.live_nodes()) {
            let member = MemberId::new(&*id.node_id).ok().filter(|m| self.address(m).is_some());
            let (Some(member), Some(state)) = (member, chitchat.node_state(id)) else { continue };
            let (gossip, malformed) = MemberGossip::from_pairs(state.key_values());
            if malformed > 0 {
                tracing::debug!(%member, malformed, "gossip that makes no sense is passed over");
            }
            members.insert(member, gossip);
        }
        members
    }

    fn dropped(&self) {
        MeshCounters::add(&self.shared.counters.gossip_dropped);
    }
}

#[async_trait]
impl Transport for Port {
    async fn open(&self, _listen: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        Ok(Box::new(self.clone()))
    }
}

#[async_trait]
impl Socket for Port {
    /// Only enqueues. What finds no room is dropped: the next round says it again.
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        // An address that is no member's comes from a message; nobody is there.
        let peers = self.shared.peers();
        let peer = peers.values().find(|peer| peer.gossip_address == to);
        let bytes = message.serialize_to_vec();
        match peer {
            Some(peer) if bytes.len() <= GOSSIP_MESSAGE_MAX_BYTES => {
                if peer.gossip_out.try_send(bytes.into()).is_err() {
                    self.dropped();
                }
            }
            _ => self.dropped(),
        }
        Ok(())
    }

    /// Cancel-safe: a message is taken and returned without a pause in between.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        let mut incoming = self.incoming.lock().await;
        loop {
            let Some((from, bytes)) = incoming.recv().await else { anyhow::bail!("the mesh has ended") };
            let sieved = sieve(&bytes, |id| self.address(id));
            let message = sieved.and_then(|b| ChitchatMessage::deserialize(&mut &b[..]).ok());
            match (message, self.address(&from)) {
                (Some(message), Some(address)) => return Ok((address, message)),
                _ => {
                    MeshCounters::add(&self.shared.counters.gossip_malformed);
                    tracing::debug!(%from, "a gossip message makes no sense");
                }
            }
        }
    }
}

/// The latest known incarnation of each member, if it is that one which is alive.
fn latest_alive<'a>(
    known: impl Iterator<Item = &'a ChitchatId>,
    alive: impl Iterator<Item = &'a ChitchatId>,
) -> Vec<&'a ChitchatId> {
    let mut latest = BTreeMap::<&str, u64>::new();
    for id in known {
        let generation = latest.entry(&id.node_id).or_default();
        *generation = id.generation_id.max(*generation);
    }
    alive.filter(|id| latest.get(&*id.node_id) == Some(&id.generation_id)).collect()
}

/// Leaves out of a message's digest everybody who is no member (or a member under a wrong address), because chitchat
/// keeps a state for everybody that a digest names; and refuses a delta that would unpack to many times its size.
///
/// `None` for what is no message. The form is that of chitchat 0.11: magic number (2 bytes), version, type; a digest is
/// a count (2 bytes, little-endian) of entries of id (length, text), generation (8), address (4 or 6, the IP address,
/// port) and three numbers of 8 bytes; a delta is a row of blocks of type, length (2 bytes) and bytes, ended by type 0.
fn sieve(message: &[u8], address: impl Fn(&MemberId) -> Option<SocketAddr>) -> Option<Vec<u8>> {
    const SYN: u8 = 0;
    const SYN_ACK: u8 = 1;
    const ACK: u8 = 2;

    let (head, mut rest) = message.split_at_checked(4)?;
    let kind = head[3];
    let mut out = head.to_vec();
    if kind == SYN || kind == SYN_ACK {
        let count = u16::from_le_bytes(*take(&mut rest, 2)?.first_chunk()?);
        let at = out.len();
        out.extend_from_slice(&[0, 0]);
        let mut kept = 0_u16;
        for _ in 0..count {
            let entry = rest;
            let known = digest_entry(&mut rest, &address)?;
            if known {
                out.extend_from_slice(&entry[..entry.len() - rest.len()]);
                kept += 1;
            }
        }
        out[at..at + 2].copy_from_slice(&kept.to_le_bytes());
    }
    if kind == SYN_ACK || kind == ACK {
        check_delta(rest)?;
    }
    out.extend_from_slice(rest);
    Some(out)
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (first, rest) = bytes.split_at_checked(n)?;
    *bytes = rest;
    Some(first)
}

/// Takes one entry of a digest; whether it is a member's, under its own address.
fn digest_entry(bytes: &mut &[u8], address: &impl Fn(&MemberId) -> Option<SocketAddr>) -> Option<bool> {
    let len = u16::from_le_bytes(*take(bytes, 2)?.first_chunk()?);
    let id = take(bytes, len.into())?;
    take(bytes, 8)?;
    let said = *bytes;
    let ip_len = match take(bytes, 1)? {
        [4] => 4,
        [6] => 16,
        _ => return None,
    };
    take(bytes, ip_len + 2)?;
    let said = &said[..said.len() - bytes.len()];
    take(bytes, 24)?;
    let member = std::str::from_utf8(id).ok().and_then(|id| MemberId::new(id).ok());
    let known = member.and_then(|m| address(&m)).map(|a| a.serialize_to_vec());
    Some(known.is_some_and(|k| k == said))
}

fn check_delta(mut rest: &[u8]) -> Option<()> {
    for _ in 0..=DELTA_BLOCKS_MAX {
        match take(&mut rest, 1)? {
            [0] => return Some(()),
            _ => {
                let len = u16::from_le_bytes(*take(&mut rest, 2)?.first_chunk()?);
                take(&mut rest, len.into())?;
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn member(id: &MemberId) -> Option<SocketAddr> {
        ["m1", "m2"].contains(&id.as_str()).then(|| gossip_address(id))
    }

    fn digest(entries: &[(&str, SocketAddr)]) -> Vec<u8> {
        let mut out = u16::try_from(entries.len()).unwrap().to_le_bytes().to_vec();
        for (id, address) in entries {
            ChitchatId::new(*id, 7, *address).serialize(&mut out);
            out.extend_from_slice(&[1; 24]);
        }
        out
    }

    fn message(kind: u8, digest: &[u8], rest: &[u8]) -> Vec<u8> {
        [&45_139_u16.to_le_bytes()[..], &[0, kind], digest, rest].concat()
    }

    #[test]
    fn only_members_under_their_own_addresses_stay_in_a_digest() {
        let address = |id: &str| gossip_address(&MemberId::new(id).unwrap());
        let v4 = "10.0.0.1:1".parse().unwrap();
        let given = digest(&[
            ("m1", address("m1")),
            ("stranger", address("stranger")),
            ("m2", address("m1")),
            ("m1", v4),
            ("", v4),
            ("m2", address("m2")),
        ]);
        let want = digest(&[("m1", address("m1")), ("m2", address("m2"))]);
        let cluster = "c".to_owned().serialize_to_vec();
        let sieved = sieve(&message(0, &given, &cluster), member).unwrap();
        assert_eq!(sieved, message(0, &want, &cluster));
        ChitchatMessage::deserialize(&mut &sieved[..]).unwrap();
    }

    #[test]
    fn earlier_incarnations_are_ignored_even_while_they_look_alive() {
        let id =
            |name: &str, generation| ChitchatId::new(name, generation, gossip_address(&MemberId::new(name).unwrap()));
        let known = [id("m1", 3), id("m1", 4), id("m1", 2), id("m2", 1), id("m3", 8), id("m3", 9)];
        // m1's earlier ones look alive as well, m3's latest does not yet.
        let alive = [id("m1", 2), id("m1", 4), id("m2", 1), id("m3", 8)];
        assert_eq!(latest_alive(known.iter(), alive.iter()), [&id("m1", 4), &id("m2", 1)]);
        assert_eq!(latest_alive(known.iter().rev(), alive.iter().rev()), [&id("m2", 1), &id("m1", 4)]);
    }

    #[test]
    fn delta_of_too_many_pieces_is_refused() {
        let block = [[1_u8].as_slice(), &2_u16.to_le_bytes(), &[0, 0]].concat();
        let delta = |n| [block.repeat(n), vec![0]].concat();
        assert!(sieve(&message(2, &[], &delta(DELTA_BLOCKS_MAX)), member).is_some());
        assert!(sieve(&message(2, &[], &delta(DELTA_BLOCKS_MAX + 1)), member).is_none());
        assert!(sieve(&message(2, &[], &block), member).is_none(), "without an end");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes: Vec<u8>, kind in 0_u8..4, rest: Vec<u8>) {
            sieve(&bytes, member);
            if let Some(sieved) = sieve(&message(kind, &[], &rest), member) {
                let _ = ChitchatMessage::deserialize(&mut &sieved[..]);
            }
        }
    }
}
