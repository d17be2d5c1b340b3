//! Pages of a list that begin far down, without any part's sending all that stands before them.
//!
//! The rule: what is held at any moment grows with the page and the number of parts, never with the offset. Parts that are
//! not sorted are merged by rank, so their counts alone tell which ranks the page needs. Sorted ones are walked down by what
//! they are sorted by, without their documents. Must not know: who answers for which shards.

use std::collections::VecDeque;

use super::documents::{DocumentsQuery, Listed, merge_lists, stands_before};
use super::merge::{MergeError, PartAnswer};
use super::order::Rules;
use crate::types::ShardSet;

/// A page that begins at most so far down is cheaper had at once, with all that stands before it.
const NEAR: usize = 1_000;
/// Sort values that one part sends at once.
const KEYS_MAX: usize = 10_000;
/// How often the counts may change under the reader; then the page is taken as it comes.
const ATTEMPTS: usize = 4;
/// Ranks asked for beyond those needed, for each change of the counts before.
const SLACK: usize = 8;

impl DocumentsQuery {
    /// Whether the page begins so far down that several parts are asked by way of [`FarPage`].
    pub fn is_far(&self) -> bool {
        self.offset > NEAR
    }

    /// The body for each of several parts that are to be counted.
    pub fn count_body(&self) -> Vec<u8> {
        self.bare_body(0, 0)
    }
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Each of these shards is to be asked for what the body says, by one member all of one set, with sort values.
    Ask(Vec<(ShardSet, Vec<u8>)>),
    /// The body for the client.
    Done(Vec<u8>),
}

/// One part, from its first rank that is still of interest on.
#[derive(Debug)]
struct Source {
    shards: ShardSet,
    total: u64,
    /// How many of its documents stand before the page as far as is known.
    passed: usize,
    /// What the next ones are sorted by.
    keys: VecDeque<Rules>,
    /// There are none behind `keys`.
    ended: bool,
}

#[derive(Debug)]
enum Stage {
    /// Sources (by number) were asked for so many sort values.
    Keys(Vec<(usize, usize)>),
    /// Sources were asked for so many documents, from this rank on (of the sorted ones: from what has been passed on).
    Page(Vec<usize>, usize, usize),
    Done(Vec<u8>),
}

/// The way to one page.
#[derive(Debug)]
pub struct FarPage<'q> {
    query: &'q DocumentsQuery,
    missing: ShardSet,
    sources: Vec<Source>,
    /// Documents known to stand before the page.
    passed: usize,
    attempts: usize,
    stage: Option<Stage>,
}

impl<'q> FarPage<'q> {
    /// Begins with the parts' answers to [`DocumentsQuery::count_body`].
    ///
    /// # Errors
    /// [`MergeError::Malformed`].
    pub fn new(query: &'q DocumentsQuery, counted: &[PartAnswer], missing: &ShardSet) -> Result<Self, MergeError> {
        let source = |part: &PartAnswer| -> Result<Source, MergeError> {
            let total = Listed::read(part, 0, 0)?.total;
            let (shards, keys) = (part.shards.clone(), VecDeque::new());
            Ok(Source { shards, total, passed: 0, keys, ended: total == 0 })
        };
        let mut sources = counted.iter().map(source).collect::<Result<Vec<_>, _>>()?;
        sources.sort_by_key(|s| s.shards.first());
        Ok(Self { query, missing: missing.clone(), sources, passed: 0, attempts: 0, stage: None })
    }

    fn total(&self) -> u64 {
        self.sources.iter().map(|s| s.total).fold(0, u64::saturating_add)
    }

    /// What to do now.
    ///
    /// # Errors
    /// [`MergeError::Malformed`].
    pub fn step(&mut self) -> Result<Next, MergeError> {
        if let Some(Stage::Done(body)) = &self.stage {
            return Ok(Next::Done(body.clone()));
        }
        if self.query.limit == 0 || self.query.offset as u64 >= self.total() {
            return self.nothing();
        }
        if !self.query.sorted {
            return Ok(self.ask_rows());
        }
        let left = self.query.offset - self.passed;
        let open: Vec<usize> = (0..self.sources.len()).filter(|i| !self.sources[*i].ended).collect();
        let short: Vec<usize> = open.iter().copied().filter(|i| self.sources[*i].keys.is_empty()).collect();
        if left > 0 && !short.is_empty() {
            let keys = left.min(KEYS_MAX);
            let ask = |i: &usize| {
                let source = &self.sources[*i];
                (source.shards.clone(), self.query.bare_body(source.passed, keys))
            };
            let asks = short.iter().map(ask).collect();
            self.stage = Some(Stage::Keys(short.into_iter().map(|i| (i, keys)).collect()));
            return Ok(Next::Ask(asks));
        }
        let with_more: Vec<usize> =
            (0..self.sources.len()).filter(|i| !(self.sources[*i].ended && self.sources[*i].keys.is_empty())).collect();
        if left > 0 || with_more.is_empty() {
            // A node leaves documents out of a sorted list that have nothing to be sorted by, but counts them.
            return self.nothing();
        }
        let ask = |i: &usize| {
            let source = &self.sources[*i];
            (source.shards.clone(), self.query.page_body(source.passed, self.query.limit))
        };
        let asks = with_more.iter().map(ask).collect();
        self.stage = Some(Stage::Page(with_more, 0, self.query.limit));
        Ok(Next::Ask(asks))
    }

    /// Takes the answers to what [`Self::step`] asked, in its order.
    ///
    /// # Errors
    /// [`MergeError::Malformed`].
    pub fn take(&mut self, answers: &[PartAnswer]) -> Result<(), MergeError> {
        match self.stage.take() {
            Some(Stage::Keys(asked)) => {
                for ((source, limit), answer) in asked.into_iter().zip(answers) {
                    let list = Listed::read(answer, 0, limit)?;
                    let source = &mut self.sources[source];
                    for at in 0..list.len() {
                        source.keys.extend(list.values(at)?);
                    }
                    source.ended = list.len() < limit;
                }
                self.walk();
            }
            Some(Stage::Page(asked, from, count)) => {
                let mut lists = Vec::with_capacity(asked.len());
                for (i, answer) in asked.iter().zip(answers) {
                    let source = &mut self.sources[*i];
                    let list = Listed::read(answer, if self.query.sorted { source.passed } else { from }, count)?;
                    source.total = list.total;
                    lists.push(list);
                }
                let skip = if self.query.sorted {
                    0
                } else {
                    let before = self.before(from);
                    let fits = before <= self.query.offset as u64 && self.before(from + count) >= self.end();
                    if !fits && self.attempts < ATTEMPTS {
                        self.attempts += 1;
                        return Ok(());
                    }
                    usize::try_from((self.query.offset as u64).saturating_sub(before)).unwrap_or(usize::MAX)
                };
                let body = merge_lists(self.query, lists, skip, self.total(), &self.missing)?;
                self.stage = Some(Stage::Done(body));
            }
            stage => self.stage = stage,
        }
        Ok(())
    }

    /// Passes sorted documents as far as it is known which comes next.
    fn walk(&mut self) {
        while self.passed < self.query.offset {
            let mut best: Option<usize> = None;
            for (i, source) in self.sources.iter().enumerate() {
                let Some(rules) = source.keys.front() else {
                    if source.ended {
                        continue;
                    }
                    return;
                };
                let other = best.and_then(|b| self.sources[b].keys.front().map(|r| (r, self.sources[b].passed)));
                if other.is_none_or(|other| stands_before(other, (rules, source.passed))) {
                    best = Some(i);
                }
            }
            let Some(best) = best else { return };
            self.sources[best].keys.pop_front();
            self.sources[best].passed += 1;
            self.passed += 1;
        }
    }

    /// How many documents have a rank below `rank` in their part.
    fn before(&self, rank: usize) -> u64 {
        self.sources.iter().map(|s| s.total.min(rank as u64)).fold(0, u64::saturating_add)
    }

    /// Where the page ends in the merged list.
    fn end(&self) -> u64 {
        (self.query.offset as u64).saturating_add(self.query.limit as u64).min(self.total())
    }

    /// Asks for the ranks that the page lies in.
    fn ask_rows(&mut self) -> Next {
        let longest = usize::try_from(self.sources.iter().map(|s| s.total).max().unwrap_or(0)).unwrap_or(usize::MAX);
        // The first rank before which more than so many documents stand, and the first before which enough do.
        let first = |enough: &dyn Fn(u64) -> bool| {
            let (mut low, mut high) = (0, longest);
            while low < high {
                let middle = low + (high - low) / 2;
                if enough(self.before(middle)) { high = middle } else { low = middle + 1 }
            }
            low
        };
        let slack = SLACK * self.attempts;
        let from = first(&|n| n > self.query.offset as u64).saturating_sub(1 + slack);
        let to = first(&|n| n >= self.end()).saturating_add(slack);
        let count = to - from;
        let asked: Vec<usize> = (0..self.sources.len()).filter(|i| self.sources[*i].total > from as u64).collect();
        let ask = |i: &usize| (self.sources[*i].shards.clone(), self.query.page_body(from, count));
        let asks = asked.iter().map(ask).collect();
        self.stage = Some(Stage::Page(asked, from, count));
        Next::Ask(asks)
    }

    /// A page without documents.
    fn nothing(&self) -> Result<Next, MergeError> {
        merge_lists(self.query, Vec::new(), 0, self.total(), &self.missing).map(Next::Done)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::documents::merge_documents;
    use super::*;
    use crate::types::ShardId;

    fn shards(n: u16) -> ShardSet {
        [ShardId(n)].into_iter().collect()
    }

    /// A node with a list of numbers.
    fn answer(part: u16, list: &[u32], body: &[u8]) -> PartAnswer {
        let body: Value = serde_json::from_slice(body).unwrap();
        let number = |key: &str| usize::try_from(body[key].as_u64().unwrap()).unwrap();
        let document = |n: &u32| {
            let mut document = json!({"_federation": {"weightedScoreValues": [{"sort": {"asc": true, "value": n}}]}});
            if body.get("fields").is_none() {
                document["n"] = json!(n);
                document["part"] = json!(part);
            }
            document
        };
        let page: Vec<_> = list.iter().skip(number("offset")).take(number("limit")).map(document).collect();
        let body = json!({"results": page, "offset": 0, "limit": 0, "total": list.len()}).to_string();
        PartAnswer { shards: shards(part), alone: false, body: body.into() }
    }

    /// The page, and the most documents that one answer had.
    fn far(query: &DocumentsQuery, lists: &[Vec<u32>]) -> (Value, usize) {
        let all = || (0_u16..).zip(lists);
        let counted: Vec<_> = all().map(|(i, list)| answer(i, list, &query.count_body())).collect();
        let mut page = FarPage::new(query, &counted, &ShardSet::new()).unwrap();
        let mut most = 0;
        for _ in 0..1_000 {
            match page.step().unwrap() {
                Next::Done(body) => return (serde_json::from_slice(&body).unwrap(), most),
                Next::Ask(asks) => {
                    let answers: Vec<_> = asks
                        .iter()
                        .map(|(set, body)| {
                            let part = set.first().unwrap().0;
                            answer(part, &lists[usize::from(part)], body)
                        })
                        .collect();
                    let sizes = answers.iter().map(|a| Listed::read(a, 0, usize::MAX).unwrap().len());
                    most = most.max(sizes.max().unwrap_or(0));
                    page.take(&answers).unwrap();
                }
            }
        }
        panic!("no end");
    }

    fn near(query: &DocumentsQuery, lists: &[Vec<u32>]) -> Value {
        let parts: Vec<_> = (0_u16..).zip(lists).map(|(i, list)| answer(i, list, &query.part_body(2))).collect();
        serde_json::from_slice(&merge_documents(query, &parts, &ShardSet::new()).unwrap()).unwrap()
    }

    fn query(offset: usize, limit: usize, sorted: bool) -> DocumentsQuery {
        let sort = if sorted { json!(["n:asc"]) } else { json!([]) };
        let body = json!({"offset": offset, "limit": limit, "sort": sort});
        DocumentsQuery::from_json(body.to_string().as_bytes()).unwrap()
    }

    proptest! {
        #[test]
        fn a_far_page_is_the_page_that_all_before_it_would_give(
            mut lists in prop::collection::vec(prop::collection::vec(0_u32..20, 0..40), 1..5),
            offset in 0_usize..130, limit in 0_usize..30, sorted: bool,
        ) {
            lists.iter_mut().for_each(|l| l.sort_unstable());
            let query = query(offset, limit, sorted);
            prop_assert_eq!(far(&query, &lists).0, near(&query, &lists));
        }
    }

    #[test]
    fn what_is_sent_does_not_grow_with_the_offset() {
        let lists = vec![(0..50_000).collect::<Vec<u32>>(), (0..10).collect(), (40_000..90_000).collect()];
        for (offset, limit) in [(60_000, 20), (99_000, 5), (1_500, 20)] {
            let (page, most) = far(&query(offset, limit, false), &lists);
            assert_eq!(page["results"].as_array().unwrap().len(), limit);
            assert!(most <= limit + 2, "{most}");
            let (page, most) = far(&query(offset, limit, true), &lists);
            assert_eq!(page["results"].as_array().unwrap().len(), limit);
            assert!(most <= KEYS_MAX, "{most}");
        }
        for sorted in [false, true] {
            let (page, most) = far(&query(usize::MAX, usize::MAX, sorted), &lists);
            assert_eq!((page["results"].as_array().unwrap().len(), &page["total"], most), (0, &json!(100_010), 0));
        }
    }

    #[test]
    fn counts_that_change_under_the_reader_are_counted_again() {
        let query = query(2_000, 10, false);
        let (before, after): (Vec<u32>, Vec<u32>) = ((0..3_000).collect(), (0..1_000).collect());
        let counted = [answer(0, &before, &query.count_body()), answer(1, &before, &query.count_body())];
        let mut page = FarPage::new(&query, &counted, &ShardSet::new()).unwrap();
        let mut rounds = 0;
        let body = loop {
            match page.step().unwrap() {
                Next::Done(body) => break serde_json::from_slice::<Value>(&body).unwrap(),
                Next::Ask(asks) => {
                    let lists = [&before, &after];
                    let part = |s: &ShardSet| s.first().unwrap().0;
                    let answers = asks.iter().map(|(s, b)| answer(part(s), lists[usize::from(part(s))], b));
                    page.take(&answers.collect::<Vec<_>>()).unwrap();
                    rounds += 1;
                }
            }
        };
        assert_eq!((&body["total"], rounds), (&json!(4_000), 2));
        assert_eq!(body["results"][0]["n"], 1_000, "1,000 of each list stand before, the shorter has no more");
    }
}
