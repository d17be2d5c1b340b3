//! Who orders each shard's writes, with real processes: elected once an index is made, again when a primary is killed,
//! stopped or ended, and never two.
//!
//! Bounds are twice what is promised, because tests share their machine with others.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use common::{Engine, Mesh, Plan, say, wait_until};
use miroir::ctl::{self, ClientError, ShardCommand, Target};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(40);
/// Twice the time within which a killed primary has a successor.
const FAILOVER: Duration = Duration::from_secs(2 * 2);
/// The same where its host just falls silent.
const SILENT_FAILOVER: Duration = Duration::from_secs(2 * 5);

/// Three members with two copies of each of 16 shards, and one index.
fn mesh() -> Mesh {
    let mesh = Mesh::start(Plan { engine: Engine::StandIn, ..Plan::of(3, 2) });
    mesh.client(0).done("POST", "/indexes", &json!({"uid": "books"}));
    wait_until("a primary of every shard", PATIENCE, || is_led(&mesh, 1, &[0, 1, 2]));
    mesh
}

fn shards(mesh: &Mesh, i: usize) -> Vec<Value> {
    let index = mesh.admin(i).get("/_miroir/indexes/books").expect(200);
    index["shards"].as_array().unwrap_or_else(|| panic!("no shards in {index}")).clone()
}

fn primaries(shards: &[Value]) -> Vec<Option<String>> {
    shards.iter().map(|shard| shard["primary"].as_str().map(str::to_owned)).collect()
}

/// Whether every shard has a primary that says so itself, one of these members, as member `i` sees it.
fn is_led(mesh: &Mesh, i: usize, among: &[usize]) -> bool {
    let among: Vec<&str> = among.iter().map(|i| mesh.members[*i].id.as_str()).collect();
    let led = |shard: &Value| {
        let leads = |copy: &&Value| copy["leads"] == true && copy["committed"] == copy["last"];
        let leads: Vec<&Value> = shard["replicas"].as_array().unwrap().iter().filter(leads).collect();
        // Not two, whatever the record says.
        let one = matches!(leads[..], [copy] if copy["member"] == shard["primary"]);
        one && shard["primary"].as_str().is_some_and(|member| among.contains(&member))
    };
    let shards = shards(mesh, i);
    shards.len() == 16 && shards.iter().all(led)
}

/// Whether all copies are in sync and have everything, as member `i` sees it.
fn is_whole(mesh: &Mesh, i: usize) -> bool {
    let sound = |copy: &Value| copy["inSync"] == true && copy["lag"] == 0 && copy["rebuild"] == false;
    shards(mesh, i).iter().all(|shard| shard["replicas"].as_array().unwrap().iter().all(sound))
}

/// Waits until the others lead all shards, and says how long that took.
fn wait_taken_over(mesh: &Mesh, gone: usize, bound: Duration, what: &str) {
    let others: Vec<usize> = (0..3).filter(|i| *i != gone).collect();
    let began = Instant::now();
    wait_until(what, bound, || is_led(mesh, others[0], &others));
    say(&format!("{what}: {} ms", began.elapsed().as_millis()));
}

#[test]
fn every_shard_of_a_new_index_has_a_primary_and_they_are_spread() {
    let mesh = mesh();
    // Preferred primaries that were not seen at the first election return one after the other.
    wait_until("primaries at all members", PATIENCE, || {
        let of: Vec<String> = primaries(&shards(&mesh, 0)).into_iter().flatten().collect();
        of.len() == 16 && of.iter().collect::<BTreeSet<_>>().len() == 3
    });
    wait_until("all copies in sync", PATIENCE, || is_whole(&mesh, 2));
    let all = mesh.admin(1).get("/_miroir/indexes").expect(200);
    let books = &all["indexes"][0];
    assert_eq!((&books["uid"], &books["shards"], &books["copies"]), (&json!("books"), &json!(16), &json!(2)));
    assert_eq!((&books["withoutPrimary"], &books["notInSync"]), (&json!(0), &json!(0)));
    mesh.admin(0).get("/_miroir/indexes/none").expect_error(404, "index_not_found");
    mesh.client(2).done("DELETE", "/indexes/books", &Value::Null);
    assert_eq!(mesh.admin(0).get("/_miroir/indexes").expect(200), json!({"indexes": []}));
}

#[test]
fn a_killed_stopped_or_ended_primary_is_replaced_and_comes_back_in_sync() {
    let mut mesh = mesh();
    mesh.sidecar(0).kill();
    wait_taken_over(&mesh, 0, FAILOVER, "primaries of a killed member");
    mesh.start_sidecar(0);
    mesh.wait_whole();
    wait_until("the killed member in sync", PATIENCE, || is_whole(&mesh, 1));

    mesh.sidecar(1).pause();
    wait_taken_over(&mesh, 1, SILENT_FAILOVER, "primaries of a stopped member");
    mesh.sidecar(1).resume();
    wait_until("the stopped member in sync", PATIENCE, || is_whole(&mesh, 1) && is_led(&mesh, 1, &[0, 1, 2]));

    mesh.sidecar(2).terminate();
    mesh.sidecar(2).wait_exit(PATIENCE);
    wait_taken_over(&mesh, 2, FAILOVER, "primaries of a member that ended");
    mesh.start_sidecar(2);
    mesh.wait_whole();
    wait_until("the ended member in sync", PATIENCE, || is_whole(&mesh, 0));
}

#[test]
fn all_members_killed_at_once_lead_again() {
    let mut mesh = mesh();
    for i in 0..3 {
        mesh.sidecar(i).kill();
    }
    for i in 0..3 {
        mesh.start_sidecar(i);
    }
    mesh.wait_whole();
    wait_until("a primary of every shard", PATIENCE, || is_led(&mesh, 0, &[0, 1, 2]) && is_whole(&mesh, 0));
}

/// What `miroir-ctl shard elect --all` says, asked of member 2.
fn elect_all(mesh: &Mesh, index: &str, to: usize, accept_data_loss: bool) -> Result<String, ClientError> {
    let target = Target {
        url: Some(format!("http://{}", mesh.members[2].http)),
        config: None,
        admin_key_file: Some(mesh.members[2].dir.join("admin.key")),
        json: false,
        timeout_s: 60,
    };
    let to = mesh.members[to].id.clone();
    let order = ShardCommand::Elect { index: index.into(), shard: None, all: true, to, accept_data_loss };
    ctl::shard(&ctl::Client::new(&target)?, &order, false)
}

/// The members that hold a shard, and those of them who are in sync.
fn holders(shard: &Value) -> (BTreeSet<&str>, BTreeSet<&str>) {
    let mut holders = (BTreeSet::new(), BTreeSet::new());
    for copy in shard["replicas"].as_array().unwrap() {
        let member = copy["member"].as_str().unwrap();
        holders.0.insert(member);
        if copy["inSync"] == true {
            holders.1.insert(member);
        }
    }
    holders
}

/// The numbers of the shards that only the first two members hold.
fn of_the_first_two(mesh: &Mesh) -> Vec<u64> {
    let shards = shards(mesh, 2);
    let only = |shard: &&Value| holders(shard).0 == ["m1", "m2"].into();
    let all: Vec<u64> = shards.iter().filter(only).map(|shard| shard["shard"].as_u64().unwrap()).collect();
    assert!(!all.is_empty() && all.len() < 16);
    all
}

fn documents(ids: std::ops::Range<u64>, text: &str) -> Value {
    ids.map(|id| json!({"id": id, "text": format!("{text} {id}")})).collect()
}

/// The documents of the index, as a client sees them at member `i`.
fn found(mesh: &Mesh, i: usize) -> BTreeMap<u64, String> {
    let all = mesh.client(i).get("/indexes/books/documents?limit=1000").expect(200);
    let one = |d: &Value| (d["id"].as_u64().unwrap(), d["text"].as_str().unwrap().to_owned());
    all["results"].as_array().unwrap().iter().map(one).collect()
}

/// The documents on a member's node, by shard and id.
fn on_node(mesh: &Mesh, i: usize) -> BTreeMap<String, BTreeMap<u64, Value>> {
    let index = mesh.admin(2).get("/_miroir/indexes/books").expect(200);
    let path = format!("/indexes/{}/documents?limit=1000", index["physical"].as_str().unwrap());
    let mut all: BTreeMap<String, BTreeMap<u64, Value>> = BTreeMap::new();
    for document in mesh.node_client(i).get(&path).expect(200)["results"].as_array().unwrap() {
        let shard = document["_miroir_shard"].as_str().unwrap().to_owned();
        all.entry(shard).or_default().insert(document["id"].as_u64().unwrap(), document.clone());
    }
    all
}

/// Every shard has two copies on the nodes, and they are equal.
fn assert_equal_copies(mesh: &Mesh) {
    let all: Vec<_> = (0..3).map(|i| on_node(mesh, i)).collect();
    let mut by_shard: BTreeMap<&String, Vec<_>> = BTreeMap::new();
    all.iter().flatten().for_each(|(shard, documents)| by_shard.entry(shard).or_default().push(documents));
    for (shard, copies) in by_shard {
        assert_eq!(copies.len(), 2, "{shard:?}");
        assert_eq!(copies[0], copies[1], "{shard:?}");
    }
}

/// Whether all is in sync, applied and served.
fn is_settled(mesh: &Mesh) -> bool {
    let level = |copy: &Value| copy["applied"] == copy["last"];
    let shards = shards(mesh, 2);
    is_whole(mesh, 2) && shards.iter().flat_map(|s| s["replicas"].as_array().unwrap()).all(level)
}

/// Whether a write of these documents is refused because nothing can be done.
fn is_refused(mesh: &Mesh, documents: &Value) -> bool {
    let answer = mesh.client(2).json("POST", "/indexes/books/documents", documents);
    answer.status == 503 && answer.json()["code"] == "miroir_no_quorum"
}

#[test]
fn a_copy_that_is_not_in_sync_is_elected_only_by_an_operator_who_accepts_the_loss() {
    let mut mesh = mesh();
    mesh.client(2).done("POST", "/indexes/books/documents", &documents(0..200, "kept"));
    wait_until("all copies level", PATIENCE, || is_settled(&mesh));
    let both = of_the_first_two(&mesh);
    mesh.sidecar(1).kill();
    mesh.client(2).done("POST", "/indexes/books/documents", &documents(200..300, "lost"));
    wait_until("the second out of all sets", PATIENCE, || {
        shards(&mesh, 2).iter().all(|shard| !holders(shard).1.contains("m2"))
    });
    let before = found(&mesh, 2);
    assert_eq!(before.len(), 300);

    // The first is gone for good, and the second was not in sync.
    mesh.sidecar(0).kill();
    mesh.start_sidecar(1);
    mesh.wait_seen("the second", 2, |m| m["id"] == "m1" || m["state"] == "active");
    wait_until("primaries where somebody in sync lives", PATIENCE, || {
        shards(&mesh, 2).iter().all(|shard| {
            let led = shard["replicas"].as_array().unwrap().iter().any(|copy| copy["leads"] == true);
            led != both.contains(&shard["shard"].as_u64().unwrap())
        })
    });
    assert!(is_refused(&mesh, &documents(300..400, "new")));
    let refused = mesh.admin(2).json(
        "POST",
        &format!("/_miroir/indexes/books/shards/{}/elect", both[0]),
        &json!({"member": "m2"}),
    );
    let message = refused.expect_error(409, "miroir_mesh_state")["message"].as_str().unwrap().to_owned();
    assert!(message.contains("not in sync") && message.contains("--accept-data-loss"), "{message}");
    let failed = elect_all(&mesh, "books", 1, false).unwrap_err().to_string();
    assert_eq!(failed, format!("{0} of {0} orders were refused", both.len()));
    assert!(is_refused(&mesh, &documents(300..400, "new")));

    let text = elect_all(&mesh, "books", 1, true).unwrap();
    say(&text);
    assert_eq!(text.matches("LOSS ACCEPTED: everything behind entry").count(), both.len(), "{text}");
    let log = mesh.sidecar(2).log();
    assert!(log.contains("an operator has ordered a primary"), "it is logged");
    // What keeps tasks has three copies, at least two of them in sync: one of those is gone, and the other has everything.
    let text = elect_all(&mesh, "_miroir_tasks", 2, true).unwrap();
    assert!(!text.contains("LOSS ACCEPTED"), "{text}");
    say(&text);
    wait_until("writes", PATIENCE, || !is_refused(&mesh, &documents(300..400, "new")));
    mesh.client(2).done("POST", "/indexes/books/documents", &documents(300..400, "new"));
    assert!(elect_all(&mesh, "books", 1, true).unwrap().contains("has a primary"));
    let after = found(&mesh, 2);
    assert!((0..200).chain(300..400).all(|id| after.contains_key(&id)));
    let lost: Vec<u64> = before.keys().filter(|id| !after.contains_key(id)).copied().collect();
    assert!(!lost.is_empty() && lost.iter().all(|id| (200..300).contains(id)), "{lost:?}");

    // Who comes back has documents that were given up.
    let extra = on_node(&mesh, 0);
    assert!(extra.values().any(|of| lost.iter().any(|id| of.contains_key(id))));
    mesh.start_sidecar(0);
    mesh.wait_whole();
    wait_until("all copies level", PATIENCE, || is_settled(&mesh));
    assert_equal_copies(&mesh);
    assert_eq!(found(&mesh, 0), after);
    mesh.client(0).done("POST", "/indexes/books/documents", &documents(400..500, "newer"));
    let bad = |path: &str, order: &Value, status, code| {
        mesh.admin(2).json("POST", &format!("/_miroir/indexes/{path}/elect"), order).expect_error(status, code);
    };
    bad("none/shards/0", &json!({"member": "m1"}), 404, "index_not_found");
    bad("books/shards/16", &json!({"member": "m1"}), 400, "bad_request");
    bad("books/shards/x", &json!({"member": "m1"}), 400, "bad_request");
    bad("books/shards/0", &json!({}), 400, "bad_request");
    bad("books/shards/0", &json!({"member": "m9"}), 409, "miroir_mesh_state");
}

#[test]
fn a_member_whose_store_was_lost_goes_on_with_what_its_node_has_on_an_operators_order() {
    let mut mesh = mesh();
    wait_until("all copies level", PATIENCE, || is_settled(&mesh));
    mesh.sidecar(1).kill();
    mesh.client(2).done("POST", "/indexes/books/documents", &documents(0..200, "kept"));
    wait_until("the second out of all sets", PATIENCE, || {
        shards(&mesh, 2).iter().all(|shard| !holders(shard).1.contains("m2"))
    });
    let both = of_the_first_two(&mesh);
    let before = found(&mesh, 2);
    assert_eq!(before.len(), 200);

    // The only one that had everything loses its store; its node has the documents.
    mesh.sidecar(0).kill();
    std::fs::remove_dir_all(mesh.members[0].dir.join("store")).unwrap();
    mesh.start_sidecar(0);
    mesh.start_sidecar(1);
    let led = |shard: &Value| shard["replicas"].as_array().unwrap().iter().any(|copy| copy["leads"] == true);
    wait_until("primaries of all other shards", PATIENCE, || {
        shards(&mesh, 2).iter().all(|s| led(s) != both.contains(&s["shard"].as_u64().unwrap()))
    });
    let refused = mesh.client(2).json("POST", "/indexes/books/documents", &documents(200..300, "new"));
    assert!(refused.status >= 500, "{}: {}", refused.status, refused.text());
    wait_until("the loss accepted", PATIENCE, || match elect_all(&mesh, "books", 0, true) {
        Ok(text) => text.contains("has a primary"),
        // Its new store is not known everywhere at once.
        Err(ClientError::Failed(_)) => false,
        Err(error) => panic!("{error}"),
    });
    wait_until("all copies level", PATIENCE, || is_settled(&mesh));
    mesh.client(2).done("POST", "/indexes/books/documents", &documents(200..300, "new"));
    for i in 0..3 {
        wait_until("all documents", PATIENCE, || found(&mesh, i).len() == 300);
        let after = found(&mesh, i);
        assert!(before.iter().all(|(id, text)| after.get(id) == Some(text)));
    }
    wait_until("all copies level", PATIENCE, || is_settled(&mesh));
    assert_equal_copies(&mesh);
}
