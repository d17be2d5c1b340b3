//! `ledger.sqlite`: votes, copies, and who the store is.
//!
//! Everything that one step of the ledger makes durable is one transaction here. Every row of votes and copies carries a
//! hash of itself, so that what is read is what was written. Must not know: what the rows are for.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rusqlite::types::ValueRef;
use rusqlite::{Row as SqlRow, Transaction};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use uuid::Uuid;

use super::StoreError;
use super::db::{Db, Schema};
use super::identity::{count, get, put, text};
use super::row::{Hash, from_sql, malformed, to_sql};
use crate::proto::ledger::effect::{FormingRow, RecoveringRow};
use crate::proto::ledger::stored::push_process;
use crate::proto::ledger::{Process, Register, Row, Seen, Stored};
use crate::types::limits::{LEDGER_LINE_MAX, RECORD_MAX_BYTES};
use crate::types::{Ballot, MemberId, MeshId, RecordKey, StoreId, Versioned, VoterList};

const SCHEMA: Schema = Schema {
    file: "ledger.sqlite",
    thread: "ledger-store",
    migrations: &["CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
     CREATE TABLE registers (
        key TEXT PRIMARY KEY,
        promise_counter INTEGER, promise_member TEXT, promise_start INTEGER,
        ballot_counter INTEGER, ballot_member TEXT, ballot_start INTEGER,
        version INTEGER, announced INTEGER, value TEXT,
        hash INTEGER NOT NULL
     ) STRICT;
     CREATE TABLE copies (
        key TEXT PRIMARY KEY, version INTEGER NOT NULL, announced INTEGER NOT NULL, value TEXT NOT NULL,
        hash INTEGER NOT NULL
     ) STRICT;
     CREATE TABLE stores (
        store BLOB PRIMARY KEY, seen TEXT NOT NULL
     ) STRICT;"],
    exclusive: true,
    shrinks: false,
};

/// A handle of the ledger's file; cheap to clone.
#[derive(Debug, Clone)]
pub struct LedgerStore(Db);

impl LedgerStore {
    /// Opens `ledger.sqlite` in `dir`, makes it if there is none, checks it and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError`] with the remedy in its text. A damaged file is refused, never replaced; one that another process
    /// has open is refused as well.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Db::open(dir, &SCHEMA).map(Self)
    }

    /// Where the file is.
    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Changes once, when the store has failed for good: the member must leave service.
    pub fn fatal(&self) -> watch::Receiver<Option<StoreError>> {
        self.0.fatal()
    }

    /// Everything that is stored. An empty file becomes the store of `member`, under an id drawn now.
    ///
    /// # Errors
    /// [`StoreError::OtherMember`]; [`StoreError::Malformed`] for anything that is not what was written.
    pub(super) async fn load(&self, member: &MemberId) -> Result<Stored, StoreError> {
        let (path, member) = (self.path().to_owned(), member.as_str().to_owned());
        self.0
            .run(move |tx| {
                match text(tx, "member")? {
                    Some(owner) if owner != member => return Err(StoreError::OtherMember { path, owner, member }),
                    Some(_) => {}
                    None => put(tx, "member", member.as_bytes())?,
                }
                if get(tx, "store")?.is_none() {
                    let store = StoreId(*Uuid::new_v4().as_bytes());
                    put(tx, "store", &store.0)?;
                    put_count(tx, "start", store.first_start())?;
                }
                read(tx)
            })
            .await
    }

    /// Counts a start and a transaction, and gives everything that is stored, for the process that begins now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) async fn begin(&self) -> Result<Stored, StoreError> {
        self.0
            .run(|tx| {
                let mut stored = read(tx)?;
                stored.begin();
                put_count(tx, "start", stored.start)?;
                put_count(tx, "count", stored.count)?;
                Ok(stored)
            })
            .await
    }

    /// Makes the rows of one step durable, all or none.
    ///
    /// # Errors
    /// [`StoreError`]; the core that asked is ahead of its store then and must not be used any more.
    pub async fn commit(&self, rows: Vec<Row>) -> Result<(), StoreError> {
        self.0.run(move |tx| rows.into_iter().try_for_each(|row| write(tx, row))).await
    }

    /// The bootstrap list that an operator gave to this member while it belonged to no mesh, as JSON.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn bootstrap(&self) -> Result<Option<String>, StoreError> {
        self.0.run(|tx| text(tx, "bootstrap")).await
    }

    /// From now on the file does not grow any more, as on a full disk.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn fill_for_test(&self) -> Result<(), StoreError> {
        self.0
            .run(|tx| {
                tx.query_row("PRAGMA max_page_count = 1", [], |row| row.get::<_, i64>(0))?;
                Ok(())
            })
            .await
    }

    /// Notes what [`LedgerStore::bootstrap`] gives.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_bootstrap(&self, list: String) -> Result<(), StoreError> {
        self.0.run(move |tx| put(tx, "bootstrap", list.as_bytes())).await
    }
}

fn put_count(tx: &Transaction<'_>, key: &str, n: u64) -> Result<(), StoreError> {
    put(tx, key, &n.to_le_bytes())
}

fn get_json<T: DeserializeOwned>(tx: &Transaction<'_>, key: &'static str) -> Result<Option<T>, StoreError> {
    get(tx, key)?.map(|bytes| serde_json::from_slice(&bytes).map_err(|e| malformed(key, e))).transpose()
}

fn put_json<T: Serialize>(tx: &Transaction<'_>, key: &'static str, value: &T) -> Result<(), StoreError> {
    put(tx, key, &serde_json::to_vec(value).map_err(|e| malformed(key, e))?)
}

/// Takes in one row.
fn write(tx: &Transaction<'_>, row: Row) -> Result<(), StoreError> {
    match row {
        Row::Count(count) => put_count(tx, "count", count),
        Row::Mesh { mesh, made } => {
            let mut bytes = mesh.0.to_vec();
            bytes.push(made.into());
            put(tx, "mesh", &bytes)
        }
        Row::List(list) => put_json(tx, "list", &*list),
        Row::Promise { key, ballot } => {
            let mut register = read_register(tx, &key)?.unwrap_or_default();
            register.promise = Some(ballot);
            write_register(tx, &key, &register)
        }
        Row::Accepted { key, promise, ballot, record } => {
            write_register(tx, &key, &Register { promise: Some(promise), accepted: Some((ballot, record)) })
        }
        Row::Copy { key, record } => write_copy(tx, &key, &record),
        Row::Seen(seen) => {
            let text = serde_json::to_string(&seen).map_err(|e| malformed("store of a member", e))?;
            tx.prepare_cached("INSERT OR REPLACE INTO stores VALUES (?1, ?2)")?.execute((seen.store.0, text))?;
            Ok(())
        }
        Row::Unseen(store) => {
            tx.prepare_cached("DELETE FROM stores WHERE store = ?1")?.execute([store.0])?;
            Ok(())
        }
        Row::Forming(row) => put_json(tx, "forming", &row),
        Row::Recovering(row) => put_json(tx, "recovering", &row),
        Row::Reset => {
            tx.execute_batch("DELETE FROM registers; DELETE FROM meta WHERE key IN ('list', 'recovering');")?;
            Ok(())
        }
        Row::Began(process) => {
            let mut line: Vec<Process> = get_json(tx, "line")?.unwrap_or_default();
            push_process(&mut line, process);
            put_json(tx, "line", &line)
        }
        Row::RolledBack => put(tx, "rolled_back", &[1]),
    }
}

const REGISTER: &str = "SELECT key, promise_counter, promise_member, promise_start, ballot_counter, ballot_member, \
                        ballot_start, version, announced, value, hash FROM registers";

fn read_register(tx: &Transaction<'_>, key: &RecordKey) -> Result<Option<Register>, StoreError> {
    let mut found = tx.prepare_cached(&format!("{REGISTER} WHERE key = ?1"))?;
    let mut rows = found.query([key.as_str()])?;
    rows.next()?.map(|row| register_of(row).map(|(_, register)| register)).transpose()
}

fn register_of(row: &SqlRow<'_>) -> Result<(RecordKey, Register), StoreError> {
    check_hash("register", row, 10)?;
    let key = key_of(row)?;
    let promise = ballot_of(row, 1)?;
    let accepted = match ballot_of(row, 4)? {
        Some(ballot) => Some((ballot, record_of(row, 7)?)),
        None => None,
    };
    if accepted.as_ref().is_some_and(|(ballot, _)| promise.as_ref() < Some(ballot)) {
        return Err(malformed("register", format!("{key} has accepted more than it promised")));
    }
    Ok((key, Register { promise, accepted }))
}

fn write_register(tx: &Transaction<'_>, key: &RecordKey, register: &Register) -> Result<(), StoreError> {
    let mut parts = Parts::new(key);
    parts.ballot(register.promise.as_ref())?;
    parts.ballot(register.accepted.as_ref().map(|(ballot, _)| ballot))?;
    parts.record(register.accepted.as_ref().map(|(_, record)| record))?;
    let sql = "INSERT OR REPLACE INTO registers VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
    parts.insert(tx, sql)
}

fn copy_of(row: &SqlRow<'_>) -> Result<(RecordKey, Versioned), StoreError> {
    check_hash("copy", row, 4)?;
    Ok((key_of(row)?, record_of(row, 1)?))
}

fn write_copy(tx: &Transaction<'_>, key: &RecordKey, record: &Versioned) -> Result<(), StoreError> {
    let mut parts = Parts::new(key);
    parts.record(Some(record))?;
    parts.insert(tx, "INSERT OR REPLACE INTO copies VALUES (?1, ?2, ?3, ?4, ?5)")
}

/// The columns of a row as they are written; the last one is their hash.
struct Parts<'a>(Vec<ValueRef<'a>>);

impl<'a> Parts<'a> {
    fn new(key: &'a RecordKey) -> Self {
        Self(vec![ValueRef::from(key.as_str())])
    }

    fn ballot(&mut self, ballot: Option<&'a Ballot>) -> Result<(), StoreError> {
        match ballot {
            Some(b) => self.0.extend([
                ValueRef::Integer(to_sql(b.counter)?),
                ValueRef::from(b.member.as_str()),
                ValueRef::Integer(to_sql(b.start)?),
            ]),
            None => self.0.extend([ValueRef::Null; 3]),
        }
        Ok(())
    }

    fn record(&mut self, record: Option<&'a Versioned>) -> Result<(), StoreError> {
        match record {
            Some(r) => {
                check_record(r.version, r.announced, &r.value)?;
                self.0.extend([
                    ValueRef::Integer(to_sql(r.version)?),
                    ValueRef::Integer(to_sql(r.announced)?),
                    ValueRef::from(&*r.value),
                ]);
            }
            None => self.0.extend([ValueRef::Null; 3]),
        }
        Ok(())
    }

    fn insert(self, tx: &Transaction<'_>, sql: &str) -> Result<(), StoreError> {
        let mut hash = Hash::default();
        self.0.iter().for_each(|value| hash.add(*value));
        let values = self.0.into_iter().chain([ValueRef::Integer(hash.value())]);
        let values = values.map(rusqlite::types::ToSqlOutput::Borrowed);
        tx.prepare_cached(sql)?.execute(rusqlite::params_from_iter(values))?;
        Ok(())
    }
}

/// Compares a row's hash, in column `at`, with all before it.
fn check_hash(what: &'static str, row: &SqlRow<'_>, at: usize) -> Result<(), StoreError> {
    let mut hash = Hash::default();
    for column in 0..at {
        hash.add(row.get_ref(column)?);
    }
    if row.get::<_, i64>(at)? == hash.value() {
        return Ok(());
    }
    let key = row.get::<_, String>(0).unwrap_or_default();
    Err(malformed(
        what,
        format!("{key} is not what was written; move the store away and start again with an empty one"),
    ))
}

fn key_of(row: &SqlRow<'_>) -> Result<RecordKey, StoreError> {
    RecordKey::new(row.get::<_, String>(0)?).map_err(|e| malformed("record key", e))
}

fn ballot_of(row: &SqlRow<'_>, at: usize) -> Result<Option<Ballot>, StoreError> {
    let Some(counter) = row.get::<_, Option<i64>>(at)? else { return Ok(None) };
    let member = MemberId::new(row.get::<_, String>(at + 1)?).map_err(|e| malformed("ballot", e))?;
    Ok(Some(Ballot { counter: from_sql(counter)?, member, start: from_sql(row.get(at + 2)?)? }))
}

fn record_of(row: &SqlRow<'_>, at: usize) -> Result<Versioned, StoreError> {
    let (version, announced) = (from_sql(row.get(at)?)?, from_sql(row.get(at + 1)?)?);
    let value: Arc<str> = row.get::<_, String>(at + 2)?.into();
    check_record(version, announced, &value)?;
    Ok(Versioned { version, announced, value })
}

fn check_record(version: u64, announced: u64, value: &str) -> Result<(), StoreError> {
    if version >= 1 && (1..=version).contains(&announced) && value.len() <= RECORD_MAX_BYTES {
        return Ok(());
    }
    Err(malformed("record", format!("version {version}, announced {announced}, {} bytes", value.len())))
}

/// Everything in the file.
fn read(tx: &Transaction<'_>) -> Result<Stored, StoreError> {
    let store = get(tx, "store")?.unwrap_or_default();
    let store = store.try_into().map_err(|_| malformed("store id", "it has not 16 bytes"))?;
    let list: Option<Arc<VoterList>> = get_json(tx, "list")?;
    if list.as_ref().is_some_and(|l| !l.is_well_formed()) {
        return Err(malformed("list", "it is no voter list"));
    }
    let forming: Option<FormingRow> = get_json(tx, "forming")?;
    let recovering: Option<RecoveringRow> = get_json(tx, "recovering")?;
    Ok(Stored {
        start: count(tx, "start")?,
        count: count(tx, "count")?,
        mesh: get(tx, "mesh")?.map(|bytes| mesh_of(&bytes)).transpose()?,
        list,
        registers: all(tx, REGISTER, register_of)?,
        copies: all(tx, "SELECT key, version, announced, value, hash FROM copies", copy_of)?,
        seen: all(tx, "SELECT store, seen FROM stores", seen_of)?,
        line: get_json(tx, "line")?.unwrap_or_default(),
        forming,
        recovering,
        rolled_back: get(tx, "rolled_back")?.is_some(),
        ..Stored::new(StoreId(store))
    })
}

fn all<K: Ord, V>(
    tx: &Transaction<'_>,
    sql: &str,
    read: impl Fn(&SqlRow<'_>) -> Result<(K, V), StoreError>,
) -> Result<BTreeMap<K, V>, StoreError> {
    let mut found = tx.prepare(sql)?;
    let mut rows = found.query([])?;
    let mut out = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let (key, value) = read(row)?;
        out.insert(key, value);
    }
    Ok(out)
}

fn mesh_of(bytes: &[u8]) -> Result<(MeshId, bool), StoreError> {
    match bytes.split_last() {
        Some((made @ (0 | 1), id)) => {
            let id = id.try_into().map_err(|_| malformed("mesh id", "it has not 16 bytes"))?;
            Ok((MeshId(id), *made == 1))
        }
        _ => Err(malformed("mesh id", "it is not what was written")),
    }
}

fn seen_of(row: &SqlRow<'_>) -> Result<(StoreId, Seen), StoreError> {
    let store = StoreId(row.get::<_, [u8; 16]>(0)?);
    let seen: Seen = serde_json::from_str(&row.get::<_, String>(1)?).map_err(|e| malformed("store of a member", e))?;
    if seen.store != store || seen.line.len() > LEDGER_LINE_MAX + 1 {
        return Err(malformed("store of a member", format!("{store} is not what was written")));
    }
    Ok((store, seen))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::ledger::message::RoundId;
    use crate::types::Voter;

    fn member(id: &str) -> MemberId {
        MemberId::new(id).unwrap()
    }

    fn open(dir: &Path) -> LedgerStore {
        LedgerStore::open(dir).unwrap()
    }

    fn key() -> impl Strategy<Value = RecordKey> {
        "[a-c]".prop_map(|k| RecordKey::new(k.as_str()).unwrap())
    }

    fn ballot() -> impl Strategy<Value = Ballot> {
        (0..9_u64, "[a-c]", 1..4_u64).prop_map(|(counter, m, start)| Ballot { counter, member: member(&m), start })
    }

    fn record() -> impl Strategy<Value = Versioned> {
        (1..50_u64, any::<u64>(), ".{0,20}").prop_map(|(version, announced, value)| Versioned {
            version,
            announced: 1 + announced % version,
            value: value.into(),
        })
    }

    fn round() -> impl Strategy<Value = RoundId> {
        (1..9_u64, 0..9_u64).prop_map(|(start, number)| RoundId { start, number })
    }

    fn process() -> impl Strategy<Value = Process> {
        (1..9_u64, any::<u64>(), 0..9_u64).prop_map(|(start, nonce, began)| Process { start, nonce, began })
    }

    fn row() -> impl Strategy<Value = Row> {
        let store = || (0..3_u8).prop_map(|n| StoreId([n; 16]));
        let mesh = || (1..3_u8).prop_map(|n| MeshId([n; 16]));
        prop_oneof![
            (1..99_u64).prop_map(Row::Count),
            (mesh(), any::<bool>()).prop_map(|(mesh, made)| Row::Mesh { mesh, made }),
            (1..9_u64).prop_map(|number| {
                let voters = vec![Voter { member: member("m1"), store: StoreId([1; 16]) }];
                Row::List(Arc::new(VoterList::new(number, voters)))
            }),
            (key(), ballot()).prop_map(|(key, mut ballot)| {
                // Above all that is accepted, as an acceptor promises.
                ballot.counter += 100;
                Row::Promise { key, ballot }
            }),
            (key(), ballot(), record()).prop_map(|(key, ballot, record)| Row::Accepted {
                key,
                promise: ballot.next(),
                ballot,
                record
            }),
            (key(), record()).prop_map(|(key, record)| Row::Copy { key, record }),
            (store(), process(), 0..9_u64, any::<bool>()).prop_map(|(store, process, count, rolled_back)| {
                Row::Seen(Seen { line: vec![process], count, rolled_back, ..Seen::new(store) })
            }),
            process().prop_map(Row::Began),
            store().prop_map(Row::Unseen),
            ("[a-c]", store(), round(), 0..9_u64).prop_map(|(m, store, round, number)| Row::Forming(FormingRow {
                member: member(&m),
                store,
                round,
                number
            })),
            (mesh(), mesh()).prop_map(|(old, new)| Row::Recovering(RecoveringRow {
                old,
                new,
                leader: member("a"),
                survivors: [member("a")].into(),
            })),
            Just(Row::Reset),
            Just(Row::RolledBack),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn what_is_read_is_what_the_rows_say(steps in prop::collection::vec(prop::collection::vec(row(), 0..6), 0..8)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let dir = tempfile::tempdir().unwrap();
                let ledger = open(dir.path());
                let mut expected = ledger.load(&member("m1")).await.unwrap();
                for rows in steps {
                    rows.iter().cloned().for_each(|row| expected.apply(row));
                    ledger.commit(rows).await.unwrap();
                }
                drop(ledger);
                let ledger = open(dir.path());
                prop_assert_eq!(&ledger.load(&member("m1")).await.unwrap(), &expected);
                expected.begin();
                prop_assert_eq!(&ledger.begin().await.unwrap(), &expected);
                Ok(())
            })?;
        }
    }

    fn accepted(key: &str, version: u64) -> Row {
        let ballot = Ballot { counter: version, member: member("m1"), start: 1 };
        let record = Versioned { version, announced: version, value: format!("{{\"v\":{version}}}").into() };
        Row::Accepted { key: RecordKey::new(key).unwrap(), promise: ballot.next(), ballot, record }
    }

    #[tokio::test]
    async fn a_step_is_stored_as_a_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path());
        let before = ledger.load(&member("m1")).await.unwrap();
        let too_large: Arc<str> = "x".repeat(RECORD_MAX_BYTES + 1).into();
        let bad = Row::Copy {
            key: RecordKey::new("b").unwrap(),
            record: Versioned { version: 1, announced: 1, value: too_large },
        };
        assert!(ledger.commit(vec![Row::Count(7), accepted("a", 1), bad]).await.is_err());
        drop(ledger);
        assert_eq!(open(dir.path()).load(&member("m1")).await.unwrap(), before);
    }

    #[tokio::test]
    async fn what_is_not_committed_when_the_process_ends_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path());
        let mut expected = ledger.load(&member("m1")).await.unwrap();
        ledger.commit(vec![Row::Count(1), accepted("a", 1)]).await.unwrap();
        [Row::Count(1), accepted("a", 1)].into_iter().for_each(|row| expected.apply(row));
        drop(ledger);
        // A process that was killed inside a transaction leaves its pages in the log, without a commit.
        let copy = tempfile::tempdir().unwrap();
        let conn = rusqlite::Connection::open(dir.path().join(SCHEMA.file)).unwrap();
        conn.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA cache_spill = 1; PRAGMA cache_size = 1; BEGIN IMMEDIATE;",
        )
        .unwrap();
        for n in 0..500 {
            conn.execute("INSERT INTO stores VALUES (randomblob(16), ?1)", [n]).unwrap();
        }
        for file in std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap()) {
            std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
        }
        drop(conn);
        assert_eq!(open(copy.path()).load(&member("m1")).await.unwrap(), expected);
    }

    #[tokio::test]
    async fn a_row_that_changed_on_the_disk_is_refused() {
        for (table, change) in [
            ("registers", "value = '{\"v\":9}'"),
            ("registers", "promise_counter = 1"),
            ("registers", "key = 'other'"),
            ("copies", "version = 2"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let ledger = open(dir.path());
            ledger.load(&member("m1")).await.unwrap();
            let record = Versioned { version: 1, announced: 1, value: "1".into() };
            let copy = Row::Copy { key: RecordKey::new("a").unwrap(), record };
            ledger.commit(vec![accepted("a", 3), copy]).await.unwrap();
            drop(ledger);
            let conn = rusqlite::Connection::open(dir.path().join(SCHEMA.file)).unwrap();
            conn.busy_timeout(std::time::Duration::from_secs(5)).unwrap();
            assert_eq!(conn.execute(&format!("UPDATE {table} SET {change}"), []).unwrap(), 1);
            drop(conn);
            let error = open(dir.path()).load(&member("m1")).await.unwrap_err();
            assert!(matches!(error, StoreError::Malformed { .. }) && error.is_fatal(), "{table} {change}: {error}");
        }
    }

    #[tokio::test]
    async fn a_damaged_file_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SCHEMA.file);
        let notes = b"not a database ".repeat(600);
        std::fs::write(&path, &notes).unwrap();
        let error = LedgerStore::open(dir.path()).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), notes);
    }

    #[tokio::test]
    async fn two_processes_do_not_share_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path());
        ledger.load(&member("m1")).await.unwrap();
        let error = LedgerStore::open(dir.path()).unwrap_err();
        assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    }
}
