//! The coordinator of all scopes' operations at one member: whose lease is wanted, what is written next, what is run.
//!
//! Inputs are `handle_*`; after each the driver drains [`Operations::poll_effect`], and calls [`Operations::handle_tick`] at
//! [`Operations::next_wake`]. Nothing has to survive a restart: the ledger's record is all. Must not know: how steps are
//! carried out, how the lease is held.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::kind::{Guard, Kind, Outcome, record_key, scope_of_record};
use super::record::{self, Request, RequestError};
use crate::proto::env::{Env, Instant};
use crate::proto::register::{Answer, Change, Chosen, OpId, Read};
use crate::types::limits::{LEASE_SCOPES_MAX, OPERATION_REQUESTS_MAX};
use crate::types::{Epoch, OperationEntry, OperationRecord, OperationState, Progress, Scope};

/// Runs of one phase under one leader before the operation is given up.
const FAILURES_MAX: u32 = 8;
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How often progress within a phase is written to the ledger.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// A change or read without an answer is given up after this.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// A lease that could not be wanted is asked for again after this.
const WANT_AGAIN: Duration = Duration::from_secs(10);

/// Names a request of this process; the answer carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// What the driver does, in the order given.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Give this to the ledger.
    Change(Change),
    /// Read this from the majority.
    Read(Read),
    /// Somebody has to lead the scope: the lease core is told that it is wanted.
    Want(Scope),
    /// Nobody has to any more. The `Stop` before it comes first: orders end before the lease is given back.
    Unwant(Scope),
    /// Run the phase, from what it finds done; every effect asks the guard first. How it ended is told by
    /// [`Operations::handle_finished`].
    Run {
        /// What the run may rely on.
        guard: Guard,
        /// What the phases before have decided.
        extra: serde_json::Value,
    },
    /// End the run; whatever it does from now on is refused by its guard.
    Stop {
        /// The run's.
        guard: Guard,
    },
    /// What became of a request.
    Answered {
        /// The request.
        request: RequestId,
        /// Whether it stands in the ledger now.
        result: Result<(), RequestError>,
    },
    /// This leader has written this: put it into the member's own table, for people.
    Row {
        /// The scope.
        scope: Scope,
        /// The operation as recorded.
        entry: OperationEntry,
    },
}

#[derive(Debug, Clone)]
struct Led {
    epoch: Epoch,
    /// The run under way, and how it ended if that is not recorded yet.
    run: Option<(Guard, Option<(Outcome, String)>)>,
    failures: u32,
    retry_at: Instant,
    /// Progress that is not recorded yet; when it was told, and when it may be written.
    progress: Option<(Progress, Instant)>,
    progress_at: Instant,
}

#[derive(Debug, Clone)]
struct Wrote {
    /// The version that was to be replaced.
    expected: u64,
    value: Arc<str>,
    record: OperationRecord,
}

#[derive(Debug, Clone)]
struct UnderWay {
    op: OpId,
    given: Instant,
    wrote: Option<Wrote>,
    /// Whether the member led the scope when it wrote.
    led: bool,
    /// The request that the change is for.
    request: Option<RequestId>,
}

/// Whether a request may have been carried out by a change of which nobody said what became of it.
#[derive(Debug, Clone)]
enum Sent {
    /// It has not been.
    No,
    /// This change of it may stand in the ledger, or may yet.
    Perhaps { expected: u64, value: Arc<str> },
    /// It may have stood there: other changes have been made since.
    Lost,
}

#[derive(Debug, Clone)]
struct Asked {
    id: RequestId,
    what: Request,
    at: String,
    sent: Sent,
}

impl Asked {
    /// Nobody says what is not certain: that nothing was done of a request of which something may have been.
    fn answered(self, result: Result<(), RequestError>) -> Effect {
        let unsure = result.is_err() && !matches!(self.sent, Sent::No);
        Effect::Answered { request: self.id, result: if unsure { Err(RequestError::Unknown) } else { result } }
    }
}

#[derive(Debug, Clone, Default)]
struct Scoped {
    known: Option<(u64, OperationRecord)>,
    led: Option<Led>,
    wanted: bool,
    /// When to ask again for a lease that could not be wanted.
    want_again: Option<Instant>,
    requests: VecDeque<Asked>,
    under_way: Option<UnderWay>,
    read_first: bool,
    /// What this member has written as leader, if nobody said whether it stands.
    unclear: Option<OperationRecord>,
    not_before: Instant,
}

impl Scoped {
    /// Nobody said what became of a change or read.
    fn unanswered(&mut self, u: UnderWay) {
        self.read_first = true;
        let Some(wrote) = u.wrote else { return };
        if self.is_first(u.request)
            && let Some(asked) = self.requests.front_mut()
        {
            // What was not certain before does not get so by another attempt.
            if !matches!(asked.sent, Sent::Lost) {
                asked.sent = Sent::Perhaps { expected: wrote.expected, value: wrote.value };
            }
        }
        if u.led {
            self.unclear = Some(wrote.record);
        }
    }

    fn is_first(&self, request: Option<RequestId>) -> bool {
        request.is_some() && self.requests.front().map(|asked| asked.id) == request
    }

    /// What a chosen value tells of the first request: its change is this version, or never will be, or nobody can say.
    fn resolve(&mut self, chosen: &Chosen) -> Option<Effect> {
        let asked = self.requests.front_mut()?;
        let Sent::Perhaps { expected, value } = &asked.sent else { return None };
        if chosen.version <= *expected {
            return None;
        }
        let (next, done) = (chosen.version == expected + 1, chosen.value == *value);
        asked.sent = if next { Sent::No } else { Sent::Lost };
        let asked = if next && done { self.requests.pop_front() } else { None };
        asked.map(|asked| asked.answered(Ok(())))
    }

    /// Nobody works on the scope's operations, and nobody asks for it.
    fn is_idle(&self) -> bool {
        let unfinished = self.known.as_ref().is_some_and(|(_, record)| record.current.is_some());
        !unfinished && !self.wanted && self.led.is_none() && self.under_way.is_none() && self.requests.is_empty()
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Operations {
    kinds: Vec<&'static Kind>,
    scopes: BTreeMap<Scope, Scoped>,
    next_op: u64,
    next_request: u64,
    effects: VecDeque<Effect>,
}

impl Operations {
    /// A coordinator that knows these kinds; operations of others are left alone.
    pub fn new(kinds: Vec<&'static Kind>) -> Self {
        Self { kinds, scopes: BTreeMap::new(), next_op: 1, next_request: 1, effects: VecDeque::new() }
    }

    /// What is known of a scope's operations; nothing of those on which nobody works.
    pub fn record(&self, scope: &Scope) -> Option<&OperationRecord> {
        self.scopes.get(scope)?.known.as_ref().map(|(_, record)| record)
    }

    /// What is known of all scopes with work to do.
    pub fn records(&self) -> impl Iterator<Item = (&Scope, &OperationRecord)> {
        self.scopes.iter().filter_map(|(scope, s)| Some((scope, &s.known.as_ref()?.1)))
    }

    /// Whether the effects of a run are still allowed; `believed` is the epoch under which the member holds the scope now.
    pub fn permits(&self, guard: &Guard, believed: Option<Epoch>) -> bool {
        self.record(&guard.scope).is_some_and(|record| guard.permits(believed, record))
    }

    /// The next thing for the driver to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When [`handle_tick`](Self::handle_tick) is due.
    pub fn next_wake(&self) -> Option<Instant> {
        let wake = |s: &Scoped| match (&s.under_way, &s.led) {
            (Some(u), _) => Some(u.given.plus(ANSWER_WITHIN)),
            (None, _) if !s.requests.is_empty() => Some(s.not_before),
            (None, Some(_)) if s.read_first || s.known.is_none() => Some(s.not_before),
            (None, Some(led)) => match &led.run {
                None => s.wanted.then(|| led.retry_at.max(s.not_before)),
                Some((_, Some(_))) => Some(s.not_before),
                Some((_, None)) => led.progress.as_ref().map(|_| led.progress_at.max(s.not_before)),
            },
            (None, None) => None,
        };
        self.scopes.values().flat_map(|s| [wake(s), s.want_again]).flatten().min()
    }

    /// Time has passed.
    pub fn handle_tick(&mut self, env: &mut Env) {
        let scopes: Vec<Scope> = self.scopes.keys().cloned().collect();
        for scope in scopes {
            if let Some(s) = self.scopes.get_mut(&scope)
                && let Some(u) = s.under_way.take_if(|u| u.given.plus(ANSWER_WITHIN) <= env.now)
            {
                s.unanswered(u);
            }
            self.drive(env, &scope);
        }
    }

    /// The member leads the scope from now on.
    pub fn handle_became(&mut self, env: &mut Env, scope: &Scope, epoch: Epoch) {
        let led = Led {
            epoch,
            run: None,
            failures: 0,
            retry_at: env.now,
            progress: None,
            progress_at: env.now.plus(PROGRESS_EVERY),
        };
        self.stop(scope);
        self.scopes.entry(scope.clone()).or_default().led = Some(led);
        self.drive(env, scope);
    }

    /// The lease that was wanted could not be asked for.
    pub fn handle_not_wanted(&mut self, env: &mut Env, scope: &Scope) {
        if let Some(s) = self.scopes.get_mut(scope).filter(|s| s.wanted) {
            s.want_again = Some(env.now.plus(env.jitter(WANT_AGAIN)));
        }
    }

    /// The member does not lead the scope under this epoch any more.
    pub fn handle_lost(&mut self, env: &mut Env, scope: &Scope, epoch: Epoch) {
        if self.scopes.get(scope).and_then(|s| s.led.as_ref()).is_some_and(|led| led.epoch == epoch) {
            self.stop(scope);
            self.drive(env, scope);
        }
    }

    /// Somebody wants something of a scope's operations; `at` is now, for people. The answer is an effect.
    pub fn handle_request(&mut self, env: &mut Env, scope: &Scope, request: Request, at: &str) -> RequestId {
        let id = RequestId(self.next_request);
        self.next_request += 1;
        let room = self.scopes.len() < LEASE_SCOPES_MAX || self.scopes.contains_key(scope);
        if !room || self.scopes.get(scope).is_some_and(|s| s.requests.len() >= OPERATION_REQUESTS_MAX) {
            self.effects.push_back(Effect::Answered { request: id, result: Err(RequestError::Full) });
            return id;
        }
        let s = self.scopes.entry(scope.clone()).or_default();
        s.requests.push_back(Asked { id, what: request, at: at.to_owned(), sent: Sent::No });
        // What this member's copy does not have yet may be what the request goes by: another operation's end, say.
        s.read_first = true;
        self.drive(env, scope);
        id
    }

    /// A run has ended so; `at` is now, for people. Ignored if the run is not the one under way.
    pub fn handle_finished(&mut self, env: &mut Env, guard: &Guard, outcome: Outcome, at: &str) {
        let delay = |failures: u32| (RETRY_FIRST * 2_u32.saturating_pow(failures)).min(RETRY_MAX);
        let Some(s) = self.scopes.get_mut(&guard.scope) else { return };
        let Some(led) = s.led.as_mut().filter(|led| led.run.as_ref().is_some_and(|(g, o)| g == guard && o.is_none()))
        else {
            return;
        };
        if matches!(outcome, Outcome::Failed { retry: true, .. }) && led.failures + 1 < FAILURES_MAX {
            led.retry_at = env.now.plus(env.jitter(delay(led.failures)));
            led.failures += 1;
            led.run = None;
        } else {
            led.run = Some((guard.clone(), Some((outcome, at.to_owned()))));
        }
        self.drive(env, &guard.scope.clone());
    }

    /// How far a run is: so many of `total` units.
    pub fn handle_progress(&mut self, env: &mut Env, guard: &Guard, done: u64, total: u64, unit: &str) {
        let Some(s) = self.scopes.get_mut(&guard.scope) else { return };
        let recorded = s.known.as_ref().and_then(|(_, r)| r.current.as_ref()).map(|op| op.progress.clone());
        let Some(led) = s.led.as_mut().filter(|led| led.run.as_ref().is_some_and(|(g, _)| g == guard)) else { return };
        let mut progress = Progress { done, total, unit: unit.chars().take(32).collect(), rate: 0.0 };
        let before = led.progress.take();
        let (last, since) = before.map_or((recorded.unwrap_or_default(), None), |(p, at)| (p, Some(at)));
        progress.rate = match since {
            // Counts are far below 2^52; the newest stretch weighs a quarter.
            Some(since) if env.now > since && done >= last.done => {
                let now = (done - last.done) as f64 / env.now.since(since).as_secs_f64();
                if last.rate > 0.0 { last.rate * 0.75 + now * 0.25 } else { now }
            }
            _ => last.rate,
        };
        led.progress = Some((progress, env.now));
        self.drive(env, &guard.scope.clone());
    }

    /// A value that the members have agreed on: from the member's copies at the start, a push or a read.
    pub fn handle_chosen(&mut self, env: &mut Env, key: &str, chosen: &Chosen) {
        let Some(scope) = scope_of_record(key) else { return };
        if self.scopes.len() < LEASE_SCOPES_MAX || self.scopes.contains_key(&scope) {
            self.learn(&scope, Some(chosen));
            self.drive(env, &scope);
        }
    }

    /// What became of a change or a read.
    pub fn handle_answer(&mut self, env: &mut Env, op: OpId, answer: Answer) {
        let awaited = |s: &Scoped| s.under_way.as_ref().is_some_and(|u| u.op == op);
        let Some(scope) = self.scopes.iter().find(|(_, s)| awaited(s)).map(|(scope, _)| scope.clone()) else { return };
        let retry = env.now.plus(env.jitter(RETRY_FIRST));
        let s = self.scopes.get_mut(&scope).expect("found above");
        let Some(u) = s.under_way.take() else { return };
        match answer {
            Answer::Changed { version } => {
                if let Some(wrote) = u.wrote {
                    // What has become of it since is another matter.
                    let done = if s.is_first(u.request) { s.requests.pop_front() } else { None };
                    self.effects.extend(done.map(|asked| asked.answered(Ok(()))));
                    self.recorded(&scope, version, wrote.record, u.led);
                }
            }
            Answer::Conflict { current } | Answer::Read { current } => {
                s.read_first = false;
                let unclear = s.unclear.take();
                self.learn(&scope, current.as_ref());
                if unclear.is_some() && unclear.as_ref() == self.record(&scope) {
                    self.show(&scope);
                }
            }
            Answer::Unknown => {
                s.not_before = retry;
                s.unanswered(u);
            }
            Answer::NoQuorum => {
                s.not_before = retry;
                let waiting = s.requests.drain(..).map(|asked| asked.answered(Err(RequestError::NoQuorum)));
                self.effects.extend(waiting);
            }
        }
        self.drive(env, &scope);
    }

    fn recorded(&mut self, scope: &Scope, version: u64, record: OperationRecord, led: bool) {
        self.set(scope, version, record);
        if led {
            self.show(scope);
        }
    }

    /// The newest operation of the scope, written by this member as its leader, is for the member's own table.
    fn show(&mut self, scope: &Scope) {
        let entry = self.record(scope).and_then(|record| record.current.as_ref().or(record.past.last())).cloned();
        if let Some(entry) = entry {
            self.effects.push_back(Effect::Row { scope: scope.clone(), entry });
        }
    }

    fn learn(&mut self, scope: &Scope, chosen: Option<&Chosen>) {
        let version = chosen.map_or(0, |c| c.version);
        if let (Some(chosen), Some(s)) = (chosen, self.scopes.get_mut(scope)) {
            self.effects.extend(s.resolve(chosen));
        }
        match chosen.map_or(Ok(OperationRecord::default()), |c| serde_json::from_str(&c.value)) {
            Ok(record) => self.set(scope, version, record),
            Err(_) => self.leave(scope),
        }
    }

    /// A record that this version of the program can't read is left alone, and its scope with it.
    fn leave(&mut self, scope: &Scope) {
        self.stop(scope);
        let Some(mut s) = self.scopes.remove(scope) else { return };
        if s.wanted && !scope.is_standing() {
            self.effects.push_back(Effect::Unwant(scope.clone()));
        }
        if let Some(u) = s.under_way.take() {
            s.unanswered(u);
        }
        self.effects.extend(s.requests.drain(..).map(|asked| {
            let id = asked.what.id().to_owned();
            asked.answered(Err(RequestError::UnknownKind { id }))
        }));
    }

    fn set(&mut self, scope: &Scope, version: u64, record: OperationRecord) {
        let s = self.scopes.entry(scope.clone()).or_default();
        if s.known.as_ref().is_some_and(|(known, _)| *known >= version) {
            return;
        }
        let place = |r: &OperationRecord| r.current.as_ref().map(|op| (op.id.clone(), op.phase.clone(), op.state));
        let moved = s.known.as_ref().is_none_or(|(_, before)| place(before) != place(&record));
        if let Some(led) = s.led.as_mut().filter(|_| moved) {
            (led.failures, led.retry_at, led.progress) = (0, Instant::default(), None);
        }
        s.known = Some((version, record));
    }

    /// Ends leading, and the run under it.
    fn stop(&mut self, scope: &Scope) {
        let Some(led) = self.scopes.get_mut(scope).and_then(|s| s.led.take()) else { return };
        if let Some((guard, None)) = led.run {
            self.effects.push_back(Effect::Stop { guard });
        }
    }

    /// Does whatever can be done for a scope now. Closes every input.
    fn drive(&mut self, env: &mut Env, scope: &Scope) {
        self.go_on(env, scope);
        // The ledger's copies keep what nobody works on.
        if self.scopes.get(scope).is_some_and(Scoped::is_idle) {
            self.scopes.remove(scope);
        }
    }

    fn go_on(&mut self, env: &mut Env, scope: &Scope) {
        self.end_run_not_called_for(scope);
        self.tell_wanted(scope);
        let now = env.now;
        let Some(s) = self.scopes.get_mut(scope) else { return };
        if s.want_again.take_if(|at| *at <= now).is_some() {
            self.effects.push_back(Effect::Want(scope.clone()));
        }
        if s.under_way.is_some() || (s.requests.is_empty() && s.led.is_none()) || now < s.not_before {
            return;
        }
        let Some((version, record)) = s.known.clone().filter(|_| !s.read_first) else {
            let op = self.ask(now, scope, None, None);
            return self.effects.push_back(Effect::Read(Read { op, key: record_key(scope) }));
        };
        while let Some(asked) = s.requests.pop_front() {
            let result = match record::request(&record, &asked.what, &self.kinds, &asked.at) {
                Ok(Some(new)) => {
                    let request = Some(asked.id);
                    s.requests.push_front(asked);
                    return self.write(now, scope, version, new, false, request);
                }
                Ok(None) => Ok(()),
                Err(e) => Err(e),
            };
            self.effects.push_back(asked.answered(result));
        }
        self.lead(now, scope, version, &record);
    }

    fn lead(&mut self, now: Instant, scope: &Scope, version: u64, record: &OperationRecord) {
        let Some(s) = self.scopes.get_mut(scope) else { return };
        let (Some(led), Some(op)) = (&mut s.led, &record.current) else { return };
        let Some(kind) = self.kinds.iter().find(|k| k.name == op.kind) else { return };
        if record.epoch > led.epoch {
            // Somebody leads after us; our own lease core has not heard of it yet.
            return self.stop(scope);
        }
        if let Some(fenced) = record::fence(record, led.epoch).filter(|_| op.state.is_active()) {
            return self.write(now, scope, version, fenced, false, None);
        }
        if let Some((guard, Some((outcome, at)))) = &led.run {
            let run = (guard.operation.as_str(), guard.phase.as_str(), guard.undo);
            let (op, phase) = (run.0, run.1);
            let came_to = led.progress.as_ref().and_then(|(progress, _)| record::progress(record, op, phase, progress));
            match record::finish_run(came_to.as_ref().unwrap_or(record), kind, run, outcome, at) {
                Some(new) => return self.write(now, scope, version, new, false, None),
                None => led.run = None,
            }
        }
        if let (Some((guard, None)), Some((progress, _))) = (&led.run, &led.progress)
            && now >= led.progress_at
        {
            led.progress_at = now.plus(PROGRESS_EVERY);
            if let Some(new) = record::progress(record, &guard.operation, &guard.phase, progress) {
                return self.write(now, scope, version, new, true, None);
            }
        }
        if led.run.is_none() && op.state.is_active() && now >= led.retry_at {
            let guard = Guard {
                scope: scope.clone(),
                epoch: led.epoch,
                operation: op.id.clone(),
                phase: op.phase.clone(),
                undo: op.state == OperationState::Cancelling,
                version,
            };
            led.run = Some((guard.clone(), None));
            self.effects.push_back(Effect::Run { guard, extra: op.extra.clone() });
        }
        self.tell_wanted(scope);
    }

    /// A run that the record does not call for any more is ended; what one that has ended did is still recorded.
    fn end_run_not_called_for(&mut self, scope: &Scope) {
        let Some(s) = self.scopes.get_mut(scope) else { return };
        let (Some(led), Some((_, record))) = (&mut s.led, &s.known) else { return };
        if let Some((guard, None)) = led.run.take_if(|(guard, done)| done.is_none() && !guard.is_called_for(record)) {
            self.effects.push_back(Effect::Stop { guard });
        }
    }

    fn tell_wanted(&mut self, scope: &Scope) {
        let Some(s) = self.scopes.get_mut(scope) else { return };
        let op = s.known.as_ref().and_then(|(_, record)| record.current.as_ref());
        let op = op.filter(|op| self.kinds.iter().any(|k| k.name == op.kind));
        let unrecorded = s.led.as_ref().is_some_and(|led| matches!(led.run, Some((_, Some(_)))));
        let wanted = op.is_some_and(|op| op.state.is_active() || unrecorded);
        if wanted != s.wanted {
            (s.wanted, s.want_again) = (wanted, None);
            // Standing scopes are held anyway.
            if !scope.is_standing() {
                self.effects.push_back(if wanted {
                    Effect::Want(scope.clone())
                } else {
                    Effect::Unwant(scope.clone())
                });
            }
        }
    }

    fn ask(&mut self, now: Instant, scope: &Scope, wrote: Option<Wrote>, request: Option<RequestId>) -> OpId {
        let op = OpId(self.next_op);
        self.next_op += 1;
        let s = self.scopes.entry(scope.clone()).or_default();
        let led = s.led.is_some();
        s.under_way = Some(UnderWay { op, given: now, wrote, led, request });
        op
    }

    fn write(
        &mut self,
        now: Instant,
        scope: &Scope,
        expected: u64,
        record: OperationRecord,
        quiet: bool,
        request: Option<RequestId>,
    ) {
        let value: Arc<str> = serde_json::to_string(&record).expect("records are always JSON").into();
        let op = self.ask(now, scope, Some(Wrote { expected, value: Arc::clone(&value), record }), request);
        self.effects.push_back(Effect::Change(Change { op, key: record_key(scope), expected, value, quiet }));
    }
}
