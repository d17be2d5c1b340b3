//! `/_miroir/indexes*`: who holds which shard, who orders its writes, who is behind.

use axum::Extension;
use axum::extract::{Path, State};
use http::StatusCode;
use serde_json::json;

use super::error::{ApiResult, json_value};
use super::params::index_uid;
use super::routes::Api;
use crate::types::TraceId;

/// `GET /_miroir/indexes`: all of them, in short.
pub async fn list(State(api): State<Api>) -> ApiResult {
    json_value(StatusCode::OK, &json!({"indexes": api.shards.all()}))
}

/// `GET /_miroir/indexes/{uid}`: one, shard by shard.
pub async fn get(State(api): State<Api>, Extension(trace): Extension<TraceId>, Path(uid): Path<String>) -> ApiResult {
    json_value(StatusCode::OK, &api.shards.one(&index_uid(&uid)?, trace).await?)
}
