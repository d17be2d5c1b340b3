//! Mesh tasks: one number for the client, one task on every node that took a part.
//!
//! The member that took the request is the task's home; its position in the mesh's list is the id modulo their number, so
//! everybody knows whom to ask. A task is stored before anything is sent, and again with its parts before the client hears
//! of it. Must not know: what the parts do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cluster::Cluster;
use super::failure::Failure;
use super::members::Members;
use crate::net::Call;
use crate::proto::document::error_text;
use crate::rt::clock;
use crate::store::Store;
use crate::store::tasks::StoredTask;
use crate::telemetry::metrics::Metrics;
use crate::types::TraceId;
use crate::types::{ErrorCode, IndexUid, MemberId, PhysicalIndex, TaskUid};
use crate::wire::verbs::{NodeQuestion, Reply, Request};

/// How long a member is asked for the state of its parts.
const ASK: Duration = Duration::from_secs(5);
/// Tasks read from the store at once.
const PAGE: u32 = 100;
/// Tasks that one question names: they stand in the path of the node's request.
const QUESTION_MAX: usize = 500;
/// Time between two looks at all open tasks.
const SWEEP: Duration = Duration::from_secs(2);

/// What the task is about; the numbers that the mesh itself knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// Documents: how many were received, and how many different ids they have.
    Documents {
        /// All documents of the request.
        received: usize,
        /// Different ids among them.
        distinct: usize,
    },
    /// Ids to delete.
    DeleteIds {
        /// Ids of the request.
        provided: usize,
    },
    /// Documents to delete by this filter, as the client sent it.
    DeleteFilter {
        /// The filter's JSON text.
        original_filter: String,
    },
    /// All documents.
    DeleteAll,
    /// Settings, as the client sent them.
    Settings(Value),
    /// A new index.
    IndexCreation {
        /// Its primary key, if given.
        primary_key: Option<String>,
    },
    /// An index to delete.
    IndexDeletion,
    /// A new primary key.
    IndexUpdate {
        /// The key.
        primary_key: Option<String>,
    },
}

impl Subject {
    /// Meilisearch's `type`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Documents { .. } => "documentAdditionOrUpdate",
            Self::DeleteIds { .. } | Self::DeleteFilter { .. } | Self::DeleteAll => "documentDeletion",
            Self::Settings(_) => "settingsUpdate",
            Self::IndexCreation { .. } => "indexCreation",
            Self::IndexDeletion => "indexDeletion",
            Self::IndexUpdate { .. } => "indexUpdate",
        }
    }

    /// Meilisearch's `details`. A task that failed counts what some nodes have done all the same.
    fn details(&self, outcome: &Outcome) -> Value {
        let ended = |n: u64| if outcome.status.ended() { json!(n) } else { Value::Null };
        let deleted = ended(outcome.deleted);
        match self {
            Self::Documents { received, distinct } => {
                let indexed = match outcome.status {
                    Status::Succeeded => *distinct as u64,
                    _ => outcome.indexed,
                };
                json!({"receivedDocuments": received, "indexedDocuments": ended(indexed)})
            }
            Self::DeleteIds { provided } => {
                json!({"providedIds": provided, "deletedDocuments": deleted, "originalFilter": null})
            }
            Self::DeleteFilter { original_filter } => {
                json!({"providedIds": 0, "deletedDocuments": deleted, "originalFilter": original_filter})
            }
            Self::DeleteAll | Self::IndexDeletion => json!({"deletedDocuments": deleted}),
            Self::Settings(sent) => sent.clone(),
            Self::IndexCreation { primary_key } | Self::IndexUpdate { primary_key } => {
                json!({"primaryKey": primary_key})
            }
        }
    }
}

/// Meilisearch's `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nobody has begun.
    Enqueued,
    /// Some node works on it, or some are done and others not.
    Processing,
    /// Every node's part has succeeded.
    Succeeded,
    /// Some part has failed, and all have ended.
    Failed,
    /// Some part was canceled on its node, and all have ended.
    Canceled,
}

impl Status {
    fn ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Canceled)
    }
}

/// A part: the task of one member's node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Whose node.
    pub member: MemberId,
    /// The node's own task uid.
    pub task: u32,
}

/// What is stored of a task.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Body {
    enqueued_at: String,
    subject: Subject,
    physical: Option<PhysicalIndex>,
    custom_metadata: Option<String>,
    /// Copies of each document among the nodes; their counts are divided by it.
    copies: u64,
    /// `None` until every part has been taken.
    parts: Option<Vec<Part>>,
    outcome: Option<Outcome>,
}

/// The state of a task, worked out from its parts.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Outcome {
    status: Status,
    error: Option<Value>,
    started_at: Option<String>,
    finished_at: Option<String>,
    // What the nodes counted, each document once.
    deleted: u64,
    #[serde(default)]
    indexed: u64,
}

impl Outcome {
    fn waiting() -> Self {
        Self { status: Status::Enqueued, error: None, started_at: None, finished_at: None, deleted: 0, indexed: 0 }
    }

    fn failed(error: Value) -> Self {
        let now = Some(clock::now_rfc3339());
        Self {
            status: Status::Failed,
            error: Some(error),
            started_at: now.clone(),
            finished_at: now,
            ..Self::waiting()
        }
    }
}

/// A task that has been stored but not sent.
#[derive(Debug, Clone)]
pub struct NewTask {
    /// Its number.
    pub uid: TaskUid,
    index_uid: Option<String>,
    body: Body,
}

/// What the client of a write gets: Meilisearch's five fields.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// The task's number.
    pub task_uid: TaskUid,
    /// The client's name of the index.
    pub index_uid: Option<String>,
    /// Always `enqueued`.
    pub status: Status,
    /// Meilisearch's type.
    pub r#type: &'static str,
    /// RFC 3339.
    pub enqueued_at: String,
    /// What the client attached, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom_metadata: Option<String>,
}

/// A node's task, as far as it matters here.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeTask {
    uid: u32,
    status: Status,
    error: Option<Value>,
    started_at: Option<String>,
    finished_at: Option<String>,
    details: Option<NodeDetails>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeDetails {
    deleted_documents: Option<u64>,
    indexed_documents: Option<u64>,
}

/// The service; cheap to clone.
#[derive(Debug, Clone)]
pub struct Tasks {
    store: Store,
    cluster: Cluster,
    members: Members,
}

impl Tasks {
    /// The tasks of this member's store.
    pub fn new(store: Store, cluster: Cluster, members: Members) -> Self {
        Self { store, cluster, members }
    }

    /// Stores a new task, before anything of it is sent.
    ///
    /// # Errors
    /// A failure of the store: nothing has been done then.
    pub async fn begin(
        &self,
        index: Option<&IndexUid>,
        physical: Option<&PhysicalIndex>,
        subject: Subject,
        copies: usize,
        custom_metadata: Option<String>,
    ) -> Result<NewTask, Failure> {
        let topology = self.cluster.topology();
        let index_uid = index.map(|i| i.as_str().to_owned());
        let kind = subject.kind().to_owned();
        let body = Body {
            enqueued_at: clock::now_rfc3339(),
            subject,
            physical: physical.cloned(),
            custom_metadata,
            copies: copies.max(1) as u64,
            parts: None,
            outcome: None,
        };
        let Some(position) = topology.position() else {
            let message = "This member does not belong to the mesh. Nothing was done.";
            return Err(Failure::new(ErrorCode::MiroirNoQuorum, message));
        };
        let (position, members) = (position as u32, topology.members.len() as u32);
        let uid = self.store.new_task(position, members, index_uid.clone(), kind, encode(&body)?).await?;
        Ok(NewTask { uid, index_uid, body })
    }

    /// Stores that every part has been taken; only then may the client hear of success.
    ///
    /// # Errors
    /// A failure of the store.
    pub async fn sent(&self, mut task: NewTask, parts: Vec<Part>) -> Result<Summary, Failure> {
        let summary = task.summary();
        if parts.is_empty() {
            // Nothing to wait for: an empty list of documents, say.
            let now = Some(clock::now_rfc3339());
            task.body.outcome = Some(Outcome {
                status: Status::Succeeded,
                started_at: now.clone(),
                finished_at: now,
                ..Outcome::waiting()
            });
        }
        task.body.parts = Some(parts);
        self.store.put_task(task.uid, task.body.outcome.is_some(), encode(&task.body)?).await?;
        Ok(summary)
    }

    /// Ends a task in failure; nothing of it is under way.
    ///
    /// # Errors
    /// A failure of the store.
    pub async fn fail(&self, mut task: NewTask, code: ErrorCode, message: &str) -> Result<Summary, Failure> {
        let summary = task.summary();
        task.body.outcome = Some(Outcome::failed(error_object(code, message)));
        self.store.put_task(task.uid, true, encode(&task.body)?).await?;
        Ok(summary)
    }

    /// A task of the mesh, as JSON; `None` if there is none of that number.
    ///
    /// # Errors
    /// `miroir_no_quorum` if the task's home can't be asked now.
    pub async fn task(&self, uid: TaskUid, trace: TraceId) -> Result<Option<Bytes>, Failure> {
        let topology = self.cluster.topology();
        let Some(at) = (uid.0 as usize).checked_rem(topology.members.len()) else { return Ok(None) };
        let home = &topology.members[at].id;
        if let Some(task) = self.task_of(home, uid, trace).await? {
            return Ok(Some(task));
        }
        // The list may have been another when the number was given; then any member may keep it.
        for member in topology.ids().filter(|m| *m != home && (*m == self.cluster.own() || self.cluster.alive(m))) {
            if let Ok(Some(task)) = self.task_of(member, uid, trace).await {
                return Ok(Some(task));
            }
        }
        Ok(None)
    }

    /// What one member keeps of a task.
    async fn task_of(&self, home: &MemberId, uid: TaskUid, trace: TraceId) -> Result<Option<Bytes>, Failure> {
        if home == self.cluster.own() {
            return Ok(self.own_task(uid, trace).await?.map(Bytes::from));
        }
        let call = Call { request: Request::Task(uid), body: Bytes::new(), deadline: Instant::now() + 2 * ASK, trace };
        let unavailable = |reason: String| {
            let message = format!("Task `{uid}` is kept by member {home}, which can't be asked now ({reason}).");
            Failure::new(ErrorCode::MiroirNoQuorum, message)
        };
        let answer = self.members.call(home, call).await.map_err(|e| unavailable(e.to_string()))?;
        match answer.reply {
            Reply::Task => Ok(Some(answer.body)),
            Reply::NoTask => Ok(None),
            other => Err(unavailable(format!("{other:?}"))),
        }
    }

    /// A task of which this member is the home, brought up to date.
    ///
    /// # Errors
    /// A failure of the store.
    pub async fn own_task(&self, uid: TaskUid, trace: TraceId) -> Result<Option<Vec<u8>>, Failure> {
        let Some(stored) = self.store.task(uid).await? else { return Ok(None) };
        let body = self.refresh(std::slice::from_ref(&stored), trace).await.pop().expect("an answer for each task")?;
        let view = view(uid, stored.index_uid.as_deref(), &body);
        serde_json::to_vec(&view).map(Some).map_err(|e| Failure::internal(e.to_string()))
    }

    /// Asks the nodes for what is still open; what has ended is stored.
    async fn refresh(&self, tasks: &[StoredTask], trace: TraceId) -> Vec<Result<Body, Failure>> {
        let bodies: Vec<Result<Body, Failure>> = tasks.iter().map(decode).collect();
        let open = |(body, stored): (&Result<Body, Failure>, &StoredTask)| match body {
            Ok(body) if !stored.finished => body.parts.clone(),
            _ => None,
        };
        let parts: Vec<Option<Vec<Part>>> = bodies.iter().zip(tasks).map(open).collect();
        let answers = self.ask_parts(parts.iter().flatten().flatten(), trace).await;
        let mut refreshed = Vec::with_capacity(tasks.len());
        for ((body, parts), stored) in bodies.into_iter().zip(&parts).zip(tasks) {
            refreshed.push(match (body, parts) {
                (Ok(body), Some(parts)) => self.conclude(stored, body, parts, &answers).await,
                (body, _) => body,
            });
        }
        refreshed
    }

    async fn conclude(
        &self,
        stored: &StoredTask,
        mut body: Body,
        parts: &[Part],
        answers: &Answers,
    ) -> Result<Body, Failure> {
        let state = |part: &Part| {
            Some(match answers.get(&part.member)?.get(&part.task)? {
                Some(task) => PartState::Known(as_wanted(&body.subject, task.clone())),
                None => PartState::Lost(part.clone()),
            })
        };
        let states: Vec<_> = parts.iter().map(state).collect();
        let outcome = combine(&body, stored.index_uid.as_deref(), &states);
        let ended = outcome.status.ended();
        body.outcome = Some(outcome);
        if ended {
            self.store.put_task(stored.uid, true, encode(&body)?).await?;
        }
        Ok(body)
    }

    /// What the nodes say about these parts; those of members that could not be asked are left out.
    async fn ask_parts(&self, parts: impl Iterator<Item = &Part>, trace: TraceId) -> Answers {
        let asks = questions(parts).into_iter().map(|(member, tasks)| async move {
            let request = Request::Node(NodeQuestion::Tasks(tasks.clone()));
            let call = Call { request, body: Bytes::new(), deadline: Instant::now() + ASK, trace };
            let answer = self.members.call(&member, call).await.ok()?;
            #[derive(Deserialize)]
            struct Page {
                results: Vec<NodeTask>,
            }
            if answer.reply != Reply::Node(200) {
                return None;
            }
            let page = serde_json::from_slice::<Page>(&answer.body).ok()?;
            Some((member, tasks, page.results))
        });
        let mut answers = Answers::new();
        for (member, asked, known) in futures_util::future::join_all(asks).await.into_iter().flatten() {
            let of_member = answers.entry(member).or_default();
            of_member.extend(asked.into_iter().map(|task| (task, None)));
            of_member.extend(known.into_iter().map(|task| (task.uid, Some(task))));
        }
        answers
    }

    /// Keeps the open tasks up to date, so that a node's own clean-up of its task list loses nothing.
    pub async fn sweep(self, metrics: Arc<Metrics>) {
        let mut tick = tokio::time::interval(SWEEP);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            match self.sweep_once().await {
                Ok(open) => metrics.tasks_pending.set(open),
                Err(error) => tracing::warn!(?error, "the open tasks could not be looked after"),
            }
        }
    }

    async fn sweep_once(&self) -> Result<i64, Failure> {
        let (mut from, mut open) = (0, 0);
        loop {
            let page = self.store.open_tasks(from, PAGE).await?;
            let Some(last) = page.last() else { return Ok(open) };
            from = last.uid.0 + 1;
            for (stored, refreshed) in page.iter().zip(self.refresh(&page, TraceId::default()).await) {
                match refreshed {
                    Ok(body) if body.outcome.as_ref().is_some_and(|o| o.status.ended()) => {}
                    Ok(_) => open += 1,
                    Err(error) => {
                        open += 1;
                        tracing::warn!(task = %stored.uid, ?error, "a task could not be brought up to date");
                    }
                }
            }
        }
    }

    /// Ends what an earlier process left half sent. Called before this process takes requests.
    ///
    /// # Errors
    /// A failure of the store.
    pub async fn end_unsent(&self) -> Result<(), Failure> {
        let mut from = 0;
        loop {
            let page = self.store.open_tasks(from, PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            from = last.uid.0 + 1;
            for stored in &page {
                let mut body = decode(stored)?;
                if body.parts.is_none() {
                    let message = "The member that took this request ended before every part of it had been sent. It was never \
                                   acknowledged; send it again.";
                    body.outcome = Some(Outcome::failed(error_object(ErrorCode::MiroirIncomplete, message)));
                    self.store.put_task(stored.uid, true, encode(&body)?).await?;
                }
            }
        }
    }
}

impl NewTask {
    fn summary(&self) -> Summary {
        Summary {
            task_uid: self.uid,
            index_uid: self.index_uid.clone(),
            status: Status::Enqueued,
            r#type: self.body.subject.kind(),
            enqueued_at: self.body.enqueued_at.clone(),
            custom_metadata: self.body.custom_metadata.clone(),
        }
    }
}

/// A node that has lost an index before it was to delete it has done what was wanted.
fn as_wanted(subject: &Subject, mut task: NodeTask) -> NodeTask {
    let gone = |e: &Value| e["code"] == ErrorCode::IndexNotFound.as_str();
    if matches!(subject, Subject::IndexDeletion) && task.error.as_ref().is_some_and(gone) {
        (task.status, task.error) = (Status::Succeeded, None);
    }
    task
}

#[derive(Debug, Clone)]
enum PartState {
    Known(NodeTask),
    // The node answers, but has no such task.
    Lost(Part),
}

fn combine(body: &Body, index_uid: Option<&str>, states: &[Option<PartState>]) -> Outcome {
    let known: Vec<&NodeTask> = states
        .iter()
        .flatten()
        .filter_map(|s| match s {
            PartState::Known(task) => Some(task),
            PartState::Lost(_) => None,
        })
        .collect();
    let started_at = known.iter().filter_map(|t| t.started_at.as_ref()).min().cloned();
    let all_ended = states.iter().all(|s| match s {
        Some(PartState::Known(task)) => task.status.ended(),
        Some(PartState::Lost(_)) => true,
        None => false,
    });
    if !all_ended {
        let begun = known.iter().any(|t| t.status != Status::Enqueued);
        let status = if begun { Status::Processing } else { Status::Enqueued };
        return Outcome { status, started_at, ..Outcome::waiting() };
    }
    let lost = states.iter().flatten().find_map(|s| match s {
        PartState::Lost(part) => {
            let message = format!(
                "The node of member {} no longer knows task {} of its own; whether it was carried out is not known.",
                part.member, part.task
            );
            Some(error_object(ErrorCode::MiroirIncomplete, &message))
        }
        PartState::Known(_) => None,
    });
    let of = |status| known.iter().find(|t| t.status == status);
    let error = of(Status::Failed).map(|t| client_error(body, index_uid, t.error.clone())).or(lost);
    let error = error.map(|error| partly(error, &applied(body, states)));
    let status = match (&error, of(Status::Canceled)) {
        (Some(_), _) => Status::Failed,
        (None, Some(_)) => Status::Canceled,
        (None, None) => Status::Succeeded,
    };
    let counted = |of: fn(&NodeDetails) -> Option<u64>| {
        known.iter().filter_map(|t| t.details.as_ref().and_then(of)).fold(0, u64::saturating_add) / body.copies
    };
    Outcome {
        status,
        error,
        started_at,
        finished_at: known.iter().filter_map(|t| t.finished_at.as_ref()).max().cloned(),
        deleted: counted(|d| d.deleted_documents),
        indexed: counted(|d| d.indexed_documents),
    }
}

/// The members whose nodes have carried out their parts.
fn applied<'b>(body: &'b Body, states: &[Option<PartState>]) -> BTreeSet<&'b str> {
    let done = |state: &Option<PartState>| matches!(state, Some(PartState::Known(t)) if t.status == Status::Succeeded);
    let parts = body.parts.iter().flatten().zip(states);
    parts.filter(|(_, state)| done(state)).map(|(part, _)| part.member.as_str()).collect()
}

/// An error that tells what stands all the same: a node alone would have applied nothing.
fn partly(mut error: Value, applied: &BTreeSet<&str>) -> Value {
    if let (false, Some(message)) = (applied.is_empty(), error.get("message").and_then(Value::as_str)) {
        let members: Vec<&str> = applied.iter().copied().collect();
        let note =
            format!("Other parts of this write were applied, on {}; correct it and send it again.", members.join(", "));
        error["message"] = Value::String(format!("{message} {note}"));
    }
    error
}

/// A node's task error with the client's names in its text.
fn client_error(body: &Body, index_uid: Option<&str>, error: Option<Value>) -> Value {
    let mut error = error.unwrap_or_else(|| error_object(ErrorCode::Internal, "the node gave no reason"));
    let uid = index_uid.and_then(|uid| IndexUid::new(uid).ok());
    if let (Some(physical), Some(uid), Some(message)) =
        (&body.physical, uid, error.get("message").and_then(Value::as_str))
    {
        let text = error_text(message, physical, &uid);
        error["message"] = Value::String(text);
    }
    error
}

/// Meilisearch's error object.
pub fn error_object(code: ErrorCode, message: &str) -> Value {
    json!({"message": message, "code": code.as_str(), "type": code.kind().as_str(), "link": code.link()})
}

/// What each member's node says about its tasks; `None` where it answers, but has no such task.
type Answers = BTreeMap<MemberId, BTreeMap<u32, Option<NodeTask>>>;

/// As few questions as there can be for the nodes' tasks of all these parts.
fn questions<'a>(parts: impl Iterator<Item = &'a Part>) -> Vec<(MemberId, Vec<u32>)> {
    let mut by_member: BTreeMap<&MemberId, Vec<u32>> = BTreeMap::new();
    for part in parts {
        by_member.entry(&part.member).or_default().push(part.task);
    }
    let cut = |(member, tasks): (&MemberId, Vec<u32>)| -> Vec<_> {
        tasks.chunks(QUESTION_MAX).map(|some| (member.clone(), some.to_vec())).collect()
    };
    by_member.into_iter().flat_map(cut).collect()
}

fn decode(stored: &StoredTask) -> Result<Body, Failure> {
    serde_json::from_str(&stored.body).map_err(|e| Failure::internal(format!("task {} is malformed: {e}", stored.uid)))
}

fn encode(body: &Body) -> Result<String, Failure> {
    serde_json::to_string(body).map_err(|e| Failure::internal(e.to_string()))
}

fn view(uid: TaskUid, index_uid: Option<&str>, body: &Body) -> Value {
    let outcome = body.outcome.clone().unwrap_or_else(Outcome::waiting);
    let duration = match (&outcome.started_at, &outcome.finished_at) {
        (Some(from), Some(to)) => clock::between(from, to),
        _ => None,
    };
    let mut view = json!({
        "uid": uid,
        // The mesh makes one batch of each task.
        "batchUid": (outcome.status != Status::Enqueued).then_some(uid),
        "indexUid": index_uid,
        "status": outcome.status,
        "type": body.subject.kind(),
        "canceledBy": null,
        "details": body.subject.details(&outcome),
        "error": outcome.error,
        "duration": duration,
        "enqueuedAt": body.enqueued_at,
        "startedAt": outcome.started_at,
        "finishedAt": outcome.finished_at,
    });
    if let Some(metadata) = &body.custom_metadata {
        view["customMetadata"] = Value::String(metadata.clone());
    }
    view
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(subject: Subject, copies: u64) -> Body {
        Body {
            enqueued_at: "2026-01-01T00:00:00Z".into(),
            subject,
            physical: Some(PhysicalIndex::new("movies__m0000000a").unwrap()),
            custom_metadata: None,
            copies,
            parts: None,
            outcome: None,
        }
    }

    fn part(status: Status, deleted: Option<u64>) -> Option<PartState> {
        Some(PartState::Known(NodeTask {
            uid: 1,
            status,
            error: (status == Status::Failed)
                .then(|| json!({"message": "Index `movies__m0000000a` not found.", "code": "c"})),
            started_at: Some("2026-01-01T00:00:01Z".into()),
            finished_at: status.ended().then(|| "2026-01-01T00:00:02Z".into()),
            details: Some(NodeDetails { deleted_documents: deleted, indexed_documents: None }),
        }))
    }

    #[test]
    fn succeeded_only_when_every_part_is() {
        let b = body(Subject::Documents { received: 3, distinct: 2 }, 1);
        let status = |parts: &[Option<PartState>]| combine(&b, Some("movies"), parts).status;
        let (ok, run, wait) =
            (part(Status::Succeeded, None), part(Status::Processing, None), part(Status::Enqueued, None));
        assert_eq!(status(&[ok.clone(), ok.clone()]), Status::Succeeded);
        assert_eq!(status(&[ok.clone(), run]), Status::Processing);
        assert_eq!(status(&[ok.clone(), None]), Status::Processing);
        assert_eq!(status(&[wait.clone(), wait]), Status::Enqueued);
        assert_eq!(status(&[ok.clone(), part(Status::Failed, None)]), Status::Failed);
        let lost = Some(PartState::Lost(Part { member: MemberId::new("m2").unwrap(), task: 4 }));
        let lost = combine(&b, Some("movies"), &[ok, lost]);
        assert_eq!(
            (lost.status, lost.error.unwrap()["code"].as_str().unwrap().to_owned()),
            (Status::Failed, "miroir_incomplete".to_owned())
        );
    }

    #[test]
    fn many_open_tasks_are_one_question_to_each_member() {
        let part = |member: &str, task| Part { member: MemberId::new(member).unwrap(), task };
        let open: Vec<_> = (0..200).flat_map(|i| [part("m1", i), part("m2", 1_000 + i)]).collect();
        let asked = questions(open.iter());
        assert_eq!(asked.iter().map(|(m, _)| m.as_str()).collect::<Vec<_>>(), ["m1", "m2"]);
        assert_eq!(asked[1].1, (1_000..1_200).collect::<Vec<_>>());
        let many: Vec<_> = (0..1_001).map(|i| part("m1", i)).collect();
        assert_eq!(questions(many.iter()).iter().map(|(_, tasks)| tasks.len()).collect::<Vec<_>>(), [500, 500, 1]);
    }

    #[test]
    fn copies_are_counted_once() {
        let mut b = body(Subject::DeleteFilter { original_filter: "\"a=1\"".into() }, 2);
        b.outcome =
            Some(combine(&b, Some("movies"), &[part(Status::Succeeded, Some(3)), part(Status::Succeeded, Some(5))]));
        assert_eq!(view(TaskUid(1), Some("movies"), &b)["details"]["deletedDocuments"], 4);
    }

    #[test]
    fn a_failed_task_counts_what_other_nodes_have_indexed() {
        let mut b = body(Subject::Documents { received: 101, distinct: 101 }, 2);
        let indexed = |status, n| {
            let Some(PartState::Known(mut task)) = part(status, None) else { unreachable!("`part` gives a known one") };
            task.details = Some(NodeDetails { deleted_documents: None, indexed_documents: n });
            Some(PartState::Known(task))
        };
        let states = [
            indexed(Status::Failed, Some(0)),
            indexed(Status::Succeeded, Some(32)),
            indexed(Status::Succeeded, Some(32)),
        ];
        b.outcome = Some(combine(&b, Some("movies"), &states));
        let details = view(TaskUid(1), Some("movies"), &b)["details"].clone();
        assert_eq!(details, json!({"receivedDocuments": 101, "indexedDocuments": 32}));
    }

    #[test]
    fn an_error_text_names_the_clients_index() {
        let b = body(Subject::DeleteAll, 1);
        let mut two = body(Subject::Documents { received: 3, distinct: 2 }, 1);
        two.parts = Some(["m1", "m2"].map(|m| Part { member: MemberId::new(m).unwrap(), task: 1 }).into());
        let outcome = combine(&two, Some("movies"), &[part(Status::Failed, None), part(Status::Succeeded, None)]);
        let message =
            "Index `movies` not found. Other parts of this write were applied, on m2; correct it and send it again.";
        assert_eq!(outcome.error.unwrap()["message"], message);

        let outcome = combine(&b, Some("movies"), &[part(Status::Failed, None)]);
        assert_eq!(outcome.error.unwrap()["message"], "Index `movies` not found.");
    }
}
