//! What a replica takes from its primary, what it confirms, and when it asks.
//!
//! Rule: it confirms only what is durable *and* known to be the same as in the journal of the primary of this reign, under an
//! epoch that is durable too. While it has entries that it does not know to be committed, it does not rely on being told: what
//! a former process of this member confirmed is not said again unless it asks. Must not know: who is in sync.

use super::effect::{Effect, Rows};
use super::entry::Entry;
use super::log::Fit;
use super::message::Said;
use super::peer::DOUBLINGS_MAX;
use super::replica::Base;
use crate::proto::env::Instant;
use crate::types::{Position, ReplicaId};

/// What a follower remembers of one reign.
#[derive(Debug, Clone, Default)]
pub(super) struct Follower {
    /// Up to here the journal is the same as the primary's.
    verified: u64,
    /// Up to here the primary says that entries are committed.
    heard: u64,
    /// Up to here nobody needs entries any more, it says.
    free: u64,
    /// Who waits for an answer.
    owes: Option<ReplicaId>,
    /// When it asks what is committed, if nothing is heard before.
    ask_at: Option<Instant>,
    /// How often it has asked since something was heard.
    asked: u32,
}

impl Follower {
    #[expect(clippy::too_many_arguments, reason = "the parts of one message")]
    pub(super) fn append(
        &mut self,
        base: &mut Base,
        now: Instant,
        primary: &ReplicaId,
        prev: Position,
        mut entries: Vec<Entry>,
        commit: Option<u64>,
        free: u64,
    ) {
        (self.ask_at, self.asked) = (None, 0);
        if base.rebuild {
            return base.send(&primary.member, primary.store, Said::NeedsSnapshot);
        }
        let (skip, drop_from) = match base.log.fit(base.epoch, prev, &entries) {
            Fit::Fits { skip, drop_from } => (skip, drop_from),
            Fit::Missing { have } => return base.send(&primary.member, primary.store, Said::Missing { have }),
            Fit::Contradicts => return self.rebuild(base, now, primary),
            Fit::Broken => return base.broken(&primary.member, "two entries at one place of one reign"),
        };
        let upto = prev.seq + entries.len() as u64;
        if upto < base.log.floor().seq && upto > self.verified {
            // Whether the journals are the same can be seen only from what is committed here on.
            let have = base.log.position(base.log.commit()).unwrap_or(base.log.floor());
            return base.send(&primary.member, primary.store, Said::Missing { have });
        }
        if base.log.is_full() {
            // It is sent again.
            return;
        }
        entries.drain(..skip);
        if let Some(seq) = drop_from {
            base.log.drop_from(seq);
        }
        entries.iter().for_each(|entry| base.log.push(entry.clone()));
        if !entries.is_empty() || drop_from.is_some() || base.log.storing_epoch() < base.epoch {
            base.store(now, Rows { drop_from, entries, ..Rows::default() });
        }
        self.verified = self.verified.max(upto);
        self.heard = self.heard.max(commit.unwrap_or(0));
        self.free = self.free.max(free);
        self.owes = Some(primary.clone());
        if base.log.is_settled() {
            self.confirm(base);
        }
    }

    /// The primary has dropped what this replica would need next.
    pub(super) fn behind(&mut self, base: &mut Base, now: Instant, primary: &ReplicaId, floor: u64) {
        // What was confirmed in this reign is not taken back: the message is older.
        if self.verified < floor && base.log.commit() < floor {
            self.rebuild(base, now, primary);
        }
    }

    fn rebuild(&mut self, base: &mut Base, now: Instant, primary: &ReplicaId) {
        if !base.rebuild {
            base.rebuild = true;
            base.store(now, Rows::default());
            base.effects.push_back(Effect::Rebuild);
        }
        self.owes = None;
        base.send(&primary.member, primary.store, Said::NeedsSnapshot);
    }

    pub(super) fn stored(&mut self, base: &mut Base) {
        if self.owes.is_some() && base.log.stored_epoch() == base.epoch {
            self.confirm(base);
        }
    }

    fn confirm(&mut self, base: &mut Base) {
        let to = self.verified.min(base.log.stored());
        base.commit(self.heard.min(to));
        if let Some(primary) = &self.owes {
            let (commit, applied) = (base.log.commit(), base.applied);
            base.send(&primary.member, primary.store, Said::Stored { to, commit, applied });
        }
        if base.log.is_settled() {
            self.owes = None;
        }
    }

    pub(super) fn free(&self) -> u64 {
        self.free
    }

    /// Whether nothing is to be said or heard.
    pub(super) fn rests(&self, base: &Base) -> bool {
        self.owes.is_none() && !Self::is_unsure(base)
    }

    /// Whether there are entries here that may be committed.
    fn is_unsure(base: &Base) -> bool {
        let holds = base.record.as_ref().and_then(|r| r.copy(&base.id.member)).is_some_and(|c| c.id == base.id);
        holds && !base.rebuild && base.log.commit() < base.log.last().seq
    }

    /// Whom it can ask.
    fn primary(base: &Base) -> Option<ReplicaId> {
        let primary = base.hint().primary?;
        let copy = base.record.as_ref()?.copy(&primary.member)?;
        Some(copy.id.clone()).filter(|id| base.lives(id))
    }

    /// Asks what is committed when that is due; when to look again.
    pub(super) fn run(&mut self, base: &mut Base, now: Instant) -> Option<Instant> {
        let Some(primary) = Self::is_unsure(base).then(|| Self::primary(base)).flatten() else {
            (self.ask_at, self.asked) = (None, 0);
            return None;
        };
        let resend = base.config.resend;
        if *self.ask_at.get_or_insert(now.plus(resend)) <= now {
            let commit = base.log.commit();
            base.send(&primary.member, primary.store, Said::Unsure { commit });
            self.asked = (self.asked + 1).min(DOUBLINGS_MAX);
            self.ask_at = Some(now.plus(resend * 2_u32.pow(self.asked)));
        }
        self.ask_at
    }
}
