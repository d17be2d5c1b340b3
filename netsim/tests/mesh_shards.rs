//! Who orders each shard's writes, with real processes: elected once an index is made, again when a primary is killed,
//! stopped or ended, and never two.
//!
//! Bounds are twice what is promised, because tests share their machine with others.

mod common;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use common::{Engine, Mesh, Plan, say, wait_until};
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
