//! Which field is the primary key, and which id it gives a document.
//!
//! The rule: the same choice and the same refusals as a node, because a request of which half the nodes refuse their part
//! would be half applied. An id is known by its text: `1` and `"1"` are one document. Must not know: shards.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;

use super::error::DocumentError;
use super::payload::{Format, Payload};
use crate::proto::json::{self, Member};
use crate::types::limits::DOCUMENT_ID_MAX_BYTES;

impl Payload {
    /// The primary key for this request: the index's, or the one that the request names, or the one that the first
    /// document suggests. `None` only if there are no documents and nobody names one.
    ///
    /// # Errors
    /// [`DocumentError::Task`]: the request names another key than the index has, or the first document suggests none or
    /// several.
    pub fn primary_key(&self, index: Option<&str>, request: Option<&str>) -> Result<Option<String>, DocumentError> {
        match (index, request) {
            (Some(index), Some(request)) if index != request && !self.spans.is_empty() => {
                Err(DocumentError::primary_key_exists(index))
            }
            (Some(key), _) | (None, Some(key)) => Ok(Some(key.to_owned())),
            (None, None) => self.documents().next().map(infer).transpose(),
        }
    }
}

/// The one top-level name that ends in `id`, in whatever case.
fn infer(document: &[u8]) -> Result<String, DocumentError> {
    let scan_error = |e| DocumentError::malformed(Format::Json, e);
    let mut names = BTreeSet::new();
    for member in json::members(document, 0).map_err(scan_error)? {
        let name = member.map_err(scan_error)?.key().unwrap_or_default();
        if name.to_lowercase().ends_with("id") {
            names.insert(name);
        }
    }
    let count = names.len();
    let mut names = names.into_iter();
    match (names.next(), names.next()) {
        (None, _) => Err(DocumentError::no_candidate()),
        (Some(only), None) => Ok(only),
        (Some(first), Some(second)) => Err(DocumentError::many_candidates(count, &first, &second)),
    }
}

/// The text form of a document id given as JSON (a string or an integer), if it is a valid one.
///
/// Integers are those of 64 bits, signed or not, and have one spelling only, so the text form is the JSON text.
pub fn document_id(raw: &[u8]) -> Option<Cow<'_, str>> {
    match raw {
        [b'"', inner @ .., b'"'] if !inner.contains(&b'\\') => valid_text(inner).map(Cow::Borrowed),
        [b'"', ..] => serde_json::from_slice::<String>(raw)
            .ok()
            .filter(|text| valid_text(text.as_bytes()).is_some())
            .map(Cow::Owned),
        // Meilisearch reads -0 as a float.
        b"-0" => None,
        [b'-', ..] => str::from_utf8(raw).ok().filter(|text| text.parse::<i64>().is_ok()).map(Cow::Borrowed),
        [b'0'..=b'9', ..] => str::from_utf8(raw).ok().filter(|text| text.parse::<u64>().is_ok()).map(Cow::Borrowed),
        _ => None,
    }
}

fn valid_text(text: &[u8]) -> Option<&str> {
    let valid = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let fits = (1..=DOCUMENT_ID_MAX_BYTES).contains(&text.len()) && text.iter().all(valid);
    fits.then(|| str::from_utf8(text).ok()).flatten()
}

/// Why a document gives no id.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum IdProblem {
    /// The value at this place is no id.
    Invalid(Range<usize>),
    /// No value.
    Missing,
    /// Two values.
    TooMany,
    /// A name that leads to the id occurs twice at the top level; which one counts depends on the format.
    Repeated,
}

/// Where the raw value of the id lies in the document.
///
/// A key with dots is looked for in nested objects and under every literal spelling: `a.b.c` is also `{"a.b":{"c":…}}`.
pub(super) fn find_id(document: &[u8], key: &str, repeats_count: bool) -> Result<Range<usize>, IdProblem> {
    let found = search(document, 0, key, repeats_count)?;
    found.ok_or(IdProblem::Missing)
}

/// The nested part of [`find_id`]: the object that begins at `at`, and the rest of the key.
fn search(text: &[u8], at: usize, key: &str, repeats_count: bool) -> Result<Option<Range<usize>>, IdProblem> {
    let mut found: Option<Range<usize>> = None;
    let mut problem = None;
    // One bit for each number of dots; names with 63 and more share one, which costs such a document a needless rewriting.
    let mut seen = 0_u64;
    // The text is valid JSON, so the walk can't fail; if it did, the document would have no id.
    for member in json::members(text, at).into_iter().flatten().flatten() {
        let Some((level, rest)) = step(&member, key) else { continue };
        let bit = 1 << level.min(63);
        if repeats_count && seen & bit != 0 {
            return Err(IdProblem::Repeated);
        }
        seen |= bit;
        if problem.is_some() {
            continue;
        }
        let value = member.value_start..member.end;
        let one = if rest.is_empty() {
            let valid = document_id(member.value).is_some();
            if valid { Ok(Some(value)) } else { Err(IdProblem::Invalid(value)) }
        } else if member.value.first() == Some(&b'{') {
            search(text, member.value_start, rest, false)
        } else {
            Ok(None)
        };
        match one {
            Ok(None) => {}
            Ok(Some(one)) => {
                if found.replace(one).is_some() {
                    problem = Some(IdProblem::TooMany);
                }
            }
            Err(e) => problem = Some(e),
        }
    }
    problem.map_or(Ok(found), Err)
}

/// If the member's name is the key, or the part of it before one of its dots: how many dots it has, and what follows.
fn step<'k>(member: &Member<'_>, key: &'k str) -> Option<(usize, &'k str)> {
    let owned;
    let name = if member.raw_key.contains(&b'\\') {
        owned = member.key()?;
        owned.as_str()
    } else {
        str::from_utf8(member.raw_key).ok()?
    };
    let rest = key.strip_prefix(name).filter(|_| !name.is_empty())?;
    let dots = |name: &str| name.bytes().filter(|b| *b == b'.').count();
    match rest.strip_prefix('.') {
        Some(rest) => Some((dots(name), rest)),
        None => rest.is_empty().then_some((dots(name), "")),
    }
}
