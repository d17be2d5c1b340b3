//! What a replica begins with, entries, and where a part stands.
//!
//! Rule: each answer belongs to one instant and is checked before it is given; what does not fit together is
//! [`StoreError::Damaged`], and that journal is repaired before it is used again. Must not know: who asks.

use rusqlite::{OptionalExtension, Transaction};

use super::super::StoreError;
use super::file::JournalStore;
use super::head::Head;
use super::repair::repair;
use super::row::{ENTRY, PART, SEQ_MAX, entry_of, mark_of, part_of, place, seq_of};
use super::write::epoch_at;
use crate::proto::journal::log::{Bounds, StoredLog};
use crate::proto::journal::{Entry, Stands, Stored};
use crate::types::{JournalKey, Position, TaskPart, TaskUid};

impl JournalStore {
    /// What a replica begins with: its newest entries within `tail`, all of them checked, and where the rest stands; `None`
    /// if there is no such journal. A damaged one is repaired first, and says that it must be made anew.
    ///
    /// Not cancel-safe in the sense that a damaged journal may be repaired after the future is dropped.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn stored(&self, key: &JournalKey, tail: Bounds) -> Result<Option<Stored>, StoreError> {
        let of = key.clone();
        match self.read(move |tx| read_stored(tx, &of, tail)).await {
            Err(StoreError::Damaged { journal, reason }) => {
                self.repair(&journal, &reason).await?;
                let of = key.clone();
                self.read(move |tx| read_stored(tx, &of, tail)).await
            }
            read => read,
        }
    }

    /// What is left of a damaged journal is kept, and the journal marked to be made anew.
    ///
    /// Not cancel-safe in the sense that it may be done after the future is dropped.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn repair(&self, key: &JournalKey, reason: &str) -> Result<(), StoreError> {
        let of = key.clone();
        let kept = self.db().run(move |tx| repair(tx, &of)).await?;
        tracing::error!(journal = %key, reason, ?kept, "a journal is damaged; this copy of the shard is to be made anew");
        Ok(())
    }

    /// Entries from `from` on, at most so many, of at most so many bytes but at least one; none if `from` was dropped at the
    /// beginning or is behind the last.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`StoreError::Damaged`]: the journal is to be repaired and its replica begun anew; others are fatal.
    pub async fn load(
        &self,
        key: &JournalKey,
        from: u64,
        entries: usize,
        bytes: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let key = key.clone();
        self.read(move |tx| read_entries(tx, &key, from, Bounds { entries, bytes })).await
    }

    /// What stands or stood under a part, also after its entry was dropped at the beginning.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn find(&self, key: &JournalKey, part: TaskPart) -> Result<Option<Stands>, StoreError> {
        let key = key.clone();
        self.read(move |tx| {
            let Some(head) = Head::find(tx, &key)? else { return Ok(None) };
            let sql = format!("{PART} WHERE journal = ?1 AND task = ?2 AND part = ?3");
            let found = tx
                .prepare_cached(&sql)?
                .query_row((head.id, part.task.0, part.part), |row| Ok(part_of(row)))
                .optional()?
                .transpose()?;
            match found {
                None => Ok(None),
                Some(Some((_, at))) if at.seq <= head.last.seq => Ok(Some(at)),
                Some(_) => Err(damaged(&key, format!("the place of part {part}"))),
            }
        })
        .await
    }

    /// What stands in order from `from` on under parts, of at most so many entries, without what it says; and the last entry
    /// looked at.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn standing(
        &self,
        key: &JournalKey,
        from: u64,
        entries: usize,
    ) -> Result<(Vec<(TaskPart, Stands)>, u64), StoreError> {
        let key = key.clone();
        self.read(move |tx| {
            let Some(head) = Head::find(tx, &key)? else { return Ok((Vec::new(), 0)) };
            let from = from.clamp(head.floor.seq + 1, SEQ_MAX);
            let ends = (place(head.id, from)?, place(head.id, SEQ_MAX)?, i64::try_from(entries).unwrap_or(i64::MAX));
            let sql = "SELECT place, task, part FROM entries WHERE place BETWEEN ?1 AND ?2 ORDER BY place LIMIT ?3";
            let mut found = tx.prepare_cached(sql)?;
            let mut known = tx.prepare_cached(&format!("{PART} WHERE journal = ?1 AND task = ?2 AND part = ?3"))?;
            let (mut rows, mut all, mut last) = (found.query(ends)?, Vec::new(), 0);
            while let Some(row) = rows.next()? {
                last = seq_of(row.get(0)?);
                let (Some(task), Some(part)) = (row.get::<_, Option<u32>>(1)?, row.get::<_, Option<u32>>(2)?) else {
                    continue;
                };
                // The entry's own hash is over its body as well, which is not read here; the part has one of its own.
                let stands = known.query_row((head.id, task, part), |row| Ok(part_of(row))).optional()?.transpose()?;
                match stands.flatten() {
                    Some((part, at)) if at.seq == last => all.push((part, at)),
                    _ => return Err(damaged(&key, format!("the part of entry {last}"))),
                }
            }
            Ok((all, last))
        })
        .await
    }

    /// Where an entry stands; `None` if it was dropped at the beginning, or is not there.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn position(&self, key: &JournalKey, seq: u64) -> Result<Option<Position>, StoreError> {
        let key = key.clone();
        self.read(move |tx| {
            let head = Head::find(tx, &key)?.filter(|head| (head.floor.seq..=head.last.seq).contains(&seq));
            head.map(|head| epoch_at(tx, &head, seq)).transpose()
        })
        .await
    }

    /// Where the parts stand or stood that were stored up to `to`, for a snapshot that is taken at that entry.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn parts(&self, key: &JournalKey, to: u64) -> Result<Vec<(TaskPart, Stands)>, StoreError> {
        let key = key.clone();
        self.read(move |tx| read_parts(tx, &key, to)).await
    }
}

pub(super) fn read_parts(
    tx: &Transaction<'_>,
    key: &JournalKey,
    to: u64,
) -> Result<Vec<(TaskPart, Stands)>, StoreError> {
    let Some(head) = Head::find(tx, key)? else { return Ok(Vec::new()) };
    let mut found = tx.prepare_cached(&format!("{PART} WHERE journal = ?1 AND seq <= ?2"))?;
    let mut rows = found.query((head.id, to.min(SEQ_MAX).cast_signed()))?;
    let mut parts = Vec::new();
    while let Some(row) = rows.next()? {
        parts.push(part_of(row)?.ok_or_else(|| damaged(key, "the place of a part".into()))?);
    }
    Ok(parts)
}

fn damaged(key: &JournalKey, reason: String) -> StoreError {
    StoreError::Damaged { journal: key.clone(), reason }
}

fn read_stored(tx: &Transaction<'_>, key: &JournalKey, bounds: Bounds) -> Result<Option<Stored>, StoreError> {
    let Some(head) = Head::find(tx, key)? else { return Ok(None) };
    let marks = read_marks(tx, &head)?;
    let tail = read_tail(tx, &head, &marks, bounds)?;
    let first = tail.first().map_or(SEQ_MAX, |e| e.at.seq);
    let older = "SELECT task FROM parts WHERE journal = ?1 AND seq < ?2 ORDER BY task DESC LIMIT 1";
    let older: Option<u32> =
        tx.prepare_cached(older)?.query_row((head.id, first.cast_signed()), |row| row.get(0)).optional()?;
    let log = StoredLog {
        floor: head.floor,
        marks,
        last: head.last.seq,
        // Nothing is applied that is not committed.
        commit: head.commit.max(head.applied).min(head.last.seq),
        tail,
        older: older.map(TaskUid),
    };
    Ok(Some(Stored { epoch: head.epoch, log, applied: head.applied, rebuild: head.rebuild }))
}

fn read_marks(tx: &Transaction<'_>, head: &Head) -> Result<Vec<Position>, StoreError> {
    let sql = "SELECT place, epoch, hash FROM epochs WHERE place BETWEEN ?1 AND ?2 ORDER BY place";
    let mut found = tx.prepare_cached(sql)?;
    let mut rows = found.query((place(head.id, 0)?, place(head.id, SEQ_MAX)?))?;
    let mut marks: Vec<Position> = Vec::new();
    while let Some(row) = rows.next()? {
        let mark = mark_of(row)?.ok_or_else(|| damaged(&head.key, "where an epoch begins".into()))?;
        marks.push(mark);
    }
    let grow = marks.windows(2).all(|pair| pair[0].epoch < pair[1].epoch);
    let begins = marks.first().map(|m| m.seq) == (head.floor.seq < head.last.seq).then_some(head.floor.seq + 1);
    let ends = marks.last().map_or(head.last == head.floor, |m| m.epoch == head.last.epoch && m.seq <= head.last.seq);
    let above = marks.first().is_none_or(|m| m.epoch >= head.floor.epoch);
    if grow && begins && ends && above { Ok(marks) } else { Err(damaged(&head.key, "its epochs do not run on".into())) }
}

/// The newest entries, looked at from the last one on; the last one always.
fn read_tail(tx: &Transaction<'_>, head: &Head, marks: &[Position], bounds: Bounds) -> Result<Vec<Entry>, StoreError> {
    let mut found = tx.prepare_cached(&format!("{ENTRY} WHERE place BETWEEN ?1 AND ?2 ORDER BY place DESC"))?;
    let mut rows = found.query((place(head.id, head.floor.seq + 1)?, place(head.id, SEQ_MAX)?))?;
    let (mut tail, mut weight, mut marks, mut seq) = (Vec::new(), 0, marks.to_vec(), head.last.seq);
    while let Some(row) = rows.next()? {
        let entry = entry_of(row)?.map_err(|reason| damaged(&head.key, format!("entry {seq}: {reason}")))?;
        while marks.last().is_some_and(|mark| mark.seq > seq) {
            marks.pop();
        }
        let expected = marks.last().map(|mark| Position { epoch: mark.epoch, seq });
        if seq <= head.floor.seq || Some(entry.at) != expected {
            return Err(damaged(&head.key, format!("entry {} stands where {seq} should", entry.at)));
        }
        weight += entry.weight();
        if tail.len() >= bounds.entries || weight > bounds.bytes {
            seq = head.floor.seq;
            break;
        }
        tail.push(entry);
        seq -= 1;
    }
    if seq != head.floor.seq {
        return Err(damaged(&head.key, format!("entry {seq} is missing")));
    }
    tail.reverse();
    Ok(tail)
}

fn read_entries(tx: &Transaction<'_>, key: &JournalKey, from: u64, bounds: Bounds) -> Result<Vec<Entry>, StoreError> {
    let Some(head) = Head::find(tx, key)? else { return Ok(Vec::new()) };
    if from <= head.floor.seq || from > head.last.seq {
        return Ok(Vec::new());
    }
    let mut found = tx.prepare_cached(&format!("{ENTRY} WHERE place BETWEEN ?1 AND ?2 ORDER BY place"))?;
    let mut rows = found.query((place(head.id, from)?, place(head.id, head.last.seq)?))?;
    let (mut entries, mut weight, mut seq) = (Vec::<Entry>::new(), 0, from);
    while entries.len() < bounds.entries.max(1) && seq <= head.last.seq {
        let Some(row) = rows.next()? else { return Err(damaged(key, format!("entry {seq} is missing"))) };
        let entry = entry_of(row)?.map_err(|reason| damaged(key, format!("entry {seq}: {reason}")))?;
        let before = entries.last().map_or(head.floor.epoch, |e| e.at.epoch);
        if entry.at.seq != seq || entry.at.epoch < before {
            return Err(damaged(key, format!("entry {} stands where {seq} should", entry.at)));
        }
        weight += entry.weight();
        if weight > bounds.bytes && !entries.is_empty() {
            break;
        }
        entries.push(entry);
        seq += 1;
    }
    Ok(entries)
}
