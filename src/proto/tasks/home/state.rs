//! What every replica of a home knows: committed entries, one after the other.
//!
//! Rule: the same entries give the same state, whoever replays them and however often; an entry at or before the last one
//! applied is passed over. Nothing here looks at a clock. Must not know: who is the primary, which replicas have applied
//! what.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::super::filter::{Facts, Filter};
use super::super::kind::Status;
use super::super::query::Action;
use super::super::task::{Head, Outcome};
use super::super::when::When;
use super::entry::HomeEntry;
use super::parts::{PartRef, Work};
use crate::types::TaskUid;

/// Most tasks of one home; beyond, those that ended first are forgotten.
pub const TASKS_MAX: usize = 16_384;
/// Most bytes of heads and outcomes of one home; beyond, those that ended first are forgotten.
pub const TASKS_MAX_BYTES: usize = 64 << 20;
/// Most sweeps, and most numbers without a task, that are remembered; the oldest go first.
const REMEMBERED_MAX: usize = 4_096;
/// What a task weighs beside its texts.
const TASK_BYTES: usize = 512;

/// A task of this home.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// As it was taken.
    pub head: Head,
    /// The task that wanted it canceled.
    pub cancel: Option<TaskUid>,
    /// Parts that nobody has are refused.
    pub given_up: bool,
    /// Parts that were refused; never applied anywhere.
    pub refused: BTreeSet<PartRef>,
    /// Its end.
    pub outcome: Option<Outcome>,
    /// Webhooks are to be told.
    pub hook: bool,
}

impl Row {
    fn weight(&self) -> usize {
        let head = serde_json::to_vec(&self.head).map_or(0, |bytes| bytes.len());
        TASK_BYTES + head + self.outcome.as_ref().and_then(|o| o.error.as_ref()).map_or(0, |e| e.message.len())
    }
}

/// A key and what it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRow {
    /// The task.
    pub uid: TaskUid,
    /// Of the body.
    pub hash: [u8; 32],
    /// When it was settled.
    pub at: When,
}

/// What a sweep found here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swept {
    /// Older tasks that the filter finds.
    pub matched: u64,
    /// Deleted, or ended as canceled.
    pub changed: u64,
    /// To be canceled and not ended.
    pub waiting: u64,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HomeState {
    applied: u64,
    tasks: BTreeMap<TaskUid, Row>,
    keys: BTreeMap<String, KeyRow>,
    sweeps: BTreeMap<TaskUid, Swept>,
    voids: BTreeSet<TaskUid>,
    open: BTreeSet<TaskUid>,
    ended: BTreeSet<(When, TaskUid)>,
    unhooked: BTreeSet<TaskUid>,
    bytes: usize,
}

impl HomeState {
    /// The next committed entry; `None` for one that says nothing here. Answers with the tasks that it changed, so that their
    /// rows can be stored.
    pub fn apply(&mut self, seq: u64, entry: Option<HomeEntry>) -> BTreeSet<TaskUid> {
        if seq <= self.applied {
            return BTreeSet::new();
        }
        self.applied = seq;
        let changed = entry.filter(HomeEntry::is_well_formed).map(|entry| self.take(entry)).unwrap_or_default();
        changed.into_iter().chain(self.shrink()).collect()
    }

    fn take(&mut self, entry: HomeEntry) -> BTreeSet<TaskUid> {
        match entry {
            HomeEntry::Head { uid, head } => self.head(uid, *head),
            HomeEntry::Void { uid } => {
                if !self.tasks.contains_key(&uid) {
                    self.voids.insert(uid);
                }
                BTreeSet::new()
            }
            HomeEntry::GiveUp { uid } => self.change(uid, |row| row.given_up = true),
            HomeEntry::Refused { uid, parts } => self.change(uid, |row| {
                if row.refused.is_empty() && (row.given_up || row.cancel.is_some()) {
                    row.refused = parts;
                }
            }),
            HomeEntry::Finished { uid, outcome, hook } => self.finish(uid, *outcome, hook),
            HomeEntry::Hooked { uids } => {
                let told: BTreeSet<_> = uids.into_iter().filter(|uid| self.unhooked.remove(uid)).collect();
                told.iter().for_each(|uid| self.tasks.get_mut(uid).into_iter().for_each(|row| row.hook = false));
                told
            }
            HomeEntry::Sweep { by, action, filter } => self.sweep(by, action, &filter),
            HomeEntry::Forget { uids } => uids.into_iter().filter(|uid| self.forget(*uid)).collect(),
            HomeEntry::Key { key, hash, uid, replaces, at } => {
                if self.keys.get(&key).is_none_or(|row| Some(row.uid) == replaces) {
                    self.keys.insert(key, KeyRow { uid, hash, at });
                }
                BTreeSet::new()
            }
            HomeEntry::ForgetKeys { keys } => {
                for (uid, key) in keys {
                    if self.keys.get(&key).is_some_and(|row| row.uid == uid) {
                        self.keys.remove(&key);
                    }
                }
                BTreeSet::new()
            }
        }
    }

    fn head(&mut self, uid: TaskUid, head: Head) -> BTreeSet<TaskUid> {
        if self.tasks.contains_key(&uid) || self.voids.contains(&uid) {
            return BTreeSet::new();
        }
        let row = Row { head, cancel: None, given_up: false, refused: BTreeSet::new(), outcome: None, hook: false };
        self.bytes += row.weight();
        self.tasks.insert(uid, row);
        self.open.insert(uid);
        [uid].into()
    }

    /// Changes a task that has not ended.
    fn change(&mut self, uid: TaskUid, with: impl FnOnce(&mut Row)) -> BTreeSet<TaskUid> {
        let Some(row) = self.tasks.get_mut(&uid).filter(|row| row.outcome.is_none()) else { return BTreeSet::new() };
        with(row);
        [uid].into()
    }

    fn finish(&mut self, uid: TaskUid, outcome: Outcome, hook: bool) -> BTreeSet<TaskUid> {
        let Some(row) = self.tasks.get_mut(&uid).filter(|row| row.outcome.is_none()) else { return BTreeSet::new() };
        self.bytes -= row.weight();
        let (canceled, finished) = (outcome.status == Status::Canceled, outcome.finished);
        (row.outcome, row.hook) = (Some(outcome), hook);
        self.bytes += row.weight();
        if let Some(sweep) = row.cancel.and_then(|by| self.sweeps.get_mut(&by)) {
            sweep.waiting = sweep.waiting.saturating_sub(1);
            sweep.changed += u64::from(canceled);
        }
        self.open.remove(&uid);
        self.ended.insert((finished, uid));
        if hook {
            self.unhooked.insert(uid);
        }
        [uid].into()
    }

    fn sweep(&mut self, by: TaskUid, action: Action, filter: &Filter) -> BTreeSet<TaskUid> {
        if self.sweeps.contains_key(&by) {
            return BTreeSet::new();
        }
        let found: Vec<TaskUid> =
            self.tasks.range(..by).filter(|(uid, row)| is_meant(filter, **uid, row)).map(|(uid, _)| *uid).collect();
        let mut swept = Swept { matched: found.len() as u64, ..Swept::default() };
        let mut changed = BTreeSet::new();
        for uid in found {
            let Some(row) = self.tasks.get_mut(&uid) else { continue };
            match action {
                Action::Delete if row.outcome.is_some() => {
                    self.forget(uid);
                    swept.changed += 1;
                }
                Action::Cancel if row.outcome.is_none() && row.cancel.is_none() && can_cancel(row) => {
                    row.cancel = Some(by);
                    swept.waiting += 1;
                }
                _ => continue,
            }
            changed.insert(uid);
        }
        self.sweeps.insert(by, swept);
        changed
    }

    fn forget(&mut self, uid: TaskUid) -> bool {
        let Some(outcome) = self.tasks.get(&uid).and_then(|row| row.outcome.as_ref()) else { return false };
        self.ended.remove(&(outcome.finished, uid));
        self.unhooked.remove(&uid);
        let gone = self.tasks.remove(&uid);
        self.bytes -= gone.map_or(0, |row| row.weight());
        true
    }

    /// Keeps the bounds; what has not ended stays.
    fn shrink(&mut self) -> BTreeSet<TaskUid> {
        let mut gone = BTreeSet::new();
        while (self.tasks.len() > TASKS_MAX || self.bytes > TASKS_MAX_BYTES)
            && let Some((_, uid)) = self.ended.first().copied()
        {
            self.forget(uid);
            gone.insert(uid);
        }
        while self.sweeps.len() > REMEMBERED_MAX {
            self.sweeps.pop_first();
        }
        while self.voids.len() > REMEMBERED_MAX {
            self.voids.pop_first();
        }
        gone
    }

    /// The last entry that was applied.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// A task.
    pub fn task(&self, uid: TaskUid) -> Option<&Row> {
        self.tasks.get(&uid)
    }

    /// All tasks, oldest first.
    pub fn tasks(&self) -> impl DoubleEndedIterator<Item = (TaskUid, &Row)> {
        self.tasks.iter().map(|(uid, row)| (*uid, row))
    }

    /// Tasks that have not ended.
    pub fn open(&self) -> &BTreeSet<TaskUid> {
        &self.open
    }

    /// Tasks that ended and of which webhooks were perhaps not told.
    pub fn unhooked(&self) -> &BTreeSet<TaskUid> {
        &self.unhooked
    }

    /// Tasks that ended before `before`, those that ended first first.
    pub fn ended_before(&self, before: When) -> impl Iterator<Item = TaskUid> + '_ {
        self.ended.iter().take_while(move |(at, _)| *at < before).map(|(_, uid)| *uid)
    }

    /// What a key stands for.
    pub fn key(&self, key: &str) -> Option<&KeyRow> {
        self.keys.get(key)
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = (&str, &KeyRow)> {
        self.keys.iter().map(|(key, row)| (key.as_str(), row))
    }

    /// What a sweep found here.
    pub fn swept(&self, by: TaskUid) -> Option<Swept> {
        self.sweeps.get(&by).copied()
    }

    /// Whether the number stands for no task, for ever.
    pub fn is_void(&self, uid: TaskUid) -> bool {
        self.voids.contains(&uid)
    }
}

/// What an order of its own takes care of is never canceled.
fn can_cancel(row: &Row) -> bool {
    matches!(row.head.work, Work::Parts { .. } | Work::Order)
}

/// An open task is enqueued as well as processing: which of the two is only known to the primary.
fn is_meant(filter: &Filter, uid: TaskUid, row: &Row) -> bool {
    let outcome = row.outcome.as_ref();
    let facts = |status| Facts {
        uid,
        index_uid: row.head.index_uid.as_deref(),
        kind: row.head.subject.kind(),
        status,
        canceled_by: outcome.filter(|o| o.status == Status::Canceled).and(row.cancel),
        enqueued: row.head.enqueued,
        started: outcome.map(|o| o.started),
        finished: outcome.map(|o| o.finished),
    };
    match outcome {
        Some(outcome) => filter.matches(&facts(outcome.status)),
        None => [Status::Enqueued, Status::Processing].iter().any(|status| filter.matches(&facts(*status))),
    }
}
