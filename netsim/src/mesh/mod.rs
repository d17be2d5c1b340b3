//! A mesh of real processes on this machine: nodes, sidecars, certificates and configs, for `demo` and `bench`.
//!
//! Must not know: what is tried with it.

mod child;
mod documents;
mod http;
mod launch;
mod load;
mod options;
mod ports;
mod stop;

pub use child::say;
pub use documents::Documents;
pub use http::Client;
pub use launch::{Mesh, SIDECAR_COMMAND, SingleNode};
pub use load::{create_index, load, task_uid, wait_for_task};
pub use options::{MeshOptions, NodeChoice};
pub use stop::Stop;
