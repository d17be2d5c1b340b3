//! One node with all documents against a mesh of three: the same order up to ties, totals, facets, pages, errors.

mod common;

use std::collections::BTreeSet;
use std::time::Instant;

use common::{Client, Dice, Engine, Mesh, Plan, Single, documents, load_sample, package_settings, sample, say};
use serde_json::{Value, json};

/// Of all searches, so many at least have the node's order (what the mesh promises).
const SAME_ORDER_PERCENT: f64 = 98.5;
/// Of all searches on real nodes, so many at most have another total: each node derives typos from its own dictionary.
const OTHER_TOTAL_PERCENT: f64 = 1.0;
/// Above so many hits a truncated list of numeric facet values is not exact (documented).
const EXACT_NUMBERS: u64 = 3_000;

/// What decides a hit's place, rule by rule.
fn places(hit: &Value) -> Vec<String> {
    let details = hit["_rankingScoreDetails"].as_object().expect("details were asked for");
    let mut rules: Vec<(&String, &Value)> = details.iter().collect();
    rules.sort_by_key(|(_, rule)| rule["order"].as_u64().unwrap_or(0));
    let score = |rule: &Value| format!("{:.6}", rule["score"].as_f64().or(rule["similarity"].as_f64()).unwrap_or(-1.0));
    let place = |(name, rule): (&String, &Value)| match name.as_str() {
        "words" => rule["matchingWords"].to_string(),
        "typo" => rule["typoCount"].to_string(),
        "exactness" => format!("{} {}", rule["matchType"], rule["matchingWords"]),
        _ if rule.get("value").is_some() => rule["value"].to_string(),
        _ => score(rule),
    };
    rules.into_iter().map(place).collect()
}

fn total(answer: &Value) -> u64 {
    answer["estimatedTotalHits"].as_u64().or(answer["totalHits"].as_u64()).expect("an answer has a total")
}

fn keys(answer: &Value) -> Vec<String> {
    answer.as_object().expect("an object").keys().cloned().collect()
}

/// What two answers have in common.
#[derive(Debug)]
struct Agreement {
    order: bool,
    total: bool,
    facets: bool,
    keys: bool,
}

fn compare(node: &Value, mesh: &Value) -> Agreement {
    let all = |answer: &Value| -> Vec<_> { answer["hits"].as_array().unwrap().iter().map(places).collect() };
    let facets = |answer: &Value| {
        let mut distribution = answer["facetDistribution"].clone();
        if total(node) > EXACT_NUMBERS
            && let Some(map) = distribution.as_object_mut()
        {
            map.shift_remove("installed_size");
        }
        // As text: the order of the values counts.
        format!("{distribution} {}", answer["facetStats"])
    };
    Agreement {
        order: all(node) == all(mesh),
        total: total(node) == total(mesh),
        facets: facets(node) == facets(mesh),
        keys: keys(node) == keys(mesh),
    }
}

/// Searches made of the documents' own words.
struct Searches {
    dice: Dice,
    words: Vec<String>,
    sections: Vec<String>,
}

impl Searches {
    fn of(documents: &[Value]) -> Self {
        let mut dice = Dice::new(7);
        let mut words = Vec::new();
        for _ in 0..400 {
            let document = dice.of(documents);
            let text = format!("{} {}", document["summary"], document["name"]).to_lowercase();
            let clean = |w: &str| w.trim_matches(|c: char| !c.is_alphanumeric()).to_owned();
            words.extend(text.split_whitespace().map(clean).filter(|w| w.chars().count() > 2));
        }
        let sections: BTreeSet<&str> = documents.iter().filter_map(|d| d["section"].as_str()).collect();
        Self { dice, words, sections: sections.into_iter().map(str::to_owned).collect() }
    }

    /// One to three words, sometimes with a typo, sometimes cut.
    fn query(&mut self) -> String {
        let count = *self.dice.of(&[1, 1, 2, 2, 3]);
        let mut letters: Vec<char> =
            (0..count).map(|_| self.dice.of(&self.words).clone()).collect::<Vec<_>>().join(" ").chars().collect();
        match self.dice.below(10) {
            0 => letters.truncate(letters.len().saturating_sub(2).max(3)),
            1 if letters.len() > 6 => {
                letters.remove(1 + self.dice.below(letters.len() - 2));
            }
            _ => {}
        }
        letters.into_iter().collect()
    }

    /// One round of everything that searches can be.
    fn round(&mut self) -> Vec<Value> {
        let sort = *self.dice.of(&["size:asc", "size:desc", "name:asc", "name:desc", "installed_size:desc"]);
        let section = self.dice.of(&self.sections).clone();
        let filters = [
            json!(format!("section = \"{section}\"")),
            json!("installed_size > 1000"),
            json!("priority = optional AND size < 50000"),
            json!([["section = python", "section = perl"], "size > 100"]),
            json!("tags EXISTS AND NOT section = libs"),
        ];
        let filter = self.dice.of(&filters).clone();
        let empty_or_not = match self.dice.below(2) {
            0 => String::new(),
            _ => self.query(),
        };
        let (page, size) = (1 + self.dice.below(3), *self.dice.of(&[5, 10]));
        let number = *self.dice.of(&["17", "3", "42", "2.0", "64", "6", "1"]);
        vec![
            json!({"q": self.query()}),
            json!({"q": self.query(), "sort": [sort]}),
            json!({"q": "", "sort": [sort], "offset": self.dice.below(60), "limit": 15}),
            json!({"q": self.query(), "filter": filter, "facets": ["section", "priority"]}),
            json!({"q": self.query(), "filter": filter, "sort": [sort], "limit": 40}),
            json!({"q": self.query(), "matchingStrategy": "all", "facets": ["section"]}),
            // Of several words each node drops the one that is most frequent in its own documents (documented).
            json!({"q": self.dice.of(&self.words).split('-').next(), "matchingStrategy": "frequency"}),
            json!({"q": empty_or_not, "page": page, "hitsPerPage": size, "facets": ["section", "installed_size", "tags"]}),
            json!({"q": self.query(), "offset": self.dice.below(30), "limit": 10, "showRankingScore": true}),
            json!({"q": number}),
            json!({"q": "zzqqxxyy nothing", "matchingStrategy": "all", "facets": ["section", "size"]}),
            json!({"q": format!("\"{}\"", self.query()), "attributesToRetrieve": ["name"]}),
        ]
    }
}

/// Compares all searches and asserts how many agree.
fn assert_like_one_node(engine: &Engine, node: &Client, mesh: &[Client], searches: &[Value]) {
    let began = Instant::now();
    let (mut order, mut totals, mut facets) = (0, 0, 0);
    let mut other = Vec::new();
    for (i, search) in searches.iter().enumerate() {
        let mut search = search.clone();
        search["showRankingScoreDetails"] = json!(true);
        let expected = node.search("packages", &search).expect(200);
        let answer = mesh[i % mesh.len()].search("packages", &search);
        assert_eq!(answer.header("x-miroir-degraded"), None, "{search}");
        let found = answer.expect(200);
        let agreement = compare(&expected, &found);
        assert!(agreement.keys, "{search}: {:?} instead of {:?}", keys(&found), keys(&expected));
        order += usize::from(agreement.order);
        totals += usize::from(agreement.total);
        facets += usize::from(agreement.facets);
        if !agreement.total || !agreement.facets || !agreement.order {
            let hits = |answer: &Value| answer["hits"].as_array().unwrap().clone();
            let differ = |(a, b): &(Value, Value)| places(a) != places(b);
            let first = hits(&expected).into_iter().zip(hits(&found)).find(differ);
            let first = first.map(|(a, b)| format!("{} {:?}, {} {:?}", a["id"], places(&a), b["id"], places(&b)));
            let totals = (total(&expected), total(&found));
            other.push(format!("{search}: {agreement:?}, totals {totals:?}, node and mesh: {first:?}"));
        }
    }
    let count = searches.len();
    say(&format!(
        "{count} searches in {:.1} s: order {order}, totals {totals}, facets {facets}\n{}",
        began.elapsed().as_secs_f64(),
        other.join("\n")
    ));
    let percent = |part: usize| 100.0 * part as f64 / count as f64;
    assert!(percent(order) >= SAME_ORDER_PERCENT, "order: {order} of {count}");
    let allowed = if engine.is_real() { OTHER_TOTAL_PERCENT } else { 0.0 };
    assert!(percent(count - totals) <= allowed, "totals: {totals} of {count}");
    assert!(percent(count - facets) <= allowed, "facets: {facets} of {count}");
}

/// Ten pages of 20 are one list of 200, by offset and by page.
fn assert_pages_are_one_list(clients: &[Client]) {
    for search in [
        json!({"q": "library"}),
        json!({"q": ""}),
        json!({"q": "python", "sort": ["size:asc"]}),
        json!({"q": "the", "filter": "installed_size > 50"}),
    ] {
        let ids = |client: &Client, more: Value| -> Vec<String> {
            let mut search = search.clone();
            search.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let found = client.search("packages", &search).expect(200);
            found["hits"].as_array().unwrap().iter().map(|h| h["id"].to_string()).collect()
        };
        let client = |page: usize| &clients[page % clients.len()];
        let whole = ids(client(0), json!({"limit": 200}));
        let offsets: Vec<String> =
            (0..10).flat_map(|p| ids(client(p), json!({"offset": 20 * p, "limit": 20}))).collect();
        let pages: Vec<String> = (1..=10).flat_map(|p| ids(client(p), json!({"page": p, "hitsPerPage": 20}))).collect();
        assert!(whole.len() > 100, "{search}: too few hits to show anything: {}", whole.len());
        assert_eq!(whole.iter().collect::<BTreeSet<_>>().len(), whole.len(), "{search}: a document twice");
        assert_eq!(offsets, whole, "{search}");
        assert_eq!(pages, whole, "{search}");
    }
}

#[test]
fn a_mesh_gives_the_order_totals_facets_and_pages_of_one_node() {
    let engine = Engine::found();
    let single = Single::start(&engine);
    let mesh = Mesh::start(Plan { shards: 64, ..Plan::of(3, 1) });
    let clients: Vec<Client> = (0..3).map(|i| mesh.client(i)).collect();
    load_sample(&single.client, &package_settings());
    load_sample(&clients[0], &package_settings());
    let mut searches = Searches::of(&sample());
    let all: Vec<Value> = (0..40).flat_map(|_| searches.round()).collect();
    assert_like_one_node(&engine, &single.client, &clients, &all);
    assert_pages_are_one_list(&clients);

    // The same documents with settings that nobody has touched: every field is searched, the hidden one must not count.
    for client in [&single.client, &clients[1]] {
        client.done("DELETE", "/indexes/packages", &Value::Null);
        load_sample(client, &Value::Null);
    }
    let numbers = ["17", "1", "42", "64", "3.2", "2023", "8", "16", "12.04"].map(|q| json!({"q": q, "limit": 60}));
    let words = (0..19).flat_map(|_| (0..10).map(|_| json!({"q": searches.query()})).collect::<Vec<_>>());
    let all: Vec<Value> = numbers.into_iter().chain(words).collect();
    assert_like_one_node(&engine, &single.client, &clients, &all);
}

#[test]
fn the_whole_data_set_loaded_through_one_member_is_found_through_another() {
    let engine = Engine::found();
    let data = std::env::var_os("MIROIR_DATA").map(std::path::PathBuf::from);
    let (Some(data), true) = (data, engine.is_real()) else {
        say("whole data set: not run: needs MIROIR_DATA and a real Meilisearch");
        return;
    };
    let gz = std::fs::read(data.join("debian-packages.ndjson.gz")).unwrap();
    let all = documents(&gz);
    assert_eq!(all.len(), 63_440);
    let single = Single::start(&engine);
    let mesh = Mesh::start(Plan { shards: 64, ..Plan::of(3, 1) });
    let clients: Vec<Client> = (0..3).map(|i| mesh.client(i)).collect();
    for client in [&single.client, &clients[0]] {
        client.done("POST", "/indexes", &json!({"uid": "packages", "primaryKey": "id"}));
        client.done("PATCH", "/indexes/packages/settings", &package_settings());
        let headers = [("content-type", "application/x-ndjson"), ("content-encoding", "gzip")];
        let began = Instant::now();
        let task = client.finished(&client.call("POST", "/indexes/packages/documents", &headers, &gz));
        assert_eq!(
            (&task["status"], &task["details"]["indexedDocuments"]),
            (&json!("succeeded"), &json!(63_440)),
            "{task}"
        );
        say(&format!("63,440 documents loaded in {:.1} s", began.elapsed().as_secs_f64()));
    }
    for client in &clients {
        assert_eq!(client.get("/indexes/packages/stats").expect(200)["numberOfDocuments"], 63_440);
    }
    let mut searches = Searches::of(&all);
    let list: Vec<Value> = (0..40).flat_map(|_| searches.round()).collect();
    assert_like_one_node(&engine, &single.client, &clients[1..], &list);
    assert_pages_are_one_list(&clients);
    let mut dice = Dice::new(3);
    for _ in 0..30 {
        let wanted = dice.of(&all);
        let found =
            clients[1].get(&format!("/indexes/packages/documents/{}", wanted["id"].as_str().unwrap())).expect(200);
        assert_eq!(&found, wanted);
    }
}
