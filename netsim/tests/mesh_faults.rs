//! Members that die, drain and come back, with searches in flight.

mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Client, Mesh, Plan, SAMPLE_SIZE, exit_code, load_sample, package_settings, wait_until};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(40);
/// So many searches before and after each fault.
const SEARCHES: usize = 100;

/// A search with its total when nothing is missing.
struct Expected {
    search: Value,
    total: u64,
    /// Sum over all sections.
    facets: u64,
}

impl Expected {
    fn of(client: &Client) -> Vec<Self> {
        let searches = [
            json!({"q": "", "page": 1, "hitsPerPage": 5, "facets": ["section"]}),
            json!({"q": "library", "page": 1, "facets": ["section"]}),
            json!({"q": "python", "page": 2, "sort": ["size:desc"], "facets": ["section"]}),
            json!({"q": "the", "page": 1, "filter": "installed_size > 100", "facets": ["section"]}),
        ];
        let expect = |search: Value| {
            let found = client.search("packages", &search).expect(200);
            Self { total: found["totalHits"].as_u64().unwrap(), facets: sum(&found), search }
        };
        let all: Vec<Self> = searches.into_iter().map(expect).collect();
        assert_eq!(all[0].total, SAMPLE_SIZE);
        assert!(all.iter().all(|e| e.total > 20 && e.facets == e.total), "a document counts once in one section");
        all
    }

    /// What is wrong with an answer.
    fn fault(&self, client: &Client) -> Option<String> {
        let text = self.search.to_string();
        let headers = [("content-type", "application/json")];
        let answer = match client.try_call("POST", "/indexes/packages/search", &headers, text.as_bytes()) {
            Ok(answer) => answer,
            Err(e) => return Some(format!("{text} at {}: {e}", client.address)),
        };
        let degraded = answer.header("x-miroir-degraded");
        if answer.status != 200 || degraded.is_some() {
            return Some(format!("{text} at {}: {} {degraded:?} {}", client.address, answer.status, answer.text()));
        }
        let found = answer.json();
        let right =
            found["totalHits"] == self.total && sum(&found) == self.facets && found.get("remoteErrors").is_none();
        (!right).then(|| format!("{text} at {}: {}, not {}", client.address, found["totalHits"], self.total))
    }
}

/// What is wrong with a page that begins far down: it takes two rounds, and between them members may go.
fn far_page_fault(client: &Client) -> Option<String> {
    let path = "/indexes/packages/documents?offset=2500&limit=7";
    let answer = match client.try_call("GET", path, &[], b"") {
        Ok(answer) => answer,
        Err(e) => return Some(format!("{path} at {}: {e}", client.address)),
    };
    let degraded = answer.header("x-miroir-degraded");
    let page = answer.json();
    let rows = page["results"].as_array().map_or(0, Vec::len);
    let right = answer.status == 200 && degraded.is_none() && rows == 7 && page["total"] == SAMPLE_SIZE;
    (!right).then(|| {
        format!("{path} at {}: {} {degraded:?}, {rows} rows: {}", client.address, answer.status, answer.text())
    })
}

fn sum(found: &Value) -> u64 {
    found["facetDistribution"]["section"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum()
}

/// Searches by four clients at once; how many there were, and what went wrong.
struct Load<'a> {
    expected: &'a [Expected],
    done: AtomicUsize,
    stop: AtomicBool,
    faults: Mutex<Vec<String>>,
}

impl<'a> Load<'a> {
    /// Carries out `work` under load through `clients`; every search must be answered wholly.
    #[track_caller]
    fn during(expected: &'a [Expected], clients: &[Client], work: impl FnOnce(&Self)) {
        let load = Self { expected, done: AtomicUsize::new(0), stop: AtomicBool::new(false), faults: Mutex::default() };
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let (load, client) = (&load, clients[worker % clients.len()].clone());
                scope.spawn(move || {
                    for i in worker.. {
                        if load.stop.load(Ordering::SeqCst) {
                            return;
                        }
                        let fault = match i % 5 {
                            4 => far_page_fault(&client),
                            _ => load.expected[i % load.expected.len()].fault(&client),
                        };
                        load.faults.lock().unwrap().extend(fault);
                        load.done.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            // Ends the workers also if the work fails.
            let stop = Stop(&load.stop);
            load.more(SEARCHES);
            work(&load);
            load.more(SEARCHES);
            drop(stop);
        });
        let (faults, done) = (load.faults.into_inner().unwrap(), load.done.into_inner());
        let first = &faults[..faults.len().min(5)];
        assert!(faults.is_empty(), "{} of {done} searches went wrong:\n{}", faults.len(), first.join("\n"));
    }

    /// Waits for so many searches more.
    fn more(&self, count: usize) {
        let before = self.done.load(Ordering::SeqCst);
        wait_until("searches", PATIENCE, || self.done.load(Ordering::SeqCst) >= before + count);
    }
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Every document is counted once, by every member and every route.
fn assert_counts(mesh: &Mesh, total: u64) {
    for i in 0..mesh.members.len() {
        let client = mesh.client(i);
        let of = |path: &str, field: &str| client.get(path).expect(200)[field].as_u64();
        assert_eq!(of("/indexes/packages/stats", "numberOfDocuments"), Some(total), "member {i}");
        assert_eq!(of("/indexes/packages/documents?limit=1", "total"), Some(total), "member {i}");
        let stats = client.get("/stats").expect(200);
        assert_eq!(stats["indexes"]["packages"]["numberOfDocuments"], total, "member {i}: {stats}");
        // Fields are counted by the nodes that this member believes to be well.
        wait_until("right counts of fields", PATIENCE, || {
            client.get("/stats").expect(200)["indexes"]["packages"]["fieldDistribution"]["id"] == total
        });
        let found = client.search("packages", &json!({"hitsPerPage": 1, "facets": ["section"]})).expect(200);
        assert_eq!((found["totalHits"].as_u64(), sum(&found)), (Some(total), total), "member {i}");
    }
}

fn loaded(plan: Plan) -> (Mesh, Vec<Client>) {
    let mesh = Mesh::start(plan);
    let clients: Vec<Client> = (0..mesh.members.len()).map(|i| mesh.client(i)).collect();
    load_sample(&clients[0], &package_settings());
    (mesh, clients)
}

fn wait_unserved(mesh: &Mesh, at: usize, gone: usize) {
    let admin = mesh.admin(at);
    wait_until("a member to be seen as gone", PATIENCE, || {
        admin.get("/_miroir/topology").json()["members"][gone]["serving"] == false
    });
}

/// Waits until a member knows from another that the other's node is gone; a suspicion would pass.
fn wait_node_down(mesh: &Mesh, at: usize, gone: usize) {
    let admin = mesh.admin(at);
    wait_until("a node to be known as gone", PATIENCE, || {
        admin.get("/_miroir/topology").json()["members"][gone]["node"]["healthy"] == false
    });
}

/// Writes one document for each of many ids: with a copy in sync left of each shard, each is taken, done and found.
fn assert_writes_are_done(client: &Client, prefix: &str) -> u64 {
    for i in 0..40 {
        let id = format!("{prefix}-{i}");
        let task = client.done("POST", "/indexes/packages/documents", &json!([{"id": id, "section": "new"}]));
        assert_eq!(task["details"]["indexedDocuments"], 1, "{task}");
        assert_eq!(client.get(&format!("/indexes/packages/documents/{id}")).expect(200)["id"], id);
    }
    40
}

/// The same where shards have lost their only copy: what needs one is refused before anything is done.
fn assert_writes_are_whole_or_refused(client: &Client, prefix: &str) -> (u64, u64) {
    let (mut taken, mut refused) = (0, 0);
    for i in 0..12 {
        let id = format!("{prefix}-{i}");
        let answer = client.json("POST", "/indexes/packages/documents", &json!([{"id": id, "section": "new"}]));
        let read = || client.get(&format!("/indexes/packages/documents/{id}"));
        if answer.status == 202 {
            assert_eq!(client.finished(&answer)["status"], "succeeded");
            assert_eq!(read().expect(200)["id"], id);
            taken += 1;
        } else {
            assert_eq!(answer.header("retry-after"), Some("10"));
            answer.expect_error(503, "miroir_no_quorum");
            // The shard's only copy is gone; or nobody could keep the task for a moment, and nothing was done.
            let found = read();
            if found.status == 404 {
                found.expect_error(404, "document_not_found");
                continue;
            }
            found.expect_error(503, "miroir_shards_unavailable");
            refused += 1;
        }
    }
    (taken, refused)
}

/// The numbers of a member's starts, as its log tells them.
fn starts(mesh: &Mesh, i: usize) -> Vec<u64> {
    let log = std::fs::read_to_string(mesh.members[i].dir.join("sidecar.log")).unwrap();
    let number = |line: &str| line.split_once(" start=")?.1.split(' ').next()?.parse().ok();
    log.lines().filter(|line| line.contains("in service")).filter_map(number).collect()
}

#[test]
fn with_two_copies_a_killed_member_fails_no_search_and_comes_back_as_it_was() {
    let (mut mesh, clients) = loaded(Plan::of(3, 2));
    assert_counts(&mesh, SAMPLE_SIZE);
    let expected = Expected::of(&clients[0]);
    let task = clients[2].done("POST", "/indexes/packages/documents", &json!([common::sample()[0]]));
    let task_path = format!("/tasks/{}", task["uid"]);
    let before = mesh.topology(0);

    Load::during(&expected, &clients[..2], |_| mesh.sidecar(2).kill());
    wait_unserved(&mesh, 0, 2);
    let taken = assert_writes_are_done(&clients[0], "killed");
    let many: Vec<Value> = (0..60).map(|i| json!({"id": format!("many-{i}"), "section": "new"})).collect();
    let answer = clients[1].json("POST", "/indexes/packages/documents", &json!(many));
    assert_eq!(answer.header("x-miroir-degraded"), Some("copies=1/2"), "shards have lost a copy");
    assert_eq!(clients[1].finished(&answer)["status"], "succeeded");
    let taken = taken + 60;
    let found = clients[1].search("packages", &json!({"hitsPerPage": 1})).expect(200);
    assert_eq!(found["totalHits"], SAMPLE_SIZE + taken);
    let ids = (0..40).map(|i| format!("killed-{i}")).chain((0..60).map(|i| format!("many-{i}")));
    let ids: Vec<String> = ids.collect();

    mesh.start_sidecar(2);
    mesh.wait_whole();
    let starts = starts(&mesh, 2);
    assert!(starts.len() == 2 && starts[0] < starts[1], "{starts:?}");
    let after = mesh.topology(2);
    assert_eq!(after["recordsDigest"], before["recordsDigest"]);
    assert_eq!(after["indexes"], before["indexes"]);
    for client in &clients {
        assert_eq!(client.get(&task_path).expect(200), task, "its tasks are answered by any member");
    }
    assert_counts(&mesh, SAMPLE_SIZE + taken);
    let task = clients[2].done("POST", "/indexes/packages/documents/delete-batch", &json!(ids));
    assert_eq!(task["details"]["deletedDocuments"], taken, "{task}");
    assert_counts(&mesh, SAMPLE_SIZE);

    Load::during(&expected, &clients[..2], |_| mesh.node(2).kill());
    // Its own sidecar goes on, too, with the other members' copies.
    (0..3).for_each(|at| wait_node_down(&mesh, at, 2));
    Load::during(&expected, &clients, |_| {});
    let taken = assert_writes_are_done(&clients[1], "node-killed");
    mesh.start_node(2);
    mesh.wait_whole();
    assert_counts(&mesh, SAMPLE_SIZE + taken);
}

#[test]
fn with_two_copies_a_draining_member_fails_no_search_and_exits_in_time() {
    let (mut mesh, clients) = loaded(Plan::of(3, 2));
    let expected = Expected::of(&clients[0]);
    Load::during(&expected, &clients[..2], |load| {
        mesh.sidecar(2).terminate();
        // shutdown_drain_s is 5.
        let status = mesh.sidecar(2).wait_exit(Duration::from_secs(8));
        assert_eq!(exit_code(status), 0, "{}", mesh.sidecar(2).last_words());
        load.more(SEARCHES);
    });
    mesh.start_sidecar(2);
    Load::during(&expected, &clients[..2], |_| mesh.wait_whole());
    assert_counts(&mesh, SAMPLE_SIZE);
}

#[test]
fn with_two_copies_a_node_that_stands_still_holds_no_search_to_its_deadline() {
    // Without hedges, nothing but the node's health can end a read that it does not answer.
    let (mut mesh, clients) = loaded(Plan::of(3, 2).env("MIROIR_SEARCH__HEDGE", "false"));
    let expected = Expected::of(&clients[0]);
    for node in [1, 2] {
        mesh.node(node).pause();
        std::thread::scope(|scope| {
            for (i, expected) in expected.iter().cycle().take(24).enumerate() {
                let client = &clients[i % 2];
                scope.spawn(move || {
                    let began = Instant::now();
                    assert_eq!(expected.fault(client), None);
                    // A search may take 30 s.
                    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
                });
            }
        });
        mesh.node(node).resume();
        mesh.wait_whole();
    }
}

#[test]
fn with_two_groups_every_document_counts_once_and_a_killed_member_fails_no_search() {
    for sizes in [&[2, 2][..], &[2, 1]] {
        let (mut mesh, clients) = loaded(Plan::groups(sizes));
        assert_counts(&mesh, SAMPLE_SIZE);
        let expected = Expected::of(&clients[1]);
        let last = clients.len() - 1;
        Load::during(&expected, &clients[..last], |_| mesh.sidecar(last).kill());
        wait_unserved(&mesh, 0, last);
        let libs = clients[0].search("packages", &json!({"filter": "section = libs", "hitsPerPage": 1})).expect(200);
        let task = clients[0].done("POST", "/indexes/packages/documents/delete", &json!({"filter": "section = libs"}));
        assert_eq!(task["details"]["deletedDocuments"], libs["totalHits"], "{task}");
        mesh.start_sidecar(last);
        mesh.wait_whole();
        assert_counts(&mesh, SAMPLE_SIZE - libs["totalHits"].as_u64().unwrap());
    }
}

#[test]
fn with_one_copy_a_killed_member_makes_answers_partial_or_errors_and_all_killed_come_back() {
    let (mut mesh, clients) = loaded(Plan::of(3, 1));
    mesh.sidecar(1).kill();
    mesh.plan.env.push(("MIROIR_SEARCH__UNAVAILABLE_SHARD_POLICY", "error"));
    mesh.start_sidecar(1);
    mesh.wait_whole();
    mesh.plan.env.clear();
    assert_counts(&mesh, SAMPLE_SIZE);
    let topology = mesh.topology(0);
    let task = clients[2].done("POST", "/indexes/packages/documents", &json!([common::sample()[5]]));

    mesh.sidecar(2).kill();
    wait_unserved(&mesh, 0, 2);
    wait_unserved(&mesh, 1, 2);
    let shards = topology["indexes"][0]["shards"].as_array().unwrap();
    let lost: Vec<String> =
        (0..).zip(shards).filter(|(_, on)| **on == json!(["m3"])).map(|(s, _): (usize, _)| s.to_string()).collect();
    assert!(!lost.is_empty(), "{topology}");
    for _ in 0..20 {
        let answer = clients[0].search("packages", &json!({"hitsPerPage": 5, "facets": ["section"]}));
        assert_eq!(answer.header("x-miroir-degraded"), Some(&*format!("shards={}", lost.join(","))));
        let found = answer.expect(200);
        assert!(found["remoteErrors"].as_object().is_some_and(|e| !e.is_empty()), "{}", found["remoteErrors"]);
        let total = found["totalHits"].as_u64().unwrap();
        assert!(total > 0 && total < SAMPLE_SIZE && sum(&found) == total, "{total}");
        clients[1].search("packages", &json!({"q": "library"})).expect_error(503, "miroir_shards_unavailable");
    }
    let (taken, refused) = assert_writes_are_whole_or_refused(&clients[0], "partial");
    assert!(taken > 0 && refused > 0);
    let added = taken;

    for i in 0..2 {
        mesh.sidecar(i).kill();
    }
    for i in 0..3 {
        mesh.node(i).kill();
    }
    for i in (0..3).rev() {
        mesh.start_node(i);
    }
    for i in (0..3).rev() {
        mesh.start_sidecar(i);
    }
    mesh.wait_whole();
    assert_counts(&mesh, SAMPLE_SIZE + added);
    for (i, client) in clients.iter().enumerate() {
        assert_eq!(mesh.topology(i)["indexes"], topology["indexes"]);
        assert_eq!(client.get(&format!("/tasks/{}", task["uid"])).expect(200), task);
        let settings = client.get("/indexes/packages/settings").expect(200);
        assert_eq!(settings["sortableAttributes"].as_array().unwrap().len(), 3);
    }
    let next = clients[2].done("POST", "/indexes/packages/documents", &json!([common::sample()[5]]));
    assert!(next["uid"].as_u64() > task["uid"].as_u64(), "no task id is given twice: {next} {task}");
}

#[test]
fn a_node_that_comes_back_empty_is_asked_for_nothing_until_it_has_everything_again() {
    let (mut mesh, clients) = loaded(Plan::of(3, 2));
    let expected = Expected::of(&clients[0]);
    mesh.node(2).kill();
    (0..3).for_each(|at| wait_node_down(&mesh, at, 2));
    std::fs::remove_dir_all(mesh.members[2].dir.join("node/data.ms")).unwrap();
    mesh.start_node(2);
    // With two copies nothing is missing, and nobody asks the empty node before it is whole.
    Load::during(&expected, &clients, |load| {
        (0..3).for_each(|at| mesh.wait_seen("the node to be back", at, |m| m["serving"] == true));
        load.more(SEARCHES);
        mesh.wait_whole();
        load.more(SEARCHES);
    });
    // What it holds now stands alone for what another member held, too.
    Load::during(&expected, &[clients[0].clone(), clients[2].clone()], |_| mesh.node(1).kill());
    mesh.start_node(1);
    mesh.wait_whole();
    let taken = assert_writes_are_done(&clients[2], "after");
    assert_counts(&mesh, SAMPLE_SIZE + taken);
}
