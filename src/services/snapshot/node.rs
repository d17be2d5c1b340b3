//! Ids and documents of the own node.
//!
//! Rule: all ids are of one read of the node. Must not know: for whom they are read.

use std::collections::BTreeSet;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::Method;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::net::node::{NodeAnswer, NodeRequest};
use crate::proto::search;
use crate::proto::snapshot::Sum;
use crate::services::apply::{fetch, ids_in};
use crate::services::local::Local;
use crate::types::{JournalKey, ShardSet};

/// Documents of one question, where what they say is compared.
const COMPARED: usize = 200;
/// Documents of one question to which the answer would be larger are asked for in parts.
const ANSWER: usize = 32 << 20;

/// The primary key of an index, and how many shards it has.
fn shape(local: &Local, key: &JournalKey) -> Option<(Option<String>, u16)> {
    let record = local.record_of(&key.index)?;
    Some((record.value.primary_key.clone(), record.value.shard_count()))
}

/// All ids of a shard; `None`: they can't be had now.
///
/// Cancel-safe.
pub(super) async fn ids(local: &Local, key: &JournalKey) -> Option<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Found<'a> {
        #[serde(borrow)]
        results: Vec<&'a RawValue>,
        total: usize,
    }
    let (primary_key, shards) = shape(local, key)?;
    // Before it is settled there are no documents.
    let Some(primary_key) = primary_key else { return Some(BTreeSet::new()) };
    let body = serde_json::json!({ "fields": [primary_key], "limit": u32::MAX }).to_string();
    let own: ShardSet = [key.shard].into_iter().collect();
    let body = search::with_shard_filter(body.as_bytes(), &own, shards);
    let request = NodeRequest::json(Method::POST, format!("/indexes/{}/documents/fetch", key.index), body);
    let Ok(NodeAnswer { status: 200, body }) = local.ask(request).await else { return None };
    let read = move || {
        let found: Found<'_> = serde_json::from_slice(&body).ok()?;
        let mut lines = BytesMut::with_capacity(body.len());
        for document in &found.results {
            lines.extend(document.get().bytes().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }));
            lines.extend_from_slice(b"\n");
        }
        let ids = ids_in(&lines, &primary_key, shards)?;
        (ids.len() == found.total && found.results.len() == found.total).then_some(ids)
    };
    tokio::task::spawn_blocking(read).await.ok().flatten()
}

/// The documents of the first of these ids, as many as fit one answer: how many ids were looked for, and what was found as NDJSON.
///
/// Cancel-safe.
pub(super) async fn documents(local: &Local, key: &JournalKey, ids: &[String]) -> Option<(usize, Bytes)> {
    let mut count = ids.len();
    loop {
        match fetch(local, &key.index, &ids[..count], true).await {
            Some(found) if found.len() > ANSWER && count > 1 => {}
            Some(found) => return Some((count, found)),
            // It may have been too much.
            None if count > 1 => {}
            None => return None,
        }
        count = count.div_ceil(4);
    }
}

/// What a shard holds; what its documents say only if there are no more than `most` of them and it can be read before `end`.
///
/// Cancel-safe.
pub(super) async fn sum(local: &Local, key: &JournalKey, at: u64, most: usize, end: Instant) -> Option<Sum> {
    let ids: Vec<String> = ids(local, key).await?.into_iter().collect();
    let mut sum = Sum { at, ..Sum::default() };
    ids.iter().for_each(|id| sum.add_id(id));
    if ids.len() > most {
        return Some(sum);
    }
    let mut said = Sum { documents: Some([0; 2]), ..sum };
    for some in ids.chunks(COMPARED) {
        if Instant::now() >= end {
            return Some(sum);
        }
        let found = fetch(local, &key.index, some, false).await?;
        let add = move || {
            let mut lines = found.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            let (mut said, mut count) = (said, 0);
            let all = lines.all(|line| {
                count += 1;
                said.add_document(line)
            });
            all.then_some((said, count))
        };
        let (added, count) = tokio::task::spawn_blocking(add).await.ok().flatten()?;
        if count != some.len() {
            // Something is changed meanwhile.
            return None;
        }
        said = added;
    }
    Some(said)
}
