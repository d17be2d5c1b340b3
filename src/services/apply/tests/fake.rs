//! A small node over HTTP: indexes, a queue, batches that fail as a whole, and faults.
//!
//! Rule: it does what a node was seen to do, and never knows who asks. Must not know: journals, members.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::types::{SHARD_FIELD, ShardId};

/// Documents by id.
pub(super) type Documents = BTreeMap<String, Value>;

/// How unkind the node is, in hundredths of each occasion.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Faults {
    /// A request is not done, and has no answer.
    pub(super) lost: u32,
    /// A request is done, and its answer does not come.
    pub(super) unanswered: u32,
    /// A batch fails by the node's own trouble.
    pub(super) trouble: u32,
}

#[derive(Debug, Default, Clone)]
pub(super) struct Index {
    pub(super) documents: Documents,
    pub(super) settings: serde_json::Map<String, Value>,
    primary_key: Option<String>,
}

#[derive(Debug, Clone)]
struct Task {
    view: Value,
    method: String,
    route: String,
    query: BTreeMap<String, String>,
    body: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) indexes: BTreeMap<String, Index>,
    tasks: BTreeMap<u32, Task>,
    next: u32,
    batches: u32,
    clock: u64,
    pub(super) faults: Faults,
    /// Documents with these fields are refused by this node, but not such as come from another.
    pub(super) refuses: Vec<&'static str>,
    /// Nothing in the queue is done.
    pub(super) stands: bool,
    /// Bodies of more are refused.
    pub(super) largest: usize,
    /// Behind each list of ids the first of them is deleted.
    pub(super) shrinks: bool,
    rng: fastrand::Rng,
}

/// A handle of the node; cheap to clone.
#[derive(Clone)]
pub(super) struct Fake {
    state: Arc<Mutex<State>>,
    pub(super) url: String,
}

impl Fake {
    pub(super) async fn start(seed: u64) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", socket.local_addr().unwrap());
        let state = State {
            indexes: BTreeMap::new(),
            tasks: BTreeMap::new(),
            next: 0,
            batches: 0,
            clock: 1_700_000_000,
            faults: Faults::default(),
            refuses: vec!["bad"],
            stands: false,
            largest: 0,
            shrinks: false,
            rng: fastrand::Rng::with_seed(seed),
        };
        let fake = Self { state: Arc::new(Mutex::new(state)), url };
        let serving = fake.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = socket.accept().await.unwrap();
                let serving = serving.clone();
                tokio::spawn(async move { serving.serve(stream).await });
            }
        });
        let working = fake.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(3)).await;
                working.state().batch();
            }
        });
        fake
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn documents(&self, index: &str) -> Documents {
        self.state().indexes.get(index).map(|index| index.documents.clone()).unwrap_or_default()
    }

    /// Requests on one connection, one after the other.
    async fn serve(&self, mut stream: TcpStream) {
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => return,
                }
            }
            let head = String::from_utf8(head).unwrap();
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().unwrap())
            });
            let mut body = vec![0; length.unwrap_or(0)];
            if stream.read_exact(&mut body).await.is_err() {
                return;
            }
            let mut words = head.split(' ');
            let (method, target) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
            let answer = {
                let mut state = self.state();
                let (faults, dice) = (state.faults, state.rng.u32(0..100));
                let writes = method != "GET" && !target.contains("/fetch");
                if writes && dice < faults.lost {
                    None
                } else {
                    let answer = state.answer(&method, &target, body);
                    (!writes || dice >= faults.lost + faults.unanswered).then_some(answer)
                }
            };
            // Without an answer the connection ends.
            let Some((status, body)) = answer else { return };
            let body = body.to_string();
            let text = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            if stream.write_all(text.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

fn no_index() -> (u16, Value) {
    (404, json!({ "message": "Index not found.", "code": "index_not_found", "type": "invalid_request", "link": "" }))
}

impl State {
    /// The node is put back to before everything.
    pub(super) fn empty(&mut self) {
        self.indexes.clear();
        self.tasks.clear();
        self.next = 0;
    }

    /// A copy of everything, for [`Self::put_back`].
    pub(super) fn copy(&self) -> (BTreeMap<String, Index>, Vec<(u32, Value)>, u32) {
        let tasks = self.tasks.iter().map(|(uid, task)| (*uid, task.view.clone())).collect();
        (self.indexes.clone(), tasks, self.next)
    }

    /// The node is put back to an earlier time. What waited then is not done any more.
    pub(super) fn put_back(&mut self, (indexes, tasks, next): (BTreeMap<String, Index>, Vec<(u32, Value)>, u32)) {
        self.indexes = indexes;
        let kept: BTreeMap<u32, Value> = tasks.into_iter().collect();
        self.tasks.retain(|uid, _| kept.contains_key(uid));
        for (uid, task) in &mut self.tasks {
            task.view = kept[uid].clone();
        }
        self.next = next;
    }

    fn time(&mut self) -> String {
        self.clock += 1;
        crate::rt::clock::rfc3339_at(self.clock)
    }

    fn answer(&mut self, method: &str, target: &str, body: Vec<u8>) -> (u16, Value) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query: BTreeMap<String, String> = query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.replace("%3A", ":")))
            .collect();
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        match (method, &parts[..]) {
            ("GET", ["tasks"]) => self.list(&query),
            ("GET", ["tasks", uid]) => match self.tasks.get(&uid.parse().unwrap()) {
                Some(task) => (200, task.view.clone()),
                None => (404, json!({ "message": "Task not found.", "code": "task_not_found" })),
            },
            ("GET", ["indexes", uid, "settings"]) => match self.indexes.get(*uid) {
                Some(index) => (200, index.settings.clone().into()),
                None => no_index(),
            },
            ("GET", ["indexes", uid, "settings", _]) => match self.indexes.get(*uid) {
                Some(_) => (200, json!([SHARD_FIELD])),
                None => no_index(),
            },
            ("GET", ["indexes", uid]) => match self.indexes.get(*uid) {
                Some(index) => (200, json!({ "uid": uid, "primaryKey": index.primary_key })),
                None => no_index(),
            },
            ("POST", ["indexes", uid, "documents", "fetch"]) => {
                let Some(index) = self.indexes.get_mut(*uid) else { return no_index() };
                let asked: Value = serde_json::from_slice(&body).unwrap();
                let Some(ids) = asked["ids"].as_array() else {
                    let finds = filter(&body);
                    let found: Vec<Value> =
                        index.documents.values().filter(|document| finds(document)).map(|d| d["id"].clone()).collect();
                    let size = |name: &str| usize::try_from(asked[name].as_u64().unwrap_or(0)).unwrap();
                    let (offset, limit) = (size("offset"), size("limit"));
                    if limit > 0 {
                        assert_eq!(asked["fields"], json!(["id"]));
                    }
                    let results: Vec<Value> =
                        found.iter().skip(offset).take(limit).map(|id| json!({ "id": id })).collect();
                    if let Some(first) = found.first().and_then(Value::as_str).filter(|_| self.shrinks) {
                        index.documents.remove(first);
                    }
                    return (200, json!({ "results": results, "total": found.len() }));
                };
                let ids = ids.iter().filter_map(|id| id.as_str());
                let found = ids.filter_map(|id| index.documents.get(id));
                if asked["fields"] == json!(["id"]) {
                    let results: Vec<Value> = found.map(|document| json!({ "id": document["id"] })).collect();
                    return (200, json!({ "results": results }));
                }
                let results: Vec<&Value> = found.collect();
                (200, json!({ "results": results }))
            }
            ("POST", ["indexes", uid, "search"]) => {
                let Some(index) = self.indexes.get(*uid) else { return no_index() };
                let asked: Value = serde_json::from_slice(&body).unwrap();
                let finds = |document: &Value| asked.get("filter").is_none() || filter(&body)(document);
                let hits: Vec<&Value> = index.documents.values().filter(|document| finds(document)).collect();
                (200, json!({ "hits": hits }))
            }
            (_, ["indexes", uid, rest @ ..]) => {
                self.largest = self.largest.max(body.len());
                self.enqueue(method, uid, &rest.join("/"), query, body)
            }
            other => panic!("nobody asks {other:?} here"),
        }
    }

    fn list(&self, query: &BTreeMap<String, String>) -> (u16, Value) {
        let limit: usize = query["limit"].parse().unwrap();
        let from: u32 = query.get("from").map_or(u32::MAX, |from| from.parse().unwrap());
        let fits = |task: &&Task| {
            query.get("indexUids").is_none_or(|uid| task.view["indexUid"] == *uid)
                && query.get("types").is_none_or(|kind| task.view["type"] == *kind)
                && query.get("statuses").is_none_or(|all| all.split(',').any(|one| task.view["status"] == one))
        };
        let mut all = self.tasks.range(..=from).rev().map(|(_, task)| task).filter(fits);
        let results: Vec<Value> = all.by_ref().take(limit).map(|task| task.view.clone()).collect();
        let next = all.next().map(|task| task.view["uid"].clone());
        let total = self.tasks.values().filter(fits).count();
        (200, json!({ "results": results, "next": next, "total": total, "limit": limit, "from": from }))
    }

    fn enqueue(
        &mut self,
        method: &str,
        index: &str,
        route: &str,
        query: BTreeMap<String, String>,
        body: Vec<u8>,
    ) -> (u16, Value) {
        let kind = match (method, route) {
            ("PATCH", "settings") => "settingsUpdate",
            ("PATCH", "") => "indexUpdate",
            ("POST" | "PUT", "documents") => "documentAdditionOrUpdate",
            ("POST", "documents/edit") => "documentEdition",
            ("POST" | "DELETE", _) => "documentDeletion",
            other => panic!("nobody sends {other:?} here"),
        };
        let (uid, at) = (self.next, self.time());
        self.next += 1;
        let view = json!({
            "uid": uid, "batchUid": null, "indexUid": index, "status": "enqueued", "type": kind, "canceledBy": null,
            "details": {}, "error": null, "enqueuedAt": at, "startedAt": null, "finishedAt": null,
            "customMetadata": query.get("customMetadata"),
        });
        let (method, route) = (method.to_owned(), route.to_owned());
        self.tasks.insert(uid, Task { view, method, route, query, body });
        (202, json!({ "taskUid": uid, "indexUid": index, "status": "enqueued", "type": kind, "enqueuedAt": at }))
    }

    /// Tasks in the queue.
    pub(super) fn waiting(&self) -> usize {
        self.tasks.values().filter(|task| task.view["status"] == "enqueued").count()
    }

    /// Works on some of what waits: consecutive tasks of one index and of document kinds, all or none.
    fn batch(&mut self) {
        let first = self.tasks.iter().find(|(_, task)| task.view["status"] == "enqueued").map(|(uid, _)| *uid);
        let Some(first) = first.filter(|_| !self.stands) else { return };
        let of = |task: &Task| (task.view["indexUid"].clone(), task.view["type"].clone());
        let (like, most) = (of(&self.tasks[&first]), self.rng.usize(1..6));
        let together = |task: &Task| of(task) == like && like.1 == "documentAdditionOrUpdate";
        let batch: Vec<u32> = self
            .tasks
            .range(first..)
            .take_while(|(uid, task)| **uid == first || together(task))
            .map(|(uid, _)| *uid)
            .take(most)
            .collect();
        self.batches += 1;
        let (number, started) = (self.batches, self.time());
        let uid = like.0.as_str().unwrap().to_owned();
        let before = self.indexes.get(&uid).cloned();
        let mut error =
            (self.rng.u32(0..100) < self.faults.trouble).then(|| ("no_space_left_on_device", "full".to_owned()));
        let mut counts = Vec::new();
        for task in &batch {
            let task = self.tasks[task].clone();
            match self.work(&uid, &task) {
                Ok(count) => counts.push(count),
                Err(why) => error = error.or(Some(why)),
            }
        }
        if error.is_some() {
            match before {
                Some(before) => drop(self.indexes.insert(uid, before)),
                None => drop(self.indexes.remove(&uid)),
            }
        }
        let finished = self.time();
        for (at, task) in batch.iter().enumerate() {
            let view = &mut self.tasks.get_mut(task).unwrap().view;
            view["batchUid"] = number.into();
            view["startedAt"] = started.clone().into();
            view["finishedAt"] = finished.clone().into();
            match &error {
                None => {
                    view["status"] = "succeeded".into();
                    let (edited, deleted) = (counts[at], counts[at]);
                    view["details"] = json!({ "editedDocuments": edited, "deletedDocuments": deleted });
                }
                Some((code, message)) => {
                    view["status"] = "failed".into();
                    view["error"] = json!({ "code": code, "message": message, "type": "t", "link": "l" });
                }
            }
        }
    }

    fn work(&mut self, uid: &str, task: &Task) -> Result<u64, (&'static str, String)> {
        if task.route == "settings" {
            let patch: serde_json::Map<String, Value> = serde_json::from_slice(&task.body).unwrap();
            self.indexes.entry(uid.to_owned()).or_default().settings.extend(patch);
            return Ok(0);
        }
        let missing = ("index_not_found", format!("Index `{uid}` not found."));
        let (refuses, index) = (self.refuses.clone(), self.indexes.get_mut(uid).ok_or(missing)?);
        let before = index.documents.len() as u64;
        match task.route.as_str() {
            "" => index.primary_key = Some("id".into()),
            "documents" if task.method == "DELETE" => index.documents.clear(),
            "documents" => {
                assert_eq!(task.query["primaryKey"], "id");
                let only = task.query.contains_key("skipCreation");
                for line in task.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                    let document: Value = serde_json::from_slice(line).unwrap();
                    let copied = task.query["customMetadata"].ends_with(":copy");
                    let refused = refuses.iter().find(|name| document.get(**name).is_some());
                    if let Some(name) = refused.filter(|_| !copied) {
                        return Err(("invalid_document_geo_field", format!("`{name}` in {document}")));
                    }
                    let id = document["id"].as_str().unwrap().to_owned();
                    if only && !index.documents.contains_key(&id) {
                        continue;
                    }
                    match index.documents.get_mut(&id).filter(|_| task.method == "PUT") {
                        Some(old) => old.as_object_mut().unwrap().extend(document.as_object().unwrap().clone()),
                        None => drop(index.documents.insert(id, document)),
                    }
                }
            }
            "documents/delete-batch" => {
                let ids: Vec<String> = serde_json::from_slice(&task.body).unwrap();
                ids.iter().for_each(|id| drop(index.documents.remove(id)));
            }
            "documents/delete" => {
                let finds = filter(&task.body);
                index.documents.retain(|_, document| !finds(document));
            }
            "documents/edit" => {
                let (finds, mut edited) = (filter(&task.body), 0);
                for document in index.documents.values_mut().filter(|document| finds(document)) {
                    document["n"] = (document["n"].as_u64().unwrap_or(0) + 1).into();
                    edited += 1;
                }
                return Ok(edited);
            }
            other => panic!("nobody sends {other} here"),
        }
        Ok(before.saturating_sub(index.documents.len() as u64))
    }
}

/// Which documents a filter finds: `_miroir_shard [NOT] IN [..]` and `v = "…"`, all of them.
fn filter(body: &[u8]) -> impl Fn(&Value) -> bool {
    let filter = serde_json::from_slice::<Value>(body).unwrap()["filter"].clone();
    let all: Vec<String> = match filter {
        Value::Array(list) => list.iter().map(|one| one.as_str().unwrap().to_owned()).collect(),
        one => vec![one.as_str().unwrap().to_owned()],
    };
    assert!(all.iter().any(|one| one.starts_with(SHARD_FIELD)), "a filter on no shards: {all:?}");
    move |document| {
        all.iter().all(|one| match one.strip_prefix(SHARD_FIELD) {
            Some(list) => {
                let letter = document[SHARD_FIELD].as_str().unwrap();
                list.contains(letter) != list.contains("NOT")
            }
            None => one.strip_prefix("v = ").and_then(|v| v.parse::<u64>().ok()).is_some_and(|v| document["v"] == v),
        })
    }
}

/// A document of a shard.
pub(super) fn document(shard: u16, id: u32, v: u32) -> Value {
    json!({ SHARD_FIELD: ShardId(shard).letter().to_string(), "id": format!("{shard}-{id}"), "v": v })
}
