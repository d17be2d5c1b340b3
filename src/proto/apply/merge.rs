//! Which waiting entries go to the node in one request.
//!
//! | together | why the end is the same |
//! | --- | --- |
//! | Set with Set, of one shard or several | of documents with one id in a payload the node takes the last |
//! | Merge with Merge | it merges them one after the other |
//! | Delete with Delete, Clear with Clear | it does not matter how often, or in which order |
//! | Set or Merge without creation, delete by filter, edit: one entry a shard, alone in its shard | what it does depends on what was there; documents of other shards it does not see |
//!
//! Delete by filter only with the parts of the same client's request, which have the same filter. An edit goes shard by shard: the
//! node says what it edited, by request.
//! Different kinds are different tasks, in order. Rule: no entry goes before an earlier one of its shard. Must not know: the node.

use std::collections::{BTreeMap, BTreeSet};

use super::lane::{Busy, Lane};
use super::notes::Span;
use crate::proto::journal::Kind;
use crate::proto::journal::log::Bounds;
use crate::types::ShardId;

/// One request to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) kind: Kind,
    pub(super) spans: Vec<Span>,
    pub(super) without: BTreeSet<(ShardId, u64)>,
    pub(super) entries: usize,
    pub(super) bytes: usize,
    /// The first that is not left out.
    pub(super) first: (ShardId, u64),
}

/// What goes next: beginning with the first shard from `from` on that has something to give, everything that goes with it. With
/// `until`, only entries up to there, of the shards named there, from the lowest shard on.
pub(super) fn plan(
    lanes: &BTreeMap<ShardId, Lane>,
    busy: &BTreeMap<ShardId, Busy>,
    bounds: Bounds,
    from: ShardId,
    until: Option<&BTreeMap<ShardId, u64>>,
) -> Option<Plan> {
    let mut plan: Option<(super::lane::Like, Plan)> = None;
    for (shard, lane) in lanes.range(from..).chain(lanes.range(..from)) {
        let until = match until {
            Some(until) => until.get(shard).copied().unwrap_or(0),
            None => u64::MAX,
        };
        let (like, entries, bytes) = plan.as_ref().map_or((None, 0, 0), |(like, p)| (Some(*like), p.entries, p.bytes));
        let left =
            Bounds { entries: bounds.entries.saturating_sub(entries), bytes: bounds.bytes.saturating_sub(bytes) };
        if left.entries == 0 {
            break;
        }
        let Some(taken) = lane.take(like, busy.get(shard).copied(), left, until) else { continue };
        let (_, plan) = plan.get_or_insert_with(|| {
            let first = (*shard, taken.first);
            let (kind, spans, without) = (taken.like.kind, Vec::new(), BTreeSet::new());
            (taken.like, Plan { kind, spans, without, entries: 0, bytes: 0, first })
        });
        plan.spans.push(Span { shard: *shard, first: lane.next, last: taken.last });
        plan.without.extend(taken.without.into_iter().map(|seq| (*shard, seq)));
        plan.entries += taken.entries;
        plan.bytes = plan.bytes.saturating_add(taken.bytes);
        if plan.kind == Kind::Edit {
            break;
        }
    }
    plan.map(|(_, plan)| plan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::apply::effect::{Head, LaneRow};
    use crate::types::{TaskPart, TaskUid};

    const SET: Kind = Kind::Set { skip_creation: false };
    const MERGE: Kind = Kind::Merge { skip_creation: false };
    const SET_IF: Kind = Kind::Set { skip_creation: true };

    fn lane(kinds: &[Kind]) -> Lane {
        let mut lane = Lane::of(LaneRow::default());
        lane.committed = kinds.len() as u64;
        for (i, kind) in kinds.iter().enumerate() {
            let part = TaskPart { task: TaskUid(i as u32), part: 0 };
            lane.heads.push_back(Head { seq: i as u64 + 1, kind: *kind, weight: 10, failed: false, part: Some(part) });
        }
        lane
    }

    type Seen = (Kind, Vec<(u16, u64, u64)>);

    fn of(lanes: &[(u16, Lane)], busy: &[(u16, Busy)], bounds: (usize, usize)) -> Option<Seen> {
        let lanes = lanes.iter().map(|(s, lane)| (ShardId(*s), lane.clone())).collect();
        let busy = busy.iter().map(|(s, b)| (ShardId(*s), *b)).collect();
        let bounds = Bounds { entries: bounds.0, bytes: bounds.1 };
        let plan = plan(&lanes, &busy, bounds, ShardId(0), None)?;
        assert!(plan.entries <= bounds.entries && (plan.bytes <= bounds.bytes || plan.entries == 1));
        Some((plan.kind, plan.spans.iter().map(|s| (s.shard.0, s.first, s.last)).collect()))
    }

    #[test]
    fn sets_of_all_shards_go_together_and_stop_at_another_kind() {
        let lanes = [(0, lane(&[SET, SET, MERGE, SET])), (1, lane(&[MERGE, SET])), (2, lane(&[SET, Kind::Empty, SET]))];
        assert_eq!(of(&lanes, &[], (99, 999)), Some((SET, vec![(0, 1, 2), (2, 1, 3)])));
        assert_eq!(of(&lanes, &[(0, Busy::Plain)], (3, 999)), Some((SET, vec![(0, 1, 2), (2, 1, 2)])));
        assert_eq!(of(&lanes, &[], (99, 15)), Some((SET, vec![(0, 1, 1)])));
        assert_eq!(of(&lanes, &[], (99, 5)), Some((SET, vec![(0, 1, 1)])), "one entry goes whatever it weighs");
    }

    #[test]
    fn a_conditional_entry_goes_only_when_its_shard_has_nothing_else_under_way() {
        let lanes = [(0, lane(&[SET_IF, SET_IF])), (1, lane(&[SET_IF, SET]))];
        assert_eq!(of(&lanes, &[], (99, 999)), Some((SET_IF, vec![(0, 1, 1), (1, 1, 1)])));
        assert_eq!(of(&lanes, &[(0, Busy::Plain)], (99, 999)), Some((SET_IF, vec![(1, 1, 1)])));
        let both = [(0, Busy::Conditional), (1, Busy::Conditional)];
        assert_eq!(of(&lanes, &both, (99, 999)), None, "nothing goes behind it");
        assert_eq!(of(&[(0, lane(&[SET, SET_IF]))], &[], (99, 999)), Some((SET, vec![(0, 1, 1)])));
    }

    #[test]
    fn filters_and_functions_go_together_only_if_they_are_of_one_request() {
        let (filter, edit) = (Kind::DeleteByFilter, Kind::Edit);
        let mut other = lane(&[filter]);
        let lanes = [(0, lane(&[filter])), (1, lane(&[filter])), (2, other.clone())];
        assert_eq!(of(&lanes, &[], (99, 999)).unwrap().1.len(), 3);
        let edits = [(0, lane(&[edit])), (1, lane(&[edit]))];
        assert_eq!(of(&edits, &[], (99, 999)), Some((edit, vec![(0, 1, 1)])));
        other.heads[0].part = Some(TaskPart { task: TaskUid(7), part: 0 });
        assert_eq!(of(&[(0, lane(&[filter])), (1, other)], &[], (99, 999)).unwrap().1.len(), 1);
        assert_eq!(of(&[(0, lane(&[edit])), (1, lane(&[filter]))], &[], (99, 999)), Some((edit, vec![(0, 1, 1)])));
    }

    #[test]
    fn deletions_go_together_when_nothing_of_their_shards_is_under_way() {
        let lanes = [(0, lane(&[Kind::Delete, Kind::Delete])), (1, lane(&[Kind::Delete]))];
        assert_eq!(of(&lanes, &[], (99, 999)), Some((Kind::Delete, vec![(0, 1, 2), (1, 1, 1)])));
        assert_eq!(of(&lanes, &[(0, Busy::Plain)], (99, 999)), Some((Kind::Delete, vec![(1, 1, 1)])));
        assert_eq!(of(&[(0, lane(&[SET, Kind::Clear]))], &[(0, Busy::Plain)], (99, 999)), Some((SET, vec![(0, 1, 1)])));
    }

    #[test]
    fn what_the_primary_has_failed_is_passed_over() {
        let mut one = lane(&[SET, SET, MERGE]);
        one.told_failed(1);
        let taken = one.take(None, None, Bounds { entries: 9, bytes: 999 }, u64::MAX).unwrap();
        assert_eq!((taken.first, taken.last, taken.entries, taken.without), (2, 2, 1, [1].into()));
        one.told_failed(2);
        assert_eq!(one.idle_until(), 2);
    }

    #[test]
    fn a_shard_that_waits_gives_nothing() {
        let mut one = lane(&[SET]);
        one.row.need = crate::proto::apply::effect::Need::Rebuild;
        assert_eq!(of(&[(0, one)], &[], (9, 999)), None);
    }
}
