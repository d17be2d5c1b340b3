//! Traffic classes on the two connections, and how many calls of each may be under way.
//!
//! Rule: no class can use up what another needs: each has its own limit where calls begin and where they are served, and
//! all together stay below the streams that a connection allows. Must not know: what calls are for.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::endpoint;
use crate::wire::verbs::Class;

/// The two connections to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Ledger, leases, records, probes and gossip.
    Control,
    /// All else.
    Data,
}

impl Kind {
    /// The connection that calls of a class travel on.
    pub fn of(class: Class) -> Self {
        if class == Class::Control { Self::Control } else { Self::Data }
    }

    /// For logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Data => "data",
        }
    }
}

/// One number for each traffic class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassLimits {
    /// Of [`Class::Control`].
    pub control: usize,
    /// Of [`Class::Replicate`].
    pub replicate: usize,
    /// Of [`Class::Query`].
    pub query: usize,
    /// Of [`Class::Bulk`].
    pub bulk: usize,
}

impl ClassLimits {
    /// Calls to one peer that are under way at once; more wait.
    pub const CALLED: Self = Self { control: 64, replicate: 64, query: 256, bulk: 8 };
    /// Calls of one peer that are served at once; more are refused. Twice what a peer sends, because a call may be over
    /// there before it is here.
    pub const SERVED: Self = Self { control: 128, replicate: 128, query: 512, bulk: 16 };

    /// The number for one class.
    pub const fn of(&self, class: Class) -> usize {
        match class {
            Class::Control => self.control,
            Class::Replicate => self.replicate,
            Class::Query => self.query,
            Class::Bulk => self.bulk,
        }
    }
}

const _: () = assert!(ClassLimits::SERVED.control < endpoint::CONTROL_STREAMS_MAX as usize);
const _: () = assert!(
    ClassLimits::SERVED.replicate + ClassLimits::SERVED.query + ClassLimits::SERVED.bulk
        < endpoint::DATA_STREAMS_MAX as usize
);

/// A semaphore for each class.
pub(super) struct ClassGates([Arc<Semaphore>; 4]);

impl ClassGates {
    pub(super) fn new(limits: &ClassLimits) -> Self {
        let gate = |class| Arc::new(Semaphore::new(limits.of(class)));
        Self([gate(Class::Control), gate(Class::Replicate), gate(Class::Query), gate(Class::Bulk)])
    }

    pub(super) fn of(&self, class: Class) -> &Arc<Semaphore> {
        match class {
            Class::Control => &self.0[0],
            Class::Replicate => &self.0[1],
            Class::Query => &self.0[2],
            Class::Bulk => &self.0[3],
        }
    }
}
