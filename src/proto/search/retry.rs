//! One scattered search: after each answer, refusal, failure or delay, whom to ask next, until every shard is answered
//! once or given up.
//!
//! The rule: nobody is asked again for a shard after failing or refusing it; the answers kept cover each shard once. A
//! hedge counts only when all its pieces have come. Must not know: bodies, timers, how calls are made.
//!
//! Order of calls: [`Scatter::start`], then [`Scatter::on`] for each outcome and [`Scatter::late`] for each call that is
//! late, until [`Scatter::is_finished`] or [`Scatter::deadline`]; then [`Scatter::finish`]. Actions are carried out in
//! the order given. Outcomes of calls that were cancelled may still come, and change nothing.

use std::collections::BTreeMap;

use super::plan::{PlanInput, plan};
use crate::types::{MemberId, ShardSet};

/// How often a shard's question moves on before it is given up.
const ROUNDS_MAX: u8 = 4;

/// Names one call of this search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(pub usize);

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask a member.
    Ask {
        /// The call's name.
        ask: AskId,
        /// Whom.
        member: MemberId,
        /// For which shards.
        shards: ShardSet,
        /// It covers all shards wanted, so it is asked for the client's page itself.
        alone: bool,
        /// It doubles a call that is late.
        hedge: bool,
    },
    /// Drop a call: its answer is no longer needed.
    Cancel(AskId),
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// With a node's 200.
    Answered,
    /// Nothing was read: these shards are not served.
    NotServed {
        /// The shards refused.
        shards: ShardSet,
    },
    /// Without an answer, or with one that another replica might do better.
    Failed,
}

/// What came of a search.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Finished {
    /// The calls whose answers are merged.
    pub answers: Vec<AskId>,
    /// Shards without an answer.
    pub missing: ShardSet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Answered,
    Ended,
}

#[derive(Debug, Clone)]
struct Ask {
    member: MemberId,
    shards: ShardSet,
    slot: usize,
    state: State,
}

/// Shards that are answered together: by the first call, or by all pieces of its hedge.
#[derive(Debug, Clone)]
struct Slot {
    first: AskId,
    hedge: Vec<AskId>,
    hedged: bool,
    round: u8,
    /// The answers, once there are all; a slot that moved on has none and is not open.
    open: bool,
    answers: Vec<AskId>,
}

/// The state of one scattered search.
#[derive(Debug, Clone)]
pub struct Scatter {
    wanted: ShardSet,
    slots: Vec<Slot>,
    asks: Vec<Ask>,
    excluded: BTreeMap<MemberId, ShardSet>,
    missing: ShardSet,
}

fn unite(set: &mut ShardSet, other: &ShardSet) {
    for shard in other.iter() {
        set.insert(shard);
    }
}

impl Scatter {
    /// Plans the search of the shards `wanted` and gives the first calls.
    pub fn start(input: &PlanInput<'_>, wanted: &ShardSet) -> (Self, Vec<Action>) {
        let mut scatter = Self {
            wanted: wanted.clone(),
            slots: Vec::new(),
            asks: Vec::new(),
            excluded: BTreeMap::new(),
            missing: ShardSet::new(),
        };
        let actions = scatter.ask_for(input, wanted, 0);
        (scatter, actions)
    }

    /// Asks for shards anew; what nobody can answer is given up.
    fn ask_for(&mut self, input: &PlanInput<'_>, shards: &ShardSet, round: u8) -> Vec<Action> {
        if round >= ROUNDS_MAX {
            unite(&mut self.missing, shards);
            return Vec::new();
        }
        let plan = plan(input, shards, &self.excluded);
        unite(&mut self.missing, &plan.uncovered);
        let mut actions = Vec::with_capacity(plan.parts.len());
        for (member, shards) in plan.parts {
            let slot = self.slots.len();
            let (first, action) = self.ask(slot, member, shards, false);
            let (hedge, answers) = (Vec::new(), Vec::new());
            self.slots.push(Slot { first, hedge, hedged: false, round, open: true, answers });
            actions.push(action);
        }
        actions
    }

    fn ask(&mut self, slot: usize, member: MemberId, shards: ShardSet, hedge: bool) -> (AskId, Action) {
        let ask = AskId(self.asks.len());
        let entry = Ask { member: member.clone(), shards: shards.clone(), slot, state: State::Waiting };
        self.asks.push(entry);
        let alone = shards == self.wanted;
        (ask, Action::Ask { ask, member, shards, alone, hedge })
    }

    /// Takes note of how a call ended; gives what to do now. `input` may know a newer record than before.
    pub fn on(&mut self, input: &PlanInput<'_>, ask: AskId, outcome: Outcome) -> Vec<Action> {
        let Some(entry) = self.asks.get_mut(ask.0).filter(|a| a.state == State::Waiting) else { return Vec::new() };
        let slot = entry.slot;
        match outcome {
            Outcome::Answered => {
                entry.state = State::Answered;
                self.answered(slot)
            }
            Outcome::NotServed { shards } => {
                entry.state = State::Ended;
                let member = entry.member.clone();
                // A refusal that names nothing asked for could come again for ever.
                let refused: ShardSet = entry.shards.iter().filter(|s| shards.contains(*s)).collect();
                let refused = if refused.is_empty() { entry.shards.clone() } else { refused };
                unite(self.excluded.entry(member).or_default(), &refused);
                self.ended(input, ask)
            }
            Outcome::Failed => {
                entry.state = State::Ended;
                let member = entry.member.clone();
                let all = ShardSet::all(input.index.shard_count());
                unite(self.excluded.entry(member).or_default(), &all);
                self.ended(input, ask)
            }
        }
    }

    /// Closes the slot if its first call, or its whole hedge, has been answered.
    fn answered(&mut self, slot: usize) -> Vec<Action> {
        let Slot { first, hedge, .. } = &self.slots[slot];
        let done = |ask: &AskId| self.asks[ask.0].state == State::Answered;
        let (answers, losers) = if done(first) {
            (vec![*first], hedge.clone())
        } else if !hedge.is_empty() && hedge.iter().all(done) {
            (hedge.clone(), vec![*first])
        } else {
            return Vec::new();
        };
        self.slots[slot].open = false;
        self.slots[slot].answers = answers;
        self.cancel(&losers)
    }

    fn cancel(&mut self, asks: &[AskId]) -> Vec<Action> {
        let mut actions = Vec::new();
        for ask in asks {
            let entry = &mut self.asks[ask.0];
            if entry.state == State::Waiting {
                entry.state = State::Ended;
                actions.push(Action::Cancel(*ask));
            }
        }
        actions
    }

    /// A call ended without an answer.
    fn ended(&mut self, input: &PlanInput<'_>, ask: AskId) -> Vec<Action> {
        let slot = self.asks[ask.0].slot;
        if self.slots[slot].first != ask {
            // A hedge without one of its pieces is worth nothing; the first call goes on alone.
            let hedge = std::mem::take(&mut self.slots[slot].hedge);
            return self.cancel(&hedge);
        }
        self.slots[slot].open = false;
        let round = self.slots[slot].round;
        let hedge = std::mem::take(&mut self.slots[slot].hedge);
        if hedge.is_empty() {
            let shards = self.asks[ask.0].shards.clone();
            return self.ask_for(input, &shards, round + 1);
        }
        // The pieces of the hedge stand for themselves from here on.
        for first in hedge {
            let slot = self.slots.len();
            self.asks[first.0].slot = slot;
            let answered = self.asks[first.0].state == State::Answered;
            let answers = if answered { vec![first] } else { Vec::new() };
            let piece = Slot { first, hedge: Vec::new(), hedged: true, round: round + 1, open: !answered, answers };
            self.slots.push(piece);
        }
        Vec::new()
    }

    /// A call is late: doubles it, if others serve all of its shards. Once a call, and never a hedge itself. Empty if there
    /// is nobody to ask.
    pub fn late(&mut self, input: &PlanInput<'_>, ask: AskId) -> Vec<Action> {
        let Some(entry) = self.asks.get(ask.0).filter(|a| a.state == State::Waiting) else { return Vec::new() };
        let (slot, shards) = (entry.slot, entry.shards.clone());
        if self.slots[slot].first != ask || self.slots[slot].hedged {
            return Vec::new();
        }
        let mut excluded = self.excluded.clone();
        unite(excluded.entry(entry.member.clone()).or_default(), &shards);
        let plan = plan(input, &shards, &excluded);
        if !plan.uncovered.is_empty() || !plan.degraded.is_empty() || (input.one && plan.parts.len() > 1) {
            return Vec::new();
        }
        self.slots[slot].hedged = true;
        let mut actions = Vec::with_capacity(plan.parts.len());
        for (member, shards) in plan.parts {
            let (piece, action) = self.ask(slot, member, shards, true);
            self.slots[slot].hedge.push(piece);
            actions.push(action);
        }
        actions
    }

    /// The time is over: everything still open is given up, but pieces of hedges that have come are kept.
    pub fn deadline(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        for slot in 0..self.slots.len() {
            if !self.slots[slot].open {
                continue;
            }
            let Slot { first, hedge, .. } = self.slots[slot].clone();
            let mut left = self.asks[first.0].shards.clone();
            let came: Vec<AskId> = hedge.iter().copied().filter(|a| self.asks[a.0].state == State::Answered).collect();
            for ask in &came {
                left = left.minus(&self.asks[ask.0].shards);
            }
            unite(&mut self.missing, &left);
            actions.extend(self.cancel(&[first]));
            actions.extend(self.cancel(&hedge));
            self.slots[slot].open = false;
            self.slots[slot].answers = came;
        }
        actions
    }

    /// Whether every shard is answered or given up.
    pub fn is_finished(&self) -> bool {
        self.slots.iter().all(|s| !s.open)
    }

    /// The answers to merge, and what is missing.
    pub fn finish(&self) -> Finished {
        let mut finished = Finished { missing: self.missing.clone(), ..Finished::default() };
        for slot in &self.slots {
            for ask in &slot.answers {
                finished.answers.push(*ask);
            }
        }
        finished
    }

    /// The shards that a call asks for.
    pub fn shards(&self, ask: AskId) -> Option<&ShardSet> {
        self.asks.get(ask.0).map(|a| &a.shards)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::super::plan::tests::Mesh;
    use super::*;
    use crate::types::ShardId;

    fn asks(actions: &[Action]) -> Vec<(AskId, MemberId, ShardSet)> {
        let ask = |a: &Action| match a {
            Action::Ask { ask, member, shards, .. } => Some((*ask, member.clone(), shards.clone())),
            Action::Cancel(_) => None,
        };
        actions.iter().filter_map(ask).collect()
    }

    fn cancels(actions: &[Action]) -> Vec<AskId> {
        actions.iter().filter_map(|a| if let Action::Cancel(ask) = a { Some(*ask) } else { None }).collect()
    }

    #[test]
    fn answers_of_all_parts_end_the_search() {
        let mesh = Mesh::new(3, 1, 1, 16);
        let (mut scatter, actions) = Scatter::start(&mesh.input(1), &mesh.all());
        assert_eq!(asks(&actions).len(), 3);
        for (ask, _, _) in asks(&actions) {
            assert!(!scatter.is_finished());
            assert_eq!(scatter.on(&mesh.input(1), ask, Outcome::Answered), vec![]);
        }
        assert!(scatter.is_finished());
        let finished = scatter.finish();
        assert_eq!((finished.answers.len(), finished.missing.is_empty()), (3, true));
    }

    #[test]
    fn a_failed_part_goes_to_other_replicas_and_nobody_is_asked_twice() {
        let mesh = Mesh::new(4, 2, 1, 16);
        let (mut scatter, actions) = Scatter::start(&mesh.input(1), &mesh.all());
        let first = asks(&actions);
        let again = asks(&scatter.on(&mesh.input(1), first[0].0, Outcome::Failed));
        assert!(again.iter().all(|(_, m, _)| mesh.groups[m] != mesh.groups[&first[0].1]));
        scatter.on(&mesh.input(1), first[1].0, Outcome::Answered);
        for (ask, _, _) in &again {
            assert_eq!(scatter.on(&mesh.input(1), *ask, Outcome::Failed), vec![]);
        }
        assert!(scatter.is_finished());
        assert_eq!(scatter.finish().missing, first[0].2);
    }

    #[test]
    fn refused_shards_move_and_the_rest_is_asked_again() {
        let mesh = Mesh::new(2, 2, 1, 8);
        let (mut scatter, actions) = Scatter::start(&mesh.input(1), &mesh.all());
        let [(ask, member, shards)] = &asks(&actions)[..] else { panic!("one part") };
        assert_eq!(*shards, mesh.all());
        let refused: ShardSet = [ShardId(3)].into_iter().collect();
        let outcome = Outcome::NotServed { shards: refused.clone() };
        let again = asks(&scatter.on(&mesh.input(1), *ask, outcome));
        assert_eq!(again.iter().map(|(_, _, s)| s.len()).sum::<usize>(), 8);
        let other = again.iter().find(|(_, m, _)| m != member).unwrap();
        assert!(other.2.contains(ShardId(3)));
    }

    #[test]
    fn one_part_for_all_is_asked_for_the_page_itself() {
        let mesh = Mesh::new(2, 2, 1, 8);
        let (mut scatter, actions) = Scatter::start(&mesh.input(1), &mesh.all());
        let [Action::Ask { alone: true, ask, .. }] = actions[..] else { panic!("{actions:?}") };
        let hedge = scatter.late(&mesh.input(1), ask);
        assert!(matches!(hedge[..], [Action::Ask { alone: true, hedge: true, .. }]));
        let mesh = Mesh::new(2, 1, 1, 8);
        let (_, actions) = Scatter::start(&mesh.input(1), &mesh.all());
        assert!(actions.iter().all(|a| matches!(a, Action::Ask { alone: false, .. })));
    }

    #[test]
    fn the_first_of_a_hedged_pair_wins() {
        let mesh = Mesh::new(4, 2, 1, 16);
        for first_wins in [true, false] {
            let (mut scatter, actions) = Scatter::start(&mesh.input(1), &mesh.all());
            let first = asks(&actions);
            let hedge = asks(&scatter.late(&mesh.input(1), first[0].0));
            assert_eq!(hedge.iter().map(|(_, _, s)| s.len()).sum::<usize>(), first[0].2.len());
            assert_eq!(scatter.late(&mesh.input(1), first[0].0), vec![], "once only");
            scatter.on(&mesh.input(1), first[1].0, Outcome::Answered);
            let cancelled = if first_wins {
                cancels(&scatter.on(&mesh.input(1), first[0].0, Outcome::Answered)).len() == hedge.len()
            } else {
                let ends = hedge.iter().map(|(h, _, _)| scatter.on(&mesh.input(1), *h, Outcome::Answered));
                let last = ends.last();
                cancels(&last.unwrap()) == vec![first[0].0]
            };
            assert!(cancelled && scatter.is_finished());
            let kept: BTreeSet<AskId> = scatter.finish().answers.into_iter().collect();
            assert_eq!(kept.contains(&first[0].0), first_wins);
        }
    }

    #[test]
    fn a_hedge_outlives_the_call_that_it_doubles() {
        let mesh = Mesh::new(2, 2, 1, 8);
        let (mut scatter, actions) = Scatter::start(&mesh.input(1), &mesh.all());
        let ask = asks(&actions)[0].0;
        let hedge = asks(&scatter.late(&mesh.input(1), ask));
        assert_eq!(scatter.on(&mesh.input(1), ask, Outcome::Failed), vec![]);
        assert!(!scatter.is_finished());
        scatter.on(&mesh.input(1), hedge[0].0, Outcome::Answered);
        assert_eq!(scatter.finish(), Finished { answers: vec![hedge[0].0], ..Finished::default() });
    }

    #[test]
    fn nobody_to_hedge_with_is_no_hedge() {
        let mesh = Mesh::new(3, 1, 1, 16);
        let (mut scatter, actions) = Scatter::start(&mesh.input(1), &mesh.all());
        assert_eq!(scatter.late(&mesh.input(1), asks(&actions)[0].0), vec![]);
    }

    proptest! {
        /// Whatever happens, the answers kept and the shards missing are all shards, each once.
        #[test]
        fn every_shard_is_answered_once_or_missing(
            members in 1..7_usize, groups in 1..4_usize, rf in 1..3_usize, hash: u64,
            events in prop::collection::vec((0..5_u8, any::<usize>(), prop::collection::vec(0..12_u16, 0..4)), 0..60),
            deadline: bool,
        ) {
            let mesh = Mesh::new(members, groups.min(members), rf, 12);
            let input = mesh.input(hash);
            let (mut scatter, actions) = Scatter::start(&input, &mesh.all());
            let mut waiting: Vec<(AskId, MemberId, ShardSet)> = asks(&actions);
            let mut banned: BTreeSet<(MemberId, ShardId)> = BTreeSet::new();
            let mut shards_of: BTreeMap<AskId, ShardSet> = waiting.iter().map(|(a, _, s)| (*a, s.clone())).collect();
            let mut answered: BTreeSet<AskId> = BTreeSet::new();
            let finishing = std::iter::repeat_n((0, 0, vec![]), 400);
            for (kind, index, refused) in events.into_iter().chain(finishing) {
                if waiting.is_empty() { break }
                let at = index % waiting.len();
                let (ask, member, shards) = waiting[at].clone();
                let actions = if kind == 4 {
                    scatter.late(&input, ask)
                } else {
                    waiting.remove(at);
                    let outcome = match kind {
                        0 | 1 => { answered.insert(ask); Outcome::Answered }
                        2 => { banned.extend((0..12).map(|s| (member.clone(), ShardId(s)))); Outcome::Failed }
                        _ => {
                            let named: ShardSet = refused.iter().copied().map(ShardId).collect();
                            banned.extend(shards.iter().filter(|s| named.contains(*s)).map(|s| (member.clone(), s)));
                            Outcome::NotServed { shards: named }
                        }
                    };
                    scatter.on(&input, ask, outcome)
                };
                for ask in cancels(&actions) { waiting.retain(|(a, _, _)| *a != ask); }
                for (ask, member, shards) in asks(&actions) {
                    prop_assert!(shards.iter().all(|s| !banned.contains(&(member.clone(), s))), "asked again");
                    shards_of.insert(ask, shards.clone());
                    waiting.push((ask, member, shards));
                }
                if deadline && answered.len() > 1 { break }
            }
            prop_assert_eq!(scatter.is_finished(), waiting.is_empty());
            scatter.deadline();
            prop_assert!(scatter.is_finished());
            let finished = scatter.finish();
            let mut seen = finished.missing.clone();
            for ask in &finished.answers {
                prop_assert!(answered.contains(ask));
                for s in shards_of[ask].iter() { prop_assert!(seen.insert(s), "twice"); }
            }
            prop_assert_eq!(seen, mesh.all());
        }
    }
}
