//! A client's document payload, before anything of it is sent anywhere.
//!
//! The rule: a request is judged as a whole. [`Payload`] is taken apart and checked through and through
//! ([`DocumentError::Sync`]), then the primary key is settled, then every id is, then the fields that nodes read
//! themselves are ([`DocumentError::Task`]); only a [`Batch`], in which nothing is left that a node refuses for its
//! form, is split. Texts and codes are Meilisearch's own. Documents are moved as the bytes they are: numbers keep their
//! text, fields their order.
//!
//! ```text
//! bytes ─▶ gunzip ─▶ Payload::parse ─▶ primary_key ─▶ batch ─▶ Batch::check ─▶ Batch::split ─▶ a body for each member
//! ```
//!
//! Must not know: who the members are, tasks, HTTP.

mod batch;
mod check;
mod csv;
mod delete;
mod error;
mod error_text;
mod function;
mod geo;
mod geojson;
mod gzip;
mod payload;
mod primary_key;
mod special;
#[cfg(test)]
mod special_tests;
mod strip;
#[cfg(test)]
mod tests;
mod vectors;

pub use batch::{Batch, Document, Part, pieces};
pub use delete::{IdList, IdPart};
pub use error::{DocumentError, size_text};
pub use error_text::{error_text, error_text_hiding};
pub use function::{Function, FunctionError, own_message};
pub use gzip::gunzip;
pub use payload::{Format, Payload};
pub use primary_key::document_id;
pub use strip::{strip_shard, strip_shard_into};

/// Nesting that a document may have, itself included.
///
/// A node takes 127 or 128 levels, depending on the format. A few less, so that the answers of nodes, which wrap documents
/// (`hits`, `_formatted`), stay within what the scanner reads.
pub const DOCUMENT_DEPTH_MAX: usize = crate::types::limits::JSON_DEPTH_MAX - 8;
