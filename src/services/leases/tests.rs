//! One member that is a whole mesh, with its stores: what the driver adds to the core.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Driver, Inputs, LeaseHandle, OrderError, Parts};
use crate::net::{Answer, Call, CallError, Peers};
use crate::proto::lease::{Config, OrderRefusal, rank};
use crate::proto::ledger::{Answer as LedgerAnswer, Bootstrap, BootstrapMember, Config as LedgerConfig};
use crate::proto::operation::record_key;
use crate::services::cluster::MemberState;
use crate::services::ledger::{self, ChangeRequest, LedgerHandle, now};
use crate::services::testing::{World, member, within};
use crate::store::{JournalStore, LedgerStore, Store, StoreError, identity};
use crate::telemetry::metrics::Metrics;
use crate::types::{
    AliasRecord, Epoch, GroupId, IndexUid, LeaseValue, MemberId, NamesRecord, OperationRecord, Order, RecordKey, Scope,
};

/// Nothing here takes nearly so long, unless it never happens.
const LONG: Duration = Duration::from_secs(30);
const TTL: Duration = Duration::from_millis(800);
const RENEW: Duration = Duration::from_millis(200);

struct Nobody;

#[async_trait]
impl Peers for Nobody {
    async fn call(&self, to: &MemberId, _: Call) -> Result<Answer, CallError> {
        Err(CallError::NoAnswer { member: to.clone(), reason: "nobody is there".into() })
    }

    fn is_suspect(&self, _: &MemberId) -> bool {
        false
    }
}

struct Running {
    leases: LeaseHandle,
    ledger: LedgerHandle,
    store: Store,
    metrics: Arc<Metrics>,
    state: watch::Sender<MemberState>,
    drivers: [JoinHandle<Result<(), StoreError>>; 2],
    _gossip: watch::Sender<BTreeMap<MemberId, crate::wire::gossip::MemberGossip>>,
}

impl Running {
    async fn start(dir: &Path) -> Self {
        let me = MemberId::new("m1").unwrap();
        let entry = BootstrapMember {
            id: me.clone(),
            group: GroupId::new("g1").unwrap(),
            address: "10.0.0.1:7781".into(),
            witness: false,
        };
        let bootstrap = Some(Bootstrap { members: vec![entry], rf: 1, shards: 4 });
        let (ledger_store, store) = (LedgerStore::open(dir).unwrap(), Store::open(dir).unwrap());
        let journals = JournalStore::open(dir, &ledger_store).unwrap();
        let (identity, stored) = identity::begin(&store, &ledger_store, &journals, &me).await.unwrap();
        let config = LedgerConfig {
            member: me,
            renew_interval: RENEW,
            lease_ttl: TTL,
            voter_replace_after: LONG,
            round_timeout: Duration::from_millis(150),
            retry_base: Duration::from_millis(5),
            bootstrap,
        };
        let (driver, ledger) = ledger::Driver::new(ledger::Parts {
            config,
            configured: true,
            stored,
            ledger: ledger_store,
            store: store.clone(),
            journals,
            peers: Arc::new(Nobody),
            metrics: Arc::default(),
        });
        let (ttl_ms, metrics) = (u64::try_from(TTL.as_millis()).unwrap(), Arc::<Metrics>::default());
        let (lease_driver, leases, _) = Driver::new(Parts {
            config: Config { enabled: true, ttl_ms, renew_interval: RENEW },
            start: identity.start,
            fences: store.fences().await.unwrap(),
            ledger: ledger.clone(),
            store: store.clone(),
            metrics: Arc::clone(&metrics),
        });
        let (state, gossip) = (watch::Sender::new(MemberState::Active), watch::Sender::new(BTreeMap::new()));
        let watched = Inputs { state: state.subscribe(), gossip: gossip.subscribe() };
        let drivers = [tokio::spawn(driver.run()), tokio::spawn(lease_driver.run(watched))];
        Self { leases, ledger, store, metrics, state, drivers, _gossip: gossip }
    }

    /// As if the process were killed.
    async fn kill(self) {
        for driver in self.drivers {
            driver.abort();
            assert!(driver.await.unwrap_err().is_cancelled());
        }
    }

    async fn held(&self, scope: &Scope) -> Epoch {
        let mut view = self.leases.watch();
        let held = view.wait_for(|view| view.believes(scope, now()).is_some());
        tokio::time::timeout(LONG, held).await.expect("it is held").unwrap();
        self.leases.believes(scope).expect("it is renewed")
    }

    fn recorded(&self, scope: &Scope) -> Option<LeaseValue> {
        let copies = self.ledger.copies();
        let record = copies.get(&RecordKey::new(scope.lease_key()).unwrap())?;
        Some(LeaseValue::parse(&record.value).unwrap())
    }

    async fn recorded_as(&self, scope: &Scope, released: bool) {
        let mut changes = self.ledger.watch();
        let stands = async {
            loop {
                changes.borrow_and_update();
                if self.recorded(scope).is_some_and(|value| value.released == released) {
                    return;
                }
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(LONG, stands).await.expect("it is written");
    }
}

fn flip(name: &str) -> Scope {
    Scope::AliasFlip(IndexUid::new(name).unwrap())
}

#[tokio::test]
async fn a_lease_is_given_back_only_when_nothing_runs_under_it() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    running.leases.want(flip("a")).await.unwrap();
    let epoch = running.held(&flip("a")).await;
    let tenure = running.leases.enter(&flip("a")).unwrap();
    assert_eq!((tenure.epoch(), tenure.stands()), (epoch, true));
    running.leases.release(flip("a")).await;
    let mut view = running.leases.watch();
    view.wait_for(|view| view.believes(&flip("a"), now()).is_none()).await.unwrap();
    assert!(!tenure.stands() && running.leases.enter(&flip("a")).is_none());
    tokio::time::sleep(TTL / 4).await;
    assert!(!running.recorded(&flip("a")).unwrap().released, "something runs under it");
    drop(tenure);
    running.recorded_as(&flip("a"), true).await;
    running.kill().await;
}

#[tokio::test]
async fn what_is_held_is_counted_and_written_into_the_table_for_people() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let alive = Scope::Alive(MemberId::new("m1").unwrap());
    for scope in Scope::STANDING.iter().chain([&alive]) {
        running.held(scope).await;
    }
    let metrics = &running.metrics;
    assert_eq!((metrics.leader_acquisitions.get(), metrics.lease_losses.get()), (3, 0), "its own life is not led");
    for scope in &Scope::STANDING {
        let leaderless = metrics.leaderless.with_label_values(&[scope.to_string().as_str()]).get();
        assert!(leaderless > 0.0, "{scope} had nobody before");
    }
    let mut expected: Vec<_> =
        Scope::STANDING.iter().chain([&alive]).map(|s| (s.to_string(), Some("m1".into()))).collect();
    expected.sort();
    within("the table, and renewals", async {
        while running.store.shown_leases_for_test().await.unwrap() != expected || metrics.lease_renewals.get() < 8 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    running.kill().await;
}

/// What each member's exposition says of the standing scopes, summed over members.
fn leaders(world: &World) -> BTreeMap<String, usize> {
    let mut sums: BTreeMap<String, usize> = Scope::STANDING.iter().map(|scope| (scope.to_string(), 0)).collect();
    for (_, running) in world.alive() {
        let (view, now) = (running.leases.rows(), running.leases.now());
        let held: Vec<String> = view.held(now).map(|(scope, _)| scope.to_string()).collect();
        let text = running.metrics.encode_leading(held.iter().map(String::as_str));
        for (scope, sum) in &mut sums {
            *sum += text.lines().filter(|line| *line == format!("miroir_leader{{scope=\"{scope}\"}} 1")).count();
        }
    }
    sums
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sum_of_leaders_is_one_and_what_a_member_that_is_cut_off_loses_is_counted() {
    let world = World::start(3, |_, _| Vec::new()).await;
    let each_led = async |world: &World| {
        within("leaders", async {
            while leaders(world).values().any(|sum| *sum != 1) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    };
    each_led(&world).await;
    let of = |world: &World| (0..3).find(|i| world.at(*i).leases.believes(&Scope::Membership).is_some());
    // Whoever got it first may offer it to the member that ranks first; that one keeps it.
    let members: Vec<MemberId> = (0..3).map(member).collect();
    let first = rank::order(&Scope::Membership, &members.iter().collect::<Vec<_>>())[0].clone();
    let old = members.iter().position(|m| *m == first).expect("it is one of them");
    let acquired = |world: &World| (0..3).map(|i| world.at(i).metrics.leader_acquisitions.get()).sum::<u64>();
    let leaderless = |world: &World| {
        world.at(old).metrics.leaderless.with_label_values(&[Scope::Membership.to_string().as_str()]).get()
    };
    let before = within("the first in rank to be cut off while it leads", async {
        loop {
            let before = (acquired(&world), leaderless(&world));
            world.cut(old);
            // What it holds now it can only lose, and others take.
            if of(&world) == Some(old) {
                return before;
            }
            world.heal();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    within("another leader", async {
        loop {
            let sums = leaders(&world);
            assert!(sums.values().all(|sum| *sum <= 1), "{sums:?}");
            if of(&world).is_some_and(|new| new != old) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    within("it to be counted", async {
        while world.at(old).metrics.lease_losses.get() == 0
            || leaderless(&world) <= before.1
            || acquired(&world) <= before.0
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    world.heal();
    each_led(&world).await;
}

#[tokio::test]
async fn a_stale_order_is_refused_also_by_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let order =
        |epoch, version| Order { scope: flip("b"), epoch: Epoch::new(epoch).unwrap(), record: "names".into(), version };
    let running = Running::start(dir.path()).await;
    running.leases.check_order(order(5, 0)).await.unwrap();
    let behind = running.leases.check_order(order(5, 9)).await.unwrap_err();
    assert!(matches!(behind, OrderError::Refused(OrderRefusal::Behind { needed: 9, known: 0, .. })), "{behind}");
    let stale = |refused: Result<(), OrderError>| {
        let highest = Epoch::new(5).unwrap();
        matches!(refused, Err(OrderError::Refused(OrderRefusal::Stale { highest: h, .. })) if h == highest)
    };
    assert!(stale(running.leases.check_order(order(4, 0)).await));
    running.kill().await;
    let again = Running::start(dir.path()).await;
    assert!(stale(again.leases.check_order(order(4, 0)).await));
    again.leases.want(flip("b")).await.unwrap();
    assert!(again.held(&flip("b")).await > Epoch::new(5).unwrap(), "who leads next is above every epoch seen");
    again.kill().await;
}

#[tokio::test]
async fn who_leads_next_is_above_every_epoch_that_records_show() {
    // Where survivors have put their records together, a lease may be older than what was written under it.
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    running.held(&Scope::Membership).await;
    let (shown, named) = (Epoch::new(41).unwrap(), Epoch::new(43).unwrap());
    let record = OperationRecord { epoch: shown, ..OperationRecord::default() };
    let alias = |epoch| AliasRecord { target: IndexUid::new("i").unwrap(), version: 1, epoch, history: Vec::new() };
    let names = NamesRecord { aliases: [(IndexUid::new("b").unwrap(), alias(named))].into(), ..NamesRecord::default() };
    let values = [
        (record_key(&flip("a")), serde_json::to_string(&record).unwrap()),
        ("names".to_owned(), serde_json::to_string(&names).unwrap()),
    ];
    for (key, value) in values {
        let key = RecordKey::new(key).unwrap();
        let change = ChangeRequest { key, expected: 0, value: value.into(), quiet: false };
        assert!(matches!(running.ledger.change(change, LONG).await, LedgerAnswer::Changed { .. }));
    }
    for (scope, shown) in [(flip("a"), shown), (flip("b"), named)] {
        running.leases.want(scope.clone()).await.unwrap();
        assert!(running.held(&scope).await > shown, "{scope}");
    }
    running.kill().await;
}

#[tokio::test]
async fn a_restarted_member_leads_again_under_a_higher_epoch_and_a_clean_end_gives_all_back() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let mut before = BTreeMap::new();
    for scope in Scope::STANDING {
        before.insert(scope.clone(), running.held(&scope).await);
    }
    running.kill().await;
    let again = Running::start(dir.path()).await;
    for (scope, epoch) in before {
        assert!(again.held(&scope).await > epoch, "{scope}");
    }
    // Who is not in service leads nothing, and lives all the same.
    let alive = Scope::Alive(MemberId::new("m1").unwrap());
    again.held(&alive).await;
    again.state.send_replace(MemberState::Draining);
    for scope in Scope::STANDING {
        again.recorded_as(&scope, true).await;
    }
    assert!(again.leases.believes(&alive).is_some());
    again.leases.shutdown(LONG).await;
    assert!(again.recorded(&alive).unwrap().released);
    assert_eq!(again.leases.rows().held(now()).count(), 0);
    again.kill().await;
}
