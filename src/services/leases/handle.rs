//! What other services ask of leases.
//!
//! Rule: a hold is shown only after its epoch has been stored, and is gone before the lease is given back. Must not know:
//! how the core is run.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::view::View;
use crate::proto::env::Instant;
use crate::proto::lease::{Lapse, OrderRefusal, WantError, rank};
use crate::services::ledger::{LedgerHandle, now};
use crate::types::{Claim, Epoch, Holder, MemberId, Order, RecordKey, Scope};

/// What the driver is told by this process.
#[derive(Debug)]
pub(super) enum Input {
    Want(Scope, oneshot::Sender<Result<(), WantError>>),
    Release(Scope),
    Order(Order, u64, oneshot::Sender<Result<(), OrderRefusal>>),
    Lapse(Scope, Holder, Epoch, oneshot::Sender<Lapse>),
    Shutdown(oneshot::Sender<()>),
}

/// Why an order is not carried out, or a scope not wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// It is stale, or this member's records are.
    #[error(transparent)]
    Refused(#[from] OrderRefusal),
    /// The scope can't be had.
    #[error(transparent)]
    Want(#[from] WantError),
    /// The driver has ended, and so will the process.
    #[error("this member's leases have ended")]
    Ended,
}

/// What handle and driver share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) view: watch::Sender<Arc<View>>,
    // The TTLs by which members go, in milliseconds: the own one, and what the others say of theirs.
    ttls: RwLock<(u64, BTreeMap<MemberId, u64>)>,
    // How much runs under each lease.
    tenures: Mutex<BTreeMap<(Scope, Epoch), usize>>,
    pub(super) ended: Notify,
}

impl Shared {
    pub(super) fn new(view: View, ttl_ms: u64) -> Self {
        let ttls = RwLock::new((ttl_ms, BTreeMap::new()));
        Self { view: watch::Sender::new(Arc::new(view)), ttls, tenures: Mutex::default(), ended: Notify::new() }
    }

    /// What a member says of its TTL; true if that is news, and differs from the own one.
    pub(super) fn hear_ttl(&self, member: &MemberId, ttl_ms: u64) -> bool {
        let mut ttls = self.ttls.write().unwrap_or_else(PoisonError::into_inner);
        ttls.1.insert(member.clone(), ttl_ms) != Some(ttl_ms) && ttl_ms != ttls.0
    }

    /// Forgets those who do not belong to the mesh.
    pub(super) fn keep_ttls(&self, members: &[MemberId]) {
        self.ttls.write().unwrap_or_else(PoisonError::into_inner).1.retain(|member, _| members.contains(member));
    }

    fn longest_ttl_ms(&self) -> u64 {
        let ttls = self.ttls.read().unwrap_or_else(PoisonError::into_inner);
        ttls.1.values().copied().fold(ttls.0, u64::max)
    }

    fn tenures(&self) -> MutexGuard<'_, BTreeMap<(Scope, Epoch), usize>> {
        self.tenures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anything still runs under a lease of the scope.
    pub(super) fn is_busy(&self, scope: &Scope) -> bool {
        self.tenures().keys().any(|(busy, _)| busy == scope)
    }
}

/// Leases, as other services use them; cheap to clone.
#[derive(Debug, Clone)]
pub struct LeaseHandle {
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) ledger: LedgerHandle,
    pub(super) shared: Arc<Shared>,
}

impl LeaseHandle {
    /// The longest TTL, in milliseconds, by which a member that is known measures whether it is stale. A member that is away
    /// counts with what it said last.
    pub fn longest_ttl_ms(&self) -> u64 {
        self.shared.longest_ttl_ms()
    }

    /// The own TTL, and the members that go by another one, in milliseconds.
    pub fn other_ttls_ms(&self) -> (u64, BTreeMap<MemberId, u64>) {
        let (own, mut others) = self.shared.ttls.read().unwrap_or_else(PoisonError::into_inner).clone();
        others.retain(|_, ttl_ms| *ttl_ms != own);
        (own, others)
    }

    /// The epoch under which this member holds the scope at this instant.
    pub fn believes(&self, scope: &Scope) -> Option<Epoch> {
        self.shared.view.borrow().believes(scope, now())
    }

    /// Says that something runs under the scope's lease from now on; `None` if the scope is not held. The lease is given
    /// back only after the tenure has been dropped.
    pub fn enter(&self, scope: &Scope) -> Option<Tenure> {
        // The driver looks at the tenures after it has taken the hold out of the view: it sees this one, or this sees that.
        let mut tenures = self.shared.tenures();
        let epoch = self.believes(scope)?;
        *tenures.entry((scope.clone(), epoch)).or_default() += 1;
        Some(Tenure { shared: Arc::clone(&self.shared), scope: scope.clone(), epoch })
    }

    /// The scope is wanted from now on, until it is released.
    ///
    /// Cancel-safe: the scope may be wanted all the same.
    ///
    /// # Errors
    /// [`OrderError`] if this member can't have it.
    pub async fn want(&self, scope: Scope) -> Result<(), OrderError> {
        let (answer, wait) = oneshot::channel();
        self.inputs.send(Input::Want(scope, answer)).await.map_err(|_| OrderError::Ended)?;
        Ok(wait.await.map_err(|_| OrderError::Ended)??)
    }

    /// The scope is not wanted any more. Standing scopes, and that this member lives, are wanted all the same.
    pub async fn release(&self, scope: Scope) {
        // Without its driver the process is about to end.
        drop(self.inputs.send(Input::Release(scope)).await);
    }

    /// What is known at this instant; wakes whenever it changes.
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.shared.view.subscribe()
    }

    /// What is known at this instant.
    pub fn rows(&self) -> Arc<View> {
        Arc::clone(&self.shared.view.borrow())
    }

    /// The instant on the clock that leases go by.
    pub fn now(&self) -> Instant {
        now()
    }

    /// The claim by which this process shows that it lives: itself, and the epoch of its `alive:` lease; `None` while it holds
    /// none.
    pub fn alive(&self) -> Option<Claim> {
        let member = self.ledger.member().clone();
        let epoch = self.believes(&Scope::Alive(member.clone()))?;
        Some(Claim { holder: Holder { member, start: self.ledger.start() }, epoch })
    }

    /// Whether this member owns `key` among the living ones: for work that is spread, not led. Two members whose pictures
    /// differ may both own it for a while, so what is done so must bear being done twice.
    pub fn owns(&self, key: &str) -> bool {
        let (view, now) = (self.rows(), now());
        rank::owns(key, self.ledger.member(), view.living(now))
    }

    /// Whether the life under which `claim` was made is over. What only seems so is looked up, so a later question has an
    /// answer.
    ///
    /// # Errors
    /// [`OrderError::Ended`].
    pub async fn lapse(&self, claim: &Claim) -> Result<Lapse, OrderError> {
        let scope = Scope::Alive(claim.holder.member.clone());
        let (answer, wait) = oneshot::channel();
        let ask = Input::Lapse(scope, claim.holder.clone(), claim.epoch, answer);
        self.inputs.send(ask).await.map_err(|_| OrderError::Ended)?;
        wait.await.map_err(|_| OrderError::Ended)
    }

    /// Checks what a member that claims to lead has ordered, by the highest epochs seen and this member's own copy of the
    /// record that the order names. When it returns, the order's epoch has been stored: lower ones are refused for ever.
    ///
    /// # Errors
    /// [`OrderError`]; nothing may be done of the order then. After `Behind` the record is fetched and the order checked
    /// again.
    pub async fn check_order(&self, order: Order) -> Result<(), OrderError> {
        let key = RecordKey::new(&*order.record).ok();
        let known = key.and_then(|key| self.ledger.copies().get(&key).map(|copy| copy.version)).unwrap_or(0);
        let (answer, wait) = oneshot::channel();
        self.inputs.send(Input::Order(order, known, answer)).await.map_err(|_| OrderError::Ended)?;
        Ok(wait.await.map_err(|_| OrderError::Ended)??)
    }

    /// Gives back everything, because the process ends, and waits until that stands in the ledger, at most `patience`.
    pub async fn shutdown(&self, patience: Duration) {
        let (answer, wait) = oneshot::channel();
        let all = async {
            if self.inputs.send(Input::Shutdown(answer)).await.is_ok() {
                // Without its driver nothing can be given back.
                drop(wait.await);
            }
        };
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::warn!("leases were not given back in time; others take them when they have expired");
        }
    }
}

/// Something runs under a lease; dropped when it has ended.
#[derive(Debug)]
pub struct Tenure {
    shared: Arc<Shared>,
    scope: Scope,
    epoch: Epoch,
}

impl Tenure {
    /// The scope.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The epoch, which every order carries.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// As [`LeaseHandle::longest_ttl_ms`].
    pub fn longest_ttl_ms(&self) -> u64 {
        self.shared.longest_ttl_ms()
    }

    /// Whether it still stands; asked before every effect.
    pub fn stands(&self) -> bool {
        self.shared.view.borrow().believes(&self.scope, now()) == Some(self.epoch)
    }
}

impl Drop for Tenure {
    fn drop(&mut self) {
        let key = (self.scope.clone(), self.epoch);
        let mut tenures = self.shared.tenures();
        if let Some(count) = tenures.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                tenures.remove(&key);
                self.shared.ended.notify_one();
            }
        }
    }
}
