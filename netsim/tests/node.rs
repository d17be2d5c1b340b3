//! The golden cases: what the stand-in node answers, and that a real node answers the same.
//!
//! Each case is data (`tests/golden/*.json`): an index, requests, and facts that their answers must show. The cases run
//! against the stand-in, and against a real Meilisearch if `MEILISEARCH_BIN` names one or `meilisearch` is on the PATH;
//! then the answers of both are also compared with each other, field by field, but for what changes with every run and
//! what a case lists under `differs` because the stand-in knows it to be different.

mod common;

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use common::RUN;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use netsim::node::{Args, Node};
use serde_json::{Value, json};

const KEY: &str = "golden-cases-key";

struct Engine {
    base: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

struct Answer {
    status: u16,
    body: Value,
}

impl Engine {
    fn at(base: String) -> Self {
        // No connection is used twice: a server that refuses a request unread closes it, and the next one would fail.
        Self { base, client: Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http() }
    }

    async fn call(&self, method: &str, path: &str, headers: &[(String, String)], body: Bytes) -> Result<Answer> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization")) {
            request = request.header("Authorization", format!("Bearer {KEY}"));
        }
        for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
            request = request.header(name, value);
        }
        let response = self.client.request(request.body(Full::new(body))?).await?;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await?.to_bytes();
        let body = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes)? };
        Ok(Answer { status, body })
    }

    async fn json(&self, method: &str, path: &str, body: &Value) -> Result<Answer> {
        let headers = [("Content-Type".to_owned(), "application/json".to_owned())];
        self.call(method, path, &headers, serde_json::to_vec(body)?.into()).await
    }

    /// The task of an answer, once it is finished.
    async fn finished(&self, answer: &Answer) -> Result<Value> {
        let uid = answer.body["taskUid"].as_u64().with_context(|| format!("no task in {}", answer.body))?;
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let task = self.call("GET", &format!("/tasks/{uid}"), &[], Bytes::new()).await?.body;
            if task["status"] != "enqueued" && task["status"] != "processing" {
                return Ok(task);
            }
            ensure!(Instant::now() < deadline, "task {uid} does not end: {task}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn setup(&self, index: &str, setup: &Value) -> Result<()> {
        if setup.is_null() {
            return Ok(());
        }
        let mut last = self.json("POST", "/indexes", &json!({"uid": index, "primaryKey": "id"})).await?;
        if let Some(settings) = setup.get("settings") {
            last = self.json("PATCH", &format!("/indexes/{index}/settings"), settings).await?;
            ensure!(last.status == 202, "settings refused: {}", last.body);
        }
        let documents = match (setup.get("documents"), setup.get("sample").and_then(Value::as_u64)) {
            (Some(documents), _) => documents.clone(),
            (None, Some(count)) => Value::Array(sample()?.into_iter().take(count as usize).collect()),
            (None, None) => json!([]),
        };
        if documents != json!([]) {
            last = self.json("POST", &format!("/indexes/{index}/documents"), &documents).await?;
        }
        let task = self.finished(&last).await?;
        ensure!(task["status"] == "succeeded", "setup failed: {task}");
        Ok(())
    }

    /// Carries out one request of a case.
    async fn run(&self, index: &str, request: &Value) -> Result<Answer> {
        let path =
            request["path"].as_str().context("a request has no path")?.replace("{i}", index).replace("{task0}", "0");
        let method = request["method"].as_str().unwrap_or("GET");
        let mut headers: Vec<(String, String)> = Vec::new();
        for (name, value) in request["headers"].as_object().into_iter().flatten() {
            headers.push((name.clone(), value.as_str().unwrap_or("").to_owned()));
        }
        let body = match (request.get("body"), request.get("text").and_then(Value::as_str)) {
            (Some(body), _) => {
                headers.push(("Content-Type".to_owned(), "application/json".to_owned()));
                serde_json::to_string(body)?.replace("{i}", index)
            }
            (None, text) => text.unwrap_or("").to_owned(),
        };
        let body = match request.get("gzip") {
            Some(_) => {
                headers.push(("Content-Encoding".to_owned(), "gzip".to_owned()));
                let mut packed = Vec::new();
                flate2::read::GzEncoder::new(body.as_bytes(), flate2::Compression::fast()).read_to_end(&mut packed)?;
                packed.into()
            }
            None => Bytes::from(body),
        };
        let answer = self.call(method, &path, &headers, body).await?;
        match request.get("task") {
            Some(_) => Ok(Answer { status: answer.status, body: self.finished(&answer).await? }),
            None => Ok(answer),
        }
    }
}

fn sample() -> Result<Vec<Value>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/packages-3000.ndjson.gz");
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(file)?).read_to_string(&mut text)?;
    Ok(text.lines().map(serde_json::from_str).collect::<serde_json::Result<_>>()?)
}

fn cases() -> Result<Vec<(String, Value)>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|end| end == "json"));
    files.sort();
    let mut cases = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file)?;
        let list: Vec<Value> = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
        let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or("").to_owned();
        for case in list {
            let name = format!("{stem}: {}", case["name"].as_str().context("a case has no name")?);
            cases.push((name, case));
        }
    }
    Ok(cases)
}

/// The facts that an answer does not show.
fn unmet(index: &str, request: &Value, answer: &Answer) -> Vec<String> {
    let mut unmet = Vec::new();
    let status = request.get("status").and_then(Value::as_u64);
    let usual = if request.get("task").is_some() { 202 } else { 200 };
    if u64::from(answer.status) != status.unwrap_or(usual) {
        unmet.push(format!("status {} instead of {}: {}", answer.status, status.unwrap_or(usual), answer.body));
    }
    for (pointer, wanted) in request["expect"].as_object().into_iter().flatten() {
        let found = pluck(&answer.body, pointer);
        let wanted: Value = serde_json::from_str(&wanted.to_string().replace("{i}", index)).unwrap_or_default();
        if found != wanted {
            unmet.push(format!("{pointer} is {found} instead of {wanted}"));
        }
    }
    unmet
}

/// What stands at a JSON pointer; `*` takes all elements, a trailing `#` counts them, `keys()` lists keys in order.
fn pluck(value: &Value, pointer: &str) -> Value {
    let Some(rest) = pointer.strip_prefix('/') else { return value.clone() };
    let (first, behind) = match rest.find('/') {
        Some(at) => (&rest[..at], &rest[at..]),
        None => (rest, ""),
    };
    match (first, value) {
        ("*", Value::Array(items)) => items.iter().map(|item| pluck(item, behind)).collect(),
        ("#", Value::Array(items)) => json!(items.len()),
        ("keys()", Value::Object(map)) => pluck(&map.keys().cloned().collect(), behind),
        (at, Value::Array(items)) => {
            at.parse().ok().and_then(|at: usize| items.get(at)).map_or(Value::Null, |item| pluck(item, behind))
        }
        (name, Value::Object(map)) => map.get(&name.replace("~1", "/")).map_or(Value::Null, |item| pluck(item, behind)),
        _ => Value::Null,
    }
}

fn excused(path: &str, differs: &BTreeSet<String>) -> bool {
    let last = path.rsplit('/').next().unwrap_or("");
    let general: String = path
        .split('/')
        .map(|part| if part.parse::<usize>().is_ok() { "*" } else { part })
        .collect::<Vec<_>>()
        .join("/");
    RUN.contains(&last)
        || last == "link"
        || differs.contains(path)
        || differs.contains(&general)
        || differs.contains(last)
}

/// Where two answers differ.
fn differences(path: &str, ours: &Value, real: &Value, differs: &BTreeSet<String>, out: &mut Vec<String>) {
    if excused(path, differs) {
        return;
    }
    match (ours, real) {
        (Value::Object(a), Value::Object(b)) => {
            for name in a.keys().chain(b.keys().filter(|name| !a.contains_key(*name))) {
                let (x, y) = (a.get(name), b.get(name));
                match (x, y) {
                    (Some(x), Some(y)) => differences(&format!("{path}/{name}"), x, y, differs, out),
                    _ if excused(&format!("{path}/{name}"), differs) => {}
                    _ => out.push(format!("{path}/{name}: {x:?} here, {y:?} there")),
                }
            }
            if path.contains("/facetDistribution") && a.len() == b.len() && !a.keys().eq(b.keys()) {
                out.push(format!("{path}: another order of keys: {:?}, {:?}", a.keys(), b.keys()));
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (at, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}/{at}"), a, b, differs, out);
            }
        }
        (Value::Number(a), Value::Number(b))
            if a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| (a - b).abs() < 1e-6) => {}
        (a, b) if a == b => {}
        (a, b) => out.push(format!("{path}: {a} here, {b} there")),
    }
}

struct Real {
    child: Child,
    engine: Engine,
    _dir: tempfile::TempDir,
}

impl Drop for Real {
    fn drop(&mut self) {
        // Nothing can be done about a process that is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn real_binary() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("MEILISEARCH_BIN") {
        return Some(PathBuf::from(named));
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join("meilisearch")).find(|file| file.is_file())
}

/// Starts a real node, and makes sure that it is this one that answers and not another at the same port.
async fn start_real() -> Result<Option<Real>> {
    let Some(binary) = real_binary() else { return Ok(None) };
    let dir = tempfile::tempdir()?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let child = Command::new(&binary)
        .args(["--no-analytics", "--http-addr", &format!("127.0.0.1:{port}"), "--db-path", "data"])
        .env("MEILI_MASTER_KEY", KEY)
        .current_dir(dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", binary.display()))?;
    let mut real = Real { child, engine: Engine::at(format!("http://127.0.0.1:{port}")), _dir: dir };
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(status) = real.child.try_wait()? {
            bail!("{} ended: {status}", binary.display());
        }
        if let Ok(answer) = real.engine.call("GET", "/version", &[], Bytes::new()).await {
            ensure!(answer.status == 200, "another node answers: {}", answer.body);
            eprintln!("real node: {} {}", binary.display(), answer.body["pkgVersion"]);
            return Ok(Some(real));
        }
        ensure!(Instant::now() < deadline, "{} does not answer", binary.display());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn stand_in(dir: &Path) -> Result<Engine> {
    let args = Args {
        http_addr: "127.0.0.1:0".parse()?,
        db_path: dir.to_owned(),
        master_key: Some(KEY.to_owned()),
        delay_ms: 0,
    };
    let node = Node::open(&args).await?;
    let engine = Engine::at(format!("http://{}", node.address()?));
    tokio::spawn(node.serve(std::future::pending()));
    Ok(engine)
}

#[tokio::test(flavor = "multi_thread")]
async fn stand_in_and_real_node_answer_the_golden_cases_alike() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let ours = stand_in(dir.path()).await?;
    let real = start_real().await?;
    if real.is_none() {
        eprintln!("comparison with a real node: not run: needs a real Meilisearch (MEILISEARCH_BIN, or on the PATH)");
    }
    let only = std::env::var("GOLDEN").unwrap_or_default();
    let (mut failures, mut count) = (Vec::new(), 0);
    for (number, (name, case)) in cases()?.into_iter().enumerate().filter(|(_, (name, _))| name.contains(&only)) {
        let index = format!("case{number}");
        let context = |engine: &str| format!("{name}: setup on the {engine}");
        ours.setup(&index, &case["setup"]).await.with_context(|| context("stand-in"))?;
        if let Some(real) = &real {
            real.engine.setup(&index, &case["setup"]).await.with_context(|| context("real node"))?;
        }
        for request in case["requests"].as_array().context("a case has no requests")? {
            count += 1;
            let title = format!("{name}: {} {} {}", request["method"], request["path"], request["body"]);
            let answer = ours.run(&index, request).await.with_context(|| title.clone())?;
            let note = |engine: &str, why: String| format!("{title}\n    {engine}: {why}");
            failures.extend(unmet(&index, request, &answer).into_iter().map(|why| note("stand-in", why)));
            let Some(real) = &real else { continue };
            let theirs = real.engine.run(&index, request).await.with_context(|| title.clone())?;
            failures.extend(unmet(&index, request, &theirs).into_iter().map(|why| note("real node", why)));
            let lists = [&case["differs"], &request["differs"]].into_iter().filter_map(Value::as_array);
            let differs = lists.flatten().filter_map(|path| path.as_str().map(str::to_owned)).collect();
            let mut found = Vec::new();
            differences("", &answer.body, &theirs.body, &differs, &mut found);
            failures.extend(found.into_iter().map(|why| note("differs", why)));
        }
    }
    eprintln!("{count} requests, engines: stand-in{}", if real.is_some() { ", real Meilisearch" } else { "" });
    ensure!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
    Ok(())
}

/// The binary, run as its own process.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing can be done about a process that is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn process(dir: &Path) -> Result<(Process, Engine)> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_netsim"));
    command.args(["node", "--http-addr", &format!("127.0.0.1:{port}"), "--db-path"]).arg(dir);
    let mut process = Process(command.env("MEILI_MASTER_KEY", KEY).stderr(Stdio::null()).spawn()?);
    let engine = Engine::at(format!("http://127.0.0.1:{port}"));
    let deadline = Instant::now() + Duration::from_secs(20);
    while engine.call("GET", "/version", &[], Bytes::new()).await.is_err() {
        ensure!(process.0.try_wait()?.is_none(), "the node ended");
        ensure!(Instant::now() < deadline, "the node does not answer");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok((process, engine))
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_tasks_survive_kill_9_and_are_done_once() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let documents: Vec<Value> = (0..400).map(|id| json!({"id": id, "round": 0})).collect();
    let mut acknowledged = 0;
    for round in 0..4_usize {
        // Dropping the process is SIGKILL: while tasks are under way, at another instant in each round.
        let (_process, engine) = process(dir.path()).await?;
        for part in 0..6_usize {
            let body = json!({"id": acknowledged, "round": round, "part": part});
            let answer = engine.json("PUT", "/indexes/kill/documents?primaryKey=id", &body).await?;
            ensure!(answer.status == 202, "refused: {}", answer.body);
            ensure!(answer.body["taskUid"] == json!(acknowledged), "a task uid was given twice: {}", answer.body);
            acknowledged += 1;
            if part == round {
                let path = "/indexes/kill/documents?primaryKey=id&skipCreation=true";
                let answer = engine.json("PUT", path, &json!(documents)).await?;
                ensure!(answer.status == 202, "refused: {}", answer.body);
                acknowledged += 1;
            }
        }
    }
    let (_process, engine) = process(dir.path()).await?;
    engine.finished(&Answer { status: 202, body: json!({"taskUid": acknowledged - 1}) }).await?;
    let tasks = engine.call("GET", "/tasks?limit=1000", &[], Bytes::new()).await?.body;
    ensure!(tasks["total"] == json!(acknowledged), "tasks were lost: {}", tasks["total"]);
    let failed = engine.call("GET", "/tasks?statuses=failed,enqueued,processing", &[], Bytes::new()).await?.body;
    ensure!(failed["total"] == json!(0), "tasks are not done: {failed}");
    let stats = engine.call("GET", "/indexes/kill/stats", &[], Bytes::new()).await?.body;
    ensure!(stats["numberOfDocuments"] == json!(24), "documents were lost: {stats}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn knobs_delay_fail_and_stop() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let engine = stand_in(dir.path()).await?;
    let turn = async |knobs: Value| engine.json("POST", "/_standin/knobs", &knobs).await;
    engine.setup("k", &json!({"documents": [{"id": 1}]})).await?;

    turn(json!({"fail_next": 2, "fail_status": 503})).await?;
    for wanted in [503, 503, 200] {
        ensure!(engine.json("POST", "/indexes/k/search", &json!({})).await?.status == wanted);
    }
    turn(json!({"search_delay_ms": 150})).await?;
    let started = Instant::now();
    engine.json("POST", "/indexes/k/search", &json!({})).await?;
    ensure!(started.elapsed() >= Duration::from_millis(150));

    turn(json!({"search_delay_ms": 0, "hang": true})).await?;
    let search = json!({});
    let hanging = engine.json("POST", "/indexes/k/search", &search);
    ensure!(tokio::time::timeout(Duration::from_millis(200), hanging).await.is_err(), "it answered");

    turn(json!({"hang": false, "stop_tasks": true})).await?;
    let answer = engine.json("POST", "/indexes/k/documents", &json!({"id": 2})).await?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let uid = answer.body["taskUid"].clone();
    let task = engine.call("GET", &format!("/tasks/{uid}"), &[], Bytes::new()).await?.body;
    ensure!(task["status"] == "enqueued", "{task}");
    turn(json!({"stop_tasks": false, "fail_tasks": 1, "fail_code": "io_error"})).await?;
    let task = engine.finished(&answer).await?;
    ensure!(task["status"] == "failed" && task["error"]["code"] == "io_error", "{task}");
    let answer = engine.json("POST", "/indexes/k/documents", &json!({"id": 2})).await?;
    ensure!(engine.finished(&answer).await?["status"] == "succeeded");
    ensure!(turn(json!({"no_such_knob": 1})).await?.status == 400);
    Ok(())
}
