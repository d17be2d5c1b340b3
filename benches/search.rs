//! Planning, comparing and merging searches.

use std::collections::BTreeMap;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use miroir::proto::placement;
use miroir::proto::search::order::{compare, parse_details};
use miroir::proto::search::{MemberState, MergeRequest, PartAnswer, PlanInput, SearchQuery, merge, plan};
use miroir::proto::settings::IndexView;
use miroir::types::{GroupId, IndexRecord, IndexUid, MemberId, PhysicalIndex, ShardId, ShardSet};
use serde_json::{Value, json};

fn planning(c: &mut Criterion) {
    for members in [3_u64, 30] {
        let groups: BTreeMap<MemberId, GroupId> = (0..members)
            .map(|i| {
                (MemberId::new(format!("m{i}")).unwrap(), GroupId::new(format!("g{}", i % (members / 3))).unwrap())
            })
            .collect();
        let state = |i: u64| MemberState { serving: true, latency_us: 1_000 + i * 10, ..MemberState::default() };
        let states = groups.keys().zip(0..).map(|(m, i)| (m.clone(), state(i))).collect();
        let index = IndexRecord {
            uid: IndexUid::new("packages").unwrap(),
            physical: PhysicalIndex::new("packages__m00000001").unwrap(),
            primary_key: Some("id".into()),
            settings_version: 1,
            client_settings: BTreeMap::new(),
            missed_settings: Default::default(),
            caught_up: Default::default(),
            shards: placement::place(64, &groups, 1),
            created_at: String::new(),
            updated_at: String::new(),
            deleted: false,
        };
        let own = MemberId::new("m0").unwrap();
        let (wanted, nobody) = (ShardSet::all(64), BTreeMap::new());
        let mut query_hash = 0;
        c.bench_function(&format!("plan 64 shards, {members} members"), |b| {
            b.iter(|| {
                query_hash += 1;
                let input =
                    PlanInput { index: &index, groups: &groups, states: &states, own: &own, query_hash, one: false };
                black_box(plan(&input, &wanted, &nobody))
            });
        });
    }
}

/// A hit of about 2 KB whose standing falls with its number.
fn hit(number: usize) -> Value {
    let words = ["search", "engine", "for", "many", "nodes", "and", "no", "proxy"];
    let long: String = (0..220).map(|i| format!("{} ", words[(i * 7 + number) % words.len()])).collect();
    let typos = number / 8;
    json!({
        "id": format!("package-{number}"), "name": "a name", "summary": "what it is, in a line",
        "description": long, "section": "libs", "size": 123_456 + number, "tags": ["role::program", "use::searching"],
        "depends": ["libc6", "libgcc-s1", "zlib1g"], "_miroir_shard": "ꀀ",
        "_rankingScoreDetails": {
            "words": {"order": 0, "matchingWords": 3, "maxMatchingWords": 3, "score": 1.0},
            "typo": {"order": 1, "typoCount": typos, "maxTypoCount": 40, "score": 0.5},
            "proximity": {"order": 2, "score": 0.929},
            "attributeRank": {"order": 3, "score": 1.0},
            "size:asc": {"order": 4, "value": 123_456.0},
            "wordPosition": {"order": 5, "score": 0.904_761_904_761_904_7},
            "exactness": {"order": 6, "matchType": "noExactMatch", "matchingWords": 2, "maxMatchingWords": 3,
                "score": 0.222_222_222_222_222_2}
        }
    })
}

fn body(part: usize, hits: usize) -> Value {
    let facet =
        |n: usize| (0..n).map(|i| (format!("Value {}", i * 3 + part), json!(i + 1))).collect::<serde_json::Map<_, _>>();
    json!({
        "hits": (0..hits).map(|i| hit(i * 3 + part)).collect::<Vec<_>>(),
        "query": "search engine", "processingTimeMs": 2, "limit": hits, "offset": 0, "estimatedTotalHits": 5_000,
        "facetDistribution": {"section": facet(40), "tags": facet(100)}, "facetStats": {},
        "requestUid": "01a1fcf3-0716-7dd0-a59d-f4e3ce83551e"
    })
}

fn comparing(c: &mut Criterion) {
    let (a, b) = (hit(3)["_rankingScoreDetails"].to_string(), hit(4)["_rankingScoreDetails"].to_string());
    c.bench_function("parse details", |bench| bench.iter(|| parse_details(black_box(a.as_bytes())).unwrap()));
    let (a, b) = (parse_details(a.as_bytes()).unwrap(), parse_details(b.as_bytes()).unwrap());
    c.bench_function("compare details", |bench| bench.iter(|| compare(black_box(&a), black_box(&b))));
}

fn merging(c: &mut Criterion) {
    let view = IndexView::default();
    let missing = ShardSet::new();
    for hits in [20, 200] {
        let query =
            SearchQuery::from_json(json!({"q": "search engine", "limit": hits}).to_string().as_bytes()).unwrap();
        let parts: Vec<PartAnswer> = (0..3_u16)
            .map(|p| PartAnswer {
                shards: [ShardId(p)].into_iter().collect(),
                alone: false,
                body: body(p.into(), hits).to_string().into(),
            })
            .collect();
        let alone = [PartAnswer { alone: true, ..parts[0].clone() }];
        for (name, parts) in [("3 parts", &parts[..]), ("1 part", &alone[..])] {
            let request = MergeRequest {
                query: &query,
                view: &view,
                parts,
                keywords_only: false,
                missing: &missing,
                processing_time_ms: 2,
                request_uid: "01a1fcf3-0716-7dd0-a59d-f4e3ce83551e",
                metadata: None,
            };
            c.bench_function(&format!("merge {name} of {hits} hits"), |b| {
                b.iter(|| merge(black_box(&request)).unwrap())
            });
        }
    }
}

criterion_group!(benches, planning, comparing, merging);
criterion_main!(benches);
