//! The receiving end of a leader's orders.
//!
//! Rule: nothing is done before the order's epoch is the highest that was ever heard of its scope, the record that it names
//! is known at its version or a newer one, and that record calls for it; nothing while this member's records may be old;
//! before what can't be taken back the record is read from the majority. Must not know: who sends orders, how a kind goes about its phases.

use std::sync::Arc;

use super::run::Runner;
use crate::proto::lease::OrderRefusal;
use crate::proto::operation::{Guard, Kind, record_key};
use crate::services::leases::{LeaseHandle, OrderError};
use crate::services::records::Records;
use crate::telemetry::metrics::Metrics;
use crate::types::{MemberId, OperationRecord, RecordKey};
use crate::wire::verbs::{LeaderAct, LeaderOrder, RecordAt, Refusal};

/// The service.
#[derive(Debug)]
pub struct Orders {
    kinds: Vec<&'static Kind>,
    leases: LeaseHandle,
    records: Records,
    metrics: Arc<Metrics>,
}

impl Orders {
    /// Orders of operations of these kinds are taken.
    pub fn new(runners: &[Arc<dyn Runner>], leases: LeaseHandle, records: Records, metrics: Arc<Metrics>) -> Self {
        Self { kinds: runners.iter().map(|r| r.kind()).collect(), leases, records, metrics }
    }

    /// Checks an order of `from` and carries it out.
    ///
    /// # Errors
    /// [`Refusal`]; nothing was done then.
    pub async fn receive(&self, from: &MemberId, order: &LeaderOrder) -> Result<(), Refusal> {
        let done = match self.check(order).await {
            Ok(()) => self.carry_out(&order.act).await,
            Err(refusal) => Err(refusal),
        };
        let outcome = match &done {
            Ok(()) => "done",
            Err(Refusal::StaleOrder(_)) => "stale",
            Err(Refusal::NotCalledFor(_)) => "not_called_for",
            Err(Refusal::StaleRecord { .. }) => "behind",
            Err(_) => "refused",
        };
        self.metrics.operation_orders.with_label_values(&[outcome]).inc();
        if let Err(refusal) = &done {
            let (scope, epoch, operation) = (&order.head.scope, order.head.epoch, &order.operation);
            tracing::warn!(%from, %scope, %epoch, operation, %refusal, "an order was not carried out");
        }
        done
    }

    async fn check(&self, order: &LeaderOrder) -> Result<(), Refusal> {
        let head = &order.head;
        let key = RecordKey::new(&*head.record).map_err(|e| Refusal::Malformed(e.to_string()))?;
        if head.record != record_key(&head.scope) {
            return Err(Refusal::Malformed(format!("{} is not the record of {}", head.record, head.scope)));
        }
        let mut checked = self.leases.check_order(head.clone()).await;
        if let Err(OrderError::Refused(OrderRefusal::Behind { .. })) = checked {
            self.records.confirm(&RecordAt { key: key.clone(), version: head.version }).await?;
            checked = self.leases.check_order(head.clone()).await;
        }
        checked.map_err(|error| match error {
            OrderError::Refused(OrderRefusal::Stale { .. }) => Refusal::StaleOrder(error.to_string()),
            OrderError::Refused(OrderRefusal::Behind { needed, known, .. }) => Refusal::StaleRecord { needed, known },
            other => Refusal::Other(other.to_string()),
        })?;
        if self.is_destructive(&key, order)? {
            self.records.refresh(&key).await.map_err(|e| Refusal::Other(e.to_string()))?;
        }
        let record = self.record(&key)?;
        if record.epoch > head.epoch {
            let stale = format!("epoch {} of {} is over: {} has led since", head.epoch, head.scope, record.epoch);
            return Err(Refusal::StaleOrder(stale));
        }
        let guard = Guard {
            scope: head.scope.clone(),
            epoch: head.epoch,
            operation: order.operation.clone(),
            phase: order.phase.clone(),
            undo: order.undo,
            version: head.version,
        };
        if !guard.is_called_for(&record) {
            return Err(Refusal::NotCalledFor(head.record.clone()));
        }
        // A copy that is not the newest, or that was put back, may call for what is over.
        if !self.records.ledger().fresh() {
            return Err(Refusal::Other("this member can't tell whether its records are the newest".to_owned()));
        }
        Ok(())
    }

    /// Whether what the order asks for can't be taken back. An operation of a kind that this version does not know can't be
    /// judged, so nothing is done for it.
    fn is_destructive(&self, key: &RecordKey, order: &LeaderOrder) -> Result<bool, Refusal> {
        let record = self.record(key)?;
        // What is not there is not called for, as is found next.
        let Some(called) = record.current.as_ref().filter(|op| op.id == order.operation) else { return Ok(false) };
        let kind = self.kinds.iter().find(|kind| kind.name == called.kind);
        let kind = kind.ok_or_else(|| Refusal::Other(format!("operations of kind {} are not known", called.kind)))?;
        Ok(kind.is_destructive(&order.phase))
    }

    /// This member's copy of the record.
    fn record(&self, key: &RecordKey) -> Result<OperationRecord, Refusal> {
        let copies = self.records.ledger().copies();
        let Some(copy) = copies.get(key) else { return Ok(OperationRecord::default()) };
        serde_json::from_str(&copy.value).map_err(|e| Refusal::Other(format!("{key} can't be read here: {e}")))
    }

    async fn carry_out(&self, act: &LeaderAct) -> Result<(), Refusal> {
        match act {
            LeaderAct::Know(record) => self.records.confirm(record).await,
        }
    }
}
