//! Answers the calls of peers, and the own member's calls to itself: one table from verb to service.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use tracing::Instrument;

use super::apply::ApplyHandle;
use super::homes::Homes;
use super::journal::JournalHandle;
use super::journal::inbox::NotTaken as JournalNotTaken;
use super::ledger::inbox::NotTaken;
use super::local::Local;
use super::operations::Orders;
use super::records::Records;
use super::snapshot::SnapshotHandle;
use super::task_ids::TaskIdsHandle;
use crate::net::{Answer, Call, Handler};
use crate::rt::UnderWay;
use crate::telemetry::metrics::Metrics;
use crate::types::MemberId;
use crate::wire::verbs::{Class, Refusal, Reply, Request};

/// The services that peers may call.
#[derive(Debug)]
pub struct Parts {
    /// Records.
    pub records: Records,
    /// The own node.
    pub local: Local,
    /// What is done with the journals.
    pub apply: ApplyHandle,
    /// Copies for other members.
    pub snapshots: SnapshotHandle,
    /// The homes of tasks.
    pub homes: Homes,
    /// Orders of leaders.
    pub orders: Orders,
    /// The journals of which this member holds a copy.
    pub journal: JournalHandle,
    /// Numbers for tasks.
    pub task_ids: TaskIdsHandle,
    /// Series.
    pub metrics: Arc<Metrics>,
}

/// Answers calls.
#[derive(Debug)]
pub struct Serve {
    parts: Parts,
    draining: AtomicBool,
    // All calls but those of class control, and writes whose callers have gone.
    under_way: UnderWay,
}

impl Serve {
    /// Calls go to these services.
    pub fn new(parts: Parts) -> Self {
        Self { parts, draining: AtomicBool::new(false), under_way: UnderWay::default() }
    }

    /// Refuses calls from now on and waits for those under way. Calls of class control are served on: a member that goes
    /// still votes, and gives its leases back. So are those of journals: it stores what it is in sync for until it ends.
    pub async fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.under_way.ended().await;
    }
}

#[async_trait]
impl Handler for Serve {
    async fn handle(&self, from: &MemberId, call: Call) -> Answer {
        let journals = matches!(call.request, Request::Journal | Request::Append(_));
        let drained = call.request.class() != Class::Control && !journals;
        // Counted before it is looked at: a drain that has begun waits for this call, or this call sees it.
        let _under_way = drained.then(|| self.under_way.begin());
        if drained && self.draining.load(Ordering::SeqCst) {
            return Answer::of(Reply::Refused(Refusal::Draining));
        }
        let span = tracing::info_span!("call", id = %call.trace, %from, verb = call.request.name());
        let served = Served {
            metrics: &self.parts.metrics,
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
        let Parts { records, local, apply, snapshots, homes, orders, journal, task_ids, .. } = &self.parts;
        match &call.request {
            Request::Probe => Answer::of(Reply::Done),
            Request::Ledger => Answer::of(match records.ledger().deliver(from, &call.body) {
                Ok(()) => Reply::Done,
                Err(NotTaken::Full) => Reply::Refused(Refusal::Busy),
                Err(e) => Reply::Refused(Refusal::Malformed(e.to_string())),
            }),
            Request::Confirm(record) => Answer::of(match records.confirm(record).await {
                Ok(()) => Reply::Done,
                Err(refusal) => Reply::Refused(refusal),
            }),
            Request::Order(order) => Answer::of(match orders.receive(from, order).await {
                Ok(()) => Reply::Done,
                Err(refusal) => Reply::Refused(refusal),
            }),
            Request::TaskIds(count) => Answer::of(Reply::TaskIds(task_ids.answer(*count).await)),
            Request::Journal => Answer::of(match journal.deliver(from, &call.body) {
                Ok(()) => Reply::Done,
                Err(JournalNotTaken::Full) => Reply::Refused(Refusal::Busy),
                Err(e) => Reply::Refused(Refusal::Malformed(e.to_string())),
            }),
            Request::Append(append) => Answer::of(match journal.receive(append, &call.body, call.deadline).await {
                Ok(appended) => Reply::Appended(appended),
                Err(refusal) => Reply::Refused(refusal),
            }),
            Request::Shards(index) => match journal.status(index).await.map(|mut status| {
                snapshots.show(index, &mut status);
                serde_json::to_vec(&status)
            }) {
                Ok(Ok(json)) => Answer { reply: Reply::Json, body: json.into() },
                Ok(Err(e)) => Answer::of(Reply::Refused(Refusal::Other(e.to_string()))),
                Err(e) => Answer::of(Reply::Refused(Refusal::Other(e.to_string()))),
            },
            Request::Verdicts(of) => Answer::of(match apply.verdicts(of).await {
                Ok(verdicts) => Reply::Verdicts(verdicts),
                Err(refusal) => Reply::Refused(refusal),
            }),
            Request::Documents(of) => match apply.documents(of).await {
                Ok(answer) => answer,
                Err(refusal) => Answer::of(Reply::Refused(refusal)),
            },
            Request::Snapshot(of) => snapshots.receive(from, of, &call.body).await,
            Request::Home => homes.receive(from, &call).await,
            Request::Read(read) => local.read(read, &call).await,
            Request::Write(write) => {
                // A write runs to its end even if the caller goes: it may have reached the node.
                let (local, write, call) = (local.clone(), write.clone(), call.clone());
                let under_way = self.under_way.begin();
                let write = async move {
                    let _under_way = under_way;
                    local.write(&write, &call).await
                };
                let write = tokio::spawn(write.in_current_span());
                write.await.unwrap_or_else(|e| Answer::of(Reply::NodeUnknown(format!("the write failed inside: {e}"))))
            }
            Request::Node(question) => local.question(question, &call.body, call.deadline).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use bytes::Bytes;
    use futures_util::poll;
    use tokio::sync::watch;

    use super::*;
    use crate::net::node::NodeClient;
    use crate::services::apply;
    use crate::services::cluster::{Cluster, NodeHealth};
    use crate::services::members::NoPeers;
    use crate::services::snapshot;
    use crate::services::testing::{LONG, World, member, within};
    use crate::types::{PhysicalIndex, ShardSet, TraceId};
    use crate::wire::verbs::{Read, ReadKind, Write, WriteKind};

    async fn serve(world: &World) -> Serve {
        let me = world.at(0);
        let cluster = Cluster::new(world.topology(&member(0)));
        let node = NodeClient::new("http://127.0.0.1:1", None).unwrap();
        let (_, health) = watch::channel(NodeHealth::default());
        let (records, metrics) = (me.records.clone(), Arc::clone(&me.metrics));
        let local = Local::load(node, me.store.clone(), records, cluster, health, LONG, metrics).await.unwrap();
        let (_, apply) = apply::Driver::new(apply::Parts {
            config: apply::Config::default(),
            ledger: me.ledger.clone(),
            journals: me.journals.clone(),
            store: me.journal_store.clone(),
            local: local.clone(),
            peers: Arc::new(NoPeers),
            metrics: Arc::clone(&me.metrics),
        });
        Serve::new(Parts {
            records: me.records.clone(),
            local: local.clone(),
            apply: apply.clone(),
            snapshots: snapshot::Driver::new(snapshot::Parts {
                config: snapshot::Config::default(),
                apply,
                journals: me.journals.clone(),
                store: me.journal_store.clone(),
                local,
                peers: Arc::new(NoPeers),
                start: 1,
            })
            .1,
            homes: me.homes.clone(),
            orders: Orders::new(&[], me.leases.clone(), me.records.clone(), Arc::clone(&me.metrics)),
            journal: me.journals.clone(),
            task_ids: me.task_ids.clone(),
            metrics: Arc::clone(&me.metrics),
        })
    }

    fn call(request: Request) -> Call {
        Call { request, body: Bytes::from("garbage"), deadline: Instant::now() + LONG, trace: TraceId::default() }
    }

    /// Both wait a while for a record that never comes.
    fn read_and_write() -> [Request; 2] {
        let index = PhysicalIndex::new("packages__m00000001").unwrap();
        let shards = ShardSet::all(4);
        [
            Request::Read(Read {
                index: index.clone(),
                record_version: 9,
                shards: shards.clone(),
                kind: ReadKind::Search,
            }),
            Request::Write(Write { index, record_version: 9, shards, kind: WriteKind::DeleteAll }),
        ]
    }

    #[tokio::test]
    async fn a_drain_waits_for_calls_under_way_and_holds_up_no_vote() {
        let world = World::start(1, |_, _| vec![]).await;
        let serve = serve(&world).await;
        let from = member(1);
        let [read, _] = read_and_write();
        let mut under_way = std::pin::pin!(serve.handle(&from, call(read)));
        assert!(poll!(&mut under_way).is_pending());
        let mut drain = std::pin::pin!(serve.drain());
        assert!(poll!(&mut drain).is_pending());
        let vote = tokio::time::timeout(Duration::from_secs(5), serve.handle(&from, call(Request::Ledger))).await;
        assert!(matches!(vote.unwrap().reply, Reply::Refused(Refusal::Malformed(_))), "it was looked at");
        let late = serve.handle(&from, call(Request::Home)).await;
        assert_eq!(late.reply, Reply::Refused(Refusal::Draining));
        assert!(poll!(&mut drain).is_pending());
        within("an answer", under_way).await;
        within("drained", drain).await;
    }

    #[tokio::test]
    async fn a_drain_waits_for_a_write_whose_caller_has_gone() {
        let world = World::start(1, |_, _| vec![]).await;
        let serve = serve(&world).await;
        let from = member(1);
        let [_, write] = read_and_write();
        {
            let mut under_way = std::pin::pin!(serve.handle(&from, call(write)));
            assert!(poll!(&mut under_way).is_pending());
        }
        let mut drain = std::pin::pin!(serve.drain());
        assert!(poll!(&mut drain).is_pending());
        within("drained", drain).await;
    }
}
