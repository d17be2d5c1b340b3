//! The ledger's core as a model: states, what can happen in each, and what must hold.
//!
//! Besides the invariants of `proto::invariant` these must hold:
//!
//! | name | holds |
//! | --- | --- |
//! | `a_promise_is_given_once` | a voter answers a prepare only above every ballot that it promised before, and stores that |
//! | `a_majority_promised_first` | whoever asks to accept at a ballot has that ballot promised by a majority of that very list |
//! | `a_settled_list_holds_every_key` | when a list is settled, a majority of it holds the newest value of every key |
//! | `answers_are_true` | a change that is told is chosen with its own value; nobody is told less than was told before |
//!
//! The first two are obligations of which each alone may be missed without harm as long as all others are kept: that is why
//! they are looked at by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use miroir::proto::env::{Env, Instant};
use miroir::proto::invariant::{self, History};
use miroir::proto::ledger::{
    Answer, Change, Command, Config, Effect, Item, Ledger, Message, OpId, Process, Read, Register, Row, Seen, Stored,
};
use miroir::types::{
    Ballot, GroupId, MemberId, MemberState, MeshId, MeshMember, MeshRecord, RecordKey, StoreId, Versioned, Voter,
    VoterList, VotersState,
};
use stateright::{Model, Property};

use super::table::{Id, Memo, Table};

/// The dice of every step: all fall alike, so that states that differ in nothing else are one.
fn dice() -> fastrand::Rng {
    fastrand::Rng::with_seed(1)
}

/// How often what may happen. Losing messages costs nothing: one that is overtaken by a later one of the same link is lost,
/// unless it is to come late.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Times that a message arrives before earlier ones of the same link that arrive all the same.
    pub late: u8,
    /// Times that the timer of a member goes off that was asked for something at the beginning.
    pub ticks: u8,
    /// Messages delivered once more.
    pub repeats: u8,
    /// Processes killed and started again.
    pub crashes: u8,
    /// Where answers are prompt: questions of which the answer is lost.
    pub unheard: u8,
}

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Change the record from this version.
    Change(u64),
    /// The same, not pushed.
    Quiet(u64),
    /// Put a value in its place that says that it is gone.
    Delete(u64),
    /// Read it.
    Read,
}

/// What has been chosen before the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// A mesh that has settled.
    Settled,
    /// The first `joiner`s are being added: a majority of the old voters has accepted so, and member 0 knows that.
    Adding,
    /// The last voter is being removed: likewise.
    Removing,
}

/// What is explored.
#[derive(Debug, Clone)]
pub struct Setting {
    /// For people.
    pub name: &'static str,
    /// Voters of the first list.
    pub voters: usize,
    /// Members of the mesh that do not vote in the first list.
    pub others: usize,
    /// What is asked for at the beginning, of which member.
    pub first: Vec<(usize, Ask)>,
    /// What is asked for at any time after everything at the beginning was answered, in this order.
    pub later: Vec<(usize, Ask)>,
    /// Whose processes may be killed.
    pub crashing: Vec<usize>,
    /// A process that begins again asks for a change once more.
    pub again: bool,
    /// Whether chosen values are pushed, or every push is lost.
    pub pushes: bool,
    /// An answer is there at once: a question and its answer are one step.
    pub prompt: bool,
    /// Who has a voter change to see to at once.
    pub begins: Beginning,
    /// What may happen.
    pub budget: Budget,
    /// Which of the properties that must hold somewhere lie beyond the depth explored.
    pub beyond: &'static [&'static str],
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            name: "",
            voters: 3,
            others: 0,
            first: Vec::new(),
            later: Vec::new(),
            crashing: Vec::new(),
            again: false,
            pushes: false,
            prompt: false,
            begins: Beginning::Settled,
            budget: Budget::default(),
            beyond: &[],
        }
    }
}

#[derive(Debug, Clone)]
struct Node {
    stored: Stored,
    core: Ledger,
    now: Instant,
    /// The number of its client's next request after a restart.
    restarts: u64,
}

/// From whom to whom.
type Link = (u8, u8);

#[derive(Debug, Clone)]
struct Letter {
    from: usize,
    to: usize,
    message: Message,
}

/// What a step has done that is seen from outside.
#[derive(Debug, Clone)]
enum Event {
    Listed(VoterList),
    Promised {
        voter: Voter,
        list: u64,
        key: RecordKey,
        ballot: Ballot,
        before: Option<Ballot>,
        alone: bool,
    },
    Accepted {
        voter: Voter,
        list: u64,
        key: RecordKey,
        ballot: Ballot,
        record: Versioned,
    },
    Copied {
        key: RecordKey,
        before: Option<Versioned>,
        record: Versioned,
    },
    AskedToAccept {
        list: VoterList,
        key: RecordKey,
        ballot: Ballot,
    },
    Asked {
        op: OpId,
        value: Option<String>,
    },
    Answered {
        op: OpId,
        answer: Answer,
    },
    /// A process that is not its member's first has voted, or asks others to accept.
    Again(&'static str),
    Wrong(String),
}

/// Everything that has happened and matters later.
#[derive(Debug, Clone, Default)]
struct Past {
    history: History,
    promised: BTreeMap<(RecordKey, Ballot), BTreeSet<(Voter, u64)>>,
    holds: BTreeMap<(Voter, RecordKey), u64>,
    /// Requests under way: the newest version that anyone had been told of, and the own value.
    asked: BTreeMap<OpId, (u64, Option<String>)>,
    floor: u64,
    changed: u64,
    answered: u64,
    /// Of the newest list.
    majority: usize,
    /// Who has accepted what as a voter of a new list.
    under_new: BTreeMap<Ballot, BTreeSet<Voter>>,
    /// What has come about of what must come about somewhere.
    marks: BTreeSet<&'static str>,
    broken: Option<String>,
}

/// What must come about somewhere, where the setting has it.
const VOTES_AGAIN: &str = "a restarted process votes";
const PROPOSES_AGAIN: &str = "a restarted process asks to accept";
const NEW_MAJORITY: &str = "a majority of the new list accepts a value";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Input {
    Letter(Id),
    LetterAndCrash(Id),
    Crash,
    Tick,
    Ask(usize),
}

/// What a step of one member leads to.
#[derive(Debug)]
struct Step {
    node: Id,
    sent: Vec<(Link, Id, bool)>,
    events: Id,
    /// Nothing has changed and nothing was said.
    nothing: bool,
}

/// One state: parts by their numbers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    nodes: Vec<Id>,
    /// Letters under way by link, on each in the order in which they were sent; whether they ask something.
    net: Vec<(Link, Id, bool)>,
    past: Id,
    /// Of the past: whether something is broken, and how many requests were answered.
    broken: bool,
    answered: usize,
    later: usize,
    budget: Budget,
}

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The message at this place arrives. `again`: a copy of it stays on its way. `late`: earlier ones of the link stay on
    /// theirs.
    Deliver { at: usize, letter: Id, again: bool, late: bool },
    /// The message at this place arrives, what follows is stored, and the process ends before it sends anything.
    DeliverAndCrash { at: usize, letter: Id },
    /// The message at this place arrives, and what is answered is lost.
    Unheard { at: usize, letter: Id },
    /// A process ends, and whatever it would have done with the next message is lost.
    Crash { node: usize },
    /// A member's timer goes off.
    Tick { node: usize },
    /// A client asks.
    Ask,
}

/// The model.
#[derive(Debug)]
pub struct Ledgers {
    setting: Setting,
    nodes: Table<Node>,
    letters: Table<Letter>,
    events: Table<Vec<Event>>,
    pasts: Table<Past>,
    steps: Memo<(Id, Input), Arc<Step>>,
    comes: Memo<(Id, Id), (Id, bool, usize)>,
    /// The number of no events.
    silence: Id,
}

fn member(n: usize) -> MemberId {
    MemberId::new(format!("m{n}")).unwrap()
}

fn store(n: usize) -> StoreId {
    StoreId([u8::try_from(n).unwrap() + 1; 16])
}

fn voter(n: usize) -> Voter {
    Voter { member: member(n), store: store(n) }
}

fn key() -> RecordKey {
    RecordKey::new("k").unwrap()
}

const BEGAN: Instant = Instant(1_000_000);
const DEADLINE: Instant = Instant(1 << 60);
/// Longer than a round waits, shorter than copies are compared a second time.
const TICK: Duration = Duration::from_millis(600);

impl Ledgers {
    /// A model of this setting.
    pub fn new(setting: Setting) -> Self {
        let events = Table::new(&[]);
        let silence = events.id(Vec::new());
        let ignored: &[&str] = if setting.crashing.is_empty() { &["count: "] } else { &[] };
        Self {
            setting,
            // How many transactions a store has seen says nothing, unless a later process on it shows where it began.
            nodes: Table::new(ignored),
            letters: Table::new(&[]),
            events,
            silence,
            pasts: Table::new(&[]),
            steps: Memo::default(),
            comes: Memo::default(),
        }
    }

    /// What is broken in a state.
    pub fn broken(&self, state: &State) -> Option<String> {
        self.pasts.get(state.past).broken.clone()
    }

    /// Actions for people.
    pub fn told(&self, actions: &[Action]) -> String {
        let line = |action: &Action| match action {
            Action::Deliver { letter, .. }
            | Action::DeliverAndCrash { letter, .. }
            | Action::Unheard { letter, .. } => {
                let l = self.letters.get(*letter);
                format!("{action:?} m{} → m{}: {:?}", l.from, l.to, l.message.items)
            }
            other => format!("{other:?}"),
        };
        actions.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    fn crashes(&self, node: usize) -> bool {
        self.setting.crashing.contains(&node)
    }

    fn members(&self) -> usize {
        self.setting.voters + self.setting.others
    }

    fn config(n: usize) -> Config {
        Config {
            member: member(n),
            renew_interval: Duration::from_secs(1 << 20),
            lease_ttl: Duration::from_secs(1 << 30),
            voter_replace_after: Duration::from_secs(1 << 30),
            round_timeout: Duration::from_millis(500),
            retry_base: Duration::from_millis(50),
            bootstrap: None,
        }
    }

    fn record(
        &self,
        number: u64,
        voters: impl Iterator<Item = usize>,
        state: VotersState,
        gone: Option<usize>,
    ) -> MeshRecord {
        let entry = |m: usize| MeshMember {
            id: member(m),
            group: GroupId::new("g").unwrap(),
            address: "h:1".into(),
            store: store(m),
            state: if gone == Some(m) { MemberState::Removed } else { MemberState::Active },
            witness: false,
        };
        MeshRecord {
            mesh: MeshId([9; 16]),
            members: (0..self.members()).map(entry).collect(),
            voters: VoterList::new(number, voters.map(voter).collect()),
            voters_state: state,
            rf: 1,
            shards: 1,
        }
    }

    /// What lies on the disks at the beginning.
    fn disk(&self, n: usize) -> Stored {
        let voters = self.setting.voters;
        let first = self.record(1, 0..voters, VotersState::Settled, None);
        let first = (first.voters.clone(), Versioned { version: 1, announced: 1, value: first.to_json().into() });
        let next = match self.setting.begins {
            Beginning::Settled => None,
            Beginning::Adding => Some(self.record(2, 0..voters + 1, VotersState::Settling, None)),
            Beginning::Removing => Some(self.record(2, 0..voters - 1, VotersState::Settling, Some(voters - 1))),
        };
        let ballot = |counter| Ballot { counter, member: member(0), start: 0 };
        let mut stored = Stored::new(store(n));
        stored.mesh = Some((MeshId([9; 16]), true));
        let knows = n == 0 || n == voters;
        let held = match &next {
            Some(next) if n < voters / 2 + 1 => {
                (ballot(2), Versioned { version: 2, announced: 2, value: next.to_json().into() })
            }
            _ => (ballot(1), first.1.clone()),
        };
        if n < voters {
            let register = Register { promise: Some(held.0.clone()), accepted: Some(held.clone()) };
            stored.registers.insert(RecordKey::mesh(), register);
        }
        let (list, copy) = match next {
            Some(next) if knows => {
                let value = next.to_json().into();
                (next.voters, Versioned { version: 2, announced: 2, value })
            }
            _ => first,
        };
        stored.list = Some(Arc::new(list));
        stored.copies.insert(RecordKey::mesh(), copy);
        stored.begin();
        for m in (0..self.members()).filter(|m| *m != n) {
            let first = Process { start: store(m).first_start() + 1, nonce: dice().u64(1..), began: 1 };
            stored.seen.insert(store(m), Seen { line: vec![first], count: 1, ..Seen::new(store(m)) });
        }
        stored
    }

    fn start(n: usize, stored: Stored, now: Instant, restarts: u64) -> Node {
        let mut rng = dice();
        let core = Ledger::recover(Self::config(n), stored.clone(), &mut Env { now, rng: &mut rng });
        Node { stored, core, now, restarts }
    }

    fn command(&self, ask: Ask, op: OpId, events: &mut Vec<Event>) -> Command {
        let (expected, quiet, value) = match ask {
            Ask::Change(v) => (v, false, format!("{{\"by\":{}}}", op.0)),
            Ask::Quiet(v) => (v, true, format!("{{\"by\":{}}}", op.0)),
            Ask::Delete(v) => (v, false, "{\"deleted\":true}".to_owned()),
            Ask::Read => {
                events.push(Event::Asked { op, value: None });
                return Command::Read(vec![Read { op, key: key(), deadline: DEADLINE }]);
            }
        };
        events.push(Event::Asked { op, value: Some(value.clone()) });
        Command::Change(vec![Change { op, key: key(), expected, value: value.into(), quiet, deadline: DEADLINE }])
    }

    fn asks(&self, number: usize) -> (usize, Ask) {
        let first = &self.setting.first;
        if number < first.len() { first[number] } else { self.setting.later[number - first.len()] }
    }

    /// What a member does with an input, worked out once.
    fn step(&self, n: usize, node: Id, input: Input) -> Arc<Step> {
        self.steps.of((node, input), || Arc::new(self.work_out(n, node, input)))
    }

    fn work_out(&self, n: usize, id: Id, input: Input) -> Step {
        let mut node = Node::clone(&self.nodes.get(id));
        let mut events = Vec::new();
        let mut sent = Vec::new();
        if let Input::Tick = input {
            node.now = node.now.plus(TICK);
        }
        let crashes = matches!(input, Input::Crash | Input::LetterAndCrash(_));
        if input != Input::Crash {
            let command = match input {
                Input::Ask(number) => {
                    let op = OpId(u64::try_from(number).unwrap() + 1);
                    Some(self.command(self.asks(number).1, op, &mut events))
                }
                _ => None,
            };
            self.call(n, &mut node, !crashes, &mut events, &mut sent, |core, env| match input {
                Input::Letter(letter) | Input::LetterAndCrash(letter) => {
                    let letter = self.letters.get(letter);
                    core.handle_message(env, &member(letter.from), letter.message.clone());
                }
                Input::Tick => core.handle_tick(env),
                Input::Ask(_) => core.submit(env, command.expect("made above")),
                Input::Crash => {}
            });
        }
        if crashes {
            node.stored.begin();
            node = Self::start(n, node.stored, node.now, node.restarts + 1);
            let asks = self.setting.first.iter().find(|(m, _)| *m == n).filter(|_| self.setting.again);
            let op = OpId(100 * (u64::try_from(n).unwrap() + 1) + node.restarts);
            let command = asks.map(|(_, ask)| self.command(*ask, op, &mut events));
            self.call(n, &mut node, true, &mut events, &mut sent, |core, env| {
                // It shows itself to the others at once, as its timer has it.
                core.handle_tick(env);
                if let Some(command) = command {
                    core.submit(env, command);
                }
            });
        }
        let after = self.nodes.id(node);
        let nothing = after == id && sent.is_empty() && events.is_empty();
        Step { node: after, sent, events: self.events.id(events), nothing }
    }

    /// One input for one member, and everything that follows from it at once.
    fn call(
        &self,
        n: usize,
        node: &mut Node,
        tells: bool,
        events: &mut Vec<Event>,
        sent: &mut Vec<(Link, Id, bool)>,
        input: impl FnOnce(&mut Ledger, &mut Env<'_>),
    ) {
        let mut rng = dice();
        input(&mut node.core, &mut Env { now: node.now, rng: &mut rng });
        let (mut rows, mut after) = (Vec::new(), Vec::new());
        while let Some(effect) = node.core.poll_effect() {
            match effect {
                Effect::Persist(row) => rows.push(row),
                other => after.push(other),
            }
        }
        look(n, &node.stored, &rows, events);
        let votes = |row: &Row| matches!(row, Row::Promise { .. } | Row::Accepted { .. });
        if node.restarts > 0 && rows.iter().any(votes) {
            events.push(Event::Again(VOTES_AGAIN));
        }
        rows.into_iter().for_each(|row| node.stored.apply(row));
        if tells {
            let before = events.len();
            after.into_iter().for_each(|effect| self.carry_out(n, effect, events, sent));
            if node.restarts > 0 && events[before..].iter().any(|e| matches!(e, Event::AskedToAccept { .. })) {
                events.push(Event::Again(PROPOSES_AGAIN));
            }
        }
    }

    fn carry_out(&self, from: usize, effect: Effect, events: &mut Vec<Event>, sent: &mut Vec<(Link, Id, bool)>) {
        match effect {
            Effect::Send { to, mut message } => {
                let to = (0..self.members()).find(|m| member(*m) == to).expect("it knows nobody else");
                // Comparing copies leads to reads, which are asked for where they are to be looked at.
                let lost = |item: &Item| match item {
                    Item::Digest { .. } => true,
                    Item::Push { .. } => !self.setting.pushes,
                    _ => false,
                };
                message.items.retain(|item| !lost(item));
                message.header.sender.count = message.header.sender.began;
                for item in &message.items {
                    if let Item::Accept { key, ballot, .. } = item {
                        let list = message.header.list.as_deref().expect("questions name a list").clone();
                        events.push(Event::AskedToAccept { list, key: key.clone(), ballot: ballot.clone() });
                    }
                }
                if !message.items.is_empty() {
                    let link = (u8::try_from(from).unwrap(), u8::try_from(to).unwrap());
                    let asks = message.items.iter().any(is_question);
                    sent.push((link, self.letters.id(Letter { from, to, message }), asks));
                }
            }
            Effect::Answer { op, answer } => events.push(Event::Answered { op, answer }),
            Effect::RolledBack { text } => events.push(Event::Wrong(text)),
            _ => {}
        }
    }

    /// What was answered arrives at once, or never.
    fn answers_arrive(&self, state: &mut State, step: &Step, lost: bool) {
        for answer in step.sent.iter().filter(|(_, _, asks)| !asks) {
            let Some(at) = state.net.iter().position(|letter| letter == answer) else { continue };
            let to = arrives(state, at, false, true);
            if !lost {
                let step = self.step(to, state.nodes[to], Input::Letter(answer.1));
                self.take(state, to, &step);
                self.answers_arrive(state, &step, false);
            }
        }
    }

    fn take(&self, state: &mut State, n: usize, step: &Step) {
        state.nodes[n] = step.node;
        for letter in &step.sent {
            let behind = state.net.partition_point(|(link, ..)| *link <= letter.0);
            state.net.insert(behind, *letter);
        }
        if step.events != self.silence {
            (state.past, state.broken, state.answered) = self.comes.of((state.past, step.events), || {
                let mut past = Past::clone(&self.pasts.get(state.past));
                self.events.get(step.events).iter().for_each(|event| past.comes(event));
                let (broken, answered) = (past.broken.is_some(), usize::try_from(past.answered).unwrap());
                (self.pasts.id(past), broken, answered)
            });
        }
        // An answer that says nothing now says nothing ever: what it answers is over.
        let nodes = &state.nodes;
        state.net.retain(|((_, to), id, asks)| {
            *asks || usize::from(*to) != n || !self.step(n, nodes[n], Input::Letter(*id)).nothing
        });
    }
}

fn is_question(item: &Item) -> bool {
    matches!(
        item,
        Item::Prepare { .. }
            | Item::Accept { .. }
            | Item::Query { .. }
            | Item::Raise { .. }
            | Item::Keys { .. }
            | Item::Push { .. }
            | Item::PushWhole { .. }
            | Item::Show
    )
}

/// What a transaction says, before it is there.
fn look(n: usize, stored: &Stored, rows: &[Row], events: &mut Vec<Event>) {
    let mut list = stored.list.as_ref().map_or(0, |l| l.number);
    let mut promises: BTreeMap<&RecordKey, Option<Ballot>> = BTreeMap::new();
    let voter = voter(n);
    for row in rows {
        let mut promise = |key, ballot: &Ballot, alone| {
            let held = promises.entry(key).or_insert_with(|| stored.registers.get(key).and_then(|r| r.promise.clone()));
            let before = held.replace(ballot.clone());
            let (voter, key, ballot) = (voter.clone(), RecordKey::clone(key), ballot.clone());
            Event::Promised { voter, list, key, ballot, before, alone }
        };
        match row {
            Row::List(new) => {
                list = new.number;
                events.push(Event::Listed(VoterList::clone(new)));
            }
            Row::Promise { key, ballot } => events.push(promise(key, ballot, true)),
            Row::Accepted { key, promise: next, ballot, record } => {
                events.push(promise(key, next, false));
                let (voter, key, ballot, record) = (voter.clone(), key.clone(), ballot.clone(), record.clone());
                events.push(Event::Accepted { voter, list, key, ballot, record });
            }
            Row::Copy { key, record } => {
                let before = stored.copies.get(key).cloned();
                events.push(Event::Copied { key: key.clone(), before, record: record.clone() });
            }
            _ => {}
        }
    }
}

impl Past {
    fn comes(&mut self, event: &Event) {
        if self.broken.is_none()
            && let Err(broken) = self.take(event)
        {
            self.broken = Some(broken);
        }
    }

    fn take(&mut self, event: &Event) -> Result<(), String> {
        let text = |broken: invariant::Broken| broken.to_string();
        match event {
            Event::Listed(list) => {
                if list.number > 1 {
                    self.majority = list.majority();
                }
                self.history.listed(list).map_err(text)
            }
            Event::Promised { voter, list, key, ballot, before, alone } => {
                if *alone && before.as_ref().is_some_and(|b| b >= ballot) {
                    return Err(format!(
                        "a_promise_is_given_once is broken for `{key}`: {voter:?} {ballot:?} after {before:?}"
                    ));
                }
                self.promised.entry((key.clone(), ballot.clone())).or_default().insert((voter.clone(), *list));
                invariant::promises_never_go_back(key, before.as_ref(), Some(ballot), None).map_err(text)
            }
            Event::Accepted { voter, list, key, ballot, record } => {
                self.holds.insert((voter.clone(), key.clone()), record.version);
                self.under_new(voter, *list, key, ballot);
                self.history.accepted(voter, *list, key, ballot, record).map_err(text)
            }
            Event::Copied { key, before, record } => {
                invariant::versions_never_go_back(key, before.as_ref(), record).map_err(text)?;
                self.history.told_as_chosen(key, record).map_err(text)?;
                if key.is_mesh() { self.settled(record) } else { Ok(()) }
            }
            Event::AskedToAccept { list, key, ballot } => {
                let promised = self.promised.get(&(key.clone(), ballot.clone()));
                let under = |v: &&Voter| promised.is_some_and(|p| p.contains(&((*v).clone(), list.number)));
                let count = list.voters.iter().filter(under).count();
                if count < list.majority() {
                    return Err(format!(
                        "a_majority_promised_first is broken for `{key}`: {count} of {list:?} at {ballot:?}"
                    ));
                }
                Ok(())
            }
            Event::Asked { op, value } => {
                self.asked.insert(*op, (self.floor, value.clone()));
                Ok(())
            }
            Event::Answered { op, answer } => self.answer(*op, answer),
            Event::Again(what) => {
                self.marks.insert(what);
                Ok(())
            }
            Event::Wrong(text) => Err(text.clone()),
        }
    }

    /// Whether a majority of the new list has accepted one ballot under it.
    fn under_new(&mut self, voter: &Voter, list: u64, by: &RecordKey, ballot: &Ballot) {
        if list < 2 || *by != key() || self.marks.contains(NEW_MAJORITY) {
            return;
        }
        let voters = self.under_new.entry(ballot.clone()).or_default();
        voters.insert(voter.clone());
        if voters.len() >= self.majority {
            self.under_new.clear();
            self.marks.insert(NEW_MAJORITY);
        }
    }

    /// The mesh record is known to be this: if it says settled, the list must be fit to be followed by the next.
    fn settled(&self, record: &Versioned) -> Result<(), String> {
        let Ok(record) = MeshRecord::from_json(&record.value) else { return Err("the mesh record is none".to_owned()) };
        let (list, state) = (record.voters, record.voters_state);
        let newest = self.history.newest(&key());
        if list.number < 2 || state != VotersState::Settled || newest == 0 {
            return Ok(());
        }
        let holds = |v: &&Voter| self.holds.get(&((*v).clone(), key())).is_some_and(|held| *held >= newest);
        let count = list.voters.iter().filter(holds).count();
        if count < list.majority() {
            return Err(format!("a_settled_list_holds_every_key is broken: {count} of {list:?} hold version {newest}"));
        }
        Ok(())
    }

    fn answer(&mut self, op: OpId, answer: &Answer) -> Result<(), String> {
        let wrong = |what: String| Err(format!("answers_are_true is broken: {op:?} {what}"));
        let Some((floor, value)) = self.asked.remove(&op) else { return wrong("is answered again".to_owned()) };
        self.answered += 1;
        let told = match answer {
            Answer::Changed { version } => {
                self.changed += 1;
                self.history.changed(&key(), *version).map_err(|b| b.to_string())?;
                let chosen = self.history.chosen(&key(), *version).map(|c| c.value.to_string());
                if chosen != value || *version <= floor {
                    return wrong(format!("made version {version} after {floor}, which is {chosen:?}, not {value:?}"));
                }
                *version
            }
            Answer::Conflict { current, .. } | Answer::Read { current } => {
                if let Some(current) = current {
                    self.history.told_as_chosen(&key(), current).map_err(|b| b.to_string())?;
                }
                let version = current.as_ref().map_or(0, |c| c.version);
                if version < floor {
                    return wrong(format!("is told {version} after {floor}"));
                }
                version
            }
            other => return wrong(format!("is told {other:?} long before its deadline")),
        };
        self.floor = self.floor.max(told);
        Ok(())
    }
}

impl Model for Ledgers {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut past = Past::default();
        let mut events = Vec::new();
        let mut nodes = Vec::new();
        for n in 0..self.members() {
            let disk = self.disk(n);
            events.extend(disk.list.as_deref().cloned().map(Event::Listed));
            let mut node = Self::start(n, disk, BEGAN, 0);
            // The others have heard it already, so that it has begun is on its disk.
            self.call(n, &mut node, false, &mut Vec::new(), &mut Vec::new(), |_, _| ());
            nodes.push(node);
        }
        for (n, node) in nodes.iter().enumerate() {
            let Some(Register { accepted: Some((ballot, record)), .. }) = node.stored.registers.get(&RecordKey::mesh())
            else {
                continue;
            };
            let (voter, key, ballot, record) = (voter(n), RecordKey::mesh(), ballot.clone(), record.clone());
            events.push(Event::Accepted { voter, list: 1, key, ballot, record });
        }
        events.iter().for_each(|event| past.comes(event));
        let mut state = State {
            nodes: nodes.into_iter().map(|node| self.nodes.id(node)).collect(),
            net: Vec::new(),
            past: self.pasts.id(past),
            broken: false,
            answered: 0,
            later: 0,
            budget: self.setting.budget,
        };
        for (number, (n, _)) in self.setting.first.iter().enumerate() {
            let step = self.step(*n, state.nodes[*n], Input::Ask(number));
            self.take(&mut state, *n, &step);
        }
        if self.setting.begins != Beginning::Settled {
            let step = self.step(0, state.nodes[0], Input::Tick);
            self.take(&mut state, 0, &step);
        }
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.broken {
            return;
        }
        for (at, (link, letter, _)) in state.net.iter().enumerate() {
            let letter = *letter;
            let first = at == 0 || state.net[at - 1].0 != *link;
            let lates: &[bool] = if !first && state.budget.late > 0 { &[false, true] } else { &[false] };
            for late in lates.iter().copied() {
                actions.push(Action::Deliver { at, letter, again: false, late });
                if state.budget.repeats > 0 {
                    actions.push(Action::Deliver { at, letter, again: true, late });
                }
            }
            if state.budget.crashes > 0 && self.crashes(link.1.into()) {
                actions.push(Action::DeliverAndCrash { at, letter });
            }
            if state.budget.unheard > 0 {
                actions.push(Action::Unheard { at, letter });
            }
        }
        for node in 0..state.nodes.len() {
            if state.budget.crashes > 0 && self.crashes(node) {
                actions.push(Action::Crash { node });
            }
            if state.budget.ticks > 0 && self.setting.first.iter().any(|(n, _)| *n == node) {
                actions.push(Action::Tick { node });
            }
        }
        if state.later < self.setting.later.len() && state.answered >= self.setting.first.len() + state.later {
            actions.push(Action::Ask);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let (n, input) = match action {
            Action::Deliver { at, letter, again, late } => {
                state.budget.repeats -= u8::from(again);
                state.budget.late -= u8::from(late);
                (arrives(&mut state, at, again, late), Input::Letter(letter))
            }
            Action::DeliverAndCrash { at, letter } => {
                state.budget.crashes -= 1;
                (arrives(&mut state, at, false, false), Input::LetterAndCrash(letter))
            }
            Action::Unheard { at, letter } => {
                state.budget.unheard -= 1;
                (arrives(&mut state, at, false, false), Input::Letter(letter))
            }
            Action::Crash { node } => {
                state.budget.crashes -= 1;
                (node, Input::Crash)
            }
            Action::Tick { node } => {
                state.budget.ticks -= 1;
                (node, Input::Tick)
            }
            Action::Ask => {
                let number = self.setting.first.len() + state.later;
                state.later += 1;
                (self.asks(number).0, Input::Ask(number))
            }
        };
        let step = self.step(n, state.nodes[n], input);
        if step.nothing {
            // The same as a message that never comes.
            return None;
        }
        self.take(&mut state, n, &step);
        if self.setting.prompt {
            self.answers_arrive(&mut state, &step, matches!(action, Action::Unheard { .. }));
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing is broken", |_, state: &State| !state.broken),
            Property::sometimes("a change is made", |model: &Ledgers, state: &State| {
                model.pasts.get(state.past).changed > 0
            }),
            Property::sometimes("everything is answered", |model: &Ledgers, state: &State| {
                state.answered >= model.setting.first.len() + model.setting.later.len()
            }),
            Property::sometimes(VOTES_AGAIN, |model: &Ledgers, state: &State| {
                model.setting.budget.crashes == 0 || model.pasts.get(state.past).marks.contains(VOTES_AGAIN)
            }),
            Property::sometimes(PROPOSES_AGAIN, |model: &Ledgers, state: &State| {
                !model.setting.again || model.pasts.get(state.past).marks.contains(PROPOSES_AGAIN)
            }),
            Property::sometimes(NEW_MAJORITY, |model: &Ledgers, state: &State| {
                model.setting.begins == Beginning::Settled || model.pasts.get(state.past).marks.contains(NEW_MAJORITY)
            }),
            Property::sometimes("the new list is settled", |model: &Ledgers, state: &State| {
                let settled = |id: &Id| {
                    let node = model.nodes.get(*id);
                    let record = node.stored.copies.get(&RecordKey::mesh()).map(|c| MeshRecord::from_json(&c.value));
                    record
                        .is_some_and(|r| r.is_ok_and(|r| r.voters.number > 1 && r.voters_state == VotersState::Settled))
                };
                model.setting.begins == Beginning::Settled || state.nodes.iter().any(settled)
            }),
        ]
    }
}

/// Takes the letter at this place from the net; gives its receiver.
fn arrives(state: &mut State, at: usize, again: bool, late: bool) -> usize {
    let link = state.net[at].0;
    if !again {
        state.net.remove(at);
    }
    if !late {
        let first = state.net.partition_point(|(l, ..)| *l < link);
        state.net.drain(first..at);
    }
    usize::from(link.1)
}
