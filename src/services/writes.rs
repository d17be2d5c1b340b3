//! Sends a client's write to every replica's sidecar and says what became of it.
//!
//! Nothing is sent before all replicas are known to serve; success is told only when every one has taken its part. A
//! write that no replica has taken is refused (`miroir_no_quorum`); one that some may have taken is `miroir_write_unknown`, with the
//! task that names who has. Must not know: how documents are split, HTTP.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;

use super::cluster::Cluster;
use super::failure::Failure;
use super::indexes::Index;
use super::members::Members;
use super::tasks::{NewTask, Part, Subject, Summary, Tasks};
use crate::net::{Answer, Call, CallError};
use crate::proto::document::error_text_hiding;
use crate::proto::settings::IndexView;
use crate::telemetry::metrics::Metrics;
use crate::types::TraceId;
use crate::types::{ErrorCode, MemberId, ShardSet};
use crate::wire::verbs::{Refusal, Reply, Request, Write, WriteKind};

/// Pause before a part that was certainly not taken is sent again; it doubles.
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// The longest such pause.
const RETRY_MOST: Duration = Duration::from_millis(500);

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

/// The service; cheap to clone.
#[derive(Debug, Clone)]
pub struct Writes {
    cluster: Cluster,
    members: Members,
    tasks: Tasks,
    metrics: Arc<Metrics>,
}

impl Writes {
    /// The service over its parts.
    pub fn new(cluster: Cluster, members: Members, tasks: Tasks, metrics: Arc<Metrics>) -> Self {
        Self { cluster, members, tasks, metrics }
    }

    /// Sends all parts and waits until every node has enqueued its own.
    ///
    /// # Errors
    /// `miroir_no_quorum` if nothing was done, `miroir_write_unknown` (with the task) if something may have been, the node's own
    /// error if every node refused.
    pub async fn send(
        &self,
        index: &Index,
        subject: Subject,
        orders: Vec<Order>,
        custom_metadata: Option<String>,
        deadline: Instant,
        trace: TraceId,
    ) -> Result<Summary, Failure> {
        let kind = subject.kind();
        let ready =
            self.require_serving(orders.iter().map(|o| &o.member)).and_then(|()| self.require_whole(index, &orders));
        if let Err(failure) = ready {
            self.metrics.writes.with_label_values(&[kind, "no_quorum"]).inc();
            return Err(failure);
        }
        let record = &index.value;
        let copies = record.shards.first().map_or(1, |s| s.replicas.len());
        // Every node deletes its own copies: documents are counted once for all of them.
        let task =
            self.tasks.begin(Some(&record.uid), Some(&record.physical), subject, copies, custom_metadata).await?;
        let mut by_member: BTreeMap<MemberId, Vec<Order>> = BTreeMap::new();
        for order in orders {
            by_member.entry(order.member.clone()).or_default().push(order);
        }
        let sends = by_member.into_iter().map(|(member, orders)| async move {
            let mut fates = Vec::with_capacity(orders.len());
            // A member's orders keep their order, and none goes on behind one that failed.
            for order in orders {
                let fate = self.send_one(index, order, deadline, trace).await;
                let goes_on = matches!(fate, Fate::Taken(_) | Fate::Nothing);
                fates.push((member.clone(), fate));
                if !goes_on {
                    break;
                }
            }
            fates
        });
        let fates = futures_util::future::join_all(sends).await.into_iter().flatten().collect();
        let concluded = self.conclude(index, task, fates).await;
        let outcome = match &concluded {
            Ok(_) => "accepted",
            Err(Failure::Mesh { code: ErrorCode::MiroirNoQuorum, .. }) => "no_quorum",
            Err(Failure::Mesh { code: ErrorCode::MiroirWriteUnknown, .. }) => "unknown",
            Err(_) => "failed",
        };
        self.metrics.writes.with_label_values(&[kind, outcome]).inc();
        concluded
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
            o.kind != WriteKind::DeleteIndex && seen.get(&o.member).is_some_and(|s| s.unserved.contains_key(physical))
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

    async fn conclude(&self, index: &Index, task: NewTask, fates: Vec<(MemberId, Fate)>) -> Result<Summary, Failure> {
        let mut parts = Vec::new();
        let (mut not_taken, mut unknown, mut rejected) = (Vec::new(), Vec::new(), None);
        for (member, fate) in fates {
            match fate {
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
            return self.tasks.sent(task, parts).await;
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
            self.tasks
                .fail(task, ErrorCode::MiroirNoQuorum, &format!("No replica has taken the write: {why}."))
                .await?;
            return Err(failure);
        }
        let taken: Vec<_> = parts.iter().map(|p| p.member.as_str()).collect();
        let message = format!(
            "The write was taken by [{}]; not taken by [{}]; not known of [{}]. Send it again to make all copies equal.",
            taken.join(", "),
            client(&not_taken.join("; ")),
            client(&unknown.join("; "))
        );
        let uid = task.uid;
        self.tasks.fail(task, ErrorCode::MiroirIncomplete, &message).await?;
        Err(Failure::Mesh { code: ErrorCode::MiroirWriteUnknown, message, task: Some(uid) })
    }
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
