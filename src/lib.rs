//! Miroir: one sidecar beside every Meilisearch node; together they are one search engine.
//!
//! The rooms, lowest first. A room may use those above it in this list and the side rooms, never one below;
//! `tests/layers.rs` holds that direction.
//!
//! | layer | room | holds |
//! | --- | --- | --- |
//! | L0 | [`types`] | ids, records, limits, error codes: plain data |
//! | L1 | [`wire`] | bytes ↔ types: frames, verbs, gossip keys, the codec |
//! | L2 | [`proto`] | pure cores: placement, documents, search planning and merging |
//! | L3 | [`store`] | SQLite |
//! | L4 | [`net`] | QUIC mesh, gossip, the HTTP client of the own node |
//! | L5 | [`services`] | cores driven with I/O |
//! | L6 | [`api`] | the Meilisearch HTTP API |
//! | L7 | [`app`], [`cli`] | wiring, and the command line |
//!
//! Side rooms: [`config`], [`names`], [`rt`], [`telemetry`], [`pki`]. They know `types` only. [`ctl`], the operator's client,
//! knows `types`, `config` and `names`.
#![forbid(unsafe_code)]

pub mod types;

pub mod wire;

pub mod proto;

pub mod store;

pub mod net;

pub mod services;

pub mod api;

pub mod app;
pub mod cli;

pub mod config;
pub mod ctl;
pub mod names;
pub mod pki;
pub mod rt;
pub mod telemetry;
