//! What operations promise, as facts over simulated members: phases never go back, a new leader goes on at the recorded one,
//! and doing a step twice is doing it once. Leases are granted by the test, sometimes to two at once.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::*;
use crate::proto::env::{Env, Instant};
use crate::proto::register::{Answer, Change, Chosen, OpId, Read};
use crate::types::{Epoch, OperationEntry, OperationRecord, OperationState, Scope};

static SIX: Kind =
    Kind { name: "six", phases: &["a", "b", "c", "d", "e", "f"], undoable: &["a", "b", "c"], destructive: &["f"] };
static SETTINGS: Kind =
    Kind { name: "settings", phases: &["propose", "verify", "commit"], undoable: &["propose"], destructive: &[] };

const SCOPE: Scope = Scope::Ilm;
const MS: u64 = 1_000;
const SECOND: u64 = 1_000 * MS;

#[derive(Debug, Clone)]
enum Event {
    Apply(usize, u64, Change, bool),
    Look(usize, u64, Read),
    Answer(usize, u64, OpId, Answer),
    Push(usize, Chosen),
    Finish(usize, u64, Guard, Value),
    Tick(usize, u64),
    Grant,
    Kill(usize),
}

/// A request of a member's process.
type Named = (usize, u64, RequestId);

struct World {
    now: u64,
    rng: fastrand::Rng,
    cores: Vec<Operations>,
    starts: Vec<u64>,
    ticks: Vec<u64>,
    wants: BTreeSet<usize>,
    /// What each member believes; more than one only where a clock stood still.
    believes: Vec<Option<Epoch>>,
    epoch: u64,
    chosen: Vec<Chosen>,
    events: BTreeMap<(u64, u64), Event>,
    seq: u64,
    /// Per mille.
    faults: u64,
    calm_at: u64,
    /// What each phase did, once and for all.
    done: BTreeMap<String, Value>,
    /// Every run: epoch and phase.
    runs: Vec<(u64, String, bool)>,
    answered: Vec<(Named, Result<(), RequestError>)>,
    /// Whether there may be no majority, under faults.
    no_quorum: bool,
    kill_in: Option<&'static str>,
    fail: bool,
}

impl World {
    fn new(seed: u64, faults: u64, calm_at: u64) -> Self {
        let mut world = Self {
            now: 0,
            rng: fastrand::Rng::with_seed(seed),
            cores: vec![Operations::new(vec![&SIX, &SETTINGS]); 3],
            starts: vec![1; 3],
            ticks: vec![0; 3],
            wants: BTreeSet::new(),
            believes: vec![None; 3],
            epoch: 0,
            chosen: Vec::new(),
            events: BTreeMap::new(),
            seq: 0,
            faults,
            calm_at,
            done: BTreeMap::new(),
            runs: Vec::new(),
            answered: Vec::new(),
            no_quorum: false,
            kill_in: None,
            fail: false,
        };
        world.at(0, Event::Grant);
        world
    }

    fn begin(&mut self, n: usize, kind: &'static Kind) -> RequestId {
        let request = Request::Begin { id: "op".into(), kind, extra: json!({"plan": 0}) };
        self.with(n, |core, env| core.handle_request(env, &SCOPE, request, "now"))
    }

    fn at(&mut self, when: u64, event: Event) {
        self.seq += 1;
        self.events.insert((when, self.seq), event);
    }

    fn hit(&mut self) -> bool {
        self.now < self.calm_at && self.rng.u64(0..1_000) < self.faults
    }

    fn soon(&mut self) -> u64 {
        let long = if self.hit() { 5 * SECOND } else { 20 * MS };
        self.now + self.rng.u64(MS..long)
    }

    fn record(&self) -> OperationRecord {
        self.chosen.last().map_or_else(OperationRecord::default, |c| serde_json::from_str(&c.value).unwrap())
    }

    fn last(&self) -> OperationEntry {
        self.record().past.last().cloned().expect("the operation is finished")
    }

    fn with<T>(&mut self, n: usize, f: impl FnOnce(&mut Operations, &mut Env) -> T) -> T {
        let out = f(&mut self.cores[n], &mut Env { now: Instant(self.now), rng: &mut self.rng });
        while let Some(effect) = self.cores[n].poll_effect() {
            self.carry_out(n, effect);
        }
        if let Some(wake) = self.cores[n].next_wake() {
            let at = wake.0.max(self.now + 1);
            if at < self.ticks[n] || self.ticks[n] <= self.now {
                self.ticks[n] = at;
                self.at(at, Event::Tick(n, self.starts[n]));
            }
        }
        out
    }

    fn carry_out(&mut self, n: usize, effect: Effect) {
        let start = self.starts[n];
        let soon = self.soon();
        match effect {
            Effect::Change(change) => {
                let lost = self.hit();
                self.at(soon, Event::Apply(n, start, change, lost));
            }
            Effect::Read(read) => self.at(soon, Event::Look(n, start, read)),
            Effect::Want(_) => drop(self.wants.insert(n)),
            Effect::Unwant(_) => {
                self.wants.remove(&n);
                self.lose(n);
            }
            Effect::Run { guard, extra } => {
                let version = usize::try_from(guard.version).unwrap();
                let called: OperationRecord = serde_json::from_str(&self.chosen[version - 1].value).unwrap();
                assert!(guard.is_called_for(&called), "a run that its record does not call for");
                self.runs.push((guard.epoch.number(), guard.phase.clone(), guard.undo));
                if self.kill_in == Some(&guard.phase) {
                    self.kill_in = None;
                    return self.at(self.now, Event::Kill(n));
                }
                let took = self.rng.u64(MS..300 * MS);
                self.at(self.now + took, Event::Finish(n, start, guard, extra));
            }
            Effect::Stop { .. } | Effect::Row { .. } => {}
            Effect::Answered { request, result } => self.answered.push(((n, start, request), result)),
        }
    }

    fn lose(&mut self, n: usize) {
        if let Some(epoch) = self.believes[n].take() {
            self.with(n, |core, env| core.handle_lost(env, &SCOPE, epoch));
        }
    }

    /// A leader if there is none; under faults another one now and then, which the first hears of only later.
    fn grant(&mut self) {
        self.at(self.now + 500 * MS, Event::Grant);
        let leads = self.believes.iter().any(Option::is_some);
        let steal = self.hit() || self.hit();
        let wants: Vec<usize> = self.wants.iter().copied().filter(|n| self.believes[*n].is_none()).collect();
        if (leads && !steal) || wants.is_empty() {
            if self.rng.bool() && self.believes.iter().flatten().count() > 1 {
                let oldest = (0..3).filter(|n| self.believes[*n].is_some()).min_by_key(|n| self.believes[*n]);
                self.lose(oldest.expect("two believe"));
            }
            return;
        }
        let n = wants[self.rng.usize(0..wants.len())];
        self.epoch += 1;
        let epoch = Epoch::new(self.epoch).unwrap();
        self.believes[n] = Some(epoch);
        self.with(n, |core, env| core.handle_became(env, &SCOPE, epoch));
    }

    /// A crash, and a new process that begins with some copy of the record.
    fn kill(&mut self, n: usize) {
        self.believes[n] = None;
        self.wants.remove(&n);
        self.starts[n] += 1;
        self.ticks[n] = 0;
        self.cores[n] = Operations::new(vec![&SIX, &SETTINGS]);
        if !self.chosen.is_empty() {
            let copy = self.chosen[self.rng.usize(0..self.chosen.len())].clone();
            self.at(self.now, Event::Push(n, copy));
        }
    }

    fn apply(&mut self, n: usize, start: u64, change: Change, lost: bool) {
        let deadline = self.now + 2 * SECOND;
        if self.no_quorum && self.hit() {
            return self.at(deadline, Event::Answer(n, start, change.op, Answer::NoQuorum));
        }
        if lost && self.no_quorum && self.rng.bool() {
            // Its message arrives after its sender has given up.
            let late = deadline + self.rng.u64(MS..10 * SECOND);
            self.at(late, Event::Apply(n, 0, change.clone(), false));
            return self.at(deadline, Event::Answer(n, start, change.op, Answer::Unknown));
        }
        if lost && self.rng.bool() {
            return self.at(deadline, Event::Answer(n, start, change.op, Answer::Unknown));
        }
        let answer = if self.chosen.len() as u64 == change.expected {
            let new = Chosen { version: change.expected + 1, value: change.value };
            self.check_change(&serde_json::from_str(&new.value).unwrap());
            self.chosen.push(new);
            Answer::Changed { version: change.expected + 1 }
        } else {
            Answer::Conflict { current: self.chosen.last().cloned() }
        };
        let (at, answer) = if lost { (deadline, Answer::Unknown) } else { (self.soon(), answer) };
        self.at(at, Event::Answer(n, start, change.op, answer));
        for to in 0..3 {
            // What a push does not bring, a later look at the copies does.
            let at = if self.hit() { self.now + 3 * SECOND } else { self.soon() };
            let chosen = self.chosen.last().cloned().expect("pushed above or found");
            self.at(at, Event::Push(to, chosen));
        }
    }

    /// Epochs and phases never go back.
    fn check_change(&self, new: &OperationRecord) {
        let old = self.record();
        assert!(new.epoch >= old.epoch, "an epoch goes back");
        if let (Some(old), Some(new)) = (&old.current, &new.current) {
            assert!(SIX.place(&new.phase) >= SIX.place(&old.phase), "a phase goes back");
        }
    }

    fn finish(&mut self, n: usize, guard: &Guard, extra: &Value) {
        let permitted = self.cores[n].permits(guard, self.believes[n]);
        // Whoever carries an order out looks at the majority's record.
        if permitted && guard.is_called_for(&self.record()) && !guard.undo {
            let step = format!("{} {}", guard.operation, guard.phase);
            let done = self.done.entry(step).or_insert_with(|| extra["plan"].clone());
            assert_eq!(*done, extra["plan"], "a step done twice is not done once");
        }
        let kind = if SIX.place(&guard.phase).is_some() { &SIX } else { &SETTINGS };
        let next = kind.phases.get(kind.place(&guard.phase).unwrap() + 1);
        let outcome = match next {
            _ if self.fail && !guard.undo => Outcome::Failed { why: "no".into(), retry: true },
            _ if self.hit() => Outcome::Failed { why: "again".into(), retry: true },
            Some(next) if !guard.undo => {
                Outcome::Next { phase: (*next).to_owned(), extra: json!({"plan": self.rng.u32(..)}) }
            }
            _ => Outcome::Done,
        };
        self.with(n, |core, env| core.handle_finished(env, guard, outcome, "now"));
    }

    fn run(&mut self, to: u64) {
        while let Some(((at, _), event)) = self.events.first_key_value().map(|(k, e)| (*k, e.clone())) {
            if at > to {
                break;
            }
            self.events.pop_first();
            self.now = at;
            let alive = |n: usize, start: u64| self.starts[n] == start;
            match event {
                Event::Apply(n, start, change, lost) => self.apply(n, start, change, lost),
                Event::Look(n, start, read) => {
                    let (at, current) = (self.soon(), self.chosen.last().cloned());
                    let fails = self.no_quorum && self.hit();
                    let answer = if fails { Answer::NoQuorum } else { Answer::Read { current } };
                    self.at(at, Event::Answer(n, start, read.op, answer));
                }
                Event::Answer(n, start, op, answer) if alive(n, start) => {
                    self.with(n, |core, env| core.handle_answer(env, op, answer));
                }
                Event::Push(n, chosen) => {
                    self.with(n, |core, env| core.handle_chosen(env, "operation:ilm", &chosen));
                }
                Event::Finish(n, start, guard, extra) if alive(n, start) => self.finish(n, &guard, &extra),
                Event::Tick(n, start) if alive(n, start) => self.with(n, Operations::handle_tick),
                Event::Grant => self.grant(),
                Event::Kill(n) => self.kill(n),
                _ => {}
            }
        }
        self.now = to;
    }
}

fn phases(entry: &OperationEntry) -> Vec<&str> {
    entry.history.iter().map(|h| h.phase.as_str()).collect()
}

fn killed_in(seed: u64, kind: &'static Kind, phase: &'static str) {
    let mut world = World::new(seed, 0, 0);
    world.kill_in = Some(phase);
    world.begin(0, kind);
    world.run(60 * SECOND);
    let entry = world.last();
    assert_eq!(entry.state, OperationState::Done);
    let recorded: Vec<&str> = kind.phases.iter().copied().chain(["done"]).collect();
    assert_eq!(phases(&entry), recorded, "every phase is recorded");
    let runs: Vec<&str> = world.runs.iter().map(|(_, p, _)| p.as_str()).collect();
    let mut expected = kind.phases.to_vec();
    expected.insert(kind.place(phase).unwrap(), phase);
    assert_eq!(runs, expected, "only the phase of the kill runs twice");
    let epochs: BTreeSet<u64> = world.runs.iter().map(|(epoch, ..)| *epoch).collect();
    assert_eq!(epochs.len(), 2);
}

#[test]
fn a_leader_killed_in_the_third_of_six_phases_is_followed_in_the_third() {
    (0..50).for_each(|seed| killed_in(seed, &SIX, "c"));
}

#[test]
fn a_leader_killed_in_verify_is_followed_in_verify() {
    (0..50).for_each(|seed| killed_in(seed, &SETTINGS, "verify"));
}

#[test]
fn phases_never_go_back_and_twice_is_once_whatever_fails() {
    for seed in 0..1_000 {
        let calm_at = 30 * SECOND;
        let mut world = World::new(seed, 30 + seed % 200, calm_at);
        world.begin((seed % 3) as usize, &SIX);
        for _ in 0..seed % 7 {
            let (at, n) = (world.rng.u64(0..calm_at), world.rng.usize(0..3));
            world.at(at, Event::Kill(n));
        }
        world.run(calm_at + 90 * SECOND);
        if world.starts[(seed % 3) as usize] == 1 || !world.chosen.is_empty() {
            let entry = world.last();
            let failed = entry.state == OperationState::Failed;
            assert!(failed || entry.state == OperationState::Done, "seed {seed}: {entry:?}");
            assert!(failed || world.done.len() == 6, "seed {seed}");
        }
    }
}

#[test]
fn paused_work_stands_still_and_goes_on_where_it_was() {
    let mut world = World::new(5, 0, 0);
    world.begin(0, &SIX);
    while world.runs.last().is_none_or(|(_, phase, _)| phase != "c") {
        world.run(world.now + MS);
    }
    let pause = Request::Pause { id: "op".into() };
    world.with(1, |core, env| core.handle_request(env, &SCOPE, pause, "now"));
    world.run(world.now + 20 * SECOND);
    let paused = world.record().current.unwrap();
    assert_eq!(paused.state, OperationState::Paused);
    assert!(world.wants.is_empty(), "nobody holds the lease for it");
    let runs = world.runs.len();
    world.with(2, |core, env| core.handle_request(env, &SCOPE, Request::Resume { id: "op".into() }, "now"));
    world.run(world.now + 20 * SECOND);
    assert_eq!(world.runs[runs].1, paused.phase);
    assert_eq!(world.last().state, OperationState::Done);
    assert!(world.answered.iter().all(|(_, result)| result.is_ok()));
}

#[test]
fn what_can_be_undone_is_cancelled_and_what_cannot_is_not() {
    let mut world = World::new(5, 0, 0);
    world.begin(0, &SIX);
    while world.runs.last().is_none_or(|(_, phase, _)| phase != "b") {
        world.run(world.now + MS);
    }
    let cancel = Request::Cancel { id: "op".into() };
    world.with(1, |core, env| core.handle_request(env, &SCOPE, cancel.clone(), "now"));
    world.run(world.now + 20 * SECOND);
    assert_eq!(world.last().state, OperationState::Cancelled);
    assert!(world.runs.last().unwrap().2, "the last run undid");

    let mut world = World::new(5, 0, 0);
    world.begin(0, &SIX);
    while world.runs.last().is_none_or(|(_, phase, _)| phase != "e") {
        world.run(world.now + MS);
    }
    let id = world.with(1, |core, env| core.handle_request(env, &SCOPE, cancel, "now"));
    world.run(world.now + 20 * SECOND);
    let answer = world.answered.iter().rev().find(|(request, _)| *request == (1, 1, id));
    assert!(matches!(answer, Some((_, Err(RequestError::TooLate { .. })))), "{answer:?}");
    assert_eq!(world.last().state, OperationState::Done);
}

/// Drains the core: what it asks of the ledger, and what it answers.
fn drained(core: &mut Operations) -> (Vec<OpId>, Vec<Result<(), RequestError>>) {
    let (mut asked, mut answered) = (Vec::new(), Vec::new());
    while let Some(effect) = core.poll_effect() {
        match effect {
            Effect::Change(Change { op, .. }) | Effect::Read(Read { op, .. }) => asked.push(op),
            Effect::Answered { result, .. } => answered.push(result),
            _ => {}
        }
    }
    (asked, answered)
}

#[test]
fn a_request_that_was_sent_is_not_said_to_be_undone_when_the_majority_is_gone() {
    let running = super::record::request(
        &OperationRecord::default(),
        &Request::Begin { id: "op".into(), kind: &SIX, extra: json!(0) },
        &[&SIX],
        "now",
    );
    let paused =
        super::record::request(&running.clone().unwrap().unwrap(), &Request::Pause { id: "op".into() }, &[], "");
    let record = |record: &Result<Option<OperationRecord>, _>| Chosen {
        version: 1,
        value: serde_json::to_string(record.as_ref().unwrap().as_ref().unwrap()).unwrap().into(),
    };
    let (running, paused) = (record(&running), record(&paused));
    for (request, found) in [
        (Request::Begin { id: "op".into(), kind: &SIX, extra: json!(0) }, None),
        (Request::Pause { id: "op".into() }, Some(&running)),
        (Request::Resume { id: "op".into() }, Some(&paused)),
        (Request::Cancel { id: "op".into() }, Some(&running)),
    ] {
        let (mut core, mut rng) = (Operations::new(vec![&SIX]), fastrand::Rng::with_seed(1));
        let at = |second: u64| Instant(second * SECOND);
        let mut env = Env { now: at(0), rng: &mut rng };
        core.handle_request(&mut env, &SCOPE, request, "now");
        let read = drained(&mut core).0[0];
        core.handle_answer(&mut env, read, Answer::Read { current: found.cloned() });
        let write = drained(&mut core).0[0];
        env.now = at(5);
        core.handle_answer(&mut env, write, Answer::Unknown);
        env.now = at(8);
        core.handle_tick(&mut env);
        let (asked, answered) = drained(&mut core);
        assert!(answered.is_empty(), "{answered:?}");
        core.handle_answer(&mut env, asked[0], Answer::NoQuorum);
        assert_eq!(drained(&mut core).1, [Err(RequestError::Unknown)]);
    }
}

#[test]
fn whoever_is_told_that_nothing_was_done_has_done_nothing() {
    let (mut told_nothing, mut unknown, mut done_after_all) = (0, 0, 0);
    for seed in 0..300 {
        let mut world = World::new(seed, 50 + seed % 200, 60 * SECOND);
        world.no_quorum = true;
        let mut asked = BTreeMap::new();
        for k in 0..40_u64 {
            let pause = world.rng.u64(10 * MS..3 * SECOND);
            world.run(world.now + pause);
            let current = world.record().current.map_or_else(|| "none".to_owned(), |op| op.id);
            let request = match world.rng.u32(0..4) {
                0 => Request::Begin { id: format!("op{k}"), kind: &SIX, extra: json!({"plan": 0}) },
                1 => Request::Pause { id: current },
                2 => Request::Resume { id: current },
                _ => Request::Cancel { id: current },
            };
            let (n, at) = (world.rng.usize(0..3), format!("request {k}"));
            let id = world.with(n, |core, env| core.handle_request(env, &SCOPE, request, &at));
            asked.insert((n, world.starts[n], id), at);
            if world.rng.u32(0..20) == 0 {
                world.at(world.now, Event::Kill(n));
            }
        }
        world.run(world.now + 60 * SECOND);
        let records: Vec<OperationRecord> =
            world.chosen.iter().map(|c| serde_json::from_str(&c.value).unwrap()).collect();
        let history = |r: &OperationRecord| r.past.iter().chain(&r.current).flat_map(|op| op.history.clone()).collect();
        let done: BTreeSet<String> = records.iter().flat_map::<Vec<_>, _>(history).map(|h| h.at).collect();
        for (request, result) in &world.answered {
            let at = &asked[request];
            match result {
                Ok(()) => {}
                Err(RequestError::Unknown) => {
                    (unknown, done_after_all) = (unknown + 1, done_after_all + i32::from(done.contains(at)))
                }
                Err(refused) => {
                    told_nothing += i32::from(*refused == RequestError::NoQuorum);
                    assert!(!done.contains(at), "seed {seed}: {at} was done, and its sender was told: {refused}");
                }
            }
        }
    }
    assert!(
        told_nothing > 0 && unknown > done_after_all && done_after_all > 0,
        "{told_nothing} {unknown} {done_after_all}"
    );
}

#[test]
fn a_record_of_another_version_of_the_program_answers_what_waits() {
    let (mut core, mut rng) = (Operations::new(vec![&SIX]), fastrand::Rng::with_seed(1));
    let mut env = Env { now: Instant(0), rng: &mut rng };
    let begin = |id: &str| Request::Begin { id: id.into(), kind: &SIX, extra: json!(0) };
    core.handle_request(&mut env, &SCOPE, begin("op"), "now");
    core.handle_request(&mut env, &SCOPE, begin("other"), "now");
    let read = drained(&mut core).0[0];
    let current = Chosen { version: 3, value: r#"{"future":1}"#.into() };
    core.handle_answer(&mut env, read, Answer::Read { current: Some(current.clone()) });
    let unknown = |id: &str| Err(RequestError::UnknownKind { id: id.into() });
    assert_eq!(drained(&mut core), (vec![], vec![unknown("op"), unknown("other")]));
    // Of what was sent before, nobody knows.
    core.handle_request(&mut env, &SCOPE, begin("op"), "now");
    let read = drained(&mut core).0[0];
    core.handle_answer(&mut env, read, Answer::Read { current: None });
    drained(&mut core);
    core.handle_chosen(&mut env, "operation:ilm", &current);
    assert_eq!(drained(&mut core).1, [Err(RequestError::Unknown)]);
}

#[test]
fn scopes_on_which_nobody_works_take_no_room() {
    let (mut core, mut rng) = (Operations::new(vec![&SIX]), fastrand::Rng::with_seed(1));
    let mut env = Env { now: Instant(0), rng: &mut rng };
    let none = Chosen { version: 4, value: serde_json::to_string(&OperationRecord::default()).unwrap().into() };
    for i in 0..2 * crate::types::limits::LEASE_SCOPES_MAX {
        core.handle_chosen(&mut env, &format!("operation:alias_flip:a{i}"), &none);
    }
    assert_eq!(core.records().count(), 0);
    let scope = Scope::AliasFlip(crate::types::IndexUid::new("new").unwrap());
    core.handle_request(&mut env, &scope, Request::Begin { id: "op".into(), kind: &SIX, extra: json!(0) }, "now");
    let (asked, answered) = drained(&mut core);
    assert_eq!((asked.len(), answered), (1, vec![]), "there is room");
}

#[test]
fn a_lease_that_could_not_be_wanted_is_asked_for_again() {
    let (mut core, mut rng) = (Operations::new(vec![&SIX]), fastrand::Rng::with_seed(1));
    let mut env = Env { now: Instant(0), rng: &mut rng };
    let begin = Request::Begin { id: "op".into(), kind: &SIX, extra: json!(0) };
    let record = super::record::request(&OperationRecord::default(), &begin, &[], "now").unwrap().unwrap();
    let scope = Scope::AliasFlip(crate::types::IndexUid::new("a").unwrap());
    let begun = Chosen { version: 1, value: serde_json::to_string(&record).unwrap().into() };
    core.handle_chosen(&mut env, &record_key(&scope), &begun);
    assert_eq!(core.poll_effect(), Some(Effect::Want(scope.clone())));
    core.handle_not_wanted(&mut env, &scope);
    for _ in 0..3 {
        assert_eq!(core.poll_effect(), None);
        env.now = core.next_wake().expect("it asks again");
        core.handle_tick(&mut env);
        assert_eq!(core.poll_effect(), Some(Effect::Want(scope.clone())));
        core.handle_not_wanted(&mut env, &scope);
    }
    let over = Chosen { version: 2, value: serde_json::to_string(&OperationRecord::default()).unwrap().into() };
    core.handle_chosen(&mut env, &record_key(&scope), &over);
    assert_eq!((core.poll_effect(), core.next_wake()), (Some(Effect::Unwant(scope)), None));
}

#[test]
fn a_phase_that_keeps_failing_is_undone_and_tells_why() {
    let mut world = World::new(1, 0, 0);
    world.fail = true;
    world.begin(0, &SIX);
    world.run(600 * SECOND);
    let entry = world.last();
    assert_eq!((entry.state, entry.error.as_deref()), (OperationState::Failed, Some("no")));
    assert_eq!(phases(&entry), ["a", "undoing", "failed"]);
    assert_eq!(world.runs.len(), 8 + 1, "bounded runs, then one that undoes");
}

#[test]
fn the_last_twenty_of_a_scope_stay_listed() {
    let mut record = OperationRecord::default();
    for i in 0..30 {
        let id = format!("op{i}");
        let begin = Request::Begin { id: id.clone(), kind: &SETTINGS, extra: json!({"n": i}) };
        record = super::record::request(&record, &begin, &[&SETTINGS], "now").unwrap().unwrap();
        let busy = Request::Begin { id: "other".into(), kind: &SETTINGS, extra: json!(null) };
        assert!(matches!(super::record::request(&record, &busy, &[], "now"), Err(RequestError::Busy { .. })));
        let run = (id.as_str(), "propose", false);
        record = super::record::finish_run(&record, &SETTINGS, run, &Outcome::Done, "now").unwrap();
        assert_eq!(super::record::finish_run(&record, &SETTINGS, run, &Outcome::Done, "now"), None, "recorded once");
    }
    let large = Request::Begin { id: "large".into(), kind: &SETTINGS, extra: json!("x".repeat(100_000)) };
    let mut other = super::record::request(&record, &large, &[&SETTINGS], "now").unwrap().unwrap();
    other = super::record::finish_run(&other, &SETTINGS, ("large", "propose", false), &Outcome::Done, "now").unwrap();
    let extra = |r: &OperationRecord| r.past.last().unwrap().extra.clone();
    assert_eq!((extra(&record), extra(&other)), (json!({"n": 29}), Value::Null), "what is small stays");
    let listed: Vec<&str> = record.past.iter().map(|op| op.id.as_str()).collect();
    assert_eq!((listed.len(), listed[0], listed[19]), (20, "op10", "op29"));
}

#[test]
fn progress_has_a_rate_and_is_written_seldom() {
    let mut world = World::new(1, 0, 0);
    world.begin(0, &SIX);
    while world.runs.is_empty() {
        world.run(world.now + MS);
    }
    let leader = world.believes.iter().position(Option::is_some).unwrap();
    let epoch = world.believes[leader].unwrap();
    let version = world.chosen.len() as u64;
    world.events.retain(|_, e| !matches!(e, Event::Finish(..)));
    let (operation, phase) = ("op".to_owned(), "a".to_owned());
    let guard = Guard { scope: SCOPE, epoch, operation, phase, undo: false, version };
    for second in 0..60 {
        world.with(leader, |core, env| core.handle_progress(env, &guard, second * 50, 10_000, "documents"));
        world.run(world.now + SECOND);
    }
    let progress = world.record().current.unwrap().progress;
    assert!((49.0..51.0).contains(&progress.rate) && progress.done >= 2_400, "{progress:?}");
    assert!(progress.seconds_left().is_some_and(|s| (100.0..200.0).contains(&s)));
    assert!((4..=7).contains(&(world.chosen.len() as u64 - version)), "one write in ten seconds");
}
