//! Long work that several members share: a queue of jobs in the ledger, of which each member takes one after another.
//!
//! Rule: a job is worked on only while the life under which it was claimed stands, and goes on elsewhere at its last cursor only
//! after that life is over for good. What is done between two cursors may be done twice. Must not know: what a job is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::Value as Json;
use tokio::sync::watch;

use super::leases::LeaseHandle;
use super::ledger::{ChangeRequest, LedgerHandle};
use crate::proto::jobs::{self, CURSOR_EVERY, JobError, Pick};
use crate::proto::ledger::Answer;
use crate::telemetry::metrics::Metrics;
use crate::types::{Claim, Job, JobsRecord, RecordKey, Versioned};

/// How long one change or read of the ledger may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Attempts against rivals; each lost one means that another change was made.
const ATTEMPTS: usize = 16;
/// How often a queue is looked at without a sign of change, and the pause after a failure.
const LOOK: Duration = Duration::from_secs(1);
/// How often a member that works looks whether its claim stands; what it does asks by itself.
const STANDS_LOOK: Duration = Duration::from_millis(200);

/// Why a queue was not changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JobsError {
    /// The queue does not allow it.
    #[error(transparent)]
    Refused(#[from] JobError),
    /// The queue's name is no part of a key, or another version has written what this one can't read.
    #[error("the queue {queue} can't be used: {reason}")]
    Queue {
        /// The queue.
        queue: String,
        /// What is wrong.
        reason: String,
    },
    /// No majority answers, or too many rivals: it may have been done, and can be repeated.
    #[error("the queue {queue} can't be changed now")]
    Unavailable {
        /// The queue.
        queue: String,
    },
}

/// Why a worker gave a job back; for people.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct WorkError(pub String);

/// Carries out jobs of one queue.
#[async_trait]
pub trait Worker: Send + Sync {
    /// Works on a job from its cursor on. Dropped at any await when the claim is over.
    ///
    /// # Errors
    /// [`WorkError`]: the job is given back where it is, and rests for a while that gets longer each time that it got no further.
    async fn work(&self, job: &Working) -> Result<(), WorkError>;
}

/// A job that this member has claimed.
#[derive(Debug)]
pub struct Working {
    job: Job,
    claim: Claim,
    leases: LeaseHandle,
    cursor: watch::Sender<Option<Json>>,
}

impl Working {
    /// The job as it was claimed, with the cursor at which to begin.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// Whether the claim stands at this instant; asked before every effect that must not meet another worker's.
    pub fn stands(&self) -> bool {
        self.leases.alive().as_ref() == Some(&self.claim)
    }

    /// Says how far the work is: everything up to here need not be done again. Recorded now and then.
    pub fn reached(&self, cursor: Json) {
        self.cursor.send_replace(Some(cursor));
    }
}

/// By queue and job: how often, and since when so often.
type GivenBack = BTreeMap<(String, String), (u32, Instant)>;

/// Queues of jobs; cheap to clone.
#[derive(Debug, Clone)]
pub struct Jobs {
    ledger: LedgerHandle,
    leases: LeaseHandle,
    metrics: Arc<Metrics>,
    // What this process works on: a claim of its own that is not here was made by a change whose answer did not come.
    working: Arc<Mutex<BTreeSet<(String, String)>>>,
    // How often each job had been given back when this process saw it last, and since when so often.
    given_back: Arc<Mutex<GivenBack>>,
    // One claim at a time, so that a new one is noted there before anybody looks for those that are not.
    claiming: Arc<tokio::sync::Mutex<()>>,
}

impl Jobs {
    /// Queues in this ledger; claims live as long as this member's life in `leases`.
    pub fn new(ledger: LedgerHandle, leases: LeaseHandle, metrics: Arc<Metrics>) -> Self {
        let (working, given_back, claiming) = Default::default();
        Self { ledger, leases, metrics, working, given_back, claiming }
    }

    /// Adds a job; one of the same id that is there already stays as it is.
    ///
    /// # Errors
    /// [`JobsError`].
    pub async fn add(&self, queue: &str, id: &str, work: &Json) -> Result<(), JobsError> {
        self.change(queue, |record| jobs::add(record, id, work.clone())).await
    }

    /// The queue as this member's copy has it.
    ///
    /// # Errors
    /// [`JobsError::Queue`].
    pub fn queue(&self, queue: &str) -> Result<JobsRecord, JobsError> {
        read(queue, self.copy(queue)?.as_ref()).map(|(_, record)| record)
    }

    /// Takes one job of the queue after another, until the future is dropped.
    pub async fn serve(&self, queue: &str, worker: &dyn Worker) {
        let mut changes = self.ledger.watch();
        loop {
            changes.mark_unchanged();
            match self.claim(queue).await {
                Ok(Some((job, claim, _here))) => {
                    self.metrics.jobs.with_label_values(&["claimed"]).inc();
                    self.work(queue, job, claim, worker).await;
                    continue;
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(queue, %error, "no job could be claimed"),
            }
            if let Ok(Err(_)) = tokio::time::timeout(LOOK, changes.changed()).await {
                // Without the ledger's driver the process is about to end.
                return std::future::pending().await;
            }
        }
    }

    /// Claims the first job that is free, or finds one that was claimed without an answer; `None` if there is none, or this member can't show that it lives.
    async fn claim(&self, queue: &str) -> Result<Option<(Job, Claim, Here<'_>)>, JobsError> {
        let _one = self.claiming.lock().await;
        let mut copy = self.copy(queue)?;
        for _ in 0..ATTEMPTS {
            let Some(me) = self.leases.alive() else { return Ok(None) };
            let (version, record) = read(queue, copy.as_ref())?;
            let left = record.jobs.iter().find(|job| job.claim.as_ref() == Some(&me) && !self.works_on(queue, &job.id));
            if let Some(job) = left {
                return Ok(Some((job.clone(), me, Here::enter(self, queue, &job.id))));
            }
            let mut lapses = BTreeMap::new();
            for claim in record.jobs.iter().filter_map(|job| job.claim.as_ref()) {
                let unavailable = |_| JobsError::Unavailable { queue: queue.to_owned() };
                lapses.insert(key_of(claim), self.leases.lapse(claim).await.map_err(unavailable)?);
            }
            let resting = self.resting(queue, &record);
            let picked = jobs::pick(&record, &me, |job| resting.contains(&job.id), |claim| lapses[&key_of(claim)]);
            // Those that only seem to be over have been asked about.
            let Pick::Claim { id, queue: claimed } = picked else { return Ok(None) };
            match self.write(queue, version, &claimed).await? {
                Written::Done => {
                    let job = claimed.jobs.into_iter().find(|job| job.id == id);
                    return Ok(job.map(|job| (job, me, Here::enter(self, queue, &id))));
                }
                Written::Not { current, .. } => copy = current,
            }
        }
        Err(JobsError::Unavailable { queue: queue.to_owned() })
    }

    /// The jobs of the queue that were given back too lately; counted from when this process saw it.
    fn resting(&self, queue: &str, record: &JobsRecord) -> BTreeSet<String> {
        let now = Instant::now();
        let mut seen = self.given_back.lock().unwrap_or_else(PoisonError::into_inner);
        let failed: Vec<&Job> = record.jobs.iter().filter(|job| job.failures > 0).collect();
        seen.retain(|(of, id), _| of != queue || failed.iter().any(|job| job.id == *id));
        let rests = |job: &&&Job| {
            let at = seen.entry((queue.to_owned(), job.id.clone())).or_insert((job.failures, now));
            if at.0 != job.failures {
                *at = (job.failures, now);
            }
            now.duration_since(at.1) < jobs::rest(job.failures)
        };
        failed.iter().filter(rests).map(|job| job.id.clone()).collect()
    }

    /// Works on a claimed job as long as the claim stands.
    async fn work(&self, queue: &str, job: Job, claim: Claim, worker: &dyn Worker) {
        let id = job.id.clone();
        let (cursor, reached) = watch::channel(job.cursor.clone());
        let working = Working { job, claim: claim.clone(), leases: self.leases.clone(), cursor };
        let event = tokio::select! {
            event = self.carry_on(queue, &id, &working, reached, worker) => event,
            () = self.lost(&claim) => {
                tracing::warn!(queue, job = id, "the claim of a job is over; it goes on at its last cursor");
                "lost"
            }
        };
        self.metrics.jobs.with_label_values(&[event]).inc();
    }

    async fn carry_on(
        &self,
        queue: &str,
        id: &str,
        working: &Working,
        mut reached: watch::Receiver<Option<Json>>,
        worker: &dyn Worker,
    ) -> &'static str {
        let me = &working.claim;
        let mut work = std::pin::pin!(worker.work(working));
        let mut every = tokio::time::interval_at(tokio::time::Instant::now() + CURSOR_EVERY, CURSOR_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let done = loop {
            tokio::select! {
                done = &mut work => break done,
                _ = every.tick() => {
                    if let Err(error) = self.advance(queue, id, me, &mut reached).await {
                        tracing::debug!(queue, job = id, %error, "how far a job is could not be recorded");
                    }
                }
            }
        };
        if let Err(error) = &done {
            tracing::warn!(queue, job = id, %error, "a job is given back");
        }
        // Tried until it is recorded: the claim stands, so nobody else takes the job meanwhile.
        loop {
            let recorded = match &done {
                Ok(()) => self.change(queue, |record| once(jobs::finish(record, id, me))).await,
                Err(why) => match self.advance(queue, id, me, &mut reached).await {
                    Ok(()) => {
                        let why = why.to_string();
                        self.change(queue, |record| once(jobs::give_back(record, id, me, &why))).await
                    }
                    failed => failed,
                },
            };
            match recorded {
                Ok(()) => return if done.is_ok() { "finished" } else { "given_back" },
                // Somebody has taken it out of the queue, or the claim was not this one.
                Err(JobsError::Refused(error)) => {
                    tracing::warn!(queue, job = id, %error, "the end of a job could not be recorded");
                    return "lost";
                }
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    async fn advance(
        &self,
        queue: &str,
        id: &str,
        me: &Claim,
        reached: &mut watch::Receiver<Option<Json>>,
    ) -> Result<(), JobsError> {
        if !reached.has_changed().unwrap_or(true) {
            return Ok(());
        }
        let Some(cursor) = reached.borrow_and_update().clone() else { return Ok(()) };
        let done = self.change(queue, |record| jobs::advance(record, id, me, cursor.clone()).map(Some)).await;
        if done.is_err() {
            reached.mark_changed();
        }
        done
    }

    /// Ends when this member does not live under the claim any more.
    async fn lost(&self, claim: &Claim) {
        let mut changes = self.leases.watch();
        while self.leases.alive().as_ref() == Some(claim) {
            // A hold also ends by the clock, without a change.
            if let Ok(Err(_)) = tokio::time::timeout(STANDS_LOOK, changes.changed()).await {
                return;
            }
        }
    }

    /// Changes the queue by `edit`, against the newest version; `None` is "nothing to do".
    async fn change(
        &self,
        queue: &str,
        edit: impl Fn(&JobsRecord) -> Result<Option<JobsRecord>, JobError>,
    ) -> Result<(), JobsError> {
        let mut copy = self.copy(queue)?;
        let mut perhaps_done = false;
        for _ in 0..ATTEMPTS {
            let (version, record) = read(queue, copy.as_ref())?;
            let new = match edit(&record) {
                Ok(Some(new)) => new,
                Ok(None) => return Ok(()),
                // An earlier attempt of this very change has taken effect.
                Err(JobError::NotFound { .. } | JobError::NotClaimed { .. }) if perhaps_done => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            match self.write(queue, version, &new).await? {
                Written::Done => return Ok(()),
                Written::Not { current, perhaps } => {
                    copy = current;
                    perhaps_done |= perhaps;
                }
            }
        }
        Err(JobsError::Unavailable { queue: queue.to_owned() })
    }

    async fn write(&self, queue: &str, expected: u64, record: &JobsRecord) -> Result<Written, JobsError> {
        let unavailable = || JobsError::Unavailable { queue: queue.to_owned() };
        let (key, value) = (record_key(queue)?, serde_json::to_string(record).expect("jobs are always JSON").into());
        let change = ChangeRequest { key: key.clone(), expected, value: Arc::clone(&value), quiet: false };
        let (current, perhaps) = match self.ledger.change(change, PATIENCE).await {
            Answer::Changed { .. } => return Ok(Written::Done),
            Answer::Conflict { current, maybe_own } => (current, maybe_own),
            // Read before anything else is done: it may have been this change's own success.
            Answer::Unknown => match self.ledger.read(key, PATIENCE).await {
                Answer::Read { current } => (current, true),
                _ => return Err(unavailable()),
            },
            _ => return Err(unavailable()),
        };
        let own = perhaps && current.as_ref().is_some_and(|now| now.version == expected + 1 && now.value == value);
        Ok(if own { Written::Done } else { Written::Not { current, perhaps } })
    }

    fn copy(&self, queue: &str) -> Result<Option<Versioned>, JobsError> {
        Ok(self.ledger.copies().get(&record_key(queue)?).cloned())
    }

    fn here(&self) -> MutexGuard<'_, BTreeSet<(String, String)>> {
        self.working.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn works_on(&self, queue: &str, id: &str) -> bool {
        self.here().contains(&(queue.to_owned(), id.to_owned()))
    }
}

/// Notes what this process works on, until it is dropped.
struct Here<'a> {
    jobs: &'a Jobs,
    at: (String, String),
}

impl<'a> Here<'a> {
    fn enter(jobs: &'a Jobs, queue: &str, id: &str) -> Self {
        let at = (queue.to_owned(), id.to_owned());
        jobs.here().insert(at.clone());
        Self { jobs, at }
    }
}

impl Drop for Here<'_> {
    fn drop(&mut self) {
        self.jobs.here().remove(&self.at);
    }
}

fn once(changed: Result<JobsRecord, JobError>) -> Result<Option<JobsRecord>, JobError> {
    changed.map(Some)
}

fn key_of(claim: &Claim) -> (String, u64, u64) {
    (claim.holder.member.to_string(), claim.holder.start, claim.epoch.number())
}

fn record_key(queue: &str) -> Result<RecordKey, JobsError> {
    RecordKey::new(jobs::record_key(queue))
        .map_err(|e| JobsError::Queue { queue: queue.to_owned(), reason: e.to_string() })
}

fn read(queue: &str, copy: Option<&Versioned>) -> Result<(u64, JobsRecord), JobsError> {
    let Some(copy) = copy else { return Ok((0, JobsRecord::default())) };
    let record = serde_json::from_str(&copy.value);
    let record = record.map_err(|e| JobsError::Queue { queue: queue.to_owned(), reason: e.to_string() })?;
    Ok((copy.version, record))
}

/// What became of a change of a queue.
enum Written {
    Done,
    /// It was not made; `current` stands there.
    Not {
        current: Option<Versioned>,
        /// It may have been made before that.
        perhaps: bool,
    },
}

#[cfg(test)]
#[path = "jobs_tests.rs"]
mod tests;
