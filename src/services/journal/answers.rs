//! Whose answer an operation's is.
//!
//! Rule: parts that came together are answered together, once all are answered or their deadline is over; what comes later is
//! passed over. Must not know: what parts say.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::oneshot;

use super::handle::unknown;
use crate::proto::env::Instant;
use crate::proto::journal::{Answer, OpId};

/// Requests that wait at most.
const GROUPS_MAX: usize = 4_096;

struct Group {
    answers: Vec<Option<Answer>>,
    missing: usize,
    first: u64,
    deadline: Instant,
    tell: oneshot::Sender<Vec<Answer>>,
}

/// Requests under way.
#[derive(Default)]
pub(super) struct Answers {
    groups: BTreeMap<u64, Group>,
    // Which group, by the number of its first operation.
    due: BTreeSet<(Instant, u64)>,
    next: u64,
}

impl Answers {
    /// Numbers for the parts of a request; `None`, and the request is answered, if it is none or too much waits.
    pub(super) fn open(
        &mut self,
        count: usize,
        deadline: Instant,
        tell: oneshot::Sender<Vec<Answer>>,
    ) -> Option<impl Iterator<Item = OpId> + use<>> {
        if count == 0 || self.groups.len() >= GROUPS_MAX {
            // Whoever asked may have gone.
            drop(tell.send(vec![Answer::Busy; count]));
            return None;
        }
        let first = self.next;
        self.next += count as u64;
        self.groups.insert(first, Group { answers: vec![None; count], missing: count, first, deadline, tell });
        self.due.insert((deadline, first));
        Some((first..self.next).map(OpId))
    }

    /// One operation is answered.
    pub(super) fn answer(&mut self, op: OpId, answer: Answer) {
        let Some((_, group)) = self.groups.range_mut(..=op.0).next_back() else { return };
        let slot = usize::try_from(op.0 - group.first).ok().and_then(|at| group.answers.get_mut(at));
        let Some(slot @ None) = slot else { return };
        *slot = Some(answer);
        group.missing -= 1;
        if group.missing == 0 {
            let first = group.first;
            self.close(first);
        }
    }

    /// Those whose deadline is over hear what is known.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((_, first)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.close(first);
        }
    }

    /// When the next deadline is.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    fn close(&mut self, first: u64) {
        if let Some(group) = self.groups.remove(&first) {
            self.due.remove(&(group.deadline, first));
            let answers = group.answers.into_iter().map(|a| a.unwrap_or_else(unknown)).collect();
            // Whoever asked may have gone.
            drop(group.tell.send(answers));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_answered_together_or_at_their_deadline() {
        let mut answers = Answers::default();
        let mut open = |count, at| {
            let (tell, wait) = oneshot::channel();
            let ops: Vec<OpId> = answers.open(count, Instant(at), tell).into_iter().flatten().collect();
            (ops, wait)
        };
        let ((first, mut all), (second, mut late), (none, mut empty)) = (open(2, 50), open(3, 40), open(0, 9));
        assert_eq!((first.len(), second.len(), none.len()), (2, 3, 0));
        assert_eq!(empty.try_recv().unwrap(), []);
        answers.answer(first[1], Answer::Busy);
        answers.answer(first[1], Answer::NoQuorum);
        answers.answer(second[2], Answer::NoQuorum);
        assert!(all.try_recv().is_err());
        assert_eq!(answers.next_due(), Some(Instant(40)));
        answers.expire(Instant(45));
        assert_eq!(late.try_recv().unwrap(), [unknown(), unknown(), Answer::NoQuorum]);
        answers.answer(second[0], Answer::Busy);
        answers.answer(first[0], Answer::Refused);
        assert_eq!(all.try_recv().unwrap(), [Answer::Refused, Answer::Busy]);
        assert_eq!(answers.next_due(), None);
    }
}
