//! The lease core of one simulated process, driven as the binary drives it.
//!
//! One input at a time; what is lost is out of view at once, then new highest epochs are stored, and only then what is new
//! is shown, asked of the ledger and answered. A crash may come between any two of these. Must not know: the network, what
//! is checked.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use fastrand::Rng;
use miroir::proto::env::{Env, Instant};
use miroir::proto::lease::{Config, Effect, Eligible, Fences, LeaseCore, OrderRefusal, WantError, rank};
use miroir::proto::operation::Guard;
use miroir::proto::register::{Answer, Chosen, OpId};
use miroir::types::{Epoch, Holder, LeaseSign, MemberId, Order, RecordVersion, Scope};

/// So many TTLs the member that comes first for a standing scope has lived before another one gives the scope to it.
const SETTLED_TTLS: u32 = 3;

/// What an order asks for.
#[derive(Debug, Clone)]
pub enum Asks {
    /// That the hold is known.
    Hold,
    /// That names are known at a version, because an operation's record calls for it.
    Names(Box<Guard>, RecordVersion),
}

/// What the core hears.
#[derive(Debug)]
pub enum Input {
    /// A copy of the ledger.
    Chosen(String, Chosen),
    /// This voter has accepted it.
    Accepted(String, String),
    /// From another member.
    Gossip(MemberId, Vec<LeaseSign>),
    /// The ledger's.
    Answer(OpId, Answer),
    /// Another member's order, and the version that this member's copy of its record has.
    Order(MemberId, Order, RecordVersion, Asks),
    /// Somebody has to lead the scope.
    Want(Scope),
    /// Nobody has to any more.
    Unwant(Scope),
    /// What ran under the lease has ended.
    Ended(Scope),
    /// Its timer is due.
    Tick,
}

/// What a step leads to, once its epochs are stored.
#[derive(Debug)]
pub enum Done {
    /// For the ledger, the scope's holder, or gossip.
    Effect(Effect),
    /// An order was looked at.
    Order(MemberId, Order, Asks, Result<(), OrderRefusal>),
    /// A scope can't be wanted.
    NotWanted(Scope, WantError),
}

/// A hold as others in the process see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Under which epoch.
    pub epoch: Epoch,
    /// The first instant at which it is over.
    pub until: Instant,
}

#[derive(Debug)]
struct Commit {
    fences: BTreeMap<Scope, Epoch>,
    after: Vec<Done>,
    done: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Leading {
    /// The core.
    pub core: LeaseCore,
    /// What the process takes itself to hold.
    pub shown: BTreeMap<Scope, Held>,
    /// What it gossips.
    pub signs: Vec<LeaseSign>,
    me: MemberId,
    config: Config,
    inbox: VecDeque<Input>,
    commit: Option<Commit>,
    members: Vec<MemberId>,
    eligible: Eligible,
    lives: BTreeMap<MemberId, (Epoch, Instant)>,
    offered: BTreeMap<Scope, (MemberId, Epoch)>,
}

/// What a step needs to know of the rest of the process.
#[derive(Debug)]
pub struct Standing {
    /// Who belongs to the mesh.
    pub members: Vec<MemberId>,
    /// Whether the copies are fresh.
    pub fresh: bool,
}

/// How a step went on.
#[derive(Debug)]
pub enum Step {
    /// Nothing to do, or not able to.
    Idle,
    /// Epochs are on their way to the disk.
    Committing,
    /// These are to be carried out now.
    Done(Vec<Done>),
}

impl Leading {
    /// As a process begins, with what is on its disk.
    pub fn new(me: Holder, config: Config, fences: &BTreeMap<Scope, Epoch>, now: Instant) -> Self {
        let member = me.member.clone();
        let fences = Fences::recover(fences.iter().map(|(scope, epoch)| (scope.clone(), *epoch)));
        Self {
            core: LeaseCore::recover(me, config.clone(), fences, now),
            shown: BTreeMap::new(),
            signs: Vec::new(),
            me: member,
            config,
            inbox: VecDeque::new(),
            commit: None,
            members: Vec::new(),
            eligible: Eligible::Yes,
            lives: BTreeMap::new(),
            offered: BTreeMap::new(),
        }
    }

    /// Something for the core to hear.
    pub fn hear(&mut self, input: Input) {
        self.inbox.push_back(input);
    }

    /// The epoch under which the process takes itself to hold the scope.
    pub fn believes(&self, scope: &Scope, now: Instant) -> Option<Epoch> {
        self.shown.get(scope).filter(|held| now < held.until).map(|held| held.epoch)
    }

    /// When its timer is due; `None` while it is busy.
    pub fn next_wake(&self) -> Option<Instant> {
        self.core.next_wake().filter(|_| self.commit.is_none())
    }

    /// Takes one input, if there is one.
    pub fn step(&mut self, now: Instant, rng: &mut Rng, standing: &Standing) -> Step {
        if let Some(commit) = self.commit.take_if(|c| c.done) {
            self.show(now);
            return Step::Done(commit.after);
        }
        if self.commit.is_some() {
            return Step::Idle;
        }
        let mut env = Env { now, rng };
        let mut after = Vec::new();
        let eligible = match (standing.members.contains(&self.me), standing.fresh) {
            (false, _) => Eligible::No,
            (true, false) => Eligible::Stale,
            (true, true) => Eligible::Yes,
        };
        if standing.members != self.members {
            self.members.clone_from(&standing.members);
            self.core.handle_members(&mut env, self.members.clone());
        } else if eligible != self.eligible {
            self.eligible = eligible;
            self.core.handle_eligible(&mut env, eligible);
        } else if let Some((scope, offer)) = self.offer(now) {
            self.offered.insert(scope.clone(), offer);
            self.core.handle_yield(&mut env, &scope);
        } else if let Some(input) = self.inbox.pop_front() {
            match input {
                Input::Chosen(key, chosen) => self.core.handle_chosen(&mut env, &key, &chosen),
                Input::Accepted(key, value) => self.core.handle_accepted(&mut env, &key, &value),
                Input::Gossip(from, signs) => self.core.handle_gossip(&mut env, &from, &signs),
                Input::Answer(op, answer) => self.core.handle_answer(&mut env, op, answer),
                Input::Order(from, order, known, asks) => {
                    let checked = self.core.handle_order(&mut env, &order, known);
                    after.push(Done::Order(from, order, asks, checked));
                }
                Input::Want(scope) => {
                    if let Err(error) = self.core.handle_want(&mut env, &scope) {
                        after.push(Done::NotWanted(scope, error));
                    }
                }
                Input::Unwant(scope) => self.core.handle_release(&mut env, &scope),
                Input::Ended(scope) => self.core.handle_ended(&mut env, &scope),
                Input::Tick => self.core.handle_tick(&mut env),
            }
        } else {
            return Step::Idle;
        }
        let mut fences = BTreeMap::new();
        let mut effects = Vec::new();
        while let Some(effect) = self.core.poll_effect() {
            match effect {
                Effect::Persist { scope, epoch } => drop(fences.insert(scope, epoch)),
                other => effects.push(Done::Effect(other)),
            }
        }
        effects.extend(after);
        if fences.is_empty() {
            self.show(now);
            return Step::Done(effects);
        }
        let core = &self.core;
        self.shown.retain(|scope, held| core.believes(scope, now) == Some(held.epoch));
        self.commit = Some(Commit { fences, after: effects, done: false });
        Step::Committing
    }

    fn show(&mut self, now: Instant) {
        let scopes: Vec<Scope> = self.core.rows(now).map(|row| row.scope).collect();
        let held = |scope: Scope| {
            let (epoch, until) = (self.core.believes(&scope, now)?, self.core.held_until(&scope, now)?);
            Some((scope, Held { epoch, until }))
        };
        self.shown = scopes.into_iter().filter_map(held).collect();
    }

    /// The epochs under way are on the disk.
    pub fn committed(&mut self) -> BTreeMap<Scope, Epoch> {
        let Some(commit) = &mut self.commit else { return BTreeMap::new() };
        commit.done = true;
        std::mem::take(&mut commit.fences)
    }

    /// A standing scope to be given to the member that comes first for it, which has lived for a while.
    fn offer(&mut self, now: Instant) -> Option<(Scope, (MemberId, Epoch))> {
        let mut lives = BTreeMap::new();
        for row in self.core.rows(now).filter(|row| row.holder.is_some() && !row.expires_in.is_zero()) {
            if let Scope::Alive(member) = &row.scope {
                let before = self.lives.get(member).filter(|(epoch, _)| *epoch == row.epoch);
                lives.insert(member.clone(), before.copied().unwrap_or((row.epoch, now)));
            }
        }
        self.lives = lives;
        let settled = Duration::from_millis(self.config.ttl_ms) * SETTLED_TTLS;
        let members: Vec<&MemberId> = self.members.iter().collect();
        Scope::STANDING.iter().filter(|scope| self.believes(scope, now).is_some()).find_map(|scope| {
            let first = *rank::order(scope, &members).first()?;
            let (epoch, since) = *self.lives.get(first)?;
            let offer = (first.clone(), epoch);
            let is_new = self.offered.get(scope) != Some(&offer);
            (is_new && *first != self.me && now.since(since) >= settled).then(|| (scope.clone(), offer))
        })
    }
}
