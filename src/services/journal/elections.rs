//! Who becomes primary, and who writes it.
//!
//! An index is looked at when its record or what is seen of its members changes, and again while it lacks a primary: then this
//! member waits for its turn, and writes. Rule: the record keeps two elections apart, so a turn that comes too early costs a
//! write that is refused. Must not know: how the record is written.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::driver::Driver;
use crate::proto::env::Instant;
use crate::proto::journal::election::Waiting;
use crate::proto::journal::record::Change;
use crate::proto::journal::{election, record};
use crate::services::ledger::now;
use crate::types::{Holder, JournalKey, MemberId, PhysicalIndex, Scope, ShardId, ShardState};

/// For how long a shard that was given to another is not given again, at first; it doubles.
const LEND_MIN: Duration = Duration::from_secs(3);
/// The longest such time.
const LEND_MAX: Duration = Duration::from_secs(300);
/// A shard that is to be led by somebody else for so long is given to whoever is in sync, whether or not its copy is served:
/// its node may wait for nothing but the word of a primary.
const RELUCTANT: Duration = Duration::from_secs(10);

/// Shards, of as many indexes, that preferred primaries are given back at one look.
const GIVE_BACK_MOST: usize = 4;

/// For how long the own node may be down before its shards are given to others.
const IDLE: Duration = Duration::from_secs(5);
/// Between two looks while it is.
const IDLE_LOOK: Duration = Duration::from_secs(1);

/// What is known of elections.
#[derive(Debug, Default)]
pub(super) struct Elections {
    /// Indexes that lack a primary.
    told: BTreeMap<PhysicalIndex, Waiting>,
    /// When a preferred primary was last given its shard back.
    gave_back: BTreeMap<PhysicalIndex, Instant>,
    look_again: Option<Instant>,
}

/// A shard that somebody else should lead.
#[derive(Debug)]
pub(super) struct Unfit {
    since: Instant,
    /// It is not given away before.
    not_before: Instant,
    pause: Duration,
    /// Who had it since then, and has not led it for long.
    lent_to: BTreeSet<MemberId>,
}

impl Unfit {
    pub(super) fn new(since: Instant) -> Self {
        Self { since, not_before: since, pause: Duration::ZERO, lent_to: BTreeSet::new() }
    }
}

impl Elections {
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.told.values().filter_map(Waiting::due).chain(self.look_again).min()
    }
}

impl Driver {
    pub(super) fn holder(&self) -> Holder {
        Holder { member: self.me.member.clone(), start: self.start }
    }

    fn leads(&self) -> bool {
        self.leases.believes(&Scope::ShardLeaders).is_some()
    }

    /// The record of an index, or what is seen of its members, has changed.
    pub(super) fn look_at(&mut self, index: &PhysicalIndex) {
        let Some(known) = self.indexes.get(index) else { return };
        let (shards, sight) = (&known.record.shards, &self.seen_now.sight);
        let own = self.gives_up(index).next().is_some() || !self.lends(index).is_empty();
        let own = own || self.own_places(index).next().is_some();
        let others = self.has_left_out(index) || shards.iter().any(|state| election::needs_primary(state, sight));
        if !own && !others {
            self.elections.told.remove(index);
            self.plan_give_back();
            return;
        }
        let turn = election::turn(shards, &self.holder(), sight, self.leads() || own);
        let now = now();
        self.elections.told.entry(index.clone()).or_insert_with(|| Waiting::new(now)).look(now, turn);
    }

    /// Shards that the record gives to this process, whose copies here are to be made anew: somebody else is to lead them.
    fn gives_up(&self, index: &PhysicalIndex) -> impl Iterator<Item = (ShardId, Change)> {
        let own: BTreeSet<MemberId> = [self.me.member.clone()].into();
        let broken = self.broken.iter().filter(move |key| key.index == *index);
        broken.filter_map(move |key| {
            let state = self.state(key).filter(|state| state.primary.as_ref() == Some(&self.holder()))?;
            let (sight, reach) = (&self.seen_now.sight, &self.seen_now.reach);
            let to = election::candidate(state, sight, reach, &own)?;
            let min = election::min_in_sync(state, self.config.core.min_in_sync);
            Some((key.shard, record::elect(state, &self.holder(), &to, &own, min)?))
        })
    }

    /// Shards that the record gives to this process, whose copies here are made anew: somebody else is to lead them meanwhile, if
    /// anybody has a copy. Not again and again, for nobody may have one, and nobody know that.
    fn lends(&self, index: &PhysicalIndex) -> Vec<(ShardId, Change)> {
        let now = now();
        let unfit = self.unfit.iter().filter(|(key, unfit)| key.index == *index && unfit.not_before <= now);
        let lend = |(key, unfit): (&JournalKey, &Unfit)| {
            let state = self.state(key).filter(|state| state.primary.as_ref() == Some(&self.holder()))?;
            let to = self.borrower(key, unfit, state, now)?;
            let min = election::min_in_sync(state, self.config.core.min_in_sync);
            Some((key.shard, record::elect(state, &self.holder(), &to, &BTreeSet::new(), min)?))
        };
        unfit.filter_map(lend).collect()
    }

    /// Who gets a shard that this member should not lead: whoever says that it serves it, and has not had it yet.
    fn borrower(&self, key: &JournalKey, unfit: &Unfit, state: &ShardState, now: Instant) -> Option<Holder> {
        let (sight, reach) = (&self.seen_now.sight, &self.seen_now.reach);
        let find = |mut except: BTreeSet<MemberId>| {
            except.insert(self.me.member.clone());
            let fresh = election::candidate(state, sight, reach, &except.union(&unfit.lent_to).cloned().collect());
            fresh.or_else(|| election::candidate(state, sight, reach, &except))
        };
        let lacking = sight.keys().filter(|member| self.seen_now.lacks(member, key)).cloned().collect();
        let reluctant = unfit.since.plus(RELUCTANT) <= now;
        find(lacking).or_else(|| if reluctant { find(self.seen_now.idle.clone()) } else { None })
    }

    /// The record names another primary of a shard that this member led. What is not granted is asked for again soon; what was
    /// lent and comes back is lent again only after a while, that gets longer.
    pub(super) fn has_lent(&mut self, key: &JournalKey, to: Option<&Holder>) {
        if let Some(unfit) = self.unfit.get_mut(key) {
            unfit.pause = (unfit.pause * 2).clamp(LEND_MIN, LEND_MAX);
            unfit.not_before = now().plus(unfit.pause);
            unfit.lent_to.extend(to.map(|to| to.member.clone()));
        }
    }

    /// Other members are seen, or others are not seen any more.
    pub(super) fn see(&mut self) {
        let seen = std::sync::Arc::clone(&self.seen.borrow_and_update());
        let before = std::mem::replace(&mut self.seen_now, std::sync::Arc::clone(&seen));
        self.outbox.keep(|member| seen.known.contains_key(member));
        match (seen.idle.contains(&self.me.member), self.idle) {
            (true, None) => self.idle = Some(now().plus(IDLE)),
            (false, Some(_)) => {
                self.idle = None;
                // Whose copies are made anew says so again.
                self.unfit.clear();
            }
            _ => {}
        }
        if seen.sight != before.sight {
            for key in self.open_keys() {
                let sight = seen.sight.clone();
                self.call(&key, |replica, env| replica.handle_sight(env, sight));
            }
            // A primary at rest takes up who has come back.
            let back = |id: &crate::types::ReplicaId| {
                let lives = |s: &crate::proto::journal::Sight| s.get(&id.member).is_some_and(|a| a.store == id.store);
                lives(&seen.sight) && !lives(&before.sight)
            };
            let mut wanted = Vec::new();
            for (index, known) in &self.indexes {
                for (shard, state) in (0..).map(ShardId).zip(&known.record.shards) {
                    let lacks =
                        state.replicas.iter().any(|c| back(&c.id) && (c.is_learner() || !state.is_in_sync(&c.id)));
                    if lacks && state.is_led_by(&self.me, self.start) {
                        wanted.push(JournalKey { index: index.clone(), shard });
                    }
                }
            }
            wanted.iter().for_each(|key| self.touch(key));
        }
        let indexes: Vec<PhysicalIndex> = self.indexes.keys().cloned().collect();
        indexes.iter().for_each(|index| self.look_at(index));
    }

    /// The own node has been down for long: entries wait for it, and verdicts and tasks with them, wherever this member leads.
    fn lend_all(&mut self, now: Instant) {
        if self.idle.is_none_or(|at| at > now) {
            return;
        }
        self.idle = Some(now.plus(IDLE_LOOK));
        let mut led = Vec::new();
        for (index, known) in self.indexes.iter().filter(|(index, _)| !index.is_of_tasks()) {
            let key = |shard| JournalKey { index: index.clone(), shard };
            let states = (0..).map(ShardId).zip(&known.record.shards);
            led.extend(states.filter(|(_, s)| s.is_led_by(&self.me, self.start)).map(|(shard, _)| key(shard)));
        }
        let indexes: BTreeSet<PhysicalIndex> = led.iter().map(|key| key.index.clone()).collect();
        for key in led {
            self.unfit.entry(key).or_insert_with(|| Unfit::new(now));
        }
        indexes.iter().for_each(|index| self.look_at(index));
    }

    /// Writes the elections that are due.
    pub(super) fn elect(&mut self) {
        let now = now();
        self.lend_all(now);
        let due = self.elections.told.iter().filter(|(_, waiting)| waiting.is_due(now));
        let due: Vec<PhysicalIndex> = due.map(|(index, _)| index.clone()).collect();
        for index in due {
            let Some(known) = self.indexes.get(&index) else { continue };
            let (seen, min) = (&self.seen_now, self.config.core.min_in_sync);
            let plan = election::plan(&known.record.shards, &self.holder(), &seen.sight, &seen.reach, min);
            let shard = |i: usize| u16::try_from(i).ok().map(ShardId);
            let plan = plan.into_iter().filter_map(|(i, change)| Some((shard(i)?, change)));
            let plan: Vec<(ShardId, Change)> =
                plan.chain(self.gives_up(&index)).chain(self.own_places(&index)).collect();
            let lent = self.lends(&index);
            let plan: Vec<(ShardId, Change)> = plan.into_iter().chain(lent).collect();
            let left_out = self.has_left_out(&index);
            let waiting = self.elections.told.entry(index.clone()).or_insert_with(|| Waiting::new(now));
            if plan.is_empty() && !left_out {
                waiting.held_back(now);
            } else {
                *waiting = Waiting::written(now);
            }
            if left_out {
                self.read_members();
            }
            for (shard, change) in plan {
                tracing::info!(%index, %shard, primary = ?change.after.primary, "a primary is being elected");
                self.asks.ask(JournalKey { index: index.clone(), shard }, change);
            }
        }
        if self.elections.look_again.is_some_and(|at| at <= now) {
            self.elections.look_again = None;
            self.give_back(now);
        }
    }

    /// Preferred primaries return, when whoever leads looks.
    fn plan_give_back(&mut self) {
        let at = now().plus(self.config.give_back_pause);
        self.elections.look_again.get_or_insert(at);
    }

    fn give_back(&mut self, now: Instant) {
        if !self.leads() {
            return;
        }
        let mut gave = Vec::new();
        let mut indexes: Vec<_> = self.indexes.iter().collect();
        // Whoever has waited longest comes first.
        indexes.sort_by_key(|(index, _)| self.elections.gave_back.get(*index).copied());
        for (index, known) in indexes {
            if gave.len() == GIVE_BACK_MOST {
                break;
            }
            let times = (self.elections.gave_back.get(index).copied(), self.config.give_back_pause, now);
            let (shards, min) = (&known.record.shards, self.config.core.min_in_sync);
            let key = |shard: usize| {
                let shard = u16::try_from(shard).ok().map(ShardId)?;
                Some(JournalKey { index: index.clone(), shard })
            };
            // Whose copy is made anew would only give it away again.
            let lacks = |shard: usize, to: &MemberId| key(shard).is_some_and(|key| self.seen_now.lacks(to, &key));
            let (sight, reach) = (&self.seen_now.sight, &self.seen_now.reach);
            let change = election::give_back(shards, &self.holder(), sight, reach, min, lacks, times);
            gave.extend(change.and_then(|(shard, change)| Some((key(shard)?, change))));
        }
        for (key, change) in gave {
            self.elections.gave_back.insert(key.index.clone(), now);
            self.asks.ask(key, change);
            self.plan_give_back();
        }
    }

    /// Other primaries are asked for, of all shards that this member leads.
    pub(super) fn hand_over(&mut self) {
        let (me, sight, reach) = (self.holder(), &self.seen_now.sight, &self.seen_now.reach);
        let mut wanted = Vec::new();
        for (index, known) in &self.indexes {
            let plan = election::hand_over(&known.record.shards, &me, sight, reach, self.config.core.min_in_sync);
            let key = |shard| JournalKey { index: index.clone(), shard: ShardId(shard) };
            wanted.extend(plan.into_iter().filter_map(|(i, change)| Some((key(u16::try_from(i).ok()?), change))));
        }
        wanted.into_iter().for_each(|(key, change)| self.asks.ask(key, change));
    }
}
