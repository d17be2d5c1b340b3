//! Searches that go on while faults come and go; each answer is judged by the faults that there were.
//!
//! Rule: a search is answered, wholly if the member asked reaches a copy of every shard, and otherwise says which shards
//! it lacks; it may be wrong about that only while members have not yet noticed a change. Must not know: scenarios.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use hyper::Method;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::faults::{Picture, may_miss};
use super::members::{INDEX, Members, Pictures, Seen, degraded};
use crate::mesh::Client;

/// Longer than it takes until a suspect is known.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);
const FAULTS_KEPT: usize = 5;
/// A step is not over before each member asked has had so many.
const SEARCHES_MIN: usize = 10;
const ENOUGH_PATIENCE: Duration = Duration::from_secs(20);

/// What a whole answer is.
#[derive(Clone)]
pub struct Expected {
    /// Hits.
    pub total: u64,
    /// Who holds each shard.
    pub copies: Arc<Vec<Vec<usize>>>,
}

/// How searches went.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    /// How many were answered as they must be.
    pub done: usize,
    /// How many of these said that shards are missing.
    pub partial: usize,
    /// The longest.
    pub slowest: Duration,
    /// How many were not answered as they must be.
    pub wrong: usize,
    /// The first of these.
    pub faults: Vec<String>,
}

impl Tally {
    /// Adds a search: how many shards were missing, or what was wrong.
    fn add(&mut self, name: &str, ended: anyhow::Result<usize>, took: Duration) {
        self.slowest = self.slowest.max(took);
        match ended {
            Ok(missing) => {
                self.done += 1;
                self.partial += usize::from(missing > 0);
            }
            Err(e) => {
                self.wrong += 1;
                if self.faults.len() < FAULTS_KEPT {
                    self.faults.push(format!("a search at {name}: {e:#}"));
                }
            }
        }
    }
}

/// Searches under way.
pub struct Searches {
    tasks: JoinSet<()>,
    tallies: Vec<Arc<Mutex<Tally>>>,
}

impl Searches {
    /// Searches at each of `asked`, one after the other, until it is told to end.
    pub fn begin(members: &Members, asked: &[usize], expected: &Expected) -> Self {
        let mut searches = Self { tasks: JoinSet::new(), tallies: Vec::new() };
        for member in asked {
            let tally = Arc::new(Mutex::new(Tally::default()));
            searches.tallies.push(Arc::clone(&tally));
            let mut one = One {
                client: members.client(*member),
                member: *member,
                pictures: members.pictures(),
                expected: expected.clone(),
            };
            let name = members.name(*member).to_owned();
            searches.tasks.spawn(async move {
                loop {
                    let began = Instant::now();
                    let ended = one.search().await;
                    tally.lock().unwrap_or_else(PoisonError::into_inner).add(&name, ended, began.elapsed());
                    sleep(PAUSE).await;
                }
            });
        }
        searches
    }

    /// Ends them, when each member asked has answered some.
    ///
    /// # Errors
    /// Some were not answered as they must be, or a member answers hardly any.
    pub async fn end(mut self) -> anyhow::Result<Tally> {
        let began = Instant::now();
        let read = |tally: &Arc<Mutex<Tally>>| tally.lock().unwrap_or_else(PoisonError::into_inner).clone();
        while let Some(few) = self.tallies.iter().map(read).find(|tally| tally.done + tally.wrong < SEARCHES_MIN) {
            ensure!(began.elapsed() < ENOUGH_PATIENCE, "searches stand still: {} at one member", few.done + few.wrong);
            sleep(PAUSE).await;
        }
        self.tasks.shutdown().await;
        let mut all = Tally::default();
        for tally in self.tallies.iter().map(read) {
            all.done += tally.done;
            all.partial += tally.partial;
            all.slowest = all.slowest.max(tally.slowest);
            all.wrong += tally.wrong;
            all.faults.extend(tally.faults);
        }
        all.faults.truncate(FAULTS_KEPT);
        if all.wrong > 0 {
            bail!("{} of {} searches went wrong:\n{}", all.wrong, all.wrong + all.done, all.faults.join("\n"));
        }
        Ok(all)
    }
}

/// One who searches.
struct One {
    client: Client,
    member: usize,
    pictures: Pictures,
    expected: Expected,
}

impl One {
    /// One search; how many shards were missing.
    async fn search(&mut self) -> anyhow::Result<usize> {
        let sent = self.pictures.read();
        let (total, missing) = search(&mut self.client).await?;
        let answered = self.pictures.read();
        judge(self.member, total, &missing, &self.expected, &sent, &answered)?;
        Ok(missing.len())
    }
}

/// Searches once: hits in all, and shards that are missing.
pub async fn search(client: &mut Client) -> anyhow::Result<(u64, BTreeSet<usize>)> {
    let path = format!("/indexes/{INDEX}/search");
    let body = Bytes::from(json!({ "q": "library", "page": 1, "hitsPerPage": 5 }).to_string());
    let answer = client.send(Method::POST, &path, "application/json", body, PATIENCE).await?;
    let missing = degraded(&answer)?;
    let found = answer.success()?.json()?;
    Ok((found["totalHits"].as_u64().context("expected totalHits")?, missing))
}

fn judge(
    member: usize,
    total: u64,
    missing: &BTreeSet<usize>,
    expected: &Expected,
    sent: &Seen,
    answered: &Seen,
) -> anyhow::Result<()> {
    ensure!(!missing.is_empty() || total == expected.total, "{total} hits, not {}", expected.total);
    ensure!(total <= expected.total, "{total} hits, more than there are");
    let pictures: Vec<&Picture> =
        [sent, answered].into_iter().flat_map(|seen| seen.before.iter().chain([&seen.now])).collect();
    let allowed = may_miss(&pictures, member, &expected.copies);
    ensure!(missing.is_subset(&allowed), "shards {missing:?} are missing, where at most {allowed:?} can be");
    if sent == answered && sent.before.is_empty() {
        ensure!(*missing == allowed, "shards {missing:?} are missing, where it must be {allowed:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::faults::Faults;
    use super::*;

    #[test]
    fn answers_are_judged_by_the_faults_that_there_were() {
        let expected = Expected { total: 100, copies: Arc::new(vec![vec![0, 1], vec![1, 2], vec![2, 0]]) };
        let cut = Picture { faults: Faults::none().between(&[0], &[1, 2]), ..Picture::default() };
        let whole = Seen::default();
        let unnoticed = Seen { now: cut.clone(), before: vec![Picture::default()] };
        let noticed = Seen { now: cut, before: vec![] };
        let is_right = |member, total, missing: &[usize], sent: &Seen, answered: &Seen| {
            let missing = missing.iter().copied().collect();
            judge(member, total, &missing, &expected, sent, answered).is_ok()
        };
        assert!(is_right(0, 100, &[], &whole, &whole));
        assert!(!is_right(0, 99, &[], &whole, &whole), "a hit is lost");
        assert!(!is_right(0, 60, &[1], &whole, &whole), "partial without a reason");
        assert!(is_right(0, 60, &[1], &noticed, &noticed));
        assert!(!is_right(0, 100, &[], &noticed, &noticed), "as if it had asked through a cut");
        assert!(is_right(0, 60, &[1], &whole, &unnoticed) && is_right(0, 100, &[], &whole, &unnoticed));
        assert!(is_right(0, 100, &[], &unnoticed, &noticed));
        assert!(!is_right(0, 60, &[0], &noticed, &noticed), "a copy of its own");
        assert!(is_right(1, 100, &[], &noticed, &noticed));
        assert!(!is_right(1, 60, &[2], &noticed, &noticed), "a copy that is reached");
        assert!(!is_right(0, 101, &[1], &noticed, &noticed));
    }
}
