//! What this member has done on its own node: which physical indexes it made, and of which shards they hold documents.

use std::collections::BTreeMap;

use rusqlite::Transaction;

use super::{Store, StoreError};
use crate::types::{PhysicalIndex, ShardId, ShardSet};

/// One physical index on the own node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalIndex {
    /// This member told the node to make it, so it may also delete it.
    pub made: bool,
    /// The shards of which the node may hold a document.
    pub held: ShardSet,
}

impl Store {
    /// Every physical index that this member has touched.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn local_indexes(&self) -> Result<BTreeMap<PhysicalIndex, LocalIndex>, StoreError> {
        self.run(|tx| {
            let mut rows = tx.prepare("SELECT physical, made, held FROM local_indexes")?;
            let rows =
                rows.query_map([], |r| Ok((r.get::<_, String>(0)?, r.get::<_, bool>(1)?, r.get::<_, String>(2)?)))?;
            rows.map(|row| {
                let (physical, made, held) = row?;
                let malformed = |reason: String| StoreError::Malformed { what: "local index", reason };
                let physical = PhysicalIndex::new(physical).map_err(|e| malformed(e.to_string()))?;
                let held = held
                    .split(',')
                    .filter(|s| !s.is_empty())
                    .map(|s| s.parse().map(ShardId).map_err(|_| malformed(format!("`{s}` is no shard"))))
                    .collect::<Result<_, _>>()?;
                Ok((physical, LocalIndex { made, held }))
            })
            .collect()
        })
        .await
    }

    /// Notes the state of one physical index.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_local_index(&self, physical: &PhysicalIndex, local: &LocalIndex) -> Result<(), StoreError> {
        let (physical, made, held) = (physical.as_str().to_owned(), local.made, local.held.to_string());
        self.run(move |tx| {
            tx.execute(
                "INSERT INTO local_indexes VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET made = ?2, held = ?3",
                (physical, made, held),
            )?;
            Ok(())
        })
        .await
    }

    /// Forgets a physical index that is gone from the node.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn forget_local_index(&self, physical: &PhysicalIndex) -> Result<(), StoreError> {
        let physical = physical.as_str().to_owned();
        let forget = move |tx: &Transaction<'_>| {
            tx.execute("DELETE FROM local_indexes WHERE physical = ?1", [physical])?;
            Ok(())
        };
        self.run(forget).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reads_what_was_noted() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let index = PhysicalIndex::new("a__m00000001").unwrap();
        let local = LocalIndex { made: true, held: [ShardId(3), ShardId(700)].into_iter().collect() };
        store.put_local_index(&index, &LocalIndex::default()).await.unwrap();
        store.put_local_index(&index, &local).await.unwrap();
        assert_eq!(store.local_indexes().await.unwrap(), BTreeMap::from([(index.clone(), local)]));
        store.forget_local_index(&index).await.unwrap();
        assert_eq!(store.local_indexes().await.unwrap(), BTreeMap::new());
    }
}
