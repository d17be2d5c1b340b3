//! One copy of one shard: what it is told, and which role follows from that.
//!
//! The record decides the role: the process that it names as primary, in the store that it lists as in sync, orders the
//! writes; everybody else follows. A reign belongs to one process: one that has stored an epoch and was not put to
//! [rest](Replica::rest) in between does not go on with it. Rule: the highest epoch ever heard of counts, and nothing of a
//! lower one is taken. Must not know: which shard it is.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::effect::{Answer, Config, Effect, Hint, OpId, Rest, Rows, Sight, Stored};
use super::entry::{Entry, Stands, Write};
use super::follower::Follower;
use super::log::Log;
use super::message::{Message, Said};
use super::primary::Primary;
use super::record;
use crate::proto::env::{Env, Instant};
use crate::types::{Epoch, Holder, MemberId, Position, ReplicaId, ShardState, StoreId, TaskPart, TaskUid};

/// What both roles share.
#[derive(Debug, Clone)]
pub(super) struct Base {
    pub(super) id: ReplicaId,
    pub(super) start: u64,
    pub(super) config: Config,
    pub(super) log: Log,
    /// The newest that was heard.
    pub(super) record: Option<Arc<ShardState>>,
    /// The highest that was heard of.
    pub(super) epoch: Epoch,
    pub(super) sight: Sight,
    pub(super) applied: u64,
    pub(super) rebuild: bool,
    pub(super) effects: VecDeque<Effect>,
    /// Tokens under way, and since when.
    pub(super) stores: VecDeque<(u64, Instant)>,
    tokens: u64,
}

impl Base {
    /// This process.
    pub(super) fn me(&self) -> Holder {
        Holder { member: self.id.member.clone(), start: self.start }
    }

    /// The least size of the in-sync set.
    pub(super) fn min_in_sync(&self, record: &ShardState) -> usize {
        let copies = record.copies();
        self.config.min_in_sync.map_or_else(|| record::default_min_in_sync(copies), |min| min.clamp(1, copies.max(1)))
    }

    /// Makes rows durable together with what is known besides. The log has them already.
    pub(super) fn store(&mut self, now: Instant, rows: Rows) -> u64 {
        self.tokens += 1;
        let token = self.tokens;
        let rows = Rows { epoch: self.epoch, commit: self.log.commit(), rebuild: self.rebuild, ..rows };
        self.log.storing(token, self.epoch);
        self.stores.push_back((token, now));
        self.effects.push_back(Effect::Store { token, rows });
        token
    }

    /// Says something to a replica, of the reign known here.
    pub(super) fn send(&mut self, to: &MemberId, store: StoreId, said: Said) {
        let message = Message { to: store, from: self.id.store, epoch: self.epoch, said };
        self.effects.push_back(Effect::Send { to: to.clone(), message });
    }

    /// Entries up to `to` are committed.
    pub(super) fn commit(&mut self, to: u64) {
        if self.log.committed(to) {
            self.effects.push_back(Effect::Committed { to: self.log.commit() });
        }
    }

    /// A sender is told something.
    pub(super) fn answer(&mut self, op: OpId, answer: Answer) {
        self.effects.push_back(Effect::Answer { op, answer });
    }

    /// Who may be the primary.
    pub(super) fn hint(&self) -> Hint {
        let current = self.record.as_ref().filter(|r| r.epoch == self.epoch);
        let primary = current.and_then(|r| r.primary.clone()).filter(|p| p.member != self.id.member);
        Hint { primary, epoch: self.epoch }
    }

    /// Whether a replica is seen to live.
    pub(super) fn lives(&self, id: &ReplicaId) -> bool {
        self.sight.get(&id.member).is_some_and(|alive| alive.store == id.store)
    }

    pub(super) fn broken(&mut self, member: &MemberId, what: &'static str) {
        self.effects.push_back(Effect::Broken { member: member.clone(), what });
    }
}

#[derive(Debug, Clone)]
enum Role {
    Follower(Follower),
    Primary(Box<Primary>),
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Replica {
    base: Base,
    role: Role,
    wake: Option<Instant>,
}

impl Replica {
    /// Begins with what is durable, the record as this member knows it, and the members that it sees; `rest` is what
    /// [`Replica::rest`] gave when the same process took the replica out of memory.
    ///
    /// # Panics
    /// If the stored journal contradicts itself.
    pub fn recover(
        env: &mut Env,
        config: Config,
        me: (ReplicaId, u64),
        stored: Stored,
        record: Option<ShardState>,
        sight: Sight,
        rest: Option<Rest>,
    ) -> Self {
        let log = Log::new(config.memory, stored.log, stored.epoch);
        let epoch = stored.epoch.max(log.last().epoch);
        let base = Base {
            id: me.0,
            start: me.1,
            config,
            log,
            record: None,
            epoch,
            sight,
            applied: stored.applied,
            rebuild: stored.rebuild,
            effects: VecDeque::new(),
            stores: VecDeque::new(),
            tokens: 0,
        };
        let mut replica = Self { base, role: Role::Follower(Follower::default()), wake: None };
        if replica.base.rebuild {
            replica.base.effects.push_back(Effect::Rebuild);
        }
        if let Some(record) = record {
            replica.take_record(env, record, rest);
        }
        replica.run(env);
        replica
    }

    /// The record was changed. An older one than before is passed over; it must be durable.
    pub fn handle_record(&mut self, env: &mut Env, record: ShardState) {
        self.take_record(env, record, None);
        self.run(env);
    }

    /// Other members are seen to live, or not any more.
    pub fn handle_sight(&mut self, env: &mut Env, sight: Sight) {
        self.base.sight = sight;
        self.run(env);
    }

    /// A message from the member `from`, as the transport has proved it.
    pub fn handle_message(&mut self, env: &mut Env, from: &MemberId, message: Message) {
        if *from != self.base.id.member && message.to == self.base.id.store {
            match message.check() {
                Ok(()) => self.take_message(env, from, message),
                Err(_) => self.base.broken(from, "an append that breaks the bounds"),
            }
        }
        self.run(env);
    }

    /// A part to be written; answered once by [`Effect::Answer`], unless the process ends before.
    pub fn handle_write(&mut self, env: &mut Env, op: OpId, write: Write) {
        match &mut self.role {
            Role::Primary(primary) => primary.write(&mut self.base, env.now, op, write),
            Role::Follower(_) => {
                let hint = self.base.hint();
                self.base.answer(op, Answer::NotPrimary(hint));
            }
        }
        self.run(env);
    }

    /// The store of this token is durable, and every earlier one.
    pub fn handle_stored(&mut self, env: &mut Env, token: u64) {
        self.base.log.is_stored(token);
        while self.base.stores.front().is_some_and(|(t, _)| *t <= token) {
            self.base.stores.pop_front();
        }
        match &mut self.role {
            Role::Primary(primary) => primary.stored(&mut self.base, env.now, token),
            Role::Follower(follower) => follower.stored(&mut self.base),
        }
        self.run(env);
    }

    /// The node has applied everything up to `to`.
    pub fn handle_applied(&mut self, to: u64) {
        self.base.applied = self.base.applied.max(to.min(self.base.log.commit()));
    }

    /// The node has lost what it had applied behind `to`.
    pub fn handle_unapplied(&mut self, to: u64) {
        self.base.applied = self.base.applied.min(to);
    }

    /// What [`Effect::Load`] asked for; empty if it is not there any more.
    pub fn handle_loaded(&mut self, env: &mut Env, member: &MemberId, entries: Vec<Entry>) {
        if let Role::Primary(primary) = &mut self.role {
            primary.loaded(&mut self.base, env.now, member, entries);
        }
        self.run(env);
    }

    /// What [`Effect::Find`] asked for.
    pub fn handle_found(&mut self, env: &mut Env, epoch: Epoch, part: TaskPart, at: Option<Stands>) {
        if let Role::Primary(primary) = &mut self.role
            && epoch == self.base.epoch
        {
            primary.found(&mut self.base, env.now, part, at);
        }
        self.run(env);
    }

    /// The copy has been made anew, as it was at `at`; `older` is the highest task of the parts that came with it. Says whether that was taken: only if [`Effect::Rebuild`] asked for
    /// it, and never while the record lists this replica as in sync, for then others rely on its journal.
    pub fn handle_snapshot(&mut self, env: &mut Env, at: Position, older: Option<TaskUid>) -> bool {
        let relied_on = self.base.record.as_ref().is_some_and(|r| r.is_in_sync(&self.base.id));
        let taken = self.base.rebuild && !relied_on;
        if taken {
            self.base.rebuild = false;
            self.base.log.begin_at(at, older);
            self.base.applied = at.seq;
            self.base.epoch = self.base.epoch.max(at.epoch);
            self.role = Role::Follower(Follower::default());
            self.base.store(env.now, Rows { begin_at: Some(at), ..Rows::default() });
        }
        self.run(env);
        taken
    }

    /// Entries up to `to` are older than the retention: what nobody needs of them goes.
    pub fn handle_trim(&mut self, env: &mut Env, to: u64) {
        let to = to.min(self.free()).min(self.base.applied);
        if let Some(floor) = self.base.log.trim(to) {
            self.base.store(env.now, Rows { floor: Some(floor), ..Rows::default() });
        }
        self.run(env);
    }

    /// The same of entries that have waited long for somebody's node: they go where enough other nodes in sync have applied them.
    pub fn handle_overdue(&mut self, env: &mut Env, to: u64) {
        if let Role::Primary(primary) = &mut self.role {
            primary.overdue(&self.base, to);
        }
        self.handle_trim(env, to);
    }

    /// Time has passed: due at [`Replica::next_wake`], harmless at any other time.
    pub fn handle_tick(&mut self, env: &mut Env) {
        self.run(env);
    }

    /// What is to be done next; see [`super::effect`].
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.base.effects.pop_front()
    }

    /// When [`Replica::handle_tick`] is due.
    pub fn next_wake(&self) -> Option<Instant> {
        self.wake
    }

    /// The highest epoch that it has heard of.
    pub fn epoch(&self) -> Epoch {
        self.base.epoch
    }

    /// What it knows of its journal.
    pub fn log(&self) -> &Log {
        &self.base.log
    }

    /// Whether it orders the writes.
    pub fn is_primary(&self) -> bool {
        matches!(self.role, Role::Primary(_))
    }

    /// Whether it is a primary whose first entry is committed: it knows what is, and answers for it.
    pub fn is_open(&self) -> bool {
        matches!(&self.role, Role::Primary(primary) if primary.is_open())
    }

    /// Up to here no replica needs entries any more, as far as it knows.
    pub fn free(&self) -> u64 {
        match &self.role {
            Role::Primary(primary) => primary.free(&self.base),
            Role::Follower(follower) => follower.free(),
        }
    }

    /// For each other replica, up to where its journal is known to be the same; empty unless it is the primary.
    pub fn stored_by(&self) -> BTreeMap<MemberId, u64> {
        match &self.role {
            Role::Primary(primary) => primary.peers.iter().map(|(m, p)| (m.clone(), p.acked)).collect(),
            Role::Follower(_) => BTreeMap::new(),
        }
    }

    /// Of the newest entries so many bytes are kept in memory from now on; what is not durable stays in any case.
    pub fn set_memory(&mut self, bytes: usize) {
        self.base.log.set_memory(bytes);
    }

    /// Whether nothing is under way, so that it may be taken out of memory.
    pub fn is_idle(&self) -> bool {
        let rests = match &self.role {
            Role::Primary(primary) => primary.rests(&self.base),
            Role::Follower(follower) => follower.rests(&self.base) && !self.is_robbed(),
        };
        rests && self.base.log.is_settled() && self.base.effects.is_empty() && !self.base.rebuild
    }

    /// What a primary at rest goes on with when the same process touches it again.
    pub fn rest(&self) -> Option<Rest> {
        (self.is_primary() && self.is_idle()).then_some(Rest { epoch: self.base.epoch })
    }

    fn take_record(&mut self, env: &Env, record: ShardState, rest: Option<Rest>) {
        if self.base.record.as_ref().is_some_and(|known| known.set >= record.set) {
            return;
        }
        let epoch = record.epoch;
        let before = self.base.record.replace(Arc::new(record));
        if epoch > self.base.epoch {
            self.raise(epoch);
        }
        match &mut self.role {
            Role::Primary(primary) => primary.record_changed(&mut self.base, env.now, before),
            Role::Follower(_) => self.reign(env.now, before, rest),
        }
    }

    fn is_named(&self) -> bool {
        let base = &self.base;
        base.record.as_ref().is_some_and(|r| r.epoch == base.epoch && r.is_led_by(&base.id, base.start))
    }

    /// The record names this process, and yet it may have begun that reign before and not remember what it sent.
    fn is_robbed(&self) -> bool {
        self.is_named() && !self.is_primary() && self.base.log.storing_epoch() == self.base.epoch
    }

    fn reign(&mut self, now: Instant, before: Option<Arc<ShardState>>, rest: Option<Rest>) {
        if !self.is_named() || self.base.rebuild {
            return;
        }
        let rested = rest.is_some_and(|rest| rest.epoch == self.base.epoch);
        if rested || !self.is_robbed() {
            self.role = Role::Primary(Box::new(Primary::begin(&mut self.base, now, before, rested)));
        }
    }

    /// A higher epoch was heard of.
    fn raise(&mut self, epoch: Epoch) {
        let old = std::mem::replace(&mut self.base.epoch, epoch);
        let role = std::mem::replace(&mut self.role, Role::Follower(Follower::default()));
        if let Role::Primary(primary) = role {
            self.base.effects.push_back(Effect::Deposed { epoch: old });
            primary.end(&mut self.base);
        }
    }

    fn take_message(&mut self, env: &Env, from: &MemberId, message: Message) {
        let Message { from: store, epoch, said, .. } = message;
        let leads = matches!(said, Said::Append { .. } | Said::Behind { .. });
        if epoch > self.base.epoch && (leads || matches!(said, Said::Stale { .. })) {
            self.raise(epoch);
        }
        if leads && epoch < self.base.epoch {
            return self.base.send(from, store, Said::Stale { seen: epoch });
        }
        if epoch != self.base.epoch {
            return;
        }
        match &mut self.role {
            Role::Primary(_) if leads => self.base.broken(from, "an append under an epoch of this member"),
            Role::Primary(primary) => {
                let replica = ReplicaId { member: from.clone(), store };
                primary.answered(&mut self.base, env.now, &replica, said);
            }
            // An answer to an earlier process of this member.
            Role::Follower(_) if !leads => {}
            Role::Follower(follower) => {
                let record = self.base.record.as_ref().filter(|r| r.epoch == epoch);
                if record.is_some_and(|r| r.primary.as_ref().is_none_or(|p| p.member != *from)) {
                    return self.base.broken(from, "an append under an epoch of another member");
                }
                let sender = ReplicaId { member: from.clone(), store };
                match said {
                    Said::Append { prev, entries, commit, free } => {
                        follower.append(&mut self.base, env.now, &sender, prev, entries, commit, free);
                    }
                    Said::Behind { floor } => follower.behind(&mut self.base, env.now, &sender, floor),
                    _ => {}
                }
            }
        }
    }

    /// What follows from the input, and when to look again.
    fn run(&mut self, env: &mut Env) {
        let robbed = self.is_robbed();
        self.wake = match &mut self.role {
            Role::Primary(primary) => primary.run(&mut self.base, env.now),
            Role::Follower(_) if robbed => {
                self.ask_for_itself();
                Some(env.now.plus(self.base.config.ask_again))
            }
            Role::Follower(follower) => follower.run(&mut self.base, env.now),
        };
    }

    fn ask_for_itself(&mut self) {
        let (me, record) = (self.base.me(), self.base.record.clone());
        let Some(record) = record else { return };
        let min = self.base.min_in_sync(&record);
        if let Some(change) = record::elect(&record, &me, &me, &[].into(), min) {
            self.base.effects.push_back(Effect::Ask(change));
        }
    }
}
