//! What one replica of the small world has made durable, and what its node has applied.
//!
//! Rule: rows are applied whole and in order, as a store does it: the real one is compared with it. Must not know: why.

use std::collections::BTreeMap;

use crate::proto::journal::effect::{Rows, Stored};
use crate::proto::journal::entry::{Entry, Stands};
use crate::proto::journal::log::StoredLog;
use crate::types::{Epoch, Position, TaskPart};

/// What one replica has made durable, and what its node has applied.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    pub entries: BTreeMap<u64, Entry>,
    pub parts: BTreeMap<TaskPart, Stands>,
    pub floor: Position,
    pub epoch: Epoch,
    pub commit: u64,
    pub rebuild: bool,
    pub applied: Vec<Position>,
}

impl Disk {
    pub fn last(&self) -> u64 {
        self.entries.keys().next_back().copied().unwrap_or(self.floor.seq)
    }

    pub fn has(&self, seq: u64) -> Option<Position> {
        self.entries.get(&seq).map(|e| e.at)
    }

    pub fn applied_to(&self) -> u64 {
        self.applied.last().map_or(0, |at| at.seq)
    }

    pub fn apply(&mut self, rows: Rows, copy: Option<Copied>) {
        if let Some(at) = rows.begin_at {
            let (applied, parts) = copy.expect("a snapshot was taken");
            *self = Self { floor: at, commit: at.seq, applied, parts, ..Self::default() };
        }
        self.epoch = self.epoch.max(rows.epoch);
        if let Some(seq) = rows.drop_from {
            assert!(seq > self.applied_to(), "what is applied is dropped");
            self.entries.split_off(&seq);
            self.parts.retain(|_, at| at.seq < seq);
        }
        for entry in rows.entries {
            assert_eq!(entry.at.seq, self.last() + 1, "a gap in the store");
            if let Some(part) = entry.part {
                self.parts.insert(part, entry.stands());
            }
            self.entries.insert(entry.at.seq, entry);
        }
        self.commit = self.commit.max(rows.commit);
        if let Some(floor) = rows.floor {
            assert!(floor.seq <= self.applied_to(), "an entry goes that the node here has not applied");
            self.entries = self.entries.split_off(&(floor.seq + 1));
            self.floor = floor;
        }
        self.rebuild = rows.rebuild;
    }

    pub fn stored(&self, tail: usize) -> Stored {
        let mut marks: Vec<Position> = Vec::new();
        for entry in self.entries.values() {
            if marks.last().is_none_or(|mark| mark.epoch < entry.at.epoch) {
                marks.push(entry.at);
            }
        }
        let tail: Vec<Entry> = self.entries.values().rev().take(tail).rev().cloned().collect();
        let first = tail.first().map_or(u64::MAX, |e| e.at.seq);
        let older = self.parts.iter().filter(|(_, at)| at.seq < first).map(|(part, _)| part.task).max();
        let commit = self.commit.max(self.applied_to());
        let log = StoredLog { floor: self.floor, marks, last: self.last(), commit, tail, older };
        Stored { epoch: self.epoch, log, applied: self.applied_to(), rebuild: self.rebuild }
    }
}

/// What a node has applied and which parts that was: a snapshot.
pub type Copied = (Vec<Position>, BTreeMap<TaskPart, Stands>);
