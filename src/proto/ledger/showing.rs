//! From when on a process votes.
//!
//! Whoever heard what a store did after a copy of it was taken refuses the store once it is put back, but whoever did not
//! would count its votes. So a new process on a store that has worked before shows itself to every member first, and
//! neither votes nor draws a ballot before all of them have taken it, or a TTL has passed and a majority of the voters has.
//! A majority, so that a start that was let vote is known to whoever must take the next one; the TTL, so that a mesh in
//! which somebody is gone gets its majority back.
//!
//! What is left: a store that was put back votes again if everybody who heard what it has forgotten is out of its reach
//! for a whole TTL, or has lost its own store.
//!
//! Rule: nothing is asked of a store's first process, and nothing while the mesh is being made. Must not know: what is
//! asked of a voter.

use super::base::Base;
use super::message::Item;
use crate::proto::env::{Env, Instant};
use crate::types::MemberId;

/// See the module.
#[derive(Debug, Clone)]
pub struct Showing {
    due: Instant,
    /// How often this process has shown itself. Counted, so that a clock that jumps ahead passes nobody over.
    times: u32,
}

/// The other members that have not taken this process.
fn missing(base: &Base) -> Vec<MemberId> {
    let record = base.record();
    let present = record.iter().flat_map(|(_, r)| r.present().map(|m| &m.id));
    let voters = base.stored.list.iter().flat_map(|l| l.voters.iter().map(|v| &v.member));
    let mut members: Vec<_> = present.chain(voters).filter(|m| !base.shown.contains(m)).cloned().collect();
    members.retain(|m| *m != base.config.member);
    members.sort();
    members.dedup();
    members
}

impl Showing {
    /// Nothing shown yet.
    pub fn new(now: Instant) -> Self {
        Self { due: now, times: 0 }
    }

    /// When [`Showing::tick`] is due; `None` once this process votes.
    pub fn next_wake(&self, base: &Base) -> Option<Instant> {
        let waits = !base.may_vote && base.made() && base.stored.recovering.is_none();
        waits.then_some(self.due)
    }

    /// The members that have not taken this process; `None` unless it waits for them.
    pub fn waits_for(&self, base: &Base) -> Option<Vec<MemberId>> {
        self.next_wake(base).filter(|_| !base.stored.rolled_back).map(|_| missing(base))
    }

    /// Shows this process to those who have not taken it.
    pub fn tick(&mut self, base: &mut Base, env: &Env) {
        if env.now < self.due || self.next_wake(base).is_none() {
            return;
        }
        self.due = env.now.plus(base.config.round_timeout);
        self.times = self.times.saturating_add(1);
        for member in missing(base) {
            base.send(&member, None, base.stored.list.clone(), Item::Show);
        }
    }

    /// Whether this process votes from here on, and did not before.
    pub fn opens(&self, base: &mut Base) -> bool {
        if base.may_vote || !base.made() || base.stored.recovering.is_some() {
            return false;
        }
        let patient = base.config.round_timeout.saturating_mul(self.times.saturating_sub(1)) < base.config.lease_ttl;
        let Some(list) = base.stored.list.as_ref() else { return false };
        let taken = list.voters.iter().filter(|v| v.member == base.config.member || base.shown.contains(&v.member));
        if taken.count() < list.majority() || patient && !missing(base).is_empty() {
            return false;
        }
        base.may_vote = true;
        true
    }
}
