//! Carries out what one learner wants.
//!
//! Rule: whatever was sent to the node is waited for, or given up as one whose fate nobody knows; nothing is dropped half-way but by
//! the end of the process. Must not know: when what is done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::driver::Common;
use super::node;
use super::source::Beside;
use crate::net::{Answer as Answered, Call};
use crate::proto::apply::{self, Copied, Standing, Status, TaskRef};
use crate::proto::env::{Env, Instant};
use crate::proto::journal::Kind;
use crate::proto::missed;
use crate::proto::snapshot::learner::{self, Did};
use crate::proto::snapshot::{Answer, Begun, Effect, Learner, Sum};
use crate::services::apply::{ended, other_tag};
use crate::services::ledger::{driver::seed, nap, now};
use crate::services::local::{Loss, Work};
use crate::store::StoreError;
use crate::types::{JournalKey, JournalRecord, MemberId, Position, ShardCopy, ShardState, TraceId};
use crate::wire::verbs::{NodeQuestion, Reply, Request, SnapshotAct, SnapshotOf, SnapshotSaid};

/// How long a source may take for one answer: all ids of a shard are one, and the shard may have to come to rest for another.
const PATIENCE: Duration = Duration::from_secs(150);
/// How long what is taken may take to be durable.
const DURABLE: Duration = Duration::from_secs(10);
/// Between two looks at something that changes by itself.
const LOOK: Duration = Duration::from_millis(20);
/// The same, at something that may take until the node is there again.
const REST: Duration = Duration::from_millis(250);
/// How long it may take until nothing of a copy is under way that was begun before.
const IDLE: Duration = Duration::from_secs(30);
/// Verdicts of so many entries before the copy come with it, if it is not known which are needed.
const VERDICTS: u64 = 4_096;
/// What has come about and was not taken in.
const DONE: usize = 64;

/// How it ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The copy is the same as another, or will be by the journal alone.
    Made,
    /// It is not to be made any more.
    NotNeeded,
    /// It is to be begun again.
    Failed,
    /// It can't go on before then; nothing of it is under way.
    Rests(Box<Learner>, Instant),
}

/// What has come about.
enum Done {
    Stays,
    Sources(u64, learner::Here, Vec<MemberId>),
    Offered(u64, Answer<()>),
    Cleared(u64, Did),
    Begun(u64, Answer<Begun>),
    Read(u64, u64, Answer<(usize, Bytes)>),
    Queued(u64),
    Put(u64, Did),
    Settled(u64, Answer<Sum>),
    Sealed(u64, Answer<()>),
    Compared(u64, Answer<Sum>),
}

/// One copy.
struct Fill {
    common: Arc<Common>,
    key: JournalKey,
    learner: Learner,
    /// Documents on their way to the node, by round and batch.
    bodies: BTreeMap<(u64, u64), Bytes>,
    jobs: JoinSet<Result<(), StoreError>>,
    done_in: mpsc::Sender<Done>,
    done: mpsc::Receiver<Done>,
    rng: fastrand::Rng,
    trouble: Option<String>,
    /// The copy is not made anew after all.
    stays: bool,
}

/// Makes one copy, or goes on with one that has rested, however long that takes.
///
/// Not cancel-safe for the member in the sense that the node may do what it was sent; the next process begins anew.
///
/// # Errors
/// [`StoreError`].
pub(super) async fn run(
    common: Arc<Common>,
    key: JournalKey,
    rested: Option<Box<Learner>>,
) -> Result<Ended, StoreError> {
    // What was under way when the copy became of no use comes to the node before what is sent here.
    while rested.is_none() {
        match common.apply.standing(&key).await {
            Some(Standing { rebuild: true, idle: true, .. }) => break,
            Some(Standing { rebuild: true, .. }) => tokio::time::sleep(REST).await,
            _ => {
                common.journals.unfit(&key, false).await;
                return Ok(Ended::NotNeeded);
            }
        }
    }
    let mut rng = fastrand::Rng::with_seed(seed());
    let config = common.config.learner.clone();
    let learner = match rested {
        Some(learner) => *learner,
        None => Learner::new(&mut Env { now: now(), rng: &mut rng }, config),
    };
    let (done_in, done) = mpsc::channel(DONE);
    let (bodies, jobs, trouble) = (BTreeMap::new(), JoinSet::new(), None);
    let mut fill = Fill { common, key, learner, bodies, jobs, done_in, done, rng, trouble, stays: false };
    let ended = fill.go_on().await?;
    if matches!(ended, Ended::Made | Ended::NotNeeded) {
        fill.common.journals.unfit(&fill.key, false).await;
    }
    fill.common.journals.release(&fill.key, &fill.common.journals.me().member);
    Ok(ended)
}

impl Fill {
    async fn go_on(&mut self) -> Result<Ended, StoreError> {
        let mut keep = tokio::time::interval(self.common.config.keep);
        self.call(Learner::handle_tick);
        loop {
            while let Some(effect) = self.learner.poll_effect() {
                self.carry_out(effect);
            }
            if self.stays {
                return Ok(Ended::NotNeeded);
            }
            self.note();
            if self.learner.is_done() {
                let checked = self.common.apply.checked(&self.key).await;
                // It may have become of no use once more.
                return Ok(if checked.is_some_and(|s| s.rebuild) { Ended::Failed } else { Ended::Made });
            }
            if let Some(until) = self.learner.rests() {
                return Ok(Ended::Rests(Box::new(self.learner.clone()), until));
            }
            let nap = nap(self.learner.next_wake());
            tokio::select! {
                Some(done) = self.done.recv() => self.did(done),
                Some(ended) = self.jobs.join_next() => match ended {
                    Ok(ended) => ended?,
                    // One that panicked would be an answer that never comes.
                    Err(_) => return Ok(Ended::Failed),
                },
                _ = keep.tick() => {
                    if !self.is_held() {
                        return Ok(Ended::NotNeeded);
                    }
                    self.common.journals.unfit(&self.key, true).await;
                    self.keep();
                }
                () = tokio::time::sleep(nap) => self.call(Learner::handle_tick),
            }
        }
    }

    fn call(&mut self, tell: impl FnOnce(&mut Learner, &mut Env<'_>)) {
        tell(&mut self.learner, &mut Env { now: now(), rng: &mut self.rng });
    }

    fn state(&self) -> Option<ShardState> {
        let record = self.common.journals.record(&self.key.index)?;
        record.shard(self.key.shard).cloned()
    }

    /// Whether the record lists this member for the shard.
    fn is_held(&self) -> bool {
        let me = self.common.journals.me();
        self.state().is_some_and(|state| state.copy(&me.member).is_some_and(|copy| copy.id == *me))
    }

    /// How far it is, for people, and what is in the way, for the log.
    fn note(&mut self) {
        let view = self.learner.view();
        if view.trouble != self.trouble {
            self.trouble.clone_from(&view.trouble);
            if let Some(why) = &self.trouble {
                tracing::warn!(key = %self.key, why, "a copy is not made yet; until then the shard is not served here");
            }
        }
        self.common.views().insert(self.key.clone(), view);
    }

    /// The own journal and the source keep what the copy will need.
    fn keep(&self) {
        let Some((source, token, at)) = self.learner.reads() else { return };
        self.hold(at);
        self.tell(source.clone(), SnapshotAct::Keep(token));
    }

    fn hold(&self, at: u64) {
        let until = Clock::now() + self.common.config.source.idle;
        self.common.journals.hold(&self.key, &self.common.journals.me().member, at, until);
    }

    /// Says something to which no answer matters.
    fn tell(&self, to: MemberId, act: SnapshotAct) {
        let job = Job::of(self);
        tokio::spawn(async move { drop(job.ask(&to, act, Bytes::new()).await) });
    }

    fn did(&mut self, done: Done) {
        match done {
            Done::Stays => self.stays = true,
            Done::Sources(round, here, sources) => self.call(|l, env| l.handle_sources(env, round, here, sources)),
            Done::Offered(round, answer) => self.call(|l, env| l.handle_offered(env, round, answer)),
            Done::Cleared(round, did) => self.call(|l, env| l.handle_cleared(env, round, did)),
            Done::Begun(round, answer) => {
                self.call(|l, env| l.handle_begun(env, round, answer));
                if let Some((_, _, at)) = self.learner.reads() {
                    self.hold(at);
                }
            }
            Done::Read(round, batch, answer) => {
                let answer = match answer {
                    Answer::Given((taken, body)) => {
                        let bytes = body.len();
                        self.bodies.insert((round, batch), body);
                        Answer::Given((taken, bytes))
                    }
                    Answer::Later => Answer::Later,
                    Answer::Again => Answer::Again,
                    Answer::Never(why) => Answer::Never(why),
                };
                self.call(|l, env| l.handle_read(env, round, answer));
            }
            Done::Queued(round) => self.call(|l, env| l.handle_queued(env, round)),
            Done::Put(round, did) => self.call(|l, env| l.handle_put(env, round, did)),
            Done::Settled(round, answer) => self.call(|l, env| l.handle_settled(env, round, answer)),
            Done::Sealed(round, answer) => self.call(|l, env| l.handle_sealed(env, round, answer)),
            Done::Compared(round, answer) => self.call(|l, env| l.handle_compared(env, round, answer)),
        }
    }

    /// Begins a job whose result comes back as an input.
    fn spawn(&mut self, job: impl Future<Output = Result<Done, StoreError>> + Send + 'static) {
        let done_in = self.done_in.clone();
        self.jobs.spawn(async move {
            // Whoever waited may have gone.
            drop(done_in.send(job.await?).await);
            Ok(())
        });
    }

    fn carry_out(&mut self, effect: Effect) {
        let job = Job::of(self);
        match effect {
            Effect::Sources { round } => {
                let sources = self.sources();
                self.spawn(async move {
                    let here = job.common.here(&job.key).await?;
                    if !here.is_whole() && job.stays(&sources).await {
                        return Ok(Done::Stays);
                    }
                    Ok(Done::Sources(round, here, sources))
                });
            }
            Effect::Offer { round, source } => {
                self.spawn(async move { Ok(Done::Offered(round, job.yes(&source, SnapshotAct::Offer).await)) });
            }
            Effect::Clear { round, source } => {
                self.bodies.clear();
                self.spawn(async move { Ok(Done::Cleared(round, job.clear(source.as_ref()).await)) });
            }
            Effect::Begin { round, source, attempt } => {
                self.spawn(async move { Ok(Done::Begun(round, job.begin(&source, attempt).await)) });
            }
            Effect::Read { round, source, token, batch, ids } => {
                self.spawn(async move { Ok(Done::Read(round, batch, job.read(&source, token, &ids).await)) });
            }
            Effect::Put { round, batch } => {
                let body = self.bodies.remove(&(round, batch)).unwrap_or_default();
                let queued = self.done_in.clone();
                self.spawn(async move {
                    let did = job.put(Kind::Set { skip_creation: false }, body, Some((queued, round))).await;
                    Ok(Done::Put(round, did))
                });
            }
            Effect::Settle { round, source } => {
                self.spawn(async move { Ok(Done::Settled(round, job.settle(&source).await)) });
            }
            Effect::Seal { round, source, at, by, compare } => {
                self.spawn(async move { Ok(Done::Sealed(round, job.seal(source, at, by, compare).await?)) });
            }
            Effect::Compare { round, at } => {
                self.spawn(async move { Ok(Done::Compared(round, job.compare(at).await)) });
            }
            Effect::Release { source, token } => self.tell(source, SnapshotAct::Read(token)),
            Effect::End { source, token } => self.tell(source, SnapshotAct::End(token)),
        }
    }

    /// The others in sync, the primary first.
    fn sources(&self) -> Vec<MemberId> {
        let (me, Some(state)) = (&self.common.journals.me().member, self.state()) else { return Vec::new() };
        let primary = state.primary.as_ref().map(|primary| primary.member.clone());
        let mut all: Vec<MemberId> = state.in_sync.into_iter().map(|id| id.member).filter(|m| m != me).collect();
        all.sort_by_key(|member| primary.as_ref() != Some(member));
        all
    }
}

/// What one job works with.
struct Job {
    common: Arc<Common>,
    key: JournalKey,
}

impl Job {
    fn of(fill: &Fill) -> Self {
        Self { common: Arc::clone(&fill.common), key: fill.key.clone() }
    }

    async fn ask(&self, to: &MemberId, act: SnapshotAct, body: Bytes) -> Result<(SnapshotSaid, Bytes), String> {
        let of = SnapshotOf { index: self.key.index.clone(), shard: self.key.shard, act };
        let deadline = Clock::now() + PATIENCE;
        let call = Call { request: Request::Snapshot(of), body, deadline, trace: TraceId::default() };
        match self.common.peers.call(to, call).await {
            Ok(Answered { reply: Reply::Snapshot(said), body }) => Ok((said, body)),
            Ok(Answered { reply, .. }) => Err(format!("it answers {reply:?}")),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn yes(&self, to: &MemberId, act: SnapshotAct) -> Answer<()> {
        self.ask_for(to, act, Bytes::new(), |said, _| matches!(said, SnapshotSaid::Yes).then_some(())).await
    }

    async fn ask_for<T>(
        &self,
        to: &MemberId,
        act: SnapshotAct,
        body: Bytes,
        take: impl FnOnce(SnapshotSaid, Bytes) -> Option<T>,
    ) -> Answer<T> {
        match self.ask(to, act, body).await {
            Err(why) | Ok((SnapshotSaid::No(why), _)) => Answer::Never(why),
            Ok((SnapshotSaid::Unmade { .. }, _)) => Answer::Never("its own copy must be made anew".into()),
            Ok((SnapshotSaid::Later, _)) => Answer::Later,
            Ok((SnapshotSaid::Again, _)) => Answer::Again,
            Ok((said, body)) => match take(said, body) {
                Some(given) => Answer::Given(given),
                None => Answer::Never("its answer is none to what it was asked".into()),
            },
        }
    }

    /// Keeps a copy that is only in doubt if all others in sync say that theirs is no better and will not be, and none of them is to
    /// keep its own before this one: the same for all, whoever asks first.
    async fn stays(&self, others: &[MemberId]) -> bool {
        let (apply, me) = (&self.common.apply, &self.common.journals.me().member);
        // Most copies are in no doubt, and nobody has to be asked for that.
        if !apply.standing(&self.key).await.is_some_and(|standing| standing.doubtful) {
            return false;
        }
        // The record as it is now: somebody may have come into the set who has a better one.
        let key = JournalRecord::key(&self.key.index);
        if !self.common.local.refresh_record(&key).await || !self.is_in_sync_with(others) {
            return false;
        }
        for other in others {
            match self.ask(other, SnapshotAct::Offer, Bytes::new()).await {
                Ok((SnapshotSaid::Unmade { doubtful, whole: false }, _)) if !doubtful || me < other => {}
                _ => return false,
            }
        }
        let stays = apply.kept(&self.key).await.is_some_and(|standing| !standing.rebuild);
        if stays {
            tracing::warn!(key = %self.key, "a copy stays though its node may have done an edit twice: no other is better");
        }
        stays
    }

    /// Whether the set is this member and these.
    fn is_in_sync_with(&self, others: &[MemberId]) -> bool {
        let (record, me) = (self.common.journals.record(&self.key.index), self.common.journals.me());
        let state = record.as_ref().and_then(|record| record.shard(self.key.shard));
        state.is_some_and(|state| {
            let rest = state.in_sync.iter().filter(|id| *id != me).map(|id| &id.member);
            state.is_in_sync(me) && rest.collect::<BTreeSet<_>>() == others.iter().collect()
        })
    }

    /// Nothing more is applied to a copy that was made and is of no use after all.
    async fn unmake(&self) -> bool {
        let end = Clock::now() + IDLE;
        loop {
            match self.common.apply.standing(&self.key).await {
                // From here on it is of no use whatever becomes of the others.
                Some(Standing { doubtful: true, .. } | Standing { rebuild: false, .. }) => {
                    self.common.apply.unmade(&self.key).await;
                }
                Some(Standing { idle: true, .. }) => return true,
                Some(_) if Clock::now() < end => tokio::time::sleep(LOOK).await,
                Some(_) | None => return false,
            }
        }
    }

    /// Whether the record says that the copy is to be filled: it begins in a new store.
    fn learns(&self) -> bool {
        let (me, record) = (self.common.journals.me(), self.common.journals.record(&self.key.index));
        let state = record.as_ref().and_then(|record| record.shard(self.key.shard));
        state.and_then(|state| state.copy(&me.member)).is_some_and(ShardCopy::is_learner)
    }

    /// The index, if the node has lost it, and then no document of the shard.
    async fn clear(&self, source: Option<&MemberId>) -> Did {
        if !self.unmake().await {
            return Did::Failed("what was under way of the copy before has not ended".into());
        }
        let (local, index) = (&self.common.local, &self.key.index);
        let learns = self.learns() && !self.common.has_settings(index);
        let made = match if learns { local.lack(index).await } else { local.loss(index).await } {
            Loss::Nothing => Ok(None),
            Loss::Documents => local.make_again(index, None).await,
            Loss::Settings => match self.settings(source).await {
                Ok(settings) => local.make_again(index, Some(&settings)).await,
                Err(why) => Err(why),
            },
        };
        match made {
            Ok(None) => {}
            Ok(Some(task)) => match ended(local, &task).await {
                Some(Status::Succeeded) if learns => self.common.got_settings(index),
                Some(Status::Succeeded) => {}
                other => return Did::Failed(format!("the index was not made with its settings: {other:?}")),
            },
            Err(why) => return Did::Failed(why),
        }
        self.put(Kind::Clear, Bytes::new(), None).await
    }

    /// An index's settings as another node has them.
    async fn settings(&self, source: Option<&MemberId>) -> Result<Bytes, String> {
        let Some(source) = source else {
            return Err("the node has lost the index, and no other member can say which settings it had".into());
        };
        // The source's own node may have yet to get some.
        let (local, index) = (&self.common.local, &self.key.index);
        local.refresh(index).await;
        let record = local.record_of(index).ok_or("the index has no record here")?;
        let Some(source) = missed::settled(&record.value, source, &self.common.journals.me().member) else {
            return Err(format!("{source}, like all others, has yet to get settings of the index itself"));
        };
        let request = Request::Node(NodeQuestion::Settings(index.clone()));
        let call = Call { request, body: Bytes::new(), deadline: Clock::now() + PATIENCE, trace: TraceId::default() };
        let body = match self.common.peers.call(source, call).await {
            Ok(Answered { reply: Reply::Node(200), body }) => body,
            Ok(Answered { reply, .. }) => return Err(format!("{source} gives no settings: {reply:?}")),
            Err(error) => return Err(error.to_string()),
        };
        let settings: Value = serde_json::from_slice(&body).map_err(|e| format!("the settings of {source}: {e}"))?;
        let embedders = settings.get("embedders").and_then(Value::as_object);
        // A node never gives a key away; without it searches would fail here alone.
        if embedders.is_some_and(|all| all.values().any(|one| one.get("apiKey").is_some_and(|key| !key.is_null()))) {
            return Err(
                "the node has lost the index, whose settings have keys of embedders that no other node gives away; \
                        make the index anew on this node with them, or delete it and load it again"
                    .into(),
            );
        }
        Ok(body)
    }

    async fn begin(&self, source: &MemberId, attempt: u32) -> Answer<Begun> {
        let begun = |said, body: Bytes| match said {
            SnapshotSaid::Begun(token, at) => {
                let ids = serde_json::from_slice(&body).ok()?;
                Some(Begun { token, at, ids })
            }
            _ => None,
        };
        self.ask_for(source, SnapshotAct::Begin(attempt), Bytes::new(), begun).await
    }

    async fn read(&self, source: &MemberId, token: u64, ids: &[String]) -> Answer<(usize, Bytes)> {
        let body = Bytes::from(serde_json::json!(ids).to_string());
        let read = |said, body| match said {
            SnapshotSaid::Documents(taken) => Some((usize::try_from(taken).ok()?, body)),
            _ => None,
        };
        self.ask_for(source, SnapshotAct::Documents(token), body, read).await
    }

    /// Puts a request in the node's queue, says so, and waits for its end.
    async fn put(&self, kind: Kind, body: Bytes, queued: Option<(mpsc::Sender<Done>, u64)>) -> Did {
        let (shards, tag) = ([self.key.shard].into_iter().collect(), other_tag(&self.common.journals.me().store));
        let answer = self.common.local.queue(&self.key.index, &Work { kind, body, shards, tag }).await;
        if let Some((tell, round)) = queued {
            drop(tell.send(Done::Queued(round)).await);
        }
        let task = match answer.answer {
            apply::Answer::Taken(task) => task,
            apply::Answer::Refused(flaw) => return Did::Failed(format!("{}: {}", flaw.code, flaw.message)),
            apply::Answer::NotSent => return Did::Failed(answer.why.unwrap_or_default()),
            apply::Answer::Unknown => return Did::Unknown,
        };
        match ended(&self.common.local, &task).await {
            Some(Status::Succeeded) => Did::Done(task),
            Some(Status::Failed(flaw)) => Did::Failed(format!("{}: {}", flaw.code, flaw.message)),
            Some(other) => Did::Failed(format!("the node's task ended as {other:?}")),
            None => Did::Failed("the node does not know its task any more".into()),
        }
    }

    async fn settle(&self, source: &MemberId) -> Answer<Sum> {
        let sum = |said, body: Bytes| match said {
            SnapshotSaid::Json => serde_json::from_slice(&body).ok(),
            _ => None,
        };
        self.ask_for(source, SnapshotAct::Settle, Bytes::new(), sum).await
    }

    /// The journal goes on behind the copy, and so does the applier.
    async fn seal(
        &self,
        source: Option<(MemberId, u64)>,
        at: Position,
        by: TaskRef,
        compare: Option<u64>,
    ) -> Result<Answer<()>, StoreError> {
        let Common { journals, apply, .. } = &*self.common;
        let listed = self.common.listed(&self.key).await?;
        let anew = listed.as_ref().is_some_and(|listed| listed.rebuild);
        let mut beside = Beside::default();
        if let Some((source, token)) = &source {
            let known = listed.as_ref().map_or(0, |listed| listed.applied);
            let behind = if anew { at.seq.saturating_sub(VERDICTS) } else { known.min(at.seq) };
            let act = SnapshotAct::Beside { token: *token, parts: anew, behind };
            let take = |said, body: Bytes| match said {
                SnapshotSaid::Json => serde_json::from_slice(&body).ok(),
                _ => None,
            };
            match self.ask_for(source, act, Bytes::new(), take).await {
                Answer::Given(given) => beside = given,
                Answer::Never(why) => return Ok(Answer::Never(why)),
                Answer::Later | Answer::Again => return Ok(Answer::Later),
            }
        }
        if anew {
            // Not while others rely on the journal that is of no use: its primary has it leave the set.
            if source.is_none() || !journals.snapshot(&self.key, at, beside.parts).await {
                return Ok(Answer::Later);
            }
            let end = Clock::now() + DURABLE;
            while self.common.listed(&self.key).await?.is_none_or(|listed| listed.rebuild || listed.floor.seq < at.seq)
            {
                if Clock::now() >= end {
                    return Ok(Answer::Later);
                }
                tokio::time::sleep(LOOK).await;
            }
        } else {
            // What stands here up to there must be what is committed.
            let stored = listed.as_ref().map_or(0, |listed| listed.commit);
            if journals.committed(&self.key).unwrap_or(0).max(stored) < at.seq {
                return Ok(Answer::Later);
            }
        }
        let copied = Copied { applied: at.seq, by: Some(by), failed: beside.failed, compare_at: compare };
        if apply.copied(&self.key, copied).await.is_none() {
            return Ok(Answer::Never("the shard is not held here any more".into()));
        }
        let applied = vec![(self.key.clone(), at.seq)];
        journals.tell_applied(Vec::new(), applied.clone()).await;
        journals.tell_applied(applied, Vec::new()).await;
        Ok(Answer::Given(()))
    }

    /// What the copy here holds after an entry, when it is there.
    async fn compare(&self, at: u64) -> Answer<Sum> {
        let common = &self.common;
        let mut seen = (0, Clock::now());
        loop {
            match common.apply.standing(&self.key).await {
                Some(Standing { rebuild: true, .. }) | None => {
                    return Answer::Never("the copy became of no use before it was compared".into());
                }
                Some(Standing { quiet: true, applied, .. }) if applied == at => break,
                Some(Standing { applied, .. }) => {
                    if applied != seen.0 {
                        seen = (applied, Clock::now());
                    }
                }
            }
            if seen.1.elapsed() >= common.config.stuck {
                return Answer::Never(format!("entries behind {} were not applied in time", seen.0));
            }
            tokio::time::sleep(LOOK).await;
        }
        let most = common.config.compared;
        match node::sum(&common.local, &self.key, at, most, Clock::now() + common.config.stuck).await {
            Some(sum) => Answer::Given(sum),
            None => Answer::Later,
        }
    }
}
