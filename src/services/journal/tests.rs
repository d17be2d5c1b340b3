//! Several members in one process, with their real stores, over a network that can be cut.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::{AskError, Event, Retention, Sender, ShardStatus};
use crate::proto::journal::ordered::{self, Order, OrderError, Told};
use crate::proto::journal::{Answer, Body, Entry, Kind, Write};
use crate::services::testing::{LONG, World, member, within};
use crate::types::{
    JournalKey, JournalRecord, MemberId, PhysicalIndex, ReplicaId, ShardId, ShardState, TaskPart, TaskUid, TraceId,
};
use crate::wire::verbs::{Append, AppendPart, Refusal};

fn index() -> PhysicalIndex {
    PhysicalIndex::new("movies__m00000001").unwrap()
}

fn key(shard: u16) -> JournalKey {
    JournalKey { index: index(), shard: ShardId(shard) }
}

fn write(task: u32) -> Write {
    let part = TaskPart { task: TaskUid(task), part: 0 };
    Write { part, kind: Kind::Set { skip_creation: false }, body: Body(task.to_le_bytes().into()) }
}

fn soon() -> Instant {
    Instant::now() + LONG
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

/// Three members that all hold all shards, each with a primary.
async fn world(shards: u16) -> World {
    let world = World::start(3, |_, _| Vec::new()).await;
    let copies: Vec<ReplicaId> = (0..3).map(|i| world.at(i).journals.me().clone()).collect();
    // The order of the set is the order in which they are elected: spread over the members.
    let of = |shard: u16| (0..3).map(|i| copies[(usize::from(shard) + i) % 3].clone()).collect();
    world.create(&index(), (0..shards).map(of).collect()).await;
    whole(&world, shards).await;
    world
}

fn state(world: &World, shard: u16) -> Option<ShardState> {
    let (_, any) = world.alive().next().expect("somebody lives");
    any.journals.record(&index())?.shard(ShardId(shard)).cloned()
}

/// Which member the record names as primary.
fn primary(world: &World, shard: u16) -> Option<usize> {
    let named = state(world, shard)?.primary?.member;
    (0..3).find(|i| member(*i) == named)
}

/// Waits until all members are in sync and every shard has a primary that lives and works.
async fn whole(world: &World, shards: u16) {
    for shard in 0..shards {
        until("a whole shard", async || {
            let Some(state) = state(world, shard).filter(|s| s.in_sync.len() == 3) else { return false };
            let Some(i) = primary(world, shard).filter(|i| world.members[*i].is_some()) else { return false };
            let status = world.at(i).journals.status(&index()).await.unwrap();
            let works = |s: &ShardStatus| s.primary && s.epoch == state.epoch && s.last > 0 && s.commit == s.last;
            let knows = |record: std::sync::Arc<JournalRecord>| record.shard(ShardId(shard)) == Some(&state);
            world.alive().all(|(_, m)| m.journals.record(&index()).is_some_and(knows))
                && status.get(&ShardId(shard)).is_some_and(works)
        })
        .await;
    }
}

/// Everything that is committed at a member, in order.
async fn committed(world: &World, i: usize, shard: u16) -> Vec<Entry> {
    let (journals, mut all) = (&world.at(i).journals, Vec::new());
    loop {
        let more = journals.read_committed(&key(shard), all.len() as u64 + 1, 100, 1 << 20).await.unwrap();
        if more.is_empty() {
            return all;
        }
        all.extend(more);
    }
}

/// Waits until all members that live have committed the same; gives where each part stands.
async fn equal(world: &World, shard: u16, least: usize) -> BTreeMap<TaskPart, u64> {
    let mut all = Vec::new();
    until("equal journals", async || {
        all.clear();
        for (i, _) in world.alive() {
            all.push(committed(world, i, shard).await);
        }
        let parts = all[0].iter().filter(|e| e.part.is_some()).count();
        parts >= least && all.iter().all(|one| *one == all[0])
    })
    .await;
    let mut places = BTreeMap::new();
    for entry in &all[0] {
        if let Some(part) = entry.part {
            assert_eq!(places.insert(part, entry.at.seq), None, "{part} stands twice");
            assert_eq!(entry.body.0[..], part.task.0.to_le_bytes());
        }
    }
    places
}

fn seq_of(answer: &Answer) -> u64 {
    match answer {
        Answer::Committed { seq, .. } => *seq,
        other => panic!("not committed: {other:?}"),
    }
}

/// A client that writes one part after the other, to one shard after the other, until it is told to stop.
struct Client {
    stop: Arc<AtomicBool>,
    writing: JoinHandle<BTreeMap<(u16, TaskPart), u64>>,
}

impl Client {
    fn start(sender: &Sender, first_task: u32, shards: u16) -> Self {
        let (sender, stop) = (sender.clone(), Arc::new(AtomicBool::new(false)));
        let stopping = Arc::clone(&stop);
        let writing = tokio::spawn(async move {
            let mut acknowledged = BTreeMap::new();
            for task in first_task.. {
                if stopping.load(Ordering::SeqCst) {
                    break;
                }
                let parts = (0..shards).map(|shard| (ShardId(shard), write(task))).collect();
                let answers = sender.send(&index(), parts, soon(), TraceId::default()).await;
                for (shard, answer) in (0..).zip(&answers) {
                    acknowledged.insert((shard, write(task).part), seq_of(answer));
                }
            }
            acknowledged
        });
        Self { stop, writing }
    }

    /// What was acknowledged, and where it stands.
    async fn stop(self) -> BTreeMap<(u16, TaskPart), u64> {
        self.stop.store(true, Ordering::SeqCst);
        within("the client's last answer", self.writing).await.unwrap()
    }
}

/// Everything that was acknowledged stands where its sender was told, on every member.
async fn nothing_is_lost(world: &World, shards: u16, acknowledged: &BTreeMap<(u16, TaskPart), u64>) {
    assert!(!acknowledged.is_empty());
    for shard in 0..shards {
        let told: BTreeMap<TaskPart, u64> =
            acknowledged.iter().filter(|((s, _), _)| *s == shard).map(|((_, part), seq)| (*part, *seq)).collect();
        let places = equal(world, shard, told.len()).await;
        for (part, seq) in told {
            assert_eq!(places.get(&part), Some(&seq), "{part} of shard {shard}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_through_a_primary_is_committed_everywhere() {
    let world = world(4).await;
    let sender = &world.at(1).sender;
    let parts = (0..40).map(|n| (ShardId(n % 4), write(n.into()))).collect();
    let answers = sender.send(&index(), parts, soon(), TraceId::default()).await;
    let acknowledged: BTreeMap<_, _> =
        (0_u16..).zip(&answers).map(|(n, answer)| ((n % 4, write(n.into()).part), seq_of(answer))).collect();
    assert!(answers.iter().all(|a| matches!(a, Answer::Committed { in_sync: 3, copies: 3, .. })));
    nothing_is_lost(&world, 4, &acknowledged).await;
    let primaries: BTreeSet<_> = (0..3).map(|shard| primary(&world, shard)).collect();
    assert_eq!(primaries.len(), 3, "one each");
    // The same again is the same.
    let again = (0..40).map(|n| (ShardId(n % 4), write(n.into()))).collect();
    let again = world.at(2).sender.send(&index(), again, soon(), TraceId::default()).await;
    assert_eq!(again.iter().map(seq_of).collect::<Vec<_>>(), answers.iter().map(seq_of).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_primary_says_who_is() {
    let world = world(1).await;
    let first = primary(&world, 0).unwrap();
    let other = &world.at((first + 1) % 3).journals;
    let answers = other.write(&index(), vec![(ShardId(0), write(1)), (ShardId(9), write(1))], soon()).await;
    let hint = |answer: &Answer| match answer {
        Answer::NotPrimary(hint) => hint.primary.as_ref().map(|p| p.member.clone()),
        other => panic!("{other:?}"),
    };
    assert_eq!(answers.iter().map(hint).collect::<Vec<_>>(), [Some(member(first)), None]);
    assert!(committed(&world, first, 0).await.iter().all(|e| e.part.is_none()), "nothing was appended");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sender_says_of_its_parts_is_checked() {
    let world = world(1).await;
    let journals = &world.at(primary(&world, 0).unwrap()).journals;
    let part = |length, kind| AppendPart { shard: ShardId(0), part: write(1).part, kind, length };
    let receive = async |parts, body: &'static [u8]| {
        journals.receive(&Append { index: index(), parts }, &Bytes::from_static(body), soon()).await
    };
    for (parts, body) in [
        (vec![part(3, Kind::Delete)], &b"ab"[..]),
        (vec![part(1, Kind::Delete)], b"ab"),
        (vec![part(u32::MAX, Kind::Delete)], b"ab"),
        (vec![part(2, Kind::Empty)], b"ab"),
        (vec![part(2, Kind::Home)], b"ab"),
        (vec![part(0, Kind::Delete); 8_193], b""),
    ] {
        let answer = receive(parts, body).await;
        assert!(matches!(answer, Err(Refusal::Malformed(_))), "{answer:?}");
    }
    let good = receive(vec![part(2, Kind::Delete)], b"ab").await.unwrap();
    assert!(matches!(good[..], [crate::wire::verbs::Appended::Committed { .. }]), "{good:?}");
    assert_eq!(receive(Vec::new(), b"").await, Ok(Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_stands_or_its_refusal_and_both_senders_hear_which() {
    let world = world(1).await;
    let sender = &world.at(1).sender;
    let refusal = |task| Write { kind: Kind::Refusal, ..write(task) };
    let send = async |write| {
        let answers = sender.send(&index(), vec![(ShardId(0), write)], soon(), TraceId::default()).await;
        let [Answer::Committed { seq, refused, .. }] = answers[..] else { panic!("{answers:?}") };
        (seq, refused)
    };
    let (there, _) = send(write(1)).await;
    let (gone, _) = send(refusal(2)).await;
    assert_eq!((send(refusal(1)).await, send(write(1)).await), ((there, false), (there, false)));
    assert_eq!((send(write(2)).await, send(refusal(2)).await), ((gone, true), (gone, true)));
    for i in 0..3 {
        until("it is committed everywhere", async || world.at(i).journals.committed(&key(0)) >= Some(gone)).await;
        let entries = world.at(i).journals.read_committed(&key(0), there, 9, 1 << 20).await.unwrap();
        let kinds: Vec<Kind> = entries.iter().map(|e| e.kind).collect();
        assert_eq!(kinds, [write(1).kind, Kind::Refusal]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn journals_of_an_index_that_is_gone_are_deleted_and_nobody_writes_to_it() {
    let world = world(2).await;
    let part = |task| vec![(ShardId(0), write(task))];
    let answer = world.at(0).sender.send(&index(), part(1), soon(), TraceId::default()).await;
    seq_of(&answer[0]);
    world.at(1).journals.retire(&index(), LONG).await.unwrap();
    world.at(2).journals.retire(&index(), LONG).await.unwrap();
    for (_, member) in world.alive() {
        let mut known = BTreeSet::new();
        until("the record", async || member.journals.record(&index()).is_some_and(|r| r.shards.is_empty())).await;
        member.journals.delete_gone(&mut known).await.unwrap();
        assert_eq!(known, [index()].into(), "left to the next look");
        assert_eq!(member.journals.stored().await.unwrap().len(), 2);
        member.journals.delete_gone(&mut known).await.unwrap();
        assert_eq!(member.journals.stored().await.unwrap(), []);
    }
    let until = Instant::now() + Duration::from_millis(300);
    let answer = world.at(0).sender.send(&index(), part(2), until, TraceId::default()).await;
    assert!(!matches!(answer[0], Answer::Committed { .. }), "{answer:?}");
    // One that is not known here counts as gone from then on, too.
    let other = PhysicalIndex::new("songs__m00000002").unwrap();
    world.at(0).journals.retire(&other, LONG).await.unwrap();
    let copies = vec![vec![world.at(0).journals.me().clone()]];
    assert!(world.at(0).journals.create(&other, copies, LONG).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_is_elected_for_a_primary_that_was_killed_and_nothing_is_lost() {
    let mut world = world(3).await;
    let clients = [Client::start(&world.at(1).sender, 0, 3), Client::start(&world.at(2).sender, 1_000_000, 3)];
    for _ in 0..2 {
        // The second time it has been given its shard back.
        until("it leads, as all know", async || {
            let state = state(&world, 0);
            let knows = |record: std::sync::Arc<JournalRecord>| record.shard(ShardId(0)) == state.as_ref();
            primary(&world, 0) == Some(0) && world.alive().all(|(_, m)| m.journals.record(&index()).is_some_and(knows))
        })
        .await;
        let epoch = state(&world, 0).unwrap().epoch;
        world.kill(0).await;
        until("an election", async || primary(&world, 0).is_some_and(|i| i != 0)).await;
        assert!(state(&world, 0).unwrap().epoch > epoch);
        tokio::time::sleep(Duration::from_millis(200)).await;
        world.restart(0, |_, _| Vec::new()).await;
        whole(&world, 3).await;
    }
    let mut acknowledged = BTreeMap::new();
    for client in clients {
        acknowledged.extend(client.stop().await);
    }
    nothing_is_lost(&world, 3, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_waits_for_a_primary_that_was_replaced_goes_to_the_next() {
    let world = world(2).await;
    let was = primary(&world, 0).unwrap();
    let by = member(was);
    let at = (was + 1) % 3;
    let (journals, shard, index) = (world.at(at).journals.clone(), [ShardId(0)], index());
    world.cut(was);
    within("it is replaced", journals.replaced(&index, &shard, &by)).await;
    let record = journals.record(&index).unwrap();
    assert!(record.shard(ShardId(0)).unwrap().primary.as_ref().is_some_and(|p| p.member != by));
    let none = tokio::time::timeout(Duration::from_millis(500), journals.replaced(&index, &shard, &by)).await;
    assert!(none.is_err(), "not again under the same epoch");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_writers_on_a_bad_network_agree() {
    let world = world(2).await;
    world.lose(20);
    let clients = [Client::start(&world.at(1).sender, 0, 2), Client::start(&world.at(2).sender, 1_000_000, 2)];
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.lose(0);
    let mut acknowledged = BTreeMap::new();
    for client in clients {
        acknowledged.extend(client.stop().await);
    }
    whole(&world, 2).await;
    nothing_is_lost(&world, 2, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_cut_off_leaves_the_set_and_comes_back() {
    let world = world(2).await;
    let i = (primary(&world, 0).unwrap() + 1) % 3;
    let to = (i + 1) % 3;
    let client = Client::start(&world.at(to).sender, 0, 2);
    let has = |out: usize| state(&world, 0).is_some_and(|s| s.in_sync.iter().any(|id| id.member == member(out)));
    world.cut(i);
    until("it leaves", async || !has(i)).await;
    let late = world.at(to).sender.send(&index(), vec![(ShardId(0), write(777))], soon(), TraceId::default()).await;
    assert!(matches!(late[..], [Answer::Committed { in_sync: 2, copies: 3, .. }]), "{late:?}");
    world.heal();
    until("it comes back", async || has(i)).await;
    let acknowledged = client.stop().await;
    whole(&world, 2).await;
    nothing_is_lost(&world, 2, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_disk_is_full_stores_nothing_and_leads_nothing_until_it_has_room() {
    let world = world(3).await;
    let i = primary(&world, 0).unwrap();
    let other = world.at((i + 1) % 3);
    let client = Client::start(&other.sender, 0, 3);
    world.fill(i, true);
    let has = || {
        (0..3).any(|shard| state(&world, shard).is_some_and(|s| s.copy(&member(i)).is_none_or(|c| s.is_in_sync(&c.id))))
    };
    until("others lead and it leaves the sets", async || {
        (0..3).all(|shard| primary(&world, shard).is_some_and(|p| p != i)) && !has()
    })
    .await;
    let stored = world.at(i).journals.status(&index()).await.unwrap();
    let answers = other.sender.send(&index(), vec![(ShardId(0), write(777))], soon(), TraceId::default()).await;
    assert!(matches!(answers[..], [Answer::Committed { in_sync: 2, copies: 3, .. }]), "{answers:?}");
    let later = world.at(i).journals.status(&index()).await.unwrap();
    assert_eq!(stored[&ShardId(0)].last, later[&ShardId(0)].last, "nothing was stored there");
    // Written to it, it goes to those who have room.
    let through = world.at(i).sender.send(&index(), vec![(ShardId(0), write(778))], soon(), TraceId::default()).await;
    assert!(matches!(through[..], [Answer::Committed { in_sync: 2, .. }]), "{through:?}");
    world.fill(i, false);
    let mut acknowledged = client.stop().await;
    acknowledged.insert((0, write(777).part), seq_of(&answers[0]));
    acknowledged.insert((0, write(778).part), seq_of(&through[0]));
    whole(&world, 3).await;
    nothing_is_lost(&world, 3, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_that_can_spare_nobody_takes_in_who_is_back_for_who_is_gone() {
    let mut world = world(1).await;
    let gone = primary(&world, 0).unwrap();
    let (back, stays) = ((gone + 1) % 3, (gone + 2) % 3);
    let acknowledged = seq_of(
        &world.at(stays).sender.send(&index(), vec![(ShardId(0), write(1))], soon(), TraceId::default()).await[0],
    );
    world.cut(back);
    let has = |world: &World, i| state(world, 0).is_some_and(|s| s.in_sync.iter().any(|id| id.member == member(i)));
    let late = world.at(stays).sender.send(&index(), vec![(ShardId(0), write(2))], soon(), TraceId::default()).await;
    until("it leaves", async || !has(&world, back)).await;
    let late = seq_of(&late[0]);
    world.kill(gone).await;
    world.heal();
    let answers = world.at(back).sender.send(&index(), vec![(ShardId(0), write(3))], soon(), TraceId::default()).await;
    let last = seq_of(&answers[0]);
    until("all know the set", async || has(&world, back) && has(&world, stays) && !has(&world, gone)).await;
    world.restart(gone, |_, _| Vec::new()).await;
    whole(&world, 1).await;
    let all = [(1, acknowledged), (2, late), (3, last)].map(|(task, seq)| ((0, write(task).part), seq));
    nothing_is_lost(&world, 1, &all.into()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_node_is_down_for_long_leaves_its_shards_to_others() {
    let world = world(2).await;
    let i = primary(&world, 0).unwrap();
    world.idle(i, true);
    until("others lead", async || (0..2).all(|shard| primary(&world, shard).is_some_and(|p| p != i))).await;
    let in_sync = state(&world, 0).unwrap().in_sync.len();
    assert_eq!(in_sync, 3, "its journal goes on");
    world.idle(i, false);
    whole(&world, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_end_at_once_lose_nothing() {
    let mut world = world(2).await;
    let mut acknowledged = BTreeMap::new();
    for round in 0..3_u32 {
        let parts = || (0..20).map(|n| (ShardId((n % 2) as u16), write(100 * round + n))).collect::<Vec<_>>();
        let answers = world.at(0).sender.send(&index(), parts(), soon(), TraceId::default()).await;
        for ((shard, write), answer) in parts().into_iter().zip(&answers) {
            acknowledged.insert((shard.0, write.part), seq_of(answer));
        }
        // More that nobody waits for.
        let client = Client::start(&world.at(1).sender, 1_000_000 * (round + 1), 2);
        tokio::time::sleep(Duration::from_millis(20)).await;
        client.writing.abort();
        for i in 0..3 {
            world.kill(i).await;
        }
        for i in 0..3 {
            world.restart(i, |_, _| Vec::new()).await;
        }
        whole(&world, 2).await;
        nothing_is_lost(&world, 2, &acknowledged).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_is_sent_again_is_recognised_by_the_next_primary() {
    let mut world = world(1).await;
    let first = primary(&world, 0).unwrap();
    let other = (first + 1) % 3;
    let send = async |world: &World, task| {
        let parts = vec![(ShardId(0), write(task))];
        seq_of(&world.at(other).sender.send(&index(), parts, soon(), TraceId::default()).await[0])
    };
    let seqs = [send(&world, 1).await, send(&world, 2).await];
    world.kill(first).await;
    until("an election", async || primary(&world, 0).is_some_and(|i| i != first)).await;
    assert_eq!([send(&world, 1).await, send(&world, 2).await], seqs);
    assert!(send(&world, 3).await > seqs[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_deposed_primary_appends_is_committed_by_nobody() {
    let world = world(1).await;
    let first = primary(&world, 0).unwrap();
    let other = (first + 1) % 3;
    world.cut(first);
    // It still thinks that it orders the writes.
    let parts = vec![(ShardId(0), write(1))];
    let alone = world.at(first).journals.write(&index(), parts, Instant::now() + Duration::from_millis(300)).await;
    assert!(!matches!(alone[..], [Answer::Committed { .. }]), "{alone:?}");
    let record = || world.at(other).journals.record(&index()).unwrap().shards[0].clone();
    until("an election", async || record().primary.is_some_and(|p| p.member != member(first))).await;
    let seq = seq_of(
        &world.at(other).sender.send(&index(), vec![(ShardId(0), write(2))], soon(), TraceId::default()).await[0],
    );
    world.heal();
    whole(&world, 1).await;
    let places = equal(&world, 0, 1).await;
    assert_eq!(places, [(write(2).part, seq)].into());
    // Its sender sends it again, and it is written once.
    let seq = seq_of(
        &world.at(first).sender.send(&index(), vec![(ShardId(0), write(1))], soon(), TraceId::default()).await[0],
    );
    assert_eq!(equal(&world, 0, 2).await[&write(1).part], seq);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_shards_are_not_in_memory_and_their_reigns_go_on() {
    let world = world(8).await;
    let epochs = |world: &World| (0..8).map(|s| state(world, s).unwrap().epoch).collect::<Vec<_>>();
    let before = epochs(&world);
    for task in 0..3 {
        let parts = (0..8).map(|shard| (ShardId(shard), write(task))).collect();
        let answers = world.at(0).sender.send(&index(), parts, soon(), TraceId::default()).await;
        assert!(answers.iter().all(|a| matches!(a, Answer::Committed { .. })), "{answers:?}");
        for (_, running) in world.alive() {
            until("an empty memory", async || running.journals.in_memory() == 0).await;
        }
    }
    assert_eq!(epochs(&world), before);
    for (_, running) in world.alive() {
        let status = running.journals.status(&index()).await.unwrap();
        assert!(status.values().all(|s| s.last == 4 && s.commit == 4), "what was known to be committed is: {status:?}");
    }
}

/// Kills a follower that knows the last entry to be committed and has not stored that; gives its primary, it and the entry.
async fn forgetful(world: &mut World, task: u32) -> (usize, usize, u64) {
    let first = primary(world, 0).unwrap();
    let follower = (first + 1) % 3;
    let parts = vec![(ShardId(0), write(task))];
    let seq = seq_of(&world.at(first).sender.send(&index(), parts, soon(), TraceId::default()).await[0]);
    until("it knows", async || world.at(follower).journals.committed(&key(0)) == Some(seq)).await;
    // Its answer is on its way: the primary has nothing more to say to it.
    tokio::time::sleep(Duration::from_millis(50)).await;
    world.kill(follower).await;
    (first, follower, seq)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_starts_again_learns_what_is_committed_though_nobody_writes() {
    let mut world = world(1).await;
    for (task, at_rest) in [(1, false), (2, true), (3, false), (4, true)] {
        let (first, follower, seq) = forgetful(&mut world, task).await;
        if at_rest {
            until("a primary at rest", async || world.at(first).journals.in_memory() == 0).await;
        }
        world.restart(follower, |_, _| Vec::new()).await;
        let journals = &world.at(follower).journals;
        until("it knows", async || journals.committed(&key(0)) == Some(seq)).await;
        let last = journals.read_committed(&key(0), seq, 1, 1 << 20).await.unwrap();
        assert_eq!(last.iter().map(|e| e.part).collect::<Vec<_>>(), [Some(write(task).part)]);
        // Then nobody has anything to say any more.
        for (_, running) in world.alive() {
            until("an empty memory", async || running.journals.in_memory() == 0).await;
        }
        assert_eq!(state(&world, 0).unwrap().in_sync.len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_starts_again_on_a_bad_network_learns_what_is_committed() {
    let mut world = world(1).await;
    for task in 1..4 {
        let (_, follower, seq) = forgetful(&mut world, task).await;
        world.lose(30);
        world.restart(follower, |_, _| Vec::new()).await;
        let journals = &world.at(follower).journals;
        until("it knows", async || journals.committed(&key(0)) >= Some(seq)).await;
        world.lose(0);
        whole(&world, 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_stop_hands_its_shards_over() {
    let world = world(3).await;
    within("it", world.at(0).journals.hand_over(LONG)).await;
    until("others lead", async || (0..3).all(|s| primary(&world, s).is_some_and(|i| i != 0))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_damaged_is_made_anew_from_a_snapshot() {
    let world = world(1).await;
    let first = primary(&world, 0).unwrap();
    let bad = (first + 1) % 3;
    let send = async |task| {
        let parts = vec![(ShardId(0), write(task))];
        seq_of(&world.at(first).sender.send(&index(), parts, soon(), TraceId::default()).await[0])
    };
    for task in 0..5 {
        send(task).await;
    }
    let (mut needs, mut rebuild) = (world.at(first).journals.subscribe(), world.at(bad).journals.subscribe());
    until("an empty memory", async || world.at(bad).journals.in_memory() == 0).await;
    world.at(bad).journal_store.repair(&key(0), "of a test").await.unwrap();
    let at = send(5).await;
    let me = world.at(bad).journals.me().clone();
    within("it says so", async { while rebuild.recv().await.unwrap() != Event::Rebuild(key(0)) {} }).await;
    within("the primary says so", async {
        while needs.recv().await.unwrap() != Event::NeedsSnapshot(key(0), me.clone()) {}
    })
    .await;
    until("it leaves", async || state(&world, 0).is_some_and(|s| s.in_sync.len() == 2)).await;
    let source = &world.at(first).journals;
    let position = source.read_committed(&key(0), at, 1, 1).await.unwrap()[0].at;
    let parts = world.at(first).journal_store.parts(&key(0), at).await.unwrap();
    assert_eq!(parts.len(), 6);
    until("it is taken", async || world.at(bad).journals.snapshot(&key(0), position, parts.clone()).await).await;
    whole(&world, 1).await;
    let seq = send(6).await;
    until("the journal goes on", async || {
        let entries = world.at(bad).journals.read_committed(&key(0), seq, 9, 1 << 20).await.unwrap();
        entries.first().is_some_and(|e| e.part == Some(write(6).part))
    })
    .await;
    let status: ShardStatus = world.at(bad).journals.status(&index()).await.unwrap()[&ShardId(0)].clone();
    assert_eq!((status.rebuild, status.last, status.applied), (false, seq, at));
    let (stored, _) = world.at(bad).journal_store.list().await.unwrap();
    assert_eq!(stored[0].floor, position);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_whose_copy_is_damaged_gives_its_shard_up() {
    let mut world = world(1).await;
    let first = primary(&world, 0).unwrap();
    let other = (first + 1) % 3;
    let send = async |world: &World, task| {
        let parts = vec![(ShardId(0), write(task))];
        seq_of(&world.at(other).sender.send(&index(), parts, soon(), TraceId::default()).await[0])
    };
    let seqs = [send(&world, 1).await, send(&world, 2).await];
    until("an empty memory", async || world.at(first).journals.in_memory() == 0).await;
    world.at(first).journal_store.repair(&key(0), "of a test").await.unwrap();
    // It is met when the shard is touched, and another one takes the write.
    assert!(send(&world, 3).await > seqs[1]);
    assert_ne!(primary(&world, 0), Some(first));
    until("it leaves", async || state(&world, 0).is_some_and(|s| s.in_sync.len() == 2)).await;
    // The others may name it again when it starts anew; it never works like that.
    world.kill(first).await;
    world.restart(first, |_, _| Vec::new()).await;
    assert_eq!([send(&world, 1).await, send(&world, 2).await], seqs);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_applied_everywhere_can_be_trimmed_and_resends_are_recognised() {
    let world = world(1).await;
    let first = primary(&world, 0).unwrap();
    let send = async |task| {
        let parts = vec![(ShardId(0), write(task))];
        seq_of(&world.at(first).sender.send(&index(), parts, soon(), TraceId::default()).await[0])
    };
    let mut last = 0;
    for task in 0..5 {
        last = send(task).await;
    }
    equal(&world, 0, 5).await;
    for (_, running) in world.alive() {
        running.journals.applied(vec![(key(0), last)]).await.unwrap();
    }
    // The primary hears of it with the next answers.
    let next = send(5).await;
    let floor = async |i: usize| world.at(i).journal_store.list().await.unwrap().0[0].floor.seq;
    until("it is trimmed", async || {
        world.at(first).journals.trim(&key(0), next, false).await;
        floor(first).await == last
    })
    .await;
    assert_eq!(send(2).await, last - 2, "remembered by part");
    assert!(world.at(first).journals.read_committed(&key(0), 1, 9, 9).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retention_trims_all_copies_and_forgets_old_parts() {
    let world = world(2).await;
    let mut last = 0;
    for task in 0..20 {
        let parts = (0..2).map(|shard| (ShardId(shard), write(task))).collect();
        let answers = world.at(0).sender.send(&index(), parts, soon(), TraceId::default()).await;
        last = answers.iter().map(seq_of).max().unwrap();
    }
    for shard in 0..2 {
        equal(&world, shard, 20).await;
    }
    let retention = Retention {
        age: Duration::ZERO,
        bytes: 0,
        parts_age: LONG,
        parts: 10,
        every: Duration::from_millis(200),
        settle: Duration::from_millis(100),
        patience: LONG,
    };
    let keeping: Vec<_> =
        world.alive().map(|(_, m)| tokio::spawn(retention.clone().keep(m.journals.clone()))).collect();
    let floors = async || {
        let mut floors = Vec::new();
        for (_, m) in world.alive() {
            floors.extend(m.journal_store.list().await.unwrap().0.iter().map(|l| l.floor.seq));
        }
        floors
    };
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(floors().await, [0; 6], "nothing is applied");
    for (_, m) in world.alive() {
        m.journals.applied((0..2).map(|shard| (key(shard), last - 3)).collect()).await.unwrap();
    }
    // Followers hear with the next writes what nobody needs any more.
    let mut task = 20;
    until("all copies are trimmed", async || {
        let parts = (0..2).map(|shard| (ShardId(shard), write(task))).collect();
        world
            .at(0)
            .sender
            .send(&index(), parts, soon(), TraceId::default())
            .await
            .iter()
            .for_each(|a| assert!(seq_of(a) > last));
        task += 1;
        floors().await == [last - 3; 6]
    })
    .await;
    until("old parts are forgotten", async || {
        world.at(0).journal_store.find(&key(0), write(1).part).await.unwrap().is_none()
    })
    .await;
    assert!(keeping.iter().all(|k| !k.is_finished()));
    keeping.iter().for_each(JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retention_does_not_wait_for_ever_for_a_node_that_applies_nothing() {
    let world = world(1).await;
    let first = primary(&world, 0).unwrap();
    let (other, stuck) = ((first + 1) % 3, (first + 2) % 3);
    let send = async |task| {
        let parts = vec![(ShardId(0), write(task))];
        seq_of(&world.at(first).sender.send(&index(), parts, soon(), TraceId::default()).await[0])
    };
    let mut last = 0;
    for task in 0..20 {
        last = send(task).await;
    }
    equal(&world, 0, 20).await;
    for i in [first, other] {
        world.at(i).journals.applied(vec![(key(0), last)]).await.unwrap();
    }
    let retention = Retention {
        age: Duration::ZERO,
        bytes: 0,
        every: Duration::from_millis(200),
        settle: Duration::from_millis(100),
        patience: LONG * 10,
        ..Retention::default()
    };
    let begin = |retention: &Retention| -> Vec<_> {
        world.alive().map(|(_, m)| tokio::spawn(retention.clone().keep(m.journals.clone()))).collect()
    };
    let keeping = begin(&retention);
    let floor = async |i: usize| world.at(i).journal_store.list().await.unwrap().0[0].floor.seq;
    // What goes is told with the next writes.
    let mut task = 20;
    send(task).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!([floor(first).await, floor(other).await], [0; 2], "it may be about to");
    keeping.iter().for_each(JoinHandle::abort);
    let keeping = begin(&Retention { patience: Duration::from_secs(1), ..retention });
    until("it is not waited for any more", async || {
        task += 1;
        send(task).await;
        floor(first).await == last && floor(other).await == last
    })
    .await;
    let in_sync = || state(&world, 0).unwrap().in_sync.len();
    assert_eq!((floor(stuck).await, in_sync()), (0, 3));
    until("its own journal has all of it", async || {
        let parts = committed(&world, stuck, 0).await.into_iter().filter_map(|entry| entry.part);
        parts.eq((0..=task).map(|task| write(task).part))
    })
    .await;
    world.at(stuck).journals.applied(vec![(key(0), last)]).await.unwrap();
    until("it drops what it has applied", async || floor(stuck).await == last).await;
    assert!(keeping.iter().all(|k| !k.is_finished()));
    keeping.iter().for_each(JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retention_goes_on_until_nothing_more_goes() {
    let world = world(1).await;
    let first = primary(&world, 0).unwrap();
    let mut last = 0;
    for tasks in [0..600, 600..1_200] {
        let parts = tasks.map(|task| (ShardId(0), write(task))).collect();
        let answers = world.at(first).sender.send(&index(), parts, soon(), TraceId::default()).await;
        last = answers.iter().map(seq_of).max().unwrap();
    }
    equal(&world, 0, 1_200).await;
    for (_, m) in world.alive() {
        m.journals.applied(vec![(key(0), last)]).await.unwrap();
    }
    // The primary hears from the others with the next write.
    let parts = vec![(ShardId(0), write(1_200))];
    world.at(first).sender.send(&index(), parts, soon(), TraceId::default()).await;
    let retention = Retention { age: Duration::ZERO, bytes: 0, settle: Duration::from_secs(2), ..Retention::default() };
    within("one look", retention.trim(&world.at(first).journals, &mut BTreeMap::new())).await.unwrap();
    until("more than one offer takes is trimmed", async || {
        world.at(first).journal_store.list().await.unwrap().0[0].floor.seq == last
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_journal_that_rests_is_looked_at_after_a_start() {
    let world = world(1).await;
    let first = primary(&world, 0).unwrap();
    let parts = vec![(ShardId(0), write(1))];
    world.at(first).sender.send(&index(), parts, soon(), TraceId::default()).await;
    equal(&world, 0, 1).await;
    let bad = world.at((first + 1) % 3);
    until("an empty memory", async || bad.journals.in_memory() == 0).await;
    Retention::default().look_at_tails(&bad.journals).await.unwrap();
    assert_eq!(bad.journals.in_memory(), 0, "nothing is wrong");
    let last = "UPDATE entries SET body = x'00' WHERE place = (SELECT max(place) FROM entries)";
    assert_eq!(bad.journal_store.spoil(last), 1);
    let mut rebuild = bad.journals.subscribe();
    Retention::default().look_at_tails(&bad.journals).await.unwrap();
    within("it says so", async { while rebuild.recv().await.unwrap() != Event::Rebuild(key(0)) {} }).await;
}

/// What an operator is told of the copies of the shard, by those who live.
async fn told(world: &World) -> BTreeMap<MemberId, Told> {
    let mut told = BTreeMap::new();
    for (i, running) in world.alive() {
        let status = running.journals.status(&index()).await.unwrap();
        if let Some(one) = status.get(&ShardId(0)) {
            let says = Told { last: one.last, committed: one.commit, of_no_use: one.rebuild };
            told.insert(member(i), says);
        }
    }
    told
}

/// An operator's order about shard 0, given to member 2.
async fn order(world: &World, to: usize, accept_loss: bool) -> Result<(ShardState, ShardState), AskError<OrderError>> {
    let (order, says) = (Order { to: member(to), accept_loss }, told(world).await);
    let journals = &world.at(2).journals;
    let (by, seen) = (journals.holder(), journals.seen());
    journals.change(&key(0), |state| ordered::change(state, &order, &by, &seen.sight, &says, None)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_elects_who_is_not_in_sync_and_what_others_have_is_given_up() {
    let mut world = World::start(3, |_, _| Vec::new()).await;
    let copies: Vec<ReplicaId> = (0..2).map(|i| world.at(i).journals.me().clone()).collect();
    world.create(&index(), vec![copies]).await;
    let send = async |world: &World, tasks: std::ops::Range<u32>| {
        let mut last = 0;
        for task in tasks {
            let parts = vec![(ShardId(0), write(task))];
            last = seq_of(&world.at(2).sender.send(&index(), parts, soon(), TraceId::default()).await[0]);
        }
        last
    };
    let in_sync = |world: &World| state(world, 0).map_or(0, |state| state.in_sync.len());
    until("both in sync", async || in_sync(&world) == 2 && primary(&world, 0) == Some(0)).await;
    let kept = send(&world, 0..3).await;
    until("it is told", async || world.at(1).journals.committed(&key(0)) == Some(kept)).await;
    world.kill(1).await;
    let lost = send(&world, 10..15).await;
    assert_eq!(lost, kept + 5);
    until("it leaves", async || in_sync(&world) == 1).await;

    world.kill(0).await;
    world.restart(1, |_, _| Vec::new()).await;
    until("it says how far it is", async || told(&world).await.contains_key(&member(1))).await;
    assert_eq!(order(&world, 1, false).await, Err(AskError::Refused(OrderError::OutOfSync)));
    assert_eq!(order(&world, 0, true).await, Err(AskError::Refused(OrderError::NotSeen)));
    assert_eq!(primary(&world, 0), Some(0), "nobody else without an order");
    let says = told(&world).await;
    let given_up = Order { to: member(1), accept_loss: true };
    let seen = world.at(2).journals.seen();
    let given_up = ordered::given_up(&state(&world, 0).unwrap(), &given_up, &seen.sight, &says).unwrap();
    assert_eq!((given_up.behind, given_up.unknown), (kept, vec![member(0)]));
    let (before, after) = order(&world, 1, true).await.unwrap();
    assert_eq!((after.epoch, after.in_sync.len()), (before.epoch.next().unwrap(), 1));
    let next = send(&world, 20..22).await;
    assert_eq!(next, kept + 3, "right behind its empty entry");
    let parts = |entries: &[Entry]| entries.iter().filter_map(|e| Some(e.part?.task.0)).collect::<Vec<_>>();
    assert_eq!(parts(&committed(&world, 1, 0).await), [0, 1, 2, 20, 21]);

    // Who comes back has committed entries in the places of others: it is made anew, and in no set before.
    world.restart(0, |_, _| Vec::new()).await;
    let rebuild = async || world.at(0).journals.status(&index()).await.unwrap()[&ShardId(0)].rebuild;
    until("it needs a snapshot", rebuild).await;
    // Its own copy of the record may be older still.
    let stands = world.at(2).journals.record(&index()).unwrap().shard(ShardId(0)).cloned().unwrap();
    assert_eq!((stands.in_sync.len(), stands.primary), (1, after.primary));
    let refused = Err(AskError::Refused(OrderError::OfNoUse));
    assert_eq!(order(&world, 0, true).await, refused);
    let source = &world.at(1).journals;
    let at = source.read_committed(&key(0), next, 1, 1).await.unwrap()[0].at;
    let parts_there = world.at(1).journal_store.parts(&key(0), next).await.unwrap();
    until("it is taken", async || world.at(0).journals.snapshot(&key(0), at, parts_there.clone()).await).await;
    until("both in sync", async || in_sync(&world) == 2).await;
    let last = send(&world, 30..31).await;
    until("the same behind the snapshot", async || {
        let one = world.at(0).journals.read_committed(&key(0), next + 1, 9, 1 << 20).await.unwrap();
        let other = world.at(1).journals.read_committed(&key(0), next + 1, 9, 1 << 20).await.unwrap();
        one == other && one.last().is_some_and(|e| e.at.seq == last)
    })
    .await;
    assert_eq!(world.at(0).journals.find(&key(0), write(12).part).await.unwrap(), None, "given up for good");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_that_waits_for_members_who_are_gone_goes_on_without_them_on_an_operators_order() {
    let mut world = world(1).await;
    let first = primary(&world, 0).unwrap();
    assert_eq!(first, 0, "in the order of the record");
    world.kill(1).await;
    let parts = |task| vec![(ShardId(0), write(task))];
    let seq = seq_of(&world.at(2).sender.send(&index(), parts(1), soon(), TraceId::default()).await[0]);
    until("it leaves", async || state(&world, 0).is_some_and(|s| s.in_sync.len() == 2)).await;
    world.kill(0).await;
    world.restart(1, |_, _| Vec::new()).await;
    // The set may not be smaller than two, so its one live member waits for the other.
    until("it leads", async || primary(&world, 0) == Some(2)).await;
    until("it says how far it is", async || told(&world).await.contains_key(&member(1))).await;
    let is_in_sync = |state: &ShardState, i: usize| state.in_sync.iter().any(|id| id.member == member(i));
    // It comes in by itself, in the place of who is gone, if the order is late.
    let refused = order(&world, 1, true).await;
    let needless = Err(AskError::Refused(OrderError::Needless { member: member(2) }));
    assert!(refused == needless || is_in_sync(&state(&world, 0).unwrap(), 1), "{refused:?}");
    let (_, after) = order(&world, 2, true).await.unwrap();
    assert!(is_in_sync(&after, 2) && !is_in_sync(&after, 0), "{after:?}");
    let more = seq_of(&world.at(1).sender.send(&index(), parts(2), soon(), TraceId::default()).await[0]);
    assert!(more > seq, "the other has come in");
    assert!(committed(&world, 2, 0).await.iter().any(|e| e.part == Some(write(1).part)), "nothing was given up");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_ends_the_driver_and_nothing_of_it_is_told() {
    let mut world = world(1).await;
    let first = primary(&world, 0).unwrap();
    world.at(first).journal_store.fill_for_test().await.unwrap();
    let mut dice = fastrand::Rng::with_seed(7);
    let big = Write { body: Body((0..1 << 20).map(|_| dice.u8(..)).collect()), ..write(1) };
    let parts = vec![(ShardId(0), big)];
    let answers = within("an answer", world.at(first).journals.write(&index(), parts, soon())).await;
    assert!(!matches!(answers[..], [Answer::Committed { .. }]), "{answers:?}");
    let mut fatal = world.at(first).journal_store.fatal();
    within("the store is over", fatal.wait_for(Option::is_some)).await.unwrap();
    world.kill(first).await;
    let other = (first + 1) % 3;
    let answers = world.at(other).sender.send(&index(), vec![(ShardId(0), write(2))], soon(), TraceId::default()).await;
    assert!(matches!(answers[..], [Answer::Committed { .. }]), "{answers:?}");
}
