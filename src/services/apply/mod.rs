//! Appliers, driven with I/O: committed entries of the shards that this member holds, into the own node.
//!
//! | file | does |
//! | --- | --- |
//! | [`driver`] | which indexes have an applier in memory; what each is to know |
//! | `board` | what an applier is to know of records, journals and the node: levels, not events |
//! | `index` | the one task that runs the applier of an index |
//! | `effects` | what an applier wants done |
//! | `news` | whether a majority is asked for the record before entries that name attributes are sent |
//! | `counts` | how many documents deletions find |
//! | `request` | entries as the body of one request |
//! | `node` | the node's tasks |
//! | `verdicts` | the verdicts of other members' nodes, asked of the shards' primaries |
//! | `take` | documents of single entries, taken from a primary |
//! | `outcomes` | what became of entries, for the homes of tasks |
//! | [`handle`] | what other services ask and hear |
//!
//! An index at rest has no applier in memory, no timer and no message. Must not know: how entries come into journals, what a task
//! of the mesh is.

mod board;
mod counts;
pub mod driver;
mod effects;
pub mod handle;
mod index;
mod news;
mod node;
mod outcomes;
mod request;
mod take;
#[cfg(test)]
mod tests;
mod verdicts;

pub use driver::{Config, Driver, Parts};
pub use handle::{ApplyHandle, Lag, Told};
pub(in crate::services) use node::other_tag;
pub(in crate::services) use take::{ended, fetch, ids_in};
