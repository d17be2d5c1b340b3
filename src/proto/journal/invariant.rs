//! What must hold across all replicas of one shard, as predicates for tests, simulator and model.
//!
//! | name | holds |
//! | --- | --- |
//! | `one_primary_per_epoch` | of an epoch there is one primary process |
//! | `one_entry_per_place` | under one epoch and number there is one entry, for ever |
//! | `committed_agree` | what two replicas hold as committed under one number is the same |
//! | `a_part_stands_once` | a part of a task, or its refusal, is committed under one number |
//! | `acknowledged_is_committed` | what a sender was told to stand is committed, under the number it was told |
//! | `acknowledged_is_kept` | every later primary has every acknowledged entry, unless its loss was accepted |
//!
//! Rule: nothing here changes anything. It grows without bound. Must not know: how replicas work.

use std::collections::BTreeMap;

use super::entry::{Entry, Stands};
use crate::types::{Epoch, Holder, Position, TaskPart};

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{invariant} is broken: {saw}")]
pub struct Broken {
    /// Its name.
    pub invariant: &'static str,
    /// What was seen, for people.
    pub saw: String,
}

fn broken(invariant: &'static str, saw: String) -> Result<(), Broken> {
    Err(Broken { invariant, saw })
}

/// Everything that was ever appended, committed and acknowledged in one shard.
#[derive(Debug, Clone, Default)]
pub struct History {
    primaries: BTreeMap<Epoch, Holder>,
    entries: BTreeMap<Position, Entry>,
    committed: BTreeMap<u64, Position>,
    parts: BTreeMap<TaskPart, u64>,
    /// With the first reign that acknowledged it.
    acknowledged: BTreeMap<u64, (Position, Epoch)>,
    /// Reigns before this one may lose what they acknowledge.
    loss: Epoch,
}

impl History {
    /// A process works as primary.
    ///
    /// # Errors
    /// [`Broken`] if another one did under this epoch.
    pub fn reigns(&mut self, epoch: Epoch, primary: &Holder) -> Result<(), Broken> {
        let known = self.primaries.entry(epoch).or_insert_with(|| primary.clone());
        if known != primary {
            return broken("one_primary_per_epoch", format!("{known:?} and {primary:?} in {epoch}"));
        }
        Ok(())
    }

    /// An entry is in some journal, or on its way to one.
    ///
    /// # Errors
    /// [`Broken`] if another one had its place.
    pub fn appended(&mut self, entry: &Entry) -> Result<(), Broken> {
        let known = self.entries.entry(entry.at).or_insert_with(|| entry.clone());
        if known != entry {
            return broken("one_entry_per_place", format!("{known:?} and {entry:?}"));
        }
        Ok(())
    }

    /// A replica whose highest epoch is `known` holds an entry as committed.
    ///
    /// # Errors
    /// [`Broken`] if another one holds another entry so, or if the part is committed under another number.
    pub fn committed(&mut self, known: Epoch, at: Position) -> Result<(), Broken> {
        if known < self.loss {
            return Ok(());
        }
        let before = *self.committed.entry(at.seq).or_insert(at);
        if before != at {
            return broken("committed_agree", format!("{before} and {at}"));
        }
        if let Some(part) = self.entries.get(&at).and_then(|e| e.part) {
            let seq = *self.parts.entry(part).or_insert(at.seq);
            if seq != at.seq {
                return broken("a_part_stands_once", format!("{part} at {seq} and {at}"));
            }
        }
        Ok(())
    }

    /// A sender was told by the primary of `reign` that this stands committed under its part.
    ///
    /// # Errors
    /// [`Broken`] if it is not.
    pub fn acknowledged(&mut self, reign: Epoch, part: TaskPart, stands: Stands) -> Result<(), Broken> {
        let seq = stands.seq;
        if reign < self.loss {
            return Ok(());
        }
        match self.committed.get(&seq) {
            Some(at) if self.entries.get(at).is_some_and(|e| e.part == Some(part) && e.stands() == stands) => {
                let first = self.acknowledged.entry(seq).or_insert((*at, reign));
                first.1 = first.1.min(reign);
                Ok(())
            }
            seen => broken("acknowledged_is_committed", format!("{part} at {stands:?}, where {seen:?} is committed")),
        }
    }

    /// A process begins to work as primary; its journal begins behind `floor`, and `has` tells what stands in it.
    ///
    /// # Errors
    /// [`Broken`] if an acknowledged entry is missing.
    pub fn begins(&self, epoch: Epoch, floor: u64, has: impl Fn(u64) -> Option<Position>) -> Result<(), Broken> {
        if epoch < self.loss {
            return Ok(());
        }
        // What was dropped at the beginning was committed and applied before.
        let earlier = self.acknowledged.range(floor + 1..).filter(|(_, (_, reign))| *reign < epoch);
        for (seq, (at, _)) in earlier {
            if has(*seq) != Some(*at) {
                return broken("acknowledged_is_kept", format!("{at} is {:?} for the primary of {epoch}", has(*seq)));
            }
        }
        Ok(())
    }

    /// An operator made a replica primary: what only others have is given up.
    pub fn loss_accepted(&mut self, epoch: Epoch, floor: u64, has: impl Fn(u64) -> Option<Position>) {
        self.loss = epoch;
        let kept = |seq: u64, at: Position| seq <= floor || has(seq) == Some(at);
        self.committed.retain(|seq, at| kept(*seq, *at));
        self.acknowledged.retain(|seq, (at, _)| kept(*seq, *at));
        let committed = &self.committed;
        self.parts.retain(|_, seq| committed.contains_key(seq));
    }

    /// Reigns before this one may lose what they acknowledge.
    pub fn loss(&self) -> Epoch {
        self.loss
    }

    /// What is committed, in order.
    pub fn all_committed(&self) -> &BTreeMap<u64, Position> {
        &self.committed
    }

    /// Where a part is committed.
    pub fn place_of(&self, part: TaskPart) -> Option<u64> {
        self.parts.get(&part).copied()
    }

    /// How many acknowledged entries there are.
    pub fn acknowledgements(&self) -> usize {
        self.acknowledged.len()
    }
}
