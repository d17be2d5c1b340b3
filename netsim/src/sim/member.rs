//! One simulated member: its clock, its disk, and the process that drives the cores as the binary's driver does.
//!
//! A step hears one input, calls the core, drains its effects, and makes all rows durable before anything else of the
//! drain is carried out; a crash may come between any two of these. Must not know: what is checked, and who is cut off.

use std::collections::VecDeque;

use fastrand::Rng;
use miroir::proto::env::{Env, Instant};
use miroir::proto::lease;
use miroir::proto::ledger::{Command, Config, Effect, Ledger, Message, Row};
use miroir::types::{Holder, MemberId, MemberState, MeshRecord, RecordKey};

use super::clock::Clock;
use super::disk::Disk;
use super::leading::{self, Leading, Standing};
use super::operating::{self, Operating};

/// Inputs that wait for a process that is busy or paused; messages beyond are lost, as in full socket buffers.
const INBOX_MAX: usize = 512;

/// What a process hears.
#[derive(Debug)]
pub enum Input {
    /// From another member.
    Message(MemberId, Box<Message>),
    /// Its timer is due.
    Tick,
    /// From whoever uses it.
    Command(Command),
}

/// What is done after the commit of a step.
#[derive(Debug)]
struct Commit {
    rows: Vec<Row>,
    after: Vec<Effect>,
    // Durable, while the process is paused and has not seen it.
    done: bool,
}

/// A running process.
#[derive(Debug)]
pub struct Process {
    /// The core.
    pub ledger: Ledger,
    /// Its leases.
    pub leading: Leading,
    /// Its operations.
    pub operating: Operating,
    // Who belongs to the mesh, by the record of this version.
    members: (u64, Vec<MemberId>),
    rng: Rng,
    inbox: VecDeque<Input>,
    commit: Option<Commit>,
    /// The true time at which it began.
    pub began: u64,
    /// The true time for which its timer is set.
    pub timer: Option<u64>,
}

impl Process {
    /// Brings who belongs to the mesh up to date with the copy of its record.
    fn look_at_mesh(&mut self) {
        let record = self.ledger.copy(&RecordKey::mesh());
        if let Some(copy) = record.filter(|copy| copy.version != self.members.0)
            && let Ok(record) = MeshRecord::from_json(&copy.value)
        {
            let stays = |state| matches!(state, MemberState::Joining | MemberState::Active);
            let members = record.members.into_iter().filter(|m| stays(m.state)).map(|m| m.id).collect();
            self.members = (copy.version, members);
        }
    }
}

/// What a step leads to.
#[derive(Debug)]
pub enum Step {
    /// Nothing to do, or not able to.
    Idle,
    /// Rows are on their way to the disk.
    Committing,
    /// These are to be carried out now.
    Effects(Vec<Effect>),
}

/// A machine with a member on it.
#[derive(Debug)]
pub struct Member {
    /// Its name.
    pub id: MemberId,
    /// Its clock.
    pub clock: Clock,
    /// Its disk.
    pub disk: Disk,
    /// Its process, if it runs.
    pub process: Option<Process>,
    /// Stopped by a signal: it does nothing, and its clock runs on.
    pub paused: bool,
    /// Counts its processes: what was meant for an earlier one is void.
    pub life: u64,
    config: Config,
    leases: lease::Config,
}

impl Member {
    /// A machine on which nothing runs yet.
    pub fn new(config: Config, leases: lease::Config, clock: Clock, disk: Disk) -> Self {
        Self { id: config.member.clone(), clock, disk, process: None, paused: false, life: 0, config, leases }
    }

    /// From its next process on it joins a mesh, and makes none.
    pub fn forget_bootstrap(&mut self) {
        self.config.bootstrap = None;
    }

    /// Starts a process.
    pub fn start(&mut self, now: u64, seed: u64) {
        self.life += 1;
        self.paused = false;
        let stored = self.disk.begin();
        let mut rng = Rng::with_seed(seed);
        let at = Instant(self.clock.at(now));
        let me = Holder { member: self.id.clone(), start: stored.start };
        let ledger = Ledger::recover(self.config.clone(), stored, &mut Env { now: at, rng: &mut rng });
        let leading = Leading::new(me, self.leases.clone(), self.disk.fences(), at);
        let operating = Operating::new(self.leases.ttl_ms);
        let (inbox, members) = (VecDeque::new(), (0, Vec::new()));
        self.process =
            Some(Process { ledger, leading, operating, members, rng, inbox, commit: None, began: now, timer: None });
    }

    /// Ends the process at once. `written`: whether a transaction that was under way reached the disk.
    pub fn crash(&mut self, written: bool) {
        self.life += 1;
        self.paused = false;
        let Some(mut process) = self.process.take().filter(|_| written) else { return };
        if let Some(commit) = process.commit.filter(|c| !c.done) {
            self.disk.commit(commit.rows);
        }
        self.disk.raise(process.leading.committed());
    }

    /// The rows that a crash now may or may not leave on the disk.
    pub fn under_way(&self) -> &[Row] {
        match &self.process {
            Some(Process { commit: Some(Commit { rows, done: false, .. }), .. }) => rows,
            _ => &[],
        }
    }

    /// Something for the process to hear; lost if nobody is there or there is no room.
    pub fn hear(&mut self, input: Input) {
        if let Some(process) = &mut self.process
            && (process.inbox.len() < INBOX_MAX || !matches!(input, Input::Message(..)))
        {
            process.inbox.push_back(input);
        }
    }

    /// Takes one input, if the process can.
    pub fn step(&mut self, now: u64) -> Step {
        let Some(process) = &mut self.process else { return Step::Idle };
        if self.paused {
            return Step::Idle;
        }
        if let Some(commit) = process.commit.take_if(|c| c.done) {
            return Step::Effects(commit.after);
        }
        if process.commit.is_some() {
            return Step::Idle;
        }
        let Some(input) = process.inbox.pop_front() else { return Step::Idle };
        let mut env = Env { now: Instant(self.clock.at(now)), rng: &mut process.rng };
        match input {
            Input::Message(from, message) => process.ledger.handle_message(&mut env, &from, *message),
            Input::Tick => process.ledger.handle_tick(&mut env),
            Input::Command(command) => process.ledger.submit(&mut env, command),
        }
        let (mut rows, mut after) = (Vec::new(), Vec::new());
        while let Some(effect) = process.ledger.poll_effect() {
            match effect {
                Effect::Persist(row) => rows.push(row),
                other => after.push(other),
            }
        }
        if rows.is_empty() {
            return Step::Effects(after);
        }
        process.commit = Some(Commit { rows, after, done: false });
        Step::Committing
    }

    /// Takes one input of the lease core, if the process can.
    pub fn lead(&mut self, now: u64) -> leading::Step {
        let Some(process) = self.process.as_mut().filter(|_| !self.paused) else { return leading::Step::Idle };
        let at = Instant(self.clock.at(now));
        process.look_at_mesh();
        let standing = Standing { members: process.members.1.clone(), fresh: process.ledger.fresh(at) };
        process.leading.step(at, &mut process.rng, &standing)
    }

    /// Takes one input of the operations core, if the process can.
    pub fn operate(&mut self, now: u64) -> Option<Vec<operating::Out>> {
        let process = self.process.as_mut().filter(|_| !self.paused)?;
        process.look_at_mesh();
        let around = operating::Around {
            now: Instant(self.clock.at(now)),
            ledger: &process.ledger,
            leading: &process.leading,
            members: &process.members.1,
        };
        process.operating.step(&mut process.rng, &around)
    }

    /// The epochs under way are on the disk.
    pub fn raised(&mut self) {
        if let Some(process) = &mut self.process {
            self.disk.raise(process.leading.committed());
        }
    }

    /// Its timer went off: whoever is due hears of it.
    pub fn tick(&mut self, now: u64) {
        let Some(process) = &mut self.process else { return };
        let at = Instant(self.clock.at(now));
        if process.ledger.next_wake().is_some_and(|wake| wake <= at) {
            process.inbox.push_back(Input::Tick);
        }
        if process.leading.next_wake().is_some_and(|wake| wake <= at) {
            process.leading.hear(leading::Input::Tick);
        }
        if process.operating.next_wake().is_some_and(|wake| wake <= at) {
            process.operating.hear(operating::Input::Tick);
        }
    }

    /// The transaction under way is on the disk; its rows, to be looked at.
    pub fn committed(&mut self) -> Vec<Row> {
        let Some(Process { commit: Some(commit), .. }) = &mut self.process else { return Vec::new() };
        commit.done = true;
        self.disk.commit(commit.rows.clone());
        std::mem::take(&mut commit.rows)
    }

    /// When the process's timer is due, in true time; who is busy looks at its timer afterwards.
    pub fn wake(&self) -> Option<u64> {
        let process = self.process.as_ref().filter(|_| !self.paused)?;
        let ledger = process.ledger.next_wake().filter(|_| process.commit.is_none());
        let wake = [ledger, process.leading.next_wake(), process.operating.next_wake()].into_iter().flatten().min()?;
        self.clock.when(wake.0)
    }
}
