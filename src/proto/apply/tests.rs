//! Runs of the small world: some time of entries and faults, then everything must be applied and right.
//!
//! `MIROIR_SEEDS=first..end` runs those seeds; a single one tells what happens. Rule: a test looks at what is durable and at
//! the node, never into the core.

use std::collections::BTreeMap;
#[cfg(test)]
use std::env;
use std::time::Duration;

use super::simulated::{Faults, World};

const KIND: Faults = Faults {
    lost: 0,
    late: 0,
    crash: 0,
    restart: 0,
    put_back: 0,
    unseen: 0,
    trouble: 0,
    cancel: 0,
    prune: 0,
    trim: 0,
    unread: 0,
};

/// Runs so many seeds, or those that a person asks for, and adds up what was seen; `None` if a person asked.
fn run(count: u64, faults: impl Fn(u64) -> Faults) -> Option<BTreeMap<&'static str, u64>> {
    let text = env::var("MIROIR_SEEDS").ok();
    let asked = text.as_deref().and_then(|s| s.split_once(".."));
    let asked = asked.map(|(first, end)| first.parse().unwrap()..end.parse().unwrap());
    let seeds = asked.clone().unwrap_or(0..count);
    let trace = seeds.end == seeds.start + 1;
    let mut counts = BTreeMap::new();
    for seed in seeds {
        let mut world = World::new(seed, 1 + (seed % 5) as u16, faults(seed));
        world.trace = trace;
        world.run(Duration::from_secs(4));
        world.heal();
        world.run(Duration::from_secs(120));
        world.check_end();
        for (what, n) in world.counts {
            *counts.entry(what).or_default() += n;
        }
    }
    asked.is_none().then_some(counts)
}

/// What a test is about was there often enough.
fn assert_seen(counts: Option<BTreeMap<&'static str, u64>>, wanted: &[(&str, u64)]) {
    let Some(counts) = counts else { return };
    for (what, least) in wanted {
        assert!(counts.get(what).is_some_and(|n| n >= least), "{what}: {counts:?}");
    }
}

#[test]
fn bad_entries_are_found_and_the_rest_is_applied() {
    let counts = run(40, |_| KIND);
    let often = ["verdicts", "own verdicts", "asked", "mismatches", "takes", "troubles"].map(|what| (what, 10));
    assert_seen(counts.clone(), &often);
    assert_seen(counts, &[("compared", 1_000)]);
}

#[test]
fn nothing_is_lost_or_done_twice_whatever_dies() {
    let counts = run(40, |_| Faults { lost: 60, crash: 8, restart: 20, trouble: 20, unread: 20, ..KIND });
    assert_seen(counts, &[("crashes", 100), ("restarts", 20), ("compared", 1_000)]);
}

#[test]
fn a_node_that_was_put_back_is_brought_up_again() {
    let counts = run(60, |seed| Faults {
        lost: 20,
        crash: if seed % 2 == 0 { 0 } else { 5 },
        restart: 30,
        put_back: 400,
        unseen: if seed % 3 == 0 { 500 } else { 0 },
        trim: 50,
        ..KIND
    });
    assert_seen(counts, &[("put back", 20), ("unapplied", 20), ("rebuilt", 10)]);
}

#[test]
fn an_operator_at_the_node_does_no_harm() {
    let counts = run(40, |_| Faults { cancel: 40, prune: 40, lost: 20, crash: 4, ..KIND });
    assert_seen(counts, &[("canceled", 50), ("pruned", 50), ("probes", 10)]);
}

#[test]
fn what_comes_after_it_was_given_up_is_set_right() {
    let counts = run(60, |_| Faults { late: 20, lost: 20, crash: 2, ..KIND });
    assert_seen(counts, &[("unapplied", 10), ("rebuilt", 10)]);
}

#[test]
fn everything_at_once_is_survived() {
    let faults = Faults {
        lost: 30,
        late: 5,
        crash: 5,
        restart: 20,
        put_back: 200,
        unseen: 100,
        trouble: 20,
        cancel: 10,
        prune: 10,
        trim: 20,
        unread: 10,
    };
    run(60, |_| faults);
}
