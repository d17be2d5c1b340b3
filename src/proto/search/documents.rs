//! Listing documents and searching facet values over several parts.
//!
//! Must not know: ranking rules other than sorts.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::filter;
use super::hit::{self, HitStyle, RawHit};
use super::merge::{MergeError, PartAnswer, PartError, push_number, push_text, write_remote_errors};
use super::order::{self, Rules};
use super::query::{FacetOrder, IndexView, Original, QueryError};
use super::value::normalise;
use crate::proto::json;
use crate::proto::placement::shard_of;
use crate::types::{ShardId, ShardSet};

/// Meilisearch's default of `limit`.
const LIMIT_DEFAULT: usize = 20;

/// `POST /indexes/{uid}/documents/fetch`, or `GET /indexes/{uid}/documents` as the former.
#[derive(Debug, Clone, PartialEq)]
pub struct DocumentsQuery {
    fields: Map<String, Value>,
    original: Original,
    invalid: bool,
    offset: usize,
    limit: usize,
    sorted: bool,
}

impl DocumentsQuery {
    /// Takes the body of `POST …/documents/fetch`.
    ///
    /// # Errors
    /// [`QueryError::Reserved`]; everything else that is wrong is left for a node to refuse.
    pub fn from_json(body: &[u8]) -> Result<Self, QueryError> {
        match serde_json::from_slice::<Value>(body) {
            Ok(Value::Object(fields)) => Self::of(fields, Original::Body(body.to_vec()), false),
            _ => Self::of(Map::new(), Original::Body(body.to_vec()), true),
        }
    }

    /// Takes the decoded parameters of `GET …/documents`.
    ///
    /// # Errors
    /// [`QueryError::Reserved`].
    pub fn from_query_string<K: AsRef<str>, V: AsRef<str>>(
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, QueryError> {
        let pairs: Vec<_> = pairs.into_iter().map(|(k, v)| (k.as_ref().to_owned(), v.as_ref().to_owned())).collect();
        let mut fields = Map::new();
        let mut invalid = false;
        for (key, value) in &pairs {
            let words = || -> Vec<&str> { value.split(',').filter(|s| !s.is_empty()).collect() };
            let parsed: Option<Value> = match key.as_str() {
                "offset" | "limit" => value.parse::<usize>().ok().map(Value::from),
                "retrieveVectors" => value.parse::<bool>().ok().map(Value::from),
                "fields" | "ids" => Some(words().into()),
                "sort" => Some(super::query::sort_parameter(value).into()),
                "filter" => Some(serde_json::from_str(value).unwrap_or_else(|_| value.as_str().into())),
                _ => None,
            };
            match parsed {
                Some(parsed) => drop(fields.insert(key.clone(), parsed)),
                None => invalid = true,
            }
        }
        Self::of(fields, Original::Parameters(pairs), invalid)
    }

    fn of(fields: Map<String, Value>, original: Original, mut invalid: bool) -> Result<Self, QueryError> {
        if fields.get("filter").is_some_and(filter::names_shard_field) {
            return Err(QueryError::Reserved { parameter: "filter".into() });
        }
        for parameter in ["sort", "fields"] {
            let items = fields.get(parameter).and_then(Value::as_array);
            let named = |v: &Value| v.as_str().is_some_and(filter::has_shard_word);
            if items.is_some_and(|items| items.iter().any(named)) {
                return Err(QueryError::Reserved { parameter: parameter.into() });
            }
        }
        let mut number = |key: &str, default: usize| match fields.get(key) {
            None => default,
            Some(v) => v.as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or_else(|| {
                invalid = true;
                default
            }),
        };
        let (offset, limit) = (number("offset", 0), number("limit", LIMIT_DEFAULT));
        let sorted = fields.get("sort").and_then(Value::as_array).is_some_and(|s| !s.is_empty());
        Ok(Self { fields, original, invalid, offset, limit, sorted })
    }

    /// As [`super::SearchQuery::passthrough_invalid`].
    pub fn passthrough_invalid(&self) -> bool {
        self.invalid
    }

    /// What came from the client.
    pub fn original(&self) -> &Original {
        &self.original
    }

    /// The shards that can hold matches, of `s`, if `ids` or the filter name the documents.
    pub fn pinned_shards(&self, primary_key: &str, s: u16) -> Option<ShardSet> {
        let listed = self.fields.get("ids").and_then(Value::as_array).filter(|ids| !ids.is_empty()).map(|ids| {
            ids.iter().map(|id| match id {
                Value::String(text) => Some(text.clone()),
                Value::Number(n) if n.is_i64() || n.is_u64() => Some(n.to_string()),
                _ => None,
            })
        });
        let ids: BTreeSet<String> = match listed {
            Some(ids) => ids.collect::<Option<_>>()?,
            None => filter::pinned_ids(self.fields.get("filter")?, primary_key)?,
        };
        let shards: BTreeSet<ShardId> = ids.iter().map(|id| shard_of(id, s)).collect();
        Some(shards.into_iter().collect())
    }

    /// Whether parts must be asked with the header `Meili-Proxy-Search: true`, so that they tell what they sorted by.
    pub fn needs_sort_values(&self, parts: usize) -> bool {
        self.sorted && parts > 1
    }

    /// The body for each of `parts` parts (POST `/indexes/{physical}/documents/fetch`).
    pub fn part_body(&self, parts: usize) -> Vec<u8> {
        let mut fields = self.fields.clone();
        if parts > 1 {
            fields.insert("offset".into(), 0.into());
            fields.insert("limit".into(), self.offset.saturating_add(self.limit).into());
        }
        serde_json::to_vec(&fields).expect("a JSON map with text keys encodes")
    }
}

/// One part's list.
struct Listed<'a> {
    part: &'a PartAnswer,
    hits: Vec<RawHit>,
    total: u64,
}

fn read_list<'a>(part: &'a PartAnswer, max: usize) -> Result<Listed<'a>, PartError> {
    let text = &part.body[..];
    let (mut hits, mut total) = (None, None);
    for member in json::members(text, 0)? {
        let m = member?;
        match m.raw_key {
            b"results" => hits = Some(hit::scan_hits(text, m.value_start, max)?.0),
            b"total" => total = std::str::from_utf8(m.value).ok().and_then(|s| s.parse().ok()),
            _ => {}
        }
    }
    Ok(Listed { part, hits: hits.ok_or(PartError::Lacks("results"))?, total: total.ok_or(PartError::Lacks("total"))? })
}

/// Merges lists of documents: sorted ones by their values, others by rank inside the part, then by the part's lowest shard.
///
/// # Errors
/// [`MergeError::Malformed`].
pub fn merge_documents(
    query: &DocumentsQuery,
    parts: &[PartAnswer],
    missing: &ShardSet,
) -> Result<Vec<u8>, MergeError> {
    let alone = matches!(parts, [p] if p.alone);
    if let Some(part) = parts.iter().find(|p| p.alone && !alone) {
        return Err(PartError::Alone.of(&part.shards));
    }
    let end = if alone { usize::MAX } else { query.offset.saturating_add(query.limit) };
    let mut lists =
        parts.iter().map(|p| read_list(p, end).map_err(|e| e.of(&p.shards))).collect::<Result<Vec<_>, _>>()?;
    lists.sort_by_key(|l| l.part.shards.first());
    let total = lists.iter().map(|l| l.total).fold(0, u64::saturating_add);
    let places = if alone {
        (0..lists[0].hits.len()).map(|rank| (0, rank)).collect()
    } else {
        place(query, &lists, end)?.into_iter().skip(query.offset).take(query.limit).collect::<Vec<_>>()
    };
    let style = HitStyle { cut_federation: query.sorted && !alone, ..HitStyle::default() };
    let mut out = b"{\"results\":[".to_vec();
    for (i, (list, rank)) in places.into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        let list = &lists[list];
        hit::write_hit(&mut out, &list.part.body, &list.hits[rank], &style)
            .map_err(|e| PartError::from(e).of(&list.part.shards))?;
    }
    let (offset, limit) = (query.offset, query.limit);
    out.extend_from_slice(format!("],\"offset\":{offset},\"limit\":{limit},\"total\":{total}").as_bytes());
    write_remote_errors(&mut out, missing);
    out.push(b'}');
    Ok(out)
}

/// The first `end` documents in order, each as list and rank.
fn place(query: &DocumentsQuery, lists: &[Listed<'_>], end: usize) -> Result<Vec<(usize, usize)>, MergeError> {
    let values = |list: usize, rank: usize| -> Result<Option<Rules>, MergeError> {
        let Listed { part, hits, .. } = &lists[list];
        let Some(hit) = hits.get(rank) else { return Ok(None) };
        if !query.sorted {
            return Ok(Some(Rules::new()));
        }
        let read = || -> Result<Rules, PartError> {
            let federation = hit.federation.as_ref().ok_or(PartError::Lacks("_federation"))?;
            for member in json::members(&part.body, federation.value.start)? {
                let m = member?;
                if m.is("weightedScoreValues") {
                    return Ok(order::parse_sort_values(m.value)?);
                }
            }
            Err(PartError::Lacks("weightedScoreValues"))
        };
        read().map(Some).map_err(|e| e.of(&part.shards))
    };
    let mut heads = Vec::with_capacity(lists.len());
    for list in 0..lists.len() {
        heads.push((0, values(list, 0)?));
    }
    let mut out = Vec::new();
    while out.len() < end {
        let mut best: Option<(usize, usize, &Rules)> = None;
        for (list, (rank, rules)) in heads.iter().enumerate() {
            let Some(rules) = rules else { continue };
            let better = best.is_none_or(|(_, other_rank, other)| match order::compare(rules, other) {
                Ordering::Greater => true,
                Ordering::Less => false,
                Ordering::Equal => *rank < other_rank,
            });
            if better {
                best = Some((list, *rank, rules));
            }
        }
        let Some((list, rank, _)) = best else { break };
        out.push((list, rank));
        heads[list] = (rank + 1, values(list, rank + 1)?);
    }
    Ok(out)
}

/// `POST /indexes/{uid}/facet-search`.
#[derive(Debug, Clone, PartialEq)]
pub struct FacetSearchQuery {
    original: Vec<u8>,
    invalid: bool,
    facet: String,
}

impl FacetSearchQuery {
    /// Takes the body.
    ///
    /// # Errors
    /// [`QueryError::Reserved`].
    pub fn from_json(body: &[u8]) -> Result<Self, QueryError> {
        let fields = match serde_json::from_slice::<Value>(body) {
            Ok(Value::Object(fields)) => fields,
            _ => return Ok(Self { original: body.to_vec(), invalid: true, facet: String::new() }),
        };
        let reserved = |parameter: &str| QueryError::Reserved { parameter: parameter.to_owned() };
        if fields.get("filter").is_some_and(filter::names_shard_field) {
            return Err(reserved("filter"));
        }
        let facet = fields.get("facetName").and_then(Value::as_str);
        if facet.is_some_and(filter::has_shard_word) {
            return Err(reserved("facetName"));
        }
        let named = |v: &Value| v.as_str().is_some_and(filter::has_shard_word);
        if fields.get("attributesToSearchOn").and_then(Value::as_array).is_some_and(|a| a.iter().any(named)) {
            return Err(reserved("attributesToSearchOn"));
        }
        let facet_name = facet.unwrap_or_default().to_owned();
        Ok(Self { original: body.to_vec(), invalid: facet.is_none(), facet: facet_name })
    }

    /// As [`super::SearchQuery::passthrough_invalid`].
    pub fn passthrough_invalid(&self) -> bool {
        self.invalid
    }

    /// The body for every part: the client's own.
    pub fn part_body(&self) -> &[u8] {
        &self.original
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

    fn part(first: u16, body: &Value) -> PartAnswer {
        PartAnswer { shards: [ShardId(first)].into_iter().collect(), alone: false, body: body.to_string().into() }
    }

    fn listed(ids: &[&str]) -> Value {
        let results: Vec<_> = ids.iter().map(|id| json!({"id": id, "_miroir_shard": "ꀀ"})).collect();
        json!({"results": results, "offset": 0, "limit": 20, "total": 10})
    }

    fn merged(query: &Value, parts: &[PartAnswer]) -> Value {
        let query = DocumentsQuery::from_json(query.to_string().as_bytes()).unwrap();
        serde_json::from_slice(&merge_documents(&query, parts, &ShardSet::new()).unwrap()).unwrap()
    }

    #[test]
    fn unsorted_lists_interleave_and_pages_join() {
        let parts = [part(1, &listed(&["b0", "b1"])), part(0, &listed(&["a0", "a1", "a2"]))];
        let seen = merged(&json!({}), &parts);
        let all = json!([{"id": "a0"}, {"id": "b0"}, {"id": "a1"}, {"id": "b1"}, {"id": "a2"}]);
        assert_eq!(seen, json!({"results": all, "offset": 0, "limit": 20, "total": 20}));
        let mut joined = Vec::new();
        for offset in 0..6 {
            let seen = merged(&json!({"offset": offset, "limit": 1}), &parts);
            joined.extend(seen["results"].as_array().unwrap().clone());
        }
        assert_eq!(Value::from(joined), all);
        assert_eq!(merged(&json!({"limit": 0}), &parts)["results"], json!([]));
        assert_eq!(merged(&json!({"offset": usize::MAX, "limit": usize::MAX}), &parts)["results"], json!([]));
    }

    #[test]
    fn sorted_lists_stand_by_their_values_and_these_are_cut() {
        let doc = |id: &str, size: Value| json!({"id": id, "_federation": {"weightedScoreValues": [{"sort": {"asc": true, "value": size}}]}});
        let body = |docs: Value| json!({"results": docs, "offset": 0, "limit": 20, "total": 3});
        let parts = [
            part(0, &body(json!([doc("a", json!(2)), doc("b", json!(10)), doc("c", json!(null))]))),
            part(1, &body(json!([doc("d", json!(1.5)), doc("e", json!("x"))]))),
        ];
        let query = json!({"sort": ["size:asc"], "offset": 1, "limit": 3});
        assert_eq!(merged(&query, &parts)["results"], json!([{"id": "a"}, {"id": "b"}, {"id": "e"}]));
        let query = DocumentsQuery::from_json(query.to_string().as_bytes()).unwrap();
        assert!(query.needs_sort_values(2) && !query.needs_sort_values(1));
        assert!(merge_documents(&query, &[part(0, &listed(&["a"]))], &ShardSet::new()).is_err());
    }

    #[test]
    fn the_only_part_keeps_its_page() {
        let alone = PartAnswer { alone: true, ..part(0, &listed(&["a", "b"])) };
        let seen = merged(&json!({"offset": 40}), std::slice::from_ref(&alone));
        assert_eq!(seen["results"], json!([{"id": "a"}, {"id": "b"}]));
        let query = DocumentsQuery::from_json(b"{}").unwrap();
        assert!(merge_documents(&query, &[alone, part(1, &listed(&[]))], &ShardSet::new()).is_err());
    }

    #[test]
    fn ids_name_the_shards() {
        let pinned = |q: Value| DocumentsQuery::from_json(q.to_string().as_bytes()).unwrap().pinned_shards("id", 64);
        let shards = |ids: &[&str]| ids.iter().map(|id| shard_of(id, 64)).collect::<ShardSet>();
        assert_eq!(pinned(json!({"ids": ["a", 7]})), Some(shards(&["a", "7"])));
        assert_eq!(pinned(json!({"filter": "id = 7"})), Some(shards(&["7"])));
        assert_eq!(pinned(json!({"ids": []})), None);
        assert_eq!(pinned(json!({"ids": [1.5]})), None);
    }

    #[test]
    fn get_parameters_come_to_the_same_as_a_post() {
        let pairs =
            [("offset", "2"), ("limit", "3"), ("fields", "id,name"), ("filter", "a = 1"), ("sort", "a:asc,b:desc")];
        let get = DocumentsQuery::from_query_string(pairs).unwrap();
        let body = |parts| serde_json::from_slice::<Value>(&get.part_body(parts)).unwrap();
        let sort = json!(["a:asc", "b:desc"]);
        let post = json!({"offset": 2, "limit": 3, "fields": ["id", "name"], "filter": "a = 1", "sort": sort});
        assert_eq!(body(1), post);
        assert_eq!((&body(2)["offset"], &body(2)["limit"]), (&json!(0), &json!(5)));
        assert!(DocumentsQuery::from_query_string([("foo", "1")]).unwrap().passthrough_invalid());
        assert!(DocumentsQuery::from_query_string([("fields", "_miroir_shard")]).is_err());
        assert!(DocumentsQuery::from_json(br#"{"limit":"x"}"#).unwrap().passthrough_invalid());
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
