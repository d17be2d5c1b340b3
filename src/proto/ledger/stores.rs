//! Which stores are older than they were.
//!
//! A store put back from a copy has forgotten promises. Every process on a store draws a number of its own and shows the
//! processes before it, its *line*: each with the count of the store's transactions at which it began. What was heard of a
//! process, its number and its highest count, stands in the line of every later process of the same store, and the one
//! after it began above that count. A line in which it does not stand is that of a store that was put back from a copy, or
//! what was heard was; either way the store has two pasts, and no process of it is believed any more.
//!
//! What others have heard is taken as told, until the store's own process shows that it stands in its line.
//!
//! Rule: what was seen of a store only grows, and the order in which it was heard does not matter: a store with two pasts is
//! refused for good. Must not know: what the transactions were.

use serde::{Deserialize, Serialize};

use super::message::{Known, Process, Refusal, Sender};
use crate::types::StoreId;
use crate::types::limits::{LEDGER_LINE_MAX, VOTERS_MAX};

/// What is known of another store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Which.
    pub store: StoreId,
    /// The processes on it, the one that was heard last at the end; empty: heard of, but never heard.
    pub line: Vec<Process>,
    /// The highest count that is known of the last of them.
    pub count: u64,
    /// What others have heard of processes after that, by start.
    pub told: Vec<Known>,
    /// It has two pasts.
    pub rolled_back: bool,
}

/// What becomes of a message after its sender has been looked at.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// As before: nothing to remember.
    Same,
    /// More transactions than before: worth remembering with the next transaction.
    Further(Seen),
    /// A process that was not known: remembered before the message is used.
    Took(Seen),
    /// The sender has to show its line first.
    Unshown,
    /// Refuse with this; what is new is remembered first.
    Refuse(Refusal, Option<Seen>),
}

/// How something known of a store stands to a line of its processes.
#[derive(Debug, PartialEq, Eq)]
enum Fit {
    /// It is part of it.
    Stands,
    /// It is of a process after the last one.
    Later,
    /// The store has two pasts.
    Differs,
}

fn fit(line: &[Process], known: &Known) -> Fit {
    let Some(last) = line.last() else { return Fit::Later };
    if known.start > last.start {
        return Fit::Later;
    }
    let stands = match line.binary_search_by_key(&known.start, |p| p.start) {
        Ok(at) => line[at].nonce == known.nonce && line.get(at + 1).is_none_or(|next| next.began > known.count),
        // The line has forgotten its beginning: only the count is left to go by.
        Err(0) if line.len() > LEDGER_LINE_MAX => line[0].began > known.count,
        Err(_) => false,
    };
    if stands { Fit::Stands } else { Fit::Differs }
}

impl Seen {
    /// Nothing is known yet.
    pub fn new(store: StoreId) -> Self {
        Self { store, line: Vec::new(), count: 0, told: Vec::new(), rolled_back: false }
    }

    /// The process that was heard last, if messages of it are taken.
    pub fn taken(&self) -> Option<&Process> {
        self.line.last().filter(|_| !self.rolled_back)
    }

    /// What to tell others: what this member has heard itself.
    pub fn known(&self) -> Option<Known> {
        let last = self.line.last().copied().unwrap_or_default();
        let Process { start, nonce, .. } = last;
        let known = Known { store: self.store, start, nonce, count: self.count, rolled_back: self.rolled_back };
        (self.rolled_back || !self.line.is_empty()).then_some(known)
    }

    /// Whether all that is known may have come from the processes of this line, the one at work at its end.
    pub fn stands_in(&self, line: &[Process]) -> bool {
        !self.rolled_back && self.known().iter().chain(&self.told).all(|known| fit(line, known) == Fit::Stands)
    }

    fn condemned(&self) -> Self {
        Self { told: Vec::new(), rolled_back: true, ..self.clone() }
    }

    fn refusal(&self, refused: &Sender) -> Refusal {
        let newest = self.told.last().copied().or_else(|| self.known());
        let (start, count) = newest.map_or((0, 0), |known| (known.start, known.count));
        Refusal::RolledBack { store: refused.store, refused: refused.process(), start, count }
    }
}

/// Looks at a sender, of whose store `known` was seen, and at the line it shows: the processes before its own.
pub fn hear(known: Option<&Seen>, sender: &Sender, shown: Option<&[Process]>) -> Heard {
    let blank = Seen::new(sender.store);
    let known = known.unwrap_or(&blank);
    if known.rolled_back {
        return Heard::Refuse(known.refusal(sender), None);
    }
    // A process after it has been heard of: this is an earlier one, or the store was put back and goes on from there.
    let is_late = known.told.last().is_some_and(|told| told.start > sender.start);
    let last = known.line.last();
    if last == Some(&sender.process()) {
        return match sender.count {
            _ if is_late => Heard::Refuse(known.refusal(sender), None),
            count if count > known.count => Heard::Further(Seen { count, ..known.clone() }),
            _ => Heard::Same,
        };
    }
    if last.is_some_and(|last| last.start >= sender.start) {
        let seen = match fit(&known.line, &sender.known()) {
            Fit::Differs => Some(known.condemned()),
            Fit::Stands | Fit::Later => None,
        };
        return Heard::Refuse(known.refusal(sender), seen);
    }
    if is_late {
        return Heard::Refuse(known.refusal(sender), None);
    }
    let Some(shown) = shown else { return Heard::Unshown };
    let mut line = shown.to_vec();
    line.push(sender.process());
    if known.stands_in(&line) {
        let told = known.told.iter().filter(|told| told.start == sender.start).map(|told| told.count);
        let count = told.fold(sender.count, u64::max);
        return Heard::Took(Seen { line, count, ..blank });
    }
    Heard::Refuse(known.refusal(sender), Some(known.condemned()))
}

/// Takes in what another member has heard; `None` if that is not news.
pub fn told(known: Option<&Seen>, told: &Known) -> Option<Seen> {
    let blank = Seen::new(told.store);
    let known = known.unwrap_or(&blank);
    if known.rolled_back {
        return None;
    }
    if told.rolled_back {
        return Some(known.condemned());
    }
    match fit(&known.line, told) {
        Fit::Differs => Some(known.condemned()),
        Fit::Stands if known.line.last().is_some_and(|p| p.start == told.start) && told.count > known.count => {
            Some(Seen { count: told.count, ..known.clone() })
        }
        Fit::Stands => None,
        Fit::Later => {
            let mut seen = known.clone();
            match seen.told.binary_search_by_key(&told.start, |k| k.start) {
                Ok(at) if seen.told[at].nonce != told.nonce => return Some(known.condemned()),
                Ok(at) if seen.told[at].count >= told.count => return None,
                Ok(at) => seen.told[at].count = told.count,
                Err(0) if seen.told.len() >= VOTERS_MAX => return None,
                Err(at) => {
                    seen.told.insert(at, *told);
                    if seen.told.len() > VOTERS_MAX {
                        seen.told.remove(0);
                    }
                }
            }
            Some(seen)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STORE: StoreId = StoreId([1; 16]);

    fn process(start: u64, nonce: u64, began: u64) -> Process {
        Process { start, nonce, began }
    }

    fn sender(of: Process, count: u64) -> Sender {
        Sender { store: STORE, start: of.start, nonce: of.nonce, began: of.began, count }
    }

    fn known(of: Process, count: u64) -> Known {
        sender(of, count).known()
    }

    /// What is seen after the first process has been heard at a count.
    fn after(first: Process, count: u64) -> Seen {
        let Heard::Took(seen) = hear(None, &sender(first, count), Some(&[])) else { panic!("not taken") };
        seen
    }

    fn is_refused(heard: &Heard) -> bool {
        matches!(heard, Heard::Refuse(..))
    }

    const FIRST: Process = Process { start: 1, nonce: 11, began: 1 };
    const NEXT: Process = Process { start: 2, nonce: 22, began: 10 };

    #[test]
    fn a_process_goes_on_and_a_later_one_takes_over() {
        let seen = after(FIRST, 5);
        assert_eq!(hear(Some(&seen), &sender(FIRST, 4), None), Heard::Same);
        let further = Seen { count: 9, ..seen.clone() };
        assert_eq!(hear(Some(&seen), &sender(FIRST, 9), None), Heard::Further(further.clone()));
        assert_eq!(hear(Some(&further), &sender(NEXT, 10), None), Heard::Unshown);
        let took = Seen { line: vec![FIRST, NEXT], count: 10, ..Seen::new(STORE) };
        assert_eq!(hear(Some(&further), &sender(NEXT, 10), Some(&[FIRST])), Heard::Took(took.clone()));
        // What the earlier one said is late, and no reason to refuse the later one.
        assert!(matches!(hear(Some(&took), &sender(FIRST, 9), None), Heard::Refuse(_, None)));
    }

    #[test]
    fn a_process_that_began_below_what_was_heard_is_refused_for_good() {
        let seen = after(FIRST, 10);
        let Heard::Refuse(refusal, Some(gone)) = hear(Some(&seen), &sender(NEXT, 99), Some(&[FIRST])) else { panic!() };
        assert_eq!(refusal, Refusal::RolledBack { store: STORE, refused: NEXT, start: 1, count: 10 });
        let later = process(3, 33, 200);
        assert!(is_refused(&hear(Some(&gone), &sender(later, 200), Some(&[FIRST, NEXT]))));
        assert!(is_refused(&hear(Some(&gone), &sender(FIRST, 11), None)));
    }

    #[test]
    fn unheard_starts_do_not_make_up_the_count() {
        // Heard: the second process, that began at 10. Put back: a copy of the first, started often.
        let seen = Seen { line: vec![FIRST, NEXT], count: 12, ..Seen::new(STORE) };
        let line = [FIRST, process(2, 5, 7), process(3, 6, 11), process(4, 7, 40)];
        let copy = sender(process(5, 8, 41), 41);
        assert!(matches!(hear(Some(&seen), &copy, Some(&line)), Heard::Refuse(_, Some(_))));
    }

    #[test]
    fn the_same_start_at_the_same_count_is_another_process() {
        let seen = Seen { line: vec![FIRST, NEXT], count: 10, ..Seen::new(STORE) };
        let twin = process(NEXT.start, 23, NEXT.began);
        assert!(matches!(hear(Some(&seen), &sender(twin, 10), Some(&[FIRST])), Heard::Refuse(_, Some(_))));
    }

    #[test]
    fn what_others_have_heard_counts() {
        let seen = after(FIRST, 5);
        // Of the same process: a copy from before that is known.
        let raised = told(Some(&seen), &known(FIRST, 12)).unwrap();
        assert!(is_refused(&hear(Some(&raised), &sender(NEXT, 10), Some(&[FIRST]))));
        assert!(!is_refused(&hear(Some(&seen), &sender(NEXT, 10), Some(&[FIRST]))));
        // Of a later one: it must stand in the line of whatever comes.
        let later = told(Some(&seen), &known(NEXT, 30)).unwrap();
        assert!(matches!(hear(Some(&later), &sender(FIRST, 6), None), Heard::Refuse(_, None)));
        let third = process(3, 33, 31);
        let line = [FIRST, NEXT];
        assert!(matches!(hear(Some(&later), &sender(third, 31), Some(&line)), Heard::Took(_)));
        assert!(is_refused(&hear(Some(&later), &sender(process(3, 33, 30), 31), Some(&line))));
        // Of an earlier one, after the copy was taken in.
        let copy = Seen { line: vec![FIRST, NEXT], count: 10, ..Seen::new(STORE) };
        assert!(told(Some(&copy), &known(FIRST, 10)).unwrap().rolled_back);
        assert_eq!(told(Some(&copy), &known(FIRST, 9)), None);
    }

    proptest! {
        /// A store whose processes follow one another is never refused, whatever was heard of it in whatever order, and
        /// whoever forgets to begin above what was heard always is.
        #[test]
        fn a_line_is_taken_and_a_fork_is_not(
            grow in prop::collection::vec(1_u64..5, 1..90),
            heard in prop::collection::vec((any::<prop::sample::Index>(), 0_u64..5, any::<bool>()), 0..12),
            fork in any::<prop::sample::Index>(),
        ) {
            let mut all = Vec::new();
            let mut count = 0;
            for (start, more) in (1_u64..).zip(&grow) {
                count += 1;
                all.push((process(start, 1_000 + start, count), *more));
                count += more;
            }
            let line = |at: usize| {
                all[at.saturating_sub(LEDGER_LINE_MAX)..at].iter().map(|(p, _)| *p).collect::<Vec<_>>()
            };
            let mut seen: Option<Seen> = None;
            let mut highest = None;
            for (at, more, is_told) in heard {
                let at = at.index(all.len());
                let (of, most) = all[at];
                let sender = sender(of, of.began + more.min(most));
                let next = if is_told {
                    told(seen.as_ref(), &sender.known())
                } else {
                    match hear(seen.as_ref(), &sender, Some(&line(at))) {
                        Heard::Further(next) | Heard::Took(next) => Some(next),
                        Heard::Refuse(_, next) => { prop_assert_eq!(&next, &None); None }
                        Heard::Same => None,
                        Heard::Unshown => { prop_assert!(false); None }
                    }
                };
                seen = next.or(seen);
                highest = highest.max(Some((of.start, sender.count)));
                prop_assert!(!seen.as_ref().unwrap().rolled_back);
            }
            let last = all.len() - 1;
            let (of, most) = all[last];
            let took = hear(seen.as_ref(), &sender(of, of.began + most), Some(&line(last)));
            prop_assert!(!is_refused(&took), "{:?} after {:?}", took, seen);
            // A copy of the store as process `from` had it when it began, started once more.
            let from = fork.index(all.len());
            let copy = process(all[from].0.start + 1, 7, all[from].0.began + 1);
            let mut past = line(from);
            past.push(all[from].0);
            if past.len() > LEDGER_LINE_MAX {
                past.remove(0);
            }
            let contradicts = highest.is_some_and(|(start, count)| start > all[from].0.start || count >= copy.began);
            let heard = hear(seen.as_ref(), &sender(copy, copy.began), Some(&past));
            if contradicts && start_is_in(&past, highest) {
                prop_assert!(is_refused(&heard), "{:?} after {:?}", heard, seen);
            }
        }
    }

    /// Whether the line reaches back, or forward, to what was heard.
    fn start_is_in(line: &[Process], heard: Option<(u64, u64)>) -> bool {
        line.len() < LEDGER_LINE_MAX || heard.is_some_and(|(start, _)| start >= line[0].start)
    }
}
