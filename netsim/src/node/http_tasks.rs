//! The routes `/tasks` and `/tasks/{uid}`.
//!
//! Rule: tasks are listed newest first unless `reverse` is asked for, and every filter narrows. Must not know: what
//! tasks do.

use axum::extract::{Path, RawQuery, State};
use serde_json::{Value, json};

use super::documents::check_uid;
use super::error::{ApiError, Result};
use super::http::{Reply, Shared, ok};
use super::params::{Query, name_list};
use super::tasks::Task;

const PARAMETERS: [&str; 15] = [
    "limit",
    "from",
    "reverse",
    "batchUids",
    "uids",
    "canceledBy",
    "types",
    "statuses",
    "indexUids",
    "afterEnqueuedAt",
    "beforeEnqueuedAt",
    "afterStartedAt",
    "beforeStartedAt",
    "afterFinishedAt",
    "beforeFinishedAt",
];
const STATUSES: [&str; 5] = ["enqueued", "processing", "succeeded", "failed", "canceled"];
const TYPES: [&str; 18] = [
    "documentAdditionOrUpdate",
    "documentEdition",
    "documentDeletion",
    "settingsUpdate",
    "indexCreation",
    "indexDeletion",
    "indexUpdate",
    "indexSwap",
    "taskCancelation",
    "taskDeletion",
    "dumpCreation",
    "snapshotCreation",
    "export",
    "upgradeDatabase",
    "indexCompaction",
    "networkTopologyChange",
    "dsrUpdate",
    "dsrClear",
];

/// Words out of a fixed list; `*` and absence mean all.
fn words(
    query: &Query,
    name: &str,
    allowed: &[&str],
    code: &'static str,
    what: (&str, &str),
) -> Result<Option<Vec<String>>> {
    let Some(items) = query.list(name).filter(|items| items != &["*"]) else { return Ok(None) };
    if let Some(bad) = items.iter().find(|item| !allowed.contains(&item.as_str())) {
        let list = name_list(allowed);
        let (kind, available) = what;
        let text = format!(
            "Invalid value in parameter `{name}`: `{bad}` is not a valid task {kind}. Available {available} are {list}."
        );
        return Err(ApiError::new(code, text));
    }
    Ok(Some(items))
}

/// `GET /tasks`
pub async fn list(State(server): Shared, RawQuery(raw): RawQuery) -> Reply {
    let query = Query::read(raw.as_deref(), &PARAMETERS)?;
    let limit = query.count("limit", "invalid_task_limit")?.unwrap_or(20);
    let from = query.count("from", "invalid_task_from")?;
    let reverse = query.boolean("reverse", "invalid_task_reverse")?.unwrap_or(false);
    let uids = query.counts("uids", "invalid_task_uids")?;
    let batches = query.counts("batchUids", "invalid_batch_uids")?;
    let statuses = words(&query, "statuses", &STATUSES, "invalid_task_statuses", ("status", "statuses"))?;
    let types = words(&query, "types", &TYPES, "invalid_task_types", ("type", "types"))?;
    let indexes = query.list("indexUids").filter(|items| items != &["*"]);
    for uid in indexes.iter().flatten() {
        check_uid(uid, "Invalid value in parameter `indexUids`: ")?;
    }
    let has = |list: &Option<Vec<usize>>, number: Option<u32>| {
        list.as_ref().is_none_or(|list| number.is_some_and(|number| list.contains(&(number as usize))))
    };
    let named =
        |list: &Option<Vec<String>>, text: &str| list.as_ref().is_none_or(|list| list.iter().any(|item| item == text));
    let passes = |task: &&Task| {
        has(&uids, Some(task.uid))
            && has(&batches, task.batch)
            && named(&statuses, &task.status)
            && named(&types, &task.kind)
            && named(&indexes, &task.index)
    };
    let (total, page): (usize, Vec<Value>) = server.engine.with_queue(|queue| {
        let all = || queue.tasks.values().filter(passes);
        let page = limit.saturating_add(1);
        let views: Vec<Value> = match reverse {
            true => {
                all().filter(|t| from.is_none_or(|from| t.uid as usize >= from)).take(page).map(Task::view).collect()
            }
            false => {
                let down = all().rev().filter(|t| from.is_none_or(|from| t.uid as usize <= from));
                down.take(page).map(Task::view).collect()
            }
        };
        (all().count(), views)
    });
    let next = page.get(limit).map(|task| task["uid"].clone());
    let page = &page[..limit.min(page.len())];
    let first = page.first().map(|task| task["uid"].clone());
    ok(json!({"results": page, "total": total, "limit": limit, "from": first, "next": next}))
}

/// `GET /tasks/{uid}`
pub async fn one(State(server): Shared, Path(uid): Path<String>) -> Reply {
    let bad = || {
        let text = format!("Task uid `{uid}` is invalid. It should only contain numeric characters.");
        ApiError::new("invalid_task_uids", text)
    };
    let number: u32 = uid.parse().map_err(|_| bad())?;
    let found = server.engine.with_queue(|queue| queue.tasks.get(&number).map(Task::view));
    ok(found.ok_or_else(|| ApiError::new("task_not_found", format!("Task `{number}` not found.")))?)
}
