//! The member's copies of the replicated records. A copy is stored before it is used and never goes back.

use rusqlite::OptionalExtension;

use super::{Store, StoreError};
use crate::types::RecordVersion;
use crate::wire::verbs::RecordCopy;

impl Store {
    /// Every copy.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn records(&self) -> Result<Vec<RecordCopy>, StoreError> {
        self.run(|tx| {
            let mut rows = tx.prepare("SELECT key, version, value FROM records ORDER BY key")?;
            let rows =
                rows.query_map([], |r| Ok((r.get::<_, String>(0)?, r.get::<_, i64>(1)?, r.get::<_, String>(2)?)))?;
            rows.map(|row| {
                let (key, version, value) = row?;
                Ok(RecordCopy { key, version: from_sql(version)?, value })
            })
            .collect()
        })
        .await
    }

    /// Stores those copies that are newer than what is there; returns what stands for each key afterwards.
    ///
    /// Newer is the higher version; of two values with one version the greater text wins, so that all members keep the
    /// same one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_records(&self, copies: Vec<RecordCopy>) -> Result<Vec<RecordCopy>, StoreError> {
        self.run(move |tx| {
            let mut standing = Vec::with_capacity(copies.len());
            for copy in copies {
                let version = to_sql(copy.version)?;
                let sql = "SELECT version, value FROM records WHERE key = ?1";
                let old: Option<(i64, String)> =
                    tx.query_row(sql, [&copy.key], |r| Ok((r.get(0)?, r.get(1)?))).optional()?;
                if old.as_ref().is_none_or(|(v, text)| (*v, text) < (version, &copy.value)) {
                    tx.execute(
                        "INSERT INTO records VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET version = ?2, value = ?3",
                        (&copy.key, version, &copy.value),
                    )?;
                    standing.push(copy);
                } else if let Some((version, value)) = old {
                    standing.push(RecordCopy { key: copy.key, version: from_sql(version)?, value });
                }
            }
            Ok(standing)
        })
        .await
    }
}

fn to_sql(version: RecordVersion) -> Result<i64, StoreError> {
    i64::try_from(version)
        .map_err(|_| StoreError::Malformed { what: "record version", reason: format!("{version} is too large") })
}

fn from_sql(version: i64) -> Result<RecordVersion, StoreError> {
    u64::try_from(version)
        .map_err(|_| StoreError::Malformed { what: "record version", reason: format!("{version} is negative") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(key: &str, version: u64, value: &str) -> RecordCopy {
        RecordCopy { key: key.into(), version, value: value.into() }
    }

    #[tokio::test]
    async fn a_copy_never_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let put = |c| store.put_records(vec![c]);
        assert_eq!(put(copy("names", 2, "b")).await.unwrap(), [copy("names", 2, "b")]);
        for older in [copy("names", 1, "z"), copy("names", 2, "a"), copy("names", 2, "b")] {
            assert_eq!(put(older).await.unwrap(), [copy("names", 2, "b")]);
        }
        assert_eq!(put(copy("names", 2, "c")).await.unwrap(), [copy("names", 2, "c")]);
        assert_eq!(store.records().await.unwrap(), [copy("names", 2, "c")]);
    }
}
