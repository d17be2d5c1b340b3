//! Questions to the nodes: one answer from any of them, or the sum over all.
//!
//! Counts of documents are by shard, never from a node's own statistics, which count what it should not hold. Must not
//! know: HTTP.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::cluster::Cluster;
use super::failure::Failure;
use super::indexes::{Index, Indexes};
use super::members::Members;
use super::reads::Reads;
use super::writes::node_failure;
use crate::net::Call;
use crate::rt::clock;
use crate::types::SHARD_FIELD;
use crate::types::TraceId;
use crate::types::{ErrorCode, IndexUid, MemberId, PhysicalIndex, ShardSet};
use crate::wire::verbs::{NodeQuestion, Reply, Request};

/// Indexes that are counted at the same time.
const COUNTS: usize = 8;
/// How long a node may take to answer a question.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long for what an answer can do without.
const SHORT: Duration = Duration::from_secs(1);

/// Questions to nodes; cheap to clone.
#[derive(Debug, Clone)]
pub struct Nodes {
    cluster: Cluster,
    members: Members,
}

impl Nodes {
    /// The service over its parts.
    pub fn new(cluster: Cluster, members: Members) -> Self {
        Self { cluster, members }
    }

    /// The answer of the first node that gives one, the own one first.
    ///
    /// # Errors
    /// The node's own error, or `miroir_shards_unavailable` if none can be asked.
    pub async fn ask_any(&self, index: &Index, question: NodeQuestion, trace: TraceId) -> Result<Bytes, Failure> {
        let own = self.cluster.own();
        let topology = self.cluster.topology();
        let order = std::iter::once(own).chain(topology.others()).filter(|m| self.cluster.serving(m));
        // One that lacks settings is asked last.
        let (order, lacking): (Vec<_>, Vec<_>) = order.partition(|m| !index.value.misses_settings(m));
        let order = order.into_iter().chain(lacking);
        let mut last = None;
        for member in order {
            match self.ask(member, question.clone(), Bytes::new(), PATIENCE, trace).await {
                Ok((200, body)) => return Ok(body),
                Ok((status, body)) => last = Some(node_failure(status, &body, index)),
                Err(reason) => tracing::debug!(%member, reason, "a node could not be asked"),
            }
        }
        Err(last.unwrap_or_else(|| {
            Failure::new(ErrorCode::MiroirShardsUnavailable, "No node of the mesh can be asked now; try again.")
        }))
    }

    async fn ask(
        &self,
        member: &MemberId,
        question: NodeQuestion,
        body: Bytes,
        patience: Duration,
        trace: TraceId,
    ) -> Result<(u16, Bytes), String> {
        let deadline = Instant::now() + patience;
        let call = Call { request: Request::Node(question), body, deadline, trace };
        let answer = self.members.call(member, call).await.map_err(|e| e.to_string())?;
        match answer.reply {
            Reply::Node(status) => Ok((status, answer.body)),
            other => Err(format!("{other:?}")),
        }
    }

    /// The answers of all members that serve and answer with 200.
    async fn ask_all(&self, question: NodeQuestion, patience: Duration, trace: TraceId) -> BTreeMap<MemberId, Bytes> {
        let answers = self.answers_of_all(question, Bytes::new(), patience, trace).await;
        answers.into_iter().filter_map(|(m, (status, body))| (status == 200).then_some((m, body))).collect()
    }

    /// The answers of all members that serve.
    async fn answers_of_all(
        &self,
        question: NodeQuestion,
        body: Bytes,
        patience: Duration,
        trace: TraceId,
    ) -> BTreeMap<MemberId, (u16, Bytes)> {
        let topology = self.cluster.topology();
        let members: Vec<_> = topology.holders().filter(|m| self.cluster.serving(m)).collect();
        let asks =
            members.iter().map(|m| async { (*m, self.ask(m, question.clone(), body.clone(), patience, trace).await) });
        let answers = futures_util::future::join_all(asks).await;
        answers.into_iter().filter_map(|(m, answer)| Some((m.clone(), answer.ok()?))).collect()
    }

    /// Has an edition, without its context, checked by a node as it came. Gives what a node says of a context that is none.
    ///
    /// # Errors
    /// The node's own error, or `miroir_shards_unavailable` if none can be asked.
    pub async fn check_edition(&self, uid: &IndexUid, edition: Bytes, trace: TraceId) -> Result<Bytes, Failure> {
        let own = self.cluster.own();
        let topology = self.cluster.topology();
        let order = std::iter::once(own).chain(topology.others()).filter(|m| self.cluster.serving(m));
        for member in order {
            match self.ask(member, NodeQuestion::Edition(uid.clone()), edition.clone(), PATIENCE, trace).await {
                Ok((400, body)) if is_error(&body, NO_CONTEXT) => return Ok(body),
                Ok((400, body)) => return Err(Failure::Node { status: 400, body }),
                Ok((status, _)) => tracing::warn!(%member, status, "a node does not check an edition"),
                Err(reason) => tracing::debug!(%member, reason, "a node could not be asked"),
            }
        }
        Err(Failure::new(ErrorCode::MiroirShardsUnavailable, "No node of the mesh can be asked now; try again."))
    }

    /// Has an edition, as nodes will get it, checked by all nodes that can be asked.
    ///
    /// # Errors
    /// A node's own error, if it does not edit documents; `bad_request` if it can't compile the function.
    pub async fn check_wrapped(&self, uid: &IndexUid, edition: Bytes, trace: TraceId) -> Result<(), Failure> {
        let answers = self.answers_of_all(NodeQuestion::Edition(uid.clone()), edition, PATIENCE, trace).await;
        for (member, (status, body)) in answers {
            if status != 400 || is_error(&body, NO_CONTEXT) {
                continue;
            }
            if is_error(&body, ErrorCode::FeatureNotEnabled.as_str()) {
                tracing::warn!(%member, "the node of this member does not edit documents by function");
                return Err(Failure::Node { status, body });
            }
            let message = "Invalid value at `.function`: nodes can't compile it as miroir gives it to them: write it with less depth.";
            tracing::debug!(%member, answer = %String::from_utf8_lossy(&body), "a wrapped function is refused");
            return Err(Failure::new(ErrorCode::BadRequest, message));
        }
        Ok(())
    }
}

/// What a node says of an edition whose context is none, after all else was checked.
const NO_CONTEXT: &str = "invalid_document_edition_context";

fn is_error(body: &[u8], code: &str) -> bool {
    #[derive(Deserialize)]
    struct Error {
        code: String,
    }
    serde_json::from_slice::<Error>(body).is_ok_and(|error| error.code == code)
}

/// One index on one node.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct IndexStats {
    number_of_documents: u64,
    raw_document_db_size: u64,
    is_indexing: bool,
    number_of_embeddings: u64,
    number_of_embedded_documents: u64,
    field_distribution: BTreeMap<String, u64>,
    internal_database_sizes: Option<Map<String, Value>>,
}

/// One node.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeStats {
    database_size: u64,
    used_database_size: u64,
    last_update: Option<String>,
    indexes: BTreeMap<String, IndexStats>,
}

/// Statistics; cheap to clone.
#[derive(Debug, Clone)]
pub struct Stats {
    indexes: Indexes,
    nodes: Nodes,
    reads: Reads,
}

impl Stats {
    /// The service over its parts.
    pub fn new(indexes: Indexes, nodes: Nodes, reads: Reads) -> Self {
        Self { indexes, nodes, reads }
    }

    /// `GET /indexes/{uid}/stats`.
    ///
    /// # Errors
    /// `index_not_found`, `miroir_shards_unavailable`.
    pub async fn index(&self, uid: &IndexUid, internal: bool, trace: TraceId) -> Result<(Value, ShardSet), Failure> {
        let index = self.indexes.find(uid)?;
        let question = NodeQuestion::IndexStats { index: index.value.physical.clone(), internal };
        let answers = self.nodes.ask_all(question, PATIENCE, trace).await;
        let per_node = answers.into_values().map(|b| serde_json::from_slice(&b).unwrap_or_default()).collect();
        let (documents, missing) = self.reads.count(&index, trace).await?;
        Ok((sum(documents, per_node), missing))
    }

    /// `GET /stats`.
    ///
    /// # Errors
    /// `miroir_shards_unavailable`.
    pub async fn all(&self, internal: bool, trace: TraceId) -> Result<(Value, ShardSet), Failure> {
        let answers = self.nodes.ask_all(NodeQuestion::Stats { internal }, PATIENCE, trace).await;
        let mut nodes: Vec<NodeStats> =
            answers.into_values().map(|b| serde_json::from_slice(&b).unwrap_or_default()).collect();
        let snapshot = self.indexes.records().snapshot();
        let names = snapshot.names().value.indexes.keys();
        let found: Vec<_> = names.filter_map(|uid| Some((uid, snapshot.find(uid)?))).collect();
        let count = |index: Index| {
            let reads = self.reads.clone();
            async move { reads.count(&index, trace).await }
        };
        let counts: Vec<_> = found.iter().map(|(_, index)| count(Arc::clone(index))).collect();
        let counts: Vec<_> = futures_util::stream::iter(counts).buffered(COUNTS).collect().await;
        let (mut indexes, mut missing) = (Map::new(), ShardSet::new());
        for ((uid, index), count) in found.iter().zip(counts) {
            let physical = index.value.physical.as_str();
            let per_node = nodes.iter_mut().filter_map(|n| n.indexes.remove(physical)).collect();
            let (documents, lacks) = count?;
            missing = missing.union(&lacks);
            indexes.insert(uid.to_string(), sum(documents, per_node));
        }
        let all = json!({
            "databaseSize": nodes.iter().map(|n| n.database_size).sum::<u64>(),
            "usedDatabaseSize": nodes.iter().map(|n| n.used_database_size).sum::<u64>(),
            "lastUpdate": nodes.iter().filter_map(|n| n.last_update.as_ref()).max(),
            "indexes": indexes,
        });
        Ok((all, missing))
    }

    /// Whether an index has no document, and no node has any for it in its queue; `false` if not all can be asked.
    ///
    /// # Errors
    /// `miroir_shards_unavailable`.
    pub async fn unused(&self, index: &Index, trace: TraceId) -> Result<bool, Failure> {
        #[derive(Deserialize)]
        struct Page {
            total: u64,
        }
        let answers = self.nodes.ask_all(NodeQuestion::Waiting(index.value.physical.clone()), PATIENCE, trace).await;
        let idle = |body: &Bytes| serde_json::from_slice::<Page>(body).is_ok_and(|page| page.total == 0);
        let all = self.nodes.cluster.topology().holders().all(|m| answers.get(m).is_some_and(idle));
        // Counted after that: what was in a queue before is among the documents now.
        Ok(all && matches!(self.reads.count(index, trace).await?, (0, missing) if missing.is_empty()))
    }

    /// When the nodes last changed each index, or one of them; those that can't be asked now are left out.
    pub async fn updates(&self, index: Option<&Index>, trace: TraceId) -> BTreeMap<PhysicalIndex, String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct OnNode {
            uid: String,
            updated_at: String,
        }
        #[derive(Deserialize)]
        struct Page {
            results: Vec<OnNode>,
        }
        let question = match index {
            Some(index) => NodeQuestion::Index(index.value.physical.clone()),
            None => NodeQuestion::Indexes,
        };
        let mut latest: BTreeMap<PhysicalIndex, String> = BTreeMap::new();
        for body in self.nodes.ask_all(question, SHORT, trace).await.into_values() {
            let one = |body| serde_json::from_slice::<OnNode>(body).map(|one| vec![one]);
            let all = |body| serde_json::from_slice::<Page>(body).map(|page| page.results);
            // Anything else is no answer, and counts as little as none.
            let found = if index.is_some() { one(&body) } else { all(&body) }.unwrap_or_default();
            for OnNode { uid, updated_at } in found {
                let Ok(physical) = PhysicalIndex::new(uid) else { continue };
                let known = latest.entry(physical).or_default();
                if clock::later(known, &updated_at) != known {
                    *known = updated_at;
                }
            }
        }
        latest
    }
}

/// Sums over nodes count every copy, and lack those of members that are away. Both is put right by the documents that the
/// sums are over: exactly where all copies have been counted, nearly where some are missing.
fn sum(documents: u64, per_node: Vec<IndexStats>) -> Value {
    let counted: u128 = per_node.iter().map(|s| u128::from(s.number_of_documents)).sum();
    let once = |n: u64| {
        let scaled = (u128::from(n) * u128::from(documents) + counted / 2).checked_div(counted).unwrap_or(0);
        u64::try_from(scaled).unwrap_or(u64::MAX)
    };
    let total = |of: fn(&IndexStats) -> u64| per_node.iter().map(of).sum::<u64>();
    let mut fields: BTreeMap<&str, u64> = BTreeMap::new();
    for (field, n) in per_node.iter().flat_map(|s| &s.field_distribution) {
        *fields.entry(field).or_default() += n;
    }
    fields.remove(SHARD_FIELD);
    let raw = once(total(|s| s.raw_document_db_size));
    let mut internal: BTreeMap<&str, u64> = BTreeMap::new();
    for (table, size) in per_node.iter().filter_map(|s| s.internal_database_sizes.as_ref()).flatten() {
        *internal.entry(table).or_default() += size.as_u64().unwrap_or(0);
    }
    let no_tables = internal.is_empty();
    // The largest first, as on a node.
    let mut internal: Vec<_> = internal.into_iter().map(|(table, size)| (once(size), table)).collect();
    internal.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
    let mut stats = json!({
        "numberOfDocuments": documents,
        "rawDocumentDbSize": raw,
        "avgDocumentSize": raw.checked_div(documents).unwrap_or(0),
        "isIndexing": per_node.iter().any(|s| s.is_indexing),
        "internalDatabaseSizes": internal.into_iter().map(|(size, table)| (table.to_owned(), json!(size))).collect::<Map<_, _>>(),
        "numberOfEmbeddings": once(total(|s| s.number_of_embeddings)),
        "numberOfEmbeddedDocuments": once(total(|s| s.number_of_embedded_documents)),
        "fieldDistribution": fields.into_iter().map(|(f, n)| (f.to_owned(), json!(once(n)))).collect::<Map<_, _>>(),
    });
    if no_tables && let Some(map) = stats.as_object_mut() {
        map.shift_remove("internalDatabaseSizes");
    }
    stats
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(documents: u64, field: u64) -> IndexStats {
        IndexStats {
            number_of_documents: documents,
            raw_document_db_size: documents * 100,
            field_distribution: BTreeMap::from([("title".into(), field), (SHARD_FIELD.into(), documents)]),
            ..IndexStats::default()
        }
    }

    #[test]
    fn each_document_is_counted_once_whoever_is_away() {
        // Two copies of 300 documents, of which 150 have a title.
        let whole = sum(300, vec![node(200, 100), node(200, 100), node(200, 100)]);
        let without_one = sum(300, vec![node(200, 100), node(200, 100)]);
        for stats in [whole, without_one] {
            assert_eq!(stats["fieldDistribution"].to_string(), r#"{"title":150}"#);
            assert_eq!((&stats["rawDocumentDbSize"], &stats["avgDocumentSize"]), (&json!(30_000), &json!(100)));
        }
        assert_eq!(sum(0, vec![]), sum(0, vec![IndexStats::default()]));
    }
}
