//! Several members share a queue.

use std::sync::Mutex;

use serde_json::json;
use tokio::task::JoinHandle;

use super::*;
use crate::services::testing::{World, within};

/// What was done, by whom: job and the cursor at which it was begun.
#[derive(Debug, Default)]
struct Done {
    begun: Mutex<Vec<(usize, String, Option<Json>)>>,
    finished: Mutex<Vec<(usize, String)>>,
}

/// Works on each job for a moment, or, at its first beginning, in the way that the job's text says.
struct Hand {
    member: usize,
    done: Arc<Done>,
}

#[async_trait]
impl Worker for Hand {
    async fn work(&self, job: &Working) -> Result<(), WorkError> {
        let id = job.job().id.clone();
        self.done.begun.lock().unwrap().push((self.member, id.clone(), job.job().cursor.clone()));
        assert!(job.stands());
        let first = job.job().cursor.is_none();
        match job.job().work.as_str() {
            Some("always fails") => return Err(WorkError("there is no such shard".to_owned())),
            Some("fails") if first => {
                job.reached(json!(17));
                return Err(WorkError("once".to_owned()));
            }
            Some("hangs") if first => {
                job.reached(json!(40));
                std::future::pending::<()>().await;
            }
            _ => tokio::time::sleep(Duration::from_millis(10)).await,
        }
        self.done.finished.lock().unwrap().push((self.member, id));
        Ok(())
    }
}

fn jobs(world: &World, i: usize) -> Jobs {
    let running = world.at(i);
    Jobs::new(running.ledger.clone(), running.leases.clone(), Arc::clone(&running.metrics))
}

fn serve(world: &World, i: usize, done: &Arc<Done>) -> JoinHandle<()> {
    let (jobs, hand) = (jobs(world, i), Hand { member: i, done: Arc::clone(done) });
    tokio::spawn(async move { jobs.serve("shards", &hand).await })
}

async fn emptied(world: &World, i: usize) {
    let (jobs, mut changes) = (jobs(world, i), world.at(i).ledger.watch());
    within("an empty queue", async {
        while !jobs.queue("shards").unwrap().jobs.is_empty() {
            changes.changed().await.unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_share_a_queue_and_each_job_is_done_once() {
    let world = World::start(3, |_, _| Vec::new()).await;
    let done = Arc::<Done>::default();
    for n in 0..24 {
        let work = if n == 5 { json!("fails") } else { json!(n) };
        jobs(&world, n % 3).add("shards", &format!("j{n}"), &work).await.unwrap();
        jobs(&world, 0).add("shards", &format!("j{n}"), &json!("again")).await.expect("it is there already");
    }
    let serving: Vec<_> = (0..3).map(|i| serve(&world, i, &done)).collect();
    emptied(&world, 0).await;
    let events = |event: &str| (0..3).map(|i| world.at(i).metrics.jobs.with_label_values(&[event]).get()).sum::<u64>();
    within("the last one to be counted", async {
        while events("finished") < 24 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    serving.iter().for_each(JoinHandle::abort);
    let finished = done.finished.lock().unwrap().clone();
    let ids: BTreeSet<&str> = finished.iter().map(|(_, id)| id.as_str()).collect();
    assert_eq!((finished.len(), ids.len()), (24, 24), "{finished:?}");
    assert!(finished.iter().map(|(i, _)| *i).collect::<BTreeSet<_>>().len() > 1, "several members: {finished:?}");
    let begun = done.begun.lock().unwrap().clone();
    let again: Vec<_> = begun.iter().filter(|(_, id, _)| id == "j5").map(|(_, _, cursor)| cursor.clone()).collect();
    assert_eq!(again, [None, Some(json!(17))], "a job that was given back goes on at its cursor");
    assert_eq!((events("claimed"), events("finished"), events("given_back")), (25, 24, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_always_fails_is_tried_less_and_less_often_and_stands_in_nobodys_way() {
    let world = World::start(2, |_, _| Vec::new()).await;
    let done = Arc::<Done>::default();
    jobs(&world, 0).add("shards", "bad", &json!("always fails")).await.unwrap();
    for n in 0..6 {
        jobs(&world, 0).add("shards", &format!("j{n}"), &json!(n)).await.unwrap();
    }
    let serving: Vec<_> = (0..2).map(|i| serve(&world, i, &done)).collect();
    tokio::time::sleep(LOOK * 8).await;
    serving.iter().for_each(JoinHandle::abort);
    let tried = done.begun.lock().unwrap().iter().filter(|(_, id, _)| id == "bad").count();
    assert!((2..=4).contains(&tried), "at once, and after 1, 2 and 4 seconds: {tried}");
    assert_eq!(done.finished.lock().unwrap().len(), 6, "the others are done");
    let left = jobs(&world, 1).queue("shards").unwrap().jobs;
    assert_eq!((left.len(), left[0].error.as_deref()), (1, Some("there is no such shard")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_goes_on_at_its_last_cursor_when_its_member_is_killed() {
    let mut world = World::start(3, |_, _| Vec::new()).await;
    let done = Arc::<Done>::default();
    jobs(&world, 0).add("shards", "long", &json!("hangs")).await.unwrap();
    let first = serve(&world, 1, &done);
    // The cursor is written every ten seconds.
    let (queue, mut changes) = (jobs(&world, 2), world.at(2).ledger.watch());
    within("a cursor", async {
        while queue.queue("shards").unwrap().jobs.first().and_then(|job| job.cursor.clone()) != Some(json!(40)) {
            changes.changed().await.unwrap();
        }
    })
    .await;
    let second = serve(&world, 2, &done);
    tokio::time::sleep(LOOK * 2).await;
    assert_eq!(done.begun.lock().unwrap().len(), 1, "nobody else takes it while its member lives");
    first.abort();
    world.kill(1).await;
    emptied(&world, 2).await;
    second.abort();
    assert_eq!(*done.finished.lock().unwrap(), [(2, "long".to_owned())]);
    assert_eq!(done.begun.lock().unwrap()[1], (2, "long".to_owned(), Some(json!(40))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_does_not_live_any_more_lets_go_of_its_job() {
    let world = World::start(3, |_, _| Vec::new()).await;
    let done = Arc::<Done>::default();
    jobs(&world, 0).add("shards", "long", &json!("hangs")).await.unwrap();
    let (cut_off, here) = (serve(&world, 1, &done), jobs(&world, 1));
    within("a beginning", async {
        while done.begun.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    world.cut(1);
    within("the claim to be over", async {
        while here.leases.alive().is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    within("the loss to be counted", async {
        while world.at(1).metrics.jobs.with_label_values(&["lost"]).get() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    cut_off.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_key_is_owned_by_one_living_member() {
    let mut world = World::start(3, |_, _| Vec::new()).await;
    let one_owner =
        |world: &World| (0..50).all(|n| world.alive().filter(|(_, m)| m.leases.owns(&format!("key {n}"))).count() == 1);
    let agree = async |world: &World| {
        within("one owner of each key", async {
            while !one_owner(world) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    };
    for (_, running) in world.alive() {
        let mut leases = running.leases.watch();
        let three = leases.wait_for(|view| view.living(running.leases.now()).count() == 3);
        within("all to be heard", three).await.unwrap();
    }
    agree(&world).await;
    let before: Vec<bool> = (0..50).map(|n| world.at(0).leases.owns(&format!("key {n}"))).collect();
    world.kill(2).await;
    agree(&world).await;
    let after: Vec<bool> = (0..50).map(|n| world.at(0).leases.owns(&format!("key {n}"))).collect();
    assert!(before.iter().zip(&after).all(|(before, after)| !before || *after), "only what the dead one owned moves");
    assert!(after.iter().filter(|o| **o).count() > before.iter().filter(|o| **o).count());
}
