//! The node's tasks, as an applier is told of them.
//!
//! Rule: what is not a task as Meilisearch writes it makes the whole page unread. Must not know: what follows from them.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::net::node::{NodeAnswer, NodeRequest};
use crate::proto::apply::{Flaw, Group, Listed, Page, Probed, Status, Tag, TaskRef};
use crate::proto::document::own_message;
use crate::proto::tasks::When;
use crate::services::local::Local;
use crate::types::{PhysicalIndex, StoreId};

/// When the node began and had done a task, in nanoseconds since 1970.
pub(super) type Times = BTreeMap<u32, (i64, i64)>;

#[derive(Deserialize)]
struct TaskPage {
    results: Vec<Task>,
    next: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Task {
    uid: u32,
    batch_uid: Option<u32>,
    status: String,
    #[serde(rename = "type")]
    kind: String,
    enqueued_at: String,
    started_at: Option<String>,
    finished_at: Option<String>,
    custom_metadata: Option<String>,
    error: Option<TaskError>,
    details: Option<Details>,
}

#[derive(Deserialize)]
struct TaskError {
    code: String,
    message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Details {
    deleted_documents: Option<u64>,
    edited_documents: Option<u64>,
    function: Option<String>,
}

/// What a request of an applier is tagged with.
pub(super) fn tag(store: &StoreId, note: u64) -> String {
    format!("{store}:{note}")
}

/// What a request of this member is tagged with that no note stands for.
pub(in crate::services) fn other_tag(store: &StoreId) -> String {
    format!("{store}:copy")
}

fn tag_of(store: &StoreId, text: Option<&str>) -> Tag {
    let Some(text) = text else { return Tag::None };
    let own = text.split_once(':').filter(|(of, _)| *of == store.to_string());
    // Numbers are written in one way only.
    let note = own.and_then(|(_, note)| note.parse::<u64>().ok()).filter(|note| tag(store, *note) == text);
    note.map_or(Tag::Other, Tag::Note)
}

impl Task {
    fn reference(&self) -> TaskRef {
        TaskRef { uid: self.uid, enqueued_at: self.enqueued_at.clone() }
    }

    fn status(&self) -> Option<Status> {
        Some(match self.status.as_str() {
            "enqueued" | "processing" => Status::Waiting,
            "succeeded" => Status::Succeeded,
            "failed" => {
                let (code, message) = self.error.as_ref().map_or(("", ""), |e| (&e.code, &e.message));
                let function = self.details.as_ref().and_then(|details| details.function.as_deref());
                // Of a function the client knows what it has written.
                let message = function.map_or_else(|| message.to_owned(), |f| own_message(f, message));
                Status::Failed(Flaw::new(code, &message))
            }
            "canceled" => Status::Canceled,
            _ => return None,
        })
    }

    fn times(&self) -> Option<(i64, i64)> {
        let time = |text: &Option<String>| text.as_deref().and_then(When::parse).map(|when| when.0);
        let finished = time(&self.finished_at)?;
        Some((time(&self.started_at).unwrap_or(finished), finished))
    }

    /// `None`: it is of a type that changes no documents, or nothing that this version knows.
    fn listed(&self, store: &StoreId) -> Option<Listed> {
        let group = match self.kind.as_str() {
            "documentAdditionOrUpdate" => Group::Addition,
            "documentDeletion" => Group::Deletion,
            "documentEdition" => Group::Edition,
            _ => return None,
        };
        let details = self.details.as_ref();
        let count = match group {
            Group::Addition => None,
            Group::Deletion => details.and_then(|d| d.deleted_documents),
            Group::Edition => details.and_then(|d| d.edited_documents),
        };
        let (task, tag) = (self.reference(), tag_of(store, self.custom_metadata.as_deref()));
        let began = self.started_at.as_deref().and_then(When::parse).map(|when| when.0);
        Some(Listed { task, batch: self.batch_uid, group, tag, status: self.status()?, began, count })
    }
}

fn page_of(store: &StoreId, body: &[u8]) -> Option<(Page, Times)> {
    let page: TaskPage = serde_json::from_slice(body).ok()?;
    let times = page.results.iter().filter_map(|task| Some((task.uid, task.times()?))).collect();
    let newest = page.results.iter().map(|task| task.uid).max();
    let tasks = page.results.iter().filter_map(|task| task.listed(store)).collect();
    Some((Page { tasks, newest, next: page.next }, times))
}

/// A page of the list of an index's tasks; `None`: it can't be had now.
pub(super) async fn list(
    local: &Local,
    store: &StoreId,
    index: &PhysicalIndex,
    from: Option<u32>,
    limit: u32,
) -> Option<(Page, Times)> {
    let from = from.map_or(String::new(), |from| format!("&from={from}"));
    let path = format!("/tasks?indexUids={index}&limit={limit}{from}");
    match local.ask(NodeRequest::get(path)).await {
        Ok(NodeAnswer { status: 200, body }) => page_of(store, &body),
        _ => None,
    }
}

/// One task, whatever it is of.
async fn task(local: &Local, uid: u32) -> Option<Option<Task>> {
    match local.ask(NodeRequest::get(format!("/tasks/{uid}"))).await {
        Ok(NodeAnswer { status: 200, body }) => serde_json::from_slice(&body).ok().map(Some),
        // Also a node that is none of Meilisearch's answers so; its key was right a moment ago.
        Ok(NodeAnswer { status: 404, body }) => memchr::memmem::find(&body, b"task_not_found").map(|_| None),
        _ => None,
    }
}

/// What the node has under a number, and when it last deleted tasks; `None`: it can't be had now.
pub(super) async fn probe(local: &Local, uid: u32) -> Option<Probed> {
    let enqueued_at = task(local, uid).await?.map(|task| task.enqueued_at);
    let path = "/tasks?types=taskDeletion&statuses=succeeded,failed,canceled&limit=1";
    match local.ask(NodeRequest::get(path)).await {
        Ok(NodeAnswer { status: 200, body }) => {
            let page: TaskPage = serde_json::from_slice(&body).ok()?;
            Some(Probed { enqueued_at, deletion: page.results.first().map(Task::reference) })
        }
        _ => None,
    }
}

/// How a task stands: `None` if that can't be had now, and inside it `None` if the node has another task there or none.
pub(super) async fn status_of(local: &Local, of: &TaskRef) -> Option<Option<Status>> {
    let found = task(local, of.uid).await?;
    match found.filter(|task| task.enqueued_at == of.enqueued_at) {
        Some(task) => task.status().map(Some),
        None => Some(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_names_a_note_of_this_store_only() {
        let (store, other) = (StoreId([7; 16]), StoreId([8; 16]));
        let of = |text: &str| tag_of(&store, Some(text));
        assert_eq!(of(&tag(&store, 12)), Tag::Note(12));
        assert_eq!(tag_of(&store, None), Tag::None);
        for foreign in [tag(&other, 12), other_tag(&store), "12".into(), format!("{store}:+12"), format!("{store}:012")]
        {
            assert_eq!(of(&foreign), Tag::Other, "{foreign}");
        }
    }

    #[test]
    fn a_page_is_read_as_the_node_writes_it() {
        let store = StoreId([7; 16]);
        let body = format!(
            r#"{{"results":[
              {{"uid":9,"batchUid":4,"indexUid":"a","status":"failed","type":"documentDeletion","canceledBy":null,
                "details":{{"providedIds":0,"deletedDocuments":3,"originalFilter":"x"}},
                "error":{{"message":"m","code":"c","type":"t","link":"l"}},"duration":"PT1S","enqueuedAt":"e",
                "startedAt":"2024-01-01T00:00:00Z","finishedAt":"2024-01-01T00:00:01Z","customMetadata":"{}"}},
              {{"uid":8,"batchUid":null,"indexUid":"a","status":"enqueued","type":"settingsUpdate","details":{{}},"error":null,
                "enqueuedAt":"e","startedAt":null,"finishedAt":null}}],
              "total":5,"limit":2,"from":9,"next":6}}"#,
            tag(&store, 3)
        );
        let (page, times) = page_of(&store, body.as_bytes()).unwrap();
        let listed = Listed {
            task: TaskRef { uid: 9, enqueued_at: "e".into() },
            batch: Some(4),
            group: Group::Deletion,
            tag: Tag::Note(3),
            status: Status::Failed(Flaw::new("c", "m")),
            began: Some(times[&9].0),
            count: Some(3),
        };
        assert_eq!(page, Page { tasks: vec![listed], newest: Some(9), next: Some(6) });
        assert_eq!(times[&9].1 - times[&9].0, 1_000_000_000);
        assert!(page_of(&store, b"{}").is_none());
    }
}
