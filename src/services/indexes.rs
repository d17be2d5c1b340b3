//! Creates, finds and deletes indexes: first the record of the physical index, then the one record of names.
//!
//! Who loses a race for a name takes the winner's record. Must not know: documents, HTTP.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use super::cluster::Cluster;
use super::failure::Failure;
use super::records::{ChangeError, NAMES, Records, Versioned, index_key};
use super::tasks::{Subject, Summary, Tasks};
use super::writes::{Order, Writes};
use crate::proto::document::DocumentError;
use crate::proto::placement;
use crate::rt::clock;
use crate::types::TraceId;
use crate::types::limits::NAMES_MAX;
use crate::types::{ErrorCode, IndexRecord, IndexUid, PhysicalIndex};
use crate::wire::verbs::WriteKind;

/// Attempts against rivals; each lost one means that another change was made.
const ATTEMPTS: usize = 16;
/// How long an order to create or delete may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// An index record at a version.
pub type Index = Arc<Versioned<IndexRecord>>;

/// The service; cheap to clone.
#[derive(Debug, Clone)]
pub struct Indexes {
    cluster: Cluster,
    records: Records,
    tasks: Tasks,
    writes: Writes,
}

impl Indexes {
    /// The service over its parts.
    pub fn new(cluster: Cluster, records: Records, tasks: Tasks, writes: Writes) -> Self {
        Self { cluster, records, tasks, writes }
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
            let snapshot = self.records.snapshot();
            if let Some(index) = snapshot.find(uid) {
                let ours = made.as_ref() == Some(&index.value.physical);
                if let Some(lost) = made.filter(|_| !ours) {
                    self.mark_deleted(&lost, trace).await?;
                }
                return Ok((index, ours));
            }
            let mut names = snapshot.names().value.clone();
            if names.indexes.len() >= NAMES_MAX {
                let message = format!("The mesh keeps at most {NAMES_MAX} indexes; delete one first.");
                return Err(Failure::new(ErrorCode::MiroirIndexLimit, message));
            }
            let physical = match &made {
                Some(physical) => physical.clone(),
                None => {
                    let record = self.new_record(uid, primary_key);
                    self.change(&index_key(&record.physical), 0, &record, trace).await?;
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
            shards: placement::place(topology.shards, &topology.groups(), topology.rf),
            created_at: now.clone(),
            updated_at: now,
            deleted: false,
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
            Ok(())
        })
        .await
        .map(drop)
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
        for _ in 0..ATTEMPTS {
            let Some(index) = self.records.snapshot().index(physical) else {
                return Err(Failure::internal(format!("there is no record of {physical}")));
            };
            let mut record = index.value.clone();
            edit(&mut record)?;
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
        let subject = Subject::IndexCreation { primary_key: primary_key.clone() };
        if self.find(uid).is_ok() {
            return self.already_exists(uid, subject).await;
        }
        let (index, ours) = self.find_or_create(uid, primary_key.as_deref(), trace).await?;
        if !ours {
            return self.already_exists(uid, subject).await;
        }
        let topology = self.cluster.topology();
        let orders = topology.holders().cloned().map(|m| Order::without_body(m, WriteKind::EnsureIndex)).collect();
        self.writes.send(&index, subject, orders, None, Instant::now() + PATIENCE, trace).await
    }

    async fn already_exists(&self, uid: &IndexUid, subject: Subject) -> Result<Summary, Failure> {
        let task = self.tasks.begin(Some(uid), None, subject, 1, None).await?;
        self.tasks.fail(task, ErrorCode::IndexAlreadyExists, &format!("Index `{uid}` already exists.")).await
    }

    /// `PATCH /indexes/{uid}`: a primary key. Of an index that is `empty` it can still be changed.
    ///
    /// # Errors
    /// As for every write.
    pub async fn set_primary_key(
        &self,
        uid: &IndexUid,
        key: Option<String>,
        empty: bool,
        trace: TraceId,
    ) -> Result<Summary, Failure> {
        let subject = Subject::IndexUpdate { primary_key: key.clone() };
        let Ok(index) = self.find(uid) else { return self.missing(uid, subject).await };
        let Some(key) = key else {
            let task = self.tasks.begin(Some(uid), None, subject, 1, None).await?;
            return self.tasks.sent(task, Vec::new()).await;
        };
        let settled = if empty {
            self.update(&index.value.physical, trace, |record| {
                record.primary_key = Some(key.clone());
                Ok(())
            })
            .await
        } else {
            self.settle_primary_key(&index, &key, trace).await
        };
        let index = match settled {
            Ok(index) => index,
            Err(Failure::Mesh { code: code @ ErrorCode::IndexPrimaryKeyAlreadyExists, message, .. }) => {
                let task = self.tasks.begin(Some(uid), None, subject, 1, None).await?;
                // As on a node, which names the index here and not where documents bring another key.
                return self.tasks.fail(task, code, &format!("Index `{uid}`: {message}")).await;
            }
            Err(e) => return Err(e),
        };
        let body = Bytes::from(serde_json::json!({ "primaryKey": key }).to_string());
        let order = |m| Order { body: body.clone(), ..Order::without_body(m, WriteKind::UpdateIndex) };
        let orders = self.cluster.topology().holders().cloned().map(order).collect();
        self.writes.send(&index, subject, orders, None, Instant::now() + PATIENCE, trace).await
    }

    /// A write to an index that is not there: Meilisearch takes it and lets the task fail.
    ///
    /// # Errors
    /// A failure of the store.
    pub async fn missing(&self, uid: &IndexUid, subject: Subject) -> Result<Summary, Failure> {
        let task = self.tasks.begin(Some(uid), None, subject, 1, None).await?;
        self.tasks.fail(task, ErrorCode::IndexNotFound, &format!("Index `{uid}` not found.")).await
    }

    /// `DELETE /indexes/{uid}`: the record says so first, then every node's copy goes, and the name.
    ///
    /// # Errors
    /// `miroir_no_quorum` if nothing was done.
    pub async fn delete(&self, uid: &IndexUid, trace: TraceId) -> Result<Summary, Failure> {
        let Ok(index) = self.find(uid) else { return self.missing(uid, Subject::IndexDeletion).await };
        let physical = &index.value.physical;
        // From here on nobody finds the index; whatever is left behind follows the record.
        self.mark_deleted(physical, trace).await?;
        self.forget_name(uid, physical, trace).await;
        let index = self.records.snapshot().index(physical).ok_or_else(|| Failure::index_not_found(uid))?;
        // A member that is away follows the record when it is back.
        let topology = self.cluster.topology();
        let here = topology.holders().filter(|m| self.cluster.serving(m)).cloned();
        let orders = here.map(|m| Order::without_body(m, WriteKind::DeleteIndex)).collect();
        self.writes.send(&index, Subject::IndexDeletion, orders, None, Instant::now() + PATIENCE, trace).await
    }

    /// Takes the name of a deleted index away. A name that stays stands for nothing, and a new index takes it over.
    async fn forget_name(&self, uid: &IndexUid, physical: &PhysicalIndex, trace: TraceId) {
        for _ in 0..ATTEMPTS {
            let snapshot = self.records.snapshot();
            let mut names = snapshot.names().value.clone();
            if names.indexes.get(uid) != Some(physical) {
                return;
            }
            names.indexes.remove(uid);
            match self.records.change(NAMES, snapshot.names().version, &names, trace).await {
                Ok(_) => return,
                Err(ChangeError::Conflict(_)) => {}
                Err(error) => {
                    tracing::warn!(%uid, %error, "the name of a deleted index stays in the list");
                    return;
                }
            }
        }
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
