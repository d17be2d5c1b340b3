//! How one voter list takes over from the one before.
//!
//! ```text
//! mesh record: settled n ──▶ settling n+1 (chosen under n) ──▶ raise a majority of n+1 ──▶ list its keys
//!                                                                 ──▶ rewrite each under n+1 ──▶ settled n+1
//! ```
//!
//! Why this order: two lists that differ by one voter have no two majorities apart, so rounds of n and of n+1 always
//! meet. Rounds of n and of n+2 need not. So before n+2 may begin, no round of n may be able to end any more (a majority
//! of n+1 refuses n: raised), and what ended under n must be held by a majority of n+1 (rewritten). The keys are taken
//! from the very voters that were raised, and afterwards: whatever was chosen under n was accepted by one of them before
//! it was raised, so its list has the key.
//!
//! A key with only a promise is rewritten too, and that is a promise: a full round that finds no value leaves a majority
//! of n+1 with a promise above every promise of n. Without it a value that one voter accepted under n could carry a
//! higher ballot than values that n+2 chooses, and be taken for newer one day.
//!
//! Rule: every step may be repeated by anyone at any time; each begins with what the mesh record says. Must not know: who
//! should vote (`voters`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::base::Base;
use super::effect::{Answer, Notice};
use super::message::{Item, RoundId};
use super::proposer::{Job, Origin, Proposer, Want};
use super::voters;
use crate::proto::env::{Env, Instant};
use crate::types::{MemberId, MeshRecord, RecordKey, Voter, VoterList, VotersState};

/// Keys that are rewritten at the same time.
const REWRITES_MAX: usize = 64;

/// How far this member has come with the change that it drives.
#[derive(Debug, Clone, Default)]
enum Stage {
    /// It drives none.
    #[default]
    Idle,
    /// The new list is being written under the old one.
    Writing,
    /// The new list's voters are asked to refuse the old one.
    Raising { list: Arc<VoterList>, raised: BTreeSet<Voter> },
    /// Those who do are asked for their keys: who is behind which key still.
    Listing { list: Arc<VoterList>, from: BTreeMap<Voter, Option<RecordKey>>, keys: BTreeSet<RecordKey> },
    /// Each key goes through a full round under the new list.
    Rewriting { list: Arc<VoterList>, left: BTreeSet<RecordKey>, under_way: BTreeSet<RecordKey> },
    /// The mesh record is told that the list is settled.
    Finishing { number: u64 },
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Settle {
    stage: Stage,
    /// Names the attempt: what an earlier one asked for counts no more.
    attempt: RoundId,
    since: Instant,
    due: Instant,
    /// Since when the mesh record has called for work: list number and whether it is settled.
    noticed: Option<(u64, bool, Instant)>,
}

impl Settle {
    /// Nothing under way.
    pub fn new(now: Instant) -> Self {
        Self { stage: Stage::Idle, attempt: RoundId { start: 0, number: 0 }, since: now, due: now, noticed: None }
    }

    /// When [`Settle::tick`] is due.
    pub fn next_wake(&self) -> Instant {
        self.due
    }

    /// Looks at the mesh record and begins, goes on, or gives up.
    pub fn tick(&mut self, base: &mut Base, env: &mut Env, proposer: &mut Proposer) {
        if env.now < self.due {
            return;
        }
        self.due = env.now.plus(base.config.renew_interval);
        let current = base.stored.list.clone().filter(|_| base.made());
        let record = base.record().filter(|(_, r)| current.as_ref().is_some_and(|l| r.voters.number == l.number));
        let Some((version, record)) = record else {
            self.stage = Stage::Idle;
            return;
        };
        if record.voters_state == VotersState::Settling {
            self.go_on(base, env, proposer, &record);
        } else {
            self.begin(base, env, proposer, version, record);
        }
    }

    /// Members take turns, so that they rarely do the same work: the first voter at once, the others later.
    fn is_my_turn(&mut self, base: &Base, now: Instant, list: &VoterList, settled: bool) -> bool {
        let since = match self.noticed {
            Some((number, was, since)) if (number, was) == (list.number, settled) => since,
            _ => now,
        };
        self.noticed = Some((list.number, settled, since));
        let me = &base.config.member;
        let place = list.voters.iter().position(|v| v.member == *me);
        let rank = place.unwrap_or(list.voters.len());
        let wait = base.config.renew_interval.saturating_mul(u32::try_from(2 * rank).unwrap_or(u32::MAX));
        now.since(since) >= wait
    }

    /// The list is settled: is another one due?
    fn begin(&mut self, base: &mut Base, env: &mut Env, proposer: &mut Proposer, version: u64, record: MeshRecord) {
        if matches!(self.stage, Stage::Writing) {
            return;
        }
        self.stage = Stage::Idle;
        let Some(next) = voters::next(&record, &silent(base, &record, env.now)) else {
            self.noticed = None;
            return;
        };
        if !self.is_my_turn(base, env.now, &record.voters, true) {
            return;
        }
        let value = MeshRecord { voters: next, voters_state: VotersState::Settling, ..record };
        self.write(base, env, proposer, version, &value);
        self.stage = Stage::Writing;
    }

    fn write(&mut self, base: &mut Base, env: &mut Env, proposer: &mut Proposer, expected: u64, record: &MeshRecord) {
        self.attempt = base.round_id();
        let want = Want::Change { expected, value: record.to_json().into(), quiet: false };
        let job = Job::new(Origin::Voters(self.attempt), want, patience(base, env));
        proposer.add(base, env, &RecordKey::mesh(), job);
    }

    /// The list is not settled: does anybody see to it?
    fn go_on(&mut self, base: &mut Base, env: &mut Env, proposer: &mut Proposer, record: &MeshRecord) {
        let number = record.voters.number;
        let drives = match &self.stage {
            Stage::Idle | Stage::Writing => false,
            Stage::Raising { list, .. } | Stage::Listing { list, .. } => {
                // Unanswered questions are asked anew, all of them: others may have become the majority.
                list.number == number && env.now.since(self.since) < base.config.round_timeout.saturating_mul(4)
            }
            Stage::Rewriting { list, .. } => list.number == number,
            Stage::Finishing { number: finishing } => *finishing == number,
        };
        if drives {
            self.rewrite(base, env, proposer);
        } else if !matches!(self.stage, Stage::Idle) || self.is_my_turn(base, env.now, &record.voters, false) {
            self.raise(base, env);
        }
    }

    /// Asks the new list's voters to refuse the old one.
    fn raise(&mut self, base: &mut Base, env: &Env) {
        let Some(list) = base.stored.list.clone() else { return };
        base.notice(Notice::VotersChanging { number: list.number });
        self.attempt = base.round_id();
        self.since = env.now;
        base.send_voters(&list, &Item::Raise { round: self.attempt });
        self.stage = Stage::Raising { list, raised: BTreeSet::new() };
    }

    /// A voter refuses the old list from now on.
    pub fn raised(&mut self, base: &mut Base, env: &Env, voter: &Voter, under: u64, id: RoundId) {
        let Stage::Raising { list, raised } = &mut self.stage else { return };
        if id != self.attempt || under != list.number || !list.has(voter) || !raised.insert(voter.clone()) {
            return;
        }
        if raised.len() < list.majority() {
            return;
        }
        let (list, raised) = (Arc::clone(list), std::mem::take(raised));
        self.since = env.now;
        for voter in &raised {
            ask_keys(base, &list, voter, self.attempt, None);
        }
        let from = raised.into_iter().map(|v| (v, None)).collect();
        self.stage = Stage::Listing { list, from, keys: BTreeSet::new() };
    }

    /// A page of a raised voter's keys.
    #[expect(clippy::too_many_arguments, reason = "the parts of one answer")]
    pub fn listed(
        &mut self,
        base: &mut Base,
        env: &mut Env,
        proposer: &mut Proposer,
        voter: &Voter,
        under: u64,
        id: RoundId,
        after: Option<&RecordKey>,
        page: Vec<RecordKey>,
        more: bool,
    ) {
        let Stage::Listing { list, from, keys } = &mut self.stage else { return };
        let asked = from.get(voter).is_some_and(|at| at.as_ref() == after);
        if id != self.attempt || under != list.number || !asked {
            return;
        }
        self.since = env.now;
        let last = page.last().cloned();
        keys.extend(page);
        if more {
            ask_keys(base, list, voter, id, last.clone());
            from.insert(voter.clone(), last);
            return;
        }
        from.remove(voter);
        if from.is_empty() {
            let (list, left) = (Arc::clone(list), std::mem::take(keys));
            self.stage = Stage::Rewriting { list, left, under_way: BTreeSet::new() };
            self.rewrite(base, env, proposer);
        }
    }

    /// Begins as many rewrites as may be under way; after the last one the list is settled.
    fn rewrite(&mut self, base: &mut Base, env: &mut Env, proposer: &mut Proposer) {
        let deadline = patience(base, env);
        let Stage::Rewriting { list, left, under_way } = &mut self.stage else { return };
        let number = list.number;
        while under_way.len() < REWRITES_MAX
            && let Some(key) = left.pop_first()
        {
            under_way.insert(key.clone());
            proposer.add(base, env, &key, Job::new(Origin::Voters(self.attempt), Want::Rewrite, deadline));
        }
        if under_way.is_empty() {
            self.finish(base, env, proposer, number);
        }
    }

    fn finish(&mut self, base: &mut Base, env: &mut Env, proposer: &mut Proposer, number: u64) {
        let unfinished = |r: &MeshRecord| r.voters.number == number && r.voters_state == VotersState::Settling;
        let Some((version, record)) = base.record().filter(|(_, r)| unfinished(r)) else {
            self.stage = Stage::Idle;
            return;
        };
        let value = MeshRecord { voters_state: VotersState::Settled, ..record };
        self.write(base, env, proposer, version, &value);
        self.stage = Stage::Finishing { number };
    }

    /// An operation of the change has ended.
    pub fn ended(
        &mut self,
        base: &mut Base,
        env: &mut Env,
        proposer: &mut Proposer,
        id: RoundId,
        key: &RecordKey,
        answer: &Answer,
    ) {
        if id != self.attempt {
            return;
        }
        match (&mut self.stage, answer) {
            (Stage::Writing, Answer::Changed { .. }) => self.raise(base, env),
            (Stage::Rewriting { under_way, .. }, Answer::Read { .. }) => {
                under_way.remove(key);
                self.rewrite(base, env, proposer);
            }
            (Stage::Rewriting { under_way, left, .. }, _) => {
                // Left for the next tick.
                under_way.remove(key);
                left.insert(key.clone());
            }
            (Stage::Finishing { number }, Answer::Changed { .. }) => {
                let number = *number;
                base.notice(Notice::VotersSettled { number });
                self.stage = Stage::Idle;
                // Another change may be due.
                self.due = env.now;
            }
            (Stage::Finishing { number }, Answer::Conflict { .. }) => {
                let number = *number;
                self.finish(base, env, proposer, number);
            }
            _ => self.stage = Stage::Idle,
        }
    }
}

fn patience(base: &Base, env: &Env) -> Instant {
    env.now.plus(base.config.round_timeout.saturating_mul(16).max(Duration::from_secs(1)))
}

fn ask_keys(base: &mut Base, list: &Arc<VoterList>, voter: &Voter, round: RoundId, after: Option<RecordKey>) {
    let item = Item::Keys { round, after };
    base.send(&voter.member, Some(voter.store), Some(Arc::clone(list)), item);
}

/// Who has not been heard for so long that it should not vote, or not come to vote: a list may lose its majority by an
/// addition, so who is added must have been heard just now.
fn silent(base: &Base, record: &MeshRecord, now: Instant) -> BTreeSet<MemberId> {
    let votes = |id: &MemberId| record.voters.of_member(id).is_some();
    let quiet = |id: &MemberId| {
        let heard = base.heard.get(id).copied();
        let (replace_after, shown) = (base.config.voter_replace_after, base.config.renew_interval.saturating_mul(3));
        let patience = if votes(id) { replace_after } else { replace_after.min(shown) };
        // One that does not vote yet has to be heard before it does; a voter has had since this process began.
        heard.map_or(!votes(id), |at| now.since(at) >= patience)
    };
    let others = record.members.iter().map(|m| &m.id).filter(|id| **id != base.config.member);
    others.filter(|id| quiet(id)).cloned().collect()
}
