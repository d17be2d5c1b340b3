//! A primary's reign: places for writes, what is committed, who is told.
//!
//! Rule: it stores its epoch, then appends an empty entry; when that is committed, so is everything before it, and only then
//! does it say what is committed. It refuses a write only before it appends it. An entry is committed when every member of
//! the in-sync set has stored it, and everyone whom it has ever asked to let into the set, until the record rules that out.
//! Must not know: who elected it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::effect::{Answer, Effect, OpId, Rows};
use super::entry::{Entry, Stands, Write};
use super::in_sync::Asked;
use super::log::Found;
use super::message::Said;
use super::peer::Peer;
use super::replica::Base;
use crate::proto::env::Instant;
use crate::types::{MemberId, Position, ReplicaId, ShardCopy, ShardState, TaskPart};

/// Most senders that wait for one reign's entries.
const WAITING_MAX: usize = 8_192;
/// Most parts that are looked for in the store at a time.
const FINDING_MAX: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The epoch is on its way to the store.
    Starting { token: u64 },
    /// The empty entry is not committed.
    Opening { seq: u64 },
    /// It knows what is committed.
    Open,
}

#[derive(Debug, Clone)]
pub(super) struct Primary {
    phase: Phase,
    pub(super) peers: BTreeMap<MemberId, Peer>,
    /// Replicas that were asked to be let in, with the `set` that the last such request started from: they count.
    pub(super) counted: BTreeMap<ReplicaId, u64>,
    pub(super) asked: Option<Asked>,
    /// When another member was last asked to take over.
    pub(super) handed_at: Option<Instant>,
    /// Up to here nobody's node is waited for any more.
    overdue: u64,
    waiting: BTreeMap<u64, (bool, Vec<OpId>)>,
    waiters: usize,
    finding: BTreeMap<TaskPart, Finding>,
}

/// A part that is looked for in the store.
#[derive(Debug, Clone, Default)]
struct Finding {
    ops: Vec<(OpId, Write)>,
    /// What the store said, when it has.
    found: Option<Option<Stands>>,
}

impl Primary {
    /// Begins the reign that the record gives to this process, or goes on with one that was at rest.
    pub(super) fn begin(base: &mut Base, now: Instant, before: Option<Arc<ShardState>>, rested: bool) -> Self {
        let mut primary = Self {
            phase: Phase::Open,
            peers: BTreeMap::new(),
            counted: BTreeMap::new(),
            asked: None,
            handed_at: None,
            overdue: 0,
            waiting: BTreeMap::new(),
            waiters: 0,
            finding: BTreeMap::new(),
        };
        if !rested {
            base.effects.push_back(Effect::Reigns { epoch: base.epoch });
            primary.phase = Phase::Starting { token: base.store(now, Rows::default()) };
        }
        primary.know_peers(base);
        primary.lapse_of_former(base, now, before);
        primary
    }

    /// A former primary that lives and yet left the set gave up its place because it was slow.
    fn lapse_of_former(&mut self, base: &Base, now: Instant, before: Option<Arc<ShardState>>) {
        let Some(before) = before else { return };
        let former = before.primary.as_ref().filter(|p| base.sight.get(&p.member).is_some_and(|a| a.start == p.start));
        let left = |m: &MemberId| base.record.as_ref().is_some_and(|r| !r.in_sync.iter().any(|id| id.member == *m));
        if let Some(former) = former.filter(|p| left(&p.member))
            && let Some(peer) = self.peers.get_mut(&former.member)
        {
            peer.quiet.lapse(now, base.config.quiet_time);
        }
    }

    /// The reign is over: what its senders wait for may be committed by the next primary, or never.
    pub(super) fn end(self, base: &mut Base) {
        let hint = base.hint();
        for op in self.waiting.into_values().flat_map(|(_, ops)| ops) {
            base.answer(op, Answer::Unknown(hint.clone()));
        }
        for (op, _) in self.finding.into_values().flat_map(|finding| finding.ops) {
            base.answer(op, Answer::NotPrimary(hint.clone()));
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// The record changed, under the same epoch.
    pub(super) fn record_changed(&mut self, base: &mut Base, now: Instant, before: Option<Arc<ShardState>>) {
        self.know_peers(base);
        let Some(record) = base.record.clone() else { return };
        self.counted.retain(|id, asked_at| !record.is_in_sync(id) && *asked_at >= record.set);
        for id in before.iter().flat_map(|b| &b.in_sync).filter(|id| !record.is_in_sync(id)) {
            let slow = base.lives(id) && self.peers.get(&id.member).is_some_and(|p| p.is_late(base, id, now));
            if let Some(peer) = self.peers.get_mut(&id.member).filter(|_| slow) {
                peer.quiet.lapse(now, base.config.quiet_time);
            }
        }
    }

    /// Everybody with a copy is kept up, whether in sync or not.
    fn know_peers(&mut self, base: &Base) {
        let Some(record) = &base.record else { return };
        let others = || record.replicas.iter().map(|c| &c.id).filter(|id| id.member != base.id.member);
        self.peers.retain(|member, peer| others().any(|id| id.member == *member && id.store == peer.store));
        for id in others() {
            let next = base.log.last().seq + 1;
            self.peers.entry(id.member.clone()).or_insert_with(|| Peer::new(id.store, next));
        }
    }

    /// A store is durable.
    pub(super) fn stored(&mut self, base: &mut Base, now: Instant, token: u64) {
        if matches!(self.phase, Phase::Starting { token: awaited } if awaited <= token) {
            let at = Position { epoch: base.epoch, seq: base.log.last().seq + 1 };
            self.append(base, now, Entry::empty(at));
            self.phase = Phase::Opening { seq: at.seq };
        }
    }

    fn append(&mut self, base: &mut Base, now: Instant, entry: Entry) {
        base.log.push(entry.clone());
        base.store(now, Rows { entries: vec![entry], ..Rows::default() });
    }

    /// A part to be written.
    pub(super) fn write(&mut self, base: &mut Base, now: Instant, op: OpId, write: Write) {
        if !Entry::of(write.clone(), Position::default()).is_well_formed() {
            return base.answer(op, Answer::Refused);
        }
        match self.finding.get_mut(&write.part) {
            Some(finding) if finding.ops.len() >= FINDING_MAX => return base.answer(op, Answer::Busy),
            Some(finding) => return finding.ops.push((op, write)),
            None => {}
        }
        match base.log.find(write.part) {
            Found::At(at) => self.wait(base, op, at),
            Found::Nowhere => self.append_write(base, now, op, write),
            Found::Perhaps if self.finding.len() >= FINDING_MAX => base.answer(op, Answer::Busy),
            Found::Perhaps => {
                base.effects.push_back(Effect::Find { epoch: base.epoch, part: write.part });
                self.finding.insert(write.part, Finding { ops: vec![(op, write)], found: None });
            }
        }
    }

    /// What the store says about a part. The parts of a task are appended in their order, whichever the store has answered first: of
    /// two documents with one id the later one counts. All of them at one moment, so that a part that is refused has all later
    /// ones refused, and none of them stands before it when it is sent again.
    pub(super) fn found(&mut self, base: &mut Base, now: Instant, part: TaskPart, at: Option<Stands>) {
        if let Some(finding) = self.finding.get_mut(&part) {
            finding.found = Some(at);
        }
        let first = TaskPart { part: 0, ..part };
        let of_task = self.finding.range(first..).take_while(|(next, _)| next.task == part.task);
        let found = of_task.map(|(next, finding)| Some((*next, finding.found?))).collect::<Option<Vec<_>>>();
        for (next, at) in found.into_iter().flatten() {
            let ops = self.finding.remove(&next).map(|finding| finding.ops).unwrap_or_default();
            for (op, write) in ops {
                let stored = at.filter(|at| at.seq <= base.log.last().seq);
                match (stored, base.log.find(next)) {
                    (_, Found::At(at)) | (Some(at), _) => self.wait(base, op, at),
                    (None, _) => self.append_write(base, now, op, write),
                }
            }
        }
    }

    /// The sender is told when the entry is committed.
    fn wait(&mut self, base: &mut Base, op: OpId, at: Stands) {
        if self.is_open() && at.seq <= base.log.commit() {
            let answer = self.committed(base, at);
            base.answer(op, answer);
        } else if self.waiters >= WAITING_MAX {
            base.answer(op, Answer::Busy);
        } else {
            self.waiters += 1;
            self.waiting.entry(at.seq).or_insert((at.refused, Vec::new())).1.push(op);
        }
    }

    fn append_write(&mut self, base: &mut Base, now: Instant, op: OpId, write: Write) {
        let Some(record) = base.record.clone() else { return base.answer(op, Answer::Busy) };
        if record.in_sync.len() < base.min_in_sync(&record) {
            return base.answer(op, Answer::NoQuorum);
        }
        let (window, last) = (base.config.window, base.log.last().seq);
        let open = last - base.log.commit();
        let full = open >= window.entries as u64 || base.log.open_bytes() >= window.bytes || base.log.is_full();
        if full || self.waiters >= WAITING_MAX || matches!(self.phase, Phase::Starting { .. }) {
            return base.answer(op, Answer::Busy);
        }
        let at = Position { epoch: base.epoch, seq: last + 1 };
        let entry = Entry::of(write, at);
        let stands = entry.stands();
        self.append(base, now, entry);
        self.wait(base, op, stands);
    }

    fn committed(&self, base: &Base, Stands { seq, refused }: Stands) -> Answer {
        let (in_sync, copies) = base.record.as_ref().map_or((0, 0), |r| (r.in_sync.len(), r.copies()));
        Answer::Committed { seq, refused, in_sync, copies }
    }

    /// What a replica said in this reign.
    pub(super) fn answered(&mut self, base: &mut Base, now: Instant, id: &ReplicaId, said: Said) {
        if let Some(peer) = self.peers.get_mut(&id.member).filter(|p| p.store == id.store) {
            peer.answered(base, now, id, &said);
        }
    }

    /// Entries that were asked for from the store.
    pub(super) fn loaded(&mut self, base: &mut Base, now: Instant, member: &MemberId, entries: Vec<Entry>) {
        let (commit, free) = (self.told(base), self.free(base));
        if let Some(peer) = self.peers.get_mut(member) {
            let id = ReplicaId { member: member.clone(), store: peer.store };
            peer.loaded(base, now, &id, entries, commit, free);
        }
    }

    /// What it says is committed.
    fn told(&self, base: &Base) -> Option<u64> {
        self.is_open().then(|| base.log.commit())
    }

    /// Whether commits wait for this replica.
    pub(super) fn relies_on(&self, base: &Base, id: &ReplicaId) -> bool {
        self.counted.contains_key(id) || base.record.as_ref().is_some_and(|r| r.is_in_sync(id))
    }

    /// Up to here everyone on whom commits wait has stored everything.
    fn stored_by_all(&self, base: &Base) -> u64 {
        let in_sync = base.record.iter().flat_map(|r| &r.in_sync);
        let stored = |id: &ReplicaId| {
            if *id == base.id {
                return base.log.stored();
            }
            self.peers.get(&id.member).filter(|p| p.store == id.store).map_or(0, |p| p.acked)
        };
        in_sync.chain(self.counted.keys()).map(stored).min().unwrap_or(0)
    }

    /// Up to here entries are needed by nobody: all in sync have applied them, or are not waited for any more, and all that are
    /// being filled have them.
    pub(super) fn free(&self, base: &Base) -> u64 {
        let applied = |(member, peer): (&MemberId, &Peer)| {
            let id = ReplicaId { member: member.clone(), store: peer.store };
            self.relies_on(base, &id).then_some(peer.applied)
        };
        let applied = self.peers.iter().filter_map(applied).chain([base.applied]).min().unwrap_or(0);
        applied.max(self.overdue).min(self.filled(base))
    }

    /// Up to here all that are being filled have entries.
    fn filled(&self, base: &Base) -> u64 {
        let has = |(member, peer): (&MemberId, &Peer)| {
            let id = ReplicaId { member: member.clone(), store: peer.store };
            let learns = base.record.as_ref().and_then(|r| r.copy(member)).is_some_and(ShardCopy::is_learner);
            let fills = learns && !self.relies_on(base, &id) && base.lives(&id) && peer.matched;
            fills.then_some(peer.acked)
        };
        self.peers.iter().filter_map(has).min().unwrap_or(u64::MAX)
    }

    /// Entries up to `to` are beyond the retention, and have waited long for somebody's node. They are kept no longer where as many
    /// in sync have applied them as there must be. Everybody else in sync has them in a journal of its own, which keeps them until
    /// its own node has applied them.
    pub(super) fn overdue(&mut self, base: &Base, to: u64) {
        let Some(record) = &base.record else { return };
        let applied = |id: &ReplicaId| match self.peers.get(&id.member).filter(|p| p.store == id.store) {
            Some(peer) => peer.applied,
            None if *id == base.id => base.applied,
            None => 0,
        };
        let mut applied: Vec<u64> = record.in_sync.iter().map(applied).collect();
        applied.sort_unstable_by_key(|to| Reverse(*to));
        let least = base.min_in_sync(record).max(1);
        let enough = applied.get(least - 1).copied().unwrap_or(0).min(base.applied);
        self.overdue = self.overdue.max(to.min(enough).min(self.stored_by_all(base)));
    }

    pub(super) fn rests(&self, base: &Base) -> bool {
        let idle = self.is_open() && self.waiting.is_empty() && self.finding.is_empty();
        let settled = self.counted.is_empty() && self.asked.is_none() && base.log.commit() == base.log.last().seq;
        let rests = |(member, peer): (&MemberId, &Peer)| {
            let id = ReplicaId { member: member.clone(), store: peer.store };
            peer.rests(base) || (!self.relies_on(base, &id) && (!base.lives(&id) || peer.snapshot))
        };
        idle && settled && self.peers.iter().all(rests)
    }

    /// What follows from the input; when to look again.
    pub(super) fn run(&mut self, base: &mut Base, now: Instant) -> Option<Instant> {
        if !matches!(self.phase, Phase::Starting { .. }) {
            self.advance(base);
            self.pump(base, now);
            self.review(base, now);
        }
        self.hand_over_if_slow(base, now);
        self.wake(base, now)
    }

    fn advance(&mut self, base: &mut Base) {
        let to = self.stored_by_all(base);
        if matches!(self.phase, Phase::Opening { seq } if to >= seq) {
            self.phase = Phase::Open;
        }
        if !self.is_open() {
            return;
        }
        base.commit(to);
        let waiting = self.waiting.split_off(&(base.log.commit() + 1));
        for (seq, (refused, ops)) in std::mem::replace(&mut self.waiting, waiting) {
            self.waiters -= ops.len();
            let answer = self.committed(base, Stands { seq, refused });
            ops.into_iter().for_each(|op| base.answer(op, answer.clone()));
        }
    }

    fn pump(&mut self, base: &mut Base, now: Instant) {
        let (commit, free) = (self.told(base), self.free(base));
        let members: Vec<MemberId> = self.peers.keys().cloned().collect();
        for member in members {
            let Some(store) = self.peers.get(&member).map(|p| p.store) else { continue };
            let id = ReplicaId { member, store };
            let relied_on = self.relies_on(base, &id);
            if let Some(peer) = self.peers.get_mut(&id.member) {
                peer.pump(base, now, &id, commit, relied_on, free);
            }
        }
    }

    fn wake(&self, base: &Base, now: Instant) -> Option<Instant> {
        let lags = [base.config.in_sync_lag, base.config.suspect_lag];
        let of_peer = |peer: &Peer| {
            let late = peer.since.into_iter().flat_map(move |since| lags.map(|lag| since.plus(lag)));
            let fixed = peer.resend_at.into_iter().chain(peer.tell_at).chain([peer.quiet.until]);
            fixed.chain(late).collect::<Vec<_>>()
        };
        let after = |at: Option<Instant>, span: Duration| at.map(|at| at.plus(span));
        let asked = after(self.asked.as_ref().map(|a| a.at), base.config.ask_again);
        let handed = after(self.handed_at, base.config.ask_again);
        let slow = after(base.stores.front().map(|(_, at)| *at), base.config.in_sync_lag);
        let all = self.peers.values().flat_map(of_peer).chain(asked).chain(handed).chain(slow);
        all.filter(|at| *at > now).min()
    }
}
