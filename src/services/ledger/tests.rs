//! Several drivers in one process, over a network that loses messages.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinHandle;

use super::handle::InitError;
use super::{ChangeRequest, Copies, Driver, Follower, LedgerHandle, Parts, Status, words};
use crate::net::{Answer as CallAnswer, Call, CallError, Peers};
use crate::proto::ledger::{Answer, Bootstrap, BootstrapMember, Config};
use crate::store::{JournalStore, LedgerStore, Store, StoreError, identity};
use crate::telemetry::metrics::Metrics;
use crate::types::{GroupId, MemberId, RecordKey, Versioned};
use crate::wire::verbs::Reply;

/// Nothing here takes nearly so long, unless it never happens.
const LONG: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(10);

fn member(i: usize) -> MemberId {
    MemberId::new(format!("m{i}")).unwrap()
}

fn key(text: &str) -> RecordKey {
    RecordKey::new(text).unwrap()
}

fn bootstrap(n: usize) -> Bootstrap {
    let entry = |i| BootstrapMember {
        id: member(i),
        group: GroupId::new("g1").unwrap(),
        address: format!("10.0.0.{i}:7781"),
        witness: false,
    };
    Bootstrap { members: (0..n).map(entry).collect(), rf: 1, shards: 4 }
}

/// The network; loses so many messages of a hundred, and all to and from members that are cut off.
#[derive(Default)]
struct Net {
    handles: Mutex<BTreeMap<MemberId, LedgerHandle>>,
    loss: AtomicU32,
    cut: Mutex<BTreeSet<MemberId>>,
    dice: Mutex<fastrand::Rng>,
}

/// One member's end of it.
struct End {
    own: MemberId,
    net: Arc<Net>,
}

#[async_trait]
impl Peers for End {
    async fn call(&self, to: &MemberId, call: Call) -> Result<CallAnswer, CallError> {
        let lost = self.net.dice.lock().unwrap().u32(0..100) < self.net.loss.load(Ordering::SeqCst);
        let cut = self.net.cut.lock().unwrap();
        let cut = cut.contains(to) || cut.contains(&self.own);
        let handle = self.net.handles.lock().unwrap().get(to).cloned().filter(|_| !lost && !cut);
        let gone = || CallError::NoAnswer { member: to.clone(), reason: "lost".into() };
        handle.ok_or_else(gone)?.deliver(&self.own, &call.body).map_err(|_| gone())?;
        Ok(CallAnswer::of(Reply::Done))
    }

    fn is_suspect(&self, _: &MemberId) -> bool {
        false
    }
}

struct World {
    net: Arc<Net>,
    dirs: Vec<tempfile::TempDir>,
    members: Vec<Running>,
}

struct Running {
    handle: LedgerHandle,
    driving: JoinHandle<Result<(), StoreError>>,
    ledger: LedgerStore,
    metrics: Arc<Metrics>,
}

impl World {
    async fn start(n: usize) -> Self {
        let mut world = Self::prepare(n);
        for i in 0..n {
            let running = world.run(i, Some(bootstrap(n))).await;
            world.members.push(running);
        }
        world
    }

    fn prepare(n: usize) -> Self {
        let dirs = (0..n).map(|_| tempfile::tempdir().unwrap()).collect();
        let net = Net { dice: Mutex::new(fastrand::Rng::with_seed(7)), ..Net::default() };
        Self { net: Arc::new(net), dirs, members: Vec::new() }
    }

    async fn run(&self, i: usize, bootstrap: Option<Bootstrap>) -> Running {
        run(&self.net, self.dirs[i].path(), i, bootstrap, None).await
    }

    /// Ends all processes at once, wherever they are, and starts them anew.
    async fn restart_all(&mut self) {
        let n = self.members.len();
        for running in self.members.drain(..) {
            running.driving.abort();
            assert!(running.driving.await.unwrap_err().is_cancelled());
        }
        self.net.handles.lock().unwrap().clear();
        for i in 0..n {
            let running = self.run(i, Some(bootstrap(n))).await;
            self.members.push(running);
        }
    }

    fn handle(&self, i: usize) -> &LedgerHandle {
        &self.members[i].handle
    }

    async fn made(&self) {
        for running in &self.members {
            within(running.handle.status().wait_for(|s| s.mesh.is_some() && s.record.is_some())).await.unwrap();
        }
    }

    /// Waits until all copies are the same, with at least the records that the first member has now.
    async fn equal(&self) {
        let wanted = self.handle(0).copies();
        for running in &self.members {
            let mut changes = running.handle.watch();
            within(async {
                loop {
                    changes.borrow_and_update();
                    let has = running.handle.copies();
                    if wanted.iter().all(|(key, record)| has.get(key).is_some_and(|r| r.version >= record.version)) {
                        return;
                    }
                    changes.changed().await.unwrap();
                }
            })
            .await;
        }
    }
}

async fn run(
    net: &Arc<Net>,
    dir: &Path,
    i: usize,
    bootstrap: Option<Bootstrap>,
    follower: Option<Arc<dyn Follower>>,
) -> Running {
    let ledger = LedgerStore::open(dir).unwrap();
    let store = Store::open(dir).unwrap();
    let journals = JournalStore::open(dir, &ledger).unwrap();
    let (_, stored) = identity::begin(&store, &ledger, &journals, &member(i)).await.unwrap();
    let config = Config {
        member: member(i),
        renew_interval: Duration::from_millis(200),
        lease_ttl: Duration::from_millis(800),
        voter_replace_after: Duration::from_secs(600),
        round_timeout: Duration::from_millis(150),
        retry_base: Duration::from_millis(5),
        bootstrap,
    };
    let peers: Arc<dyn Peers> = Arc::new(End { own: member(i), net: Arc::clone(net) });
    let metrics: Arc<Metrics> = Arc::default();
    let configured = config.bootstrap.is_some();
    let parts = Parts {
        config,
        configured,
        stored,
        ledger: ledger.clone(),
        store,
        journals,
        peers,
        metrics: Arc::clone(&metrics),
    };
    let (mut driver, handle) = Driver::new(parts);
    follower.into_iter().for_each(|follower| driver.follow(follower));
    net.handles.lock().unwrap().insert(member(i), handle.clone());
    Running { handle, driving: tokio::spawn(driver.run()), ledger, metrics }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.expect("it happens")
}

fn change(name: &str, expected: u64, value: &str) -> ChangeRequest {
    ChangeRequest { key: key(name), expected, value: value.into(), quiet: false }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_make_one_mesh_and_agree() {
    let world = World::start(3).await;
    world.made().await;
    let meshes: BTreeSet<_> = (0..3).map(|i| world.handle(i).mesh()).collect();
    assert_eq!(meshes.len(), 1, "{meshes:?}");
    let made = world.handle(1).change(change("a", 0, "1"), PATIENCE).await;
    assert_eq!(made, Answer::Changed { version: 1 });
    assert_eq!(world.handle(1).copies().get(&key("a")).unwrap().version, 1, "its own copy is there with the answer");
    let late = world.handle(2).change(change("a", 0, "2"), PATIENCE).await;
    assert!(matches!(late, Answer::Conflict { current: Some(Versioned { version: 1, .. }), .. }), "{late:?}");
    let Answer::Read { current: Some(read) } = world.handle(0).read(key("a"), PATIENCE).await else { panic!() };
    assert_eq!((&*read.value, read.version), ("1", 1));
    let rounds = world.members[1].metrics.ledger_rounds.get();
    assert!((1..1_000).contains(&rounds), "{rounds} rounds so far");
    world.equal().await;
    let many: Vec<_> = (0..40).map(|i| change(&format!("k{i}"), 0, "{}")).collect();
    let answers = world.handle(0).change_many(many, PATIENCE).await;
    assert!(answers.len() == 40 && answers.iter().all(|a| *a == Answer::Changed { version: 1 }), "{answers:?}");
    for i in 0..3 {
        within(world.handle(i).wait_fresh()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn survivors_say_that_they_have_left_their_mesh_and_for_whom_they_wait() {
    let mut world = World::start(3).await;
    world.made().await;
    for i in 0..3 {
        within(world.handle(i).wait_fresh()).await;
    }
    let old = world.handle(0).mesh();
    // Member 2 is gone for good, and member 1 for a while.
    for running in world.members.drain(1..) {
        running.driving.abort();
        assert!(running.driving.await.unwrap_err().is_cancelled());
    }
    (1..3).for_each(|i| drop(world.net.handles.lock().unwrap().remove(&member(i))));
    world.handle(0).recover([member(0), member(1)].into()).await;
    let mut status = world.handle(0).status();
    let waits = |s: &Status| s.recovering.as_ref().is_some_and(|r| r.missing == [member(1)].into());
    let seen = within(status.wait_for(waits)).await.unwrap().clone();
    let recovery = seen.recovering.unwrap();
    assert_eq!((&recovery.leader, recovery.survivors.len()), (&member(0), 2));
    assert!(!world.handle(0).fresh(), "it belongs to no mesh");
    let expected = format!("go on as mesh {} when all of them take part: waiting for {}", recovery.new, member(1));
    let noticed = |s: &Status| s.notices.iter().any(|(_, notice)| words(notice).contains(&expected));
    within(status.wait_for(noticed)).await.unwrap();
    assert!(serde_json::to_value(&recovery).unwrap()["new"] == recovery.new.to_string());
    let running = world.run(1, Some(bootstrap(3))).await;
    world.members.push(running);
    for i in 0..2 {
        let joined = |s: &Status| s.recovering.is_none() && s.mesh == Some(recovery.new);
        within(world.handle(i).status().wait_for(joined)).await.unwrap();
    }
    assert_ne!(old, Some(recovery.new));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_may_not_vote_yet_says_for_whom_it_waits() {
    let mut world = World::start(3).await;
    world.made().await;
    for i in 0..3 {
        within(world.handle(i).wait_fresh()).await;
    }
    for running in world.members.drain(1..) {
        running.driving.abort();
        assert!(running.driving.await.unwrap_err().is_cancelled());
    }
    (1..3).for_each(|i| drop(world.net.handles.lock().unwrap().remove(&member(i))));
    let running = world.run(1, Some(bootstrap(3))).await;
    let mut status = running.handle.status();
    let waits = |s: &Status| s.waits_to_vote.as_ref().is_some_and(|members| members.contains(&member(2)));
    within(status.wait_for(waits)).await.unwrap();
    // The TTL is over, and a majority has answered.
    within(status.wait_for(|s| s.waits_to_vote.is_none())).await.unwrap();
    world.members.push(running);
    let changed = world.handle(1).change(change("a", 0, "1"), PATIENCE).await;
    assert_eq!(changed, Answer::Changed { version: 1 });
}

/// Adds one to a number until it has worked so often; how often it may have worked besides.
async fn count(handle: LedgerHandle, times: u64) -> u64 {
    let (mut done, mut unknown) = (0, 0);
    while done < times {
        let Answer::Read { current } = handle.read(key("n"), PATIENCE).await else { continue };
        let (version, n) = current.map_or((0, 0), |r| (r.version, r.value.parse::<u64>().unwrap()));
        match handle.change(change("n", version, &(n + 1).to_string()), PATIENCE).await {
            Answer::Changed { .. } => done += 1,
            Answer::Conflict { maybe_own: true, .. } | Answer::Unknown => unknown += 1,
            Answer::Conflict { .. } | Answer::NoQuorum => {}
            other => panic!("{other:?}"),
        }
    }
    unknown
}

#[tokio::test(flavor = "multi_thread")]
async fn no_change_is_lost_between_rivals_on_a_bad_network() {
    let world = World::start(3).await;
    world.made().await;
    world.net.loss.store(15, Ordering::SeqCst);
    let counting: Vec<_> = (0..3).map(|i| tokio::spawn(count(world.handle(i).clone(), 8))).collect();
    let mut unknown = 0;
    for one in counting {
        unknown += within(one).await.unwrap();
    }
    world.net.loss.store(0, Ordering::SeqCst);
    let Answer::Read { current: Some(read) } = world.handle(0).read(key("n"), PATIENCE).await else { panic!() };
    let n: u64 = read.value.parse().unwrap();
    assert_eq!(n, read.version, "each change added one");
    assert!((24..=24 + unknown).contains(&n), "{n} changes, of which at most {unknown} were not told");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_processes_that_end_at_once_lose_nothing() {
    let mut world = World::start(3).await;
    world.made().await;
    let mesh = world.handle(0).mesh();
    for round in 0..4_u64 {
        let done = world.handle(round as usize % 3).change(change("a", round, &round.to_string()), PATIENCE).await;
        assert_eq!(done, Answer::Changed { version: round + 1 });
        // One more, which nobody waits for.
        let going = world.handle(0).clone();
        let cut_off = tokio::spawn(async move { going.change(change("b", 0, "{}"), PATIENCE).await });
        tokio::task::yield_now().await;
        world.restart_all().await;
        cut_off.abort();
        assert_eq!(world.handle(0).mesh(), mesh, "it is known before anybody has answered");
        let answer = world.handle(1).read(key("a"), PATIENCE).await;
        let Answer::Read { current: Some(read) } = answer else { panic!("{answer:?}") };
        assert_eq!((read.version, &*read.value), (round + 1, &*round.to_string()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_cut_off_changes_nothing_and_knows_that_it_is_stale() {
    let world = World::start(3).await;
    world.made().await;
    within(world.handle(2).wait_fresh()).await;
    world.net.cut.lock().unwrap().insert(member(2));
    let alone = world.handle(2).change(change("a", 0, "1"), Duration::from_secs(1)).await;
    assert!(matches!(alone, Answer::NoQuorum | Answer::Unknown), "{alone:?}");
    // A TTL has passed since it was last answered.
    assert!(!world.handle(2).fresh());
    assert_eq!(world.handle(0).change(change("b", 0, "1"), PATIENCE).await, Answer::Changed { version: 1 });
    assert!(world.handle(2).copies().get(&key("b")).is_none());
    world.net.cut.lock().unwrap().clear();
    within(world.handle(2).wait_fresh()).await;
    assert!(world.handle(2).copies().get(&key("b")).is_some(), "fresh copies hold what was missed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_an_operator_gives_makes_the_mesh_and_stays_after_a_restart() {
    let mut world = World::prepare(2);
    for i in 0..2 {
        let running = world.run(i, None).await;
        world.members.push(running);
    }
    for i in 0..2 {
        assert!(world.handle(i).mesh().is_none());
        // Somebody who is not there is waited for, until the operator gives another list; twice is once.
        world.handle(i).init(bootstrap(3), "a wrong list".into()).await.unwrap();
        world.handle(i).init(bootstrap(2), "the list".into()).await.unwrap();
        world.handle(i).init(bootstrap(2), "the list".into()).await.unwrap();
        assert_eq!(world.members[i].ledger.bootstrap().await.unwrap().as_deref(), Some("the list"));
    }
    world.made().await;
    let again = world.handle(0).init(bootstrap(2), "another".into()).await;
    assert!(matches!(again, Err(InitError::Member(_))), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_ends_the_driver_and_nothing_of_the_step_is_told() {
    let world = World::start(1).await;
    world.made().await;
    world.members[0].ledger.fill_for_test().await.unwrap();
    let big = format!("\"{}\"", "x".repeat(500_000));
    let answer = within(world.handle(0).change(change("a", 0, &big), PATIENCE)).await;
    assert_eq!(answer, Answer::Unknown);
    assert!(world.handle(0).copies().get(&key("a")).is_none());
    let Running { driving, ledger, .. } = world.members.into_iter().next().unwrap();
    let error = within(driving).await.unwrap().unwrap_err();
    assert!(error.is_fatal(), "{error}");
    assert!(ledger.fatal().borrow().is_some());
}

#[derive(Default)]
struct Heard(Mutex<Vec<(RecordKey, u64, usize)>>);

impl Follower for Heard {
    fn copied(&self, news: &[(RecordKey, Versioned)], now: &Copies) {
        let news = news.iter().map(|(key, record)| (key.clone(), record.version, now.len()));
        self.0.lock().unwrap().extend(news);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_hears_of_a_change_before_its_answer() {
    let world = World::prepare(1);
    let heard = Arc::new(Heard::default());
    let follower = Arc::clone(&heard) as Arc<dyn Follower>;
    let one = run(&world.net, world.dirs[0].path(), 0, Some(bootstrap(1)), Some(follower)).await;
    let mut sightings = one.handle.sightings();
    within(one.handle.status().wait_for(|s| s.record.is_some())).await.unwrap();
    for version in 1..4 {
        let done = one.handle.change(change("a", version - 1, "{}"), PATIENCE).await;
        assert_eq!(done, Answer::Changed { version });
        assert_eq!(heard.0.lock().unwrap().last(), Some(&(key("a"), version, 2)));
    }
    assert!(sightings.try_recv().is_ok());
}
