//! Who becomes primary, and who writes it.
//!
//! Functions over an index's shards as the record holds them and over who is seen to live. The record's `(epoch, set)`
//! keeps two elections apart, so anybody may run one; turns only save effort. Rule: nobody outside the in-sync set, and
//! nobody in another store than the set's. Must not know: why a member is not seen, how the record is written.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::effect::Sight;
use super::record::{self, Change, Why};
use crate::proto::env::Instant;
use crate::types::{Holder, MemberId, ReplicaId, ShardState};

/// How long the next in turn waits longer.
pub const TURN: Duration = Duration::from_millis(300);

/// When an election that was written, and did not come, is written again.
pub const AGAIN: Duration = Duration::from_millis(1_000);

/// Who reaches whom, as each member tells of itself. A way that only one side tells of is none.
pub type Reach = BTreeMap<MemberId, BTreeSet<MemberId>>;

fn lives(sight: &Sight, id: &ReplicaId) -> bool {
    sight.get(&id.member).is_some_and(|alive| alive.store == id.store)
}

/// Whether the shard has no primary that could work: none was elected, it is not seen, or it is another process now.
pub fn needs_primary(state: &ShardState, sight: &Sight) -> bool {
    let Some(primary) = &state.primary else { return true };
    let Some(alive) = sight.get(&primary.member) else { return true };
    let same_store = state.in_sync.iter().any(|id| id.member == primary.member && id.store == alive.store);
    // An earlier process of the same store than the record's: what is seen is older than the record.
    !same_store || alive.start > primary.start
}

/// Whether the primary is seen by others, though not by this member, and reaches no less than this member: then only the way
/// between the two is cut, and the primary stays.
fn is_seen_by_others(state: &ShardState, me: &MemberId, sight: &Sight, reach: &Reach) -> bool {
    let Some(primary) = state.primary.as_ref().filter(|p| !sight.contains_key(&p.member)) else { return false };
    let seen = reached(state, &primary.member, reach);
    seen.0 > 1 && seen >= reached(state, me, reach)
}

/// How many of the shard's full copies a member reaches and is reached by, its own included; and how many members in all: one
/// that reaches few of them has no majority to change a set with, and few clients.
fn reached(state: &ShardState, member: &MemberId, reach: &Reach) -> (usize, usize) {
    reached_of(state, member, reach, |_| true)
}

/// The same, of those that count.
fn reached_of(
    state: &ShardState,
    member: &MemberId,
    reach: &Reach,
    counts: impl Fn(&MemberId) -> bool,
) -> (usize, usize) {
    let tells = |a: &MemberId, b: &MemberId| reach.get(a).is_some_and(|all| all.contains(b));
    let reaches = |other: &&MemberId| *other == member || counts(other) && tells(member, other) && tells(other, member);
    let copies = state.replicas.iter().filter(|c| !c.is_learner()).map(|c| &c.id.member);
    (copies.filter(reaches).count(), reach.keys().filter(reaches).count())
}

/// The live member of the in-sync set that reaches most of the shard's live copies, and then of all live members, and is none
/// of `except`; the first of those that reach as many. Some may not have noticed yet that a member is gone: who is not
/// seen does not count.
pub fn candidate(state: &ShardState, sight: &Sight, reach: &Reach, except: &BTreeSet<MemberId>) -> Option<Holder> {
    let may = |id: &&ReplicaId| lives(sight, id) && !except.contains(&id.member);
    let of = |id: &&ReplicaId| reached_of(state, &id.member, reach, |other| sight.contains_key(other));
    // `max_by_key` gives the last of equals.
    let id = state.in_sync.iter().filter(may).rev().max_by_key(of)?;
    Some(Holder { member: id.member.clone(), start: sight.get(&id.member)?.start })
}

/// The least size of a shard's in-sync set, by what is configured.
pub fn min_in_sync(state: &ShardState, configured: Option<usize>) -> usize {
    let copies = state.copies();
    configured.map_or_else(|| record::default_min_in_sync(copies), |min| min.clamp(1, copies.max(1)))
}

/// All elections that the index needs, by the shard's number. A member that was primary and lives again in a new process
/// elects itself; otherwise it is the [`candidate`]. Those not seen leave the set, as far as they may.
/// Nothing is done about a primary that as many copies reach as reach this member.
pub fn plan(
    shards: &[ShardState],
    by: &Holder,
    sight: &Sight,
    reach: &Reach,
    configured: Option<usize>,
) -> Vec<(usize, Change)> {
    let one = |(i, state): (usize, &ShardState)| {
        if !needs_primary(state, sight) || is_seen_by_others(state, &by.member, sight, reach) {
            return None;
        }
        let away: BTreeSet<MemberId> =
            state.in_sync.iter().filter(|id| !lives(sight, id)).map(|id| id.member.clone()).collect();
        let was = state.primary.as_ref().is_some_and(|p| p.member == by.member) && !away.contains(&by.member);
        let to = if was && state.in_sync.iter().any(|id| id.member == by.member) {
            by.clone()
        } else {
            candidate(state, sight, reach, &BTreeSet::new())?
        };
        Some((i, record::elect(state, by, &to, &away, min_in_sync(state, configured))?))
    };
    shards.iter().enumerate().filter_map(one).collect()
}

/// How long after it was told that an election is needed this member waits before it writes it; `None`: never. The holder
/// of `shard_leaders` does not wait, nor does a member whose own former process is named as primary; the others in the order
/// in which the record names them.
pub fn turn(shards: &[ShardState], me: &Holder, sight: &Sight, leads: bool) -> Option<Duration> {
    let own = |s: &ShardState| s.primary.as_ref().is_some_and(|p| p.member == me.member && p.start < me.start);
    if leads || shards.iter().any(own) {
        return Some(Duration::ZERO);
    }
    let mut order: Vec<&MemberId> = Vec::new();
    for id in shards.iter().flat_map(|s| &s.in_sync).filter(|id| lives(sight, id)) {
        if !order.contains(&&id.member) {
            order.push(&id.member);
        }
    }
    let rank = order.iter().position(|member| **member == me.member)?;
    Some(TURN * u32::try_from(rank + 1).unwrap_or(u32::MAX))
}

/// When this member writes the elections of an index that lacks a primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    since: Instant,
    due: Option<Instant>,
}

impl Waiting {
    /// It was told now that they are needed.
    pub fn new(now: Instant) -> Self {
        Self { since: now, due: None }
    }

    /// It has written what it could: whatever it sees next counts from here, and without that it looks again.
    pub fn written(now: Instant) -> Self {
        Self { since: now, due: Some(now.plus(AGAIN)) }
    }

    /// It was its turn, and nothing was to be written as it sees things: it writes as soon as it sees them otherwise, and looks again.
    pub fn held_back(&mut self, now: Instant) {
        self.due = Some(now.plus(AGAIN));
    }

    /// What is seen or recorded has changed; `turn` is what [`turn`] makes of it. One that has come nearer counts from the same
    /// moment.
    pub fn look(&mut self, now: Instant, turn: Option<Duration>) {
        let new = turn.map(|wait| self.since.plus(wait));
        self.due = match (self.due, new) {
            (Some(due), Some(new)) => Some(due.min(new).max(now)),
            (due, new) => new.or(due),
        };
    }

    /// When it writes; `None`: never, as it stands.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether it writes now.
    pub fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|at| at <= now)
    }
}

/// What a member that is about to stop writes: other primaries for all shards that it leads, and itself out of the sets.
pub fn hand_over(
    shards: &[ShardState],
    me: &Holder,
    sight: &Sight,
    reach: &Reach,
    configured: Option<usize>,
) -> Vec<(usize, Change)> {
    let own: BTreeSet<MemberId> = [me.member.clone()].into();
    let one = |(i, state): (usize, &ShardState)| {
        let leads = state.primary.as_ref() == Some(me);
        let to = candidate(state, sight, reach, &own).filter(|_| leads)?;
        Some((i, record::elect(state, me, &to, &own, min_in_sync(state, configured))?))
    };
    shards.iter().enumerate().filter_map(one).collect()
}

/// The member that reaches most of the shard's copies, and then of all members, among those that a primary wants to leave out,
/// if that is more than the primary reaches: then the two can't reach each other, and it is the primary that should go.
pub fn better_connected<'a>(state: &'a ShardState, out: &BTreeSet<&ReplicaId>, reach: &Reach) -> Option<&'a ReplicaId> {
    let of = |id: &&ReplicaId| reached(state, &id.member, reach);
    let best = state.in_sync.iter().filter(|id| out.contains(id)).rev().max_by_key(of)?;
    (of(&best) > reached(state, &state.primary.as_ref()?.member, reach)).then_some(best)
}

/// What is written instead of a primary's wish to leave members out, if one of them is better connected: that one becomes
/// primary, and the primary leaves. `known` tells the stores and processes of all members, also of those that the primary
/// does not see itself.
pub fn instead(
    state: &ShardState,
    wish: &Change,
    reach: &Reach,
    known: &Sight,
    configured: Option<usize>,
) -> Option<Change> {
    if wish.why != Why::InSync {
        return None;
    }
    let out: BTreeSet<&ReplicaId> = state.in_sync.iter().filter(|id| !wish.after.is_in_sync(id)).collect();
    let better = better_connected(state, &out, reach).filter(|id| lives(known, id))?;
    let to = Holder { member: better.member.clone(), start: known.get(&better.member)?.start };
    let primary = state.primary.as_ref()?.member.clone();
    record::elect(state, &wish.by, &to, &[primary].into(), min_in_sync(state, configured))
}

/// The next shard whose primary is not the first of its set, when all of the set are seen to live: at most one of an index
/// at a time, and not before `pause` after the last, so that primaries return evenly and do not storm. Passes over shards that
/// the first one `lacks`, and over those whose primary reaches more than the first one does: they would only be taken from it
/// again.
pub fn give_back(
    shards: &[ShardState],
    by: &Holder,
    sight: &Sight,
    reach: &Reach,
    configured: Option<usize>,
    lacks: impl Fn(usize, &MemberId) -> bool,
    (last, pause, now): (Option<Instant>, Duration, Instant),
) -> Option<(usize, Change)> {
    if last.is_some_and(|last| now < last.plus(pause)) {
        return None;
    }
    let one = |(i, state): (usize, &ShardState)| {
        let whole = state.in_sync.len() == state.copies() && state.in_sync.iter().all(|id| lives(sight, id));
        if !whole || needs_primary(state, sight) {
            return None;
        }
        let first = state.replicas.iter().map(|c| &c.id).find(|id| state.is_in_sync(id))?;
        let primary = &state.primary.as_ref()?.member;
        let worse = reached(state, &first.member, reach) < reached(state, primary, reach);
        if *primary == first.member || worse || lacks(i, &first.member) {
            return None;
        }
        let to = Holder { member: first.member.clone(), start: sight.get(&first.member)?.start };
        let min = min_in_sync(state, configured);
        Some((i, record::elect(state, by, &to, &BTreeSet::new(), min)?))
    };
    shards.iter().enumerate().find_map(one)
}

#[cfg(test)]
mod tests {
    use super::super::effect::Alive;
    use super::*;
    use crate::types::{Epoch, ReplicaState, ShardCopy, StoreId};

    fn member(m: u8) -> MemberId {
        MemberId::new(format!("m{m}")).unwrap()
    }

    fn id(m: u8) -> ReplicaId {
        ReplicaId { member: member(m), store: StoreId([m; 16]) }
    }

    fn holder(m: u8, start: u64) -> Holder {
        Holder { member: member(m), start }
    }

    fn shard(members: &[u8], primary: u8) -> ShardState {
        ShardState {
            replicas: members.iter().map(|m| ShardCopy { id: id(*m), state: ReplicaState::Replica }).collect(),
            in_sync: members.iter().map(|m| id(*m)).collect(),
            primary: Some(holder(primary, 5)),
            epoch: Epoch::new(1).unwrap(),
            set: 2,
        }
    }

    fn sight(members: &[(u8, u64)]) -> Sight {
        members.iter().map(|(m, start)| (member(*m), Alive { store: id(*m).store, start: *start })).collect()
    }

    fn reach(pairs: &[(u8, u8)]) -> Reach {
        let mut reach = Reach::new();
        for (a, b) in pairs {
            reach.entry(member(*a)).or_default().insert(member(*b));
            reach.entry(member(*b)).or_default().insert(member(*a));
        }
        reach
    }

    #[test]
    fn a_primary_that_is_gone_or_another_process_is_replaced() {
        let state = shard(&[1, 2, 3], 1);
        assert!(!needs_primary(&state, &sight(&[(1, 5)])));
        assert!(!needs_primary(&state, &sight(&[(1, 4)])), "what is seen is older than the record");
        assert!(needs_primary(&state, &sight(&[(1, 6)])));
        assert!(needs_primary(&state, &sight(&[(2, 5)])));
        let mut other = sight(&[(1, 5)]);
        other.get_mut(&member(1)).unwrap().store = StoreId([9; 16]);
        assert!(needs_primary(&state, &other));
    }

    #[test]
    fn one_write_elects_for_all_shards_of_an_index() {
        let shards = [shard(&[1, 2, 3], 1), shard(&[2, 3, 1], 2), shard(&[3, 1, 2], 1)];
        let plan = plan(&shards, &holder(2, 5), &sight(&[(2, 5), (3, 5)]), &Reach::new(), None);
        let primaries: Vec<_> = plan.iter().map(|(i, c)| (*i, c.after.primary.clone().unwrap())).collect();
        assert_eq!(primaries, [(0, holder(2, 5)), (2, holder(3, 5))]);
        assert!(plan.iter().all(|(_, c)| !c.after.is_in_sync(&id(1)) && c.after.in_sync.len() == 2));
    }

    #[test]
    fn nobody_outside_the_set_is_elected() {
        let mut state = shard(&[1, 2, 3], 1);
        state.in_sync = vec![id(1), id(3)];
        assert_eq!(candidate(&state, &sight(&[(2, 5)]), &Reach::new(), &[].into()), None);
        assert!(plan(&[state.clone()], &holder(2, 5), &sight(&[(2, 5)]), &Reach::new(), None).is_empty());
        let mut other = sight(&[(2, 5), (3, 5)]);
        other.get_mut(&member(3)).unwrap().store = StoreId([9; 16]);
        assert_eq!(candidate(&state, &other, &Reach::new(), &[].into()), None, "in another store");
    }

    #[test]
    fn a_member_that_starts_again_elects_itself() {
        let state = shard(&[2, 1, 3], 1);
        let plan = plan(&[state], &holder(1, 6), &sight(&[(1, 6), (2, 5), (3, 5)]), &Reach::new(), None);
        assert_eq!(plan[0].1.after.primary, Some(holder(1, 6)));
        assert_eq!(plan[0].1.after.in_sync.len(), 3);
    }

    #[test]
    fn turns_go_by_the_order_of_the_record() {
        let shards = [shard(&[1, 3], 1), shard(&[2, 3], 2)];
        let seen = sight(&[(2, 5), (3, 5)]);
        let turn = |m: u8, leads| turn(&shards, &holder(m, 5), &seen, leads);
        assert_eq!([turn(3, false), turn(2, false)], [Some(TURN), Some(2 * TURN)]);
        assert_eq!((turn(4, false), turn(4, true)), (None, Some(Duration::ZERO)));
        assert_eq!(super::turn(&shards, &holder(1, 6), &seen, false), Some(Duration::ZERO), "for itself");
    }

    #[test]
    fn a_turn_that_was_held_back_comes_as_soon_as_things_are_seen_otherwise() {
        let ms = |millis: u64| Instant(millis * 1_000);
        let mut waiting = Waiting::new(ms(0));
        waiting.look(ms(0), None);
        assert_eq!(waiting.due(), None);
        waiting.look(ms(100), Some(2 * TURN));
        waiting.look(ms(200), Some(TURN));
        assert_eq!(waiting.due(), Some(ms(300)), "it counts from when it was told first");
        assert!(waiting.is_due(ms(300)) && !waiting.is_due(ms(299)));
        let mut wrote = Waiting::written(ms(310));
        waiting.held_back(ms(310));
        assert_eq!((waiting.due(), wrote.due()), (Some(ms(1_310)), Some(ms(1_310))));
        waiting.look(ms(400), Some(TURN));
        wrote.look(ms(400), Some(TURN));
        assert_eq!((waiting.due(), wrote.due()), (Some(ms(400)), Some(ms(610))));
    }

    #[test]
    fn a_primary_that_others_reach_is_not_replaced_by_one_that_does_not() {
        let state = shard(&[1, 2, 3], 1);
        let plan = |pairs: &[(u8, u8)]| {
            plan(std::slice::from_ref(&state), &holder(3, 5), &sight(&[(2, 5), (3, 5)]), &reach(pairs), None)
        };
        assert!(plan(&[(1, 2), (2, 3)]).is_empty());
        assert_eq!(plan(&[(2, 3)]).len(), 1);
        // As many copies, and fewer members in all: it could change no set.
        assert_eq!(plan(&[(1, 2), (2, 3), (3, 4), (3, 5)]).len(), 1);
        assert!(plan(&[(1, 2), (2, 3), (3, 4), (1, 5)]).is_empty());
        assert!(!needs_primary(&state, &sight(&[(1, 5), (2, 5)])));
    }

    #[test]
    fn a_clean_stop_hands_over() {
        let shards = [shard(&[1, 2, 3], 1), shard(&[1, 2], 2), shard(&[1], 1)];
        let changes = hand_over(&shards, &holder(1, 5), &sight(&[(1, 5), (2, 5), (3, 5)]), &Reach::new(), None);
        assert_eq!(changes.len(), 1);
        let after = &changes[0].1.after;
        assert_eq!((after.primary.clone(), after.in_sync.clone()), (Some(holder(2, 5)), vec![id(2), id(3)]));
    }

    #[test]
    fn of_a_primary_and_a_follower_that_are_cut_apart_the_better_connected_stays() {
        let state = shard(&[1, 2, 3, 4], 1);
        let known = sight(&[(1, 5), (2, 5), (3, 5), (4, 5)]);
        let set = [id(1), id(3), id(4)].into();
        let wish = record::in_sync(&state, &holder(1, 5), &set, 3).unwrap();
        let equal = reach(&[(1, 3), (1, 4), (2, 3), (2, 4), (3, 4)]);
        assert_eq!(instead(&state, &wish, &equal, &known, None), None, "the primary if that is equal");
        let worse = reach(&[(1, 3), (2, 3), (2, 4), (3, 4)]);
        let change = instead(&state, &wish, &worse, &known, None).unwrap();
        assert_eq!(change.after.primary, Some(holder(2, 5)));
        assert!(!change.after.is_in_sync(&id(1)));
        let mut one_way = worse;
        one_way.get_mut(&member(4)).unwrap().remove(&member(2));
        assert_eq!(instead(&state, &wish, &one_way, &known, None), None, "a way of one side only is none");
    }

    #[test]
    fn primaries_return_one_after_the_other() {
        let mut shards = [shard(&[1, 2], 2), shard(&[1, 2], 1), shard(&[1, 2], 2)];
        let seen = sight(&[(1, 5), (2, 5)]);
        let next = |shards: &[ShardState], last, now| {
            let times = (last, Duration::from_secs(1), Instant(now));
            give_back(shards, &holder(2, 5), &seen, &Reach::new(), None, |_, _| false, times)
        };
        let (i, change) = next(&shards, None, 0).unwrap();
        assert_eq!((i, change.after.primary.clone()), (0, Some(holder(1, 5))));
        shards[0] = change.after;
        assert_eq!(next(&shards, Some(Instant(0)), 999_999), None);
        assert_eq!(next(&shards, Some(Instant(0)), 1_000_000).unwrap().0, 2);
        shards[2].in_sync.pop();
        assert_eq!(next(&shards, None, 0), None, "not while somebody is missing");
    }

    #[test]
    fn a_shard_whose_preferred_primary_lacks_it_keeps_no_other_from_its_own() {
        let shards = [shard(&[1, 2], 2), shard(&[1, 2], 2)];
        let seen = sight(&[(1, 5), (2, 5)]);
        let next = |lacking: &[usize]| {
            let times = (None, Duration::from_secs(1), Instant(0));
            let lacks = |i: usize, who: &MemberId| *who == member(1) && lacking.contains(&i);
            give_back(&shards, &holder(2, 5), &seen, &Reach::new(), None, lacks, times).map(|(i, _)| i)
        };
        assert_eq!((next(&[]), next(&[0]), next(&[0, 1])), (Some(0), Some(1), None));
    }

    #[test]
    fn nobody_is_given_a_shard_who_reaches_less_than_its_primary() {
        let shards = [shard(&[1, 2, 3], 2)];
        let seen = sight(&[(1, 5), (2, 5), (3, 5), (4, 5)]);
        let next = |pairs: &[(u8, u8)]| {
            let times = (None, Duration::from_secs(1), Instant(0));
            give_back(&shards, &holder(2, 5), &seen, &reach(pairs), None, |_, _| false, times).map(|(i, _)| i)
        };
        let whole = [(1, 2), (1, 3), (2, 3), (1, 4), (2, 4), (3, 4)];
        assert_eq!(next(&whole), Some(0));
        // The writer sees the first one, another copy does not.
        assert_eq!(next(&[(1, 2), (2, 3), (1, 4), (2, 4), (3, 4)]), None);
        // All copies do, another member does not.
        assert_eq!(next(&[(1, 2), (1, 3), (2, 3), (2, 4), (3, 4)]), None);
    }

    #[test]
    fn of_those_that_may_be_elected_the_best_connected_is() {
        let state = shard(&[1, 2, 3, 4], 1);
        let seen = sight(&[(2, 5), (3, 5), (4, 5)]);
        let elected = |pairs: &[(u8, u8)]| candidate(&state, &seen, &reach(pairs), &[].into()).map(|to| to.member);
        assert_eq!(elected(&[]), Some(member(2)));
        assert_eq!(elected(&[(2, 3), (2, 4), (3, 4)]), Some(member(2)));
        assert_eq!(elected(&[(2, 3), (3, 4)]), Some(member(3)));
        // Who is not seen does not count: it may be gone, and 4 be the last to notice.
        assert_eq!(elected(&[(2, 3), (2, 4), (3, 4), (4, 1)]), Some(member(2)));
        let plan = plan(std::slice::from_ref(&state), &holder(2, 5), &seen, &reach(&[(2, 3), (3, 4)]), None);
        assert_eq!(plan[0].1.after.primary, Some(holder(3, 5)));
    }
}
