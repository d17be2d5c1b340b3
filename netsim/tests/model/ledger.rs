//! The ledger's core as a model: states, what can happen in each, and what must hold.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use miroir::proto::env::{Env, Instant};
use miroir::proto::invariant::{self, History};
use miroir::proto::ledger::{Answer, Change, Command, Config, Effect, Ledger, Message, OpId, Register, Row, Stored};
use miroir::types::{
    Ballot, GroupId, MemberId, MemberState, MeshId, MeshMember, MeshRecord, RecordKey, StoreId, Versioned, Voter,
    VoterList, VotersState,
};
use stateright::{Model, Property};

/// How often what may happen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Timers that go off, of each member.
    pub ticks: u8,
    /// Messages delivered once more.
    pub repeats: u8,
    /// Processes killed and started again.
    pub crashes: u8,
}

/// What is explored.
#[derive(Debug, Clone)]
pub struct Setting {
    /// For people.
    pub name: &'static str,
    /// Voters of the first list.
    pub voters: usize,
    /// Members of the mesh; 0: as many as voters.
    pub members: usize,
    /// Changes of one key asked for at the beginning: through which member, and expecting which version.
    pub changes: Vec<(usize, u64)>,
    /// What may happen.
    pub budget: Budget,
}

impl Default for Setting {
    fn default() -> Self {
        Self { name: "", voters: 3, members: 0, changes: Vec::new(), budget: Budget::default() }
    }
}

#[derive(Clone)]
struct Node {
    stored: Stored,
    core: Ledger,
    now: Instant,
    ticks: u8,
    print: u64,
}

#[derive(Clone)]
struct Letter {
    from: usize,
    to: usize,
    message: Message,
    copies: u8,
}

/// One state. Equal and hashed by its fingerprint, which is made of everything that decides the future.
#[derive(Clone)]
pub struct State {
    nodes: Vec<Arc<Node>>,
    // By the fingerprint of the message.
    net: BTreeMap<u64, Arc<Letter>>,
    budget: Budget,
    history: Arc<History>,
    answers: BTreeMap<OpId, Answer>,
    broken: Option<String>,
    print: u64,
}

impl State {
    /// What does not hold.
    pub fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("answers", &self.answers).field("broken", &self.broken).finish_non_exhaustive()
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.print == other.print
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.print.hash(state);
    }
}

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A message arrives; with `again` a copy of it stays on its way.
    Deliver { letter: u64, again: bool },
    /// A message arrives, and the process is killed before it sends anything; `stored`: after the transaction.
    DeliverAndCrash { letter: u64, stored: bool },
    /// A timer goes off.
    Tick { node: usize },
}

/// The model.
#[derive(Debug)]
pub struct Ledgers {
    setting: Setting,
}

fn print_of(value: &impl std::fmt::Debug) -> u64 {
    struct Into(DefaultHasher);
    impl std::fmt::Write for Into {
        fn write_str(&mut self, s: &str) -> std::fmt::Result {
            self.0.write(s.as_bytes());
            Ok(())
        }
    }
    let mut into = Into(DefaultHasher::new());
    write!(into, "{value:?}").expect("a hasher takes everything");
    into.0.finish()
}

fn member(n: usize) -> MemberId {
    MemberId::new(format!("m{n}")).unwrap()
}

fn store(n: usize) -> StoreId {
    StoreId([u8::try_from(n).unwrap() + 1; 16])
}

fn key() -> RecordKey {
    RecordKey::new("k").unwrap()
}

impl Ledgers {
    /// A model of this setting.
    pub fn new(mut setting: Setting) -> Self {
        setting.members = setting.members.max(setting.voters);
        Self { setting }
    }

    fn config(n: usize) -> Config {
        Config {
            member: member(n),
            // Comparing copies only adds messages; what it leads to is reads, which the proposer's rounds are.
            renew_interval: Duration::from_secs(1),
            lease_ttl: Duration::from_secs(1 << 30),
            voter_replace_after: Duration::from_secs(1 << 30),
            round_timeout: Duration::from_millis(500),
            retry_base: Duration::from_millis(50),
            bootstrap: None,
        }
    }

    /// A member of a mesh that has been made and has settled.
    fn stored(&self, n: usize) -> Stored {
        let voters = (0..self.setting.voters).map(|v| Voter { member: member(v), store: store(v) }).collect();
        let list = VoterList::new(1, voters);
        let members = (0..self.setting.members).map(|m| MeshMember {
            id: member(m),
            group: GroupId::new("g").unwrap(),
            address: "h:1".into(),
            store: store(m),
            state: MemberState::Active,
            witness: false,
        });
        let mesh = MeshId([9; 16]);
        let record = MeshRecord {
            mesh,
            members: members.collect(),
            voters: list.clone(),
            voters_state: VotersState::Settled,
            rf: 1,
            shards: 1,
        };
        let record = Versioned { version: 1, announced: 1, value: record.to_json().into() };
        let ballot = Ballot { counter: 1, member: member(0), start: 0 };
        let mut stored = Stored::new(store(n));
        stored.mesh = Some((mesh, true));
        if n < self.setting.voters {
            let register = Register { promise: Some(ballot.clone()), accepted: Some((ballot, record.clone())) };
            stored.registers.insert(RecordKey::mesh(), register);
        }
        stored.list = Some(Arc::new(list));
        stored.copies.insert(RecordKey::mesh(), record);
        stored.begin();
        stored
    }

    fn start(&self, n: usize, stored: Stored, now: Instant, ticks: u8) -> Node {
        let mut rng = fastrand::Rng::with_seed(1);
        let core = Ledger::recover(Self::config(n), stored.clone(), &mut Env { now, rng: &mut rng });
        Node { stored, core, now, ticks, print: 0 }
    }

    /// One input for one node, and everything that follows from it at once.
    fn step(&self, state: &mut State, n: usize, crash: Option<bool>, input: impl FnOnce(&mut Ledger, &mut Env<'_>)) {
        let mut node = Node::clone(&state.nodes[n]);
        let mut rng = fastrand::Rng::with_seed(1);
        input(&mut node.core, &mut Env { now: node.now, rng: &mut rng });
        let (mut rows, mut after) = (Vec::new(), Vec::new());
        while let Some(effect) = node.core.poll_effect() {
            match effect {
                Effect::Persist(row) => rows.push(row),
                other => after.push(other),
            }
        }
        if crash != Some(false) {
            self.look(state, n, &node.stored, &rows);
            rows.into_iter().for_each(|row| node.stored.apply(row));
        }
        if crash.is_some() {
            node.stored.begin();
            node = self.start(n, node.stored, node.now, node.ticks);
            while let Some(effect) = node.core.poll_effect() {
                if let Effect::Persist(row) = effect {
                    node.stored.apply(row);
                }
            }
        } else {
            after.into_iter().for_each(|effect| self.carry_out(state, n, effect));
        }
        node.print = print_of(&(&node.stored, &node.core, node.now, node.ticks));
        state.nodes[n] = Arc::new(node);
    }

    fn carry_out(&self, state: &mut State, from: usize, effect: Effect) {
        match effect {
            Effect::Send { to, message } => {
                let Some(to) = (0..self.setting.members).find(|m| member(*m) == to) else { return };
                let print = print_of(&(from, to, &message));
                let mut letter = state
                    .net
                    .get(&print)
                    .map_or_else(|| Letter { from, to, message, copies: 0 }, |known| Letter::clone(known));
                letter.copies += 1;
                state.net.insert(print, Arc::new(letter));
            }
            Effect::Answer { op, answer } => {
                if let Answer::Changed { version } = answer {
                    let seen = Arc::make_mut(&mut state.history).changed(&key(), version);
                    note(&mut state.broken, seen);
                }
                if let Answer::Conflict { current: Some(record), .. } = &answer {
                    let seen = Arc::make_mut(&mut state.history).told_as_chosen(&key(), record);
                    note(&mut state.broken, seen);
                }
                if let Some(before) = state.answers.insert(op, answer) {
                    state.broken.get_or_insert(format!("{op:?} is answered twice, first with {before:?}"));
                }
            }
            Effect::RolledBack { text } => {
                state.broken.get_or_insert(text);
            }
            _ => {}
        }
    }

    /// What a transaction says, before it is there.
    fn look(&self, state: &mut State, n: usize, stored: &Stored, rows: &[Row]) {
        let history = Arc::make_mut(&mut state.history);
        let mut list = stored.list.as_ref().map_or(0, |l| l.number);
        let voter = Voter { member: member(n), store: store(n) };
        for row in rows {
            let seen = match row {
                Row::List(new) => {
                    list = new.number;
                    history.listed(new)
                }
                Row::Accepted { key, ballot, record, .. } => history.accepted(&voter, list, key, ballot, record),
                Row::Copy { key, record } => invariant::versions_never_go_back(key, stored.copies.get(key), record)
                    .and_then(|()| history.told_as_chosen(key, record)),
                _ => Ok(()),
            };
            note(&mut state.broken, seen);
        }
    }

    fn deliver(&self, state: &mut State, letter: u64, again: bool, crash: Option<bool>) -> Option<()> {
        let known = state.net.get(&letter)?.clone();
        if !again {
            if known.copies > 1 {
                state.net.insert(letter, Arc::new(Letter { copies: known.copies - 1, ..Letter::clone(&known) }));
            } else {
                state.net.remove(&letter);
            }
        }
        let (from, message) = (member(known.from), known.message.clone());
        self.step(state, known.to, crash, |core, env| core.handle_message(env, &from, message));
        Some(())
    }
}

fn note(broken: &mut Option<String>, seen: Result<(), invariant::Broken>) {
    if let Err(seen) = seen {
        broken.get_or_insert(seen.to_string());
    }
}

impl Model for Ledgers {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut history = History::default();
        let first = self.stored(0);
        history.listed(first.list.as_ref().unwrap()).unwrap();
        let nodes: Vec<_> = (0..self.setting.members)
            .map(|n| Arc::new(self.start(n, self.stored(n), Instant(1_000_000), self.setting.budget.ticks)))
            .collect();
        for (n, node) in nodes.iter().enumerate().take(self.setting.voters) {
            let (ballot, record) = node.stored.registers[&RecordKey::mesh()].accepted.clone().unwrap();
            let voter = Voter { member: member(n), store: store(n) };
            history.accepted(&voter, 1, &RecordKey::mesh(), &ballot, &record).unwrap();
        }
        let mut state = State {
            nodes,
            net: BTreeMap::new(),
            budget: self.setting.budget,
            history: Arc::new(history),
            answers: BTreeMap::new(),
            broken: None,
            print: 0,
        };
        for (number, (n, expected)) in (1..).zip(&self.setting.changes) {
            let value = format!("{{\"by\":{number}}}").into();
            let deadline = Instant(1 << 60);
            let change = Change { op: OpId(number), key: key(), expected: *expected, value, quiet: false, deadline };
            self.step(&mut state, *n, None, |core, env| core.submit(env, Command::Change(vec![change])));
        }
        vec![sealed(state)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.broken.is_some() {
            return;
        }
        for letter in state.net.keys().copied() {
            actions.push(Action::Deliver { letter, again: false });
            if state.budget.repeats > 0 {
                actions.push(Action::Deliver { letter, again: true });
            }
            if state.budget.crashes > 0 {
                actions.push(Action::DeliverAndCrash { letter, stored: false });
                actions.push(Action::DeliverAndCrash { letter, stored: true });
            }
        }
        for (node, n) in state.nodes.iter().enumerate() {
            if n.ticks > 0 && n.core.next_wake().is_some() {
                actions.push(Action::Tick { node });
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Deliver { letter, again } => {
                state.budget.repeats -= u8::from(again);
                self.deliver(&mut state, letter, again, None)?;
            }
            Action::DeliverAndCrash { letter, stored } => {
                state.budget.crashes -= 1;
                self.deliver(&mut state, letter, false, Some(stored))?;
            }
            Action::Tick { node } => {
                let mut n = Node::clone(&state.nodes[node]);
                n.ticks -= 1;
                n.now = n.core.next_wake()?.max(n.now);
                state.nodes[node] = Arc::new(n);
                self.step(&mut state, node, None, |core, env| core.handle_tick(env));
            }
        }
        Some(sealed(state))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing is broken", |_, state: &State| state.broken.is_none()),
            Property::sometimes("a change is made", |_, state: &State| {
                state.answers.values().any(|a| matches!(a, Answer::Changed { .. }))
            }),
            Property::sometimes("every change is answered", |model: &Ledgers, state: &State| {
                state.answers.len() == model.setting.changes.len()
            }),
        ]
    }
}

fn sealed(mut state: State) -> State {
    let mut hasher = DefaultHasher::new();
    state.nodes.iter().for_each(|n| n.print.hash(&mut hasher));
    state.net.iter().for_each(|(print, letter)| (print, letter.copies).hash(&mut hasher));
    state.budget.hash(&mut hasher);
    // What was chosen and answered is part of the state: it decides what is broken later.
    hasher.write_u64(print_of(&(&state.history, &state.answers, &state.broken)));
    state.print = hasher.finish();
    state
}
