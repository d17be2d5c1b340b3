//! Who should vote: every active member while there are at most five, then five of them, spread over groups.
//!
//! Rule: one step adds one voter or removes one, and a removal comes before the addition that it makes room for. A voter
//! whose member has another store by now is removed before the member is added with it. Must not know: how a list takes
//! over (`settle`).

use std::collections::{BTreeMap, BTreeSet};

use crate::types::limits::VOTERS_MAX;
use crate::types::{MemberId, MemberState, MeshMember, MeshRecord, Voter, VoterList};

/// Fewer voters than this are not left because one is silent, unless another takes its place: it would outlive no more
/// failures, and one that comes back would be missing.
const SILENT_LEAVES_MIN: usize = 3;

/// The voters to aim at, of those who are not silent. Members that vote already are preferred within their group.
pub fn target(members: &[MeshMember], list: &VoterList, silent: &BTreeSet<MemberId>) -> BTreeSet<MemberId> {
    let votes = |m: &MeshMember| list.has(&Voter { member: m.id.clone(), store: m.store });
    let eligible = |m: &&MeshMember| {
        let may = m.state == MemberState::Active || m.state == MemberState::Draining && votes(m);
        may && !silent.contains(&m.id)
    };
    let mut groups: BTreeMap<_, Vec<&MeshMember>> = BTreeMap::new();
    for member in members.iter().filter(eligible) {
        groups.entry(&member.group).or_default().push(member);
    }
    for group in groups.values_mut() {
        group.sort_by_key(|m| (!votes(m), &m.id));
    }
    // One of each group in turn, groups with voters first, so that nothing moves without need.
    let mut turns: Vec<_> = groups
        .into_iter()
        .flat_map(|(group, members)| members.into_iter().enumerate().map(move |(turn, m)| (turn, !votes(m), group, m)))
        .collect();
    turns.sort_by_key(|(turn, new, group, m)| (*turn, *new, *group, &m.id));
    turns.into_iter().take(VOTERS_MAX).map(|(.., m)| m.id.clone()).collect()
}

/// The list that should follow, one voter away; `None` while the present one is right.
pub fn next(record: &MeshRecord, silent: &BTreeSet<MemberId>) -> Option<VoterList> {
    let list = &record.voters;
    let target = target(&record.members, list, silent);
    let missing: Vec<_> = target.iter().filter(|m| list.of_member(m).is_none()).collect();
    let leaves = |v: &&Voter| match record.member(&v.member) {
        None => true,
        Some(m) if m.state == MemberState::Removed || m.store != v.store => true,
        Some(_) if target.contains(&v.member) => false,
        // It is silent, or another group has a better claim.
        Some(_) => !missing.is_empty() || list.voters.len() > SILENT_LEAVES_MIN,
    };
    if list.voters.len() > 1
        && let Some(gone) = list.voters.iter().find(leaves)
    {
        let rest = list.voters.iter().filter(|v| *v != gone).cloned().collect();
        return Some(VoterList::new(list.number + 1, rest));
    }
    let added = missing.first().filter(|_| list.voters.len() < VOTERS_MAX)?;
    let added = record.member(added)?;
    let mut voters = list.voters.clone();
    voters.push(Voter { member: added.id.clone(), store: added.store });
    Some(VoterList::new(list.number + 1, voters))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{GroupId, MeshId, StoreId, VotersState};
    use proptest::prelude::*;

    fn member(i: u8, group: u8) -> MeshMember {
        MeshMember {
            id: MemberId::new(format!("m{i}")).unwrap(),
            group: GroupId::new(format!("g{group}")).unwrap(),
            address: String::new(),
            store: StoreId([i; 16]),
            state: MemberState::Active,
            witness: false,
        }
    }

    fn record(members: Vec<MeshMember>, voters: &[u8]) -> MeshRecord {
        let voters = voters
            .iter()
            .map(|i| Voter { member: MemberId::new(format!("m{i}")).unwrap(), store: StoreId([*i; 16]) })
            .collect();
        MeshRecord {
            mesh: MeshId([1; 16]),
            members,
            voters: VoterList::new(4, voters),
            voters_state: VotersState::Settled,
            rf: 1,
            shards: 64,
        }
    }

    fn names(list: &VoterList) -> String {
        list.voters.iter().map(|v| v.member.as_str()[1..].to_owned()).collect::<Vec<_>>().join(" ")
    }

    fn silent(ids: &[u8]) -> BTreeSet<MemberId> {
        ids.iter().map(|i| MemberId::new(format!("m{i}")).unwrap()).collect()
    }

    fn step(record: &MeshRecord, quiet: &[u8]) -> Option<String> {
        next(record, &silent(quiet)).map(|l| names(&l))
    }

    #[test]
    fn every_member_votes_while_there_are_at_most_five() {
        let all = |n| (1..=n).map(|i| member(i, 1)).collect::<Vec<_>>();
        assert_eq!(step(&record(all(3), &[1, 2, 3]), &[]), None);
        assert_eq!(step(&record(all(5), &[1, 2, 3]), &[]), Some("1 2 3 4".to_owned()));
        assert_eq!(step(&record(all(7), &[1, 2, 3, 4, 5]), &[]), None);
    }

    #[test]
    fn a_silent_voter_is_removed_before_another_is_added() {
        let members: Vec<_> = (1..=6).map(|i| member(i, 1)).collect();
        assert_eq!(step(&record(members.clone(), &[1, 2, 3, 4, 5]), &[2]), Some("1 3 4 5".to_owned()));
        assert_eq!(step(&record(members, &[1, 3, 4, 5]), &[2]), Some("1 3 4 5 6".to_owned()));
    }

    #[test]
    fn a_silent_voter_of_three_stays_while_nobody_can_take_its_place() {
        let members: Vec<_> = (1..=3).map(|i| member(i, 1)).collect();
        assert_eq!(step(&record(members, &[1, 2, 3]), &[3]), None);
    }

    #[test]
    fn a_member_with_another_store_is_removed_and_then_added() {
        let mut members: Vec<_> = (1..=3).map(|i| member(i, 1)).collect();
        members[1].store = StoreId([99; 16]);
        assert_eq!(step(&record(members.clone(), &[1, 2, 3]), &[]), Some("1 3".to_owned()));
        let added = next(&record(members, &[1, 3]), &silent(&[])).unwrap();
        assert_eq!(added.of_member(&MemberId::new("m2").unwrap()).unwrap().store, StoreId([99; 16]));
    }

    #[test]
    fn a_removed_member_votes_no_more_and_a_draining_one_is_not_added() {
        let mut members: Vec<_> = (1..=3).map(|i| member(i, 1)).collect();
        members[2].state = MemberState::Removed;
        assert_eq!(step(&record(members.clone(), &[1, 2, 3]), &[]), Some("1 2".to_owned()));
        members[2].state = MemberState::Draining;
        assert_eq!(step(&record(members.clone(), &[1, 2]), &[]), None);
        assert_eq!(step(&record(members, &[1, 2, 3]), &[]), None);
    }

    #[test]
    fn five_voters_are_spread_over_groups() {
        let members: Vec<_> = (1..=9).map(|i| member(i, i % 3)).collect();
        let chosen = target(&members, &VoterList::new(1, vec![]), &silent(&[]));
        let of = |g: &str| members.iter().filter(|m| m.group.as_str() == g && chosen.contains(&m.id)).count();
        assert_eq!(chosen.len(), 5);
        assert!(["g0", "g1", "g2"].iter().all(|g| (1..=2).contains(&of(g))), "{chosen:?}");
    }

    proptest! {
        #[test]
        fn steps_differ_by_one_voter_and_come_to_rest(
            groups in prop::collection::vec(0_u8..3, 1..9),
            quiet in prop::collection::btree_set(1_u8..9, 0..3),
        ) {
            let members: Vec<_> = (1_u8..).zip(&groups).map(|(i, g)| member(i, *g)).collect();
            let quiet = silent(&quiet.into_iter().collect::<Vec<_>>());
            let mut record = record(members, &[1]);
            for _ in 0..20 {
                let Some(list) = next(&record, &quiet) else { return Ok(()) };
                let gone = record.voters.voters.iter().filter(|v| !list.has(v)).count();
                let new = list.voters.iter().filter(|v| !record.voters.has(v)).count();
                prop_assert_eq!(gone + new, 1);
                prop_assert!(list.is_well_formed() && list.number == record.voters.number + 1);
                record.voters = list;
            }
            prop_assert!(false, "never at rest: {:?}", record.voters);
        }
    }
}
