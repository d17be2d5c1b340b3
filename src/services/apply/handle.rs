//! What other services ask of appliers, and what they hear.
//!
//! Rule: what is told to be applied, or to have failed, is durable. Must not know: how the cores are run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::board::{Asked, What};
use crate::proto::apply::{Copied, Flaw, Standing, Stop, TaskRef};
use crate::proto::env::Instant;
use crate::services::journal::JournalHandle;
use crate::services::local::{Local, Lost};
use crate::store::journal::EntryOutcome;
use crate::store::{JournalStore, StoreError};
use crate::types::{JournalKey, PhysicalIndex, ShardId, ShardSet};

/// News that a subscriber may lag behind.
const NEWS: usize = 4_096;

/// Something that an applier of this member says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// The node has applied everything up to `to`.
    Applied {
        /// Of which shard.
        key: JournalKey,
        /// Up to here.
        to: u64,
    },
    /// The node has lost what it had behind `to`: everything from there on is applied again.
    Unapplied {
        /// Of which shard.
        key: JournalKey,
        /// Up to here.
        to: u64,
    },
    /// This member is the shard's primary, and this is the entry's verdict.
    Verdict {
        /// Of which shard.
        key: JournalKey,
        /// Which entry.
        seq: u64,
        /// Why it failed.
        flaw: Flaw,
    },
    /// Whether what the node has of an index is what was noted; while it is not, the index is not served.
    Trusted(PhysicalIndex, bool),
    /// Whether so much waits that writes of the index are to be refused.
    Pressure(PhysicalIndex, bool),
    /// The copy of a shard must be made anew; nothing is applied to it until [`ApplyHandle::made`].
    Rebuild(JournalKey),
}

/// How far behind the node is with one shard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lag {
    /// Up to here it has applied.
    pub applied: u64,
    /// Up to here entries are known to be committed.
    pub committed: u64,
    /// The copy must be made anew, or is new and was not compared with another: it is not to be served.
    pub rebuild: bool,
}

/// What the driver is told by this process.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) index: PhysicalIndex,
    pub(super) asked: Asked,
}

/// What is known of one index.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) trusted: bool,
    /// Of each shard, since the index's applier was in memory first.
    pub(super) lags: BTreeMap<ShardId, Lag>,
    /// Its applier is in memory.
    pub(super) runs: bool,
    /// What keeps the applier from going on, for people.
    pub(super) trouble: Option<String>,
}

/// What handle, driver and appliers share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) news: broadcast::Sender<Told>,
    pub(super) positions: broadcast::Sender<(JournalKey, u64)>,
    pub(super) pressed: watch::Sender<BTreeSet<PhysicalIndex>>,
    known: Mutex<BTreeMap<PhysicalIndex, Known>>,
    /// Every index to which something was ever applied here is known.
    pub(super) listed: AtomicBool,
    rebuilt: watch::Sender<Lost>,
}

impl Shared {
    pub(super) fn new() -> Self {
        let (news, positions) = (broadcast::Sender::new(NEWS), broadcast::Sender::new(NEWS));
        Self {
            news,
            positions,
            pressed: watch::Sender::default(),
            known: Mutex::default(),
            listed: AtomicBool::new(false),
            rebuilt: watch::Sender::default(),
        }
    }

    pub(super) fn known(&self) -> MutexGuard<'_, BTreeMap<PhysicalIndex, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which copies of an index are made anew or compared may have changed.
    pub(super) fn note_rebuilt(&self, index: &PhysicalIndex) {
        let shards: ShardSet = match self.known().get(index) {
            Some(known) => known.lags.iter().filter(|(_, lag)| lag.rebuild).map(|(shard, _)| *shard).collect(),
            None => ShardSet::new(),
        };
        self.rebuilt.send_if_modified(|all| {
            let shards = Some(shards).filter(|shards| !shards.is_empty());
            let changed = all.get(index) != shards.as_ref();
            match shards {
                Some(shards) => drop(all.insert(index.clone(), shards)),
                None => drop(all.remove(index)),
            }
            changed
        });
    }

    /// Says what happened; nobody may be listening.
    pub(super) fn tell(&self, told: Told) {
        if let Told::Pressure(index, pressed) = &told {
            self.pressed.send_if_modified(|all| if *pressed { all.insert(index.clone()) } else { all.remove(index) });
        }
        if let Told::Applied { key, to } = &told {
            drop(self.positions.send((key.clone(), *to)));
        }
        drop(self.news.send(told));
    }
}

/// Appliers, as other services use them; cheap to clone.
#[derive(Debug, Clone)]
pub struct ApplyHandle {
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) shared: Arc<Shared>,
    pub(super) store: JournalStore,
    pub(super) journals: JournalHandle,
    pub(super) local: Local,
    /// The number of this process.
    pub(super) start: u64,
}

impl ApplyHandle {
    /// Everything that is told from now on. Who lags too far behind loses some, and asks [`Self::applied`].
    pub fn subscribe(&self) -> broadcast::Receiver<Told> {
        self.shared.news.subscribe()
    }

    /// Up to where the node has applied a shard; `None` if this member has no copy that entries are applied to.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn applied(&self, key: &JournalKey) -> Result<Option<u64>, StoreError> {
        Ok(self.lags(&key.index).await?.get(&key.shard).map(|lag| lag.applied))
    }

    /// How far behind the node is, with each shard of an index that entries are applied to.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn lags(&self, index: &PhysicalIndex) -> Result<BTreeMap<ShardId, Lag>, StoreError> {
        if let Some(known) = self.shared.known().get(index).filter(|known| !known.lags.is_empty()) {
            return Ok(known.lags.clone());
        }
        let positions = self.store.positions(index).await?;
        let lag = |(shard, (applied, committed))| (shard, Lag { applied, committed, rebuild: false });
        Ok(positions.into_iter().map(lag).collect())
    }

    /// Whether what the node has of an index is known to be what was noted. So it is of an index to which nothing was ever
    /// applied here.
    pub fn trusted(&self, index: &PhysicalIndex) -> bool {
        let listed = self.shared.listed.load(Ordering::SeqCst);
        self.shared.known().get(index).map_or(listed, |known| known.trusted)
    }

    /// The indexes of which so much waits.
    pub fn watch_pressed(&self) -> watch::Receiver<BTreeSet<PhysicalIndex>> {
        self.shared.pressed.subscribe()
    }

    /// What keeps entries of an index from being applied, for people.
    pub fn trouble(&self, index: &PhysicalIndex) -> Option<String> {
        self.shared.known().get(index).and_then(|known| known.trouble.clone())
    }

    /// What became of these entries of a shard; only of those that are applied. Kept as long as the journal keeps entries.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn outcomes(&self, key: &JournalKey, seqs: Vec<u64>) -> Result<BTreeMap<u64, EntryOutcome>, StoreError> {
        self.store.outcomes(key, seqs).await
    }

    /// The copy of a shard is as after entry `applied`, made by something else than entries; `by` is the last task of the node
    /// that made it, and it has ended. Entries behind it are applied from now on. Says whether that is durable.
    pub async fn made(&self, key: &JournalKey, applied: u64, by: Option<TaskRef>) -> bool {
        self.copied(key, Copied { applied, by, ..Copied::default() }).await.is_some()
    }

    /// The same, with what else is known of the copy. `None`: this member does not hold the shard.
    pub async fn copied(&self, key: &JournalKey, copied: Copied) -> Option<Standing> {
        self.ask(key, What::Made(copied)).await
    }

    /// The copy of a shard is of no use, whatever was applied to it: it must be made anew, which is told by [`Told::Rebuild`] once
    /// nothing of it is under way, also if that was told before.
    pub async fn unmade(&self, key: &JournalKey) -> Option<Standing> {
        self.ask(key, What::Unmade).await
    }

    /// The copy of a shard is in doubt, and nobody has a better one: it stays.
    pub async fn kept(&self, key: &JournalKey) -> Option<Standing> {
        self.ask(key, What::Kept).await
    }

    /// The copy of a shard was compared with another, and is the same.
    pub async fn checked(&self, key: &JournalKey) -> Option<Standing> {
        self.ask(key, What::Checked).await
    }

    /// Has entries of a shard wait until then, at most; `None`: they go on.
    pub async fn stop(&self, key: &JournalKey, stop: Option<(Stop, Instant)>) -> Option<Standing> {
        self.ask(key, What::Stop(stop)).await
    }

    /// How the copy of a shard stands; what it says is durable. `None`: this member does not hold the shard.
    pub async fn standing(&self, key: &JournalKey) -> Option<Standing> {
        self.ask(key, What::Look).await
    }

    async fn ask(&self, key: &JournalKey, what: What) -> Option<Standing> {
        let (tell, wait) = oneshot::channel();
        let asked = Asked { shard: key.shard, what, tell };
        drop(self.inputs.send(Input { index: key.index.clone(), asked }).await);
        wait.await.ok()
    }

    /// Whether the copy of a shard is being made anew or compared, so that it must not be served; see also [`Self::trusted`].
    pub fn is_rebuilt(&self, key: &JournalKey) -> bool {
        let known = self.shared.known();
        known.get(&key.index).and_then(|known| known.lags.get(&key.shard)).is_some_and(|lag| lag.rebuild)
    }

    /// All copies of which that is so, as that changes: with [`Local::lost`], what this member does not serve.
    pub fn rebuilt(&self) -> watch::Receiver<Lost> {
        self.shared.rebuilt.subscribe()
    }

    /// Whether an index's applier is in memory: something of it is going on.
    pub fn runs(&self, index: &PhysicalIndex) -> bool {
        self.shared.known().get(index).is_some_and(|known| known.runs)
    }

    /// How many indexes have an applier in memory: those at rest have none.
    pub fn in_memory(&self) -> usize {
        self.shared.known().values().filter(|known| known.runs).count()
    }
}
