//! How a mesh is made, once.
//!
//! The first member of the bootstrap list asks all the others what they know. Each that knows nothing gives it a number,
//! stored, and from then on takes part only in the mesh of the last member that it gave one to, under that number. When
//! *every* member has given one, and has the same list, the maker has the record accepted by an ordinary round under the
//! first voter list. A voter that has accepted it belongs to that mesh, and may carry the round to its end.
//!
//! Why numbers: the maker may lose its disk after it began. Its next life asks again, and what the former one said is
//! refused by everybody who has answered since; whoever accepted it before says so instead of giving a number.
//!
//! A member without a mesh that hears of one that is made joins it. Rule: no mesh is made while one may exist. Must not
//! know: how rounds work.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use twox_hash::XxHash64;

use super::base::{Base, Proposed};
use super::effect::{Bootstrap, Effect, FormingRow, Notice, Row};
use super::message::{Header, Item, Knows, RoundId};
use super::proposer::{Job, Origin, Proposer, Want};
use super::voters;
use crate::proto::env::{Env, Instant};
use crate::types::limits::MEMBERS_MAX;
use crate::types::{
    MemberId, MemberState, MeshId, MeshMember, MeshRecord, RecordKey, StoreId, Versioned, Voter, VoterList, VotersState,
};

/// See the module.
#[derive(Debug)]
pub struct Forming {
    due: Instant,
    /// Whom to ask besides the bootstrap list.
    pub peers: BTreeSet<MemberId>,
    /// The attempt under way.
    round: Option<RoundId>,
    /// Who has given a number in it, from which store.
    answers: BTreeMap<MemberId, (StoreId, u64)>,
    /// Who has accepted the record already.
    begun: BTreeSet<MemberId>,
    /// The round is under way; until then it counts as lost.
    making: Option<Instant>,
}

/// The same on all members with the same list; 0 without one.
pub fn hash(bootstrap: Option<&Bootstrap>) -> u64 {
    let Some(b) = bootstrap else { return 0 };
    let mut text = format!("{} {}\n", b.rf, b.shards);
    for m in &b.members {
        text.push_str(&format!("{} {} {} {}\n", m.id, m.group, m.address, m.witness));
    }
    XxHash64::oneshot(0, text.as_bytes()).max(1)
}

impl Forming {
    /// Nothing asked yet.
    pub fn new(now: Instant) -> Self {
        Self {
            due: now,
            peers: BTreeSet::new(),
            round: None,
            answers: BTreeMap::new(),
            begun: BTreeSet::new(),
            making: None,
        }
    }

    /// When [`Forming::tick`] is due; `None` once there is nothing to ask.
    pub fn next_wake(&self, base: &Base) -> Option<Instant> {
        (!base.made() || base.stored.recovering.is_some()).then_some(self.due)
    }

    /// Asks around.
    pub fn tick(&mut self, base: &mut Base, env: &mut Env) {
        if env.now < self.due || self.next_wake(base).is_none() {
            return;
        }
        self.due = env.now.plus(env.jitter(base.config.round_timeout.saturating_mul(2)));
        if self.making.is_some_and(|until| until <= env.now) {
            self.making = None;
        }
        if self.making.is_some() {
            return;
        }
        let unfinished = base.stored.mesh.is_some() && base.stored.recovering.is_none();
        let me = &base.config.member;
        let makes = base.stored.mesh.is_none()
            && base.config.bootstrap.as_ref().is_some_and(|b| b.members.first().is_some_and(|m| m.id == *me));
        let mut asked = self.peers.clone();
        asked.extend(base.config.bootstrap.iter().flat_map(|b| b.members.iter().map(|m| m.id.clone())));
        asked.extend(base.stored.list.iter().flat_map(|l| l.voters.iter().map(|v| v.member.clone())));
        asked.extend(base.stored.recovering.iter().flat_map(|r| r.survivors.iter().cloned()));
        let bind = makes || unfinished;
        if !bind {
            asked.remove(me);
        }
        let round = *self.round.get_or_insert_with(|| base.round_id());
        let hash = hash(base.config.bootstrap.as_ref());
        for member in asked.iter().filter(|m| !self.answers.contains_key(m)).take(2 * MEMBERS_MAX) {
            base.send(member, None, base.stored.list.clone(), Item::FormAsk { round, hash, bind });
        }
        if makes {
            self.wait_for(base);
        }
    }

    fn wait_for(&self, base: &mut Base) {
        let all = base.config.bootstrap.iter().flat_map(|b| b.members.iter().map(|m| m.id.clone()));
        let members: BTreeSet<_> = all.filter(|m| !self.answers.contains_key(m)).collect();
        if !members.is_empty() {
            base.notice(Notice::Waiting { members });
        }
    }

    /// A member asks what this one knows.
    pub fn asked(base: &mut Base, from: &MemberId, header: &Header, round: RoundId, hash: u64, bind: bool) {
        let own = self::hash(base.config.bootstrap.as_ref());
        let frozen = base.stored.recovering.is_some();
        let knows = match (base.stored.mesh, base.stored.list.clone()) {
            (Some((mesh, true)), Some(list)) if !frozen => Knows::Made { mesh, list },
            (Some((mesh, _)), _) => Knows::Begun { mesh },
            (None, _) if bind && hash == own => Knows::Nothing { number: give(base, from, header, round) },
            (None, _) => Knows::Nothing { number: 0 },
        };
        base.send(from, Some(header.sender.store), None, Item::FormAnswer { round, hash: own, knows });
    }

    /// A member says what it knows.
    #[expect(clippy::too_many_arguments, reason = "the parts of one answer")]
    pub fn answered(
        &mut self,
        base: &mut Base,
        env: &mut Env,
        proposer: &mut Proposer,
        from: &MemberId,
        store: StoreId,
        round: RoundId,
        hash: u64,
        knows: Knows,
    ) {
        match knows {
            Knows::Made { mesh, list } => return self.heard_of(base, env, proposer, from, mesh, &list),
            Knows::Begun { mesh } => {
                if base.stored.mesh.is_some_and(|(own, _)| own == mesh) && self.round == Some(round) {
                    self.begun.insert(from.clone());
                }
            }
            Knows::Nothing { .. } if hash != self::hash(base.config.bootstrap.as_ref()) => {
                if hash != 0 {
                    base.notice(Notice::OtherBootstrap { member: from.clone() });
                }
                return;
            }
            Knows::Nothing { number } if number > 0 && self.round == Some(round) => {
                self.answers.insert(from.clone(), (store, number));
            }
            Knows::Nothing { .. } => return,
        }
        match base.stored.mesh {
            None => self.make(base, env, proposer),
            Some((mesh, false)) => self.finish(base, env, proposer, mesh),
            Some(_) => {}
        }
    }

    /// Every member has given a number: makes the mesh.
    fn make(&mut self, base: &mut Base, env: &mut Env, proposer: &mut Proposer) {
        let Some(bootstrap) = base.config.bootstrap.clone().filter(|_| self.making.is_none()) else { return };
        let first = bootstrap.members.first().is_some_and(|m| m.id == base.config.member);
        if !first || !bootstrap.members.iter().all(|m| self.answers.contains_key(&m.id)) {
            return;
        }
        let mesh = MeshId(env.random_id());
        let member = |m: &super::effect::BootstrapMember| MeshMember {
            id: m.id.clone(),
            group: m.group.clone(),
            address: m.address.clone(),
            store: self.answers[&m.id].0,
            state: MemberState::Active,
            witness: m.witness,
        };
        let members: Vec<_> = bootstrap.members.iter().map(member).collect();
        // With the maker as the one voter so far it is among those that are chosen.
        let own = VoterList::new(1, vec![base.me()]);
        let chosen = voters::target(&members, &own, &BTreeSet::new());
        let voter = |m: &&MeshMember| chosen.contains(&m.id);
        let list = members.iter().filter(voter).map(|m| Voter { member: m.id.clone(), store: m.store }).collect();
        let voters = VoterList::new(1, list);
        let list = Arc::new(voters.clone());
        let record = MeshRecord {
            mesh,
            members,
            voters,
            voters_state: VotersState::Settled,
            rf: bootstrap.rf,
            shards: bootstrap.shards,
        };
        let numbers = self.answers.iter().map(|(m, (_, number))| (m.clone(), *number)).collect();
        base.proposed = Some(Proposed { mesh, list, numbers });
        let want = Want::Change { expected: 0, value: record.to_json().into(), quiet: false };
        self.run(base, env, proposer, want);
    }

    /// This voter has accepted the record of a mesh that nobody says is made: carries the round to its end.
    fn finish(&mut self, base: &mut Base, env: &mut Env, proposer: &mut Proposer, mesh: MeshId) {
        let Some(list) = base.stored.list.clone() else { return };
        let ready = |v: &&Voter| self.answers.contains_key(&v.member) || self.begun.contains(&v.member);
        if self.making.is_some() || list.voters.iter().filter(ready).count() < list.majority() {
            return;
        }
        let numbers = self.answers.iter().map(|(m, (_, number))| (m.clone(), *number)).collect();
        base.proposed = Some(Proposed { mesh, list, numbers });
        self.run(base, env, proposer, Want::Rewrite);
    }

    fn run(&mut self, base: &mut Base, env: &mut Env, proposer: &mut Proposer, want: Want) {
        let until = env.now.plus(base.config.round_timeout.saturating_mul(8));
        self.making = Some(until);
        proposer.add(base, env, &RecordKey::mesh(), Job::new(Origin::Forming, want, until));
    }

    /// The round of the making has ended. Whether the mesh is made, its copy says.
    pub fn ended(&mut self, base: &mut Base, now: Instant) {
        base.proposed = None;
        self.making = None;
        self.round = None;
        self.answers.clear();
        self.begun.clear();
        self.due = now.plus(base.config.round_timeout);
    }

    /// Somebody belongs to a mesh that is made.
    pub fn heard_of(
        &mut self,
        base: &mut Base,
        env: &mut Env,
        proposer: &mut Proposer,
        from: &MemberId,
        mesh: MeshId,
        list: &Arc<VoterList>,
    ) {
        let recovers = base.stored.recovering.as_ref().is_some_and(|r| r.new == mesh);
        match base.stored.mesh {
            Some((_, _)) if recovers => base.persist(Row::Reset),
            Some((own, true)) if own == mesh => return,
            Some((own, _)) if own != mesh => {
                base.notice(Notice::OtherMesh { member: from.clone(), mesh });
                return;
            }
            _ => {}
        }
        base.persist(Row::Mesh { mesh, made: true });
        if base.stored.list.as_ref().is_none_or(|l| l.number < list.number) {
            base.persist(Row::List(Arc::clone(list)));
        }
        base.effects.push_back(Effect::Joined { mesh });
        self.ended(base, env.now);
        proposer.relist(base, env);
    }
}

/// The number for a member that would make a mesh: the one it has, or the next.
fn give(base: &mut Base, from: &MemberId, header: &Header, round: RoundId) -> u64 {
    let last = base.stored.forming.as_ref();
    let store = header.sender.store;
    if let Some(last) = last.filter(|f| f.member == *from && f.store == store && f.round == round) {
        return last.number;
    }
    let number = last.map_or(0, |f| f.number).saturating_add(1);
    base.persist(Row::Forming(FormingRow { member: from.clone(), store, round, number }));
    number
}

/// Whether this member, which belongs to no mesh, may vote in the one that the sender is making.
pub fn admits(base: &Base, from: &MemberId, header: &Header) -> bool {
    let Some(last) = base.stored.forming.as_ref().filter(|_| base.stored.mesh.is_none()) else { return false };
    let sender = &header.sender;
    last.member == *from
        && last.store == sender.store
        && last.round.start == sender.start
        && header.forming == Some(last.number)
        && header.list.as_ref().is_some_and(|l| l.has(&base.me()))
}

/// Whether a record may be the first of the mesh that the header names.
pub fn is_first(header: &Header, key: &RecordKey, record: &Versioned) -> bool {
    let (Some(mesh), Some(list)) = (header.mesh, &header.list) else { return false };
    key.is_mesh()
        && MeshRecord::from_json(&record.value)
            .is_ok_and(|r| r.mesh == mesh && r.voters == **list && r.voters_state == VotersState::Settled)
}
