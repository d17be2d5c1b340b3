//! Which stores are older than they were.
//!
//! A store put back from a copy has forgotten promises. It is known by its count of transactions: a process that begins
//! with fewer than were seen of its store is refused, for good. A delayed message of an earlier process is refused as well;
//! the refusal names that process, so the one that runs now ignores it.
//!
//! Rule: what was seen of a store only grows. Must not know: what the transactions were.

use super::message::{Refusal, Sender};

/// What becomes of a message after its sender has been looked at.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// As before: nothing to remember.
    Same,
    /// More transactions than before: worth remembering with the next transaction.
    Further(Sender),
    /// A process that was not known: remembered before the message is used.
    Took(Sender),
    /// Refuse with this.
    Refuse(Refusal),
}

/// Looks at a sender, of whose store `known` was the last that was seen.
pub fn hear(known: Option<&Sender>, sender: &Sender) -> Heard {
    let Some(known) = known else { return Heard::Took(*sender) };
    if known.start == sender.start && known.began == sender.began {
        return if sender.count > known.count { Heard::Further(*sender) } else { Heard::Same };
    }
    if sender.start > known.start && sender.began >= known.count {
        return Heard::Took(*sender);
    }
    Heard::Refuse(Refusal::RolledBack {
        store: sender.store,
        refused: sender.start,
        start: known.start,
        count: known.count,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::StoreId;

    fn sender(start: u64, began: u64, count: u64) -> Sender {
        Sender { store: StoreId([1; 16]), start, began, count }
    }

    fn after(known: Sender, next: Sender) -> Heard {
        hear(Some(&known), &next)
    }

    #[test]
    fn a_process_goes_on_and_a_later_one_takes_over() {
        assert_eq!(hear(None, &sender(1, 1, 1)), Heard::Took(sender(1, 1, 1)));
        assert_eq!(after(sender(1, 1, 5), sender(1, 1, 9)), Heard::Further(sender(1, 1, 9)));
        assert_eq!(after(sender(1, 1, 9), sender(1, 1, 5)), Heard::Same);
        assert_eq!(after(sender(1, 1, 9), sender(2, 10, 10)), Heard::Took(sender(2, 10, 10)));
    }

    #[test]
    fn a_store_that_begins_with_fewer_transactions_is_refused() {
        for copy in [sender(2, 8, 8), sender(2, 3, 99), sender(1, 2, 9), sender(3, 8, 50)] {
            assert!(matches!(after(sender(1, 1, 9), copy), Heard::Refuse(_)), "{copy:?}");
        }
    }

    #[test]
    fn the_refusal_names_the_process_that_was_refused() {
        let heard = after(sender(3, 20, 25), sender(2, 10, 12));
        let expected = Refusal::RolledBack { store: StoreId([1; 16]), refused: 2, start: 3, count: 25 };
        assert_eq!(heard, Heard::Refuse(expected));
    }
}
