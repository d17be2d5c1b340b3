//! Lists of document ids to delete.
//!
//! The rule: whatever a node takes is taken; a value that is no id names no document and goes nowhere, but is counted as
//! given. Must not know: filters, who the members are.

use bytes::Bytes;
use serde::de::Deserializer as _;
use serde_json::error::Category;

use super::check::{Flaw, through_and_through};
use super::error::DocumentError;
use super::payload::Spans;
use super::primary_key::document_id;
use crate::proto::json;
use crate::proto::placement::shard_of;
use crate::types::limits::CALL_BODY_MAX_BYTES;
use crate::types::{ShardId, ShardSet};

/// The ids of a delete request, checked.
#[derive(Debug, Clone)]
pub struct IdList {
    text: Bytes,
    provided: usize,
}

/// What one member gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdPart {
    /// A JSON array of ids as strings.
    pub body: Vec<u8>,
    /// How many ids.
    pub ids: usize,
    /// Of which shards.
    pub shards: ShardSet,
}

impl IdList {
    /// Takes the body of `documents/delete-batch`, a JSON array.
    ///
    /// # Errors
    /// [`DocumentError::Sync`]: `missing_payload`, `malformed_payload`, or `bad_request` if it is no array.
    pub fn parse(body: Bytes) -> Result<Self, DocumentError> {
        if body.is_empty() {
            return Err(DocumentError::missing_payload("json"));
        }
        if body.len() > CALL_BODY_MAX_BYTES {
            return Err(DocumentError::too_large(CALL_BODY_MAX_BYTES));
        }
        let refuse = |e: serde_json::Error| match e.classify() {
            Category::Data => DocumentError::ids_not_a_list(e),
            _ => DocumentError::ids_malformed(e),
        };
        let mut spans = Vec::new();
        let mut deserializer = serde_json::Deserializer::from_slice(&body);
        deserializer.deserialize_seq(Spans { text: &body, spans: &mut spans }).map_err(refuse)?;
        deserializer.end().map_err(refuse)?;
        through_and_through(&body).map_err(|flaw| match flaw {
            Flaw::TooDeep(at) => DocumentError::ids_malformed(format_args!("recursion limit exceeded at byte {at}")),
            Flaw::Unparsable(error) => DocumentError::ids_malformed(error),
        })?;
        Ok(Self { provided: spans.len(), text: body })
    }

    /// How many values the request has, ids or not.
    pub fn provided(&self) -> usize {
        self.provided
    }

    /// The valid ids in their text form, in their order.
    pub fn ids(&self) -> impl Iterator<Item = std::borrow::Cow<'_, str>> {
        let elements = json::elements(&self.text, 0).into_iter().flatten().flatten();
        elements.filter_map(|(_, raw)| document_id(raw))
    }

    /// One body for each of `members` members; `owners` tells which of them (numbers below `members`) hold a shard of the
    /// index's `shards`.
    ///
    /// # Panics
    /// If `owners` names a number that is not below `members`, or `shards` is 0.
    pub fn split<'o>(&self, shards: u16, members: usize, owners: impl Fn(ShardId) -> &'o [usize]) -> Vec<IdPart> {
        let mut parts = vec![IdPart::default(); members];
        for id in self.ids() {
            let shard = shard_of(&id, shards);
            for owner in owners(shard) {
                let part = &mut parts[*owner];
                part.body.extend_from_slice(if part.ids == 0 { b"[\"" } else { b",\"" });
                part.body.extend_from_slice(id.as_bytes());
                part.body.push(b'"');
                part.ids += 1;
                part.shards.insert(shard);
            }
        }
        for part in &mut parts {
            part.body.extend_from_slice(if part.ids == 0 { b"[]" } else { b"]" });
        }
        parts
    }
}
