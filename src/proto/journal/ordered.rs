//! The primary that an operator orders, and what is given up with it.
//!
//! Rule: who is not in sync becomes primary only where the loss is accepted, and not while somebody in sync lives whose copy is of
//! use. Must not know: who asks the members how far they are, how the record is written.

use std::collections::{BTreeMap, BTreeSet};

use super::effect::Sight;
use super::election::min_in_sync;
use super::record::{self, Change};
use crate::types::{Holder, MemberId, ReplicaId, ShardState};

/// How far a copy is, by its member's word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Told {
    /// The last entry of its journal.
    pub last: u64,
    /// Up to here it knows entries to be committed.
    pub committed: u64,
    /// Its journal, or what its node has, is of no use, or may not be.
    pub of_no_use: bool,
}

/// What is ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Who is to be primary.
    pub to: MemberId,
    /// Also if it may lack acknowledged writes.
    pub accept_loss: bool,
}

/// Why an order is not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// It has nothing of the shard.
    #[error("it holds no copy; {} do", join(holders))]
    NoCopy {
        /// Who does.
        holders: Vec<MemberId>,
    },
    /// It is not there, or can't be reached from here.
    #[error("it is not seen to live")]
    NotSeen,
    /// It has not said how far its copy is.
    #[error("it does not say how far its copy is")]
    Silent,
    /// Half a copy.
    #[error("its copy is being filled from another")]
    Learner,
    /// What its node has, or its journal, is not what the journal says.
    #[error("its copy is of no use: it is to be made anew, or compared with another")]
    OfNoUse,
    /// It may lack acknowledged writes, and nobody accepts that.
    #[error("it is not in sync, so it may lack acknowledged writes")]
    OutOfSync,
    /// Nothing need be given up.
    #[error("{member} is in sync and lives: elect it, and nothing is lost")]
    Needless {
        /// Who is in sync.
        member: MemberId,
    },
    /// The record can't take it.
    #[error("the shard's state does not allow it")]
    NotAllowed,
}

fn join(members: &[MemberId]) -> String {
    members.iter().map(MemberId::as_str).collect::<Vec<_>>().join(", ")
}

/// What is given up where a copy becomes primary that was not in sync.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GivenUp {
    /// Behind this entry nothing is kept; 0 where a journal begins anew.
    pub behind: u64,
    /// The last entry that is known to be anywhere else.
    pub last: u64,
    /// Who has more.
    pub only: Vec<MemberId>,
    /// Members in sync that could not be asked: they may have more.
    pub unknown: Vec<MemberId>,
    /// The journal is lost with its store, and only what the member's node has is kept.
    pub journal: bool,
}

/// The change that carries out an order. `None` if there is nothing to change.
///
/// # Errors
/// [`OrderError`].
pub fn change(
    state: &ShardState,
    order: &Order,
    by: &Holder,
    sight: &Sight,
    told: &BTreeMap<MemberId, Told>,
    configured: Option<usize>,
) -> Result<Option<Change>, OrderError> {
    let Some(copy) = state.copy(&order.to) else {
        let holders = state.replicas.iter().map(|copy| copy.id.member.clone()).collect();
        return Err(OrderError::NoCopy { holders });
    };
    let alive = sight.get(&order.to).ok_or(OrderError::NotSeen)?;
    let says = told.get(&order.to).ok_or(OrderError::Silent)?;
    if copy.is_learner() {
        return Err(OrderError::Learner);
    }
    if says.of_no_use {
        return Err(OrderError::OfNoUse);
    }
    let to = Holder { member: order.to.clone(), start: alive.start };
    let lives = |id: &ReplicaId| sight.get(&id.member).is_some_and(|alive| alive.store == id.store);
    let accepted = || record::accept_loss(state, by, &to, alive.store).ok_or(OrderError::NotAllowed).map(Some);
    if lives(&copy.id) && state.is_in_sync(&copy.id) {
        let away: BTreeSet<MemberId> =
            state.in_sync.iter().filter(|id| !lives(id)).map(|id| id.member.clone()).collect();
        let leads = state.primary.as_ref() == Some(&to);
        if leads && (away.is_empty() || !order.accept_loss) {
            return Ok(None);
        }
        let elected = record::elect(state, by, &to, &away, min_in_sync(state, configured));
        let waits = |change: &Change| change.after.in_sync.iter().any(|id| away.contains(&id.member));
        // It has every acknowledged write: whom it would wait for in vain is left out below the set's least size, too.
        return match elected.filter(|change| !(order.accept_loss && waits(change))) {
            None if order.accept_loss => accepted(),
            None => Err(OrderError::NotAllowed),
            change => Ok(change),
        };
    }
    if !order.accept_loss {
        return Err(OrderError::OutOfSync);
    }
    let of_use = |id: &ReplicaId| told.get(&id.member).is_some_and(|says| !says.of_no_use);
    if let Some(id) = state.in_sync.iter().find(|id| lives(id) && of_use(id)) {
        return Err(OrderError::Needless { member: id.member.clone() });
    }
    accepted()
}

/// What is given up if `order` is carried out; `None`: nothing, for its copy is in sync.
pub fn given_up(state: &ShardState, order: &Order, sight: &Sight, told: &BTreeMap<MemberId, Told>) -> Option<GivenUp> {
    let copy = state.copy(&order.to)?;
    let there = sight.get(&order.to).is_none_or(|alive| alive.store == copy.id.store);
    if there && state.is_in_sync(&copy.id) {
        return None;
    }
    let behind = told.get(&order.to).filter(|_| there).map_or(0, |says| says.last);
    let others = || state.replicas.iter().map(|copy| &copy.id.member).filter(|member| **member != order.to);
    let more = |member: &&MemberId| told.get(*member).is_some_and(|says| says.last > behind);
    // Who works in another store by now does not know what it had.
    let same = |id: &ReplicaId| sight.get(&id.member).is_none_or(|alive| alive.store == id.store);
    let silent = |id: &&ReplicaId| id.member != order.to && !(told.contains_key(&id.member) && same(id));
    Some(GivenUp {
        behind,
        last: others().filter_map(|member| told.get(member)).map(|says| says.last).max().unwrap_or(0).max(behind),
        only: others().filter(more).cloned().collect(),
        unknown: state.in_sync.iter().filter(silent).map(|id| id.member.clone()).collect(),
        journal: !there,
    })
}

impl std::fmt::Display for GivenUp {
    /// A sentence without its full stop.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { behind, last, only, unknown, journal } = self;
        let first = behind + 1;
        if *journal {
            f.write_str(
                "the journal was lost with the member's former store: the documents on its node are kept as they are, \
                 whether or not they are all, and everything else is given up",
            )?;
        } else if last > behind {
            write!(f, "entries {first} to {last}, which only {} has, are given up", join(only))?;
        } else if unknown.is_empty() {
            write!(f, "no entry behind {behind} is known anywhere")?;
        } else {
            write!(f, "everything behind entry {behind} is given up")?;
        }
        match unknown[..] {
            [] => Ok(()),
            _ => write!(f, "; how much only {} had is not known, because it can't be asked", join(unknown)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::effect::Alive;
    use super::super::record::Why;
    use super::*;
    use crate::types::{Epoch, ReplicaState, ShardCopy, StoreId};

    fn id(member: u8) -> ReplicaId {
        ReplicaId { member: MemberId::new(format!("m{member}")).unwrap(), store: StoreId([member; 16]) }
    }

    fn state(replicas: &[u8], in_sync: &[u8], primary: u8) -> ShardState {
        let copy = |m: &u8| ShardCopy { id: id(*m), state: ReplicaState::Replica };
        ShardState {
            replicas: replicas.iter().map(copy).collect(),
            in_sync: in_sync.iter().map(|m| id(*m)).collect(),
            primary: Some(Holder { member: id(primary).member, start: 5 }),
            epoch: Epoch::new(4).unwrap(),
            set: 9,
        }
    }

    fn sight(members: &[u8]) -> Sight {
        members.iter().map(|m| (id(*m).member, Alive { store: id(*m).store, start: 6 })).collect()
    }

    fn told(all: &[(u8, u64)]) -> BTreeMap<MemberId, Told> {
        all.iter().map(|(m, last)| (id(*m).member, Told { last: *last, ..Told::default() })).collect()
    }

    fn order(member: u8, accept_loss: bool) -> Order {
        Order { to: id(member).member, accept_loss }
    }

    type Picture<'a> = (&'a ShardState, &'a Sight, &'a BTreeMap<MemberId, Told>);

    fn ask(order: &Order, (state, sight, told): Picture<'_>) -> Result<Option<Change>, OrderError> {
        change(state, order, &Holder { member: id(9).member, start: 1 }, sight, told, None)
    }

    #[test]
    fn a_member_outside_the_set_is_elected_only_where_the_loss_is_accepted() {
        let (now, sees, says) = (state(&[1, 2], &[1], 1), sight(&[2]), told(&[(2, 40)]));
        assert_eq!(ask(&order(2, false), (&now, &sees, &says)), Err(OrderError::OutOfSync));
        let made = ask(&order(2, true), (&now, &sees, &says)).unwrap().unwrap();
        assert_eq!((made.why, made.after.in_sync, made.after.epoch.number()), (Why::AcceptLoss, vec![id(2)], 5));
        let lost = given_up(&now, &order(2, true), &sees, &says).unwrap();
        assert_eq!((lost.behind, lost.unknown.clone()), (40, vec![id(1).member]));
        assert!(lost.to_string().starts_with("everything behind entry 40 is given up; how much only m1 had"), "{lost}");
    }

    #[test]
    fn nothing_is_given_up_while_somebody_in_sync_lives_with_a_copy_of_use() {
        let (now, sees) = (state(&[1, 2], &[1], 1), sight(&[1, 2]));
        let mut says = told(&[(1, 57), (2, 40)]);
        let needless = Err(OrderError::Needless { member: id(1).member });
        assert_eq!(ask(&order(2, true), (&now, &sees, &says)), needless);
        says.get_mut(&id(1).member).unwrap().of_no_use = true;
        assert!(ask(&order(2, true), (&now, &sees, &says)).unwrap().is_some());
        let lost = given_up(&now, &order(2, true), &sees, &says).unwrap();
        assert_eq!(lost.to_string(), "entries 41 to 57, which only m1 has, are given up");
    }

    #[test]
    fn who_is_away_silent_learning_or_of_no_use_is_not_elected() {
        let mut now = state(&[1, 2, 3], &[1], 1);
        let (sees, mut says) = (sight(&[2, 3]), told(&[(2, 4)]));
        let ask = |now: &ShardState, m: u8, says: &_| ask(&order(m, true), (now, &sees, says));
        assert_eq!(ask(&now, 1, &says), Err(OrderError::NotSeen));
        assert_eq!(ask(&now, 3, &says), Err(OrderError::Silent));
        assert!(matches!(ask(&now, 4, &says), Err(OrderError::NoCopy { holders }) if holders.len() == 3));
        now.replicas[1].state = ReplicaState::Learner;
        assert_eq!(ask(&now, 2, &says), Err(OrderError::Learner));
        now.replicas[1].state = ReplicaState::Replica;
        says.get_mut(&id(2).member).unwrap().of_no_use = true;
        assert_eq!(ask(&now, 2, &says), Err(OrderError::OfNoUse));
    }

    #[test]
    fn a_member_in_sync_is_elected_and_nothing_is_given_up() {
        let (now, says) = (state(&[1, 2, 3], &[1, 2, 3], 1), told(&[(1, 9), (2, 9)]));
        let made = ask(&order(2, false), (&now, &sight(&[1, 2, 3]), &says)).unwrap().unwrap();
        assert_eq!((made.why, made.after.in_sync.len()), (Why::Elect, 3));
        assert_eq!(given_up(&now, &order(2, true), &sight(&[1, 2, 3]), &says), None);
        let mut again = now.clone();
        again.primary = Some(Holder { member: id(2).member, start: 6 });
        assert_eq!(ask(&order(2, true), (&again, &sight(&[1, 2, 3]), &says)), Ok(None), "it is already");
    }

    #[test]
    fn a_set_that_waits_for_who_is_gone_is_made_smaller_where_that_is_accepted() {
        // The least of three is two, so the set keeps one that is gone.
        let (mut now, sees, says) = (state(&[1, 2, 3], &[1, 2], 1), sight(&[2, 3]), told(&[(2, 9)]));
        let kept = ask(&order(2, false), (&now, &sees, &says)).unwrap().unwrap();
        assert_eq!(kept.after.in_sync, [id(1), id(2)]);
        now = kept.after;
        assert_eq!(ask(&order(2, false), (&now, &sees, &says)), Ok(None));
        let made = ask(&order(2, true), (&now, &sees, &says)).unwrap().unwrap();
        assert_eq!((made.why, made.after.in_sync), (Why::AcceptLoss, vec![id(2)]));
        assert_eq!(given_up(&now, &order(2, true), &sees, &says), None);
    }

    #[test]
    fn a_copy_whose_store_was_lost_begins_anew_with_what_its_node_has() {
        let (now, mut sees, says) = (state(&[1, 2], &[1], 1), sight(&[1, 2]), told(&[(1, 0), (2, 40)]));
        sees.get_mut(&id(1).member).unwrap().store = StoreId([8; 16]);
        assert_eq!(ask(&order(1, false), (&now, &sees, &says)), Err(OrderError::OutOfSync));
        let made = ask(&order(1, true), (&now, &sees, &says)).unwrap().unwrap();
        assert_eq!(made.after.in_sync[0].store, StoreId([8; 16]));
        assert!(made.after.replicas[1].is_learner());
        let lost = given_up(&now, &order(1, true), &sees, &says).unwrap();
        assert!(lost.journal && lost.to_string().contains("documents on its node are kept as they are"), "{lost}");
        let made = ask(&order(2, true), (&now, &sees, &says)).unwrap().unwrap();
        assert_eq!(made.after.in_sync, [id(2)], "its store is gone, so it is in sync no more");
        assert_eq!(given_up(&now, &order(2, true), &sees, &says).unwrap().unknown, [id(1).member]);
    }
}
