//! What other services ask of appliers, and what they hear.
//!
//! Rule: what is told to be applied, or to have failed, is durable. Must not know: how the cores are run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::proto::apply::{Flaw, TaskRef};
use crate::services::journal::JournalHandle;
use crate::services::local::Local;
use crate::store::journal::EntryOutcome;
use crate::store::{JournalStore, StoreError};
use crate::types::{JournalKey, PhysicalIndex, ShardId};

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
    /// The copy must be made anew.
    pub rebuild: bool,
}

/// What the driver is told by this process.
#[derive(Debug)]
pub(super) enum Input {
    Made { key: JournalKey, applied: u64, by: Option<TaskRef>, tell: oneshot::Sender<()> },
}

/// What is known of one index.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) trusted: bool,
    pub(super) pressed: bool,
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
        }
    }

    pub(super) fn known(&self) -> MutexGuard<'_, BTreeMap<PhysicalIndex, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Whether so much of an index waits that its writes are to be refused.
    pub fn pressed(&self, index: &PhysicalIndex) -> bool {
        self.shared.known().get(index).is_some_and(|known| known.pressed)
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
        let (tell, wait) = oneshot::channel();
        drop(self.inputs.send(Input::Made { key: key.clone(), applied, by, tell }).await);
        wait.await.is_ok()
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
