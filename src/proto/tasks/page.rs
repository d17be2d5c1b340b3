//! One list out of the pages of many homes.
//!
//! Each home gives a bounded page of its own tasks in the order of the list; [`Merger`] says whom to ask for more and gives
//! the tasks one by one, so that a list of any length passes through without being held. Rule: it is exactly the page that
//! one home with all tasks would give, if nothing changes meanwhile. Must not know: what a task is but its number.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::query::Query;
use crate::types::TaskUid;

/// Most tasks of one home's page.
pub const PAGE_MAX: usize = 100;

/// A page that one home is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Which home.
    pub home: usize,
    /// The first task, if it is there; without it from the beginning.
    pub from: Option<u32>,
    /// At most so many; no more than [`PAGE_MAX`].
    pub take: usize,
}

/// A home's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// Tasks in the order of the list.
    pub tasks: Vec<(TaskUid, T)>,
    /// How many the filter finds, wherever the page begins.
    pub total: u64,
    /// Whether others follow.
    pub more: bool,
}

/// A page that no home gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("home {home} gave a page that {fault}")]
pub struct PageError {
    /// Whose.
    pub home: usize,
    /// What is wrong with it.
    pub fault: &'static str,
}

/// What stands under the tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct End {
    /// How many the filter finds, whatever the page.
    pub total: u64,
    /// How many were asked for.
    pub limit: u32,
    /// The first of the page.
    pub from: Option<u32>,
    /// The first of the following page.
    pub next: Option<u32>,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<T> {
    /// These homes are to be asked, each once.
    Ask(Vec<Ask>),
    /// The next task.
    Task(TaskUid, T),
    /// That was all.
    End(End),
}

#[derive(Debug, Clone)]
struct Side<T> {
    waiting: VecDeque<(TaskUid, T)>,
    total: Option<u64>,
    last: Option<u32>,
    done: bool,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Merger<T> {
    sides: Vec<Side<T>>,
    limit: u32,
    start: Option<u32>,
    reverse: bool,
    given: u32,
    from: Option<u32>,
}

impl<T> Merger<T> {
    /// For a query to so many homes.
    pub fn new(query: &Query, homes: usize) -> Self {
        let side = || Side { waiting: VecDeque::new(), total: None, last: None, done: false };
        Self {
            sides: (0..homes).map(|_| side()).collect(),
            limit: query.limit,
            start: query.from,
            reverse: query.reverse,
            given: 0,
            from: None,
        }
    }

    /// The next step. Homes that are asked must be answered for by [`Merger::give`] before the step after.
    pub fn step(&mut self) -> Step<T> {
        let asks: Vec<Ask> = (0..self.sides.len()).filter_map(|home| self.ask(home)).collect();
        if !asks.is_empty() {
            return Step::Ask(asks);
        }
        let heads = self.sides.iter().enumerate();
        let heads = heads.filter_map(|(home, side)| side.waiting.front().map(|(uid, _)| (uid.0, home)));
        let next = if self.reverse { heads.min() } else { heads.max() };
        match next {
            Some((_, home)) if self.given < self.limit => self.take(home),
            _ => Step::End(self.end(next.map(|(uid, _)| uid))),
        }
    }

    fn ask(&self, home: usize) -> Option<Ask> {
        let side = &self.sides[home];
        if side.done || !side.waiting.is_empty() {
            return None;
        }
        let left = (self.limit - self.given) as usize;
        let from = match side.last {
            None => self.start,
            Some(last) if self.reverse => Some(last.saturating_add(1)),
            Some(last) => Some(last.saturating_sub(1)),
        };
        // One more tells where the following page begins.
        Some(Ask { home, from, take: left.saturating_add(1).min(PAGE_MAX) })
    }

    fn take(&mut self, home: usize) -> Step<T> {
        let (uid, task) = self.sides[home].waiting.pop_front().expect("the head was just seen");
        self.given += 1;
        self.from.get_or_insert(uid.0);
        Step::Task(uid, task)
    }

    fn end(&self, next: Option<u32>) -> End {
        let total = self.sides.iter().filter_map(|side| side.total).fold(0, u64::saturating_add);
        End { total, limit: self.limit, from: self.from, next }
    }

    /// What a home answered.
    ///
    /// # Errors
    /// [`PageError`] if it is too long, out of order, or promises more behind nothing.
    pub fn give(&mut self, home: usize, page: Page<T>) -> Result<(), PageError> {
        let fail = |fault| Err(PageError { home, fault });
        let Some(ask) = (home < self.sides.len()).then(|| self.ask(home)).flatten() else {
            return fail("nobody asked for");
        };
        if page.tasks.len() > ask.take {
            return fail("is too long");
        }
        if page.more && page.tasks.is_empty() {
            return fail("is empty and yet not the last");
        }
        let reverse = self.reverse;
        let fits = |bound: u32, uid: u32| if reverse { uid >= bound } else { uid <= bound };
        let begins = page.tasks.first().is_none_or(|(uid, _)| ask.from.is_none_or(|from| fits(from, uid.0)));
        let sorted = page.tasks.windows(2).all(|pair| pair[0].0 != pair[1].0 && fits(pair[0].0.0, pair[1].0.0));
        if !begins || !sorted {
            return fail("is out of order");
        }
        let side = &mut self.sides[home];
        side.total.get_or_insert(page.total);
        side.last = page.tasks.last().map(|(uid, _)| uid.0).or(side.last);
        // Nothing stands before the first task of all.
        side.done = !page.more || (!reverse && side.last == Some(0));
        side.waiting.extend(page.tasks);
        Ok(())
    }
}

/// A home's page: of its tasks that the filter finds, in ascending order of their numbers.
pub fn page_of<T>(found: &[(TaskUid, T)], reverse: bool, from: Option<u32>, take: usize) -> Page<&T> {
    let take = take.min(PAGE_MAX);
    let begins = |uid: u32| from.is_none_or(|from| if reverse { uid >= from } else { uid <= from });
    let mut in_order: Vec<_> = found.iter().filter(|(uid, _)| begins(uid.0)).map(|(uid, task)| (*uid, task)).collect();
    if !reverse {
        in_order.reverse();
    }
    let more = in_order.len() > take;
    in_order.truncate(take);
    Page { tasks: in_order, total: found.len() as u64, more }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::query::Listing;
    use super::*;

    fn query(limit: u32, from: Option<u32>, reverse: bool) -> Query {
        Query { limit, from, reverse, ..Query::all(Listing::Tasks) }
    }

    /// The whole list through homes that give at most `cut` tasks at once.
    fn merged(query: &Query, homes: &[Vec<u32>], cut: usize) -> (Vec<u32>, End) {
        let homes: Vec<Vec<(TaskUid, u32)>> =
            homes.iter().map(|h| h.iter().map(|uid| (TaskUid(*uid), *uid)).collect()).collect();
        let mut merger = Merger::new(query, homes.len());
        let mut out = Vec::new();
        for _ in 0..10_000 {
            match merger.step() {
                Step::Ask(asks) => {
                    for ask in asks {
                        let page = page_of(&homes[ask.home], query.reverse, ask.from, ask.take.min(cut));
                        let tasks = page.tasks.into_iter().map(|(uid, task)| (uid, *task)).collect();
                        merger.give(ask.home, Page { tasks, total: page.total, more: page.more }).unwrap();
                    }
                    let held: usize = merger.sides.iter().map(|side| side.waiting.len()).sum();
                    assert!(held <= homes.len() * PAGE_MAX);
                }
                Step::Task(uid, task) => {
                    assert_eq!(uid.0, task);
                    out.push(task);
                }
                Step::End(end) => return (out, end),
            }
        }
        panic!("the merger does not end");
    }

    /// What one home with everything shows, straight from the list.
    fn expected(query: &Query, all: &[u32]) -> (Vec<u32>, End) {
        let mut list: Vec<u32> = all.to_vec();
        list.sort_unstable();
        if !query.reverse {
            list.reverse();
        }
        let begins = |uid: &u32| query.from.is_none_or(|f| if query.reverse { *uid >= f } else { *uid <= f });
        let rest: Vec<u32> = list.into_iter().filter(begins).collect();
        let page: Vec<u32> = rest.iter().copied().take(query.limit as usize).collect();
        let next = rest.get(query.limit as usize).copied();
        let end = End { total: all.len() as u64, limit: query.limit, from: page.first().copied(), next };
        (page, end)
    }

    #[test]
    fn pages_as_a_node_gives_them() {
        let homes: Vec<Vec<u32>> = (0..3).map(|home| (0..35).filter(|uid| uid % 3 == home).collect()).collect();
        let end = |query| merged(&query, &homes, PAGE_MAX).1;
        let is = |limit, from, next| End { total: 35, limit, from, next };
        assert_eq!(end(query(20, None, false)), is(20, Some(34), Some(14)));
        assert_eq!(end(query(0, None, false)), is(0, None, Some(34)));
        assert_eq!(end(query(20, Some(3), false)), is(20, Some(3), None));
        assert_eq!(end(query(2, Some(3), false)), is(2, Some(3), Some(1)));
        assert_eq!(end(query(2, Some(2), true)), is(2, Some(2), Some(4)));
        assert_eq!(end(query(20, Some(1_000), false)), is(20, Some(34), Some(14)));
        assert_eq!(end(query(20, Some(1_000), true)), is(20, None, None));
        assert_eq!(end(query(0, None, true)), is(0, None, Some(0)));
        assert_eq!(end(query(35, None, true)), is(35, Some(0), None));
        assert_eq!(end(query(u32::MAX - 1, None, false)), is(u32::MAX - 1, Some(34), None));
        assert_eq!(end(query(34, None, false)), is(34, Some(34), Some(0)));
    }

    #[test]
    fn a_page_that_no_home_gives_is_refused() {
        let fresh = || Merger::new(&query(3, Some(50), false), 1);
        let page =
            |uids: &[u32], more| Page { tasks: uids.iter().map(|u| (TaskUid(*u), ())).collect(), total: 9, more };
        let fault = |uids: &[u32], more| fresh().give(0, page(uids, more)).map_err(|e| e.fault);
        assert_eq!(fault(&[9, 8, 7, 6, 5], true), Err("is too long"));
        assert_eq!(fault(&[], true), Err("is empty and yet not the last"));
        assert_eq!(fault(&[8, 9], false), Err("is out of order"));
        assert_eq!(fault(&[8, 8], false), Err("is out of order"));
        assert_eq!(fault(&[51], false), Err("is out of order"));
        assert_eq!(fault(&[50, 8], true), Ok(()));
        assert!(fresh().give(1, page(&[1], false)).is_err());
        let mut asked = fresh();
        asked.give(0, page(&[8], true)).unwrap();
        assert!(asked.give(0, page(&[7], true)).is_err());
    }

    proptest! {
        #[test]
        fn merged_pages_are_the_page_of_the_merged_list(
            all in prop::collection::btree_map(0_u32..400, 0_usize..6, 0..250),
            homes in 1_usize..6,
            limit in prop_oneof![0_u32..30, 90_u32..300, Just(u32::MAX - 1)],
            from in prop::option::of(prop_oneof![0_u32..420, Just(u32::MAX)]),
            reverse: bool,
            cut in 1_usize..=PAGE_MAX,
        ) {
            let mut split = vec![Vec::new(); homes];
            all.iter().for_each(|(uid, home)| split[home % homes].push(*uid));
            let query = query(limit, from, reverse);
            let all: Vec<u32> = all.into_keys().collect();
            prop_assert_eq!(merged(&query, &split, cut), expected(&query, &all));
        }
    }
}
