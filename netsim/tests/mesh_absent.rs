//! Orders while a host is gone, with real processes: they end, and a member that was away gets what it missed before it is searched.

mod common;

use std::time::{Duration, Instant};

use common::{Client, Mesh, Plan, say, wait_until};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(120);
/// How long an order may take at most while a member is away: until that is known, and an election.
const BOUND: Duration = Duration::from_secs(30);

/// Three members with two copies of each of 4 shards, and an index with some documents.
fn mesh() -> Mesh {
    let mesh = Mesh::start(Plan { shards: 4, ..Plan::of(3, 2) });
    let client = mesh.client(0);
    client.done("POST", "/indexes", &json!({"uid": "books", "primaryKey": "id"}));
    client.done("PATCH", "/indexes/books/settings", &json!({"sortableAttributes": ["id"]}));
    client.done("POST", "/indexes/books/documents", &documents(0..40));
    mesh
}

fn documents(ids: std::ops::Range<u64>) -> Value {
    ids.map(|id| json!({"id": id, "shelf": if id % 2 == 0 { "even" } else { "odd" }})).collect()
}

fn kill_host(mesh: &mut Mesh, i: usize) {
    mesh.sidecar(i).kill();
    mesh.node(i).kill();
}

/// A write that succeeds within bounds.
fn done_soon(client: &Client, method: &str, path: &str, body: &Value) {
    let began = Instant::now();
    client.done(method, path, body);
    say(&format!("{method} {path}: {} ms", began.elapsed().as_millis()));
    assert!(began.elapsed() < BOUND, "{method} {path} took {:?}", began.elapsed());
}

/// An index's settings as one node has them.
fn settings(mesh: &Mesh, i: usize, index: &str) -> Value {
    let physical = mesh.admin(0).get(&format!("/_miroir/indexes/{index}")).expect(200)["physical"].clone();
    mesh.node_client(i).get(&format!("/indexes/{}/settings", physical.as_str().unwrap())).json()
}

/// Searches through a member that comes back until it serves all by itself: no answer is ever one of a node that lacks settings.
fn never_wrong(mesh: &Mesh, i: usize, index: &str, hits: u64) {
    let query = json!({"filter": "shelf = even", "sort": ["id:asc"], "limit": 1}).to_string();
    let path = format!("/indexes/{index}/search");
    wait_until("whole answers", PATIENCE, || {
        let headers = [("content-type", "application/json")];
        let Ok(answer) = mesh.client(i).try_call("POST", &path, &headers, query.as_bytes()) else { return false };
        assert!(matches!(answer.status, 200 | 404 | 503), "{}", answer.text());
        answer.status == 200
            && answer.json()["estimatedTotalHits"] == hits
            && answer.header("x-miroir-degraded").is_none()
    });
}

#[test]
fn orders_end_while_a_host_is_gone_and_it_gets_them_when_it_is_back_before_it_is_searched() {
    let mut mesh = mesh();
    let client = mesh.client(0);
    kill_host(&mut mesh, 2);
    // At once: nobody knows yet that it is gone.
    done_soon(&client, "PATCH", "/indexes/books/settings", &json!({"filterableAttributes": ["shelf"]}));
    done_soon(
        &client,
        "PATCH",
        "/indexes/books/settings",
        &json!({"stopWords": ["the"], "sortableAttributes": ["id", "shelf"]}),
    );
    done_soon(&client, "POST", "/indexes", &json!({"uid": "late"}));
    done_soon(&client, "PATCH", "/indexes/late", &json!({"primaryKey": "id"}));
    done_soon(
        &client,
        "PATCH",
        "/indexes/late/settings",
        &json!({"filterableAttributes": ["shelf"], "sortableAttributes": ["id"]}),
    );
    done_soon(&client, "POST", "/indexes/late/documents", &documents(0..20));
    done_soon(&client, "POST", "/indexes", &json!({"uid": "gone", "primaryKey": "id"}));
    done_soon(&client, "DELETE", "/indexes/gone", &Value::Null);
    mesh.start_node(2);
    mesh.start_sidecar(2);
    never_wrong(&mesh, 2, "books", 20);
    never_wrong(&mesh, 2, "late", 10);
    mesh.wait_whole();
    for index in ["books", "late"] {
        wait_until("the same settings on all nodes", PATIENCE, || {
            settings(&mesh, 2, index) == settings(&mesh, 0, index)
        });
        assert!(settings(&mesh, 2, index)["filterableAttributes"].to_string().contains("shelf"));
    }
    // Now it takes part again.
    done_soon(&mesh.client(2), "PATCH", "/indexes/books/settings", &json!({"stopWords": ["a"]}));
    assert_eq!(settings(&mesh, 2, "books")["stopWords"], json!(["a"]));
    assert_eq!(settings(&mesh, 2, "books"), settings(&mesh, 1, "books"));
}

#[test]
fn a_host_that_dies_with_its_part_of_an_order_holds_up_nothing() {
    let mut mesh = mesh();
    let client = mesh.client(0);
    // Its node has the order in its queue, or just not any more.
    let answer = client.json("PATCH", "/indexes/books/settings", &json!({"filterableAttributes": ["shelf"]}));
    kill_host(&mut mesh, 2);
    let began = Instant::now();
    let task = client.finished(&answer);
    assert_eq!(task["status"], "succeeded", "{task}");
    assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
    mesh.start_node(2);
    mesh.start_sidecar(2);
    never_wrong(&mesh, 2, "books", 20);
    wait_until("the same settings", PATIENCE, || settings(&mesh, 2, "books") == settings(&mesh, 0, "books"));
}

#[test]
fn a_node_that_is_slow_is_waited_for() {
    let mut mesh = mesh();
    let client = mesh.client(0);
    mesh.node(2).pause();
    std::thread::scope(|scope| {
        let order = scope
            .spawn(|| client.json("PATCH", "/indexes/books/settings", &json!({"filterableAttributes": ["shelf"]})));
        // Longer than a member that does not answer is waited for.
        std::thread::sleep(Duration::from_secs(8));
        assert!(!order.is_finished(), "the order was answered without a node that only stands still");
        mesh.members[2].node.as_mut().unwrap().resume();
        let task = client.finished(&order.join().unwrap());
        assert_eq!(task["status"], "succeeded", "{task}");
    });
    // At once: the order has not ended before it was done there, too.
    let shown = settings(&mesh, 2, "books");
    assert!(shown["filterableAttributes"].to_string().contains("shelf"), "{shown}");
    assert_eq!(shown, settings(&mesh, 0, "books"));
    let log = mesh.sidecar(2).log();
    assert!(!log.contains("while it was away"), "it got the settings later, as one that was away");
}
