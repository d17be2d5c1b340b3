//! Mesh tasks of which this member is the home. Ids come from a counter in the store and are never given twice.

use rusqlite::OptionalExtension;

use super::identity::{count, put};
use super::{Store, StoreError};
use crate::types::TaskUid;

/// A task as it is stored; the body is JSON that belongs to `services::tasks`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTask {
    /// Its number.
    pub uid: TaskUid,
    /// The client's name of the index, for listings.
    pub index_uid: Option<String>,
    /// Meilisearch's `type`.
    pub kind: String,
    /// Nothing will change any more.
    pub finished: bool,
    /// The rest, as JSON.
    pub body: String,
}

impl Store {
    /// Takes the lowest id ≡ `position` (mod `members`) above all that this store has given, whatever the numbers of members
    /// then, and stores the task under it.
    ///
    /// # Errors
    /// [`StoreError`]; `Malformed` once 2^31 ids are used up.
    pub async fn new_task(
        &self,
        position: u32,
        members: u32,
        index_uid: Option<String>,
        kind: String,
        body: String,
    ) -> Result<TaskUid, StoreError> {
        self.run(move |tx| {
            let next = count(tx, "tasks_next")?;
            let (members, position) = (u64::from(members.max(1)), u64::from(position));
            let uid = next + (position + members - next % members) % members;
            let uid = u32::try_from(uid).ok().filter(|u| *u < 1 << 31).ok_or_else(|| StoreError::Malformed {
                what: "task counter",
                reason: "all 2^31 task ids are used up".into(),
            })?;
            put(tx, "tasks_next", &u64::from(uid + 1).to_le_bytes())?;
            tx.execute("INSERT INTO tasks VALUES (?1, ?2, ?3, 'open', ?4)", (uid, index_uid, kind, body))?;
            Ok(TaskUid(uid))
        })
        .await
    }

    /// Stores a task's new state.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_task(&self, uid: TaskUid, finished: bool, body: String) -> Result<(), StoreError> {
        self.run(move |tx| {
            let state = if finished { "finished" } else { "open" };
            tx.execute("UPDATE tasks SET state = ?2, body = ?3 WHERE uid = ?1", (uid.0, state, body))?;
            Ok(())
        })
        .await
    }

    /// One task.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn task(&self, uid: TaskUid) -> Result<Option<StoredTask>, StoreError> {
        self.run(move |tx| {
            let sql = "SELECT uid, index_uid, kind, state, body FROM tasks WHERE uid = ?1";
            Ok(tx.query_row(sql, [uid.0], row).optional()?)
        })
        .await
    }

    /// The tasks that are not finished, oldest first, at most `limit`, from `from` on.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open_tasks(&self, from: u32, limit: u32) -> Result<Vec<StoredTask>, StoreError> {
        self.run(move |tx| {
            let sql = "SELECT uid, index_uid, kind, state, body FROM tasks \
                       WHERE state <> 'finished' AND uid >= ?1 ORDER BY uid LIMIT ?2";
            let mut rows = tx.prepare(sql)?;
            let rows = rows.query_map((from, limit), row)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }
}

fn row(r: &rusqlite::Row<'_>) -> rusqlite::Result<StoredTask> {
    Ok(StoredTask {
        uid: TaskUid(r.get(0)?),
        index_uid: r.get(1)?,
        kind: r.get(2)?,
        finished: r.get::<_, String>(3)? == "finished",
        body: r.get(4)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ids_are_the_members_own_and_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let new = |s: Store| async move { s.new_task(1, 3, None, "x".into(), "{}".into()).await.unwrap().0 };
        assert_eq!((new(store.clone()).await, new(store.clone()).await), (1, 4));
        let again = Store::open(dir.path()).unwrap();
        assert_eq!(new(again.clone()).await, 7);
        assert_eq!(again.open_tasks(0, 10).await.unwrap().len(), 3);
        again.put_task(TaskUid(4), true, "{\"a\":1}".into()).await.unwrap();
        assert_eq!(again.open_tasks(2, 10).await.unwrap().iter().map(|t| t.uid.0).collect::<Vec<_>>(), [7]);
        assert_eq!(again.task(TaskUid(4)).await.unwrap().unwrap().body, "{\"a\":1}");
        assert_eq!(again.task(TaskUid(5)).await.unwrap(), None);
    }

    #[tokio::test]
    async fn no_id_is_given_twice_when_members_leave_the_list() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut given = std::collections::BTreeSet::new();
        for (position, members) in [(1, 3), (1, 3), (1, 3), (0, 2), (0, 2), (0, 1), (0, 1), (2, 3), (2, 3)] {
            let task = store.new_task(position, members, None, "x".into(), "{}".into()).await.unwrap();
            assert_eq!(task.0 % members, position);
            assert!(given.last().is_none_or(|last| *last < task.0), "{given:?} {task}");
            given.insert(task.0);
        }
    }
}
