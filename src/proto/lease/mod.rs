//! Who leads a scope, until when, and which orders are too old to be carried out.
//!
//! A lease is a ledger value. Its holder writes a number never used before into it every few seconds; whoever sees the same
//! number for a whole TTL and a margin on its own clock may write itself in, with a higher epoch, if what it saw still
//! stands there. The holder counts its time from before it sent the number that stands there now, less the margin, so it
//! stops by itself before anybody else can begin.
//!
//! | file | rule |
//! | --- | --- |
//! | `core` | what the core is told, and what follows from it |
//! | `act` | what is asked of the ledger, and when |
//! | `view` | what the member may ask |
//! | `holder` | the own side: attempts, what each proves, until when |
//! | `watcher` | the others' side: what was seen since when, and from when a lease may be taken |
//! | `fences` | highest epochs, stored before they are used; stale orders are refused |
//! | `rank` | in which order members try, so that standing scopes are spread |
//!
//! Must not know: how the ledger agrees, how gossip travels, what is done under a lease.

mod act;
mod core;
mod effects;
mod fences;
mod holder;
pub mod rank;
mod view;
mod watcher;

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

pub use core::{LeaseCore, WantError};
pub use effects::{Config, Counts, Effect, Eligible, LostWhy};
pub use fences::{Fences, OrderRefusal};
pub use view::{Lapse, LeaseRow};
