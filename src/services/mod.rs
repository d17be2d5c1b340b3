//! Cores driven with I/O: what the mesh does for its clients and its peers.
//!
//! | service | does |
//! | --- | --- |
//! | [`cluster`] | who belongs to the mesh, who is alive, whose node is healthy |
//! | [`disk`] | how much room the store has |
//! | [`health`] | probes the own node |
//! | [`ledger`] | agreement by majority: votes, changes, copies of all records |
//! | [`leases`] | who leads what; stale orders are refused |
//! | [`operations`] | work that one member leads at a time, in recorded phases |
//! | [`jobs`] | long work that several members share |
//! | [`aliases`] | names that stand for an index |
//! | [`mesh`] | how the mesh is made, and who belongs to it |
//! | [`apply`] | committed entries, into the own node |
//! | [`records`] | the records of names and indexes |
//! | [`local`] | everything that touches the own node |
//! | [`members`] | one way to ask any member, the own one included |
//! | [`indexes`] | creates, finds and deletes indexes |
//! | [`documents`] | adds and deletes documents |
//! | [`writes`] | orders about a whole index, to all its nodes |
//! | [`tasks`] | mesh tasks: taken here, kept by their homes |
//! | [`journal`] | one order for the writes of each shard, stored by all replicas in sync; who is primary |
//! | [`shards`] | who holds which shard of an index, and who is behind |
//! | [`task_ids`] | ids from ranges of the ledger |
//! | [`homes`] | who keeps tasks, and what members tell them |
//! | [`reads`] | documents by id, listings |
//! | [`search`] | plans, scatters, merges |
//! | [`serving`] | which shards this member serves |
//! | [`settings`] | settings, to all nodes and back |
//! | [`snapshot`] | copies of shards, made anew from other members |
//! | [`stats`] | counts and versions |
//! | [`serve`] | answers the calls of peers |
//! | `rooms` | what waits of each peer, bounded |
//!
//! Must not know: HTTP types of the API, SQL, quinn.

pub mod aliases;
pub mod apply;
pub mod cluster;
pub mod disk;
pub mod documents;
pub mod failure;
pub mod health;
pub mod homes;
pub mod indexes;
pub mod jobs;
pub mod journal;
pub mod leases;
pub mod ledger;
pub mod local;
pub mod members;
pub mod mesh;
pub mod operations;
pub mod reads;
pub mod records;
mod rooms;
pub mod search;
pub mod serve;
pub mod serving;
pub mod settings;
pub mod shards;
pub mod snapshot;
pub mod stats;
pub mod task_ids;
pub mod tasks;
#[cfg(test)]
mod testing;
pub mod writes;

pub use failure::Failure;
