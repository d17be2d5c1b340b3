//! The lease's core as a model: a few members, one scope, and a register that changes at one instant each.
//!
//! Time goes on in steps of a quarter of the TTL, with one more instant right before each whole TTL. Nothing has to happen in
//! time: a timer may be late, and what is under way when a step ends is lost, unless it is held up: then a request may take effect at any later time (also after its
//! sender was told that nobody knows), and an answer may come at any later time. The first member's clock is a twentieth slow, all others are a twentieth fast, which is as much as is promised.
//!
//! | name | holds |
//! | --- | --- |
//! | `one_believes` | at every instant at most one member believes that it holds the scope |
//! | `epochs_grow` | whoever comes to hold the scope has a higher epoch than whoever held it before, and has stored it |
//! | `fences_never_go_back` | the highest epoch that a member has stored only grows |
//! | `no_stale_order` | a member carries out no order of a lower epoch than one before, and none that its copy does not call for |

use std::sync::Arc;
use std::time::Duration;

use miroir::proto::env::{Env, Instant};
use miroir::proto::lease::{Config, Effect, Eligible, Fences, LeaseCore};
use miroir::proto::register::{Answer, Change, Chosen, Read};
use miroir::types::{Epoch, Holder, IndexUid, LeaseSign, MemberId, Order, Scope};
use stateright::{Model, Property};

use super::table::{Id, Memo, Table};

const TTL: Duration = Duration::from_secs(1);
const RENEW: Duration = Duration::from_millis(470);
/// Instants within each TTL, in microseconds.
const STEPS_US: [u64; 5] = [0, 250_000, 500_000, 750_000, 980_000];

/// How often what may happen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Processes killed and started again.
    pub crashes: u8,
    /// Requests of which their sender is told that nobody knows what became of them.
    pub unknown: u8,
    /// Requests, answers, and whatever else is under way, that are held up.
    pub held: u8,
    /// Times that a chosen value is pushed to another member.
    pub pushes: u8,
    /// Times that a voter sees an attempt that may never take effect.
    pub signs: u8,
    /// Times that what a holder gossips is heard.
    pub gossip: u8,
    /// Orders of holders.
    pub orders: u8,
    /// Times that a holder gives the scope back.
    pub releases: u8,
}

/// What is explored.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Members.
    pub members: usize,
    /// How many steps of time: five are a TTL.
    pub steps: u8,
    /// From which step of time on the last member may lead: until then its copies are stale.
    pub waits: u8,
    /// What may happen.
    pub budget: Budget,
}

#[derive(Debug, Clone)]
struct Node {
    core: LeaseCore,
    start: u64,
    fence: Epoch,
}

#[derive(Debug, Clone, PartialEq)]
enum Letter {
    Change(Change),
    Read(Read),
    Answer(miroir::proto::register::OpId, Answer),
    Chosen(Chosen),
    Gossip(usize, Vec<LeaseSign>),
    Order(u64, u64),
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Input {
    Start,
    /// It may lead from now on.
    Eligible,
    Tick,
    Letter(Id),
    /// Heard, stored, and nothing else done.
    LetterAndCrash(Id),
    /// Of an attempt under way.
    Sign(Id),
    Unknown(Id),
    Release,
    /// With the version of the member's copy.
    Order(Id, u64),
}

/// One letter: whose it is (the member that sent a request, or that gets anything else), of which of its processes (0: of
/// any), and what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Post {
    member: u8,
    start: u64,
    letter: Id,
    request: bool,
    held: bool,
}

#[derive(Debug)]
struct Step {
    node: Id,
    posts: Vec<Post>,
    became: Option<u64>,
    obeyed: bool,
    wrong: Option<String>,
    nothing: bool,
}

/// One state: parts by their numbers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    time: u8,
    nodes: Vec<Id>,
    starts: Vec<u64>,
    register: Id,
    posts: Vec<Post>,
    /// The highest epoch held so far, and of each member the highest obeyed.
    highest: u64,
    obeyed: Vec<u64>,
    /// The version of the record that calls for orders, who wrote it as which epoch, and the members' copies.
    record: u64,
    fenced: u64,
    copies: Vec<u64>,
    broken: Option<Id>,
    held: u8,
    budget: Budget,
}

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Time passes.
    Pass,
    /// A timer that is due goes off.
    Tick { node: usize },
    /// Something that is under way is still under way when the step ends.
    Hold { at: usize },
    /// A request takes effect, or anything else arrives.
    Arrive { at: usize, letter: Id },
    /// Something arrives, what follows is stored, and the process ends before it does anything else.
    ArriveAndCrash { at: usize, letter: Id },
    /// A process ends, and another begins.
    Crash { node: usize },
    /// Another member sees an attempt, as a voter.
    Sign { node: usize, at: usize, letter: Id },
    /// Its sender is told that nobody knows what became of a request.
    Unknown { at: usize, letter: Id },
    /// A holder gives the scope back.
    Release { node: usize },
    /// A holder writes its epoch into the record: its first act.
    Fence { node: usize },
    /// A holder that has done that orders another member.
    Order { from: usize, to: usize },
    /// A member's copy of the record becomes the newest.
    Copy { node: usize },
}

/// The model.
#[derive(Debug)]
pub struct Leases {
    setting: Setting,
    nodes: Table<Node>,
    letters: Table<Letter>,
    registers: Table<Option<Chosen>>,
    wrongs: Table<String>,
    steps: Memo<(usize, u8, Id, Input), Arc<Step>>,
    believed: Memo<(usize, u8, Id), (Option<u64>, bool)>,
}

fn scope() -> Scope {
    Scope::AliasFlip(IndexUid::new("a").unwrap())
}

fn member(n: usize) -> MemberId {
    MemberId::new(format!("m{n}")).unwrap()
}

/// What a member's clock shows.
fn local(n: usize, time: u8) -> Instant {
    let rate = if n == 0 { 950 } else { 1_050 };
    let passed = u64::from(time / 5) * 1_000_000 + STEPS_US[usize::from(time % 5)];
    Instant(1_000_000_000 * (u64::try_from(n).unwrap() + 1) + passed * rate / 1_000)
}

impl Leases {
    /// A model of this setting.
    pub fn new(setting: Setting) -> Self {
        Self {
            setting,
            nodes: Table::new(&[]),
            letters: Table::new(&[]),
            registers: Table::new(&[]),
            wrongs: Table::new(&[]),
            steps: Memo::default(),
            believed: Memo::default(),
        }
    }

    /// What is broken in a state.
    pub fn broken(&self, state: &State) -> Option<String> {
        state.broken.map(|id| String::clone(&self.wrongs.get(id)))
    }

    /// Actions for people.
    pub fn told(&self, actions: &[Action]) -> String {
        let line = |action: &Action| match action {
            Action::Arrive { letter, .. }
            | Action::ArriveAndCrash { letter, .. }
            | Action::Sign { letter, .. }
            | Action::Unknown { letter, .. } => format!("{action:?}: {:?}", self.letters.get(*letter)),
            other => format!("{other:?}"),
        };
        actions.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    fn begin(n: usize, start: u64, fence: Epoch, now: Instant) -> LeaseCore {
        let config = Config { enabled: true, ttl_ms: u64::try_from(TTL.as_millis()).unwrap(), renew_interval: RENEW };
        let fences = Fences::recover([(scope(), fence)].into_iter().filter(|(_, f)| *f > Epoch::ZERO));
        LeaseCore::recover(Holder { member: member(n), start }, config, fences, now)
    }

    /// The epoch under which a member believes to hold the scope, and whether its timer is due.
    fn believes(&self, n: usize, time: u8, node: Id) -> (Option<u64>, bool) {
        self.believed.of((n, time, node), || {
            let (node, now) = (self.nodes.get(node), local(n, time));
            let due = node.core.next_wake().is_some_and(|at| at <= now);
            (node.core.believes(&scope(), now).map(Epoch::number), due)
        })
    }

    fn step(&self, n: usize, time: u8, node: Id, input: Input) -> Arc<Step> {
        self.steps.of((n, time, node, input), || Arc::new(self.work_out(n, time, node, input)))
    }

    fn work_out(&self, n: usize, time: u8, id: Id, input: Input) -> Step {
        let mut node = Node::clone(&self.nodes.get(id));
        let now = local(n, time);
        let mut rng = fastrand::Rng::with_seed(1);
        let mut step = Step { node: id, posts: Vec::new(), became: None, obeyed: false, wrong: None, nothing: false };
        if input == Input::Start {
            node.start += 1;
            node.core = Self::begin(n, node.start, node.fence, now);
        }
        let core = &mut node.core;
        let env = &mut Env { now, rng: &mut rng };
        match input {
            Input::Start => {
                if n + 1 == self.setting.members && time < self.setting.waits {
                    core.handle_eligible(env, Eligible::Stale);
                }
                core.handle_want(env, &scope()).expect("there is room");
            }
            Input::Eligible => core.handle_eligible(env, Eligible::Yes),
            Input::Tick => core.handle_tick(env),
            Input::Release => core.handle_release(env, &scope()),
            Input::Unknown(letter) => {
                let op = match &*self.letters.get(letter) {
                    Letter::Change(change) => change.op,
                    other => unreachable!("{other:?} is no change"),
                };
                core.handle_answer(env, op, Answer::Unknown);
            }
            Input::Sign(letter) => match &*self.letters.get(letter) {
                Letter::Change(change) => core.handle_accepted(env, &change.key, &change.value),
                other => unreachable!("{other:?} is no change"),
            },
            Input::Order(letter, known) => match &*self.letters.get(letter) {
                Letter::Order(epoch, version) => {
                    let epoch = Epoch::new(*epoch).expect("it was held");
                    let order = Order { scope: scope(), epoch, record: "names".into(), version: *version };
                    step.obeyed = core.handle_order(env, &order, known).is_ok();
                    if step.obeyed && epoch < node.fence {
                        step.wrong = Some(format!(
                            "no_stale_order is broken: m{n} obeys {order:?} and has heard of {}",
                            node.fence
                        ));
                    }
                    if step.obeyed && known < *version {
                        step.wrong = Some(format!("no_stale_order is broken: m{n} obeys {order:?} and knows {known}"));
                    }
                }
                other => unreachable!("{other:?} is no order"),
            },
            Input::Letter(letter) | Input::LetterAndCrash(letter) => match &*self.letters.get(letter) {
                Letter::Answer(op, answer) => core.handle_answer(env, *op, answer.clone()),
                Letter::Chosen(chosen) => core.handle_chosen(env, &scope().lease_key(), chosen),
                Letter::Gossip(from, signs) => core.handle_gossip(env, &member(*from), signs),
                Letter::Ended => core.handle_ended(env, &scope()),
                other => unreachable!("{other:?} is for nobody"),
            },
        }
        let crash = matches!(input, Input::LetterAndCrash(_));
        self.drain(n, now, &mut node, &mut step, !crash);
        step.node = self.nodes.id(node);
        step.nothing = step.node == id && step.posts.is_empty() && !step.obeyed && step.wrong.is_none();
        step
    }

    fn drain(&self, n: usize, now: Instant, node: &mut Node, step: &mut Step, tells: bool) {
        let mut effects = Vec::new();
        while let Some(effect) = node.core.poll_effect() {
            match effect {
                Effect::Persist { scope: of, epoch } if of == scope() => {
                    if epoch < node.fence {
                        step.wrong = Some(format!("fences_never_go_back is broken: {epoch} after {}", node.fence));
                    }
                    node.fence = epoch;
                }
                other => effects.push(other),
            }
        }
        if !tells {
            return;
        }
        let (start, key) = (node.start, scope().lease_key());
        let post = |letter: Letter, request| Post {
            member: u8::try_from(n).unwrap(),
            start,
            letter: self.letters.id(letter),
            request,
            held: false,
        };
        let mut not_ours = Vec::new();
        for effect in effects {
            match effect {
                Effect::Changes(changes) => {
                    let ours = changes.into_iter().filter(|c| c.key == key);
                    step.posts.extend(ours.map(|c| post(Letter::Change(c), true)));
                }
                Effect::Reads(reads) => {
                    let (ours, others): (Vec<_>, Vec<_>) = reads.into_iter().partition(|r| r.key == key);
                    step.posts.extend(ours.into_iter().map(|r| post(Letter::Read(r), true)));
                    not_ours.extend(others);
                }
                Effect::Became { scope: of, epoch, .. } if of == scope() => {
                    step.became = Some(epoch.number());
                    if node.fence < epoch {
                        step.wrong = Some(format!("epochs_grow is broken: {epoch} is held and not stored"));
                    }
                }
                Effect::Lost { scope: of, why: miroir::proto::lease::LostWhy::Released, .. } if of == scope() => {
                    step.posts.push(post(Letter::Ended, false));
                }
                Effect::Gossip(signs) => {
                    let signs: Vec<_> = signs.into_iter().filter(|s| s.scope == scope()).collect();
                    if !signs.is_empty() {
                        let letter = self.letters.id(Letter::Gossip(n, signs));
                        let others = (0..self.setting.members).filter(|m| *m != n);
                        let to = |m| Post {
                            member: u8::try_from(m).unwrap(),
                            start: 0,
                            letter,
                            request: false,
                            held: false,
                        };
                        step.posts.extend(others.map(to));
                    }
                }
                _ => {}
            }
        }
        // All other scopes hold something that nobody can read, so they are left alone.
        for read in not_ours {
            let mut rng = fastrand::Rng::with_seed(1);
            let current = Some(Chosen { version: 1, value: "?".into() });
            let answer = Answer::Read { current };
            node.core.handle_answer(&mut Env { now, rng: &mut rng }, read.op, answer);
            self.drain(n, now, node, step, true);
        }
    }

    fn take(&self, state: &mut State, n: usize, step: &Step) {
        state.nodes[n] = step.node;
        for post in &step.posts {
            if state.budget.gossip == 0 && matches!(&*self.letters.get(post.letter), Letter::Gossip(..)) {
                continue;
            }
            // What is gossiped is always the newest.
            if let Letter::Gossip(..) = &*self.letters.get(post.letter) {
                let old = |p: &Post| {
                    p.member == post.member
                        && matches!(&*self.letters.get(p.letter), Letter::Gossip(from, _) if *from == n)
                };
                state.posts.retain(|p| !old(p));
            }
            self.post(state, *post);
        }
        if let Some(epoch) = step.became {
            if epoch <= state.highest {
                self.wrong(state, format!("epochs_grow is broken: {epoch} after {}", state.highest));
            }
            state.highest = state.highest.max(epoch);
            state.held = state.held.saturating_add(1);
        }
        if let Some(wrong) = &step.wrong {
            self.wrong(state, wrong.clone());
        }
        let (nodes, time) = (&state.nodes, state.time);
        let starts = &state.starts;
        state.posts.retain(|p| {
            let of_us = usize::from(p.member) == n;
            let late = of_us && p.start != 0 && p.start != starts[n] && !p.request;
            let answer = !p.request && matches!(&*self.letters.get(p.letter), Letter::Answer(..));
            !(late || of_us && answer && self.step(n, time, nodes[n], Input::Letter(p.letter)).nothing)
        });
        self.look(state);
    }

    fn post(&self, state: &mut State, post: Post) {
        let at = state.posts.partition_point(|p| *p < post);
        state.posts.insert(at, post);
    }

    fn wrong(&self, state: &mut State, text: String) {
        state.broken.get_or_insert_with(|| self.wrongs.id(text));
    }

    fn look(&self, state: &mut State) {
        let believes = |n: &usize| self.believes(*n, state.time, state.nodes[*n]).0.is_some();
        let believers: Vec<_> = (0..self.setting.members).filter(believes).collect();
        if believers.len() > 1 {
            self.wrong(state, format!("one_believes is broken: {believers:?}"));
        }
    }

    /// A request takes effect now.
    fn effect(&self, state: &mut State, post: Post) {
        let register = self.registers.get(state.register);
        let (op, answer) = match &*self.letters.get(post.letter) {
            Letter::Read(read) => (read.op, Answer::Read { current: Option::clone(&register) }),
            Letter::Change(change) if register.as_ref().as_ref().map_or(0, |c| c.version) == change.expected => {
                let chosen = Chosen { version: change.expected + 1, value: Arc::clone(&change.value) };
                let version = chosen.version;
                if !change.quiet && state.budget.pushes > 0 {
                    let letter = self.letters.id(Letter::Chosen(chosen.clone()));
                    for m in (0..self.setting.members).filter(|m| *m != usize::from(post.member)) {
                        self.post(
                            state,
                            Post { member: u8::try_from(m).unwrap(), start: 0, letter, request: false, held: false },
                        );
                    }
                }
                state.register = self.registers.id(Some(chosen));
                (change.op, Answer::Changed { version })
            }
            Letter::Change(change) => (change.op, Answer::Conflict { current: Option::clone(&register) }),
            other => unreachable!("{other:?} is no request"),
        };
        if state.starts[usize::from(post.member)] == post.start {
            let letter = self.letters.id(Letter::Answer(op, answer));
            self.post(state, Post { letter, request: false, held: false, ..post });
        }
    }

    fn restart(&self, state: &mut State, n: usize) {
        state.starts[n] += 1;
        let step = self.step(n, state.time, state.nodes[n], Input::Start);
        self.take(state, n, &step);
    }
}

impl Model for Leases {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let members = self.setting.members;
        let node = |n| Node { core: Self::begin(n, 0, Epoch::ZERO, local(n, 0)), start: 0, fence: Epoch::ZERO };
        let mut state = State {
            time: 0,
            nodes: (0..members).map(|n| self.nodes.id(node(n))).collect(),
            starts: vec![0; members],
            register: self.registers.id(None),
            posts: Vec::new(),
            highest: 0,
            obeyed: vec![0; members],
            record: 0,
            fenced: 0,
            copies: vec![0; members],
            broken: None,
            held: 0,
            budget: self.setting.budget,
        };
        (0..members).for_each(|n| self.restart(&mut state, n));
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.broken.is_some() {
            return;
        }
        let budget = &state.budget;
        if state.time < self.setting.steps {
            actions.push(Action::Pass);
        }
        for (at, post) in state.posts.iter().enumerate() {
            let letter = post.letter;
            let same = at > 0 && state.posts[at - 1] == *post;
            let value = self.letters.get(letter);
            let spent = match &*value {
                Letter::Gossip(..) => budget.gossip == 0,
                Letter::Chosen(_) => budget.pushes == 0,
                _ => false,
            };
            if same || spent {
                continue;
            }
            if budget.held > 0 && !post.held {
                actions.push(Action::Hold { at });
            }
            actions.push(Action::Arrive { at, letter });
            if budget.crashes > 0 && !post.request && !matches!(&*value, Letter::Order(..)) {
                actions.push(Action::ArriveAndCrash { at, letter });
            }
            if matches!(&*value, Letter::Change(_)) {
                let current = state.starts[usize::from(post.member)] == post.start;
                if budget.unknown > 0 && current {
                    actions.push(Action::Unknown { at, letter });
                }
                if budget.signs > 0 {
                    let others = (0..state.nodes.len()).filter(|n| *n != usize::from(post.member));
                    actions.extend(others.map(|node| Action::Sign { node, at, letter }));
                }
            }
        }
        for (node, id) in state.nodes.iter().enumerate() {
            let (believes, due) = self.believes(node, state.time, *id);
            if due {
                actions.push(Action::Tick { node });
            }
            if budget.crashes > 0 {
                actions.push(Action::Crash { node });
            }
            let Some(epoch) = believes else { continue };
            if budget.releases > 0 {
                actions.push(Action::Release { node });
            }
            if self.setting.budget.orders > 0 && state.fenced < epoch {
                actions.push(Action::Fence { node });
            }
            if budget.orders > 0 && state.fenced == epoch {
                let others = (0..state.nodes.len()).filter(|n| *n != node);
                actions.extend(others.map(|to| Action::Order { from: node, to }));
            }
        }
        if self.setting.budget.orders > 0 {
            let behind = (0..state.nodes.len()).filter(|n| state.copies[*n] < state.record);
            actions.extend(behind.map(|node| Action::Copy { node }));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let (n, input) = match action {
            Action::Pass => {
                state.time += 1;
                state.posts.retain(|p| p.held);
                if state.time == self.setting.waits {
                    let n = self.setting.members - 1;
                    let step = self.step(n, state.time, state.nodes[n], Input::Eligible);
                    self.take(&mut state, n, &step);
                }
                self.look(&mut state);
                return Some(state);
            }
            Action::Hold { at } => {
                state.budget.held -= 1;
                let post = state.posts.remove(at);
                self.post(&mut state, Post { held: true, ..post });
                return Some(state);
            }
            Action::Tick { node } => (node, Input::Tick),
            Action::Arrive { at, letter } => {
                let post = state.posts.remove(at);
                let n = usize::from(post.member);
                if post.request {
                    self.effect(&mut state, post);
                    return Some(state);
                }
                match &*self.letters.get(letter) {
                    Letter::Order(epoch, version) => {
                        let (epoch, version) = (*epoch, *version);
                        let step = self.step(n, state.time, state.nodes[n], Input::Order(letter, state.copies[n]));
                        if step.obeyed && epoch < state.obeyed[n] {
                            let text =
                                format!("no_stale_order is broken: m{n} obeys {epoch} after {}", state.obeyed[n]);
                            self.wrong(&mut state, text);
                        }
                        if step.obeyed {
                            state.obeyed[n] = epoch;
                        }
                        debug_assert!(version <= state.record);
                        self.take(&mut state, n, &step);
                        return Some(state);
                    }
                    Letter::Gossip(..) => state.budget.gossip -= 1,
                    Letter::Chosen(_) => state.budget.pushes -= 1,
                    _ => {}
                }
                (n, Input::Letter(letter))
            }
            Action::ArriveAndCrash { at, letter } => {
                state.budget.crashes -= 1;
                let post = state.posts.remove(at);
                let n = usize::from(post.member);
                let step = self.step(n, state.time, state.nodes[n], Input::LetterAndCrash(letter));
                state.nodes[n] = step.node;
                if let Some(wrong) = &step.wrong {
                    self.wrong(&mut state, wrong.clone());
                }
                self.restart(&mut state, n);
                return Some(state);
            }
            Action::Crash { node } => {
                state.budget.crashes -= 1;
                self.restart(&mut state, node);
                return Some(state);
            }
            Action::Sign { node, letter, .. } => {
                state.budget.signs -= 1;
                (node, Input::Sign(letter))
            }
            Action::Unknown { at, letter } => {
                state.budget.unknown -= 1;
                (usize::from(state.posts[at].member), Input::Unknown(letter))
            }
            Action::Release { node } => {
                state.budget.releases -= 1;
                (node, Input::Release)
            }
            Action::Fence { node } => {
                state.fenced = self.believes(node, state.time, state.nodes[node]).0?;
                state.record += 1;
                state.copies[node] = state.record;
                return Some(state);
            }
            Action::Order { to, .. } => {
                state.budget.orders -= 1;
                let letter = self.letters.id(Letter::Order(state.fenced, state.record));
                self.post(
                    &mut state,
                    Post { member: u8::try_from(to).unwrap(), start: 0, letter, request: false, held: false },
                );
                return Some(state);
            }
            Action::Copy { node } => {
                state.copies[node] = state.record;
                return Some(state);
            }
        };
        let step = self.step(n, state.time, state.nodes[n], input);
        if step.nothing {
            return None;
        }
        self.take(&mut state, n, &step);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing is broken", |_, state: &State| state.broken.is_none()),
            Property::sometimes("somebody holds the scope", |_, state: &State| state.held > 0),
            Property::sometimes("another holds it afterwards", |_, state: &State| state.held > 1),
        ]
    }
}
