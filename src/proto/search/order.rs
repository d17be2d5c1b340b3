//! Where a hit stands: its ranking-rule details, compared rule by rule.
//!
//! The rule: raw counts where there are any (words, typos, exact words), because the ratios of one rule have different
//! denominators on different nodes; typed values for sorts. The comparison is a total order, whatever a peer sends.
//! Must not know: parts, pages.

use std::cmp::Ordering;

use crate::proto::json::{self, Member, ScanError};

/// Why details can't be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DetailsError {
    /// Not the JSON it should be.
    #[error("details are not valid: {0}")]
    Scan(#[from] ScanError),
    /// A rule lacks a field, or has one of another type.
    #[error("details lack `{0}`")]
    Lacks(&'static str),
}

/// A value that hits are sorted by. Null loses in both directions, and numbers stand before texts in both.
#[derive(Debug, Clone, PartialEq)]
pub enum SortValue {
    /// The document has no such value.
    Null,
    /// A text in Meilisearch's normal form, as nodes send it.
    Text(String),
    /// A number.
    Number(f64),
}

/// What one ranking rule says about a hit.
#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    /// The time was over before this rule.
    Skipped,
    /// Words of the query that match.
    Words {
        /// How many.
        matching: u64,
        /// Of how many.
        max: u64,
    },
    /// Typos in the matching words; fewer is better.
    Typo {
        /// How many.
        count: u64,
        /// Of at most how many.
        max: u64,
    },
    /// A rule of which nodes tell only the ratio: proximity, attribute rank, word position, or one not known here.
    Ratio(RatioRule, f64),
    /// Attribute rank and word position as one rule: the former decides first.
    Attribute {
        /// The rank of the best attribute.
        rank: f64,
        /// Both folded into one.
        score: f64,
    },
    /// Exactness: the kind of match, then the exact words.
    Exactness {
        /// 2: the whole attribute, 1: its beginning, 0: neither.
        kind: u8,
        /// Exact words where the kind is 0.
        words: u64,
        /// Nodes' own ratio.
        score: f64,
    },
    /// A sort of the query, or a custom rule.
    Sort {
        /// Smallest first.
        asc: bool,
        /// The document's value.
        value: SortValue,
    },
    /// The distance from a point.
    Geo {
        /// Nearest first.
        asc: bool,
        /// Metres; `None` loses.
        distance: Option<f64>,
    },
    /// Similarity of vectors; a hit without one has none.
    Vector(Option<f64>),
    /// Pinned to a place; stands before all others.
    Pin(u64),
}

/// Which rule a ratio belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RatioRule {
    /// `proximity`
    Proximity,
    /// `attributeRank`
    AttributeRank,
    /// `wordPosition`
    WordPosition,
    /// One that this version does not know.
    Other,
}

/// All rules of a hit, in the order in which they were applied.
pub type Rules = Vec<Rule>;

fn number(member: &Member<'_>) -> Option<f64> {
    if !matches!(member.value.first(), Some(b'-' | b'0'..=b'9')) {
        return None;
    }
    std::str::from_utf8(member.value).ok()?.parse::<f64>().ok().filter(|f| f.is_finite())
}

fn count(member: &Member<'_>) -> Option<u64> {
    std::str::from_utf8(member.value).ok()?.parse().ok()
}

fn optional_number(member: &Member<'_>) -> Option<Option<f64>> {
    if member.value == b"null" { Some(None) } else { number(member).map(Some) }
}

fn sort_value(member: &Member<'_>) -> Option<SortValue> {
    match member.value.first() {
        Some(b'n') => (member.value == b"null").then_some(SortValue::Null),
        Some(b'"') => serde_json::from_slice(member.value).ok().map(SortValue::Text),
        _ => number(member).map(SortValue::Number),
    }
}

/// The fields of one rule's details that matter.
#[derive(Default)]
struct Fields {
    order: Option<u64>,
    score: Option<f64>,
    matching: Option<u64>,
    max_matching: Option<u64>,
    typos: Option<u64>,
    max_typos: Option<u64>,
    attribute: Option<f64>,
    kind: Option<u8>,
    value: Option<SortValue>,
    distance: Option<Option<f64>>,
    similarity: Option<Option<f64>>,
    position: Option<u64>,
}

impl Fields {
    /// Reads the object at `at`; also the position behind it.
    fn read(text: &[u8], at: usize) -> Result<(Self, usize), ScanError> {
        let mut f = Self::default();
        let mut members = json::members(text, at)?;
        for member in members.by_ref() {
            let m = member?;
            match m.raw_key {
                b"order" => f.order = count(&m),
                b"score" => f.score = number(&m),
                b"matchingWords" => f.matching = count(&m),
                b"maxMatchingWords" => f.max_matching = count(&m),
                b"typoCount" => f.typos = count(&m),
                b"maxTypoCount" => f.max_typos = count(&m),
                b"attributeRankingOrderScore" => f.attribute = number(&m),
                b"matchType" => {
                    f.kind = match m.value {
                        b"\"exactMatch\"" => Some(2),
                        b"\"matchesStart\"" => Some(1),
                        b"\"noExactMatch\"" => Some(0),
                        _ => None,
                    }
                }
                b"value" => f.value = sort_value(&m),
                b"distance" => f.distance = optional_number(&m),
                b"similarity" => f.similarity = optional_number(&m),
                b"position" => f.position = count(&m),
                _ => {}
            }
        }
        let end = members.end().ok_or(ScanError::Unexpected(at))?;
        Ok((f, end))
    }

    fn rule(self, name: &[u8]) -> Result<Rule, DetailsError> {
        let lacks = DetailsError::Lacks;
        let score = self.score.ok_or(lacks("score"));
        let asc = name.ends_with(b":asc");
        if asc || name.ends_with(b":desc") {
            return match self.distance {
                Some(distance) => Ok(Rule::Geo { asc, distance }),
                None => Ok(Rule::Sort { asc, value: self.value.ok_or(lacks("value"))? }),
            };
        }
        Ok(match name {
            b"words" => Rule::Words {
                matching: self.matching.ok_or(lacks("matchingWords"))?,
                max: self.max_matching.ok_or(lacks("maxMatchingWords"))?,
            },
            b"typo" => Rule::Typo {
                count: self.typos.ok_or(lacks("typoCount"))?,
                max: self.max_typos.ok_or(lacks("maxTypoCount"))?,
            },
            b"proximity" => Rule::Ratio(RatioRule::Proximity, score?),
            b"attributeRank" => Rule::Ratio(RatioRule::AttributeRank, score?),
            b"wordPosition" => Rule::Ratio(RatioRule::WordPosition, score?),
            b"attribute" => {
                Rule::Attribute { rank: self.attribute.ok_or(lacks("attributeRankingOrderScore"))?, score: score? }
            }
            b"exactness" => Rule::Exactness {
                kind: self.kind.ok_or(lacks("matchType"))?,
                words: self.matching.unwrap_or(0),
                score: score?,
            },
            b"vectorSort" => Rule::Vector(self.similarity.ok_or(lacks("similarity"))?),
            b"skipped" => Rule::Skipped,
            b"pin" => Rule::Pin(self.position.ok_or(lacks("position"))?),
            _ => Rule::Ratio(RatioRule::Other, score.unwrap_or(0.0)),
        })
    }
}

/// Reads `_rankingScoreDetails`.
///
/// # Errors
/// [`DetailsError`].
pub fn parse_details(text: &[u8]) -> Result<Rules, DetailsError> {
    let mut rules: Vec<(u64, Rule)> = Vec::with_capacity(8);
    let mut members = json::members(text, 0)?;
    while let Some(key) = members.next_key()? {
        let (fields, end) = Fields::read(text, key.value_start)?;
        let order = fields.order.ok_or(DetailsError::Lacks("order"))?;
        rules.push((order, fields.rule(key.raw_key)?));
        members.resume(end);
    }
    rules.sort_by_key(|(order, _)| *order);
    Ok(rules.into_iter().map(|(_, rule)| rule).collect())
}

/// Reads the `weightedScoreValues` of a listed document: sorts only.
///
/// # Errors
/// [`DetailsError`].
pub fn parse_sort_values(text: &[u8]) -> Result<Rules, DetailsError> {
    let mut rules = Rules::new();
    for element in json::elements(text, 0)? {
        let (_, element) = element?;
        for kind in json::members(element, 0)? {
            let kind = kind?;
            let mut asc = None;
            let mut fields = Fields::default();
            for member in json::members(kind.value, 0)? {
                let m = member?;
                match m.raw_key {
                    b"asc" => asc = Some(m.value == b"true"),
                    b"value" => fields.value = sort_value(&m),
                    b"distance" => fields.distance = optional_number(&m),
                    _ => {}
                }
            }
            let asc = asc.ok_or(DetailsError::Lacks("asc"))?;
            rules.push(match kind.raw_key {
                b"sort" => Rule::Sort { asc, value: fields.value.ok_or(DetailsError::Lacks("value"))? },
                b"geoSort" => Rule::Geo { asc, distance: fields.distance.ok_or(DetailsError::Lacks("distance"))? },
                _ => return Err(DetailsError::Lacks("sort")),
            });
        }
    }
    Ok(rules)
}

impl Rule {
    /// Rules of different kinds meet only where one node was cut short or peers differ; any fixed order does then.
    fn kind(&self) -> (u8, bool, Option<RatioRule>) {
        match self {
            Self::Skipped => (0, false, None),
            Self::Ratio(rule, _) => (1, false, Some(*rule)),
            Self::Attribute { .. } => (2, false, None),
            Self::Exactness { .. } => (3, false, None),
            Self::Typo { .. } => (4, false, None),
            Self::Words { .. } => (5, false, None),
            Self::Sort { asc, .. } => (6, *asc, None),
            Self::Geo { asc, .. } => (7, *asc, None),
            Self::Vector(_) => (8, false, None),
            Self::Pin(_) => (9, false, None),
        }
    }

    /// `Greater` if this one is better.
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Words { matching: a, .. }, Self::Words { matching: b, .. }) => a.cmp(b),
            (Self::Typo { count: a, .. }, Self::Typo { count: b, .. }) => b.cmp(a),
            (Self::Ratio(x, a), Self::Ratio(y, b)) if x == y => a.total_cmp(b),
            (Self::Attribute { rank: ra, score: a }, Self::Attribute { rank: rb, score: b }) => {
                ra.total_cmp(rb).then(a.total_cmp(b))
            }
            (Self::Exactness { kind: ka, words: a, .. }, Self::Exactness { kind: kb, words: b, .. }) => {
                (ka, a).cmp(&(kb, b))
            }
            (Self::Sort { asc, value: a }, Self::Sort { asc: other, value: b }) if asc == other => {
                compare_values(*asc, a, b)
            }
            (Self::Geo { asc, distance: a }, Self::Geo { asc: other, distance: b }) if asc == other => match (a, b) {
                (Some(a), Some(b)) => directed(*asc, a.total_cmp(b)),
                (a, b) => a.is_some().cmp(&b.is_some()),
            },
            (Self::Vector(a), Self::Vector(b)) => match (a, b) {
                (Some(a), Some(b)) => a.total_cmp(b),
                (a, b) => a.is_some().cmp(&b.is_some()),
            },
            (Self::Pin(a), Self::Pin(b)) => b.cmp(a),
            (a, b) => a.kind().cmp(&b.kind()),
        }
    }
}

/// Turns the order of two values into which is better.
fn directed(asc: bool, values: Ordering) -> Ordering {
    if asc { values.reverse() } else { values }
}

fn compare_values(asc: bool, a: &SortValue, b: &SortValue) -> Ordering {
    let rank = |v: &SortValue| match v {
        SortValue::Null => 0,
        SortValue::Text(_) => 1,
        SortValue::Number(_) => 2,
    };
    match (a, b) {
        (SortValue::Number(a), SortValue::Number(b)) => directed(asc, a.total_cmp(b)),
        (SortValue::Text(a), SortValue::Text(b)) => directed(asc, a.cmp(b)),
        (a, b) => rank(a).cmp(&rank(b)),
    }
}

/// `Greater` if the first hit is better. Whose rules end first loses.
pub fn compare(a: &[Rule], b: &[Rule]) -> Ordering {
    let differ = a.iter().zip(b).map(|(a, b)| a.cmp(b)).find(|o| o.is_ne());
    differ.unwrap_or_else(|| a.len().cmp(&b.len()))
}

/// Whether the hit was found by its vector.
pub fn is_semantic(rules: &[Rule]) -> bool {
    rules.iter().any(|r| matches!(r, Rule::Vector(_)))
}

/// What a search that mixes keywords and vectors compares: relevancy folded into scores, and sorts between them.
#[derive(Debug, Clone, PartialEq)]
pub enum Blend {
    /// Between 0 and 1, not yet multiplied.
    Score(f64),
    /// A sort or a distance.
    Sort(Rule),
}

/// Folds a hit's rules; `score` is its `_rankingScore`.
///
/// A node folds neighbouring relevancy rules into one number. With one run of them that number is the ranking score
/// itself. Sorts between them make several runs, whose numbers are made here from the details, as far as these tell.
pub fn blend(rules: &[Rule], score: f64) -> Vec<Blend> {
    let is_value = |r: &Rule| matches!(r, Rule::Sort { .. } | Rule::Geo { .. } | Rule::Vector(_) | Rule::Pin(_));
    let runs = rules.split(is_value).filter(|run| !run.is_empty()).count();
    let mut out = Vec::new();
    let mut rest = rules;
    while let Some(first) = rest.first() {
        let run = rest.iter().position(is_value).unwrap_or(rest.len());
        if run > 0 {
            out.push(Blend::Score(if runs == 1 && !is_semantic(rules) { score } else { fold(&rest[..run]) }));
            rest = &rest[run..];
            continue;
        }
        match first {
            Rule::Vector(similarity) => out.push(Blend::Score(similarity.unwrap_or(0.0))),
            Rule::Pin(_) => {}
            value => out.push(Blend::Sort(value.clone())),
        }
        rest = &rest[1..];
    }
    out
}

/// A run of relevancy rules as one number: each rank divides the step of the one before.
fn fold(run: &[Rule]) -> f64 {
    let mut score = 1.0;
    for rule in run.iter().rev() {
        let (rank, max) = rank_of(rule);
        score = (rank - 1.0 + score) / max;
    }
    score
}

/// Rank and highest rank of a rule.
#[allow(clippy::cast_precision_loss)] // Counts of words.
fn rank_of(rule: &Rule) -> (f64, f64) {
    match rule {
        Rule::Words { matching, max } => (*matching as f64, (*max).max(1) as f64),
        Rule::Typo { count, max } => {
            (max.saturating_add(1).saturating_sub(*count) as f64, max.saturating_add(1) as f64)
        }
        Rule::Ratio(_, score) | Rule::Attribute { score, .. } | Rule::Exactness { score, .. } => fraction(*score),
        _ => (0.0, 1.0),
    }
}

/// The fraction with the smallest denominator that gives this score.
fn fraction(score: f64) -> (f64, f64) {
    let close = |d: &f64| ((score * d) - (score * d).round()).abs() < 1e-9;
    let denominator = (1..=4_096_u16).map(f64::from).find(close).unwrap_or(4_096.0);
    ((score * denominator).round(), denominator)
}

/// Whether a hit found by vector stands before one found by keywords, `ratio` being the vectors' share. It does on ties.
pub fn semantic_first(semantic: &[Blend], keyword: &[Blend], ratio: f64) -> bool {
    // Nodes multiply by 32-bit ratios.
    #[allow(clippy::cast_possible_truncation)]
    let ratio = ratio as f32;
    let (semantic_weight, keyword_weight) = (f64::from(ratio), f64::from(1.0 - ratio));
    for pair in semantic.iter().zip(keyword) {
        let order = match pair {
            (Blend::Score(a), Blend::Score(b)) => {
                let (a, b) = (a * semantic_weight, b * keyword_weight);
                if (a - b).abs() <= f64::EPSILON { Ordering::Equal } else { a.total_cmp(&b) }
            }
            (Blend::Sort(a), Blend::Sort(b)) => a.cmp(b),
            (Blend::Score(a), Blend::Sort(_)) => return *a != 0.0,
            (Blend::Sort(_), Blend::Score(b)) => return *b == 0.0,
        };
        if order.is_ne() {
            return order.is_gt();
        }
    }
    semantic.len() >= keyword.len()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn rules(v: &Value) -> Rules {
        parse_details(v.to_string().as_bytes()).unwrap()
    }

    /// `better` stands before `worse`, whoever is asked first.
    fn assert_order(better: &Value, worse: &Value) {
        assert_eq!(compare(&rules(better), &rules(worse)), Ordering::Greater, "{better} {worse}");
        assert_eq!(compare(&rules(worse), &rules(better)), Ordering::Less, "{better} {worse}");
    }

    #[test]
    fn counts_decide_not_ratios() {
        let typo = |count: u32, max: u32, score: f64| {
            json!({"words": {"order": 0, "matchingWords": 2, "maxMatchingWords": 2, "score": 1.0},
                "typo": {"order": 1, "typoCount": count, "maxTypoCount": max, "score": score}})
        };
        assert_order(&typo(0, 1, 0.1), &typo(1, 9, 0.9));
        let exact = |kind: &str, words: u32| json!({"exactness": {"order": 0, "matchType": kind, "matchingWords": words, "score": 0.5}});
        assert_order(&exact("exactMatch", 0), &exact("matchesStart", 0));
        assert_order(&exact("matchesStart", 0), &exact("noExactMatch", 3));
        assert_order(&exact("noExactMatch", 3), &exact("noExactMatch", 2));
    }

    #[test]
    fn rules_are_compared_in_their_order_whatever_the_order_of_keys() {
        let hit = |proximity: f64, position: f64| json!({"wordPosition": {"order": 1, "score": position}, "proximity": {"order": 0, "score": proximity}});
        assert_order(&hit(0.9, 0.1), &hit(0.8, 1.0));
    }

    #[test]
    fn sorted_values_are_typed() {
        let sort = |dir: &str, v: Value| json!({format!("f:{dir}"): {"order": 0, "value": v}});
        for dir in ["asc", "desc"] {
            assert_order(&sort(dir, json!(5)), &sort(dir, json!("5")));
            assert_order(&sort(dir, json!("a")), &sort(dir, json!(null)));
        }
        assert_order(&sort("asc", json!(9)), &sort("asc", json!(10)));
        assert_order(&sort("desc", json!(10.5)), &sort("desc", json!(9)));
        assert_order(&sort("asc", json!("a")), &sort("asc", json!("b")));
        assert_order(&sort("desc", json!("b")), &sort("desc", json!("a")));
    }

    #[test]
    fn the_nearest_wins_when_sorted_ascending() {
        let geo =
            |dir: &str, d: Value| json!({format!("_geoPoint(1, 2):{dir}"): {"order": 0, "value": null, "distance": d}});
        assert_order(&geo("asc", json!(5.5)), &geo("asc", json!(1e6)));
        assert_order(&geo("desc", json!(1e6)), &geo("desc", json!(5.5)));
        for dir in ["asc", "desc"] {
            assert_order(&geo(dir, json!(0)), &geo(dir, json!(null)));
        }
    }

    #[test]
    fn a_rule_that_was_cut_short_loses() {
        let words = json!({"words": {"order": 0, "matchingWords": 1, "maxMatchingWords": 1, "score": 1.0}});
        let mut skipped = words.clone();
        skipped["skipped"] = json!({"order": 1});
        let mut typo = words.clone();
        typo["typo"] = json!({"order": 1, "typoCount": 5, "maxTypoCount": 5, "score": 0.1});
        assert_order(&typo, &skipped);
        assert_order(&skipped, &words);
    }

    #[test]
    fn attribute_rank_decides_before_the_folded_score() {
        let hit = |rank: f64, score: f64| json!({"attribute": {"order": 0, "attributeRankingOrderScore": rank, "queryWordDistanceScore": 0.1, "score": score}});
        assert_order(&hit(1.0, 0.2), &hit(0.9, 0.9));
        assert_order(&hit(1.0, 0.3), &hit(1.0, 0.2));
    }

    #[test]
    fn what_a_peer_garbles_is_an_error() {
        for bad in [
            r#"{"words": {"order": 0}}"#,
            r#"{"words": {"matchingWords": 1, "maxMatchingWords": 1}}"#,
            r#"{"typo": {"order": 0, "typoCount": -1, "maxTypoCount": 1}}"#,
            r#"{"f:asc": {"order": 0, "value": [1]}}"#,
            r#"{"f:asc": {"order": 0, "value": nan}}"#,
            r#"{"proximity": {"order": 0, "score": 1e999}}"#,
            r#"{"exactness": {"order": 0, "score": 1, "matchType": "best"}}"#,
            r#"{"words": 7}"#,
            "[]",
            "{",
        ] {
            assert!(parse_details(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn listed_documents_sort_like_hits() {
        let values = |v: Value| parse_sort_values(v.to_string().as_bytes()).unwrap();
        let a = values(json!([{"sort": {"asc": false, "value": 10}}, {"geoSort": {"asc": true, "distance": 5.0}}]));
        let b = values(json!([{"sort": {"asc": false, "value": 10}}, {"geoSort": {"asc": true, "distance": 7.0}}]));
        assert_eq!(compare(&a, &b), Ordering::Greater);
        assert!(parse_sort_values(b"[{\"weightedScore\": 1}]").is_err());
        assert!(values(json!([])).is_empty());
    }

    #[test]
    fn vectors_stand_first_on_ties_and_by_their_share() {
        let semantic = blend(&[Rule::Vector(Some(0.8))], 0.8);
        let keyword = |score| blend(&[Rule::Words { matching: 1, max: 1 }], score);
        assert!(semantic_first(&semantic, &keyword(0.8), 0.5));
        assert!(!semantic_first(&semantic, &keyword(0.9), 0.5));
        assert!(semantic_first(&semantic, &keyword(0.9), 0.7));
        let sort = |n: f64| Rule::Sort { asc: true, value: SortValue::Number(n) };
        let semantic = blend(&[sort(1.0), Rule::Vector(Some(0.1))], 0.1);
        let keyword = blend(&[sort(2.0), Rule::Words { matching: 1, max: 1 }], 1.0);
        assert!(semantic_first(&semantic, &keyword, 0.1));
    }

    #[test]
    fn runs_between_sorts_are_folded_as_nodes_do() {
        // words 2/3, typo 2/2: ((2 − 1)·2 + 2) / (3·2)
        let run = [Rule::Words { matching: 2, max: 3 }, Rule::Typo { count: 0, max: 1 }];
        assert!((fold(&run) - 4.0 / 6.0).abs() < 1e-12);
        assert_eq!(fraction(0.75), (3.0, 4.0));
        assert_eq!(fraction(1.0), (1.0, 1.0));
    }

    /// Any rules, of one query's shape or not.
    pub fn any_rules() -> impl Strategy<Value = Rules> {
        let small = || (0..4_u32).prop_map(f64::from);
        let value = prop_oneof![
            Just(SortValue::Null),
            small().prop_map(SortValue::Number),
            "[ab]{0,2}".prop_map(SortValue::Text),
        ];
        let ratio = prop::sample::select(vec![RatioRule::Proximity, RatioRule::AttributeRank, RatioRule::Other]);
        let rule = prop_oneof![
            Just(Rule::Skipped),
            (0..3_u64).prop_map(|matching| Rule::Words { matching, max: 3 }),
            (0..3_u64).prop_map(|count| Rule::Typo { count, max: 3 }),
            (ratio, small()).prop_map(|(r, s)| Rule::Ratio(r, s)),
            (small(), small()).prop_map(|(rank, score)| Rule::Attribute { rank, score }),
            (0..3_u8, 0..3_u64).prop_map(|(kind, words)| Rule::Exactness { kind, words, score: 0.5 }),
            (any::<bool>(), value).prop_map(|(asc, value)| Rule::Sort { asc, value }),
            (any::<bool>(), prop::option::of(small())).prop_map(|(asc, distance)| Rule::Geo { asc, distance }),
            prop::option::of(small()).prop_map(Rule::Vector),
            (0..3_u64).prop_map(Rule::Pin),
        ];
        prop::collection::vec(rule, 0..4)
    }

    proptest! {
        #[test]
        fn the_order_is_total(a in any_rules(), b in any_rules(), c in any_rules()) {
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            prop_assert_eq!(compare(&a, &a), Ordering::Equal);
            if compare(&a, &b).is_ge() && compare(&b, &c).is_ge() {
                prop_assert!(compare(&a, &c).is_ge());
            }
            if compare(&a, &b).is_eq() {
                prop_assert_eq!(compare(&a, &c), compare(&b, &c));
            }
        }
    }
}
