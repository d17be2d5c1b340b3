//! A phase under way: what its kind may rely on, and what it may do.
//!
//! Rule: nothing is done before the guard was asked at that instant; the lease stays held while a run lives. Must not know:
//! any one kind.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};

use super::handle::{Input, View};
use crate::net::{Call, CallError};
use crate::proto::operation::{Guard, Kind, Outcome};
use crate::services::leases::Tenure;
use crate::services::members::Members;
use crate::types::{Epoch, MemberId, TraceId};
use crate::wire::verbs::{LeaderAct, LeaderOrder, Request};

/// Carries out the phases of one kind.
#[async_trait]
pub trait Runner: Send + Sync + 'static {
    /// The kind.
    fn kind(&self) -> &'static Kind;

    /// Works on the phase that [`Run::guard`] names, or undoes from it, until it is complete. It may be dropped at any await,
    /// and is begun again by this or another member, so whatever it does twice has to be as if done once.
    async fn run(&self, run: &Run) -> Outcome;
}

/// The run is not called for any more: another leads, or somebody has paused or cancelled the operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this member does not lead {scope} under epoch {epoch} any more, or phase {phase} is over")]
pub struct Superseded {
    /// The scope.
    pub scope: String,
    /// The run's epoch.
    pub epoch: Epoch,
    /// The run's phase.
    pub phase: String,
}

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum OrderFailed {
    /// It was not sent.
    #[error(transparent)]
    Superseded(#[from] Superseded),
    /// The receiver refused it, or may not have got it.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// One run of a phase.
#[derive(Debug)]
pub struct Run {
    pub(super) guard: Guard,
    pub(super) extra: serde_json::Value,
    pub(super) tenure: Tenure,
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) members: Members,
    pub(super) trace: TraceId,
}

impl Run {
    /// Scope, epoch, operation and phase.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Names what the run does in the logs of all members.
    pub fn trace(&self) -> TraceId {
        self.trace
    }

    /// The longest TTL, in milliseconds, by which a member that is known measures whether it is stale.
    pub fn longest_ttl_ms(&self) -> u64 {
        self.tenure.longest_ttl_ms()
    }

    /// What the phases before have decided.
    ///
    /// # Errors
    /// The decoder's reason, for what another version has written.
    pub fn extra<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        T::deserialize(&self.extra)
    }

    /// To be asked right before every effect.
    ///
    /// # Errors
    /// [`Superseded`]: nothing may be done any more.
    pub fn check(&self) -> Result<(), Superseded> {
        let held = self.tenure.stands().then(|| self.tenure.epoch());
        let view = self.view.borrow();
        if view.record(&self.guard.scope).is_some_and(|record| self.guard.permits(held, record)) {
            return Ok(());
        }
        let Guard { scope, epoch, phase, .. } = &self.guard;
        Err(Superseded { scope: scope.to_string(), epoch: *epoch, phase: phase.clone() })
    }

    /// Tells how far the run is: so many of `total` units.
    pub async fn progress(&self, done: u64, total: u64, unit: &'static str) {
        // Without its driver the run is about to end.
        drop(self.inputs.send(Input::Progress(self.guard.clone(), done, total, unit)).await);
    }

    /// Orders something of a member, the own one included.
    ///
    /// Cancel-safe: dropping the future takes the order back as far as it was not carried out.
    ///
    /// # Errors
    /// [`OrderFailed`].
    pub async fn order(&self, to: &MemberId, act: LeaderAct, deadline: Instant) -> Result<(), OrderFailed> {
        self.check()?;
        let Guard { operation, phase, undo, .. } = self.guard.clone();
        let order = LeaderOrder { head: self.guard.order(), operation, phase, undo, act };
        let call = Call { request: Request::Order(order), body: Bytes::new(), deadline, trace: self.trace };
        self.members.call(to, call).await?;
        Ok(())
    }
}
