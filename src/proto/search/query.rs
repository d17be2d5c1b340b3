//! A search as the client sent it, and as each part is asked.
//!
//! The rule: only what the mesh must understand is parsed; all else travels on unread. A query whose understood part is
//! mistyped is kept whole and marked, so that one node gets to refuse it. Must not know: which members there are.

use serde_json::{Map, Value};
use twox_hash::XxHash64;

use super::filter;
use super::request::{Mistyped, Original, QueryError, Sent, boolean, filter_parameter, size, sort_parameter, words};
use crate::proto::settings::{IndexView, is_within};
use crate::types::{PhysicalIndex, ShardId};

/// Meilisearch's default of `limit` and `hitsPerPage`.
const LIMIT_DEFAULT: usize = 20;
/// Meilisearch's default of `hybrid.semanticRatio`.
const SEMANTIC_RATIO_DEFAULT: f64 = 0.5;

/// Which hits the client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// `offset` and `limit`.
    Offset {
        /// Hits to leave out.
        offset: usize,
        /// Hits to show.
        limit: usize,
    },
    /// `page` and `hitsPerPage`; page 0 shows no hits.
    Numbered {
        /// The page, from 1 on.
        page: usize,
        /// Hits a page.
        hits_per_page: usize,
    },
}

impl Page {
    /// The wanted range of the merged list: first hit, and the one behind the last.
    pub fn range(self, max_total_hits: usize) -> std::ops::Range<usize> {
        let (skip, take) = match self {
            Self::Offset { offset, limit } => (offset, limit),
            Self::Numbered { page: 0, .. } => (0, 0),
            Self::Numbered { page, hits_per_page } => ((page - 1).saturating_mul(hits_per_page), hits_per_page),
        };
        let start = skip.min(max_total_hits);
        start..skip.saturating_add(take).min(max_total_hits)
    }
}

/// One search.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchQuery {
    sent: Sent,
    page: Page,
    distinct: Option<String>,
    semantic_ratio: Option<f64>,
    retrieve: Option<Vec<String>>,
    highlight: Vec<String>,
    crop: Vec<String>,
    show_score: bool,
    show_details: bool,
    show_matches: bool,
    retrieve_vectors: bool,
    show_performance: bool,
}

fn semantic_ratio(fields: &Map<String, Value>) -> Result<Option<f64>, Mistyped> {
    match fields.get("hybrid") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(hybrid)) => match hybrid.get("semanticRatio") {
            None => Ok(Some(SEMANTIC_RATIO_DEFAULT)),
            Some(v) => v.as_f64().filter(|r| (0.0..=1.0).contains(r)).map(Some).ok_or(Mistyped),
        },
        Some(_) => Err(Mistyped),
    }
}

/// Parameters that name attributes.
const ATTRIBUTE_PARAMETERS: [&str; 7] = [
    "sort",
    "distinct",
    "facets",
    "attributesToSearchOn",
    "attributesToRetrieve",
    "attributesToHighlight",
    "attributesToCrop",
];

impl SearchQuery {
    /// Takes the body of `POST /indexes/{uid}/search`.
    ///
    /// # Errors
    /// [`QueryError::Reserved`]; everything else that is wrong is left for a node to refuse.
    pub fn from_json(body: &[u8]) -> Result<Self, QueryError> {
        Ok(Self::of(Sent::from_json(body, &ATTRIBUTE_PARAMETERS)?))
    }

    /// Takes the decoded parameters of `GET /indexes/{uid}/search`.
    ///
    /// # Errors
    /// [`QueryError::Reserved`].
    pub fn from_query_string<K: AsRef<str>, V: AsRef<str>>(
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, QueryError> {
        let mut sent = Sent::from_pairs(pairs, &ATTRIBUTE_PARAMETERS, get_parameter)?;
        // A ratio or a vector without an embedder is an error of its own; the node has the words for it.
        let fields = &sent.fields;
        let no_embedder = fields.get("hybrid").is_some_and(|h| h.get("embedder").is_none());
        sent.invalid |= no_embedder || (fields.contains_key("vector") && !fields.contains_key("hybrid"));
        Ok(Self::of(sent))
    }

    fn of(sent: Sent) -> Self {
        let mut query = Self {
            sent,
            page: Page::Offset { offset: 0, limit: LIMIT_DEFAULT },
            distinct: None,
            semantic_ratio: None,
            retrieve: None,
            highlight: Vec::new(),
            crop: Vec::new(),
            show_score: false,
            show_details: false,
            show_matches: false,
            retrieve_vectors: false,
            show_performance: false,
        };
        if query.understand().is_err() {
            query.sent.invalid = true;
        }
        query
    }

    fn understand(&mut self) -> Result<(), Mistyped> {
        let f = &self.sent;
        let offset = f.number("offset", false)?.unwrap_or(0);
        let limit = f.number("limit", false)?.unwrap_or(LIMIT_DEFAULT);
        self.page = match (f.number("page", true)?, f.number("hitsPerPage", true)?) {
            (None, None) => Page::Offset { offset, limit },
            (page, hits) => Page::Numbered { page: page.unwrap_or(1), hits_per_page: hits.unwrap_or(LIMIT_DEFAULT) },
        };
        self.semantic_ratio = semantic_ratio(&f.fields)?;
        self.distinct = f.text("distinct")?;
        self.retrieve = f.list("attributesToRetrieve")?;
        self.highlight = f.list("attributesToHighlight")?.unwrap_or_default();
        self.crop = f.list("attributesToCrop")?.unwrap_or_default();
        self.show_score = f.flag("showRankingScore")?;
        self.show_details = f.flag("showRankingScoreDetails")?;
        self.show_matches = f.flag("showMatchesPosition")?;
        self.retrieve_vectors = f.flag("retrieveVectors")?;
        self.show_performance = f.flag("showPerformanceDetails")?;
        Ok(())
    }

    /// Whether this query can't be merged because it is mistyped: one node gets [`SearchQuery::original`] and refuses it.
    /// A node that does not refuse it must not be believed.
    pub fn passthrough_invalid(&self) -> bool {
        self.sent.invalid
    }

    /// What came from the client. After a node's 4xx, asking one node with this gives the error in the client's terms.
    pub fn original(&self) -> &Original {
        &self.sent.original
    }

    /// Which hits the client wants.
    pub fn page(&self) -> Page {
        self.page
    }

    /// The query's text, if there is one.
    pub fn q(&self) -> Option<&str> {
        self.sent.fields.get("q").and_then(Value::as_str)
    }

    /// The client's filter.
    pub fn filter(&self) -> Option<&Value> {
        self.sent.fields.get("filter").filter(|f| !f.is_null())
    }

    /// The share of vectors in a search that mixes both, between 0 and 1 exclusively.
    pub fn mixing_ratio(&self) -> Option<f64> {
        self.semantic_ratio.filter(|r| *r > 0.0 && *r < 1.0)
    }

    /// The attribute by which hits are distinct.
    pub fn distinct<'a>(&'a self, view: &'a IndexView) -> Option<&'a str> {
        self.distinct.as_deref().or(view.distinct.as_deref())
    }

    pub(super) fn shows_score(&self) -> bool {
        self.show_score
    }

    pub(super) fn shows_details(&self) -> bool {
        self.show_details
    }

    pub(super) fn shows_matches(&self) -> bool {
        self.show_matches
    }

    pub(super) fn shows_performance(&self) -> bool {
        self.show_performance
    }

    /// The shards that can hold matches, of `s`, if the filter pins the primary key.
    pub fn pinned_shards(&self, primary_key: &str, s: u16) -> Option<crate::types::ShardSet> {
        let ids = filter::pinned_ids(self.filter()?, primary_key)?;
        let shards = ids.iter().map(|id| crate::proto::placement::shard_of(id, s));
        Some(shards.collect::<std::collections::BTreeSet<ShardId>>().into_iter().collect())
    }

    /// Hits that a part of several has to return.
    pub fn hits_wanted(&self, view: &IndexView) -> usize {
        let range = self.page.range(view.max_total_hits);
        // A page that shows nothing needs none of the hits before it, unless they decide on the total.
        let total_by_hits = self.distinct(view).is_some() || self.sent.fields.contains_key("rankingScoreThreshold");
        if range.is_empty() && !total_by_hits { 0 } else { range.end }
    }

    /// The attribute that parts return only so that the mesh can tell distinct hits.
    pub(super) fn extra_attribute(&self, view: &IndexView, parts: usize) -> Option<String> {
        let distinct = self.distinct(view).filter(|_| parts > 1)?;
        let wanted = self.retrieved(view)?;
        let touches = |a: &String| a == "*" || is_within(distinct, a) || is_within(a, distinct);
        (!wanted.iter().any(touches)).then(|| distinct.to_owned())
    }

    /// The attributes that hits show; `None` is all.
    fn retrieved(&self, view: &IndexView) -> Option<Vec<String>> {
        match (&self.retrieve, &view.displayed) {
            (None, None) => None,
            (Some(list), None) => Some(list.clone()),
            (None, Some(displayed)) => Some(displayed.clone()),
            (Some(list), Some(displayed)) => Some(if list.iter().any(|a| a == "*") {
                displayed.clone()
            } else {
                list.iter().filter(|a| view.shows(a)).cloned().collect()
            }),
        }
    }

    /// The body for each of `parts` parts (POST `/indexes/{physical}/search`). One part gets the client's page, several
    /// return everything up to its end, with the details that the merge compares.
    pub fn part_body(&self, parts: usize, view: &IndexView) -> Vec<u8> {
        let mut f = self.sent.fields.clone();
        let mut set = |key: &str, value: Value| {
            f.insert(key.to_owned(), value);
        };
        if parts > 1 {
            let wanted = self.hits_wanted(view);
            match self.page {
                Page::Offset { .. } => {
                    set("offset", 0.into());
                    set("limit", wanted.into());
                }
                Page::Numbered { .. } => {
                    set("page", 1.into());
                    set("hitsPerPage", wanted.into());
                }
            }
            set("showRankingScoreDetails", true.into());
            if self.mixing_ratio().is_some() {
                set("showRankingScore", true.into());
            }
        }
        let mut retrieved = self.retrieved(view);
        if let (Some(list), Some(extra)) = (&mut retrieved, self.extra_attribute(view, parts)) {
            list.push(extra);
        }
        if let Some(list) = retrieved {
            set("attributesToRetrieve", list.into());
        }
        if let Some(displayed) = &view.displayed {
            if !self.highlight.is_empty() {
                set("attributesToHighlight", shown_highlights(&self.highlight, displayed, view).into());
            }
            if !self.crop.is_empty() {
                set("attributesToCrop", shown_crops(&self.crop, displayed, view).into());
            }
            if self.retrieve_vectors && !view.shows("_vectors") {
                set("retrieveVectors", false.into());
            }
        }
        serde_json::to_vec(&f).expect("a JSON map with text keys encodes")
    }

    /// The body for the first of two rounds of a search that mixes keywords and vectors over several parts: keywords alone.
    ///
    /// A node leaves vectors out when its keyword hits fill the page and are good enough. For many parts that is to be
    /// decided over all of them ([`super::keywords_suffice`]): if it is so, these answers are the ones to merge, otherwise
    /// [`Self::part_body`] is asked. `None` if one round is enough.
    pub fn keyword_body(&self, parts: usize, view: &IndexView) -> Option<Vec<u8>> {
        if parts < 2 || self.mixing_ratio().is_none() || self.q().is_none_or(|q| q.trim().is_empty()) {
            return None;
        }
        // A node that is asked for keywords alone does not look whether there is such an embedder.
        let embedder = self.sent.fields.get("hybrid")?.get("embedder")?.as_str()?;
        if !view.embedders.contains(embedder) {
            return None;
        }
        let mut keyword = self.clone();
        keyword.sent.fields.get_mut("hybrid")?.as_object_mut()?.insert("semanticRatio".into(), 0.into());
        Some(keyword.part_body(parts, view))
    }

    /// Names this search without its page, so that a client that pages stays on the same replicas.
    pub fn plan_hash(&self, physical: &PhysicalIndex) -> u64 {
        let mut bytes = physical.as_str().as_bytes().to_vec();
        let page = ["offset", "limit", "page", "hitsPerPage"];
        let mut sorted: Vec<_> = self.sent.fields.iter().filter(|(k, _)| !page.contains(&k.as_str())).collect();
        sorted.sort_by_key(|(k, _)| *k);
        for (key, value) in sorted {
            bytes.push(0);
            bytes.extend_from_slice(key.as_bytes());
            bytes.push(0);
            write_sorted(&mut bytes, value);
        }
        XxHash64::oneshot(0, &bytes)
    }
}

/// Writes a value with the keys of its objects sorted.
fn write_sorted(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Object(map) => {
            let mut sorted: Vec<_> = map.iter().collect();
            sorted.sort_by_key(|(k, _)| *k);
            out.push(b'{');
            for (key, inner) in sorted {
                out.extend_from_slice(key.as_bytes());
                out.push(0);
                write_sorted(out, inner);
            }
            out.push(b'}');
        }
        Value::Array(items) => {
            out.push(b'[');
            for inner in items {
                write_sorted(out, inner);
                out.push(b',');
            }
            out.push(b']');
        }
        scalar => out.extend_from_slice(scalar.to_string().as_bytes()),
    }
}

fn shown_highlights(asked: &[String], displayed: &[String], view: &IndexView) -> Vec<String> {
    if asked.iter().any(|a| a == "*") {
        return displayed.to_vec();
    }
    asked.iter().filter(|a| view.shows(a)).cloned().collect()
}

/// Crops are `attribute` or `attribute:length`; `*` stands for all that is displayed, with its length.
fn shown_crops(asked: &[String], displayed: &[String], view: &IndexView) -> Vec<String> {
    let mut out = Vec::new();
    for crop in asked {
        let (name, length) = crop.rsplit_once(':').map_or((crop.as_str(), ""), |(n, l)| (n, l));
        if name == "*" {
            let suffix = if crop.contains(':') { format!(":{length}") } else { String::new() };
            out.extend(displayed.iter().map(|d| format!("{d}{suffix}")));
        } else if view.shows(name) {
            out.push(crop.clone());
        }
    }
    out
}

/// One parameter of a GET, put where a POST has it. As on a node the last of several wins.
fn get_parameter(fields: &mut Map<String, Value>, key: &str, value: &str) -> Result<(), Mistyped> {
    let parsed: Value = match key {
        "q" | "cropMarker" | "highlightPreTag" | "highlightPostTag" | "distinct" | "matchingStrategy" => value.into(),
        "offset" | "limit" | "page" | "hitsPerPage" | "cropLength" => size(value)?,
        "showMatchesPosition"
        | "showRankingScore"
        | "showRankingScoreDetails"
        | "showPerformanceDetails"
        | "retrieveVectors"
        | "useNetwork" => boolean(value)?,
        "attributesToRetrieve"
        | "attributesToCrop"
        | "attributesToHighlight"
        | "attributesToSearchOn"
        | "facets"
        | "locales" => words(value).into(),
        "sort" => sort_parameter(value).into(),
        "filter" => filter_parameter(value),
        "rankingScoreThreshold" => finite(value)?,
        "vector" => words(value).into_iter().map(finite).collect::<Result<Vec<_>, _>>()?.into(),
        "hybridEmbedder" => return nested(fields, "hybrid", "embedder", value.into()),
        "hybridSemanticRatio" => return nested(fields, "hybrid", "semanticRatio", finite(value)?),
        "personalizeUserContext" => return nested(fields, "personalize", "userContext", value.into()),
        _ => return Err(Mistyped),
    };
    fields.insert(key.to_owned(), parsed);
    Ok(())
}

fn finite(text: &str) -> Result<Value, Mistyped> {
    let number = text.parse::<f64>().map_err(|_| Mistyped)?;
    serde_json::Number::from_f64(number).map(Value::Number).ok_or(Mistyped)
}

fn nested(fields: &mut Map<String, Value>, outer: &str, inner: &str, value: Value) -> Result<(), Mistyped> {
    let entry = fields.entry(outer).or_insert_with(|| Map::new().into());
    entry.as_object_mut().ok_or(Mistyped)?.insert(inner.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn query(v: Value) -> SearchQuery {
        SearchQuery::from_json(v.to_string().as_bytes()).unwrap()
    }

    fn body(q: &SearchQuery, parts: usize, view: &IndexView) -> Value {
        serde_json::from_slice(&q.part_body(parts, view)).unwrap()
    }

    fn displayed(list: &[&str]) -> IndexView {
        IndexView { displayed: Some(list.iter().map(|s| (*s).to_owned()).collect()), ..IndexView::default() }
    }

    #[test]
    fn one_part_gets_the_query_as_it_came() {
        let v = json!({"q": "linux", "offset": 3, "limit": 7, "facets": ["a"], "unknown": [1]});
        assert_eq!(body(&query(v.clone()), 1, &IndexView::default()), v);
    }

    #[test]
    fn several_parts_return_all_up_to_the_end_of_the_page() {
        let view = IndexView::default();
        let b = body(&query(json!({"offset": 3, "limit": 7})), 3, &view);
        assert_eq!(b, json!({"offset": 0, "limit": 10, "showRankingScoreDetails": true}));
        let b = body(&query(json!({"page": 3, "hitsPerPage": 7})), 3, &view);
        assert_eq!(b, json!({"page": 1, "hitsPerPage": 21, "showRankingScoreDetails": true}));
        let b = body(&query(json!({"page": 0})), 3, &view);
        assert_eq!((&b["page"], &b["hitsPerPage"]), (&json!(1), &json!(0)));
        let b = body(&query(json!({"offset": 999, "limit": usize::MAX})), 3, &view);
        assert_eq!(b["limit"], 1_000);
        // What lies behind the last hit that can be had shows nothing, and needs nothing but totals.
        for far in [json!({"offset": usize::MAX, "limit": usize::MAX}), json!({"offset": 50, "limit": 0})] {
            assert_eq!(body(&query(far), 3, &view)["limit"], 0);
        }
        let b = body(&query(json!({"page": usize::MAX, "hitsPerPage": 9})), 3, &view);
        assert_eq!(b["hitsPerPage"], 0);
        let b = body(&query(json!({"offset": 50, "limit": 0, "distinct": "sku"})), 3, &view);
        assert_eq!(b["limit"], 50);
    }

    #[test]
    fn mistyped_fields_are_left_for_a_node_to_refuse() {
        for bad in [
            json!({"limit": "x"}),
            json!({"limit": null}),
            json!({"limit": 1.0}),
            json!({"offset": -1}),
            json!({"page": 1.5}),
            json!({"showRankingScore": null}),
            json!({"distinct": 5}),
            json!({"attributesToRetrieve": "id"}),
            json!({"hybrid": {"semanticRatio": 2}}),
            json!([]),
            json!(7),
        ] {
            let q = query(bad.clone());
            assert!(q.passthrough_invalid(), "{bad}");
            assert_eq!(q.original(), &Original::Body(bad.to_string().into_bytes()));
        }
        assert!(SearchQuery::from_json(b"{nonsense").unwrap().passthrough_invalid());
        assert!(SearchQuery::from_json(b"").unwrap().passthrough_invalid());
        let nulls = json!({"page": null, "hitsPerPage": null, "distinct": null, "sort": null, "hybrid": null});
        assert!(!query(nulls).passthrough_invalid());
    }

    #[test]
    fn the_shard_field_can_not_be_named() {
        for bad in [
            json!({"filter": "_miroir_shard = x"}),
            json!({"filter": ["a = 1", ["\"_miroir_shard\" IN [x]"]]}),
            json!({"sort": ["_miroir_shard:asc"]}),
            json!({"facets": ["a", "_miroir_shard"]}),
            json!({"distinct": "_miroir_shard"}),
            json!({"attributesToSearchOn": ["_miroir_shard"]}),
            json!({"attributesToRetrieve": ["_miroir_shard"]}),
            json!({"attributesToCrop": ["_miroir_shard:10"]}),
            json!({"attributesToHighlight": ["_miroir_shard"]}),
            json!({"limit": "mistyped", "facets": "_miroir_shard"}),
        ] {
            assert!(SearchQuery::from_json(bad.to_string().as_bytes()).is_err(), "{bad}");
        }
        assert!(SearchQuery::from_query_string([("sort", "_miroir_shard:desc")]).is_err());
        assert!(SearchQuery::from_json(br#"{"q": "_miroir_shard", "filter": "a = '_miroir_shard'"}"#).is_ok());
    }

    #[test]
    fn get_parameters_come_to_the_same_as_a_post() {
        let get = SearchQuery::from_query_string([
            ("q", "a b"),
            ("limit", "3"),
            ("limit", "4"),
            ("attributesToRetrieve", "id,,name"),
            ("sort", "size:asc,_geoPoint(1, 2):desc,a:asc"),
            ("filter", r#"["a = 1"]"#),
            ("hybridEmbedder", "e"),
            ("hybridSemanticRatio", "0.25"),
            ("vector", "1,2.5"),
            ("showRankingScore", "true"),
        ])
        .unwrap();
        assert!(!get.passthrough_invalid());
        let post = json!({"q": "a b", "limit": 4, "attributesToRetrieve": ["id", "name"],
            "sort": ["size:asc", "_geoPoint(1,2):desc", "a:asc"], "filter": ["a = 1"],
            "hybrid": {"embedder": "e", "semanticRatio": 0.25}, "vector": [1.0, 2.5], "showRankingScore": true});
        assert_eq!(body(&get, 1, &IndexView::default()), post);
        let filter = SearchQuery::from_query_string([("filter", "a = 1")]).unwrap();
        assert_eq!(filter.filter(), Some(&json!("a = 1")));
    }

    #[test]
    fn get_errors_are_left_for_a_node() {
        for pair in [("limit", "x"), ("foo", "1"), ("showRankingScore", "True"), ("page", ""), ("vector", "1,2")] {
            assert!(SearchQuery::from_query_string([pair]).unwrap().passthrough_invalid(), "{pair:?}");
        }
        assert!(SearchQuery::from_query_string([("hybridSemanticRatio", "0.5")]).unwrap().passthrough_invalid());
    }

    #[test]
    fn attributes_are_cut_to_what_is_displayed() {
        let view = displayed(&["id", "a"]);
        let b = body(&query(json!({})), 1, &view);
        assert_eq!(b["attributesToRetrieve"], json!(["id", "a"]));
        let q = json!({"attributesToRetrieve": ["a.b", "secret", "id"], "attributesToHighlight": ["*"],
            "attributesToCrop": ["*:5", "secret:3", "id"], "retrieveVectors": true});
        let b = body(&query(q), 1, &view);
        assert_eq!(b["attributesToRetrieve"], json!(["a.b", "id"]));
        assert_eq!(b["attributesToHighlight"], json!(["id", "a"]));
        assert_eq!(b["attributesToCrop"], json!(["id:5", "a:5", "id"]));
        assert_eq!(b["retrieveVectors"], false);
        let b = body(&query(json!({"attributesToRetrieve": ["*"]})), 1, &view);
        assert_eq!(b["attributesToRetrieve"], json!(["id", "a"]));
    }

    #[test]
    fn parts_return_the_distinct_attribute() {
        let view = IndexView { distinct: Some("brand".into()), ..IndexView::default() };
        let q = query(json!({"attributesToRetrieve": ["id"]}));
        assert_eq!(body(&q, 2, &view)["attributesToRetrieve"], json!(["id", "brand"]));
        assert_eq!(body(&q, 1, &view)["attributesToRetrieve"], json!(["id"]));
        assert_eq!(q.extra_attribute(&view, 2), Some("brand".into()));
        let q = query(json!({"attributesToRetrieve": ["id", "brand"]}));
        assert_eq!(q.extra_attribute(&view, 2), None);
    }

    #[test]
    fn a_mixed_search_asks_for_keywords_first() {
        let q = query(json!({"q": "x", "hybrid": {"embedder": "e", "semanticRatio": 0.7}}));
        let view = IndexView { embedders: ["e".to_owned()].into(), ..IndexView::default() };
        let first: Value = serde_json::from_slice(&q.keyword_body(2, &view).unwrap()).unwrap();
        assert_eq!(q.keyword_body(2, &IndexView::default()), None, "a node is to refuse an embedder that is not there");
        assert_eq!(first["hybrid"], json!({"embedder": "e", "semanticRatio": 0}));
        assert_eq!((&first["showRankingScore"], &first["limit"]), (&json!(true), &json!(20)));
        assert_eq!(q.keyword_body(1, &view), None);
        for other in [
            json!({"q": "x"}),
            json!({"q": " ", "hybrid": {"embedder": "e"}}),
            json!({"q": "x", "hybrid": {"embedder": "e", "semanticRatio": 1.0}}),
        ] {
            assert_eq!(query(other).keyword_body(2, &view), None);
        }
    }

    #[test]
    fn the_hash_knows_neither_page_nor_key_order() {
        let index = PhysicalIndex::new("packages__m00000001").unwrap();
        let other = PhysicalIndex::new("packages__m00000002").unwrap();
        let a = query(json!({"q": "x", "hybrid": {"embedder": "e", "semanticRatio": 0.5}, "limit": 3}));
        let b = query(json!({"page": 3, "hybrid": {"semanticRatio": 0.5, "embedder": "e"}, "q": "x"}));
        assert_eq!(a.plan_hash(&index), b.plan_hash(&index));
        assert_ne!(a.plan_hash(&index), a.plan_hash(&other));
        assert_ne!(a.plan_hash(&index), query(json!({"q": "y"})).plan_hash(&index));
    }

    #[test]
    fn pages_never_pass_the_limit_of_the_index() {
        assert_eq!(Page::Offset { offset: 990, limit: 20 }.range(1_000), 990..1_000);
        assert_eq!(Page::Offset { offset: 5_000, limit: 20 }.range(1_000), 1_000..1_000);
        assert_eq!(Page::Numbered { page: 0, hits_per_page: 20 }.range(1_000), 0..0);
        assert_eq!(Page::Numbered { page: 2, hits_per_page: 20 }.range(1_000), 20..40);
        assert_eq!(Page::Numbered { page: usize::MAX, hits_per_page: usize::MAX }.range(1_000), 1_000..1_000);
    }
}
