//! The primary of a home: takes heads and reports, decides when tasks are finished.
//!
//! Rule: it decides from committed entries and from what replicas said in this reign; what it decides is an entry before
//! anything rests on it. Must not know: how entries are committed, how members speak.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::filter::Filter;
use super::super::kind::Status;
use super::super::query::Action;
use super::super::task::{Head, Outcome};
use super::super::when::When;
use super::effect::{Answer, Appended, Config, Effect, OpId, REPORT_ITEMS_MAX, Refusal, Report, Said};
use super::entry::{self, HomeEntry};
use super::judge::Awaited;
use super::parts::{PartRef, Work};
use super::soft::{Flight, Soft};
use super::state::{HomeState, Swept, Touched};
use crate::proto::env::{Env, Instant};
use crate::types::{MemberId, PhysicalIndex, TaskPart, TaskUid};

/// Most tasks that have not ended; beyond, new ones are refused.
pub const OPEN_MAX: usize = 4_096;
/// Most entries on their way that somebody waits for, and most that wait.
const FLIGHTS_MAX: usize = 8_192;
/// Most numbers of forgotten tasks that are remembered for those who still report on them.
const GONE_MAX: usize = 4_096;

/// See the module.
#[derive(Debug, Clone)]
pub struct Home {
    pub(super) config: Config,
    pub(super) state: HomeState,
    pub(super) hooks: bool,
    pub(super) soft: BTreeMap<TaskUid, Soft>,
    pub(super) due: BTreeSet<(Instant, TaskUid)>,
    pub(super) awaited: BTreeMap<PhysicalIndex, Awaited>,
    /// How many open tasks each index has.
    pub(super) indexes: BTreeMap<PhysicalIndex, usize>,
    pub(super) flights: BTreeMap<TaskPart, Flight>,
    pub(super) waiting: usize,
    pub(super) gone: BTreeSet<TaskUid>,
    pub(super) hooking: BTreeSet<TaskUid>,
    pub(super) forget_at: Instant,
    pub(super) effects: VecDeque<Effect>,
}

impl Home {
    /// Begins a reign with the state at the commit of the reign's first entry; `hooks`: there are webhooks.
    pub fn recover(env: &mut Env<'_>, wall: When, config: Config, state: HomeState, hooks: bool) -> Self {
        let forget_at = env.now.plus(env.jitter(config.forget_every));
        let mut home = Self {
            config,
            state,
            hooks,
            soft: BTreeMap::new(),
            due: BTreeSet::new(),
            awaited: BTreeMap::new(),
            indexes: BTreeMap::new(),
            flights: BTreeMap::new(),
            waiting: 0,
            gone: BTreeSet::new(),
            hooking: BTreeSet::new(),
            forget_at,
            effects: VecDeque::new(),
        };
        for uid in home.state.open().clone() {
            home.open(env, uid);
            home.review(env.now, wall, uid);
        }
        home.hook();
        home
    }

    /// The state that committed entries give.
    pub fn state(&self) -> &HomeState {
        &self.state
    }

    /// The reign is over; the state goes on.
    pub fn into_state(self) -> HomeState {
        self.state
    }

    /// The next committed entry of the journal, of whomever. Answers with the rows that are to be stored; if they are lost, the
    /// entry is applied again.
    pub fn handle_committed(
        &mut self,
        env: &mut Env<'_>,
        wall: When,
        seq: u64,
        entry: Option<HomeEntry>,
    ) -> BTreeSet<Touched> {
        let part = entry.as_ref().and_then(HomeEntry::part);
        let hooked = match part.and_then(|part| self.flights.get(&part)).map(|flight| &flight.entry) {
            Some(HomeEntry::Hooked { uids }) => uids.clone(),
            _ => BTreeSet::new(),
        };
        let changed = self.state.apply(seq, entry);
        if let Some(part) = part.filter(|part| self.flights.contains_key(part)) {
            self.land(part);
        }
        for part in self.landed() {
            self.land(part);
        }
        self.tell_rest(env.now, &hooked);
        for touched in &changed {
            if let Touched::Task(uid) = touched {
                self.open(env, *uid);
                self.review(env.now, wall, *uid);
            }
        }
        self.hook();
        changed
    }

    /// What became of an append.
    pub fn handle_appended(&mut self, env: &mut Env<'_>, part: TaskPart, appended: Appended) {
        let Some(flight) = self.flights.get_mut(&part) else { return };
        match appended {
            Appended::Later => flight.again = env.now.plus(self.config.append_again),
            Appended::Committed(seq) if seq > self.state.applied() => flight.committed = Some(seq),
            Appended::Committed(_) => self.land(part),
            Appended::Refused => {
                for op in self.take_off(part) {
                    self.answer(op, Answer::Refused);
                }
            }
        }
    }

    /// A head to be kept: [`Answer::Taken`] or [`Answer::Other`] or [`Answer::Void`], `Busy`, `Refused`.
    pub fn handle_head(&mut self, env: &mut Env<'_>, op: OpId, uid: TaskUid, head: Head) {
        if !entry::is_head(&head) {
            return self.answer(op, Answer::Refused);
        }
        let entry = HomeEntry::Head { uid, head: Box::new(head) };
        // Of one that is on its way nobody may say that nothing was done.
        let new = self.state.task(uid).is_none() && entry.part().is_none_or(|part| !self.flights.contains_key(&part));
        if new && self.state.open().len() >= OPEN_MAX {
            return self.answer(op, Answer::Busy);
        }
        self.append(env.now, entry, Some(op));
    }

    /// A number that is to stand for no task, unless it does: [`Answer::Void`], or [`Answer::Other`] if there is or was one.
    pub fn handle_void(&mut self, env: &mut Env<'_>, op: OpId, uid: TaskUid) {
        self.append(env.now, HomeEntry::Void { uid }, Some(op));
    }

    /// A key to be settled: [`Answer::Settled`]. `replaces` names the task that it stands for and that is known to be void or
    /// forgotten.
    pub fn handle_key(
        &mut self,
        env: &mut Env<'_>,
        wall: When,
        op: OpId,
        (key, hash): (String, [u8; 32]),
        uid: TaskUid,
        replaces: Option<TaskUid>,
    ) {
        if let Some(known) = self.state.key(&key).filter(|row| Some(row.uid) != replaces) {
            let answer = Answer::Settled { uid: known.uid, same_body: known.hash == hash };
            return self.answer(op, answer);
        }
        self.append(env.now, HomeEntry::Key { key, hash, uid, replaces, at: wall }, Some(op));
    }

    /// What became of an order, by whoever carried it out: [`Answer::Ended`], whichever outcome stands.
    pub fn handle_outcome(&mut self, env: &mut Env<'_>, op: OpId, uid: TaskUid, outcome: Outcome) {
        let open = self.state.task(uid).filter(|row| row.outcome.is_none());
        match open.map(|row| &row.head.work) {
            Some(Work::Order) if outcome.status.is_final() => self.finish(env.now, uid, outcome, Some(op)),
            Some(_) => self.answer(op, Answer::Refused),
            None => self.answer(op, Answer::Ended),
        }
    }

    /// An order is being carried out.
    pub fn handle_begun(&mut self, uid: TaskUid, when: When) {
        if let Some(soft) = self.soft.get_mut(&uid) {
            soft.begun.get_or_insert(when);
        }
    }

    /// What a member says of parts.
    pub fn handle_report(&mut self, env: &mut Env<'_>, wall: When, from: &MemberId, report: Report) {
        let mut heard = BTreeSet::new();
        let mut unknown = BTreeSet::new();
        for (uid, part, said) in report.parts.into_iter().take(REPORT_ITEMS_MAX) {
            match self.state.task(uid) {
                Some(_) => {
                    heard.insert(uid);
                    self.said(from, uid, part, said);
                }
                None if self.gone.contains(&uid) || self.state.is_void(uid) => {
                    heard.insert(uid);
                }
                None => {
                    unknown.insert(uid);
                }
            }
        }
        for (uid, head) in report.heads.into_iter().take(REPORT_ITEMS_MAX) {
            let takes = self.state.open().len() < OPEN_MAX && entry::is_head(&head);
            if takes && self.state.task(uid).is_none() && !self.gone.contains(&uid) && !self.state.is_void(uid) {
                self.append(env.now, HomeEntry::Head { uid, head: Box::new(head) }, None);
            }
        }
        unknown.retain(|uid| !self.flights.contains_key(&TaskPart { task: *uid, part: 0 }));
        for uid in unknown {
            self.effects.push_back(Effect::WantHead { member: from.clone(), uid });
        }
        heard.iter().for_each(|uid| self.review(env.now, wall, *uid));
        if !heard.is_empty() {
            self.effects.push_back(Effect::Heard { member: from.clone(), uids: heard });
        }
    }

    fn said(&mut self, from: &MemberId, uid: TaskUid, part: PartRef, said: Said) {
        let (Some(row), Some(soft)) = (self.state.task(uid), self.soft.get_mut(&uid)) else { return };
        let Work::Parts { parts, .. } = &row.head.work else { return };
        if !parts.has(part) {
            return;
        }
        match said {
            Said::There => {
                soft.there.insert(part);
            }
            Said::Done(_) if row.refused.contains(&part) || soft.refused.contains(&part) => {
                self.effects.push_back(Effect::Broken { uid, part });
            }
            Said::Done(done) => {
                soft.begun = soft.begun.into_iter().chain([done.started]).min();
                soft.reports.entry(part).or_default().insert(from.clone(), done);
            }
        }
    }

    /// What [`Effect::Refuse`] asked for, by the primaries of the shards.
    pub fn handle_refusals(&mut self, env: &mut Env<'_>, wall: When, uid: TaskUid, parts: &[(PartRef, Refusal)]) {
        if let Some(soft) = self.soft.get_mut(&uid) {
            for (part, refusal) in parts {
                match refusal {
                    Refusal::Refused => soft.refused.insert(*part),
                    Refusal::There => soft.there.insert(*part),
                };
            }
        }
        self.review(env.now, wall, uid);
    }

    /// What [`Effect::RefuseOrder`] asked for.
    pub fn handle_order_refusal(&mut self, env: &mut Env<'_>, wall: When, uid: TaskUid, refusal: Refusal) {
        if let Some(soft) = self.soft.get_mut(&uid) {
            match refusal {
                Refusal::Refused => soft.order_refused = true,
                Refusal::There => soft.order_there = true,
            }
        }
        self.review(env.now, wall, uid);
    }

    /// Who is to apply what of an index has changed, or was asked for.
    pub fn handle_awaited(&mut self, env: &mut Env<'_>, wall: When, index: PhysicalIndex, awaited: Awaited) {
        if !self.indexes.contains_key(&index) {
            return;
        }
        let of_index = |uid: &TaskUid| self.index_of(*uid) == Some(&index);
        let concerned: Vec<TaskUid> = self.state.open().iter().copied().filter(of_index).collect();
        let gone = awaited.is_none();
        self.awaited.insert(index, awaited);
        for uid in concerned {
            self.review(env.now, wall, uid);
            if gone {
                self.hurry(env.now, uid);
            }
        }
    }

    /// A task `by` of any home sweeps this one: [`Answer::Swept`], and asked again the newest numbers.
    pub fn handle_sweep(&mut self, env: &mut Env<'_>, op: OpId, by: TaskUid, action: Action, filter: Filter) {
        match self.state.swept(by) {
            Some(swept) => self.answer(op, Answer::Swept(swept)),
            None => self.append(env.now, HomeEntry::Sweep { by, action, filter: Box::new(filter) }, Some(op)),
        }
    }

    /// What [`Effect::Sweep`] asked for.
    pub fn handle_swept(&mut self, env: &mut Env<'_>, wall: When, by: TaskUid, home: u16, swept: Swept) {
        if let Some(soft) = self.soft.get_mut(&by).filter(|_| home < self.config.homes) {
            soft.begun.get_or_insert(wall);
            soft.swept.insert(home, swept);
        }
        self.review(env.now, wall, by);
    }

    /// Webhooks were told of these, or will never be.
    pub fn handle_hooked(&mut self, env: &mut Env<'_>, uids: &BTreeSet<TaskUid>) {
        let told: BTreeSet<TaskUid> = uids.intersection(&self.hooking).copied().collect();
        if !told.is_empty() && told.len() <= entry::ENTRY_TASKS_MAX {
            self.append(env.now, HomeEntry::Hooked { uids: told }, None);
        }
    }

    /// There are webhooks from here on, or none.
    pub fn set_hooks(&mut self, hooks: bool) {
        self.hooks = hooks;
    }

    /// These tasks, asked for by [`Effect::AskGone`], are not kept by their homes.
    pub fn handle_gone(&mut self, env: &mut Env<'_>, wall: When, uids: &BTreeSet<TaskUid>) {
        let old = wall.minus(self.config.task_retention);
        let keys = self.state.keys().filter(|(_, row)| row.at < old && uids.contains(&row.uid));
        let keys: BTreeSet<_> = keys.map(|(key, row)| (row.uid, key.to_owned())).take(entry::ENTRY_TASKS_MAX).collect();
        if !keys.is_empty() {
            self.append(env.now, HomeEntry::ForgetKeys { keys }, None);
        }
    }

    /// What is to be done next; see [`super::effect`].
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    pub(super) fn answer(&mut self, op: OpId, answer: Answer) {
        self.effects.push_back(Effect::Answer { op, answer });
    }

    pub(super) fn index_of(&self, uid: TaskUid) -> Option<&PhysicalIndex> {
        match &self.state.task(uid)?.head.work {
            Work::Parts { index, .. } => Some(index),
            _ => None,
        }
    }

    /// Puts an entry into the journal, once at a time for each part.
    pub(super) fn append(&mut self, now: Instant, entry: HomeEntry, op: Option<OpId>) {
        let Some(part) = entry.part().filter(|_| entry.is_well_formed()) else {
            return op.into_iter().for_each(|op| self.answer(op, Answer::Refused));
        };
        if op.is_some() && self.waiting >= FLIGHTS_MAX {
            return op.into_iter().for_each(|op| self.answer(op, Answer::Busy));
        }
        self.waiting += usize::from(op.is_some());
        match self.flights.get_mut(&part) {
            // What stands under the part is told to all.
            Some(flight) => flight.ops.extend(op),
            None => {
                self.effects.push_back(Effect::Append { part, entry: Box::new(entry.clone()) });
                let again = now.plus(self.config.append_again);
                self.flights.insert(part, Flight { entry, again, committed: None, ops: op.into_iter().collect() });
            }
        }
    }

    /// Under the part of a note to webhooks may stand one of an earlier primary, about fewer tasks.
    fn tell_rest(&mut self, now: Instant, hooked: &BTreeSet<TaskUid>) {
        let rest: BTreeSet<TaskUid> = hooked.intersection(self.state.unhooked()).copied().collect();
        if !rest.is_empty() {
            self.append(now, HomeEntry::Hooked { uids: rest }, None);
        }
    }

    fn landed(&self) -> Vec<TaskPart> {
        let applied = self.state.applied();
        let done = |flight: &Flight| flight.committed.is_some_and(|seq| seq <= applied);
        self.flights.iter().filter(|(_, flight)| done(flight)).map(|(part, _)| *part).collect()
    }

    fn take_off(&mut self, part: TaskPart) -> Vec<OpId> {
        let ops = self.flights.remove(&part).map(|flight| flight.ops).unwrap_or_default();
        self.waiting -= ops.len();
        ops
    }

    /// An entry stands under this part, and was applied: what stands there is told.
    fn land(&mut self, part: TaskPart) {
        let Some(flight) = self.flights.get(&part) else { return };
        let answer = match &flight.entry {
            HomeEntry::Head { uid, .. } | HomeEntry::Void { uid } if self.state.is_void(*uid) => Answer::Void,
            HomeEntry::Head { uid, head } if self.state.task(*uid).is_some_and(|row| row.head == **head) => {
                Answer::Taken
            }
            HomeEntry::Head { .. } | HomeEntry::Void { .. } => Answer::Other,
            HomeEntry::Key { key, hash, .. } => self
                .state
                .key(key)
                .map_or(Answer::Busy, |row| Answer::Settled { uid: row.uid, same_body: row.hash == *hash }),
            HomeEntry::Sweep { by, .. } => self.state.swept(*by).map_or(Answer::Busy, Answer::Swept),
            _ => Answer::Ended,
        };
        if let HomeEntry::Head { uid, .. } = flight.entry
            && self.state.task(uid).is_none()
        {
            self.gone.insert(uid);
            if self.gone.len() > GONE_MAX {
                self.gone.pop_first();
            }
        }
        for op in self.take_off(part) {
            self.answer(op, answer.clone());
        }
    }

    pub(super) fn finish(&mut self, now: Instant, uid: TaskUid, outcome: Outcome, op: Option<OpId>) {
        let hook = self.hooks;
        self.append(now, HomeEntry::Finished { uid, outcome: Box::new(outcome), hook }, op);
    }

    /// A task's state as it is shown.
    pub fn status(&self, uid: TaskUid) -> Option<Status> {
        let row = self.state.task(uid)?;
        let begun = self.soft.get(&uid).is_some_and(|soft| soft.begun.is_some());
        let open = if begun { Status::Processing } else { Status::Enqueued };
        Some(row.outcome.as_ref().map_or(open, |outcome| outcome.status))
    }
}
