//! Work that exactly one member leads at a time, in named phases, each recorded before the next begins.
//!
//! The record of a scope's operations (`operation:<scope>`) says which phase is to be worked on. The holder of the scope's
//! lease writes its epoch into it first, which makes every earlier leader's expected version wrong, and goes on at the phase
//! that stands there. Anybody may begin, pause, resume or cancel by a change of the record.
//!
//! | file | rule |
//! | --- | --- |
//! | `kind` | what a kind of operation is: phases, steps, undo; and the guard that a step asks before each effect |
//! | `record` | which changes of the record are allowed, as functions |
//! | `core` | what is asked of the ledger and of the driver, and when |
//!
//! Must not know: leases' inner life, how steps are carried out, any one kind.

mod core;
mod kind;
mod record;

#[cfg(test)]
mod tests;

pub use core::{Effect, Operations, RequestId};
pub use kind::{Guard, Kind, Operation, Outcome, Step, record_key, scope_of_record};
pub use record::{Request, RequestError};
