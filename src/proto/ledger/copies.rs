//! What this member knows as chosen, whom it tells, and whether it has heard everything.
//!
//! Pushes tell every member of the mesh a value right after it was chosen. They may get lost, so every `renew_interval`
//! each member shows the voters one digest of its copies. A voter that holds other values, chosen or not, lists its keys;
//! where it has a newer one, the member reads that key from a majority, and asks the voter for its copy, if it has one: who
//! reaches no majority hears what was chosen all the same. What was chosen before the question was sent is
//! held by a majority, so by one of any majority of answers: once those are read, the copies are whole as of the sending.
//!
//! Rule: a copy comes from a proposer that saw the value chosen, from a majority read, or from another's copy; a list of keys
//! only says what to read. An answer counts when everything it calls for has been read, and if the question was sent by a member that knew
//! itself to be listed: whoever changes a record and waits for all who are listed afterwards knows of all others that they ask
//! after the change. Must not know: what the records mean.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::base::Base;
use super::diff;
use super::effect::Config;
use super::message::{Item, PushBody, RoundId};
use super::proposer::{Job, Origin, Proposer, Want};
use crate::proto::env::{Env, Instant};
use crate::types::limits::LEDGER_ITEMS_MAX;
use crate::types::{MemberId, MeshRecord, RecordKey, Versioned, Voter, VoterList};

/// One digest shown to one voter, and what came of it.
#[derive(Debug, Clone)]
struct Exchange {
    round: RoundId,
    sent: Instant,
    /// The last key of the page that was read; more follows if `more`.
    after: Option<RecordKey>,
    more: bool,
    /// Reads under way.
    reading: usize,
    /// What the voter had newer: keys with their announced versions.
    newer: Vec<(RecordKey, u64)>,
    /// A page has come.
    answered: bool,
}

impl Exchange {
    /// Whether all that is being read has come in another way.
    fn has_heard(&self, base: &Base) -> bool {
        self.reading > 0 && !self.newer.iter().any(|newer| base.lacks(newer))
    }
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Copies {
    due: Instant,
    exchanges: BTreeMap<Voter, Exchange>,
    /// When the question was sent whose answer has counted, of those asked under `list`.
    counted: BTreeMap<Voter, Instant>,
    list: Option<Arc<VoterList>>,
    /// What a voter was asked for, at its answer, since the last tick: one is enough where a majority is reached.
    asked: BTreeSet<RecordKey>,
    /// As of then they were whole by the answers under earlier lists, which stays true.
    earlier: Option<Instant>,
    /// The mesh's record lists this member.
    listed: bool,
    /// Which version of a long record each member is known to have.
    known: BTreeMap<MemberId, BTreeMap<RecordKey, u64>>,
}

/// The span within which an answer must have been asked for.
fn horizon(config: &Config) -> Duration {
    config.lease_ttl - config.lease_ttl / 20
}

impl Copies {
    /// The instant as of which the copies are known to be whole.
    pub fn whole_as_of(&self) -> Option<Instant> {
        let mut sent: Vec<_> = self.counted.values().copied().collect();
        sent.sort();
        let majority = self.list.as_ref().map_or(usize::MAX, |list| list.majority());
        // Of the newest majority the oldest.
        sent.len().checked_sub(majority).map(|i| sent[i]).max(self.earlier)
    }

    /// Whether that is recent enough.
    pub fn fresh(&self, config: &Config, now: Instant) -> bool {
        self.listed && self.whole_as_of().is_some_and(|at| now.since(at) < horizon(config))
    }

    /// When [`Copies::tick`] is due.
    pub fn next_wake(&self) -> Instant {
        self.due
    }

    /// Shows the digest to every voter.
    pub fn tick(&mut self, base: &mut Base, env: &Env) {
        // A member that has just joined shows them at once.
        let Some(list) = base.stored.list.clone().filter(|_| base.made()) else { return };
        if env.now < self.due {
            return;
        }
        // Until it has heard enough it asks again as soon as a question may be taken for lost.
        let lost_after = base.config.round_timeout.saturating_mul(2).min(base.config.renew_interval);
        self.relist(&list);
        let fresh = self.fresh(&base.config, env.now) && !self.is_cut_off(env.now, lost_after, list.majority());
        self.due = env.now.plus(if fresh { base.config.renew_interval } else { lost_after });
        self.asked.clear();
        for voter in &list.voters {
            // One that is reading still counts from its sending; one without an answer is asked anew, and one that has heard from
            // the voter what it reads: there may be more by now.
            let goes_on =
                |e: &Exchange| env.now.since(e.sent) < if e.answered { base.config.lease_ttl } else { lost_after };
            if let Some(exchange) = self.exchanges.get(voter).filter(|e| goes_on(e) && !e.has_heard(base)) {
                // What it had then may have been accepted by it only, and chosen since.
                exchange.newer.iter().for_each(|newer| ask_for_copy(base, voter, newer));
                continue;
            }
            let round = base.round_id();
            let exchange = Exchange {
                round,
                sent: env.now,
                after: None,
                more: false,
                reading: 0,
                newer: Vec::new(),
                answered: false,
            };
            self.exchanges.insert(voter.clone(), exchange);
            self.show(base, &list, voter, round, None);
        }
    }

    /// Whether fewer than a majority have answered when they should have.
    fn is_cut_off(&self, now: Instant, lost_after: Duration, majority: usize) -> bool {
        let lost = |e: &&Exchange| !e.answered && now.since(e.sent) >= lost_after;
        let voters = self.list.as_ref().map_or(0, |list| list.voters.len());
        voters - self.exchanges.values().filter(lost).count().min(voters) < majority
    }

    fn show(&self, base: &mut Base, list: &Arc<VoterList>, to: &Voter, round: RoundId, after: Option<RecordKey>) {
        let item = Item::Digest { round, digest: base.digest, after };
        base.send(&to.member, Some(to.store), Some(Arc::clone(list)), item);
    }

    /// Goes by this list. Answers under different lists are not counted together: a majority of one need not meet a majority
    /// of another.
    pub fn relist(&mut self, list: &Arc<VoterList>) {
        if self.list.as_ref() == Some(list) {
            return;
        }
        // A lower number is another mesh's.
        let newer = self.list.as_ref().is_some_and(|own| own.number < list.number);
        self.earlier = self.whole_as_of().filter(|_| newer);
        self.list = Some(Arc::clone(list));
        self.ask_anew();
    }

    fn ask_anew(&mut self) {
        self.counted.clear();
        self.exchanges.clear();
        self.due = Instant::default();
    }

    /// The mesh's record is another one, or was read from the store. Who has just been listed asks anew.
    pub fn relisted(&mut self, base: &Base, record: &MeshRecord) {
        let listed = record.present().any(|m| m.id == base.config.member);
        if listed && !self.listed {
            self.earlier = None;
            self.ask_anew();
        }
        self.listed = listed;
    }

    /// As a voter: what a member with this digest should look at.
    pub fn compare(base: &Base, round: RoundId, digest: [u64; 2], after: Option<RecordKey>) -> Item {
        if after.is_none() && digest == base.view {
            return Item::Newer { round, after, entries: Vec::new(), more: false };
        }
        let mut rest = base.keys_behind(after.as_ref()).into_iter().map(|k| (k.clone(), base.announced(k)));
        let entries: Vec<_> = rest.by_ref().take(LEDGER_ITEMS_MAX).collect();
        let more = rest.next().is_some();
        Item::Newer { round, after, entries, more }
    }

    /// A voter's answer: what is newer there is read from a majority.
    #[expect(clippy::too_many_arguments, reason = "the parts of one answer")]
    pub fn answered(
        &mut self,
        base: &mut Base,
        env: &mut Env,
        proposer: &mut Proposer,
        voter: &Voter,
        id: RoundId,
        entries: Vec<(RecordKey, u64)>,
        after: Option<&RecordKey>,
        more: bool,
    ) {
        let Some(exchange) = self.exchanges.get_mut(voter) else { return };
        // A page that comes twice is behind what was read already.
        if exchange.round != id || exchange.reading > 0 || exchange.after.as_ref() != after {
            return;
        }
        exchange.answered = true;
        exchange.more = more;
        exchange.after = entries.last().map(|(key, _)| key.clone()).or(exchange.after.take());
        let read: Vec<_> = entries.into_iter().filter(|entry| base.lacks(entry)).collect();
        exchange.reading = read.len();
        exchange.newer.clone_from(&read);
        let deadline = env.now.plus(base.config.lease_ttl);
        for (key, _) in read {
            proposer.add(base, env, &key, Job::new(Origin::Copies(id), Want::Read, deadline));
        }
        let first = exchange.newer.iter().filter(|(key, _)| self.asked.insert(key.clone()));
        first.for_each(|newer| ask_for_copy(base, voter, newer));
        self.go_on(base, voter);
    }

    /// A read of an exchange has ended.
    pub fn read(&mut self, base: &mut Base, id: RoundId, known: bool) {
        let Some((voter, exchange)) = self.exchanges.iter_mut().find(|(_, e)| e.round == id) else { return };
        let voter = voter.clone();
        if !known {
            // It does not count; the next one asks again.
            self.exchanges.remove(&voter);
            return;
        }
        exchange.reading = exchange.reading.saturating_sub(1);
        if exchange.reading == 0 {
            exchange.newer.clear();
        }
        self.go_on(base, &voter);
    }

    fn go_on(&mut self, base: &mut Base, voter: &Voter) {
        let Some(exchange) = self.exchanges.get(voter).filter(|e| e.reading == 0) else { return };
        let (round, after, sent) = (exchange.round, exchange.after.clone(), exchange.sent);
        if exchange.more {
            if let Some(list) = base.stored.list.clone() {
                self.show(base, &list, voter, round, after);
            }
            return;
        }
        self.exchanges.remove(voter);
        let counted = self.counted.entry(voter.clone()).or_insert(sent);
        *counted = (*counted).max(sent);
    }

    /// Tells everybody a value that was just chosen; `old` is what this member had before.
    pub fn push(&self, base: &mut Base, key: &RecordKey, old: Option<&Versioned>, new: &Versioned) {
        let Some((_, record)) = base.record() else { return };
        for member in record.present().map(|m| &m.id) {
            if *member == base.config.member {
                continue;
            }
            let known = self.known.get(member).and_then(|k| k.get(key));
            let body = match old {
                Some(old) if known == Some(&old.version) => diff::between(old.version, &old.value, &new.value),
                _ => PushBody::Whole(Arc::clone(&new.value)),
            };
            send_push(base, member, key, new, body);
        }
    }

    /// A member says which version it has.
    pub fn acknowledged(&mut self, base: &Base, from: &MemberId, key: RecordKey, version: u64) {
        // Only of a record that this member has, so that there are no more entries than records.
        if base.stored.copies.contains_key(&key) && base.record().is_some_and(|(_, r)| r.member(from).is_some()) {
            self.known.entry(from.clone()).or_default().insert(key, version);
        }
    }

    /// A chosen value came: what it is, with what was kept of the version before.
    pub fn pushed(
        base: &mut Base,
        from: &MemberId,
        key: &RecordKey,
        version: u64,
        announced: u64,
        body: PushBody,
    ) -> bool {
        let copy = base.stored.copies.get(key);
        let value = match body {
            PushBody::Whole(value) => value,
            PushBody::Difference { base: at, prefix, suffix, middle, hash } => {
                if copy.is_some_and(|c| c.version >= version) {
                    return false;
                }
                let old = copy.filter(|c| c.version == at);
                let Some(value) = old.and_then(|c| diff::applied(&c.value, prefix, suffix, &middle, hash)) else {
                    base.send(from, None, base.stored.list.clone(), Item::PushWhole { key: key.clone() });
                    return false;
                };
                value
            }
        };
        let long = value.len() >= diff::DIFFERENCE_MIN_BYTES;
        let news = base.learn(key, &Versioned { version, announced, value });
        if long && let Some(copy) = base.stored.copies.get(key) {
            let item = Item::Pushed { key: key.clone(), version: copy.version };
            base.send(from, None, base.stored.list.clone(), item);
        }
        news
    }

    /// A member could not apply a difference, or lacks what was chosen.
    pub fn whole(base: &mut Base, to: &MemberId, key: &RecordKey) {
        if let Some(copy) = base.stored.copies.get(key).cloned() {
            let body = PushBody::Whole(Arc::clone(&copy.value));
            send_push(base, to, key, &copy, body);
        }
    }
}

/// Asks a voter for what it knows as chosen, unless this member knows it by now.
fn ask_for_copy(base: &mut Base, voter: &Voter, newer: &(RecordKey, u64)) {
    if voter.member != base.config.member && base.lacks(newer) {
        base.send(&voter.member, None, base.stored.list.clone(), Item::PushWhole { key: newer.0.clone() });
    }
}

fn send_push(base: &mut Base, to: &MemberId, key: &RecordKey, record: &Versioned, body: PushBody) {
    let item = Item::Push { key: key.clone(), version: record.version, announced: record.announced, body };
    base.send(to, None, base.stored.list.clone(), item);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::StoreId;

    fn voter(i: u8) -> Voter {
        Voter { member: MemberId::new(format!("m{i}")).unwrap(), store: StoreId([i; 16]) }
    }

    fn list(number: u64, voters: &[u8]) -> Arc<VoterList> {
        Arc::new(VoterList::new(number, voters.iter().map(|i| voter(*i)).collect()))
    }

    #[test]
    fn answers_under_different_lists_are_not_counted_together() {
        let mut copies = Copies::default();
        copies.relist(&list(1, &[1, 2, 3, 4, 5]));
        let (before, after) = (Instant(1_000), Instant(2_000));
        copies.counted = (1..=5).map(|i| (voter(i), if i <= 2 { after } else { before })).collect();
        assert_eq!(copies.whole_as_of(), Some(before));
        // A change between the two may be known to 3, 4 and 5 alone when 5 and 4 go; 1 and 2 said nothing of it.
        copies.relist(&list(2, &[1, 2, 3, 4]));
        copies.relist(&list(3, &[1, 2, 3]));
        assert_eq!(copies.whole_as_of(), Some(before), "what was known stays known, and no more");
        copies.counted = [(voter(1), after), (voter(3), after)].into();
        assert_eq!(copies.whole_as_of(), Some(after));
        copies.relist(&list(1, &[1, 2, 3]));
        assert_eq!(copies.whole_as_of(), None, "another mesh");
    }
}
