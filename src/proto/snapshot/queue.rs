//! Which copies are made next.
//!
//! Rule: so many at a time, each shard once, indexes in turn, so that a large index does not keep a small one waiting; who can't go on
//! gives its place to others, and comes again behind those that were never begun. Must not know: how a copy is made.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::proto::env::Instant;
use crate::types::{JournalKey, PhysicalIndex, ShardId};

/// See the module.
#[derive(Debug, Clone)]
pub struct Queue {
    most: usize,
    waiting: BTreeMap<PhysicalIndex, BTreeSet<ShardId>>,
    under_way: BTreeSet<JournalKey>,
    /// Wanted again while under way.
    again: BTreeSet<JournalKey>,
    /// Begun, and not to go on before.
    resting: BTreeMap<JournalKey, Instant>,
    /// Such as have rested, in the order in which they wait for another turn.
    rested: VecDeque<JournalKey>,
    /// The index that had its turn last.
    last: Option<PhysicalIndex>,
}

impl Queue {
    /// At most so many at a time.
    pub fn new(most: usize) -> Self {
        let (waiting, under_way, again, resting, rested) = Default::default();
        Self { most: most.max(1), waiting, under_way, again, resting, rested, last: None }
    }

    /// A copy is to be made. One that is being made is looked at again when it is.
    pub fn want(&mut self, key: JournalKey) {
        if self.under_way.contains(&key) {
            self.again.insert(key);
        } else if !self.rests(&key) {
            self.waiting.entry(key.index).or_default().insert(key.shard);
        }
    }

    /// The next that is to be made, if there is room.
    pub fn next_key(&mut self) -> Option<JournalKey> {
        if self.under_way.len() >= self.most {
            return None;
        }
        let behind = self.last.as_ref().and_then(|last| {
            let range = (std::ops::Bound::Excluded(last.clone()), std::ops::Bound::Unbounded);
            self.waiting.range(range).next().map(|(index, _)| index.clone())
        });
        let Some(index) = behind.or_else(|| self.waiting.keys().next().cloned()) else {
            let key = self.rested.pop_front()?;
            self.under_way.insert(key.clone());
            return Some(key);
        };
        let shards = self.waiting.get_mut(&index)?;
        let shard = shards.pop_first()?;
        if shards.is_empty() {
            self.waiting.remove(&index);
        }
        self.last = Some(index.clone());
        let key = JournalKey { index, shard };
        self.under_way.insert(key.clone());
        Some(key)
    }

    /// It is made, or given up. Says whether it was wanted again meanwhile.
    pub fn done(&mut self, key: &JournalKey) -> bool {
        self.under_way.remove(key);
        self.again.remove(key)
    }

    /// It can't go on before then: others have their turn meanwhile.
    pub fn rest(&mut self, key: JournalKey, until: Instant) {
        self.under_way.remove(&key);
        self.again.remove(&key);
        self.resting.insert(key, until);
    }

    /// When somebody has rested.
    pub fn next_wake(&self) -> Option<Instant> {
        self.resting.values().min().copied()
    }

    /// Who has rested waits for another turn.
    pub fn wake(&mut self, now: Instant) {
        let mut due: Vec<(Instant, JournalKey)> =
            self.resting.iter().filter(|(_, at)| **at <= now).map(|(key, at)| (*at, key.clone())).collect();
        due.sort_unstable();
        for (_, key) in due {
            self.resting.remove(&key);
            self.rested.push_back(key);
        }
    }

    fn rests(&self, key: &JournalKey) -> bool {
        self.resting.contains_key(key) || self.rested.contains(key)
    }

    /// Whether it waits for its turn, or is being made, or rests.
    pub fn has(&self, key: &JournalKey) -> bool {
        let waits = self.waiting.get(&key.index).is_some_and(|shards| shards.contains(&key.shard));
        waits || self.under_way.contains(key) || self.rests(key)
    }

    /// Those that wait for their first turn.
    pub fn waiting(&self) -> impl Iterator<Item = JournalKey> {
        let all = self.waiting.iter();
        all.flat_map(|(index, shards)| shards.iter().map(|shard| JournalKey { index: index.clone(), shard: *shard }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: &str, shard: u16) -> JournalKey {
        JournalKey { index: PhysicalIndex::new(format!("{index}__m00000001")).unwrap(), shard: ShardId(shard) }
    }

    #[test]
    fn indexes_take_turns_and_no_shard_is_made_twice_at_once() {
        let mut queue = Queue::new(2);
        (0..3).for_each(|shard| queue.want(key("a", shard)));
        queue.want(key("b", 0));
        queue.want(key("a", 0));
        let (first, second) = (queue.next_key().unwrap(), queue.next_key().unwrap());
        assert_eq!((&first, &second), (&key("a", 0), &key("b", 0)));
        assert_eq!(queue.next_key(), None);
        queue.want(first.clone());
        assert_eq!(queue.waiting().collect::<Vec<_>>(), [key("a", 1), key("a", 2)]);
        assert!(queue.done(&first) && !queue.done(&second));
        assert_eq!((queue.next_key(), queue.next_key()), (Some(key("a", 1)), Some(key("a", 2))));
        assert!(!queue.done(&key("a", 1)));
        assert_eq!(queue.next_key(), None);
    }

    #[test]
    fn who_cant_go_on_keeps_nobody_else_waiting() {
        let mut queue = Queue::new(2);
        (0..4).for_each(|shard| queue.want(key("a", shard)));
        let (first, second) = (queue.next_key().unwrap(), queue.next_key().unwrap());
        assert_eq!(queue.next_key(), None);
        queue.want(second.clone());
        queue.rest(second.clone(), Instant(50));
        queue.rest(first.clone(), Instant(70));
        assert_eq!(queue.next_wake(), Some(Instant(50)));
        queue.want(first.clone());
        assert!(queue.has(&first) && !queue.waiting().any(|waits| waits == first), "it is known to rest");
        assert_eq!((queue.next_key(), queue.next_key()), (Some(key("a", 2)), Some(key("a", 3))));
        queue.wake(Instant(49));
        assert_eq!(queue.rested.len(), 0);
        queue.wake(Instant(70));
        assert_eq!((queue.next_wake(), queue.next_key()), (None, None));
        queue.want(key("b", 0));
        queue.done(&key("a", 2));
        assert_eq!(queue.next_key(), Some(key("b", 0)), "who was never begun comes first");
        queue.done(&key("b", 0));
        assert_eq!(queue.next_key().as_ref(), Some(&second));
        assert!(queue.has(&first) && !queue.done(&second), "it is wanted as it was");
        assert_eq!(queue.next_key(), Some(first));
    }
}
