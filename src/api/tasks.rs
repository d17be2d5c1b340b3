//! `/tasks*` and `/batches*`: answered by any member.

use std::time::{Duration, Instant};

use axum::Extension;
use axum::extract::{Path, Request, State};
use http::StatusCode;

use super::error::{ApiError, ApiResult, json_bytes, json_value};
use super::params::decode;
use super::routes::Api;
use crate::proto::tasks::query::{self, Action, QueryError, original_filter, parse_action};
use crate::proto::tasks::{Listing, Query};
use crate::types::{TaskUid, TraceId};

/// How long the homes of tasks may take.
const PATIENCE: Duration = Duration::from_secs(10);

impl From<QueryError> for ApiError {
    fn from(error: QueryError) -> Self {
        Self::new(error.code, error.message)
    }
}

/// `GET /tasks/{uid}`
pub async fn get(State(api): State<Api>, Extension(trace): Extension<TraceId>, Path(uid): Path<String>) -> ApiResult {
    one(&api, Listing::Tasks, query::task_uid(&uid)?, trace).await
}

/// `GET /batches/{uid}`: the mesh makes one batch of each task.
pub async fn batch(State(api): State<Api>, Extension(trace): Extension<TraceId>, Path(uid): Path<String>) -> ApiResult {
    one(&api, Listing::Batches, query::batch_uid(&uid)?, trace).await
}

async fn one(api: &Api, listing: Listing, uid: TaskUid, trace: TraceId) -> ApiResult {
    match api.tasks.homes().one_json(listing, uid, Instant::now() + PATIENCE, trace).await? {
        Some(json) => Ok(json_bytes(StatusCode::OK, json.into())),
        None => Err(query::not_found(listing, uid).into()),
    }
}

/// `GET /tasks`
pub async fn list(State(api): State<Api>, Extension(trace): Extension<TraceId>, request: Request) -> ApiResult {
    let query = request.uri().query().map(str::to_owned);
    drop(request);
    listed(&api, Listing::Tasks, query.as_deref(), trace).await
}

/// `GET /batches`
pub async fn batches(State(api): State<Api>, Extension(trace): Extension<TraceId>, request: Request) -> ApiResult {
    let query = request.uri().query().map(str::to_owned);
    drop(request);
    listed(&api, Listing::Batches, query.as_deref(), trace).await
}

async fn listed(api: &Api, listing: Listing, query: Option<&str>, trace: TraceId) -> ApiResult {
    let query = Query::parse(listing, &decode(query))?;
    let json = api.tasks.homes().list_json(&query, Instant::now() + PATIENCE, trace).await?;
    Ok(json_bytes(StatusCode::OK, json.into()))
}

/// `POST /tasks/cancel`
pub async fn cancel(State(api): State<Api>, Extension(trace): Extension<TraceId>, request: Request) -> ApiResult {
    let query = request.uri().query().map(str::to_owned);
    drop(request);
    act(&api, Action::Cancel, query.as_deref(), trace).await
}

/// `DELETE /tasks`
pub async fn delete(State(api): State<Api>, Extension(trace): Extension<TraceId>, request: Request) -> ApiResult {
    let query = request.uri().query().map(str::to_owned);
    drop(request);
    act(&api, Action::Delete, query.as_deref(), trace).await
}

async fn act(api: &Api, action: Action, query: Option<&str>, trace: TraceId) -> ApiResult {
    let filter = parse_action(action, &decode(query))?;
    let original = original_filter(query.unwrap_or_default());
    let deadline = Instant::now() + PATIENCE;
    json_value(StatusCode::OK, &api.tasks.sweep(action, filter, original, deadline, trace).await?)
}
