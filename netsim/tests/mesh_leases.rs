//! Leases with real processes: one leader at a time, whoever is killed, stopped or ended.
//!
//! Every bound is twice what is promised, because tests share their machine with others, and leaders are seen by asking; that no
//! two have led at once is judged by the members' own logs. The bounds themselves hold exactly in virtual time: see
//! `proto/lease/tests.rs` and `netsim sim`.

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::{ADMIN_KEY, Client, Engine, Mesh, Plan, say, wait_until};
use serde_json::Value;

const STANDING: [&str; 3] = ["membership", "shard_leaders", "task_ids"];
const TTL: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(40);
/// Twice the time within which a dead leader has a successor.
const FAILOVER: Duration = Duration::from_secs(2 * (3 + 1));

fn mesh() -> Mesh {
    let plan = Plan { engine: Engine::StandIn, ..Plan::of(3, 1) }
        .env("MIROIR_LEADER_ELECTION__LEASE_TTL_S", "3")
        .env("MIROIR_LEADER_ELECTION__RENEW_INTERVAL_S", "1")
        .env("MIROIR_LOG__FORMAT", "json")
        .env("MIROIR_LOG__FILTER", "info,miroir::holdings=debug");
    let mesh = Mesh::start(plan);
    wait_until("a leader of every standing scope", PATIENCE, || {
        STANDING.iter().all(|scope| leaders(&mesh, scope, &[0, 1, 2]).len() == 1)
    });
    mesh
}

/// Whether member `i` says by its metrics that it leads the scope; `None` if it does not answer.
fn leads(mesh: &Mesh, i: usize, scope: &str) -> Option<bool> {
    let answer = Client::at(mesh.members[i].metrics).try_call("GET", "/metrics", &[], b"").ok()?;
    let line = format!("miroir_leader{{scope=\"{scope}\"}} 1");
    Some(String::from_utf8_lossy(&answer.body).lines().any(|l| l == line))
}

fn leaders(mesh: &Mesh, scope: &str, among: &[usize]) -> Vec<usize> {
    among.iter().copied().filter(|i| leads(mesh, *i, scope) == Some(true)).collect()
}

fn others(of: usize) -> Vec<usize> {
    (0..3).filter(|i| *i != of).collect()
}

fn lease(mesh: &Mesh, i: usize, scope: &str) -> Value {
    let all = mesh.admin(i).get("/_miroir/leases").expect(200);
    let found = all["leases"].as_array().unwrap().iter().find(|l| l["scope"] == scope).cloned();
    found.unwrap_or_else(|| panic!("no lease of {scope} in {all}"))
}

/// Waits until every standing scope has exactly one leader among these members; how long that took.
fn wait_led(mesh: &Mesh, among: &[usize], patience: Duration, what: &str) -> Duration {
    let began = Instant::now();
    wait_until(what, patience, || STANDING.iter().all(|scope| leaders(mesh, scope, among).len() == 1));
    say(&format!("{what}: {} ms", began.elapsed().as_millis()));
    began.elapsed()
}

/// Who held a scope, from when until when at most, by the clock that all processes of a machine share.
#[derive(Debug, Clone)]
struct Holding {
    member: usize,
    from: u64,
    until: u64,
}

/// All holdings of each scope, as the members have logged them.
fn holdings(mesh: &mut Mesh) -> BTreeMap<String, Vec<Holding>> {
    let mut out: BTreeMap<String, Vec<Holding>> = BTreeMap::new();
    for member in 0..3 {
        let log = mesh.sidecar(member).log();
        let mut held: BTreeMap<(String, u64), Holding> = BTreeMap::new();
        for event in log.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()) {
            if event["target"] != "miroir::holdings" {
                continue;
            }
            let number = |name: &str| event[name].as_u64().unwrap_or_else(|| panic!("{name} in {event}"));
            let key = (event["scope"].as_str().unwrap().to_owned(), number("epoch"));
            let holding = Holding { member, from: number("from_us"), until: number("until_us") };
            match event["event"].as_str().unwrap() {
                "became" => assert!(held.insert(key, holding).is_none(), "held twice under one epoch: {event}"),
                "renewed" | "lost" => held.get_mut(&key).unwrap().until = holding.until,
                other => panic!("{other} in {event}"),
            }
        }
        for ((scope, _), holding) in held {
            out.entry(scope).or_default().push(holding);
        }
    }
    out
}

/// No two members have held one scope at one instant.
fn assert_apart(mesh: &mut Mesh) {
    let all = holdings(mesh);
    for scope in STANDING {
        let mut held = all.get(scope).cloned().unwrap_or_default();
        assert!(!held.is_empty(), "nobody has logged that it held {scope}");
        held.sort_by_key(|h| h.from);
        for pair in held.windows(2) {
            let (first, second) = (&pair[0], &pair[1]);
            let who = (first.member, second.member);
            assert!(first.until <= second.from, "{scope} was held by members {who:?} at once: {pair:?}");
        }
    }
}

#[test]
fn renewal_keeps_every_scope_with_its_leader_and_a_clean_end_gives_it_away_at_once() {
    let mut mesh = mesh();
    // Whoever is in service first may hold them all for a while.
    let all = |mesh: &Mesh| STANDING.map(|scope| leaders(mesh, scope, &[0, 1, 2]));
    wait_until("every member to lead one standing scope", PATIENCE, || {
        let all = all(&mesh);
        let one = |i: usize| all.iter().filter(|leaders| **leaders == [i]).count() == 1;
        (0..3).all(one)
    });
    let before: Vec<usize> = all(&mesh).iter().map(|leaders| leaders[0]).collect();
    let epochs: Vec<Value> = STANDING.iter().map(|scope| lease(&mesh, 0, scope)["epoch"].clone()).collect();
    let began = Instant::now();
    while began.elapsed() < TTL * 3 {
        for (scope, leader) in STANDING.iter().zip(&before) {
            assert_eq!(leaders(&mesh, scope, &[0, 1, 2]), [*leader], "{scope}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    for (scope, epoch) in STANDING.iter().zip(&epochs) {
        assert_eq!(lease(&mesh, 0, scope)["epoch"], *epoch, "{scope}");
    }
    // Every member knows of every lease, its own life among them.
    for i in 0..3 {
        for (scope, leader) in STANDING.iter().zip(&before) {
            let lease = lease(&mesh, i, scope);
            assert_eq!(lease["holder"], mesh.members[*leader].id, "{lease}");
            assert_eq!(lease["heldHere"], *leader == i, "{lease}");
            assert!(lease["expiresAt"].is_string(), "{lease}");
        }
        assert_eq!(lease(&mesh, i, &format!("alive:m{}", (i + 1) % 3 + 1))["holder"], format!("m{}", (i + 1) % 3 + 1));
    }

    let gone = before[0];
    mesh.sidecar(gone).terminate();
    let took = wait_led(&mesh, &others(gone), TTL, "another leader after a clean end");
    assert!(took < Duration::from_secs(2), "a lease that was given back is taken at once, not after {took:?}");
    mesh.sidecar(gone).wait_exit(PATIENCE);
    assert_apart(&mut mesh);
}

#[test]
fn a_killed_leader_has_a_successor_and_a_stopped_one_does_not_believe_when_it_goes_on() {
    let mut mesh = mesh();
    for scope in &STANDING[..2] {
        let killed = leaders(&mesh, scope, &[0, 1, 2])[0];
        mesh.sidecar(killed).kill();
        wait_led(&mesh, &others(killed), FAILOVER, "another leader after a kill");
        mesh.start_sidecar(killed);
        mesh.wait_whole();
        wait_led(&mesh, &[0, 1, 2], PATIENCE, "one leader after the return");
    }

    let scope = STANDING[2];
    let stopped = leaders(&mesh, scope, &[0, 1, 2])[0];
    let epoch = lease(&mesh, stopped, scope)["epoch"].as_u64().unwrap();
    mesh.sidecar(stopped).pause();
    wait_led(&mesh, &others(stopped), FAILOVER, "another leader while the old one stands still");
    mesh.sidecar(stopped).resume();
    for _ in 0..20 {
        let leading = leaders(&mesh, scope, &[0, 1, 2]);
        assert!(!leading.contains(&stopped), "it believes that it leads {scope} still");
    }
    wait_until("the old leader to know of the new one", PATIENCE, || {
        let lease = lease(&mesh, stopped, scope);
        lease["epoch"].as_u64().unwrap() > epoch && lease["heldHere"] == false
    });
    wait_led(&mesh, &[0, 1, 2], FAILOVER, "one leader again");
    assert_apart(&mut mesh);
}

#[test]
fn a_member_that_may_not_lead_votes_and_holds_its_own_life() {
    let plan = Plan { engine: Engine::StandIn, ..Plan::of(1, 1) }
        .env("MIROIR_LEADER_ELECTION__LEASE_TTL_S", "3")
        .env("MIROIR_LEADER_ELECTION__RENEW_INTERVAL_S", "1")
        .env("MIROIR_LEADER_ELECTION__ENABLED", "false");
    let mesh = Mesh::start(plan);
    let alive = || {
        let all = mesh.admin(0).get("/_miroir/leases").expect(200);
        all["leases"].as_array().is_some_and(|l| l.iter().any(|l| l["scope"] == "alive:m1" && l["heldHere"] == true))
    };
    wait_until("it to hold its own life", PATIENCE, alive);
    std::thread::sleep(TTL);
    for scope in STANDING {
        assert_eq!(leads(&mesh, 0, scope), Some(false), "{scope}");
    }
    assert!(alive());
    let denied = Client { key: Some(format!("not {ADMIN_KEY}")), ..Client::at(mesh.members[0].http) };
    denied.get("/_miroir/leases").expect_error(403, "invalid_api_key");
}
