//! One home at this member: what it makes of committed entries, and its reign.
//!
//! A home is read from the store when it is touched first, and stays. Whoever follows only takes in entries; a reign begins
//! when the first entry of its epoch has been taken in, and ends with the reign of the journal's replica. Rule: entries are
//! taken in one after the other, and one read and one store is under way at a time. Must not know: what a home wants done.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::oneshot;

use super::call::{Question, Said, Told, cut};
use super::driver::{Done, Driver, ForReign, Input};
use super::{journal_of, wall};
use crate::proto::env::{Env, Instant};
use crate::proto::journal::{Entry, Kind};
use crate::proto::tasks::When;
use crate::proto::tasks::home::{Answer, Home, HomeEntry, HomeState, OpId, Touched};
use crate::services::ledger::now;
use crate::store::StoreError;
use crate::store::journal::StoredHome;
use crate::types::{Epoch, PhysicalIndex};

/// Entries of one reading.
const READ: usize = 512;
/// Bytes of one reading.
const READ_BYTES: usize = 4 << 20;

/// A home with its state.
pub(super) enum Core {
    /// It takes in what others decide.
    Follows(Box<HomeState>),
    /// It decides.
    Reigns(Epoch, Box<Home>),
    /// Its copy must be made anew, or is on its way from the store.
    Nothing,
}

/// See the module.
pub(super) struct Slot {
    pub(super) core: Core,
    /// Which time it was read from the store.
    pub(super) generation: u64,
    /// The reign that the journal has begun.
    pub(super) reign: Option<Epoch>,
    /// The copy must be made anew.
    pub(super) broken: bool,
    /// And it is.
    copying: bool,
    /// In which epoch the last entry that was taken in was appended.
    epoch: Epoch,
    reading: bool,
    storing: bool,
    /// Up to which entry rows are durable.
    stored: u64,
    dirty: BTreeSet<Touched>,
    /// Who waits for an answer.
    pub(super) asking: BTreeMap<OpId, oneshot::Sender<Told>>,
    next_op: u64,
}

impl Slot {
    fn new(generation: u64) -> Self {
        Self {
            core: Core::Nothing,
            generation,
            reign: None,
            broken: false,
            copying: false,
            epoch: Epoch::ZERO,
            reading: true,
            storing: false,
            stored: 0,
            dirty: BTreeSet::new(),
            asking: BTreeMap::new(),
            next_op: 0,
        }
    }

    /// One that decides, and of which nothing is stored.
    #[cfg(test)]
    pub(super) fn reigning(epoch: Epoch, home: Home) -> Self {
        Self { core: Core::Reigns(epoch, Box::new(home)), reading: false, ..Self::new(0) }
    }

    fn state(&self) -> Option<&HomeState> {
        match &self.core {
            Core::Follows(state) => Some(state),
            Core::Reigns(_, home) => Some(home.state()),
            Core::Nothing => None,
        }
    }

    /// When it is to be looked at again.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        match &self.core {
            Core::Reigns(_, home) => home.next_wake(),
            _ => None,
        }
    }

    /// Tasks that have not ended, of which it decides.
    pub(super) fn open(&self) -> usize {
        match &self.core {
            Core::Reigns(_, home) => home.state().open().len(),
            _ => 0,
        }
    }

    /// Whether it reigns and has open tasks about this index.
    pub(super) fn watches(&self, index: &PhysicalIndex) -> bool {
        matches!(&self.core, Core::Reigns(_, home) if home.watches(index))
    }
}

/// What an entry says to a home.
fn said_by(entry: &Entry) -> Option<HomeEntry> {
    (entry.kind == Kind::Home).then(|| HomeEntry::decode(&entry.body.0)).flatten()
}

impl Driver {
    /// A home that is touched is read from the store; gives the one that is there.
    pub(super) fn touch(&mut self, home: u16) -> &mut Slot {
        if !self.slots.contains_key(&home) {
            self.generation += 1;
            self.slots.insert(home, Slot::new(self.generation));
            self.open(home);
        }
        self.slots.get_mut(&home).expect("it was just put there")
    }

    /// Reads a home from the store.
    fn open(&mut self, home: u16) {
        let Some(slot) = self.slots.get_mut(&home) else { return };
        self.generation += 1;
        (slot.generation, slot.reading, slot.core) = (self.generation, true, Core::Nothing);
        let (journals, generation) = (self.journals.clone(), self.generation);
        self.done.spawn(async move {
            let stored = journals.home(&journal_of(home)).await;
            Ok((home, Done::Opened(generation, stored)))
        });
    }

    pub(super) fn did(&mut self, home: u16, done: Done) -> Result<(), StoreError> {
        let of_now = |slot: &Slot, generation: u64| slot.generation == generation;
        let Some(slot) = self.slots.get_mut(&home) else { return Ok(()) };
        match done {
            Done::Opened(generation, stored) if of_now(slot, generation) => match stored {
                Ok(stored) => self.opened(home, stored),
                Err(error) => self.damaged(home, error)?,
            },
            Done::Read(generation, read) if of_now(slot, generation) => match read {
                Ok(entries) => self.was_read(home, &entries),
                Err(error) => self.damaged(home, error)?,
            },
            Done::Stored(generation, to) => {
                slot.storing = false;
                slot.stored = if of_now(slot, generation) { to } else { slot.stored };
                self.store(home);
                self.copy_if_broken(home);
            }
            Done::Copied => {
                (slot.broken, slot.copying) = (false, false);
                self.open(home);
            }
            Done::Reign(epoch, what) => self.did_for(home, epoch, what),
            // Of what was there before.
            Done::Opened(..) | Done::Read(..) => {}
        }
        Ok(())
    }

    /// What a damaged journal leads to; other errors end the driver.
    fn damaged(&mut self, home: u16, error: StoreError) -> Result<(), StoreError> {
        match error {
            StoreError::Damaged { .. } => {
                self.must_be_made_anew(home);
                Ok(())
            }
            other => Err(other),
        }
    }

    fn opened(&mut self, home: u16, stored: StoredHome) {
        let StoredHome { applied, epoch, floor, rebuild, rows } = stored;
        let Some(slot) = self.slots.get_mut(&home) else { return };
        slot.reading = false;
        if slot.broken {
            return;
        }
        if rebuild {
            return self.must_be_made_anew(home);
        }
        if applied < floor {
            let journals = self.journals.clone();
            let reason = format!("its tasks are known up to {applied}, and entries up to {floor} are gone");
            self.done.spawn(async move {
                journals.repair(&journal_of(home), reason).await;
                Ok((home, Done::Reign(Epoch::ZERO, ForReign::Nothing)))
            });
            return;
        }
        (slot.stored, slot.epoch, slot.dirty) = (applied, epoch, BTreeSet::new());
        slot.core = Core::Follows(Box::new(HomeState::recover(applied, rows)));
        self.begin(home);
        self.look(home);
    }

    /// Reads what is committed and not taken in.
    pub(super) fn look(&mut self, home: u16) {
        let key = journal_of(home);
        let Some(commit) = self.journals.committed(&key) else { return };
        let slot = self.touch(home);
        let (generation, reading) = (slot.generation, slot.reading);
        let Some(from) = slot.state().map(|state| state.applied() + 1) else { return };
        if reading || from > commit {
            return;
        }
        slot.reading = true;
        let journals = self.journals.clone();
        self.done.spawn(async move {
            let read = journals.read_committed(&key, from, READ, READ_BYTES).await;
            Ok((home, Done::Read(generation, read)))
        });
    }

    fn was_read(&mut self, home: u16, entries: &[Entry]) {
        let Some(slot) = self.slots.get_mut(&home) else { return };
        slot.reading = false;
        let next = slot.state().map_or(0, |state| state.applied() + 1);
        if entries.first().is_none_or(|entry| entry.at.seq != next) {
            // The copy was begun anew meanwhile.
            return self.open(home);
        }
        for entry in entries {
            self.take_in(home, entry);
        }
        self.store(home);
        self.look(home);
    }

    fn take_in(&mut self, home: u16, entry: &Entry) {
        let (seq, said) = (entry.at.seq, said_by(entry));
        let Some(slot) = self.slots.get_mut(&home) else { return };
        slot.epoch = slot.epoch.max(entry.at.epoch);
        let mut env = Env { now: now(), rng: &mut self.rng };
        let touched = match &mut slot.core {
            Core::Follows(state) => state.apply(seq, said),
            Core::Reigns(_, core) => core.handle_committed(&mut env, wall(), seq, said),
            Core::Nothing => BTreeSet::new(),
        };
        slot.dirty.extend(touched);
        if let Core::Reigns(_, core) = &slot.core
            && core.state().untold() > 0
        {
            let tasks = core.state().untold();
            self.metrics.webhook_untold.inc_by(tasks);
            tracing::warn!(home, tasks, "a home keeps too many tasks: a webhook will not be told of some that ended");
        }
        self.drain(home);
        self.begin(home);
    }

    /// Stores rows that have changed, if nothing is being stored.
    fn store(&mut self, home: u16) {
        let Some(slot) = self.slots.get_mut(&home) else { return };
        let Some(state) = slot.state() else { return };
        let to = state.applied();
        if slot.storing || to <= slot.stored {
            return;
        }
        let changed = slot.dirty.iter().map(|touched| (touched.clone(), state.row(touched))).collect::<Vec<_>>();
        slot.dirty.clear();
        slot.storing = true;
        let (journals, generation) = (self.journals.clone(), slot.generation);
        self.done.spawn(async move {
            journals.home_applied(&journal_of(home), to, changed).await?;
            Ok((home, Done::Stored(generation, to)))
        });
    }

    /// The journal's replica orders the writes here from now on.
    pub(super) fn reigns(&mut self, home: u16, epoch: Epoch) {
        let slot = self.touch(home);
        if slot.reign.is_some_and(|known| known > epoch) {
            return;
        }
        if slot.reign.replace(epoch).is_some_and(|known| known < epoch) {
            self.end(home);
        }
        self.begin(home);
        self.look(home);
    }

    /// It does not any more, if its reign was this one or an earlier one.
    pub(super) fn deposed(&mut self, home: u16, epoch: Epoch) {
        let Some(slot) = self.slots.get_mut(&home) else { return };
        if slot.reign.is_some_and(|known| known <= epoch) {
            slot.reign = None;
            self.end(home);
        }
    }

    /// Begins to decide, once everything before the reign is known.
    fn begin(&mut self, home: u16) {
        let Some(slot) = self.slots.get_mut(&home) else { return };
        let Some(epoch) = slot.reign.filter(|epoch| slot.epoch >= *epoch) else { return };
        if !matches!(slot.core, Core::Follows(_)) {
            return;
        }
        let Core::Follows(state) = std::mem::replace(&mut slot.core, Core::Nothing) else { return };
        let mut env = Env { now: now(), rng: &mut self.rng };
        let core = Home::recover(&mut env, wall(), self.config.core.clone(), *state, self.hook.is_some());
        slot.core = Core::Reigns(epoch, Box::new(core));
        tracing::debug!(home, %epoch, "this member keeps the tasks of a home");
        self.drain(home);
    }

    /// Decides no more. Who waits asks somebody else.
    fn end(&mut self, home: u16) {
        let Some(slot) = self.slots.get_mut(&home) else { return };
        slot.core = match std::mem::replace(&mut slot.core, Core::Nothing) {
            Core::Reigns(_, home) => Core::Follows(Box::new(home.into_state())),
            other => other,
        };
        slot.asking.clear();
    }

    /// The copy of the home is of no use.
    pub(super) fn must_be_made_anew(&mut self, home: u16) {
        self.touch(home);
        self.end(home);
        let Some(slot) = self.slots.get_mut(&home) else { return };
        // What is on its way from the store is of no use either.
        self.generation += 1;
        (slot.core, slot.reign, slot.broken) = (Core::Nothing, None, true);
        (slot.generation, slot.reading) = (self.generation, false);
        self.copy_if_broken(home);
    }

    /// Has the copy made anew, but not before rows of the old one that are on their way to the store are there: they would
    /// come into the new one.
    fn copy_if_broken(&mut self, home: u16) {
        let Some(slot) = self.slots.get_mut(&home) else { return };
        if slot.broken && !slot.copying && !slot.storing {
            slot.copying = true;
            self.copy(home);
        }
    }

    /// Calls a home that reigns, and carries out what it wants.
    pub(super) fn call(&mut self, home: u16, ask: impl FnOnce(&mut Home, &mut Env<'_>, When)) {
        let Some(Core::Reigns(_, core)) = self.slots.get_mut(&home).map(|slot| &mut slot.core) else { return };
        ask(core, &mut Env { now: now(), rng: &mut self.rng }, wall());
        self.drain(home);
    }

    /// A question to a home.
    pub(super) fn question(&mut self, input: Input) {
        let Input { home, from, question, tell } = input;
        let slot = self.slots.get_mut(&home);
        let Some(Slot { core: Core::Reigns(epoch, core), asking, next_op, .. }) = slot else {
            // Whoever asked may have gone, here and below.
            drop(tell.send(self.homes.not_primary(home)));
            return;
        };
        let epoch = *epoch;
        *next_op += 1;
        let op = OpId(*next_op);
        let said = match question {
            Question::Page { query, from, take } => {
                let mut page = core.page(&query, from, take);
                cut(&mut page);
                Said::Page(page)
            }
            Question::Get(uid) => Said::Task(core.shown(uid).map(Box::new)),
            Question::Gone(uids) => Said::Gone(uids.into_iter().filter(|uid| !core.has(*uid)).collect()),
            Question::Known(key) => Said::Known(core.state().key(&key).map(|row| (row.uid, row.hash))),
            Question::Report(report) => {
                let (heard, wanted) = self.report(home, &from, report);
                Said::Heard(heard, wanted)
            }
            Question::Begun(uid, when) => {
                self.call(home, |core, _, _| core.handle_begun(uid, when));
                Said::Answer(Answer::Ended)
            }
            changes => {
                asking.insert(op, tell);
                return self.call(home, |core, env, wall| match changes {
                    Question::Head(uid, head) => core.handle_head(env, op, uid, *head),
                    Question::Void(uid) => core.handle_void(env, op, uid),
                    Question::Key { key, hash, uid, replaces } => {
                        core.handle_key(env, wall, op, (key, hash), uid, replaces);
                    }
                    Question::Outcome(uid, outcome) => core.handle_outcome(env, op, uid, *outcome),
                    Question::Sweep(by, action, filter) => core.handle_sweep(env, op, by, action, *filter),
                    // Answered above.
                    Question::Begun(..)
                    | Question::Report(_)
                    | Question::Page { .. }
                    | Question::Known(_)
                    | Question::Get(_)
                    | Question::Gone(_) => {}
                });
            }
        };
        drop(tell.send(Told::Home(epoch, said)));
    }
}
