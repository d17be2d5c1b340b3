//! One member of the small world: its processes, what they carry out, what they see, and what they ask for.
//!
//! Rule: it does what a driver does, and nothing that a driver could not. Must not know: what is right.

use std::collections::{BTreeMap, VecDeque};

use super::disk::Disk;
use super::{Event, Process, World, config, id};
use crate::proto::env::Env;
use crate::proto::journal::effect::{Alive, Effect, Sight};
use crate::proto::journal::election;
use crate::proto::journal::message::Message;
use crate::proto::journal::record::{self, Change, Why};
use crate::proto::journal::replica::Replica;
use crate::types::{Epoch, Holder, MemberId, Position, ReplicaId, ReplicaState, ShardState};

impl World {
    /// A new process on what is durable.
    pub fn start(&mut self, member: &MemberId) {
        let shards = self.record.len();
        let tail = self.rng.usize(0..10);
        let node = self.nodes.get_mut(member).unwrap();
        if node.process.is_some() {
            return;
        }
        node.start += 1;
        let me = ReplicaId { member: member.clone(), store: node.store };
        let sight: Sight = [(member.clone(), Alive { store: node.store, start: node.start })].into();
        let mut env = Env { now: self.now, rng: &mut node.rng };
        let mut cores = Vec::new();
        for (disk, record) in node.disks.iter().zip(&node.records) {
            let holds = record.copy(member).is_some();
            let stored = disk.stored(tail);
            let (start, record) = (node.start, record.clone());
            cores.push(holds.then(|| {
                Replica::recover(&mut env, config(), (me.clone(), start), stored, Some(record), sight.clone(), None)
            }));
        }
        node.process = Some(Process {
            cores,
            sight,
            missed: BTreeMap::new(),
            stores: VecDeque::new(),
            storing: false,
            ticks_at: vec![None; shards],
            committed: node.disks.iter().map(|d| d.commit.max(d.applied_to())).collect(),
            applying: vec![false; shards],
            copied: None,
            told_at: None,
        });
        let process = node.start;
        self.at_ms(0, 60, Event::Look { member: member.clone(), process });
        for shard in 0..shards {
            self.carry_out(member, shard);
            self.apply_later(member, shard);
        }
    }

    /// The process ends here and now; some of its stores were done, and nobody was told.
    pub fn crash(&mut self, member: &MemberId) {
        let node = self.nodes.get_mut(member).unwrap();
        let Some(mut process) = node.process.take() else { return };
        let done = self.rng.usize(0..=process.stores.len());
        for (shard, _, rows, copy) in process.stores.drain(..done) {
            node.disks[shard].apply(rows, copy);
        }
        self.count("crash");
    }

    pub fn crash_and_restart(&mut self, member: &MemberId) {
        self.crash(member);
        self.at_ms(5, 900, Event::Start { member: member.clone() });
    }

    /// The member comes back with an empty store.
    pub fn lose_store(&mut self, member: &MemberId) {
        self.crash(member);
        self.count("store lost");
        let store = self.new_store();
        let node = self.nodes.get_mut(member).unwrap();
        node.store = store;
        node.disks.iter_mut().for_each(|d| *d = Disk::default());
        self.at_ms(5, 900, Event::Start { member: member.clone() });
    }

    /// The driver's step after every call of a core.
    pub(super) fn carry_out(&mut self, member: &MemberId, shard: usize) {
        let mut effects = Vec::new();
        let Some(process) = self.nodes.get_mut(member).and_then(|n| n.process.as_mut()) else { return };
        let Some(core) = process.cores[shard].as_mut() else { return };
        while let Some(effect) = core.poll_effect() {
            effects.push(effect);
        }
        let (epoch, wake) = (core.epoch(), core.next_wake());
        let crash = self.chance(self.faults.crash);
        let some = if crash { self.rng.usize(0..=effects.len()) } else { effects.len() };
        for effect in effects.into_iter().take(some) {
            self.carry_out_one(member, shard, epoch, effect);
        }
        if crash {
            return self.crash_and_restart(member);
        }
        let now = self.now;
        let node = self.nodes.get_mut(member).unwrap();
        let start = node.start;
        let Some(process) = node.process.as_mut() else { return };
        let slot = &mut process.ticks_at[shard];
        if let Some(at) = wake.map(|at| at.max(now))
            && slot.is_none_or(|t| at < t || t < now)
        {
            *slot = Some(at);
            self.at(at, Event::Tick { member: member.clone(), process: start, shard });
        }
    }

    pub(super) fn carry_out_one(&mut self, member: &MemberId, shard: usize, epoch: Epoch, effect: Effect) {
        let process = self.nodes[member].start;
        match effect {
            Effect::Store { token, rows } => {
                for entry in &rows.entries {
                    let checked = self.histories[shard].appended(entry);
                    self.hold(checked);
                }
                let running = self.nodes.get_mut(member).and_then(|n| n.process.as_mut()).unwrap();
                let copy = rows.begin_at.and_then(|_| running.copied.take());
                let floor = rows.floor;
                running.stores.push_back((shard, token, rows, copy));
                if let Some(floor) = floor {
                    self.check_dropped(member, shard, floor.seq);
                }
                self.store_later(member);
            }
            Effect::Send { to, message } => {
                message.check().expect("a replica keeps the bounds that it asks of others");
                self.send(member, to, shard, message);
            }
            Effect::Answer { op, answer } => self.answered(shard, epoch, op, answer),
            Effect::Committed { to } => self.committed(member, shard, epoch, to),
            Effect::Reigns { epoch } => {
                self.count("reign");
                let start = self.nodes[member].start;
                let checked = self.histories[shard].reigns(epoch, &Holder { member: member.clone(), start });
                self.hold(checked);
                let core = self.core(member, shard).unwrap();
                let checked =
                    self.histories[shard].begins(epoch, core.log().floor().seq, |seq| core.log().position(seq));
                self.hold(checked);
            }
            Effect::Deposed { .. } => self.count("deposed"),
            Effect::Ask(change) => {
                self.count("asked");
                let state = self.nodes[member].records[shard].clone();
                let instead = election::instead(&state, &change, &self.all_reach(), &self.all_alive(), None);
                if instead.is_some() {
                    self.count("cut primary replaced");
                }
                self.ask(member, vec![(shard, instead.unwrap_or(change))]);
            }
            Effect::Load { member: peer, from, entries, .. } => {
                self.count("load");
                let member = member.clone();
                self.at_ms(1, 8, Event::Load { member, process, shard, peer, from, entries });
            }
            Effect::Find { epoch, part } => {
                self.count("find");
                self.at_ms(1, 8, Event::Find { member: member.clone(), process, shard, epoch, part });
            }
            Effect::NeedsSnapshot { .. } => self.count("needs snapshot"),
            Effect::Rebuild => {
                self.count("rebuild");
                self.at_ms(20, 200, Event::Snapshot { member: member.clone(), process, shard });
            }
            Effect::Broken { member: by, what } => self.fail(&format!("{member} shard {shard}: {by} broke: {what}")),
        }
    }

    /// What goes was applied by as many as must be in sync.
    fn check_dropped(&self, member: &MemberId, shard: usize, floor: u64) {
        let state = &self.nodes[member].records[shard];
        let least = record::default_min_in_sync(state.copies()).min(state.in_sync.len());
        let applied = self.nodes.values().filter(|node| node.disks[shard].applied_to() >= floor).count();
        // A node that was emptied had applied more.
        if applied < least && !self.counts.contains_key("store lost") {
            self.fail(&format!(
                "{member} shard {shard}: entries up to {floor} go, and {applied} nodes have applied them"
            ));
        }
    }

    /// The member's node applies nothing, or goes on.
    pub fn stick(&mut self, member: &MemberId, stuck: bool) {
        self.nodes.get_mut(member).unwrap().stuck = stuck;
        (0..self.record.len()).for_each(|shard| self.apply_later(member, shard));
    }

    pub fn is_stuck(&self, member: &MemberId) -> bool {
        self.nodes[member].stuck
    }

    /// A retention of no time and no patience offers everything, everywhere.
    pub fn offer_all(&mut self) {
        let (members, shards) = (self.nodes.keys().cloned().collect::<Vec<_>>(), 0..self.record.len());
        for (member, shard) in members.iter().flat_map(|m| shards.clone().map(move |shard| (m, shard))) {
            self.call(member, shard, |core, env| {
                let all = core.log().commit();
                core.handle_overdue(env, all);
            });
        }
    }

    pub(super) fn store_later(&mut self, member: &MemberId) {
        let node = self.nodes.get_mut(member).unwrap();
        let (slow, start) = (node.slow, node.start);
        let Some(process) = node.process.as_mut() else { return };
        if !process.storing && !process.stores.is_empty() {
            process.storing = true;
            let (from, to) = if slow { (400, 1_500) } else { (1, 6) };
            self.at_ms(from, to, Event::Stored { member: member.clone(), process: start });
        }
    }

    pub(super) fn send(&mut self, from: &MemberId, to: MemberId, shard: usize, message: Message) {
        self.count("message");
        if self.cut.contains(&(from.clone(), to.clone())) || self.chance(self.faults.lost) {
            return;
        }
        let times = if self.chance(self.faults.twice) { 2 } else { 1 };
        for _ in 0..times {
            let (least, most) = if self.chance(self.faults.late) { (20, 2_000) } else { (1, 6) };
            let (from, to, message) = (from.clone(), to.clone(), Box::new(message.clone()));
            self.at_ms(least, most, Event::Deliver { from, to, shard, message });
        }
    }

    pub(super) fn committed(&mut self, member: &MemberId, shard: usize, epoch: Epoch, to: u64) {
        let node = self.nodes.get_mut(member).unwrap();
        let Some(process) = node.process.as_mut() else { return };
        let from = process.committed[shard].min(to);
        process.committed[shard] = process.committed[shard].max(to);
        let disk = &node.disks[shard];
        let entries: Vec<_> =
            disk.entries.range(from..=to).filter(|(seq, _)| **seq > from).map(|(_, e)| e.at).collect();
        if disk.last() < to {
            self.fail(&format!("{member} shard {shard}: {to} is committed here and not durable"));
        }
        for at in entries {
            let checked = self.histories[shard].committed(epoch, at);
            self.hold(checked);
        }
        self.apply_later(member, shard);
    }

    pub(super) fn apply_later(&mut self, member: &MemberId, shard: usize) {
        let node = self.nodes.get_mut(member).unwrap();
        let (start, stuck) = (node.start, node.stuck);
        let Some(process) = node.process.as_mut() else { return };
        if !stuck && !process.applying[shard] && node.disks[shard].applied_to() < process.committed[shard] {
            process.applying[shard] = true;
            self.at_ms(1, 40, Event::Apply { member: member.clone(), process: start, shard });
        }
    }

    pub(super) fn apply(&mut self, member: &MemberId, shard: usize) {
        let node = self.nodes.get_mut(member).unwrap();
        let Some(process) = node.process.as_mut() else { return };
        process.applying[shard] = false;
        if node.stuck {
            return;
        }
        let Some(core) = process.cores[shard].as_mut() else { return };
        let disk = &mut node.disks[shard];
        if disk.rebuild
            || process.stores.iter().any(|(s, _, rows, _)| *s == shard && (rows.rebuild || rows.begin_at.is_some()))
        {
            return;
        }
        let next = (disk.applied_to() + 1).min(process.committed[shard] + 1);
        if next > process.committed[shard] {
            return;
        }
        let news: Vec<Position> =
            disk.entries.range(next..=process.committed[shard]).take(3).map(|(_, e)| e.at).collect();
        disk.applied.extend(&news);
        core.handle_applied(disk.applied_to());
        for at in news {
            let history = &self.histories[shard];
            if at.epoch >= history.loss() && history.all_committed().get(&at.seq) != Some(&at) {
                self.fail(&format!("{member} shard {shard}: {at} is applied and not committed"));
            }
        }
        self.apply_later(member, shard);
    }

    /// A transaction is durable: as much as waited, or a part of it.
    pub(super) fn stored(&mut self, member: &MemberId) {
        let some = self.rng.usize(1..20);
        let node = self.nodes.get_mut(member).unwrap();
        let Some(process) = node.process.as_mut() else { return };
        let mut tokens = BTreeMap::new();
        let many = some.min(process.stores.len());
        for (shard, token, rows, copy) in process.stores.drain(..many) {
            node.disks[shard].apply(rows, copy);
            tokens.insert(shard, token);
        }
        process.storing = false;
        let start = node.start;
        self.store_later(member);
        for (shard, token) in tokens {
            if self.nodes[member].start == start {
                self.call(member, shard, |core, env| core.handle_stored(env, token));
            }
        }
    }

    pub(super) fn call(&mut self, member: &MemberId, shard: usize, f: impl FnOnce(&mut Replica, &mut Env)) {
        let node = self.nodes.get_mut(member).unwrap();
        let Some(core) = node.process.as_mut().and_then(|p| p.cores[shard].as_mut()) else { return };
        f(core, &mut Env { now: self.now, rng: &mut node.rng });
        self.carry_out(member, shard);
    }

    pub(super) fn learn(&mut self, member: &MemberId, shards: Vec<ShardState>) {
        let node = self.nodes.get_mut(member).unwrap();
        let start = node.start;
        for (shard, state) in shards.into_iter().enumerate() {
            if self.nodes[member].records[shard].set < state.set && self.nodes[member].start == start {
                self.nodes.get_mut(member).unwrap().records[shard] = state.clone();
                self.call(member, shard, |core, env| core.handle_record(env, state));
            }
        }
    }

    /// Who is there, what the record says, whether somebody must be elected.
    pub(super) fn look(&mut self, member: &MemberId) {
        let others: Vec<MemberId> = self.nodes.keys().filter(|m| *m != member).cloned().collect();
        let alive = self.all_alive();
        let seen: Vec<bool> = others.iter().map(|m| self.reach(member, m)).collect();
        let forgets: Vec<bool> = others.iter().map(|_| self.chance(self.faults.suspect)).collect();
        let process = self.nodes.get_mut(member).and_then(|n| n.process.as_mut()).unwrap();
        let before = process.sight.clone();
        for ((other, seen), forgets) in others.iter().zip(seen).zip(forgets) {
            let missed = process.missed.entry(other.clone()).or_default();
            *missed = if forgets {
                3
            } else if seen {
                0
            } else {
                *missed + 1
            };
            if *missed >= 3 {
                process.sight.remove(other);
            } else if seen && let Some(is) = alive.get(other) {
                process.sight.insert(other.clone(), *is);
            }
        }
        let (sight, changed) = (process.sight.clone(), process.sight != before);
        let start = self.nodes[member].start;
        for shard in 0..self.record.len() {
            if changed && self.nodes[member].start == start {
                let sight = sight.clone();
                self.call(member, shard, |core, env| core.handle_sight(env, sight));
            }
        }
        if self.nodes[member].process.is_none() || self.nodes[member].start != start {
            return;
        }
        self.elect(member, &sight);
        self.repair(member);
        if !self.alone.contains(member) && self.rng.u32(0..3) == 0 {
            let shards = self.record.clone();
            self.at_ms(1, 20, Event::Record { to: member.clone(), shards });
        }
        let to = self.rng.usize(0..self.record.len());
        if self.rng.u32(0..20) == 0 {
            let keep = self.rng.u64(0..20);
            self.call(member, to, |core, env| {
                let until = core.log().commit().saturating_sub(keep);
                if keep.is_multiple_of(2) { core.handle_trim(env, until) } else { core.handle_overdue(env, until) }
            });
        }
        self.at_ms(80, 120, Event::Look { member: member.clone(), process: start });
    }

    pub(super) fn elect(&mut self, member: &MemberId, sight: &Sight) {
        let leads = *member == id(0);
        let now = self.now;
        let node = self.nodes.get_mut(member).unwrap();
        let me = Holder { member: member.clone(), start: node.start };
        let Some(process) = node.process.as_mut() else { return };
        if !node.records.iter().any(|s| election::needs_primary(s, sight)) {
            process.told_at = None;
            return;
        }
        let told = *process.told_at.get_or_insert(now);
        let turn = election::turn(&node.records, &me, sight, leads);
        if turn.is_none_or(|wait| now.since(told) < wait) {
            return;
        }
        process.told_at = None;
        let records = node.records.clone();
        let plan = election::plan(&records, &me, sight, &self.all_reach(), None);
        self.ask(member, plan);
    }

    /// A member with a new store becomes a learner; a learner that is near becomes a replica.
    pub(super) fn repair(&mut self, member: &MemberId) {
        let node = &self.nodes[member];
        let by = Holder { member: member.clone(), start: node.start };
        let Some(process) = node.process.as_ref() else { return };
        let mut changes = Vec::new();
        for (shard, state) in node.records.iter().enumerate() {
            let mut after = state.clone();
            for copy in &mut after.replicas {
                if copy.id.member == *member && copy.id.store != node.store {
                    copy.id.store = node.store;
                    copy.state = ReplicaState::Learner;
                    after.in_sync.retain(|id| id.member != *member);
                }
            }
            if let Some(core) = process.cores[shard].as_ref().filter(|c| c.is_open()) {
                for (other, stored) in core.stored_by() {
                    let near = stored > 0 && stored + 5 >= core.log().last().seq;
                    let copy = after.replicas.iter_mut().find(|c| c.id.member == other);
                    if let Some(copy) = copy.filter(|c| near && c.state == ReplicaState::Learner) {
                        copy.state = ReplicaState::Replica;
                    }
                }
            }
            if after != *state {
                after.set += 1;
                changes.push((
                    shard,
                    Change { from: (state.epoch, state.set), why: Why::Replicas, by: by.clone(), after },
                ));
            }
        }
        if !changes.is_empty() {
            self.ask(member, changes);
        }
    }

    /// The copy is made anew from the primary's.
    pub(super) fn snapshot(&mut self, member: &MemberId, shard: usize) {
        let source = self.record[shard].primary.as_ref().map(|p| p.member.clone());
        let source = source.filter(|s| s != member && self.reach(member, s));
        let from = source.and_then(|s| Some((&self.nodes[&s].disks[shard], self.core(&s, shard)?)));
        let process = self.nodes[member].start;
        let mut taken = false;
        if let Some((disk, core)) = from
            && core.epoch() == self.record[shard].epoch
        {
            let seq = disk.applied_to();
            let at = disk.has(seq).unwrap_or(disk.floor);
            let parts: BTreeMap<_, _> =
                disk.parts.iter().filter(|(_, at)| at.seq <= seq).map(|(p, s)| (*p, *s)).collect();
            let older = parts.keys().map(|p| p.task).max();
            let copy = (disk.applied.clone(), parts);
            assert_eq!(at.seq, seq, "what is applied is there, or the floor");
            let running = self.nodes.get_mut(member).and_then(|n| n.process.as_mut()).unwrap();
            running.copied = Some(copy);
            self.call(member, shard, |core, env| taken = core.handle_snapshot(env, at, older));
            if let Some(running) = self.nodes.get_mut(member).and_then(|n| n.process.as_mut()).filter(|_| taken) {
                running.committed[shard] = seq;
            }
        }
        if !taken && self.nodes[member].start == process {
            self.at_ms(50, 200, Event::Snapshot { member: member.clone(), process, shard });
        }
    }
}
