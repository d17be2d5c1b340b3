//! A learner and a source whose node goes on, with everything in any order, late, lost or refused.

use std::collections::BTreeMap;
use std::time::Duration;

use super::learner::{Config, Did};
use super::source::{self, Use};
use super::*;
use crate::proto::apply::{Standing, TaskRef};
use crate::proto::env::{Env, Instant};
use crate::types::{Epoch, JournalKey, MemberId, PhysicalIndex, Position, ShardId};

type Documents = BTreeMap<String, u64>;

#[derive(Debug, Clone, Copy)]
enum Entry {
    Set(u8, u64),
    Delete(u8),
    /// Depends on what was there.
    Edit,
}

fn apply(documents: &mut Documents, entry: Entry) {
    match entry {
        Entry::Set(id, value) => drop(documents.insert(id.to_string(), value)),
        Entry::Delete(id) => drop(documents.remove(&id.to_string())),
        Entry::Edit => documents.values_mut().for_each(|value| *value += 1),
    }
}

fn key() -> JournalKey {
    JournalKey { index: PhysicalIndex::new("a__m00000001").unwrap(), shard: ShardId(1) }
}

fn member(name: &str) -> MemberId {
    MemberId::new(name).unwrap()
}

struct World {
    rng: fastrand::Rng,
    now: Instant,
    /// What the source's node has after each entry.
    history: Vec<Documents>,
    entries: Vec<Entry>,
    conditional: u64,
    held: Option<Instant>,
    source: Source,
    /// The source is away until then.
    away: Instant,
    learner: Learner,
    node: Documents,
    tasks: u32,
    pending: Vec<Effect>,
    bodies: BTreeMap<(u64, u64), Documents>,
    floor: u64,
    sealed: Option<u64>,
    replayed: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let config = Config {
            batch_bytes: 40,
            batch_ids: 3,
            under_way: 3,
            pause_min: Duration::from_millis(1),
            settle: Duration::from_millis(20),
            ..Config::default()
        };
        let now = Instant(1);
        let learner = Learner::new(&mut Env { now, rng: &mut rng }, config);
        let source = source::Config { hold: Duration::from_millis(500), ..source::Config::default() };
        let node = (0..4).map(|i| (format!("left{i}"), i)).collect();
        let floor = if rng.bool() { 0 } else { 5 };
        let mut world = Self {
            rng,
            now,
            history: vec![Documents::new()],
            entries: Vec::new(),
            conditional: 0,
            held: None,
            source: Source::new(source, 7),
            away: now,
            learner,
            node,
            tasks: 0,
            pending: Vec::new(),
            bodies: BTreeMap::new(),
            floor,
            sealed: None,
            replayed: false,
        };
        (0..20).for_each(|_| world.go_on());
        world
    }

    fn applied(&self) -> u64 {
        self.entries.len() as u64
    }

    /// The source applies one more entry.
    fn go_on(&mut self) {
        let entry = match self.rng.u32(0..10) {
            0..6 => Entry::Set(self.rng.u8(0..20), self.rng.u64(..1_000)),
            6..8 => Entry::Delete(self.rng.u8(0..20)),
            _ if self.held.is_some_and(|until| until > self.now) => return,
            _ => Entry::Edit,
        };
        let mut next = self.history.last().unwrap().clone();
        apply(&mut next, entry);
        self.history.push(next);
        self.entries.push(entry);
        if matches!(entry, Entry::Edit) {
            self.conditional = self.applied();
        }
    }

    fn standing(&self) -> Standing {
        let (applied, conditional) = (self.applied(), self.conditional);
        Standing { applied, conditional, quiet: true, sound: true, ..Standing::default() }
    }

    fn sum(at: u64, documents: &Documents) -> Sum {
        let mut sum = Sum { at, documents: Some([0; 2]), ..Sum::default() };
        for (id, value) in documents {
            sum.add_id(id);
            assert!(sum.add_document(format!("{{\"{id}\":{value}}}").as_bytes()));
        }
        sum
    }

    fn tell(&mut self, tell: impl FnOnce(&mut Learner, &mut Env<'_>)) {
        tell(&mut self.learner, &mut Env { now: self.now, rng: &mut self.rng });
    }

    fn task(&mut self) -> TaskRef {
        self.tasks += 1;
        TaskRef { uid: self.tasks, enqueued_at: "t".into() }
    }

    fn lost<T>(&mut self) -> Option<Answer<T>> {
        if self.away > self.now {
            return Some(Answer::Never("away".into()));
        }
        match self.rng.u32(0..60) {
            0 => Some(Answer::Never("lost".into())),
            1 => Some(Answer::Later),
            _ => None,
        }
    }

    fn did(&mut self) -> Did {
        match self.rng.u32(0..80) {
            0 => Did::Failed("full".into()),
            1 => Did::Unknown,
            _ => Did::Done(self.task()),
        }
    }

    fn judged<T>(&self, token: u64, given: T) -> Answer<T> {
        match self.source.judge(token, Some(&self.standing())) {
            Use::Yes => Answer::Given(given),
            Use::Again => Answer::Again,
            Use::Never => Answer::Never("gone".into()),
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Sources { round } => {
                let here = Here { anew: false, floor: self.floor };
                self.tell(|l, env| l.handle_sources(env, round, here, vec![member("s")]));
            }
            Effect::Offer { round, .. } => {
                let answer = self.lost().unwrap_or(Answer::Given(()));
                self.tell(|l, env| l.handle_offered(env, round, answer));
            }
            Effect::Clear { round, .. } => {
                let puts = self.pending.iter().any(|other| matches!(other, Effect::Put { .. }));
                assert!(!puts, "what is under way comes behind the deletion");
                let did = self.did();
                if did != Did::Failed("full".into()) {
                    self.node.clear();
                }
                self.sealed = None;
                self.tell(|l, env| l.handle_cleared(env, round, did));
            }
            Effect::Begin { round, attempt, .. } => {
                let answer = match self.lost() {
                    Some(lost) => lost,
                    None => {
                        let until = self.source.holds(self.now, attempt);
                        self.held = until.or(self.held);
                        let at = Source::position(&self.standing()).unwrap();
                        let (token, _) = self.source.begin(self.now, key(), member("l"), at, until.is_some());
                        // Entries are applied while ids are read.
                        let ids = self.history.last().unwrap().keys().cloned().collect();
                        (0..self.rng.u32(0..3)).for_each(|_| self.go_on());
                        let at = Position { epoch: Epoch::ZERO, seq: at };
                        self.judged(token, Begun { token, at, ids })
                    }
                };
                self.tell(|l, env| l.handle_begun(env, round, answer));
            }
            Effect::Read { round, token, batch, ids, .. } => {
                let answer = match self.lost() {
                    Some(lost) => lost,
                    None => {
                        let taken = self.rng.usize(1..=ids.len());
                        let now = self.history.last().unwrap();
                        let some = ids[..taken].iter().filter_map(|id| Some((id.clone(), *now.get(id)?)));
                        let some: Documents = some.collect();
                        let bytes = some.len() * 10;
                        self.bodies.insert((round, batch), some);
                        (0..self.rng.u32(0..2)).for_each(|_| self.go_on());
                        self.judged(token, (taken, bytes))
                    }
                };
                self.tell(|l, env| l.handle_read(env, round, answer));
            }
            Effect::Put { round, batch } => {
                let (body, did) = (self.bodies.remove(&(round, batch)).unwrap(), self.did());
                if did != Did::Failed("full".into()) {
                    self.node.extend(body);
                }
                self.tell(|l, env| l.handle_queued(env, round));
                self.tell(|l, env| l.handle_put(env, round, did));
            }
            Effect::Release { token, .. } | Effect::End { token, .. } => {
                if self.source.release(token) {
                    self.held = None;
                }
            }
            Effect::Settle { round, .. } => {
                let sum = Self::sum(self.applied(), self.history.last().unwrap());
                let answer = self.lost().unwrap_or(Answer::Given(sum));
                self.tell(|l, env| l.handle_settled(env, round, answer));
            }
            Effect::Seal { round, source, at, compare, .. } => {
                assert_eq!(source.is_none(), compare.is_none());
                self.replayed = source.is_none();
                assert!(!self.replayed || (self.floor == 0 && at.seq == 0), "only a whole journal needs no copy");
                self.sealed = Some(at.seq);
                let answer = self.lost().unwrap_or(Answer::Given(()));
                self.tell(|l, env| l.handle_sealed(env, round, answer));
            }
            Effect::Compare { round, at } => {
                self.apply_to(at);
                assert_eq!(self.node, self.history[usize::try_from(at).unwrap()], "a copy that was never as it should");
                let sum = Self::sum(at, &self.node);
                self.tell(|l, env| l.handle_compared(env, round, Answer::Given(sum)));
            }
        }
    }

    /// The learner applies its journal.
    fn apply_to(&mut self, to: u64) {
        for seq in self.sealed.unwrap()..to {
            apply(&mut self.node, self.entries[usize::try_from(seq).unwrap()]);
        }
        self.sealed = Some(to);
    }

    fn run(&mut self) {
        for _ in 0..20_000 {
            self.pending.extend(std::iter::from_fn(|| self.learner.poll_effect()));
            if self.learner.is_done() {
                break;
            }
            if self.rng.u32(0..400) == 0 {
                self.away = self.now.plus(Duration::from_millis(self.rng.u64(0..40)));
            }
            if self.rng.u32(0..3) == 0 {
                self.go_on();
            }
            if self.pending.is_empty() || self.rng.u32(0..4) == 0 {
                self.now = self.now.plus(Duration::from_millis(self.rng.u64(1..10)));
                self.tell(Learner::handle_tick);
            } else {
                let at = self.rng.usize(..self.pending.len());
                let effect = self.pending.swap_remove(at);
                self.carry_out(effect);
            }
        }
        assert!(self.learner.is_done(), "{:?}", self.learner.view());
        self.apply_to(self.applied());
        assert_eq!(self.node, *self.history.last().unwrap());
    }
}

#[test]
fn a_copy_ends_as_its_source_whatever_happens_on_the_way() {
    let (mut restarts, mut replays) = (0, 0);
    for seed in 0..400 {
        let mut world = World::new(seed);
        world.run();
        restarts += world.learner.view().restarts;
        replays += u32::from(world.replayed);
    }
    assert!(restarts > 100 && replays > 0, "nothing went wrong: {restarts} restarts, {replays} replays");
}

#[test]
fn a_copy_that_differs_is_made_again() {
    let mut world = World::new(1);
    let mut differed = 0;
    for _ in 0..20_000 {
        world.pending.extend(std::iter::from_fn(|| world.learner.poll_effect()));
        if world.learner.is_done() {
            break;
        }
        match world.pending.pop() {
            Some(Effect::Compare { round, at }) if differed < 3 => {
                differed += 1;
                let sum = Sum { at, count: 1 << 40, ..Sum::default() };
                world.tell(|l, env| l.handle_compared(env, round, Answer::Given(sum)));
                let pause = world.learner.next_wake().unwrap().since(world.now);
                assert!(pause >= Duration::from_millis(1 << (differed - 1)), "{pause:?}");
            }
            Some(effect) => world.carry_out(effect),
            None => {
                world.now = world.now.plus(Duration::from_millis(3));
                world.tell(Learner::handle_tick);
            }
        }
    }
    assert!(world.learner.is_done() && (differed == 3 || world.replayed));
}

#[test]
fn nothing_is_deleted_before_somebody_can_give_it() {
    let mut rng = fastrand::Rng::with_seed(3);
    let mut now = Instant(0);
    let mut learner = Learner::new(&mut Env { now, rng: &mut rng }, Config::default());
    for _ in 0..50 {
        match learner.poll_effect() {
            Some(Effect::Sources { round }) => {
                let (here, sources) = (Here { anew: true, floor: 0 }, vec![member("a"), member("b")]);
                learner.handle_sources(&mut Env { now, rng: &mut rng }, round, here, sources);
            }
            Some(Effect::Offer { round, .. }) => {
                let answer = Answer::Never("it has none".into());
                learner.handle_offered(&mut Env { now, rng: &mut rng }, round, answer);
            }
            Some(other) => panic!("{other:?}"),
            None => {
                assert!(learner.rests().is_some_and(|until| Some(until) == learner.next_wake() && until > now));
                now = now.plus(Duration::from_secs(60));
                learner.handle_tick(&mut Env { now, rng: &mut rng });
            }
        }
    }
    assert!(learner.view().trouble.is_some_and(|why| why.contains("it has none")));
}

/// Asks for what a copy holds after one entry, until the learner gives up or so often.
fn asked_to_settle(times: u32) -> u32 {
    let mut world = World::new(1);
    let mut asked = 0;
    for _ in 0..200_000 {
        world.pending.extend(std::iter::from_fn(|| world.learner.poll_effect()));
        world.away = Instant(0);
        match world.pending.pop() {
            Some(Effect::Settle { round, .. }) => {
                asked += 1;
                if asked == times {
                    return asked;
                }
                world.tell(|l, env| l.handle_settled(env, round, Answer::Later));
            }
            Some(Effect::Begin { .. }) if asked > 0 => return asked,
            Some(effect) => world.carry_out(effect),
            None => {
                world.now = world.now.plus(Duration::from_millis(3));
                world.tell(Learner::handle_tick);
            }
        }
    }
    panic!("it does not go on: {:?}", world.learner.view());
}

#[test]
fn a_finished_copy_is_kept_while_its_source_does_not_come_to_rest() {
    assert_eq!(asked_to_settle(100), 100);
}

#[test]
fn a_source_waits_longer_each_time_and_not_for_ever() {
    let mut source = Source::new(source::Config::default(), 0);
    let (start, seconds) = (Instant(5), Duration::from_secs);
    let held = |attempt| source.holds(start, attempt).map(|until| until.since(start).as_secs());
    assert_eq!([2, 3, 4, 5, 6, u32::MAX].map(held), [None, Some(60), Some(120), Some(240), Some(300), Some(300)]);
    assert_eq!(source.settles(start, &key(), &member("a")), source::Patience::Unknown);
    source.begin(start, key(), member("a"), 9, false);
    let waits: Vec<_> = (0..20).map(|_| source.settles(start, &key(), &member("a"))).collect();
    let first = [5, 10, 20, 40, 60, 60].map(|span| source::Patience::For(seconds(span)));
    assert_eq!(waits[..6], first);
    assert_eq!(source.settles(start, &key(), &member("a")), source::Patience::None);
    assert_eq!(source.settles(start, &key(), &member("b")), source::Patience::Unknown);
}

#[test]
fn a_source_forgets_who_is_not_heard_of_and_gives_nothing_of_use_no_more() {
    let config = source::Config { reads: 1, idle: Duration::from_secs(1), ..source::Config::default() };
    let (mut source, start) = (Source::new(config, 0), Instant(5));
    let standing = Standing { applied: 9, conditional: 4, sound: true, ..Standing::default() };
    assert_eq!(Source::position(&standing), Some(9));
    assert_eq!(Source::position(&Standing { conditional: 10, ..standing }), None, "one is under way");
    let (token, _) = source.begin(start, key(), member("a"), 9, true);
    assert!(!source.has_room(&key(), &member("b")) && source.has_room(&key(), &member("a")));
    assert!(source.is_held(&key()));
    assert_eq!(source.judge(token, Some(&Standing { applied: 20, ..standing })), Use::Yes);
    assert_eq!(source.judge(token, Some(&Standing { applied: 20, conditional: 11, ..standing })), Use::Again);
    for bad in [Standing { sound: false, ..standing }, Standing { applied: 8, ..standing }] {
        assert_eq!(source.judge(token, Some(&bad)), Use::Never);
    }
    assert_eq!(source.judge(token, None), Use::Never);
    assert!(source.touch(start, token, &key(), &member("b")).is_none(), "it is another's");
    let (again, before) = source.begin(start, key(), member("a"), 12, false);
    assert!(before.is_some_and(|read| read.at == 9) && again != token && !source.is_held(&key()));
    assert_eq!(source.judge(token, Some(&standing)), Use::Never);
    let (held, _) = source.begin(start, key(), member("b"), 12, true);
    assert!(source.is_held(&key()) && source.end_of(&member("b"), &key()).is_some(), "it was never told of");
    assert!(!source.is_held(&key()) && source.end_of(&member("b"), &key()).is_none());
    assert_eq!(source.judge(held, Some(&standing)), Use::Never);
    let later = start.plus(Duration::from_secs(1));
    assert_eq!(source.next_wake(), Some(later));
    assert!(source.expire(start).is_empty());
    assert_eq!(source.expire(later).len(), 1);
    assert_eq!(source.judge(again, Some(&standing)), Use::Never);
}
