//! Who comes into the in-sync set and who leaves it, as its primary sees it.
//!
//! Rule: a newcomer counts from before it is asked for, and has everything that is committed by then; it stops to count only
//! when a record with a higher `set` than the request started from leaves it out, and a member only when the record does.
//! Must not know: how the record is written.

use std::collections::BTreeSet;

use super::effect::Effect;
use super::peer::Peer;
use super::primary::Primary;
use super::replica::Base;
use super::{election, record};
use crate::proto::env::Instant;
use crate::types::{MemberId, ReplicaId, ShardState};

/// A newcomer may miss so many of the newest entries: those that are under way to it.
const CLOSE: u64 = 64;

/// What was asked for last.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    /// The `set` that the request starts from.
    set: u64,
    pub(super) at: Instant,
    want: BTreeSet<ReplicaId>,
}

impl Primary {
    /// Asks for another in-sync set if there should be one.
    pub(super) fn review(&mut self, base: &mut Base, now: Instant) {
        let Some(record) = base.record.clone() else { return };
        let want = self.wanted(base, &record, now);
        let same = want.len() == record.in_sync.len() && record.in_sync.iter().all(|id| want.contains(id));
        // Somebody who was asked for and is not wanted any more: a higher set rules the request out.
        let open = self.counted.keys().any(|id| !want.contains(id));
        if same && !open {
            self.asked = None;
            return;
        }
        let again = base.config.ask_again;
        let waits = |a: &Asked| a.set == record.set && a.want == want && now < a.at.plus(again);
        if self.asked.as_ref().is_some_and(waits) {
            return;
        }
        let min = base.min_in_sync(&record);
        let Some(change) = record::in_sync(&record, &base.me(), &want, min) else { return };
        for newcomer in want.iter().filter(|id| !record.is_in_sync(id)) {
            self.counted.insert(newcomer.clone(), record.set);
        }
        self.asked = Some(Asked { set: record.set, at: now, want });
        base.effects.push_back(Effect::Ask(change));
    }

    fn wanted(&self, base: &Base, record: &ShardState, now: Instant) -> BTreeSet<ReplicaId> {
        let peer = |id: &ReplicaId| self.peers.get(&id.member).filter(|p| p.store == id.store);
        let late = |id: &ReplicaId| *id != base.id && peer(id).is_none_or(|p| p.is_late(base, id, now) || p.snapshot);
        let stays = record.in_sync.iter().filter(|id| !late(id));
        let asked_for = self.counted.keys().filter(|id| !late(id));
        // Before the reign is open nobody is let in but in the place of somebody who is late.
        let may = self.is_open() || record.in_sync.iter().any(late);
        let full = record.replicas.iter().filter(|c| !c.is_learner()).map(|c| &c.id);
        let comes =
            full.filter(|id| may && **id != base.id && peer(id).is_some_and(|p| self.is_ready(base, id, p, now)));
        let mut want: BTreeSet<ReplicaId> = stays.chain(asked_for).chain(comes).cloned().collect();
        // Who is late stays while the set would be too small without it.
        let least = base.min_in_sync(record).min(record.in_sync.len());
        for id in &record.in_sync {
            if want.len() < least {
                want.insert(id.clone());
            }
        }
        want
    }

    /// Whether a replica outside the set may be asked for. Before the reign is open, when nobody knows what is committed, only one that
    /// has everything that the primary has: otherwise a set that can spare nobody would wait for ever for a member that is gone.
    fn is_ready(&self, base: &Base, id: &ReplicaId, peer: &Peer, now: Instant) -> bool {
        let log = &base.log;
        let near = match self.is_open() {
            true => peer.acked >= log.commit() && peer.acked.saturating_add(CLOSE) >= log.last().seq,
            false => peer.acked >= log.last().seq,
        };
        let may = peer.matched && !peer.snapshot && now >= peer.quiet.until;
        may && near && base.lives(id) && !peer.is_late(base, id, now)
    }

    /// A primary whose own store is too slow asks for another primary, and leaves the set with it.
    pub(super) fn hand_over_if_slow(&mut self, base: &mut Base, now: Instant) {
        let lag = base.config.in_sync_lag;
        let slow = base.stores.front().is_some_and(|(_, since)| now.since(*since) >= lag);
        let lately = self.handed_at.is_some_and(|at| now < at.plus(base.config.ask_again));
        let Some(record) = base.record.clone().filter(|_| slow && !lately) else { return };
        let own: BTreeSet<MemberId> = [base.id.member.clone()].into();
        let to = election::candidate(&record, &base.sight, &election::Reach::new(), &own);
        let change = to.and_then(|to| record::elect(&record, &base.me(), &to, &own, base.min_in_sync(&record)));
        if let Some(change) = change.filter(|c| !c.after.is_in_sync(&base.id)) {
            self.handed_at = Some(now);
            base.effects.push_back(Effect::Ask(change));
        }
    }
}
