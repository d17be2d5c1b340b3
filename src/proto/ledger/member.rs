//! One member's part of the ledger: acceptor, proposer, copies and the rest behind one interface.
//!
//! Rule: the contract of [`crate::proto`]. A message is looked at in this order: its bounds, its sender's store, its mesh,
//! its voter list, and only then what it says. Must not know: sockets, clocks, SQL, what records mean.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::base::{Base, Outgoing};
use super::copies::Copies;
use super::effect::{Answer, Command, Config, Effect, Notice, RecoveringRow, Refused, Row};
use super::forming::{self, Forming};
use super::message::{Header, Item, Message, Refusal};
use super::proposer::{Finished, Job, Origin, Proposer, Want};
use super::recovering::Recovering;
use super::settle::Settle;
use super::showing::Showing;
use super::stored::Stored;
use super::stores::{self, Heard, Seen};
use super::votes;
use crate::proto::env::{Env, Instant};
use crate::types::limits::MEMBERS_MAX;
use crate::types::{MemberId, MeshId, MeshRecord, RecordKey, StoreId, Versioned, Voter, VoterList};

/// The core. See [`crate::proto`] for the order in which a driver calls it.
#[derive(Debug, Clone)]
pub struct Ledger {
    base: Base,
    proposer: Proposer,
    settle: Settle,
    copies: Copies,
    forming: Forming,
    recovering: Recovering,
    showing: Showing,
}

impl Ledger {
    /// Goes on from what is durable, as a new process: `stored` has been through [`Stored::begin`], and that is durable.
    pub fn recover(config: Config, stored: Stored, env: &mut Env) -> Self {
        // Not 0, so that no process is the one of which nothing is known.
        let mut base = Base::new(config, stored, env.rng.u64(1..));
        if !base.stored.rolled_back {
            base.persist(Row::Began(base.process));
        }
        let voters = base.stored.list.iter().flat_map(|l| l.voters.iter());
        base.heard = voters.map(|v| (v.member.clone(), env.now)).collect();
        if base.stored.rolled_back {
            base.effects.push_back(rolled_back(&base));
        }
        let mut copies = Copies::default();
        if let Some((_, record)) = base.record() {
            copies.relisted(&base, &record);
        }
        Self {
            base,
            proposer: Proposer::default(),
            settle: Settle::new(env.now),
            copies,
            forming: Forming::new(env.now),
            recovering: Recovering::default(),
            showing: Showing::new(env.now),
        }
    }

    /// A message from the member `from`, as the transport has proved it.
    pub fn handle_message(&mut self, env: &mut Env, from: &MemberId, message: Message) {
        let base = &mut self.base;
        if base.stored.rolled_back || *from == base.config.member {
            return;
        }
        if let Err(error) = message.check() {
            base.notice(Notice::Malformed { member: from.clone(), error });
            return;
        }
        if let Some(refusal) = self.look_at_sender(env.now, from, &message.header) {
            let header = &message.header;
            // A refusal is not refused in turn.
            if !message.items.iter().all(|i| matches!(i, Item::Refused(_) | Item::Shown)) {
                self.base.send(from, Some(header.sender.store), None, Item::Refused(refusal));
            }
            self.base.flush();
            return;
        }
        self.let_vote(env);
        let for_this_store = message.header.to_store.is_none_or(|s| s == self.base.stored.store);
        let mut meant_for_us = None;
        for item in message.items {
            match item {
                // What was said to this member's former store: only questions are worth a refusal.
                item if !for_this_store && !item.is_question() => {}
                item if outside_of_a_mesh(&item) => self.outside(env, from, &message.header, item),
                item => {
                    let meant = *meant_for_us.get_or_insert_with(|| self.look_at_mesh(env, from, &message.header));
                    if meant {
                        self.inside(env, from, &message.header, item);
                    }
                }
            }
            self.settle_down(env);
        }
        self.base.flush();
    }

    /// Time has passed: due at [`Ledger::next_wake`], harmless at any other time.
    pub fn handle_tick(&mut self, env: &mut Env) {
        if self.base.stored.rolled_back {
            return;
        }
        self.showing.tick(&mut self.base, env);
        self.let_vote(env);
        self.proposer.tick(&mut self.base, env);
        self.forming.tick(&mut self.base, env);
        self.recovering.tick(&mut self.base, env);
        if self.base.stored.recovering.is_none() {
            self.settle_down(env);
            self.copies.tick(&mut self.base, env);
            self.settle.tick(&mut self.base, env, &mut self.proposer);
        }
        self.settle_down(env);
        self.base.flush();
    }

    /// Takes a command; each operation in it is answered by an [`Effect::Answer`].
    pub fn submit(&mut self, env: &mut Env, command: Command) {
        let jobs: Vec<_> = match command {
            Command::Change(changes) => changes
                .into_iter()
                .map(|c| {
                    let want = Want::Change { expected: c.expected, value: c.value, quiet: c.quiet };
                    (c.key, Job::new(Origin::Caller(c.op), want, c.deadline))
                })
                .collect(),
            Command::Read(reads) => {
                reads.into_iter().map(|r| (r.key, Job::new(Origin::Caller(r.op), Want::Read, r.deadline))).collect()
            }
            Command::Peers(peers) => {
                self.forming.peers = peers.into_iter().take(MEMBERS_MAX).collect();
                Vec::new()
            }
            Command::Recover { survivors } => {
                if !self.base.stored.rolled_back && survivors.len() <= MEMBERS_MAX {
                    self.recovering.order(&mut self.base, env, survivors);
                    if self.base.stored.recovering.is_some() {
                        self.proposer.halt();
                    }
                }
                Vec::new()
            }
        };
        for (key, job) in jobs {
            if self.base.stored.rolled_back {
                let Origin::Caller(op) = job.origin else { continue };
                let answer = Answer::Refused { why: Refused::RolledBack };
                self.base.effects.push_back(Effect::Answer { op, answer });
            } else {
                self.proposer.add(&mut self.base, env, &key, job);
            }
        }
        self.settle_down(env);
        self.base.flush();
    }

    /// What is to be done, until `None`.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.base.effects.pop_front()
    }

    /// When [`Ledger::handle_tick`] is due next.
    pub fn next_wake(&self) -> Option<Instant> {
        if self.base.stored.rolled_back {
            return None;
        }
        let works = self.base.made() && self.base.stored.recovering.is_none();
        let always = works.then(|| self.copies.next_wake().min(self.settle.next_wake()));
        let proposer = self.proposer.next_wake(&self.base.config);
        let (forming, recovering) = (self.forming.next_wake(&self.base), self.recovering.next_wake(&self.base));
        [always, proposer, forming, recovering, self.showing.next_wake(&self.base)].into_iter().flatten().min()
    }

    /// This member's own copy of a record: chosen and durable, perhaps not the newest.
    pub fn copy(&self, key: &RecordKey) -> Option<&Versioned> {
        self.base.stored.copies.get(key)
    }

    /// Whether the copies hold everything that was announced a TTL less margin ago.
    pub fn fresh(&self, now: Instant) -> bool {
        let out = self.base.stored.recovering.is_some() || self.base.stored.rolled_back;
        !out && self.copies.fresh(&self.base.config, now)
    }

    /// How long ago the copies were known to be whole, counted from the question; `None`: never in this process.
    pub fn whole_for(&self, now: Instant) -> Option<Duration> {
        self.copies.whole_as_of().map(|at| now.since(at))
    }

    /// The mesh to which this member belongs, once its record is known to be chosen.
    pub fn mesh(&self) -> Option<MeshId> {
        self.base.stored.mesh.filter(|(_, made)| *made).map(|(mesh, _)| mesh)
    }

    /// The newest voter list that this member knows.
    pub fn voters(&self) -> Option<&VoterList> {
        self.base.stored.list.as_deref()
    }

    /// This member.
    pub fn member(&self) -> &MemberId {
        &self.base.config.member
    }

    /// Whether this process votes and draws ballots: it does once the other members have taken it.
    pub fn votes(&self) -> bool {
        self.base.may_vote
    }

    /// The members that this process waits for before it votes; `None` once it does, or if it is kept from it otherwise.
    pub fn waits_to_vote(&self) -> Option<Vec<MemberId>> {
        self.showing.waits_for(&self.base)
    }

    /// The operator's order under which this member has left its mesh, and the survivors that have not handed over their
    /// records, as far as it is this member that makes the new mesh.
    pub fn recovering(&self) -> Option<(&RecoveringRow, BTreeSet<MemberId>)> {
        self.base.stored.recovering.as_ref().map(|row| (row, self.recovering.missing(&self.base)))
    }

    /// What this member knows of another store.
    pub fn seen(&self, store: StoreId) -> Option<&Seen> {
        self.base.seen(store)
    }

    /// Everything that is durable once the effects are drained and stored.
    pub fn stored(&self) -> &Stored {
        &self.base.stored
    }

    /// From here on this process votes and proposes, if it may.
    fn let_vote(&mut self, env: &mut Env) {
        if self.showing.opens(&mut self.base) {
            self.proposer.relist(&mut self.base, env);
        }
    }

    /// Remembers the sender's store; a refusal if it is older than it was, or has not shown itself.
    fn look_at_sender(&mut self, now: Instant, from: &MemberId, header: &Header) -> Option<Refusal> {
        let base = &mut self.base;
        let store = header.sender.store;
        // Who has lost its store has to be shown everything again.
        if header.took == Some(base.process) {
            base.shown.insert(from.clone());
        } else {
            base.shown.remove(from);
        }
        let refusal = match stores::hear(base.seen(store), &header.sender, header.line.as_deref()) {
            Heard::Same => None,
            Heard::Further(seen) => {
                base.remember(seen, false);
                None
            }
            Heard::Took(seen) => {
                base.remember(seen, true);
                None
            }
            Heard::Unshown => Some(Refusal::Unshown),
            Heard::Refuse(refusal, seen) => {
                seen.into_iter().for_each(|seen| base.remember(seen, true));
                base.notice(Notice::StoreRolledBack { member: from.clone() });
                Some(refusal)
            }
        };
        if refusal.is_none() && (base.heard.contains_key(from) || base.heard.len() < 2 * MEMBERS_MAX) {
            base.told(&header.known, now);
            base.stores.insert(from.clone(), store);
            base.heard.insert(from.clone(), now);
        }
        refusal
    }

    /// Whether what the message says inside a mesh is for this member: the same mesh, or one that it joins by this, or
    /// one that the sender may make with it.
    fn look_at_mesh(&mut self, env: &mut Env, from: &MemberId, header: &Header) -> bool {
        let base = &mut self.base;
        let (Some(mesh), Some(list)) = (header.mesh, &header.list) else {
            // Voters that belong to no mesh yet answer the one that makes it.
            return header.mesh.is_none() && base.proposed.is_some();
        };
        if base.stored.recovering.is_some() {
            return false;
        }
        match base.stored.mesh {
            Some((own, _)) if own != mesh => {
                base.notice(Notice::OtherMesh { member: from.clone(), mesh });
                return false;
            }
            None | Some((_, false)) if header.made => {
                self.forming.heard_of(base, env, &mut self.proposer, from, mesh, list);
            }
            // Whether this member may vote in it yet is looked at with each question.
            None => return true,
            Some(_) => {}
        }
        self.adopt(env, list);
        true
    }

    /// Takes over a newer voter list; it is durable before anything is answered under it.
    fn adopt(&mut self, env: &mut Env, list: &Arc<VoterList>) {
        let base = &mut self.base;
        if base.stored.list.as_ref().is_some_and(|own| own.number < list.number) {
            base.persist(Row::List(Arc::clone(list)));
            // A new voter has as long to be heard as the others had when this process began.
            for voter in &list.voters {
                base.heard.entry(voter.member.clone()).or_insert(env.now);
            }
            self.copies.relist(list);
            self.proposer.relist(base, env);
        }
    }

    /// What may be said without a common mesh.
    fn outside(&mut self, env: &mut Env, from: &MemberId, header: &Header, item: Item) {
        let (base, store) = (&mut self.base, header.sender.store);
        match item {
            Item::FormAsk { round, hash, bind } => Forming::asked(base, from, header, round, hash, bind),
            Item::FormAnswer { round, hash, knows } if round.start == base.stored.start => {
                self.forming.answered(base, env, &mut self.proposer, from, store, round, hash, knows);
            }
            Item::RecoverAsk { round, old, new, survivors, after } => {
                let row = RecoveringRow { old, new, leader: from.clone(), survivors };
                if Recovering::asked(base, from, round, row, after) {
                    self.proposer.halt();
                }
            }
            Item::RecoverPage { round, after, rows, more } => {
                let made = self.recovering.page(base, from, store, round, after.as_ref(), (rows, more));
                made.then(|| self.proposer.relist(base, env));
            }
            Item::Show => base.send(from, Some(store), None, Item::Shown),
            // It is in the header.
            Item::Shown => {}
            Item::Refused(Refusal::Unshown) => base.send(from, None, None, Item::Show),
            Item::Refused(Refusal::RolledBack { store, refused, .. })
                if store == base.stored.store && refused == base.process =>
            {
                base.persist(Row::RolledBack);
                base.effects.push_back(rolled_back(base));
                self.proposer.halt();
            }
            _ => {}
        }
    }

    /// What is said inside the mesh.
    fn inside(&mut self, env: &mut Env, from: &MemberId, header: &Header, item: Item) {
        let base = &mut self.base;
        let voter = Voter { member: from.clone(), store: header.sender.store };
        let under = header.list.as_ref().map_or(0, |l| l.number);
        let proposer = &mut self.proposer;
        match item {
            Item::Promised { round, .. }
            | Item::Accepted { round, .. }
            | Item::Higher { round, .. }
            | Item::Found { round, .. } => proposer.vote(base, env, &voter, under, round, &item),
            Item::Raised { round } => self.settle.raised(base, env, &voter, under, round),
            Item::KeysPage { round, after, keys, more } => {
                self.settle.listed(base, env, proposer, &voter, under, round, after.as_ref(), keys, more);
            }
            Item::Newer { round, after, entries, more } => {
                self.copies.answered(base, env, proposer, &voter, round, entries, after.as_ref(), more);
            }
            Item::Push { key, version, announced, body } => {
                if Copies::pushed(base, from, &key, version, announced, body) && key.is_mesh() {
                    self.mesh_changed(env);
                }
            }
            Item::Pushed { key, version } => self.copies.acknowledged(base, from, key, version),
            Item::PushWhole { key } => Copies::whole(base, from, &key),
            // The list in its header is what there is to learn.
            Item::Refused(_) => {}
            request => self.request(from, header, request),
        }
    }

    /// What is asked of this member as a voter.
    fn request(&mut self, from: &MemberId, header: &Header, item: Item) {
        let base = &mut self.base;
        if header.mesh.is_none() || base.stored.mesh.is_none() && !forming::admits(base, from, header) {
            return;
        }
        // Silence: whoever needs the answer asks again.
        if !base.may_vote && base.made() {
            return;
        }
        let answer = match votes::admit(base, header) {
            Err(refusal) => {
                base.send(from, Some(header.sender.store), base.stored.list.clone(), Item::Refused(refusal));
                return;
            }
            Ok(()) => votes::vote(base, header, item),
        };
        if let Some(answer) = answer {
            base.send(from, Some(header.sender.store), header.list.clone(), answer);
        }
    }

    /// Carries out what the parts have told one another, until nothing is left. Each is a step towards the end of a
    /// bounded number of operations.
    fn settle_down(&mut self, env: &mut Env) {
        loop {
            if let Some(finished) = self.proposer.finished.pop_front() {
                self.finish(env, finished);
            } else if let Some(Outgoing { to, store, list, item }) = self.base.local.pop_front() {
                let header = self.base.own_header(store, list);
                if outside_of_a_mesh(&item) {
                    self.outside(env, &to, &header, item);
                } else if self.base.stored.recovering.is_none() {
                    self.inside(env, &to, &header, item);
                }
            } else {
                return;
            }
        }
    }

    /// An operation has ended: what it showed as chosen is learnt, and its owner is told.
    fn finish(&mut self, env: &mut Env, finished: Finished) {
        let Finished { origin, key, answer, chosen } = finished;
        let base = &mut self.base;
        if let Some(record) = chosen {
            let changed = matches!(answer, Answer::Changed { .. });
            let old = base.stored.copies.get(&key).cloned();
            // A quiet change is for the voters alone.
            if !(changed && record.announced < record.version) && base.learn(&key, &record) {
                if key.is_mesh() {
                    self.mesh_changed(env);
                }
                // A change that is a rival's was carried to its end here: the rival may not know that, nor anybody else.
                let written = changed || matches!(answer, Answer::Conflict { .. });
                if written && record.announced == record.version {
                    self.copies.push(&mut self.base, &key, old.as_ref(), &record);
                }
            }
        }
        let base = &mut self.base;
        match origin {
            Origin::Caller(op) => base.effects.push_back(Effect::Answer { op, answer }),
            Origin::Copies(id) => self.copies.read(base, id, matches!(answer, Answer::Read { .. })),
            Origin::Voters(id) => self.settle.ended(base, env, &mut self.proposer, id, &key, &answer),
            Origin::Forming => self.forming.ended(base, env.now),
        }
    }

    /// The copy of the mesh record is another one: it is made, and it names the voters.
    fn mesh_changed(&mut self, env: &mut Env) {
        let Some((_, record)) = self.base.record() else { return };
        self.copies.relisted(&self.base, &record);
        let MeshRecord { mesh, voters, .. } = record;
        if self.base.mesh() != Some(mesh) || !voters.is_well_formed() {
            return;
        }
        let list = Arc::new(voters);
        if self.base.made() {
            self.adopt(env, &list);
        } else {
            let me = self.base.config.member.clone();
            self.forming.heard_of(&mut self.base, env, &mut self.proposer, &me, mesh, &list);
        }
    }
}

fn rolled_back(base: &Base) -> Effect {
    let text = format!(
        "the store {} of member {} is older than other members have seen it: it was put back from a copy or a snapshot. It \
         has forgotten votes, so it takes no part any more. Stop this member, move its store away, and start it again: it \
         joins with a new store",
        base.stored.store, base.config.member
    );
    Effect::RolledBack { text }
}

fn outside_of_a_mesh(item: &Item) -> bool {
    matches!(
        item,
        Item::FormAsk { .. }
            | Item::FormAnswer { .. }
            | Item::RecoverAsk { .. }
            | Item::RecoverPage { .. }
            | Item::Show
            | Item::Shown
            | Item::Refused(Refusal::RolledBack { .. } | Refusal::Unshown)
    )
}
