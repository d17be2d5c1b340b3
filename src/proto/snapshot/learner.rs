//! The learner: one shard's copy, from the moment that it is known to be of no use until it is like another.
//!
//! Nothing of what goes on here is durable: the copy is noted to be of no use before, and as not compared when its documents are
//! in, so that a process that begins anew begins this anew. Rule: nothing is deleted before somebody has said that he can give it; a
//! new round begins only when nothing of the one before is under way, because what reaches the node late would undo what came
//! after. Must not know: what documents say, which shard it is.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::digest::Sum;
use crate::proto::apply::TaskRef;
use crate::proto::env::{Env, Instant};
use crate::types::{MemberId, Position};

/// How a copy is made.
#[derive(Debug, Clone)]
pub struct Config {
    /// What one batch of documents is to weigh, about.
    pub batch_bytes: usize,
    /// Most documents of one batch.
    pub batch_ids: usize,
    /// Batches that may be on their way to the node.
    pub sending: usize,
    /// Batches that the node may have in its queue, on its disk: documents are read faster than they are indexed, so that
    /// entries wait for the read alone.
    pub under_way: usize,
    /// The first pause after something that did not come about; it doubles.
    pub pause_min: Duration,
    /// The longest.
    pub pause_max: Duration,
    /// For so long a request whose answer did not come may still reach the node.
    pub settle: Duration,
    /// How often one thing is asked of a source that says "later".
    pub laters: u32,
    /// The same, when all documents are in: the source knows better when it is of no use, and ends the read.
    pub laters_after: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            batch_bytes: 4 << 20,
            batch_ids: 1_000,
            sending: 2,
            under_way: 32,
            pause_min: Duration::from_millis(250),
            pause_max: Duration::from_secs(30),
            settle: Duration::from_secs(5),
            laters: 20,
            laters_after: 500,
        }
    }
}

/// The own journal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Here {
    /// It is of no use either: it begins anew with the copy.
    pub anew: bool,
    /// Entries up to here are not there any more.
    pub floor: u64,
}

impl Here {
    /// Whether it has everything that ever was: a copy can be made of it alone.
    pub fn is_whole(&self) -> bool {
        !self.anew && self.floor == 0
    }
}

/// What came of something that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<T> {
    /// This.
    Given(T),
    /// Not now, but perhaps soon.
    Later,
    /// A conditional entry was applied during the read.
    Again,
    /// It can't be had there; why, for people.
    Never(String),
}

/// A read has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    /// By which the source knows it.
    pub token: u64,
    /// Up to here its node had applied entries before.
    pub at: Position,
    /// All ids.
    pub ids: Vec<String>,
}

/// What came of a request to the own node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Did {
    /// This task has ended well.
    Done(TaskRef),
    /// It did nothing; why, for people.
    Failed(String),
    /// Nobody knows; it may come to the queue later.
    Unknown,
}

/// What the learner wants done. All but the two that say so are answered once, with the round that they name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Who may have a copy, the best first, and how the own journal stands: [`Learner::handle_sources`].
    Sources {
        /// To be given back.
        round: u64,
    },
    /// Whether a member can give its copy: [`Learner::handle_offered`].
    Offer {
        /// To be given back.
        round: u64,
        /// Who.
        source: MemberId,
    },
    /// All documents of the shard are to be deleted from the own node, which gets the index first if it has lost it:
    /// [`Learner::handle_cleared`].
    Clear {
        /// To be given back.
        round: u64,
        /// Whose settings the index gets, if its record alone does not say them; `None`: there is nobody.
        source: Option<MemberId>,
    },
    /// A read is to begin: [`Learner::handle_begun`].
    Begin {
        /// To be given back.
        round: u64,
        /// Of whose copy.
        source: MemberId,
        /// How often it has begun, this one counted.
        attempt: u32,
    },
    /// Documents with these ids: [`Learner::handle_read`]. Whoever carries it out keeps them until [`Effect::Put`].
    Read {
        /// To be given back.
        round: u64,
        /// Whose.
        source: MemberId,
        /// Of which read.
        token: u64,
        /// The number that they get.
        batch: u64,
        /// Which; not all need to come.
        ids: Vec<String>,
    },
    /// The documents of a batch go to the own node: [`Learner::handle_queued`] when they are there, if they are,
    /// [`Learner::handle_put`] when their task has ended.
    Put {
        /// To be given back.
        round: u64,
        /// Which.
        batch: u64,
    },
    /// All documents are read: no entry has to wait for that any more. Not answered.
    Release {
        /// At whom.
        source: MemberId,
        /// Which read.
        token: u64,
    },
    /// What a copy holds as it is after one entry: [`Learner::handle_settled`].
    Settle {
        /// To be given back.
        round: u64,
        /// Whose.
        source: MemberId,
    },
    /// The copy is as after this entry; the journal, if it is of no use, begins behind it: [`Learner::handle_sealed`] when that is
    /// durable.
    Seal {
        /// To be given back.
        round: u64,
        /// Whose parts and verdicts come with it, and of which read; `None`: nothing comes before the journal.
        source: Option<(MemberId, u64)>,
        /// After which.
        at: Position,
        /// The node's last task for it.
        by: TaskRef,
        /// Nothing behind this entry is applied until it is compared.
        compare: Option<u64>,
    },
    /// What the own copy holds after this entry, when it is there: [`Learner::handle_compared`].
    Compare {
        /// To be given back.
        round: u64,
        /// After which.
        at: u64,
    },
    /// Nothing has to be kept for this copy any more. Not answered.
    End {
        /// At whom.
        source: MemberId,
        /// Which read.
        token: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Choose,
    Offer,
    Clear,
    Begin,
    Copy,
    Settle,
    Seal,
    Compare,
    Done,
}

/// A read and what became of it.
#[derive(Debug, Clone, Default)]
struct Copying {
    token: u64,
    at: Position,
    ids: Vec<String>,
    /// From here on ids were not read.
    next: usize,
    /// So many are being read.
    reading: Option<usize>,
    batches: u64,
    /// Batches that were read.
    ready: VecDeque<u64>,
    /// Batches that are on their way to the node, and such of which the node has not ended the task.
    sending: usize,
    puts: usize,
    /// About what a document weighs.
    weight: usize,
    released: bool,
}

/// How far a copy is, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// What is being done.
    pub doing: &'static str,
    /// From whom.
    pub source: Option<MemberId>,
    /// So many documents are read.
    pub read: usize,
    /// Of so many.
    pub of: usize,
    /// How often it began anew.
    pub restarts: u32,
    /// Why it does not go on, or did not.
    pub trouble: Option<String>,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Learner {
    config: Config,
    phase: Phase,
    /// Answers of earlier rounds count for nothing.
    round: u64,
    /// Effects without an answer.
    open: usize,
    asked: bool,
    wait: Option<Instant>,
    here: Here,
    sources: Vec<MemberId>,
    /// Sources that were of no use since the last pause.
    useless: BTreeSet<MemberId>,
    source: Option<MemberId>,
    attempt: u32,
    laters: u32,
    troubles: u32,
    restarts: u32,
    copying: Copying,
    /// The last task for the copy.
    by: Option<TaskRef>,
    theirs: Option<Sum>,
    trouble: Option<String>,
    effects: VecDeque<Effect>,
}

impl Learner {
    /// Begins with nothing.
    pub fn new(env: &mut Env, config: Config) -> Self {
        let mut learner = Self {
            config,
            phase: Phase::Choose,
            round: 0,
            open: 0,
            asked: false,
            wait: None,
            here: Here::default(),
            sources: Vec::new(),
            useless: BTreeSet::new(),
            source: None,
            attempt: 0,
            laters: 0,
            troubles: 0,
            restarts: 0,
            copying: Copying::default(),
            by: None,
            theirs: None,
            trouble: None,
            effects: VecDeque::new(),
        };
        learner.run(env);
        learner
    }

    /// What [`Effect::Sources`] asked for.
    pub fn handle_sources(&mut self, env: &mut Env, round: u64, here: Here, sources: Vec<MemberId>) {
        if self.heard(round) {
            (self.here, self.sources) = (here, sources);
            self.source = self.sources.iter().find(|member| !self.useless.contains(*member)).cloned();
            if self.source.is_some() {
                self.go_to(Phase::Offer);
            } else if here.is_whole() {
                // Nobody has a copy, but everything that ever was is in the journal.
                self.go_to(Phase::Clear);
            } else {
                self.useless.clear();
                self.trouble.get_or_insert_with(|| "no other member in sync has a copy".into());
                self.troubled(env);
            }
        }
        self.run(env);
    }

    /// What [`Effect::Offer`] asked for.
    pub fn handle_offered(&mut self, env: &mut Env, round: u64, answer: Answer<()>) {
        if self.heard(round)
            && let Some(()) = self.take(env, answer)
        {
            self.go_to(Phase::Clear);
        }
        self.run(env);
    }

    /// What [`Effect::Clear`] asked for.
    pub fn handle_cleared(&mut self, env: &mut Env, round: u64, did: Did) {
        if self.heard(round)
            && let Some(task) = self.did(env, did)
        {
            self.by = Some(task);
            if self.source.is_some() {
                self.attempt += 1;
                self.go_to(Phase::Begin);
            } else {
                (self.copying, self.theirs) = (Copying::default(), None);
                self.go_to(Phase::Seal);
            }
        }
        self.run(env);
    }

    /// What [`Effect::Begin`] asked for.
    pub fn handle_begun(&mut self, env: &mut Env, round: u64, answer: Answer<Begun>) {
        if self.heard(round)
            && let Some(Begun { token, at, ids }) = self.take(env, answer)
        {
            self.copying = Copying { token, at, ids, weight: self.config.batch_bytes / 16, ..Copying::default() };
            if !self.here.anew && at.seq < self.here.floor {
                self.end();
                self.is_useless(env, "it is behind what the journal here begins with".into());
            } else {
                self.go_to(Phase::Copy);
            }
        }
        self.run(env);
    }

    /// What [`Effect::Read`] asked for: the first `taken` of the ids were looked for, and what was found weighs `bytes`.
    pub fn handle_read(&mut self, env: &mut Env, round: u64, answer: Answer<(usize, usize)>) {
        if self.heard(round) {
            let asked = self.copying.reading.take().unwrap_or(0);
            if let Some((taken, bytes)) = self.take(env, answer) {
                let (taken, copying) = (taken.min(asked), &mut self.copying);
                copying.next += taken;
                copying.weight = (copying.weight + bytes / taken.max(1)).div_ceil(2);
                let batch = copying.batches;
                copying.batches += 1;
                if bytes > 0 {
                    copying.ready.push_back(batch);
                }
                if taken == 0 {
                    self.is_useless(env, "it gives no documents".into());
                }
            }
        }
        self.run(env);
    }

    /// The node has taken a batch into its queue.
    pub fn handle_queued(&mut self, env: &mut Env, round: u64) {
        if round == self.round {
            self.copying.sending = self.copying.sending.saturating_sub(1);
        }
        self.run(env);
    }

    /// What [`Effect::Put`] asked for.
    pub fn handle_put(&mut self, env: &mut Env, round: u64, did: Did) {
        if self.heard(round)
            && let Some(task) = self.did(env, did)
        {
            self.copying.puts = self.copying.puts.saturating_sub(1);
            if self.by.as_ref().is_none_or(|by| by.uid < task.uid) {
                self.by = Some(task);
            }
        }
        self.run(env);
    }

    /// What [`Effect::Settle`] asked for.
    pub fn handle_settled(&mut self, env: &mut Env, round: u64, answer: Answer<Sum>) {
        if self.heard(round)
            && let Some(sum) = self.take(env, answer)
        {
            if sum.at < self.copying.at.seq {
                self.later(env);
            } else {
                self.theirs = Some(sum);
                self.go_to(Phase::Seal);
            }
        }
        self.run(env);
    }

    /// What [`Effect::Seal`] asked for.
    pub fn handle_sealed(&mut self, env: &mut Env, round: u64, answer: Answer<()>) {
        if self.heard(round)
            && let Some(()) = self.take(env, answer)
        {
            self.go_to(if self.theirs.is_some() { Phase::Compare } else { Phase::Done });
        }
        self.run(env);
    }

    /// What [`Effect::Compare`] asked for.
    pub fn handle_compared(&mut self, env: &mut Env, round: u64, answer: Answer<Sum>) {
        if self.heard(round)
            && let Some(own) = self.take(env, answer)
        {
            if self.theirs.is_some_and(|theirs| theirs.is_same(&own)) {
                self.end();
                self.go_to(Phase::Done);
            } else {
                self.trouble = Some(format!("{own:?} here, and {:?} there", self.theirs));
                self.troubled(env);
            }
        }
        self.run(env);
    }

    /// Time has passed: due at [`Learner::next_wake`], harmless at any other time.
    pub fn handle_tick(&mut self, env: &mut Env) {
        self.run(env);
    }

    /// What is to be done next.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When [`Learner::handle_tick`] is due.
    pub fn next_wake(&self) -> Option<Instant> {
        self.wait
    }

    /// Whether the copy is like another, or will be by the journal alone.
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// It has nothing under way, and nothing to do before then: somebody else may have its turn.
    pub fn rests(&self) -> Option<Instant> {
        self.wait.filter(|_| self.phase == Phase::Choose && self.open == 0 && self.effects.is_empty())
    }

    /// The read that is kept up, and behind which entry the own journal is needed.
    pub fn reads(&self) -> Option<(&MemberId, u64, u64)> {
        let begun = matches!(self.phase, Phase::Copy | Phase::Settle | Phase::Seal | Phase::Compare);
        let source = self.source.as_ref().filter(|_| begun)?;
        Some((source, self.copying.token, self.copying.at.seq))
    }

    /// How far it is.
    pub fn view(&self) -> View {
        let doing = match self.phase {
            Phase::Choose | Phase::Offer => "looking for a copy",
            Phase::Clear => "deleting what was there",
            Phase::Begin => "waiting for a read to begin",
            Phase::Copy => "copying",
            Phase::Settle | Phase::Seal => "waiting for a position to compare at",
            Phase::Compare => "comparing",
            Phase::Done => "done",
        };
        let (source, trouble) = (self.source.clone(), self.trouble.clone());
        View { doing, source, read: self.copying.next, of: self.copying.ids.len(), restarts: self.restarts, trouble }
    }

    /// Whether an answer is of this round.
    fn heard(&mut self, round: u64) -> bool {
        self.open = self.open.saturating_sub(1);
        round == self.round
    }

    /// What was given, or what follows if nothing was.
    fn take<T>(&mut self, env: &mut Env, answer: Answer<T>) -> Option<T> {
        match answer {
            Answer::Given(given) => {
                self.laters = 0;
                return Some(given);
            }
            Answer::Later => self.later(env),
            Answer::Again => {
                self.trouble = Some("an entry that depends on what documents were was applied during the read".into());
                self.end();
                self.restart(env, Phase::Clear, Duration::ZERO);
            }
            // It is not the source's fault.
            Answer::Never(why) if self.phase == Phase::Compare => {
                self.trouble = Some(why);
                self.troubled(env);
            }
            Answer::Never(why) => self.is_useless(env, why),
        }
        None
    }

    fn did(&mut self, env: &mut Env, did: Did) -> Option<TaskRef> {
        match did {
            Did::Done(task) => return Some(task),
            Did::Failed(why) => {
                self.trouble = Some(why);
                self.troubled(env);
            }
            Did::Unknown => {
                self.trouble = Some("the node did not answer".into());
                let settle = self.config.settle;
                self.end();
                self.restart(env, Phase::Choose, settle);
            }
        }
        None
    }

    /// The same is asked once more.
    fn later(&mut self, env: &mut Env) {
        self.laters += 1;
        let copied = matches!(self.phase, Phase::Settle | Phase::Seal | Phase::Compare);
        if self.laters > if copied { self.config.laters_after } else { self.config.laters } {
            return self.is_useless(env, "it was not ready in time".into());
        }
        if self.phase == Phase::Begin {
            // There may always be a conditional entry under way.
            self.attempt += 1;
        }
        self.asked = false;
        let pause = self.config.pause_min * 2_u32.pow(self.laters.min(4));
        self.wait = Some(env.now.plus(env.jitter(pause)));
    }

    /// Another source is looked for.
    fn is_useless(&mut self, env: &mut Env, why: String) {
        let known = self.source.as_ref().map_or(String::new(), |source| format!("{source}: "));
        self.trouble = Some(format!("{known}{why}"));
        self.useless.extend(self.source.clone());
        self.end();
        self.restart(env, Phase::Choose, Duration::ZERO);
    }

    /// It begins anew after a while, longer each time.
    fn troubled(&mut self, env: &mut Env) {
        self.troubles = (self.troubles + 1).min(16);
        let pause = self.config.pause_min * 2_u32.pow(self.troubles);
        let pause = env.jitter(pause.min(self.config.pause_max));
        self.end();
        self.restart(env, Phase::Choose, pause);
    }

    fn end(&mut self) {
        if self.copying.token != 0
            && let Some(source) = self.source.clone()
        {
            self.effects.push_back(Effect::End { source, token: self.copying.token });
            self.copying.token = 0;
        }
    }

    fn restart(&mut self, env: &Env, phase: Phase, pause: Duration) {
        if phase == Phase::Choose {
            (self.attempt, self.source) = (0, None);
        }
        self.round += 1;
        self.restarts = self.restarts.saturating_add(1);
        (self.copying, self.theirs, self.by, self.laters) = (Copying::default(), None, None, 0);
        self.go_to(phase);
        self.wait = Some(env.now.plus(pause));
    }

    fn go_to(&mut self, phase: Phase) {
        (self.phase, self.asked, self.laters) = (phase, false, 0);
    }

    fn ask(&mut self, effect: Effect) {
        self.asked = true;
        self.open += 1;
        self.effects.push_back(effect);
    }

    fn run(&mut self, env: &Env) {
        self.wait = self.wait.filter(|at| *at > env.now);
        if self.wait.is_some() {
            return;
        }
        if self.phase == Phase::Copy {
            self.pump();
        }
        // What is under way of an earlier round must have ended.
        let begins = matches!(self.phase, Phase::Choose | Phase::Offer | Phase::Clear);
        if self.asked || begins && self.open > 0 {
            return;
        }
        let (round, source) = (self.round, self.source.clone());
        match (self.phase, source) {
            (Phase::Choose, _) => self.ask(Effect::Sources { round }),
            (Phase::Clear, source) => self.ask(Effect::Clear { round, source }),
            (Phase::Offer, Some(source)) => self.ask(Effect::Offer { round, source }),
            (Phase::Begin, Some(source)) => self.ask(Effect::Begin { round, source, attempt: self.attempt }),
            (Phase::Settle, Some(source)) => self.ask(Effect::Settle { round, source }),
            (Phase::Seal, source) => {
                let Some(by) = self.by.clone() else { return };
                let (at, compare) = (self.copying.at, self.theirs.map(|sum| sum.at));
                let source = source.map(|source| (source, self.copying.token));
                self.ask(Effect::Seal { round, source, at, by, compare });
            }
            (Phase::Compare, _) => {
                let at = self.theirs.map_or(0, |sum| sum.at);
                self.ask(Effect::Compare { round, at });
            }
            (Phase::Copy | Phase::Done | Phase::Offer | Phase::Begin | Phase::Settle, _) => {}
        }
    }

    /// Reads and writes documents.
    fn pump(&mut self) {
        let (round, Some(source)) = (self.round, self.source.clone()) else { return };
        while self.copying.puts < self.config.under_way
            && self.copying.sending < self.config.sending
            && let Some(batch) = self.copying.ready.pop_front()
        {
            self.copying.puts += 1;
            self.copying.sending += 1;
            self.ask(Effect::Put { round, batch });
        }
        let (config, copying) = (&self.config, &mut self.copying);
        let left = copying.ids.len() - copying.next;
        let token = copying.token;
        if left > 0 && copying.reading.is_none() && copying.ready.is_empty() {
            let most = (config.batch_bytes / copying.weight.max(1)).clamp(1, config.batch_ids.max(1)).min(left);
            copying.reading = Some(most);
            let (ids, batch) = (copying.ids[copying.next..copying.next + most].to_vec(), copying.batches);
            self.ask(Effect::Read { round, source, token, batch, ids });
        } else if left == 0 {
            if !copying.released {
                copying.released = true;
                self.effects.push_back(Effect::Release { source, token });
            }
            if self.copying.ready.is_empty() && self.copying.puts == 0 {
                self.go_to(Phase::Settle);
            }
        }
    }
}
