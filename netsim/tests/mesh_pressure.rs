//! Nodes that answer and index nothing, with real processes: clients are refused before journals and memory grow without
//! bound, nothing acknowledged is lost, and writes go on by themselves.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Client, Engine, Mesh, Plan, say, wait_until};
use netsim::heard::{Attempt, End, judge};
use serde_json::{Value, json};

const ALL: [usize; 3] = [0, 1, 2];
const PATIENCE: Duration = Duration::from_secs(90);
const SHARDS: usize = 256;
/// Nearly every shard has one.
const DOCUMENTS: u64 = 1_000;
/// So many entries of shards that it leads a member's node may be behind.
const BEHIND: u64 = 10_000;
/// What a sidecar may take for entries that wait: few of them are in memory.
const GROWTH_MIB: u64 = 150;

/// All nodes keep their tasks in their queues, or go on with them.
fn stop_tasks(mesh: &Mesh, stop: bool) {
    for i in ALL {
        mesh.node_client(i).json("POST", "/_standin/knobs", &json!({ "stop_tasks": stop })).expect(200);
    }
}

/// The documents of shards that the first member leads, and how many shards these are: entries of one member count most.
fn led_by_first(mesh: &Mesh) -> (BTreeSet<u64>, usize) {
    let index = mesh.admin(0).get("/_miroir/indexes/books").expect(200);
    let shards = index["shards"].as_array().unwrap();
    let path = format!("/indexes/{}/documents?limit=10000", index["physical"].as_str().unwrap());
    let (mut ids, mut of) = (BTreeSet::new(), BTreeSet::new());
    // A primary has a copy on its own node.
    for document in mesh.node_client(0).get(&path).expect(200)["results"].as_array().unwrap() {
        let mark = document["_miroir_shard"].as_str().and_then(|s| s.chars().next()).unwrap();
        let shard = (u32::from(mark) - 0xa000) as usize;
        if shards[shard]["primary"] == mesh.members[0].id {
            ids.insert(document["id"].as_u64().unwrap());
            of.insert(shard);
        }
    }
    (ids, of.len())
}

/// One write of these documents, with a number in a field of the client's own.
fn put(client: &Client, who: usize, number: u64, ids: &BTreeSet<u64>) -> Attempt {
    let (ids, field) = (ids.clone(), format!("c{who}"));
    let documents: Value = ids.iter().map(|id| json!({"id": id, &*field: number})).collect();
    let sent = Instant::now();
    let answer = client.json("PUT", "/indexes/books/documents", &documents);
    let end = match answer.status {
        202 => End::Taken(answer.json()["taskUid"].as_u64().unwrap()),
        504 => End::Unknown(answer.json()["taskUid"].as_u64()),
        _ => {
            answer.expect_error(503, "miroir_no_quorum");
            let after = answer.header("retry-after").map(|seconds| seconds.parse::<u64>().unwrap());
            assert!(after.is_some_and(|seconds| seconds > 0), "{:?}", answer.headers);
            End::Refused(answer.json()["message"].to_string())
        }
    };
    Attempt { client: who, number, ids, at: who, sent, ended: Instant::now(), end }
}

/// Refused because nodes have too much to do.
fn is_for_pressure(attempt: &Attempt) -> bool {
    matches!(&attempt.end, End::Refused(why) if why.contains("index more slowly"))
}

/// The gauge of indexes for which a member's node has too much to do.
fn pressed(mesh: &Mesh, i: usize) -> u64 {
    let text = Client::at(mesh.members[i].metrics).get("/metrics").body;
    let text = String::from_utf8(text).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix("miroir_indexes_pressed "));
    value.unwrap_or_else(|| panic!("no such series in {text}")).parse().unwrap()
}

#[test]
fn writers_are_refused_while_nodes_stand_still_and_go_on_when_they_do() {
    let mut mesh = Mesh::start(Plan { engine: Engine::StandIn, shards: SHARDS, ..Plan::of(3, 2) });
    let client = mesh.client(0);
    client.done("POST", "/indexes", &json!({"uid": "books", "primaryKey": "id"}));
    client.done("PUT", "/indexes/books/documents", &(0..DOCUMENTS).map(|id| json!({ "id": id })).collect());
    let (ids, shards) = led_by_first(&mesh);
    assert!(shards > SHARDS / 6, "only {shards} shards are led by the first of three");
    let before = ALL.map(|i| mesh.sidecar(i).rss_mib());
    stop_tasks(&mesh, true);

    let (heard, stop, taken) = (Mutex::new(Vec::new()), AtomicBool::new(false), AtomicU64::new(0));
    let refused_at: [AtomicU64; 3] = Default::default();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for i in ALL {
            let (client, heard, stop, taken, refused) = (mesh.client(i), &heard, &stop, &taken, &refused_at[i]);
            let ids = &ids;
            scope.spawn(move || {
                for number in (1..).take_while(|_| !stop.load(Ordering::SeqCst)) {
                    let attempt = put(&client, i, number, ids);
                    taken.fetch_add(u64::from(attempt.is_taken()), Ordering::SeqCst);
                    refused.fetch_add(u64::from(is_for_pressure(&attempt)), Ordering::SeqCst);
                    heard.lock().unwrap().push(attempt);
                }
            });
        }
        let ended = Ended(&stop);
        let are_refused = |more: u64| {
            let from = refused_at.each_ref().map(|n| n.load(Ordering::SeqCst));
            wait_until("every client to be refused", PATIENCE, || {
                refused_at.iter().zip(from).all(|(n, from)| n.load(Ordering::SeqCst) >= from + more)
            });
        };
        are_refused(1);
        say(&format!("refused after {} writes, {} ms", taken.load(Ordering::SeqCst), began.elapsed().as_millis()));
        // And not only at first.
        are_refused(5);
        let grown = taken.load(Ordering::SeqCst);
        assert!(ALL.iter().any(|i| pressed(&mesh, *i) == 1), "no member says that its node has too much to do");
        // Each write has an entry for each of the shards; others hear of it a moment after it is too much: twice that.
        let most = 2 * BEHIND / shards as u64;
        assert!(grown <= most, "{grown} writes were taken, of {most} that may wait");
        let after = ALL.map(|i| mesh.members[i].sidecar.as_ref().unwrap().rss_mib());
        say(&format!("MiB of sidecars: {before:?}, then {after:?}"));
        assert!(after.iter().zip(before).all(|(after, before)| *after <= before + GROWTH_MIB), "{before:?}, {after:?}");

        stop_tasks(&mesh, false);
        let back = Instant::now();
        wait_until("writes to go on", PATIENCE, || taken.load(Ordering::SeqCst) >= grown + 10);
        say(&format!("writes go on after {} ms", back.elapsed().as_millis()));
        drop(ended);
    });

    let heard = heard.into_inner().unwrap();
    for attempt in &heard {
        if let End::Taken(uid) = attempt.end {
            let mut task = Value::Null;
            wait_until("a task to end", PATIENCE, || {
                task = client.get(&format!("/tasks/{uid}")).expect(200);
                task["status"] != "enqueued" && task["status"] != "processing"
            });
            assert_eq!(task["status"], "succeeded", "{task}");
        }
    }
    let page = mesh.client(1).get("/indexes/books/documents?limit=10000").expect(200);
    let documents: BTreeMap<u64, &Value> =
        page["results"].as_array().unwrap().iter().map(|d| (d["id"].as_u64().unwrap(), d)).collect();
    assert_eq!(documents.len() as u64, DOCUMENTS);
    let sound = judge(&heard, |id, client| documents.get(&id)?[format!("c{client}")].as_u64());
    sound.unwrap_or_else(|faults| panic!("{} are wrong, first: {}", faults.len(), faults[0]));
    wait_until("no member to have too much to do", PATIENCE, || ALL.iter().all(|i| pressed(&mesh, *i) == 0));
}

/// Ends the writers, also if what goes on beside them fails.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
