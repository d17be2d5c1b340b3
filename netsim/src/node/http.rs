//! The HTTP server: routes, authentication, knobs, and the routes of indexes, settings and searches.
//!
//! Rule: authentication comes before everything else, checks before effects, and every error has Meilisearch's shape.
//! Must not know: how documents are stored, found or ranked.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLockReadGuard};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, RawQuery, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Map, Value, json};

use super::documents::{MAX_PAYLOAD, check_uid};
use super::error::{ApiError, Result};
use super::index::Index;
use super::knobs::Fate;
use super::params::{Fields, Query};
use super::settings::{self, KEYS, Key};
use super::tasks::{Engine, Work};
use super::{http_documents, http_tasks, search};

const FEATURES: [&str; 15] = [
    "metrics",
    "logsRoute",
    "editDocumentsByFunction",
    "containsFilter",
    "dynamicSearchRules",
    "network",
    "getTaskDocumentsRoute",
    "taskQueueCompactionRoute",
    "compositeEmbedders",
    "chatCompletions",
    "multimodal",
    "foreignKeys",
    "disableDocumentsFetchQueue",
    "legacySearch",
    "renderRoute",
];

/// What handlers share.
pub struct Server {
    /// Everything that is served.
    pub engine: Arc<Engine>,
    /// Requests need this key, if there is one.
    pub master_key: Option<String>,
}

/// The state of handlers.
pub type Shared = State<Arc<Server>>;
/// A successful answer.
pub type Reply = Result<Response>;

/// A JSON answer with status 200.
pub fn ok(value: Value) -> Reply {
    Ok(axum::Json(value).into_response())
}

/// A JSON answer with status 202.
pub fn accepted(summary: Value) -> Reply {
    Ok((StatusCode::ACCEPTED, axum::Json(summary)).into_response())
}

/// The indexes for reading.
pub fn indexes(engine: &Engine) -> RwLockReadGuard<'_, BTreeMap<String, Index>> {
    engine.indexes.read().unwrap_or_else(PoisonError::into_inner)
}

/// Reads something out of one index.
pub fn with_index<T>(engine: &Engine, uid: &str, read: impl FnOnce(&Index) -> Result<T>) -> Result<T> {
    check_uid(uid, "")?;
    read(indexes(engine).get(uid).ok_or_else(|| ApiError::index_not_found(uid))?)
}

/// Runs what may take long beside the threads that serve connections.
pub async fn aside<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)?
}

/// The media type of a request.
pub fn content_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or("").trim().to_ascii_lowercase())
}

/// The JSON body of a request.
pub fn json_body(headers: &HeaderMap, body: &[u8]) -> Result<Value> {
    let accepted = "Accepted values for the Content-Type header are: `application/json`";
    match content_type(headers).as_deref() {
        Some("application/json") => {}
        None => {
            return Err(ApiError::new("missing_content_type", format!("A Content-Type header is missing. {accepted}")));
        }
        Some(other) => {
            return Err(ApiError::new(
                "invalid_content_type",
                format!("The Content-Type `{other}` is invalid. {accepted}"),
            ));
        }
    }
    if body.is_empty() {
        return Err(ApiError::new("missing_payload", "A json payload is missing."));
    }
    serde_json::from_slice(body)
        .map_err(|e| ApiError::new("malformed_payload", format!("The json payload provided is malformed. `{e}`.")))
}

/// The router of the whole server.
pub fn router(server: Arc<Server>) -> Router {
    let mut router = Router::new()
        .route("/", get(async || axum::Json(json!({"status": "Meilisearch is running"}))))
        .route("/health", get(async || axum::Json(json!({"status": "available"}))))
        .route("/version", get(version))
        .route("/stats", get(stats))
        .route("/experimental-features", get(features).patch(set_features))
        .route("/_standin/knobs", get(knobs).post(turn_knobs))
        .route("/indexes", get(list_indexes).post(create_index))
        .route("/indexes/{uid}", get(get_index).patch(update_index).delete(delete_index))
        .route("/indexes/{uid}/stats", get(index_stats))
        .route("/indexes/{uid}/search", get(search_get).post(search_post))
        .route("/multi-search", post(multi_search))
        .route("/indexes/{uid}/settings", get(get_settings).patch(patch_settings).delete(delete_settings))
        .route("/tasks", get(http_tasks::list))
        .route("/tasks/{uid}", get(http_tasks::one));
    for key in &KEYS {
        let set = move |server: Shared, path: Path<String>, headers: HeaderMap, body: Bytes| async move {
            set_setting(server, path, headers, body, key).await
        };
        let routes = get(move |server: Shared, path: Path<String>| async move { get_setting(server, path, key).await })
            .delete(move |server: Shared, path: Path<String>| async move { delete_setting(server, path, key).await });
        let routes = if key.patch { routes.patch(set) } else { routes.put(set) };
        router = router.route(&format!("/indexes/{{uid}}/settings/{}", key.route), routes);
    }
    router
        .merge(http_documents::routes())
        .layer(from_fn_with_state(Arc::clone(&server), guard))
        .layer(DefaultBodyLimit::max(MAX_PAYLOAD))
        .with_state(server)
}

/// Turns what the knobs want, then checks the key.
async fn guard(State(server): Shared, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if path.starts_with("/_standin/") {
        return next.run(request).await;
    }
    let is_search = path.ends_with("/search") || path == "/multi-search";
    match server.engine.knobs.fate(is_search) {
        Fate::Serve(delay) if delay.is_zero() => {}
        Fate::Serve(delay) => tokio::time::sleep(delay).await,
        Fate::Hang => std::future::pending().await,
        Fate::Fail(status) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let error = ApiError::internal("The stand-in was told to fail this request.");
            return (status, axum::Json(error.to_json())).into_response();
        }
    }
    if let Err(error) = authorize(&server, path, request.headers()) {
        return error.into_response();
    }
    next.run(request).await
}

fn authorize(server: &Server, path: &str, headers: &HeaderMap) -> Result<()> {
    let Some(key) = &server.master_key else { return Ok(()) };
    if matches!(path, "/" | "/health") {
        return Ok(());
    }
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    match given.and_then(|value| value.strip_prefix("Bearer ")) {
        Some(token) if token.trim() == key => Ok(()),
        Some(_) => Err(ApiError::new("invalid_api_key", "The provided API key is invalid.")),
        None => Err(ApiError::new(
            "missing_authorization_header",
            "The Authorization header is missing. It must use the bearer authorization method.",
        )),
    }
}

async fn version() -> Reply {
    ok(json!({"commitSha": "stand-in", "commitDate": "unknown", "pkgVersion": "1.50.0"}))
}

async fn knobs(State(server): Shared) -> Reply {
    ok(server.engine.knobs.turn(&json!({}))?)
}

async fn turn_knobs(State(server): Shared, headers: HeaderMap, body: Bytes) -> Reply {
    let state = server.engine.knobs.turn(&json_body(&headers, &body)?)?;
    server.engine.nudge();
    ok(state)
}

fn shown_features(engine: &Engine) -> Value {
    let set = engine.features();
    let shown = FEATURES.iter().map(|name| ((*name).to_owned(), set.get(*name).cloned().unwrap_or(json!(false))));
    Value::Object(shown.collect())
}

async fn features(State(server): Shared) -> Reply {
    ok(shown_features(&server.engine))
}

async fn set_features(State(server): Shared, headers: HeaderMap, body: Bytes) -> Reply {
    let body = json_body(&headers, &body)?;
    let fields = Fields::open(&body, "", "bad_request", &FEATURES)?;
    let mut change = Map::new();
    for name in FEATURES {
        if let Some(flag) = fields.boolean(name, "bad_request")? {
            change.insert(name.to_owned(), json!(flag));
        }
    }
    server.engine.set_features(change)?;
    ok(shown_features(&server.engine))
}

fn stats_of(engine: &Engine, uid: &str, index: &Index) -> Value {
    let size: usize = index.docs().map(|(_, doc)| doc.raw.len()).sum();
    let embedded = index.docs().filter(|(_, doc)| doc.embeddings.values().any(|vectors| !vectors.is_empty())).count();
    let embeddings: usize = index.docs().flat_map(|(_, doc)| doc.embeddings.values()).map(Vec::len).sum();
    json!({
        "numberOfDocuments": index.len(), "rawDocumentDbSize": size,
        "avgDocumentSize": size.checked_div(index.len()).unwrap_or(0), "isIndexing": engine.is_indexing(uid),
        "numberOfEmbeddings": embeddings, "numberOfEmbeddedDocuments": embedded,
        "fieldDistribution": index.distribution(),
    })
}

async fn stats(State(server): Shared, RawQuery(raw): RawQuery) -> Reply {
    check_stats(raw.as_deref())?;
    let engine = &server.engine;
    let indexes = indexes(engine);
    let each: Map<String, Value> =
        indexes.iter().map(|(uid, index)| (uid.clone(), stats_of(engine, uid, index))).collect();
    let last = indexes.values().map(|index| &index.updated_at).max();
    let size = engine.size();
    ok(json!({"databaseSize": size, "usedDatabaseSize": size, "lastUpdate": last, "indexes": each}))
}

/// Sizes for people and those of tables are left to real nodes.
fn check_stats(raw: Option<&str>) -> Result<()> {
    let query = Query::read(raw, &["showInternalDatabaseSizes", "sizeFormat"])?;
    query.boolean("showInternalDatabaseSizes", "invalid_stats_show_internal_database_sizes")?;
    match query.get("sizeFormat") {
        None | Some("raw" | "human") => Ok(()),
        Some(other) => {
            let text = format!("Unknown value `{other}` for parameter `sizeFormat`: expected one of `human`, `raw`");
            Err(ApiError::new("invalid_stats_size_format", text))
        }
    }
}

async fn index_stats(State(server): Shared, Path(uid): Path<String>, RawQuery(raw): RawQuery) -> Reply {
    check_stats(raw.as_deref())?;
    ok(with_index(&server.engine, &uid, |index| Ok(stats_of(&server.engine, &uid, index)))?)
}

fn index_view(uid: &str, index: &Index) -> Value {
    json!({
        "uid": uid, "createdAt": index.created_at, "updatedAt": index.updated_at, "primaryKey": index.primary_key,
    })
}

async fn list_indexes(State(server): Shared, RawQuery(raw): RawQuery) -> Reply {
    let query = Query::read(raw.as_deref(), &["offset", "limit"])?;
    let offset = query.count("offset", "invalid_index_offset")?.unwrap_or(0);
    let limit = query.count("limit", "invalid_index_limit")?.unwrap_or(20);
    let indexes = indexes(&server.engine);
    let page: Vec<Value> = indexes.iter().skip(offset).take(limit).map(|(uid, index)| index_view(uid, index)).collect();
    ok(json!({"results": page, "offset": offset, "limit": limit, "total": indexes.len()}))
}

async fn get_index(State(server): Shared, Path(uid): Path<String>) -> Reply {
    ok(with_index(&server.engine, &uid, |index| Ok(index_view(&uid, index)))?)
}

async fn create_index(State(server): Shared, headers: HeaderMap, body: Bytes) -> Reply {
    let body = json_body(&headers, &body)?;
    let fields = Fields::open(&body, "", "bad_request", &["uid", "primaryKey"])?;
    let uid = fields.string("uid", "invalid_index_uid")?.ok_or_else(|| fields.missing("uid", "missing_index_uid"))?;
    check_uid(&uid, "Invalid value at `.uid`: ")?;
    let primary_key = fields.string("primaryKey", "invalid_index_primary_key")?;
    let details = object(json!({"primaryKey": primary_key}));
    accepted(server.engine.enqueue(&uid, "indexCreation", details, Work::Create(primary_key))?)
}

async fn update_index(State(server): Shared, Path(uid): Path<String>, headers: HeaderMap, body: Bytes) -> Reply {
    check_uid(&uid, "")?;
    let body = json_body(&headers, &body)?;
    let fields = Fields::open(&body, "", "bad_request", &["primaryKey", "uid"])?;
    let primary_key = fields.string("primaryKey", "invalid_index_primary_key")?;
    let renamed = fields.string("uid", "invalid_index_uid")?;
    let mut details = object(json!({"primaryKey": primary_key}));
    if let Some(new) = &renamed {
        check_uid(new, "")?;
        details.insert("oldIndexUid".to_owned(), json!(uid));
        details.insert("newIndexUid".to_owned(), json!(new));
    }
    accepted(server.engine.enqueue(&uid, "indexUpdate", details, Work::Update { primary_key, uid: renamed })?)
}

async fn delete_index(State(server): Shared, Path(uid): Path<String>) -> Reply {
    check_uid(&uid, "")?;
    let details = object(json!({"deletedDocuments": null}));
    accepted(server.engine.enqueue(&uid, "indexDeletion", details, Work::Delete)?)
}

/// The map inside an object literal.
pub fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

async fn get_settings(State(server): Shared, Path(uid): Path<String>) -> Reply {
    ok(with_index(&server.engine, &uid, |index| Ok(Value::Object(index.settings.shown())))?)
}

async fn get_setting(State(server): Shared, Path(uid): Path<String>, key: &'static Key) -> Reply {
    ok(with_index(&server.engine, &uid, |index| Ok(index.settings.values.get(key.name).cloned().unwrap_or_default()))?)
}

fn change_settings(server: &Server, uid: &str, change: Map<String, Value>, reset: bool) -> Reply {
    accepted(server.engine.enqueue(uid, "settingsUpdate", change.clone(), Work::Settings { change, reset })?)
}

async fn patch_settings(State(server): Shared, Path(uid): Path<String>, headers: HeaderMap, body: Bytes) -> Reply {
    check_uid(&uid, "")?;
    let change = settings::check_all(&json_body(&headers, &body)?)?;
    change_settings(&server, &uid, change, false)
}

async fn delete_settings(State(server): Shared, Path(uid): Path<String>) -> Reply {
    check_uid(&uid, "")?;
    change_settings(&server, &uid, settings::reset_all(), true)
}

async fn set_setting(
    State(server): Shared,
    Path(uid): Path<String>,
    headers: HeaderMap,
    body: Bytes,
    key: &'static Key,
) -> Reply {
    check_uid(&uid, "")?;
    let value = settings::check(key, &json_body(&headers, &body)?, "")?;
    change_settings(&server, &uid, Map::from_iter([(key.name.to_owned(), value)]), false)
}

async fn delete_setting(State(server): Shared, Path(uid): Path<String>, key: &'static Key) -> Reply {
    check_uid(&uid, "")?;
    change_settings(&server, &uid, Map::from_iter([(key.name.to_owned(), settings::reset(key))]), true)
}

async fn search_get(State(server): Shared, Path(uid): Path<String>, RawQuery(raw): RawQuery) -> Reply {
    check_uid(&uid, "")?;
    search_index(server, uid, search::Request::read(&search::body_of_query(raw.as_deref())?, "", &[])?).await
}

async fn search_post(State(server): Shared, Path(uid): Path<String>, headers: HeaderMap, body: Bytes) -> Reply {
    check_uid(&uid, "")?;
    search_index(server, uid, search::Request::read(&json_body(&headers, &body)?, "", &[])?).await
}

async fn search_index(server: Arc<Server>, uid: String, request: search::Request) -> Reply {
    let answer = aside(move || with_index(&server.engine, &uid, |index| request.run(&uid, index))).await?;
    ok(answer)
}

async fn multi_search(State(server): Shared, headers: HeaderMap, body: Bytes) -> Reply {
    let body = json_body(&headers, &body)?;
    let fields = Fields::open(&body, "", "bad_request", &["queries", "federation"])?;
    if fields.get("federation").is_some() {
        return Err(ApiError::new("bad_request", "The stand-in has no federated search."));
    }
    let Some(Value::Array(queries)) = fields.get("queries") else {
        return Err(fields.missing("queries", "bad_request"));
    };
    let mut requests = Vec::with_capacity(queries.len());
    for (at, query) in queries.iter().enumerate() {
        let path = format!(".queries[{at}]");
        let request = search::Request::read(query, &path, &["indexUid", "federationOptions"])?;
        let uid = query.get("indexUid").and_then(Value::as_str).map(str::to_owned);
        let missing = || ApiError::new("missing_index_uid", format!("Missing field `indexUid` inside `{path}`"));
        requests.push((uid.ok_or_else(missing)?, request));
    }
    let results = aside(move || {
        let one = |(at, (uid, request)): (usize, (String, search::Request))| {
            let answer = with_index(&server.engine, &uid, |index| request.run(&uid, index));
            let answer = answer.map_err(|e| {
                let code = e.code;
                ApiError::new(code, format!("Inside `.queries[{at}]`: {}", e.message))
            })?;
            let mut result = object(json!({"indexUid": uid}));
            result.extend(object(answer));
            Ok(Value::Object(result))
        };
        requests.into_iter().enumerate().map(one).collect::<Result<Vec<Value>>>()
    })
    .await;
    match results {
        Ok(results) => ok(json!({"results": results})),
        Err(error) => Ok((StatusCode::BAD_REQUEST, axum::Json(error.to_json())).into_response()),
    }
}
