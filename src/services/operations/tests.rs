//! Several members in one process: what the driver adds to the core.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::json;
use tokio::sync::watch;

use super::{AliasFlips, OperationError, Run, Runner, Wish};
use crate::proto::operation::{Kind, Outcome, RequestError, record_key};
use crate::services::aliases::{Aliases, Pointed};
use crate::services::records::{NAMES, Records};
use crate::services::testing::{TTL, World, member, within};
use crate::types::{
    Epoch, IndexUid, NamesRecord, OperationEntry, OperationState, Order, PhysicalIndex, RecordKey, Scope, TraceId,
};
use crate::wire::gossip::MemberGossip;
use crate::wire::verbs::{LeaderAct, LeaderOrder, RecordAt, Refusal};

static SIX: Kind =
    Kind { name: "six", phases: &["a", "b", "c", "d", "e", "f"], undoable: &["a", "b", "c"], destructive: &["e"] };
static CHANGE: Kind =
    Kind { name: "change", phases: &["propose", "verify", "commit"], undoable: &["propose"], destructive: &[] };

const SCOPE: Scope = Scope::Ilm;

/// What has happened, and in which phase runs stand still: what all members of a test share.
#[derive(Debug)]
struct Stage {
    /// Member, epoch, phase, whether it undoes.
    runs: Mutex<Vec<(usize, Epoch, String, bool)>>,
    /// Runs that are alive now.
    under_way: watch::Sender<usize>,
    hold_in: watch::Sender<Option<&'static str>>,
}

impl Stage {
    fn new(hold_in: Option<&'static str>) -> Arc<Self> {
        let (under_way, hold_in) = (watch::Sender::new(0), watch::Sender::new(hold_in));
        Arc::new(Self { runs: Mutex::default(), under_way, hold_in })
    }

    fn runs(&self) -> Vec<(usize, Epoch, String, bool)> {
        self.runs.lock().unwrap().clone()
    }

    fn go_on(&self) {
        self.hold_in.send_replace(None);
    }

    /// Waits for a run in the phase; who makes it.
    async fn in_phase(&self, phase: &str) -> usize {
        let mut under_way = self.under_way.subscribe();
        within(phase, async {
            loop {
                under_way.borrow_and_update();
                if let Some((member, ..)) = self.runs().last().filter(|(_, _, p, _)| p == phase) {
                    return *member;
                }
                under_way.changed().await.unwrap();
            }
        })
        .await
    }
}

struct Counted<'a>(&'a Stage);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.under_way.send_modify(|n| *n -= 1);
    }
}

struct Player {
    kind: &'static Kind,
    member: usize,
    stage: Arc<Stage>,
}

#[async_trait]
impl Runner for Player {
    fn kind(&self) -> &'static Kind {
        self.kind
    }

    async fn run(&self, run: &Run) -> Outcome {
        let guard = run.guard();
        run.check().expect("it begins while it is called for");
        self.stage.runs.lock().unwrap().push((self.member, guard.epoch, guard.phase.clone(), guard.undo));
        self.stage.under_way.send_modify(|n| *n += 1);
        let _alive = Counted(&self.stage);
        run.progress(1, 4, "things").await;
        let mut hold_in = self.stage.hold_in.subscribe();
        hold_in.wait_for(|phase| *phase != Some(guard.phase.as_str()) || guard.undo).await.unwrap();
        match self.kind.phases.get(self.kind.place(&guard.phase).unwrap() + 1) {
            Some(next) if !guard.undo => {
                Outcome::Next { phase: (*next).to_owned(), extra: json!({"after": guard.phase}) }
            }
            _ => Outcome::Done,
        }
    }
}

fn players(kind: &'static Kind, stage: &Arc<Stage>) -> impl Fn(usize, &Records) -> Vec<Arc<dyn Runner>> {
    let stage = Arc::clone(stage);
    move |member, _| vec![Arc::new(Player { kind, member, stage: Arc::clone(&stage) })]
}

/// Waits until member `i` knows the operation to be so.
async fn known(world: &World, i: usize, id: &str, so: impl Fn(&OperationEntry) -> bool) -> OperationEntry {
    let mut view = world.at(i).operations.watch();
    let view = within("an operation so", view.wait_for(|view| view.find(id).is_some_and(|(_, op)| so(op)))).await;
    view.unwrap().find(id).unwrap().1.clone()
}

/// Phase and state of an operation in a member's own table.
async fn row(world: &World, i: usize, id: &str) -> (String, String) {
    world.at(i).store.shown_operation_for_test(id).await.unwrap().unwrap_or_default()
}

async fn goes_on_where_its_leader_was_killed(kind: &'static Kind, phase: &'static str) {
    let stage = Stage::new(Some(phase));
    let mut world = World::start(3, players(kind, &stage)).await;
    let id = world.at(0).operations.begin(SCOPE, kind, json!({})).await.unwrap();
    let leader = stage.in_phase(phase).await;
    known(&world, leader, &id, |op| op.phase == phase).await;
    within("its row", async {
        while row(&world, leader, &id).await != (phase.to_owned(), "running".to_owned()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    world.kill(leader).await;
    stage.go_on();
    let (heir, _) = world.alive().next().unwrap();
    let done = known(&world, heir, &id, |op| op.state == OperationState::Done).await;
    assert_eq!((done.progress.done, done.progress.total), (1, 4), "how far the last phase came");

    let recorded: Vec<&str> = done.history.iter().map(|h| h.phase.as_str()).collect();
    let all: Vec<&str> = kind.phases.iter().copied().chain(["done"]).collect();
    assert_eq!(recorded, all, "every phase is recorded");
    let runs = stage.runs();
    let mut expected = kind.phases.to_vec();
    expected.insert(kind.place(phase).unwrap(), phase);
    assert_eq!(runs.iter().map(|(_, _, phase, _)| phase.as_str()).collect::<Vec<_>>(), expected);
    let after: Vec<&(usize, Epoch, String, bool)> = runs.iter().filter(|(m, ..)| *m != leader).collect();
    assert_eq!(after[0].2, phase, "the next leader begins where the first was");
    assert!(after[0].1 > runs[0].1, "under a higher epoch");
    let next = after[0].0;
    let last = (kind.phases.last().unwrap().to_string(), "done".to_owned());
    within("the last row", async {
        while row(&world, next, &id).await != last {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    // Nobody leads it any more.
    for (_, running) in world.alive() {
        let mut leases = running.leases.watch();
        let over = leases.wait_for(|view| view.leader(&SCOPE, running.leases.now()).is_none());
        within("the lease to be given back", over).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_of_six_phases_goes_on_in_the_third_when_its_leader_is_killed_there() {
    goes_on_where_its_leader_was_killed(&SIX, "c").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_goes_on_in_verify_when_its_leader_is_killed_there() {
    goes_on_where_its_leader_was_killed(&CHANGE, "verify").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_member_pauses_resumes_and_cancels() {
    let stage = Stage::new(Some("b"));
    let world = World::start(3, players(&SIX, &stage)).await;
    let id = world.at(0).operations.begin(SCOPE, &SIX, json!({})).await.unwrap();
    let busy = world.at(1).operations.begin(SCOPE, &SIX, json!({})).await;
    assert_eq!(busy, Err(OperationError::Refused(RequestError::Busy { id: id.clone() })));
    stage.in_phase("b").await;
    known(&world, 1, &id, |op| op.phase == "b").await;

    world.at(1).operations.change(&id, Wish::Pause).await.unwrap();
    let mut under_way = stage.under_way.subscribe();
    within("the run to end", under_way.wait_for(|n| *n == 0)).await.unwrap();
    known(&world, 2, &id, |op| op.state == OperationState::Paused).await;
    world.at(2).operations.change(&id, Wish::Resume).await.unwrap();
    within("another run", under_way.wait_for(|n| *n == 1)).await.unwrap();
    assert_eq!(stage.in_phase("b").await, stage.runs().last().unwrap().0);

    known(&world, 0, &id, |op| op.state == OperationState::Running).await;
    world.at(0).operations.change(&id, Wish::Cancel).await.unwrap();
    let op = known(&world, 0, &id, |op| op.state.is_final()).await;
    assert_eq!(op.state, OperationState::Cancelled);
    assert!(stage.runs().last().unwrap().3, "the last run undid");
    let phases: Vec<&str> = op.history.iter().map(|h| h.phase.as_str()).collect();
    assert_eq!(phases, ["a", "b", "paused", "resumed", "cancelled", "cancelled"]);
    let late = world.at(0).operations.change(&id, Wish::Pause).await;
    assert_eq!(late, Err(OperationError::Refused(RequestError::Finished { id: id.clone() })));
    let unknown = world.at(0).operations.change("nothing", Wish::Pause).await;
    assert_eq!(unknown, Err(OperationError::Refused(RequestError::NotFound { id: "nothing".into() })));
    // Room for the next one.
    stage.go_on();
    let next = world.at(2).operations.begin(SCOPE, &SIX, json!({})).await.unwrap();
    known(&world, 1, &next, |op| op.state == OperationState::Done).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_that_a_member_does_not_know_is_left_to_those_that_do() {
    let stage = Stage::new(None);
    let players = players(&SIX, &stage);
    let world = World::start(3, |i, records| if i == 1 { players(i, records) } else { Vec::new() }).await;
    let id = world.at(0).operations.begin(SCOPE, &SIX, json!({})).await.unwrap();
    known(&world, 2, &id, |op| op.state == OperationState::Done).await;
    assert_eq!(stage.runs().iter().map(|(m, ..)| *m).collect::<BTreeSet<_>>(), BTreeSet::from([1]));
    within("it to be counted where it was led", async {
        while world.at(1).metrics.operations_finished.with_label_values(&["six", "done"]).get() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// The order that a leader gives in a phase, as it goes over the wire.
fn order_of(world: &World, i: usize, id: &str, epoch: Epoch) -> LeaderOrder {
    let key = RecordKey::new(record_key(&SCOPE)).unwrap();
    let version = world.at(i).ledger.copies().get(&key).unwrap().version;
    let phase = world.at(i).operations.view().find(id).unwrap().1.phase.clone();
    LeaderOrder {
        head: Order { scope: SCOPE, epoch, record: key.to_string(), version },
        operation: id.to_owned(),
        phase,
        undo: false,
        act: LeaderAct::Know(RecordAt { key: RecordKey::mesh(), version: 1 }),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_leaders_orders_are_refused_before_anything_is_done() {
    let stage = Stage::new(Some("c"));
    let world = World::start(3, players(&SIX, &stage)).await;
    let id = world.at(0).operations.begin(SCOPE, &SIX, json!({})).await.unwrap();
    let old = stage.in_phase("c").await;
    let epoch = stage.runs().last().unwrap().1;
    for i in 0..3 {
        known(&world, i, &id, |op| op.phase == "c").await;
    }
    let order = order_of(&world, old, &id, epoch);
    let others: Vec<usize> = (0..3).filter(|i| *i != old).collect();
    world.at(others[0]).receive(&member(old), &order).await.expect("it leads");
    // What its record does not call for, and what nobody has written, is refused of a leader too.
    let other = LeaderOrder { phase: "d".into(), ..order.clone() };
    let refused = world.at(others[0]).receive(&member(old), &other).await;
    assert_eq!(refused, Err(Refusal::NotCalledFor(order.head.record.clone())));
    let ahead = Order { version: order.head.version + 1, ..order.head.clone() };
    let refused = world.at(others[0]).receive(&member(old), &LeaderOrder { head: ahead, ..order.clone() }).await;
    assert!(matches!(refused, Err(Refusal::StaleRecord { .. })), "{refused:?}");

    world.cut(old);
    let mut under_way = stage.under_way.subscribe();
    let successor = within("a successor", async {
        loop {
            under_way.borrow_and_update();
            if let Some((next, ..)) = stage.runs().iter().rev().find(|(m, e, ..)| *m != old && *e > epoch) {
                return *next;
            }
            under_way.changed().await.unwrap();
        }
    })
    .await;
    assert!(world.at(old).leases.believes(&SCOPE).is_none(), "the old leader has stopped before");
    within("the old leader's run to end", under_way.wait_for(|n| *n == 1)).await.unwrap();
    for i in others {
        let refused = world.at(i).receive(&member(old), &order).await;
        assert!(matches!(refused, Err(Refusal::StaleOrder(_))), "{refused:?}");
        assert_eq!(world.at(i).metrics.operation_orders.with_label_values(&["stale"]).get(), 1);
        let newer = stage.runs().iter().map(|(_, e, ..)| *e).max().unwrap();
        world
            .at(i)
            .receive(&member(successor), &order_of(&world, successor, &id, newer))
            .await
            .expect("this one leads");
    }
    world.heal();
    stage.go_on();
    let done = known(&world, old, &id, |op| op.state == OperationState::Done).await;
    assert_eq!(done.history.len(), SIX.phases.len() + 1);
    let refused = world.at(old).receive(&member(old), &order).await;
    assert!(matches!(refused, Err(Refusal::StaleOrder(_))), "also by itself: {refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cant_be_taken_back_is_ordered_in_vain_of_a_member_without_a_majority() {
    let stage = Stage::new(Some("d"));
    let world = World::start(3, players(&SIX, &stage)).await;
    let id = world.at(0).operations.begin(SCOPE, &SIX, json!({})).await.unwrap();
    for phase in ["d", "e"] {
        stage.hold_in.send_replace(Some(phase));
        let leader = stage.in_phase(phase).await;
        let (other, epoch) = ((leader + 1) % 3, stage.runs().last().unwrap().1);
        known(&world, other, &id, |op| op.phase == phase).await;
        let order = order_of(&world, other, &id, epoch);
        world.cut(other);
        let done = world.at(other).receive(&member(leader), &order).await;
        world.heal();
        if SIX.is_destructive(phase) {
            assert!(matches!(&done, Err(Refusal::Other(why)) if why.contains("majority")), "{done:?}");
            within("fresh copies", world.at(other).ledger.wait_fresh()).await;
            world.at(other).receive(&member(leader), &order).await.expect("it can ask the majority again");
        } else {
            done.expect("its own copy is enough");
        }
    }
    stage.go_on();
    known(&world, 0, &id, |op| op.state == OperationState::Done).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_cant_be_taken_back_and_is_over_is_refused_by_who_has_heard_of_nothing_newer() {
    let stage = Stage::new(Some("e"));
    let world = World::start(3, players(&SIX, &stage)).await;
    let id = world.at(0).operations.begin(SCOPE, &SIX, json!({})).await.unwrap();
    let leader = stage.in_phase("e").await;
    let (receiver, epoch) = ((leader + 1) % 3, stage.runs().last().unwrap().1);
    known(&world, receiver, &id, |op| op.phase == "e").await;
    let order = order_of(&world, receiver, &id, epoch);
    world.at(receiver).receive(&member(leader), &order).await.expect("it is called for");

    world.cut(receiver);
    stage.hold_in.send_replace(Some("f"));
    stage.in_phase("f").await;
    let view = world.at(receiver).operations.view();
    assert_eq!(view.find(&id).unwrap().1.phase, "e", "by its own copy it is called for still");
    // It reaches the others from here on, and nobody has told it anything yet.
    world.heal();
    let refused = world.at(receiver).receive(&member(leader), &order).await;
    refused.expect_err("the phase is over, as a majority knows");
    stage.go_on();
    known(&world, receiver, &id, |op| op.state == OperationState::Done).await;
}

fn uid(name: &str) -> IndexUid {
    IndexUid::new(name).unwrap()
}

fn flips(_: usize, records: &Records) -> Vec<Arc<dyn Runner>> {
    vec![Arc::new(AliasFlips::new(records.clone(), Arc::default()))]
}

/// Three members with the indexes `a` and `b` and the alias `live` of `a`.
async fn with_alias() -> World {
    let world = World::start(3, flips).await;
    let indexes = [("a", 1), ("b", 2)].map(|(name, n)| (uid(name), PhysicalIndex::of(&uid(name), n)));
    let names = NamesRecord { indexes: indexes.into(), ..NamesRecord::default() };
    world.at(0).records.write(NAMES, 0, &names).await.unwrap();
    aliases(&world, 0).create(&uid("live"), &uid("a"), TraceId::default()).await.unwrap();
    world
}

fn aliases(world: &World, i: usize) -> Aliases {
    let running = world.at(i);
    Aliases::new(running.records.clone(), running.operations.clone(), running.leases.clone())
}

async fn flip(world: &World, i: usize, to: &str) -> String {
    match aliases(world, i).point(&uid("live"), &uid(to), TraceId::default()).await.unwrap() {
        Pointed::Begun(id) => id,
        other => panic!("{other:?}"),
    }
}

fn targets(world: &World) -> BTreeMap<usize, String> {
    let target = |i| aliases(world, i).get(&uid("live")).unwrap().target.to_string();
    world.alive().map(|(i, _)| (i, target(i))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_knows_a_flip_that_is_done() {
    let world = with_alias().await;
    let first = aliases(&world, 1).get(&uid("live")).unwrap().version;
    for (i, to) in [(1, "b"), (2, "a"), (0, "b")] {
        let id = flip(&world, i, to).await;
        let op = known(&world, i, &id, |op| op.state.is_final()).await;
        assert_eq!(op.state, OperationState::Done, "{op:?}");
        assert!(targets(&world).values().all(|target| target == to), "{:?}", targets(&world));
    }
    let same = aliases(&world, 1).point(&uid("live"), &uid("b"), TraceId::default()).await.unwrap();
    assert_eq!(same, Pointed::Same);
    let alias = aliases(&world, 1).get(&uid("live")).unwrap();
    let former: Vec<&str> = alias.history.iter().map(|f| f.target.as_str()).collect();
    assert_eq!((alias.version, former), (first + 3, vec!["a", "b", "a"]));
    let done: u64 = (0..3).map(|i| world.at(i).metrics.operation_orders.with_label_values(&["done"]).get()).sum();
    assert!(done >= 9, "every member was ordered to confirm each: {done}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flip_waits_for_who_is_away_until_it_is_stale() {
    let mut world = with_alias().await;
    world.kill(2).await;
    let began = Instant::now();
    let id = flip(&world, 0, "b").await;
    let confirming = known(&world, 0, &id, |op| op.phase == "confirm").await;
    assert_eq!(confirming.state, OperationState::Running);
    let late = world.at(0).operations.change(&id, Wish::Cancel).await;
    assert!(matches!(late, Err(OperationError::Refused(RequestError::TooLate { .. }))), "{late:?}");
    let done = known(&world, 0, &id, |op| op.state == OperationState::Done).await;
    assert!(began.elapsed() > TTL + TTL / 20, "{:?}", began.elapsed());
    let phases: Vec<&str> = done.history.iter().map(|h| h.phase.as_str()).collect();
    assert_eq!(phases, ["prepare", "flip", "confirm", "unconfirmed", "done"]);
    assert_eq!(done.extra["unconfirmed"], json!([member(2)]), "who has not confirmed stays with it");
    // Who comes back knows it before it is fresh.
    world.restart(2, flips).await;
    within("fresh copies", world.at(2).ledger.wait_fresh()).await;
    assert_eq!(targets(&world), (0..3).map(|i| (i, "b".to_owned())).collect());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alias_that_is_made_or_deleted_waits_for_who_is_away_until_it_is_stale() {
    let world = with_alias().await;
    world.cut(2);
    let began = Instant::now();
    aliases(&world, 0).delete(&uid("live"), TraceId::default()).await.unwrap();
    assert!(!world.at(2).ledger.fresh(), "it still knows the alias, and resolves none for a write");
    assert!(began.elapsed() > TTL, "{:?}", began.elapsed());
    assert!(aliases(&world, 2).get(&uid("live")).is_ok());
    world.heal();
    within("fresh copies", world.at(2).ledger.wait_fresh()).await;
    let began = Instant::now();
    aliases(&world, 1).create(&uid("live"), &uid("b"), TraceId::default()).await.unwrap();
    assert!(began.elapsed() < TTL, "all are there: {:?}", began.elapsed());
    assert!(targets(&world).values().all(|target| target == "b"), "{:?}", targets(&world));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_aliases_wait_for_the_longest_ttl_that_is_known() {
    let world = with_alias().await;
    let longer = MemberGossip { lease_ttl_ms: Some(2 * TTL.as_millis() as u64), ..MemberGossip::default() };
    for (_, running) in world.alive() {
        running.gossip.send_replace([(member(2), longer.clone())].into());
    }
    let own_ms = TTL.as_millis() as u64;
    within("it to be heard", async {
        while world.alive().take(2).any(|(_, m)| m.leases.other_ttls_ms() != (own_ms, [(member(2), 2 * own_ms)].into()))
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    world.cut(2);
    let began = Instant::now();
    let id = flip(&world, 0, "b").await;
    known(&world, 0, &id, |op| op.state == OperationState::Done).await;
    assert!(began.elapsed() > 2 * TTL, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flip_that_the_asked_member_has_not_heard_of_is_seen_all_the_same() {
    let world = with_alias().await;
    let plan = json!({"to": "b"});
    // Nobody carries it out, and member 2 hears nothing of it.
    static OTHER: Kind = Kind { name: "of tomorrow", phases: &["wait"], undoable: &[], destructive: &[] };
    world.cut(2);
    world.at(0).operations.begin(Scope::AliasFlip(uid("live")), &OTHER, plan).await.unwrap();
    world.heal();
    let deleted = aliases(&world, 2).delete(&uid("live"), TraceId::default()).await;
    let refused = format!("{:?}", deleted.unwrap_err());
    assert!(refused.contains("MiroirOperationState"), "{refused}");
    assert!(aliases(&world, 2).point(&uid("live"), &uid("a"), TraceId::default()).await.is_err(), "it is not the same");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_records_may_be_old_follows_no_order() {
    let stage = Stage::new(Some("b"));
    let world = World::start(3, players(&SIX, &stage)).await;
    let id = world.at(0).operations.begin(SCOPE, &SIX, json!({})).await.unwrap();
    let leader = stage.in_phase("b").await;
    let (other, epoch) = ((leader + 1) % 3, stage.runs().last().unwrap().1);
    known(&world, other, &id, |op| op.phase == "b").await;
    let order = order_of(&world, other, &id, epoch);
    world.at(other).receive(&member(leader), &order).await.expect("it is fresh");
    world.cut(other);
    within("it to be stale", async {
        while world.at(other).ledger.fresh() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let refused = world.at(other).receive(&member(leader), &order).await;
    assert!(matches!(&refused, Err(Refusal::Other(why)) if why.contains("newest")), "{refused:?}");
    world.heal();
    within("fresh copies", world.at(other).ledger.wait_fresh()).await;
    world.at(other).receive(&member(leader), &order).await.expect("it is fresh again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flip_whose_target_goes_fails_and_changes_nothing() {
    let world = with_alias().await;
    let none = aliases(&world, 0).point(&uid("live"), &uid("none"), TraceId::default()).await;
    assert!(none.is_err());
    let plan = json!({"to": "none"});
    let scope = Scope::AliasFlip(uid("live"));
    let id = world.at(0).operations.begin(scope, &crate::proto::alias::ALIAS_FLIP, plan).await.unwrap();
    let op = known(&world, 0, &id, |op| op.state.is_final()).await;
    assert_eq!((op.state, op.error.as_deref()), (OperationState::Failed, Some("index `none` not found")));
    assert!(targets(&world).values().all(|target| target == "a"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flip_goes_on_when_its_leader_is_killed() {
    let mut world = with_alias().await;
    let first = aliases(&world, 0).get(&uid("live")).unwrap().version;
    // One member that does not confirm keeps the flip under way for a TTL.
    world.cut(0);
    let mut leader = None;
    let id = flip(&world, 1, "b").await;
    let view = known(&world, 1, &id, |op| op.phase == "confirm").await;
    within("a leader", async {
        while leader.is_none() {
            leader = (1..3).find(|i| world.at(*i).leases.believes(&Scope::AliasFlip(uid("live"))).is_some());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    world.heal();
    let leader = leader.unwrap();
    world.kill(leader).await;
    let (other, _) = world.alive().find(|(i, _)| *i != 0).unwrap();
    let op = known(&world, other, &id, |op| op.state.is_final()).await;
    assert_eq!(op.state, OperationState::Done, "{op:?}");
    let phases: Vec<&str> = op.history.iter().map(|h| h.phase.as_str()).collect();
    // Whom the new leader can't ask any more, it waits for in vain.
    assert_eq!(phases, ["prepare", "flip", "confirm", "unconfirmed", "done"]);
    let last = op.history.last().unwrap().epoch;
    assert!(last >= view.history.last().unwrap().epoch);
    within("all to know it", async {
        while targets(&world).values().any(|target| target != "b") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let name = IndexUid::new("live").unwrap();
    assert_eq!(aliases(&world, 0).get(&name).unwrap().version, first + 1, "flipped once");
}
