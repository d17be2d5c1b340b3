//! The simulated world: members, the network between them, clients, and what happens next.
//!
//! Everything comes from one seed, and everything happens in the order of (time, number). Must not know: which faults
//! there are to be (`faults`), and what is said of a run (`run`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fastrand::Rng;
use miroir::proto::alias::{self, ALIAS_FLIP, FlipPlan};
use miroir::proto::env::Instant;
use miroir::proto::invariant::{self, History as Ballots};
use miroir::proto::lease;
use miroir::proto::ledger::{
    Answer, Bootstrap, BootstrapMember, Change, Command, Config, Effect, Message, OpId, Read, Row, Seen,
};
use miroir::proto::operation::{Guard, Request, record_key, scope_of_record};
use miroir::proto::register;
use miroir::types::{
    Epoch, GroupId, Holder, IndexUid, LeaseSign, LeaseValue, MemberId, MeshId, MeshRecord, NamesRecord,
    OperationRecord, Order, PhysicalIndex, RecordKey, Scope, StoreId, Versioned, Voter,
};

use super::clock::Clock;
use super::disk::Disk;
use super::invariants::{Broken, History, Leases, Steps};
use super::leading::{self, Asks, Done};
use super::member::{Input, Member, Step};
use super::network::{Host, Network};
use super::operating::{self, Asked, NAMES, Out};
use super::swarm::Swarm;
use super::trace::Trace;

/// How long a client waits, on the member's clock.
const PATIENCE: Duration = Duration::from_secs(4);
/// Keys that clients change.
pub const KEYS: usize = 4;
/// TTL of leases in milliseconds.
const TTL_MS: u64 = 10_000;
const RENEW_INTERVAL: Duration = Duration::from_secs(3);
/// A clock that stood still or jumped, and with it the hold of a lease, may be wrong for so long, in microseconds: a TTL
/// and its margin on the slowest clock, and some.
const WRONG_FOR: u64 = 13_500_000;
/// What a TTL is at least on a clock that runs too fast, less the one look at the clock that a jump may take away, in
/// microseconds.
const PATIENT_FOR: u64 = 9_000_000;
/// Keys of operations' records begin so.
/// Between two rounds of gossip.
const GOSSIP_EVERY: u64 = 1_000_000;

/// Something that happens at its time.
#[derive(Debug)]
enum Event {
    Deliver { to: Host, from: Host, message: Box<Message> },
    Committed { host: Host, life: u64 },
    Raised { host: Host, life: u64 },
    Timer { host: Host, life: u64, at: u64 },
    Gossip { host: Host },
    Signs { to: Host, from: Host, signs: Vec<LeaseSign> },
    Order { to: Host, from: Host, order: Order, asks: Asks },
    Confirmed { to: Host, from: Host, version: u64 },
    Restart { host: Host },
    Resume { host: Host },
    Thaw { host: Host },
    NewStore { host: Host, life: u64 },
    Heal,
    Fault,
    Request,
}

/// Who asked the ledger for something.
#[derive(Debug)]
enum Asker {
    Client,
    // One of a process's cores, and what it would write.
    Core { host: Host, life: u64, to: AnswerTo, value: Option<String> },
}

#[derive(Debug, Clone, Copy)]
enum AnswerTo {
    Leading(register::OpId),
    Operating(Asked),
}

/// Why a run ended early.
#[derive(Debug)]
pub enum Stopped {
    /// A property does not hold.
    Broken(Broken),
    /// The wanted event was reached.
    Until,
}

impl From<Broken> for Stopped {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

/// Everything.
#[derive(Debug)]
pub struct World {
    /// What kind of day it is.
    pub swarm: Swarm,
    /// The run's dice.
    pub rng: Rng,
    /// True time in microseconds.
    pub now: u64,
    /// Members by number.
    pub members: Vec<Member>,
    /// Links.
    pub network: Network,
    /// Number of the event.
    pub event: u64,
    /// Where lines go.
    pub trace: Trace,
    /// Stop after this event.
    pub until: u64,
    queue: BTreeMap<(u64, u64), Event>,
    queued: u64,
    history: History,
    ballots: Ballots,
    mesh: Option<MeshId>,
    requests: BTreeMap<OpId, (RecordKey, Asker)>,
    leases: Leases,
    steps: Steps,
    // The version of names that every member must have, if it is fresh: flips up to it are done; 0 for none.
    flipped: u64,
    /// Flips whose end was held against what all members know, for statistics.
    pub flips: u64,
    // Of each store, the highest epoch of the orders that its member has taken.
    orders: BTreeMap<(StoreId, Scope), Epoch>,
    // Until when each host's clock does not count as right.
    wrong_until: Vec<u64>,
    // What was taken by a clock that was wrong: whoever held the scope before may believe so for a while longer.
    taken_wrongly: BTreeSet<(Scope, Epoch)>,
    next_op: u64,
    // The version of each key that clients have heard of last.
    heard: BTreeMap<RecordKey, u64>,
    /// When a store was lost or put back from a copy last.
    pub last_loss: Option<u64>,
    /// Changes that were answered with success, for liveness and statistics.
    pub changes: u64,
    /// Stores that were put back from a copy, and those of them that were taken away again before they voted, because
    /// whoever could have told them was out of reach.
    pub put_back: [u64; 2],
    // What members whose stores were lost had known of the stores of others.
    forgotten: Vec<Seen>,
}

impl World {
    /// A world at its beginning; members have not started yet.
    pub fn new(seed: u64, swarm: Option<Swarm>, trace: Trace, until: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let swarm = swarm.unwrap_or_else(|| Swarm::draw(&mut rng));
        let mut world = Self {
            rng,
            now: 0,
            members: Vec::new(),
            network: Network::default(),
            event: 0,
            trace,
            until,
            queue: BTreeMap::new(),
            queued: 0,
            history: History::default(),
            ballots: Ballots::default(),
            mesh: None,
            requests: BTreeMap::new(),
            leases: Leases::default(),
            steps: Steps::new(&ALIAS_FLIP),
            flipped: 0,
            flips: 0,
            orders: BTreeMap::new(),
            wrong_until: Vec::new(),
            taken_wrongly: BTreeSet::new(),
            next_op: 0,
            heard: BTreeMap::new(),
            last_loss: None,
            changes: 0,
            put_back: [0, 0],
            forgotten: Vec::new(),
            swarm,
        };
        world.populate();
        world
    }

    fn populate(&mut self) {
        let group = |i: usize| GroupId::new(format!("g{}", i % 2 + 1)).expect("a group's name");
        let entry = |i: usize| BootstrapMember { id: name(i), group: group(i), address: address(i), witness: false };
        let bootstrap = Bootstrap { members: (0..self.swarm.members).map(entry).collect(), rf: 1, shards: 8 };
        for i in 0..self.swarm.members + self.swarm.joiners {
            let config = Config {
                member: name(i),
                renew_interval: RENEW_INTERVAL,
                lease_ttl: Duration::from_millis(TTL_MS),
                voter_replace_after: Duration::from_secs(30),
                round_timeout: Duration::from_millis(500),
                retry_base: Duration::from_millis(50),
                bootstrap: (i < self.swarm.members).then(|| bootstrap.clone()),
            };
            let drift = self.swarm.clock_drift(&mut self.rng);
            let clock = Clock::new(0, self.rng.u64(..1 << 40), drift);
            let disk = Disk::new(&mut self.rng);
            let leases = lease::Config { enabled: true, ttl_ms: TTL_MS, renew_interval: RENEW_INTERVAL };
            self.members.push(Member::new(config, leases, clock, disk));
            self.wrong_until.push(0);
            let after = self.rng.u64(..GOSSIP_EVERY);
            self.at(after, Event::Gossip { host: i });
        }
        for host in 0..self.swarm.members {
            let after = self.rng.u64(..2_000_000);
            self.at(after, Event::Restart { host });
        }
        self.schedule_request();
        self.schedule_fault();
    }

    fn at(&mut self, when: u64, event: Event) {
        self.queued += 1;
        self.queue.insert((when.max(self.now), self.queued), event);
    }

    fn schedule_request(&mut self) {
        if self.swarm.request_every > 0 {
            let after = self.rng.u64(..2 * self.swarm.request_every) + 1;
            self.at(self.now + after, Event::Request);
        }
    }

    fn schedule_fault(&mut self) {
        if self.swarm.fault_every > 0 {
            let after = self.rng.u64(..2 * self.swarm.fault_every) + 1;
            if self.now + after < self.swarm.faults_for {
                self.at(self.now + after, Event::Fault);
            }
        }
    }

    /// Ends the fault of a host after a time.
    pub fn restart_after(&mut self, host: Host, after: u64) {
        self.at(self.now + after, Event::Restart { host });
    }

    /// A stopped process goes on after a time.
    pub fn resume_after(&mut self, host: Host, after: u64) {
        self.at(self.now + after, Event::Resume { host });
    }

    /// A paused machine goes on after a time.
    pub fn thaw_after(&mut self, host: Host, after: u64) {
        self.at(self.now + after, Event::Thaw { host });
    }

    /// The network is whole again after a time.
    pub fn heal_after(&mut self, after: u64) {
        self.at(self.now + after, Event::Heal);
    }

    /// Everything that happens before `until`, in order.
    ///
    /// # Errors
    /// [`Stopped`] at the first property that does not hold.
    pub fn run_to(&mut self, until: u64) -> Result<(), Stopped> {
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > until {
                break;
            }
            let ((at, _), event) = entry.remove_entry();
            self.now = at;
            self.event += 1;
            self.happen(event)?;
            if self.event >= self.until {
                return Err(Stopped::Until);
            }
        }
        self.now = until;
        Ok(())
    }

    /// A line of the trace.
    pub fn note(&mut self, what: std::fmt::Arguments<'_>) {
        if self.trace.on() {
            // A trace that can't be written says so once: the run goes on to find what it finds.
            if self.trace.event(self.event, self.now, &what).is_err() {
                self.trace = Trace::off();
            }
        }
    }

    fn happen(&mut self, event: Event) -> Result<(), Stopped> {
        match event {
            Event::Deliver { to, from, message } => {
                self.note(format_args!("{} → {}: {:?}", name(from), name(to), message));
                self.members[to].hear(Input::Message(name(from), message));
                self.run(to)
            }
            Event::Committed { host, life } => {
                if self.members[host].life != life {
                    return Ok(());
                }
                if self.members[host].clock.is_stopped() {
                    // The whole machine stands still, its disk as well.
                    self.at(self.now + 10_000, Event::Committed { host, life });
                    return Ok(());
                }
                self.look_at_rows(host)?;
                let rows = self.members[host].committed();
                self.note(format_args!("{} stored {rows:?}", name(host)));
                self.run(host)
            }
            Event::Timer { host, life, at } => {
                let member = &mut self.members[host];
                match &mut member.process {
                    Some(process) if member.life == life && process.timer == Some(at) => process.timer = None,
                    _ => return Ok(()),
                }
                member.tick(self.now);
                self.note(format_args!("{} ticks", name(host)));
                self.run(host)
            }
            Event::Raised { host, life } => {
                if self.members[host].life != life {
                    return Ok(());
                }
                if self.members[host].clock.is_stopped() {
                    self.at(self.now + 10_000, Event::Raised { host, life });
                    return Ok(());
                }
                self.members[host].raised();
                self.run(host)
            }
            Event::Gossip { host } => {
                let after = self.rng.u64(GOSSIP_EVERY / 2..GOSSIP_EVERY * 3 / 2);
                self.at(self.now + after, Event::Gossip { host });
                self.gossip(host);
                Ok(())
            }
            Event::Signs { to, from, signs } => {
                self.lead(to, leading::Input::Gossip(name(from), signs));
                self.run(to)
            }
            Event::Order { to, from, order, asks } => {
                self.ordered(to, from, order, asks);
                self.run(to)
            }
            Event::Confirmed { to, from, version } => {
                self.operate(to, operating::Input::Confirmed(name(from), version));
                self.run(to)
            }
            Event::Restart { host } => self.start(host),
            Event::Resume { host } => {
                self.members[host].paused = false;
                self.note(format_args!("{} goes on", name(host)));
                self.run(host)
            }
            Event::Thaw { host } => {
                let now = self.now;
                self.members[host].clock.go_on(now);
                self.members[host].paused = false;
                self.wrong_until[host] = now + WRONG_FOR;
                self.note(format_args!("{} is thawed", name(host)));
                self.run(host)
            }
            Event::NewStore { host, life } => {
                if self.members[host].life == life {
                    self.replace_store(host);
                }
                Ok(())
            }
            Event::Heal => {
                self.network.heal();
                self.note(format_args!("the network is whole"));
                Ok(())
            }
            Event::Fault => {
                self.schedule_fault();
                super::faults::strike(self)
            }
            Event::Request => {
                self.schedule_request();
                self.request()
            }
        }
    }

    /// Starts a host's process if none runs.
    fn start(&mut self, host: Host) -> Result<(), Stopped> {
        if self.members[host].process.is_some() {
            return Ok(());
        }
        let (now, seed) = (self.now, self.rng.u64(..));
        self.members[host].start(now, seed);
        let process = self.members[host].disk.ledger().start;
        self.note(format_args!("{} starts, process {process}", name(host)));
        // Joiners are told by their operator whom to ask.
        let all: std::collections::BTreeSet<MemberId> =
            (0..self.members.len()).filter(|h| *h != host).map(name).collect();
        self.members[host].hear(Input::Command(Command::Peers(all)));
        let copies: Vec<_> = self.members[host].disk.ledger().copies.clone().into_iter().collect();
        for (key, record) in copies {
            self.copied(host, &key, &record)?;
        }
        self.run(host)
    }

    /// A process's cores hear of a copy, and it is held against what else is known.
    fn copied(&mut self, host: Host, key: &RecordKey, record: &Versioned) -> Result<(), Stopped> {
        self.agreed(key, record)?;
        if Scope::of_lease_key(key.as_str()).is_some() {
            self.lead(host, leading::Input::Chosen(key.as_str().to_owned(), chosen(record)));
        } else if scope_of_record(key.as_str()).is_some() {
            self.operate(host, operating::Input::Chosen(key.as_str().to_owned(), chosen(record)));
        }
        Ok(())
    }

    /// Somebody takes this for what the members have agreed on.
    fn agreed(&mut self, key: &RecordKey, record: &Versioned) -> Result<(), Stopped> {
        if let (Some(scope), Ok(value)) = (Scope::of_lease_key(key.as_str()), LeaseValue::parse(&record.value)) {
            self.leases.agreed(&scope, record.version, &value)?;
        }
        let scope = scope_of_record(key.as_str());
        if let (Some(scope), Ok(operations)) = (scope, serde_json::from_str(&record.value)) {
            self.steps.recorded(&scope, record.version, &operations)?;
            if let Some(names) = self.steps.newly_done(&operations) {
                self.flip_is_done(names)?;
            }
        }
        if key.as_str() == NAMES
            && let Ok(names) = serde_json::from_str(&record.value)
        {
            self.steps.named(record.version, &names)?;
        }
        Ok(())
    }

    /// Whether a host's clock has run as it should for long enough to be held to what it says.
    fn runs_right(&self, host: Host) -> bool {
        !self.members[host].clock.is_stopped() && self.wrong_until[host] <= self.now
    }

    /// A flip is done: from here on no member takes itself for fresh without these names. If a clock was wrong, it may have been
    /// the leader's, which then has not waited for those that did not confirm.
    fn flip_is_done(&mut self, names: u64) -> Result<(), Stopped> {
        if !(0..self.members.len()).all(|host| self.runs_right(host)) {
            return Ok(());
        }
        self.flips += 1;
        self.flipped = names.max(self.flipped);
        (0..self.members.len()).try_for_each(|host| self.knows_flips(host))
    }

    /// Whether a member that counts itself fresh knows every flip that is done. Who was removed, and has not heard of it, is
    /// not waited for.
    fn knows_flips(&self, host: Host) -> Result<(), Stopped> {
        let must = self.flipped;
        let member = &self.members[host];
        let Some(process) = member.process.as_ref().filter(|_| self.runs_right(host)) else { return Ok(()) };
        let names = RecordKey::new(NAMES).expect("a word is a key");
        let known = process.ledger.copy(&names).map_or(0, |copy| copy.version);
        let present = || self.mesh_record().is_some_and(|r| r.present().any(|m| m.id == name(host)));
        if known < must && process.ledger.fresh(Instant(member.clock.at(self.now))) && present() {
            let what = format!("{} is fresh with names at {known}, a flip at {must} is done", name(host));
            return Err(Broken::new("who_is_fresh_knows_the_flips", what).into());
        }
        Ok(())
    }

    /// Something for a process's operations core to hear.
    fn operate(&mut self, host: Host, input: operating::Input) {
        if let Some(process) = &mut self.members[host].process {
            process.operating.hear(input);
        }
    }

    /// An order has come; its lease core looks at it first.
    fn ordered(&mut self, to: Host, from: Host, order: Order, asks: Asks) {
        let ledger = self.members[to].process.as_ref().map(|p| &p.ledger);
        let key = RecordKey::new(order.record.as_str()).ok();
        let known = ledger.zip(key).and_then(|(l, key)| l.copy(&key)).map_or(0, |copy| copy.version);
        self.lead(to, leading::Input::Order(name(from), order, known, asks));
    }

    /// Sends an order.
    fn send_order(&mut self, from: Host, to: Host, order: &Order, asks: &Asks) {
        if from == to {
            return self.ordered(to, from, order.clone(), asks.clone());
        }
        for at in self.network.deliveries(self.now, from, to, &self.swarm, &mut self.rng) {
            self.at(at, Event::Order { to, from, order: order.clone(), asks: asks.clone() });
        }
    }

    /// Somebody wants the alias flipped, or a flip under way paused, resumed or undone.
    fn flip(&mut self, host: Host) {
        let Some(process) = &self.members[host].process else { return };
        let names = RecordKey::new(NAMES).expect("a word is a key");
        let scope = Scope::AliasFlip(uid("a"));
        let current = process.operating.core.record(&scope).and_then(|r| r.current.as_ref()).map(|op| op.id.clone());
        if process.ledger.copy(&names).is_none() {
            return self.put_names(host, &names);
        }
        self.next_op += 1;
        let id = format!("f{}", self.next_op);
        let request = match (current, self.rng.u8(..6)) {
            (Some(id), 0) => Request::Pause { id },
            (Some(id), 1 | 2) => Request::Resume { id },
            (Some(id), 3) => Request::Cancel { id },
            _ => {
                let plan = FlipPlan::new(uid(["i", "j", "k"][self.rng.usize(..3)]));
                let extra = serde_json::to_value(plan).expect("a plan is JSON");
                Request::Begin { id, kind: &ALIAS_FLIP, extra }
            }
        };
        self.note(format_args!("asked of {}: {request:?}", name(host)));
        self.operate(host, operating::Input::Request(scope, request, "now".to_owned()));
    }

    /// The operator makes three indexes, and an alias of one of them.
    fn put_names(&mut self, host: Host, key: &RecordKey) {
        let (op, deadline) = self.next_request(host);
        let mut names = NamesRecord::default();
        for (number, index) in (0_u32..).zip(["i", "j", "k"]) {
            // A value that nobody else writes.
            names.indexes.insert(uid(index), PhysicalIndex::of(&uid(index), number + 8 * op.0 as u32));
        }
        let Ok(names) = alias::create(&names, 0, &uid("a"), &uid("i")) else { return };
        let value = serde_json::to_string(&names).expect("names are JSON");
        self.history.change(op.0, key.as_str(), 0, &value);
        self.requests.insert(op, (key.clone(), Asker::Client));
        let change = Change { op, key: key.clone(), expected: 0, value: value.into(), quiet: false, deadline };
        self.members[host].hear(Input::Command(Command::Change(vec![change])));
    }

    /// Says whether anything was done.
    fn run_operating(&mut self, host: Host) -> Result<bool, Stopped> {
        let now = self.now;
        let Some(outs) = self.members[host].operate(now) else { return Ok(false) };
        for out in outs {
            match out {
                Out::Change(asked, c) => {
                    let Ok(key) = RecordKey::new(c.key) else { continue };
                    let writes = Some((c.expected, c.value.to_string()));
                    let op = self.ask_for(host, AnswerTo::Operating(asked), &key, writes);
                    let deadline = self.patience(host);
                    let change = Change { op, key, expected: c.expected, value: c.value, quiet: c.quiet, deadline };
                    self.members[host].hear(Input::Command(Command::Change(vec![change])));
                }
                Out::Read(asked, r) => {
                    let Ok(key) = RecordKey::new(r.key) else { continue };
                    let op = self.ask_for(host, AnswerTo::Operating(asked), &key, None);
                    let read = Read { op, key, deadline: self.patience(host) };
                    self.members[host].hear(Input::Command(Command::Read(vec![read])));
                }
                Out::Lead(input) => self.lead(host, input),
                Out::Order(to, guard, version) => {
                    let Some(to) = self.host(&to) else { continue };
                    let order = guard.order();
                    self.send_order(host, to, &order, &Asks::Names(Box::new(guard), version));
                }
                Out::Note(text) => self.note(format_args!("{} {text}", name(host))),
            }
        }
        Ok(true)
    }

    /// A member does what an order says that its lease core let pass, if its own copies call for it.
    fn obey(&mut self, host: Host, from: &MemberId, guard: &Guard, version: u64) {
        let Some(process) = &self.members[host].process else { return };
        let (ledger, operations) = (&process.ledger, &process.operating.core);
        let called_for = operations.record(&guard.scope).is_some_and(|record| guard.is_called_for(record));
        let names = RecordKey::new(NAMES).expect("a word is a key");
        let known = ledger.copy(&names).map_or(0, |copy| copy.version);
        let Some(to) = self.host(from).filter(|_| called_for && known >= version) else { return };
        if to == host {
            return self.operate(host, operating::Input::Confirmed(name(host), known));
        }
        for at in self.network.deliveries(self.now, host, to, &self.swarm, &mut self.rng) {
            self.at(at, Event::Confirmed { to, from: host, version: known });
        }
    }

    /// The operation that is under way, if somebody has to go on with it.
    pub fn unfinished(&self) -> Option<String> {
        let key = RecordKey::new(record_key(&Scope::AliasFlip(uid("a")))).expect("a scope is a key");
        let copies = self.members.iter().filter_map(|m| m.disk.ledger().copies.get(&key));
        let record: OperationRecord = serde_json::from_str(&copies.max_by_key(|c| c.version)?.value).ok()?;
        record.current.filter(|op| op.state.is_active()).map(|op| format!("{} stands in {}", op.id, op.phase))
    }

    /// Something for a process's lease core to hear.
    fn lead(&mut self, host: Host, input: leading::Input) {
        if let Some(process) = &mut self.members[host].process {
            process.leading.hear(input);
        }
    }

    /// A host tells the others which leases it holds.
    fn gossip(&mut self, host: Host) {
        let Some(process) = self.members[host].process.as_ref().filter(|_| !self.members[host].paused) else { return };
        let signs = process.leading.signs.clone();
        if signs.is_empty() {
            return;
        }
        for to in (0..self.members.len()).filter(|to| *to != host) {
            for at in self.network.deliveries(self.now, host, to, &self.swarm, &mut self.rng) {
                self.at(at, Event::Signs { to, from: host, signs: signs.clone() });
            }
        }
    }

    /// A holder of a standing scope gives an order to another member: that it should know of the hold.
    fn order(&mut self) {
        let scope = self.rng.choice(&Scope::STANDING).cloned().expect("there are standing scopes");
        let key = RecordKey::new(scope.lease_key()).expect("a scope is a key");
        let holder = (0..self.members.len()).find_map(|host| {
            let member = &self.members[host];
            let process = member.process.as_ref().filter(|_| !member.paused)?;
            let epoch = process.leading.believes(&scope, Instant(member.clock.at(self.now)))?;
            Some((host, epoch, process.ledger.copy(&key).map_or(0, |copy| copy.version)))
        });
        let Some((from, epoch, version)) = holder else { return };
        let to = self.rng.usize(..self.members.len());
        let order = Order { scope, epoch, record: key.as_str().to_owned(), version };
        self.send_order(from, to, &order, &Asks::Hold);
    }

    /// Ends a process at once, with or without its last transaction.
    pub fn crash(&mut self, host: Host) -> Result<(), Stopped> {
        let written = self.rng.bool();
        if written {
            self.look_at_rows(host)?;
        }
        self.members[host].crash(written);
        self.note(format_args!("{} is killed{}", name(host), if written { "" } else { ", its last write lost" }));
        Ok(())
    }

    /// The operator puts the disk back from the copy that there is, if it differs.
    ///
    /// # Errors
    /// As [`World::run_to`].
    pub fn put_back(&mut self, host: Host) -> Result<(), Stopped> {
        if !self.members[host].disk.has_older_copy() {
            return Ok(());
        }
        if self.members[host].process.is_some() {
            self.crash(host)?;
        }
        self.forget(host);
        // Its highest epochs are older as well.
        let store = self.members[host].disk.ledger().store;
        self.orders.retain(|(of, _), _| *of != store);
        self.members[host].disk.restore();
        (self.last_loss, self.put_back[0]) = (Some(self.now), self.put_back[0] + 1);
        self.note(format_args!("{} has its disk put back from a copy", name(host)));
        Ok(())
    }

    /// What a host knew of others is lost with its disk.
    fn forget(&mut self, host: Host) {
        let member = &self.members[host];
        let ledger = member.process.as_ref().map(|p| &p.ledger);
        for (store, on_disk) in &member.disk.ledger().seen {
            let known = ledger.and_then(|l| l.seen(*store)).unwrap_or(on_disk);
            self.forgotten.push(known.clone());
        }
    }

    /// A store that was put back may vote again only where nobody has heard of what it has forgotten, or all who have are
    /// out of its reach. The second is what the ledger can't help: the operator, who is spared it here, takes it away. But
    /// then it has waited for them.
    fn is_given_up(&mut self, host: Host) -> Result<bool, Stopped> {
        let Some(process) = &self.members[host].process else { return Ok(false) };
        if !self.members[host].disk.restored() || !process.ledger.votes() {
            return Ok(false);
        }
        let stored = process.ledger.stored();
        let (store, line) = (stored.store, &stored.line);
        let waited = self.now - process.began >= PATIENT_FOR;
        let differs = |other: Host| {
            let m = &self.members[other];
            let running = m.process.as_ref().and_then(|p| p.ledger.seen(store));
            let seen = running.or_else(|| m.disk.ledger().seen.get(&store));
            seen.is_some_and(|seen| !seen.stands_in(line))
        };
        let knowing: Vec<Host> = (0..self.members.len()).filter(|other| *other != host && differs(*other)).collect();
        let record = stored.copies.get(&RecordKey::mesh()).and_then(|copy| MeshRecord::from_json(&copy.value).ok());
        let asked = |other: &&Host| record.iter().any(|r| r.present().any(|m| m.id == name(**other)));
        if let Some(other) = knowing.iter().find(asked).filter(|_| !waited) {
            let what = format!("{} votes on a store put back, and has not waited for {}", name(host), name(*other));
            return Err(Broken::new("a_store_put_back_asks_all", what).into());
        }
        let known =
            !knowing.is_empty() || self.forgotten.iter().any(|seen| seen.store == store && !seen.stands_in(line));
        if known {
            self.put_back[1] += 1;
            self.note(format_args!("{} is taken away: nobody could tell it that its store is old", name(host)));
            self.replace_store(host);
        }
        Ok(known)
    }

    /// The disk is lost; an empty one takes its place, and a process begins on it after a time.
    pub fn replace_store(&mut self, host: Host) {
        self.forget(host);
        self.members[host].crash(false);
        self.members[host].disk = Disk::new(&mut self.rng);
        if self.swarm.members == 1 && self.mesh.is_some() {
            // A list that names nobody else can't tell a reinstalled member of the mesh that it once made: whoever adds
            // members to a mesh of one must not reinstall it with that list.
            self.members[host].forget_bootstrap();
        }
        self.last_loss = Some(self.now);
        self.note(format_args!("{} has a new, empty store", name(host)));
        let after = self.rng.u64(..3_000_000);
        self.restart_after(host, after);
    }

    /// Lets a process do all that it can do now.
    fn run(&mut self, host: Host) -> Result<(), Stopped> {
        while self.run_ledger(host)? || self.run_leading(host)? || self.run_operating(host)? {}
        self.knows_flips(host)?;
        self.set_timer(host);
        Ok(())
    }

    /// Says whether anything was done.
    fn run_ledger(&mut self, host: Host) -> Result<bool, Stopped> {
        let now = self.now;
        let step = self.members[host].step(now);
        if self.is_given_up(host)? {
            return Ok(false);
        }
        match step {
            Step::Idle => Ok(false),
            Step::Committing => {
                let after = self.swarm.commit(&mut self.rng);
                let life = self.members[host].life;
                self.at(now + after, Event::Committed { host, life });
                Ok(false)
            }
            Step::Effects(effects) => {
                effects.into_iter().try_for_each(|effect| self.carry_out(host, effect))?;
                Ok(true)
            }
        }
    }

    /// Says whether anything was done.
    fn run_leading(&mut self, host: Host) -> Result<bool, Stopped> {
        let now = self.now;
        let done = match self.members[host].lead(now) {
            leading::Step::Idle => return Ok(false),
            leading::Step::Committing => {
                let after = self.swarm.commit(&mut self.rng);
                let life = self.members[host].life;
                self.at(now + after, Event::Raised { host, life });
                return Ok(false);
            }
            leading::Step::Done(done) => done,
        };
        self.one_holder(host)?;
        done.into_iter().try_for_each(|done| self.carry_out_leading(host, done))?;
        Ok(true)
    }

    /// Whether nobody else holds what this host holds, as far as clocks run as they should.
    fn one_holder(&self, host: Host) -> Result<(), Stopped> {
        let believes = |host: Host, scope: &Scope| {
            let member = &self.members[host];
            let process = member.process.as_ref().filter(|_| self.runs_right(host))?;
            process.leading.believes(scope, Instant(member.clock.at(self.now)))
        };
        let Some(process) = &self.members[host].process else { return Ok(()) };
        for scope in process.leading.shown.keys() {
            let Some(own) = believes(host, scope) else { continue };
            let others = (0..self.members.len()).filter(|other| *other != host);
            // Between the two epochs nobody took the scope too early.
            let rightly = |theirs: &Epoch| {
                let (low, high) = (own.min(*theirs), own.max(*theirs));
                !self.taken_wrongly.iter().any(|(of, epoch)| of == scope && low < *epoch && *epoch <= high)
            };
            let mut rivals = others.filter_map(|o| Some((o, believes(o, scope)?)));
            if let Some((other, theirs)) = rivals.find(|(_, theirs)| rightly(theirs)) {
                let what = format!("{scope}: {} under {own} and {} under {theirs}", name(host), name(other));
                return Err(Broken::new("one_holder_at_a_time", what).into());
            }
        }
        Ok(())
    }

    fn carry_out_leading(&mut self, host: Host, done: Done) -> Result<(), Stopped> {
        match done {
            Done::Effect(lease::Effect::Became { scope, epoch, .. }) => {
                self.note(format_args!("{} holds {scope} under {epoch}", name(host)));
                self.epoch_is_stored(host, &scope, epoch)?;
                if !self.runs_right(host) {
                    self.taken_wrongly.insert((scope.clone(), epoch));
                }
                let ledger = self.members[host].process.as_ref().map(|p| p.ledger.stored().start);
                let holder = Holder { member: name(host), start: ledger.unwrap_or_default() };
                self.leases.began(&scope, epoch, &holder)?;
                self.operate(host, operating::Input::Became(scope, epoch));
                Ok(())
            }
            Done::Effect(lease::Effect::Lost { scope, epoch, why, .. }) => {
                self.note(format_args!("{} has lost {scope} under {epoch}: {why:?}", name(host)));
                self.operate(host, operating::Input::Lost(scope.clone(), epoch));
                if why == lease::LostWhy::Released {
                    self.lead(host, leading::Input::Ended(scope));
                }
                Ok(())
            }
            Done::Effect(lease::Effect::Changes(changes)) => {
                let deadline = self.patience(host);
                let changes = changes.into_iter().filter_map(|c| {
                    let key = RecordKey::new(c.key).ok()?;
                    let op = self.ask_for(host, AnswerTo::Leading(c.op), &key, Some((c.expected, c.value.to_string())));
                    Some(Change { op, key, expected: c.expected, value: c.value, quiet: c.quiet, deadline })
                });
                let changes = changes.collect();
                self.members[host].hear(Input::Command(Command::Change(changes)));
                Ok(())
            }
            Done::Effect(lease::Effect::Reads(reads)) => {
                let deadline = self.patience(host);
                let reads = reads.into_iter().filter_map(|r| {
                    let key = RecordKey::new(r.key).ok()?;
                    let op = self.ask_for(host, AnswerTo::Leading(r.op), &key, None);
                    Some(Read { op, key, deadline })
                });
                let reads = reads.collect();
                self.members[host].hear(Input::Command(Command::Read(reads)));
                Ok(())
            }
            Done::Effect(lease::Effect::Gossip(signs)) => {
                if let Some(process) = &mut self.members[host].process {
                    process.leading.signs = signs;
                }
                Ok(())
            }
            Done::Effect(lease::Effect::Persist { .. }) => unreachable!("stored before"),
            Done::Order(from, order, asks, Ok(())) => {
                self.note(format_args!("{} takes an order of {from}: {order:?}", name(host)));
                self.epoch_is_stored(host, &order.scope, order.epoch)?;
                let store = self.members[host].disk.ledger().store;
                let highest = self.orders.entry((store, order.scope.clone())).or_default();
                if order.epoch < *highest {
                    let what = format!("{} takes {order:?} of {from} after one under {highest}", name(host));
                    return Err(Broken::new("stale_orders_are_refused", what).into());
                }
                *highest = order.epoch;
                if let Asks::Names(guard, version) = asks {
                    self.obey(host, &from, &guard, version);
                }
                Ok(())
            }
            Done::Order(from, order, _, Err(why)) => {
                self.note(format_args!("{} refuses {order:?} of {from}: {why}", name(host)));
                Ok(())
            }
            Done::NotWanted(scope, why) => {
                self.note(format_args!("{} can't want {scope}: {why}", name(host)));
                Ok(())
            }
        }
    }

    /// An epoch is on the disk before anybody goes by it.
    fn epoch_is_stored(&self, host: Host, scope: &Scope, epoch: Epoch) -> Result<(), Stopped> {
        let stored = self.members[host].disk.fences().get(scope).copied().unwrap_or_default();
        if stored >= epoch {
            return Ok(());
        }
        let what = format!("{} goes by {epoch} of {scope}, {stored} is stored", name(host));
        Err(Broken::new("epochs_are_stored_before_use", what).into())
    }

    /// When a change or read of a host's own cores is given up, on its clock.
    fn patience(&self, host: Host) -> Instant {
        Instant(self.members[host].clock.at(self.now)).plus(RENEW_INTERVAL)
    }

    /// One of a process's cores asks the ledger; gives the request its name.
    fn ask_for(&mut self, host: Host, to: AnswerTo, key: &RecordKey, writes: Option<(u64, String)>) -> OpId {
        self.next_op += 1;
        let request = OpId(self.next_op);
        match &writes {
            Some((expected, value)) => self.history.change(request.0, key.as_str(), *expected, value),
            None => self.history.read(request.0, key.as_str()),
        }
        let asker = Asker::Core { host, life: self.members[host].life, to, value: writes.map(|(_, value)| value) };
        self.requests.insert(request, (key.clone(), asker));
        request
    }

    /// Sets the host's timer anew if it should go off at another time.
    pub fn set_timer(&mut self, host: Host) {
        let now = self.now;
        let member = &mut self.members[host];
        let Some(at) = member.wake() else { return };
        // Never in the same instant again, so that a core which is never content shows as no progress.
        let at = at.max(now + 1);
        let life = member.life;
        let Some(process) = &mut member.process else { return };
        if process.timer != Some(at) {
            process.timer = Some(at);
            self.at(at, Event::Timer { host, life, at });
        }
    }

    fn carry_out(&mut self, host: Host, effect: Effect) -> Result<(), Stopped> {
        match effect {
            Effect::Persist(row) => unreachable!("{row:?} was to be stored before"),
            Effect::Send { to, message } => {
                let Some(to) = self.host(&to) else { return Ok(()) };
                for at in self.network.deliveries(self.now, host, to, &self.swarm, &mut self.rng) {
                    self.at(at, Event::Deliver { to, from: host, message: Box::new(message.clone()) });
                }
                Ok(())
            }
            Effect::Answer { op, answer } => {
                self.note(format_args!("{} answers {op:?}: {answer:?}", name(host)));
                self.answered(op, answer)
            }
            Effect::Joined { mesh } => {
                self.claims_store(host);
                self.note(format_args!("{} belongs to mesh {mesh}", name(host)));
                match self.mesh {
                    Some(one) if one != mesh => {
                        Err(Broken::new("one_mesh", format!("{one} and {mesh} were made")).into())
                    }
                    _ => {
                        self.mesh = Some(mesh);
                        Ok(())
                    }
                }
            }
            Effect::Copied { key, record } => {
                if key.is_mesh() {
                    self.claims_store(host);
                }
                self.note(format_args!("{} holds {key} at version {}", name(host), record.version));
                self.copied(host, &key, &record)
            }
            Effect::RolledBack { text } => {
                self.note(format_args!("{} has stopped: {text}", name(host)));
                if !self.members[host].disk.restored() {
                    let what = format!("{} stopped although its store is whole: {text}", name(host));
                    return Err(Broken::new("only_restored_stores_stop", what).into());
                }
                // The operator reads it and does what it says.
                let after = self.rng.u64(1_000_000..20_000_000);
                let life = self.members[host].life;
                self.at(self.now + after, Event::NewStore { host, life });
                Ok(())
            }
            Effect::Accepted { key, record } => {
                if Scope::of_lease_key(key.as_str()).is_some() {
                    let (key, value) = (key.as_str().to_owned(), record.value.to_string());
                    self.lead(host, leading::Input::Accepted(key, value));
                }
                Ok(())
            }
            Effect::Notice(notice) => {
                self.note(format_args!("{}: {notice:?}", name(host)));
                if let miroir::proto::ledger::Notice::Broken { invariant, key } = notice {
                    return Err(Broken::new(invariant, format!("{} says so of {key}", name(host))).into());
                }
                Ok(())
            }
        }
    }

    /// Every member that runs looks after its store in the mesh's record.
    ///
    /// # Errors
    /// As [`World::run_to`].
    pub fn claim_stores(&mut self) -> Result<(), Stopped> {
        (0..self.members.len()).try_for_each(|host| {
            self.claims_store(host);
            self.run(host)
        })
    }

    /// A member whose store is not the one in the mesh's record says so there, as the binary's does.
    fn claims_store(&mut self, host: Host) {
        let stored = self.members[host].disk.ledger();
        let Some(copy) = stored.copies.get(&RecordKey::mesh()) else { return };
        let Ok(mut record) = MeshRecord::from_json(&copy.value) else { return };
        let (store, version, id) = (stored.store, copy.version, &self.members[host].id);
        let Some(member) = record.members.iter_mut().find(|m| m.id == *id && m.store != store) else { return };
        member.store = store;
        self.put_mesh(host, version, &record);
    }

    /// What a transaction says, before it is on the disk.
    fn look_at_rows(&mut self, host: Host) -> Result<(), Stopped> {
        let member = &self.members[host];
        let stored = member.disk.ledger();
        // Where disks are put back from copies, votes that nobody has heard of yet are forgotten, and rightly so: who has
        // accepted what says nothing of what is chosen. What is told as chosen does, and is looked at in every run.
        let exact = self.put_back[0] == 0;
        let voter = Voter { member: member.id.clone(), store: stored.store };
        let on_disk = |key: &RecordKey| stored.registers.get(key).cloned().unwrap_or_default();
        let mut registers = BTreeMap::new();
        let mut list = stored.list.as_ref().map_or(0, |l| l.number);
        for row in member.under_way() {
            let checked = match row {
                Row::List(new) => {
                    list = new.number;
                    self.ballots.listed(new)
                }
                Row::Reset => {
                    registers.clear();
                    Ok(())
                }
                Row::Promise { key, ballot } => {
                    let register = registers.entry(key).or_insert_with(|| on_disk(key));
                    let old = register.promise.replace(ballot.clone());
                    let accepted = register.accepted.as_ref().map(|(b, _)| b);
                    invariant::promises_never_go_back(key, old.as_ref(), Some(ballot), accepted)
                }
                Row::Accepted { key, promise, ballot, record } => {
                    let register = registers.entry(key).or_insert_with(|| on_disk(key));
                    let old = register.promise.replace(promise.clone());
                    register.accepted = Some((ballot.clone(), record.clone()));
                    invariant::promises_never_go_back(key, old.as_ref(), Some(promise), Some(ballot)).and_then(|()| {
                        if exact { self.ballots.accepted(&voter, list, key, ballot, record) } else { Ok(()) }
                    })
                }
                Row::Copy { key, record } => {
                    self.history.value(key.as_str(), record.version, Some(&record.value))?;
                    invariant::versions_never_go_back(key, stored.copies.get(key), record)
                        .and_then(|()| if exact { self.ballots.told_as_chosen(key, record) } else { Ok(()) })
                }
                _ => Ok(()),
            };
            checked.map_err(|b| Broken::new(b.invariant, format!("{}: {b}", name(host))))?;
        }
        Ok(())
    }

    /// A client asks somebody for something.
    fn request(&mut self) -> Result<(), Stopped> {
        let running: Vec<Host> = (0..self.members.len()).filter(|h| self.members[*h].process.is_some()).collect();
        let Some(&host) = self.rng.choice(&running) else { return Ok(()) };
        if self.rng.u8(..3) == 0 {
            self.order();
        }
        if self.rng.u8(..8) == 0 {
            self.flip(host);
        }
        let key = key(self.rng.usize(..KEYS));
        let change = self.rng.u8(..3) > 0;
        self.ask(host, &key, change)
    }

    /// A client asks this member to read a key or to change it from the version that it heard of last.
    pub fn ask(&mut self, host: Host, key: &RecordKey, change: bool) -> Result<(), Stopped> {
        let (op, deadline) = self.next_request(host);
        let expected = self.heard.get(key).copied().unwrap_or(0);
        let command = if change {
            let value = format!("{{\"by\":{}}}", op.0);
            self.history.change(op.0, key.as_str(), expected, &value);
            let quiet = self.rng.u8(..4) == 0;
            Command::Change(vec![Change { op, key: key.clone(), expected, value: value.into(), quiet, deadline }])
        } else {
            self.history.read(op.0, key.as_str());
            Command::Read(vec![Read { op, key: key.clone(), deadline }])
        };
        self.note(format_args!("client asks {}: {command:?}", name(host)));
        self.requests.insert(op, (key.clone(), Asker::Client));
        self.members[host].hear(Input::Command(command));
        self.run(host)
    }

    /// A new request's name, and until when its client waits, on the member's clock.
    fn next_request(&mut self, host: Host) -> (OpId, Instant) {
        self.next_op += 1;
        (OpId(self.next_op), Instant(self.members[host].clock.at(self.now)).plus(PATIENCE))
    }

    /// The operator changes the mesh's record through this member.
    ///
    /// # Errors
    /// As [`World::run_to`].
    pub fn change_mesh(&mut self, host: Host, expected: u64, record: &MeshRecord) -> Result<(), Stopped> {
        self.put_mesh(host, expected, record);
        self.run(host)
    }

    fn put_mesh(&mut self, host: Host, expected: u64, record: &MeshRecord) {
        let (op, deadline) = self.next_request(host);
        let (key, value) = (RecordKey::mesh(), record.to_json());
        self.history.change(op.0, key.as_str(), expected, &value);
        self.note(format_args!("asked of {}: the mesh record becomes {value}", name(host)));
        self.requests.insert(op, (key.clone(), Asker::Client));
        let change = Change { op, key, expected, value: value.into(), quiet: false, deadline };
        self.members[host].hear(Input::Command(Command::Change(vec![change])));
    }

    fn answered(&mut self, op: OpId, answer: Answer) -> Result<(), Stopped> {
        let Some((key, asker)) = self.requests.remove(&op) else {
            return Err(Broken::new("one_answer_per_request", format!("{op:?} is answered again: {answer:?}")).into());
        };
        if matches!(answer, Answer::NoQuorum | Answer::Refused { .. } | Answer::Conflict { maybe_own: false, .. }) {
            self.history.not_done(op.0)?;
        }
        let heard = match &answer {
            Answer::Changed { version } => {
                self.history.changed(op.0, *version)?;
                self.ballots.changed(&key, *version).map_err(|b| Broken::new(b.invariant, b.to_string()))?;
                match &asker {
                    Asker::Client => self.changes += 1,
                    Asker::Core { value, .. } => {
                        let value = value.as_deref().unwrap_or_default().into();
                        self.agreed(&key, &Versioned { version: *version, announced: *version, value })?;
                    }
                }
                Some(*version)
            }
            Answer::Conflict { current, .. } | Answer::Read { current } => {
                let version = current.as_ref().map_or(0, |c| c.version);
                current.iter().try_for_each(|current| self.agreed(&key, current))?;
                self.history.stands(op.0, version, current.as_ref().map(|c| &*c.value))?;
                if let Some(record) = current.as_ref().filter(|_| self.put_back[0] == 0) {
                    let told = self.ballots.told_as_chosen(&key, record);
                    told.map_err(|b| Broken::new(b.invariant, b.to_string()))?;
                }
                Some(version)
            }
            Answer::Unknown | Answer::NoQuorum | Answer::Refused { .. } => {
                self.history.gone(op.0);
                None
            }
        };
        if let Some(version) = heard {
            let known = self.heard.entry(key).or_default();
            *known = version.max(*known);
        }
        if let Asker::Core { host, life, to, .. } = asker
            && self.members[host].life == life
        {
            match to {
                AnswerTo::Leading(op) => self.lead(host, leading::Input::Answer(op, answer_of(answer))),
                AnswerTo::Operating(asked) => self.operate(host, operating::Input::Answer(asked, answer_of(answer))),
            }
        }
        Ok(())
    }

    /// The number of the member of this name.
    pub fn host(&self, id: &MemberId) -> Option<Host> {
        self.members.iter().position(|m| m.id == *id)
    }

    /// What the newest copy of the mesh's record says.
    pub fn mesh_record(&self) -> Option<MeshRecord> {
        newest_mesh(&self.members)
    }

    /// From now on a host's clock does not count as right for a while.
    pub fn distrust_clock(&mut self, host: Host) {
        self.wrong_until[host] = self.now + WRONG_FOR;
    }

    /// The standing scopes that nobody holds.
    pub fn leaderless(&self) -> Vec<Scope> {
        let holds = |scope: &Scope, m: &Member| {
            let at = Instant(m.clock.at(self.now));
            m.process.as_ref().is_some_and(|p| p.leading.believes(scope, at).is_some())
        };
        let held = |scope: &Scope| self.members.iter().any(|m| holds(scope, m));
        Scope::STANDING.into_iter().filter(|scope| !held(scope)).collect()
    }

    /// Ends everything bad: all links are whole, all processes run, all clocks go on.
    ///
    /// # Errors
    /// As [`World::run_to`].
    pub fn heal(&mut self) -> Result<(), Stopped> {
        self.network.heal();
        (self.swarm.loss_ppm, self.swarm.duplicate_ppm, self.swarm.straggler_ppm) = (0, 0, 0);
        self.swarm.delay_max = self.swarm.delay_max.min(5_000);
        self.swarm.commit_max = self.swarm.commit_max.min(5_000);
        self.note(format_args!("everything is whole from here on"));
        for host in 0..self.members.len() {
            let now = self.now;
            if self.members[host].clock.is_stopped() {
                self.members[host].clock.go_on(now);
                self.wrong_until[host] = now + WRONG_FOR;
            }
            self.members[host].paused = false;
            let joined = self.mesh_record().is_some_and(|r| r.member(&name(host)).is_some());
            if host < self.swarm.members || joined {
                self.start(host)?;
            }
            self.run(host)?;
        }
        Ok(())
    }
}

fn newest_mesh(members: &[Member]) -> Option<MeshRecord> {
    let copies = members.iter().filter_map(|m| m.disk.ledger().copies.get(&RecordKey::mesh()));
    MeshRecord::from_json(&copies.max_by_key(|c| c.version)?.value).ok()
}

fn uid(text: &str) -> IndexUid {
    IndexUid::new(text).expect("a letter is a name")
}

fn chosen(record: &Versioned) -> register::Chosen {
    register::Chosen { version: record.version, value: record.value.clone() }
}

/// The ledger's answer, as its users know it.
fn answer_of(answer: Answer) -> register::Answer {
    let chosen = |current: Option<Versioned>| current.as_ref().map(chosen);
    match answer {
        Answer::Changed { version } => register::Answer::Changed { version },
        Answer::Conflict { current, .. } => register::Answer::Conflict { current: chosen(current) },
        Answer::Read { current } => register::Answer::Read { current: chosen(current) },
        Answer::Unknown => register::Answer::Unknown,
        Answer::NoQuorum | Answer::Refused { .. } => register::Answer::NoQuorum,
    }
}

/// The member with this number.
pub fn name(host: Host) -> MemberId {
    MemberId::new(format!("m{host}")).expect("a letter and a number are a member's name")
}

/// Where it listens.
pub fn address(host: Host) -> String {
    format!("10.0.0.{host}:7781")
}

/// One of the keys that clients change.
pub fn key(number: usize) -> RecordKey {
    RecordKey::new(format!("k{number}")).expect("a letter and a number are a key")
}
