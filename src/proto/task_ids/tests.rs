//! Facts of one process, and many processes with a register whose answers get lost.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const MS: Duration = Duration::from_millis(1);

fn member(i: usize) -> MemberId {
    MemberId::new(format!("m{i}")).unwrap()
}

fn config() -> Config {
    Config { range: 8, low: 2, question: 4, waiting: 20, ..Config::default() }
}

/// How often things go wrong, in hundredths.
#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    lost: u32,
    unknown: u32,
    crash: u32,
    holder: u32,
}

/// Several members, one register; the holder is whom the world says.
struct World {
    rng: fastrand::Rng,
    now: Instant,
    faults: Faults,
    cores: Vec<TaskIds>,
    starts: Vec<u64>,
    register: Option<Chosen>,
    majority: bool,
    holder: usize,
    /// What each process was given, in order.
    given: Vec<(usize, TakeId, Result<TaskUid, NoId>)>,
    waiting: Vec<BTreeSet<TakeId>>,
    takes: u64,
    /// Questions under way: the receiver's name of it, and whose it is.
    questions: BTreeMap<(usize, u64, QuestionId), (usize, u64, QuestionId)>,
    draws: u64,
}

impl World {
    fn new(seed: u64, n: usize) -> Self {
        let mut world = Self {
            rng: fastrand::Rng::with_seed(seed),
            now: Instant(1_000_000),
            faults: Faults::default(),
            cores: Vec::new(),
            starts: vec![0; n],
            register: None,
            majority: true,
            holder: 0,
            given: Vec::new(),
            waiting: vec![BTreeSet::new(); n],
            takes: 0,
            questions: BTreeMap::new(),
            draws: 0,
        };
        for i in 0..n {
            let core = TaskIds::new(config(), Holder { member: member(i), start: 0 });
            world.cores.push(core);
            world.see(i);
        }
        world
    }

    fn chance(&mut self, hundredths: u32) -> bool {
        self.rng.u32(0..100) < hundredths
    }

    fn call(&mut self, i: usize, ask: impl FnOnce(&mut TaskIds, &mut Env)) {
        let mut rng = self.rng.fork();
        ask(&mut self.cores[i], &mut Env { now: self.now, rng: &mut rng });
        while let Some(effect) = self.cores[i].poll_effect() {
            self.carry_out(i, effect);
        }
    }

    fn carry_out(&mut self, i: usize, effect: Effect) {
        let start = self.starts[i];
        match effect {
            Effect::Given { take, id } => {
                assert!(self.waiting[i].remove(&take), "{take:?} was answered twice");
                self.given.push((i, take, id));
            }
            Effect::Ask { to, question, count } => {
                let to = (0..self.cores.len()).find(|m| member(*m) == to).unwrap();
                if self.chance(self.faults.lost) {
                    return;
                }
                self.takes += 1;
                let name = QuestionId(1 << 40 | self.takes);
                self.questions.insert((to, self.starts[to], name), (i, start, question));
                self.call(to, |core, env| core.handle_ask(env, name, count));
            }
            Effect::Told { question, ids } => {
                let Some((to, of, question)) = self.questions.remove(&(i, start, question)) else { return };
                if self.starts[to] == of && !self.chance(self.faults.lost) {
                    self.call(to, |core, env| core.handle_told(env, question, ids));
                }
            }
            Effect::Draw(change) => self.draw(i, &change),
        }
    }

    fn draw(&mut self, i: usize, change: &Change) {
        self.draws += 1;
        assert_eq!((change.key.as_str(), change.quiet), (KEY, false));
        let unknown = self.chance(self.faults.unknown);
        let known = self.register.as_ref().map_or(0, |c| c.version);
        let answer = if !self.majority {
            Answer::NoQuorum
        } else if known == change.expected && !(unknown && self.rng.bool()) {
            self.register = Some(Chosen { version: known + 1, value: Arc::clone(&change.value) });
            Answer::Changed { version: known + 1 }
        } else {
            Answer::Conflict { current: self.register.clone() }
        };
        // A push may come before the answer.
        if self.rng.bool() {
            self.push(i);
        }
        let answer = if unknown { Answer::Unknown } else { answer };
        if !self.chance(self.faults.lost) {
            self.call(i, |core, env| core.handle_answer(env, change.op, &answer));
        }
    }

    fn push(&mut self, i: usize) {
        if let Some(chosen) = self.register.clone() {
            self.call(i, |core, env| core.handle_chosen(env, &chosen));
        }
    }

    fn see(&mut self, i: usize) {
        let holder = Some(member(self.holder));
        self.call(i, |core, env| core.handle_holder(env, holder));
    }

    fn take(&mut self, i: usize) -> TakeId {
        self.takes += 1;
        let take = TakeId(self.takes);
        self.waiting[i].insert(take);
        self.call(i, |core, env| core.handle_take(env, take));
        take
    }

    fn pass(&mut self, span: Duration) {
        self.now = self.now.plus(span);
        for i in 0..self.cores.len() {
            if self.cores[i].next_wake().is_some_and(|at| at <= self.now) {
                self.call(i, |core, env| core.handle_tick(env));
            }
        }
    }

    fn crash(&mut self, i: usize) {
        self.starts[i] += 1;
        self.waiting[i].clear();
        self.cores[i] = TaskIds::new(config(), Holder { member: member(i), start: self.starts[i] });
        self.push(i);
        self.see(i);
    }

    fn ids(&self) -> Vec<u32> {
        self.given.iter().filter_map(|(_, _, id)| id.as_ref().ok()).map(|id| id.0).collect()
    }
}

#[test]
fn ids_are_dense_and_grow_whoever_asks_while_somebody_holds_the_scope() {
    let mut world = World::new(1, 3);
    for i in 0..3 {
        world.push(i);
    }
    let first = world.ids().len();
    for n in 0..200 {
        world.take(n % 3);
        world.pass(MS);
    }
    let ids = world.ids()[first..].to_vec();
    assert_eq!(ids.len(), 200);
    assert!(ids.windows(2).all(|w| w[1] == w[0] + 1), "{ids:?}");
}

#[test]
fn without_the_holder_a_member_takes_a_range_of_its_own_and_the_holder_goes_on_above_it() {
    let mut world = World::new(2, 2);
    world.take(1);
    world.faults.lost = 100;
    // Its question gets lost, and the ledger answers by then.
    world.take(1);
    world.faults.lost = 0;
    world.pass(config().ask_within);
    assert_eq!(world.ids().len(), 2);
    (0..2).for_each(|i| world.push(i));
    world.take(0);
    let ids = world.ids();
    assert!(ids[0] < ids[1] && ids[1] < ids[2], "{ids:?}");
    assert!(ids[2] > ids[1] + 1, "the rest of its own range was dropped");
}

#[test]
fn without_a_majority_spare_ids_are_given_until_they_are_used_up() {
    let mut world = World::new(3, 1);
    world.take(0);
    world.majority = false;
    for _ in 0..40 {
        world.take(0);
        world.pass(config().retry / 4);
    }
    assert!(world.given.iter().all(|(.., id)| *id != Err(NoId::NoMajority)), "nobody has waited for long");
    world.pass(config().take_within);
    let ids = world.ids();
    assert_eq!(BTreeSet::from_iter(&ids).len(), ids.len(), "each once");
    assert!(ids.len() >= 8 && ids.len() < 40, "{}", ids.len());
    assert_eq!(world.given.last().unwrap().2, Err(NoId::NoMajority));
    world.majority = true;
    world.pass(config().pause * 2);
    world.take(0);
    assert!(world.given.last().unwrap().2.is_ok());
}

#[test]
fn ids_end_where_some_clients_can_read_no_more() {
    let mut world = World::new(4, 1);
    let by = Holder { member: member(7), start: 0 };
    let value = serde_json::to_string(&Counter { next: END - 8, by }).unwrap().into();
    world.register = Some(Chosen { version: 9, value });
    world.push(0);
    // The spare range has been taken before anybody knew.
    for _ in 0..20 {
        world.take(0);
    }
    assert!(world.ids().iter().all(|id| *id < END));
    assert_eq!(world.given.last().unwrap().2, Err(NoId::UsedUp));
}

#[test]
fn as_many_wait_as_may() {
    let mut world = World::new(5, 1);
    world.faults = Faults { lost: 100, ..Faults::default() };
    world.pass(MS);
    for _ in 0..60 {
        world.take(0);
    }
    let busy = world.given.iter().filter(|(.., id)| *id == Err(NoId::Busy)).count();
    assert!(busy > 0 && world.waiting[0].len() <= config().waiting, "{busy}");
}

#[test]
fn a_question_for_too_many_or_of_who_does_not_lead_is_answered_with_none() {
    let mut core = TaskIds::new(config(), Holder { member: member(0), start: 0 });
    let mut rng = fastrand::Rng::with_seed(1);
    let mut env = Env { now: Instant(5), rng: &mut rng };
    core.handle_ask(&mut env, QuestionId(1), 1);
    core.handle_holder(&mut env, Some(member(0)));
    core.handle_ask(&mut env, QuestionId(2), 0);
    core.handle_ask(&mut env, QuestionId(3), 5);
    let told: Vec<_> = std::iter::from_fn(|| core.poll_effect())
        .filter_map(|e| match e {
            Effect::Told { question, ids } => Some((question.0, ids.len())),
            _ => None,
        })
        .collect();
    assert_eq!(told, [(1, 0), (2, 0), (3, 0)]);
}

#[test]
fn no_id_is_given_twice_whatever_is_lost_and_whoever_dies() {
    for seed in 0..400 {
        let mut world = World::new(seed, 4);
        world.faults = Faults {
            lost: seed as u32 % 30,
            unknown: seed as u32 % 40,
            crash: seed as u32 % 4,
            holder: seed as u32 % 7,
        };
        for _ in 0..400 {
            let i = world.rng.usize(0..4);
            match world.rng.u32(0..10) {
                0..6 => drop(world.take(i)),
                6 => world.push(i),
                7 => world.majority = !world.chance(20),
                _ => {
                    let span = MS * world.rng.u32(1..600);
                    world.pass(span);
                }
            }
            if world.chance(world.faults.crash) {
                world.crash(i);
            }
            if world.chance(world.faults.holder) {
                world.holder = world.rng.usize(0..4);
            }
            // Some hear late who leads, so that two may think that they do.
            if world.rng.bool() {
                world.see(i);
            }
        }
        let ids = world.ids();
        assert_eq!(BTreeSet::from_iter(&ids).len(), ids.len(), "seed {seed}");
        world.faults = Faults::default();
        world.majority = true;
        for _ in 0..10 {
            world.pass(config().pause * 2);
            (0..4).for_each(|i| {
                world.see(i);
                world.push(i);
            });
        }
        assert!(world.waiting.iter().all(BTreeSet::is_empty), "seed {seed}: all are answered");
        let before = world.given.len();
        for n in 0..40 {
            world.take(n % 4);
        }
        let calm: Vec<_> = world.given[before..].iter().map(|(.., id)| id.unwrap().0).collect();
        assert!(calm.len() == 40 && calm.windows(2).all(|w| w[0] < w[1]), "seed {seed}: {calm:?}");
        let all = world.ids();
        assert_eq!(BTreeSet::from_iter(&all).len(), all.len(), "seed {seed}");
        assert!(world.draws < 2_000, "seed {seed}: {} draws", world.draws);
    }
}
