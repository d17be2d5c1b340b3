//! Operations with real processes: aliases flipped while they are used, leaders killed in the middle, stale orders refused.

mod common;
#[path = "../src/live/forged.rs"]
mod forged;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{ADMIN_KEY, Client, Dice, Engine, Mesh, Plan, say, wait_until};
use miroir::ctl::{self, OperationsCommand, Target};
use miroir::net::CallError;
use miroir::wire::verbs::Refusal;
use serde_json::{Value, json};

const TTL: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(60);
const ALIAS: &str = "/_miroir/aliases/live";

fn plan(members: usize, rf: usize) -> Plan {
    Plan::of(members, rf)
        .env("MIROIR_LEADER_ELECTION__LEASE_TTL_S", "3")
        .env("MIROIR_LEADER_ELECTION__RENEW_INTERVAL_S", "1")
}

/// Indexes `one` and `two`, each with a hundred documents that say which index they are of, and the alias `live` of `one`.
fn with_alias(plan: Plan) -> Mesh {
    let mesh = Mesh::start(plan);
    let client = mesh.client(0);
    for index in ["one", "two"] {
        client.done("POST", "/indexes", &json!({"uid": index, "primaryKey": "id"}));
        let documents: Vec<Value> = (0..100).map(|id| json!({"id": id, "of": index})).collect();
        client.done("POST", &format!("/indexes/{index}/documents"), &json!(documents));
    }
    mesh.admin(mesh.members.len() - 1)
        .json("POST", "/_miroir/aliases", &json!({"name": "live", "index": "one"}))
        .expect(201);
    mesh
}

fn flip(mesh: &Mesh, i: usize, to: &str) -> String {
    let begun = mesh.admin(i).json("PUT", ALIAS, &json!({"index": to})).expect(202);
    begun["operation"].as_str().unwrap_or_else(|| panic!("no operation in {begun}")).to_owned()
}

fn operation(mesh: &Mesh, i: usize, id: &str) -> Value {
    let answer = mesh.admin(i).try_call("GET", &format!("/_miroir/operations/{id}"), &[], b"");
    answer.map(|a| a.json()).unwrap_or_default()
}

fn wait_done(mesh: &Mesh, i: usize, id: &str) -> Value {
    wait_until("an operation to be done", PATIENCE, || {
        let op = operation(mesh, i, id);
        assert!(!matches!(op["state"].as_str(), Some("failed" | "cancelled")), "{op}");
        op["state"] == "done"
    });
    operation(mesh, i, id)
}

fn phases(op: &Value) -> Vec<&str> {
    op["history"].as_array().into_iter().flatten().filter_map(|h| h["phase"].as_str()).collect()
}

/// Which index the hits of an answer are of; all of the same.
fn source(answer: &Value, hits: &str) -> String {
    let of = |hit: &Value| hit["of"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
    let found: Vec<String> = answer[hits].as_array().unwrap_or_else(|| panic!("{answer}")).iter().map(of).collect();
    assert!(!found.is_empty() && found.iter().all(|f| *f == found[0]), "hits of two indexes in one answer: {answer}");
    found[0].clone()
}

fn searched(client: &Client) -> String {
    source(&client.search("live", &json!({"q": "", "limit": 100})).expect(200), "hits")
}

#[test]
fn an_alias_is_accepted_wherever_an_index_is() {
    let mesh = with_alias(plan(3, 2));
    for i in 0..3 {
        let client = mesh.client(i);
        assert_eq!(searched(&client), "one");
        assert_eq!(client.get("/indexes/live/search?q=&limit=5").expect(200)["hits"].as_array().unwrap().len(), 5);
        let multi = json!({"queries": [{"indexUid": "live", "q": ""}, {"indexUid": "two", "q": ""}]});
        let multi = client.json("POST", "/multi-search", &multi).expect(200);
        assert_eq!(
            (source(&multi["results"][0], "hits"), source(&multi["results"][1], "hits")),
            ("one".into(), "two".into())
        );
        assert_eq!(multi["results"][0]["indexUid"], "live", "results are named as they were asked for");
        assert_eq!(source(&client.get("/indexes/live/documents?limit=50").expect(200), "results"), "one");
        let fetched = client.json("POST", "/indexes/live/documents/fetch", &json!({"limit": 7})).expect(200);
        assert_eq!(source(&fetched, "results"), "one");
        assert_eq!(client.get("/indexes/live/documents/3").expect(200)["of"], "one");
        let index = client.get("/indexes/live").expect(200);
        assert_eq!((&index["uid"], &index["primaryKey"]), (&json!("live"), &json!("id")));
        assert_eq!(client.get("/indexes/live/stats").expect(200)["numberOfDocuments"], 100);
        client.get("/indexes/live/settings").expect(200);
    }
    let client = mesh.client(2);
    let filterable = json!({"filterableAttributes": ["of"]});
    let task = client.done("PATCH", "/indexes/live/settings", &filterable);
    assert_eq!(task["indexUid"], "one", "a task names the index that it changed");
    // The stand-in has no facet search.
    if Engine::found().is_real() {
        let facet = json!({"facetName": "of", "facetQuery": "o"});
        let facets = mesh.client(0).json("POST", "/indexes/live/facet-search", &facet).expect(200);
        assert_eq!(facets["facetHits"][0]["count"], 100, "{facets}");
    }
    client.done("POST", "/indexes/live/documents", &json!([{"id": 100, "of": "one"}, {"id": 101, "of": "one"}]));
    client.done("PUT", "/indexes/live/documents", &json!([{"id": 100, "more": true}]));
    assert_eq!(client.get("/indexes/one/documents/100").expect(200)["more"], true);
    client.done("DELETE", "/indexes/live/documents/100", &Value::Null);
    client.done("POST", "/indexes/live/documents/delete-batch", &json!([101, 102]));
    client.done("POST", "/indexes/live/documents/delete", &json!({"filter": "of = none"}));
    assert_eq!(client.get("/indexes/one/stats").expect(200)["numberOfDocuments"], 100);
    client.done("DELETE", "/indexes/live/documents", &Value::Null);
    assert_eq!(client.get("/indexes/one/stats").expect(200)["numberOfDocuments"], 0);
    assert_eq!(client.get("/indexes/two/stats").expect(200)["numberOfDocuments"], 100);
    // Lists show each index once.
    assert_eq!(client.get("/indexes").expect(200)["total"], 2);
    assert!(client.get("/stats").expect(200)["indexes"]["live"].is_null());
}

#[test]
fn a_name_is_an_index_or_an_alias_and_an_index_in_use_stays() {
    let mesh = with_alias(Plan { engine: Engine::StandIn, ..plan(3, 1) });
    let (client, admin) = (mesh.client(0), mesh.admin(2));
    let denied = Client { key: Some(format!("not {ADMIN_KEY}")), ..Client::at(mesh.members[0].http) };
    denied.get("/_miroir/aliases").expect_error(403, "invalid_api_key");
    denied.get("/_miroir/operations").expect_error(403, "invalid_api_key");
    let post = |body: &Value| admin.json("POST", "/_miroir/aliases", body);
    post(&json!({"name": "live", "index": "two"})).expect_error(409, "miroir_alias_conflict");
    post(&json!({"name": "two", "index": "one"})).expect_error(409, "miroir_alias_conflict");
    post(&json!({"name": "x", "index": "live"})).expect_error(409, "miroir_alias_conflict");
    post(&json!({"name": "x", "index": "none"})).expect_error(404, "index_not_found");
    post(&json!({"name": "x y", "index": "one"})).expect_error(400, "invalid_index_uid");
    post(&json!({"index": "one"})).expect_error(400, "bad_request");
    admin.json("PUT", ALIAS, &json!({"index": "none"})).expect_error(404, "index_not_found");
    admin.json("PUT", ALIAS, &json!({"index": "live"})).expect_error(409, "miroir_alias_conflict");
    admin.json("PUT", ALIAS, &json!({"index": "one"})).expect(200);
    admin.get("/_miroir/aliases/none").expect_error(404, "miroir_alias_not_found");
    admin.get("/_miroir/operations/none").expect_error(404, "miroir_operation_not_found");
    admin.json("POST", "/_miroir/operations/none/cancel", &json!({})).expect_error(404, "miroir_operation_not_found");
    admin.json("POST", "/_miroir/operations/none/stop", &json!({})).expect_error(400, "bad_request");

    let task = client.finished(&client.json("POST", "/indexes", &json!({"uid": "live"})));
    assert_eq!((&task["status"], &task["error"]["code"]), (&json!("failed"), &json!("index_already_exists")), "{task}");
    assert!(task["error"]["message"].as_str().unwrap().contains("alias"), "{task}");
    client.call("DELETE", "/indexes/live", &[], b"").expect_error(409, "miroir_alias_conflict");
    client.call("DELETE", "/indexes/one", &[], b"").expect_error(409, "miroir_alias_conflict");
    assert_eq!(searched(&client), "one");

    let id = flip(&mesh, 0, "two");
    wait_done(&mesh, 0, &id);
    client.done("DELETE", "/indexes/one", &Value::Null);
    wait_until("the deletion to be over", PATIENCE, || {
        (0..3).all(|i| mesh.node_client(i).get("/indexes").json()["total"] == 1)
    });
    let alias = mesh.admin(1).get(ALIAS).expect(200);
    assert_eq!((&alias["index"], &alias["history"][0]["index"]), (&json!("two"), &json!("one")));
    let late = mesh.admin(1).json("POST", &format!("/_miroir/operations/{id}/cancel"), &json!({}));
    late.expect_error(409, "miroir_operation_state");
    admin.call("DELETE", ALIAS, &[], b"").expect(204);
    admin.call("DELETE", ALIAS, &[], b"").expect_error(404, "miroir_alias_not_found");
    (0..3).for_each(|i| drop(mesh.client(i).search("live", &json!({})).expect_error(404, "index_not_found")));
    // The name is free.
    client.done("POST", "/indexes", &json!({"uid": "live"}));
}

#[test]
fn flips_under_load_fail_no_request_and_are_seen_everywhere_once_confirmed() {
    let mesh = with_alias(plan(3, 2));
    let (stop, searches) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let searching: Vec<_> = (0..3)
        .map(|i| {
            let (client, stop, searches) = (mesh.client(i), Arc::clone(&stop), Arc::clone(&searches));
            std::thread::spawn(move || {
                let mut id = i;
                while !stop.load(Ordering::SeqCst) {
                    let searched = searched(&client);
                    assert!(searched == "one" || searched == "two");
                    client.get(&format!("/indexes/live/documents/{id}")).expect(200);
                    id = (id + 3) % 100;
                    searches.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let first = mesh.admin(0).get(ALIAS).expect(200)["version"].as_u64().unwrap();
    let mut longest = Duration::ZERO;
    for n in 0..12 {
        let (from, to) = if n % 2 == 0 { ("one", "two") } else { ("two", "one") };
        let began = Instant::now();
        let id = flip(&mesh, n % 3, to);
        let op = wait_done(&mesh, n % 3, &id);
        longest = longest.max(began.elapsed());
        assert_eq!(phases(&op), ["prepare", "flip", "confirm", "done"], "{op}");
        for i in 0..3 {
            assert_eq!(searched(&mesh.client(i)), to, "member {i} after the flip from {from} was confirmed");
            assert_eq!(mesh.admin(i).get(ALIAS).expect(200)["index"], to);
        }
    }
    stop.store(true, Ordering::SeqCst);
    for thread in searching {
        thread.join().expect("no request failed");
    }
    say(&format!("12 flips, the longest {} ms; {} searches", longest.as_millis(), searches.load(Ordering::SeqCst)));
    let alias = mesh.admin(0).get(ALIAS).expect(200);
    assert_eq!((&alias["version"], alias["history"].as_array().unwrap().len()), (&json!(first + 12), 5));
    let operations = mesh.admin(2).get("/_miroir/operations").expect(200);
    assert_eq!(operations["operations"].as_array().unwrap().len(), 12);
}

/// The member that leads the scope, as member `i` knows.
fn leader(mesh: &Mesh, i: usize, scope: &str) -> Option<usize> {
    let all = mesh.admin(i).get("/_miroir/leases").expect(200);
    let lease = all["leases"].as_array()?.iter().find(|l| l["scope"] == scope && l["expiresAt"].is_string())?;
    mesh.members.iter().position(|m| lease["holder"] == m.id)
}

fn lease_epoch(mesh: &Mesh, i: usize, scope: &str) -> u64 {
    let all = mesh.admin(i).get("/_miroir/leases").expect(200);
    let lease = all["leases"].as_array().unwrap().iter().find(|l| l["scope"] == scope);
    lease.and_then(|l| l["epoch"].as_u64()).unwrap_or_else(|| panic!("no lease of {scope} in {all}"))
}

fn counted(mesh: &Mesh, i: usize, outcome: &str) -> u64 {
    let answer = Client::at(mesh.members[i].metrics).get("/metrics");
    let series = format!("miroir_operation_orders_total{{outcome=\"{outcome}\"}} ");
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    text.lines().find_map(|l| l.strip_prefix(&series)).map_or(0, |n| n.parse().unwrap())
}

#[test]
fn a_killed_leaders_flip_goes_on_and_its_orders_are_refused() {
    let mut mesh = with_alias(Plan { engine: Engine::StandIn, ..plan(5, 1) });
    const SCOPE: &str = "alias_flip:live";
    // One that does not confirm keeps the flip in its last phase for a TTL.
    let slow = 4;
    mesh.sidecar(slow).pause();
    let (id, began) = (flip(&mesh, 0, "two"), Instant::now());
    let mut found = None;
    wait_until("a leader", PATIENCE, || {
        found = leader(&mesh, 0, SCOPE).or(found);
        operation(&mesh, 0, &id)["phase"] == "confirm" && found.is_some()
    });
    let leader = found.unwrap();
    let asked = (0..5).find(|i| *i != leader && *i != slow).unwrap();
    let op = operation(&mesh, asked, &id);
    assert_eq!(op["state"], "running", "{op} after {} ms", began.elapsed().as_millis());
    let epoch = lease_epoch(&mesh, asked, SCOPE);
    mesh.sidecar(leader).kill();
    say(&format!("the leader, member {leader}, was killed {} ms after the flip began", began.elapsed().as_millis()));
    let op = wait_done(&mesh, asked, &id);
    assert_eq!(phases(&op), ["prepare", "flip", "confirm", "unconfirmed", "done"], "{op}");
    let mut away = [leader, slow].map(|i| mesh.members[i].id.clone());
    away.sort();
    assert_eq!(op["unconfirmed"], json!(away), "who is away is named");
    let epochs: Vec<u64> = op["history"].as_array().unwrap().iter().filter_map(|h| h["epoch"].as_u64()).collect();
    assert!(epochs[3] > epoch && epochs[2] == epoch, "another leader ended what this one had begun: {epochs:?}");

    // The killed leader's last order, as if it had been on its way: nobody carries it out.
    let order = forged::confirm("live", epoch, &id).unwrap();
    let others: Vec<usize> = (0..5).filter(|i| *i != leader && *i != slow).collect();
    let before: Vec<u64> = others.iter().map(|i| counted(&mesh, *i, "stale")).collect();
    let former = &mesh.members[leader];
    let id = mesh.admin(asked).get("/_miroir/mesh").expect(200)["mesh"].as_str().unwrap().to_owned();
    let former = forged::Former { id: &former.id, dir: &former.dir, bind: former.mesh, mesh: &id };
    let to: Vec<_> = others.iter().map(|i| (&*mesh.members[*i].id, mesh.members[*i].mesh)).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let answers = runtime.block_on(forged::send(former, &to, &order)).unwrap();
    for (answer, i) in answers.into_iter().zip(&others) {
        let refused = matches!(&answer, Err(CallError::Refused { refusal: Refusal::StaleOrder(_), .. }));
        assert!(refused, "member {i}: {answer:?}");
    }
    for (i, before) in others.iter().zip(before) {
        assert_eq!(counted(&mesh, *i, "stale"), before + 1, "member {i} has counted it");
    }

    mesh.start_sidecar(leader);
    mesh.sidecar(slow).resume();
    mesh.wait_whole();
    for i in 0..5 {
        wait_until("every member to answer from the new index", PATIENCE, || searched(&mesh.client(i)) == "two");
    }
}

#[test]
fn flips_end_whenever_their_leaders_are_killed() {
    let mut mesh = with_alias(Plan { engine: Engine::StandIn, ..plan(3, 3) });
    let mut dice = Dice::new(7);
    let first = mesh.admin(0).get(ALIAS).expect(200)["version"].as_u64().unwrap();
    for n in 0..6 {
        let to = if n % 2 == 0 { "two" } else { "one" };
        let id = flip(&mesh, n % 3, to);
        std::thread::sleep(Duration::from_millis(dice.below(120) as u64));
        let killed = leader(&mesh, n % 3, "alias_flip:live").unwrap_or(dice.below(3));
        mesh.sidecar(killed).kill();
        let op = wait_done(&mesh, (killed + 1) % 3, &id);
        let mut entered = phases(&op);
        // Whether the killed one had confirmed before.
        entered.retain(|phase| *phase != "unconfirmed");
        assert_eq!(entered, ["prepare", "flip", "confirm", "done"], "each phase is entered once: {op}");
        mesh.start_sidecar(killed);
        mesh.wait_whole();
        for i in 0..3 {
            wait_until("every member to answer from the new index", PATIENCE, || searched(&mesh.client(i)) == to);
            assert_eq!(mesh.admin(i).get(ALIAS).expect(200)["version"], first + n as u64 + 1, "flipped once");
        }
    }
}

#[test]
fn an_operator_pauses_resumes_and_cancels_an_operation_and_sees_leases() {
    // Nobody leads it, so it stays where it is.
    let plan = Plan { engine: Engine::StandIn, ..plan(1, 1) };
    let mesh = with_alias(plan.env("MIROIR_LEADER_ELECTION__ENABLED", "false"));
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("admin-key");
    std::fs::write(&key, ADMIN_KEY).unwrap();
    let url = Some(format!("http://{}", mesh.members[0].http));
    let target = Target { url, config: None, admin_key_file: Some(key), json: false, timeout_s: 15 };
    let client = ctl::Client::new(&target).unwrap();
    let leases = ctl::leases(&client, false).unwrap();
    assert!(leases.lines().any(|line| line.starts_with("alive:m1") && line.ends_with("yes")), "{leases}");

    let id = flip(&mesh, 0, "two");
    let told = |command: OperationsCommand| ctl::operations(&client, Some(&command), false);
    let shown = |state: &str| {
        let all = told(OperationsCommand::List).unwrap();
        assert!(all.contains(&id) && all.contains(state), "{all}");
    };
    shown("running");
    assert!(told(OperationsCommand::Pause { id: id.clone() }).unwrap().contains("paused"));
    shown("paused");
    assert!(told(OperationsCommand::Resume { id: id.clone() }).unwrap().contains("running"));
    assert!(told(OperationsCommand::Cancel { id: id.clone() }).unwrap().contains("cancelling"));
    shown("cancelling");
    let late = told(OperationsCommand::Pause { id: id.clone() }).unwrap_err().to_string();
    assert!(late.contains("can't be done any more"), "{late}");
    let unknown = told(OperationsCommand::Cancel { id: "none".into() }).unwrap_err().to_string();
    assert!(unknown.contains("not found"), "{unknown}");
    // A change of the alias meets the operation that is under way.
    mesh.admin(0).json("DELETE", ALIAS, &Value::Null).expect_error(409, "miroir_operation_state");
}

#[test]
fn a_stale_member_resolves_no_alias_for_writing() {
    let mut mesh = with_alias(Plan { engine: Engine::StandIn, ..plan(3, 3) });
    (1..3).for_each(|i| mesh.sidecar(i).pause());
    let client = mesh.client(0);
    wait_until("stale answers", TTL * 10, || {
        let answer = client.search("live", &json!({"q": "", "limit": 1}));
        answer.header("x-miroir-degraded").is_some_and(|d| d.split("; ").any(|part| part == "stale"))
    });
    let refused = |method: &str, path: &str, body: &Value| {
        let answer = client.json(method, path, body).expect_error(503, "miroir_no_quorum");
        assert!(answer["message"].as_str().unwrap().contains("alias"), "{answer}");
    };
    refused("POST", "/indexes/live/documents", &json!([{"id": 1}]));
    refused("PUT", "/indexes/live/documents", &json!([{"id": 1}]));
    refused("POST", "/indexes/live/documents/delete-batch", &json!([1]));
    refused("POST", "/indexes/live/documents/delete", &json!({"filter": "of = one"}));
    refused("DELETE", "/indexes/live/documents/1", &json!({}));
    refused("DELETE", "/indexes/live/documents", &json!({}));
    refused("PATCH", "/indexes/live", &json!({"primaryKey": "of"}));
    refused("DELETE", "/indexes/live/settings", &json!({}));
    // Reading goes on, from what is known here.
    assert_eq!(client.get("/indexes/live/documents/3").expect(200)["of"], "one");
    mesh.admin(0).json("PUT", ALIAS, &json!({"index": "two"})).expect_error(503, "miroir_no_quorum");
    (1..3).for_each(|i| mesh.sidecar(i).resume());
    mesh.wait_whole();
    wait_until("writes through the alias", PATIENCE, || {
        client.json("POST", "/indexes/live/documents", &json!([{"id": 1, "of": "one"}])).status == 202
    });
}
