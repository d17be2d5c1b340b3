//! Tasks of the mesh: taken here, kept by their homes.
//!
//! Rule: a client hears of a task only when its home keeps it; who is told that nothing was done can send the request again.
//! Must not know: what a task does, how homes are found.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::failure::Failure;
use super::homes::orders::Held;
use super::homes::submit::{NewWrite, NotDone, Submitted};
use super::homes::{HomeError, Homes, wall};
use super::journal::Sender;
use crate::proto::tasks::home::Work;
use crate::proto::tasks::query::Action;
use crate::proto::tasks::view::{self, Summary};
use crate::proto::tasks::{Filter, Head, Outcome, Status, Subject, TaskError, TaskKind, When};
use crate::telemetry::metrics::Metrics;
use crate::types::{ErrorCode, IndexUid, TaskUid, TraceId};

/// How long a home may take to keep a task.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long the parts of a write may take to be stored by all replicas in sync: longer than an election.
const WRITE_PATIENCE: Duration = Duration::from_secs(15);
/// Between two attempts to have an outcome kept; doubles up to the longest.
const AGAIN: Duration = Duration::from_millis(500);
const AGAIN_MAX: Duration = Duration::from_secs(10);

/// What the client of a write hears.
#[derive(Debug)]
pub struct Accepted {
    /// The task.
    pub summary: Summary,
    /// Of the shard that has the fewest copies in sync: how many, of how many. `None` where no shard is concerned.
    pub copies: Option<(usize, usize)>,
}

impl From<Summary> for Accepted {
    fn from(summary: Summary) -> Self {
        Self { summary, copies: None }
    }
}

/// The service; cheap to clone.
#[derive(Debug, Clone)]
pub struct Tasks {
    homes: Homes,
    sender: Sender,
    metrics: Arc<Metrics>,
}

/// A task that this process carries out and whose home keeps it.
#[derive(Debug)]
pub struct Order {
    uid: TaskUid,
    head: Head,
    held: Held,
    homes: Homes,
    trace: TraceId,
}

impl Tasks {
    /// Over homes, and what brings parts to their shards.
    pub fn new(homes: Homes, sender: Sender, metrics: Arc<Metrics>) -> Self {
        Self { homes, sender, metrics }
    }

    /// Where tasks are kept.
    pub fn homes(&self) -> &Homes {
        &self.homes
    }

    /// A task that is over as it is taken: with an error, or because there is nothing to do.
    ///
    /// # Errors
    /// `miroir_no_quorum` if no home can keep it: nothing was done.
    pub async fn over(
        &self,
        index: Option<&IndexUid>,
        subject: Subject,
        error: Option<(ErrorCode, &str)>,
        custom_metadata: Option<String>,
        trace: TraceId,
    ) -> Result<Summary, Failure> {
        let now = wall();
        let error = error.map(|(code, message)| TaskError::of(code, message));
        let status = if error.is_some() { Status::Failed } else { Status::Succeeded };
        let outcome = Outcome { status, error, changed: 0, matched: 0, started: now, finished: now };
        let head = head(index, subject, Work::Nothing(outcome), custom_metadata);
        let uid = self.homes.next_uid().await?;
        self.homes.take(uid, &head, Instant::now() + PATIENCE, trace).await?;
        Ok(view::summary(uid, &head))
    }

    /// A task that this process is about to carry out. Nobody can cancel it any more.
    ///
    /// # Errors
    /// `miroir_no_quorum` if no home can keep it: nothing was done.
    pub async fn order(&self, index: Option<&IndexUid>, subject: Subject, trace: TraceId) -> Result<Order, Failure> {
        let head = head(index, subject, Work::Order, None);
        let uid = self.homes.next_uid().await?;
        // Entered before anybody hears of it: who does not know an order will never carry it out.
        let held = self.homes.orders().hold(uid);
        let until = Instant::now() + PATIENCE;
        if !self.homes.has_room(&self.sender, uid, until).await {
            return Err(not_done(NotDone::NoHome));
        }
        self.homes.take(uid, &head, until, trace).await?;
        // Who stood still for longer than that may have been given up.
        if Instant::now() > until + PATIENCE || !held.begin() {
            let message = "The task was canceled, or given up, before it was begun. Nothing was done.";
            return Err(Failure::new(ErrorCode::MiroirNoQuorum, message));
        }
        Ok(Order { uid, head, held, homes: self.homes.clone(), trace })
    }

    /// `POST /tasks/cancel` or `DELETE /tasks`: takes the task that does it. `original` is the query as it was sent.
    ///
    /// Dropping the future does not undo it.
    ///
    /// # Errors
    /// `miroir_no_quorum` where nothing was done, `miroir_write_unknown` (with the task) where it may be, now or later;
    /// `payload_too_large`.
    pub async fn sweep(
        &self,
        action: Action,
        filter: Filter,
        original: String,
        deadline: Instant,
        trace: TraceId,
    ) -> Result<Summary, Failure> {
        let subject = match action {
            Action::Cancel => Subject::Cancelation(original),
            Action::Delete => Subject::Deletion(original),
        };
        let head = head(None, subject, Work::Sweep { action, filter }, None);
        let uid = self.homes.next_uid().await?;
        // The task alone does it: once its home has it, nobody may be told that nothing was done.
        if !self.homes.has_room(&self.sender, uid, deadline).await {
            return Err(not_done(NotDone::NoHome));
        }
        match self.homes.take(uid, &head, deadline, trace).await {
            Ok(()) => Ok(view::summary(uid, &head)),
            Err(HomeError::NoAnswer) => {
                let message = format!(
                    "Whether task {uid} is kept is not known. If it is, now or later, it is carried out. Look at it; or send \
                     the request again."
                );
                Err(Failure::Mesh { code: ErrorCode::MiroirWriteUnknown, message, task: Some(uid) })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A write of documents, checked and split.
    ///
    /// Dropping the future does not undo it.
    ///
    /// # Errors
    /// `miroir_no_quorum` where nothing was done, `miroir_write_unknown` (with the task) where something may be,
    /// `miroir_idempotency_key_reused`, `miroir_incomplete` (with the task), `payload_too_large`.
    pub async fn write(&self, write: NewWrite, trace: TraceId) -> Result<Accepted, Failure> {
        let deadline = Instant::now() + WRITE_PATIENCE;
        let kind = write.subject.kind();
        let submitted = self.homes.submit(&self.sender, write, deadline, trace).await;
        self.told(kind, submitted)
    }

    /// A write that is refused by a task that has failed as it is taken; sent again with its key it is the same task.
    ///
    /// # Errors
    /// As for [`Self::write`].
    pub async fn refused(
        &self,
        index: &IndexUid,
        subject: Subject,
        error: (ErrorCode, &str),
        custom_metadata: Option<String>,
        key: Option<(String, [u8; 32])>,
        trace: TraceId,
    ) -> Result<Accepted, Failure> {
        if key.is_none() {
            return Ok(self.over(Some(index), subject, Some(error), custom_metadata, trace).await?.into());
        }
        let (kind, outcome) = (subject.kind(), ended_now(Status::Failed, Some(TaskError::of(error.0, error.1))));
        let head = Head { key, ..head(Some(index), subject, Work::Nothing(outcome), custom_metadata) };
        let submitted = self.homes.submit_over(&self.sender, head, Instant::now() + WRITE_PATIENCE, trace).await;
        self.told(kind, submitted)
    }

    /// The answer that an `Idempotency-Key` alone gives: the task of the same write, sent before and done. `None`: it is to be
    /// written.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// `miroir_no_quorum` where nothing was done, `miroir_idempotency_key_reused`.
    pub async fn before(
        &self,
        index: &IndexUid,
        subject: Subject,
        key: Option<&(String, [u8; 32])>,
        trace: TraceId,
    ) -> Result<Option<Accepted>, Failure> {
        let Some(key) = key else { return Ok(None) };
        let kind = subject.kind();
        // Shown where the task itself is forgotten.
        let head = head(Some(index), subject, Work::Nothing(ended_now(Status::Succeeded, None)), None);
        let known = self.homes.before(key, head, Instant::now() + WRITE_PATIENCE, trace).await;
        let known = known.unwrap_or(Some(Submitted::NotDone(NotDone::NoHome)));
        known.map(|submitted| self.told(kind, submitted)).transpose()
    }

    fn told(&self, kind: TaskKind, submitted: Submitted) -> Result<Accepted, Failure> {
        let outcome = match &submitted {
            Submitted::Taken { .. } | Submitted::Before(..) => "accepted",
            Submitted::NotDone(NotDone::TooLarge) | Submitted::KeyReused | Submitted::Half(_) => "failed",
            Submitted::NotDone(NotDone::NoQuorum | NotDone::Busy | NotDone::NoHome) => "no_quorum",
            Submitted::Unknown(_) => "unknown",
        };
        self.metrics.writes.with_label_values(&[kind.as_str(), outcome]).inc();
        match submitted {
            Submitted::Taken { uid, head, in_sync, copies } => {
                let copies = (copies > 0).then_some((in_sync, copies));
                Ok(Accepted { summary: view::summary(uid, &head), copies })
            }
            Submitted::Before(uid, head) => Ok(view::summary(uid, &head).into()),
            Submitted::Half(uid) => {
                let message = format!(
                    "A write with this `Idempotency-Key` was sent before as task {uid}: a part of it was applied, and the \
                     rest never will be. What it does depends on the documents that are there, so it is not done again. Look \
                     at the task, and send what is still wanted under a new key."
                );
                Err(Failure::Mesh { code: ErrorCode::MiroirIncomplete, message, task: Some(uid) })
            }
            Submitted::KeyReused => {
                let message = "The `Idempotency-Key` was used before with another body. Nothing was done; take a new key for \
                               a new request.";
                Err(Failure::new(ErrorCode::MiroirIdempotencyKeyReused, message))
            }
            Submitted::NotDone(why) => Err(not_done(why)),
            Submitted::Unknown(uid) => {
                let message = format!(
                    "Whether the write is stored by all replicas is not known. Look at task {uid}, which will tell; or send \
                     the write again."
                );
                Err(Failure::Mesh { code: ErrorCode::MiroirWriteUnknown, message, task: Some(uid) })
            }
        }
    }
}

fn not_done(why: NotDone) -> Failure {
    let (code, message) = match why {
        NotDone::TooLarge => (ErrorCode::PayloadTooLarge, "A document is larger than the mesh can store."),
        NotDone::NoQuorum => (
            ErrorCode::MiroirNoQuorum,
            "Too few replicas of a shard are in sync, or no primary of it can be reached. Nothing was done; send the write again.",
        ),
        NotDone::Busy => (
            ErrorCode::MiroirNoQuorum,
            "As many writes are under way as may be, because the nodes index more slowly than documents come. Nothing was \
             done; send the write again later.",
        ),
        NotDone::NoHome => (
            ErrorCode::MiroirNoQuorum,
            "The members that would keep the task can't be reached, or have no room for it. Nothing was done; send the write again.",
        ),
    };
    Failure::new(code, message)
}

fn head(index: Option<&IndexUid>, subject: Subject, work: Work, custom_metadata: Option<String>) -> Head {
    let index_uid = index.map(|uid| uid.as_str().to_owned());
    Head { index_uid, subject, work, enqueued: wall(), custom_metadata, key: None }
}

impl Order {
    /// Its number.
    pub fn uid(&self) -> TaskUid {
        self.uid
    }

    /// Meilisearch's type of it.
    pub fn kind(&self) -> TaskKind {
        self.head.subject.kind()
    }

    /// What the client hears.
    pub fn summary(&self) -> Summary {
        view::summary(self.uid, &self.head)
    }

    /// It is being carried out since then. Told to its home beside all else, once: only for those who look.
    pub fn begun(&self, when: When) {
        let (uid, homes, trace) = (self.uid, self.homes.clone(), self.trace);
        tokio::spawn(async move { homes.begun(uid, when, Instant::now() + PATIENCE, trace).await });
    }

    /// What became of it. Told to its home beside all else, until that keeps it.
    pub fn end(self, outcome: Outcome) {
        tokio::spawn(self.ended(outcome));
    }

    /// The same, waited for.
    pub async fn ended(self, outcome: Outcome) {
        let Self { uid, held, homes, trace, .. } = self;
        let mut pause = AGAIN;
        loop {
            match homes.ended(uid, outcome.clone(), Instant::now() + PATIENCE, trace).await {
                Ok(()) => break,
                Err(error @ (HomeError::Refused | HomeError::Other)) => {
                    tracing::error!(task = %uid, %error, "the outcome of a task can't be kept");
                    break;
                }
                Err(error) => tracing::debug!(task = %uid, %error, "the outcome of a task is told again"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(AGAIN_MAX);
        }
        // Known until then: a home that asks before must not hear that nobody has it.
        drop(held);
    }

    /// It failed before anything of it was under way, or nothing can be known of it any more.
    pub fn fail(self, code: ErrorCode, message: &str) {
        let outcome = ended_now(Status::Failed, Some(TaskError::of(code, message)));
        self.end(outcome);
    }
}

/// An end at this moment.
pub fn ended_now(status: Status, error: Option<TaskError>) -> Outcome {
    let now = wall();
    Outcome { status, error, changed: 0, matched: 0, started: now, finished: now }
}

/// Meilisearch's error object.
pub fn error_object(code: ErrorCode, message: &str) -> Value {
    json!({"message": message, "code": code.as_str(), "type": code.kind().as_str(), "link": code.link()})
}
