//! The task that runs the lease core.
//!
//! Rule: one input at a time; what is lost is out of everybody's view at once, then new highest epochs are stored, and only
//! then what is new is shown, asked of the ledger and answered. If the store fails, nothing of the step is carried out and
//! the driver ends, and with it the process. Must not know: what is done under a lease.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, oneshot, watch};

use super::handle::{Input, LeaseHandle, Shared};
use super::view::{Row, View};
use crate::proto::env::{Env, Instant};
use crate::proto::lease::{Config, Effect, Eligible, Fences, Lapse, LeaseCore, LostWhy, rank};
use crate::proto::operation::scope_of_record;
use crate::proto::register::{Answer, Change, OpId, Read};
use crate::rt::clock;
use crate::services::cluster::MemberState;
use crate::services::ledger::registers::{self, chosen};
use crate::services::ledger::{LedgerHandle, Sighting, driver::seed, nap, now};
use crate::services::records::NAMES;
use crate::store::leases::LeaseLine;
use crate::store::{Store, StoreError};
use crate::telemetry::metrics::Metrics;
use crate::types::{
    Epoch, Holder, LeaseSign, MemberId, MemberState as Recorded, NamesRecord, OperationRecord, RecordKey, Scope,
    Versioned,
};
use crate::wire::gossip::MemberGossip;

/// Where holdings are logged, with instants that all members of one machine share.
const HOLDINGS: &str = "miroir::holdings";
/// Commands of this process, and answers of the ledger, that wait.
const WAITING: usize = 256;
/// So many TTLs the member that comes first for a standing scope has lived before another one gives the scope to it.
const SETTLED_TTLS: u32 = 3;
/// Between two writings of the table for people.
const SHOW_PAUSE: Duration = Duration::from_secs(1);

/// What a driver works with.
#[derive(Debug)]
pub struct Parts {
    /// The section `[leader_election]`.
    pub config: Config,
    /// This process, as the ledger counts it.
    pub start: u64,
    /// The highest epochs that were stored.
    pub fences: Vec<(Scope, Epoch)>,
    /// Where leases stand.
    pub ledger: LedgerHandle,
    /// Where highest epochs are stored.
    pub store: Store,
    /// Series.
    pub metrics: Arc<Metrics>,
}

/// What the driver watches.
#[derive(Debug)]
pub struct Inputs {
    /// This member's state: only an active one leads.
    pub state: watch::Receiver<MemberState>,
    /// What the others gossip.
    pub gossip: watch::Receiver<BTreeMap<MemberId, MemberGossip>>,
}

/// The driver, made and not yet running.
#[derive(Debug)]
pub struct Driver {
    core: LeaseCore,
    config: Config,
    rng: fastrand::Rng,
    ledger: LedgerHandle,
    store: Store,
    metrics: Arc<Metrics>,
    shared: Arc<Shared>,
    inputs: mpsc::Receiver<Input>,
    answers: (mpsc::Sender<Answers>, mpsc::Receiver<Answers>),
    signs: watch::Sender<Vec<LeaseSign>>,
    // What the core was told last, so that it is told only what is new.
    eligible: Eligible,
    members: Vec<MemberId>,
    // Since when each scope is held.
    began: BTreeMap<Scope, Instant>,
    // Given back, while something may still run under the lease.
    ending: BTreeSet<Scope>,
    // Since when each member is seen to live under one epoch.
    lives: BTreeMap<MemberId, (Epoch, Instant)>,
    // To which life a standing scope was offered: once, because that member may not want it.
    offered: BTreeMap<Scope, (MemberId, Epoch)>,
    closing: Vec<oneshot::Sender<()>>,
    counted_until: Instant,
}

type Answers = Vec<(OpId, Answer)>;

impl Driver {
    /// Builds the core from what is stored and from the ledger's copies. Nothing is asked or stored before
    /// [`Driver::run`]. What is to be gossiped comes out of the third part.
    pub fn new(parts: Parts) -> (Self, LeaseHandle, watch::Receiver<Vec<LeaseSign>>) {
        let Parts { config, start, fences, ledger, store, metrics } = parts;
        let me = Holder { member: ledger.member().clone(), start };
        let at = now();
        let core = LeaseCore::recover(me, config.clone(), Fences::recover(fences), at);
        let (inputs_in, inputs) = mpsc::channel(WAITING);
        let shared = Arc::new(Shared::new(View::default(), config.ttl_ms));
        let handle = LeaseHandle { inputs: inputs_in, ledger: ledger.clone(), shared: Arc::clone(&shared) };
        let (signs, gossiped) = watch::channel(Vec::new());
        let driver = Self {
            core,
            config,
            rng: fastrand::Rng::with_seed(seed()),
            ledger,
            store,
            metrics,
            shared,
            inputs,
            answers: mpsc::channel(WAITING),
            signs,
            // As the core begins.
            eligible: Eligible::Yes,
            members: Vec::new(),
            began: BTreeMap::new(),
            ending: BTreeSet::new(),
            lives: BTreeMap::new(),
            offered: BTreeMap::new(),
            closing: Vec::new(),
            counted_until: at,
        };
        (driver, handle, gossiped)
    }

    /// Runs until nobody holds a handle any more.
    ///
    /// Not cancel-safe for the member: a core that stopped within a step is never used again.
    ///
    /// # Errors
    /// [`StoreError`]: the process must end, because the core is ahead of its store.
    pub async fn run(mut self, watched: Inputs) -> Result<(), StoreError> {
        let Inputs { mut state, mut gossip } = watched;
        let mut sightings = self.ledger.sightings();
        let (mut status, mut fresh) = (self.ledger.status(), self.ledger.fresh_until());
        tokio::spawn(show(self.store.clone(), self.shared.view.subscribe(), self.config.ttl_ms));
        let standing = *state.borrow_and_update();
        self.hear_standing(standing).await?;
        self.hear_copies().await?;
        let shared = Arc::clone(&self.shared);
        loop {
            // Copies become stale without anything being heard.
            let stale_at = Some(*fresh.borrow()).filter(|_| self.eligible == Eligible::Yes);
            let nap = nap(self.core.next_wake().into_iter().chain(stale_at).min());
            tokio::select! {
                input = self.inputs.recv() => match input {
                    Some(input) => self.hear(input).await?,
                    None => return Ok(()),
                },
                answers = self.answers.1.recv() => for (op, answer) in answers.into_iter().flatten() {
                    self.call(|core, env| core.handle_answer(env, op, answer));
                    self.step().await?;
                },
                sighting = sightings.recv() => self.hear_sighting(sighting).await?,
                heard = gossip.changed() => {
                    if heard.is_err() {
                        return Ok(());
                    }
                    let heard = gossip.borrow_and_update().clone();
                    self.hear_ttls(&heard);
                    let said: Vec<(MemberId, Vec<LeaseSign>)> = heard
                        .iter()
                        .filter(|(member, said)| *member != self.ledger.member() && !said.leases.is_empty())
                        .map(|(member, said)| (member.clone(), said.leases.clone()))
                        .collect();
                    for (member, signs) in said {
                        self.call(|core, env| core.handle_gossip(env, &member, &signs));
                        self.step().await?;
                    }
                }
                changed = state.changed() => if changed.is_err() { return Ok(()) },
                changed = status.changed() => if changed.is_err() { return Ok(()) },
                changed = fresh.changed() => if changed.is_err() { return Ok(()) },
                () = shared.ended.notified() => {}
                () = tokio::time::sleep(nap) => {
                    self.call(LeaseCore::handle_tick);
                    self.step().await?;
                }
            }
            status.mark_unchanged();
            fresh.mark_unchanged();
            let standing = *state.borrow_and_update();
            self.hear_standing(standing).await?;
            self.hear_ended().await?;
            self.spread().await?;
        }
    }

    /// Calls the core at the instant that it is now.
    fn call<T>(&mut self, ask: impl FnOnce(&mut LeaseCore, &mut Env<'_>) -> T) -> T {
        ask(&mut self.core, &mut Env { now: now(), rng: &mut self.rng })
    }

    async fn hear(&mut self, input: Input) -> Result<(), StoreError> {
        match input {
            Input::Want(scope, answer) => {
                let wanted = self.call(|core, env| core.handle_want(env, &scope));
                self.step().await?;
                // Whoever asked may have gone; so it is below.
                answer.send(wanted).ok();
            }
            Input::Release(scope) => {
                self.call(|core, env| core.handle_release(env, &scope));
                self.step().await?;
            }
            Input::Order(order, known, answer) => {
                let checked = self.call(|core, env| core.handle_order(env, &order, known));
                self.step().await?;
                answer.send(checked).ok();
            }
            Input::Lapse(scope, holder, epoch, answer) => {
                let lapse = self.core.lapse(&scope, &holder, epoch, now());
                if lapse == Lapse::Seems {
                    self.call(|core, env| core.handle_ask(env, &scope));
                    self.step().await?;
                }
                answer.send(lapse).ok();
            }
            Input::Shutdown(answer) => {
                self.call(LeaseCore::handle_shutdown);
                self.closing.push(answer);
                self.step().await?;
            }
        }
        Ok(())
    }

    /// A change that everybody has to know is waited for as long as the slowest member takes to find itself stale, so people
    /// are told of members with another TTL.
    fn hear_ttls(&self, heard: &BTreeMap<MemberId, MemberGossip>) {
        let own_ms = self.config.ttl_ms;
        for (member, ttl_ms) in heard.iter().filter_map(|(member, said)| Some((member, said.lease_ttl_ms?))) {
            if member != self.ledger.member() && self.shared.hear_ttl(member, ttl_ms) {
                tracing::warn!(
                    %member, ttl_ms, own_ms,
                    "a member has another [leader_election] lease_ttl_s; give all members the same, until then changes of \
                     aliases wait for the longest one"
                );
            }
        }
    }

    /// Everything that the ledger's copies say of leases.
    async fn hear_copies(&mut self) -> Result<(), StoreError> {
        let copies = self.ledger.copies();
        for (key, record) in copies.iter() {
            self.hear_record(key, record).await?;
        }
        Ok(())
    }

    async fn hear_record(&mut self, key: &RecordKey, record: &Versioned) -> Result<(), StoreError> {
        if is_lease(key) {
            self.call(|core, env| core.handle_chosen(env, key.as_str(), &chosen(record)));
            self.step().await?;
        }
        for (scope, epoch) in led_under(key, record) {
            self.call(|core, env| core.handle_epoch(env, &scope, epoch));
            self.step().await?;
        }
        Ok(())
    }

    async fn hear_sighting(&mut self, sighting: Result<Sighting, RecvError>) -> Result<(), StoreError> {
        match sighting {
            Ok(Sighting::Copied(key, record)) => return self.hear_record(&key, &record).await,
            Ok(Sighting::Accepted(key, record)) if is_lease(&key) => {
                self.call(|core, env| core.handle_accepted(env, key.as_str(), &record.value));
            }
            Ok(_) => return Ok(()),
            Err(RecvError::Lagged(_)) => return self.hear_copies().await,
            // The ledger's driver has ended, and the process ends with it.
            Err(RecvError::Closed) => std::future::pending().await,
        }
        self.step().await
    }

    /// Tells the core who belongs to the mesh and whether this member may lead, if that is new.
    async fn hear_standing(&mut self, state: MemberState) -> Result<(), StoreError> {
        let record = self.ledger.status().borrow().record.clone();
        let stays = |state: Recorded| matches!(state, Recorded::Joining | Recorded::Active);
        let members: Vec<MemberId> =
            record.iter().flat_map(|r| &r.members).filter(|m| stays(m.state)).map(|m| m.id.clone()).collect();
        let listed = members.contains(self.ledger.member());
        if members != self.members {
            self.members.clone_from(&members);
            self.shared.keep_ttls(&members);
            self.call(|core, env| core.handle_members(env, members));
            self.step().await?;
        }
        let eligible = match (state == MemberState::Active && listed, self.ledger.fresh()) {
            (false, _) => Eligible::No,
            (true, false) => Eligible::Stale,
            (true, true) => Eligible::Yes,
        };
        if eligible != self.eligible {
            self.eligible = eligible;
            self.call(|core, env| core.handle_eligible(env, eligible));
            self.step().await?;
        }
        Ok(())
    }

    /// Gives standing scopes to the members that come first for them: after a start whoever is there first holds them all.
    async fn spread(&mut self) -> Result<(), StoreError> {
        let (view, at) = (Arc::clone(&self.shared.view.borrow()), now());
        let mut lives = BTreeMap::new();
        for row in view.rows().iter().filter(|row| row.expires_in(at).is_some()) {
            if let Scope::Alive(member) = &row.scope {
                let before = self.lives.get(member).filter(|(epoch, _)| *epoch == row.epoch);
                lives.insert(member.clone(), before.copied().unwrap_or((row.epoch, at)));
            }
        }
        self.lives = lives;
        let settled = Duration::from_millis(self.config.ttl_ms) * SETTLED_TTLS;
        let members: Vec<&MemberId> = self.members.iter().collect();
        let mut offers = Vec::new();
        for scope in Scope::STANDING.iter().filter(|scope| view.believes(scope, at).is_some()) {
            let Some(first) = rank::order(scope, &members).first().copied() else { continue };
            let Some((epoch, since)) = self.lives.get(first).copied() else { continue };
            let offer = (first.clone(), epoch);
            let new = self.offered.get(scope) != Some(&offer);
            if new && first != self.ledger.member() && at.since(since) >= settled {
                offers.push((scope.clone(), offer));
            }
        }
        for (scope, offer) in offers {
            tracing::debug!(%scope, to = %offer.0, "a standing scope is given to the member that comes first for it");
            self.offered.insert(scope.clone(), offer);
            self.call(|core, env| core.handle_yield(env, &scope));
            self.step().await?;
        }
        Ok(())
    }

    /// Gives back what nothing runs under any more.
    async fn hear_ended(&mut self) -> Result<(), StoreError> {
        let ended: Vec<Scope> = self.ending.iter().filter(|scope| !self.shared.is_busy(scope)).cloned().collect();
        for scope in ended {
            self.ending.remove(&scope);
            self.call(|core, env| core.handle_ended(env, &scope));
            self.step().await?;
        }
        Ok(())
    }

    /// Drains the effects of one input and carries them out.
    async fn step(&mut self) -> Result<(), StoreError> {
        let (mut fences, mut rest) = (BTreeMap::new(), Vec::new());
        while let Some(effect) = self.core.poll_effect() {
            match effect {
                Effect::Persist { scope, epoch } => drop(fences.insert(scope, epoch)),
                other => rest.push(other),
            }
        }
        let before = Arc::clone(&self.shared.view.borrow());
        if !fences.is_empty() {
            self.publish(before.without_lost(&View::of(&self.core, now())));
            self.store.raise_fences(fences.into_iter().collect()).await?;
        }
        let at = now();
        let view = View::of(&self.core, at);
        self.log_renewals(&before, &view, at);
        self.publish(view);
        for effect in rest {
            self.carry_out(effect);
        }
        self.count(at);
        if self.core.is_released() {
            for answer in self.closing.drain(..) {
                answer.send(()).ok();
            }
        }
        Ok(())
    }

    fn publish(&self, view: View) {
        self.shared.view.send_if_modified(|shown| {
            let changed = **shown != view;
            if changed {
                *shown = Arc::new(view);
            }
            changed
        });
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Became { scope, epoch, at, until } => {
                self.began.insert(scope.clone(), at);
                tracing::info!(
                    target: HOLDINGS,
                    event = "became", %scope, epoch = epoch.number(), from_us = at.0, until_us = until.0, at_us = now().0,
                );
            }
            Effect::Lost { scope, epoch, at, why } => {
                let from = self.began.remove(&scope).unwrap_or(at);
                let (from_us, until_us, at_us) = (from.0, at.0, now().0);
                tracing::info!(
                    target: HOLDINGS,
                    event = "lost", %scope, epoch = epoch.number(), from_us, until_us, at_us, why = words(why),
                );
                if why == LostWhy::Released {
                    self.ending.insert(scope);
                    // It may be that nothing runs: the loop looks.
                    self.shared.ended.notify_one();
                }
            }
            Effect::Changes(changes) => self.change(changes),
            Effect::Reads(reads) => self.read(reads),
            Effect::Gossip(signs) => drop(self.signs.send_replace(signs)),
            // Taken out before.
            Effect::Persist { .. } => {}
        }
    }

    fn change(&self, changes: Vec<Change>) {
        let (ledger, answers, patience) = (self.ledger.clone(), self.answers.0.clone(), self.config.renew_interval);
        tokio::spawn(async move {
            let told = registers::change_all(&ledger, changes, patience).await;
            // The driver may have ended.
            drop(answers.send(told).await);
        });
    }

    fn read(&self, reads: Vec<Read>) {
        let (ledger, answers, patience) = (self.ledger.clone(), self.answers.0.clone(), self.config.renew_interval);
        tokio::spawn(async move {
            let told = registers::read_all(&ledger, reads, patience).await;
            drop(answers.send(told).await);
        });
    }

    fn log_renewals(&self, before: &View, after: &View, at: Instant) {
        for (scope, held) in after.held(at) {
            let renewed = before.held_as(scope).is_some_and(|b| b.epoch == held.epoch && b.until < held.until);
            if renewed {
                let from_us = self.began.get(scope).map_or(at.0, |began| began.0);
                let epoch = held.epoch.number();
                tracing::debug!(
                    target: HOLDINGS,
                    event = "renewed", %scope, epoch, from_us, until_us = held.until.0, at_us = at.0,
                );
            }
        }
    }

    /// Brings the series up to date, but for the one that is worked out at the scrape.
    fn count(&mut self, at: Instant) {
        let counts = self.core.counts();
        for (series, count) in [
            (&self.metrics.leader_acquisitions, counts.acquisitions),
            (&self.metrics.lease_renewals, counts.renewals),
            (&self.metrics.lease_losses, counts.losses),
        ] {
            series.inc_by(count.saturating_sub(series.get()));
        }
        let passed = at.since(self.counted_until).as_secs_f64();
        self.counted_until = at;
        let view = self.shared.view.borrow();
        for scope in &Scope::STANDING {
            let leaderless = self.metrics.leaderless.with_label_values(&[scope.to_string().as_str()]);
            if !view.is_led(scope, at) {
                leaderless.inc_by(passed);
            }
        }
    }
}

/// What is written as soon as it changes; that a lease was renewed is written now and then.
type Gist = (Scope, Option<Holder>, Epoch);

/// Keeps the table for people.
async fn show(store: Store, mut view: watch::Receiver<Arc<View>>, ttl_ms: u64) {
    let refresh = Duration::from_millis(ttl_ms / 2);
    let mut shown: Option<(Vec<Gist>, Instant)> = None;
    loop {
        let (rows, at) = (Arc::clone(&view.borrow_and_update()), now());
        let gist: Vec<Gist> =
            rows.rows().iter().map(|row| (row.scope.clone(), row.holder.clone(), row.epoch)).collect();
        let due = shown.as_ref().is_none_or(|(before, since)| *before != gist || at.since(*since) >= refresh);
        if due {
            let lines = rows.rows().iter().map(|row| line(row, at)).collect();
            if let Err(error) = store.show_leases(lines).await {
                tracing::warn!(%error, "the table of leases for people is not up to date");
            }
            shown = Some((gist, at));
        }
        tokio::time::sleep(SHOW_PAUSE).await;
        if view.changed().await.is_err() {
            return;
        }
    }
}

fn line(row: &Row, at: Instant) -> LeaseLine {
    LeaseLine {
        scope: row.scope.clone(),
        holder: row.holder.as_ref().map(|h| h.member.clone()),
        epoch: row.epoch,
        expires_at: row.expires_in(at).map(clock::rfc3339_after),
    }
}

fn is_lease(key: &RecordKey) -> bool {
    key.as_str().starts_with("lease:")
}

/// Under which epochs a record says that scopes were led. What is no such record says nothing.
fn led_under(key: &RecordKey, record: &Versioned) -> Vec<(Scope, Epoch)> {
    if let Some(scope) = scope_of_record(key.as_str()) {
        let read = serde_json::from_str::<OperationRecord>(&record.value);
        return read.map(|r| (scope, r.epoch)).into_iter().collect();
    }
    let names = (key.as_str() == NAMES).then(|| serde_json::from_str::<NamesRecord>(&record.value).ok()).flatten();
    let aliases = names.into_iter().flat_map(|names| names.aliases);
    aliases
        .map(|(name, alias)| (Scope::AliasFlip(name), alias.epoch))
        .filter(|(_, epoch)| *epoch > Epoch::ZERO)
        .collect()
}

fn words(why: LostWhy) -> &'static str {
    match why {
        LostWhy::Expired => "expired",
        LostWhy::Released => "released",
        LostWhy::Fenced => "fenced",
    }
}
