//! The ledger as a whole: facts in a small world, and what holds in many worlds.
//!
//! Rule: a test looks at answers, copies and what is durable, never into the core.

use std::time::Duration;

use super::effect::Answer;
use super::simulated::{Faults, World, id, key};
use crate::types::{MemberState, RecordKey, VotersState};

const SECOND: Duration = Duration::from_secs(1);

fn made(seed: u64, members: u8) -> World {
    let mut world = World::new(seed, members);
    (0..members).for_each(|i| world.add(&id(i)));
    world.run(2 * SECOND);
    assert_eq!(world.joined.len(), 1, "one mesh is made");
    world
}

#[test]
fn a_mesh_is_made_once_and_known_to_all() {
    let world = made(1, 3);
    let meshes: Vec<_> = world.running().map(|(_, l)| l.mesh()).collect();
    assert!(meshes.iter().all(|m| m.is_some() && *m == meshes[0]));
    assert_eq!(world.record().unwrap().1.voters.voters.len(), 3);
}

#[test]
fn a_change_is_chosen_and_copied_everywhere() {
    let mut world = made(2, 3);
    let op = world.change(&id(1), &key(1), 0, None, false);
    world.run(SECOND);
    assert_eq!(world.answers[&op], Answer::Changed { version: 1 });
    assert!(world.running().all(|(_, l)| l.copy(&key(1)).is_some_and(|c| c.version == 1)));
    assert!(world.running().all(|(_, l)| l.fresh(world.now)));
}

#[test]
fn a_quiet_change_is_read_but_not_copied() {
    let mut world = made(3, 3);
    world.change(&id(0), &key(1), 0, None, false);
    world.run(SECOND);
    let op = world.change(&id(0), &key(1), 1, None, true);
    world.run(SECOND);
    assert_eq!(world.answers[&op], Answer::Changed { version: 2 });
    assert!(world.running().all(|(_, l)| l.copy(&key(1)).is_some_and(|c| c.version == 1)));
    let op = world.read(&id(2), &key(1));
    world.run(SECOND);
    let Answer::Read { current: Some(current) } = &world.answers[&op] else { panic!("{:?}", world.answers[&op]) };
    assert_eq!((current.version, current.announced), (2, 1));
}

/// What one world goes through; `faults` rule until it heals.
fn live(seed: u64, faults: Faults) -> World {
    let mut world = World::new(seed, 3);
    world.faults = faults;
    (0..5).for_each(|i| world.add(&id(i)));
    for _ in 0..120 {
        let span = Duration::from_millis(world.rng.u64(1..120));
        world.run(span);
        let member = id(world.rng.u8(0..5));
        let key = key(world.rng.u8(0..3));
        match world.rng.u32(0..100) {
            0..50 => {
                let known = world.floors.get(&key).copied().unwrap_or(0);
                let expected = known.saturating_sub(u64::from(world.rng.u32(0..10) == 0));
                let quiet = world.rng.bool();
                if world.nodes[&member].core.is_some() {
                    world.change(&member, &key, expected, None, quiet);
                }
            }
            50..70 => {
                if world.nodes[&member].core.is_some() {
                    world.read(&member, &key);
                }
            }
            70..90 => edit(&mut world),
            90..95 => {
                let other = id(world.rng.u8(0..5));
                world.cut.insert((member, other));
            }
            _ => world.cut.clear(),
        }
    }
    world
}

/// A person adds, removes or brings back members, or a disk is lost, within what a mesh outlives.
fn edit(world: &mut World) {
    let Some((_, record)) = world.record() else { return };
    let by = id(world.rng.u8(0..5));
    let member = id(world.rng.u8(0..5));
    let entry = world.entry(&member);
    let others = record.present().filter(|m| m.id != member && m.state == MemberState::Active).count();
    match record.member(&member) {
        _ if world.rng.u32(0..3) == 0 => {
            let stays = |v: &&crate::types::Voter| v.member != member;
            let rest = record.voters.voters.iter().filter(stays).count();
            let is_voter = rest < record.voters.voters.len();
            let whole = world.settled() && record.voters_state == VotersState::Settled;
            // A majority must be left, and the mesh must be known elsewhere.
            if whole && (!is_voter || rest >= record.voters.majority() && rest >= 2) && world.faults.lost < 900 {
                *world.counts.entry("disk lost").or_default() += 1;
                world.crash(&member);
                world.add(&member);
            }
        }
        None => {
            world.edit_members(&by, |m| m.push(entry));
        }
        Some(m) if m.state != MemberState::Active || m.store != entry.store => {
            let change = |all: &mut Vec<_>| {
                all.retain(|m: &crate::types::MeshMember| m.id != entry.id);
                all.push(entry);
            };
            world.edit_members(&by, change);
        }
        Some(_) if others >= 3 => {
            world.edit_members(&by, |all| {
                if let Some(m) = all.iter_mut().find(|m| m.id == member) {
                    m.state = MemberState::Removed;
                }
            });
        }
        Some(_) => {}
    }
}

/// Everything runs and hears everything: the mesh must come to rest and answer.
fn heal(world: &mut World) {
    let seed = world.seed;
    world.faults = Faults::default();
    world.cut.clear();
    (0..5).for_each(|i| world.start(&id(i)));
    world.run(5 * SECOND);
    for i in 0..5 {
        let entry = world.entry(&id(i));
        let by = id(0);
        let known = world.record().expect("a mesh is made").1;
        if known.member(&entry.id) != Some(&entry) {
            world.edit_members(&by, |all| {
                all.retain(|m| m.id != entry.id);
                all.push(entry);
            });
            world.run(SECOND);
        }
    }
    world.run(20 * SECOND);
    assert_eq!(world.joined.len(), 1, "seed {seed}: one mesh");
    let (_, record) = world.record().unwrap();
    assert!(world.settled(), "seed {seed}: {record:?}");
    assert_eq!(record.voters.voters.len(), 5, "seed {seed}: {record:?}");
    for k in (0..3).map(key).chain([RecordKey::mesh()]) {
        let ops: Vec<_> = (0..5).map(|i| world.read(&id(i), &k)).collect();
        world.run(SECOND);
        let answers: Vec<_> = ops.iter().map(|op| &world.answers[op]).collect();
        assert!(answers.iter().all(|a| matches!(a, Answer::Read { .. })), "seed {seed}: {answers:?}");
        assert!(answers.iter().all(|a| *a == answers[0]), "seed {seed}: {answers:?}");
        let announced: Vec<_> = world.running().map(|(_, l)| l.copy(&k).map_or(0, |c| c.announced)).collect();
        assert!(announced.iter().all(|a| *a == announced[0]), "seed {seed}: {k} {announced:?}");
        if !k.is_mesh() {
            let expected = world.floors.get(&k).copied().unwrap_or(0);
            let op = world.change(&id(3), &k, expected, None, false);
            world.run(SECOND);
            assert_eq!(world.answers[&op], Answer::Changed { version: expected + 1 }, "seed {seed}");
        }
    }
    assert!(world.running().all(|(_, l)| l.fresh(world.now)), "seed {seed}: stale");
    assert!(world.rolled_back.is_empty(), "seed {seed}: {:?}", world.rolled_back);
    world.check_never();
}

fn faults(seed: u64) -> Faults {
    let of = |shift: u32, most: u32| u32::try_from(seed >> shift & 3).unwrap() * most / 3;
    Faults { lost: of(0, 150), twice: of(2, 150), late: of(4, 200), crash: of(6, 30), send_first: false }
}

#[test]
fn in_many_worlds_one_value_is_chosen_and_all_come_to_rest() {
    let seeds = option_env!("MIROIR_SEEDS").map_or(40, |s| s.parse().unwrap());
    let first = option_env!("MIROIR_SEED").map_or(0, |s| s.parse().unwrap());
    let mut counts = std::collections::BTreeMap::new();
    for seed in first..first + seeds {
        let mut world = live(seed, faults(seed));
        heal(&mut world);
        world.counts.iter().for_each(|(what, n)| *counts.entry(*what).or_insert(0) += n);
    }
    println!("{counts:?}");
}
