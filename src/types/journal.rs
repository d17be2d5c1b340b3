//! A shard's replicas as its index record holds them, and positions in its journal.
//!
//! Must not know: which changes of them are allowed (`proto::journal::record`).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ids::{MemberId, PhysicalIndex, TaskUid};
use super::lease::{Epoch, Holder};
use super::ledger::{RecordKey, StoreId};
use super::limits::SHARDS_MAX;
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

/// What an entry does to the documents of its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// Replaces documents whole.
    Set {
        /// Only those that exist already.
        skip_creation: bool,
    },
    /// Merges fields into documents.
    Merge {
        /// Only into those that exist already.
        skip_creation: bool,
    },
    /// Deletes documents by id.
    Delete,
    /// Deletes the documents that a filter finds.
    DeleteByFilter,
    /// Edits documents by a function.
    Edit,
    /// Deletes all documents.
    Clear,
    /// Nothing: a new primary's first entry.
    Empty,
}

impl EntryKind {
    /// Whether the effect depends on what a document was, so that doing it twice may differ from doing it once.
    pub fn is_conditional(self) -> bool {
        match self {
            Self::Set { skip_creation } | Self::Merge { skip_creation } => skip_creation,
            Self::DeleteByFilter | Self::Edit => true,
            Self::Delete | Self::Clear | Self::Empty => false,
        }
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

/// The states of all shards of one physical index, in one record of the ledger beside the index's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalRecord {
    /// By the shard's number; empty: the index is gone.
    pub shards: Vec<ShardState>,
}

impl JournalRecord {
    /// What the keys of these records begin with.
    pub const PREFIX: &str = "journal:";

    /// The ledger's key of an index's record.
    pub fn key(index: &PhysicalIndex) -> RecordKey {
        RecordKey::new(format!("{}{index}", Self::PREFIX)).expect("an index's bounded name behind a prefix is a key")
    }

    /// The index whose record the ledger keeps under `key`, if it is one.
    pub fn of_key(key: &RecordKey) -> Option<PhysicalIndex> {
        PhysicalIndex::new(key.as_str().strip_prefix(Self::PREFIX)?).ok()
    }

    /// One shard's state.
    pub fn shard(&self, shard: ShardId) -> Option<&ShardState> {
        self.shards.get(usize::from(shard.0))
    }

    /// From the ledger's value.
    ///
    /// # Errors
    /// What is wrong with the JSON, or that there are more shards than an index may have.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        let record: Self = serde_json::from_str(text)?;
        if record.shards.len() > usize::from(SHARDS_MAX) {
            return Err(serde::de::Error::custom("more shards than an index may have"));
        }
        Ok(record)
    }

    /// As the ledger's value.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a struct of texts and numbers has a JSON form")
    }
}
