//! Changes and reads: one round of a key at a time, the others of the key wait in order.
//!
//! A change prepares, takes the value of the highest ballot found, and has the next version accepted; one that finds
//! another version than it expects writes that one back before it tells it, so that what is told is chosen. The proposer
//! that wrote a key last keeps the next ballot promised and skips to the acceptance; that holds for one voter list, and
//! for one try. A read first asks without a promise.
//!
//! Rule: a ballot is drawn once in a process, from one counter for all keys, and used for one value. Must not know: what
//! a key means, except that nobody but the ledger changes the voters in the mesh record.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::base::Base;
use super::effect::{Answer, Config, OpId, Refused};
use super::message::{Item, RoundId};
use super::round::{Accepted, Outcome, Round, Stage};
use crate::proto::env::{Env, Instant};
use crate::types::limits::{LEDGER_OPS_MAX, LEDGER_OPS_PER_KEY_MAX, RECORD_MAX_BYTES};
use crate::types::{Ballot, MeshRecord, RecordKey, Value, Versioned, Voter, VoterList};

/// Whose operation it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The caller's.
    Caller(OpId),
    /// The comparing of copies: this exchange waits for it.
    Copies(RoundId),
    /// The change of voters: this attempt waits for it.
    Voters(RoundId),
    /// The making of the mesh.
    Forming,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    /// Replace the expected version.
    Change { expected: u64, value: Value, quiet: bool },
    /// Tell the value.
    Read,
    /// A full round: the value, or without one the promise, is at a majority of the list afterwards.
    Rewrite,
}

/// One operation.
#[derive(Debug, Clone)]
pub struct Job {
    /// Whose.
    pub origin: Origin,
    /// What.
    pub want: Want,
    /// When to give up.
    pub deadline: Instant,
    /// Ballots at which its own value was sent to be accepted.
    own: BTreeSet<Ballot>,
}

/// An operation that ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Whose.
    pub origin: Origin,
    /// Of which key.
    pub key: RecordKey,
    /// How.
    pub answer: Answer,
    /// What is chosen, as far as that came out.
    pub chosen: Option<Versioned>,
}

/// The operations of one key.
#[derive(Debug, Clone, Default)]
struct Slot {
    jobs: VecDeque<Job>,
    round: Option<Round>,
    /// How many jobs from the front the round serves.
    serves: usize,
    /// Rounds of the front job that came to nothing.
    tries: u32,
    /// The front job needs a full round.
    full: bool,
    wait: Option<Instant>,
}

/// A ballot that a majority of one list has promised together with the acceptance of `record`.
#[derive(Debug, Clone)]
struct Kept {
    ballot: Ballot,
    list: u64,
    at: Ballot,
    record: Versioned,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Proposer {
    slots: BTreeMap<RecordKey, Slot>,
    kept: BTreeMap<RecordKey, Kept>,
    rounds: BTreeMap<RoundId, RecordKey>,
    jobs: usize,
    counter: u64,
    /// Ended operations, to be taken by whoever owns them.
    pub finished: VecDeque<Finished>,
}

impl Job {
    /// A new operation.
    pub fn new(origin: Origin, want: Want, deadline: Instant) -> Self {
        Self { origin, want, deadline, own: BTreeSet::new() }
    }

    /// What it is answered when its time is over.
    fn late(&self) -> Answer {
        if self.own.is_empty() { Answer::NoQuorum } else { Answer::Unknown }
    }
}

impl Proposer {
    /// Takes an operation; its end comes through [`Proposer::finished`].
    pub fn add(&mut self, base: &mut Base, env: &mut Env, key: &RecordKey, job: Job) {
        let too_large = matches!(&job.want, Want::Change { value, .. } if value.len() > RECORD_MAX_BYTES);
        let queued = self.slots.get(key).map_or(0, |s| s.jobs.len());
        let full = self.jobs >= LEDGER_OPS_MAX || queued >= LEDGER_OPS_PER_KEY_MAX;
        if too_large || full {
            let why = if too_large { Refused::TooLarge } else { Refused::Busy };
            self.end(key, job.origin, Answer::Refused { why }, None);
            return;
        }
        self.jobs += 1;
        let slot = self.slots.entry(key.clone()).or_default();
        // What waits for a mesh does not stand in the way of its making.
        let first = job.origin == Origin::Forming && slot.round.is_none();
        if first {
            slot.jobs.push_front(job)
        } else {
            slot.jobs.push_back(job)
        }
        if first || slot.jobs.len() == 1 {
            self.begin(base, env, key);
        }
    }

    /// Counts an answer to one of the rounds.
    pub fn vote(&mut self, base: &mut Base, env: &mut Env, voter: &Voter, under: u64, id: RoundId, item: &Item) {
        if let Item::Higher { promise, .. } = item {
            self.counter = self.counter.max(promise.counter);
        }
        let Some(key) = self.rounds.get(&id).cloned() else { return };
        let Some(round) = self.slots.get_mut(&key).and_then(|s| s.round.as_mut()) else { return };
        let outcome = round.vote(voter, under, item);
        if !round.refused.is_empty() {
            round.refused_at.get_or_insert(env.now);
        }
        match outcome {
            Outcome::Wait => {}
            Outcome::Same(found) => {
                let current = found.map(|(_, record)| record);
                self.finish(&key, Answer::Read { current: current.clone() }, current);
                self.begin(base, env, &key);
            }
            Outcome::Differ => {
                self.stop(&key);
                if let Some(slot) = self.slots.get_mut(&key) {
                    slot.full = true;
                }
                self.begin(base, env, &key);
            }
            Outcome::Promised(found) => {
                let Stage::Prepare { ballot, .. } = &round.stage else { return };
                let ballot = ballot.clone();
                self.stop(&key);
                self.propose(base, env, &key, ballot, found);
            }
            Outcome::Chosen => self.chosen(base, env, &key),
            Outcome::Lost => self.again(base, env, &key),
        }
    }

    /// A newer list: every round under an older one begins again at prepare, and no kept promise is left.
    pub fn relist(&mut self, base: &mut Base, env: &mut Env) {
        self.kept.clear();
        let keys: Vec<_> = self.slots.keys().cloned().collect();
        for key in keys {
            self.stop(&key);
            self.begin(base, env, &key);
        }
    }

    /// Deadlines, unanswered rounds, back-offs that are over.
    pub fn tick(&mut self, base: &mut Base, env: &mut Env) {
        let due = |s: &Slot| next_of(s, &base.config).is_some_and(|at| at <= env.now);
        let keys: Vec<_> = self.slots.iter().filter(|(_, s)| due(s)).map(|(k, _)| k.clone()).collect();
        for key in keys {
            self.expire(&key, env.now);
            let Some(slot) = self.slots.get_mut(&key) else { continue };
            if slot.round.as_ref().is_some_and(|r| due_of(r, &base.config) <= env.now) {
                self.again(base, env, &key);
            } else if slot.round.is_none() && slot.wait.is_none_or(|at| at <= env.now) {
                slot.wait = None;
                self.begin(base, env, &key);
            }
        }
    }

    /// When [`Proposer::tick`] is due.
    pub fn next_wake(&self, config: &Config) -> Option<Instant> {
        self.slots.values().filter_map(|s| next_of(s, config)).min()
    }

    /// Ends everything: this member proposes no more.
    pub fn halt(&mut self) {
        for key in std::mem::take(&mut self.slots) {
            for job in key.1.jobs {
                let answer = job.late();
                self.end(&key.0, job.origin, answer, None);
            }
        }
        self.jobs = 0;
        self.kept.clear();
        self.rounds.clear();
    }

    /// Begins the front job's next round, if nothing stands in the way.
    fn begin(&mut self, base: &mut Base, env: &mut Env, key: &RecordKey) {
        self.expire(key, env.now);
        let Some(slot) = self.slots.get_mut(key) else { return };
        if slot.round.is_some() || slot.wait.is_some_and(|at| at > env.now) {
            return;
        }
        slot.wait = None;
        let (Some(list), Some(job)) = (base.list().cloned(), slot.jobs.front()) else { return };
        let forms = job.origin == Origin::Forming;
        if base.stored.recovering.is_some() || !forms && !base.made() {
            return;
        }
        slot.serves = 1;
        if job.want == Want::Read && !slot.full {
            // All reads that wait now are served by one question.
            slot.serves = slot.jobs.iter().take_while(|j| j.want == Want::Read).count();
            let stage = Stage::Query { found: BTreeMap::new() };
            self.ask(base, env, key, list, stage, |round| Item::Query { round, key: key.clone() });
            return;
        }
        // A ballot that another process of the same start has used must not be drawn.
        if !base.may_vote && !forms {
            return;
        }
        if let Want::Change { .. } = job.want
            && let Some(kept) = self.kept.remove(key)
            && kept.list == list.number
        {
            self.propose(base, env, key, kept.ballot, Some((kept.at, kept.record)));
            return;
        }
        let ballot = self.draw(base, key);
        let stage = Stage::Prepare { ballot: ballot.clone(), promised: BTreeSet::new(), best: None };
        self.ask(base, env, key, list, stage, |round| Item::Prepare { round, key: key.clone(), ballot });
    }

    /// A ballot that was never drawn, above what this member knows for the key.
    fn draw(&mut self, base: &Base, key: &RecordKey) -> Ballot {
        // A kept one would be below.
        self.kept.remove(key);
        let held = base.stored.registers.get(key).and_then(|r| r.promise.as_ref()).map_or(0, |b| b.counter);
        self.counter = self.counter.max(held) + 1;
        Ballot { counter: self.counter, member: base.config.member.clone(), start: base.stored.start }
    }

    fn ask(
        &mut self,
        base: &mut Base,
        env: &Env,
        key: &RecordKey,
        list: Arc<VoterList>,
        stage: Stage,
        item: impl FnOnce(RoundId) -> Item,
    ) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let id = base.round_id();
        self.rounds.insert(id, key.clone());
        base.send_voters(&list, &item(id));
        slot.round = Some(Round::new(id, list, env.now, stage));
    }

    /// With `ballot` promised by a majority and `found` the value of the highest ballot that it had accepted: decides what
    /// is to be accepted.
    fn propose(&mut self, base: &mut Base, env: &mut Env, key: &RecordKey, ballot: Ballot, found: Accepted) {
        let Some(list) = base.list().cloned() else { return };
        let is_caller = |j: &Job| matches!(j.origin, Origin::Caller(_));
        let Some(job) = self.slots.get_mut(key).and_then(|s| s.jobs.front_mut()) else { return };
        let version = found.as_ref().map_or(0, |(_, record)| record.version);
        let finishes_own = found.as_ref().is_some_and(|(at, _)| job.own.contains(at));
        let record = match &job.want {
            Want::Change { expected, value, quiet } if version == *expected && !finishes_own => {
                let found = found.map(|(_, record)| record);
                if key.is_mesh() && is_caller(job) && !keeps_voters(found.as_ref(), value) {
                    let refused = Answer::Refused { why: Refused::Voters };
                    let answer = if job.own.is_empty() { refused } else { Answer::Unknown };
                    self.finish(key, answer, None);
                    self.begin(base, env, key);
                    return;
                }
                let announced = found.filter(|_| *quiet).map_or(version + 1, |f| f.announced);
                let record = Versioned { version: version + 1, announced, value: Arc::clone(value) };
                job.own.insert(ballot.clone());
                Some(record)
            }
            _ => {
                if finishes_own {
                    job.own.insert(ballot.clone());
                }
                found.map(|(_, record)| record)
            }
        };
        let Some(record) = record else {
            // A majority has nothing and accepts nothing below this ballot any more: "no value" is chosen.
            let answer = match &job.want {
                Want::Change { .. } => Answer::Conflict { current: None, maybe_own: !job.own.is_empty() },
                Want::Read | Want::Rewrite => Answer::Read { current: None },
            };
            self.finish(key, answer, None);
            self.begin(base, env, key);
            return;
        };
        let keeps = matches!(job.want, Want::Change { .. });
        let next = keeps.then(|| {
            self.counter = self.counter.max(ballot.counter) + 1;
            Ballot { counter: self.counter, ..ballot.clone() }
        });
        let stage = Stage::Accept {
            ballot: ballot.clone(),
            record: record.clone(),
            next: next.clone(),
            accepted: BTreeSet::new(),
        };
        base.rest_on_votes();
        self.ask(base, env, key, list, stage, |round| Item::Accept { round, key: key.clone(), ballot, record, next });
    }

    /// The value of the front job's round is chosen.
    fn chosen(&mut self, base: &mut Base, env: &mut Env, key: &RecordKey) {
        let Some(round) = self.stop(key) else { return };
        let Stage::Accept { ballot, record, next, .. } = round.stage else { return };
        let Some(job) = self.slots.get(key).and_then(|s| s.jobs.front()) else { return };
        let answer = match &job.want {
            Want::Change { .. } if job.own.contains(&ballot) => Answer::Changed { version: record.version },
            Want::Change { .. } => Answer::Conflict { current: Some(record.clone()), maybe_own: !job.own.is_empty() },
            Want::Read | Want::Rewrite => Answer::Read { current: Some(record.clone()) },
        };
        // Whoever was refused has a rival at this key: the kept ballot would be refused as well.
        if let Some(next) = next
            && round.refused.is_empty()
        {
            let kept = Kept { ballot: next, list: round.list.number, at: ballot, record: record.clone() };
            self.kept.insert(key.clone(), kept);
        }
        base.rest_on_votes();
        self.finish(key, answer, Some(record));
        self.begin(base, env, key);
    }

    /// The round came to nothing: another one with a higher ballot, after a while if that was not the first time.
    fn again(&mut self, base: &mut Base, env: &mut Env, key: &RecordKey) {
        self.stop(key);
        self.kept.remove(key);
        let Some(slot) = self.slots.get_mut(key) else { return };
        slot.tries += 1;
        if slot.tries > 1 {
            let span = base.config.retry_base.saturating_mul(1 << (slot.tries - 2).min(5));
            slot.wait = Some(env.now.plus(env.jitter(span)));
        }
        self.begin(base, env, key);
    }

    /// Drops the round of a key: answers to it count no more.
    fn stop(&mut self, key: &RecordKey) -> Option<Round> {
        let round = self.slots.get_mut(key)?.round.take()?;
        self.rounds.remove(&round.id);
        Some(round)
    }

    /// Answers what the round served.
    fn finish(&mut self, key: &RecordKey, answer: Answer, chosen: Option<Versioned>) {
        self.stop(key);
        let Some(slot) = self.slots.get_mut(key) else { return };
        let served: Vec<_> = slot.jobs.drain(..slot.serves.min(slot.jobs.len())).collect();
        (slot.serves, slot.tries, slot.full, slot.wait) = (0, 0, false, None);
        if slot.jobs.is_empty() {
            self.slots.remove(key);
        }
        self.jobs -= served.len();
        for job in served {
            self.end(key, job.origin, answer.clone(), chosen.clone());
        }
    }

    fn end(&mut self, key: &RecordKey, origin: Origin, answer: Answer, chosen: Option<Versioned>) {
        self.finished.push_back(Finished { origin, key: key.clone(), answer, chosen });
    }

    /// Ends the jobs of a key whose time is over.
    fn expire(&mut self, key: &RecordKey, now: Instant) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let served = slot.serves;
        let mut late = Vec::new();
        for (i, job) in std::mem::take(&mut slot.jobs).into_iter().enumerate() {
            if job.deadline > now {
                slot.jobs.push_back(job);
            } else {
                slot.serves -= usize::from(i < served);
                late.push((i, job));
            }
        }
        if late.first().is_some_and(|(i, _)| *i == 0) {
            // A round belongs to the job at the front; others that it serves ask again.
            (slot.serves, slot.tries, slot.full, slot.wait) = (0, 0, false, None);
            self.stop(key);
        }
        if self.slots.get(key).is_some_and(|s| s.jobs.is_empty()) {
            self.slots.remove(key);
        }
        self.jobs -= late.len();
        for (_, job) in late {
            self.end(key, job.origin, job.late(), None);
        }
    }
}

/// When a round is begun anew.
fn due_of(round: &Round, config: &Config) -> Instant {
    round.due(config.round_timeout, config.retry_base)
}

/// When a slot wants a tick.
fn next_of(slot: &Slot, config: &Config) -> Option<Instant> {
    let deadline = slot.jobs.iter().map(|j| j.deadline).min();
    let round = slot.round.as_ref().map(|r| due_of(r, config));
    [deadline, round, slot.wait].into_iter().flatten().min()
}

/// Whether a caller's new mesh record leaves the voters as they were.
fn keeps_voters(found: Option<&Versioned>, value: &Value) -> bool {
    let voters = |text: &Value| MeshRecord::from_json(text).ok().map(|r| (r.mesh, r.voters, r.voters_state));
    found.and_then(|f| voters(&f.value)).is_some_and(|old| voters(value) == Some(old))
}
