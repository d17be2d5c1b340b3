//! What appliers have noted: shards' positions, requests to the node, and what became of entries.
//!
//! A position stands in the applier's row and in the journal's head, and both are written in one transaction. What became of
//! entries is kept under their places, and goes with them. Rule: rows that are damaged are never guessed at: the index's copies
//! are to be made anew then. Must not know: why rows are written, the node.

use std::collections::BTreeMap;

use rusqlite::types::ValueRef;
use rusqlite::{OptionalExtension, Transaction};

use super::super::StoreError;
use super::super::row::{Hash, from_sql, to_sql};
use super::file::JournalStore;
use super::head::{HEAD, Head as Journal};
use super::row::{ENTRY, outline_of, place, seq_of};
use crate::proto::apply::effect::{LaneRow, Need};
use crate::proto::apply::{Flaw, Head, Note, Rows, Span, Stored};
use crate::types::{JournalKey, PhysicalIndex, Position, ShardId};

const APPLIERS: &str = "SELECT physical FROM appliers UNION SELECT physical FROM lanes \
                        UNION SELECT physical FROM journals WHERE applied < last";

/// Left out when numbers of notes are lost: more than any applier has given since it last stored one.
const LOST_NOTES: u64 = 1 << 32;

/// What one applier wants stored at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ApplierRows {
    /// Its own rows.
    pub rows: Rows,
    /// Up to where shards' verdicts were compared with their primaries'.
    pub checked: BTreeMap<ShardId, u64>,
    /// When the node began and had done entries, in nanoseconds since 1970.
    pub done: Vec<(Span, i64, i64)>,
}

/// What an applier begins with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredApplier {
    /// Its own rows.
    pub stored: Stored,
    /// Up to where shards' verdicts were compared with their primaries'.
    pub checked: BTreeMap<ShardId, u64>,
}

/// What became of an entry that is applied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EntryOutcome {
    /// Why it failed, if it did.
    pub flaw: Option<Flaw>,
    /// How many documents it changed, where the node counts them; of entries that went as one it stands with the first.
    pub changed: u64,
    /// When the node began and had done it, in nanoseconds since 1970; `None`: nobody has seen that, or there was nothing to do.
    pub times: Option<(i64, i64)>,
}

impl JournalStore {
    /// Indexes of which an applier has stored something, or has entries that are not applied.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn appliers(&self) -> Result<Vec<PhysicalIndex>, StoreError> {
        self.read(|tx| {
            let mut found = tx.prepare_cached(APPLIERS)?;
            let names = found.query_map([], |row| row.get::<_, String>(0))?;
            let mut all = Vec::new();
            for name in names {
                match PhysicalIndex::new(name?) {
                    Ok(index) => all.push(index),
                    Err(error) => tracing::error!(%error, "an applier of no index is stored; it is left alone"),
                }
            }
            Ok(all)
        })
        .await
    }

    /// What the applier of an index begins with.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn applier(&self, index: &PhysicalIndex) -> Result<StoredApplier, StoreError> {
        let index = index.clone();
        self.read(move |tx| read_applier(tx, &index)).await
    }

    /// The position of one shard's copy, if it has one that is what was written.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn lane(&self, key: &JournalKey) -> Result<Option<LaneRow>, StoreError> {
        let key = key.clone();
        self.read(move |tx| {
            let sql = "SELECT checked, row, hash FROM lanes WHERE physical = ?1 AND shard = ?2";
            let mut found = tx.prepare_cached(sql)?;
            let row = found.query_row((key.index.as_str(), key.shard.0), |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?))
            });
            let row = row
                .optional()?
                .filter(|(checked, text, hash)| *hash == hash_of_lane(&key.index, key.shard, *checked, text));
            Ok(row.and_then(|(_, text, _)| serde_json::from_str(&text).ok()))
        })
        .await
    }

    /// Of each journal of an index up to where it is applied, and known to be committed; those that are damaged say nothing.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn positions(&self, index: &PhysicalIndex) -> Result<BTreeMap<ShardId, (u64, u64)>, StoreError> {
        self.each(index, |journal| (journal.applied, journal.commit)).await
    }

    /// The last entry of each journal of an index; those that are damaged say nothing.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn lasts(&self, index: &PhysicalIndex) -> Result<BTreeMap<ShardId, u64>, StoreError> {
        self.each(index, |journal| journal.last.seq).await
    }

    /// Of each journal of an index behind which entry it begins, and its last one; those that are damaged say nothing.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn ends(&self, index: &PhysicalIndex) -> Result<BTreeMap<ShardId, (u64, Position)>, StoreError> {
        self.each(index, |journal| (journal.floor.seq, journal.last)).await
    }

    async fn each<T: Send + 'static>(
        &self,
        index: &PhysicalIndex,
        of: impl Fn(&Journal) -> T + Send + 'static,
    ) -> Result<BTreeMap<ShardId, T>, StoreError> {
        let index = index.clone();
        self.read(move |tx| {
            let mut found = tx.prepare_cached(&format!("{HEAD} WHERE physical = ?1"))?;
            let mut rows = found.query([index.as_str()])?;
            let mut all = BTreeMap::new();
            while let Some(row) = rows.next()? {
                match Journal::read(row) {
                    Ok(journal) => drop(all.insert(journal.key.shard, of(&journal))),
                    Err(StoreError::Damaged { .. }) => {}
                    Err(other) => return Err(other),
                }
            }
            Ok(all)
        })
        .await
    }

    /// Makes all of this durable, whole or not at all, and the journals' applied positions with it. `now`: nanoseconds since
    /// 1970; when entries failed that the node here has not done.
    ///
    /// Not cancel-safe in the sense that it may be stored after the future is dropped.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_applier(&self, index: &PhysicalIndex, rows: ApplierRows, now: i64) -> Result<(), StoreError> {
        let index = index.clone();
        self.db().run(move |tx| write_applier(tx, &index, &rows, now)).await
    }

    /// Makes durable how many documents entries change. What is known of an entry already stays: done again, it would find
    /// nothing more to do.
    ///
    /// Not cancel-safe in the sense that it may be stored after the future is dropped.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_counted(
        &self,
        index: &PhysicalIndex,
        counted: BTreeMap<(ShardId, u64), u64>,
    ) -> Result<(), StoreError> {
        let index = index.clone();
        self.db().run(move |tx| write_counted(tx, &mut Ids::of(&index), &counted)).await
    }

    /// The applier of an index that is gone is forgotten.
    ///
    /// Not cancel-safe in the sense that it may be done after the future is dropped.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn forget_applier(&self, index: &PhysicalIndex) -> Result<(), StoreError> {
        let index = index.clone();
        self.db()
            .run(move |tx| {
                for table in ["appliers", "lanes", "notes"] {
                    tx.execute(&format!("DELETE FROM {table} WHERE physical = ?1"), [index.as_str()])?;
                }
                Ok(())
            })
            .await
    }

    /// Heads of entries from `from` to `to`, at most so many, and of no more than `bytes` but at least one; none if `from` was
    /// dropped at the beginning.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn heads(
        &self,
        key: &JournalKey,
        from: u64,
        to: u64,
        entries: usize,
        bytes: usize,
    ) -> Result<Vec<Head>, StoreError> {
        let key = key.clone();
        self.read(move |tx| {
            let Some(journal) = Journal::find(tx, &key)? else { return Ok(Vec::new()) };
            let to = to.min(journal.last.seq);
            if from <= journal.floor.seq || from > to {
                return Ok(Vec::new());
            }
            read_heads(tx, &journal, (from, to), entries, bytes)
        })
        .await
    }

    /// What became of those of these entries that are applied.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn outcomes(&self, key: &JournalKey, seqs: Vec<u64>) -> Result<BTreeMap<u64, EntryOutcome>, StoreError> {
        let key = key.clone();
        self.read(move |tx| {
            let Some(journal) = Journal::find(tx, &key)? else { return Ok(BTreeMap::new()) };
            let last = place(journal.id, journal.last.seq)?;
            let mut all = BTreeMap::new();
            for seq in seqs.into_iter().filter(|seq| *seq <= journal.applied) {
                let at = place(journal.id, seq)?;
                let changed = tx
                    .prepare_cached("SELECT changed FROM counted WHERE place = ?1")?
                    .query_row([at], |row| row.get::<_, i64>(0))
                    .optional()?;
                let done: Option<(i64, i64, i64)> = tx
                    .prepare_cached(
                        "SELECT first, started, finished FROM done WHERE place BETWEEN ?1 AND ?2 ORDER BY place LIMIT 1",
                    )?
                    .query_row([at, last], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                    .optional()?;
                let times = done.filter(|(first, ..)| *first <= seq.cast_signed()).map(|(_, from, to)| (from, to));
                let flaw = read_failed(tx, &journal, at, at, 1)?.pop().map(|(_, flaw)| flaw);
                all.insert(seq, EntryOutcome { flaw, changed: from_sql(changed.unwrap_or(0))?, times });
            }
            Ok(all)
        })
        .await
    }

    /// Entries from `from` to `to` that failed, in order, at most so many.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn failed(
        &self,
        key: &JournalKey,
        from: u64,
        to: u64,
        most: usize,
    ) -> Result<Vec<(u64, Flaw)>, StoreError> {
        let key = key.clone();
        self.read(move |tx| {
            let Some(journal) = Journal::find(tx, &key)? else { return Ok(Vec::new()) };
            let to = to.min(journal.last.seq);
            if from > to {
                return Ok(Vec::new());
            }
            read_failed(tx, &journal, place(journal.id, from)?, place(journal.id, to)?, most)
        })
        .await
    }
}

fn read_heads(
    tx: &Transaction<'_>,
    journal: &Journal,
    (from, to): (u64, u64),
    entries: usize,
    bytes: usize,
) -> Result<Vec<Head>, StoreError> {
    let damaged = |reason: String| StoreError::Damaged { journal: journal.key.clone(), reason };
    let ends = (place(journal.id, from)?, place(journal.id, to)?);
    let mut found = tx.prepare_cached(&format!("{ENTRY} WHERE place BETWEEN ?1 AND ?2 ORDER BY place"))?;
    let mut rows = found.query(ends)?;
    let (mut heads, mut weight) = (Vec::<Head>::new(), 0_usize);
    for seq in (from..=to).take(entries) {
        let Some(row) = rows.next()? else { return Err(damaged(format!("entry {seq} is missing"))) };
        let (outline, packed) = outline_of(row)?.map_err(|reason| damaged(format!("entry {seq}: {reason}")))?;
        let (at, kind, part, length) = outline;
        if at != seq {
            return Err(damaged(format!("entry {at} stands where {seq} should")));
        }
        weight = weight.saturating_add(packed);
        if weight > bytes && !heads.is_empty() {
            break;
        }
        heads.push(Head { seq, kind, weight: length, failed: false, part });
    }
    let last = heads.last().map_or(from, |head| head.seq);
    for (seq, _) in read_failed(tx, journal, ends.0, place(journal.id, last)?, usize::MAX)? {
        let at = usize::try_from(seq - from).unwrap_or(usize::MAX);
        heads.get_mut(at).into_iter().for_each(|head| head.failed = true);
    }
    Ok(heads)
}

fn read_failed(
    tx: &Transaction<'_>,
    journal: &Journal,
    from: i64,
    to: i64,
    most: usize,
) -> Result<Vec<(u64, Flaw)>, StoreError> {
    let sql = "SELECT place, code, message, hash FROM failed WHERE place BETWEEN ?1 AND ?2 ORDER BY place LIMIT ?3";
    let mut found = tx.prepare_cached(sql)?;
    let mut rows = found.query((from, to, i64::try_from(most).unwrap_or(i64::MAX)))?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        let mut hash = Hash::default();
        (0..3).try_for_each(|column| row.get_ref(column).map(|value| hash.add(value)))?;
        let seq = seq_of(row.get(0)?);
        if row.get::<_, i64>(3)? != hash.value() {
            let reason = format!("the verdict on entry {seq}");
            return Err(StoreError::Damaged { journal: journal.key.clone(), reason });
        }
        all.push((seq, Flaw::new(&row.get::<_, String>(1)?, &row.get::<_, String>(2)?)));
    }
    Ok(all)
}

/// What became of entries at these places is forgotten.
pub(super) fn forget_outcomes(tx: &Transaction<'_>, ends: (i64, i64)) -> Result<(), StoreError> {
    for table in ["failed", "counted", "done"] {
        tx.prepare_cached(&format!("DELETE FROM {table} WHERE place BETWEEN ?1 AND ?2"))?.execute(ends)?;
    }
    Ok(())
}

/// The same for so many at most of each kind; says how many.
pub(super) fn forget_some_outcomes(tx: &Transaction<'_>, ends: (i64, i64), most: i64) -> Result<usize, StoreError> {
    let mut removed = 0;
    for table in ["failed", "counted", "done"] {
        let some = format!("SELECT place FROM {table} WHERE place BETWEEN ?1 AND ?2 LIMIT ?3");
        let sql = format!("DELETE FROM {table} WHERE place IN ({some})");
        removed += tx.prepare_cached(&sql)?.execute((ends.0, ends.1, most))?;
    }
    Ok(removed)
}

fn hash_of(values: [ValueRef<'_>; 4]) -> i64 {
    let mut hash = Hash::default();
    values.into_iter().for_each(|value| hash.add(value));
    hash.value()
}

fn hash_of_lane(index: &PhysicalIndex, shard: ShardId, checked: i64, row: &str) -> i64 {
    let shard = ValueRef::Integer(shard.0.into());
    hash_of([ValueRef::from(index.as_str()), shard, ValueRef::Integer(checked), ValueRef::from(row)])
}

fn hash_of_note(index: &PhysicalIndex, note: i64, row: &str) -> i64 {
    hash_of([ValueRef::from(index.as_str()), ValueRef::Null, ValueRef::Integer(note), ValueRef::from(row)])
}

fn hash_of_applier(index: &PhysicalIndex, next: i64) -> i64 {
    hash_of([ValueRef::from(index.as_str()), ValueRef::Null, ValueRef::Null, ValueRef::Integer(next)])
}

fn read_applier(tx: &Transaction<'_>, index: &PhysicalIndex) -> Result<StoredApplier, StoreError> {
    let (mut all, mut damaged) = (StoredApplier::default(), false);
    let mut found = tx.prepare_cached("SELECT shard, checked, row, hash FROM lanes WHERE physical = ?1")?;
    let mut rows = found.query([index.as_str()])?;
    while let Some(row) = rows.next()? {
        let (shard, checked, text) = (ShardId(row.get(0)?), row.get(1)?, row.get::<_, String>(2)?);
        let right = row.get::<_, i64>(3)? == hash_of_lane(index, shard, checked, &text);
        let lane = serde_json::from_str::<LaneRow>(&text).ok().filter(|_| right);
        damaged |= lane.is_none();
        all.stored.lanes.insert(shard, lane.unwrap_or_default());
        all.checked.insert(shard, u64::try_from(checked).unwrap_or(0));
    }
    let mut found = tx.prepare_cached("SELECT note, row, hash FROM notes WHERE physical = ?1")?;
    let mut rows = found.query([index.as_str()])?;
    let mut newest = 0;
    while let Some(row) = rows.next()? {
        let (id, text) = (row.get::<_, i64>(0)?, row.get::<_, String>(1)?);
        let right = row.get::<_, i64>(2)? == hash_of_note(index, id, &text);
        let (id, note) = (u64::try_from(id).unwrap_or(0), serde_json::from_str::<Note>(&text).ok().filter(|_| right));
        damaged |= note.is_none();
        newest = newest.max(id);
        all.stored.notes.extend(note.map(|note| (id, note)));
    }
    let next: Option<(i64, i64)> = tx
        .prepare_cached("SELECT next_note, hash FROM appliers WHERE physical = ?1")?
        .query_row([index.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let known = next.filter(|(next, hash)| *hash == hash_of_applier(index, *next));
    damaged |= known.is_none() && (next.is_some() || !all.stored.notes.is_empty());
    all.stored.next_note = match known {
        Some((next, _)) => from_sql(next)?,
        None if damaged => newest.saturating_add(LOST_NOTES),
        None => 0,
    };
    if damaged {
        tracing::error!(%index, "what was noted of requests to the node is damaged; the index's copies are to be made anew");
        // No request of before may be taken for a later one.
        all.stored.notes.clear();
        all.stored.lanes.values_mut().for_each(|lane| lane.need = Need::Rebuild);
    }
    Ok(all)
}

/// The rows of an index's journals, looked up once.
struct Ids<'a> {
    index: &'a PhysicalIndex,
    known: BTreeMap<ShardId, Option<i64>>,
}

impl<'a> Ids<'a> {
    fn of(index: &'a PhysicalIndex) -> Self {
        Self { index, known: BTreeMap::new() }
    }

    fn get(&mut self, tx: &Transaction<'_>, shard: ShardId) -> Result<Option<i64>, StoreError> {
        if let Some(known) = self.known.get(&shard) {
            return Ok(*known);
        }
        let journal = Journal::find(tx, &JournalKey { index: self.index.clone(), shard })?;
        let id = journal.map(|journal| journal.id);
        self.known.insert(shard, id);
        Ok(id)
    }
}

fn write_counted(
    tx: &Transaction<'_>,
    ids: &mut Ids<'_>,
    counted: &BTreeMap<(ShardId, u64), u64>,
) -> Result<(), StoreError> {
    for ((shard, seq), count) in counted {
        let Some(id) = ids.get(tx, *shard)? else { continue };
        // What is done again finds nothing more to do.
        let sql = "INSERT OR IGNORE INTO counted VALUES (?1, ?2)";
        tx.prepare_cached(sql)?.execute((place(id, *seq)?, to_sql(*count)?))?;
    }
    Ok(())
}

fn write_applier(tx: &Transaction<'_>, index: &PhysicalIndex, all: &ApplierRows, now: i64) -> Result<(), StoreError> {
    let ApplierRows { rows, checked, done } = all;
    let mut ids = Ids::of(index);
    for (shard, seq) in &rows.unfailed {
        let Some(id) = ids.get(tx, *shard)? else { continue };
        tx.prepare_cached("DELETE FROM failed WHERE place = ?1")?.execute([place(id, *seq)?])?;
    }
    for ((shard, seq), flaw) in &rows.failed {
        let Some(id) = ids.get(tx, *shard)? else { continue };
        let at = place(id, *seq)?;
        let mut hash = Hash::default();
        hash.add(ValueRef::Integer(at));
        [&flaw.code, &flaw.message].into_iter().for_each(|text| hash.add(ValueRef::from(text.as_str())));
        let sql = "INSERT OR REPLACE INTO failed VALUES (?1, ?2, ?3, ?4)";
        tx.prepare_cached(sql)?.execute((at, &flaw.code, &flaw.message, hash.value()))?;
    }
    write_counted(tx, &mut ids, &rows.counted)?;
    for (span, started, finished) in done {
        let Some(id) = ids.get(tx, span.shard)? else { continue };
        let sql = "INSERT OR REPLACE INTO done VALUES (?1, ?2, ?3, ?4)";
        tx.prepare_cached(sql)?.execute((place(id, span.last)?, to_sql(span.first)?, started, finished))?;
    }
    for (shard, seq) in rows.failed.keys() {
        let Some(id) = ids.get(tx, *shard)? else { continue };
        let sql = "INSERT OR IGNORE INTO done VALUES (?1, ?2, ?3, ?3)";
        tx.prepare_cached(sql)?.execute((place(id, *seq)?, to_sql(*seq)?, now))?;
    }
    write_lanes(tx, index, rows, checked)?;
    for (id, note) in &rows.notes {
        let id = to_sql(*id)?;
        match note {
            Some(note) => {
                let text = json(note);
                let sql = "INSERT OR REPLACE INTO notes VALUES (?1, ?2, ?3, ?4)";
                let hash = hash_of_note(index, id, &text);
                tx.prepare_cached(sql)?.execute((index.as_str(), id, text, hash))?;
            }
            None => {
                let sql = "DELETE FROM notes WHERE physical = ?1 AND note = ?2";
                tx.prepare_cached(sql)?.execute((index.as_str(), id))?;
            }
        }
    }
    if rows.next_note > 0 {
        let next = to_sql(rows.next_note)?;
        let sql = "INSERT OR REPLACE INTO appliers VALUES (?1, ?2, ?3)";
        tx.prepare_cached(sql)?.execute((index.as_str(), next, hash_of_applier(index, next)))?;
    }
    Ok(())
}

/// Positions, in the applier's rows and the journals' heads.
fn write_lanes(
    tx: &Transaction<'_>,
    index: &PhysicalIndex,
    rows: &Rows,
    checked: &BTreeMap<ShardId, u64>,
) -> Result<(), StoreError> {
    let stored = |shard: ShardId| -> Result<Option<(i64, String)>, StoreError> {
        let sql = "SELECT checked, row FROM lanes WHERE physical = ?1 AND shard = ?2";
        let mut found = tx.prepare_cached(sql)?;
        Ok(found.query_row((index.as_str(), shard.0), |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
    };
    let put = |shard: ShardId, checked: i64, text: &str| -> Result<(), StoreError> {
        let sql = "INSERT OR REPLACE INTO lanes VALUES (?1, ?2, ?3, ?4, ?5)";
        let hash = hash_of_lane(index, shard, checked, text);
        tx.prepare_cached(sql)?.execute((index.as_str(), shard.0, checked, text, hash))?;
        Ok(())
    };
    for (shard, row) in &rows.lanes {
        let Some(row) = row else {
            let sql = "DELETE FROM lanes WHERE physical = ?1 AND shard = ?2";
            tx.prepare_cached(sql)?.execute((index.as_str(), shard.0))?;
            continue;
        };
        let before = stored(*shard)?.map_or(0, |(checked, _)| checked);
        put(*shard, before, &json(row))?;
        if let Some(mut journal) = Journal::find(tx, &JournalKey { index: index.clone(), shard: *shard })? {
            journal.applied = row.applied.min(journal.last.seq);
            journal.put(tx)?;
        }
    }
    for (shard, to) in checked {
        if let Some((before, text)) = stored(*shard)? {
            put(*shard, before.max(to_sql(*to)?), &text)?;
        }
    }
    Ok(())
}

fn json<T: serde::Serialize>(row: &T) -> String {
    serde_json::to_string(row).expect("a row of numbers, texts and lists has a JSON form")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rusqlite::Connection;

    use super::super::super::LedgerStore;
    use super::super::{Apply, JournalStore};
    use super::*;
    use crate::proto::apply::TaskRef;
    use crate::proto::apply::notes::State;
    use crate::proto::journal::{Body, Entry, Kind, Rows as JournalRows, Write};
    use crate::types::{Epoch, TaskPart, TaskUid};

    const SET: Kind = Kind::Set { skip_creation: false };

    fn open(dir: &Path) -> JournalStore {
        let ledger = LedgerStore::open(dir).unwrap();
        JournalStore::open(dir, &ledger).unwrap()
    }

    fn index() -> PhysicalIndex {
        PhysicalIndex::new("movies__m00000001").unwrap()
    }

    fn key(shard: u16) -> JournalKey {
        JournalKey { index: index(), shard: ShardId(shard) }
    }

    fn at(seq: u64) -> Position {
        Position { epoch: Epoch::new(1).unwrap(), seq }
    }

    async fn journal(store: &JournalStore, shard: u16, entries: u64) {
        let entry = |seq| {
            let part = TaskPart { task: TaskUid(u32::try_from(seq).unwrap()), part: 0 };
            Entry::of(Write { part, kind: SET, body: Body(vec![b'x'; 200].into()) }, at(seq))
        };
        let entries = (1..=entries).map(entry).collect::<Vec<_>>();
        let commit = entries.len() as u64;
        let rows = JournalRows { epoch: at(1).epoch, entries, commit, ..JournalRows::default() };
        store.apply(vec![Apply { key: key(shard), rows, parts: Vec::new() }], 7).await.unwrap();
    }

    fn lane(applied: u64) -> Option<LaneRow> {
        Some(LaneRow { applied, told: [applied + 1].into(), ..LaneRow::default() })
    }

    fn note(shard: u16, state: State) -> Option<Note> {
        let spans = vec![Span { shard: ShardId(shard), first: 1, last: 2 }];
        let without = [(ShardId(shard), 2)].into();
        let first = (ShardId(shard), 1);
        Some(Note { after: Some(3), kind: SET, spans, without, entries: 1, first, alone: true, state })
    }

    fn flaw(text: &str) -> Flaw {
        Flaw::new("invalid_document_id", text)
    }

    #[tokio::test]
    async fn what_was_put_is_read_and_positions_stand_in_the_journals() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        journal(&store, 0, 5).await;
        let (mut model, task) = (Stored::default(), TaskRef { uid: 4, enqueued_at: "t".into() });
        let steps = [
            Rows {
                lanes: [(ShardId(0), lane(3)), (ShardId(1), lane(0))].into(),
                notes: [(1, note(0, State::Sent)), (2, note(1, State::GivenUp))].into(),
                next_note: 3,
                ..Rows::default()
            },
            Rows { notes: [(1, note(0, State::Done(task))), (2, None)].into(), ..Rows::default() },
            Rows { lanes: [(ShardId(0), lane(2)), (ShardId(1), None)].into(), next_note: 9, ..Rows::default() },
        ];
        for rows in steps {
            model.put(&rows);
            let checked = [(ShardId(0), rows.next_note)].into();
            store.put_applier(&index(), ApplierRows { rows, checked, done: Vec::new() }, 0).await.unwrap();
        }
        drop(store);
        let store = open(dir.path());
        let expected = StoredApplier { stored: model, checked: [(ShardId(0), 9)].into() };
        assert_eq!(store.applier(&index()).await.unwrap(), expected);
        assert_eq!(store.lane(&key(0)).await.unwrap(), lane(2));
        assert_eq!(store.positions(&index()).await.unwrap(), [(ShardId(0), (2, 5))].into());
        assert_eq!(store.appliers().await.unwrap(), [index()]);
        store.forget_applier(&index()).await.unwrap();
        assert_eq!(store.applier(&index()).await.unwrap(), StoredApplier::default());
    }

    #[tokio::test]
    async fn outcomes_are_kept_as_long_as_their_entries() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        journal(&store, 0, 6).await;
        let rows = Rows {
            lanes: [(ShardId(0), lane(5))].into(),
            failed: [((ShardId(0), 2), flaw("a")), ((ShardId(0), 5), flaw("b"))].into(),
            counted: [((ShardId(0), 3), 8)].into(),
            ..Rows::default()
        };
        let span = |first, last| Span { shard: ShardId(0), first, last };
        let done = vec![(span(1, 1), 1, 2), (span(3, 4), 3, 4)];
        let all = ApplierRows { rows: rows.clone(), done, ..ApplierRows::default() };
        store.put_applier(&index(), all, 77).await.unwrap();
        // What is counted again counts nothing.
        let again = Rows { counted: [((ShardId(0), 3), 0)].into(), ..Rows::default() };
        store.put_applier(&index(), ApplierRows { rows: again, ..ApplierRows::default() }, 78).await.unwrap();
        let outcome = |flaw: Option<Flaw>, changed, times| EntryOutcome { flaw, changed, times };
        let expected = BTreeMap::from([
            (1, outcome(None, 0, Some((1, 2)))),
            (2, outcome(Some(flaw("a")), 0, Some((77, 77)))),
            (3, outcome(None, 8, Some((3, 4)))),
            (4, outcome(None, 0, Some((3, 4)))),
            (5, outcome(Some(flaw("b")), 0, Some((77, 77)))),
        ]);
        assert_eq!(store.outcomes(&key(0), (1..=6).collect()).await.unwrap(), expected, "6 is not applied");
        assert_eq!(store.failed(&key(0), 1, 99, 1).await.unwrap(), [(2, flaw("a"))]);
        let heads = store.heads(&key(0), 2, 9, 9, usize::MAX).await.unwrap();
        assert_eq!(
            heads.iter().map(|h| (h.seq, h.failed, h.weight)).collect::<Vec<_>>()[..2],
            [(2, true, 200), (3, false, 200)]
        );
        assert_eq!((heads.len(), heads[3].failed), (5, true));
        assert_eq!(store.heads(&key(0), 2, 3, 9, 0).await.unwrap().len(), 1, "at least one");
        let floor = JournalRows { floor: Some(at(3)), ..JournalRows::default() };
        store.apply(vec![Apply { key: key(0), rows: floor, parts: Vec::new() }], 7).await.unwrap();
        assert_eq!(store.failed(&key(0), 1, 99, 9).await.unwrap(), [(5, flaw("b"))]);
        assert!(store.heads(&key(0), 3, 9, 9, usize::MAX).await.unwrap().is_empty());
        let rows = Rows { unfailed: [(ShardId(0), 5)].into(), ..Rows::default() };
        store.put_applier(&index(), ApplierRows { rows, ..ApplierRows::default() }, 79).await.unwrap();
        assert!(store.failed(&key(0), 1, 99, 9).await.unwrap().is_empty());
        store.delete_index(&index()).await.unwrap();
        while store.purge().await.unwrap() {}
        let raw = Connection::open(dir.path().join("journal.sqlite")).unwrap();
        for table in ["failed", "counted", "done"] {
            let left: i64 = raw.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap();
            assert_eq!(left, 0, "{table}");
        }
    }

    #[tokio::test]
    async fn damaged_notes_lead_to_new_copies_and_never_to_numbers_used_twice() {
        for (table, change) in [
            ("lanes", "row = replace(row, '\"applied\":3', '\"applied\":4')"),
            ("lanes", "checked = 8"),
            ("notes", "row = 'x'"),
            ("notes", "note = note + 1"),
            ("appliers", "next_note = 1"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let store = open(dir.path());
            let (lanes, notes) = ([(ShardId(0), lane(3))].into(), [(7, note(0, State::Sent))].into());
            let rows = Rows { lanes, notes, next_note: 8, ..Rows::default() };
            store.put_applier(&index(), ApplierRows { rows, ..ApplierRows::default() }, 0).await.unwrap();
            let raw = Connection::open(dir.path().join("journal.sqlite")).unwrap();
            assert_eq!(raw.execute(&format!("UPDATE {table} SET {change}"), []).unwrap(), 1);
            let read = store.applier(&index()).await.unwrap().stored;
            assert_eq!(read.lanes[&ShardId(0)].need, Need::Rebuild, "{table}: {change}");
            assert!(read.notes.is_empty() && read.next_note >= 8, "{table}: {change}");
        }
    }
}
