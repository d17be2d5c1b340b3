//! What is noted of requests to the node, and what the node's list of tasks proves about them.
//!
//! A request is noted before it is sent, with its entries and the node's newest uid. So of a list of tasks that reaches
//! back far enough each is somebody's: a noted one's, or that of the one request whose answer did not come. Rule: a task is
//! the noted one only if uid and `enqueuedAt` agree; a node put back to an earlier time counts from there again. Must not
//! know: shards' positions, when to look.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::effect::{Group, Listed, Probed, Status, Tag};
use super::merge::Plan;
use crate::proto::journal::Kind;
use crate::types::ShardId;

/// A task of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRef {
    /// Its number.
    pub uid: u32,
    /// `enqueuedAt`, as the node writes it.
    pub enqueued_at: String,
}

/// Entries of one shard that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Which shard.
    pub shard: ShardId,
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
}

/// What became of a noted request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// It may be on its way, in the node's queue, or nowhere.
    Sent,
    /// It never showed in the list. If it does after all, what it carried is applied again.
    GivenUp,
    /// The node has it under way.
    Task(TaskRef),
    /// The node has done it.
    Done(TaskRef),
    /// The node has ended it without effect.
    Failed(TaskRef),
    /// The node has taken it out of its list.
    Gone,
}

/// One request that enqueues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The newest uid of the node, as far as it was known then.
    pub after: Option<u32>,
    /// What its entries do.
    pub kind: Kind,
    /// Its entries.
    pub spans: Vec<Span>,
    /// Those of them that were left out because their verdict is known.
    pub without: BTreeSet<(ShardId, u64)>,
    /// How many were not; 0 once its end proves nothing, because it came late.
    pub entries: usize,
    /// The first of these.
    pub first: (ShardId, u64),
    /// No other task of the index was under way.
    pub alone: bool,
    /// What became of it.
    pub state: State,
}

impl Note {
    pub(super) fn of(plan: &Plan, after: Option<u32>, alone: bool) -> Self {
        Self {
            after,
            kind: plan.kind,
            spans: plan.spans.clone(),
            without: plan.without.clone(),
            entries: plan.entries,
            first: plan.first,
            alone,
            state: State::Sent,
        }
    }

    /// A task of somebody else that the node must remember.
    pub(super) fn anchor(task: TaskRef) -> Self {
        Self {
            after: None,
            kind: Kind::Empty,
            spans: Vec::new(),
            without: BTreeSet::new(),
            entries: 0,
            first: (ShardId(0), 0),
            alone: false,
            state: State::Done(task),
        }
    }

    /// Its task, if it has one.
    pub fn task(&self) -> Option<&TaskRef> {
        match &self.state {
            State::Task(task) | State::Done(task) | State::Failed(task) => Some(task),
            State::Sent | State::GivenUp | State::Gone => None,
        }
    }

    /// Whether what the node says of its task is what is noted.
    fn ended_as(&self, status: &Status) -> bool {
        match self.state {
            State::Done(_) => *status == Status::Succeeded,
            State::Failed(_) => matches!(status, Status::Failed(_) | Status::Canceled),
            _ => true,
        }
    }

    /// Whether the node has it under way.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Task(_))
    }
}

/// All notes, by number.
#[derive(Debug, Clone, Default)]
pub(super) struct Notes {
    rows: BTreeMap<u64, Note>,
    pub(super) next: u64,
    /// Changed since the last [`Notes::take_changes`].
    changed: BTreeSet<u64>,
}

/// What a list of tasks says about the notes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Explained {
    /// Notes whose task is there.
    pub(super) known: BTreeSet<u64>,
    /// Notes whose task is there, but ended otherwise, or has not: it waited when the node was put back to then.
    pub(super) otherwise: BTreeSet<u64>,
    /// Notes whose uid another task has.
    pub(super) replaced: BTreeSet<u64>,
    /// Notes whose uid is not in the list.
    pub(super) absent: BTreeSet<u64>,
    /// The task of the request whose answer did not come.
    pub(super) found: Option<(u64, TaskRef)>,
    /// Tasks of requests that were given up.
    pub(super) late: Vec<(u64, TaskRef)>,
}

impl Notes {
    pub(super) fn recover(rows: BTreeMap<u64, Note>, next: u64) -> Self {
        let next = next.max(rows.last_key_value().map_or(1, |(id, _)| id + 1));
        Self { rows, next, changed: BTreeSet::new() }
    }

    pub(super) fn rows(&self) -> &BTreeMap<u64, Note> {
        &self.rows
    }

    pub(super) fn get(&self, id: u64) -> Option<&Note> {
        self.rows.get(&id)
    }

    pub(super) fn add(&mut self, note: Note) -> u64 {
        let id = self.next;
        self.next += 1;
        self.rows.insert(id, note);
        self.changed.insert(id);
        id
    }

    pub(super) fn set(&mut self, id: u64, state: State) {
        if let Some(note) = self.rows.get_mut(&id) {
            note.state = state;
            self.changed.insert(id);
        }
    }

    /// A removed note is remembered all the same.
    pub(super) fn put_back(&mut self, id: u64, note: Note, state: State) {
        self.rows.insert(id, Note { state, ..note });
        self.changed.insert(id);
    }

    /// All tasks up to this uid were seen: none of them is one that was given up. Not worth being stored.
    pub(super) fn seen_to(&mut self, uid: u32) {
        for note in self.rows.values_mut().filter(|note| note.state == State::GivenUp) {
            note.after = note.after.max(Some(uid));
        }
    }

    /// The task of a request that was given up: its end proves nothing. Gives what it carries.
    pub(super) fn came_late(&mut self, id: u64, task: TaskRef) -> Vec<Span> {
        let Some(note) = self.rows.get_mut(&id) else { return Vec::new() };
        (note.state, note.entries) = (State::Task(task), 0);
        self.changed.insert(id);
        note.spans.clone()
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Note> {
        self.changed.insert(id);
        self.rows.remove(&id)
    }

    /// The copy of a shard was made anew, or has gone: what was done to the old one says nothing about it. What may still come
    /// to the queue would be done to the new one.
    pub(super) fn strip(&mut self, shard: ShardId) {
        for (id, note) in &mut self.rows {
            let past = note.task().is_some() || note.state == State::Gone;
            if past && note.spans.iter().any(|span| span.shard == shard) {
                note.spans.retain(|span| span.shard != shard);
                self.changed.insert(*id);
            }
        }
    }

    pub(super) fn take_changes(&mut self) -> BTreeMap<u64, Option<Note>> {
        std::mem::take(&mut self.changed).into_iter().map(|id| (id, self.rows.get(&id).cloned())).collect()
    }

    /// Those under way, in the order of the node's queue.
    pub(super) fn open(&self) -> Vec<u64> {
        let mut open: Vec<_> =
            self.rows.iter().filter(|(_, n)| n.is_open()).map(|(id, n)| (n.task().map(|t| t.uid), *id)).collect();
        open.sort_unstable();
        open.into_iter().map(|(_, id)| id).collect()
    }

    /// The one whose fate is not known.
    pub(super) fn sent(&self) -> Option<u64> {
        self.rows.iter().rev().find(|(_, n)| n.state == State::Sent).map(|(id, _)| *id)
    }

    /// The uid down to which a list must reach: that of the newest that has ended, or with `all` that of the oldest.
    pub(super) fn low(&self, all: bool) -> u32 {
        let uid = |note: &Note| note.task().map(|task| task.uid);
        let ended = self.rows.values().filter(|n| !n.is_open()).filter_map(uid);
        let ended = if all { ended.min() } else { ended.max() };
        let open = self.rows.values().filter(|n| n.is_open()).filter_map(uid).min();
        // Tasks of a lost answer and of those given up are newer than what was known when they were sent.
        let after = |n: &Note| n.after.map_or(0, |uid| uid.saturating_add(1));
        let unknown = self.rows.values().filter(|n| matches!(n.state, State::Sent | State::GivenUp)).map(after).min();
        [ended, open, unknown].into_iter().flatten().min().unwrap_or(u32::MAX)
    }

    /// Forgets those that ended long ago, only from the old end: so the notes that are left have no gaps. What was given up
    /// may come late, and is kept longer.
    pub(super) fn forget(&mut self, history: usize) {
        let given_up = |n: &Note| n.state == State::GivenUp;
        let (lost, others): (Vec<_>, Vec<_>) = self.rows.iter().partition(|(_, n)| given_up(n));
        let many = |all: &[(&u64, &Note)]| all.len().saturating_sub(history.max(1));
        let ended = |(_, n): &&(&u64, &Note)| !n.is_open() && n.state != State::Sent;
        let old = others.iter().take(many(&others)).take_while(ended).chain(lost.iter().take(many(&lost)));
        let old: Vec<u64> = old.map(|(id, _)| **id).collect();
        for id in old {
            self.remove(id);
        }
    }

    /// Holds the notes below number `before` against a list that reaches down to `low`.
    pub(super) fn explain(&self, list: &BTreeMap<u32, Listed>, low: u32, before: u64, tags: bool) -> Explained {
        let mut said = Explained::default();
        for (id, note) in self.rows.range(..before) {
            let Some(task) = note.task().filter(|task| task.uid >= low) else { continue };
            match list.get(&task.uid) {
                Some(listed) if listed.task == *task && note.ended_as(&listed.status) => said.known.insert(*id),
                Some(listed) if listed.task == *task => said.otherwise.insert(*id),
                Some(_) => said.replaced.insert(*id),
                None => said.absent.insert(*id),
            };
        }
        let explained: BTreeSet<u32> = said
            .known
            .iter()
            .chain(&said.otherwise)
            .filter_map(|id| self.rows[id].task())
            .map(|task| task.uid)
            .collect();
        for listed in list.values().filter(|listed| !explained.contains(&listed.task.uid)) {
            let (task, made_it) = (listed.task.clone(), |(_, note): &(&u64, &Note)| is_made_by(listed, note));
            let note = match listed.tag {
                Tag::Note(id) => self.rows.get_key_value(&id).filter(|(id, _)| **id < before),
                // Without tags, it can only be told from the type, and only as long as there is one at most.
                Tag::None if !tags => self.rows.range(..before).rfind(made_it),
                _ => None,
            };
            match note.map(|(id, note)| (*id, &note.state)) {
                Some((id, State::Sent)) => said.found = Some((id, task)),
                Some((id, State::GivenUp)) => said.late.push((id, task)),
                _ => {}
            }
        }
        said
    }
}

/// Whether a task that nothing else explains can be the one that this request made.
fn is_made_by(listed: &Listed, note: &Note) -> bool {
    let newer = note.after.is_none_or(|after| listed.task.uid > after);
    note.state == State::Sent && newer && listed.group == Group::of(note.kind)
}

/// What became of a task that is not in the list of its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// It is there.
    There,
    /// The node has taken it, and all older ones that are missing, out of its list: it has deleted tasks since, and its
    /// number is nobody else's.
    Deleted,
    /// The node does not remember it.
    Lost,
}

impl Missing {
    pub(super) fn of(task: &TaskRef, probed: &Probed) -> Self {
        match &probed.enqueued_at {
            Some(at) if *at == task.enqueued_at => Self::There,
            Some(_) => Self::Lost,
            None if probed.deletion.as_ref().is_some_and(|deletion| deletion.uid > task.uid) => Self::Deleted,
            None => Self::Lost,
        }
    }
}
