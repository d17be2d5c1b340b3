//! What this member knows of one shard's stored journal.
//!
//! Of the whole journal it keeps where it begins and ends and where each epoch begins; of its newest entries also what they
//! say and whose parts they are, as much as its bounds allow. Older ones are asked of the store.
//!
//! Rule: what is committed is never dropped, and what is not stored is never forgotten. Must not know: who is primary,
//! where entries are stored.

use std::collections::{BTreeMap, VecDeque};

use super::entry::{Entry, Stands};
use crate::types::{Epoch, Position, TaskPart, TaskUid};

/// How much of the newest entries is kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Entries.
    pub entries: usize,
    /// Their weight in bytes.
    pub bytes: usize,
}

/// The durable part of a log, as a process or a touch begins with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredLog {
    /// The last entry that was dropped at the beginning; zero: none was.
    pub floor: Position,
    /// The first entry of each epoch that stands behind the floor, in order.
    pub marks: Vec<Position>,
    /// The sequence number of the last entry; the floor's if there is none.
    pub last: u64,
    /// Up to here entries are known to be committed; at least the floor.
    pub commit: u64,
    /// The newest entries, without a gap up to the last; as many as the reader likes to begin with.
    pub tail: Vec<Entry>,
    /// The highest task of the parts that the store remembers from before the tail, whether their entries are there or not.
    pub older: Option<TaskUid>,
}

/// Whether entries fit a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// They do: the first `skip` are there; if `drop_from` is given, everything from that number on must go first.
    Fits {
        /// Entries that are there.
        skip: usize,
        /// The first entry that stands in the way.
        drop_from: Option<u64>,
    },
    /// The entry before them is not there; up to `have` the two journals may be the same.
    Missing {
        /// Where the sender may begin.
        have: Position,
    },
    /// They contradict what is committed here: the copy must be made anew.
    Contradicts,
    /// They contradict what the same primary has sent: nobody may believe either.
    Broken,
}

/// What stands under a part of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// This.
    At(Stands),
    /// Nothing.
    Nowhere,
    /// Only the store can say: the task is not newer than entries that are not in memory.
    Perhaps,
}

/// A transaction that is not known to be durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pending {
    token: u64,
    last: u64,
    epoch: Epoch,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Log {
    bounds: Bounds,
    floor: Position,
    marks: VecDeque<Position>,
    last: u64,
    commit: u64,
    stored: u64,
    stored_epoch: Epoch,
    pending: VecDeque<Pending>,
    cache: VecDeque<Entry>,
    cached_bytes: usize,
    parts: BTreeMap<TaskPart, Stands>,
    older: Option<TaskUid>,
}

impl Log {
    /// Over what is durable; `epoch` is the highest that was stored with it.
    ///
    /// # Panics
    /// If the store's answer contradicts itself: the store checks what it reads.
    pub fn new(bounds: Bounds, stored: StoredLog, epoch: Epoch) -> Self {
        assert!(stored.floor.seq <= stored.commit && stored.commit <= stored.last, "a journal lies above its floor");
        assert!(stored.tail.last().is_none_or(|e| e.at.seq == stored.last), "the tail ends with the journal");
        let mut log = Self {
            bounds,
            floor: stored.floor,
            marks: stored.marks.into(),
            last: stored.last,
            commit: stored.commit,
            stored: stored.last,
            stored_epoch: epoch,
            pending: VecDeque::new(),
            cache: VecDeque::new(),
            cached_bytes: 0,
            parts: BTreeMap::new(),
            older: stored.older,
        };
        stored.tail.into_iter().for_each(|entry| log.cached(entry));
        log.forget();
        log
    }

    /// The last entry.
    pub fn last(&self) -> Position {
        self.position(self.last).expect("the last entry has an epoch")
    }

    /// The last entry that was dropped at the beginning.
    pub fn floor(&self) -> Position {
        self.floor
    }

    /// Up to here entries are known to be committed.
    pub fn commit(&self) -> u64 {
        self.commit
    }

    /// Up to here entries are durable.
    pub fn stored(&self) -> u64 {
        self.stored
    }

    /// The highest epoch that is durable.
    pub fn stored_epoch(&self) -> Epoch {
        self.stored_epoch
    }

    /// The highest epoch that is durable or on its way.
    pub fn storing_epoch(&self) -> Epoch {
        self.pending.back().map_or(self.stored_epoch, |p| p.epoch.max(self.stored_epoch))
    }

    /// Whether everything is durable.
    pub fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }

    /// Weight of the entries behind the commit position that are in memory.
    pub fn open_bytes(&self) -> usize {
        self.cache.iter().rev().take_while(|e| e.at.seq > self.commit).map(Entry::weight).sum()
    }

    /// Whether so much waits for the store that no more should be taken in.
    pub fn is_full(&self) -> bool {
        self.pending.len() >= self.bounds.entries || self.last - self.stored >= self.bounds.entries as u64
    }

    /// The position of an entry; `None` behind the last and before the floor.
    pub fn position(&self, seq: u64) -> Option<Position> {
        if seq == self.floor.seq {
            return Some(self.floor);
        }
        if seq < self.floor.seq || seq > self.last {
            return None;
        }
        let behind = self.marks.partition_point(|mark| mark.seq <= seq);
        let mark = self.marks.get(behind.checked_sub(1)?)?;
        Some(Position { epoch: mark.epoch, seq })
    }

    /// The last place at or before `at` whose epoch is not newer than `at`'s: where two journals may meet. `None` if that
    /// was dropped.
    pub fn meet(&self, at: Position) -> Option<Position> {
        let mut seq = at.seq.min(self.last);
        loop {
            let here = self.position(seq)?;
            if here.epoch <= at.epoch {
                return Some(here);
            }
            let behind = self.marks.partition_point(|mark| mark.seq <= seq);
            let mark = self.marks.get(behind.checked_sub(1)?)?;
            seq = mark.seq.checked_sub(1)?;
        }
    }

    /// Whether entries that the primary of `reign` has right behind `prev` fit here; see [`Fit`].
    pub fn fit(&self, reign: Epoch, prev: Position, entries: &[Entry]) -> Fit {
        if prev.seq >= self.floor.seq && self.position(prev.seq) != Some(prev) {
            if prev.seq <= self.commit {
                return Fit::Contradicts;
            }
            // What is committed is the same in both, or a copy must be made anew, which the next append shows.
            let before = Position { epoch: prev.epoch, seq: prev.seq - 1 };
            let known = self.position(self.commit).unwrap_or(self.floor);
            let have = self.meet(before).filter(|have| have.seq > known.seq).unwrap_or(known);
            return Fit::Missing { have };
        }
        for (i, entry) in entries.iter().enumerate() {
            if entry.at.seq < self.floor.seq {
                continue;
            }
            let Some(here) = self.position(entry.at.seq) else { return Fit::Fits { skip: i, drop_from: None } };
            if here == entry.at {
                continue;
            }
            if here.seq <= self.commit {
                return Fit::Contradicts;
            }
            // A place is taken over by whoever reigns later: an entry of the same reign would be its own.
            if here.epoch >= reign {
                return Fit::Broken;
            }
            return Fit::Fits { skip: i, drop_from: Some(here.seq) };
        }
        Fit::Fits { skip: entries.len(), drop_from: None }
    }

    /// Drops everything from `seq` on.
    ///
    /// # Panics
    /// If that is committed: [`Log::fit`] was not asked.
    pub fn drop_from(&mut self, seq: u64) {
        assert!(seq > self.commit, "what is committed is not dropped");
        let last = seq - 1;
        while self.cache.back().is_some_and(|e| e.at.seq > last) {
            let gone = self.cache.pop_back().expect("looked at above");
            self.uncached(&gone);
        }
        while self.marks.back().is_some_and(|mark| mark.seq > last) {
            self.marks.pop_back();
        }
        self.last = last;
        self.stored = self.stored.min(last);
        self.pending.iter_mut().for_each(|p| p.last = p.last.min(last));
    }

    /// Puts an entry behind the last; it is not durable.
    ///
    /// # Panics
    /// If it does not belong there.
    pub fn push(&mut self, entry: Entry) {
        let last = self.last();
        assert!(entry.at.seq == last.seq + 1 && entry.at.epoch >= last.epoch, "entries run on");
        if self.marks.back().is_none_or(|mark| mark.epoch < entry.at.epoch) {
            self.marks.push_back(entry.at);
        }
        self.last = entry.at.seq;
        self.cached(entry);
        self.forget();
    }

    /// Everything up to now goes to the store with this token, and `epoch` with it.
    pub fn storing(&mut self, token: u64, epoch: Epoch) {
        self.pending.push_back(Pending { token, last: self.last, epoch });
    }

    /// What went with this token is durable, and all before it.
    pub fn is_stored(&mut self, token: u64) {
        while self.pending.front().is_some_and(|p| p.token <= token) {
            let done = self.pending.pop_front().expect("looked at above");
            self.stored = self.stored.max(done.last);
            self.stored_epoch = self.stored_epoch.max(done.epoch);
        }
        self.forget();
    }

    /// Entries up to `to` are committed, as far as they are durable here. Says whether that is news.
    pub fn committed(&mut self, to: u64) -> bool {
        let to = to.min(self.stored);
        let news = to > self.commit;
        self.commit = self.commit.max(to);
        news
    }

    /// Drops everything up to `to` at the beginning, as far as it is committed. Gives the new floor if that is news.
    pub fn trim(&mut self, to: u64) -> Option<Position> {
        let floor = self.position(to.min(self.commit)).filter(|floor| *floor > self.floor)?;
        self.floor = floor;
        while self.marks.get(1).is_some_and(|mark| mark.seq <= floor.seq) {
            self.marks.pop_front();
        }
        while self.cache.front().is_some_and(|e| e.at.seq <= floor.seq) {
            self.forget_first();
        }
        Some(floor)
    }

    /// Begins anew right behind `at`, up to where the copy has been made; that is to be stored like entries.
    pub fn begin_at(&mut self, at: Position, older: Option<TaskUid>) {
        let pending = std::mem::take(&mut self.pending);
        let stored = StoredLog { floor: at, last: at.seq, commit: at.seq, older, ..StoredLog::default() };
        *self = Self::new(self.bounds, stored, self.stored_epoch);
        self.pending = pending;
        self.pending.iter_mut().for_each(|p| p.last = 0);
        self.stored = 0;
    }

    /// Entries from `from` on, at least one and at most so many; `None` if the first is not in memory.
    pub fn slice(&self, from: u64, entries: usize, bytes: usize) -> Option<Vec<Entry>> {
        let first = self.cache.front()?.at.seq;
        let skip = usize::try_from(from.checked_sub(first)?).ok()?;
        let mut weight = 0;
        let mut fits = |e: &&Entry| {
            let begins = weight == 0;
            weight += e.weight();
            begins || weight <= bytes
        };
        let slice: Vec<Entry> = self.cache.iter().skip(skip).take(entries).take_while(|e| fits(e)).cloned().collect();
        (!slice.is_empty()).then_some(slice)
    }

    /// What stands under a part.
    pub fn find(&self, part: TaskPart) -> Found {
        match self.parts.get(&part) {
            Some(stands) => Found::At(*stands),
            None if self.older.is_some_and(|older| part.task <= older) => Found::Perhaps,
            None => Found::Nowhere,
        }
    }

    fn cached(&mut self, entry: Entry) {
        self.cached_bytes += entry.weight();
        if let Some(part) = entry.part {
            self.parts.insert(part, entry.stands());
        }
        self.cache.push_back(entry);
    }

    fn uncached(&mut self, gone: &Entry) {
        self.cached_bytes -= gone.weight();
        if let Some(part) = gone.part.filter(|part| self.parts.get(part).is_some_and(|at| at.seq == gone.at.seq)) {
            self.parts.remove(&part);
        }
    }

    /// Bytes of entries that are kept in memory from now on.
    pub fn set_memory(&mut self, bytes: usize) {
        self.bounds.bytes = bytes;
        self.forget();
    }

    /// Keeps the bounds; what is not durable can't be asked of the store, so it stays.
    fn forget(&mut self) {
        let over = |log: &Self| log.cache.len() > log.bounds.entries || log.cached_bytes > log.bounds.bytes;
        while over(self) && self.cache.front().is_some_and(|e| e.at.seq <= self.stored) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some(gone) = self.cache.pop_front() {
            self.uncached(&gone);
            self.older = self.older.max(gone.part.map(|part| part.task));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::proto::journal::entry::{Body, Kind, Write};

    const BOUNDS: Bounds = Bounds { entries: 100, bytes: 1 << 20 };

    fn at(epoch: u64, seq: u64) -> Position {
        Position { epoch: Epoch::new(epoch).unwrap(), seq }
    }

    fn entry(epoch: u64, seq: u64) -> Entry {
        let part = TaskPart { task: TaskUid(u32::try_from(seq).unwrap()), part: u32::try_from(epoch).unwrap() };
        Entry::of(Write { part, kind: Kind::Delete, body: Body(Arc::from(*b"x")) }, at(epoch, seq))
    }

    /// A durable journal whose entries have these epochs.
    fn log(epochs: &[u64], commit: u64) -> Log {
        let mut log = Log::new(BOUNDS, StoredLog::default(), Epoch::ZERO);
        (1..).zip(epochs).for_each(|(seq, epoch)| log.push(entry(*epoch, seq)));
        log.storing(1, Epoch::ZERO);
        log.is_stored(1);
        log.committed(commit);
        log
    }

    fn epochs(log: &Log) -> Vec<u64> {
        (log.floor.seq + 1..=log.last).map(|seq| log.position(seq).unwrap().epoch.number()).collect()
    }

    fn reign(epoch: u64) -> Epoch {
        Epoch::new(epoch).unwrap()
    }

    #[test]
    fn positions_know_their_epochs() {
        let log = log(&[1, 1, 3, 3, 4], 2);
        assert_eq!(epochs(&log), [1, 1, 3, 3, 4]);
        assert_eq!((log.position(0), log.position(6)), (Some(at(0, 0)), None));
        assert_eq!(log.last(), at(4, 5));
        assert_eq!(log.meet(at(2, 9)), Some(at(1, 2)));
        assert_eq!(log.meet(at(3, 3)), Some(at(3, 3)));
        assert_eq!(log.meet(at(0, 3)), Some(at(0, 0)));
    }

    #[test]
    fn what_is_there_is_skipped_and_not_dropped() {
        let log = log(&[1, 1, 2, 2], 1);
        let fits = |prev, entries: &[Entry]| log.fit(reign(2), prev, entries);
        assert_eq!(fits(at(1, 1), &[entry(1, 2), entry(2, 3)]), Fit::Fits { skip: 2, drop_from: None });
        assert_eq!(fits(at(2, 4), &[]), Fit::Fits { skip: 0, drop_from: None });
        assert_eq!(fits(at(2, 4), &[entry(2, 5)]), Fit::Fits { skip: 0, drop_from: None });
        assert_eq!(fits(at(2, 3), &[entry(2, 4), entry(2, 5)]), Fit::Fits { skip: 1, drop_from: None });
    }

    #[test]
    fn entries_in_the_way_of_a_later_reign_are_dropped_from_the_first_on() {
        let log = log(&[1, 1, 2, 2], 1);
        assert_eq!(log.fit(reign(3), at(1, 1), &[entry(1, 2), entry(3, 3)]), Fit::Fits { skip: 1, drop_from: Some(3) });
        // Also if what the later reign has there is older: it was never committed, or this reign would have it.
        assert_eq!(log.fit(reign(3), at(1, 2), &[entry(1, 3), entry(3, 4)]), Fit::Fits { skip: 0, drop_from: Some(3) });
        assert_eq!(log.fit(reign(2), at(1, 2), &[entry(1, 3)]), Fit::Broken);
    }

    #[test]
    fn what_is_committed_is_never_dropped() {
        let log = log(&[1, 1, 2, 2], 3);
        assert_eq!(log.fit(reign(3), at(1, 2), &[entry(3, 3)]), Fit::Contradicts);
        assert_eq!(log.fit(reign(3), at(3, 3), &[]), Fit::Contradicts);
        assert_eq!(log.fit(reign(3), at(2, 3), &[entry(3, 4)]), Fit::Fits { skip: 0, drop_from: Some(4) });
    }

    #[test]
    fn a_gap_names_where_the_journals_may_meet() {
        let log = log(&[1, 1, 2, 2], 1);
        assert_eq!(log.fit(reign(5), at(4, 9), &[]), Fit::Missing { have: at(2, 4) });
        assert_eq!(log.fit(reign(5), at(1, 4), &[]), Fit::Missing { have: at(1, 2) });
        assert_eq!(log.fit(reign(5), at(4, 3), &[]), Fit::Missing { have: at(1, 2) });
    }

    #[test]
    fn a_transaction_that_ends_late_does_not_make_newer_entries_durable() {
        let mut log = log(&[1], 0);
        log.push(entry(1, 2));
        log.push(entry(1, 3));
        log.storing(2, reign(1));
        log.drop_from(2);
        log.push(entry(2, 2));
        log.storing(3, reign(2));
        log.is_stored(2);
        assert_eq!((log.stored(), log.stored_epoch(), log.is_settled()), (1, reign(1), false));
        log.is_stored(3);
        assert_eq!((log.stored(), log.stored_epoch(), log.is_settled()), (2, reign(2), true));
    }

    #[test]
    fn only_what_is_durable_here_counts_as_committed_here() {
        let mut log = log(&[1, 1], 0);
        log.push(entry(1, 3));
        assert!(log.committed(3));
        assert_eq!(log.commit(), 2);
        assert!(!log.committed(1));
    }

    #[test]
    fn memory_is_bounded_and_older_parts_are_asked_of_the_store() {
        let mut log = Log::new(Bounds { entries: 2, bytes: 1 << 20 }, StoredLog::default(), Epoch::ZERO);
        (1..=5).for_each(|seq| log.push(entry(1, seq)));
        assert_eq!(log.slice(1, 9, 1 << 20).unwrap().len(), 5, "nothing durable, nothing forgotten");
        log.storing(1, reign(1));
        log.is_stored(1);
        assert_eq!(log.slice(3, 9, 1 << 20), None);
        assert_eq!(log.slice(4, 9, 1 << 20).unwrap().len(), 2);
        assert_eq!(log.slice(4, 9, 1).unwrap().len(), 1, "one always goes");
        let part = |task| TaskPart { task: TaskUid(task), part: 1 };
        assert_eq!(
            [5, 3, 2, 9].map(|t| log.find(part(t))),
            [Found::At(Stands { seq: 5, refused: false }), Found::Perhaps, Found::Perhaps, Found::Nowhere]
        );
        log.push(entry(1, 6));
        log.set_memory(0);
        assert_eq!(
            (log.slice(5, 9, 9), log.slice(6, 9, 9).map(|s| s.len())),
            (None, Some(1)),
            "what is not durable stays"
        );
    }

    #[test]
    fn the_beginning_is_dropped_as_far_as_it_is_committed() {
        let mut log = log(&[1, 1, 2, 2, 3], 4);
        assert_eq!(log.trim(9), Some(at(2, 4)));
        assert_eq!(log.trim(3), None);
        assert_eq!((log.position(3), log.position(4), log.position(5)), (None, Some(at(2, 4)), Some(at(3, 5))));
        assert_eq!(log.meet(at(1, 9)), None, "dropped");
        assert_eq!(log.fit(reign(3), at(1, 1), &[entry(1, 2), entry(2, 3)]), Fit::Fits { skip: 2, drop_from: None });
        assert_eq!(log.fit(reign(4), at(1, 3), &[entry(4, 4)]), Fit::Contradicts);
        log.push(entry(3, 6));
        assert_eq!(log.last(), at(3, 6));
    }

    proptest! {
        /// Two journals that share a beginning, as the rules leave them: whatever the primary of a later reign sends, one
        /// side names a place, the other begins there, and soon both are the same; nothing committed is dropped.
        #[test]
        fn journals_meet(
            common in prop::collection::vec(0_u64..2, 0..6), mine in prop::collection::vec(0_u64..3, 0..6),
            theirs in prop::collection::vec(0_u64..3, 0..6), commit in 0_u64..6,
        ) {
            let run = |steps: &[u64], mut epoch: u64, spread: u64| {
                let mut out = Vec::new();
                for step in steps { epoch += step * spread; out.push(epoch); }
                out
            };
            let shared = run(&common, 2, 2);
            let top = shared.last().copied().unwrap_or(2);
            // One side has even epochs behind what they share, the other odd ones.
            let mut follower = shared.clone();
            follower.extend(run(&mine, top, 2).iter().map(|e| e + 2));
            let mut primary = shared.clone();
            primary.extend(run(&theirs, top, 2).iter().map(|e| e + 1));
            let reign_number = follower.iter().chain(&primary).max().copied().unwrap_or(2) + 1;
            primary.push(reign_number);
            let commit = commit.min(shared.len() as u64);
            let (mut f, p) = (log(&follower, commit), log(&primary, commit));
            let mut next = p.last().seq;
            for _ in 0..40 {
                let prev = p.position(next - 1).unwrap();
                let entries = p.slice(next, 3, 1 << 20).unwrap_or_default();
                match f.fit(reign(reign_number), prev, &entries) {
                    Fit::Missing { have } => {
                        let at = p.meet(have).unwrap().seq + 1;
                        prop_assert!(at < next, "back from {} to {}", next, at);
                        next = at;
                    }
                    Fit::Fits { skip, drop_from } => {
                        if let Some(seq) = drop_from {
                            prop_assert!(seq > commit);
                            f.drop_from(seq);
                        }
                        entries[skip..].iter().for_each(|e| f.push(e.clone()));
                        next += entries.len() as u64;
                        if next > p.last().seq { break; }
                    }
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            prop_assert_eq!(epochs(&f), epochs(&p));
        }
    }
}
