//! Shard journals, driven with I/O: the replicas that this member holds by the records, one input at a time.
//!
//! | file | does |
//! | --- | --- |
//! | [`handle`] | what other services ask and hear |
//! | [`driver`] | the one task that runs the replicas: what it hears, and when |
//! | `slots` | which replicas are in memory |
//! | `effects` | what a replica wants done |
//! | `storing` | what waits for the store, one transaction after the other |
//! | `answers` | whose answer an operation's is |
//! | `records` | who holds what, and changes of that |
//! | `elections` | who becomes primary, and who writes it |
//! | `membership` | copies of members that have another store, or belong to the mesh no more |
//! | [`inbox`], [`outbox`] | messages of peers, bounded for each |
//! | [`retention`] | how long entries are kept |
//! | [`sender`] | parts of a request on their way to their primaries, until each is committed |
//!
//! A message may be dropped on any of its ways: the cores repeat what matters. An idle shard has no replica in memory, no
//! timer and no message. Must not know: what a body says, the node.

mod answers;
pub mod driver;
mod effects;
mod elections;
pub mod handle;
pub mod inbox;
mod membership;
pub mod outbox;
mod records;
pub mod retention;
pub mod sender;
mod slots;
mod storing;
#[cfg(test)]
mod tests;

pub use crate::proto::journal::sight::{self, Seen};
pub use driver::{Config, Driver, Parts};
pub use handle::{Event, JournalHandle, ShardStatus};
pub use inbox::Envelope;
pub use records::{AskError, CreateError, RetireError};
pub use retention::Retention;
pub use sender::{NotReady, Sender};
