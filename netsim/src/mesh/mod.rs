//! A mesh of real processes on this machine: nodes, sidecars, certificates and configs, for `demo`, `bench` and `live`.
//!
//! Must not know: what is tried with it.

mod child;
mod dir;
mod documents;
mod http;
mod launch;
mod load;
mod network;
mod options;
mod ports;
mod stop;

pub use child::{Child, end, say};
pub use dir::Dir;
pub use documents::Documents;
pub use http::{Answer, Client};
pub use launch::{Member, Mesh, Place, SIDECAR_COMMAND, SingleNode};
pub use load::{create_index, load, task_uid, wait_for_task};
pub use network::Network;
pub use options::{MeshOptions, NodeChoice};
pub use stop::Stop;
