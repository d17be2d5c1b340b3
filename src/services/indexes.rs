//! Creates, finds and deletes indexes: first the record of the physical index, then the one record of names.
//!
//! Who loses a race for a name takes the winner's record. Must not know: documents, HTTP.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use super::cluster::Cluster;
use super::failure::Failure;
use super::journal::{CreateError, JournalHandle, RetireError};
use super::leases::LeaseHandle;
use super::records::{ChangeError, NAMES, Records, Versioned, index_key, key_of};
use super::tasks::Tasks;
use super::writes::{Order, Writes};
use crate::proto::alias::{self, AliasError};
use crate::proto::document::DocumentError;
use crate::proto::placement;
use crate::proto::tasks::Subject;
use crate::proto::tasks::view::Summary;
use crate::rt::clock;
use crate::types::TraceId;
use crate::types::{ErrorCode, IndexRecord, IndexUid, MemberId, NamesRecord, PhysicalIndex, RecordVersion, ReplicaId};
use crate::wire::verbs::WriteKind;

/// Attempts against rivals; each lost one means that another change was made.
const ATTEMPTS: usize = 16;
/// How often deletions that somebody has begun are looked for.
const LOOK: Duration = Duration::from_secs(10);
/// How long an order to create or delete may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// An index record at a version.
pub type Index = Arc<Versioned<IndexRecord>>;

/// The service; cheap to clone.
#[derive(Debug, Clone)]
pub struct Indexes {
    cluster: Cluster,
    records: Records,
    journal: JournalHandle,
    tasks: Tasks,
    writes: Writes,
}

impl Indexes {
    /// The service over its parts.
    pub fn new(cluster: Cluster, records: Records, journal: JournalHandle, tasks: Tasks, writes: Writes) -> Self {
        Self { cluster, records, journal, tasks, writes }
    }

    /// The records that this service works on.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// The index of that name.
    ///
    /// # Errors
    /// `index_not_found`.
    pub fn find(&self, uid: &IndexUid) -> Result<Index, Failure> {
        self.records.snapshot().find(uid).ok_or_else(|| Failure::index_not_found(uid))
    }

    /// The index that a write to that name goes to; `None` if there is none.
    ///
    /// # Errors
    /// `miroir_no_quorum` for an alias, where this member can't tell which index it means.
    pub fn find_for_write(&self, uid: &IndexUid) -> Result<Option<Index>, Failure> {
        // Asked first: records that are taken later are at least as new.
        let fresh = self.records.ledger().fresh();
        let snapshot = self.records.snapshot();
        if !fresh && snapshot.names().value.aliases.contains_key(uid) {
            let message = format!(
                "`{uid}` is an alias, and this member can't tell which index it means at present, because no majority of the voters \
                 answers. Nothing was done; send the request again, or to another member."
            );
            return Err(Failure::new(ErrorCode::MiroirNoQuorum, message));
        }
        Ok(snapshot.find(uid))
    }

    /// The index of that name, and whether this call has made it; all live members know its record.
    ///
    /// # Errors
    /// `miroir_no_quorum`, `miroir_index_limit`.
    pub async fn find_or_create(
        &self,
        uid: &IndexUid,
        primary_key: Option<&str>,
        trace: TraceId,
    ) -> Result<(Index, bool), Failure> {
        let mut made: Option<PhysicalIndex> = None;
        for _ in 0..ATTEMPTS {
            if let Some(index) = self.find_for_write(uid)? {
                let ours = made.as_ref() == Some(&index.value.physical);
                if let Some(lost) = made.filter(|_| !ours) {
                    self.give_up(&lost, trace).await;
                }
                return Ok((index, ours));
            }
            let snapshot = self.records.snapshot();
            let mut names = snapshot.names().value.clone();
            if let Err(error) = alias::check_new_index(&names, uid) {
                if let Some(ours) = &made {
                    self.give_up(ours, trace).await;
                }
                return Err(names_refused(&error));
            }
            let physical = match &made {
                Some(physical) => physical.clone(),
                None => {
                    let record = self.new_record(uid, primary_key);
                    let copies = self.copies(&record)?;
                    self.change(&index_key(&record.physical), 0, &record, trace).await?;
                    if let Err(error) = self.make_journals(&record.physical, copies).await {
                        self.give_up(&record.physical, trace).await;
                        return Err(error);
                    }
                    made.insert(record.physical).clone()
                }
            };
            names.indexes.insert(uid.clone(), physical.clone());
            match self.records.change(NAMES, snapshot.names().version, &names, trace).await {
                Ok(_) => {
                    let index = self.find(uid)?;
                    let ours = index.value.physical == physical;
                    return Ok((index, ours));
                }
                Err(ChangeError::Conflict(_)) => {}
                // The name may stand, and somebody may have written to it: nothing is taken back.
                Err(e @ ChangeError::Unknown) => return Err(change_failed(&e)),
                Err(e) => {
                    self.give_up(&physical, trace).await;
                    return Err(change_failed(&e));
                }
            }
        }
        if let Some(ours) = &made {
            self.give_up(ours, trace).await;
        }
        Err(rivals("names"))
    }

    /// An index that got no name goes again.
    async fn give_up(&self, physical: &PhysicalIndex, trace: TraceId) {
        if let Err(error) = self.mark_deleted(physical, trace).await {
            tracing::warn!(%physical, ?error, "an index without a name could not be marked as deleted");
        }
    }

    fn new_record(&self, uid: &IndexUid, primary_key: Option<&str>) -> IndexRecord {
        let topology = self.cluster.topology();
        let now = clock::now_rfc3339();
        // 32 random bits; a name that is taken all the same shows as a record that is there already.
        let nonce = Uuid::new_v4().as_u128() as u32;
        IndexRecord {
            uid: uid.clone(),
            physical: PhysicalIndex::of(uid, nonce),
            primary_key: primary_key.map(str::to_owned),
            settings_version: 0,
            client_settings: Default::default(),
            missed_settings: Default::default(),
            caught_up: Default::default(),
            shards: placement::place(topology.shards, &topology.groups(), topology.rf),
            created_at: now.clone(),
            updated_at: now,
            deleted: false,
        }
    }

    /// Who holds the journals of a new index, each in the store that the mesh's record lists.
    fn copies(&self, record: &IndexRecord) -> Result<Vec<Vec<ReplicaId>>, Failure> {
        let stores = self.records.ledger().status().borrow().record.clone();
        let replica = |member: &MemberId| {
            let listed = stores.as_ref()?.member(member)?;
            Some(ReplicaId { member: member.clone(), store: listed.store })
        };
        let copies: Option<Vec<Vec<ReplicaId>>> =
            record.shards.iter().map(|shard| shard.replicas.iter().map(|r| replica(&r.member)).collect()).collect();
        copies.ok_or_else(|| {
            let message = "The mesh's record does not list every member yet. Nothing was done; send the request again.";
            Failure::new(ErrorCode::MiroirNoQuorum, message)
        })
    }

    /// Writes who holds the journals of a new index, before anybody can find it.
    async fn make_journals(&self, physical: &PhysicalIndex, copies: Vec<Vec<ReplicaId>>) -> Result<(), Failure> {
        let until = Instant::now() + PATIENCE;
        let mut perhaps = false;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.journal.create(physical, copies.clone(), left).await {
                // Its name is this request's own: whoever wrote it, it was this request.
                Ok(()) | Err(CreateError::Exists) => return Ok(()),
                Err(CreateError::Unknown) if Instant::now() < until => perhaps = true,
                Err(CreateError::NoQuorum) if !perhaps => {
                    return Err(change_failed(&ChangeError::Unavailable("no majority".into())));
                }
                Err(CreateError::Unknown | CreateError::NoQuorum) => return Err(change_failed(&ChangeError::Unknown)),
                Err(error @ (CreateError::Shards(_) | CreateError::Refused(_) | CreateError::TooLarge(_))) => {
                    return Err(Failure::internal(format!("the journals of a new index can't be made: {error}")));
                }
            }
        }
    }

    async fn change(&self, key: &str, version: u64, record: &IndexRecord, trace: TraceId) -> Result<u64, Failure> {
        self.records.change(key, version, record, trace).await.map_err(|e| change_failed(&e))
    }

    async fn mark_deleted(&self, physical: &PhysicalIndex, trace: TraceId) -> Result<(), Failure> {
        self.update(physical, trace, |record| {
            record.deleted = true;
            // What stays of a deleted index is small: one shard tells how many copies there were.
            record.shards.truncate(1);
            record.client_settings.clear();
            record.missed_settings.clear();
            record.caught_up.clear();
            Ok(())
        })
        .await?;
        let retired = self.journal.retire(physical, PATIENCE).await;
        retired.map_err(|error| match error {
            RetireError::Unknown => change_failed(&ChangeError::Unknown),
            RetireError::NoQuorum => rivals(physical.as_str()),
        })
    }

    /// Changes an index record by `edit`, against the newest version, and returns it as it stands then.
    ///
    /// # Errors
    /// What `edit` refuses with, `miroir_no_quorum`, or `miroir_write_unknown`.
    pub async fn update(
        &self,
        physical: &PhysicalIndex,
        trace: TraceId,
        edit: impl Fn(&mut IndexRecord) -> Result<(), Failure>,
    ) -> Result<Index, Failure> {
        self.update_to(physical, trace, |record, _| edit(record)).await
    }

    /// As [`Self::update`]; `edit` is told the version that it makes, too.
    ///
    /// # Errors
    /// As [`Self::update`].
    pub async fn update_to(
        &self,
        physical: &PhysicalIndex,
        trace: TraceId,
        edit: impl Fn(&mut IndexRecord, RecordVersion) -> Result<(), Failure>,
    ) -> Result<Index, Failure> {
        for _ in 0..ATTEMPTS {
            let Some(index) = self.records.snapshot().index(physical) else {
                return Err(Failure::internal(format!("there is no record of {physical}")));
            };
            let mut record = index.value.clone();
            edit(&mut record, index.version + 1)?;
            if record == index.value {
                return Ok(index);
            }
            record.updated_at = clock::now_rfc3339();
            match self.records.change(&index_key(physical), index.version, &record, trace).await {
                Ok(version) => return Ok(Arc::new(Versioned { version, value: record })),
                Err(ChangeError::Conflict(_)) => {}
                Err(e) => return Err(change_failed(&e)),
            }
        }
        Err(rivals(physical.as_str()))
    }

    /// Settles the primary key before the first document is split.
    ///
    /// # Errors
    /// `index_primary_key_already_exists` if another request has settled another one.
    pub async fn settle_primary_key(&self, index: &Index, key: &str, trace: TraceId) -> Result<Index, Failure> {
        if index.value.primary_key.as_deref() == Some(key) {
            return Ok(Arc::clone(index));
        }
        self.update(&index.value.physical, trace, |record| match &record.primary_key {
            None => {
                record.primary_key = Some(key.to_owned());
                Ok(())
            }
            Some(other) if other == key => Ok(()),
            Some(other) => Err(DocumentError::primary_key_exists(other).into()),
        })
        .await
    }

    /// `POST /indexes`.
    ///
    /// # Errors
    /// As for every write.
    pub async fn create(
        &self,
        uid: &IndexUid,
        primary_key: Option<String>,
        trace: TraceId,
    ) -> Result<Summary, Failure> {
        let subject = Subject::IndexCreation(primary_key.clone());
        let names = self.records.snapshot();
        if names.find(uid).is_some() || names.names().value.aliases.contains_key(uid) {
            return self.already_exists(uid, subject, trace).await;
        }
        // Looked at before the record is made, so that "nothing was done" is true.
        let here = self.writes.in_service(self.cluster.topology().holders())?;
        let task = self.writes.begin(uid, subject, trace).await?;
        let (index, ours) = match self.find_or_create(uid, primary_key.as_deref(), trace).await {
            Ok(found) => found,
            Err(failure) => {
                self.writes.failed(task, &failure);
                return Err(failure);
            }
        };
        if !ours {
            let summary = task.summary();
            self.writes.failed(task, &Failure::new(ErrorCode::IndexAlreadyExists, self.exists_text(uid)));
            return Ok(summary);
        }
        // A member that is away makes the index from the record when it is back.
        let orders = here.into_iter().map(|m| Order::without_body(m, WriteKind::EnsureIndex)).collect();
        self.writes.send_changed(&index, task, orders, Instant::now() + PATIENCE, trace).await
    }

    fn exists_text(&self, uid: &IndexUid) -> String {
        match self.records.snapshot().names().value.aliases.get(uid) {
            Some(alias) => format!("Index `{uid}` already exists: it is an alias for index `{}`.", alias.target),
            None => format!("Index `{uid}` already exists."),
        }
    }

    async fn already_exists(&self, uid: &IndexUid, subject: Subject, trace: TraceId) -> Result<Summary, Failure> {
        let message = self.exists_text(uid);
        self.tasks.over(Some(uid), subject, Some((ErrorCode::IndexAlreadyExists, &message)), None, trace).await
    }

    /// `PATCH /indexes/{uid}`: a primary key. Another one can still take its place while `unused` says that the index has no
    /// document, and that no node has one waiting.
    ///
    /// # Errors
    /// As for every write.
    pub async fn set_primary_key<U: Future<Output = Result<bool, Failure>>>(
        &self,
        index: &Index,
        key: Option<String>,
        unused: impl Fn() -> U,
        trace: TraceId,
    ) -> Result<Summary, Failure> {
        let subject = Subject::IndexUpdate { primary_key: key.clone(), renamed: None };
        let uid = &index.value.uid;
        let Some(key) = key else {
            return self.tasks.over(Some(uid), subject, None, None, trace).await;
        };
        let body = Bytes::from(serde_json::json!({ "primaryKey": key }).to_string());
        let order = |m| Order { body: body.clone(), ..Order::without_body(m, WriteKind::UpdateIndex) };
        // A member that is away follows the record when it is back.
        let here = self.writes.in_service(self.cluster.topology().holders())?;
        let orders: Vec<Order> = here.into_iter().map(order).collect();
        self.writes.require_ready(index, subject.kind(), &orders)?;
        let task = self.writes.begin(uid, subject, trace).await?;
        let other = index.value.primary_key.as_deref().filter(|old| *old != key);
        let settled = match other {
            Some(old) => match unused().await {
                Ok(true) => self.change_primary_key(index, old, &key, unused(), trace).await,
                Ok(false) => self.settle_primary_key(index, &key, trace).await,
                Err(failure) => Err(failure),
            },
            None => self.settle_primary_key(index, &key, trace).await,
        };
        let index = match settled {
            Ok(index) => index,
            Err(Failure::Mesh { code: code @ ErrorCode::IndexPrimaryKeyAlreadyExists, message, .. }) => {
                // As on a node, which names the index here and not where documents bring another key.
                let (message, summary) = (format!("Index `{uid}`: {message}"), task.summary());
                self.writes.failed(task, &Failure::new(code, message));
                return Ok(summary);
            }
            Err(failure) => {
                self.writes.failed(task, &failure);
                return Err(failure);
            }
        };
        self.writes.send_changed(&index, task, orders, Instant::now() + PATIENCE, trace).await
    }

    /// Puts another primary key in the place of `old`, unless documents have come meanwhile that were split by that.
    async fn change_primary_key(
        &self,
        index: &Index,
        old: &str,
        key: &str,
        unused: impl Future<Output = Result<bool, Failure>>,
        trace: TraceId,
    ) -> Result<Index, Failure> {
        let changed = self.replace_primary_key(index, old, key, trace).await?;
        // Every member knows the new key now and takes no more documents that were split by the old one; those that came
        // before are in the nodes or wait there.
        let refused = match unused.await {
            Ok(true) => return Ok(changed),
            Ok(false) => DocumentError::primary_key_exists(old).into(),
            Err(error) => error,
        };
        self.replace_primary_key(index, key, old, trace).await?;
        Err(refused)
    }

    async fn replace_primary_key(&self, index: &Index, old: &str, new: &str, trace: TraceId) -> Result<Index, Failure> {
        let replace = |record: &mut IndexRecord| match record.primary_key.as_deref() {
            Some(now) if now == old || now == new => {
                record.primary_key = Some(new.to_owned());
                Ok(())
            }
            now => Err(DocumentError::primary_key_exists(now.unwrap_or_default()).into()),
        };
        self.update(&index.value.physical, trace, replace).await
    }

    /// A write to an index that is not there: Meilisearch takes it and lets the task fail.
    ///
    /// # Errors
    /// A failure of the store.
    pub async fn missing(
        &self,
        uid: &IndexUid,
        subject: Subject,
        metadata: Option<String>,
        trace: TraceId,
    ) -> Result<Summary, Failure> {
        let message = no_index(uid);
        self.tasks.over(Some(uid), subject, Some((ErrorCode::IndexNotFound, &message)), metadata, trace).await
    }

    /// `DELETE /indexes/{uid}`: the name goes first, by one change of names, then the record says so, then every node's copy
    /// goes.
    ///
    /// # Errors
    /// `miroir_alias_conflict` for an alias, or an index that one stands for; `miroir_no_quorum` if nothing was done.
    pub async fn delete(&self, uid: &IndexUid, trace: TraceId) -> Result<Summary, Failure> {
        if without(&self.records.snapshot().names().value, uid)?.is_none() {
            return self.missing(uid, Subject::IndexDeletion, None, trace).await;
        }
        let task = self.writes.begin(uid, Subject::IndexDeletion, trace).await?;
        let physical = match self.take_name(uid, trace).await {
            Ok(Some(physical)) => physical,
            Ok(None) => {
                let summary = task.summary();
                self.writes.failed(task, &Failure::index_not_found(uid));
                return Ok(summary);
            }
            Err(failure) => {
                self.writes.failed(task, &failure);
                return Err(failure);
            }
        };
        // From here on nobody finds the index; whatever is left behind follows the record.
        if let Err(error) = self.mark_deleted(&physical, trace).await {
            tracing::warn!(%physical, ?error, "a deleted index goes from the nodes when its record can be changed");
            let message = format!(
                "Index `{uid}` is gone, but its documents go from the nodes only when the mesh's records can be changed again."
            );
            let uid = task.uid();
            let failure = Failure::Mesh { code: ErrorCode::MiroirWriteUnknown, message, task: Some(uid) };
            self.writes.failed(task, &failure);
            return Err(failure);
        }
        let Some(index) = self.records.snapshot().index(&physical) else {
            let failure = Failure::index_not_found(uid);
            self.writes.failed(task, &failure);
            return Err(failure);
        };
        // A member that is away follows the record when it is back.
        let topology = self.cluster.topology();
        let here = topology.holders().filter(|m| self.cluster.serving(m)).cloned();
        let orders = here.map(|m| Order::without_body(m, WriteKind::DeleteIndex)).collect();
        self.writes.send_changed(&index, task, orders, Instant::now() + PATIENCE, trace).await
    }

    /// Takes an index out of names, so that no alias can come to stand for it; `None` if there is none of that name.
    async fn take_name(&self, uid: &IndexUid, trace: TraceId) -> Result<Option<PhysicalIndex>, Failure> {
        for _ in 0..ATTEMPTS {
            let snapshot = self.records.snapshot();
            let Some((names, physical)) = without(&snapshot.names().value, uid)? else { return Ok(None) };
            match self.records.change(NAMES, snapshot.names().version, &names, trace).await {
                Ok(_) => return Ok(Some(physical)),
                Err(ChangeError::Conflict(_)) => {}
                Err(error) => return Err(change_failed(&error)),
            }
        }
        Err(rivals("names"))
    }

    /// Brings to their end the deletions that somebody has begun, each at the member that owns it: the record of the index
    /// says so, and names let go of it.
    pub async fn follow_deletions(self, leases: LeaseHandle) {
        let mut changes = self.records.watch();
        let mut again = tokio::time::interval(LOOK);
        again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = again.tick() => {}
                changed = changes.changed() => if changed.is_err() { return },
            }
            let names = self.records.snapshot();
            let mine: BTreeSet<PhysicalIndex> =
                names.names().value.leaving.iter().filter(|p| leases.owns(p.as_str())).cloned().collect();
            if let Err(error) = self.finish_deletions(&mine, TraceId(Uuid::new_v4().as_u128())).await {
                tracing::debug!(?error, "deletions wait until records can be changed");
            }
        }
    }

    async fn finish_deletions(&self, mine: &BTreeSet<PhysicalIndex>, trace: TraceId) -> Result<(), Failure> {
        for physical in mine {
            // Its record may not have come here yet.
            self.records.refresh(&key_of(&index_key(physical))).await.map_err(|e| change_failed(&e))?;
            if self.records.snapshot().index(physical).is_some() {
                self.mark_deleted(physical, trace).await?;
            }
        }
        for _ in 0..ATTEMPTS {
            let snapshot = self.records.snapshot();
            let mut names = snapshot.names().value.clone();
            names.leaving.retain(|physical| !mine.contains(physical));
            if names == snapshot.names().value {
                return Ok(());
            }
            match self.records.write(NAMES, snapshot.names().version, &names).await {
                Ok(_) => return Ok(()),
                Err(ChangeError::Conflict(_)) => {}
                Err(error) => return Err(change_failed(&error)),
            }
        }
        Err(rivals("names"))
    }
}

/// The names without an index, and which one it is; `None` if there is none of that name.
fn without(names: &NamesRecord, uid: &IndexUid) -> Result<Option<(NamesRecord, PhysicalIndex)>, Failure> {
    if let Some(alias) = names.aliases.get(uid) {
        let message = format!(
            "`{uid}` is an alias for index `{}`. An index is deleted by its own uid, an alias by \
             DELETE /_miroir/aliases/{uid}.",
            alias.target
        );
        return Err(Failure::new(ErrorCode::MiroirAliasConflict, message));
    }
    let mut names = names.clone();
    let Some(physical) = names.indexes.remove(uid) else { return Ok(None) };
    alias::check_delete_index(&names, uid).map_err(|e| names_refused(&e))?;
    names.leaving.insert(physical.clone());
    Ok(Some((names, physical)))
}

/// What a task about an index that is not there says.
pub(super) fn no_index(uid: &IndexUid) -> String {
    format!("Index `{uid}` not found.")
}

/// A change of names that is not allowed, as the client reads it.
pub fn names_refused(error: &AliasError) -> Failure {
    let text = error.to_string();
    // The mesh's texts are sentences.
    let sentence = text[..1].to_uppercase() + &text[1..] + ".";
    match error {
        AliasError::NotFound { .. } => Failure::new(ErrorCode::MiroirAliasNotFound, sentence),
        AliasError::NoTarget { target } => Failure::index_not_found(target),
        AliasError::Full => Failure::new(ErrorCode::MiroirIndexLimit, format!("{sentence} Delete one first.")),
        AliasError::IsIndex { .. } | AliasError::IsAlias { .. } | AliasError::InUse { .. } => {
            Failure::new(ErrorCode::MiroirAliasConflict, sentence)
        }
        AliasError::Stale { .. } | AliasError::Moved { .. } => rivals("names"),
    }
}

fn rivals(what: &str) -> Failure {
    let message = format!("Too many changes of {what} at the same moment; send the request again.");
    Failure::new(ErrorCode::MiroirNoQuorum, message)
}

/// A change of a record that did not come about, as the client reads it.
pub fn change_failed(error: &ChangeError) -> Failure {
    match error {
        ChangeError::Unknown => {
            tracing::warn!(%error, "whether a record was changed is not known");
            let message =
                "The mesh's records may or may not have been changed; look before you send the request again.";
            Failure::new(ErrorCode::MiroirWriteUnknown, message)
        }
        ChangeError::TooLarge(_) => Failure::new(ErrorCode::PayloadTooLarge, format!("{error}.")),
        ChangeError::Conflict(_) | ChangeError::Unavailable(_) => {
            tracing::warn!(%error, "a record could not be changed");
            let message = "The mesh's records can't be changed now. Nothing was done; send the request again.";
            Failure::new(ErrorCode::MiroirNoQuorum, message)
        }
    }
}
