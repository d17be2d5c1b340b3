//! Who holds what, by this member's copies of the records, and changes of that.
//!
//! All changes that replicas and elections ask for are collected by index and go into one write of the ledger at a time; each
//! is checked against the newest record on its own. Rule: a record is replaced only by one that grew out of it, by compare and
//! set, so nothing that somebody else wrote is undone. Must not know: why a change is wanted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::driver::{Done, Driver};
use super::handle::Event;
use crate::proto::journal::election;
use crate::proto::journal::record::{Change, ChangeError, Why, check};
use crate::proto::ledger::Answer;
use crate::services::ledger::{ChangeRequest, LedgerHandle};
use crate::types::limits::{RECORD_MAX_BYTES, SHARDS_MAX};
use crate::types::{
    Epoch, Holder, JournalKey, JournalRecord, PhysicalIndex, RecordKey, ReplicaId, ReplicaState, ShardCopy, ShardId,
    ShardState, Value, Versioned,
};

/// How long one write of a record may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// How often a write begins anew on what somebody else wrote meanwhile, before the replicas ask again.
const TRIES: usize = 8;

/// Why the first states of an index were not written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CreateError {
    /// No shard, or too many.
    #[error("an index of {0} shards")]
    Shards(usize),
    /// The copies of a shard can't be that.
    #[error(transparent)]
    Refused(#[from] ChangeError),
    /// The record would be larger than a record may be.
    #[error("the record would have {0} bytes, the limit is {RECORD_MAX_BYTES}")]
    TooLarge(usize),
    /// There is a record already.
    #[error("the shards of this index have been written before")]
    Exists,
    /// It may have been written, or may be.
    #[error("whether the record was written is not known")]
    Unknown,
    /// Nothing was written.
    #[error("no majority of the voters answered")]
    NoQuorum,
}

/// Why it was not written that an index is gone.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RetireError {
    /// It may have been written, or may be.
    #[error("whether the record was written is not known")]
    Unknown,
    /// Nothing was written.
    #[error("no majority of the voters answered, or others changed the record all the time")]
    NoQuorum,
}

/// Why a change of one shard's state was not written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AskError<E> {
    /// There is no such record, or no such shard in it.
    Gone,
    /// Whoever wants the change does not want it of what a majority says.
    Refused(E),
    /// It is not allowed.
    NotAllowed(ChangeError),
    /// It may have been written, or may be.
    Unknown,
    /// Nothing was written.
    NoQuorum,
}

/// One index, as this member's copy of the record has it.
#[derive(Debug, Clone)]
pub(super) struct Index {
    version: u64,
    pub(super) record: Arc<JournalRecord>,
}

/// Changes that wait for the write before them.
#[derive(Debug, Default)]
pub(super) struct Asks {
    waiting: BTreeMap<PhysicalIndex, BTreeMap<ShardId, Change>>,
    under_way: std::collections::BTreeSet<PhysicalIndex>,
}

impl Asks {
    /// The latest wish for a shard counts.
    pub(super) fn ask(&mut self, key: JournalKey, change: Change) {
        self.waiting.entry(key.index).or_default().insert(key.shard, change);
    }

    /// What can be written now: no other write of these indexes is under way.
    fn ready(&mut self) -> Vec<(PhysicalIndex, BTreeMap<ShardId, Change>)> {
        let free: Vec<PhysicalIndex> =
            self.waiting.keys().filter(|index| !self.under_way.contains(*index)).cloned().collect();
        self.under_way.extend(free.iter().cloned());
        free.into_iter().filter_map(|index| self.waiting.remove_entry(&index)).collect()
    }

    /// The write of this index has ended.
    pub(super) fn done(&mut self, index: &PhysicalIndex) {
        self.under_way.remove(index);
    }

    /// Whether nothing of this index is on its way.
    pub(super) fn rests(&self) -> bool {
        self.waiting.is_empty() && self.under_way.is_empty()
    }
}

impl Driver {
    /// One shard's state, by the copy.
    pub(super) fn state(&self, key: &JournalKey) -> Option<&ShardState> {
        self.indexes.get(&key.index)?.record.shard(key.shard)
    }

    /// Takes in what has changed of the copies.
    pub(super) fn read_records(&mut self) {
        let copies = self.ledger.copies();
        let listed = self.membership.take(copies.get(&RecordKey::mesh()));
        for (key, copy) in copies.beginning_with(JournalRecord::PREFIX) {
            let Some(index) = JournalRecord::of_key(key) else { continue };
            if self.indexes.get(&index).is_some_and(|known| known.version >= copy.version) {
                continue;
            }
            match JournalRecord::from_json(&copy.value) {
                Ok(record) => self.record_changed(&index, Index { version: copy.version, record: Arc::new(record) }),
                Err(error) => {
                    tracing::error!(%index, %error, version = copy.version, "a record of shards can't be read; the one before stays in use");
                }
            }
        }
        if listed {
            let indexes: Vec<PhysicalIndex> = self.indexes.keys().cloned().collect();
            indexes.iter().for_each(|index| self.look_at(index));
        }
    }

    fn record_changed(&mut self, index: &PhysicalIndex, now: Index) {
        let record = Arc::clone(&now.record);
        let before = self.indexes.insert(index.clone(), now);
        for (shard, state) in (0..).map(ShardId).zip(&record.shards) {
            let known = before.as_ref().and_then(|b| b.record.shard(shard));
            let led = known.is_some_and(|known| known.is_led_by(&self.me, self.start));
            if led && !state.is_led_by(&self.me, self.start) {
                self.has_lent(&JournalKey { index: index.clone(), shard }, state.primary.as_ref());
            }
            if known.is_none_or(|known| known.set < state.set) {
                self.state_changed(&JournalKey { index: index.clone(), shard }, state);
            }
        }
        self.membership.forget_full(index, &record, &self.me.member);
        if record.shards.is_empty() {
            let keys: Vec<JournalKey> = self.slots.keys().filter(|key| key.index == *index).cloned().collect();
            keys.iter().for_each(|key| self.give_up(key));
        }
        self.look_at(index);
    }

    fn state_changed(&mut self, key: &JournalKey, state: &ShardState) {
        if self.slots.contains_key(key) {
            // One that is on its way from the store begins with the record.
            let state = state.clone();
            self.call(key, |replica, env| replica.handle_record(env, state));
        } else if state.is_led_by(&self.me, self.start) {
            self.touch(key);
        } else if let Some((epoch, _)) = self.rests.remove(key) {
            self.shared.tell(Event::Deposed(key.clone(), epoch));
        }
    }

    /// Begins to write what was asked for.
    pub(super) fn write_asks(&mut self) {
        for (index, changes) in self.asks.ready() {
            let (ledger, min) = (self.ledger.clone(), self.config.core.min_in_sync);
            self.done.spawn(async move {
                write(&ledger, &index, changes, min).await;
                Ok(Done::Asked(index))
            });
        }
    }
}

/// Applies each change that is right to the newest record, all in one write.
async fn write(ledger: &LedgerHandle, index: &PhysicalIndex, changes: BTreeMap<ShardId, Change>, min: Option<usize>) {
    let key = JournalRecord::key(index);
    let mut newest: Option<Versioned> = ledger.copies().get(&key).cloned();
    for _ in 0..TRIES {
        let Some(found) = newest else { return };
        let Ok(mut record) = JournalRecord::from_json(&found.value) else { return };
        let mut any = false;
        for (shard, change) in &changes {
            let Some(state) = record.shards.get_mut(usize::from(shard.0)) else { continue };
            match check(Some(state), change, election::min_in_sync(&change.after, min)) {
                Ok(()) => {
                    *state = change.after.clone();
                    any = true;
                }
                Err(error) => tracing::debug!(%index, %shard, %error, "a change of a shard's state was not made"),
            }
        }
        if !any {
            return;
        }
        let wanted = ChangeRequest {
            key: key.clone(),
            expected: found.version,
            value: Value::from(record.to_json()),
            quiet: false,
        };
        match ledger.change(wanted, PATIENCE).await {
            // If it was this write's own value, no change starts from it any more.
            Answer::Conflict { current, .. } => newest = current,
            Answer::Changed { .. } => return,
            answer => {
                tracing::debug!(%index, ?answer, "the states of shards were not written; who asked asks again");
                return;
            }
        }
    }
}

/// Writes the change that `choose` makes of a shard's state as a majority has it; if somebody else changes the record meanwhile,
/// it is asked again. Gives the states before and after; the same twice if it makes none.
pub(super) async fn change_one<E>(
    ledger: &LedgerHandle,
    key: &JournalKey,
    min: Option<usize>,
    mut choose: impl FnMut(&ShardState) -> Result<Option<Change>, E>,
) -> Result<(ShardState, ShardState), AskError<E>> {
    let name = JournalRecord::key(&key.index);
    let Answer::Read { current: mut newest } = ledger.read(name.clone(), PATIENCE).await else {
        return Err(AskError::NoQuorum);
    };
    for _ in 0..TRIES {
        let found = newest.ok_or(AskError::Gone)?;
        let mut record = JournalRecord::from_json(&found.value).map_err(|_| AskError::Gone)?;
        let state = record.shards.get_mut(usize::from(key.shard.0)).ok_or(AskError::Gone)?;
        let before = state.clone();
        let Some(change) = choose(&before).map_err(AskError::Refused)? else { return Ok((before.clone(), before)) };
        check(Some(&before), &change, election::min_in_sync(&change.after, min)).map_err(AskError::NotAllowed)?;
        let after = change.after;
        *state = after.clone();
        let value = Value::from(record.to_json());
        let wanted = ChangeRequest { key: name.clone(), expected: found.version, value, quiet: false };
        match ledger.change(wanted, PATIENCE).await {
            Answer::Changed { .. } => return Ok((before, after)),
            Answer::Conflict { current, maybe_own } => {
                let there = |found: &Versioned| {
                    JournalRecord::from_json(&found.value).is_ok_and(|record| record.shard(key.shard) == Some(&after))
                };
                if maybe_own && current.as_ref().is_some_and(there) {
                    return Ok((before, after));
                }
                newest = current;
            }
            Answer::Unknown => return Err(AskError::Unknown),
            _ => return Err(AskError::NoQuorum),
        }
    }
    Err(AskError::NoQuorum)
}

/// Writes that an index is gone: it has no shards any more, for ever.
pub(super) async fn retire(
    ledger: &LedgerHandle,
    index: &PhysicalIndex,
    patience: Duration,
) -> Result<(), RetireError> {
    let key = JournalRecord::key(index);
    let gone = JournalRecord::default().to_json();
    let mut newest = match ledger.copies().get(&key) {
        Some(copy) => Some(copy.clone()),
        // It may not have come here.
        None => match ledger.read(key.clone(), patience).await {
            Answer::Read { current } => current,
            _ => return Err(RetireError::NoQuorum),
        },
    };
    for _ in 0..TRIES {
        // Also where there is none: one may be on its way that nobody waits for any more.
        if newest.as_ref().is_some_and(|found| found.value.as_ref() == gone) {
            return Ok(());
        }
        let expected = newest.map_or(0, |found| found.version);
        let wanted = ChangeRequest { key: key.clone(), expected, value: Value::from(gone.as_str()), quiet: false };
        match ledger.change(wanted, patience).await {
            Answer::Changed { .. } => return Ok(()),
            Answer::Conflict { current, .. } => newest = current,
            Answer::Unknown => return Err(RetireError::Unknown),
            _ => return Err(RetireError::NoQuorum),
        }
    }
    Err(RetireError::NoQuorum)
}

/// Whether a majority says that an index is gone.
pub(super) async fn is_gone(ledger: &LedgerHandle, index: &PhysicalIndex) -> bool {
    match ledger.read(JournalRecord::key(index), PATIENCE).await {
        Answer::Read { current: Some(current), .. } => {
            JournalRecord::from_json(&current.value).is_ok_and(|record| record.shards.is_empty())
        }
        _ => false,
    }
}

/// Writes the first record of an index.
pub(super) async fn create(
    ledger: &LedgerHandle,
    index: &PhysicalIndex,
    copies: Vec<Vec<ReplicaId>>,
    by: &Holder,
    min: Option<usize>,
    patience: Duration,
) -> Result<(), CreateError> {
    if copies.is_empty() || copies.len() > usize::from(SHARDS_MAX) {
        return Err(CreateError::Shards(copies.len()));
    }
    let mut record = JournalRecord::default();
    for ids in copies {
        let replicas = ids.iter().map(|id| ShardCopy { id: id.clone(), state: ReplicaState::Replica }).collect();
        let after = ShardState { replicas, in_sync: ids, primary: None, epoch: Epoch::ZERO, set: 1 };
        let change = Change { from: (Epoch::ZERO, 0), why: Why::Create, by: by.clone(), after };
        check(None, &change, election::min_in_sync(&change.after, min))?;
        record.shards.push(change.after);
    }
    let text = record.to_json();
    if text.len() > RECORD_MAX_BYTES {
        return Err(CreateError::TooLarge(text.len()));
    }
    let wanted = ChangeRequest { key: JournalRecord::key(index), expected: 0, value: Value::from(text), quiet: false };
    match ledger.change(wanted, patience).await {
        Answer::Changed { .. } => Ok(()),
        Answer::Conflict { maybe_own: false, .. } => Err(CreateError::Exists),
        Answer::Conflict { maybe_own: true, .. } | Answer::Unknown => Err(CreateError::Unknown),
        _ => Err(CreateError::NoQuorum),
    }
}
