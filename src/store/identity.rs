//! Who this store is, and that its three files belong together.
//!
//! The ledger's file holds the store's random id and the number of its starts; the member's own file and the journals' note
//! both. A start is counted in three steps: the two say that start *n* begins, the ledger's file counts it, the two say that
//! it has begun. So at every instant the ledger's number is one of the two in each of the others, and a file that comes from
//! an earlier start, or from another store, is told by its numbers. What this can't tell, all files put back together or one
//! of them within the same start, the peers do: they remember each store's count of transactions (`proto::ledger`).

use rusqlite::{OptionalExtension, Transaction};
use uuid::Uuid;

use super::db::Db;
use super::{JournalStore, LedgerStore, Store, StoreError};
use crate::proto::ledger::Stored;
use crate::types::{MemberId, MeshId, StoreId};

/// What a store says of itself after it has been opened for a new process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Drawn with the ledger's file.
    pub store: StoreId,
    /// Goes up by one before a new process sends anything; a new store's numbers are no other store's.
    pub start: u64,
    /// 64 secret bytes, the same for every start, so that a restarted process can end its old connections.
    pub reset_secret: Vec<u8>,
}

/// Counts a new start in all files, and returns who the store is with the ledger's state.
///
/// # Errors
/// [`StoreError::OtherMember`], and [`StoreError::Mismatch`] for files that do not belong together; nothing was counted
/// then.
pub async fn begin(
    store: &Store,
    ledger: &LedgerStore,
    journals: &JournalStore,
    member: &MemberId,
) -> Result<(Identity, Stored), StoreError> {
    let found = ledger.load(member).await?;
    let reset_secret = note_beginnings(store, ledger, journals, member, &found).await?;
    let stored = ledger.begin().await?;
    let start = stored.start;
    journals.db().run(move |tx| put(tx, "start", &start.to_le_bytes())).await?;
    store
        .run(move |tx| {
            put(tx, "start", &start.to_le_bytes())?;
            put(tx, "journals", &[1])
        })
        .await?;
    Ok((Identity { store: stored.store, start, reset_secret }, stored))
}

/// Checks that the files lie beside each other as they were, and notes in both others that the ledger's next start begins.
async fn note_beginnings(
    store: &Store,
    ledger: &LedgerStore,
    journals: &JournalStore,
    member: &MemberId,
    found: &Stored,
) -> Result<Vec<u8>, StoreError> {
    note_beginning(store.db(), ledger, member, found, false).await?;
    let (reset_secret, has_journals) = store.run(|tx| Ok((reset_secret(tx)?, get(tx, "journals")?.is_some()))).await?;
    // A store that is older than the file of journals gets one.
    note_beginning(journals.db(), ledger, member, found, !has_journals).await?;
    Ok(reset_secret)
}

/// Checks that `file` lies beside its own ledger file and notes that the next start begins.
async fn note_beginning(
    file: &Db,
    ledger: &LedgerStore,
    member: &MemberId,
    found: &Stored,
    may_be_new: bool,
) -> Result<(), StoreError> {
    let (own, other, member) = (file.path().to_owned(), ledger.path().to_owned(), member.as_str().to_owned());
    let (id, started) = (found.store, found.start);
    file.run(move |tx| {
        let mismatch = |reason: String| Err(StoreError::Mismatch { file: own.clone(), other, reason });
        match text(tx, "member")? {
            Some(owner) if owner != member => return Err(StoreError::OtherMember { path: own, owner, member }),
            Some(_) => {}
            None => put(tx, "member", member.as_bytes())?,
        }
        match get(tx, "store")? {
            None if may_be_new || started == id.first_start() => {
                put(tx, "store", &id.0)?;
                put(tx, "start", &started.to_le_bytes())?;
            }
            None => {
                let starts = started.saturating_sub(id.first_start());
                return mismatch(format!("it is new, the other one has seen {starts} starts"));
            }
            Some(noted) if noted == id.0 => {}
            Some(_) => return mismatch("they name different stores".to_owned()),
        }
        let (begun, beginning) = (count(tx, "start")?, count(tx, "starting")?);
        if started != begun && started != beginning {
            return mismatch(format!("it is of start {begun}, the other one of start {started}"));
        }
        put(tx, "start", &started.to_le_bytes())?;
        put(tx, "starting", &(started + 1).to_le_bytes())
    })
    .await
}

fn reset_secret(tx: &Transaction<'_>) -> Result<Vec<u8>, StoreError> {
    match get(tx, "reset_secret")? {
        Some(secret) if secret.len() == 64 => Ok(secret),
        Some(secret) => {
            let reason = format!("{} bytes instead of 64", secret.len());
            Err(StoreError::Malformed { what: "reset secret", reason })
        }
        None => {
            let secret: Vec<u8> = (0..4).flat_map(|_| Uuid::new_v4().into_bytes()).collect();
            put(tx, "reset_secret", &secret)?;
            Ok(secret)
        }
    }
}

impl Store {
    /// Whether this member's copies of the mesh's records have been the newest once.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn was_whole(&self, mesh: MeshId) -> Result<bool, StoreError> {
        self.run(move |tx| Ok(get(tx, "whole")?.is_some_and(|noted| noted == mesh.0))).await
    }

    /// Notes that they are.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn note_whole(&self, mesh: MeshId) -> Result<(), StoreError> {
        self.run(move |tx| put(tx, "whole", &mesh.0)).await
    }

    /// A number for gossip that is above all it had before, of this store and, as far as the clock is right, of the
    /// member's earlier ones: peers ignore what comes under a lower one. `now`: seconds since 1970.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn next_gossip_generation(&self, now: u64) -> Result<u64, StoreError> {
        self.run(move |tx| {
            let next = now.max(count(tx, "gossip_generation")?.saturating_add(1));
            put(tx, "gossip_generation", &next.to_le_bytes())?;
            Ok(next)
        })
        .await
    }
}

pub(super) fn get(tx: &Transaction<'_>, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(tx.query_row("SELECT value FROM meta WHERE key = ?1", [key], |r| r.get(0)).optional()?)
}

pub(super) fn put(tx: &Transaction<'_>, key: &str, value: &[u8]) -> Result<(), StoreError> {
    tx.execute("INSERT INTO meta VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2", (key, value))?;
    Ok(())
}

pub(super) fn count(tx: &Transaction<'_>, key: &str) -> Result<u64, StoreError> {
    let Some(bytes) = get(tx, key)? else { return Ok(0) };
    let bytes = <[u8; 8]>::try_from(bytes.as_slice())
        .map_err(|_| StoreError::Malformed { what: "counter", reason: format!("{key} has {} bytes", bytes.len()) })?;
    Ok(u64::from_le_bytes(bytes))
}

pub(super) fn text(tx: &Transaction<'_>, key: &str) -> Result<Option<String>, StoreError> {
    let utf8 = |b| String::from_utf8(b).map_err(|e| StoreError::Malformed { what: "text", reason: e.to_string() });
    get(tx, key)?.map(utf8).transpose()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const FILES: [&str; 3] = ["miroir.sqlite", "ledger.sqlite", "journal.sqlite"];

    async fn start(dir: &Path) -> Result<Identity, StoreError> {
        start_as(dir, "m1").await
    }

    async fn start_as(dir: &Path, member: &str) -> Result<Identity, StoreError> {
        let (ledger, store) = (LedgerStore::open(dir)?, Store::open(dir)?);
        let journals = JournalStore::open(dir, &ledger)?;
        begin(&store, &ledger, &journals, &MemberId::new(member).unwrap()).await.map(|(identity, _)| identity)
    }

    /// Copies one of the files as it is on the disk; its writer must have gone.
    fn keep(dir: &Path, file: &str) -> Vec<u8> {
        let path = dir.join(file);
        let conn = rusqlite::Connection::open(&path).unwrap();
        conn.pragma_update(None, "wal_checkpoint", "TRUNCATE").unwrap();
        drop(conn);
        std::fs::read(path).unwrap()
    }

    #[tokio::test]
    async fn starts_go_up_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let first = start(dir.path()).await.unwrap();
        let second = start(dir.path()).await.unwrap();
        let before = first.store.first_start();
        assert_eq!((first.start, second.start), (before + 1, before + 2));
        assert_eq!((first.store, first.reset_secret), (second.store, second.reset_secret));
        assert!(matches!(start_as(dir.path(), "m2").await, Err(StoreError::OtherMember { .. })));
        assert_eq!(start(dir.path()).await.unwrap().start, before + 3);
    }

    #[tokio::test]
    async fn one_file_of_an_earlier_start_does_not_get_through() {
        for file in FILES {
            let dir = tempfile::tempdir().unwrap();
            start(dir.path()).await.unwrap();
            let old = keep(dir.path(), file);
            start(dir.path()).await.unwrap();
            keep(dir.path(), file);
            std::fs::write(dir.path().join(file), old).unwrap();
            let error = start(dir.path()).await.unwrap_err();
            assert!(matches!(error, StoreError::Mismatch { .. }), "{file}: {error}");
            assert!(error.to_string().contains("move the whole directory away"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_missing_or_foreign_file_does_not_get_through() {
        for file in FILES {
            let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            for dir in [&dir, &other] {
                start(dir.path()).await.unwrap();
            }
            let foreign = keep(other.path(), file);
            keep(dir.path(), file);
            std::fs::write(dir.path().join(file), foreign).unwrap();
            assert!(matches!(start(dir.path()).await, Err(StoreError::Mismatch { .. })), "{file} of another store");
            std::fs::remove_file(dir.path().join(file)).unwrap();
            assert!(matches!(start(dir.path()).await, Err(StoreError::Mismatch { .. })), "no {file}");
        }
    }

    #[tokio::test]
    async fn a_start_that_was_cut_off_anywhere_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let m1 = MemberId::new("m1").unwrap();
        // After the ledger's file was made.
        let made = LedgerStore::open(dir.path()).unwrap().load(&m1).await.unwrap();
        assert_eq!(start(dir.path()).await.unwrap().start, made.start + 1);
        // After one file noted the beginning, after both did, and after the ledger's file counted.
        for steps in 0..3 {
            let (ledger, store) = (LedgerStore::open(dir.path()).unwrap(), Store::open(dir.path()).unwrap());
            let journals = JournalStore::open(dir.path(), &ledger).unwrap();
            let found = ledger.load(&m1).await.unwrap();
            note_beginning(store.db(), &ledger, &m1, &found, false).await.unwrap();
            if steps > 0 {
                note_beginning(journals.db(), &ledger, &m1, &found, false).await.unwrap();
            }
            if steps > 1 {
                ledger.begin().await.unwrap();
            }
            drop((ledger, store, journals));
            assert_eq!(start(dir.path()).await.unwrap().start, found.start + 1 + u64::from(steps > 1));
        }
    }

    #[tokio::test]
    async fn a_store_that_is_older_than_the_file_of_journals_gets_one() {
        let dir = tempfile::tempdir().unwrap();
        let first = start(dir.path()).await.unwrap();
        for file in FILES {
            keep(dir.path(), file);
        }
        std::fs::remove_file(dir.path().join("journal.sqlite")).unwrap();
        Store::open(dir.path())
            .unwrap()
            .run(|tx| Ok(tx.execute("DELETE FROM meta WHERE key = 'journals'", [])?))
            .await
            .unwrap();
        assert_eq!(start(dir.path()).await.unwrap().start, first.start + 1);
        assert_eq!(start(dir.path()).await.unwrap().start, first.start + 2);
    }

    #[tokio::test]
    async fn a_generation_of_gossip_is_above_all_before() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.next_gossip_generation(100).await.unwrap(), 100);
        assert_eq!(store.next_gossip_generation(100).await.unwrap(), 101);
        assert_eq!(store.next_gossip_generation(7).await.unwrap(), 102);
        assert_eq!(store.next_gossip_generation(200).await.unwrap(), 200);
    }
}
