//! Which copies are made anew, when that is heard.
//!
//! Rule: a copy whose journal is of no use is first noted to be of no use itself; copies are made only after their applier has said
//! that nothing of them is under way. Must not know: how a copy is made.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;

use super::fill::{self, Ended};
use super::handle::SnapshotHandle;
use crate::net::Peers;
use crate::proto::snapshot::{Here, Learner, Queue, Source, View, learner, source};
use crate::services::apply::{ApplyHandle, Told};
use crate::services::journal::{Event, JournalHandle};
use crate::services::ledger::{nap, now};
use crate::services::local::Local;
use crate::store::journal::Listed;
use crate::store::{JournalStore, StoreError};
use crate::types::{JournalKey, MemberId, PhysicalIndex};

/// Until a copy that ended unexpectedly is begun again.
const PAUSE: Duration = Duration::from_secs(1);
/// Between two looks for copies that nobody makes though they are of no use.
const LOOK: Duration = Duration::from_secs(15);

/// How copies are made.
#[derive(Debug, Clone)]
pub struct Config {
    /// Of each copy.
    pub learner: learner::Config,
    /// For other members.
    pub source: source::Config,
    /// Copies that are made at a time.
    pub at_once: usize,
    /// How long documents may be read so that two copies are compared, while entries wait.
    pub settle: Duration,
    /// Of shards with more documents only the ids are compared: what they say would have to be read while entries wait.
    pub compared: usize,
    /// How often a source is told that its read goes on, and a journal that its entries are needed.
    pub keep: Duration,
    /// How long a copy that is compared may stay at one entry before it is begun again.
    pub stuck: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            learner: learner::Config::default(),
            source: source::Config::default(),
            at_once: 2,
            settle: Duration::from_secs(5),
            compared: 20_000,
            keep: Duration::from_secs(15),
            stuck: Duration::from_secs(120),
        }
    }
}

/// What a driver works with.
pub struct Parts {
    /// How it works.
    pub config: Config,
    /// The appliers.
    pub apply: ApplyHandle,
    /// The journals.
    pub journals: JournalHandle,
    /// Their file.
    pub store: JournalStore,
    /// The own node.
    pub local: Local,
    /// The other members.
    pub peers: Arc<dyn Peers>,
    /// This process.
    pub start: u64,
}

/// What all copies and reads work with.
pub(super) struct Common {
    pub(super) config: Config,
    pub(super) apply: ApplyHandle,
    pub(super) journals: JournalHandle,
    pub(super) store: JournalStore,
    pub(super) local: Local,
    pub(super) peers: Arc<dyn Peers>,
    pub(super) reads: Mutex<Source>,
    /// Shards that wait here so that they are compared.
    pub(super) settling: Mutex<BTreeMap<JournalKey, MemberId>>,
    views: Mutex<BTreeMap<JournalKey, View>>,
    /// Indexes that this process has given the settings of another node, because their copies begin in a new store.
    settings: Mutex<BTreeSet<PhysicalIndex>>,
}

impl Common {
    pub(super) fn reads(&self) -> MutexGuard<'_, Source> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settings(&self) -> MutexGuard<'_, BTreeSet<PhysicalIndex>> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an index has got the settings of another node; no other copy needs to ask again.
    pub(super) fn has_settings(&self, index: &PhysicalIndex) -> bool {
        self.settings().contains(index)
    }

    /// It has.
    pub(super) fn got_settings(&self, index: &PhysicalIndex) {
        self.settings().insert(index.clone());
    }

    /// How a journal stands in the store.
    pub(super) async fn listed(&self, key: &JournalKey) -> Result<Option<Listed>, StoreError> {
        let all = self.journals.stored().await?;
        Ok(all.into_iter().find(|listed| listed.key == *key))
    }

    /// The same, as far as a copy that is made anew has to know.
    pub(super) async fn here(&self, key: &JournalKey) -> Result<Here, StoreError> {
        let listed = self.listed(key).await?;
        Ok(listed.map_or(Here::default(), |listed| Here { anew: listed.rebuild, floor: listed.floor.seq }))
    }

    pub(super) fn views(&self) -> MutexGuard<'_, BTreeMap<JournalKey, View>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The driver, made and not yet running.
pub struct Driver {
    common: Arc<Common>,
    told: tokio::sync::broadcast::Receiver<Told>,
    events: tokio::sync::broadcast::Receiver<Event>,
    queue: Queue,
    /// Copies that can't go on for a while.
    resting: BTreeMap<JournalKey, Box<Learner>>,
    fills: JoinSet<(JournalKey, Result<Ended, StoreError>)>,
    /// Copies that are noted to be of no use.
    notes: JoinSet<()>,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("fills", &self.fills.len()).finish_non_exhaustive()
    }
}

impl Driver {
    /// Nothing is read, sent or stored before [`Driver::run`]; what appliers and journals say from now on is heard.
    pub fn new(parts: Parts) -> (Self, SnapshotHandle) {
        let Parts { config, apply, journals, store, local, peers, start } = parts;
        let (told, events) = (apply.subscribe(), journals.subscribe());
        // No earlier process has begun so many.
        let reads = Mutex::new(Source::new(config.source.clone(), start << 32));
        let queue = Queue::new(config.at_once);
        let (settling, views, settings) = Default::default();
        let common =
            Arc::new(Common { config, apply, journals, store, local, peers, reads, settling, views, settings });
        let handle = SnapshotHandle { common: Arc::clone(&common) };
        let (resting, fills, notes) = (BTreeMap::new(), JoinSet::new(), JoinSet::new());
        (Self { common, told, events, queue, resting, fills, notes }, handle)
    }

    /// Runs until the appliers or the journals end.
    ///
    /// Cancel-safe: a copy that was not finished is begun again by the next process.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn run(mut self) -> Result<(), StoreError> {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.queue.wake(now());
            while let Some(key) = self.queue.next_key() {
                let (common, rested) = (Arc::clone(&self.common), self.resting.remove(&key));
                self.fills.spawn(async move {
                    let ended = fill::run(common, key.clone(), rested).await;
                    (key, ended)
                });
            }
            let nap = nap(self.queue.next_wake());
            tokio::select! {
                told = self.told.recv() => match told {
                    Ok(Told::Rebuild(key)) => self.want(key).await,
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => self.look().await?,
                    Err(RecvError::Closed) => return Ok(()),
                },
                event = self.events.recv() => match event {
                    Ok(Event::Rebuild(key)) => self.is_of_no_use(key),
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => self.look().await?,
                    Err(RecvError::Closed) => return Ok(()),
                },
                Some(ended) = self.fills.join_next() => {
                    // One that panicked contradicts itself.
                    let (key, ended) = ended.map_err(|_| StoreError::Closed)?;
                    self.ended(key, ended?);
                }
                Some(_) = self.notes.join_next() => {}
                _ = look.tick() => self.look().await?,
                () = tokio::time::sleep(nap), if self.queue.next_wake().is_some() => {}
            }
        }
    }

    /// A copy is to be made; somebody else orders the shard's writes meanwhile.
    async fn want(&mut self, key: JournalKey) {
        self.common.journals.unfit(&key, true).await;
        self.queue.want(key);
    }

    /// What was missed, or said before this process heard.
    async fn look(&mut self) -> Result<(), StoreError> {
        let rebuilt = self.common.apply.rebuilt().borrow().clone();
        let key = |index: &PhysicalIndex, shard| JournalKey { index: index.clone(), shard };
        let keys = rebuilt.iter().flat_map(|(index, shards)| shards.iter().map(move |shard| key(index, shard)));
        for key in keys.filter(|key| !self.queue.has(key)).collect::<Vec<_>>() {
            self.want(key).await;
        }
        for key in self.resting.keys() {
            self.common.journals.unfit(key, true).await;
        }
        let stored = self.common.journals.stored().await?.into_iter();
        for listed in stored.filter(|listed| listed.rebuild && !self.queue.has(&listed.key)).collect::<Vec<_>>() {
            self.is_of_no_use(listed.key);
        }
        Ok(())
    }

    /// A journal must begin anew, and so must what was applied from it. Homes of tasks see to themselves.
    fn is_of_no_use(&mut self, key: JournalKey) {
        if key.index.is_of_tasks() {
            return;
        }
        let common = Arc::clone(&self.common);
        self.notes.spawn(async move {
            // Who does not hold the shard by its record has no applier for it yet; the record is on its way, or never comes.
            if common.apply.unmade(&key).await.is_none() {
                tracing::debug!(%key, "a journal that must begin anew is of no shard that is held here");
            }
        });
    }

    fn ended(&mut self, key: JournalKey, ended: Ended) {
        if let Ended::Rests(learner, until) = ended {
            self.queue.rest(key.clone(), until);
            self.resting.insert(key, learner);
            return;
        }
        self.common.views().remove(&key);
        let again = self.queue.done(&key);
        match ended {
            Ended::Made => tracing::info!(%key, "the copy of a shard is made anew, and the same as another"),
            Ended::NotNeeded | Ended::Rests(..) => {}
            Ended::Failed => {
                let common = Arc::clone(&self.common);
                self.notes.spawn(async move {
                    tokio::time::sleep(PAUSE).await;
                    // Said again, it is begun again.
                    common.apply.unmade(&key).await;
                });
                return;
            }
        }
        if again && self.common.apply.is_rebuilt(&key) {
            self.queue.want(key);
        }
    }
}
