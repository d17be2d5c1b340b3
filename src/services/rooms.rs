//! Room for what each peer sends, until it has been heard.
//!
//! Rule: what one peer sends takes no room from another. Must not know: what is sent, or how much a unit of room holds.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::types::MemberId;
use crate::types::limits::MEMBERS_MAX;

/// Units of room of each peer.
pub(super) const UNITS: usize = 64;

/// The rooms of all peers; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Rooms(Arc<Mutex<BTreeMap<MemberId, Arc<Semaphore>>>>);

impl Rooms {
    /// So many units of a peer's room; `None`, and nothing is taken, if there are not so many left.
    pub(super) fn take(&self, of: &MemberId, units: usize) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(units).ok()?;
        self.room(of)?.try_acquire_many_owned(units).ok()
    }

    fn room(&self, of: &MemberId) -> Option<Arc<Semaphore>> {
        let mut rooms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if rooms.len() >= MEMBERS_MAX && !rooms.contains_key(of) {
            // Members come and go; who has nothing waiting needs no entry.
            rooms.retain(|_, room| room.available_permits() < UNITS);
            if rooms.len() >= MEMBERS_MAX {
                return None;
            }
        }
        let room = rooms.entry(of.clone()).or_insert_with(|| Arc::new(Semaphore::new(UNITS)));
        Some(Arc::clone(room))
    }
}
