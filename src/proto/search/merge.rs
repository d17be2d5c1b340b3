//! One answer out of the answers of all parts, as one node would have sent it: same order, same keys, same bytes of hits.
//!
//! The rule: hits are compared by their ranking details; equals stand by their rank inside their part, then by the part's
//! lowest shard. A part's own order is never changed. Must not know: members, what a part was late or refused for.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use bytes::Bytes;

use super::SHARD_FIELD;
use super::facets::{self, Facets};
use super::hit::{self, HitStyle, RawHit};
use super::order::{self, Blend, DetailsError, Rules};
use super::query::{IndexView, Page, SearchQuery};
use super::value::{Distinct, distinct_values};
use crate::proto::json::{self, ScanError};
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
    /// Shards without an answer; named in `remoteErrors`.
    pub missing: &'a ShardSet,
    /// The time that the whole search took, in milliseconds.
    pub processing_time_ms: u64,
    /// This request's id.
    pub request_uid: &'a str,
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
    hits_at: Option<usize>,
    hits: Vec<RawHit>,
    query: Option<&'a [u8]>,
    query_vector: Option<&'a [u8]>,
    processing_time_ms: u64,
    total: Option<u64>,
    distribution: Option<&'a [u8]>,
    stats: Option<&'a [u8]>,
    metadata: Option<&'a [u8]>,
    performance: Option<&'a [u8]>,
    semantic: Option<u64>,
}

fn count(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn read_body(text: &[u8], hits_max: usize) -> Result<Body<'_>, PartError> {
    let mut body = Body::default();
    for member in json::members(text, 0)? {
        let m = member?;
        match m.raw_key {
            b"hits" => body.hits_at = Some(m.value_start),
            b"query" => body.query = Some(m.value),
            b"queryVector" => body.query_vector = Some(m.value),
            b"processingTimeMs" => body.processing_time_ms = count(m.value).unwrap_or(0),
            b"estimatedTotalHits" | b"totalHits" => body.total = count(m.value),
            b"facetDistribution" => body.distribution = Some(m.value),
            b"facetStats" => body.stats = Some(m.value),
            b"metadata" => body.metadata = Some(m.value),
            b"performanceDetails" => body.performance = Some(m.value),
            b"semanticHitCount" => body.semantic = count(m.value),
            _ => {}
        }
    }
    let at = body.hits_at.ok_or(PartError::Lacks("hits"))?;
    body.hits = hit::scan_hits(text, at, hits_max)?.0;
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
    let mut parts: Vec<&PartAnswer> = request.parts.iter().collect();
    parts.sort_by_key(|p| p.shards.first());
    let wanted = request.query.hits_wanted(request.view);
    let bodies =
        parts.iter().map(|p| read_body(&p.body, wanted).map_err(|e| e.of(&p.shards))).collect::<Result<Vec<_>, _>>()?;
    Merger { request, parts, bodies }.run()
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
    for (i, member) in members.by_ref().enumerate() {
        let m = member?;
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&text[m.start..m.value_start]);
        match m.raw_key {
            b"hits" => {
                has_hits = true;
                if has_shard || style.changes() {
                    let (hits, _) = hit::scan_hits(text, m.value_start, usize::MAX)?;
                    write_hits(&mut out, hits.iter().map(|h| (text, h)), &style)?;
                } else {
                    out.extend_from_slice(m.value);
                }
            }
            b"processingTimeMs" => push_number(&mut out, request.processing_time_ms),
            b"requestUid" => push_text(&mut out, request.request_uid),
            b"facetDistribution" => facets::write_cut(&mut out, m.value, request.view.max_values_per_facet)?,
            b"metadata" => write_metadata(&mut out, m.value, request.view)?,
            _ => out.extend_from_slice(m.value),
        }
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
    fn text(&self, part: usize) -> &'a [u8] {
        &self.parts[part].body
    }

    fn head(&self, part: usize, rank: usize) -> Result<Head, MergeError> {
        let hit = &self.bodies[part].hits[rank];
        let read = || -> Result<Head, PartError> {
            let details = hit.details.clone().ok_or(PartError::Lacks("_rankingScoreDetails"))?;
            let rules = order::parse_details(&self.text(part)[details])?;
            let score = match &hit.score {
                Some(span) => std::str::from_utf8(&self.text(part)[span.clone()]).ok().and_then(|s| s.parse().ok()),
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
        if let Some((part, metadata)) = bodies.iter().enumerate().find_map(|(i, b)| b.metadata.map(|m| (i, m))) {
            out.extend_from_slice(b",\"metadata\":");
            write_metadata(out, metadata, self.request.view).map_err(|e| e.of(&self.parts[part].shards))?;
        }
        // The slowest part's: phases that ran side by side have no sum.
        let slowest = bodies.iter().filter(|b| b.performance.is_some()).max_by_key(|b| b.processing_time_ms);
        if let Some(details) = slowest.and_then(|b| b.performance).filter(|_| self.request.query.shows_performance()) {
            out.extend_from_slice(b",\"performanceDetails\":");
            out.extend_from_slice(details);
        }
        write_remote_errors(out, self.request.missing);
        if bodies.iter().any(|b| b.semantic.is_some()) {
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

/// Metadata names the index: by the client's name.
fn write_metadata(out: &mut Vec<u8>, metadata: &[u8], view: &IndexView) -> Result<(), PartError> {
    out.push(b'{');
    for (i, member) in json::members(metadata, 0)?.enumerate() {
        let m = member?;
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&metadata[m.start..m.value_start]);
        if m.is("indexUid") {
            push_text(out, &view.uid);
        } else {
            out.extend_from_slice(m.value);
        }
    }
    out.push(b'}');
    Ok(())
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
