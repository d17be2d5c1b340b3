//! Listing documents over several parts.
//!
//! Must not know: ranking rules other than sorts.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::filter;
use super::hit::{self, HitStyle, RawHit};
use super::merge::{MergeError, PartAnswer, PartError, write_remote_errors};
use super::order::{self, Rules};
use super::request::{Mistyped, Original, QueryError, Sent, boolean, filter_parameter, size, sort_parameter, words};
use crate::proto::json;
use crate::proto::placement::shard_of;
use crate::types::{ShardId, ShardSet};

/// Meilisearch's default of `limit`.
const LIMIT_DEFAULT: usize = 20;

/// `POST /indexes/{uid}/documents/fetch`, or `GET /indexes/{uid}/documents` as the former.
#[derive(Debug, Clone, PartialEq)]
pub struct DocumentsQuery {
    sent: Sent,
    pub(super) offset: usize,
    pub(super) limit: usize,
    pub(super) sorted: bool,
}

/// Parameters that name attributes.
const ATTRIBUTE_PARAMETERS: [&str; 2] = ["sort", "fields"];

impl DocumentsQuery {
    /// Takes the body of `POST …/documents/fetch`.
    ///
    /// # Errors
    /// [`QueryError::Reserved`]; everything else that is wrong is left for a node to refuse.
    pub fn from_json(body: &[u8]) -> Result<Self, QueryError> {
        Ok(Self::of(Sent::from_json(body, &ATTRIBUTE_PARAMETERS)?))
    }

    /// Takes the decoded parameters of `GET …/documents`.
    ///
    /// # Errors
    /// [`QueryError::Reserved`].
    pub fn from_query_string<K: AsRef<str>, V: AsRef<str>>(
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, QueryError> {
        Ok(Self::of(Sent::from_pairs(pairs, &ATTRIBUTE_PARAMETERS, get_parameter)?))
    }

    fn of(mut sent: Sent) -> Self {
        let (offset, limit) = (sent.number("offset", false), sent.number("limit", false));
        sent.invalid |= offset.is_err() || limit.is_err();
        let or = |n: Result<Option<usize>, Mistyped>, default| n.ok().flatten().unwrap_or(default);
        let (offset, limit) = (or(offset, 0), or(limit, LIMIT_DEFAULT));
        let sorted = sent.fields.get("sort").and_then(Value::as_array).is_some_and(|s| !s.is_empty());
        Self { sent, offset, limit, sorted }
    }

    /// As [`super::SearchQuery::passthrough_invalid`].
    pub fn passthrough_invalid(&self) -> bool {
        self.sent.invalid
    }

    /// What came from the client.
    pub fn original(&self) -> &Original {
        &self.sent.original
    }

    /// The shards that can hold matches, of `s`, if `ids` or the filter name the documents.
    pub fn pinned_shards(&self, primary_key: &str, s: u16) -> Option<ShardSet> {
        let listed = self.sent.fields.get("ids").and_then(Value::as_array).filter(|ids| !ids.is_empty()).map(|ids| {
            ids.iter().map(|id| match id {
                Value::String(text) => Some(text.clone()),
                Value::Number(n) if n.is_i64() || n.is_u64() => Some(n.to_string()),
                _ => None,
            })
        });
        let ids: BTreeSet<String> = match listed {
            Some(ids) => ids.collect::<Option<_>>()?,
            None => filter::pinned_ids(self.sent.fields.get("filter")?, primary_key)?,
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
        if parts > 1 {
            self.page_body(0, self.offset.saturating_add(self.limit))
        } else {
            self.encode(&self.sent.fields)
        }
    }

    /// The body for so many documents from `offset` on.
    pub(super) fn page_body(&self, offset: usize, limit: usize) -> Vec<u8> {
        let mut fields = self.sent.fields.clone();
        fields.insert("offset".into(), offset.into());
        fields.insert("limit".into(), limit.into());
        self.encode(&fields)
    }

    /// As [`Self::page_body`], of documents without their fields: only what they are sorted by.
    pub(super) fn bare_body(&self, offset: usize, limit: usize) -> Vec<u8> {
        let mut fields = self.sent.fields.clone();
        fields.insert("offset".into(), offset.into());
        fields.insert("limit".into(), limit.into());
        fields.insert("fields".into(), Value::Array(Vec::new()));
        fields.shift_remove("retrieveVectors");
        self.encode(&fields)
    }

    fn encode(&self, fields: &Map<String, Value>) -> Vec<u8> {
        serde_json::to_vec(fields).expect("a JSON map with text keys encodes")
    }
}

/// One parameter of a GET, put where a POST has it.
fn get_parameter(fields: &mut Map<String, Value>, key: &str, value: &str) -> Result<(), Mistyped> {
    let parsed = match key {
        "offset" | "limit" => size(value)?,
        "retrieveVectors" => boolean(value)?,
        // Only a GET knows the star; a POST without `fields` shows the same.
        "fields" if words(value).contains(&"*") => return Ok(()),
        "fields" | "ids" => words(value).into(),
        "sort" => sort_parameter(value).into(),
        "filter" => filter_parameter(value),
        _ => return Err(Mistyped),
    };
    fields.insert(key.to_owned(), parsed);
    Ok(())
}

/// One part's list, from some rank on.
pub(super) struct Listed<'a> {
    part: &'a PartAnswer,
    /// The rank of the first hit in the part's whole list.
    base: usize,
    hits: Vec<RawHit>,
    pub(super) total: u64,
}

impl<'a> Listed<'a> {
    /// At most `max` documents, of which the first has this rank.
    pub(super) fn read(part: &'a PartAnswer, base: usize, max: usize) -> Result<Self, MergeError> {
        let read = || -> Result<Self, PartError> {
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
            let (hits, total) = (hits.ok_or(PartError::Lacks("results"))?, total.ok_or(PartError::Lacks("total"))?);
            Ok(Self { part, base, hits, total })
        };
        read().map_err(|e| e.of(&part.shards))
    }

    /// How many documents there are.
    pub(super) fn len(&self) -> usize {
        self.hits.len()
    }

    /// What the document at this place is sorted by; `None` behind the last one.
    pub(super) fn values(&self, at: usize) -> Result<Option<Rules>, MergeError> {
        let Some(hit) = self.hits.get(at) else { return Ok(None) };
        let read = || -> Result<Rules, PartError> {
            let federation = hit.federation.as_ref().ok_or(PartError::Lacks("_federation"))?;
            for member in json::members(&self.part.body, federation.value.start)? {
                let m = member?;
                if m.is("weightedScoreValues") {
                    return Ok(order::parse_sort_values(m.value)?);
                }
            }
            Err(PartError::Lacks("weightedScoreValues"))
        };
        read().map(Some).map_err(|e| e.of(&self.part.shards))
    }
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
    if let [part] = parts
        && part.alone
    {
        // The node has made the page.
        let list = Listed::read(part, 0, usize::MAX)?;
        let (places, total) = ((0..list.len()).map(|at| (0, at)).collect::<Vec<_>>(), list.total);
        return write_list(query, &[list], &places, HitStyle::default(), total, missing);
    }
    if let Some(part) = parts.iter().find(|p| p.alone) {
        return Err(PartError::Alone.of(&part.shards));
    }
    let end = query.offset.saturating_add(query.limit);
    let lists = parts.iter().map(|p| Listed::read(p, 0, end)).collect::<Result<Vec<_>, _>>()?;
    let total = lists.iter().map(|l| l.total).fold(0, u64::saturating_add);
    merge_lists(query, lists, query.offset, total, missing)
}

/// Merges lists, and shows the page that begins behind `skip` documents of them.
pub(super) fn merge_lists(
    query: &DocumentsQuery,
    mut lists: Vec<Listed<'_>>,
    skip: usize,
    total: u64,
    missing: &ShardSet,
) -> Result<Vec<u8>, MergeError> {
    lists.sort_by_key(|l| l.part.shards.first());
    let mut places = place(query, &lists, skip.saturating_add(query.limit))?;
    places.drain(..skip.min(places.len()));
    let style = HitStyle { cut_federation: query.sorted, ..HitStyle::default() };
    write_list(query, &lists, &places, style, total, missing)
}

fn write_list(
    query: &DocumentsQuery,
    lists: &[Listed<'_>],
    places: &[(usize, usize)],
    style: HitStyle<'_>,
    total: u64,
    missing: &ShardSet,
) -> Result<Vec<u8>, MergeError> {
    let mut out = b"{\"results\":[".to_vec();
    for (i, (list, at)) in places.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        let list = &lists[*list];
        hit::write_hit(&mut out, &list.part.body, &list.hits[*at], &style)
            .map_err(|e| PartError::from(e).of(&list.part.shards))?;
    }
    let (offset, limit) = (query.offset, query.limit);
    out.extend_from_slice(format!("],\"offset\":{offset},\"limit\":{limit},\"total\":{total}").as_bytes());
    write_remote_errors(&mut out, missing);
    out.push(b'}');
    Ok(out)
}

/// Whether a document with this rank in its part stands before another, which is found in a part with a higher lowest shard.
pub(super) fn stands_before(other: (&Rules, usize), this: (&Rules, usize)) -> bool {
    match order::compare(this.0, other.0) {
        Ordering::Greater => true,
        Ordering::Less => false,
        Ordering::Equal => this.1 < other.1,
    }
}

/// The first `end` documents in order, each as list and place in it.
fn place(query: &DocumentsQuery, lists: &[Listed<'_>], end: usize) -> Result<Vec<(usize, usize)>, MergeError> {
    let values = |list: usize, at: usize| -> Result<Option<Rules>, MergeError> {
        if query.sorted { lists[list].values(at) } else { Ok((at < lists[list].len()).then(Rules::new)) }
    };
    let mut heads = Vec::with_capacity(lists.len());
    for list in 0..lists.len() {
        heads.push((0, values(list, 0)?));
    }
    let mut out = Vec::new();
    while out.len() < end {
        let mut best: Option<(usize, usize, &Rules)> = None;
        for (list, (at, rules)) in heads.iter().enumerate() {
            let Some(rules) = rules else { continue };
            let rank = |list: usize, at: usize| lists[list].base.saturating_add(at);
            if best.is_none_or(|(l, a, best)| stands_before((best, rank(l, a)), (rules, rank(list, *at)))) {
                best = Some((list, *at, rules));
            }
        }
        let Some((list, at, _)) = best else { break };
        out.push((list, at));
        heads[list] = (at + 1, values(list, at + 1)?);
    }
    Ok(out)
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
        let star = DocumentsQuery::from_query_string([("fields", "*,name")]).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&star.part_body(1)).unwrap().get("fields"), None);
        assert!(DocumentsQuery::from_query_string([("foo", "1")]).unwrap().passthrough_invalid());
        assert!(DocumentsQuery::from_query_string([("fields", "_miroir_shard")]).is_err());
        assert!(DocumentsQuery::from_json(br#"{"limit":"x"}"#).unwrap().passthrough_invalid());
    }
}
