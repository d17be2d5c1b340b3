//! What a replica wants done.
//!
//! Rule: stores go to the queue of stores, in order; everything else of a step may be done at once, because a replica sends
//! nothing that rests on a store before it was told of it. Must not know: what a replica is told.

use super::driver::{Done, Driver};
use super::handle::Event;
use super::inbox::Envelope;
use super::slots::Slot;
use super::storing::StoredNow;
use crate::proto::journal::{Effect, election};
use crate::types::{Epoch, JournalKey, TaskPart};

impl Driver {
    /// Carries out everything that a replica wants.
    pub(super) fn drain(&mut self, key: &JournalKey) {
        loop {
            let Some(Slot::Open(open)) = self.slots.get_mut(key) else { return };
            let Some(effect) = open.replica.poll_effect() else { break };
            self.carry_out(key, effect);
        }
        self.settle(key);
    }

    fn carry_out(&mut self, key: &JournalKey, effect: Effect) {
        match effect {
            Effect::Store { token, rows } => {
                let Some(Slot::Open(open)) = self.slots.get_mut(key) else { return };
                open.storing += 1;
                open.commit_stored = open.commit_stored.max(rows.commit);
                if rows.drop_from.is_some() || rows.begin_at.is_some() {
                    open.dropping = Some(token);
                }
                let parts = if rows.begin_at.is_some() { std::mem::take(&mut open.parts) } else { Vec::new() };
                if let Some(at) = rows.begin_at {
                    self.replaced = true;
                    self.shared.forget(key);
                    self.shared.tell(Event::Committed(key.clone(), at.seq));
                }
                self.storing.push(key.clone(), rows, parts, Some((open.generation, token)));
            }
            Effect::Send { to, message } => self.outbox.send(&to, Envelope { key: key.clone(), message }),
            Effect::Answer { op, answer } => self.answers.answer(op, answer),
            Effect::Committed { to } => self.shared.tell(Event::Committed(key.clone(), to)),
            Effect::Reigns { epoch } => {
                tracing::debug!(journal = %key, %epoch, "this member orders the writes of a shard");
                self.shared.tell(Event::Reigns(key.clone(), epoch));
            }
            Effect::Deposed { epoch } => {
                tracing::debug!(journal = %key, %epoch, "this member does not order the writes of a shard any more");
                self.shared.tell(Event::Deposed(key.clone(), epoch));
            }
            Effect::Ask(change) => {
                let (seen, min) = (&self.seen_now, self.config.core.min_in_sync);
                let state = self.state(key);
                let better = state.and_then(|s| election::instead(s, &change, &seen.reach, &seen.known, min));
                self.asks.ask(key.clone(), better.unwrap_or(change));
            }
            Effect::Load { member, from, entries, bytes } => {
                let (generation, store, key) = (self.reads(key), self.store.clone(), key.clone());
                self.done.spawn(async move {
                    let read = store.load(&key, from, entries, bytes).await;
                    Ok(Done::Loaded(key, generation, member, read))
                });
            }
            Effect::Find { epoch, part } => self.find(key, epoch, part),
            Effect::NeedsSnapshot { replica } => self.shared.tell(Event::NeedsSnapshot(key.clone(), replica)),
            Effect::Rebuild => {
                tracing::warn!(journal = %key, "the copy of a shard must be made anew");
                self.shared.tell(Event::Rebuild(key.clone()));
                self.broken.insert(key.clone());
                self.look_at(&key.index);
            }
            Effect::Broken { member, what } => {
                tracing::error!(journal = %key, %member, what, "a replica breaks the rules; nothing was done");
            }
        }
    }

    /// Looks for a part, after the stores that drop others are durable: where a part stood that was dropped, another entry may
    /// stand now.
    fn find(&mut self, key: &JournalKey, epoch: Epoch, part: TaskPart) {
        if let Some(Slot::Open(open)) = self.slots.get_mut(key)
            && open.dropping.is_some()
        {
            open.finds.push((epoch, part));
            return;
        }
        let (generation, store, key) = (self.reads(key), self.store.clone(), key.clone());
        self.done.spawn(async move {
            let read = store.find(&key, part).await;
            Ok(Done::Found(key, generation, (epoch, part), read))
        });
    }

    /// Stores up to `token` are durable.
    pub(super) fn was_stored(&mut self, key: &JournalKey, stored: StoredNow) {
        let Some(Slot::Open(open)) = self.slots.get_mut(key) else { return };
        if open.generation != stored.generation {
            return;
        }
        open.storing -= stored.count;
        if open.dropping.is_some_and(|token| token <= stored.token) {
            open.dropping = None;
            for (epoch, part) in std::mem::take(&mut open.finds) {
                self.find(key, epoch, part);
            }
        }
        self.call(key, |replica, env| replica.handle_stored(env, stored.token));
    }

    /// A read of the store begins; gives the replica's generation.
    fn reads(&mut self, key: &JournalKey) -> u64 {
        match self.slots.get_mut(key) {
            Some(Slot::Open(open)) => {
                open.reading += 1;
                open.generation
            }
            _ => 0,
        }
    }

    /// A read has ended; says whether its replica is still there.
    pub(super) fn was_read(&mut self, key: &JournalKey, generation: u64) -> bool {
        match self.slots.get_mut(key) {
            Some(Slot::Open(open)) if open.generation == generation => {
                open.reading -= 1;
                true
            }
            _ => false,
        }
    }
}
