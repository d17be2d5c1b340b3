//! What the nodes of shards' primaries made of entries, compared with what the own node made of them.
//!
//! A replica asks the primary for all entries since it last knew, in one call for all shards of one primary; so nothing that is
//! said gets lost, and nobody has to remember whom it told. Verdicts go with the primary's entries, which do not wait for ever for a
//! node that applies nothing: who has been behind for a while asks about entries as well that it has not applied. Rule: up to
//! `checked` every verdict of the primary is known here, and durable. Must not know: what follows from a verdict.

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
    /// Up to here entries wait to be applied.
    waits: u64,
    /// Since when there are some.
    since: Option<Instant>,
    /// The entry that waits for its verdict.
    wanted: Option<u64>,
}

impl Place {
    fn new(checked: u64, applied: u64) -> Self {
        Self { checked, applied, waits: applied, ..Self::default() }
    }

    fn waits(&mut self, to: u64) {
        self.waits = to;
        self.since = (to > self.applied).then(|| self.since.unwrap_or_else(now));
    }

    /// When what waits is to be asked for, too.
    fn ahead_at(&self, patience: Duration) -> Option<Instant> {
        self.since.filter(|_| self.waits > self.checked).map(|since| since.plus(patience))
    }

    /// From where to where something is to be asked.
    fn open(&self, patience: Duration) -> Option<(u64, u64)> {
        let ahead = self.ahead_at(patience).is_some_and(|at| at <= now());
        let to = self.applied.max(self.wanted.unwrap_or(0)).max(if ahead { self.waits } else { 0 });
        let from = self.checked + 1;
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
    /// When a copy has been behind for so long, it asks about what waits.
    patience: Duration,
}

impl Verdicts {
    pub(super) fn of(checked: BTreeMap<ShardId, u64>, lags: &BTreeMap<ShardId, Lag>, patience: Duration) -> Self {
        let place = |(shard, lag): (&ShardId, &Lag)| {
            let mut place = Place::new(checked.get(shard).copied().unwrap_or(0), lag.applied);
            place.waits(if lag.rebuild { lag.applied } else { lag.committed });
            (*shard, place)
        };
        let (due, places) = (Some(now()), lags.iter().map(place).collect());
        Self { places, due, open: true, patience, ..Self::default() }
    }

    /// A copy that is as after this entry: what came with it needs no verdict.
    pub(super) fn begin_at(&mut self, shard: ShardId, applied: u64) {
        self.places.insert(shard, Place::new(applied, applied));
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
        if place.open(self.patience).is_some() {
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
        // One that works through what it lacks is still behind: the primary may have waited for it long enough before.
        place.since = place.since.filter(|_| to < place.waits);
        place.applied = to;
        place.wanted = place.wanted.filter(|seq| *seq > to);
        self.open |= place.open(self.patience).is_some();
    }

    /// Entries up to `to` wait to be applied.
    pub(super) fn waits(&mut self, shard: ShardId, to: u64) {
        if let Some(place) = self.places.get_mut(&shard) {
            place.waits(to);
        }
    }

    /// An entry waits for its verdict. If one was asked for before, it is that it has not failed, or it was told meanwhile.
    pub(super) fn want(&mut self, shard: ShardId, seq: u64) {
        if let Some(place) = self.places.get_mut(&shard) {
            place.wanted = Some(seq);
            if place.checked >= seq {
                place.checked = seq - 1;
                self.changed.insert(shard);
            }
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
        let due = if self.open { self.due } else { self.ahead_at() };
        due.filter(|_| self.asking.is_empty())
    }

    /// When somebody asks about what waits.
    fn ahead_at(&self) -> Option<Instant> {
        self.places.values().filter_map(|place| place.ahead_at(self.patience)).min()
    }

    pub(super) fn is_idle(&self) -> bool {
        !self.open && self.asking.is_empty() && self.ahead_at().is_none()
    }
}

impl Task {
    /// Asks the primaries of shards for what is not known of them, if that is due.
    pub(super) fn ask_for_verdicts(&mut self) {
        let config = &self.common.config;
        self.verdicts.open |= self.verdicts.ahead_at().is_some_and(|at| at <= now());
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
        for (shard, place) in &mut self.verdicts.places {
            let Some((from, to)) = place.open(self.verdicts.patience) else { continue };
            if self.levels.shards.get(shard).is_none_or(|level| level.primary) {
                // Nobody knows more of what waits here.
                place.since = None;
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
            // Of two answers on a shard the second goes on behind the first.
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
            let known: BTreeMap<u64, Flaw> = match self.common.store.failed(&key, from, to, usize::MAX).await {
                Err(StoreError::Damaged { reason, .. }) => {
                    self.common.journals.repair(&key, reason).await;
                    continue;
                }
                known => known?.into_iter().collect(),
            };
            let Some(place) = self.verdicts.places.get(&shard).copied() else { continue };
            // Settled by a primary before, which this one did not hear of. What is yet to be passed over is looked into when it has been.
            let elsewhere = || known.keys().copied().filter(|seq| !forgotten && !failed.contains_key(seq));
            let to = elsewhere().find(|seq| *seq > place.applied).map_or(to, |seq| to.min(seq - 1));
            for seq in elsewhere().take_while(|seq| *seq <= to) {
                self.call(|core, env| core.handle_applied_elsewhere(env, shard, seq));
            }
            let wanted = place.wanted.filter(|seq| (from..=to).contains(seq));
            let news = |seq: &u64| *seq <= to && (wanted == Some(*seq) || !known.contains_key(seq));
            for (seq, flaw) in failed.iter().filter(|(seq, _)| news(seq)) {
                self.call(|core, env| core.handle_verdict(env, shard, *seq, Outcome::Failed(flaw.clone())));
            }
            if let Some(seq) = wanted.filter(|seq| !failed.contains_key(seq)) {
                let before = known.get(&seq).filter(|_| forgotten).cloned();
                let outcome = before.map_or(Outcome::Applied, Outcome::Failed);
                self.call(|core, env| core.handle_verdict(env, shard, seq, outcome));
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

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn another_primary_is_asked_about_everything_that_is_remembered() {
        let (shard, lag) = (ShardId(3), Lag { applied: 9, committed: 9, rebuild: false });
        let mut verdicts = Verdicts::of([(shard, 9)].into(), &[(shard, lag)].into(), LONG);
        verdicts.open = false;
        assert_eq!(verdicts.places[&shard].open(LONG), None);
        verdicts.begin_anew(shard, 4);
        assert_eq!((verdicts.places[&shard].open(LONG), verdicts.is_idle()), (Some((5, 9)), false));
        assert_eq!(verdicts.take_checked(), [(shard, 4)].into());
        verdicts.begin_anew(shard, 6);
        assert_eq!(verdicts.checked(shard), Some(4), "there is more to be asked already");
    }

    #[test]
    fn who_gets_no_further_asks_about_what_waits_and_again_about_what_fails_here() {
        let (shard, lag) = (ShardId(3), Lag { applied: 4, committed: 9, rebuild: false });
        let mut verdicts = Verdicts::of([(shard, 4)].into(), &[(shard, lag)].into(), Duration::ZERO);
        verdicts.open = false;
        assert_eq!(verdicts.places[&shard].open(LONG), None, "it may be about to");
        assert_eq!((verdicts.places[&shard].open(Duration::ZERO), verdicts.is_idle()), (Some((5, 9)), false));
        assert!(verdicts.next_wake().is_some_and(|at| at <= now()));
        verdicts.places.get_mut(&shard).unwrap().checked = 9;
        assert_eq!((verdicts.next_wake(), verdicts.is_idle()), (None, true));
        verdicts.waits(shard, 12);
        assert_eq!(verdicts.places[&shard].open(Duration::ZERO), Some((10, 12)));
        verdicts.want(shard, 6);
        assert_eq!(verdicts.places[&shard].open(LONG), Some((6, 6)));
        assert_eq!(verdicts.take_checked(), [(shard, 5)].into());
        // A copy that must be made anew waits for nothing.
        let lag = Lag { rebuild: true, ..lag };
        let verdicts = Verdicts::of([(shard, 4)].into(), &[(shard, lag)].into(), Duration::ZERO);
        assert_eq!(verdicts.places[&shard].open(Duration::ZERO), None);
    }
}
