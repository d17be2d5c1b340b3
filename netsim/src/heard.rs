//! What clients have heard of their writes, and whether the documents that are there in the end are as they then must be.
//!
//! Rule: a client writes one after the other, each time a greater number, into a field of its own. Must not know: how writes
//! are sent, what is done to members meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// What a member has sent to a primary for a write may be appended so long after that member answered, or died: one attempt
/// takes no longer.
pub const ON_ITS_WAY: Duration = Duration::from_secs(2);

/// How a write ended for its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// 202, with the task.
    Taken(u64),
    /// An answer that says that nothing was done, or no connection.
    Refused(String),
    /// An answer that says that nobody knows, with the task if it is named, or a connection that the other side ended: nobody
    /// sends it again.
    Unknown(Option<u64>),
    /// The client itself waits no longer: the member may still be at it.
    GivenUp,
}

/// One write: `number` in the client's field of each document of `ids`.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Whose it is.
    pub client: usize,
    /// Greater than those of its client before it.
    pub number: u64,
    /// The documents.
    pub ids: BTreeSet<u64>,
    /// The member that it was sent to.
    pub at: usize,
    /// When it was sent.
    pub sent: Instant,
    /// When the client knew its end.
    pub ended: Instant,
    /// That end.
    pub end: End,
}

impl Attempt {
    /// Whether it was acknowledged.
    pub fn is_taken(&self) -> bool {
        matches!(self.end, End::Taken(_))
    }

    /// Whether it may be done, though no answer says so.
    pub fn is_unknown(&self) -> bool {
        matches!(self.end, End::Unknown(_) | End::GivenUp)
    }

    /// Whether it may be ordered behind `later`, which its client sent after it. What was appended earlier and is committed
    /// only now has its place before what is appended from now on.
    fn may_follow(&self, later: &Self) -> bool {
        match self.end {
            End::Taken(_) | End::Refused(_) => false,
            End::Unknown(_) => later.sent < self.ended + ON_ITS_WAY,
            End::GivenUp => true,
        }
    }

    fn told(&self, since: Instant) -> String {
        let at = |when: Instant| when.saturating_duration_since(since).as_millis();
        format!("{} at m{}, {}..{} ms: {:?}", self.number, self.at + 1, at(self.sent), at(self.ended), self.end)
    }
}

/// What was found with nothing lost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sound {
    /// Unknown writes, by client and number, that stand where a later one of the same client was acknowledged: they were
    /// still on their way when that one was sent.
    pub late: BTreeSet<(usize, u64)>,
}

/// `found` gives the number in a client's field of a document. In each stands the last acknowledged write, or an unknown one
/// that may have come behind it; nothing that was refused, and nothing acknowledged is missing.
///
/// # Errors
/// What is not so, a line for each field.
pub fn judge(heard: &[Attempt], found: impl Fn(u64, usize) -> Option<u64>) -> Result<Sound, Vec<String>> {
    let mut by: BTreeMap<(u64, usize), Vec<&Attempt>> = BTreeMap::new();
    for attempt in heard {
        attempt.ids.iter().for_each(|id| by.entry((*id, attempt.client)).or_default().push(attempt));
    }
    let (mut sound, mut faults) = (Sound::default(), Vec::new());
    for ((id, client), mut attempts) in by {
        attempts.sort_by_key(|a| a.number);
        let found = found(id, client);
        let last = attempts.iter().rev().find(|a| a.is_taken());
        let what = match (found.map(|n| attempts.iter().find(|a| a.number == n)), last) {
            (None, None) => continue,
            (None, Some(_)) => "an acknowledged write is lost",
            (Some(None), _) => "nobody has written what is there",
            (Some(Some(is)), Some(last)) if is.number == last.number => continue,
            (Some(Some(is)), last) => match is.end {
                End::Refused(_) => "a refused write was done",
                End::Taken(_) => "an acknowledged write is lost",
                End::Unknown(_) | End::GivenUp => match last.filter(|last| is.number < last.number) {
                    None => continue,
                    Some(last) if is.may_follow(last) => {
                        sound.late.insert((client, is.number));
                        continue;
                    }
                    Some(_) => "an acknowledged write is lost: the unknown one that is there was over when it was sent",
                },
            },
        };
        let all: Vec<_> = attempts.iter().map(|a| a.told(attempts[0].sent)).collect();
        let last = last.map(|a| a.number);
        faults.push(format!("document {id}, client {client}: {what}: {found:?}, not {last:?}: {all:?}"));
    }
    if faults.is_empty() { Ok(sound) } else { Err(faults) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Writes of document 5, each of which took a second, and began so many seconds after the start.
    fn heard(all: &[(u32, End)]) -> Vec<Attempt> {
        let start = Instant::now();
        let attempt = |(number, (at, end)): (u64, &(u32, End))| Attempt {
            client: 1,
            number,
            ids: [5].into(),
            at: 0,
            sent: start + SECOND * *at,
            ended: start + SECOND * (*at + 1),
            end: end.clone(),
        };
        (1..).zip(all).map(attempt).collect()
    }

    fn late(heard: &[Attempt], found: Option<u64>) -> Result<Vec<u64>, Vec<String>> {
        judge(heard, |_, _| found).map(|sound| sound.late.into_iter().map(|(_, number)| number).collect())
    }

    #[test]
    fn a_lost_write_and_one_that_was_refused_and_done_are_found() {
        let heard = heard(&[
            (0, End::Taken(9)),
            (1, End::Taken(10)),
            (2, End::Refused("no".into())),
            (3, End::Unknown(Some(11))),
        ]);
        assert_eq!((late(&heard, Some(2)), late(&heard, Some(4))), (Ok(vec![]), Ok(vec![])));
        assert!(late(&heard, Some(1)).unwrap_err()[0].contains("is lost"));
        assert!(late(&heard, None).unwrap_err()[0].contains("is lost"));
        assert!(late(&heard, Some(3)).unwrap_err()[0].contains("refused"));
        assert!(late(&heard, Some(7)).unwrap_err()[0].contains("nobody"));
        assert_eq!(late(&heard[2..], None), Ok(vec![]), "of these nothing need be there");
    }

    #[test]
    fn an_unknown_write_of_before_does_not_hide_that_an_acknowledged_one_is_lost() {
        let unknown = End::Unknown(Some(8));
        let soon = heard(&[(0, unknown.clone()), (2, End::Taken(9))]);
        assert_eq!(late(&soon, Some(1)), Ok(vec![1]), "it was on its way");
        let long_after = heard(&[(0, unknown.clone()), (2, End::Taken(9)), (3, End::Taken(10))]);
        let faults = late(&long_after, Some(1)).unwrap_err();
        assert!(faults.len() == 1 && faults[0].contains("was over when"), "{faults:?}");
        assert_eq!(late(&long_after, Some(3)), Ok(vec![]));
        let broken = heard(&[(0, End::Unknown(None)), (3, End::Taken(9))]);
        assert!(late(&broken, Some(1)).is_err(), "whoever had it is dead");
        let given_up = heard(&[(0, End::GivenUp), (50, End::Taken(9))]);
        assert_eq!(late(&given_up, Some(1)), Ok(vec![1]), "a member that stood still may go on with it");
        let after = heard(&[(0, End::Taken(9)), (1, unknown.clone()), (2, unknown)]);
        assert_eq!((late(&after, Some(2)), late(&after, Some(3))), (Ok(vec![]), Ok(vec![])));
    }
}
