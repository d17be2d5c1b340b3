//! The task that runs the core.
//!
//! Rule: one input at a time; what the core wants stored is stored in one transaction before anything else of the step is
//! carried out: first copies are published, then answers given and messages sent. If the store fails, nothing of the step
//! is carried out and the driver ends, and with it the process. Must not know: what records mean, except the mesh's own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::handle::{
    Copies, Follower, InitError, Input, LedgerHandle, Recovery, Shared, Sighting, Status, nap, now, words,
};
use super::inbox::{Inbox, Received};
use super::outbox::Outbox;
use crate::net::Peers;
use crate::proto::env::{Env, Instant};
use crate::proto::ledger::{
    Answer, Change, Command, Config, Effect, Item, Ledger, Message, Notice, OpId, Read, Stored, effect::RecoveringRow,
};
use crate::store::{JournalStore, LedgerStore, Store, StoreError, identity};
use crate::telemetry::metrics::Metrics;
use crate::types::{MemberId, MeshId, MeshRecord, RecordKey, Versioned};

/// Commands of this process that wait; whoever comes then waits at the door.
const INPUTS: usize = 256;
/// Changes that travel together at most, when they wait together.
const TOGETHER: usize = 128;

/// What a driver works with.
pub struct Parts {
    /// How the core is configured.
    pub config: Config,
    /// Its bootstrap list is that of the member's configuration: no other takes its place.
    pub configured: bool,
    /// What the ledger's file held when this process began.
    pub stored: Stored,
    /// The ledger's file.
    pub ledger: LedgerStore,
    /// The member's own file, which notes each start.
    pub store: Store,
    /// The journals' file, which does as well.
    pub journals: JournalStore,
    /// The other members.
    pub peers: Arc<dyn Peers>,
    /// Series.
    pub metrics: Arc<Metrics>,
}

/// The driver, made and not yet running.
pub struct Driver {
    config: Config,
    core: Ledger,
    ledger: LedgerStore,
    store: Store,
    journals: JournalStore,
    rng: fastrand::Rng,
    inputs: mpsc::Receiver<Input>,
    inbox: mpsc::Receiver<Received>,
    outbox: Outbox,
    shared: Arc<Shared>,
    followers: Vec<Arc<dyn Follower>>,
    // The bootstrap list is the config's.
    configured: bool,
    waiting: BTreeMap<OpId, Waiting>,
    groups: BTreeMap<u64, Group>,
    next: u64,
    // The newest round that was counted.
    last_round: u64,
    metrics: Arc<Metrics>,
}

/// Whose answer an operation's is.
struct Waiting {
    group: u64,
    at: usize,
}

/// Operations that were asked for together and are answered together.
struct Group {
    answers: Vec<Option<Answer>>,
    missing: usize,
    kind: &'static str,
    began: Instant,
    tell: oneshot::Sender<Vec<Answer>>,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("member", &self.config.member).finish_non_exhaustive()
    }
}

impl Driver {
    /// Builds the core from what is stored. Nothing is sent or stored before [`Driver::run`].
    pub fn new(parts: Parts) -> (Self, LedgerHandle) {
        let Parts { config, configured, stored, ledger, store, journals, peers, metrics } = parts;
        let mut rng = fastrand::Rng::with_seed(seed());
        let copies = Copies::new(stored.copies.clone());
        let start = stored.start;
        let core = Ledger::recover(config.clone(), stored, &mut Env { now: now(), rng: &mut rng });
        let status = Status {
            mesh: told_mesh(&core),
            record: copies.get(&RecordKey::mesh()).and_then(read_mesh),
            voters: core.voters().cloned().map(Arc::new),
            bootstrap: config.bootstrap.is_some(),
            ..Status::default()
        };
        let shared = Arc::new(Shared::new(copies, status));
        let (inputs_in, inputs) = mpsc::channel(INPUTS);
        let (inbox_in, inbox) = Inbox::new();
        let handle = LedgerHandle {
            member: config.member.clone(),
            start,
            inputs: inputs_in,
            inbox: inbox_in,
            shared: Arc::clone(&shared),
        };
        let outbox = Outbox::new(peers, Arc::clone(&metrics));
        let driver = Self {
            config,
            core,
            ledger,
            store,
            journals,
            rng,
            inputs,
            inbox,
            outbox,
            shared,
            followers: Vec::new(),
            configured,
            waiting: BTreeMap::new(),
            groups: BTreeMap::new(),
            next: 0,
            last_round: 0,
            metrics,
        };
        (driver, handle)
    }

    /// Adds one who hears of every new copy before the change that made it is answered.
    pub fn follow(&mut self, follower: Arc<dyn Follower>) {
        self.followers.push(follower);
    }

    /// Runs until nobody holds a handle any more.
    ///
    /// Not cancel-safe for the member: a core that stopped within a step is never used again.
    ///
    /// # Errors
    /// [`StoreError`]: the process must end, because the core is ahead of its store.
    pub async fn run(mut self) -> Result<(), StoreError> {
        // What the core wants after a restart.
        self.step().await?;
        loop {
            let nap = nap(self.core.next_wake());
            tokio::select! {
                input = self.inputs.recv() => match input {
                    Some(input) => self.hear(input).await?,
                    None => return Ok(()),
                },
                received = self.inbox.recv() => {
                    let Some(Received { from, message, .. }) = received else { return Ok(()) };
                    self.metrics.ledger_messages.with_label_values(&["received"]).inc();
                    self.count_refusals(&message);
                    self.call(|core, env| core.handle_message(env, &from, message));
                }
                () = tokio::time::sleep(nap) => self.call(Ledger::handle_tick),
            }
            self.step().await?;
        }
    }

    /// Calls the core at the instant that it is now.
    fn call<T>(&mut self, ask: impl FnOnce(&mut Ledger, &mut Env<'_>) -> T) -> T {
        ask(&mut self.core, &mut Env { now: now(), rng: &mut self.rng })
    }

    async fn hear(&mut self, input: Input) -> Result<(), StoreError> {
        match input {
            Input::Change(wanted, deadline, tell) => {
                let mut changes = Vec::new();
                self.take_changes(&mut changes, wanted, deadline, tell);
                let mut other = None;
                // What waits behind it travels along.
                while other.is_none() && changes.len() < TOGETHER {
                    match self.inputs.try_recv() {
                        Ok(Input::Change(wanted, deadline, tell)) => {
                            self.take_changes(&mut changes, wanted, deadline, tell);
                        }
                        Ok(input) => other = Some(input),
                        Err(_) => break,
                    }
                }
                self.call(|core, env| core.submit(env, Command::Change(changes)));
                if let Some(other) = other {
                    self.step().await?;
                    return Box::pin(self.hear(other)).await;
                }
            }
            Input::Read(keys, deadline, tell) => {
                let ops = self.open_group("read", keys.len(), tell);
                let read = |(op, key)| Read { op, key, deadline };
                let reads = ops.into_iter().zip(keys).map(read).collect();
                self.call(|core, env| core.submit(env, Command::Read(reads)));
            }
            Input::Peers(members) => {
                let kept = members.clone();
                self.outbox.keep(|m| kept.contains(m));
                self.call(|core, env| core.submit(env, Command::Peers(members)));
            }
            Input::Recover(survivors) => self.call(|core, env| core.submit(env, Command::Recover { survivors })),
            Input::Init(list, text, answer) => {
                let done = match self.refuse_init() {
                    // It was given before; the answer may have been lost.
                    _ if self.core.mesh().is_none() && self.config.bootstrap.as_ref() == Some(&*list) => Ok(()),
                    Some(refused) => Err(refused),
                    None => {
                        self.config.bootstrap = Some(*list);
                        self.ledger.put_bootstrap(text).await?;
                        self.begin_anew().await?;
                        Ok(())
                    }
                };
                // Whoever asked may have gone.
                drop(answer.send(done));
            }
        }
        Ok(())
    }

    /// Who has a list may be given another as long as it knows of no mesh, not even of one that is being made.
    fn refuse_init(&self) -> Option<InitError> {
        match self.core.stored().mesh {
            Some((mesh, _)) => Some(InitError::Member(mesh)),
            None => self.configured.then_some(InitError::Configured),
        }
    }

    /// A core with another list is another process of the store: the one before is dropped with all it had under way.
    async fn begin_anew(&mut self) -> Result<(), StoreError> {
        let (_, stored) = identity::begin(&self.store, &self.ledger, &self.journals, &self.config.member).await?;
        let config = self.config.clone();
        self.waiting.clear();
        self.groups.clear();
        let mut env = Env { now: now(), rng: &mut self.rng };
        self.core = Ledger::recover(config, stored, &mut env);
        self.shared.status.send_modify(|status| status.bootstrap = true);
        Ok(())
    }

    fn take_changes(
        &mut self,
        changes: &mut Vec<Change>,
        wanted: Vec<super::ChangeRequest>,
        deadline: Instant,
        tell: oneshot::Sender<Vec<Answer>>,
    ) {
        let ops = self.open_group("change", wanted.len(), tell);
        changes.extend(ops.into_iter().zip(wanted).map(|(op, wanted)| Change {
            op,
            key: wanted.key,
            expected: wanted.expected,
            value: wanted.value,
            quiet: wanted.quiet,
            deadline,
        }));
    }

    fn open_group(&mut self, kind: &'static str, count: usize, tell: oneshot::Sender<Vec<Answer>>) -> Vec<OpId> {
        if count == 0 {
            drop(tell.send(Vec::new()));
            return Vec::new();
        }
        let group = self.next;
        let ops: Vec<OpId> = (0..count as u64).map(|i| OpId(group + i)).collect();
        self.next += count as u64;
        for (at, op) in ops.iter().enumerate() {
            self.waiting.insert(*op, Waiting { group, at });
        }
        let open = Group { answers: vec![None; count], missing: count, kind, began: now(), tell };
        self.groups.insert(group, open);
        ops
    }

    /// Drains the effects of one input and carries them out, in the order of the contract.
    async fn step(&mut self) -> Result<(), StoreError> {
        let (mut rows, mut copied, mut rest) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(effect) = self.core.poll_effect() {
            match effect {
                Effect::Persist(row) => rows.push(row),
                Effect::Copied { key, record } => copied.push((key, record)),
                other => rest.push(other),
            }
        }
        if !rows.is_empty() {
            let began = now();
            self.ledger.commit(rows).await?;
            self.metrics.ledger_commit.observe(now().since(began).as_secs_f64());
        }
        // That the copies may be old is said before others are shown, that they are new after that.
        self.tell_fresh(|old, new| new < old);
        self.publish(copied);
        self.tell_fresh(|_, _| true);
        self.tell_status();
        for effect in rest {
            self.carry_out(effect);
        }
        Ok(())
    }

    fn publish(&self, copied: Vec<(RecordKey, Versioned)>) {
        if copied.is_empty() {
            return;
        }
        let mut next = Copies::clone(&self.shared.copies());
        for (key, record) in copied.iter().cloned() {
            next.put(key, record);
        }
        let next = Arc::new(next);
        *self.shared.copies.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::clone(&next);
        for follower in &self.followers {
            follower.copied(&copied, &next);
        }
        if let Some((_, mesh)) = copied.iter().rev().find(|(key, _)| key.is_mesh())
            && let Some(record) = read_mesh(mesh)
        {
            self.shared.status.send_modify(|status| status.record = Some(record));
        }
        for (key, record) in copied {
            // Nobody may be listening.
            drop(self.shared.sightings.send(Sighting::Copied(key, record)));
        }
        self.shared.changed.send_modify(|n| *n += 1);
    }

    /// Says until when the copies are fresh, if that is news and `wanted`, which is given what was said and what is true.
    fn tell_fresh(&self, wanted: impl Fn(Instant, Instant) -> bool) {
        let at = now();
        let margin = self.config.lease_ttl / 20;
        let until = match self.core.whole_for(at) {
            Some(age) if self.core.fresh(at) => at.minus(age).plus(self.config.lease_ttl.saturating_sub(margin)),
            _ => Instant::default(),
        };
        self.shared.fresh_until.send_if_modified(|old| wanted(*old, until) && std::mem::replace(old, until) != until);
    }

    /// Brings what else others may know of the core up to date.
    fn tell_status(&self) {
        let (mesh, voters) = (told_mesh(&self.core), self.core.voters());
        let (waits_to_vote, recovering) = (self.core.waits_to_vote(), self.core.recovering().map(recovery));
        self.shared.status.send_if_modified(|status| {
            let changed = status.mesh != mesh
                || status.voters.as_deref() != voters
                || status.waits_to_vote != waits_to_vote
                || status.recovering != recovering;
            if changed {
                status.mesh = mesh;
                status.voters = voters.cloned().map(Arc::new);
                (status.waits_to_vote, status.recovering) = (waits_to_vote, recovering);
            }
            changed
        });
        let voters = voters.map_or((0, 0), |list| (list.voters.len(), list.number));
        self.metrics.ledger_voters.set(i64::try_from(voters.0).unwrap_or(i64::MAX));
        self.metrics.ledger_list.set(i64::try_from(voters.1).unwrap_or(i64::MAX));
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Send { to, message } => {
                self.count_rounds(&message);
                self.outbox.send(to, message);
            }
            Effect::Answer { op, answer } => self.answer(op, answer),
            Effect::Accepted { key, record } => {
                // Nobody may be listening.
                drop(self.shared.sightings.send(Sighting::Accepted(key, record)));
            }
            Effect::Joined { mesh } => tracing::info!(%mesh, "this member belongs to a mesh"),
            Effect::RolledBack { text } => {
                tracing::error!(
                    remedy = text,
                    "this member neither votes nor changes anything: its store is older than it was"
                );
                self.shared.status.send_modify(|status| status.rolled_back = Some(text));
            }
            Effect::Notice(notice) => {
                if matches!(notice, Notice::Broken { .. }) {
                    self.metrics.ledger_broken.inc();
                }
                log(&notice);
                self.shared.status.send_modify(|status| status.note(notice));
            }
            // Taken out before.
            Effect::Persist(_) | Effect::Copied { .. } => {}
        }
    }

    fn answer(&mut self, op: OpId, answer: Answer) {
        let outcome = match &answer {
            Answer::Changed { .. } => "changed",
            Answer::Conflict { .. } => "conflict",
            Answer::Read { .. } => "read",
            Answer::Unknown => "unknown",
            Answer::NoQuorum => "no_quorum",
            Answer::Refused { .. } => "refused",
        };
        self.metrics.ledger_operations.with_label_values(&[outcome]).inc();
        let Some(Waiting { group, at }) = self.waiting.remove(&op) else {
            tracing::error!(?op, outcome, "an operation was answered twice");
            return;
        };
        let Some(open) = self.groups.get_mut(&group) else { return };
        open.answers[at] = Some(answer);
        open.missing -= 1;
        if open.missing > 0 {
            return;
        }
        if let Some(Group { answers, kind, began, tell, .. }) = self.groups.remove(&group) {
            let took = now().since(began).as_secs_f64();
            self.metrics.ledger_duration.with_label_values(&[kind]).observe(took);
            // Whoever asked may have gone.
            drop(tell.send(answers.into_iter().flatten().collect()));
        }
    }

    fn count_rounds(&mut self, message: &Message) {
        let asks = |item: &Item| match item {
            Item::Prepare { round, .. } | Item::Accept { round, .. } | Item::Query { round, .. } => Some(*round),
            _ => None,
        };
        let begun: BTreeSet<u64> =
            message.items.iter().filter_map(asks).map(|round| round.number).filter(|n| *n > self.last_round).collect();
        // Rounds are numbered as they begin; each goes to several voters and has one or two steps.
        if let Some(last) = begun.last() {
            self.metrics.ledger_rounds.inc_by(begun.len() as u64);
            self.last_round = *last;
        }
    }

    fn count_refusals(&self, message: &Message) {
        let refused = message.items.iter().filter(|item| matches!(item, Item::Higher { .. })).count();
        self.metrics.ledger_conflicts.inc_by(refused as u64);
    }
}

fn recovery((row, missing): (&RecoveringRow, BTreeSet<MemberId>)) -> Recovery {
    Recovery { new: row.new, leader: row.leader.clone(), survivors: row.survivors.clone(), missing }
}

/// 64 bits from the operating system.
pub(in crate::services) fn seed() -> u64 {
    let random = Uuid::new_v4().as_u128();
    (random ^ (random >> 64)) as u64
}

/// The mesh record, if this version can read it.
fn read_mesh(copy: &Versioned) -> Option<Arc<MeshRecord>> {
    match MeshRecord::from_json(&copy.value) {
        Ok(record) => Some(Arc::new(record)),
        Err(error) => {
            tracing::error!(%error, version = copy.version, "the mesh's record can't be read; the one before stays in use");
            None
        }
    }
}

fn log(notice: &Notice) {
    let notice_text = words(notice);
    match notice {
        Notice::Broken { .. } => tracing::error!("{notice_text}"),
        Notice::Waiting { .. } | Notice::VotersChanging { .. } | Notice::VotersSettled { .. } => {
            tracing::info!("{notice_text}");
        }
        Notice::OtherMesh { .. }
        | Notice::OtherBootstrap { .. }
        | Notice::StoreRolledBack { .. }
        | Notice::Recovering { .. }
        | Notice::Malformed { .. } => tracing::warn!("{notice_text}"),
    }
}

/// The mesh that others are told of. Survivors that are making a new one belong to none meanwhile: some of them may be in it
/// already, and would not speak with one of the old.
fn told_mesh(core: &Ledger) -> Option<MeshId> {
    core.mesh().filter(|_| core.recovering().is_none())
}
