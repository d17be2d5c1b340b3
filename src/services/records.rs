//! The replicated records: every member has all of them, stored before they are used.
//!
//! One member makes changes, the first of the mesh's list that lives; it pushes them to all that live, and whoever differs
//! from a peer's digest fetches what it lacks. A copy never goes back to an older version. Must not know: what a record
//! is good for.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, watch};

use super::cluster::Cluster;
use super::members::Members;
use crate::net::{Call, CallError};
use crate::store::{Store, StoreError};
use crate::types::TraceId;
use crate::types::limits::{CALL_HEADER_MAX_BYTES, RECORD_MAX_BYTES};
use crate::types::{IndexRecord, IndexUid, MemberId, NamesRecord, PhysicalIndex, RecordVersion};
use crate::wire::verbs::{RecordCopy, Refusal, Reply, Request};

/// The key of the one record of names.
pub const NAMES: &str = "names";
const INDEX_PREFIX: &str = "index:";
/// How long a push or a fetch may take.
const EXCHANGE: Duration = Duration::from_secs(3);
/// Every so many looks at a peer that goes on differing, its equal versions are compared as well.
const DEEP: u32 = 4;
/// Records of one fetch; the answer is bounded by this many record sizes.
const FETCH: usize = 32;

/// The key of an index record.
pub fn index_key(physical: &PhysicalIndex) -> String {
    format!("{INDEX_PREFIX}{physical}")
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
    copies: BTreeMap<String, Arc<RecordCopy>>,
    names: Versioned<NamesRecord>,
    indexes: BTreeMap<PhysicalIndex, Arc<Versioned<IndexRecord>>>,
    // The hashes of all copies, XORed, so that a change costs the hash of one record.
    sum: u64,
}

impl Default for Versioned<NamesRecord> {
    fn default() -> Self {
        Self { version: 0, value: NamesRecord::default() }
    }
}

impl Snapshot {
    /// These records with some replaced; only those are read.
    fn with(&self, news: Vec<RecordCopy>) -> Result<Self, StoreError> {
        let mut next = self.clone();
        for copy in news {
            match parse(&copy)? {
                Parsed::Names(names) => next.names = names,
                Parsed::Index(record) => {
                    next.indexes.insert(record.value.physical.clone(), Arc::new(record));
                }
                Parsed::Foreign => {}
            }
            next.sum ^= hash(&copy);
            if let Some(old) = next.copies.insert(copy.key.clone(), Arc::new(copy)) {
                next.sum ^= hash(&old);
            }
        }
        Ok(next)
    }

    /// The names.
    pub fn names(&self) -> &Versioned<NamesRecord> {
        &self.names
    }

    /// The index that a client's name stands for.
    pub fn find(&self, uid: &IndexUid) -> Option<Arc<Versioned<IndexRecord>>> {
        self.index(self.names.value.indexes.get(uid)?).filter(|r| !r.value.deleted)
    }

    /// The record of a physical index, deleted or not.
    pub fn index(&self, physical: &PhysicalIndex) -> Option<Arc<Versioned<IndexRecord>>> {
        self.indexes.get(physical).cloned()
    }

    /// Every index record, deleted ones included.
    pub fn indexes(&self) -> impl Iterator<Item = &Arc<Versioned<IndexRecord>>> {
        self.indexes.values()
    }

    /// Equal for members that have the same records at the same versions.
    pub fn digest(&self) -> String {
        format!("{:016x}", self.sum)
    }
}

enum Parsed {
    Names(Versioned<NamesRecord>),
    Index(Versioned<IndexRecord>),
    // Of a newer version of miroir: kept and passed on, not used.
    Foreign,
}

fn parse(copy: &RecordCopy) -> Result<Parsed, StoreError> {
    fn json<T: DeserializeOwned>(copy: &RecordCopy) -> Result<Versioned<T>, StoreError> {
        let value = serde_json::from_str(&copy.value).map_err(|e| StoreError::Malformed {
            what: "record",
            reason: format!("{} at version {}: {e}", copy.key, copy.version),
        })?;
        Ok(Versioned { version: copy.version, value })
    }
    if copy.key == NAMES {
        return Ok(Parsed::Names(json(copy)?));
    }
    let Some(physical) = copy.key.strip_prefix(INDEX_PREFIX) else { return Ok(Parsed::Foreign) };
    let record: Versioned<IndexRecord> = json(copy)?;
    let shards = record.value.shards.len();
    if record.value.physical.as_str() != physical
        || shards == 0
        || shards > usize::from(crate::types::limits::SHARDS_MAX)
    {
        let reason = format!("{} does not fit its key or has {shards} shards", copy.key);
        return Err(StoreError::Malformed { what: "record", reason });
    }
    Ok(Parsed::Index(record))
}

fn hash(copy: &RecordCopy) -> u64 {
    let mut hash = Sha256::new();
    for part in [copy.key.as_bytes(), &copy.version.to_le_bytes(), copy.value.as_bytes()] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// Why a record was not changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ChangeError {
    /// Somebody else changed it first; read again and decide anew.
    #[error("the record is at version {0} now")]
    Conflict(RecordVersion),
    /// The value is larger than a record may be.
    #[error("the record would have {0} bytes, the limit is {RECORD_MAX_BYTES}")]
    TooLarge(usize),
    /// Nothing was changed: nobody who may change records can be reached.
    #[error("no member that makes records can be reached: {0}")]
    Unavailable(String),
    /// The change may have been made.
    #[error("whether the record was changed is not known: {0}")]
    Unknown(String),
    /// The own store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The service; cheap to clone.
#[derive(Clone)]
pub struct Records {
    store: Store,
    cluster: Cluster,
    members: Members,
    snapshot: Arc<RwLock<Arc<Snapshot>>>,
    // Held from the check of the expected version to the publication of the new one.
    changing: Arc<Mutex<()>>,
    changed: watch::Sender<u64>,
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records").finish_non_exhaustive()
    }
}

impl Records {
    /// Loads the store's copies.
    ///
    /// # Errors
    /// [`StoreError::Malformed`] if a stored copy is not a record.
    pub async fn load(store: Store, cluster: Cluster, members: Members) -> Result<Self, StoreError> {
        let snapshot = Snapshot::default().with(store.records().await?)?;
        Ok(Self {
            store,
            cluster,
            members,
            snapshot: Arc::new(RwLock::new(Arc::new(snapshot))),
            changing: Arc::default(),
            changed: watch::Sender::new(0),
        })
    }

    /// The records now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Wakes whenever a record changes.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Takes copies from a peer: those that are newer are stored and then used.
    ///
    /// # Errors
    /// [`StoreError::Malformed`] for what is no record: nothing of the message is taken then.
    pub async fn learn(&self, copies: Vec<RecordCopy>) -> Result<(), StoreError> {
        for copy in &copies {
            if copy.value.len() > RECORD_MAX_BYTES || copy.version == 0 {
                let reason = format!("{} has {} bytes at version {}", copy.key, copy.value.len(), copy.version);
                return Err(StoreError::Malformed { what: "record", reason });
            }
            parse(copy)?;
        }
        // In a task of its own: what is stored must also be published, even if whoever asked has gone.
        let records = self.clone();
        let learned = tokio::spawn(async move {
            let standing = records.store.put_records(copies).await?;
            records.publish(standing)
        });
        learned.await.map_err(|e| StoreError::Malformed { what: "record", reason: e.to_string() })?
    }

    fn publish(&self, standing: Vec<RecordCopy>) -> Result<(), StoreError> {
        let mut slot = self.snapshot.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Two pushes can be published in another order than they were stored in.
        let newer = |copy: &RecordCopy| {
            slot.copies.get(&copy.key).is_none_or(|old| (old.version, &old.value) < (copy.version, &copy.value))
        };
        let news: Vec<RecordCopy> = standing.into_iter().filter(newer).collect();
        if news.is_empty() {
            return Ok(());
        }
        *slot = Arc::new(slot.with(news)?);
        drop(slot);
        self.changed.send_modify(|n| *n += 1);
        Ok(())
    }

    /// Changes a record that stands at `expected` (0: there is none yet) and returns the new version.
    ///
    /// When it returns, every live member that answered has the new version.
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
        let value = serde_json::to_string(value)
            .map_err(|e| StoreError::Malformed { what: "record", reason: e.to_string() })?;
        if value.len() > RECORD_MAX_BYTES {
            return Err(ChangeError::TooLarge(value.len()));
        }
        let copy = RecordCopy { key: key.to_owned(), version: expected, value };
        let Some(maker) = self.cluster.maker() else {
            return Err(ChangeError::Unavailable("no member of the mesh is known to live".into()));
        };
        if maker == *self.cluster.own() {
            return self.make(copy, trace).await;
        }
        let call = Call {
            request: Request::RecordChange(copy.clone()),
            body: Bytes::new(),
            deadline: Instant::now() + 3 * EXCHANGE,
            trace,
        };
        match self.members.call(&maker, call).await {
            Ok(answer) => match answer.reply {
                Reply::Changed(version) => {
                    self.learn(vec![RecordCopy { version, ..copy }]).await?;
                    Ok(version)
                }
                Reply::Conflict(version) => {
                    self.fetch(&maker, vec![copy.key], trace).await.map_err(ChangeError::Unavailable)?;
                    Err(ChangeError::Conflict(version))
                }
                other => Err(ChangeError::Unknown(format!("{maker} answered {other:?}"))),
            },
            Err(e @ (CallError::NotSent { .. } | CallError::Refused { .. })) => {
                Err(ChangeError::Unavailable(e.to_string()))
            }
            Err(e @ CallError::NoAnswer { .. }) => Err(ChangeError::Unknown(e.to_string())),
        }
    }

    /// Answers a peer's request to change a record.
    pub async fn serve_change(&self, copy: RecordCopy, trace: TraceId) -> Reply {
        if self.cluster.maker().as_ref() != Some(self.cluster.own()) {
            return Reply::Refused(Refusal::NotMaker);
        }
        match self.make(copy, trace).await {
            Ok(version) => Reply::Changed(version),
            Err(ChangeError::Conflict(version)) => Reply::Conflict(version),
            Err(e) => Reply::Refused(Refusal::Other(e.to_string())),
        }
    }

    async fn make(&self, copy: RecordCopy, trace: TraceId) -> Result<RecordVersion, ChangeError> {
        let _one_at_a_time = self.changing.lock().await;
        let now = self.snapshot().copies.get(&copy.key).map_or(0, |c| c.version);
        if now != copy.version {
            return Err(ChangeError::Conflict(now));
        }
        let copy = RecordCopy { version: now + 1, ..copy };
        self.learn(vec![copy.clone()]).await?;
        let version = copy.version;
        // A copy of this version may have come from elsewhere meanwhile.
        if self.snapshot().copies.get(&copy.key).map(Arc::as_ref) != Some(&copy) {
            return Err(ChangeError::Conflict(version));
        }
        self.push(copy, trace).await;
        Ok(version)
    }

    /// Gives a record to all live members at once; who does not take it fetches it when it sees the digest differ.
    async fn push(&self, copy: RecordCopy, trace: TraceId) {
        let live = self.cluster.live();
        let pushes = live.iter().filter(|m| *m != self.cluster.own()).map(|member| {
            let call = Call {
                request: Request::RecordPush(vec![copy.clone()]),
                body: Bytes::new(),
                deadline: Instant::now() + EXCHANGE,
                trace,
            };
            let key = &copy.key;
            async move {
                if let Err(error) = self.members.call(member, call).await {
                    tracing::warn!(%member, key, %error, "a record could not be pushed; the member fetches it later");
                }
            }
        });
        futures_util::future::join_all(pushes).await;
    }

    /// Keys and versions of all copies.
    pub fn versions(&self) -> Vec<(String, RecordVersion)> {
        self.snapshot().copies.values().map(|c| (c.key.clone(), c.version)).collect()
    }

    /// The copies of these keys, at most as many as one answer may carry.
    pub fn copies(&self, keys: &[String]) -> Vec<RecordCopy> {
        let snapshot = self.snapshot();
        // Leaves the header room for keys and framing; the largest record alone fits.
        let mut room = CALL_HEADER_MAX_BYTES - CALL_HEADER_MAX_BYTES / 4;
        let fits = |c: &&Arc<RecordCopy>| {
            let size = c.value.len() + c.key.len();
            let fits = size <= room;
            room = room.saturating_sub(size);
            fits
        };
        let found = keys.iter().take(FETCH).filter_map(|k| snapshot.copies.get(k)).take_while(fits);
        found.map(|c| RecordCopy::clone(c)).collect()
    }

    /// Fetches some records from a peer.
    ///
    /// # Errors
    /// A text for people.
    pub async fn fetch(&self, from: &MemberId, keys: Vec<String>, trace: TraceId) -> Result<(), String> {
        let ask = |request| Call { request, body: Bytes::new(), deadline: Instant::now() + EXCHANGE, trace };
        let mut rest = keys;
        while !rest.is_empty() {
            let batch: Vec<_> = rest.iter().take(FETCH).cloned().collect();
            let answer = self.members.call(from, ask(Request::RecordFetch(batch))).await;
            match answer.map_err(|e| e.to_string())?.reply {
                // An empty answer: the peer has none of them any more, or one alone is too large for it to send.
                Reply::Records(copies) if copies.is_empty() => return Err(format!("{from} does not send {rest:?}")),
                Reply::Records(copies) => {
                    rest.retain(|k| copies.iter().all(|c| c.key != *k));
                    self.learn(copies).await.map_err(|e| e.to_string())?;
                }
                other => return Err(format!("{from} answered {other:?}")),
            }
        }
        Ok(())
    }

    /// Makes sure that the index is known here at `version` or newer, if need be by asking `from`.
    ///
    /// # Errors
    /// [`Refusal::StaleRecord`] if that can't be had.
    pub async fn at_least(
        &self,
        physical: &PhysicalIndex,
        version: RecordVersion,
        from: &MemberId,
        trace: TraceId,
    ) -> Result<Arc<Versioned<IndexRecord>>, Refusal> {
        let known = || self.snapshot().index(physical).filter(|r| r.version >= version);
        if let Some(record) = known() {
            return Ok(record);
        }
        if let Err(error) = self.fetch(from, vec![index_key(physical)], trace).await {
            tracing::warn!(%from, %physical, error, "an index record could not be fetched");
        }
        known().ok_or_else(|| Refusal::StaleRecord {
            needed: version,
            known: self.snapshot().index(physical).map_or(0, |r| r.version),
        })
    }

    /// Fetches from one peer every record that it has newer; `deep`: also those of one version, of which the values may differ.
    ///
    /// # Errors
    /// A text for people.
    pub async fn sync_with(&self, peer: &MemberId, deep: bool) -> Result<(), String> {
        let trace = TraceId::default();
        let call =
            Call { request: Request::RecordVersions, body: Bytes::new(), deadline: Instant::now() + EXCHANGE, trace };
        let answer = self.members.call(peer, call).await.map_err(|e| e.to_string())?;
        let Reply::RecordVersions(theirs) = answer.reply else {
            return Err(format!("{peer} answered {:?}", answer.reply));
        };
        let snapshot = self.snapshot();
        // Of two values of one version the store decides which one stays.
        let wanted = |(key, version): &(String, RecordVersion)| {
            snapshot.copies.get(key).is_none_or(|c| c.version < *version || deep && c.version == *version)
        };
        self.fetch(peer, theirs.into_iter().filter(wanted).map(|(k, _)| k).collect(), trace).await
    }

    /// Fetches from whoever shows another digest, as long as the process lives.
    pub async fn keep_equal(self) {
        let mut cluster = self.cluster.watch();
        let mut again = tokio::time::interval(Duration::from_secs(2));
        again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut differing: BTreeMap<MemberId, u32> = BTreeMap::new();
        loop {
            tokio::select! {
                _ = again.tick() => {}
                changed = cluster.changed() => if changed.is_err() { return },
            }
            let own = self.snapshot().digest();
            let seen = self.cluster.seen();
            for member in self.cluster.topology().others() {
                let differs = |s: &super::cluster::Seen| s.alive() && s.records.as_deref().is_some_and(|d| d != own);
                if !seen.get(member).is_some_and(differs) {
                    differing.remove(member);
                    continue;
                }
                // A peer's digest is as old as its last gossip; only one that goes on differing has other values.
                let times = differing.entry(member.clone()).or_default();
                *times += 1;
                let deep = times.is_multiple_of(DEEP);
                if let Err(error) = self.sync_with(member, deep).await {
                    tracing::debug!(%member, error, "records could not be compared");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::cluster::{Listed, MemberState, Seen, Topology};
    use super::super::members::NoPeers;
    use super::*;
    use crate::types::{GroupId, MeshId};

    async fn alone(dir: &std::path::Path) -> Records {
        let own = MemberId::new("m1").unwrap();
        let listed = Listed { id: own.clone(), group: GroupId::new("g1").unwrap(), address: "127.0.0.1:1".into() };
        let members = vec![listed];
        let cluster = Cluster::new(Topology { own: own.clone(), mesh: MeshId([0; 16]), members, rf: 1, shards: 4 });
        let seen = Seen { suspect: false, state: Some(MemberState::Active), ..Seen::unknown() };
        cluster.update(|s| drop(s.insert(own.clone(), seen)));
        let store = Store::open(dir).unwrap();
        Records::load(store, cluster, Members::new(own, Arc::new(NoPeers), Arc::default())).await.unwrap()
    }

    #[tokio::test]
    async fn a_change_needs_the_expected_version() {
        let dir = tempfile::tempdir().unwrap();
        let records = alone(dir.path()).await;
        let trace = TraceId::default();
        let names = NamesRecord::default();
        assert_eq!(records.change(NAMES, 0, &names, trace).await.unwrap(), 1);
        assert!(matches!(records.change(NAMES, 0, &names, trace).await, Err(ChangeError::Conflict(1))));
        assert_eq!(records.change(NAMES, 1, &names, trace).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn what_is_no_record_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let records = alone(dir.path()).await;
        let before = records.snapshot().digest();
        for (key, value) in
            [("names", "[]"), ("index:a__m00000001", "{}"), ("names", &"x".repeat(RECORD_MAX_BYTES + 1))]
        {
            let copy = RecordCopy { key: key.into(), version: 1, value: value.into() };
            assert!(records.learn(vec![copy]).await.is_err(), "{key}");
        }
        assert_eq!(records.snapshot().digest(), before);
    }

    #[tokio::test]
    async fn records_of_a_newer_miroir_are_kept_and_passed_on() {
        let dir = tempfile::tempdir().unwrap();
        let records = alone(dir.path()).await;
        let copy = RecordCopy { key: "aliases".into(), version: 3, value: "{\"future\":1}".into() };
        records.learn(vec![copy.clone()]).await.unwrap();
        assert_eq!(records.copies(&["aliases".into()]), [copy]);
    }
}
