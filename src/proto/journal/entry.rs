//! One entry of a shard's journal.
//!
//! Rule: an entry never changes once it has its position; the part of a task that it carries stands in a journal once, as
//! itself or as its refusal, whichever came first. Must not know: what a body says.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use crate::types::EntryKind as Kind;
use crate::types::{Position, TaskPart};

/// Largest body of one entry, as the largest body that a client may send.
pub const ENTRY_BODY_MAX_BYTES: usize = crate::types::limits::BODY_DEFAULT_MAX_BYTES;
/// What an entry weighs beside its body, roughly.
pub const ENTRY_HEAD_BYTES: usize = 64;

/// The raw bytes of an entry, shared by all that hold it.
#[derive(Clone, PartialEq, Eq)]
pub struct Body(pub Arc<[u8]>);

impl Body {
    /// No bytes.
    pub fn empty() -> Self {
        Self(Arc::from([]))
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.0.len())
    }
}

impl Serialize for Body {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl serde::de::Visitor<'_> for Bytes {
            type Value = Body;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Body, E> {
                Ok(Body(bytes.into()))
            }
            fn visit_byte_buf<E: serde::de::Error>(self, bytes: Vec<u8>) -> Result<Body, E> {
                Ok(Body(bytes.into()))
            }
        }
        d.deserialize_byte_buf(Bytes)
    }
}

/// What a sender wants written: one part of its request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// By which it is recognised when it is sent again.
    pub part: TaskPart,
    /// What it does.
    pub kind: Kind,
    /// At most [`ENTRY_BODY_MAX_BYTES`].
    pub body: Body,
}

/// What stands under a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stands {
    /// Its number.
    pub seq: u64,
    /// It is a refusal: the part itself will never be done.
    pub refused: bool,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where it stands.
    pub at: Position,
    /// Whose part it is; `None` only for an empty entry.
    pub part: Option<TaskPart>,
    /// What it does.
    pub kind: Kind,
    /// With what.
    pub body: Body,
}

impl Entry {
    /// A part at its place.
    pub fn of(write: Write, at: Position) -> Self {
        Self { at, part: Some(write.part), kind: write.kind, body: write.body }
    }

    /// The first entry of a new primary.
    pub fn empty(at: Position) -> Self {
        Self { at, part: None, kind: Kind::Empty, body: Body::empty() }
    }

    /// What stands under its part.
    pub fn stands(&self) -> Stands {
        Stands { seq: self.at.seq, refused: self.kind == Kind::Refusal }
    }

    /// What it adds to a message or a window.
    pub fn weight(&self) -> usize {
        ENTRY_HEAD_BYTES + self.body.0.len()
    }

    /// Whether it could have been appended by a primary.
    pub fn is_well_formed(&self) -> bool {
        (self.kind == Kind::Empty) == self.part.is_none() && self.body.0.len() <= ENTRY_BODY_MAX_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Epoch, TaskUid};

    #[test]
    fn what_depends_on_the_document_is_conditional() {
        let conditional =
            [Kind::Set { skip_creation: true }, Kind::Merge { skip_creation: true }, Kind::DeleteByFilter, Kind::Edit];
        let plain = [
            Kind::Set { skip_creation: false },
            Kind::Merge { skip_creation: false },
            Kind::Delete,
            Kind::Clear,
            Kind::Empty,
            Kind::Refusal,
            Kind::Home,
        ];
        assert!(conditional.iter().all(|k| k.is_conditional()));
        assert!(!plain.iter().any(|k| k.is_conditional()));
    }

    #[test]
    fn every_entry_but_an_empty_one_is_a_part() {
        let part = TaskPart { task: TaskUid(7), part: 1 };
        let write = Write { part, kind: Kind::Delete, body: Body(Arc::from(*b"[1,2]")) };
        let at = Position { epoch: Epoch::new(3).unwrap(), seq: 9 };
        let entry = Entry::of(write, at);
        assert!(entry.is_well_formed() && Entry::empty(at).is_well_formed());
        assert!(!Entry { part: None, ..entry.clone() }.is_well_formed());
        assert!(!Entry { part: Some(part), ..Entry::empty(at) }.is_well_formed());
        assert_eq!(entry.weight(), ENTRY_HEAD_BYTES + 5);
    }
}
