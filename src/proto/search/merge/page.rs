//! The client's page out of the merged order: distinct, totals, facets, and the body itself.
//!
//! Must not know: how hits are compared.

use std::collections::BTreeSet;

use super::MergeError;
use super::lanes::{Merger, Placed};
use super::parts::PartError;
use super::write::{push_metadata, push_number, push_text, write_page, write_remote_errors};
use crate::proto::search::facets::Facets;
use crate::proto::search::hit::{self, HitStyle};
use crate::proto::search::order;
use crate::proto::search::value::{Distinct, distinct_values};

impl Merger<'_> {
    pub(super) fn run(&self) -> Result<Vec<u8>, MergeError> {
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
