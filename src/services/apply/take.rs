//! Documents of single entries, taken from the shard's primary: the own node made something else of them.
//!
//! Rule: documents are given only as they are behind the entries that are asked for, with nothing behind them that could not be
//! done again; where that can't be had, the copy is made anew. Must not know: why the nodes differ.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::Method;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::driver::Common;
use super::handle::ApplyHandle;
use super::{node, request};
use crate::net::node::{NodeAnswer, NodeRequest};
use crate::net::{Answer, Call};
use crate::proto::apply::effect::Need;
use crate::proto::apply::{self, Status, TaskRef};
use crate::proto::document::{Format, IdList, Payload, strip_shard_into};
use crate::proto::journal::{Entry, Kind};
use crate::services::local::{Local, Loss, Work};
use crate::store::StoreError;
use crate::types::{JournalKey, PhysicalIndex, TraceId};
use crate::wire::verbs::{DocumentsOf, Refusal, Reply, Request};

/// How long the primary may take for the documents of one entry.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it is tried for the documents of one entry: nothing else of the index is sent to the node meanwhile.
const GIVE_UP: Duration = Duration::from_secs(60);
/// Between two attempts, at first; it doubles.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// The longest such time.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Between two looks whether the node has done it.
const LOOK: Duration = Duration::from_millis(50);
/// Ids of one question to the node.
const IDS: usize = 1_000;

/// What came of one attempt.
enum Tried<T> {
    Done(T),
    Later,
    /// Nobody can be asked, or the own node is away, so that nothing else is kept waiting: this time does not count.
    Away,
    Never,
}

/// Makes the documents of these entries as they are at the primary; gives the last task that wrote them, which has ended. `None`:
/// they can't be had.
///
/// Cancel-safe in the sense that nothing more is sent; what is in the node's queue is done.
pub(super) async fn take(common: Arc<Common>, key: JournalKey, seqs: BTreeSet<u64>) -> Option<TaskRef> {
    let first = *seqs.first()?;
    let mut last = None;
    for seq in seqs {
        let Some(task) = insist(GIVE_UP, || take_one(&common, &key, seq, first)).await else {
            tracing::warn!(%key, seq, "the documents of an entry can't be had from the shard's primary");
            return None;
        };
        last = Some(task);
    }
    last
}

/// Tries until it is done, or can't be, or `patience` is over.
async fn insist<T, F: Future<Output = Tried<T>>>(patience: Duration, attempt: impl Fn() -> F) -> Option<T> {
    let (mut began, mut pause) = (Instant::now(), PAUSE_MIN);
    loop {
        match attempt().await {
            Tried::Done(done) => return Some(done),
            Tried::Never => return None,
            Tried::Later if began.elapsed() >= patience => return None,
            Tried::Later => {}
            Tried::Away => began = Instant::now(),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn take_one(common: &Common, key: &JournalKey, seq: u64, first: u64) -> Tried<TaskRef> {
    let record = common.journals.record(&key.index);
    let state = record.as_ref().and_then(|record| record.shard(key.shard));
    let Some(primary) = state.and_then(|state| state.primary.as_ref()).map(|primary| primary.member.clone()) else {
        return Tried::Away;
    };
    if primary == common.journals.me().member {
        // Nobody's word counts more than the own node's now.
        return Tried::Never;
    }
    let of = DocumentsOf { index: key.index.clone(), shard: key.shard, seq, first };
    let (request, deadline) = (Request::Documents(of), Instant::now() + PATIENCE);
    let call = Call { request, body: Bytes::new(), deadline, trace: TraceId::default() };
    let (documents, missing) = match common.peers.call(&primary, call).await {
        Ok(Answer { reply: Reply::Documents(missing), body }) => (body, missing),
        Ok(Answer { reply: Reply::NoDocuments(false), .. }) => return Tried::Never,
        _ => return Tried::Later,
    };
    let Ok(missing) = serde_json::to_vec(&missing) else { return Tried::Never };
    // The deletion comes last, also if it is of nothing: by its task one sees that all is done.
    let set = (!documents.is_empty()).then_some((Kind::Set { skip_creation: false }, documents));
    let mut last = Tried::Never;
    for (kind, body) in set.into_iter().chain([(Kind::Delete, Bytes::from(missing))]) {
        let (shards, tag) = ([key.shard].into_iter().collect(), node::other_tag(&common.journals.me().store));
        let queued = common.local.queue(&key.index, &Work { kind, body, shards, tag }).await;
        let task = match queued.answer {
            apply::Answer::Taken(task) => task,
            apply::Answer::Refused(_) => return Tried::Never,
            // The node has lost what the documents were to be beside.
            apply::Answer::NotSent if queued.loss != Loss::Nothing => return Tried::Never,
            apply::Answer::NotSent => return Tried::Away,
            apply::Answer::Unknown => return Tried::Later,
        };
        last = match ended(&common.local, &task).await {
            Some(Status::Succeeded) => Tried::Done(task),
            Some(_) => return Tried::Never,
            None => return Tried::Later,
        };
    }
    last
}

/// Waits until the node has ended a task; `None`: it does not know it any more.
///
/// Cancel-safe.
pub(in crate::services) async fn ended(local: &Local, task: &TaskRef) -> Option<Status> {
    loop {
        match node::status_of(local, task).await {
            Some(None) => return None,
            Some(Some(Status::Waiting)) | None => {}
            Some(Some(status)) => return Some(status),
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl ApplyHandle {
    /// The documents that an entry names, as the own node has them, for a peer whose node made something else of it.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn documents(&self, of: &DocumentsOf) -> Result<Answer, Refusal> {
        let key = JournalKey { index: of.index.clone(), shard: of.shard };
        let found = match self.documents_of(&key, of).await {
            Err(StoreError::Damaged { journal, reason }) => {
                self.journals.repair(&journal, reason).await;
                Tried::Later
            }
            found => found.map_err(|error| Refusal::Other(error.to_string()))?,
        };
        match found {
            Tried::Done((body, missing)) => Ok(Answer { reply: Reply::Documents(missing), body }),
            Tried::Later | Tried::Away => Ok(Answer::of(Reply::NoDocuments(true))),
            Tried::Never => Ok(Answer::of(Reply::NoDocuments(false))),
        }
    }

    async fn documents_of(
        &self,
        key: &JournalKey,
        of: &DocumentsOf,
    ) -> Result<Tried<(Bytes, Vec<String>)>, StoreError> {
        if !self.is_primary(key) {
            return Ok(Tried::Later);
        }
        match self.is_repeatable(key, of).await? {
            Tried::Done(()) => {}
            Tried::Later | Tried::Away => return Ok(Tried::Later),
            Tried::Never => return Ok(Tried::Never),
        }
        let Some(entry) = self.store.load(key, of.seq, 1, 0).await?.pop() else { return Ok(Tried::Never) };
        let record = self.local.record_of(&key.index);
        let Some((primary_key, shards)) =
            record.and_then(|r| Some((r.value.primary_key.clone()?, r.value.shard_count())))
        else {
            return Ok(Tried::Later);
        };
        let ids = tokio::task::spawn_blocking({
            let primary_key = primary_key.clone();
            move || ids_of(&entry, &primary_key, shards)
        });
        let Ok(Some(ids)) = ids.await else { return Ok(Tried::Never) };
        let (mut body, mut missing) = (BytesMut::new(), ids.clone());
        let ids: Vec<String> = ids.into_iter().collect();
        for some in ids.chunks(IDS) {
            let Some(found) = fetch(&self.local, &key.index, some, true).await else { return Ok(Tried::Later) };
            body.extend_from_slice(&found);
            let Some(found) = ids_in(&found, &primary_key, shards) else { return Ok(Tried::Never) };
            missing.retain(|id| !found.contains(id));
        }
        // A conditional entry is noted before it is sent: if none is now, the documents were read before it.
        Ok(match self.is_repeatable(key, of).await? {
            Tried::Done(()) => Tried::Done((body.freeze(), missing.into_iter().collect())),
            Tried::Later | Tried::Away => Tried::Later,
            Tried::Never => Tried::Never,
        })
    }

    /// Whether the entry is applied, and nothing behind the first that can't be done again.
    async fn is_repeatable(&self, key: &JournalKey, of: &DocumentsOf) -> Result<Tried<()>, StoreError> {
        let Some(lane) = self.store.lane(key).await? else { return Ok(Tried::Later) };
        Ok(if lane.conditional > of.first {
            Tried::Never
        } else if lane.applied < of.seq || lane.need != Need::Nothing {
            Tried::Later
        } else {
            Tried::Done(())
        })
    }
}

/// Documents with these ids as NDJSON, if they are to go elsewhere with their vectors as the node has them, so that nothing is
/// embedded again there; those that are not there are left out. `None`: they can't be had now.
///
/// Cancel-safe.
pub(in crate::services) async fn fetch(
    local: &Local,
    index: &PhysicalIndex,
    ids: &[String],
    vectors: bool,
) -> Option<Bytes> {
    #[derive(Deserialize)]
    struct Found<'a> {
        #[serde(borrow)]
        results: Vec<&'a RawValue>,
    }
    let body = serde_json::json!({ "ids": ids, "limit": ids.len(), "retrieveVectors": vectors }).to_string();
    let request = NodeRequest::json(Method::POST, format!("/indexes/{index}/documents/fetch"), body);
    let Ok(NodeAnswer { status: 200, body }) = local.ask(request).await else { return None };
    let found: Found<'_> = serde_json::from_slice(&body).ok()?;
    let mut lines = BytesMut::with_capacity(body.len());
    for document in found.results {
        // A line break inside would end the line.
        lines.extend(document.get().bytes().map(|byte| if byte == b'\n' || byte == b'\r' { b' ' } else { byte }));
        lines.extend_from_slice(b"\n");
    }
    Some(lines.freeze())
}

/// The ids that an entry names; `None`: it is about others as well.
fn ids_of(entry: &Entry, primary_key: &str, shards: u16) -> Option<BTreeSet<String>> {
    let payload = request::payload(entry).ok()?;
    match entry.kind {
        Kind::Set { .. } | Kind::Merge { .. } => ids_in(payload, primary_key, shards),
        Kind::Delete => {
            let ids = IdList::parse(Bytes::copy_from_slice(payload)).ok()?;
            Some(ids.ids().map(|id| id.into_owned()).collect())
        }
        _ => None,
    }
}

/// The ids of documents as a node has them, one a line.
pub(in crate::services) fn ids_in(lines: &[u8], primary_key: &str, shards: u16) -> Option<BTreeSet<String>> {
    let mut plain = Vec::with_capacity(lines.len());
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
        strip_shard_into(line, &mut plain).ok()?;
        plain.push(b'\n');
    }
    if plain.is_empty() {
        return Some(BTreeSet::new());
    }
    let batch = Payload::parse(plain.into(), Format::Ndjson).ok()?.batch(primary_key, shards).ok()?;
    Some(batch.documents().map(|document| document.id.to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::tasks::home::body;
    use crate::types::{Epoch, Position, TaskPart, TaskUid};

    fn ids(kind: Kind, payload: &str) -> Option<Vec<String>> {
        let (part, at) = (Some(TaskPart { task: TaskUid(1), part: 0 }), Position { epoch: Epoch::ZERO, seq: 1 });
        let entry = Entry { at, part, kind, body: body::join(b"{}", payload.as_bytes()).unwrap() };
        ids_of(&entry, "a.id", 4).map(|ids| ids.into_iter().collect())
    }

    #[tokio::test]
    async fn a_primary_that_never_gives_documents_is_not_asked_for_ever() {
        let tried = std::cell::Cell::new(0);
        let attempt = || {
            tried.set(tried.get() + 1);
            std::future::ready(if tried.get() == 9 { Tried::Done(()) } else { Tried::Later })
        };
        let patience = Duration::from_millis(300);
        let end = tokio::time::timeout(Duration::from_secs(5), insist(patience, attempt)).await;
        assert_eq!((end, tried.get()), (Ok(None), 3), "after 0, 200 and 600 ms");
        tried.set(0);
        let attempt = || {
            tried.set(tried.get() + 1);
            std::future::ready(if tried.get() == 3 { Tried::Done(()) } else { Tried::Away })
        };
        let end = tokio::time::timeout(Duration::from_secs(5), insist(patience, attempt)).await;
        assert_eq!(end, Ok(Some(())), "while nobody can be asked nothing is given up");
        assert_eq!(insist(patience, || std::future::ready(Tried::Done(7))).await, Some(7));
        assert_eq!(insist(patience, || std::future::ready(Tried::<()>::Never)).await, None);
    }

    #[test]
    fn ids_are_found_where_an_entry_names_them() {
        let lines =
            "{\"_miroir_shard\":\"\u{a001}\",\"a\":{\"id\":7}}\n{\"_miroir_shard\":\"\u{a001}\",\"a.id\":\"x\"}\n";
        let set = Kind::Set { skip_creation: false };
        assert_eq!(ids(set, lines).unwrap(), ["7", "x"]);
        assert_eq!(ids(set, "").unwrap(), Vec::<String>::new());
        assert_eq!(ids(set, "[1]"), None);
        assert_eq!(ids(Kind::Delete, r#"["7",8]"#).unwrap(), ["7", "8"]);
        assert_eq!(ids(Kind::Clear, ""), None);
        assert_eq!(ids(Kind::DeleteByFilter, r#"{"filter":"a = 1"}"#), None);
    }
}
