//! What an applier is configured with, what it begins with, what it is told, and what it wants done.
//!
//! Rule: all [`Effect::Persist`] of a drain are durable, in one transaction, before any other effect of it is carried out;
//! that a request is noted before it is sent rests on this alone. Must not know: SQL, HTTP, what bodies say.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::notes::{Note, Span, TaskRef};
use super::verdict::Flaw;
use crate::proto::journal::Kind;
use crate::proto::journal::log::Bounds;
use crate::types::{ShardId, TaskPart};

/// Of every applier of a member.
#[derive(Debug, Clone)]
pub struct Config {
    /// What one request to the node carries at most; a single entry may weigh more.
    pub payload: Bounds,
    /// Tasks that the node may have under way.
    pub under_way: usize,
    /// How long a small request to a node that has nothing to do waits for more; behind each that is under way twice as long.
    pub gather: Duration,
    /// Heads held of one shard.
    pub heads: usize,
    /// Heads held of all shards, as long as each may have 16.
    pub heads_total: usize,
    /// Ended requests that are remembered, to find out how far back a node that lost its memory went.
    pub history: usize,
    /// Tasks of one page of the node's list.
    pub page: u32,
    /// Whether the node keeps `customMetadata` (since v1.26), so that a task tells which request made it.
    pub tags: bool,
    /// Between two looks at the node's tasks, at first; it grows by a quarter up to `poll_max`, so that an end is seen late by
    /// little of the time that the task took.
    pub poll_min: Duration,
    /// The longest such time.
    pub poll_max: Duration,
    /// For so long a request whose answer did not come may still reach the queue.
    pub settle: Duration,
    /// The first pause after the member's own trouble; it doubles up to `retry_max`.
    pub retry_min: Duration,
    /// The longest such pause.
    pub retry_max: Duration,
    /// So many committed entries not applied, of shards that this member leads, are too many: see [`Effect::Pressure`].
    pub behind: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            payload: Bounds { entries: 4_096, bytes: 32 << 20 },
            under_way: 8,
            gather: Duration::from_millis(5),
            heads: 1_024,
            heads_total: 32_768,
            history: 64,
            page: 64,
            tags: true,
            poll_min: Duration::from_millis(10),
            poll_max: Duration::from_millis(100),
            settle: Duration::from_secs(5),
            retry_min: Duration::from_millis(200),
            retry_max: Duration::from_secs(30),
            behind: 10_000,
        }
    }
}

/// What the applier knows of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub seq: u64,
    /// What it does.
    pub kind: Kind,
    /// The length of its body.
    pub weight: usize,
    /// The store has it among [`Rows::failed`]: it is passed over.
    pub failed: bool,
    /// Whose part it is. Parts of one number that a task has for several shards have the same filter or function.
    pub part: Option<TaskPart>,
}

/// What a shard's copy needs before entries can be applied to it again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Need {
    /// Nothing.
    #[default]
    Nothing,
    /// The documents that these entries name, as the primary has them.
    Take(BTreeSet<u64>),
    /// To be made anew.
    Rebuild,
}

/// The durable state of one shard's copy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneRow {
    /// Up to here the node has applied.
    pub applied: u64,
    /// The last conditional entry that was sent to the node and not undone.
    pub conditional: u64,
    /// Entries up to here came with the copy.
    pub base: u64,
    /// The node must remember this note, or documents are missing that no entry brings.
    pub made: u64,
    /// The last entry that the node may have done, so far as it is behind `applied` and no note tells.
    pub furthest: u64,
    /// Entries not applied that the primary was said to have failed when the node here may have done them already.
    pub told: BTreeSet<u64>,
    /// What stands in the way.
    pub need: Need,
    /// The copy came from another member, and has not been compared with any. A process that begins with it has it made anew.
    #[serde(default)]
    pub unchecked: bool,
    /// It must be made anew for nothing but that an edit may have been done twice: it may stay if nobody has a better one.
    #[serde(default)]
    pub doubtful: bool,
}

/// A copy of a shard that something else than entries has made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copied {
    /// It is as after this entry.
    pub applied: u64,
    /// The last task of the node that made it, which has ended.
    pub by: Option<TaskRef>,
    /// Entries up to there whose verdict is that they failed.
    pub failed: BTreeMap<u64, Flaw>,
    /// It is to be compared with another first, as both are after this entry: until [`super::Applier::handle_checked`] nothing
    /// behind it is applied, and the copy is not to be served.
    pub compare_at: Option<u64>,
}

/// What of a shard waits although it could go to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Everything from the first conditional entry on that never went.
    Conditional,
    /// Everything that has not gone.
    Here,
}

/// How one shard's copy stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// Up to here the node has applied.
    pub applied: u64,
    /// The last conditional entry that went to the node and was not undone.
    pub conditional: u64,
    /// The node may have done nothing behind `applied`, and nothing of the shard is under way.
    pub quiet: bool,
    /// The copy is what was noted: the node is known to have its memory, and nothing is to be made anew, taken or compared.
    pub sound: bool,
    /// The copy must be made anew.
    pub rebuild: bool,
    /// It must, but is of use if nobody has a better one: see [`super::Applier::handle_kept`].
    pub doubtful: bool,
    /// Nothing of the shard is on its way to the node, or in its queue.
    pub idle: bool,
    /// Something holds it up: see [`super::Applier::handle_stop`].
    pub stopped: bool,
}

/// The durable state of an applier.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stored {
    /// By shard.
    pub lanes: BTreeMap<ShardId, LaneRow>,
    /// By number.
    pub notes: BTreeMap<u64, Note>,
    /// The number of the next note; none was ever used twice.
    pub next_note: u64,
}

/// What is to be made durable, whole or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    /// Shards in their new state; `None`: not held any more.
    pub lanes: BTreeMap<ShardId, Option<LaneRow>>,
    /// Notes in their new state; `None`: gone.
    pub notes: BTreeMap<u64, Option<Note>>,
    /// The number of the next note.
    pub next_note: u64,
    /// Entries whose verdict is that they failed, and why; kept as long as the journal keeps entries.
    pub failed: BTreeMap<(ShardId, u64), Flaw>,
    /// Entries of which that is not so any more; none is in both.
    pub unfailed: BTreeSet<(ShardId, u64)>,
    /// How many documents entries have changed, by the node's count; of entries that went as one, it stands with the first.
    pub counted: BTreeMap<(ShardId, u64), u64>,
}

impl Rows {
    pub(super) fn is_empty(&self) -> bool {
        let outcomes = self.failed.is_empty() && self.unfailed.is_empty() && self.counted.is_empty();
        self.lanes.is_empty() && self.notes.is_empty() && outcomes
    }
}

impl Stored {
    /// Takes rows over, as a store does.
    pub fn put(&mut self, rows: &Rows) {
        for (shard, row) in &rows.lanes {
            match row {
                Some(row) => self.lanes.insert(*shard, row.clone()),
                None => self.lanes.remove(shard),
            };
        }
        for (id, note) in &rows.notes {
            match note {
                Some(note) => self.notes.insert(*id, note.clone()),
                None => self.notes.remove(id),
            };
        }
        self.next_note = self.next_note.max(rows.next_note);
    }
}

/// One request to the node that enqueues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The number of its note: the task is tagged with it (and with the store's id) as `customMetadata`.
    pub note: u64,
    /// What all its entries do.
    pub kind: Kind,
    /// The entries, in this order; empty ones among them are passed over.
    pub spans: Vec<Span>,
    /// Entries in them whose verdict is known: they are left out.
    pub without: BTreeSet<(ShardId, u64)>,
}

/// What became of such a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The node has put this task in its queue.
    Taken(TaskRef),
    /// The node refused it with an error (a status below 500) and did nothing.
    Refused(Flaw),
    /// It certainly did not reach the node.
    NotSent,
    /// Nobody knows.
    Unknown,
}

/// How a task stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// `enqueued` or `processing`.
    Waiting,
    /// Done.
    Succeeded,
    /// It did nothing, because of this.
    Failed(Flaw),
    /// An operator stopped it; it did nothing.
    Canceled,
}

/// Which request made a task, as its `customMetadata` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// It has none.
    None,
    /// A request of this store's applier, by its note.
    Note(u64),
    /// Something else.
    Other,
}

/// A task of this index that changes documents, in the node's list. Tasks of other types are not told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Which.
    pub task: TaskRef,
    /// The batch in which it was done.
    pub batch: Option<u32>,
    /// `documentAdditionOrUpdate`, `documentDeletion`, `documentEdition`.
    pub group: Group,
    /// Who made it.
    pub tag: Tag,
    /// How it stands.
    pub status: Status,
    /// When the node began with it, in nanoseconds since 1970, if it says so: a node that dies at work begins anew.
    pub began: Option<i64>,
    /// `deletedDocuments` or `editedDocuments` of its details.
    pub count: Option<u64>,
}

/// The type that a task has on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Group {
    /// `documentAdditionOrUpdate`.
    Addition,
    /// `documentDeletion`.
    Deletion,
    /// `documentEdition`.
    Edition,
}

impl Group {
    /// The type of the task that a request of this kind makes.
    pub fn of(kind: Kind) -> Self {
        match kind {
            Kind::Set { .. } | Kind::Merge { .. } => Self::Addition,
            Kind::Delete | Kind::DeleteByFilter | Kind::Clear | Kind::Empty | Kind::Refusal | Kind::Home => {
                Self::Deletion
            }
            Kind::Edit => Self::Edition,
        }
    }
}

/// One page of the node's list of this index's tasks, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Those that change documents.
    pub tasks: Vec<Listed>,
    /// The highest uid on the page, of whatever type.
    pub newest: Option<u32>,
    /// Where the next page begins.
    pub next: Option<u32>,
}

/// What the node has under one uid, and when it last deleted tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Probed {
    /// The `enqueuedAt` of the task of this uid, of whatever index.
    pub enqueued_at: Option<String>,
    /// The newest `taskDeletion` that has ended, read after that. A node keeps it whatever it deletes.
    pub deletion: Option<TaskRef>,
}

/// What an applier wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// To be made durable before any other effect of the drain is carried out.
    Persist(Rows),
    /// To be sent to the node, answered once by [`super::Applier::handle_answered`]. No other request of the applier is under
    /// way, and its note is durable.
    Enqueue(Request),
    /// A page of the list of the index's tasks is to be read, for [`super::Applier::handle_page`] or
    /// [`super::Applier::handle_unread`].
    List {
        /// To be given back.
        ticket: u64,
        /// The uid that it begins with; `None`: the newest.
        from: Option<u32>,
        /// At most so many tasks.
        limit: u32,
    },
    /// One task, of whatever index, is to be looked for, for [`super::Applier::handle_probed`] or
    /// [`super::Applier::handle_unread`].
    Probe {
        /// To be given back.
        ticket: u64,
        /// Which.
        uid: u32,
    },
    /// Heads of committed entries are to be read from the journal, for [`super::Applier::handle_heads`].
    Load {
        /// To be given back.
        ticket: u64,
        /// Of which shard.
        shard: ShardId,
        /// From here on.
        from: u64,
        /// At most so many.
        entries: usize,
    },
    /// The node has applied everything up to `to`; durable by now. For `Replica::handle_applied`.
    Applied {
        /// Of which shard.
        shard: ShardId,
        /// Up to here.
        to: u64,
    },
    /// The node has lost what it had behind `to`, or has it in the wrong order: the shard may not be served until
    /// everything is applied again. For `Replica::handle_unapplied`.
    Unapplied {
        /// Of which shard.
        shard: ShardId,
        /// Up to here.
        to: u64,
    },
    /// This member is the shard's primary, and this is the entry's verdict; durable by now. For the other replicas and the
    /// task's home.
    Verdict {
        /// Of which shard.
        shard: ShardId,
        /// Which entry.
        seq: u64,
        /// Why it failed.
        flaw: Flaw,
    },
    /// The entry failed here: its primary is to be asked for its verdict, for [`super::Applier::handle_verdict`]. Asked again
    /// until it comes.
    AskVerdict {
        /// Of which shard.
        shard: ShardId,
        /// Which entry.
        seq: u64,
    },
    /// The node may have done this entry twice, and there is no other copy of the shard from which this one could be made anew: for
    /// the log.
    Doubtful {
        /// Of which shard.
        shard: ShardId,
        /// Which entry.
        seq: u64,
    },
    /// Documents of these entries should have been taken from a primary, but this copy is the only one there is, so it stays as it
    /// is: for the log.
    Untaken {
        /// Of which shard.
        shard: ShardId,
        /// Which entries.
        seqs: BTreeSet<u64>,
    },
    /// The verdict of this member's node is not the primary's; to be counted.
    Mismatch {
        /// Of which shard.
        shard: ShardId,
        /// Which entry.
        seq: u64,
    },
    /// The documents that these entries name are to be made the same as at the primary, which gives them only if it has
    /// applied these entries and no conditional entry of the shard behind the first of them. The driver writes them to the node itself
    /// (tagged otherwise), waits for their tasks, and says [`super::Applier::handle_taken`]. Nothing else is sent meanwhile. It
    /// may be asked for again after a restart.
    Take {
        /// Of which shard.
        shard: ShardId,
        /// Which entries.
        seqs: BTreeSet<u64>,
    },
    /// The copy of this shard must be made anew; [`super::Applier::handle_shard`] ends it. Until then nothing is applied to it.
    Rebuild {
        /// Of which shard.
        shard: ShardId,
    },
    /// Trouble of this member's own: for log and status. It tries again by itself.
    Trouble {
        /// What the node says.
        flaw: Flaw,
        /// The one entry that stands alone, if it is down to one: people have to look.
        alone: Option<(ShardId, u64)>,
    },
    /// Whether what the node has is what was noted. While it is not, the index is not served.
    Trusted(bool),
    /// Whether more waits than should of the shards that this member leads; while it does, writes of the index are refused.
    Pressure(bool),
}
