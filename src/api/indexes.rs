//! `/indexes`, `/indexes/{uid}`, `/indexes/{uid}/stats`.

use axum::Extension;
use axum::extract::{Path, Request, State};
use http::StatusCode;
use serde_json::{Value, json};

use super::body::{self, json_object, optional_text};
use super::error::{ApiError, ApiResult, json_value};
use super::health::StatsParams;
use super::params::{Params, index_uid, invalid_index_uid};
use super::routes::Api;
use super::search::marked;
use crate::proto::tasks::Subject;
use crate::rt::clock;
use crate::services::indexes::Index;
use crate::types::TraceId;
use crate::types::{ErrorCode, IndexRecord, IndexUid};

/// `on_nodes` is when the nodes last changed the index.
fn view(uid: &IndexUid, record: &IndexRecord, on_nodes: Option<&str>) -> Value {
    let updated_at = clock::later(&record.updated_at, on_nodes.unwrap_or_default());
    json!({
        "uid": uid,
        "createdAt": record.created_at,
        "updatedAt": updated_at,
        "primaryKey": record.primary_key,
    })
}

/// `GET /indexes`
pub async fn list(State(api): State<Api>, Extension(trace): Extension<TraceId>, request: Request) -> ApiResult {
    let params = Params::parse(request.uri().query(), &["offset", "limit"])?;
    let offset = params.number("offset", 0, ErrorCode::InvalidIndexOffset)?;
    let limit = params.number("limit", 20, ErrorCode::InvalidIndexLimit)?;
    let snapshot = api.indexes.records().snapshot();
    let names = &snapshot.names().value.indexes;
    let all: Vec<_> = names.keys().filter_map(|uid| Some((uid, snapshot.find(uid)?))).collect();
    let updates = api.stats.updates(None, trace).await;
    let page = all.iter().skip(offset).take(limit);
    let on_nodes = |index: &Index| updates.get(&index.value.physical).map(String::as_str);
    let results: Vec<Value> = page.map(|(uid, index)| view(uid, &index.value, on_nodes(index))).collect();
    json_value(StatusCode::OK, &json!({"results": results, "offset": offset, "limit": limit, "total": all.len()}))
}

/// `POST /indexes`
pub async fn create(State(api): State<Api>, Extension(trace): Extension<TraceId>, request: Request) -> ApiResult {
    let map = json_object(&api, request, &["uid", "primaryKey"]).await?;
    let Some(uid) = optional_text(&map, "uid", ErrorCode::InvalidIndexUid)? else {
        return Err(ApiError::new(ErrorCode::MissingIndexUid, "Missing field `uid`"));
    };
    let uid = IndexUid::new(uid.as_str()).map_err(|_| {
        ApiError::new(ErrorCode::InvalidIndexUid, format!("Invalid value at `.uid`: {}", invalid_index_uid(&uid)))
    })?;
    let primary_key = optional_text(&map, "primaryKey", ErrorCode::InvalidIndexPrimaryKey)?;
    json_value(StatusCode::ACCEPTED, &api.indexes.create(&uid, primary_key, trace).await?)
}

/// `GET /indexes/{uid}`
pub async fn get(State(api): State<Api>, Extension(trace): Extension<TraceId>, Path(uid): Path<String>) -> ApiResult {
    let uid = index_uid(&uid)?;
    let index = api.indexes.find(&uid)?;
    let updates = api.stats.updates(Some(&index), trace).await;
    json_value(StatusCode::OK, &view(&uid, &index.value, updates.get(&index.value.physical).map(String::as_str)))
}

/// `PATCH /indexes/{uid}`
pub async fn update(
    State(api): State<Api>,
    Extension(trace): Extension<TraceId>,
    Path(uid): Path<String>,
    request: Request,
) -> ApiResult {
    let uid = index_uid(&uid)?;
    let map = body::object(body::json(&api, request).await?)?;
    let immutable =
        [("createdAt", ErrorCode::ImmutableIndexCreatedAt), ("updatedAt", ErrorCode::ImmutableIndexUpdatedAt)];
    if let Some((field, code)) = immutable.into_iter().find(|(field, _)| map.contains_key(*field)) {
        let message = format!("Immutable field `{field}`: expected one of `primaryKey`, `uid`");
        return Err(ApiError::new(code, message));
    }
    body::known(&map, &["primaryKey", "uid"])?;
    optional_text(&map, "uid", ErrorCode::InvalidIndexUid)?;
    if map.get("uid").is_some_and(|v| !v.is_null()) {
        let message =
            "Renaming an index (`uid` in PATCH /indexes/{indexUid}) is not supported by this version of miroir.";
        return Err(ApiError::new(ErrorCode::MiroirNotSupported, message));
    }
    let key = optional_text(&map, "primaryKey", ErrorCode::InvalidIndexPrimaryKey)?;
    let Some(index) = api.indexes.find_for_write(&uid)? else {
        let subject = Subject::IndexUpdate { primary_key: key, renamed: None };
        return json_value(StatusCode::ACCEPTED, &api.indexes.missing(&uid, subject, None, trace).await?);
    };
    // Entries of journals are the nodes' before they are counted there.
    let unused = async || Ok(api.shards.at_rest(&index, trace).await && api.stats.unused(&index, trace).await?);
    json_value(StatusCode::ACCEPTED, &api.indexes.set_primary_key(&index, key, unused, trace).await?)
}

/// `DELETE /indexes/{uid}`
pub async fn delete(
    State(api): State<Api>,
    Extension(trace): Extension<TraceId>,
    Path(uid): Path<String>,
) -> ApiResult {
    let uid = index_uid(&uid)?;
    json_value(StatusCode::ACCEPTED, &api.indexes.delete(&uid, trace).await?)
}

/// `GET /indexes/{uid}/stats`
pub async fn stats(
    State(api): State<Api>,
    Extension(trace): Extension<TraceId>,
    Path(uid): Path<String>,
    request: Request,
) -> ApiResult {
    let uid = index_uid(&uid)?;
    let how = StatsParams::of(&request)?;
    let (stats, missing) = api.stats.index(&uid, how.internal, trace).await?;
    Ok(marked(json_value(StatusCode::OK, &how.shown(stats))?, &missing))
}
