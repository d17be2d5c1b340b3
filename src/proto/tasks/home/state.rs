//! What every replica of a home knows: committed entries, one after the other.
//!
//! Rule: the same entries give the same state, whoever replays them and however often; an entry at or before the last one
//! applied is passed over. Nothing here looks at a clock. Must not know: who is the primary, which replicas have applied
//! what.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

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
/// Most idempotency keys of one home; beyond, those that were settled first are forgotten.
pub const KEYS_MAX: usize = 65_536;
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
    /// It can't be canceled any more.
    #[serde(default)]
    pub stays: bool,
    /// It was deleted before webhooks were told of it: nobody finds it, and it goes once they were.
    #[serde(default)]
    pub deleted: bool,
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
    /// To be canceled, neither ended nor known to take its course.
    pub waiting: u64,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HomeState {
    applied: u64,
    tasks: BTreeMap<TaskUid, Row>,
    keys: BTreeMap<Arc<str>, KeyRow>,
    settled: BTreeSet<(When, Arc<str>)>,
    sweeps: BTreeMap<TaskUid, Swept>,
    voids: BTreeSet<TaskUid>,
    open: BTreeSet<TaskUid>,
    ended: BTreeSet<(When, TaskUid)>,
    unhooked: BTreeSet<TaskUid>,
    bytes: usize,
    /// Tasks that the entry at hand made forgotten, for the bounds, before webhooks were told.
    untold: u64,
    /// What the entry at hand has changed; empty between entries.
    touched: BTreeSet<Touched>,
}

/// A row that an entry has changed: to be stored if it is there, and removed if not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Touched {
    /// Of a task.
    Task(TaskUid),
    /// Of an idempotency key.
    Key(String),
    /// Of a sweep.
    Sweep(TaskUid),
    /// Of a number without a task.
    Void(TaskUid),
}

/// A row as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoredRow {
    /// A task.
    Task(TaskUid, Box<Row>),
    /// An idempotency key.
    Key(String, KeyRow),
    /// What a sweep found.
    Sweep(TaskUid, Swept),
    /// A number without a task.
    Void(TaskUid),
}

impl HomeState {
    /// What rows say that were stored with the number of the last entry applied.
    pub fn recover(applied: u64, rows: impl IntoIterator<Item = StoredRow>) -> Self {
        let mut state = Self { applied, ..Self::default() };
        for row in rows {
            match row {
                StoredRow::Task(uid, row) => {
                    state.bytes += row.weight();
                    match &row.outcome {
                        Some(outcome) => drop(state.ended.insert((outcome.finished, uid))),
                        None => drop(state.open.insert(uid)),
                    }
                    if row.hook {
                        state.unhooked.insert(uid);
                    }
                    state.tasks.insert(uid, *row);
                }
                StoredRow::Key(key, row) => state.put_key(&key, row),
                StoredRow::Sweep(by, swept) => drop(state.sweeps.insert(by, swept)),
                StoredRow::Void(uid) => drop(state.voids.insert(uid)),
            }
        }
        state
    }

    /// A row to be stored; `None` if it is there no more.
    pub fn row(&self, touched: &Touched) -> Option<StoredRow> {
        match touched {
            Touched::Task(uid) => Some(StoredRow::Task(*uid, Box::new(self.tasks.get(uid)?.clone()))),
            Touched::Key(key) => Some(StoredRow::Key(key.clone(), *self.key(key)?)),
            Touched::Sweep(by) => Some(StoredRow::Sweep(*by, *self.sweeps.get(by)?)),
            Touched::Void(uid) => self.voids.contains(uid).then_some(StoredRow::Void(*uid)),
        }
    }

    /// The next committed entry; `None` for one that says nothing here. Answers with what it changed; that is to be stored
    /// together with [`HomeState::applied`].
    pub fn apply(&mut self, seq: u64, entry: Option<HomeEntry>) -> BTreeSet<Touched> {
        if seq <= self.applied {
            return BTreeSet::new();
        }
        (self.applied, self.untold) = (seq, 0);
        if let Some(entry) = entry.filter(HomeEntry::is_well_formed) {
            self.take(entry);
        }
        self.shrink();
        std::mem::take(&mut self.touched)
    }

    fn take(&mut self, entry: HomeEntry) {
        match entry {
            HomeEntry::Head { uid, head } => self.head(uid, *head),
            HomeEntry::Void { uid } => {
                if !self.tasks.contains_key(&uid) && self.voids.insert(uid) {
                    self.touched.insert(Touched::Void(uid));
                }
            }
            HomeEntry::GiveUp { uid } => self.change(uid, |row| row.given_up = true),
            HomeEntry::Stays { uid } => self.stays(uid),
            HomeEntry::Refused { uid, parts } => self.change(uid, |row| {
                if row.refused.is_empty() && (row.given_up || row.cancel.is_some()) {
                    row.refused = parts;
                }
            }),
            HomeEntry::Finished { uid, outcome, hook } => self.finish(uid, *outcome, hook),
            HomeEntry::Hooked { uids } => uids.into_iter().for_each(|uid| self.hooked(uid)),
            HomeEntry::Sweep { by, action, filter } => self.sweep(by, action, &filter),
            HomeEntry::Forget { uids } => uids.into_iter().for_each(|uid| self.forget(uid)),
            HomeEntry::Key { key, hash, uid, replaces, at } => {
                if self.key(&key).is_none_or(|row| Some(row.uid) == replaces) {
                    self.put_key(&key, KeyRow { uid, hash, at });
                    self.touched.insert(Touched::Key(key));
                }
            }
            HomeEntry::ForgetKeys { keys } => {
                for (uid, key) in keys {
                    if self.key(&key).is_some_and(|row| row.uid == uid) {
                        self.forget_key(&key);
                    }
                }
            }
        }
    }

    fn put_key(&mut self, key: &str, row: KeyRow) {
        let key: Arc<str> = key.into();
        if let Some(old) = self.keys.insert(key.clone(), row) {
            self.settled.remove(&(old.at, key.clone()));
        }
        self.settled.insert((row.at, key));
    }

    fn forget_key(&mut self, key: &str) {
        if let Some((key, row)) = self.keys.remove_entry(key) {
            self.touched.insert(Touched::Key(key.to_string()));
            self.settled.remove(&(row.at, key));
        }
    }

    fn head(&mut self, uid: TaskUid, head: Head) {
        if self.tasks.contains_key(&uid) || self.voids.contains(&uid) {
            return;
        }
        let row = Row {
            head,
            cancel: None,
            given_up: false,
            refused: BTreeSet::new(),
            outcome: None,
            hook: false,
            stays: false,
            deleted: false,
        };
        self.bytes += row.weight();
        self.tasks.insert(uid, row);
        self.open.insert(uid);
        self.touched.insert(Touched::Task(uid));
    }

    /// Changes a task that has not ended.
    fn change(&mut self, uid: TaskUid, with: impl FnOnce(&mut Row)) {
        if let Some(row) = self.tasks.get_mut(&uid).filter(|row| row.outcome.is_none()) {
            with(row);
            self.touched.insert(Touched::Task(uid));
        }
    }

    fn stays(&mut self, uid: TaskUid) {
        let row = self.tasks.get_mut(&uid).filter(|row| row.outcome.is_none() && row.refused.is_empty());
        let Some((row, by)) = row.and_then(|row| row.cancel.take().map(|by| (row, by))) else { return };
        row.stays = true;
        self.touched.insert(Touched::Task(uid));
        if let Some(sweep) = self.sweeps.get_mut(&by) {
            sweep.waiting = sweep.waiting.saturating_sub(1);
            self.touched.insert(Touched::Sweep(by));
        }
    }

    fn finish(&mut self, uid: TaskUid, outcome: Outcome, hook: bool) {
        let Some(row) = self.tasks.get_mut(&uid).filter(|row| row.outcome.is_none()) else { return };
        self.bytes -= row.weight();
        let (canceled, finished) = (outcome.status == Status::Canceled, outcome.finished);
        (row.outcome, row.hook) = (Some(outcome), hook);
        self.bytes += row.weight();
        if let Some((by, sweep)) = row.cancel.and_then(|by| Some((by, self.sweeps.get_mut(&by)?))) {
            sweep.waiting = sweep.waiting.saturating_sub(1);
            sweep.changed += u64::from(canceled);
            self.touched.insert(Touched::Sweep(by));
        }
        self.open.remove(&uid);
        self.ended.insert((finished, uid));
        if hook {
            self.unhooked.insert(uid);
        }
        self.touched.insert(Touched::Task(uid));
    }

    fn hooked(&mut self, uid: TaskUid) {
        if let Some(row) = self.tasks.get_mut(&uid).filter(|_| self.unhooked.remove(&uid)) {
            row.hook = false;
            self.touched.insert(Touched::Task(uid));
            if row.deleted {
                self.forget(uid);
            }
        }
    }

    fn sweep(&mut self, by: TaskUid, action: Action, filter: &Filter) {
        if self.sweeps.contains_key(&by) {
            return;
        }
        let found: Vec<TaskUid> =
            self.tasks.range(..by).filter(|(uid, row)| is_meant(filter, **uid, row)).map(|(uid, _)| *uid).collect();
        let mut swept = Swept { matched: found.len() as u64, ..Swept::default() };
        for uid in found {
            let Some(row) = self.tasks.get_mut(&uid) else { continue };
            match action {
                Action::Delete if row.outcome.is_some() => {
                    if row.hook {
                        row.deleted = true;
                        self.touched.insert(Touched::Task(uid));
                    } else {
                        self.forget(uid);
                    }
                    swept.changed += 1;
                }
                Action::Cancel if row.outcome.is_none() && row.cancel.is_none() && can_cancel(row) => {
                    row.cancel = Some(by);
                    swept.waiting += 1;
                    self.touched.insert(Touched::Task(uid));
                }
                _ => {}
            }
        }
        self.sweeps.insert(by, swept);
        self.touched.insert(Touched::Sweep(by));
    }

    fn forget(&mut self, uid: TaskUid) {
        let Some(outcome) = self.tasks.get(&uid).and_then(|row| row.outcome.as_ref()) else { return };
        self.ended.remove(&(outcome.finished, uid));
        self.unhooked.remove(&uid);
        let gone = self.tasks.remove(&uid);
        self.bytes -= gone.map_or(0, |row| row.weight());
        self.touched.insert(Touched::Task(uid));
    }

    /// Keeps the bounds; what has not ended stays.
    fn shrink(&mut self) {
        while (self.tasks.len() > TASKS_MAX || self.bytes > TASKS_MAX_BYTES)
            && let Some((_, uid)) = self.ended.first().copied()
        {
            self.untold += u64::from(self.unhooked.contains(&uid));
            self.forget(uid);
        }
        while self.keys.len() > KEYS_MAX
            && let Some((_, key)) = self.settled.first().cloned()
        {
            self.forget_key(&key);
        }
        while self.sweeps.len() > REMEMBERED_MAX {
            self.touched.extend(self.sweeps.pop_first().map(|(by, _)| Touched::Sweep(by)));
        }
        while self.voids.len() > REMEMBERED_MAX {
            self.touched.extend(self.voids.pop_first().map(Touched::Void));
        }
    }

    /// The last entry that was applied.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// A task; also one that was deleted and of which webhooks are still to be told.
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

    /// How many tasks the last entry made forgotten, for the bounds, of which webhooks will never be told now.
    pub fn untold(&self) -> u64 {
        self.untold
    }

    /// Tasks that ended before `before`, those that ended first first.
    pub fn ended_before(&self, before: When) -> impl Iterator<Item = TaskUid> + '_ {
        self.ended.iter().take_while(move |(at, _)| *at < before).map(|(_, uid)| *uid)
    }

    /// What a key stands for.
    pub fn key(&self, key: &str) -> Option<&KeyRow> {
        self.keys.get(key)
    }

    /// What keys stand for that were settled before `before`, the oldest first.
    pub fn keys_before(&self, before: When) -> impl Iterator<Item = &KeyRow> {
        let old = self.settled.iter().take_while(move |(at, _)| *at < before);
        old.filter_map(|(_, key)| self.keys.get(key))
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = (&str, &KeyRow)> {
        self.keys.iter().map(|(key, row)| (&**key, row))
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
    !row.stays && matches!(row.head.work, Work::Parts { .. } | Work::Order)
}

/// An open task is enqueued as well as processing: which of the two is only known to the primary.
fn is_meant(filter: &Filter, uid: TaskUid, row: &Row) -> bool {
    if row.deleted {
        return false;
    }
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
