//! Pages of the file that hold nothing: entries take them before the file grows, and what is more than they will soon need is
//! given back to the disk.
//!
//! Rule: one step is small, for appends wait behind it. A file that was made before it could shrink stays as large as it was;
//! its pages are used again. Must not know: how much room the disk has, any clock.

use rusqlite::Transaction;

use super::super::StoreError;
use super::file::JournalStore;

/// Pages that one step gives back at most.
const STEP_PAGES: u64 = 128;
/// What a step writes at most, roughly: each page that is moved, and those that refer to it.
const STEP_BYTES: usize = 1 << 20;
/// So many bytes stay, and an eighth of the file if that is more: a file that is cut and grows again all the time only makes
/// work.
const KEPT_BYTES: u64 = 16 << 20;
/// The value of `auto_vacuum` with which a file shrinks by steps.
const INCREMENTAL: i64 = 2;

/// How large the file is, and how much of it holds nothing.
#[derive(Debug, Clone, Copy)]
struct Space {
    page: u64,
    pages: u64,
    spare: u64,
    shrinks: bool,
}

impl Space {
    fn read(tx: &Transaction<'_>) -> Result<Self, StoreError> {
        let ask = |name: &str| tx.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0));
        let count = |name: &str| Ok::<_, StoreError>(u64::try_from(ask(name)?).unwrap_or(0));
        Ok(Self {
            page: count("page_size")?,
            pages: count("page_count")?,
            spare: count("freelist_count")?,
            shrinks: ask("auto_vacuum")? == INCREMENTAL,
        })
    }

    /// Pages that are to be given back.
    fn surplus(&self) -> u64 {
        let kept = (KEPT_BYTES / self.page.max(1)).max(self.pages / 8);
        if self.shrinks { self.spare.saturating_sub(kept) } else { 0 }
    }
}

impl JournalStore {
    /// Bytes of the file that hold nothing: so much can be stored in it before it grows.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn spare_bytes(&self) -> Result<u64, StoreError> {
        self.read(|tx| Space::read(tx).map(|space| space.spare.saturating_mul(space.page))).await
    }

    /// Gives some of that back to the disk, a step that ends early once `goes_on` says no; says whether there is more. The file
    /// itself is cut when its log is taken over.
    ///
    /// Not cancel-safe in the sense that it may be done after the future is dropped.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn give_back(&self, goes_on: impl Fn() -> bool + Send + 'static) -> Result<bool, StoreError> {
        // Seen without the writer, which is asked only if there is something to do.
        if self.read(|tx| Space::read(tx).map(|space| space.surplus())).await? == 0 {
            return Ok(false);
        }
        self.db()
            .run_weighing(STEP_BYTES, move |tx| {
                let pages = Space::read(tx)?.surplus().min(STEP_PAGES);
                if pages > 0 {
                    // Each row is a page that has gone.
                    let mut step = tx.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
                    let mut gone = step.query([])?;
                    while gone.next()?.is_some() && goes_on() {}
                }
                Ok(Space::read(tx)?.surplus() > 0)
            })
            .await
    }
}
