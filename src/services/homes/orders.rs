//! Orders that this process carries out: settings, indexes, whatever is no part of a shard.
//!
//! An order is entered here before its head goes to its home, and leaves when its outcome is kept there. So a process that
//! does not know an order will never carry it out: it never had it, or is another process than the one that had it. Rule: an
//! order is either begun or refused, never both. Must not know: what an order does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::proto::tasks::home::Refusal;
use crate::types::TaskUid;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waits,
    Begun,
    Refused,
}

/// The orders of this process; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Orders {
    known: Arc<Mutex<BTreeMap<TaskUid, State>>>,
}

/// An order that this process has; it is out of its hands when this is dropped.
#[derive(Debug)]
pub struct Held {
    uid: TaskUid,
    orders: Orders,
}

impl Orders {
    /// Enters an order, before its home hears of it.
    pub fn hold(&self, uid: TaskUid) -> Held {
        self.with(|known| known.insert(uid, State::Waits));
        Held { uid, orders: self.clone() }
    }

    /// Refuses an order for ever, unless it is begun.
    pub fn refuse(&self, uid: TaskUid) -> Refusal {
        self.with(|known| match known.get_mut(&uid) {
            Some(State::Begun) => Refusal::There,
            Some(state) => {
                *state = State::Refused;
                Refusal::Refused
            }
            None => Refusal::Refused,
        })
    }

    fn with<T>(&self, change: impl FnOnce(&mut BTreeMap<TaskUid, State>) -> T) -> T {
        change(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Held {
    /// Says whether the order may be carried out; from then on it is not refused any more.
    #[must_use]
    pub fn begin(&self) -> bool {
        self.orders.with(|known| match known.get_mut(&self.uid) {
            Some(State::Refused) | None => false,
            Some(state) => {
                *state = State::Begun;
                true
            }
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.orders.with(|known| known.remove(&self.uid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_begun_or_refused() {
        let (orders, uid) = (Orders::default(), TaskUid(7));
        assert_eq!(orders.refuse(uid), Refusal::Refused, "nobody has it");
        let held = orders.hold(uid);
        assert!(held.begin());
        assert_eq!(orders.refuse(uid), Refusal::There);
        drop(held);
        assert_eq!(orders.refuse(uid), Refusal::Refused);
        let held = orders.hold(uid);
        assert_eq!(orders.refuse(uid), Refusal::Refused);
        assert!(!held.begin());
    }
}
