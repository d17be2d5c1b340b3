//! Loads documents into a mesh or a node, and waits until every task has succeeded.
//!
//! Must not know: which of both it is, how progress is shown.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context as _, bail};
use hyper::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::documents::{Batch, Documents};
use super::http::Client;

/// Payloads taken whose tasks are not finished: enough to keep all nodes busy, few enough that progress shows.
const UNDER_WAY_MAX: usize = 4;
const POST_PATIENCE: Duration = Duration::from_secs(300);
const TASK_PATIENCE: Duration = Duration::from_secs(1_800);
/// A mesh may have no answer while a member is away; the same documents may be sent again.
const RETRY_PATIENCE: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Hears how many documents are loaded.
pub type Progress<'a> = &'a mut dyn FnMut(usize);

/// Creates an index and waits for it. The primary key is `id` if the documents have one, otherwise inferred from them.
pub async fn create_index(client: &mut Client, uid: &str, documents: &Documents) -> anyhow::Result<()> {
    let has_id = documents.first(1)?.first().is_some_and(|d| d.contains_key("id"));
    let body = if has_id { json!({ "uid": uid, "primaryKey": "id" }) } else { json!({ "uid": uid }) };
    let answer = client.json(Method::POST, "/indexes", &body).await?.success()?;
    wait_for_task(client, task_uid(&answer.json()?)?).await
}

/// Loads all documents; done when every task has succeeded.
pub async fn load(
    client: &mut Client,
    uid: &str,
    documents: &Documents,
    progress: Progress<'_>,
) -> anyhow::Result<usize> {
    let mut under_way: VecDeque<(u64, usize)> = VecDeque::new();
    let mut loaded = 0;
    let mut batches = documents.batches()?;
    loop {
        let batch = batches.next().transpose()?;
        let room = if batch.is_some() { UNDER_WAY_MAX - 1 } else { 0 };
        while under_way.len() > room {
            let Some((task, count)) = under_way.pop_front() else { break };
            wait_for_task(client, task).await?;
            loaded += count;
            progress(loaded);
        }
        match batch {
            Some(batch) => under_way.push_back((post(client, uid, &batch).await?, batch.documents)),
            None => return Ok(loaded),
        }
    }
}

async fn post(client: &mut Client, uid: &str, batch: &Batch) -> anyhow::Result<u64> {
    let path = format!("/indexes/{uid}/documents");
    let began = Instant::now();
    loop {
        let body = batch.ndjson.clone();
        let answer = client.send(Method::POST, &path, "application/x-ndjson", body, POST_PATIENCE).await?;
        if matches!(answer.status, 503 | 504) && began.elapsed() < RETRY_PATIENCE {
            sleep(Duration::from_millis(500)).await;
            continue;
        }
        return task_uid(&answer.success().with_context(|| format!("POST {path}"))?.json()?);
    }
}

/// Waits until a task has succeeded.
///
/// # Errors
/// It failed, or takes too long.
pub async fn wait_for_task(client: &mut Client, task: u64) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let state = client.get(&format!("/tasks/{task}")).await?.success()?.json()?;
        match state["status"].as_str() {
            Some("succeeded") => return Ok(()),
            Some("failed" | "canceled") => bail!("task {task} {}: {}", state["status"], state["error"]),
            _ if began.elapsed() > TASK_PATIENCE => {
                bail!("task {task} is not finished after {} s", TASK_PATIENCE.as_secs())
            }
            _ => sleep(POLL_INTERVAL).await,
        }
    }
}

/// The task uid of a summarised task.
pub fn task_uid(answer: &Value) -> anyhow::Result<u64> {
    answer["taskUid"].as_u64().with_context(|| format!("expected a task, found {answer}"))
}
