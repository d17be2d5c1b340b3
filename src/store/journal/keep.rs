//! Which journals there are, how large and how old they are; what a retention would drop; deleting them.
//!
//! Rule: nothing of a journal that is listed is dropped here but parts that a retention has outlived; entries go when their
//! replica says so. Must not know: which retention applies.

use rusqlite::{OptionalExtension, Transaction};

use super::super::StoreError;
use super::super::row::to_sql;
use super::applier::forget_some_outcomes;
use super::file::JournalStore;
use super::head::{HEAD, Head};
use super::row::{SEQ_MAX, place, seq_of};
use crate::types::{Epoch, JournalKey, PhysicalIndex, Position};

/// Rows of one step of a deletion, also of parts that are forgotten.
const STEP: usize = 256;
/// Entries that one look at a retention goes through.
const LOOK: usize = 512;

/// One journal, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Which.
    pub key: JournalKey,
    /// The highest epoch that was stored.
    pub epoch: Epoch,
    /// The last entry that was dropped at the beginning.
    pub floor: Position,
    /// The last entry.
    pub last: Position,
    /// Up to here entries are known to be committed.
    pub commit: u64,
    /// Up to here the node has applied them.
    pub applied: u64,
    /// The copy must be made anew.
    pub rebuild: bool,
    /// Bytes of all bodies, as they are stored.
    pub bytes: u64,
    /// When the first entry was stored, in seconds since 1970; `None` if there is none.
    pub oldest: Option<u64>,
}

impl JournalStore {
    /// All journals whose heads are what was written, and those that are damaged.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list(&self) -> Result<(Vec<Listed>, Vec<JournalKey>), StoreError> {
        self.read(|tx| {
            let mut found = tx.prepare_cached(&format!("{HEAD} ORDER BY physical, shard"))?;
            let mut rows = found.query([])?;
            let (mut all, mut damaged) = (Vec::new(), Vec::new());
            while let Some(row) = rows.next()? {
                match Head::read(row) {
                    Ok(head) => all.push(listed(tx, head)?),
                    Err(StoreError::Damaged { journal, .. }) => damaged.push(journal),
                    Err(other) => return Err(other),
                }
            }
            Ok((all, damaged))
        })
        .await
    }

    /// Up to where a journal's beginning may go: what was stored before `before`, and what is beyond `spare` bytes of the
    /// oldest. At most some hundred entries, so that dropping them is no long work; `None` if there is nothing.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn expired(&self, key: &JournalKey, before: u64, mut spare: u64) -> Result<Option<u64>, StoreError> {
        let (key, before) = (key.clone(), to_sql(before)?);
        self.read(move |tx| {
            let Some(head) = Head::find(tx, &key)? else { return Ok(None) };
            let sql = "SELECT place, stored_at, size FROM entries WHERE place BETWEEN ?1 AND ?2 ORDER BY place";
            let mut found = tx.prepare_cached(sql)?;
            let mut rows = found.query((place(head.id, 0)?, place(head.id, head.last.seq)?))?;
            let mut to = None;
            for _ in 0..LOOK {
                let Some(row) = rows.next()? else { break };
                let old = row.get::<_, i64>(1)? < before;
                if !old && spare == 0 {
                    break;
                }
                spare = spare.saturating_sub(u64::try_from(row.get::<_, i64>(2)?).unwrap_or(0));
                to = Some(seq_of(row.get(0)?));
            }
            Ok(to)
        })
        .await
    }

    /// Forgets parts whose entries were dropped at the beginning: those stored before `before`, and the ones of the lowest
    /// tasks where a journal remembers more than `most`. A resend of such a part is not recognised any more.
    ///
    /// Not cancel-safe in the sense that it may be done after the future is dropped.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn forget_parts(&self, key: &JournalKey, before: u64, most: u64) -> Result<(), StoreError> {
        let (before, most) = (to_sql(before)?, to_sql(most)?);
        loop {
            let of = key.clone();
            // What is to go is looked for beside the writer, for appends wait behind that.
            let found = self.read(move |tx| parts_to_forget(tx, &of, before, most)).await?;
            let Some((id, floor, parts)) = found else { return Ok(()) };
            self.db()
                .run(move |tx| {
                    // One that was stored anew meanwhile stands elsewhere.
                    let sql = "DELETE FROM parts WHERE journal = ?1 AND task = ?2 AND part = ?3 AND seq <= ?4";
                    let mut delete = tx.prepare_cached(sql)?;
                    for (task, part) in parts {
                        delete.execute((id, task, part, floor))?;
                    }
                    Ok(())
                })
                .await?;
        }
    }

    /// Deletes the journals of an index: none of them is there any more when this returns, and their rows go by and by.
    ///
    /// Not cancel-safe in the sense that it may be done after the future is dropped.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete_index(&self, index: &PhysicalIndex) -> Result<(), StoreError> {
        let index = index.clone();
        self.retire("SELECT id FROM journals WHERE physical = ?1 AND ?2 IS NULL", index, None).await
    }

    /// Deletes one journal in the same way.
    ///
    /// Not cancel-safe in the sense that it may be done after the future is dropped.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete(&self, key: &JournalKey) -> Result<(), StoreError> {
        let sql = "SELECT id FROM journals WHERE physical = ?1 AND shard = ?2";
        self.retire(sql, key.index.clone(), Some(key.shard.0)).await
    }

    async fn retire(&self, sql: &'static str, index: PhysicalIndex, shard: Option<u16>) -> Result<(), StoreError> {
        self.db()
            .run(move |tx| {
                let ids = tx
                    .prepare(sql)?
                    .query_map((index.as_str(), shard), |row| row.get(0))?
                    .collect::<Result<Vec<i64>, _>>()?;
                ids.into_iter().try_for_each(|id| Head::retire(tx, id))
            })
            .await
    }

    /// Removes rows of journals that are gone, a small step; says whether there are more. To be called again until there are
    /// none, after a deletion or a snapshot and at every start.
    ///
    /// Not cancel-safe in the sense that it may be done after the future is dropped.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn purge(&self) -> Result<bool, StoreError> {
        self.db().run(purge_step).await
    }
}

fn listed(tx: &Transaction<'_>, head: Head) -> Result<Listed, StoreError> {
    let sql = "SELECT stored_at FROM entries WHERE place BETWEEN ?1 AND ?2 ORDER BY place LIMIT 1";
    let ends = (place(head.id, 0)?, place(head.id, SEQ_MAX)?);
    let oldest: Option<i64> = tx.prepare_cached(sql)?.query_row(ends, |row| row.get(0)).optional()?;
    let Head { key, epoch, floor, last, commit, applied, rebuild, bytes, .. } = head;
    let oldest = oldest.and_then(|at| u64::try_from(at).ok());
    Ok(Listed { key, epoch, floor, last, commit, applied, rebuild, bytes, oldest })
}

/// A journal's number, its floor, and tasks with parts of it.
type PartsOf = (i64, i64, Vec<(i64, i64)>);

/// Some parts that are to be forgotten; `None`: there are none. Tasks are numbered as they come, nearly, so old ones stand first.
fn parts_to_forget(
    tx: &Transaction<'_>,
    key: &JournalKey,
    before: i64,
    most: i64,
) -> Result<Option<PartsOf>, StoreError> {
    let Some(head) = Head::find(tx, key)? else { return Ok(None) };
    let (id, floor, step) = (head.id, head.floor.seq.cast_signed(), i64::try_from(STEP).expect("a small number"));
    let take = |sql: &str, with: i64| -> Result<Vec<(i64, i64)>, StoreError> {
        let mut rows = tx.prepare_cached(sql)?;
        let rows = rows.query_map((id, floor, with, step), |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, rusqlite::Error>>()?)
    };
    let first = "SELECT task, part, seq, stored_at FROM parts WHERE journal = ?1 ORDER BY task, part LIMIT ?4";
    let mut found = take(&format!("SELECT task, part FROM ({first}) WHERE seq <= ?2 AND stored_at < ?3"), before)?;
    if found.is_empty() {
        let sql = "SELECT task FROM parts WHERE journal = ?1 ORDER BY task DESC, part DESC LIMIT 1 OFFSET ?2";
        let low: Option<i64> = tx.query_row(sql, (id, most), |row| row.get(0)).optional()?;
        if let Some(low) = low {
            let sql = "SELECT task, part FROM parts WHERE journal = ?1 AND task <= ?3 AND seq <= ?2 \
                       ORDER BY task, part LIMIT ?4";
            found = take(sql, low)?;
        }
    }
    Ok((!found.is_empty()).then_some((id, floor, found)))
}

fn purge_step(tx: &Transaction<'_>) -> Result<bool, StoreError> {
    let gone: Option<i64> = tx.query_row("SELECT id FROM gone ORDER BY id LIMIT 1", [], |row| row.get(0)).optional()?;
    let Some(id) = gone else { return Ok(false) };
    let ends = (place(id, 0)?, place(id, SEQ_MAX)?);
    let in_places = "place IN (SELECT place FROM entries WHERE place BETWEEN ?1 AND ?2 LIMIT ?3)";
    let step = i64::try_from(STEP).expect("a small number");
    let mut removed = tx.execute(&format!("DELETE FROM entries WHERE {in_places}"), (ends.0, ends.1, step))?;
    removed += tx.execute("DELETE FROM epochs WHERE place BETWEEN ?1 AND ?2", ends)?;
    let parts = "DELETE FROM parts WHERE journal = ?1 AND (task, part) IN \
                 (SELECT task, part FROM parts WHERE journal = ?1 LIMIT ?2)";
    removed += tx.execute(parts, (id, step))?;
    removed += forget_some_outcomes(tx, ends, step)?;
    removed += tx.execute("DELETE FROM home_rows WHERE journal IN (?1, -?1)", [id])?;
    if removed == 0 {
        tx.execute("DELETE FROM gone WHERE id = ?1", [id])?;
    }
    Ok(true)
}
