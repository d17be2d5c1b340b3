//! The others' side of a lease: what the ledger was seen to hold, which signs of life came when, and from when on the lease
//! may be taken.
//!
//! Only a chosen value says what stands in the ledger. A sign of life (a vote given, gossip) may be of an attempt that never
//! took effect, so it says only one thing: this attempt, and every earlier one of the same process and epoch, had been sent
//! by then. Must not know: whether the member wants the lease.

use std::collections::BTreeMap;

use crate::proto::env::Instant;
use crate::types::{Epoch, Holder, LeaseValue};

/// How many epochs and processes of one scope are remembered; the rest is forgotten, which only makes one wait longer.
const MARKS_MAX: usize = 8;

/// What stands in the register, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// It was never written.
    Nothing,
    /// A lease.
    Lease(LeaseValue),
    /// Something that this version of the program can't read; so it is left alone.
    Unreadable,
}

/// A chosen value and since when it is known here.
#[derive(Debug, Clone)]
pub struct Known {
    /// The register's version.
    pub version: u64,
    /// What stands there.
    pub content: Content,
    /// When the version was first seen here.
    pub since: Instant,
}

/// From when on a member may write itself in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Free {
    /// At once, before anybody else: it was this member's own.
    Own,
    /// Nobody's, since this instant.
    Since(Instant),
    /// Somebody's who is taken for gone from this instant on; the ledger has to be asked then.
    Expires(Instant),
    /// Not to be taken.
    Never,
}

/// What one member has seen of one scope's lease.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    known: Option<Known>,
    /// The newest attempt of each epoch and process, and when it was first seen.
    marks: BTreeMap<(Epoch, Holder), (u64, Instant)>,
}

impl Watch {
    /// The newest chosen value that is known.
    pub fn known(&self) -> Option<&Known> {
        self.known.as_ref()
    }

    /// The lease that stands in the ledger, as far as is known.
    pub fn lease(&self) -> Option<&LeaseValue> {
        match &self.known.as_ref()?.content {
            Content::Lease(value) => Some(value),
            _ => None,
        }
    }

    /// Takes note of a chosen value; false if an equal or newer one was known.
    pub fn learn(&mut self, now: Instant, version: u64, content: Content) -> bool {
        if let Content::Lease(v) = &content {
            self.sign(now, v.epoch, &v.holder, v.renewal);
        }
        let newer = self.known.as_ref().is_none_or(|k| version > k.version);
        if newer {
            self.known = Some(Known { version, content, since: now });
        }
        newer
    }

    /// Takes note that this attempt had been sent by now.
    pub fn sign(&mut self, now: Instant, epoch: Epoch, holder: &Holder, renewal: u64) {
        let mark = self.marks.entry((epoch, holder.clone())).or_insert((renewal, now));
        if renewal > mark.0 {
            *mark = (renewal, now);
        }
        while self.marks.len() > MARKS_MAX {
            self.marks.pop_first();
        }
    }

    /// From when on `me` may write itself in over what is known to stand there.
    pub fn free(&self, me: &Holder) -> Free {
        let Some(known) = &self.known else { return Free::Never };
        match &known.content {
            Content::Nothing => Free::Since(known.since),
            Content::Unreadable => Free::Never,
            Content::Lease(v) if v.released => Free::Since(known.since),
            Content::Lease(v) if v.holder.member == me.member && v.holder.start <= me.start => Free::Own,
            Content::Lease(v) => Free::Expires(self.sent_by(known, v).plus(v.patience())),
        }
    }

    /// The first instant at which the attempt that stands in the ledger is known to have been sent already.
    fn sent_by(&self, known: &Known, v: &LeaseValue) -> Instant {
        match self.marks.get(&(v.epoch, v.holder.clone())) {
            Some((renewal, since)) if *renewal >= v.renewal => *since,
            _ => known.since,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::MemberId;

    fn lease(member: &str, start: u64, epoch: u64, renewal: u64) -> LeaseValue {
        let holder = Holder { member: MemberId::new(member).unwrap(), start };
        LeaseValue { holder, epoch: Epoch::new(epoch).unwrap(), renewal, ttl_ms: 1_000, released: false }
    }

    fn me(start: u64) -> Holder {
        lease("me", start, 0, 0).holder
    }

    fn sign(w: &mut Watch, now: u64, v: &LeaseValue) {
        w.sign(Instant(now), v.epoch, &v.holder, v.renewal);
    }

    const PATIENCE: u64 = 1_050_000;

    #[test]
    fn time_runs_from_the_first_sight_of_the_newest_attempt() {
        let mut w = Watch::default();
        assert_eq!(w.free(&me(1)), Free::Never, "nothing is known");
        w.learn(Instant(10), 4, Content::Lease(lease("a", 1, 5, 1)));
        w.learn(Instant(500), 4, Content::Lease(lease("a", 1, 5, 1)));
        assert_eq!(w.free(&me(1)), Free::Expires(Instant(10 + PATIENCE)));
        sign(&mut w, 700, &lease("a", 1, 5, 2));
        sign(&mut w, 800, &lease("a", 1, 5, 1));
        assert_eq!(w.free(&me(1)), Free::Expires(Instant(700 + PATIENCE)));
    }

    #[test]
    fn an_attempt_seen_before_it_stood_in_the_ledger_counts_from_then() {
        let mut w = Watch::default();
        sign(&mut w, 100, &lease("a", 1, 5, 3));
        w.learn(Instant(900), 6, Content::Lease(lease("a", 1, 5, 3)));
        assert_eq!(w.free(&me(1)), Free::Expires(Instant(100 + PATIENCE)));
        w.learn(Instant(950), 7, Content::Lease(lease("a", 1, 5, 4)));
        assert_eq!(w.free(&me(1)), Free::Expires(Instant(950 + PATIENCE)));
    }

    #[test]
    fn a_rivals_attempt_that_never_took_effect_says_nothing_of_the_holders() {
        let mut w = Watch::default();
        // The same epoch, by a rival, by another process, and a higher one: none of them is the holder's.
        sign(&mut w, 100, &lease("b", 1, 5, 9));
        sign(&mut w, 100, &lease("a", 2, 5, 9));
        sign(&mut w, 100, &lease("a", 1, 6, 9));
        w.learn(Instant(900), 6, Content::Lease(lease("a", 1, 5, 1)));
        assert_eq!(w.free(&me(1)), Free::Expires(Instant(900 + PATIENCE)));
    }

    #[test]
    fn an_older_version_changes_nothing() {
        let mut w = Watch::default();
        assert!(w.learn(Instant(10), 4, Content::Lease(lease("a", 1, 5, 1))));
        assert!(!w.learn(Instant(20), 3, Content::Nothing));
        assert_eq!(w.lease().map(|v| v.epoch.number()), Some(5));
    }

    #[test]
    fn ones_own_lease_is_taken_over_at_once_but_not_a_later_processs() {
        let mut w = Watch::default();
        w.learn(Instant(10), 4, Content::Lease(lease("me", 3, 5, 1)));
        assert_eq!(w.free(&me(4)), Free::Own);
        assert_eq!(w.free(&me(2)), Free::Expires(Instant(10 + PATIENCE)));
    }

    #[test]
    fn released_and_unwritten_are_free_and_the_unreadable_is_left_alone() {
        let mut w = Watch::default();
        w.learn(Instant(10), 0, Content::Nothing);
        assert_eq!(w.free(&me(1)), Free::Since(Instant(10)));
        w.learn(Instant(20), 1, Content::Lease(LeaseValue { released: true, ..lease("a", 1, 5, 1) }));
        assert_eq!(w.free(&me(1)), Free::Since(Instant(20)));
        w.learn(Instant(30), 2, Content::Unreadable);
        assert_eq!(w.free(&me(1)), Free::Never);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut w = Watch::default();
        for epoch in 0..1_000 {
            sign(&mut w, epoch, &lease("a", 1, epoch, 1));
        }
        assert_eq!(w.marks.len(), MARKS_MAX);
    }
}
