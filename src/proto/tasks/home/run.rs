//! What a home's primary does by itself: asks, gives up, finishes, forgets, tells webhooks.
//!
//! Rule: every look at a task starts from its row and what was heard, so that a lost question or answer costs time and
//! nothing else. Must not know: what requests there are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::filter::{Facts, Filter};
use super::super::kind::Status;
use super::super::page::{PAGE_MAX, Page};
use super::super::query::{Action, Listing, Query};
use super::super::task::{Outcome, Shown};
use super::super::when::When;
use super::effect::{Effect, HOOK_TASKS_MAX};
use super::entry::{ENTRY_TASKS_MAX, HomeEntry};
use super::judge::{Awaited, Known, judge, refused_order};
use super::parts::{PartRef, Parts, Work};
use super::primary::Home;
use super::soft::Soft;
use super::state::Row;
use crate::proto::env::{Env, Instant};
use crate::types::{MemberId, PhysicalIndex, TaskPart, TaskUid};

/// Between two batches of what is forgotten.
const FORGET_MORE: Duration = Duration::from_secs(1);

impl Home {
    /// Time has passed: due at [`Home::next_wake`], harmless at any other time.
    pub fn handle_tick(&mut self, env: &mut Env<'_>, wall: When) {
        let again: Vec<TaskPart> =
            self.flights.iter().filter(|(_, f)| f.again <= env.now && f.committed.is_none()).map(|(p, _)| *p).collect();
        for part in again {
            if let Some(flight) = self.flights.get_mut(&part) {
                flight.again = env.now.plus(self.config.append_again);
                self.effects.push_back(Effect::Append { part, entry: Box::new(flight.entry.clone()) });
            }
        }
        let due: Vec<TaskUid> = self.due.iter().take_while(|(at, _)| *at <= env.now).map(|(_, uid)| *uid).collect();
        for uid in due {
            self.look(env.now, wall, uid);
        }
        if self.forget_at <= env.now {
            let more = self.forget(env.now, wall);
            self.forget_at = env.now.plus(if more { FORGET_MORE } else { self.config.forget_every });
        }
    }

    /// When [`Home::handle_tick`] is due.
    pub fn next_wake(&self) -> Option<Instant> {
        let due = self.due.first().map(|(at, _)| *at);
        let again = self.flights.values().filter(|f| f.committed.is_none()).map(|f| f.again);
        due.into_iter().chain(again).chain([self.forget_at]).min()
    }

    /// Watches over a task that has not ended, and over none that has.
    pub(super) fn open(&mut self, env: &mut Env<'_>, uid: TaskUid) {
        if self.state.open().contains(&uid) {
            if !self.soft.contains_key(&uid) {
                // A sweep waits for nobody; reports come by themselves.
                let sweeps = self.state.task(uid).is_some_and(|row| matches!(row.head.work, Work::Sweep { .. }));
                let due = if sweeps { env.now } else { env.now.plus(env.jitter(self.config.ask_after)) };
                let deadline = env.now.plus(self.config.incomplete_after);
                let index = self.index_of(uid).cloned();
                self.soft.insert(uid, Soft::new(index.clone(), deadline, due, self.config.ask_after));
                self.due.insert((due, uid));
                self.watch(index);
            }
        } else if let Some(soft) = self.soft.remove(&uid) {
            self.due.remove(&(soft.due, uid));
            self.unwatch(soft.index);
        }
    }

    fn watch(&mut self, index: Option<PhysicalIndex>) {
        let Some(index) = index else { return };
        let tasks = self.indexes.entry(index.clone()).or_default();
        *tasks += 1;
        if *tasks == 1 {
            self.effects.push_back(Effect::WantAwaited(index));
        }
    }

    fn unwatch(&mut self, index: Option<PhysicalIndex>) {
        let Some(index) = index else { return };
        let left = self.indexes.get(&index).map_or(0, |tasks| tasks - 1);
        if left > 0 {
            self.indexes.insert(index, left);
        } else {
            self.indexes.remove(&index);
            self.awaited.remove(&index);
        }
    }

    /// Whether a task is finished by what is known now.
    pub(super) fn review(&mut self, now: Instant, wall: When, uid: TaskUid) {
        let Some((row, soft)) = self.state.task(uid).zip(self.soft.get(&uid)) else { return };
        if row.outcome.is_some() {
            return;
        }
        let ends = row.given_up || row.cancel.is_some();
        let (mut refused, mut stays) = (BTreeSet::new(), false);
        let outcome = match &row.head.work {
            Work::Nothing(outcome) => Some(outcome.clone()),
            Work::Order => {
                stays = row.cancel.is_some() && soft.order_there;
                soft.order_refused.then(|| refused_order(row, wall))
            }
            Work::Sweep { .. } => self.sum(soft, row.head.enqueued, wall),
            Work::Parts { index, parts } => {
                if ends && row.refused.is_empty() && parts.iter().all(|part| soft.knows(part)) {
                    refused.clone_from(&soft.refused);
                    stays = refused.is_empty() && row.cancel.is_some();
                }
                let known = self.awaited.get(index).map(|awaited| known(parts, soft, awaited));
                known.filter(|_| refused.is_empty()).and_then(|known| judge(row, &known, wall))
            }
        };
        if !refused.is_empty() {
            self.append(now, HomeEntry::Refused { uid, parts: refused }, None);
        }
        if let Some(outcome) = outcome {
            self.finish(now, uid, outcome, None);
        } else if stays {
            self.append(now, HomeEntry::Stays { uid }, None);
        } else if ends {
            self.hurry(now, uid);
        }
    }

    /// A task that has just been given up or canceled is looked at soon.
    pub(super) fn hurry(&mut self, now: Instant, uid: TaskUid) {
        let Some(soft) = self.soft.get_mut(&uid).filter(|soft| !soft.hurried) else { return };
        self.due.remove(&(soft.due, uid));
        soft.hurry(now);
        self.due.insert((soft.due, uid));
    }

    /// What all homes found, once none of them waits.
    fn sum(&self, soft: &Soft, enqueued: When, wall: When) -> Option<Outcome> {
        let all = soft.swept.len() == usize::from(self.config.homes);
        if !all || soft.swept.values().any(|swept| swept.waiting > 0) {
            return None;
        }
        let finished = wall.max(enqueued);
        Some(Outcome {
            status: Status::Succeeded,
            error: None,
            changed: soft.swept.values().map(|swept| swept.changed).sum(),
            matched: soft.swept.values().map(|swept| swept.matched).sum(),
            started: soft.begun.unwrap_or(finished).min(finished),
            finished,
        })
    }

    /// Asks for what is missing, and gives up what has waited too long.
    fn look(&mut self, now: Instant, wall: When, uid: TaskUid) {
        let Some(mut soft) = self.soft.remove(&uid) else { return };
        self.due.remove(&(soft.due, uid));
        soft.put_off(now);
        self.due.insert((soft.due, uid));
        if let Some(row) = self.state.task(uid) {
            let overdue = now >= soft.deadline;
            let late = overdue && !row.given_up;
            // Of an index that is gone nobody will say more.
            let gone = |index| !row.given_up && matches!(self.awaited.get(index), Some(None));
            let ends = row.given_up || row.cancel.is_some();
            let refuses_nothing = row.refused.is_empty();
            let mut give_up = false;
            match row.head.work.clone() {
                Work::Parts { index, parts } => {
                    let unknown: Vec<PartRef> = parts.iter().filter(|part| !soft.knows(*part)).collect();
                    give_up = (late || gone(&index)) && !unknown.is_empty();
                    self.ask(uid, &index, &parts, &soft);
                    if ends && refuses_nothing && !unknown.is_empty() {
                        self.effects.push_back(Effect::Refuse { uid, index, parts: unknown });
                    }
                }
                Work::Order if ends => self.effects.push_back(Effect::RefuseOrder { uid, late: overdue }),
                // Also one that was begun: whoever carries it out may have died since, and says so if not.
                Work::Order => give_up = late,
                Work::Sweep { action, filter } => self.ask_homes(uid, action, &filter, &soft),
                Work::Nothing(_) => {}
            }
            if give_up {
                self.append(now, HomeEntry::GiveUp { uid }, None);
            }
        }
        self.soft.insert(uid, soft);
        self.review(now, wall, uid);
    }

    fn ask(&mut self, uid: TaskUid, index: &PhysicalIndex, parts: &Parts, soft: &Soft) {
        let Some(awaited) = self.awaited.get(index) else {
            return self.effects.push_back(Effect::WantAwaited(index.clone()));
        };
        let known = known(parts, soft, awaited);
        let mut asked: BTreeMap<MemberId, Vec<PartRef>> = BTreeMap::new();
        for part in parts.iter().filter(|part| !soft.refused.contains(part)) {
            for member in known.missing(part) {
                asked.entry(member.clone()).or_default().push(part);
            }
        }
        for (member, parts) in asked {
            self.effects.push_back(Effect::Ask { member, uid, index: index.clone(), parts });
        }
    }

    fn ask_homes(&mut self, by: TaskUid, action: Action, filter: &Filter, soft: &Soft) {
        let waits = |home: &u16| soft.swept.get(home).is_none_or(|swept| swept.waiting > 0);
        for home in (0..self.config.homes).filter(waits) {
            self.effects.push_back(Effect::Sweep { home, by, action, filter: Box::new(filter.clone()) });
        }
    }

    /// Webhooks are told of what has ended, one batch after the other: what ends meanwhile goes with the next.
    pub(super) fn hook(&mut self) {
        self.hooking.retain(|uid| self.state.unhooked().contains(uid));
        if !self.hooking.is_empty() {
            return;
        }
        let new: Vec<TaskUid> = self.state.unhooked().iter().copied().take(HOOK_TASKS_MAX).collect();
        if !new.is_empty() {
            self.hooking.extend(&new);
            let tasks = new.into_iter().filter_map(|uid| Some((uid, self.seen(uid)?))).collect();
            self.effects.push_back(Effect::Hook(tasks));
        }
    }

    /// Forgets what ended long ago; says whether there may be more than one entry names.
    fn forget(&mut self, now: Instant, wall: When) -> bool {
        let old = wall.minus(self.config.task_retention);
        let uids = self.state.ended_before(old).filter(|uid| !self.state.unhooked().contains(uid));
        let uids: BTreeSet<TaskUid> = uids.take(ENTRY_TASKS_MAX).collect();
        let mut more = uids.len() == ENTRY_TASKS_MAX;
        if !uids.is_empty() {
            self.append(now, HomeEntry::Forget { uids }, None);
        }
        let keys: BTreeSet<TaskUid> = self.state.keys_before(old).map(|row| row.uid).take(ENTRY_TASKS_MAX).collect();
        more |= keys.len() == ENTRY_TASKS_MAX;
        if !keys.is_empty() {
            self.effects.push_back(Effect::AskGone(keys));
        }
        more
    }

    /// Whether it has open tasks about this index.
    pub fn watches(&self, index: &PhysicalIndex) -> bool {
        self.indexes.contains_key(index)
    }

    /// A task as it is shown.
    pub fn shown(&self, uid: TaskUid) -> Option<Shown> {
        self.has(uid).then(|| self.seen(uid)).flatten()
    }

    /// Whether there is a task, and it was not deleted.
    pub fn has(&self, uid: TaskUid) -> bool {
        self.state.task(uid).is_some_and(|row| !row.deleted)
    }

    /// The same of one that was deleted before webhooks were told of it.
    fn seen(&self, uid: TaskUid) -> Option<Shown> {
        let row = self.state.task(uid)?;
        let (soft, outcome) = (self.soft.get(&uid), row.outcome.clone());
        let status = self.status(uid)?;
        let started = outcome.as_ref().map(|o| o.started).or_else(|| soft.and_then(|soft| soft.begun));
        let canceled_by = row.cancel.filter(|_| status == Status::Canceled).map(|by| by.0);
        let progress = soft.and_then(|soft| soft.progress(row));
        let refused = row.refused.len() as u64;
        Some(Shown { head: row.head.clone(), status, canceled_by, started, progress, refused, outcome })
    }

    fn facts<'s>(&'s self, uid: TaskUid, row: &'s Row) -> Facts<'s> {
        let outcome = row.outcome.as_ref();
        let begun = self.soft.get(&uid).and_then(|soft| soft.begun);
        let status = self.status(uid).unwrap_or(Status::Enqueued);
        Facts {
            uid,
            index_uid: row.head.index_uid.as_deref(),
            kind: row.head.subject.kind(),
            status,
            canceled_by: row.cancel.filter(|_| status == Status::Canceled),
            enqueued: row.head.enqueued,
            started: outcome.map(|o| o.started).or(begun),
            finished: outcome.map(|o| o.finished),
        }
    }

    /// This home's page of a list.
    pub fn page(&self, query: &Query, from: Option<u32>, take: usize) -> Page<Shown> {
        let take = take.min(PAGE_MAX);
        let (mut tasks, mut total, mut more) = (Vec::new(), 0, false);
        let mut visit = |(uid, row): (TaskUid, &Row)| {
            let facts = self.facts(uid, row);
            let listed = query.listing == Listing::Tasks || facts.status != Status::Enqueued;
            if row.deleted || !listed || !query.filter.matches(&facts) {
                return;
            }
            total += 1;
            let begins = from.is_none_or(|from| if query.reverse { uid.0 >= from } else { uid.0 <= from });
            if begins && tasks.len() < take {
                tasks.extend(self.shown(uid).map(|shown| (uid, shown)));
            } else if begins {
                more = true;
            }
        };
        if query.reverse {
            self.state.tasks().for_each(&mut visit);
        } else {
            self.state.tasks().rev().for_each(&mut visit);
        }
        Page { tasks, total, more }
    }
}

fn known<'a>(parts: &'a Parts, soft: &'a Soft, awaited: &'a Awaited) -> Known<'a> {
    Known { parts, reports: &soft.reports, there: &soft.there, awaited }
}
