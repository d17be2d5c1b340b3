//! Messages to peers.
//!
//! Rule: each peer has a queue and calls of its own, so that one that is dead or slow holds up nobody else; what has no room
//! there is dropped. Must not know: what messages say.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};

use crate::net::{Call, CallError, Peers};
use crate::proto::ledger::Message;
use crate::telemetry::metrics::Metrics;
use crate::types::limits::LEDGER_ENCODED_MAX_BYTES;
use crate::types::{MemberId, TraceId};
use crate::wire::codec;
use crate::wire::verbs::Request;

/// Messages that wait for one peer.
const WAITING: usize = 128;
/// Calls to one peer under way.
const CALLS: usize = 8;
/// How long a call may take; what did not arrive by then is repeated by the core.
const PATIENCE: Duration = Duration::from_secs(2);

/// The queues of all peers.
pub struct Outbox {
    peers: Arc<dyn Peers>,
    metrics: Arc<Metrics>,
    queues: BTreeMap<MemberId, mpsc::Sender<Message>>,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").field("queues", &self.queues.len()).finish_non_exhaustive()
    }
}

impl Outbox {
    /// Queues that are made when they are needed.
    pub fn new(peers: Arc<dyn Peers>, metrics: Arc<Metrics>) -> Self {
        Self { peers, metrics, queues: BTreeMap::new() }
    }

    /// Sends when it can; never waits.
    pub fn send(&mut self, to: MemberId, message: Message) {
        let (peers, metrics) = (&self.peers, &self.metrics);
        let queue = self.queues.entry(to).or_insert_with_key(|to| {
            let (queue, waiting) = mpsc::channel(WAITING);
            tokio::spawn(serve(Arc::clone(peers), Arc::clone(metrics), to.clone(), waiting));
            queue
        });
        let outcome = if queue.try_send(message).is_ok() { "queued" } else { "dropped" };
        self.metrics.ledger_messages.with_label_values(&[outcome]).inc();
    }

    /// Lets go of those to whom nothing is sent any more; what waits for them is still sent.
    pub fn keep(&mut self, members: impl Fn(&MemberId) -> bool) {
        self.queues.retain(|member, _| members(member));
    }
}

/// Sends what waits for one peer until its queue is let go of.
async fn serve(peers: Arc<dyn Peers>, metrics: Arc<Metrics>, to: MemberId, mut waiting: mpsc::Receiver<Message>) {
    let calls = Arc::new(Semaphore::new(CALLS));
    while let Some(message) = waiting.recv().await {
        let body = match codec::encode("ledger message", &message, LEDGER_ENCODED_MAX_BYTES) {
            Ok(body) => Bytes::from(body),
            Err(error) => {
                tracing::error!(%to, %error, "a ledger message could not be sent");
                continue;
            }
        };
        let Ok(under_way) = Arc::clone(&calls).acquire_owned().await else { return };
        let (peers, metrics, to) = (Arc::clone(&peers), Arc::clone(&metrics), to.clone());
        tokio::spawn(async move {
            let deadline = Instant::now() + PATIENCE;
            let call = Call { request: Request::Ledger, body, deadline, trace: TraceId::default() };
            let outcome = match peers.call(&to, call).await {
                Ok(_) => "delivered",
                Err(CallError::Refused { .. }) => "refused",
                Err(error) => {
                    tracing::trace!(%to, %error, "a ledger message did not arrive");
                    "lost"
                }
            };
            metrics.ledger_messages.with_label_values(&[outcome]).inc();
            drop(under_way);
        });
    }
}
