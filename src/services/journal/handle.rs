//! What other services ask of journals, and what they hear.
//!
//! Rule: what is told to be committed is durable wherever a primary may come from, and what is heard to be committed here is
//! durable here. Must not know: how the cores are run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant as Clock};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::inbox::{Inbox, NotTaken};
use super::records::{self, AskError, CreateError, RetireError};
use crate::proto::env::Instant;
use crate::proto::journal::election;
use crate::proto::journal::entry::ENTRY_BODY_MAX_BYTES;
use crate::proto::journal::record::Change;
use crate::proto::journal::sight::Seen;
use crate::proto::journal::{Answer, Body, Entry, Hint, Kind, Stands, Write};
use crate::proto::tasks::home::{StoredRow, Touched};
use crate::services::ledger::{LedgerHandle, now};
use crate::store::journal::StoredHome;
use crate::store::{JournalStore, StoreError};
use crate::types::limits::APPEND_PARTS_MAX;
use crate::types::{
    Epoch, Holder, JournalKey, JournalRecord, MemberId, PhysicalIndex, Position, RecordVersion, ReplicaId, ShardId,
    ShardState, TaskPart,
};
use crate::wire::verbs::{Append, Appended, Refusal};

/// Events that a subscriber may lag behind.
const EVENTS: usize = 4_096;

/// What the driver is told by this process.
#[derive(Debug)]
pub(super) enum Input {
    Write { parts: Vec<(JournalKey, Write)>, deadline: Instant, tell: oneshot::Sender<Vec<Answer>> },
    Applied(Vec<(JournalKey, u64)>),
    Unapplied(Vec<(JournalKey, u64)>),
    Trim { key: JournalKey, to: u64, overdue: bool },
    Snapshot { key: JournalKey, at: Position, parts: Vec<(TaskPart, Stands)>, tell: oneshot::Sender<bool> },
    Repair(JournalKey, String),
    Unfit(JournalKey, bool),
    Filled(JournalKey),
    Status(PhysicalIndex, oneshot::Sender<BTreeMap<ShardId, ShardStatus>>),
    HandOver(oneshot::Sender<()>),
}

/// Something that happened to a replica of this member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Entries up to here are committed, and durable here.
    Committed(JournalKey, u64),
    /// This member orders the shard's writes from here on.
    Reigns(JournalKey, Epoch),
    /// It does not any more.
    Deposed(JournalKey, Epoch),
    /// This replica needs a snapshot of the shard from here.
    NeedsSnapshot(JournalKey, ReplicaId),
    /// The copy here must be made anew.
    Rebuild(JournalKey),
}

/// One shard of an index, as this member knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardStatus {
    /// Who holds it and who is in sync, by this member's copy of the record; not told to others, who have their own.
    #[serde(skip)]
    pub state: Option<ShardState>,
    /// Whether this member orders its writes.
    pub primary: bool,
    /// The highest epoch that it has heard of.
    pub epoch: Epoch,
    /// The last entry here.
    pub last: u64,
    /// Up to here entries are known to be committed.
    pub commit: u64,
    /// Up to here the node has applied them.
    pub applied: u64,
    /// The copy here must be made anew, or is not known to be the same as another.
    pub rebuild: bool,
    /// How far that is, and what is in the way, for people.
    #[serde(default)]
    pub making: Option<String>,
    /// At its primary: up to where the other replicas have stored the same.
    pub stored_by: BTreeMap<String, u64>,
}

/// What handle and driver share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) events: broadcast::Sender<Event>,
    // Up to where entries are known to be committed, of shards that this process has touched.
    commits: Mutex<BTreeMap<JournalKey, u64>>,
    // The records of indexes as they were read last.
    records: Mutex<BTreeMap<PhysicalIndex, (RecordVersion, Arc<JournalRecord>)>>,
    pub(super) in_memory: AtomicUsize,
    holds: Mutex<BTreeMap<JournalKey, BTreeMap<MemberId, Hold>>>,
}

/// Entries that a copy which is being filled will need.
#[derive(Debug, Clone, Copy)]
struct Hold {
    behind: u64,
    until: Clock,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            events: broadcast::Sender::new(EVENTS),
            commits: Mutex::default(),
            records: Mutex::default(),
            in_memory: AtomicUsize::new(0),
            holds: Mutex::default(),
        }
    }

    /// Says what happened; nobody may be listening.
    pub(super) fn tell(&self, event: Event) {
        if let Event::Committed(key, to) = &event {
            let mut commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
            let known = commits.entry(key.clone()).or_default();
            *known = (*known).max(*to);
        }
        drop(self.events.send(event));
    }

    pub(super) fn commit(&self, key: &JournalKey) -> Option<u64> {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied()
    }

    /// Behind which entry everything is still needed; of whoever has not come back in time nothing is.
    fn held(&self, key: &JournalKey) -> Option<u64> {
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        let of = holds.get_mut(key)?;
        let now = Clock::now();
        of.retain(|_, hold| hold.until > now);
        let behind = of.values().map(|hold| hold.behind).min();
        if behind.is_none() {
            holds.remove(key);
        }
        behind
    }

    /// The journal begins anew, or is gone.
    pub(super) fn forget(&self, key: &JournalKey) {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

/// The journals, as other services use them; cheap to clone.
#[derive(Debug, Clone)]
pub struct JournalHandle {
    pub(super) me: ReplicaId,
    pub(super) min_in_sync: Option<usize>,
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) inbox: Inbox,
    pub(super) shared: Arc<Shared>,
    pub(super) store: JournalStore,
    pub(super) ledger: LedgerHandle,
    pub(super) seen: watch::Receiver<Arc<Seen>>,
}

impl JournalHandle {
    /// This member, in its store.
    pub fn me(&self) -> &ReplicaId {
        &self.me
    }

    /// The states of an index's shards as this member's copy has them.
    pub fn record(&self, index: &PhysicalIndex) -> Option<Arc<JournalRecord>> {
        let copies = self.ledger.copies();
        let copy = copies.get(&JournalRecord::key(index));
        // Every part of every write asks; the text is read once.
        let mut records = self.shared.records.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(copy) = copy else {
            records.remove(index);
            return None;
        };
        if let Some((version, record)) = records.get(index)
            && *version == copy.version
        {
            return Some(Arc::clone(record));
        }
        let record = Arc::new(JournalRecord::from_json(&copy.value).ok()?);
        records.insert(index.clone(), (copy.version, Arc::clone(&record)));
        Some(record)
    }

    /// The least size of the in-sync sets, if one is configured.
    pub fn configured_min(&self) -> Option<usize> {
        self.min_in_sync
    }

    /// The least size of a shard's in-sync set.
    pub fn min_in_sync(&self, state: &ShardState) -> usize {
        election::min_in_sync(state, self.min_in_sync)
    }

    /// Writes the first states of an index's shards: these copies, all of them full, in sync and empty.
    ///
    /// Not cancel-safe in the sense that the record may be written after the future is dropped.
    ///
    /// # Errors
    /// [`CreateError`].
    pub async fn create(
        &self,
        index: &PhysicalIndex,
        copies: Vec<Vec<ReplicaId>>,
        patience: Duration,
    ) -> Result<(), CreateError> {
        records::create(&self.ledger, index, copies, &self.holder(), self.min_in_sync, patience).await
    }

    /// This process.
    pub fn holder(&self) -> Holder {
        Holder { member: self.me.member.clone(), start: self.ledger.start() }
    }

    /// Who is seen to live.
    pub fn seen(&self) -> Arc<Seen> {
        Arc::clone(&self.seen.borrow())
    }

    /// Writes the change that `choose` makes of a shard's state as a majority has it; it is asked again if somebody else changes
    /// the record meanwhile. Gives the states before and after, which are the same if it makes none.
    ///
    /// Not cancel-safe in the sense that the change may be written after the future is dropped.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn change<E>(
        &self,
        key: &JournalKey,
        choose: impl FnMut(&ShardState) -> Result<Option<Change>, E>,
    ) -> Result<(ShardState, ShardState), AskError<E>> {
        records::change_one(&self.ledger, key, self.min_in_sync, choose).await
    }

    /// Writes that an index is gone. Its primaries end, and the members delete their journals of it.
    ///
    /// Not cancel-safe in the sense that the record may be written after the future is dropped.
    ///
    /// # Errors
    /// [`RetireError`].
    pub async fn retire(&self, index: &PhysicalIndex, patience: Duration) -> Result<(), RetireError> {
        records::retire(&self.ledger, index, patience).await
    }

    /// Deletes the journals of indexes that are gone: of each of which a majority says so. An index that is found to be gone is left
    /// to the next look, until when its replicas have been given up and what they wanted stored is over; `known` are those of
    /// the last look.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete_gone(&self, known: &mut BTreeSet<PhysicalIndex>) -> Result<(), StoreError> {
        let here: BTreeSet<PhysicalIndex> = self.stored().await?.into_iter().map(|listed| listed.key.index).collect();
        let is_gone = |index: &PhysicalIndex| self.record(index).is_some_and(|record| record.shards.is_empty());
        let gone: BTreeSet<PhysicalIndex> = here.into_iter().filter(is_gone).collect();
        let mut any = false;
        for index in gone.intersection(known) {
            if !records::is_gone(&self.ledger, index).await {
                // Without a majority there is nothing to be learned of the others, either.
                break;
            }
            tracing::info!(%index, "the journals of a deleted index are deleted");
            self.store.delete_index(index).await?;
            any = true;
        }
        *known = gone;
        while any && self.store.purge().await? {}
        Ok(())
    }

    /// Writes parts of a request for shards of which this member is the primary; an answer for each, in their order, at
    /// the latest at the deadline. [`Answer::Unknown`] may be committed later.
    ///
    /// Dropping the future does not undo it.
    pub async fn write(&self, index: &PhysicalIndex, parts: Vec<(ShardId, Write)>, deadline: Clock) -> Vec<Answer> {
        let count = parts.len();
        let left = deadline.saturating_duration_since(Clock::now());
        let key = |shard| JournalKey { index: index.clone(), shard };
        let parts = parts.into_iter().map(|(shard, write)| (key(shard), write)).collect();
        let (tell, wait) = oneshot::channel();
        // Nobody waits at the door for longer than for the answer.
        match self.inputs.send_timeout(Input::Write { parts, deadline: now().plus(left), tell }, left).await {
            Ok(()) => wait.await.unwrap_or_else(|_| vec![unknown(); count]),
            Err(_) => vec![Answer::Busy; count],
        }
    }

    /// The same for a member that has sent the parts; whatever it sent is checked.
    ///
    /// Dropping the future does not undo it.
    ///
    /// # Errors
    /// [`Refusal`]; nothing was appended.
    pub async fn receive(&self, append: &Append, body: &Bytes, deadline: Clock) -> Result<Vec<Appended>, Refusal> {
        let malformed = |what: &str| Err(Refusal::Malformed(what.to_owned()));
        if append.parts.len() > APPEND_PARTS_MAX {
            return malformed("too many parts");
        }
        if append.index.is_of_tasks() {
            return malformed("only a home's own primary writes its journal");
        }
        let (mut parts, mut at) = (Vec::new(), 0_usize);
        for part in &append.parts {
            let length = usize::try_from(part.length).unwrap_or(usize::MAX);
            let end = at.checked_add(length).filter(|end| *end <= body.len());
            let Some(end) = end else { return malformed("the parts are longer than the body") };
            if length > ENTRY_BODY_MAX_BYTES || matches!(part.kind, Kind::Empty | Kind::Home) {
                return malformed("a part that can't be written");
            }
            let write = Write { part: part.part, kind: part.kind, body: Body(body[at..end].into()) };
            parts.push((part.shard, write));
            at = end;
        }
        if at != body.len() {
            return malformed("the parts are shorter than the body");
        }
        Ok(self.write(&append.index, parts, deadline).await.into_iter().map(appended).collect())
    }

    /// Hands over messages of a peer, encoded.
    ///
    /// # Errors
    /// [`NotTaken`]; they are dropped then, which their sender must be ready for anyway.
    pub fn deliver(&self, from: &crate::types::MemberId, body: &Bytes) -> Result<(), NotTaken> {
        self.inbox.put(from, body)
    }

    /// Everything that happens from now on. Who lags too far behind loses some, and looks with [`Self::committed`].
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// Up to where entries are known here to be committed; `None` if this process has not touched the shard, and then what is
    /// stored tells.
    pub fn committed(&self, key: &JournalKey) -> Option<u64> {
        self.shared.commit(key)
    }

    /// All journals that are stored here, with what is durable of each.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn stored(&self) -> Result<Vec<crate::store::journal::Listed>, StoreError> {
        let (all, damaged) = self.store.list().await?;
        for key in damaged {
            drop(self.inputs.send(Input::Repair(key, "its head".into())).await);
        }
        Ok(all)
    }

    /// Committed entries from `from` on, at most so many, of at most so many bytes but at least one; none if `from` was dropped
    /// at the beginning, or is not known to be committed.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`StoreError`]; a damaged journal is repaired, and its copy made anew.
    pub async fn read_committed(
        &self,
        key: &JournalKey,
        from: u64,
        entries: usize,
        bytes: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let Some(commit) = self.committed(key).filter(|commit| *commit >= from) else { return Ok(Vec::new()) };
        let most = usize::try_from(commit - from + 1).unwrap_or(usize::MAX);
        let read = self.store.load(key, from, entries.min(most), bytes).await;
        if let Err(StoreError::Damaged { reason, .. }) = &read {
            self.repair(key, reason.clone()).await;
        }
        read
    }

    /// The node has applied these shards up to there; it is durable when this returns.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn applied(&self, applied: Vec<(JournalKey, u64)>) -> Result<(), StoreError> {
        self.store.set_applied(applied.clone()).await?;
        // Without its driver the process is about to end.
        drop(self.inputs.send(Input::Applied(applied)).await);
        Ok(())
    }

    /// The node has lost what it had applied behind these.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn unapplied(&self, applied: Vec<(JournalKey, u64)>) -> Result<(), StoreError> {
        self.store.set_applied(applied.clone()).await?;
        drop(self.inputs.send(Input::Unapplied(applied)).await);
        Ok(())
    }

    /// The node has applied some shards up to there, and lost what it had of others behind these; all of it is durable already.
    pub async fn tell_applied(&self, applied: Vec<(JournalKey, u64)>, unapplied: Vec<(JournalKey, u64)>) {
        // Without its driver the process is about to end.
        if !unapplied.is_empty() {
            drop(self.inputs.send(Input::Unapplied(unapplied)).await);
        }
        if !applied.is_empty() {
            drop(self.inputs.send(Input::Applied(applied)).await);
        }
    }

    /// What stands or stood under a part here, committed or not, also after its entry was dropped at the beginning.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// As [`Self::read_committed`].
    pub async fn find(&self, key: &JournalKey, part: TaskPart) -> Result<Option<Stands>, StoreError> {
        let found = self.store.find(key, part).await;
        if let Err(StoreError::Damaged { reason, .. }) = &found {
            self.repair(key, reason.clone()).await;
        }
        found
    }

    /// What stands in order from `from` on under parts, of at most so many entries, without what it says, and the last entry
    /// looked at; committed or not.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// As [`Self::read_committed`].
    pub async fn standing(
        &self,
        key: &JournalKey,
        from: u64,
        entries: usize,
    ) -> Result<(Vec<(TaskPart, Stands)>, u64), StoreError> {
        let read = self.store.standing(key, from, entries).await;
        if let Err(StoreError::Damaged { reason, .. }) = &read {
            self.repair(key, reason.clone()).await;
        }
        read
    }

    /// A journal is damaged: what is left of it is kept, and the copy made anew.
    pub async fn repair(&self, key: &JournalKey, reason: String) {
        drop(self.inputs.send(Input::Repair(key.clone(), reason)).await);
    }

    /// What is stored of a home of tasks.
    ///
    /// # Errors
    /// As [`Self::read_committed`].
    pub async fn home(&self, key: &JournalKey) -> Result<StoredHome, StoreError> {
        let home = self.store.home(key).await;
        if let Err(StoreError::Damaged { reason, .. }) = &home {
            self.repair(key, reason.clone()).await;
        }
        home
    }

    /// What is stored of a home of tasks, with the parts that stand in its journal, as they were at one instant.
    ///
    /// # Errors
    /// As [`Self::read_committed`].
    pub async fn home_with_parts(&self, key: &JournalKey) -> Result<(StoredHome, Vec<(TaskPart, Stands)>), StoreError> {
        let home = self.store.home_with_parts(key).await;
        if let Err(StoreError::Damaged { reason, .. }) = &home {
            self.repair(key, reason.clone()).await;
        }
        home
    }

    /// A home has taken in entries up to `to`, which changed these of its rows; all of it is durable when this returns.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn home_applied(
        &self,
        key: &JournalKey,
        to: u64,
        changed: Vec<(Touched, Option<StoredRow>)>,
    ) -> Result<(), StoreError> {
        self.store.put_home(key, to, changed).await?;
        drop(self.inputs.send(Input::Applied(vec![(key.clone(), to)])).await);
        Ok(())
    }

    /// These rows of a home are to come with the next [`Self::snapshot`]; see [`JournalStore::stage_home`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn stage_home(&self, key: &JournalKey, first: bool, rows: Vec<StoredRow>) -> Result<(), StoreError> {
        self.store.stage_home(key, first, rows).await
    }

    /// Where an entry stands, committed or not; `None` if it was dropped at the beginning, or is not there.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// As [`Self::read_committed`].
    pub async fn position(&self, key: &JournalKey, seq: u64) -> Result<Option<Position>, StoreError> {
        let found = self.store.position(key, seq).await;
        if let Err(StoreError::Damaged { reason, .. }) = &found {
            self.repair(key, reason.clone()).await;
        }
        found
    }

    /// The parts that stand up to `to`, for a snapshot that is taken there.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn parts(&self, key: &JournalKey, to: u64) -> Result<Vec<(TaskPart, Stands)>, StoreError> {
        self.store.parts(key, to).await
    }

    /// Entries behind `behind`, and what is known of parts, are kept until then for the copy of a member that is being filled; the
    /// next such call of the same counts. It lasts as long as this process at most.
    pub fn hold(&self, key: &JournalKey, of: &MemberId, behind: u64, until: Clock) {
        let mut holds = self.shared.holds.lock().unwrap_or_else(PoisonError::into_inner);
        holds.entry(key.clone()).or_default().insert(of.clone(), Hold { behind, until });
    }

    /// Nothing is kept for that member any more.
    pub fn release(&self, key: &JournalKey, of: &MemberId) {
        let mut holds = self.shared.holds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = holds.get_mut(key) {
            held.remove(of);
        }
        holds.retain(|_, of| !of.is_empty());
    }

    /// Whether anything is kept for somebody.
    pub(super) fn is_held(&self, key: &JournalKey) -> bool {
        self.shared.held(key).is_some()
    }

    /// Entries up to `to` are older than the retention: what nobody needs of them goes. If they are `overdue`, because they have
    /// waited long for somebody's node, it goes where enough other nodes in sync have applied it.
    pub async fn trim(&self, key: &JournalKey, to: u64, overdue: bool) {
        let to = self.shared.held(key).map_or(to, |behind| behind.min(to));
        drop(self.inputs.send(Input::Trim { key: key.clone(), to, overdue }).await);
    }

    /// The copy here has been made anew, as it was at `at`, with the parts that stood there. Says whether that was taken.
    pub async fn snapshot(&self, key: &JournalKey, at: Position, parts: Vec<(TaskPart, Stands)>) -> bool {
        let (tell, wait) = oneshot::channel();
        drop(self.inputs.send(Input::Snapshot { key: key.clone(), at, parts, tell }).await);
        wait.await.unwrap_or(false)
    }

    /// Whether the copy here is made anew, so that somebody else is to order the shard's writes: whoever does so judges entries by
    /// what its own node makes of them. It stays in sync, for its journal is whole. Said again now and then while it is so, because
    /// others may not know.
    pub async fn unfit(&self, key: &JournalKey, unfit: bool) {
        drop(self.inputs.send(Input::Unfit(key.clone(), unfit)).await);
    }

    /// The node has what a learner's copy is to have: it may become a full one. Said once; it is kept until the record says so.
    pub async fn filled(&self, key: &JournalKey) {
        drop(self.inputs.send(Input::Filled(key.clone())).await);
    }

    /// Every shard of an index of which this member holds a copy, or knows the state.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn status(&self, index: &PhysicalIndex) -> Result<BTreeMap<ShardId, ShardStatus>, StoreError> {
        let record = self.record(index).unwrap_or_default();
        let mut all: BTreeMap<ShardId, ShardStatus> = (0..)
            .map(ShardId)
            .zip(record.shards.iter().cloned())
            .map(|(shard, state)| (shard, ShardStatus { state: Some(state), ..ShardStatus::default() }))
            .collect();
        for listed in self.store.list().await?.0.into_iter().filter(|l| l.key.index == *index) {
            let one = all.entry(listed.key.shard).or_default();
            let commit = self.committed(&listed.key).unwrap_or(0).max(listed.commit);
            (one.epoch, one.last, one.commit) = (listed.epoch, listed.last.seq, commit);
            (one.applied, one.rebuild) = (listed.applied, listed.rebuild);
        }
        let (tell, wait) = oneshot::channel();
        drop(self.inputs.send(Input::Status(index.clone(), tell)).await);
        for (shard, live) in wait.await.unwrap_or_default() {
            let one = all.entry(shard).or_default();
            one.last = if live.last > 0 { live.last } else { one.last };
            (one.epoch, one.commit) = (one.epoch.max(live.epoch), one.commit.max(live.commit));
            (one.primary, one.stored_by) = (live.primary, live.stored_by);
        }
        Ok(all)
    }

    /// How many replicas are in memory: idle ones are not.
    pub fn in_memory(&self) -> usize {
        self.shared.in_memory.load(Ordering::Relaxed)
    }

    /// Asks for other primaries of all shards that this member leads, because the process ends; waits until that was written
    /// or refused, at most `patience`.
    pub async fn hand_over(&self, patience: Duration) {
        let (tell, wait) = oneshot::channel();
        let all = async {
            drop(self.inputs.send(Input::HandOver(tell)).await);
            wait.await.ok();
        };
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::warn!("primaries were not handed over in time; the others elect them when this member is gone");
        }
    }
}

/// What is said of a part when nobody knows.
pub(super) fn unknown() -> Answer {
    Answer::Unknown(Hint { primary: None, epoch: Epoch::ZERO })
}

fn appended(answer: Answer) -> Appended {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    match answer {
        Answer::Committed { seq, refused, in_sync, copies } => {
            Appended::Committed { seq, refused, in_sync: count(in_sync), copies: count(copies) }
        }
        Answer::NotPrimary(hint) => Appended::NotPrimary(hint.primary, hint.epoch),
        Answer::NoQuorum => Appended::NoQuorum,
        Answer::Refused => Appended::Refused,
        Answer::Busy => Appended::Busy,
        Answer::Unknown(hint) => Appended::Unknown(hint.primary, hint.epoch),
    }
}

/// What a peer's word means.
pub(super) fn answer_of(appended: Appended) -> Answer {
    let count = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    match appended {
        Appended::Committed { seq, refused, in_sync, copies } => {
            Answer::Committed { seq, refused, in_sync: count(in_sync), copies: count(copies) }
        }
        Appended::NotPrimary(primary, epoch) => Answer::NotPrimary(Hint { primary, epoch }),
        Appended::NoQuorum => Answer::NoQuorum,
        Appended::Refused => Answer::Refused,
        Appended::Busy => Answer::Busy,
        Appended::Unknown(primary, epoch) => Answer::Unknown(Hint { primary, epoch }),
    }
}
