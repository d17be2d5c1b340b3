//! The parts of a task, and who does them.
//!
//! Must not know: what a part says.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::filter::Filter;
use super::super::query::Action;
use super::super::task::Outcome;
use crate::types::limits::SHARDS_MAX;
use crate::types::{PhysicalIndex, TaskPart, TaskUid};

/// Most parts of one task.
pub const PARTS_MAX: u32 = 8_192;

/// A part: of which shard, and which of the parts that the task has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartRef {
    /// Of the task's index.
    pub shard: u16,
    /// From 0.
    pub part: u32,
}

impl PartRef {
    /// As it stands in the shard's journal.
    pub fn of(self, task: TaskUid) -> TaskPart {
        TaskPart { task, part: self.part }
    }
}

/// All parts of a task: for each shard how many.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts(pub BTreeMap<u16, u32>);

impl Parts {
    /// One part for each of these shards.
    pub fn one_each(shards: impl IntoIterator<Item = u16>) -> Self {
        Self(shards.into_iter().map(|shard| (shard, 1)).collect())
    }

    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = PartRef> + '_ {
        self.0.iter().flat_map(|(shard, parts)| (0..*parts).map(|part| PartRef { shard: *shard, part }))
    }

    /// How many.
    pub fn len(&self) -> u64 {
        self.0.values().map(|parts| u64::from(*parts)).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it is one of them.
    pub fn has(&self, part: PartRef) -> bool {
        self.0.get(&part.shard).is_some_and(|parts| part.part < *parts)
    }

    /// Whether a request can have such parts.
    pub fn is_well_formed(&self) -> bool {
        self.0.iter().all(|(shard, parts)| *shard < SHARDS_MAX && *parts > 0) && self.len() <= u64::from(PARTS_MAX)
    }
}

/// Who does a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// The replicas of these shards, each when the part's turn in the journal comes.
    Parts {
        /// Of this index.
        index: PhysicalIndex,
        /// All of them.
        parts: Parts,
    },
    /// Somebody carries out an order (settings, indexes) and tells what became of it.
    Order,
    /// Every home looks among its own tasks.
    Sweep {
        /// What for.
        action: Action,
        /// Which tasks.
        filter: Filter,
    },
    /// Nobody: it ended as it was taken.
    Nothing(Outcome),
}
