//! `netsim live`: a mesh of real processes, each member on a host of its own (a network namespace), under faults of links
//! and processes.
//!
//! Must not know: the members' insides. They are judged by what anybody could ask them, and by their logs.

mod disk;
mod faults;
mod forged;
mod holdings;
mod lab;
mod leaders;
mod members;
mod outside;
mod report;
mod run;
mod scenarios;
mod searches;
mod trial;
mod writes;

pub use run::{LiveArguments, run};
