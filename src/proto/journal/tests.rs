//! The journal as a whole: facts in a small world, and what holds in many worlds.
//!
//! Rule: a test looks at answers, records and what is durable, never into a core.

use std::collections::BTreeMap;
use std::env;
use std::time::Duration;

use super::simulated::{Faults, World, id};

const SECOND: Duration = Duration::from_secs(1);

/// So many seeds, or those that a person asks for: `MIROIR_SEEDS=first..end`.
fn seeds(count: u64) -> std::ops::Range<u64> {
    let text = env::var("MIROIR_SEEDS").ok();
    let asked = text.as_deref().and_then(|s| s.split_once(".."));
    asked.map_or(0..count, |(first, end)| first.parse().unwrap()..end.parse().unwrap())
}

fn faults(seed: u64) -> Faults {
    let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let of = |shift: u32, most: u32| u32::try_from(seed >> shift & 3).unwrap() * most / 3;
    Faults { lost: of(0, 120), twice: of(2, 120), late: of(4, 200), crash: of(6, 6), suspect: of(8, 15) }
}

/// One thing that happens to the world.
fn disturb(world: &mut World, members: usize) {
    let member = id(world.rng.usize(0..members));
    let other = id(world.rng.usize(0..members));
    match world.rng.u32(0..100) {
        0..12 => world.crash_and_restart(&member),
        12..22 => {
            world.cut.insert((member.clone(), other.clone()));
            if world.rng.bool() {
                world.cut.insert((other, member));
            }
        }
        22..27 => {
            for i in (0..members).map(id).filter(|m| *m != member) {
                world.cut.insert((member.clone(), i.clone()));
                world.cut.insert((i, member.clone()));
            }
            world.alone.insert(member);
        }
        27..45 => {
            world.cut.clear();
            world.alone.clear();
        }
        45..52 => {
            let span = Duration::from_millis(world.rng.u64(50..1_500));
            let until = world.now.plus(span);
            world.nodes.get_mut(&member).unwrap().paused_until = until;
        }
        52..58 => {
            let slow = world.rng.bool();
            world.nodes.get_mut(&member).unwrap().slow = slow;
        }
        58..60 => {
            let lost = world.counts.get("store lost").copied().unwrap_or(0);
            if lost < 1 + world.seed % 3 {
                world.lose_store(&member);
            }
        }
        60..61 if world.seed % 4 == 0 => {
            let shard = world.rng.usize(0..world.record.len());
            if world.is_up(&member) {
                world.accept_loss(shard, &member);
            }
        }
        61..64 => {
            for i in 0..members {
                world.crash_and_restart(&id(i));
            }
        }
        _ => {}
    }
}

/// What one world goes through, until it is well again.
fn live(seed: u64) -> World {
    let members = 3 + usize::try_from(seed % 3).unwrap();
    let copies = 2 + usize::try_from(seed / 3 % 2).unwrap() + usize::from(seed % 7 == 0 && members == 5);
    let mut world = World::new(seed, members, 2, copies, 4);
    world.faults = faults(seed);
    for _ in 0..60 {
        let span = Duration::from_millis(world.rng.u64(10..250));
        world.run(span);
        disturb(&mut world, members);
    }
    world
}

fn rest(world: &mut World) {
    world.heal();
    world.run(3 * SECOND);
    world.operate();
    world.run(6 * SECOND);
    world.writing = false;
    world.run(8 * SECOND);
    world.check_rest();
}

#[test]
fn in_many_worlds_nothing_acknowledged_is_lost_and_all_come_to_rest() {
    let mut counts = BTreeMap::new();
    for seed in seeds(60) {
        let mut world = live(seed);
        rest(&mut world);
        world.counts.iter().for_each(|(what, n)| *counts.entry(*what).or_insert(0_u64) += n);
        let acknowledged: usize = world.histories.iter().map(|h| h.acknowledgements()).sum();
        *counts.entry("acknowledged").or_insert(0) += acknowledged as u64;
    }
    println!("{counts:?}");
}
