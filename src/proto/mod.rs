//! Pure cores: no I/O, no clock, no randomness, no hash-ordered maps. Values and an instant in, decisions out.
//!
//! | core | decides |
//! | --- | --- |
//! | [`json`] | where the parts of a JSON text begin and end, without building trees |
//! | [`placement`] | a document's shard, a shard's members |
//! | [`document`] | how a body splits into documents, which primary key, which ids are valid |
//! | [`settings`] | what nodes are told instead of the client's settings, and back |
//! | [`search`] | which members for which shards, and one list out of many |

pub mod document;
pub mod json;
pub mod placement;
pub mod search;
pub mod settings;
