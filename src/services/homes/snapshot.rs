//! A copy of a home that must be made anew: its rows come from another member's, with the parts that stand in its journal.
//!
//! Rule: rows, parts and position are those of one member at one entry, and become durable together. Must not know: why the
//! copy is of no use.

use std::time::Duration;

use super::call::{Copied, MemberQuestion, Told};
use super::client::Homes;
use super::driver::{Done, Driver};
use super::journal_of;
use crate::store::StoreError;
use crate::types::MemberId;

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(500);

impl Driver {
    /// Has the copy made anew, however long that takes.
    pub(super) fn copy(&mut self, home: u16) {
        let homes = self.homes.clone();
        self.done.spawn(async move {
            let (key, mut taken) = (journal_of(home), false);
            while homes.holds(home) {
                taken = taken || homes.take_copy(home).await?;
                // What was taken is durable a little later.
                match homes.journals.home(&key).await {
                    Ok(stored) if taken && !stored.rebuild && stored.applied >= stored.floor => break,
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
        let Some(first) = self.copied(&source, home, 0, None).await else { return Ok(false) };
        let (at, mut parts, mut left) = (first.at, first.parts, first.left);
        let mut count = first.rows.len();
        self.journals.stage_home(&key, true, first.rows).await?;
        while left > 0 {
            let Some(more) = self.copied(&source, home, count, Some(at)).await.filter(|more| more.at == at) else {
                return Ok(false);
            };
            if more.rows.is_empty() && more.left > 0 {
                return Ok(false);
            }
            (count, left) = (count + more.rows.len(), more.left);
            parts = more.parts;
            self.journals.stage_home(&key, false, more.rows).await?;
        }
        Ok(self.journals.snapshot(&key, at, parts).await)
    }

    async fn copied(
        &self,
        source: &MemberId,
        home: u16,
        skip: usize,
        at: Option<crate::types::Position>,
    ) -> Option<Copied> {
        match self.ask_member(source, MemberQuestion::Copy { home, skip, at }).await? {
            Told::Copy(copied) => Some(*copied),
            _ => None,
        }
    }
}
