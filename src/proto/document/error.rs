//! What is wrong with a client's documents, in Meilisearch's words.
//!
//! The rule: an error says whether the client hears of it at once or from the task. Must not know: HTTP, tasks.

use super::{DOCUMENT_DEPTH_MAX, Format};
use crate::types::ErrorCode;
use crate::types::SHARD_FIELD;

/// The longest document or id that a message repeats, in bytes; longer ones are cut.
pub(super) const SHOWN_MAX_BYTES: usize = 16 << 10;

/// Why a document request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// The request itself is refused; nothing is enqueued.
    #[error("{message}")]
    Sync {
        /// The code of the answer.
        code: ErrorCode,
        /// The text for the client.
        message: String,
    },
    /// The request is taken (202), and its task fails as a whole.
    #[error("{message}")]
    Task {
        /// The code in the task.
        code: ErrorCode,
        /// The text for the client.
        message: String,
    },
}

impl DocumentError {
    /// The code, whoever is told.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Sync { code, .. } | Self::Task { code, .. } => *code,
        }
    }

    fn sync(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::Sync { code, message: message.into() }
    }

    fn task(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::Task { code, message: message.into() }
    }

    pub(super) fn missing_payload(format: &str) -> Self {
        Self::sync(ErrorCode::MissingPayload, format!("A {format} payload is missing."))
    }

    pub(super) fn malformed(format: Format, reason: impl std::fmt::Display) -> Self {
        let name = format.name();
        let message =
            format!("The `{name}` payload provided is malformed. `Couldn't serialize document value: {reason}`.");
        Self::sync(ErrorCode::MalformedPayload, message)
    }

    pub(super) fn malformed_csv(reason: impl std::fmt::Display) -> Self {
        Self::sync(ErrorCode::MalformedPayload, format!("The `csv` payload provided is malformed: `{reason}`."))
    }

    pub(super) fn not_objects(format: Format) -> Self {
        Self::malformed(format, "data are neither an object nor a list of objects")
    }

    /// `at` is the position in `text` where the nesting becomes too deep.
    pub(super) fn too_deep(format: Format, text: &[u8], at: usize) -> Self {
        let before = &text[..at.min(text.len())];
        let line = memchr::memchr_iter(b'\n', before).count() + 1;
        let column = before.len() - memchr::memrchr(b'\n', before).map_or(0, |n| n + 1) + 1;
        let limit = DOCUMENT_DEPTH_MAX;
        Self::malformed(format, format!("recursion limit of {limit} exceeded at line {line} column {column}"))
    }

    pub(super) fn ids_malformed(reason: impl std::fmt::Display) -> Self {
        let message = format!("The json payload provided is malformed. `{reason}`.");
        Self::sync(ErrorCode::MalformedPayload, message)
    }

    pub(super) fn ids_not_a_list(reason: impl std::fmt::Display) -> Self {
        Self::sync(ErrorCode::BadRequest, format!("Json deserialize error: {reason}"))
    }

    pub(super) fn incomplete() -> Self {
        Self::sync(ErrorCode::BadRequest, "The provided payload is incomplete and cannot be parsed")
    }

    /// `limit` in bytes.
    pub(super) fn too_large(limit: usize) -> Self {
        let size = size_text(limit);
        let message =
            format!("The provided payload reached the size limit. The maximum accepted payload size is {size}.");
        Self::sync(ErrorCode::PayloadTooLarge, message)
    }

    pub(super) fn reserved_field() -> Self {
        let message = format!("The field `{SHARD_FIELD}` is reserved: a document can't contain it.");
        Self::sync(ErrorCode::MiroirReservedField, message)
    }

    /// The request names another primary key than the index's, `key`.
    pub fn primary_key_exists(key: &str) -> Self {
        let message = format!("Index already has a primary key: `{}`.", cut(key));
        Self::task(ErrorCode::IndexPrimaryKeyAlreadyExists, message)
    }

    pub(super) fn no_candidate() -> Self {
        Self::task(
            ErrorCode::IndexPrimaryKeyNoCandidateFound,
            "The primary key inference failed as the engine did not find any field ending with `id` in its name. \
             Please specify the primary key manually using the `primaryKey` query parameter.",
        )
    }

    pub(super) fn many_candidates(count: usize, first: &str, second: &str) -> Self {
        let message = format!(
            "The primary key inference failed as the engine found {count} fields ending with `id` in their names: \
             '{}' and '{}'. Please specify the primary key manually using the `primaryKey` query parameter.",
            cut(first),
            cut(second)
        );
        Self::task(ErrorCode::IndexPrimaryKeyMultipleCandidatesFound, message)
    }

    pub(super) fn invalid_id(raw: &[u8]) -> Self {
        let message = format!(
            "Document identifier `{}` is invalid. A document identifier can be of type integer or string, only \
             composed of alphanumeric characters (a-z A-Z 0-9), hyphens (-) and underscores (_), and can not be more \
             than 511 bytes.",
            shown(raw)
        );
        Self::task(ErrorCode::InvalidDocumentId, message)
    }

    pub(super) fn missing_id(key: &str, document: &[u8]) -> Self {
        let message = format!("Document doesn't have a `{}` attribute: `{}`.", cut(key), shown(document));
        Self::task(ErrorCode::MissingDocumentId, message)
    }

    /// What a node finds only when it changes the index; then it names the index before the reason.
    pub(super) fn in_index(uid: &str, code: ErrorCode, reason: &str) -> Self {
        Self::task(code, format!("Index `{uid}`: {reason}"))
    }

    pub(super) fn too_many_ids(key: &str, document: &[u8]) -> Self {
        let message = format!("Document have too many matching `{}` attribute: `{}`.", cut(key), shown(document));
        Self::task(ErrorCode::InvalidDocumentId, message)
    }
}

/// A size as Meilisearch prints it: binary units for multiples of 1,024, else decimal ones.
pub fn size_text(bytes: usize) -> String {
    let (step, names) = match bytes % 1024 {
        0 => (1024_usize, ["B", "KiB", "MiB", "GiB"]),
        _ => (1000, ["B", "KB", "MB", "GB"]),
    };
    let mut unit = 1;
    let mut name = names[0];
    for next in &names[1..] {
        if bytes / unit < step {
            break;
        }
        unit *= step;
        name = next;
    }
    // Two decimals, rounded down, zeros left out.
    let (whole, hundredths) = (bytes / unit, bytes % unit * 100 / unit);
    match (hundredths / 10, hundredths % 10) {
        (0, 0) => format!("{whole} {name}"),
        (tenths, 0) => format!("{whole}.{tenths} {name}"),
        (tenths, rest) => format!("{whole}.{tenths}{rest} {name}"),
    }
}

/// A JSON value as a message repeats it: compact, as Meilisearch prints it; a large one is cut instead.
pub(super) fn shown(raw: &[u8]) -> String {
    if raw.len() <= SHOWN_MAX_BYTES
        && let Ok(value) = serde_json::from_slice::<serde_json::Value>(raw)
    {
        return value.to_string();
    }
    cut(&String::from_utf8_lossy(&raw[..raw.len().min(SHOWN_MAX_BYTES + 4)]))
}

pub(super) fn cut(text: &str) -> String {
    if text.len() <= SHOWN_MAX_BYTES {
        return text.to_owned();
    }
    format!("{}...", &text[..text.floor_char_boundary(SHOWN_MAX_BYTES)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_on_a_node() {
        for (bytes, text) in [(100_000_000, "100 MB"), (100 << 20, "100 MiB"), (10_500_000, "10.5 MB"), (7, "7 B")] {
            assert_eq!(size_text(bytes), text);
        }
        assert_eq!(size_text(0), "0 B");
    }

    #[test]
    fn a_large_document_is_cut_in_a_message() {
        let document = format!("{{\"x\":\"{}\"}}", "ü".repeat(SHOWN_MAX_BYTES));
        let error = DocumentError::missing_id("id", document.as_bytes());
        assert!(error.to_string().len() < SHOWN_MAX_BYTES + 100);
        assert!(error.to_string().ends_with("ü...`."));
    }
}
