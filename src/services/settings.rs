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
use super::tasks::Order as Task;
use super::writes::{Followed, Order, Taken, Writes};
use crate::proto::tasks::Subject;
use crate::proto::tasks::view::Summary;
use crate::proto::{missed, settings};
use crate::types::TraceId;
use crate::types::{ErrorCode, IndexRecord, IndexUid, MemberId, RecordVersion, TaskUid};
use crate::wire::verbs::{NodeQuestion, WriteKind};

/// How long the nodes may take to enqueue a change.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long it is looked whether it is in the record who misses a change, before that is given up.
const NOTING: Duration = Duration::from_secs(20);
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
        let (index_of, uid) = (Arc::clone(index), task.uid());
        let mut change = Change { settings: self.clone(), index: index_of, task: uid, place: None, body, trace };
        if !away.is_empty() {
            match insist(NOTING, || change.is_missed_by(&away)).await {
                Ok(noted) => {
                    change.place = Some(noted.value.missed_settings.get(&uid).map_or(noted.version, |m| m.place))
                }
                Err(failure) => return Err(change.not_noted(task, failure)),
            }
        }
        let taken = match self.writes.take(index, task, orders, Instant::now() + PATIENCE, trace).await {
            Ok(taken) => taken,
            Err(failure) => return Err(change.given_up(failure, !away.is_empty()).await),
        };
        // Only what every node that is there has taken becomes the client's view.
        let kept = change.update(|r, version| {
            // Against what stands now: another change may have come in between.
            r.client_settings =
                settings::to_node(&patch, &r.client_settings, r.shard_count()).map_err(|e| reserved(&e.setting))?.1;
            r.settings_version += 1;
            // Who took it and is found to miss an earlier one by now, or to have got one since, gets it once more.
            let given = (change.index.version, change.place.unwrap_or(version));
            let late = |m: &MemberId| r.misses_settings(m) || missed::got_since_before(r, given, m);
            let again = taken.members().filter(|m| late(m));
            let missing = taken.away.iter().chain(again).cloned().collect();
            change.miss(r, version, &missing);
            Ok(())
        });
        let (kept, summary) = (kept.await, taken.summary());
        if let Ok(index) = &kept {
            change.place.get_or_insert(index.version);
        }
        let task = change.task;
        tokio::spawn(change.follow(taken, kept.as_ref().ok().map(|index| index.value.settings_version)));
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
    /// The version of the record with which it came, once it has: changes that are begun later have higher ones.
    place: Option<RecordVersion>,
    /// What the nodes are told.
    body: String,
    trace: TraceId,
}

impl Change {
    async fn update(
        &self,
        edit: impl Fn(&mut IndexRecord, RecordVersion) -> Result<(), Failure>,
    ) -> Result<Index, Failure> {
        self.settings.indexes.update_to(&self.index.value.physical, self.trace, edit).await
    }

    fn miss(&self, record: &mut IndexRecord, version: RecordVersion, members: &BTreeSet<MemberId>) {
        let holders = self.settings.cluster.topology().holders().cloned().collect();
        // Nobody gets settings of an index that is gone.
        if !record.deleted {
            let place = self.place.unwrap_or(version);
            missed::add(record, (self.task, place), members, &self.body, &holders);
        }
    }

    /// These members are to get it later.
    async fn is_missed_by(&self, members: &BTreeSet<MemberId>) -> Result<Index, Failure> {
        self.update(|record, version| {
            self.miss(record, version, members);
            Ok(())
        })
        .await
    }

    /// It was not noted, or that is not known, and nothing was sent to anybody: what the client hears.
    fn not_noted(self, task: Task, failure: Failure) -> Failure {
        if !is_unknown(&failure) {
            self.settings.writes.failed(task, &failure);
            return failure;
        }
        let failure = self.may_be_got();
        let told = failure.clone();
        tokio::spawn(async move {
            self.withdraw().await;
            self.settings.writes.failed(task, &failure);
        });
        told
    }

    /// Sees to it that nobody gets it any more, whatever became of what was noted.
    async fn withdraw(&self) {
        let mut pause = AGAIN;
        loop {
            // Changed in any case: what is on its way to the record is of an earlier version then.
            let void = self.update(|record, _| {
                missed::withdraw(record, self.task);
                record.updated_at.clear();
                Ok(())
            });
            match void.await {
                Ok(_) | Err(Failure::Mesh { code: ErrorCode::Internal, .. }) => return,
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(AGAIN_MAX);
        }
    }

    /// Nobody is to get it any more.
    async fn is_void(&self) -> Result<Index, Failure> {
        self.update(|record, _| {
            missed::withdraw(record, self.task);
            Ok(())
        })
        .await
    }

    /// It was not taken: what the client hears.
    async fn given_up(self, failure: Failure, noted: bool) -> Failure {
        // What some may have taken, the others are to get.
        if !noted || is_unknown(&failure) || self.is_void().await.is_ok() {
            return failure;
        }
        let failure = self.may_be_got();
        tokio::spawn(async move { self.withdraw().await });
        failure
    }

    fn may_be_got(&self) -> Failure {
        let message = "No node has taken the settings, but members that are away may get them when they are back; send the same \
                       settings again.";
        Failure::Mesh { code: ErrorCode::MiroirWriteUnknown, message: message.into(), task: Some(self.task) }
    }

    /// Brings the task to its end.
    ///
    /// `kept`: the settings' version that it made, if the record is known to have it.
    async fn follow(self, taken: Taken, kept: Option<u64>) {
        let writes = &self.settings.writes;
        let (mut pause, mut passed) = (AGAIN, BTreeSet::new());
        loop {
            // Who is away is looked at each time: one that is back has a later change already, and must not get this one behind it.
            let followed = writes.follow(&taken).await;
            match self.note(&followed, kept).await {
                // It was back meanwhile: it is asked once more. If it is away all that time again, it has done what came later, and
                // so this one: a node's tasks keep their order.
                Ok(later) if !later.is_subset(&passed) => passed.extend(later),
                Ok(_) if kept.is_some() => return writes.end(taken, followed).await,
                Ok(_) => return writes.incomplete(taken, NOT_KEPT),
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

    /// Puts into the record what is known only now, but of members that have had a later change since: those are returned.
    async fn note(&self, followed: &Followed, kept: Option<u64>) -> Result<BTreeSet<MemberId>, Failure> {
        if followed.came_to_nothing() {
            self.is_void().await?;
        } else if !followed.away.is_empty() {
            let noted = self.update(|record, version| {
                let members = followed.away.iter().filter(|m| !self.is_behind(record, kept, m));
                self.miss(record, version, &members.cloned().collect());
                Ok(())
            });
            let noted = noted.await?;
            return Ok(followed.away.iter().filter(|m| self.is_behind(&noted.value, kept, m)).cloned().collect());
        }
        Ok(BTreeSet::new())
    }

    /// Whether a later change was made that the member does not miss: it took it, or got it when it was back.
    fn is_behind(&self, record: &IndexRecord, kept: Option<u64>, member: &MemberId) -> bool {
        // Of one that is not known to be kept, and so ends as such, whatever was kept since it was begun may be later.
        let kept = kept.unwrap_or(self.index.value.settings_version);
        let misses_later = || self.place.is_some_and(|place| missed::misses_later(record, place, member));
        record.settings_version > kept && !misses_later()
    }
}

fn is_unknown(failure: &Failure) -> bool {
    matches!(failure, Failure::Mesh { code: ErrorCode::MiroirWriteUnknown, .. })
}

/// Tries again while it is not known what became of an attempt: each looks at how things stand by then.
async fn insist<T, F: Future<Output = Result<T, Failure>>>(
    patience: Duration,
    attempt: impl Fn() -> F,
) -> Result<T, Failure> {
    let (began, mut pause, mut unknown) = (Instant::now(), AGAIN, None);
    loop {
        let failure = match attempt().await {
            Ok(done) => return Ok(done),
            // That nothing was done is said of this attempt only.
            Err(failure) => unknown.take().unwrap_or(failure),
        };
        if !is_unknown(&failure) || began.elapsed() >= patience {
            return Err(failure);
        }
        unknown = Some(failure);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(AGAIN_MAX);
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
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::net::{Answer, Call, CallError, Handler, Peers};
    use crate::services::cluster::{MemberState, NodeHealth, Seen};
    use crate::services::homes::found::found;
    use crate::services::members::Members;
    use crate::services::records::{Records, Versioned, index_key};
    use crate::services::tasks::Tasks;
    use crate::services::testing::{World, member, within};
    use crate::types::{PhysicalIndex, ShardRecord};
    use crate::wire::verbs::{Reply, Request};

    #[tokio::test]
    async fn an_attempt_of_unknown_end_is_looked_at_until_it_is_known_what_became_of_it() {
        use ErrorCode::{MiroirNoQuorum as Nothing, MiroirWriteUnknown as Unknown};
        let run = async |script: &[Option<ErrorCode>]| {
            let turn = std::cell::Cell::new(0);
            let attempt = || {
                let code = script[turn.get().min(script.len() - 1)];
                turn.set(turn.get() + 1);
                async move { code.map_or(Ok(()), |code| Err(Failure::new(code, "no"))) }
            };
            let done = insist(Duration::from_millis(900), attempt).await;
            let code = |failure| if let Failure::Mesh { code, .. } = failure { Some(code) } else { None };
            (done.map_err(code), turn.get())
        };
        assert_eq!(run(&[None]).await, (Ok(()), 1));
        assert_eq!(run(&[Some(Nothing), None]).await, (Err(Some(Nothing)), 1));
        // The second attempt finds that the first was no failure, or makes it one.
        assert_eq!(run(&[Some(Unknown), None]).await, (Ok(()), 2));
        let (done, tries) = run(&[Some(Unknown), Some(Nothing)]).await;
        assert!(done == Err(Some(Unknown)) && tries > 1, "what was certain of one attempt is told of all: {done:?}");
    }

    /// Nodes that take and have done everything.
    #[derive(Default)]
    struct Obeying {
        /// While this member takes an order, it is noted here that it misses an earlier one.
        noting: Mutex<Option<(MemberId, Records)>>,
        /// And it gets that behind the order, before this is kept.
        gets: AtomicBool,
        /// Or before the order, which it does not take then.
        refuses: AtomicBool,
        /// The second member is suspected for a moment, and the first is slow.
        flaps: Mutex<Option<Cluster>>,
    }

    const EARLIER: TaskUid = TaskUid(1_000_000);

    impl Obeying {
        async fn answer(&self, to: &MemberId, call: &Call) -> Answer {
            let noting = self.noting.lock().unwrap().clone().filter(|(member, _)| member == to);
            match &call.request {
                Request::Write(write) => {
                    if let Some((member, records)) = noting {
                        let index = records.snapshot().index(&write.index).unwrap();
                        let mut record = index.value.clone();
                        let all = (0..3).map(crate::services::testing::member).collect();
                        missed::add(&mut record, (EARLIER, 1), &[member.clone()].into(), "{}", &all);
                        let key = index_key(&write.index);
                        let noted = records.write(&key, index.version, &record).await.unwrap();
                        if self.gets.load(Ordering::SeqCst) {
                            missed::got(&mut record, EARLIER, &member, noted + 1);
                            records.write(&key, noted, &record).await.unwrap();
                        }
                        if self.refuses.load(Ordering::SeqCst) {
                            return Answer::of(Reply::NodeDown("it had yet to get earlier settings".into()));
                        }
                    }
                    Answer::of(Reply::Enqueued(7))
                }
                Request::Node(_) => {
                    let body = r#"{"results":[{"uid":7,"status":"succeeded"}]}"#;
                    Answer { reply: Reply::Node(200), body: body.into() }
                }
                other => panic!("nobody asks {other:?} here"),
            }
        }
    }

    #[async_trait]
    impl Peers for Obeying {
        async fn call(&self, to: &MemberId, call: Call) -> Result<Answer, CallError> {
            let flaps = self.flaps.lock().unwrap().clone().filter(|_| matches!(call.request, Request::Write(_)));
            if let Some(cluster) = flaps {
                let suspect = |cluster: &Cluster, is| {
                    cluster.update(|seen| seen.get_mut(&member(1)).unwrap().suspect = is);
                };
                suspect(&cluster, true);
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    suspect(&cluster, false);
                });
                return Err(CallError::NotSent { member: to.clone(), reason: "its connection is made anew".into() });
            }
            Ok(self.answer(to, &call).await)
        }

        fn is_suspect(&self, _: &MemberId) -> bool {
            false
        }
    }

    #[async_trait]
    impl Handler for Obeying {
        async fn handle(&self, from: &MemberId, call: Call) -> Answer {
            if self.flaps.lock().unwrap().is_some() {
                tokio::time::sleep(Duration::from_millis(800)).await;
            }
            self.answer(from, &call).await
        }
    }

    /// The settings of the first member, whose third is away, and an index.
    async fn settings(world: &World) -> (Settings, Index, Arc<Obeying>) {
        let founding = world
            .alive()
            .map(|(_, m)| found(m.journals.clone(), m.leases.clone(), m.cluster.clone(), m.seen.subscribe()));
        within("homes", futures_util::future::join_all(founding)).await;
        let (own, node) = (world.at(0), Arc::<Obeying>::default());
        let healthy = NodeHealth { healthy: true, version: None, error: None };
        let there = Seen { suspect: false, state: Some(MemberState::Active), node: healthy, ..Seen::unknown() };
        own.cluster.update(|seen| seen.extend([0, 1].map(|i| (member(i), there.clone()))));
        let members = Members::new(member(0), Arc::clone(&node) as Arc<dyn Peers>, Arc::default());
        members.set_local(Arc::clone(&node) as Arc<dyn Handler>);
        let (cluster, records) = (own.cluster.clone(), own.records.clone());
        let tasks = Tasks::new(own.homes.clone(), own.sender.clone(), Arc::clone(&own.metrics));
        let metrics = Arc::clone(&own.metrics);
        let writes = Writes::new(cluster.clone(), members.clone(), records.clone(), tasks.clone(), metrics);
        let indexes = Indexes::new(cluster.clone(), records.clone(), own.journals.clone(), tasks, writes.clone());
        let value = IndexRecord {
            uid: IndexUid::new("movies").unwrap(),
            physical: PhysicalIndex::new("movies__m00000001").unwrap(),
            primary_key: None,
            settings_version: 0,
            missed_settings: Default::default(),
            caught_up: Default::default(),
            client_settings: Default::default(),
            shards: vec![ShardRecord::default(); 4],
            created_at: String::new(),
            updated_at: String::new(),
            deleted: false,
        };
        let version = records.write(&index_key(&value.physical), 0, &value).await.unwrap();
        let settings = Settings::new(cluster.clone(), indexes, writes, Nodes::new(cluster, members));
        (settings, Arc::new(Versioned { version, value }), node)
    }

    fn now(world: &World, index: &Index) -> Index {
        world.at(0).records.snapshot().index(&index.value.physical).unwrap()
    }

    /// What a member is to get from here on.
    fn gets(world: &World, index: &Index, i: usize) -> Vec<String> {
        let (mut record, mut all) = (now(world, index).value.clone(), Vec::new());
        while let Some((task, patch)) = missed::next(&record, &member(i)) {
            all.push(patch.to_owned());
            missed::got(&mut record, task, &member(i), 0);
        }
        all
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_took_a_change_and_is_found_to_miss_an_earlier_one_gets_both_in_their_order() {
        let world = World::start(3, |_, _| Vec::new()).await;
        let (settings, index, node) = settings(&world).await;
        let patch = |word: &str| serde_json::json!({"stopWords": [word]}).as_object().unwrap().clone();
        let trace = TraceId::default();
        within("a change", settings.patch_index(&index, patch("first"), trace)).await.unwrap();
        *node.noting.lock().unwrap() = Some((member(1), world.at(0).records.clone()));
        let index = now(&world, &index);
        within("a change", settings.patch_index(&index, patch("second"), trace)).await.unwrap();
        assert_eq!(gets(&world, &index, 0), [""; 0]);
        assert_eq!(gets(&world, &index, 1), ["{}", r#"{"stopWords":["second"]}"#]);
        assert_eq!(gets(&world, &index, 2), [r#"{"stopWords":["first"]}"#, r#"{"stopWords":["second"]}"#]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_took_a_change_and_got_an_earlier_one_behind_it_gets_it_once_more() {
        let world = World::start(3, |_, _| Vec::new()).await;
        let (settings, index, node) = settings(&world).await;
        let patch = serde_json::json!({"stopWords": ["second"]}).as_object().unwrap().clone();
        *node.noting.lock().unwrap() = Some((member(1), world.at(0).records.clone()));
        node.gets.store(true, Ordering::SeqCst);
        within("a change", settings.patch_index(&index, patch.clone(), TraceId::default())).await.unwrap();
        assert_eq!(gets(&world, &index, 0), [""; 0]);
        assert_eq!(gets(&world, &index, 1), [r#"{"stopWords":["second"]}"#]);
        // Who got it before an order was given has the order behind it.
        *node.noting.lock().unwrap() = None;
        let index = now(&world, &index);
        let mut record = index.value.clone();
        record.missed_settings.clear();
        let version = world.at(0).records.write(&index_key(&record.physical), index.version, &record).await.unwrap();
        let index = Arc::new(Versioned { version, value: record });
        within("a change", settings.patch_index(&index, patch, TraceId::default())).await.unwrap();
        assert_eq!(gets(&world, &index, 1), [""; 0]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_does_not_take_a_change_because_it_has_just_got_an_earlier_one_gets_it_later() {
        let world = World::start(3, |_, _| Vec::new()).await;
        let (settings, index, node) = settings(&world).await;
        let patch = serde_json::json!({"stopWords": ["second"]}).as_object().unwrap().clone();
        *node.noting.lock().unwrap() = Some((member(1), world.at(0).records.clone()));
        node.gets.store(true, Ordering::SeqCst);
        node.refuses.store(true, Ordering::SeqCst);
        within("a change", settings.patch_index(&index, patch, TraceId::default())).await.unwrap();
        assert_eq!(gets(&world, &index, 1), [r#"{"stopWords":["second"]}"#]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_is_suspected_for_a_moment_gets_a_change_later_and_it_does_not_fail() {
        let world = World::start(3, |_, _| Vec::new()).await;
        let (settings, index, node) = settings(&world).await;
        *node.flaps.lock().unwrap() = Some(world.at(0).cluster.clone());
        let patch = serde_json::json!({"stopWords": ["a"]}).as_object().unwrap().clone();
        within("a change", settings.patch_index(&index, patch, TraceId::default())).await.unwrap();
        assert!(world.at(0).cluster.serving(&member(1)), "it is back by then");
        let record = now(&world, &index).value.clone();
        assert_eq!([0, 1, 2].map(|i| record.misses_settings(&member(i))), [false, true, true]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_change_that_is_withdrawn_does_not_come_later_either() {
        let world = World::start(3, |_, _| Vec::new()).await;
        let (settings, index, _) = settings(&world).await;
        let (task, trace, of, body) = (TaskUid(5), TraceId::default(), Arc::clone(&index), "{}".to_owned());
        let mut change = Change { settings, index: of, task, place: None, body, trace };
        let noted = change.is_missed_by(&[member(2)].into()).await.unwrap();
        assert_eq!(noted.value.missed_settings[&task].place, noted.version);
        change.withdraw().await;
        let void = now(&world, &index);
        assert!(void.value.missed_settings.is_empty());
        // The same where it was noted by a message that is still on its way.
        change.withdraw().await;
        let records = &world.at(0).records;
        let late = records.write(&index_key(&index.value.physical), void.version, &noted.value).await;
        assert!(late.is_err() && now(&world, &index).value.missed_settings.is_empty(), "{late:?}");
        // Who does not miss what came later has had it.
        change.place = Some(noted.version);
        let later = IndexRecord { settings_version: 3, ..void.value.clone() };
        let mut behind = later.clone();
        missed::add(&mut behind, (TaskUid(1), noted.version + 1), &[member(2)].into(), "{}", &[member(2)].into());
        let cases = [(&later, Some(2)), (&later, Some(3)), (&behind, Some(2)), (&later, None), (&void.value, None)];
        let is_behind = |change: &Change| cases.map(|(record, kept)| change.is_behind(record, kept, &member(2)));
        assert_eq!(is_behind(&change), [true, false, false, true, false]);
        // One that has no place in the record would come behind all that have.
        change.place = None;
        assert_eq!(is_behind(&change)[3..], [true, false]);
    }

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
