//! What the body of an entry in a shard's journal is made of: the head of its task, and what it brings.
//!
//! Every part carries the whole head, so that any one of them names all parts, and a home that has not got the head hears it
//! from whoever has a part. The bytes are 4 bytes with the length of the head, little-endian, the head as JSON, the payload.
//! Rule: what was joined is split into the same, and nothing that says another length than it has is split at all. Must not
//! know: what a payload is.

use super::super::task::Head;
use super::entry::is_head;
use crate::proto::journal::Body;
use crate::proto::journal::entry::ENTRY_BODY_MAX_BYTES;

/// Largest head of a part, encoded: the shards and counts of a task are the largest of it, `customMetadata` beside them.
pub const PART_HEAD_MAX_BYTES: usize = 2 << 20;
/// Bytes before the head.
const LENGTH_BYTES: usize = 4;

/// The body of an entry; `None` if it would be larger than a body, or its head than a head, may be.
pub fn join(head: &[u8], payload: &[u8]) -> Option<Body> {
    let length = u32::try_from(head.len()).ok().filter(|_| head.len() <= PART_HEAD_MAX_BYTES)?;
    let all = LENGTH_BYTES.checked_add(head.len())?.checked_add(payload.len())?;
    if all > ENTRY_BODY_MAX_BYTES {
        return None;
    }
    let mut bytes = Vec::with_capacity(all);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(head);
    bytes.extend_from_slice(payload);
    Some(Body(bytes.into()))
}

/// Head and payload; `None` if it can't have been joined.
pub fn split(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = body.split_first_chunk::<LENGTH_BYTES>().filter(|_| body.len() <= ENTRY_BODY_MAX_BYTES)?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok().filter(|length| *length <= PART_HEAD_MAX_BYTES)?;
    rest.split_at_checked(length)
}

/// A head for [`join`]; `None` if no task may be so.
pub fn encode_head(head: &Head) -> Option<Vec<u8>> {
    let bytes = serde_json::to_vec(head).ok().filter(|_| is_head(head))?;
    (bytes.len() <= PART_HEAD_MAX_BYTES).then_some(bytes)
}

/// The head that a part names; `None` if there is none that a task may have.
pub fn head_of(body: &[u8]) -> Option<Head> {
    let (head, _) = split(body)?;
    serde_json::from_slice::<Head>(head).ok().filter(is_head)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::parts::{Parts, Work};
    use super::*;
    use crate::proto::tasks::{Subject, When};
    use crate::types::PhysicalIndex;

    #[test]
    fn every_part_names_its_task() {
        let index = PhysicalIndex::new("movies__m00000001").unwrap();
        let head = Head {
            index_uid: Some("movies".into()),
            subject: Subject::Documents { received: 3, distinct: 2 },
            work: Work::Parts { index: index.clone(), parts: Parts::one_each([1, 63]) },
            enqueued: When(5),
            custom_metadata: Some("é\n".into()),
            key: None,
        };
        let body = join(&encode_head(&head).unwrap(), b"{\"id\":1}\n").unwrap();
        assert_eq!(head_of(&body.0), Some(head.clone()));
        assert_eq!(split(&body.0).unwrap().1, b"{\"id\":1}\n");
        let nothing = Head { work: Work::Parts { index, parts: Parts::default() }, ..head };
        assert_eq!(encode_head(&nothing), None);
        assert_eq!(head_of(&join(&serde_json::to_vec(&nothing).unwrap(), b"").unwrap().0), None);
    }

    #[test]
    fn a_body_keeps_the_bound_of_entries() {
        let most = ENTRY_BODY_MAX_BYTES - LENGTH_BYTES - 2;
        let payload = vec![b'x'; most + 1];
        assert_eq!(join(b"{}", &payload), None);
        let body = join(b"{}", &payload[..most]).unwrap();
        assert_eq!(body.0.len(), ENTRY_BODY_MAX_BYTES);
        assert_eq!(split(&body.0).map(|(head, payload)| (head, payload.len())), Some((&b"{}"[..], most)));
        assert_eq!(join(&vec![b' '; PART_HEAD_MAX_BYTES + 1], b""), None);
    }

    #[test]
    fn a_length_that_is_a_lie_splits_nothing() {
        for bad in [&b""[..], b"\0\0\0", b"\x01\0\0\0", b"\xff\xff\xff\xffabc", b"\x04\0\0\0abc"] {
            assert_eq!(split(bad), None);
        }
        assert_eq!(split(b"\0\0\0\0"), Some((&b""[..], &b""[..])));
        assert_eq!(split(b"\x02\0\0\0abc"), Some((&b"ab"[..], &b"c"[..])));
    }

    proptest! {
        #[test]
        fn what_is_joined_is_split(
            head in prop::collection::vec(any::<u8>(), 0..64), payload in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let body = join(&head, &payload).unwrap();
            prop_assert_eq!(split(&body.0), Some((&head[..], &payload[..])));
        }

        #[test]
        fn nothing_that_a_peer_sends_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some((head, payload)) = split(&bytes) {
                let joined = join(head, payload).unwrap();
                prop_assert_eq!(&*joined.0, &bytes[..]);
            }
            let _ = head_of(&bytes);
        }
    }
}
