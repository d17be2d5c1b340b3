//! The source: for whom a read of a shard is under way here, and whether what was read is of use.
//!
//! What the source knows lasts as long as its process: a learner whose read it does not know begins anew. Rule: a read counts only
//! if no conditional entry went to the node behind its position before everything was read, and the node kept its memory. Must not
//! know: documents, nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::proto::apply::Standing;
use crate::proto::env::Instant;
use crate::types::{JournalKey, MemberId};

/// How reads are bounded.
#[derive(Debug, Clone)]
pub struct Config {
    /// Reads under way at a time.
    pub reads: usize,
    /// From this attempt on conditional entries wait for the read.
    pub patient: u32,
    /// For so long they do, at first; it doubles with each attempt.
    pub hold: Duration,
    /// The longest such time.
    pub hold_max: Duration,
    /// So long the shard may take to come to rest, so that it is compared, at first; it doubles with each attempt.
    pub settle: Duration,
    /// The longest such time.
    pub settle_max: Duration,
    /// So often it may not have come to rest in that time.
    pub settles: u32,
    /// A read of which nothing was heard for so long is over.
    pub idle: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            reads: 4,
            patient: 3,
            hold: Duration::from_secs(60),
            hold_max: Duration::from_secs(300),
            settle: Duration::from_secs(5),
            settle_max: Duration::from_secs(60),
            settles: 20,
            idle: Duration::from_secs(120),
        }
    }
}

/// One read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// Of which shard.
    pub key: JournalKey,
    /// For whom.
    pub learner: MemberId,
    /// Up to here the node had applied entries before.
    pub at: u64,
    /// Conditional entries wait for it.
    pub holds: bool,
    /// How often the shard was waited for to come to rest.
    settles: u32,
    touched: Instant,
}

/// `first`, doubled so many times, but no more than `most`.
fn doubled(first: Duration, times: u32, most: Duration) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(most)
}

/// How long a shard may take to come to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// So long.
    For(Duration),
    /// It did not often enough: it won't.
    None,
    /// The learner has no read here.
    Unknown,
}

/// Whether what was read is of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// It is.
    Yes,
    /// A conditional entry was applied meanwhile.
    Again,
    /// The read is not known here, or the copy is of no use itself.
    Never,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Source {
    config: Config,
    reads: BTreeMap<u64, Read>,
    last: u64,
}

impl Source {
    /// No reads. Tokens begin behind `last`, which no earlier process has reached.
    pub fn new(config: Config, last: u64) -> Self {
        Self { config, reads: BTreeMap::new(), last }
    }

    /// Whether there is room for one more read of this learner; one that it has begun before of the same shard is over.
    pub fn has_room(&self, key: &JournalKey, learner: &MemberId) -> bool {
        let others = self.reads.values().filter(|read| read.key != *key || read.learner != *learner);
        others.count() < self.config.reads
    }

    /// Until when entries have to wait for a read that begins now: [`crate::proto::apply::Stop::Conditional`]. Longer each time, for
    /// a large shard takes long to be read.
    pub fn holds(&self, now: Instant, attempt: u32) -> Option<Instant> {
        let times = attempt.checked_sub(self.config.patient)?;
        Some(now.plus(doubled(self.config.hold, times, self.config.hold_max)))
    }

    /// How long a shard is waited for to come to rest after all of it was read. Longer each time: what is with the node may be
    /// much, and what was read is of use as long as it may take.
    pub fn settles(&mut self, now: Instant, key: &JournalKey, learner: &MemberId) -> Patience {
        let Some(read) = self.reads.values_mut().find(|read| read.key == *key && read.learner == *learner) else {
            return Patience::Unknown;
        };
        let times = read.settles;
        if times >= self.config.settles {
            return Patience::None;
        }
        (read.settles, read.touched) = (times + 1, now);
        Patience::For(doubled(self.config.settle, times, self.config.settle_max))
    }

    /// From which position a read may begin; `None`: not now.
    pub fn position(standing: &Standing) -> Option<u64> {
        // A conditional entry that is with the node may be done at any moment.
        (standing.sound && standing.conditional <= standing.applied).then_some(standing.applied)
    }

    /// A read begins; gives its token, and an earlier one of the same learner and shard, which is over.
    pub fn begin(
        &mut self,
        now: Instant,
        key: JournalKey,
        learner: MemberId,
        at: u64,
        holds: bool,
    ) -> (u64, Option<Read>) {
        let same = |(_, read): &(&u64, &Read)| read.key == key && read.learner == learner;
        let before = self.reads.iter().find(same).map(|(token, _)| *token);
        let before = before.and_then(|token| self.reads.remove(&token));
        self.last += 1;
        self.reads.insert(self.last, Read { key, learner, at, holds, settles: 0, touched: now });
        (self.last, before)
    }

    /// The learner was heard of; its read, if it is known.
    pub fn touch(&mut self, now: Instant, token: u64, key: &JournalKey, learner: &MemberId) -> Option<Read> {
        let read = self.reads.get_mut(&token).filter(|read| read.key == *key && read.learner == *learner)?;
        read.touched = now;
        Some(read.clone())
    }

    /// Whether what was read up to now is of use, by how the copy stands after that.
    pub fn judge(&self, token: u64, standing: Option<&Standing>) -> Use {
        match (self.reads.get(&token), standing) {
            (Some(read), Some(standing)) if standing.sound && standing.applied >= read.at => {
                if standing.conditional > read.at { Use::Again } else { Use::Yes }
            }
            _ => Use::Never,
        }
    }

    /// All documents are read: no entry waits for that read any more. Says whether any did.
    pub fn release(&mut self, token: u64) -> bool {
        self.reads.get_mut(&token).is_some_and(|read| std::mem::take(&mut read.holds))
    }

    /// A read is over.
    pub fn end(&mut self, token: u64) -> Option<Read> {
        self.reads.remove(&token)
    }

    /// The read of a learner that knows of none is over, if there is one.
    pub fn end_of(&mut self, learner: &MemberId, key: &JournalKey) -> Option<Read> {
        let same = |(_, read): &(&u64, &Read)| read.key == *key && read.learner == *learner;
        let token = self.reads.iter().find(same).map(|(token, _)| *token)?;
        self.reads.remove(&token)
    }

    /// Reads of which nothing was heard for too long are over.
    pub fn expire(&mut self, now: Instant) -> Vec<Read> {
        let idle = self.config.idle;
        let old: Vec<u64> =
            self.reads.iter().filter(|(_, read)| now.since(read.touched) >= idle).map(|(token, _)| *token).collect();
        old.into_iter().filter_map(|token| self.reads.remove(&token)).collect()
    }

    /// When the next of them is due.
    pub fn next_wake(&self) -> Option<Instant> {
        self.reads.values().map(|read| read.touched.plus(self.config.idle)).min()
    }

    /// Whether another read of this shard has entries wait.
    pub fn is_held(&self, key: &JournalKey) -> bool {
        self.reads.values().any(|read| read.key == *key && read.holds)
    }
}
