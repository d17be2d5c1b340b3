//! What is left of a journal that is damaged.
//!
//! Rule: nothing is made up. What stands before the first bad row stays, so that epochs and numbers that were ever confirmed
//! are not given again; the rest goes, and the journal says that it must be made anew. Must not know: how that is done.

use rusqlite::Transaction;

use super::super::StoreError;
use super::applier::forget_outcomes;
use super::head::Head;
use super::row::{ENTRY, SEQ_MAX, entry_of, insert_mark, place};
use crate::types::{JournalKey, Position};

/// Gives the last entry that is left.
pub(super) fn repair(tx: &Transaction<'_>, key: &JournalKey) -> Result<Option<Position>, StoreError> {
    match Head::find(tx, key) {
        Ok(None) => Ok(None),
        Ok(Some(mut head)) => {
            cut(tx, &mut head)?;
            head.rebuild = true;
            head.put(tx)?;
            Ok(Some(head.last))
        }
        Err(StoreError::Damaged { .. }) => {
            // Without a head nobody knows which of the entries counted.
            let sql = "SELECT id FROM journals WHERE physical = ?1 AND shard = ?2";
            let id = tx.query_row(sql, (key.index.as_str(), key.shard.0), |row| row.get(0))?;
            Head::retire(tx, id)?;
            Head { rebuild: true, ..Head::new(tx, key.clone())? }.put(tx)?;
            Ok(None)
        }
        Err(other) => Err(other),
    }
}

/// Looks at all entries in order and drops everything from the first bad one on.
fn cut(tx: &Transaction<'_>, head: &mut Head) -> Result<(), StoreError> {
    let (first, end) = (place(head.id, 0)?, place(head.id, SEQ_MAX)?);
    let (mut last, mut marks, mut bytes) = (head.floor, Vec::<Position>::new(), 0_u64);
    {
        let mut found = tx.prepare(&format!("{ENTRY} WHERE place BETWEEN ?1 AND ?2 ORDER BY place"))?;
        let mut rows = found.query((place(head.id, head.floor.seq)? + 1, end))?;
        while let Some(row) = rows.next()? {
            let Ok(entry) = entry_of(row)? else { break };
            let fits = entry.at.seq == last.seq + 1 && entry.at.epoch >= last.epoch && entry.at.seq <= head.last.seq;
            if !fits {
                break;
            }
            if entry.at.epoch > last.epoch || marks.is_empty() {
                marks.push(entry.at);
            }
            bytes += u64::try_from(row.get::<_, i64>(6)?).unwrap_or(0);
            last = entry.at;
        }
    }
    tx.execute("DELETE FROM entries WHERE place BETWEEN ?1 AND ?2", (place(head.id, last.seq)? + 1, end))?;
    tx.execute("DELETE FROM epochs WHERE place BETWEEN ?1 AND ?2", (first, end))?;
    forget_outcomes(tx, (place(head.id, last.seq)? + 1, end))?;
    marks.into_iter().try_for_each(|mark| insert_mark(tx, head.id, mark))?;
    tx.execute("DELETE FROM parts WHERE journal = ?1 AND seq > ?2", (head.id, last.seq.cast_signed()))?;
    head.last = last;
    head.bytes = bytes;
    head.commit = head.commit.min(last.seq);
    head.applied = head.applied.min(last.seq);
    Ok(())
}
