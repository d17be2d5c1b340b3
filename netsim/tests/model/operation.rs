//! The operations' core as a model: two members, one scope with one operation of three phases, and its record.
//!
//! Who leads is anybody's guess: a member may be told at any time that it leads, under the next epoch, and the one before
//! hears of that at any later time, so that both go on meanwhile. Nothing arrives in order, or has to arrive; pushes may
//! come twice; of a change or a read its sender may be told that nobody knows what became of it, and it takes effect later
//! all the same. A run may end its phase at any time, whether or not it is still called for.
//!
//! | name | holds |
//! | --- | --- |
//! | `phases_never_go_back` | from one version of the record to the next its epoch and its operation's phase only go on; a finished operation is not gone on with |
//! | `a_phase_is_entered_once` | an operation's history names no phase twice |
//! | `a_phase_is_run_as_recorded` | whoever runs a phase under its guard knows a record, chosen at some time, that calls for it under its own epoch |

use std::sync::Arc;

use miroir::proto::env::{Env, Instant};
use miroir::proto::operation::{Effect, Guard, Kind, Operations, Outcome, Request, record_key};
use miroir::proto::register::{Answer, Change, Chosen, OpId, Read};
use miroir::types::{Epoch, OperationRecord, OperationState, Scope};
use stateright::{Model, Property};

use super::table::{Id, Memo, Table};

static STEPS: Kind = Kind { name: "steps", phases: &["a", "b", "c"], undoable: &["a"], destructive: &[] };
const SCOPE: Scope = Scope::Ilm;
const MEMBERS: usize = 2;

/// How often what may happen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Times that a member comes to lead.
    pub leads: u8,
    /// Changes and reads of which their sender is told that nobody knows what became of them.
    pub unknown: u8,
    /// Pushes that come twice.
    pub repeats: u8,
    /// Times that a timer goes off.
    pub ticks: u8,
    /// Processes killed and started again.
    pub crashes: u8,
    /// Times that somebody wants the operation undone.
    pub cancels: u8,
}

#[derive(Debug, Clone)]
struct Node {
    core: Operations,
    now: Instant,
    led: Option<Epoch>,
    run: Option<Guard>,
    /// The newest value that it has been told.
    copy: Option<Chosen>,
}

#[derive(Debug, Clone)]
enum Letter {
    Change(Change),
    Read(Read),
    Answer(OpId, Answer),
    Push(Chosen),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Input {
    Letter(Id),
    Lead(u64),
    Lost,
    Finish,
    Tick,
    Crash,
    Begin,
    Cancel,
}

#[derive(Debug)]
struct Step {
    node: Id,
    sent: Vec<Id>,
    wrong: Option<String>,
}

/// One state: parts by their numbers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    nodes: Vec<Id>,
    register: Id,
    /// Letters under way: whose they are (who sent a request, or gets anything else), and whether they are requests.
    posts: Vec<(u8, Id, bool)>,
    epoch: u64,
    /// Somebody who led no more has written in vain.
    in_vain: bool,
    broken: Option<Id>,
    budget: Budget,
}

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A request takes effect, or anything else arrives; `again`: and will once more.
    Arrive { at: usize, letter: Id, again: bool },
    /// The sender of a request is told that nobody knows what became of it, which is still on its way.
    Unknown { at: usize, letter: Id },
    /// Whatever else happens to a member.
    Member { node: usize, what: What },
}

/// See [`Action`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// It leads from now on.
    Lead,
    /// It hears that it leads no more.
    Lost,
    /// Its run has completed its phase.
    Finish,
    /// Its timer goes off.
    Tick,
    /// Its process ends, and another begins.
    Crash,
    /// It is asked to undo the operation.
    Cancel,
}

/// The model.
#[derive(Debug)]
pub struct Operating {
    budget: Budget,
    nodes: Table<Node>,
    letters: Table<Letter>,
    registers: Table<Option<Chosen>>,
    wrongs: Table<String>,
    steps: Memo<(Id, Input), Arc<Step>>,
}

fn record(chosen: Option<&Chosen>) -> OperationRecord {
    chosen.map(|c| serde_json::from_str(&c.value).expect("only the core writes it")).unwrap_or_default()
}

impl Operating {
    /// A model within this budget.
    pub fn new(budget: Budget) -> Self {
        Self {
            budget,
            nodes: Table::new(&[]),
            letters: Table::new(&[]),
            registers: Table::new(&[]),
            wrongs: Table::new(&[]),
            steps: Memo::default(),
        }
    }

    /// What is broken in a state.
    pub fn broken(&self, state: &State) -> Option<String> {
        state.broken.map(|id| String::clone(&self.wrongs.get(id)))
    }

    /// Actions for people.
    pub fn told(&self, actions: &[Action]) -> String {
        let line = |action: &Action| match action {
            Action::Arrive { letter, .. } | Action::Unknown { letter, .. } => {
                format!("{action:?}: {:?}", self.letters.get(*letter))
            }
            Action::Member { .. } => format!("{action:?}"),
        };
        actions.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    fn step(&self, node: Id, input: Input) -> Arc<Step> {
        self.steps.of((node, input), || Arc::new(self.work_out(node, input)))
    }

    fn work_out(&self, id: Id, input: Input) -> Step {
        let mut node = Node::clone(&self.nodes.get(id));
        let mut rng = fastrand::Rng::with_seed(1);
        if input == Input::Tick {
            node.now = node.core.next_wake().unwrap_or(node.now).max(node.now);
        }
        let env = &mut Env { now: node.now, rng: &mut rng };
        let core = &mut node.core;
        let operation = || record(node.copy.as_ref()).current.map(|op| op.id).unwrap_or_default();
        match input {
            Input::Letter(letter) => match Letter::clone(&self.letters.get(letter)) {
                Letter::Answer(op, answer) => {
                    if let Answer::Conflict { current: Some(c) } | Answer::Read { current: Some(c) } = &answer {
                        learn(&mut node.copy, c);
                    }
                    core.handle_answer(env, op, answer);
                }
                Letter::Push(chosen) => {
                    learn(&mut node.copy, &chosen);
                    core.handle_chosen(env, &record_key(&SCOPE), &chosen);
                }
                Letter::Change(_) | Letter::Read(_) => unreachable!("these take effect in the register"),
            },
            Input::Lead(epoch) => {
                let epoch = Epoch::new(epoch).expect("a small number");
                node.led = Some(epoch);
                core.handle_became(env, &SCOPE, epoch);
            }
            Input::Lost => {
                if let Some(epoch) = node.led.take() {
                    core.handle_lost(env, &SCOPE, epoch);
                }
            }
            Input::Finish => {
                if let Some(guard) = node.run.take() {
                    let next = STEPS.place(&guard.phase).and_then(|at| STEPS.phases.get(at + 1));
                    let outcome = match next {
                        Some(next) if !guard.undo => {
                            Outcome::Next { phase: (*next).to_owned(), extra: serde_json::Value::Null }
                        }
                        _ => Outcome::Done,
                    };
                    core.handle_finished(env, &guard, outcome, "");
                }
            }
            Input::Tick => core.handle_tick(env),
            Input::Crash => {
                *core = Operations::new(vec![&STEPS]);
                (node.led, node.run) = (None, None);
                if let Some(chosen) = &node.copy {
                    core.handle_chosen(env, &record_key(&SCOPE), chosen);
                }
            }
            Input::Begin => {
                let request = Request::Begin { id: "o".to_owned(), kind: &STEPS, extra: serde_json::Value::Null };
                core.handle_request(env, &SCOPE, request, "");
            }
            Input::Cancel => {
                let request = Request::Cancel { id: operation() };
                core.handle_request(env, &SCOPE, request, "");
            }
        }
        let (sent, wrong) = self.drain(&mut node);
        Step { node: self.nodes.id(node), sent, wrong }
    }

    fn drain(&self, node: &mut Node) -> (Vec<Id>, Option<String>) {
        let (mut sent, mut wrong) = (Vec::new(), None);
        while let Some(effect) = node.core.poll_effect() {
            match effect {
                Effect::Change(change) => sent.push(self.letters.id(Letter::Change(change))),
                Effect::Read(read) => sent.push(self.letters.id(Letter::Read(read))),
                Effect::Run { guard, .. } => {
                    if !node.core.permits(&guard, node.led) {
                        wrong = Some(format!("a_phase_is_run_as_recorded is broken: {guard:?} under {:?}", node.led));
                    }
                    node.run = Some(guard);
                }
                Effect::Stop { guard } => drop(node.run.take_if(|run| *run == guard)),
                _ => {}
            }
        }
        (sent, wrong)
    }

    fn member(&self, state: &mut State, n: usize, input: Input) {
        let step = self.step(state.nodes[n], input);
        state.nodes[n] = step.node;
        let whose = u8::try_from(n).expect("two members");
        state.posts.extend(step.sent.iter().map(|letter| (whose, *letter, true)));
        state.posts.sort_unstable();
        if let Some(wrong) = &step.wrong {
            state.broken = Some(self.wrongs.id(wrong.clone()));
        }
    }

    /// A request takes effect.
    fn takes_effect(&self, state: &mut State, whose: u8, letter: Id) {
        let now = Option::<Chosen>::clone(&self.registers.get(state.register));
        let (op, answer) = match Letter::clone(&self.letters.get(letter)) {
            Letter::Read(read) => (read.op, Answer::Read { current: now }),
            Letter::Change(change) if now.as_ref().map_or(0, |c| c.version) == change.expected => {
                let new = Chosen { version: change.expected + 1, value: change.value };
                if let Err(why) = follows(&record(now.as_ref()), &record(Some(&new))) {
                    state.broken = Some(self.wrongs.id(why));
                }
                let push = self.letters.id(Letter::Push(new.clone()));
                state.posts.extend((0..2_u8).filter(|m| *m != whose).map(|m| (m, push, false)));
                state.register = self.registers.id(Some(new));
                (change.op, Answer::Changed { version: change.expected + 1 })
            }
            Letter::Change(change) => {
                let old: OperationRecord = serde_json::from_str(&change.value).expect("the core wrote it");
                state.in_vain |= old.epoch < record(now.as_ref()).epoch;
                (change.op, Answer::Conflict { current: now })
            }
            Letter::Answer(..) | Letter::Push(_) => unreachable!("no requests"),
        };
        state.posts.push((whose, self.letters.id(Letter::Answer(op, answer)), false));
        state.posts.sort_unstable();
    }
}

fn learn(copy: &mut Option<Chosen>, chosen: &Chosen) {
    if copy.as_ref().is_none_or(|c| c.version < chosen.version) {
        *copy = Some(chosen.clone());
    }
}

/// Whether a record may come right after another.
fn follows(earlier: &OperationRecord, later: &OperationRecord) -> Result<(), String> {
    let broken = |why: &str| Err(format!("phases_never_go_back is broken: {why}: {earlier:?}, then {later:?}"));
    if later.epoch < earlier.epoch {
        return broken("an epoch goes back");
    }
    let newest = later.current.as_ref().or(later.past.last());
    let phases: Vec<&str> = newest.iter().flat_map(|op| &op.history).map(|h| h.phase.as_str()).collect();
    if let Some(twice) = STEPS.phases.iter().find(|phase| phases.iter().filter(|p| p == phase).count() > 1) {
        return Err(format!("a_phase_is_entered_once is broken for {twice}: {later:?}"));
    }
    let Some(new) = &later.current else { return Ok(()) };
    if earlier.past.iter().any(|op| op.id == new.id) {
        return broken("a finished operation goes on");
    }
    match &earlier.current {
        Some(old) if STEPS.place(&new.phase) < STEPS.place(&old.phase) => broken("a phase goes back"),
        Some(old) if old.state == OperationState::Cancelling && new.state != OperationState::Cancelling => {
            broken("what is undone is gone on with")
        }
        _ => Ok(()),
    }
}

impl Model for Operating {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let node =
            || Node { core: Operations::new(vec![&STEPS]), now: Instant(1_000_000), led: None, run: None, copy: None };
        let mut state = State {
            nodes: (0..MEMBERS).map(|_| self.nodes.id(node())).collect(),
            register: self.registers.id(None),
            posts: Vec::new(),
            epoch: 0,
            in_vain: false,
            broken: None,
            budget: self.budget,
        };
        self.member(&mut state, 0, Input::Begin);
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.broken.is_some() {
            return;
        }
        let budget = &state.budget;
        for (at, (_, letter, request)) in state.posts.iter().enumerate() {
            if at > 0 && state.posts[at - 1] == state.posts[at] {
                continue;
            }
            let letter = *letter;
            actions.push(Action::Arrive { at, letter, again: false });
            if budget.repeats > 0 && matches!(*self.letters.get(letter), Letter::Push(_)) {
                actions.push(Action::Arrive { at, letter, again: true });
            }
            if budget.unknown > 0 && *request {
                actions.push(Action::Unknown { at, letter });
            }
        }
        for node in 0..MEMBERS {
            let n = self.nodes.get(state.nodes[node]);
            let wanted = record(n.copy.as_ref()).current.is_some();
            let may = [
                (What::Lead, budget.leads > 0 && wanted && n.led.is_none()),
                (What::Lost, n.led.is_some_and(|epoch| epoch.number() < state.epoch)),
                (What::Finish, n.run.is_some()),
                (What::Tick, budget.ticks > 0 && n.core.next_wake().is_some()),
                (What::Crash, budget.crashes > 0),
                (What::Cancel, budget.cancels > 0 && wanted),
            ];
            actions.extend(may.into_iter().filter(|(_, may)| *may).map(|(what, _)| Action::Member { node, what }));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Arrive { at, letter, again } => {
                let (whose, _, request) = state.posts[at];
                if again {
                    state.budget.repeats -= 1;
                } else {
                    state.posts.remove(at);
                }
                match request {
                    true => self.takes_effect(&mut state, whose, letter),
                    false => self.member(&mut state, whose.into(), Input::Letter(letter)),
                }
            }
            Action::Unknown { at, letter } => {
                state.budget.unknown -= 1;
                let op = match &*self.letters.get(letter) {
                    Letter::Change(change) => change.op,
                    Letter::Read(read) => read.op,
                    Letter::Answer(..) | Letter::Push(_) => unreachable!("no requests"),
                };
                let answer = self.letters.id(Letter::Answer(op, Answer::Unknown));
                self.member(&mut state, last.posts[at].0.into(), Input::Letter(answer));
            }
            Action::Member { node, what } => {
                let input = match what {
                    What::Lead => {
                        state.budget.leads -= 1;
                        state.epoch += 1;
                        Input::Lead(state.epoch)
                    }
                    What::Lost => Input::Lost,
                    What::Finish => Input::Finish,
                    What::Tick => {
                        state.budget.ticks -= 1;
                        Input::Tick
                    }
                    What::Crash => {
                        state.budget.crashes -= 1;
                        Input::Crash
                    }
                    What::Cancel => {
                        state.budget.cancels -= 1;
                        Input::Cancel
                    }
                };
                self.member(&mut state, node, input);
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing is broken", |_, state: &State| state.broken.is_none()),
            Property::sometimes(
                "the operation is done, begun and ended by two leaders",
                |model: &Self, state: &State| {
                    let record = record(model.registers.get(state.register).as_ref().as_ref());
                    record.past.last().is_some_and(|op| {
                        let mut led = op.history.iter().map(|h| h.epoch).filter(|epoch| *epoch > Epoch::ZERO);
                        let first = led.next();
                        op.state == OperationState::Done && led.any(|epoch| Some(epoch) != first)
                    })
                },
            ),
            Property::sometimes("who leads no more writes in vain", |_, state: &State| state.in_vain),
        ]
    }
}
