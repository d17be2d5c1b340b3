//! Which changes of a shard's state the index record may take.
//!
//! Rule: whoever makes a change, [`check`] looks at it before it is written; a change that is refused here is made by
//! nobody. Shrinking the in-sync set is safe from anyone, growing it only from the primary, who counts the newcomer from
//! before it asks. Must not know: who wants a change, or whether it is wise.

use std::collections::BTreeSet;

use crate::types::limits::MEMBERS_MAX;
use crate::types::{Epoch, Holder, MemberId, ReplicaId, ReplicaState, ShardCopy, ShardState, StoreId};

/// What a change is for; it decides which parts may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The shard is new.
    Create,
    /// Another process orders the writes from here on; members that are away may leave the in-sync set with it.
    Elect,
    /// The primary asks for members to come into the in-sync set or to leave it; or only for a higher `set`, so that
    /// what it asked for before can't take effect any more.
    InSync,
    /// Copies are added, filled, given up or taken out, or a member has another store.
    Replicas,
    /// Copies of members that belong to the mesh no more are taken out, and nothing else; no choice of anybody's, so the set may
    /// be smaller than its minimum after it.
    LeftOut,
    /// An operator makes any full copy the primary, alone in the in-sync set, and gives up what only others have. It may be in
    /// another store than the record's: then its journal begins anew, and all other copies are filled from it.
    AcceptLoss,
}

/// One change that somebody wants to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The epoch and the `set` that the change starts from; both zero for a new shard.
    pub from: (Epoch, u64),
    /// What for.
    pub why: Why,
    /// Who wants it.
    pub by: Holder,
    /// The state after it.
    pub after: ShardState,
}

/// Why a change is not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The record has moved on.
    #[error("the change starts from another epoch or set than the record's")]
    Outdated,
    /// A shard is created once, and everything else needs one.
    #[error("a shard is created once, before anything else")]
    Existence,
    /// A member twice, nobody in sync, or beyond the bounds.
    #[error("the replicas or the in-sync set are not well formed")]
    Malformed,
    /// In sync without being a full copy in the same store.
    #[error("a member in sync is not a full replica in that store")]
    NotReplica,
    /// The primary is not in sync.
    #[error("the primary is not in sync")]
    PrimaryNotInSync,
    /// The epoch must grow by one with every primary, and only with one.
    #[error("the epoch does not grow by one with the primary")]
    Epoch,
    /// `set` must grow by one.
    #[error("the set's number does not grow by one")]
    Set,
    /// The change touches what its kind may not.
    #[error("the change touches more than its kind may")]
    Reach,
    /// Only the primary may let somebody into the set.
    #[error("only the primary changes the in-sync set")]
    NotPrimary,
    /// The set would be smaller than the least that was configured.
    #[error("the in-sync set would be smaller than its minimum")]
    TooSmall,
}

/// The least size of the in-sync set unless configured: a majority of the copies, but 1 of 2.
pub fn default_min_in_sync(copies: usize) -> usize {
    match copies {
        0..=2 => copies.min(1),
        _ => copies / 2 + 1,
    }
}

/// Checks one change of a shard's state. `now` is what the record holds, `min_in_sync` the least size of the in-sync set
/// for the copies that the shard has after the change.
///
/// # Errors
/// The first rule that the change breaks.
pub fn check(now: Option<&ShardState>, change: &Change, min_in_sync: usize) -> Result<(), ChangeError> {
    let after = &change.after;
    well_formed(after)?;
    let Some(now) = now else { return created(change) };
    ensure(change.why != Why::Create, ChangeError::Existence)?;
    ensure(change.from == (now.epoch, now.set), ChangeError::Outdated)?;
    ensure(now.set.checked_add(1) == Some(after.set), ChangeError::Set)?;
    let elects = matches!(change.why, Why::Elect | Why::AcceptLoss);
    if elects {
        ensure(after.primary.is_some() && now.epoch.next() == Some(after.epoch), ChangeError::Epoch)?;
    } else {
        ensure(after.primary == now.primary && after.epoch == now.epoch, ChangeError::Epoch)?;
    }
    let moves = matches!(change.why, Why::Replicas | Why::LeftOut | Why::AcceptLoss);
    ensure(moves || after.replicas == now.replicas, ChangeError::Reach)?;
    let grows = !after.in_sync.iter().all(|id| now.is_in_sync(id));
    match change.why {
        Why::Create => return Err(ChangeError::Existence),
        Why::Elect => ensure(!grows, ChangeError::Reach)?,
        Why::InSync => ensure(now.primary.as_ref() == Some(&change.by), ChangeError::NotPrimary)?,
        Why::Replicas => {
            ensure(!grows, ChangeError::Reach)?;
            learns_first(now, after)?;
        }
        Why::LeftOut => return ensure(only_loses_copies(now, after), ChangeError::Reach),
        Why::AcceptLoss => {
            let keeps = after.replicas == now.replicas || begins_anew(now, after);
            return ensure(after.in_sync.len() == 1 && keeps, ChangeError::Reach);
        }
    }
    ensure(after.in_sync.len() >= min_in_sync.min(still_there(now, after, &change.by)), ChangeError::TooSmall)
}

fn ensure(holds: bool, error: ChangeError) -> Result<(), ChangeError> {
    if holds { Ok(()) } else { Err(error) }
}

fn well_formed(state: &ShardState) -> Result<(), ChangeError> {
    let members: BTreeSet<&MemberId> = state.replicas.iter().map(|c| &c.id.member).collect();
    let in_sync: BTreeSet<&ReplicaId> = state.in_sync.iter().collect();
    let sized = (1..=MEMBERS_MAX).contains(&state.replicas.len()) && !state.in_sync.is_empty();
    let once = members.len() == state.replicas.len() && in_sync.len() == state.in_sync.len();
    ensure(sized && once, ChangeError::Malformed)?;
    let full = |id: &ReplicaId| state.copy(&id.member).is_some_and(|c| c.id == *id && !c.is_learner());
    ensure(state.in_sync.iter().all(full), ChangeError::NotReplica)?;
    match &state.primary {
        Some(primary) => {
            ensure(state.epoch > Epoch::ZERO, ChangeError::Epoch)?;
            ensure(state.in_sync.iter().any(|id| id.member == primary.member), ChangeError::PrimaryNotInSync)
        }
        None => ensure(state.epoch == Epoch::ZERO, ChangeError::Epoch),
    }
}

fn created(change: &Change) -> Result<(), ChangeError> {
    let after = &change.after;
    ensure(change.why == Why::Create, ChangeError::Existence)?;
    ensure(change.from == (Epoch::ZERO, 0), ChangeError::Outdated)?;
    ensure(after.set == 1, ChangeError::Set)?;
    ensure(after.epoch.number() <= 1, ChangeError::Epoch)?;
    // All journals are empty, so all are equal.
    ensure(after.in_sync.len() == after.replicas.len(), ChangeError::Reach)
}

/// A copy that was not there, or is in another store, begins as a learner.
fn learns_first(now: &ShardState, after: &ShardState) -> Result<(), ChangeError> {
    let known = |id: &ReplicaId| now.replicas.iter().any(|c| c.id == *id);
    let learns = after.replicas.iter().all(|c| known(&c.id) || c.is_learner());
    ensure(learns, ChangeError::Reach)
}

/// Whether one full copy is in another store of its member, and all others are to be filled: what its former journal held is
/// gone, and theirs don't go on from the new one.
fn begins_anew(now: &ShardState, after: &ShardState) -> bool {
    let first = after.in_sync.first();
    let right = |(was, is): (&ShardCopy, &ShardCopy)| {
        if Some(&is.id) == first {
            let moved = was.id.member == is.id.member && was.id.store != is.id.store;
            moved && !was.is_learner() && is.state == ReplicaState::Replica
        } else {
            was.id == is.id && is.is_learner()
        }
    };
    now.replicas.len() == after.replicas.len() && now.replicas.iter().zip(&after.replicas).all(right)
}

/// Whether some copies are missing, and of the in-sync set only theirs.
fn only_loses_copies(now: &ShardState, after: &ShardState) -> bool {
    let stays = |id: &ReplicaId| after.replicas.iter().any(|copy| copy.id == *id);
    let replicas = now.replicas.iter().filter(|copy| stays(&copy.id));
    let in_sync = now.in_sync.iter().filter(|id| stays(id));
    replicas.eq(&after.replicas) && in_sync.eq(&after.in_sync)
}

/// How many of the set exist still: a store that its member has no more, or a journal that its member says is damaged, is not left
/// out by choice.
fn still_there(now: &ShardState, after: &ShardState, by: &Holder) -> usize {
    let lost = |id: &ReplicaId| {
        let copy = after.copy(&id.member);
        copy.is_some_and(|c| c.id.store != id.store || c.is_learner() && id.member == by.member)
    };
    now.in_sync.iter().filter(|id| !lost(id)).count()
}

/// The change that makes `to` the primary and takes those of `away` out of the in-sync set, as far as its minimum lets it:
/// the first of them in the set's order stay. `None` if `to` is not in sync, or if it could not be written.
pub fn elect(now: &ShardState, by: &Holder, to: &Holder, away: &BTreeSet<MemberId>, min: usize) -> Option<Change> {
    let mut after = now.clone();
    let mut spare = now.in_sync.len().saturating_sub(min.max(1));
    for id in now.in_sync.iter().rev().filter(|id| away.contains(&id.member) && id.member != to.member) {
        if spare > 0 {
            spare -= 1;
            after.in_sync.retain(|other| other != id);
        }
    }
    after.primary = Some(to.clone());
    after.epoch = now.epoch.next()?;
    finished(now, by, Why::Elect, after, min)
}

/// The change that gives the in-sync set these members, in the order of the replicas. `None` if it could not be written.
pub fn in_sync(now: &ShardState, by: &Holder, set: &BTreeSet<ReplicaId>, min: usize) -> Option<Change> {
    let mut after = now.clone();
    after.in_sync = now.replicas.iter().map(|c| &c.id).filter(|id| set.contains(id)).cloned().collect();
    finished(now, by, Why::InSync, after, min)
}

/// The change that makes `to`, which works in `store`, the primary though it may not have every acknowledged write. `None` if it
/// could not be written: `to` holds no full copy. In another store than the record's its journal begins anew, and all other
/// copies are filled from what its node has.
pub fn accept_loss(now: &ShardState, by: &Holder, to: &Holder, store: StoreId) -> Option<Change> {
    let moved = now.copy(&to.member)?.id.store != store;
    let mut after = now.clone();
    for copy in after.replicas.iter_mut().filter(|_| moved) {
        if copy.id.member != to.member {
            copy.state = ReplicaState::Learner;
        } else if !copy.is_learner() {
            (copy.id.store, copy.state) = (store, ReplicaState::Replica);
        }
    }
    after.in_sync = vec![ReplicaId { member: to.member.clone(), store }];
    after.primary = Some(to.clone());
    after.epoch = now.epoch.next()?;
    finished(now, by, Why::AcceptLoss, after, 1)
}

/// The change from `now` to `after`, with the next number of the set; `None` if [`check`] refuses it.
pub(super) fn finished(now: &ShardState, by: &Holder, why: Why, mut after: ShardState, min: usize) -> Option<Change> {
    after.set = now.set.checked_add(1)?;
    let change = Change { from: (now.epoch, now.set), why, by: by.clone(), after };
    check(Some(now), &change, min).is_ok().then_some(change)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(member: u8, store: u8) -> ReplicaId {
        ReplicaId { member: MemberId::new(format!("m{member}")).unwrap(), store: StoreId([store; 16]) }
    }

    fn holder(member: u8, start: u64) -> Holder {
        Holder { member: id(member, 0).member, start }
    }

    fn state(replicas: &[(u8, ReplicaState)], in_sync: &[u8], primary: u8) -> ShardState {
        ShardState {
            replicas: replicas.iter().map(|(m, state)| ShardCopy { id: id(*m, *m), state: *state }).collect(),
            in_sync: in_sync.iter().map(|m| id(*m, *m)).collect(),
            primary: Some(holder(primary, 7)),
            epoch: Epoch::new(4).unwrap(),
            set: 9,
        }
    }

    fn three() -> ShardState {
        state(&[(1, ReplicaState::Replica), (2, ReplicaState::Replica), (3, ReplicaState::Replica)], &[1, 2, 3], 1)
    }

    fn change(now: &ShardState, why: Why, edit: impl FnOnce(&mut ShardState)) -> Result<(), ChangeError> {
        let mut after = now.clone();
        after.set += 1;
        edit(&mut after);
        check(Some(now), &Change { from: (now.epoch, now.set), why, by: holder(1, 7), after }, 2)
    }

    #[test]
    fn a_majority_is_the_least_in_sync_but_one_of_two() {
        assert_eq!([0, 1, 2, 3, 4, 5, 6].map(default_min_in_sync), [0, 1, 1, 2, 3, 3, 4]);
    }

    #[test]
    fn the_primary_lets_in_and_leaves_out() {
        let now = three();
        assert_eq!(change(&now, Why::InSync, |s| s.in_sync.truncate(2)), Ok(()));
        assert_eq!(change(&now, Why::InSync, |s| s.in_sync.truncate(1)), Err(ChangeError::TooSmall));
        assert_eq!(change(&now, Why::InSync, |s| s.in_sync.clear()), Err(ChangeError::Malformed));
        assert_eq!(
            change(&now, Why::InSync, |s| s.in_sync = vec![id(2, 2), id(3, 3)]),
            Err(ChangeError::PrimaryNotInSync)
        );
        assert_eq!(change(&now, Why::InSync, |_| ()), Ok(()), "a higher set alone");
        let mut other = Change { from: (now.epoch, now.set), why: Why::InSync, by: holder(1, 6), after: now.clone() };
        other.after.set += 1;
        assert_eq!(check(Some(&now), &other, 2), Err(ChangeError::NotPrimary), "an earlier process of the same member");
    }

    #[test]
    fn a_learner_and_a_foreign_store_are_not_in_sync() {
        let mut now = three();
        now.in_sync.truncate(2);
        assert_eq!(change(&now, Why::InSync, |s| s.in_sync.push(id(3, 3))), Ok(()));
        assert_eq!(change(&now, Why::InSync, |s| s.in_sync.push(id(3, 4))), Err(ChangeError::NotReplica));
        assert_eq!(change(&now, Why::InSync, |s| s.in_sync.push(id(4, 4))), Err(ChangeError::NotReplica));
        now.replicas[2].state = ReplicaState::Learner;
        assert_eq!(change(&now, Why::InSync, |s| s.in_sync.push(id(3, 3))), Err(ChangeError::NotReplica));
    }

    #[test]
    fn a_primary_comes_from_the_set_with_the_next_epoch() {
        let mut now = three();
        now.in_sync.truncate(2);
        let to = |m: u8, epochs: u64| {
            change(&now, Why::Elect, |s| {
                s.primary = Some(holder(m, 1));
                s.epoch = Epoch::new(s.epoch.number() + epochs).unwrap();
            })
        };
        assert_eq!(to(2, 1), Ok(()));
        assert_eq!(to(1, 1), Ok(()), "the same member in another process");
        assert_eq!(to(2, 0), Err(ChangeError::Epoch));
        assert_eq!(to(2, 2), Err(ChangeError::Epoch));
        assert_eq!(to(3, 1), Err(ChangeError::PrimaryNotInSync));
        let sneaks = change(&now, Why::Elect, |s| {
            s.in_sync.push(id(3, 3));
            s.primary = Some(holder(3, 1));
            s.epoch = s.epoch.next().unwrap();
        });
        assert_eq!(sneaks, Err(ChangeError::Reach));
        let no_epoch = change(&now, Why::InSync, |s| s.primary = Some(holder(2, 1)));
        assert_eq!(no_epoch, Err(ChangeError::Epoch));
    }

    #[test]
    fn a_change_starts_from_what_the_record_holds() {
        let now = three();
        let good = in_sync(&now, &holder(1, 7), &[id(1, 1), id(2, 2)].into(), 2).unwrap();
        assert_eq!(check(Some(&now), &good, 2), Ok(()));
        assert_eq!(check(Some(&good.after), &good, 2), Err(ChangeError::Outdated), "not twice");
        assert_eq!(change(&now, Why::InSync, |s| s.set += 1), Err(ChangeError::Set));
        assert_eq!(change(&now, Why::Create, |_| ()), Err(ChangeError::Existence));
        assert_eq!(check(None, &good, 2), Err(ChangeError::Existence));
    }

    #[test]
    fn a_new_shard_has_all_in_sync() {
        let mut after = three();
        (after.set, after.epoch, after.primary) = (1, Epoch::ZERO, None);
        let mut change = Change { from: (Epoch::ZERO, 0), why: Why::Create, by: holder(1, 7), after };
        assert_eq!(check(None, &change, 2), Ok(()));
        change.after.in_sync.pop();
        assert_eq!(check(None, &change, 2), Err(ChangeError::Reach));
    }

    #[test]
    fn a_new_copy_learns_first_and_a_lost_store_may_leave() {
        let mut now = three();
        now.in_sync.truncate(2);
        let learner = |m, s, state| ShardCopy { id: id(m, s), state };
        let add = |state| change(&now, Why::Replicas, |s| s.replicas.push(learner(4, 4, state)));
        assert_eq!(add(ReplicaState::Learner), Ok(()));
        assert_eq!(add(ReplicaState::Replica), Err(ChangeError::Reach));
        let replace = change(&now, Why::Replicas, |s| {
            s.replicas[1] = learner(2, 8, ReplicaState::Learner);
            s.in_sync.pop();
        });
        assert_eq!(replace, Ok(()), "below the minimum, for the store is gone");
        let out = change(&now, Why::Replicas, |s| {
            s.replicas.remove(1);
            s.in_sync.pop();
        });
        assert_eq!(out, Err(ChangeError::TooSmall), "by choice");
        let left = change(&now, Why::LeftOut, |s| {
            s.replicas.remove(1);
            s.in_sync.pop();
        });
        assert_eq!(left, Ok(()), "not by choice");
        let more = change(&now, Why::LeftOut, |s| {
            s.replicas.remove(2);
            s.in_sync.pop();
        });
        assert_eq!(more, Err(ChangeError::Reach), "one whose copy stays");
        let primary = change(&now, Why::Replicas, |s| {
            s.replicas.remove(0);
            s.in_sync.remove(0);
        });
        assert_eq!(primary, Err(ChangeError::PrimaryNotInSync));
    }

    #[test]
    fn accepted_loss_leaves_one_in_sync() {
        let mut now = three();
        now.in_sync.truncate(2);
        let accept = |now: &ShardState, m: u8| accept_loss(now, &holder(9, 1), &holder(m, 5), id(m, m).store);
        let change = accept(&now, 3).unwrap();
        assert_eq!((change.after.in_sync, change.after.epoch.number()), (vec![id(3, 3)], 5));
        assert_eq!(change.after.replicas, now.replicas);
        assert_eq!(accept(&now, 4), None);
        now.replicas[2].state = ReplicaState::Learner;
        assert_eq!(accept(&now, 3), None);
    }

    #[test]
    fn accepted_loss_in_another_store_has_all_others_filled_from_there() {
        let mut now = three();
        now.in_sync.truncate(1);
        let accept = |now: &ShardState| accept_loss(now, &holder(9, 1), &holder(1, 5), id(1, 8).store);
        let after = accept(&now).unwrap().after;
        assert_eq!((after.in_sync.clone(), after.epoch.number()), (vec![id(1, 8)], 5));
        assert_eq!(after.replicas[0], ShardCopy { id: id(1, 8), state: ReplicaState::Replica });
        assert!(after.replicas[1..].iter().all(ShardCopy::is_learner));
        let sneaks = |edit: &dyn Fn(&mut ShardState)| {
            let mut change = accept(&now).unwrap();
            edit(&mut change.after);
            check(Some(&now), &change, 1)
        };
        assert_eq!(sneaks(&|_| ()), Ok(()));
        assert_eq!(sneaks(&|s| s.replicas[1].state = ReplicaState::Replica), Err(ChangeError::Reach));
        assert_eq!(sneaks(&|s| s.replicas[1].id = id(2, 8)), Err(ChangeError::Reach));
        assert_eq!(sneaks(&|s| drop(s.replicas.pop())), Err(ChangeError::Reach));
        now.replicas[0].state = ReplicaState::Learner;
        now.in_sync = vec![id(2, 2)];
        now.primary = Some(holder(2, 7));
        assert_eq!(accept(&now), None, "what was being filled is half a copy");
    }

    #[test]
    fn an_election_leaves_out_who_is_away_as_far_as_the_minimum_lets_it() {
        let now = three();
        let away = [id(1, 1).member, id(3, 3).member].into();
        let change = elect(&now, &holder(2, 1), &holder(2, 1), &away, 2).unwrap();
        assert_eq!(change.after.in_sync, [id(1, 1), id(2, 2)]);
        let change = elect(&now, &holder(2, 1), &holder(2, 1), &away, 1).unwrap();
        assert_eq!(change.after.in_sync, [id(2, 2)]);
        assert_eq!(elect(&now, &holder(2, 1), &holder(4, 1), &away, 1), None);
    }

    fn any_state() -> impl Strategy<Value = ShardState> {
        let states = vec![ReplicaState::Learner, ReplicaState::Replica, ReplicaState::Leaving];
        let copy = (0_u8..5, 0_u8..2, prop::sample::select(states))
            .prop_map(|(m, s, state)| ShardCopy { id: id(m, 10 * m + s), state });
        let primary = prop::option::of((0_u8..5, 0_u64..3).prop_map(|(m, start)| holder(m, start)));
        (prop::collection::vec(copy, 0..5), any::<u8>(), primary, 0_u64..3, 1_u64..4).prop_map(
            |(replicas, mask, primary, epoch, set)| {
                let chosen = replicas.iter().enumerate().filter(|(i, _)| mask >> i & 1 == 1);
                let in_sync = chosen.map(|(_, c)| c.id.clone()).collect();
                ShardState { replicas, in_sync, primary, epoch: Epoch::new(epoch).unwrap(), set }
            },
        )
    }

    /// The nearest state that could stand in a record.
    fn repaired(mut state: ShardState) -> ShardState {
        let mut seen = BTreeSet::new();
        state.replicas.retain(|c| seen.insert(c.id.member.clone()));
        if state.replicas.is_empty() {
            state.replicas.push(ShardCopy { id: id(0, 0), state: ReplicaState::Replica });
        }
        if state.replicas.iter().all(|c| c.state == ReplicaState::Learner) {
            state.replicas[0].state = ReplicaState::Replica;
        }
        let full: Vec<ReplicaId> =
            state.replicas.iter().filter(|c| c.state != ReplicaState::Learner).map(|c| c.id.clone()).collect();
        state.in_sync = full.iter().filter(|id| state.in_sync.contains(id)).cloned().collect();
        if state.in_sync.is_empty() {
            state.in_sync = full;
        }
        if state.epoch == Epoch::ZERO {
            state.primary = None;
        } else if !state.primary.as_ref().is_some_and(|p| state.in_sync.iter().any(|id| id.member == p.member)) {
            state.primary = Some(Holder { member: state.in_sync[0].member.clone(), start: 1 });
        }
        state
    }

    fn any_why() -> impl Strategy<Value = Why> {
        let all = [Why::Create, Why::Elect, Why::InSync, Why::Replicas, Why::LeftOut, Why::AcceptLoss];
        prop::sample::select(all.to_vec())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn whatever_is_let_through_keeps_the_rules(
            now in any_state(), after in any_state(), why in any_why(), near in any::<u8>(), min in 1_usize..4, by in 0_u8..5,
        ) {
            let now = repaired(now);
            prop_assert_eq!(well_formed(&now), Ok(()));
            // Most changes keep most parts, so that some are let through.
            let mut after = after;
            if near & 1 == 0 { after.replicas = now.replicas.clone(); after.in_sync.retain(|id| now.copy(&id.member).is_some_and(|c| c.id == *id)); }
            if near & 2 == 0 { after.primary = now.primary.clone(); after.epoch = now.epoch; }
            if near & 4 == 0 { after.epoch = now.epoch.next().unwrap(); }
            if near & 8 == 0 { after.in_sync = now.in_sync.clone(); }
            if near & 16 == 0 { after.set = now.set + 1; }
            let by = if near & 32 == 0 { now.primary.clone().unwrap_or(holder(by, 0)) } else { holder(by, 0) };
            let change = Change { from: (now.epoch, now.set), why, by, after };
            if check(Some(&now), &change, min).is_err() {
                return Ok(());
            }
            let after = &change.after;
            prop_assert_eq!(after.set, now.set + 1);
            let moved = after.epoch != now.epoch;
            prop_assert_eq!(moved, matches!(why, Why::Elect | Why::AcceptLoss));
            prop_assert!(moved || after.primary == now.primary);
            for id in &after.in_sync {
                let copy = after.copy(&id.member).unwrap();
                prop_assert!(copy.id == *id && copy.state != ReplicaState::Learner);
                let new = !now.is_in_sync(id);
                prop_assert!(!new || why == Why::AcceptLoss || why == Why::InSync && now.primary.as_ref() == Some(&change.by));
            }
            prop_assert!(after.primary.as_ref().is_none_or(|p| after.in_sync.iter().any(|id| id.member == p.member)));
            if why == Why::Elect {
                let member = &after.primary.as_ref().unwrap().member;
                prop_assert!(now.in_sync.iter().any(|id| id.member == *member));
            }
            let lost = |id: &&ReplicaId| {
                after.copy(&id.member).is_some_and(|c| c.id != **id || c.is_learner() && id.member == change.by.member)
            };
            let lost = now.in_sync.iter().filter(lost).count();
            let least = min.min(now.in_sync.len() - lost);
            prop_assert!(matches!(why, Why::AcceptLoss | Why::LeftOut) || after.in_sync.len() >= least);
        }

        #[test]
        fn an_accepted_loss_can_be_written_for_every_full_copy_in_any_store(
            now in any_state(), member in 0_u8..5, store in 0_u8..3, by in 0_u8..5,
        ) {
            let now = repaired(now);
            let to = holder(member, 9);
            let store = id(member, 10 * member + store).store;
            let change = accept_loss(&now, &holder(by, 0), &to, store);
            let full = now.copy(&to.member).is_some_and(|c| !c.is_learner());
            prop_assert_eq!(change.is_some(), full);
            let Some(change) = change else { return Ok(()) };
            prop_assert_eq!(check(Some(&now), &change, 3), Ok(()));
            let after = &change.after;
            let replica = ReplicaId { member: to.member.clone(), store };
            prop_assert!(after.is_led_by(&replica, 9));
            let moved = now.copy(&to.member).is_some_and(|c| c.id.store != store);
            for (was, is) in now.replicas.iter().zip(&after.replicas) {
                prop_assert_eq!(&was.id.member, &is.id.member);
                if is.id.member != to.member {
                    prop_assert_eq!(&was.id, &is.id);
                    let right = if moved { is.is_learner() } else { is.state == was.state };
                    prop_assert!(right);
                }
            }
        }
    }
}
