//! Leases, driven with I/O: what this member leads, who leads the rest, and which orders are stale.
//!
//! | file | does |
//! | --- | --- |
//! | [`handle`] | what other services ask and watch |
//! | [`driver`] | the one task that runs the core |
//! | [`view`] | what is known at one moment |
//!
//! Must not know: what is done under a lease, how the ledger agrees.

pub mod driver;
pub mod handle;
#[cfg(test)]
mod tests;
pub mod view;

pub use driver::{Driver, Inputs, Parts};
pub use handle::{LeaseHandle, OrderError, Tenure};
pub use view::{Row, View};
