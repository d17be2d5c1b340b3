//! Three members in one process, with their real stores: their homes, and what an applier of the test's making has done.

use std::collections::BTreeSet;

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::call::{MemberQuestion, Told};
use super::found::found;
use super::slot::Slot;
use super::submit::{NewWrite, NotDone, Submitted};
use super::*;
use crate::proto::env::Env;
use crate::proto::journal::{Answer, Body, Kind, Write};
use crate::proto::tasks::home::body::{encode_head, join};
use crate::proto::tasks::home::{Config as CoreConfig, Done, HomeEntry, HomeState, Report, Said, StoredRow};
use crate::proto::tasks::home::{Home, PartRef, Work};
use crate::proto::tasks::query::{Action, Listing, original_filter, parse_action};
use crate::proto::tasks::{Head, Outcome, Query, Shown, Status, Subject};
use crate::services::Failure;
use crate::services::ledger::now;
use crate::services::tasks::{Accepted, Tasks};
use crate::services::testing::{LONG, World, member, within};
use crate::types::{Epoch, ErrorCode, IndexUid, MemberId, PhysicalIndex, ReplicaId, ShardId, TraceId};

const MOVIES: &str = "movies__m00000001";
const SHARDS: u16 = 2;

fn index() -> PhysicalIndex {
    PhysicalIndex::new(MOVIES).unwrap()
}

fn soon() -> Instant {
    Instant::now() + LONG
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

/// Three members with homes, and an index of two shards.
async fn world() -> World {
    let world = World::start(3, |_, _| Vec::new()).await;
    let founding =
        world.alive().map(|(_, m)| found(m.journals.clone(), m.leases.clone(), m.cluster.clone(), m.seen.subscribe()));
    within("homes", futures_util::future::join_all(founding)).await;
    let copies: Vec<ReplicaId> = (0..3).map(|i| world.at(i).journals.me().clone()).collect();
    world.create(&index(), vec![copies; usize::from(SHARDS)]).await;
    until("the index is known", async || world.alive().all(|(_, m)| m.journals.record(&index()).is_some())).await;
    world
}

fn head(shards: &[u16]) -> Head {
    Head {
        index_uid: Some("movies".into()),
        subject: Subject::Documents { received: 3, distinct: 2 },
        work: Work::Parts { index: index(), parts: crate::proto::tasks::home::Parts::one_each(shards.iter().copied()) },
        enqueued: wall(),
        custom_metadata: None,
        key: None,
    }
}

fn write(uid: TaskUid, head: &Head) -> Write {
    let body = join(&encode_head(head).unwrap(), b"{}").unwrap();
    Write { part: PartRef { shard: 0, part: 0 }.of(uid), kind: Kind::Set { skip_creation: false }, body }
}

/// Sends the parts of these shards; all of them are committed.
async fn send(world: &World, i: usize, uid: TaskUid, head: &Head, shards: &[u16]) -> Vec<u64> {
    let parts = shards.iter().map(|shard| (ShardId(*shard), write(uid, head))).collect();
    let answers = world.at(i).sender.send(&index(), parts, soon(), TraceId::default()).await;
    let seq = |answer: &Answer| match answer {
        Answer::Committed { seq, refused: false, .. } => *seq,
        other => panic!("not committed: {other:?}"),
    };
    answers.iter().map(seq).collect()
}

/// A write through member `i`, head and parts together.
async fn acknowledged(world: &World, i: usize, shards: &[u16]) -> TaskUid {
    let homes = &world.at(i).homes;
    let uid = homes.next_uid().await.unwrap();
    let head = head(shards);
    let (taken, _) = tokio::join!(
        within("a head", homes.take(uid, &head, soon(), TraceId::default())),
        within("parts", send(world, i, uid, &head, shards))
    );
    taken.unwrap();
    uid
}

fn tasks(world: &World, i: usize) -> Tasks {
    let running = world.at(i);
    Tasks::new(running.homes.clone(), running.sender.clone(), std::sync::Arc::clone(&running.metrics))
}

async fn get(world: &World, i: usize, uid: TaskUid) -> Option<Shown> {
    within("a task", world.at(i).homes.get(uid, soon(), TraceId::default())).await.unwrap()
}

async fn ends(world: &World, i: usize, uid: TaskUid) -> (Status, Outcome) {
    let mut ended = None;
    until("its end", async || {
        ended = get(world, i, uid).await.and_then(|task| Some((task.status, task.outcome?)));
        ended.is_some()
    })
    .await;
    ended.unwrap()
}

/// What members `which` have committed, they have applied.
async fn apply_all(world: &World, which: &[usize]) {
    for i in which {
        for shard in 0..SHARDS {
            let running = world.at(*i);
            if let Some(to) = running.journals.committed(&key(shard)) {
                running.applied.apply(&key(shard), to);
            }
        }
    }
}

/// Waits until all members are in sync everywhere, as member `i` knows it.
async fn whole(world: &World, i: usize) {
    until("all are in sync", async || {
        let Some(record) = world.at(i).journals.record(&index()) else { return false };
        let Some(homes) = world.at(i).journals.record(&PhysicalIndex::of_tasks()) else { return false };
        record.shards.iter().chain(&homes.shards).all(|state| state.in_sync.len() == 3)
    })
    .await;
}

/// The member that keeps a home.
fn primary(world: &World, home: u16) -> Option<usize> {
    let (_, any) = world.alive().next().unwrap();
    let state = any.journals.record(&PhysicalIndex::of_tasks())?.shard(ShardId(home))?.clone();
    let named = state.primary?.member;
    (0..3).find(|i| member(*i) == named && world.members[*i].is_some())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_kept_and_finished_when_all_have_applied_it() {
    let world = world().await;
    let uid = acknowledged(&world, 0, &[0, 1]).await;
    for i in 0..3 {
        let shown = get(&world, i, uid).await.expect("any member finds it");
        assert_eq!(shown.status, Status::Enqueued);
    }
    // The others hear of what is committed with the next entries.
    until("all have it", async || {
        world.alive().all(|(_, m)| (0..SHARDS).all(|s| m.journals.committed(&key(s)).is_some_and(|c| c >= 2)))
    })
    .await;
    apply_all(&world, &[0, 1]).await;
    until("it is begun", async || get(&world, 2, uid).await.unwrap().status == Status::Processing).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(get(&world, 2, uid).await.unwrap().status, Status::Processing, "one replica has not applied it");
    apply_all(&world, &[2]).await;
    let (status, outcome) = ends(&world, 1, uid).await;
    assert_eq!((status, outcome.changed, outcome.error), (Status::Succeeded, 2, None));
    assert_eq!(get(&world, 1, TaskUid(uid.0 + 1_000)).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_that_nobody_heard_are_asked_for_and_errors_name_the_clients_index() {
    let world = world().await;
    let homes = &world.at(0).homes;
    let uid = homes.next_uid().await.unwrap();
    let head = head(&[1]);
    // The home hears of the task from whoever has applied its part.
    let seqs = send(&world, 0, uid, &head, &[1]).await;
    until("all have it", async || {
        world.alive().all(|(_, m)| m.journals.committed(&key(1)).is_some_and(|c| c >= seqs[0]))
    })
    .await;
    for (_, running) in world.alive() {
        let error = ("invalid_document_id".to_owned(), format!("Index `{MOVIES}`: bad"));
        running.applied.failed.lock().unwrap().insert((key(1), seqs[0]), error);
    }
    apply_all(&world, &[0, 1, 2]).await;
    let (status, outcome) = ends(&world, 2, uid).await;
    assert_eq!(status, Status::Failed);
    assert_eq!(outcome.error.unwrap().message, "Index `movies`: bad");
    assert_eq!(get(&world, 0, uid).await.unwrap().head, head);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_of_which_parts_are_missing_is_given_up_and_its_parts_never_stand() {
    let world = world().await;
    let homes = &world.at(1).homes;
    let uid = homes.next_uid().await.unwrap();
    let head = head(&[0, 1]);
    homes.take(uid, &head, soon(), TraceId::default()).await.unwrap();
    let seqs = send(&world, 1, uid, &head, &[0]).await;
    until("all have it", async || {
        world.alive().all(|(_, m)| m.journals.committed(&key(0)).is_some_and(|c| c >= seqs[0]))
    })
    .await;
    apply_all(&world, &[0, 1, 2]).await;
    let (status, outcome) = ends(&world, 0, uid).await;
    assert_eq!(status, Status::Failed);
    let error = outcome.error.unwrap();
    assert_eq!(error.code, "miroir_incomplete");
    assert!(error.message.ends_with("these shards was applied: 0."), "{}", error.message);
    let late = vec![(ShardId(1), write(uid, &head))];
    let answers = world.at(2).sender.send(&index(), late, soon(), TraceId::default()).await;
    assert!(matches!(answers[..], [Answer::Committed { refused: true, .. }]), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_outlive_the_primary_of_their_home() {
    let mut world = world().await;
    let mut uids = Vec::new();
    for n in 0..12 {
        uids.push(acknowledged(&world, n % 3, &[0, 1]).await);
    }
    let first = home_of(uids[0]);
    let gone = primary(&world, first).unwrap();
    world.kill(gone).await;
    let left: Vec<usize> = world.alive().map(|(i, _)| i).collect();
    for uid in &uids {
        assert!(get(&world, left[0], *uid).await.is_some(), "{uid}");
    }
    uids.push(acknowledged(&world, left[1], &[0]).await);
    world.restart(gone, |_, _| Vec::new()).await;
    whole(&world, gone).await;
    until("all are finished", async || {
        apply_all(&world, &[0, 1, 2]).await;
        let mut all = true;
        for uid in &uids {
            all &= get(&world, gone, *uid).await.is_some_and(|task| task.status == Status::Succeeded);
        }
        all
    })
    .await;
    // A member that begins anew has every row: nobody else is asked for what happened while it was down.
    world.kill(gone).await;
    world.restart(gone, |_, _| Vec::new()).await;
    for uid in &uids {
        let task = get(&world, gone, *uid).await.unwrap();
        assert_eq!(task.status, Status::Succeeded);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_is_kept_for_one_task_or_for_none() {
    let world = world().await;
    let (homes, trace) = (&world.at(0).homes, TraceId::default());
    let uid = homes.next_uid().await.unwrap();
    let (one, other) = (head(&[0]), head(&[1]));
    homes.take(uid, &one, soon(), trace).await.unwrap();
    assert_eq!(world.at(1).homes.take(uid, &one, soon(), trace).await, Ok(()), "the same again");
    assert_eq!(world.at(1).homes.take(uid, &other, soon(), trace).await, Err(HomeError::Other));
    assert_eq!(homes.void(uid, soon(), trace).await, Ok(false));
    let never = homes.next_uid().await.unwrap();
    assert_eq!(homes.void(never, soon(), trace).await, Ok(true));
    assert_eq!(world.at(2).homes.take(never, &one, soon(), trace).await, Err(HomeError::Other));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_stands_for_one_task_everywhere() {
    let world = world().await;
    let trace = TraceId::default();
    let settle = async |i: usize, hash: u8, uid: u32, replaces: Option<u32>| {
        let replaces = replaces.map(TaskUid);
        world.at(i).homes.settle(("once", [hash; 32]), TaskUid(uid), replaces, soon(), trace).await.unwrap()
    };
    let mut all = BTreeSet::new();
    let (a, b, c) = tokio::join!(settle(0, 1, 901, None), settle(1, 1, 902, None), settle(2, 1, 903, None));
    all.extend([a, b, c]);
    let [(uid, true)] = Vec::from_iter(all)[..] else { panic!("one task: {a:?} {b:?} {c:?}") };
    assert_eq!(settle(0, 2, 904, None).await, (uid, false), "another body");
    assert_eq!(settle(0, 2, 904, Some(uid.0)).await, (TaskUid(904), true));
    assert_eq!(settle(1, 2, 905, Some(uid.0)).await, (TaskUid(904), true));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_whose_process_ended_is_refused_and_one_that_is_carried_out_is_not() {
    let mut world = world().await;
    let trace = TraceId::default();
    let order = || Head { work: Work::Order, subject: Subject::IndexDeletion, ..head(&[0]) };
    let (lost, kept) = (world.at(0).homes.next_uid().await.unwrap(), world.at(1).homes.next_uid().await.unwrap());
    let held = world.at(1).homes.orders().hold(kept);
    world.at(1).homes.take(kept, &order(), soon(), trace).await.unwrap();
    assert!(held.begin());
    let never = world.at(0).homes.orders().hold(lost);
    world.at(0).homes.take(lost, &order(), soon(), trace).await.unwrap();
    world.kill(0).await;
    drop(never);
    world.restart(0, |_, _| Vec::new()).await;
    let (status, outcome) = ends(&world, 2, lost).await;
    assert_eq!((status, outcome.error.unwrap().code.as_str()), (Status::Failed, "miroir_incomplete"));
    let at = wall();
    let done = Outcome { status: Status::Succeeded, error: None, changed: 0, matched: 0, started: at, finished: at };
    world.at(1).homes.ended(kept, done.clone(), soon(), trace).await.unwrap();
    world.at(2).homes.ended(kept, Outcome { status: Status::Failed, ..done }, soon(), trace).await.unwrap();
    assert_eq!(ends(&world, 0, kept).await.0, Status::Succeeded, "the first stands");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_task_nobody_can_keep_is_refused_before_anything_of_it_is_sent() {
    let world = world().await;
    // One copy alone goes on where three do not.
    let alone = PhysicalIndex::new("alone__m00000002").unwrap();
    let copies = vec![vec![world.at(0).journals.me().clone()]];
    world.create(&alone, copies).await;
    let write = || NewWrite { index: alone.clone(), ..new_write(&[0], None) };
    let taken = submit(&world, 0, write()).await;
    assert!(matches!(taken, Submitted::Taken { .. }), "{taken:?}");
    // The disks of two of three are full, so that no home has enough copies; the one copy has.
    for i in [1, 2] {
        world.fill(i, true);
        world.at(0).cluster.update(|seen| seen.get_mut(&member(i)).unwrap().disk_full = true);
    }
    let key = JournalKey { index: alone.clone(), shard: ShardId(0) };
    let last = async || world.at(0).journals.status(&alone).await.unwrap()[&key.shard].last;
    let before = last().await;
    assert_eq!(submit(&world, 0, write()).await, Submitted::NotDone(NotDone::NoHome));
    assert_eq!(last().await, before, "nothing was appended");
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_delete_others_are_refused_before_they_are_sent_or_may_be_kept_later() {
    let world = world().await;
    let led: Vec<u16> = (0..HOMES).filter(|home| primary(&world, *home) == Some(0)).collect();
    assert!(!led.is_empty());
    let fill = |full| [1, 2].into_iter().for_each(|i| world.fill(i, full));
    let sweep = async |patience: Duration| {
        let filter = parse_action(Action::Delete, &[("uids".to_owned(), "4000000000".to_owned())]).unwrap();
        let (query, until) = (original_filter("uids=4000000000"), Instant::now() + patience);
        tasks(&world, 0).sweep(Action::Delete, filter, query, until, TraceId::default()).await
    };
    // Nobody knows yet that no home can commit anything.
    fill(true);
    let sent = futures_util::future::join_all((0..HOMES).map(|_| sweep(Duration::from_secs(2)))).await;
    let unknown = |sent| match sent {
        Err(Failure::Mesh { code: ErrorCode::MiroirWriteUnknown, task: Some(uid), .. }) => uid,
        other => panic!("{other:?}"),
    };
    let uids: Vec<TaskUid> = sent.into_iter().map(unknown).collect();
    let say = |full| {
        world
            .at(0)
            .cluster
            .update(|seen| [1, 2].iter().for_each(|i| seen.get_mut(&member(*i)).unwrap().disk_full = full));
    };
    say(true);
    for _ in 0..HOMES {
        let refused = sweep(Duration::from_millis(100)).await.map_err(code_of);
        assert_eq!(refused.map(|_| ()), Err(Some(ErrorCode::MiroirNoQuorum)));
    }
    fill(false);
    say(false);
    whole(&world, 0).await;
    for uid in uids.iter().filter(|uid| led.contains(&home_of(**uid))) {
        assert_eq!(ends(&world, 0, *uid).await.0, Status::Succeeded, "it was sent");
    }
    let last = sweep(LONG).await.unwrap();
    let last = serde_json::to_value(&last).unwrap()["taskUid"].as_u64().unwrap();
    let kept = self::uids(&listed(&world, 0, "limit=100").await);
    assert!(kept.contains(&last));
    assert!(kept.iter().all(|kept| *kept == last || uids.iter().any(|uid| u64::from(uid.0) == *kept)), "{kept:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_ends_also_while_the_member_that_had_it_stays_away() {
    let mut world = world().await;
    let order = Head { work: Work::Order, subject: Subject::IndexDeletion, ..head(&[0]) };
    let uid = world.at(0).homes.next_uid().await.unwrap();
    let held = world.at(0).homes.orders().hold(uid);
    world.at(0).homes.take(uid, &order, soon(), TraceId::default()).await.unwrap();
    assert!(held.begin());
    world.kill(0).await;
    let (status, outcome) = ends(&world, 2, uid).await;
    assert_eq!((status, outcome.error.unwrap().code.as_str()), (Status::Failed, "miroir_incomplete"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_goes_on_while_the_member_that_has_it_is_suspected_for_a_moment() {
    let world = world().await;
    let seen = |state| {
        let is = crate::services::cluster::Seen { suspect: false, state, ..crate::services::cluster::Seen::unknown() };
        for (_, m) in world.alive() {
            m.cluster.update(|seen| seen.values_mut().for_each(|of| *of = is.clone()));
        }
    };
    let alive = Some(crate::services::cluster::MemberState::Active);
    seen(alive);
    let order = Head { work: Work::Order, subject: Subject::IndexDeletion, ..head(&[0]) };
    let mut orders = Vec::new();
    while orders.len() < 6 {
        let uid = world.at(0).homes.next_uid().await.unwrap();
        // Kept by another.
        if primary(&world, (uid.0 % u32::from(HOMES)) as u16).is_none_or(|i| i == 0) {
            continue;
        }
        let held = world.at(0).homes.orders().hold(uid);
        world.at(0).homes.take(uid, &order, soon(), TraceId::default()).await.unwrap();
        assert!(held.begin());
        orders.push((uid, held));
    }
    // It is given up after two seconds; then whoever may have it is asked again and again.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for _ in 0..4 {
        world.cut(0);
        seen(None);
        tokio::time::sleep(Duration::from_millis(900)).await;
        world.heal();
        seen(alive);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    for (uid, _) in orders {
        let shown = get(&world, 1, uid).await.unwrap();
        assert_eq!(shown.outcome, None, "its member is at it");
        let at = wall();
        let done =
            Outcome { status: Status::Succeeded, error: None, changed: 0, matched: 0, started: at, finished: at };
        world.at(0).homes.ended(uid, done, soon(), TraceId::default()).await.unwrap();
        assert_eq!(ends(&world, 1, uid).await.0, Status::Succeeded);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_question_is_refused() {
    use crate::net::Call;
    use crate::wire::verbs::{Refusal, Reply, Request};
    let world = world().await;
    for body in [&b""[..], b"{}", b"[", b"{\"Home\":[99,{\"Get\":3}]}", b"{\"Home\":[1,{\"Get\":3}]}", b"\xff"] {
        let call = Call {
            request: Request::Home,
            body: Bytes::from_static(body),
            deadline: soon(),
            trace: TraceId::default(),
        };
        let answer = within("an answer", world.at(0).homes.receive(&member(1), &call)).await;
        match answer.reply {
            Reply::Refused(Refusal::Malformed(_)) => {}
            Reply::Home => assert_eq!(&answer.body[..], b"\"Malformed\""),
            other => panic!("{other:?}"),
        }
    }
}

/// A write through `submit`, with what its shards are to do.
fn new_write(shards: &[u16], key: Option<(&str, u8)>) -> NewWrite {
    let part = |shard: &u16| (ShardId(*shard), Kind::Set { skip_creation: false }, Bytes::from_static(b"{}"));
    NewWrite {
        index: index(),
        index_uid: "movies".into(),
        subject: Subject::Documents { received: 1, distinct: 1 },
        custom_metadata: None,
        key: key.map(|(key, hash)| (key.to_owned(), [hash; 32])),
        parts: shards.iter().map(part).collect(),
    }
}

async fn submit(world: &World, i: usize, write: NewWrite) -> Submitted {
    let running = world.at(i);
    within("a write", running.homes.submit(&running.sender, write, soon(), TraceId::default())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_sent_again_with_its_key_is_one_task() {
    let world = world().await;
    let first = submit(&world, 0, new_write(&[0, 1, 1], Some(("k", 1)))).await;
    let Submitted::Taken { uid, in_sync: 3, copies: 3, .. } = first else { panic!("{first:?}") };
    let again = submit(&world, 1, new_write(&[0, 1, 1], Some(("k", 1)))).await;
    assert!(matches!(&again, Submitted::Before(same, _) if *same == uid), "{again:?}");
    assert_eq!(submit(&world, 2, new_write(&[0], Some(("k", 2)))).await, Submitted::KeyReused);
    // Whoever had the next key's number ended before its task was kept.
    let lost = world.at(0).homes.next_uid().await.unwrap();
    world.at(0).homes.settle(("l", [3; 32]), lost, None, soon(), TraceId::default()).await.unwrap();
    let taken = submit(&world, 1, new_write(&[0], Some(("l", 3)))).await;
    let Submitted::Taken { uid: other, .. } = taken else { panic!("{taken:?}") };
    assert_ne!(other, lost);
    let late = world.at(0).homes.take(lost, &head(&[0]), soon(), TraceId::default()).await;
    assert_eq!(late, Err(HomeError::Other), "its number is void");
    until("all is finished", async || {
        apply_all(&world, &[0, 1, 2]).await;
        get(&world, 0, uid).await.unwrap().status == Status::Succeeded
            && get(&world, 0, other).await.unwrap().status == Status::Succeeded
    })
    .await;
    let nothing = submit(&world, 0, new_write(&[], None)).await;
    let Submitted::Taken { uid, .. } = nothing else { panic!("{nothing:?}") };
    assert_eq!(ends(&world, 1, uid).await.0, Status::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_task_never_was_done_is_done_under_a_new_number_unless_half_of_it_would_be_done_twice() {
    let world = world().await;
    let trace = TraceId::default();
    let homes = &world.at(0).homes;
    let by_filter = |key| {
        let part = |shard| (ShardId(shard), Kind::DeleteByFilter, Bytes::from_static(b"{}"));
        let subject = Subject::DeletionByFilter("x = 1".into());
        NewWrite { subject, parts: vec![part(0), part(1)], ..new_write(&[], Some((key, 1))) }
    };
    // Of each, so many shards got their part before the sender ended.
    let mut all = Vec::new();
    for (write, arrived) in [
        (new_write(&[0, 1], Some(("none", 1))), &[][..]),
        (new_write(&[0, 1], Some(("half", 1))), &[0]),
        (by_filter("filter none"), &[]),
        (by_filter("filter half"), &[0]),
    ] {
        let uid = homes.next_uid().await.unwrap();
        let (key, hash) = write.key.clone().unwrap();
        homes.settle((&key, hash), uid, None, soon(), trace).await.unwrap();
        let kept = Head { key: write.key.clone(), subject: write.subject.clone(), ..head(&[0, 1]) };
        homes.take(uid, &kept, soon(), trace).await.unwrap();
        send(&world, 0, uid, &kept, arrived).await;
        all.push((uid, write, arrived));
    }
    for (uid, write, arrived) in all {
        until("it is given up", async || {
            apply_all(&world, &[0, 1, 2]).await;
            get(&world, 1, uid).await.unwrap().outcome.is_some()
        })
        .await;
        let (_, outcome) = ends(&world, 1, uid).await;
        assert_eq!(outcome.error.unwrap().code, "miroir_incomplete");
        let again = submit(&world, 2, write.clone()).await;
        if !arrived.is_empty() && write.parts[0].1 == Kind::DeleteByFilter {
            assert_eq!(again, Submitted::Half(uid));
            continue;
        }
        let Submitted::Taken { uid: new, .. } = again else { panic!("{again:?}") };
        assert_ne!(new, uid);
        let third = submit(&world, 1, write).await;
        assert!(matches!(third, Submitted::Before(same, _) if same == new), "{third:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_task_was_done_and_is_deleted_is_not_done_again() {
    let world = world().await;
    let write = || new_write(&[0, 1], Some(("k", 1)));
    let first = submit(&world, 0, write()).await;
    let Submitted::Taken { uid, .. } = first else { panic!("{first:?}") };
    until("it ends", async || {
        apply_all(&world, &[0, 1, 2]).await;
        get(&world, 0, uid).await.unwrap().outcome.is_some()
    })
    .await;
    let filter = parse_action(Action::Delete, &[("uids".to_owned(), uid.to_string())]).unwrap();
    let query = original_filter(&format!("uids={uid}"));
    tasks(&world, 0).sweep(Action::Delete, filter, query, soon(), TraceId::default()).await.unwrap();
    until("it is deleted", async || get(&world, 0, uid).await.is_none()).await;
    let again = submit(&world, 1, write()).await;
    assert!(matches!(again, Submitted::Before(same, _) if same == uid), "{again:?}");
    assert_eq!(submit(&world, 1, new_write(&[0], Some(("k", 2)))).await, Submitted::KeyReused);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_became_of_a_part_is_not_guessed_while_it_can_not_be_read() {
    let world = world().await;
    let uid = acknowledged(&world, 0, &[0]).await;
    until("all have it", async || world.alive().all(|(_, m)| m.journals.committed(&key(0)).is_some_and(|c| c >= 2)))
        .await;
    let seq = world.at(0).journals.committed(&key(0)).unwrap();
    let unread = |unread| {
        world.alive().for_each(|(_, m)| m.applied.unread.store(unread, std::sync::atomic::Ordering::SeqCst));
    };
    for (_, running) in world.alive() {
        let error = ("invalid_document_id".to_owned(), "bad".to_owned());
        running.applied.failed.lock().unwrap().extend((1..=seq).map(|seq| ((key(0), seq), error.clone())));
    }
    unread(true);
    apply_all(&world, &[0, 1, 2]).await;
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!(get(&world, 1, uid).await.unwrap().outcome, None);
    let pending: i64 = world.alive().map(|(_, m)| m.metrics.tasks_pending.get()).sum();
    assert_eq!(pending, 1);
    unread(false);
    assert_eq!(ends(&world, 2, uid).await.0, Status::Failed);
    until("none is pending", async || world.alive().all(|(_, m)| m.metrics.tasks_pending.get() == 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_submit_one_key_at_the_same_moment_all_hear_of_one_task() {
    let world = world().await;
    for n in 0..30 {
        let key = format!("k{n}");
        let write = |hash| new_write(&[0, 1], Some((&key, hash)));
        let all = tokio::join!(submit(&world, 0, write(1)), submit(&world, 1, write(1)), submit(&world, 2, write(2)));
        let uid = |submitted: &Submitted| match submitted {
            Submitted::Taken { uid, .. } | Submitted::Before(uid, _) => Some(*uid),
            Submitted::KeyReused => None,
            other => panic!("{key}: {other:?} in {all:?}"),
        };
        let (first, second, other) = (uid(&all.0), uid(&all.1), uid(&all.2));
        assert!(first == second && first.is_some() != other.is_some(), "{key}: {all:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_first_sender_died_after_half_of_its_parts_goes_on_as_the_same_task() {
    let world = world().await;
    let trace = TraceId::default();
    let homes = &world.at(0).homes;
    let write = new_write(&[0, 1], Some(("k", 1)));
    let uid = homes.next_uid().await.unwrap();
    homes.settle(("k", [1; 32]), uid, None, soon(), trace).await.unwrap();
    let kept = Head { key: write.key.clone(), subject: write.subject.clone(), ..head(&[0, 1]) };
    homes.take(uid, &kept, soon(), trace).await.unwrap();
    send(&world, 0, uid, &kept, &[0]).await;
    let again = submit(&world, 2, write).await;
    assert!(matches!(&again, Submitted::Before(same, _) if *same == uid), "{again:?}");
    until("it is finished", async || {
        apply_all(&world, &[0, 1, 2]).await;
        get(&world, 1, uid).await.unwrap().status == Status::Succeeded
    })
    .await;
}

async fn listed(world: &World, i: usize, query: &str) -> serde_json::Value {
    let pairs: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let query = Query::parse(Listing::Tasks, &pairs).unwrap();
    let text = within("a list", world.at(i).homes.list_json(&query, soon(), TraceId::default())).await.unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn uids(list: &serde_json::Value) -> Vec<u64> {
    list["results"].as_array().unwrap().iter().map(|task| task["uid"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_as_one_nodes_and_tasks_are_canceled_and_deleted() {
    let world = world().await;
    let trace = TraceId::default();
    let mut all = Vec::new();
    for n in 0..40 {
        all.push(u64::from(acknowledged(&world, n % 3, &[0]).await.0));
    }
    all.sort_unstable();
    all.reverse();
    let first = listed(&world, 1, "limit=15").await;
    assert_eq!((uids(&first), &first["total"], &first["from"]), (all[..15].to_vec(), &40.into(), &all[0].into()));
    let second = listed(&world, 2, &format!("limit=30&from={}", first["next"])).await;
    assert_eq!((uids(&second), &second["next"]), (all[15..].to_vec(), &serde_json::Value::Null));
    // One that was never acknowledged, and an order that was not begun.
    let homes = &world.at(0).homes;
    let (half, order) = (homes.next_uid().await.unwrap(), homes.next_uid().await.unwrap());
    homes.take(half, &head(&[0, 1]), soon(), trace).await.unwrap();
    let held = homes.orders().hold(order);
    let is_order = Head { work: Work::Order, subject: Subject::IndexDeletion, ..head(&[0]) };
    homes.take(order, &is_order, soon(), trace).await.unwrap();
    let sweep = async |action, query: &str| {
        let pairs: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let filter = parse_action(action, &pairs).unwrap();
        let by = tasks(&world, 0).sweep(action, filter, original_filter(query), soon(), trace).await.unwrap();
        let uid = serde_json::to_value(by).unwrap()["taskUid"].as_u64().unwrap();
        TaskUid(u32::try_from(uid).unwrap())
    };
    let cancel = sweep(Action::Cancel, "statuses=enqueued,processing").await;
    until("everything ends", async || {
        apply_all(&world, &[0, 1, 2]).await;
        get(&world, 0, cancel).await.unwrap().status == Status::Succeeded
    })
    .await;
    assert!(!held.begin());
    let canceled = listed(&world, 0, "statuses=canceled").await;
    let expected = [order.0, half.0].map(u64::from);
    assert_eq!(uids(&canceled), expected);
    assert_eq!(canceled["results"][0]["canceledBy"], cancel.0);
    let shown = get(&world, 1, cancel).await.unwrap().outcome.unwrap();
    assert!((2..=42).contains(&shown.matched), "{shown:?}");
    assert_eq!(shown.changed, 2, "what was acknowledged runs to its end");
    let delete = sweep(Action::Delete, "statuses=succeeded&types=documentAdditionOrUpdate").await;
    assert_eq!(ends(&world, 2, delete).await.1.changed, 40);
    let left: Vec<u64> = [delete.0, cancel.0].into_iter().map(u64::from).chain(expected).collect();
    assert_eq!(uids(&listed(&world, 1, "").await), left);
    assert_eq!(get(&world, 1, TaskUid(u32::try_from(all[0]).unwrap())).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_primaries_die_everything_acknowledged_is_found_and_ends() {
    let mut world = world().await;
    world.lose(10);
    let mut uids = Vec::new();
    for round in 0..3 {
        let writers: Vec<usize> = (0..3).filter(|i| *i != round).collect();
        let (first, second) = (world.at(writers[0]), world.at(writers[1]));
        let write = |running: &crate::services::testing::Running| {
            let (homes, sender) = (running.homes.clone(), running.sender.clone());
            tokio::spawn(async move {
                let mut taken = Vec::new();
                for _ in 0..20 {
                    let write = new_write(&[0, 1], None);
                    match homes.submit(&sender, write, soon(), TraceId::default()).await {
                        Submitted::Taken { uid, .. } => taken.push(uid),
                        Submitted::NotDone(_) | Submitted::Unknown(_) => {}
                        other => panic!("{other:?}"),
                    }
                }
                taken
            })
        };
        let writing = [write(first), write(second)];
        world.kill(round).await;
        world.restart(round, |_, _| Vec::new()).await;
        for one in writing {
            uids.extend(within("writers end", one).await.unwrap());
        }
        whole(&world, round).await;
    }
    assert!(uids.len() > 60, "{}", uids.len());
    world.lose(0);
    until("all are finished", async || {
        apply_all(&world, &[0, 1, 2]).await;
        let open = listed(&world, 1, "statuses=enqueued,processing").await;
        open["total"] == 0
    })
    .await;
    for uid in &uids {
        let task = get(&world, 2, *uid).await.expect("it was acknowledged");
        assert_eq!(task.status, Status::Succeeded, "{uid}: {:?}", task.outcome);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_copy_of_a_home_is_made_anew_and_can_lead() {
    let mut world = world().await;
    let trace = TraceId::default();
    let mut uids = Vec::new();
    for n in 0..40 {
        uids.push(acknowledged(&world, n % 3, &[0]).await);
    }
    let home = home_of(uids[0]);
    let of_home: Vec<TaskUid> = uids.iter().copied().filter(|uid| home_of(*uid) == home).collect();
    let settled = |n: usize| TaskUid(5_000 + u32::try_from(n).unwrap());
    let keys: Vec<String> = (0..400).map(|n| format!("key {n}")).filter(|key| home_of_key(key) == home).collect();
    for (n, key) in keys.iter().enumerate() {
        world.at(0).homes.settle((key, [1; 32]), settled(n), None, soon(), trace).await.unwrap();
    }
    // The one that is elected next.
    let first = primary(&world, home).unwrap();
    let record = world.at(0).journals.record(&PhysicalIndex::of_tasks()).unwrap();
    let copies = &record.shard(ShardId(home)).unwrap().replicas;
    let next = copies.iter().find(|copy| copy.id.member != member(first)).unwrap();
    let bad = (0..3).find(|i| member(*i) == next.id.member).unwrap();
    let is = journal_of(home);
    let applied = world.at(primary(&world, home).unwrap()).journals.home(&is).await.unwrap().applied;
    until("rows are stored", async || world.at(bad).journals.home(&is).await.unwrap().applied >= applied).await;
    world.at(bad).journals.repair(&is, "a test says so".into()).await;
    // Its primary hears of it with the next entry.
    let next = (400..).map(|n| format!("key {n}")).find(|key| home_of_key(key) == home).unwrap();
    world.at(0).homes.settle((&next, [1; 32]), TaskUid(7_777), None, soon(), trace).await.unwrap();
    until("it is known to be damaged, and is made anew", async || {
        let stored = world.at(bad).journals.home(&is).await.unwrap();
        !stored.rebuild && stored.floor > 0 && stored.rows.len() >= of_home.len() + keys.len()
    })
    .await;
    whole(&world, bad).await;
    world.kill(first).await;
    until("whoever lost its copy leads", async || primary(&world, home) == Some(bad)).await;
    for uid in &of_home {
        assert!(get(&world, bad, *uid).await.is_some(), "{uid}");
    }
    for (n, key) in keys.iter().enumerate() {
        let again = world.at(bad).homes.settle((key, [1; 32]), TaskUid(9_999), None, soon(), trace).await.unwrap();
        assert_eq!(again, (settled(n), true));
    }
    assert_eq!(world.at(bad).homes.void(of_home[0], soon(), trace).await, Ok(false), "parts came with the copy");
}

/// A driver that does not run.
fn still(world: &World) -> Driver {
    let running = world.at(0);
    let parts = Parts {
        config: Config::default(),
        journals: running.journals.clone(),
        sender: running.sender.clone(),
        ledger: running.ledger.clone(),
        members: running.homes.members.clone(),
        cluster: running.cluster.clone(),
        ids: running.task_ids.clone(),
        outcomes: std::sync::Arc::clone(&running.applied) as std::sync::Arc<dyn Outcomes>,
        hook: None,
        metrics: std::sync::Arc::default(),
    };
    Driver::new(parts).0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_who_is_awaited_that_one_home_notices_is_told_to_all() {
    let world = world().await;
    whole(&world, 0).await;
    let mut driver = still(&world);
    let (uid, part) = (TaskUid(17), PartRef { shard: 0, part: 0 });
    let reign = |driver: &mut Driver, home: u16, uid: TaskUid| {
        let mut state = HomeState::default();
        state.apply(1, Some(HomeEntry::Head { uid, head: Box::new(head(&[0])) }));
        let env = &mut Env { now: now(), rng: &mut driver.rng };
        let core = Home::recover(env, wall(), CoreConfig::default(), state, false);
        driver.slots.insert(home, Slot::reigning(Epoch::ZERO, core));
        driver.drain(home);
    };
    reign(&mut driver, 1, uid);
    // One member more was awaited, as far as this one knew.
    let mut known = driver.awaiting[&index()].clone().unwrap();
    known.as_mut().unwrap().get_mut(&0).unwrap().insert(MemberId::new("gone").unwrap());
    driver.awaiting.insert(index(), Some(known));
    driver.say_awaited(1, &index());
    for i in 0..3 {
        let done = Done { error: None, changed: 1, started: wall(), finished: wall() };
        driver.report(1, &member(i), Report { parts: vec![(uid, part, Said::Done(done))], heads: Vec::new() });
    }
    assert_eq!(driver.done.len(), 0, "one is missing");
    reign(&mut driver, 2, TaskUid(18));
    assert_eq!(driver.done.len(), 1, "the end of the task is on its way");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_many_pages_is_made_anew_while_the_home_goes_on() {
    let world = world().await;
    let trace = TraceId::default();
    let home = 5;
    let large = Head {
        work: Work::Nothing(Outcome {
            status: Status::Succeeded,
            error: None,
            changed: 0,
            matched: 0,
            started: wall(),
            finished: wall(),
        }),
        custom_metadata: Some("x".repeat(200 << 10)),
        ..head(&[0])
    };
    let uids: Vec<TaskUid> = (0..24).map(|n| TaskUid(16_000 + 16 * n + u32::from(home))).collect();
    for uid in &uids {
        world.at(0).homes.take(*uid, &large, soon(), trace).await.unwrap();
    }
    let is = journal_of(home);
    let first = primary(&world, home).unwrap();
    let bad = (first + 1) % 3;
    let source = member(first);
    let ended = |row: &StoredRow| matches!(row, StoredRow::Task(_, row) if row.outcome.is_some());
    until("all of it is stored", async || {
        world.at(first).journals.home(&is).await.unwrap().rows.iter().filter(|row| ended(row)).count() == uids.len()
    })
    .await;
    // The pages of a copy are of one entry, whatever happens meanwhile, and nobody else's.
    let homes = &world.at(bad).homes;
    let ask = async |homes: &Homes, token, page| {
        let question = MemberQuestion::Copy { home, token, page };
        match within("a page", homes.ask_member(&source, question)).await {
            Some(Told::Copy(copied)) => Some(*copied),
            _ => None,
        }
    };
    let mut keys = (0..).map(|n| format!("key {n}")).filter(|key| home_of_key(key) == home);
    let mut all = ask(homes, None, 0).await.unwrap();
    assert!(all.left >= 2, "{}", all.left);
    for page in 1..=all.left {
        let key = keys.next().unwrap();
        homes
            .settle((&key, [1; 32]), TaskUid(900_000 + u32::try_from(page).unwrap()), None, soon(), trace)
            .await
            .unwrap();
        let more = ask(homes, Some(all.token), page).await.unwrap();
        assert_eq!((more.at, more.left), (all.at, all.left - page));
        all.rows.extend(more.rows);
        all.parts.extend(more.parts);
    }
    let there = |uid: &TaskUid| all.rows.iter().any(|row| matches!(row, StoredRow::Task(of, _) if of == uid));
    assert!(uids.iter().all(there) && all.parts.len() >= 2 * uids.len(), "{}", all.parts.len());
    assert_eq!(ask(homes, Some(all.token), all.left + 1).await, None);
    assert_eq!(ask(&world.at((first + 2) % 3).homes, Some(all.token), 0).await, None);
    // Made anew while keys are settled one after the other.
    let (writer, stop) =
        (world.at(first).homes.clone(), std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let stopped = std::sync::Arc::clone(&stop);
    let writing = tokio::spawn(async move {
        let mut keys = (0..).map(|n| format!("busy {n}")).filter(|key| home_of_key(key) == home);
        let mut settled = 0;
        while !stopped.load(std::sync::atomic::Ordering::SeqCst) {
            settled += 1;
            let key = keys.next().unwrap();
            writer.settle((&key, [1; 32]), TaskUid(1_000_000 + settled), None, soon(), trace).await.unwrap();
        }
        settled
    });
    until("it is known to be damaged, and is made anew", async || {
        let stored = world.at(bad).journals.home(&is).await.unwrap();
        if !stored.rebuild && stored.floor == 0 {
            // Whoever is just reading the journal finds out by itself, so nobody is told then.
            world.at(bad).journals.repair(&is, "a test says so".into()).await;
        }
        !stored.rebuild && stored.floor > 0 && stored.rows.len() >= uids.len()
    })
    .await;
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    assert!(writing.await.unwrap() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_whose_key_came_too_late_does_not_keep_others_from_being_settled() {
    let world = world().await;
    let (homes, trace) = (&world.at(0).homes, TraceId::default());
    let lost = homes.next_uid().await.unwrap();
    homes.settle(("k", [1; 32]), lost, None, soon(), trace).await.unwrap();
    // The next writer's key was on its way when that was settled: it stands in the journal, and says nothing.
    let home = home_of_key("k");
    let late = TaskUid(lost.0 + 1);
    let entry = HomeEntry::Key { key: "k".into(), hash: [1; 32], uid: late, replaces: None, at: wall() };
    let write = Write { part: entry.part().unwrap(), kind: Kind::Home, body: Body(entry.encode().unwrap().into()) };
    let leads = &world.at(primary(&world, home).unwrap()).journals;
    let stands =
        within("an entry", leads.write(&PhysicalIndex::of_tasks(), vec![(ShardId(home), write)], soon())).await;
    assert!(matches!(stands[..], [Answer::Committed { .. }]), "{stands:?}");
    let taken = submit(&world, 0, new_write(&[0], Some(("k", 1)))).await;
    let Submitted::Taken { uid, .. } = taken else { panic!("{taken:?}") };
    assert_eq!(uid.0, late.0 + 1, "the one before was of no use");
    let again = submit(&world, 1, new_write(&[0], Some(("k", 1)))).await;
    assert!(matches!(again, Submitted::Before(same, _) if same == uid), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_counts_also_where_a_write_is_refused_or_could_not_be_done_now() {
    let world = world().await;
    let trace = TraceId::default();
    let movies = IndexUid::new("movies").unwrap();
    let key = |key: &str, hash: u8| Some((key.to_owned(), [hash; 32]));
    let refuse = async |i: usize, with| {
        let error = (ErrorCode::IndexNotFound, "Index `movies` not found.");
        let tasks = tasks(&world, i);
        let refused = tasks.refused(&movies, Subject::Clear, error, None, with, trace);
        within("a refusal", refused).await.map(|accepted| uid_of(&accepted)).map_err(code_of)
    };
    let before = async |i: usize, with: Option<(String, [u8; 32])>| {
        let known = within("a key", tasks(&world, i).before(&movies, Subject::Clear, with.as_ref(), trace)).await;
        known.map(|known| known.map(|accepted| uid_of(&accepted))).map_err(code_of)
    };
    let reused: Result<Option<TaskUid>, _> = Err(Some(ErrorCode::MiroirIdempotencyKeyReused));
    // A refused write is one task, however often it is sent, and its key is used up.
    assert_eq!(before(0, key("bad", 1)).await, Ok(None));
    let failed = refuse(0, key("bad", 1)).await.unwrap();
    assert_eq!(refuse(1, key("bad", 1)).await, Ok(failed));
    assert_eq!(before(2, key("bad", 1)).await, Ok(Some(failed)));
    assert_eq!(refuse(1, key("bad", 2)).await.map(Some), reused);
    assert_eq!(submit(&world, 2, new_write(&[0], Some(("bad", 2)))).await, Submitted::KeyReused);
    let head = get(&world, 1, failed).await.unwrap().head;
    assert_eq!(head.key, key("bad", 1));
    assert_ne!(refuse(0, None).await, refuse(0, None).await);
    // One that is done is known without its shards; one that is open is sent again, for its parts may be missing.
    let first = submit(&world, 0, new_write(&[0, 1], Some(("k", 1)))).await;
    let Submitted::Taken { uid, .. } = first else { panic!("{first:?}") };
    assert_eq!(before(1, key("k", 1)).await, Ok(None));
    until("it ends", async || {
        apply_all(&world, &[0, 1, 2]).await;
        get(&world, 0, uid).await.unwrap().outcome.is_some()
    })
    .await;
    assert_eq!(before(1, key("k", 1)).await, Ok(Some(uid)));
    assert_eq!(before(1, key("k", 2)).await, reused);
    // Also when it is deleted.
    let filter = parse_action(Action::Delete, &[("uids".to_owned(), uid.to_string())]).unwrap();
    let query = original_filter(&format!("uids={uid}"));
    tasks(&world, 0).sweep(Action::Delete, filter, query, soon(), trace).await.unwrap();
    until("it is deleted", async || get(&world, 0, uid).await.is_none()).await;
    assert_eq!(before(2, key("k", 1)).await, Ok(Some(uid)));
    assert_eq!(before(2, key("k", 2)).await, reused);
    // Whoever had this key's number died before its task was kept: the write is new.
    let lost = world.at(0).homes.next_uid().await.unwrap();
    world.at(0).homes.settle(("l", [3; 32]), lost, None, soon(), trace).await.unwrap();
    assert_eq!(before(1, key("l", 3)).await, Ok(None));
    assert_ne!(refuse(1, key("l", 3)).await, Ok(lost));
}

fn code_of(failure: Failure) -> Option<ErrorCode> {
    match failure {
        Failure::Mesh { code, .. } => Some(code),
        Failure::Node { .. } => None,
    }
}

fn uid_of(accepted: &Accepted) -> TaskUid {
    let uid = serde_json::to_value(&accepted.summary).unwrap()["taskUid"].as_u64().unwrap();
    TaskUid(u32::try_from(uid).unwrap())
}
