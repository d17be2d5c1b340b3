//! What a primary knows beside the journal: who has reported what. All of it can be asked for again.
//!
//! Must not know: what follows from it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::when::When;
use super::effect::OpId;
use super::entry::HomeEntry;
use super::judge::Reports;
use super::parts::{PartRef, Work};
use super::state::{Row, Swept};
use crate::proto::env::Instant;
use crate::types::PhysicalIndex;

/// How often the pause between two questions doubles.
const PAUSE_GROWTH: u32 = 16;

/// Of a task that has not ended.
#[derive(Debug, Clone)]
pub(super) struct Soft {
    /// Of which it is about parts.
    pub(super) index: Option<PhysicalIndex>,
    pub(super) reports: Reports,
    /// Committed, as far as was heard.
    pub(super) there: BTreeSet<PartRef>,
    /// Refused by their shards.
    pub(super) refused: BTreeSet<PartRef>,
    /// Its order was refused.
    pub(super) order_refused: bool,
    /// Somebody carries its order out.
    pub(super) order_there: bool,
    /// When it was begun.
    pub(super) begun: Option<When>,
    /// What homes found.
    pub(super) swept: BTreeMap<u16, Swept>,
    /// When it is given up if parts are missing.
    pub(super) deadline: Instant,
    /// When to look again.
    pub(super) due: Instant,
    pause: Duration,
    first: Duration,
    /// It was looked at soon once.
    pub(super) hurried: bool,
}

impl Soft {
    pub(super) fn new(index: Option<PhysicalIndex>, deadline: Instant, due: Instant, pause: Duration) -> Self {
        Self {
            index,
            reports: Reports::new(),
            there: BTreeSet::new(),
            refused: BTreeSet::new(),
            order_refused: false,
            order_there: false,
            begun: None,
            swept: BTreeMap::new(),
            deadline,
            due,
            pause,
            first: pause,
            hurried: false,
        }
    }

    /// Whether it is known what became of a part.
    pub(super) fn knows(&self, part: PartRef) -> bool {
        self.there.contains(&part) || self.refused.contains(&part) || self.reports.contains_key(&part)
    }

    /// Puts the next look off, each time longer.
    pub(super) fn put_off(&mut self, now: Instant) {
        self.due = now.plus(self.pause);
        self.pause = (self.pause * 2).min(self.first * PAUSE_GROWTH);
    }

    /// Looks again soon.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.pause = self.first;
        self.due = now;
        self.hurried = true;
    }

    /// Parts done by somebody, of all.
    pub(super) fn progress(&self, row: &Row) -> Option<(u64, u64)> {
        match &row.head.work {
            Work::Parts { parts, .. } => Some((self.reports.len() as u64, parts.len())),
            _ => None,
        }
    }
}

/// An entry on its way into the journal.
#[derive(Debug, Clone)]
pub(super) struct Flight {
    pub(super) entry: HomeEntry,
    /// When it is appended again.
    pub(super) again: Instant,
    /// Known to be committed here, and not applied yet.
    pub(super) committed: Option<u64>,
    /// Who waits for it.
    pub(super) ops: Vec<OpId>,
}
