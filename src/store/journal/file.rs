//! The file of journals: one writer, and readers that do not wait for it.
//!
//! Readers are a small pool of connections that only read, used on the runtime's threads for blocking work: a question
//! whether a part stands in a journal holds up a client's write, and must wait neither behind the disk that the writer waits
//! for nor behind a long read for another shard. Each read is bounded, so that none keeps the log of the writer from being
//! taken over into the file for long. Must not know: what rows say.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OpenFlags, Transaction};
use tokio::sync::{Semaphore, watch};

use super::super::db::{Db, Schema};
use super::super::{LedgerStore, StoreError};

const SCHEMA: Schema = Schema {
    file: "journal.sqlite",
    thread: "journal-store",
    migrations: &[
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
     CREATE TABLE journals (
        id INTEGER PRIMARY KEY, physical TEXT NOT NULL, shard INTEGER NOT NULL, epoch INTEGER NOT NULL,
        floor_epoch INTEGER NOT NULL, floor INTEGER NOT NULL, last_epoch INTEGER NOT NULL, last INTEGER NOT NULL,
        committed INTEGER NOT NULL, applied INTEGER NOT NULL, rebuild INTEGER NOT NULL, bytes INTEGER NOT NULL,
        hash INTEGER NOT NULL, UNIQUE (physical, shard)
     ) STRICT;
     CREATE TABLE gone (id INTEGER PRIMARY KEY) STRICT;
     CREATE TABLE entries (
        place INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, task INTEGER, part INTEGER, kind INTEGER NOT NULL,
        stored_at INTEGER NOT NULL, size INTEGER NOT NULL, plain INTEGER NOT NULL, hash INTEGER NOT NULL,
        body BLOB NOT NULL
     ) STRICT;
     CREATE TABLE epochs (place INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, hash INTEGER NOT NULL) STRICT;
     CREATE TABLE parts (
        journal INTEGER NOT NULL, task INTEGER NOT NULL, part INTEGER NOT NULL, seq INTEGER NOT NULL,
        stored_at INTEGER NOT NULL, hash INTEGER NOT NULL, PRIMARY KEY (journal, task, part)
     ) STRICT, WITHOUT ROWID;",
        "ALTER TABLE parts ADD COLUMN refused INTEGER NOT NULL DEFAULT 0;
     CREATE TABLE home_rows (
        journal INTEGER NOT NULL, kind INTEGER NOT NULL, name TEXT NOT NULL, hash INTEGER NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (journal, kind, name)
     ) STRICT, WITHOUT ROWID;",
        "CREATE TABLE appliers (physical TEXT PRIMARY KEY, next_note INTEGER NOT NULL, hash INTEGER NOT NULL)
        STRICT, WITHOUT ROWID;
     CREATE TABLE lanes (
        physical TEXT NOT NULL, shard INTEGER NOT NULL, checked INTEGER NOT NULL, row TEXT NOT NULL, hash INTEGER NOT NULL,
        PRIMARY KEY (physical, shard)
     ) STRICT, WITHOUT ROWID;
     CREATE TABLE notes (
        physical TEXT NOT NULL, note INTEGER NOT NULL, row TEXT NOT NULL, hash INTEGER NOT NULL,
        PRIMARY KEY (physical, note)
     ) STRICT, WITHOUT ROWID;
     CREATE TABLE failed (
        place INTEGER PRIMARY KEY, code TEXT NOT NULL, message TEXT NOT NULL, hash INTEGER NOT NULL
     ) STRICT;
     CREATE TABLE counted (place INTEGER PRIMARY KEY, changed INTEGER NOT NULL) STRICT;
     CREATE TABLE done (
        place INTEGER PRIMARY KEY, first INTEGER NOT NULL, started INTEGER NOT NULL, finished INTEGER NOT NULL
     ) STRICT;",
    ],
    // Readers could not open it either. The ledger's file beside it is had by one process alone, and that covers this one.
    exclusive: false,
    // Entries come and go: whatever was kept once must not be the file's size for ever.
    shrinks: true,
};
/// Connections that read.
const READERS: usize = 4;

/// A handle of the journals' file; cheap to clone.
#[derive(Debug, Clone)]
pub struct JournalStore {
    db: Db,
    readers: Arc<Readers>,
}

#[derive(Debug)]
struct Readers {
    idle: Mutex<Vec<Connection>>,
    free: Arc<Semaphore>,
}

impl JournalStore {
    /// Opens `journal.sqlite` in `dir`, makes it if there is none, checks it and brings its schema up to date. The ledger's
    /// file must be open already: it is what keeps other processes away.
    ///
    /// # Errors
    /// [`StoreError`] with the remedy in its text. A damaged file is refused, never replaced.
    pub fn open(dir: &Path, _ledger: &LedgerStore) -> Result<Self, StoreError> {
        let db = Db::open(dir, &SCHEMA)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let open = |_| {
            let conn = Connection::open_with_flags(db.path(), flags)?;
            // The writer may be about to take its log over.
            conn.busy_timeout(std::time::Duration::from_secs(5))?;
            Ok(conn)
        };
        let idle: Result<Vec<Connection>, rusqlite::Error> = (0..READERS).map(open).collect();
        let idle = idle.map_err(|e| StoreError::Open { path: db.path().to_owned(), reason: e.to_string() })?;
        let readers = Readers { idle: Mutex::new(idle), free: Arc::new(Semaphore::new(READERS)) };
        Ok(Self { db, readers: Arc::new(readers) })
    }

    /// The file.
    pub(in crate::store) fn db(&self) -> &Db {
        &self.db
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        self.db.path()
    }

    /// Changes rows behind the store's back, as a bad disk would; how many.
    #[cfg(test)]
    pub fn spoil(&self, sql: &str) -> usize {
        let conn = Connection::open(self.path()).expect("the file is there");
        conn.busy_timeout(std::time::Duration::from_secs(5)).expect("a time to wait");
        conn.execute(sql, []).expect("it is changed")
    }

    /// Changes once, when the store has failed for good: the member must leave service.
    pub fn fatal(&self) -> watch::Receiver<Option<StoreError>> {
        self.db.fatal()
    }

    /// Runs `job` on a connection that reads, in one transaction: what it sees belongs to one instant.
    ///
    /// Cancel-safe.
    pub(super) async fn read<T, F>(&self, job: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let free = Arc::clone(&self.readers.free).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let readers = Arc::clone(&self.readers);
        let reading = tokio::task::spawn_blocking(move || {
            let idle = || readers.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let mut conn = idle().pop().ok_or(StoreError::Closed)?;
            let done = conn.transaction().map_err(StoreError::from).and_then(|tx| job(&tx));
            idle().push(conn);
            // Only now: whoever comes next finds a connection.
            drop(free);
            done
        });
        reading.await.map_err(|_| StoreError::Closed)?
    }

    /// From now on the file does not grow any more, as on a full disk.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn fill_for_test(&self) -> Result<(), StoreError> {
        self.db
            .run(|tx| {
                tx.query_row("PRAGMA max_page_count = 1", [], |row| row.get::<_, i64>(0))?;
                Ok(())
            })
            .await
    }
}
