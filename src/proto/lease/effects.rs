//! What the lease core is told at its start, and what it asks of its driver.
//!
//! Must not know: how any of it is carried out.

use std::time::Duration;

use crate::proto::env::Instant;
use crate::proto::register::{Change, Read};
use crate::types::{Epoch, LeaseSign, Scope};

/// The section `leader_election` of the configuration, and who this is.
#[derive(Debug, Clone)]
pub struct Config {
    /// False: this member leads nothing. It holds its own `alive:` lease all the same, which leads nothing either.
    pub enabled: bool,
    /// TTL of the leases that this member takes, within `limits::LEASE_TTL_*`.
    pub ttl_ms: u64,
    /// All leases of the member are renewed together this often; well below the TTL.
    pub renew_interval: Duration,
}

/// Why a lease is no longer held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LostWhy {
    /// It could not be renewed in time.
    Expired,
    /// It was given back.
    Released,
    /// Somebody holds a higher epoch: only a clock that stood still lets it come to this.
    Fenced,
}

/// Whether a member may lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eligible {
    /// It is active, and its copies of the records are not stale.
    Yes,
    /// They are stale: it is cut off, and loses what it leads before its leases are over.
    Stale,
    /// It is not in service.
    No,
}

/// What the driver does, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Store the scope's highest epoch. All of one step are stored before anything else of that step is done.
    Persist {
        /// The scope.
        scope: Scope,
        /// Its highest epoch so far.
        epoch: Epoch,
    },
    /// The member holds the scope from `at` on. Its epoch has been stored (the `Persist` before it). Never given for a
    /// hold that is already over at `at`.
    Became {
        /// The scope.
        scope: Scope,
        /// Under this epoch; a scope lost and held again has a higher one.
        epoch: Epoch,
        /// When the core knew.
        at: Instant,
        /// Unless it is renewed.
        until: Instant,
    },
    /// The member does not hold the scope from `at` on, which may lie before this step: everything under the epoch ends
    /// now. After `Released` the driver says [`LeaseCore::handle_ended`](super::LeaseCore::handle_ended) when it has.
    Lost {
        /// The scope.
        scope: Scope,
        /// The epoch that is over.
        epoch: Epoch,
        /// The end of the hold.
        at: Instant,
        /// Why.
        why: LostWhy,
    },
    /// Give these to the ledger together, so that they travel in one message.
    Changes(Vec<Change>),
    /// Read these from the majority.
    Reads(Vec<Read>),
    /// Gossip this as what the member holds, instead of what was gossiped before.
    Gossip(Vec<LeaseSign>),
}

/// What has happened since the process began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Scopes that came to be held.
    pub acquisitions: u64,
    /// Renewals that the ledger took in time.
    pub renewals: u64,
    /// Holds that ended otherwise than by release, or because the member had become stale.
    pub losses: u64,
}
