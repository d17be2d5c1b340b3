//! Edits by function with real processes: while sidecars and nodes are killed, each document is edited exactly once by each edit,
//! and all copies end equal, with the mesh's own field as it was.

mod common;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use common::{Client, Mesh, Plan, say, wait_until};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(120);
const EDITS: usize = 12;
const DOCUMENTS: usize = 200;

/// Sends an edit until it is taken, always under the same key; gives what became of it.
fn edit(clients: &[Client], number: usize, body: &Value) -> Value {
    let key = format!("edit-{number}");
    let headers = [("content-type", "application/json"), ("idempotency-key", key.as_str())];
    let began = Instant::now();
    for client in clients.iter().cycle().skip(number) {
        assert!(began.elapsed() < PATIENCE, "edit {number} is not taken");
        let answer = client.try_call("POST", "/indexes/i/documents/edit", &headers, body.to_string().as_bytes());
        if let Ok(answer) = answer.as_ref()
            && answer.status == 202
        {
            let uid = answer.json()["taskUid"].as_u64().unwrap();
            return task(clients, uid);
        }
        let refused = answer.as_ref().is_ok_and(|a| a.status < 500);
        assert!(!refused, "edit {number}: {}", answer.unwrap().text());
        std::thread::sleep(Duration::from_millis(50));
    }
    unreachable!("clients are asked for ever");
}

fn task(clients: &[Client], uid: u64) -> Value {
    let began = Instant::now();
    for client in clients.iter().cycle() {
        assert!(began.elapsed() < PATIENCE, "task {uid} does not end");
        let seen = client.try_call("GET", &format!("/tasks/{uid}"), &[], b"");
        if let Ok(answer) = seen.filter_ok()
            && matches!(answer["status"].as_str(), Some("succeeded" | "failed"))
        {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    unreachable!("clients are asked for ever");
}

trait FilterOk {
    fn filter_ok(self) -> Result<Value, ()>;
}

impl FilterOk for std::io::Result<common::Answer> {
    fn filter_ok(self) -> Result<Value, ()> {
        self.ok().filter(|answer| answer.status == 200).map(|answer| answer.json()).ok_or(())
    }
}

/// All documents that a node holds, by their ids.
fn held(node: &Client) -> BTreeMap<u64, Value> {
    let list = node.get("/indexes").expect(200);
    let Some(index) = list["results"].as_array().unwrap().iter().find_map(|i| i["uid"].as_str()) else {
        return BTreeMap::new();
    };
    let all = node.json("POST", &format!("/indexes/{index}/documents/fetch"), &json!({"limit": 1000})).expect(200);
    let documents = all["results"].as_array().unwrap().iter();
    documents.map(|document| (document["id"].as_u64().unwrap(), document.clone())).collect()
}

#[test]
fn every_edit_is_applied_once_to_each_document_whoever_is_killed() {
    let mut mesh = Mesh::start(Plan::of(3, 2));
    let clients: Vec<Client> = (0..3).map(|i| mesh.client(i)).collect();
    let nodes: Vec<Client> = (0..3).map(|i| mesh.node_client(i)).collect();
    let body = json!({"function": "doc.n += 1", "filter": "even = true"});
    clients[0].done("POST", "/indexes", &json!({"uid": "i", "primaryKey": "id"}));
    clients[0].json("POST", "/indexes/i/documents/edit", &body).expect_error(400, "feature_not_enabled");
    for node in &nodes[..2] {
        node.json("PATCH", "/experimental-features", &json!({"editDocumentsByFunction": true})).expect(200);
    }
    // One node that does not edit is enough: its copies would fall behind for good.
    clients[0].json("POST", "/indexes/i/documents/edit", &body).expect_error(400, "feature_not_enabled");
    nodes[2].json("PATCH", "/experimental-features", &json!({"editDocumentsByFunction": true})).expect(200);
    let filterable = "/indexes/i/settings/filterable-attributes";
    clients[0].done("PUT", filterable, &json!(["even"]));
    let documents: Vec<Value> = (0..DOCUMENTS).map(|id| json!({"id": id, "n": 0, "even": id % 2 == 0})).collect();
    clients[0].done("POST", "/indexes/i/documents", &json!(documents));
    let reserved = json!({"function": "doc._miroir_shard = 1"});
    clients[0].json("POST", "/indexes/i/documents/edit", &reserved).expect_error(400, "miroir_reserved_field");
    for (function, why) in [
        ("exit()", "`exit` is not supported"),
        ("fn remove(x) { }", "can't define `remove`"),
        ("doc.a = [1].map(|x| x); if doc.id == 1 { return; }", "together with closures"),
    ] {
        let answer = clients[1].json("POST", "/indexes/i/documents/edit", &json!({"function": function}));
        let (error, engine) = (answer.expect_error(400, "bad_request"), &mesh.plan.engine);
        assert!(!engine.is_real() || error["message"].as_str().unwrap().contains(why), "{error}");
    }
    let marks: Vec<BTreeMap<u64, Value>> = nodes.iter().map(held).collect();

    let ends = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let (ends, clients, body) = (&ends, &clients, &body);
        for lane in 0..2 {
            scope.spawn(move || {
                for number in (lane..EDITS).step_by(2) {
                    let end = edit(clients, number, body);
                    ends.lock().unwrap().push(end);
                }
            });
        }
        let so_far = |count: usize| wait_until("edits to go on", PATIENCE, || ends.lock().unwrap().len() >= count);
        for (i, gone) in [1, 2, 0].into_iter().enumerate() {
            so_far(i * 3 + 1);
            mesh.sidecar(gone).kill();
            mesh.start_sidecar(gone);
            so_far(i * 3 + 2);
            mesh.node((gone + 1) % 3).kill();
            std::thread::sleep(Duration::from_millis(300));
            mesh.start_node((gone + 1) % 3);
        }
    });
    mesh.wait_whole();
    let ends = ends.into_inner().unwrap();
    assert_eq!(ends.len(), EDITS);
    for end in &ends {
        assert_eq!(end["status"], "succeeded", "{end}");
        assert_eq!(end["details"]["editedDocuments"], DOCUMENTS / 2, "{end}");
        assert_eq!(end["details"]["function"], "doc.n += 1", "{end}");
        assert_eq!(end["details"]["originalFilter"], "\"even = true\"", "{end}");
    }
    let right =
        |id: u64, document: &Value| document["n"].as_u64() == Some(if id.is_multiple_of(2) { EDITS as u64 } else { 0 });
    let began = Instant::now();
    wait_until("all copies to be edited", PATIENCE, || {
        nodes.iter().all(|node| held(node).iter().all(|(id, document)| right(*id, document)))
    });
    let mut copies: BTreeMap<u64, Vec<Value>> = BTreeMap::new();
    for (node, marks) in nodes.iter().zip(&marks) {
        let held = held(node);
        assert!(held.keys().eq(marks.keys()), "the node holds what it held");
        for (id, document) in held {
            assert!(right(id, &document), "{document}");
            assert_eq!(document["_miroir_shard"], marks[&id]["_miroir_shard"], "{document}");
            copies.entry(id).or_default().push(document);
        }
    }
    assert_eq!(copies.len(), DOCUMENTS);
    assert!(copies.values().all(|both| both.len() == 2 && both[0] == both[1]), "copies differ");
    for client in &clients {
        let all = client.json("POST", "/indexes/i/documents/fetch", &json!({"limit": 1000})).expect(200);
        let all = all["results"].as_array().unwrap();
        assert_eq!(all.len(), DOCUMENTS);
        assert!(all.iter().all(|document| right(document["id"].as_u64().unwrap(), document)));
    }
    say(&format!(
        "{EDITS} edits of {} documents; equal {} ms after the last",
        DOCUMENTS / 2,
        began.elapsed().as_millis()
    ));
}
