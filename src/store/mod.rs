//! The member's SQLite files, each with one connection, one writer thread, group commit and forward-only migrations.
//!
//! | file | holds |
//! | --- | --- |
//! | `ledger.sqlite` ([`LedgerStore`]) | who the store is, its starts and transactions, votes, copies of records |
//! | `miroir.sqlite` ([`Store`]) | what the own node holds, highest epochs of leases; notes which ledger file it lies beside |
//! | `journal.sqlite` ([`JournalStore`]) | the journals of all shards, tasks and keys; notes which ledger file it lies beside |
//!
//! What is answered has been committed with `synchronous=FULL`. Reads check what writes checked. The files belong
//! together ([`identity`]): none is used beside another copy of the others. Must not know: the mesh, the node, or why
//! something is stored.

mod db;
pub mod error;
pub mod identity;
pub mod journal;
pub mod leases;
pub mod ledger;
pub mod local;
pub mod member;
mod row;

pub use error::StoreError;
pub use identity::Identity;
pub use journal::JournalStore;
pub use ledger::LedgerStore;
pub use member::Store;
