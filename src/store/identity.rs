//! Who this store is: its random id, the number of its starts, and the secret behind QUIC's reset and connection ids.

use rusqlite::{OptionalExtension, Transaction};
use uuid::Uuid;

use super::{Store, StoreError};
use crate::types::MemberId;

/// What a store says of itself after it has been opened for a new process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Made once, with the store.
    pub store: Uuid,
    /// Goes up by one before a new process sends anything; from 1.
    pub start: u64,
    /// 64 secret bytes, the same for every start, so that a restarted process can end its old connections.
    pub reset_secret: Vec<u8>,
}

impl Store {
    /// Counts a new start and returns the store's identity.
    ///
    /// # Errors
    /// [`StoreError::Malformed`] if the store belongs to another member: ids are never reused.
    pub async fn begin_start(&self, member: &MemberId) -> Result<Identity, StoreError> {
        let member = member.as_str().to_owned();
        self.run(move |tx| {
            let owner = text(tx, "member")?;
            if let Some(owner) = owner.filter(|o| *o != member) {
                let reason = format!("it belongs to member {owner}, the config says {member}");
                return Err(StoreError::Malformed { what: "store", reason });
            }
            put(tx, "member", member.as_bytes())?;
            let store = match get(tx, "store")? {
                Some(bytes) => Uuid::from_slice(&bytes)
                    .map_err(|e| StoreError::Malformed { what: "store id", reason: e.to_string() })?,
                None => {
                    let id = Uuid::new_v4();
                    put(tx, "store", id.as_bytes())?;
                    id
                }
            };
            let start = count(tx, "start")? + 1;
            put(tx, "start", &start.to_le_bytes())?;
            let reset_secret = match get(tx, "reset_secret")? {
                Some(secret) if secret.len() == 64 => secret,
                Some(secret) => {
                    let reason = format!("{} bytes instead of 64", secret.len());
                    return Err(StoreError::Malformed { what: "reset secret", reason });
                }
                None => {
                    let secret: Vec<u8> = (0..4).flat_map(|_| Uuid::new_v4().into_bytes()).collect();
                    put(tx, "reset_secret", &secret)?;
                    secret
                }
            };
            Ok(Identity { store, start, reset_secret })
        })
        .await
    }

    /// Counts a start without a new process: gossip that has to begin anew needs a higher generation.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn next_start(&self) -> Result<u64, StoreError> {
        self.run(|tx| {
            let start = count(tx, "start")? + 1;
            put(tx, "start", &start.to_le_bytes())?;
            Ok(start)
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
        .map_err(|_| StoreError::Malformed { what: "counter", reason: format!("{} bytes", bytes.len()) })?;
    Ok(u64::from_le_bytes(bytes))
}

fn text(tx: &Transaction<'_>, key: &str) -> Result<Option<String>, StoreError> {
    let utf8 = |b| String::from_utf8(b).map_err(|e| StoreError::Malformed { what: "text", reason: e.to_string() });
    get(tx, key)?.map(utf8).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn starts_go_up_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let m1 = MemberId::new("m1").unwrap();
        let first = Store::open(dir.path()).unwrap().begin_start(&m1).await.unwrap();
        let store = Store::open(dir.path()).unwrap();
        let second = store.begin_start(&m1).await.unwrap();
        assert_eq!((first.start, second.start), (1, 2));
        assert_eq!((first.store, first.reset_secret), (second.store, second.reset_secret));
        assert_eq!(store.next_start().await.unwrap(), 3);
        assert!(store.begin_start(&MemberId::new("m2").unwrap()).await.is_err());
    }
}
