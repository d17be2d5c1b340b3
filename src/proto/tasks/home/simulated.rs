//! One home among shards, replicas and senders: everything is lost, repeated and reordered, and its primary is replaced at
//! any point; then all heals, and every promise is looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::filter::Filter;
use super::super::kind::Status;
use super::super::query::Action;
use super::super::task::{Head, Outcome, Subject};
use super::super::when::When;
use super::*;
use crate::proto::env::{Env, Instant};
use crate::types::{MemberId, PhysicalIndex, TaskPart, TaskUid};

const SHARDS: u16 = 4;
const MEMBERS: usize = 3;
const STEP: Duration = Duration::from_millis(20);

fn index() -> PhysicalIndex {
    PhysicalIndex::new("a__m00000001").unwrap()
}

fn member(i: usize) -> MemberId {
    MemberId::new(format!("m{i}")).unwrap()
}

/// Members that hold a shard.
fn holders(shard: u16) -> [usize; 2] {
    [usize::from(shard) % MEMBERS, (usize::from(shard) + 1) % MEMBERS]
}

/// A part that fails on every node does so by its number.
fn fails(uid: TaskUid, part: PartRef) -> bool {
    uid.0 % 5 == 3 && part.shard == 1
}

fn changes(uid: TaskUid, part: PartRef) -> u64 {
    u64::from(uid.0 + u32::from(part.shard))
}

#[derive(Debug, Clone)]
enum Message {
    Effect(Effect),
    Appended(TaskPart, Appended),
    Report(usize, Report),
    Refusals(TaskUid, Vec<(PartRef, Refusal)>),
    OrderRefusal(TaskUid, Refusal),
    Awaited,
    Swept(TaskUid, Swept),
    Hooked(BTreeSet<TaskUid>),
}

/// One request of a client.
#[derive(Debug, Clone)]
struct Sender {
    uid: TaskUid,
    head: Head,
    lives: bool,
    taken: bool,
    /// Whether the answer for a part was that it is there.
    parts: BTreeMap<PartRef, bool>,
    acknowledged: bool,
}

struct World {
    rng: fastrand::Rng,
    dice: fastrand::Rng,
    now: Instant,
    /// How bad it is, in hundredths.
    bad: u32,
    home: Home,
    reigns: u32,
    /// The home's journal.
    journal: Vec<(TaskPart, HomeEntry)>,
    /// Committed here, not told to the primary.
    told: usize,
    /// For each shard what stands, in order: the part, or that it was refused.
    shards: BTreeMap<u16, Vec<(TaskUid, PartRef, Refusal)>>,
    /// For each member and shard how far it has applied.
    applied: BTreeMap<(usize, u16), usize>,
    /// Reports that a member repeats until they are heard.
    unheard: BTreeMap<usize, BTreeMap<(TaskUid, PartRef), Said>>,
    orders: BTreeMap<TaskUid, Refusal>,
    senders: Vec<Sender>,
    messages: Vec<Message>,
    fired: BTreeMap<TaskUid, u32>,
    ops: BTreeMap<OpId, usize>,
    next_op: u64,
}

impl World {
    fn new(seed: u64, bad: u32) -> Self {
        let (mut rng, dice) = (fastrand::Rng::with_seed(seed), fastrand::Rng::with_seed(!seed));
        let now = Instant(1_000_000);
        let home = Home::recover(&mut Env { now, rng: &mut rng }, When(0), config(), HomeState::default(), true);
        let (journal, messages) = (Vec::new(), Vec::new());
        let (shards, applied, unheard) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (orders, fired, ops) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self {
            rng,
            dice,
            now,
            bad,
            home,
            reigns: 1,
            journal,
            told: 0,
            shards,
            applied,
            unheard,
            orders,
            senders: Vec::new(),
            messages,
            fired,
            ops,
            next_op: 0,
        }
    }

    fn wall(&self) -> When {
        When(i64::try_from(self.now.0 * 1_000).unwrap())
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.dice.u32(0..100) < percent
    }

    /// Tells the primary something, and carries out what it wants.
    fn tell(&mut self, with: impl FnOnce(&mut Home, &mut Env<'_>, When)) {
        let wall = self.wall();
        with(&mut self.home, &mut Env { now: self.now, rng: &mut self.rng }, wall);
        while let Some(effect) = self.home.poll_effect() {
            self.messages.push(Message::Effect(effect));
        }
    }

    fn send(&mut self, uid: u32, subject: Subject, work: Work) {
        let head = Head { index_uid: None, subject, work, enqueued: self.wall(), custom_metadata: None, key: None };
        let (uid, parts) = (TaskUid(uid), BTreeMap::new());
        self.senders.push(Sender { uid, head, lives: true, taken: false, parts, acknowledged: false });
    }

    /// A sender does one thing.
    fn sender(&mut self, i: usize) {
        let sender = self.senders[i].clone();
        if !sender.lives || sender.acknowledged {
            return;
        }
        if self.chance(self.bad / 8) {
            self.senders[i].lives = false;
            return;
        }
        if !sender.taken && self.chance(50) {
            self.next_op += 1;
            let op = OpId(self.next_op);
            self.ops.insert(op, i);
            self.tell(|home, env, _| home.handle_head(env, op, sender.uid, sender.head.clone()));
        }
        if let Work::Parts { parts, .. } = &sender.head.work {
            let open: Vec<PartRef> = parts.iter().filter(|p| !sender.parts.contains_key(p)).collect();
            if !open.is_empty() {
                let part = open[self.dice.usize(0..open.len())];
                let stands = self.stand(sender.uid, part, Refusal::There);
                if !self.chance(self.bad) {
                    self.senders[i].parts.insert(part, stands == Refusal::There);
                }
            }
        }
        if sender.head.work == Work::Order && sender.taken {
            let refusal = *self.orders.entry(sender.uid).or_insert(Refusal::There);
            self.senders[i].acknowledged = refusal == Refusal::There;
            self.senders[i].lives = refusal == Refusal::There;
        }
        let sender = &mut self.senders[i];
        let all = match &sender.head.work {
            Work::Parts { parts, .. } => parts.iter().all(|p| sender.parts.get(&p) == Some(&true)),
            Work::Order => return,
            _ => true,
        };
        sender.acknowledged = sender.taken && all;
        sender.lives &= sender.parts.values().all(|there| *there);
    }

    /// What stands in a shard's journal under a part: whichever came first.
    fn stand(&mut self, uid: TaskUid, part: PartRef, wanted: Refusal) -> Refusal {
        let shard = self.shards.entry(part.shard).or_default();
        if let Some((.., stands)) = shard.iter().find(|(u, p, _)| (*u, *p) == (uid, part)) {
            return *stands;
        }
        shard.push((uid, part, wanted));
        wanted
    }

    fn done(&self, uid: TaskUid, part: PartRef) -> Done {
        let error = fails(uid, part).then(|| ("invalid_document_id".to_owned(), "bad".to_owned()));
        let finished = When(self.wall().0 + 7);
        let changed = if error.is_some() { 0 } else { changes(uid, part) };
        Done { error, changed, started: self.wall(), finished }
    }

    /// A node applies the next entry of a shard.
    fn apply(&mut self, m: usize, shard: u16) {
        let at = *self.applied.entry((m, shard)).or_default();
        let Some((uid, part, stands)) = self.shards.get(&shard).and_then(|s| s.get(at)).copied() else { return };
        self.applied.insert((m, shard), at + 1);
        if stands == Refusal::There {
            let said = Said::Done(self.done(uid, part));
            self.unheard.entry(m).or_default().insert((uid, part), said.clone());
            self.messages.push(Message::Report(m, Report { parts: vec![(uid, part, said)], heads: Vec::new() }));
        }
    }

    fn said(&self, m: usize, uid: TaskUid, part: PartRef) -> Option<Said> {
        let shard = self.shards.get(&part.shard)?;
        let at = shard.iter().position(|(u, p, s)| (*u, *p, *s) == (uid, part, Refusal::There))?;
        let done = self.applied.get(&(m, part.shard)).is_some_and(|applied| *applied > at);
        Some(if done { Said::Done(self.done(uid, part)) } else { Said::There })
    }

    fn append(&mut self, part: TaskPart, entry: &HomeEntry) {
        if self.chance(self.bad) {
            return;
        }
        assert!(HomeEntry::decode(&entry.encode().expect("it is well formed")).as_ref() == Some(entry));
        let at = self.journal.iter().position(|(p, _)| *p == part).unwrap_or_else(|| {
            self.check_before(entry);
            self.journal.push((part, entry.clone()));
            self.journal.len() - 1
        });
        self.messages.push(Message::Appended(part, Appended::Committed(at as u64 + 1)));
    }

    /// What must hold where an end is committed.
    fn check_before(&self, entry: &HomeEntry) {
        let HomeEntry::Finished { uid, outcome, .. } = entry else { return };
        let Some(Work::Parts { parts, .. }) = self.home.state().task(*uid).map(|row| row.head.work.clone()) else {
            return;
        };
        for part in parts.iter() {
            let stands = self.shards.get(&part.shard).and_then(|s| s.iter().find(|(u, p, _)| (*u, *p) == (*uid, part)));
            let Some((.., Refusal::There)) = stands else {
                assert!(stands.is_some(), "{uid} ended while nobody knew what becomes of {part:?}");
                assert!(outcome.status != Status::Succeeded, "{uid} succeeded without {part:?}");
                continue;
            };
            for m in holders(part.shard) {
                let done = matches!(self.said(m, *uid, part), Some(Said::Done(_)));
                assert!(done, "{uid} ended before m{m} had applied {part:?}");
            }
        }
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Appended(part, appended) => self.tell(|home, env, _| home.handle_appended(env, part, appended)),
            Message::Report(m, report) => {
                self.tell(|home, env, wall| home.handle_report(env, wall, &member(m), report))
            }
            Message::Refusals(uid, parts) => self.tell(|home, env, wall| home.handle_refusals(env, wall, uid, &parts)),
            Message::OrderRefusal(uid, refusal) => {
                self.tell(|home, env, wall| home.handle_order_refusal(env, wall, uid, refusal));
            }
            Message::Awaited => {
                let shards = (0..SHARDS).map(|s| (s, holders(s).iter().map(|m| member(*m)).collect())).collect();
                self.tell(|home, env, wall| home.handle_awaited(env, wall, index(), Some(shards)));
            }
            Message::Swept(by, swept) => self.tell(|home, env, wall| home.handle_swept(env, wall, by, 0, swept)),
            Message::Hooked(uids) => self.tell(|home, env, _| home.handle_hooked(env, &uids)),
            Message::Effect(effect) => self.carry_out(effect),
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Append { part, entry } => self.append(part, &entry),
            Effect::Answer { op, answer } => match (self.ops.get(&op).copied(), answer) {
                (Some(i), Answer::Taken) => self.senders[i].taken = true,
                (Some(i), Answer::Other | Answer::Void | Answer::Refused) => self.senders[i].lives = false,
                (None, Answer::Swept(swept)) => self.messages.push(Message::Swept(TaskUid(op.0 as u32), swept)),
                _ => {}
            },
            Effect::Ask { member: m, uid, parts, .. } => {
                let m = (0..MEMBERS).find(|i| member(*i) == m).unwrap();
                let parts = parts.into_iter().filter_map(|p| Some((uid, p, self.said(m, uid, p)?))).collect();
                self.messages.push(Message::Report(m, Report { parts, heads: Vec::new() }));
            }
            Effect::WantHead { member: m, uid } => {
                let m = (0..MEMBERS).find(|i| member(*i) == m).unwrap();
                let head = self.senders.iter().find(|s| s.uid == uid).map(|s| (uid, s.head.clone()));
                let report = Report { parts: Vec::new(), heads: head.into_iter().collect() };
                self.messages.push(Message::Report(m, report));
            }
            Effect::Heard { member: m, uids } => {
                let m = (0..MEMBERS).find(|i| member(*i) == m).unwrap();
                self.unheard.entry(m).or_default().retain(|(uid, _), _| !uids.contains(uid));
            }
            Effect::WantAwaited(_) => self.messages.push(Message::Awaited),
            Effect::Refuse { uid, parts, .. } => {
                // Each shard answers by itself.
                for part in parts {
                    let refusal = self.stand(uid, part, Refusal::Refused);
                    self.messages.push(Message::Refusals(uid, vec![(part, refusal)]));
                }
            }
            Effect::RefuseOrder { uid, .. } => {
                let refusal = *self.orders.entry(uid).or_insert(Refusal::Refused);
                self.messages.push(Message::OrderRefusal(uid, refusal));
            }
            // Sweeps are told apart from other requests by high numbers, which are those of their tasks.
            Effect::Sweep { by, action, filter, .. } => {
                self.tell(|home, env, _| home.handle_sweep(env, OpId(by.0.into()), by, action, *filter));
            }
            Effect::Hook(tasks) => {
                tasks.iter().for_each(|(uid, shown)| {
                    assert!(shown.outcome.is_some());
                    *self.fired.entry(*uid).or_default() += 1;
                });
                self.messages.push(Message::Hooked(tasks.into_iter().map(|(uid, _)| uid).collect()));
            }
            Effect::AskGone(_) => {}
            Effect::Broken { uid, part } => panic!("{uid} applied {part:?}, which was refused"),
        }
    }

    /// The primary dies; another begins with what the journal says.
    fn replace(&mut self) {
        // What it had appended is committed by the next, or never was.
        let left: Vec<Message> = std::mem::take(&mut self.messages);
        for message in left {
            match message {
                Message::Effect(Effect::Append { part, entry }) if self.chance(50) => self.append(part, &entry),
                Message::Effect(Effect::Append { .. } | Effect::Hook(_))
                | Message::Appended(..)
                | Message::Hooked(_) => {}
                other => self.messages.push(other),
            }
        }
        self.messages.retain(|m| !matches!(m, Message::Appended(..)));
        let mut state = HomeState::default();
        for (i, (_, entry)) in self.journal.iter().enumerate() {
            state.apply(i as u64 + 1, Some(entry.clone()));
        }
        self.told = self.journal.len();
        self.reigns += 1;
        let (wall, mut env) = (self.wall(), Env { now: self.now, rng: &mut self.rng });
        self.home = Home::recover(&mut env, wall, config(), state, true);
        self.tell(|_, _, _| {});
    }

    fn step(&mut self) {
        self.now = self.now.plus(STEP);
        for i in 0..self.senders.len() {
            if self.chance(40) {
                self.sender(i);
            }
        }
        for m in 0..MEMBERS {
            for shard in 0..SHARDS {
                if holders(shard).contains(&m) && self.chance(30) {
                    self.apply(m, shard);
                }
            }
            if self.chance(5) {
                let parts = self.unheard.entry(m).or_default();
                let parts = parts.iter().map(|((uid, part), said)| (*uid, *part, said.clone())).collect();
                self.messages.push(Message::Report(m, Report { parts, heads: Vec::new() }));
            }
        }
        for (uid, refusal) in self.orders.clone() {
            if refusal == Refusal::There && self.chance(5) {
                let when = self.wall();
                let outcome = Outcome {
                    status: Status::Succeeded,
                    error: None,
                    changed: 0,
                    matched: 0,
                    started: when,
                    finished: when,
                };
                self.tell(|home, env, _| home.handle_outcome(env, OpId(u64::MAX), uid, outcome));
            }
        }
        while self.told < self.journal.len() && self.chance(60) {
            let (i, entry) = (self.told as u64 + 1, self.journal[self.told].1.clone());
            self.told += 1;
            self.tell(|home, env, wall| drop(home.handle_committed(env, wall, i, Some(entry))));
        }
        for _ in 0..self.messages.len() {
            if self.messages.is_empty() || self.chance(30) {
                break;
            }
            let at = self.dice.usize(0..self.messages.len());
            let message = self.messages.swap_remove(at);
            let drops = !matches!(message, Message::Effect(Effect::Hook(_)) | Message::Hooked(_));
            if drops && self.chance(self.bad) {
                continue;
            }
            if drops && self.chance(self.bad / 2) {
                self.messages.push(message.clone());
            }
            self.deliver(message);
        }
        if self.home.next_wake().is_some_and(|at| at <= self.now) {
            self.tell(|home, env, wall| home.handle_tick(env, wall));
        }
        if self.bad > 0 && self.chance(3) {
            self.replace();
        }
    }

    fn settled(&self) -> bool {
        let told = self.told == self.journal.len() && self.unheard.values().all(BTreeMap::is_empty);
        told && self.messages.is_empty()
            && self.home.state().open().is_empty()
            && self.home.state().unhooked().is_empty()
    }

    /// What must hold in the end.
    fn check(&self) {
        for sender in &self.senders {
            let row = self.home.state().task(sender.uid);
            let outcome = row.and_then(|row| row.outcome.as_ref());
            let Some((row, outcome)) = row.zip(outcome) else {
                assert!(!sender.acknowledged && !sender.taken, "{} was acknowledged and is not known", sender.uid);
                let began = self.shards.values().flatten().any(|(uid, ..)| *uid == sender.uid);
                assert!(!began, "{} was begun and is not known", sender.uid);
                continue;
            };
            if let Work::Parts { parts, .. } = &row.head.work {
                let expected = self.expected(sender.uid, parts, row.cancel);
                assert_eq!((outcome.status, outcome.changed), expected, "{}", sender.uid);
                let code = outcome.error.as_ref().map(|e| e.code.as_str());
                let refused =
                    self.shards.values().flatten().any(|(u, _, r)| *u == sender.uid && *r == Refusal::Refused);
                assert!(code != Some("miroir_incomplete") || refused, "{} is incomplete and whole", sender.uid);
                assert!(!(sender.acknowledged && refused), "{} was acknowledged and refused", sender.uid);
                assert!(outcome.started <= outcome.finished && row.head.enqueued <= outcome.finished);
            } else if sender.acknowledged {
                assert_eq!(outcome.status, Status::Succeeded, "{}", sender.uid);
            }
            let fired = self.fired.get(&sender.uid).copied().unwrap_or(0);
            assert!((1..=self.reigns).contains(&fired), "{} was told {fired} times", sender.uid);
        }
        assert!(self.home.next_wake().is_some());
    }

    /// The outcome by what stands in the shards, whatever happened on the way.
    fn expected(&self, uid: TaskUid, parts: &Parts, cancel: Option<TaskUid>) -> (Status, u64) {
        let of_task =
            |p: &PartRef| self.shards.get(&p.shard).into_iter().flatten().find(|(u, q, _)| (*u, *q) == (uid, *p));
        let there: Vec<PartRef> = parts.iter().filter(|p| matches!(of_task(p), Some((.., Refusal::There)))).collect();
        let failed = there.iter().any(|p| fails(uid, *p));
        let changed = there.iter().filter(|p| !fails(uid, **p)).map(|p| changes(uid, *p)).sum();
        let status = match (failed, there.len() as u64 == parts.len(), cancel) {
            (true, ..) => Status::Failed,
            (_, true, _) => Status::Succeeded,
            (_, _, Some(_)) if there.is_empty() => Status::Canceled,
            _ => Status::Failed,
        };
        (status, changed)
    }
}

fn config() -> Config {
    Config { homes: 1, incomplete_after: Duration::from_secs(4), ..Config::default() }
}

/// What a run was about, so that a test of nothing is noticed.
#[derive(Debug, Default)]
struct Seen {
    acknowledged: usize,
    failed: usize,
    incomplete: usize,
    canceled: usize,
    reigns: u32,
    twice: usize,
}

fn run(seed: u64, bad: u32, seen: &mut Seen) {
    let mut world = World::new(seed, bad);
    for step in 0..1_500_u32 {
        if step % 40 == 0 && step < 800 {
            let uid = 1_000_000 + step / 40;
            let pick = world.dice.u32(0..10);
            let shards: Vec<u16> = (0..SHARDS).filter(|_| world.dice.bool()).collect();
            let parts = Parts::one_each(if shards.is_empty() { vec![1] } else { shards });
            let sweep = Work::Sweep { action: Action::Cancel, filter: Filter::default() };
            match pick {
                0 => world.send(uid, Subject::Cancelation("?uids=*".into()), sweep),
                1 | 2 => world.send(uid, Subject::IndexDeletion, Work::Order),
                _ => world.send(uid, Subject::Clear, Work::Parts { index: index(), parts }),
            }
        }
        if step == 900 {
            world.bad = 0;
        }
        world.step();
    }
    for _ in 0..4_000 {
        if world.settled() {
            break;
        }
        world.step();
    }
    assert!(world.settled(), "seed {seed}: open {:?}, {} messages", world.home.state().open(), world.messages.len());
    world.check();
    let outcomes = || world.home.state().tasks().filter_map(|(_, row)| row.outcome.as_ref());
    let code = |o: &Outcome, code: &str| o.error.as_ref().is_some_and(|e| e.code == code);
    seen.acknowledged += world.senders.iter().filter(|s| s.acknowledged).count();
    seen.failed += outcomes().filter(|o| code(o, "invalid_document_id")).count();
    seen.incomplete += outcomes().filter(|o| code(o, "miroir_incomplete")).count();
    seen.canceled += outcomes().filter(|o| o.status == Status::Canceled).count();
    seen.reigns += world.reigns;
    seen.twice += world.fired.values().filter(|n| **n > 1).count();
}

#[test]
fn every_acknowledged_task_ends_as_its_parts_did() {
    let mut seen = Seen::default();
    for seed in 0..60 {
        run(seed, [10, 25, 40][seed as usize % 3], &mut seen);
    }
    assert!(seen.acknowledged > 200 && seen.failed > 20 && seen.incomplete > 20, "{seen:?}");
    assert!(seen.canceled > 5 && seen.reigns > 500 && seen.twice > 0, "{seen:?}");
}

#[test]
fn webhooks_are_told_once_while_one_primary_lives() {
    let mut seen = Seen::default();
    for seed in 100..110 {
        run(seed, 0, &mut seen);
    }
    assert_eq!((seen.twice, seen.reigns), (0, 10), "{seen:?}");
    assert!(seen.acknowledged > 150, "{seen:?}");
}
