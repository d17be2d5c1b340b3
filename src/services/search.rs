//! Searches: plan, ask the members, replace those that fail or are late, merge.
//!
//! The decisions are `proto::search`'s; here are the calls, the timers and the statistics. Must not know: HTTP, the node.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::{AbortHandle, Abortable};
use futures_util::stream::FuturesUnordered;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::cluster::Cluster;
use super::documents::reserved;
use super::failure::Failure;
use super::indexes::{Index, Indexes};
use super::members::Members;
use super::writes::node_failure;
use crate::net::{Answer, Call, CallError};
use crate::proto::search::{
    Action, AskId, FacetSearchQuery, HedgeBudget, MemberState, MemberStats, MergeError, MergeRequest, Original,
    Outcome, PartAnswer, PlanInput, QueryError, Scatter, SearchQuery, keywords_suffice, merge, merge_facet_search,
};
use crate::proto::settings::IndexView;
use crate::telemetry::metrics::Metrics;
use crate::types::TraceId;
use crate::types::{ErrorCode, IndexRecord, IndexUid, MemberId, ShardSet};
use crate::wire::verbs::{Read, ReadKind, ReadRoute, Reply, Request};

/// How the service behaves.
#[derive(Debug, Clone)]
pub struct SearchOptions {
    /// A search takes at most so long.
    pub deadline: Duration,
    /// Whether an answer without some shards is given (marked), or refused.
    pub partial: bool,
    /// Hedged parts per hundred searches; 0: none.
    pub hedge_percent: u8,
}

/// The client request that searches belong to.
#[derive(Debug, Clone, Copy)]
pub struct Asker {
    /// Its name in logs.
    pub trace: TraceId,
    /// Its name in answers; searches of one request share it.
    pub request_uid: Uuid,
    /// Answers are to show `metadata`.
    pub metadata: bool,
}

impl Asker {
    /// A new request.
    pub fn new(trace: TraceId, metadata: bool) -> Self {
        Self { trace, request_uid: Uuid::now_v7(), metadata }
    }
}

/// A read's answer.
#[derive(Debug, Clone)]
pub struct Found {
    /// The body for the client.
    pub body: Bytes,
    /// Shards that it lacks.
    pub missing: ShardSet,
}

/// Which shards of an index have a serving copy.
#[derive(Debug, Clone, Default)]
pub struct Coverage {
    /// Shards without one.
    pub missing: ShardSet,
}

/// What the cluster can serve of an index now.
pub fn coverage(record: &IndexRecord, cluster: &Cluster) -> Coverage {
    let seen = cluster.seen();
    let mut missing = ShardSet::new();
    for (i, shard) in (0_u16..).zip(&record.shards) {
        let id = crate::types::ShardId(i);
        let serves = |s: &super::cluster::Seen| {
            s.serving() && s.unserved.get(&record.physical).is_none_or(|lacks| !lacks.contains(id))
        };
        if !shard.replicas.iter().any(|r| seen.get(&r.member).is_some_and(serves)) {
            missing.insert(id);
        }
    }
    Coverage { missing }
}

/// What came back from the members that were asked.
#[derive(Debug)]
pub struct Scattered {
    /// Answers whose shards do not overlap.
    pub parts: Vec<PartAnswer>,
    /// Shards without an answer.
    pub missing: ShardSet,
}

/// What a scatter asks for.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// Of which index.
    pub index: &'a Index,
    /// Of which shards.
    pub wanted: &'a ShardSet,
    /// Which route of the nodes.
    pub kind: ReadKind,
    /// The hash that chooses among equal replicas.
    pub hash: u64,
    /// One for all rounds of one request.
    pub deadline: Instant,
    /// The body for a member that covers all of `wanted`.
    pub alone: Bytes,
    /// The body for one of several members.
    pub shared: Bytes,
    /// One member is to answer for all of `wanted`, if one can.
    pub one: bool,
}

/// The service; cheap to clone.
#[derive(Debug, Clone)]
pub struct Searches {
    cluster: Cluster,
    members: Members,
    indexes: Indexes,
    options: SearchOptions,
    stats: Arc<Mutex<BTreeMap<MemberId, MemberStats>>>,
    budget: Arc<Mutex<HedgeBudget>>,
    metrics: Arc<Metrics>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts a call as cancelled unless it is told how it ended.
struct Sent<'a> {
    stats: &'a Mutex<BTreeMap<MemberId, MemberStats>>,
    member: MemberId,
    began: Instant,
    ended: bool,
}

impl<'a> Sent<'a> {
    fn new(stats: &'a Mutex<BTreeMap<MemberId, MemberStats>>, member: MemberId) -> Self {
        locked(stats).entry(member.clone()).or_default().sent();
        Self { stats, member, began: Instant::now(), ended: false }
    }

    fn end(mut self, answered: bool) {
        self.ended = true;
        let (mut stats, now) = (locked(self.stats), Instant::now());
        let stats = stats.entry(self.member.clone()).or_default();
        if answered { stats.answered(now, now - self.began) } else { stats.failed(now) }
    }
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let now = Instant::now();
            locked(self.stats).entry(self.member.clone()).or_default().cancelled(now, now - self.began);
        }
    }
}

/// How one call ended, for the scatter and for the client.
enum Ended {
    Good(Bytes),
    /// The client's fault: every other replica would say the same.
    Refused(Failure),
    /// Try another replica; the error is kept in case there is none.
    Failed(Option<Failure>),
    NotServed(ShardSet),
}

impl Searches {
    /// The service over its parts.
    pub fn new(
        cluster: Cluster,
        members: Members,
        indexes: Indexes,
        options: SearchOptions,
        metrics: Arc<Metrics>,
    ) -> Self {
        let budget = Arc::new(Mutex::new(HedgeBudget::new(options.hedge_percent)));
        Self { cluster, members, indexes, options, stats: Arc::default(), budget, metrics }
    }

    /// `POST /indexes/{uid}/search`.
    ///
    /// # Errors
    /// The node's own error, or `miroir_shards_unavailable`.
    pub async fn by_body(&self, uid: &IndexUid, body: &[u8], asker: Asker) -> Result<Found, Failure> {
        self.search(uid, SearchQuery::from_json(body).map_err(query_failed)?, asker).await
    }

    /// `GET /indexes/{uid}/search`.
    ///
    /// # Errors
    /// As [`Self::by_body`].
    pub async fn by_pairs(&self, uid: &IndexUid, pairs: Vec<(String, String)>, asker: Asker) -> Result<Found, Failure> {
        self.search(uid, SearchQuery::from_query_string(pairs).map_err(query_failed)?, asker).await
    }

    async fn search(&self, uid: &IndexUid, query: SearchQuery, asker: Asker) -> Result<Found, Failure> {
        let (began, trace) = (Instant::now(), asker.trace);
        let index = self.indexes.find(uid)?;
        if query.passthrough_invalid() {
            return Err(self.refusal(&index, query.original(), ReadRoute::Search, trace).await);
        }
        match self.search_index(&index, &query, began, asker).await {
            Ok(found) => Ok(found),
            Err(e) => Err(self.reworded(e, &index, query.original(), ReadRoute::Search, trace).await),
        }
    }

    async fn search_index(
        &self,
        index: &Index,
        query: &SearchQuery,
        began: Instant,
        asker: Asker,
    ) -> Result<Found, Failure> {
        let (record, trace) = (&index.value, asker.trace);
        let view = IndexView::of(record.uid.as_str(), &record.client_settings);
        let pinned = record.primary_key.as_deref().and_then(|key| query.pinned_shards(key, record.shard_count()));
        let wanted = self.wanted(record, pinned);
        let question = Question {
            index,
            wanted: &wanted,
            kind: ReadKind::Search,
            hash: query.plan_hash(&record.physical),
            deadline: self.deadline(began),
            alone: query.part_body(1, &view).into(),
            shared: query.part_body(2, &view).into(),
            one: false,
        };
        let request_uid = asker.request_uid.to_string();
        let metadata = asker.metadata.then(|| metadata(record, query));
        let request = |scattered: &Scattered, keywords_only| {
            let merge_request = MergeRequest {
                query,
                view: &view,
                parts: &scattered.parts,
                keywords_only,
                missing: &scattered.missing,
                processing_time_ms: millis(began),
                request_uid: &request_uid,
                metadata: metadata.as_deref(),
            };
            if keywords_only && !keywords_suffice(&merge_request)? {
                return Ok(None);
            }
            merge(&merge_request).map(Some)
        };
        let malformed = |e: MergeError| Failure::internal(e.to_string());
        // A search that mixes keywords and vectors over several parts asks for keywords first: often they are enough.
        if let Some(keywords) = query.keyword_body(2, &view) {
            let first = Question { shared: keywords.into(), ..question.clone() };
            let scattered = self.scatter(first, trace).await?;
            let keywords_only = !scattered.parts.iter().any(|p| p.alone);
            if let Some(body) = request(&scattered, keywords_only).map_err(malformed)? {
                return self.found(body, scattered.missing);
            }
        }
        let scattered = self.scatter(question, trace).await?;
        match request(&scattered, false).map_err(malformed)? {
            Some(body) => self.found(body, scattered.missing),
            None => Err(Failure::internal("a merge gave no answer")),
        }
    }

    /// `POST /indexes/{uid}/facet-search`.
    ///
    /// # Errors
    /// As [`Self::by_body`].
    pub async fn facets(&self, uid: &IndexUid, body: &[u8], trace: TraceId) -> Result<Found, Failure> {
        let began = Instant::now();
        let query = FacetSearchQuery::from_json(body).map_err(query_failed)?;
        let index = self.indexes.find(uid)?;
        if query.passthrough_invalid() {
            return Err(self.refusal(&index, query.original(), ReadRoute::FacetSearch, trace).await);
        }
        let wanted = self.wanted(&index.value, None);
        let body = Bytes::copy_from_slice(body);
        let question = Question {
            index: &index,
            wanted: &wanted,
            kind: ReadKind::FacetSearch,
            hash: 0,
            deadline: self.deadline(began),
            alone: body.clone(),
            shared: body.clone(),
            one: false,
        };
        let scattered = match self.scatter(question, trace).await {
            Ok(scattered) => scattered,
            Err(e) => return Err(self.reworded(e, &index, query.original(), ReadRoute::FacetSearch, trace).await),
        };
        let view = IndexView::of(index.value.uid.as_str(), &index.value.client_settings);
        let merged = merge_facet_search(&query, &view, &scattered.parts, &scattered.missing, millis(began));
        self.found(merged.map_err(|e| Failure::internal(e.to_string()))?, scattered.missing)
    }

    /// When a request that began then is over.
    pub fn deadline(&self, began: Instant) -> Instant {
        began + self.options.deadline
    }

    /// The shards to ask: those that the request pins, or all.
    pub fn wanted(&self, record: &IndexRecord, pinned: Option<ShardSet>) -> ShardSet {
        // A request that can match nothing still has an answer with the right shape: any one shard gives it.
        pinned.filter(|p| !p.is_empty()).unwrap_or_else(|| ShardSet::all(record.shard_count()))
    }

    /// The answer for the client, by the policy on missing shards.
    ///
    /// # Errors
    /// `miroir_shards_unavailable`.
    pub fn found(&self, body: Vec<u8>, missing: ShardSet) -> Result<Found, Failure> {
        if !missing.is_empty() {
            self.metrics.partial_answers.inc();
            if !self.options.partial {
                return Err(unavailable(&missing));
            }
        }
        Ok(Found { body: body.into(), missing })
    }

    /// What a node says about a request that the mesh does not understand.
    pub async fn refusal(&self, index: &Index, original: &Original, route: ReadRoute, trace: TraceId) -> Failure {
        match self.words(index, original, route, trace).await {
            Ok(()) => {
                let message = "The request has a form that this version of miroir does not know.";
                Failure::new(ErrorCode::BadRequest, message)
            }
            Err(failure) => failure,
        }
    }

    /// An error as one node words it: beside the filter by shard, some texts would be others.
    pub async fn reworded(
        &self,
        failure: Failure,
        index: &Index,
        original: &Original,
        route: ReadRoute,
        trace: TraceId,
    ) -> Failure {
        if !matches!(failure, Failure::Node { status: 400..500, .. }) {
            return failure;
        }
        match self.words(index, original, route, trace).await {
            Err(words @ Failure::Node { status: 400..500, .. }) => words,
            _ => failure,
        }
    }

    /// Asks one node without the filter by shard, for its words on a request that it refuses.
    ///
    /// # Errors
    /// The node's own error, or why none was asked.
    pub async fn words(
        &self,
        index: &Index,
        original: &Original,
        route: ReadRoute,
        trace: TraceId,
    ) -> Result<(), Failure> {
        let (get, body) = match original {
            Original::Body(body) => (false, Bytes::from(body.clone())),
            Original::Parameters(pairs) => {
                let text = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
                (true, Bytes::from(text))
            }
        };
        let one = ShardSet::all(1);
        let kind = ReadKind::Words { route, get };
        let deadline = self.deadline(Instant::now());
        let question =
            Question { index, wanted: &one, kind, hash: 0, deadline, alone: body.clone(), shared: body, one: true };
        self.scatter(question, trace).await.map(drop)
    }

    fn member_states(&self, index: &Index) -> BTreeMap<MemberId, MemberState> {
        let (seen, stats, now) = (self.cluster.seen(), locked(&self.stats), Instant::now());
        let state = |(id, s): (&MemberId, &super::cluster::Seen)| {
            let stats = stats.get(id);
            let state = MemberState {
                serving: s.serving(),
                unserved: s.unserved.get(&index.value.physical).cloned().unwrap_or_default(),
                latency_us: stats.map_or(0, |s| s.latency_us(now)),
                in_flight: stats.map_or(0, MemberStats::in_flight),
                recent_errors: stats.map_or(0.0, |s| s.recent_errors(now)),
            };
            (id.clone(), state)
        };
        seen.iter().map(state).collect()
    }

    fn hedge_after(&self, member: &MemberId) -> Option<Duration> {
        if self.options.hedge_percent == 0 {
            return None;
        }
        locked(&self.stats).get(member).and_then(MemberStats::hedge_after)
    }

    /// Asks members until every shard wanted is answered once or given up.
    ///
    /// # Errors
    /// The client's fault as the node words it, or `miroir_shards_unavailable` if nobody has answered.
    pub async fn scatter(&self, question: Question<'_>, trace: TraceId) -> Result<Scattered, Failure> {
        let deadline = question.deadline;
        locked(&self.budget).request();
        let states = self.member_states(question.index);
        let groups = self.cluster.groups();
        let input = PlanInput {
            index: &question.index.value,
            groups: &groups,
            states: &states,
            own: self.cluster.own(),
            query_hash: question.hash,
            one: question.one,
        };
        let (mut scatter, mut actions) = Scatter::start(&input, question.wanted);
        let mut calls = FuturesUnordered::new();
        let mut running: BTreeMap<AskId, Running> = BTreeMap::new();
        let mut bodies: BTreeMap<AskId, (Bytes, bool)> = BTreeMap::new();
        let mut kept: Option<Failure> = None;
        let mut overdue = false;
        let mut hedges: Vec<AskId> = Vec::new();
        self.metrics.scatter_members.observe(actions.len() as f64);
        loop {
            for action in std::mem::take(&mut actions) {
                match action {
                    Action::Ask { ask, member, shards, alone, hedge, .. } => {
                        if hedge {
                            hedges.push(ask);
                        }
                        let (handle, registration) = AbortHandle::new_pair();
                        let late = self.hedge_after(&member).filter(|_| !hedge).map(|after| Instant::now() + after);
                        running.insert(ask, Running { abort: handle, late, alone });
                        let call = self.ask_one(&question, member, shards, alone, deadline, trace);
                        calls.push(async move { (ask, Abortable::new(call, registration).await) });
                    }
                    Action::Cancel(ask) => {
                        if let Some(run) = running.remove(&ask) {
                            run.abort.abort();
                        }
                    }
                }
            }
            if scatter.is_finished() {
                break;
            }
            let next_late = running.values().filter_map(|r| r.late).min().unwrap_or(deadline).min(deadline);
            tokio::select! {
                biased;
                ended = calls.next() => {
                    let Some((ask, Ok(ended))) = ended else { continue };
                    let alone = running.remove(&ask).is_some_and(|r| r.alone);
                    let outcome = match ended {
                        Ended::Good(body) => {
                            bodies.insert(ask, (body, alone));
                            Outcome::Answered
                        }
                        Ended::Refused(failure) => return Err(failure),
                        Ended::Failed(failure) => {
                            self.metrics.replans.with_label_values(&["failed"]).inc();
                            kept = failure.or(kept);
                            Outcome::Failed
                        }
                        Ended::NotServed(shards) => {
                            self.metrics.replans.with_label_values(&["not_served"]).inc();
                            Outcome::NotServed { shards }
                        }
                    };
                    actions = scatter.on(&input, ask, outcome);
                }
                () = tokio::time::sleep_until(next_late.into()) => {
                    if Instant::now() >= deadline {
                        overdue = true;
                        actions = scatter.deadline();
                    } else {
                        actions = self.late(&mut scatter, &input, &mut running);
                    }
                }
            }
        }
        let finished = scatter.finish();
        for hedge in &hedges {
            let winner = if finished.answers.contains(hedge) { "second" } else { "first" };
            self.metrics.hedges.with_label_values(&[winner]).inc();
        }
        let part = |ask: &AskId| {
            let (body, alone) = bodies.remove(ask)?;
            Some(PartAnswer { shards: scatter.shards(*ask)?.clone(), alone, body })
        };
        let parts: Vec<PartAnswer> = finished.answers.iter().filter_map(part).collect();
        if parts.is_empty() {
            let why = || if overdue { self.overdue(&finished.missing) } else { unavailable(&finished.missing) };
            return Err(kept.unwrap_or_else(why));
        }
        Ok(Scattered { parts, missing: finished.missing })
    }

    /// The error where the time is over and nobody has answered.
    fn overdue(&self, missing: &ShardSet) -> Failure {
        let message = format!(
            "No member has answered for these shards within {} s, the time that a search may take: {missing}. Their nodes may be \
             busy, or the search is too large for them.",
            self.options.deadline.as_secs_f64()
        );
        Failure::new(ErrorCode::MiroirShardsUnavailable, message)
    }

    /// Doubles the calls that are late, as far as the budget goes.
    fn late(
        &self,
        scatter: &mut Scatter,
        input: &PlanInput<'_>,
        running: &mut BTreeMap<AskId, Running>,
    ) -> Vec<Action> {
        let now = Instant::now();
        let mut actions = Vec::new();
        let late = running.iter_mut().filter(|(_, r)| r.late.is_some_and(|at| at <= now));
        for (ask, run) in late {
            run.late = None;
            if !locked(&self.budget).take() {
                continue;
            }
            let doubled = scatter.late(input, *ask);
            if doubled.is_empty() {
                locked(&self.budget).give_back();
            }
            actions.extend(doubled);
        }
        actions
    }

    async fn ask_one(
        &self,
        question: &Question<'_>,
        member: MemberId,
        shards: ShardSet,
        alone: bool,
        deadline: Instant,
        trace: TraceId,
    ) -> Ended {
        let index = question.index;
        let kind = match question.kind {
            // There is nothing to compare with, unless this is one step of several that all have the same form.
            ReadKind::Documents { .. } if alone && question.alone != question.shared => {
                ReadKind::Documents { order_values: false }
            }
            kind => kind,
        };
        let read = Read { index: index.value.physical.clone(), record_version: index.version, shards, kind };
        let body = if alone { question.alone.clone() } else { question.shared.clone() };
        let call = Call { request: Request::Read(read), body, deadline, trace };
        let sent = Sent::new(&self.stats, member.clone());
        let answer = self.members.call(&member, call).await;
        let ended = self.judge(index, &member, answer);
        sent.end(!matches!(ended, Ended::Failed(_)));
        ended
    }

    fn judge(&self, index: &Index, member: &MemberId, answer: Result<Answer, CallError>) -> Ended {
        let failed = |reason: String| {
            tracing::debug!(%member, reason, "a part of a search failed");
            Ended::Failed(None)
        };
        match answer {
            Ok(Answer { reply: Reply::Node(200), body }) => Ended::Good(body),
            Ok(Answer { reply: Reply::Node(status), body }) => {
                let failure = node_failure(status, &body, index);
                // A node that has not got the index (yet) is not the client's fault, another replica may have it.
                let no_index = status == 404 && code_of(&body).as_deref() == Some("index_not_found");
                if (400..500).contains(&status) && !no_index {
                    Ended::Refused(failure)
                } else {
                    tracing::debug!(%member, status, "a node could not answer its part of a search");
                    Ended::Failed(Some(failure))
                }
            }
            Ok(Answer { reply: Reply::NotServed(shards, _), .. }) => Ended::NotServed(shards),
            Ok(Answer { reply, .. }) => failed(format!("{reply:?}")),
            Err(e) => failed(e.to_string()),
        }
    }
}

struct Running {
    abort: AbortHandle,
    late: Option<Instant>,
    alone: bool,
}

/// What Meilisearch says about a search to a client that asks.
fn metadata(record: &IndexRecord, query: &SearchQuery) -> String {
    let mut metadata = Map::new();
    if let Some(q) = query.q() {
        metadata.insert("query".into(), q.into());
    }
    metadata.insert("queryUid".into(), Uuid::now_v7().to_string().into());
    metadata.insert("indexUid".into(), record.uid.as_str().into());
    if let Some(key) = &record.primary_key {
        metadata.insert("primaryKey".into(), key.as_str().into());
    }
    Value::Object(metadata).to_string()
}

fn millis(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn code_of(body: &[u8]) -> Option<String> {
    let error: Value = serde_json::from_slice(body).ok()?;
    error.get("code")?.as_str().map(str::to_owned)
}

/// The error where shards can't be had.
pub fn unavailable(missing: &ShardSet) -> Failure {
    let message = format!("No copy of these shards can be asked now: {missing}. Try again.");
    Failure::new(ErrorCode::MiroirShardsUnavailable, message)
}

/// A query that the mesh refuses itself.
pub fn query_failed(error: QueryError) -> Failure {
    match error {
        QueryError::Reserved { parameter } => reserved(&parameter),
    }
}
