//! Operations, driven with I/O: work that one member leads at a time, resumed by the next leader where it was recorded.
//!
//! | file | does |
//! | --- | --- |
//! | [`handle`] | what other services ask and watch |
//! | [`driver`] | the one task that runs the core |
//! | [`run`] | a phase under way: what it may do, and how it is carried out by its kind |
//! | [`orders`] | what a leader has ordered is checked by whoever receives it |
//! | [`alias_flip`] | the kind `alias_flip` |
//!
//! Must not know: how leases are held, how the ledger agrees.

pub mod alias_flip;
pub mod driver;
pub mod handle;
pub mod orders;
pub mod run;
#[cfg(test)]
mod tests;

pub use alias_flip::AliasFlips;
pub use driver::{Driver, Parts};
pub use handle::{OperationError, OperationsHandle, View, Wish};
pub use orders::Orders;
pub use run::{OrderFailed, Run, Runner};
