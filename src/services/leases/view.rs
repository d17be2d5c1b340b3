//! What is known of all leases at one moment, to be read at any later one.
//!
//! Rule: a hold ends by the clock, also if nobody takes it out of here. Must not know: how it came to be known.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::proto::env::Instant;
use crate::proto::lease::LeaseCore;
use crate::types::{Epoch, Holder, MemberId, Scope};

/// One lease, as far as this member knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The scope.
    pub scope: Scope,
    /// Whose it is; `None`: it was given back.
    pub holder: Option<Holder>,
    /// Under which epoch.
    pub epoch: Epoch,
    /// Unless it is renewed; for another's lease, when it may be taken. The clock's beginning where that is over.
    pub until: Instant,
}

impl Row {
    /// How long from `now` on unless it is renewed; `None` if it is over.
    pub fn expires_in(&self, now: Instant) -> Option<Duration> {
        (self.holder.is_some() && now < self.until).then(|| self.until.since(now))
    }
}

/// A hold of this member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Under which epoch.
    pub epoch: Epoch,
    /// The first instant at which it is over.
    pub until: Instant,
}

/// All leases at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    rows: Vec<Row>,
    held: BTreeMap<Scope, Held>,
}

impl View {
    /// What the core knows at `now`.
    pub(super) fn of(core: &LeaseCore, now: Instant) -> Self {
        let mut view = Self::default();
        for row in core.rows(now) {
            let over = row.expires_in.is_zero();
            let until = if over { Instant::default() } else { now.plus(row.expires_in) };
            if let (Some(epoch), Some(until)) = (core.believes(&row.scope, now), core.held_until(&row.scope, now)) {
                view.held.insert(row.scope.clone(), Held { epoch, until });
            }
            view.rows.push(Row { scope: row.scope, holder: row.holder, epoch: row.epoch, until });
        }
        view
    }

    /// This view without the holds that `newer` does not have: what may be shown before anything new is stored.
    pub(super) fn without_lost(&self, newer: &Self) -> Self {
        let mut kept = self.clone();
        kept.held.retain(|scope, held| newer.held.get(scope).is_some_and(|h| h.epoch == held.epoch));
        kept
    }

    /// The epoch under which this member holds the scope at `now`; `None` if it does not.
    pub fn believes(&self, scope: &Scope, now: Instant) -> Option<Epoch> {
        self.held.get(scope).filter(|held| now < held.until).map(|held| held.epoch)
    }

    /// The scopes that this member holds at `now`, in order.
    pub fn held(&self, now: Instant) -> impl Iterator<Item = (&Scope, Held)> {
        self.held.iter().filter(move |(_, held)| now < held.until).map(|(scope, held)| (scope, *held))
    }

    /// The hold of a scope as it was last known; it may be over.
    pub(super) fn held_as(&self, scope: &Scope) -> Option<&Held> {
        self.held.get(scope)
    }

    /// All leases, by scope.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The members that are heard to live at `now`: good enough to spread work by, no proof.
    pub fn living(&self, now: Instant) -> impl Iterator<Item = &MemberId> {
        self.rows.iter().filter(move |row| row.expires_in(now).is_some()).filter_map(|row| match &row.scope {
            Scope::Alive(member) => Some(member),
            _ => None,
        })
    }

    /// Who is known to hold the scope at `now`.
    pub fn leader(&self, scope: &Scope, now: Instant) -> Option<&MemberId> {
        let row = self.rows.iter().find(|row| row.scope == *scope && row.expires_in(now).is_some())?;
        row.holder.as_ref().map(|holder| &holder.member)
    }

    /// Whether somebody is known to hold the scope at `now`.
    pub fn is_led(&self, scope: &Scope, now: Instant) -> bool {
        self.leader(scope, now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(epoch: u64, until: u64) -> Held {
        Held { epoch: Epoch::new(epoch).unwrap(), until: Instant(until) }
    }

    fn view(held: &[(Scope, Held)]) -> View {
        View { rows: Vec::new(), held: held.iter().cloned().collect() }
    }

    #[test]
    fn a_hold_ends_by_the_clock() {
        let view = view(&[(Scope::TaskIds, held(4, 100))]);
        assert_eq!(view.believes(&Scope::TaskIds, Instant(99)), Epoch::new(4));
        assert_eq!(view.believes(&Scope::TaskIds, Instant(100)), None);
        assert_eq!(view.held(Instant(100)).count(), 0);
        assert_eq!(view.believes(&Scope::Membership, Instant(0)), None);
    }

    #[test]
    fn before_anything_is_stored_holds_only_go() {
        let old = view(&[(Scope::TaskIds, held(4, 100)), (Scope::Membership, held(2, 100)), (Scope::Ilm, held(1, 9))]);
        let new = view(&[
            (Scope::TaskIds, held(4, 200)),
            (Scope::Membership, held(3, 200)),
            (Scope::ShardLeaders, held(1, 9)),
        ]);
        assert_eq!(old.without_lost(&new), view(&[(Scope::TaskIds, held(4, 100))]));
    }
}
