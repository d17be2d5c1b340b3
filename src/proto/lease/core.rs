//! The lease core: keeps the scopes that this member wants, and knows those of the others.
//!
//! Inputs are `handle_*`; after each the driver drains [`LeaseCore::poll_effect`], and calls [`LeaseCore::handle_tick`] at
//! [`LeaseCore::next_wake`]. Belief is a question with the instant given, so that it is false in time even if no input
//! comes. All that a core knows can be lost but the highest epochs: a new process begins with the ledger's copies.
//!
//! Must not know: the form of the ledger's votes, sockets, what is done under a lease.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::effects::{Config, Counts, Effect, Eligible, LostWhy};
use super::fences::{Fences, OrderRefusal};
use super::holder::{Own, Proof};
use super::rank;
use super::watcher::{Content, Watch};
use crate::proto::env::{Env, Instant};
use crate::proto::register::{Answer, Chosen, OpId};
use crate::types::limits::{LEASE_SCOPES_MAX, LEASE_SIGNS_MAX, LEASE_TTL_MAX_MS, LEASE_TTL_MIN_MS};
use crate::types::{Epoch, Holder, LeaseSign, LeaseValue, MemberId, Order, RecordVersion, Scope};

/// How long the member of the next rank waits longer.
const RANK_STEP: Duration = Duration::from_millis(100);

/// Why a scope can't be wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WantError {
    /// The configuration says that this member leads nothing.
    #[error("leader election is turned off on this member")]
    Disabled,
    /// Only the member itself holds that it lives.
    #[error("another member's life can't be led")]
    NotOwn,
    /// As many scopes as one member may watch.
    #[error("too many scopes at a time")]
    Full,
}

/// The giving back of a lease.
#[derive(Debug, Clone, Copy)]
pub(super) struct Releasing {
    /// What ran under the lease has ended, so it can be sent.
    pub(super) ended: bool,
    /// After this the lease has expired by itself.
    pub(super) until: Instant,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Scoped {
    pub(super) wanted: bool,
    pub(super) watch: Watch,
    pub(super) own: Own,
    pub(super) releasing: Option<Releasing>,
    /// The change or read under way, and when it was given out.
    pub(super) under_way: Option<(OpId, Instant)>,
    /// Nobody knows what became of a change: nothing is sent before the register was read.
    pub(super) read_first: bool,
    /// What is known stood in the ledger at this instant or later: when the newest answered question was asked.
    pub(super) asked: Instant,
    /// Somebody wants to know whether the holder still stands.
    pub(super) ask: bool,
    /// The turn of renewals has come and this one has not been answered.
    pub(super) renew: bool,
    /// Not again before this.
    pub(super) not_before: Instant,
    /// How long those wait that come before this member.
    pub(super) rank_wait: Duration,
}

/// What a change or read under way was.
#[derive(Debug, Clone)]
pub(super) struct Op {
    pub(super) scope: Scope,
    /// What the change wrote; `None` for a read.
    pub(super) wrote: Option<Arc<str>>,
    pub(super) given: Instant,
}

/// The state of all scopes at one member; see the module.
#[derive(Debug, Clone)]
pub struct LeaseCore {
    pub(super) me: Holder,
    pub(super) config: Config,
    pub(super) eligible: bool,
    pub(super) members: Vec<MemberId>,
    pub(super) scopes: BTreeMap<Scope, Scoped>,
    pub(super) fences: Fences,
    pub(super) ops: BTreeMap<OpId, Op>,
    pub(super) next_op: u64,
    pub(super) next_renewal: u64,
    pub(super) renew_at: Instant,
    pub(super) gossip_due: bool,
    pub(super) counts: Counts,
    pub(super) effects: VecDeque<Effect>,
}

impl LeaseCore {
    /// A core for the process `me`, from the highest epochs that were stored. It believes nothing, whatever its earlier
    /// process held.
    ///
    /// # Panics
    /// If the TTL is outside its bounds or not longer than the interval: the configuration was checked.
    pub fn recover(me: Holder, config: Config, fences: Fences, now: Instant) -> Self {
        assert!((LEASE_TTL_MIN_MS..=LEASE_TTL_MAX_MS).contains(&config.ttl_ms), "the configuration was checked");
        assert!(config.renew_interval < Duration::from_millis(config.ttl_ms), "the configuration was checked");
        let own = Scope::Alive(me.member.clone());
        let standing = Scope::STANDING.iter().filter(|_| config.enabled).cloned();
        let scopes = standing.chain([own]).map(|s| (s, Scoped { wanted: true, ..Scoped::default() })).collect();
        let renew_at = now.plus(config.renew_interval);
        Self {
            me,
            config,
            eligible: true,
            members: Vec::new(),
            scopes,
            fences,
            ops: BTreeMap::new(),
            next_op: 1,
            next_renewal: 1,
            renew_at,
            gossip_due: false,
            counts: Counts::default(),
            effects: VecDeque::new(),
        }
    }

    /// Time has passed.
    pub fn handle_tick(&mut self, env: &mut Env) {
        self.run(env);
    }

    /// The active members of the mesh, by whose order one waits.
    pub fn handle_members(&mut self, env: &mut Env, members: Vec<MemberId>) {
        self.members = members;
        let scopes: Vec<Scope> = self.scopes.keys().cloned().collect();
        for scope in scopes {
            let wait = self.rank_wait(&scope);
            self.scoped(&scope).rank_wait = wait;
        }
        self.run(env);
    }

    /// Whether this member may lead now. When not, it gives back all but its own `alive:`.
    pub fn handle_eligible(&mut self, env: &mut Env, eligible: Eligible) {
        self.eligible = eligible == Eligible::Yes;
        if !self.eligible {
            let held: Vec<Scope> = self.scopes.keys().filter(|s| !self.is_own_life(s)).cloned().collect();
            if eligible == Eligible::Stale {
                let loses = |scope: &&Scope| scope.is_led() && self.scopes[*scope].own.hold().is_some();
                self.counts.losses += held.iter().filter(loses).count() as u64;
            }
            held.iter().for_each(|scope| self.give_back(env.now, scope));
        }
        self.run(env);
    }

    /// The scope is wanted until [`handle_release`](Self::handle_release).
    ///
    /// # Errors
    /// The reason why this member can't have it.
    pub fn handle_want(&mut self, env: &mut Env, scope: &Scope) -> Result<(), WantError> {
        if matches!(scope, Scope::Alive(_)) && !self.is_own_life(scope) {
            return Err(WantError::NotOwn);
        }
        if !self.config.enabled && !self.is_own_life(scope) {
            return Err(WantError::Disabled);
        }
        if !self.has_room(scope) || !self.fences.has_room(scope) {
            return Err(WantError::Full);
        }
        let scoped = self.scoped(scope);
        scoped.wanted = true;
        scoped.releasing = None;
        self.run(env);
        Ok(())
    }

    /// The scope is not wanted any more. Belief ends now; the release is sent when the driver says that what ran under the
    /// lease [has ended](Self::handle_ended). Standing scopes and the own `alive:` are wanted as long as the process lives.
    pub fn handle_release(&mut self, env: &mut Env, scope: &Scope) {
        let kept = scope.is_standing() || self.is_own_life(scope);
        if let Some(scoped) = self.scopes.get_mut(scope).filter(|_| !kept) {
            scoped.wanted = false;
            self.give_back(env.now, scope);
        }
        self.run(env);
    }

    /// The scope is given back so that a member that comes before this one may have it, and wanted all the same: if nobody
    /// takes it, this member does.
    pub fn handle_yield(&mut self, env: &mut Env, scope: &Scope) {
        if self.scopes.get(scope).is_some_and(|s| s.own.hold().is_some()) {
            self.give_back(env.now, scope);
        }
        self.run(env);
    }

    /// The process is about to end: nothing is wanted any more.
    pub fn handle_shutdown(&mut self, env: &mut Env) {
        let scopes: Vec<Scope> = self.scopes.keys().cloned().collect();
        for scope in scopes {
            self.scoped(&scope).wanted = false;
            self.give_back(env.now, &scope);
        }
        self.run(env);
    }

    /// What ran under a lease that was given back has ended.
    pub fn handle_ended(&mut self, env: &mut Env, scope: &Scope) {
        if let Some(releasing) = self.scopes.get_mut(scope).and_then(|s| s.releasing.as_mut()) {
            releasing.ended = true;
        }
        self.run(env);
    }

    /// Whether all that was given back stands so in the ledger, or is over: a process that ends waits for it a little.
    pub fn is_released(&self) -> bool {
        self.scopes.values().all(|s| s.releasing.is_none())
    }

    /// Somebody needs to know whether another's hold is over: the register is read once.
    pub fn handle_ask(&mut self, env: &mut Env, scope: &Scope) {
        if self.has_room(scope) {
            self.scoped(scope).ask = true;
        }
        self.run(env);
    }

    /// A value that the members have agreed on: from the member's copies at the start, a push or a read.
    pub fn handle_chosen(&mut self, env: &mut Env, key: &str, chosen: &Chosen) {
        if let Some(scope) = Scope::of_lease_key(key) {
            self.learn(env.now, &scope, Some(chosen));
        }
        self.run(env);
    }

    /// A record shows that the scope was led under this epoch. Where survivors have put their records together, a lease may
    /// be older than what was written under it.
    pub fn handle_epoch(&mut self, env: &mut Env, scope: &Scope, epoch: Epoch) {
        self.raise(env.now, scope, epoch);
        self.run(env);
    }

    /// A value that this member, as a voter, has accepted: a sign of life that may never take effect.
    pub fn handle_accepted(&mut self, env: &mut Env, key: &str, value: &str) {
        if let (Some(scope), Ok(v)) = (Scope::of_lease_key(key), LeaseValue::parse(value))
            && let Some(scoped) = self.scopes.get_mut(&scope)
        {
            scoped.watch.sign(env.now, v.epoch, &v.holder, v.renewal);
        }
        self.run(env);
    }

    /// What another member gossips of the leases that it holds.
    pub fn handle_gossip(&mut self, env: &mut Env, from: &MemberId, signs: &[LeaseSign]) {
        for sign in signs.iter().take(LEASE_SIGNS_MAX) {
            let holder = Holder { member: from.clone(), start: sign.start };
            if let Some(scoped) = self.scopes.get_mut(&sign.scope) {
                scoped.watch.sign(env.now, sign.epoch, &holder, sign.renewal);
            }
            self.raise(env.now, &sign.scope, sign.epoch);
        }
        self.run(env);
    }

    /// Checks an order against the highest epoch and the version of the member's own copy of the record that it names. The
    /// epoch is remembered even if the order is refused; what is queued is stored before the order is carried out.
    ///
    /// # Errors
    /// Why it is not carried out.
    pub fn handle_order(&mut self, env: &mut Env, order: &Order, known: RecordVersion) -> Result<(), OrderRefusal> {
        self.raise(env.now, &order.scope, order.epoch);
        let checked = self.fences.check(order, known);
        self.run(env);
        checked
    }

    /// What became of a change or a read. An answer that comes after the change was given up still proves what it says.
    pub fn handle_answer(&mut self, env: &mut Env, op: OpId, answer: Answer) {
        let Some(Op { scope, wrote, given }) = self.ops.remove(&op) else { return self.run(env) };
        let retry = self.retry_at(env);
        let scoped = self.scoped(&scope);
        let awaited = scoped.under_way.is_some_and(|(under_way, _)| under_way == op);
        if awaited {
            scoped.under_way = None;
        }
        match answer {
            Answer::Changed { version } => {
                if let Some(value) = wrote {
                    scoped.renew &= !awaited;
                    self.learn(env.now, &scope, Some(&Chosen { version, value }));
                }
            }
            Answer::Conflict { current } | Answer::Read { current } => {
                scoped.asked = scoped.asked.max(given);
                if awaited {
                    (scoped.read_first, scoped.ask) = (false, false);
                }
                self.learn(env.now, &scope, current.as_ref());
            }
            Answer::Unknown => {
                scoped.read_first |= wrote.is_some();
                scoped.not_before = retry;
            }
            Answer::NoQuorum => scoped.not_before = retry,
        }
        self.run(env);
    }

    // What follows from it.

    pub(super) fn is_own_life(&self, scope: &Scope) -> bool {
        matches!(scope, Scope::Alive(member) if *member == self.me.member)
    }

    pub(super) fn may_hold(&self, scope: &Scope, scoped: &Scoped) -> bool {
        scoped.wanted && (self.eligible || self.is_own_life(scope))
    }

    fn has_room(&self, scope: &Scope) -> bool {
        self.scopes.len() < LEASE_SCOPES_MAX || self.scopes.contains_key(scope)
    }

    fn rank_wait(&self, scope: &Scope) -> Duration {
        let members: Vec<&MemberId> = self.members.iter().collect();
        let order = rank::order(scope, &members);
        let rank = order.iter().position(|m| **m == self.me.member).unwrap_or(order.len());
        RANK_STEP * u32::try_from(rank).unwrap_or(u32::MAX)
    }

    /// The state of a scope, made if it is new; the caller has looked whether there is room.
    pub(super) fn scoped(&mut self, scope: &Scope) -> &mut Scoped {
        if !self.scopes.contains_key(scope) {
            let rank_wait = self.rank_wait(scope);
            self.scopes.insert(scope.clone(), Scoped { rank_wait, ..Scoped::default() });
        }
        self.scopes.get_mut(scope).expect("inserted above")
    }

    /// A little later, not at the same instant as others.
    pub(super) fn retry_at(&self, env: &mut Env) -> Instant {
        let step = u64::try_from(self.config.renew_interval.as_micros()).unwrap_or(u64::MAX) / 8;
        env.now.plus(Duration::from_micros(step + env.rng.u64(0..=step)))
    }

    fn raise(&mut self, now: Instant, scope: &Scope, epoch: Epoch) {
        if !self.fences.raise(scope, epoch) {
            return;
        }
        self.effects.push_back(Effect::Persist { scope: scope.clone(), epoch });
        let overtaken = |s: &Scoped| s.own.hold().is_some_and(|h| h.epoch < epoch);
        if self.scopes.get(scope).is_some_and(overtaken) {
            self.lose(now, scope, LostWhy::Fenced);
        }
    }

    /// Ends a hold, if there is one.
    fn lose(&mut self, now: Instant, scope: &Scope, why: LostWhy) {
        let Some(hold) = self.scopes.get_mut(scope).and_then(|s| s.own.end()) else { return };
        self.gossip_due = true;
        self.counts.losses += u64::from(why != LostWhy::Released && scope.is_led());
        let at = now.min(hold.until);
        self.effects.push_back(Effect::Lost { scope: scope.clone(), epoch: hold.epoch, at, why });
    }

    fn give_back(&mut self, now: Instant, scope: &Scope) {
        let patience = Duration::from_micros(self.config.ttl_ms * LeaseValue::PATIENCE_PER_MS);
        let me = self.me.clone();
        let Some(scoped) = self.scopes.get_mut(scope) else { return };
        let stands = scoped.watch.lease().is_some_and(|v| v.holder == me && !v.released);
        if stands && scoped.releasing.is_none() {
            let ended = scoped.own.hold().is_none();
            scoped.releasing = Some(Releasing { ended, until: now.plus(patience) });
        }
        self.lose(now, scope, LostWhy::Released);
        // Nothing that is still under way may prove a hold.
        self.scoped(scope).own.end();
    }

    /// Takes what stands in the ledger, and what follows for the own hold.
    fn learn(&mut self, now: Instant, scope: &Scope, chosen: Option<&Chosen>) {
        if !self.has_room(scope) {
            return;
        }
        let content = match chosen.map(|c| LeaseValue::parse(&c.value)) {
            None => Content::Nothing,
            Some(Ok(value)) => Content::Lease(value),
            Some(Err(_)) => Content::Unreadable,
        };
        self.expire(now, scope);
        let me = self.me.clone();
        let scoped = self.scoped(scope);
        if !scoped.watch.learn(now, chosen.map_or(0, |c| c.version), content.clone()) {
            return;
        }
        let Content::Lease(v) = content else { return };
        self.raise(now, scope, v.epoch);
        let fence = self.fences.highest(scope);
        let may_hold = self.scopes.get(scope).is_some_and(|s| self.may_hold(scope, s));
        let scoped = self.scoped(scope);
        if v.holder != me || v.released {
            scoped.releasing = None;
            // A hold that is not the one in the ledger: a clock stood still, or the epochs did not grow.
            return self.lose(now, scope, LostWhy::Fenced);
        }
        if !may_hold {
            // An attempt took effect after the scope was given up.
            return self.give_back(now, scope);
        }
        match scoped.own.prove(now, &me, &v) {
            Proof::Began(hold) if hold.epoch >= fence => {
                self.counts.acquisitions += u64::from(scope.is_led());
                self.gossip_due = true;
                let (scope, epoch, until) = (scope.clone(), hold.epoch, hold.until);
                self.effects.push_back(Effect::Became { scope, epoch, at: now, until });
            }
            Proof::Began(_) => drop(scoped.own.end()),
            Proof::Renewed => {
                self.counts.renewals += u64::from(scope.is_led());
                self.gossip_due = true;
            }
            Proof::None => {}
        }
    }

    pub(super) fn expire(&mut self, now: Instant, scope: &Scope) {
        if self.scopes.get(scope).is_some_and(|s| s.own.is_over(now)) {
            self.lose(now, scope, LostWhy::Expired);
        }
    }
}
