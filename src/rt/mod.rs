//! Running and stopping: signals and limits of the operating system, tasks, and the phases of a shutdown.
//!
//! Must not know: what is shut down.

pub mod clock;
mod essential;
pub mod files;
mod shutdown;
mod signals;
mod under_way;

pub use essential::{Ending, Essential};
pub use shutdown::{Phase, Shutdown, Trigger};
pub use signals::{Signal, Signals};
pub use under_way::{Counted, UnderWay};
