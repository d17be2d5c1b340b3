//! What is due for each scope, and the asking for it: reads, attempts to take, renew and give back, in batches.
//!
//! Every attempt has a number never sent before. Must not know: what answers prove (`holder`), what is free (`watcher`).

use std::sync::Arc;
use std::time::Duration;

use super::core::{LeaseCore, Op, Scoped};
use super::effects::Effect;
use super::holder::Hold;
use super::watcher::Free;
use crate::proto::env::{Env, Instant};
use crate::proto::register::{Change, OpId, Read};
use crate::types::limits::{LEASE_SIGNS_MAX, LEDGER_BATCH_MAX};
use crate::types::{Epoch, LeaseSign, LeaseValue, Scope};

/// What is done next for a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    GiveUp,
    Read,
    Acquire,
    Renew,
    Release,
}

impl LeaseCore {
    /// What is to be done next for a scope, and when.
    pub(super) fn plan(&self, scope: &Scope, s: &Scoped) -> Option<(Instant, Act)> {
        let may_hold = self.may_hold(scope, s);
        let ttl = Duration::from_millis(self.config.ttl_ms);
        if let Some((_, given)) = s.under_way {
            return Some((given.plus(ttl), Act::GiveUp));
        }
        if s.ask || (s.read_first || s.watch.known().is_none()) && (may_hold || s.releasing.is_some()) {
            return Some((s.not_before, Act::Read));
        }
        if let Some(releasing) = s.releasing {
            return releasing.ended.then_some((s.not_before, Act::Release));
        }
        if !may_hold {
            return None;
        }
        if s.own.hold().is_some() {
            return Some((if s.renew { s.not_before } else { self.renew_at.max(s.not_before) }, Act::Renew));
        }
        let (from, act) = match s.watch.free(&self.me) {
            Free::Own => (Instant::default(), Act::Acquire),
            Free::Since(since) => (since.plus(s.rank_wait), Act::Acquire),
            Free::Expires(at) => {
                let act = if s.asked >= at { Act::Acquire } else { Act::Read };
                (at.plus(s.rank_wait), act)
            }
            Free::Never => return None,
        };
        Some((from.max(s.not_before), act))
    }

    /// Ends what is over and does what is due. Closes every input.
    pub(super) fn run(&mut self, env: &mut Env) {
        let now = env.now;
        let over: Vec<Scope> =
            self.scopes.iter().filter(|(_, s)| s.own.is_over(now)).map(|(scope, _)| scope.clone()).collect();
        over.iter().for_each(|scope| self.expire(now, scope));
        if now >= self.renew_at {
            self.renew_at = now.plus(self.config.renew_interval);
            self.scopes.values_mut().filter(|s| s.own.hold().is_some()).for_each(|s| s.renew = true);
        }
        for scoped in self.scopes.values_mut() {
            scoped.releasing = scoped.releasing.take_if(|r| now < r.until);
        }
        let (mut changes, mut reads) = (Vec::new(), Vec::new());
        let due = |(scope, s): (&Scope, &Scoped)| {
            self.plan(scope, s).filter(|(at, _)| *at <= now).map(|(_, act)| (scope.clone(), act))
        };
        let due: Vec<(Scope, Act)> = self.scopes.iter().filter_map(due).collect();
        for (scope, act) in due {
            match act {
                Act::GiveUp => {
                    let retry = self.retry_at(env);
                    let scoped = self.scoped(&scope);
                    (scoped.under_way, scoped.read_first, scoped.not_before) = (None, true, retry);
                }
                Act::Read => {
                    let op = self.begin(now, &scope, None);
                    reads.push(Read { op, key: scope.lease_key() });
                }
                Act::Acquire | Act::Renew | Act::Release => match self.attempt(now, &scope, act) {
                    Some(change) => changes.push(change),
                    None => self.scoped(&scope).not_before = self.renew_at,
                },
            }
        }
        self.hand_over(changes, reads, now);
    }

    fn begin(&mut self, now: Instant, scope: &Scope, wrote: Option<Arc<str>>) -> OpId {
        let op = OpId(self.next_op);
        self.next_op += 1;
        self.ops.insert(op, Op { scope: scope.clone(), wrote, given: now });
        self.scoped(scope).under_way = Some((op, now));
        op
    }

    /// One attempt with a number of its own; `None` when the epochs are used up.
    fn attempt(&mut self, now: Instant, scope: &Scope, act: Act) -> Option<Change> {
        let (me, ttl_ms, renewal) = (self.me.clone(), self.config.ttl_ms, self.next_renewal);
        let highest = self.fences.highest(scope);
        let scoped = self.scopes.get_mut(scope)?;
        let expected = scoped.watch.known().map_or(0, |k| k.version);
        let stands = scoped.watch.lease().map_or(Epoch::ZERO, |v| v.epoch);
        let epoch = match (act, scoped.own.hold()) {
            (Act::Renew, Some(hold)) => hold.epoch,
            (Act::Release, _) => stands,
            _ => stands.max(highest).next()?,
        };
        if act != Act::Release {
            scoped.own.attempt(now, epoch, renewal);
        }
        self.next_renewal += 1;
        let released = act == Act::Release;
        let value: Arc<str> = LeaseValue { holder: me, epoch, renewal, ttl_ms, released }.to_json().into();
        let op = self.begin(now, scope, Some(value.clone()));
        Some(Change { op, key: scope.lease_key(), expected, value, quiet: act == Act::Renew })
    }

    /// Queues what this step asks for, in batches, and forgets what nobody will ask for again.
    fn hand_over(&mut self, changes: Vec<Change>, reads: Vec<Read>, now: Instant) {
        let chunks = changes.chunks(LEDGER_BATCH_MAX).map(|c| Effect::Changes(c.to_vec()));
        self.effects.extend(chunks);
        self.effects.extend(reads.chunks(LEDGER_BATCH_MAX).map(|c| Effect::Reads(c.to_vec())));
        if std::mem::take(&mut self.gossip_due) {
            let held = self.scopes.iter().filter_map(|(scope, s)| s.own.hold().map(|h| (scope, h)));
            let sign = |(scope, h): (&Scope, &Hold)| LeaseSign {
                scope: scope.clone(),
                epoch: h.epoch,
                start: self.me.start,
                renewal: h.renewal,
            };
            let signs = held.map(sign).take(LEASE_SIGNS_MAX).collect();
            self.effects.push_back(Effect::Gossip(signs));
        }
        let long = Duration::from_millis(self.config.ttl_ms * 10);
        self.ops.retain(|_, op| now.since(op.given) < long);
        self.scopes.retain(|_, s| {
            let idle = !s.wanted && s.releasing.is_none() && s.under_way.is_none() && !s.ask;
            let gone = match s.watch.free(&self.me) {
                Free::Expires(at) => at.plus(long) < now,
                Free::Since(_) | Free::Own | Free::Never => true,
            };
            !(idle && gone)
        });
    }
}
