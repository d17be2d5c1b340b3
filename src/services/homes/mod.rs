//! The homes of tasks, driven with I/O: who keeps a task, what members tell its home, and how anybody finds it.
//!
//! | file | does |
//! | --- | --- |
//! | [`call`] | what is asked of homes and members, as it travels |
//! | [`client`] | finds the primary of a home, and asks until it answers |
//! | [`submit`] | a client's write: its head to its home, its parts to their shards |
//! | [`list`] | one task, and lists of tasks |
//! | [`driver`] | the one task that runs the homes of which this member holds a copy |
//! | `slot` | one home: its state, its reign, what is read and stored of it |
//! | `effects` | what a home wants done |
//! | `awaited` | who is to apply what of an index |
//! | [`webhooks`] | tells a webhook of tasks that ended |
//! | [`teller`] | what this member can say of parts: from its journals and its applier |
//! | [`report`] | tells homes what this member's applier has applied, until they have heard |
//! | [`orders`] | orders that this process carries out, and which of them will never be |
//! | [`found`] | makes the reserved index whose shards the homes are |
//! | `snapshot` | a copy of a home that must be made anew |
//! | `copies` | what other members' copies are made of |
//!
//! A question may be lost, repeated and asked of the wrong member: each is safe to ask again, and is asked again until its
//! deadline. Must not know: what a part's payload says, the node, HTTP routes.

mod awaited;
pub mod call;
pub mod client;
mod copies;
pub mod driver;
mod effects;
pub mod found;
pub mod list;
pub mod orders;
pub mod report;
mod slot;
mod snapshot;
pub mod submit;
pub mod teller;
#[cfg(test)]
mod tests;
pub mod webhooks;

pub use client::{HomeError, Homes};
pub use driver::{Config, Driver, Hook, Parts};
pub use orders::Orders;
pub use report::Reporter;
pub use teller::{Outcomes, Teller};

use std::time::Duration;

use crate::proto::placement::shard_of;
use crate::proto::tasks::When;
use crate::rt::clock;
use crate::types::limits::HOMES;
use crate::types::{JournalKey, PhysicalIndex, ShardId, TaskUid};

/// Between two attempts of a question.
const PAUSE: Duration = Duration::from_millis(50);
/// How long one attempt may take: an answer may be lost with its primary.
const ATTEMPT: Duration = Duration::from_secs(2);

/// The home of a task.
pub fn home_of(uid: TaskUid) -> u16 {
    let home = uid.0 % u32::from(HOMES);
    u16::try_from(home).unwrap_or_default()
}

/// The home in which an `Idempotency-Key` is settled.
pub fn home_of_key(key: &str) -> u16 {
    shard_of(key, HOMES).0
}

/// The journal of a home.
fn journal_of(home: u16) -> JournalKey {
    JournalKey { index: PhysicalIndex::of_tasks(), shard: ShardId(home) }
}

/// Now, by the wall clock.
pub fn wall() -> When {
    When::since_1970(clock::since_1970())
}
