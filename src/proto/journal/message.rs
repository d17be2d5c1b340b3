//! What the replicas of one shard say to each other.
//!
//! Rule: every message names the store that it is meant for, the one it comes from, and a reign: an append its own, an answer
//! the one that it answers to. Messages may be lost, repeated, delayed and reordered. Must not know: which shard, or how
//! messages of several shards travel together.

use serde::{Deserialize, Serialize};

use super::entry::Entry;
use crate::types::{Epoch, Position, StoreId};

/// Most entries of one append.
pub const APPEND_ENTRIES_MAX: usize = 512;
/// Most bytes of one append, unless it is of one entry.
pub const APPEND_MAX_BYTES: usize = 1 << 20;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The store that is meant; with another one it is not for this replica.
    pub to: StoreId,
    /// The sender's store.
    pub from: StoreId,
    /// The reign.
    pub epoch: Epoch,
    /// What is said.
    pub said: Said,
}

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Said {
    /// The primary: these entries stand right behind `prev`.
    Append {
        /// The entry before them.
        prev: Position,
        /// In order; none: a question whether `prev` is there, and news of what is committed.
        entries: Vec<Entry>,
        /// Up to here entries are committed; `None` while the primary does not know.
        commit: Option<u64>,
        /// Up to here nobody needs entries any more.
        free: u64,
    },
    /// The primary: with a journal that is known to be committed only before this, only a snapshot helps.
    Behind {
        /// Where the primary's journal begins, or what it lacks.
        floor: u64,
    },
    /// The journal is the same as the primary's up to here, and durable.
    Stored {
        /// Up to here.
        to: u64,
        /// Up to here the replica knows entries to be committed.
        commit: u64,
        /// Up to here its node has applied them.
        applied: u64,
    },
    /// `prev` is not there, or was dropped at the beginning.
    Missing {
        /// Where the two journals may meet; behind `prev` only if it is known to be committed.
        have: Position,
    },
    /// The message's epoch is the higher one that the replica has seen; `seen` is what it refuses.
    Stale {
        /// The refused reign.
        seen: Epoch,
    },
    /// The journal contradicts what is committed here, or the copy is being made anew.
    NeedsSnapshot,
    /// The replica has more entries than it knows to be committed, and has heard nothing for a while: it may be another process
    /// than the one that was told.
    Unsure {
        /// Up to here it knows entries to be committed.
        commit: u64,
    },
}

/// Why a message is not even looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// More entries or bytes than an append may have.
    #[error("an append is larger than its bounds")]
    Large,
    /// Entries that don't run on, or are newer than the reign that sends them.
    #[error("the entries of an append do not run on")]
    Gap,
    /// An entry that no primary appends.
    #[error("an entry is not well formed")]
    Entry,
}

impl Message {
    /// Looks at what a peer could have got wrong.
    ///
    /// # Errors
    /// The first thing found.
    pub fn check(&self) -> Result<(), MessageError> {
        let Said::Append { prev, entries, .. } = &self.said else { return Ok(()) };
        let bytes: usize = entries.iter().map(Entry::weight).sum();
        if entries.len() > APPEND_ENTRIES_MAX || (bytes > APPEND_MAX_BYTES && entries.len() > 1) {
            return Err(MessageError::Large);
        }
        let mut before = *prev;
        for entry in entries {
            if before.seq.checked_add(1) != Some(entry.at.seq) || entry.at.epoch < before.epoch {
                return Err(MessageError::Gap);
            }
            if !entry.is_well_formed() {
                return Err(MessageError::Entry);
            }
            before = entry.at;
        }
        if before.epoch > self.epoch { Err(MessageError::Gap) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epoch: u64, seq: u64) -> Position {
        Position { epoch: Epoch::new(epoch).unwrap(), seq }
    }

    fn append(prev: Position, places: &[Position]) -> Message {
        let entries = places.iter().map(|at| Entry::empty(*at)).collect();
        let said = Said::Append { prev, entries, commit: None, free: 0 };
        Message { to: StoreId([1; 16]), from: StoreId([2; 16]), epoch: Epoch::new(3).unwrap(), said }
    }

    #[test]
    fn entries_run_on_and_are_not_newer_than_their_sender() {
        assert_eq!(append(at(1, 4), &[at(1, 5), at(3, 6)]).check(), Ok(()));
        assert_eq!(append(at(1, 4), &[at(1, 6)]).check(), Err(MessageError::Gap));
        assert_eq!(append(at(2, 4), &[at(1, 5)]).check(), Err(MessageError::Gap));
        assert_eq!(append(at(1, 4), &[at(4, 5)]).check(), Err(MessageError::Gap));
        assert_eq!(append(at(4, 4), &[]).check(), Err(MessageError::Gap));
        assert_eq!(append(at(1, u64::MAX), &[at(1, 0)]).check(), Err(MessageError::Gap));
        let many: Vec<_> = (1..=513).map(|seq| at(1, seq)).collect();
        assert_eq!(append(at(0, 0), &many).check(), Err(MessageError::Large));
        let mut bad = append(at(1, 4), &[at(1, 5)]);
        let Said::Append { entries, .. } = &mut bad.said else { panic!("an append") };
        entries[0].kind = super::super::entry::Kind::Clear;
        assert_eq!(bad.check(), Err(MessageError::Entry));
    }
}
