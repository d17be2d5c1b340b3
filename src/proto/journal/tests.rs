//! The journal as a whole: facts in a small world, and what holds in many worlds.
//!
//! Rule: a test looks at answers, records and what is durable, never into a core.

use std::collections::BTreeMap;
#[cfg(test)]
use std::env;
use std::time::Duration;

use super::effect::{Alive, Answer, Effect, Hint, OpId, Rest, Stored};
use super::entry::{Body, Entry, Kind, Write};
use super::log::StoredLog;
use super::message::{Message, Said};
use super::replica::Replica;
use super::simulated::{Faults, World, config, id};
use crate::proto::env::{Env, Instant};
use crate::types::{
    Epoch, Holder, MemberId, Position, ReplicaId, ReplicaState, ShardCopy, ShardState, StoreId, TaskPart, TaskUid,
};

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
            world.isolate(&member);
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
        60..61 if world.seed.is_multiple_of(4) => {
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
        64..68 => {
            let stuck = world.is_stuck(&member);
            world.stick(&member, !stuck);
        }
        _ => {}
    }
}

/// What one world goes through, until it is well again.
fn live(seed: u64) -> World {
    let members = 3 + usize::try_from(seed % 3).unwrap();
    let copies = 2 + usize::try_from(seed / 3 % 2).unwrap() + usize::from(seed.is_multiple_of(7) && members == 5);
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
    world.run(SECOND);
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
        *counts.entry("acknowledged").or_insert(0) += world.acknowledged() as u64;
    }
    println!("{counts:?}");
}

fn calm(seed: u64, members: usize, copies: usize) -> World {
    let mut world = World::new(seed, members, 2, copies, 4);
    world.run(2 * SECOND);
    assert!(world.acknowledged() > 20, "clients write");
    world
}

#[test]
fn in_a_calm_world_every_write_is_acknowledged_and_applied_by_all() {
    let mut world = calm(1, 3, 3);
    assert_eq!(world.counts.get("unknown"), None);
    world.writing = false;
    world.run(2 * SECOND);
    world.check_rest();
}

#[test]
fn a_shard_at_rest_says_nothing() {
    let mut world = calm(2, 4, 3);
    world.writing = false;
    world.run(2 * SECOND);
    assert!(world.is_idle());
    let before = world.counts["message"];
    world.offer_all();
    world.run(60 * SECOND);
    assert_eq!((world.counts["message"], world.is_idle()), (before, true));
}

#[test]
fn a_follower_that_starts_again_when_writing_is_over_applies_all_that_is_committed() {
    for seed in seeds(60) {
        let mut world = World::new(seed, 3, 2, 3, 4);
        world.run(2 * SECOND);
        let primaries = [world.primary(0), world.primary(1)];
        let follower = (0..3).map(id).find(|member| !primaries.contains(member)).expect("two shards");
        world.faults.lost = if seed % 2 == 0 { 0 } else { 300 };
        world.writing = false;
        let span = Duration::from_millis(world.rng.u64(0..300));
        world.run(span);
        world.crash_and_restart(&follower);
        world.run(6 * SECOND);
        world.heal();
        world.run(8 * SECOND);
        world.check_rest();
        assert!(world.is_idle(), "seed {seed}");
        let before = world.counts["message"];
        world.offer_all();
        world.run(60 * SECOND);
        assert_eq!((world.counts["message"], world.is_idle()), (before, true), "seed {seed}");
        world.check_rest();
    }
}

/// What stands in a shard's journals.
fn kept(world: &World, shard: usize) -> Vec<usize> {
    world.nodes.values().map(|node| node.disks[shard].entries.len()).collect()
}

#[test]
fn a_node_that_applies_nothing_holds_up_no_journal_but_its_own_and_loses_nothing() {
    for seed in seeds(20) {
        let mut world = World::new(seed, 3, 2, 3, 4);
        world.run(2 * SECOND);
        let stuck = world.record[0].in_sync.last().unwrap().member.clone();
        let at = usize::from(stuck != id(0)) + usize::from(stuck == id(2));
        world.stick(&stuck, true);
        for _ in 0..10 {
            world.run(SECOND / 2);
            world.offer_all();
        }
        for shard in 0..2 {
            let (kept, all) = (kept(&world, shard), world.histories[shard].all_committed().len());
            assert_eq!(world.record[shard].in_sync.len(), 3, "seed {seed}");
            // Not where the stuck one is the primary: others wait for what it would judge.
            if world.primary(shard) != stuck {
                let others = (0..3).filter(|i| *i != at).map(|i| kept[i]);
                assert!(others.max().unwrap() * 3 < all && kept[at] * 2 > all, "seed {seed}: {kept:?} of {all}");
            }
        }
        // Whoever else dies, it has all that its node lacks.
        let dies = world.primary(0);
        match seed % 4 {
            0 => world.crash_and_restart(&stuck),
            1 => world.crash_and_restart(&dies),
            2 => world.lose_store(&dies),
            _ => {}
        }
        world.run(SECOND);
        rest(&mut world);
    }
}

#[test]
fn where_too_few_nodes_apply_anything_no_entry_goes() {
    for (seed, stuck) in seeds(20).flat_map(|seed| [(seed, 0..3), (seed, 0..2), (seed, 1..3)]) {
        let mut world = World::new(seed, 3, 2, 3, 4);
        world.run(2 * SECOND);
        stuck.clone().for_each(|i| world.stick(&id(i), true));
        let before = world.acknowledged();
        for _ in 0..6 {
            world.run(SECOND / 2);
            world.offer_all();
        }
        assert!(world.acknowledged() > before, "it is about entries that are there");
        for shard in 0..2 {
            let applied = stuck.clone().map(|i| world.nodes[&id(i)].disks[shard].applied_to()).max().unwrap();
            let floor = world.nodes.values().map(|node| node.disks[shard].floor.seq).max().unwrap();
            assert!(floor <= applied, "seed {seed}: entries up to {floor} went, {applied} are applied");
        }
        rest(&mut world);
    }
}

#[test]
fn a_primary_that_dies_is_replaced_and_leaves_the_set() {
    let mut world = calm(3, 3, 3);
    let primary = world.primary(0);
    world.crash(&primary);
    world.run(2 * SECOND);
    assert_ne!(world.primary(0), primary);
    assert!(!world.record[0].in_sync.iter().any(|id| id.member == primary));
    let before = world.acknowledged();
    world.run(SECOND);
    assert!(world.acknowledged() > before);
    rest(&mut world);
}

#[test]
fn a_primary_that_is_cut_off_commits_nothing_more_and_another_does() {
    let mut world = calm(4, 3, 3);
    let primary = world.primary(0);
    world.isolate(&primary);
    world.run(3 * SECOND);
    assert_ne!(world.primary(0), primary);
    let before = world.acknowledged();
    world.run(SECOND);
    assert!(world.acknowledged() > before);
    rest(&mut world);
}

#[test]
fn a_follower_that_is_slow_leaves_and_comes_back_after_a_quiet_time() {
    let mut world = calm(5, 3, 3);
    let slow = world.record[0].in_sync.last().unwrap().member.clone();
    world.nodes.get_mut(&slow).unwrap().slow = true;
    world.run(3 * SECOND);
    assert!(!world.record[0].in_sync.iter().any(|id| id.member == slow), "{:?}", world.record[0]);
    let before = world.acknowledged();
    world.run(SECOND);
    assert!(world.acknowledged() > before + 8, "the others go on at their own pace");
    rest(&mut world);
}

#[test]
fn a_primary_whose_store_is_slow_hands_over() {
    let mut world = calm(6, 3, 3);
    let slow = world.primary(0);
    world.nodes.get_mut(&slow).unwrap().slow = true;
    world.run(4 * SECOND);
    assert_ne!(world.primary(0), slow);
    assert!(!world.record[0].in_sync.iter().any(|id| id.member == slow));
    rest(&mut world);
}

#[test]
fn a_follower_that_hears_nothing_from_its_primary_leaves_though_all_others_see_both() {
    let mut world = calm(7, 4, 4);
    let (primary, follower) = (world.primary(0), world.record[0].in_sync.last().unwrap().member.clone());
    world.cut.insert((primary.clone(), follower.clone()));
    world.run(3 * SECOND);
    let state = &world.record[0];
    let has = |m: &MemberId| state.in_sync.iter().any(|id| id.member == *m);
    assert!(has(&primary) != has(&follower) || world.primary(0) != primary, "{state:?}");
    let before = world.acknowledged();
    world.run(SECOND);
    assert!(world.acknowledged() > before);
    rest(&mut world);
}

#[test]
fn a_member_with_an_empty_store_is_filled_again() {
    let mut world = calm(8, 3, 3);
    let lost = world.record[0].in_sync.last().unwrap().member.clone();
    world.lose_store(&lost);
    world.run(4 * SECOND);
    assert_eq!(world.record[0].in_sync.len(), 3);
    rest(&mut world);
}

#[test]
fn a_shard_all_of_whose_stores_are_lost_begins_anew_on_an_operators_order() {
    for seed in 20..26 {
        let mut world = World::new(seed, 3, 2, 2, 4);
        world.run(3 * SECOND);
        assert!(world.acknowledged() > 0);
        let holders: Vec<MemberId> = world.record[0].in_sync.iter().map(|id| id.member.clone()).collect();
        holders.iter().for_each(|member| world.lose_store(member));
        rest(&mut world);
        assert!(
            world.counts.contains_key("begun anew") && !world.counts.contains_key("shard gone"),
            "{:?}",
            world.counts
        );
        assert_eq!(world.record[0].in_sync.len(), 2);
    }
}

#[test]
fn when_all_end_at_once_and_start_again_nothing_is_lost() {
    for seed in 9..14 {
        let mut world = calm(seed, 3, 3);
        (0..3).for_each(|i| world.crash_and_restart(&id(i)));
        world.run(3 * SECOND);
        let before = world.acknowledged();
        world.run(SECOND);
        assert!(world.acknowledged() > before);
        rest(&mut world);
    }
}

// One replica by itself.

fn rid(m: usize) -> ReplicaId {
    ReplicaId { member: id(m), store: StoreId([u8::try_from(m).unwrap(); 16]) }
}

fn epoch(number: u64) -> Epoch {
    Epoch::new(number).unwrap()
}

fn state(in_sync: &[usize], primary: (usize, u64), at: u64, set: u64) -> ShardState {
    ShardState {
        replicas: (0..3).map(|m| ShardCopy { id: rid(m), state: ReplicaState::Replica }).collect(),
        in_sync: in_sync.iter().map(|m| rid(*m)).collect(),
        primary: Some(Holder { member: id(primary.0), start: primary.1 }),
        epoch: epoch(at),
        set,
    }
}

/// A replica with what it wants done, step by step.
struct One {
    replica: Replica,
    rng: fastrand::Rng,
    now: Instant,
}

impl One {
    fn new(m: usize, start: u64, stored: Stored, record: ShardState, rest: Option<Rest>) -> Self {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut env = Env { now: Instant(0), rng: &mut rng };
        let alive = |m: usize| (id(m), Alive { store: rid(m).store, start: 1 });
        let sight = (0..3).map(alive).collect();
        let replica = Replica::recover(&mut env, config(), (rid(m), start), stored, Some(record), sight, rest);
        Self { replica, rng, now: Instant(0) }
    }

    /// A primary that has to ask its store whether it has a task.
    fn that_has_forgotten() -> Self {
        let log = StoredLog { older: Some(TaskUid(9)), ..StoredLog::default() };
        let stored = Stored { log, ..Stored::default() };
        let mut one = Self::new(0, 1, stored, state(&[0, 1], (0, 1), 1, 2), None);
        one.effects();
        one.stored(1);
        one
    }

    fn step(&mut self, f: impl FnOnce(&mut Replica, &mut Env)) -> Vec<Effect> {
        f(&mut self.replica, &mut Env { now: self.now, rng: &mut self.rng });
        std::iter::from_fn(|| self.replica.poll_effect()).collect()
    }

    fn effects(&mut self) -> Vec<Effect> {
        self.step(|_, _| ())
    }

    fn stored(&mut self, token: u64) -> Vec<Effect> {
        self.step(|r, env| r.handle_stored(env, token))
    }

    fn write(&mut self, op: u64, task: u32) -> Vec<Effect> {
        let part = TaskPart { task: TaskUid(task), part: 0 };
        let write = Write { part, kind: Kind::Delete, body: Body::empty() };
        self.step(|r, env| r.handle_write(env, OpId(op), write))
    }

    fn hears(&mut self, from: usize, to: usize, at: u64, said: Said) -> Vec<Effect> {
        let message = Message { to: rid(to).store, from: rid(from).store, epoch: epoch(at), said };
        self.step(|r, env| r.handle_message(env, &id(from), message))
    }

    /// All others have the whole journal.
    fn all_store(&mut self, at: u64) -> Vec<Effect> {
        let to = self.replica.log().last().seq;
        let said = |commit| Said::Stored { to, commit, applied: 0 };
        [1, 2].into_iter().flat_map(|m| self.hears(m, 0, at, said(0))).collect()
    }
}

fn answers(effects: &[Effect]) -> Vec<Answer> {
    let answer = |e: &Effect| match e {
        Effect::Answer { answer, .. } => Some(answer.clone()),
        _ => None,
    };
    effects.iter().filter_map(answer).collect()
}

fn sent(effects: &[Effect]) -> Vec<Said> {
    let said = |e: &Effect| match e {
        Effect::Send { message, .. } => Some(message.said.clone()),
        _ => None,
    };
    effects.iter().filter_map(said).collect()
}

fn at(e: u64, seq: u64) -> Position {
    Position { epoch: epoch(e), seq }
}

fn append(prev: Position, entries: Vec<Entry>, commit: Option<u64>) -> Said {
    Said::Append { prev, entries, commit, free: 0 }
}

#[test]
fn a_primary_stores_its_epoch_then_an_empty_entry_and_then_knows_what_is_committed() {
    let mut one = One::new(0, 1, Stored::default(), state(&[0, 1, 2], (0, 1), 1, 2), None);
    let effects = one.effects();
    assert!(matches!(&effects[..], [Effect::Reigns { .. }, Effect::Store { token: 1, .. }]), "{effects:?}");
    assert_eq!(answers(&one.write(1, 7)), [Answer::Busy]);
    let effects = one.stored(1);
    let [Effect::Store { rows, .. }, Effect::Send { .. }, Effect::Send { .. }] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!((rows.entries[0].kind, rows.entries[0].at), (Kind::Empty, at(1, 1)));
    assert!(sent(&effects).iter().all(|s| matches!(s, Said::Append { commit: None, .. })));
    assert_eq!(answers(&one.write(2, 7)), [], "taken, and not committed");
    assert!(answers(&one.all_store(1)).is_empty(), "its own store counts as well");
    assert!(!one.replica.is_open());
    let effects = one.stored(3);
    assert_eq!(answers(&effects), [Answer::Committed { seq: 2, refused: false, in_sync: 3, copies: 3 }]);
    assert!(effects.contains(&Effect::Committed { to: 2 }) && one.replica.is_open());
}

#[test]
fn a_new_primary_answers_no_resend_before_its_empty_entry_is_committed() {
    let part = TaskPart { task: TaskUid(7), part: 0 };
    let old = Entry::of(Write { part, kind: Kind::Delete, body: Body::empty() }, at(1, 1));
    let log = StoredLog { marks: vec![at(1, 1)], last: 1, commit: 1, tail: vec![old], ..StoredLog::default() };
    let stored = Stored { epoch: epoch(1), log, ..Stored::default() };
    let mut one = One::new(0, 2, stored, state(&[0, 1, 2], (0, 2), 2, 3), None);
    one.effects();
    one.stored(1);
    one.stored(2);
    assert_eq!(answers(&one.write(1, 7)), []);
    assert_eq!(answers(&one.all_store(2)), [Answer::Committed { seq: 1, refused: false, in_sync: 3, copies: 3 }]);
}

#[test]
fn a_write_is_refused_only_before_it_is_appended() {
    let mut one = One::new(0, 1, Stored::default(), state(&[0], (0, 1), 1, 2), None);
    one.effects();
    one.stored(1);
    assert_eq!(answers(&one.write(1, 7)), [Answer::NoQuorum]);
    assert_eq!(one.replica.log().last().seq, 1);
    let mut one = One::new(0, 1, Stored::default(), state(&[0, 1], (0, 1), 1, 2), None);
    one.effects();
    one.stored(1);
    assert_eq!(answers(&one.write(1, 7)), []);
    let effects = one.step(|r, env| r.handle_record(env, state(&[0, 1], (1, 4), 2, 3)));
    let hint = Hint { primary: Some(Holder { member: id(1), start: 4 }), epoch: epoch(2) };
    assert_eq!(answers(&effects), [Answer::Unknown(hint.clone())]);
    assert_eq!(answers(&one.write(2, 8)), [Answer::NotPrimary(hint)]);
}

#[test]
fn a_reign_ends_with_its_process_and_goes_on_after_a_rest() {
    let record = || state(&[0, 1, 2], (0, 1), 1, 2);
    let mut one = One::new(0, 1, Stored::default(), record(), None);
    one.effects();
    assert_eq!(one.replica.rest(), None, "its epoch is on its way");
    one.stored(1);
    one.stored(2);
    one.all_store(1);
    one.now = Instant(10_000);
    one.step(Replica::handle_tick);
    for m in [1, 2] {
        one.hears(m, 0, 1, Said::Stored { to: 1, commit: 1, applied: 1 });
    }
    let rest = one.replica.rest();
    assert!(rest.is_some());
    let log = StoredLog {
        marks: vec![at(1, 1)],
        last: 1,
        commit: 1,
        tail: vec![Entry::empty(at(1, 1))],
        ..StoredLog::default()
    };
    let stored = || Stored { epoch: epoch(1), log: log.clone(), ..Stored::default() };
    let again = One::new(0, 1, stored(), record(), rest);
    assert!(again.replica.is_open());
    let mut robbed = One::new(0, 1, stored(), record(), None);
    assert!(!robbed.replica.is_primary(), "it may have sent what it does not remember");
    let asks = |e: &Effect| matches!(e, Effect::Ask(c) if c.after.epoch == epoch(2) && c.after.is_led_by(&rid(0), 1));
    assert!(robbed.effects().iter().any(asks));
    let restarted = One::new(0, 2, stored(), record(), rest);
    assert!(!restarted.replica.is_primary());
    let other_store = One::new(0, 1, Stored::default(), state(&[1, 2], (0, 1), 1, 2), None);
    assert!(!other_store.replica.is_primary(), "not in the set");
}

/// A primary whose entry is stored by all, and committed; nobody else knows that.
fn committed_one() -> One {
    let mut one = One::new(0, 1, Stored::default(), state(&[0, 1, 2], (0, 1), 1, 2), None);
    one.effects();
    one.stored(1);
    one.stored(2);
    one.all_store(1);
    one
}

#[test]
fn a_primary_does_not_rest_before_all_in_sync_know_what_is_committed() {
    let mut one = committed_one();
    let news = append(at(1, 1), Vec::new(), Some(1));
    let knows = || Said::Stored { to: 1, commit: 1, applied: 0 };
    let wake = |one: &mut One| {
        one.now = one.replica.next_wake().expect("it goes on");
        sent(&one.step(Replica::handle_tick))
    };
    assert_eq!(wake(&mut one), [news.clone(), news.clone()]);
    assert!(!one.replica.is_idle() && one.replica.rest().is_none());
    one.hears(1, 0, 1, knows());
    assert!(!one.replica.is_idle() && one.replica.rest().is_none());
    // What was said to the other is lost.
    assert_eq!((wake(&mut one), wake(&mut one)), (Vec::new(), vec![news]));
    one.hears(2, 0, 1, knows());
    assert!(one.replica.rest().is_some());
    assert_eq!(one.replica.next_wake(), None);
}

#[test]
fn a_primary_tells_a_new_process_again_what_the_one_before_had_confirmed() {
    let mut one = committed_one();
    let tell = config().tell_commit;
    one.now = one.now.plus(tell);
    assert_eq!(sent(&one.step(Replica::handle_tick)).len(), 2);
    for m in [1, 2] {
        one.hears(m, 0, 1, Said::Stored { to: 1, commit: 1, applied: 0 });
    }
    assert!(one.replica.is_idle());
    assert_eq!(one.hears(1, 0, 1, Said::Unsure { commit: 1 }), [], "it knows all");
    assert!(one.replica.is_idle());
    one.hears(1, 0, 1, Said::Unsure { commit: 0 });
    assert!(!one.replica.is_idle());
    one.now = one.now.plus(tell);
    assert_eq!(sent(&one.step(Replica::handle_tick)), [append(at(1, 1), Vec::new(), Some(1))]);
    assert!(!one.replica.is_idle(), "until it has answered");
    one.hears(1, 0, 1, Said::Stored { to: 1, commit: 1, applied: 0 });
    assert!(one.replica.is_idle());
}

#[test]
fn a_follower_with_entries_that_may_be_committed_asks_until_it_is_told() {
    let tail = vec![Entry::empty(at(1, 1))];
    let log = StoredLog { marks: vec![at(1, 1)], last: 1, tail, ..StoredLog::default() };
    let stored = Stored { epoch: epoch(1), log, ..Stored::default() };
    let mut one = One::new(1, 2, stored, state(&[0, 1, 2], (0, 1), 1, 2), None);
    assert_eq!(one.effects(), []);
    let ask = |one: &mut One| {
        one.now = one.replica.next_wake().expect("it asks again");
        sent(&one.step(Replica::handle_tick))
    };
    for _ in 0..3 {
        assert_eq!(ask(&mut one), [Said::Unsure { commit: 0 }]);
        assert!(!one.replica.is_idle());
    }
    // What was said to the process before it does not help.
    one.hears(0, 1, 1, append(at(0, 0), Vec::new(), None));
    assert_eq!(ask(&mut one), [Said::Unsure { commit: 0 }]);
    let effects = one.hears(0, 1, 1, append(at(1, 1), Vec::new(), Some(1)));
    assert_eq!(effects[0], Effect::Committed { to: 1 });
    assert!(one.replica.is_idle());
    assert_eq!(one.replica.next_wake(), None);
}

#[test]
fn a_follower_asks_nobody_who_is_not_seen_to_be_its_primary() {
    let tail = vec![Entry::empty(at(1, 1))];
    let log = StoredLog { marks: vec![at(1, 1)], last: 1, tail, ..StoredLog::default() };
    let stored = Stored { epoch: epoch(1), log, ..Stored::default() };
    let mut one = One::new(1, 2, stored, state(&[0, 1, 2], (0, 1), 1, 2), None);
    let (me, alive) = (id(1), Alive { store: rid(1).store, start: 2 });
    one.step(|r, env| r.handle_sight(env, [(me.clone(), alive)].into()));
    assert_eq!((one.replica.next_wake(), one.replica.is_idle()), (None, false));
    let other = Alive { store: rid(0).store, start: 1 };
    one.step(|r, env| r.handle_sight(env, [(me, alive), (id(0), other)].into()));
    assert!(one.replica.next_wake().is_some());
    one.step(|r, env| r.handle_record(env, state(&[1, 2], (1, 1), 2, 3)));
    assert_eq!(one.replica.next_wake(), None, "its own earlier process");
}

#[test]
fn a_follower_confirms_what_is_durable_and_the_same() {
    let mut one = One::new(1, 1, Stored::default(), state(&[0, 1, 2], (0, 1), 1, 2), None);
    let entries = vec![Entry::empty(at(1, 1))];
    let effects = one.hears(0, 1, 1, append(at(0, 0), entries.clone(), None));
    assert!(matches!(&effects[..], [Effect::Store { token: 1, .. }]), "{effects:?}");
    assert_eq!(sent(&one.hears(0, 1, 1, append(at(0, 0), entries, None))), [], "still on its way");
    assert_eq!(sent(&one.stored(1)), [Said::Stored { to: 1, commit: 0, applied: 0 }]);
    let effects = one.hears(0, 1, 1, append(at(1, 1), Vec::new(), Some(1)));
    assert_eq!(effects[0], Effect::Committed { to: 1 });
    assert_eq!(sent(&effects), [Said::Stored { to: 1, commit: 1, applied: 0 }]);
    assert_eq!(sent(&one.hears(0, 1, 1, append(at(1, 5), Vec::new(), Some(5)))), [Said::Missing { have: at(1, 1) }]);
}

#[test]
fn a_follower_refuses_an_older_reign_also_before_it_has_anything_of_the_newer() {
    let mut one = One::new(1, 1, Stored::default(), state(&[0, 1, 2], (0, 1), 1, 2), None);
    one.step(|r, env| r.handle_record(env, state(&[1, 2], (2, 1), 2, 3)));
    let effects = one.hears(0, 1, 1, append(at(0, 0), vec![Entry::empty(at(1, 1))], None));
    assert_eq!(sent(&effects), [Said::Stale { seen: epoch(1) }]);
    assert_eq!(effects.len(), 1);
    let effects = one.hears(2, 1, 2, append(at(0, 0), Vec::new(), None));
    assert!(matches!(&effects[..], [Effect::Store { rows, .. }] if rows.epoch == epoch(2)), "{effects:?}");
}

#[test]
fn a_newcomer_counts_from_before_it_is_asked_for_until_a_higher_set_leaves_it_out() {
    let mut one = One::new(0, 1, Stored::default(), state(&[0, 1], (0, 1), 1, 2), None);
    one.effects();
    one.stored(1);
    one.stored(2);
    one.hears(1, 0, 1, Said::Stored { to: 1, commit: 0, applied: 0 });
    let effects = one.hears(2, 0, 1, Said::Stored { to: 1, commit: 0, applied: 0 });
    let asks = |e: &Effect| matches!(e, Effect::Ask(c) if c.after.is_in_sync(&rid(2)));
    assert!(effects.iter().any(asks), "{effects:?}");
    one.write(1, 7);
    one.stored(3);
    let effects = one.hears(1, 0, 1, Said::Stored { to: 2, commit: 1, applied: 0 });
    assert_eq!(answers(&effects), [], "the newcomer has not stored it");
    let effects = one.step(|r, env| r.handle_record(env, state(&[0, 1], (0, 1), 1, 3)));
    assert_eq!(answers(&effects), [Answer::Committed { seq: 2, refused: false, in_sync: 2, copies: 3 }]);
}

#[test]
fn a_new_primary_lets_nobody_in_before_it_knows_what_is_committed() {
    let mut one = One::new(0, 1, Stored::default(), state(&[0, 1], (0, 1), 1, 2), None);
    one.effects();
    one.stored(1);
    one.stored(2);
    let said = || Said::Stored { to: 1, commit: 0, applied: 0 };
    let asks = |e: &Effect| matches!(e, Effect::Ask(_));
    assert!(!one.hears(2, 0, 1, said()).iter().any(asks));
    assert!(one.hears(1, 0, 1, said()).iter().any(asks));
}

#[test]
fn a_new_primary_lets_in_who_has_everything_for_who_is_gone() {
    let mut one = One::new(0, 1, Stored::default(), state(&[0, 1], (0, 1), 1, 2), None);
    one.effects();
    one.stored(1);
    one.stored(2);
    one.write(1, 7);
    one.stored(3);
    one.now = Instant(0).plus(config().in_sync_lag);
    let asks = |e: &Effect| matches!(e, Effect::Ask(c) if c.after.in_sync == [rid(0), rid(2)]);
    let said = |to| Said::Stored { to, commit: 0, applied: 0 };
    assert!(!one.hears(2, 0, 1, said(1)).iter().any(asks), "it lacks what may be committed");
    let effects = one.hears(2, 0, 1, said(2));
    assert!(effects.iter().any(asks), "{effects:?}");
    assert!(!one.replica.is_open());
    let effects = one.step(|r, env| r.handle_record(env, state(&[0, 2], (0, 1), 1, 3)));
    assert_eq!(answers(&effects), [Answer::Committed { seq: 2, refused: false, in_sync: 2, copies: 3 }]);
}

/// A primary with an entry that all have stored, and as many of the set have applied, itself among them.
fn held_up(in_sync: &[usize], applied: usize) -> One {
    let mut one = One::new(0, 1, Stored::default(), state(in_sync, (0, 1), 1, 2), None);
    one.effects();
    one.stored(1);
    one.stored(2);
    one.write(1, 7);
    one.stored(3);
    for (i, m) in in_sync.iter().enumerate().skip(1) {
        one.hears(*m, 0, 1, Said::Stored { to: 2, commit: 2, applied: if i < applied { 2 } else { 1 } });
    }
    one.step(|r, _| r.handle_applied(if applied > 0 { 2 } else { 1 }));
    assert_eq!((one.replica.log().commit(), one.replica.free()), (2, 1));
    one
}

fn floor_of(effects: &[Effect]) -> Option<u64> {
    let floor = |e: &Effect| if let Effect::Store { rows, .. } = e { rows.floor } else { None };
    effects.iter().find_map(floor).map(|at| at.seq)
}

#[test]
fn who_applies_nothing_is_not_waited_for_when_it_is_overdue_and_stays_in_sync() {
    let mut one = held_up(&[0, 1, 2], 2);
    assert_eq!(floor_of(&one.step(|r, env| r.handle_trim(env, 2))), Some(1), "it may be about to");
    let effects = one.step(|r, env| r.handle_overdue(env, 2));
    assert_eq!((floor_of(&effects), effects.len()), (Some(2), 1), "the set stays as it is");
    one.stored(4);
    one.stored(5);
    let effects = one.write(2, 8);
    let free = |said: &Said| matches!(said, Said::Append { free: 2, .. });
    assert!(sent(&effects).len() == 2 && sent(&effects).iter().all(free), "others hear of it: {effects:?}");
}

#[test]
fn what_is_overdue_is_kept_until_as_many_have_applied_it_as_must_be_in_sync() {
    for (in_sync, applied) in [(&[0, 1, 2][..], 1), (&[0, 2], 1), (&[0, 1, 2], 0)] {
        let mut one = held_up(in_sync, applied);
        assert_eq!(floor_of(&one.step(|r, env| r.handle_overdue(env, 2))), Some(1), "{in_sync:?} {applied}");
        assert_eq!(one.replica.free(), 1);
    }
    // The others have applied it, and not the primary, whose word counts.
    let mut one = held_up(&[0, 1, 2], 0);
    for m in [1, 2] {
        one.hears(m, 0, 1, Said::Stored { to: 2, commit: 2, applied: 2 });
    }
    assert_eq!(floor_of(&one.step(|r, env| r.handle_overdue(env, 2))), Some(1));
}

/// The parts of what is to be stored, in its order.
fn parts_stored(effects: &[Effect]) -> Vec<TaskPart> {
    let rows = effects.iter().filter_map(|e| if let Effect::Store { rows, .. } = e { Some(rows) } else { None });
    rows.flat_map(|rows| &rows.entries).filter_map(|entry| entry.part).collect()
}

#[test]
fn pieces_of_a_task_are_appended_in_their_order_whichever_the_store_finds_first() {
    let (mut one, part) = (One::that_has_forgotten(), |part: u32| TaskPart { task: TaskUid(7), part });
    let mut finds = Vec::new();
    for n in 0..3 {
        let write = Write { part: part(n), kind: Kind::Delete, body: Body::empty() };
        finds.extend(one.step(|r, env| r.handle_write(env, OpId(u64::from(n)), write)));
    }
    assert_eq!(finds.iter().filter(|e| matches!(e, Effect::Find { .. })).count(), 3);
    let mut appended = Vec::new();
    for n in [2, 0, 1] {
        appended.extend(parts_stored(&one.step(|r, env| r.handle_found(env, epoch(1), part(n), None))));
    }
    assert_eq!(appended, [part(0), part(1), part(2)]);
}

#[test]
fn pieces_of_a_task_are_refused_together_and_none_is_appended_before_an_earlier_one() {
    let (mut one, part) = (One::that_has_forgotten(), |part: u32| TaskPart { task: TaskUid(7), part });
    let send = |one: &mut One, first: u64| {
        for (op, n) in (first..).zip(0..3) {
            let write = Write { part: part(n), kind: Kind::Delete, body: Body::empty() };
            let effects = one.step(|r, env| r.handle_write(env, OpId(op), write));
            assert!(matches!(&effects[..], [Effect::Find { .. }]), "{effects:?}");
        }
    };
    let found = |one: &mut One, n: u32| one.step(|r, env| r.handle_found(env, epoch(1), part(n), None));
    // The window is full.
    let mut token = 2;
    while !parts_stored(&one.write(token, 10 + u32::try_from(token).unwrap())).is_empty() {
        token += 1;
    }
    send(&mut one, 100);
    assert_eq!((found(&mut one, 2), found(&mut one, 0)), (Vec::new(), Vec::new()));
    assert_eq!(answers(&found(&mut one, 1)), [Answer::Busy, Answer::Busy, Answer::Busy]);
    // It is full when the first is found, and not any more when the others are.
    send(&mut one, 200);
    let mut effects = found(&mut one, 0);
    one.stored(token);
    one.all_store(1);
    effects.extend(found(&mut one, 1));
    effects.extend(found(&mut one, 2));
    assert_eq!((parts_stored(&effects), answers(&effects)), (vec![part(0), part(1), part(2)], Vec::new()));
}

#[test]
fn a_member_counts_until_the_record_leaves_it_out() {
    let mut one = One::new(0, 1, Stored::default(), state(&[0, 1, 2], (0, 1), 1, 2), None);
    one.effects();
    one.stored(1);
    one.stored(2);
    one.hears(1, 0, 1, Said::Stored { to: 1, commit: 0, applied: 0 });
    one.now = Instant(0).plus(config().in_sync_lag);
    let effects = one.step(Replica::handle_tick);
    let asks = |e: &Effect| matches!(e, Effect::Ask(c) if c.after.in_sync == [rid(0), rid(1)]);
    assert!(effects.iter().any(asks), "{effects:?}");
    assert!(!one.replica.is_open(), "asked for, and not answered");
    one.step(|r, env| r.handle_record(env, state(&[0, 1], (0, 1), 1, 3)));
    assert!(one.replica.is_open());
}

#[test]
fn a_replica_that_others_rely_on_takes_no_snapshot() {
    let stored = || Stored { rebuild: true, ..Stored::default() };
    let mut one = One::new(1, 1, stored(), state(&[0, 1, 2], (0, 1), 1, 2), None);
    let mut taken = true;
    one.step(|r, env| taken = r.handle_snapshot(env, at(1, 5), None));
    assert!(!taken);
    let effects = one.hears(0, 1, 1, append(at(0, 0), vec![Entry::empty(at(1, 1))], None));
    assert_eq!(sent(&effects), [Said::NeedsSnapshot]);
    one.step(|r, env| r.handle_record(env, state(&[0, 2], (0, 1), 1, 3)));
    let effects = one.step(|r, env| taken = r.handle_snapshot(env, at(1, 5), None));
    assert!(taken && matches!(&effects[..], [Effect::Store { rows, .. }] if rows.begin_at == Some(at(1, 5))));
    let effects = one.hears(0, 1, 1, append(at(1, 5), vec![Entry::empty(at(1, 6))], Some(6)));
    assert_eq!(sent(&effects), [], "full until the store is done");
    one.stored(1);
    one.hears(0, 1, 1, append(at(1, 5), vec![Entry::empty(at(1, 6))], Some(6)));
    assert_eq!(sent(&one.stored(2)), [Said::Stored { to: 6, commit: 6, applied: 5 }]);
}
