//! Copies that are made anew from other members', while writes go on.

use super::*;
use crate::proto::journal::record::{Change, Why};
use crate::proto::snapshot::{learner, source};
use crate::types::ShardState;
use crate::wire::verbs::VerdictsOf;

/// Everything soon, and in small bites.
pub(super) fn config() -> snapshot::Config {
    snapshot::Config {
        learner: learner::Config {
            batch_bytes: 600,
            batch_ids: 7,
            under_way: 4,
            pause_min: Duration::from_millis(10),
            pause_max: Duration::from_millis(300),
            settle: Duration::from_millis(300),
            ..learner::Config::default()
        },
        source: source::Config {
            hold: Duration::from_secs(2),
            settle: Duration::from_millis(800),
            idle: Duration::from_secs(3),
            ..source::Config::default()
        },
        keep: Duration::from_millis(200),
        settle: Duration::from_millis(800),
        stuck: Duration::from_secs(5),
        ..snapshot::Config::default()
    }
}

impl All {
    async fn that_rebuilds() -> Self {
        Self::start_with(true).await
    }

    fn rebuilt(&self, i: usize) -> BTreeSet<ShardId> {
        let all = self.handle(i).rebuilt().borrow().clone();
        all.get(&index()).map(|shards| shards.iter().collect()).unwrap_or_default()
    }

    /// Waits until no copy is made any more, and all are the same; meanwhile somebody writes.
    async fn are_made(&mut self, rng: &mut fastrand::Rng, writes: usize) {
        for _ in 0..writes {
            self.write_any(rng).await;
            tokio::time::sleep(Duration::from_millis(rng.u64(0..8))).await;
        }
        for i in 0..MEMBERS {
            let end = Instant::now() + LONG;
            while !self.rebuilt(i).is_empty() {
                if Instant::now() >= end {
                    panic!("member {i} does not get its copies: {}", self.how_all_stand().await);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        self.are_whole().await;
    }

    /// Everything that may say why something does not go on.
    async fn how_all_stand(&self) -> String {
        let mut all = format!("{:?}\n", self.record());
        for (i, running) in self.running.iter().enumerate() {
            let Some(running) = running else { continue };
            all += &format!("member {i}: {:?}\n", running.snapshots.views(&index()));
            for shard in (0..SHARDS).map(key) {
                let lane = running.handle.store.lane(&shard).await.unwrap();
                let standing = tokio::time::timeout(LONG, running.handle.standing(&shard)).await;
                all += &format!("  shard {}: {lane:?}, {standing:?}\n", shard.shard.0);
            }
        }
        all
    }

    /// Drops the journals' beginnings everywhere.
    async fn trim(&mut self) {
        self.are_whole().await;
        within("the beginnings go", async {
            // What is not needed any more travels with writes.
            for id in 40.. {
                for (_, me) in self.world.alive() {
                    for listed in me.journals.stored().await.unwrap() {
                        me.journals.trim(&listed.key, listed.applied, false).await;
                    }
                }
                self.set(&(0..SHARDS).map(|shard| document(shard, id % 50, id)).collect::<Vec<_>>()).await;
                let mut floors = Vec::new();
                for (_, me) in self.world.alive() {
                    let listed = me.journals.stored().await.unwrap().into_iter();
                    floors.extend(listed.filter(|l| l.key.index == index()).map(|l| l.floor.seq));
                }
                if floors.iter().all(|floor| *floor > 0) {
                    break;
                }
            }
        })
        .await;
    }

    /// The node is there again after it was away, with nothing.
    async fn empty(&self, i: usize) {
        let mut told = self.handle(i).subscribe();
        self.health[i].send_modify(|health| health.healthy = false);
        within("doubt", async { while !matches!(told.recv().await.unwrap(), Told::Trusted(_, false)) {} }).await;
        self.nodes[i].state().empty();
        self.health[i].send_modify(|health| health.healthy = true);
    }
}

#[tokio::test]
async fn a_node_that_was_emptied_is_filled_while_writes_go_on() {
    let mut all = All::that_rebuilds().await;
    let mut rng = fastrand::Rng::with_seed(21);
    for id in 0..30 {
        all.set(&(0..SHARDS).map(|shard| document(shard, id, 1)).collect::<Vec<_>>()).await;
    }
    all.trim().await;
    for i in [0, 2] {
        let mut rebuilt = all.handle(i).rebuilt();
        all.empty(i).await;
        within("copies are of no use", rebuilt.wait_for(|all| all.contains_key(&index()))).await.unwrap();
        all.are_made(&mut rng, 60).await;
    }
}

#[tokio::test]
async fn a_node_that_comes_back_with_nothing_is_filled_though_entries_went_without_it() {
    let mut all = All::that_rebuilds().await;
    let mut rng = fastrand::Rng::with_seed(23);
    for id in 0..30 {
        all.set(&(0..SHARDS).map(|shard| document(shard, id, 1)).collect::<Vec<_>>()).await;
    }
    all.trim().await;
    let away = (all.primary(0).unwrap() + 1) % MEMBERS;
    all.health[away].send_modify(|health| health.healthy = false);
    let last = all.set(&[document(0, 1, 2), document(0, 2, 2)]).await[0];
    for i in (0..MEMBERS).filter(|i| *i != away) {
        all.is_whole(i).await;
    }
    all.drop_without(away, last).await;
    let mut rebuilt = all.handle(away).rebuilt();
    all.nodes[away].state().empty();
    all.health[away].send_modify(|health| health.healthy = true);
    within("copies are of no use", rebuilt.wait_for(|all| all.contains_key(&index()))).await.unwrap();
    all.are_made(&mut rng, 40).await;
}

#[tokio::test]
async fn a_copy_whose_node_alone_fails_what_the_primary_has_forgotten_is_made_anew() {
    let mut all = All::that_rebuilds().await;
    all.set(&[document(0, 1, 1)]).await;
    all.are_whole().await;
    let away = (all.primary(0).unwrap() + 1) % MEMBERS;
    all.health[away].send_modify(|health| health.healthy = false);
    all.nodes[away].state().refuses.push("odd");
    let mut odd = document(0, 1, 2);
    odd["odd"] = 1.into();
    all.set(&[odd]).await;
    let last = all.set(&[document(0, 3, 1)]).await[0];
    for i in (0..MEMBERS).filter(|i| *i != away) {
        all.is_whole(i).await;
    }
    // It has asked about all of it before its node fails something.
    let store = all.world.at(away).journal_store.clone();
    until("it has asked", async || {
        store.applier(&index()).await.unwrap().checked.get(&ShardId(0)).is_some_and(|checked| *checked >= last)
    })
    .await;
    all.drop_without(away, last).await;
    all.health[away].send_modify(|health| health.healthy = true);
    all.are_whole().await;
    assert!(all.world.at(away).metrics.verdict_mismatches.get() > 0);
}

#[tokio::test]
async fn a_node_that_lost_its_index_gets_the_settings_of_one_that_misses_none() {
    let mut all = All::that_rebuilds().await;
    for id in 0..10 {
        all.set(&(0..SHARDS).map(|shard| document(shard, id, 1)).collect::<Vec<_>>()).await;
    }
    all.trim().await;
    let stop_words = |all: &All, i: usize| {
        let state = all.nodes[i].state();
        state.indexes.get(index().as_str()).and_then(|index| index.settings.get("stopWords").cloned())
    };
    put_record(&all.world, &lacking(&[0, 1])).await;
    until("it is known", async || {
        all.world.alive().all(|(_, m)| m.records.snapshot().index(&index()).unwrap().value.settings_version == 1)
    })
    .await;
    let mut rebuilt = all.handle(2).rebuilt();
    all.empty(2).await;
    within("copies are of no use", rebuilt.wait_for(|all| all.contains_key(&index()))).await.unwrap();
    let views = |all: &All| all.running[2].as_ref().unwrap().snapshots.views(&index());
    until("it says so", async || {
        let trouble = |view: &crate::proto::snapshot::View| view.trouble.clone();
        views(&all).values().filter_map(trouble).any(|why| why.contains("yet to get settings"))
    })
    .await;
    assert!(!all.nodes[2].state().indexes.contains_key(index().as_str()));
    let patch = json!({"stopWords": ["new"]}).as_object().unwrap().clone();
    all.nodes[1].state().indexes.get_mut(index().as_str()).unwrap().settings.extend(patch);
    put_record(&all.world, &lacking(&[0])).await;
    until("it is made", async || stop_words(&all, 2) == Some(json!(["new"]))).await;
    put_record(&all.world, &lacking(&[])).await;
    all.are_made(&mut fastrand::Rng::with_seed(31), 10).await;
    assert_eq!(stop_words(&all, 2), Some(json!(["new"])));
}

#[tokio::test]
async fn a_learner_that_ends_anywhere_begins_anew_and_serves_no_half_copy() {
    let mut all = All::that_rebuilds().await;
    let mut rng = fastrand::Rng::with_seed(22);
    for id in 0..40 {
        all.set(&(0..SHARDS).map(|shard| document(shard, id, 1)).collect::<Vec<_>>()).await;
    }
    for round in 0..25_u64 {
        let i = rng.usize(0..MEMBERS);
        let shard = rng.u16(0..SHARDS);
        all.nodes[i].state().faults = Faults { lost: 3, unanswered: 3, trouble: 2 };
        let standing = all.handle(i).unmade(&key(shard)).await.unwrap();
        assert!(standing.rebuild && all.handle(i).is_rebuilt(&key(shard)));
        for _ in 0..rng.usize(0..4) {
            all.write_any(&mut rng).await;
        }
        tokio::time::sleep(Duration::from_millis(rng.u64(0..1 + round * 6))).await;
        all.kill(i).await;
        all.nodes[i].state().faults = Faults::default();
        all.run(i).await;
    }
    all.are_made(&mut rng, 30).await;
}

#[tokio::test]
async fn of_copies_that_are_all_in_doubt_one_stays() {
    all_in_doubt(true).await;
}

#[tokio::test]
async fn copies_that_are_all_in_doubt_are_made_of_whole_journals() {
    all_in_doubt(false).await;
}

/// Edits are under way everywhere when all members begin anew, whose journals are whole or not.
async fn all_in_doubt(trimmed: bool) {
    let mut all = All::that_rebuilds().await;
    let mut rng = fastrand::Rng::with_seed(26);
    for id in 0..10 {
        all.set(&(0..SHARDS).map(|shard| document(shard, id, 1)).collect::<Vec<_>>()).await;
    }
    if trimmed {
        // No copy can be made of a journal alone.
        all.trim().await;
    }
    for _ in 0..3 {
        all.are_whole().await;
        all.nodes.iter().for_each(|node| node.state().stands = true);
        all.write(Kind::Edit, (0..SHARDS).map(|shard| (shard, EDIT.into())).collect()).await;
        let queued = async || all.nodes.iter().all(|node| node.state().waiting() == usize::from(SHARDS));
        until("the edits are in each node's queue", queued).await;
        for i in 0..MEMBERS {
            all.kill(i).await;
        }
        for i in 0..MEMBERS {
            all.run(i).await;
        }
        let all_rebuilt = async || (0..MEMBERS).all(|i| all.rebuilt(i).len() == usize::from(SHARDS));
        until("all copies are in doubt", all_rebuilt).await;
        all.nodes.iter().for_each(|node| node.state().stands = false);
        all.are_made(&mut rng, 10).await;
    }
}

#[tokio::test]
async fn a_source_that_ends_is_replaced_by_another() {
    let mut all = All::that_rebuilds().await;
    let mut rng = fastrand::Rng::with_seed(23);
    for id in 0..60 {
        all.set(&(0..SHARDS).map(|shard| document(shard, id, 1)).collect::<Vec<_>>()).await;
    }
    all.trim().await;
    for round in 0..8 {
        let learner = round % MEMBERS;
        let source = (learner + 1 + round % 2) % MEMBERS;
        for shard in 0..SHARDS {
            all.handle(learner).unmade(&key(shard)).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(rng.u64(0..60))).await;
        all.kill(source).await;
        all.write_any(&mut rng).await;
        tokio::time::sleep(Duration::from_millis(rng.u64(0..100))).await;
        all.run(source).await;
        all.are_made(&mut rng, 5).await;
    }
}

#[tokio::test]
async fn entries_that_depend_on_documents_have_a_read_begin_again_and_wait_for_it_at_last() {
    let mut all = All::that_rebuilds().await;
    let mut rng = fastrand::Rng::with_seed(24);
    for id in 0..60 {
        all.set(&[document(0, id, 1)]).await;
    }
    all.trim().await;
    for i in 0..MEMBERS {
        all.handle(i).unmade(&key(0)).await.unwrap();
        // One conditional entry after the other: no read is ever whole without patience.
        let (mut rounds, mut attempts) = (0, 0);
        while all.handle(i).is_rebuilt(&key(0)) {
            all.write(Kind::Edit, vec![(0, EDIT.into())]).await;
            let views = all.running[i].as_ref().unwrap().snapshots.views(&index());
            attempts = attempts.max(views.get(&ShardId(0)).map_or(0, |view| view.restarts));
            rounds += 1;
            assert!(rounds < 4_000, "{views:?}");
        }
        say(&format!("{rounds} entries, {attempts} restarts"));
        all.are_made(&mut rng, 5).await;
    }
}

fn say(what: &str) {
    println!("{what}");
}

#[tokio::test]
async fn a_follower_further_behind_than_the_journals_gets_a_copy_with_its_journal() {
    let mut all = All::that_rebuilds().await;
    let mut rng = fastrand::Rng::with_seed(25);
    for id in 0..20 {
        all.set(&(0..SHARDS).map(|shard| document(shard, id, 1)).collect::<Vec<_>>()).await;
    }
    all.are_whole().await;
    all.kill(2).await;
    all.world.kill(2).await;
    // Whoever answers nothing is missed by whoever has something to say.
    all.set(&(0..SHARDS).map(|shard| document(shard, 1, 2)).collect::<Vec<_>>()).await;
    until("it leaves", async || {
        all.record().shards.iter().all(|state| state.in_sync.iter().all(|id| id.member != member(2)))
    })
    .await;
    for _ in 0..30 {
        all.write_any(&mut rng).await;
    }
    within("the journals go on without it", async {
        for id in 0.. {
            let mut left = Vec::new();
            for i in 0..2 {
                for listed in all.world.at(i).journals.stored().await.unwrap() {
                    all.world.at(i).journals.trim(&listed.key, listed.applied, false).await;
                    if listed.key.index == index() {
                        left.push(listed.floor.seq);
                    }
                }
            }
            if left.iter().all(|floor| *floor > 21) {
                break;
            }
            all.set(&(0..SHARDS).map(|shard| document(shard, id % 50, id)).collect::<Vec<_>>()).await;
        }
    })
    .await;
    all.world.restart(2, |_, _| Vec::new()).await;
    all.run(2).await;
    let mut rebuilt = all.handle(2).rebuilt();
    within("copies are of no use", rebuilt.wait_for(|all| all.contains_key(&index()))).await.unwrap();
    all.are_made(&mut rng, 30).await;
    until("it is in sync again", async || {
        all.record().shards.iter().all(|state| state.in_sync.iter().any(|id| id.member == member(2)))
    })
    .await;
    all.are_made(&mut rng, 5).await;
}

#[tokio::test]
async fn a_damaged_journal_and_its_copy_are_made_anew() {
    let mut all = All::that_rebuilds().await;
    let mut rng = fastrand::Rng::with_seed(26);
    for _ in 0..30 {
        all.write_any(&mut rng).await;
    }
    all.are_whole().await;
    let i = (0..MEMBERS).find(|i| all.primary(1) != Some(*i)).unwrap();
    let mut rebuilt = all.handle(i).rebuilt();
    all.world.at(i).journals.repair(&key(1), "of a test".into()).await;
    within("the copy is of no use", rebuilt.wait_for(|all| all.contains_key(&index()))).await.unwrap();
    all.are_made(&mut rng, 40).await;
}

#[tokio::test]
async fn a_damaged_verdict_of_a_primary_is_found_and_its_copy_made_anew() {
    let mut all = All::that_rebuilds().await;
    let mut rng = fastrand::Rng::with_seed(30);
    let (i, other) = (all.primary(1).unwrap(), (0..SHARDS).find(|s| all.primary(*s) == all.primary(1) && *s != 1));
    for node in &all.nodes {
        node.state().refuses.push("odd");
    }
    let before = all.model.clone();
    let mut odd = document(1, 1, 1);
    odd["odd"] = 1.into();
    all.set(&[odd]).await;
    all.model = before;
    all.set(&(0..SHARDS).map(|shard| document(shard, 2, 1)).collect::<Vec<_>>()).await;
    all.are_whole().await;
    assert_eq!(all.world.at(i).journal_store.spoil("UPDATE failed SET hash = hash + 1"), 1);
    let mut rebuilt = all.handle(i).rebuilt();
    let shards = other.into_iter().chain([1]).map(|shard| (ShardId(shard), 1, u64::MAX)).collect();
    let heard = all.handle(i).verdicts(&VerdictsOf { index: index(), shards }).await.unwrap();
    assert_eq!(heard.iter().map(|said| said.shard.0).collect::<Vec<_>>(), Vec::from_iter(other));
    within("the copy is of no use", rebuilt.wait_for(|all| all.contains_key(&index()))).await.unwrap();
    all.are_made(&mut rng, 30).await;
}

#[tokio::test]
async fn where_nobody_has_a_copy_the_whole_journal_is_applied_again() {
    let mut all = All::that_rebuilds().await;
    let mut rng = fastrand::Rng::with_seed(27);
    for _ in 0..20 {
        all.write_any(&mut rng).await;
    }
    for i in 0..MEMBERS {
        all.handle(i).unmade(&key(2)).await.unwrap();
    }
    all.are_made(&mut rng, 10).await;
}

#[tokio::test]
async fn where_nobody_has_a_copy_nor_the_whole_journal_the_shard_is_not_served_and_that_is_said() {
    let mut all = All::that_rebuilds().await;
    for id in 0..20 {
        all.set(&[document(0, id, 1), document(1, id, 1)]).await;
    }
    all.trim().await;
    all.are_whole().await;
    let of_shard = |all: &All| {
        let mut documents = all.nodes[1].documents(index().as_str());
        documents.retain(|id, _| id.starts_with("0-"));
        documents
    };
    let before = of_shard(&all);
    // Nobody can be asked for a copy before all have lost theirs.
    let reached = std::mem::take(&mut *all.handles.lock().unwrap());
    for i in 0..MEMBERS {
        all.handle(i).unmade(&key(0)).await.unwrap();
    }
    *all.handles.lock().unwrap() = reached;
    let view = |all: &All, i: usize| all.running[i].as_ref().unwrap().snapshots.views(&index()).remove(&ShardId(0));
    for i in 0..MEMBERS {
        until("it says so", async || {
            view(&all, i).and_then(|view| view.trouble).is_some_and(|why| why.contains("made anew"))
        })
        .await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!((0..MEMBERS).all(|i| all.handle(i).is_rebuilt(&key(0))));
    assert_eq!(of_shard(&all), before, "nothing is deleted that nobody can give");
    // The others go on.
    all.set(&[document(1, 30, 1)]).await;
    until("another shard goes on", async || all.nodes[1].documents(index().as_str()).contains_key("1-30")).await;
}

#[tokio::test]
async fn a_copy_that_is_not_the_same_is_not_served_and_made_again() {
    let mut all = All::that_rebuilds().await;
    let mut rng = fastrand::Rng::with_seed(28);
    for id in 0..40 {
        all.set(&[document(0, id, 1)]).await;
    }
    all.trim().await;
    let i = (0..MEMBERS).find(|i| all.primary(0) != Some(*i)).unwrap();
    let (mut rebuilt, mut spoilt) = (all.handle(i).rebuilt(), 0);
    all.handle(i).unmade(&key(0)).await.unwrap();
    // Somebody else takes a document out of the node, again and again.
    while spoilt < 2 {
        let comparing = |view: &crate::proto::snapshot::View| view.doing.contains("compar");
        let views = all.running[i].as_ref().unwrap().snapshots.views(&index());
        if views.values().any(comparing) {
            let mut state = all.nodes[i].state();
            spoilt += usize::from(state.indexes.get_mut(index().as_str()).unwrap().documents.remove("0-7").is_some());
        }
        assert!(rebuilt.borrow_and_update().contains_key(&index()), "it is served with a document missing");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    all.are_made(&mut rng, 10).await;
}

#[tokio::test]
async fn a_full_copy_that_is_to_be_filled_is_made_anew_though_its_journal_contradicts_nothing() {
    let mut all = All::that_rebuilds().await;
    for id in 0..20 {
        all.set(&(0..SHARDS).map(|shard| document(shard, id, 1)).collect::<Vec<_>>()).await;
    }
    all.are_whole().await;
    // Another copy counts, whose node has what no journal tells of.
    let i = (all.primary(0).unwrap() + 1) % MEMBERS;
    let gone = all.model[0].keys().next().cloned().unwrap();
    all.nodes[i].state().indexes.get_mut(index().as_str()).unwrap().documents.remove(&gone).unwrap();
    let journals = &all.world.at(i).journals;
    let (me, by) = (journals.me().clone(), journals.holder());
    let learn = |state: &ShardState| {
        let mut after = state.clone();
        after.replicas.iter_mut().filter(|copy| copy.id == me).for_each(|copy| copy.state = ReplicaState::Learner);
        after.in_sync.retain(|id| *id != me);
        after.set += 1;
        Ok::<_, ()>(Some(Change { from: (state.epoch, state.set), why: Why::Replicas, by: by.clone(), after }))
    };
    journals.change(&key(0), learn).await.unwrap();
    let is_back = async || all.record().shard(ShardId(0)).is_some_and(|state| state.is_in_sync(&me));
    until("it is full and in sync again", is_back).await;
    all.are_whole().await;
}
