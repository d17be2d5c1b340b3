//! The same requests to one node and to a mesh of three: the same status and the same JSON, errors included.
//!
//! The stand-in's golden cases (`tests/golden/*.json`) are data for this, too; what only a mesh can get wrong stands in
//! `tests/golden_mesh/`. No answer may show the mesh's own field or names: the client looks at every byte.

mod common;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use common::{Answer, Client, Dice, Engine, Mesh, NODE_KEY, Plan, RUN, Single, sample, say};
use serde_json::{Value, json};

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

/// Makes what a case begins with; gives the tasks.
fn setup(client: &Client, index: &str, setup: &Value) -> Vec<u64> {
    if setup.is_null() {
        return Vec::new();
    }
    let mut tasks = vec![client.done("POST", "/indexes", &json!({"uid": index, "primaryKey": "id"}))];
    if let Some(settings) = setup.get("settings") {
        tasks.push(client.done("PATCH", &format!("/indexes/{index}/settings"), settings));
    }
    let documents = match (setup.get("documents"), setup.get("sample").and_then(Value::as_u64)) {
        (Some(documents), _) => documents.clone(),
        (None, Some(count)) => sample().into_iter().take(usize::try_from(count).unwrap()).collect(),
        (None, None) => json!([]),
    };
    if documents != json!([]) {
        tasks.push(client.done("POST", &format!("/indexes/{index}/documents"), &documents));
    }
    tasks.iter().map(|task| task["uid"].as_u64().unwrap()).collect()
}

/// The tasks of a mesh by the number that the same task has on the node: a mesh numbers them otherwise.
#[derive(Default)]
struct Tasks(BTreeMap<u64, u64>);

impl Tasks {
    fn add(&mut self, node: impl IntoIterator<Item = u64>, mesh: impl IntoIterator<Item = u64>) {
        self.0.extend(node.into_iter().zip(mesh));
    }

    /// Puts the mesh's numbers in place of the node's where a list says how it goes on.
    fn put_in(&self, list: &mut Value) {
        for name in ["from", "next"] {
            if let Some(number) = list.get(name).and_then(Value::as_u64).and_then(|uid| self.0.get(&uid)) {
                list[name] = json!(number);
            }
        }
    }
}

/// Carries out one request of a case; `first` is the first task that there was.
fn run(client: &Client, index: &str, first: u64, request: &Value) -> Answer {
    let path = request["path"].as_str().unwrap().replace("{i}", index).replace("{task0}", &first.to_string());
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
    let mut tasks = Tasks::default();
    for (number, (name, case)) in cases(folder).into_iter().enumerate().filter(|(_, (name, _))| name.contains(&only)) {
        let index = format!("case{number}");
        let clients: Vec<Client> = (0..3).map(|i| mesh.client(i)).collect();
        // What only an operator turns on, at each node.
        let nodes: Vec<Client> = (0..3).map(|i| mesh.node_client(i)).collect();
        let turn = |features: &Value| {
            for node in nodes.iter().chain([&single.client]).filter(|_| features.is_object()) {
                node.json("PATCH", "/experimental-features", features).expect(200);
            }
        };
        turn(&case["features"]);
        let before = setup(&single.client, &index, &case["setup"]);
        tasks.add(before, setup(&clients[0], &index, &case["setup"]));
        for (at, request) in case["requests"].as_array().unwrap().iter().enumerate() {
            let client = &clients[at % 3];
            let first = tasks.0.first_key_value().map_or((0, 0), |(node, mesh)| (*node, *mesh));
            let (node, mesh) = (run(&single.client, &index, first.0, request), run(client, &index, first.1, request));
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
            if !engine.is_real() && request["real_only"] == true {
                // The stand-in is known to answer in another way.
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
            let uid = |answer: &Value| answer["taskUid"].as_u64();
            tasks.add(uid(&a), uid(&b));
            if request["path"].as_str().is_some_and(|path| path.starts_with("/tasks") || path.starts_with("/batches")) {
                tasks.put_in(&mut a);
            }
            settle_casing(&mut a);
            settle_casing(&mut b);
            if let (Some(a), Some(b)) = (take_hits(&mut a), take_hits(&mut b)) {
                compare_hits(&a, &b, false, &mut found);
                if request["body"].is_object() && a.first().is_some_and(|h| h.get("_rankingScoreDetails").is_none()) {
                    let mut request = request.clone();
                    request["body"]["showRankingScoreDetails"] = json!(true);
                    let hits =
                        |client, first| take_hits(&mut run(client, &index, first, &request).json()).unwrap_or_default();
                    compare_hits(&hits(&single.client, first.0), &hits(client, first.1), true, &mut found);
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
            // Paths that a case knows to be different: of the mesh, as the README says, and of the stand-in.
            let paths = |key: &str| -> Vec<String> {
                request[key].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
            };
            let mut differs = paths("mesh_differs");
            if folder != "golden" || !engine.is_real() {
                differs.extend(paths("differs"));
            }
            let known = |why: &String| {
                differs.iter().any(|path| why.trim_start_matches('/').starts_with(path.trim_start_matches('/')))
            };
            found.retain(|why| !known(why));
            failures.extend(found.into_iter().map(|why| format!("{title}\n    {why}")));
        }
        let off = case["features"].as_object().into_iter().flatten().map(|(name, _)| (name.clone(), json!(false)));
        turn(&off.collect::<serde_json::Map<_, _>>().into());
    }
    say(&format!("{folder}: {count} requests compared, {unsupported} not supported by the mesh"));
    assert!(failures.is_empty(), "{} differences\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn the_golden_cases_of_a_node_are_answered_by_a_mesh() {
    compare_all("golden");
}

#[test]
fn what_only_a_mesh_can_get_wrong_is_answered_as_a_node_does() {
    compare_all("golden_mesh");
}

/// A shard's name on the nodes, which a curious client may try.
const SHARD: &str = "\u{a003}";

#[test]
fn the_meshs_own_field_is_refused_wherever_a_client_names_it_and_never_shown() {
    let mesh = Mesh::start(Plan::of(2, 1));
    let client = mesh.client(0);
    client.done("POST", "/indexes", &json!({"uid": "i", "primaryKey": "id"}));
    client.done("PATCH", "/indexes/i/settings", &json!({"filterableAttributes": ["n"], "sortableAttributes": ["n"]}));
    let documents: Vec<Value> = (0..40).map(|id| json!({"id": id, "n": id % 5, "text": "a word"})).collect();
    client.done("POST", "/indexes/i/documents", &json!(documents));

    let own = "_miroir_shard";
    for (kind, body) in [
        ("application/json", format!("[{{\"id\":99,\"{own}\":1}}]")),
        ("application/json", format!("{{\"{own}\":null,\"id\":99}}")),
        ("application/json", "[{\"id\":99,\"_miroir\\u005fshard\":1}]".to_owned()),
        ("application/x-ndjson", format!("{{\"id\":98}}\n{{\"id\":99,\"{own}\":\"x\"}}\n")),
        ("text/csv", format!("id,{own}\n99,x\n")),
    ] {
        for method in ["POST", "PUT"] {
            let answer = client.call(method, "/indexes/i/documents", &[("content-type", kind)], body.as_bytes());
            answer.expect_error(400, "miroir_reserved_field");
        }
    }
    let filter = format!("{own} = {SHARD}");
    for search in [
        json!({"filter": filter}),
        json!({"filter": ["n = 1", [format!("NOT {own} EXISTS")]]}),
        json!({"filter": format!("n = 1 OR ('{own}' IN [x])")}),
        json!({"sort": [format!("{own}:asc")]}),
        json!({"facets": [own]}),
        json!({"facets": ["n", own]}),
        json!({"distinct": own}),
    ] {
        client.search("i", &search).expect_error(400, "miroir_reserved_field");
        let queries = json!({"queries": [{"indexUid": "i", "q": ""}, {"indexUid": "i"}]});
        let mut queries = queries.clone();
        queries["queries"][1].as_object_mut().unwrap().extend(search.as_object().unwrap().clone());
        client.json("POST", "/multi-search", &queries).expect_error(400, "miroir_reserved_field");
    }
    client.get(&format!("/indexes/i/search?facets={own}")).expect_error(400, "miroir_reserved_field");
    client.get(&format!("/indexes/i/search?sort={own}:asc")).expect_error(400, "miroir_reserved_field");
    client.get(&format!("/indexes/i/search?filter={own}%20EXISTS")).expect_error(400, "miroir_reserved_field");
    client.get(&format!("/indexes/i/documents?filter={own}%20EXISTS")).expect_error(400, "miroir_reserved_field");
    let facet = json!({"facetName": own});
    client.json("POST", "/indexes/i/facet-search", &facet).expect_error(400, "miroir_reserved_field");
    for path in ["/indexes/i/documents/fetch", "/indexes/i/documents/delete"] {
        client.json("POST", path, &json!({"filter": filter})).expect_error(400, "miroir_reserved_field");
    }
    for settings in [
        json!({"filterableAttributes": [own]}),
        json!({"sortableAttributes": ["n", own]}),
        json!({"searchableAttributes": [own]}),
        json!({"displayedAttributes": [own]}),
        json!({"rankingRules": ["words", format!("{own}:asc")]}),
        json!({"distinctAttribute": own}),
        json!({"typoTolerance": {"disableOnAttributes": [own]}}),
        json!({"faceting": {"sortFacetValuesBy": {own: "count"}}}),
    ] {
        client.json("PATCH", "/indexes/i/settings", &settings).expect_error(400, "miroir_reserved_field");
    }
    let path = "/indexes/i/settings/filterable-attributes";
    client.json("PUT", path, &json!([own])).expect_error(400, "miroir_reserved_field");

    // Asked for in ways that a node answers with what it has: there is nothing. The client looks at every byte.
    for search in [
        json!({"attributesToRetrieve": [own, "id"], "attributesToHighlight": ["*"], "attributesToCrop": ["*"]}),
        json!({"q": "word", "showRankingScoreDetails": true, "showMatchesPosition": true, "facets": ["*"]}),
        json!({"q": "word", "retrieveVectors": true, "sort": ["n:asc"], "showRankingScoreDetails": true}),
        json!({"filter": "text = 1"}),
        json!({"sort": ["text:asc"]}),
        json!({"facets": ["text"]}),
    ] {
        client.search("i", &search);
    }
    // The query itself comes back, so the client must not look for shards' names in this one answer.
    let plain = Client { is_mesh: false, ..client.clone() };
    let search = json!({"q": SHARD, "attributesToHighlight": ["*"], "showMatchesPosition": true, "facets": ["n"]});
    let answer = plain.search("i", &search);
    assert!(answer.status == 200 && !answer.text().contains(own), "{}", answer.text());
    for path in [
        "/indexes/i/documents?limit=50",
        "/indexes/i/documents/7",
        "/indexes/i/settings",
        "/stats",
        "/indexes/i/stats",
        "/indexes",
    ] {
        client.get(path).expect(200);
    }
    client.get(&format!("/indexes/i/documents/7?fields={own},id")).expect_error(400, "miroir_reserved_field");
    client.get(path).expect(200);
    assert_eq!(
        client.get("/indexes/i/stats").expect(200)["numberOfDocuments"],
        40,
        "nothing of a refused payload is there"
    );
    assert_eq!(client.get("/indexes/i/settings").expect(200)["filterableAttributes"], json!(["n"]));

    client.done("PUT", path, &json!(["*"]));
    client.search("i", &json!({"facets": ["*"], "q": "word"})).expect(200);
    client.search("i", &json!({"facets": ["n", own]})).expect_error(400, "miroir_reserved_field");
    client.search("i", &json!({"filter": filter})).expect_error(400, "miroir_reserved_field");
}

#[test]
fn hybrid_searches_have_the_order_of_one_node() {
    let engine = Engine::found();
    let single = Single::start(&engine);
    let mesh = Mesh::start(Plan::of(3, 1));
    let client = mesh.client(1);
    let mut dice = Dice::new(11);
    let words = ["game", "library", "python", "tool", "data", "audio", "network", "editor"];
    let mut vector = || -> Vec<f64> { (0..8).map(|_| dice.below(2_001) as f64 / 1_000.0 - 1.0).collect() };
    let documents: Vec<Value> = (0..200)
        .map(|id| {
            let text = format!("{} {}", words[id % 8], words[id / 8 % 8]);
            json!({"id": id, "text": text, "n": id % 9, "_vectors": {"e": vector()}})
        })
        .collect();
    let settings = json!({
        "embedders": {"e": {"source": "userProvided", "dimensions": 8}},
        "filterableAttributes": ["n"], "sortableAttributes": ["n"],
    });
    for client in [&single.client, &client] {
        client.done("POST", "/indexes", &json!({"uid": "i", "primaryKey": "id"}));
        client.done("PATCH", "/indexes/i/settings", &settings);
        client.done("POST", "/indexes/i/documents", &json!(documents));
    }
    let mut failures = Vec::new();
    for i in 0..60 {
        let ratio = [0.0, 0.2, 0.5, 0.8, 1.0][i % 5];
        let mut search = json!({
            "q": words[i % 8], "vector": vector(), "hybrid": {"embedder": "e", "semanticRatio": ratio},
            "showRankingScore": true, "limit": 15,
        });
        if i % 3 == 0 {
            search["filter"] = json!("n > 3");
        }
        let answers = [&single.client, &client].map(|c| c.search("i", &search).expect(200));
        let scores = answers.each_ref().map(|a| -> Vec<String> {
            let hits = a["hits"].as_array().unwrap();
            hits.iter().map(|h| format!("{:.4}", h["_rankingScore"].as_f64().unwrap())).collect()
        });
        let semantic = answers.each_ref().map(|a| a["semanticHitCount"].clone());
        if scores[0] != scores[1] || semantic[0] != semantic[1] {
            failures.push(format!(
                "{search}\n  node {:?} {}\n  mesh {:?} {}",
                scores[0], semantic[0], scores[1], semantic[1]
            ));
        }
    }
    assert!(failures.is_empty(), "{} of 60 differ:\n{}", failures.len(), failures[..failures.len().min(4)].join("\n"));
}

#[test]
fn what_nodes_would_refuse_of_one_document_fails_the_whole_request() {
    let engine = Engine::found();
    let single = Single::start(&engine);
    let mut mesh = Mesh::start(Plan::of(3, 2));
    let settings = json!({
        "filterableAttributes": ["_geo"], "embedders": {"e": {"source": "userProvided", "dimensions": 2}},
    });
    for client in [&single.client, &mesh.client(0)] {
        client.done("POST", "/indexes", &json!({"uid": "i", "primaryKey": "id"}));
        // Not waited for: documents that come after it are judged by it, at whichever member.
        client.json("PATCH", "/indexes/i/settings", &settings).expect(202);
    }
    let documents = || -> Vec<Value> {
        let document = |id| json!({"id": id, "_geo": {"lat": id, "lng": "1.5"}, "_vectors": {"e": [1, id]}});
        (0..120).map(document).collect()
    };
    let path = "/indexes/i/documents";
    for (i, (field, bad)) in [
        ("_geo", json!("somewhere")),
        ("_geo", json!({"lat": 1})),
        ("_geo", json!({"lat": "north", "lng": 2})),
        ("_vectors", json!({"e": [1]})),
        ("_vectors", json!({"e": {"regenerate": false, "embeddings": [[1, 2], [3, "4"]]}})),
        ("_vectors", json!({"e": "x"})),
        ("_vectors", json!(5)),
    ]
    .into_iter()
    .enumerate()
    {
        let mut list = documents();
        list[i * 17][field] = bad;
        let method = ["POST", "PUT"][i % 2];
        let one = single.client.finished(&single.client.json(method, path, &json!(list)));
        assert_eq!(one["status"], "failed", "{one}");
        let answer = mesh.client(i % 3).json(method, path, &json!(list));
        let all = mesh.client((i + 1) % 3).finished(&answer);
        for key in ["status", "type", "details", "error", "indexUid"] {
            assert_eq!(all[key], one[key], "{key} of {}", list[i * 17]);
        }
    }
    mesh.wait_whole();
    for i in 0..3 {
        assert_eq!(mesh.client(i).get("/indexes/i/stats").expect(200)["numberOfDocuments"], 0);
        let held = mesh.node_client(i).get("/stats").expect(200);
        let counts: Vec<_> = held["indexes"].as_object().unwrap().values().map(|i| &i["numberOfDocuments"]).collect();
        assert_eq!(counts, [&json!(0)], "what a node holds");
    }
    for client in [&single.client, &mesh.client(2)] {
        client.done("POST", path, &json!(documents()));
        assert_eq!(client.get("/indexes/i/stats").expect(200)["numberOfDocuments"], 120);
    }
    // What is no longer read is no longer looked at.
    for client in [&single.client, &mesh.client(1)] {
        client.done("DELETE", "/indexes/i/settings/filterable-attributes", &Value::Null);
        client.done("PUT", path, &json!([{"id": 7, "_geo": 5}, {"id": 8}]));
    }
}

#[test]
fn the_primary_key_of_documents_that_wait_is_not_changed() {
    let mut mesh = Mesh::start(Plan::of(3, 1));
    let client = mesh.client(0);
    client.done("POST", "/indexes", &json!({"uid": "i", "primaryKey": "id"}));
    // While there is nothing in it, another key takes its place, by any member.
    mesh.client(1).done("PATCH", "/indexes/i", &json!({"primaryKey": "sku"}));
    client.done("PATCH", "/indexes/i", &json!({"primaryKey": "id"}));
    let documents: Vec<Value> = (0..500).map(|n| json!({"id": n, "sku": format!("s{n}"), "text": "a b c d"})).collect();
    let added = client.json("POST", "/indexes/i/documents", &json!(documents));
    added.expect(202);
    let changed = mesh.client(1).json("PATCH", "/indexes/i", &json!({"primaryKey": "sku"}));
    changed.expect(202);
    assert_eq!(client.finished(&added)["status"], "succeeded");
    let changed = mesh.client(1).finished(&changed);
    assert_eq!(
        (&changed["status"], &changed["error"]["code"]),
        (&json!("failed"), &json!("index_primary_key_already_exists"))
    );
    client.done("POST", "/indexes/i/documents", &json!([{"id": 500, "sku": "s500"}]));
    for i in 0..3 {
        assert_eq!(mesh.client(i).get("/indexes/i").expect(200)["primaryKey"], "id");
        assert_eq!(mesh.client(i).get("/indexes/i/documents/500").expect(200)["sku"], "s500");
    }
    // Whoever asks sees by the index's time that its documents have changed.
    let updated = |mesh: &Mesh| mesh.client(2).get("/indexes/i").expect(200)["updatedAt"].as_str().unwrap().to_owned();
    let before = updated(&mesh);
    client.done("POST", "/indexes/i/documents", &json!([{"id": 501}]));
    assert!(updated(&mesh) > before, "{} {before}", updated(&mesh));
    assert!(mesh.client(2).get("/indexes").expect(200)["results"][0]["updatedAt"].as_str().unwrap() > &*before);
    mesh.wait_whole();
}

#[test]
fn a_client_reads_its_own_writes_at_any_member() {
    let mesh = Mesh::start(Plan::of(3, 2));
    let clients: Vec<Client> = (0..3).map(|i| mesh.client(i)).collect();
    clients[0].done("POST", "/indexes", &json!({"uid": "i", "primaryKey": "id"}));
    let body = |n: u64| json!([{"id": n % 7, "n": n}, {"id": 100 + n, "n": n}]).to_string();
    let json_type = ("content-type", "application/json");
    let mut token = String::new();
    for n in 0..40_u64 {
        let writer = &clients[n as usize % 3];
        let headers = [json_type, ("x-miroir-session", &*token)];
        let answer = writer.call("POST", "/indexes/i/documents", &headers, body(n).as_bytes());
        token = answer.header("x-miroir-session").expect("a token").to_owned();
        let task = answer.expect(202)["taskUid"].to_string();
        // The token covers all writes so far, the task this one.
        for (reader, header) in [(1, ("x-miroir-session", &*token)), (2, ("x-miroir-min-task", &*task))] {
            let reader = &clients[(n as usize + reader) % 3];
            let read = reader.call("GET", &format!("/indexes/i/documents/{}", n % 7), &[header], b"");
            assert_eq!(read.header("x-miroir-degraded"), None);
            assert_eq!(read.expect(200)["n"], n);
            let found =
                reader.call("POST", "/indexes/i/search", &[json_type, header], br#"{"hitsPerPage": 1}"#).expect(200);
            assert_eq!(found["totalHits"], n.min(6) + n + 2);
        }
    }
    for (name, value) in [("x-miroir-session", "mine"), ("x-miroir-min-task", "-1")] {
        let answer = clients[0].call("GET", "/indexes/i/documents", &[(name, value)], b"");
        answer.expect_error(400, "bad_request");
    }
    let unknown = clients[1].call("GET", "/indexes/i/documents", &[("x-miroir-min-task", "2000000000")], b"");
    assert_eq!(unknown.header("x-miroir-degraded"), Some("stale"));
    assert_eq!(unknown.expect(200)["total"], 47);
    // What does not read indexes waits for nobody.
    let health = clients[1].call("GET", "/health", &[("x-miroir-min-task", "2000000000")], b"");
    assert_eq!((health.header("x-miroir-degraded"), health.expect(200)["status"].as_str()), (None, Some("available")));
}
