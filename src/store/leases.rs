//! The highest epoch of each scope, which fences stale leaders off, and the tables of leases and operations for people.
//!
//! Rule: an epoch never goes back. Must not know: when a lease may be taken.

use super::{Store, StoreError};
use crate::types::limits::OPERATIONS_PAST_MAX;
use crate::types::{Epoch, MemberId, OperationEntry, Scope};

/// Operations of one scope that are shown: the last ones that its record keeps, and the one under way.
const SHOWN: i64 = OPERATIONS_PAST_MAX as i64 + 1;

/// A line of `leader_lease`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseLine {
    /// The scope.
    pub scope: Scope,
    /// Whose it is; `None`: it was given back.
    pub holder: Option<MemberId>,
    /// Under which epoch.
    pub epoch: Epoch,
    /// Until when unless it is renewed, RFC 3339.
    pub expires_at: Option<String>,
}

impl Store {
    /// The highest epochs that were stored.
    ///
    /// # Errors
    /// [`StoreError`]; `Malformed` for what no member ever wrote.
    pub async fn fences(&self) -> Result<Vec<(Scope, Epoch)>, StoreError> {
        self.run(|tx| {
            let mut rows = tx.prepare("SELECT scope, epoch FROM fences")?;
            let rows = rows.query_map([], |r| Ok((r.get::<_, String>(0)?, r.get::<_, i64>(1)?)))?;
            rows.map(|row| {
                let (scope, epoch) = row?;
                let malformed = |reason: String| StoreError::Malformed { what: "fence", reason };
                let number = u64::try_from(epoch).ok().and_then(Epoch::new);
                let number = number.ok_or_else(|| malformed(format!("the epoch {epoch} of {scope}")))?;
                Ok((scope.parse::<Scope>().map_err(|e| malformed(e.to_string()))?, number))
            })
            .collect()
        })
        .await
    }

    /// Stores highest epochs, all or none; a lower one than is stored changes nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn raise_fences(&self, fences: Vec<(Scope, Epoch)>) -> Result<(), StoreError> {
        self.run(move |tx| {
            let mut put = tx.prepare_cached(
                "INSERT INTO fences VALUES (?1, ?2) ON CONFLICT DO UPDATE SET epoch = max(epoch, excluded.epoch)",
            )?;
            for (scope, epoch) in &fences {
                put.execute((scope.to_string(), sql(*epoch)))?;
            }
            Ok(())
        })
        .await
    }

    /// Replaces the table that people look at.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn show_leases(&self, lines: Vec<LeaseLine>) -> Result<(), StoreError> {
        self.run(move |tx| {
            tx.execute("DELETE FROM leader_lease", [])?;
            let mut put = tx.prepare_cached("INSERT INTO leader_lease VALUES (?1, ?2, ?3, ?4)")?;
            for line in &lines {
                let holder = line.holder.as_ref().map(MemberId::as_str);
                put.execute((line.scope.to_string(), holder, sql(line.epoch), &line.expires_at))?;
            }
            Ok(())
        })
        .await
    }

    /// Puts an operation as it was just recorded into the table that people look at; the oldest of its scope go.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn show_operation(&self, scope: Scope, entry: OperationEntry, at: String) -> Result<(), StoreError> {
        let malformed = |e: serde_json::Error| StoreError::Malformed { what: "operation", reason: e.to_string() };
        let (text, state) = (serde_json::to_string(&entry), serde_json::to_value(entry.state));
        let (text, state) = (text.map_err(malformed)?, state.map_err(malformed)?);
        let state = state.as_str().unwrap_or_default().to_owned();
        self.run(move |tx| {
            let scope = scope.to_string();
            tx.execute(
                "INSERT INTO mode_b_operations VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT DO UPDATE SET phase = ?4, state = ?5, entry = ?6, updated_at = ?7",
                (&entry.id, &scope, &entry.kind, &entry.phase, state, text, at),
            )?;
            tx.execute(
                "DELETE FROM mode_b_operations WHERE scope = ?1 AND rowid NOT IN (
                    SELECT rowid FROM mode_b_operations WHERE scope = ?1 ORDER BY rowid DESC LIMIT ?2)",
                (&scope, SHOWN),
            )?;
            Ok(())
        })
        .await
    }

    /// Scopes and holders in the table that people look at.
    #[cfg(test)]
    pub(crate) async fn shown_leases_for_test(&self) -> Result<Vec<(String, Option<String>)>, StoreError> {
        self.run(|tx| {
            let mut rows = tx.prepare("SELECT scope, holder FROM leader_lease ORDER BY scope")?;
            let rows = rows.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Phase and state of an operation in the table that people look at.
    #[cfg(test)]
    pub(crate) async fn shown_operation_for_test(&self, id: &str) -> Result<Option<(String, String)>, StoreError> {
        let id = id.to_owned();
        self.run(move |tx| {
            let mut rows = tx.prepare("SELECT phase, state FROM mode_b_operations WHERE id = ?1")?;
            let mut rows = rows.query_map([id], |r| Ok((r.get(0)?, r.get(1)?)))?;
            Ok(rows.next().transpose()?)
        })
        .await
    }
}

fn sql(epoch: Epoch) -> i64 {
    i64::try_from(epoch.number()).expect("an epoch is at most 2^53")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{OperationState, Progress};

    fn epoch(number: u64) -> Epoch {
        Epoch::new(number).unwrap()
    }

    #[tokio::test]
    async fn an_epoch_never_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.raise_fences(vec![(Scope::TaskIds, epoch(7)), (Scope::Membership, epoch(1))]).await.unwrap();
        store.raise_fences(vec![(Scope::TaskIds, epoch(5)), (Scope::Membership, epoch(2))]).await.unwrap();
        let again = Store::open(dir.path()).unwrap();
        let mut stored = again.fences().await.unwrap();
        stored.sort();
        assert_eq!(stored, [(Scope::Membership, epoch(2)), (Scope::TaskIds, epoch(7))]);
    }

    #[tokio::test]
    async fn the_last_operations_of_a_scope_are_shown() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let entry = |i: usize, phase: &str| OperationEntry {
            id: format!("op-{i}"),
            kind: "alias_flip".to_owned(),
            phase: phase.to_owned(),
            extra: serde_json::Value::Null,
            state: OperationState::Running,
            history: Vec::new(),
            progress: Progress::default(),
            error: None,
        };
        for i in 0..OPERATIONS_PAST_MAX + 5 {
            for phase in ["first", "second"] {
                store.show_operation(Scope::Ilm, entry(i, phase), "now".to_owned()).await.unwrap();
            }
        }
        let shown: (i64, i64) = store
            .run(|tx| {
                let sql = "SELECT count(*), sum(phase = 'second' AND state = 'running') FROM mode_b_operations";
                Ok(tx.query_row(sql, [], |r| Ok((r.get(0)?, r.get(1)?)))?)
            })
            .await
            .unwrap();
        assert_eq!(shown, (SHOWN, SHOWN));
    }

    #[tokio::test]
    async fn people_see_the_leases_of_now() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let line = |scope, holder: Option<&str>| LeaseLine {
            scope,
            holder: holder.map(|h| MemberId::new(h).unwrap()),
            epoch: epoch(3),
            expires_at: holder.map(|_| "2026-01-01T00:00:00Z".to_owned()),
        };
        store.show_leases(vec![line(Scope::Ilm, Some("m1"))]).await.unwrap();
        store.show_leases(vec![line(Scope::TaskIds, Some("m2")), line(Scope::Membership, None)]).await.unwrap();
        let seen = store.shown_leases_for_test().await.unwrap();
        assert_eq!(seen, [("membership".to_owned(), None), ("task_ids".to_owned(), Some("m2".to_owned()))]);
    }
}
