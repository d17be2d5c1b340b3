//! How a call, an answer and a hello lie on a stream: a head of fixed size, a header, and raw bytes until the end.
//!
//! All numbers are big-endian. A head never changes its size or meaning, whatever the version; what a newer version has
//! to add goes into the header of a new verb. Lengths are checked against their limits before anything is reserved. Must
//! not know: sockets, and what is in a header.

use crate::types::{MemberId, MeshId, limits};

/// The version of the protocol that this member speaks. A call of a newer version with a known verb is answered.
pub const PROTOCOL_VERSION: u16 = 1;

/// Bytes of a request's head.
pub const REQUEST_HEAD_BYTES: usize = 2 + 2 + 16 + 4 + 16 + 4;
/// Bytes of an answer's head.
pub const ANSWER_HEAD_BYTES: usize = 2 + 4;
/// Largest hello.
pub const HELLO_MAX_BYTES: usize = 256;
/// Bytes of the answer to a hello.
pub const WELCOME_BYTES: usize = 2 + 8;

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Protocol versions begin at 1.
    #[error("no protocol version")]
    NoVersion,
    /// A header over the limit.
    #[error("a header of {size} bytes is over the limit of {limit}")]
    HeaderTooLarge {
        /// What the head claims.
        size: u32,
        /// The limit.
        limit: usize,
    },
    /// Not a hello.
    #[error("malformed hello: {reason}")]
    Hello {
        /// What is wrong.
        reason: &'static str,
    },
}

/// Takes the first `N` bytes off `bytes`.
fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*first)
}

/// What stands before a call's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestHead {
    /// The caller's version of the protocol.
    pub version: u16,
    /// Which verb ([`crate::wire::verbs::Request::verb`]).
    pub verb: u16,
    /// The mesh that the caller means.
    pub mesh: MeshId,
    /// Milliseconds for which the caller still waits.
    pub deadline_ms: u32,
    /// The client request that the call belongs to.
    pub trace: u128,
    /// Bytes of the header that follows.
    pub header_len: u32,
}

impl RequestHead {
    /// The head as bytes.
    pub fn encode(&self) -> [u8; REQUEST_HEAD_BYTES] {
        let mut out = [0; REQUEST_HEAD_BYTES];
        out[0..2].copy_from_slice(&self.version.to_be_bytes());
        out[2..4].copy_from_slice(&self.verb.to_be_bytes());
        out[4..20].copy_from_slice(&self.mesh.0);
        out[20..24].copy_from_slice(&self.deadline_ms.to_be_bytes());
        out[24..40].copy_from_slice(&self.trace.to_be_bytes());
        out[40..44].copy_from_slice(&self.header_len.to_be_bytes());
        out
    }

    /// Reads a head.
    ///
    /// # Errors
    /// [`FrameError`] for a version of 0 or a header over the limit.
    pub fn decode(bytes: &[u8; REQUEST_HEAD_BYTES]) -> Result<Self, FrameError> {
        let mut rest = bytes.as_slice();
        let head = Self {
            version: u16::from_be_bytes(take(&mut rest).unwrap_or_default()),
            verb: u16::from_be_bytes(take(&mut rest).unwrap_or_default()),
            mesh: MeshId(take(&mut rest).unwrap_or_default()),
            deadline_ms: u32::from_be_bytes(take(&mut rest).unwrap_or_default()),
            trace: u128::from_be_bytes(take(&mut rest).unwrap_or_default()),
            header_len: u32::from_be_bytes(take(&mut rest).unwrap_or_default()),
        };
        check_version(head.version)?;
        check_header(head.header_len)?;
        Ok(head)
    }
}

fn check_version(version: u16) -> Result<(), FrameError> {
    if version == 0 { Err(FrameError::NoVersion) } else { Ok(()) }
}

fn check_header(size: u32) -> Result<(), FrameError> {
    let limit = limits::CALL_HEADER_MAX_BYTES;
    if size as usize > limit { Err(FrameError::HeaderTooLarge { size, limit }) } else { Ok(()) }
}

/// What stands before an answer's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerHead {
    /// The answering member's version of the protocol.
    pub version: u16,
    /// Bytes of the header that follows.
    pub header_len: u32,
}

impl AnswerHead {
    /// The head as bytes.
    pub fn encode(&self) -> [u8; ANSWER_HEAD_BYTES] {
        let mut out = [0; ANSWER_HEAD_BYTES];
        out[0..2].copy_from_slice(&self.version.to_be_bytes());
        out[2..6].copy_from_slice(&self.header_len.to_be_bytes());
        out
    }

    /// Reads a head.
    ///
    /// # Errors
    /// [`FrameError`] for a version of 0 or a header over the limit.
    pub fn decode(bytes: &[u8; ANSWER_HEAD_BYTES]) -> Result<Self, FrameError> {
        let mut rest = bytes.as_slice();
        let head = Self {
            version: u16::from_be_bytes(take(&mut rest).unwrap_or_default()),
            header_len: u32::from_be_bytes(take(&mut rest).unwrap_or_default()),
        };
        check_version(head.version)?;
        check_header(head.header_len)?;
        Ok(head)
    }
}

/// The first thing on a connection: who dials. The certificate proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The dialling member's version of the protocol.
    pub version: u16,
    /// The mesh that it belongs to.
    pub mesh: MeshId,
    /// Its process's start number: connections of an earlier process are ended.
    pub start: u64,
    /// Who it says it is.
    pub member: MemberId,
}

impl Hello {
    /// The hello as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let id = self.member.as_str().as_bytes();
        let mut out = Vec::with_capacity(27 + id.len());
        out.extend_from_slice(&self.version.to_be_bytes());
        out.extend_from_slice(&self.mesh.0);
        out.extend_from_slice(&self.start.to_be_bytes());
        // A member id is a DNS label of at most 63 bytes.
        out.push(u8::try_from(id.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(id);
        out
    }

    /// Reads a hello; what a newer version adds behind it is passed over.
    ///
    /// # Errors
    /// [`FrameError`] naming what is wrong.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, FrameError> {
        let short = FrameError::Hello { reason: "too short" };
        let version = u16::from_be_bytes(take(&mut bytes).ok_or(short.clone())?);
        check_version(version)?;
        let mesh = MeshId(take(&mut bytes).ok_or(short.clone())?);
        let start = u64::from_be_bytes(take(&mut bytes).ok_or(short.clone())?);
        let [len] = take(&mut bytes).ok_or(short.clone())?;
        let id = bytes.get(..usize::from(len)).ok_or(short)?;
        let id = std::str::from_utf8(id).map_err(|_| FrameError::Hello { reason: "the member id is no text" })?;
        let member = MemberId::new(id).map_err(|_| FrameError::Hello { reason: "the member id is none" })?;
        Ok(Self { version, mesh, start, member })
    }
}

/// The answer to a hello that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The answering member's version of the protocol.
    pub version: u16,
    /// The start number of its process.
    pub start: u64,
}

impl Welcome {
    /// The welcome as bytes.
    pub fn encode(&self) -> [u8; WELCOME_BYTES] {
        let mut out = [0; WELCOME_BYTES];
        out[0..2].copy_from_slice(&self.version.to_be_bytes());
        out[2..10].copy_from_slice(&self.start.to_be_bytes());
        out
    }

    /// Reads a welcome.
    ///
    /// # Errors
    /// [`FrameError::NoVersion`].
    pub fn decode(bytes: &[u8; WELCOME_BYTES]) -> Result<Self, FrameError> {
        let mut rest = bytes.as_slice();
        let version = u16::from_be_bytes(take(&mut rest).unwrap_or_default());
        check_version(version)?;
        Ok(Self { version, start: u64::from_be_bytes(take(&mut rest).unwrap_or_default()) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn request_head_survives_the_wire(version in 1_u16.., verb: u16, mesh: [u8; 16], deadline_ms: u32, trace: u128, len in 0..=limits::CALL_HEADER_MAX_BYTES) {
            let header_len = u32::try_from(len).unwrap();
            let head = RequestHead { version, verb, mesh: MeshId(mesh), deadline_ms, trace, header_len };
            prop_assert_eq!(RequestHead::decode(&head.encode()).unwrap(), head);
        }

        #[test]
        fn hello_survives_the_wire_with_anything_behind_it(version in 1_u16.., mesh: [u8; 16], start: u64, id in "[a-z][a-z0-9]{0,62}", tail: Vec<u8>) {
            let hello = Hello { version, mesh: MeshId(mesh), start, member: MemberId::new(id).unwrap() };
            let mut bytes = hello.encode();
            prop_assert!(bytes.len() <= HELLO_MAX_BYTES);
            bytes.extend_from_slice(&tail);
            prop_assert_eq!(Hello::decode(&bytes).unwrap(), hello);
        }

        #[test]
        fn garbage_is_refused_or_read_but_never_panics(bytes: Vec<u8>, head: [u8; 32], answer: [u8; ANSWER_HEAD_BYTES]) {
            let _ = Hello::decode(&bytes);
            let mut request = [0; REQUEST_HEAD_BYTES];
            request[..32].copy_from_slice(&head);
            let _ = RequestHead::decode(&request);
            if let Ok(a) = AnswerHead::decode(&answer) {
                prop_assert!(a.header_len as usize <= limits::CALL_HEADER_MAX_BYTES);
            }
        }
    }

    #[test]
    fn every_cut_hello_is_refused() {
        let hello = Hello { version: 1, mesh: MeshId([7; 16]), start: 3, member: MemberId::new("m1").unwrap() };
        let bytes = hello.encode();
        for n in 0..bytes.len() {
            assert!(Hello::decode(&bytes[..n]).is_err(), "{n}");
        }
    }
}
