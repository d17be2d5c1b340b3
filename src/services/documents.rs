//! Adds and deletes documents: the whole request is checked first, then split by shard and sent.
//!
//! A bad document or id fails the whole request with nothing applied, as on one node. Must not know: how parts travel.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;

use super::cluster::Cluster;
use super::failure::Failure;
use super::indexes::{Index, Indexes};
use super::tasks::{Subject, Summary, Tasks};
use super::writes::{Order, Writes};
use crate::proto::document::{self, Batch, DocumentError, Format, IdList, Payload};
use crate::proto::search::filter::names_shard_field;
use crate::types::SHARD_FIELD;
use crate::types::TraceId;
use crate::types::limits::NODE_BODY_MAX_BYTES;
use crate::types::{ErrorCode, IndexRecord, IndexUid, MemberId, ShardId};
use crate::wire::verbs::WriteKind;

/// How long the replicas may take to enqueue a write.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a client says about the documents that it adds.
#[derive(Debug, Clone)]
pub struct Addition {
    /// How the body is written.
    pub format: Format,
    /// PUT: fields are merged; POST: documents are replaced.
    pub merge: bool,
    /// Documents that do not exist yet are left out.
    pub skip_creation: bool,
    /// The primary key that the request names.
    pub primary_key: Option<String>,
    /// Shown again in the task.
    pub custom_metadata: Option<String>,
}

/// The service; cheap to clone.
#[derive(Debug, Clone)]
pub struct Documents {
    cluster: Cluster,
    indexes: Indexes,
    tasks: Tasks,
    writes: Writes,
}

/// The members that hold an index, and which of them hold each shard.
struct Owners {
    members: Vec<MemberId>,
    by_shard: Vec<Vec<usize>>,
}

impl Owners {
    fn of(record: &IndexRecord) -> Self {
        let members: Vec<MemberId> = record.members().into_iter().cloned().collect();
        let position: BTreeMap<&MemberId, usize> = members.iter().enumerate().map(|(i, m)| (m, i)).collect();
        let by_shard = record.shards.iter().map(|s| s.replicas.iter().map(|r| position[&r.member]).collect()).collect();
        Self { members, by_shard }
    }

    fn of_shard(&self, shard: ShardId) -> &[usize] {
        &self.by_shard[usize::from(shard.0)]
    }
}

impl Documents {
    /// The service over its parts.
    pub fn new(cluster: Cluster, indexes: Indexes, tasks: Tasks, writes: Writes) -> Self {
        Self { cluster, indexes, tasks, writes }
    }

    /// Adds or merges documents; an index that is not there is made. Before so many bytes more than the body are held,
    /// `hold` is asked.
    ///
    /// # Errors
    /// What is wrong with the body, or as for every write.
    pub async fn add(
        &self,
        uid: &IndexUid,
        body: Bytes,
        add: Addition,
        hold: impl Fn(usize) -> Result<(), Failure> + Clone + Send + 'static,
        trace: TraceId,
    ) -> Result<Summary, Failure> {
        let format = add.format;
        let parse_hold = hold.clone();
        let payload = blocking(move || Payload::parse_within(body, format, parse_hold)).await??;
        let received = payload.received();
        let subject = Subject::Documents { received, distinct: 0 };
        // As on a node, the index is there even if its first documents are refused.
        let index = match self.indexes.find_for_write(uid)? {
            Some(index) => index,
            None => {
                self.writes.require_serving(self.cluster.topology().holders())?;
                self.indexes.find_or_create(uid, None, trace).await?.0
            }
        };
        let uid = index.value.uid.clone();
        let settled = index.value.primary_key.as_deref();
        let key = match payload.primary_key(settled, add.primary_key.as_deref()) {
            Ok(key) => key,
            Err(e) => return self.refuse(&uid, subject, add, &e).await,
        };
        let shards = index.value.shard_count();
        let batch = match &key {
            None => None,
            Some(key) => {
                let key = key.clone();
                hold(Batch::size_of(received))?;
                match blocking(move || payload.batch(&key, shards)).await? {
                    Ok(batch) => Some(batch),
                    Err(e) => return self.refuse(&uid, subject, add, &e).await,
                }
            }
        };
        let (Some(key), Some(batch)) = (key, batch) else {
            return self.empty(&uid, subject, add).await;
        };
        let index = match self.indexes.settle_primary_key(&index, &key, trace).await {
            Ok(index) => index,
            Err(Failure::Mesh { code: code @ ErrorCode::IndexPrimaryKeyAlreadyExists, message, .. }) => {
                return self.refuse(&uid, subject, add, &DocumentError::Task { code, message }).await;
            }
            Err(e) => return Err(e),
        };
        let subject = Subject::Documents { received, distinct: batch.distinct_ids() };
        let owners = Owners::of(&index.value);
        let kind =
            WriteKind::AddDocuments { merge: add.merge, skip_creation: add.skip_creation, primary_key: key.clone() };
        let orders = blocking(move || {
            hold(batch.sizes(owners.members.len(), |shard| owners.of_shard(shard)).iter().sum())?;
            let parts = batch.split(owners.members.len(), |shard| owners.of_shard(shard));
            let filled = owners.members.into_iter().zip(parts).filter(|(_, part)| part.documents > 0);
            Ok::<_, Failure>(filled.flat_map(|(member, part)| orders_of(member, part, &kind)).collect::<Vec<_>>())
        })
        .await??;
        self.writes.send(&index, subject, orders, add.custom_metadata, Instant::now() + PATIENCE, trace).await
    }

    async fn refuse(
        &self,
        uid: &IndexUid,
        subject: Subject,
        add: Addition,
        error: &DocumentError,
    ) -> Result<Summary, Failure> {
        let DocumentError::Task { code, message } = error else { return Err(failure(error)) };
        let task = self.tasks.begin(Some(uid), None, subject, 1, add.custom_metadata).await?;
        self.tasks.fail(task, *code, message).await
    }

    async fn empty(&self, uid: &IndexUid, subject: Subject, add: Addition) -> Result<Summary, Failure> {
        let task = self.tasks.begin(Some(uid), None, subject, 1, add.custom_metadata).await?;
        self.tasks.sent(task, Vec::new()).await
    }

    /// Deletes documents by id.
    ///
    /// # Errors
    /// What is wrong with the body, or as for every write.
    pub async fn delete_ids(
        &self,
        uid: &IndexUid,
        list: IdList,
        metadata: Option<String>,
        trace: TraceId,
    ) -> Result<Summary, Failure> {
        let provided = list.provided();
        let Some(index) = self.indexes.find_for_write(uid)? else {
            return self.indexes.missing(uid, Subject::DeleteIds { provided }, metadata).await;
        };
        let owners = Owners::of(&index.value);
        let parts = list.split(index.value.shard_count(), owners.members.len(), |shard| owners.of_shard(shard));
        let filled = owners.members.into_iter().zip(parts).filter(|(_, part)| part.ids > 0);
        let orders = filled
            .map(|(member, part)| Order {
                member,
                kind: WriteKind::DeleteIds,
                shards: part.shards,
                body: part.body.into(),
            })
            .collect();
        self.everywhere(&index, Subject::DeleteIds { provided }, orders, metadata, trace).await
    }

    /// Deletes the documents that a filter selects.
    ///
    /// # Errors
    /// The node's own error about the filter, or as for every write.
    pub async fn delete_by_filter(
        &self,
        uid: &IndexUid,
        filter: &Value,
        body: Bytes,
        metadata: Option<String>,
        trace: TraceId,
    ) -> Result<Summary, Failure> {
        if names_shard_field(filter) {
            return Err(reserved("filter"));
        }
        let original_filter = filter.to_string();
        let subject = Subject::DeleteFilter { original_filter };
        let Some(index) = self.indexes.find_for_write(uid)? else {
            return self.indexes.missing(uid, subject, metadata).await;
        };
        let order =
            |m: &MemberId| Order { body: body.clone(), ..Order::without_body(m.clone(), WriteKind::DeleteFilter) };
        let orders = index.value.members().into_iter().map(order).collect();
        self.everywhere(&index, subject, orders, metadata, trace).await
    }

    /// Deletes every document.
    ///
    /// # Errors
    /// As for every write.
    pub async fn delete_all(
        &self,
        uid: &IndexUid,
        metadata: Option<String>,
        trace: TraceId,
    ) -> Result<Summary, Failure> {
        let Some(index) = self.indexes.find_for_write(uid)? else {
            return self.indexes.missing(uid, Subject::DeleteAll, metadata).await;
        };
        let order = |m: &MemberId| Order::without_body(m.clone(), WriteKind::DeleteAll);
        let orders = index.value.members().into_iter().map(order).collect();
        self.everywhere(&index, Subject::DeleteAll, orders, metadata, trace).await
    }

    async fn everywhere(
        &self,
        index: &Index,
        subject: Subject,
        orders: Vec<Order>,
        metadata: Option<String>,
        trace: TraceId,
    ) -> Result<Summary, Failure> {
        self.writes.send(index, subject, orders, metadata, Instant::now() + PATIENCE, trace).await
    }
}

/// A member's part as orders that its node takes: the field that marks shards makes a body larger than the client's.
fn orders_of(member: MemberId, part: document::Part, kind: &WriteKind) -> Vec<Order> {
    let order = |body| Order { member: member.clone(), kind: kind.clone(), shards: part.shards.clone(), body };
    let whole = Bytes::from(part.body);
    if whole.len() <= NODE_BODY_MAX_BYTES {
        return vec![order(whole)];
    }
    document::pieces(&whole, NODE_BODY_MAX_BYTES).map(|piece| order(whole.slice_ref(piece))).collect()
}

/// Splitting a large body takes long enough to hold up other requests, so it has a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Failure::internal(format!("the body could not be split: {e}")))
}

/// A document error that refuses the request itself.
pub fn failure(error: impl Borrow<DocumentError>) -> Failure {
    let error = error.borrow();
    Failure::new(error.code(), error.to_string())
}

/// The error about the field that belongs to the mesh.
pub fn reserved(place: &str) -> Failure {
    let message = format!("Invalid value in `{place}`: the field `{SHARD_FIELD}` is reserved by miroir.");
    Failure::new(ErrorCode::MiroirReservedField, message)
}

/// Inflates a gzip body within the limit; before so many bytes more are held, `hold` is asked.
///
/// # Errors
/// `payload_too_large`, what is wrong with the body, or what `hold` refuses with.
pub async fn gunzip(
    body: Bytes,
    limit: usize,
    hold: impl FnMut(usize) -> Result<(), Failure> + Send + 'static,
) -> Result<Bytes, Failure> {
    blocking(move || document::gunzip(&body, limit, hold)).await?.map(Bytes::from)
}

impl From<DocumentError> for Failure {
    fn from(error: DocumentError) -> Self {
        failure(error)
    }
}
