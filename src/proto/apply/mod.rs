//! The applier: committed entries of all shards of an index, in order, into the own node.
//!
//! The node takes requests into its queue and works on them later, many in one batch; a request may be lost, its answer too,
//! and a batch fails as a whole because of one bad document. The applier notes each request before it is sent, and believes
//! only what the node's own list of tasks proves.
//!
//! | file | decides |
//! | --- | --- |
//! | `core` | what the applier is told, and whether something is sent |
//! | `lane` | what of one shard goes next |
//! | `merge` | which entries go in one request |
//! | [`notes`] | what is remembered of requests, and what a list of tasks proves about them |
//! | `reading` | when the node's tasks are looked at; lost answers, late ones, lost memory |
//! | `redo` | positions and verdicts; what is applied again after a failure |
//! | [`verdict`] | which errors are an entry's own fault |
//! | [`effect`] | what comes in, what goes out, what is durable |
//! | [`invariant`] | what must hold |
//!
//! Inputs and effects follow the contract of [`crate::proto`]. Must not know: bodies, how documents look, HTTP, SQL, which
//! member is the primary.

mod core;
pub mod effect;
pub mod invariant;
mod lane;
mod merge;
pub mod notes;
mod reading;
mod redo;
#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;
pub mod verdict;

pub use core::Applier;
pub use effect::{
    Answer, Config, Copied, Effect, Group, Head, Listed, Page, Probed, Request, Rows, Standing, Status, Stop, Stored,
    Tag,
};
pub use notes::{Note, Span, TaskRef};
pub use verdict::{Flaw, Outcome};
