//! The records of names and indexes: read from this member's own copies, changed through the ledger.
//!
//! Rule: a change that is answered is in this member's copies, and in those of every live member that confirmed it in time.
//! Must not know: how agreement is reached, or what a record is good for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::cluster::Cluster;
use super::ledger::{ChangeRequest, Copies, Follower, LedgerHandle};
use super::members::Members;
use crate::net::Call;
use crate::proto::alias;
use crate::proto::ledger::{Answer, Refused};
use crate::types::limits::{RECORD_MAX_BYTES, SHARDS_MAX};
use crate::types::{
    IndexRecord, IndexUid, LeaseValue, MemberId, NamesRecord, PhysicalIndex, RecordKey, RecordVersion, TraceId, Value,
    Versioned as LedgerRecord,
};
use crate::wire::verbs::{RecordAt, Refusal, Request};

/// The key of the one record of names.
pub const NAMES: &str = "names";
const INDEX_PREFIX: &str = "index:";
/// How long a change, or the read after one of unknown end, may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long live members may take to confirm a change; who is later hears of it all the same.
const CONFIRM: Duration = Duration::from_secs(3);
/// How long one member may take to confirm before it is asked again, where nobody may be passed over.
pub(super) const CONFIRM_ONE: Duration = Duration::from_secs(1);
/// Between two rounds of asking those.
pub(super) const CONFIRM_PAUSE: Duration = Duration::from_millis(100);
/// How long a copy that is on its way is waited for before the voters are asked.
const ON_ITS_WAY: Duration = Duration::from_millis(100);

/// The key of an index record.
pub fn index_key(physical: &PhysicalIndex) -> String {
    format!("{INDEX_PREFIX}{physical}")
}

/// Whether it is a record of this service; leases and the mesh itself have records of their own.
fn is_own(key: &RecordKey) -> bool {
    key.as_str() == NAMES || key.as_str().starts_with(INDEX_PREFIX)
}

/// The ledger's key of one of this service's records.
pub(super) fn key_of(key: &str) -> RecordKey {
    RecordKey::new(key).expect("`names`, and an index's bounded name behind a prefix, are keys")
}

/// A record with the version it stands at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T> {
    /// 0 where there is no such record yet.
    pub version: RecordVersion,
    /// The record.
    pub value: T,
}

/// All records at one moment; cheap to hold.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    names: Versioned<NamesRecord>,
    indexes: BTreeMap<PhysicalIndex, Arc<Versioned<IndexRecord>>>,
    digest: u64,
}

impl Default for Versioned<NamesRecord> {
    fn default() -> Self {
        Self { version: 0, value: NamesRecord::default() }
    }
}

impl Snapshot {
    /// Takes in one copy. What this version can't read stays as it was before.
    fn put(&mut self, key: &RecordKey, record: &LedgerRecord) {
        match parse(key.as_str(), record) {
            Ok(Parsed::Names(names)) => self.names = names,
            Ok(Parsed::Index(record)) => {
                self.indexes.insert(record.value.physical.clone(), Arc::new(record));
            }
            Ok(Parsed::Foreign) => {}
            Err(reason) => tracing::error!(%key, version = record.version, reason, "a record can't be read"),
        }
    }

    /// The names.
    pub fn names(&self) -> &Versioned<NamesRecord> {
        &self.names
    }

    /// The index that a client's name stands for: its own, or the target's of an alias.
    pub fn find(&self, uid: &IndexUid) -> Option<Arc<Versioned<IndexRecord>>> {
        self.index(alias::resolve(&self.names.value, uid)?).filter(|r| !r.value.deleted)
    }

    /// The record of a physical index, deleted or not.
    pub fn index(&self, physical: &PhysicalIndex) -> Option<Arc<Versioned<IndexRecord>>> {
        self.indexes.get(physical).cloned()
    }

    /// Every index record, deleted ones included.
    pub fn indexes(&self) -> impl Iterator<Item = &Arc<Versioned<IndexRecord>>> {
        self.indexes.values()
    }

    /// Equal for members that have the same names and index records at the same versions.
    pub fn digest(&self) -> String {
        format!("{:016x}", self.digest)
    }
}

enum Parsed {
    Names(Versioned<NamesRecord>),
    Index(Versioned<IndexRecord>),
    // Another service's, or of a newer version of miroir.
    Foreign,
}

fn parse(key: &str, record: &LedgerRecord) -> Result<Parsed, String> {
    fn json<T: DeserializeOwned>(record: &LedgerRecord) -> Result<Versioned<T>, String> {
        let value = serde_json::from_str(&record.value).map_err(|e| e.to_string())?;
        Ok(Versioned { version: record.version, value })
    }
    if key == NAMES {
        return json(record).map(Parsed::Names);
    }
    let Some(physical) = key.strip_prefix(INDEX_PREFIX) else { return Ok(Parsed::Foreign) };
    let record: Versioned<IndexRecord> = json(record)?;
    let shards = record.value.shards.len();
    if record.value.physical.as_str() != physical || shards == 0 || shards > usize::from(SHARDS_MAX) {
        return Err(format!("it does not fit its key or has {shards} shards"));
    }
    Ok(Parsed::Index(record))
}

/// Why a record was not changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ChangeError {
    /// Somebody else changed it first; read again and decide anew.
    #[error("the record is at version {0} now")]
    Conflict(RecordVersion),
    /// The value is larger than a record may be, or has no JSON form.
    #[error("the record would have {0} bytes, the limit is {RECORD_MAX_BYTES}")]
    TooLarge(usize),
    /// Nothing was changed.
    #[error("{0}")]
    Unavailable(String),
    /// The change may have been made.
    #[error("whether the record was changed is not known")]
    Unknown,
}

/// The service; cheap to clone.
#[derive(Clone)]
pub struct Records {
    ledger: LedgerHandle,
    cluster: Cluster,
    members: Members,
    shared: Arc<Shared>,
}

/// The records as they stand; the ledger's driver keeps it up to date.
#[derive(Debug)]
struct Shared {
    snapshot: RwLock<Arc<Snapshot>>,
    changed: watch::Sender<u64>,
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records").finish_non_exhaustive()
    }
}

impl Follower for Shared {
    fn copied(&self, news: &[(RecordKey, LedgerRecord)], now: &Copies) {
        if !news.iter().any(|(key, _)| is_own(key)) {
            return;
        }
        let mut slot = self.snapshot.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = Snapshot::clone(&slot);
        news.iter().for_each(|(key, record)| next.put(key, record));
        next.digest = now.digest_of(is_own);
        *slot = Arc::new(next);
        drop(slot);
        self.changed.send_modify(|n| *n += 1);
    }
}

impl Records {
    /// Begins with the ledger's copies. [`Records::follower`] must hear of all later ones.
    pub fn new(ledger: LedgerHandle, cluster: Cluster, members: Members) -> Self {
        let copies = ledger.copies();
        let mut snapshot = Snapshot { digest: copies.digest_of(is_own), ..Snapshot::default() };
        copies.iter().for_each(|(key, record)| snapshot.put(key, record));
        let shared = Shared { snapshot: RwLock::new(Arc::new(snapshot)), changed: watch::Sender::new(0) };
        Self { ledger, cluster, members, shared: Arc::new(shared) }
    }

    /// What the ledger's driver is to tell of new copies.
    pub fn follower(&self) -> Arc<dyn Follower> {
        Arc::clone(&self.shared) as Arc<dyn Follower>
    }

    /// The ledger behind the records.
    pub fn ledger(&self) -> &LedgerHandle {
        &self.ledger
    }

    /// The records now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.shared.snapshot.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Wakes whenever a record changes.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Changes a record that stands at `expected` (0: there is none yet) and returns the new version.
    ///
    /// When it returns, every live member that answered has the new version. Dropping the future does not undo the change.
    ///
    /// # Errors
    /// [`ChangeError`]; only `Unknown` leaves open whether the change was made.
    pub async fn change<T: Serialize>(
        &self,
        key: &str,
        expected: RecordVersion,
        value: &T,
        trace: TraceId,
    ) -> Result<RecordVersion, ChangeError> {
        let version = self.write(key, expected, value).await?;
        self.confirmed_by_all(RecordAt { key: key_of(key), version }, trace).await;
        Ok(version)
    }

    /// As [`Self::change`], but nobody else is waited for.
    ///
    /// # Errors
    /// As [`Self::change`].
    pub async fn write<T: Serialize>(
        &self,
        key: &str,
        expected: RecordVersion,
        value: &T,
    ) -> Result<RecordVersion, ChangeError> {
        let text = serde_json::to_string(value).map_err(|e| ChangeError::Unavailable(e.to_string()))?;
        if text.len() > RECORD_MAX_BYTES {
            return Err(ChangeError::TooLarge(text.len()));
        }
        let (key, value): (RecordKey, Value) = (key_of(key), text.into());
        let change = ChangeRequest { key: key.clone(), expected, value: Arc::clone(&value), quiet: false };
        let changed = match self.ledger.change(change, PATIENCE).await {
            Answer::Changed { version } => Ok(version),
            Answer::Conflict { current, maybe_own: false } => Err(conflict(current.as_ref())),
            Answer::Conflict { current, maybe_own: true } => verdict(expected, &value, current.as_ref()),
            // Read before anything else is done: it may have been this change's own success.
            Answer::Unknown => match self.ledger.read(key.clone(), PATIENCE).await {
                Answer::Read { current } => verdict(expected, &value, current.as_ref()),
                _ => Err(ChangeError::Unknown),
            },
            Answer::NoQuorum | Answer::Read { .. } => {
                Err(ChangeError::Unavailable("no majority of the voters can be reached".into()))
            }
            Answer::Refused { why: Refused::TooLarge } => Err(ChangeError::TooLarge(value.len())),
            Answer::Refused { why } => Err(ChangeError::Unavailable(why.to_string())),
        };
        // Whoever decides anew looks at the copy.
        if let Err(ChangeError::Conflict(version)) = changed
            && let Err(error) = self.confirm(&RecordAt { key, version }).await
        {
            tracing::debug!(%error, "the record that was there first is not known here yet");
        }
        changed
    }

    /// Brings the copy of a record up to what a majority knows now.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`ChangeError::Unavailable`] if no majority answers.
    pub async fn refresh(&self, key: &RecordKey) -> Result<(), ChangeError> {
        // What is read becomes the copy before the answer comes.
        match self.ledger.read(key.clone(), PATIENCE).await {
            Answer::Read { .. } => Ok(()),
            _ => Err(ChangeError::Unavailable("no majority of the voters can be reached".into())),
        }
    }

    /// The members that have to know of a change before it is over: all but those that were removed.
    pub fn present(&self) -> Vec<MemberId> {
        let status = self.ledger.status();
        let status = status.borrow();
        status.record.iter().flat_map(|r| r.present().map(|m| m.id.clone())).collect()
    }

    /// Waits until every member knows the record, at most until whoever does not must be stale: `ttl_ms` is the longest TTL that
    /// one goes by. Returns who has not confirmed.
    pub async fn confirmed_or_stale(&self, record: &RecordAt, ttl_ms: u64, trace: TraceId) -> BTreeSet<MemberId> {
        let over = Instant::now() + Duration::from_micros(ttl_ms.saturating_mul(LeaseValue::PATIENCE_PER_MS));
        // Read after the change: who is listed later than that compares its copies only once it is, and finds the change.
        let mut listed = self.refresh(&RecordKey::mesh()).await.is_ok();
        let mut missing: BTreeSet<MemberId> = self.present().into_iter().collect();
        while !(listed && missing.is_empty()) && Instant::now() < over {
            if !listed {
                listed = self.refresh(&RecordKey::mesh()).await.is_ok();
                missing.extend(self.present());
            }
            let asks = missing.iter().map(|member| {
                let deadline = (Instant::now() + CONFIRM_ONE).min(over);
                let call = Call { request: Request::Confirm(record.clone()), body: Bytes::new(), deadline, trace };
                async move { self.members.call(member, call).await.is_ok().then(|| member.clone()) }
            });
            let confirmed = futures_util::future::join_all(asks).await;
            missing.retain(|member| !confirmed.iter().flatten().any(|known| known == member));
            if !missing.is_empty() {
                tokio::time::sleep(CONFIRM_PAUSE.min(over.saturating_duration_since(Instant::now()))).await;
            }
        }
        missing
    }

    /// Waits until all live members know the record; who does not confirm in time hears of it later.
    async fn confirmed_by_all(&self, record: RecordAt, trace: TraceId) {
        let live = self.cluster.live();
        let asks = live.iter().map(|member| {
            let call = Call {
                request: Request::Confirm(record.clone()),
                body: Bytes::new(),
                deadline: Instant::now() + CONFIRM,
                trace,
            };
            let key = &record.key;
            async move {
                if let Err(error) = self.members.call(member, call).await {
                    tracing::warn!(%member, %key, %error, "it has not confirmed a record; it hears of it later");
                }
            }
        });
        futures_util::future::join_all(asks).await;
    }

    /// Waits until the copy of a record is at that version or a newer one; if it does not come, asks the voters.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`Refusal::StaleRecord`] if that can't be had.
    pub async fn confirm(&self, wanted: &RecordAt) -> Result<(), Refusal> {
        let mut changes = self.ledger.watch();
        let known = || self.ledger.copies().get(&wanted.key).map_or(0, |copy| copy.version);
        let arrives = async {
            loop {
                changes.borrow_and_update();
                if known() >= wanted.version {
                    return;
                }
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        if tokio::time::timeout(ON_ITS_WAY, arrives).await.is_ok() {
            return Ok(());
        }
        // What is read becomes the copy before the answer comes.
        self.ledger.read(wanted.key.clone(), CONFIRM).await;
        match known() {
            known if known >= wanted.version => Ok(()),
            known => Err(Refusal::StaleRecord { needed: wanted.version, known }),
        }
    }

    /// Makes sure that the index is known here at `version` or newer.
    ///
    /// # Errors
    /// [`Refusal::StaleRecord`] if that can't be had.
    pub async fn at_least(
        &self,
        physical: &PhysicalIndex,
        version: RecordVersion,
    ) -> Result<Arc<Versioned<IndexRecord>>, Refusal> {
        let known = || self.snapshot().index(physical).filter(|r| r.version >= version);
        if let Some(record) = known() {
            return Ok(record);
        }
        self.confirm(&RecordAt { key: key_of(&index_key(physical)), version }).await?;
        known().ok_or_else(|| Refusal::StaleRecord {
            needed: version,
            known: self.snapshot().index(physical).map_or(0, |r| r.version),
        })
    }
}

fn conflict(current: Option<&LedgerRecord>) -> ChangeError {
    ChangeError::Conflict(current.map_or(0, |record| record.version))
}

/// Whether a change of unknown end was made, by what is chosen now.
fn verdict(expected: u64, value: &Value, current: Option<&LedgerRecord>) -> Result<RecordVersion, ChangeError> {
    match current {
        // A version has one value: it is this change's, or it never will be.
        Some(now) if now.version == expected + 1 && now.value == *value => Ok(now.version),
        Some(now) if now.version == expected + 1 => Err(ChangeError::Conflict(now.version)),
        // It may still come; or it was there, and is gone again.
        _ => Err(ChangeError::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(version: u64, value: &str) -> LedgerRecord {
        LedgerRecord { version, announced: version, value: value.into() }
    }

    #[test]
    fn what_became_of_a_change_is_told_only_where_it_is_certain() {
        let ours: Value = "{\"a\":1}".into();
        let verdict = |current: Option<LedgerRecord>| verdict(4, &ours, current.as_ref());
        assert!(matches!(verdict(Some(at(5, "{\"a\":1}"))), Ok(5)));
        assert!(matches!(verdict(Some(at(5, "{\"b\":1}"))), Err(ChangeError::Conflict(5))));
        for unclear in [None, Some(at(4, "{}")), Some(at(6, "{\"a\":1}"))] {
            assert!(matches!(verdict(unclear), Err(ChangeError::Unknown)));
        }
    }

    #[test]
    fn what_is_no_record_leaves_the_one_before() {
        let mut snapshot = Snapshot::default();
        let names = RecordKey::new(NAMES).unwrap();
        snapshot.put(&names, &at(1, r#"{"indexes":{"a":"a__m00000001"}}"#));
        let before = snapshot.names().clone();
        for (key, value) in [("names", "[]"), ("index:a__m00000001", "{}"), ("aliases", "{\"future\":1}")] {
            snapshot.put(&key_of(key), &at(2, value));
        }
        assert_eq!(snapshot.names(), &before);
        assert_eq!(snapshot.indexes().count(), 0);
    }
}
