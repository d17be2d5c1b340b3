//! How a primary keeps one other replica up: what it has, what it is sent, and since when it owes an answer.
//!
//! Rule: until the replica has confirmed something in this reign it is sent one append at a time, to find where the journals
//! meet; from then on as many as the window holds, without waiting. Nothing that it confirmed in this reign is forgotten,
//! unless it says itself that it must be made anew. Must not know: who is in sync.

use std::collections::VecDeque;
use std::time::Duration;

use super::effect::Effect;
use super::entry::Entry;
use super::message::{APPEND_ENTRIES_MAX, APPEND_MAX_BYTES, Said};
use super::replica::Base;
use crate::proto::env::Instant;
use crate::types::{Position, ReplicaId, StoreId};

/// How often the spans between repetitions double.
pub(super) const DOUBLINGS_MAX: u32 = 3;

/// One that was too slow stays outside for a while.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Quiet {
    pub(super) until: Instant,
    span: Duration,
}

impl Quiet {
    /// It was too slow again; long after the last time it begins at `first` anew.
    pub(super) fn lapse(&mut self, now: Instant, first: Duration) {
        let long_ago = now.since(self.until) > self.span * 10;
        self.span = if long_ago { first } else { (self.span * 2).clamp(first, first * 64) };
        self.until = now.plus(self.span);
    }
}

#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) store: StoreId,
    /// The next entry to be sent.
    pub(super) next: u64,
    /// Up to here its journal is the same, and durable.
    pub(super) acked: u64,
    /// It has confirmed something in this reign.
    pub(super) matched: bool,
    /// Up to here it was told that entries are committed.
    told: u64,
    /// Up to here it knows.
    pub(super) knows: u64,
    /// Up to here it has applied.
    pub(super) applied: u64,
    /// Since when it owes an answer and has given none that brought anything new.
    pub(super) since: Option<Instant>,
    /// When what it owes an answer to is sent again.
    pub(super) resend_at: Option<Instant>,
    tries: u32,
    /// When news of what is committed no longer waits for an append.
    pub(super) tell_at: Option<Instant>,
    loading: Option<u64>,
    /// It needs a snapshot.
    pub(super) snapshot: bool,
    /// The last entry and the weight of each append that it has not confirmed.
    under_way: VecDeque<(u64, usize)>,
    pub(super) quiet: Quiet,
    /// When it last went back because of a gap.
    rewound: Instant,
}

impl Peer {
    /// A replica of which nothing is known.
    pub(super) fn new(store: StoreId, next: u64) -> Self {
        Self {
            store,
            next,
            acked: 0,
            matched: false,
            told: 0,
            knows: 0,
            applied: 0,
            since: None,
            resend_at: None,
            tries: 0,
            tell_at: None,
            loading: None,
            snapshot: false,
            under_way: VecDeque::new(),
            quiet: Quiet::default(),
            rewound: Instant::default(),
        }
    }

    /// Whether nothing is to be said to it.
    pub(super) fn rests(&self, base: &Base) -> bool {
        self.matched && self.acked == base.log.last().seq && self.knows >= base.log.commit()
    }

    /// Whether it has left something unanswered for too long.
    pub(super) fn is_late(&self, base: &Base, id: &ReplicaId, now: Instant) -> bool {
        let lag = if base.lives(id) { base.config.in_sync_lag } else { base.config.suspect_lag };
        self.since.is_some_and(|since| now.since(since) >= lag)
    }

    /// Sends what can be sent. `commit` is what may be told as committed, `relied_on` whether commits wait for it, `free`
    /// what nobody needs any more.
    pub(super) fn pump(
        &mut self,
        base: &mut Base,
        now: Instant,
        id: &ReplicaId,
        commit: Option<u64>,
        relied_on: bool,
        free: u64,
    ) {
        if !relied_on && !base.lives(id) {
            (self.since, self.resend_at, self.tell_at) = (None, None, None);
            return self.go_back();
        }
        if self.resend_at.is_some_and(|at| at <= now) {
            self.resend_at = None;
            self.tries = (self.tries + 1).min(DOUBLINGS_MAX);
            self.go_back();
        }
        if self.matched && !self.snapshot {
            while self.next <= base.log.last().seq && self.has_room(base) {
                if !self.send_next(base, now, id, commit, free) {
                    return;
                }
            }
            self.tell(base, now, id, commit, free);
        } else if self.resend_at.is_none() {
            self.probe(base, now, id, commit, free);
        }
    }

    /// Everything that it has not confirmed is sent again.
    fn go_back(&mut self) {
        if self.matched {
            self.next = self.acked + 1;
        }
        self.told = self.knows;
        self.loading = None;
        self.under_way.clear();
    }

    fn has_room(&self, base: &Base) -> bool {
        // While it does not answer, one append at a time is repeated.
        if self.tries > 0 {
            return self.under_way.is_empty();
        }
        let window = base.config.window;
        let bytes: usize = self.under_way.iter().map(|(_, bytes)| bytes).sum();
        self.next - self.acked <= window.entries as u64 && (bytes < window.bytes)
    }

    /// Sends the next entries; says whether it can go on.
    fn send_next(&mut self, base: &mut Base, now: Instant, id: &ReplicaId, commit: Option<u64>, free: u64) -> bool {
        let Some(prev) = base.log.position(self.next - 1) else {
            self.is_behind(base, now, id);
            return false;
        };
        let Some(entries) = base.log.slice(self.next, APPEND_ENTRIES_MAX, APPEND_MAX_BYTES) else {
            if self.loading.is_none() {
                self.loading = Some(self.next);
                let (member, from) = (id.member.clone(), self.next);
                let (entries, bytes) = (APPEND_ENTRIES_MAX, APPEND_MAX_BYTES);
                base.effects.push_back(Effect::Load { member, from, entries, bytes });
                self.owes(base, now);
            }
            return false;
        };
        self.send(base, now, id, (prev, entries), commit, free);
        true
    }

    fn send(
        &mut self,
        base: &mut Base,
        now: Instant,
        id: &ReplicaId,
        (prev, entries): (Position, Vec<Entry>),
        commit: Option<u64>,
        free: u64,
    ) {
        if let Some(last) = entries.last().filter(|_| self.matched) {
            self.next = last.at.seq + 1;
            self.under_way.push_back((last.at.seq, entries.iter().map(Entry::weight).sum()));
        }
        self.told = self.told.max(commit.unwrap_or(0));
        self.tell_at = None;
        self.owes(base, now);
        base.send(&id.member, id.store, Said::Append { prev, entries, commit, free });
    }

    fn owes(&mut self, base: &Base, now: Instant) {
        self.since.get_or_insert(now);
        let doublings = if self.snapshot { DOUBLINGS_MAX } else { self.tries };
        self.resend_at.get_or_insert(now.plus(base.config.resend * 2_u32.pow(doublings)));
    }

    /// One append, to see where the journals meet.
    fn probe(&mut self, base: &mut Base, now: Instant, id: &ReplicaId, commit: Option<u64>, free: u64) {
        if self.snapshot {
            let last = base.log.last();
            return self.send(base, now, id, (last, Vec::new()), commit, free);
        }
        let Some(prev) = base.log.position(self.next - 1) else { return self.is_behind(base, now, id) };
        let entries = base.log.slice(self.next, APPEND_ENTRIES_MAX, APPEND_MAX_BYTES).unwrap_or_default();
        self.send(base, now, id, (prev, entries), commit, free);
    }

    /// News of what is committed, if no entry carries it.
    fn tell(&mut self, base: &mut Base, now: Instant, id: &ReplicaId, commit: Option<u64>, free: u64) {
        if commit.is_none_or(|commit| commit <= self.told) {
            return;
        }
        if *self.tell_at.get_or_insert(now.plus(base.config.tell_commit)) <= now
            && let Some(prev) = base.log.position(self.next - 1)
        {
            self.send(base, now, id, (prev, Vec::new()), commit, free);
        }
    }

    fn is_behind(&mut self, base: &mut Base, now: Instant, id: &ReplicaId) {
        self.needs_snapshot(base, id);
        let floor = base.log.floor().seq;
        base.send(&id.member, id.store, Said::Behind { floor });
        self.owes(base, now);
    }

    fn needs_snapshot(&mut self, base: &mut Base, id: &ReplicaId) {
        (self.acked, self.matched, self.loading) = (0, false, None);
        self.under_way.clear();
        if !self.snapshot {
            self.snapshot = true;
            base.effects.push_back(Effect::NeedsSnapshot { replica: id.clone() });
        }
    }

    /// What it answered.
    pub(super) fn answered(&mut self, base: &mut Base, now: Instant, id: &ReplicaId, said: &Said) {
        if let Said::Unsure { commit } = said {
            // An earlier process knew more: it is told again. That says nothing of whether it hears what it is sent.
            if *commit < self.knows {
                (self.knows, self.told) = (*commit, *commit);
            }
            return;
        }
        self.tries = 0;
        match said {
            Said::Stored { to, commit, applied } => {
                if *to > base.log.last().seq {
                    return base.broken(&id.member, "it has more than it was sent");
                }
                let news = *to > self.acked || *commit > self.knows || !self.matched;
                (self.matched, self.snapshot) = (true, false);
                self.acked = self.acked.max(*to);
                self.next = self.next.max(self.acked + 1);
                self.knows = self.knows.max(*commit);
                self.applied = self.applied.max(*applied);
                while self.under_way.front().is_some_and(|(last, _)| *last <= self.acked) {
                    self.under_way.pop_front();
                }
                let owes = self.acked + 1 < self.next || self.knows < self.told;
                if !owes {
                    (self.since, self.resend_at) = (None, None);
                } else if news {
                    (self.since, self.resend_at) = (Some(now), Some(now.plus(base.config.resend)));
                }
            }
            // It knows more to be committed than there is, since a loss was accepted.
            Said::Missing { have } if have.seq > base.log.last().seq => {
                self.needs_snapshot(base, id);
                base.send(&id.member, id.store, Said::Behind { floor: have.seq.saturating_add(1) });
            }
            Said::Missing { have } => match base.log.meet(*have) {
                Some(at) => self.begin_behind(base, now, at.seq + 1),
                None => self.is_behind(base, now, id),
            },
            Said::NeedsSnapshot => {
                self.needs_snapshot(base, id);
                self.since = None;
            }
            Said::Append { .. } | Said::Behind { .. } | Said::Stale { .. } | Said::Unsure { .. } => {}
        }
    }

    fn begin_behind(&mut self, base: &Base, now: Instant, next: u64) {
        self.snapshot = false;
        if !self.matched {
            if next != self.next {
                self.next = next;
                self.resend_at = None;
            }
        } else if next < self.next && now.since(self.rewound) >= base.config.resend / 8 {
            // An append was lost or overtaken by the next.
            self.rewound = now;
            self.go_back();
            self.next = next.max(self.acked + 1);
        }
    }

    /// Entries that were asked for from the store.
    pub(super) fn loaded(
        &mut self,
        base: &mut Base,
        now: Instant,
        id: &ReplicaId,
        entries: Vec<Entry>,
        commit: Option<u64>,
        free: u64,
    ) {
        let Some(from) = self.loading.take() else { return };
        let known = |e: &Entry| base.log.position(e.at.seq) == Some(e.at);
        let right = self.matched && self.next == from && entries.first().is_some_and(|e| e.at.seq == from);
        if right && entries.iter().all(known) {
            let prev = base.log.position(from - 1);
            if let Some(prev) = prev {
                self.send(base, now, id, (prev, entries), commit, free);
            }
        }
    }
}
