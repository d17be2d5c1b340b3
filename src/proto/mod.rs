//! Pure cores: no I/O, no clock, no randomness, no hash-ordered maps. Values and an instant in, decisions out.
//!
//! | core | decides |
//! | --- | --- |
//! | [`json`] | where the parts of a JSON text begin and end, without building trees |
//! | [`placement`] | a document's shard, a shard's members |
//! | [`document`] | how a body splits into documents, which primary key, which ids are valid |
//! | [`settings`] | what nodes are told instead of the client's settings, and back |
//! | [`alias`] | what an alias may be, and how it is pointed at another index |
//! | [`jobs`] | which member works on which job of a queue |
//! | [`operation`] | phases, each recorded before the next begins; resuming, pausing, undoing |
//! | [`lease`] | who leads a scope, until when, and which orders are too old |
//! | [`search`] | which members for which shards, and one list out of many |

pub mod alias;
pub mod document;
pub mod env;
pub mod jobs;
pub mod json;
pub mod lease;
pub mod operation;
pub mod placement;
pub mod register;
pub mod search;
pub mod settings;
