//! What a request about many tasks asks for, in Meilisearch's parameters and with its errors.
//!
//! Rule: measured on a v1.50.0 node. Of a parameter sent twice the last value counts, at the place of the first; the first
//! one that is wrong is told. In a list, nothing between two commas is nothing, and one `*` anywhere stands for all, but the
//! other items must be right. Must not know: percent-encoding, HTTP.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::filter::Filter;
use super::kind::{Status, TaskKind};
use super::suggest::meant;
use super::when::When;
use crate::types::{ErrorCode, IndexUid, TaskUid};

/// Tasks of a page unless asked otherwise.
const LIMIT_DEFAULT: u32 = 20;

/// Parameters of a list, in Meilisearch's order.
pub(super) const LIST_PARAMETERS: [&str; 15] = [
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

/// Parameters of a deletion or cancelation, in Meilisearch's order.
const ACTION_PARAMETERS: [&str; 12] = [
    "uids",
    "batchUids",
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

/// A request that Meilisearch refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct QueryError {
    /// Meilisearch's code.
    pub code: ErrorCode,
    /// Meilisearch's text.
    pub message: String,
}

fn refuse<T>(code: ErrorCode, message: String) -> Result<T, QueryError> {
    Err(QueryError { code, message })
}

/// What is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Listing {
    /// Tasks.
    Tasks,
    /// Batches: of the mesh, tasks that are begun.
    Batches,
}

/// Which action on many tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Action {
    /// `POST /tasks/cancel`.
    Cancel,
    /// `DELETE /tasks`.
    Delete,
}

/// A page that a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    /// What is listed.
    pub listing: Listing,
    /// Which tasks.
    pub filter: Filter,
    /// How many.
    pub limit: u32,
    /// The first, if it is there.
    pub from: Option<u32>,
    /// Oldest first.
    pub reverse: bool,
}

impl Query {
    /// Everything of a listing.
    pub fn all(listing: Listing) -> Self {
        Self { listing, filter: Filter::default(), limit: LIMIT_DEFAULT, from: None, reverse: false }
    }

    /// Reads the decoded parameters of a list.
    ///
    /// # Errors
    /// Meilisearch's own.
    pub fn parse(listing: Listing, pairs: &[(String, String)]) -> Result<Self, QueryError> {
        let mut query = Self::all(listing);
        for (name, value) in once_each(pairs) {
            match name {
                // A node adds one inside, so the largest number is one less.
                "limit" => query.limit = number(name, value, ErrorCode::InvalidTaskLimit)?.min(u32::MAX - 1),
                "from" => query.from = Some(number(name, value, ErrorCode::InvalidTaskFrom)?),
                "reverse" => query.reverse = flag(name, value)?,
                _ => condition(&mut query.filter, name, value, &LIST_PARAMETERS)?,
            }
        }
        Ok(query)
    }
}

/// Which tasks are to be deleted or canceled, by decoded parameters.
///
/// # Errors
/// Meilisearch's own; `missing_task_filters` without any parameter.
pub fn parse_action(action: Action, pairs: &[(String, String)]) -> Result<Filter, QueryError> {
    let mut filter = Filter::default();
    for (name, value) in once_each(pairs) {
        condition(&mut filter, name, value, &ACTION_PARAMETERS)?;
    }
    if pairs.is_empty() {
        let verb = if action == Action::Cancel { "cancel" } else { "delete" };
        let message = format!(
            "Query parameters to filter the tasks to {verb} are missing. Available query parameters are: `uids`, \
             `indexUids`, `statuses`, `types`, `canceledBy`, `beforeEnqueuedAt`, `afterEnqueuedAt`, `beforeStartedAt`, \
             `afterStartedAt`, `beforeFinishedAt`, `afterFinishedAt`."
        );
        return refuse(ErrorCode::MissingTaskFilters, message);
    }
    Ok(filter)
}

/// The detail `originalFilter` of an action: the query string as it was sent.
pub fn original_filter(query: &str) -> String {
    format!("?{query}")
}

/// The task that a path names.
///
/// # Errors
/// `invalid_task_uids`.
pub fn task_uid(text: &str) -> Result<TaskUid, QueryError> {
    let message = || format!("Task uid `{text}` is invalid. It should only contain numeric characters.");
    text.parse().map(TaskUid).or_else(|_| refuse(ErrorCode::InvalidTaskUids, message()))
}

/// The batch that a path names.
///
/// # Errors
/// `invalid_batch_uids`.
pub fn batch_uid(text: &str) -> Result<TaskUid, QueryError> {
    let message = || format!("Batch uid `{text}` is invalid. It should only contain numeric characters.");
    text.parse().map(TaskUid).or_else(|_| refuse(ErrorCode::InvalidBatchUids, message()))
}

/// There is no such task, or no such batch.
pub fn not_found(listing: Listing, uid: TaskUid) -> QueryError {
    match listing {
        Listing::Tasks => QueryError { code: ErrorCode::TaskNotFound, message: format!("Task `{uid}` not found.") },
        Listing::Batches => QueryError { code: ErrorCode::BatchNotFound, message: format!("Batch `{uid}` not found.") },
    }
}

/// Each parameter once: at its first place, with its last value.
fn once_each(pairs: &[(String, String)]) -> Vec<(&str, &str)> {
    let mut once: Vec<(&str, &str)> = Vec::new();
    let mut places: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    for (name, value) in pairs {
        let at = *places.entry(name).or_insert(once.len());
        match once.get_mut(at) {
            Some(known) => known.1 = value,
            None => once.push((name, value)),
        }
    }
    once
}

fn condition(filter: &mut Filter, name: &str, value: &str, known: &[&str]) -> Result<(), QueryError> {
    use ErrorCode as E;
    match name {
        "uids" => filter.uids = numbers(name, value, E::InvalidTaskUids)?,
        "batchUids" => filter.batch_uids = numbers(name, value, E::InvalidBatchUids)?,
        "canceledBy" => filter.canceled_by = numbers(name, value, E::InvalidTaskCanceledBy)?,
        "types" => filter.types = list(name, value, kind)?,
        "statuses" => filter.statuses = list(name, value, status)?,
        "indexUids" => filter.index_uids = list(name, value, index)?,
        "afterEnqueuedAt" => filter.enqueued.after = bound(name, value, E::InvalidTaskAfterEnqueuedAt)?,
        "beforeEnqueuedAt" => filter.enqueued.before = bound(name, value, E::InvalidTaskBeforeEnqueuedAt)?,
        "afterStartedAt" => filter.started.after = bound(name, value, E::InvalidTaskAfterStartedAt)?,
        "beforeStartedAt" => filter.started.before = bound(name, value, E::InvalidTaskBeforeStartedAt)?,
        "afterFinishedAt" => filter.finished.after = bound(name, value, E::InvalidTaskAfterFinishedAt)?,
        "beforeFinishedAt" => filter.finished.before = bound(name, value, E::InvalidTaskBeforeFinishedAt)?,
        _ => return unknown(name, known),
    }
    Ok(())
}

fn unknown<T>(name: &str, known: &[&str]) -> Result<T, QueryError> {
    let names: Vec<_> = known.iter().map(|k| format!("`{k}`")).collect();
    let meant = meant(name, known).map(|k| format!("did you mean `{k}`? ")).unwrap_or_default();
    refuse(ErrorCode::BadRequest, format!("Unknown parameter `{name}`: {meant}expected one of {}", names.join(", ")))
}

fn number(name: &str, text: &str, code: ErrorCode) -> Result<u32, QueryError> {
    let message = || format!("Invalid value in parameter `{name}`: could not parse `{text}` as a positive integer");
    text.parse().or_else(|_| refuse(code, message()))
}

fn flag(name: &str, text: &str) -> Result<bool, QueryError> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => refuse(
            ErrorCode::InvalidTaskReverse,
            format!(
                "Invalid value in parameter `{name}`: could not parse `{text}` as a boolean, expected either `true` or `false`"
            ),
        ),
    }
}

/// The items of a list; `None` if one of them is `*`.
fn list<T: Ord>(
    name: &str,
    value: &str,
    read: impl Fn(&str, &str) -> Result<T, QueryError>,
) -> Result<Option<BTreeSet<T>>, QueryError> {
    let items: Vec<&str> = value.split(',').filter(|item| !item.is_empty()).collect();
    let (mut set, mut all) = (BTreeSet::new(), false);
    for (i, item) in items.iter().enumerate() {
        if *item == "*" {
            all = true;
        } else if items.len() == 1 {
            set.insert(read(name, item)?);
        } else {
            set.insert(read(&format!("{name}[{i}]"), item)?);
        }
    }
    Ok((!all).then_some(set))
}

fn numbers(name: &str, value: &str, code: ErrorCode) -> Result<Option<BTreeSet<u32>>, QueryError> {
    list(name, value, |name, item| number(name, item, code))
}

fn kind(name: &str, item: &str) -> Result<TaskKind, QueryError> {
    let message = || {
        let all = TaskKind::list();
        format!("Invalid value in parameter `{name}`: `{item}` is not a valid task type. Available types are {all}.")
    };
    TaskKind::parse(item).map_or_else(|| refuse(ErrorCode::InvalidTaskTypes, message()), Ok)
}

fn status(name: &str, item: &str) -> Result<Status, QueryError> {
    let message = || {
        let all = Status::list();
        format!(
            "Invalid value in parameter `{name}`: `{item}` is not a valid task status. Available statuses are {all}."
        )
    };
    Status::parse(item).map_or_else(|| refuse(ErrorCode::InvalidTaskStatuses, message()), Ok)
}

fn index(name: &str, item: &str) -> Result<String, QueryError> {
    let message = || {
        format!(
            "Invalid value in parameter `{name}`: `{item}` is not a valid index uid. Index uid can be an integer or a \
             string containing only alphanumeric characters, hyphens (-) and underscores (_), and can not be more than \
             512 bytes."
        )
    };
    let uid = IndexUid::new(item).or_else(|_| refuse(ErrorCode::InvalidIndexUid, message()))?;
    Ok(uid.as_str().to_owned())
}

fn bound(name: &str, value: &str, code: ErrorCode) -> Result<Option<When>, QueryError> {
    if value == "*" {
        return Ok(None);
    }
    let message = || {
        format!(
            "Invalid value in parameter `{name}`: `{value}` is an invalid date-time. It should follow the YYYY-MM-DD or \
             RFC 3339 date-time format."
        )
    };
    let bound = When::parse_bound(value, name.starts_with("after"));
    bound.map_or_else(|| refuse(code, message()), |bound| Ok(Some(bound)))
}
