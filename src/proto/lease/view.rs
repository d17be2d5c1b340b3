//! What a member may ask its lease core: who holds what now. Questions only; the instant is given.
//!
//! Must not know: how it came to be so.

use std::time::Duration;

use super::core::LeaseCore;
use super::effects::{Counts, Effect};
use super::fences::Fences;
use super::watcher::Free;
use crate::proto::env::Instant;
use crate::types::{Epoch, Holder, MemberId, Scope};

/// Whether another member's hold under an epoch is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lapse {
    /// It may still stand.
    Stands,
    /// Its time seems to be over; [`LeaseCore::handle_ask`] finds out.
    Seems,
    /// It is over for good.
    Over,
}

/// One line of the table `leader_lease`, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRow {
    /// The scope.
    pub scope: Scope,
    /// Whose it is, as far as is known here; `None` if it was given back.
    pub holder: Option<Holder>,
    /// Under which epoch.
    pub epoch: Epoch,
    /// How long from now on unless renewed; for another's lease, how long until it may be taken.
    pub expires_in: Duration,
}

impl LeaseCore {
    /// The epoch under which this member holds the scope at `now`; `None` if it does not.
    pub fn believes(&self, scope: &Scope, now: Instant) -> Option<Epoch> {
        let hold = self.scopes.get(scope)?.own.hold()?;
        (hold.stands(now) && hold.epoch >= self.fences.highest(scope)).then_some(hold.epoch)
    }

    /// The first instant at which the hold is over unless it is renewed.
    pub fn held_until(&self, scope: &Scope, now: Instant) -> Option<Instant> {
        self.believes(scope, now).and(self.scopes.get(scope)?.own.hold()).map(|h| h.until)
    }

    /// Whether what `holder` held under `epoch` is over. Work that was claimed under a lease is taken from its claimer only
    /// after `Over`.
    pub fn lapse(&self, scope: &Scope, holder: &Holder, epoch: Epoch, now: Instant) -> Lapse {
        if *holder == self.me {
            let stands = self.believes(scope, now) == Some(epoch);
            return if stands { Lapse::Stands } else { Lapse::Over };
        }
        let Some(scoped) = self.scopes.get(scope) else { return Lapse::Seems };
        let Some(v) = scoped.watch.lease() else { return Lapse::Seems };
        if v.epoch > epoch || (v.epoch == epoch && (v.released || v.holder != *holder)) {
            return Lapse::Over;
        }
        match scoped.watch.free(&self.me) {
            Free::Expires(at) if v.epoch == epoch && scoped.asked >= at => Lapse::Over,
            Free::Expires(at) if v.epoch == epoch && now < at => Lapse::Stands,
            _ => Lapse::Seems,
        }
    }

    /// The members whose `alive:` lease is not over, as far as is heard here. Good enough to spread work by, no proof.
    pub fn living(&self, now: Instant) -> impl Iterator<Item = &MemberId> {
        self.scopes.iter().filter_map(move |(scope, scoped)| {
            let Scope::Alive(member) = scope else { return None };
            let v = scoped.watch.lease()?;
            let lives = match scoped.watch.free(&self.me) {
                Free::Expires(at) => now < at,
                Free::Own => self.believes(scope, now).is_some(),
                Free::Since(_) | Free::Never => false,
            };
            (lives && v.holder.member == *member).then_some(member)
        })
    }

    /// What is known of all leases, for people.
    pub fn rows(&self, now: Instant) -> impl Iterator<Item = LeaseRow> {
        self.scopes.iter().filter_map(move |(scope, scoped)| {
            let v = scoped.watch.lease()?;
            let until = match (self.held_until(scope, now), scoped.watch.free(&self.me)) {
                (Some(until), _) | (None, Free::Expires(until)) => until,
                _ => now,
            };
            let holder = (!v.released).then(|| v.holder.clone());
            Some(LeaseRow { scope: scope.clone(), holder, epoch: v.epoch, expires_in: until.since(now) })
        })
    }

    /// The highest epochs seen.
    pub fn fences(&self) -> &Fences {
        &self.fences
    }

    /// What has happened since the process began.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The next thing for the driver to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When [`handle_tick`](Self::handle_tick) is due.
    pub fn next_wake(&self) -> Option<Instant> {
        let ends = self.scopes.values().filter_map(|s| s.own.hold().map(|h| h.until));
        let acts = self.scopes.iter().filter_map(|(scope, s)| self.plan(scope, s).map(|(at, _)| at));
        ends.chain(acts).chain([self.renew_at]).min()
    }
}
