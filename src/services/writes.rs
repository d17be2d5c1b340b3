//! Orders about a whole index (made, deleted, its settings, its primary key): sent to the sidecar of every member that is to
//! carry them out, and followed until each node has.
//!
//! Members that are away are not waited for: whoever sends the order sees to it that they get it when they are back, before they
//! serve. Of those that are there success is told only when every one has done its part. An order that nobody has taken is
//! refused (`miroir_no_quorum`); one that some may have taken, and some who are there have not, is `miroir_write_unknown`, with
//! the task that names who has. Must not know: documents, HTTP.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::cluster::Cluster;
use super::failure::Failure;
use super::homes::wall;
use super::indexes::Index;
use super::members::Members;
use super::records::Records;
use super::tasks::{Order as Task, Tasks};
use crate::net::{Answer, Call, CallError};
use crate::proto::document::error_text_hiding;
use crate::proto::missed;
use crate::proto::settings::IndexView;
use crate::proto::tasks::view::Summary;
use crate::proto::tasks::{Outcome, Status, Subject, TaskError, TaskKind, When};
use crate::telemetry::metrics::Metrics;
use crate::types::TraceId;
use crate::types::{ErrorCode, IndexRecord, IndexUid, MemberId, ShardSet};
use crate::wire::verbs::{NodeQuestion, Refusal, Reply, Request, Write, WriteKind};

/// Pause before a part that was certainly not taken is sent again; it doubles.
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// The longest such pause.
const RETRY_MOST: Duration = Duration::from_millis(500);
/// Between two looks at the nodes' tasks; doubles up to the longest.
const LOOK_FIRST: Duration = Duration::from_millis(20);
const LOOK_MOST: Duration = Duration::from_secs(2);
/// How long a member is asked for the state of its part.
const ASK: Duration = Duration::from_secs(5);
/// A member that does not answer for so long is not waited for any more.
const AWAY: Duration = Duration::from_secs(5);
/// The same for one that answers, while its node does not: that may only have much to do.
const NODE_AWAY: Duration = Duration::from_secs(60);
/// How long it may take until it is known of a member that has not taken an order that it is out of service, or lacks
/// others.
const FOUND_OUT: Duration = Duration::from_secs(3);
/// Between two looks at that.
const AWAY_LOOK: Duration = Duration::from_millis(100);

/// One member's part of a write.
#[derive(Debug, Clone)]
pub struct Order {
    /// To whom.
    pub member: MemberId,
    /// What to do.
    pub kind: WriteKind,
    /// The shards that the body's documents belong to.
    pub shards: ShardSet,
    /// The node's body.
    pub body: Bytes,
}

impl Order {
    /// An order that is about the index as a whole.
    pub fn without_body(member: MemberId, kind: WriteKind) -> Self {
        Self { member, kind, shards: ShardSet::new(), body: Bytes::new() }
    }
}

/// What became of one part.
#[derive(Debug)]
enum Fate {
    /// Taken under this task of the node.
    Taken(u32),
    /// There was nothing to do.
    Nothing,
    /// The node refused it with an error of its own.
    Rejected(u16, Bytes),
    /// Certainly not taken.
    NotTaken(String),
    /// Perhaps taken.
    Unknown(String),
}

/// An order that nodes have taken. Its task is to be brought to an end by [`Writes::follow`].
#[derive(Debug)]
pub struct Taken {
    index: Index,
    task: Task,
    parts: Vec<Part>,
    /// Members that were to take it, and are away now.
    pub away: BTreeSet<MemberId>,
}

impl Taken {
    /// What the client hears.
    pub fn summary(&self) -> Summary {
        self.task.summary()
    }

    /// Members whose nodes have it in their queues.
    pub fn members(&self) -> impl Iterator<Item = &MemberId> {
        self.parts.iter().map(|part| &part.member)
    }
}

/// What became of an order on the nodes.
#[derive(Debug)]
pub struct Followed {
    seen: BTreeMap<usize, Seen>,
    /// Members that had taken it and went away before they told what became of it.
    pub away: BTreeSet<MemberId>,
}

impl Followed {
    /// Whether no node has carried it out, and all that told why say that they never will.
    pub fn came_to_nothing(&self) -> bool {
        let refused = |seen: &Seen| matches!(seen, Seen::Known(task) if task.status != Status::Succeeded);
        !self.seen.is_empty() && self.seen.values().all(refused)
    }
}

/// The service; cheap to clone.
#[derive(Debug, Clone)]
pub struct Writes {
    cluster: Cluster,
    members: Members,
    records: Records,
    tasks: Tasks,
    metrics: Arc<Metrics>,
}

impl Writes {
    /// The service over its parts.
    pub fn new(cluster: Cluster, members: Members, records: Records, tasks: Tasks, metrics: Arc<Metrics>) -> Self {
        Self { cluster, members, records, tasks, metrics }
    }

    /// Sends the parts of a task that was begun, and waits until the node of every member that is there has enqueued its own.
    ///
    /// # Errors
    /// `miroir_no_quorum` if nothing was done, `miroir_write_unknown` (with the task) if something may have been, the node's own
    /// error if every node refused.
    pub async fn take(
        &self,
        index: &Index,
        task: Task,
        orders: Vec<Order>,
        deadline: Instant,
        trace: TraceId,
    ) -> Result<Taken, Failure> {
        let kind = task.kind();
        let taken = self.carry_out(index, task, orders, deadline, trace).await;
        self.counted(kind, taken)
    }

    /// The task of an order that changes records first. From here on it must be brought to an end.
    ///
    /// # Errors
    /// `miroir_no_quorum`: nothing was done.
    pub async fn begin(&self, uid: &IndexUid, subject: Subject, trace: TraceId) -> Result<Task, Failure> {
        let kind = subject.kind();
        let begun = self.tasks.order(Some(uid), subject, trace).await;
        begun.inspect_err(|_| self.metrics.writes.with_label_values(&[kind.as_str(), "no_quorum"]).inc())
    }

    /// As [`Writes::take`], after records were changed that say all there is to do: members that are away follow them when they
    /// are back. Of whatever goes wrong from here on nobody says that nothing was done. What becomes of the order is followed
    /// beside all else.
    ///
    /// # Errors
    /// `miroir_write_unknown` (with the task), or the node's own error if every node refused.
    pub async fn send_changed(
        &self,
        index: &Index,
        task: Task,
        orders: Vec<Order>,
        deadline: Instant,
        trace: TraceId,
    ) -> Result<Summary, Failure> {
        let (kind, uid) = (task.kind(), task.uid());
        let taken = self.carry_out(index, task, orders, deadline, trace).await;
        let taken = taken.map_err(|failure| match failure {
            Failure::Mesh { code: ErrorCode::MiroirNoQuorum, .. } => Failure::Mesh {
                code: ErrorCode::MiroirWriteUnknown,
                message:
                    "The mesh's records were changed, and no node has taken the order yet. Look at the index; nodes \
                          follow the records when they can."
                        .into(),
                task: Some(uid),
            },
            failure => failure,
        });
        let taken = self.counted(kind, taken)?;
        let (writes, summary) = (self.clone(), taken.summary());
        tokio::spawn(async move {
            let followed = writes.follow(&taken).await;
            writes.end(taken, followed).await;
        });
        Ok(summary)
    }

    /// Ends a task that was begun and came to nothing.
    pub fn failed(&self, task: Task, failure: &Failure) {
        let kind = task.kind();
        match failure {
            Failure::Mesh { code, message, .. } => task.fail(*code, message),
            Failure::Node { .. } => task.fail(ErrorCode::Internal, "The node refused it."),
        }
        self.metrics.writes.with_label_values(&[kind.as_str(), outcome(failure)]).inc();
    }

    fn counted(&self, kind: TaskKind, taken: Result<Taken, Failure>) -> Result<Taken, Failure> {
        let outcome = taken.as_ref().map_or_else(outcome, |_| "accepted");
        self.metrics.writes.with_label_values(&[kind.as_str(), outcome]).inc();
        taken
    }

    /// Checks that all members of these orders serve, and that no node lacks what it held of the index.
    ///
    /// # Errors
    /// `miroir_no_quorum`: nothing was done.
    pub fn require_ready(&self, index: &Index, kind: TaskKind, orders: &[Order]) -> Result<(), Failure> {
        let ready =
            self.require_serving(orders.iter().map(|o| &o.member)).and_then(|()| self.require_whole(index, orders));
        ready.inspect_err(|_| self.metrics.writes.with_label_values(&[kind.as_str(), "no_quorum"]).inc())
    }

    async fn carry_out(
        &self,
        index: &Index,
        task: Task,
        orders: Vec<Order>,
        deadline: Instant,
        trace: TraceId,
    ) -> Result<Taken, Failure> {
        let mut by_member: BTreeMap<MemberId, Vec<Order>> = BTreeMap::new();
        for order in orders {
            by_member.entry(order.member.clone()).or_default().push(order);
        }
        let sends = by_member.into_iter().map(|(member, orders)| async move {
            let mut fates = Vec::with_capacity(orders.len());
            // A member's orders keep their order, and none goes on behind one that failed.
            for order in orders {
                let fate = tokio::select! {
                    fate = self.send_one(index, order, deadline, trace) => fate,
                    () = self.is_away(&member) => Fate::Unknown("it is out of service".into()),
                };
                let goes_on = matches!(fate, Fate::Taken(_) | Fate::Nothing);
                // Looked at now: when the others have done their parts, it may be back without this one.
                let later =
                    matches!(fate, Fate::NotTaken(_) | Fate::Unknown(_)) && self.gets_it_later(index, &member).await;
                fates.push((member.clone(), fate, later));
                if !goes_on {
                    break;
                }
            }
            fates
        });
        let fates = futures_util::future::join_all(sends).await.into_iter().flatten().collect();
        self.conclude(index, task, fates)
    }

    /// Ends when the member has been out of service all the time for so long that nobody waits for it.
    async fn is_away(&self, member: &MemberId) {
        let mut since = None;
        while !self.is_given_up(member, &mut since) {
            tokio::time::sleep(AWAY_LOOK).await;
        }
    }

    /// Whether a member has been out of service for so long, looked at again and again, that nobody waits for it; `since` is when
    /// that began.
    fn is_given_up(&self, member: &MemberId, since: &mut Option<Instant>) -> bool {
        if self.cluster.serving(member) {
            *since = None;
            return false;
        }
        let patience = if self.cluster.alive(member) { NODE_AWAY } else { AWAY };
        since.get_or_insert_with(Instant::now).elapsed() >= patience
    }

    /// Those of the members that are in service: an order goes to them, and the others get it when they are back.
    ///
    /// # Errors
    /// `miroir_no_quorum` if there are none.
    pub fn in_service<'a>(&self, members: impl Iterator<Item = &'a MemberId>) -> Result<Vec<MemberId>, Failure> {
        let (here, away): (Vec<_>, Vec<_>) = members.partition(|m| self.cluster.serving(m));
        if here.is_empty() {
            self.require_serving(away.into_iter())?;
        }
        Ok(here.into_iter().cloned().collect())
    }

    /// Checks that all these members serve.
    ///
    /// # Errors
    /// `miroir_no_quorum`, naming those that do not.
    pub fn require_serving<'a>(&self, members: impl Iterator<Item = &'a MemberId>) -> Result<(), Failure> {
        let mut away: Vec<_> = members.filter(|m| !self.cluster.serving(m)).map(MemberId::as_str).collect();
        away.sort_unstable();
        away.dedup();
        if away.is_empty() {
            return Ok(());
        }
        let message = format!(
            "The write needs members that are not in service now: {}. Nothing was done; send it again when they are back.",
            away.join(", ")
        );
        Err(Failure::new(ErrorCode::MiroirNoQuorum, message))
    }

    /// Checks that no member's node has lost what it held of the index: such a node takes nothing but the index's deletion.
    fn require_whole(&self, index: &Index, orders: &[Order]) -> Result<(), Failure> {
        let (seen, physical) = (self.cluster.seen(), &index.value.physical);
        let lacks = |o: &&Order| {
            o.kind != WriteKind::DeleteIndex
                && seen.get(&o.member).is_some_and(|s| s.lost_all || s.lost.contains(physical))
        };
        let Some(order) = orders.iter().find(lacks) else { return Ok(()) };
        let message = format!(
            "The node of member {} no longer has the documents that it held of index `{}`. Nothing was done; give the node \
             its data back, or delete the index and load it again.",
            order.member, index.value.uid
        );
        Err(Failure::new(ErrorCode::MiroirNoQuorum, message))
    }

    async fn send_one(&self, index: &Index, order: Order, deadline: Instant, trace: TraceId) -> Fate {
        let write = Write {
            index: index.value.physical.clone(),
            record_version: index.version,
            shards: order.shards,
            kind: order.kind,
        };
        let call = Call { request: Request::Write(write), body: order.body, deadline, trace };
        let mut pause = RETRY_FIRST;
        loop {
            let answer = self.members.call(&order.member, call.clone()).await;
            let again =
                matches!(&answer, Err(CallError::NotSent { .. } | CallError::Refused { refusal: Refusal::Busy, .. }));
            // Certainly nothing was done, and the member is there: it only has no room, or its connection is made anew.
            if !again || Instant::now() + pause >= deadline || !self.cluster.serving(&order.member) {
                return fate_of(answer);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MOST);
        }
    }

    /// The fates of all parts, each with whether its member is brought to it later if it has not taken it.
    fn conclude(&self, index: &Index, task: Task, fates: Vec<(MemberId, Fate, bool)>) -> Result<Taken, Failure> {
        let (mut parts, mut away) = (Vec::new(), BTreeSet::new());
        let (mut not_taken, mut unknown, mut rejected) = (Vec::new(), Vec::new(), None);
        let some = fates.iter().any(|(_, fate, _)| matches!(fate, Fate::Taken(_) | Fate::Nothing));
        for (member, fate, later) in fates {
            match fate {
                Fate::NotTaken(_) | Fate::Unknown(_) if some && later => {
                    away.insert(member);
                }
                Fate::Taken(task) => parts.push(Part { member, task }),
                Fate::Nothing => {}
                Fate::Rejected(status, body) => {
                    not_taken.push(format!("{member}: the node refused it with status {status}"));
                    rejected = Some((status, body));
                }
                Fate::NotTaken(reason) => not_taken.push(format!("{member}: {reason}")),
                Fate::Unknown(reason) => unknown.push(format!("{member}: {reason}")),
            }
        }
        if not_taken.is_empty() && unknown.is_empty() {
            return Ok(Taken { index: Arc::clone(index), task, parts, away });
        }
        let client = |text: &str| client_text(text, index);
        if parts.is_empty() && unknown.is_empty() {
            let why = client(&not_taken.join("; "));
            let failure = match rejected {
                Some((status, body)) => node_failure(status, &body, index),
                None => Failure::new(
                    ErrorCode::MiroirNoQuorum,
                    format!("No replica has taken the write: {why}. Nothing was done; send it again."),
                ),
            };
            task.fail(ErrorCode::MiroirNoQuorum, &format!("No replica has taken the write: {why}."));
            return Err(failure);
        }
        let taken: Vec<_> = parts.iter().map(|p| p.member.as_str()).collect();
        let message = format!(
            "The write was taken by [{}]; not taken by [{}]; not known of [{}]. Send it again to make all copies equal.",
            taken.join(", "),
            client(&not_taken.join("; ")),
            client(&unknown.join("; "))
        );
        let uid = task.uid();
        task.fail(ErrorCode::MiroirIncomplete, &message);
        Err(Failure::Mesh { code: ErrorCode::MiroirWriteUnknown, message, task: Some(uid) })
    }
}

impl Writes {
    /// Whether a member that has not taken an order is brought to it when it is back: it is away, or still lacks what was ordered
    /// before, or did when the order was given. For a moment it is waited until that is known.
    async fn gets_it_later(&self, index: &Index, member: &MemberId) -> bool {
        let lacks =
            |record: &IndexRecord| record.misses_settings(member) || missed::got_since(record, index.version, member);
        let newest = || self.records.snapshot().index(&index.value.physical);
        let until = Instant::now() + FOUND_OUT;
        while self.cluster.serving(member) && !newest().is_some_and(|record| lacks(&record.value)) {
            if Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(AWAY_LOOK).await;
        }
        true
    }

    /// Looks at the nodes' tasks until all are over. A member that is slow is waited for; one that is away is not, unless all are.
    pub async fn follow(&self, taken: &Taken) -> Followed {
        let mut seen: BTreeMap<usize, Seen> = BTreeMap::new();
        let mut since: BTreeMap<&MemberId, Option<Instant>> = BTreeMap::new();
        let (mut pause, mut begun) = (LOOK_FIRST, false);
        loop {
            let open = || taken.parts.iter().enumerate().filter(|(i, _)| !seen.contains_key(i));
            let asked = open().map(|(i, part)| async move { (i, look(&self.members, part).await) });
            let found = futures_util::future::join_all(asked).await;
            for (i, found) in found {
                if let Some(when) = found.as_ref().and_then(Seen::begun).filter(|_| !begun) {
                    begun = true;
                    taken.task.begun(when);
                }
                seen.extend(found.filter(Seen::is_over).map(|found| (i, found)));
            }
            let mut away = BTreeSet::new();
            let mut waits = false;
            for (_, part) in taken.parts.iter().enumerate().filter(|(i, _)| !seen.contains_key(i)) {
                if self.is_given_up(&part.member, since.entry(&part.member).or_default()) {
                    away.insert(part.member.clone());
                } else {
                    waits = true;
                }
            }
            if !waits && (away.is_empty() || !seen.is_empty()) {
                return Followed { seen, away };
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_MOST);
        }
    }

    /// Tells the home that an order was carried out in part, and why.
    pub fn incomplete(&self, taken: Taken, message: &str) {
        taken.task.fail(ErrorCode::MiroirIncomplete, message);
    }

    /// Tells the home what became of an order.
    pub async fn end(&self, taken: Taken, followed: Followed) {
        let Taken { index, task, parts, .. } = taken;
        let copies = index.value.shards.first().map_or(1, |shard| shard.replicas.len());
        let outcome = combine(task.kind(), &parts, &followed.seen, copies as u64, &|text| client_text(text, &index));
        task.ended(outcome).await;
    }
}

/// How a failure is counted.
fn outcome(failure: &Failure) -> &'static str {
    match failure {
        Failure::Mesh { code: ErrorCode::MiroirNoQuorum, .. } => "no_quorum",
        Failure::Mesh { code: ErrorCode::MiroirWriteUnknown, .. } => "unknown",
        _ => "failed",
    }
}

/// The task of one member's node.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    member: MemberId,
    task: u32,
}

/// A node's task, as far as it matters here.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeTask {
    uid: u32,
    status: Status,
    error: Option<NodeError>,
    started_at: Option<String>,
    finished_at: Option<String>,
    details: Option<NodeDetails>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct NodeError {
    code: String,
    message: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeDetails {
    deleted_documents: Option<u64>,
}

/// What is known of a part.
#[derive(Debug, Clone)]
enum Seen {
    /// The node's own word.
    Known(NodeTask),
    /// The node answers, but has no such task.
    Lost,
}

impl Seen {
    /// Since when the node has been at it, while it is.
    fn begun(&self) -> Option<When> {
        match self {
            Self::Known(task) if task.status == Status::Processing => {
                Some(task.started_at.as_deref().and_then(When::parse).unwrap_or_else(wall))
            }
            _ => None,
        }
    }

    fn is_over(&self) -> bool {
        matches!(self, Self::Lost) || matches!(self, Self::Known(task) if task.status.is_final())
    }
}

/// How a part stands; `None` if its member can't say.
async fn look(members: &Members, part: &Part) -> Option<Seen> {
    #[derive(Deserialize)]
    struct Page {
        results: Vec<NodeTask>,
    }
    let request = Request::Node(NodeQuestion::Tasks(vec![part.task]));
    let call = Call { request, body: Bytes::new(), deadline: Instant::now() + ASK, trace: TraceId::default() };
    let answer = members.call(&part.member, call).await.ok()?;
    if answer.reply != Reply::Node(200) {
        return None;
    }
    let page: Page = serde_json::from_slice(&answer.body).ok()?;
    Some(page.results.into_iter().find(|task| task.uid == part.task).map_or(Seen::Lost, Seen::Known))
}

/// What became of the whole.
fn combine(
    kind: TaskKind,
    parts: &[Part],
    seen: &BTreeMap<usize, Seen>,
    copies: u64,
    client: &dyn Fn(&str) -> String,
) -> Outcome {
    let known = || seen.values().filter_map(|seen| if let Seen::Known(task) = seen { Some(task) } else { None });
    let lost = seen.iter().find(|(_, seen)| matches!(seen, Seen::Lost)).map(|(i, _)| {
        let Part { member, task } = &parts[*i];
        let message = format!(
            "The node of member {member} no longer knows task {task} of its own; whether it was carried out is not known."
        );
        TaskError::of(ErrorCode::MiroirIncomplete, &message)
    });
    // A node that has lost an index before it was to delete it has done what was wanted.
    let as_wanted =
        |error: &NodeError| kind == TaskKind::IndexDeletion && error.code == ErrorCode::IndexNotFound.as_str();
    let failed = known().find_map(|task| task.error.as_ref().filter(|error| !as_wanted(error)));
    let error = failed.map(|e| TaskError::of_node(&e.code, &client(&e.message))).or(lost);
    let canceled = known().any(|task| task.status == Status::Canceled);
    let status = match (&error, canceled) {
        (Some(_), _) => Status::Failed,
        (None, true) => Status::Canceled,
        (None, false) => Status::Succeeded,
    };
    let time = |of: fn(&NodeTask) -> Option<&String>| known().filter_map(of).filter_map(|text| When::parse(text));
    let now = wall();
    let finished = time(|t| t.finished_at.as_ref()).max().unwrap_or(now);
    let started = time(|t| t.started_at.as_ref()).min().unwrap_or(finished).min(finished);
    let deleted = known().filter_map(|task| task.details.as_ref()?.deleted_documents).fold(0, u64::saturating_add);
    // Every node deletes its own copies: documents are counted once for all of them.
    Outcome { status, error, changed: deleted / copies.max(1), matched: 0, started, finished }
}

fn fate_of(answer: Result<Answer, CallError>) -> Fate {
    match answer {
        Ok(Answer { reply, body }) => match reply {
            Reply::Enqueued(task) => Fate::Taken(task),
            Reply::Done => Fate::Nothing,
            Reply::Node(status) => Fate::Rejected(status, body),
            Reply::NodeDown(reason) => Fate::NotTaken(reason),
            Reply::NotServed(shards, _) => Fate::NotTaken(format!("it does not hold the shards {shards}")),
            Reply::NodeUnknown(reason) => Fate::Unknown(reason),
            other => Fate::Unknown(format!("unexpected answer {other:?}")),
        },
        Err(e @ (CallError::NotSent { .. } | CallError::Refused { .. })) => Fate::NotTaken(e.to_string()),
        Err(e @ CallError::NoAnswer { .. }) => Fate::Unknown(e.to_string()),
    }
}

/// A text with the client's names in place of the nodes'.
fn client_text(text: &str, index: &Index) -> String {
    let record = &index.value;
    let view = IndexView::of(record.uid.as_str(), &record.client_settings);
    error_text_hiding(text, &record.physical, &record.uid, view.displayed.as_deref())
}

/// A node's error with the client's names in its text.
pub fn node_failure(status: u16, body: &Bytes, index: &Index) -> Failure {
    let Ok(mut error) = serde_json::from_slice::<Value>(body) else {
        let text = String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
        return Failure::internal(format!("the node answered with status {status}: {text}"));
    };
    if let Some(message) = error.get("message").and_then(Value::as_str) {
        let text = client_text(message, index);
        error["message"] = Value::String(text);
    }
    Failure::Node { status, body: Bytes::from(error.to_string()) }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::net::Peers;
    use crate::services::homes::found::found;
    use crate::services::records::Versioned;
    use crate::services::testing::{LONG, World, member, within};
    use crate::types::{PhysicalIndex, RecordVersion};

    /// A node that is at a task until it has done it.
    #[derive(Default)]
    struct Node {
        done: AtomicBool,
    }

    #[async_trait]
    impl Peers for Node {
        async fn call(&self, _: &MemberId, call: Call) -> Result<Answer, CallError> {
            assert_eq!(call.request, Request::Node(NodeQuestion::Tasks(vec![7])));
            let (status, finished) = match self.done.load(Ordering::SeqCst) {
                true => ("succeeded", "\"2026-01-02T03:04:06Z\""),
                false => ("processing", "null"),
            };
            let started = "\"startedAt\":\"2026-01-02T03:04:05Z\"";
            let task = format!("{{\"uid\":7,\"status\":\"{status}\",{started},\"finishedAt\":{finished}}}");
            Ok(Answer { reply: Reply::Node(200), body: format!("{{\"results\":[{task}]}}").into() })
        }

        fn is_suspect(&self, _: &MemberId) -> bool {
            false
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_order_is_processing_as_soon_as_a_node_is_at_it() {
        let world = World::start(3, |_, _| Vec::new()).await;
        let founding = world
            .alive()
            .map(|(_, m)| found(m.journals.clone(), m.leases.clone(), m.cluster.clone(), m.seen.subscribe()));
        within("homes", futures_util::future::join_all(founding)).await;
        let (own, node) = (world.at(0), Arc::<Node>::default());
        let tasks = Tasks::new(own.homes.clone(), own.sender.clone(), Arc::clone(&own.metrics));
        let uid = IndexUid::new("movies").unwrap();
        let order = tasks.order(Some(&uid), Subject::IndexDeletion, TraceId::default()).await.unwrap();
        let task = order.uid();
        let value = IndexRecord {
            uid,
            physical: PhysicalIndex::new("movies__m00000001").unwrap(),
            primary_key: None,
            settings_version: 1,
            missed_settings: BTreeMap::new(),
            caught_up: BTreeMap::new(),
            client_settings: BTreeMap::new(),
            shards: Vec::new(),
            created_at: String::new(),
            updated_at: String::new(),
            deleted: false,
        };
        let members = Members::new(member(0), Arc::clone(&node) as Arc<dyn Peers>, Arc::default());
        let records = Records::new(own.ledger.clone(), own.cluster.clone(), members.clone());
        let writes = Writes::new(own.cluster.clone(), members, records, tasks, Arc::clone(&own.metrics));
        let index = Arc::new(Versioned { version: RecordVersion::default(), value });
        let parts = vec![Part { member: member(1), task: 7 }];
        let taken = Taken { index, task: order, parts, away: BTreeSet::new() };
        let following = tokio::spawn(async move {
            let followed = writes.follow(&taken).await;
            writes.end(taken, followed).await;
        });
        let status = async || {
            let shown = own.homes.get(task, Instant::now() + LONG, TraceId::default()).await.unwrap().unwrap();
            (shown.status, shown.started)
        };
        let began = When::parse("2026-01-02T03:04:05Z");
        within("it is begun", async {
            while status().await != (Status::Processing, began) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        node.done.store(true, Ordering::SeqCst);
        within("it ends", following).await.unwrap();
        assert_eq!(status().await, (Status::Succeeded, began));
    }
}
