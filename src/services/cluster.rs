//! Who belongs to the mesh, in which group, and what is known of each member now.
//!
//! Membership is a list that is given, and given anew when it changes; liveness comes from probes and gossip and is only
//! ever a hint: it chooses whom to ask, never whether an order is valid. Must not know: how probes and gossip work, and
//! where the list comes from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, RwLock};

use serde::Serialize;
use tokio::sync::watch;

use crate::types::{GroupId, MemberId, MeshId, PhysicalIndex, ShardSet};
pub use crate::wire::gossip::MemberState;

/// One member as the mesh's list has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its id.
    pub id: MemberId,
    /// Its replica group.
    pub group: GroupId,
    /// `host:port` of its mesh endpoint.
    pub address: String,
    /// It has no node: it votes, and holds no documents.
    pub witness: bool,
}

/// The mesh as its list has it, seen from one member.
#[derive(Debug, Clone)]
pub struct Topology {
    /// The own id.
    pub own: MemberId,
    /// The mesh's id.
    pub mesh: MeshId,
    /// All members in the order of the list.
    pub members: Vec<Listed>,
    /// Copies of each shard inside one group.
    pub rf: usize,
    /// Shards of a new index.
    pub shards: u16,
}

impl Topology {
    /// The position of the own member in the list; `None` if it is not in it.
    pub fn position(&self) -> Option<usize> {
        self.members.iter().position(|m| m.id == self.own)
    }

    /// Member → group, of those that hold documents.
    pub fn groups(&self) -> BTreeMap<MemberId, GroupId> {
        self.members.iter().filter(|m| !m.witness).map(|m| (m.id.clone(), m.group.clone())).collect()
    }

    /// Whether the member is in the list.
    pub fn contains(&self, id: &MemberId) -> bool {
        self.members.iter().any(|m| m.id == *id)
    }

    /// All members, in the order of the list.
    pub fn ids(&self) -> impl Iterator<Item = &MemberId> {
        self.members.iter().map(|m| &m.id)
    }

    /// All members with a node, in the order of the list.
    pub fn holders(&self) -> impl Iterator<Item = &MemberId> {
        self.members.iter().filter(|m| !m.witness).map(|m| &m.id)
    }

    /// The own entry; `None` if this member is not in the list.
    pub fn own_entry(&self) -> Option<&Listed> {
        self.members.iter().find(|m| m.id == self.own)
    }

    /// All members but the own one.
    pub fn others(&self) -> impl Iterator<Item = &MemberId> {
        self.ids().filter(|m| **m != self.own)
    }
}

/// The health of a member's node, as its own sidecar sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NodeHealth {
    /// It answers, its version is supported, its key is right.
    pub healthy: bool,
    /// Meilisearch's version, once known.
    pub version: Option<String>,
    /// What is wrong and what to do about it.
    pub error: Option<String>,
}

/// What is known of one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its probes are unanswered, or it has never been heard of.
    pub suspect: bool,
    /// What it says about itself; `None` until heard.
    pub state: Option<MemberState>,
    /// Its node.
    pub node: NodeHealth,
    /// `host:port` of its HTTP API, for people.
    pub http: Option<String>,
    /// Its version of miroir.
    pub version: Option<String>,
    /// Shards that it holds but does not serve.
    pub unserved: BTreeMap<PhysicalIndex, ShardSet>,
    /// Indexes that wait for its node.
    pub pressed: BTreeSet<PhysicalIndex>,
    /// More than it names: as if all did.
    pub pressed_all: bool,
    /// The disk of its store is almost full.
    pub disk_full: bool,
    /// Indexes that its node has lost.
    pub lost: BTreeSet<PhysicalIndex>,
    /// More than it names: as if all were.
    pub lost_all: bool,
    /// Digest of the records that it knows.
    pub records: Option<String>,
}

impl Seen {
    /// Nothing heard yet.
    pub fn unknown() -> Self {
        Self {
            suspect: true,
            state: None,
            node: NodeHealth::default(),
            http: None,
            version: None,
            unserved: BTreeMap::new(),
            pressed: BTreeSet::new(),
            pressed_all: false,
            disk_full: false,
            lost: BTreeSet::new(),
            lost_all: false,
            records: None,
        }
    }

    /// Answers calls and is not shutting down.
    pub fn alive(&self) -> bool {
        !self.suspect && matches!(self.state, Some(MemberState::Active | MemberState::Joining))
    }

    /// Alive with a healthy node: may be given reads and writes.
    pub fn serving(&self) -> bool {
        !self.suspect && self.state == Some(MemberState::Active) && self.node.healthy
    }
}

/// A list, and what searches ask of it each time.
#[derive(Debug)]
struct List {
    topology: Arc<Topology>,
    groups: Arc<BTreeMap<MemberId, GroupId>>,
}

impl From<Topology> for List {
    fn from(topology: Topology) -> Self {
        Self { groups: Arc::new(topology.groups()), topology: Arc::new(topology) }
    }
}

/// The mesh's list together with what is known of each member.
#[derive(Debug, Clone)]
pub struct Cluster {
    own: MemberId,
    // Readers take the Arcs out; the locks are held for a pointer's copy only. A list is replaced before what is seen of it.
    topology: Arc<RwLock<List>>,
    seen: Arc<RwLock<Arc<BTreeMap<MemberId, Seen>>>>,
    changed: watch::Sender<u64>,
}

impl Cluster {
    /// A cluster in which only the list is known.
    pub fn new(topology: Topology) -> Self {
        let seen = topology.members.iter().map(|m| (m.id.clone(), Seen::unknown())).collect();
        Self {
            own: topology.own.clone(),
            topology: Arc::new(RwLock::new(topology.into())),
            seen: Arc::new(RwLock::new(Arc::new(seen))),
            changed: watch::Sender::new(0),
        }
    }

    /// The list now.
    pub fn topology(&self) -> Arc<Topology> {
        Arc::clone(&self.topology.read().unwrap_or_else(std::sync::PoisonError::into_inner).topology)
    }

    /// Member → group, of those in the list now that hold documents.
    pub fn groups(&self) -> Arc<BTreeMap<MemberId, GroupId>> {
        Arc::clone(&self.topology.read().unwrap_or_else(std::sync::PoisonError::into_inner).groups)
    }

    /// Replaces the list. What is known of those who stay is kept.
    pub fn set_topology(&self, topology: Topology) {
        let mut slot = self.topology.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        *slot = topology.into();
        let topology = Arc::clone(&slot.topology);
        drop(slot);
        self.update(|seen| {
            for id in topology.ids() {
                seen.entry(id.clone()).or_insert_with(Seen::unknown);
            }
        });
    }

    /// The own id.
    pub fn own(&self) -> &MemberId {
        &self.own
    }

    /// What is known now. Every listed member is in it.
    pub fn seen(&self) -> Arc<BTreeMap<MemberId, Seen>> {
        Arc::clone(&self.seen.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Replaces what is known of some members; strangers are ignored.
    pub fn update(&self, change: impl FnOnce(&mut BTreeMap<MemberId, Seen>)) {
        let mut slot = self.seen.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut next = BTreeMap::clone(&slot);
        change(&mut next);
        let topology = self.topology();
        next.retain(|id, _| topology.contains(id));
        if next == **slot {
            return;
        }
        *slot = Arc::new(next);
        drop(slot);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Wakes whenever what is known changes.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Whether the member answers.
    pub fn alive(&self, member: &MemberId) -> bool {
        self.seen().get(member).is_some_and(Seen::alive)
    }

    /// Whether the member may be given reads and writes.
    pub fn serving(&self, member: &MemberId) -> bool {
        self.seen().get(member).is_some_and(Seen::serving)
    }

    /// Whether the member says that it is in service, with or without a node.
    pub fn active(&self, member: &MemberId) -> bool {
        self.seen().get(member).is_some_and(|s| !s.suspect && s.state == Some(MemberState::Active))
    }

    /// Members that answer now.
    pub fn live(&self) -> BTreeSet<MemberId> {
        self.seen().iter().filter(|(_, s)| s.alive()).map(|(m, _)| m.clone()).collect()
    }
}
