//! The own side of a lease: which attempts were sent when, what each proves, and until when the member may believe.
//!
//! The hold counts from the instant before the attempt was sent whose number stands in the ledger now. An earlier number
//! found there proves the earlier attempt and nothing more, whatever was sent since. Must not know: what others see.

use std::collections::BTreeMap;

use crate::proto::env::Instant;
use crate::types::{Epoch, Holder, LeaseValue};

/// How many attempts without an answer are remembered; one that is forgotten proves nothing.
const ATTEMPTS_MAX: usize = 64;

/// A hold that is proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// Under which epoch.
    pub epoch: Epoch,
    /// The newest attempt known to have taken effect.
    pub renewal: u64,
    /// The first instant at which it is over.
    pub until: Instant,
}

impl Hold {
    /// Whether it is not over.
    pub fn stands(&self, now: Instant) -> bool {
        now < self.until
    }
}

/// What a chosen value proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// The member holds the lease from now on.
    Began(Hold),
    /// The hold that stood goes on.
    Renewed,
    /// Nothing.
    None,
}

/// One scope's attempts and hold, of this process.
#[derive(Debug, Clone, Default)]
pub struct Own {
    hold: Option<Hold>,
    /// Attempts by number: epoch, and the instant before each was sent.
    sent: BTreeMap<u64, (Epoch, Instant)>,
}

impl Own {
    /// The hold as last proven; it may be over.
    pub fn hold(&self) -> Option<&Hold> {
        self.hold.as_ref()
    }

    /// Notes an attempt, before it is sent.
    pub fn attempt(&mut self, now: Instant, epoch: Epoch, renewal: u64) {
        self.sent.insert(renewal, (epoch, now));
        while self.sent.len() > ATTEMPTS_MAX {
            self.sent.pop_first();
        }
    }

    /// Takes what stands in the ledger now; the caller has ended a hold that is over before.
    pub fn prove(&mut self, now: Instant, me: &Holder, value: &LeaseValue) -> Proof {
        let sent = match self.sent.get(&value.renewal) {
            Some((epoch, sent)) if value.holder == *me && !value.released && *epoch == value.epoch => *sent,
            _ => return Proof::None,
        };
        let hold = Hold { epoch: value.epoch, renewal: value.renewal, until: sent.plus(value.belief()) };
        // What was sent before can't come to stand there any more.
        self.sent = self.sent.split_off(&value.renewal);
        if !hold.stands(now) {
            return Proof::None;
        }
        let before = self.hold.replace(hold);
        if before.is_some_and(|b| b.epoch == hold.epoch) { Proof::Renewed } else { Proof::Began(hold) }
    }

    /// Whether the time of the hold is over. It is to be [ended](Own::end) then and does not come back: the next one has a
    /// higher epoch, so that whatever still runs under this one stays refused.
    pub fn is_over(&self, now: Instant) -> bool {
        self.hold.as_ref().is_some_and(|h| !h.stands(now))
    }

    /// Ends the hold; no attempt sent so far proves anything from here on.
    pub fn end(&mut self) -> Option<Hold> {
        self.sent.clear();
        self.hold.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::MemberId;

    fn me() -> Holder {
        Holder { member: MemberId::new("me").unwrap(), start: 1 }
    }

    fn value(epoch: u64, renewal: u64) -> LeaseValue {
        LeaseValue { holder: me(), epoch: epoch_of(epoch), renewal, ttl_ms: 1_000, released: false }
    }

    fn epoch_of(n: u64) -> Epoch {
        Epoch::new(n).unwrap()
    }

    const BELIEF: u64 = 950_000;

    fn holding() -> Own {
        let mut own = Own::default();
        own.attempt(Instant(100), epoch_of(5), 1);
        let began = own.prove(Instant(400), &me(), &value(5, 1));
        assert_eq!(began, Proof::Began(Hold { epoch: epoch_of(5), renewal: 1, until: Instant(100 + BELIEF) }));
        own
    }

    #[test]
    fn an_earlier_number_proves_only_the_earlier_attempt() {
        let mut own = holding();
        own.attempt(Instant(300_000), epoch_of(5), 2);
        own.attempt(Instant(600_000), epoch_of(5), 3);
        assert_eq!(own.prove(Instant(700_000), &me(), &value(5, 2)), Proof::Renewed);
        assert_eq!(own.hold().unwrap().until, Instant(300_000 + BELIEF));
        assert_eq!(own.prove(Instant(710_000), &me(), &value(5, 3)), Proof::Renewed);
        assert_eq!(own.hold().unwrap().until, Instant(600_000 + BELIEF));
    }

    #[test]
    fn a_proof_that_comes_too_late_begins_nothing() {
        let mut own = Own::default();
        own.attempt(Instant(0), epoch_of(5), 1);
        assert_eq!(own.prove(Instant(BELIEF), &me(), &value(5, 1)), Proof::None);
        assert_eq!(own.hold(), None);
    }

    #[test]
    fn a_number_that_was_not_sent_by_this_process_proves_nothing() {
        let mut own = holding();
        assert_eq!(own.prove(Instant(500), &me(), &value(5, 9)), Proof::None);
        let other = LeaseValue { holder: Holder { start: 2, ..me() }, ..value(5, 1) };
        assert_eq!(own.prove(Instant(500), &me(), &other), Proof::None);
        assert_eq!(own.prove(Instant(500), &me(), &LeaseValue { released: true, ..value(5, 1) }), Proof::None);
        assert_eq!(own.prove(Instant(500), &me(), &value(6, 1)), Proof::None);
    }

    #[test]
    fn a_hold_that_is_over_does_not_come_back() {
        let mut own = holding();
        own.attempt(Instant(900_000), epoch_of(5), 2);
        assert!(!own.is_over(Instant(BELIEF + 99)));
        assert!(own.is_over(Instant(BELIEF + 100)));
        own.end();
        assert_eq!(own.prove(Instant(BELIEF + 101), &me(), &value(5, 2)), Proof::None);
    }
}
