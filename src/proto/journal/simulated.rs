//! A small world of replicas for tests: one seed decides everything.
//!
//! Members with several shards each, one record for all of them that is changed by compare and set, clients that send until
//! they are told. Messages come late, twice, in any order, one way only, or never. Processes end between any two effects,
//! with their stores done or not; they stop for a while, write slowly, and lose their stores. Every entry, reign, commit and
//! answer is held against the named invariants. Rule: nothing here helps a replica; it only sees what a driver sees.

pub(crate) mod disk;
mod member;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use self::disk::{Copied, Disk};
use super::effect::{Alive, Answer, Config, OpId, Rows, Sight};
use super::election;
use super::entry::{Body, Kind, Stands, Write};
use super::invariant::{Broken, History};
use super::log::Bounds;
use super::message::Message;
use super::record::{self, Change, Why};
use super::replica::Replica;
use crate::proto::env::Instant;
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
    /// The node applies nothing.
    stuck: bool,
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
                stuck: false,
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

    pub fn is_up(&self, member: &MemberId) -> bool {
        self.nodes[member].process.is_some() && self.nodes[member].paused_until <= self.now
    }

    fn reach(&self, a: &MemberId, b: &MemberId) -> bool {
        let cut = |a: &MemberId, b: &MemberId| self.cut.contains(&(a.clone(), b.clone()));
        self.is_up(a) && self.is_up(b) && !cut(a, b) && !cut(b, a)
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
                let first = &change.after.in_sync[0];
                if self.record[shard].copy(&first.member).is_some_and(|copy| copy.id != *first) {
                    self.count("begun anew");
                }
                let disk = &self.nodes[&first.member].disks[shard];
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
        // An operator waits until the copy is at rest: what is on its way to the store is neither there nor lost.
        let storing = node.process.as_ref().is_some_and(|p| p.stores.iter().any(|(s, ..)| *s == shard));
        if !storing
            && !node.disks[shard].rebuild
            && let Some(change) = record::accept_loss(&self.record[shard], &to, &to, node.store)
        {
            self.change(vec![(shard, change)]);
        }
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
        if let Answer::Committed { seq, refused, .. } = answer {
            if refused {
                self.count("stands refused");
            }
            let checked = self.histories[shard].acknowledged(epoch, part, Stands { seq, refused });
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
        // Somebody gives the task up while its sender goes on: by the number, so that no other choice of the seed is another.
        let kind = if op.0 % 10 == 3 { Kind::Refusal } else { write.kind };
        let write = Write { kind, ..write };
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
            self.stick(member, false);
        }
    }

    /// A shard all of whose members in sync have lost their stores is an operator's business.
    pub fn operate(&mut self) {
        for shard in 0..self.record.len() {
            let state = self.record[shard].clone();
            if state.in_sync.iter().all(|id| self.nodes[&id.member].store != id.store) {
                let full = state.replicas.iter().filter(|c| c.state != ReplicaState::Learner);
                let full: Vec<&ReplicaId> = full.map(|c| &c.id).collect();
                let there = full.iter().find(|id| self.nodes[&id.member].store == id.store);
                // Where all stores are gone, one of the nodes has something left.
                if let Some(there) = there.or(full.first()) {
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
