//! How long entries, and the memory of parts, are kept.
//!
//! What is beyond the retention is offered to its replica, which drops what nobody needs any more: what all in sync have
//! applied, and learners have taken. A replica that was idle knows that only after it has heard of the others, so it is
//! offered again, until twice nothing has gone; a follower hears it with the next writes. Where nothing goes for long, a node
//! applies nothing: it is overdue, and waited for no more where enough others have applied it. Between two looks, what the file
//! holds no more is given back to the disk in small steps. Rule: nothing is dropped here but the memory of parts whose entries
//! are gone, and the journals of an index that is gone; no step holds up the appends behind it for long. Must not know: who
//! needs what.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::handle::JournalHandle;
use crate::rt::clock;
use crate::store::StoreError;
use crate::store::journal::Listed;
use crate::types::JournalKey;

/// How long appends may wait for one step of giving back, and the pause behind it.
const STEP: Duration = Duration::from_millis(10);
const STEP_PAUSE: Duration = Duration::from_millis(50);
/// Between two offers while entries go.
const OFFER_PAUSE: Duration = Duration::from_millis(100);
/// Entries at the end of each journal that are looked at once after a start; a read of so many bytes each.
const TAIL: u64 = 64;
const TAIL_BYTES: usize = 1 << 20;

/// Journals of which something is offered.
pub(super) type Waits = BTreeMap<JournalKey, Wait>;

/// How long a journal has begun where it begins.
#[derive(Debug)]
pub(super) struct Wait {
    floor: u64,
    since: Instant,
    over: bool,
}

impl Wait {
    fn new(floor: u64) -> Self {
        Self { floor, since: Instant::now(), over: false }
    }

    /// Whether that was long; if so, until nothing more is offered: each offer is small.
    fn is_over(&mut self, floor: u64, patience: Duration) -> bool {
        if floor != self.floor && !self.over {
            *self = Self::new(floor);
        }
        self.over |= self.since.elapsed() >= patience;
        self.over
    }
}

/// What is kept, whether anybody needs it or not.
#[derive(Debug, Clone)]
pub struct Retention {
    /// Entries that are not older.
    pub age: Duration,
    /// Entries of so many bytes in all journals together, the newest.
    pub bytes: u64,
    /// That parts have stood in a journal, since they were stored.
    pub parts_age: Duration,
    /// The same, of one journal.
    pub parts: u64,
    /// Between two looks.
    pub every: Duration,
    /// Until replicas that were touched have heard of each other.
    pub settle: Duration,
    /// That a node which applies nothing holds up what is beyond the retention.
    pub patience: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            age: Duration::from_secs(24 * 3_600),
            bytes: 4 << 30,
            parts_age: Duration::from_secs(7 * 24 * 3_600),
            parts: 100_000,
            every: Duration::from_secs(60),
            settle: Duration::from_secs(2),
            patience: Duration::from_secs(120),
        }
    }
}

impl Retention {
    /// Keeps what is to be kept, and offers the rest, until the store fails.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn keep(self, journals: JournalHandle) -> Result<(), StoreError> {
        self.look_at_tails(&journals).await?;
        let (mut gone, mut waits) = (BTreeSet::new(), Waits::new());
        loop {
            self.pause(&journals).await?;
            self.trim(&journals, &mut waits).await?;
            self.forget_parts(&journals).await?;
            journals.delete_gone(&mut gone).await?;
        }
    }

    /// Looks at the ends of all journals, so that one that is damaged is made good while others have what it lacks, and not when
    /// it is needed.
    pub(super) async fn look_at_tails(&self, journals: &JournalHandle) -> Result<(), StoreError> {
        for listed in journals.stored().await? {
            let from = listed.last.seq.saturating_sub(TAIL).max(listed.floor.seq) + 1;
            let entries = usize::try_from(TAIL).expect("a small number");
            if from > listed.last.seq || listed.rebuild {
                continue;
            }
            match journals.store.load(&listed.key, from, entries, TAIL_BYTES).await {
                Err(StoreError::Damaged { journal, reason }) => journals.repair(&journal, reason).await,
                read => drop(read?),
            }
        }
        Ok(())
    }

    /// Offers until nothing more goes: each offer is small, and entries may come faster than one of them a look.
    pub(super) async fn trim(&self, journals: &JournalHandle, waits: &mut Waits) -> Result<(), StoreError> {
        let (mut last, mut in_vain) = (BTreeMap::new(), 0);
        // Under a steady load there is always more, and other things are to be looked at as well.
        let until = Instant::now() + self.every;
        loop {
            let offered: BTreeMap<JournalKey, u64> = self.offer(journals, waits).await?;
            let goes = offered.iter().any(|(key, floor)| last.get(key).is_some_and(|before| before < floor));
            in_vain = if goes { 0 } else { in_vain + 1 };
            if offered.is_empty() || in_vain > 2 || Instant::now() >= until {
                return Ok(());
            }
            last = offered;
            tokio::time::sleep(if goes { OFFER_PAUSE } else { self.settle }).await;
        }
    }

    /// Until the next look; what is more than needed of the file goes meanwhile.
    async fn pause(&self, journals: &JournalHandle) -> Result<(), StoreError> {
        let until = tokio::time::Instant::now() + self.every;
        loop {
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            let began = Instant::now();
            let more = !left.is_zero() && journals.store.give_back(move || began.elapsed() < STEP).await?;
            if !more {
                tokio::time::sleep_until(until).await;
                return Ok(());
            }
            tokio::time::sleep(STEP_PAUSE.min(left)).await;
        }
    }

    /// Offers what is beyond the retention to its replicas; gives where the journals begin of which there is any.
    async fn offer(
        &self,
        journals: &JournalHandle,
        waits: &mut Waits,
    ) -> Result<BTreeMap<JournalKey, u64>, StoreError> {
        let all = journals.stored().await?;
        let before = clock::unix_seconds().saturating_add(1).saturating_sub(self.age.as_secs());
        let mut spare = all.iter().map(|l| l.bytes).sum::<u64>().saturating_sub(self.bytes);
        let mut oldest: Vec<&Listed> = all.iter().filter(|l| l.oldest.is_some()).collect();
        oldest.sort_by_key(|l| l.oldest);
        let mut offered = BTreeMap::new();
        for listed in oldest {
            if listed.oldest.is_none_or(|at| at >= before) && spare == 0 {
                break;
            }
            // What the node has not applied is needed here.
            let to = journals.store.expired(&listed.key, before, spare).await?.map(|to| to.min(listed.applied));
            spare = spare.saturating_sub(listed.bytes);
            if let Some(to) = to.filter(|to| *to > listed.floor.seq) {
                let floor = listed.floor.seq;
                offered.insert(listed.key.clone(), floor);
                let wait = waits.entry(listed.key.clone()).or_insert_with(|| Wait::new(floor));
                journals.trim(&listed.key, to, wait.is_over(floor, self.patience)).await;
            }
        }
        waits.retain(|key, _| offered.contains_key(key));
        Ok(offered)
    }

    async fn forget_parts(&self, journals: &JournalHandle) -> Result<(), StoreError> {
        let before = clock::unix_seconds().saturating_sub(self.parts_age.as_secs());
        let may = |l: &Listed| l.floor.seq > 0 && !journals.is_held(&l.key);
        for listed in journals.stored().await?.into_iter().filter(may) {
            journals.store.forget_parts(&listed.key, before, self.parts).await?;
        }
        Ok(())
    }
}
