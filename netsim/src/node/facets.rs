//! Facet counts and statistics.
//!
//! Rule: values are counted by their normalised form and shown as some document has them; a facet that nothing was found
//! for is an empty object. Must not know: queries, ranking.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::error::{ApiError, Result};
use super::index::Index;
use super::rank::DocSet;
use super::settings::covers;

/// Up to this many candidates numbers are listed in the order of their text.
const NUMBERS_AS_TEXT: usize = 3_000;

/// Refuses facets that are not filterable.
pub fn check(index: &Index, facets: &[String]) -> Result<()> {
    let mut names: Vec<&String> = facets.iter().collect();
    names.sort();
    let Some(unknown) = names.into_iter().find(|facet| !index.settings.is_filterable(facet)) else { return Ok(()) };
    let names = index.settings.filterable_names();
    let available = match names.is_empty() {
        true => "This index does not have configured filterable attributes.".to_owned(),
        false => format!("Available filterable attributes patterns are: `{}`.", names.join(", ")),
    };
    let text = format!("Invalid facet distribution: Pattern `{unknown}` is not filterable. {available}");
    Err(ApiError::new("invalid_search_facets", text))
}

/// The text of a number as Meilisearch shows it in facets.
fn number_text(number: f64) -> String {
    if number == number.trunc() && number.abs() < 1e15 { format!("{}", number as i64) } else { number.to_string() }
}

#[derive(Default)]
struct Counts {
    numbers: BTreeMap<u64, (f64, u64)>,
    strings: BTreeMap<String, (String, u64)>,
}

/// A number's bits in an order that is the number's.
fn ordered_bits(number: f64) -> u64 {
    let bits = if number == 0.0 { 0 } else { number.to_bits() };
    if bits >> 63 == 1 { !bits } else { bits | 1 << 63 }
}

/// `facetDistribution` and `facetStats` of the candidates.
pub fn distribution(index: &Index, facets: &[String], candidates: &DocSet) -> (Value, Value) {
    let mut counts: BTreeMap<&str, Counts> = BTreeMap::new();
    let total = candidates.len();
    let everywhere: BTreeSet<&str> =
        index.docs().flat_map(|(_, doc)| doc.facts.iter().map(|(path, _)| path.as_str())).collect();
    for path in everywhere.iter().filter(|path| facets.iter().any(|facet| covers(facet, path))) {
        if index.settings.is_filterable(path) {
            counts.insert(path, Counts::default());
        }
    }
    for doc in candidates.iter().filter_map(|docid| index.doc(docid)) {
        for (path, facts) in &doc.facts {
            let Some(counts) = counts.get_mut(path.as_str()) else { continue };
            let numbers: BTreeMap<u64, f64> = facts.numbers.iter().map(|n| (ordered_bits(*n), *n)).collect();
            for (bits, number) in numbers {
                counts.numbers.entry(bits).or_insert((number, 0)).1 += 1;
            }
            let mut seen: Vec<&str> = Vec::new();
            for (normalized, original) in &facts.strings {
                if !seen.contains(&normalized.as_str()) {
                    seen.push(normalized);
                    counts.strings.entry(normalized.clone()).or_insert_with(|| (original.clone(), 0)).1 += 1;
                }
            }
        }
    }
    let (mut distribution, mut stats) = (Map::new(), Map::new());
    for (path, counts) in counts {
        let mut numbers: Vec<(String, u64)> =
            counts.numbers.values().map(|(number, count)| (number_text(*number), *count)).collect();
        let mut strings: Vec<(String, u64)> = counts.strings.into_values().collect();
        if let (Some((min, _)), Some((max, _))) = (counts.numbers.values().next(), counts.numbers.values().next_back())
        {
            stats.insert(path.to_owned(), json!({"min": min, "max": max}));
        }
        if index.settings.facet_by_count(path) {
            // Equal counts stand in falling order of their values.
            for values in [&mut numbers, &mut strings] {
                values.reverse();
                values.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            }
        } else if total <= NUMBERS_AS_TEXT {
            numbers.sort();
        }
        let mut values = numbers;
        values.append(&mut strings);
        values.truncate(index.settings.max_facet_values);
        let values: Map<String, Value> = values.into_iter().map(|(value, count)| (value, json!(count))).collect();
        distribution.insert(path.to_owned(), Value::Object(values));
    }
    (Value::Object(distribution), Value::Object(stats))
}
