//! The replicated records: which names exist, and for each physical index what all members must agree on.
//!
//! Must not know: how agreement is reached (`services::records`), or where records are kept.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::ids::{GroupId, IndexUid, MemberId, MeshId, PhysicalIndex, RecordVersion, TaskUid};
use super::lease::Epoch;
use super::ledger::{StoreId, VoterList};
use super::shards::{ShardId, ShardSet};

/// The one record that maps client names to physical indexes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamesRecord {
    /// Index uid → the physical index that it names now.
    pub indexes: BTreeMap<IndexUid, PhysicalIndex>,
    /// Alias → the index that it stands for. No name is index and alias at once (`proto::alias` holds that).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aliases: BTreeMap<IndexUid, AliasRecord>,
    /// Physical indexes whose names were taken away and whose own records may not say yet that they are deleted.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub leaving: BTreeSet<PhysicalIndex>,
}

/// One alias.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AliasRecord {
    /// The index that it stands for, by the clients' name, so that it follows when that index is resharded or swapped.
    pub target: IndexUid,
    /// Counts the targets, from 1.
    pub version: u64,
    /// The highest epoch that has led a flip of it.
    #[serde(default)]
    pub epoch: Epoch,
    /// Former targets, oldest first.
    #[serde(default)]
    pub history: Vec<FormerTarget>,
}

/// An index that an alias stood for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerTarget {
    /// The index.
    pub target: IndexUid,
    /// Until when, RFC 3339, UTC; for people.
    pub until: String,
}

/// What a member is to a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaState {
    /// Being filled; serves nothing.
    Learner,
    /// A full copy.
    Replica,
    /// Serves until its successor is ready.
    Leaving,
}

/// One copy of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardReplica {
    /// Who holds the copy.
    pub member: MemberId,
    /// In which state.
    pub state: ReplicaState,
}

/// One shard of an index: who holds it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRecord {
    /// All copies, of all groups, in the order of the placement.
    pub replicas: Vec<ShardReplica>,
}

/// A change of settings that some members have not got, because they were away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissedSettings {
    /// Its place in the order of changes: the version of this record with which it came.
    #[serde(default)]
    pub place: RecordVersion,
    /// Who has yet to get it.
    pub members: BTreeSet<MemberId>,
    /// What the nodes are told, as JSON.
    pub patch: String,
}

/// A change of settings that a member had missed and has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaughtUp {
    /// The version of this record that said so.
    pub at: RecordVersion,
    /// The change's place in the order of changes.
    pub place: RecordVersion,
}

/// What all members must agree on about one physical index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexRecord {
    /// The client's name at creation; error texts show this one.
    pub uid: IndexUid,
    /// The name on the nodes.
    pub physical: PhysicalIndex,
    /// Primary key, settled before the first document is split; `None` until then.
    pub primary_key: Option<String>,
    /// Counts the committed settings changes.
    pub settings_version: u64,
    /// The client's own values of those settings that nodes hold in another form (`proto::settings`), as JSON.
    pub client_settings: BTreeMap<String, String>,
    /// Changes of settings that some members have yet to get, by task (`proto::missed`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub missed_settings: BTreeMap<TaskUid, MissedSettings>,
    /// Who has got changes that it had missed, and the last of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub caught_up: BTreeMap<MemberId, CaughtUp>,
    /// One entry a shard; its length is the index's `S`.
    pub shards: Vec<ShardRecord>,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// RFC 3339, UTC.
    pub updated_at: String,
    /// Deleted by a client: the record stays, so that its version goes on.
    pub deleted: bool,
}

impl IndexRecord {
    /// The number of shards, `S`.
    pub fn shard_count(&self) -> u16 {
        u16::try_from(self.shards.len()).expect("an index has at most SHARDS_MAX shards")
    }

    /// The shards of which `member` holds a copy in any state.
    pub fn shards_of(&self, member: &MemberId) -> ShardSet {
        let held = |s: &ShardRecord| s.replicas.iter().any(|r| r.member == *member);
        (0_u16..).zip(&self.shards).filter(|(_, s)| held(s)).map(|(i, _)| ShardId(i)).collect()
    }

    /// Whether the member has yet to get settings that the others have.
    pub fn misses_settings(&self, member: &MemberId) -> bool {
        self.missed_settings.values().any(|missed| missed.members.contains(member))
    }

    /// Everybody who holds a copy of any shard.
    pub fn members(&self) -> BTreeSet<&MemberId> {
        self.shards.iter().flat_map(|s| s.replicas.iter().map(|r| &r.member)).collect()
    }
}

/// How far a member has come into the mesh or out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberState {
    /// Known, not yet given data.
    Joining,
    /// Takes part in everything.
    Active,
    /// Gives its data away.
    Draining,
    /// Gone; its id is never used again.
    Removed,
}

/// One member, as the mesh record knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshMember {
    /// Its name, never reused.
    pub id: MemberId,
    /// Its replica group.
    pub group: GroupId,
    /// Host and port of its mesh socket.
    pub address: String,
    /// The store it has now; a voter list that names another is out of date.
    pub store: StoreId,
    /// How far in or out.
    pub state: MemberState,
    /// A sidecar without a node: it votes and holds no documents.
    #[serde(default)]
    pub witness: bool,
}

/// Whether a voter list has taken over everything from the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VotersState {
    /// Every key has been rewritten under this list: the next change may begin.
    Settled,
    /// Any member may go on with it; no other change may begin.
    Settling,
}

/// The mesh's own record, under the key `mesh`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshRecord {
    /// Which mesh this is.
    #[serde(with = "super::ledger::hex16_mesh")]
    pub mesh: MeshId,
    /// Everybody who belongs to it or has belonged to it, each id once.
    pub members: Vec<MeshMember>,
    /// Who votes.
    pub voters: VoterList,
    /// Whether that list has taken over.
    pub voters_state: VotersState,
    /// Copies of each shard inside a group.
    pub rf: u16,
    /// Shards of an index unless configured.
    pub shards: u16,
}

impl MeshRecord {
    /// The entry of one member.
    pub fn member(&self, id: &MemberId) -> Option<&MeshMember> {
        self.members.iter().find(|m| m.id == *id)
    }

    /// Everybody who has not been removed.
    pub fn present(&self) -> impl Iterator<Item = &MeshMember> {
        self.members.iter().filter(|m| m.state != MemberState::Removed)
    }

    /// Reads a record that was agreed on.
    ///
    /// # Errors
    /// The decoder's reason, for text that is not a mesh record.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// The record as it is agreed on.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a struct of texts and numbers has a JSON form")
    }
}
