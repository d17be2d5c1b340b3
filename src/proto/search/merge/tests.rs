//! Merging as a client sees it.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::proto::search::order::{self, Rule, SortValue, tests::any_rules};
use crate::types::ShardId;

fn shards(list: &[u16]) -> ShardSet {
    list.iter().copied().map(ShardId).collect()
}

fn part(first: u16, body: &Value) -> PartAnswer {
    PartAnswer { shards: shards(&[first, first + 30]), alone: false, body: body.to_string().into() }
}

fn query(v: &Value) -> SearchQuery {
    SearchQuery::from_json(v.to_string().as_bytes()).unwrap()
}

fn text(q: &Value, view: &IndexView, parts: &[PartAnswer]) -> Result<String, MergeError> {
    let missing = ShardSet::new();
    let query = query(q);
    let request = MergeRequest {
        query: &query,
        view,
        parts,
        keywords_only: false,
        missing: &missing,
        processing_time_ms: 7,
        request_uid: "uid",
        // A field that no search has.
        metadata: q.get("metadata").and_then(Value::as_str),
    };
    merge(&request).map(|bytes| String::from_utf8(bytes).unwrap())
}

fn merged(q: &Value, view: &IndexView, parts: &[PartAnswer]) -> Value {
    serde_json::from_str(&text(q, view, parts).unwrap()).unwrap()
}

/// A hit that stands by its number of matching words.
fn hit(id: &str, words: u32) -> Value {
    json!({"id": id, "_miroir_shard": "ꀀ", "_rankingScoreDetails":
        {"words": {"order": 0, "matchingWords": words, "maxMatchingWords": 9, "score": 0.5}}})
}

fn body(hits: &[Value]) -> Value {
    json!({"hits": hits, "query": "q", "processingTimeMs": 3, "limit": 20, "offset": 0,
        "estimatedTotalHits": hits.len(), "requestUid": "node"})
}

fn ids(v: &Value) -> Vec<&str> {
    v["hits"].as_array().unwrap().iter().map(|h| h["id"].as_str().unwrap()).collect()
}

#[test]
fn keys_stand_in_the_order_of_a_node() {
    let b = |hits: &[Value]| {
        let mut b = body(hits);
        b["facetDistribution"] = json!({"c": {"x": 1}});
        b["facetStats"] = json!({});
        b["queryVector"] = json!([0.5]);
        b["performanceDetails"] = json!({"search": "1ms"});
        b["semanticHitCount"] = json!(0);
        b
    };
    let view = IndexView { uid: "packages".into(), ..IndexView::default() };
    let parts = [part(0, &b(&[hit("a", 1)])), part(1, &b(&[hit("b", 2)]))];
    assert_eq!(
        text(&json!({"showPerformanceDetails": true, "metadata": "{\"queryUid\":\"u\"}"}), &view, &parts).unwrap(),
        concat!(
            r#"{"hits":[{"id":"b"},{"id":"a"}],"query":"q","queryVector":[0.5],"processingTimeMs":7,"#,
            r#""limit":20,"offset":0,"estimatedTotalHits":2,"facetDistribution":{"c":{"x":2}},"facetStats":{},"#,
            r#""requestUid":"uid","metadata":{"queryUid":"u"},"#,
            r#""performanceDetails":{"search":"1ms"},"semanticHitCount":0}"#
        )
    );
}

#[test]
fn what_the_client_asked_for_stays() {
    let parts = [part(0, &body(&[hit("a", 1)]))];
    let seen = merged(&json!({"showRankingScoreDetails": true}), &IndexView::default(), &parts);
    assert_eq!(seen["hits"][0]["_rankingScoreDetails"]["words"]["matchingWords"], 1);
}

#[test]
fn ties_stand_by_rank_and_then_by_lowest_shard() {
    let parts = [
        part(2, &body(&[hit("c0", 1), hit("c1", 1)])),
        part(0, &body(&[hit("a0", 1), hit("a1", 1), hit("a2", 1)])),
        part(1, &body(&[hit("b0", 1)])),
    ];
    let seen = merged(&json!({}), &IndexView::default(), &parts);
    assert_eq!(ids(&seen), ["a0", "b0", "c0", "a1", "c1", "a2"]);
}

#[test]
fn pages_show_what_lies_in_them_and_the_totals_of_all() {
    let parts = [
        part(0, &body(&[hit("a", 6), hit("c", 4), hit("e", 2)])),
        part(1, &body(&[hit("b", 5), hit("d", 3), hit("f", 1)])),
    ];
    let view = IndexView::default();
    let seen = merged(&json!({"offset": 2, "limit": 3}), &view, &parts);
    assert_eq!(ids(&seen), ["c", "d", "e"]);
    assert_eq!((&seen["offset"], &seen["limit"], &seen["estimatedTotalHits"]), (&json!(2), &json!(3), &json!(6)));
    let seen = merged(&json!({"page": 2, "hitsPerPage": 4}), &view, &parts);
    assert_eq!(ids(&seen), ["e", "f"]);
    let numbers = |v: &Value| ["hitsPerPage", "page", "totalPages", "totalHits"].map(|k| v[k].as_u64().unwrap());
    assert_eq!(numbers(&seen), [4, 2, 2, 6]);
    for (q, expected) in [
        (json!({"page": 0, "hitsPerPage": 4}), [4, 0, 2, 6]),
        (json!({"page": 9, "hitsPerPage": 4}), [4, 9, 2, 6]),
        (json!({"hitsPerPage": 0}), [0, 1, 0, 6]),
    ] {
        let seen = merged(&q, &view, &parts);
        assert_eq!((ids(&seen).len(), numbers(&seen)), (0, expected), "{q}");
    }
    let seen = merged(&json!({"page": 3}), &view, &parts);
    assert_eq!(numbers(&seen), [20, 3, 1, 6]);
    assert!(ids(&merged(&json!({"limit": 0}), &view, &parts)).is_empty());
    let huge = json!({"offset": usize::MAX, "limit": usize::MAX});
    assert!(ids(&merged(&huge, &view, &parts)).is_empty());
    let narrow = IndexView { max_total_hits: 4, ..IndexView::default() };
    assert_eq!(ids(&merged(&json!({"offset": 3, "limit": 20}), &narrow, &parts)), ["d"]);
    assert_eq!(ids(&merged(&json!({"page": 2, "hitsPerPage": 3}), &narrow, &parts)), ["d"]);
}

#[test]
fn distinct_holds_across_parts() {
    let with = |id: &str, words: u32, brand: Value| {
        let mut h = hit(id, words);
        h["brand"] = brand;
        h
    };
    let parts = [
        part(0, &body(&[with("a", 9, json!("Acme")), with("b", 5, json!(["x", "y"])), with("c", 1, json!(null))])),
        part(1, &body(&[with("d", 8, json!(" acme")), with("e", 4, json!("Y")), with("f", 1, json!(null))])),
    ];
    let q = json!({"distinct": "brand", "attributesToRetrieve": ["id"]});
    let seen = merged(&q, &IndexView::default(), &parts);
    assert_eq!(ids(&seen), ["a", "b", "c", "f"]);
    assert_eq!(seen["estimatedTotalHits"], 4);
    assert_eq!(seen["hits"][0], json!({"id": "a"}), "the attribute was asked for by the mesh alone");
    let view = IndexView { distinct: Some("brand".into()), ..IndexView::default() };
    let seen = merged(&json!({"offset": 1, "limit": 1}), &view, &parts);
    assert_eq!(seen["hits"], json!([{"id": "b", "brand": ["x", "y"]}]));
    assert_eq!(seen["estimatedTotalHits"], 4, "rejected hits behind the page count too");
}

#[test]
fn keywords_and_vectors_are_mixed_by_the_ratio() {
    let keyword = |id: &str, words: u32, score: f64| {
        let mut h = hit(id, words);
        h["_rankingScore"] = score.into();
        h
    };
    let vector = |id: &str, score: f64| {
        json!({"id": id, "_rankingScore": score,
            "_rankingScoreDetails": {"vectorSort": {"order": 0, "similarity": score}}})
    };
    let mut a = body(&[vector("v1", 0.9), keyword("k1", 9, 0.9), vector("v2", 0.5)]);
    a["semanticHitCount"] = 2.into();
    let b = body(&[keyword("k2", 8, 0.8), vector("v3", 0.6)]);
    let q = |ratio: f64| json!({"q": "x", "hybrid": {"embedder": "e", "semanticRatio": ratio}, "limit": 4});
    let parts = [part(0, &a), part(1, &b)];
    let seen = merged(&q(0.5), &IndexView::default(), &parts);
    assert_eq!(ids(&seen), ["v1", "k1", "k2", "v3"]);
    assert_eq!(seen["semanticHitCount"], 2);
    assert_eq!(seen["hits"][0], json!({"id": "v1"}));
    let seen = merged(&q(0.9), &IndexView::default(), &parts);
    assert_eq!((ids(&seen), &seen["semanticHitCount"]), (vec!["v1", "v3", "v2", "k1"], &json!(3)));
    let seen = merged(&q(0.1), &IndexView::default(), &parts);
    assert_eq!(ids(&seen), ["k1", "k2", "v1", "v3"]);
}

#[test]
fn keywords_suffice_only_if_all_of_the_page_is_good() {
    let keyword = |words: u32, score: f64| {
        let mut h = hit("x", words);
        h["_rankingScore"] = score.into();
        h
    };
    let parts =
        [part(0, &body(&[keyword(9, 1.0), keyword(8, 0.95)])), part(1, &body(&[keyword(7, 0.91), keyword(6, 0.4)]))];
    let suffice = |limit: usize, ratio: f64| {
        let (view, missing) = (IndexView::default(), ShardSet::new());
        let hybrid = json!({"embedder": "e", "semanticRatio": ratio});
        let query = query(&json!({"q": "x", "hybrid": hybrid, "limit": limit}));
        let request = MergeRequest {
            query: &query,
            view: &view,
            parts: &parts,
            keywords_only: false,
            missing: &missing,
            processing_time_ms: 1,
            request_uid: "u",
            metadata: None,
        };
        keywords_suffice(&request).unwrap()
    };
    assert!(suffice(3, 0.5));
    assert!(!suffice(4, 0.5), "the last is not good enough");
    assert!(!suffice(3, 0.6), "the keywords' share is too small");
    assert!(suffice(3, 0.4));
    assert!(!suffice(5, 0.1), "the page is not filled");
}

#[test]
fn missing_shards_are_named_in_the_body() {
    let (query, view, missing) = (query(&json!({"q": "x"})), IndexView::default(), shards(&[3, 7]));
    for parts in [vec![], vec![part(0, &body(&[hit("a", 1)]))]] {
        let request = MergeRequest {
            query: &query,
            view: &view,
            parts: &parts,
            keywords_only: false,
            missing: &missing,
            processing_time_ms: 1,
            request_uid: "u",
            metadata: None,
        };
        let seen: Value = serde_json::from_slice(&merge(&request).unwrap()).unwrap();
        assert_eq!(seen["remoteErrors"]["shards 3,7"]["code"], "miroir_shards_unavailable");
        assert_eq!(seen["estimatedTotalHits"], parts.len());
    }
}

#[test]
fn the_only_part_is_moved_as_it_is_but_for_the_shard() {
    let view = IndexView { uid: "packages".into(), max_values_per_facet: 1, ..IndexView::default() };
    let mut b = body(&[json!({"id": "a", "_miroir_shard": "ꀀ", "_rankingScore": 0.5})]);
    b["facetDistribution"] = json!({"_miroir_shard": {"ꀀ": 1}, "c": {"x": 1, "y": 1}});
    let alone = |b: &Value| [PartAnswer { shards: shards(&[0]), alone: true, body: b.to_string().into() }];
    assert_eq!(
        text(&json!({"showRankingScore": true}), &view, &alone(&b)).unwrap(),
        concat!(
            r#"{"hits":[{"id":"a","_rankingScore":0.5}],"query":"q","processingTimeMs":7,"limit":20,"offset":0,"#,
            r#""estimatedTotalHits":1,"requestUid":"uid","facetDistribution":{"c":{"x":1}}}"#
        )
    );
    let b = body(&[json!({"id": "a", "x": {"y": [1, 2.50]}})]);
    assert_eq!(merged(&json!({}), &view, &alone(&b))["hits"], b["hits"]);
}

#[test]
fn a_part_for_the_page_itself_is_not_merged_with_others() {
    let mut parts = [part(0, &body(&[])), part(1, &body(&[]))];
    parts[1].alone = true;
    assert!(text(&json!({}), &IndexView::default(), &parts).is_err());
}

#[test]
fn what_a_peer_garbles_is_an_error() {
    let good = body(&[hit("a", 1)]).to_string();
    for bad in [
        "",
        "{}",
        "[]",
        r#"{"hits":[]}"#,
        r#"{"hits":{},"estimatedTotalHits":1}"#,
        r#"{"hits":[1],"estimatedTotalHits":1}"#,
        r#"{"hits":[{}],"estimatedTotalHits":1}"#,
        r#"{"hits":[{"_rankingScoreDetails":5}],"estimatedTotalHits":1}"#,
        r#"{"hits":[],"estimatedTotalHits":-1}"#,
        r#"{"hits":[],"estimatedTotalHits":1,"facetDistribution":[]}"#,
        r#"{"hits":[],"estimatedTotalHits":1,"facetDistribution":{},"facetStats":7}"#,
        &good[..good.len() / 2],
    ] {
        let bad = PartAnswer { shards: shards(&[1]), alone: false, body: bad.to_owned().into() };
        let parts = [part(0, &body(&[hit("a", 1)])), bad];
        assert!(text(&json!({}), &IndexView::default(), &parts).is_err(), "{:?}", parts[1].body);
    }
}

/// Details as a node would write them.
fn details(rules: &[Rule]) -> Value {
    let mut map = serde_json::Map::new();
    for (order, rule) in rules.iter().enumerate() {
        let (key, mut value) = match rule {
            Rule::Words { matching, max } => {
                ("words".into(), json!({"matchingWords": matching, "maxMatchingWords": max, "score": 0.1}))
            }
            Rule::Typo { count, max } => ("typo".into(), json!({"typoCount": count, "maxTypoCount": max})),
            Rule::Ratio(_, score) => ("proximity".into(), json!({"score": score})),
            Rule::Exactness { kind, words, .. } => {
                let kind = ["noExactMatch", "matchesStart", "exactMatch"][usize::from(*kind)];
                ("exactness".into(), json!({"matchType": kind, "matchingWords": words, "score": 0.1}))
            }
            Rule::Sort { asc, value } => {
                let value = match value {
                    SortValue::Null => Value::Null,
                    SortValue::Text(t) => t.as_str().into(),
                    SortValue::Number(n) => (*n).into(),
                };
                (format!("f:{}", if *asc { "asc" } else { "desc" }), json!({"value": value}))
            }
            Rule::Geo { asc, distance } => {
                let key = format!("_geoPoint(1, 2):{}", if *asc { "asc" } else { "desc" });
                (key, json!({"value": null, "distance": distance}))
            }
            Rule::Vector(similarity) => ("vectorSort".into(), json!({"similarity": similarity})),
            Rule::Pin(position) => ("pin".into(), json!({"position": position})),
            Rule::Skipped => ("skipped".into(), json!({})),
            Rule::Attribute { rank, score } => {
                ("attribute".into(), json!({"attributeRankingOrderScore": rank, "score": score}))
            }
        };
        value["order"] = order.into();
        map.insert(key, value);
    }
    map.into()
}

proptest! {
    /// Any split of a sorted list, merged, is the sorted list; and pages of it are its pieces.
    #[test]
    fn a_split_list_is_merged_to_its_whole(
        hits in prop::collection::vec((any_rules(), 0..4_usize), 0..30), page in 1..7_usize,
    ) {
        let documents: Vec<Value> = hits.iter().enumerate().map(|(i, (rules, _))| {
            json!({"id": i.to_string(), "_rankingScoreDetails": details(rules)})
        }).collect();
        let rules_of = |i: usize| order::parse_details(documents[i]["_rankingScoreDetails"].to_string().as_bytes()).unwrap();
        let mut lists = vec![Vec::new(); 4];
        for (i, (_, list)) in hits.iter().enumerate() { lists[*list].push(i); }
        for list in &mut lists { list.sort_by(|a, b| order::compare(&rules_of(*b), &rules_of(*a))); }
        // The whole: by rules, then by rank in the part, then by part.
        let mut whole: Vec<(usize, usize, usize)> = lists.iter().enumerate()
            .flat_map(|(part, list)| list.iter().enumerate().map(move |(rank, i)| (rank, part, *i))).collect();
        whole.sort_by(|a, b| order::compare(&rules_of(b.2), &rules_of(a.2)).then((a.0, a.1).cmp(&(b.0, b.1))));
        let whole: Vec<String> = whole.into_iter().map(|(_, _, i)| i.to_string()).collect();
        let parts: Vec<PartAnswer> = (0..4_u16).map(|p| {
            part(p, &body(&lists[usize::from(p)].iter().map(|i| documents[*i].clone()).collect::<Vec<_>>()))
        }).rev().collect();
        let seen = merged(&json!({"limit": 100}), &IndexView::default(), &parts);
        prop_assert_eq!(ids(&seen), whole.clone());
        let mut paged = Vec::new();
        for at in (0..whole.len()).step_by(page) {
            let q = json!({"offset": at, "limit": page});
            let seen = merged(&q, &IndexView::default(), &parts);
            paged.extend(ids(&seen).into_iter().map(str::to_owned));
        }
        prop_assert_eq!(paged, whole);
    }

    /// Bytes out of their place never panic.
    #[test]
    fn damaged_bodies_never_panic(at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
        let mut b = body(&[hit("a", 1), hit("b", 2)]);
        b["facetDistribution"] = json!({"c": {"x": 1}});
        b["facetStats"] = json!({"c": {"min": 1.0, "max": 2.0}});
        let mut bytes = b.to_string().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        for len in [bytes.len(), cut.index(bytes.len())] {
            for alone in [true, false] {
                let damaged = PartAnswer { shards: shards(&[0]), alone, body: bytes[..len].to_vec().into() };
                let query = query(&json!({"distinct": "id"}));
                let (view, missing) = (IndexView::default(), ShardSet::new());
                let request = MergeRequest { query: &query, view: &view, parts: &[damaged], keywords_only: false, missing: &missing,
                    processing_time_ms: 1, request_uid: "u", metadata: None };
                let _ = merge(&request);
            }
        }
    }
}
