//! The merged order: the hits of all parts from the best one on, keywords and vectors as the ratio wants.
//!
//! The rule: a part's own order is never changed; equals stand by their rank inside their part, then by the part's lowest
//! shard. Must not know: how an answer is written.

use std::cmp::Ordering;

use super::parts::{Body, PartError, read_body};
use super::{MergeError, MergeRequest, PartAnswer};
use crate::proto::search::order::{self, Blend, Rules};

/// The answers of all parts, read.
pub(super) struct Merger<'a> {
    pub(super) request: &'a MergeRequest<'a>,
    pub(super) parts: Vec<&'a PartAnswer>,
    pub(super) bodies: Vec<Body<'a>>,
}

impl<'a> Merger<'a> {
    pub(super) fn read(request: &'a MergeRequest<'a>) -> Result<Self, MergeError> {
        let mut parts: Vec<&PartAnswer> = request.parts.iter().collect();
        parts.sort_by_key(|p| p.shards.first());
        let wanted = request.query.hits_wanted(request.view);
        let read = |p: &&'a PartAnswer| read_body(&p.body, wanted).map_err(|e| e.of(&p.shards));
        let bodies = parts.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { request, parts, bodies })
    }

    pub(super) fn text(&self, part: usize) -> &'a [u8] {
        &self.parts[part].body
    }

    pub(super) fn head(&self, part: usize, rank: usize) -> Result<Head, MergeError> {
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

    pub(super) fn lane(&self, ranks: impl Fn(usize) -> Vec<usize>) -> Result<Lane<'_, 'a>, MergeError> {
        let mut sources = Vec::with_capacity(self.parts.len());
        for part in 0..self.parts.len() {
            let mut ranks = ranks(part).into_iter();
            let head = ranks.next().map(|rank| self.head(part, rank)).transpose()?;
            sources.push(Source { part, ranks, head });
        }
        Ok(Lane { merger: self, sources })
    }

    /// The merged order, from the best hit on.
    pub(super) fn order(&self) -> Result<Box<dyn Iterator<Item = Result<Placed, MergeError>> + '_>, MergeError> {
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
}

/// A hit that stands first in its list.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) rank: usize,
    pub(super) rules: Rules,
    pub(super) score: f64,
}

/// One part's hits, or one lane of them, from the best on.
struct Source {
    part: usize,
    ranks: std::vec::IntoIter<usize>,
    pub(super) head: Option<Head>,
}

/// Lists merged by their heads.
pub(super) struct Lane<'m, 'a> {
    merger: &'m Merger<'a>,
    sources: Vec<Source>,
}

/// A hit in the merged order.
pub(super) struct Placed {
    pub(super) part: usize,
    pub(super) head: Head,
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
