//! What a home's primary is configured with, what it is told, and what it wants done.
//!
//! Rule: everything that must outlive the primary is an entry of the journal; effects but [`Effect::Append`] may be lost,
//! repeated and reordered, and so may what they bring about. Must not know: SQL, sockets.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::filter::Filter;
use super::super::query::Action;
use super::super::task::{Head, Shown};
use super::super::when::When;
use super::entry::HomeEntry;
use super::parts::PartRef;
use super::state::Swept;
use crate::types::limits::HOMES;
use crate::types::{MemberId, PhysicalIndex, TaskPart, TaskUid};

/// Most items of one report.
pub const REPORT_ITEMS_MAX: usize = 8_192;
/// Most tasks of one call of webhooks.
pub const HOOK_TASKS_MAX: usize = 100;

/// Of every home of a mesh.
#[derive(Debug, Clone)]
pub struct Config {
    /// How many homes there are; the home of a task is its number modulo this.
    pub homes: u16,
    /// A task that so long after its head, or after a new primary, has parts that nobody has heard of is given up. Longer
    /// than the longest time that a sender repeats its parts.
    pub incomplete_after: Duration,
    /// Who has not reported for so long is asked; doubles up to 16 times itself.
    pub ask_after: Duration,
    /// An entry whose append was not answered is appended again.
    pub append_again: Duration,
    /// A task that ended so long ago is forgotten.
    pub task_retention: Duration,
    /// How often such tasks are looked for.
    pub forget_every: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            homes: HOMES,
            incomplete_after: Duration::from_secs(60),
            ask_after: Duration::from_millis(500),
            append_again: Duration::from_millis(500),
            task_retention: Duration::from_secs(7 * 24 * 3_600),
            forget_every: Duration::from_secs(60),
        }
    }
}

/// Names a request of the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// What became of a part at one replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Code and message, if it failed; the same at every replica.
    pub error: Option<(String, String)>,
    /// Documents that it changed: of its own shard alone.
    pub changed: u64,
    /// When the node began.
    pub started: When,
    /// When the node had done it.
    pub finished: When,
}

/// What a replica says of a part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Said {
    /// It stands in the journal and is committed.
    There,
    /// The node has applied it, or never will because it failed.
    Done(Done),
}

/// What a member says, by itself or because it was asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Of parts; at most [`REPORT_ITEMS_MAX`].
    pub parts: Vec<(TaskUid, PartRef, Said)>,
    /// Heads of tasks, as their parts name them; for [`Effect::WantHead`].
    pub heads: Vec<(TaskUid, Head)>,
}

/// Whether a part, or an order, was refused for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// It will never be done: that is durable.
    Refused,
    /// It is there, or done.
    There,
}

/// What became of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// Under this number an entry with this part stands committed: this one, or one before it.
    Committed(u64),
    /// Not now.
    Later,
    /// Never.
    Refused,
}

/// The answer to a request of the driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The head is kept for ever. With all parts committed as parts, that is what a `202` promises.
    Taken,
    /// Under this number another task is kept, or was: nothing of this one may be acknowledged.
    Other,
    /// This number stands for no task, for ever.
    Void,
    /// What the key stands for: the task, and whether the body is the same. Another body is a conflict.
    Settled {
        /// The task.
        uid: TaskUid,
        /// The hash is the same.
        same_body: bool,
    },
    /// The task has ended; or there is none.
    Ended,
    /// What a sweep found here. Final once nothing waits.
    Swept(Swept),
    /// Too much is under way; nothing was done.
    Busy,
    /// It breaks the bounds; nothing was done.
    Refused,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// To be written to this home's journal, for [`super::Home::handle_appended`].
    Append {
        /// Under this part.
        part: TaskPart,
        /// What.
        entry: Box<HomeEntry>,
    },
    /// A request is answered.
    Answer {
        /// Which.
        op: OpId,
        /// How.
        answer: Answer,
    },
    /// A member is to report on these parts.
    Ask {
        /// Who.
        member: MemberId,
        /// Of which task.
        uid: TaskUid,
        /// Of which index.
        index: PhysicalIndex,
        /// Which.
        parts: Vec<PartRef>,
    },
    /// A member has reported on a task without a head, and is to report the head that its part names.
    WantHead {
        /// Who.
        member: MemberId,
        /// Which task.
        uid: TaskUid,
    },
    /// These tasks are known here, or over: the member need not repeat what it reported of them by itself.
    Heard {
        /// Who.
        member: MemberId,
        /// Which.
        uids: BTreeSet<TaskUid>,
    },
    /// Who is to apply what of this index is to be told: [`super::Home::handle_awaited`].
    WantAwaited(PhysicalIndex),
    /// Each of these parts is to be refused for ever by the primary of its shard, unless it is there; for
    /// [`super::Home::handle_refusals`]. Refusing again is answered as before. The task is being given up, or canceled:
    /// that is durable.
    Refuse {
        /// Of which task.
        uid: TaskUid,
        /// Of which index.
        index: PhysicalIndex,
        /// Which.
        parts: Vec<PartRef>,
    },
    /// The same for a task that is an order; for [`super::Home::handle_order_refusal`].
    RefuseOrder {
        /// Of which task.
        uid: TaskUid,
        /// It is waited for no longer for members that are away: whatever of it they had not begun by now they never will.
        late: bool,
    },
    /// A home is to sweep; for [`super::Home::handle_sweep`] there, and [`super::Home::handle_swept`] here.
    Sweep {
        /// Which home.
        home: u16,
        /// For which task.
        by: TaskUid,
        /// What for.
        action: Action,
        /// Which tasks.
        filter: Box<Filter>,
    },
    /// Webhooks are to be told; then, told or given up, [`super::Home::handle_hooked`].
    Hook(Vec<(TaskUid, Shown)>),
    /// The homes of these tasks are to be asked which they don't have; for [`super::Home::handle_gone`].
    AskGone(BTreeSet<TaskUid>),
    /// A part was reported as applied that was refused for ever; for the log, and for alarm.
    Broken {
        /// Of which task.
        uid: TaskUid,
        /// Which.
        part: PartRef,
    },
}
