//! Ranking: which documents match, in which order, and why.
//!
//! Rule: documents are compared rule by rule in the order of the settings, and ties stay in the order of their numbers.
//! Must not know: HTTP, how hits are shown.

use std::cmp::Ordering;
use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::index::{Doc, DocId, Index};
use super::query::{Match, Query, phrase_places};
use super::settings::Rule;

/// The furthest that two words are apart for the rule `proximity`.
const FAR: u32 = 4;
/// From which position on a word counts as far behind for the rule `wordPosition`: one more for each bound.
const POSITION_BOUNDS: [u32; 10] = [1, 2, 5, 8, 12, 16, 24, 65, 257, 1025];

/// A set of documents.
#[derive(Debug, Clone)]
pub struct DocSet(Vec<u64>);

impl DocSet {
    /// No document, room for those of the index.
    pub fn empty(index: &Index) -> Self {
        Self(vec![0; index.docid_bound().div_ceil(64)])
    }

    /// Adds a document.
    pub fn insert(&mut self, doc: DocId) {
        if let Some(word) = self.0.get_mut(doc as usize / 64) {
            *word |= 1 << (doc % 64);
        }
    }

    /// Whether a document is in it.
    pub fn contains(&self, doc: DocId) -> bool {
        self.0.get(doc as usize / 64).is_some_and(|word| word >> (doc % 64) & 1 == 1)
    }

    /// The number of documents.
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Its documents in order.
    pub fn iter(&self) -> impl Iterator<Item = DocId> + '_ {
        let all = self.0.iter().enumerate();
        all.flat_map(|(at, word)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| (at * 64 + bit) as DocId)
        })
    }

    fn combine(&mut self, other: &Self, join: impl Fn(u64, u64) -> u64) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a = join(*a, *b));
    }
}

/// A value to sort by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SortValue<'a> {
    /// A number.
    Number(f64),
    /// A normalised string.
    Text(&'a str),
    /// Nothing: always last.
    Missing,
}

/// What one rule says about one document.
#[derive(Debug, Clone)]
pub enum Part<'a> {
    /// Words of the query that match, and how many there are.
    Words(u32, u32),
    /// Typos, and the most there could be.
    Typo(u32, u32),
    /// A rank, the best being the second number.
    Rank(&'static str, u32, u32),
    /// 3: an attribute is the query, 2: one begins with it, 1: neither; then exact words, and how many there are.
    Exactness(u32, u32, u32),
    /// A value to sort by: field, ascending, value.
    Sort(&'a str, bool, SortValue<'a>),
    /// Similarity of the vector.
    Vector(Option<f32>),
}

/// A document with what the rules say about it.
#[derive(Debug, Clone)]
pub struct Ranked<'a> {
    /// The document.
    pub doc: DocId,
    /// What each rule says, in order.
    pub parts: Vec<Part<'a>>,
}

/// Which words must match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Words are dropped from the end.
    Last,
    /// All of them.
    All,
    /// The most frequent words are dropped first.
    Frequency,
}

/// What is searched for.
pub struct Search<'a> {
    /// The index.
    pub index: &'a Index,
    /// The query; `None` is a placeholder search.
    pub query: Option<&'a Query>,
    /// Documents that pass the filter.
    pub universe: DocSet,
    /// Which words must match.
    pub strategy: Strategy,
    /// Sort of the request: field, ascending.
    pub sort: &'a [(String, bool)],
    /// Attributes that are searched; `None`: all searchable ones.
    pub attributes: Option<&'a [String]>,
}

fn compare_parts(a: &Part<'_>, b: &Part<'_>) -> Ordering {
    match (a, b) {
        (Part::Words(a, _), Part::Words(b, _)) => b.cmp(a),
        (Part::Typo(a, _), Part::Typo(b, _)) => a.cmp(b),
        (Part::Rank(_, a, _), Part::Rank(_, b, _)) => b.cmp(a),
        (Part::Exactness(a, aw, _), Part::Exactness(b, bw, _)) => b.cmp(a).then(bw.cmp(aw)),
        (Part::Sort(_, asc, a), Part::Sort(_, _, b)) => compare_sort(*a, *b, *asc),
        (Part::Vector(a), Part::Vector(b)) => b.unwrap_or(-1.0).total_cmp(&a.unwrap_or(-1.0)),
        _ => Ordering::Equal,
    }
}

/// Compares two values to sort by: numbers before strings, nothing last, whichever the direction.
pub fn compare_sort(a: SortValue<'_>, b: SortValue<'_>, asc: bool) -> Ordering {
    let direct = |order: Ordering| if asc { order } else { order.reverse() };
    match (a, b) {
        (SortValue::Number(a), SortValue::Number(b)) => direct(a.total_cmp(&b)),
        (SortValue::Text(a), SortValue::Text(b)) => direct(a.cmp(b)),
        (SortValue::Number(_), _) | (SortValue::Text(_), SortValue::Missing) => Ordering::Less,
        (SortValue::Missing, SortValue::Missing) => Ordering::Equal,
        _ => Ordering::Greater,
    }
}

/// Compares two documents rule by rule, then by number.
pub fn compare(a: &Ranked<'_>, b: &Ranked<'_>) -> Ordering {
    let parts = a.parts.iter().zip(&b.parts).map(|(a, b)| compare_parts(a, b));
    parts.fold(Ordering::Equal, Ordering::then).then(a.doc.cmp(&b.doc))
}

/// The value that a document is sorted by under a field: its least when ascending, else its greatest.
pub fn sort_value<'a>(doc: &'a Doc, field: &str, asc: bool) -> SortValue<'a> {
    let Some(facts) = doc.facts(field) else { return SortValue::Missing };
    let numbers = facts.numbers.iter().copied();
    let number = if asc { numbers.min_by(f64::total_cmp) } else { numbers.max_by(f64::total_cmp) };
    let texts = facts.strings.iter().map(|(text, _)| text.as_str());
    let text = if asc { texts.min() } else { texts.max() };
    number.map(SortValue::Number).or(text.map(SortValue::Text)).unwrap_or(SortValue::Missing)
}

/// The matching documents, by how many words they match.
pub struct Candidates {
    /// For each step of dropping words: the terms that are left, and the documents that match just those.
    buckets: Vec<(Vec<usize>, DocSet)>,
    /// All of them.
    pub all: DocSet,
}

impl<'a> Search<'a> {
    fn searched(&self) -> Vec<bool> {
        let name = |field: usize| self.index.field_name(field as u16);
        let covers = |field: usize| match self.attributes {
            None => true,
            Some(names) => names.iter().any(|pattern| super::settings::covers(pattern, name(field))),
        };
        (0..self.index.field_count()).map(covers).collect()
    }

    /// Finds the documents that match.
    pub fn candidates(&self) -> Candidates {
        let mut universe = self.universe.clone();
        let Some(query) = self.query else {
            return Candidates { buckets: vec![(Vec::new(), universe.clone())], all: universe };
        };
        for words in &query.negative {
            let mut gone = DocSet::empty(self.index);
            phrase_places(self.index, words).iter().for_each(|place| gone.insert(place.doc));
            universe.combine(&gone, |a, b| a & !b);
        }
        if query.terms.is_empty() {
            return Candidates { buckets: vec![(Vec::new(), universe.clone())], all: universe };
        }
        let searched = self.searched();
        let searched = |field: u16| searched.get(usize::from(field)).copied().unwrap_or(false);
        let mut sets = Vec::with_capacity(query.terms.len());
        for term in &query.terms {
            let mut set = DocSet::empty(self.index);
            term.places(self.index, 0, |doc| universe.contains(doc), searched, |found| set.insert(found.doc));
            sets.push(set);
        }
        let mut left: Vec<usize> = (0..sets.len()).collect();
        let mut all = DocSet::empty(self.index);
        let mut buckets = Vec::new();
        loop {
            let mut docs = universe.clone();
            left.iter().for_each(|term| docs.combine(&sets[*term], |a, b| a & b));
            docs.combine(&all, |a, b| a & !b);
            all.combine(&docs, |a, b| a | b);
            buckets.push((left.clone(), docs));
            if left.len() == 1 || self.strategy == Strategy::All {
                return Candidates { buckets, all };
            }
            let dropped = match self.strategy {
                Strategy::Frequency => (0..left.len()).max_by_key(|at| (sets[left[*at]].len(), *at)).unwrap_or(0),
                _ => left.len() - 1,
            };
            left.remove(dropped);
        }
    }

    /// The best `wanted` candidates in order, and those behind them as far as they had to be ranked anyway.
    pub fn rank(
        &self,
        candidates: &Candidates,
        wanted: usize,
        enough: impl Fn(&[Ranked<'a>]) -> bool,
    ) -> Vec<Ranked<'a>> {
        let words_first = self.index.settings.rules.first() == Some(&Rule::Words);
        let mut ranked = Vec::new();
        for (terms, docs) in &candidates.buckets {
            let mut bucket = self.rank_bucket(terms, docs);
            if words_first {
                bucket.sort_by(compare);
            }
            ranked.append(&mut bucket);
            if words_first && ranked.len() >= wanted && enough(&ranked) {
                break;
            }
        }
        if !words_first {
            ranked.sort_by(compare);
        }
        ranked
    }

    fn rank_bucket(&self, terms: &[usize], docs: &DocSet) -> Vec<Ranked<'a>> {
        let mut matches: Vec<Match> = Vec::new();
        if let Some(query) = self.query {
            let searched = self.searched();
            let searched = |field: u16| searched.get(usize::from(field)).copied().unwrap_or(false);
            for (number, term) in terms.iter().enumerate() {
                let found = |place| matches.push(place);
                query.terms[*term].places(self.index, number as u8, |doc| docs.contains(doc), searched, found);
            }
        }
        matches.sort_unstable();
        let weights: Vec<u32> = (0..self.index.field_count())
            .map(|field| self.index.settings.weight(self.index.field_name(field as u16)).unwrap_or(0) as u32)
            .collect();
        let mut rest = &matches[..];
        let mut ranked = Vec::with_capacity(docs.len());
        for docid in docs.iter() {
            let end = rest.iter().take_while(|found| found.doc == docid).count();
            let (own, behind) = rest.split_at(end);
            rest = behind;
            if let Some(doc) = self.index.doc(docid) {
                ranked.push(Ranked { doc: docid, parts: self.parts(doc, terms, own, &weights) });
            }
        }
        ranked
    }

    fn parts(&self, doc: &'a Doc, terms: &[usize], matches: &[Match], weights: &[u32]) -> Vec<Part<'a>> {
        let mut parts = Vec::with_capacity(self.index.settings.rules.len());
        let evidence = Evidence::new(terms.len(), matches);
        for rule in &self.index.settings.rules {
            match (rule, self.query) {
                (Rule::Sort, _) => {
                    let sorts = self.sorts();
                    parts.extend(sorts.map(|(field, asc)| Part::Sort(field, asc, sort_value(doc, field, asc))));
                }
                (Rule::Field(field, asc), _) => {
                    let field = self.rule_field(field);
                    parts.push(Part::Sort(field, *asc, sort_value(doc, field, *asc)));
                }
                (_, None) => {}
                (_, Some(_)) if terms.is_empty() => {}
                (Rule::Words, Some(_)) if self.strategy == Strategy::All => {}
                (Rule::Words, Some(query)) => {
                    let count = |term: &usize| query.terms[*term].words.len() as u32;
                    let max = query.terms.iter().map(|term| term.words.len() as u32).sum();
                    parts.push(Part::Words(terms.iter().map(count).sum(), max));
                }
                (Rule::Typo, Some(query)) => {
                    let max = terms.iter().map(|term| query.terms[*term].worst_typos()).sum();
                    parts.push(Part::Typo(evidence.typos, max));
                }
                (Rule::Proximity, Some(_)) => parts.push(evidence.proximity()),
                (Rule::AttributeRank, Some(_)) => {
                    let highest = self.index.settings.searchable.as_ref().map_or(0, |names| names.len() - 1) as u32;
                    parts.push(evidence.attribute_rank(weights, highest));
                }
                (Rule::WordPosition, Some(query)) => parts.push(evidence.word_position(&query.starts(terms))),
                (Rule::Exactness, Some(_)) => parts.push(evidence.exactness(doc)),
            }
        }
        parts
    }

    fn sorts(&self) -> impl Iterator<Item = (&'a str, bool)> + use<'a> {
        self.sort.iter().map(|(field, asc)| (field.as_str(), *asc))
    }

    fn rule_field(&self, field: &str) -> &'a str {
        let rules = self.index.settings.rules.iter();
        let mut names = rules.filter_map(|rule| match rule {
            Rule::Field(name, _) if name == field => Some(name.as_str()),
            _ => None,
        });
        names.next().unwrap_or("")
    }
}

/// Where the terms stand in one document, of each term only the places with the fewest typos.
struct Evidence {
    by_term: Vec<Vec<Match>>,
    typos: u32,
}

impl Evidence {
    fn new(terms: usize, matches: &[Match]) -> Self {
        let mut by_term: Vec<Vec<Match>> = vec![Vec::new(); terms];
        for found in matches {
            if let Some(places) = by_term.get_mut(usize::from(found.term)) {
                places.push(*found);
            }
        }
        let mut typos = 0;
        for places in &mut by_term {
            let least = places.iter().map(|place| place.typos).min().unwrap_or(0);
            places.retain(|place| place.typos == least);
            typos += u32::from(least);
        }
        Self { by_term, typos }
    }

    fn proximity(&self) -> Part<'static> {
        let pairs = self.by_term.len().saturating_sub(1) as u32;
        let cost: u32 = self.by_term.windows(2).map(|pair| nearest(&pair[0], &pair[1]) - 1).sum();
        let max = pairs * (FAR - 1) + 1;
        Part::Rank("proximity", max - cost, max)
    }

    fn attribute_rank(&self, weights: &[u32], highest: u32) -> Part<'static> {
        let weight = |place: &Match| weights.get(usize::from(place.field)).copied().unwrap_or(highest);
        let cost: u32 = self.by_term.iter().map(|places| places.iter().map(weight).min().unwrap_or(highest)).sum();
        let max = highest * self.by_term.len() as u32 + 1;
        Part::Rank("attributeRank", max.saturating_sub(cost).max(1), max)
    }

    /// `starts` says where each term stands in the query: a document that begins with the query is the best.
    fn word_position(&self, starts: &[u32]) -> Part<'static> {
        let worst = POSITION_BOUNDS.len() as u32;
        let cost_of = |place: &Match, start: u32| {
            let behind = bucketed(u32::from(place.position)).abs_diff(start);
            POSITION_BOUNDS.iter().take_while(|bound| behind >= **bound).count() as u32
        };
        let terms = self.by_term.iter().zip(starts);
        let cost: u32 =
            terms.map(|(places, start)| places.iter().map(|p| cost_of(p, *start)).min().unwrap_or(worst)).sum();
        let max = worst * self.by_term.len() as u32 + 1;
        Part::Rank("wordPosition", max.saturating_sub(cost).max(1), max)
    }

    fn exactness(&self, doc: &Doc) -> Part<'static> {
        let exact = |places: &[Match]| places.iter().any(|place| place.exact);
        let words = self.by_term.iter().filter(|places| exact(places)).count() as u32;
        let max = self.by_term.len() as u32;
        // A term that is only there with typos does not stand in the way of an exact attribute.
        let spelled: Vec<&Vec<Match>> =
            self.by_term.iter().filter(|places| places.first().is_none_or(|place| place.typos == 0)).collect();
        let Some((first, others)) = spelled.split_first() else { return Part::Exactness(1, words, max) };
        let mut best = 1;
        for start in first.iter().filter(|place| place.exact && place.position == 0) {
            let mut position = u16::from(start.length);
            let follows = others.iter().all(|places| {
                let next = places.iter().find(|p| p.exact && p.field == start.field && p.position == position);
                position += next.map_or(0, |place| u16::from(place.length));
                next.is_some()
            });
            if follows {
                let count = doc.word_counts.iter().find(|(field, _)| *field == start.field).map(|(_, count)| *count);
                best = best.max(if count == Some(u32::from(position)) { 3 } else { 2 });
            }
        }
        Part::Exactness(best, words, max)
    }
}

/// Positions far behind are only known by the end of their bucket.
fn bucketed(position: u32) -> u32 {
    let bound = POSITION_BOUNDS.iter().find(|bound| position < **bound);
    if position < 16 { position } else { bound.map_or(u32::from(u16::MAX), |bound| bound - 1) }
}

/// How near the places of two terms come, at least 1 and at most [`FAR`]; the wrong order counts one more.
fn nearest(first: &[Match], second: &[Match]) -> u32 {
    let mut best = FAR;
    for a in first {
        for b in second.iter().filter(|b| b.field == a.field) {
            let (start, end) = (u32::from(a.position), u32::from(a.position) + u32::from(a.length) - 1);
            let at = u32::from(b.position);
            let apart = match at > end {
                true => at - end,
                false if at < start => start - at + 1,
                false => continue,
            };
            best = best.min(apart);
        }
    }
    best.max(1)
}

/// The score that all rules but sorts make together, from 0 to 1.
pub fn score(parts: &[Part<'_>]) -> f64 {
    if let Some(similarity) = parts.iter().find_map(|part| match part {
        Part::Vector(similarity) => Some(similarity.unwrap_or(0.0)),
        _ => None,
    }) {
        return f64::from(similarity);
    }
    let (mut rank, mut max) = (1u64, 1u64);
    let mut fold = |r: u32, m: u32| {
        let (r, m) = (u64::from(r), u64::from(m.max(1)));
        rank = (rank.saturating_sub(1)).saturating_mul(m).saturating_add(r);
        max = max.saturating_mul(m);
    };
    for part in parts {
        match part {
            Part::Words(matching, all) => fold(*matching, *all),
            Part::Typo(count, all) => fold(all + 1 - count.min(all), all + 1),
            Part::Rank(_, rank, all) => fold(*rank, *all),
            Part::Exactness(kind, words, all) => {
                fold(*kind, 3);
                if *kind == 1 {
                    fold(words + 1, all + 1);
                }
            }
            Part::Sort(..) | Part::Vector(_) => {}
        }
    }
    rank as f64 / max as f64
}

/// The value of `_rankingScoreDetails`; sorts by fields that `shown` refuses are hidden.
pub fn details(parts: &[Part<'_>], shown: impl Fn(&str) -> bool) -> Value {
    let mut details = Map::new();
    let mut seen = HashSet::new();
    for (order, part) in parts.iter().enumerate() {
        let ratio = |a: u32, b: u32| f64::from(a) / f64::from(b.max(1));
        let (name, value) = match part {
            Part::Words(n, max) => (
                "words".to_owned(),
                json!({"order": order, "matchingWords": n, "maxMatchingWords": max, "score": ratio(*n, *max)}),
            ),
            Part::Typo(n, max) => {
                let score = ratio(max + 1 - n.min(max), max + 1);
                ("typo".to_owned(), json!({"order": order, "typoCount": n, "maxTypoCount": max, "score": score}))
            }
            Part::Rank(name, rank, max) => ((*name).to_owned(), json!({"order": order, "score": ratio(*rank, *max)})),
            Part::Exactness(3, ..) => {
                ("exactness".to_owned(), json!({"order": order, "matchType": "exactMatch", "score": 1.0}))
            }
            Part::Exactness(2, ..) => {
                ("exactness".to_owned(), json!({"order": order, "matchType": "matchesStart", "score": 2.0 / 3.0}))
            }
            Part::Exactness(_, n, max) => {
                let score = f64::from(n + 1) / f64::from((max + 1) * 3);
                (
                    "exactness".to_owned(),
                    json!({"order": order, "matchType": "noExactMatch", "matchingWords": n, "maxMatchingWords": max, "score": score}),
                )
            }
            Part::Sort(field, asc, value) => {
                let value = match value {
                    SortValue::Number(number) => json!(number),
                    SortValue::Text(text) => json!(text),
                    SortValue::Missing => Value::Null,
                };
                match shown(field) {
                    true => {
                        let name = format!("{field}:{}", if *asc { "asc" } else { "desc" });
                        (name, json!({"order": order, "value": value}))
                    }
                    false => (format!("<hidden-rule-{order}>"), json!({"order": order, "value": "<hidden>"})),
                }
            }
            Part::Vector(similarity) => ("vectorSort".to_owned(), json!({"order": order, "similarity": similarity})),
        };
        if seen.insert(name.clone()) {
            details.insert(name, value);
        }
    }
    Value::Object(details)
}
