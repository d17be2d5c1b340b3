//! What a replica is configured with, what it begins with, and what it wants done.
//!
//! Rule: stores are carried out in the order of their tokens, each whole or not at all, and told by
//! [`super::Replica::handle_stored`] when they are durable. A replica sends nothing that rests on a store before it was told
//! so; its other effects may be carried out at once, in parallel with the stores of the same drain. If a store fails, the
//! replica must be dropped: it is ahead of its store, and its reign is over. Must not know: SQL, sockets.

use std::collections::BTreeMap;
use std::time::Duration;

use super::entry::Entry;
use super::log::{Bounds, StoredLog};
use super::message::Message;
use super::record::Change;
use crate::types::{Epoch, Holder, MemberId, Position, ReplicaId, StoreId, TaskPart};

/// Of every replica of a mesh.
#[derive(Debug, Clone)]
pub struct Config {
    /// The least size of an in-sync set; `None`: see [`super::record::default_min_in_sync`].
    pub min_in_sync: Option<usize>,
    /// A member of the set that leaves an append unanswered for so long leaves the set.
    pub in_sync_lag: Duration,
    /// The same for one that is suspected to be gone.
    pub suspect_lag: Duration,
    /// How long one that was too slow stays outside; doubles each time.
    pub quiet_time: Duration,
    /// When an append without an answer is sent again; doubles up to 8 times itself.
    pub resend: Duration,
    /// When a change of the record that was asked for and did not come is asked for again.
    pub ask_again: Duration,
    /// How long news of what is committed waits for an append that can carry it.
    pub tell_commit: Duration,
    /// What is kept in memory.
    pub memory: Bounds,
    /// What may be under way to one replica, and not committed at the primary.
    pub window: Bounds,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            min_in_sync: None,
            in_sync_lag: Duration::from_millis(2_000),
            suspect_lag: Duration::from_millis(300),
            quiet_time: Duration::from_secs(10),
            resend: Duration::from_millis(200),
            ask_again: Duration::from_millis(1_000),
            tell_commit: Duration::from_millis(5),
            memory: Bounds { entries: 1_024, bytes: 4 << 20 },
            window: Bounds { entries: 1_024, bytes: 16 << 20 },
        }
    }
}

/// A member as it is seen to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alive {
    /// Its store.
    pub store: StoreId,
    /// Its process.
    pub start: u64,
}

/// The members that this one sees to live, itself included.
pub type Sight = BTreeMap<MemberId, Alive>;

/// The durable state of one replica.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stored {
    /// The highest epoch that was stored.
    pub epoch: Epoch,
    /// The journal.
    pub log: StoredLog,
    /// Up to here the node has applied.
    pub applied: u64,
    /// The copy must be made anew, or is being made.
    pub rebuild: bool,
}

/// A reign at rest: [`super::Replica::rest`] gives it when a primary may be taken out of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rest {
    pub(super) epoch: Epoch,
}

/// Names a write of the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// Who orders the writes, as far as the replica knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    /// `None`: nobody it knows.
    pub primary: Option<Holder>,
    /// Under which epoch; a hint of a higher one is better.
    pub epoch: Epoch,
}

/// What became of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Every replica in sync has stored what stands under the part; it is never lost.
    Committed {
        /// Its number.
        seq: u64,
        /// A refusal stands there: the part itself will never be done. Otherwise the part stands there, also for whoever came
        /// to refuse it.
        refused: bool,
        /// How many are in sync.
        in_sync: usize,
        /// How many copies the shard should have.
        copies: usize,
    },
    /// Another member orders the writes; this request appended nothing.
    NotPrimary(Hint),
    /// Fewer members are in sync than must be; this request appended nothing.
    NoQuorum,
    /// It is too large, or nothing that may be written; this request appended nothing, and never will.
    Refused,
    /// As much is under way as may be, or the reign has only begun; this request appended nothing.
    Busy,
    /// It stands in this replica's journal, which is not the primary's any more. Whether it is ever committed, the next
    /// primary knows: the same part is to be sent to that one.
    Unknown(Hint),
}

/// What is to be made durable, whole or not at all; in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    /// The whole journal goes and begins anew behind this; applied up to there, and the copy is whole again. The parts of
    /// tasks that came with the snapshot are durable with it.
    pub begin_at: Option<Position>,
    /// The highest epoch.
    pub epoch: Epoch,
    /// Entries from this number on go.
    pub drop_from: Option<u64>,
    /// Entries are put behind the last.
    pub entries: Vec<Entry>,
    /// Known to be committed.
    pub commit: u64,
    /// Entries up to this position may go, at the beginning; that they were there is remembered by part.
    pub floor: Option<Position>,
    /// The copy must be made anew.
    pub rebuild: bool,
}

/// What a replica wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// To be made durable, and told by this token.
    Store {
        /// Grows with every store.
        token: u64,
        /// What.
        rows: Rows,
    },
    /// To another replica.
    Send {
        /// To whom.
        to: MemberId,
        /// What.
        message: Message,
    },
    /// To the sender of a write.
    Answer {
        /// Which.
        op: OpId,
        /// What became of it.
        answer: Answer,
    },
    /// Entries up to here are committed, and durable here: they may be applied.
    Committed {
        /// Up to here.
        to: u64,
    },
    /// This replica orders the shard's writes from here on. Entries are taken from the next store on.
    Reigns {
        /// Under this epoch.
        epoch: Epoch,
    },
    /// It does not any more.
    Deposed {
        /// The epoch that is over for it.
        epoch: Epoch,
    },
    /// A change of the record that this replica asks for; no answer is awaited but a newer record. It may be written with
    /// changes of other shards, checked by [`super::record::check`].
    Ask(Change),
    /// Entries are to be read from the store for [`super::Replica::handle_loaded`].
    Load {
        /// For whom.
        member: MemberId,
        /// From here on.
        from: u64,
        /// At most so many.
        entries: usize,
        /// Of at most so many bytes, but at least one entry.
        bytes: usize,
    },
    /// A part is to be looked for in the store, also among those whose entries were dropped at the beginning, for
    /// [`super::Replica::handle_found`].
    Find {
        /// To be given back.
        epoch: Epoch,
        /// Which.
        part: TaskPart,
    },
    /// This member needs a snapshot of the shard before it can go on.
    NeedsSnapshot {
        /// Who.
        replica: ReplicaId,
    },
    /// This replica must be made anew from a snapshot; [`super::Replica::handle_snapshot`] ends it.
    Rebuild,
    /// A peer contradicts itself, or breaks the bounds; for the log. Nothing was done.
    Broken {
        /// Who.
        member: MemberId,
        /// What, for people.
        what: &'static str,
    },
}
