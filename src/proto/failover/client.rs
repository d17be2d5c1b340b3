//! Clients that write to one shard, one write after the other, each through a sidecar that sends it as senders do.

use std::sync::Arc;
use std::time::Duration;

use super::world::{Event, World};
use crate::proto::env::Instant;
use crate::proto::journal::{Answer, Body, Kind, OpId, Stands, Write, record};
use crate::types::{Epoch, MemberId, ShardId, TaskPart, TaskUid};

/// The shard that clients write to.
pub(super) const SHARD: ShardId = ShardId(0);
/// Between an acknowledgement and the next write.
const THINKS: Duration = Duration::from_millis(15);
/// Of a sender: between two attempts, how long one may take, and how long a primary that was replaced may still answer.
const PAUSE: Duration = Duration::from_millis(50);
const ATTEMPT: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A write is wanted.
    Begin,
    /// This attempt is made.
    Try(u64),
    /// This attempt is given up.
    GiveUp(u64),
}

#[derive(Debug, Clone)]
pub(super) struct Client {
    /// Whose sidecar it asks.
    pub at: MemberId,
    task: TaskUid,
    attempt: u64,
    /// Under way: to whom, and under which epoch the record named it.
    sent: Option<(MemberId, Epoch)>,
    /// Whom the newest answer names.
    hint: (Epoch, Option<MemberId>),
    last: Instant,
    /// The longest time between two acknowledgements.
    pub longest: Duration,
    pub acknowledged: u64,
}

impl World {
    /// A client begins to write.
    pub fn connect(&mut self, at: &MemberId) {
        let client = Client {
            at: at.clone(),
            task: TaskUid(0),
            attempt: 0,
            sent: None,
            hint: (Epoch::ZERO, None),
            last: self.now,
            longest: Duration::ZERO,
            acknowledged: 0,
        };
        self.clients.push(client);
        self.after(Duration::ZERO, Event::Client(self.clients.len() - 1, Step::Begin));
    }

    pub(super) fn client(&mut self, client: usize, step: Step) {
        match step {
            Step::Begin if self.is_ready(client) => {
                self.next_task += 1;
                let of = &mut self.clients[client];
                (of.task, of.hint) = (TaskUid(self.next_task), (Epoch::ZERO, None));
                self.attempt(client);
            }
            Step::Begin => self.after(PAUSE, Event::Client(client, Step::Begin)),
            Step::Try(attempt) if self.clients[client].attempt == attempt => self.attempt(client),
            Step::GiveUp(attempt) if self.clients[client].attempt == attempt => self.try_again(client),
            Step::Try(_) | Step::GiveUp(_) => {}
        }
    }

    /// Whether the write is begun at all: its primary, and enough in sync, are not suspected to be gone.
    fn is_ready(&self, client: usize) -> bool {
        let sidecar = &self.members[&self.clients[client].at];
        let Some(state) = sidecar.record.shard(SHARD) else { return false };
        let reached = |member: &MemberId| !sidecar.suspects.contains(member);
        let storing = state.in_sync.iter().filter(|id| reached(&id.member)).count();
        state.primary.as_ref().is_some_and(|p| reached(&p.member))
            && storing >= record::default_min_in_sync(state.copies())
    }

    fn attempt(&mut self, client: usize) {
        let of = &self.clients[client];
        let (at, task) = (of.at.clone(), of.task);
        let known = self.members[&at].record.shard(SHARD).and_then(|s| Some((s.epoch, s.primary.clone()?.member)));
        let (epoch, to) = match (&of.hint, known) {
            ((hinted, Some(to)), Some((epoch, _))) if *hinted > epoch => (epoch, to.clone()),
            (_, Some(known)) => known,
            _ => return self.try_again(client),
        };
        self.trace(|| format!("client {client} at {at} sends {task} to {to}"));
        let of = &mut self.clients[client];
        of.attempt += 1;
        of.sent = Some((to.clone(), epoch));
        let attempt = of.attempt;
        let part = TaskPart { task, part: 0 };
        let op = OpId(self.ops.len() as u64);
        self.ops.insert(op, (client, attempt, part));
        let body = Body(Arc::from(task.0.to_le_bytes()));
        let write = Write { part, kind: Kind::Set { skip_creation: false }, body };
        self.send(Event::Write { from: at, to, op, shard: SHARD, write });
        self.after(ATTEMPT, Event::Client(client, Step::GiveUp(attempt)));
    }

    /// The attempt came to nothing, or nobody knows what it came to.
    fn try_again(&mut self, client: usize) {
        let of = &mut self.clients[client];
        of.attempt += 1;
        of.sent = None;
        let next = Step::Try(of.attempt);
        self.after(PAUSE, Event::Client(client, next));
    }

    /// The record of a sidecar has changed: an answer of a primary that was replaced may never come.
    pub(super) fn abandon(&mut self, at: &MemberId) {
        let Some(state) = self.members[at].record.shard(SHARD) else { return };
        let (epoch, primary) = (state.epoch, state.primary.as_ref().map(|p| p.member.clone()));
        let replaced = |sent: &(MemberId, Epoch)| epoch > sent.1 && primary.as_ref().is_some_and(|p| *p != sent.0);
        for client in 0..self.clients.len() {
            let of = &self.clients[client];
            if of.at == *at && of.sent.as_ref().is_some_and(replaced) {
                let attempt = of.attempt;
                self.after(ANSWER, Event::Client(client, Step::GiveUp(attempt)));
            }
        }
    }

    /// A replica answers a sender.
    pub(super) fn answer(&mut self, from: &MemberId, shard: ShardId, epoch: Epoch, op: OpId, answer: Answer) {
        let (client, _, part) = self.ops[&op];
        if let Answer::Committed { seq, refused, .. } = answer {
            let stands = Stands { seq, refused };
            let checked = self.histories.get_mut(&shard).unwrap().acknowledged(epoch, part, stands);
            self.hold(checked);
            self.check_durable(shard, seq);
        }
        let to = self.clients[client].at.clone();
        self.send(Event::Told { from: from.clone(), to, op, answer });
    }

    pub(super) fn told(&mut self, op: OpId, answer: Answer) {
        let (client, attempt, _) = self.ops[&op];
        let now = self.now;
        let of = &mut self.clients[client];
        if of.attempt != attempt {
            return;
        }
        let (last, at) = (of.last, of.at.clone());
        self.trace(|| format!("client {client} at {at} is told after {:?}: {answer:?}", now.since(last)));
        let of = &mut self.clients[client];
        match answer {
            Answer::Committed { .. } => {
                of.attempt += 1;
                of.sent = None;
                of.longest = of.longest.max(now.since(of.last));
                (of.last, of.acknowledged) = (now, of.acknowledged + 1);
                self.after(THINKS, Event::Client(client, Step::Begin));
            }
            Answer::NotPrimary(hint) | Answer::Unknown(hint) => {
                if hint.epoch >= of.hint.0 {
                    of.hint = (hint.epoch, hint.primary.map(|p| p.member));
                }
                self.try_again(client);
            }
            Answer::NoQuorum | Answer::Busy => self.try_again(client),
            Answer::Refused => self.fail("a right write was refused"),
        }
    }
}
