//! Several members in one process: ledger, leases, operations and journals with their stores, over a network that can be cut.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{broadcast, watch};
use tokio::task::{JoinError, JoinHandle};

use crate::net::{Answer, Call, CallError, Handler, Peers};
use crate::proto::journal::{Alive, Config as JournalConfig};
use crate::proto::lease::Config as LeaseConfig;
use crate::proto::ledger::{Bootstrap, BootstrapMember, Config as LedgerConfig};
use crate::proto::tasks::home::{Config as HomeConfig, Done};
use crate::services::cluster::{Cluster, Listed, MemberState, Topology};
use crate::services::homes::{self, Homes, Outcomes, Reporter};
use crate::services::journal::{self, CreateError, JournalHandle, Seen, Sender};
use crate::services::leases::{self, LeaseHandle};
use crate::services::ledger::{self, LedgerHandle};
use crate::services::members::Members;
use crate::services::operations::{self, OperationsHandle, Orders, Runner};
use crate::services::records::Records;
use crate::services::task_ids::{self, TaskIdsHandle};
use crate::store::{JournalStore, LedgerStore, Store, StoreError, identity};
use crate::telemetry::metrics::Metrics;
use crate::types::{GroupId, JournalKey, MemberId, MeshId, PhysicalIndex, ReplicaId};
use crate::wire::gossip::MemberGossip;
use crate::wire::verbs::{Reply, Request};

/// Nothing here takes nearly so long, unless it never happens.
pub(super) const LONG: Duration = Duration::from_secs(60);
pub(super) const TTL: Duration = Duration::from_millis(1_000);
pub(super) const RENEW: Duration = Duration::from_millis(250);

pub(super) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.unwrap_or_else(|_| panic!("never happened: {what}"))
}

/// A process that was ended; its journals' driver may have failed before.
fn ended(driver: Result<Result<(), StoreError>, JoinError>) {
    match driver {
        Ok(ended) => assert!(ended.is_err_and(|e| e.is_fatal()), "no driver ends by itself"),
        Err(error) => assert!(error.is_cancelled(), "{error}"),
    }
}

/// Journals that notice everything soon.
fn journal_config() -> journal::Config {
    let core = JournalConfig {
        in_sync_lag: Duration::from_millis(1_500),
        suspect_lag: Duration::from_millis(200),
        quiet_time: Duration::from_millis(300),
        resend: Duration::from_millis(100),
        ask_again: Duration::from_millis(300),
        ..JournalConfig::default()
    };
    let (linger, give_back_pause) = (Duration::from_millis(300), Duration::from_secs(1));
    journal::Config { core, linger, give_back_pause, ..journal::Config::default() }
}

pub(super) fn member(i: usize) -> MemberId {
    MemberId::new(format!("m{i}")).unwrap()
}

/// What a node would have done: whatever a test says.
#[derive(Default)]
pub(super) struct Applied {
    told: Mutex<BTreeMap<JournalKey, u64>>,
    /// Entries that failed, with code and message.
    pub(super) failed: Mutex<BTreeMap<(JournalKey, u64), (String, String)>>,
    /// What became of entries can't be read.
    pub(super) unread: AtomicBool,
    events: Mutex<Option<broadcast::Sender<(JournalKey, u64)>>>,
}

impl Applied {
    fn events(&self) -> broadcast::Sender<(JournalKey, u64)> {
        self.events.lock().unwrap().get_or_insert_with(|| broadcast::Sender::new(64)).clone()
    }

    /// Everything up to there is applied.
    pub(super) fn apply(&self, key: &JournalKey, to: u64) {
        self.told.lock().unwrap().insert(key.clone(), to);
        drop(self.events().send((key.clone(), to)));
    }
}

#[async_trait]
impl Outcomes for Applied {
    fn subscribe(&self) -> broadcast::Receiver<(JournalKey, u64)> {
        self.events().subscribe()
    }

    fn applied(&self, key: &JournalKey) -> u64 {
        self.told.lock().unwrap().get(key).copied().unwrap_or(0)
    }

    async fn outcomes(&self, key: &JournalKey, seqs: &[u64]) -> Result<Vec<Option<Done>>, StoreError> {
        if self.unread.load(Ordering::SeqCst) {
            return Err(StoreError::Closed);
        }
        let (applied, failed) = (self.applied(key), self.failed.lock().unwrap());
        let of = |seq: &u64| {
            let error = failed.get(&(key.clone(), *seq)).cloned();
            let at = homes::wall();
            (*seq <= applied).then_some(Done { error, changed: 1, started: at, finished: at })
        };
        Ok(seqs.iter().map(of).collect())
    }
}

/// Homes that notice everything soon.
fn home_config() -> homes::Config {
    homes::Config {
        core: HomeConfig {
            incomplete_after: Duration::from_secs(2),
            ask_after: Duration::from_millis(200),
            append_again: Duration::from_millis(300),
            ..HomeConfig::default()
        },
    }
}

/// Who can be reached, and who is cut off.
#[derive(Default)]
struct Net {
    up: Mutex<BTreeMap<MemberId, Arc<Serving>>>,
    cut: Mutex<BTreeSet<MemberId>>,
    /// No message of the ledger reaches these, and none of theirs anybody.
    unheard: Mutex<BTreeSet<MemberId>>,
    full: Mutex<BTreeSet<MemberId>>,
    idle: Mutex<BTreeSet<MemberId>>,
    processes: Mutex<BTreeMap<MemberId, Alive>>,
    /// So many of a hundred messages of journals are lost.
    loss: AtomicU32,
    messages: AtomicU32,
}

impl Net {
    /// What the members that `own` reaches would say, and what of them is seen.
    fn seen_by(&self, own: &MemberId) -> Seen {
        let (up, cut, processes) = (self.up.lock().unwrap(), self.cut.lock().unwrap(), self.processes.lock().unwrap());
        let full = self.full.lock().unwrap();
        let reach = |a: &MemberId, b: &MemberId| a == b || (!cut.contains(a) && !cut.contains(b));
        let there = || up.keys().filter(|m| !full.contains(*m));
        let all = || there().filter_map(|m| Some((m.clone(), *processes.get(m)?)));
        let reached = |a: &MemberId| there().filter(|b| reach(a, b)).cloned().collect();
        Seen {
            sight: all().filter(|(m, _)| reach(own, m)).collect(),
            known: all().collect(),
            reach: there().map(|a| (a.clone(), reached(a))).collect(),
            unserved: BTreeMap::new(),
            full: full.contains(own),
            idle: self.idle.lock().unwrap().clone(),
        }
    }
}

/// One member's end of it.
struct End {
    own: MemberId,
    net: Arc<Net>,
}

#[async_trait]
impl Peers for End {
    async fn call(&self, to: &MemberId, call: Call) -> Result<Answer, CallError> {
        let gone = || CallError::NoAnswer { member: to.clone(), reason: "lost".into() };
        let loss = self.net.loss.load(Ordering::SeqCst);
        if call.request == Request::Journal {
            // Spread evenly.
            let nth = self.net.messages.fetch_add(1, Ordering::SeqCst);
            if nth.wrapping_mul(37) % 100 < loss {
                return Err(gone());
            }
        }
        let apart = {
            let among = |all: &Mutex<BTreeSet<MemberId>>| {
                let all = all.lock().unwrap();
                all.contains(to) || all.contains(&self.own)
            };
            among(&self.net.cut) || call.request == Request::Ledger && among(&self.net.unheard)
        };
        let peer = self.net.up.lock().unwrap().get(to).cloned().filter(|_| !apart).ok_or_else(gone)?;
        let deadline = call.deadline.into();
        match tokio::time::timeout_at(deadline, peer.handle(&self.own, call)).await.map_err(|_| gone())? {
            Answer { reply: Reply::Refused(refusal), .. } => Err(CallError::Refused { member: to.clone(), refusal }),
            answer => Ok(answer),
        }
    }

    fn is_suspect(&self, _: &MemberId) -> bool {
        false
    }
}

/// Answers what these services are called for.
struct Serving {
    records: Records,
    orders: Orders,
    task_ids: TaskIdsHandle,
    journals: JournalHandle,
    homes: Homes,
}

#[async_trait]
impl Handler for Serving {
    async fn handle(&self, from: &MemberId, call: Call) -> Answer {
        let refused = |done: Result<(), _>| Answer::of(done.map_or_else(Reply::Refused, |()| Reply::Done));
        match &call.request {
            Request::Ledger => {
                // What has no room is lost.
                self.records.ledger().deliver(from, &call.body).ok();
                Answer::of(Reply::Done)
            }
            Request::Journal => {
                self.journals.deliver(from, &call.body).ok();
                Answer::of(Reply::Done)
            }
            Request::Append(append) => Answer::of(
                self.journals
                    .receive(append, &call.body, call.deadline)
                    .await
                    .map_or_else(Reply::Refused, Reply::Appended),
            ),
            Request::Confirm(record) => refused(self.records.confirm(record).await),
            Request::Order(order) => refused(self.orders.receive(from, order).await),
            Request::TaskIds(count) => Answer::of(Reply::TaskIds(self.task_ids.answer(*count).await)),
            Request::Home => self.homes.receive(from, &call).await,
            other => panic!("nobody asks {other:?} here"),
        }
    }
}

/// One member's process.
pub(super) struct Running {
    pub(super) ledger: LedgerHandle,
    pub(super) leases: LeaseHandle,
    pub(super) operations: OperationsHandle,
    pub(super) task_ids: TaskIdsHandle,
    pub(super) records: Records,
    pub(super) metrics: Arc<Metrics>,
    pub(super) store: Store,
    pub(super) journals: JournalHandle,
    pub(super) journal_store: JournalStore,
    pub(super) sender: Sender,
    pub(super) homes: Homes,
    pub(super) applied: Arc<Applied>,
    pub(super) cluster: Cluster,
    pub(super) seen: watch::Sender<Arc<Seen>>,
    serving: Arc<Serving>,
    drivers: Vec<JoinHandle<Result<(), StoreError>>>,
    _state: watch::Sender<MemberState>,
    pub(super) gossip: watch::Sender<BTreeMap<MemberId, MemberGossip>>,
}

impl Running {
    /// What this member does with an order that `from` sends it.
    pub(super) async fn receive(
        &self,
        from: &MemberId,
        order: &crate::wire::verbs::LeaderOrder,
    ) -> Result<(), crate::wire::verbs::Refusal> {
        self.serving.orders.receive(from, order).await
    }
}

/// All members; those that are killed are `None`.
pub(super) struct World {
    net: Arc<Net>,
    pub(super) dirs: Vec<tempfile::TempDir>,
    pub(super) members: Vec<Option<Running>>,
}

impl World {
    /// A mesh of `n` members; `runners` says what each can do.
    pub(super) async fn start(n: usize, runners: impl Fn(usize, &Records) -> Vec<Arc<dyn Runner>>) -> Self {
        let dirs = (0..n).map(|_| tempfile::tempdir().unwrap()).collect();
        let mut world = Self { net: Arc::default(), dirs, members: Vec::new() };
        for i in 0..n {
            let running = world.run(i, &runners).await;
            world.members.push(Some(running));
        }
        world.look();
        for running in world.members.iter().flatten() {
            let mut status = running.ledger.status();
            within("a mesh", status.wait_for(|s| s.record.is_some())).await.unwrap();
            within("fresh copies", running.ledger.wait_fresh()).await;
        }
        world
    }

    pub(super) fn at(&self, i: usize) -> &Running {
        self.members[i].as_ref().expect("it was not killed")
    }

    pub(super) fn alive(&self) -> impl Iterator<Item = (usize, &Running)> {
        self.members.iter().enumerate().filter_map(|(i, running)| Some((i, running.as_ref()?)))
    }

    /// Ends a process wherever it is.
    pub(super) async fn kill(&mut self, i: usize) {
        self.net.up.lock().unwrap().remove(&member(i));
        let mut running = self.members[i].take().expect("it was not killed");
        for driver in std::mem::take(&mut running.drivers) {
            driver.abort();
            ended(driver.await);
        }
        // What the process had given to its store is done or not before another begins.
        running.journal_store.set_applied(Vec::new()).await.ok();
        self.look();
    }

    /// Makes an index's record. Whether one attempt was made nobody may know where machines are slow; the next one says so.
    pub(super) async fn create(&self, index: &PhysicalIndex, copies: Vec<Vec<ReplicaId>>) {
        within("the index's record", async {
            loop {
                match self.at(0).journals.create(index, copies.clone(), LONG).await {
                    Ok(()) | Err(CreateError::Exists) => break,
                    Err(CreateError::Unknown) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        })
        .await;
    }

    /// Everybody sees who is up and not cut off.
    fn look(&self) {
        for (i, running) in self.alive() {
            running.seen.send_replace(Arc::new(self.net.seen_by(&member(i))));
        }
    }

    /// Nothing reaches the member, and nothing of it anybody.
    pub(super) fn cut(&self, i: usize) {
        self.net.cut.lock().unwrap().insert(member(i));
        self.look();
    }

    /// A member finds no majority for records while everything else reaches it, or does again.
    pub(super) fn unheard(&self, i: usize, unheard: bool) {
        let mut all = self.net.unheard.lock().unwrap();
        if unheard {
            all.insert(member(i))
        } else {
            all.remove(&member(i))
        };
    }

    /// A member's node is down, or up again.
    pub(super) fn idle(&self, i: usize, idle: bool) {
        let mut all = self.net.idle.lock().unwrap();
        if idle {
            all.insert(member(i))
        } else {
            all.remove(&member(i))
        };
        drop(all);
        self.look();
    }

    /// A member's disk is almost full, or has room again.
    pub(super) fn fill(&self, i: usize, full: bool) {
        let mut all = self.net.full.lock().unwrap();
        if full {
            all.insert(member(i))
        } else {
            all.remove(&member(i))
        };
        drop(all);
        self.look();
    }

    /// From now on so many of a hundred messages of journals are lost.
    pub(super) fn lose(&self, of_a_hundred: u32) {
        self.net.loss.store(of_a_hundred, Ordering::SeqCst);
    }

    pub(super) fn heal(&self) {
        self.net.cut.lock().unwrap().clear();
        self.look();
    }

    /// Starts a killed member again.
    pub(super) async fn restart(&mut self, i: usize, runners: impl Fn(usize, &Records) -> Vec<Arc<dyn Runner>>) {
        self.members[i] = Some(self.run(i, &runners).await);
        self.look();
    }

    async fn run(&self, i: usize, runners: &impl Fn(usize, &Records) -> Vec<Arc<dyn Runner>>) -> Running {
        let (me, dir) = (member(i), self.dirs[i].path());
        let (ledger_store, store) = (LedgerStore::open(dir).unwrap(), Store::open(dir).unwrap());
        let journals = JournalStore::open(dir, &ledger_store).unwrap();
        let (identity, stored) = identity::begin(&store, &ledger_store, &journals, &me).await.unwrap();
        let (peers, metrics) =
            (Arc::new(End { own: me.clone(), net: Arc::clone(&self.net) }), Arc::<Metrics>::default());
        let (mut driver, ledger) = ledger::Driver::new(ledger::Parts {
            config: self.ledger_config(&me),
            configured: true,
            stored,
            ledger: ledger_store,
            store: store.clone(),
            journals: journals.clone(),
            peers: Arc::clone(&peers) as Arc<dyn Peers>,
            metrics: Arc::clone(&metrics),
        });
        let (lease_driver, leases, _) = leases::Driver::new(leases::Parts {
            config: LeaseConfig { enabled: true, ttl_ms: TTL.as_millis() as u64, renew_interval: RENEW },
            start: identity.start,
            fences: store.fences().await.unwrap(),
            ledger: ledger.clone(),
            store: store.clone(),
            metrics: Arc::clone(&metrics),
        });
        let id = ReplicaId { member: me.clone(), store: identity.store };
        let alive = Alive { store: identity.store, start: identity.start };
        self.net.processes.lock().unwrap().insert(me.clone(), alive);
        let seen = watch::Sender::new(Arc::new(self.net.seen_by(&me)));
        let (journal_driver, journal_handle) = journal::Driver::new(journal::Parts {
            config: journal_config(),
            me: id,
            start: identity.start,
            ledger: ledger.clone(),
            leases: leases.clone(),
            store: journals.clone(),
            peers: Arc::clone(&peers) as Arc<dyn Peers>,
            seen: seen.subscribe(),
        });
        let cluster = Cluster::new(self.topology(&me));
        let sender = Sender::new(journal_handle.clone(), Arc::clone(&peers) as Arc<dyn Peers>, cluster.clone());
        let members = Members::new(me.clone(), peers, Arc::clone(&metrics));
        let records = Records::new(ledger.clone(), cluster.clone(), members.clone());
        driver.follow(records.follower());
        let runners = runners(i, &records);
        let orders = Orders::new(&runners, leases.clone(), records.clone(), Arc::clone(&metrics));
        let (operations_driver, operations) = operations::Driver::new(operations::Parts {
            runners,
            ledger: ledger.clone(),
            leases: leases.clone(),
            members: members.clone(),
            store: store.clone(),
            metrics: Arc::clone(&metrics),
        });
        let (ids_driver, task_ids) = task_ids::Driver::new(
            task_ids::Config::default(),
            identity.start,
            ledger.clone(),
            leases.clone(),
            members.clone(),
        );
        let applied = Arc::<Applied>::default();
        let (homes_driver, homes) = homes::Driver::new(homes::Parts {
            config: home_config(),
            journals: journal_handle.clone(),
            sender: sender.clone(),
            ledger: ledger.clone(),
            members: members.clone(),
            cluster: cluster.clone(),
            ids: task_ids.clone(),
            outcomes: Arc::clone(&applied) as Arc<dyn Outcomes>,
            hook: None,
            metrics: Arc::clone(&metrics),
        });
        let reporter = Reporter::new(homes.clone());
        let serving = Arc::new(Serving {
            records: records.clone(),
            orders,
            task_ids: task_ids.clone(),
            journals: journal_handle.clone(),
            homes: homes.clone(),
        });
        members.set_local(Arc::clone(&serving) as Arc<dyn Handler>);
        self.net.up.lock().unwrap().insert(me, Arc::clone(&serving));
        let (state, gossip) = (watch::Sender::new(MemberState::Active), watch::Sender::new(BTreeMap::new()));
        let watched = leases::Inputs { state: state.subscribe(), gossip: gossip.subscribe() };
        let drivers = vec![
            tokio::spawn(driver.run()),
            tokio::spawn(lease_driver.run(watched)),
            tokio::spawn(operations_driver.run()),
            tokio::spawn(async move {
                ids_driver.run().await;
                Ok(())
            }),
            tokio::spawn(journal_driver.run()),
            tokio::spawn(homes_driver.run()),
            tokio::spawn(reporter.run()),
        ];
        Running {
            ledger,
            leases,
            operations,
            task_ids,
            records,
            metrics,
            store,
            journals: journal_handle,
            journal_store: journals,
            sender,
            homes,
            applied,
            cluster,
            seen,
            serving,
            drivers,
            _state: state,
            gossip,
        }
    }

    fn ledger_config(&self, me: &MemberId) -> LedgerConfig {
        let entry = |m: Listed| BootstrapMember { id: m.id, group: m.group, address: m.address, witness: false };
        let members = self.topology(me).members.into_iter().map(entry).collect();
        LedgerConfig {
            member: me.clone(),
            renew_interval: RENEW,
            lease_ttl: TTL,
            voter_replace_after: LONG,
            round_timeout: Duration::from_millis(150),
            retry_base: Duration::from_millis(5),
            bootstrap: Some(Bootstrap { members, rf: 1, shards: 4 }),
        }
    }

    pub(super) fn topology(&self, own: &MemberId) -> Topology {
        let listed = |i| Listed {
            id: member(i),
            group: GroupId::new("g1").unwrap(),
            address: format!("10.0.0.{i}:7781"),
            witness: false,
        };
        let members = (0..self.dirs.len()).map(listed).collect();
        Topology { own: own.clone(), mesh: MeshId::NONE, members, rf: 1, shards: 4 }
    }
}
