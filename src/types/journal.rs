//! A shard's replicas as its index record holds them, and positions in its journal.
//!
//! Must not know: which changes of them are allowed (`proto::journal::record`).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ids::{MemberId, PhysicalIndex, TaskUid};
use super::lease::{Epoch, Holder};
use super::ledger::StoreId;
use super::records::ReplicaState;
use super::shards::ShardId;

/// A place in a journal: an entry's epoch and sequence number. Later ones are greater.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Of the primary that appended the entry first.
    pub epoch: Epoch,
    /// Counts a shard's entries from 1, through all epochs; 0: before the first.
    pub seq: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.epoch, self.seq)
    }
}

/// Names one journal in a member's store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JournalKey {
    /// The physical index.
    pub index: PhysicalIndex,
    /// The shard.
    pub shard: ShardId,
}

impl fmt::Display for JournalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} shard {}", self.index, self.shard)
    }
}

/// One part of a client's request: what an entry carries, so that it is recognised when it is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskPart {
    /// The task.
    pub task: TaskUid,
    /// Which of the parts that the task has for one shard, from 0.
    pub part: u32,
}

impl fmt::Display for TaskPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.task, self.part)
    }
}

/// A replica: a member with one certain store. With another store it is another replica.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaId {
    /// The member.
    pub member: MemberId,
    /// The store that its journal is in.
    pub store: StoreId,
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.member, self.store)
    }
}

/// One copy of a shard, with the store that it is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardCopy {
    /// Whose copy.
    #[serde(flatten)]
    pub id: ReplicaId,
    /// In which state.
    pub state: ReplicaState,
}

/// Who holds a shard, who of them has every acknowledged write, and who orders its writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardState {
    /// All copies, of all groups, in the order of the placement; each member at most once.
    pub replicas: Vec<ShardCopy>,
    /// Those that store every entry before it is acknowledged, in the order in which they are elected.
    pub in_sync: Vec<ReplicaId>,
    /// The process that orders the shard's writes; `None` until the first election.
    pub primary: Option<Holder>,
    /// Goes up by one with every primary.
    pub epoch: Epoch,
    /// Goes up by one with every change.
    pub set: u64,
}

impl ShardState {
    /// The copy of a member.
    pub fn copy(&self, member: &MemberId) -> Option<&ShardCopy> {
        self.replicas.iter().find(|c| c.id.member == *member)
    }

    /// Whether this very replica is in the in-sync set.
    pub fn is_in_sync(&self, id: &ReplicaId) -> bool {
        self.in_sync.contains(id)
    }

    /// Copies that are full, or were: all but learners.
    pub fn copies(&self) -> usize {
        self.replicas.iter().filter(|c| c.state != ReplicaState::Learner).count()
    }

    /// Whether this process of `id` is the primary. A member with another store than the record's never is.
    pub fn is_led_by(&self, id: &ReplicaId, start: u64) -> bool {
        let named = self.primary.as_ref().is_some_and(|p| p.member == id.member && p.start == start);
        named && self.is_in_sync(id)
    }
}
