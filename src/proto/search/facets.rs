//! Facets of several parts as one: counts are summed by normalised value, sorted and cut as the client set it.
//!
//! Must not know: hits.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::value::normalise;
use crate::proto::json::{self, Member, ScanError};
use crate::proto::settings::{FacetOrder, IndexView};
use crate::types::SHARD_FIELD;

/// Up to this many candidates, nodes sort numbers as texts when the order is by value.
const NUMBERS_AS_TEXTS_MAX: u64 = 3_000;

/// One facet while it is summed up.
#[derive(Debug, Default)]
struct Facet {
    numbers: BTreeMap<String, u64>,
    /// By normalised value: the value as the first part spells it (still escaped), and its count.
    texts: BTreeMap<String, (String, u64)>,
    stats: Option<Stats>,
}

/// Smallest and largest number, each with the bytes that a node wrote.
#[derive(Debug, Clone)]
struct Stats {
    min: (f64, String),
    max: (f64, String),
}

/// Sums up facets, part by part.
#[derive(Debug, Default)]
pub struct Facets {
    facets: BTreeMap<String, Facet>,
}

fn text_of(bytes: &[u8], at: usize) -> Result<&str, ScanError> {
    std::str::from_utf8(bytes).map_err(|_| ScanError::Unexpected(at))
}

fn key_of(member: &Member<'_>) -> Result<String, ScanError> {
    if member.raw_key.contains(&b'\\') {
        return member.key().ok_or(ScanError::Unexpected(member.start));
    }
    text_of(member.raw_key, member.start).map(str::to_owned)
}

fn finite(member: &Member<'_>) -> Result<(f64, String), ScanError> {
    let text = text_of(member.value, member.value_start)?;
    let number = text.parse::<f64>().ok().filter(|f| f.is_finite() && text.ends_with(|c: char| c.is_ascii_digit()));
    number.map(|n| (n, text.to_owned())).ok_or(ScanError::Unexpected(member.value_start))
}

impl Stats {
    fn read(at: &Member<'_>) -> Result<Self, ScanError> {
        let (mut min, mut max) = (None, None);
        for member in json::members(at.value, 0)? {
            let m = member?;
            match m.raw_key {
                b"min" => min = Some(finite(&m)?),
                b"max" => max = Some(finite(&m)?),
                _ => {}
            }
        }
        let lacks = ScanError::Unexpected(at.value_start);
        Ok(Self { min: min.ok_or(lacks)?, max: max.ok_or(lacks)? })
    }

    fn widen(&mut self, other: &Self) {
        if other.min.0 < self.min.0 {
            self.min.clone_from(&other.min);
        }
        if other.max.0 > self.max.0 {
            self.max.clone_from(&other.max);
        }
    }

    /// Whether a facet value is a number of a field with these stats, spelled as nodes spell numbers.
    fn has(&self, value: &str) -> bool {
        let first = value.as_bytes().first();
        first.is_some_and(|b| b.is_ascii_digit() || *b == b'-')
            && value.parse::<f64>().is_ok_and(|n| n >= self.min.0 && n <= self.max.0 && n.to_string() == value)
    }
}

impl Facets {
    /// Adds one part's `facetDistribution` and `facetStats`.
    ///
    /// # Errors
    /// [`ScanError`] if they are not objects of counts and numbers.
    pub fn add(&mut self, distribution: &[u8], stats: Option<&[u8]>) -> Result<(), ScanError> {
        let mut part_stats: BTreeMap<String, Stats> = BTreeMap::new();
        if let Some(stats) = stats {
            for member in json::members(stats, 0)? {
                let m = member?;
                if !m.is(SHARD_FIELD) {
                    part_stats.insert(key_of(&m)?, Stats::read(&m)?);
                }
            }
        }
        for member in json::members(distribution, 0)? {
            let m = member?;
            if m.is(SHARD_FIELD) {
                continue;
            }
            let name = key_of(&m)?;
            let stats = part_stats.get(&name);
            let facet = self.facets.entry(name).or_default();
            facet.add(&m, stats)?;
        }
        for (name, stats) in part_stats {
            let facet = self.facets.entry(name).or_default();
            match &mut facet.stats {
                Some(known) => known.widen(&stats),
                none => *none = Some(stats),
            }
        }
        Ok(())
    }

    /// Writes `facetDistribution` and `facetStats`, with their keys. `candidates` is the number of hits in all.
    pub fn write(self, out: &mut Vec<u8>, view: &IndexView, candidates: u64) {
        out.extend_from_slice(b",\"facetDistribution\":{");
        for (i, (name, facet)) in self.facets.iter().enumerate() {
            comma(out, i);
            push_key(out, name);
            facet.write(out, view.facet_order(name), view.max_values_per_facet, candidates);
        }
        out.extend_from_slice(b"},\"facetStats\":{");
        let stats = self.facets.iter().filter_map(|(name, f)| f.stats.as_ref().map(|s| (name, s)));
        for (i, (name, stats)) in stats.enumerate() {
            comma(out, i);
            push_key(out, name);
            out.extend_from_slice(format!("{{\"min\":{},\"max\":{}}}", stats.min.1, stats.max.1).as_bytes());
        }
        out.push(b'}');
    }
}

fn comma(out: &mut Vec<u8>, i: usize) {
    if i > 0 {
        out.push(b',');
    }
}

fn push_key(out: &mut Vec<u8>, key: &str) {
    out.extend_from_slice(serde_json::to_string(key).expect("a text encodes").as_bytes());
    out.push(b':');
}

impl Facet {
    fn add(&mut self, at: &Member<'_>, stats: Option<&Stats>) -> Result<(), ScanError> {
        for member in json::members(at.value, 0)? {
            let m = member?;
            let count = text_of(m.value, m.value_start)?.parse::<u64>();
            let count = count.map_err(|_| ScanError::Unexpected(m.value_start))?;
            let value = key_of(&m)?;
            if stats.is_some_and(|s| s.has(&value)) {
                let sum = self.numbers.entry(value).or_default();
                *sum = sum.saturating_add(count);
            } else {
                match self.texts.entry(normalise(&value)) {
                    Entry::Occupied(mut known) => known.get_mut().1 = known.get().1.saturating_add(count),
                    Entry::Vacant(new) => {
                        new.insert((text_of(m.raw_key, m.start)?.to_owned(), count));
                    }
                }
            }
        }
        Ok(())
    }

    fn write(&self, out: &mut Vec<u8>, order: FacetOrder, max: usize, candidates: u64) {
        let mut numbers: Vec<(&str, u64)> = self.numbers.iter().map(|(v, c)| (v.as_str(), *c)).collect();
        let mut texts: Vec<(&str, &str, u64)> =
            self.texts.iter().map(|(n, (v, c))| (n.as_str(), v.as_str(), *c)).collect();
        match order {
            FacetOrder::Alpha if candidates <= NUMBERS_AS_TEXTS_MAX => {}
            FacetOrder::Alpha => numbers.sort_by(|a, b| compare_numbers(a.0, b.0)),
            FacetOrder::Count => {
                numbers.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| compare_numbers(b.0, a.0)));
                texts.sort_by_key(|(normal, _, count)| (Reverse(*count), Reverse(*normal)));
            }
        }
        out.push(b'{');
        let all = numbers.into_iter().chain(texts.into_iter().map(|(_, value, count)| (value, count)));
        for (i, (value, count)) in all.take(max).enumerate() {
            comma(out, i);
            // Numbers need no escapes, and texts still have theirs.
            out.push(b'"');
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\":");
            out.extend_from_slice(count.to_string().as_bytes());
        }
        out.push(b'}');
    }
}

fn compare_numbers(a: &str, b: &str) -> Ordering {
    let number = |s: &str| s.parse::<f64>().unwrap_or(0.0);
    number(a).total_cmp(&number(b))
}

/// One part's `facetDistribution` as the client may see it: no reserved field, not more values than the client set.
///
/// # Errors
/// [`ScanError`] if it is not an object of objects.
pub fn write_cut(out: &mut Vec<u8>, distribution: &[u8], max: usize) -> Result<(), ScanError> {
    out.push(b'{');
    let mut first = true;
    for member in json::members(distribution, 0)? {
        let m = member?;
        if m.is(SHARD_FIELD) {
            continue;
        }
        comma(out, usize::from(!first));
        first = false;
        out.extend_from_slice(&distribution[m.start..m.value_start]);
        out.push(b'{');
        for (i, value) in json::members(distribution, m.value_start)?.enumerate() {
            let v = value?;
            if i < max {
                comma(out, i);
                out.extend_from_slice(&distribution[v.start..v.end]);
            }
        }
        out.push(b'}');
    }
    out.push(b'}');
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn merged(parts: &[(Value, Value)], view: &IndexView, candidates: u64) -> String {
        let mut facets = Facets::default();
        for (distribution, stats) in parts {
            facets.add(distribution.to_string().as_bytes(), Some(stats.to_string().as_bytes())).unwrap();
        }
        let mut out = Vec::new();
        facets.write(&mut out, view, candidates);
        String::from_utf8(out).unwrap()
    }

    fn by_count(max: usize) -> IndexView {
        IndexView {
            sort_facet_values_by: BTreeMap::from([("*".into(), FacetOrder::Count)]),
            max_values_per_facet: max,
            ..IndexView::default()
        }
    }

    #[test]
    fn values_are_one_in_spite_of_their_case() {
        let parts =
            [(json!({"c": {"Red": 2, "blue": 1}}), json!({})), (json!({"c": {"green": 5, "red": 3}}), json!({}))];
        let seen = merged(&parts, &IndexView::default(), 9);
        assert_eq!(seen, r#","facetDistribution":{"c":{"blue":1,"green":5,"Red":5}},"facetStats":{}"#);
        let seen = merged(&parts, &by_count(2), 9);
        assert_eq!(seen, r#","facetDistribution":{"c":{"Red":5,"green":5}},"facetStats":{}"#);
    }

    #[test]
    fn empty_facets_stay() {
        let parts = [(json!({"a": {}, "b": {}}), json!({})), (json!({"a": {}, "b": {}}), json!({}))];
        let seen = merged(&parts, &IndexView::default(), 0);
        assert_eq!(seen, r#","facetDistribution":{"a":{},"b":{}},"facetStats":{}"#);
    }

    #[test]
    fn numbers_stand_first_and_change_their_order_with_the_number_of_candidates() {
        let part = |d: Value| (json!({"n": d}), json!({"n": {"min": 1.0, "max": 20.0}}));
        let parts = [part(json!({"10": 1, "9": 1, "a": 1})), part(json!({"20": 4, "9": 2, "1.50": 7}))];
        let values = |s: &str| {
            serde_json::from_str::<Value>(&format!("{{{}}}", &s[1..])).unwrap()["facetDistribution"]["n"]
                .as_object()
                .unwrap()
                .keys()
                .cloned()
                .collect::<Vec<_>>()
        };
        assert_eq!(values(&merged(&parts, &IndexView::default(), 3_000)), ["10", "20", "9", "1.50", "a"]);
        assert_eq!(values(&merged(&parts, &IndexView::default(), 3_001)), ["9", "10", "20", "1.50", "a"]);
        assert_eq!(values(&merged(&parts, &by_count(9), 9)), ["20", "9", "10", "1.50", "a"]);
        assert_eq!(values(&merged(&parts, &by_count(2), 9)), ["20", "9"]);
    }

    #[test]
    fn numeric_texts_of_a_field_without_numbers_are_texts() {
        let parts = [(json!({"v": {"1.10": 1, "abc": 1}}), json!({})), (json!({"v": {"2": 1}}), json!({}))];
        assert!(merged(&parts, &IndexView::default(), 9).contains(r#"{"1.10":1,"2":1,"abc":1}"#));
    }

    #[test]
    fn stats_are_the_widest_and_the_shard_is_hidden() {
        let stats = |min: f64, max: f64| json!({"n": {"min": min, "max": max}, "_miroir_shard": {"min": 0, "max": 1}});
        let parts = [
            (json!({"n": {"2": 1}, "_miroir_shard": {"ꀀ": 4}}), stats(2.0, 5.0)),
            (json!({"n": {"1": 1}}), stats(-1.5, 3.0)),
        ];
        let seen = merged(&parts, &IndexView::default(), 9);
        assert_eq!(seen, r#","facetDistribution":{"n":{"1":1,"2":1}},"facetStats":{"n":{"min":-1.5,"max":5.0}}"#);
        let mut out = Vec::new();
        write_cut(&mut out, r#"{"_miroir_shard":{"ꀀ":4},"n":{"1":1,"2":1}}"#.as_bytes(), 1).unwrap();
        assert_eq!(out, br#"{"n":{"1":1}}"#);
    }

    #[test]
    fn escaped_values_stay_escaped() {
        let parts = [(json!({"q\"": {"a\"b\\": 1}}), json!({})), (json!({"q\"": {"A\"B\\": 1}}), json!({}))];
        let seen = merged(&parts, &IndexView::default(), 9);
        assert_eq!(seen, r#","facetDistribution":{"q\"":{"a\"b\\":2}},"facetStats":{}"#);
    }

    #[test]
    fn what_a_peer_garbles_is_an_error() {
        for bad in ["[]", "{\"a\":5}", "{\"a\":{\"b\":-1}}", "{\"a\":{\"b\":\"x\"}}", "{\"a\":{\"b\":1.5}}", "{"] {
            assert!(Facets::default().add(bad.as_bytes(), None).is_err(), "{bad}");
        }
        for bad in ["{\"a\":{}}", "{\"a\":{\"min\":nan,\"max\":1}}", "{\"a\":{\"min\":1}}", "{\"a\":1}"] {
            assert!(Facets::default().add(b"{}", Some(bad.as_bytes())).is_err(), "{bad}");
        }
    }
}
