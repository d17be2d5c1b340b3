//! The stand-in's database: tasks, indexes, documents and runtime features in one SQLite file.
//!
//! Rule: what belongs together is committed in one transaction, so that a kill at any instant leaves a batch of tasks
//! either wholly done or wholly waiting. Must not know: what tasks mean, search.

use std::path::Path;

use anyhow::{Context, Result};
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::{Map, Value};

use super::tasks::Task;

const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = NORMAL;
    CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS tasks (uid INTEGER PRIMARY KEY, task TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS indexes (
        number INTEGER PRIMARY KEY, uid TEXT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL,
        primary_key TEXT, settings TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS documents (
        idx INTEGER NOT NULL, docid INTEGER NOT NULL, document TEXT NOT NULL, PRIMARY KEY (idx, docid)) WITHOUT ROWID;
";

/// An index as it is stored.
#[derive(Debug, Clone)]
pub struct StoredIndex {
    /// Its number, kept through renames.
    pub number: i64,
    /// Its name.
    pub uid: String,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub updated_at: String,
    /// The primary key, once there is one.
    pub primary_key: Option<String>,
    /// All settings in normal form.
    pub settings: Map<String, Value>,
}

/// One change of the database.
pub enum Write {
    /// Creates or replaces an index record.
    Index(Box<StoredIndex>),
    /// Removes an index with its documents.
    RemoveIndex(i64),
    /// Creates or replaces a document: index number, document number, JSON.
    Document(i64, u32, String),
    /// Removes a document.
    RemoveDocument(i64, u32),
    /// Removes all documents of an index.
    Clear(i64),
    /// Creates or replaces a task.
    Task(Box<Task>),
}

/// The open database.
pub struct Store {
    connection: Connection,
}

impl Store {
    /// Opens the database in `dir`, making both if they are not there.
    pub fn open(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let file = dir.join("stand-in.db");
        let connection = Connection::open(&file).with_context(|| format!("cannot open {}", file.display()))?;
        connection.execute_batch(SCHEMA).with_context(|| format!("cannot prepare {}", file.display()))?;
        Ok(Self { connection })
    }

    /// A value kept under a name.
    pub fn meta(&self, key: &str) -> Result<Option<String>> {
        let mut query = self.connection.prepare("SELECT value FROM meta WHERE key = ?1")?;
        Ok(query.query_row([key], |row| row.get(0)).optional()?)
    }

    /// Keeps a value under a name.
    pub fn set_meta(&self, key: &str, value: &str) -> Result<()> {
        self.connection.execute("INSERT OR REPLACE INTO meta VALUES (?1, ?2)", [key, value])?;
        Ok(())
    }

    /// All tasks, oldest first.
    pub fn tasks(&self) -> Result<Vec<Task>> {
        let mut query = self.connection.prepare("SELECT task FROM tasks ORDER BY uid")?;
        let rows = query.query_map([], |row| row.get::<_, String>(0))?;
        rows.map(|row| serde_json::from_str(&row?).context("a stored task is not readable")).collect()
    }

    /// All index records.
    pub fn indexes(&self) -> Result<Vec<StoredIndex>> {
        let sql = "SELECT number, uid, created_at, updated_at, primary_key, settings FROM indexes";
        let mut query = self.connection.prepare(sql)?;
        let mut rows = query.query([])?;
        let mut indexes = Vec::new();
        while let Some(row) = rows.next()? {
            indexes.push(StoredIndex {
                number: row.get(0)?,
                uid: row.get(1)?,
                created_at: row.get(2)?,
                updated_at: row.get(3)?,
                primary_key: row.get(4)?,
                settings: serde_json::from_str(&row.get::<_, String>(5)?)
                    .context("stored settings are not readable")?,
            });
        }
        Ok(indexes)
    }

    /// All documents of an index in the order of their numbers.
    pub fn documents(&self, index: i64) -> Result<Vec<(u32, Map<String, Value>)>> {
        let mut query =
            self.connection.prepare("SELECT docid, document FROM documents WHERE idx = ?1 ORDER BY docid")?;
        let mut rows = query.query([index])?;
        let mut documents = Vec::new();
        while let Some(row) = rows.next()? {
            let text: String = row.get(1)?;
            documents.push((row.get(0)?, serde_json::from_str(&text).context("a stored document is not readable")?));
        }
        Ok(documents)
    }

    /// The size of the database in bytes.
    pub fn size(&self) -> Result<u64> {
        let pages: i64 = self.connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
        let size: i64 = self.connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
        Ok(u64::try_from(pages.saturating_mul(size))?)
    }

    /// Makes all changes, or none.
    pub fn commit(&mut self, writes: &[Write]) -> Result<()> {
        let transaction = self.connection.transaction()?;
        for write in writes {
            match write {
                Write::Index(index) => {
                    let settings = serde_json::to_string(&index.settings)?;
                    transaction
                        .prepare_cached("INSERT OR REPLACE INTO indexes VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
                        .execute(params![
                            index.number,
                            index.uid,
                            index.created_at,
                            index.updated_at,
                            index.primary_key,
                            settings
                        ])?;
                }
                Write::RemoveIndex(number) => {
                    transaction.execute("DELETE FROM documents WHERE idx = ?1", [number])?;
                    transaction.execute("DELETE FROM indexes WHERE number = ?1", [number])?;
                }
                Write::Document(index, docid, json) => {
                    let mut put = transaction.prepare_cached("INSERT OR REPLACE INTO documents VALUES (?1, ?2, ?3)")?;
                    put.execute(params![index, docid, json])?;
                }
                Write::RemoveDocument(index, docid) => {
                    let mut remove =
                        transaction.prepare_cached("DELETE FROM documents WHERE idx = ?1 AND docid = ?2")?;
                    remove.execute(params![index, docid])?;
                }
                Write::Clear(index) => {
                    transaction.execute("DELETE FROM documents WHERE idx = ?1", [index])?;
                }
                Write::Task(task) => {
                    let json = serde_json::to_string(task)?;
                    let mut put = transaction.prepare_cached("INSERT OR REPLACE INTO tasks VALUES (?1, ?2)")?;
                    put.execute(params![task.uid, json])?;
                }
            }
        }
        Ok(transaction.commit()?)
    }
}
