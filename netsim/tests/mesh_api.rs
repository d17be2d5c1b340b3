//! The same requests to one node and to a mesh of three: the same status and the same JSON, errors included.
//!
//! The stand-in's golden cases (`tests/golden/*.json`) are data for this, too; what only a mesh can get wrong stands in
//! `tests/golden_mesh/`. No answer may show the mesh's own field or names: the client looks at every byte.

mod common;

use std::io::Read as _;
use std::path::Path;

use common::{Answer, Client, Engine, Mesh, NODE_KEY, Plan, Single, sample, say};
use serde_json::{Value, json};

/// Different in every run, or a matter of one node's disk.
const RUN: [&str; 14] = [
    "processingTimeMs",
    "requestUid",
    "enqueuedAt",
    "startedAt",
    "finishedAt",
    "createdAt",
    "updatedAt",
    "duration",
    "taskUid",
    "batchUid",
    "databaseSize",
    "usedDatabaseSize",
    "rawDocumentDbSize",
    "avgDocumentSize",
];

/// What a rule's score is divided by depends on the documents that one node holds.
const DENOMINATORS: [&str; 3] = ["maxTypoCount", "score", "_rankingScore"];

/// Requests whose answer depends on what one node holds: documented, so not compared.
const CORPUS: [(&str, &str); 2] = [
    // Each node drops the word that is most frequent in its own documents.
    ("matchingStrategy", "frequency"),
    // Of documents of equal rank that share one of several values, the first comes first.
    ("distinct", "tags"),
];

fn cases(folder: &str) -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|end| end == "json"));
    files.sort();
    let mut cases = Vec::new();
    for file in files {
        let list: Vec<Value> = serde_json::from_slice(&std::fs::read(&file).unwrap())
            .unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let stem = file.file_stem().unwrap().to_string_lossy().into_owned();
        cases.extend(list.into_iter().map(|case| (format!("{stem}: {}", case["name"].as_str().unwrap()), case)));
    }
    cases
}

fn setup(client: &Client, index: &str, setup: &Value) {
    if setup.is_null() {
        return;
    }
    client.done("POST", "/indexes", &json!({"uid": index, "primaryKey": "id"}));
    if let Some(settings) = setup.get("settings") {
        client.done("PATCH", &format!("/indexes/{index}/settings"), settings);
    }
    let documents = match (setup.get("documents"), setup.get("sample").and_then(Value::as_u64)) {
        (Some(documents), _) => documents.clone(),
        (None, Some(count)) => sample().into_iter().take(usize::try_from(count).unwrap()).collect(),
        (None, None) => json!([]),
    };
    if documents != json!([]) {
        client.done("POST", &format!("/indexes/{index}/documents"), &documents);
    }
}

/// Carries out one request of a case.
fn run(client: &Client, index: &str, request: &Value) -> Answer {
    let path = request["path"].as_str().unwrap().replace("{i}", index);
    let method = request["method"].as_str().unwrap_or("GET");
    let mut headers: Vec<(&str, &str)> = Vec::new();
    let mut client = client.clone();
    for (name, value) in request["headers"].as_object().into_iter().flatten() {
        let value = value.as_str().unwrap_or("");
        if name.eq_ignore_ascii_case("authorization") {
            client.key = None;
        }
        if !value.is_empty() {
            headers.push((name, value));
        }
    }
    let mut body = match (request.get("body"), request["text"].as_str()) {
        (Some(body), _) => {
            headers.push(("content-type", "application/json"));
            body.to_string().replace("{i}", index).into_bytes()
        }
        (None, text) => text.unwrap_or("").as_bytes().to_vec(),
    };
    if request.get("gzip").is_some() {
        headers.push(("content-encoding", "gzip"));
        let mut packed = Vec::new();
        flate2::read::GzEncoder::new(&*body, flate2::Compression::fast()).read_to_end(&mut packed).unwrap();
        body = packed;
    }
    client.call(method, &path, &headers, &body)
}

/// Where two answers differ, but for what every run changes.
fn differences(path: &str, node: &Value, mesh: &Value, out: &mut Vec<String>) {
    let name = path.rsplit('/').next().unwrap_or("");
    if RUN.contains(&name) || DENOMINATORS.contains(&name) || (name == "uid" && node.is_u64() && mesh.is_u64()) {
        return;
    }
    match (node, mesh) {
        (Value::Object(a), Value::Object(b)) => {
            if !a.keys().eq(b.keys()) {
                let list = |map: &serde_json::Map<String, Value>| map.keys().cloned().collect::<Vec<_>>().join(" ");
                out.push(format!("{path}: keys on the node [{}], on the mesh [{}]", list(a), list(b)));
            }
            for (name, a) in a {
                if let Some(b) = b.get(name) {
                    differences(&format!("{path}/{name}"), a, b, out);
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (at, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}/{at}"), a, b, out);
            }
        }
        (Value::Number(a), Value::Number(b))
            if a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| (a - b).abs() < 1e-6) => {}
        (a, b) if a == b => {}
        (a, b) => out.push(format!("{path}: on the node {a}, on the mesh {b}")),
    }
}

/// Facet values of equal meaning are shown as some document of one node writes them.
fn settle_casing(answer: &mut Value) {
    for (_, values) in answer.pointer_mut("/facetDistribution").and_then(Value::as_object_mut).into_iter().flatten() {
        let map = values.as_object().cloned().unwrap_or_default();
        *values = map.into_iter().map(|(value, count)| (value.to_lowercase(), count)).collect();
    }
}

/// Takes the hits out of an answer.
fn take_hits(answer: &mut Value) -> Option<Vec<Value>> {
    let list = if answer.get("hits").is_some() { "hits" } else { "results" };
    match answer.get_mut(list).map(Value::take) {
        Some(Value::Array(hits)) => Some(hits),
        Some(other) => {
            answer[list] = other;
            None
        }
        None => None,
    }
}

/// What decides a hit's place, without the denominators.
fn places(hits: &[Value]) -> Vec<String> {
    let counts = ["matchingWords", "typoCount", "matchType", "value", "distance"];
    let rule = |(name, rule): (&String, &Value)| {
        format!("{name}{:?}", counts.iter().filter_map(|c| rule.get(*c)).collect::<Vec<_>>())
    };
    let place = |hit: &Value| hit["_rankingScoreDetails"].as_object().into_iter().flatten().map(rule).collect();
    hits.iter().map(place).collect()
}

/// The same hits, and in the same order up to ties, which one node lists as they came.
fn compare_hits(node: &[Value], mesh: &[Value], ranked: bool, out: &mut Vec<String>) {
    if node.len() != mesh.len() {
        out.push(format!("{} hits on the node, {} on the mesh", node.len(), mesh.len()));
    }
    if ranked && places(node) != places(mesh) {
        out.push(format!("places on the node {:?}, on the mesh {:?}", places(node), places(mesh)));
    }
    for a in node.iter().filter(|a| a.get("id").is_some()) {
        if let Some(b) = mesh.iter().find(|b| b["id"] == a["id"]) {
            differences(&format!("hit {}", a["id"]), a, b, out);
        }
    }
}

fn compare_all(folder: &str) {
    let engine = Engine::found();
    let single = Single::start(&engine);
    let mesh = Mesh::start(Plan { master_key: Some(NODE_KEY), ..Plan::of(3, 1) });
    let only = std::env::var("GOLDEN").unwrap_or_default();
    let (mut count, mut unsupported, mut failures) = (0, 0, Vec::new());
    for (number, (name, case)) in cases(folder).into_iter().enumerate().filter(|(_, (name, _))| name.contains(&only)) {
        let index = format!("case{number}");
        let clients: Vec<Client> = (0..3).map(|i| mesh.client(i)).collect();
        setup(&single.client, &index, &case["setup"]);
        setup(&clients[0], &index, &case["setup"]);
        for (at, request) in case["requests"].as_array().unwrap().iter().enumerate() {
            let client = &clients[at % 3];
            let (node, mesh) = (run(&single.client, &index, request), run(client, &index, request));
            let title =
                format!("{name}: {} {} {}{}", request["method"], request["path"], request["body"], request["text"]);
            let title: String = title.chars().take(300).collect();
            if mesh.status == 501 {
                mesh.expect_error(501, "miroir_not_supported");
                unsupported += 1;
                if request["method"].as_str().is_some_and(|m| m != "GET") {
                    // What follows builds on it.
                    break;
                }
                continue;
            }
            if CORPUS.iter().any(|(name, value)| request["body"][name] == *value) {
                continue;
            }
            count += 1;
            if node.status != mesh.status {
                let (n, m) = (node.text(), mesh.text());
                failures.push(format!("{title}\n    node {} {n}\n    mesh {} {m}", node.status, mesh.status));
                continue;
            }
            let mut found = Vec::new();
            let (mut a, mut b) = (node.json(), mesh.json());
            // A real node shows its own part of an exchange when it sorts documents.
            for hit in a.pointer_mut("/results").and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(map) = hit.as_object_mut() {
                    map.shift_remove("_federation");
                }
            }
            settle_casing(&mut a);
            settle_casing(&mut b);
            if let (Some(a), Some(b)) = (take_hits(&mut a), take_hits(&mut b)) {
                compare_hits(&a, &b, false, &mut found);
                if request["body"].is_object() && a.first().is_some_and(|h| h.get("_rankingScoreDetails").is_none()) {
                    let mut request = request.clone();
                    request["body"]["showRankingScoreDetails"] = json!(true);
                    let hits = |client| take_hits(&mut run(client, &index, &request).json()).unwrap_or_default();
                    compare_hits(&hits(&single.client), &hits(client), true, &mut found);
                } else {
                    compare_hits(&a, &b, true, &mut found);
                }
            }
            differences("", &a, &b, &mut found);
            if node.status == 202 {
                differences(
                    "/task",
                    &single.client.finished(&node),
                    &clients[(at + 1) % 3].finished(&mesh),
                    &mut found,
                );
            }
            failures.extend(found.into_iter().map(|why| format!("{title}\n    {why}")));
        }
    }
    say(&format!("{folder}: {count} requests compared, {unsupported} not supported by the mesh"));
    assert!(failures.is_empty(), "{} differences\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn the_golden_cases_of_a_node_are_answered_by_a_mesh() {
    compare_all("golden");
}
