//! Members, links, and what happens to them; one seed decides everything.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::client::{Client, Step};
use crate::proto::env::{Env, Instant};
use crate::proto::journal::election::Waiting;
use crate::proto::journal::invariant::{Broken, History};
use crate::proto::journal::record::Change;
use crate::proto::journal::sight::Seen;
use crate::proto::journal::simulated::disk::Disk;
use crate::proto::journal::{Answer, Config as CoreConfig, Message, OpId, Replica, Rows, Said, Write};
use crate::proto::ledger::{self, Bootstrap, BootstrapMember, Command, Ledger};
use crate::proto::probe::Probing;
use crate::types::{
    Epoch, GroupId, Holder, JournalRecord, MemberId, PhysicalIndex, ReplicaId, ReplicaState, ShardCopy, ShardId,
    ShardState, StoreId, TaskPart,
};
use crate::wire::gossip::Unreached;

/// A transaction on a disk that is made durable takes so many microseconds.
const STORE: RangeInclusive<u64> = 500..=6_000;
/// Between two looks whether preferred primaries are to have their shards again: sooner than a member does, to meet elections.
pub(super) const GIVE_BACK: Duration = Duration::from_secs(3);
/// How long a read of the store takes.
const LOAD: Duration = Duration::from_millis(1);

pub(super) fn id(i: usize) -> MemberId {
    MemberId::new(format!("m{i}")).unwrap()
}

pub(super) fn index() -> PhysicalIndex {
    PhysicalIndex::new("a__m00000001").unwrap()
}

/// A mesh.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    pub members: usize,
    pub copies: usize,
    /// How long a message is on its way, in microseconds.
    pub way: RangeInclusive<u64>,
}

/// Something that a member's ledger hears.
#[derive(Debug, Clone)]
pub(super) enum Heard {
    Message(MemberId, Box<ledger::Message>),
    Command(Command),
    Tick,
}

#[derive(Debug, Clone)]
pub(super) enum Event {
    /// The ledger of a member hears something.
    Ledger(MemberId, Heard),
    /// What its ledger wanted stored is durable; the rest is done.
    LedgerOut(MemberId, Vec<ledger::Effect>),
    Journal {
        from: MemberId,
        to: MemberId,
        shard: ShardId,
        message: Box<Message>,
    },
    Stored(MemberId),
    Tick(MemberId, ShardId),
    Load {
        at: MemberId,
        shard: ShardId,
        peer: MemberId,
        from: u64,
        entries: usize,
    },
    Find {
        at: MemberId,
        shard: ShardId,
        epoch: Epoch,
        part: TaskPart,
    },
    /// An election may be due.
    Elect(MemberId),
    /// Preferred primaries may be given their shards back.
    GiveBack(MemberId),
    /// A probe of the second is due at the first.
    Probe(MemberId, MemberId),
    Probed {
        from: MemberId,
        to: MemberId,
        sent: Instant,
    },
    Answered {
        from: MemberId,
        to: MemberId,
        sent: Instant,
        unreached: Unreached,
    },
    Write {
        from: MemberId,
        to: MemberId,
        op: OpId,
        shard: ShardId,
        write: Write,
    },
    Told {
        from: MemberId,
        to: MemberId,
        op: OpId,
        answer: Answer,
    },
    Client(usize, Step),
}

impl Event {
    /// Where it happens, and where it came from over a link.
    fn place(&self) -> (Option<&MemberId>, Option<&MemberId>) {
        match self {
            Self::Ledger(at, Heard::Message(from, _)) => (Some(at), Some(from)),
            Self::Ledger(at, _) | Self::LedgerOut(at, _) | Self::Stored(at) | Self::Tick(at, _) => (Some(at), None),
            Self::Elect(at) | Self::GiveBack(at) | Self::Probe(at, _) => (Some(at), None),
            Self::Load { at, .. } | Self::Find { at, .. } => (Some(at), None),
            Self::Journal { from, to, .. }
            | Self::Probed { from, to, .. }
            | Self::Answered { from, to, .. }
            | Self::Write { from, to, .. }
            | Self::Told { from, to, .. } => (Some(to), Some(from)),
            Self::Client(..) => (None, None),
        }
    }
}

/// A member, its disks and its process.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub me: ReplicaId,
    pub start: u64,
    pub rng: fastrand::Rng,
    pub dead: bool,
    /// Stopped, with what has come since then.
    pub frozen: Option<Vec<Event>>,
    pub ledger: Ledger,
    pub ledger_disk: ledger::Stored,
    /// Its transaction is under way until then.
    pub ledger_busy: Instant,
    pub ledger_tick: Option<Instant>,
    pub version: u64,
    pub record: JournalRecord,
    pub cores: BTreeMap<ShardId, Replica>,
    pub disks: BTreeMap<ShardId, Disk>,
    pub ticks: BTreeMap<ShardId, Instant>,
    /// Up to here committed entries were held against the history.
    pub committed: BTreeMap<ShardId, u64>,
    pub stores: VecDeque<(ShardId, u64, Rows)>,
    /// So many of them are in the transaction under way.
    pub storing: usize,
    pub probing: BTreeMap<MemberId, Probing>,
    pub suspects: BTreeSet<MemberId>,
    pub unreached: BTreeMap<MemberId, Unreached>,
    pub seen: Seen,
    pub waiting: Option<Waiting>,
    pub asks: BTreeMap<ShardId, Change>,
    /// The write of the record under way, and which try it is.
    pub asking: Option<(ledger::OpId, usize, BTreeMap<ShardId, Change>)>,
    pub next_op: u64,
}

impl Member {
    pub fn holder(&self) -> Holder {
        Holder { member: self.me.member.clone(), start: self.start }
    }
}

/// The mesh, its clients, and what is on its way.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub seed: u64,
    pub now: Instant,
    pub rng: fastrand::Rng,
    pub setting: Setting,
    pub config: CoreConfig,
    pub members: BTreeMap<MemberId, Member>,
    /// Who holds `shard_leaders`, and believes so as long as it lives.
    pub leader: MemberId,
    /// All packets of these members are dropped.
    pub black_holes: BTreeSet<MemberId>,
    /// Pairs that do not hear each other, the lesser first.
    pub cuts: BTreeSet<(MemberId, MemberId)>,
    pub histories: BTreeMap<ShardId, History>,
    pub clients: Vec<Client>,
    /// Writes under way: whose, which attempt, which part.
    pub ops: BTreeMap<OpId, (usize, u64, TaskPart)>,
    pub next_task: u32,
    pub counts: BTreeMap<&'static str, u64>,
    /// What happens is told.
    pub traced: bool,
    queue: BTreeMap<(Instant, u64), Event>,
    events: u64,
}

impl World {
    /// A mesh that has just made itself, with one index of two shards that have their primaries.
    pub fn new(seed: u64, setting: Setting) -> Self {
        let mut world = Self {
            seed,
            now: Instant(1_000_000),
            rng: fastrand::Rng::with_seed(seed),
            config: CoreConfig::default(),
            members: BTreeMap::new(),
            leader: id(0),
            black_holes: BTreeSet::new(),
            cuts: BTreeSet::new(),
            histories: (0..2).map(|shard| (ShardId(shard), History::default())).collect(),
            clients: Vec::new(),
            ops: BTreeMap::new(),
            next_task: 0,
            counts: BTreeMap::new(),
            traced: false,
            queue: BTreeMap::new(),
            events: 0,
            setting,
        };
        let all: Vec<MemberId> = (0..world.setting.members).map(id).collect();
        for member in &all {
            world.start(member, &all);
        }
        world.run(Duration::from_secs(5));
        assert!(world.members.values().all(|m| m.ledger.mesh().is_some()), "the mesh is made");
        world.create();
        world.run(Duration::from_secs(4));
        for shard in [ShardId(0), ShardId(1)] {
            let primary = world.primary(shard);
            assert!(world.members[&primary].cores[&shard].is_open(), "shard {shard} has a primary");
        }
        world
    }

    fn start(&mut self, member: &MemberId, all: &[MemberId]) {
        let store = StoreId(self.rng.u128(..).to_be_bytes());
        let group = || GroupId::new("g1").unwrap();
        let listed = |m: &MemberId| BootstrapMember {
            id: m.clone(),
            group: group(),
            address: format!("{m}:7781"),
            witness: false,
        };
        let bootstrap = Bootstrap { members: all.iter().map(listed).collect(), rf: 1, shards: 2 };
        let config = ledger::Config {
            member: member.clone(),
            renew_interval: Duration::from_secs(3),
            lease_ttl: Duration::from_secs(10),
            voter_replace_after: Duration::from_secs(600),
            round_timeout: ledger::Config::ROUND_TIMEOUT,
            retry_base: ledger::Config::RETRY_BASE,
            bootstrap: Some(bootstrap),
        };
        let mut disk = ledger::Stored::new(store);
        disk.begin();
        let mut rng = self.rng.fork();
        let ledger = Ledger::recover(config, disk.clone(), &mut Env { now: self.now, rng: &mut rng });
        let others: BTreeSet<MemberId> = all.iter().filter(|m| *m != member).cloned().collect();
        let new = Member {
            me: ReplicaId { member: member.clone(), store },
            start: disk.start,
            rng,
            dead: false,
            frozen: None,
            ledger,
            ledger_disk: disk,
            ledger_busy: self.now,
            ledger_tick: None,
            version: 0,
            record: JournalRecord::default(),
            cores: BTreeMap::new(),
            disks: BTreeMap::new(),
            ticks: BTreeMap::new(),
            committed: BTreeMap::new(),
            stores: VecDeque::new(),
            storing: 0,
            probing: others.iter().map(|other| (other.clone(), Probing::default())).collect(),
            suspects: BTreeSet::new(),
            unreached: BTreeMap::new(),
            seen: Seen::default(),
            waiting: None,
            asks: BTreeMap::new(),
            asking: None,
            next_op: 0,
        };
        self.members.insert(member.clone(), new);
        for other in &others {
            self.after(Duration::ZERO, Event::Probe(member.clone(), other.clone()));
        }
        self.after(GIVE_BACK, Event::GiveBack(member.clone()));
        self.after(Duration::ZERO, Event::Ledger(member.clone(), Heard::Command(Command::Peers(others))));
    }

    /// Writes the first record of the index, as whoever takes the order does.
    fn create(&mut self) {
        let (members, copies) = (self.setting.members, self.setting.copies);
        let shard = |shard: usize| {
            let ids: Vec<ReplicaId> =
                (0..copies).map(|c| self.members[&id((shard + c) % members)].me.clone()).collect();
            let copy = |id: &ReplicaId| ShardCopy { id: id.clone(), state: ReplicaState::Replica };
            let replicas = ids.iter().map(copy).collect();
            ShardState { replicas, in_sync: ids, primary: None, epoch: Epoch::ZERO, set: 1 }
        };
        let record = JournalRecord { shards: (0..2).map(shard).collect() };
        let change = ledger::Change {
            op: ledger::OpId(u64::MAX),
            key: JournalRecord::key(&index()),
            expected: 0,
            value: record.to_json().into(),
            quiet: false,
            deadline: self.now.plus(Duration::from_secs(5)),
        };
        self.after(Duration::ZERO, Event::Ledger(id(0), Heard::Command(Command::Change(vec![change]))));
    }

    /// The same mesh, with other dice, and probes at other times.
    pub fn again(&self, seed: u64) -> Self {
        let mut world = self.clone();
        world.seed = seed;
        world.rng = fastrand::Rng::with_seed(seed);
        for member in world.members.values_mut() {
            member.rng = world.rng.fork();
        }
        for (at, event) in std::mem::take(&mut world.queue) {
            let later = match event {
                Event::Probe(..) => Duration::from_micros(world.rng.u64(0..300_000)),
                _ => Duration::ZERO,
            };
            world.at(at.0.plus(later), event);
        }
        world
    }

    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub fn trace(&self, what: impl FnOnce() -> String) {
        if self.traced {
            println!("{:>8} {}", self.now.0 / 1_000, what());
        }
    }

    pub fn fail(&self, what: &str) -> ! {
        let s = self.seed;
        panic!("seed {s}: {what}\nagain: MIROIR_SEEDS={s}..{} cargo test --lib proto::failover", s + 1)
    }

    /// Appends of reigns that were over, each of which was refused.
    pub fn stale_appends(&self) -> u64 {
        self.counts.get("stale append").copied().unwrap_or(0)
    }

    pub fn hold(&self, checked: Result<(), Broken>) {
        if let Err(broken) = checked {
            self.fail(&broken.to_string());
        }
    }

    pub fn at(&mut self, at: Instant, event: Event) {
        self.events += 1;
        self.queue.insert((at, self.events), event);
    }

    pub fn after(&mut self, span: Duration, event: Event) {
        self.at(self.now.plus(span), event);
    }

    /// How long a store takes.
    pub fn store_time(&mut self) -> Duration {
        Duration::from_micros(self.rng.u64(STORE))
    }

    /// Puts a message on its way.
    pub fn send(&mut self, event: Event) {
        let way = Duration::from_micros(self.rng.u64(self.setting.way.clone()));
        match event.place() {
            // To itself.
            (Some(to), Some(from)) if to == from => self.after(Duration::ZERO, event),
            (Some(to), Some(from)) if self.is_cut(from, to) => {}
            _ => self.after(way, event),
        }
    }

    fn is_cut(&self, from: &MemberId, to: &MemberId) -> bool {
        let pair = if from < to { (from, to) } else { (to, from) };
        let between = || self.cuts.iter().any(|(a, b)| (a, b) == pair);
        from != to && (self.black_holes.contains(from) || self.black_holes.contains(to) || between())
    }

    pub fn member(&mut self, id: &MemberId) -> &mut Member {
        self.members.get_mut(id).expect("a member of this world")
    }

    /// A shard, as the newest copy of the record has it.
    fn state(&self, shard: ShardId) -> &ShardState {
        let newest = self.members.values().max_by_key(|m| m.version).unwrap();
        newest.record.shard(shard).expect("a shard of the index")
    }

    /// The primary of a shard, as the newest copy of the record has it.
    pub fn primary(&self, shard: ShardId) -> MemberId {
        self.state(shard).primary.clone().expect("it has been elected").member
    }

    /// How many elections the shard has had, by the newest copy of the record.
    pub fn epoch(&self, shard: ShardId) -> u64 {
        self.state(shard).epoch.number()
    }

    /// A member and all others but `between` do not hear each other any more.
    pub fn cut_off(&mut self, member: &MemberId, between: &MemberId) {
        let away = self.members.keys().filter(|m| *m != member && *m != between);
        let pair = |m: &MemberId| (m.min(member).clone(), m.max(member).clone());
        self.cuts.extend(away.map(pair));
    }

    /// SIGKILL: the process is gone, and what it had not sent with it.
    pub fn kill(&mut self, member: &MemberId) {
        self.trace(|| format!("{member} is killed"));
        self.member(member).dead = true;
    }

    /// SIGSTOP.
    pub fn freeze(&mut self, member: &MemberId) {
        self.member(member).frozen = Some(Vec::new());
    }

    /// SIGCONT: what has come meanwhile lies in its sockets and queues, and all its timers are due.
    pub fn thaw(&mut self, member: &MemberId) {
        for event in self.member(member).frozen.take().unwrap_or_default() {
            self.after(Duration::ZERO, event);
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
        if let (Some(to), from) = event.place() {
            if from.is_some_and(|from| self.is_cut(from, to)) {
                return;
            }
            let to = to.clone();
            let member = self.member(&to);
            if member.dead {
                return;
            }
            if let Some(waits) = &mut member.frozen {
                return waits.push(event);
            }
        }
        match event {
            Event::Ledger(at, heard) => {
                let busy = self.members[&at].ledger_busy;
                if busy > self.now {
                    return self.at(busy, Event::Ledger(at, heard));
                }
                self.ledger_hears(&at, heard);
            }
            Event::LedgerOut(at, effects) => self.ledger_out(&at, effects),
            Event::Journal { from, to, shard, message } => self.journal_hears(&from, &to, shard, *message),
            Event::Stored(at) => self.stored(&at),
            Event::Tick(at, shard) => {
                self.member(&at).ticks.remove(&shard);
                self.call(&at, shard, |core, env| core.handle_tick(env));
            }
            Event::Load { at, shard, peer, from, entries } => {
                let disk = &self.members[&at].disks[&shard];
                let loaded = disk.entries.range(from..).take(entries).map(|(_, e)| e.clone()).collect();
                self.call(&at, shard, |core, env| core.handle_loaded(env, &peer, loaded));
            }
            Event::Find { at, shard, epoch, part } => {
                let stands = self.members[&at].disks[&shard].parts.get(&part).copied();
                self.call(&at, shard, |core, env| core.handle_found(env, epoch, part, stands));
            }
            Event::Elect(at) => self.elect(&at),
            Event::GiveBack(at) => self.give_back(&at),
            Event::Probe(at, peer) => self.probe(&at, &peer),
            Event::Probed { from, to, sent } => {
                let unreached = Unreached::Some(self.members[&to].suspects.clone());
                self.send(Event::Answered { from: to, to: from, sent, unreached });
            }
            Event::Answered { from, to, sent, unreached } => self.answered(&to, &from, sent, unreached),
            Event::Write { to, op, shard, write, .. } => {
                self.call(&to, shard, |core, env| core.handle_write(env, op, write));
            }
            Event::Told { op, answer, .. } => self.told(op, answer),
            Event::Client(client, step) => self.client(client, step),
        }
    }

    /// A replica hears another. What is said under an older reign is refused, and nothing of it is stored.
    fn journal_hears(&mut self, from: &MemberId, to: &MemberId, shard: ShardId, message: Message) {
        let Some(core) = self.members[to].cores.get(&shard) else { return };
        let appends = matches!(&message.said, Said::Append { entries, .. } if !entries.is_empty());
        if matches!(message.said, Said::Append { .. }) && message.epoch < core.epoch() {
            if appends {
                self.count("stale append");
            }
            let (before, seen) = (self.members[to].stores.len(), message.epoch);
            let refusals = self.counts.get("refused").copied().unwrap_or(0);
            self.call(to, shard, |core, env| core.handle_message(env, from, message));
            let refused = self.counts.get("refused").copied().unwrap_or(0) > refusals;
            if !refused || self.members[to].stores.len() != before {
                self.fail(&format!("{to} took what {from} said under {seen}, which is over"));
            }
            return;
        }
        self.call(to, shard, |core, env| core.handle_message(env, from, message));
    }

    /// What `load` and `find` wait for.
    pub fn read_later(&mut self, event: Event) {
        self.after(LOAD, event);
    }
}
