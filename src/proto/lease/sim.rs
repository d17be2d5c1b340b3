//! Several lease cores over one linearizable register service, in virtual time: one seed decides everything.
//!
//! The service loses and delays requests (also past their deadline, so that they take effect after `Unknown` was told), loses
//! and delays answers, shows members attempts that never take effect, and members crash, restart, stand still, and have
//! clocks up to 5 % off. After every event it is asked who believes. Must not know: how the cores decide.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::proto::env::{Env, Instant};
use crate::proto::register::{Answer, Change, Chosen, OpId, Read};
use crate::types::{Epoch, Holder, LeaseSign, MemberId, Order, Scope};

pub const MS: u64 = 1_000;
pub const SECOND: u64 = 1_000 * MS;
pub const TTL: u64 = 10 * SECOND;
const DEADLINE: u64 = 2 * SECOND;

#[derive(Debug, Clone)]
enum Input {
    Tick,
    Answer(OpId, Answer),
    Accepted(String, Arc<str>),
    Chosen(String, Chosen),
    Gossip(usize, Vec<LeaseSign>),
    Ended(Scope),
    Order(Order),
}

#[derive(Debug, Clone)]
enum Event {
    /// For this process of this member; `None`: for whichever runs.
    Hear(usize, Option<u64>, Input),
    Change(usize, u64, Change, bool),
    Read(usize, u64, Read, bool),
    Kill(usize),
    Restart(usize),
    Pause(usize, u64),
    Cut(usize, bool),
    SendOrder(usize),
}

struct Node {
    core: Option<LeaseCore>,
    start: u64,
    rate_ppm: u64,
    offset: u64,
    paused_until: u64,
    cut: bool,
    tick_at: u64,
    /// What survives: the highest epochs.
    stored: BTreeMap<Scope, Epoch>,
    /// The highest epoch of which an order was carried out.
    obeyed: BTreeMap<Scope, Epoch>,
}

/// A hold as its member logs it, in true time.
#[derive(Debug, Clone)]
pub struct Held {
    pub member: usize,
    pub scope: Scope,
    pub epoch: Epoch,
    pub from: u64,
    pub to: Option<u64>,
}

pub struct Sim {
    pub now: u64,
    pub rng: fastrand::Rng,
    nodes: Vec<Node>,
    config: Config,
    wanted: BTreeSet<Scope>,
    registers: BTreeMap<String, Chosen>,
    events: BTreeMap<(u64, u64), Event>,
    seq: u64,
    /// Per mille of requests and answers that go wrong until `calm_at`.
    faults: u64,
    calm_at: u64,
    pub held: Vec<Held>,
    pub refused: u64,
}

impl Sim {
    pub fn new(seed: u64, members: usize, faults: u64, calm_at: u64, skewed: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let config = Config { enabled: true, ttl_ms: TTL / MS, renew_interval: Duration::from_secs(3) };
        let mut nodes = Vec::new();
        for _ in 0..members {
            let rate_ppm = match rng.u8(0..4) {
                _ if !skewed => 1_000_000,
                0 => 950_000,
                1 => 1_050_000,
                _ => rng.u64(950_000..=1_050_000),
            };
            nodes.push(Node {
                core: None,
                start: 0,
                rate_ppm,
                offset: rng.u64(0..1 << 40),
                paused_until: 0,
                cut: false,
                tick_at: u64::MAX,
                stored: BTreeMap::new(),
                obeyed: BTreeMap::new(),
            });
        }
        let mut sim = Self {
            now: 0,
            rng,
            nodes,
            config,
            wanted: BTreeSet::new(),
            registers: BTreeMap::new(),
            events: BTreeMap::new(),
            seq: 0,
            faults,
            calm_at,
            held: Vec::new(),
            refused: 0,
        };
        for n in 0..members {
            sim.restart(n);
        }
        sim
    }

    pub fn id(n: usize) -> MemberId {
        MemberId::new(format!("m{n}")).unwrap()
    }

    /// All members want the scope from now on.
    pub fn want(&mut self, scope: &Scope) {
        self.wanted.insert(scope.clone());
        for n in 0..self.nodes.len() {
            self.with(n, |core, env| core.handle_want(env, scope).unwrap());
        }
    }

    /// One member gives the scope up.
    pub fn release(&mut self, n: usize, scope: &Scope) {
        self.with(n, |core, env| core.handle_release(env, scope));
    }

    pub fn offer(&mut self, n: usize, scope: &Scope) {
        self.with(n, |core, env| core.handle_yield(env, scope));
    }

    pub fn local(&self, n: usize) -> Instant {
        Instant(self.nodes[n].offset + self.now * self.nodes[n].rate_ppm / 1_000_000)
    }

    /// The first true instant at which the member's clock has reached `at`.
    fn true_time(&self, n: usize, at: Instant) -> u64 {
        (at.0.saturating_sub(self.nodes[n].offset) * 1_000_000).div_ceil(self.nodes[n].rate_ppm)
    }

    pub fn believers(&self, scope: &Scope) -> Vec<usize> {
        let believes =
            |n: &usize| self.nodes[*n].core.as_ref().is_some_and(|core| core.believes(scope, self.local(*n)).is_some());
        (0..self.nodes.len()).filter(believes).collect()
    }

    /// Faults until `calm_at`: crashes, pauses, members cut from the ledger, stale orders.
    pub fn plan_faults(&mut self) {
        let mut t = SECOND;
        while t < self.calm_at {
            let n = self.rng.usize(0..self.nodes.len());
            let long = self.rng.u64(0..2 * TTL);
            let back = (t + long).min(self.calm_at);
            match self.rng.u8(0..4) {
                0 => {
                    self.at(t, Event::Kill(n));
                    self.at(back, Event::Restart(n));
                }
                1 => self.at(t, Event::Pause(n, back)),
                2 => {
                    self.at(t, Event::Cut(n, true));
                    self.at(back, Event::Cut(n, false));
                }
                _ => self.at(t, Event::SendOrder(n)),
            }
            t += self.rng.u64(MS..6 * SECOND);
        }
    }

    pub fn kill(&mut self, n: usize) {
        let now = self.local(n);
        let Some(mut core) = self.nodes[n].core.take() else { return };
        // A process that stood still past the end of its hold held nothing when it was killed.
        core.handle_tick(&mut Env { now, rng: &mut self.rng });
        while let Some(effect) = core.poll_effect() {
            if matches!(effect, Effect::Lost { .. }) {
                self.carry_out(n, now, effect);
            }
        }
        self.held.iter_mut().filter(|h| h.member == n && h.to.is_none()).for_each(|h| h.to = Some(self.now));
    }

    pub fn restart(&mut self, n: usize) {
        let me = Holder { member: Self::id(n), start: self.nodes[n].start + 1 };
        if self.nodes[n].core.is_some() {
            return;
        }
        let fences = Fences::recover(self.nodes[n].stored.clone());
        self.nodes[n].start += 1;
        self.nodes[n].paused_until = 0;
        self.nodes[n].core = Some(LeaseCore::recover(me, self.config.clone(), fences, self.local(n)));
        let members: Vec<MemberId> = (0..self.nodes.len()).map(Self::id).collect();
        self.with(n, |core, env| core.handle_members(env, members));
        for scope in self.wanted.clone() {
            self.with(n, |core, env| core.handle_want(env, &scope).unwrap());
        }
    }

    fn at(&mut self, when: u64, event: Event) {
        self.seq += 1;
        self.events.insert((when.max(self.now), self.seq), event);
    }

    fn hit(&mut self) -> bool {
        self.now < self.calm_at && self.rng.u64(0..1_000) < self.faults
    }

    /// A delay: short mostly, and under faults now and then as long as several TTLs; all is over when it is calm.
    fn delay(&mut self, short: Range<u64>) -> u64 {
        if self.hit() {
            // Half of them just late enough that somebody has asked in between.
            let long = if self.rng.bool() { 3 * TTL } else { 2 * DEADLINE };
            return self.rng.u64(0..long).min(self.calm_at - self.now);
        }
        self.rng.u64(short)
    }

    fn with<T>(&mut self, n: usize, f: impl FnOnce(&mut LeaseCore, &mut Env) -> T) -> Option<T> {
        let now = self.local(n);
        let mut core = self.nodes[n].core.take()?;
        let out = f(&mut core, &mut Env { now, rng: &mut self.rng });
        let mut effects = Vec::new();
        while let Some(effect) = core.poll_effect() {
            effects.push(effect);
        }
        let wake = core.next_wake().expect("renewals are always due");
        self.nodes[n].core = Some(core);
        // Persist first, then the rest.
        for effect in &effects {
            if let Effect::Persist { scope, epoch } = effect {
                let before = self.nodes[n].stored.insert(scope.clone(), *epoch);
                assert!(before.is_none_or(|b| b < *epoch), "a fence goes back");
            }
        }
        effects.into_iter().for_each(|effect| self.carry_out(n, now, effect));
        let late = self.delay(0..5 * MS);
        let tick = self.true_time(n, wake.max(now)) + late;
        if tick < self.nodes[n].tick_at || self.nodes[n].tick_at <= self.now {
            self.nodes[n].tick_at = tick;
            let start = self.nodes[n].start;
            self.at(tick, Event::Hear(n, Some(start), Input::Tick));
        }
        Some(out)
    }

    fn carry_out(&mut self, n: usize, now: Instant, effect: Effect) {
        let start = self.nodes[n].start;
        match effect {
            Effect::Persist { .. } => {}
            Effect::Became { scope, epoch, at, until } => {
                assert!(at == now && at < until, "a hold begins that is over");
                assert_eq!(self.nodes[n].stored.get(&scope), Some(&epoch), "an epoch is used before it is stored");
                self.held.push(Held { member: n, scope, epoch, from: self.now, to: None });
            }
            Effect::Lost { scope, epoch, at, why } => {
                let to = self.true_time(n, at).min(self.now);
                let held = self.held.iter_mut().rev().find(|h| h.member == n && h.scope == scope);
                let held = held.expect("what is lost was held");
                assert!(held.epoch == epoch && held.to.is_none());
                held.to = Some(to);
                if why == LostWhy::Released {
                    let d = self.rng.u64(0..200 * MS);
                    self.at(self.now + d, Event::Hear(n, Some(start), Input::Ended(scope)));
                }
            }
            Effect::Changes(changes) => {
                for change in changes {
                    let vote = Some((change.key.clone(), change.value.clone()));
                    self.ask(n, change.op, vote, |lost| Event::Change(n, start, change, lost));
                }
            }
            Effect::Reads(reads) => {
                for read in reads {
                    self.ask(n, read.op, None, |lost| Event::Read(n, start, read, lost));
                }
            }
            Effect::Gossip(signs) => {
                for other in (0..self.nodes.len()).filter(|other| *other != n) {
                    let d = self.delay(50 * MS..1_500 * MS);
                    if !self.nodes[n].cut && !self.hit() {
                        self.at(self.now + d, Event::Hear(other, None, Input::Gossip(n, signs.clone())));
                    }
                }
            }
        }
    }

    /// Sends a request on its way, or tells that it is lost.
    fn ask(&mut self, n: usize, op: OpId, vote: Option<(String, Arc<str>)>, event: impl FnOnce(bool) -> Event) {
        let start = Some(self.nodes[n].start);
        if self.nodes[n].cut || self.hit() {
            let answer = if self.rng.bool() { Answer::Unknown } else { Answer::NoQuorum };
            return self.at(self.now + DEADLINE, Event::Hear(n, start, Input::Answer(op, answer)));
        }
        let d = self.delay(MS..30 * MS);
        let overdue = d > DEADLINE && self.rng.bool();
        // What is held up has reached one voter already, now and then.
        if let Some((key, value)) = vote.filter(|_| d > DEADLINE && self.rng.bool()) {
            let other = self.rng.usize(0..self.nodes.len());
            self.at(self.now + MS, Event::Hear(other, None, Input::Accepted(key, value)));
        }
        if overdue {
            self.at(self.now + DEADLINE, Event::Hear(n, start, Input::Answer(op, Answer::Unknown)));
        }
        self.at(self.now + d, event(overdue));
    }

    fn reply(&mut self, n: usize, start: u64, op: OpId, answer: Answer, told: bool) {
        let d = self.delay(MS..30 * MS);
        if told {
            return;
        }
        let lost = self.hit() || self.nodes[n].cut;
        let answer = if lost { Answer::Unknown } else { answer };
        self.at(self.now + if lost { DEADLINE } else { d }, Event::Hear(n, Some(start), Input::Answer(op, answer)));
    }

    fn change(&mut self, n: usize, start: u64, change: Change, told: bool) {
        let current = self.registers.get(&change.key).cloned();
        let chosen = current.as_ref().map_or(0, |c| c.version) == change.expected;
        // Some voters accept what is never chosen.
        for other in 0..self.nodes.len() {
            if self.rng.u8(0..10) < if chosen { 7 } else { 2 } && !self.nodes[other].cut {
                let d = self.delay(0..20 * MS);
                let heard = Input::Accepted(change.key.clone(), change.value.clone());
                self.at(self.now + d, Event::Hear(other, None, heard));
            }
        }
        // A round that dies after the first vote.
        if chosen && self.hit() {
            return self.reply(n, start, change.op, Answer::Unknown, told);
        }
        if !chosen {
            return self.reply(n, start, change.op, Answer::Conflict { current }, told);
        }
        let version = change.expected + 1;
        let now = Chosen { version, value: change.value };
        self.registers.insert(change.key.clone(), now.clone());
        if !change.quiet {
            for other in 0..self.nodes.len() {
                let d = self.delay(MS..30 * MS);
                if !self.hit() && !self.nodes[other].cut {
                    self.at(self.now + d, Event::Hear(other, None, Input::Chosen(change.key.clone(), now.clone())));
                }
            }
        }
        self.reply(n, start, change.op, Answer::Changed { version }, told);
    }

    /// The worst moment for a change to take effect that was thought lost: right after its sender has asked.
    fn let_land(&mut self, n: usize, start: u64, key: &str) {
        let thought_lost =
            |e: &Event| matches!(e, Event::Change(m, s, c, true) if *m == n && *s == start && c.key == key);
        let held_up: Vec<_> = self.events.iter().filter(|(_, e)| thought_lost(e)).map(|(at, _)| *at).collect();
        for at in held_up {
            let event = self.events.remove(&at).expect("found above");
            self.at(self.now + 1, event);
        }
    }

    fn send_order(&mut self, n: usize) {
        let local = self.local(n);
        let Some(core) = &self.nodes[n].core else { return };
        let led = |s: &Scope| core.believes(s, local).map(|epoch| (s.clone(), epoch));
        let Some((scope, epoch)) = Scope::STANDING.iter().find_map(led) else { return };
        for to in 0..self.nodes.len() {
            let d = self.rng.u64(0..2 * TTL);
            let order = Order { scope: scope.clone(), epoch, record: "x".into(), version: 1 };
            self.at(self.now + d, Event::Hear(to, None, Input::Order(order)));
        }
    }

    fn hear(&mut self, n: usize, start: Option<u64>, input: Input) {
        if start.is_some_and(|s| s != self.nodes[n].start) {
            return;
        }
        let until = self.nodes[n].paused_until;
        if until > self.now {
            return self.at(until, Event::Hear(n, start, input));
        }
        if let Input::Order(order) = &input {
            let accepted = self.with(n, |core, env| core.handle_order(env, order, 1).is_ok());
            match accepted {
                Some(true) => {
                    let before = self.nodes[n].obeyed.insert(order.scope.clone(), order.epoch);
                    assert!(before.is_none_or(|b| b <= order.epoch), "a stale order was carried out");
                }
                Some(false) => self.refused += 1,
                None => {}
            }
            return;
        }
        // The worst moment to be cut off: when what one has just heard is all that one will hear.
        if matches!(input, Input::Answer(_, Answer::Conflict { .. })) && self.now < self.calm_at && self.rng.bool() {
            self.nodes[n].cut = true;
            let back = (self.now + self.rng.u64(0..2 * TTL)).min(self.calm_at);
            self.at(back, Event::Cut(n, false));
        }
        self.with(n, |core, env| match input {
            Input::Tick => core.handle_tick(env),
            Input::Answer(op, answer) => core.handle_answer(env, op, answer),
            Input::Accepted(key, value) => core.handle_accepted(env, &key, &value),
            Input::Chosen(key, chosen) => core.handle_chosen(env, &key, &chosen),
            Input::Gossip(from, signs) => core.handle_gossip(env, &Self::id(from), &signs),
            Input::Ended(scope) => core.handle_ended(env, &scope),
            Input::Order(_) => unreachable!("heard above"),
        });
    }

    /// Goes on until `to`; says what was broken.
    pub fn run(&mut self, to: u64) -> Result<(), String> {
        while let Some(((at, _), event)) = self.events.first_key_value().map(|(k, e)| (*k, e.clone())) {
            if at > to {
                break;
            }
            self.events.pop_first();
            self.now = at;
            match event {
                Event::Hear(n, start, input) => self.hear(n, start, input),
                Event::Change(n, start, change, told) => self.change(n, start, change, told),
                Event::Read(n, start, read, told) => {
                    let current = self.registers.get(&read.key).cloned();
                    self.let_land(n, start, &read.key);
                    self.reply(n, start, read.op, Answer::Read { current }, told);
                }
                Event::Kill(n) => self.kill(n),
                Event::Restart(n) => self.restart(n),
                Event::Pause(n, until) => self.nodes[n].paused_until = self.nodes[n].paused_until.max(until),
                Event::Cut(n, cut) => self.nodes[n].cut = cut,
                Event::SendOrder(n) => self.send_order(n),
            }
            self.check()?;
        }
        self.now = to;
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        for scope in Scope::STANDING.iter().chain(&self.wanted) {
            let believers = self.believers(scope);
            if believers.len() > 1 {
                return Err(format!("{believers:?} all hold {scope} at {}", self.now));
            }
        }
        Ok(())
    }

    /// The log of holdings: no two of a scope overlap, and epochs grow.
    pub fn check_log(&self) -> Result<(), String> {
        let mut last: BTreeMap<&Scope, &Held> = BTreeMap::new();
        for held in &self.held {
            if let Some(before) = last.insert(&held.scope, held)
                && (before.epoch >= held.epoch || before.to.is_none_or(|to| to > held.from))
            {
                return Err(format!("{before:?} and then {held:?}"));
            }
        }
        Ok(())
    }
}
