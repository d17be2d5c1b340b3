//! What `miroir-ctl` asks of a running sidecar, and how it shows the answers.
//!
//! Everything goes through the admin API, so that whoever writes a script can do the same. Must not know: how a member
//! works inside.

mod aliases;
pub mod client;
mod leases;
mod mesh;
mod operations;
mod shard;
mod shards;
mod status;
pub mod table;

pub use aliases::{AliasesCommand, aliases};
pub use client::{Client, ClientError, Target};
pub use leases::leases;
pub use mesh::{MeshCommand, mesh};
pub use operations::{OperationsCommand, operations};
pub use shard::{ShardCommand, shard};
pub use shards::shards;
pub use status::status;
