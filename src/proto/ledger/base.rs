//! What the parts of the ledger share: the durable state, what goes out, and how it is bundled.
//!
//! Rule: every durable change goes through [`Base::persist`], so that memory and store never differ; what a step sends is
//! bundled at its end, so that what was said together travels together. What a member says to itself stays inside the
//! step. Must not know: what the parts decide.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use twox_hash::XxHash64;

use super::effect::{Config, Effect, Notice, Row};
use super::message::{Header, Item, Known, Message, Process, RoundId, Sender};
use super::stored::{Register, Stored};
use super::stores::{self, Seen};
use crate::proto::env::Instant;
use crate::proto::invariant;
use crate::types::limits::{LEDGER_ITEMS_MAX, LEDGER_MESSAGE_MAX_BYTES, LEDGER_STORES_MAX};
use crate::types::{MemberId, MeshId, MeshRecord, RecordKey, StoreId, Versioned, Voter, VoterList};

/// Notices that are remembered so as not to be repeated; beyond that they are told once more.
const NOTICES_MAX: usize = 1_024;

/// A mesh that this member is making, or helps to finish, before it is known to be made.
#[derive(Debug, Clone)]
pub struct Proposed {
    /// Which.
    pub mesh: MeshId,
    /// Its first list.
    pub list: Arc<VoterList>,
    /// The numbers under which the others let this member speak of it.
    pub numbers: BTreeMap<MemberId, u64>,
}

/// One item on its way.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// To whom.
    pub to: MemberId,
    /// Which store is meant.
    pub store: Option<StoreId>,
    /// Under which list it is said.
    pub list: Option<Arc<VoterList>>,
    /// What.
    pub item: Item,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Base {
    /// As given.
    pub config: Config,
    /// As durable, once the drain is.
    pub stored: Stored,
    /// This process, on its store.
    pub process: Process,
    /// Whether this process votes and proposes: see `showing`.
    pub may_vote: bool,
    /// The members that have taken this process.
    pub shown: BTreeSet<MemberId>,
    /// From which store each member was heard last.
    pub stores: BTreeMap<MemberId, StoreId>,
    /// Something of this step must be made durable.
    dirty: bool,
    /// Stores of which more was seen than is durable.
    further: BTreeMap<StoreId, Seen>,
    /// See [`Proposed`].
    pub proposed: Option<Proposed>,
    /// Digest of the copies.
    pub digest: [u64; 2],
    /// Digest of the newest of copies and accepted values: what a voter compares with.
    pub view: [u64; 2],
    /// When each member was heard last.
    pub heard: BTreeMap<MemberId, Instant>,
    /// For the driver.
    pub effects: VecDeque<Effect>,
    /// For this member itself.
    pub local: VecDeque<Outgoing>,
    outgoing: Vec<Outgoing>,
    rounds: u64,
    told: BTreeSet<Notice>,
}

/// What one key adds to a digest.
fn key_digest(key: &RecordKey, announced: u64) -> [u64; 2] {
    if announced == 0 {
        return [0, 0];
    }
    let mut bytes = announced.to_le_bytes().to_vec();
    bytes.extend_from_slice(key.as_str().as_bytes());
    [XxHash64::oneshot(0, &bytes), XxHash64::oneshot(1, &bytes)]
}

fn toggle(digest: &mut [u64; 2], part: [u64; 2]) {
    digest[0] ^= part[0];
    digest[1] ^= part[1];
}

impl Base {
    /// Over what is durable.
    pub fn new(config: Config, stored: Stored, nonce: u64) -> Self {
        let mut base = Self {
            process: Process { start: stored.start, nonce, began: stored.count },
            // The first process of a store has nothing that it could have forgotten.
            may_vote: stored.line.is_empty() && stored.count <= 1,
            shown: BTreeSet::new(),
            stores: BTreeMap::new(),
            config,
            stored,
            dirty: false,
            further: BTreeMap::new(),
            proposed: None,
            digest: [0, 0],
            view: [0, 0],
            heard: BTreeMap::new(),
            effects: VecDeque::new(),
            local: VecDeque::new(),
            outgoing: Vec::new(),
            // So that no answer to another process of the same start is taken for one to this.
            rounds: nonce >> 1,
            told: BTreeSet::new(),
        };
        for (key, copy) in &base.stored.copies {
            toggle(&mut base.digest, key_digest(key, copy.announced));
        }
        let keys: BTreeSet<_> = base.stored.copies.keys().chain(base.stored.registers.keys()).cloned().collect();
        for key in keys {
            let part = key_digest(&key, base.announced(&key));
            toggle(&mut base.view, part);
        }
        base
    }

    /// This member with its store.
    pub fn me(&self) -> Voter {
        Voter { member: self.config.member.clone(), store: self.stored.store }
    }

    /// A round id that this process has not used.
    pub fn round_id(&mut self) -> RoundId {
        self.rounds += 1;
        RoundId { start: self.stored.start, number: self.rounds }
    }

    /// The list under which this member proposes.
    pub fn list(&self) -> Option<&Arc<VoterList>> {
        self.stored.list.as_ref().or(self.proposed.as_ref().map(|p| &p.list))
    }

    /// The mesh that this member speaks of.
    pub fn mesh(&self) -> Option<MeshId> {
        self.stored.mesh.map(|(mesh, _)| mesh).or(self.proposed.as_ref().map(|p| p.mesh))
    }

    /// Whether the mesh's record is known to be chosen.
    pub fn made(&self) -> bool {
        self.stored.mesh.is_some_and(|(_, made)| made)
    }

    /// The mesh record, as far as this member knows it.
    pub fn record(&self) -> Option<(u64, MeshRecord)> {
        let copy = self.stored.copies.get(&RecordKey::mesh())?;
        MeshRecord::from_json(&copy.value).ok().map(|record| (copy.version, record))
    }

    /// What this member as a voter holds for newest, chosen or not; 0 for nothing.
    pub fn announced(&self, key: &RecordKey) -> u64 {
        let accepted = self.stored.registers.get(key).and_then(|r| r.accepted.as_ref()).map_or(0, |(_, v)| v.announced);
        accepted.max(self.stored.copies.get(key).map_or(0, |c| c.announced))
    }

    /// Whether somebody has a newer value of a key than this member's copy, by the version that was announced.
    pub fn lacks(&self, (key, announced): &(RecordKey, u64)) -> bool {
        *announced > self.stored.copies.get(key).map_or(0, |copy| copy.announced)
    }

    /// The first keys behind `after` that have a vote or a copy here, in order: more than one message holds, if there are.
    pub fn keys_behind(&self, after: Option<&RecordKey>) -> BTreeSet<&RecordKey> {
        let from = || (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        // The first keys of both are among the first so many of each.
        let most = 2 * LEDGER_ITEMS_MAX;
        let held = self.stored.registers.range::<RecordKey, _>(from()).map(|(k, _)| k).take(most);
        let copied = self.stored.copies.range::<RecordKey, _>(from()).map(|(k, _)| k).take(most);
        held.chain(copied).collect()
    }

    /// Makes one change of the durable state.
    ///
    /// # Panics
    /// If the row would take back a promise or a copy: no input can make this member do that.
    pub fn persist(&mut self, row: Row) {
        let key = match &row {
            Row::Promise { key, .. } | Row::Accepted { key, .. } | Row::Copy { key, .. } => Some(key.clone()),
            _ => None,
        };
        self.check(&row);
        let before = key.as_ref().map(|k| (self.copied(k), self.announced(k)));
        if matches!(row, Row::Reset) {
            self.view = self.digest;
        }
        self.stored.apply(row.clone());
        if let (Some(key), Some((copied, announced))) = (key, before) {
            let after = (self.copied(&key), self.announced(&key));
            toggle(&mut self.digest, key_digest(&key, copied));
            toggle(&mut self.digest, key_digest(&key, after.0));
            toggle(&mut self.view, key_digest(&key, announced));
            toggle(&mut self.view, key_digest(&key, after.1));
        }
        self.effects.push_back(Effect::Persist(row));
        self.dirty = true;
    }

    fn copied(&self, key: &RecordKey) -> u64 {
        self.stored.copies.get(key).map_or(0, |c| c.announced)
    }

    fn check(&self, row: &Row) {
        let held = |key| self.stored.registers.get(key).and_then(|r: &Register| r.promise.as_ref());
        let broken = match row {
            Row::Promise { key, ballot } => {
                invariant::promises_never_go_back(key, held(key), Some(ballot), Some(ballot)).err()
            }
            Row::Accepted { key, promise, ballot, .. } => {
                invariant::promises_never_go_back(key, held(key), Some(promise), Some(ballot)).err()
            }
            Row::Copy { key, record } => {
                invariant::versions_never_go_back(key, self.stored.copies.get(key), record).err()
            }
            _ => None,
        };
        assert!(broken.is_none(), "{broken:?}");
    }

    /// Says something to a member, or to this one itself.
    pub fn send(&mut self, to: &MemberId, store: Option<StoreId>, list: Option<Arc<VoterList>>, item: Item) {
        let out = Outgoing { to: to.clone(), store, list, item };
        if out.to == self.config.member { self.local.push_back(out) } else { self.outgoing.push(out) }
    }

    /// Says something to every voter of a list.
    pub fn send_voters(&mut self, list: &Arc<VoterList>, item: &Item) {
        for voter in &list.voters {
            self.send(&voter.member, Some(voter.store), Some(Arc::clone(list)), item.clone());
        }
    }

    /// Tells people, once.
    pub fn notice(&mut self, notice: Notice) {
        if self.told.len() >= NOTICES_MAX {
            self.told.clear();
        }
        if self.told.insert(notice.clone()) {
            self.effects.push_back(Effect::Notice(notice));
        }
    }

    /// What was seen of another store.
    pub fn seen(&self, store: StoreId) -> Option<&Seen> {
        self.further.get(&store).or_else(|| self.stored.seen.get(&store))
    }

    /// Remembers a store: durable with this step if its process is new, else with the next transaction.
    pub fn remember(&mut self, seen: Seen, now: bool) {
        let known = self.stored.seen.len() + self.further.keys().filter(|s| !self.stored.seen.contains_key(s)).count();
        if known >= LEDGER_STORES_MAX && self.seen(seen.store).is_none() {
            let present = self.record().map(|(_, r)| r.present().map(|m| m.store).collect::<BTreeSet<_>>());
            let gone = self.stored.seen.keys().find(|s| present.as_ref().is_none_or(|p| !p.contains(s))).copied();
            let Some(gone) = gone else { return };
            self.further.remove(&gone);
            self.persist(Row::Unseen(gone));
        }
        if now {
            self.further.remove(&seen.store);
            self.persist(Row::Seen(seen));
        } else {
            self.further.insert(seen.store, seen);
        }
    }

    /// What this step does rests on votes: that these were given is durable with it.
    pub fn rest_on_votes(&mut self) {
        self.dirty |= !self.further.is_empty();
    }

    /// Takes in what a member has heard of other stores. Whose transactions go on is at work, also if this member does not
    /// hear it: where only the way between two is cut, neither is silent.
    pub fn told(&mut self, known: &[Known], now: Instant) {
        let own = self.stored.store;
        for known in known.iter().filter(|k| k.store != own) {
            if let Some(seen) = stores::told(self.seen(known.store), known) {
                if !seen.rolled_back {
                    let voters = self.stored.list.iter().flat_map(|list| &list.voters);
                    for voter in voters.filter(|v| v.store == seen.store) {
                        self.heard.insert(voter.member.clone(), now);
                    }
                }
                let at_once = seen.rolled_back;
                self.remember(seen, at_once);
            }
        }
    }

    /// Ends a step: counts its transaction and bundles what it said.
    pub fn flush(&mut self) {
        if self.dirty {
            for seen in std::mem::take(&mut self.further).into_values() {
                self.persist(Row::Seen(seen));
            }
            self.persist(Row::Count(self.stored.count + 1));
            self.dirty = false;
        }
        let mut open: Vec<(MemberId, Message, usize)> = Vec::new();
        for out in std::mem::take(&mut self.outgoing) {
            let number = out.list.as_ref().map(|l| l.number);
            let weight = out.item.weight();
            let fits = open.iter_mut().rev().find(|(to, message, bytes)| {
                let header = &message.header;
                *to == out.to
                    && header.to_store == out.store
                    && header.list.as_ref().map(|l| l.number) == number
                    && message.items.len() < LEDGER_ITEMS_MAX
                    && *bytes + weight <= LEDGER_MESSAGE_MAX_BYTES
            });
            if let Some((_, message, bytes)) = fits {
                message.items.push(out.item);
                *bytes += weight;
            } else {
                let header = self.header(&out.to, out.store, out.list);
                open.push((out.to, Message { header, items: vec![out.item] }, weight));
            }
        }
        for (to, message, _) in open {
            self.effects.push_back(Effect::Send { to, message });
        }
    }

    fn header(&self, to: &MemberId, to_store: Option<StoreId>, list: Option<Arc<VoterList>>) -> Header {
        Header {
            mesh: self.mesh(),
            made: self.made(),
            sender: self.sender(),
            to_store,
            list,
            forming: self.proposed.as_ref().and_then(|p| p.numbers.get(to)).copied(),
            line: (!self.shown.contains(to)).then(|| self.line()),
            took: self.stores.get(to).and_then(|s| self.seen(*s)?.taken()).copied(),
            known: self.known(to),
        }
    }

    fn sender(&self) -> Sender {
        let Process { start, nonce, began } = self.process;
        Sender { store: self.stored.store, start, nonce, began, count: self.stored.count }
    }

    /// The processes before this one.
    fn line(&self) -> Vec<Process> {
        self.stored.line.iter().filter(|p| p.start < self.process.start).copied().collect()
    }

    /// What a member is told of the voters' stores.
    fn known(&self, to: &MemberId) -> Vec<Known> {
        let others = self.list().into_iter().flat_map(|list| &list.voters).filter(|voter| voter.member != *to);
        others.filter_map(|voter| self.seen(voter.store)?.known()).collect()
    }

    /// The header of what this member says to itself.
    pub fn own_header(&self, to_store: Option<StoreId>, list: Option<Arc<VoterList>>) -> Header {
        self.header(&self.config.member, to_store, list)
    }

    /// Takes a chosen value as this member's copy, unless it has a later one. Says whether that was news.
    pub fn learn(&mut self, key: &RecordKey, record: &Versioned) -> bool {
        let old = self.stored.copies.get(key);
        if invariant::versions_never_go_back(key, old, record).is_err() {
            if old.is_some_and(|o| o.version == record.version) {
                self.notice(Notice::Broken { invariant: "one_value_per_version", key: key.clone() });
            }
            return false;
        }
        if old.is_some_and(|o| o.version == record.version) {
            return false;
        }
        self.persist(Row::Copy { key: key.clone(), record: record.clone() });
        self.effects.push_back(Effect::Copied { key: key.clone(), record: record.clone() });
        true
    }
}
