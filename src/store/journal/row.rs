//! An entry, a mark and a part as rows.
//!
//! A place is a journal's number and an entry's in one integer, the key of its row, so that entries of a journal lie beside
//! each other and no other index is needed. A body is compressed where that makes it smaller. Rule: a body is unpacked only
//! after its row's hash has been compared, and never to more than an entry may have. Must not know: why rows are written.

use std::sync::Arc;

use rusqlite::types::ValueRef;
use rusqlite::{Row, Transaction};

use super::super::StoreError;
use super::super::row::{Hash, malformed};
use crate::proto::journal::entry::ENTRY_BODY_MAX_BYTES;
use crate::proto::journal::{Body, Entry, Kind, Stands};
use crate::types::{Epoch, Position, TaskPart, TaskUid};

/// Bits of a place for the entry's number.
pub(super) const SEQ_BITS: u32 = 40;
/// The highest number that an entry may have here.
pub(super) const SEQ_MAX: u64 = (1 << SEQ_BITS) - 1;
/// The highest number that a journal may have.
pub(super) const JOURNAL_MAX: i64 = (1 << (63 - SEQ_BITS)) - 1;
/// Bodies below this are not worth the trouble.
const PACK_MIN_BYTES: usize = 128;

/// The key of an entry's row.
pub(super) fn place(journal: i64, seq: u64) -> Result<i64, StoreError> {
    if seq > SEQ_MAX || !(1..=JOURNAL_MAX).contains(&journal) {
        return Err(malformed("journal position", format!("{seq} in journal {journal}")));
    }
    Ok(journal << SEQ_BITS | seq.cast_signed())
}

/// The number of the entry in a row with this key.
pub(super) fn seq_of(place: i64) -> u64 {
    place.cast_unsigned() & SEQ_MAX
}

/// An epoch's column.
pub(super) fn epoch_of(column: i64) -> Option<Epoch> {
    u64::try_from(column).ok().and_then(Epoch::new)
}

/// An epoch for its column.
pub(super) fn epoch_column(epoch: Epoch) -> i64 {
    epoch.number().cast_signed()
}

fn kind_column(kind: Kind) -> i64 {
    match kind {
        Kind::Set { skip_creation } => i64::from(skip_creation),
        Kind::Merge { skip_creation } => 2 + i64::from(skip_creation),
        Kind::Delete => 4,
        Kind::DeleteByFilter => 5,
        Kind::Edit => 6,
        Kind::Clear => 7,
        Kind::Empty => 8,
        Kind::Refusal => 9,
        Kind::Home => 10,
    }
}

fn kind_of(column: i64) -> Option<Kind> {
    Some(match column {
        0 | 1 => Kind::Set { skip_creation: column == 1 },
        2 | 3 => Kind::Merge { skip_creation: column == 3 },
        4 => Kind::Delete,
        5 => Kind::DeleteByFilter,
        6 => Kind::Edit,
        7 => Kind::Clear,
        8 => Kind::Empty,
        9 => Kind::Refusal,
        10 => Kind::Home,
        _ => return None,
    })
}

fn hash_of(columns: &[ValueRef<'_>]) -> i64 {
    let mut hash = Hash::default();
    columns.iter().for_each(|value| hash.add(*value));
    hash.value()
}

fn integer(column: Option<u32>) -> ValueRef<'static> {
    column.map_or(ValueRef::Null, |n| ValueRef::Integer(n.into()))
}

/// The columns of an entry, in the order of [`entry_of`]; gives how many bytes its body takes.
pub(super) fn insert_entry(
    tx: &Transaction<'_>,
    journal: i64,
    entry: &Entry,
    stored_at: i64,
) -> Result<u64, StoreError> {
    let plain = &*entry.body.0;
    let packed = (plain.len() >= PACK_MIN_BYTES).then(|| lz4_flex::block::compress(plain));
    let body = packed.as_deref().filter(|packed| packed.len() < plain.len()).unwrap_or(plain);
    let (size, plain) = (body.len() as u64, plain.len() as u64);
    let columns = [
        ValueRef::Integer(place(journal, entry.at.seq)?),
        ValueRef::Integer(epoch_column(entry.at.epoch)),
        integer(entry.part.map(|p| p.task.0)),
        integer(entry.part.map(|p| p.part)),
        ValueRef::Integer(kind_column(entry.kind)),
        ValueRef::Integer(stored_at),
        ValueRef::Integer(size.cast_signed()),
        ValueRef::Integer(plain.cast_signed()),
        ValueRef::Blob(body),
    ];
    let hash = ValueRef::Integer(hash_of(&columns));
    let [head @ .., body] = columns;
    let values = head.into_iter().chain([hash, body]).map(rusqlite::types::ToSqlOutput::Borrowed);
    let sql = "INSERT INTO entries VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
    tx.prepare_cached(sql)?.execute(rusqlite::params_from_iter(values))?;
    Ok(size)
}

/// What [`entry_of`] reads.
pub(super) const ENTRY: &str = "SELECT place, epoch, task, part, kind, stored_at, size, plain, hash, body FROM entries";

/// What a row is; the inner error says why it can't be what was written.
pub(super) fn entry_of(row: &Row<'_>) -> Result<Result<Entry, String>, StoreError> {
    if !is_written(row)? {
        return Ok(Err("its hash is another".into()));
    }
    let task: Option<u32> = row.get(2)?;
    let part: Option<u32> = row.get(3)?;
    let seq = seq_of(row.get(0)?);
    let (epoch, kind) = (epoch_of(row.get(1)?), kind_of(row.get(4)?));
    let ValueRef::Blob(body) = row.get_ref(9)? else { return Ok(Err("its body is no bytes".into())) };
    let plain = usize::try_from(row.get::<_, i64>(7)?).ok().filter(|n| *n <= ENTRY_BODY_MAX_BYTES);
    let (Some(epoch), Some(kind), Some(plain)) = (epoch, kind, plain) else {
        return Ok(Err("its columns are out of their bounds".into()));
    };
    let body: Arc<[u8]> = match body.len() {
        same if same == plain => body.into(),
        less if less < plain => match lz4_flex::block::decompress(body, plain) {
            Ok(unpacked) if unpacked.len() == plain => unpacked.into(),
            Ok(_) => return Ok(Err("its body has another length".into())),
            Err(e) => return Ok(Err(format!("its body can't be unpacked: {e}"))),
        },
        _ => return Ok(Err("its body is longer than it says".into())),
    };
    let part = task.zip(part).map(|(task, part)| TaskPart { task: TaskUid(task), part });
    let entry = Entry { at: Position { epoch, seq }, part, kind, body: Body(body) };
    Ok(if entry.is_well_formed() { Ok(entry) } else { Err("it is no entry".into()) })
}

/// What an applier must know of an entry, without unpacking its body: number, kind, part and length.
pub(super) type Outline = (u64, Kind, Option<TaskPart>, usize);

/// The outline of a row of [`ENTRY`], and how many bytes its body takes here; the inner error says why it can't be what was
/// written.
pub(super) fn outline_of(row: &Row<'_>) -> Result<Result<(Outline, usize), String>, StoreError> {
    if !is_written(row)? {
        return Ok(Err("its hash is another".into()));
    }
    let part = row.get::<_, Option<u32>>(2)?.zip(row.get(3)?);
    let part = part.map(|(task, part)| TaskPart { task: TaskUid(task), part });
    let (kind, plain) = (kind_of(row.get(4)?), usize::try_from(row.get::<_, i64>(7)?).ok());
    let packed = row.get_ref(9)?.as_blob().map_or(0, <[u8]>::len);
    Ok(match kind.zip(plain) {
        Some((kind, plain)) => Ok(((seq_of(row.get(0)?), kind, part, plain), packed)),
        None => Err("its columns are out of their bounds".into()),
    })
}

/// Whether the hash of a row of [`ENTRY`] is its own.
fn is_written(row: &Row<'_>) -> Result<bool, StoreError> {
    let mut hash = Hash::default();
    for column in (0..8).chain([9]) {
        hash.add(row.get_ref(column)?);
    }
    Ok(row.get_ref(8)? == ValueRef::Integer(hash.value()))
}

/// Notes where an epoch begins.
pub(super) fn insert_mark(tx: &Transaction<'_>, journal: i64, at: Position) -> Result<(), StoreError> {
    let (place, epoch) = (place(journal, at.seq)?, epoch_column(at.epoch));
    let hash = hash_of(&[ValueRef::Integer(place), ValueRef::Integer(epoch)]);
    tx.prepare_cached("INSERT OR REPLACE INTO epochs VALUES (?1, ?2, ?3)")?.execute((place, epoch, hash))?;
    Ok(())
}

/// Of `place, epoch, hash`; `None`: it is not what was written.
pub(super) fn mark_of(row: &Row<'_>) -> Result<Option<Position>, StoreError> {
    let (place, epoch): (i64, i64) = (row.get(0)?, row.get(1)?);
    let right = row.get::<_, i64>(2)? == hash_of(&[ValueRef::Integer(place), ValueRef::Integer(epoch)]);
    Ok(epoch_of(epoch).filter(|_| right).map(|epoch| Position { epoch, seq: seq_of(place) }))
}

/// A part that stands as itself has the hash that it had before there were refusals.
fn hash_of_part(journal: i64, part: TaskPart, at: Stands, stored_at: i64) -> i64 {
    let columns =
        [journal, part.task.0.into(), part.part.into(), at.seq.cast_signed(), stored_at, i64::from(at.refused)];
    let columns = columns.map(ValueRef::Integer);
    hash_of(if at.refused { &columns } else { &columns[..5] })
}

/// Remembers where a part stands.
pub(super) fn insert_part(
    tx: &Transaction<'_>,
    journal: i64,
    part: TaskPart,
    at: Stands,
    stored_at: i64,
) -> Result<(), StoreError> {
    let hash = hash_of_part(journal, part, at, stored_at);
    let sql = "INSERT OR REPLACE INTO parts VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let columns = (journal, part.task.0, part.part, at.seq.cast_signed(), stored_at, hash, at.refused);
    tx.prepare_cached(sql)?.execute(columns)?;
    Ok(())
}

/// What [`part_of`] reads.
pub(super) const PART: &str = "SELECT journal, task, part, seq, stored_at, hash, refused FROM parts";

/// Of [`PART`]; `None`: it is not what was written.
pub(super) fn part_of(row: &Row<'_>) -> Result<Option<(TaskPart, Stands)>, StoreError> {
    let part = TaskPart { task: TaskUid(row.get(1)?), part: row.get(2)? };
    let (journal, seq, stored_at): (i64, i64, i64) = (row.get(0)?, row.get(3)?, row.get(4)?);
    let refused: i64 = row.get(6)?;
    let at = Stands { seq: seq.cast_unsigned(), refused: refused == 1 };
    let right =
        (0..=1).contains(&refused) && seq >= 0 && row.get::<_, i64>(5)? == hash_of_part(journal, part, at, stored_at);
    Ok(right.then_some((part, at)))
}
