//! The mesh itself, with real processes: made once, killed as a whole, with lost and restored disks, without its majority.

mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Client, Engine, Mesh, Plan, exit_code, say, wait_until};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(40);
const SEARCH: &str = "/indexes/movies/search";

fn status(mesh: &Mesh, i: usize) -> Value {
    let answer = mesh.admin(i).try_call("GET", "/_miroir/mesh", &[], b"");
    answer.map(|a| a.json()).unwrap_or_default()
}

/// A client that does not exist at a member that is not up yet.
fn healthy(mesh: &Mesh, i: usize) -> bool {
    mesh.client(i).try_call("GET", "/health", &[], b"").is_ok_and(|a| a.status == 200)
}

fn start_sidecars(mesh: &mut Mesh, which: impl IntoIterator<Item = usize>) -> Duration {
    let began = Instant::now();
    let which: Vec<usize> = which.into_iter().collect();
    which.iter().for_each(|i| mesh.start_sidecar(*i));
    for i in which {
        wait_until("a member in service", PATIENCE, || {
            let sidecar = mesh.sidecar(i);
            assert!(sidecar.exited().is_none(), "sidecar {i} ended: {}", sidecar.last_words());
            healthy(mesh, i)
        });
    }
    began.elapsed()
}

fn create(client: &Client, uid: &str) -> common::Answer {
    client.json("POST", "/indexes", &json!({"uid": uid, "primaryKey": "id"}))
}

fn edit_config(mesh: &Mesh, i: usize, edit: impl FnOnce(String) -> String) {
    let path = mesh.members[i].dir.join("miroir.toml");
    let text = edit(fs::read_to_string(&path).unwrap());
    fs::write(path, text).unwrap();
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn voters(status: &Value) -> Vec<&str> {
    status["ledger"]["voters"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[test]
fn one_mesh_is_made_and_outlives_the_death_of_all_processes() {
    let mut mesh = Mesh::prepare(Plan::of(3, 2));
    (0..3).for_each(|i| mesh.start_node(i));
    let first = start_sidecars(&mut mesh, 0..3);
    mesh.wait_whole();
    let id = status(&mesh, 0)["mesh"].clone();
    assert!(id.is_string());
    for i in 0..3 {
        let status = status(&mesh, i);
        assert_eq!((&status["mesh"], voters(&status)), (&id, vec!["m1", "m2", "m3"]));
        assert_eq!((&status["ledger"]["settled"], &status["ledger"]["list"]), (&json!(true), &json!(1)));
    }
    create(&mesh.client(1), "movies").expect(202);
    for i in 0..3 {
        mesh.client(i).get("/indexes/movies").expect(200);
    }
    // Leases are taken anew by every process, so not all copies stay as they are.
    let digests = |mesh: &Mesh| (0..3).map(|i| mesh.topology(i)["recordsDigest"].clone()).collect::<Vec<_>>();
    let before = digests(&mesh);
    assert!(before.iter().all(|d| *d == before[0] && d.is_string()), "{before:?}");
    for round in 0..2 {
        (0..3).for_each(|i| mesh.sidecar(i).kill());
        let again = start_sidecars(&mut mesh, 0..3);
        say(&format!("in service after {first:?} at first, after {again:?} in round {round}"));
        mesh.wait_whole();
        assert_eq!(digests(&mesh), before);
        assert!((0..3).all(|i| status(&mesh, i)["mesh"] == id));
        mesh.client(round).get("/indexes/movies").expect(200);
    }
    create(&mesh.client(2), "books").expect(202);
}

#[test]
fn a_member_whose_disk_was_lost_joins_its_mesh_and_votes_again() {
    let mut mesh = Mesh::start(Plan::of(3, 2));
    create(&mesh.client(0), "movies").expect(202);
    let before = status(&mesh, 2);
    mesh.sidecar(2).kill();
    fs::remove_dir_all(mesh.members[2].dir.join("store")).unwrap();
    start_sidecars(&mut mesh, [2]);
    mesh.wait_whole();
    mesh.client(2).get("/indexes/movies").expect(200);
    let after = status(&mesh, 2);
    assert_eq!(after["mesh"], before["mesh"]);
    assert_ne!(after["store"], before["store"]);
    wait_until("the new store to be a voter", PATIENCE, || {
        let status = status(&mesh, 0);
        let listed = status["members"].as_array().is_some_and(|all| all.iter().any(|m| m["store"] == after["store"]));
        // Removed, then added.
        listed && status["ledger"]["list"] == 3 && status["ledger"]["settled"] == true
    });
    assert_eq!(voters(&status(&mesh, 0)), ["m1", "m2", "m3"]);
    // Its vote counts: with it and one other there is a majority.
    mesh.sidecar(1).kill();
    let client = mesh.client(0);
    wait_until("a change without the second member", PATIENCE, || {
        client.json("DELETE", "/indexes/movies", &json!(null)).status == 202
    });
}

#[test]
fn a_voter_that_is_gone_for_long_is_replaced_so_that_another_may_go() {
    let plan = Plan::of(4, 2)
        .env("MIROIR_MESH__VOTER_REPLACE_AFTER_S", "10")
        .env("MIROIR_LEADER_ELECTION__LEASE_TTL_S", "3")
        .env("MIROIR_LEADER_ELECTION__RENEW_INTERVAL_S", "1");
    let mut mesh = Mesh::start(plan);
    create(&mesh.client(0), "movies").expect(202);
    mesh.sidecar(3).kill();
    let began = Instant::now();
    let settled = |mesh: &Mesh, i: usize, who: &[&str]| {
        let status = status(mesh, i);
        voters(&status) == who && status["ledger"]["settled"] == true
    };
    wait_until("a list without the dead voter", PATIENCE, || settled(&mesh, 0, &["m1", "m2", "m3"]));
    say(&format!("replaced {:?} after its death", began.elapsed()));
    assert!(began.elapsed() >= Duration::from_secs(9), "it was silent for {:?} only", began.elapsed());
    // Two of four would be no majority.
    mesh.sidecar(2).kill();
    mesh.admin(0).json("POST", "/_miroir/aliases", &json!({"name": "films", "index": "movies"})).expect(201);
    start_sidecars(&mut mesh, [2, 3]);
    for i in 0..4 {
        wait_until("all to vote again", PATIENCE, || settled(&mesh, i, &["m1", "m2", "m3", "m4"]));
    }
    assert_eq!(mesh.admin(3).get("/_miroir/aliases/films").expect(200)["index"], "movies");
}

#[test]
fn files_that_were_put_back_are_refused_with_what_to_do() {
    let mut mesh = Mesh::start(Plan::of(3, 2));
    let dir = mesh.members[2].dir.clone();
    let (store, old, new) = (dir.join("store"), dir.join("old"), dir.join("new"));
    let run_once = |mesh: &mut Mesh| {
        start_sidecars(mesh, [2]);
        mesh.sidecar(2).kill();
    };
    mesh.sidecar(2).kill();
    copy_dir(&store, &old);
    run_once(&mut mesh);
    create(&mesh.client(0), "movies");
    run_once(&mut mesh);
    copy_dir(&store, &new);
    for file in ["miroir.sqlite", "ledger.sqlite"] {
        fs::remove_dir_all(&store).unwrap();
        copy_dir(&new, &store);
        for entry in fs::read_dir(&old).unwrap().map(Result::unwrap) {
            let name = entry.file_name();
            if name.to_string_lossy().starts_with(file) {
                fs::copy(entry.path(), store.join(name)).unwrap();
            }
        }
        mesh.start_sidecar(2);
        let status = mesh.sidecar(2).wait_exit(PATIENCE);
        let words = mesh.sidecar(2).last_words();
        assert!(exit_code(status) == 1 && words.contains("move the whole directory away"), "{file}: {words}");
    }
    // Both together: the others remember, and it is told what to do.
    fs::remove_dir_all(&store).unwrap();
    copy_dir(&old, &store);
    mesh.start_sidecar(2);
    wait_until("the member to be told", PATIENCE, || status(&mesh, 2)["rolledBack"].is_string());
    // Once one of them has told it, it says nothing more to the other.
    wait_until("one of the others to notice", PATIENCE, || {
        let said = |i| status(&mesh, i)["notices"].to_string();
        (0..2).any(|i| said(i).contains("m3") && said(i).contains("older than it was"))
    });
    // With an empty store it comes back.
    mesh.sidecar(2).kill();
    fs::remove_dir_all(&store).unwrap();
    start_sidecars(&mut mesh, [2]);
    mesh.wait_whole();
}

#[test]
fn without_a_majority_nothing_changes_and_answers_say_that_they_may_be_old() {
    let mut mesh = Mesh::start(Plan::of(3, 2));
    let client = mesh.client(0);
    client.done("POST", "/indexes", &json!({"uid": "movies", "primaryKey": "id"}));
    assert_eq!(client.json("POST", SEARCH, &json!({"q": ""})).header("x-miroir-degraded"), None);
    (1..3).for_each(|i| mesh.sidecar(i).kill());
    let answer = create(&client, "books");
    assert!(matches!(answer.status, 503 | 504), "{}", answer.text());
    wait_until("stale answers", PATIENCE, || {
        let degraded = client.json("POST", SEARCH, &json!({"q": ""})).header("x-miroir-degraded").map(str::to_owned);
        degraded.is_some_and(|d| d.split("; ").any(|part| part == "stale"))
    });
    // Also after a restart, from its copies.
    mesh.sidecar(0).kill();
    start_sidecars(&mut mesh, [0]);
    mesh.client(0).get("/indexes/movies").expect(200);
    start_sidecars(&mut mesh, 1..3);
    mesh.wait_whole();
    create(&client, "books").expect(202);
    wait_until("fresh answers", PATIENCE, || {
        client.json("POST", SEARCH, &json!({"q": ""})).header("x-miroir-degraded").is_none()
    });
}

#[test]
fn survivors_go_on_as_a_new_mesh_and_who_was_left_out_stays_out() {
    let mut mesh = Mesh::start(Plan::of(3, 1));
    create(&mesh.client(0), "movies").expect(202);
    let old = status(&mesh, 0)["mesh"].clone();
    mesh.sidecar(1).kill();
    mesh.sidecar(2).kill();
    let admin = mesh.admin(0);
    let recover = |survivors: Value, confirm: &str| {
        admin.json("POST", "/_miroir/mesh/recover", &json!({"survivors": survivors, "confirm": confirm}))
    };
    let confirmed = "the others are gone for good";
    recover(json!(["m1"]), "yes").expect_error(400, "bad_request");
    recover(json!(["m2"]), confirmed).expect_error(400, "bad_request");
    recover(json!(["m1", "m9"]), confirmed).expect_error(400, "bad_request");
    recover(json!(["m1"]), confirmed).expect(202);
    wait_until("a new mesh", PATIENCE, || {
        let status = status(&mesh, 0);
        status["mesh"].is_string() && status["mesh"] != old && voters(&status) == ["m1"]
    });
    let new = status(&mesh, 0)["mesh"].clone();
    let client = mesh.client(0);
    wait_until("a change", PATIENCE, || create(&client, "books").status == 202);
    client.get("/indexes/movies").expect(200);
    mesh.start_sidecar(1);
    wait_until("the member that was left out to be refused", PATIENCE, || {
        status(&mesh, 1)["peers"]["m1"]["reason"].as_str().is_some_and(|r| !r.is_empty())
    });
    assert_eq!((&status(&mesh, 0)["mesh"], &status(&mesh, 1)["mesh"]), (&new, &old));
}

#[test]
fn survivors_that_are_restarted_while_a_new_mesh_is_made_belong_to_it() {
    let mut mesh = Mesh::start(Plan { engine: Engine::StandIn, ..Plan::of(5, 1) });
    create(&mesh.client(0), "movies").expect(202);
    let old = status(&mesh, 0)["mesh"].clone();
    (2..5).for_each(|i| mesh.sidecar(i).kill());
    let order = json!({"survivors": ["m1", "m2", "m3"], "confirm": "the others are gone for good"});
    mesh.admin(0).json("POST", "/_miroir/mesh/recover", &order).expect(202);
    // The second has handed over what it has, and waits for the third.
    wait_until("the second to have handed over", PATIENCE, || {
        status(&mesh, 0)["recovering"]["missing"] == json!(["m3"])
    });
    mesh.sidecar(1).kill();
    mesh.start_sidecar(2);
    wait_until("a new mesh", PATIENCE, || {
        let mesh = &status(&mesh, 0)["mesh"];
        mesh.is_string() && *mesh != old
    });
    mesh.start_sidecar(1);
    mesh.sidecar(0).kill();
    mesh.start_sidecar(0);
    wait_until("all survivors in the new mesh", PATIENCE, || {
        let all: Vec<Value> = (0..3).map(|i| status(&mesh, i)).collect();
        all.iter()
            .all(|s| s["mesh"].is_string() && s["mesh"] != old && s["mesh"] == all[0]["mesh"] && voters(s).len() == 3)
    });
    mesh.client(1).get("/indexes/movies").expect(200);
    mesh.sidecar(0).kill();
    wait_until("a change without one of them", PATIENCE, || {
        mesh.client(1).json("DELETE", "/indexes/movies", &json!(null)).status == 202
    });
    wait_until("the other to know it", PATIENCE, || mesh.client(2).get("/indexes/movies").status == 404);
}

#[test]
fn an_operators_list_makes_a_mesh_and_a_witness_is_its_third_vote() {
    let mut mesh = Mesh::prepare(Plan::of(3, 2));
    let list: Vec<Value> = (0..3)
        .map(|i| {
            let m = &mesh.members[i];
            json!({"id": m.id, "group": "g1", "address": m.mesh.to_string(), "witness": i == 2})
        })
        .collect();
    for i in 0..3 {
        edit_config(&mesh, i, |text| {
            let (before, rest) = text.split_once("bootstrap = [").unwrap();
            let text = format!("{before}{}", rest.split_once("]\n").unwrap().1);
            if i == 2 { text.replacen("[node]\n", "[node]\nwitness = true\n", 1) } else { text }
        });
    }
    (0..2).for_each(|i| mesh.start_node(i));
    (0..3).for_each(|i| mesh.start_sidecar(i));
    for i in 0..3 {
        wait_until("the admin API without a mesh", PATIENCE, || status(&mesh, i)["bootstrap"] == false);
    }
    let refused = mesh.client(0).get("/indexes").expect_error(503, "miroir_shards_unavailable");
    assert!(refused["message"].as_str().unwrap().contains("miroir-ctl mesh init"), "{refused}");
    let order = json!({"members": list, "rf": 2, "shards": 8});
    mesh.admin(0).json("POST", "/_miroir/mesh/init", &json!({"members": [], "rf": 1, "shards": 8})).expect(400);
    // A list that can't come to anything is replaced by another, and the same one may be given again.
    let mut wrong = order.clone();
    wrong["members"][1]["address"] = json!("127.0.0.1:9");
    for list in [&wrong, &wrong, &order, &order] {
        (0..2).for_each(|i| drop(mesh.admin(i).json("POST", "/_miroir/mesh/init", list).expect(202)));
    }
    mesh.admin(2).json("POST", "/_miroir/mesh/init", &order).expect(202);
    (0..3).for_each(|i| wait_until("a member in service", PATIENCE, || healthy(&mesh, i)));
    mesh.admin(1).json("POST", "/_miroir/mesh/init", &order).expect_error(409, "miroir_mesh_state");
    for i in 0..2 {
        wait_until("nodes in service", PATIENCE, || {
            mesh.topology(i)["members"].as_array().is_some_and(|all| all.iter().take(2).all(|m| m["serving"] == true))
        });
    }
    // The witness serves clients through the others.
    let witness = mesh.client(2);
    wait_until("the witness to know the nodes", PATIENCE, || {
        mesh.topology(2)["members"].as_array().is_some_and(|all| all.iter().take(2).all(|m| m["serving"] == true))
    });
    witness.done("POST", "/indexes", &json!({"uid": "movies", "primaryKey": "id"}));
    witness.done("POST", "/indexes/movies/documents", &json!([{"id": 1}, {"id": 2}]));
    assert_eq!(witness.search("movies", &json!({"q": ""})).expect(200)["estimatedTotalHits"], 2);
    let topology = mesh.topology(0);
    let on_witness = topology["indexes"][0]["shards"].as_array().unwrap().iter().any(|s| s.to_string().contains("m3"));
    assert!(!on_witness, "{topology}");
    // One of two members with nodes dies: the other one and the witness are a majority.
    mesh.sidecar(1).kill();
    let client = mesh.client(0);
    wait_until("a change without the second member", PATIENCE, || {
        client.json("DELETE", "/indexes/movies", &json!(null)).status == 202
    });
    // The list was stored.
    (0..3).filter(|i| *i != 1).for_each(|i| mesh.sidecar(i).kill());
    start_sidecars(&mut mesh, 0..3);
    assert_eq!(voters(&status(&mesh, 1)), ["m1", "m2", "m3"]);
}
