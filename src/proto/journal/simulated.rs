//! A small world of replicas for tests: one seed decides everything.
//!
//! Members with several shards each, one record for all of them that is changed by compare and set, clients that send until
//! they are told. Messages come late, twice, in any order, one way only, or never. Processes end between any two effects,
//! with their stores done or not; they stop for a while, write slowly, and lose their stores. Every entry, reign, commit and
//! answer is held against the named invariants. Rule: nothing here helps a replica; it only sees what a driver sees.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::effect::{Alive, Answer, Config, Effect, OpId, Rows, Sight, Stored};
use super::election;
use super::entry::{Body, Entry, Kind, Write};
use super::invariant::{Broken, History};
use super::log::{Bounds, StoredLog};
use super::message::Message;
use super::record::{self, Change, Why};
use super::replica::Replica;
use crate::proto::env::{Env, Instant};
use crate::types::{
    Epoch, Holder, MemberId, Position, ReplicaId, ReplicaState, ShardCopy, ShardState, StoreId, TaskPart, TaskUid,
};

/// How unkind the world is, in thousandths.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    pub lost: u32,
    pub twice: u32,
    pub late: u32,
    /// Of a process, in each of its steps.
    pub crash: u32,
    /// Of a member that takes another for gone though it is not, at each look.
    pub suspect: u32,
}

#[derive(Debug, Clone)]
enum Event {
    Deliver { from: MemberId, to: MemberId, shard: usize, message: Box<Message> },
    Write { to: MemberId, op: OpId, shard: usize, write: Write },
    Answer { op: OpId, answer: Answer },
    Stored { member: MemberId, process: u64 },
    Tick { member: MemberId, process: u64, shard: usize },
    Look { member: MemberId, process: u64 },
    Start { member: MemberId },
    Record { to: MemberId, shards: Vec<ShardState> },
    Ledger { changes: Vec<(usize, Change)> },
    Apply { member: MemberId, process: u64, shard: usize },
    Load { member: MemberId, process: u64, shard: usize, peer: MemberId, from: u64, entries: usize },
    Find { member: MemberId, process: u64, shard: usize, epoch: Epoch, part: TaskPart },
    Snapshot { member: MemberId, process: u64, shard: usize },
    Client { client: usize },
}

/// What one replica has made durable, and what its node has applied.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    pub entries: BTreeMap<u64, Entry>,
    parts: BTreeMap<TaskPart, u64>,
    floor: Position,
    epoch: Epoch,
    commit: u64,
    rebuild: bool,
    pub applied: Vec<Position>,
}

impl Disk {
    fn last(&self) -> u64 {
        self.entries.keys().next_back().copied().unwrap_or(self.floor.seq)
    }

    fn has(&self, seq: u64) -> Option<Position> {
        self.entries.get(&seq).map(|e| e.at)
    }

    fn applied_to(&self) -> u64 {
        self.applied.last().map_or(0, |at| at.seq)
    }

    fn apply(&mut self, rows: Rows, copy: Option<Copied>) {
        if let Some(at) = rows.begin_at {
            let (applied, parts) = copy.expect("a snapshot was taken");
            *self = Self { floor: at, commit: at.seq, applied, parts, ..Self::default() };
        }
        self.epoch = self.epoch.max(rows.epoch);
        if let Some(seq) = rows.drop_from {
            assert!(seq > self.applied_to(), "what is applied is dropped");
            self.entries.split_off(&seq);
            self.parts.retain(|_, at| *at < seq);
        }
        for entry in rows.entries {
            assert_eq!(entry.at.seq, self.last() + 1, "a gap in the store");
            if let Some(part) = entry.part {
                self.parts.insert(part, entry.at.seq);
            }
            self.entries.insert(entry.at.seq, entry);
        }
        self.commit = self.commit.max(rows.commit);
        if let Some(floor) = rows.floor {
            self.entries = self.entries.split_off(&(floor.seq + 1));
            self.floor = floor;
        }
        self.rebuild = rows.rebuild;
    }

    fn stored(&self, tail: usize) -> Stored {
        let mut marks: Vec<Position> = Vec::new();
        for entry in self.entries.values() {
            if marks.last().is_none_or(|mark| mark.epoch < entry.at.epoch) {
                marks.push(entry.at);
            }
        }
        let tail: Vec<Entry> = self.entries.values().rev().take(tail).rev().cloned().collect();
        let first = tail.first().map_or(u64::MAX, |e| e.at.seq);
        let older = self.parts.iter().filter(|(_, seq)| **seq < first).map(|(part, _)| part.task).max();
        let commit = self.commit.max(self.applied_to());
        let log = StoredLog { floor: self.floor, marks, last: self.last(), commit, tail, older };
        Stored { epoch: self.epoch, log, applied: self.applied_to(), rebuild: self.rebuild }
    }
}

/// What a node has applied and which parts that was: a snapshot.
type Copied = (Vec<Position>, BTreeMap<TaskPart, u64>);

#[derive(Debug)]
struct Process {
    cores: Vec<Option<Replica>>,
    sight: Sight,
    missed: BTreeMap<MemberId, u32>,
    stores: VecDeque<(usize, u64, Rows, Option<Copied>)>,
    storing: bool,
    ticks_at: Vec<Option<Instant>>,
    /// Up to here what is committed was looked at.
    committed: Vec<u64>,
    applying: Vec<bool>,
    copied: Option<Copied>,
    told_at: Option<Instant>,
}

#[derive(Debug)]
pub struct Node {
    store: StoreId,
    pub disks: Vec<Disk>,
    /// As stored; they never go back.
    records: Vec<ShardState>,
    process: Option<Process>,
    /// Counts the processes.
    start: u64,
    pub paused_until: Instant,
    pub slow: bool,
    rng: fastrand::Rng,
}

#[derive(Debug)]
struct Pending {
    shard: usize,
    write: Write,
}

#[derive(Debug, Default)]
struct Client {
    pending: Option<Pending>,
    targets: BTreeMap<usize, MemberId>,
}

#[derive(Debug)]
pub struct World {
    pub seed: u64,
    pub now: Instant,
    pub rng: fastrand::Rng,
    pub nodes: BTreeMap<MemberId, Node>,
    pub faults: Faults,
    pub cut: BTreeSet<(MemberId, MemberId)>,
    /// Members without a way to a majority of the ledger.
    pub alone: BTreeSet<MemberId>,
    pub record: Vec<ShardState>,
    pub histories: Vec<History>,
    queue: BTreeMap<(Instant, u64), Event>,
    events: u64,
    clients: Vec<Client>,
    /// Clients have more to write.
    pub writing: bool,
    ops: BTreeMap<OpId, (usize, TaskPart)>,
    next_op: u64,
    next_task: u32,
    pub counts: BTreeMap<&'static str, u64>,
    /// Stores so far.
    stores: u8,
}

pub fn id(i: usize) -> MemberId {
    MemberId::new(format!("m{i}")).unwrap()
}

pub fn config() -> Config {
    Config {
        min_in_sync: None,
        in_sync_lag: Duration::from_millis(600),
        suspect_lag: Duration::from_millis(100),
        quiet_time: Duration::from_millis(800),
        resend: Duration::from_millis(60),
        ask_again: Duration::from_millis(300),
        tell_commit: Duration::from_millis(5),
        memory: Bounds { entries: 8, bytes: 4 << 10 },
        window: Bounds { entries: 24, bytes: 4 << 10 },
    }
}

impl World {
    /// `members` of which each shard is on `copies`, all running; `clients` begin to write.
    pub fn new(seed: u64, members: usize, shards: usize, copies: usize, clients: usize) -> Self {
        let mut world = Self {
            seed,
            now: Instant(1_000_000),
            rng: fastrand::Rng::with_seed(seed),
            nodes: BTreeMap::new(),
            faults: Faults::default(),
            cut: BTreeSet::new(),
            alone: BTreeSet::new(),
            record: Vec::new(),
            histories: vec![History::default(); shards],
            queue: BTreeMap::new(),
            events: 0,
            clients: (0..clients).map(|_| Client::default()).collect(),
            writing: true,
            ops: BTreeMap::new(),
            next_op: 0,
            next_task: 0,
            counts: BTreeMap::new(),
            stores: 0,
        };
        let stores: Vec<StoreId> = (0..members).map(|_| world.new_store()).collect();
        for shard in 0..shards {
            let on = (0..copies).map(|c| (shard + c) % members);
            let ids: Vec<_> = on.map(|i| ReplicaId { member: id(i), store: stores[i] }).collect();
            let copy = |id: &ReplicaId| ShardCopy { id: id.clone(), state: ReplicaState::Replica };
            let after = ShardState {
                replicas: ids.iter().map(copy).collect(),
                in_sync: ids,
                primary: None,
                epoch: Epoch::ZERO,
                set: 1,
            };
            let by = Holder { member: id(0), start: 1 };
            let change = Change { from: (Epoch::ZERO, 0), why: Why::Create, by, after };
            assert_eq!(record::check(None, &change, 1), Ok(()));
            world.record.push(change.after);
        }
        for (i, store) in stores.into_iter().enumerate() {
            let node = Node {
                store,
                disks: vec![Disk::default(); shards],
                records: world.record.clone(),
                process: None,
                start: 0,
                paused_until: Instant(0),
                slow: false,
                rng: world.rng.fork(),
            };
            world.nodes.insert(id(i), node);
            world.start(&id(i));
        }
        (0..clients).for_each(|client| world.at_ms(1, 20, Event::Client { client }));
        world
    }

    fn new_store(&mut self) -> StoreId {
        self.stores += 1;
        StoreId([self.stores; 16])
    }

    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn fail(&self, what: &str) -> ! {
        let s = self.seed;
        panic!("seed {s}: {what}\nagain: MIROIR_SEEDS={s}..{} cargo test --lib proto::journal::tests::in_many", s + 1)
    }

    fn hold(&self, checked: Result<(), Broken>) {
        if let Err(broken) = checked {
            self.fail(&broken.to_string());
        }
    }

    fn at(&mut self, at: Instant, event: Event) {
        self.events += 1;
        self.queue.insert((at, self.events), event);
    }

    fn at_ms(&mut self, from: u64, to: u64, event: Event) {
        let at = self.now.plus(Duration::from_micros(self.rng.u64(from * 1_000..=to * 1_000)));
        self.at(at, event);
    }

    fn chance(&mut self, thousandths: u32) -> bool {
        thousandths > 0 && self.rng.u32(0..1_000) < thousandths
    }

    /// A new process on what is durable.
    pub fn start(&mut self, member: &MemberId) {
        let shards = self.record.len();
        let tail = self.rng.usize(0..10);
        let node = self.nodes.get_mut(member).unwrap();
        if node.process.is_some() {
            return;
        }
        node.start += 1;
        let me = ReplicaId { member: member.clone(), store: node.store };
        let sight: Sight = [(member.clone(), Alive { store: node.store, start: node.start })].into();
        let mut env = Env { now: self.now, rng: &mut node.rng };
        let mut cores = Vec::new();
        for (disk, record) in node.disks.iter().zip(&node.records) {
            let holds = record.copy(member).is_some();
            let stored = disk.stored(tail);
            let (start, record) = (node.start, record.clone());
            cores.push(holds.then(|| {
                Replica::recover(&mut env, config(), (me.clone(), start), stored, Some(record), sight.clone(), None)
            }));
        }
        node.process = Some(Process {
            cores,
            sight,
            missed: BTreeMap::new(),
            stores: VecDeque::new(),
            storing: false,
            ticks_at: vec![None; shards],
            committed: node.disks.iter().map(|d| d.commit.max(d.applied_to())).collect(),
            applying: vec![false; shards],
            copied: None,
            told_at: None,
        });
        let process = node.start;
        self.at_ms(0, 60, Event::Look { member: member.clone(), process });
        for shard in 0..shards {
            self.carry_out(member, shard);
            self.apply_later(member, shard);
        }
    }

    /// The process ends here and now; some of its stores were done, and nobody was told.
    pub fn crash(&mut self, member: &MemberId) {
        let node = self.nodes.get_mut(member).unwrap();
        let Some(mut process) = node.process.take() else { return };
        let done = self.rng.usize(0..=process.stores.len());
        for (shard, _, rows, copy) in process.stores.drain(..done) {
            node.disks[shard].apply(rows, copy);
        }
        self.count("crash");
    }

    pub fn crash_and_restart(&mut self, member: &MemberId) {
        self.crash(member);
        self.at_ms(5, 900, Event::Start { member: member.clone() });
    }

    /// The member comes back with an empty store.
    pub fn lose_store(&mut self, member: &MemberId) {
        self.crash(member);
        self.count("store lost");
        let store = self.new_store();
        let node = self.nodes.get_mut(member).unwrap();
        node.store = store;
        node.disks.iter_mut().for_each(|d| *d = Disk::default());
        self.at_ms(5, 900, Event::Start { member: member.clone() });
    }

    pub fn is_up(&self, member: &MemberId) -> bool {
        self.nodes[member].process.is_some() && self.nodes[member].paused_until <= self.now
    }

    fn reach(&self, a: &MemberId, b: &MemberId) -> bool {
        let cut = |a: &MemberId, b: &MemberId| self.cut.contains(&(a.clone(), b.clone()));
        self.is_up(a) && self.is_up(b) && !cut(a, b) && !cut(b, a)
    }

    /// The driver's step after every call of a core.
    fn carry_out(&mut self, member: &MemberId, shard: usize) {
        let mut effects = Vec::new();
        let Some(process) = self.nodes.get_mut(member).and_then(|n| n.process.as_mut()) else { return };
        let Some(core) = process.cores[shard].as_mut() else { return };
        while let Some(effect) = core.poll_effect() {
            effects.push(effect);
        }
        let (epoch, wake) = (core.epoch(), core.next_wake());
        let crash = self.chance(self.faults.crash);
        let some = if crash { self.rng.usize(0..=effects.len()) } else { effects.len() };
        for effect in effects.into_iter().take(some) {
            self.carry_out_one(member, shard, epoch, effect);
        }
        if crash {
            return self.crash_and_restart(member);
        }
        let now = self.now;
        let node = self.nodes.get_mut(member).unwrap();
        let start = node.start;
        let Some(process) = node.process.as_mut() else { return };
        let slot = &mut process.ticks_at[shard];
        if let Some(at) = wake.map(|at| at.max(now))
            && slot.is_none_or(|t| at < t || t < now)
        {
            *slot = Some(at);
            self.at(at, Event::Tick { member: member.clone(), process: start, shard });
        }
    }

    fn carry_out_one(&mut self, member: &MemberId, shard: usize, epoch: Epoch, effect: Effect) {
        let process = self.nodes[member].start;
        match effect {
            Effect::Store { token, rows } => {
                for entry in &rows.entries {
                    let checked = self.histories[shard].appended(entry);
                    self.hold(checked);
                }
                let running = self.nodes.get_mut(member).and_then(|n| n.process.as_mut()).unwrap();
                let copy = rows.begin_at.and_then(|_| running.copied.take());
                running.stores.push_back((shard, token, rows, copy));
                self.store_later(member);
            }
            Effect::Send { to, message } => {
                message.check().expect("a replica keeps the bounds that it asks of others");
                self.send(member, to, shard, message);
            }
            Effect::Answer { op, answer } => self.answered(shard, epoch, op, answer),
            Effect::Committed { to } => self.committed(member, shard, epoch, to),
            Effect::Reigns { epoch } => {
                self.count("reign");
                let start = self.nodes[member].start;
                let checked = self.histories[shard].reigns(epoch, &Holder { member: member.clone(), start });
                self.hold(checked);
                let core = self.core(member, shard).unwrap();
                let checked =
                    self.histories[shard].begins(epoch, core.log().floor().seq, |seq| core.log().position(seq));
                self.hold(checked);
            }
            Effect::Deposed { .. } => self.count("deposed"),
            Effect::Ask(change) => {
                self.count("asked");
                let state = self.nodes[member].records[shard].clone();
                let instead = election::instead(&state, &change, &self.all_reach(), &self.all_alive(), None);
                if instead.is_some() {
                    self.count("cut primary replaced");
                }
                self.ask(member, vec![(shard, instead.unwrap_or(change))]);
            }
            Effect::Load { member: peer, from, entries, .. } => {
                self.count("load");
                let member = member.clone();
                self.at_ms(1, 8, Event::Load { member, process, shard, peer, from, entries });
            }
            Effect::Find { epoch, part } => {
                self.count("find");
                self.at_ms(1, 8, Event::Find { member: member.clone(), process, shard, epoch, part });
            }
            Effect::NeedsSnapshot { .. } => self.count("needs snapshot"),
            Effect::Rebuild => {
                self.count("rebuild");
                self.at_ms(20, 200, Event::Snapshot { member: member.clone(), process, shard });
            }
            Effect::Broken { member: by, what } => self.fail(&format!("{member} shard {shard}: {by} broke: {what}")),
        }
    }

    fn core(&self, member: &MemberId, shard: usize) -> Option<&Replica> {
        self.nodes.get(member)?.process.as_ref()?.cores[shard].as_ref()
    }

    fn all_reach(&self) -> election::Reach {
        let of = |a: &MemberId| self.nodes.keys().filter(|b| self.reach(a, b)).cloned().collect();
        self.nodes.keys().map(|a| (a.clone(), of(a))).collect()
    }

    fn all_alive(&self) -> Sight {
        let up = self.nodes.iter().filter(|(m, _)| self.is_up(m));
        up.map(|(m, n)| (m.clone(), Alive { store: n.store, start: n.start })).collect()
    }

    fn store_later(&mut self, member: &MemberId) {
        let node = self.nodes.get_mut(member).unwrap();
        let (slow, start) = (node.slow, node.start);
        let Some(process) = node.process.as_mut() else { return };
        if !process.storing && !process.stores.is_empty() {
            process.storing = true;
            let (from, to) = if slow { (400, 1_500) } else { (1, 6) };
            self.at_ms(from, to, Event::Stored { member: member.clone(), process: start });
        }
    }

    fn send(&mut self, from: &MemberId, to: MemberId, shard: usize, message: Message) {
        self.count("message");
        if self.cut.contains(&(from.clone(), to.clone())) || self.chance(self.faults.lost) {
            return;
        }
        let times = if self.chance(self.faults.twice) { 2 } else { 1 };
        for _ in 0..times {
            let (least, most) = if self.chance(self.faults.late) { (20, 2_000) } else { (1, 6) };
            let (from, to, message) = (from.clone(), to.clone(), Box::new(message.clone()));
            self.at_ms(least, most, Event::Deliver { from, to, shard, message });
        }
    }

    fn ask(&mut self, member: &MemberId, changes: Vec<(usize, Change)>) {
        if self.alone.contains(member) || self.chance(self.faults.lost) {
            return;
        }
        let times = if self.chance(self.faults.twice) { 2 } else { 1 };
        for _ in 0..times {
            let (least, most) = if self.chance(self.faults.late) { (20, 1_500) } else { (3, 20) };
            self.at_ms(least, most, Event::Ledger { changes: changes.clone() });
        }
    }

    /// The record takes changes, each if it is right, and tells everybody.
    fn change(&mut self, changes: Vec<(usize, Change)>) {
        for (shard, change) in changes {
            let min = record::default_min_in_sync(change.after.copies());
            if record::check(Some(&self.record[shard]), &change, min).is_err() {
                self.count("refused");
                continue;
            }
            if change.why == Why::AcceptLoss {
                self.count("loss accepted");
                let member = &change.after.in_sync[0].member;
                let disk = &self.nodes[member].disks[shard];
                self.histories[shard].loss_accepted(change.after.epoch, disk.floor.seq, |seq| disk.has(seq));
            }
            let grows = change.after.in_sync.len() > self.record[shard].in_sync.len();
            self.count(if grows { "grown" } else { "changed" });
            self.record[shard] = change.after;
        }
        let members: Vec<MemberId> = self.nodes.keys().cloned().collect();
        for to in members {
            if !self.alone.contains(&to) && !self.chance(self.faults.lost) {
                let most = if self.chance(self.faults.late) { 1_500 } else { 10 };
                let shards = self.record.clone();
                self.at_ms(1, most, Event::Record { to, shards });
            }
        }
    }

    /// Somebody gives up what only others have.
    pub fn accept_loss(&mut self, shard: usize, member: &MemberId) {
        let node = &self.nodes[member];
        let to = Holder { member: member.clone(), start: node.start };
        let here = self.record[shard].copy(member).is_some_and(|c| c.id.store == node.store);
        if here && let Some(change) = record::accept_loss(&self.record[shard], &to, &to) {
            self.change(vec![(shard, change)]);
        }
    }

    fn committed(&mut self, member: &MemberId, shard: usize, epoch: Epoch, to: u64) {
        let node = self.nodes.get_mut(member).unwrap();
        let Some(process) = node.process.as_mut() else { return };
        let from = process.committed[shard].min(to);
        process.committed[shard] = process.committed[shard].max(to);
        let disk = &node.disks[shard];
        let entries: Vec<_> =
            disk.entries.range(from..=to).filter(|(seq, _)| **seq > from).map(|(_, e)| e.at).collect();
        if disk.last() < to {
            self.fail(&format!("{member} shard {shard}: {to} is committed here and not durable"));
        }
        for at in entries {
            let checked = self.histories[shard].committed(epoch, at);
            self.hold(checked);
        }
        self.apply_later(member, shard);
    }

    fn apply_later(&mut self, member: &MemberId, shard: usize) {
        let node = self.nodes.get_mut(member).unwrap();
        let start = node.start;
        let Some(process) = node.process.as_mut() else { return };
        if !process.applying[shard] && node.disks[shard].applied_to() < process.committed[shard] {
            process.applying[shard] = true;
            self.at_ms(1, 40, Event::Apply { member: member.clone(), process: start, shard });
        }
    }

    fn apply(&mut self, member: &MemberId, shard: usize) {
        let node = self.nodes.get_mut(member).unwrap();
        let Some(process) = node.process.as_mut() else { return };
        process.applying[shard] = false;
        let Some(core) = process.cores[shard].as_mut() else { return };
        let disk = &mut node.disks[shard];
        if disk.rebuild
            || process.stores.iter().any(|(s, _, rows, _)| *s == shard && (rows.rebuild || rows.begin_at.is_some()))
        {
            return;
        }
        let next = (disk.applied_to() + 1).min(process.committed[shard] + 1);
        if next > process.committed[shard] {
            return;
        }
        let news: Vec<Position> =
            disk.entries.range(next..=process.committed[shard]).take(3).map(|(_, e)| e.at).collect();
        disk.applied.extend(&news);
        core.handle_applied(disk.applied_to());
        for at in news {
            let history = &self.histories[shard];
            if at.epoch >= history.loss() && history.all_committed().get(&at.seq) != Some(&at) {
                self.fail(&format!("{member} shard {shard}: {at} is applied and not committed"));
            }
        }
        self.apply_later(member, shard);
    }

    fn answered(&mut self, shard: usize, epoch: Epoch, op: OpId, answer: Answer) {
        let Some((_, part)) = self.ops.get(&op).copied() else { return };
        let name = match &answer {
            Answer::Committed { .. } => "committed",
            Answer::NotPrimary(_) => "not primary",
            Answer::NoQuorum => "no quorum",
            Answer::Refused => self.fail("a right write was refused"),
            Answer::Busy => "busy",
            Answer::Unknown(_) => "unknown",
        };
        self.count(name);
        if let Answer::Committed { seq, .. } = answer {
            let checked = self.histories[shard].acknowledged(epoch, part, seq);
            self.hold(checked);
            self.check_durable(shard, epoch, seq);
        }
        if !self.chance(self.faults.lost) {
            self.at_ms(1, 5, Event::Answer { op, answer });
        }
    }

    /// What is acknowledged is durable wherever a primary may come from.
    fn check_durable(&self, shard: usize, epoch: Epoch, seq: u64) {
        let history = &self.histories[shard];
        if epoch < history.loss() {
            return;
        }
        for id in &self.record[shard].in_sync {
            let node = &self.nodes[&id.member];
            let disk = &node.disks[shard];
            let there = disk.floor.seq >= seq || disk.has(seq) == history.all_committed().get(&seq).copied();
            if node.store == id.store && !there {
                self.fail(&format!("shard {shard}: {seq} was acknowledged and {id} does not have it"));
            }
        }
    }

    /// Runs for a span of the world's time.
    pub fn run(&mut self, span: Duration) {
        let until = self.now.plus(span);
        while let Some(entry) = self.queue.first_entry().filter(|e| e.key().0 <= until) {
            let ((at, _), event) = entry.remove_entry();
            self.now = self.now.max(at);
            self.happen(event);
        }
        self.now = until;
    }

    fn happen(&mut self, event: Event) {
        let (member, process) = match &event {
            Event::Deliver { to, .. } | Event::Write { to, .. } | Event::Record { to, .. } => (Some(to), None),
            Event::Stored { member, process }
            | Event::Look { member, process }
            | Event::Tick { member, process, .. }
            | Event::Apply { member, process, .. }
            | Event::Load { member, process, .. }
            | Event::Find { member, process, .. }
            | Event::Snapshot { member, process, .. } => (Some(member), Some(*process)),
            Event::Start { .. } | Event::Answer { .. } | Event::Ledger { .. } | Event::Client { .. } => (None, None),
        };
        if let Some(member) = member {
            let node = &self.nodes[member];
            if node.paused_until > self.now {
                let at = node.paused_until;
                return self.at(at, event);
            }
            if node.process.is_none() || process.is_some_and(|p| p != node.start) {
                return;
            }
        }
        match event {
            Event::Deliver { from, to, shard, message } => {
                self.call(&to, shard, |core, env| core.handle_message(env, &from, *message));
            }
            Event::Write { to, op, shard, write } => {
                self.call(&to, shard, |core, env| core.handle_write(env, op, write));
            }
            Event::Answer { op, answer } => self.told(op, answer),
            Event::Stored { member, .. } => self.stored(&member),
            Event::Tick { member, shard, .. } => {
                if let Some(process) = self.nodes.get_mut(&member).and_then(|n| n.process.as_mut()) {
                    process.ticks_at[shard] = None;
                }
                self.call(&member, shard, Replica::handle_tick);
            }
            Event::Look { member, .. } => self.look(&member),
            Event::Start { member } => self.start(&member),
            Event::Record { to, shards } => self.learn(&to, shards),
            Event::Ledger { changes } => self.change(changes),
            Event::Apply { member, shard, .. } => self.apply(&member, shard),
            Event::Load { member, shard, peer, from, entries, .. } => {
                let disk = &self.nodes[&member].disks[shard];
                let loaded = disk.entries.range(from..).take(entries).map(|(_, e)| e.clone()).collect();
                self.call(&member, shard, |core, env| core.handle_loaded(env, &peer, loaded));
            }
            Event::Find { member, shard, epoch, part, .. } => {
                let at = self.nodes[&member].disks[shard].parts.get(&part).copied();
                self.call(&member, shard, |core, env| core.handle_found(env, epoch, part, at));
            }
            Event::Snapshot { member, shard, .. } => self.snapshot(&member, shard),
            Event::Client { client } => self.client(client),
        }
    }

    fn call(&mut self, member: &MemberId, shard: usize, f: impl FnOnce(&mut Replica, &mut Env)) {
        let node = self.nodes.get_mut(member).unwrap();
        let Some(core) = node.process.as_mut().and_then(|p| p.cores[shard].as_mut()) else { return };
        f(core, &mut Env { now: self.now, rng: &mut node.rng });
        self.carry_out(member, shard);
    }

    /// A transaction is durable: as much as waited, or a part of it.
    fn stored(&mut self, member: &MemberId) {
        let some = self.rng.usize(1..20);
        let node = self.nodes.get_mut(member).unwrap();
        let Some(process) = node.process.as_mut() else { return };
        let mut tokens = BTreeMap::new();
        let many = some.min(process.stores.len());
        for (shard, token, rows, copy) in process.stores.drain(..many) {
            node.disks[shard].apply(rows, copy);
            tokens.insert(shard, token);
        }
        process.storing = false;
        let start = node.start;
        self.store_later(member);
        for (shard, token) in tokens {
            if self.nodes[member].start == start {
                self.call(member, shard, |core, env| core.handle_stored(env, token));
            }
        }
    }

    fn learn(&mut self, member: &MemberId, shards: Vec<ShardState>) {
        let node = self.nodes.get_mut(member).unwrap();
        let start = node.start;
        for (shard, state) in shards.into_iter().enumerate() {
            if self.nodes[member].records[shard].set < state.set && self.nodes[member].start == start {
                self.nodes.get_mut(member).unwrap().records[shard] = state.clone();
                self.call(member, shard, |core, env| core.handle_record(env, state));
            }
        }
    }

    /// Who is there, what the record says, whether somebody must be elected.
    fn look(&mut self, member: &MemberId) {
        let others: Vec<MemberId> = self.nodes.keys().filter(|m| *m != member).cloned().collect();
        let alive = self.all_alive();
        let seen: Vec<bool> = others.iter().map(|m| self.reach(member, m)).collect();
        let forgets: Vec<bool> = others.iter().map(|_| self.chance(self.faults.suspect)).collect();
        let process = self.nodes.get_mut(member).and_then(|n| n.process.as_mut()).unwrap();
        let before = process.sight.clone();
        for ((other, seen), forgets) in others.iter().zip(seen).zip(forgets) {
            let missed = process.missed.entry(other.clone()).or_default();
            *missed = if forgets {
                3
            } else if seen {
                0
            } else {
                *missed + 1
            };
            if *missed >= 3 {
                process.sight.remove(other);
            } else if seen && let Some(is) = alive.get(other) {
                process.sight.insert(other.clone(), *is);
            }
        }
        let (sight, changed) = (process.sight.clone(), process.sight != before);
        let start = self.nodes[member].start;
        for shard in 0..self.record.len() {
            if changed && self.nodes[member].start == start {
                let sight = sight.clone();
                self.call(member, shard, |core, env| core.handle_sight(env, sight));
            }
        }
        if self.nodes[member].process.is_none() || self.nodes[member].start != start {
            return;
        }
        self.elect(member, &sight);
        self.repair(member);
        if !self.alone.contains(member) && self.rng.u32(0..3) == 0 {
            let shards = self.record.clone();
            self.at_ms(1, 20, Event::Record { to: member.clone(), shards });
        }
        let to = self.rng.usize(0..self.record.len());
        if self.rng.u32(0..20) == 0 {
            let keep = self.rng.u64(0..20);
            self.call(member, to, |core, env| {
                let until = core.log().commit().saturating_sub(keep);
                core.handle_trim(env, until);
            });
        }
        self.at_ms(80, 120, Event::Look { member: member.clone(), process: start });
    }

    fn elect(&mut self, member: &MemberId, sight: &Sight) {
        let leads = *member == id(0);
        let now = self.now;
        let node = self.nodes.get_mut(member).unwrap();
        let me = Holder { member: member.clone(), start: node.start };
        let Some(process) = node.process.as_mut() else { return };
        if !node.records.iter().any(|s| election::needs_primary(s, sight)) {
            process.told_at = None;
            return;
        }
        let told = *process.told_at.get_or_insert(now);
        let turn = election::turn(&node.records, &me, sight, leads);
        if turn.is_none_or(|wait| now.since(told) < wait) {
            return;
        }
        process.told_at = None;
        let records = node.records.clone();
        let plan = election::plan(&records, &me, sight, &self.all_reach(), None);
        self.ask(member, plan);
    }

    /// A member with a new store becomes a learner; a learner that is near becomes a replica.
    fn repair(&mut self, member: &MemberId) {
        let node = &self.nodes[member];
        let by = Holder { member: member.clone(), start: node.start };
        let Some(process) = node.process.as_ref() else { return };
        let mut changes = Vec::new();
        for (shard, state) in node.records.iter().enumerate() {
            let mut after = state.clone();
            for copy in &mut after.replicas {
                if copy.id.member == *member && copy.id.store != node.store {
                    copy.id.store = node.store;
                    copy.state = ReplicaState::Learner;
                    after.in_sync.retain(|id| id.member != *member);
                }
            }
            if let Some(core) = process.cores[shard].as_ref().filter(|c| c.is_open()) {
                for (other, stored) in core.stored_by() {
                    let near = stored > 0 && stored + 5 >= core.log().last().seq;
                    let copy = after.replicas.iter_mut().find(|c| c.id.member == other);
                    if let Some(copy) = copy.filter(|c| near && c.state == ReplicaState::Learner) {
                        copy.state = ReplicaState::Replica;
                    }
                }
            }
            if after != *state {
                after.set += 1;
                changes.push((
                    shard,
                    Change { from: (state.epoch, state.set), why: Why::Replicas, by: by.clone(), after },
                ));
            }
        }
        if !changes.is_empty() {
            self.ask(member, changes);
        }
    }

    /// The copy is made anew from the primary's.
    fn snapshot(&mut self, member: &MemberId, shard: usize) {
        let source = self.record[shard].primary.as_ref().map(|p| p.member.clone());
        let source = source.filter(|s| s != member && self.reach(member, s));
        let from = source.and_then(|s| Some((&self.nodes[&s].disks[shard], self.core(&s, shard)?)));
        let process = self.nodes[member].start;
        let mut taken = false;
        if let Some((disk, core)) = from
            && core.epoch() == self.record[shard].epoch
        {
            let seq = disk.applied_to();
            let at = disk.has(seq).unwrap_or(disk.floor);
            let parts: BTreeMap<_, _> = disk.parts.iter().filter(|(_, s)| **s <= seq).map(|(p, s)| (*p, *s)).collect();
            let older = parts.keys().map(|p| p.task).max();
            let copy = (disk.applied.clone(), parts);
            assert_eq!(at.seq, seq, "what is applied is there, or the floor");
            let running = self.nodes.get_mut(member).and_then(|n| n.process.as_mut()).unwrap();
            running.copied = Some(copy);
            running.committed[shard] = running.committed[shard].max(seq);
            self.call(member, shard, |core, env| taken = core.handle_snapshot(env, at, older));
        }
        if !taken && self.nodes[member].start == process {
            self.at_ms(50, 200, Event::Snapshot { member: member.clone(), process, shard });
        }
    }

    /// A client sends its write, again if it must, or has a new one.
    fn client(&mut self, client: usize) {
        if self.clients[client].pending.is_none() {
            if !self.writing {
                return self.at_ms(50, 100, Event::Client { client });
            }
            self.next_task += 1;
            let task = TaskUid(self.next_task);
            let shard = self.rng.usize(0..self.record.len());
            let write = Write {
                part: TaskPart { task, part: 0 },
                kind: Kind::Set { skip_creation: false },
                body: Body(Arc::from(task.0.to_le_bytes())),
            };
            self.clients[client].pending = Some(Pending { shard, write });
        }
        let members: Vec<MemberId> = self.nodes.keys().cloned().collect();
        let any = members[self.rng.usize(0..members.len())].clone();
        let (lost, elsewhere) = (self.chance(self.faults.lost), self.chance(300));
        self.next_op += 1;
        let op = OpId(self.next_op);
        let Some(pending) = &self.clients[client].pending else { return };
        let (shard, write) = (pending.shard, pending.write.clone());
        self.ops.insert(op, (client, write.part));
        let to = self.clients[client].targets.get(&shard).filter(|_| !elsewhere).cloned().unwrap_or(any);
        if !lost {
            let times = if self.chance(self.faults.twice) { 2 } else { 1 };
            for _ in 0..times {
                let most = if self.chance(self.faults.late) { 2_500 } else { 5 };
                self.at_ms(1, most, Event::Write { to: to.clone(), op, shard, write: write.clone() });
            }
        }
        self.at_ms(100, 300, Event::Client { client });
    }

    fn told(&mut self, op: OpId, answer: Answer) {
        let Some((client, part)) = self.ops.get(&op).copied() else { return };
        // A late answer may be to an earlier write of this client.
        let Some(pending) = self.clients[client].pending.as_ref().filter(|p| p.write.part == part) else { return };
        let shard = pending.shard;
        match answer {
            Answer::Committed { .. } => self.clients[client].pending = None,
            Answer::NotPrimary(hint) | Answer::Unknown(hint) => {
                match hint.primary {
                    Some(primary) => self.clients[client].targets.insert(shard, primary.member),
                    None => self.clients[client].targets.remove(&shard),
                };
            }
            Answer::Busy | Answer::NoQuorum | Answer::Refused => {}
        }
    }

    /// Everything is well again, and stays so.
    pub fn heal(&mut self) {
        self.faults = Faults::default();
        self.cut.clear();
        self.alone.clear();
        let members: Vec<MemberId> = self.nodes.keys().cloned().collect();
        for member in &members {
            let node = self.nodes.get_mut(member).unwrap();
            node.slow = false;
            node.paused_until = self.now;
            self.start(member);
        }
    }

    /// A shard all of whose members in sync have lost their stores is an operator's business.
    pub fn operate(&mut self) {
        for shard in 0..self.record.len() {
            let state = self.record[shard].clone();
            if state.in_sync.iter().all(|id| self.nodes[&id.member].store != id.store) {
                let full = state.replicas.iter().filter(|c| c.state != ReplicaState::Learner);
                let there = full.map(|c| &c.id).find(|id| self.nodes[&id.member].store == id.store);
                if let Some(there) = there {
                    self.accept_loss(shard, &there.member);
                } else {
                    self.count("shard gone");
                    self.clients.iter_mut().for_each(|c| c.pending = None);
                }
            }
        }
    }

    pub fn is_idle(&self) -> bool {
        let cores = |n: &Node| n.process.iter().flat_map(|p| p.cores.iter().flatten()).all(Replica::is_idle);
        self.nodes.values().all(cores)
    }

    pub fn primary(&self, shard: usize) -> MemberId {
        self.record[shard].primary.as_ref().unwrap().member.clone()
    }

    pub fn acknowledged(&self) -> usize {
        self.histories.iter().map(History::acknowledgements).sum()
    }

    /// Nobody reaches the member, and it nobody.
    pub fn isolate(&mut self, member: &MemberId) {
        for other in self.nodes.keys().filter(|m| *m != member) {
            self.cut.insert((member.clone(), other.clone()));
            self.cut.insert((other.clone(), member.clone()));
        }
        self.alone.insert(member.clone());
    }

    /// Whether every store of the set is gone, so that nobody can help.
    fn is_gone(&self, shard: usize) -> bool {
        self.record[shard].in_sync.iter().all(|id| self.nodes[&id.member].store != id.store)
    }

    /// What must be so some time after everything is well.
    pub fn check_rest(&self) {
        for (i, client) in self.clients.iter().enumerate() {
            if let Some(p) = client.pending.as_ref().filter(|p| !self.is_gone(p.shard)) {
                let state = &self.record[p.shard];
                let core = state.primary.as_ref().and_then(|primary| self.core(&primary.member, p.shard));
                self.fail(&format!("client {i} waits for {} on shard {}: {state:?}: {core:?}", p.write.part, p.shard));
            }
        }
        for (shard, state) in self.record.iter().enumerate().filter(|(shard, _)| !self.is_gone(*shard)) {
            let history = &self.histories[shard];
            if state.in_sync.len() != state.replicas.len() {
                self.fail(&format!("shard {shard} is not whole: {state:?}"));
            }
            let all: Vec<Position> = history.all_committed().values().copied().collect();
            for copy in &state.replicas {
                let disk = &self.nodes[&copy.id.member].disks[shard];
                let same = disk.applied == all && disk.last() == all.last().map_or(0, |at| at.seq);
                if !same {
                    self.fail(&format!("shard {shard}: {} has applied another journal", copy.id));
                }
            }
        }
    }
}
