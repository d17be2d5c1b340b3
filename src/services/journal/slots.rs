//! Which replicas are in memory.
//!
//! A replica is read from the store when it is touched, and what it is told meanwhile waits. One that has been idle for a while
//! is taken out; a reign at rest is remembered, so that the same process goes on with it. Rule: a replica that was given up is
//! never told of stores that it had asked for. Must not know: why a replica is touched.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::driver::{Done, Driver};
use super::handle::Event;
use crate::proto::env::{Env, Instant};
use crate::proto::journal::{Answer, Hint, Message, OpId, Replica, Rows, Stands, Stored, Write};
use crate::services::ledger::now;
use crate::store::StoreError;
use crate::types::{Epoch, JournalKey, MemberId, Position, TaskPart};

/// Bytes of entries that replicas keep in memory, all together, besides what is not durable yet.
const MEMORY: usize = 256 << 20;
/// What a replica that is on its way from the store is told later, at most.
const WAITING: usize = 1_024;

/// A replica in memory, or on its way there.
pub(super) enum Slot {
    /// What it will be told.
    Opening(VecDeque<Told>),
    /// It is there.
    Open(Box<Open>),
}

/// A replica in memory.
pub(super) struct Open {
    pub(super) replica: Replica,
    /// Which time it was read from the store.
    pub(super) generation: u64,
    /// Stores that it was not told of.
    pub(super) storing: usize,
    /// Reads of the store under way.
    pub(super) reading: usize,
    /// The last store on its way that drops entries: before it is durable the store still remembers their parts.
    pub(super) dropping: Option<u64>,
    /// Parts that are to be looked for when it is.
    pub(super) finds: Vec<(Epoch, TaskPart)>,
    /// What came with the snapshot that it has taken.
    pub(super) parts: Vec<(TaskPart, Stands)>,
    /// The commit position that was last stored.
    pub(super) commit_stored: u64,
    /// Since when it is idle.
    pub(super) idle_since: Option<Instant>,
    /// When it wants to be looked at.
    pub(super) due: Option<Instant>,
}

/// What a replica is told by its driver.
pub(super) enum Told {
    Message(MemberId, Message),
    Write(OpId, Write),
    Trim { to: u64, overdue: bool },
    Applied(u64),
    Unapplied(u64),
    Snapshot { at: Position, parts: Vec<(TaskPart, Stands)>, tell: oneshot::Sender<bool> },
}

impl Driver {
    /// Whether the record lists this member for the shard.
    fn holds(&self, key: &JournalKey) -> bool {
        self.state(key).is_some_and(|state| state.copy(&self.me.member).is_some())
    }

    /// Has a replica in memory, if it is not there.
    pub(super) fn touch(&mut self, key: &JournalKey) {
        if self.slots.contains_key(key) || !self.holds(key) {
            return;
        }
        self.slots.insert(key.clone(), Slot::Opening(VecDeque::new()));
        self.read_stored(key, None);
    }

    fn read_stored(&mut self, key: &JournalKey, damaged: Option<String>) {
        let (store, key, tail) = (self.store.clone(), key.clone(), self.config.tail);
        self.done.spawn(async move {
            if let Some(reason) = damaged {
                store.repair(&key, &reason).await?;
            }
            let stored = store.stored(&key, tail).await?;
            Ok(Done::Opened(key, Box::new(stored.unwrap_or_default())))
        });
    }

    /// Tells a replica something; one that is not in memory hears it when it is.
    pub(super) fn tell(&mut self, key: &JournalKey, told: Told) {
        // Nothing is read only to say who is primary.
        let led = self.state(key).is_some_and(|state| state.is_led_by(&self.me, self.start));
        if led || !matches!(told, Told::Write(..)) {
            self.touch(key);
        }
        match self.slots.get_mut(key) {
            Some(Slot::Open(_)) => self.tell_open(key, told),
            Some(Slot::Opening(waiting)) if waiting.len() < WAITING => waiting.push_back(told),
            Some(Slot::Opening(_)) => self.not_told(key, told, Answer::Busy),
            None => {
                let state = self.state(key);
                let primary = state.and_then(|s| s.primary.clone()).filter(|p| p.member != self.me.member);
                let hint = Hint { primary, epoch: state.map_or(Epoch::ZERO, |s| s.epoch) };
                self.not_told(key, told, Answer::NotPrimary(hint));
            }
        }
    }

    /// Tells a replica something that others read from the store.
    pub(super) fn tell_if_there(&mut self, key: &JournalKey, told: Told) {
        if self.slots.contains_key(key) {
            self.tell(key, told);
        }
    }

    /// A message is repeated by its sender; a write is answered.
    fn not_told(&mut self, key: &JournalKey, told: Told, answer: Answer) {
        match told {
            Told::Write(op, _) => self.answers.answer(op, answer),
            Told::Message(..) => tracing::trace!(%key, "a message was dropped"),
            // Dropping what waits says no.
            Told::Snapshot { .. } | Told::Trim { .. } | Told::Applied(_) | Told::Unapplied(_) => {}
        }
    }

    fn tell_open(&mut self, key: &JournalKey, told: Told) {
        match told {
            Told::Message(from, message) => self.call(key, |r, env| r.handle_message(env, &from, message)),
            Told::Write(op, write) => self.call(key, |r, env| r.handle_write(env, op, write)),
            Told::Trim { to, overdue: false } => self.call(key, |r, env| r.handle_trim(env, to)),
            Told::Trim { to, overdue: true } => self.call(key, |r, env| r.handle_overdue(env, to)),
            Told::Applied(to) => self.call(key, |r, _| r.handle_applied(to)),
            Told::Unapplied(to) => self.call(key, |r, _| r.handle_unapplied(to)),
            Told::Snapshot { at, parts, tell } => {
                let older = parts.iter().map(|(part, _)| part.task).max();
                if let Some(Slot::Open(open)) = self.slots.get_mut(key) {
                    open.parts = parts;
                }
                let mut taken = false;
                self.call(key, |r, env| taken = r.handle_snapshot(env, at, older));
                if let Some(Slot::Open(open)) = self.slots.get_mut(key) {
                    open.parts.clear();
                }
                if taken {
                    self.broken.remove(key);
                }
                // Whoever asked may have gone.
                let _ = tell.send(taken);
            }
        }
    }

    /// Calls a replica that is in memory, and carries out what it wants.
    pub(super) fn call(&mut self, key: &JournalKey, ask: impl FnOnce(&mut Replica, &mut Env<'_>)) {
        let Some(Slot::Open(open)) = self.slots.get_mut(key) else { return };
        ask(&mut open.replica, &mut Env { now: now(), rng: &mut self.rng });
        self.drain(key);
    }

    /// Those that are in memory.
    pub(super) fn open_keys(&self) -> Vec<JournalKey> {
        let open = self.slots.iter().filter(|(_, slot)| matches!(slot, Slot::Open(_)));
        open.map(|(key, _)| key.clone()).collect()
    }

    /// A replica has been read from the store.
    pub(super) fn opened(&mut self, key: &JournalKey, stored: Stored) {
        let Some(Slot::Opening(waiting)) = self.slots.remove(key) else { return };
        self.generation += 1;
        let broken = stored.rebuild;
        if broken {
            self.broken.insert(key.clone());
        }
        let (commit, has_commit) = (stored.log.commit, stored.log.commit > 0);
        let (state, rest) = (self.state(key).cloned(), self.rests.remove(key).map(|(_, rest)| rest));
        let mut env = Env { now: now(), rng: &mut self.rng };
        let (me, sight) = ((self.me.clone(), self.start), self.seen_now.sight.clone());
        let replica = Replica::recover(&mut env, self.config.core.clone(), me, stored, state, sight, rest);
        let open = Open {
            replica,
            generation: self.generation,
            storing: 0,
            reading: 0,
            dropping: None,
            finds: Vec::new(),
            parts: Vec::new(),
            commit_stored: commit,
            idle_since: None,
            due: None,
        };
        self.slots.insert(key.clone(), Slot::Open(Box::new(open)));
        self.share_memory(key);
        if has_commit {
            self.shared.tell(Event::Committed(key.clone(), commit));
        }
        self.drain(key);
        if broken {
            self.look_at(&key.index);
        }
        waiting.into_iter().for_each(|told| self.tell(key, told));
    }

    /// All replicas together keep [`MEMORY`], each an equal share of it.
    fn share_memory(&mut self, new: &JournalKey) {
        let most = self.config.core.memory.bytes;
        // A power of two, so that all are told seldom.
        let share = 1 << (MEMORY / self.slots.len().max(1)).max(1).ilog2();
        let share = share.min(most);
        let before = std::mem::replace(&mut self.share, share);
        let slots = self.slots.iter_mut().filter(|(key, _)| before != share || *key == new);
        for slot in slots.map(|(_, slot)| slot) {
            if let Slot::Open(open) = slot {
                open.replica.set_memory(share);
            }
        }
    }

    /// Works out when a replica is to be looked at again.
    pub(super) fn settle(&mut self, key: &JournalKey) {
        let Some(Slot::Open(open)) = self.slots.get_mut(key) else { return };
        let (now, wake) = (now(), open.replica.next_wake());
        let rests = open.storing == 0 && open.reading == 0 && open.finds.is_empty();
        let idle = wake.is_none() && rests && open.replica.is_idle();
        open.idle_since = if idle { open.idle_since.or(Some(now)) } else { None };
        let due = wake.or(open.idle_since.map(|since| since.plus(self.config.linger)));
        if open.due != due {
            if let Some(old) = open.due.take() {
                self.due.remove(&(old, key.clone()));
            }
            open.due = due;
            self.due.extend(due.map(|at| (at, key.clone())));
        }
    }

    /// Looks at all replicas that are due.
    pub(super) fn tick(&mut self) {
        let now = now();
        while let Some((at, key)) = self.due.pop_first() {
            if at > now {
                self.due.insert((at, key));
                return;
            }
            let Some(Slot::Open(open)) = self.slots.get_mut(&key) else { continue };
            open.due = None;
            if open.idle_since.is_some() {
                self.close(&key);
            } else {
                self.call(&key, Replica::handle_tick);
            }
        }
    }

    /// Takes an idle replica out of memory.
    fn close(&mut self, key: &JournalKey) {
        let Some(Slot::Open(open)) = self.slots.remove(key) else { return };
        if let Some(rest) = open.replica.rest() {
            self.rests.insert(key.clone(), (open.replica.epoch(), rest));
        }
        let commit = open.replica.log().commit();
        if commit > open.commit_stored {
            // Known here, and nothing else will store it.
            let rows = Rows { epoch: open.replica.epoch(), commit, ..Rows::default() };
            self.storing.push(key.clone(), rows, Vec::new(), None);
        }
    }

    /// Drops a replica wherever it is; what it was asked is not answered any more.
    pub(super) fn give_up(&mut self, key: &JournalKey) {
        if let Some(Slot::Open(open)) = self.slots.remove(key)
            && let Some(due) = open.due
        {
            self.due.remove(&(due, key.clone()));
        }
        self.rests.remove(key);
        self.broken.remove(key);
        self.unfit.remove(key);
        self.storing.forget(key);
        self.shared.forget(key);
    }

    /// A journal is damaged: it is repaired, and its replica begins anew with what is left.
    pub(super) fn repair(&mut self, key: &JournalKey, reason: String) {
        if matches!(self.slots.get(key), Some(Slot::Opening(_))) || !self.holds(key) {
            return;
        }
        self.give_up(key);
        self.slots.insert(key.clone(), Slot::Opening(VecDeque::new()));
        self.read_stored(key, Some(reason));
    }

    /// What a damaged journal leads to; other errors end the driver.
    pub(super) fn or_repair<T>(&mut self, read: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
        match read {
            Ok(read) => Ok(Some(read)),
            Err(StoreError::Damaged { journal, reason }) => {
                self.repair(&journal, reason);
                Ok(None)
            }
            Err(other) => Err(other),
        }
    }
}
