//! The ledger as a whole: facts in a small world, and what holds in many worlds.
//!
//! Rule: a test looks at answers, copies and what is durable, never into the core.

use std::collections::BTreeSet;
#[cfg(test)]
use std::env;
use std::sync::Arc;
use std::time::Duration;

use super::effect::{Answer, Notice};
use super::simulated::{Faults, World, id, key};
use super::voters;
use crate::types::{MemberState, MeshId, RecordKey, Voter, VoterList, VotersState};

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
        let fresh = world.rng.u32(0..10) == 0;
        let key = key(if fresh { world.rng.u8(10..40) } else { world.rng.u8(0..3) });
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
            // A majority must be left, now and while voters that have to go are going.
            let Some(record) = world.truth() else { return };
            let list = &record.voters;
            let rest = list.voters.len() - usize::from(list.of_member(&member).is_some());
            let rests = voters::next(&record, &BTreeSet::new()).is_none();
            if world.settled() && rests && rest >= list.majority() && rest >= 2 {
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
        if known.member(&entry.id).is_none_or(|m| (m.store, m.state) != (entry.store, entry.state)) {
            world.edit_members(&by, |all| {
                all.retain(|m| m.id != entry.id);
                all.push(entry);
            });
            world.run(SECOND);
        }
    }
    world.run(20 * SECOND);
    assert_eq!(world.joined.len(), 1, "seed {seed}: one mesh");
    world.check_never();
    let record = world.truth().unwrap();
    if world.whole(&record.voters) < record.voters.majority() {
        // A disk was lost while another voter was on its way out: only an operator's order helps.
        *world.counts.entry("majority lost").or_default() += 1;
        return;
    }
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
    let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let of = |shift: u32, most: u32| u32::try_from(seed >> shift & 3).unwrap() * most / 3;
    Faults { lost: of(0, 150), twice: of(2, 150), late: of(4, 200), crash: of(6, 30), send_first: false }
}

#[test]
fn in_many_worlds_one_value_is_chosen_and_all_come_to_rest() {
    let mut counts = std::collections::BTreeMap::new();
    for seed in seeds(40) {
        let mut world = live(seed, faults(seed));
        heal(&mut world);
        world.counts.iter().for_each(|(what, n)| *counts.entry(*what).or_insert(0) += n);
    }
    println!("{counts:?}");
}

/// So many seeds, or those that a person asks for: `MIROIR_SEEDS=first..end`.
fn seeds(count: u64) -> std::ops::Range<u64> {
    let text = env::var("MIROIR_SEEDS").ok();
    let asked = text.as_deref().and_then(|s| s.split_once(".."));
    asked.map_or(0..count, |(first, end)| first.parse().unwrap()..end.parse().unwrap())
}

#[test]
fn in_many_worlds_a_mesh_is_made_once() {
    for seed in seeds(60) {
        let mut world = World::new(seed, 3);
        world.faults = Faults { lost: 100, twice: 100, late: 300, crash: 40, send_first: false };
        let mut wiped = false;
        for _ in 0..40 {
            let span = Duration::from_millis(world.rng.u64(1..100));
            world.run(span);
            let member = id(world.rng.u8(0..4));
            if !world.nodes.contains_key(&member) {
                world.add(&member);
            } else if world.rng.u32(0..4) == 0 {
                world.crash_and_restart(&member);
            } else if !wiped && world.rng.u32(0..8) == 0 {
                wiped = true;
                world.crash(&member);
                world.add(&member);
            }
        }
        world.faults = Faults::default();
        for i in 0..4 {
            if !world.nodes.contains_key(&id(i)) {
                world.add(&id(i));
            }
            world.start(&id(i));
        }
        world.run(12 * SECOND);
        assert_eq!(world.joined.len(), 1, "seed {seed}: {:?}", world.joined);
        assert!(world.running().all(|(_, l)| l.mesh().is_some()), "seed {seed}");
    }
}

#[test]
fn a_store_put_back_from_a_copy_takes_no_part() {
    let mut world = made(5, 3);
    let copy = world.nodes[&id(2)].disk.clone();
    for version in 0..4 {
        world.change(&id(0), &key(0), version, None, false);
        world.run(SECOND);
    }
    for _ in 0..2 {
        world.crash(&id(2));
        if world.rolled_back.is_empty() {
            world.nodes.get_mut(&id(2)).unwrap().disk = copy.clone();
        }
        world.start(&id(2));
        world.run(2 * SECOND);
        assert!(world.rolled_back.contains(&id(2)));
        assert!(!world.nodes[&id(2)].core.as_ref().unwrap().fresh(world.now), "it can't know what it has forgotten");
        let op = world.change(&id(2), &key(1), 0, None, false);
        assert!(matches!(world.answers[&op], Answer::Refused { .. }));
    }
    let op = world.change(&id(1), &key(0), 4, None, false);
    world.run(SECOND);
    assert_eq!(world.answers[&op], Answer::Changed { version: 5 });
}

#[test]
fn a_store_put_back_is_told_by_whoever_heard_of_it_from_others() {
    let mut world = made(14, 3);
    let copy = world.nodes[&id(1)].disk.clone();
    // Member 2 hears of what member 1 votes only through member 0.
    world.cut.extend([(id(1), id(2)), (id(2), id(1))]);
    for version in 0..3 {
        world.change(&id(0), &key(0), version, None, false);
        world.run(SECOND);
    }
    (0..2).for_each(|i| world.crash(&id(i)));
    world.nodes.get_mut(&id(1)).unwrap().disk = copy;
    world.cut.clear();
    world.start(&id(1));
    world.run(SECOND);
    assert!(world.rolled_back.contains(&id(1)));
}

#[test]
fn members_that_start_again_together_vote_at_once() {
    let mut world = made(15, 3);
    let op = world.change(&id(0), &key(0), 0, None, false);
    world.run(SECOND);
    assert_eq!(world.answers[&op], Answer::Changed { version: 1 });
    (0..3).for_each(|i| world.crash(&id(i)));
    (0..3).for_each(|i| world.start(&id(i)));
    world.run(SECOND / 2);
    let op = world.change(&id(2), &key(0), 1, None, false);
    world.run(SECOND / 4);
    assert_eq!(world.answers[&op], Answer::Changed { version: 2 });
}

#[test]
fn beside_a_dead_voter_one_that_starts_again_votes_after_a_ttl() {
    let mut world = made(16, 3);
    (0..2).for_each(|i| world.crash(&id(i)));
    world.start(&id(1));
    let ttl = super::simulated::config(&id(1), None).lease_ttl;
    world.run(ttl / 2);
    let votes = |world: &World| world.nodes[&id(1)].core.as_ref().unwrap().votes();
    assert!(!votes(&world), "member 0 might have heard of what the store has forgotten");
    world.run(ttl);
    assert!(votes(&world));
    let op = world.change(&id(2), &key(0), 0, None, false);
    world.run(SECOND);
    assert_eq!(world.answers[&op], Answer::Changed { version: 1 });
}

#[test]
fn a_voter_that_starts_again_alone_never_votes() {
    let mut world = made(17, 3);
    (0..3).for_each(|i| world.crash(&id(i)));
    world.start(&id(1));
    world.run(30 * SECOND);
    assert!(!world.nodes[&id(1)].core.as_ref().unwrap().votes());
}

#[test]
fn survivors_go_on_as_a_new_mesh() {
    let mut world = made(6, 5);
    let old = world.running().next().unwrap().1.mesh();
    let op = world.change(&id(4), &key(0), 0, None, false);
    world.run(SECOND);
    assert_eq!(world.answers[&op], Answer::Changed { version: 1 });
    (0..3).for_each(|i| world.crash(&id(i)));
    let op = world.change(&id(4), &key(0), 1, None, false);
    world.run(3 * SECOND);
    assert!(matches!(world.answers[&op], Answer::NoQuorum | Answer::Unknown));
    let survivors = [id(3), id(4)].into();
    world.submit(&id(3), super::effect::Command::Recover { survivors });
    world.run(10 * SECOND);
    let meshes: Vec<_> = world.running().map(|(_, l)| l.mesh()).collect();
    assert!(meshes.len() == 2 && meshes[0] == meshes[1] && meshes[0] != old, "{meshes:?}");
    let (_, record) = world.record().unwrap();
    assert_eq!((record.voters.voters.len(), record.present().count()), (2, 2), "{record:?}");
    // What was not told as chosen may have survived or not.
    let op = world.read(&id(3), &key(0));
    world.run(SECOND);
    let Answer::Read { current: Some(current) } = world.answers[&op].clone() else { panic!("nothing survived") };
    let op = world.change(&id(4), &key(0), current.version, None, false);
    world.run(SECOND);
    assert_eq!(world.answers[&op], Answer::Changed { version: current.version + 1 });
    // One that comes back finds nobody in its mesh.
    world.start(&id(0));
    let op = world.change(&id(0), &key(0), 1, None, false);
    world.run(4 * SECOND);
    assert_eq!(world.answers[&op], Answer::NoQuorum);
    assert_eq!(world.nodes[&id(0)].core.as_ref().unwrap().mesh(), old);
}

#[test]
fn two_orders_to_recover_that_cross_make_one_mesh() {
    for seed in 0..60 {
        let mut world = made(seed, 5);
        (0..2).for_each(|i| world.crash(&id(i)));
        world.run(SECOND);
        world.faults =
            Faults { lost: 100, twice: 100, late: 100, crash: if seed % 2 == 0 { 0 } else { 3 }, send_first: false };
        let order = || super::effect::Command::Recover { survivors: [id(2), id(3), id(4)].into() };
        for by in [2, 3, 4] {
            let pause = Duration::from_millis(world.rng.u64(0..600));
            world.run(pause);
            world.submit(&id(by), order());
        }
        world.run(5 * SECOND);
        world.faults = Faults::default();
        world.run(15 * SECOND);
        let survivors: Vec<_> = (2..5).map(|i| world.nodes[&id(i)].core.as_ref().unwrap()).collect();
        assert!(
            survivors.iter().all(|l| l.recovering().is_none() && l.mesh().is_some()),
            "seed {seed}: they stand still"
        );
        assert!(survivors.iter().all(|l| l.mesh() == survivors[0].mesh()), "seed {seed}: two meshes");
        let op = world.change(&id(4), &key(0), 0, None, false);
        world.run(2 * SECOND);
        assert!(matches!(world.answers[&op], Answer::Changed { .. }), "seed {seed}: {:?}", world.answers[&op]);
    }
}

#[test]
fn the_member_that_wrote_last_writes_again_in_one_round_trip() {
    let mut world = made(7, 3);
    let mut version = 0;
    for _ in 0..3 {
        let op = world.change(&id(1), &key(0), version, None, true);
        world.run(SECOND);
        assert!(matches!(world.answers[&op], Answer::Changed { .. }));
        version += 1;
    }
    let op = world.change(&id(1), &key(0), version, None, true);
    // A round trip takes at most 24 ms, two at least as much as four single ways.
    let before = world.sent;
    world.run(Duration::from_millis(24));
    assert!(matches!(world.answers[&op], Answer::Changed { .. }));
    assert!(world.sent - before <= 2 + 6, "{} messages", world.sent - before);
}

#[test]
fn a_member_that_hears_nobody_is_stale_and_answers_no_quorum() {
    let mut world = made(8, 3);
    world.run(SECOND);
    for i in 0..2 {
        world.cut.insert((id(i), id(2)));
        world.cut.insert((id(2), id(i)));
    }
    assert!(world.nodes[&id(2)].core.as_ref().unwrap().fresh(world.now));
    let op = world.change(&id(2), &key(0), 0, None, false);
    world.run(3 * SECOND);
    assert_eq!(world.answers[&op], Answer::NoQuorum);
    assert!(!world.nodes[&id(2)].core.as_ref().unwrap().fresh(world.now));
    assert!(world.nodes[&id(0)].core.as_ref().unwrap().fresh(world.now));
}

#[test]
fn a_batch_is_one_message_to_each_voter() {
    let mut world = made(9, 3);
    let before = world.sent;
    let ops = world.batch(&id(0), (0..100).map(key));
    assert_eq!(world.sent - before, 2);
    world.run(SECOND);
    assert!(ops.iter().all(|op| world.answers[op] == Answer::Changed { version: 1 }));
    assert!(world.running().all(|(_, l)| (0..100).all(|k| l.copy(&key(k)).is_some())));
}

#[test]
fn of_rivals_one_succeeds_and_the_others_are_told_what_was_chosen() {
    for seed in 10..20 {
        let mut world = made(seed, 3);
        let ops: Vec<_> = (0..3).map(|i| world.change(&id(i), &key(0), 0, None, false)).collect();
        world.run(3 * SECOND);
        let won = ops.iter().filter(|op| matches!(world.answers[op], Answer::Changed { version: 1 })).count();
        // A loser whose value was carried to its end by a rival is told a conflict with its own value.
        let own = |op: &&u64| matches!(&world.answers[op], Answer::Conflict { maybe_own: true, current: Some(_) });
        assert!(won == 1 || won == 0 && ops.iter().any(|op| own(&op)), "seed {seed}: {:?}", world.answers);
        world.check_never();
    }
}

#[test]
fn a_change_that_a_rival_carries_to_its_end_is_told_to_all() {
    let step = Duration::from_millis(1);
    for seed in 0..20 {
        let mut world = made(seed, 3);
        world.change(&id(0), &key(1), 0, None, false);
        world.run(SECOND);
        // It ends when one other voter has accepted what it asked for, which the third has not heard of.
        world.cut.insert((id(0), id(2)));
        world.change(&id(0), &key(1), 1, None, false);
        let accepted = |world: &World| {
            let register = world.nodes[&id(1)].disk.registers.get(&key(1));
            register.and_then(|r| r.accepted.as_ref()).is_some_and(|(_, record)| record.version == 2)
        };
        while !accepted(&world) {
            world.run(step);
        }
        world.crash(&id(0));
        let op = world.change(&id(2), &key(1), 1, None, false);
        while !world.answers.contains_key(&op) {
            world.run(step);
        }
        let Answer::Conflict { current: Some(current), .. } = &world.answers[&op] else {
            panic!("seed {seed}: {:?}", world.answers[&op])
        };
        assert_eq!(current.version, 2);
        // Sooner than copies are compared.
        world.run(20 * step);
        let copies = [1, 2].map(|i| world.nodes[&id(i)].core.as_ref().and_then(|l| Some(l.copy(&key(1))?.version)));
        assert_eq!(copies, [Some(2), Some(2)], "seed {seed}");
    }
}

#[test]
fn who_reaches_one_other_only_hears_from_it_whatever_is_chosen_and_is_stale() {
    for seed in 0..20 {
        let mut world = made(seed, 5);
        for i in 1..=2 {
            world.change(&id(0), &key(i), 0, None, false);
        }
        world.run(SECOND);
        for away in 1..4 {
            world.cut.extend([(id(0), id(away)), (id(away), id(0))]);
        }
        world.run(12 * SECOND);
        // Sooner than what was read before is given up, after a TTL.
        for (changed, version) in [(1, 1), (2, 1), (1, 2), (2, 2)] {
            world.change(&id(1), &key(changed), version, None, false);
            world.run(SECOND);
            let cut_off = world.nodes[&id(0)].core.as_ref().unwrap();
            let known = cut_off.copy(&key(changed)).map(|copy| copy.version);
            assert_eq!((known, cut_off.fresh(world.now)), (Some(version + 1), false), "seed {seed}: {changed}");
        }
    }
}

#[test]
fn a_caller_does_not_change_the_voters() {
    let mut world = made(21, 3);
    let (version, mut record) = world.record().unwrap();
    record.voters.voters.pop();
    let op = world.change(&id(0), &RecordKey::mesh(), version, Some(record.to_json()), false);
    world.run(SECOND);
    assert!(matches!(world.answers[&op], Answer::Refused { .. }));
    assert_eq!(world.truth().unwrap().voters.voters.len(), 3);
}

#[test]
fn a_new_member_votes_and_a_silent_one_is_replaced_until_it_is_heard_again() {
    let names = |world: &World| {
        let record = world.truth().unwrap();
        assert_eq!(record.voters_state, VotersState::Settled);
        record.voters.voters.iter().map(|v| v.member.to_string()).collect::<Vec<_>>().join(" ")
    };
    let mut world = World::new(22, 3);
    (0..4).for_each(|i| world.add(&id(i)));
    world.run(2 * SECOND);
    world.batch(&id(0), (0..100).map(key));
    let entry = world.entry(&id(3));
    world.edit_members(&id(0), |all| all.push(entry));
    world.run(5 * SECOND);
    assert_eq!(names(&world), "m0 m1 m2 m3");
    world.crash(&id(1));
    world.run(15 * SECOND);
    assert_eq!(names(&world), "m0 m2 m3");
    world.start(&id(1));
    world.run(5 * SECOND);
    assert_eq!(names(&world), "m0 m1 m2 m3");
}

#[test]
fn a_voter_that_only_one_member_does_not_hear_is_not_silent() {
    let mut world = made(24, 5);
    let before = world.truth().unwrap().voters;
    world.cut.extend([(id(0), id(1)), (id(1), id(0))]);
    // As renewals of leases do.
    for version in 0..40 {
        world.change(&id(2), &key(0), version, None, true);
        world.run(SECOND / 2);
    }
    assert_eq!(world.truth().unwrap().voters, before);
}

#[test]
fn members_of_two_meshes_say_so_and_exchange_nothing() {
    let mut world = made(23, 3);
    world.add(&id(4));
    world.crash(&id(4));
    let disk = &mut world.nodes.get_mut(&id(4)).unwrap().disk;
    let other = MeshId([9; 16]);
    let own = Voter { member: id(4), store: disk.store };
    (disk.mesh, disk.list) = (Some((other, true)), Some(Arc::new(VoterList::new(1, vec![own]))));
    world.start(&id(4));
    let entry = world.entry(&id(4));
    world.edit_members(&id(0), |all| all.push(entry));
    world.run(3 * SECOND);
    let core = world.nodes[&id(4)].core.as_ref().unwrap();
    assert_eq!((core.mesh(), core.copy(&RecordKey::mesh())), (Some(other), None));
    let mesh = world.truth().unwrap().mesh;
    assert!(world.notices.contains(&(id(4), Notice::OtherMesh { member: id(0), mesh })));
}

#[test]
fn a_maker_that_lost_its_disk_is_not_overtaken_by_what_it_said_before() {
    let mut world = World::new(24, 3);
    (0..3).for_each(|i| world.add(&id(i)));
    let until = |world: &mut World, done: &dyn Fn(&World) -> bool| {
        for _ in 0..20_000 {
            if done(world) {
                return;
            }
            world.run(Duration::from_micros(100));
        }
        panic!("it does not come to that");
    };
    // The maker has accepted its own record, and has told the others to.
    until(&mut world, &|w| w.nodes[&id(0)].disk.mesh.is_some());
    let to_one = world.hold(&id(0), &id(1));
    let to_two = world.hold(&id(0), &id(2));
    assert!(!to_one.is_empty() && !to_two.is_empty());
    world.crash(&id(0));
    world.add(&id(0));
    let store = world.nodes[&id(0)].disk.store;
    // One has let the maker's next life make a mesh when the earlier one's word arrives.
    until(&mut world, &|w| w.nodes[&id(1)].disk.forming.as_ref().is_some_and(|f| f.store == store));
    world.release(to_one);
    world.run(Duration::from_millis(1));
    assert_eq!(world.nodes[&id(1)].disk.mesh, None);
    world.run(5 * SECOND);
    assert_eq!(world.joined.len(), 1);
    assert!(world.running().all(|(_, l)| l.mesh().is_some()));
}
