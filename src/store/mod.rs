//! The member's SQLite files: one connection with one writer thread, group commit, embedded forward-only migrations.
//!
//! What is answered has been committed with `synchronous=FULL`. Reads check what writes checked. Must not know: the mesh,
//! the node, or why something is stored.

pub mod db;
pub mod error;
pub mod identity;
pub mod local;
pub mod records;
pub mod tasks;

pub use db::Store;
pub use error::StoreError;
pub use identity::Identity;
