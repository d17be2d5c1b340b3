//! Which shards this member serves, looked at often while something changes and seldom while nothing does.
//!
//! Rule: nothing is served before the member's copies of the records are fresh, or can't be made so; a shard of which nothing is
//! known yet is not served. Must not know: searches, how entries are applied.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant as Clock};

use futures_util::future::join_all;
use tokio::sync::watch;

use super::apply::ApplyHandle;
use super::cluster::NodeHealth;
use super::journal::JournalHandle;
use super::ledger::{LedgerHandle, now};
use super::local::Lost;
use super::members::Members;
use super::records::Records;
use super::shards;
use crate::proto::serving::{Serving, Sight};
use crate::store::{JournalStore, StoreError};
use crate::types::{
    JournalKey, JournalRecord, MemberId, PhysicalIndex, RecordVersion, ReplicaId, ShardId, ShardSet, TraceId,
};

/// How long copies of records may take to be fresh after a start.
const FRESH: Duration = Duration::from_secs(3);
/// Between two looks at shards with which something is going on.
const SOON: Duration = Duration::from_millis(100);
/// Between two looks at all.
const ALL: Duration = Duration::from_secs(1);
/// How often it is said that this member should not lead a shard; others may not have known whether they serve it.
const UNFIT: Duration = Duration::from_secs(5);
/// Between two questions to other members how far they are.
const ASK: Duration = Duration::from_secs(1);

/// What is not served, by index; `None` until the copies of the records are fresh.
pub type Unserved = Option<Lost>;

/// The services that it looks at.
#[derive(Debug)]
pub struct Parts {
    /// How far behind the furthest replica one may be.
    pub lag: Duration,
    /// How long it takes until all members know what one tells.
    pub told: Duration,
    /// The mesh's state.
    pub ledger: LedgerHandle,
    /// Indexes.
    pub records: Records,
    /// Journals.
    pub journals: JournalHandle,
    /// Their file.
    pub store: JournalStore,
    /// What is applied.
    pub apply: ApplyHandle,
    /// Other members.
    pub members: Members,
    /// The own node. While it is down it is not waited for, so that it may lack what is done meanwhile.
    pub health: watch::Receiver<NodeHealth>,
}

/// One index.
#[derive(Debug, Default)]
struct Held {
    version: Option<RecordVersion>,
    in_sync: BTreeSet<ShardId>,
    /// The node has yet to get settings that others have.
    misses_settings: bool,
    shards: BTreeMap<ShardId, Serving>,
    others: BTreeSet<MemberId>,
    asked: Option<Clock>,
    /// Shards of which it was said that this member should not lead them, and when.
    unfit: BTreeMap<ShardId, Clock>,
}

impl Held {
    fn is_at_rest(&self) -> bool {
        self.shards.values().all(Serving::is_at_rest)
    }

    fn without(&self, is_so: impl Fn(&Serving) -> bool) -> ShardSet {
        self.shards.iter().filter(|(_, one)| !is_so(one)).map(|(shard, _)| *shard).collect()
    }
}

/// The task that looks; see the module.
#[derive(Debug)]
pub struct Driver {
    parts: Parts,
    me: ReplicaId,
    held: BTreeMap<PhysicalIndex, Held>,
    says: watch::Sender<Unserved>,
    tells: watch::Sender<Unserved>,
}

impl Driver {
    /// The driver over its parts; where it says what is not served, and where what others are to know of that: tasks wait for
    /// all else, so that they are told of a shard before it is served.
    pub fn new(parts: Parts, says: watch::Sender<Unserved>, tells: watch::Sender<Unserved>) -> Self {
        let me = parts.journals.me().clone();
        Self { parts, me, held: BTreeMap::new(), says, tells }
    }

    /// Looks until the process ends.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn run(mut self) -> Result<(), StoreError> {
        // Without a majority, what this member knows is all there is, and answers say that they may be old.
        drop(tokio::time::timeout(FRESH, self.parts.ledger.wait_fresh()).await);
        let mut records = self.parts.ledger.watch();
        let mut told = self.parts.apply.subscribe();
        loop {
            records.mark_unchanged();
            self.look_at_all().await?;
            let next = Clock::now() + ALL;
            while Clock::now() < next {
                let soon = self.held.values().any(|held| !held.is_at_rest());
                let nap = if soon { SOON } else { next.saturating_duration_since(Clock::now()) };
                tokio::select! {
                    changed = records.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return Ok(()),
                    },
                    changed = self.parts.health.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return Ok(()),
                    },
                    // Also of news that were missed.
                    _ = told.recv() => {}
                    () = tokio::time::sleep(nap) => {}
                }
                // What an applier tells comes in swarms.
                tokio::time::sleep(SOON / 4).await;
                told = told.resubscribe();
                self.look_again().await?;
            }
        }
    }

    /// Takes in which shards this member holds, and which of them are in sync.
    async fn look_at_all(&mut self) -> Result<(), StoreError> {
        let snapshot = self.parts.records.snapshot();
        let copies = self.parts.ledger.copies();
        let mut there = BTreeSet::new();
        for index in snapshot.indexes().filter(|index| !index.value.deleted) {
            let physical = &index.value.physical;
            let own = index.value.shards_of(&self.me.member);
            if own.is_empty() {
                continue;
            }
            there.insert(physical.clone());
            let held = self.held.entry(physical.clone()).or_default();
            held.misses_settings = index.value.misses_settings(&self.me.member);
            let version = copies.get(&JournalRecord::key(physical)).map(|copy| copy.version);
            if version.is_some() && version == held.version && held.shards.len() == own.len() {
                continue;
            }
            // A record that can't be read says of nobody that it is in sync.
            let record = self.parts.journals.record(physical).unwrap_or_default();
            held.version = version;
            let is_in_sync = |shard: &ShardId| record.shard(*shard).is_some_and(|state| state.is_in_sync(&self.me));
            held.in_sync = own.iter().filter(is_in_sync).collect();
            let all = record.shards.iter().flat_map(|state| &state.replicas).map(|copy| &copy.id.member);
            held.others = all.filter(|member| **member != self.me.member).cloned().collect();
            held.shards.retain(|shard, _| own.contains(*shard));
            for shard in own.iter() {
                held.shards.entry(shard).or_insert_with(|| Serving::new(self.parts.lag, self.parts.told));
            }
        }
        self.held.retain(|physical, _| there.contains(physical));
        let all: Vec<_> = self.held.keys().cloned().collect();
        for physical in all {
            self.look_at(&physical).await?;
        }
        self.say();
        Ok(())
    }

    /// Looks at what is not at rest.
    async fn look_again(&mut self) -> Result<(), StoreError> {
        let moving: Vec<_> = self.held.iter().filter(|(p, h)| !h.is_at_rest() || self.parts.apply.runs(p)).collect();
        let moving: Vec<_> = moving.into_iter().map(|(physical, _)| physical.clone()).collect();
        for physical in moving {
            self.look_at(&physical).await?;
        }
        self.say();
        Ok(())
    }

    async fn look_at(&mut self, physical: &PhysicalIndex) -> Result<(), StoreError> {
        let Some(held) = self.held.get_mut(physical) else { return Ok(()) };
        let at_rest = held.is_at_rest() && !self.parts.apply.runs(physical);
        let whole = self.parts.health.borrow().healthy && self.parts.apply.trusted(physical) && !held.misses_settings;
        if at_rest && whole && held.in_sync.len() == held.shards.len() {
            return Ok(());
        }
        let lags = self.parts.apply.lags(physical).await?;
        let waits = held.shards.values().any(|one| !one.serves());
        let lasts = if waits { self.parts.store.lasts(physical).await? } else { BTreeMap::new() };
        let at = now();
        let (mut asks, mut fit) = (false, Vec::new());
        for (shard, one) in &mut held.shards {
            let lag = lags.get(shard).copied().unwrap_or_default();
            let sight = Sight {
                in_sync: held.in_sync.contains(shard),
                whole: whole && !lag.rebuild,
                last: lasts.get(shard).copied().unwrap_or(0).max(lag.committed),
                committed: lag.committed,
                applied: lag.applied,
            };
            let before = one.serves();
            let serves = one.handle_sight(at, sight);
            if before && !serves {
                tracing::warn!(index = %physical, %shard, ?sight, "a shard is not served until its copy is as the others");
            } else if serves && !before {
                tracing::debug!(index = %physical, %shard, "a shard is served");
            }
            asks |= one.asks(at);
            // Whose copy is made anew has that said as long as it is.
            if one.is_unfit(at) && !lag.rebuild {
                fit.push((*shard, false));
            } else if serves && held.unfit.remove(shard).is_some() {
                fit.push((*shard, true));
            }
        }
        let due = |shard: &ShardId| held.unfit.get(shard).is_none_or(|said| said.elapsed() >= UNFIT);
        fit.retain(|(shard, fit)| *fit || due(shard));
        for (shard, fit) in fit {
            if !fit {
                held.unfit.insert(shard, Clock::now());
            }
            let key = JournalKey { index: physical.clone(), shard };
            self.parts.journals.unfit(&key, !fit).await;
        }
        if asks && held.asked.is_none_or(|asked| asked.elapsed() >= ASK) {
            held.asked = Some(Clock::now());
            self.ask(physical).await;
        }
        Ok(())
    }

    /// Finds out how far the other replicas of an index are.
    async fn ask(&mut self, physical: &PhysicalIndex) {
        let Some(held) = self.held.get_mut(physical) else { return };
        let others = std::mem::take(&mut held.others);
        let asked = others.iter().map(|member| shards::ask(&self.parts.members, member, physical, TraceId::default()));
        let answers = join_all(asked).await;
        let mut furthest: BTreeMap<ShardId, u64> = BTreeMap::new();
        for status in answers.into_iter().flatten() {
            for (shard, status) in status {
                let known = furthest.entry(shard).or_default();
                *known = (*known).max(status.applied);
            }
        }
        let at = now();
        for (shard, to) in furthest {
            if let Some(one) = held.shards.get_mut(&shard) {
                one.handle_furthest(at, to);
            }
        }
        held.others = others;
    }

    fn say(&self) {
        self.say_to(&self.tells, Serving::is_awaited);
        self.say_to(&self.says, Serving::serves);
    }

    fn say_to(&self, to: &watch::Sender<Unserved>, is_so: impl Fn(&Serving) -> bool) {
        let all = self.held.iter().map(|(physical, held)| (physical.clone(), held.without(&is_so)));
        let unserved: Lost = all.filter(|(_, shards)| !shards.is_empty()).collect();
        to.send_if_modified(|said| {
            let new = said.as_ref() != Some(&unserved);
            *said = Some(unserved);
            new
        });
    }
}

/// What of these shards is not served.
pub fn not_served(unserved: &Unserved, index: &PhysicalIndex, shards: &ShardSet) -> ShardSet {
    match unserved {
        None => shards.clone(),
        Some(unserved) => match unserved.get(index) {
            Some(lacks) => shards.intersection(lacks),
            None => ShardSet::new(),
        },
    }
}

/// What the node has lost and what is not served for other reasons, together.
pub fn together(lost: &Lost, unserved: &Unserved) -> Lost {
    let mut all = lost.clone();
    for (index, shards) in unserved.iter().flatten() {
        let known = all.entry(index.clone()).or_default();
        *known = known.union(shards);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(shards: &[u16]) -> ShardSet {
        shards.iter().map(|s| ShardId(*s)).collect()
    }

    #[test]
    fn nothing_is_served_before_it_is_known_what_is() {
        let (a, b) = (PhysicalIndex::new("a__m00000001").unwrap(), PhysicalIndex::new("b__m00000002").unwrap());
        assert_eq!(not_served(&None, &a, &set(&[1, 2])), set(&[1, 2]));
        let some = Some(Lost::from([(a.clone(), set(&[2, 3]))]));
        assert_eq!((not_served(&some, &a, &set(&[1, 2])), not_served(&some, &b, &set(&[2]))), (set(&[2]), set(&[])));
        let lost = Lost::from([(a.clone(), set(&[5])), (b.clone(), set(&[1]))]);
        assert_eq!(together(&lost, &some), Lost::from([(a, set(&[2, 3, 5])), (b, set(&[1]))]));
    }
}
