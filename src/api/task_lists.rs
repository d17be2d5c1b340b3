//! `/tasks` and `/batches`, answered by the homes of tasks.
//!
//! Must not know: where a task is kept.

use std::time::{Duration, Instant};

use axum::extract::{Path, RawQuery, State};
use axum::{Extension, response::Response};
use http::StatusCode;

use super::error::{ApiError, ApiResult, json_bytes, json_value};
use crate::proto::tasks::Query;
use crate::proto::tasks::query::{
    Action, Listing, QueryError, batch_uid, not_found, original_filter, parse_action, task_uid,
};
use crate::services::Failure;
use crate::services::homes::Homes;
use crate::types::TraceId;

/// How long homes are asked.
const PATIENCE: Duration = Duration::from_secs(10);

impl From<QueryError> for ApiError {
    fn from(error: QueryError) -> Self {
        Self::new(error.code, error.message)
    }
}

fn pairs(query: Option<&str>) -> Vec<(String, String)> {
    form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect()
}

async fn list(homes: &Homes, listing: Listing, query: Option<&str>, trace: TraceId) -> ApiResult {
    let query = Query::parse(listing, &pairs(query))?;
    let text = homes.list_json(&query, Instant::now() + PATIENCE, trace).await?;
    Ok(json_bytes(StatusCode::OK, text.into()))
}

async fn one(homes: &Homes, listing: Listing, uid: &str, trace: TraceId) -> ApiResult {
    let uid = if listing == Listing::Tasks { task_uid(uid) } else { batch_uid(uid) }?;
    match homes.one_json(listing, uid, Instant::now() + PATIENCE, trace).await? {
        Some(text) => Ok(json_bytes(StatusCode::OK, text.into())),
        None => Err(not_found(listing, uid).into()),
    }
}

async fn sweep(homes: &Homes, action: Action, query: Option<&str>, trace: TraceId) -> ApiResult {
    let filter = parse_action(action, &pairs(query))?;
    let original = original_filter(query.unwrap_or_default());
    let summary = homes.sweep(action, filter, original, Instant::now() + PATIENCE, trace).await;
    json_value(StatusCode::OK, &summary.map_err(Failure::from)?)
}

/// `GET /tasks`.
pub async fn tasks(
    State(homes): State<Homes>,
    Extension(trace): Extension<TraceId>,
    RawQuery(query): RawQuery,
) -> ApiResult<Response> {
    list(&homes, Listing::Tasks, query.as_deref(), trace).await
}

/// `GET /batches`.
pub async fn batches(
    State(homes): State<Homes>,
    Extension(trace): Extension<TraceId>,
    RawQuery(query): RawQuery,
) -> ApiResult<Response> {
    list(&homes, Listing::Batches, query.as_deref(), trace).await
}

/// `GET /tasks/{uid}`.
pub async fn task(
    State(homes): State<Homes>,
    Extension(trace): Extension<TraceId>,
    Path(uid): Path<String>,
) -> ApiResult<Response> {
    one(&homes, Listing::Tasks, &uid, trace).await
}

/// `GET /batches/{uid}`.
pub async fn batch(
    State(homes): State<Homes>,
    Extension(trace): Extension<TraceId>,
    Path(uid): Path<String>,
) -> ApiResult<Response> {
    one(&homes, Listing::Batches, &uid, trace).await
}

/// `POST /tasks/cancel`.
pub async fn cancel(
    State(homes): State<Homes>,
    Extension(trace): Extension<TraceId>,
    RawQuery(query): RawQuery,
) -> ApiResult<Response> {
    sweep(&homes, Action::Cancel, query.as_deref(), trace).await
}

/// `DELETE /tasks`.
pub async fn delete(
    State(homes): State<Homes>,
    Extension(trace): Extension<TraceId>,
    RawQuery(query): RawQuery,
) -> ApiResult<Response> {
    sweep(&homes, Action::Delete, query.as_deref(), trace).await
}
