//! Identifiers, each a type of its own so that one can't stand in for another.
//!
//! Every constructor checks; a value of these types is always well formed. Must not know: where ids come from.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

use super::limits;

/// Why a text is not an id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is not a valid {what}: {rule}")]
pub struct IdError {
    /// The kind of id, for people ("member id").
    pub what: &'static str,
    /// The rule that the value breaks.
    pub rule: &'static str,
    /// The refused text, cut to 64 characters.
    pub value: String,
}

fn refuse(what: &'static str, rule: &'static str, value: &str) -> IdError {
    IdError { what, rule, value: value.chars().take(64).collect() }
}

/// Lower-case letters, digits and inner hyphens, 1 to 63 bytes: a DNS label, so that it can stand in a certificate.
fn is_label(s: &str) -> bool {
    let b = s.as_bytes();
    (1..=63).contains(&b.len())
        && b.iter().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'-')
        && b[0] != b'-'
        && b[b.len() - 1] != b'-'
}

/// A label that can be a DNS name by itself: digits only would be taken for an IPv4 address.
fn is_name(s: &str) -> bool {
    is_label(s) && !s.bytes().all(|c| c.is_ascii_digit())
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Checks the text and takes it as an id.
            ///
            /// # Errors
            /// [`IdError`] naming the rule that the text breaks.
            pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
                let text = text.into();
                let check: fn(&str) -> bool = $check;
                if check(&text) { Ok(Self(text)) } else { Err(refuse($what, $rule, &text)) }
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                Self::new(s)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                Self::new(String::deserialize(d)?).map_err(serde::de::Error::custom)
            }
        }
    };
}

text_id!(
    /// One sidecar together with the node beside it. A DNS label, because its certificate carries it as a DNS name.
    MemberId, "member id",
    "1 to 63 lower-case letters, digits and inner hyphens, not digits only (its certificate names it as a DNS name)", is_name
);
text_id!(
    /// A replica group: members that together hold one full copy of every index.
    GroupId, "group id", "1 to 63 lower-case letters, digits and inner hyphens", is_label
);
text_id!(
    /// The index name that clients use, by Meilisearch's own rule.
    IndexUid, "index uid", "1 to 400 bytes of letters, digits, hyphens and underscores",
    |s| (1..=limits::INDEX_UID_MAX_BYTES).contains(&s.len()) && is_uid_text(s)
);
text_id!(
    /// The name of an index on the nodes, `<uid>__m<8 hex digits>`. Never used twice; records and orders go by it.
    PhysicalIndex, "physical index", "an index uid followed by __m and 8 hexadecimal digits",
    |s| s.rsplit_once("__m").is_some_and(|(uid, tail)| {
        (1..=limits::PHYSICAL_UID_PART_MAX_BYTES).contains(&uid.len())
            && is_uid_text(uid)
            && tail.len() == 8
            && tail.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
    })
);

fn is_uid_text(s: &str) -> bool {
    s.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
}

impl PhysicalIndex {
    /// The physical name for a client's index: the uid cut to 380 bytes, and `nonce` in hexadecimal.
    pub fn of(uid: &IndexUid, nonce: u32) -> Self {
        // A uid is ASCII, so any cut is a character boundary.
        let part = &uid.as_str()[..uid.as_str().len().min(limits::PHYSICAL_UID_PART_MAX_BYTES)];
        Self(format!("{part}__m{:08x}", nonce.max(1)))
    }

    /// The reserved name under which the journals of the homes of tasks stand: one shard for each home, and no node behind
    /// them. No index is made under it: their numbers begin at 1.
    pub fn of_tasks() -> Self {
        Self("_miroir_tasks__m00000000".into())
    }

    /// Whether it is that one.
    pub fn is_of_tasks(&self) -> bool {
        self.0 == "_miroir_tasks__m00000000"
    }
}

/// A task's number as clients see it: below 2^31, because Java's and .NET's SDKs read it as a signed 32-bit number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskUid(pub u32);

impl fmt::Display for TaskUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names one client request in the logs of every member that worked on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TraceId(pub u128);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Counts the changes of one record; 0 means "no such record yet".
pub type RecordVersion = u64;

/// Names one mesh; every call carries it, so that two meshes never mix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MeshId(pub [u8; 16]);

impl MeshId {
    /// What a member says that belongs to no mesh yet.
    pub const NONE: Self = Self([0; 16]);

    /// Whether two members may speak: they belong to one mesh, or one of them to none yet.
    pub fn meets(self, other: Self) -> bool {
        self == other || self == Self::NONE || other == Self::NONE
    }
}

impl fmt::Display for MeshId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn member_id_is_a_dns_label() {
        for good in ["m1", "a", "search-7", &"x".repeat(63)] {
            assert!(MemberId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "ü", "7", "010", &"x".repeat(64)] {
            assert!(MemberId::new(bad).is_err(), "{bad}");
        }
        assert!(MemberId::new("7").unwrap_err().to_string().contains("DNS name"));
        assert!(GroupId::new("7").is_ok());
    }

    #[test]
    fn physical_name_fits_a_node_even_for_the_longest_uid() {
        let uid = IndexUid::new("u".repeat(400)).unwrap();
        let name = PhysicalIndex::of(&uid, 0xdead_beef);
        assert_eq!(name.as_str().len(), 380 + 3 + 8);
        assert_eq!(PhysicalIndex::new(name.as_str()).unwrap(), name);
    }

    #[test]
    fn decoding_checks_like_the_constructor() {
        assert!(serde_json::from_str::<MemberId>("\"UPPER\"").is_err());
        assert!(serde_json::from_str::<PhysicalIndex>("\"packages\"").is_err());
        assert!(serde_json::from_str::<PhysicalIndex>("\"packages__m0123abcd\"").is_ok());
    }
}
