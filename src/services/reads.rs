//! Reads documents: one by its id from the shard that it belongs to, lists over all shards, counts.
//!
//! Must not know: HTTP, the node.

use std::time::Instant;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::failure::Failure;
use super::indexes::{Index, Indexes};
use super::search::{Found, Question, Scattered, Searches, query_failed, unavailable};
use crate::proto::document::strip_shard;
use crate::proto::placement::shard_of;
use crate::proto::search::{DocumentsQuery, FarPage, MergeError, Next, Original, merge_documents};
use crate::types::TraceId;
use crate::types::limits::DOCUMENT_ID_MAX_BYTES;
use crate::types::{ErrorCode, IndexUid, ShardSet};
use crate::wire::verbs::{ReadKind, ReadRoute};

/// How often a page that begins far down is counted, when members go while it is read.
const SPLITS: usize = 4;

/// The service; cheap to clone.
#[derive(Debug, Clone)]
pub struct Reads {
    indexes: Indexes,
    searches: Searches,
}

impl Reads {
    /// The service over its parts.
    pub fn new(indexes: Indexes, searches: Searches) -> Self {
        Self { indexes, searches }
    }

    /// `POST /indexes/{uid}/documents/fetch`.
    ///
    /// # Errors
    /// The node's own error, or `miroir_shards_unavailable`.
    pub async fn list(&self, uid: &IndexUid, body: &[u8], trace: TraceId) -> Result<Found, Failure> {
        self.query(uid, DocumentsQuery::from_json(body).map_err(query_failed)?, trace).await
    }

    /// `GET /indexes/{uid}/documents`.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub async fn list_by_pairs(
        &self,
        uid: &IndexUid,
        pairs: Vec<(String, String)>,
        trace: TraceId,
    ) -> Result<Found, Failure> {
        self.query(uid, DocumentsQuery::from_query_string(pairs).map_err(query_failed)?, trace).await
    }

    async fn query(&self, uid: &IndexUid, query: DocumentsQuery, trace: TraceId) -> Result<Found, Failure> {
        let index = self.indexes.find(uid)?;
        if query.passthrough_invalid() {
            return Err(self.searches.refusal(&index, query.original(), ReadRoute::Documents, trace).await);
        }
        let record = &index.value;
        let pinned = record.primary_key.as_deref().and_then(|key| query.pinned_shards(key, record.shard_count()));
        let wanted = self.searches.wanted(record, pinned);
        match self.merged(&index, &query, &wanted, trace).await {
            Ok((body, missing)) => self.searches.found(body, missing),
            Err(e) => Err(self.searches.reworded(e, &index, query.original(), ReadRoute::Documents, trace).await),
        }
    }

    async fn merged(
        &self,
        index: &Index,
        query: &DocumentsQuery,
        wanted: &ShardSet,
        trace: TraceId,
    ) -> Result<(Vec<u8>, ShardSet), Failure> {
        let far = query.is_far();
        let question = Question {
            index,
            wanted,
            kind: ReadKind::Documents { order_values: query.needs_sort_values(2) },
            hash: 0,
            deadline: self.searches.deadline(Instant::now()),
            alone: query.part_body(1).into(),
            shared: if far { query.count_body() } else { query.part_body(2) }.into(),
            one: false,
        };
        for _ in 0..SPLITS {
            let scattered = self.searches.scatter(question.clone(), trace).await?;
            let body = if far && !scattered.parts.iter().any(|p| p.alone) {
                self.far_page(query, &question, &scattered, trace).await?
            } else {
                Some(merge_documents(query, &scattered.parts, &scattered.missing).map_err(malformed)?)
            };
            if let Some(body) = body {
                return Ok((body, scattered.missing));
            }
        }
        Err(unavailable(wanted))
    }

    /// A page that begins far down, over several parts that have been counted; `None` if a part is no longer one member's,
    /// so that all has to be counted anew.
    async fn far_page(
        &self,
        query: &DocumentsQuery,
        question: &Question<'_>,
        counted: &Scattered,
        trace: TraceId,
    ) -> Result<Option<Vec<u8>>, Failure> {
        let mut page = FarPage::new(query, &counted.parts, &counted.missing).map_err(malformed)?;
        loop {
            let asks = match page.step().map_err(malformed)? {
                Next::Done(body) => return Ok(Some(body)),
                Next::Ask(asks) => asks,
            };
            let answers = asks.into_iter().map(|(shards, body)| async move {
                let body = Bytes::from(body);
                let one =
                    Question { wanted: &shards, alone: body.clone(), shared: body, one: true, ..question.clone() };
                let scattered = self.searches.scatter(one, trace).await?;
                // Ranks mean something within one member's list only.
                Ok::<_, Failure>(scattered.parts.into_iter().find(|p| p.shards == shards))
            });
            let answers = futures_util::future::try_join_all(answers).await?;
            let Some(answers) = answers.into_iter().collect::<Option<Vec<_>>>() else { return Ok(None) };
            page.take(&answers).map_err(malformed)?;
        }
    }

    /// Whether a node would take a filter of documents to change: as on a node, what can't be read is refused at once, and what
    /// does not suit the index fails with the task.
    ///
    /// # Errors
    /// The node's own error.
    pub async fn check_filter(&self, uid: &IndexUid, filter: &Value, trace: TraceId) -> Result<(), Failure> {
        // A task tells of an index that is not there.
        let Ok(index) = self.indexes.find(uid) else { return Ok(()) };
        let query = Original::Body(json!({ "filter": filter, "limit": 0 }).to_string().into_bytes());
        match self.searches.words(&index, &query, ReadRoute::Documents, trace).await {
            Err(Failure::Node { status: 400, body }) if !suits_no_index(&body) => {
                Err(Failure::Node { status: 400, body })
            }
            // Where no node can be asked now, the task tells.
            _ => Ok(()),
        }
    }

    /// `GET /indexes/{uid}/documents/{id}`.
    ///
    /// # Errors
    /// `document_not_found`, or as [`Self::list`].
    pub async fn document(
        &self,
        uid: &IndexUid,
        id: &str,
        fields: Option<Vec<String>>,
        vectors: bool,
        trace: TraceId,
    ) -> Result<Found, Failure> {
        let index = self.indexes.find(uid)?;
        let not_found = || Failure::new(ErrorCode::DocumentNotFound, format!("Document `{id}` not found."));
        let valid = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if !(1..=DOCUMENT_ID_MAX_BYTES).contains(&id.len()) || !id.bytes().all(valid) {
            return Err(not_found());
        }
        let mut body = Map::new();
        body.insert("ids".into(), json!([id]));
        if let Some(fields) = fields {
            body.insert("fields".into(), json!(fields));
        }
        if vectors {
            body.insert("retrieveVectors".into(), json!(true));
        }
        let body = Value::Object(body).to_string();
        let query = DocumentsQuery::from_json(body.as_bytes()).map_err(query_failed)?;
        let wanted = std::iter::once(shard_of(id, index.value.shard_count())).collect();
        let (page, missing) = self.merged(&index, &query, &wanted, trace).await?;
        if !missing.is_empty() {
            return Err(unavailable(&missing));
        }
        #[derive(Deserialize)]
        struct Page<'a> {
            #[serde(borrow)]
            results: Vec<&'a RawValue>,
        }
        let malformed =
            |reason: String| Failure::internal(format!("the node's list of documents is malformed: {reason}"));
        let page: Page<'_> = serde_json::from_slice(&page).map_err(|e| malformed(e.to_string()))?;
        let document = page.results.first().ok_or_else(not_found)?;
        let body = strip_shard(document.get().as_bytes()).map_err(|e| malformed(e.to_string()))?;
        Ok(Found { body: Bytes::from(body.into_owned()), missing })
    }

    /// How many documents an index has, counted by shard, and the shards that could not be counted.
    ///
    /// # Errors
    /// `miroir_shards_unavailable` if no shard can be counted.
    pub async fn count(&self, index: &Index, trace: TraceId) -> Result<(u64, ShardSet), Failure> {
        let query = DocumentsQuery::from_json(b"{\"limit\":0}").map_err(query_failed)?;
        let wanted = ShardSet::all(index.value.shard_count());
        let (page, missing) = match self.merged(index, &query, &wanted, trace).await {
            Ok(merged) => merged,
            // No node has made the index yet, so there are no documents either.
            Err(Failure::Node { status: 404, .. }) => return Ok((0, ShardSet::new())),
            Err(e) => return Err(e),
        };
        #[derive(Deserialize)]
        struct Page {
            total: u64,
        }
        let page: Page = serde_json::from_slice(&page).map_err(|e| Failure::internal(e.to_string()))?;
        Ok((page.total, missing))
    }
}

fn malformed(error: MergeError) -> Failure {
    Failure::internal(error.to_string())
}

/// Whether a node refuses a filter that it can read: for the index's settings, or for a place that is not on Earth.
fn suits_no_index(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Error {
        message: String,
    }
    let Ok(Error { message }) = serde_json::from_slice::<Error>(body) else { return false };
    let begins = ["Attribute `", "Bad latitude", "Bad longitude", "The top latitude", "Filter operator `"];
    begins.iter().any(|begin| message.starts_with(begin))
}
