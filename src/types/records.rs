//! The replicated records: which names exist, and for each physical index what all members must agree on.
//!
//! Must not know: how agreement is reached (`services::records`), or where records are kept.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::ids::{IndexUid, MemberId, PhysicalIndex};
use super::lease::Epoch;
use super::shards::{ShardId, ShardSet};

/// The one record that maps client names to physical indexes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamesRecord {
    /// Index uid → the physical index that it names now.
    pub indexes: BTreeMap<IndexUid, PhysicalIndex>,
    /// Alias → the index that it stands for. No name is index and alias at once (`proto::alias` holds that).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aliases: BTreeMap<IndexUid, AliasRecord>,
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

    /// Everybody who holds a copy of any shard.
    pub fn members(&self) -> BTreeSet<&MemberId> {
        self.shards.iter().flat_map(|s| s.replicas.iter().map(|r| &r.member)).collect()
    }
}
