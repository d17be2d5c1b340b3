//! From the text of a query to terms, and from each term to the words of the index that it may mean.
//!
//! Rule: a term means itself, words that begin with it (the last term), words with few typos, its synonyms, and itself
//! cut in two; each with its number of typos. Must not know: ranking rules, formatting.

use std::collections::BTreeSet;

use super::index::{DocId, FieldId, Index, Posting};
use super::settings::Settings;
use super::text::{distance, normalize_word, tokenize};

/// Only this many words of a query count.
const MAX_WORDS: usize = 10;
/// Words that one term may mean with one typo, and with two.
const MAX_TYPO_WORDS: [usize; 2] = [150, 50];

/// Something that a term may mean: words standing one behind another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Derivation {
    /// The words; more than one for phrases, splits and some synonyms.
    pub words: Vec<String>,
    /// How many typos away.
    pub typos: u8,
    /// The term is only the beginning of it.
    pub prefix: bool,
}

/// One term of a query.
#[derive(Debug, Clone)]
pub struct Term {
    /// The words as they stand in the query: one, or those of a phrase.
    pub words: Vec<String>,
    /// How many typos it may have.
    pub budget: u8,
    /// What it may mean.
    pub derivations: Vec<Derivation>,
}

/// A parsed query.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// The terms in order.
    pub terms: Vec<Term>,
    /// Words and phrases that must not stand in a document.
    pub negative: Vec<Vec<String>>,
}

/// Where a term stands in a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Match {
    /// The document.
    pub doc: DocId,
    /// The number of the term.
    pub term: u8,
    /// The field.
    pub field: FieldId,
    /// The position of the first word.
    pub position: u16,
    /// The number of words.
    pub length: u8,
    /// Typos.
    pub typos: u8,
    /// It is the term itself, letter by letter.
    pub exact: bool,
}

impl Query {
    /// Parses the text of a query.
    pub fn parse(index: &Index, text: &str) -> Self {
        let settings = &index.settings;
        let mut query = Self::default();
        let mut pieces = Vec::new();
        for (number, part) in text.split('"').enumerate() {
            pieces.push((number % 2 == 1, part));
        }
        let mut before = ' ';
        let mut count = 0;
        let last = pieces.len() - 1;
        for (number, (quoted, part)) in pieces.iter().enumerate() {
            let tokens = tokenize(part, 0);
            if *quoted {
                let words: Vec<String> = tokens.into_iter().map(|token| token.word).collect();
                if before == '-' && !words.is_empty() {
                    query.negative.push(words);
                } else if !words.is_empty() && count < MAX_WORDS {
                    count += words.len();
                    let derivations = vec![Derivation { words: words.clone(), typos: 0, prefix: false }];
                    query.terms.push(Term { words, budget: 0, derivations });
                }
            } else {
                let end = tokens.last().map_or(0, |token| token.start + token.length);
                let open = number == last && end == part.len();
                let total = tokens.len();
                for (at, token) in tokens.into_iter().enumerate() {
                    let front = &part[..token.start];
                    let minus =
                        front.ends_with('-') && front[..front.len() - 1].chars().last().is_none_or(char::is_whitespace);
                    if minus {
                        query.negative.push(vec![token.word]);
                    } else if count < MAX_WORDS
                        && (!settings.stop_words.contains(&token.word) || (open && at + 1 == total))
                    {
                        count += 1;
                        let prefix = open && at + 1 == total && settings.prefix_search;
                        query.terms.push(Term::new(index, token.word, prefix));
                    }
                }
            }
            before = part.chars().last().unwrap_or(' ');
        }
        query
    }
}

impl Query {
    /// Where these terms stand in the query, counted in words.
    pub fn starts(&self, terms: &[usize]) -> Vec<u32> {
        let before = |term: &usize| self.terms[..*term].iter().map(|term| term.words.len() as u32).sum();
        terms.iter().map(before).collect()
    }
}

impl Term {
    fn new(index: &Index, word: String, prefix: bool) -> Self {
        let settings = &index.settings;
        let budget = typo_budget(settings, &word);
        let mut derivations = Vec::new();
        if index.postings(&word).is_some() {
            derivations.push(Derivation { words: vec![word.clone()], typos: 0, prefix: false });
        }
        if prefix {
            let longer = index.words_from(&word).take_while(|(found, _)| found.starts_with(&word));
            let longer = longer.filter(|(found, _)| *found != word);
            derivations.extend(longer.map(|(found, _)| Derivation {
                words: vec![found.to_owned()],
                typos: 0,
                prefix: true,
            }));
        }
        derivations.extend(synonyms(settings, &word));
        if budget > 0 {
            with_typos(index, &word, budget, prefix, &mut derivations);
        }
        derivations.extend(split(index, &word));
        Self { words: vec![word], budget, derivations }
    }

    /// The number of typos that counts as the worst for this term.
    pub fn worst_typos(&self) -> u32 {
        u32::from(self.budget.max(1)) * u32::from(self.words.len() == 1)
    }

    /// Calls `found` for every place of this term, in fields that `searched` allows and documents that `wanted` allows.
    pub fn places(
        &self,
        index: &Index,
        number: u8,
        wanted: impl Fn(DocId) -> bool,
        searched: impl Fn(FieldId) -> bool,
        mut found: impl FnMut(Match),
    ) {
        for derivation in &self.derivations {
            let exact = derivation.typos == 0 && !derivation.prefix && derivation.words == self.words;
            let mut report = |place: &Posting| {
                if wanted(place.doc) && searched(place.field) {
                    found(Match {
                        doc: place.doc,
                        term: number,
                        field: place.field,
                        position: place.position,
                        length: u8::try_from(derivation.words.len()).unwrap_or(u8::MAX),
                        typos: derivation.typos,
                        exact,
                    });
                }
            };
            match &derivation.words[..] {
                [word] => index.postings(word).unwrap_or_default().iter().for_each(report),
                words => phrase_places(index, words).iter().for_each(&mut report),
            }
        }
    }
}

/// Where words stand one behind another.
pub fn phrase_places(index: &Index, words: &[String]) -> Vec<Posting> {
    let mut places: Vec<Posting> = Vec::new();
    for (offset, word) in words.iter().enumerate() {
        let found = index.postings(word).unwrap_or_default();
        if offset == 0 {
            places = found.to_vec();
            continue;
        }
        places.retain(|place| {
            let Some(position) = place.position.checked_add(offset as u16) else { return false };
            found.binary_search(&Posting { position, ..*place }).is_ok()
        });
    }
    places
}

fn typo_budget(settings: &Settings, word: &str) -> u8 {
    let length = word.chars().count();
    let exact = settings.exact_words.contains(word) || (settings.exact_numbers && word.chars().all(|c| c.is_numeric()));
    match (settings.typos && !exact, settings.typo_lengths) {
        (false, _) => 0,
        (true, (one, _)) if length < one => 0,
        (true, (_, two)) if length < two => 1,
        _ => 2,
    }
}

fn with_typos(index: &Index, word: &str, budget: u8, prefix: bool, out: &mut Vec<Derivation>) {
    let chars: Vec<char> = word.chars().collect();
    let first: String = chars.iter().take(1).collect();
    let known: BTreeSet<String> = out.iter().filter_map(|d| d.words.first().cloned()).collect();
    let mut left = MAX_TYPO_WORDS;
    let start = if budget == 1 { first.as_str() } else { "" };
    for (found, _) in index.words_from(start).take_while(|(found, _)| found.starts_with(start)) {
        if left[0] + left[1] == 0 {
            break;
        }
        let Some(typos @ 1..) = distance(&chars, found, budget, prefix) else { continue };
        let left = &mut left[usize::from(typos) - 1];
        if *left == 0 || known.contains(found) {
            continue;
        }
        *left -= 1;
        let whole = distance(&chars, found, budget, false) == Some(typos);
        out.push(Derivation { words: vec![found.to_owned()], typos, prefix: !whole });
    }
}

fn synonyms(settings: &Settings, word: &str) -> Vec<Derivation> {
    let all = settings.values.get("synonyms").and_then(serde_json::Value::as_object);
    let found = all.into_iter().flatten().filter(|(name, _)| normalize_word(name) == word);
    let texts = found.flat_map(|(_, list)| list.as_array().into_iter().flatten()).filter_map(|text| text.as_str());
    let words = texts.map(|text| tokenize(text, 0).into_iter().map(|token| token.word).collect::<Vec<_>>());
    words.filter(|words| !words.is_empty()).map(|words| Derivation { words, typos: 0, prefix: false }).collect()
}

/// The cut of a word into two that stand side by side in most documents; it counts as one typo.
fn split(index: &Index, word: &str) -> Option<Derivation> {
    let cuts = word.char_indices().skip(1).map(|(at, _)| at);
    let mut best: Option<(usize, Vec<String>)> = None;
    for at in cuts {
        let words = vec![word[..at].to_owned(), word[at..].to_owned()];
        if words.iter().any(|word| index.postings(word).is_none()) {
            continue;
        }
        let mut docs: Vec<DocId> = phrase_places(index, &words).iter().map(|place| place.doc).collect();
        docs.dedup();
        if docs.len() > best.as_ref().map_or(0, |(count, _)| *count) {
            best = Some((docs.len(), words));
        }
    }
    best.map(|(_, words)| Derivation { words, typos: 1, prefix: false })
}
