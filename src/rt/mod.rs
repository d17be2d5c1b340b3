//! Running and stopping: signals of the operating system and the phases of a shutdown.
//!
//! Must not know: what is shut down.

mod shutdown;
mod signals;

pub use shutdown::{Phase, Shutdown, Trigger};
pub use signals::{Signal, Signals};
