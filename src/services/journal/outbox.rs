//! Messages to peers.
//!
//! Each peer has a queue and one call at a time: what waits meanwhile travels together in the next, whatever shards it is of,
//! and arrives in its order, which saves repetitions. Rule: what has no room in a queue is dropped, so that one that is dead or
//! slow holds up nobody else. Must not know: what messages say.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::inbox::Envelope;
use crate::net::{Call, Peers};
use crate::proto::journal::{Entry, Said};
use crate::types::limits::{JOURNAL_ENCODED_MAX_BYTES, JOURNAL_MESSAGES_MAX};
use crate::types::{MemberId, TraceId};
use crate::wire::codec;
use crate::wire::verbs::Request;

/// Messages that wait for one peer.
const WAITING: usize = 4_096;
/// Bytes of them, unless it is one.
const WAITING_BYTES: usize = 64 << 20;
/// Bytes of one call, unless it is of one message.
const TOGETHER_BYTES: usize = 4 << 20;
/// What a message weighs beside its entries, roughly.
const MESSAGE_BYTES: usize = 256;
/// How long a call may take, and so much longer for each [`TOGETHER_BYTES`]; what did not arrive by then is repeated by the
/// cores.
const PATIENCE: Duration = Duration::from_secs(1);

fn weight(message: &Envelope) -> usize {
    let entries = match &message.message.said {
        Said::Append { entries, .. } => entries.iter().map(Entry::weight).sum(),
        _ => 0,
    };
    MESSAGE_BYTES + entries
}

struct Queue {
    waiting: mpsc::Sender<(Envelope, usize)>,
    bytes: Arc<AtomicUsize>,
}

/// The queues of all peers.
pub struct Outbox {
    peers: Arc<dyn Peers>,
    queues: BTreeMap<MemberId, Queue>,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").field("queues", &self.queues.len()).finish_non_exhaustive()
    }
}

impl Outbox {
    /// Queues that are made when they are needed.
    pub fn new(peers: Arc<dyn Peers>) -> Self {
        Self { peers, queues: BTreeMap::new() }
    }

    /// Sends when it can; never waits.
    pub fn send(&mut self, to: &MemberId, message: Envelope) {
        let peers = &self.peers;
        let queue = self.queues.entry(to.clone()).or_insert_with(|| {
            let (waiting, read) = mpsc::channel(WAITING);
            let bytes = Arc::new(AtomicUsize::new(0));
            tokio::spawn(serve(Arc::clone(peers), to.clone(), read, Arc::clone(&bytes)));
            Queue { waiting, bytes }
        });
        let weight = weight(&message);
        let waits = queue.bytes.load(Ordering::Relaxed);
        if waits > 0 && waits + weight > WAITING_BYTES {
            return;
        }
        queue.bytes.fetch_add(weight, Ordering::Relaxed);
        // What has no room is repeated by its core.
        if queue.waiting.try_send((message, weight)).is_err() {
            queue.bytes.fetch_sub(weight, Ordering::Relaxed);
        }
    }

    /// Lets go of those to whom nothing is sent any more; what waits for them is still sent.
    pub fn keep(&mut self, members: impl Fn(&MemberId) -> bool) {
        self.queues.retain(|member, _| members(member));
    }
}

/// Sends what waits for one peer until its queue is let go of.
async fn serve(
    peers: Arc<dyn Peers>,
    to: MemberId,
    mut waiting: mpsc::Receiver<(Envelope, usize)>,
    bytes: Arc<AtomicUsize>,
) {
    let mut left = None;
    loop {
        let first = match left.take() {
            Some(first) => first,
            None => match waiting.recv().await {
                Some(first) => first,
                None => return,
            },
        };
        let mut sum = first.1;
        let mut together = vec![first.0];
        while together.len() < JOURNAL_MESSAGES_MAX
            && let Ok((message, weight)) = waiting.try_recv()
        {
            if sum + weight > TOGETHER_BYTES {
                left = Some((message, weight));
                break;
            }
            sum += weight;
            together.push(message);
        }
        bytes.fetch_sub(sum, Ordering::Relaxed);
        match codec::encode("journal messages", &together, JOURNAL_ENCODED_MAX_BYTES) {
            Ok(body) => {
                let times = u32::try_from(1 + sum / TOGETHER_BYTES).unwrap_or(u32::MAX);
                let deadline = Instant::now() + PATIENCE * times;
                let (request, trace) = (Request::Journal, TraceId::default());
                let call = Call { request, body: Bytes::from(body), deadline, trace };
                if let Err(error) = peers.call(&to, call).await {
                    tracing::trace!(%to, %error, count = together.len(), "messages of journals did not arrive");
                }
            }
            Err(error) => tracing::error!(%to, %error, "messages of journals could not be sent"),
        }
    }
}
