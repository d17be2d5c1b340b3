//! One answer out of the answers of all parts, as one node would have sent it: same order, same keys, same bytes of hits.
//!
//! The rule: hits are compared by their ranking details; equals stand by their rank inside their part, then by the part's
//! lowest shard. A part's own order is never changed. Must not know: members, what a part was late or refused for.

mod lanes;
mod page;
mod parts;
#[cfg(test)]
mod tests;
mod write;

use bytes::Bytes;

use super::facets;
use super::hit::{self, HitStyle};
use super::query::SearchQuery;
use crate::proto::json;
use crate::proto::settings::IndexView;
use crate::types::{SHARD_FIELD, ShardSet};
use lanes::Merger;
pub(super) use parts::PartError;
use write::{push_metadata, write_hits};
pub(super) use write::{push_number, push_text, write_remote_errors};

/// One part's answer.
#[derive(Debug, Clone)]
pub struct PartAnswer {
    /// The shards that it covers.
    pub shards: ShardSet,
    /// Whether it was asked for the client's page itself (`part_body(1, …)`) because it covers all shards wanted.
    pub alone: bool,
    /// The body of the node's 200.
    pub body: Bytes,
}

/// Why answers can't be merged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// A peer's answer is not what its node sends.
    #[error("the answer for shards {shards} is malformed: {reason}")]
    Malformed {
        /// The part's shards.
        shards: ShardSet,
        /// What is wrong.
        reason: String,
    },
}

/// A merge: the question, and what came.
#[derive(Debug)]
pub struct MergeRequest<'a> {
    /// The client's search.
    pub query: &'a SearchQuery,
    /// The client's settings.
    pub view: &'a IndexView,
    /// The answers; their shards do not overlap.
    pub parts: &'a [PartAnswer],
    /// The answers are to [`SearchQuery::keyword_body`], and [`keywords_suffice`] has said so.
    pub keywords_only: bool,
    /// Shards without an answer; named in `remoteErrors`.
    pub missing: &'a ShardSet,
    /// The time that the whole search took, in milliseconds.
    pub processing_time_ms: u64,
    /// This request's id.
    pub request_uid: &'a str,
    /// The JSON of `metadata`, if the client asked for it.
    pub metadata: Option<&'a str>,
}

/// Merges the answers into the body for the client.
///
/// # Errors
/// [`MergeError::Malformed`] if a part's body is not a node's answer.
pub fn merge(request: &MergeRequest<'_>) -> Result<Vec<u8>, MergeError> {
    if let [part] = request.parts
        && part.alone
    {
        return strip(request, part).map_err(|e| e.of(&part.shards));
    }
    if let Some(part) = request.parts.iter().find(|p| p.alone) {
        return Err(PartError::Alone.of(&part.shards));
    }
    Merger::read(request)?.run()
}

/// What a keyword hit of a mixed search must reach, times the keywords' share, for a node to leave the vectors out.
const GOOD_ENOUGH: f64 = 0.45;

/// Whether the answers to [`SearchQuery::keyword_body`] are the answer: they fill the page with hits that are good enough.
///
/// # Errors
/// [`MergeError::Malformed`].
pub fn keywords_suffice(request: &MergeRequest<'_>) -> Result<bool, MergeError> {
    let Some(ratio) = request.query.mixing_ratio() else { return Ok(true) };
    // Nodes reckon with 32-bit ratios.
    #[allow(clippy::cast_possible_truncation)]
    let weight = f64::from(1.0 - ratio as f32);
    let wanted = request.query.hits_wanted(request.view);
    let merger = Merger::read(request)?;
    let mut found = 0;
    for placed in merger.lane(|part| (0..merger.bodies[part].hits.len()).collect())?.take(wanted) {
        if placed?.head.score * weight < GOOD_ENOUGH {
            return Ok(false);
        }
        found += 1;
    }
    Ok(found == wanted)
}

/// The only part of a search: its node has made the page. Hits are moved whole where nothing is to be cut.
fn strip(request: &MergeRequest<'_>, part: &PartAnswer) -> Result<Vec<u8>, PartError> {
    let text = &part.body[..];
    let hidden = request.view.displayed.is_some() && (request.query.shows_details() || request.query.shows_matches());
    let style = HitStyle { view: hidden.then_some(request.view), ..HitStyle::default() };
    let has_shard = memchr::memmem::find(text, SHARD_FIELD.as_bytes()).is_some();
    let mut out = Vec::with_capacity(text.len() + 128);
    out.push(b'{');
    let mut has_hits = false;
    let mut members = json::members(text, 0)?;
    let mut first = true;
    while let Some(key) = members.next_key()? {
        let start = key.value_start;
        if !first {
            out.push(b',');
        }
        first = false;
        out.extend_from_slice(&text[key.start..start]);
        if key.raw_key == b"hits" && (has_shard || style.changes()) {
            has_hits = true;
            let (hits, end) = hit::scan_hits(text, start, usize::MAX)?;
            write_hits(&mut out, hits.iter().map(|h| (text, h)), &style)?;
            members.resume(end);
            continue;
        }
        let end = json::skip_value(text, start)?;
        let value = &text[start..end];
        match key.raw_key {
            b"processingTimeMs" => push_number(&mut out, request.processing_time_ms),
            b"requestUid" => {
                push_text(&mut out, request.request_uid);
                push_metadata(&mut out, request.metadata);
            }
            b"facetDistribution" => facets::write_cut(&mut out, value, request.view.max_values_per_facet)?,
            other => {
                has_hits |= other == b"hits";
                out.extend_from_slice(value);
            }
        }
        members.resume(end);
    }
    members.end().ok_or(PartError::Lacks("its end"))?;
    if !has_hits {
        return Err(PartError::Lacks("hits"));
    }
    write_remote_errors(&mut out, request.missing);
    out.push(b'}');
    Ok(out)
}
