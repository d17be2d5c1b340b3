//! Tasks and batches as Meilisearch shows them: keys, order, nulls.
//!
//! The mesh makes one batch of each task, of the same number, as soon as it is begun. Rule: measured on a v1.50.0 node. Must
//! not know: where a task comes from.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::filter::Facts;
use super::kind::{Status, TaskKind};
use super::page::End;
use super::task::{Head, Shown, Subject, TaskError};
use super::when::When;
use crate::types::TaskUid;

/// What the client of a write gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Its number.
    pub task_uid: TaskUid,
    index_uid: Option<String>,
    status: Status,
    r#type: TaskKind,
    enqueued_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    custom_metadata: Option<String>,
}

/// A task in a list, or by itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskView {
    uid: TaskUid,
    batch_uid: Option<TaskUid>,
    index_uid: Option<String>,
    status: Status,
    r#type: TaskKind,
    canceled_by: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Value>,
    error: Option<TaskError>,
    duration: Option<String>,
    enqueued_at: String,
    started_at: Option<String>,
    finished_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    custom_metadata: Option<String>,
}

/// A batch in a list, or by itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchView {
    uid: TaskUid,
    progress: Option<Value>,
    details: Value,
    stats: Value,
    duration: Option<String>,
    started_at: Option<String>,
    finished_at: Option<String>,
    batch_strategy: String,
}

/// What stands in the answer of a write.
pub fn summary(uid: TaskUid, head: &Head) -> Summary {
    Summary {
        task_uid: uid,
        index_uid: head.index_uid.clone(),
        status: Status::Enqueued,
        r#type: head.subject.kind(),
        enqueued_at: head.enqueued.text(),
        custom_metadata: head.custom_metadata.clone(),
    }
}

/// What a filter looks at.
pub fn facts(uid: TaskUid, task: &Shown) -> Facts<'_> {
    Facts {
        uid,
        index_uid: task.head.index_uid.as_deref(),
        kind: task.head.subject.kind(),
        status: task.status,
        canceled_by: task.canceled_by.map(TaskUid),
        enqueued: task.head.enqueued,
        started: task.started,
        finished: task.outcome.as_ref().map(|o| o.finished),
    }
}

fn times(task: &Shown) -> (Option<String>, Option<String>, Option<String>) {
    let finished = task.outcome.as_ref().map(|o| o.finished);
    let duration = task.started.zip(finished).map(|(from, to)| from.duration_until(to));
    (duration, task.started.map(When::text), finished.map(When::text))
}

/// A task.
pub fn task(uid: TaskUid, task: &Shown) -> TaskView {
    let (duration, started_at, finished_at) = times(task);
    TaskView {
        uid,
        batch_uid: (task.status != Status::Enqueued).then_some(uid),
        index_uid: task.head.index_uid.clone(),
        status: task.status,
        r#type: task.head.subject.kind(),
        canceled_by: task.canceled_by,
        details: details(task),
        error: task.outcome.as_ref().and_then(|o| o.error.clone()),
        duration,
        enqueued_at: task.head.enqueued.text(),
        started_at,
        finished_at,
        custom_metadata: task.head.custom_metadata.clone(),
    }
}

/// The batch of a task; `None` if it is not begun.
pub fn batch(uid: TaskUid, task: &Shown) -> Option<BatchView> {
    if task.status == Status::Enqueued {
        return None;
    }
    let kind = task.head.subject.kind();
    let mut details = details(task).unwrap_or_else(|| json!({}));
    // A node leaves these out of a batch where they are null.
    let edition = kind == TaskKind::DocumentEdition;
    if let Some(map) = details.as_object_mut() {
        map.retain(|key, value| {
            !(value.is_null() && (key == "primaryKey" || edition && (key == "originalFilter" || key == "context")))
        });
    }
    let count = |key: Option<&str>| key.map(|key| (key.to_owned(), json!(1))).into_iter().collect::<Map<_, _>>();
    let stats = json!({
        "totalNbTasks": 1,
        "status": count(Some(task.status.as_str())),
        "types": count(Some(kind.as_str())),
        "indexUids": count(task.head.index_uid.as_deref()),
    });
    let (duration, started_at, finished_at) = times(task);
    let batch_strategy = format!(
        "created batch containing only task with id {uid} of type `{}` that cannot be batched with any other task.",
        kind.as_str()
    );
    Some(BatchView { uid, progress: progress(task), details, stats, duration, started_at, finished_at, batch_strategy })
}

fn progress(task: &Shown) -> Option<Value> {
    let (done, all) = task.progress.filter(|_| !task.status.is_final())?;
    let percentage = if all == 0 { 0.0 } else { 100.0 * done as f64 / all as f64 };
    let step = json!({"currentStep": "processing tasks", "finished": done, "total": all});
    Some(json!({"steps": [step], "percentage": percentage}))
}

/// A page as clients read it.
#[derive(Debug, Clone, Serialize)]
pub struct PageView<T> {
    /// Tasks or batches.
    pub results: Vec<T>,
    /// What stands under them.
    #[serde(flatten)]
    pub end: End,
}

fn details(task: &Shown) -> Option<Value> {
    // Nothing is counted before the end.
    let changed = task.outcome.as_ref().map(|o| o.changed);
    let matched = task.outcome.as_ref().map_or(0, |o| o.matched);
    Some(match &task.head.subject {
        Subject::Documents { received, .. } => json!({"receivedDocuments": received, "indexedDocuments": changed}),
        Subject::Edition { original_filter, context, function } => json!({
            "editedDocuments": changed,
            // A node counts both alike, but not the second where it counts nothing.
            "deletedDocuments": changed.filter(|_| task.status == Status::Succeeded),
            "originalFilter": original_filter,
            "context": context.as_deref().map(as_json),
            "function": function,
        }),
        Subject::DeletionByIds { provided, .. } => {
            json!({"providedIds": provided, "deletedDocuments": changed, "originalFilter": null})
        }
        Subject::DeletionByFilter(filter) => {
            json!({"providedIds": 0, "deletedDocuments": changed, "originalFilter": filter})
        }
        Subject::Clear | Subject::IndexDeletion => json!({"deletedDocuments": changed}),
        Subject::Settings(settings) => as_json(settings),
        Subject::IndexCreation(primary_key) => json!({"primaryKey": primary_key}),
        Subject::IndexUpdate { primary_key, renamed: None } => json!({"primaryKey": primary_key}),
        Subject::IndexUpdate { primary_key, renamed: Some((old, new)) } => {
            json!({"primaryKey": primary_key, "oldIndexUid": old, "newIndexUid": new})
        }
        Subject::Swap(swaps) => {
            let swap = |(a, b, rename): &(String, String, bool)| json!({"indexes": [a, b], "rename": rename});
            json!({"swaps": swaps.iter().map(swap).collect::<Vec<_>>()})
        }
        Subject::Cancelation(filter) => {
            json!({"matchedTasks": matched, "canceledTasks": changed, "originalFilter": filter})
        }
        Subject::Deletion(filter) => {
            json!({"matchedTasks": matched, "deletedTasks": changed, "originalFilter": filter})
        }
        Subject::Other(_, details) => return details.as_deref().map(as_json),
    })
}

/// A JSON text of our own; whatever else it may be is shown as a text.
fn as_json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::home::Work;
    use super::super::task::Outcome;
    use super::*;
    use crate::types::ErrorCode;

    fn when(text: &str) -> When {
        When::parse(text).unwrap()
    }

    fn shown(index: Option<&str>, subject: Subject, status: Status) -> Shown {
        let head = Head {
            index_uid: index.map(str::to_owned),
            subject,
            work: Work::Order,
            enqueued: when("2026-11-21T20:57:52.588029326Z"),
            custom_metadata: None,
            key: None,
        };
        let started = (status != Status::Enqueued).then(|| when("2026-11-21T20:57:57.751273258Z"));
        let finished = when("2026-11-21T20:57:57.751543684Z");
        let outcome = status.is_final().then(|| Outcome {
            status,
            error: (status == Status::Failed)
                .then(|| TaskError::of(ErrorCode::IndexNotFound, "Index `none` not found.")),
            changed: if status == Status::Succeeded { 2 } else { 0 },
            matched: 3,
            started: when("2026-11-21T20:57:57.751273258Z"),
            finished,
        });
        Shown { head, status, canceled_by: None, started, progress: None, refused: 0, outcome }
    }

    fn text(view: &impl Serialize) -> String {
        serde_json::to_string(view).unwrap()
    }

    #[test]
    fn a_task_reads_as_a_nodes_does() {
        let canceled = Shown {
            canceled_by: Some(33),
            ..shown(Some("a"), Subject::Documents { received: 2, distinct: 2 }, Status::Canceled)
        };
        assert_eq!(
            text(&task(TaskUid(1), &canceled)),
            "{\"uid\":1,\"batchUid\":1,\"indexUid\":\"a\",\"status\":\"canceled\",\"type\":\"documentAdditionOrUpdate\",\
             \"canceledBy\":33,\"details\":{\"receivedDocuments\":2,\"indexedDocuments\":0},\"error\":null,\
             \"duration\":\"PT0.000270426S\",\"enqueuedAt\":\"2026-11-21T20:57:52.588029326Z\",\
             \"startedAt\":\"2026-11-21T20:57:57.751273258Z\",\"finishedAt\":\"2026-11-21T20:57:57.751543684Z\"}"
        );
        let mut waiting = shown(None, Subject::Deletion("?uids=99".into()), Status::Enqueued);
        waiting.head.custom_metadata = Some("x".into());
        assert_eq!(
            text(&task(TaskUid(10), &waiting)),
            "{\"uid\":10,\"batchUid\":null,\"indexUid\":null,\"status\":\"enqueued\",\"type\":\"taskDeletion\",\
             \"canceledBy\":null,\"details\":{\"matchedTasks\":0,\"deletedTasks\":null,\"originalFilter\":\"?uids=99\"},\
             \"error\":null,\"duration\":null,\"enqueuedAt\":\"2026-11-21T20:57:52.588029326Z\",\"startedAt\":null,\
             \"finishedAt\":null,\"customMetadata\":\"x\"}"
        );
        let failed = shown(Some("none"), Subject::DeletionByIds { provided: 1 }, Status::Failed);
        let error = "{\"message\":\"Index `none` not found.\",\"code\":\"index_not_found\",\"type\":\"invalid_request\",\
                     \"link\":\"https://docs.meilisearch.com/errors#index_not_found\"}";
        assert!(text(&task(TaskUid(1), &failed)).contains(error));
    }

    #[test]
    fn a_summary_has_five_keys_and_metadata_only_if_sent() {
        let mut one = shown(Some("e"), Subject::Documents { received: 3, distinct: 2 }, Status::Succeeded);
        assert_eq!(
            text(&summary(TaskUid(34), &one.head)),
            "{\"taskUid\":34,\"indexUid\":\"e\",\"status\":\"enqueued\",\"type\":\"documentAdditionOrUpdate\",\
             \"enqueuedAt\":\"2026-11-21T20:57:52.588029326Z\"}"
        );
        one.head.custom_metadata = Some("hey you".into());
        assert!(text(&summary(TaskUid(34), &one.head)).ends_with("Z\",\"customMetadata\":\"hey you\"}"));
    }

    #[test]
    fn details_of_each_type() {
        let of = |subject, status| details(&shown(None, subject, status)).map(|d| d.to_string()).unwrap_or_default();
        let edition = |filter: Option<&str>, context: Option<&str>| Subject::Edition {
            original_filter: filter.map(str::to_owned),
            context: context.map(str::to_owned),
            function: "doc.x = 5".into(),
        };
        let (done, open) = (Status::Succeeded, Status::Processing);
        for (subject, status, expected) in [
            (
                Subject::Documents { received: 3, distinct: 2 },
                open,
                r#"{"receivedDocuments":3,"indexedDocuments":null}"#,
            ),
            (
                edition(Some("\"id = 1\""), Some("{\"a\":1}")),
                done,
                r#"{"editedDocuments":2,"deletedDocuments":2,"originalFilter":"\"id = 1\"","context":{"a":1},"function":"doc.x = 5"}"#,
            ),
            (
                edition(None, None),
                open,
                r#"{"editedDocuments":null,"deletedDocuments":null,"originalFilter":null,"context":null,"function":"doc.x = 5"}"#,
            ),
            (
                Subject::DeletionByIds { provided: 3 },
                done,
                r#"{"providedIds":3,"deletedDocuments":2,"originalFilter":null}"#,
            ),
            (
                Subject::DeletionByFilter("[\"id = 1\"]".into()),
                open,
                r#"{"providedIds":0,"deletedDocuments":null,"originalFilter":"[\"id = 1\"]"}"#,
            ),
            (Subject::Clear, done, r#"{"deletedDocuments":2}"#),
            (
                Subject::Settings("{\"displayedAttributes\":[\"*\"],\"filterableAttributes\":null}".into()),
                done,
                r#"{"displayedAttributes":["*"],"filterableAttributes":null}"#,
            ),
            (Subject::IndexCreation(None), done, r#"{"primaryKey":null}"#),
            (
                Subject::IndexUpdate { primary_key: None, renamed: Some(("e".into(), "e2".into())) },
                done,
                r#"{"primaryKey":null,"oldIndexUid":"e","newIndexUid":"e2"}"#,
            ),
            (Subject::IndexUpdate { primary_key: Some("id".into()), renamed: None }, done, r#"{"primaryKey":"id"}"#),
            (Subject::IndexDeletion, Status::Failed, r#"{"deletedDocuments":0}"#),
            (
                Subject::Swap(vec![("a".into(), "zz".into(), false)]),
                done,
                r#"{"swaps":[{"indexes":["a","zz"],"rename":false}]}"#,
            ),
            (
                Subject::Cancelation("?uids=*".into()),
                done,
                r#"{"matchedTasks":3,"canceledTasks":2,"originalFilter":"?uids=*"}"#,
            ),
            (Subject::Other(TaskKind::SnapshotCreation, None), done, ""),
            (Subject::Other(TaskKind::DumpCreation, Some("{\"dumpUid\":\"1\"}".into())), done, r#"{"dumpUid":"1"}"#),
        ] {
            assert_eq!(of(subject, status), expected);
        }
    }

    #[test]
    fn a_batch_is_one_task() {
        let view = batch(TaskUid(22), &shown(Some("e2"), Subject::IndexCreation(None), Status::Failed)).unwrap();
        assert_eq!(
            text(&view),
            "{\"uid\":22,\"progress\":null,\"details\":{},\"stats\":{\"totalNbTasks\":1,\"status\":{\"failed\":1},\
             \"types\":{\"indexCreation\":1},\"indexUids\":{\"e2\":1}},\"duration\":\"PT0.000270426S\",\
             \"startedAt\":\"2026-11-21T20:57:57.751273258Z\",\"finishedAt\":\"2026-11-21T20:57:57.751543684Z\",\
             \"batchStrategy\":\"created batch containing only task with id 22 of type `indexCreation` that cannot be \
             batched with any other task.\"}"
        );
        let edition = Subject::Edition { original_filter: None, context: None, function: "doc = ()".into() };
        let view = batch(TaskUid(1), &shown(None, edition, Status::Succeeded)).unwrap();
        assert_eq!(view.details.to_string(), r#"{"editedDocuments":2,"deletedDocuments":2,"function":"doc = ()"}"#);
        let by_ids = Subject::DeletionByIds { provided: 1 };
        let view = batch(TaskUid(1), &shown(None, by_ids, Status::Succeeded)).unwrap();
        assert_eq!(view.details["originalFilter"], Value::Null);
        assert!(view.details.as_object().unwrap().contains_key("originalFilter"));
        let running = Shown { progress: Some((3, 8)), ..shown(Some("a"), Subject::Clear, Status::Processing) };
        let view = batch(TaskUid(1), &running).unwrap();
        assert_eq!(view.progress.unwrap()["percentage"], 37.5);
        assert!(batch(TaskUid(1), &shown(Some("a"), Subject::Clear, Status::Enqueued)).is_none());
    }

    #[test]
    fn a_page_ends_with_its_numbers() {
        let end = End { total: 35, limit: 0, from: None, next: Some(34) };
        let page = PageView { results: Vec::<TaskView>::new(), end };
        assert_eq!(text(&page), "{\"results\":[],\"total\":35,\"limit\":0,\"from\":null,\"next\":34}");
    }
}
