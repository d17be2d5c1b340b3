//! Whether a majority is to be asked for an index's record before entries are sent that name its attributes.
//!
//! What an entry may name was settled before it was written: any record that a majority had once the entry was known
//! here to be committed says whether the node lacks it. So one question is good for all that were known when it began,
//! and one that nobody has answered is so for as long as `GIVEN_UP`: what waits does not wait for it entry by entry.
//! Rule: an entry that became known later has a question of its own. Must not know: records, who is asked, how.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::proto::apply::Span;
use crate::proto::env::Instant;
use crate::types::ShardId;

/// How long nobody is asked again for the same entries.
const GIVEN_UP: Duration = Duration::from_secs(10);

/// Up to where entries of each shard were known to be committed.
type Known = BTreeMap<ShardId, u64>;

/// The questions of one index; at most one is under way.
#[derive(Debug, Default)]
pub(super) struct News {
    /// When the last question that was answered began.
    answered: Known,
    /// When the last one began that was not.
    unanswered: Known,
    /// Until then that is good enough.
    until: Option<Instant>,
    /// When the one began that is under way.
    asked: Known,
}

impl News {
    /// Whether to ask before entries of these spans are sent.
    pub(super) fn are_wanted(&self, spans: &[Span], now: Instant) -> bool {
        let given_up = self.until.is_some_and(|until| now < until);
        let has = |known: &Known, span: &Span| known.get(&span.shard).is_some_and(|to| *to >= span.last);
        !spans.iter().all(|span| has(&self.answered, span) || given_up && has(&self.unanswered, span))
    }

    /// A question begins.
    pub(super) fn begin(&mut self, committed: &Known) {
        self.asked.clone_from(committed);
    }

    /// It has ended.
    pub(super) fn end(&mut self, answered: bool, now: Instant) {
        let asked = std::mem::take(&mut self.asked);
        if answered {
            self.answered = asked;
        } else {
            self.unanswered = asked;
            self.until = Some(now.plus(GIVEN_UP));
        }
    }

    /// A shard's entries may be others than before.
    pub(super) fn forget(&mut self, shard: ShardId) {
        for known in [&mut self.answered, &mut self.unanswered, &mut self.asked] {
            known.remove(&shard);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(all: &[(u16, u64)]) -> Vec<Span> {
        all.iter().map(|(shard, last)| Span { shard: ShardId(*shard), first: 1, last: *last }).collect()
    }

    fn known(all: &[(u16, u64)]) -> Known {
        all.iter().map(|(shard, to)| (ShardId(*shard), *to)).collect()
    }

    #[test]
    fn one_question_is_good_for_what_was_known_when_it_began() {
        let (mut news, now) = (News::default(), Instant::default());
        assert!(news.are_wanted(&spans(&[(0, 1)]), now));
        news.begin(&known(&[(0, 7), (1, 3)]));
        assert!(news.are_wanted(&spans(&[(0, 1)]), now), "it is not answered yet");
        news.end(true, now);
        let much_later = now.plus(GIVEN_UP * 100);
        let wanted = |news: &News, all: &[(u16, u64)]| news.are_wanted(&spans(all), much_later);
        assert!(!wanted(&news, &[(0, 7)]) && !wanted(&news, &[(0, 1), (1, 3)]));
        assert!(wanted(&news, &[(0, 8)]) && wanted(&news, &[(0, 1), (1, 4)]) && wanted(&news, &[(2, 1)]));
        // What was answered stays so, whatever becomes of the next.
        news.begin(&known(&[(0, 9), (1, 3)]));
        news.end(false, now);
        assert!(!wanted(&news, &[(0, 7), (1, 3)]) && wanted(&news, &[(0, 9)]));
    }

    #[test]
    fn one_that_nobody_answers_is_good_for_the_same_entries_for_a_while() {
        let (mut news, now) = (News::default(), Instant::default());
        news.begin(&known(&[(0, 7), (1, 3)]));
        news.end(false, now);
        let over = now.plus(GIVEN_UP);
        assert!(!news.are_wanted(&spans(&[(0, 7), (1, 1)]), over.minus(Duration::from_millis(1))));
        assert!(news.are_wanted(&spans(&[(0, 8)]), now), "it came later");
        assert!(news.are_wanted(&spans(&[(0, 7)]), over));
    }

    #[test]
    fn of_a_shard_that_begins_anew_nothing_was_asked() {
        let (mut news, now) = (News::default(), Instant::default());
        for answered in [false, true] {
            news.begin(&known(&[(0, 7), (1, 3)]));
            news.end(answered, now);
        }
        news.forget(ShardId(0));
        assert!(news.are_wanted(&spans(&[(0, 1)]), now) && !news.are_wanted(&spans(&[(1, 3)]), now));
        news.begin(&known(&[(0, 7), (1, 3)]));
        news.forget(ShardId(0));
        news.end(true, now);
        assert!(news.are_wanted(&spans(&[(0, 1)]), now));
    }
}
