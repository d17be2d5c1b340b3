//! What follows for a shard's copies when a member has another store, or belongs to the mesh no more.
//!
//! A member whose store was lost is another replica: only it knows that for sure, so it writes itself that its copy is to be
//! filled anew, and later that it is full. Copies of those who were left out of the mesh count for nothing any more; anybody
//! may write that who has read the mesh's record from a majority. Rule: a shard of which nobody is left who has every
//! acknowledged write stays as it is, for only an operator may give that up. Must not know: how copies are filled.

use std::collections::BTreeSet;

use super::election::min_in_sync;
use super::record::{self, Change, Why};
use crate::types::{Holder, MemberId, ReplicaId, ReplicaState, ShardState};

/// The change that puts this member's new store in the place of its old one, as a learner. `None` if there is nothing to change,
/// or if it could not be written: the old one is the primary's, or the last in sync.
pub fn take_place(state: &ShardState, me: &ReplicaId, by: &Holder, configured: Option<usize>) -> Option<Change> {
    let old = state.copy(&me.member).filter(|copy| copy.id.store != me.store)?.id.clone();
    let mut after = state.clone();
    for copy in after.replicas.iter_mut().filter(|copy| copy.id == old) {
        copy.id = me.clone();
        copy.state = ReplicaState::Learner;
    }
    after.in_sync.retain(|id| *id != old);
    let min = min_in_sync(&after, configured);
    record::finished(state, by, Why::Replicas, after, min)
}

/// The change that makes this member's copy, whose journal is damaged, a learner outside the in-sync set. `None` if its primary can
/// leave it out as well, for the set is larger than its least size, or if it could not be written: it is the primary's own, or the
/// last in sync.
pub fn step_back(state: &ShardState, me: &ReplicaId, by: &Holder, configured: Option<usize>) -> Option<Change> {
    let min = min_in_sync(state, configured);
    if !state.is_in_sync(me) || state.in_sync.len() > min {
        return None;
    }
    let mut after = state.clone();
    after.replicas.iter_mut().filter(|copy| copy.id == *me).for_each(|copy| copy.state = ReplicaState::Learner);
    after.in_sync.retain(|id| id != me);
    record::finished(state, by, Why::Replicas, after, min)
}

/// The change that makes this learner a full copy, which may come into the in-sync set. `None` if it is none.
pub fn is_full(state: &ShardState, me: &ReplicaId, by: &Holder, configured: Option<usize>) -> Option<Change> {
    let mut after = state.clone();
    let copy = after.replicas.iter_mut().find(|copy| copy.id == *me && copy.is_learner())?;
    copy.state = ReplicaState::Replica;
    let min = min_in_sync(&after, configured);
    record::finished(state, by, Why::Replicas, after, min)
}

/// The change that takes out the copies of all who are not among `present`. `None` if there are none, or if it could not be written:
/// the primary is one of them, or nobody in sync would be left.
pub fn leave_out(state: &ShardState, present: &BTreeSet<MemberId>, by: &Holder) -> Option<Change> {
    let mut after = state.clone();
    after.replicas.retain(|copy| present.contains(&copy.id.member));
    after.in_sync.retain(|id| present.contains(&id.member));
    if after.replicas.len() == state.replicas.len() {
        return None;
    }
    record::finished(state, by, Why::LeftOut, after, 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Epoch, ShardCopy, StoreId};

    fn id(member: u8, store: u8) -> ReplicaId {
        ReplicaId { member: MemberId::new(format!("m{member}")).unwrap(), store: StoreId([store; 16]) }
    }

    fn by(member: u8) -> Holder {
        Holder { member: id(member, 0).member, start: 5 }
    }

    fn state(members: &[u8], in_sync: &[u8], primary: u8) -> ShardState {
        let copy = |m: &u8| ShardCopy { id: id(*m, *m), state: ReplicaState::Replica };
        ShardState {
            replicas: members.iter().map(copy).collect(),
            in_sync: in_sync.iter().map(|m| id(*m, *m)).collect(),
            primary: Some(by(primary)),
            epoch: Epoch::new(4).unwrap(),
            set: 9,
        }
    }

    #[test]
    fn a_new_store_learns_in_the_place_of_the_old_one_and_is_full_later() {
        let now = state(&[1, 2, 3], &[1, 2, 3], 1);
        let after = take_place(&now, &id(3, 8), &by(3), None).unwrap().after;
        assert_eq!(after.replicas[2], ShardCopy { id: id(3, 8), state: ReplicaState::Learner });
        assert_eq!((after.in_sync.clone(), after.copies()), (vec![id(1, 1), id(2, 2)], 3));
        assert_eq!(take_place(&after, &id(3, 8), &by(3), None), None, "once");
        assert_eq!(is_full(&after, &id(3, 3), &by(3), None), None, "the old store is full no more");
        let full = is_full(&after, &id(3, 8), &by(3), None).unwrap().after;
        assert_eq!((full.copies(), full.in_sync.len()), (3, 2));
        assert_eq!(is_full(&full, &id(3, 8), &by(3), None), None);
    }

    #[test]
    fn nobody_takes_the_place_of_a_primary_or_of_the_last_in_sync() {
        let now = state(&[1, 2, 3], &[1, 2, 3], 3);
        assert_eq!(take_place(&now, &id(3, 8), &by(3), None), None, "another is elected first");
        let last = ShardState { primary: None, epoch: Epoch::ZERO, ..state(&[1, 3], &[3], 3) };
        assert_eq!(take_place(&last, &id(3, 8), &by(3), None), None, "only it had every acknowledged write");
        assert_eq!(take_place(&now, &id(4, 8), &by(4), None), None, "who holds no copy");
    }

    #[test]
    fn a_learner_is_full_also_where_the_set_is_smaller_than_its_least_size() {
        let mut now = state(&[1, 2, 3], &[1], 1);
        now.replicas[2].state = ReplicaState::Learner;
        assert!(is_full(&now, &id(3, 3), &by(3), None).is_some(), "two of three are the least");
    }

    #[test]
    fn a_damaged_copy_steps_back_where_the_set_can_spare_nobody() {
        let now = state(&[1, 2, 3], &[1, 2], 1);
        let after = step_back(&now, &id(2, 2), &by(2), None).unwrap().after;
        assert_eq!((after.in_sync.clone(), after.copy(&id(2, 2).member).unwrap().is_learner()), (vec![id(1, 1)], true));
        assert_eq!(step_back(&now, &id(2, 2), &by(1), None), None, "nobody else's copy");
        assert_eq!(step_back(&now, &id(1, 1), &by(1), None), None, "the primary hands over first");
        let all = state(&[1, 2, 3], &[1, 2, 3], 1);
        assert_eq!(step_back(&all, &id(2, 2), &by(2), None), None, "its primary leaves it out");
        assert_eq!(step_back(&state(&[1, 2], &[2], 2), &id(2, 2), &by(2), None), None, "nobody else has every write");
    }

    #[test]
    fn who_was_left_out_counts_no_more() {
        let present = |members: &[u8]| members.iter().map(|m| id(*m, 0).member).collect();
        let now = state(&[1, 2, 3, 4, 5], &[1, 4, 5], 1);
        let after = leave_out(&now, &present(&[1, 2, 3]), &by(2)).unwrap().after;
        assert_eq!((after.replicas.len(), after.in_sync.clone()), (3, vec![id(1, 1)]), "below the least of three");
        assert_eq!(leave_out(&after, &present(&[1, 2, 3]), &by(2)), None);
        assert_eq!(leave_out(&now, &present(&[2, 3, 4]), &by(2)), None, "not while it is the primary");
        assert_eq!(leave_out(&state(&[1, 2], &[2], 2), &present(&[1]), &by(1)), None, "nobody has every write");
        let unled = ShardState { primary: None, epoch: Epoch::ZERO, ..state(&[1, 2], &[2], 2) };
        assert_eq!(leave_out(&unled, &present(&[1]), &by(1)), None);
    }
}
