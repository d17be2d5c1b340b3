//! The words of the ledger: stores, ballots, voters, versioned values, keys.
//!
//! Rule: a value of these types is well formed however it came here; decoding checks like the constructors. Must not
//! know: how agreement is reached (`proto::ledger`).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::ids::{MemberId, MeshId};
use super::limits;

/// Names one set of SQLite files. A member whose files were lost, emptied or put back from a copy gets another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreId(pub [u8; 16]);

impl StoreId {
    /// The start of the process before the first one on this store. Ballots, leases and rounds go by member and start, so
    /// a member's new store must not count from 1 again: the upper 32 of 52 bits come from the store's id.
    pub fn first_start(&self) -> u64 {
        let [a, b, c, d, ..] = self.0;
        u64::from(u32::from_be_bytes([a, b, c, d])) << 20
    }

    /// Whether a process of this number can have run on this store.
    pub fn may_have_run(&self, start: u64) -> bool {
        start.checked_sub(self.first_start()).is_some_and(|n| (1..1 << 20).contains(&n))
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreId({self})")
    }
}

/// Why a text names no store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected 32 hexadecimal digits")]
pub struct StoreIdError;

impl FromStr for StoreId {
    type Err = StoreIdError;

    fn from_str(text: &str) -> Result<Self, StoreIdError> {
        let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let id = u128::from_str_radix(text, 16).ok().filter(|_| digits);
        id.map(|id| Self(id.to_be_bytes())).ok_or(StoreIdError)
    }
}

impl Serialize for StoreId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        hex16::serialize(&self.0, s)
    }
}

impl<'de> Deserialize<'de> for StoreId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        hex16::deserialize(d).map(Self)
    }
}

/// 16 bytes: hexadecimal where people read, bare bytes elsewhere.
mod hex16 {
    use super::*;

    pub fn serialize<S: Serializer>(bytes: &[u8; 16], s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() {
            s.collect_str(&format_args!("{:032x}", u128::from_be_bytes(*bytes)))
        } else {
            bytes.serialize(s)
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<[u8; 16], D::Error> {
        if !d.is_human_readable() {
            return <[u8; 16]>::deserialize(d);
        }
        let text = String::deserialize(d)?;
        let hex = text.len() == 32 && text.bytes().all(|c| c.is_ascii_hexdigit());
        match u128::from_str_radix(&text, 16) {
            Ok(n) if hex => Ok(n.to_be_bytes()),
            _ => Err(de::Error::custom("expected 32 hexadecimal digits")),
        }
    }
}

/// A mesh id in a record that people read.
pub(super) mod hex16_mesh {
    use super::*;

    pub fn serialize<S: Serializer>(mesh: &MeshId, s: S) -> Result<S::Ok, S::Error> {
        hex16::serialize(&mesh.0, s)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<MeshId, D::Error> {
        hex16::deserialize(d).map(MeshId)
    }
}

/// Orders the rounds of a key; the start makes those of a restarted proposer new. Each is used for one value only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ballot {
    /// Above every counter that the proposer has seen for the key.
    pub counter: u64,
    /// The proposer.
    pub member: MemberId,
    /// The proposer's process.
    pub start: u64,
}

impl Ballot {
    /// The same proposer's ballot right after this one.
    #[must_use]
    pub fn next(&self) -> Self {
        Self { counter: self.counter + 1, ..self.clone() }
    }
}

/// Who votes: a member with one certain store. With another store it is another voter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Voter {
    /// The member.
    pub member: MemberId,
    /// The store that its votes are in.
    pub store: StoreId,
}

/// All voters at one time. The list numbered n + 1 differs from the one numbered n by one voter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoterList {
    /// Counts the lists of a mesh, from 1.
    pub number: u64,
    /// Each member at most once, in the order of ids.
    pub voters: Vec<Voter>,
}

impl VoterList {
    /// A list with its voters in order.
    pub fn new(number: u64, mut voters: Vec<Voter>) -> Self {
        voters.sort();
        Self { number, voters }
    }

    /// How many voters are more than half of the list.
    pub fn majority(&self) -> usize {
        self.voters.len() / 2 + 1
    }

    /// Whether this member with this store is in the list.
    pub fn has(&self, voter: &Voter) -> bool {
        self.voters.contains(voter)
    }

    /// The voter that is this member, whatever its store.
    pub fn of_member(&self, member: &MemberId) -> Option<&Voter> {
        self.voters.iter().find(|v| v.member == *member)
    }

    /// Whether the list can stand in a record: one to [`limits::VOTERS_MAX`] voters in order, each member once.
    pub fn is_well_formed(&self) -> bool {
        let ordered = self.voters.windows(2).all(|w| w[0].member < w[1].member);
        self.number > 0 && ordered && (1..=limits::VOTERS_MAX).contains(&self.voters.len())
    }
}

/// The JSON text of a record, at most [`limits::RECORD_MAX_BYTES`].
pub type Value = Arc<str>;

/// A value with its place in the key's history.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Versioned {
    /// Counts the key's changes, from 1; 0 is "no value yet" and never stands here.
    pub version: u64,
    /// The version of the last change that was not quiet: what copies and digests go by.
    pub announced: u64,
    /// The record.
    pub value: Value,
}

/// Why a text is no record key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a record key has 1 to {} bytes without control characters, not {bytes}", limits::LEDGER_KEY_MAX_BYTES)]
pub struct KeyError {
    /// The refused text's length.
    pub bytes: usize,
}

/// The name of a ledger record. A key that has once had a value is never removed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct RecordKey(Arc<str>);

impl RecordKey {
    /// Checks the text and takes it as a key.
    ///
    /// # Errors
    /// [`KeyError`] for an empty text, one that is too long, or one with control characters.
    pub fn new(text: impl Into<Arc<str>>) -> Result<Self, KeyError> {
        let text = text.into();
        let good = (1..=limits::LEDGER_KEY_MAX_BYTES).contains(&text.len()) && !text.contains(char::is_control);
        if good { Ok(Self(text)) } else { Err(KeyError { bytes: text.len() }) }
    }

    /// The key of the mesh's own record.
    pub fn mesh() -> Self {
        Self(Arc::from("mesh"))
    }

    /// Whether this is the key of the mesh's own record.
    pub fn is_mesh(&self) -> bool {
        &*self.0 == "mesh"
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RecordKey {
    type Err = KeyError;
    fn from_str(s: &str) -> Result<Self, KeyError> {
        Self::new(s)
    }
}

impl<'de> Deserialize<'de> for RecordKey {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(d)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str) -> MemberId {
        MemberId::new(id).unwrap()
    }

    #[test]
    fn ballots_are_ordered_by_counter_then_member_then_start() {
        let ballot = |counter, m: &str, start| Ballot { counter, member: member(m), start };
        assert!(ballot(2, "a", 1) > ballot(1, "b", 9));
        assert!(ballot(1, "b", 1) > ballot(1, "a", 9));
        assert!(ballot(1, "a", 2) > ballot(1, "a", 1));
        assert!(ballot(1, "a", 1).next() > ballot(1, "b", 1));
    }

    #[test]
    fn a_majority_is_more_than_half() {
        let list = |n: u8| {
            let voters = (0..n).map(|i| Voter { member: member(&format!("m{i}")), store: StoreId([i; 16]) });
            VoterList::new(1, voters.collect())
        };
        assert_eq!([1, 2, 3, 4, 5].map(|n| list(n).majority()), [1, 2, 2, 3, 3]);
        assert!(list(5).is_well_formed() && !list(0).is_well_formed() && !list(6).is_well_formed());
    }

    #[test]
    fn a_store_id_reads_back_from_json_and_from_bytes() {
        let store = StoreId([0xab; 16]);
        let json = serde_json::to_string(&store).unwrap();
        assert_eq!(json, format!("\"{}\"", "ab".repeat(16)));
        assert_eq!(serde_json::from_str::<StoreId>(&json).unwrap(), store);
        for bad in ["\"\"", "\"zz\"", &format!("\"+{}\"", "a".repeat(31)), &format!("\"{}\"", "a".repeat(33))] {
            assert!(serde_json::from_str::<StoreId>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn two_stores_of_a_member_never_have_a_process_of_the_same_number() {
        let (a, b) = (StoreId([1; 16]), StoreId([2; 16]));
        assert!(b.first_start() - a.first_start() >= 1 << 20);
        assert!(StoreId([255; 16]).first_start() < 1 << 53, "a number that every JSON reader reads");
        let first = a.first_start() + 1;
        assert!(a.may_have_run(first) && !b.may_have_run(first) && !a.may_have_run(a.first_start()));
        assert!(!a.may_have_run(b.first_start() + 1));
    }

    #[test]
    fn keys_are_bounded_when_decoded_too() {
        assert!(RecordKey::new("k".repeat(512)).is_ok());
        for bad in [String::new(), "k".repeat(513), "a\nb".to_owned()] {
            assert!(RecordKey::new(bad.as_str()).is_err());
            assert!(serde_json::from_str::<RecordKey>(&serde_json::to_string(&bad).unwrap()).is_err());
        }
    }
}
