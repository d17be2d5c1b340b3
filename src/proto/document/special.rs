//! Fields that nodes read themselves: `_vectors`, `_geo`, `_geojson`.
//!
//! A node finds out what is wrong with them only while it carries a request out, and then does nothing of it. The rule:
//! what the documents and the index's settings tell beforehand is refused here, in the node's words, before anything is
//! split; of several flaws the one that a node comes to first. Must not know: shards, what the index holds.

use memchr::memmem;

use super::batch::Batch;
use super::error::{DocumentError, SHOWN_MAX_BYTES};
use super::{geo, geojson, vectors};
use crate::proto::json;
use crate::proto::settings::DocumentView;
use crate::types::ErrorCode;

const VECTORS: &str = "_vectors";
const GEO: &str = "_geo";
const GEOJSON: &str = "_geojson";

/// A node goes through all documents for one thing after the other, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// The form of `_vectors`, whichever embedders there are.
    Form,
    /// Places of `_geo`.
    Geo,
    /// The vectors of the index's own embedders.
    Embeddings,
    /// Shapes of `_geojson`.
    GeoJson,
}

/// What is wrong with a field of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flaw {
    pub(super) stage: Stage,
    pub(super) code: ErrorCode,
    /// In the node's words, without the index's name.
    pub(super) message: String,
}

/// The values of the fields in one document; of repeated names the last counts.
#[derive(Debug, Default)]
struct Fields<'a> {
    vectors: Option<&'a [u8]>,
    geo: Option<&'a [u8]>,
    geojson: Option<&'a [u8]>,
}

impl<'a> Fields<'a> {
    fn of(document: &'a [u8]) -> Self {
        let mut fields = Self::default();
        // The text is valid JSON, so the walk can't fail.
        for member in json::members(document, 0).into_iter().flatten().flatten() {
            if member.is(VECTORS) {
                fields.vectors = Some(member.value);
            } else if member.is(GEO) {
                fields.geo = Some(member.value);
            } else if member.is(GEOJSON) {
                fields.geojson = Some(member.value);
            }
        }
        fields
    }
}

/// Which fields are looked at.
struct Reader<'v> {
    view: &'v DocumentView,
    /// Nodes get the values in the shortest spelling, so positions in messages are counted in that.
    respelled: bool,
    names: Vec<memmem::Finder<'static>>,
}

impl<'v> Reader<'v> {
    fn new(view: &'v DocumentView, respelled: bool) -> Self {
        // A name is spelled as it is, or with escapes of the form \u. That of `_geo` is in `_geojson`, too.
        let geo = (view.geo || view.geojson).then_some(GEO);
        let names = [VECTORS, "\\u"].into_iter().chain(geo).map(memmem::Finder::new).collect();
        Self { view, respelled, names }
    }

    /// Whether there may be any of the fields in this text.
    fn may_name(&self, text: &[u8]) -> bool {
        self.names.iter().any(|name| name.find(text).is_some())
    }

    /// The first flaw of a document.
    fn flaw(&self, id: &str, document: &[u8]) -> Option<Flaw> {
        if !self.may_name(document) {
            return None;
        }
        let fields = Fields::of(document);
        let of_vectors = fields.vectors.and_then(|raw| self.flaw_of_vectors(id, raw));
        let of_geo = fields.geo.filter(|_| self.view.geo).and_then(|raw| geo::flaw(id, raw));
        let of_geojson = fields.geojson.filter(|_| self.view.geojson).and_then(geojson::flaw);
        [of_vectors, of_geo, of_geojson].into_iter().flatten().min_by_key(|flaw| flaw.stage)
    }

    fn flaw_of_vectors(&self, id: &str, raw: &[u8]) -> Option<Flaw> {
        let flaw = vectors::flaw(id, raw, &self.view.embedders)?;
        if !self.respelled || raw.len() > SHOWN_MAX_BYTES {
            return Some(flaw);
        }
        let respelled = serde_json::from_slice::<serde_json::Value>(raw).map(|value| value.to_string());
        respelled.map_or(Some(flaw), |raw| vectors::flaw(id, raw.as_bytes(), &self.view.embedders))
    }
}

impl Batch {
    /// Checks the fields that nodes read themselves, of documents for the index `uid`.
    ///
    /// A document that a later one of the same request replaces is not looked at by nodes, so its flaws don't count; it
    /// is taken out, because the later one might reach the node in another request. With `merge` every document counts.
    ///
    /// # Errors
    /// [`DocumentError::Task`] with the flaw that a node would come to first.
    pub fn check(&mut self, uid: &str, view: &DocumentView, merge: bool) -> Result<(), DocumentError> {
        let reader = Reader::new(view, self.is_one_object());
        if !reader.may_name(self.text()) {
            return Ok(());
        }
        let mut replaced: Option<Vec<bool>> = None;
        let mut flawed = Vec::new();
        let mut first: Option<Flaw> = None;
        for (at, document) in self.documents().enumerate() {
            let Some(flaw) = reader.flaw(document.id, document.text) else { continue };
            if !merge && replaced.get_or_insert_with(|| self.replaced())[at] {
                flawed.push(at);
            } else if first.as_ref().is_none_or(|first| flaw.stage < first.stage) {
                first = Some(flaw);
            }
        }
        if let Some(Flaw { code, message, .. }) = first {
            return Err(DocumentError::in_index(uid, code, &message));
        }
        self.take_out(&flawed);
        Ok(())
    }
}
