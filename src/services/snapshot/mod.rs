//! Copies of shards, made anew from other members' while writes go on; see [`crate::proto::snapshot`].
//!
//! | file | does |
//! | --- | --- |
//! | [`driver`] | which copies are made, when that is heard |
//! | `fill` | carries out what one learner wants |
//! | `source` | answers learners |
//! | `node` | ids and documents of the own node |
//! | [`handle`] | what other services ask |
//!
//! That a copy is of no use is noted by its applier, or by its journal, before anything is done here, so that a process that
//! begins anew does all of it again and nobody is ever served half a copy. Must not know: who may be searched, records of indexes.

pub mod driver;
mod fill;
pub mod handle;
mod node;
mod source;

pub use driver::{Config, Driver, Parts};
pub use handle::SnapshotHandle;
