//! Requests that carry entries of journals into the node's queue, and what the node says of its tasks.
//!
//! Rule: whatever may have reached the queue is not said to be certain either way; each request carries its note's tag, by
//! which its task is found again. Must not know: which entries there are, what follows from an answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use serde::Deserialize;
use tokio::sync::watch;

use super::{Local, Slot, percent, waiting};
use crate::net::Answer as Answered;
use crate::net::node::{NodeAnswer, NodeError, NodeRequest};
use crate::proto::apply::{Answer, Flaw, TaskRef};
use crate::proto::journal::Kind;
use crate::proto::search;
use crate::services::cluster::NodeHealth;
use crate::services::health;
use crate::services::records::{Versioned, index_key, key_of};
use crate::store::StoreError;
use crate::store::local::LocalIndex;
use crate::types::{IndexRecord, PhysicalIndex, RecordKey, ShardSet};
use crate::wire::verbs::Reply;

/// How long a request may wait for its turn and for the node together.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a majority may take to say which settings an index has.
const NEWS: Duration = Duration::from_secs(1);

/// One request that enqueues.
#[derive(Debug, Clone)]
pub struct Work {
    /// What it does.
    pub kind: Kind,
    /// Documents as NDJSON, ids as a JSON array, or a JSON object with `filter` and `function` without the filter on shards;
    /// nothing where all documents are deleted.
    pub body: Bytes,
    /// The shards that it is about.
    pub shards: ShardSet,
    /// `customMetadata` of its task.
    pub tag: String,
}

/// Whether the node has lost an index that this member has made on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// No, or it could not be asked.
    Nothing,
    /// With all that it held; its record alone says how to make it again.
    Documents,
    /// The same, but only other members' nodes say which settings it had.
    Settings,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queued {
    /// What the node said.
    pub answer: Answer,
    /// Why it was not sent, or has no answer, for people.
    pub why: Option<String>,
    /// The node was asked, and could not be reached or did not answer: it may have ended.
    pub shaken: bool,
    /// What was found to be lost.
    pub loss: Loss,
    /// It was not sent because the node has yet to get settings: see [`Local::has_settings`].
    pub early: bool,
}

impl Queued {
    /// What the node, or whoever speaks for it, has said.
    pub fn said(answer: Answer) -> Self {
        Self { answer, why: None, shaken: false, loss: Loss::Nothing, early: false }
    }

    /// It certainly did not reach the node.
    pub fn not_sent(why: impl Into<String>) -> Self {
        Self { why: Some(why.into()), ..Self::said(Answer::NotSent) }
    }
}

impl Local {
    /// How the node is.
    pub fn health(&self) -> watch::Receiver<NodeHealth> {
        self.health.clone()
    }

    /// Puts one request in the node's queue, after everything that was put there before. The index is made from its record if
    /// the node has not got it. Whoever sends what names attributes has brought the record up to what that needs.
    ///
    /// Not cancel-safe: a dropped request may be in the queue.
    pub async fn queue(&self, physical: &PhysicalIndex, work: &Work) -> Queued {
        let deadline = Instant::now() + PATIENCE;
        let slot = self.slot(physical);
        let mut on_node = slot.enqueue.lock().await;
        if let Some(Answered { reply: Reply::NodeDown(why), .. }) = self.node_down() {
            return Queued::not_sent(why);
        }
        if Instant::now() >= deadline {
            return Queued::not_sent("its turn did not come in time");
        }
        let record = self.records.snapshot().index(physical).filter(|record| !record.value.deleted);
        let Some(record) = record.filter(|_| on_node.deleted.is_none()) else {
            return Queued::not_sent("the index has no record here, or was deleted");
        };
        if let Err(answer) = self.make_ready(&record.value, &slot, &mut on_node, deadline).await {
            let (why, shaken) = match answer.reply {
                Reply::NodeDown(why) => (why, false),
                Reply::NodeUnknown(why) => (why, true),
                other => (format!("{other:?}"), false),
            };
            let loss = if shaken { Loss::Nothing } else { self.loss_of(&record.value, &slot, deadline).await };
            return Queued { shaken, loss, ..Queued::not_sent(why) };
        }
        if self.misses_settings(physical) {
            let why = "the node has yet to get settings that were changed while it was away";
            return Queued { early: true, ..Queued::not_sent(why) };
        }
        if matches!(work.kind, Kind::Set { .. } | Kind::Merge { .. })
            && let Err(answer) = self.hold(physical, &slot, &work.shards).await
        {
            return Queued::not_sent(format!("{:?}", answer.reply));
        }
        let Some(request) = request_of(&record.value, work, slot.holds_only(&work.shards)) else {
            return Queued::not_sent("the index's primary key is not known here");
        };
        let queued = queued(self.send("write", request, deadline).await);
        if queued.answer == Answer::Unknown {
            // The node may have lost its memory meanwhile; look before the next one.
            on_node.ready = false;
        }
        queued
    }

    /// The node may not have the index any more: that is found out before the next request.
    pub async fn doubt_index(&self, physical: &PhysicalIndex) {
        self.slot(physical).enqueue.lock().await.ready = false;
    }

    /// What a copy that begins in a new store lacks of an index: whatever this store has made on the node was made without the
    /// settings of before, while an index that it did not make is that of the store before.
    pub async fn lack(&self, physical: &PhysicalIndex) -> Loss {
        let slot = self.slot(physical);
        let _on_node = slot.enqueue.lock().await;
        let record = self.record_of(physical).filter(|record| !record.value.deleted);
        let has_settings = record.is_some_and(|record| record.value.settings_version > 0);
        let lacks = has_settings && (slot.local().made || self.is_gone(physical, Instant::now() + PATIENCE).await);
        if lacks { Loss::Settings } else { Loss::Nothing }
    }

    /// Whether the node has lost an index.
    pub async fn loss(&self, physical: &PhysicalIndex) -> Loss {
        let slot = self.slot(physical);
        // Nothing comes to the queue meanwhile.
        let mut on_node = slot.enqueue.lock().await;
        on_node.ready = false;
        let Some(record) = self.record_of(physical) else { return Loss::Nothing };
        self.loss_of(&record.value, &slot, Instant::now() + PATIENCE).await
    }

    async fn loss_of(&self, record: &IndexRecord, slot: &Slot, deadline: Instant) -> Loss {
        if record.deleted || !slot.local().made || !self.is_gone(&record.physical, deadline).await {
            return Loss::Nothing;
        }
        if record.settings_version == 0 { Loss::Documents } else { Loss::Settings }
    }

    /// Whether the node does not have an index, nor anything in its queue for it.
    async fn is_gone(&self, physical: &PhysicalIndex, deadline: Instant) -> bool {
        #[derive(Deserialize)]
        struct Page {
            total: u64,
        }
        // What waits may be its creation, and what comes behind that.
        let ask = async |path: String| self.send("question", NodeRequest::get(path), deadline).await;
        let waits = match ask(waiting(physical)).await {
            Ok(NodeAnswer { status: 200, body }) => serde_json::from_slice::<Page>(&body).map_or(1, |page| page.total),
            _ => 1,
        };
        let index = async || ask(format!("/indexes/{physical}")).await;
        waits == 0 && matches!(index().await, Ok(NodeAnswer { status: 404, .. }))
    }

    /// The node holds no document of the index any more, and that is known where it matters.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn forget_held(&self, physical: &PhysicalIndex) -> Result<(), StoreError> {
        let slot = self.slot(physical);
        let _on_node = slot.enqueue.lock().await;
        let made = slot.local().made;
        self.holds_nothing(physical, &slot, made).await
    }

    async fn holds_nothing(&self, physical: &PhysicalIndex, slot: &Slot, made: bool) -> Result<(), StoreError> {
        let local = LocalIndex { held: ShardSet::new(), made };
        self.store.put_local_index(physical, &local).await?;
        slot.set_local(local);
        Ok(())
    }

    /// Notes that the node holds no document of an index that it has lost, so that the index is made again: from its record, or at
    /// once with `settings`, as another node gives them; these an index that is there gets as well. `Ok(None)`: there is nothing to
    /// wait for.
    ///
    /// Not cancel-safe: the request may be in the queue.
    ///
    /// # Errors
    /// What the node said, for people, or that it can't be asked, or the store's.
    pub async fn make_again(
        &self,
        physical: &PhysicalIndex,
        settings: Option<&Bytes>,
    ) -> Result<Option<TaskRef>, String> {
        let (slot, deadline) = (self.slot(physical), Instant::now() + PATIENCE);
        let mut on_node = slot.enqueue.lock().await;
        if on_node.deleted.is_some() {
            return Ok(None);
        }
        if self.is_gone(physical, deadline).await {
            self.holds_nothing(physical, &slot, true).await.map_err(|e| e.to_string())?;
            on_node.ready = false;
        }
        let Some(settings) = settings else { return Ok(None) };
        let request = NodeRequest::json(Method::PATCH, format!("/indexes/{physical}/settings"), settings.clone());
        match queued(self.send("write", request, deadline).await) {
            Queued { answer: Answer::Taken(task), .. } => Ok(Some(task)),
            Queued { answer: Answer::Refused(flaw), .. } => Err(format!("{}: {}", flaw.code, flaw.message)),
            Queued { why, .. } => Err(why.unwrap_or_default()),
        }
    }

    /// Brings the copy of an index's record up to what a majority knows; says whether one answered soon.
    ///
    /// Cancel-safe.
    pub async fn refresh(&self, physical: &PhysicalIndex) -> bool {
        self.refresh_record(&key_of(&index_key(physical))).await
    }

    /// Brings the copy of a record up to what a majority knows; says whether one answered soon.
    ///
    /// Cancel-safe.
    pub async fn refresh_record(&self, key: &RecordKey) -> bool {
        matches!(tokio::time::timeout(NEWS, self.records.refresh(key)).await, Ok(Ok(())))
    }

    /// An index's record, as it is known here.
    pub fn record_of(&self, physical: &PhysicalIndex) -> Option<Arc<Versioned<IndexRecord>>> {
        self.records.snapshot().index(physical)
    }

    /// Asks the node something that changes nothing.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn ask(&self, request: NodeRequest) -> Result<NodeAnswer, NodeError> {
        self.send("question", NodeRequest { read: true, ..request }, Instant::now() + PATIENCE).await
    }
}

/// `None`: documents can't be added before the primary key is settled.
fn request_of(record: &IndexRecord, work: &Work, all: bool) -> Option<NodeRequest> {
    let index = format!("/indexes/{}/documents", record.physical);
    let tag = format!("customMetadata={}", percent(&work.tag));
    let filtered = |body: &[u8]| search::with_shard_filter(body, &work.shards, record.shard_count());
    let post = |path: &str, body: Bytes| NodeRequest::json(Method::POST, format!("{index}/{path}?{tag}"), body);
    Some(match work.kind {
        Kind::Set { skip_creation } | Kind::Merge { skip_creation } => {
            let method = if matches!(work.kind, Kind::Merge { .. }) { Method::PUT } else { Method::POST };
            let key = percent(record.primary_key.as_ref()?);
            let skip = if skip_creation { "&skipCreation=true" } else { "" };
            let path = format!("{index}?primaryKey={key}{skip}&{tag}");
            NodeRequest {
                content_type: Some("application/x-ndjson"),
                ..NodeRequest::json(method, path, work.body.clone())
            }
        }
        Kind::Delete => post("delete-batch", work.body.clone()),
        Kind::DeleteByFilter => post("delete", filtered(&work.body).into()),
        Kind::Edit => post("edit", filtered(&work.body).into()),
        Kind::Clear if all => {
            let request = NodeRequest::get(format!("{index}?{tag}"));
            NodeRequest { method: Method::DELETE, read: false, ..request }
        }
        Kind::Clear => post("delete", filtered(b"{}").into()),
        Kind::Empty | Kind::Refusal | Kind::Home => return None,
    })
}

/// What an answer says of a request that enqueues.
pub(super) fn queued(answer: Result<NodeAnswer, NodeError>) -> Queued {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Summary {
        task_uid: u32,
        enqueued_at: String,
    }
    #[derive(Deserialize)]
    struct Error {
        code: String,
        message: String,
    }
    let unknown = |why: String, shaken| Queued { why: Some(why), shaken, ..Queued::said(Answer::Unknown) };
    let text = |a: &NodeAnswer| String::from_utf8_lossy(&a.body[..a.body.len().min(300)]).into_owned();
    match answer {
        Ok(a) if a.status == 202 => match serde_json::from_slice::<Summary>(&a.body) {
            Ok(Summary { task_uid: uid, enqueued_at }) => Queued::said(Answer::Taken(TaskRef { uid, enqueued_at })),
            Err(e) => unknown(format!("the node's answer is not Meilisearch's: {e}"), false),
        },
        Ok(a) if matches!(a.status, 401 | 403) => Queued::not_sent(health::WRONG_KEY),
        Ok(a) if (400..500).contains(&a.status) => match serde_json::from_slice::<Error>(&a.body) {
            Ok(Error { code, message }) => Queued::said(Answer::Refused(Flaw::new(&code, &message))),
            Err(_) => {
                let flaw = Flaw::new("unreadable_answer", &format!("status {}: {}", a.status, text(&a)));
                Queued::said(Answer::Refused(flaw))
            }
        },
        // The node failed inside; whether it had enqueued before is not known.
        Ok(a) => unknown(format!("the node answered with status {}: {}", a.status, text(&a)), false),
        Err(NodeError::Down(why)) => Queued { shaken: true, ..Queued::not_sent(why) },
        Err(NodeError::Unknown(why)) => unknown(why, true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ShardId, ShardRecord};

    fn record() -> IndexRecord {
        let uid = crate::types::IndexUid::new("movies").unwrap();
        let time = "2024-01-01T00:00:00Z".to_owned();
        IndexRecord {
            uid,
            physical: PhysicalIndex::new("movies__m00000001").unwrap(),
            primary_key: Some("a.id".into()),
            settings_version: 0,
            client_settings: Default::default(),
            missed_settings: Default::default(),
            caught_up: Default::default(),
            shards: vec![ShardRecord::default(); 4],
            created_at: time.clone(),
            updated_at: time,
            deleted: false,
        }
    }

    fn work(kind: Kind, body: &'static str) -> Work {
        let shards = [ShardId(0), ShardId(2)].into_iter().collect();
        Work { kind, body: Bytes::from(body), shards, tag: "ab:7".into() }
    }

    fn seen(work: &Work, all: bool) -> (String, String, String) {
        let request = request_of(&record(), work, all).unwrap();
        assert!(!request.read);
        let path = request.path.strip_prefix("/indexes/movies__m00000001/documents").unwrap().to_owned();
        (request.method.to_string(), path, String::from_utf8(request.body.to_vec()).unwrap())
    }

    #[test]
    fn every_kind_goes_to_its_route_with_its_tag() {
        let set = work(Kind::Set { skip_creation: false }, "{}");
        assert_eq!(seen(&set, false), ("POST".into(), "?primaryKey=a.id&customMetadata=ab%3A7".into(), "{}".into()));
        let merge = work(Kind::Merge { skip_creation: true }, "{}");
        let path = "?primaryKey=a.id&skipCreation=true&customMetadata=ab%3A7";
        assert_eq!(seen(&merge, true), ("PUT".into(), path.into(), "{}".into()));
        let filter = "_miroir_shard IN [\\\"\u{a000}\\\",\\\"\u{a002}\\\"]";
        let by_filter = work(Kind::DeleteByFilter, r#"{"filter":["a = 1"]}"#);
        let body = format!(r#"{{"filter":["a = 1","{filter}"]}}"#);
        assert_eq!(seen(&by_filter, true), ("POST".into(), "/delete?customMetadata=ab%3A7".into(), body));
        let clear = work(Kind::Clear, "");
        let body = format!(r#"{{"filter":"{filter}"}}"#);
        assert_eq!(seen(&clear, false), ("POST".into(), "/delete?customMetadata=ab%3A7".into(), body));
        assert_eq!(seen(&clear, true), ("DELETE".into(), "?customMetadata=ab%3A7".into(), String::new()));
        let none = IndexRecord { primary_key: None, ..record() };
        assert!(request_of(&none, &set, false).is_none() && request_of(&none, &clear, false).is_some());
    }

    #[test]
    fn only_what_certainly_did_nothing_is_said_to_have_done_nothing() {
        let answer = |status, body: &'static str| queued(Ok(NodeAnswer { status, body: Bytes::from(body) })).answer;
        let taken = answer(202, r#"{"taskUid":3,"enqueuedAt":"t"}"#);
        assert_eq!(taken, Answer::Taken(TaskRef { uid: 3, enqueued_at: "t".into() }));
        assert_eq!(answer(202, "{}"), Answer::Unknown);
        assert_eq!(answer(500, "{}"), Answer::Unknown);
        assert_eq!(answer(403, "{}"), Answer::NotSent);
        assert_eq!(answer(400, r#"{"code":"c","message":"m"}"#), Answer::Refused(Flaw::new("c", "m")));
        assert!(matches!(answer(413, "<html>"), Answer::Refused(_)));
        let down = queued(Err(NodeError::Down("x".into())));
        assert_eq!((down.answer, down.shaken), (Answer::NotSent, true));
        assert_eq!(queued(Err(NodeError::Unknown("x".into()))).answer, Answer::Unknown);
    }
}
