//! Search requests: their parameters, and putting the answer together.
//!
//! Rule: parameters are checked wholly before the search begins, in Meilisearch's words. Must not know: HTTP, the store.

use std::collections::HashSet;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::error::{ApiError, Result};
use super::filter::{self, Filter, Wording};
use super::format::{Formatting, positions, select};
use super::index::Index;
use super::params::{Fields, Query as Parameters, wrong_type};
use super::query::Query;
use super::rank::{self, DocSet, Part, Ranked, Search, SortValue, Strategy};
use super::{facets, vector};

/// The fields of a search body.
pub const FIELDS: [&str; 30] = [
    "q",
    "offset",
    "limit",
    "page",
    "hitsPerPage",
    "attributesToRetrieve",
    "attributesToCrop",
    "cropLength",
    "cropMarker",
    "attributesToHighlight",
    "highlightPreTag",
    "highlightPostTag",
    "showMatchesPosition",
    "filter",
    "sort",
    "distinct",
    "facets",
    "matchingStrategy",
    "attributesToSearchOn",
    "rankingScoreThreshold",
    "locales",
    "hybrid",
    "vector",
    "retrieveVectors",
    "media",
    "personalize",
    "useNetwork",
    "showRankingScore",
    "showRankingScoreDetails",
    "showPerformanceDetails",
];

/// The parameters of a search by GET.
const PARAMETERS: [&str; 30] = [
    "q",
    "offset",
    "limit",
    "page",
    "hitsPerPage",
    "attributesToRetrieve",
    "attributesToCrop",
    "cropLength",
    "cropMarker",
    "attributesToHighlight",
    "highlightPreTag",
    "highlightPostTag",
    "showMatchesPosition",
    "filter",
    "sort",
    "distinct",
    "facets",
    "matchingStrategy",
    "attributesToSearchOn",
    "rankingScoreThreshold",
    "locales",
    "hybridEmbedder",
    "hybridSemanticRatio",
    "vector",
    "retrieveVectors",
    "personalizeUserContext",
    "useNetwork",
    "showRankingScore",
    "showRankingScoreDetails",
    "showPerformanceDetails",
];

/// A checked search request.
#[derive(Debug, Clone)]
pub struct Request {
    q: Option<String>,
    offset: usize,
    limit: usize,
    page: Option<usize>,
    hits_per_page: Option<usize>,
    formatting: Formatting,
    filter: Option<Filter>,
    sort: Vec<(String, bool)>,
    distinct: Option<String>,
    facets: Option<Vec<String>>,
    strategy: Strategy,
    attributes: Option<Vec<String>>,
    threshold: Option<f64>,
    hybrid: Option<(String, f32)>,
    vector: Option<Vec<f32>>,
    retrieve_vectors: bool,
    show_score: bool,
    show_details: bool,
}

/// The body that a query string stands for.
pub fn body_of_query(raw: Option<&str>) -> Result<Value> {
    let query = Parameters::read(raw, &PARAMETERS)?;
    let mut body = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            body.insert(name.to_owned(), value);
        }
    };
    for (name, code) in [
        ("offset", "invalid_search_offset"),
        ("limit", "invalid_search_limit"),
        ("page", "invalid_search_page"),
        ("hitsPerPage", "invalid_search_hits_per_page"),
        ("cropLength", "invalid_search_crop_length"),
    ] {
        put(name, query.count(name, code)?.map(|n| json!(n)));
    }
    for (name, code) in [
        ("showMatchesPosition", "invalid_search_show_matches_position"),
        ("retrieveVectors", "invalid_search_retrieve_vectors"),
        ("showRankingScore", "invalid_search_show_ranking_score"),
        ("showRankingScoreDetails", "invalid_search_show_ranking_score_details"),
    ] {
        put(name, query.boolean(name, code)?.map(Value::Bool));
    }
    for name in
        ["attributesToRetrieve", "attributesToCrop", "attributesToHighlight", "sort", "facets", "attributesToSearchOn"]
    {
        put(name, query.list(name).map(|list| json!(list)));
    }
    for name in ["q", "cropMarker", "highlightPreTag", "highlightPostTag", "distinct", "matchingStrategy"] {
        put(name, query.get(name).map(|text| json!(text)));
    }
    put(
        "filter",
        query.get("filter").map(|text| match serde_json::from_str::<Value>(text) {
            Ok(list @ Value::Array(_)) => list,
            _ => json!(text),
        }),
    );
    put(
        "rankingScoreThreshold",
        query.number("rankingScoreThreshold", "invalid_search_ranking_score_threshold")?.map(|n| json!(n)),
    );
    let ratio = query.number("hybridSemanticRatio", "invalid_search_semantic_ratio")?;
    match (query.get("hybridEmbedder"), ratio) {
        (Some(embedder), ratio) => {
            put("hybrid", Some(json!({"embedder": embedder, "semanticRatio": ratio.unwrap_or(0.5)})));
        }
        (None, Some(_)) => {
            let text = "`hybridEmbedder` is mandatory when `hybridSemanticRatio` is present";
            return Err(ApiError::new("invalid_search_hybrid_query", text));
        }
        (None, None) if query.get("vector").is_some() => {
            let text = "`hybridEmbedder` is mandatory when `vector` is present";
            return Err(ApiError::new("missing_search_hybrid", text));
        }
        (None, None) => {}
    }
    if let Some(list) = query.list("vector") {
        let numbers: std::result::Result<Vec<f64>, _> = list.iter().map(|item| item.trim().parse::<f64>()).collect();
        let bad = |e| ApiError::new("invalid_search_vector", format!("Invalid value in parameter `vector`: {e}"));
        put("vector", Some(json!(numbers.map_err(bad)?)));
    }
    Ok(Value::Object(body))
}

/// A list of `field:asc` and `field:desc`.
pub fn parse_sorts(list: Vec<String>, code: &'static str) -> Result<Vec<(String, bool)>> {
    let one = |text: String| match text.rsplit_once(':') {
        Some((field, "asc")) => Ok((field.to_owned(), true)),
        Some((field, "desc")) => Ok((field.to_owned(), false)),
        _ => {
            let why = format!(
                "Invalid syntax for the sort parameter: expected expression ending by `:asc` or `:desc`, found `{text}`."
            );
            Err(ApiError::new(code, why))
        }
    };
    list.into_iter().map(one).collect()
}

/// Refuses sorts by attributes that are not sortable.
pub fn check_sorts(index: &Index, sorts: &[(String, bool)], code: &'static str, prefix: &str) -> Result<()> {
    for (field, _) in sorts {
        if index.settings.is_sortable(field) {
            continue;
        }
        let field = if field.starts_with("_geoPoint") { "_geo" } else { field };
        let names: Vec<&str> = index.settings.sortable.iter().map(String::as_str).collect();
        let available = match names.is_empty() {
            true => "This index does not have configured sortable attributes.".to_owned(),
            false => format!("Available sortable attributes are: `{}`.", names.join(", ")),
        };
        return Err(ApiError::new(code, format!("{prefix}Attribute `{field}` is not sortable. {available}")));
    }
    Ok(())
}

impl Request {
    /// Reads a search body that stands at `path`; `more` are further fields that may be there.
    pub fn read(body: &Value, path: &str, more: &[&str]) -> Result<Self> {
        let allowed: Vec<&str> = FIELDS.iter().chain(more).copied().collect();
        let fields = Fields::open(body, path, "bad_request", &allowed)?;
        let crop_length = fields.count("cropLength", "invalid_search_crop_length")?.unwrap_or(10);
        let crop = fields.strings("attributesToCrop", "invalid_search_attributes_to_crop")?.map(|names| {
            let one = |name: String| match name.rsplit_once(':').map(|(name, words)| (name.to_owned(), words.parse())) {
                Some((name, Ok(words))) => (name, words),
                _ => (name, crop_length),
            };
            names.into_iter().map(one).collect()
        });
        let text = |name: &str, code, default: &str| -> Result<String> {
            Ok(fields.string(name, code)?.unwrap_or_else(|| default.to_owned()))
        };
        let formatting = Formatting {
            retrieve: fields
                .strings("attributesToRetrieve", "invalid_search_attributes_to_retrieve")?
                .filter(|names| !names.iter().any(|name| name == "*")),
            highlight: fields.strings("attributesToHighlight", "invalid_search_attributes_to_highlight")?,
            crop,
            crop_marker: text("cropMarker", "invalid_search_crop_marker", "…")?,
            pre_tag: text("highlightPreTag", "invalid_search_highlight_pre_tag", "<em>")?,
            post_tag: text("highlightPostTag", "invalid_search_highlight_post_tag", "</em>")?,
            positions: fields.boolean("showMatchesPosition", "invalid_search_show_matches_position")?.unwrap_or(false),
        };
        let words = ["last", "all", "frequency"];
        let strategy = match fields.word("matchingStrategy", "invalid_search_matching_strategy", &words)? {
            Some("all") => Strategy::All,
            Some("frequency") => Strategy::Frequency,
            _ => Strategy::Last,
        };
        let threshold = fields.number("rankingScoreThreshold", "invalid_search_ranking_score_threshold")?;
        if threshold.is_some_and(|threshold| !(0.0..=1.0).contains(&threshold)) {
            let at = fields.path("rankingScoreThreshold");
            let why = "the value of `rankingScoreThreshold` is invalid, expected a float between `0.0` and `1.0`.";
            return Err(ApiError::new(
                "invalid_search_ranking_score_threshold",
                format!("Invalid value at `{at}`: {why}"),
            ));
        }
        let sort = fields.strings("sort", "invalid_search_sort")?.unwrap_or_default();
        Ok(Self {
            q: fields.string("q", "invalid_search_q")?,
            offset: fields.count("offset", "invalid_search_offset")?.unwrap_or(0),
            limit: fields.count("limit", "invalid_search_limit")?.unwrap_or(20),
            page: fields.count("page", "invalid_search_page")?,
            hits_per_page: fields.count("hitsPerPage", "invalid_search_hits_per_page")?,
            formatting,
            filter: fields
                .get("filter")
                .map(|value| filter::parse(value, "invalid_search_filter"))
                .transpose()?
                .flatten(),
            sort: parse_sorts(sort, "invalid_search_sort")?,
            distinct: fields.string("distinct", "invalid_search_distinct")?,
            facets: fields.strings("facets", "invalid_search_facets")?,
            strategy,
            attributes: fields
                .strings("attributesToSearchOn", "invalid_search_attributes_to_search_on")?
                .filter(|names| !names.iter().any(|name| name == "*")),
            threshold,
            hybrid: read_hybrid(&fields)?,
            vector: read_vector(&fields)?,
            retrieve_vectors: fields.boolean("retrieveVectors", "invalid_search_retrieve_vectors")?.unwrap_or(false),
            show_score: fields.boolean("showRankingScore", "invalid_search_show_ranking_score")?.unwrap_or(false),
            show_details: fields
                .boolean("showRankingScoreDetails", "invalid_search_show_ranking_score_details")?
                .unwrap_or(false),
        })
    }

    /// Carries the search out.
    pub fn run(&self, uid: &str, index: &Index) -> Result<Value> {
        let started = Instant::now();
        self.check(uid, index)?;
        let text = self.q.as_deref().filter(|text| !text.trim().is_empty());
        let query = text.map(|text| Query::parse(index, text));
        let mut universe = DocSet::empty(index);
        for (docid, doc) in index.docs() {
            if self.filter.as_ref().is_none_or(|filter| filter.passes(doc)) {
                universe.insert(docid);
            }
        }
        let (offset, limit) = match (self.page, self.hits_per_page) {
            (None, None) => (self.offset, self.limit),
            (page, per_page) => {
                let (page, per_page) = (page.unwrap_or(1), per_page.unwrap_or(20));
                (page.saturating_sub(1).saturating_mul(per_page), if page == 0 { 0 } else { per_page })
            }
        };
        let reach = index.settings.max_total_hits;
        let search = Search {
            index,
            query: query.as_ref(),
            universe,
            strategy: self.strategy,
            sort: &self.sort,
            attributes: self.attributes.as_deref(),
        };
        let found = self.find(&search, offset.saturating_add(limit).min(reach));
        let page: Vec<&Ranked<'_>> =
            found.ranked.iter().take(reach.min(offset.saturating_add(limit))).skip(offset).collect();
        let empty = Query::default();
        let shown: Vec<Value> = page.iter().map(|hit| self.hit(index, hit, query.as_ref().unwrap_or(&empty))).collect();
        let mut answer = Map::new();
        answer.insert("hits".to_owned(), Value::Array(shown));
        answer.insert("query".to_owned(), json!(self.q.as_deref().unwrap_or("")));
        if let Some(vector) = self.vector.as_ref().filter(|_| self.retrieve_vectors) {
            answer.insert("queryVector".to_owned(), json!(vector));
        }
        answer.insert("processingTimeMs".to_owned(), json!(started.elapsed().as_millis() as u64));
        if self.page.is_some() || self.hits_per_page.is_some() {
            let per_page = self.hits_per_page.unwrap_or(20);
            answer.insert("hitsPerPage".to_owned(), json!(per_page));
            answer.insert("page".to_owned(), json!(self.page.unwrap_or(1)));
            answer
                .insert("totalPages".to_owned(), json!(if per_page == 0 { 0 } else { found.total.div_ceil(per_page) }));
            answer.insert("totalHits".to_owned(), json!(found.total));
        } else {
            answer.insert("limit".to_owned(), json!(self.limit));
            answer.insert("offset".to_owned(), json!(self.offset));
            answer.insert("estimatedTotalHits".to_owned(), json!(found.total));
        }
        if let Some(names) = self.facets.as_ref().filter(|names| !names.is_empty()) {
            let (distribution, stats) = facets::distribution(index, names, &found.candidates);
            answer.insert("facetDistribution".to_owned(), distribution);
            answer.insert("facetStats".to_owned(), stats);
        }
        answer.insert("requestUid".to_owned(), json!(uuid::Uuid::now_v7().to_string()));
        if let Some(semantic) = found.semantic {
            let count = page.iter().filter(|hit| hit.parts.iter().any(|part| matches!(part, Part::Vector(_)))).count();
            answer.insert("semanticHitCount".to_owned(), json!(if semantic { count } else { 0 }));
        }
        Ok(Value::Object(answer))
    }

    fn check(&self, uid: &str, index: &Index) -> Result<()> {
        if self.vector.is_some() && self.hybrid.is_none() {
            let text = "Invalid request: missing `hybrid` parameter when `vector` or `media` are present.";
            return Err(ApiError::new("missing_search_hybrid", text));
        }
        if let Some((embedder, ratio)) = &self.hybrid
            && *ratio > 0.0
            && (self.vector.is_some() || self.q.is_some())
        {
            let Some(dimensions) = index.settings.embedders.get(embedder) else {
                let text = format!("Cannot find embedder with name `{embedder}`.");
                return Err(ApiError::new("invalid_search_embedder", text));
            };
            if let (Some(wanted), Some(vector)) = (dimensions, &self.vector)
                && *wanted != vector.len()
            {
                let text = format!("Invalid vector dimensions: expected: `{wanted}`, found: `{}`.", vector.len());
                return Err(ApiError::new("invalid_vector_dimensions", text));
            }
        }
        if let Some(filter) = &self.filter {
            let wording = Wording { code: "invalid_search_filter", index: Some(uid), canonical: true };
            filter.check(&index.settings, wording)?;
        }
        check_sorts(index, &self.sort, "invalid_search_sort", &format!("Index `{uid}`: "))?;
        if let Some(field) = self.distinct.as_ref().filter(|field| !index.settings.is_filterable(field)) {
            let names = index.settings.filterable_names();
            let available = match names.is_empty() {
                true => "This index does not have configured filterable attributes.".to_owned(),
                false => format!("Available filterable attributes patterns are: `{}`.", names.join(", ")),
            };
            let text = format!(
                "Index `{uid}`: Attribute `{field}` is not filterable and thus, cannot be used as distinct attribute. {available}"
            );
            return Err(ApiError::new("invalid_search_distinct", text));
        }
        facets::check(index, self.facets.as_deref().unwrap_or_default())
    }

    /// All hits up to `wanted` at least, in order.
    fn find<'a>(&self, search: &Search<'a>, wanted: usize) -> Found<'a> {
        let semantic = self.hybrid.as_ref().filter(|(_, ratio)| *ratio > 0.0).zip(self.vector.as_ref());
        let keyword = self.keyword(search, wanted);
        let Some(((embedder, ratio), vector)) = semantic else {
            let asked = self.hybrid.as_ref().is_some_and(|(_, ratio)| *ratio > 0.0) && self.q.is_some();
            return Found { semantic: asked.then_some(false), ..keyword };
        };
        let mut by_vector: Vec<Ranked<'a>> = Vec::new();
        for docid in search.universe.iter() {
            if let Some(doc) = search.index.doc(docid) {
                by_vector
                    .push(Ranked { doc: docid, parts: vec![Part::Vector(vector::similarity(doc, embedder, vector))] });
            }
        }
        by_vector.sort_by(rank::compare);
        let by_vector = self.narrow(search.index, by_vector);
        let candidates = search.universe.clone();
        if search.query.is_none() || *ratio >= 1.0 {
            return Found { total: by_vector.len(), ranked: by_vector, candidates, semantic: Some(true) };
        }
        let good = |hit: &Ranked<'_>| rank::score(&hit.parts) as f32 * (1.0 - ratio) >= 0.45;
        if keyword.ranked.len() >= wanted && keyword.ranked.iter().take(wanted).all(good) {
            return Found { semantic: Some(false), ..keyword };
        }
        let mut both: Vec<(f64, bool, Ranked<'a>)> = Vec::new();
        let weigh =
            |hit: Ranked<'a>, weight: f32, vector: bool| (rank::score(&hit.parts) * f64::from(weight), !vector, hit);
        both.extend(by_vector.into_iter().map(|hit| weigh(hit, *ratio, true)));
        both.extend(keyword.ranked.into_iter().map(|hit| weigh(hit, 1.0 - ratio, false)));
        both.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut seen = HashSet::new();
        let ranked: Vec<Ranked<'a>> =
            both.into_iter().map(|(_, _, hit)| hit).filter(|hit| seen.insert(hit.doc)).collect();
        Found { total: ranked.len(), ranked, candidates, semantic: Some(true) }
    }

    fn keyword<'a>(&self, search: &Search<'a>, wanted: usize) -> Found<'a> {
        let candidates = search.candidates();
        let distinct = self.distinct.is_some() || search.index.settings.distinct.is_some();
        let everything = self.threshold.is_some() || distinct;
        let ranked = search.rank(&candidates, wanted, |_| !everything);
        let total = candidates.all.len();
        let before = ranked.len();
        let ranked = self.narrow(search.index, ranked);
        let total = total - (before - ranked.len());
        let mut all = candidates.all;
        if self.threshold.is_some() {
            all = DocSet::empty(search.index);
            ranked.iter().for_each(|hit| all.insert(hit.doc));
        }
        Found { ranked, total, candidates: all, semantic: None }
    }

    /// Leaves out what the threshold and distinct leave out.
    fn narrow<'a>(&self, index: &'a Index, ranked: Vec<Ranked<'a>>) -> Vec<Ranked<'a>> {
        let mut seen: HashSet<String> = HashSet::new();
        let distinct = self.distinct.as_ref().or(index.settings.distinct.as_ref());
        let keep = |hit: &Ranked<'a>| {
            if self.threshold.is_some_and(|threshold| rank::score(&hit.parts) < threshold) {
                return false;
            }
            let facts = distinct.and_then(|field| index.doc(hit.doc)?.facts(field));
            let Some(facts) = facts else { return true };
            let strings = facts.strings.iter().map(|(text, _)| format!("s{text}"));
            let values: Vec<String> = strings.chain(facts.numbers.iter().map(|number| format!("n{number}"))).collect();
            let new = values.iter().all(|value| !seen.contains(value));
            if new {
                seen.extend(values);
            }
            new
        };
        ranked.into_iter().filter(keep).collect()
    }

    fn hit(&self, index: &Index, hit: &Ranked<'_>, query: &Query) -> Value {
        let Some(doc) = index.doc(hit.doc) else { return Value::Null };
        let tree = doc.tree();
        let mut shown = select(&tree, self.formatting.retrieve.as_deref(), Some(&index.settings));
        if self.retrieve_vectors && index.settings.is_displayed("_vectors") {
            shown.insert("_vectors".to_owned(), vector::shown(doc));
        }
        if self.formatting.formats() {
            shown.insert("_formatted".to_owned(), self.formatting.formatted(&tree, &index.settings, query));
        }
        if self.formatting.positions {
            shown.insert("_matchesPosition".to_owned(), positions(&tree, &index.settings, query));
        }
        if self.show_score {
            shown.insert("_rankingScore".to_owned(), json!(rank::score(&hit.parts)));
        }
        if self.show_details {
            let details = rank::details(&hit.parts, |field| index.settings.is_displayed(field));
            shown.insert("_rankingScoreDetails".to_owned(), details);
        }
        Value::Object(shown)
    }
}

/// What a search found.
struct Found<'a> {
    ranked: Vec<Ranked<'a>>,
    total: usize,
    candidates: DocSet,
    /// Hybrid: whether vectors were looked at.
    semantic: Option<bool>,
}

fn read_hybrid(fields: &Fields<'_>) -> Result<Option<(String, f32)>> {
    let code = "invalid_search_hybrid_query";
    let Some(value) = fields.get("hybrid") else { return Ok(None) };
    let hybrid = Fields::open(value, &fields.path("hybrid"), code, &["embedder", "semanticRatio"])?;
    let Some(embedder) = hybrid.string("embedder", "invalid_search_embedder")? else {
        return Err(hybrid.missing("embedder", code));
    };
    let ratio = hybrid.number("semanticRatio", "invalid_search_semantic_ratio")?.unwrap_or(0.5);
    if !(0.0..=1.0).contains(&ratio) {
        let at = hybrid.path("semanticRatio");
        let why = "the value of `semanticRatio` is invalid, expected a float between `0.0` and `1.0`.";
        return Err(ApiError::new("invalid_search_semantic_ratio", format!("Invalid value at `{at}`: {why}")));
    }
    Ok(Some((embedder, ratio as f32)))
}

fn read_vector(fields: &Fields<'_>) -> Result<Option<Vec<f32>>> {
    let code = "invalid_search_vector";
    let Some(value) = fields.get("vector") else { return Ok(None) };
    let path = fields.path("vector");
    let Value::Array(items) = value else { return Err(wrong_type(code, &path, "an array", value)) };
    let mut vector = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        match item.as_f64() {
            Some(number) => vector.push(number as f32),
            None => return Err(wrong_type(code, &format!("{path}[{at}]"), "a number", item)),
        }
    }
    Ok(Some(vector))
}

/// The value of `_federation.weightedScoreValues` for a list of sorts.
pub fn weighted_sorts(doc: &super::index::Doc, sorts: &[(String, bool)]) -> Value {
    let one = |(field, asc): &(String, bool)| {
        let value = match rank::sort_value(doc, field, *asc) {
            SortValue::Number(number) if number == number.trunc() && number.abs() < 9e15 => json!(number as i64),
            SortValue::Number(number) => json!(number),
            SortValue::Text(text) => json!(text),
            SortValue::Missing => Value::Null,
        };
        json!({"sort": {"asc": asc, "value": value}})
    };
    sorts.iter().map(one).collect()
}
