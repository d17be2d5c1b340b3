//! `netsim sim` and `netsim replay`: the cores under faults, in virtual time, everything from one seed.
//!
//! Run *i* has seed S + *i*. Exit codes: 0 all passed, 2 a property does not hold, 3 no progress after healing, 4 a crash.

mod clock;
mod command;
mod disk;
mod faults;
mod invariants;
mod leading;
mod member;
mod network;
mod operating;
mod run;
mod swarm;
mod trace;
mod world;

pub use command::{ReplayArguments, SimArguments, replay, sim};
