//! What a voter may promise and accept for one key.
//!
//! Rule: a promise is only given above everything that was promised or accepted; an acceptance only at or above the
//! promise. Both are rows, to be durable before they are told. Nothing here answers what is chosen: what a voter holds is
//! for votes only. Must not know: lists, stores, messages.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::effect::Row;
use super::stored::Register;
use crate::types::limits::LEDGER_ITEMS_MAX;
use crate::types::{Ballot, RecordKey, Versioned};

/// Whether an acceptance is new.
#[derive(Debug, PartialEq)]
pub enum Acceptance {
    /// The row must be durable before the voter says so.
    New(Row),
    /// The message came again: it is durable already.
    Again,
    /// The ballot was used for another value before: its proposer is broken.
    Reused,
}

/// Promises `ballot`.
///
/// # Errors
/// What was promised instead: an equal ballot is refused as well, for a promise is given once.
pub fn prepare(register: Option<&Register>, key: &RecordKey, ballot: &Ballot) -> Result<Row, Ballot> {
    match register.and_then(|r| r.promise.as_ref()) {
        Some(promise) if ballot <= promise => Err(promise.clone()),
        _ => Ok(Row::Promise { key: key.clone(), ballot: ballot.clone() }),
    }
}

/// Accepts `record` at `ballot`, and promises `next` in the same row.
///
/// # Errors
/// What was promised instead.
pub fn accept(
    register: Option<&Register>,
    key: &RecordKey,
    ballot: &Ballot,
    record: &Versioned,
    next: Option<&Ballot>,
) -> Result<Acceptance, Ballot> {
    if let Some((at, known)) = register.and_then(|r| r.accepted.as_ref())
        && at == ballot
    {
        // Nothing higher was accepted since, and the promise of `next` was given with the acceptance.
        return Ok(if known == record { Acceptance::Again } else { Acceptance::Reused });
    }
    match register.and_then(|r| r.promise.as_ref()) {
        Some(promise) if ballot < promise => Err(promise.clone()),
        _ => Ok(Acceptance::New(Row::Accepted {
            key: key.clone(),
            promise: next.unwrap_or(ballot).clone(),
            ballot: ballot.clone(),
            record: record.clone(),
        })),
    }
}

/// The keys behind `after` that have a value or a promise, in order, and whether there are more.
pub fn keys(registers: &BTreeMap<RecordKey, Register>, after: Option<&RecordKey>) -> (Vec<RecordKey>, bool) {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let mut rest = registers.range::<RecordKey, _>((from, Bound::Unbounded)).map(|(key, _)| key.clone());
    let page: Vec<_> = rest.by_ref().take(LEDGER_ITEMS_MAX).collect();
    let more = rest.next().is_some();
    (page, more)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::MemberId;

    fn ballot(counter: u64, member: &str) -> Ballot {
        Ballot { counter, member: MemberId::new(member).unwrap(), start: 1 }
    }

    fn key() -> RecordKey {
        RecordKey::new("k").unwrap()
    }

    fn value(version: u64, text: &str) -> Versioned {
        Versioned { version, announced: version, value: text.into() }
    }

    fn register(promise: &Ballot, accepted: Option<(Ballot, Versioned)>) -> Register {
        Register { promise: Some(promise.clone()), accepted }
    }

    #[test]
    fn a_promise_is_given_above_everything_only() {
        let held = register(&ballot(5, "b"), None);
        assert_eq!(prepare(Some(&held), &key(), &ballot(4, "c")), Err(ballot(5, "b")));
        assert_eq!(prepare(Some(&held), &key(), &ballot(5, "a")), Err(ballot(5, "b")));
        assert!(prepare(Some(&held), &key(), &ballot(5, "c")).is_ok());
        assert!(prepare(None, &key(), &ballot(1, "a")).is_ok());
    }

    #[test]
    fn an_equal_ballot_is_not_promised_again() {
        let held = register(&ballot(5, "b"), None);
        assert_eq!(prepare(Some(&held), &key(), &ballot(5, "b")), Err(ballot(5, "b")));
    }

    #[test]
    fn acceptance_takes_the_promised_ballot_and_higher_ones() {
        let held = register(&ballot(5, "b"), None);
        let at = |b: &Ballot| accept(Some(&held), &key(), b, &value(1, "x"), None);
        assert_eq!(at(&ballot(4, "z")), Err(ballot(5, "b")));
        assert!(matches!(at(&ballot(5, "b")), Ok(Acceptance::New(_))));
        assert!(matches!(at(&ballot(6, "a")), Ok(Acceptance::New(_))));
    }

    #[test]
    fn the_next_ballot_is_promised_with_the_value() {
        let row = accept(None, &key(), &ballot(1, "a"), &value(1, "x"), Some(&ballot(2, "a"))).unwrap();
        let Acceptance::New(Row::Accepted { promise, ballot: at, .. }) = row else { panic!("{row:?}") };
        assert_eq!((promise, at), (ballot(2, "a"), ballot(1, "a")));
    }

    #[test]
    fn the_same_acceptance_again_changes_nothing_even_below_the_kept_promise() {
        let held = register(&ballot(2, "a"), Some((ballot(1, "a"), value(1, "x"))));
        let again = accept(Some(&held), &key(), &ballot(1, "a"), &value(1, "x"), Some(&ballot(2, "a")));
        assert_eq!(again, Ok(Acceptance::Again));
        let other = accept(Some(&held), &key(), &ballot(1, "a"), &value(1, "y"), None);
        assert_eq!(other, Ok(Acceptance::Reused));
    }

    #[test]
    fn an_overtaken_acceptance_is_refused_when_it_comes_again() {
        let held = register(&ballot(3, "b"), Some((ballot(3, "b"), value(2, "y"))));
        let again = accept(Some(&held), &key(), &ballot(1, "a"), &value(1, "x"), None);
        assert_eq!(again, Err(ballot(3, "b")));
    }

    #[test]
    fn keys_with_only_a_promise_are_listed_in_pages() {
        let registers: BTreeMap<_, _> = (0..LEDGER_ITEMS_MAX + 3)
            .map(|i| (RecordKey::new(format!("{i:05}")).unwrap(), register(&ballot(1, "a"), None)))
            .collect();
        let (first, more) = keys(&registers, None);
        assert_eq!((first.len(), more), (LEDGER_ITEMS_MAX, true));
        let (second, more) = keys(&registers, first.last());
        assert_eq!((second.len(), more), (3, false));
        assert!(second[0] > *first.last().unwrap());
    }
}
