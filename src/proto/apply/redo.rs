//! What follows when something ended: positions, verdicts, and how a failure is gone into.
//!
//! When all under way has ended, whatever is not proved is sent again in order, in halves of what failed, each waited for,
//! until the bad one stands alone. Rule: only an entry that failed alone, by its own fault, gets a verdict; only a verdict
//! or the node's success moves a position on. Must not know: how the node was asked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::core::Applier;
use super::effect::{Effect, Need};
use super::lane::Hold;
use super::notes::{Note, TaskRef};
use super::verdict::{Care, Failure, Flaw, Outcome};
use crate::proto::env::{Env, Instant};
use crate::types::ShardId;

/// Most entries whose documents are taken from a primary; with more the copy is made anew.
const TAKES_MAX: usize = 1_024;

impl Applier {
    /// The primary's verdict on an entry. That one has failed must not be told for an entry up to the applied position that
    /// the store has among [`super::Rows::failed`]; at any other time it may be told again.
    pub fn handle_verdict(&mut self, env: &mut Env, shard: ShardId, seq: u64, outcome: Outcome) {
        if let Some(lane) =
            self.lanes.get_mut(&shard).filter(|lane| lane.row.need != Need::Rebuild || seq > lane.row.applied)
        {
            let asked = matches!(&lane.hold, Some(Hold::Ask { seq: held, .. }) if *held == seq);
            let stuck = matches!(&lane.hold, Some(Hold::Trouble { seq: held, .. }) if *held == seq);
            match outcome {
                Outcome::Failed(flaw) if seq <= lane.row.applied => {
                    let came_with_it = seq <= lane.row.base;
                    self.rows.failed.insert((shard, seq), flaw);
                    if !came_with_it {
                        self.differs(shard, seq);
                    }
                }
                Outcome::Failed(flaw) if asked || stuck => {
                    lane.hold = None;
                    self.settle(shard, seq, flaw);
                }
                Outcome::Failed(flaw) => {
                    lane.told_failed(seq);
                    self.changed_lanes.insert(shard);
                    self.rows.failed.insert((shard, seq), flaw);
                }
                Outcome::Applied if asked => {
                    lane.hold = None;
                    self.differs(shard, seq);
                }
                Outcome::Applied => {}
            }
        }
        self.run(env);
    }

    /// The primary has applied an entry that was settled as failed here, by the word of a primary before it: its documents are taken.
    pub fn handle_applied_elsewhere(&mut self, env: &mut Env, shard: ShardId, seq: u64) {
        let here = self.lanes.get(&shard).map(|lane| &lane.row);
        if here.is_some_and(|row| row.need != Need::Rebuild && seq > row.base && seq <= row.applied) {
            // Or it would be passed over if the node had to do it again, and told to have failed.
            self.rows.failed.remove(&(shard, seq));
            self.rows.unfailed.insert((shard, seq));
            self.differs(shard, seq);
        }
        self.run(env);
    }

    /// [`Effect::Take`] was carried out: `made_by` is the last task that wrote documents, and it has ended. `None`: the primary
    /// could not give them as they have to be, so the copy must be made anew, unless it is the only one.
    pub fn handle_taken(&mut self, env: &mut Env, shard: ShardId, made_by: Option<TaskRef>) {
        if self.taking.as_ref().is_none_or(|(of, _)| *of != shard) {
            return;
        }
        let Some((_, seqs)) = self.taking.take() else { return };
        match made_by {
            Some(task) => {
                let made = self.notes.add(Note::anchor(task));
                self.took_documents(shard, &seqs, made);
            }
            // There is no other copy: what the own node made of them is what there is.
            None if self.lanes.get(&shard).is_some_and(|lane| lane.alone) => {
                if let Some(lane) = self.lanes.get_mut(&shard).filter(|lane| lane.row.need != Need::Rebuild) {
                    lane.row.need = Need::Nothing;
                    self.changed_lanes.insert(shard);
                    self.emit(Effect::Untaken { shard, seqs });
                }
            }
            None => self.rebuild(shard),
        }
        self.look.doubt = true;
        self.look.soon(env.now);
        self.run(env);
    }

    /// The shard is done up to `to`; `left_out` says of which entries the primary's failure was known before.
    pub(super) fn advance(&mut self, shard: ShardId, to: u64, left_out: &dyn Fn(u64) -> bool) {
        let Some(lane) = self.lanes.get_mut(&shard) else { return };
        let told = lane.advance(to);
        self.changed_lanes.insert(shard);
        self.emit(Effect::Applied { shard, to });
        for seq in told.into_iter().filter(|seq| !left_out(*seq)) {
            self.differs(shard, seq);
        }
    }

    /// Only what is up to `to` counts as applied.
    pub(super) fn back(&mut self, shard: ShardId, to: u64) {
        let Some(lane) = self.lanes.get_mut(&shard) else { return };
        if to < lane.row.base {
            // No entries lead there.
            self.rebuild(shard);
        } else if lane.back(to) {
            self.changed_lanes.insert(shard);
            self.emit(Effect::Unapplied { shard, to });
        }
    }

    /// The copy must be made anew if anybody has a better one; nothing else stands in its way.
    pub(super) fn rebuild_in_doubt(&mut self, shard: ShardId) {
        let Some(lane) = self.lanes.get(&shard) else { return };
        let doubtful = lane.row.doubtful || lane.row.need == Need::Nothing && !lane.row.unchecked;
        self.rebuild(shard);
        if doubtful {
            self.lanes.entry(shard).and_modify(|lane| lane.row.doubtful = true);
        }
    }

    /// The copy must be made anew.
    pub(super) fn rebuild(&mut self, shard: ShardId) {
        let Some(lane) = self.lanes.get_mut(&shard) else { return };
        if std::mem::take(&mut lane.row.doubtful) {
            self.changed_lanes.insert(shard);
        }
        if lane.row.need != Need::Rebuild {
            lane.row.need = Need::Rebuild;
            (lane.row.unchecked, lane.stop) = (false, None);
            lane.heads.clear();
            lane.hold = None;
            self.changed_lanes.insert(shard);
            self.forget_taking(shard);
            self.drain = true;
        }
    }

    pub(super) fn forget_taking(&mut self, shard: ShardId) {
        if self.taking.as_ref().is_some_and(|(of, _)| *of == shard) {
            self.taking = None;
        }
    }

    /// The entry stands alone and failed by its own fault.
    pub(super) fn judge(&mut self, env: &Env, shard: ShardId, seq: u64, flaw: Flaw) {
        let again = env.now.plus(self.config.retry_max);
        let Some(lane) = self.lanes.get_mut(&shard) else { return };
        if lane.row.told.contains(&seq) {
            // The primary said so while it was under way here.
            self.advance(shard, seq, &|_| true);
        } else if lane.primary {
            self.emit(Effect::Verdict { shard, seq, flaw: flaw.clone() });
            self.settle(shard, seq, flaw);
        } else {
            lane.hold = Some(Hold::Ask { seq, flaw, again });
            self.emit(Effect::AskVerdict { shard, seq });
        }
    }

    /// The entry has failed for all.
    pub(super) fn settle(&mut self, shard: ShardId, seq: u64, flaw: Flaw) {
        self.rows.failed.insert((shard, seq), flaw);
        self.advance(shard, seq, &|_| true);
    }

    /// What the own node made of the entry is not what the primary's did.
    pub(super) fn differs(&mut self, shard: ShardId, seq: u64) {
        self.emit(Effect::Mismatch { shard, seq });
        let Some(lane) = self.lanes.get_mut(&shard) else { return };
        // Documents as they are behind a conditional entry, and that entry once more: it would be done twice.
        if lane.row.conditional > seq {
            return self.rebuild(shard);
        }
        match &mut lane.row.need {
            Need::Nothing => lane.row.need = Need::Take([seq].into()),
            Need::Take(seqs) if seqs.len() < TAKES_MAX => {
                seqs.insert(seq);
            }
            Need::Take(_) => return self.rebuild(shard),
            Need::Rebuild => {}
        }
        self.changed_lanes.insert(shard);
        self.drain = true;
    }

    /// The documents of these entries are as at the primary: what comes behind them is applied again.
    pub(super) fn took_documents(&mut self, shard: ShardId, seqs: &BTreeSet<u64>, made: u64) {
        let Some(lane) = self.lanes.get_mut(&shard) else { return };
        let Some(first) = seqs.first().copied() else { return };
        lane.row.made = made;
        if let Need::Take(left) = &mut lane.row.need {
            left.retain(|seq| !seqs.contains(seq));
            if left.is_empty() {
                lane.row.need = Need::Nothing;
            }
        }
        self.changed_lanes.insert(shard);
        if lane.row.applied < first { self.advance(shard, first, &|_| true) } else { self.back(shard, first) }
    }

    /// All under way has ended: what is not proved is to be sent again.
    pub(super) fn after_drain(&mut self, env: &mut Env) {
        if !self.drain || self.look.doubt || !self.is_drained() {
            return;
        }
        self.drain = false;
        let mut until = BTreeMap::new();
        let failure = self.failure.take();
        if let Some(failure) = failure.as_ref().filter(|failure| failure.alone && failure.entries == 1) {
            self.go_into_one(env, failure);
        }
        for (shard, lane) in &mut self.lanes {
            if let Some(to) = lane.again() {
                self.changed_lanes.insert(*shard);
                until.insert(*shard, to);
            }
        }
        if let Some(failure) = failure.filter(|failure| !failure.alone || failure.entries > 1) {
            self.go_into_many(env, &failure, until);
        }
        let untold: Vec<_> = self
            .lanes
            .iter()
            .filter(|(_, lane)| lane.row.need == Need::Rebuild && !lane.said)
            .map(|(s, _)| *s)
            .collect();
        for shard in untold {
            self.lanes.entry(shard).and_modify(|lane| lane.said = true);
            self.emit(Effect::Rebuild { shard });
        }
    }

    /// One entry stands alone.
    fn go_into_one(&mut self, env: &mut Env, failure: &Failure) {
        let (shard, seq) = failure.first;
        if let Some(care) = &mut self.care {
            care.hunting = false;
        }
        if failure.own_fault {
            return self.judge(env, shard, seq, failure.flaw.clone());
        }
        self.trouble(env, failure, Some(failure.first));
        let Some(lane) = self.lanes.get_mut(&shard) else { return };
        lane.attempts = lane.attempts.saturating_add(1);
        let again = env.now.plus(back_off(&self.config, env, lane.attempts));
        lane.hold = Some(Hold::Trouble { seq, again });
    }

    /// The bad one is among several.
    fn go_into_many(&mut self, env: &mut Env, failure: &Failure, until: BTreeMap<ShardId, u64>) {
        if !failure.own_fault {
            self.trouble(env, failure, None);
        }
        self.care = Some(Care::after(self.care.take(), failure, until));
    }

    fn trouble(&mut self, env: &mut Env, failure: &Failure, alone: Option<(ShardId, u64)>) {
        self.attempts = self.attempts.saturating_add(1);
        self.pause_for(env);
        self.emit(Effect::Trouble { flaw: failure.flaw.clone(), alone });
    }

    /// Care ends when everything that had failed is dealt with, or waits, be it because somebody has asked for that.
    pub(super) fn end_care(&mut self) {
        let Some(care) = &self.care else { return };
        let waits = |(shard, to): (&ShardId, &u64)| {
            self.lanes.get(shard).is_some_and(|lane| lane.goes_on() && !lane.is_stopped() && lane.row.applied < *to)
        };
        if !care.until.iter().any(waits) {
            self.care = None;
        }
    }

    /// Whether nothing more may be sent until all under way has ended, because something has to be done alone.
    pub(super) fn awaits_quiet(&self, now: Instant) -> bool {
        self.lanes.values().any(|lane| {
            matches!(lane.row.need, Need::Take(_))
                || matches!(&lane.hold, Some(Hold::Trouble { again, .. }) if *again <= now)
        })
    }

    /// Shards that waited long enough: what fails is tried again alone, the primary is asked again.
    pub(super) fn try_held(&mut self, env: &mut Env) {
        let quiet = self.care.is_none() && !self.drain && self.is_drained() && self.taking.is_none();
        let again = env.now.plus(self.config.retry_max);
        let mut ask = Vec::new();
        let mut until = BTreeMap::new();
        for (shard, lane) in &mut self.lanes {
            match &mut lane.hold {
                Some(Hold::Ask { seq, again: due, .. }) if *due <= env.now => {
                    *due = again;
                    ask.push(Effect::AskVerdict { shard: *shard, seq: *seq });
                }
                Some(Hold::Trouble { seq, again: due }) if *due <= env.now && quiet => {
                    until.insert(*shard, *seq);
                    lane.hold = None;
                }
                _ => {}
            }
        }
        ask.into_iter().for_each(|effect| self.emit(effect));
        if !until.is_empty() {
            self.care = Some(Care { limit: 1, hunting: false, until });
        }
    }

    /// Documents are taken from a primary when nothing is under way, and nothing is sent meanwhile.
    pub(super) fn take_documents(&mut self) {
        if self.drain || self.look.doubt || !self.look.up || self.taking.is_some() || !self.is_drained() {
            return;
        }
        let next = self.lanes.iter().find_map(|(shard, lane)| match &lane.row.need {
            Need::Take(seqs) => Some((*shard, seqs.clone())),
            _ => None,
        });
        if let Some((shard, seqs)) = next {
            self.taking = Some((shard, seqs.clone()));
            self.emit(Effect::Take { shard, seqs });
        }
    }

    /// Nothing is sent for a while, longer each time until something goes well.
    pub(super) fn pause_for(&mut self, env: &mut Env) {
        let span = back_off(&self.config, env, self.attempts);
        self.pause = Some(env.now.plus(span));
    }
}

fn back_off(config: &super::effect::Config, env: &mut Env, attempts: u32) -> Duration {
    let factor = 1_u32 << attempts.saturating_sub(1).min(20);
    env.jitter(config.retry_min.saturating_mul(factor).min(config.retry_max))
}
