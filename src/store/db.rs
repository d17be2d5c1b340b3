//! A file: one connection with a writer thread that runs jobs in the order they come, as many as wait in one transaction.
//!
//! A job is answered after the commit that holds it. A job that fails is undone alone (a savepoint), the others of its
//! transaction stay. Must not know: what is in the file.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::{mpsc, oneshot, watch};

use super::error::StoreError;

/// Jobs that wait at most; a caller beyond that waits itself.
const QUEUE: usize = 256;
/// Jobs of one transaction at most.
const GROUP: usize = 64;
/// Bytes of one transaction at most, as far as its jobs say how much they write; one job may be larger.
pub(super) const GROUP_BYTES: usize = 4 << 20;
/// How long the process before may take to let go of a file that only one may have.
const EXCLUSIVE_PATIENCE: Duration = Duration::from_secs(2);

/// What a file is: its name, and how its tables came about.
#[derive(Debug)]
pub(super) struct Schema {
    /// The file's name in the member's directory.
    pub(super) file: &'static str,
    /// The name of its writer thread.
    pub(super) thread: &'static str,
    /// Ordered, forward only: the position in this list is the schema's number.
    pub(super) migrations: &'static [&'static str],
    /// No other process may have it open.
    pub(super) exclusive: bool,
    /// Pages that hold nothing can be given back to the disk. That is so from a file's first page on, or never.
    pub(super) shrinks: bool,
}

/// Told how the transaction ended.
type Tell = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
/// An error says that the whole transaction is lost, not the job alone.
type Work = Box<dyn FnOnce(&Transaction<'_>) -> (Result<(), StoreError>, Tell) + Send>;

struct Job {
    /// How many bytes it writes, roughly.
    weight: usize,
    work: Work,
}

/// A handle of one file; cheap to clone.
#[derive(Clone)]
pub(super) struct Db {
    jobs: mpsc::Sender<Job>,
    fatal: watch::Receiver<Option<StoreError>>,
    path: Arc<PathBuf>,
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Db").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Db {
    /// Opens the file in `dir`, makes it if there is none, checks it and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError`] with the remedy in its text. A damaged file is refused, never replaced.
    pub(super) fn open(dir: &Path, schema: &Schema) -> Result<Self, StoreError> {
        let path = dir.join(schema.file);
        let open = |reason: String| StoreError::Open { path: path.clone(), reason };
        make_private(dir, &path).map_err(|e| open(e.to_string()))?;
        check_magic(&path)?;
        let conn = Connection::open(&path).map_err(|e| open(e.to_string()))?;
        let conn = prepare(conn, &path, schema)?;
        let (jobs, inbox) = mpsc::channel(QUEUE);
        let (fatal_tx, fatal) = watch::channel(None);
        std::thread::Builder::new()
            .name(schema.thread.into())
            .spawn(move || write_loop(conn, inbox, &fatal_tx))
            .map_err(|e| open(e.to_string()))?;
        Ok(Self { jobs, fatal, path: Arc::new(path) })
    }

    /// Where the file is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `job` on the writer and returns its result once it is committed.
    ///
    /// Not cancel-safe in the sense that the job may still run after the future is dropped; it is all or nothing.
    ///
    /// # Errors
    /// What the job or the commit failed with.
    pub(super) async fn run<T, F>(&self, job: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.run_weighing(0, job).await
    }

    /// The same for a job that writes so many bytes: jobs share a transaction only while they are no more than
    /// [`GROUP_BYTES`] together.
    ///
    /// Not cancel-safe in the sense that the job may still run after the future is dropped; it is all or nothing.
    ///
    /// # Errors
    /// What the job or the commit failed with.
    pub(super) async fn run_weighing<T, F>(&self, weight: usize, job: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (answer, wait) = oneshot::channel();
        let work: Work = Box::new(move |tx| {
            let (lost, done) = match in_savepoint(tx, job) {
                Ok(done) => (Ok(()), done),
                Err(lost) => (Err(lost.clone()), Err(lost)),
            };
            let tell: Tell = Box::new(move |committed| {
                // Nobody listening is a caller that has gone; the job's effect stands all the same.
                drop(answer.send(committed.and(done)));
            });
            (lost, tell)
        });
        self.jobs.send(Job { weight, work }).await.map_err(|_| StoreError::Closed)?;
        wait.await.map_err(|_| StoreError::Closed)?
    }

    /// Changes once, when the store has failed for good: the member must leave service.
    pub(super) fn fatal(&self) -> watch::Receiver<Option<StoreError>> {
        self.fatal.clone()
    }
}

/// Runs a job so that it can be undone alone. The outer error says that the transaction is lost: on a full disk, and on some
/// other failures, SQLite undoes all of it by itself.
fn in_savepoint<T>(
    tx: &Transaction<'_>,
    job: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
) -> Result<Result<T, StoreError>, StoreError> {
    tx.execute_batch("SAVEPOINT job")?;
    let done = job(tx);
    let undone = match (&done, tx.is_autocommit()) {
        (Ok(_), false) => tx.execute_batch("RELEASE job"),
        (Err(_), false) => tx.execute_batch("ROLLBACK TO job; RELEASE job"),
        (_, true) => Ok(()),
    };
    match (done, undone, tx.is_autocommit()) {
        (done, Ok(()), false) => Ok(done),
        (Err(cause), ..) => Err(cause),
        (Ok(_), Err(cause), _) => Err(cause.into()),
        (Ok(_), Ok(()), true) => {
            Err(StoreError::Sql { reason: "the transaction ended inside a job".into(), fatal: true })
        }
    }
}

/// Makes what is missing of the directory and the file, for their owner alone: reset keys, task bodies and records are
/// nobody else's. What is there keeps the mode that it was given.
fn make_private(dir: &Path, file: &Path) -> io::Result<()> {
    if !dir.is_dir() {
        if let Some(parent) = dir.parent() {
            std::fs::create_dir_all(parent)?;
        }
        existing(DirBuilder::new().mode(0o700).create(dir))?;
    }
    // SQLite gives the files beside it the same mode.
    existing(OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).map(drop))
}

/// That something is there already is no error.
fn existing(made: io::Result<()>) -> io::Result<()> {
    match made {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// SQLite takes a file shorter than a header for a new one and would write over it; a store is never rebuilt so.
fn check_magic(path: &Path) -> Result<(), StoreError> {
    use std::io::Read;
    const MAGIC: &[u8] = b"SQLite format 3\0";
    let failed = |e: io::Error| StoreError::Open { path: path.to_owned(), reason: e.to_string() };
    let mut file = match File::open(path) {
        Ok(file) => file.take(MAGIC.len() as u64),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    let mut head = Vec::new();
    file.read_to_end(&mut head).map_err(failed)?;
    if head.is_empty() || head == MAGIC {
        return Ok(());
    }
    Err(StoreError::Corrupt { path: path.to_owned(), reason: "it does not begin as an SQLite file does".into() })
}

fn prepare(conn: Connection, path: &Path, schema: &Schema) -> Result<Connection, StoreError> {
    let corrupt = |reason: String| StoreError::Corrupt { path: path.to_owned(), reason };
    let setup = || -> Result<String, rusqlite::Error> {
        if schema.exclusive {
            // Taken with the next line, and kept until the process ends.
            conn.busy_timeout(EXCLUSIVE_PATIENCE)?;
            conn.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        }
        if schema.shrinks {
            // Before the log, which writes the first page. A file that is there stays as it was made.
            conn.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        }
        conn.pragma_update(None, "journal_mode", "WAL")?;
        conn.pragma_update(None, "synchronous", "FULL")?;
        conn.query_row("PRAGMA quick_check(1)", [], |r| r.get(0))
    };
    match setup() {
        Ok(ok) if ok == "ok" => {}
        Ok(found) => return Err(corrupt(found)),
        Err(e) => {
            return Err(match e.sqlite_error_code() {
                Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
                    corrupt(e.to_string())
                }
                Some(rusqlite::ErrorCode::DatabaseBusy) => StoreError::InUse { path: path.to_owned() },
                _ => StoreError::Open { path: path.to_owned(), reason: e.to_string() },
            });
        }
    }
    let found: i64 = conn.query_row("PRAGMA user_version", [], |r| r.get(0))?;
    let known = i64::try_from(schema.migrations.len()).expect("few migrations");
    if found > known {
        return Err(StoreError::Newer { path: path.to_owned(), found, known });
    }
    for (number, sql) in (1..).zip(schema.migrations).skip(usize::try_from(found).unwrap_or(0)) {
        conn.execute_batch(&format!("BEGIN IMMEDIATE; {sql} PRAGMA user_version = {number}; COMMIT;"))?;
    }
    Ok(conn)
}

fn write_loop(mut conn: Connection, mut inbox: mpsc::Receiver<Job>, fatal: &watch::Sender<Option<StoreError>>) {
    let mut left = None;
    while let Some(first) = left.take().or_else(|| inbox.blocking_recv()) {
        let mut answers = Vec::new();
        let committed = run_group(&mut conn, first, &mut inbox, &mut left, &mut answers);
        if let Err(e) = &committed
            && e.is_fatal()
        {
            fatal.send_replace(Some(e.clone()));
        }
        for answer in answers {
            answer(committed.clone());
        }
    }
}

/// Runs `first` and what waits behind it, as much as one transaction may hold; what was taken and did not fit is `left`.
fn run_group(
    conn: &mut Connection,
    first: Job,
    inbox: &mut mpsc::Receiver<Job>,
    left: &mut Option<Job>,
    answers: &mut Vec<Tell>,
) -> Result<(), StoreError> {
    // If it can't be begun, the job is dropped with its answer channel, and its caller sees the store closed.
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut weight = first.weight;
    let mut next = Some(first);
    while let Some(job) = next {
        let (lost, tell) = (job.work)(&tx);
        answers.push(tell);
        // None of the group is stored then.
        lost?;
        next = if answers.len() < GROUP { inbox.try_recv().ok() } else { None };
        weight = weight.saturating_add(next.as_ref().map_or(0, |job| job.weight));
        if weight > GROUP_BYTES {
            *left = next.take();
        }
    }
    tx.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTES: Schema = Schema {
        file: "notes.sqlite",
        thread: "notes",
        migrations: &["CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;"],
        exclusive: false,
        shrinks: false,
    };

    fn open(dir: &Path) -> Result<Db, StoreError> {
        Db::open(dir, &NOTES)
    }

    #[tokio::test]
    async fn a_failed_job_is_undone_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).unwrap();
        let put = |key: &'static str, fail: bool| {
            store.run(move |tx| {
                tx.execute("INSERT INTO meta VALUES (?1, x'00')", [key])?;
                if fail { Err(StoreError::Malformed { what: "test", reason: String::new() }) } else { Ok(()) }
            })
        };
        let (a, b, c) = tokio::join!(put("a", false), put("b", true), put("c", false));
        assert!(a.is_ok() && b.is_err() && c.is_ok());
        let keys = store
            .run(|tx| Ok(tx.query_row("SELECT group_concat(key) FROM meta", [], |r| r.get::<_, String>(0))?))
            .await
            .unwrap();
        assert_eq!(keys, "a,c");
    }

    #[tokio::test]
    async fn a_disk_that_is_full_fails_the_whole_group_and_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).unwrap();
        let full = |tx: &Transaction<'_>| Ok(tx.query_row("PRAGMA max_page_count = 1", [], |r| r.get::<_, i64>(0))?);
        store.run(full).await.unwrap();
        let put = |key: &'static str, size: i64| {
            store.run(move |tx| Ok(tx.execute("INSERT INTO meta VALUES (?1, zeroblob(?2))", (key, size))?))
        };
        let (_small, large, _after) = tokio::join!(put("a", 1), put("b", 1 << 20), put("c", 1));
        assert!(matches!(large, Err(StoreError::Sql { fatal: true, .. })), "{large:?}");
        assert!(store.fatal().borrow().as_ref().is_some_and(StoreError::is_fatal));
        let conn = Connection::open(dir.path().join(NOTES.file)).unwrap();
        let large: i64 = conn.query_row("SELECT count(*) FROM meta WHERE key = 'b'", [], |r| r.get(0)).unwrap();
        assert_eq!(large, 0);
    }

    #[tokio::test]
    async fn jobs_that_are_too_large_together_are_stored_apart() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).unwrap();
        // The writer is held up, so that all wait together.
        let (go, wait) = std::sync::mpsc::sync_channel::<()>(0);
        let held = store.run(move |_| Ok(wait.recv().is_ok()));
        let put = |key: &'static str| {
            store.run_weighing(GROUP_BYTES / 2 + 1, move |tx| {
                Ok(tx.execute("INSERT INTO meta VALUES (?1, x'')", [key])?)
            })
        };
        let fails = store.run_weighing(GROUP_BYTES / 2 + 1, |tx| {
            tx.query_row("PRAGMA max_page_count = 1", [], |r| r.get::<_, i64>(0))?;
            Ok(tx.execute("INSERT INTO meta VALUES ('b', zeroblob(1 << 20))", [])?)
        });
        let release = async { tokio::task::spawn_blocking(move || go.send(()).unwrap()).await.unwrap() };
        let (held, a, b, ()) = tokio::join!(held, put("a"), fails, release);
        assert!(held.unwrap() && a.is_ok(), "{a:?}");
        assert!(matches!(b, Err(StoreError::Sql { fatal: true, .. })), "{b:?}");
    }

    #[tokio::test]
    async fn what_is_made_is_its_owners_alone_and_what_is_there_keeps_its_mode() {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("a/b");
        let store = open(&dir).unwrap();
        store.run(|tx| Ok(tx.execute("INSERT INTO meta VALUES ('k', x'07')", [])?)).await.unwrap();
        assert_eq!(mode(&dir), 0o700);
        let files = std::fs::read_dir(&dir).unwrap().map(|f| f.unwrap().path()).collect::<Vec<_>>();
        assert!(files.len() > 1, "the log as well: {files:?}");
        assert!(files.iter().all(|f| mode(f) == 0o600), "{files:?}");
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o750)).unwrap();
        std::fs::set_permissions(dir.join(NOTES.file), PermissionsExt::from_mode(0o640)).unwrap();
        open(&dir).unwrap();
        assert_eq!((mode(&dir), mode(&dir.join(NOTES.file))), (0o750, 0o640));
    }

    #[tokio::test]
    async fn what_was_answered_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).unwrap();
        store.run(|tx| Ok(tx.execute("INSERT INTO meta VALUES ('k', x'07')", [])?)).await.unwrap();
        let again = open(dir.path()).unwrap();
        let v: Vec<u8> = again.run(|tx| Ok(tx.query_row("SELECT value FROM meta", [], |r| r.get(0))?)).await.unwrap();
        assert_eq!(v, [7]);
    }

    #[test]
    fn a_damaged_file_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NOTES.file);
        for size in [1, 64, 600, 9_000] {
            let notes = b"not a database ".repeat(600)[..size].to_vec();
            std::fs::write(&path, &notes).unwrap();
            let error = open(dir.path()).unwrap_err();
            assert!(matches!(error, StoreError::Corrupt { .. }), "{size} bytes: {error}");
            assert_eq!(std::fs::read(&path).unwrap(), notes);
        }
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NOTES.file);
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(open(dir.path()), Err(StoreError::Newer { found: 99, .. })));
    }
}
