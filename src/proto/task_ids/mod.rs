//! Task ids: unique whatever happens, and dense and growing while somebody holds `task_ids`.
//!
//! A record of the ledger counts the ids that were given away, and names the process that took the newest range of them. Who
//! has written itself there has a range that nobody else gets: that alone makes ids unique, and it is forgotten with the
//! process. The holder of `task_ids` hands out its range one by one, to whoever asks. Where it can't be reached in time a
//! member takes a range of its own; whoever sees another's range begin drops the rest of its own, so that ids grow. For the
//! time without a majority each process keeps a spare range: only those ids may be lower than earlier ones.
//!
//! Source: design §12. Rule: an id comes from a range of which the ledger has said that this very process took it; what
//! became of a change that nobody knows of is a hole. Must not know: what tasks are, how members ask each other.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::env::{Env, Instant};
use super::register::{Answer, Change, Chosen, OpId};
use crate::types::{Holder, MemberId, TaskUid};

#[cfg(test)]
mod tests;

/// The ledger's key of the counter.
pub const KEY: &str = "task_ids";
/// Ids end here: some SDKs read them as signed numbers of 32 bits.
const END: u32 = 1 << 31;

/// How it goes about it.
#[derive(Debug, Clone)]
pub struct Config {
    /// Ids of one range.
    pub range: u32,
    /// With fewer left the holder takes the next range.
    pub low: u32,
    /// How long the holder may take to answer.
    pub ask_within: Duration,
    /// How long the ledger may take.
    pub draw_within: Duration,
    /// After it could not be reached the holder is not asked again for so long.
    pub pause: Duration,
    /// After a failure the ledger is tried again after so long, or up to half as much again.
    pub retry: Duration,
    /// How long somebody here waits where there is no spare id either.
    pub take_within: Duration,
    /// Most that wait here for an id.
    pub waiting: usize,
    /// Most ids of one question.
    pub question: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            range: 256,
            low: 64,
            ask_within: Duration::from_millis(200),
            draw_within: Duration::from_millis(1_000),
            pause: Duration::from_millis(1_000),
            retry: Duration::from_millis(250),
            take_within: Duration::from_millis(5_000),
            waiting: 4_096,
            question: 64,
        }
    }
}

/// What the record says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// The lowest id that is in nobody's range.
    pub next: u32,
    /// Who took the range right below it.
    #[serde(flatten)]
    pub by: Holder,
}

/// Somebody in this process who wants an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TakeId(pub u64);

/// A question of another member, or one to it, as its driver names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QuestionId(pub u64);

/// Why there is no id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoId {
    /// Neither the holder nor a majority answers, and the spare ids are used up.
    #[error("no majority of the mesh can be reached, and the spare task ids are used up")]
    NoMajority,
    /// Too many wait.
    #[error("too many requests wait for a task id")]
    Busy,
    /// All 2^31 are.
    #[error("all 2^31 task ids are used up")]
    UsedUp,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// An id for who wanted it.
    Given {
        /// Who.
        take: TakeId,
        /// The id, or why there is none.
        id: Result<TaskUid, NoId>,
    },
    /// To be asked of the holder; answered by [`TaskIds::handle_told`], or not at all.
    Ask {
        /// The holder.
        to: MemberId,
        /// To be named by the answer.
        question: QuestionId,
        /// So many ids.
        count: u32,
    },
    /// The answer to another member's question; no ids: this member can't say now.
    Told {
        /// To which.
        question: QuestionId,
        /// In order; as many as were asked for, or none.
        ids: Vec<TaskUid>,
    },
    /// To be changed in the ledger; answered by [`TaskIds::handle_answer`].
    Draw(Change),
}

#[derive(Debug, Clone)]
struct Asking {
    question: QuestionId,
    to: MemberId,
    until: Instant,
}

#[derive(Debug, Clone)]
struct Drawing {
    op: OpId,
    expected: u64,
    next: u32,
    until: Instant,
    /// For the time without a majority.
    spare: bool,
}

/// Who waits for ids of this process's own range.
#[derive(Debug, Clone)]
enum Waits {
    Here(TakeId, Instant),
    Peer { question: QuestionId, count: u32, ids: Vec<TaskUid> },
}

/// See the module.
#[derive(Debug, Clone)]
pub struct TaskIds {
    config: Config,
    me: Holder,
    /// The newest that is known of the record: its version, and the first id in nobody's range.
    counter: (u64, u32),
    /// The ranges of this process that nobody has taken one after, lowest first.
    line: VecDeque<Range<u32>>,
    spare: Range<u32>,
    holder: Option<MemberId>,
    /// Wait for the holder's answer, or to be asked of it.
    asks: VecDeque<(TakeId, Instant)>,
    asking: Option<Asking>,
    queue: VecDeque<Waits>,
    drawing: Option<Drawing>,
    /// Until then the holder is taken for away.
    holder_away: Instant,
    /// Until then the ledger is taken for being without a majority.
    ledger_away: Instant,
    used_up: bool,
    /// Of the last attempt to take a range nobody knows what became.
    rivalled: bool,
    next: u64,
    effects: VecDeque<Effect>,
}

impl TaskIds {
    /// A new process has no ranges: nothing of this core is durable.
    pub fn new(config: Config, me: Holder) -> Self {
        Self {
            config,
            me,
            counter: (0, 0),
            line: VecDeque::new(),
            spare: 0..0,
            holder: None,
            asks: VecDeque::new(),
            asking: None,
            queue: VecDeque::new(),
            drawing: None,
            holder_away: Instant::default(),
            ledger_away: Instant::default(),
            used_up: false,
            rivalled: false,
            next: 0,
            effects: VecDeque::new(),
        }
    }

    /// Somebody here wants an id; answered once.
    pub fn handle_take(&mut self, env: &mut Env, take: TakeId) {
        if self.asks.len() + self.queue.len() >= self.config.waiting {
            self.effects.push_back(Effect::Given { take, id: Err(NoId::Busy) });
        } else {
            self.asks.push_back((take, env.now));
        }
        self.run(env);
    }

    /// Another member wants ids; answered once.
    pub fn handle_ask(&mut self, env: &mut Env, question: QuestionId, count: u32) {
        let room = self.asks.len() + self.queue.len() < self.config.waiting;
        if self.leads() && room && (1..=self.config.question).contains(&count) {
            self.queue.push_back(Waits::Peer { question, count, ids: Vec::new() });
        } else {
            self.effects.push_back(Effect::Told { question, ids: Vec::new() });
        }
        self.run(env);
    }

    /// The holder has answered a question; no ids: it has none, or is not the holder, or could not be asked.
    pub fn handle_told(&mut self, env: &mut Env, question: QuestionId, ids: Vec<TaskUid>) {
        let Some(asked) = self.asking.take_if(|a| a.question == question) else { return };
        if ids.is_empty() {
            self.give_up_on(env, &asked.to);
        }
        for id in ids {
            // What nobody waits for any more is a hole.
            let Some((take, _)) = self.asks.pop_front() else { break };
            self.effects.push_back(Effect::Given { take, id: Ok(id) });
        }
        self.run(env);
    }

    /// Who holds `task_ids`, as far as this member knows.
    pub fn handle_holder(&mut self, env: &mut Env, holder: Option<MemberId>) {
        if self.holder != holder {
            self.holder = holder;
            self.holder_away = Instant::default();
        }
        self.run(env);
    }

    /// What the members have agreed on under [`KEY`].
    pub fn handle_chosen(&mut self, env: &mut Env, chosen: &Chosen) {
        self.learn(chosen);
        self.run(env);
    }

    /// The ledger's answer to [`Effect::Draw`].
    pub fn handle_answer(&mut self, env: &mut Env, op: OpId, answer: &Answer) {
        let Some(drawing) = self.drawing.take_if(|d| d.op == op) else { return };
        match answer {
            Answer::Changed { version } => {
                self.counter = (*version, drawing.next);
                self.rivalled = false;
                let range = drawing.next - self.config.range..drawing.next;
                if drawing.spare { self.spare = range } else { self.line.push_back(range) }
            }
            Answer::Conflict { current } => {
                let news = current.as_ref().is_some_and(|current| self.learn(current));
                // A version that goes back, or a record that can't be read, would be tried for ever.
                if !news && self.counter.0 <= drawing.expected {
                    self.ledger_fails(env);
                }
            }
            // A rival came in between: whose range it is nobody knows, and the next attempt finds who is ahead.
            Answer::Unknown if !std::mem::replace(&mut self.rivalled, true) => {}
            Answer::Read { .. } | Answer::Unknown | Answer::NoQuorum => self.ledger_fails(env),
        }
        self.run(env);
    }

    /// Time has passed: due at [`Self::next_wake`].
    pub fn handle_tick(&mut self, env: &mut Env) {
        self.run(env);
    }

    /// What is to be done next.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When [`Self::handle_tick`] is due.
    pub fn next_wake(&self) -> Option<Instant> {
        let asked = self.asking.as_ref().map(|a| a.until);
        let drawn = self.drawing.as_ref().map(|d| d.until);
        let draws = self.drawing.is_none() && (self.needs_spare() || !self.queue.is_empty());
        let draws = (draws && !self.used_up).then_some(self.ledger_away);
        let late = self.queue.iter().find_map(|waits| match waits {
            Waits::Here(_, since) => Some(since.plus(self.config.take_within)),
            Waits::Peer { .. } => None,
        });
        [asked, drawn, draws, late].into_iter().flatten().min()
    }

    fn leads(&self) -> bool {
        self.holder.as_ref() == Some(&self.me.member)
    }

    fn needs_spare(&self) -> bool {
        self.spare.is_empty()
    }

    /// Takes in a version of the record; whether it is news.
    fn learn(&mut self, chosen: &Chosen) -> bool {
        let Ok(counter) = serde_json::from_str::<Counter>(&chosen.value) else { return false };
        if chosen.version <= self.counter.0 {
            return false;
        }
        // What this process took itself it hears of by the answer.
        let of_this = self.drawing.as_ref().is_some_and(|d| counter.by == self.me && counter.next == d.next);
        if of_this {
            return false;
        }
        self.line.clear();
        self.counter = (chosen.version, counter.next);
        true
    }

    /// Asks, draws and gives, as far as there is something to do.
    fn run(&mut self, env: &mut Env) {
        if let Some(late) = self.asking.take_if(|a| a.until <= env.now) {
            self.give_up_on(env, &late.to);
        }
        if self.drawing.take_if(|d| d.until <= env.now).is_some() {
            self.ledger_fails(env);
        }
        self.ask(env);
        self.give(env);
        self.draw(env);
    }

    /// Sends those who wait to the holder, or to the own range if there is none.
    fn ask(&mut self, env: &Env) {
        let elsewhere = self.holder.clone().filter(|h| *h != self.me.member && env.now >= self.holder_away);
        let Some(to) = elsewhere else {
            self.asking = None;
            self.queue.extend(self.asks.drain(..).map(|(take, since)| Waits::Here(take, since)));
            return;
        };
        if self.asking.as_ref().is_some_and(|a| a.to == to) || self.asks.is_empty() {
            return;
        }
        self.next += 1;
        let question = QuestionId(self.next);
        let count = u32::try_from(self.asks.len()).unwrap_or(u32::MAX).min(self.config.question);
        self.asking = Some(Asking { question, to: to.clone(), until: env.now.plus(self.config.ask_within) });
        self.effects.push_back(Effect::Ask { to, question, count });
    }

    /// Hands out what there is.
    fn give(&mut self, env: &Env) {
        while let Some(mut waits) = self.queue.pop_front() {
            match &mut waits {
                Waits::Here(take, since) => {
                    let late = env.now >= since.plus(self.config.take_within);
                    let id = match self.line_id().or_else(|| self.spare_id(env.now)) {
                        None if self.used_up => Some(Err(NoId::UsedUp)),
                        None if late => Some(Err(NoId::NoMajority)),
                        id => id.map(Ok),
                    };
                    let Some(id) = id else { return self.queue.push_front(waits) };
                    self.effects.push_back(Effect::Given { take: *take, id });
                }
                Waits::Peer { question, count, ids } => {
                    let lacks = *count as usize - ids.len();
                    ids.extend(std::iter::from_fn(|| self.line_id()).take(lacks));
                    let can_have = self.leads() && !self.used_up && env.now >= self.ledger_away;
                    if ids.len() < *count as usize && can_have {
                        return self.queue.push_front(waits);
                    }
                    let ids = if ids.len() == *count as usize { std::mem::take(ids) } else { Vec::new() };
                    self.effects.push_back(Effect::Told { question: *question, ids });
                }
            }
        }
    }

    /// Takes the next range if there are too few ids: at once for who waits, early for who leads.
    fn draw(&mut self, env: &Env) {
        if self.drawing.is_some() || self.used_up || env.now < self.ledger_away {
            return;
        }
        let left: u32 = self.line.iter().map(|r| r.end - r.start).sum();
        let line = !self.queue.is_empty() || self.leads() && left < self.config.low;
        if !line && !self.spare.is_empty() {
            return;
        }
        let (expected, from) = self.counter;
        let Some(next) = from.checked_add(self.config.range).filter(|next| *next <= END) else {
            self.used_up = true;
            return self.give(env);
        };
        self.next += 1;
        let op = OpId(self.next);
        let value =
            serde_json::to_string(&Counter { next, by: self.me.clone() }).expect("a number and a name are JSON");
        let until = env.now.plus(self.config.draw_within);
        self.drawing = Some(Drawing { op, expected, next, until, spare: !line });
        self.effects.push_back(Effect::Draw(Change {
            op,
            key: KEY.to_owned(),
            expected,
            value: Arc::from(value),
            quiet: false,
        }));
    }

    fn line_id(&mut self) -> Option<TaskUid> {
        while self.line.front().is_some_and(|r| r.is_empty()) {
            self.line.pop_front();
        }
        self.line.front_mut().and_then(Iterator::next).map(TaskUid)
    }

    fn spare_id(&mut self, now: Instant) -> Option<TaskUid> {
        // Only while the ledger does not answer.
        if now < self.ledger_away { self.spare.next().map(TaskUid) } else { None }
    }

    fn give_up_on(&mut self, env: &Env, holder: &MemberId) {
        if self.holder.as_ref() == Some(holder) {
            self.holder_away = env.now.plus(self.config.pause);
        }
    }

    fn ledger_fails(&mut self, env: &mut Env) {
        self.rivalled = false;
        self.ledger_away = env.now.plus(self.config.retry / 2).plus(env.jitter(self.config.retry));
    }
}
