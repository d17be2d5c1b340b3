//! How many bytes of requests and answers may be held at once, and how peers share them.
//!
//! Rule: what one peer sends never takes the room of what another sends, and documents never that of votes. Each peer has a
//! small room of its own for control calls. For all other calls there is one room, of which a peer may hold as much as it
//! leaves free: one peer alone half of it, two a third each, and there is always some left for the next. Must not know:
//! what is held.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// The unit in which memory is counted.
const UNIT_BYTES: usize = 64 << 10;
/// Answers up to this size are not counted: so many of them as there may be requests at once are no burden.
const SMALL_ANSWER_BYTES: usize = 64 << 10;
/// Bytes of all larger answers that are held at once, of peers and of the own node each.
pub(super) const ANSWER_MEMORY_DEFAULT_BYTES: usize = 1 << 30;
/// Why an answer was not read to its end.
pub(super) const ANSWERS_TOO_LARGE: &str = "the answers held at this member are too large together";

/// Room that peers share.
pub(super) struct Room {
    free_units: Mutex<usize>,
}

impl Room {
    pub(super) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self { free_units: Mutex::new(bytes / UNIT_BYTES) })
    }
}

/// What one peer holds of a room.
pub(super) struct Share {
    room: Arc<Room>,
    /// Whether as much as is held has to stay free.
    leaves_half: bool,
    // Changed under the room's lock only.
    held_units: Mutex<usize>,
}

impl Share {
    /// A share of a room that others use as well.
    pub(super) fn of(room: Arc<Room>) -> Arc<Self> {
        Arc::new(Self { room, leaves_half: true, held_units: Mutex::default() })
    }

    /// A room of its own.
    pub(super) fn alone(bytes: usize) -> Arc<Self> {
        Arc::new(Self { room: Room::new(bytes), leaves_half: false, held_units: Mutex::default() })
    }

    fn take(&self, units: usize) -> bool {
        let mut free = self.room.free_units.lock().unwrap_or_else(PoisonError::into_inner);
        let mut held = self.held_units.lock().unwrap_or_else(PoisonError::into_inner);
        match free.checked_sub(units) {
            Some(left) if !self.leaves_half || *held + units <= left => {
                *free = left;
                *held += units;
                true
            }
            _ => false,
        }
    }

    fn give_back(&self, units: usize) {
        let mut free = self.room.free_units.lock().unwrap_or_else(PoisonError::into_inner);
        let mut held = self.held_units.lock().unwrap_or_else(PoisonError::into_inner);
        *free += units;
        *held -= units;
    }
}

/// What one call holds of its peer's share.
pub(super) struct Held {
    share: Arc<Share>,
    units: usize,
}

impl Held {
    /// Nothing yet.
    pub(super) fn of(share: &Arc<Share>) -> Self {
        Self { share: Arc::clone(share), units: 0 }
    }

    /// Takes what is needed for `bytes` in all; `false`, and nothing is taken, if there is not so much left.
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let more = bytes.div_ceil(UNIT_BYTES).saturating_sub(self.units);
        if more > 0 && !self.share.take(more) {
            return false;
        }
        self.units += more;
        true
    }

    /// Takes what an answer of so many bytes needs, as [`Self::grow`].
    pub(super) fn grow_answer(&mut self, bytes: usize) -> bool {
        bytes <= SMALL_ANSWER_BYTES || self.grow(bytes)
    }

    /// The body, which holds its room until nobody refers to it any more.
    pub(super) fn keep(self, body: Bytes) -> Bytes {
        struct Kept {
            body: Bytes,
            _held: Held,
        }
        impl AsRef<[u8]> for Kept {
            fn as_ref(&self) -> &[u8] {
                &self.body
            }
        }
        if self.units == 0 { body } else { Bytes::from_owner(Kept { body, _held: self }) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.units > 0 {
            self.share.give_back(self.units);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Grows until it is refused; gives what it then holds, in units.
    fn fill(held: &mut Held) -> usize {
        while held.grow((held.units + 1) * UNIT_BYTES) {}
        held.units
    }

    #[test]
    fn a_greedy_peer_leaves_half_and_the_next_half_of_that() {
        let room = Room::new(64 * UNIT_BYTES);
        let [a, b, c] = [(); 3].map(|()| Share::of(Arc::clone(&room)));
        let [mut of_a, mut of_b, mut of_c] = [&a, &b, &c].map(Held::of);
        assert_eq!(fill(&mut of_a), 32);
        assert!(!Held::of(&a).grow(1), "no second call helps it");
        assert_eq!(fill(&mut of_b), 16);
        assert_eq!(fill(&mut of_c), 8);
        // Whoever holds too much by now has to give back first, and then all have the same.
        of_a = Held::of(&a);
        assert_eq!((fill(&mut of_b), fill(&mut of_a)), (28, 14));
        drop((of_a, of_b, of_c));
        assert_eq!(*room.free_units.lock().unwrap(), 64, "all was given back");
    }

    #[test]
    fn an_answer_holds_its_room_as_long_as_any_slice_of_it_lives() {
        let share = Share::alone(4 * UNIT_BYTES);
        let mut held = Held::of(&share);
        assert!(held.grow_answer(SMALL_ANSWER_BYTES), "small ones are free");
        assert_eq!(held.units, 0);
        assert!(held.grow_answer(3 * UNIT_BYTES));
        let body = held.keep(Bytes::from(vec![7; 3 * UNIT_BYTES]));
        let slice = body.slice(10..20);
        drop(body);
        assert!(!Held::of(&share).grow_answer(2 * UNIT_BYTES));
        assert_eq!(&slice[..], [7; 10]);
        drop(slice);
        assert!(Held::of(&share).grow_answer(4 * UNIT_BYTES));
    }

    #[test]
    fn a_room_of_its_own_is_used_up_to_the_end() {
        let share = Share::alone(4 * UNIT_BYTES);
        let (mut one, mut other) = (Held::of(&share), Held::of(&share));
        assert!(
            one.grow(3 * UNIT_BYTES) && one.grow(1) && one.grow(3 * UNIT_BYTES),
            "what it holds is not taken twice"
        );
        assert!(!other.grow(UNIT_BYTES + 1) && other.grow(UNIT_BYTES));
        assert!(!one.grow(3 * UNIT_BYTES + 1));
        drop(one);
        assert!(other.grow(4 * UNIT_BYTES));
    }
}
