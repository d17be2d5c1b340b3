//! What waits for the store: one transaction under way, and everything that comes meanwhile in the next.
//!
//! Rule: stores are carried out in the order in which they came, those of a replica among them. Must not know: what rows say.

use std::collections::{BTreeMap, VecDeque};

use crate::proto::journal::{Rows, Stands};
use crate::store::journal::Apply;
use crate::types::{JournalKey, TaskPart};

/// Bytes of one turn, unless it is of one store: a transaction.
const TURN_BYTES: usize = 4 << 20;
/// Stores of one turn.
const TURN: usize = 1_024;
/// With so many bytes waiting nothing more is taken in.
const WAITING_BYTES: usize = 64 << 20;

/// Which of a replica's stores: its generation in memory, and the token.
pub(super) type Token = (u64, u64);

/// What one replica is to hear of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StoredNow {
    /// Of the replica in memory.
    pub(super) generation: u64,
    /// The last one.
    pub(super) token: u64,
    /// How many.
    pub(super) count: usize,
}

struct Waiting {
    apply: Apply,
    token: Option<Token>,
    weight: usize,
}

/// See the module.
#[derive(Default)]
pub(super) struct Storing {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    /// Who is to hear of the turn under way.
    under_way: Option<BTreeMap<JournalKey, StoredNow>>,
    under_way_bytes: usize,
}

impl Storing {
    /// Puts rows behind all others; `token` is who hears of it.
    pub(super) fn push(&mut self, key: JournalKey, rows: Rows, parts: Vec<(TaskPart, Stands)>, token: Option<Token>) {
        let apply = Apply { key, rows, parts };
        let weight = apply.weight() + 64;
        self.bytes += weight;
        self.waiting.push_back(Waiting { apply, token, weight });
    }

    /// Whether so much waits that no more should be taken in.
    pub(super) fn is_full(&self) -> bool {
        self.bytes + self.under_way_bytes >= WAITING_BYTES
    }

    /// What is to be stored now; nothing while a turn is under way.
    pub(super) fn turn(&mut self) -> Option<Vec<Apply>> {
        if self.under_way.is_some() || self.waiting.is_empty() {
            return None;
        }
        let (mut turn, mut bytes, mut tokens) = (Vec::new(), 0, BTreeMap::new());
        while turn.len() < TURN
            && let Some(next) = self.waiting.pop_front_if(|next| turn.is_empty() || bytes + next.weight <= TURN_BYTES)
        {
            bytes += next.weight;
            if let Some((generation, token)) = next.token {
                let new = StoredNow { generation, token, count: 0 };
                let hears = tokens.entry(next.apply.key.clone()).or_insert(new);
                // Of an earlier generation nobody wants to hear.
                *hears = if hears.generation == generation { *hears } else { new };
                (hears.token, hears.count) = (token, hears.count + 1);
            }
            turn.push(next.apply);
        }
        self.bytes -= bytes;
        self.under_way_bytes = bytes;
        self.under_way = Some(tokens);
        Some(turn)
    }

    /// The turn is durable; gives who is to hear of it.
    pub(super) fn done(&mut self) -> BTreeMap<JournalKey, StoredNow> {
        self.under_way_bytes = 0;
        self.under_way.take().unwrap_or_default()
    }

    /// A replica is given up: what it wanted stored is not.
    pub(super) fn forget(&mut self, key: &JournalKey) {
        self.waiting.retain(|waiting| waiting.apply.key != *key);
        self.bytes = self.waiting.iter().map(|waiting| waiting.weight).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{PhysicalIndex, ShardId};

    fn key(shard: u16) -> JournalKey {
        JournalKey { index: PhysicalIndex::new("movies__m00000001").unwrap(), shard: ShardId(shard) }
    }

    #[test]
    fn parts_that_come_with_a_snapshot_count() {
        let mut storing = Storing::default();
        let part = |n| (TaskPart { task: crate::types::TaskUid(n), part: 0 }, Stands { seq: 1, refused: false });
        storing.push(key(1), Rows::default(), (0..200_000).map(part).collect(), Some((1, 1)));
        storing.push(key(2), Rows::default(), Vec::new(), Some((1, 1)));
        assert_eq!(storing.turn().unwrap().len(), 1, "it is a transaction of its own");
    }

    #[test]
    fn what_comes_during_a_transaction_is_in_the_next() {
        let mut storing = Storing::default();
        let push = |storing: &mut Storing, shard, token| {
            storing.push(key(shard), Rows { commit: token, ..Rows::default() }, Vec::new(), Some((1, token)));
        };
        push(&mut storing, 1, 1);
        assert_eq!(storing.turn().unwrap().len(), 1);
        for (shard, token) in [(1, 2), (2, 1), (1, 3)] {
            push(&mut storing, shard, token);
        }
        assert_eq!(storing.turn(), None);
        assert_eq!(storing.done(), [(key(1), StoredNow { generation: 1, token: 1, count: 1 })].into());
        let order: Vec<_> = storing.turn().unwrap().into_iter().map(|a| (a.key.shard.0, a.rows.commit)).collect();
        assert_eq!(order, [(1, 2), (2, 1), (1, 3)]);
        push(&mut storing, 1, 4);
        push(&mut storing, 2, 2);
        storing.forget(&key(1));
        assert_eq!(storing.done()[&key(1)], StoredNow { generation: 1, token: 3, count: 2 });
        assert_eq!(storing.turn().unwrap().len(), 1);
        storing.done();
        assert_eq!((storing.turn(), storing.bytes, storing.is_full()), (None, 0, false));
    }
}
