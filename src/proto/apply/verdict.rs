//! Which errors are an entry's own fault, and how the bad one among many is found.
//!
//! Rule: an error is a verdict only if [`OWN_FAULT`] lists it, because with every other member it would be the same;
//! whatever else a node says is its own trouble, and the entry is tried again for ever. Must not know: what a document says.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::proto::journal::Kind;
use crate::types::ShardId;

/// Longest message of a node's error that is kept; a message may quote a whole document.
pub const FLAW_MESSAGE_MAX_BYTES: usize = 4_096;
/// Longest code that is kept.
pub const FLAW_CODE_MAX_BYTES: usize = 128;

/// An error as a node tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flaw {
    /// Meilisearch's code.
    pub code: String,
    /// For people.
    pub message: String,
}

impl Flaw {
    /// An error, cut to its bounds.
    pub fn new(code: &str, message: &str) -> Self {
        Self { code: cut(code, FLAW_CODE_MAX_BYTES), message: cut(message, FLAW_MESSAGE_MAX_BYTES) }
    }
}

fn cut(text: &str, max: usize) -> String {
    text[..text.floor_char_boundary(max)].to_owned()
}

/// What became of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It was done.
    Applied,
    /// It was not, and never will be.
    Failed(Flaw),
}

/// An error that an entry itself causes.
#[derive(Debug, Clone, Copy)]
pub struct OwnFault {
    /// Meilisearch's code.
    pub code: &'static str,
    /// What its message must contain, where the code alone also stands for troubles of the node.
    pub text: Option<&'static str>,
    /// Only edits by function.
    pub edit_only: bool,
}

const fn code(code: &'static str) -> OwnFault {
    OwnFault { code, text: None, edit_only: false }
}

const fn text(code: &'static str, text: &'static str) -> OwnFault {
    OwnFault { code, text: Some(text), edit_only: false }
}

/// Every error that is a verdict. All were seen on a v1.50.0 node but those marked with a file, which is where
/// Meilisearch makes them.
pub const OWN_FAULT: [OwnFault; 23] = [
    // Ids; fail one task.
    code("invalid_document_id"),
    code("missing_document_id"),
    // `_geo` without numbers, or not an object; this and what follows fail the whole batch.
    code("invalid_document_geo_field"),
    // milli/src/error.rs, of `_geojson`.
    code("invalid_document_geojson_field"),
    // Numbers in `_vectors` that are fewer or more than the embedder's.
    code("invalid_vector_dimensions"),
    // `_vectors.<embedder>` of another form.
    code("invalid_vectors_type"),
    // milli/src/error.rs.
    code("too_many_vectors"),
    // milli/src/prompt/error.rs: the document has not what the embedder's template names.
    code("invalid_document_fields"),
    // More than 65,535 different fields; depends on what else the node holds, so members may differ.
    code("max_fields_limit_exceeded"),
    // A document without vectors where the embedder makes none itself. The same code says that an embedder is not there.
    text("vector_embedding_error", "no vectors provided for document"),
    // milli/src/vector/error.rs: the embedder refuses what is to be embedded (status 400). That it can't be set up at all says of no
    // document anything, and is told in other words.
    text("vector_embedding_error", "`: user error: sent a bad request to embedding server"),
    // The document's own JSON, found late: `_vectors` that is no map, numbers out of range, half a surrogate pair. An
    // error of the disk names no line of a text.
    text("internal", "expected a map at line "),
    text("internal", "number out of range at line "),
    text("internal", "hex escape at line "),
    text("internal", "surrogate"),
    // `_geojson` with an empty polygon.
    text("internal", "invalid ring"),
    // At once, of a body.
    code("malformed_payload"),
    // A filter that does not fit the settings; at once, or as a task.
    code("invalid_document_filter"),
    // milli/src/error.rs: an operator that the attribute's rule does not allow.
    code("invalid_search_filter"),
    // A function that fails, or changes an id.
    code("edit_documents_by_function_error"),
    // meilisearch-types/src/error.rs: an edit's context that is no object.
    code("invalid_document_edition_context"),
    code("invalid_document_edition_function_filter"),
    // A function that can't be compiled.
    OwnFault { code: "bad_request", text: Some("(line "), edit_only: true },
];

/// Whether entries of this kind cause this error themselves.
pub fn is_own_fault(kind: Kind, flaw: &Flaw) -> bool {
    OWN_FAULT.iter().any(|own| {
        own.code == flaw.code
            && own.text.is_none_or(|text| flaw.message.contains(text))
            && (!own.edit_only || kind == Kind::Edit)
    })
}

/// What failed since the node last had nothing under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// How many requests.
    pub(super) requests: usize,
    /// How many entries the first of them carried.
    pub(super) entries: usize,
    /// The first entry of the first.
    pub(super) first: (ShardId, u64),
    /// The first was the only task under way and in its batch, from beginning to end.
    pub(super) alone: bool,
    /// Why, and whether the entries cause it themselves.
    pub(super) flaw: Flaw,
    pub(super) own_fault: bool,
}

/// After a failure: entries go in small requests, each waited for, until all that failed has been dealt with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Care {
    /// Most entries of a request.
    pub(super) limit: usize,
    /// The bad one has not been found.
    pub(super) hunting: bool,
    /// Up to where, in which shards.
    pub(super) until: BTreeMap<ShardId, u64>,
}

impl Care {
    /// What follows from a failure, of entries up to `until`.
    pub(super) fn after(before: Option<Self>, failure: &Failure, until: BTreeMap<ShardId, u64>) -> Self {
        // Of several that failed together all but one may be innocent: the first is tried whole.
        let whole = failure.requests > 1 && !failure.alone;
        let limit = if whole { failure.entries } else { failure.entries / 2 };
        let mut all = before.map(|care| care.until).unwrap_or_default();
        for (shard, to) in until {
            let known = all.entry(shard).or_insert(to);
            *known = (*known).max(to);
        }
        Self { limit: limit.max(1), hunting: true, until: all }
    }

    /// A request was done. Larger ones follow once the bad one was found.
    pub(super) fn went_well(&mut self) {
        if !self.hunting {
            self.limit = self.limit.saturating_mul(2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_disk_or_an_embedder_says_is_no_verdict() {
        let set = Kind::Set { skip_creation: false };
        let own = |kind, code: &str, message: &str| is_own_fault(kind, &Flaw::new(code, message));
        for (code, message) in [
            ("no_space_left_on_device", "There is no more space left on the device."),
            ("io_error", "Input/output error (os error 5)"),
            ("internal", "Index `a`: internal: MDB_CORRUPTED: Located page was wrong type."),
            ("internal", "An internal error has occurred. `Input/output error`."),
            ("vector_embedding_error", "While embedding documents for embedder `v`: could not reach embedding server"),
            (
                "vector_embedding_error",
                "Index `a`: Error while generating embeddings: runtime error: could not determine model dimensions:\n  - test \
                 embedding failed with user error: sent a bad request to embedding server",
            ),
            (
                "vector_embedding_error",
                "Index `a`: While embedding documents for embedder `v`: user error: sent too many requests to embedding server",
            ),
            ("index_not_found", "Index `a` not found."),
            ("index_primary_key_already_exists", "Index already has a primary key: `id`."),
            ("database_size_limit_reached", "Maximum database size has been reached."),
            ("payload_too_large", "The provided payload reached the size limit."),
            ("bad_request", "Unknown parameter `customMetadata` (line 1, position 9)"),
        ] {
            assert!(!own(set, code, message), "{code}: {message}");
        }
        assert!(own(set, "invalid_document_id", "Document identifier `\"a b\"` is invalid."));
        assert!(own(set, "internal", "Index `a`: invalid type: integer `5`, expected a map at line 1 column 1"));
        assert!(own(set, "internal", "Index `a`: internal: number out of range at line 1 column 12."));
        assert!(own(set, "internal", "Index `a`: internal: unexpected end of hex escape at line 1 column 8."));
        let none = "Index `a`: While embedding documents for embedder `v`: no vectors provided for document `2`";
        assert!(own(set, "vector_embedding_error", none));
        let refused = "Index `a`: While embedding documents for embedder `v`: user error: sent a bad request to embedding server\n  \
                       - server replied with `{\"error\":\"too long\"}`";
        assert!(own(set, "vector_embedding_error", refused));
        assert!(own(Kind::Edit, "bad_request", "Unexpected '=' (line 1, position 9)"));
        let off =
            "Using the documents edit route requires enabling the `edit documents by function` experimental feature.";
        assert!(!own(Kind::Edit, "feature_not_enabled", off));
    }

    #[test]
    fn a_message_is_cut_between_characters() {
        let flaw = Flaw::new("missing_document_id", &"ü".repeat(FLAW_MESSAGE_MAX_BYTES));
        assert!(flaw.message.len() <= FLAW_MESSAGE_MAX_BYTES && flaw.message.ends_with('ü'));
    }

    #[test]
    fn the_first_of_several_is_tried_whole_and_one_by_itself_in_halves() {
        let failure = |requests, entries, alone| Failure {
            requests,
            entries,
            first: (ShardId(0), 1),
            alone,
            flaw: Flaw::new("internal", ""),
            own_fault: false,
        };
        let until: BTreeMap<_, _> = [(ShardId(0), 9)].into();
        assert_eq!(Care::after(None, &failure(3, 8, false), until.clone()).limit, 8);
        let care = Care::after(None, &failure(1, 8, false), until.clone());
        assert_eq!(care.limit, 4);
        let care = Care::after(Some(care), &failure(1, 4, true), [(ShardId(0), 7), (ShardId(1), 2)].into());
        assert_eq!((care.limit, &care.until), (2, &[(ShardId(0), 9), (ShardId(1), 2)].into()));
        assert_eq!(Care::after(None, &failure(1, 1, false), until).limit, 1);
    }
}
