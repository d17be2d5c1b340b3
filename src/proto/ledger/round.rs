//! One round on one key: who has voted, and when the votes suffice.
//!
//! Rule: only members of the round's own voter list count, by member *and* store, each once, and only for answers that
//! were given under that list. Must not know: why the round is held, or what comes after it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::message::{Item, RoundId};
use crate::proto::env::Instant;
use crate::types::{Ballot, Versioned, Voter, VoterList};

/// What a voter accepted last.
pub type Accepted = Option<(Ballot, Versioned)>;

/// What the round asks for.
#[derive(Debug, Clone)]
pub enum Stage {
    /// What the voters have accepted, without a promise.
    Query { found: BTreeMap<Voter, Accepted> },
    /// Their promise of the ballot.
    Prepare { ballot: Ballot, promised: BTreeSet<Voter>, best: Accepted },
    /// That they accept the value.
    Accept { ballot: Ballot, record: Versioned, next: Option<Ballot>, accepted: BTreeSet<Voter> },
}

/// What a vote makes of the round.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    /// More votes are needed, or this one counts for nothing.
    Wait,
    /// A majority has accepted at the same ballot, or nothing: this is chosen.
    Same(Accepted),
    /// A majority has answered, and not the same: only a full round can tell.
    Differ,
    /// A majority has promised; this is the value of the highest ballot that it has accepted.
    Promised(Accepted),
    /// A majority has accepted: the value is chosen.
    Chosen,
    /// So many have refused that there can't be a majority.
    Lost,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Round {
    /// What answers name.
    pub id: RoundId,
    /// Whose votes count.
    pub list: Arc<VoterList>,
    /// When its questions were sent.
    pub began: Instant,
    /// What it asks.
    pub stage: Stage,
    /// Who has refused: their promise is to another ballot.
    pub refused: BTreeSet<Voter>,
    /// When the first of them did.
    pub refused_at: Option<Instant>,
}

impl Round {
    /// A round without votes.
    pub fn new(id: RoundId, list: Arc<VoterList>, began: Instant, stage: Stage) -> Self {
        Self { id, list, began, stage, refused: BTreeSet::new(), refused_at: None }
    }

    /// When it is begun anew, if it has come to nothing by then. Behind a refusal the others have as long again as that took, and
    /// some `grace`: with a voter down nobody else may be there who could still make a majority.
    pub fn due(&self, timeout: Duration, grace: Duration) -> Instant {
        let whole = self.began.plus(timeout);
        self.refused_at.map_or(whole, |at| whole.min(at.plus(at.since(self.began)).plus(grace)))
    }

    /// Counts the answer of `voter`, given under the list numbered `under`.
    pub fn vote(&mut self, voter: &Voter, under: u64, item: &Item) -> Outcome {
        if under != self.list.number || !self.list.has(voter) {
            return Outcome::Wait;
        }
        let majority = self.list.majority();
        match (&mut self.stage, item) {
            (Stage::Query { found }, Item::Found { accepted, .. }) => {
                if found.len() >= majority || found.insert(voter.clone(), accepted.clone()).is_some() {
                    return Outcome::Wait;
                }
                if found.len() < majority {
                    return Outcome::Wait;
                }
                let mut ballots = found.values().map(|a| a.as_ref().map(|(b, _)| b));
                let first = ballots.next().flatten();
                if ballots.all(|b| b == first) { Outcome::Same(accepted.clone()) } else { Outcome::Differ }
            }
            (Stage::Prepare { ballot, promised, best }, Item::Promised { ballot: at, accepted, .. }) => {
                if at != ballot || promised.len() >= majority || !promised.insert(voter.clone()) {
                    return Outcome::Wait;
                }
                if accepted.as_ref().map(|(b, _)| b) > best.as_ref().map(|(b, _)| b) {
                    best.clone_from(accepted);
                }
                if promised.len() < majority { Outcome::Wait } else { Outcome::Promised(best.clone()) }
            }
            (Stage::Accept { ballot, accepted, .. }, Item::Accepted { ballot: at, .. }) => {
                if at != ballot || accepted.len() >= majority || !accepted.insert(voter.clone()) {
                    return Outcome::Wait;
                }
                if accepted.len() < majority { Outcome::Wait } else { Outcome::Chosen }
            }
            (
                Stage::Prepare { ballot, .. } | Stage::Accept { ballot, .. },
                Item::Higher { ballot: at, promise, .. },
            ) => {
                // A question that came twice is refused for its own sake.
                if at != ballot || promise <= ballot || !self.refused.insert(voter.clone()) {
                    return Outcome::Wait;
                }
                let left = self.list.voters.len() - self.refused.len();
                if left + 1 == majority { Outcome::Lost } else { Outcome::Wait }
            }
            _ => Outcome::Wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{MemberId, StoreId};

    fn voter(i: u8) -> Voter {
        Voter { member: MemberId::new(format!("m{i}")).unwrap(), store: StoreId([i; 16]) }
    }

    fn list() -> Arc<VoterList> {
        Arc::new(VoterList::new(3, vec![voter(1), voter(2), voter(3)]))
    }

    fn ballot(counter: u64) -> Ballot {
        Ballot { counter, member: voter(1).member, start: 1 }
    }

    fn value(version: u64) -> Versioned {
        Versioned { version, announced: version, value: "x".into() }
    }

    const ID: RoundId = RoundId { start: 1, number: 1 };

    fn round(stage: Stage) -> Round {
        Round::new(ID, list(), Instant(0), stage)
    }

    fn prepare() -> Round {
        round(Stage::Prepare { ballot: ballot(5), promised: BTreeSet::new(), best: None })
    }

    fn promised(accepted: Accepted) -> Item {
        Item::Promised { round: ID, ballot: ballot(5), accepted }
    }

    #[test]
    fn a_voter_counts_once() {
        let mut r = prepare();
        assert_eq!(r.vote(&voter(1), 3, &promised(None)), Outcome::Wait);
        assert_eq!(r.vote(&voter(1), 3, &promised(None)), Outcome::Wait);
        assert_eq!(r.vote(&voter(2), 3, &promised(None)), Outcome::Promised(None));
    }

    #[test]
    fn the_same_member_with_another_store_does_not_count() {
        let mut r = prepare();
        let emptied = Voter { store: StoreId([9; 16]), ..voter(2) };
        r.vote(&voter(1), 3, &promised(None));
        assert_eq!(r.vote(&emptied, 3, &promised(None)), Outcome::Wait);
        assert_eq!(r.vote(&voter(4), 3, &promised(None)), Outcome::Wait);
    }

    #[test]
    fn an_answer_given_under_another_list_does_not_count() {
        let mut r = prepare();
        r.vote(&voter(1), 3, &promised(None));
        assert_eq!(r.vote(&voter(2), 2, &promised(None)), Outcome::Wait);
        assert_eq!(r.vote(&voter(2), 4, &promised(None)), Outcome::Wait);
    }

    #[test]
    fn the_value_of_the_highest_ballot_is_found() {
        let mut r = prepare();
        r.vote(&voter(1), 3, &promised(Some((ballot(4), value(2)))));
        let outcome = r.vote(&voter(2), 3, &promised(Some((ballot(3), value(3)))));
        assert_eq!(outcome, Outcome::Promised(Some((ballot(4), value(2)))));
    }

    #[test]
    fn a_promise_of_another_ballot_does_not_count() {
        let mut r = prepare();
        let other = Item::Promised { round: ID, ballot: ballot(4), accepted: None };
        r.vote(&voter(1), 3, &promised(None));
        assert_eq!(r.vote(&voter(2), 3, &other), Outcome::Wait);
    }

    #[test]
    fn votes_after_the_majority_change_nothing() {
        let stage = Stage::Accept { ballot: ballot(5), record: value(1), next: None, accepted: BTreeSet::new() };
        let mut r = round(stage);
        let yes = Item::Accepted { round: ID, ballot: ballot(5) };
        let votes: Vec<_> = (1..=3).map(|i| r.vote(&voter(i), 3, &yes)).collect();
        assert_eq!(votes, [Outcome::Wait, Outcome::Chosen, Outcome::Wait]);
    }

    #[test]
    fn a_round_is_lost_when_no_majority_is_left_and_told_so_once() {
        let mut r = prepare();
        let no = Item::Higher { round: ID, ballot: ballot(5), promise: ballot(6) };
        let votes: Vec<_> = (1..=3).map(|i| r.vote(&voter(i), 3, &no)).collect();
        assert_eq!(votes, [Outcome::Wait, Outcome::Lost, Outcome::Wait]);
    }

    #[test]
    fn a_round_that_was_refused_does_not_wait_for_a_voter_that_may_be_down() {
        let (ms, grace) = (Duration::from_millis, Duration::from_millis(20));
        let mut r = prepare();
        assert_eq!(r.due(ms(500), grace), Instant(500_000));
        r.refused_at = Some(Instant(60_000));
        assert_eq!(r.due(ms(500), grace), Instant(140_000));
        r.refused_at = Some(Instant(400_000));
        assert_eq!(r.due(ms(500), grace), Instant(500_000));
    }

    #[test]
    fn the_refusal_of_a_repeated_question_is_no_refusal() {
        let mut r = prepare();
        let echo = Item::Higher { round: ID, ballot: ballot(5), promise: ballot(5) };
        (1..=3).for_each(|i| assert_eq!(r.vote(&voter(i), 3, &echo), Outcome::Wait));
        assert!(r.refused.is_empty());
    }

    #[test]
    fn a_read_needs_a_majority_at_one_ballot() {
        let found = |b: Option<u64>| Item::Found { round: ID, accepted: b.map(|b| (ballot(b), value(b))) };
        let ask = |a: Option<u64>, b: Option<u64>| {
            let mut r = round(Stage::Query { found: BTreeMap::new() });
            assert_eq!(r.vote(&voter(1), 3, &found(a)), Outcome::Wait);
            assert_eq!(r.vote(&voter(1), 3, &found(b)), Outcome::Wait, "again");
            let mut r = round(Stage::Query { found: BTreeMap::new() });
            r.vote(&voter(1), 3, &found(a));
            r.vote(&voter(3), 3, &found(b))
        };
        assert_eq!(ask(Some(4), Some(4)), Outcome::Same(Some((ballot(4), value(4)))));
        assert_eq!(ask(None, None), Outcome::Same(None));
        assert_eq!(ask(Some(4), Some(3)), Outcome::Differ);
        assert_eq!(ask(Some(4), None), Outcome::Differ);
    }
}
