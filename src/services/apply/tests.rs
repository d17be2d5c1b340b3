//! Several members in one process, each with a small node over HTTP, real stores and real journals.

mod fake;
mod reads;
mod rebuild;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::fake::{Documents, Fake, Faults, document};
use super::{ApplyHandle, Config, Driver, Parts, Told};
use crate::net::node::NodeClient;
use crate::net::{Answer, Call, CallError, Peers};
use crate::proto::apply::Config as CoreConfig;
use crate::proto::journal::log::Bounds;
use crate::proto::journal::{Answer as Written, Kind, Write};
use crate::proto::missed;
use crate::proto::tasks::home::body;
use crate::services::cluster::{Cluster, NodeHealth};
use crate::services::ledger::ChangeRequest;
use crate::services::local::Local;
use crate::services::records::{index_key, key_of};
use crate::services::snapshot::{self, SnapshotHandle};
use crate::services::testing::{LONG, World, member, within};
use crate::store::StoreError;
use crate::types::{
    IndexRecord, IndexUid, JournalKey, JournalRecord, MemberId, MissedSettings, PhysicalIndex, ReplicaId, ReplicaState,
    ShardId, ShardRecord, ShardReplica, ShardSet, TaskPart, TaskUid, TraceId, Value as RecordValue,
};
use crate::wire::verbs::{Reply, Request, Write as Order, WriteKind};

const SHARDS: u16 = 3;
const MEMBERS: usize = 3;
const SET: Kind = Kind::Set { skip_creation: false };
const MERGE: Kind = Kind::Merge { skip_creation: false };
const EDIT: &str = r#"{"function":"if \"n\" in doc { doc.n += 1 } else { doc.n = 1 }","filter":null}"#;

fn index() -> PhysicalIndex {
    PhysicalIndex::new("movies__m00000001").unwrap()
}

fn key(shard: u16) -> JournalKey {
    JournalKey { index: index(), shard: ShardId(shard) }
}

/// Looks again and again until it is so.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    within(what, async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

fn config() -> Config {
    let core = CoreConfig {
        settle: Duration::from_millis(300),
        retry_min: Duration::from_millis(10),
        retry_max: Duration::from_millis(200),
        payload: Bounds { entries: 40, bytes: 4_000 },
        page: 8,
        history: 16,
        behind: 500,
        ..CoreConfig::default()
    };
    Config {
        core,
        linger: Duration::from_millis(100),
        verdicts_min: Duration::from_millis(20),
        verdicts_max: Duration::from_millis(500),
    }
}

type Handles = Arc<Mutex<BTreeMap<MemberId, (ApplyHandle, SnapshotHandle)>>>;

/// Calls the appliers of others.
struct Between(Handles, MemberId);

#[async_trait]
impl Peers for Between {
    async fn call(&self, to: &MemberId, call: Call) -> Result<Answer, CallError> {
        let handle = || self.0.lock().unwrap().get(to).cloned();
        let gone = || CallError::NotSent { member: to.clone(), reason: "gone".into() };
        let (handle, snapshots) = handle().ok_or_else(gone)?;
        let refused = |refusal| CallError::Refused { member: to.clone(), refusal };
        match &call.request {
            Request::Verdicts(of) => {
                handle.verdicts(of).await.map(|all| Answer::of(Reply::Verdicts(all))).map_err(refused)
            }
            Request::Documents(of) => handle.documents(of).await.map_err(refused),
            Request::Node(question) => Ok(handle.local.question(question, &call.body, call.deadline).await),
            Request::Snapshot(of) => {
                let from = &self.1;
                let answer = snapshots.receive(from, of, &call.body).await;
                // Who has died meanwhile has not answered.
                let alive = |member| self.0.lock().unwrap().contains_key(member);
                if alive(to) && alive(from) { Ok(answer) } else { Err(gone()) }
            }
            other => panic!("nobody asks {other:?} here"),
        }
    }

    fn is_suspect(&self, _: &MemberId) -> bool {
        false
    }
}

/// The applier of one member.
struct Running {
    handle: ApplyHandle,
    local: Local,
    snapshots: SnapshotHandle,
    driver: JoinHandle<Result<(), StoreError>>,
    /// Makes copies anew, where the test wants that.
    rebuilds: Option<JoinHandle<Result<(), StoreError>>>,
}

/// Everything: members, their nodes, and what was written.
struct All {
    world: World,
    nodes: Vec<Fake>,
    health: Vec<watch::Sender<NodeHealth>>,
    handles: Handles,
    running: Vec<Option<Running>>,
    next_task: u32,
    model: Vec<Documents>,
    /// Copies are made anew.
    rebuilds: bool,
}

impl All {
    async fn start() -> Self {
        Self::start_with(false).await
    }

    async fn start_with(rebuilds: bool) -> Self {
        let world = World::start(MEMBERS, |_, _| Vec::new()).await;
        let copies: Vec<ReplicaId> = (0..MEMBERS).map(|i| world.at(i).journals.me().clone()).collect();
        let of = |shard: u16| (0..MEMBERS).map(|i| copies[(usize::from(shard) + i) % MEMBERS].clone()).collect();
        put_record(&world, &index_record()).await;
        world.create(&index(), (0..SHARDS).map(of).collect()).await;
        let mut all = Self {
            world,
            nodes: Vec::new(),
            health: Vec::new(),
            handles: Handles::default(),
            running: Vec::new(),
            next_task: 1,
            model: vec![Documents::new(); usize::from(SHARDS)],
            rebuilds,
        };
        for i in 0..MEMBERS {
            all.nodes.push(Fake::start(i as u64).await);
            let healthy = NodeHealth { healthy: true, version: None, error: None };
            all.health.push(watch::Sender::new(healthy));
            all.running.push(None);
            until("the index's record", async || all.world.at(i).records.snapshot().index(&index()).is_some()).await;
            all.run(i).await;
        }
        for shard in 0..SHARDS {
            until("a primary", async || all.primary(shard).is_some()).await;
        }
        all
    }

    async fn run(&mut self, i: usize) {
        let me = self.world.at(i);
        let node = NodeClient::new(&self.nodes[i].url, None).unwrap();
        let cluster = Cluster::new(self.world.topology(&member(i)));
        let (health, timeout) = (self.health[i].subscribe(), Duration::from_secs(5));
        let metrics = Arc::clone(&me.metrics);
        let local = Local::load(node, me.store.clone(), me.records.clone(), cluster, health, timeout, metrics);
        let local = local.await.unwrap();
        let peers: Arc<dyn Peers> = Arc::new(Between(Arc::clone(&self.handles), member(i)));
        let (driver, handle) = Driver::new(Parts {
            config: config(),
            ledger: me.ledger.clone(),
            journals: me.journals.clone(),
            store: me.journal_store.clone(),
            local: local.clone(),
            peers: Arc::clone(&peers),
            metrics: Arc::clone(&me.metrics),
        });
        let (snapshot_driver, snapshots) = snapshot::Driver::new(snapshot::Parts {
            config: rebuild::config(),
            apply: handle.clone(),
            journals: me.journals.clone(),
            store: me.journal_store.clone(),
            local: local.clone(),
            peers,
            start: me.ledger.start(),
        });
        self.handles.lock().unwrap().insert(member(i), (handle.clone(), snapshots.clone()));
        let rebuilds = self.rebuilds.then(|| tokio::spawn(snapshot_driver.run()));
        self.running[i] = Some(Running { handle, local, snapshots, driver: tokio::spawn(driver.run()), rebuilds });
    }

    /// Ends the appliers of a member wherever they are.
    async fn kill(&mut self, i: usize) {
        self.handles.lock().unwrap().remove(&member(i));
        let Running { driver, rebuilds, .. } = self.running[i].take().unwrap();
        rebuilds.inspect(JoinHandle::abort);
        driver.abort();
        match driver.await {
            Ok(ended) => panic!("it ended by itself: {ended:?}"),
            Err(error) => assert!(error.is_cancelled(), "{error}"),
        }
        // What it had given to its store is done or not before another begins.
        self.world.at(i).journal_store.set_applied(Vec::new()).await.unwrap();
    }

    fn handle(&self, i: usize) -> &ApplyHandle {
        &self.running[i].as_ref().unwrap().handle
    }

    fn record(&self) -> Arc<JournalRecord> {
        self.world.alive().next().unwrap().1.journals.record(&index()).unwrap()
    }

    /// Who orders the writes of a shard.
    fn primary(&self, shard: u16) -> Option<usize> {
        let named = self.record().shard(ShardId(shard))?.primary.clone()?.member;
        (0..MEMBERS).find(|i| member(*i) == named)
    }

    /// Writes one task's parts, and does the same to the model; gives the numbers of the entries.
    async fn write(&mut self, kind: Kind, parts: Vec<(u16, String)>) -> Vec<u64> {
        let task = TaskUid(self.next_task);
        self.next_task += 1;
        let writes = parts.iter().map(|(shard, payload)| {
            let body = body::join(b"{}", payload.as_bytes()).unwrap();
            (ShardId(*shard), Write { part: TaskPart { task, part: 0 }, kind, body })
        });
        let sender = &self.world.at(0).sender;
        let answers = sender.send(&index(), writes.collect(), Instant::now() + LONG, TraceId::default()).await;
        for (shard, payload) in &parts {
            apply(&mut self.model[usize::from(*shard)], kind, payload);
        }
        let seq = |answer: &Written| match answer {
            Written::Committed { seq, .. } => *seq,
            other => panic!("not committed: {other:?}"),
        };
        answers.iter().map(seq).collect()
    }

    async fn set(&mut self, documents: &[Value]) -> Vec<u64> {
        self.write(SET, parts_of(documents)).await
    }

    /// Something random.
    async fn write_any(&mut self, rng: &mut fastrand::Rng) {
        let some = |rng: &mut fastrand::Rng| -> Vec<Value> {
            let count = rng.u32(1..5);
            (0..count).map(|_| document(rng.u16(0..SHARDS), rng.u32(0..6), rng.u32(0..4))).collect()
        };
        let every = |payload: String| (0..SHARDS).map(|shard| (shard, payload.clone())).collect::<Vec<_>>();
        let documents = some(rng);
        match rng.u32(0..20) {
            0..9 => drop(self.set(&documents).await),
            9..12 => drop(self.write(MERGE, parts_of(&documents)).await),
            12 => drop(self.write(Kind::Set { skip_creation: true }, parts_of(&documents)).await),
            13 => drop(self.write(Kind::Merge { skip_creation: true }, parts_of(&documents)).await),
            14..16 => {
                let ids =
                    documents.iter().map(|d| (shard_of(d), json!([d["id"]]).to_string())).collect::<BTreeMap<_, _>>();
                drop(self.write(Kind::Delete, ids.into_iter().collect()).await);
            }
            16 => drop(self.write(Kind::DeleteByFilter, every(r#"{"filter":"v = 3"}"#.into())).await),
            17 => drop(self.write(Kind::Edit, every(EDIT.into())).await),
            18 => drop(self.write(Kind::Clear, every(String::new())).await),
            _ => {
                let bad = documents.into_iter().map(|mut document| {
                    document["bad"] = true.into();
                    document
                });
                drop(self.set(&bad.collect::<Vec<_>>()).await);
            }
        }
    }

    /// A member's node is away, and the others drop what they have applied of the first shard, up to an entry.
    async fn drop_without(&mut self, away: usize, upto: u64) {
        within("what is overdue goes", async {
            // What goes travels with writes.
            for id in 100.. {
                for (_, me) in self.world.alive() {
                    me.journals.trim(&key(0), upto, true).await;
                }
                self.set(&[document(0, id, 1)]).await;
                let mut floors = Vec::new();
                for (_, me) in self.world.alive() {
                    floors
                        .extend(me.journals.stored().await.unwrap().into_iter().filter(|listed| listed.key == key(0)));
                }
                assert!(floors[away].floor.seq <= floors[away].applied, "its node needs it");
                if (0..MEMBERS).all(|i| i == away || floors[i].floor.seq >= upto) {
                    break;
                }
            }
        })
        .await;
        assert!(self.record().shard(ShardId(0)).unwrap().in_sync.iter().any(|id| id.member == member(away)));
    }

    fn expected(&self) -> Documents {
        self.model.iter().flatten().map(|(id, document)| (id.clone(), document.clone())).collect()
    }

    /// Waits until a member's node has everything.
    async fn is_whole(&self, i: usize) {
        let (me, node, expected) = (self.world.at(i), &self.nodes[i], self.expected());
        let end = Instant::now() + LONG;
        loop {
            let lags = self.handle(i).lags(&index()).await.unwrap();
            let done = (0..SHARDS).map(key).all(|key| {
                let commit = me.journals.committed(&key);
                lags.get(&key.shard).is_some_and(|lag| commit == Some(lag.applied) && !lag.rebuild)
            });
            let (found, trusted) = (node.documents(index().as_str()), self.handle(i).trusted(&index()));
            if done && trusted && found == expected {
                return;
            }
            let trouble = self.handle(i).trouble(&index());
            assert!(
                Instant::now() < end,
                "member {i}: {lags:?}, trusted {trusted}, {trouble:?}\n{found:?}\nand not\n{expected:?}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn are_whole(&self) {
        for i in 0..MEMBERS {
            self.is_whole(i).await;
        }
    }
}

async fn put_record(world: &World, record: &IndexRecord) {
    let key = key_of(&index_key(&record.physical));
    let expected = world.at(0).ledger.copies().get(&key).map_or(0, |copy| copy.version);
    let value = RecordValue::from(serde_json::to_string(record).unwrap());
    world.at(0).ledger.change(ChangeRequest { key, expected, value, quiet: false }, LONG).await;
}

fn index_record() -> IndexRecord {
    let replica = |i| ShardReplica { member: member(i), state: ReplicaState::Replica };
    let shard = ShardRecord { replicas: (0..MEMBERS).map(replica).collect() };
    IndexRecord {
        uid: IndexUid::new("movies").unwrap(),
        physical: index(),
        primary_key: Some("id".into()),
        settings_version: 0,
        client_settings: BTreeMap::new(),
        missed_settings: Default::default(),
        caught_up: Default::default(),
        shards: vec![shard; usize::from(SHARDS)],
        created_at: "2024-01-01T00:00:00Z".into(),
        updated_at: "2024-01-01T00:00:00Z".into(),
        deleted: false,
    }
}

/// The same, of which these members have yet to get a change of settings.
fn lacking(who: &[usize]) -> IndexRecord {
    let members: BTreeSet<MemberId> = who.iter().map(|i| member(*i)).collect();
    let missed = MissedSettings { place: 1, members, patch: r#"{"stopWords":["new"]}"#.into() };
    let missed_settings = if who.is_empty() { BTreeMap::new() } else { [(TaskUid(7), missed)].into() };
    IndexRecord { settings_version: 1, missed_settings, ..index_record() }
}

fn shard_of(document: &Value) -> u16 {
    document["id"].as_str().unwrap().split_once('-').unwrap().0.parse().unwrap()
}

fn parts_of(documents: &[Value]) -> Vec<(u16, String)> {
    let mut parts: BTreeMap<u16, String> = BTreeMap::new();
    for document in documents {
        parts.entry(shard_of(document)).or_default().push_str(&format!("{document}\n"));
    }
    parts.into_iter().collect()
}

/// What an entry makes of a shard's documents.
fn apply(documents: &mut Documents, kind: Kind, payload: &str) {
    match kind {
        Kind::Set { skip_creation } | Kind::Merge { skip_creation } => {
            let lines: Vec<Value> = payload.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            if lines.iter().any(|document| document.get("bad").is_some()) {
                return;
            }
            for document in lines {
                let id = document["id"].as_str().unwrap().to_owned();
                if skip_creation && !documents.contains_key(&id) {
                    continue;
                }
                match documents.get_mut(&id).filter(|_| matches!(kind, Kind::Merge { .. })) {
                    Some(old) => old.as_object_mut().unwrap().extend(document.as_object().unwrap().clone()),
                    None => drop(documents.insert(id, document)),
                }
            }
        }
        Kind::Delete => {
            let ids: Vec<String> = serde_json::from_str(payload).unwrap();
            ids.iter().for_each(|id| drop(documents.remove(id)));
        }
        Kind::DeleteByFilter => documents.retain(|_, document| document["v"] != 3),
        Kind::Edit => {
            for document in documents.values_mut() {
                document["n"] = (document["n"].as_u64().unwrap_or(0) + 1).into();
            }
        }
        Kind::Clear => documents.clear(),
        Kind::Empty | Kind::Refusal | Kind::Home => {}
    }
}

#[tokio::test]
async fn entries_of_all_kinds_come_to_every_node_and_what_became_of_them_is_known() {
    let mut all = All::start().await;
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..60 {
        all.write_any(&mut rng).await;
    }
    let bad = json!({ "bad": 1 });
    let mut documents = [document(1, 1, 1), document(1, 2, 1)];
    documents[1].as_object_mut().unwrap().extend(bad.as_object().unwrap().clone());
    let failed = all.set(&documents).await[0];
    let good = all.set(&[document(1, 5, 3), document(1, 6, 3)]).await[0];
    let cleared = all.write(Kind::DeleteByFilter, vec![(1, r#"{"filter":"v = 3"}"#.into())]).await[0];
    all.are_whole().await;
    for i in 0..MEMBERS {
        until("verdicts", async || {
            let outcomes = all.handle(i).outcomes(&key(1), vec![failed, good, cleared]).await.unwrap();
            let flaw = outcomes[&failed].flaw.as_ref().map(|flaw| flaw.code.as_str());
            assert_eq!((outcomes.len(), flaw), (3, Some("invalid_document_geo_field")), "{outcomes:?}");
            assert_eq!((&outcomes[&good].flaw, &outcomes[&cleared].flaw), (&None, &None));
            assert!(outcomes[&cleared].changed >= 2, "{outcomes:?}");
            outcomes.values().all(|outcome| outcome.times.is_some_and(|(started, finished)| started <= finished))
        })
        .await;
    }
    // Who has nothing to do is not in memory.
    for i in 0..MEMBERS {
        until("rest", async || all.handle(i).in_memory() == 0).await;
    }
    all.set(&[document(0, 1, 1)]).await;
    all.are_whole().await;
}

#[tokio::test]
async fn appliers_that_end_anywhere_and_answers_that_are_lost_leave_nothing_out_and_do_nothing_twice() {
    let mut all = All::start().await;
    let mut rng = fastrand::Rng::with_seed(11);
    for node in &all.nodes {
        node.state().faults = Faults { lost: 6, unanswered: 6, trouble: 4 };
    }
    for round in 0..40 {
        for _ in 0..rng.usize(1..6) {
            all.write_any(&mut rng).await;
        }
        tokio::time::sleep(Duration::from_micros(rng.u64(0..60_000))).await;
        let i = round % MEMBERS;
        all.kill(i).await;
        all.run(i).await;
    }
    for node in &all.nodes {
        node.state().faults = Faults::default();
    }
    all.are_whole().await;
}

#[tokio::test]
async fn a_member_that_was_away_applies_what_it_missed() {
    let mut all = All::start().await;
    let mut rng = fastrand::Rng::with_seed(3);
    all.write_any(&mut rng).await;
    all.kill(2).await;
    all.world.kill(2).await;
    for _ in 0..20 {
        all.write_any(&mut rng).await;
    }
    all.world.restart(2, |_, _| Vec::new()).await;
    all.run(2).await;
    for _ in 0..5 {
        all.write_any(&mut rng).await;
    }
    all.are_whole().await;
}

#[tokio::test]
async fn entries_wait_until_the_node_has_the_settings_that_were_changed_while_it_was_away() {
    let mut all = All::start().await;
    all.set(&[document(0, 1, 3), document(0, 2, 1)]).await;
    all.are_whole().await;
    put_record(&all.world, &lacking(&[2])).await;
    all.write(Kind::DeleteByFilter, vec![(0, r#"{"filter":"v = 3"}"#.into())]).await;
    all.set(&[document(0, 3, 1)]).await;
    all.is_whole(0).await;
    all.is_whole(1).await;
    let says = |all: &All| all.handle(2).trouble(&index()).is_some_and(|why| why.contains("has yet to get settings"));
    until("it says so", async || says(&all)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let found: Vec<String> = all.nodes[2].documents(index().as_str()).into_keys().collect();
    assert_eq!(found, ["0-1", "0-2"]);
    // As by a member that is back; whoever gets the settings is told by the record.
    let follows = tokio::spawn(all.running[2].as_ref().unwrap().local.clone().follow_records());
    all.are_whole().await;
    let stop_words = || all.nodes[2].state().indexes[index().as_str()].settings["stopWords"].clone();
    assert_eq!(stop_words(), json!(["new"]));
    assert!(!says(&all));
    follows.abort();
    // What was given before that may not come behind it: its sender has it noted.
    let local = &all.running[2].as_ref().unwrap().local;
    let record = local.record_of(&index()).unwrap();
    let lacked = record.version - 1;
    assert!(missed::got_since(&record.value, lacked, &member(2)) && record.value.missed_settings.is_empty());
    let order = async |record_version, word: &str| {
        let order = Order { index: index(), record_version, shards: ShardSet::new(), kind: WriteKind::Settings };
        let (request, trace) = (Request::Write(order.clone()), TraceId::default());
        let body = json!({ "stopWords": [word] }).to_string().into();
        local.write(&order, &Call { request, body, deadline: Instant::now() + LONG, trace }).await.reply
    };
    let refused = order(lacked, "old").await;
    assert!(matches!(&refused, Reply::NodeDown(why) if why.contains("when this was sent")), "{refused:?}");
    assert!(matches!(order(record.version, "newer").await, Reply::Enqueued(_)));
    until("it is done", async || stop_words() == json!(["newer"])).await;
}

#[tokio::test]
async fn what_names_attributes_waits_once_for_a_majority_that_does_not_answer() {
    let mut all = All::start().await;
    let led_by_others: Vec<u16> = (0..SHARDS).filter(|shard| all.primary(*shard) != Some(2)).collect();
    let documents: Vec<Value> = led_by_others.iter().map(|shard| document(*shard, 1, 1)).collect();
    all.set(&documents).await;
    all.are_whole().await;
    all.health[2].send_modify(|health| health.healthy = false);
    let edits = 6;
    for _ in 0..edits {
        all.write(Kind::Edit, led_by_others.iter().map(|shard| (*shard, EDIT.into())).collect()).await;
    }
    all.is_whole(0).await;
    all.world.unheard(2, true);
    let began = Instant::now();
    all.health[2].send_modify(|health| health.healthy = true);
    all.is_whole(2).await;
    // Each edit of each shard is a request of its own, and each question takes a second.
    let (took, requests) = (began.elapsed(), edits * led_by_others.len());
    assert!(requests >= 6 && took < Duration::from_secs(requests as u64) / 2, "{requests} requests: {took:?}");
}

#[tokio::test]
async fn what_names_attributes_asks_again_if_it_came_after_a_majority_did_not_answer() {
    let mut all = All::start().await;
    let shard = (0..SHARDS).find(|shard| all.primary(*shard) != Some(2)).unwrap();
    all.set(&[document(shard, 1, 3)]).await;
    all.are_whole().await;
    all.world.unheard(2, true);
    all.write(Kind::Edit, vec![(shard, EDIT.into())]).await;
    all.are_whole().await;
    put_record(&all.world, &lacking(&[2])).await;
    assert!(!all.running[2].as_ref().unwrap().local.misses_settings(&index()), "it has not heard of it");
    all.world.unheard(2, false);
    all.write(Kind::DeleteByFilter, vec![(shard, r#"{"filter":"v = 3"}"#.into())]).await;
    all.is_whole(0).await;
    all.is_whole(1).await;
    let says = |all: &All| all.handle(2).trouble(&index()).is_some_and(|why| why.contains("has yet to get settings"));
    until("it says so", async || says(&all)).await;
    assert_eq!(all.nodes[2].documents(index().as_str()).len(), 1);
    put_record(&all.world, &lacking(&[])).await;
    all.are_whole().await;
}

#[tokio::test]
async fn a_node_that_has_lost_everything_gets_it_again_and_one_put_back_what_it_lacks() {
    let mut all = All::start().await;
    let mut rng = fastrand::Rng::with_seed(5);
    for _ in 0..10 {
        all.write_any(&mut rng).await;
    }
    all.are_whole().await;
    let copy = all.nodes[1].state().copy();
    for _ in 0..10 {
        all.set(&[document(rng.u16(0..SHARDS), rng.u32(0..9), 1)]).await;
    }
    all.are_whole().await;
    let restart = async |all: &All, i: usize, meanwhile: &mut dyn FnMut()| {
        let mut told = all.handle(i).subscribe();
        all.health[i].send_modify(|health| health.healthy = false);
        within("doubt", async { while !matches!(told.recv().await.unwrap(), Told::Trusted(_, false)) {} }).await;
        assert!(!all.handle(i).trusted(&index()));
        meanwhile();
        all.health[i].send_modify(|health| health.healthy = true);
    };
    restart(&all, 0, &mut || all.nodes[0].state().empty()).await;
    let mut copy = Some(copy);
    restart(&all, 1, &mut || all.nodes[1].state().put_back(copy.take().unwrap())).await;
    all.are_whole().await;
    // Only the index is gone, and nobody tells.
    all.nodes[2].state().indexes.clear();
    all.kill(2).await;
    all.run(2).await;
    all.set(&[document(0, 1, 2)]).await;
    all.are_whole().await;
}

#[tokio::test]
async fn what_the_nodes_do_not_agree_on_is_as_at_the_primary() {
    let mut all = All::start().await;
    all.set(&(0..SHARDS).map(|shard| document(shard, 1, 1)).collect::<Vec<_>>()).await;
    all.are_whole().await;
    let odd = |shard: u16, id: u32| {
        let mut document = document(shard, id, 5);
        document["odd"] = 1.into();
        document
    };
    let (first, second) = (all.primary(0).unwrap(), all.primary(1).unwrap());
    assert_ne!(first, second);
    // The node of the first shard's primary refuses what all others take, and so for all shards.
    all.nodes[first].state().refuses.push("odd");
    let before = all.model.clone();
    let refused = all.set(&[odd(0, 1), document(0, 2, 1)]).await[0];
    all.model = before;
    // In the other shard it is the only one that does.
    let taken = all.set(&[odd(1, 1), document(1, 2, 1)]).await[0];
    let mut told = all.handle(first).subscribe();
    let taking = within("a verdict", async { while !matches!(told.recv().await.unwrap(), Told::Verdict { .. }) {} });
    taking.await;
    all.are_whole().await;
    for i in 0..MEMBERS {
        let outcome =
            async |shard: u16, seq| all.handle(i).outcomes(&key(shard), vec![seq]).await.unwrap().remove(&seq);
        until("the primary's verdict", async || outcome(0, refused).await.is_some_and(|o| o.flaw.is_some())).await;
        assert_eq!(outcome(1, taken).await.unwrap().flaw, None);
    }
    all.are_whole().await;
    let mismatches = |i| all.world.at(i).metrics.verdict_mismatches.get();
    assert_eq!((0..MEMBERS).map(mismatches).collect::<Vec<_>>(), [1; MEMBERS]);
}

#[tokio::test]
async fn a_node_that_was_away_passes_over_what_failed_though_the_primary_has_forgotten_it() {
    let mut all = All::start().await;
    all.set(&[document(0, 1, 1), document(0, 2, 1)]).await;
    all.are_whole().await;
    let first = all.primary(0).unwrap();
    let away = (first + 1) % MEMBERS;
    all.health[away].send_modify(|health| health.healthy = false);
    // It would take what all others refuse.
    for (_, node) in all.nodes.iter().enumerate().filter(|(i, _)| *i != away) {
        node.state().refuses.push("odd");
    }
    all.set(&[document(0, 4, 1)]).await;
    let before = all.model.clone();
    let mut odd = document(0, 1, 2);
    odd["odd"] = 1.into();
    let refused = all.set(&[odd]).await[0];
    all.model = before;
    let last = all.set(&[document(0, 3, 1)]).await[0];
    for i in (0..MEMBERS).filter(|i| *i != away) {
        all.is_whole(i).await;
    }
    let store = all.world.at(away).journal_store.clone();
    let knows = async || store.failed(&key(0), refused, refused, 9).await.unwrap().len() == 1;
    until("it is told in time", knows).await;
    all.drop_without(away, last).await;
    all.health[away].send_modify(|health| health.healthy = true);
    all.are_whole().await;
    let outcome = all.handle(away).outcomes(&key(0), vec![refused]).await.unwrap().remove(&refused);
    assert!(outcome.is_some_and(|outcome| outcome.flaw.is_some()));
    assert_eq!(all.world.at(away).metrics.verdict_mismatches.get(), 0);
}

#[tokio::test]
async fn what_another_primary_has_applied_is_taken_from_it_by_who_was_told_that_it_failed_and_was_away() {
    let mut all = All::start().await;
    all.set(&[document(0, 1, 1), document(0, 2, 1)]).await;
    all.are_whole().await;
    let first = all.primary(0).unwrap();
    let (next, away) = ((first + 1) % MEMBERS, (first + 2) % MEMBERS);
    all.health[away].send_modify(|health| health.healthy = false);
    for i in [first, next] {
        all.nodes[i].state().refuses.push("odd");
    }
    all.set(&[document(0, 4, 1)]).await;
    let before = all.model.clone();
    let mut odd = document(0, 1, 2);
    odd["odd"] = 1.into();
    let refused = all.set(&[odd]).await[0];
    all.model = before;
    for i in [first, next] {
        all.is_whole(i).await;
    }
    for i in [next, away] {
        let store = all.world.at(i).journal_store.clone();
        let knows = async || store.failed(&key(0), refused, refused, 9).await.unwrap().len() == 1;
        until("the primary's verdict", knows).await;
    }
    // The next one has taken it, and the primary dies before that is seen.
    all.nodes[next].state().refuses.retain(|field| *field != "odd");
    assert_eq!(all.world.at(next).journal_store.spoil("DELETE FROM failed"), 1);
    all.nodes[next].state().indexes.get_mut(index().as_str()).unwrap().documents.get_mut("0-1").unwrap()["odd"] =
        1.into();
    all.kill(first).await;
    all.world.kill(first).await;
    until("the next one leads", async || all.primary(0) == Some(next)).await;
    all.health[away].send_modify(|health| health.healthy = true);
    until("both are the same", async || {
        let [one, other] = [next, away].map(|i| all.nodes[i].documents(index().as_str()));
        one == other && one["0-1"].get("odd").is_some()
    })
    .await;
}

#[tokio::test]
async fn what_a_primary_did_unheard_is_found_out_when_another_leads() {
    let mut all = All::start().await;
    for node in &all.nodes {
        node.state().refuses.push("odd");
    }
    all.set(&[document(0, 1, 1), document(0, 2, 1)]).await;
    let before = all.model.clone();
    let mut odd = document(0, 1, 2);
    odd["odd"] = 1.into();
    let refused = all.set(&[odd]).await[0];
    all.model = before;
    all.set(&[document(0, 3, 1)]).await;
    all.are_whole().await;
    let first = all.primary(0).unwrap();
    let others: Vec<usize> = (0..MEMBERS).filter(|i| *i != first).collect();
    for i in &others {
        let outcome = async || all.handle(*i).outcomes(&key(0), vec![refused]).await.unwrap().remove(&refused);
        until("the primary's verdict", async || outcome().await.is_some_and(|o| o.flaw.is_some())).await;
    }
    all.nodes.iter().for_each(|node| node.state().refuses.retain(|field| *field != "odd"));
    // One of the others has taken it, and the primary dies before that is seen.
    let store = &all.world.at(others[0]).journal_store;
    assert_eq!(store.spoil("DELETE FROM failed"), 1);
    all.nodes[others[0]].state().indexes.get_mut(index().as_str()).unwrap().documents.get_mut("0-1").unwrap()["odd"] =
        1.into();
    all.kill(first).await;
    all.world.kill(first).await;
    until("another leads", async || all.primary(0).is_some_and(|i| i != first)).await;
    until("all are the same", async || {
        let [one, other] = [0, 1].map(|i| all.nodes[others[i]].documents(index().as_str()));
        one == other
    })
    .await;
}

#[tokio::test]
async fn a_shard_that_leaves_is_forgotten_and_an_index_that_is_gone_as_well() {
    let mut all = All::start().await;
    let mut rng = fastrand::Rng::with_seed(9);
    for _ in 0..10 {
        all.write_any(&mut rng).await;
    }
    all.are_whole().await;
    let put = async |all: &All, record: &JournalRecord| {
        let (key, ledger) = (JournalRecord::key(&index()), &all.world.at(0).ledger);
        until("a record", async || {
            let expected = ledger.copies().get(&key).unwrap().version;
            let value = RecordValue::from(record.to_json());
            let change = ChangeRequest { key: key.clone(), expected, value, quiet: false };
            matches!(ledger.change(change, LONG).await, crate::proto::ledger::Answer::Changed { .. })
        })
        .await;
    };
    let mut record = (*all.record()).clone();
    let i = (0..MEMBERS).find(|i| all.primary(0) != Some(*i)).unwrap();
    let state = &mut record.shards[0];
    state.replicas.retain(|copy| copy.id.member != member(i));
    state.in_sync.retain(|id| id.member != member(i));
    state.set += 1;
    put(&all, &record).await;
    let store = all.world.at(i).journal_store.clone();
    let lanes = async || store.applier(&index()).await.unwrap().stored.lanes.into_keys().collect::<BTreeSet<_>>();
    until("the shard is forgotten", async || lanes().await == [ShardId(1), ShardId(2)].into()).await;
    put(&all, &JournalRecord::default()).await;
    until("the index is forgotten", async || store.applier(&index()).await.unwrap() == Default::default()).await;
    assert_eq!(all.handle(i).in_memory(), 0);
}

#[tokio::test]
async fn a_copy_for_which_entries_are_missing_waits_until_it_is_made() {
    let mut all = All::start().await;
    for id in 0..30 {
        all.set(&[document(0, id, 1)]).await;
    }
    all.are_whole().await;
    // The journal's beginning goes, with all that is remembered of what was sent.
    let i = 2;
    all.kill(i).await;
    let (store, journals) = (all.world.at(i).journal_store.clone(), all.world.at(i).journals.clone());
    let applied = store.positions(&index()).await.unwrap()[&ShardId(0)].0;
    within("the beginning goes", async {
        // What is not needed any more travels with writes.
        for id in 40.. {
            for i in 0..MEMBERS {
                all.world.at(i).journals.trim(&key(0), applied - 2, false).await;
            }
            all.set(&[document(0, id, 1)]).await;
            let listed = journals.stored().await.unwrap().into_iter().find(|listed| listed.key == key(0)).unwrap();
            if listed.floor.seq >= applied - 2 {
                break;
            }
        }
    })
    .await;
    let documents = all.nodes[i].documents(index().as_str());
    all.nodes[i].state().empty();
    all.run(i).await;
    let mut told = all.handle(i).subscribe();
    within("what must be made", async { while told.recv().await.unwrap() != Told::Rebuild(key(0)) {} }).await;
    all.set(&[document(0, 100, 1), document(1, 1, 1)]).await;
    until("the other shard goes on", async || all.nodes[i].documents(index().as_str()).contains_key("1-1")).await;
    assert!(all.handle(i).lags(&index()).await.unwrap()[&ShardId(0)].rebuild);
    // Somebody makes it.
    all.nodes[i].state().indexes.get_mut(index().as_str()).unwrap().documents.extend(documents);
    assert!(all.handle(i).made(&key(0), applied, None).await);
    all.are_whole().await;
}
