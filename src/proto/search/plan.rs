//! Which members answer for which shards.
//!
//! The rule: one replica group answers if it can, because then parts are few and members are asked for all they hold; a
//! shard that it does not serve comes from another group, or in the end from a copy that is behind. Among replicas scored
//! within 30 % of the best a rendezvous hash of the query chooses, so that a client that pages stays on the same replicas.
//! Must not know: what was asked before in this search (`retry`), where scores come from (`stats`).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use twox_hash::XxHash64;

use crate::types::{GroupId, IndexRecord, MemberId, ReplicaState, ShardId, ShardSet};

/// Scores up to this many times the best count as equal to it.
const EQUAL_FACTOR: f64 = 1.3;
/// What a member without samples is taken to need.
const LATENCY_UNKNOWN_US: u64 = 1_000;

/// What is known of a member, for planning.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MemberState {
    /// Not suspect, and its node healthy.
    pub serving: bool,
    /// Shards of this index that it says it does not serve, being behind.
    pub unserved: ShardSet,
    /// Smoothed latency in microseconds; 0: no sample.
    pub latency_us: u64,
    /// Calls under way from here.
    pub in_flight: u32,
    /// Errors lately, fading.
    pub recent_errors: f64,
}

impl MemberState {
    /// The lower the better.
    fn score(&self) -> f64 {
        let latency = if self.latency_us == 0 { LATENCY_UNKNOWN_US } else { self.latency_us };
        // Latencies are far below 2^53 µs.
        #[allow(clippy::cast_precision_loss)]
        let latency = latency as f64;
        latency * (1.0 + f64::from(self.in_flight)) * (1.0 + self.recent_errors.max(0.0))
    }
}

/// What a plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct PlanInput<'a> {
    /// Who holds which shard.
    pub index: &'a IndexRecord,
    /// The group of each member.
    pub groups: &'a BTreeMap<MemberId, GroupId>,
    /// What is known of each member; one that is not here is not asked.
    pub states: &'a BTreeMap<MemberId, MemberState>,
    /// This member: its part is listed last, so that the others are asked first.
    pub own: &'a MemberId,
    /// [`super::SearchQuery::plan_hash`].
    pub query_hash: u64,
    /// One member is to answer for all shards wanted, if one serves them all; the same one as long as it does.
    pub one: bool,
}

/// Who is asked for what. The parts' shards do not overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Member and shards, one part a member.
    pub parts: Vec<(MemberId, ShardSet)>,
    /// Shards that nobody can answer for.
    pub uncovered: ShardSet,
    /// Shards of the parts that only a copy answers for that is behind.
    pub degraded: ShardSet,
}

/// A member that can be asked.
struct Candidate<'a> {
    member: &'a MemberId,
    group: Option<&'a GroupId>,
    /// The group's place among all groups: quicker to compare than its name.
    group_at: usize,
    state: &'a MemberState,
    excluded: Option<&'a ShardSet>,
    score: f64,
    weight: u64,
}

impl Candidate<'_> {
    fn serves(&self, shard: ShardId) -> bool {
        self.may(shard) && !self.state.unserved.contains(shard)
    }

    fn may(&self, shard: ShardId) -> bool {
        self.state.serving && !self.excluded.is_some_and(|e| e.contains(shard))
    }
}

fn weight(query_hash: u64, name: &str) -> u64 {
    XxHash64::oneshot(query_hash, name.as_bytes())
}

/// The best of some, as `(score, weight, value)`: within [`EQUAL_FACTOR`] of the lowest score the highest weight.
fn choose<T: Copy>(scored: impl Iterator<Item = (f64, u64, T)> + Clone) -> Option<T> {
    let best = scored.clone().map(|(score, _, _)| score).min_by(f64::total_cmp)?;
    let equal = scored.filter(|(score, _, _)| *score <= best * EQUAL_FACTOR);
    equal.max_by_key(|(_, weight, _)| *weight).map(|(_, _, value)| value)
}

/// Plans a search of the shards `wanted`, asking nobody for shards that `excluded` names.
pub fn plan(input: &PlanInput<'_>, wanted: &ShardSet, excluded: &BTreeMap<MemberId, ShardSet>) -> Plan {
    let groups: BTreeSet<&GroupId> = input.groups.values().collect();
    let places: BTreeMap<&GroupId, usize> = groups.into_iter().zip(1..).collect();
    let candidates: Vec<Candidate<'_>> = input
        .states
        .iter()
        .filter(|(_, state)| state.serving)
        .map(|(member, state)| Candidate {
            member,
            group: input.groups.get(member),
            group_at: input.groups.get(member).and_then(|g| places.get(g)).copied().unwrap_or(0),
            state,
            excluded: excluded.get(member),
            score: state.score(),
            weight: weight(input.query_hash, member.as_str()),
        })
        .collect();
    let by_member: BTreeMap<&MemberId, usize> = candidates.iter().enumerate().map(|(i, c)| (c.member, i)).collect();
    let (mut holders, mut shards) = (Vec::new(), Vec::new());
    for shard in wanted.iter() {
        let first = holders.len();
        let replicas = input.index.shards.get(usize::from(shard.0)).map_or(&[][..], |s| &s.replicas[..]);
        let full = replicas.iter().filter(|r| r.state != ReplicaState::Learner);
        holders.extend(full.filter_map(|r| by_member.get(&r.member).copied()));
        // Those of one group stand together.
        holders[first..].sort_by_key(|i: &usize| candidates[*i].group_at);
        shards.push((shard, first..holders.len()));
    }
    Planner { input, candidates, holders, shards }.plan()
}

struct Planner<'a> {
    input: &'a PlanInput<'a>,
    candidates: Vec<Candidate<'a>>,
    /// The candidates that hold each shard wanted, one shard after the other.
    holders: Vec<usize>,
    /// The shards wanted, and where their holders stand.
    shards: Vec<(ShardId, Range<usize>)>,
}

impl Planner<'_> {
    /// Each shard wanted with the candidates that hold it.
    fn held(&self) -> impl Iterator<Item = (&ShardId, &[usize])> {
        self.shards.iter().map(|(shard, range)| (shard, &self.holders[range.clone()]))
    }

    /// The best of a shard's holders that `fits` lets through.
    fn pick(&self, holders: &[usize], fits: impl Fn(&Candidate<'_>) -> bool + Clone) -> Option<usize> {
        let fitting = holders.iter().copied().filter(|i| fits(&self.candidates[*i]));
        choose(fitting.map(|i| (self.candidates[i].score, self.candidates[i].weight, i)))
    }

    /// The group that leaves the fewest shards out, and of those one of the best scored.
    fn group(&self) -> Option<&GroupId> {
        // Shards covered, and the score of the slowest member that would be asked.
        let mut rated: BTreeMap<usize, (&GroupId, usize, f64)> =
            self.candidates.iter().filter_map(|c| c.group.map(|g| (c.group_at, (g, 0, 0.0)))).collect();
        for (shard, holders) in self.held() {
            let place = |i: &usize| self.candidates[*i].group_at;
            for of_one in holders.chunk_by(|a, b| place(a) == place(b)) {
                let Some(chosen) = self.pick(of_one, |c| c.serves(*shard)).map(|i| &self.candidates[i]) else {
                    continue;
                };
                if let Some((_, covered, score)) = rated.get_mut(&chosen.group_at) {
                    *covered += 1;
                    *score = score.max(chosen.score);
                }
            }
        }
        let most = rated.values().map(|(_, covered, _)| *covered).max()?;
        let complete = rated.values().filter(|(_, covered, _)| *covered == most);
        choose(complete.map(|(group, _, score)| (*score, weight(self.input.query_hash, group.as_str()), *group)))
    }

    /// The candidate that serves every shard wanted, and of several the one with the highest weight.
    fn one(&self) -> Option<usize> {
        let (_, first) = self.held().next()?;
        let serves_all = |i: &usize| self.held().all(|(s, held)| held.contains(i) && self.candidates[*i].serves(*s));
        first.iter().copied().filter(serves_all).max_by_key(|i| self.candidates[*i].weight)
    }

    fn plan(&self) -> Plan {
        if self.input.one
            && let Some(one) = self.one()
        {
            let shards = self.shards.iter().map(|(shard, _)| *shard).collect();
            return Plan { parts: vec![(self.candidates[one].member.clone(), shards)], ..Plan::default() };
        }
        let group = self.group();
        let mut plan = Plan::default();
        let mut shards: Vec<ShardSet> = vec![ShardSet::new(); self.candidates.len()];
        for (shard, holders) in self.held() {
            let in_group = |c: &Candidate<'_>| group.is_some() && c.group == group && c.serves(*shard);
            let anywhere = |c: &Candidate<'_>| c.serves(*shard);
            let behind = |c: &Candidate<'_>| c.may(*shard);
            let serving = self.pick(holders, in_group).or_else(|| self.pick(holders, anywhere));
            if serving.is_none() {
                plan.degraded.insert(*shard);
            }
            match serving.or_else(|| self.pick(holders, behind)) {
                Some(i) => {
                    shards[i].insert(*shard);
                }
                None => {
                    plan.degraded.remove(*shard);
                    plan.uncovered.insert(*shard);
                }
            }
        }
        let parts = self.candidates.iter().zip(shards).filter(|(_, shards)| !shards.is_empty());
        plan.parts = parts.map(|(c, shards)| (c.member.clone(), shards)).collect();
        plan.parts.sort_by_key(|(member, _)| member == self.input.own);
        plan
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::placement;
    use crate::types::{IndexUid, PhysicalIndex};

    pub fn member(n: usize) -> MemberId {
        MemberId::new(format!("m{n}")).unwrap()
    }

    /// A mesh whose members all serve.
    pub struct Mesh {
        pub index: IndexRecord,
        pub groups: BTreeMap<MemberId, GroupId>,
        pub states: BTreeMap<MemberId, MemberState>,
        pub own: MemberId,
    }

    impl Mesh {
        pub fn new(members: usize, groups: usize, rf: usize, s: u16) -> Self {
            let groups: BTreeMap<_, _> =
                (1..=members).map(|i| (member(i), GroupId::new(format!("g{}", (i - 1) % groups)).unwrap())).collect();
            let index = IndexRecord {
                uid: IndexUid::new("packages").unwrap(),
                physical: PhysicalIndex::new("packages__m00000001").unwrap(),
                primary_key: Some("id".into()),
                settings_version: 1,
                client_settings: BTreeMap::new(),
                missed_settings: Default::default(),
                caught_up: Default::default(),
                shards: placement::place(s, &groups, rf),
                created_at: String::new(),
                updated_at: String::new(),
                deleted: false,
            };
            let serving = MemberState { serving: true, latency_us: 1_000, ..MemberState::default() };
            let states = groups.keys().map(|m| (m.clone(), serving.clone())).collect();
            Self { index, groups, states, own: member(1) }
        }

        pub fn input(&self, query_hash: u64) -> PlanInput<'_> {
            PlanInput {
                index: &self.index,
                groups: &self.groups,
                states: &self.states,
                own: &self.own,
                query_hash,
                one: false,
            }
        }

        pub fn all(&self) -> ShardSet {
            ShardSet::all(self.index.shard_count())
        }

        pub fn plan(&self, query_hash: u64) -> Plan {
            plan(&self.input(query_hash), &self.all(), &BTreeMap::new())
        }
    }

    fn groups_of(plan: &Plan, mesh: &Mesh) -> BTreeSet<GroupId> {
        plan.parts.iter().map(|(m, _)| mesh.groups[m].clone()).collect()
    }

    #[test]
    fn one_group_answers_with_all_that_its_members_hold() {
        let mesh = Mesh::new(6, 2, 1, 64);
        let mut chosen = BTreeSet::new();
        for hash in 0..40 {
            let plan = mesh.plan(hash);
            assert_eq!(groups_of(&plan, &mesh).len(), 1);
            chosen.extend(groups_of(&plan, &mesh));
            for (m, shards) in &plan.parts {
                assert_eq!(*shards, mesh.index.shards_of(m));
            }
            assert_eq!(plan, mesh.plan(hash));
        }
        assert_eq!(chosen.len(), 2, "queries are spread over both groups");
    }

    #[test]
    fn own_part_is_last() {
        let mesh = Mesh::new(3, 1, 1, 64);
        assert_eq!(mesh.plan(7).parts.last().unwrap().0, mesh.own);
    }

    #[test]
    fn a_slow_group_is_not_asked() {
        let mut mesh = Mesh::new(4, 2, 1, 64);
        mesh.states.get_mut(&member(1)).unwrap().latency_us = 10_000;
        for hash in 0..20 {
            assert_eq!(groups_of(&mesh.plan(hash), &mesh), BTreeSet::from([mesh.groups[&member(2)].clone()]));
        }
        mesh.states.get_mut(&member(2)).unwrap().recent_errors = 50.0;
        for hash in 0..20 {
            assert_eq!(groups_of(&mesh.plan(hash), &mesh), BTreeSet::from([mesh.groups[&member(1)].clone()]));
        }
    }

    #[test]
    fn a_shard_that_a_group_does_not_serve_comes_from_another() {
        let mut mesh = Mesh::new(2, 2, 1, 8);
        for m in [1, 2] {
            // Each lacks one shard.
            mesh.states.get_mut(&member(m)).unwrap().unserved =
                [ShardId(u16::try_from(m).unwrap())].into_iter().collect();
        }
        let plan = mesh.plan(3);
        assert_eq!(plan.parts.len(), 2);
        assert!(plan.uncovered.is_empty() && plan.degraded.is_empty());
        let sizes: BTreeSet<usize> = plan.parts.iter().map(|(_, s)| s.len()).collect();
        assert_eq!(sizes, BTreeSet::from([1, 7]));
    }

    #[test]
    fn a_copy_that_is_behind_answers_only_where_there_is_no_other() {
        let mut mesh = Mesh::new(2, 2, 1, 8);
        let three: ShardSet = [ShardId(3)].into_iter().collect();
        mesh.states.get_mut(&member(1)).unwrap().unserved = three.clone();
        assert!(mesh.plan(1).degraded.is_empty());
        mesh.states.get_mut(&member(2)).unwrap().unserved = three.clone();
        let plan = mesh.plan(1);
        assert_eq!(plan.degraded, three);
        assert!(plan.uncovered.is_empty());
        mesh.states.values_mut().for_each(|s| s.serving = false);
        let plan = mesh.plan(1);
        assert_eq!((plan.uncovered, plan.degraded, plan.parts), (mesh.all(), ShardSet::new(), vec![]));
    }

    #[test]
    fn a_learner_is_never_asked() {
        let mut mesh = Mesh::new(1, 1, 1, 4);
        mesh.index.shards[2].replicas[0].state = ReplicaState::Learner;
        mesh.index.shards[3].replicas[0].state = ReplicaState::Leaving;
        assert_eq!(mesh.plan(1).uncovered.to_string(), "2");
    }

    #[test]
    fn one_member_answers_for_what_it_holds_however_busy_it_is() {
        let mut mesh = Mesh::new(3, 1, 2, 64);
        for (member, shards) in mesh.plan(7).parts {
            for busy in [0, 50] {
                mesh.states.get_mut(&member).unwrap().in_flight = busy;
                let input = PlanInput { one: true, ..mesh.input(7) };
                let parts = plan(&input, &shards, &BTreeMap::new()).parts;
                assert_eq!(parts.len(), 1, "{parts:?}");
                assert_eq!(parts[0].1, shards);
            }
            // Without it the others share them, as far as they hold them.
            let gone = BTreeMap::from([(member.clone(), mesh.all())]);
            let parts = plan(&PlanInput { one: true, ..mesh.input(7) }, &shards, &gone).parts;
            assert_eq!(parts.iter().map(|(_, s)| s.len()).sum::<usize>(), shards.len());
            assert!(parts.iter().all(|(m, _)| *m != member));
        }
    }

    proptest! {
        #[test]
        fn every_shard_is_asked_once_of_one_who_may_answer(
            members in 1..8_usize, groups in 1..4_usize, rf in 1..3_usize, hash: u64,
            down in prop::collection::btree_set(1..8_usize, 0..4),
            lacks in prop::collection::vec((1..8_usize, 0..16_u16), 0..20),
            excluded in prop::collection::vec((1..8_usize, 0..16_u16), 0..20),
            latencies in prop::collection::vec(0..5_000_u64, 8),
        ) {
            let mut mesh = Mesh::new(members, groups.min(members), rf, 16);
            for (m, state) in &mut mesh.states {
                let n: usize = m.as_str()[1..].parse().unwrap();
                state.serving = !down.contains(&n);
                state.latency_us = latencies[n - 1];
                state.unserved = lacks.iter().filter(|(l, _)| *l == n).map(|(_, s)| ShardId(*s)).collect();
            }
            let mut banned: BTreeMap<MemberId, ShardSet> = BTreeMap::new();
            for (m, s) in excluded { banned.entry(member(m)).or_default().insert(ShardId(s)); }
            let p = plan(&mesh.input(hash), &mesh.all(), &banned);
            let mut asked = p.uncovered.clone();
            for (m, shards) in &p.parts {
                for shard in shards.iter() {
                    prop_assert!(asked.insert(shard), "asked twice");
                    prop_assert!(mesh.states[m].serving && mesh.index.shards_of(m).contains(shard));
                    prop_assert!(!banned.get(m).is_some_and(|b| b.contains(shard)));
                    prop_assert_eq!(p.degraded.contains(shard), mesh.states[m].unserved.contains(shard));
                }
            }
            prop_assert_eq!(asked, mesh.all());
        }
    }
}
