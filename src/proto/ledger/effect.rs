//! What the ledger wants done: commands in, effects and rows out.
//!
//! Rule: within one drain every [`Effect::Persist`] is made durable, in one transaction and in order, before any other
//! effect of the drain is carried out. Must not know: SQL, sockets.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::message::{Message, MessageError, Process};
use super::stores::Seen;
use crate::proto::env::Instant;
use crate::types::{Ballot, GroupId, MemberId, MeshId, RecordKey, StoreId, Value, Versioned, VoterList};

/// What the ledger is configured with. Durations that members share must be the same on all.
#[derive(Debug, Clone)]
pub struct Config {
    /// This member.
    pub member: MemberId,
    /// How often copies are compared with the voters.
    pub renew_interval: Duration,
    /// With which freshness of copies is measured: stale after this less a twentieth.
    pub lease_ttl: Duration,
    /// How long a voter may be silent before it is replaced.
    pub voter_replace_after: Duration,
    /// How long a round waits for a majority before it is begun again.
    pub round_timeout: Duration,
    /// The first span of the back-off between rivals; it doubles up to 32 times itself.
    pub retry_base: Duration,
    /// The members that make the mesh together, if this one may make one.
    pub bootstrap: Option<Bootstrap>,
}

impl Config {
    /// How long a round waits in a mesh.
    pub const ROUND_TIMEOUT: Duration = Duration::from_millis(500);
    /// The first back-off between rivals in a mesh.
    pub const RETRY_BASE: Duration = Duration::from_millis(20);
}

/// The same on all members that are named in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Bootstrap {
    /// In the order of the config; the first makes the mesh.
    pub members: Vec<BootstrapMember>,
    /// Copies of each shard inside a group.
    pub rf: u16,
    /// Shards of an index unless configured.
    pub shards: u16,
}

/// One member of a bootstrap list.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BootstrapMember {
    /// Its name.
    pub id: MemberId,
    /// Its replica group.
    pub group: GroupId,
    /// Host and port of its mesh socket.
    pub address: String,
    /// A sidecar without a node.
    pub witness: bool,
}

/// Names an operation of the caller; unique within the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// What the caller wants. Changes and reads that are handed over together travel together.
#[derive(Debug, Clone)]
pub enum Command {
    /// Change records.
    Change(Vec<Change>),
    /// Read records from a majority.
    Read(Vec<Read>),
    /// Whom else to ask about a mesh, and to compare with, besides those in the bootstrap list: replaces the earlier set.
    Peers(BTreeSet<MemberId>),
    /// An operator's order: the named members, this one among them, go on without the others as a new mesh.
    Recover {
        /// Everyone who takes part; every one must.
        survivors: BTreeSet<MemberId>,
    },
}

/// One change: succeeds only if the record is at `expected`.
#[derive(Debug, Clone)]
pub struct Change {
    /// Comes back with the answer.
    pub op: OpId,
    /// Which record.
    pub key: RecordKey,
    /// The version that is to be replaced; 0 for a record that has none.
    pub expected: u64,
    /// The new value, at most [`crate::types::limits::RECORD_MAX_BYTES`].
    pub value: Value,
    /// Not pushed and not in digests: a lease's renewal.
    pub quiet: bool,
    /// When to give up.
    pub deadline: Instant,
}

/// One linearizable read.
#[derive(Debug, Clone)]
pub struct Read {
    /// Comes back with the answer.
    pub op: OpId,
    /// Which record.
    pub key: RecordKey,
    /// When to give up.
    pub deadline: Instant,
}

/// How an operation ended. Every operation is answered once, unless the process ends before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The change is chosen, as this version. No other change of the key is answered with the same version.
    Changed {
        /// The record's version from this change on.
        version: u64,
    },
    /// The record is at another version, and `current` is chosen. Only if `maybe_own` the value may have been this
    /// change's own all the same, carried to its end by a rival (and may even have been replaced since).
    Conflict {
        /// What is chosen; `None`: the record has no value.
        current: Option<Versioned>,
        /// Whether an earlier attempt of this change had been sent to be accepted.
        maybe_own: bool,
    },
    /// The value at some instant between the question and this answer.
    Read {
        /// What is chosen; `None`: the record has no value.
        current: Option<Versioned>,
    },
    /// The deadline passed after the value had been sent to be accepted: it may be chosen now, later, or never.
    Unknown,
    /// The deadline passed before that: nothing was done, and nothing will be.
    NoQuorum,
    /// Not begun: nothing was done.
    Refused {
        /// Why.
        why: Refused,
    },
}

/// Why an operation was not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Too many operations are under way.
    #[error("too many ledger operations under way")]
    Busy,
    /// The value is over its bound.
    #[error("the record is too large")]
    TooLarge,
    /// Only the ledger itself changes the voters in the mesh record.
    #[error("the mesh record's voters are not the caller's to change")]
    Voters,
    /// The store is older than it was; see [`Effect::RolledBack`].
    #[error("this member's store was put back from a copy")]
    RolledBack,
}

/// What the driver is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Make durable, together with all others of the same drain and before everything else of it.
    Persist(Row),
    /// Send. All of the drain's rows must be durable: the message may be a vote, and says how many transactions there are.
    Send {
        /// To whom; never to this member itself.
        to: MemberId,
        /// What.
        message: Message,
    },
    /// Tell the caller. All of the drain's rows must be durable.
    Answer {
        /// The caller's operation.
        op: OpId,
        /// How it ended.
        answer: Answer,
    },
    /// This member's copy of a record is now this chosen value: publish it. The copy must be durable.
    Copied {
        /// Which record.
        key: RecordKey,
        /// Its value.
        record: Versioned,
    },
    /// This voter has accepted a value, chosen or not: a sign of life of whoever wrote it, and nothing more.
    Accepted {
        /// Which record.
        key: RecordKey,
        /// The value.
        record: Versioned,
    },
    /// This member belongs to a mesh from now on. That must be durable.
    Joined {
        /// Which.
        mesh: MeshId,
    },
    /// This member has stopped voting and proposing: its store is older than it was. To go on it needs a new store.
    RolledBack {
        /// What to do about it, for people.
        text: String,
    },
    /// For the log and the status page.
    Notice(Notice),
}

/// What people should know. Each is told once until it changes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notice {
    /// A member belongs to another mesh: nothing is exchanged with it.
    OtherMesh {
        /// Who.
        member: MemberId,
        /// Its mesh.
        mesh: MeshId,
    },
    /// A member's bootstrap list differs: no mesh is made.
    OtherBootstrap {
        /// Who.
        member: MemberId,
    },
    /// A member speaks from a store that is older than it was: it is refused.
    StoreRolledBack {
        /// Who.
        member: MemberId,
    },
    /// A peer's message was dropped.
    Malformed {
        /// From whom.
        member: MemberId,
        /// What was wrong.
        error: MessageError,
    },
    /// The mesh is not made yet: these have not answered.
    Waiting {
        /// Who.
        members: BTreeSet<MemberId>,
    },
    /// On an operator's order this member has left its mesh: the survivors go on as another one.
    Recovering {
        /// The mesh that is being made.
        new: MeshId,
        /// Who makes it.
        leader: MemberId,
        /// Who has not handed over its records; known to the one that makes it.
        missing: BTreeSet<MemberId>,
    },
    /// The voters are being changed to this list.
    VotersChanging {
        /// Its number.
        number: u64,
    },
    /// That list has taken over.
    VotersSettled {
        /// Its number.
        number: u64,
    },
    /// A key broke a named invariant: see `proto::invariant`.
    Broken {
        /// Which one.
        invariant: &'static str,
        /// Of which record.
        key: RecordKey,
    },
}

/// One durable fact; a later row of the same kind and key replaces the earlier one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Row {
    /// The store's transactions so far. Part of every transaction.
    Count(u64),
    /// The mesh to which this member belongs. `made`: its record is known to be chosen.
    Mesh {
        /// Which.
        mesh: MeshId,
        /// Whether its record is known to be chosen.
        made: bool,
    },
    /// The newest voter list.
    List(Arc<VoterList>),
    /// A promise; the key's accepted value stays.
    Promise {
        /// Which key.
        key: RecordKey,
        /// All lower ballots, and this one, are promised away.
        ballot: Ballot,
    },
    /// An accepted value with the promise that came with it.
    Accepted {
        /// Which key.
        key: RecordKey,
        /// All lower ballots, and this one, are promised away.
        promise: Ballot,
        /// The value's ballot.
        ballot: Ballot,
        /// The value.
        record: Versioned,
    },
    /// The member's own copy: a chosen value.
    Copy {
        /// Which key.
        key: RecordKey,
        /// The value.
        record: Versioned,
    },
    /// A process has begun on this store; durable before it says anything.
    Began(Process),
    /// What was seen of another store.
    Seen(Seen),
    /// A store that is not remembered any more.
    Unseen(StoreId),
    /// The last member that asked to make a mesh, and the number it was given.
    Forming(FormingRow),
    /// The operator's order under which this member left its mesh.
    Recovering(RecoveringRow),
    /// Every promise, accepted value, list and recovery order is void: they belonged to another mesh. Copies stay.
    Reset,
    /// This store is older than it was: it never votes again.
    RolledBack,
}

/// See [`Row::Forming`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormingRow {
    /// Who asked.
    pub member: MemberId,
    /// From which store.
    pub store: StoreId,
    /// In which attempt.
    pub round: super::message::RoundId,
    /// Counts the attempts that this member has let.
    pub number: u64,
}

/// See [`Row::Recovering`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveringRow {
    /// The mesh that was left.
    pub old: MeshId,
    /// The mesh that is being made.
    pub new: MeshId,
    /// Who makes it.
    pub leader: MemberId,
    /// Everyone who takes part.
    pub survivors: BTreeSet<MemberId>,
}
