//! What a home of tasks has made of its journal: rows that stand for all entries up to the one that was applied last.
//!
//! The rows belong to their journal and go with it: a journal that is begun anew begins with those that came with the
//! snapshot, in the same transaction. Rule: rows and the number of the last entry applied change together, and a row is read
//! only if it is what was written. Must not know: what a row says.

use rusqlite::Transaction;
use rusqlite::types::ValueRef;

use super::super::StoreError;
use super::super::row::{Hash, malformed};
use super::file::JournalStore;
use super::head::Head;
use super::read::read_parts;
use super::write::epoch_at;
use crate::proto::journal::Stands;
use crate::proto::tasks::home::{StoredRow, Touched};
use crate::types::{Epoch, JournalKey, TaskPart};

/// A home as it is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredHome {
    /// The last entry that the rows know.
    pub applied: u64,
    /// In which epoch that entry was appended.
    pub epoch: Epoch,
    /// The last entry that was dropped at the beginning of the journal.
    pub floor: u64,
    /// The copy must be made anew: the rows are of no use.
    pub rebuild: bool,
    /// All of them.
    pub rows: Vec<StoredRow>,
}

fn name_of(touched: &Touched) -> (i64, String) {
    match touched {
        Touched::Task(uid) => (0, uid.to_string()),
        Touched::Key(key) => (1, key.clone()),
        Touched::Sweep(by) => (2, by.to_string()),
        Touched::Void(uid) => (3, uid.to_string()),
    }
}

fn touched_of(row: &StoredRow) -> Touched {
    match row {
        StoredRow::Task(uid, _) => Touched::Task(*uid),
        StoredRow::Key(key, _) => Touched::Key(key.clone()),
        StoredRow::Sweep(by, _) => Touched::Sweep(*by),
        StoredRow::Void(uid) => Touched::Void(*uid),
    }
}

fn hash_of(kind: i64, name: &str, body: &[u8]) -> i64 {
    let mut hash = Hash::default();
    [ValueRef::Integer(kind), ValueRef::from(name), ValueRef::Blob(body)].into_iter().for_each(|v| hash.add(v));
    hash.value()
}

/// The number under which rows wait for a snapshot to be taken in.
fn waiting(journal: i64) -> i64 {
    -journal
}

fn put(tx: &Transaction<'_>, journal: i64, row: &StoredRow) -> Result<(), StoreError> {
    let (kind, name) = name_of(&touched_of(row));
    let body = serde_json::to_vec(row).map_err(|e| malformed("row of a home", e))?;
    let sql = "INSERT OR REPLACE INTO home_rows VALUES (?1, ?2, ?3, ?4, ?5)";
    let hash = hash_of(kind, &name, &body);
    tx.prepare_cached(sql)?.execute((journal, kind, &name, hash, &body))?;
    Ok(())
}

/// The rows that came with a snapshot belong to the new journal from here on, and those of the old one go.
pub(super) fn take_over(tx: &Transaction<'_>, old: i64, new: i64) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM home_rows WHERE journal = ?1")?.execute([old])?;
    tx.prepare_cached("UPDATE home_rows SET journal = ?2 WHERE journal = ?1")?.execute([waiting(old), new])?;
    Ok(())
}

fn read_home(tx: &Transaction<'_>, key: &JournalKey) -> Result<StoredHome, StoreError> {
    let Some(head) = Head::find(tx, key)? else { return Ok(StoredHome::default()) };
    let mut home = StoredHome {
        applied: head.applied,
        epoch: epoch_at(tx, &head, head.applied.max(head.floor.seq))?.epoch,
        floor: head.floor.seq,
        rebuild: head.rebuild,
        ..StoredHome::default()
    };
    let mut found = tx.prepare_cached("SELECT kind, name, hash, body FROM home_rows WHERE journal = ?1")?;
    let mut rows = found.query([head.id])?;
    while let Some(row) = rows.next()? {
        let (kind, name, hash): (i64, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let body: Vec<u8> = row.get(3)?;
        let read = || {
            let row = serde_json::from_slice::<StoredRow>(&body).ok()?;
            (hash == hash_of(kind, &name, &body) && name_of(&touched_of(&row)) == (kind, name.clone())).then_some(row)
        };
        let reason = || format!("a row of its tasks ({kind}, {name})");
        let damaged = || StoreError::Damaged { journal: key.clone(), reason: reason() };
        home.rows.push(read().ok_or_else(damaged)?);
    }
    Ok(home)
}

impl JournalStore {
    /// All that is stored of a home; as good as nothing if there is no such journal.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`StoreError::Damaged`]: the journal is to be repaired; others are fatal.
    pub async fn home(&self, key: &JournalKey) -> Result<StoredHome, StoreError> {
        let key = key.clone();
        self.read(move |tx| read_home(tx, &key)).await
    }

    /// The same, with the parts that stood or stand in the journal up to the last entry applied: both as they were at one
    /// instant.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// As [`Self::home`].
    pub async fn home_with_parts(&self, key: &JournalKey) -> Result<(StoredHome, Vec<(TaskPart, Stands)>), StoreError> {
        let key = key.clone();
        self.read(move |tx| {
            let home = read_home(tx, &key)?;
            let parts = read_parts(tx, &key, home.applied)?;
            Ok((home, parts))
        })
        .await
    }

    /// Entries up to `to` are in the rows, of which these have changed or are gone.
    ///
    /// Not cancel-safe in the sense that it may be done after the future is dropped.
    ///
    /// # Errors
    /// [`StoreError`]; nothing of it is stored then.
    pub async fn put_home(
        &self,
        key: &JournalKey,
        to: u64,
        changed: Vec<(Touched, Option<StoredRow>)>,
    ) -> Result<(), StoreError> {
        let key = key.clone();
        self.db()
            .run(move |tx| {
                let Some(mut head) = Head::find(tx, &key)? else { return Ok(()) };
                for (touched, row) in &changed {
                    match row {
                        Some(row) => put(tx, head.id, row)?,
                        None => {
                            let (kind, name) = name_of(touched);
                            let sql = "DELETE FROM home_rows WHERE journal = ?1 AND kind = ?2 AND name = ?3";
                            tx.prepare_cached(sql)?.execute((head.id, kind, name))?;
                        }
                    }
                }
                head.applied = to.min(head.last.seq);
                head.put(tx)
            })
            .await
    }

    /// These rows are to come with the next snapshot of the journal. Several calls add up; `first` forgets earlier ones.
    ///
    /// Not cancel-safe in the sense that it may be done after the future is dropped.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn stage_home(&self, key: &JournalKey, first: bool, rows: Vec<StoredRow>) -> Result<(), StoreError> {
        let key = key.clone();
        self.db()
            .run(move |tx| {
                let Some(head) = Head::find(tx, &key)? else { return Ok(()) };
                if first {
                    tx.execute("DELETE FROM home_rows WHERE journal = ?1", [waiting(head.id)])?;
                }
                rows.iter().try_for_each(|row| put(tx, waiting(head.id), row))
            })
            .await
    }
}
