//! Answers learners.
//!
//! Rule: what was read is given only if by how the copy stands *after* it was read it is of use. Must not know: what a learner does
//! with it.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::{Duration, Instant as Clock};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::driver::Common;
use super::handle::SnapshotHandle;
use super::node;
use crate::net::Answer;
use crate::proto::apply::{Flaw, Standing, Stop};
use crate::proto::journal::Stands;
use crate::proto::snapshot::source::{Patience, Use};
use crate::proto::snapshot::{Source, Sum};
use crate::services::ledger::now;
use crate::types::{JournalKey, MemberId, Position, TaskPart};
use crate::wire::verbs::{Reply, SnapshotAct, SnapshotOf, SnapshotSaid};

/// Ids of one question.
const IDS_MAX: usize = 10_000;
/// Their JSON.
const IDS_MAX_BYTES: usize = 8 << 20;
/// Verdicts of one answer.
const FAILED_MAX: usize = 4_096;
/// How long it may take until a copy is known to be sound.
const SOUND: Duration = Duration::from_secs(3);
/// How long it may take until a conditional entry that is with the node has ended, while no other follows.
const ENDED: Duration = Duration::from_secs(20);
/// Between two looks whether a shard has come to rest.
const LOOK: Duration = Duration::from_millis(10);

/// What stands beside entries.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Beside {
    pub(super) parts: Vec<(TaskPart, Stands)>,
    pub(super) failed: BTreeMap<u64, Flaw>,
}

fn said(said: SnapshotSaid) -> Answer {
    Answer::of(Reply::Snapshot(said))
}

fn no(why: &str) -> Answer {
    said(SnapshotSaid::No(why.into()))
}

fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => Answer { reply: Reply::Snapshot(SnapshotSaid::Json), body: body.into() },
        Err(error) => no(&error.to_string()),
    }
}

impl SnapshotHandle {
    /// What a learner is told of the copy here.
    ///
    /// Cancel-safe: entries that wait for an answer which nobody takes go on.
    pub async fn receive(&self, from: &MemberId, of: &SnapshotOf, body: &Bytes) -> Answer {
        let key = JournalKey { index: of.index.clone(), shard: of.shard };
        if key.index.is_of_tasks() {
            return no("no node is behind the journals of tasks");
        }
        let expired = self.common.reads().expire(now());
        for read in expired {
            self.common.journals.release(&read.key, &read.learner);
        }
        match of.act {
            SnapshotAct::Offer => self.offer(&key).await,
            SnapshotAct::Begin(attempt) => self.begin(from, key, attempt).await,
            SnapshotAct::Documents(token) => self.documents(from, &key, token, body).await,
            SnapshotAct::Read(token) => {
                let released = self.touch(from, &key, token) && self.common.reads().release(token);
                if released {
                    self.let_go(&key).await;
                }
                said(SnapshotSaid::Yes)
            }
            SnapshotAct::Keep(token) if self.touch(from, &key, token) => said(SnapshotSaid::Yes),
            SnapshotAct::Keep(_) => no("no such read"),
            SnapshotAct::Beside { token, parts, behind } => self.beside(from, &key, token, parts, behind).await,
            SnapshotAct::Settle => self.settle(from, &key).await,
            SnapshotAct::End(token) => {
                let known = self.touch(from, &key, token);
                let read = if known { self.common.reads().end(token) } else { None };
                if let Some(read) = read {
                    self.common.journals.release(&read.key, &read.learner);
                    self.let_go(&key).await;
                }
                said(SnapshotSaid::Yes)
            }
        }
    }

    /// Entries go on, unless another read needs that they wait.
    async fn let_go(&self, key: &JournalKey) {
        if !self.common.reads().is_held(key) && !self.is_settling(key) {
            self.common.apply.stop(key, None).await;
        }
    }

    fn is_settling(&self, key: &JournalKey) -> bool {
        self.common.settling.lock().unwrap_or_else(PoisonError::into_inner).contains_key(key)
    }

    /// A read goes on.
    fn touch(&self, from: &MemberId, key: &JournalKey, token: u64) -> bool {
        let read = self.common.reads().touch(now(), token, key, from);
        if let Some(read) = &read {
            let until = Clock::now() + self.common.config.source.idle;
            self.common.journals.hold(key, from, read.at, until);
        }
        read.is_some()
    }

    async fn offer(&self, key: &JournalKey) -> Answer {
        let end = Clock::now() + SOUND;
        loop {
            match self.common.apply.standing(key).await {
                Some(Standing { sound: true, .. }) => return said(SnapshotSaid::Yes),
                Some(Standing { rebuild: true, doubtful, .. }) => {
                    return match self.common.here(key).await {
                        Ok(here) => said(SnapshotSaid::Unmade { doubtful, whole: here.is_whole() }),
                        Err(error) => no(&error.to_string()),
                    };
                }
                // One that was at rest looks at its node first.
                Some(_) if Clock::now() < end => tokio::time::sleep(LOOK).await,
                Some(_) => return no("its own copy is not known to be sound now"),
                None => return no("it does not hold the shard"),
            }
        }
    }

    async fn begin(&self, from: &MemberId, key: JournalKey, attempt: u32) -> Answer {
        let common = &self.common;
        if !common.reads().has_room(&key, from) || self.is_settling(&key) {
            return said(SnapshotSaid::Later);
        }
        let until = common.reads().holds(now(), attempt);
        let mut waiting = Waiting::new(self, &key, until.is_some());
        let standing = match until {
            Some(until) => common.apply.stop(&key, Some((Stop::Conditional, until))).await,
            None => common.apply.standing(&key).await,
        };
        let begun = self.begin_held(from, &key, standing, &mut waiting).await;
        if !matches!(begun.reply, Reply::Snapshot(SnapshotSaid::Begun(..))) {
            // The learner knows of no read, so nothing is to wait for it.
            let read = self.common.reads().end_of(from, &key);
            if read.is_some() {
                self.common.journals.release(&key, from);
            }
            if until.is_some() {
                self.let_go(&key).await;
            }
        }
        waiting.end();
        begun
    }

    /// A read begins, while conditional entries wait if they are to.
    async fn begin_held(
        &self,
        from: &MemberId,
        key: &JournalKey,
        standing: Option<Standing>,
        waiting: &mut Waiting,
    ) -> Answer {
        let (common, end, holds) = (&self.common, Clock::now() + ENDED, waiting.stops);
        let mut standing = standing;
        let seq = loop {
            let Some(now) = standing else { return no("it does not hold the shard") };
            if now.rebuild {
                return no("its own copy must be made anew");
            }
            match Source::position(&now) {
                Some(seq) => break seq,
                // One is with the node, and comes to its end.
                None if holds && now.sound && Clock::now() < end => tokio::time::sleep(LOOK).await,
                None => return said(SnapshotSaid::Later),
            }
            standing = common.apply.standing(key).await;
        };
        // What comes behind is kept before anything is read.
        common.journals.hold(key, from, seq, Clock::now() + common.config.source.idle);
        let at = match common.journals.position(key, seq).await {
            Ok(Some(at)) => at,
            Ok(None) if seq == 0 => Position::default(),
            Ok(None) | Err(_) => return said(SnapshotSaid::Later),
        };
        let (token, _) = common.reads().begin(now(), key.clone(), from.clone(), seq, holds);
        waiting.begins = Some(token);
        let ids = node::ids(&common.local, key).await;
        match (self.judge(token, key).await, ids) {
            (Use::Yes, Some(ids)) => match serde_json::to_vec(&ids) {
                Ok(body) => Answer { reply: Reply::Snapshot(SnapshotSaid::Begun(token, at)), body: body.into() },
                Err(error) => no(&error.to_string()),
            },
            (Use::Yes, None) => said(SnapshotSaid::Later),
            (Use::Again, _) => said(SnapshotSaid::Again),
            (Use::Never, _) => no("its own copy is not sound any more"),
        }
    }

    /// Whether what was read is of use.
    async fn judge(&self, token: u64, key: &JournalKey) -> Use {
        let standing = self.common.apply.standing(key).await;
        self.common.reads().judge(token, standing.as_ref())
    }

    async fn documents(&self, from: &MemberId, key: &JournalKey, token: u64, body: &Bytes) -> Answer {
        if !self.touch(from, key, token) {
            return no("no such read");
        }
        let ids = (body.len() <= IDS_MAX_BYTES).then(|| serde_json::from_slice::<Vec<String>>(body).ok()).flatten();
        let Some(ids) = ids.filter(|ids| (1..=IDS_MAX).contains(&ids.len())) else { return no("no list of ids") };
        let found = node::documents(&self.common.local, key, &ids).await;
        match (self.judge(token, key).await, found) {
            (Use::Yes, Some((taken, body))) => {
                let taken = u32::try_from(taken).unwrap_or(u32::MAX);
                Answer { reply: Reply::Snapshot(SnapshotSaid::Documents(taken)), body }
            }
            (Use::Yes, None) => said(SnapshotSaid::Later),
            (Use::Again, _) => said(SnapshotSaid::Again),
            (Use::Never, _) => no("its own copy is not sound any more"),
        }
    }

    async fn beside(&self, from: &MemberId, key: &JournalKey, token: u64, parts: bool, behind: u64) -> Answer {
        let read = self.common.reads().touch(now(), token, key, from);
        let Some(at) = read.map(|read| read.at) else { return no("no such read") };
        let common = &self.common;
        let failed = match common.store.failed(key, behind.saturating_add(1), at, FAILED_MAX).await {
            Ok(failed) => failed.into_iter().collect(),
            Err(error) => return no(&error.to_string()),
        };
        let parts = if parts { common.journals.parts(key, at).await } else { Ok(Vec::new()) };
        match parts {
            Ok(parts) => json(&Beside { parts, failed }),
            Err(error) => no(&error.to_string()),
        }
    }

    /// Has the shard come to rest at one entry, and says what it holds then.
    async fn settle(&self, from: &MemberId, key: &JournalKey) -> Answer {
        // Made first, so that it is dropped last: others may not settle what is still held up for this.
        let mut waiting = Waiting::new(self, key, false);
        let Some(_settling) = Settling::begin(&self.common, key, from) else {
            waiting.end();
            return said(SnapshotSaid::Later);
        };
        if self.common.reads().is_held(key) {
            return said(SnapshotSaid::Later);
        }
        let patience = self.common.reads().settles(now(), key, from);
        let span = match patience {
            Patience::For(span) => span,
            Patience::None => return no("the shard does not come to rest"),
            Patience::Unknown => return no("no such read"),
        };
        waiting.stops = true;
        let sum = self.settled(key, span).await;
        self.common.apply.stop(key, None).await;
        waiting.end();
        match sum {
            Ok(Some(sum)) => json(&sum),
            Ok(None) => said(SnapshotSaid::Later),
            Err(why) => no(why),
        }
    }

    async fn settled(&self, key: &JournalKey, span: Duration) -> Result<Option<Sum>, &'static str> {
        let common = &self.common;
        // Ids are read while it rests, too.
        let mut standing = common.apply.stop(key, Some((Stop::Here, now().plus(span * 3)))).await;
        let end = Clock::now() + span;
        let at = loop {
            match standing {
                None => return Err("it does not hold the shard"),
                Some(Standing { rebuild: true, .. }) => return Err("its own copy must be made anew"),
                Some(Standing { sound: true, quiet: true, applied, .. }) => break applied,
                Some(_) if Clock::now() >= end => return Ok(None),
                Some(_) => {}
            }
            tokio::time::sleep(LOOK).await;
            standing = common.apply.standing(key).await;
        };
        let sum = node::sum(&common.local, key, at, common.config.compared, Clock::now() + common.config.settle).await;
        // If it went on meanwhile, nobody knows after which entry that was.
        let standing = common.apply.standing(key).await;
        let still = standing.is_some_and(|s| s.sound && s.quiet && s.stopped && s.applied == at);
        Ok(sum.filter(|_| still))
    }
}

/// Entries may wait for an answer that is being made. If nobody takes it any more, they go on.
struct Waiting {
    handle: SnapshotHandle,
    key: JournalKey,
    /// Entries wait.
    stops: bool,
    /// The read that begins with the answer: it is over, too.
    begins: Option<u64>,
    over: bool,
}

impl Waiting {
    fn new(handle: &SnapshotHandle, key: &JournalKey, stops: bool) -> Self {
        Self { handle: handle.clone(), key: key.clone(), stops, begins: None, over: false }
    }

    /// The answer is made.
    fn end(mut self) {
        self.over = true;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.over {
            return;
        }
        let (handle, key) = (self.handle.clone(), self.key.clone());
        let read = self.begins.and_then(|token| handle.common.reads().end(token));
        if let Some(read) = read {
            handle.common.journals.release(&read.key, &read.learner);
        }
        if self.stops {
            runtime.spawn(async move { handle.let_go(&key).await });
        }
    }
}

/// While it is there, a shard waits so that it is compared.
struct Settling<'a> {
    common: &'a Common,
    key: JournalKey,
}

impl<'a> Settling<'a> {
    /// One at a time of each shard.
    fn begin(common: &'a Common, key: &JournalKey, from: &MemberId) -> Option<Self> {
        let mut settling = common.settling.lock().unwrap_or_else(PoisonError::into_inner);
        if settling.contains_key(key) {
            return None;
        }
        settling.insert(key.clone(), from.clone());
        Some(Self { common, key: key.clone() })
    }
}

impl Drop for Settling<'_> {
    fn drop(&mut self) {
        self.common.settling.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}
