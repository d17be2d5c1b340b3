//! One answer out of the answers of all parts, as one node would have sent it: same order, same keys, same bytes of hits.
//!
//! The rule: hits are compared by their ranking details; equals stand by their rank inside their part, then by the part's
//! lowest shard. A part's own order is never changed. Must not know: members, what a part was late or refused for.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use bytes::Bytes;

use super::facets::{self, Facets};
use super::hit::{self, HitStyle, RawHit};
use super::order::{self, Blend, DetailsError, Rules};
use super::query::{IndexView, Page, SearchQuery};
use super::value::{Distinct, distinct_values};
use crate::proto::json::{self, ScanError};
use crate::types::SHARD_FIELD;
use crate::types::{ErrorCode, ShardSet};

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

/// What is wrong inside one part, before its shards are known.
#[derive(Debug, thiserror::Error)]
pub(super) enum PartError {
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
    pub(super) fn of(self, shards: &ShardSet) -> MergeError {
        MergeError::Malformed { shards: shards.clone(), reason: self.to_string() }
    }
}

/// The fields of one body.
#[derive(Debug, Default)]
struct Body<'a> {
    hits: Vec<RawHit>,
    query: Option<&'a [u8]>,
    query_vector: Option<&'a [u8]>,
    processing_time_ms: u64,
    total: Option<u64>,
    distribution: Option<&'a [u8]>,
    stats: Option<&'a [u8]>,
    performance: Option<&'a [u8]>,
    semantic: Option<u64>,
}

fn count(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn read_body(text: &[u8], hits_max: usize) -> Result<Body<'_>, PartError> {
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

/// A hit that stands first in its list.
#[derive(Debug)]
struct Head {
    rank: usize,
    rules: Rules,
    score: f64,
}

/// One part's hits, or one lane of them, from the best on.
struct Source {
    part: usize,
    ranks: std::vec::IntoIter<usize>,
    head: Option<Head>,
}

/// Lists merged by their heads.
struct Lane<'m, 'a> {
    merger: &'m Merger<'a>,
    sources: Vec<Source>,
}

/// A hit in the merged order.
struct Placed {
    part: usize,
    head: Head,
}

struct Merger<'a> {
    request: &'a MergeRequest<'a>,
    parts: Vec<&'a PartAnswer>,
    bodies: Vec<Body<'a>>,
}

impl<'a> Merger<'a> {
    fn read(request: &'a MergeRequest<'a>) -> Result<Self, MergeError> {
        let mut parts: Vec<&PartAnswer> = request.parts.iter().collect();
        parts.sort_by_key(|p| p.shards.first());
        let wanted = request.query.hits_wanted(request.view);
        let read = |p: &&'a PartAnswer| read_body(&p.body, wanted).map_err(|e| e.of(&p.shards));
        let bodies = parts.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { request, parts, bodies })
    }

    fn text(&self, part: usize) -> &'a [u8] {
        &self.parts[part].body
    }

    fn head(&self, part: usize, rank: usize) -> Result<Head, MergeError> {
        let hit = &self.bodies[part].hits[rank];
        let read = || -> Result<Head, PartError> {
            let details = hit.details.as_ref().ok_or(PartError::Lacks("_rankingScoreDetails"))?;
            let rules = order::parse_details(&self.text(part)[details.value.clone()])?;
            let score = match &hit.score {
                Some(score) => {
                    std::str::from_utf8(&self.text(part)[score.value.clone()]).ok().and_then(|s| s.parse().ok())
                }
                None => None,
            };
            Ok(Head { rank, rules, score: score.filter(|s: &f64| s.is_finite()).unwrap_or(0.0) })
        };
        read().map_err(|e| e.of(&self.parts[part].shards))
    }

    fn lane(&self, ranks: impl Fn(usize) -> Vec<usize>) -> Result<Lane<'_, 'a>, MergeError> {
        let mut sources = Vec::with_capacity(self.parts.len());
        for part in 0..self.parts.len() {
            let mut ranks = ranks(part).into_iter();
            let head = ranks.next().map(|rank| self.head(part, rank)).transpose()?;
            sources.push(Source { part, ranks, head });
        }
        Ok(Lane { merger: self, sources })
    }

    /// The merged order, from the best hit on.
    fn order(&self) -> Result<Box<dyn Iterator<Item = Result<Placed, MergeError>> + '_>, MergeError> {
        let Some(ratio) = self.request.query.mixing_ratio() else {
            return Ok(Box::new(self.lane(|part| (0..self.bodies[part].hits.len()).collect())?));
        };
        let mut lanes = [Vec::new(), Vec::new()];
        for part in 0..self.parts.len() {
            lanes.iter_mut().for_each(|lane| lane.push(Vec::new()));
            for rank in 0..self.bodies[part].hits.len() {
                let semantic = order::is_semantic(&self.head(part, rank)?.rules);
                lanes[usize::from(semantic)][part].push(rank);
            }
        }
        let keyword = self.lane(|part| lanes[0][part].clone())?;
        let semantic = self.lane(|part| lanes[1][part].clone())?;
        Ok(Box::new(Blender { keyword: Peeked::of(keyword), semantic: Peeked::of(semantic), ratio }))
    }

    fn run(&self) -> Result<Vec<u8>, MergeError> {
        let (query, view) = (self.request.query, self.request.view);
        let range = query.page().range(view.max_total_hits);
        let mut total = self.bodies.iter().filter_map(|b| b.total).fold(0, u64::saturating_add);
        let mut page: Vec<Placed> = Vec::with_capacity(range.len().min(1_000));
        let mut at = 0;
        let distinct = query.distinct(view);
        let mut seen: BTreeSet<Distinct> = BTreeSet::new();
        let mut merged = self.order()?;
        // Distinct hits are counted to the end of the lists, so that the total knows all rejected ones that came.
        while at < range.end || distinct.is_some() {
            let Some(placed) = merged.next().transpose()? else { break };
            if let Some(attribute) = distinct {
                let values = self.distinct_of(&placed, attribute)?;
                if values.iter().any(|v| seen.contains(v)) {
                    total = total.saturating_sub(1);
                    continue;
                }
                seen.extend(values);
            }
            if range.contains(&at) {
                page.push(placed);
            }
            at += 1;
        }
        drop(merged);
        self.write(&page, total)
    }

    fn distinct_of(&self, placed: &Placed, attribute: &str) -> Result<Vec<Distinct>, MergeError> {
        let hit = &self.bodies[placed.part].hits[placed.head.rank];
        let tree = hit::tree_around(self.text(placed.part), hit, attribute);
        let tree = tree.map_err(|e| PartError::from(e).of(&self.parts[placed.part].shards))?;
        Ok(distinct_values(&tree, attribute))
    }

    fn write(&self, page: &[Placed], total: u64) -> Result<Vec<u8>, MergeError> {
        let (query, view) = (self.request.query, self.request.view);
        let extra = query.extra_attribute(view, 2);
        let style = HitStyle {
            cut_score: !query.shows_score() && query.mixing_ratio().is_some(),
            cut_details: !query.shows_details(),
            cut_federation: false,
            extra: extra.as_deref(),
            view: view.displayed.is_some().then_some(view),
        };
        let size: usize = page.iter().map(|p| self.bodies[p.part].hits[p.head.rank].span.len() + 1).sum();
        let mut out = Vec::with_capacity(size + 1_024);
        out.extend_from_slice(b"{\"hits\":");
        out.push(b'[');
        for (i, placed) in page.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            let hit = &self.bodies[placed.part].hits[placed.head.rank];
            hit::write_hit(&mut out, self.text(placed.part), hit, &style)
                .map_err(|e| PartError::from(e).of(&self.parts[placed.part].shards))?;
        }
        out.push(b']');
        self.write_tail(&mut out, page, total)?;
        out.push(b'}');
        Ok(out)
    }

    fn write_tail(&self, out: &mut Vec<u8>, page: &[Placed], total: u64) -> Result<(), MergeError> {
        let bodies = &self.bodies;
        out.extend_from_slice(b",\"query\":");
        match bodies.iter().find_map(|b| b.query) {
            Some(raw) => out.extend_from_slice(raw),
            None => push_text(out, self.request.query.q().unwrap_or("")),
        }
        if let Some(vector) = bodies.iter().find_map(|b| b.query_vector) {
            out.extend_from_slice(b",\"queryVector\":");
            out.extend_from_slice(vector);
        }
        out.extend_from_slice(b",\"processingTimeMs\":");
        push_number(out, self.request.processing_time_ms);
        write_page(out, self.request.query.page(), total);
        self.write_facets(out, total)?;
        out.extend_from_slice(b",\"requestUid\":");
        push_text(out, self.request.request_uid);
        push_metadata(out, self.request.metadata);
        // The slowest part's: phases that ran side by side have no sum.
        let slowest = bodies.iter().filter(|b| b.performance.is_some()).max_by_key(|b| b.processing_time_ms);
        if let Some(details) = slowest.and_then(|b| b.performance).filter(|_| self.request.query.shows_performance()) {
            out.extend_from_slice(b",\"performanceDetails\":");
            out.extend_from_slice(details);
        }
        write_remote_errors(out, self.request.missing);
        if self.request.keywords_only || bodies.iter().any(|b| b.semantic.is_some()) {
            out.extend_from_slice(b",\"semanticHitCount\":");
            let semantic = page.iter().filter(|p| order::is_semantic(&p.head.rules)).count();
            out.extend_from_slice(semantic.to_string().as_bytes());
        }
        Ok(())
    }

    fn write_facets(&self, out: &mut Vec<u8>, total: u64) -> Result<(), MergeError> {
        if self.bodies.iter().all(|b| b.distribution.is_none()) {
            return Ok(());
        }
        let mut facets = Facets::default();
        for (part, body) in self.parts.iter().zip(&self.bodies) {
            if let Some(distribution) = body.distribution {
                facets.add(distribution, body.stats).map_err(|e| PartError::from(e).of(&part.shards))?;
            }
        }
        facets.write(out, self.request.view, total);
        Ok(())
    }
}

impl Lane<'_, '_> {
    /// The source whose head stands first.
    fn best(&self) -> Option<usize> {
        let mut best: Option<(usize, &Head)> = None;
        for (i, source) in self.sources.iter().enumerate() {
            let Some(head) = &source.head else { continue };
            let better = match best {
                None => true,
                // Sources stand in the order of their lowest shards, so an equal one later loses.
                Some((_, other)) => match order::compare(&head.rules, &other.rules) {
                    Ordering::Greater => true,
                    Ordering::Less => false,
                    Ordering::Equal => head.rank < other.rank,
                },
            };
            if better {
                best = Some((i, head));
            }
        }
        best.map(|(i, _)| i)
    }
}

impl Iterator for Lane<'_, '_> {
    type Item = Result<Placed, MergeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let best = self.best()?;
        let source = &mut self.sources[best];
        let part = source.part;
        let head = source.head.take()?;
        if let Some(rank) = source.ranks.next() {
            match self.merger.head(part, rank) {
                Ok(next) => source.head = Some(next),
                Err(e) => return Some(Err(e)),
            }
        }
        Some(Ok(Placed { part, head }))
    }
}

/// A lane, with its first hit in the form that the two lanes are compared in.
struct Peeked<'m, 'a> {
    lane: Lane<'m, 'a>,
    first: Option<Result<(Placed, Vec<Blend>), MergeError>>,
}

impl<'m, 'a> Peeked<'m, 'a> {
    fn of(mut lane: Lane<'m, 'a>) -> Self {
        let first = Self::blended(&mut lane);
        Self { lane, first }
    }

    fn blended(lane: &mut Lane<'_, '_>) -> Option<Result<(Placed, Vec<Blend>), MergeError>> {
        let placed = lane.next()?;
        Some(placed.map(|p| {
            let blend = order::blend(&p.head.rules, p.head.score);
            (p, blend)
        }))
    }

    fn take(&mut self) -> Option<Result<Placed, MergeError>> {
        let next = Self::blended(&mut self.lane);
        std::mem::replace(&mut self.first, next).map(|r| r.map(|(placed, _)| placed))
    }
}

/// Keywords and vectors, merged by the ratio.
struct Blender<'m, 'a> {
    keyword: Peeked<'m, 'a>,
    semantic: Peeked<'m, 'a>,
    ratio: f64,
}

impl Iterator for Blender<'_, '_> {
    type Item = Result<Placed, MergeError>;

    fn next(&mut self) -> Option<Self::Item> {
        match (&self.semantic.first, &self.keyword.first) {
            (Some(Ok((_, semantic))), Some(Ok((_, keyword)))) => {
                if order::semantic_first(semantic, keyword, self.ratio) {
                    self.semantic.take()
                } else {
                    self.keyword.take()
                }
            }
            (Some(Err(_)), _) | (Some(_), None) => self.semantic.take(),
            _ => self.keyword.take(),
        }
    }
}

fn write_hits<'a>(
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

pub(super) fn push_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(number.to_string().as_bytes());
}

pub(super) fn push_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(serde_json::to_string(text).expect("a text encodes").as_bytes());
}

fn write_page(out: &mut Vec<u8>, page: Page, total: u64) {
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
fn push_metadata(out: &mut Vec<u8>, metadata: Option<&str>) {
    if let Some(metadata) = metadata {
        out.extend_from_slice(b",\"metadata\":");
        out.extend_from_slice(metadata.as_bytes());
    }
}

/// A partial answer says so in the body too, because SDKs show no headers.
pub(super) fn write_remote_errors(out: &mut Vec<u8>, missing: &ShardSet) {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::order::{Rule, SortValue, tests::any_rules};
    use super::*;
    use crate::types::ShardId;

    fn shards(list: &[u16]) -> ShardSet {
        list.iter().copied().map(ShardId).collect()
    }

    fn part(first: u16, body: &Value) -> PartAnswer {
        PartAnswer { shards: shards(&[first, first + 30]), alone: false, body: body.to_string().into() }
    }

    fn query(v: &Value) -> SearchQuery {
        SearchQuery::from_json(v.to_string().as_bytes()).unwrap()
    }

    fn text(q: &Value, view: &IndexView, parts: &[PartAnswer]) -> Result<String, MergeError> {
        let missing = ShardSet::new();
        let query = query(q);
        let request = MergeRequest {
            query: &query,
            view,
            parts,
            keywords_only: false,
            missing: &missing,
            processing_time_ms: 7,
            request_uid: "uid",
            // A field that no search has.
            metadata: q.get("metadata").and_then(Value::as_str),
        };
        merge(&request).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    fn merged(q: &Value, view: &IndexView, parts: &[PartAnswer]) -> Value {
        serde_json::from_str(&text(q, view, parts).unwrap()).unwrap()
    }

    /// A hit that stands by its number of matching words.
    fn hit(id: &str, words: u32) -> Value {
        json!({"id": id, "_miroir_shard": "ꀀ", "_rankingScoreDetails":
            {"words": {"order": 0, "matchingWords": words, "maxMatchingWords": 9, "score": 0.5}}})
    }

    fn body(hits: &[Value]) -> Value {
        json!({"hits": hits, "query": "q", "processingTimeMs": 3, "limit": 20, "offset": 0,
            "estimatedTotalHits": hits.len(), "requestUid": "node"})
    }

    fn ids(v: &Value) -> Vec<&str> {
        v["hits"].as_array().unwrap().iter().map(|h| h["id"].as_str().unwrap()).collect()
    }

    #[test]
    fn keys_stand_in_the_order_of_a_node() {
        let b = |hits: &[Value]| {
            let mut b = body(hits);
            b["facetDistribution"] = json!({"c": {"x": 1}});
            b["facetStats"] = json!({});
            b["queryVector"] = json!([0.5]);
            b["performanceDetails"] = json!({"search": "1ms"});
            b["semanticHitCount"] = json!(0);
            b
        };
        let view = IndexView { uid: "packages".into(), ..IndexView::default() };
        let parts = [part(0, &b(&[hit("a", 1)])), part(1, &b(&[hit("b", 2)]))];
        assert_eq!(
            text(&json!({"showPerformanceDetails": true, "metadata": "{\"queryUid\":\"u\"}"}), &view, &parts).unwrap(),
            concat!(
                r#"{"hits":[{"id":"b"},{"id":"a"}],"query":"q","queryVector":[0.5],"processingTimeMs":7,"#,
                r#""limit":20,"offset":0,"estimatedTotalHits":2,"facetDistribution":{"c":{"x":2}},"facetStats":{},"#,
                r#""requestUid":"uid","metadata":{"queryUid":"u"},"#,
                r#""performanceDetails":{"search":"1ms"},"semanticHitCount":0}"#
            )
        );
    }

    #[test]
    fn what_the_client_asked_for_stays() {
        let parts = [part(0, &body(&[hit("a", 1)]))];
        let seen = merged(&json!({"showRankingScoreDetails": true}), &IndexView::default(), &parts);
        assert_eq!(seen["hits"][0]["_rankingScoreDetails"]["words"]["matchingWords"], 1);
    }

    #[test]
    fn ties_stand_by_rank_and_then_by_lowest_shard() {
        let parts = [
            part(2, &body(&[hit("c0", 1), hit("c1", 1)])),
            part(0, &body(&[hit("a0", 1), hit("a1", 1), hit("a2", 1)])),
            part(1, &body(&[hit("b0", 1)])),
        ];
        let seen = merged(&json!({}), &IndexView::default(), &parts);
        assert_eq!(ids(&seen), ["a0", "b0", "c0", "a1", "c1", "a2"]);
    }

    #[test]
    fn pages_show_what_lies_in_them_and_the_totals_of_all() {
        let parts = [
            part(0, &body(&[hit("a", 6), hit("c", 4), hit("e", 2)])),
            part(1, &body(&[hit("b", 5), hit("d", 3), hit("f", 1)])),
        ];
        let view = IndexView::default();
        let seen = merged(&json!({"offset": 2, "limit": 3}), &view, &parts);
        assert_eq!(ids(&seen), ["c", "d", "e"]);
        assert_eq!((&seen["offset"], &seen["limit"], &seen["estimatedTotalHits"]), (&json!(2), &json!(3), &json!(6)));
        let seen = merged(&json!({"page": 2, "hitsPerPage": 4}), &view, &parts);
        assert_eq!(ids(&seen), ["e", "f"]);
        let numbers = |v: &Value| ["hitsPerPage", "page", "totalPages", "totalHits"].map(|k| v[k].as_u64().unwrap());
        assert_eq!(numbers(&seen), [4, 2, 2, 6]);
        for (q, expected) in [
            (json!({"page": 0, "hitsPerPage": 4}), [4, 0, 2, 6]),
            (json!({"page": 9, "hitsPerPage": 4}), [4, 9, 2, 6]),
            (json!({"hitsPerPage": 0}), [0, 1, 0, 6]),
        ] {
            let seen = merged(&q, &view, &parts);
            assert_eq!((ids(&seen).len(), numbers(&seen)), (0, expected), "{q}");
        }
        let seen = merged(&json!({"page": 3}), &view, &parts);
        assert_eq!(numbers(&seen), [20, 3, 1, 6]);
        assert!(ids(&merged(&json!({"limit": 0}), &view, &parts)).is_empty());
        let huge = json!({"offset": usize::MAX, "limit": usize::MAX});
        assert!(ids(&merged(&huge, &view, &parts)).is_empty());
        let narrow = IndexView { max_total_hits: 4, ..IndexView::default() };
        assert_eq!(ids(&merged(&json!({"offset": 3, "limit": 20}), &narrow, &parts)), ["d"]);
        assert_eq!(ids(&merged(&json!({"page": 2, "hitsPerPage": 3}), &narrow, &parts)), ["d"]);
    }

    #[test]
    fn distinct_holds_across_parts() {
        let with = |id: &str, words: u32, brand: Value| {
            let mut h = hit(id, words);
            h["brand"] = brand;
            h
        };
        let parts = [
            part(0, &body(&[with("a", 9, json!("Acme")), with("b", 5, json!(["x", "y"])), with("c", 1, json!(null))])),
            part(1, &body(&[with("d", 8, json!(" acme")), with("e", 4, json!("Y")), with("f", 1, json!(null))])),
        ];
        let q = json!({"distinct": "brand", "attributesToRetrieve": ["id"]});
        let seen = merged(&q, &IndexView::default(), &parts);
        assert_eq!(ids(&seen), ["a", "b", "c", "f"]);
        assert_eq!(seen["estimatedTotalHits"], 4);
        assert_eq!(seen["hits"][0], json!({"id": "a"}), "the attribute was asked for by the mesh alone");
        let view = IndexView { distinct: Some("brand".into()), ..IndexView::default() };
        let seen = merged(&json!({"offset": 1, "limit": 1}), &view, &parts);
        assert_eq!(seen["hits"], json!([{"id": "b", "brand": ["x", "y"]}]));
        assert_eq!(seen["estimatedTotalHits"], 4, "rejected hits behind the page count too");
    }

    #[test]
    fn keywords_and_vectors_are_mixed_by_the_ratio() {
        let keyword = |id: &str, words: u32, score: f64| {
            let mut h = hit(id, words);
            h["_rankingScore"] = score.into();
            h
        };
        let vector = |id: &str, score: f64| {
            json!({"id": id, "_rankingScore": score,
                "_rankingScoreDetails": {"vectorSort": {"order": 0, "similarity": score}}})
        };
        let mut a = body(&[vector("v1", 0.9), keyword("k1", 9, 0.9), vector("v2", 0.5)]);
        a["semanticHitCount"] = 2.into();
        let b = body(&[keyword("k2", 8, 0.8), vector("v3", 0.6)]);
        let q = |ratio: f64| json!({"q": "x", "hybrid": {"embedder": "e", "semanticRatio": ratio}, "limit": 4});
        let parts = [part(0, &a), part(1, &b)];
        let seen = merged(&q(0.5), &IndexView::default(), &parts);
        assert_eq!(ids(&seen), ["v1", "k1", "k2", "v3"]);
        assert_eq!(seen["semanticHitCount"], 2);
        assert_eq!(seen["hits"][0], json!({"id": "v1"}));
        let seen = merged(&q(0.9), &IndexView::default(), &parts);
        assert_eq!((ids(&seen), &seen["semanticHitCount"]), (vec!["v1", "v3", "v2", "k1"], &json!(3)));
        let seen = merged(&q(0.1), &IndexView::default(), &parts);
        assert_eq!(ids(&seen), ["k1", "k2", "v1", "v3"]);
    }

    #[test]
    fn keywords_suffice_only_if_all_of_the_page_is_good() {
        let keyword = |words: u32, score: f64| {
            let mut h = hit("x", words);
            h["_rankingScore"] = score.into();
            h
        };
        let parts = [
            part(0, &body(&[keyword(9, 1.0), keyword(8, 0.95)])),
            part(1, &body(&[keyword(7, 0.91), keyword(6, 0.4)])),
        ];
        let suffice = |limit: usize, ratio: f64| {
            let (view, missing) = (IndexView::default(), ShardSet::new());
            let hybrid = json!({"embedder": "e", "semanticRatio": ratio});
            let query = query(&json!({"q": "x", "hybrid": hybrid, "limit": limit}));
            let request = MergeRequest {
                query: &query,
                view: &view,
                parts: &parts,
                keywords_only: false,
                missing: &missing,
                processing_time_ms: 1,
                request_uid: "u",
                metadata: None,
            };
            keywords_suffice(&request).unwrap()
        };
        assert!(suffice(3, 0.5));
        assert!(!suffice(4, 0.5), "the last is not good enough");
        assert!(!suffice(3, 0.6), "the keywords' share is too small");
        assert!(suffice(3, 0.4));
        assert!(!suffice(5, 0.1), "the page is not filled");
    }

    #[test]
    fn missing_shards_are_named_in_the_body() {
        let (query, view, missing) = (query(&json!({"q": "x"})), IndexView::default(), shards(&[3, 7]));
        for parts in [vec![], vec![part(0, &body(&[hit("a", 1)]))]] {
            let request = MergeRequest {
                query: &query,
                view: &view,
                parts: &parts,
                keywords_only: false,
                missing: &missing,
                processing_time_ms: 1,
                request_uid: "u",
                metadata: None,
            };
            let seen: Value = serde_json::from_slice(&merge(&request).unwrap()).unwrap();
            assert_eq!(seen["remoteErrors"]["shards 3,7"]["code"], "miroir_shards_unavailable");
            assert_eq!(seen["estimatedTotalHits"], parts.len());
        }
    }

    #[test]
    fn the_only_part_is_moved_as_it_is_but_for_the_shard() {
        let view = IndexView { uid: "packages".into(), max_values_per_facet: 1, ..IndexView::default() };
        let mut b = body(&[json!({"id": "a", "_miroir_shard": "ꀀ", "_rankingScore": 0.5})]);
        b["facetDistribution"] = json!({"_miroir_shard": {"ꀀ": 1}, "c": {"x": 1, "y": 1}});
        let alone = |b: &Value| [PartAnswer { shards: shards(&[0]), alone: true, body: b.to_string().into() }];
        assert_eq!(
            text(&json!({"showRankingScore": true}), &view, &alone(&b)).unwrap(),
            concat!(
                r#"{"hits":[{"id":"a","_rankingScore":0.5}],"query":"q","processingTimeMs":7,"limit":20,"offset":0,"#,
                r#""estimatedTotalHits":1,"requestUid":"uid","facetDistribution":{"c":{"x":1}}}"#
            )
        );
        let b = body(&[json!({"id": "a", "x": {"y": [1, 2.50]}})]);
        assert_eq!(merged(&json!({}), &view, &alone(&b))["hits"], b["hits"]);
    }

    #[test]
    fn a_part_for_the_page_itself_is_not_merged_with_others() {
        let mut parts = [part(0, &body(&[])), part(1, &body(&[]))];
        parts[1].alone = true;
        assert!(text(&json!({}), &IndexView::default(), &parts).is_err());
    }

    #[test]
    fn what_a_peer_garbles_is_an_error() {
        let good = body(&[hit("a", 1)]).to_string();
        for bad in [
            "",
            "{}",
            "[]",
            r#"{"hits":[]}"#,
            r#"{"hits":{},"estimatedTotalHits":1}"#,
            r#"{"hits":[1],"estimatedTotalHits":1}"#,
            r#"{"hits":[{}],"estimatedTotalHits":1}"#,
            r#"{"hits":[{"_rankingScoreDetails":5}],"estimatedTotalHits":1}"#,
            r#"{"hits":[],"estimatedTotalHits":-1}"#,
            r#"{"hits":[],"estimatedTotalHits":1,"facetDistribution":[]}"#,
            r#"{"hits":[],"estimatedTotalHits":1,"facetDistribution":{},"facetStats":7}"#,
            &good[..good.len() / 2],
        ] {
            let bad = PartAnswer { shards: shards(&[1]), alone: false, body: bad.to_owned().into() };
            let parts = [part(0, &body(&[hit("a", 1)])), bad];
            assert!(text(&json!({}), &IndexView::default(), &parts).is_err(), "{:?}", parts[1].body);
        }
    }

    /// Details as a node would write them.
    fn details(rules: &[Rule]) -> Value {
        let mut map = serde_json::Map::new();
        for (order, rule) in rules.iter().enumerate() {
            let (key, mut value) = match rule {
                Rule::Words { matching, max } => {
                    ("words".into(), json!({"matchingWords": matching, "maxMatchingWords": max, "score": 0.1}))
                }
                Rule::Typo { count, max } => ("typo".into(), json!({"typoCount": count, "maxTypoCount": max})),
                Rule::Ratio(_, score) => ("proximity".into(), json!({"score": score})),
                Rule::Exactness { kind, words, .. } => {
                    let kind = ["noExactMatch", "matchesStart", "exactMatch"][usize::from(*kind)];
                    ("exactness".into(), json!({"matchType": kind, "matchingWords": words, "score": 0.1}))
                }
                Rule::Sort { asc, value } => {
                    let value = match value {
                        SortValue::Null => Value::Null,
                        SortValue::Text(t) => t.as_str().into(),
                        SortValue::Number(n) => (*n).into(),
                    };
                    (format!("f:{}", if *asc { "asc" } else { "desc" }), json!({"value": value}))
                }
                Rule::Geo { asc, distance } => {
                    let key = format!("_geoPoint(1, 2):{}", if *asc { "asc" } else { "desc" });
                    (key, json!({"value": null, "distance": distance}))
                }
                Rule::Vector(similarity) => ("vectorSort".into(), json!({"similarity": similarity})),
                Rule::Pin(position) => ("pin".into(), json!({"position": position})),
                Rule::Skipped => ("skipped".into(), json!({})),
                Rule::Attribute { rank, score } => {
                    ("attribute".into(), json!({"attributeRankingOrderScore": rank, "score": score}))
                }
            };
            value["order"] = order.into();
            map.insert(key, value);
        }
        map.into()
    }

    proptest! {
        /// Any split of a sorted list, merged, is the sorted list; and pages of it are its pieces.
        #[test]
        fn a_split_list_is_merged_to_its_whole(
            hits in prop::collection::vec((any_rules(), 0..4_usize), 0..30), page in 1..7_usize,
        ) {
            let documents: Vec<Value> = hits.iter().enumerate().map(|(i, (rules, _))| {
                json!({"id": i.to_string(), "_rankingScoreDetails": details(rules)})
            }).collect();
            let rules_of = |i: usize| order::parse_details(documents[i]["_rankingScoreDetails"].to_string().as_bytes()).unwrap();
            let mut lists = vec![Vec::new(); 4];
            for (i, (_, list)) in hits.iter().enumerate() { lists[*list].push(i); }
            for list in &mut lists { list.sort_by(|a, b| order::compare(&rules_of(*b), &rules_of(*a))); }
            // The whole: by rules, then by rank in the part, then by part.
            let mut whole: Vec<(usize, usize, usize)> = lists.iter().enumerate()
                .flat_map(|(part, list)| list.iter().enumerate().map(move |(rank, i)| (rank, part, *i))).collect();
            whole.sort_by(|a, b| order::compare(&rules_of(b.2), &rules_of(a.2)).then((a.0, a.1).cmp(&(b.0, b.1))));
            let whole: Vec<String> = whole.into_iter().map(|(_, _, i)| i.to_string()).collect();
            let parts: Vec<PartAnswer> = (0..4_u16).map(|p| {
                part(p, &body(&lists[usize::from(p)].iter().map(|i| documents[*i].clone()).collect::<Vec<_>>()))
            }).rev().collect();
            let seen = merged(&json!({"limit": 100}), &IndexView::default(), &parts);
            prop_assert_eq!(ids(&seen), whole.clone());
            let mut paged = Vec::new();
            for at in (0..whole.len()).step_by(page) {
                let q = json!({"offset": at, "limit": page});
                let seen = merged(&q, &IndexView::default(), &parts);
                paged.extend(ids(&seen).into_iter().map(str::to_owned));
            }
            prop_assert_eq!(paged, whole);
        }

        /// Bytes out of their place never panic.
        #[test]
        fn damaged_bodies_never_panic(at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
            let mut b = body(&[hit("a", 1), hit("b", 2)]);
            b["facetDistribution"] = json!({"c": {"x": 1}});
            b["facetStats"] = json!({"c": {"min": 1.0, "max": 2.0}});
            let mut bytes = b.to_string().into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            for len in [bytes.len(), cut.index(bytes.len())] {
                for alone in [true, false] {
                    let damaged = PartAnswer { shards: shards(&[0]), alone, body: bytes[..len].to_vec().into() };
                    let query = query(&json!({"distinct": "id"}));
                    let (view, missing) = (IndexView::default(), ShardSet::new());
                    let request = MergeRequest { query: &query, view: &view, parts: &[damaged], keywords_only: false, missing: &missing,
                        processing_time_ms: 1, request_uid: "u", metadata: None };
                    let _ = merge(&request);
                }
            }
        }
    }
}
