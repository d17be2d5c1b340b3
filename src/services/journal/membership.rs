//! Copies of members that have another store, or belong to the mesh no more.
//!
//! Rule: a member writes of its own store only, and only once the mesh's record lists it; that others were left out is read from
//! a majority before it is written. Must not know: how copies are filled.

use std::collections::{BTreeMap, BTreeSet};

use super::driver::{Done, Driver};
use super::records::PATIENCE;
use crate::proto::journal::membership;
use crate::proto::journal::record::Change;
use crate::proto::ledger::Answer;
use crate::types::{
    JournalKey, JournalRecord, MemberId, MeshRecord, PhysicalIndex, RecordKey, ShardCopy, ShardId, ShardState, StoreId,
    Versioned,
};

/// Who belongs to the mesh, by this member's copy of the record.
#[derive(Debug, Default)]
pub(super) struct Membership {
    version: u64,
    /// With their stores; empty before there is a mesh.
    present: BTreeMap<MemberId, StoreId>,
    /// Learners here whose nodes have what they are to have.
    filled: BTreeSet<JournalKey>,
    /// A majority is being asked.
    reading: bool,
}

fn present(record: &MeshRecord) -> impl Iterator<Item = (MemberId, StoreId)> {
    record.present().map(|member| (member.id.clone(), member.store))
}

impl Membership {
    /// Takes in the mesh's record; says whether others are listed, or other stores.
    pub(super) fn take(&mut self, mesh: Option<&Versioned>) -> bool {
        let Some(copy) = mesh.filter(|copy| copy.version > self.version) else { return false };
        self.version = copy.version;
        // One that can't be read is reported by who reads it first; the one before stays in use.
        let Ok(record) = MeshRecord::from_json(&copy.value) else { return false };
        let before = std::mem::replace(&mut self.present, present(&record).collect());
        before != self.present
    }

    /// Who is no learner of a shard is not remembered as a full one: it may be a learner once more.
    pub(super) fn forget_full(&mut self, index: &PhysicalIndex, record: &JournalRecord, own: &MemberId) {
        let learns = |shard| record.shard(shard).and_then(|state| state.copy(own)).is_some_and(ShardCopy::is_learner);
        self.filled.retain(|key| key.index != *index || learns(key.shard));
    }

    fn left_out(&self, state: &ShardState) -> bool {
        !self.present.is_empty() && state.replicas.iter().any(|copy| !self.present.contains_key(&copy.id.member))
    }
}

impl Driver {
    fn shards_of(&self, index: &PhysicalIndex) -> impl Iterator<Item = (ShardId, &ShardState)> {
        let record = self.indexes.get(index).map(|known| &known.record);
        record.into_iter().flat_map(|record: &std::sync::Arc<JournalRecord>| (0..).map(ShardId).zip(&record.shards))
    }

    /// Changes of this member's own copies: its new store comes into the place of its old one, what is filled is full, and what is
    /// damaged is to be filled. A home of tasks is made from its journal alone, so it is as full as that.
    pub(super) fn own_places(&self, index: &PhysicalIndex) -> impl Iterator<Item = (ShardId, Change)> {
        let (me, by, min) = (&self.me, self.holder(), self.config.core.min_in_sync);
        let listed = self.membership.present.get(&me.member) == Some(&me.store);
        let shards = self.shards_of(index).filter(move |_| listed);
        shards.filter_map(move |(shard, state)| {
            let key = JournalKey { index: index.clone(), shard };
            let broken = self.broken.contains(&key);
            let filled = !broken && (index.is_of_tasks() || self.membership.filled.contains(&key));
            let full = || membership::is_full(state, me, &by, min).filter(|_| filled);
            let back = || membership::step_back(state, me, &by, min).filter(|_| broken);
            Some((shard, membership::take_place(state, me, &by, min).or_else(full).or_else(back)?))
        })
    }

    /// A learner's node has what it is to have.
    pub(super) fn is_filled(&mut self, key: JournalKey) {
        let index = key.index.clone();
        self.membership.filled.insert(key);
        self.look_at(&index);
    }

    /// Whether copies of an index are of members that are not listed, as far as is known here, and can be taken out.
    pub(super) fn has_left_out(&self, index: &PhysicalIndex) -> bool {
        let (present, by) = (self.membership.present.keys().cloned().collect(), self.holder());
        let goes = |state: &ShardState| membership::leave_out(state, &present, &by).is_some();
        self.shards_of(index).any(|(_, state)| self.membership.left_out(state) && goes(state))
    }

    /// Asks a majority who belongs to the mesh: the copy here may be older than a member.
    pub(super) fn read_members(&mut self) {
        if std::mem::replace(&mut self.membership.reading, true) {
            return;
        }
        let ledger = self.ledger.clone();
        self.done.spawn(async move {
            let record = match ledger.read(RecordKey::mesh(), PATIENCE).await {
                Answer::Read { current: Some(current), .. } => MeshRecord::from_json(&current.value).ok(),
                _ => None,
            };
            Ok(Done::Listed(record.map(|record| present(&record).map(|(member, _)| member).collect())))
        });
    }

    /// A majority has said who belongs to the mesh; `None`: it could not be asked, and is asked again.
    pub(super) fn leave_out(&mut self, present: Option<BTreeSet<MemberId>>) {
        self.membership.reading = false;
        let (Some(present), by) = (present, self.holder()) else { return };
        let mut wanted = Vec::new();
        for index in self.indexes.keys() {
            for (shard, state) in self.shards_of(index) {
                let key = JournalKey { index: index.clone(), shard };
                wanted.extend(membership::leave_out(state, &present, &by).map(|change| (key, change)));
            }
        }
        for (key, change) in wanted {
            tracing::info!(%key, "copies of members that belong to the mesh no more are taken out");
            self.asks.ask(key, change);
        }
    }
}
