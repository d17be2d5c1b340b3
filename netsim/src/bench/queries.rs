//! Varied searches made from the documents themselves, the same in every run.
//!
//! Must not know: who is asked.

use anyhow::ensure;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::mesh::Documents;

/// How many different searches.
const COUNT: usize = 400;
/// Documents that words are taken from.
const LOOKED_AT: usize = 3_000;

/// The searches, and the settings that they need.
pub struct Queries {
    /// Bodies of `POST …/search`.
    pub bodies: Vec<Bytes>,
    /// The body of `PATCH …/settings`.
    pub settings: Value,
}

impl Queries {
    /// Makes them; fields of the data set are filtered, sorted and counted by if the documents have them.
    pub fn of(documents: &Documents) -> anyhow::Result<Self> {
        let first = documents.first(LOOKED_AT)?;
        let has = |field: &str| first.iter().all(|d| d.contains_key(field));
        let packages = has("section") && has("priority") && has("installed_size");
        let words = words(&first);
        ensure!(words.len() >= 10, "the documents have too few words to search for");
        let word = |i: usize| words[(i * 7_919) % words.len()].as_str();
        let section = |i: usize| first[(i * 104_729) % first.len()]["section"].clone();
        let body = |i: usize| match (i % 10, packages) {
            (0, _) => json!({ "q": "", "offset": i % 200 }),
            (1..=3, _) => json!({ "q": word(i) }),
            (4, _) => json!({ "q": prefix(word(i)) }),
            (5, _) => json!({ "q": format!("{} {}", word(i), word(i + 1)) }),
            (6, _) => json!({ "q": swapped(word(i)) }),
            (7, true) => json!({ "q": word(i), "filter": format!("section = {}", section(i)) }),
            (8, true) => json!({ "q": word(i), "sort": ["installed_size:desc"] }),
            (9, true) => json!({ "q": word(i), "facets": ["section", "priority"] }),
            (_, _) => json!({ "q": word(i), "limit": 5 }),
        };
        let settings = match packages {
            true => {
                json!({ "filterableAttributes": ["section", "priority"], "sortableAttributes": ["installed_size"] })
            }
            false => json!({}),
        };
        Ok(Self { bodies: (0..COUNT).map(|i| Bytes::from(body(i).to_string())).collect(), settings })
    }
}

/// Different words of the documents' texts, in their order.
fn words(documents: &[Map<String, Value>]) -> Vec<String> {
    let mut seen = std::collections::BTreeSet::new();
    let texts = documents.iter().flat_map(|d| d.values().filter_map(Value::as_str));
    let words = texts.flat_map(|text| text.split(|c: char| !c.is_alphabetic())).filter(|w| (4..=14).contains(&w.len()));
    words.map(str::to_lowercase).filter(|w| seen.insert(w.clone())).take(20_000).collect()
}

fn prefix(word: &str) -> String {
    word.chars().take(3).collect()
}

/// A typing error: the second and the third letter change places.
fn swapped(word: &str) -> String {
    let mut letters: Vec<char> = word.chars().collect();
    if letters.len() > 2 {
        letters.swap(1, 2);
    }
    letters.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn searches_are_varied_and_the_same_each_time() {
        let (a, b) = (Queries::of(&Documents::Sample).unwrap(), Queries::of(&Documents::Sample).unwrap());
        assert_eq!(a.bodies, b.bodies);
        let different: std::collections::BTreeSet<_> = a.bodies.iter().collect();
        assert!(different.len() > COUNT * 9 / 10, "{}", different.len());
        for key in ["filter", "sort", "facets"] {
            assert!(a.bodies.iter().any(|b| b.windows(key.len()).any(|w| w == key.as_bytes())), "{key}");
        }
    }

    #[test]
    fn a_typing_error_stays_near() {
        assert_eq!(swapped("network"), "ntework");
        assert_eq!(swapped("ab"), "ab");
    }
}
