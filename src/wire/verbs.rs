//! Peer calls: what one member may ask of another, and the answers.
//!
//! A call is a [`Request`] (the header) and a body of raw bytes: documents, searches and a node's answers are never
//! re-encoded. Each verb has a fixed number ([`Request::verb`]); a receiver that does not know a number answers
//! [`Refusal::UnknownVerb`] and reads nothing further, and a verb whose payload has to change gets a new number. That is how two
//! versions of the protocol work beside each other.

use serde::{Deserialize, Serialize};

use super::codec::{self, CodecError};
use crate::types::limits::CALL_HEADER_MAX_BYTES;
use crate::types::{
    EntryKind, Epoch, Holder, IndexUid, Order, PhysicalIndex, Position, RecordKey, RecordVersion, ShardId, ShardSet,
    TaskPart, TaskUid,
};

/// Traffic classes: each has its own limit of calls under way, so that bulk never starves votes or searches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Probes, gossip, the ledger. Travels on the control connection.
    Control,
    /// Writes to replicas.
    Replicate,
    /// Searches and reads.
    Query,
    /// Long transfers.
    Bulk,
}

impl Class {
    /// The label in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Replicate => "replicate",
            Self::Query => "query",
            Self::Bulk => "bulk",
        }
    }
}

/// A replicated record at a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordAt {
    /// Its key in the ledger.
    pub key: RecordKey,
    /// Counts the changes of this key, from 1.
    pub version: RecordVersion,
}

/// A route that reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadRoute {
    /// `/indexes/{i}/search`
    Search,
    /// `/indexes/{i}/documents/fetch`, or by GET `/indexes/{i}/documents`
    Documents,
    /// `/indexes/{i}/facet-search`
    FacetSearch,
}

/// What a read asks of the node beside the asked member. The body is the JSON of the corresponding Meilisearch route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadKind {
    /// `POST /indexes/{i}/search`
    Search,
    /// `POST /indexes/{i}/documents/fetch`
    Documents {
        /// Whether each document is to carry the values that it was sorted by.
        order_values: bool,
    },
    /// `POST /indexes/{i}/facet-search`
    FacetSearch,
    /// One of these routes without the filter by shard, for the node's own words on a request that it refuses: with a
    /// filter beside the client's, some texts would show it. An answer to it is never shown.
    Words {
        /// Which route.
        route: ReadRoute,
        /// GET, and the body is the query string; otherwise POST, and the body is JSON.
        get: bool,
    },
}

/// A write to the node beside the asked member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteKind {
    /// Creates the physical index from the record if the node has not got it; body empty.
    EnsureIndex,
    /// Deletes the physical index, if this member's store notes that it made it; body empty.
    DeleteIndex,
    /// NDJSON documents, with the shard already injected.
    AddDocuments {
        /// `true`: PUT, fields are merged; `false`: POST, documents are replaced.
        merge: bool,
        /// `skipCreation`: documents that do not exist yet are left out.
        skip_creation: bool,
        /// The primary key by which the documents were split.
        primary_key: String,
    },
    /// A JSON array of ids.
    DeleteIds,
    /// A JSON object with `filter`.
    DeleteFilter,
    /// Deletes every document; body empty.
    DeleteAll,
    /// `PATCH /indexes/{i}/settings`: the node's form of the settings, as JSON.
    Settings,
    /// `PATCH /indexes/{i}` with `primaryKey`; body as JSON.
    UpdateIndex,
}

/// What a member may be asked about its node, without a body but for an edition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeQuestion {
    /// `GET /indexes/{i}/settings`
    Settings(PhysicalIndex),
    /// `GET /indexes/{i}/stats`
    IndexStats {
        /// Of which index.
        index: PhysicalIndex,
        /// With the size of each table.
        internal: bool,
    },
    /// `GET /stats`
    Stats {
        /// With the size of each table.
        internal: bool,
    },
    /// `GET /indexes/{i}`
    Index(PhysicalIndex),
    /// `GET /indexes`: all of them.
    Indexes,
    /// `GET /tasks`: how many additions of documents to the index are not finished, and the first.
    Waiting(PhysicalIndex),
    /// `GET /tasks?uids=…`
    Tasks(Vec<u32>),
    /// `POST /indexes/{i}/documents/edit`, which you make one that no node takes: its refusal tells whether the node can compile
    /// the function and read the filter in the body, and edits documents at all.
    Edition(IndexUid),
}

/// A call's header: one variant a verb.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Are you there? Answered by the transport itself, on a thread of its own.
    Probe,
    /// A read of these shards from the node beside you. You decide whether a filter is needed.
    Read(Read),
    /// A write to the node beside you.
    Write(Write),
    /// A question to the node beside you.
    Node(NodeQuestion),
    /// A message of the ledger, in the body. One-way: the answer says that it arrived.
    Ledger,
    /// Answered when your copy of the record is at that version or a newer one.
    Confirm(RecordAt),
    /// So many task ids, of the member that hands them out.
    TaskIds(u32),
    /// What the leader of an operation wants done. Refused before anything is done unless the operation's record calls for it.
    Order(LeaderOrder),
    /// Messages of journals, in the body. One-way: the answer says that they arrived.
    Journal,
    /// Parts of a client's request, for the primary of their shards.
    Append(Append),
    /// How your copies of an index's shards stand; the answer is JSON.
    Shards(PhysicalIndex),
    /// Your verdicts on entries of shards of which you are the primary.
    Verdicts(VerdictsOf),
    /// The documents that one entry names, as you have them, if you are the primary of its shard.
    Documents(DocumentsOf),
    /// A question about tasks, to the primary of a home or to any member: as JSON in the body.
    Home,
    /// Your copy of a shard, for mine that must be made anew. Ids go as a JSON array in the body.
    Snapshot(SnapshotOf),
}

/// What of a copy is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotOf {
    /// Of which index.
    pub index: PhysicalIndex,
    /// Of which shard.
    pub shard: ShardId,
    /// What.
    pub act: SnapshotAct,
}

/// What is asked of the source of a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotAct {
    /// Can you give it?
    Offer,
    /// Begin a read of all documents; how often that was asked, this time counted.
    Begin(u32),
    /// Documents of this read; their ids are in the body.
    Documents(u64),
    /// All documents of this read are there.
    Read(u64),
    /// I am still at it.
    Keep(u64),
    /// What stands up to the read's position beside entries.
    Beside {
        /// Which read.
        token: u64,
        /// Whether parts are wanted.
        parts: bool,
        /// Verdicts are wanted on entries behind this one.
        behind: u64,
    },
    /// What your copy holds after the entry that it is at.
    Settle,
    /// Nothing more of this read is wanted.
    End(u64),
}

/// What the source of a copy says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotSaid {
    /// Yes; or it is done.
    Yes,
    /// Not now.
    Later,
    /// A conditional entry was applied during the read.
    Again,
    /// No; why, for people.
    No(String),
    /// The read of this number has begun behind this entry; all ids are in the body.
    Begun(u64, Position),
    /// The first so many of the ids were looked for; what was found is in the body as NDJSON.
    Documents(u32),
    /// In the body, as JSON.
    Json,
    /// No: its own copy must be made anew.
    Unmade {
        /// For nothing but a doubt, so that it may stay where nobody has a better one.
        doubtful: bool,
        /// Its journal has everything that ever was, so that it needs nobody for that.
        whole: bool,
    },
}

/// Entries whose verdicts are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictsOf {
    /// Of which index.
    pub index: PhysicalIndex,
    /// Of which shards, from which entry to which.
    pub shards: Vec<(ShardId, u64, u64)>,
}

/// Verdicts on entries of one shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardVerdicts {
    /// Which shard.
    pub shard: ShardId,
    /// From the first that was asked for to here every entry has one.
    pub to: u64,
    /// The entries among them that failed, in order; all others were applied.
    pub failed: Vec<EntryError>,
}

/// Why an entry failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryError {
    /// Which entry.
    pub seq: u64,
    /// Meilisearch's code.
    pub code: String,
    /// For people.
    pub message: String,
}

/// An entry whose documents are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentsOf {
    /// Of which index.
    pub index: PhysicalIndex,
    /// Of which shard.
    pub shard: ShardId,
    /// Which entry.
    pub seq: u64,
    /// Behind this one no conditional entry of the shard may have been done.
    pub first: u64,
}

/// Parts of a request for shards of one index; the body holds what each says, one behind the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Append {
    /// Which index.
    pub index: PhysicalIndex,
    /// In the order of the body.
    pub parts: Vec<AppendPart>,
}

/// One part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppendPart {
    /// For which shard.
    pub shard: ShardId,
    /// By which it is recognised when it is sent again.
    pub part: TaskPart,
    /// What it does.
    pub kind: EntryKind,
    /// Its bytes in the body.
    pub length: u32,
}

/// What became of one part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Appended {
    /// Every replica in sync has stored what stands under the part; it is never lost.
    Committed {
        /// Its number.
        seq: u64,
        /// A refusal stands there: the part itself will never be done.
        refused: bool,
        /// How many are in sync.
        in_sync: u32,
        /// How many copies the shard should have.
        copies: u32,
    },
    /// Another member orders the writes, perhaps this one; nothing was appended.
    NotPrimary(Option<Holder>, Epoch),
    /// Fewer members are in sync than must be; nothing was appended.
    NoQuorum,
    /// It is nothing that may be written; nothing was appended, and never will be.
    Refused,
    /// As much is under way as may be; nothing was appended.
    Busy,
    /// It may be appended, and committed or not: it is to be sent again, perhaps to this one.
    Unknown(Option<Holder>, Epoch),
}

/// An order of the leader of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderOrder {
    /// Scope, epoch and the version of the operation's record that calls for the order.
    pub head: Order,
    /// The operation.
    pub operation: String,
    /// Its phase.
    pub phase: String,
    /// Whether the phase is being undone.
    pub undo: bool,
    /// What to do.
    pub act: LeaderAct,
}

/// What a leader may order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaderAct {
    /// Have this record at that version or a newer one.
    Know(RecordAt),
}

/// A read of some shards of an index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// Which index.
    pub index: PhysicalIndex,
    /// The record version that the plan was made on.
    pub record_version: RecordVersion,
    /// Which shards the answer must cover, and no others.
    pub shards: ShardSet,
    /// Which route of the node.
    pub kind: ReadKind,
}

/// A write to one member's copies of some shards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// Which index.
    pub index: PhysicalIndex,
    /// The record version that calls for it; the receiver must know at least this one.
    pub record_version: RecordVersion,
    /// The shards that documents of the body belong to.
    pub shards: ShardSet,
    /// What to do.
    pub kind: WriteKind,
}

/// Why a call was refused before anything was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The receiver is of an older version.
    #[error("verb {0} is not known to this member's version")]
    UnknownVerb(u16),
    /// The caller belongs to another mesh.
    #[error("the call names another mesh")]
    WrongMesh,
    /// The header does not decode, or a bound is broken.
    #[error("malformed call: {0}")]
    Malformed(String),
    /// Too many calls of this class under way.
    #[error("too many calls of this class under way")]
    Busy,
    /// The member is shutting down.
    #[error("the member is draining")]
    Draining,
    /// The receiver does not know the record at the version named.
    #[error("the record is not known here at version {needed}, only at {known}")]
    StaleRecord {
        /// Version that the order names.
        needed: RecordVersion,
        /// Version known here.
        known: RecordVersion,
    },
    /// Anything else, for people.
    #[error("{0}")]
    Other(String),
    /// The order's sender does not lead any more; why, for people.
    #[error("stale order: {0}")]
    StaleOrder(String),
    /// The record that the order names does not call for it.
    #[error("{0} does not call for this order")]
    NotCalledFor(String),
}

/// A call's answer; the body, if any, travels apart as raw bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Done, nothing to say.
    Done,
    /// The node answered with this HTTP status; the body is the node's.
    Node(u16),
    /// The node did not answer: it is down, or its key is wrong. For a write it is certain that nothing was enqueued.
    NodeDown(String),
    /// A write's answer did not come from the node: it may have been enqueued.
    NodeUnknown(String),
    /// The node took the write under this task uid of its own.
    Enqueued(u32),
    /// Some of the shards asked for are not served here; nothing was read. Carries those shards and the version known here.
    NotServed(ShardSet, RecordVersion),
    /// Refused, nothing was done.
    Refused(Refusal),
    /// Task ids, as many as were asked for; none: this member can't say now.
    TaskIds(Vec<TaskUid>),
    /// What became of each part, in their order.
    Appended(Vec<Appended>),
    /// What was asked for is in the body, as JSON.
    Json,
    /// Verdicts, of those shards of which the asked member is the primary.
    Verdicts(Vec<ShardVerdicts>),
    /// The documents are in the body as NDJSON; of these ids there are none.
    Documents(Vec<String>),
    /// The documents can't be had as they have to be; `true`: not now, `false`: never.
    NoDocuments(bool),
    /// The answer to a question about tasks, as JSON in the body.
    Home,
    /// Of a copy.
    Snapshot(SnapshotSaid),
}

macro_rules! verbs {
    ($($number:literal $class:ident $name:ident $(($payload:ident))?),+ $(,)?) => {
        impl Request {
            /// The verb's number on the wire; never given to another verb.
            pub fn verb(&self) -> u16 {
                match self { $(Self::$name { .. } => $number),+ }
            }

            /// The traffic class of verb `number`; `None` if this version does not know the number.
            pub fn class_of(number: u16) -> Option<Class> {
                match number {
                    $($number => Some(Class::$class),)+
                    _ => None,
                }
            }

            /// The traffic class that the call belongs to.
            pub fn class(&self) -> Class {
                match self { $(Self::$name { .. } => Class::$class),+ }
            }

            /// The verb's name in metrics and logs.
            pub fn name(&self) -> &'static str {
                match self { $(Self::$name { .. } => stringify!($name)),+ }
            }

            /// Encodes the payload (not the number).
            ///
            /// # Errors
            /// [`CodecError::TooLarge`].
            pub fn encode_payload(&self) -> Result<Vec<u8>, CodecError> {
                match self { $(Self::$name $(($payload))? => verbs!(@encode $($payload)?)),+ }
            }

            /// Decodes the payload of verb `number`; `Ok(None)` if this version does not know the number.
            ///
            /// # Errors
            /// [`CodecError`] if the payload is not that verb's.
            pub fn decode_payload(number: u16, bytes: &[u8]) -> Result<Option<Self>, CodecError> {
                Ok(Some(match number {
                    $($number => verbs!(@decode $name bytes $($payload)?),)+
                    _ => return Ok(None),
                }))
            }
        }
    };
    (@encode $payload:ident) => { codec::encode("call header", $payload, CALL_HEADER_MAX_BYTES) };
    (@encode) => { Ok(Vec::new()) };
    (@decode $name:ident $bytes:ident $payload:ident) => {
        Self::$name(codec::decode::<_, CALL_HEADER_MAX_BYTES>("call header", $bytes)?)
    };
    (@decode $name:ident $bytes:ident) => {{
        codec::decode::<(), CALL_HEADER_MAX_BYTES>("call header", $bytes)?;
        Self::$name
    }};
}

// 2 to 5, and 9, were given once.
verbs! {
    1 Control Probe,
    6 Query Read(payload),
    7 Replicate Write(payload),
    8 Query Node(payload),
    10 Control Ledger,
    11 Control Confirm(payload),
    12 Control Order(payload),
    13 Replicate Journal,
    14 Replicate Append(payload),
    15 Control TaskIds(payload),
    16 Replicate Verdicts(payload),
    17 Replicate Documents(payload),
    18 Replicate Home,
    19 Query Shards(payload),
    20 Bulk Snapshot(payload),
}

/// The number of [`Request::Read`].
pub const READ: u16 = 6;

impl Request {
    /// Whether a member that belongs to no mesh yet may be asked by, or may ask, one that does.
    pub fn before_mesh(verb: u16) -> bool {
        verb == Self::Probe.verb() || verb == Self::Ledger.verb()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Epoch, Scope, ShardId};

    #[test]
    fn every_verb_survives_the_wire() {
        let index = PhysicalIndex::new("packages__m00000001").unwrap();
        let shards: ShardSet = [ShardId(0), ShardId(63)].into_iter().collect();
        for r in [
            Request::Probe,
            Request::Ledger,
            Request::Journal,
            Request::Shards(index.clone()),
            Request::Home,
            Request::Snapshot(SnapshotOf {
                index: index.clone(),
                shard: ShardId(1),
                act: SnapshotAct::Beside { token: 3, parts: true, behind: 9 },
            }),
            Request::Append(Append {
                index: index.clone(),
                parts: vec![AppendPart {
                    shard: ShardId(63),
                    part: TaskPart { task: TaskUid(7), part: 1 },
                    kind: EntryKind::Merge { skip_creation: true },
                    length: 5,
                }],
            }),
            Request::Confirm(RecordAt { key: RecordKey::mesh(), version: 7 }),
            Request::Read(Read {
                index: index.clone(),
                record_version: 3,
                shards: shards.clone(),
                kind: ReadKind::Search,
            }),
            Request::Write(Write {
                index: index.clone(),
                record_version: 3,
                shards,
                kind: WriteKind::AddDocuments { merge: true, skip_creation: false, primary_key: "id".into() },
            }),
            Request::Node(NodeQuestion::Tasks(vec![1, 2])),
            Request::Node(NodeQuestion::Edition(IndexUid::new("packages").unwrap())),
            Request::Home,
            Request::TaskIds(64),
            Request::Verdicts(VerdictsOf { index: index.clone(), shards: vec![(ShardId(1), 3, u64::MAX)] }),
            Request::Documents(DocumentsOf { index: index.clone(), shard: ShardId(1), seq: 4, first: 2 }),
            Request::Order(LeaderOrder {
                head: Order { scope: Scope::Ilm, epoch: Epoch::ZERO, record: "operation:ilm".into(), version: 4 },
                operation: "op".into(),
                phase: "confirm".into(),
                undo: false,
                act: LeaderAct::Know(RecordAt { key: RecordKey::mesh(), version: 7 }),
            }),
        ] {
            let bytes = r.encode_payload().unwrap();
            assert_eq!(Request::decode_payload(r.verb(), &bytes).unwrap(), Some(r));
        }
    }

    #[test]
    fn unknown_verb_is_told_from_garbage() {
        assert_eq!(Request::decode_payload(60_000, b"whatever").unwrap(), None);
        assert!(Request::decode_payload(6, b"\xff\xff\xff\xff\xff\xff").is_err());
        assert!(Request::decode_payload(1, b"x").is_err());
    }

    #[test]
    fn a_length_that_is_a_lie_allocates_nothing() {
        // A key of 2^60 bytes.
        let mut lie = vec![253];
        lie.extend_from_slice(&(1_u64 << 60).to_le_bytes());
        assert!(Request::decode_payload(11, &lie).is_err());
    }
}
