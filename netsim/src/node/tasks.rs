//! The task queue: what is enqueued, in which order it is processed, and what clients see of it.
//!
//! Rule: a task is in the store before it is acknowledged, and its effects and its final state are committed together.
//! Must not know: HTTP, how documents are parsed or ranked.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::apply;
use super::edit::Step;
use super::error::{ApiError, Result};
use super::index::Index;
use super::knobs::Knobs;
use super::settings::Settings;
use super::storage::{Store, Write};

/// How many tasks are processed as one batch at most.
const MAX_BATCH: usize = 200;

/// What a task is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Work {
    /// Adds documents.
    Documents {
        /// Top-level fields are merged into documents that are there (PUT), else documents are replaced (POST).
        merge: bool,
        /// Documents that are not there yet are left out.
        skip_creation: bool,
        /// The primary key of the request.
        primary_key: Option<String>,
        /// The documents.
        documents: Vec<Map<String, Value>>,
    },
    /// Deletes documents by id.
    DeleteIds(Vec<String>),
    /// Deletes documents that pass a filter.
    DeleteFilter(Value),
    /// Edits documents, those that pass a filter if there is one.
    Edit {
        /// The filter.
        filter: Option<Value>,
        /// What to do.
        steps: Vec<Step>,
    },
    /// Deletes all documents.
    Clear,
    /// Changes settings; a reset does not create the index.
    Settings {
        /// The checked change.
        change: Map<String, Value>,
        /// It came by DELETE.
        reset: bool,
    },
    /// Creates an index.
    Create(Option<String>),
    /// Sets the primary key, renames.
    Update {
        /// The primary key to set.
        primary_key: Option<String>,
        /// The new name.
        uid: Option<String>,
    },
    /// Deletes an index.
    Delete,
}

/// A task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Task {
    /// Its number.
    pub uid: u32,
    /// The batch it was processed in.
    pub batch: Option<u32>,
    /// The index it is about.
    pub index: String,
    /// Meilisearch's name of its type.
    pub kind: String,
    /// `enqueued`, `processing`, `succeeded` or `failed`.
    pub status: String,
    /// Meilisearch's details.
    pub details: Map<String, Value>,
    /// Why it failed.
    pub error: Option<Value>,
    /// RFC 3339.
    pub enqueued_at: String,
    /// RFC 3339.
    pub started_at: Option<String>,
    /// RFC 3339.
    pub finished_at: Option<String>,
    /// ISO 8601.
    pub duration: Option<String>,
    /// What the client attached.
    #[serde(default)]
    pub metadata: Option<String>,
    /// What is to be done, until it is done.
    pub work: Option<Work>,
}

impl Task {
    /// The answer to the request that enqueued it.
    pub fn summary(&self) -> Value {
        self.with_metadata(json!({
            "taskUid": self.uid, "indexUid": self.index, "status": "enqueued", "type": self.kind,
            "enqueuedAt": self.enqueued_at,
        }))
    }

    /// A view that shows what the client attached, if it did.
    fn with_metadata(&self, mut view: Value) -> Value {
        if let Some(metadata) = &self.metadata {
            view["customMetadata"] = json!(metadata);
        }
        view
    }

    /// The task as `/tasks` shows it.
    pub fn view(&self) -> Value {
        self.with_metadata(json!({
            "uid": self.uid, "batchUid": self.batch, "indexUid": self.index, "status": self.status, "type": self.kind,
            "canceledBy": null, "details": self.details, "error": self.error, "duration": self.duration,
            "enqueuedAt": self.enqueued_at, "startedAt": self.started_at, "finishedAt": self.finished_at,
        }))
    }

    /// Notes that the work failed, with details as Meilisearch shows them then.
    pub fn fail(&mut self, error: &ApiError) {
        self.status = "failed".to_owned();
        self.error = Some(error.to_json());
        for (name, value) in &mut self.details {
            if matches!(name.as_str(), "indexedDocuments" | "deletedDocuments" | "editedDocuments")
                && (self.kind != "documentEdition" || name == "editedDocuments")
            {
                *value = json!(0);
            }
        }
    }

    fn finish(&mut self, started: OffsetDateTime) {
        let now = OffsetDateTime::now_utc();
        self.finished_at = Some(timestamp(now));
        self.duration = Some(format!("PT{:.9}S", (now - started).as_seconds_f64().max(0.0)));
        self.work = None;
        if self.status == "processing" {
            self.status = "succeeded".to_owned();
        }
    }
}

/// An instant as Meilisearch writes it.
pub fn timestamp(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_default()
}

/// The present instant as Meilisearch writes it.
pub fn now() -> String {
    timestamp(OffsetDateTime::now_utc())
}

/// All tasks, and those that wait.
#[derive(Default)]
pub struct Queue {
    /// By number.
    pub tasks: BTreeMap<u32, Task>,
    waiting: VecDeque<u32>,
    batches: u32,
}

/// Everything that the server holds.
pub struct Engine {
    store: Mutex<Store>,
    /// The indexes by name.
    pub indexes: RwLock<BTreeMap<String, Index>>,
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Settings of tests.
    pub knobs: Knobs,
    features: Mutex<Map<String, Value>>,
    stopping: AtomicBool,
}

/// Takes a lock also after a panic of another holder: every change under these locks is made whole or not at all.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// Loads everything from the store and takes up the tasks that wait.
    pub fn open(store: Store) -> anyhow::Result<Arc<Self>> {
        let mut indexes = BTreeMap::new();
        for stored in store.indexes()? {
            let settings = Settings::compile(stored.settings);
            let mut index =
                Index::new(stored.number, stored.created_at, stored.updated_at, stored.primary_key, settings);
            let primary_key = index.primary_key.clone().unwrap_or_default();
            let mut prepared = Vec::new();
            for (docid, tree) in store.documents(stored.number)? {
                let id = super::documents::id_at(&tree, &primary_key).and_then(super::documents::id_text);
                let id = id.with_context(|| format!("stored document {docid} of `{}` has no id", stored.uid))?;
                prepared.push(Index::prepare(&index.settings, docid, id, tree));
            }
            index.apply(prepared);
            indexes.insert(stored.uid, index);
        }
        let mut queue = Queue::default();
        for mut task in store.tasks()? {
            queue.batches = queue.batches.max(task.batch.map_or(0, |batch| batch + 1));
            if task.work.is_some() {
                task.status = "enqueued".to_owned();
                queue.waiting.push_back(task.uid);
            }
            queue.tasks.insert(task.uid, task);
        }
        let features = match store.meta("features")? {
            Some(text) => serde_json::from_str(&text).context("stored features are not readable")?,
            None => Map::new(),
        };
        let engine = Arc::new(Self {
            store: Mutex::new(store),
            indexes: RwLock::new(indexes),
            queue: Mutex::new(queue),
            wake: Condvar::new(),
            knobs: Knobs::default(),
            features: Mutex::new(features),
            stopping: AtomicBool::new(false),
        });
        let worker = Arc::clone(&engine);
        std::thread::Builder::new().name("tasks".to_owned()).spawn(move || worker.work())?;
        Ok(engine)
    }

    /// Ends the worker after the batch under way.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.wake.notify_all();
    }

    /// Looks again whether there is work, after a knob was turned.
    pub fn nudge(&self) {
        self.wake.notify_all();
    }

    /// Stores a task and puts it in the queue. The answer is what the client gets.
    pub fn enqueue(&self, index: &str, kind: &str, details: Map<String, Value>, work: Work) -> Result<Value> {
        self.enqueue_with(index, kind, details, work, None)
    }

    /// The same with what the client attached.
    pub fn enqueue_with(
        &self,
        index: &str,
        kind: &str,
        details: Map<String, Value>,
        work: Work,
        metadata: Option<String>,
    ) -> Result<Value> {
        let mut queue = lock(&self.queue);
        let uid = queue.tasks.last_key_value().map_or(0, |(uid, _)| uid + 1);
        let task = Task {
            uid,
            batch: None,
            index: index.to_owned(),
            kind: kind.to_owned(),
            status: "enqueued".to_owned(),
            details,
            error: None,
            enqueued_at: now(),
            started_at: None,
            finished_at: None,
            duration: None,
            metadata,
            work: Some(work),
        };
        lock(&self.store).commit(&[Write::Task(Box::new(task.clone()))]).map_err(ApiError::internal)?;
        let summary = task.summary();
        queue.tasks.insert(uid, task);
        queue.waiting.push_back(uid);
        self.wake.notify_all();
        Ok(summary)
    }

    /// Reads the queue.
    pub fn with_queue<T>(&self, read: impl FnOnce(&Queue) -> T) -> T {
        read(&lock(&self.queue))
    }

    /// Whether a task of this index is being processed.
    pub fn is_indexing(&self, index: &str) -> bool {
        let queue = lock(&self.queue);
        queue.tasks.values().rev().any(|task| task.status == "processing" && task.index == index)
    }

    /// The size of the store in bytes.
    pub fn size(&self) -> u64 {
        lock(&self.store).size().unwrap_or(0)
    }

    /// The runtime features that were set.
    pub fn features(&self) -> Map<String, Value> {
        lock(&self.features).clone()
    }

    /// Sets runtime features.
    pub fn set_features(&self, change: Map<String, Value>) -> Result<()> {
        let mut features = lock(&self.features);
        features.extend(change);
        let text = serde_json::to_string(&*features).map_err(ApiError::internal)?;
        lock(&self.store).set_meta("features", &text).map_err(ApiError::internal)
    }

    /// Commits what a batch did. The indexes in memory are changed afterwards.
    pub fn commit(&self, writes: &[Write]) -> anyhow::Result<()> {
        lock(&self.store).commit(writes)
    }

    fn work(&self) {
        while let Some(mut batch) = self.next_batch() {
            let started = OffsetDateTime::now_utc();
            let fail = self.knobs.take_task_failure();
            if let Some(code) = fail {
                for task in &mut batch {
                    task.fail(&ApiError::new(code, "The stand-in was told to fail this task."));
                }
            }
            let outcome = apply::run(self, &mut batch, fail.is_some(), |task| task.finish(started));
            if let Err(e) = outcome {
                for task in &mut batch {
                    task.fail(&ApiError::internal(format!("{e:#}")));
                    task.finish(started);
                }
            }
            let mut queue = lock(&self.queue);
            for task in batch {
                queue.tasks.insert(task.uid, task);
            }
        }
    }

    /// Waits for work; takes the oldest task and those behind it that can go with it. `None` when the server stops.
    fn next_batch(&self) -> Option<Vec<Task>> {
        let mut queue = lock(&self.queue);
        loop {
            if self.stopping.load(Ordering::SeqCst) {
                return None;
            }
            if !queue.waiting.is_empty() && !self.knobs.tasks_stopped() {
                break;
            }
            let wait = self.wake.wait_timeout(queue, Duration::from_secs(1));
            queue = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        let uids = pick(&queue);
        queue.waiting.retain(|uid| !uids.contains(uid));
        let number = queue.batches;
        queue.batches += 1;
        let started = now();
        let mut batch = Vec::with_capacity(uids.len());
        for uid in uids {
            let Some(task) = queue.tasks.get_mut(&uid) else { continue };
            task.status = "processing".to_owned();
            task.batch = Some(number);
            task.started_at = Some(started.clone());
            batch.push(task.clone());
            task.work = None;
        }
        Some(batch)
    }
}

fn batches_with_documents(work: Option<&Work>) -> bool {
    matches!(work, Some(Work::Documents { .. } | Work::DeleteIds(_)))
}

/// The oldest waiting task; if it is about documents, also the following ones of the same index up to the first that is
/// about something else.
fn pick(queue: &Queue) -> Vec<u32> {
    let Some(first) = queue.waiting.front().and_then(|uid| queue.tasks.get(uid)) else { return Vec::new() };
    let mut uids = vec![first.uid];
    if !batches_with_documents(first.work.as_ref()) {
        return uids;
    }
    for task in queue.waiting.iter().skip(1).filter_map(|uid| queue.tasks.get(uid)) {
        if task.index != first.index {
            continue;
        }
        if !batches_with_documents(task.work.as_ref()) || uids.len() == MAX_BATCH {
            break;
        }
        uids.push(task.uid);
    }
    uids
}
