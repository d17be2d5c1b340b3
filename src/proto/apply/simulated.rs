//! A small world for tests: one applier, its store and journal, its node, and the primaries of others. One seed decides
//! everything.
//!
//! The node batches, fails batches whole, is slow, has troubles of its own, restarts, and is put back to earlier times;
//! requests and answers get lost or come late; an operator cancels and deletes tasks; the process ends between any two
//! effects, with its store done or not. Rule: nothing here helps the applier; it only sees what a driver sees.

mod data;
mod driver;
mod node;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use self::data::Journal;
use self::node::{Node, Work};
use super::effect::{Answer, Config, Page, Probed, Request, Stored};
use super::verdict::{Flaw, Outcome};
use super::{Applier, TaskRef};
use crate::proto::env::{Env, Instant};
use crate::proto::journal::Kind;
use crate::proto::journal::log::Bounds;
use crate::types::ShardId;

/// How unkind the world is, in thousandths of each occasion.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// A request never reaches the node, or its answer never comes.
    pub lost: u32,
    /// A request reaches the node after it was given up.
    pub late: u32,
    /// The process, at each input.
    pub crash: u32,
    /// The node restarts, at each of its batches; of these, `put_back` go back to an earlier time.
    pub restart: u32,
    pub put_back: u32,
    /// Of restarts: the node dies when it has done a batch and not noted it.
    pub repeat: u32,
    /// Nobody tells of a restart.
    pub unseen: u32,
    /// The node's own trouble, at each batch.
    pub trouble: u32,
    /// An operator cancels what waits, at each batch.
    pub cancel: u32,
    /// The node deletes all ended tasks, at each batch.
    pub prune: u32,
    /// The journal forgets what is applied, at each batch.
    pub trim: u32,
    /// A page can't be read.
    pub unread: u32,
}

#[derive(Debug, Clone)]
pub(super) enum Event {
    Start,
    Up { process: u64 },
    Tick { process: u64 },
    Heads { process: u64, shard: ShardId, ticket: u64, from: u64, entries: usize },
    Receive { process: u64, request: Request },
    Answer { process: u64, note: u64, answer: Answer },
    Page { process: u64, ticket: u64, page: Option<Page> },
    Probed { process: u64, ticket: u64, probed: Probed },
    Batch { life: u64 },
    Verdict { shard: ShardId, seq: u64, asked: Option<u64> },
    Copied { process: u64, shard: ShardId, task: TaskRef, at: u64 },
    Took { process: u64, shard: ShardId, task: TaskRef },
    NotTaken { process: u64, shard: ShardId },
    Commit,
}

#[derive(Debug)]
pub struct World {
    pub seed: u64,
    pub now: Instant,
    pub rng: fastrand::Rng,
    pub config: Config,
    pub faults: Faults,
    pub node: Node,
    pub journal: Journal,
    pub stored: Stored,
    pub failed: BTreeMap<(ShardId, u64), Flaw>,
    /// Shards whose primary is another member.
    pub followed: BTreeSet<ShardId>,
    process: Option<Applier>,
    processes: u64,
    /// Requests of this process that are not answered.
    asking: BTreeSet<u64>,
    /// Requests may come after they were given up, so something may be under way that nobody knows of.
    comes_late: bool,
    /// The node was put back and the process does not know it.
    deceived: bool,
    /// When that was, and when the last look at the node's tasks began.
    put_back: Instant,
    looked: Instant,
    /// What is served may be served.
    trusted: bool,
    queue: BTreeMap<(Instant, u64), Event>,
    events: u64,
    tick_at: Option<Instant>,
    /// No more entries come.
    pub quiet: bool,
    pub counts: BTreeMap<&'static str, u64>,
    pub trace: bool,
}

impl World {
    pub fn new(seed: u64, shards: u16, faults: Faults) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let config = Config {
            payload: Bounds { entries: rng.usize(1..40), bytes: rng.usize(20..400) },
            under_way: rng.usize(1..6),
            heads: rng.usize(16..40),
            heads_total: 64,
            history: rng.usize(3..30),
            page: rng.u32(2..20),
            // Without tags nobody can tell a late request from another.
            tags: faults.late > 0 || rng.bool(),
            // With it fewer requests are under way at once.
            gather: if seed.is_multiple_of(4) { Duration::from_millis(5) } else { Duration::ZERO },
            settle: Duration::from_millis(500),
            retry_max: Duration::from_secs(2),
            behind: 50,
            ..Config::default()
        };
        let followed = (0..shards).map(ShardId).filter(|_| rng.bool()).collect();
        let mut world = Self {
            seed,
            now: Instant(1_000_000),
            config,
            faults,
            node: Node::new(rng.fork()),
            journal: Journal::default(),
            stored: Stored::default(),
            failed: BTreeMap::new(),
            followed,
            process: None,
            processes: 0,
            asking: BTreeSet::new(),
            comes_late: faults.late > 0,
            deceived: false,
            put_back: Instant(0),
            looked: Instant(0),
            trusted: false,
            queue: BTreeMap::new(),
            events: 0,
            tick_at: None,
            quiet: false,
            counts: BTreeMap::new(),
            trace: false,
            rng,
        };
        for shard in (0..shards).map(ShardId) {
            world.stored.lanes.insert(shard, super::effect::LaneRow::default());
            world.journal.open(shard);
        }
        world.at(0, Event::Start);
        world.at(1_000, Event::Commit);
        world
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn chance(&mut self, thousandths: u32) -> bool {
        self.rng.u32(0..1_000) < thousandths
    }

    /// In so many microseconds.
    pub(super) fn at(&mut self, micros: u64, event: Event) {
        self.events += 1;
        self.queue.insert((self.now.plus(Duration::from_micros(micros)), self.events), event);
    }

    /// Lets the world go on until `until`, or until nothing is left to happen.
    pub fn run(&mut self, until: Duration) {
        let end = Instant(1_000_000).plus(until);
        while let Some(entry) = self.queue.first_entry().filter(|e| e.key().0 <= end) {
            let ((now, _), event) = entry.remove_entry();
            self.now = now;
            if self.trace {
                eprintln!("{:>9} {event:?}", now.0 / 1000);
            }
            self.happen(event);
        }
        self.now = end;
    }

    /// No faults any more, no more entries: everything has to be applied in the end.
    pub fn heal(&mut self) {
        self.faults = Faults::default();
        self.quiet = true;
        self.node.healthy = true;
    }

    fn happen(&mut self, event: Event) {
        let alive = |process: u64, world: &Self| world.process.is_some() && world.processes == process;
        match event {
            Event::Start => self.start(),
            Event::Commit => self.commit(),
            Event::Batch { life } => self.batch(life),
            Event::Receive { process, request } => self.receive(process, &request),
            Event::Verdict { shard, seq, asked } if asked.is_none_or(|process| alive(process, self)) => {
                self.tell(shard, seq, asked.is_some());
            }
            Event::Tick { process } if alive(process, self) => {
                self.tick_at = None;
                self.input(|core, env| core.handle_tick(env));
            }
            Event::Up { process } if alive(process, self) => self.input(|core, env| core.handle_node(env, true)),
            Event::Heads { process, shard, ticket, from, entries } if alive(process, self) => {
                let failed = |seq| self.failed.contains_key(&(shard, seq));
                let heads = self.journal.heads(shard, from, entries, failed);
                self.input(|core, env| core.handle_heads(env, shard, ticket, heads));
            }
            Event::Answer { process, note, answer } if alive(process, self) => {
                self.asking.remove(&note);
                self.input(|core, env| core.handle_answered(env, note, answer));
            }
            Event::Page { process, ticket, page } if alive(process, self) => match page {
                Some(page) => self.input(|core, env| core.handle_page(env, ticket, page)),
                None => self.input(|core, env| core.handle_unread(env, ticket)),
            },
            Event::Probed { process, ticket, probed } if alive(process, self) => {
                self.input(|core, env| core.handle_probed(env, ticket, probed));
            }
            Event::Copied { process, shard, task, at } if alive(process, self) => match self.node.ended(&task) {
                Some(true) => self.input(|core, env| core.handle_shard(env, shard, at, Some(task))),
                // Put back meanwhile: once more.
                None => self.copy(shard),
                Some(false) => self.at(5_000, Event::Copied { process, shard, task, at }),
            },
            Event::Took { process, shard, task } if alive(process, self) => match self.node.ended(&task) {
                Some(true) => self.input(|core, env| core.handle_taken(env, shard, Some(task))),
                None => self.input(|core, env| core.handle_taken(env, shard, None)),
                Some(false) => self.at(5_000, Event::Took { process, shard, task }),
            },
            Event::NotTaken { process, shard } if alive(process, self) => {
                self.input(|core, env| core.handle_taken(env, shard, None));
            }
            _ => {}
        }
    }

    fn start(&mut self) {
        self.processes += 1;
        self.asking.clear();
        self.tick_at = None;
        self.trusted = false;
        let (config, stored) = (self.config.clone(), self.stored.clone());
        let mut env = Env { now: self.now, rng: &mut self.rng };
        self.process = Some(Applier::recover(&mut env, config, stored));
        let shards: Vec<_> = self.stored.lanes.keys().copied().collect();
        self.drain();
        for shard in shards {
            let (primary, to) = (!self.followed.contains(&shard), self.journal.committed(shard));
            self.input(|core, env| core.handle_reign(env, shard, primary));
            self.input(|core, env| core.handle_committed(env, shard, to));
        }
        let process = self.processes;
        self.at(3_000, Event::Up { process });
    }

    /// One step of the driver.
    pub(super) fn input(&mut self, input: impl FnOnce(&mut Applier, &mut Env)) {
        let Some(core) = &mut self.process else { return };
        let mut env = Env { now: self.now, rng: &mut self.rng };
        input(core, &mut env);
        self.drain();
    }

    /// New entries are committed.
    fn commit(&mut self) {
        if self.quiet {
            return;
        }
        let shards: Vec<_> = self.stored.lanes.keys().copied().collect();
        for _ in 0..self.rng.usize(1..6) {
            let shard = shards[self.rng.usize(..shards.len())];
            let followed = self.followed.contains(&shard);
            let to = self.journal.append(&mut self.rng, shard, followed, self.now);
            let bad = self.journal.entry(shard, to).primary_bad;
            if followed && bad {
                for _ in 0..3 {
                    let when = self.rng.u64(1_000..3_000_000);
                    self.at(when, Event::Verdict { shard, seq: to, asked: None });
                }
            }
            self.input(|core, env| core.handle_committed(env, shard, to));
        }
        let pause = if self.chance(50) { 800_000 } else { self.rng.u64(1_000..30_000) };
        self.at(pause, Event::Commit);
    }

    /// The primary's verdict comes.
    fn tell(&mut self, shard: ShardId, seq: u64, asked: bool) {
        let Some(applied) = self.process.as_ref().and_then(|core| core.applied(shard)) else {
            // Told until somebody hears it.
            return self.at(200_000, Event::Verdict { shard, seq, asked: None });
        };
        let outcome = match self.journal.entry(shard, seq).primary_bad {
            true => Outcome::Failed(Flaw::new("invalid_document_geo_field", "as the primary says")),
            false => Outcome::Applied,
        };
        let known = seq <= applied && self.failed.contains_key(&(shard, seq));
        if !known && (asked || outcome != Outcome::Applied) {
            self.input(|core, env| core.handle_verdict(env, shard, seq, outcome));
        }
    }

    /// The state in which everything has to be in the end.
    pub fn check_end(&self) {
        let core = self.process.as_ref().expect("it lives after the healing");
        for shard in self.stored.lanes.keys() {
            let to = self.journal.committed(*shard);
            let seed = self.seed;
            assert_eq!(core.applied(*shard), Some(to), "seed {seed}: shard {shard} is not applied: {core:#?}");
            assert_eq!(
                self.node.documents(*shard),
                self.journal.state(*shard, to),
                "seed {seed}: shard {shard} differs"
            );
            for seq in 1..=to {
                let entry = self.journal.entry(*shard, seq);
                let failed = self.failed.contains_key(&(*shard, seq));
                let known = self.node.has_copy_of(*shard) >= seq;
                assert!(
                    failed == entry.is_failed() || known && !failed,
                    "seed {seed}: verdict on {shard}/{seq}: {failed}"
                );
            }
        }
        assert!(core.is_trusted() && core.is_idle(), "seed {}", self.seed);
    }
}

/// What the node is to do for a request, out of the journal.
pub(super) fn work_of(journal: &Journal, request: &Request) -> Work {
    let mut entries = Vec::new();
    for span in &request.spans {
        for seq in span.first..=span.last {
            let entry = journal.entry(span.shard, seq);
            if entry.kind != Kind::Empty && !request.without.contains(&(span.shard, seq)) {
                assert_eq!(entry.kind, request.kind, "one kind in one request");
                entries.push((span.shard, seq, entry.clone()));
            }
        }
    }
    Work::Entries(entries)
}
