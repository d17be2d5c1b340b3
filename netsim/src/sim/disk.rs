//! What a simulated member has on disk.
//!
//! A transaction is there as a whole or not at all, as with SQLite; one that was under way in a crash may be either. Must
//! not know: what rows mean.

use std::collections::BTreeMap;

use fastrand::Rng;
use miroir::proto::ledger::{Row, Stored};
use miroir::types::{Epoch, Scope, StoreId};

/// What lies on a disk.
#[derive(Debug, Clone, PartialEq)]
struct Files {
    ledger: Stored,
    fences: BTreeMap<Scope, Epoch>,
}

/// One member's disk.
#[derive(Debug)]
pub struct Disk {
    files: Files,
    // An operator's copy of the files, and whether the files have been put back from one.
    backup: Option<Files>,
    restored: bool,
}

impl Disk {
    /// An empty disk with a new store.
    pub fn new(rng: &mut Rng) -> Self {
        let ledger = Stored::new(StoreId(rng.u128(..).to_be_bytes()));
        Self { files: Files { ledger, fences: BTreeMap::new() }, backup: None, restored: false }
    }

    /// A new process begins: what it finds, with its counters gone up.
    pub fn begin(&mut self) -> Stored {
        self.files.ledger.begin();
        self.files.ledger.clone()
    }

    /// One transaction of the ledger.
    pub fn commit(&mut self, rows: Vec<Row>) {
        rows.into_iter().for_each(|row| self.files.ledger.apply(row));
    }

    /// One transaction of highest epochs.
    pub fn raise(&mut self, fences: BTreeMap<Scope, Epoch>) {
        for (scope, epoch) in fences {
            let highest = self.files.fences.entry(scope).or_default();
            *highest = epoch.max(*highest);
        }
    }

    /// The highest epochs.
    pub fn fences(&self) -> &BTreeMap<Scope, Epoch> {
        &self.files.fences
    }

    /// What lies there.
    pub fn ledger(&self) -> &Stored {
        &self.files.ledger
    }

    /// Whether the store is an earlier state of itself: what it says from now on is not to be believed.
    pub fn restored(&self) -> bool {
        self.restored
    }

    /// The operator takes a copy.
    pub fn back_up(&mut self) {
        if !self.restored {
            self.backup = Some(self.files.clone());
        }
    }

    /// Whether the operator has a copy that is not what lies there.
    pub fn has_older_copy(&self) -> bool {
        self.backup.as_ref().is_some_and(|copy| *copy != self.files)
    }

    /// The operator puts the copy back.
    pub fn restore(&mut self) {
        if let Some(copy) = self.backup.take() {
            self.files = copy;
            self.restored = true;
        }
    }
}
