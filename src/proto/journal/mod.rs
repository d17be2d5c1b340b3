//! The shard journal: one order for the writes of a shard, stored by every replica in sync before anybody is told.
//!
//! One [`Replica`] is one copy of one shard. The record says who is the primary; the primary gives each write its place and
//! sends it to all; what all in sync have stored is committed, and stands in the journal of every later primary, because
//! only members in sync are elected.
//!
//! | file | decides |
//! | --- | --- |
//! | [`record`] | which changes of a shard's state the index record takes |
//! | [`entry`] | what an entry is, and when its effect depends on what a document was |
//! | [`log`] | where entries stand, whether others fit, what must not be dropped |
//! | [`replica`] | what a replica is told, and its role |
//! | `follower` | what it takes from a primary, and what it confirms |
//! | `primary`, `peer` | places, what is committed, how each replica is kept up |
//! | `in_sync` | who comes into the in-sync set and who leaves it |
//! | [`sight`] | who is seen to live, and who reaches whom |
//! | [`election`] | who becomes primary, and who writes it |
//! | [`ordered`] | the primary that an operator orders, and what is given up with it |
//! | [`membership`] | what follows when a member has another store, or belongs to the mesh no more |
//! | [`message`], [`effect`] | what comes in, what goes out, what is durable |
//! | [`invariant`] | what must hold across replicas |
//!
//! Inputs and effects follow the contract of [`crate::proto`], but a store is told when it is durable, so that a primary's own
//! store and those of the others work at the same time: see [`effect`]. Must not know: documents, nodes, how
//! messages of several shards travel together, how the record is agreed on.

pub mod effect;
pub mod election;
pub mod entry;
mod follower;
mod in_sync;
pub mod invariant;
pub mod log;
pub mod membership;
pub mod message;
pub mod ordered;
mod peer;
mod primary;
pub mod record;
pub mod replica;
pub mod sight;
#[cfg(test)]
pub(crate) mod simulated;
#[cfg(test)]
mod tests;

pub use effect::{Alive, Answer, Config, Effect, Hint, OpId, Rest, Rows, Sight, Stored};
pub use entry::{Body, Entry, Kind, Stands, Write};
pub use message::{Message, Said};
pub use replica::Replica;
