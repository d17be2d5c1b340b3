//! `miroir.sqlite`: what this member knows of itself and has done on its own node.
//!
//! Must not know: the ledger, which has a file of its own.

use std::path::Path;

use rusqlite::Transaction;
use tokio::sync::watch;

use super::StoreError;
use super::db::{Db, Schema};

const SCHEMA: Schema = Schema {
    file: "miroir.sqlite",
    thread: "store",
    migrations: &[
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
     CREATE TABLE records (key TEXT PRIMARY KEY, version INTEGER NOT NULL, value TEXT NOT NULL) STRICT;
     CREATE TABLE local_indexes (physical TEXT PRIMARY KEY, made INTEGER NOT NULL, held TEXT NOT NULL) STRICT;
     CREATE TABLE tasks (
        uid INTEGER PRIMARY KEY, index_uid TEXT, kind TEXT NOT NULL, state TEXT NOT NULL, body TEXT NOT NULL
     ) STRICT;
     CREATE INDEX tasks_open ON tasks (uid) WHERE state <> 'finished';",
        // Records are in the ledger.
        "DROP TABLE records;",
        // The second and third are for people: nothing is decided by them.
        "CREATE TABLE fences (scope TEXT PRIMARY KEY, epoch INTEGER NOT NULL) STRICT;
     CREATE TABLE leader_lease (
        scope TEXT PRIMARY KEY, holder TEXT, epoch INTEGER NOT NULL, expires_at TEXT
     ) STRICT;
     CREATE TABLE mode_b_operations (
        id TEXT PRIMARY KEY, scope TEXT NOT NULL, kind TEXT NOT NULL, phase TEXT NOT NULL, state TEXT NOT NULL,
        entry TEXT NOT NULL, updated_at TEXT NOT NULL
     ) STRICT;
     CREATE INDEX mode_b_operations_scope ON mode_b_operations (scope);",
    ],
    exclusive: false,
    shrinks: false,
};

/// A handle of the member's own file; cheap to clone.
#[derive(Debug, Clone)]
pub struct Store(Db);

impl Store {
    /// Opens `miroir.sqlite` in `dir`, makes it if there is none, checks it and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError`] with the remedy in its text. A damaged file is refused, never replaced.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Db::open(dir, &SCHEMA).map(Self)
    }

    /// The file.
    pub(super) fn db(&self) -> &Db {
        &self.0
    }

    /// Runs `job` on the writer and returns its result once it is committed.
    ///
    /// Not cancel-safe in the sense that the job may still run after the future is dropped; it is all or nothing.
    ///
    /// # Errors
    /// What the job or the commit failed with.
    pub async fn run<T, F>(&self, job: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.0.run(job).await
    }

    /// Changes once, when the store has failed for good: the member must leave service.
    pub fn fatal(&self) -> watch::Receiver<Option<StoreError>> {
        self.0.fatal()
    }
}
