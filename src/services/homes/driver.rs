//! The task that runs the homes of which this member holds a copy.
//!
//! Rule: one input of one home at a time, and all that it wants is taken up before the next. What is told to anybody rests on
//! committed entries, which are durable; the rows that are stored beside them only save reading the entries again, and no
//! entry is given up before its rows are stored. Must not know: how entries are committed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinSet;

use super::awaited::awaited;
use super::call::{Question, Told};
use super::client::Homes;
use super::orders::Orders;
use super::slot::Slot;
use super::teller::{Outcomes, Teller};
use crate::proto::env::Instant;
use crate::proto::journal::{Answer, Entry};
use crate::proto::tasks::home::{Awaited, Config as CoreConfig, PartRef, Refusal, Report, Swept};
use crate::services::cluster::Cluster;
use crate::services::journal::{Event, JournalHandle, Sender};
use crate::services::ledger::{LedgerHandle, driver::seed, nap, now};
use crate::services::members::Members;
use crate::services::task_ids::TaskIdsHandle;
use crate::store::StoreError;
use crate::store::journal::StoredHome;
use crate::telemetry::metrics::Metrics;
use crate::types::limits::HOMES;
use crate::types::{Epoch, MemberId, PhysicalIndex, TaskPart, TaskUid};

/// Questions that wait; whoever comes then waits at the door.
const INPUTS: usize = 256;

/// How homes are driven.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Of each home.
    pub core: CoreConfig,
}

/// What a driver works with.
pub struct Parts {
    /// How it works.
    pub config: Config,
    /// The journals, of the homes and of all indexes.
    pub journals: JournalHandle,
    /// Where parts are refused.
    pub sender: Sender,
    /// Where it is read who leads a home.
    pub ledger: LedgerHandle,
    /// Who can be asked.
    pub members: Members,
    /// Who is there, and what each does not serve.
    pub cluster: Cluster,
    /// Numbers of new tasks.
    pub ids: TaskIdsHandle,
    /// What this member's appliers have done.
    pub outcomes: Arc<dyn Outcomes>,
    /// Who is told of tasks that ended.
    pub hook: Option<Arc<dyn Hook>>,
    /// Series.
    pub metrics: Arc<Metrics>,
}

/// Tells somebody of tasks that ended.
#[async_trait::async_trait]
pub trait Hook: Send + Sync + 'static {
    /// Tells of these tasks, once; whatever became of it is not told again.
    async fn tell(&self, tasks: Vec<(TaskUid, crate::proto::tasks::Shown)>);
}

/// A question to a home of this member.
#[derive(Debug)]
pub struct Input {
    pub(super) home: u16,
    pub(super) from: MemberId,
    pub(super) question: Question,
    pub(super) tell: oneshot::Sender<Told>,
}

/// What was done beside the driver, for which home.
pub(super) enum Done {
    /// What is stored of it; the number of the reading.
    Opened(u64, Result<StoredHome, StoreError>),
    /// Entries that were committed behind the last one applied.
    Read(u64, Result<Vec<Entry>, StoreError>),
    /// Rows up to an entry.
    Stored(u64, u64),
    /// The copy was begun anew, or is not this member's any more.
    Copied,
    /// Something for the home while it reigns under this epoch.
    Reign(Epoch, ForReign),
}

/// What a home that reigns has asked for.
pub(super) enum ForReign {
    Appended(Vec<(TaskPart, Answer)>),
    Reported(MemberId, Report),
    Refused(TaskUid, Vec<(PartRef, Refusal)>),
    OrderRefused(TaskUid, Refusal),
    Swept(TaskUid, u16, Swept),
    Hooked(BTreeSet<TaskUid>),
    Gone(BTreeSet<TaskUid>),
    Nothing,
}

/// The driver, made and not yet running.
pub struct Driver {
    pub(super) config: Config,
    pub(super) homes: Homes,
    pub(super) journals: JournalHandle,
    pub(super) sender: Sender,
    pub(super) cluster: Cluster,
    pub(super) hook: Option<Arc<dyn Hook>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) rng: fastrand::Rng,
    events: broadcast::Receiver<Event>,
    inputs: mpsc::Receiver<Input>,
    pub(super) slots: BTreeMap<u16, Slot>,
    // What homes were told last; `None`: not known yet.
    pub(super) awaiting: BTreeMap<PhysicalIndex, Option<Awaited>>,
    // Members that are not alive, each since when.
    away: BTreeMap<MemberId, Instant>,
    pub(super) generation: u64,
    pub(super) done: JoinSet<Result<(u16, Done), StoreError>>,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("homes", &self.slots.len()).finish_non_exhaustive()
    }
}

impl Driver {
    /// Made before the journals' driver runs, so that it hears of every reign. Nothing is read or asked before
    /// [`Driver::run`].
    pub fn new(parts: Parts) -> (Self, Homes) {
        let Parts { config, journals, sender, ledger, members, cluster, ids, outcomes, hook, metrics } = parts;
        let (inputs_in, inputs) = mpsc::channel(INPUTS);
        let homes = Homes {
            me: journals.me().member.clone(),
            journals: journals.clone(),
            ledger,
            members,
            ids,
            orders: Orders::default(),
            teller: Teller::new(journals.clone(), outcomes),
            inputs: inputs_in,
        };
        let driver = Self {
            config,
            homes: homes.clone(),
            events: journals.subscribe(),
            journals,
            sender,
            cluster,
            hook,
            metrics,
            rng: fastrand::Rng::with_seed(seed()),
            inputs,
            slots: BTreeMap::new(),
            awaiting: BTreeMap::new(),
            away: BTreeMap::new(),
            generation: 0,
            done: JoinSet::new(),
        };
        (driver, homes)
    }

    /// Runs until the journals' driver has ended.
    ///
    /// # Errors
    /// [`StoreError`]: the store has failed, and the process must end.
    pub async fn run(mut self) -> Result<(), StoreError> {
        let (mut records, mut members) = (self.homes.ledger.watch(), self.cluster.watch());
        self.look_at_members();
        self.look_at_journals().await?;
        loop {
            let wake = self.slots.values().filter_map(Slot::next_wake).min();
            let nap = nap(wake);
            tokio::select! {
                event = self.events.recv() => match event {
                    Ok(event) => self.hear(event),
                    Err(RecvError::Lagged(_)) => self.look_at_journals().await?,
                    Err(RecvError::Closed) => return Ok(()),
                },
                input = self.inputs.recv() => match input {
                    Some(input) => self.question(input),
                    None => return Ok(()),
                },
                changed = records.changed() => match changed {
                    Ok(()) => self.tell_awaited(),
                    Err(_) => return Ok(()),
                },
                changed = members.changed() => match changed {
                    Ok(()) => {
                        self.look_at_members();
                        self.tell_awaited();
                    }
                    Err(_) => return Ok(()),
                },
                Some(done) = self.done.join_next() => {
                    // A task that panicked would be a home that waits for ever.
                    let (home, done) = done.map_err(|_| StoreError::Closed)??;
                    self.did(home, done)?;
                }
                () = tokio::time::sleep(nap) => {}
            }
            self.tick();
        }
    }

    /// Notes who is alive.
    fn look_at_members(&mut self) {
        let (live, all, at) = (self.cluster.live(), self.cluster.topology(), now());
        self.away.retain(|member, _| all.contains(member) && !live.contains(member));
        for member in all.ids().filter(|member| !live.contains(*member)) {
            self.away.entry(member.clone()).or_insert(at);
        }
    }

    /// Members that have been away for so long that nobody waits for what they were to do: a suspicion may be over in a moment.
    pub(super) fn long_away(&self) -> BTreeSet<MemberId> {
        let (patience, at) = (self.config.core.incomplete_after, now());
        let long = self.away.iter().filter(|(_, since)| since.plus(patience) <= at);
        long.map(|(member, _)| member.clone()).collect()
    }

    /// What may have been missed: who reigns, what is committed.
    async fn look_at_journals(&mut self) -> Result<(), StoreError> {
        let tasks = PhysicalIndex::of_tasks();
        for (shard, status) in self.journals.status(&tasks).await? {
            if shard.0 >= HOMES {
                continue;
            }
            if status.rebuild {
                self.must_be_made_anew(shard.0);
            } else if status.primary {
                self.reigns(shard.0, status.epoch);
            } else {
                self.deposed(shard.0, Epoch::new(crate::types::limits::EPOCH_MAX).unwrap_or(Epoch::ZERO));
            }
            self.look(shard.0);
        }
        Ok(())
    }

    fn hear(&mut self, event: Event) {
        let key = match &event {
            Event::Committed(key, _)
            | Event::Reigns(key, _)
            | Event::Deposed(key, _)
            | Event::NeedsSnapshot(key, _)
            | Event::Rebuild(key) => key,
        };
        if !key.index.is_of_tasks() || key.shard.0 >= HOMES {
            return;
        }
        let home = key.shard.0;
        match event {
            Event::Committed(..) => self.look(home),
            Event::Reigns(_, epoch) => self.reigns(home, epoch),
            Event::Deposed(_, epoch) => self.deposed(home, epoch),
            Event::Rebuild(_) => self.must_be_made_anew(home),
            // Whoever needs it comes for it.
            Event::NeedsSnapshot(..) => {}
        }
    }

    /// Tells homes who is to apply what, where that has changed.
    fn tell_awaited(&mut self) {
        let watched = |slots: &BTreeMap<u16, Slot>, index: &PhysicalIndex| slots.values().any(|s| s.watches(index));
        let slots = &self.slots;
        self.awaiting.retain(|index, _| watched(slots, index));
        let indexes: Vec<PhysicalIndex> = self.awaiting.keys().cloned().collect();
        for index in indexes {
            self.look_awaited(&index, None);
        }
    }

    /// Tells homes who is to apply what of an index: all of them if that has changed, whoever noticed it, and in any case the
    /// one that asks.
    pub(super) fn look_awaited(&mut self, index: &PhysicalIndex, asks: Option<u16>) {
        let is = awaited(&self.journals, &self.cluster, index);
        let homes: Vec<u16> = match (self.awaiting.get(index), is.is_some()) {
            (Some(known), true) if *known == is => asks.into_iter().collect(),
            (_, true) => self.slots.keys().copied().collect(),
            // Not known here says nothing new.
            (_, false) => asks.into_iter().collect(),
        };
        if is.is_some() || !self.awaiting.contains_key(index) {
            self.awaiting.insert(index.clone(), is);
        }
        for home in homes {
            self.say_awaited(home, index);
        }
    }

    /// Looks at all homes that are due.
    fn tick(&mut self) {
        let at: Instant = now();
        let due = |(_, slot): &(&u16, &Slot)| slot.next_wake().is_some_and(|wake| wake <= at);
        let due: Vec<u16> = self.slots.iter().filter(due).map(|(home, _)| *home).collect();
        for home in due {
            self.call(home, |core, env, wall| core.handle_tick(env, wall));
        }
        let open: usize = self.slots.values().map(Slot::open).sum();
        self.metrics.tasks_pending.set(i64::try_from(open).unwrap_or(i64::MAX));
    }
}
