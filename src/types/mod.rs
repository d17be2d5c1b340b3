//! Plain data that every room shares: ids, records, ballots, limits, error codes.
//!
//! Must not know: async, clocks, sockets, SQL, any other room.

pub mod error_code;
pub mod ids;
pub mod journal;
pub mod lease;
pub mod ledger;
pub mod limits;
pub mod operation;
pub mod records;
pub mod shards;

pub use error_code::{ErrorCode, ErrorKind};
pub use ids::{GroupId, IdError, IndexUid, MemberId, MeshId, PhysicalIndex, RecordVersion, TaskUid, TraceId};
pub use journal::{EntryKind, JournalKey, JournalRecord, Position, ReplicaId, ShardCopy, ShardState, TaskPart};
pub use lease::{Epoch, Holder, LeaseSign, LeaseValue, Order, Scope};
pub use ledger::{Ballot, KeyError, RecordKey, StoreId, Value, Versioned, Voter, VoterList};
pub use operation::{Claim, Job, JobsRecord, OperationEntry, OperationRecord, OperationState, Progress};
pub use records::{
    AliasRecord, CaughtUp, FormerTarget, IndexRecord, MemberState, MeshMember, MeshRecord, MissedSettings, NamesRecord,
    ReplicaState, ShardRecord, ShardReplica, VotersState,
};
pub use shards::{SHARD_FIELD, ShardId, ShardSet};
