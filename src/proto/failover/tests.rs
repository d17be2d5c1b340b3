//! How long writes wait, over many seeds.
//!
//! What is promised: writes wait at most 2 s, 99 of 100 times, for a primary that was killed, whether or not it held
//! `shard_leaders`; at most 5 s for one all of whose packets are dropped; and a frozen one's appends are refused when it goes
//! on. Rule: a pause is what a client sees between two acknowledgements, so it holds all that it waits for.

#[cfg(test)]
use std::env;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::client::SHARD;
use super::world::{Setting, World, id};
use crate::types::MemberId;

/// Near each other, and far apart.
const NEAR: RangeInclusive<u64> = 100..=5_000;
const FAR: RangeInclusive<u64> = 28_000..=32_000;

/// The clients whose pauses count; one at the primary itself may come behind them.
const MEASURED: usize = 2;

/// So many seeds, or those that a person asks for: `MIROIR_SEEDS=first..end`.
fn seeds(count: u64) -> std::ops::Range<u64> {
    let text = env::var("MIROIR_SEEDS").ok();
    let asked = text.as_deref().and_then(|s| s.split_once(".."));
    asked.map_or(0..count, |(first, end)| first.parse().unwrap()..end.parse().unwrap())
}

fn meshes(way: &RangeInclusive<u64>) -> [World; 2] {
    [3, 5].map(|members| World::new(1, Setting { members, copies: 3, way: way.clone() }))
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A mesh of which the primary that clients write to is about to be disturbed; `leads` says whether it holds `shard_leaders`.
fn begin(meshes: &[World; 2], seed: u64, leads: bool, has_client: bool) -> (World, MemberId) {
    let mut world = meshes[usize::try_from(seed % 2).unwrap()].again(seed);
    world.traced = seeds(0).end == seed + 1 && seeds(0).start == seed;
    let victim = world.primary(SHARD);
    let others: Vec<MemberId> = (0..world.setting.members).map(id).filter(|m| *m != victim).collect();
    let mut any = || others[world.rng.usize(0..others.len())].clone();
    let (leader, clients) = (any(), [any(), any()]);
    world.leader = if leads { victim.clone() } else { leader };
    clients.iter().for_each(|at| world.connect(at));
    if has_client {
        world.connect(&victim);
    }
    let span = ms(world.rng.u64(300..700));
    world.run(span);
    (world, victim)
}

/// Runs until every client has written again for a while, and gives the longest pause.
fn pause(world: &mut World, least: Duration) -> Duration {
    let acknowledged = |world: &World| world.clients[..MEASURED].iter().map(|c| c.acknowledged).collect::<Vec<_>>();
    // What was on its way is still told.
    world.run(ms(100));
    let before = acknowledged(world);
    let mut waited = ms(100);
    loop {
        world.run(ms(100));
        waited += ms(100);
        let go_on = acknowledged(world).iter().zip(&before).all(|(now, before)| *now > before + 3);
        if go_on && waited >= least {
            return world.clients[..MEASURED].iter().map(|c| c.longest).max().unwrap();
        }
        if waited > Duration::from_secs(20) {
            world.fail("writes do not go on");
        }
    }
}

/// The pauses in order, told.
fn told(what: &str, pauses: impl Iterator<Item = (u64, Duration)>) -> Vec<Duration> {
    let mut by_seed: Vec<(u64, Duration)> = pauses.collect();
    by_seed.sort_unstable_by_key(|(_, pause)| *pause);
    let worst: Vec<u64> = by_seed.iter().rev().take(3).map(|(seed, _)| *seed).collect();
    let pauses: Vec<Duration> = by_seed.into_iter().map(|(_, pause)| pause).collect();
    let of = |hundredths: usize| pauses[(pauses.len() * hundredths).div_ceil(100) - 1].as_millis();
    println!(
        "{what}: {} times, p50 {} ms, p90 {} ms, p99 {} ms, at most {} ms, of seeds {worst:?}",
        pauses.len(),
        of(50),
        of(90),
        of(99),
        of(100)
    );
    pauses
}

fn p99(pauses: &[Duration]) -> Duration {
    pauses[(pauses.len() * 99).div_ceil(100) - 1]
}

fn kills(way: &RangeInclusive<u64>, name: &str) {
    let meshes = meshes(way);
    for leads in [false, true] {
        let one = |seed| {
            let (mut world, victim) = begin(&meshes, seed, leads, false);
            world.kill(&victim);
            (seed, pause(&mut world, Duration::ZERO))
        };
        let what = if leads { "killed with shard_leaders" } else { "killed" };
        let pauses = told(&format!("{name}, {what}"), seeds(100).map(one));
        assert!(p99(&pauses) <= ms(2_000));
    }
}

#[test]
fn writes_wait_at_most_two_seconds_for_a_primary_that_was_killed() {
    kills(&NEAR, "near");
}

#[test]
fn writes_wait_at_most_two_seconds_for_a_primary_that_was_killed_far_away() {
    kills(&FAR, "far");
}

#[test]
fn writes_wait_at_most_five_seconds_for_a_primary_whose_packets_are_dropped() {
    for (way, name) in [(NEAR, "near"), (FAR, "far")] {
        let meshes = meshes(&way);
        let mut stale = 0;
        let one = |seed: u64| {
            let (mut world, victim) = begin(&meshes, seed, seed % 4 < 2, true);
            world.black_holes.insert(victim);
            world.run(ms(100));
            let of_victim = world.clients[MEASURED].acknowledged;
            let longest = pause(&mut world, Duration::ZERO);
            assert_eq!(world.clients[MEASURED].acknowledged, of_victim, "seed {seed}: by the one that nobody hears");
            // It comes back and has not heard of what happened.
            world.black_holes.clear();
            world.run(ms(1_500));
            assert!(world.clients[MEASURED].acknowledged > of_victim, "seed {seed}");
            stale += world.stale_appends();
            (seed, longest)
        };
        let pauses = told(&format!("{name}, a black hole"), seeds(40).map(one));
        assert!(pauses.last() <= Some(&ms(5_000)));
        println!("{stale} stale appends were refused");
        assert!(stale > 0);
    }
}

#[test]
fn what_a_frozen_primary_appends_when_it_goes_on_is_refused() {
    for (way, name) in [(NEAR, "near"), (FAR, "far")] {
        let meshes = meshes(&way);
        let (mut stale, mut replaced, mut refused) = (0, 0, 0);
        let one = |seed: u64| {
            let (mut world, victim) = begin(&meshes, seed, seed % 4 < 2, true);
            let span = ms(world.rng.u64(100..6_000));
            world.freeze(&victim);
            world.run(span);
            let is_replaced = world.primary(SHARD) != victim;
            world.thaw(&victim);
            let longest = pause(&mut world, ms(1_500));
            stale += world.stale_appends();
            replaced += u64::from(is_replaced);
            refused += u64::from(world.stale_appends() > 0);
            (seed, longest)
        };
        let pauses = told(&format!("{name}, frozen"), seeds(40).map(one));
        assert!(pauses.last() <= Some(&ms(5_000)));
        println!("{replaced} were replaced, of {refused} in all {stale} stale appends were refused");
        // Some hear that they were replaced before they have anything to send.
        assert!(replaced > 0 && refused * 2 > replaced);
    }
}

/// The one in between sees everybody, holds `shard_leaders`, and must not give the shard back to a primary that the others,
/// who do not reach it, would only replace again.
#[test]
fn a_primary_that_reaches_one_other_only_is_replaced_once() {
    for (way, name) in [(NEAR, "near"), (FAR, "far")] {
        let mesh = World::new(1, Setting { members: 5, copies: 3, way });
        let one = |seed: u64| {
            let mut world = mesh.again(seed);
            let victim = world.primary(SHARD);
            let others: Vec<MemberId> = (0..5).map(id).filter(|m| *m != victim).collect();
            let between = others[usize::try_from(seed).unwrap() % others.len()].clone();
            world.leader = between.clone();
            world.connect(&between);
            world.connect(&between);
            world.run(ms(500));
            world.cut_off(&victim, &between);
            world.run(ms(10_000));
            let epoch = world.epoch(SHARD);
            assert_ne!(world.primary(SHARD), victim, "seed {seed}");
            world.run(ms(20_000));
            assert_eq!(world.epoch(SHARD), epoch, "seed {seed}: nobody is elected any more");
            world.cuts.clear();
            let longest = pause(&mut world, ms(10_000));
            assert_eq!(world.primary(SHARD), victim, "seed {seed}: it has its shard again");
            (seed, longest)
        };
        let pauses = told(&format!("{name}, cut off from all but one"), seeds(6).map(one));
        assert!(pauses.last() <= Some(&ms(5_000)));
    }
}

/// With two copies, the primary may have asked to go on alone before it knew that it is cut off; whoever writes the record next
/// completes that, and it hears of it only from the one in between.
#[test]
fn a_primary_that_reaches_one_other_only_hears_from_it_what_was_chosen() {
    for (way, name) in [(NEAR, "near"), (FAR, "far")] {
        let mesh = World::new(1, Setting { members: 5, copies: 2, way });
        let one = |seed: u64| {
            let mut world = mesh.again(seed);
            let victim = world.primary(SHARD);
            // Neither of the copies is the other's only way.
            let between = id(3);
            world.leader = id(usize::try_from(seed).unwrap() % 5);
            world.connect(&between);
            world.connect(&between);
            world.run(ms(500));
            world.cut_off(&victim, &between);
            (seed, pause(&mut world, ms(10_000)))
        };
        let pauses = told(&format!("{name}, two copies"), seeds(20).map(one));
        assert!(pauses.last() <= Some(&ms(5_000)));
    }
}
