//! The operations core of one simulated process, and the runs of its one kind, alias flips.
//!
//! Every effect of a run is asked for under its guard. Nothing here outlives the process: the ledger's records do. Must not
//! know: the network, what is checked.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use fastrand::Rng;
use miroir::proto::alias::{ALIAS_FLIP, AliasError, AliasFlip, FlipAct, FlipPlan, FlipView};
use miroir::proto::env::{Env, Instant};
use miroir::proto::ledger::Ledger;
use miroir::proto::operation::{Effect, Guard, Operation as _, Operations, Outcome, Request, Step};
use miroir::proto::register::{Answer, Change, Chosen, OpId, Read};
use miroir::types::{Epoch, MemberId, NamesRecord, RecordKey, RecordVersion, Scope};

use super::leading;

/// The record of names.
pub const NAMES: &str = "names";
/// A run that waits for others looks again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What the core hears.
#[derive(Debug)]
pub enum Input {
    /// A copy of the ledger.
    Chosen(String, Chosen),
    /// The ledger's, to the core or to its run.
    Answer(Asked, Answer),
    /// This process leads the scope.
    Became(Scope, Epoch),
    /// It does not any more.
    Lost(Scope, Epoch),
    /// Somebody wants something.
    Request(Scope, Request, String),
    /// A member has the names that it was ordered to have, at this version.
    Confirmed(MemberId, RecordVersion),
    /// Its timer is due.
    Tick,
}

/// Which question of the process an answer is to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// The core's.
    Core(OpId),
    /// A run's.
    Run(OpId),
}

/// What is to be done.
#[derive(Debug)]
pub enum Out {
    /// For the ledger.
    Change(Asked, Change),
    /// For the ledger.
    Read(Asked, Read),
    /// For the lease core.
    Lead(leading::Input),
    /// To a member: have `names` at this version, as the guard's record calls for.
    Order(MemberId, Guard, RecordVersion),
    /// For the trace.
    Note(String),
}

/// A run of one phase.
#[derive(Debug)]
struct Run {
    guard: Guard,
    plan: FlipPlan,
    since: Instant,
    /// What it still has to read from a majority before it begins, last first.
    to_read: Vec<&'static str>,
    /// The names that members have confirmed to it.
    confirmed: BTreeMap<MemberId, RecordVersion>,
    /// What it has asked the ledger.
    asked: Option<OpId>,
    next: Instant,
}

/// What a step needs to know of the rest of the process.
#[derive(Debug)]
pub struct Around<'a> {
    /// Now.
    pub now: Instant,
    /// The ledger's copies.
    pub ledger: &'a Ledger,
    /// What the process takes itself to hold.
    pub leading: &'a leading::Leading,
    /// Active members.
    pub members: &'a [MemberId],
}

/// See the module.
#[derive(Debug)]
pub struct Operating {
    /// The core.
    pub core: Operations,
    inbox: VecDeque<Input>,
    runs: BTreeMap<Scope, Run>,
    next_op: u64,
    ttl_ms: u64,
}

fn names_of(ledger: &Ledger) -> (RecordVersion, NamesRecord) {
    let key = RecordKey::new(NAMES).expect("a word is a key");
    let copy = ledger.copy(&key);
    copy.map_or_else(Default::default, |c| (c.version, serde_json::from_str(&c.value).unwrap_or_default()))
}

impl Operating {
    /// As a process begins.
    pub fn new(ttl_ms: u64) -> Self {
        Self {
            core: Operations::new(vec![&ALIAS_FLIP]),
            inbox: VecDeque::new(),
            runs: BTreeMap::new(),
            next_op: 0,
            ttl_ms,
        }
    }

    /// Something for the core to hear.
    pub fn hear(&mut self, input: Input) {
        self.inbox.push_back(input);
    }

    /// When its timer is due.
    pub fn next_wake(&self) -> Option<Instant> {
        let runs = self.runs.values().filter(|run| run.asked.is_none()).map(|run| run.next);
        self.core.next_wake().into_iter().chain(runs).min()
    }

    /// Takes one input; `None` if there is none.
    pub fn step(&mut self, rng: &mut Rng, around: &Around<'_>) -> Option<Vec<Out>> {
        let input = self.inbox.pop_front()?;
        let mut env = Env { now: around.now, rng };
        match input {
            Input::Chosen(key, chosen) => self.core.handle_chosen(&mut env, &key, &chosen),
            Input::Answer(Asked::Core(op), answer) => self.core.handle_answer(&mut env, op, answer),
            Input::Answer(Asked::Run(op), answer) => self.answered(&mut env, op, &answer),
            Input::Became(scope, epoch) => self.core.handle_became(&mut env, &scope, epoch),
            Input::Lost(scope, epoch) => self.core.handle_lost(&mut env, &scope, epoch),
            Input::Request(scope, request, at) => drop(self.core.handle_request(&mut env, &scope, request, &at)),
            Input::Confirmed(member, version) => {
                for run in self.runs.values_mut() {
                    let known = run.confirmed.entry(member.clone()).or_default();
                    *known = version.max(*known);
                    run.next = env.now;
                }
            }
            Input::Tick => self.core.handle_tick(&mut env),
        }
        let mut outs = Vec::new();
        self.drain(around, &mut outs);
        let due: Vec<Scope> =
            self.runs.iter().filter(|(_, r)| r.asked.is_none() && r.next <= env.now).map(|(s, _)| s.clone()).collect();
        for scope in due {
            self.advance(&mut env, &scope, around, &mut outs);
            self.drain(around, &mut outs);
        }
        Some(outs)
    }

    fn drain(&mut self, around: &Around<'_>, outs: &mut Vec<Out>) {
        while let Some(effect) = self.core.poll_effect() {
            match effect {
                Effect::Change(change) => outs.push(Out::Change(Asked::Core(change.op), change)),
                Effect::Read(read) => outs.push(Out::Read(Asked::Core(read.op), read)),
                Effect::Want(scope) => outs.push(Out::Lead(leading::Input::Want(scope))),
                Effect::Unwant(scope) => outs.push(Out::Lead(leading::Input::Unwant(scope))),
                Effect::Run { guard, extra } => {
                    outs.push(Out::Note(format!("runs {} of {} under {}", guard.phase, guard.operation, guard.epoch)));
                    let Ok(plan) = serde_json::from_value(extra) else { continue };
                    let (since, next) = (around.now, around.now);
                    // Names that this member's copy lacks may be what an earlier leader has decided on; who is listed after
                    // that compares its copies only once it is, and finds them there.
                    let (to_read, confirmed) = (vec!["mesh", NAMES], BTreeMap::new());
                    let run = Run { guard, plan, since, to_read, confirmed, asked: None, next };
                    self.runs.insert(run.guard.scope.clone(), run);
                }
                Effect::Stop { guard } => {
                    outs.push(Out::Note(format!("stops {} of {}", guard.phase, guard.operation)));
                    self.runs.remove(&guard.scope);
                }
                Effect::Answered { result, .. } => outs.push(Out::Note(format!("a request: {result:?}"))),
                Effect::Row { .. } => {}
            }
        }
    }

    /// The ledger has answered a run: what could not be read or written is for the next run to try.
    fn answered(&mut self, env: &mut Env<'_>, op: OpId, answer: &Answer) {
        let Some(run) = self.runs.values_mut().find(|run| run.asked == Some(op)) else { return };
        (run.asked, run.next) = (None, env.now);
        if matches!(answer, Answer::Unknown | Answer::NoQuorum) {
            let guard = run.guard.clone();
            self.runs.remove(&guard.scope);
            let why = "no majority of the voters can be reached".to_owned();
            self.core.handle_finished(env, &guard, Outcome::Failed { why, retry: true }, "now");
        }
    }

    /// Does what a run calls for.
    fn advance(&mut self, env: &mut Env<'_>, scope: &Scope, around: &Around<'_>, outs: &mut Vec<Out>) {
        let Some(run) = self.runs.get_mut(scope) else { return };
        run.next = env.now.plus(LOOK_AGAIN);
        let Scope::AliasFlip(name) = scope else { return };
        if !self.core.permits(&run.guard, around.leading.believes(scope, around.now)) {
            return;
        }
        if let Some(key) = run.to_read.pop() {
            self.next_op += 1;
            let op = OpId(self.next_op);
            run.asked = Some(op);
            outs.push(Out::Read(Asked::Run(op), Read { op, key: key.to_owned() }));
            return;
        }
        let (version, names) = names_of(around.ledger);
        let view = FlipView {
            names: (version, &names),
            confirmed: &run.confirmed,
            active: around.members,
            epoch: run.guard.epoch,
            now: env.now,
            since: run.since,
            at: &run.guard.operation,
            ttl_ms: self.ttl_ms,
        };
        let flip = AliasFlip { name: name.clone() };
        let guard = run.guard.clone();
        let step = match guard.undo {
            true => flip.undo(&guard.phase, &run.plan, &view),
            false => flip.step(&guard.phase, &run.plan, &view),
        };
        let outcome = match step {
            Ok(Step::Do(acts)) => {
                for act in acts {
                    match act {
                        FlipAct::Write { expected, names } => {
                            self.next_op += 1;
                            let op = OpId(self.next_op);
                            run.asked = Some(op);
                            let value = serde_json::to_string(&names).expect("names are JSON").into();
                            let change = Change { op, key: NAMES.to_owned(), expected, value, quiet: false };
                            outs.push(Out::Change(Asked::Run(op), change));
                        }
                        FlipAct::Confirm { to, version } => {
                            outs.extend(to.into_iter().map(|to| Out::Order(to, guard.clone(), version)));
                        }
                    }
                }
                return;
            }
            Ok(Step::Next { phase, extra }) => {
                let extra = serde_json::to_value(extra).expect("a plan is JSON");
                Outcome::Next { phase: phase.to_owned(), extra }
            }
            Ok(Step::Done) => Outcome::Done,
            // Another leader has begun: this one hears of it soon.
            Err(AliasError::Stale { .. }) => return,
            Err(error) => {
                Outcome::Failed { why: error.to_string(), retry: matches!(error, AliasError::NotFound { .. }) }
            }
        };
        self.runs.remove(scope);
        self.core.handle_finished(env, &guard, outcome, "now");
    }
}
