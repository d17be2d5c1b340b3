//! How many documents each deletion finds, asked of the node before it is sent: a node counts by request, and one request carries
//! deletions of several clients and shards.
//!
//! Rule: asked only while nothing of these shards is with the node, so that every replica counts the same. Must not know: what
//! the counts are for.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::Method;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::net::node::{NodeAnswer, NodeRequest};
use crate::proto::document::{Format, IdList, Payload};
use crate::proto::journal::Kind;
use crate::proto::search;
use crate::services::local::Local;
use crate::types::{IndexRecord, PhysicalIndex, ShardId};

/// Ids of one question.
const IDS: usize = 1_000;
/// Questions about shards under way.
const AT_ONCE: usize = 8;

/// Deletions of one kind, in the order in which they are sent: each with its payload.
pub(super) type Deletions = Vec<((ShardId, u64), Bytes)>;
/// How many documents each of them finds.
pub(super) type Counts = BTreeMap<(ShardId, u64), u64>;

/// Why there are no counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Uncounted {
    /// The node can't be asked now; why, for people.
    Later(String),
    /// The node refuses the question, as it will refuse the deletion.
    Never,
}

/// Counts what these deletions will find.
///
/// Cancel-safe.
///
/// # Errors
/// [`Uncounted`].
pub(super) async fn count(
    local: &Local,
    index: &PhysicalIndex,
    kind: Kind,
    deletions: &Deletions,
) -> Result<Counts, Uncounted> {
    let Some(record) = local.record_of(index) else {
        return Err(Uncounted::Later("the index has no record here".into()));
    };
    match (&record.value.primary_key, kind) {
        // No document was ever added.
        (None, _) => Ok(deletions.iter().map(|(at, _)| (*at, 0)).collect()),
        (Some(key), Kind::Delete) => by_ids(local, &record.value, key, deletions).await,
        _ => by_filter(local, &record.value, deletions).await,
    }
}

/// What the node says; `None`: it has not got the index.
async fn ask(local: &Local, index: &PhysicalIndex, body: Vec<u8>) -> Result<Option<Bytes>, Uncounted> {
    let request = NodeRequest::json(Method::POST, format!("/indexes/{index}/documents/fetch"), body);
    match local.ask(request).await {
        Ok(NodeAnswer { status: 200, body }) => Ok(Some(body)),
        Ok(NodeAnswer { status: 404, .. }) => Ok(None),
        Ok(NodeAnswer { status: 400, .. }) => Err(Uncounted::Never),
        Ok(NodeAnswer { status, .. }) => Err(Uncounted::Later(format!("the node answered with status {status}"))),
        Err(error) => Err(Uncounted::Later(error.to_string())),
    }
}

fn unreadable(error: &dyn std::fmt::Display) -> Uncounted {
    Uncounted::Later(format!("the node's answer is not Meilisearch's: {error}"))
}

async fn by_ids(local: &Local, record: &IndexRecord, key: &str, deletions: &Deletions) -> Result<Counts, Uncounted> {
    let lists: Vec<_> = deletions
        .iter()
        .map(|(at, payload)| {
            let ids = IdList::parse(payload.clone()).map_err(|_| Uncounted::Never)?;
            Ok((*at, ids.ids().map(|id| id.into_owned()).collect::<Vec<String>>()))
        })
        .collect::<Result<_, Uncounted>>()?;
    let all: Vec<&str> =
        lists.iter().flat_map(|(_, ids)| ids).map(String::as_str).collect::<BTreeSet<_>>().into_iter().collect();
    let mut there = BTreeSet::new();
    for ids in all.chunks(IDS) {
        let body = serde_json::json!({ "ids": ids, "limit": ids.len(), "fields": [key] }).to_string();
        if let Some(found) = ask(local, &record.physical, body.into_bytes()).await? {
            there.extend(ids_in(&found, key, record.shard_count())?);
        }
    }
    // What an earlier one of the request deletes, a later one does not find.
    Ok(lists.into_iter().map(|(at, ids)| (at, ids.iter().filter(|id| there.remove(*id)).count() as u64)).collect())
}

/// The ids of documents of which only the id was asked for.
fn ids_in(answer: &[u8], key: &str, shards: u16) -> Result<BTreeSet<String>, Uncounted> {
    #[derive(Deserialize)]
    struct Found<'a> {
        #[serde(borrow)]
        results: Vec<&'a RawValue>,
    }
    let found: Found<'_> = serde_json::from_slice(answer).map_err(|e| unreadable(&e))?;
    if found.results.is_empty() {
        return Ok(BTreeSet::new());
    }
    let mut list = BytesMut::with_capacity(answer.len());
    for document in found.results {
        list.extend_from_slice(if list.is_empty() { b"[" } else { b"," });
        list.extend_from_slice(document.get().as_bytes());
    }
    list.extend_from_slice(b"]");
    let batch = Payload::parse(list.freeze(), Format::Json).and_then(|documents| documents.batch(key, shards));
    Ok(batch.map_err(|e| unreadable(&e))?.documents().map(|document| document.id.to_owned()).collect())
}

async fn by_filter(local: &Local, record: &IndexRecord, deletions: &Deletions) -> Result<Counts, Uncounted> {
    let mut seen = BTreeSet::new();
    let questions = deletions.iter().map(|((shard, seq), payload)| {
        // Behind the first, nothing is left.
        let first = seen.insert(*shard);
        async move {
            let count = if first { total(local, record, *shard, payload).await? } else { 0 };
            Ok(((*shard, *seq), count))
        }
    });
    let questions: Vec<_> = questions.collect();
    stream::iter(questions).buffer_unordered(AT_ONCE).try_collect().await
}

/// How many documents of one shard a filter finds; without one, all of them.
async fn total(local: &Local, record: &IndexRecord, shard: ShardId, payload: &[u8]) -> Result<u64, Uncounted> {
    #[derive(Deserialize)]
    struct Found {
        total: u64,
    }
    let mut body: serde_json::Map<String, serde_json::Value> = match payload {
        [] => serde_json::Map::new(),
        payload => serde_json::from_slice(payload).map_err(|_| Uncounted::Never)?,
    };
    body.insert("limit".into(), 0.into());
    let body = serde_json::Value::Object(body).to_string();
    let shards = [shard].into_iter().collect();
    let body = search::with_shard_filter(body.as_bytes(), &shards, record.shard_count());
    match ask(local, &record.physical, body).await? {
        Some(found) => Ok(serde_json::from_slice::<Found>(&found).map_err(|e| unreadable(&e))?.total),
        None => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_documents_have_them() {
        let answer = br#"{"results":[{"a":{"id":7}},{"a":{"id":"x"}}],"offset":0,"limit":2,"total":2}"#;
        assert_eq!(ids_in(answer, "a.id", 4).unwrap(), ["7".to_owned(), "x".to_owned()].into());
        assert!(ids_in(br#"{"results":[],"total":0}"#, "id", 4).unwrap().is_empty());
        assert!(matches!(ids_in(b"{}", "id", 4), Err(Uncounted::Later(_))));
        assert!(matches!(ids_in(br#"{"results":[{"b":1}]}"#, "id", 4), Err(Uncounted::Later(_))));
    }
}
