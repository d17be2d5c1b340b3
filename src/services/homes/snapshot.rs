//! A copy of a home that must be made anew: its rows come from another member's, with the parts that stand in its journal.
//!
//! Rule: rows, parts and position are those of one member at one entry, and become durable together. Must not know: why the
//! copy is of no use.

use std::time::{Duration, Instant};

use super::call::{Copied, MemberQuestion, Told};
use super::client::Homes;
use super::driver::{Done, Driver};
use super::journal_of;
use crate::store::StoreError;
use crate::types::MemberId;

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(500);
/// How long the source may take to make a copy of a large home, and to send a page of it.
const MAKE: Duration = Duration::from_secs(30);
const PAGE: Duration = Duration::from_secs(5);
/// How long it may take until what was taken is durable.
const DURABLE: Duration = Duration::from_secs(10);
/// How often a page is asked for.
const TRIES: usize = 5;
/// More pages than any home has.
const PAGES_MAX: usize = 4_096;

impl Driver {
    /// Has the copy made anew, however long that takes.
    pub(super) fn copy(&mut self, home: u16) {
        let homes = self.homes.clone();
        self.done.spawn(async move {
            let (key, mut taken) = (journal_of(home), None::<Instant>);
            while homes.holds(home) {
                // What was taken is durable a little later, unless the journal became of no use once more.
                if taken.is_none_or(|at| at.elapsed() >= DURABLE) {
                    taken = homes.take_copy(home).await?.then(Instant::now);
                }
                match homes.journals.home(&key).await {
                    Ok(stored) if taken.is_some() && !stored.rebuild && stored.applied >= stored.floor => break,
                    Ok(_) | Err(StoreError::Damaged { .. }) => {}
                    Err(error) => return Err(error),
                }
                tokio::time::sleep(PAUSE).await;
            }
            Ok((home, Done::Copied))
        });
    }
}

impl Homes {
    /// Whether the record lists this member for a home.
    fn holds(&self, home: u16) -> bool {
        let key = journal_of(home);
        let record = self.journals.record(&key.index);
        record.is_some_and(|record| record.shard(key.shard).is_some_and(|state| state.copy(&self.me).is_some()))
    }

    /// Takes the copy of the home's primary, if it can be had whole; says whether it was taken.
    async fn take_copy(&self, home: u16) -> Result<bool, StoreError> {
        let key = journal_of(home);
        let Told::NotPrimary(Some(source), _) = self.not_primary(home) else { return Ok(false) };
        let Some(first) = self.copied(&source, home, None, 0).await else { return Ok(false) };
        let Copied { token, at, rows, mut parts, left: pages } = first;
        self.journals.stage_home(&key, true, rows).await?;
        if pages > PAGES_MAX {
            return Ok(false);
        }
        for page in 1..=pages {
            let fits = |more: &Copied| more.at == at && more.left == pages - page;
            let Some(more) = self.copied(&source, home, Some(token), page).await.filter(fits) else { return Ok(false) };
            parts.extend(more.parts);
            self.journals.stage_home(&key, false, more.rows).await?;
        }
        Ok(self.journals.snapshot(&key, at, parts).await)
    }

    /// A page of the copy; asked for again where the answer was lost.
    async fn copied(&self, source: &MemberId, home: u16, token: Option<u64>, page: usize) -> Option<Copied> {
        let (tries, patience) = if token.is_some() { (TRIES, PAGE) } else { (1, MAKE) };
        for _ in 0..tries {
            match self.ask_member_for(source, MemberQuestion::Copy { home, token, page }, patience).await {
                Some(Told::Copy(copied)) => return Some(*copied),
                Some(_) => return None,
                None => {}
            }
        }
        None
    }
}
