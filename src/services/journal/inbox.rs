//! Messages of peers that wait for the driver.
//!
//! Rule: what one peer sends takes no room from another, and what has no room is dropped. Must not know: what messages say.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::proto::journal::Message;
use crate::services::rooms::{Rooms, UNITS};
use crate::types::limits::{JOURNAL_ENCODED_MAX_BYTES, JOURNAL_MESSAGES_MAX, MEMBERS_MAX};
use crate::types::{JournalKey, MemberId};
use crate::wire::codec::{self, CodecError};

/// The unit in which room is counted: even an empty call takes its part, and the largest takes all.
const UNIT_BYTES: usize = 512 << 10;

/// A message to a replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Of which shard.
    pub key: JournalKey,
    /// What is said.
    pub message: Message,
}

/// Messages of one call, with the room that they take until the driver has heard them.
#[derive(Debug)]
pub struct Received {
    /// Who sent them, as the transport has proved.
    pub from: MemberId,
    /// What they say; checked by the cores.
    pub messages: Vec<Envelope>,
    _room: OwnedSemaphorePermit,
}

/// Where messages are put; cheap to clone.
#[derive(Debug, Clone)]
pub struct Inbox {
    waiting: mpsc::Sender<Received>,
    rooms: Rooms,
}

/// Why messages were not taken.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// Their sender has sent more than can be heard at once, or the driver has ended.
    #[error("no room for a journal's messages")]
    Full,
    /// They are no messages.
    #[error(transparent)]
    Malformed(#[from] CodecError),
    /// There are more than may be.
    #[error("{0} messages in one call")]
    Many(usize),
}

impl Inbox {
    /// An empty inbox, and the end from which it is read.
    pub fn new() -> (Self, mpsc::Receiver<Received>) {
        let (waiting, read) = mpsc::channel(UNITS * MEMBERS_MAX);
        (Self { waiting, rooms: Rooms::default() }, read)
    }

    /// Puts the messages of one call where the driver finds them.
    ///
    /// # Errors
    /// [`NotTaken`]; they are dropped then.
    pub fn put(&self, from: &MemberId, body: &Bytes) -> Result<(), NotTaken> {
        let units = body.len().div_ceil(UNIT_BYTES).clamp(1, UNITS);
        let room = self.rooms.take(from, units).ok_or(NotTaken::Full)?;
        let messages: Vec<Envelope> = codec::decode::<_, JOURNAL_ENCODED_MAX_BYTES>("journal messages", body)?;
        if messages.len() > JOURNAL_MESSAGES_MAX {
            return Err(NotTaken::Many(messages.len()));
        }
        let received = Received { from: from.clone(), messages, _room: room };
        self.waiting.try_send(received).map_err(|_| NotTaken::Full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::journal::Said;
    use crate::types::{Epoch, PhysicalIndex, ShardId, StoreId};

    fn encoded(count: usize) -> Bytes {
        let store = StoreId([1; 16]);
        let message = Message { to: store, from: store, epoch: Epoch::ZERO, said: Said::NeedsSnapshot };
        let key = JournalKey { index: PhysicalIndex::new("movies__m00000001").unwrap(), shard: ShardId(1) };
        let messages = vec![Envelope { key, message }; count];
        codec::encode("journal messages", &messages, JOURNAL_ENCODED_MAX_BYTES).unwrap().into()
    }

    #[tokio::test]
    async fn a_peer_that_floods_takes_no_room_from_another() {
        let (inbox, mut read) = Inbox::new();
        let (loud, quiet) = (MemberId::new("loud").unwrap(), MemberId::new("quiet").unwrap());
        let taken = (0..1000).filter(|_| inbox.put(&loud, &encoded(3)).is_ok()).count();
        assert_eq!(taken, UNITS);
        inbox.put(&quiet, &encoded(1)).unwrap();
        let first = read.recv().await.unwrap();
        assert_eq!((&first.from, first.messages.len()), (&loud, 3));
        drop(first);
        inbox.put(&loud, &encoded(1)).unwrap();
    }

    #[test]
    fn what_is_no_message_is_not_taken() {
        let (inbox, _read) = Inbox::new();
        let from = MemberId::new("m1").unwrap();
        for bad in [&b""[..], b"\xff\xff\xff\xff\xff\xff\xff\xff", &[0xfd; 40]] {
            assert!(matches!(inbox.put(&from, &Bytes::copy_from_slice(bad)), Err(NotTaken::Malformed(_))));
        }
        assert!(matches!(inbox.put(&from, &encoded(JOURNAL_MESSAGES_MAX + 1)), Err(NotTaken::Many(_))));
        // Nothing of it waits: the room is free again.
        assert!((0..UNITS).all(|_| inbox.put(&from, &encoded(1)).is_ok()));
    }
}
