//! How survivors go on when a majority is gone for good: an operator's written order.
//!
//! The member that gets the order asks every named survivor to leave the old mesh, for good and durably, and to hand over
//! its registers and copies. When all of them have, it merges these, and is the one voter of a new mesh; the others join
//! that and become voters by ordinary changes. The old majority can't come back beside it: the survivors are not in
//! its mesh any more.
//!
//! Of each key the copy is taken, which was chosen, unless a voter has accepted a later version: then the value of the
//! highest ballot. What only the lost ones knew is lost.
//!
//! Two orders may cross, because operators give them to two members. Of two the one with the higher new id stands, at every
//! member, so that one leader is left; who has taken part in an order draws a higher one for the next, and begins none for
//! the same survivors. Rule: nothing is merged before everybody has left. Must not know: why the hosts are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::base::Base;
use super::effect::{Effect, Notice, RecoveringRow, Row};
use super::message::{Item, RecoverRow, RoundId};
use crate::proto::env::{Env, Instant};
use crate::types::limits::{LEDGER_ITEMS_MAX, LEDGER_MESSAGE_MAX_BYTES};
use crate::types::{
    Ballot, MemberId, MemberState, MeshId, MeshRecord, RecordKey, StoreId, Versioned, VoterList, VotersState,
};

/// How far a survivor has come.
#[derive(Debug, Clone, Default)]
struct Progress {
    after: Option<RecordKey>,
    done: Option<StoreId>,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Recovering {
    due: Instant,
    round: Option<RoundId>,
    progress: BTreeMap<MemberId, Progress>,
    merged: BTreeMap<RecordKey, RecoverRow>,
}

impl Recovering {
    /// When [`Recovering::tick`] is due, while this member leads a recovery.
    pub fn next_wake(&self, base: &Base) -> Option<Instant> {
        leads(base).map(|_| self.due)
    }

    /// The operator's order, given to this member.
    pub fn order(&mut self, base: &mut Base, env: &mut Env, survivors: BTreeSet<MemberId>) {
        let Some((old, _)) = base.stored.mesh.filter(|_| survivors.contains(&base.config.member)) else { return };
        // Whoever has just joined the mesh that an order has made has no record of it yet, or one without the lost ones.
        let loses = |r: &MeshRecord| r.mesh == old && r.present().any(|m| !survivors.contains(&m.id));
        if !base.record().is_some_and(|(_, record)| loses(&record)) {
            return;
        }
        let known = base.stored.recovering.as_ref();
        if known.is_some_and(|known| known.old == old && known.survivors == survivors) {
            // It is being followed; it may be that another member leads it.
            self.due = env.now;
            return self.tick(base, env);
        }
        let new = above(known.map(|known| known.new), MeshId(env.random_id()));
        let leader = base.config.member.clone();
        base.persist(Row::Recovering(RecoveringRow { old, new, leader, survivors }));
        *self = Self { due: env.now, ..Self::default() };
        self.tick(base, env);
    }

    /// Asks the survivors that have not handed over everything.
    pub fn tick(&mut self, base: &mut Base, env: &mut Env) {
        let Some(order) = leads(base).cloned() else { return };
        if env.now < self.due {
            return;
        }
        self.due = env.now.plus(base.config.round_timeout.saturating_mul(2));
        let missing: BTreeSet<_> = order.survivors.iter().filter(|m| !self.is_done(m)).cloned().collect();
        for member in &missing {
            self.ask(base, &order, member);
        }
        // What this member hands over to itself is there before the step ends.
        let missing = missing.into_iter().filter(|m| *m != base.config.member).collect();
        base.notice(Notice::Recovering { new: order.new, leader: order.leader, missing });
    }

    /// The survivors that have not handed over everything; known to the member that makes the new mesh.
    pub fn missing(&self, base: &Base) -> BTreeSet<MemberId> {
        let survivors = leads(base).into_iter().flat_map(|order| &order.survivors);
        survivors.filter(|m| !self.is_done(m)).cloned().collect()
    }

    fn is_done(&self, member: &MemberId) -> bool {
        self.progress.get(member).is_some_and(|p| p.done.is_some())
    }

    fn ask(&mut self, base: &mut Base, order: &RecoveringRow, member: &MemberId) {
        let round = *self.round.get_or_insert_with(|| base.round_id());
        let after = self.progress.entry(member.clone()).or_default().after.clone();
        let survivors = order.survivors.clone();
        let item = Item::RecoverAsk { round, old: order.old, new: order.new, survivors, after };
        base.send(member, None, None, item);
    }

    /// A member that has the order asks this one: leaves the mesh and hands over a page. Says whether it has left now.
    pub fn asked(
        base: &mut Base,
        from: &MemberId,
        round: RoundId,
        row: RecoveringRow,
        after: Option<RecordKey>,
    ) -> bool {
        let ours = base.stored.mesh.is_some_and(|(mesh, _)| mesh == row.old);
        if !ours || !row.survivors.contains(&base.config.member) || !row.survivors.contains(from) {
            return false;
        }
        let known = base.stored.recovering.as_ref();
        let leaves = known != Some(&row);
        if known.is_some_and(|known| leaves && known.old == row.old && known.new >= row.new) {
            return false;
        }
        if leaves {
            if *from != base.config.member {
                let (new, leader) = (row.new, row.leader.clone());
                base.notice(Notice::Recovering { new, leader, missing: BTreeSet::new() });
            }
            base.persist(Row::Recovering(row));
        }
        let (rows, more) = page(base, after.as_ref());
        base.send(from, None, None, Item::RecoverPage { round, after, rows, more });
        leaves
    }

    /// A page of a survivor. Says whether the new mesh is made now.
    pub fn page(
        &mut self,
        base: &mut Base,
        from: &MemberId,
        store: StoreId,
        round: RoundId,
        after: Option<&RecordKey>,
        (rows, more): (Vec<RecoverRow>, bool),
    ) -> bool {
        let Some(order) = leads(base).cloned() else { return false };
        let Some(progress) = self.progress.get_mut(from) else { return false };
        if self.round != Some(round) || progress.done.is_some() || progress.after.as_ref() != after {
            return false;
        }
        progress.after = rows.last().map(|r| r.key.clone()).or(progress.after.take());
        progress.done = (!more).then_some(store);
        rows.into_iter().for_each(|row| merge(&mut self.merged, row));
        if more {
            self.ask(base, &order, from);
        } else if order.survivors.iter().all(|m| self.is_done(m)) {
            return self.install(base, &order);
        }
        false
    }

    /// Everybody has left and handed over: this member is the new mesh.
    fn install(&mut self, base: &mut Base, order: &RecoveringRow) -> bool {
        let merged = std::mem::take(&mut self.merged);
        let top = merged.values().filter_map(|r| r.promise.as_ref()).map(|b| b.counter).max().unwrap_or(0);
        let ballot = Ballot { counter: top + 1, member: base.config.member.clone(), start: base.stored.start };
        let values: BTreeMap<_, _> = merged.into_values().filter_map(|r| Some((r.key.clone(), taken(r)?))).collect();
        let known =
            values.get(&RecordKey::mesh()).and_then(|v| Some((v.version, MeshRecord::from_json(&v.value).ok()?)));
        let Some((version, mut record)) = known else { return false };
        record.mesh = order.new;
        record.voters_state = VotersState::Settled;
        record.voters = VoterList::new(record.voters.number + 1, vec![base.me()]);
        for member in &mut record.members {
            match self.progress.get(&member.id).and_then(|p| p.done) {
                Some(store) => member.store = store,
                None => member.state = MemberState::Removed,
            }
        }
        base.persist(Row::Reset);
        base.persist(Row::Mesh { mesh: order.new, made: true });
        base.persist(Row::List(Arc::new(record.voters.clone())));
        let mesh = Versioned { version: version + 1, announced: version + 1, value: record.to_json().into() };
        let mesh = std::iter::once((RecordKey::mesh(), mesh));
        for (key, record) in values.into_iter().filter(|(key, _)| !key.is_mesh()).chain(mesh) {
            base.persist(Row::Accepted {
                key: key.clone(),
                promise: ballot.clone(),
                ballot: ballot.clone(),
                record: record.clone(),
            });
            base.learn(&key, &record);
        }
        base.effects.push_back(Effect::Joined { mesh: order.new });
        *self = Self::default();
        true
    }
}

fn leads(base: &Base) -> Option<&RecoveringRow> {
    base.stored.recovering.as_ref().filter(|r| r.leader == base.config.member)
}

/// An id above the one that is known, drawn with `random`.
fn above(known: Option<MeshId>, random: MeshId) -> MeshId {
    let (known, random) = (known.map_or(0, |id| u128::from_be_bytes(id.0)), u128::from_be_bytes(random.0));
    let room = u128::MAX - known;
    MeshId((known + random % room.max(1) + u128::from(room > 0)).to_be_bytes())
}

fn merge(merged: &mut BTreeMap<RecordKey, RecoverRow>, row: RecoverRow) {
    let Some(known) = merged.get_mut(&row.key) else {
        merged.insert(row.key.clone(), row);
        return;
    };
    known.promise = known.promise.take().max(row.promise);
    known.accepted = known.accepted.take().max(row.accepted);
    known.copy = known.copy.take().max(row.copy);
}

/// The value that is taken of a key.
fn taken(row: RecoverRow) -> Option<Versioned> {
    match (row.accepted, row.copy) {
        (Some((_, accepted)), Some(copy)) => Some(if accepted.version > copy.version { accepted } else { copy }),
        (accepted, copy) => copy.or(accepted.map(|(_, record)| record)),
    }
}

/// Some of what this member has, behind `after`.
fn page(base: &Base, after: Option<&RecordKey>) -> (Vec<RecoverRow>, bool) {
    let keys = base.keys_behind(after);
    let (mut rows, mut bytes, all) = (Vec::new(), 0, keys.len());
    for key in keys {
        let register = base.stored.registers.get(key).cloned().unwrap_or_default();
        let copy = base.stored.copies.get(key).cloned();
        let row = RecoverRow { key: key.clone(), promise: register.promise, accepted: register.accepted, copy };
        bytes += row.weight();
        // The first row always fits: a message holds two values and more.
        if rows.len() == LEDGER_ITEMS_MAX || bytes > LEDGER_MESSAGE_MAX_BYTES {
            break;
        }
        rows.push(row);
    }
    let more = rows.len() < all;
    (rows, more)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(accepted: Option<(u64, u64)>, copy: Option<u64>) -> RecoverRow {
        let value = |version, text: String| Versioned { version, announced: version, value: text.into() };
        let ballot = |counter| Ballot { counter, member: MemberId::new("a").unwrap(), start: 1 };
        RecoverRow {
            key: RecordKey::new("k").unwrap(),
            promise: accepted.map(|(b, _)| ballot(b)),
            accepted: accepted.map(|(b, v)| (ballot(b), value(v, format!("ballot {b}")))),
            copy: copy.map(|v| value(v, "copy".to_owned())),
        }
    }

    fn of(rows: Vec<RecoverRow>) -> Option<String> {
        let mut merged = BTreeMap::new();
        rows.into_iter().for_each(|r| merge(&mut merged, r));
        merged.into_values().next().and_then(taken).map(|v| format!("{} {}", v.version, v.value))
    }

    #[test]
    fn the_value_of_the_highest_ballot_is_taken() {
        assert_eq!(of(vec![row(Some((3, 2)), None), row(Some((5, 2)), None)]), Some("2 ballot 5".to_owned()));
    }

    #[test]
    fn a_copy_was_chosen_and_yields_to_later_versions_only() {
        assert_eq!(of(vec![row(Some((9, 2)), None), row(None, Some(2))]), Some("2 copy".to_owned()));
        assert_eq!(of(vec![row(Some((9, 3)), Some(2)), row(None, None)]), Some("3 ballot 9".to_owned()));
    }

    #[test]
    fn the_next_order_stands_above_the_one_that_is_known() {
        let id = |n: u128| MeshId(n.to_be_bytes());
        for random in [0, 1, 7, u128::MAX - 1, u128::MAX] {
            for known in [0, 5, u128::MAX / 2, u128::MAX - 1] {
                assert!(above(Some(id(known)), id(random)) > id(known), "{known} {random}");
            }
        }
        assert_ne!(above(None, id(0)), MeshId::NONE);
    }

    #[test]
    fn a_key_with_promises_only_has_no_value() {
        assert_eq!(of(vec![row(None, None)]), None);
    }
}
