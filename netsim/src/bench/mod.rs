//! `netsim bench`: what a mesh costs against a single node, as ratios measured side by side.
//!
//! Numbers of one machine at one minute mean little; ratios of requests sent alternately mean more, and each table shows
//! what the same measurement says of a node against itself. Must not know: how processes are started (`mesh`).

mod lane;
mod machines;
mod measure;
mod queries;
mod report;
mod run;
mod writes;

pub use run::{BenchArguments, run};
