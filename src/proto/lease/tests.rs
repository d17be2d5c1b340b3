//! What a lease promises, as facts over simulated meshes, and the cases that decide one by one.

use super::sim::{MS, SECOND, Sim, TTL};
use crate::types::{IndexUid, Scope};

/// Patience on the slowest clock, the last rank's wait, and questions and answers.
const FAILOVER: u64 = TTL * 1_050 / 950 + SECOND;

fn flip(name: &str) -> Scope {
    Scope::AliasFlip(IndexUid::new(name).unwrap())
}

/// How many seeds are run; another number may be given when the tests are built.
fn seeds() -> u64 {
    option_env!("MIROIR_SIM_SEEDS").and_then(|n| n.parse().ok()).unwrap_or(600)
}

/// Every second seed from `first` on, so that two tests share them.
fn storms(first: u64) {
    let broken = (first..seeds()).step_by(2).filter_map(|seed| storm(seed).err().map(|e| (seed, e)));
    let broken: Vec<_> = broken.collect();
    assert!(broken.is_empty(), "{} broken, first {:?}", broken.len(), broken[0]);
}

/// Faults for a while, then calm: at most one holder ever, and one of each scope when it has been calm long enough.
fn storm(seed: u64) -> Result<(), String> {
    let calm_at = 90 * SECOND;
    let members = 3 + (seed % 3) as usize;
    let mut sim = Sim::new(seed, members, 20 + seed % 150, calm_at, true);
    sim.want(&flip("a"));
    sim.plan_faults();
    sim.run(calm_at + FAILOVER)?;
    for _ in 0..10 {
        for scope in Scope::STANDING.iter().chain([&flip("a")]) {
            if sim.believers(scope).len() != 1 {
                return Err(format!("{:?} hold {scope} at {}, after healing", sim.believers(scope), sim.now));
            }
        }
        sim.run(sim.now + SECOND)?;
    }
    sim.check_log()
}

#[test]
fn nobody_believes_beside_another_whatever_fails_and_somebody_leads_after_healing() {
    storms(0);
}

#[test]
fn nobody_believes_beside_another_whatever_fails_in_the_other_half_of_seeds() {
    storms(1);
}

#[test]
fn renewal_prevents_stealing_and_standing_scopes_are_spread() {
    for seed in 0..10 {
        let mut sim = Sim::new(seed, 5, 0, 0, true);
        sim.run(300 * SECOND).unwrap();
        for scope in &Scope::STANDING {
            assert_eq!(sim.held.iter().filter(|h| h.scope == *scope).count(), 1, "held once and kept");
        }
        let mut leaders: Vec<_> = Scope::STANDING.iter().map(|s| sim.believers(s)[0]).collect();
        leaders.sort_unstable();
        leaders.dedup();
        assert_eq!(leaders.len(), 3, "different leaders");
    }
}

#[test]
fn a_killed_leader_is_followed_within_ttl_and_margin() {
    for seed in 0..40 {
        let mut sim = Sim::new(seed, 5, 0, 0, false);
        sim.run(20 * SECOND + seed * 100 * MS).unwrap();
        let scope = &Scope::STANDING[(seed % 3) as usize];
        sim.kill(sim.believers(scope)[0]);
        let killed = sim.now;
        sim.run(killed + TTL * 1_050 / 1_000 + SECOND / 2).unwrap();
        assert_eq!(sim.believers(scope).len(), 1, "seed {seed}");
        sim.check_log().unwrap();
    }
}

#[test]
fn a_released_lease_is_taken_at_once() {
    for seed in 0..20 {
        let mut sim = Sim::new(seed, 3, 0, 0, true);
        sim.want(&flip("a"));
        sim.run(10 * SECOND).unwrap();
        let first = sim.believers(&flip("a"))[0];
        sim.release(first, &flip("a"));
        assert!(sim.believers(&flip("a")).is_empty(), "belief ends before the release is sent");
        sim.run(sim.now + SECOND).unwrap();
        assert!(sim.believers(&flip("a")).iter().any(|n| *n != first), "seed {seed}");
    }
}

#[test]
fn a_scope_that_is_offered_goes_to_another_or_comes_back() {
    for seed in 0..20 {
        let mut sim = Sim::new(seed, 3, 0, 0, true);
        sim.run(10 * SECOND).unwrap();
        let first = sim.believers(&Scope::TaskIds)[0];
        sim.offer(first, &Scope::TaskIds);
        assert!(sim.believers(&Scope::TaskIds).is_empty(), "belief ends before the release is sent");
        sim.run(sim.now + SECOND).unwrap();
        assert_eq!(sim.believers(&Scope::TaskIds).len(), 1, "seed {seed}");
        let next = sim.believers(&Scope::TaskIds)[0];
        (0..3).filter(|n| *n != next).for_each(|n| sim.offer(n, &Scope::TaskIds));
        assert_eq!(sim.believers(&Scope::TaskIds), [next], "only the holder can offer it");
        sim.check_log().unwrap();
    }
}

#[test]
fn a_restarted_leader_leads_again_at_once_with_the_next_epoch() {
    let mut sim = Sim::new(7, 3, 0, 0, true);
    sim.run(10 * SECOND).unwrap();
    let leader = sim.believers(&Scope::TaskIds)[0];
    sim.kill(leader);
    sim.restart(leader);
    assert!(sim.believers(&Scope::TaskIds).is_empty(), "it does not go on with what its earlier process held");
    sim.run(sim.now + SECOND).unwrap();
    assert_eq!(sim.believers(&Scope::TaskIds), [leader]);
    sim.check_log().unwrap();
}

#[test]
fn many_scopes_have_different_leaders() {
    let mut sim = Sim::new(3, 5, 0, 0, true);
    let scopes: Vec<Scope> = (0..40).map(|i| flip(&format!("a{i}"))).collect();
    scopes.iter().for_each(|s| sim.want(s));
    sim.run(10 * SECOND).unwrap();
    let mut leaders: Vec<usize> = scopes.iter().flat_map(|s| sim.believers(s)).collect();
    assert_eq!(leaders.len(), 40);
    leaders.sort_unstable();
    leaders.dedup();
    assert_eq!(leaders.len(), 5, "every member leads some");
}
