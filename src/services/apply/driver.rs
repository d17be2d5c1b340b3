//! The task that says which indexes have an applier in memory, and tells each what it is to know.
//!
//! Rule: an index has at most one applier at any time: the next one begins only when the one before has ended. If the store
//! fails, or an applier contradicts itself, the driver ends, and with it the process. Must not know: what an applier does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{Semaphore, broadcast, mpsc};
use tokio::task::{JoinError, JoinSet};

use super::board::{Asked, Board, Level, Levels};
use super::handle::{ApplyHandle, Input, Known, Shared, Told};
use super::index;
use crate::net::Peers;
use crate::proto::apply::Config as CoreConfig;
use crate::services::journal::{Event, JournalHandle};
use crate::services::ledger::LedgerHandle;
use crate::services::local::Local;
use crate::store::{JournalStore, StoreError};
use crate::telemetry::metrics::Metrics;
use crate::types::{JournalKey, JournalRecord, PhysicalIndex, ShardId};

/// Commands of this process that wait; whoever comes then waits at the door.
const INPUTS: usize = 256;
/// Questions to the node at once, of all appliers: after a start of the node each has one.
const ASKING: usize = 8;

/// How appliers are driven.
#[derive(Debug, Clone)]
pub struct Config {
    /// Of each applier.
    pub core: CoreConfig,
    /// An idle applier stays in memory for so long.
    pub linger: Duration,
    /// Between two questions to a primary for its verdicts, at first; it doubles up to `verdicts_max` while nothing comes of it. A copy
    /// that has been behind for `verdicts_max` asks about what it has not applied, too.
    pub verdicts_min: Duration,
    /// The longest such time.
    pub verdicts_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            core: CoreConfig::default(),
            linger: Duration::from_secs(30),
            verdicts_min: Duration::from_millis(200),
            verdicts_max: Duration::from_secs(10),
        }
    }
}

/// What a driver works with.
pub struct Parts {
    /// How it works.
    pub config: Config,
    /// Where the records are.
    pub ledger: LedgerHandle,
    /// The journals.
    pub journals: JournalHandle,
    /// Their file.
    pub store: JournalStore,
    /// The own node.
    pub local: Local,
    /// The other members.
    pub peers: Arc<dyn Peers>,
    /// Series.
    pub metrics: Arc<Metrics>,
}

/// What all appliers work with.
pub(super) struct Common {
    pub(super) config: Config,
    pub(super) journals: JournalHandle,
    pub(super) store: JournalStore,
    pub(super) local: Local,
    pub(super) peers: Arc<dyn Peers>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) shared: Arc<Shared>,
    pub(super) asking: Arc<Semaphore>,
}

/// The shards of one index that this member holds, by its copy of the record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Held {
    version: u64,
    /// Each as it is by the record alone.
    shards: BTreeMap<ShardId, Level>,
    gone: bool,
}

impl Held {
    /// Whether there are other copies, or one is to be filled that was not.
    fn differs(&self, before: &Self) -> bool {
        let learns = |held: &Self, shard: &ShardId| held.shards.get(shard).is_some_and(|level| level.learner);
        let begins = |shard: &ShardId| learns(self, shard) && !learns(before, shard);
        !self.shards.keys().eq(before.shards.keys()) || self.shards.keys().any(begins)
    }
}

/// An applier in memory.
struct Running {
    board: Arc<Board>,
    /// It was told something that it will not hear any more: the next one begins when it has ended.
    again: bool,
    /// The same, what concerns copies.
    asked: Vec<Asked>,
}

/// The driver, made and not yet running.
pub struct Driver {
    common: Arc<Common>,
    ledger: LedgerHandle,
    inputs: mpsc::Receiver<Input>,
    held: BTreeMap<PhysicalIndex, Held>,
    running: BTreeMap<PhysicalIndex, Running>,
    tasks: JoinSet<(PhysicalIndex, Result<(), StoreError>)>,
    up: bool,
    starts: u64,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("running", &self.running.len()).finish_non_exhaustive()
    }
}

impl Driver {
    /// Nothing is read, sent or stored before [`Driver::run`].
    pub fn new(parts: Parts) -> (Self, ApplyHandle) {
        let Parts { config, ledger, journals, store, local, peers, metrics } = parts;
        let shared = Arc::new(Shared::new());
        let (inputs_in, inputs) = mpsc::channel(INPUTS);
        let handle = ApplyHandle {
            inputs: inputs_in,
            shared: Arc::clone(&shared),
            store: store.clone(),
            journals: journals.clone(),
            local: local.clone(),
            start: ledger.start(),
        };
        let asking = Arc::new(Semaphore::new(ASKING));
        let common = Arc::new(Common { config, journals, store, local, peers, metrics, shared, asking });
        let (held, running, tasks) = Default::default();
        (Self { common, ledger, inputs, held, running, tasks, up: false, starts: 0 }, handle)
    }

    /// Runs until nobody holds a handle any more.
    ///
    /// Not cancel-safe for the member: an applier that stopped within a step is never used again.
    ///
    /// # Errors
    /// [`StoreError`]: the process must end, because an applier is ahead of its store.
    pub async fn run(mut self) -> Result<(), StoreError> {
        let mut events = self.common.journals.subscribe();
        let mut records = self.ledger.watch();
        let mut health = self.common.local.health();
        health.mark_changed();
        self.read_records(false).await?;
        self.begin_with_stored().await?;
        loop {
            tokio::select! {
                input = self.inputs.recv() => match input {
                    Some(Input { index, asked }) => self.was_asked(&index, asked),
                    None => return Ok(()),
                },
                event = events.recv() => match event {
                    Ok(event) => self.hear(event),
                    Err(broadcast::error::RecvError::Lagged(_)) => self.look_at_commits(),
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                },
                changed = records.changed() => match changed {
                    Ok(()) => self.read_records(true).await?,
                    Err(_) => return Ok(()),
                },
                changed = health.changed() => match changed {
                    Ok(()) => {
                        let up = health.borrow_and_update().healthy;
                        self.node_is(up).await?;
                    }
                    Err(_) => return Ok(()),
                },
                Some(ended) = self.tasks.join_next() => self.ended(ended).await?,
            }
        }
    }

    /// An applier of each index to which something was applied, or is to be: it finds out by itself whether there is anything
    /// to do.
    async fn begin_with_stored(&mut self) -> Result<(), StoreError> {
        for index in self.common.store.appliers().await? {
            // No node is behind the journals of tasks.
            if index.is_of_tasks() {
                continue;
            }
            self.common.shared.known().entry(index.clone()).or_default();
            self.tell(&index, |_| {});
        }
        // One that was to be filled by a process before this one, which had not noted it yet.
        let learns = |held: &Held| held.shards.values().any(|level| level.learner);
        let learners: Vec<_> = self.held.iter().filter(|(_, held)| learns(held)).map(|(i, _)| i.clone()).collect();
        learners.iter().for_each(|index| self.tell(index, |_| {}));
        self.common.shared.listed.store(true, Ordering::SeqCst);
        Ok(())
    }

    async fn node_is(&mut self, up: bool) -> Result<(), StoreError> {
        if up == self.up {
            return Ok(());
        }
        self.up = up;
        self.starts += u64::from(up);
        let doubted: Vec<PhysicalIndex> = {
            let mut known = self.common.shared.known();
            let trusted = known.iter_mut().filter(|(_, known)| known.trusted);
            trusted.map(|(index, known)| (index.clone(), known.trusted = false).0).collect()
        };
        doubted.into_iter().for_each(|index| self.common.shared.tell(Told::Trusted(index, false)));
        let (up, starts) = (self.up, self.starts);
        for running in self.running.values_mut() {
            running.again |= !running.board.update(|levels| (levels.up, levels.starts) = (up, starts));
        }
        if up { self.begin_with_stored().await } else { Ok(()) }
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Committed(key, to) => self.committed(&key, to),
            // The record says who is primary, and who reigns is named there.
            Event::Reigns(..) | Event::Deposed(..) | Event::NeedsSnapshot(..) | Event::Rebuild(_) => {}
        }
    }

    fn committed(&mut self, key: &JournalKey, to: u64) {
        self.tell(&key.index, |levels| {
            levels.shards.entry(key.shard).and_modify(|level| level.committed = level.committed.max(to));
        });
    }

    /// Some events were missed: of every shard that this process has touched it is asked how it stands.
    fn look_at_commits(&mut self) {
        let keys = self.held.iter().flat_map(|(index, held)| {
            held.shards.keys().map(|shard| JournalKey { index: index.clone(), shard: *shard })
        });
        let news: Vec<_> = keys.filter_map(|key| Some((self.common.journals.committed(&key)?, key))).collect();
        news.into_iter().for_each(|(to, key)| self.committed(&key, to));
    }

    /// Takes in what has changed of the records; `news`: appliers of indexes with other shards than before are started.
    async fn read_records(&mut self, news: bool) -> Result<(), StoreError> {
        let (copies, mut gone) = (self.ledger.copies(), Vec::new());
        for (key, copy) in copies.beginning_with(JournalRecord::PREFIX) {
            let Some(index) = JournalRecord::of_key(key) else { continue };
            let known = self.held.get(&index).is_some_and(|held| held.version >= copy.version);
            if known || index.is_of_tasks() {
                continue;
            }
            // One that can't be read is reported by the journals' driver; the one before stays in use.
            let Ok(record) = JournalRecord::from_json(&copy.value) else { continue };
            let held = self.held_of(&record, copy.version);
            let before = self.held.insert(index.clone(), held.clone()).unwrap_or_default();
            if held.gone {
                gone.push(index);
            } else if self.running.contains_key(&index) || news && held.differs(&before) {
                let levels = self.levels(&index);
                self.tell(&index, |now| now.shards = levels.shards);
            }
        }
        for index in gone {
            match self.running.get_mut(&index) {
                Some(running) => drop(running.board.update(|levels| levels.gone = true)),
                None => self.forget(&index).await?,
            }
        }
        Ok(())
    }

    fn held_of(&self, record: &JournalRecord, version: u64) -> Held {
        let (me, start) = (self.common.journals.me(), self.ledger.start());
        let own = (0..).map(ShardId).zip(&record.shards).filter_map(|(shard, state)| {
            let copy = state.copy(&me.member).filter(|copy| copy.id == *me)?;
            let alone = state.in_sync.iter().all(|id| id == me);
            let (learner, primary) = (copy.is_learner(), state.is_led_by(me, start));
            Some((shard, Level { learner, primary, alone, epoch: state.epoch, committed: 0 }))
        });
        Held { version, shards: own.collect(), gone: record.shards.is_empty() }
    }

    /// Everything that the applier of an index is to know now.
    fn levels(&self, index: &PhysicalIndex) -> Levels {
        let held = self.held.get(index).cloned().unwrap_or_default();
        let level = |(shard, level): (ShardId, Level)| {
            let committed = self.common.journals.committed(&JournalKey { index: index.clone(), shard }).unwrap_or(0);
            (shard, Level { committed, ..level })
        };
        let shards = held.shards.into_iter().map(level).collect();
        Levels { shards, up: self.up, starts: self.starts, gone: held.gone }
    }

    /// Tells the applier of an index something, and starts it if it is not in memory.
    fn tell(&mut self, index: &PhysicalIndex, change: impl FnOnce(&mut Levels)) {
        match self.running.get_mut(index) {
            Some(running) => running.again |= !running.board.update(change),
            None => self.start(index),
        }
    }

    fn start(&mut self, index: &PhysicalIndex) {
        if self.held.get(index).is_none_or(|held| held.gone) {
            return;
        }
        let board = Arc::new(Board::of(self.levels(index)));
        self.common.shared.known().entry(index.clone()).or_default();
        let (common, of, stands) = (Arc::clone(&self.common), index.clone(), Arc::clone(&board));
        self.tasks.spawn(async move { (of.clone(), index::run(common, of, stands).await) });
        self.running.insert(index.clone(), Running { board, again: false, asked: Vec::new() });
    }

    /// Of an index that has no applier here nobody is told anything.
    fn was_asked(&mut self, index: &PhysicalIndex, asked: Asked) {
        self.tell(index, |_| {});
        if let Some(running) = self.running.get_mut(index)
            && let Err(asked) = running.board.ask(asked)
        {
            running.again = true;
            running.asked.push(asked);
        }
    }

    /// An applier has left, or failed.
    async fn ended(
        &mut self,
        ended: Result<(PhysicalIndex, Result<(), StoreError>), JoinError>,
    ) -> Result<(), StoreError> {
        // One that panicked contradicts itself.
        let (index, ended) = ended.map_err(|_| StoreError::Closed)?;
        ended?;
        let Some(left) = self.running.remove(&index) else { return Ok(()) };
        if self.held.get(&index).is_none_or(|held| held.gone) {
            return self.forget(&index).await;
        }
        if left.again {
            self.start(&index);
            left.asked.into_iter().for_each(|asked| self.was_asked(&index, asked));
        }
        Ok(())
    }

    /// The index is gone for good.
    async fn forget(&mut self, index: &PhysicalIndex) -> Result<(), StoreError> {
        self.common.store.forget_applier(index).await?;
        let known: Option<Known> = self.common.shared.known().remove(index);
        drop(known);
        self.common.shared.note_rebuilt(index);
        Ok(())
    }
}
