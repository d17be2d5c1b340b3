//! The ledger as the cores above it see it: named registers, changed by expected version, read, and answered for.
//!
//! An answer tells what is true of the register, never how it was agreed on. `Unknown` is not a failure: the change may
//! still take effect, also after a later read. Must not know: ballots, voters, transports.

use std::sync::Arc;

/// Names one change or read of one core in one process; answers carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// A value that the members have agreed on, with its version (from 1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// Counts the changes of the register.
    pub version: u64,
    /// JSON text.
    pub value: Arc<str>,
}

/// One change that a core asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// To be named by the answer.
    pub op: OpId,
    /// The register.
    pub key: String,
    /// The version that must stand there; 0: nothing yet.
    pub expected: u64,
    /// JSON text.
    pub value: Arc<str>,
    /// Not pushed to all members: a renewal.
    pub quiet: bool,
}

/// One linearizable read that a core asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// To be named by the answer.
    pub op: OpId,
    /// The register.
    pub key: String,
}

/// What became of a change or a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The change took effect as this version.
    Changed {
        /// The version that the change made.
        version: u64,
    },
    /// Another version stood there; maybe made by an earlier change of the same core. `None`: nothing stands there.
    Conflict {
        /// What stands there.
        current: Option<Chosen>,
    },
    /// What stood there at some instant between the asking and the answer.
    Read {
        /// What stood there.
        current: Option<Chosen>,
    },
    /// Nobody can say; the change may have taken effect, or may yet.
    Unknown,
    /// There was no majority, and nothing was done or will be.
    NoQuorum,
}
