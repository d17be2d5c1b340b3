//! Which tasks a query is about.
//!
//! Rule: a condition that is not set holds for all; one that is set to nothing holds for none. A task that belongs to no
//! index is found by no index filter. Must not know: how tasks are kept.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::kind::{Status, TaskKind};
use super::when::When;
use crate::types::TaskUid;

/// A span of time, without its ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Later than this.
    pub after: Option<When>,
    /// Earlier than this.
    pub before: Option<When>,
}

impl Span {
    fn has(self, when: Option<When>) -> bool {
        let set = self.after.is_some() || self.before.is_some();
        when.map_or(!set, |when| self.after.is_none_or(|a| when > a) && self.before.is_none_or(|b| when < b))
    }
}

/// Conditions that all must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// One of these tasks.
    pub uids: Option<BTreeSet<u32>>,
    /// In one of these batches: a task is a batch of its own as soon as it is begun.
    pub batch_uids: Option<BTreeSet<u32>>,
    /// Canceled by one of these tasks.
    pub canceled_by: Option<BTreeSet<u32>>,
    /// Of one of these types.
    pub types: Option<BTreeSet<TaskKind>>,
    /// In one of these states.
    pub statuses: Option<BTreeSet<Status>>,
    /// Of one of these indexes.
    pub index_uids: Option<BTreeSet<String>>,
    /// Enqueued then.
    pub enqueued: Span,
    /// Begun then.
    pub started: Span,
    /// Ended then.
    pub finished: Span,
}

/// What a filter looks at.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'t> {
    /// Its number.
    pub uid: TaskUid,
    /// Its index, by the client's name.
    pub index_uid: Option<&'t str>,
    /// Its type.
    pub kind: TaskKind,
    /// Its state.
    pub status: Status,
    /// The task that canceled it.
    pub canceled_by: Option<TaskUid>,
    /// When it was taken.
    pub enqueued: When,
    /// When it was begun.
    pub started: Option<When>,
    /// When it ended.
    pub finished: Option<When>,
}

impl Filter {
    /// Whether a task is meant.
    pub fn matches(&self, task: &Facts<'_>) -> bool {
        fn among<T: Ord>(set: Option<&BTreeSet<T>>, value: Option<&T>) -> bool {
            set.is_none_or(|set| value.is_some_and(|value| set.contains(value)))
        }
        let batch = (task.status != Status::Enqueued).then_some(task.uid.0);
        let index = |set: &BTreeSet<String>| task.index_uid.is_some_and(|uid| set.contains(uid));
        among(self.uids.as_ref(), Some(&task.uid.0))
            && among(self.batch_uids.as_ref(), batch.as_ref())
            && among(self.canceled_by.as_ref(), task.canceled_by.map(|uid| uid.0).as_ref())
            && among(self.types.as_ref(), Some(&task.kind))
            && among(self.statuses.as_ref(), Some(&task.status))
            && self.index_uids.as_ref().is_none_or(index)
            && self.enqueued.has(Some(task.enqueued))
            && self.started.has(task.started)
            && self.finished.has(task.finished)
    }

    /// Whether it holds for every task.
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts<'static> {
        Facts {
            uid: TaskUid(7),
            index_uid: Some("a"),
            kind: TaskKind::DocumentDeletion,
            status: Status::Processing,
            canceled_by: None,
            enqueued: When(10),
            started: Some(When(20)),
            finished: None,
        }
    }

    #[test]
    fn every_condition_counts() {
        let task = facts();
        assert!(Filter::default().matches(&task) && Filter::default().is_everything());
        let fits = Filter {
            uids: Some([7].into()),
            batch_uids: Some([7].into()),
            types: Some([TaskKind::DocumentDeletion].into()),
            statuses: Some([Status::Processing].into()),
            index_uids: Some(["a".to_owned()].into()),
            enqueued: Span { after: Some(When(9)), before: Some(When(11)) },
            started: Span { after: Some(When(19)), before: None },
            ..Filter::default()
        };
        assert!(fits.matches(&task));
        let none = [
            Filter { uids: Some([6].into()), ..fits.clone() },
            Filter { batch_uids: Some([6].into()), ..fits.clone() },
            Filter { canceled_by: Some([7].into()), ..fits.clone() },
            Filter { types: Some([TaskKind::IndexSwap].into()), ..fits.clone() },
            Filter { statuses: Some([].into()), ..fits.clone() },
            Filter { index_uids: Some(["b".to_owned()].into()), ..fits.clone() },
            Filter { enqueued: Span { after: Some(When(10)), before: None }, ..fits.clone() },
            Filter { started: Span { after: None, before: Some(When(20)) }, ..fits.clone() },
            Filter { finished: Span { after: None, before: Some(When(99)) }, ..fits.clone() },
        ];
        for (i, filter) in none.iter().enumerate() {
            assert!(!filter.matches(&task) && !filter.is_everything(), "{i}");
        }
    }

    #[test]
    fn what_has_no_index_or_batch_is_found_by_neither() {
        let swap = Facts { index_uid: None, status: Status::Enqueued, ..facts() };
        assert!(!Filter { index_uids: Some(["a".to_owned()].into()), ..Filter::default() }.matches(&swap));
        assert!(!Filter { batch_uids: Some([7].into()), ..Filter::default() }.matches(&swap));
    }
}
