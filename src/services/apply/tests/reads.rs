//! What is read of a node: all of the shards asked for, and nothing of others.

use super::*;
use crate::types::ShardSet;
use crate::wire::verbs::{Read, ReadKind, SnapshotAct, SnapshotOf, SnapshotSaid};

impl All {
    /// A search of some shards at a member that is asked by another, which went by the newest record: the ids found.
    async fn search(&self, i: usize, shards: &[u16]) -> BTreeSet<String> {
        let record_version = self.world.at(i).records.snapshot().index(&index()).unwrap().version;
        let shards: ShardSet = shards.iter().map(|shard| ShardId(*shard)).collect();
        let read = Read { index: index(), record_version, shards, kind: ReadKind::Search };
        let request = Request::Read(read.clone());
        let call = Call { request, body: "{}".into(), deadline: Instant::now() + LONG, trace: TraceId::default() };
        let answer = self.running[i].as_ref().unwrap().local.read(&read, &call).await;
        assert_eq!(answer.reply, Reply::Node(200));
        let found: Value = serde_json::from_slice(&answer.body).unwrap();
        found["hits"].as_array().unwrap().iter().map(|hit| hit["id"].as_str().unwrap().to_owned()).collect()
    }
}

#[tokio::test]
async fn what_the_node_holds_decides_the_filter_by_shard_and_not_what_the_record_says() {
    let mut all = All::start().await;
    all.set(&(0..SHARDS).map(|shard| document(shard, 1, 1)).collect::<Vec<_>>()).await;
    all.are_whole().await;
    assert_eq!(all.search(0, &[0, 1, 2]).await, ["0-1", "1-1", "2-1"].map(str::to_owned).into());
    // By the record the member holds two shards and is asked for both, but the third has not gone from its node.
    let mut record = index_record();
    record.shards[2].replicas.retain(|replica| replica.member != member(0));
    put_record(&all.world, &record).await;
    let own = || all.world.at(0).records.snapshot().index(&index()).unwrap().value.shards_of(&member(0));
    until("the record", async || own().len() == 2).await;
    assert_eq!(all.search(0, &[0, 1]).await, ["0-1", "1-1"].map(str::to_owned).into());
    assert_eq!(all.search(1, &[2]).await, ["2-1".to_owned()].into());
}

#[tokio::test]
async fn a_read_that_nobody_waits_for_any_more_keeps_no_entries_waiting() {
    let mut all = All::start().await;
    all.set(&[document(0, 1, 1)]).await;
    all.are_whole().await;
    all.nodes[0].state().stands = true;
    all.write(Kind::Edit, vec![(0, EDIT.into())]).await;
    until("the edit is with the node", async || all.nodes[0].state().waiting() == 1).await;
    // So late an attempt has conditional entries wait for minutes.
    let of = SnapshotOf { index: index(), shard: ShardId(0), act: SnapshotAct::Begin(10) };
    let running = all.running[0].as_ref().unwrap();
    let stopped = async || all.handle(0).standing(&key(0)).await.is_some_and(|standing| standing.stopped);
    let (from, nothing) = (member(1), Default::default());
    tokio::select! {
        answer = running.snapshots.receive(&from, &of, &nothing) => panic!("{answer:?}"),
        () = until("entries wait", stopped) => {}
    }
    until("entries go on", async || !stopped().await).await;
    all.nodes[0].state().stands = false;
    all.are_whole().await;
}

#[tokio::test]
async fn the_ids_of_a_copy_are_all_that_were_there_all_the_time_though_others_go_meanwhile() {
    let mut all = All::start().await;
    for id in 0..40 {
        all.set(&[document(0, id, 1)]).await;
    }
    all.are_whole().await;
    all.nodes[0].state().shrinks = true;
    let of = SnapshotOf { index: index(), shard: ShardId(0), act: SnapshotAct::Begin(0) };
    let running = all.running[0].as_ref().unwrap();
    let mut ids = BTreeSet::new();
    until("a read begins", async || {
        let answer = running.snapshots.receive(&member(1), &of, &Default::default()).await;
        let begun = matches!(answer.reply, Reply::Snapshot(SnapshotSaid::Begun(..)));
        if begun {
            ids = serde_json::from_slice::<BTreeSet<String>>(&answer.body).unwrap();
        }
        begun
    })
    .await;
    let left: BTreeSet<String> = all.nodes[0].documents(index().as_str()).into_keys().collect();
    let skipped: Vec<&String> = left.difference(&ids).collect();
    assert!(left.len() < 40 && skipped.is_empty(), "{skipped:?}");
}
