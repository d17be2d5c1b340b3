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

pub use child::say;
pub use documents::Documents;
pub use http::{Answer, Client};
pub use launch::{Mesh, SIDECAR_COMMAND, SingleNode};
pub use load::{Progress, create_index, load};
pub use options::{MeshOptions, NodeChoice};
