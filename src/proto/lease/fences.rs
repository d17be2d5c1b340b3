//! The highest epoch of every scope, and the refusal of orders below it.
//!
//! An epoch is stored before it is used: [`Fences::raise`] says when it has to be. The check is not enough where nothing
//! newer has arrived, so an order also names the version of the record that calls for it, and the receiver's own copy has to
//! have reached that. Must not know: how epochs arrive, what an order is about.

use std::collections::BTreeMap;

use crate::types::limits::FENCES_MAX;
use crate::types::{Epoch, Order, RecordVersion, Scope};

/// Why an order is not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderRefusal {
    /// The sender's hold is over.
    #[error("epoch {epoch} of {scope} is over: {highest} was seen")]
    Stale {
        /// The order's scope.
        scope: Scope,
        /// The order's epoch.
        epoch: Epoch,
        /// The highest that was seen.
        highest: Epoch,
    },
    /// The receiver's copy of the record is older than the order; it fetches the record and checks again.
    #[error("version {needed} of {record} is needed, {known} is known")]
    Behind {
        /// The record.
        record: String,
        /// The version that the order names.
        needed: RecordVersion,
        /// The version of the receiver's copy.
        known: RecordVersion,
    },
    /// The member remembers as many scopes as it may, and this is another one.
    #[error("no room to remember the epoch of {scope}")]
    Full {
        /// The order's scope.
        scope: Scope,
    },
}

/// The highest epochs seen, by scope.
#[derive(Debug, Clone, Default)]
pub struct Fences {
    highest: BTreeMap<Scope, Epoch>,
}

impl Fences {
    /// Goes on from what was stored.
    pub fn recover(stored: impl IntoIterator<Item = (Scope, Epoch)>) -> Self {
        let mut fences = Self::default();
        for (scope, epoch) in stored {
            fences.raise(&scope, epoch);
        }
        fences
    }

    /// The highest epoch seen of a scope.
    pub fn highest(&self, scope: &Scope) -> Epoch {
        self.highest.get(scope).copied().unwrap_or(Epoch::ZERO)
    }

    /// Whether an epoch of the scope can be remembered.
    pub fn has_room(&self, scope: &Scope) -> bool {
        self.highest.len() < FENCES_MAX || self.highest.contains_key(scope)
    }

    /// Takes note of an epoch; true if it is the highest so far, and so has to be stored before it is used.
    pub fn raise(&mut self, scope: &Scope, epoch: Epoch) -> bool {
        let new = epoch > self.highest(scope) && self.has_room(scope);
        if new {
            self.highest.insert(scope.clone(), epoch);
        }
        new
    }

    /// Whether the order may be carried out by a member whose copy of the record has version `known`. An epoch above the
    /// highest has to be [raised](Self::raise) and stored before the order is carried out.
    ///
    /// # Errors
    /// The reason why not.
    pub fn check(&self, order: &Order, known: RecordVersion) -> Result<(), OrderRefusal> {
        let highest = self.highest(&order.scope);
        if order.epoch < highest {
            return Err(OrderRefusal::Stale { scope: order.scope.clone(), epoch: order.epoch, highest });
        }
        if !self.has_room(&order.scope) {
            return Err(OrderRefusal::Full { scope: order.scope.clone() });
        }
        if known < order.version {
            return Err(OrderRefusal::Behind { record: order.record.clone(), needed: order.version, known });
        }
        Ok(())
    }
}
