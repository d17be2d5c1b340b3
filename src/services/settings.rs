//! Settings: checked and widened for the nodes, sent to all of them, read back from one and narrowed for the client.
//!
//! Members that are away get them when they are back (`proto::missed`). Rule: who is to get a change later is in the index's
//! record before anybody else has it, or, who went away meanwhile, before the change's task has ended. Must not know: HTTP, which
//! settings mean what (`proto::settings`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Map, Value};

use super::cluster::Cluster;
use super::documents::reserved;
use super::failure::Failure;
use super::indexes::{Index, Indexes};
use super::stats::Nodes;
use super::writes::{Followed, Order, Taken, Writes};
use crate::proto::tasks::Subject;
use crate::proto::tasks::view::Summary;
use crate::proto::{missed, settings};
use crate::types::TraceId;
use crate::types::{ErrorCode, IndexRecord, IndexUid, MemberId, TaskUid};
use crate::wire::verbs::{NodeQuestion, WriteKind};

/// How long the nodes may take to enqueue a change.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two attempts to have it in the record who misses a change; doubles up to the longest.
const AGAIN: Duration = Duration::from_millis(500);
const AGAIN_MAX: Duration = Duration::from_secs(10);

/// The service; cheap to clone.
#[derive(Debug, Clone)]
pub struct Settings {
    cluster: Cluster,
    indexes: Indexes,
    writes: Writes,
    nodes: Nodes,
}

impl Settings {
    /// The service over its parts.
    pub fn new(cluster: Cluster, indexes: Indexes, writes: Writes, nodes: Nodes) -> Self {
        Self { cluster, indexes, writes, nodes }
    }

    /// All settings as the client sees them.
    ///
    /// # Errors
    /// `index_not_found`, or `miroir_shards_unavailable` if no node can be asked.
    pub async fn get(&self, uid: &IndexUid, trace: TraceId) -> Result<Map<String, Value>, Failure> {
        let index = self.indexes.find(uid)?;
        let question = NodeQuestion::Settings(index.value.physical.clone());
        let body = self.nodes.ask_any(&index, question, trace).await?;
        let mut map: Map<String, Value> = serde_json::from_slice(&body)
            .map_err(|e| Failure::internal(format!("the node's settings are not Meilisearch's: {e}")))?;
        settings::to_client(&mut map, &index.value.client_settings);
        Ok(map)
    }

    /// Changes settings; an index that is not there is made.
    ///
    /// # Errors
    /// `miroir_reserved_field`, the node's own error, or as for every write.
    pub async fn patch(&self, uid: &IndexUid, patch: Map<String, Value>, trace: TraceId) -> Result<Summary, Failure> {
        // Refused before an index is made for it.
        settings::to_node(&patch, &Default::default(), 1).map_err(|e| reserved(&e.setting))?;
        self.writes.in_service(self.cluster.topology().holders())?;
        let index = self.indexes.find_or_create(uid, None, trace).await?.0;
        self.patch_index(&index, patch, trace).await
    }

    async fn patch_index(&self, index: &Index, patch: Map<String, Value>, trace: TraceId) -> Result<Summary, Failure> {
        let record = &index.value;
        let (node_patch, _) = settings::to_node(&patch, &record.client_settings, record.shard_count())
            .map_err(|e| reserved(&e.setting))?;
        let body = Value::Object(node_patch).to_string();
        let here = self.who_takes_part(index, body.len())?;
        let away: BTreeSet<MemberId> =
            self.cluster.topology().holders().filter(|m| !here.contains(m)).cloned().collect();
        let sent = Bytes::from(body.clone());
        let order = |m| Order { body: sent.clone(), ..Order::without_body(m, WriteKind::Settings) };
        let orders: Vec<Order> = here.into_iter().map(order).collect();
        let subject = Subject::Settings(details(&patch).to_string());
        self.writes.require_ready(index, subject.kind(), &orders)?;
        let task = self.writes.begin(&record.uid, subject, trace).await?;
        let change = Change { settings: self.clone(), index: Arc::clone(index), task: task.uid(), body, trace };
        if !away.is_empty()
            && let Err(failure) = change.is_missed_by(&away).await
        {
            self.writes.failed(task, &failure);
            return Err(failure);
        }
        let taken = match self.writes.take(index, task, orders, Instant::now() + PATIENCE, trace).await {
            Ok(taken) => taken,
            Err(failure) => return Err(change.given_up(failure, !away.is_empty()).await),
        };
        // Only what every node that is there has taken becomes the client's view.
        let kept = change.update(|r| {
            // Against what stands now: another change may have come in between.
            r.client_settings =
                settings::to_node(&patch, &r.client_settings, r.shard_count()).map_err(|e| reserved(&e.setting))?.1;
            r.settings_version += 1;
            change.miss(r, &taken.away);
            Ok(())
        });
        let (kept, summary) = (kept.await, taken.summary());
        let task = change.task;
        tokio::spawn(change.follow(taken, kept.is_ok()));
        match kept {
            Ok(_) => Ok(summary),
            Err(_) => {
                Err(Failure::Mesh { code: ErrorCode::MiroirWriteUnknown, message: NOT_KEPT.into(), task: Some(task) })
            }
        }
    }

    /// Who is to take a change of so many bytes now: all that are there, but those that have yet to get an earlier one.
    fn who_takes_part(&self, index: &Index, bytes: usize) -> Result<Vec<MemberId>, Failure> {
        let (topology, record) = (self.cluster.topology(), &index.value);
        let up_to_date = || topology.holders().filter(|m| !record.misses_settings(m));
        if !missed::has_room(record, bytes) {
            // What can't be kept for those who are away is not begun without them.
            self.writes.require_serving(topology.holders())?;
        }
        let here = self.writes.in_service(up_to_date())?;
        if here.is_empty() {
            let message =
                "Every member has yet to get earlier settings of this index. Nothing was done; send the request again.";
            return Err(Failure::new(ErrorCode::MiroirNoQuorum, message));
        }
        Ok(here)
    }

    /// Puts all settings back to their defaults.
    ///
    /// # Errors
    /// As for every write.
    pub async fn reset(&self, uid: &IndexUid, trace: TraceId) -> Result<Summary, Failure> {
        self.reset_some(uid, settings::reset_all(), trace).await
    }

    /// Puts some settings back to their defaults: every value of `patch` is null.
    ///
    /// # Errors
    /// As for every write.
    pub async fn reset_some(
        &self,
        uid: &IndexUid,
        patch: Map<String, Value>,
        trace: TraceId,
    ) -> Result<Summary, Failure> {
        match self.indexes.find_for_write(uid)? {
            Some(index) => self.patch_index(&index, patch, trace).await,
            None => self.indexes.missing(uid, Subject::Settings(details(&patch).to_string()), None, trace).await,
        }
    }
}

const NOT_KEPT: &str = "The nodes have taken the settings, but the mesh's own record of them could not be changed; send the same \
                        settings again.";

/// A change of settings on its way.
struct Change {
    settings: Settings,
    index: Index,
    task: TaskUid,
    /// What the nodes are told.
    body: String,
    trace: TraceId,
}

impl Change {
    async fn update(&self, edit: impl Fn(&mut IndexRecord) -> Result<(), Failure>) -> Result<Index, Failure> {
        self.settings.indexes.update(&self.index.value.physical, self.trace, edit).await
    }

    fn miss(&self, record: &mut IndexRecord, members: &BTreeSet<MemberId>) {
        let holders = self.settings.cluster.topology().holders().cloned().collect();
        // Nobody gets settings of an index that is gone.
        if !record.deleted {
            missed::add(record, self.task, members, &self.body, &holders);
        }
    }

    /// These members are to get it later.
    async fn is_missed_by(&self, members: &BTreeSet<MemberId>) -> Result<Index, Failure> {
        self.update(|record| {
            self.miss(record, members);
            Ok(())
        })
        .await
    }

    /// Nobody is to get it any more.
    async fn is_void(&self) -> Result<Index, Failure> {
        self.update(|record| {
            missed::withdraw(record, self.task);
            Ok(())
        })
        .await
    }

    /// It was not taken: what the client hears.
    async fn given_up(self, failure: Failure, noted: bool) -> Failure {
        let nothing = !matches!(failure, Failure::Mesh { code: ErrorCode::MiroirWriteUnknown, .. });
        if !(noted && nothing) || self.is_void().await.is_ok() {
            return failure;
        }
        let message = "No node has taken the settings, but members that are away may get them when they are back; send the same \
                       settings again.";
        Failure::Mesh { code: ErrorCode::MiroirWriteUnknown, message: message.into(), task: Some(self.task) }
    }

    /// Brings the task to its end.
    async fn follow(self, taken: Taken, kept: bool) {
        let writes = &self.settings.writes;
        let mut pause = AGAIN;
        loop {
            // Who is away is looked at each time: one that is back has a later change already, and must not get this one behind it.
            let followed = writes.follow(&taken).await;
            match self.note(&followed).await {
                Ok(()) if kept => return writes.end(taken, followed).await,
                Ok(()) => return writes.incomplete(taken, NOT_KEPT),
                // It will never have room, or there is nothing to note it in.
                Err(Failure::Mesh { code: ErrorCode::PayloadTooLarge | ErrorCode::IndexNotFound, message, .. }) => {
                    return writes.incomplete(taken, &message);
                }
                Err(_) => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(AGAIN_MAX);
        }
    }

    /// Puts into the record what is known only now.
    async fn note(&self, followed: &Followed) -> Result<(), Failure> {
        if followed.came_to_nothing() {
            self.is_void().await?;
        } else if !followed.away.is_empty() {
            self.is_missed_by(&followed.away).await?;
        }
        Ok(())
    }
}

/// The keys of a settings task, in the order in which a node shows them.
const SHOWN: [&str; 22] = [
    "displayedAttributes",
    "searchableAttributes",
    "filterableAttributes",
    "sortableAttributes",
    "foreignKeys",
    "rankingRules",
    "stopWords",
    "nonSeparatorTokens",
    "separatorTokens",
    "dictionary",
    "synonyms",
    "distinctAttribute",
    "proximityPrecision",
    "typoTolerance",
    "faceting",
    "pagination",
    "embedders",
    "searchCutoffMs",
    "localizedAttributes",
    "facetSearch",
    "prefixSearch",
    "chat",
];
/// Lists that a node keeps as sets: each value once, in order.
const SETS: [&str; 7] = [
    "sortableAttributes",
    "stopWords",
    "nonSeparatorTokens",
    "separatorTokens",
    "dictionary",
    "disableOnWords",
    "disableOnAttributes",
];

/// What the task shows of a change: the client's own values as a node words them, secrets masked as a node masks them.
fn details(patch: &Map<String, Value>) -> Value {
    // A reset of everything names also the settings that are behind features.
    let all = patch.len() == settings::SUB_ROUTES.len() && patch.values().all(Value::is_null);
    let mut shown = Map::new();
    for key in SHOWN {
        let Some(value) = patch.get(key).cloned().or_else(|| all.then_some(Value::Null)) else { continue };
        let value = match (key, value) {
            ("displayedAttributes" | "searchableAttributes", Value::Null) => serde_json::json!(["*"]),
            ("typoTolerance", Value::Object(map)) => {
                map.into_iter().map(|(k, v)| (k.clone(), as_set(&k, v))).collect::<Map<_, _>>().into()
            }
            ("filterableAttributes", Value::Array(list)) => list.into_iter().map(with_features).collect(),
            ("localizedAttributes", Value::Array(list)) => list.into_iter().map(patterns_first).collect(),
            (_, value) => as_set(key, value),
        };
        shown.insert(key.to_owned(), value);
    }
    let embedders = shown.get_mut("embedders").and_then(Value::as_object_mut);
    for embedder in embedders.into_iter().flat_map(|m| m.values_mut()) {
        if let Some(Value::String(key)) = embedder.get_mut("apiKey") {
            *key = masked(key);
        }
    }
    Value::Object(shown)
}

/// An entry of `filterableAttributes` with the features that a node gives patterns by default.
fn with_features(entry: Value) -> Value {
    let Value::Object(mut map) = entry else { return entry };
    let mut features = map.shift_remove("features").unwrap_or(Value::Null);
    let own = |features: &mut Value, name: &str| features.as_object_mut().and_then(|f| f.shift_remove(name));
    let facet_search = own(&mut features, "facetSearch").unwrap_or_else(|| false.into());
    let mut filter = own(&mut features, "filter").unwrap_or(Value::Null);
    let equality = own(&mut filter, "equality").unwrap_or_else(|| true.into());
    let comparison = own(&mut filter, "comparison").unwrap_or_else(|| false.into());
    let features =
        serde_json::json!({"facetSearch": facet_search, "filter": {"equality": equality, "comparison": comparison}});
    map.insert("features".into(), features);
    patterns_first(Value::Object(map))
}

/// The keys of one entry of `localizedAttributes` in a node's order.
fn patterns_first(entry: Value) -> Value {
    let Value::Object(mut map) = entry else { return entry };
    let patterns = map.shift_remove("attributePatterns").map(|v| ("attributePatterns".to_owned(), v));
    patterns.into_iter().chain(map).collect::<Map<_, _>>().into()
}

fn as_set(key: &str, value: Value) -> Value {
    match value {
        Value::Array(list) if SETS.contains(&key) && list.iter().all(Value::is_string) => {
            let set: std::collections::BTreeSet<String> =
                list.into_iter().filter_map(|v| v.as_str().map(str::to_owned)).collect();
            serde_json::json!(set)
        }
        value => value,
    }
}

/// Meilisearch's mask: the longer the secret, the more of its beginning is shown.
fn masked(secret: &str) -> String {
    let (shown, mask) = match secret.chars().count() {
        0..10 => (0, "XXX..."),
        10..20 => (2, "XXXX..."),
        20..30 => (3, "XXXXX..."),
        _ => (5, "XXXXXX..."),
    };
    secret.chars().take(shown).chain(mask.chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_shows_no_secret() {
        let key = "sk-0123456789abcdefghijklmnopqrstuvwxyz";
        let patch = serde_json::json!({"embedders": {"e": {"apiKey": key, "source": "openAi"}, "f": null}});
        let shown = details(patch.as_object().unwrap()).to_string();
        assert!(!shown.contains(key) && shown.contains("sk-01XXXXXX..."), "{shown}");
        assert_eq!(masked("short"), "XXX...");
    }

    #[test]
    fn a_task_shows_settings_as_a_node_does() {
        let patch = serde_json::json!({"stopWords": ["the", "a", "the"], "searchableAttributes": null, "rankingRules": ["b", "a"]});
        let shown = details(patch.as_object().unwrap());
        assert_eq!(
            shown.to_string(),
            r#"{"searchableAttributes":["*"],"rankingRules":["b","a"],"stopWords":["a","the"]}"#
        );
        let patterns = serde_json::json!({"filterableAttributes": ["a", {"features": {"facetSearch": true}, "attributePatterns": ["x"]}]});
        assert_eq!(
            details(patterns.as_object().unwrap()).to_string(),
            r#"{"filterableAttributes":["a",{"attributePatterns":["x"],"features":{"facetSearch":true,"filter":{"equality":true,"comparison":false}}}]}"#
        );
        let all = details(&settings::reset_all());
        assert_eq!(all.as_object().unwrap().len(), 22);
    }
}
