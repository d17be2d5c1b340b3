//! All rows of one store, as a value: what a process begins with.
//!
//! Rule: applying the rows of every drain in order gives what [`super::Ledger::recover`] needs, and nothing else does.
//! Must not know: SQL.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::effect::{FormingRow, RecoveringRow, Row};
use super::message::Process;
use super::stores::Seen;
use crate::types::limits::LEDGER_LINE_MAX;
use crate::types::{Ballot, MeshId, RecordKey, StoreId, Versioned, VoterList};

/// What a voter holds for one key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Register {
    /// The highest ballot that was promised or accepted.
    pub promise: Option<Ballot>,
    /// The value accepted last, with its ballot.
    pub accepted: Option<(Ballot, Versioned)>,
}

/// The durable state of one member's ledger.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// The store's id, drawn when it was made.
    pub store: StoreId,
    /// The process that works on it; begins at [`StoreId::first_start`].
    pub start: u64,
    /// Its transactions so far.
    pub count: u64,
    /// The mesh, and whether its record is known to be chosen.
    pub mesh: Option<(MeshId, bool)>,
    /// The newest voter list.
    pub list: Option<Arc<VoterList>>,
    /// Votes.
    pub registers: BTreeMap<RecordKey, Register>,
    /// Chosen values.
    pub copies: BTreeMap<RecordKey, Versioned>,
    /// Other stores.
    pub seen: BTreeMap<StoreId, Seen>,
    /// The processes on this store so far that have said anything: the last ones.
    pub line: Vec<Process>,
    /// The last that asked to make a mesh.
    pub forming: Option<FormingRow>,
    /// The order under which this member left its mesh.
    pub recovering: Option<RecoveringRow>,
    /// This store never votes again.
    pub rolled_back: bool,
}

impl Stored {
    /// A new, empty store.
    pub fn new(store: StoreId) -> Self {
        Self {
            store,
            start: store.first_start(),
            count: 0,
            mesh: None,
            list: None,
            registers: BTreeMap::new(),
            copies: BTreeMap::new(),
            seen: BTreeMap::new(),
            line: Vec::new(),
            forming: None,
            recovering: None,
            rolled_back: false,
        }
    }

    /// A new process takes over: both counters go up by one. That must be durable before the process does anything.
    pub fn begin(&mut self) {
        self.start += 1;
        self.count += 1;
    }

    /// Takes in one row.
    pub fn apply(&mut self, row: Row) {
        match row {
            Row::Count(count) => self.count = count,
            Row::Mesh { mesh, made } => self.mesh = Some((mesh, made)),
            Row::List(list) => self.list = Some(list),
            Row::Promise { key, ballot } => self.registers.entry(key).or_default().promise = Some(ballot),
            Row::Accepted { key, promise, ballot, record } => {
                let register = Register { promise: Some(promise), accepted: Some((ballot, record)) };
                self.registers.insert(key, register);
            }
            Row::Copy { key, record } => {
                self.copies.insert(key, record);
            }
            Row::Began(process) => push_process(&mut self.line, process),
            Row::Seen(seen) => {
                self.seen.insert(seen.store, seen);
            }
            Row::Unseen(store) => {
                self.seen.remove(&store);
            }
            Row::Forming(row) => self.forming = Some(row),
            Row::Recovering(row) => self.recovering = Some(row),
            Row::Reset => {
                self.registers.clear();
                self.list = None;
                self.recovering = None;
            }
            Row::RolledBack => self.rolled_back = true,
        }
    }
}

/// Adds the process that is at work from now on; so many before it are kept.
pub fn push_process(line: &mut Vec<Process>, process: Process) {
    line.push(process);
    let over = line.len().saturating_sub(LEDGER_LINE_MAX + 1);
    line.drain(..over);
}
