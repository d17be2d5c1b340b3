//! The entries of a home's journal.
//!
//! Each is JSON in the body of a [`crate::proto::journal::Entry`], under a [`TaskPart`] of its own: a journal holds each
//! part once, so of two entries under one part the first stands and the other is nothing. Rule: what may happen to a task
//! once (head, end, being given up) has one part, so that two primaries, or one that repeats itself, can't make it happen
//! twice. What is wrong or too large is never appended, and does nothing where it stands. Must not know: who appends.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::super::filter::Filter;
use super::super::query::Action;
use super::super::task::{Head, Outcome};
use super::super::when::When;
use super::parts::{PartRef, Work};
use crate::types::{TaskPart, TaskUid};

/// Largest entry, encoded: the settings that a task shows are the largest part.
pub const HOME_ENTRY_MAX_BYTES: usize = 2 << 20;
/// Longest `Idempotency-Key`.
pub const KEY_MAX_BYTES: usize = 512;
/// Longest `customMetadata`.
pub const METADATA_MAX_BYTES: usize = 256 << 10;
/// Most tasks that one entry names.
pub const ENTRY_TASKS_MAX: usize = 500;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HomeEntry {
    /// A task was taken.
    Head {
        /// Its number.
        uid: TaskUid,
        /// All of it.
        head: Box<Head>,
    },
    /// There will never be a task of this number: whoever drew it is gone.
    Void {
        /// The number.
        uid: TaskUid,
    },
    /// It has waited too long for parts that nobody has heard of: from here on they are refused.
    GiveUp {
        /// The task.
        uid: TaskUid,
    },
    /// It was to be canceled, and all of it is there, or being carried out: it takes its course, and whoever cancels tasks
    /// does not wait for it.
    Stays {
        /// The task.
        uid: TaskUid,
    },
    /// These parts were refused for ever, each by its shard; all others are there.
    Refused {
        /// The task.
        uid: TaskUid,
        /// At least one.
        parts: BTreeSet<PartRef>,
    },
    /// It ended.
    Finished {
        /// The task.
        uid: TaskUid,
        /// How.
        outcome: Box<Outcome>,
        /// Webhooks are to be told.
        hook: bool,
    },
    /// Webhooks were told of these.
    Hooked {
        /// At least one.
        uids: BTreeSet<TaskUid>,
    },
    /// A task cancels or deletes tasks that are older than itself, in this home.
    Sweep {
        /// The task.
        by: TaskUid,
        /// What it does.
        action: Action,
        /// To which.
        filter: Box<Filter>,
    },
    /// These ended so long ago that nobody needs to know.
    Forget {
        /// At least one.
        uids: BTreeSet<TaskUid>,
    },
    /// An idempotency key stands for a task, if it stands for none, or for the one that is replaced.
    Key {
        /// Which the client made up.
        key: String,
        /// Of the body.
        hash: [u8; 32],
        /// The task.
        uid: TaskUid,
        /// A task that never was, or is forgotten.
        replaces: Option<TaskUid>,
        /// By the clock of whoever asked.
        at: When,
    },
    /// Keys stand for nothing any more, if they still stand for these tasks, which are forgotten.
    ForgetKeys {
        /// At least one.
        keys: BTreeSet<(TaskUid, String)>,
    },
}

impl HomeEntry {
    /// Under which it stands in the journal of the home; `None` for one that names nobody.
    pub fn part(&self) -> Option<TaskPart> {
        let (task, part) = match self {
            // Whichever of the two comes first.
            Self::Head { uid, .. } | Self::Void { uid } => (*uid, 0),
            Self::Finished { uid, .. } => (*uid, 1),
            Self::Key { uid, .. } => (*uid, 2),
            Self::GiveUp { uid } => (*uid, 3),
            Self::Refused { uid, .. } => (*uid, 4),
            Self::Sweep { by, .. } => (*by, 5),
            Self::Hooked { uids } => (*uids.last()?, 6),
            Self::Forget { uids } => (*uids.last()?, 7),
            Self::ForgetKeys { keys } => (keys.last()?.0, 8),
            Self::Stays { uid } => (*uid, 9),
        };
        Some(TaskPart { task, part })
    }

    /// Whether it could have been appended.
    pub fn is_well_formed(&self) -> bool {
        let some = |n: usize| (1..=ENTRY_TASKS_MAX).contains(&n);
        match self {
            Self::Head { head, .. } => is_head(head),
            Self::Refused { parts, .. } => !parts.is_empty() && parts.len() <= super::parts::PARTS_MAX as usize,
            Self::Finished { outcome, .. } => outcome.status.is_final(),
            Self::Hooked { uids } | Self::Forget { uids } => some(uids.len()),
            Self::Key { key, .. } => (1..=KEY_MAX_BYTES).contains(&key.len()),
            Self::ForgetKeys { keys } => some(keys.len()),
            Self::Void { .. } | Self::GiveUp { .. } | Self::Stays { .. } | Self::Sweep { .. } => true,
        }
    }

    /// The body of its journal entry; `None` if it may not be appended.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let bytes = serde_json::to_vec(self).ok().filter(|_| self.is_well_formed())?;
        (bytes.len() <= HOME_ENTRY_MAX_BYTES).then_some(bytes)
    }

    /// What a body says; `None` if it says nothing that could have been appended.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let fits = body.len() <= HOME_ENTRY_MAX_BYTES;
        fits.then(|| serde_json::from_slice::<Self>(body).ok()).flatten().filter(Self::is_well_formed)
    }
}

/// Whether a task may be so.
pub(super) fn is_head(head: &Head) -> bool {
    let work = match &head.work {
        Work::Parts { parts, .. } => parts.is_well_formed() && !parts.is_empty(),
        Work::Nothing(outcome) => outcome.status.is_final(),
        Work::Order | Work::Sweep { .. } => true,
    };
    work && head.custom_metadata.as_ref().is_none_or(|m| m.len() <= METADATA_MAX_BYTES)
        && head.key.as_ref().is_none_or(|(key, _)| (1..=KEY_MAX_BYTES).contains(&key.len()))
}
