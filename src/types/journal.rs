//! A shard's replicas as its index record holds them, and positions in its journal.
//!
//! Must not know: which changes of them are allowed (`proto::journal::record`).

use std::collections::BTreeMap;
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
    /// The part under which it stands will never be done.
    Refusal,
    /// What happened to tasks, in the journal of their home; no documents.
    Home,
}

impl EntryKind {
    /// Whether the effect depends on what a document was, so that doing it twice may differ from doing it once.
    pub fn is_conditional(self) -> bool {
        match self {
            Self::Set { skip_creation } | Self::Merge { skip_creation } => skip_creation,
            Self::DeleteByFilter | Self::Edit => true,
            Self::Delete | Self::Clear | Self::Empty | Self::Refusal | Self::Home => false,
        }
    }

    /// Whether it deletes documents, so that a client is told how many.
    pub fn is_deletion(self) -> bool {
        matches!(self, Self::Delete | Self::DeleteByFilter | Self::Clear)
    }

    /// Whether it changes no document, whatever its body says.
    pub fn is_idle(self) -> bool {
        matches!(self, Self::Empty | Self::Refusal | Self::Home)
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

impl ShardCopy {
    /// Whether it is being filled.
    pub fn is_learner(&self) -> bool {
        self.state == ReplicaState::Learner
    }
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

    /// Copies outside the in-sync set.
    pub fn out_of_sync(&self) -> usize {
        self.replicas.iter().filter(|copy| !self.is_in_sync(&copy.id)).count()
    }

    /// Copies that are to be there: one that is being filled in the place of another is missing as long as that takes.
    pub fn copies(&self) -> usize {
        self.replicas.len()
    }

    /// Whether this process of `id` is the primary. A member with another store than the record's never is.
    pub fn is_led_by(&self, id: &ReplicaId, start: u64) -> bool {
        let named = self.primary.as_ref().is_some_and(|p| p.member == id.member && p.start == start);
        named && self.is_in_sync(id)
    }
}

/// The states of all shards of one physical index, in one record of the ledger beside the index's own.
///
/// It is written anew with every change of any shard, so its JSON names each replica once and refers to it by number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Packed", try_from = "Packed")]
pub struct JournalRecord {
    /// By the shard's number; empty: the index is gone.
    pub shards: Vec<ShardState>,
}

/// The form of a [`JournalRecord`] in the ledger.
#[derive(Serialize, Deserialize)]
struct Packed {
    replicas: Vec<ReplicaId>,
    shards: Vec<PackedShard>,
}

#[derive(Serialize, Deserialize)]
struct PackedShard {
    copies: Vec<(usize, ReplicaState)>,
    in_sync: Vec<usize>,
    /// A replica of the member, and the start of its process.
    primary: Option<(usize, u64)>,
    epoch: Epoch,
    set: u64,
}

impl From<JournalRecord> for Packed {
    fn from(record: JournalRecord) -> Self {
        let mut replicas: Vec<ReplicaId> = Vec::new();
        let mut numbers: BTreeMap<ReplicaId, usize> = BTreeMap::new();
        let mut number = |id: ReplicaId| {
            *numbers.entry(id).or_insert_with_key(|id| {
                replicas.push(id.clone());
                replicas.len() - 1
            })
        };
        let mut pack = |state: ShardState| {
            let ShardState { replicas, in_sync, primary, epoch, set } = state;
            // A primary is in sync, so its member is there with the store that counts.
            let store = |member: &MemberId| in_sync.iter().find(|id| id.member == *member).map(|id| id.store);
            let primary = primary.map(|p| {
                let store = store(&p.member).unwrap_or(StoreId([0; 16]));
                (number(ReplicaId { member: p.member, store }), p.start)
            });
            let copies = replicas.into_iter().map(|copy| (number(copy.id), copy.state)).collect();
            let in_sync = in_sync.into_iter().map(&mut number).collect();
            PackedShard { copies, in_sync, primary, epoch, set }
        };
        let shards = record.shards.into_iter().map(&mut pack).collect();
        Self { replicas, shards }
    }
}

impl TryFrom<Packed> for JournalRecord {
    type Error = &'static str;

    fn try_from(packed: Packed) -> Result<Self, Self::Error> {
        let Packed { replicas, shards } = packed;
        let named = |n: usize| replicas.get(n).cloned().ok_or("a number that no replica has");
        let unpack = |shard: PackedShard| -> Result<ShardState, Self::Error> {
            let PackedShard { copies, in_sync, primary, epoch, set } = shard;
            let copy = |(n, state)| Ok::<_, Self::Error>(ShardCopy { id: named(n)?, state });
            Ok(ShardState {
                replicas: copies.into_iter().map(copy).collect::<Result<_, _>>()?,
                in_sync: in_sync.into_iter().map(named).collect::<Result<_, _>>()?,
                primary: match primary {
                    Some((n, start)) => Some(Holder { member: named(n)?.member, start }),
                    None => None,
                },
                epoch,
                set,
            })
        };
        if shards.len() > usize::from(SHARDS_MAX) {
            return Err("more shards than an index may have");
        }
        Ok(Self { shards: shards.into_iter().map(unpack).collect::<Result<_, _>>()? })
    }
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
        serde_json::from_str(text)
    }

    /// As the ledger's value.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a struct of texts and numbers has a JSON form")
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::{MEMBERS_MAX, RECORD_MAX_BYTES};
    use super::*;

    fn id(n: usize) -> ReplicaId {
        let store = [u8::try_from(n % 251).unwrap(); 16];
        ReplicaId { member: MemberId::new(format!("m{n:0>62}")).unwrap(), store: StoreId(store) }
    }

    /// Shards of six copies, spread over the members.
    fn record(shards: usize, members: usize) -> JournalRecord {
        let state = |shard: usize| {
            let ids: Vec<ReplicaId> = (0..6).map(|i| id((shard * 7 + i) % members)).collect();
            let copy = |id: &ReplicaId| ShardCopy { id: id.clone(), state: ReplicaState::Replica };
            ShardState {
                replicas: ids.iter().map(copy).collect(),
                primary: (!shard.is_multiple_of(9)).then(|| Holder { member: ids[1].member.clone(), start: 1 << 52 }),
                in_sync: ids,
                epoch: Epoch::new(1 << 40).unwrap(),
                set: 1 << 40,
            }
        };
        JournalRecord { shards: (0..shards).map(state).collect() }
    }

    #[test]
    fn the_largest_record_fits_and_comes_back() {
        for record in [JournalRecord::default(), record(3, 6), record(usize::from(SHARDS_MAX), MEMBERS_MAX)] {
            let text = record.to_json();
            assert!(text.len() < RECORD_MAX_BYTES / 3, "{} bytes", text.len());
            assert_eq!(JournalRecord::from_json(&text).unwrap(), record);
        }
        assert!(JournalRecord::from_json(&record(usize::from(SHARDS_MAX) + 1, 6).to_json()).is_err());
    }

    #[test]
    fn a_record_that_names_nobody_is_none() {
        let text = record(1, 6).to_json();
        let bad = text.replacen("[5,\"replica\"]", "[6,\"replica\"]", 1);
        assert_ne!(bad, text);
        assert!(JournalRecord::from_json(&bad).is_err());
    }

    #[test]
    fn a_key_names_its_index() {
        let index = PhysicalIndex::new("movies__m00000001").unwrap();
        let key = JournalRecord::key(&index);
        assert_eq!(key.as_str(), "journal:movies__m00000001");
        assert_eq!(JournalRecord::of_key(&key), Some(index));
        assert_eq!(JournalRecord::of_key(&RecordKey::mesh()), None);
    }
}
