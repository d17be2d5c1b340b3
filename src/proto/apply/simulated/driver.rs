//! The driver of the simulated world: stores, requests, and the node's side of them.

use std::collections::BTreeSet;

use super::data::Bad;
use super::node::Work;
use super::{Event, World, work_of};
use crate::proto::apply::effect::{Answer, Effect, LaneRow, Need, Request, Rows};
use crate::proto::apply::notes::State;
use crate::proto::apply::{Flaw, Group, Tag};
use crate::types::ShardId;

impl World {
    /// Carries out what the core wants, as far as the process lives.
    pub(super) fn drain(&mut self) {
        let Some(core) = &mut self.process else { return };
        core.check();
        let effects: Vec<Effect> = std::iter::from_fn(|| core.poll_effect()).collect();
        let wake = core.next_wake();
        let crash = self.chance(self.faults.crash);
        let mut lives = if crash { self.rng.usize(0..effects.len() + 2) } else { usize::MAX };
        let (stores, others): (Vec<_>, Vec<_>) = effects.into_iter().partition(|e| matches!(e, Effect::Persist(_)));
        if lives == 0 {
            return self.crash();
        }
        for effect in stores {
            if let Effect::Persist(rows) = effect {
                self.persist(&rows);
            }
        }
        for effect in others {
            lives -= 1;
            if lives == 0 {
                return self.crash();
            }
            self.carry_out(effect);
        }
        if crash {
            return self.crash();
        }
        if let Some(wake) = wake.filter(|wake| self.tick_at.is_none_or(|at| *wake < at)) {
            self.tick_at = Some(wake);
            let process = self.processes;
            self.at(wake.0.saturating_sub(self.now.0).min(1 << 40), Event::Tick { process });
        }
    }

    fn crash(&mut self) {
        self.count("crashes");
        self.process = None;
        let pause = self.rng.u64(1_000..200_000);
        self.at(pause, Event::Start);
    }

    fn persist(&mut self, rows: &Rows) {
        if self.trace {
            eprintln!("          :: {:?} {:?}", rows.lanes, rows.notes);
        }
        let applied = |shard| self.stored.lanes.get(shard).map_or(0, |row: &LaneRow| row.applied);
        let news: Vec<_> = rows.lanes.iter().map(|(shard, row)| (*shard, applied(shard), row.clone())).collect();
        self.stored.put(rows);
        for ((shard, seq), flaw) in &rows.failed {
            let failed = self.journal.entry(*shard, *seq).is_failed();
            assert!(failed, "seed {}: a verdict on {shard}/{seq}, which is good: {flaw:?}", self.seed);
            self.failed.insert((*shard, *seq), flaw.clone());
            self.count("verdicts");
        }
        if self.deceived {
            return;
        }
        // What is stored as applied the node has.
        for (shard, before, row) in news {
            let Some(row) = row.filter(|row| row.need == Need::Nothing) else { continue };
            for seq in before.min(row.applied.saturating_sub(5)) + 1..=row.applied {
                let entry = self.journal.entry(shard, seq);
                let idle = entry.kind == crate::proto::journal::Kind::Empty || entry.is_failed();
                assert!(idle || self.node.has(shard, seq), "seed {}: {shard}/{seq} is not applied", self.seed);
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        if self.trace {
            eprintln!("          -> {effect:?}");
        }
        let process = self.processes;
        let soon = self.rng.u64(200..4_000);
        match effect {
            Effect::Persist(_) => {}
            Effect::Enqueue(request) => self.send(request),
            Effect::List { ticket, from, limit } => {
                if from.is_none() {
                    self.looked = self.now;
                }
                let page = (!self.chance(self.faults.unread)).then(|| self.node.list(from, limit));
                self.at(soon, Event::Page { process, ticket, page });
            }
            Effect::Probe { ticket, uid } => {
                let probed = self.node.probe(uid);
                self.count("probes");
                self.at(soon, Event::Probed { process, ticket, probed });
            }
            Effect::Load { ticket, shard, from, entries } => {
                self.at(soon / 4, Event::Heads { process, shard, ticket, from, entries });
            }
            Effect::Applied { shard, to } => self.applied(shard, to),
            Effect::Unapplied { .. } => self.count("unapplied"),
            Effect::Verdict { shard, seq, .. } => {
                let entry = self.journal.entry(shard, seq);
                assert!(entry.is_failed() && !self.followed.contains(&shard), "seed {}: {shard}/{seq}", self.seed);
                self.count("own verdicts");
            }
            Effect::AskVerdict { shard, seq } => {
                let when = self.rng.u64(1_000..300_000);
                self.count("asked");
                self.at(when, Event::Verdict { shard, seq, asked: Some(process) });
            }
            Effect::Doubtful { .. } => self.count("doubtful"),
            Effect::Untaken { .. } => self.count("untaken"),
            Effect::Mismatch { shard, seq } => {
                let entry = self.journal.entry(shard, seq);
                let here = matches!(entry.bad, Bad::No | Bad::Poison(_));
                assert_eq!(here, entry.primary_bad, "seed {}: no mismatch at {shard}/{seq}", self.seed);
                self.count("mismatches");
            }
            Effect::Take { shard, seqs } => self.take(shard, seqs),
            Effect::Rebuild { shard } => self.copy(shard),
            Effect::Trouble { .. } => self.count("troubles"),
            Effect::Trusted(trusted) => {
                self.trusted = trusted;
                // A look that began before says nothing.
                self.deceived &= !trusted || self.looked <= self.put_back;
            }
            Effect::Pressure(_) => self.count("pressure"),
        }
    }

    fn applied(&mut self, shard: ShardId, to: u64) {
        let whole = self.stored.lanes.get(&shard).is_some_and(|row| row.need == Need::Nothing && row.told.is_empty());
        // What was given up may have come, and nobody has seen it yet.
        let whole = whole && self.stored.notes.values().all(|note| note.state != State::GivenUp);
        // Only then no later entry has touched the documents.
        if whole
            && self.trusted
            && !self.deceived
            && self.node.furthest(shard) <= to
            && self.followed_is_settled(shard, to)
        {
            let (seen, wanted) = (self.node.documents(shard), self.journal.state(shard, to));
            assert_eq!(seen, wanted, "seed {}: shard {shard} after {to}", self.seed);
            self.count("compared");
        }
    }

    /// No entry up to here was done here and failed at the primary, which has not said so yet.
    fn followed_is_settled(&self, shard: ShardId, to: u64) -> bool {
        let unsaid = |seq: &u64| {
            let entry = self.journal.entry(shard, *seq);
            entry.is_failed() && !self.failed.contains_key(&(shard, *seq))
        };
        !(1..=to).any(|seq| unsaid(&seq))
    }

    fn send(&mut self, request: Request) {
        let (seed, process) = (self.seed, self.processes);
        let note = self.stored.notes.get(&request.note);
        assert!(note.is_some_and(|n| n.state == State::Sent && n.spans == request.spans), "seed {seed}: not noted");
        assert!(self.asking.is_empty(), "seed {seed}: two requests at a time");
        self.asking.insert(request.note);
        self.count("requests");
        let (note, mut when) = (request.note, self.rng.u64(100..2_000));
        let timeout = 100_000;
        if self.chance(self.faults.late) {
            when = self.rng.u64(timeout..2_500_000);
        } else if self.chance(self.faults.lost) {
            match self.rng.u32(0..4) {
                0 => return self.at(when, Event::Answer { process, note, answer: Answer::NotSent }),
                1 => return self.at(timeout, Event::Answer { process, note, answer: Answer::Unknown }),
                // The answer is not waited for so long, but it is not given up yet.
                _ => when = self.rng.u64(timeout..timeout + 400_000),
            }
        }
        self.at(when, Event::Receive { process, request });
        self.at(timeout, Event::Answer { process, note, answer: Answer::Unknown });
    }

    pub(super) fn receive(&mut self, process: u64, request: &Request) {
        let work = work_of(&self.journal, request);
        let Work::Entries(entries) = &work else { return };
        assert!(!entries.is_empty(), "seed {}: nothing to be done", self.seed);
        if request.kind.is_conditional() && !self.comes_late && !self.deceived {
            for (shard, seq, _) in entries {
                let alone = entries.iter().filter(|(of, _, _)| of == shard).count() == 1;
                assert!(alone && self.node.waiting_entries(*shard) == 0, "seed {}: {shard}/{seq}", self.seed);
            }
        }
        if !self.comes_late && !self.deceived {
            for (shard, seq, _) in entries {
                let behind = self.node.waits_for(*shard).filter(|waits| waits >= seq);
                assert_eq!(behind, None, "seed {}: {shard}/{seq} comes behind what the node has not done", self.seed);
            }
        }
        let soon = self.rng.u64(100..1_500);
        let note = request.note;
        if entries.iter().any(|(_, _, e)| e.bad == Bad::AtOnce) {
            let answer = Answer::Refused(Flaw::new("malformed_payload", "an error"));
            return self.at(soon, Event::Answer { process, note, answer });
        }
        if self.chance(100) {
            self.node.other();
        }
        let tag = if self.config.tags { Tag::Note(note) } else { Tag::None };
        let task = self.node.enqueue(Group::of(request.kind), tag, work);
        self.wake_node();
        if !self.chance(self.faults.lost) {
            self.at(soon, Event::Answer { process, note, answer: Answer::Taken(task) });
        }
    }

    fn wake_node(&mut self) {
        if !self.node.working {
            self.node.working = true;
            let (life, when) = (self.node.life, self.node_pace());
            self.at(when, Event::Batch { life });
        }
    }

    fn node_pace(&mut self) -> u64 {
        if self.chance(30) { self.rng.u64(50_000..600_000) } else { self.rng.u64(500..30_000) }
    }

    pub(super) fn batch(&mut self, life: u64) {
        if life != self.node.life {
            return;
        }
        if self.chance(self.faults.restart) {
            return self.restart_node();
        }
        if self.chance(self.faults.cancel) {
            self.node.cancel();
            self.count("canceled");
        }
        let trouble = self.chance(self.faults.trouble);
        self.node.batch(self.now, trouble);
        if self.chance(100) {
            self.node.back_up();
        }
        if self.chance(self.faults.prune) {
            self.node.prune();
            self.count("pruned");
        }
        if self.chance(self.faults.trim) {
            for (shard, row) in &self.stored.lanes {
                let floor = self.journal.floors.get_mut(shard).unwrap();
                *floor = (*floor).max(row.applied.saturating_sub(self.rng.u64(0..20)));
            }
        }
        self.node.working = self.node.waits();
        if self.node.working {
            let when = self.node_pace();
            self.at(when, Event::Batch { life });
        }
    }

    fn restart_node(&mut self) {
        self.count("restarts");
        let repeats = self.chance(self.faults.repeat) && self.node.dies_done(self.now);
        self.node.life += 1;
        self.node.working = false;
        let back = self.chance(self.faults.put_back) && self.node.put_back();
        if back {
            self.count("put back");
            (self.deceived, self.put_back) = (true, self.now);
            for _ in 0..self.rng.usize(0..6) {
                if self.rng.bool() {
                    self.node.other();
                } else {
                    self.node.enqueue(Group::Addition, Tag::Other, Work::Entries(Vec::new()));
                }
            }
        }
        if self.node.waits() {
            self.wake_node();
        }
        let process = self.processes;
        if repeats {
            self.count("repeated");
            self.input(|core, env| core.handle_node(env, true));
        } else if !self.chance(self.faults.unseen) {
            let when = self.rng.u64(100..50_000);
            self.at(when, Event::Up { process });
        }
    }

    /// Fills a shard anew, as the learner of a snapshot does.
    pub(super) fn copy(&mut self, shard: ShardId) {
        self.count("rebuilt");
        let (process, committed) = (self.processes, self.journal.committed(shard));
        let at = self.rng.u64(committed.saturating_sub(5)..=committed);
        let documents = self.journal.state(shard, at).clone();
        let task = self.node.enqueue(Group::Addition, Tag::Other, Work::Copy(shard, at, documents));
        self.wake_node();
        let when = self.rng.u64(5_000..100_000);
        self.at(when, Event::Copied { process, shard, task, at });
    }

    /// Gives documents as the primary has them.
    fn take(&mut self, shard: ShardId, seqs: BTreeSet<u64>) {
        self.count("takes");
        let (process, when) = (self.processes, self.rng.u64(5_000..50_000));
        let (first, last) = (*seqs.first().unwrap(), *seqs.last().unwrap());
        let at = self.rng.u64(last..=self.journal.committed(shard));
        if self.journal.has_conditional(shard, first, at) || self.is_wide(shard, &seqs) {
            return self.at(when, Event::NotTaken { process, shard });
        }
        let ids: BTreeSet<u32> =
            seqs.iter().flat_map(|seq| &self.journal.entry(shard, *seq).documents).map(|(id, _)| *id).collect();
        let state = self.journal.state(shard, at);
        let documents = ids.into_iter().map(|id| (id, state.get(&id).cloned())).collect();
        let task = self.node.enqueue(Group::Addition, Tag::Other, Work::Documents(shard, documents, seqs, at));
        self.wake_node();
        self.at(when, Event::Took { process, shard, task });
    }

    /// Entries that name no documents are about all of them.
    fn is_wide(&self, shard: ShardId, seqs: &BTreeSet<u64>) -> bool {
        use crate::proto::journal::Kind;
        let wide = |kind| matches!(kind, Kind::DeleteByFilter | Kind::Edit | Kind::Clear);
        seqs.iter().any(|seq| wide(self.journal.entry(shard, *seq).kind))
    }
}
