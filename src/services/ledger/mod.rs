//! The ledger, driven with I/O: one step after another, stored before anything of it is sent, answered or used.
//!
//! | file | does |
//! | --- | --- |
//! | [`handle`] | what other services ask and watch |
//! | [`driver`] | the one task that runs the core |
//! | [`outbox`] | what goes to peers, each on a way of its own |
//! | [`inbox`] | what comes from peers, bounded for each |
//! | [`registers`] | what other cores ask of the ledger, and its answers in their words |
//!
//! A message to or from a peer may be dropped at any of these: the core repeats what matters. Must not know: what a record
//! means, except the mesh's own.

pub mod driver;
pub mod handle;
pub mod inbox;
pub mod outbox;
pub mod registers;
#[cfg(test)]
mod tests;

pub use driver::{Driver, Parts};
pub use handle::{ChangeRequest, Copies, Follower, LedgerHandle, Recovery, Sighting, Status, nap, now, words};
