//! `netsim demo`: a mesh of real processes in one command.
//!
//! Must not know: how processes are started (`mesh`).

mod progress;
mod run;
mod show;

pub use run::{DemoArguments, run};
