//! One shard's copy at the applier: which entries wait, which are with the node, and what stands in the way.
//!
//! Rule: entries are taken in order, without gaps; a conditional one only when nothing else of the shard is with the node, and
//! deletions, too, because what they find is counted before.
//! Must not know: the node, other shards.

use std::collections::{BTreeSet, VecDeque};

use super::effect::{Head, LaneRow, Need, Stop};
use super::verdict::Flaw;
use crate::proto::env::Instant;
use crate::proto::journal::Kind;
use crate::proto::journal::log::Bounds;
use crate::types::TaskPart;

/// Why a shard waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hold {
    /// The entry fails by itself, by no fault of its own that is known: tried again then.
    Trouble { seq: u64, again: Instant },
    /// The entry failed by its own fault; the primary is asked whether there, too.
    Ask { seq: u64, flaw: Flaw, again: Instant },
}

/// What entries of one request have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Like {
    pub(super) kind: Kind,
    /// A filter or a function is the same only in the parts of one request of a client.
    part: Option<TaskPart>,
}

impl Like {
    fn of(head: &Head) -> Self {
        let part = match head.kind {
            Kind::DeleteByFilter | Kind::Edit => head.part,
            _ => None,
        };
        Self { kind: head.kind, part }
    }
}

/// What of the shard is with the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Busy {
    Plain,
    Conditional,
}

/// What a shard gives to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) like: Like,
    pub(super) last: u64,
    /// The first that is not passed over.
    pub(super) first: u64,
    pub(super) entries: usize,
    pub(super) bytes: usize,
    pub(super) without: BTreeSet<u64>,
}

/// Heads asked for.
#[derive(Debug, Clone)]
pub(super) struct Loading {
    pub(super) ticket: u64,
    from: u64,
    entries: usize,
    /// Entries among them that were said to have failed since.
    failed: BTreeSet<u64>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Lane {
    pub(super) row: LaneRow,
    pub(super) committed: u64,
    /// From `row.applied + 1` on.
    pub(super) heads: VecDeque<Head>,
    /// The next entry that goes to the node.
    pub(super) next: u64,
    /// Heads that are being read.
    pub(super) loading: Option<Loading>,
    pub(super) primary: bool,
    /// No other copy of the shard is in sync.
    pub(super) alone: bool,
    pub(super) hold: Option<Hold>,
    /// How often its next entry has failed by itself.
    pub(super) attempts: u32,
    /// A request that was given up came to the node while the copy is made anew: it may have come behind what makes the copy.
    pub(super) spoiled: bool,
    /// That it must be made anew has been said.
    pub(super) said: bool,
    /// Somebody has asked that it waits.
    pub(super) stop: Option<Stopped>,
}

/// A lane that waits although it could go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stopped {
    /// Entries behind this one wait.
    behind: u64,
    /// So do those from the first conditional one on.
    conditional: bool,
    /// Until then.
    pub(super) until: Option<Instant>,
}

impl Lane {
    pub(super) fn of(row: LaneRow) -> Self {
        Self { committed: row.applied, next: row.applied + 1, row, ..Self::default() }
    }

    /// Whether entries may go to the node.
    pub(super) fn goes_on(&self) -> bool {
        self.hold.is_none() && self.row.need == Need::Nothing
    }

    /// Whether the copy may stay though it should be made anew.
    pub(super) fn is_doubtful(&self) -> bool {
        self.row.need == Need::Rebuild && self.row.doubtful && !self.spoiled
    }

    /// Has it wait as `how` says.
    pub(super) fn stop(&mut self, how: Stop, until: Option<Instant>) {
        self.stop = Some(match how {
            Stop::Conditional => Stopped { behind: u64::MAX, conditional: true, until },
            Stop::Here => Stopped { behind: self.furthest(), conditional: false, until },
        });
    }

    /// Has everything behind an entry wait.
    pub(super) fn stop_behind(&mut self, seq: u64) {
        self.stop = Some(Stopped { behind: seq, conditional: false, until: None });
    }

    /// Entries behind this one wait.
    fn stops_behind(&self) -> u64 {
        self.stop.map_or(u64::MAX, |stop| stop.behind)
    }

    /// Whether this entry is a conditional one that somebody has asked to wait. One that has gone to the node before does not: it may
    /// be done at any moment, and whoever asked that it waits can do nothing before it is.
    fn stops_at(&self, head: &Head) -> bool {
        let stops = self.stop.is_some_and(|stop| stop.conditional);
        stops && head.kind.is_conditional() && head.seq > self.row.conditional
    }

    /// Whether the next entry waits because somebody has asked for it.
    pub(super) fn is_stopped(&self) -> bool {
        let next = self.waiting().find(|head| !is_passed_over(head));
        self.next > self.stops_behind()
            || next.is_some_and(|head| head.seq > self.stops_behind() || self.stops_at(head))
    }

    /// Heads that have not gone to the node.
    fn waiting(&self) -> impl Iterator<Item = &Head> {
        let gone = usize::try_from(self.next - self.row.applied - 1).unwrap_or(usize::MAX);
        self.heads.iter().skip(gone)
    }

    /// Whether entries behind this one are known.
    pub(super) fn has_behind(&self, seq: u64) -> bool {
        self.heads.back().is_some_and(|head| head.seq > seq)
    }

    /// What would go to the node next together with entries like `like`, of at most `left`, up to `until`. The first entry of
    /// a request is taken whatever it weighs.
    pub(super) fn take(&self, like: Option<Like>, busy: Option<Busy>, left: Bounds, until: u64) -> Option<Taken> {
        if !self.goes_on() || busy == Some(Busy::Conditional) {
            return None;
        }
        let mut taken: Option<Taken> = None;
        let mut without = BTreeSet::new();
        let until = until.min(self.stops_behind());
        for head in self.waiting().take_while(|head| head.seq <= until) {
            if is_passed_over(head) {
                if !head.kind.is_idle() {
                    without.insert(head.seq);
                }
                if let Some(taken) = &mut taken {
                    taken.last = head.seq;
                }
                continue;
            }
            let (entries, bytes) = taken.as_ref().map_or((0, 0), |t| (t.entries, t.bytes));
            let known = taken.as_ref().map(|t| t.like).or(like);
            let fits = entries < left.entries && bytes.saturating_add(head.weight) <= left.bytes;
            let first_of_all = known.is_none();
            let conditional = head.kind.is_conditional();
            if known.is_some_and(|known| known != Like::of(head))
                || self.stops_at(head)
                || !(fits || first_of_all)
                || conditional && (taken.is_some() || busy.is_some())
                || head.kind.is_deletion() && taken.is_none() && busy.is_some()
            {
                break;
            }
            let first = taken.as_ref().map_or(head.seq, |t| t.first);
            let (like, bytes) = (Like::of(head), bytes.saturating_add(head.weight));
            taken = Some(Taken { like, last: head.seq, first, entries: entries + 1, bytes, without: BTreeSet::new() });
            if conditional {
                break;
            }
        }
        let mut taken = taken?;
        without.retain(|seq| *seq <= taken.last);
        taken.without = without;
        Some(taken)
    }

    /// Up to where nothing is to be done, if nothing is with the node.
    pub(super) fn idle_until(&self) -> u64 {
        let mut to = self.row.applied;
        if self.goes_on() {
            let until = self.stops_behind();
            for head in self.heads.iter().take_while(|head| is_passed_over(head) && head.seq <= until) {
                to = head.seq;
            }
        }
        to
    }

    /// Asks for heads if there is need: from where, and how many.
    pub(super) fn ask_for_heads(&mut self, ticket: u64, share: usize) -> Option<(u64, usize)> {
        let from = self.known_to() + 1;
        let idle = self.loading.is_some() || self.row.need == Need::Rebuild || from > self.committed;
        if idle || self.heads.len() > share / 2 {
            return None;
        }
        let entries = share - self.heads.len();
        self.loading = Some(Loading { ticket, from, entries, failed: BTreeSet::new() });
        Some((from, entries))
    }

    /// Takes the heads that were asked for. Says whether there was anything, if something had to be.
    pub(super) fn take_heads(&mut self, heads: Vec<Head>, ticket: u64) -> bool {
        let Some(asked) = self.loading.take_if(|loading| loading.ticket == ticket) else { return true };
        let before = self.known_to();
        for head in heads.into_iter().take(asked.entries) {
            if head.seq <= before {
                continue;
            }
            if head.seq != self.known_to() + 1 || head.seq > self.committed {
                break;
            }
            let failed = head.failed || asked.failed.contains(&head.seq);
            let failed = failed && !self.row.told.contains(&head.seq);
            self.heads.push_back(Head { failed, ..head });
        }
        self.known_to() > before || asked.from <= before || before >= self.committed
    }

    fn known_to(&self) -> u64 {
        self.row.applied + self.heads.len() as u64
    }

    /// The last entry that the node may have done.
    pub(super) fn furthest(&self) -> u64 {
        self.row.furthest.max(self.next - 1)
    }

    /// The primary says that an entry that is not applied has failed: it is passed over, unless the node here may have done
    /// it: then it is done, and looked into.
    pub(super) fn told_failed(&mut self, seq: u64) {
        let place = usize::try_from(seq - self.row.applied - 1).unwrap_or(usize::MAX);
        if seq <= self.furthest() {
            let known = self.heads.get(place).is_some_and(|head| head.failed);
            if !known {
                self.row.told.insert(seq);
            }
        } else if let Some(head) = self.heads.get_mut(place) {
            head.failed = true;
        } else if let Some(loading) = &mut self.loading
            && (loading.from..loading.from.saturating_add(loading.entries as u64)).contains(&seq)
        {
            loading.failed.insert(seq);
        }
    }

    /// Everything up to `to` is dealt with. Gives the entries of it that the primary failed when they were under way.
    pub(super) fn advance(&mut self, to: u64) -> BTreeSet<u64> {
        let done = usize::try_from(to.saturating_sub(self.row.applied)).unwrap_or(usize::MAX);
        self.heads.drain(..done.min(self.heads.len()));
        self.row.applied = self.row.applied.max(to);
        self.attempts = 0;
        self.next = self.next.max(to + 1);
        let later = self.row.told.split_off(&(to + 1));
        std::mem::replace(&mut self.row.told, later)
    }

    /// Nothing is with the node: what is not applied goes there again. Says up to where that is.
    pub(super) fn again(&mut self) -> Option<u64> {
        let sent = (self.next > self.row.applied + 1).then(|| self.next - 1);
        self.row.furthest = self.furthest();
        self.next = self.row.applied + 1;
        sent
    }

    /// Only what is up to `to` counts as applied; says whether that is less than before.
    pub(super) fn back(&mut self, to: u64) -> bool {
        let less = to < self.row.applied;
        self.row.furthest = self.furthest();
        if less {
            self.row.applied = to;
            self.row.conditional = self.row.conditional.min(to);
            self.heads.clear();
            self.loading = None;
            self.hold = None;
        }
        self.next = self.row.applied + 1;
        less
    }
}

/// Whether nothing is to be done at this entry.
fn is_passed_over(head: &Head) -> bool {
    head.kind.is_idle() || head.failed
}
