//! What is known of one journal beside its entries: where it begins and ends, what is committed and applied.
//!
//! Rule: floor ≤ commit ≤ last, and a head that is read is what was written. Must not know: entries.

use rusqlite::types::ValueRef;
use rusqlite::{OptionalExtension, Row, Transaction};

use super::super::StoreError;
use super::super::row::{Hash, malformed, to_sql};
use super::row::{JOURNAL_MAX, SEQ_BITS, epoch_column, epoch_of};
use crate::types::{Epoch, JournalKey, PhysicalIndex, Position, ShardId};

/// One journal's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) id: i64,
    pub(super) key: JournalKey,
    pub(super) epoch: Epoch,
    pub(super) floor: Position,
    pub(super) last: Position,
    pub(super) commit: u64,
    pub(super) applied: u64,
    pub(super) rebuild: bool,
    /// Of all bodies, as they are stored.
    pub(super) bytes: u64,
}

pub(super) const HEAD: &str = "SELECT id, physical, shard, epoch, floor_epoch, floor, last_epoch, last, committed, applied, \
                               rebuild, bytes, hash FROM journals";
const COLUMNS: usize = 12;

/// Above all numbers that any row has, also one whose head is lost.
const FREE: &str = "SELECT 1 + max(coalesce((SELECT max(id) FROM journals), 0), coalesce((SELECT max(id) FROM gone), 0), \
                    coalesce((SELECT max(place) FROM entries) >> ?1, 0), coalesce((SELECT max(place) FROM epochs) >> ?1, 0), \
                    coalesce((SELECT max(journal) FROM parts), 0), \
                    coalesce((SELECT max(place) FROM failed) >> ?1, 0), coalesce((SELECT max(place) FROM counted) >> ?1, 0), \
                    coalesce((SELECT max(place) FROM done) >> ?1, 0))";

impl Head {
    /// A journal without entries, under a number that no rows have.
    pub(super) fn new(tx: &Transaction<'_>, key: JournalKey) -> Result<Self, StoreError> {
        let id: i64 = tx.prepare_cached(FREE)?.query_row([SEQ_BITS], |row| row.get(0))?;
        if id > JOURNAL_MAX {
            return Err(malformed("journal", "no number is left for another"));
        }
        let (epoch, zero) = (Epoch::ZERO, Position::default());
        Ok(Self { id, key, epoch, floor: zero, last: zero, commit: 0, applied: 0, rebuild: false, bytes: 0 })
    }

    /// The head of a journal, if there is one.
    pub(super) fn find(tx: &Transaction<'_>, key: &JournalKey) -> Result<Option<Self>, StoreError> {
        let mut found = tx.prepare_cached(&format!("{HEAD} WHERE physical = ?1 AND shard = ?2"))?;
        found.query_row((key.index.as_str(), key.shard.0), |row| Ok(Self::read(row))).optional()?.transpose()
    }

    /// Of a row of [`HEAD`].
    pub(super) fn read(row: &Row<'_>) -> Result<Self, StoreError> {
        let index = PhysicalIndex::new(row.get::<_, String>(1)?).map_err(|e| malformed("journal", e))?;
        let key = JournalKey { index, shard: ShardId(row.get(2)?) };
        let mut hash = Hash::default();
        for column in 0..COLUMNS {
            hash.add(row.get_ref(column)?);
        }
        let damaged = |reason: &str| StoreError::Damaged { journal: key.clone(), reason: reason.to_owned() };
        if row.get_ref(COLUMNS)? != ValueRef::Integer(hash.value()) {
            return Err(damaged("the hash of its head is another"));
        }
        let number = |at: usize| Ok::<_, rusqlite::Error>(u64::try_from(row.get::<_, i64>(at)?).unwrap_or(u64::MAX));
        let epoch = |at: usize| -> Result<Epoch, StoreError> {
            epoch_of(row.get(at)?).ok_or_else(|| damaged("an epoch of its head is none"))
        };
        let head = Self {
            id: row.get(0)?,
            epoch: epoch(3)?,
            floor: Position { epoch: epoch(4)?, seq: number(5)? },
            last: Position { epoch: epoch(6)?, seq: number(7)? },
            commit: number(8)?,
            applied: number(9)?,
            rebuild: row.get(10)?,
            bytes: number(11)?,
            key: key.clone(),
        };
        if head.floor <= head.last && head.floor.seq <= head.commit && head.commit <= head.last.seq {
            Ok(head)
        } else {
            Err(damaged("its head contradicts itself"))
        }
    }

    /// Writes it.
    pub(super) fn put(&self, tx: &Transaction<'_>) -> Result<(), StoreError> {
        let int = |n: u64| Ok::<_, StoreError>(ValueRef::Integer(to_sql(n)?));
        let epoch = |e: Epoch| ValueRef::Integer(epoch_column(e));
        let columns: [ValueRef<'_>; COLUMNS] = [
            ValueRef::Integer(self.id),
            ValueRef::from(self.key.index.as_str()),
            ValueRef::Integer(self.key.shard.0.into()),
            epoch(self.epoch),
            epoch(self.floor.epoch),
            int(self.floor.seq)?,
            epoch(self.last.epoch),
            int(self.last.seq)?,
            int(self.commit)?,
            int(self.applied)?,
            ValueRef::Integer(self.rebuild.into()),
            int(self.bytes)?,
        ];
        let mut hash = Hash::default();
        columns.iter().for_each(|value| hash.add(*value));
        let values = columns.into_iter().chain([ValueRef::Integer(hash.value())]);
        let values = values.map(rusqlite::types::ToSqlOutput::Borrowed);
        let sql = "INSERT OR REPLACE INTO journals VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)";
        tx.prepare_cached(sql)?.execute(rusqlite::params_from_iter(values))?;
        Ok(())
    }

    /// Takes a journal out of the list; its rows go bit by bit.
    pub(super) fn retire(tx: &Transaction<'_>, id: i64) -> Result<(), StoreError> {
        tx.prepare_cached("DELETE FROM journals WHERE id = ?1")?.execute([id])?;
        tx.prepare_cached("INSERT OR IGNORE INTO gone VALUES (?1)")?.execute([id])?;
        Ok(())
    }
}
