//! The task that runs the replicas.
//!
//! Rule: one input of one replica at a time, and all that it wants is taken up before the next. Stores of all replicas that
//! come while a transaction is under way share the next. If the store fails, nobody is told of what it held, and the driver
//! ends, and with it the process. Must not know: what a record means beyond who holds what.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::answers::Answers;
use super::elections::{Elections, Unfit};
use super::handle::{Input, JournalHandle, ShardStatus, Shared};
use super::inbox::{Inbox, Received};
use super::membership::Membership;
use super::outbox::Outbox;
use super::records::{Asks, Index};
use super::slots::{Slot, Told};
use super::storing::Storing;
use crate::net::Peers;
use crate::proto::env::Instant;
use crate::proto::journal::log::Bounds;
use crate::proto::journal::sight::Seen;
use crate::proto::journal::{Answer, Config as CoreConfig, Entry, Rest, Said, Stands, Stored};
use crate::rt::clock;
use crate::services::leases::LeaseHandle;
use crate::services::ledger::{LedgerHandle, driver::seed, nap, now};
use crate::store::journal::Listed;
use crate::store::{JournalStore, StoreError};
use crate::types::{Epoch, JournalKey, MemberId, PhysicalIndex, ReplicaId, ShardId, TaskPart};

/// Commands of this process that wait; whoever comes then waits at the door.
const INPUTS: usize = 256;

/// How journals are driven.
#[derive(Debug, Clone)]
pub struct Config {
    /// Of each replica.
    pub core: CoreConfig,
    /// What is read of a replica's newest entries when it is touched, and checked: small, for many may be touched at once.
    pub tail: Bounds,
    /// An idle replica stays in memory for so long.
    pub linger: Duration,
    /// Between two shards of an index whose preferred primaries return.
    pub give_back_pause: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            core: CoreConfig::default(),
            tail: Bounds { entries: 64, bytes: 256 << 10 },
            linger: Duration::from_secs(30),
            give_back_pause: Duration::from_secs(10),
        }
    }
}

/// What a driver works with.
pub struct Parts {
    /// How it works.
    pub config: Config,
    /// This member, in its store.
    pub me: ReplicaId,
    /// This process.
    pub start: u64,
    /// Where the records are.
    pub ledger: LedgerHandle,
    /// Who leads elections.
    pub leases: LeaseHandle,
    /// The journals' file.
    pub store: JournalStore,
    /// The other members.
    pub peers: Arc<dyn Peers>,
    /// Who is seen.
    pub seen: watch::Receiver<Arc<Seen>>,
}

/// What was done beside the driver.
pub(super) enum Done {
    Stored,
    Opened(JournalKey, Box<Stored>),
    Loaded(JournalKey, u64, MemberId, Result<Vec<Entry>, StoreError>),
    Found(JournalKey, u64, (Epoch, TaskPart), Result<Option<Stands>, StoreError>),
    Asked(PhysicalIndex),
    Listed(Option<BTreeSet<MemberId>>),
    Purged,
}

/// The driver, made and not yet running.
pub struct Driver {
    pub(super) config: Config,
    pub(super) me: ReplicaId,
    pub(super) start: u64,
    pub(super) ledger: LedgerHandle,
    pub(super) leases: LeaseHandle,
    pub(super) store: JournalStore,
    pub(super) rng: fastrand::Rng,
    inputs: mpsc::Receiver<Input>,
    inbox: mpsc::Receiver<Received>,
    pub(super) outbox: Outbox,
    pub(super) seen: watch::Receiver<Arc<Seen>>,
    // What the replicas were told last.
    pub(super) seen_now: Arc<Seen>,
    pub(super) shared: Arc<Shared>,
    pub(super) indexes: BTreeMap<PhysicalIndex, Index>,
    pub(super) slots: BTreeMap<JournalKey, Slot>,
    // Copies that are to be made anew.
    pub(super) broken: BTreeSet<JournalKey>,
    // Copies whose journals are whole and that are made anew: when their shards were last given to others, and how long that counts.
    pub(super) unfit: BTreeMap<JournalKey, Unfit>,
    /// Bytes of entries that each replica keeps in memory.
    pub(super) share: usize,
    // The own node is down: when its shards are next to be given to others.
    pub(super) idle: Option<Instant>,
    // Reigns that are at rest, with their epochs.
    pub(super) rests: BTreeMap<JournalKey, (Epoch, Rest)>,
    // When replicas want to be looked at.
    pub(super) due: BTreeSet<(Instant, JournalKey)>,
    pub(super) generation: u64,
    pub(super) storing: Storing,
    pub(super) answers: Answers,
    pub(super) asks: Asks,
    pub(super) elections: Elections,
    pub(super) membership: Membership,
    pub(super) done: JoinSet<Result<Done, StoreError>>,
    /// A journal was replaced by a snapshot: its rows are to be removed.
    pub(super) replaced: bool,
    closing: Vec<oneshot::Sender<()>>,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("me", &self.me).finish_non_exhaustive()
    }
}

impl Driver {
    /// Nothing is read, sent or stored before [`Driver::run`].
    pub fn new(parts: Parts) -> (Self, JournalHandle) {
        let Parts { config, me, start, ledger, leases, store, peers, seen } = parts;
        let shared = Arc::new(Shared::new());
        let seen_now = Arc::clone(&seen.borrow());
        let (inputs_in, inputs) = mpsc::channel(INPUTS);
        let (inbox_in, inbox) = Inbox::new();
        let handle = JournalHandle {
            me: me.clone(),
            min_in_sync: config.core.min_in_sync,
            inputs: inputs_in,
            inbox: inbox_in,
            shared: Arc::clone(&shared),
            store: store.clone(),
            ledger: ledger.clone(),
            seen: seen.clone(),
        };
        let driver = Self {
            config,
            me,
            start,
            ledger,
            leases,
            store,
            rng: fastrand::Rng::with_seed(seed()),
            inputs,
            inbox,
            outbox: Outbox::new(peers),
            seen,
            seen_now,
            shared,
            indexes: BTreeMap::new(),
            slots: BTreeMap::new(),
            broken: BTreeSet::new(),
            unfit: BTreeMap::new(),
            share: 0,
            idle: None,
            rests: BTreeMap::new(),
            due: BTreeSet::new(),
            generation: 0,
            storing: Storing::default(),
            answers: Answers::default(),
            asks: Asks::default(),
            elections: Elections::default(),
            membership: Membership::default(),
            done: JoinSet::new(),
            replaced: false,
            closing: Vec::new(),
        };
        (driver, handle)
    }

    /// Runs until nobody holds a handle any more.
    ///
    /// Not cancel-safe for the member: replicas that stopped within a step are never used again.
    ///
    /// # Errors
    /// [`StoreError`]: the process must end, because replicas are ahead of their store.
    pub async fn run(mut self) -> Result<(), StoreError> {
        let mut changes = self.ledger.watch();
        changes.mark_changed();
        self.see();
        self.purge();
        let (listed, damaged) = self.store.list().await?;
        self.read_records();
        damaged.into_iter().for_each(|key| self.repair(&key, "its head".into()));
        // Those who need a snapshot say so again, and those whose last entries may be committed ask.
        let wants = |l: &&Listed| l.rebuild || l.commit < l.last.seq;
        listed.iter().filter(wants).for_each(|l| self.touch(&l.key));
        loop {
            self.store_what_waits();
            self.write_asks();
            if self.asks.rests() {
                // Whoever asked may have gone.
                self.closing.drain(..).for_each(|tell| {
                    let _ = tell.send(());
                });
            }
            self.shared.in_memory.store(self.slots.len(), Ordering::Relaxed);
            let nap = nap(self.next_wake());
            tokio::select! {
                input = self.inputs.recv() => match input {
                    Some(input) => self.hear(input),
                    None => return Ok(()),
                },
                received = self.inbox.recv() => match received {
                    Some(received) => self.receive(received),
                    None => return Ok(()),
                },
                changed = changes.changed() => match changed {
                    Ok(()) => self.read_records(),
                    Err(_) => return Ok(()),
                },
                seen = self.seen.changed() => match seen {
                    Ok(()) => self.see(),
                    Err(_) => return Ok(()),
                },
                Some(done) = self.done.join_next() => {
                    // A task that panicked would be a replica that waits for ever.
                    let done = done.map_err(|_| StoreError::Closed)??;
                    self.did(done)?;
                }
                () = tokio::time::sleep(nap) => {}
            }
            self.answers.expire(now());
            self.tick();
            self.elect();
        }
    }

    fn next_wake(&self) -> Option<Instant> {
        let due = self.due.first().map(|(at, _)| *at);
        [due, self.answers.next_due(), self.elections.next_wake(), self.idle].into_iter().flatten().min()
    }

    /// Begins the next transaction, if none is under way.
    fn store_what_waits(&mut self) {
        if let Some(turn) = self.storing.turn() {
            let (store, now) = (self.store.clone(), clock::unix_seconds());
            self.done.spawn(async move {
                store.apply(turn, now).await?;
                Ok(Done::Stored)
            });
        }
    }

    fn hear(&mut self, input: Input) {
        match input {
            Input::Write { parts, deadline, tell } => {
                if self.storing.is_full() || self.seen_now.full {
                    // Whoever asked may have gone.
                    drop(tell.send(vec![Answer::Busy; parts.len()]));
                    return;
                }
                let Some(ops) = self.answers.open(parts.len(), deadline, tell) else { return };
                for (op, (key, write)) in ops.zip(parts) {
                    self.tell(&key, Told::Write(op, write));
                }
            }
            Input::Applied(applied) => {
                applied.into_iter().for_each(|(key, to)| self.tell_if_there(&key, Told::Applied(to)));
            }
            Input::Unapplied(applied) => {
                applied.into_iter().for_each(|(key, to)| self.tell_if_there(&key, Told::Unapplied(to)));
            }
            Input::Trim { key, to, overdue } => self.tell(&key, Told::Trim { to, overdue }),
            Input::Snapshot { key, at, parts, tell } => self.tell(&key, Told::Snapshot { at, parts, tell }),
            Input::Repair(key, reason) => self.repair(&key, reason),
            Input::Unfit(key, true) => {
                self.unfit.entry(key.clone()).or_insert_with(|| Unfit::new(now()));
                self.look_at(&key.index);
            }
            Input::Unfit(key, false) => drop(self.unfit.remove(&key)),
            Input::Filled(key) => self.is_filled(key),
            Input::Status(index, tell) => drop(tell.send(self.status(&index))),
            Input::HandOver(tell) => {
                self.hand_over();
                self.closing.push(tell);
            }
        }
    }

    fn receive(&mut self, received: Received) {
        let Received { from, messages, .. } = received;
        for message in messages {
            // Whoever sent it sends it again, or to nobody, once it has heard that there is no room here.
            let brings = matches!(message.message.said, Said::Append { .. });
            if !(brings && (self.storing.is_full() || self.seen_now.full)) {
                self.tell(&message.key, Told::Message(from.clone(), message.message));
            }
        }
    }

    fn did(&mut self, done: Done) -> Result<(), StoreError> {
        match done {
            Done::Stored => {
                for (key, stored) in self.storing.done() {
                    self.was_stored(&key, stored);
                }
                if std::mem::take(&mut self.replaced) {
                    self.purge();
                }
            }
            Done::Opened(key, stored) => self.opened(&key, *stored),
            Done::Loaded(key, generation, member, read) => {
                if self.was_read(&key, generation)
                    && let Some(entries) = self.or_repair(read)?
                {
                    self.call(&key, |replica, env| replica.handle_loaded(env, &member, entries));
                }
            }
            Done::Found(key, generation, (epoch, part), read) => {
                if self.was_read(&key, generation)
                    && let Some(at) = self.or_repair(read)?
                {
                    self.call(&key, |replica, env| replica.handle_found(env, epoch, part, at));
                }
            }
            Done::Asked(index) => self.asks.done(&index),
            Done::Listed(present) => self.leave_out(present),
            Done::Purged => {}
        }
        Ok(())
    }

    /// Rows of journals that are gone are removed beside all else, bit by bit.
    fn purge(&mut self) {
        let store = self.store.clone();
        self.done.spawn(async move {
            while store.purge().await? {}
            Ok(Done::Purged)
        });
    }

    /// What the replicas in memory, and reigns at rest, know beyond what is stored.
    fn status(&self, index: &PhysicalIndex) -> BTreeMap<ShardId, ShardStatus> {
        let mut all = BTreeMap::new();
        for (key, slot) in self.slots.iter().filter(|(key, _)| key.index == *index) {
            let Slot::Open(open) = slot else { continue };
            let (replica, log) = (&open.replica, open.replica.log());
            let status = ShardStatus {
                primary: replica.is_primary(),
                epoch: replica.epoch(),
                last: log.last().seq,
                commit: log.commit(),
                stored_by: replica.stored_by().into_iter().map(|(m, to)| (m.to_string(), to)).collect(),
                ..ShardStatus::default()
            };
            all.insert(key.shard, status);
        }
        for (key, (epoch, _)) in self.rests.iter().filter(|(key, _)| key.index == *index) {
            let rests = || ShardStatus { primary: true, epoch: *epoch, ..ShardStatus::default() };
            all.entry(key.shard).or_insert_with(rests);
        }
        all
    }
}
