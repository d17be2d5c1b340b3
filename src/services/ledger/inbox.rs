//! Messages of peers that wait for the driver.
//!
//! Rule: what one peer sends takes no room from another, and what has no room is dropped. Must not know: what messages say.

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::proto::ledger::Message;
use crate::services::rooms::{Rooms, UNITS};
use crate::types::MemberId;
use crate::types::limits::{LEDGER_ENCODED_MAX_BYTES, MEMBERS_MAX};
use crate::wire::codec::{self, CodecError};

/// Bytes of one peer's messages that wait: two of the largest.
const WAITING_BYTES: usize = 2 * LEDGER_ENCODED_MAX_BYTES;
/// The unit in which room is counted: even an empty message takes its part.
const UNIT_BYTES: usize = WAITING_BYTES / UNITS;

/// A message with the room that it takes until the driver has heard it.
#[derive(Debug)]
pub struct Received {
    /// Who sent it, as the transport has proved.
    pub from: MemberId,
    /// What it says; checked by the core.
    pub message: Message,
    _room: OwnedSemaphorePermit,
}

/// Where messages are put; cheap to clone.
#[derive(Debug, Clone)]
pub struct Inbox {
    waiting: mpsc::Sender<Received>,
    rooms: Rooms,
}

/// Why a message was not taken.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// Its sender has sent more than can be heard at once, or the driver has ended.
    #[error("no room for a ledger message")]
    Full,
    /// It is no message.
    #[error(transparent)]
    Malformed(#[from] CodecError),
}

impl Inbox {
    /// An empty inbox, and the end from which it is read.
    pub fn new() -> (Self, mpsc::Receiver<Received>) {
        let (waiting, read) = mpsc::channel(UNITS * MEMBERS_MAX);
        (Self { waiting, rooms: Rooms::default() }, read)
    }

    /// Puts a peer's message where the driver finds it.
    ///
    /// # Errors
    /// [`NotTaken`]; the message is dropped then.
    pub fn put(&self, from: &MemberId, body: &Bytes) -> Result<(), NotTaken> {
        let units = body.len().div_ceil(UNIT_BYTES).max(1);
        let room = self.rooms.take(from, units).ok_or(NotTaken::Full)?;
        let message = codec::decode::<_, LEDGER_ENCODED_MAX_BYTES>("ledger message", body)?;
        let received = Received { from: from.clone(), message, _room: room };
        self.waiting.try_send(received).map_err(|_| NotTaken::Full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ledger::{Header, Sender};
    use crate::types::StoreId;

    fn encoded() -> Bytes {
        let sender = Sender { store: StoreId([1; 16]), start: 1, nonce: 1, began: 1, count: 1 };
        let header = Header {
            mesh: None,
            made: false,
            sender,
            to_store: None,
            list: None,
            forming: None,
            line: None,
            took: None,
            known: Vec::new(),
        };
        let message = Message { header, items: Vec::new() };
        codec::encode("ledger message", &message, LEDGER_ENCODED_MAX_BYTES).unwrap().into()
    }

    #[tokio::test]
    async fn a_peer_that_floods_takes_no_room_from_another() {
        let (inbox, mut read) = Inbox::new();
        let (loud, quiet) = (MemberId::new("loud").unwrap(), MemberId::new("quiet").unwrap());
        let taken = (0..1000).filter(|_| inbox.put(&loud, &encoded()).is_ok()).count();
        assert_eq!(taken, UNITS);
        inbox.put(&quiet, &encoded()).unwrap();
        assert_eq!(read.recv().await.unwrap().from, loud);
        inbox.put(&loud, &encoded()).unwrap();
    }

    #[test]
    fn what_is_no_message_is_not_taken() {
        let (inbox, _read) = Inbox::new();
        let from = MemberId::new("m1").unwrap();
        for bad in [&b""[..], b"\xff\xff\xff\xff\xff\xff\xff\xff", &[0xfd; 40]] {
            assert!(matches!(inbox.put(&from, &Bytes::copy_from_slice(bad)), Err(NotTaken::Malformed(_))));
        }
        // Nothing of it waits: the room is free again.
        assert!((0..UNITS).all(|_| inbox.put(&from, &encoded()).is_ok()));
    }
}
