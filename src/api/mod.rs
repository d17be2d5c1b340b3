//! The Meilisearch HTTP API, and the admin API under `/_miroir/`.
//!
//! A handler checks the form of a request, calls one service and gives its answer a status. Must not know: SQLite, the
//! mesh transport, how anything is decided.

pub mod admin;
pub mod aliases;
pub mod auth;
pub mod body;
pub mod documents;
pub mod error;
pub mod health;
pub mod indexes;
pub mod leases;
pub mod mesh;
pub mod operations;
pub mod params;
pub mod room;
pub mod routes;
pub mod search;
pub mod server;
pub mod service;
mod session;
pub mod settings;
mod shards;
pub mod tasks;
pub mod unsupported;

pub use routes::{Api, ApiOptions, router};
