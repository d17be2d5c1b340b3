//! One part's body: which of its fields the merge needs, and where they lie. Must not know: other parts.

use super::MergeError;
use crate::proto::json::{self, ScanError};
use crate::proto::search::hit::{self, RawHit};
use crate::proto::search::order::DetailsError;
use crate::types::ShardSet;

/// What is wrong inside one part, before its shards are known.
#[derive(Debug, thiserror::Error)]
pub(in crate::proto::search) enum PartError {
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error(transparent)]
    Details(#[from] DetailsError),
    #[error("it lacks `{0}`")]
    Lacks(&'static str),
    #[error("the one part of a search is asked for another page than parts of many")]
    Alone,
}

impl PartError {
    pub(in crate::proto::search) fn of(self, shards: &ShardSet) -> MergeError {
        MergeError::Malformed { shards: shards.clone(), reason: self.to_string() }
    }
}

/// The fields of one body.
#[derive(Debug, Default)]
pub(super) struct Body<'a> {
    pub(super) hits: Vec<RawHit>,
    pub(super) query: Option<&'a [u8]>,
    pub(super) query_vector: Option<&'a [u8]>,
    pub(super) processing_time_ms: u64,
    pub(super) total: Option<u64>,
    pub(super) distribution: Option<&'a [u8]>,
    pub(super) stats: Option<&'a [u8]>,
    pub(super) performance: Option<&'a [u8]>,
    pub(super) semantic: Option<u64>,
}

fn count(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

pub(super) fn read_body(text: &[u8], hits_max: usize) -> Result<Body<'_>, PartError> {
    let mut body = Body::default();
    let mut members = json::members(text, 0)?;
    let mut found = false;
    while let Some(key) = members.next_key()? {
        let start = key.value_start;
        if key.raw_key == b"hits" {
            let (hits, end) = hit::scan_hits(text, start, hits_max)?;
            (body.hits, found) = (hits, true);
            members.resume(end);
            continue;
        }
        let end = json::skip_value(text, start)?;
        let value = &text[start..end];
        match key.raw_key {
            b"query" => body.query = Some(value),
            b"queryVector" => body.query_vector = Some(value),
            b"processingTimeMs" => body.processing_time_ms = count(value).unwrap_or(0),
            b"estimatedTotalHits" | b"totalHits" => body.total = count(value),
            b"facetDistribution" => body.distribution = Some(value),
            b"facetStats" => body.stats = Some(value),
            b"performanceDetails" => body.performance = Some(value),
            b"semanticHitCount" => body.semantic = count(value),
            _ => {}
        }
        members.resume(end);
    }
    if !found {
        return Err(PartError::Lacks("hits"));
    }
    body.total.ok_or(PartError::Lacks("estimatedTotalHits"))?;
    Ok(body)
}
