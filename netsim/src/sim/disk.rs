//! What a simulated member has on disk.
//!
//! A transaction is there as a whole or not at all, as with SQLite; one that was under way in a crash may be either. Must
//! not know: what rows mean.

use fastrand::Rng;
use miroir::proto::ledger::{Row, Stored};
use miroir::types::StoreId;

/// One member's disk.
#[derive(Debug)]
pub struct Disk {
    ledger: Stored,
    // An operator's copy of the files, and whether the files have been put back from one.
    backup: Option<Stored>,
    restored: bool,
}

impl Disk {
    /// An empty disk with a new store.
    pub fn new(rng: &mut Rng) -> Self {
        Self { ledger: Stored::new(StoreId(rng.u128(..).to_be_bytes())), backup: None, restored: false }
    }

    /// A new process begins: what it finds, with its counters gone up.
    pub fn begin(&mut self) -> Stored {
        self.ledger.begin();
        self.ledger.clone()
    }

    /// One transaction.
    pub fn commit(&mut self, rows: Vec<Row>) {
        rows.into_iter().for_each(|row| self.ledger.apply(row));
    }

    /// What lies there.
    pub fn ledger(&self) -> &Stored {
        &self.ledger
    }

    /// Whether the store is an earlier state of itself: what it says from now on is not to be believed.
    pub fn restored(&self) -> bool {
        self.restored
    }

    /// The operator takes a copy.
    pub fn back_up(&mut self) {
        if !self.restored {
            self.backup = Some(self.ledger.clone());
        }
    }

    /// Whether the operator has a copy that is not what lies there.
    pub fn has_older_copy(&self) -> bool {
        self.backup.as_ref().is_some_and(|copy| *copy != self.ledger)
    }

    /// The operator puts the copy back.
    pub fn restore(&mut self) {
        if let Some(copy) = self.backup.take() {
            self.ledger = copy;
            self.restored = true;
        }
    }
}
