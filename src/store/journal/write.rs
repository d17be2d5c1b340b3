//! Rows of replicas, whole and in order.
//!
//! Rule: rows that would leave a gap, or drop what is committed or applied, are refused with everything that came with them:
//! the replica that asked is wrong about its store. Must not know: why rows are written.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;

use rusqlite::Transaction;

use super::super::StoreError;
use super::super::db::GROUP_BYTES;
use super::super::row::{malformed, to_sql};
use super::applier::forget_outcomes;
use super::file::JournalStore;
use super::head::Head;
use super::homes::take_over;
use super::row::{epoch_of, insert_entry, insert_mark, insert_part, place, seq_of};
use crate::proto::journal::{Entry, Rows, Stands};
use crate::types::{JournalKey, Position, TaskPart};

/// What one replica wants stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Apply {
    /// In which journal; made if there is none.
    pub key: JournalKey,
    /// What.
    pub rows: Rows,
    /// With [`Rows::begin_at`]: the parts of tasks that came with the snapshot, and where they stood.
    pub parts: Vec<(TaskPart, Stands)>,
}

impl Apply {
    /// Bytes, roughly.
    pub fn weight(&self) -> usize {
        self.rows.entries.iter().map(Entry::weight).sum::<usize>() + self.parts.len() * size_of::<(TaskPart, Stands)>()
    }
}

impl JournalStore {
    /// Makes all of these durable in their order. Several share a transaction as long as it stays below 4 MiB; each is
    /// whole or not at all. `now`: seconds since 1970, by which retention goes.
    ///
    /// Not cancel-safe in the sense that a part may be stored after the future is dropped, always whole `Apply`s from the
    /// first on.
    ///
    /// # Errors
    /// [`StoreError`]: of what the last transaction held nothing is durable, nor of anything behind it; replicas that asked
    /// are ahead of their store and must not be used any more.
    pub async fn apply(&self, work: Vec<Apply>, now: u64) -> Result<(), StoreError> {
        let stored_at = to_sql(now)?;
        let (mut group, mut weight) = (Vec::new(), 0);
        for one in work {
            let more = one.weight();
            if weight + more > GROUP_BYTES && !group.is_empty() {
                self.apply_group(std::mem::take(&mut group), weight, stored_at).await?;
                weight = 0;
            }
            weight += more;
            group.push(one);
        }
        self.apply_group(group, weight, stored_at).await
    }

    async fn apply_group(&self, group: Vec<Apply>, weight: usize, stored_at: i64) -> Result<(), StoreError> {
        self.db()
            .run_weighing(weight, move |tx| {
                let mut heads: BTreeMap<JournalKey, Head> = BTreeMap::new();
                for Apply { key, rows, parts } in group {
                    let head = match heads.entry(key) {
                        Slot::Occupied(known) => known.into_mut(),
                        Slot::Vacant(slot) => {
                            let head = find_or_make(tx, slot.key())?;
                            slot.insert(head)
                        }
                    };
                    write_one(tx, head, &rows, &parts, stored_at)?;
                }
                heads.values().try_for_each(|head| head.put(tx))
            })
            .await
    }

    /// The node has applied everything up to `to`, or it is known to have no more than that.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn set_applied(&self, applied: Vec<(JournalKey, u64)>) -> Result<(), StoreError> {
        self.db()
            .run(move |tx| {
                for (key, to) in applied {
                    if let Some(mut head) = Head::find(tx, &key)? {
                        head.applied = to.min(head.last.seq);
                        head.put(tx)?;
                    }
                }
                Ok(())
            })
            .await
    }
}

/// A new one is put at once, so that the next one gets another number.
fn find_or_make(tx: &Transaction<'_>, key: &JournalKey) -> Result<Head, StoreError> {
    if let Some(head) = Head::find(tx, key)? {
        return Ok(head);
    }
    let head = Head::new(tx, key.clone())?;
    head.put(tx)?;
    Ok(head)
}

fn refuse<T>(head: &Head, reason: String) -> Result<T, StoreError> {
    Err(malformed("store of a replica", format!("{}: {reason}", head.key)))
}

fn write_one(
    tx: &Transaction<'_>,
    head: &mut Head,
    rows: &Rows,
    parts: &[(TaskPart, Stands)],
    stored_at: i64,
) -> Result<(), StoreError> {
    if let Some(at) = rows.begin_at {
        begin_at(tx, head, at, parts, stored_at)?;
    }
    head.epoch = head.epoch.max(rows.epoch);
    if let Some(seq) = rows.drop_from {
        drop_from(tx, head, seq)?;
    }
    for entry in &rows.entries {
        push(tx, head, entry, stored_at)?;
    }
    head.commit = head.commit.max(rows.commit);
    if head.commit > head.last.seq {
        return refuse(head, format!("{} is committed and {} the last", head.commit, head.last));
    }
    if let Some(floor) = rows.floor {
        trim(tx, head, floor)?;
    }
    head.rebuild = rows.rebuild;
    Ok(())
}

fn begin_at(
    tx: &Transaction<'_>,
    head: &mut Head,
    at: Position,
    parts: &[(TaskPart, Stands)],
    stored_at: i64,
) -> Result<(), StoreError> {
    let old = head.id;
    Head::retire(tx, old)?;
    let new = Head::new(tx, head.key.clone())?;
    *head = Head { epoch: head.epoch.max(at.epoch), floor: at, last: at, commit: at.seq, applied: at.seq, ..new };
    place(head.id, at.seq)?;
    head.put(tx)?;
    take_over(tx, old, head.id)?;
    for (part, stands) in parts {
        if stands.seq > at.seq {
            return refuse(head, format!("part {part} at {} came with a snapshot at {at}", stands.seq));
        }
        insert_part(tx, head.id, *part, *stands, stored_at)?;
    }
    Ok(())
}

fn push(tx: &Transaction<'_>, head: &mut Head, entry: &Entry, stored_at: i64) -> Result<(), StoreError> {
    let (at, last) = (entry.at, head.last);
    if last.seq.checked_add(1) != Some(at.seq) || at.epoch < last.epoch || !entry.is_well_formed() {
        return refuse(head, format!("{at} does not fit behind {last}"));
    }
    head.bytes += insert_entry(tx, head.id, entry, stored_at)?;
    if at.epoch > last.epoch || last == head.floor {
        insert_mark(tx, head.id, at)?;
    }
    if let Some(part) = entry.part {
        insert_part(tx, head.id, part, entry.stands(), stored_at)?;
    }
    head.last = at;
    Ok(())
}

/// The epoch in which an entry behind the floor was appended.
pub(super) fn epoch_at(tx: &Transaction<'_>, head: &Head, seq: u64) -> Result<Position, StoreError> {
    if seq == head.floor.seq {
        return Ok(head.floor);
    }
    let sql = "SELECT epoch FROM epochs WHERE place BETWEEN ?1 AND ?2 ORDER BY place DESC LIMIT 1";
    let (from, to) = (place(head.id, 0)?, place(head.id, seq)?);
    let found: i64 = tx.prepare_cached(sql)?.query_row([from, to], |row| row.get(0))?;
    let damaged = || StoreError::Damaged { journal: head.key.clone(), reason: format!("the epoch of {seq}") };
    Ok(Position { epoch: epoch_of(found).ok_or_else(damaged)?, seq })
}

fn drop_from(tx: &Transaction<'_>, head: &mut Head, seq: u64) -> Result<(), StoreError> {
    if seq <= head.commit.max(head.applied).max(head.floor.seq) {
        return refuse(
            head,
            format!("{seq} was to be dropped, {} is committed and {} applied", head.commit, head.applied),
        );
    }
    if seq > head.last.seq {
        return Ok(());
    }
    let last = epoch_at(tx, head, seq - 1)?;
    let ends = (place(head.id, seq)?, place(head.id, head.last.seq)?);
    let mut gone = tx.prepare_cached("SELECT place, task, part, size FROM entries WHERE place BETWEEN ?1 AND ?2")?;
    let mut forget =
        tx.prepare_cached("DELETE FROM parts WHERE journal = ?1 AND task = ?2 AND part = ?3 AND seq = ?4")?;
    let mut rows = gone.query(ends)?;
    while let Some(row) = rows.next()? {
        let (task, part): (Option<u32>, Option<u32>) = (row.get(1)?, row.get(2)?);
        forget.execute((head.id, task, part, seq_of(row.get(0)?).cast_signed()))?;
        head.bytes = head.bytes.saturating_sub(u64::try_from(row.get::<_, i64>(3)?).unwrap_or(0));
    }
    delete_between(tx, ends)?;
    head.last = last;
    Ok(())
}

fn trim(tx: &Transaction<'_>, head: &mut Head, floor: Position) -> Result<(), StoreError> {
    if floor.seq > head.commit || floor.seq < head.floor.seq {
        return refuse(head, format!("the floor was to be {floor}, {} is committed", head.commit));
    }
    if epoch_at(tx, head, floor.seq)? != floor {
        return refuse(head, format!("the floor was to be {floor}, where another entry stands"));
    }
    let next = if floor.seq < head.last.seq { Some(epoch_at(tx, head, floor.seq + 1)?) } else { None };
    let ends = (place(head.id, 0)?, place(head.id, floor.seq)?);
    let sql = "SELECT coalesce(sum(size), 0) FROM entries WHERE place BETWEEN ?1 AND ?2";
    let bytes: i64 = tx.prepare_cached(sql)?.query_row(ends, |row| row.get(0))?;
    head.bytes = head.bytes.saturating_sub(u64::try_from(bytes).unwrap_or(0));
    delete_between(tx, ends)?;
    // The epoch of what stands there now begins, as far as is known, right behind the floor.
    next.map_or(Ok(()), |at| insert_mark(tx, head.id, at))?;
    head.floor = floor;
    Ok(())
}

fn delete_between(tx: &Transaction<'_>, ends: (i64, i64)) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM entries WHERE place BETWEEN ?1 AND ?2")?.execute(ends)?;
    tx.prepare_cached("DELETE FROM epochs WHERE place BETWEEN ?1 AND ?2")?.execute(ends)?;
    forget_outcomes(tx, ends)
}
