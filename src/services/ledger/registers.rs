//! The ledger as the cores above it see it: their changes and reads are given to it, its answers told in their words.
//!
//! Must not know: whose cores these are, how agreement is reached.

use std::sync::Arc;
use std::time::Duration;

use super::handle::{ChangeRequest, LedgerHandle};
use crate::proto::ledger;
use crate::proto::register::{Answer, Change, Chosen, OpId, Read};
use crate::types::{RecordKey, Versioned};

/// Gives all changes to the ledger in one message; an answer for each, once all are there.
///
/// Dropping the future does not undo them: the changes go on.
pub async fn change_all(ledger: &LedgerHandle, changes: Vec<Change>, patience: Duration) -> Vec<(OpId, Answer)> {
    let (mut ops, mut wanted, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for Change { op, key, expected, value, quiet } in changes {
        match RecordKey::new(key) {
            Ok(key) => {
                ops.push(op);
                wanted.push(ChangeRequest { key, expected, value, quiet });
            }
            // What is no key was never changed.
            Err(_) => refused.push((op, Answer::NoQuorum)),
        }
    }
    let told = ledger.change_many(wanted, patience).await.into_iter().map(answer_of);
    ops.into_iter().zip(told).chain(refused).collect()
}

/// Gives one change to the ledger. A conflict with what may have been the change's own success is `Unknown`.
///
/// Dropping the future does not undo it: the change goes on.
pub async fn change_one(ledger: &LedgerHandle, change: Change, patience: Duration) -> (OpId, Answer) {
    let Change { op, key, expected, value, quiet } = change;
    // What is no key was never changed.
    let Ok(key) = RecordKey::new(key) else { return (op, Answer::NoQuorum) };
    match ledger.change(ChangeRequest { key, expected, value, quiet }, patience).await {
        ledger::Answer::Conflict { maybe_own: true, .. } => (op, Answer::Unknown),
        answer => (op, answer_of(answer)),
    }
}

/// Reads all of these in one message; an answer for each, once all are there.
///
/// Cancel-safe.
pub async fn read_all(ledger: &LedgerHandle, reads: Vec<Read>, patience: Duration) -> Vec<(OpId, Answer)> {
    let (ops, keys): (Vec<_>, Vec<_>) =
        reads.into_iter().filter_map(|read| Some((read.op, RecordKey::new(read.key).ok()?))).unzip();
    let told = ledger.read_many(keys, patience).await.into_iter().map(answer_of);
    ops.into_iter().zip(told).collect()
}

/// A copy, as the cores know it.
pub fn chosen(record: &Versioned) -> Chosen {
    Chosen { version: record.version, value: Arc::clone(&record.value) }
}

/// The ledger's answer, as its users know it.
fn answer_of(answer: ledger::Answer) -> Answer {
    let chosen = |current: Option<Versioned>| current.as_ref().map(chosen);
    match answer {
        ledger::Answer::Changed { version } => Answer::Changed { version },
        ledger::Answer::Conflict { current, .. } => Answer::Conflict { current: chosen(current) },
        ledger::Answer::Read { current } => Answer::Read { current: chosen(current) },
        ledger::Answer::Unknown => Answer::Unknown,
        ledger::Answer::NoQuorum | ledger::Answer::Refused { .. } => Answer::NoQuorum,
    }
}
