//! Nodes that lost what they had, with real processes: rebuilt by themselves while writes go on, searches right all the time.

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Client, Mesh, Plan, say, wait_until};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(180);
/// Documents that nobody changes.
const FIXED: u64 = 400;

/// Three members with two copies of each of 8 shards, and one index whose settings a record alone does not say.
fn mesh() -> Mesh {
    let mesh = Mesh::start(Plan { shards: 8, ..Plan::of(3, 2) });
    let client = mesh.client(0);
    client.done("POST", "/indexes", &json!({"uid": "books", "primaryKey": "id"}));
    client.done("PATCH", "/indexes/books/settings", &json!({"filterableAttributes": ["shelf"]}));
    let fixed: Vec<Value> =
        (0..FIXED).map(|id| json!({"id": id, "shelf": "fixed", "text": format!("fixed {id}")})).collect();
    client.done("POST", "/indexes/books/documents", &json!(fixed));
    wait_until("all copies in sync", PATIENCE, || is_whole(&mesh, 0));
    mesh
}

fn copies(mesh: &Mesh, i: usize) -> Vec<Value> {
    let index = mesh.admin(i).get("/_miroir/indexes/books").expect(200);
    let of = |shard: &Value| shard["replicas"].as_array().unwrap().clone();
    index["shards"].as_array().unwrap().iter().flat_map(of).collect()
}

/// Whether every copy is in sync, has applied everything and is made.
fn is_whole(mesh: &Mesh, i: usize) -> bool {
    copies(mesh, i).iter().all(|copy| {
        let level = copy["applied"] == copy["committed"] && copy["lag"] == 0;
        copy["inSync"] == true && copy["rebuild"] == false && level
    })
}

/// All documents of a node, by shard and id, as JSON with sorted fields.
fn documents(mesh: &Mesh, i: usize) -> BTreeMap<String, BTreeMap<String, BTreeMap<String, Value>>> {
    let index = mesh.admin(0).get("/_miroir/indexes/books").expect(200);
    let physical = index["physical"].as_str().unwrap().to_owned();
    let found = mesh.node_client(i).get(&format!("/indexes/{physical}/documents?limit=1000000")).expect(200);
    let mut all: BTreeMap<String, BTreeMap<String, BTreeMap<String, Value>>> = BTreeMap::new();
    for document in found["results"].as_array().unwrap() {
        let fields: BTreeMap<String, Value> = serde_json::from_value(document.clone()).unwrap();
        let shard = fields["_miroir_shard"].as_str().unwrap().to_owned();
        all.entry(shard).or_default().insert(fields["id"].to_string(), fields);
    }
    all
}

/// Writes one document after the other, and now and then deletes or edits some, until it is told to stop.
fn write(client: &Client, stop: &AtomicBool, written: &AtomicU64) {
    for n in 0_u64.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let id = 1_000 + n % 300;
        match n % 25 {
            7 => drop(client.call("DELETE", &format!("/indexes/books/documents/{id}"), &[], b"").expect(202)),
            18 => {
                let filter = json!({"filter": "shelf = \"odd\""}).to_string();
                let headers = [("content-type", "application/json")];
                client.call("POST", "/indexes/books/documents/delete", &headers, filter.as_bytes()).expect(202);
            }
            _ => {
                let shelf = if n % 11 == 0 { "odd" } else { "moving" };
                let body = json!([{"id": id, "shelf": shelf, "text": format!("moving {n}")}]).to_string();
                let headers = [("content-type", "application/json")];
                client.call("POST", "/indexes/books/documents", &headers, body.as_bytes()).expect(202);
            }
        }
        written.fetch_add(1, Ordering::SeqCst);
    }
}

/// Searches for what nobody changes until it is told to stop: every answer has all of it.
fn search(client: &Client, stop: &AtomicBool, searched: &AtomicU64) {
    while !stop.load(Ordering::SeqCst) {
        let query = json!({"q": "fixed", "filter": "shelf = \"fixed\"", "hitsPerPage": 1}).to_string();
        let headers = [("content-type", "application/json")];
        let answer = client.call("POST", "/indexes/books/search", &headers, query.as_bytes());
        let found = answer.expect(200);
        assert_eq!(found["totalHits"], FIXED, "{found}");
        assert_eq!(answer.header("x-miroir-degraded"), None, "{found}");
        searched.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_node_that_was_wiped_is_rebuilt_by_itself_while_writes_go_on() {
    let mut mesh = mesh();
    let (stop, written, searched) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let clients: Vec<Client> = (0..3).map(|i| mesh.client(i)).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| write(&clients[0], &stop, &written));
        for client in &clients {
            scope.spawn(|| search(client, &stop, &searched));
        }
        // Whatever goes wrong here, the others must end.
        let end = Stop(&stop);
        wait_until("some writes", PATIENCE, || written.load(Ordering::SeqCst) > 50);
        mesh.node(2).kill();
        let data = mesh.members[2].dir.join("node");
        std::fs::remove_dir_all(&data).unwrap();
        std::fs::create_dir_all(&data).unwrap();
        mesh.start_node(2);
        let began = Instant::now();
        wait_until("copies that are made anew", PATIENCE, || {
            copies(&mesh, 0).iter().any(|copy| copy["member"] == "m3" && copy["rebuild"] == true)
        });
        wait_until("no copy that is made anew", PATIENCE, || {
            copies(&mesh, 0).iter().all(|copy| copy["rebuild"] == false)
        });
        let (writes, searches) = (written.load(Ordering::SeqCst), searched.load(Ordering::SeqCst));
        say(&format!("rebuilt in {} ms; {writes} writes, {searches} searches", began.elapsed().as_millis()));
        drop(end);
    });
    wait_until("all copies in sync", PATIENCE, || is_whole(&mesh, 0));
    assert_equal(&mesh);
}

#[test]
fn a_member_whose_store_and_node_were_lost_gets_documents_and_settings_again() {
    let mut mesh = mesh();
    mesh.sidecar(2).kill();
    mesh.node(2).kill();
    for lost in ["store", "node"] {
        std::fs::remove_dir_all(mesh.members[2].dir.join(lost)).unwrap();
    }
    std::fs::create_dir_all(mesh.members[2].dir.join("node")).unwrap();
    // Meanwhile there is one copy less, and what is written is there afterwards.
    mesh.client(0).done("POST", "/indexes/books/documents", &json!([{"id": 7_000, "shelf": "new"}]));
    mesh.start_node(2);
    mesh.start_sidecar(2);
    mesh.wait_whole();
    wait_until("all copies in sync", PATIENCE, || is_whole(&mesh, 0));
    assert_equal(&mesh);
    let physical = mesh.admin(0).get("/_miroir/indexes/books").expect(200)["physical"].as_str().unwrap().to_owned();
    let settings: Vec<Value> =
        (0..3).map(|i| mesh.node_client(i).get(&format!("/indexes/{physical}/settings")).expect(200)).collect();
    assert_eq!((&settings[2], settings[2].to_string().contains("shelf")), (&settings[0], true));
    for i in 0..3 {
        let found = mesh.client(i).search("books", &json!({"filter": "shelf = new"})).expect(200);
        assert_eq!(found["estimatedTotalHits"], 1, "through member {i}");
    }
}

/// Every shard's two copies hold the same documents.
fn assert_equal(mesh: &Mesh) {
    let all: Vec<_> = (0..3).map(|i| documents(mesh, i)).collect();
    let mut by_shard: BTreeMap<&String, Vec<_>> = BTreeMap::new();
    all.iter().flatten().for_each(|(shard, documents)| by_shard.entry(shard).or_default().push(documents));
    assert_eq!(by_shard.len(), 8);
    for (shard, copies) in by_shard {
        assert_eq!(copies.len(), 2, "{shard:?}");
        assert_eq!(copies[0], copies[1], "{shard:?}");
    }
}

/// Ends what goes on beside, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
