//! The task that runs the operations' core.
//!
//! Rule: one input at a time; what was recorded is shown before anything is done because of it, and written into the member's
//! own table. A run is ended before its lease is given back. If the store fails the driver ends, and with it the process. Must
//! not know: what any kind does.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{self, AbortHandle, JoinError, JoinSet};
use uuid::Uuid;

use super::handle::{Input, OperationsHandle, View};
use super::run::{Run, Runner};
use crate::proto::env::Env;
use crate::proto::lease::WantError;
use crate::proto::operation::{Effect, Guard, Operations, Outcome, RequestError, RequestId, record_key};
use crate::proto::register::{Answer, OpId};
use crate::rt::clock;
use crate::services::leases::{LeaseHandle, OrderError};
use crate::services::ledger::registers::{self, chosen};
use crate::services::ledger::{LedgerHandle, Sighting, driver::seed, nap, now};
use crate::services::members::Members;
use crate::store::{Store, StoreError};
use crate::telemetry::metrics::Metrics;
use crate::types::{Epoch, OperationEntry, OperationRecord, RecordKey, Scope, TraceId};

/// Requests and reports of this process, and answers of the ledger, that wait.
const WAITING: usize = 256;
/// How long one change or read of the ledger may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// What records of operations are called.
const PREFIX: &str = "operation:";

/// What a driver works with.
pub struct Parts {
    /// The kinds that this member carries out; operations of others are left alone.
    pub runners: Vec<Arc<dyn Runner>>,
    /// Where operations stand.
    pub ledger: LedgerHandle,
    /// Under what they are led.
    pub leases: LeaseHandle,
    /// To whom orders go.
    pub members: Members,
    /// Where the table for people is.
    pub store: Store,
    /// Series.
    pub metrics: Arc<Metrics>,
}

/// The driver, made and not yet running.
pub struct Driver {
    core: Operations,
    parts: Parts,
    rng: fastrand::Rng,
    view: Arc<watch::Sender<Arc<View>>>,
    inputs: (mpsc::Sender<Input>, mpsc::Receiver<Input>),
    answers: (mpsc::Sender<Told>, mpsc::Receiver<Told>),
    asking: BTreeMap<RequestId, oneshot::Sender<Result<(), RequestError>>>,
    // The scope of each change and read under way, so that only its record is shown anew.
    scopes: BTreeMap<OpId, Scope>,
    // What the core was told last.
    led: BTreeMap<Scope, Epoch>,
    runs: JoinSet<Outcome>,
    under_way: HashMap<task::Id, (Guard, AbortHandle)>,
}

type Told = (OpId, Answer);

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("led", &self.led).finish_non_exhaustive()
    }
}

impl Driver {
    /// Builds the core. Nothing is asked or stored before [`Driver::run`].
    pub fn new(parts: Parts) -> (Self, OperationsHandle) {
        let inputs = mpsc::channel(WAITING);
        let view = Arc::new(watch::Sender::new(Arc::new(View::default())));
        let handle = OperationsHandle { inputs: inputs.0.clone(), view: Arc::clone(&view) };
        let driver = Self {
            core: Operations::new(parts.runners.iter().map(|r| r.kind()).collect()),
            parts,
            rng: fastrand::Rng::with_seed(seed()),
            view,
            inputs,
            answers: mpsc::channel(WAITING),
            asking: BTreeMap::new(),
            scopes: BTreeMap::new(),
            led: BTreeMap::new(),
            runs: JoinSet::new(),
            under_way: HashMap::new(),
        };
        (driver, handle)
    }

    /// Runs until the process ends; dropping the future ends all runs.
    ///
    /// # Errors
    /// [`StoreError`]: the process must end.
    pub async fn run(mut self) -> Result<(), StoreError> {
        let mut sightings = self.parts.ledger.sightings();
        let mut leases = self.parts.leases.watch();
        self.hear_copies().await?;
        loop {
            self.hear_leases().await?;
            let nap = nap(self.core.next_wake());
            tokio::select! {
                Some(input) = self.inputs.1.recv() => self.hear(input).await?,
                Some((op, answer)) = self.answers.1.recv() => {
                    let scope = self.scopes.remove(&op);
                    self.call(|core, env| core.handle_answer(env, op, answer));
                    self.step(scope.as_ref()).await?;
                }
                Some(ended) = self.runs.join_next_with_id() => {
                    // How far it came was said before.
                    while let Ok(input) = self.inputs.1.try_recv() {
                        self.hear(input).await?;
                    }
                    self.hear_ended(ended).await?;
                }
                sighting = sightings.recv() => self.hear_sighting(sighting).await?,
                changed = leases.changed() => if changed.is_err() { return Ok(()) },
                () = tokio::time::sleep(nap) => {
                    self.call(Operations::handle_tick);
                    self.step(None).await?;
                }
            }
            leases.mark_unchanged();
        }
    }

    /// Calls the core at the instant that it is now.
    fn call<T>(&mut self, ask: impl FnOnce(&mut Operations, &mut Env<'_>) -> T) -> T {
        ask(&mut self.core, &mut Env { now: now(), rng: &mut self.rng })
    }

    async fn hear(&mut self, input: Input) -> Result<(), StoreError> {
        match input {
            Input::Request(scope, request, answer) => {
                let at = clock::now_rfc3339();
                let id = self.call(|core, env| core.handle_request(env, &scope, request, &at));
                self.asking.insert(id, answer);
                self.step(Some(&scope)).await
            }
            Input::Progress(guard, done, total, unit) => {
                self.call(|core, env| core.handle_progress(env, &guard, done, total, unit));
                self.step(Some(&guard.scope)).await
            }
        }
    }

    /// Everything that the ledger's copies say of operations.
    async fn hear_copies(&mut self) -> Result<(), StoreError> {
        let copies = self.parts.ledger.copies();
        for (key, record) in copies.iter() {
            if let Some(scope) = scope_of(key) {
                self.call(|core, env| core.handle_chosen(env, key.as_str(), &chosen(record)));
                self.step(Some(&scope)).await?;
            }
        }
        Ok(())
    }

    async fn hear_sighting(&mut self, sighting: Result<Sighting, RecvError>) -> Result<(), StoreError> {
        match sighting {
            Ok(Sighting::Copied(key, record)) => {
                let Some(scope) = scope_of(&key) else { return Ok(()) };
                self.call(|core, env| core.handle_chosen(env, key.as_str(), &chosen(&record)));
                self.step(Some(&scope)).await
            }
            Ok(Sighting::Accepted(..)) => Ok(()),
            Err(RecvError::Lagged(_)) => self.hear_copies().await,
            // The ledger's driver has ended, and the process ends with it.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }

    /// Tells the core what the member has come to lead, and what it leads no more.
    async fn hear_leases(&mut self) -> Result<(), StoreError> {
        let view = self.parts.leases.rows();
        let held = view.held(now()).filter(|(scope, _)| !matches!(scope, Scope::Alive(_)));
        let held: BTreeMap<Scope, Epoch> = held.map(|(scope, held)| (scope.clone(), held.epoch)).collect();
        if held == self.led {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.led, held.clone());
        for (scope, epoch) in before.iter().filter(|(scope, epoch)| held.get(*scope) != Some(*epoch)) {
            self.call(|core, env| core.handle_lost(env, scope, *epoch));
            self.step(Some(scope)).await?;
        }
        for (scope, epoch) in held.iter().filter(|(scope, epoch)| before.get(*scope) != Some(*epoch)) {
            self.call(|core, env| core.handle_became(env, scope, *epoch));
            self.step(Some(scope)).await?;
        }
        Ok(())
    }

    async fn hear_ended(&mut self, ended: Result<(task::Id, Outcome), JoinError>) -> Result<(), StoreError> {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        // A run that was stopped is not in the list any more.
        let Some((guard, _)) = self.under_way.remove(&id) else { return Ok(()) };
        let outcome = match ended {
            Ok((_, outcome)) => outcome,
            Err(error) => {
                tracing::error!(scope = %guard.scope, phase = guard.phase, %error, "a phase failed inside");
                Outcome::Failed { why: "the phase failed inside; the leader's log says where".to_owned(), retry: true }
            }
        };
        self.count_run(
            &guard,
            match &outcome {
                Outcome::Next { .. } | Outcome::Done => "complete",
                Outcome::Failed { retry: true, .. } => "again",
                Outcome::Failed { .. } => "failed",
            },
        );
        if let Outcome::Failed { why, retry } = &outcome {
            let Guard { scope, epoch, operation, phase, .. } = &guard;
            tracing::warn!(%scope, %epoch, operation, phase, why, retry, "a phase could not be completed");
        }
        let at = clock::now_rfc3339();
        self.call(|core, env| core.handle_finished(env, &guard, outcome, &at));
        self.step(Some(&guard.scope)).await
    }

    /// Drains the effects of one input and carries them out; what the input changed in `scope` is shown first.
    async fn step(&mut self, scope: Option<&Scope>) -> Result<(), StoreError> {
        if let Some(scope) = scope {
            self.publish(scope);
        }
        while let Some(effect) = self.core.poll_effect() {
            self.carry_out(effect).await?;
        }
        Ok(())
    }

    /// Asks for the lease of a scope, and again after a while where that may help.
    async fn want(&mut self, scope: Scope) {
        let Err(error) = self.parts.leases.want(scope.clone()).await else { return };
        tracing::info!(%scope, %error, "this member does not lead the operation; others may");
        if matches!(error, OrderError::Want(WantError::Full)) {
            self.call(|core, env| core.handle_not_wanted(env, &scope));
        }
    }

    fn publish(&self, scope: &Scope) {
        // The core forgets what nobody works on; the copy is as new as what it knew last.
        let copied = || {
            let copies = self.parts.ledger.copies();
            let copy = copies.get(&RecordKey::new(record_key(scope)).ok()?)?;
            serde_json::from_str::<OperationRecord>(&copy.value).ok()
        };
        let record = self.core.record(scope).cloned().or_else(copied);
        self.view.send_if_modified(|view| {
            if view.record(scope).map(|shown| &**shown) == record.as_ref() {
                return false;
            }
            let records = &mut Arc::make_mut(view).records;
            match record {
                Some(record) => drop(records.insert(scope.clone(), Arc::new(record))),
                None => drop(records.remove(scope)),
            }
            true
        });
    }

    async fn carry_out(&mut self, effect: Effect) -> Result<(), StoreError> {
        match effect {
            Effect::Change(change) => {
                self.note(change.op, &change.key);
                let (ledger, answers) = (self.parts.ledger.clone(), self.answers.0.clone());
                tokio::spawn(async move {
                    tell(&answers, vec![registers::change_one(&ledger, change, PATIENCE).await]).await
                });
            }
            Effect::Read(read) => {
                self.note(read.op, &read.key);
                let (ledger, answers) = (self.parts.ledger.clone(), self.answers.0.clone());
                tokio::spawn(
                    async move { tell(&answers, registers::read_all(&ledger, vec![read], PATIENCE).await).await },
                );
            }
            Effect::Want(scope) => self.want(scope).await,
            Effect::Unwant(scope) => self.parts.leases.release(scope).await,
            Effect::Run { guard, extra } => self.begin(guard, extra),
            Effect::Stop { guard } => self.stop(&guard),
            Effect::Answered { request, result } => {
                if let Some(answer) = self.asking.remove(&request) {
                    // Whoever asked may have gone.
                    drop(answer.send(result));
                }
            }
            Effect::Row { scope, entry } => {
                self.count_recorded(&scope, &entry);
                self.parts.store.show_operation(scope, entry, clock::now_rfc3339()).await?;
            }
        }
        Ok(())
    }

    fn note(&mut self, op: OpId, key: &str) {
        if let Some(scope) = key.strip_prefix(PREFIX).and_then(|scope| scope.parse().ok()) {
            self.scopes.insert(op, scope);
        }
    }

    fn begin(&mut self, guard: Guard, extra: serde_json::Value) {
        let kind = self.core.record(&guard.scope).and_then(|r| r.current.as_ref()).map(|op| op.kind.clone());
        let runner = self.parts.runners.iter().find(|r| Some(r.kind().name) == kind.as_deref()).map(Arc::clone);
        // Between becoming the leader and here the hold may have ended; then the core hears of it next.
        let tenure = self.parts.leases.enter(&guard.scope).filter(|tenure| tenure.epoch() == guard.epoch);
        let trace = TraceId(Uuid::new_v4().as_u128());
        let Guard { scope, epoch, operation, phase, undo, .. } = &guard;
        tracing::info!(%scope, %epoch, operation, phase, undo, id = %trace, "a phase begins");
        let parts = (self.view.subscribe(), self.inputs.0.clone(), self.parts.members.clone());
        let (named, run) = (guard.clone(), async move {
            let (Some(runner), Some(tenure)) = (runner, tenure) else {
                return Outcome::Failed { why: "the lease was lost before the phase began".to_owned(), retry: true };
            };
            let (view, inputs, members) = parts;
            let run = Run { guard, extra, tenure, view, inputs, members, trace };
            runner.run(&run).await
        });
        let handle = self.runs.spawn(run);
        self.under_way.insert(handle.id(), (named, handle));
    }

    /// Ends a run: nothing of it happens after its next await, and it holds the lease until it is gone.
    fn stop(&mut self, guard: &Guard) {
        let id = self.under_way.iter().find(|(_, (g, _))| g == guard).map(|(id, _)| *id);
        if let Some((guard, run)) = id.and_then(|id| self.under_way.remove(&id)) {
            run.abort();
            self.count_run(&guard, "stopped");
            tracing::info!(scope = %guard.scope, epoch = %guard.epoch, phase = guard.phase, "a phase is stopped here");
        }
    }

    /// The name of a kind as a label: only those that this version knows.
    fn label(&self, kind: &str) -> &'static str {
        self.parts.runners.iter().map(|r| r.kind().name).find(|name| *name == kind).unwrap_or("other")
    }

    fn count_run(&self, guard: &Guard, outcome: &'static str) {
        let view = self.view.borrow();
        let kind = view.find(&guard.operation).map_or("other", |(_, op)| self.label(&op.kind));
        self.parts.metrics.operation_runs.with_label_values(&[kind, outcome]).inc();
    }

    fn count_recorded(&self, scope: &Scope, entry: &OperationEntry) {
        let state = entry.state.as_str();
        tracing::info!(%scope, operation = entry.id, phase = entry.phase, state, "recorded");
        if entry.state.is_final() {
            self.parts.metrics.operations_finished.with_label_values(&[self.label(&entry.kind), state]).inc();
        }
    }
}

async fn tell(answers: &mpsc::Sender<Told>, told: Vec<Told>) {
    for one in told {
        // The driver may have ended.
        drop(answers.send(one).await);
    }
}

fn scope_of(key: &RecordKey) -> Option<Scope> {
    key.as_str().strip_prefix(PREFIX)?.parse().ok()
}
