//! What members say to one another about the ledger.
//!
//! Every message is one-way and may be lost, repeated, delayed and reordered. An answer names what it answers: the round
//! (and with it the asker's process), the voter list under which it was given, and, in the header, the store that speaks.
//! Rule: [`Message::check`] comes before anything else is done with a peer's message. Must not know: how it travels.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::types::limits::{
    LEDGER_ITEMS_MAX, LEDGER_LINE_MAX, LEDGER_MESSAGE_MAX_BYTES, MEMBERS_MAX, RECORD_MAX_BYTES, VOTERS_MAX,
};
use crate::types::{Ballot, MemberId, MeshId, RecordKey, StoreId, Value, Versioned, VoterList};

/// Counters beyond this come from nobody who counts: they are refused, so that there is always a next one.
const COUNTER_MAX: u64 = 1 << 62;

/// One message from one member to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks, to which store, in which mesh and under which list.
    pub header: Header,
    /// Handled in order; what they make durable is made durable in one transaction.
    pub items: Vec<Item>,
}

/// Goes with every message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// The sender's mesh; `None` while it knows of none.
    pub mesh: Option<MeshId>,
    /// Whether the sender knows that mesh's record to be chosen.
    pub made: bool,
    /// The sender's store and process.
    pub sender: Sender,
    /// The store that is meant; another one refuses. `None` where any store will do.
    pub to_store: Option<StoreId>,
    /// The voter list under which the items were said; `None` while the sender knows of none.
    pub list: Option<Arc<VoterList>>,
    /// While the mesh is being made: the number with which the receiver let the sender make it.
    pub forming: Option<u64>,
    /// The processes of the sender's store before this one, as far as they are kept; until the receiver has taken this one.
    pub line: Option<Vec<Process>>,
    /// The process of the receiver's store that the sender has taken.
    pub took: Option<Process>,
    /// What the sender has heard of the stores of the list's voters.
    pub known: Vec<Known>,
}

/// A store and the process that works on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sender {
    /// The sender's store.
    pub store: StoreId,
    /// The process: one more than that of the process before it on the same store.
    pub start: u64,
    /// Drawn by the process: tells it from another of the same start, on the same store put back from a copy.
    pub nonce: u64,
    /// The store's transactions when the process began.
    pub began: u64,
    /// The store's transactions now, all of them durable.
    pub count: u64,
}

impl Sender {
    /// The process that speaks.
    pub fn process(&self) -> Process {
        Process { start: self.start, nonce: self.nonce, began: self.began }
    }

    /// What a message of it lets others know.
    pub fn known(&self) -> Known {
        let Self { store, start, nonce, count, .. } = *self;
        Known { store, start, nonce, count, rolled_back: false }
    }
}

/// A process that has worked on a store, and said so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Grows with every process of the store.
    pub start: u64,
    /// Drawn by the process.
    pub nonce: u64,
    /// The store's transactions when it began: more than any process before it has told.
    pub began: u64,
}

/// What was heard of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Which.
    pub store: StoreId,
    /// The process that was heard last.
    pub start: u64,
    /// What that process drew.
    pub nonce: u64,
    /// The highest count of transactions that it told.
    pub count: u64,
    /// It was put back from a copy: no process of it is believed.
    pub rolled_back: bool,
}

/// Names a round, change of voters or exchange of its asker: an answer to another process matches nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RoundId {
    /// The asker's process.
    pub start: u64,
    /// Counts within the process.
    pub number: u64,
}

/// What a message says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Item {
    /// Asks a voter to promise the ballot.
    Prepare { round: RoundId, key: RecordKey, ballot: Ballot },
    /// The promise is stored. What the voter has accepted goes with it.
    Promised { round: RoundId, ballot: Ballot, accepted: Option<(Ballot, Versioned)> },
    /// Asks a voter to accept, and to promise `next` in the same transaction.
    Accept { round: RoundId, key: RecordKey, ballot: Ballot, record: Versioned, next: Option<Ballot> },
    /// The value, and the promise of `next`, are stored.
    Accepted { round: RoundId, ballot: Ballot },
    /// Refused: the voter has promised `promise`.
    Higher { round: RoundId, ballot: Ballot, promise: Ballot },
    /// Asks a voter what it has accepted, without a promise.
    Query { round: RoundId, key: RecordKey },
    /// What the voter has accepted.
    Found { round: RoundId, accepted: Option<(Ballot, Versioned)> },
    /// Asks a voter to refuse all lists before the header's.
    Raise { round: RoundId },
    /// That is stored.
    Raised { round: RoundId },
    /// Asks for the keys behind `after` that have a value or a promise.
    Keys { round: RoundId, after: Option<RecordKey> },
    /// Some of them, in order.
    KeysPage { round: RoundId, after: Option<RecordKey>, keys: Vec<RecordKey>, more: bool },
    /// The message before was refused as a whole.
    Refused(Refusal),
    /// Shows the sender's process, whose line is in the header.
    Show,
    /// The receiver's process is taken, by the header.
    Shown,
    /// A chosen value.
    Push { key: RecordKey, version: u64, announced: u64, body: PushBody },
    /// The sender's copy is at this version.
    Pushed { key: RecordKey, version: u64 },
    /// Asks for the receiver's copy: the sender lacks what a difference was made from, or what a voter has newer.
    PushWhole { key: RecordKey },
    /// The digest of the sender's copies; asks for the newer ones behind `after`.
    Digest { round: RoundId, digest: [u64; 2], after: Option<RecordKey> },
    /// What the voter has, if the digests differ: keys in order with their announced versions.
    Newer { round: RoundId, after: Option<RecordKey>, entries: Vec<(RecordKey, u64)>, more: bool },
    /// Asks a member what it knows of a mesh. `bind`: the asker would make one, and nobody who asked before it may.
    FormAsk { round: RoundId, hash: u64, bind: bool },
    /// What it knows.
    FormAnswer { round: RoundId, hash: u64, knows: Knows },
    /// An operator's order: leave `old` for good and hand over what is in its registers and copies, behind `after`.
    RecoverAsk { round: RoundId, old: MeshId, new: MeshId, survivors: BTreeSet<MemberId>, after: Option<RecordKey> },
    /// Some of that, in order of keys.
    RecoverPage { round: RoundId, after: Option<RecordKey>, rows: Vec<RecoverRow>, more: bool },
}

/// What a member knows of a mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Knows {
    /// Nothing; the asker may name `number` to this member, for it was the last that asked.
    Nothing { number: u64 },
    /// It has accepted the record of one that may not be finished.
    Begun { mesh: MeshId },
    /// It belongs to one, or has seen its record agreed on.
    Made { mesh: MeshId, list: Arc<VoterList> },
}

/// The value of a push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PushBody {
    /// All of it.
    Whole(Value),
    /// The value of version `base` with everything between the first `prefix` and the last `suffix` bytes replaced.
    Difference { base: u64, prefix: u32, suffix: u32, middle: Value, hash: u64 },
}

/// What a survivor hands over for one key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecoverRow {
    /// The key.
    pub key: RecordKey,
    /// The highest ballot that the survivor has promised or accepted.
    pub promise: Option<Ballot>,
    /// What it has accepted.
    pub accepted: Option<(Ballot, Versioned)>,
    /// Its copy, which was chosen.
    pub copy: Option<Versioned>,
}

/// Why a whole message was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The store that was meant is not the receiver's.
    OtherStore,
    /// The list is older than the receiver's, which is in this answer's header.
    OlderList,
    /// The receiver does not vote in the header's list.
    NoVoter,
    /// The receiver has not heard of the sender's process and needs to see its line.
    Unshown,
    /// The sender's store is not what it was: `store` in process `start` had made `count` transactions. `refused` is the
    /// process that this is about; another one ignores it.
    RolledBack { store: StoreId, refused: Process, start: u64, count: u64 },
}

/// What is wrong with a peer's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum MessageError {
    /// More items, or more bytes, than a message may have.
    #[error("message over its bounds: {items} items of {bytes} bytes")]
    TooLarge {
        /// Its items.
        items: usize,
        /// Bytes of keys and values.
        bytes: usize,
    },
    /// A value over its bound, a counter that nobody counted, an unordered page.
    #[error("malformed {what}")]
    Malformed {
        /// What is malformed.
        what: &'static str,
    },
}

impl Message {
    /// Checks every bound.
    ///
    /// # Errors
    /// [`MessageError`], and then nothing of the message may be used.
    pub fn check(&self) -> Result<(), MessageError> {
        let bytes = self.items.iter().map(Item::weight).fold(0, usize::saturating_add);
        if self.items.len() > LEDGER_ITEMS_MAX || bytes > LEDGER_MESSAGE_MAX_BYTES {
            return Err(MessageError::TooLarge { items: self.items.len(), bytes });
        }
        let sender = &self.header.sender;
        if sender.start.max(sender.count) > COUNTER_MAX || sender.began > sender.count {
            return Err(MessageError::Malformed { what: "sender" });
        }
        if self.header.line.as_ref().is_some_and(|line| bad_line(line, sender)) {
            return Err(MessageError::Malformed { what: "line of processes" });
        }
        let known = &self.header.known;
        if known.len() > VOTERS_MAX || known.iter().any(|k| k.start.max(k.count) > COUNTER_MAX) {
            return Err(MessageError::Malformed { what: "stores of voters" });
        }
        if self.header.list.as_ref().is_some_and(|l| !l.is_well_formed() || l.number > COUNTER_MAX) {
            return Err(MessageError::Malformed { what: "voter list" });
        }
        self.items.iter().find_map(Item::fault).map_or(Ok(()), |what| Err(MessageError::Malformed { what }))
    }
}

fn bad_line(line: &[Process], sender: &Sender) -> bool {
    let follows = |a: &Process, b: &Process| a.start < b.start && a.began < b.began;
    line.len() > LEDGER_LINE_MAX
        || !line.is_sorted_by(follows)
        || line.last().is_some_and(|last| !follows(last, &sender.process()))
}

fn bad_record(record: &Versioned) -> bool {
    record.value.len() > RECORD_MAX_BYTES
        || !(1..=COUNTER_MAX).contains(&record.version)
        || !(1..=record.version).contains(&record.announced)
}

fn bad_accepted(accepted: Option<&(Ballot, Versioned)>) -> bool {
    accepted.is_some_and(|(ballot, record)| ballot.counter > COUNTER_MAX || bad_record(record))
}

fn accepted_weight(accepted: Option<&(Ballot, Versioned)>) -> usize {
    accepted.map_or(0, |(_, record)| record.value.len())
}

impl RecoverRow {
    /// Bytes that count against the bound of a message.
    pub(super) fn weight(&self) -> usize {
        let copy = self.copy.as_ref().map_or(0, |c| c.value.len());
        self.key.as_str().len() + copy + accepted_weight(self.accepted.as_ref())
    }
}

impl Item {
    /// Bytes of keys and values: what counts against the bound of a message.
    pub(super) fn weight(&self) -> usize {
        let keys = |keys: &[RecordKey]| keys.iter().map(|k| k.as_str().len()).sum::<usize>();
        match self {
            Self::Prepare { key, .. } | Self::Query { key, .. } => key.as_str().len(),
            Self::Accept { key, record, .. } => key.as_str().len() + record.value.len(),
            Self::Promised { accepted, .. } | Self::Found { accepted, .. } => accepted_weight(accepted.as_ref()),
            Self::KeysPage { keys: page, .. } => keys(page),
            Self::Push { key, body: PushBody::Whole(v) | PushBody::Difference { middle: v, .. }, .. } => {
                key.as_str().len() + v.len()
            }
            Self::Newer { entries, .. } => entries.iter().map(|(k, _)| k.as_str().len()).sum(),
            Self::RecoverPage { rows, .. } => rows.iter().map(RecoverRow::weight).sum(),
            _ => 0,
        }
    }

    /// Whether a voter is asked.
    pub(super) fn is_question(&self) -> bool {
        matches!(
            self,
            Self::Prepare { .. }
                | Self::Accept { .. }
                | Self::Query { .. }
                | Self::Raise { .. }
                | Self::Keys { .. }
                | Self::Digest { .. }
        )
    }

    /// What is wrong with it, if anything.
    fn fault(&self) -> Option<&'static str> {
        let wrong = match self {
            Self::Prepare { ballot, .. } | Self::Accepted { ballot, .. } => ballot.counter > COUNTER_MAX,
            Self::Higher { ballot, promise, .. } => ballot.counter.max(promise.counter) > COUNTER_MAX,
            Self::Accept { ballot, record, next, .. } => {
                let next_is_higher = next.as_ref().is_none_or(|n| n > ballot && n.counter <= COUNTER_MAX);
                ballot.counter > COUNTER_MAX || !next_is_higher || bad_record(record)
            }
            Self::Promised { ballot, accepted, .. } => ballot.counter > COUNTER_MAX || bad_accepted(accepted.as_ref()),
            Self::Found { accepted, .. } => bad_accepted(accepted.as_ref()),
            Self::KeysPage { keys, after, more, .. } => {
                keys.len() > LEDGER_ITEMS_MAX
                    || !keys.is_sorted_by(|a, b| a < b)
                    || keys.first().is_some_and(|k| Some(k) <= after.as_ref())
                    || *more && keys.is_empty()
            }
            Self::Newer { entries, after, more, .. } => {
                entries.len() > LEDGER_ITEMS_MAX
                    || !entries.is_sorted_by(|a, b| a.0 < b.0)
                    || entries.first().is_some_and(|(k, _)| Some(k) <= after.as_ref())
                    || *more && entries.is_empty()
            }
            Self::Push { version, announced, body, .. } => {
                let long = matches!(body, PushBody::Whole(v) | PushBody::Difference { middle: v, .. }
                    if v.len() > RECORD_MAX_BYTES);
                long || !(1..=COUNTER_MAX).contains(version) || !(1..=*version).contains(announced)
            }
            Self::FormAnswer { knows: Knows::Made { list, .. }, .. } => {
                !list.is_well_formed() || list.number > COUNTER_MAX
            }
            Self::RecoverAsk { survivors, .. } => survivors.len() > MEMBERS_MAX,
            Self::RecoverPage { rows, after, more, .. } => {
                rows.len() > LEDGER_ITEMS_MAX
                    || !rows.is_sorted_by(|a, b| a.key < b.key)
                    || rows.first().is_some_and(|r| Some(&r.key) <= after.as_ref())
                    || *more && rows.is_empty()
                    || rows.iter().any(|r| {
                        bad_accepted(r.accepted.as_ref())
                            || r.promise.as_ref().is_some_and(|b| b.counter > COUNTER_MAX)
                            || r.copy.as_ref().is_some_and(bad_record)
                    })
            }
            _ => false,
        };
        wrong.then_some("item")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Voter;
    use crate::wire::codec;

    fn member(id: &str) -> MemberId {
        MemberId::new(id).unwrap()
    }

    fn ballot(counter: u64) -> Ballot {
        Ballot { counter, member: member("a"), start: 1 }
    }

    fn record(version: u64, announced: u64, bytes: usize) -> Versioned {
        Versioned { version, announced, value: "x".repeat(bytes).into() }
    }

    const ROUND: RoundId = RoundId { start: 1, number: 1 };

    fn message(items: Vec<Item>) -> Message {
        let sender = Sender { store: StoreId([7; 16]), start: 3, nonce: 5, began: 4, count: 9 };
        let list = VoterList::new(2, vec![Voter { member: member("a"), store: StoreId([7; 16]) }]);
        let header = Header {
            mesh: Some(MeshId([1; 16])),
            made: true,
            sender,
            to_store: Some(StoreId([8; 16])),
            list: Some(Arc::new(list)),
            forming: None,
            line: Some(vec![Process { start: 2, nonce: 8, began: 1 }]),
            took: Some(sender.process()),
            known: vec![sender.known()],
        };
        Message { header, items }
    }

    fn accept(ballot: Ballot, record: Versioned, next: Option<Ballot>) -> Item {
        Item::Accept { round: ROUND, key: RecordKey::mesh(), ballot, record, next }
    }

    #[test]
    fn a_message_reads_back_from_the_wire() {
        let found = Item::Found { round: ROUND, accepted: Some((ballot(4), record(3, 2, 10))) };
        let sent =
            message(vec![accept(ballot(4), record(3, 2, 10), Some(ballot(5))), found, Item::Raise { round: ROUND }]);
        let bytes = codec::encode("ledger message", &sent, 1 << 20).unwrap();
        let read: Message = codec::decode::<_, { 1 << 20 }>("ledger message", &bytes).unwrap();
        assert_eq!((read.check(), &read), (Ok(()), &sent));
    }

    #[test]
    fn what_is_over_a_bound_is_refused() {
        let value = RECORD_MAX_BYTES;
        let good = |item: Item| message(vec![item]).check();
        assert_eq!(good(accept(ballot(1), record(1, 1, value), None)), Ok(()));
        for bad in [
            accept(ballot(1), record(1, 1, value + 1), None),
            accept(ballot(1), record(0, 0, 1), None),
            accept(ballot(1), record(1, 2, 1), None),
            accept(ballot(1), record(u64::MAX, 1, 1), None),
            accept(ballot(u64::MAX), record(1, 1, 1), None),
            accept(ballot(2), record(1, 1, 1), Some(ballot(2))),
            Item::Higher { round: ROUND, ballot: ballot(1), promise: ballot(u64::MAX) },
            Item::KeysPage { round: ROUND, after: None, keys: Vec::new(), more: true },
            Item::KeysPage { round: ROUND, after: Some(RecordKey::mesh()), keys: vec![RecordKey::mesh()], more: false },
        ] {
            assert!(good(bad.clone()).is_err(), "{bad:?}");
        }
        assert!(message(vec![Item::Raise { round: ROUND }; LEDGER_ITEMS_MAX + 1]).check().is_err());
        assert!(message(vec![accept(ballot(1), record(1, 1, value), None); 4]).check().is_err());
    }

    #[test]
    fn a_line_that_no_store_has_is_refused() {
        let process = |start, began| Process { start, nonce: 0, began };
        let with = |line: Vec<Process>| {
            let mut message = message(Vec::new());
            message.header.line = Some(line);
            message.check().is_ok()
        };
        assert!(with(vec![]) && with(vec![process(1, 1), process(2, 3)]));
        assert!(!with(vec![process(3, 1)]) && !with(vec![process(1, 4)]));
        assert!(!with(vec![process(1, 1), process(1, 2)]) && !with(vec![process(1, 2), process(2, 2)]));
        assert!(!with((0..=LEDGER_LINE_MAX as u64).map(|n| process(n, n)).collect()));
        let mut message = message(Vec::new());
        message.header.known = vec![message.header.known[0]; VOTERS_MAX + 1];
        assert!(message.check().is_err());
    }

    #[test]
    fn a_malformed_voter_list_is_refused() {
        let mut bad = message(Vec::new());
        let twice = Voter { member: member("a"), store: StoreId([9; 16]) };
        let mut list = VoterList::clone(bad.header.list.as_ref().unwrap());
        list.voters.push(twice);
        bad.header.list = Some(Arc::new(list));
        assert!(bad.check().is_err());
        bad.header.list = Some(Arc::new(VoterList::new(1, Vec::new())));
        assert!(bad.check().is_err());
    }
}
