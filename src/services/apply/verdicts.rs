//! What the nodes of shards' primaries made of entries, compared with what the own node made of them.
//!
//! A replica asks the primary for all entries since it last knew, in one call for all shards of one primary; so nothing that is
//! said gets lost, and nobody has to remember whom it told. Rule: up to `checked` every verdict of the primary is known here, and
//! durable. Must not know: what follows from a verdict.

use std::collections::{BTreeMap, BTreeSet};

use std::time::{Duration, Instant as Clock};

use bytes::Bytes;

use super::handle::{ApplyHandle, Lag};
use super::index::{Done, Task};
use crate::net::{Call, Peers};
use crate::proto::apply::{Flaw, Outcome};
use crate::proto::env::Instant;
use crate::services::ledger::now;
use crate::store::StoreError;
use crate::types::limits::SHARDS_MAX;
use crate::types::{JournalKey, MemberId, PhysicalIndex, ShardId, TraceId};
use crate::wire::verbs::{EntryError, Refusal, Reply, Request, ShardVerdicts, VerdictsOf};

/// Failures that one answer names: their texts have to fit a call's header.
const FAILED_MAX: usize = 128;
/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How soon a verdict is asked for on which something waits.
const SOON: Duration = Duration::from_millis(10);

/// What a primary said, and what it was asked.
pub(super) type Heard = (Vec<(ShardId, u64, u64)>, Vec<ShardVerdicts>);

#[derive(Debug, Clone, Copy, Default)]
struct Place {
    checked: u64,
    applied: u64,
    /// The entry that waits for its verdict.
    wanted: Option<u64>,
}

impl Place {
    /// From where to where something is to be asked.
    fn open(&self) -> Option<(u64, u64)> {
        let (from, to) = (self.checked + 1, self.applied.max(self.wanted.unwrap_or(0)));
        (from <= to).then_some((from, to))
    }
}

/// What is known and what is to be asked of an index.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    places: BTreeMap<ShardId, Place>,
    /// Not stored yet.
    changed: BTreeSet<ShardId>,
    /// Primaries that are being asked.
    asking: BTreeSet<MemberId>,
    due: Option<Instant>,
    step: Duration,
    /// Shards whose primary is not this process have something open.
    open: bool,
}

impl Verdicts {
    pub(super) fn of(checked: BTreeMap<ShardId, u64>, lags: &BTreeMap<ShardId, Lag>) -> Self {
        let place = |(shard, lag): (&ShardId, &Lag)| {
            let checked = checked.get(shard).copied().unwrap_or(0);
            (*shard, Place { checked, applied: lag.applied, wanted: None })
        };
        let (due, places) = (Some(now()), lags.iter().map(place).collect());
        Self { places, due, open: true, ..Self::default() }
    }

    /// A copy that is as after this entry: what came with it needs no verdict.
    pub(super) fn begin_at(&mut self, shard: ShardId, applied: u64) {
        self.places.insert(shard, Place { checked: applied, applied, wanted: None });
        self.changed.insert(shard);
    }

    /// Up to where the shard's verdicts are known.
    pub(super) fn checked(&self, shard: ShardId) -> Option<u64> {
        self.places.get(&shard).map(|place| place.checked)
    }

    /// Another primary judges: it may not have heard what the one before it said, nor may what was heard here be what its own node
    /// did. Only failures travel, so all there is behind the journal's floor is asked for.
    pub(super) fn begin_anew(&mut self, shard: ShardId, floor: u64) {
        let Some(place) = self.places.get_mut(&shard).filter(|place| place.checked > floor) else { return };
        place.checked = floor;
        self.changed.insert(shard);
        if place.open().is_some() {
            self.open = true;
            self.due = Some(now().plus(SOON));
            self.step = Duration::ZERO;
        }
    }

    pub(super) fn forget(&mut self, shard: ShardId) {
        self.places.remove(&shard);
        self.changed.remove(&shard);
    }

    pub(super) fn applied(&mut self, shard: ShardId, to: u64) {
        let Some(place) = self.places.get_mut(&shard) else { return };
        place.applied = to;
        place.wanted = place.wanted.filter(|seq| *seq > to);
        self.open |= place.open().is_some();
    }

    /// An entry waits for its verdict.
    pub(super) fn want(&mut self, shard: ShardId, seq: u64) {
        if let Some(place) = self.places.get_mut(&shard) {
            place.wanted = Some(seq);
            self.open = true;
            self.due = Some(now().plus(SOON));
        }
    }

    /// What is to be stored.
    pub(super) fn take_checked(&mut self) -> BTreeMap<ShardId, u64> {
        let changed = std::mem::take(&mut self.changed).into_iter();
        changed.filter_map(|shard| Some((shard, self.places.get(&shard)?.checked))).collect()
    }

    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.due.filter(|_| self.open && self.asking.is_empty())
    }

    pub(super) fn is_idle(&self) -> bool {
        !self.open && self.asking.is_empty()
    }
}

impl Task {
    /// Asks the primaries of shards for what is not known of them, if that is due.
    pub(super) fn ask_for_verdicts(&mut self) {
        let config = &self.common.config;
        if !self.verdicts.open || !self.verdicts.asking.is_empty() {
            return;
        }
        let due = *self.verdicts.due.get_or_insert_with(|| now().plus(config.verdicts_min));
        if due > now() {
            return;
        }
        let record = self.common.journals.record(&self.index);
        let mut of: BTreeMap<MemberId, Vec<(ShardId, u64, u64)>> = BTreeMap::new();
        self.verdicts.open = false;
        for (shard, place) in &self.verdicts.places {
            let Some((from, to)) = place.open() else { continue };
            if self.levels.shards.get(shard).is_none_or(|level| level.primary) {
                continue;
            }
            self.verdicts.open = true;
            let state = record.as_ref().and_then(|record| record.shard(*shard));
            let primary = state.and_then(|state| state.primary.as_ref()).map(|primary| &primary.member);
            if let Some(member) = primary.filter(|member| **member != self.common.journals.me().member) {
                of.entry(member.clone()).or_default().push((*shard, from, to));
            }
        }
        let step = self.verdicts.step;
        self.verdicts.step = (step * 2).clamp(config.verdicts_min, config.verdicts_max);
        self.verdicts.due = self.verdicts.open.then(|| now().plus(self.verdicts.step));
        for (member, shards) in of {
            self.verdicts.asking.insert(member.clone());
            let (common, index) = (self.common.clone(), self.index.clone());
            self.done.spawn(async move {
                let heard = ask(&*common.peers, &index, &member, shards.clone()).await;
                Ok(Done::Verdicts { of: member, heard: heard.map(|heard| (shards, heard)) })
            });
        }
    }

    /// A primary has answered, or not.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) async fn heard_verdicts(&mut self, of: &MemberId, heard: Option<Heard>) -> Result<(), StoreError> {
        self.verdicts.asking.remove(of);
        let Some((asked, heard)) = heard else { return Ok(()) };
        let mut asked: BTreeMap<ShardId, (u64, u64)> = asked.into_iter().map(|(s, from, to)| (s, (from, to))).collect();
        let mut heard = heard.into_iter().peekable();
        while let Some(said) = heard.next() {
            let shard = said.shard;
            let Some((from, to)) = asked.get(&shard).copied() else { continue };
            let follows = self.levels.shards.get(&shard).is_some_and(|level| !level.primary);
            let (to, key) = (said.to.min(to), self.key(shard));
            // Who was asked before another primary came may not be the one whose word counts.
            let goes_on = self.verdicts.checked(shard) == Some(from - 1);
            if !follows || !goes_on || to < from {
                continue;
            }
            if let Some((from, _)) = asked.get_mut(&shard) {
                *from = to + 1;
            }
            // Of two answers on a shard the first is about what its primary does not remember.
            let forgotten = heard.peek().is_some_and(|next| next.shard == shard);
            let failed: BTreeMap<u64, Flaw> = said
                .failed
                .iter()
                .filter(|error| (from..=to).contains(&error.seq))
                .map(|error| (error.seq, Flaw::new(&error.code, &error.message)))
                .collect();
            let known: BTreeSet<u64> = match self.common.store.failed(&key, from, to, usize::MAX).await {
                Err(StoreError::Damaged { reason, .. }) => {
                    self.common.journals.repair(&key, reason).await;
                    continue;
                }
                known => known?.into_iter().map(|(seq, _)| seq).collect(),
            };
            // Settled by a primary before, which this one did not hear of.
            for seq in known.iter().filter(|seq| !forgotten && !failed.contains_key(*seq)) {
                self.call(|core, env| core.handle_applied_elsewhere(env, shard, *seq));
            }
            let wanted = self.verdicts.places.get(&shard).and_then(|place| place.wanted);
            for (seq, flaw) in failed.iter().filter(|(seq, _)| !known.contains(seq)) {
                self.call(|core, env| core.handle_verdict(env, shard, *seq, Outcome::Failed(flaw.clone())));
            }
            if let Some(seq) = wanted.filter(|seq| (from..=to).contains(seq) && !failed.contains_key(seq)) {
                self.call(|core, env| core.handle_verdict(env, shard, seq, Outcome::Applied));
            }
            let Some(place) = self.verdicts.places.get_mut(&shard) else { continue };
            if to > place.checked {
                place.checked = to;
                place.wanted = place.wanted.filter(|seq| *seq > to);
                self.verdicts.changed.insert(shard);
                self.verdicts.step = Duration::ZERO;
            }
        }
        Ok(())
    }
}

async fn ask(
    peers: &dyn Peers,
    index: &PhysicalIndex,
    member: &MemberId,
    shards: Vec<(ShardId, u64, u64)>,
) -> Option<Vec<ShardVerdicts>> {
    let request = Request::Verdicts(VerdictsOf { index: index.clone(), shards });
    let deadline = Clock::now() + PATIENCE;
    let call = Call { request, body: Bytes::new(), deadline, trace: TraceId::default() };
    match peers.call(member, call).await.map(|answer| answer.reply) {
        Ok(Reply::Verdicts(heard)) => Some(heard),
        _ => None,
    }
}

impl ApplyHandle {
    /// Whether this process orders the writes of a shard, so that its verdicts count.
    pub(super) fn is_primary(&self, key: &JournalKey) -> bool {
        let record = self.journals.record(&key.index);
        let state = record.as_ref().and_then(|record| record.shard(key.shard));
        state.is_some_and(|state| state.is_led_by(self.journals.me(), self.start))
    }

    /// This member's verdicts on entries that a peer asks for, of those shards of which it is the primary.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn verdicts(&self, of: &VerdictsOf) -> Result<Vec<ShardVerdicts>, Refusal> {
        if of.shards.len() > usize::from(SHARDS_MAX) {
            return Err(Refusal::Malformed("too many shards".into()));
        }
        let store_failed = |error: StoreError| Refusal::Other(error.to_string());
        let record = self.journals.record(&of.index).unwrap_or_default();
        let positions = self.store.positions(&of.index).await.map_err(store_failed)?;
        let ends = self.store.ends(&of.index).await.map_err(store_failed)?;
        let (mut all, mut left) = (Vec::new(), FAILED_MAX);
        for (shard, from, to) in &of.shards {
            let leads = record.shard(*shard).is_some_and(|state| state.is_led_by(self.journals.me(), self.start));
            let applied = positions.get(shard).map_or(0, |(applied, _)| *applied);
            let mut to = applied.min(*to);
            if !leads || to < *from || left == 0 {
                continue;
            }
            let key = JournalKey { index: of.index.clone(), shard: *shard };
            // Verdicts go with their entries. What is not remembered is said by an answer of its own, before another one.
            let forgotten = ends.get(shard).map_or(0, |(floor, _)| *floor).min(to);
            let (asked, from) = (*from, forgotten.saturating_add(1).max(*from));
            let failed = match self.store.failed(&key, from, to, left).await {
                Err(StoreError::Damaged { reason, .. }) => {
                    self.journals.repair(&key, reason).await;
                    continue;
                }
                failed => failed.map_err(store_failed)?,
            };
            left -= failed.len();
            if left == 0 {
                to = failed.last().map_or(to, |(seq, _)| *seq);
            }
            if from > asked {
                all.push(ShardVerdicts { shard: *shard, to: forgotten, failed: Vec::new() });
            }
            let error = |(seq, flaw): (u64, Flaw)| EntryError { seq, code: flaw.code, message: flaw.message };
            all.push(ShardVerdicts { shard: *shard, to, failed: failed.into_iter().map(error).collect() });
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_primary_is_asked_about_everything_that_is_remembered() {
        let (shard, lag) = (ShardId(3), Lag { applied: 9, committed: 9, rebuild: false });
        let mut verdicts = Verdicts::of([(shard, 9)].into(), &[(shard, lag)].into());
        verdicts.open = false;
        assert_eq!(verdicts.places[&shard].open(), None);
        verdicts.begin_anew(shard, 4);
        assert_eq!((verdicts.places[&shard].open(), verdicts.is_idle()), (Some((5, 9)), false));
        assert_eq!(verdicts.take_checked(), [(shard, 4)].into());
        verdicts.begin_anew(shard, 6);
        assert_eq!(verdicts.checked(shard), Some(4), "there is more to be asked already");
    }
}
