//! Everything that touches the own node: orders are checked here, at the resource itself.
//!
//! Rules kept: a physical index is made from its record before the first document; requests that enqueue on one index go
//! one at a time; a read is filtered by shard unless the shards asked for are all of which the node holds any document; an
//! index is deleted only if this member made it; settings that were changed while the member was away come before reads. Must
//! not know: who asked, plans, other members' nodes.

mod entries;
mod missed;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::{Notify, RwLock, watch};

pub use self::entries::{Loss, Queued, Work};
use super::cluster::{Cluster, NodeHealth};
use super::health;
use super::records::{Records, Versioned};
use super::serving::{self, Unserved};
use crate::net::node::{NodeAnswer, NodeClient, NodeError, NodeRequest};
use crate::net::{Answer, Call};
use crate::proto::{missed as missing, search, settings};
use crate::store::local::LocalIndex;
use crate::store::{Store, StoreError};
use crate::telemetry::metrics::Metrics;
use crate::types::SHARD_FIELD;
use crate::types::limits::NAMES_MAX;
use crate::types::{IndexRecord, IndexUid, PhysicalIndex, ShardSet};
use crate::wire::verbs::{NodeQuestion, Read, ReadKind, ReadRoute, Refusal, Reply, Write, WriteKind};

/// How often an index's unfinished tasks are looked at while the sidecar waits for them.
const TASK_POLL: Duration = Duration::from_millis(100);

/// One physical index as this process knows it.
#[derive(Debug, Default)]
struct Slot {
    // Held while a request that enqueues is under way, so that the node's order is ours.
    enqueue: tokio::sync::Mutex<OnNode>,
    local: Mutex<LocalIndex>,
    // Read-locked by unfiltered reads for as long as they run; whoever makes the node hold another shard waits for them.
    unfiltered: RwLock<()>,
}

impl Slot {
    fn local(&self) -> LocalIndex {
        self.local.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_local(&self, local: LocalIndex) {
        *self.local.lock().unwrap_or_else(PoisonError::into_inner) = local;
    }

    /// Whether the node holds documents of these shards only. Of an index that this member has not made nothing is known.
    fn holds_only(&self, shards: &ShardSet) -> bool {
        let local = self.local.lock().unwrap_or_else(PoisonError::into_inner);
        local.made && local.held.is_subset(shards)
    }
}

/// What this process knows of an index on the node.
#[derive(Debug, Default)]
struct OnNode {
    /// The node has the index, or a creation of it in its queue.
    ready: bool,
    /// The primary key that the node has been told.
    primary_key: Option<String>,
    /// The node's last task of the creation, if this process has ordered it.
    created: Option<u32>,
    /// The node's task of the deletion, likewise.
    deleted: Option<u32>,
}

/// The own node; cheap to clone.
#[derive(Clone)]
pub struct Local {
    node: NodeClient,
    store: Store,
    records: Records,
    cluster: Cluster,
    health: watch::Receiver<NodeHealth>,
    slots: Arc<Mutex<BTreeMap<PhysicalIndex, Arc<Slot>>>>,
    lost: watch::Sender<Lost>,
    // Of a member that serves whatever it holds there is none.
    unserved: Option<watch::Receiver<Unserved>>,
    // Copies that are made anew; said once the appliers stand.
    rebuilt: Arc<OnceLock<watch::Receiver<Lost>>>,
    look_again: Arc<Notify>,
    // Indexes that get settings that were missed.
    catching_up: Arc<Mutex<BTreeSet<PhysicalIndex>>>,
    timeout: Duration,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Local").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Indexes of which the node no longer has what it held, with the shards that this member therefore does not serve.
pub type Lost = BTreeMap<PhysicalIndex, ShardSet>;

/// The node took a write under this task uid, or why not.
type Enqueue = Result<u32, Answer>;

impl Local {
    /// Loads what this member has noted about its node.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load(
        node: NodeClient,
        store: Store,
        records: Records,
        cluster: Cluster,
        health: watch::Receiver<NodeHealth>,
        timeout: Duration,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StoreError> {
        let slot = |local| Arc::new(Slot { local: Mutex::new(local), ..Slot::default() });
        let slots = store.local_indexes().await?.into_iter().map(|(p, l)| (p, slot(l))).collect();
        let (slots, lost, look_again) = (Arc::new(Mutex::new(slots)), watch::Sender::default(), Arc::default());
        let catching_up = Arc::default();
        Ok(Self {
            node,
            store,
            records,
            cluster,
            health,
            slots,
            lost,
            unserved: None,
            rebuilt: Arc::default(),
            look_again,
            catching_up,
            timeout,
            metrics,
        })
    }

    /// The same, with what is not served of what it holds.
    #[must_use]
    pub fn serving(self, unserved: watch::Receiver<Unserved>) -> Self {
        Self { unserved: Some(unserved), ..self }
    }

    /// Says where it is seen which copies are made anew, so that they are not read. Later calls change nothing.
    pub fn set_rebuilt(&self, rebuilt: watch::Receiver<Lost>) {
        drop(self.rebuilt.set(rebuilt));
    }

    /// What the node has lost, as it changes.
    pub fn lost(&self) -> watch::Receiver<Lost> {
        self.lost.subscribe()
    }

    fn note_lost(&self, physical: &PhysicalIndex, shards: Option<ShardSet>) {
        self.lost.send_if_modified(|lost| {
            let before = match &shards {
                Some(shards) => lost.insert(physical.clone(), shards.clone()),
                None => lost.remove(physical),
            };
            before != shards
        });
    }

    /// Sends to the node, and counts.
    async fn send(&self, kind: &'static str, request: NodeRequest, deadline: Instant) -> Result<NodeAnswer, NodeError> {
        let began = Instant::now();
        let answer = self.node.send(request, deadline.min(began + self.timeout)).await;
        match &answer {
            Ok(_) => self.metrics.node_answered(kind, began),
            Err(_) => self.metrics.node_failures.with_label_values(&[kind]).inc(),
        }
        answer
    }

    /// As [`Self::send`], ended early when the node is found unusable: one that stalls would hold the read to its deadline,
    /// while another replica could answer.
    async fn send_read(
        &self,
        kind: &'static str,
        request: NodeRequest,
        deadline: Instant,
    ) -> Result<NodeAnswer, NodeError> {
        let mut health = self.health.clone();
        tokio::select! {
            biased;
            answer = self.send(kind, request, deadline) => answer,
            Ok(sick) = health.wait_for(|h| !h.healthy) => {
                Err(NodeError::Down(sick.error.clone().unwrap_or_else(|| "the node is not healthy".into())))
            }
        }
    }

    fn slot(&self, physical: &PhysicalIndex) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(physical.clone()).or_default())
    }

    fn catching_up(&self) -> MutexGuard<'_, BTreeSet<PhysicalIndex>> {
        self.catching_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node_down(&self) -> Option<Answer> {
        let health = self.health.borrow();
        if health.healthy {
            return None;
        }
        let reason = health.error.clone().unwrap_or_else(|| "the node has not been probed yet".into());
        Some(Answer::of(Reply::NodeDown(reason)))
    }

    async fn record(&self, physical: &PhysicalIndex, version: u64) -> RecordOrAnswer {
        let record = self.records.at_least(physical, version).await;
        record.map_err(|refusal| Answer::of(Reply::Refused(refusal)))
    }

    /// Reads some shards of an index.
    ///
    /// Cancel-safe: dropping the future closes the request to the node.
    pub async fn read(&self, read: &Read, call: &Call) -> Answer {
        let record = match self.record(&read.index, read.record_version).await {
            Ok(record) => record,
            Err(answer) => return answer,
        };
        let own = record.value.shards_of(self.cluster.own());
        let not_served = read.shards.minus(&own);
        if !not_served.is_empty() {
            return Answer::of(Reply::NotServed(not_served, record.version));
        }
        // Also before those who watch what is served have seen the record.
        if record.value.misses_settings(self.cluster.own()) {
            return Answer::of(Reply::NotServed(read.shards.clone(), record.version));
        }
        let filtered = !matches!(read.kind, ReadKind::Words { .. });
        if filtered && let Some(unserved) = &self.unserved {
            let not_served = serving::not_served(&unserved.borrow(), &read.index, &read.shards);
            // What is of no use is refused from the moment on at which that is known.
            let rebuilt = self.rebuilt.get().and_then(|all| all.borrow().get(&read.index).cloned()).unwrap_or_default();
            let not_served = not_served.union(&read.shards.intersection(&rebuilt));
            if !not_served.is_empty() {
                return Answer::of(Reply::NotServed(not_served, record.version));
            }
        }
        if let Some(down) = self.node_down() {
            return down;
        }
        let slot = self.slot(&read.index);
        let Some(mut request) = request_of_read(read, call.body.clone()) else {
            return Answer::of(Reply::Refused(Refusal::Malformed("the query string is not text".into())));
        };
        let kind = kind_of(read.kind);
        // Not had while somebody waits to give the node another shard: then the filter is used.
        let unfiltered = filtered.then(|| slot.unfiltered.try_read().ok()).flatten();
        let running = unfiltered.filter(|_| slot.holds_only(&read.shards));
        if filtered && running.is_none() {
            request.body = search::with_shard_filter(&request.body, &read.shards, record.value.shard_count()).into();
        }
        let answer = self.send_read(kind, request, call.deadline).await;
        drop(running);
        if let Ok(NodeAnswer { status: 404, .. }) = answer {
            self.doubt(&slot);
        }
        node_answer(answer)
    }

    /// Has it looked at again whether the node has the index: it may have come back empty between two probes.
    fn doubt(&self, slot: &Slot) {
        // Whoever holds the lock is about to find out.
        if let Ok(mut on_node) = slot.enqueue.try_lock() {
            on_node.ready = false;
            self.look_again.notify_one();
        }
    }

    /// Carries out a write on the own node's copies.
    ///
    /// Not cancel-safe: a dropped write may have been enqueued.
    pub async fn write(&self, write: &Write, call: &Call) -> Answer {
        let record = match self.record(&write.index, write.record_version).await {
            Ok(record) => record,
            Err(answer) => return answer,
        };
        let foreign = write.shards.minus(&record.value.shards_of(self.cluster.own()));
        if !foreign.is_empty() {
            return Answer::of(Reply::NotServed(foreign, record.version));
        }
        let refuse = |why: &str| Answer::of(Reply::Refused(Refusal::Other(why.into())));
        if record.value.deleted != (write.kind == WriteKind::DeleteIndex) {
            return refuse("the index's record does not call for this order");
        }
        if let Some(down) = self.node_down() {
            return down;
        }
        let done = match write.kind {
            WriteKind::DeleteIndex => self.delete(&write.index, call.deadline).await,
            _ => self.enqueue(&record.value, write, call).await,
        };
        match done {
            Ok(task) => Answer::of(Reply::Enqueued(task)),
            Err(answer) => answer,
        }
    }

    async fn enqueue(&self, record: &IndexRecord, write: &Write, call: &Call) -> Enqueue {
        let slot = self.slot(&record.physical);
        let mut on_node = slot.enqueue.lock().await;
        let not_done = |why: &str| Err(Answer::of(Reply::NodeDown(why.into())));
        // Looked at again: while this order waited, its sender may have given it up, or the index may have gone.
        if Instant::now() >= call.deadline {
            return not_done("its time was over before its turn came");
        }
        let newest = self.records.snapshot().index(&record.physical).filter(|index| !index.value.deleted);
        let Some(newest) = newest.filter(|_| on_node.deleted.is_none()) else {
            return not_done("the index was deleted meanwhile");
        };
        // Split by another key, documents would lie in shards where nobody looks for them.
        if let WriteKind::AddDocuments { primary_key, .. } = &write.kind
            && newest.value.primary_key.as_ref() != Some(primary_key)
        {
            return not_done("the index's primary key was changed meanwhile");
        }
        // It gets them in their order: also those that were on their way when it got others that came before them.
        let (own, given) = (self.cluster.own(), write.record_version);
        if write.kind == WriteKind::Settings
            && (newest.value.misses_settings(own) || missing::got_since(&newest.value, given, own))
        {
            return not_done("it has yet to get earlier settings, or had when this was sent");
        }
        self.make_ready(record, &slot, &mut on_node, call.deadline).await?;
        if matches!(write.kind, WriteKind::AddDocuments { .. }) {
            self.hold(&record.physical, &slot, &write.shards).await?;
        }
        let Some(request) = request_of(record, &write.kind, call.body.clone()) else {
            // `EnsureIndex`: whoever ordered the creation, this is its task.
            return on_node.created.ok_or_else(|| Answer::of(Reply::Done));
        };
        let enqueued = enqueued(self.send("write", request, call.deadline).await);
        if let Err(Answer { reply: Reply::NodeUnknown(_), .. }) = &enqueued {
            // The node may have lost its memory meanwhile; look before the next write.
            on_node.ready = false;
        }
        enqueued
    }

    /// Notes the shards before the node gets their first document; unfiltered reads that run are waited for.
    async fn hold(&self, physical: &PhysicalIndex, slot: &Slot, shards: &ShardSet) -> Result<(), Answer> {
        let mut local = slot.local();
        if shards.is_subset(&local.held) {
            return Ok(());
        }
        local.held = local.held.union(shards);
        self.store.put_local_index(physical, &local).await.map_err(store_failed)?;
        // From here on new reads are filtered.
        slot.set_local(local);
        drop(slot.unfiltered.write().await);
        Ok(())
    }

    /// Makes sure that the node has the index, or its creation in the queue.
    async fn make_ready(
        &self,
        record: &IndexRecord,
        slot: &Slot,
        on_node: &mut OnNode,
        deadline: Instant,
    ) -> Result<(), Answer> {
        if on_node.ready {
            return self.tell_primary_key(record, on_node, deadline).await;
        }
        let physical = &record.physical;
        let local = slot.local();
        // The field that marks shards is there: no request of ours ever takes it out again.
        if self.is_complete(physical, deadline).await? {
            on_node.primary_key = self.primary_key(physical, deadline).await?;
            if !local.made {
                tracing::warn!(%physical, "the node has this index, but this store did not make it; it is never deleted from here");
            }
        } else {
            if local.made {
                // Ordered by an earlier process: what is still in the queue shows once it is done.
                self.wait_for_tasks(physical, deadline).await?;
            }
            if !local.made || !self.is_complete(physical, deadline).await? {
                // Without documents, too: only the other nodes know all settings that clients have made.
                if !local.held.is_empty() || local.made && record.settings_version > 0 {
                    self.note_lost(physical, Some(record.shards_of(self.cluster.own())));
                    let reason = format!(
                        "the node no longer has the index {physical}, of which it held documents or settings; it is not made again \
                         without them. Give the node its data back, or delete the index and load it again"
                    );
                    return Err(Answer::of(Reply::NodeDown(reason)));
                }
                let task = self.make(physical, slot, record.shard_count(), deadline).await?;
                *on_node = OnNode { created: Some(task), ..OnNode::default() };
            }
        }
        on_node.ready = true;
        self.note_lost(physical, None);
        self.tell_primary_key(record, on_node, deadline).await
    }

    /// Has the node make the index: one task, so that it is never there without the field that marks shards.
    async fn make(&self, physical: &PhysicalIndex, slot: &Slot, shards: u16, deadline: Instant) -> Enqueue {
        let local = LocalIndex { made: true, ..slot.local() };
        self.store.put_local_index(physical, &local).await.map_err(store_failed)?;
        slot.set_local(local);
        let initial = serde_json::Value::Object(settings::initial(shards)).to_string();
        let request = NodeRequest::json(Method::PATCH, format!("/indexes/{physical}/settings"), initial);
        enqueued(self.send("write", request, deadline).await)
    }

    /// Tells the node the primary key once it is settled, also if the node never gets a document.
    async fn tell_primary_key(
        &self,
        record: &IndexRecord,
        on_node: &mut OnNode,
        deadline: Instant,
    ) -> Result<(), Answer> {
        let Some(key) = record.primary_key.as_ref().filter(|k| on_node.primary_key.as_ref() != Some(*k)) else {
            return Ok(());
        };
        let body = serde_json::json!({ "primaryKey": key }).to_string();
        let request = NodeRequest::json(Method::PATCH, format!("/indexes/{}", record.physical), body);
        let task = enqueued(self.send("write", request, deadline).await)?;
        on_node.primary_key = Some(key.clone());
        on_node.created = on_node.created.map(|_| task);
        Ok(())
    }

    /// Whether the node has the index with the field that marks shards.
    async fn is_complete(&self, physical: &PhysicalIndex, deadline: Instant) -> Result<bool, Answer> {
        let path = format!("/indexes/{physical}/settings/filterable-attributes");
        let answer = self.send("question", NodeRequest::get(path), deadline).await.map_err(|e| node_answer(Err(e)))?;
        match answer.status {
            200 => Ok(memchr::memmem::find(&answer.body, SHARD_FIELD.as_bytes()).is_some()),
            404 => Ok(false),
            _ => Err(node_answer(Ok(answer))),
        }
    }

    /// The primary key that the node has for the index.
    async fn primary_key(&self, physical: &PhysicalIndex, deadline: Instant) -> Result<Option<String>, Answer> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Index {
            primary_key: Option<String>,
        }
        let request = NodeRequest::get(format!("/indexes/{physical}"));
        let answer = self.send("question", request, deadline).await.map_err(|e| node_answer(Err(e)))?;
        match serde_json::from_slice::<Index>(&answer.body) {
            Ok(index) => Ok(index.primary_key),
            Err(_) => Err(node_answer(Ok(answer))),
        }
    }

    async fn wait_for_tasks(&self, physical: &PhysicalIndex, deadline: Instant) -> Result<(), Answer> {
        #[derive(Deserialize)]
        struct Page {
            total: u64,
        }
        let path = waiting(physical);
        loop {
            let answer = self
                .send("question", NodeRequest::get(path.as_str()), deadline)
                .await
                .map_err(|e| node_answer(Err(e)))?;
            let page: Page = serde_json::from_slice(&answer.body).map_err(|_| node_answer(Ok(answer)))?;
            if page.total == 0 {
                return Ok(());
            }
            if Instant::now() + TASK_POLL >= deadline {
                return Err(Answer::of(Reply::NodeDown("the node is still busy with earlier tasks".into())));
            }
            tokio::time::sleep(TASK_POLL).await;
        }
    }

    async fn delete(&self, physical: &PhysicalIndex, deadline: Instant) -> Enqueue {
        let slot = self.slot(physical);
        let mut on_node = slot.enqueue.lock().await;
        if !slot.local().made {
            // Deleted already by this process, or never made by this member: then nothing is deleted.
            return on_node.deleted.ok_or_else(|| Answer::of(Reply::Done));
        }
        let mut request = NodeRequest::get(format!("/indexes/{physical}"));
        request.method = Method::DELETE;
        request.read = false;
        let task = enqueued(self.send("write", request, deadline).await)?;
        *on_node = OnNode { deleted: Some(task), ..OnNode::default() };
        self.store.forget_local_index(physical).await.map_err(store_failed)?;
        slot.set_local(LocalIndex::default());
        self.note_lost(physical, None);
        Ok(task)
    }

    /// Answers a question about the node.
    pub async fn question(&self, question: &NodeQuestion, body: &Bytes, deadline: Instant) -> Answer {
        if let Some(down) = self.node_down() {
            return down;
        }
        let path = match question {
            NodeQuestion::Settings(i) => format!("/indexes/{i}/settings"),
            NodeQuestion::IndexStats { index, internal } => {
                format!("/indexes/{index}/stats{}", internal_sizes(*internal))
            }
            NodeQuestion::Stats { internal } => format!("/stats{}", internal_sizes(*internal)),
            NodeQuestion::Index(i) => format!("/indexes/{i}"),
            NodeQuestion::Indexes => format!("/indexes?limit={NAMES_MAX}"),
            NodeQuestion::Waiting(i) => format!("{}&types=documentAdditionOrUpdate", waiting(i)),
            NodeQuestion::Tasks(uids) => {
                let list: Vec<_> = uids.iter().map(u32::to_string).collect();
                format!("/tasks?limit={}&uids={}", list.len(), list.join(","))
            }
            NodeQuestion::Edition(i) => {
                let Some(request) = dry_edition(i, body) else {
                    return Answer::of(Reply::Refused(Refusal::Malformed("the edition is no JSON object".into())));
                };
                return node_answer(self.send("question", request, deadline).await);
            }
        };
        node_answer(self.send("question", NodeRequest::get(path), deadline).await)
    }

    /// Makes on the node what the records call for, whenever records or the node's health change.
    pub async fn follow_records(self) {
        let (mut records, mut health) = (self.records.watch(), self.health.clone());
        let mut again = tokio::time::interval(Duration::from_secs(10));
        again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = again.tick() => {}
                () = self.look_again.notified() => {}
                r = records.changed() => if r.is_err() { return },
                h = health.changed() => if h.is_err() { return },
            }
            if !self.health.borrow().healthy {
                // A node that was away may come back without its indexes.
                let slots: Vec<_> =
                    self.slots.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
                for slot in slots {
                    slot.enqueue.lock().await.ready = false;
                }
                continue;
            }
            for record in self.records.snapshot().indexes() {
                if let Err(answer) = self.follow(record).await {
                    let physical = &record.value.physical;
                    tracing::warn!(%physical, reply = ?answer.reply, "the node could not be brought to the record");
                }
            }
        }
    }

    async fn follow(&self, record: &Versioned<IndexRecord>) -> Result<(), Answer> {
        let deadline = Instant::now() + Duration::from_secs(30);
        let physical = &record.value.physical;
        let slot = self.slot(physical);
        if record.value.deleted {
            if slot.local().made {
                self.delete(physical, deadline).await?;
            }
            return Ok(());
        }
        let mut on_node = slot.enqueue.lock().await;
        self.make_ready(&record.value, &slot, &mut on_node, deadline).await?;
        drop(on_node);
        self.catch_up(physical);
        Ok(())
    }
}

type RecordOrAnswer = Result<Arc<Versioned<IndexRecord>>, Answer>;

/// The question how many tasks of an index are not finished.
fn waiting(physical: &PhysicalIndex) -> String {
    format!("/tasks?indexUids={physical}&statuses=enqueued,processing&limit=1")
}

/// Left out unless it is wanted: older nodes refuse parameters that they do not know.
fn internal_sizes(internal: bool) -> &'static str {
    if internal { "?showInternalDatabaseSizes=true" } else { "" }
}

/// The label of a read in metrics.
fn kind_of(kind: ReadKind) -> &'static str {
    match kind {
        ReadKind::Search | ReadKind::FacetSearch => "search",
        ReadKind::Documents { .. } => "documents",
        ReadKind::Words { .. } => "question",
    }
}

fn request_of_read(read: &Read, body: Bytes) -> Option<NodeRequest> {
    let index = format!("/indexes/{}", read.index);
    let post = |path: &str| NodeRequest {
        read: true,
        ..NodeRequest::json(Method::POST, format!("{index}/{path}"), body.clone())
    };
    match read.kind {
        ReadKind::Search | ReadKind::Words { route: ReadRoute::Search, get: false } => Some(post("search")),
        ReadKind::FacetSearch | ReadKind::Words { route: ReadRoute::FacetSearch, .. } => Some(post("facet-search")),
        ReadKind::Documents { order_values } => Some(NodeRequest { order_values, ..post("documents/fetch") }),
        ReadKind::Words { route: ReadRoute::Documents, get: false } => Some(post("documents/fetch")),
        ReadKind::Words { route, get: true } => {
            let path = if route == ReadRoute::Search { "search" } else { "documents" };
            let query = std::str::from_utf8(&body).ok().filter(|q| q.bytes().all(|b| b.is_ascii_graphic()))?;
            Some(NodeRequest::get(format!("{index}/{path}?{query}")))
        }
    }
}

fn request_of(record: &IndexRecord, kind: &WriteKind, body: Bytes) -> Option<NodeRequest> {
    let index = format!("/indexes/{}", record.physical);
    Some(match kind {
        WriteKind::EnsureIndex | WriteKind::DeleteIndex => return None,
        WriteKind::AddDocuments { merge, skip_creation, primary_key } => {
            let method = if *merge { Method::PUT } else { Method::POST };
            let mut path = format!("{index}/documents?primaryKey={}", percent(primary_key));
            // Nodes before v1.31 do not know it and refuse what they don't know.
            if *skip_creation {
                path.push_str("&skipCreation=true");
            }
            NodeRequest { content_type: Some("application/x-ndjson"), ..NodeRequest::json(method, path, body) }
        }
        WriteKind::DeleteIds => NodeRequest::json(Method::POST, format!("{index}/documents/delete-batch"), body),
        WriteKind::DeleteFilter => NodeRequest::json(Method::POST, format!("{index}/documents/delete"), body),
        WriteKind::DeleteAll => {
            NodeRequest { method: Method::DELETE, read: false, ..NodeRequest::get(format!("{index}/documents")) }
        }
        WriteKind::Settings => NodeRequest::json(Method::PATCH, format!("{index}/settings"), body),
        WriteKind::UpdateIndex => NodeRequest::json(Method::PATCH, index, body),
    })
}

/// Percent-encodes everything that is not unreserved in a URL.
pub fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn store_failed(error: StoreError) -> Answer {
    Answer::of(Reply::Refused(Refusal::Other(error.to_string())))
}

/// An edition that a node checks and then refuses for its context; `None` if the body is none.
fn dry_edition(index: &IndexUid, body: &[u8]) -> Option<NodeRequest> {
    let mut edition: Map<String, Value> = serde_json::from_slice(body).ok()?;
    edition.insert("context".into(), Value::from(1));
    let body = Value::Object(edition).to_string();
    Some(NodeRequest {
        read: true,
        ..NodeRequest::json(Method::POST, format!("/indexes/{index}/documents/edit"), body)
    })
}

fn node_answer(answer: Result<NodeAnswer, NodeError>) -> Answer {
    match answer {
        // Of the key that the sidecar has for its node clients know nothing.
        Ok(a) if matches!(a.status, 401 | 403) => Answer::of(Reply::NodeDown(health::WRONG_KEY.into())),
        Ok(a) => Answer { reply: Reply::Node(a.status), body: a.body },
        Err(NodeError::Down(reason)) => Answer::of(Reply::NodeDown(reason)),
        Err(NodeError::Unknown(reason)) => Answer::of(Reply::NodeUnknown(reason)),
    }
}

/// Takes the task uid out of a node's 202; everything else is the answer to give.
fn enqueued(answer: Result<NodeAnswer, NodeError>) -> Enqueue {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Summary {
        task_uid: u32,
    }
    match answer {
        Ok(a) if a.status == 202 => match serde_json::from_slice::<Summary>(&a.body) {
            Ok(summary) => Ok(summary.task_uid),
            Err(e) => Err(Answer::of(Reply::NodeUnknown(format!("the node's answer is not Meilisearch's: {e}")))),
        },
        // The node failed inside; whether it had enqueued before is not known.
        Ok(a) if a.status >= 500 => {
            let text = String::from_utf8_lossy(&a.body[..a.body.len().min(300)]).into_owned();
            Err(Answer::of(Reply::NodeUnknown(format!("the node answered with status {}: {text}", a.status))))
        }
        other => Err(node_answer(other)),
    }
}
