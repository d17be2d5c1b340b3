//! Looking at the node's tasks: when, how far back, and what follows from what is seen.
//!
//! Every look goes back to the newest task that has ended, so that each also proves that the node still has its memory. If
//! not, a look at everything that is remembered says how far back it went. A node notes what it did, and that it did it, one after the
//! other: dying between the two it does it again at its next start, which only edits show. Rule: what is seen counts only for notes
//! that had their task before the look began. Must not know: HTTP, why something failed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::core::Applier;
use super::effect::{Effect, Listed, Need, Page, Probed, Status, Tag};
use super::notes::{Explained, Missing, Note, Span, State, TaskRef};
use super::verdict::Flaw;
use crate::proto::env::{Env, Instant};
use crate::proto::journal::Kind;
use crate::types::ShardId;

/// How many times longer than it takes to give a request up it is looked for afterwards.
const WATCH_SETTLES: u32 = 20;
/// Most tasks of others that are held of one list.
const OTHERS_MAX: usize = 1_024;

/// A look that is under way.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    ticket: u64,
    /// All that is remembered, not only what is under way.
    full: bool,
    began: Instant,
    /// Notes below this number had their task, or had lost their answer, when it began.
    before: u64,
    /// It reaches down to here.
    low: u32,
    list: BTreeMap<u32, Listed>,
    others: usize,
    /// Where the page begins that is being read.
    from: Option<u32>,
    /// Asked for besides the list.
    probe: Option<Probe>,
    /// Tasks that are there, though not in the list.
    there: BTreeSet<u32>,
    /// Tasks that are missing up to this uid were deleted by the node.
    deleted: Option<u32>,
    lost: bool,
    /// The node's newest deletion of tasks, once it was asked for.
    deletion: Option<Option<TaskRef>>,
}

#[derive(Debug, Clone)]
enum Probe {
    /// A task that is missing.
    Task(TaskRef),
    /// Whether tasks were deleted.
    Deletion,
}

/// What the applier knows of the node.
#[derive(Debug, Clone, Default)]
pub(super) struct Look {
    pub(super) up: bool,
    /// What is remembered is to be compared with the node before anything else.
    pub(super) doubt: bool,
    pub(super) trusted: bool,
    pub(super) reading: Option<Reading>,
    ticket: u64,
    /// When the next look is due.
    pub(super) at: Instant,
    pub(super) step: Duration,
    /// Since when the request without an answer is known to have none.
    pub(super) lost_since: Option<Instant>,
    /// So long it is looked for requests that were given up and come after all.
    pub(super) watch: Option<Instant>,
    /// The newest uid that was seen.
    pub(super) newest: Option<u32>,
    /// Edits that were on their way when the node went away or came.
    pub(super) doubted: BTreeSet<u64>,
    /// When the node began with edits that it has not been seen to end.
    began: BTreeMap<u64, i64>,
}

impl Look {
    pub(super) fn soon(&mut self, now: Instant) {
        self.at = now;
        self.step = Duration::ZERO;
    }

    pub(super) fn saw(&mut self, uid: u32) {
        self.newest = self.newest.max(Some(uid));
    }

    /// When something is to be done.
    pub(super) fn due(&self) -> Option<Instant> {
        (self.up && self.reading.is_none() && self.at < Instant(u64::MAX)).then_some(self.at)
    }
}

impl Applier {
    /// A page that [`Effect::List`] asked for.
    pub fn handle_page(&mut self, env: &mut Env, ticket: u64, page: Page) {
        let wanted = |r: &mut Reading| (r.ticket == ticket && r.probe.is_none()).then_some(());
        if self.look.reading.as_mut().and_then(wanted).is_some() {
            self.take_page(env, page);
        }
        self.run(env);
    }

    /// What [`Effect::Probe`] asked for.
    pub fn handle_probed(&mut self, env: &mut Env, ticket: u64, probed: Probed) {
        if let Some(mut reading) = self.look.reading.take_if(|r| r.ticket == ticket && r.probe.is_some()) {
            if let Some(Probe::Task(task)) = reading.probe.take() {
                match Missing::of(&task, &probed) {
                    Missing::Lost => reading.lost = true,
                    // What is older and missing was deleted.
                    Missing::There => {
                        reading.there.insert(task.uid);
                        reading.deleted = reading.deleted.max(task.uid.checked_sub(1));
                    }
                    Missing::Deleted => reading.deleted = reading.deleted.max(Some(task.uid)),
                }
            }
            reading.deletion = Some(probed.deletion);
            self.conclude(env, reading);
        }
        self.run(env);
    }

    /// What [`Effect::List`] or [`Effect::Probe`] asked for can't be had: it is asked for again later.
    pub fn handle_unread(&mut self, env: &mut Env, ticket: u64) {
        if self.look.reading.take_if(|r| r.ticket == ticket).is_some() {
            self.later(env);
        }
        self.run(env);
    }

    /// The node may have died when an edit was done and not noted to be.
    pub(super) fn doubt_edits(&mut self) {
        let edits = self.notes.rows().iter().filter(|(_, note)| note.kind == Kind::Edit);
        let (open, others): (Vec<_>, Vec<_>) = edits.partition(|(_, note)| note.is_open());
        let open: Vec<u64> = open.into_iter().map(|(id, _)| *id).collect();
        self.look.doubted.extend(others.into_iter().filter(|(_, n)| n.state == State::Sent).map(|(id, _)| *id));
        open.into_iter().for_each(|id| self.may_be_done_twice(id));
    }

    /// An edit that is done twice is in no journal: the copy is made anew, where there is a better one.
    pub(super) fn may_be_done_twice(&mut self, id: u64) {
        let spans = self.notes.get(id).map(|note| note.spans.clone()).unwrap_or_default();
        for Span { shard, last: seq, .. } in spans {
            match self.lanes.get(&shard) {
                Some(lane) if lane.alone => self.emit(Effect::Doubtful { shard, seq }),
                Some(_) => self.rebuild_in_doubt(shard),
                None => {}
            }
        }
    }

    /// Whether the node has begun with an edit once more, so that it went away without anybody seeing it.
    fn began_again(&mut self, id: u64, listed: &Listed) -> bool {
        // A task that ends just now may look for a moment as if it had not begun.
        let before = match listed.began {
            Some(began) if listed.status == Status::Waiting => self.look.began.insert(id, began),
            Some(_) => self.look.began.remove(&id),
            None => None,
        };
        before.is_some_and(|before| listed.began != Some(before))
    }

    /// Begins a look if one is due.
    pub(super) fn look(&mut self, env: &mut Env) {
        if self.pause.is_some_and(|until| until <= env.now) {
            self.pause = None;
        }
        if self.asking.is_none() && self.notes.sent().is_some() {
            self.look.lost_since.get_or_insert(env.now);
        }
        self.look.watch = self.look.watch.filter(|until| *until > env.now);
        let latest = if self.look.doubt || !self.is_drained() {
            env.now.plus(self.config.poll_max)
        } else if self.look.watch.is_some() {
            env.now.plus(self.config.settle)
        } else {
            // Nothing to look for: not woken for it either.
            Instant(u64::MAX)
        };
        self.look.at = if latest == Instant(u64::MAX) { latest } else { self.look.at.min(latest) };
        if !self.look.up || self.look.reading.is_some() || env.now < self.look.at {
            return;
        }
        let full = self.look.doubt;
        self.look.ticket += 1;
        let ticket = self.look.ticket;
        let low = self.notes.low(full);
        // The request whose answer is awaited may or may not be in the list.
        let before = self.asking.unwrap_or(self.notes.next);
        let list = BTreeMap::new();
        let began = env.now;
        let (others, from, probe, deleted, lost, deletion) = (0, None, None, None, false, None);
        let there = BTreeSet::new();
        self.look.reading = Some(Reading {
            ticket,
            full,
            began,
            before,
            low,
            list,
            others,
            from,
            probe,
            there,
            deleted,
            lost,
            deletion,
        });
        self.emit(Effect::List { ticket, from, limit: self.config.page });
    }

    fn later(&mut self, env: &mut Env) {
        let step = (self.look.step * 5 / 4).clamp(self.config.poll_min, self.config.poll_max);
        self.look.step = step;
        self.look.at = env.now.plus(env.jitter(step));
    }

    fn take_page(&mut self, env: &mut Env, page: Page) {
        let Some(mut reading) = self.look.reading.take() else { return };
        if reading.from.is_none() {
            // A node that lost its memory counts from there.
            self.look.newest = if reading.full { page.newest } else { self.look.newest.max(page.newest) };
        }
        let limit = usize::try_from(self.config.page).unwrap_or(usize::MAX);
        let ours: BTreeSet<u32> = self.notes.rows().values().filter_map(|n| n.task()).map(|task| task.uid).collect();
        for listed in page.tasks.into_iter().take(limit) {
            let tagged = matches!(listed.tag, Tag::Note(id) if self.notes.get(id).is_some());
            let own = ours.contains(&listed.task.uid) || tagged;
            reading.others += usize::from(!own);
            if own || reading.others <= OTHERS_MAX {
                reading.list.insert(listed.task.uid, listed);
            }
        }
        let more = page.next.filter(|next| *next >= reading.low && reading.from.is_none_or(|from| *next < from));
        if more.is_some() {
            reading.from = more;
            self.emit(Effect::List { ticket: reading.ticket, from: more, limit: self.config.page });
            self.look.reading = Some(reading);
        } else {
            self.conclude(env, reading);
        }
    }

    /// The list reaches back far enough.
    fn conclude(&mut self, env: &mut Env, reading: Reading) {
        let mut said = self.notes.explain(&reading.list, reading.low, reading.before, self.config.tags);
        let uid = |id: &u64| self.notes.get(*id).and_then(|note| note.task()).map(|task| task.uid);
        let there = |id: &u64| uid(id).is_some_and(|uid| reading.there.contains(&uid));
        let (there, absent) = std::mem::take(&mut said.absent).into_iter().partition(there);
        said.absent = absent;
        said.known.extend::<BTreeSet<u64>>(there);
        let is_deleted = |id: &&u64| uid(id) <= reading.deleted;
        let (deleted, missing): (Vec<u64>, Vec<u64>) = said.absent.iter().partition(is_deleted);
        let lost = reading.lost || !said.replaced.is_empty() || !said.otherwise.is_empty();
        if !reading.full && (lost || !missing.is_empty()) {
            self.look.doubt = true;
            self.trust(false);
            self.look.soon(env.now);
            return;
        }
        let newest_missing = missing.iter().filter_map(|id| self.notes.get(*id)?.task()).max_by_key(|task| task.uid);
        if !lost && let Some(task) = newest_missing.cloned() {
            return self.probe(reading, task.uid, Probe::Task(task));
        }
        let gives_up = self.gives_up(env, &reading).filter(|_| said.found.is_none());
        let repeats = gives_up.and_then(|id| self.notes.get(id)).is_some_and(|note| !note.kind.is_conditional());
        if !lost && !repeats && gives_up.is_some() && reading.deletion.is_none() {
            return self.probe(reading, 0, Probe::Deletion);
        }
        let found = self.resolve_sent(env, &reading, &said);
        for (id, task) in &said.late {
            self.came_late(*id, task);
        }
        if lost {
            let known: BTreeSet<_> = said.known.iter().copied().chain(found).collect();
            let waits = reading.list.values().any(|listed| listed.status == Status::Waiting);
            self.look.doubt = true;
            self.trust(false);
            // What waits in the queue is done first: then it is clear what the node has.
            if !waits && self.asking.is_none() && self.notes.sent().is_none() {
                self.lost_memory(&known, &said.otherwise);
            }
            return self.later(env);
        }
        if let Some(Some(deletion)) = reading.deletion.clone().filter(|_| !deleted.is_empty()) {
            // The one task that it keeps: by it one sees that it remembers.
            self.notes.add(Note::anchor(deletion));
        }
        for id in deleted {
            self.deleted_by_node(id);
        }
        if let Some(newest) = reading.list.keys().next_back() {
            self.notes.seen_to(*newest);
        }
        let moved = self.take_results(&reading, &said.known);
        if reading.full {
            self.look.doubt = false;
            self.trust(true);
        }
        if moved {
            self.look.step = Duration::ZERO;
        }
        self.later(env);
        if self.is_drained() && !self.look.doubt {
            self.look.at = Instant(u64::MAX);
        }
    }

    pub(super) fn trust(&mut self, trusted: bool) {
        if self.look.trusted != trusted {
            self.look.trusted = trusted;
            self.emit(Effect::Trusted(trusted));
        }
    }

    fn probe(&mut self, mut reading: Reading, uid: u32, probe: Probe) {
        self.emit(Effect::Probe { ticket: reading.ticket, uid });
        reading.probe = Some(probe);
        self.look.reading = Some(reading);
    }

    /// The request without an answer, if by now its task would be in the list.
    fn gives_up(&self, env: &Env, reading: &Reading) -> Option<u64> {
        let since = self.look.lost_since.unwrap_or(env.now);
        let late = reading.began > since && reading.began.since(since) >= self.config.settle;
        self.notes.sent().filter(|id| late && self.asking != Some(*id) && *id < reading.before)
    }

    /// The request whose answer did not come: its task is in the list, or after some time it is clear that there is none.
    fn resolve_sent(&mut self, env: &Env, reading: &Reading, said: &Explained) -> Option<u64> {
        if let Some((id, task)) = said.found.as_ref().filter(|(id, _)| self.asking != Some(*id)) {
            self.has_task(*id, task.clone());
            self.look.lost_since = None;
            return Some(*id);
        }
        let id = self.gives_up(env, reading)?;
        let note = self.unsend(id)?;
        // It may have been done, and its task deleted.
        if note.kind.is_conditional() && reading.deletion.clone().flatten().map(|task| task.uid) > note.after {
            note.spans.iter().for_each(|span| self.rebuild(span.shard));
        }
        self.notes.put_back(id, note, State::GivenUp);
        self.look.lost_since = None;
        self.watch(env.now);
        None
    }

    /// Something was given up: for some time it is looked for.
    pub(super) fn watch(&mut self, now: Instant) {
        self.look.watch = Some(now.plus(self.config.settle * WATCH_SETTLES));
    }

    /// A request that was given up was only slow. What it carried now stands behind what was sent since, so everything from
    /// its first entries on is applied again; what can't be repeated is made anew.
    fn came_late(&mut self, id: u64, task: &TaskRef) {
        self.look.saw(task.uid);
        for span in self.notes.came_late(id, task.clone()) {
            if let Some(lane) = self.lanes.get_mut(&span.shard) {
                lane.spoiled |= lane.row.need == Need::Rebuild;
            }
            let row = self.lanes.get(&span.shard).map(|lane| &lane.row);
            if row.is_some_and(|row| row.conditional >= span.first || row.made > id) {
                self.rebuild(span.shard);
            } else {
                self.back(span.shard, span.first - 1);
            }
        }
        self.drain = true;
    }

    /// The node has taken a task out of its list. What it made of one under way nobody knows.
    fn deleted_by_node(&mut self, id: u64) {
        let Some(note) = self.notes.get(id).cloned() else { return };
        self.notes.set(id, State::Gone);
        if note.is_open() {
            if note.kind.is_conditional() {
                note.spans.iter().for_each(|span| self.rebuild(span.shard));
            } else {
                let flaw = Flaw::new("task_not_found", "the task was deleted from the node before it was seen to end");
                self.fail(&note, flaw, false);
            }
        }
    }

    /// What the tasks under way have become, in the order of the node's queue. Says whether any has ended.
    fn take_results(&mut self, reading: &Reading, known: &BTreeSet<u64>) -> bool {
        let mut moved = false;
        for id in self.notes.open().into_iter().filter(|id| known.contains(id)) {
            let Some(note) = self.notes.get(id).cloned() else { continue };
            let Some(listed) = note.task().and_then(|task| reading.list.get(&task.uid)) else { continue };
            let task = listed.task.clone();
            if note.kind == Kind::Edit && self.began_again(id, listed) {
                self.may_be_done_twice(id);
            }
            let in_batch =
                |other: &Listed| other.batch.is_some() && other.batch == listed.batch && other.task != listed.task;
            let flaw = match &listed.status {
                Status::Waiting => continue,
                Status::Succeeded => {
                    self.notes.set(id, State::Done(task));
                    self.done(&note, listed.count);
                    moved = true;
                    continue;
                }
                Status::Failed(flaw) => flaw.clone(),
                Status::Canceled => Flaw::new("canceled", "an operator has canceled the task at the node"),
            };
            let alone = note.alone && !reading.list.values().any(in_batch);
            self.notes.set(id, State::Failed(task));
            self.fail(&note, flaw, alone);
            moved = true;
        }
        moved
    }

    fn done(&mut self, note: &Note, count: Option<u64>) {
        self.attempts = 0;
        self.pause = None;
        if let Some(care) = &mut self.care {
            care.went_well();
        }
        if let Some(count) = count {
            self.rows.counted.insert(note.first, count);
        }
        for span in note.spans.iter().filter(|_| note.entries > 0) {
            let Some(lane) = self.lanes.get(&span.shard) else { continue };
            // Behind something that failed: it is applied again.
            if lane.row.applied + 1 < span.first || lane.row.applied >= span.last {
                continue;
            }
            let without = |seq: u64| note.without.contains(&(span.shard, seq));
            self.advance(span.shard, span.last, &without);
        }
    }

    /// The node has been put back to an earlier time. It knows the notes `known`, and `otherwise` such that have ended otherwise
    /// than noted; up to the last one before the first that
    /// it does not know, both agree.
    fn lost_memory(&mut self, known: &BTreeSet<u64>, otherwise: &BTreeSet<u64>) {
        let with_task = |n: &Note| n.task().is_some();
        let unknown = self
            .notes
            .rows()
            .iter()
            .find(|(id, n)| with_task(n) && !known.contains(id))
            .map_or(u64::MAX, |(id, _)| *id);
        let common = known.range(..unknown).next_back().copied();
        let mut to: BTreeMap<ShardId, u64> = BTreeMap::new();
        let gone: Vec<u64> = self.notes.rows().range(common.map_or(0, |id| id + 1)..).map(|(id, _)| *id).collect();
        for id in gone {
            let Some(note) = self.notes.get(id).cloned() else { continue };
            if note.state != State::GivenUp {
                self.notes.remove(id);
            }
            for span in &note.spans {
                let least = to.entry(span.shard).or_insert(u64::MAX);
                *least = (*least).min(span.first - 1);
                // It was done where what comes before it was missing, or nobody knows whether it is among what was lost.
                let done = known.contains(&id) || otherwise.contains(&id);
                if (done || note.state == State::Gone) && note.kind.is_conditional() {
                    self.rebuild(span.shard);
                }
            }
        }
        let shards: Vec<_> = self.lanes.iter().map(|(shard, lane)| (*shard, lane.row.clone())).collect();
        for (shard, row) in shards {
            let to = to.get(&shard).copied();
            match common {
                Some(common) if row.made <= common => self.back(shard, to.unwrap_or(row.applied)),
                // It goes back to before everything that is remembered, and that is all there ever was of the shard.
                None if row.made == 0 && (to == Some(0) || row.applied == 0) => self.back(shard, 0),
                _ => self.rebuild(shard),
            }
        }
        self.look.lost_since = None;
        self.failure = None;
        self.care = None;
        self.taking = None;
        self.drain = true;
    }
}
