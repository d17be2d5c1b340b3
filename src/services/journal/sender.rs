//! Parts of a request on their way to their primaries, until each is committed.
//!
//! All parts for one member travel in one call. A part that was not committed is sent again, to whom the last answer or the
//! record names, until the deadline; its primary recognises it. Rule: an answer that says that nothing was appended is the
//! last word only if no earlier attempt may have been. Must not know: what parts say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;

use super::handle::{JournalHandle, answer_of, unknown};
use crate::net::{Call, CallError, Peers};
use crate::proto::journal::{Answer, Write};
use crate::services::cluster::Cluster;
use crate::types::limits::{APPEND_PARTS_MAX, CALL_BODY_MAX_BYTES};
use crate::types::{Epoch, JournalRecord, MemberId, PhysicalIndex, ShardId, TraceId};
use crate::wire::verbs::{Append, AppendPart, Reply, Request};

/// Who leads a shard, and since which epoch.
type Led = Option<(Epoch, MemberId)>;
/// Whom a hint of this epoch names.
type Hinted = (Epoch, Option<MemberId>);

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// How long shards may be without a primary: longer than an election.
const ELECTION: Duration = Duration::from_secs(5);
/// How long a node may have too much to do.
const PRESSED: Duration = Duration::from_secs(1);
/// How long one attempt may take: an answer may be lost with its primary.
const ATTEMPT: Duration = Duration::from_secs(2);

/// How long a primary that was replaced may still answer.
const ANSWER: Duration = Duration::from_millis(50);

impl JournalHandle {
    /// Waits until the record names another primary than `by` for one of these shards, under a newer epoch than now: then an
    /// answer of `by` may never come.
    pub(crate) async fn replaced(&self, index: &PhysicalIndex, shards: &[ShardId], by: &MemberId) {
        let states = || {
            let record = self.record(index);
            let state = |shard: &ShardId| {
                let state = record.as_ref()?.shard(*shard)?;
                Some((state.epoch, state.primary.as_ref()?.member.clone()))
            };
            shards.iter().map(state).collect::<Vec<_>>()
        };
        let mut changes = self.ledger.watch();
        let before = states();
        loop {
            // Nobody changes records any more when the process is about to end.
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
            let newer = |(now, before): (&Led, &Led)| {
                let from = before.as_ref().map_or(Epoch::ZERO, |(epoch, _)| *epoch);
                now.as_ref().is_some_and(|(epoch, primary)| *epoch > from && primary != by)
            };
            if states().iter().zip(&before).any(newer) {
                return tokio::time::sleep(ANSWER).await;
            }
        }
    }
}

/// Sends parts; cheap to clone.
#[derive(Clone)]
pub struct Sender {
    journals: JournalHandle,
    peers: Arc<dyn Peers>,
    cluster: Cluster,
}

/// Why parts of a request can't be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotReady {
    /// A shard has no primary that answers, or too few replicas in sync.
    NoQuorum,
    /// The node of a primary has more to do than it should.
    Pressed,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").field("journals", &self.journals).finish_non_exhaustive()
    }
}

/// One part on its way.
struct Part {
    shard: ShardId,
    write: Write,
    /// The last word, or the last that was heard.
    answer: Answer,
    done: bool,
    /// An attempt may have appended it.
    maybe: bool,
    /// Whom the newest hint names.
    hint: Hinted,
}

impl Part {
    fn heard(&mut self, answer: Answer) {
        match &answer {
            Answer::Committed { .. } => self.done = true,
            Answer::Refused => self.done = !self.maybe,
            Answer::Unknown(hint) | Answer::NotPrimary(hint) => {
                self.maybe |= matches!(answer, Answer::Unknown(_));
                if hint.epoch >= self.hint.0 {
                    self.hint = (hint.epoch, hint.primary.as_ref().map(|p| p.member.clone()));
                }
            }
            Answer::NoQuorum | Answer::Busy => {}
        }
        self.answer = answer;
    }
}

/// As few calls as their bounds allow. Calls may overtake each other: what does not fit into one call with the parts of the same
/// shard before it is not sent before those are done.
fn in_calls(parts: &[Part], which: Vec<usize>) -> Vec<Vec<usize>> {
    let (mut calls, mut bytes) = (Vec::<Vec<usize>>::new(), 0);
    let (mut begun, mut held) = (BTreeMap::new(), BTreeSet::new());
    for i in which {
        let (shard, size) = (parts[i].shard, parts[i].write.body.0.len());
        let fits = |call: &Vec<usize>| call.len() < APPEND_PARTS_MAX && bytes + size <= CALL_BODY_MAX_BYTES;
        let fits = calls.last().is_some_and(fits);
        let call = calls.len() - usize::from(fits);
        if held.contains(&shard) || *begun.entry(shard).or_insert(call) != call {
            held.insert(shard);
            continue;
        }
        match calls.last_mut().filter(|_| fits) {
            Some(call) => call.push(i),
            None => calls.push(vec![i]),
        }
        bytes = if fits { bytes + size } else { size };
    }
    calls
}

impl Sender {
    /// Parts go from this member, to itself or through `peers`.
    pub fn new(journals: JournalHandle, peers: Arc<dyn Peers>, cluster: Cluster) -> Self {
        Self { journals, peers, cluster }
    }

    /// Waits until every shard has a primary that is not suspected to be gone, enough replicas in sync, and no node of a
    /// primary too much to do: whatever is refused before a part is sent is certainly not done.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// What was missing all the time.
    pub async fn ready(
        &self,
        index: &PhysicalIndex,
        shards: &BTreeSet<ShardId>,
        deadline: Instant,
    ) -> Result<(), NotReady> {
        let began = Instant::now();
        loop {
            let Err(why) = self.is_ready(index, shards) else { return Ok(()) };
            let patience = match why {
                NotReady::NoQuorum => ELECTION,
                NotReady::Pressed => PRESSED,
            };
            if Instant::now() + PAUSE >= deadline.min(began + patience) {
                return Err(why);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn is_ready(&self, index: &PhysicalIndex, shards: &BTreeSet<ShardId>) -> Result<(), NotReady> {
        let record = self.journals.record(index).ok_or(NotReady::NoQuorum)?;
        let (mut primaries, seen) = (BTreeSet::new(), self.cluster.seen());
        for shard in shards {
            let state = record.shard(*shard).ok_or(NotReady::NoQuorum)?;
            let primary = state.primary.as_ref().ok_or(NotReady::NoQuorum)?;
            // What they would not store is not begun.
            let stores = |member: &MemberId| {
                let full = seen.get(member).is_some_and(|seen| seen.disk_full);
                !full && (*member == self.journals.me.member || !self.peers.is_suspect(member))
            };
            let storing = state.in_sync.iter().filter(|id| stores(&id.member)).count();
            if !stores(&primary.member) || storing < self.journals.min_in_sync(state) {
                return Err(NotReady::NoQuorum);
            }
            primaries.insert(&primary.member);
        }
        let pressed =
            |member: &&MemberId| seen.get(*member).is_some_and(|s| s.pressed_all || s.pressed.contains(index));
        if primaries.iter().any(pressed) { Err(NotReady::Pressed) } else { Ok(()) }
    }

    /// Sends parts until each is committed, or refused, or the deadline has come. An answer for each, in their order:
    /// [`Answer::Unknown`] if it may be committed, now or later; all but that and [`Answer::Committed`] say that it never
    /// will be, unless it is sent again.
    ///
    /// Dropping the future does not undo it.
    pub async fn send(
        &self,
        index: &PhysicalIndex,
        parts: Vec<(ShardId, Write)>,
        deadline: Instant,
        trace: TraceId,
    ) -> Vec<Answer> {
        let part = |(shard, write)| Part {
            shard,
            write,
            answer: Answer::Busy,
            done: false,
            maybe: false,
            hint: (Epoch::ZERO, None),
        };
        let mut parts: Vec<Part> = parts.into_iter().map(part).collect();
        loop {
            let mut by_member: BTreeMap<MemberId, Vec<usize>> = BTreeMap::new();
            let record = self.journals.record(index);
            let mut hints: BTreeMap<ShardId, &Hinted> = BTreeMap::new();
            for part in &parts {
                let newest = hints.entry(part.shard).or_insert(&part.hint);
                *newest = if part.hint.0 > newest.0 { &part.hint } else { newest };
            }
            for (i, part) in parts.iter().enumerate().filter(|(_, part)| !part.done) {
                // All of a shard go to the same member, for they are appended in their order.
                if let Some(to) = target(record.as_deref(), part.shard, hints[&part.shard]) {
                    by_member.entry(to).or_default().push(i);
                }
            }
            let until = deadline.min(Instant::now() + ATTEMPT);
            let calls = by_member.into_iter().flat_map(|(to, which)| {
                let calls = in_calls(&parts, which).into_iter();
                calls.map(move |which| (to.clone(), which))
            });
            let attempts = calls.map(|(to, which)| {
                let writes = which.iter().map(|i| (parts[*i].shard, parts[*i].write.clone())).collect();
                let shards: Vec<ShardId> = which.iter().map(|i| parts[*i].shard).collect();
                async move {
                    let answers = tokio::select! {
                        answers = self.attempt(&to, index, writes, until, trace) => answers,
                        () = self.journals.replaced(index, &shards, &to) => vec![unknown(); which.len()],
                    };
                    (answers, which)
                }
            });
            let heard: Vec<_> = join_all(attempts).await;
            for (answers, which) in heard {
                which.into_iter().zip(answers).for_each(|(i, answer)| parts[i].heard(answer));
            }
            if parts.iter().all(|part| part.done) || Instant::now() + PAUSE >= deadline {
                let waiting: BTreeSet<ShardId> = parts.iter().filter(|p| !p.done).map(|p| p.shard).collect();
                if !waiting.is_empty() {
                    let who = |shard: &ShardId| (*shard, target(record.as_deref(), *shard, &(Epoch::ZERO, None)));
                    let primaries: Vec<_> = waiting.iter().take(TOLD).map(who).collect();
                    tracing::warn!(%index, shards = waiting.len(), ?primaries, "shards did not take a write in time");
                }
                let last = |part: Part| match part.answer {
                    answer @ (Answer::Committed { .. } | Answer::Unknown(_)) => answer,
                    _ if part.maybe => unknown(),
                    answer => answer,
                };
                return parts.into_iter().map(last).collect();
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn attempt(
        &self,
        to: &MemberId,
        index: &PhysicalIndex,
        parts: Vec<(ShardId, Write)>,
        deadline: Instant,
        trace: TraceId,
    ) -> Vec<Answer> {
        let count = parts.len();
        if *to == self.journals.me.member {
            return self.journals.write(index, parts, deadline).await;
        }
        let mut body = BytesMut::with_capacity(parts.iter().map(|(_, w)| w.body.0.len()).sum());
        let mut heads = Vec::new();
        for (shard, write) in parts {
            let Ok(length) = u32::try_from(write.body.0.len()) else { return vec![Answer::Refused; count] };
            heads.push(AppendPart { shard, part: write.part, kind: write.kind, length });
            body.extend_from_slice(&write.body.0);
        }
        let request = Request::Append(Append { index: index.clone(), parts: heads });
        let call = Call { request, body: Bytes::from(body), deadline, trace };
        match self.peers.call(to, call).await.map(|answer| answer.reply) {
            Ok(Reply::Appended(told)) if told.len() == count => told.into_iter().map(answer_of).collect(),
            Err(CallError::NotSent { .. } | CallError::Refused { .. }) => vec![Answer::Busy; count],
            Ok(_) | Err(CallError::NoAnswer { .. }) => vec![unknown(); count],
        }
    }
}

/// Shards that a warning names.
const TOLD: usize = 16;

/// Who orders the shard's writes, by the newest that was heard.
fn target(record: Option<&JournalRecord>, shard: ShardId, hint: &Hinted) -> Option<MemberId> {
    let state = record.and_then(|record| record.shard(shard));
    let known = state.and_then(|s| Some((s.epoch, &s.primary.as_ref()?.member)));
    match (known, hint) {
        (Some((epoch, _)), (hinted, Some(member))) if *hinted > epoch => Some(member.clone()),
        (Some((_, member)), _) => Some(member.clone()),
        (None, (_, member)) => member.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::journal::{Body, Kind};
    use crate::types::{TaskPart, TaskUid};

    #[test]
    fn parts_of_a_shard_never_go_in_two_calls_at_once() {
        let part = |shard: u16, part: u32| Part {
            shard: ShardId(shard),
            write: Write { part: TaskPart { task: TaskUid(1), part }, kind: Kind::Delete, body: Body::empty() },
            answer: Answer::Busy,
            done: false,
            maybe: false,
            hint: (Epoch::ZERO, None),
        };
        let most = u32::try_from(APPEND_PARTS_MAX).unwrap();
        let first = (0..most - 2).map(|n| part(0, n));
        let parts: Vec<Part> = first.chain((0..5).map(|n| part(1, n))).chain((0..2).map(|n| part(2, n))).collect();
        let calls = in_calls(&parts, (0..parts.len()).collect());
        let of =
            |call: &[usize]| call.iter().map(|i| (parts[*i].shard.0, parts[*i].write.part.part)).collect::<Vec<_>>();
        assert_eq!(calls.len(), 2);
        assert_eq!(calls[0].len(), APPEND_PARTS_MAX);
        assert_eq!(of(&calls[0][APPEND_PARTS_MAX - 2..]), [(1, 0), (1, 1)]);
        assert_eq!(of(&calls[1]), [(2, 0), (2, 1)], "the rest of the other shard waits");
    }
}
