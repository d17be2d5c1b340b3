//! What a member's drivers do: probes, what is seen, elections, the record, replicas and their stores.

use std::collections::BTreeMap;
use std::time::Duration;

use super::world::{Event, GIVE_BACK, Heard, World, index};
use crate::proto::env::{Env, Instant};
use crate::proto::journal::election::{self, Waiting};
use crate::proto::journal::record;
use crate::proto::journal::sight::{Own, Peer, Seen};
use crate::proto::journal::{Effect, Replica, Said, Stored};
use crate::proto::ledger::{self, Command};
use crate::proto::probe;
use crate::types::{JournalRecord, MemberId, ShardId, ShardState, Versioned};

/// How long one write of a record may take, and how often it begins anew on what somebody else wrote meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);
const TRIES: usize = 8;

impl World {
    // Probes.

    pub(super) fn probe(&mut self, at: &MemberId, peer: &MemberId) {
        let member = self.member(at);
        let due = member.probing.get_mut(peer).unwrap().due(probe::INTERVAL);
        if due.suspect && member.suspects.insert(peer.clone()) {
            self.trace(|| format!("{at} suspects {peer}"));
            self.look_around(at);
        }
        self.send(Event::Probed { from: at.clone(), to: peer.clone(), sent: self.now });
        self.after(due.pause, Event::Probe(at.clone(), peer.clone()));
    }

    pub(super) fn answered(
        &mut self,
        at: &MemberId,
        peer: &MemberId,
        sent: Instant,
        unreached: crate::wire::gossip::Unreached,
    ) {
        if self.now.since(sent) < probe::PATIENCE {
            let member = self.member(at);
            member.unreached.insert(peer.clone(), unreached);
            member.probing.get_mut(peer).unwrap().answered();
            member.suspects.remove(peer);
            self.look_around(at);
        }
    }

    // What is seen.

    /// Something of the others is news: the picture is made anew.
    fn look_around(&mut self, at: &MemberId) {
        let member = &self.members[at];
        let peer = |(id, other): (&MemberId, &super::world::Member)| {
            let peer = Peer {
                reached: !member.suspects.contains(id),
                // Neither connections nor gossip tell sooner than probes that a member is gone.
                connected: Some(other.start),
                listed: Some(other.me.store),
                gossiped: Some((other.me.store, other.start)),
                unreached: member.unreached.get(id).cloned(),
                ..Peer::default()
            };
            (id.clone(), peer)
        };
        let peers = self.members.iter().filter(|(id, _)| *id != at).map(peer).collect();
        let seen = Seen::of(&member.me, Own { start: member.start, ..Own::default() }, &peers);
        if seen == member.seen {
            return;
        }
        let before = std::mem::replace(&mut self.member(at).seen, seen.clone());
        if before.sight != seen.sight {
            for shard in self.shards_of(at) {
                let sight = seen.sight.clone();
                self.call(at, shard, |core, env| core.handle_sight(env, sight));
            }
        }
        self.look_at(at);
    }

    fn shards_of(&self, at: &MemberId) -> Vec<ShardId> {
        self.members[at].cores.keys().copied().collect()
    }

    // Elections.

    fn look_at(&mut self, at: &MemberId) {
        let (leads, now) = (self.leader == *at, self.now);
        let member = self.member(at);
        let (shards, sight) = (&member.record.shards, &member.seen.sight);
        if !shards.iter().any(|state| election::needs_primary(state, sight)) {
            member.waiting = None;
            return;
        }
        let turn = election::turn(shards, &member.holder(), sight, leads);
        let waiting = member.waiting.get_or_insert_with(|| Waiting::new(now));
        waiting.look(now, turn);
        if let Some(due) = waiting.due() {
            self.at(due, Event::Elect(at.clone()));
        }
    }

    pub(super) fn elect(&mut self, at: &MemberId) {
        let (now, min) = (self.now, self.config.min_in_sync);
        let member = self.member(at);
        if !member.waiting.is_some_and(|waiting| waiting.is_due(now)) {
            return;
        }
        let plan = election::plan(&member.record.shards, &member.holder(), &member.seen.sight, &member.seen.reach, min);
        let mut waiting = member.waiting.take().unwrap_or_else(|| Waiting::new(now));
        if plan.is_empty() {
            waiting.held_back(now);
        } else {
            waiting = Waiting::written(now);
        }
        member.waiting = Some(waiting);
        let wanted = plan.len();
        let numbered = plan.into_iter().map(|(shard, change)| (ShardId(u16::try_from(shard).unwrap()), change));
        member.asks.extend(numbered);
        self.at(waiting.due().expect("it looks again"), Event::Elect(at.clone()));
        self.trace(|| format!("{at} elects for {wanted} shards"));
        self.write_asks(at);
    }

    /// Preferred primaries return, where this member holds `shard_leaders`.
    pub(super) fn give_back(&mut self, at: &MemberId) {
        self.after(GIVE_BACK, Event::GiveBack(at.clone()));
        let min = self.config.min_in_sync;
        let (now, leads) = (self.now, self.leader == *at);
        let member = self.member(at);
        let Seen { sight, reach, .. } = &member.seen;
        let times = (None, GIVE_BACK, now);
        let shards = &member.record.shards;
        let change = election::give_back(shards, &member.holder(), sight, reach, min, |_, _| false, times);
        if let Some((shard, change)) = change.filter(|_| leads) {
            member.asks.insert(ShardId(u16::try_from(shard).unwrap()), change);
            self.trace(|| format!("{at} gives back {shard}"));
            self.write_asks(at);
        }
    }

    // The record.

    /// Begins to write what was asked for, unless a write is under way.
    fn write_asks(&mut self, at: &MemberId) {
        let member = self.member(at);
        if member.asking.is_some() || member.asks.is_empty() {
            return;
        }
        let changes = std::mem::take(&mut member.asks);
        let newest = member.ledger.copy(&JournalRecord::key(&index())).cloned();
        self.write(at, changes, newest, 1);
    }

    /// Applies each change that is right to the newest record, all in one write.
    fn write(
        &mut self,
        at: &MemberId,
        changes: BTreeMap<ShardId, record::Change>,
        newest: Option<Versioned>,
        tries: usize,
    ) {
        let (now, min) = (self.now, self.config.min_in_sync);
        let member = self.member(at);
        member.asking = None;
        let Some(found) = newest else { return };
        let mut record = JournalRecord::from_json(&found.value).unwrap();
        let mut any = false;
        for (shard, change) in &changes {
            let state = &mut record.shards[usize::from(shard.0)];
            if record::check(Some(state), change, election::min_in_sync(&change.after, min)).is_ok() {
                *state = change.after.clone();
                any = true;
            }
        }
        if !any {
            return self.write_asks(at);
        }
        member.next_op += 1;
        let op = ledger::OpId(member.next_op);
        member.asking = Some((op, tries, changes));
        let change = ledger::Change {
            op,
            key: JournalRecord::key(&index()),
            expected: found.version,
            value: record.to_json().into(),
            quiet: false,
            deadline: now.plus(PATIENCE),
        };
        self.after(Duration::ZERO, Event::Ledger(at.clone(), Heard::Command(Command::Change(vec![change]))));
    }

    fn written(&mut self, at: &MemberId, op: ledger::OpId, answer: ledger::Answer) {
        let member = self.member(at);
        let Some((_, tries, changes)) = member.asking.take_if(|(own, ..)| *own == op) else { return };
        self.trace(|| format!("{at}: its change of the record: {answer:?}"));
        match answer {
            ledger::Answer::Conflict { current, .. } if tries < TRIES => self.write(at, changes, current, tries + 1),
            _ => self.write_asks(at),
        }
    }

    /// A newer copy of the record.
    fn learn(&mut self, at: &MemberId, copy: &Versioned) {
        let (now, config) = (self.now, self.config.clone());
        let member = self.member(at);
        if member.version >= copy.version {
            return;
        }
        let record = JournalRecord::from_json(&copy.value).unwrap();
        let before = std::mem::replace(&mut member.record, record.clone());
        member.version = copy.version;
        self.trace(|| {
            let named = |s: &ShardState| s.primary.as_ref().map(|p| p.member.to_string());
            let all: Vec<_> = record.shards.iter().map(|s| (named(s), s.epoch.number(), s.set)).collect();
            format!("{at} has the record {}: {all:?}", copy.version)
        });
        for (shard, state) in (0..).map(ShardId).zip(record.shards) {
            let member = self.member(at);
            if member.cores.contains_key(&shard) {
                if before.shard(shard).is_none_or(|known| known.set < state.set) {
                    self.call(at, shard, |core, env| core.handle_record(env, state));
                }
            } else if state.copy(at).is_some() {
                let (me, sight) = ((member.me.clone(), member.start), member.seen.sight.clone());
                let mut env = Env { now, rng: &mut member.rng };
                let core = Replica::recover(&mut env, config.clone(), me, Stored::default(), Some(state), sight, None);
                member.cores.insert(shard, core);
                member.disks.entry(shard).or_default();
                self.drain(at, shard);
            }
        }
        self.look_at(at);
        self.abandon(at);
    }

    // The ledger.

    pub(super) fn ledger_hears(&mut self, at: &MemberId, heard: Heard) {
        let (now, store_time) = (self.now, self.store_time());
        let member = self.member(at);
        let mut env = Env { now, rng: &mut member.rng };
        match heard {
            Heard::Message(from, message) => member.ledger.handle_message(&mut env, &from, *message),
            Heard::Command(command) => member.ledger.submit(&mut env, command),
            Heard::Tick => {
                member.ledger_tick = None;
                member.ledger.handle_tick(&mut env);
            }
        }
        let (mut rows, mut rest) = (Vec::new(), Vec::new());
        while let Some(effect) = member.ledger.poll_effect() {
            match effect {
                ledger::Effect::Persist(row) => rows.push(row),
                other => rest.push(other),
            }
        }
        let wake = member.ledger.next_wake().map(|wake| wake.max(now));
        let tick = wake.filter(|wake| member.ledger_tick.is_none_or(|tick| *wake < tick));
        member.ledger_tick = tick.or(member.ledger_tick);
        let stores = !rows.is_empty();
        rows.into_iter().for_each(|row| member.ledger_disk.apply(row));
        if stores {
            member.ledger_busy = now.plus(store_time);
            self.after(store_time, Event::LedgerOut(at.clone(), rest));
        } else {
            self.ledger_out(at, rest);
        }
        if let Some(tick) = tick {
            self.at(tick, Event::Ledger(at.clone(), Heard::Tick));
        }
    }

    pub(super) fn ledger_out(&mut self, at: &MemberId, effects: Vec<ledger::Effect>) {
        for effect in effects {
            match effect {
                ledger::Effect::Send { to, message } => {
                    self.send(Event::Ledger(to, Heard::Message(at.clone(), Box::new(message))));
                }
                ledger::Effect::Copied { key, record } if JournalRecord::of_key(&key).is_some() => {
                    self.learn(at, &record);
                }
                ledger::Effect::Answer { op, answer } => self.written(at, op, answer),
                _ => {}
            }
        }
    }

    // Replicas.

    pub(super) fn call(&mut self, at: &MemberId, shard: ShardId, f: impl FnOnce(&mut Replica, &mut Env)) {
        let now = self.now;
        let member = self.member(at);
        if let Some(core) = member.cores.get_mut(&shard) {
            f(core, &mut Env { now, rng: &mut member.rng });
            self.drain(at, shard);
        }
    }

    fn drain(&mut self, at: &MemberId, shard: ShardId) {
        loop {
            let core = self.member(at).cores.get_mut(&shard).unwrap();
            let epoch = core.epoch();
            let Some(effect) = core.poll_effect() else { break };
            self.carry_out(at, shard, epoch, effect);
        }
        let now = self.now;
        let member = self.member(at);
        let wake = member.cores[&shard].next_wake().map(|wake| wake.max(now));
        let sooner = |wake: &Instant| member.ticks.get(&shard).is_none_or(|tick| wake < tick);
        if let Some(wake) = wake.filter(sooner) {
            member.ticks.insert(shard, wake);
            self.at(wake, Event::Tick(at.clone(), shard));
        }
    }

    fn carry_out(&mut self, at: &MemberId, shard: ShardId, epoch: crate::types::Epoch, effect: Effect) {
        match effect {
            Effect::Store { token, rows } => {
                for entry in &rows.entries {
                    let checked = self.histories.get_mut(&shard).unwrap().appended(entry);
                    self.hold(checked);
                }
                self.member(at).stores.push_back((shard, token, rows));
                self.store(at);
            }
            Effect::Send { to, message } => {
                if matches!(message.said, Said::Stale { .. }) {
                    self.count("refused");
                }
                self.send(Event::Journal { from: at.clone(), to, shard, message: Box::new(message) });
            }
            Effect::Answer { op, answer } => self.answer(at, shard, epoch, op, answer),
            Effect::Committed { to } => self.committed(at, shard, epoch, to),
            Effect::Reigns { epoch } => {
                self.trace(|| format!("{at} reigns over {shard} in {epoch}"));
                let member = &self.members[at];
                let (holder, log) = (member.holder(), member.cores[&shard].log());
                let history = self.histories.get_mut(&shard).unwrap();
                let checked = history.reigns(epoch, &holder);
                let begins = history.begins(epoch, log.floor().seq, |seq| log.position(seq));
                self.hold(checked);
                self.hold(begins);
            }
            Effect::Ask(change) => {
                let min = self.config.min_in_sync;
                let member = self.member(at);
                let (state, seen) = (&member.record.shards[usize::from(shard.0)], &member.seen);
                let better = election::instead(state, &change, &seen.reach, &seen.known, min);
                let change = better.unwrap_or(change);
                member.asks.insert(shard, change.clone());
                self.trace(|| format!("{at} asks for {:?} of {shard}", change.why));
                self.write_asks(at);
            }
            Effect::Load { member: peer, from, entries, .. } => {
                self.read_later(Event::Load { at: at.clone(), shard, peer, from, entries });
            }
            Effect::Find { epoch, part } => self.read_later(Event::Find { at: at.clone(), shard, epoch, part }),
            Effect::Deposed { .. } => self.count("deposed"),
            Effect::NeedsSnapshot { .. } | Effect::Rebuild => self.fail(&format!("{at} must be made anew")),
            Effect::Broken { member, what } => self.fail(&format!("{at}: {member} broke: {what}")),
        }
    }

    /// Begins the next transaction, if none is under way: all that waits shares it.
    fn store(&mut self, at: &MemberId) {
        let took = self.store_time();
        let member = self.member(at);
        if member.storing == 0 && !member.stores.is_empty() {
            member.storing = member.stores.len();
            self.after(took, Event::Stored(at.clone()));
        }
    }

    pub(super) fn stored(&mut self, at: &MemberId) {
        let member = self.member(at);
        let done = std::mem::take(&mut member.storing);
        let mut tokens = BTreeMap::new();
        for (shard, token, rows) in member.stores.drain(..done) {
            member.disks.get_mut(&shard).unwrap().apply(rows, None);
            tokens.insert(shard, token);
        }
        self.store(at);
        for (shard, token) in tokens {
            self.call(at, shard, |core, env| core.handle_stored(env, token));
        }
    }

    fn committed(&mut self, at: &MemberId, shard: ShardId, epoch: crate::types::Epoch, to: u64) {
        let member = self.member(at);
        let from = member.committed.insert(shard, to).unwrap_or(0);
        let disk = member.disks.get_mut(&shard).unwrap();
        let news: Vec<_> = disk.entries.range(from + 1..=to).map(|(_, entry)| entry.at).collect();
        if disk.last() < to {
            self.fail(&format!("{at}: {to} is committed here and not durable"));
        }
        disk.applied.extend(&news);
        member.cores.get_mut(&shard).unwrap().handle_applied(to);
        for position in news {
            let checked = self.histories.get_mut(&shard).unwrap().committed(epoch, position);
            self.hold(checked);
        }
    }

    /// What is acknowledged is durable at every member in sync.
    pub(super) fn check_durable(&self, shard: ShardId, seq: u64) {
        let newest = self.members.values().max_by_key(|m| m.version).unwrap();
        let Some(ShardState { in_sync, .. }) = newest.record.shard(shard) else { return };
        let position = self.histories[&shard].all_committed().get(&seq).copied();
        for id in in_sync {
            if self.members[&id.member].disks[&shard].has(seq) != position {
                self.fail(&format!("{seq} was acknowledged and {id} does not have it"));
            }
        }
    }
}
