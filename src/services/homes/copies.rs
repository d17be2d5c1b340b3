//! Copies of homes as they were at one entry, kept while other members take them page by page.
//!
//! The home goes on meanwhile, and nobody waits for it to be quiet. Rule: all pages of a copy were read at one instant; few
//! copies are kept, and none for long. Must not know: what a member does with a copy.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::call::{Copied, Told};
use super::journal_of;
use crate::proto::journal::Stands;
use crate::proto::tasks::home::StoredRow;
use crate::services::journal::JournalHandle;
use crate::services::ledger::driver::seed;
use crate::types::limits::{HOME_CALL_MAX_BYTES, HOMES};
use crate::types::{MemberId, Position, TaskPart};

/// Copies that are kept at once; whoever else wants one comes again. Each is of one home, whose size is bounded.
const COPIES: usize = 2;
/// For so long a copy waits for its next page to be asked for.
const IDLE: Duration = Duration::from_secs(15);
/// And for so long it is kept at most.
const AGE: Duration = Duration::from_secs(300);
/// Bytes of the rows of one page, unless it is one row.
const PAGE_BYTES: usize = HOME_CALL_MAX_BYTES / 4;
/// Parts of one page: at most 100 bytes each, as they travel.
const PAGE_PARTS: usize = 16_384;

/// Some rows, and some parts.
type Page = (Vec<StoredRow>, Vec<(TaskPart, Stands)>);

struct Kept {
    home: u16,
    member: MemberId,
    at: Position,
    pages: Vec<Page>,
    since: Instant,
    used: Instant,
    /// Its last page was asked for.
    done: bool,
    _place: OwnedSemaphorePermit,
}

/// See the module; cheap to clone.
#[derive(Clone)]
pub(super) struct Copies {
    free: Arc<Semaphore>,
    kept: Arc<Mutex<BTreeMap<u64, Kept>>>,
}

impl Default for Copies {
    fn default() -> Self {
        Self { free: Arc::new(Semaphore::new(COPIES)), kept: Arc::default() }
    }
}

impl Copies {
    fn kept(&self) -> MutexGuard<'_, BTreeMap<u64, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A page of a copy; without a token the first one of a copy that is made now.
    pub(super) async fn page(
        &self,
        journals: &JournalHandle,
        from: &MemberId,
        home: u16,
        token: Option<u64>,
        page: usize,
    ) -> Told {
        if home >= HOMES {
            return Told::Malformed;
        }
        match token {
            Some(token) => self.told(from, home, token, page),
            None => match self.make(journals, from, home).await {
                Some(token) => self.told(from, home, token, 0),
                None => Told::Busy,
            },
        }
    }

    fn told(&self, from: &MemberId, home: u16, token: u64, page: usize) -> Told {
        let mut kept = self.kept();
        let copy = kept.get_mut(&token).filter(|copy| copy.home == home && copy.member == *from);
        let Some(copy) = copy else { return Told::Busy };
        let Some((rows, parts)) = copy.pages.get(page).cloned() else { return Told::Malformed };
        let left = copy.pages.len() - page - 1;
        copy.used = Instant::now();
        copy.done |= left == 0;
        Told::Copy(Box::new(Copied { token, at: copy.at, rows, parts, left }))
    }

    /// Reads a home; gives the token of its copy.
    async fn make(&self, journals: &JournalHandle, from: &MemberId, home: u16) -> Option<u64> {
        // Whoever begins anew does not come for what it had before.
        self.kept().retain(|_, copy| copy.home != home || copy.member != *from);
        if self.free.available_permits() == 0 {
            self.kept().retain(|_, copy| !copy.done);
        }
        let place = Arc::clone(&self.free).try_acquire_owned().ok()?;
        let (stored, parts) = journals.home_with_parts(&journal_of(home)).await.ok()?;
        if stored.rebuild || stored.applied == 0 || stored.applied < stored.floor {
            return None;
        }
        let at = Position { epoch: stored.epoch, seq: stored.applied };
        let pages = tokio::task::spawn_blocking(move || pages(stored.rows, &parts)).await.ok()?;
        let (token, now) = (seed(), Instant::now());
        let member = from.clone();
        let copy = Kept { home, member, at, pages, since: now, used: now, done: false, _place: place };
        self.kept().insert(token, copy);
        tokio::spawn(self.clone().forget(token));
        Some(token)
    }

    /// Forgets a copy that nobody asks for any more.
    async fn forget(self, token: u64) {
        loop {
            let until = {
                let mut kept = self.kept();
                let Some(until) = kept.get(&token).map(|copy| (copy.used + IDLE).min(copy.since + AGE)) else { return };
                if until <= Instant::now() {
                    kept.remove(&token);
                    return;
                }
                until
            };
            tokio::time::sleep_until(until).await;
        }
    }
}

/// At least one page, though there be nothing.
fn pages(rows: Vec<StoredRow>, parts: &[(TaskPart, Stands)]) -> Vec<Page> {
    let (mut pages, mut page, mut bytes) = (Vec::new(), Vec::new(), 0);
    for row in rows {
        let more = serde_json::to_vec(&row).map_or(0, |text| text.len() + 1);
        if bytes + more > PAGE_BYTES && !page.is_empty() {
            pages.push((std::mem::take(&mut page), Vec::new()));
            bytes = 0;
        }
        bytes += more;
        page.push(row);
    }
    let mut parts = parts.chunks(PAGE_PARTS).map(<[_]>::to_vec);
    pages.push((page, parts.next().unwrap_or_default()));
    pages.extend(parts.map(|parts| (Vec::new(), parts)));
    pages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::homes::call::encode;
    use crate::types::limits::EPOCH_MAX;
    use crate::types::{Epoch, TaskUid};

    #[test]
    fn every_page_can_travel_however_many_parts_there_are() {
        let part = |n: u32| {
            let part = TaskPart { task: TaskUid(u32::MAX - n), part: u32::MAX };
            (part, Stands { seq: (1 << 40) - 1, refused: false })
        };
        let parts: Vec<_> = (0..150_000).map(part).collect();
        let key = |n: u32| StoredRow::Void(TaskUid(n));
        let rows: Vec<_> = (0..200_000).map(key).collect();
        let all = pages(rows.clone(), &parts);
        assert!(all.len() > 10, "{}", all.len());
        let at = Position { epoch: Epoch::new(EPOCH_MAX).unwrap(), seq: u64::MAX };
        for (rows, parts) in all.clone() {
            let copied = Copied { token: u64::MAX, at, rows, parts, left: all.len() };
            assert!(encode(&Told::Copy(Box::new(copied))).is_some());
        }
        let (again, standing): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        assert_eq!((again.concat(), standing.concat()), (rows, parts));
        assert_eq!(pages(Vec::new(), &[]), [(Vec::new(), Vec::new())]);
    }
}
