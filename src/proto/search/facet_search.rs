//! Searching the values of a facet over several parts.
//!
//! Must not know: ranking rules.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde_json::Value;

use super::merge::{MergeError, PartAnswer, PartError, push_number, push_text, write_remote_errors};
use super::request::{Original, QueryError, Sent};
use super::value::normalise;
use crate::proto::json;
use crate::proto::settings::{FacetOrder, IndexView};
use crate::types::ShardSet;

/// `POST /indexes/{uid}/facet-search`.
#[derive(Debug, Clone, PartialEq)]
pub struct FacetSearchQuery {
    sent: Sent,
    facet: String,
}

impl FacetSearchQuery {
    /// Takes the body.
    ///
    /// # Errors
    /// [`QueryError::Reserved`].
    pub fn from_json(body: &[u8]) -> Result<Self, QueryError> {
        let mut sent = Sent::from_json(body, &["facetName", "attributesToSearchOn"])?;
        let facet = sent.fields.get("facetName").and_then(Value::as_str).map(str::to_owned);
        sent.invalid |= facet.is_none();
        Ok(Self { sent, facet: facet.unwrap_or_default() })
    }

    /// As [`super::SearchQuery::passthrough_invalid`].
    pub fn passthrough_invalid(&self) -> bool {
        self.sent.invalid
    }

    /// What came from the client, and goes to every part.
    pub fn original(&self) -> &Original {
        &self.sent.original
    }
}

/// Merges the values of one facet: summed by normalised value, sorted and cut as the client set it.
///
/// # Errors
/// [`MergeError::Malformed`].
pub fn merge_facet_search(
    query: &FacetSearchQuery,
    view: &IndexView,
    parts: &[PartAnswer],
    missing: &ShardSet,
    processing_time_ms: u64,
) -> Result<Vec<u8>, MergeError> {
    let mut ordered: Vec<&PartAnswer> = parts.iter().collect();
    ordered.sort_by_key(|p| p.shards.first());
    let mut values: BTreeMap<String, (String, u64)> = BTreeMap::new();
    let mut facet_query: Option<&[u8]> = None;
    for part in ordered {
        let asked = add_values(&mut values, part).map_err(|e| e.of(&part.shards))?;
        facet_query = facet_query.or(asked);
    }
    let mut values: Vec<(String, (String, u64))> = values.into_iter().collect();
    if view.facet_order(&query.facet) == FacetOrder::Count {
        values.sort_by(|(_, (a, m)), (_, (b, n))| (Reverse(m), Reverse(a)).cmp(&(Reverse(n), Reverse(b))));
    }
    let mut out = b"{\"facetHits\":[".to_vec();
    for (i, (_, (value, count))) in values.iter().take(view.max_values_per_facet).enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"value\":");
        push_text(&mut out, value);
        out.extend_from_slice(b",\"count\":");
        push_number(&mut out, *count);
        out.push(b'}');
    }
    out.extend_from_slice(b"],\"facetQuery\":");
    out.extend_from_slice(facet_query.unwrap_or(b"null"));
    out.extend_from_slice(b",\"processingTimeMs\":");
    push_number(&mut out, processing_time_ms);
    write_remote_errors(&mut out, missing);
    out.push(b'}');
    Ok(out)
}

/// Adds one part's values; gives the raw `facetQuery`.
fn add_values<'a>(
    values: &mut BTreeMap<String, (String, u64)>,
    part: &'a PartAnswer,
) -> Result<Option<&'a [u8]>, PartError> {
    let mut query = None;
    let mut found = false;
    for member in json::members(&part.body, 0)? {
        let m = member?;
        match m.raw_key {
            b"facetQuery" => query = Some(m.value),
            b"facetHits" => {
                found = true;
                for element in json::elements(m.value, 0)? {
                    let (value, count) = read_value(element?.1)?;
                    let sum = &mut values.entry(normalise(&value)).or_insert((value, 0)).1;
                    *sum = sum.saturating_add(count);
                }
            }
            _ => {}
        }
    }
    if found { Ok(query) } else { Err(PartError::Lacks("facetHits")) }
}

fn read_value(text: &[u8]) -> Result<(String, u64), PartError> {
    let (mut value, mut count) = (None, None);
    for member in json::members(text, 0)? {
        let m = member?;
        match m.raw_key {
            b"value" => value = serde_json::from_slice::<String>(m.value).ok(),
            b"count" => count = std::str::from_utf8(m.value).ok().and_then(|s| s.parse::<u64>().ok()),
            _ => {}
        }
    }
    Ok((value.ok_or(PartError::Lacks("value"))?, count.ok_or(PartError::Lacks("count"))?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::types::ShardId;

    fn part(first: u16, body: &Value) -> PartAnswer {
        PartAnswer { shards: [ShardId(first)].into_iter().collect(), alone: false, body: body.to_string().into() }
    }

    #[test]
    fn facet_values_are_summed_and_cut() {
        let body = |hits: Value| json!({"facetHits": hits, "facetQuery": "r", "processingTimeMs": 0});
        let parts = [
            part(1, &body(json!([{"value": "RED", "count": 3}, {"value": "rose", "count": 9}]))),
            part(0, &body(json!([{"value": "Red", "count": 2}, {"value": "ruby", "count": 9}]))),
        ];
        let query = FacetSearchQuery::from_json(br#"{"facetName":"c","facetQuery":"r"}"#).unwrap();
        let merge = |view: &IndexView| {
            String::from_utf8(merge_facet_search(&query, view, &parts, &ShardSet::new(), 4).unwrap()).unwrap()
        };
        assert_eq!(
            merge(&IndexView { max_values_per_facet: 2, ..IndexView::default() }),
            r#"{"facetHits":[{"value":"Red","count":5},{"value":"rose","count":9}],"facetQuery":"r","processingTimeMs":4}"#
        );
        let order = BTreeMap::from([("c".to_owned(), FacetOrder::Count)]);
        assert_eq!(
            merge(&IndexView { sort_facet_values_by: order, max_values_per_facet: 2, ..IndexView::default() }),
            r#"{"facetHits":[{"value":"ruby","count":9},{"value":"rose","count":9}],"facetQuery":"r","processingTimeMs":4}"#
        );
        let bad = [part(0, &json!({"facetHits": [{"value": 1}]}))];
        assert!(merge_facet_search(&query, &IndexView::default(), &bad, &ShardSet::new(), 4).is_err());
        assert!(FacetSearchQuery::from_json(br#"{"facetName":"_miroir_shard"}"#).is_err());
    }
}
