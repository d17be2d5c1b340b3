//! Adds, edits and deletes documents: the whole request is checked first, then split by shard and given to the shards' journals.
//!
//! A bad document or id fails the whole request with nothing applied, as on one node. Must not know: who holds a shard, how
//! parts travel.

use std::borrow::Borrow;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::cluster::Cluster;
use super::failure::Failure;
use super::homes::submit::NewWrite;
use super::indexes::{Index, Indexes, no_index};
use super::stats::Nodes;
use super::tasks::{Accepted, Tasks};
use super::writes::Writes;
use crate::proto::document::{self, Batch, DocumentError, Format, Function, IdList, Payload};
use crate::proto::journal::Kind;
use crate::proto::search::filter::names_shard_field;
use crate::proto::settings::DocumentView;
use crate::proto::tasks::Subject;
use crate::types::SHARD_FIELD;
use crate::types::TraceId;
use crate::types::{ErrorCode, IndexUid, ShardId};

/// Documents of one shard go into its journal in pieces of so many bytes, unless one alone is larger: a replica that is slow
/// to store a piece is taken for gone.
const PIECE_BYTES: usize = 1 << 20;

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
    /// What goes with the task.
    pub with: With,
}

/// What a client sends along with a write.
#[derive(Debug, Clone, Default)]
pub struct With {
    /// Shown again in the task.
    pub custom_metadata: Option<String>,
    /// The `Idempotency-Key`, and the hash of the request.
    pub key: Option<(String, [u8; 32])>,
}

/// What each shard is to do.
type Parts = Vec<(ShardId, Kind, Bytes)>;

/// The service; cheap to clone.
#[derive(Debug, Clone)]
pub struct Documents {
    cluster: Cluster,
    indexes: Indexes,
    tasks: Tasks,
    writes: Writes,
    nodes: Nodes,
}

impl Documents {
    /// The service over its parts.
    pub fn new(cluster: Cluster, indexes: Indexes, tasks: Tasks, writes: Writes, nodes: Nodes) -> Self {
        Self { cluster, indexes, tasks, writes, nodes }
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
    ) -> Result<Accepted, Failure> {
        let subject = Subject::Documents { received: 0, distinct: 0 };
        if let Some(before) = self.before(uid, &subject, &add.with, trace).await? {
            return Ok(before);
        }
        let format = add.format;
        let parse_hold = hold.clone();
        let payload = blocking(move || Payload::parse_within(body, format, parse_hold)).await??;
        let received = payload.received();
        let subject = Subject::Documents { received: received as u64, distinct: 0 };
        // As on a node, the index is there even if its first documents are refused.
        let index = match self.indexes.find_for_write(uid)? {
            Some(index) => index,
            None => {
                self.writes.in_service(self.cluster.topology().holders())?;
                self.indexes.find_or_create(uid, None, trace).await?.0
            }
        };
        let settled = index.value.primary_key.as_deref();
        let key = match payload.primary_key(settled, add.primary_key.as_deref()) {
            Ok(key) => key,
            Err(e) => return self.refuse(&index, subject, add.with, &e, trace).await,
        };
        let shards = index.value.shard_count();
        let batch = match &key {
            None => None,
            Some(key) => {
                let key = key.clone();
                hold(Batch::size_of(received))?;
                let (checked, merge) = (Arc::clone(&index), add.merge);
                let batch = blocking(move || {
                    let mut batch = payload.batch(&key, shards)?;
                    let record = &checked.value;
                    batch.check(record.uid.as_str(), &DocumentView::of(&record.client_settings), merge)?;
                    Ok(batch)
                });
                match batch.await? {
                    Ok(batch) => Some(batch),
                    Err(e) => return self.refuse(&index, subject, add.with, &e, trace).await,
                }
            }
        };
        let (Some(key), Some(batch)) = (key, batch) else {
            return self.write(&index, subject, Vec::new(), add.with, trace).await;
        };
        let index = match self.indexes.settle_primary_key(&index, &key, trace).await {
            Ok(index) => index,
            Err(Failure::Mesh { code: code @ ErrorCode::IndexPrimaryKeyAlreadyExists, message, .. }) => {
                let error = DocumentError::Task { code, message };
                return self.refuse(&index, subject, add.with, &error, trace).await;
            }
            Err(e) => return Err(e),
        };
        let subject = Subject::Documents { received: received as u64, distinct: batch.distinct_ids() as u64 };
        let skip_creation = add.skip_creation;
        let kind = if add.merge { Kind::Merge { skip_creation } } else { Kind::Set { skip_creation } };
        let parts = blocking(move || {
            let each = each(shards);
            hold(batch.sizes(each.len(), |shard| &each[usize::from(shard.0)]).iter().sum())?;
            let parts = batch.split(each.len(), |shard| &each[usize::from(shard.0)]);
            let filled = (0..).map(ShardId).zip(parts).filter(|(_, part)| part.documents > 0);
            let pieces = filled.flat_map(|(shard, part)| {
                let whole = Bytes::from(part.body);
                let pieces = document::pieces(&whole, PIECE_BYTES).map(|piece| whole.slice_ref(piece));
                pieces.map(|piece| (shard, kind, piece)).collect::<Vec<_>>()
            });
            Ok::<Parts, Failure>(pieces.collect())
        })
        .await??;
        self.write(&index, subject, parts, add.with, trace).await
    }

    async fn refuse(
        &self,
        index: &Index,
        subject: Subject,
        with: With,
        error: &DocumentError,
        trace: TraceId,
    ) -> Result<Accepted, Failure> {
        let DocumentError::Task { code, message } = error else { return Err(failure(error)) };
        let error = (*code, message.as_str());
        self.tasks.refused(&index.value.uid, subject, error, with.custom_metadata, with.key, trace).await
    }

    async fn write(
        &self,
        index: &Index,
        subject: Subject,
        parts: Parts,
        with: With,
        trace: TraceId,
    ) -> Result<Accepted, Failure> {
        let write = NewWrite {
            index: index.value.physical.clone(),
            index_uid: index.value.uid.as_str().to_owned(),
            subject,
            custom_metadata: with.custom_metadata,
            key: with.key,
            parts,
        };
        self.tasks.write(write, trace).await
    }

    /// A write to an index that is not there.
    async fn missing(&self, uid: &IndexUid, subject: Subject, with: With, trace: TraceId) -> Result<Accepted, Failure> {
        let message = no_index(uid);
        let error = (ErrorCode::IndexNotFound, message.as_str());
        self.tasks.refused(uid, subject, error, with.custom_metadata, with.key, trace).await
    }

    /// The task of the same write, if it was sent before with the same key: looked up before all else, for what could be done
    /// now does not matter then.
    async fn before(
        &self,
        uid: &IndexUid,
        subject: &Subject,
        with: &With,
        trace: TraceId,
    ) -> Result<Option<Accepted>, Failure> {
        self.tasks.before(uid, subject.clone(), with.key.as_ref(), trace).await
    }

    /// Deletes documents by id.
    ///
    /// # Errors
    /// What is wrong with the body, or as for every write.
    pub async fn delete_ids(
        &self,
        uid: &IndexUid,
        list: IdList,
        with: With,
        trace: TraceId,
    ) -> Result<Accepted, Failure> {
        let subject = Subject::DeletionByIds { provided: list.provided() as u64 };
        if let Some(before) = self.before(uid, &subject, &with, trace).await? {
            return Ok(before);
        }
        let Some(index) = self.indexes.find_for_write(uid)? else {
            return self.missing(uid, subject, with, trace).await;
        };
        let shards = index.value.shard_count();
        let each = each(shards);
        let parts = list.split(shards, each.len(), |shard| &each[usize::from(shard.0)]);
        let filled = (0..).map(ShardId).zip(parts).filter(|(_, part)| part.ids > 0);
        let parts = filled.map(|(shard, part)| (shard, Kind::Delete, Bytes::from(part.body))).collect();
        self.write(&index, subject, parts, with, trace).await
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
        with: With,
        trace: TraceId,
    ) -> Result<Accepted, Failure> {
        if names_shard_field(filter) {
            return Err(reserved("filter"));
        }
        let subject = Subject::DeletionByFilter(filter.to_string());
        if let Some(before) = self.before(uid, &subject, &with, trace).await? {
            return Ok(before);
        }
        let Some(index) = self.indexes.find_for_write(uid)? else {
            return self.missing(uid, subject, with, trace).await;
        };
        let parts = all(&index, Kind::DeleteByFilter, &body);
        self.write(&index, subject, parts, with, trace).await
    }

    /// Edits the documents that a filter selects by a function; `edition` is the client's body.
    ///
    /// # Errors
    /// The node's own error about it, why the function can't be wrapped, or as for every write.
    pub async fn edit(
        &self,
        uid: &IndexUid,
        mut edition: Map<String, Value>,
        with: With,
        trace: TraceId,
    ) -> Result<Accepted, Failure> {
        let any = Subject::Edition { original_filter: None, context: None, function: String::new() };
        if let Some(before) = self.before(uid, &any, &with, trace).await? {
            return Ok(before);
        }
        let context = edition.shift_remove("context").filter(|context| !context.is_null());
        let no_context = self.nodes.check_edition(uid, encode(&edition), trace).await?;
        if context.as_ref().is_some_and(|context| !context.is_object()) {
            return Err(Failure::Node { status: 400, body: no_context });
        }
        if edition.get("filter").is_some_and(names_shard_field) {
            return Err(reserved("filter"));
        }
        let Some(Value::String(function)) = edition.get("function").cloned() else {
            return Err(Failure::internal("the node took a function that is no text"));
        };
        if function.contains(SHARD_FIELD) {
            return Err(reserved("function"));
        }
        let refused = |e| Failure::new(ErrorCode::BadRequest, format!("Invalid value at `.function`: {e}."));
        let wrapped = Function::parse(&function).map_err(refused)?.wrapped(ShardId(0));
        let wrapped = Map::from_iter([("function".to_owned(), Value::String(wrapped))]);
        self.nodes.check_wrapped(uid, encode(&wrapped), trace).await?;

        let filter = edition.get("filter").filter(|filter| !filter.is_null());
        let subject = Subject::Edition {
            original_filter: filter.map(Value::to_string),
            context: context.as_ref().map(Value::to_string),
            function,
        };
        let Some(index) = self.indexes.find_for_write(uid)? else {
            return self.missing(uid, subject, with, trace).await;
        };
        edition.extend(context.map(|context| ("context".to_owned(), context)));
        let parts = all(&index, Kind::Edit, &encode(&edition));
        self.write(&index, subject, parts, with, trace).await
    }

    /// Deletes every document.
    ///
    /// # Errors
    /// As for every write.
    pub async fn delete_all(&self, uid: &IndexUid, with: With, trace: TraceId) -> Result<Accepted, Failure> {
        if let Some(before) = self.before(uid, &Subject::Clear, &with, trace).await? {
            return Ok(before);
        }
        let Some(index) = self.indexes.find_for_write(uid)? else {
            return self.missing(uid, Subject::Clear, with, trace).await;
        };
        let parts = all(&index, Kind::Clear, &Bytes::new());
        self.write(&index, Subject::Clear, parts, with, trace).await
    }
}

fn encode(object: &Map<String, Value>) -> Bytes {
    Bytes::from(serde_json::to_string(object).expect("JSON encodes"))
}

/// Each shard by itself.
fn each(shards: u16) -> Vec<[usize; 1]> {
    (0..usize::from(shards)).map(|shard| [shard]).collect()
}

/// The same for every shard.
fn all(index: &Index, kind: Kind, body: &Bytes) -> Parts {
    (0..index.value.shard_count()).map(|shard| (ShardId(shard), kind, body.clone())).collect()
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
