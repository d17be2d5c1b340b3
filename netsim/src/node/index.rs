//! One index in memory: documents, the words of each, and the facet values that filters and sorts need.
//!
//! Rule: what is here is always what the store holds; it is changed only by [`Index::apply`] with documents that were
//! prepared before, so that searches wait as little as possible. Must not know: SQLite, HTTP, tasks.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde_json::{Map, Value};

use super::settings::Settings;
use super::text::{HARD_GAP, normalize_facet, tokenize};

/// Number of a field inside one index.
pub type FieldId = u16;
/// Number of a document inside one index: the order of ties.
pub type DocId = u32;

/// One place where a word stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Posting {
    /// The document.
    pub doc: DocId,
    /// The field in it.
    pub field: FieldId,
    /// The position in the field, capped at `u16::MAX`.
    pub position: u16,
}

/// What one field of one document holds for filters, facets and sorts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// Its numbers.
    pub numbers: Vec<f64>,
    /// Its strings, normalised and as they stand.
    pub strings: Vec<(String, String)>,
    /// It is `null`.
    pub null: bool,
    /// It is an empty string, array or object.
    pub empty: bool,
}

/// A document, ready to be put in an index.
#[derive(Debug, Clone)]
pub struct Doc {
    /// The document id as text.
    pub id: String,
    /// The document as compact JSON, without `_vectors`.
    pub raw: String,
    /// The value of `_vectors` as it was given.
    pub vectors: Option<Value>,
    /// Facet values, by path; paths are sorted.
    pub facts: Vec<(String, Facts)>,
    /// How many words each searchable field has.
    pub word_counts: Vec<(FieldId, u32)>,
    /// Embeddings by embedder.
    pub embeddings: BTreeMap<String, Vec<Vec<f32>>>,
}

impl Doc {
    /// The document as a tree.
    pub fn tree(&self) -> Map<String, Value> {
        serde_json::from_str(&self.raw).unwrap_or_default()
    }

    /// What the document holds under `path`.
    pub fn facts(&self, path: &str) -> Option<&Facts> {
        self.facts.binary_search_by(|(name, _)| name.as_str().cmp(path)).ok().map(|at| &self.facts[at].1)
    }
}

/// A document with its words, prepared outside the lock.
pub struct Prepared {
    /// Where it goes.
    pub docid: DocId,
    /// The document; `None` removes what is there.
    pub doc: Option<Doc>,
    paths: Vec<String>,
    words: Vec<(String, u16, u16)>,
}

/// One index.
pub struct Index {
    /// Its number in the store, which a rename does not change.
    pub number: i64,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub updated_at: String,
    /// The primary key, once there is one.
    pub primary_key: Option<String>,
    /// Its settings.
    pub settings: Settings,
    docs: Vec<Option<Doc>>,
    by_id: HashMap<String, DocId>,
    words: BTreeMap<Box<str>, Vec<Posting>>,
    fields: Vec<String>,
    field_ids: HashMap<String, FieldId>,
    distribution: BTreeMap<String, u64>,
}

impl Index {
    /// An index without documents.
    pub fn new(
        number: i64,
        created_at: String,
        updated_at: String,
        primary_key: Option<String>,
        settings: Settings,
    ) -> Self {
        Self {
            number,
            created_at,
            updated_at,
            primary_key,
            settings,
            docs: Vec::new(),
            by_id: HashMap::new(),
            words: BTreeMap::new(),
            fields: Vec::new(),
            field_ids: HashMap::new(),
            distribution: BTreeMap::new(),
        }
    }

    /// The number of documents.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is no document.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// A document by its number.
    pub fn doc(&self, docid: DocId) -> Option<&Doc> {
        self.docs.get(docid as usize).and_then(Option::as_ref)
    }

    /// The number of a document by its id.
    pub fn docid(&self, id: &str) -> Option<DocId> {
        self.by_id.get(id).copied()
    }

    /// All documents in the order of their numbers.
    pub fn docs(&self) -> impl Iterator<Item = (DocId, &Doc)> {
        self.docs.iter().enumerate().filter_map(|(at, doc)| doc.as_ref().map(|doc| (at as DocId, doc)))
    }

    /// One more than the highest document number.
    pub fn docid_bound(&self) -> usize {
        self.docs.len()
    }

    /// How many documents have each top-level field.
    pub fn distribution(&self) -> &BTreeMap<String, u64> {
        &self.distribution
    }

    /// The places of a word.
    pub fn postings(&self, word: &str) -> Option<&[Posting]> {
        self.words.get(word).map(Vec::as_slice)
    }

    /// All words that are not smaller than `from`, in order.
    pub fn words_from<'a>(&'a self, from: &str) -> impl Iterator<Item = (&'a str, &'a [Posting])> {
        let range = (std::ops::Bound::Included(from), std::ops::Bound::Unbounded);
        self.words.range::<str, _>(range).map(|(word, places)| (word.as_ref(), places.as_slice()))
    }

    /// The path of a field by number.
    pub fn field_name(&self, field: FieldId) -> &str {
        self.fields.get(usize::from(field)).map_or("", String::as_str)
    }

    /// The number of fields that any document has or had.
    pub fn field_count(&self) -> usize {
        self.fields.len()
    }

    /// The numbers that the next new documents get: freed ones first.
    pub fn free_docids(&self) -> impl Iterator<Item = DocId> + '_ {
        let freed = self.docs.iter().enumerate().filter(|(_, doc)| doc.is_none()).map(|(at, _)| at as DocId);
        freed.chain(self.docs.len() as DocId..)
    }

    /// Prepares a document for [`Index::apply`]: the slow part, which needs no lock.
    pub fn prepare(settings: &Settings, docid: DocId, id: String, mut tree: Map<String, Value>) -> Prepared {
        let vectors = tree.shift_remove("_vectors");
        let mut leaves = Vec::new();
        for (name, value) in &tree {
            collect_leaves(name, value, &mut leaves);
        }
        let mut words = Vec::new();
        let mut paths: Vec<String> = Vec::new();
        let mut ends: Vec<Option<u32>> = Vec::new();
        for (path, text) in leaves {
            if !settings.is_searchable(&path) {
                continue;
            }
            let at = paths.iter().position(|known| *known == path).unwrap_or_else(|| {
                paths.push(path);
                ends.push(None);
                paths.len() - 1
            });
            for token in tokenize(&text, ends[at].map_or(0, |end| end + HARD_GAP)) {
                ends[at] = Some(token.position);
                words.push((token.word, at as u16, u16::try_from(token.position).unwrap_or(u16::MAX)));
            }
        }
        let mut facts: BTreeMap<String, Facts> = BTreeMap::new();
        for (name, value) in &tree {
            collect_facts(settings, name, value, &mut facts);
        }
        let raw = serde_json::to_string(&tree).unwrap_or_default();
        let embeddings = super::vector::embeddings(settings, vectors.as_ref());
        let doc = Doc { id, raw, vectors, facts: facts.into_iter().collect(), word_counts: Vec::new(), embeddings };
        Prepared { docid, doc: Some(doc), paths, words }
    }

    /// Prepares the removal of a document.
    pub fn prepare_removal(docid: DocId) -> Prepared {
        Prepared { docid, doc: None, paths: Vec::new(), words: Vec::new() }
    }

    /// Puts prepared documents in and takes removed ones out.
    pub fn apply(&mut self, prepared: Vec<Prepared>) {
        let mut touched: HashSet<String> = HashSet::new();
        let mut gone: BTreeSet<DocId> = BTreeSet::new();
        for change in &prepared {
            if let Some(old) = self.docs.get_mut(change.docid as usize).and_then(Option::take) {
                let mut leaves = Vec::new();
                for (name, value) in &old.tree() {
                    collect_leaves(name, value, &mut leaves);
                    if let Some(count) = self.distribution.get_mut(name) {
                        *count = count.saturating_sub(1);
                    }
                }
                for (path, text) in leaves {
                    if self.settings.is_searchable(&path) {
                        touched.extend(tokenize(&text, 0).into_iter().map(|token| token.word));
                    }
                }
                self.by_id.remove(&old.id);
                gone.insert(change.docid);
            }
        }
        for word in &touched {
            if let Some(places) = self.words.get_mut(word.as_str()) {
                places.retain(|place| !gone.contains(&place.doc));
            }
        }
        let mut unsorted: HashSet<String> = HashSet::new();
        for change in prepared {
            let Some(mut doc) = change.doc else { continue };
            let mut counts: BTreeMap<FieldId, u32> = BTreeMap::new();
            let fields: Vec<FieldId> = change.paths.iter().map(|path| self.field_id(path)).collect();
            for (word, path, position) in change.words {
                let field = fields[usize::from(path)];
                *counts.entry(field).or_default() += 1;
                let place = Posting { doc: change.docid, field, position };
                match self.words.get_mut(word.as_str()) {
                    Some(places) => {
                        if places.last().is_some_and(|last| *last > place) {
                            unsorted.insert(word);
                        }
                        places.push(place);
                    }
                    None => {
                        self.words.insert(word.into_boxed_str(), vec![place]);
                    }
                }
            }
            doc.word_counts = counts.into_iter().collect();
            for name in doc.tree().keys() {
                *self.distribution.entry(name.clone()).or_default() += 1;
            }
            self.by_id.insert(doc.id.clone(), change.docid);
            let at = change.docid as usize;
            if self.docs.len() <= at {
                self.docs.resize_with(at + 1, || None);
            }
            self.docs[at] = Some(doc);
        }
        for word in &unsorted {
            if let Some(places) = self.words.get_mut(word.as_str()) {
                places.sort_unstable();
            }
        }
        for word in touched {
            if self.words.get(word.as_str()).is_some_and(Vec::is_empty) {
                self.words.remove(word.as_str());
            }
        }
        self.distribution.retain(|_, count| *count > 0);
        while self.docs.last().is_some_and(Option::is_none) {
            self.docs.pop();
        }
    }

    /// Takes new settings and builds everything anew that depends on them.
    pub fn reindex(&mut self, settings: Settings) {
        let docs = std::mem::take(&mut self.docs);
        let (number, created, updated) = (self.number, self.created_at.clone(), self.updated_at.clone());
        *self = Self::new(number, created, updated, self.primary_key.clone(), settings);
        let mut prepared = Vec::with_capacity(docs.len());
        for (at, doc) in docs.into_iter().enumerate() {
            let Some(doc) = doc else { continue };
            let mut tree = doc.tree();
            if let Some(vectors) = doc.vectors {
                tree.insert("_vectors".to_owned(), vectors);
            }
            prepared.push(Self::prepare(&self.settings, at as DocId, doc.id, tree));
        }
        self.apply(prepared);
    }

    fn field_id(&mut self, path: &str) -> FieldId {
        if let Some(id) = self.field_ids.get(path) {
            return *id;
        }
        let id = FieldId::try_from(self.fields.len()).unwrap_or(FieldId::MAX);
        self.fields.push(path.to_owned());
        self.field_ids.insert(path.to_owned(), id);
        id
    }
}

/// Every text in `value` with the path at which it stands; numbers and booleans count as their text.
fn collect_leaves(path: &str, value: &Value, out: &mut Vec<(String, String)>) {
    match value {
        Value::Null => {}
        Value::String(text) => out.push((path.to_owned(), text.clone())),
        Value::Bool(_) | Value::Number(_) => out.push((path.to_owned(), value.to_string())),
        Value::Array(items) => items.iter().for_each(|item| collect_leaves(path, item, out)),
        Value::Object(map) => {
            map.iter().for_each(|(name, item)| collect_leaves(&format!("{path}.{name}"), item, out));
        }
    }
}

fn collect_facts(settings: &Settings, path: &str, value: &Value, out: &mut BTreeMap<String, Facts>) {
    if settings.is_faceted(path) {
        note_facts(value, out.entry(path.to_owned()).or_default(), true);
    }
    collect_nested(settings, path, value, out);
}

fn collect_nested(settings: &Settings, path: &str, value: &Value, out: &mut BTreeMap<String, Facts>) {
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(name, item)| collect_facts(settings, &format!("{path}.{name}"), item, out));
        }
        Value::Array(items) => items.iter().for_each(|item| collect_nested(settings, path, item, out)),
        _ => {}
    }
}

fn note_facts(value: &Value, facts: &mut Facts, top: bool) {
    match value {
        Value::Null if top => facts.null = true,
        Value::Null => {}
        Value::Bool(flag) => facts.strings.push((flag.to_string(), flag.to_string())),
        Value::Number(number) => facts.numbers.extend(number.as_f64()),
        Value::String(text) => {
            facts.empty |= top && text.is_empty();
            let pair = (normalize_facet(text), text.clone());
            if !facts.strings.contains(&pair) {
                facts.strings.push(pair);
            }
        }
        Value::Array(items) => {
            facts.empty |= top && items.is_empty();
            items.iter().for_each(|item| note_facts(item, facts, false));
        }
        Value::Object(map) => facts.empty |= top && map.is_empty(),
    }
}
