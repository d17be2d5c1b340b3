//! Pieces of an answer as JSON text. Must not know: where their values come from.

use crate::proto::json::ScanError;
use crate::proto::search::hit::{self, HitStyle, RawHit};
use crate::proto::search::query::Page;
use crate::types::{ErrorCode, ShardSet};

pub(super) fn write_hits<'a>(
    out: &mut Vec<u8>,
    hits: impl Iterator<Item = (&'a [u8], &'a RawHit)>,
    style: &HitStyle<'_>,
) -> Result<(), ScanError> {
    out.push(b'[');
    for (i, (text, hit)) in hits.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        hit::write_hit(out, text, hit, style)?;
    }
    out.push(b']');
    Ok(())
}

pub(in crate::proto::search) fn push_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(number.to_string().as_bytes());
}

pub(in crate::proto::search) fn push_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(serde_json::to_string(text).expect("a text encodes").as_bytes());
}

pub(super) fn write_page(out: &mut Vec<u8>, page: Page, total: u64) {
    let text = match page {
        Page::Offset { offset, limit } => {
            format!(",\"limit\":{limit},\"offset\":{offset},\"estimatedTotalHits\":{total}")
        }
        Page::Numbered { page, hits_per_page } => {
            let pages = if hits_per_page == 0 { 0 } else { total.div_ceil(hits_per_page as u64) };
            format!(",\"hitsPerPage\":{hits_per_page},\"page\":{page},\"totalPages\":{pages},\"totalHits\":{total}")
        }
    };
    out.extend_from_slice(text.as_bytes());
}

/// `metadata` follows `requestUid`.
pub(super) fn push_metadata(out: &mut Vec<u8>, metadata: Option<&str>) {
    if let Some(metadata) = metadata {
        out.extend_from_slice(b",\"metadata\":");
        out.extend_from_slice(metadata.as_bytes());
    }
}

/// A partial answer says so in the body too, because SDKs show no headers.
pub(in crate::proto::search) fn write_remote_errors(out: &mut Vec<u8>, missing: &ShardSet) {
    if missing.is_empty() {
        return;
    }
    let code = ErrorCode::MiroirShardsUnavailable;
    let error = serde_json::json!({
        format!("shards {missing}"): {
            "message": format!("no member could answer for shards {missing}"),
            "code": code.as_str(),
            "type": code.kind().as_str(),
            "link": code.link(),
        }
    });
    out.extend_from_slice(b",\"remoteErrors\":");
    out.extend_from_slice(error.to_string().as_bytes());
}
