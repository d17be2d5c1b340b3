//! The journals' file against the model that the cores were simulated on, and against damage.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use rusqlite::Connection;

use super::super::{LedgerStore, StoreError};
use super::{Apply, JournalStore};
use crate::proto::journal::entry::ENTRY_HEAD_BYTES;
use crate::proto::journal::log::Bounds;
use crate::proto::journal::simulated::disk::Disk;
use crate::proto::journal::{Body, Entry, Kind, Rows, Stands, Stored, Write};
use crate::types::{Epoch, JournalKey, PhysicalIndex, Position, ShardId, TaskPart, TaskUid};

const ALL: Bounds = Bounds { entries: usize::MAX, bytes: usize::MAX };
const NOW: u64 = 1_800_000_000;

fn open(dir: &Path) -> JournalStore {
    let ledger = LedgerStore::open(dir).unwrap();
    JournalStore::open(dir, &ledger).unwrap()
}

fn key(shard: u16) -> JournalKey {
    JournalKey { index: PhysicalIndex::new("movies__m00000001").unwrap(), shard: ShardId(shard) }
}

fn epoch(n: u64) -> Epoch {
    Epoch::new(n).unwrap()
}

fn at(e: u64, seq: u64) -> Position {
    Position { epoch: epoch(e), seq }
}

fn part(task: u64) -> TaskPart {
    TaskPart { task: TaskUid(u32::try_from(task).unwrap()), part: 1 }
}

fn entry(e: u64, seq: u64, body: &[u8]) -> Entry {
    Entry::of(Write { part: part(seq), kind: Kind::Set { skip_creation: false }, body: Body(body.into()) }, at(e, seq))
}

/// Entries of one epoch from `first` on.
fn rows(e: u64, first: u64, count: u64) -> Rows {
    let entries = (first..first + count).map(|seq| entry(e, seq, format!("body {seq}").as_bytes())).collect();
    Rows { epoch: epoch(e), entries, ..Rows::default() }
}

fn apply(shard: u16, rows: Rows) -> Apply {
    Apply { key: key(shard), rows, parts: Vec::new() }
}

async fn put(store: &JournalStore, rows: Rows) {
    put_in(store, 0, rows).await;
}

async fn put_in(store: &JournalStore, shard: u16, rows: Rows) {
    store.apply(vec![apply(shard, rows)], NOW).await.unwrap();
}

async fn stored(store: &JournalStore, shard: u16) -> Stored {
    store.stored(&key(shard), ALL).await.unwrap().expect("there is such a journal")
}

fn raw(dir: &Path) -> Connection {
    Connection::open(dir.join("journal.sqlite")).unwrap()
}

/// Bytes that nothing makes smaller.
fn noise(bytes: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(7);
    (0..bytes).map(|_| rng.u8(..)).collect()
}

#[tokio::test]
async fn rows_that_do_not_fit_are_refused_whole_with_what_came_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, Rows { commit: 2, ..rows(1, 1, 3) }).await;
    let before = stored(&store, 0).await;
    let gap = rows(1, 5, 1);
    let older = rows(0, 4, 1);
    let committed = Rows { drop_from: Some(2), ..rows(2, 2, 1) };
    let ahead = Rows { commit: 9, ..rows(1, 4, 1) };
    let floor = Rows { floor: Some(at(1, 3)), ..Rows::default() };
    let foreign = Rows { floor: Some(at(0, 1)), ..Rows::default() };
    let malformed = {
        let mut rows = rows(1, 4, 1);
        rows.entries[0].kind = Kind::Empty;
        rows
    };
    for bad in [gap, older, committed, ahead, floor, foreign, malformed] {
        let done =
            store.apply(vec![apply(0, rows(1, 4, 1)), apply(1, rows(1, 1, 1)), apply(2, bad.clone())], NOW).await;
        assert!(done.is_err(), "{bad:?}");
        let done = store.apply(vec![apply(1, rows(1, 1, 1)), apply(0, bad.clone())], NOW).await;
        assert!(matches!(done, Err(StoreError::Malformed { .. })), "{bad:?}: {done:?}");
        assert_eq!(stored(&store, 0).await, before);
        assert_eq!(store.stored(&key(1), ALL).await.unwrap(), None);
    }
    store.set_applied(vec![(key(0), 3)]).await.unwrap();
    let applied = Rows { drop_from: Some(3), ..rows(2, 3, 1) };
    assert!(store.apply(vec![apply(0, applied)], NOW).await.is_err());
    assert!(store.fatal().borrow().is_none(), "it is the replica that is wrong");
}

#[tokio::test]
async fn a_group_of_any_size_is_stored_in_its_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let body = noise(3 << 20);
    let large = noise(9 << 20);
    let one =
        |seq, body: &[u8]| apply(0, Rows { epoch: epoch(1), entries: vec![entry(1, seq, body)], ..Rows::default() });
    store.apply(vec![one(1, &body), one(2, &body), one(3, &large), one(4, b"x")], NOW).await.unwrap();
    drop(store);
    let store = open(dir.path());
    let all = store.load(&key(0), 1, 100, usize::MAX).await.unwrap();
    let sizes: Vec<usize> = all.iter().map(|e| e.body.0.len()).collect();
    assert_eq!(sizes, [3 << 20, 3 << 20, 9 << 20, 1]);
    assert_eq!(store.load(&key(0), 2, 100, 1).await.unwrap().len(), 1, "one always goes");
    let two = 2 * (ENTRY_HEAD_BYTES + (3 << 20));
    assert_eq!(store.load(&key(0), 1, 100, two).await.unwrap().len(), 2);
    assert!(store.load(&key(0), 5, 100, 100).await.unwrap().is_empty());
    assert!(store.load(&key(1), 1, 100, 100).await.unwrap().is_empty());
}

#[tokio::test]
async fn bodies_are_packed_where_that_helps() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let text = "{\"title\":\"the same words again\"}\n".repeat(1_000);
    let bodies = [text.as_bytes().to_vec(), noise(10_000), Vec::new(), vec![7; 40]];
    let entries = (1..).zip(&bodies).map(|(seq, body)| entry(1, seq, body)).collect();
    put(&store, Rows { entries, ..Rows::default() }).await;
    let read = store.load(&key(0), 1, 10, usize::MAX).await.unwrap();
    assert!(read.iter().zip(&bodies).all(|(e, body)| *e.body.0 == **body));
    let (listed, _) = store.list().await.unwrap();
    assert!((10_040..12_000).contains(&listed[0].bytes), "{}", listed[0].bytes);
}

#[tokio::test]
async fn a_full_disk_stores_nothing_and_the_store_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, rows(1, 1, 3)).await;
    let before = stored(&store, 0).await;
    store.fill_for_test().await.unwrap();
    let big = Rows { entries: vec![entry(1, 4, &noise(1 << 20))], ..Rows::default() };
    let error = store.apply(vec![apply(1, rows(1, 1, 2)), apply(0, big)], NOW).await.unwrap_err();
    assert!(error.is_fatal(), "{error}");
    assert!(store.fatal().borrow().is_some());
    assert_eq!(stored(&store, 0).await, before);
    assert_eq!(store.stored(&key(1), ALL).await.unwrap(), None);
}

#[tokio::test]
async fn reads_do_not_wait_for_the_writer() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, rows(1, 1, 3)).await;
    let (go, wait) = std::sync::mpsc::sync_channel::<()>(0);
    let held = store.db().run(move |tx| {
        tx.execute("DELETE FROM entries", [])?;
        Ok(wait.recv().is_ok())
    });
    let reading = async {
        assert_eq!(store.find(&key(0), part(2)).await.unwrap().map(|at| at.seq), Some(2));
        assert_eq!(stored(&store, 0).await.log.last, 3);
        drop(go);
    };
    let (held, ()) = tokio::join!(held, reading);
    assert!(!held.unwrap());
}

#[tokio::test]
async fn parts_are_remembered_behind_their_entries_until_the_retention_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, Rows { commit: 9, ..rows(1, 1, 10) }).await;
    store.apply(vec![apply(0, Rows { commit: 12, ..rows(1, 11, 2) })], NOW + 60).await.unwrap();
    put(&store, Rows { floor: Some(at(1, 11)), ..Rows::default() }).await;
    let find = async |task| store.find(&key(0), part(task)).await.unwrap().map(|at| at.seq);
    assert_eq!((find(1).await, find(11).await, find(12).await, find(13).await), (Some(1), Some(11), Some(12), None));
    assert_eq!(stored(&store, 0).await.log.older, Some(TaskUid(11)));
    store.forget_parts(&key(0), 0, 5).await.unwrap();
    assert_eq!((find(7).await, find(8).await), (None, Some(8)));
    store.forget_parts(&key(0), NOW + 1, 100).await.unwrap();
    assert_eq!((find(10).await, find(11).await), (None, Some(11)));
    store.forget_parts(&key(0), NOW + 99, 0).await.unwrap();
    assert_eq!((find(11).await, find(12).await), (None, Some(12)), "an entry that is there keeps its part");
    assert_eq!(store.parts(&key(0), 99).await.unwrap(), [(part(12), Stands { seq: 12, refused: false })]);
}

#[tokio::test]
async fn a_refusal_is_remembered_as_one_behind_its_entry() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut refused = rows(1, 1, 3);
    refused.entries[1].kind = Kind::Refusal;
    put(&store, Rows { commit: 3, ..refused }).await;
    let find = async |task| store.find(&key(0), part(task)).await.unwrap();
    let at = |seq, refused| Some(Stands { seq, refused });
    assert_eq!((find(1).await, find(2).await, find(3).await), (at(1, false), at(2, true), at(3, false)));
    put(&store, Rows { floor: Some(self::at(1, 2)), ..Rows::default() }).await;
    assert_eq!((find(1).await, find(2).await), (at(1, false), at(2, true)));
    raw(dir.path()).execute("UPDATE parts SET refused = 1 - refused", []).unwrap();
    assert!(matches!(store.find(&key(0), part(2)).await, Err(StoreError::Damaged { .. })));
    assert!(matches!(store.find(&key(0), part(3)).await, Err(StoreError::Damaged { .. })));
}

#[tokio::test]
async fn a_retention_finds_what_is_old_and_what_is_too_much() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, rows(1, 1, 3)).await;
    store.apply(vec![apply(0, rows(1, 4, 3))], NOW + 60).await.unwrap();
    let (listed, damaged) = store.list().await.unwrap();
    assert_eq!((listed[0].oldest, listed[0].bytes, listed[0].last, damaged), (Some(NOW), 36, at(1, 6), vec![]));
    let expired = async |before, spare| store.expired(&key(0), before, spare).await.unwrap();
    assert_eq!(
        (expired(NOW, 0).await, expired(NOW + 1, 0).await, expired(NOW + 61, 0).await),
        (None, Some(3), Some(6))
    );
    assert_eq!((expired(0, 1).await, expired(0, 12).await, expired(NOW + 1, 24).await), (Some(1), Some(2), Some(4)));
    assert_eq!(store.expired(&key(1), NOW, 9).await.unwrap(), None);
}

/// A journal with one entry of so many bytes each after the other, all but the last dropped again; the file's size before that.
async fn fill_and_trim(dir: &Path, store: &JournalStore, entries: u64, bytes: usize) -> u64 {
    for seq in 1..=entries {
        let one = vec![entry(1, seq, &noise(bytes))];
        put(store, Rows { epoch: epoch(1), entries: one, commit: seq, ..Rows::default() }).await;
    }
    store.set_applied(vec![(key(0), entries)]).await.unwrap();
    checkpoint(dir);
    let before = size(dir);
    put(store, Rows { floor: Some(at(1, entries - 1)), ..Rows::default() }).await;
    before
}

fn checkpoint(dir: &Path) {
    raw(dir).query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
}

fn size(dir: &Path) -> u64 {
    std::fs::metadata(dir.join("journal.sqlite")).unwrap().len()
}

#[tokio::test]
async fn what_holds_nothing_any_more_is_given_back_in_steps_but_for_what_will_soon_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let before = fill_and_trim(dir.path(), &store, 48, 1 << 20).await;
    assert!(before > 48 << 20 && store.spare_bytes().await.unwrap() > 46 << 20);
    // A step that is to end at once does something all the same.
    let spare = store.spare_bytes().await.unwrap();
    assert!(store.give_back(|| false).await.unwrap());
    assert_eq!(store.spare_bytes().await.unwrap(), spare - 4_096);
    let mut steps = 1;
    while store.give_back(|| true).await.unwrap() {
        steps += 1;
        let now = store.spare_bytes().await.unwrap();
        assert!(spare - now <= steps * (128 << 12), "no step is large");
    }
    assert!((50..99).contains(&steps), "{steps}");
    checkpoint(dir.path());
    assert!(size(dir.path()) < 20 << 20, "{}", size(dir.path()));
    assert!((15 << 20..=16 << 20).contains(&store.spare_bytes().await.unwrap()));
    assert_eq!(stored(&store, 0).await.log.tail.len(), 1);
    drop(store);
    assert_eq!(stored(&open(dir.path()), 0).await.log.last, 48);
}

#[tokio::test]
async fn a_file_that_can_not_shrink_goes_on_with_what_holds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path()).unwrap();
    let made = "PRAGMA journal_mode = WAL; CREATE TABLE old (x); DROP TABLE old;";
    raw(dir.path()).execute_batch(made).unwrap();
    let store = open(dir.path());
    let before = fill_and_trim(dir.path(), &store, 40, 1 << 20).await;
    assert!(!store.give_back(|| true).await.unwrap());
    let spare = store.spare_bytes().await.unwrap();
    assert!(spare > 38 << 20);
    put_in(&store, 1, Rows { entries: vec![entry(1, 1, &noise(30 << 20))], ..rows(1, 1, 0) }).await;
    assert!(store.spare_bytes().await.unwrap() < spare - (30 << 20));
    checkpoint(dir.path());
    assert_eq!(size(dir.path()), before);
}

#[tokio::test]
async fn a_deleted_journal_is_gone_at_once_and_its_rows_by_and_by() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let other = JournalKey { index: PhysicalIndex::new("books__m00000001").unwrap(), shard: ShardId(0) };
    let mut work: Vec<Apply> = (0..3).map(|shard| apply(shard, rows(1, 1, 300))).collect();
    work.push(Apply { key: other.clone(), ..apply(0, rows(1, 1, 300)) });
    store.apply(work, NOW).await.unwrap();
    store.delete(&key(1)).await.unwrap();
    assert_eq!(store.stored(&key(1), ALL).await.unwrap(), None);
    assert_eq!(stored(&store, 2).await.log.last, 300);
    store.delete_index(&key(0).index).await.unwrap();
    assert_eq!(store.list().await.unwrap().0.len(), 1);
    // The same name begins anew beside what is not gone yet.
    put(&store, rows(2, 1, 2)).await;
    assert_eq!(stored(&store, 0).await.log.tail.len(), 2);
    drop(store);
    let store = open(dir.path());
    while store.purge().await.unwrap() {}
    assert_eq!(stored(&store, 0).await.log.tail.len(), 2);
    assert_eq!(store.load(&other, 1, 999, usize::MAX).await.unwrap().len(), 300);
    let count = |table: &str| {
        raw(dir.path()).query_row(&format!("SELECT count(*) FROM {table}"), [], |r| r.get::<_, i64>(0)).unwrap()
    };
    assert_eq!([count("entries"), count("parts"), count("epochs"), count("gone")], [302, 302, 2, 0]);
}

/// A journal of three epochs, its beginning dropped.
async fn damaged_by(sql: &str) -> (tempfile::TempDir, JournalStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, Rows { commit: 4, ..rows(1, 1, 5) }).await;
    put(&store, Rows { commit: 7, ..rows(2, 6, 4) }).await;
    put(&store, Rows { commit: 7, ..rows(4, 10, 3) }).await;
    put(&store, Rows { floor: Some(at(1, 2)), epoch: epoch(5), ..Rows::default() }).await;
    store.apply(vec![apply(1, rows(1, 1, 3))], NOW).await.unwrap();
    let changed = raw(dir.path()).execute(sql, []).unwrap();
    assert!(changed > 0, "{sql}");
    (dir, store)
}

fn place(seq: u64) -> u64 {
    super::row::place(1, seq).unwrap().cast_unsigned()
}

#[tokio::test]
async fn a_damaged_tail_is_cut_and_the_copy_made_anew() {
    let flips = "SET body = CAST(x'00' || substr(body, 2) AS BLOB)";
    let cases = [
        (format!("UPDATE entries {flips} WHERE place = {}", place(12)), 11),
        (format!("UPDATE entries {flips} WHERE place = {}", place(9)), 8),
        (format!("UPDATE entries {flips} WHERE place = {}", place(3)), 2),
        (format!("UPDATE entries SET task = 99 WHERE place = {}", place(11)), 10),
        (format!("UPDATE entries SET epoch = 5 WHERE place = {}", place(11)), 10),
        (format!("UPDATE entries SET kind = 77 WHERE place = {}", place(11)), 10),
        (format!("UPDATE entries SET plain = 1 << 60 WHERE place = {}", place(11)), 10),
        (format!("DELETE FROM entries WHERE place = {}", place(12)), 11),
        (format!("DELETE FROM entries WHERE place = {}", place(8)), 7),
        (format!("DELETE FROM epochs WHERE place = {}", place(10)), 12),
        (format!("UPDATE epochs SET epoch = 3 WHERE place = {}", place(6)), 12),
        (format!("UPDATE entries SET place = {} WHERE place = {}", place(13), place(12)), 11),
    ];
    for (sql, last) in cases {
        let (dir, store) = damaged_by(&sql).await;
        let other = stored(&store, 1).await;
        let found = stored(&store, 0).await;
        assert!(found.rebuild, "{sql}");
        assert_eq!((found.log.last, found.log.commit, found.epoch), (last, last.min(7), epoch(5)), "{sql}");
        assert_eq!(found.log.tail.last().map_or(2, |e| e.at.seq), last);
        assert_eq!(store.find(&key(0), part(last + 1)).await.unwrap().filter(|_| last < 12), None, "{sql}");
        // What a replica begins with holds.
        crate::proto::journal::log::Log::new(ALL, found.log.clone(), found.epoch);
        drop(store);
        let store = open(dir.path());
        assert_eq!(stored(&store, 0).await, found, "{sql}");
        assert_eq!(stored(&store, 1).await, other, "the others are not touched");
    }
}

#[tokio::test]
async fn a_damaged_head_leaves_an_empty_journal_that_is_to_be_made_anew() {
    for sql in
        ["UPDATE journals SET committed = 9 WHERE id = 1", "UPDATE journals SET epoch = 1, hash = 0 WHERE id = 1"]
    {
        let (_dir, store) = damaged_by(sql).await;
        assert_eq!(store.list().await.unwrap().1, [key(0)]);
        let found = stored(&store, 0).await;
        assert_eq!(found, Stored { rebuild: true, ..Stored::default() });
        put(&store, Rows { begin_at: Some(at(6, 50)), epoch: epoch(6), ..Rows::default() }).await;
        assert_eq!((stored(&store, 0).await.log.last, stored(&store, 0).await.rebuild), (50, false));
        while store.purge().await.unwrap() {}
    }
}

#[tokio::test]
async fn a_journal_whose_head_is_lost_lends_its_rows_to_no_other() {
    let (_dir, store) = damaged_by("DELETE FROM journals WHERE id = 2").await;
    assert_eq!(store.stored(&key(1), ALL).await.unwrap(), None);
    put_in(&store, 1, rows(3, 1, 1)).await;
    assert_eq!(stored(&store, 1).await.log.tail, rows(3, 1, 1).entries);
}

#[tokio::test]
async fn damage_that_is_met_later_is_told_and_repaired() {
    let sql = format!("UPDATE entries SET body = CAST(x'00' || substr(body, 2) AS BLOB) WHERE place = {}", place(5));
    let (_dir, store) = damaged_by(&sql).await;
    let few = Bounds { entries: 2, bytes: usize::MAX };
    assert!(!store.stored(&key(0), few).await.unwrap().unwrap().rebuild, "older entries are not looked at");
    assert_eq!(store.load(&key(0), 6, 3, usize::MAX).await.unwrap().len(), 3);
    let error = store.load(&key(0), 4, 3, usize::MAX).await.unwrap_err();
    let StoreError::Damaged { journal, reason } = &error else { panic!("{error}") };
    assert!(!error.is_fatal());
    store.repair(journal, reason).await.unwrap();
    let found = stored(&store, 0).await;
    assert!(found.rebuild);
    assert_eq!((found.log.last, found.log.commit), (4, 4));
}

/// One thing that a replica does with its store.
#[derive(Debug, Clone)]
enum Step {
    Push { count: u64, epochs: u64, commit: u64 },
    Drop { back: u64, epochs: u64 },
    Apply { count: u64 },
    Trim { count: u64 },
    Begin { ahead: u64 },
    Rebuild,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<(u16, Step)>> {
    let step = prop_oneof![
        6 => (0_u64..5, 0_u64..2, 0_u64..6).prop_map(|(count, epochs, commit)| Step::Push { count, epochs, commit }),
        3 => (1_u64..4, 1_u64..3).prop_map(|(back, epochs)| Step::Drop { back, epochs }),
        3 => (1_u64..6).prop_map(|count| Step::Apply { count }),
        2 => (1_u64..6).prop_map(|count| Step::Trim { count }),
        1 => (0_u64..9).prop_map(|ahead| Step::Begin { ahead }),
        1 => Just(Step::Rebuild),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec((0_u16..2, step), 1..25)
}

/// The rows that a replica would ask for, and the snapshot that goes with them; `None`: nothing for the store.
fn rows_of(step: &Step, disk: &Disk, tasks: &mut u64) -> Option<(Rows, Option<u64>)> {
    let last = disk.last();
    let kept = disk.commit.max(disk.applied_to());
    let base = Rows { epoch: disk.epoch, commit: kept, ..Rows::default() };
    let mut push = |from: u64, count: u64, e: u64| -> Vec<Entry> {
        let mut one = |seq| {
            *tasks += 1;
            let body = Body(Arc::from(format!("{tasks} ").repeat(usize::try_from(*tasks % 90).unwrap()).as_bytes()));
            let write = Write { part: part(*tasks), kind: Kind::Merge { skip_creation: seq % 3 == 0 }, body };
            if seq % 5 == 0 { Entry::empty(at(e, seq)) } else { Entry::of(write, at(e, seq)) }
        };
        (from..from + count).map(&mut one).collect()
    };
    Some(match step {
        Step::Push { count, epochs, commit } => {
            let e = disk.epoch.number() + epochs;
            let entries = push(last + 1, *count, e);
            (Rows { epoch: epoch(e), entries, commit: kept.max(last.min(kept + commit)), ..base }, None)
        }
        Step::Drop { back, epochs } => {
            let from = (last + 1).saturating_sub(*back).max(kept + 1);
            let e = disk.epoch.number() + epochs;
            (Rows { epoch: epoch(e), drop_from: Some(from), entries: push(from, 2, e), ..base }, None)
        }
        Step::Trim { count } => {
            let to = (disk.floor.seq + count).min(disk.applied_to());
            (Rows { floor: Some(disk.has(to).filter(|at| *at > disk.floor)?), ..base }, None)
        }
        Step::Begin { ahead } => {
            let begin = Position { epoch: disk.epoch, seq: kept + ahead };
            (Rows { begin_at: Some(begin), commit: begin.seq, ..base }, Some(begin.seq))
        }
        Step::Rebuild => (Rows { rebuild: true, ..base }, None),
        Step::Apply { .. } | Step::Reopen => return None,
    })
}

async fn run_steps(steps: Vec<(u16, Step)>) {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let (mut disks, mut tasks) = ([Disk::default(), Disk::default()], 0);
    let mut made = [false; 2];
    for (n, (shard, step)) in steps.into_iter().enumerate() {
        let disk = &mut disks[usize::from(shard)];
        if let Some((rows, begin)) = rows_of(&step, disk, &mut tasks) {
            let kept = disk.parts.iter().filter(|(_, at)| begin.is_some_and(|seq| at.seq <= seq));
            let parts: BTreeMap<TaskPart, Stands> = kept.map(|(part, at)| (*part, *at)).collect();
            let snapshot = rows.begin_at.map(|at| (vec![at], parts.clone()));
            let one = Apply { key: key(shard), rows: rows.clone(), parts: parts.into_iter().collect() };
            store.apply(vec![one], NOW + n as u64).await.unwrap();
            disk.apply(rows, snapshot);
            made[usize::from(shard)] = true;
        }
        match step {
            Step::Apply { count } => {
                let to = (disk.applied_to() + count).min(disk.commit);
                let news: Vec<Position> = (disk.applied_to() + 1..=to).filter_map(|seq| disk.has(seq)).collect();
                disk.applied.extend(news);
                store.set_applied(vec![(key(shard), disk.applied_to())]).await.unwrap();
            }
            Step::Reopen => {
                drop(store);
                store = open(dir.path());
            }
            _ => {}
        }
        for (shard, disk) in (0..).zip(&disks) {
            for tail in [0, 3, 100] {
                let bounds = Bounds { entries: tail, bytes: usize::MAX };
                let found = store.stored(&key(shard), bounds).await.unwrap();
                assert_eq!(found, made[usize::from(shard)].then(|| disk.stored(tail)), "step {n}, tail {tail}");
            }
            let all = store.load(&key(shard), disk.floor.seq + 1, 1_000, usize::MAX).await.unwrap();
            assert_eq!(all, disk.entries.values().cloned().collect::<Vec<_>>());
            for (part, at) in &disk.parts {
                assert_eq!(store.find(&key(shard), *part).await.unwrap(), Some(*at));
            }
            let known = store.parts(&key(shard), u64::MAX).await.unwrap();
            assert_eq!(known, disk.parts.iter().map(|(p, s)| (*p, *s)).collect::<Vec<_>>());
        }
        let bytes: i64 = raw(dir.path())
            .query_row(
                "SELECT coalesce(sum(e.size), 0) FROM entries e JOIN journals j ON e.place >> 40 = j.id",
                [],
                |r| r.get(0),
            )
            .unwrap();
        let listed: u64 = store.list().await.unwrap().0.iter().map(|l| l.bytes).sum();
        assert_eq!(listed.cast_signed(), bytes, "step {n}");
    }
}

/// Whatever is written over, no entry is ever read that was not written, and what a replica begins with holds.
async fn run_damage(table: &str, column: &str, row: u64, value: i64) {
    let sql = format!(
        "UPDATE OR REPLACE {table} SET {column} = CASE typeof({column}) WHEN 'blob' THEN zeroblob(abs({value}) % 99) \
         WHEN 'text' THEN 'x{value}' ELSE {value} END \
         WHERE rowid = (SELECT rowid FROM {table} LIMIT 1 OFFSET {row} % (SELECT count(*) FROM {table}))"
    );
    let sql = if table == "parts" {
        sql.replace("rowid = (SELECT rowid", "(journal, task, part) = (SELECT journal, task, part")
    } else {
        sql
    };
    let (dir, store) = damaged_by(&sql).await;
    let right: Vec<Vec<Entry>> = [
        [rows(1, 3, 3), rows(2, 6, 4), rows(4, 10, 3)].into_iter().flat_map(|r| r.entries).collect(),
        rows(1, 1, 3).entries,
    ]
    .into();
    for shard in 0..2 {
        let from = if shard == 0 { 3 } else { 1 };
        let right = &right[usize::from(shard)];
        if let Ok(found) = store.load(&key(shard), from, 99, usize::MAX).await {
            assert!(found.is_empty() || found == *right, "{sql}");
        }
        for entry in right {
            if let Ok(Some(at)) = store.find(&key(shard), entry.part.unwrap()).await {
                assert_eq!(at, entry.stands(), "{sql}");
            }
        }
        let found = store.stored(&key(shard), ALL).await.unwrap();
        if let Some(found) = found {
            crate::proto::journal::log::Log::new(ALL, found.log.clone(), found.epoch);
            assert!(found.rebuild || found.log.tail == *right, "{sql}: {found:?}");
            assert!(found.log.tail.iter().all(|e| right.contains(e)), "{sql}");
        }
    }
    drop(dir);
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_file_does_what_the_model_does(steps in steps()) {
        block_on(run_steps(steps));
    }

    #[test]
    fn damage_is_never_read_as_something_else(
        place in prop::sample::select(vec![
            ("entries", "place"), ("entries", "epoch"), ("entries", "task"), ("entries", "part"), ("entries", "kind"),
            ("entries", "size"), ("entries", "plain"), ("entries", "hash"), ("entries", "body"), ("epochs", "place"),
            ("epochs", "epoch"), ("epochs", "hash"), ("parts", "seq"), ("parts", "hash"), ("journals", "epoch"),
            ("journals", "floor"), ("journals", "last"), ("journals", "committed"), ("journals", "applied"),
            ("journals", "rebuild"), ("journals", "hash"), ("journals", "shard"),
        ]),
        row in any::<u64>(),
        value in prop_oneof![0_i64..20, any::<i64>()],
    ) {
        block_on(run_damage(place.0, place.1, row / 2, value));
    }
}
