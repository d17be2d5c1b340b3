//! Answers the calls of peers, and the own member's calls to itself: one table from verb to service.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::RwLock;
use tracing::Instrument;

use super::ledger::inbox::NotTaken;
use super::local::Local;
use super::operations::Orders;
use super::records::Records;
use super::tasks::Tasks;
use crate::net::{Answer, Call, Handler};
use crate::telemetry::metrics::Metrics;
use crate::types::MemberId;
use crate::wire::verbs::{Class, Refusal, Reply, Request};

/// The services that peers may call.
#[derive(Debug)]
pub struct Serve {
    records: Records,
    local: Local,
    tasks: Tasks,
    orders: Orders,
    draining: AtomicBool,
    // Read-locked by every call under way.
    under_way: RwLock<()>,
    metrics: Arc<Metrics>,
}

impl Serve {
    /// Calls go to these services.
    pub fn new(records: Records, local: Local, tasks: Tasks, orders: Orders, metrics: Arc<Metrics>) -> Self {
        let draining = AtomicBool::new(false);
        Self { records, local, tasks, orders, draining, under_way: RwLock::new(()), metrics }
    }

    /// Refuses calls from now on and waits for those under way.
    pub async fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        drop(self.under_way.write().await);
    }
}

#[async_trait]
impl Handler for Serve {
    async fn handle(&self, from: &MemberId, call: Call) -> Answer {
        // Looked at before the lock, so that nobody waits behind a drain, and with it: a drain that has begun waits for this
        // call, or this call sees it.
        let draining = || self.draining.load(Ordering::SeqCst) && !matches!(call.request.class(), Class::Control);
        if draining() {
            return Answer::of(Reply::Refused(Refusal::Draining));
        }
        let _under_way = self.under_way.read().await;
        if draining() {
            return Answer::of(Reply::Refused(Refusal::Draining));
        }
        let span = tracing::info_span!("call", id = %call.trace, %from, verb = call.request.name());
        let served = Served {
            metrics: &self.metrics,
            verb: call.request.name(),
            class: call.request.class(),
            outcome: "cancelled",
        };
        let answer = async {
            let answer = self.answer(from, call).await;
            tracing::debug!("a peer's call was answered");
            answer
        };
        let answer = answer.instrument(span).await;
        served.end(&answer);
        answer
    }
}

/// Counts a call of a peer, also one that is dropped.
struct Served<'a> {
    metrics: &'a Metrics,
    verb: &'static str,
    class: Class,
    outcome: &'static str,
}

impl Served<'_> {
    fn end(mut self, answer: &Answer) {
        self.outcome = if matches!(answer.reply, Reply::Refused(_)) { "refused" } else { "ok" };
    }
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        self.metrics.mesh_served.with_label_values(&[self.verb, self.class.as_str(), self.outcome]).inc();
    }
}

impl Serve {
    async fn answer(&self, from: &MemberId, call: Call) -> Answer {
        match &call.request {
            Request::Probe => Answer::of(Reply::Done),
            Request::Ledger => Answer::of(match self.records.ledger().deliver(from, &call.body) {
                Ok(()) => Reply::Done,
                Err(NotTaken::Full) => Reply::Refused(Refusal::Busy),
                Err(e) => Reply::Refused(Refusal::Malformed(e.to_string())),
            }),
            Request::Confirm(record) => Answer::of(match self.records.confirm(record).await {
                Ok(()) => Reply::Done,
                Err(refusal) => Reply::Refused(refusal),
            }),
            Request::Order(order) => Answer::of(match self.orders.receive(from, order).await {
                Ok(()) => Reply::Done,
                Err(refusal) => Reply::Refused(refusal),
            }),
            Request::Read(read) => self.local.read(read, &call).await,
            Request::Write(write) => {
                // A write runs to its end even if the caller goes: it may have reached the node.
                let (local, write, call) = (self.local.clone(), write.clone(), call.clone());
                let write = async move { local.write(&write, &call).await };
                let write = tokio::spawn(write.in_current_span());
                write.await.unwrap_or_else(|e| Answer::of(Reply::NodeUnknown(format!("the write failed inside: {e}"))))
            }
            Request::Node(question) => self.local.question(question, call.deadline).await,
            Request::Task(uid) => match self.tasks.own_task(*uid, call.trace).await {
                Ok(Some(view)) => Answer { reply: Reply::Task, body: Bytes::from(view) },
                Ok(None) => Answer::of(Reply::NoTask),
                Err(e) => Answer::of(Reply::Refused(Refusal::Other(format!("{e:?}")))),
            },
        }
    }
}
