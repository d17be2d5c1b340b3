//! A small world of ledgers for tests: one seed decides everything.
//!
//! Messages lie in a bag and come late, twice, in any order, or never. Processes end before their transaction, between it
//! and what follows, or in the middle of that. Every durable row, every answer and every copy is held against the named
//! invariants. Rule: nothing here helps a ledger; it only sees what a driver sees.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::effect::{Answer, Bootstrap, BootstrapMember, Change, Command, Config, Effect, Notice, OpId, Read, Row};
use super::member::Ledger;
use super::message::Message;
use super::stored::Stored;
use crate::proto::env::{Env, Instant};
use crate::proto::invariant::History;
use crate::types::{
    GroupId, MemberId, MemberState, MeshId, MeshMember, MeshRecord, RecordKey, StoreId, Versioned, Voter, VoterList,
    VotersState,
};

/// How unkind the world is, in thousandths.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    pub lost: u32,
    pub twice: u32,
    pub late: u32,
    pub crash: u32,
    /// What a process sends leaves before its rows are durable.
    pub send_first: bool,
}

#[derive(Debug, Clone)]
pub enum Event {
    Deliver { from: MemberId, to: MemberId, message: Box<Message> },
    Tick { member: MemberId, process: u64 },
    Start { member: MemberId },
}

#[derive(Debug)]
pub struct Node {
    pub disk: Stored,
    pub core: Option<Ledger>,
    rng: fastrand::Rng,
    ticks_at: Option<Instant>,
    /// Processes so far, over all stores.
    process: u64,
}

/// An operation under way.
#[derive(Debug)]
struct Op {
    member: MemberId,
    process: u64,
    key: RecordKey,
    /// Its own value, of a change.
    value: Option<String>,
    /// The newest version that anyone had been told of when it began.
    floor: u64,
}

#[derive(Debug)]
pub struct World {
    pub seed: u64,
    pub now: Instant,
    pub rng: fastrand::Rng,
    pub nodes: BTreeMap<MemberId, Node>,
    pub faults: Faults,
    pub cut: BTreeSet<(MemberId, MemberId)>,
    pub history: BTreeMap<MeshId, History>,
    queue: BTreeMap<(Instant, u64), Event>,
    events: u64,
    ops: BTreeMap<u64, Op>,
    next_op: u64,
    pub floors: BTreeMap<RecordKey, u64>,
    /// Values of which a caller was told that nothing was done.
    never: Vec<(Option<MeshId>, RecordKey, String)>,
    pub answers: BTreeMap<u64, Answer>,
    pub joined: BTreeSet<MeshId>,
    pub rolled_back: BTreeSet<MemberId>,
    bootstrap: Option<Bootstrap>,
    pub counts: BTreeMap<&'static str, u64>,
    /// Messages so far.
    pub sent: u64,
    pub notices: BTreeSet<(MemberId, Notice)>,
}

pub fn id(i: u8) -> MemberId {
    MemberId::new(format!("m{i}")).unwrap()
}

pub fn key(i: u8) -> RecordKey {
    RecordKey::new(format!("k{i}")).unwrap()
}

pub fn config(member: &MemberId, bootstrap: Option<Bootstrap>) -> Config {
    Config {
        member: member.clone(),
        renew_interval: Duration::from_millis(300),
        lease_ttl: Duration::from_secs(2),
        voter_replace_after: Duration::from_secs(6),
        round_timeout: Duration::from_millis(200),
        retry_base: Duration::from_millis(10),
        bootstrap,
    }
}

pub fn group(i: u8) -> GroupId {
    GroupId::new(format!("g{}", i % 2)).unwrap()
}

impl World {
    /// `made` members with the same bootstrap list, none of them started.
    pub fn new(seed: u64, made: u8) -> Self {
        let members = (0..made)
            .map(|i| BootstrapMember { id: id(i), group: group(i), address: format!("h{i}"), witness: false })
            .collect();
        Self {
            seed,
            now: Instant(1_000_000),
            rng: fastrand::Rng::with_seed(seed),
            nodes: BTreeMap::new(),
            faults: Faults::default(),
            cut: BTreeSet::new(),
            history: BTreeMap::new(),
            queue: BTreeMap::new(),
            events: 0,
            ops: BTreeMap::new(),
            next_op: 0,
            floors: BTreeMap::new(),
            never: Vec::new(),
            answers: BTreeMap::new(),
            joined: BTreeSet::new(),
            rolled_back: BTreeSet::new(),
            bootstrap: Some(Bootstrap { members, rf: 2, shards: 64 }),
            counts: BTreeMap::new(),
            sent: 0,
            notices: BTreeSet::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn at(&mut self, at: Instant, event: Event) {
        self.events += 1;
        self.queue.insert((at, self.events), event);
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_micros(self.rng.u64(from * 1_000..=to * 1_000))
    }

    /// Makes a member with an empty store and starts it.
    pub fn add(&mut self, member: &MemberId) {
        let store = StoreId(self.rng.u128(..).to_be_bytes());
        let rng = self.rng.fork();
        let process = self.nodes.get(member).map_or(0, |n| n.process);
        let node = Node { disk: Stored::new(store), core: None, rng, ticks_at: None, process };
        self.nodes.insert(member.clone(), node);
        self.start(member);
    }

    /// Starts a process on what is durable.
    pub fn start(&mut self, member: &MemberId) {
        let peers: BTreeSet<_> = (0..5).map(id).filter(|m| m != member).collect();
        let in_list = |b: &Bootstrap| b.members.iter().any(|m| m.id == *member);
        let bootstrap = self.bootstrap.clone().filter(in_list);
        let Some(node) = self.nodes.get_mut(member).filter(|n| n.core.is_none()) else { return };
        node.disk.begin();
        node.process += 1;
        node.ticks_at = None;
        let mut env = Env { now: self.now, rng: &mut node.rng };
        let mut core = Ledger::recover(config(member, bootstrap), node.disk.clone(), &mut env);
        core.submit(&mut env, Command::Peers(peers));
        node.core = Some(core);
        self.carry_out(member);
    }

    /// The process ends here and now.
    pub fn crash(&mut self, member: &MemberId) {
        if let Some(node) = self.nodes.get_mut(member) {
            node.core = None;
        }
        let process = self.nodes.get(member).map_or(0, |n| n.process);
        self.ops.retain(|_, op| op.member != *member || op.process != process);
    }

    pub fn crash_and_restart(&mut self, member: &MemberId) {
        self.count("crash");
        self.crash(member);
        let delay = self.millis(5, 400);
        let at = self.now.plus(delay);
        self.at(at, Event::Start { member: member.clone() });
    }

    fn chance(&mut self, thousandths: u32) -> bool {
        thousandths > 0 && self.rng.u32(0..1000) < thousandths
    }

    /// The driver's step after every call of the core.
    fn carry_out(&mut self, member: &MemberId) {
        let Some(core) = self.nodes.get_mut(member).and_then(|n| n.core.as_mut()) else { return };
        let (mut rows, mut rest) = (Vec::new(), Vec::new());
        while let Some(effect) = core.poll_effect() {
            match effect {
                Effect::Persist(row) => rows.push(row),
                other => rest.push(other),
            }
        }
        let crash = !rest.is_empty() && self.chance(self.faults.crash);
        let place = self.rng.u32(0..3);
        if self.faults.send_first {
            for effect in rest.iter().filter(|e| matches!(e, Effect::Send { .. })) {
                self.carry_out_one(member, effect.clone());
            }
            rest.retain(|e| !matches!(e, Effect::Send { .. }));
        }
        if crash && place == 0 {
            return self.crash_and_restart(member);
        }
        self.store(member, rows);
        if crash && place == 1 {
            return self.crash_and_restart(member);
        }
        let some = if crash { self.rng.usize(0..=rest.len()) } else { rest.len() };
        for effect in rest.into_iter().take(some) {
            self.carry_out_one(member, effect);
        }
        if crash {
            return self.crash_and_restart(member);
        }
        let Some(node) = self.nodes.get_mut(member) else { return };
        let Some(core) = node.core.as_ref() else { return };
        assert_eq!(*core.stored(), node.disk, "seed {}: memory and store differ", self.seed);
        let wake = core.next_wake();
        if let Some(at) = wake
            && node.ticks_at.is_none_or(|t| at < t)
        {
            let at = at.max(self.now);
            node.ticks_at = Some(at);
            let process = node.process;
            self.at(at, Event::Tick { member: member.clone(), process });
        }
    }

    /// One durable transaction, held against the invariants row by row.
    fn store(&mut self, member: &MemberId, rows: Vec<Row>) {
        let seed = self.seed;
        let node = self.nodes.get_mut(member).unwrap();
        let voter = Voter { member: member.clone(), store: node.disk.store };
        for row in rows {
            node.disk.apply(row.clone());
            let Some((mesh, _)) = node.disk.mesh else { continue };
            let history = self.history.entry(mesh).or_default();
            let checked = match &row {
                Row::List(list) => history.listed(list),
                Row::Accepted { key, ballot, record, .. } => {
                    let list = node.disk.list.as_ref().map_or(0, |l| l.number);
                    history.accepted(&voter, list, key, ballot, record)
                }
                Row::Copy { key, record } => history.told_as_chosen(key, record),
                _ => Ok(()),
            };
            if let Err(broken) = checked {
                panic!("seed {seed}: {member}: {broken}");
            }
        }
    }

    fn carry_out_one(&mut self, member: &MemberId, effect: Effect) {
        match effect {
            Effect::Persist(_) => unreachable!("stored before"),
            Effect::Send { to, message } => self.send(member, to, message),
            Effect::Answer { op, answer } => self.answered(op.0, answer),
            Effect::Joined { mesh } => {
                self.joined.insert(mesh);
            }
            Effect::RolledBack { .. } => {
                self.rolled_back.insert(member.clone());
            }
            Effect::Notice(notice) => {
                self.notices.insert((member.clone(), notice));
            }
            Effect::Copied { .. } | Effect::Accepted { .. } => {}
        }
    }

    fn send(&mut self, from: &MemberId, to: MemberId, message: Message) {
        message.check().expect("a member keeps the bounds that it asks of others");
        self.sent += 1;
        if self.cut.contains(&(from.clone(), to.clone())) || self.chance(self.faults.lost) {
            return;
        }
        let times = if self.chance(self.faults.twice) { 2 } else { 1 };
        for _ in 0..times {
            let delay = if self.chance(self.faults.late) { self.millis(20, 3_000) } else { self.millis(1, 12) };
            let event = Event::Deliver { from: from.clone(), to: to.clone(), message: Box::new(message.clone()) };
            self.at(self.now.plus(delay), event);
        }
    }

    /// Takes the messages from one member to another out of the bag.
    pub fn hold(&mut self, from: &MemberId, to: &MemberId) -> Vec<Event> {
        let between = |e: &Event| matches!(e, Event::Deliver { from: f, to: t, .. } if f == from && t == to);
        let at: Vec<_> = self.queue.iter().filter(|(_, e)| between(e)).map(|(at, _)| *at).collect();
        at.iter().filter_map(|at| self.queue.remove(at)).collect()
    }

    /// Puts messages that were held back into the bag.
    pub fn release(&mut self, held: Vec<Event>) {
        held.into_iter().for_each(|event| self.at(self.now, event));
    }

    /// Runs for a span of the world's time.
    pub fn run(&mut self, span: Duration) {
        let until = self.now.plus(span);
        while let Some(entry) = self.queue.first_entry().filter(|e| e.key().0 <= until) {
            let ((at, _), event) = entry.remove_entry();
            self.now = self.now.max(at);
            match event {
                Event::Start { member } => self.start(&member),
                Event::Tick { member, process } => {
                    let Some(node) = self.nodes.get_mut(&member).filter(|n| n.process == process) else { continue };
                    node.ticks_at = None;
                    self.call(&member, |core, env| core.handle_tick(env));
                }
                Event::Deliver { from, to, message } => {
                    self.call(&to, |core, env| core.handle_message(env, &from, *message));
                }
            }
        }
        self.now = until;
    }

    fn call(&mut self, member: &MemberId, f: impl FnOnce(&mut Ledger, &mut Env)) {
        let Some(node) = self.nodes.get_mut(member) else { return };
        let Some(core) = node.core.as_mut() else { return };
        f(core, &mut Env { now: self.now, rng: &mut node.rng });
        self.carry_out(member);
    }

    /// Hands a command to a member.
    pub fn submit(&mut self, member: &MemberId, command: Command) {
        self.call(member, |core, env| core.submit(env, command));
    }

    fn op(&mut self, member: &MemberId, key: &RecordKey, value: Option<String>) -> OpId {
        self.next_op += 1;
        let floor = self.floors.get(key).copied().unwrap_or(0);
        let process = self.nodes[member].process;
        let op = Op { member: member.clone(), process, key: key.clone(), value, floor };
        self.ops.insert(self.next_op, op);
        OpId(self.next_op)
    }

    /// Asks for a change, with a value that nothing else has unless it is given.
    pub fn change(
        &mut self,
        member: &MemberId,
        key: &RecordKey,
        expected: u64,
        value: Option<String>,
        quiet: bool,
    ) -> u64 {
        let value = value.unwrap_or_else(|| format!("\"{member} {}\"", self.next_op + 1));
        let op = self.op(member, key, Some(value.clone()));
        let deadline = self.now.plus(Duration::from_secs(2));
        let change = Change { op, key: key.clone(), expected, value: value.into(), quiet, deadline };
        self.submit(member, Command::Change(vec![change]));
        op.0
    }

    /// Asks for the first values of several keys at once.
    pub fn batch(&mut self, member: &MemberId, keys: impl Iterator<Item = RecordKey>) -> Vec<u64> {
        let deadline = self.now.plus(Duration::from_secs(2));
        let mut changes = Vec::new();
        for key in keys {
            let value = format!("\"{member} {}\"", self.next_op + 1);
            let op = self.op(member, &key, Some(value.clone()));
            changes.push(Change { op, key, expected: 0, value: value.into(), quiet: false, deadline });
        }
        let ops = changes.iter().map(|c| c.op.0).collect();
        self.submit(member, Command::Change(changes));
        ops
    }

    pub fn read(&mut self, member: &MemberId, key: &RecordKey) -> u64 {
        let op = self.op(member, key, None);
        let deadline = self.now.plus(Duration::from_secs(2));
        self.submit(member, Command::Read(vec![Read { op, key: key.clone(), deadline }]));
        op.0
    }

    fn answered(&mut self, number: u64, answer: Answer) {
        let seed = self.seed;
        let Some(op) = self.ops.remove(&number) else { panic!("seed {seed}: {number} answered twice") };
        self.answers.insert(number, answer.clone());
        let told = |current: &Option<Versioned>| {
            let version = current.as_ref().map_or(0, |c| c.version);
            assert!(version >= op.floor, "seed {seed}: {} told {version} after {}", op.key, op.floor);
            version
        };
        let mesh = self.nodes[&op.member].core.as_ref().and_then(Ledger::mesh);
        let history = mesh.and_then(|m| self.history.get_mut(&m));
        let version = match &answer {
            Answer::Changed { version } => {
                assert!(*version > op.floor, "seed {seed}: {} changed to {version} after {}", op.key, op.floor);
                let history = history.expect("a change is made in a mesh");
                history.changed(&op.key, *version).unwrap_or_else(|b| panic!("seed {seed}: {b}"));
                let chosen = history.chosen(&op.key, *version).map(|c| c.value.to_string());
                assert_eq!(chosen, op.value, "seed {seed}: {} {version} is another value", op.key);
                *version
            }
            Answer::Conflict { current, maybe_own } => {
                if !maybe_own {
                    self.never.push((mesh, op.key.clone(), op.value.clone().unwrap()));
                }
                if let (Some(current), Some(history)) = (current, history) {
                    history.told_as_chosen(&op.key, current).unwrap_or_else(|b| panic!("seed {seed}: {b}"));
                }
                told(current)
            }
            Answer::Read { current } => {
                if let (Some(current), Some(history)) = (current, history) {
                    history.told_as_chosen(&op.key, current).unwrap_or_else(|b| panic!("seed {seed}: {b}"));
                }
                told(current)
            }
            Answer::NoQuorum | Answer::Refused { .. } => {
                if let Some(value) = op.value {
                    self.never.push((mesh, op.key.clone(), value));
                }
                0
            }
            Answer::Unknown => 0,
        };
        let name = match answer {
            Answer::Changed { .. } => "changed",
            Answer::Conflict { .. } => "conflict",
            Answer::Read { .. } => "read",
            Answer::NoQuorum => "no quorum",
            Answer::Unknown => "unknown",
            Answer::Refused { .. } => "refused",
        };
        let floor = self.floors.entry(op.key).or_insert(0);
        *floor = (*floor).max(version);
        self.count(name);
    }

    /// What was told not to be done must not have been.
    pub fn check_never(&self) {
        for (mesh, key, value) in &self.never {
            let chosen = mesh.and_then(|m| self.history.get(&m)).is_some_and(|h| h.has_chosen(key, value));
            assert!(!chosen, "seed {}: {key} {value} was told not to be done", self.seed);
        }
    }

    /// All members that run, and their ledgers.
    pub fn running(&self) -> impl Iterator<Item = (&MemberId, &Ledger)> {
        self.nodes.iter().filter_map(|(m, n)| Some((m, n.core.as_ref()?)))
    }

    /// The newest mesh record that anybody has.
    pub fn record(&self) -> Option<(u64, MeshRecord)> {
        let copies = self.running().filter_map(|(_, l)| l.copy(&RecordKey::mesh()));
        let newest = copies.max_by_key(|c| c.version)?;
        Some((newest.version, MeshRecord::from_json(&newest.value).unwrap()))
    }

    /// A person changes the members of the mesh through `by`.
    pub fn edit_members(&mut self, by: &MemberId, edit: impl FnOnce(&mut Vec<MeshMember>)) -> Option<u64> {
        let copy = self.nodes.get(by)?.core.as_ref()?.copy(&RecordKey::mesh())?;
        let (version, mut record) = (copy.version, MeshRecord::from_json(&copy.value).ok()?);
        edit(&mut record.members);
        // A value that nobody else writes.
        record.members.first_mut()?.address = format!("h{}", self.next_op);
        Some(self.change(by, &RecordKey::mesh(), version, Some(record.to_json()), false))
    }

    /// The entry of a member as it runs.
    pub fn entry(&self, member: &MemberId) -> MeshMember {
        let i = member.as_str()[1..].parse().unwrap();
        MeshMember {
            id: member.clone(),
            group: group(i),
            address: format!("h{i}"),
            store: self.nodes[member].disk.store,
            state: MemberState::Active,
            witness: false,
        }
    }

    /// The mesh record that was chosen last, whoever knows it.
    pub fn truth(&self) -> Option<MeshRecord> {
        let history = self.history.get(self.joined.first()?)?;
        let key = RecordKey::mesh();
        MeshRecord::from_json(&history.chosen(&key, history.newest(&key))?.value).ok()
    }

    /// The voters of a list whose disks are as they were.
    pub fn whole(&self, list: &VoterList) -> usize {
        let as_is = |v: &&Voter| self.nodes.get(&v.member).is_some_and(|n| n.disk.store == v.store);
        list.voters.iter().filter(as_is).count()
    }

    /// Whether the mesh record names one settled list of voters whose disks are as they were.
    pub fn settled(&self) -> bool {
        let settled =
            |r: MeshRecord| r.voters_state == VotersState::Settled && self.whole(&r.voters) == r.voters.voters.len();
        self.truth().is_some_and(settled)
    }
}
