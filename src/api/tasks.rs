//! `/tasks/{uid}`.

use axum::Extension;
use axum::extract::{Path, State};
use http::StatusCode;

use super::error::{ApiError, ApiResult, json_bytes};
use super::routes::Api;
use crate::types::TraceId;
use crate::types::{ErrorCode, TaskUid};

/// `GET /tasks/{uid}`, answered by any member.
pub async fn get(State(api): State<Api>, Extension(trace): Extension<TraceId>, Path(uid): Path<String>) -> ApiResult {
    let Ok(number) = uid.parse::<u32>() else {
        let message = format!("Task uid `{uid}` is invalid. It should only contain numeric characters.");
        return Err(ApiError::new(ErrorCode::InvalidTaskUids, message));
    };
    match api.tasks.task(TaskUid(number), trace).await? {
        Some(task) => Ok(json_bytes(StatusCode::OK, task)),
        None => Err(ApiError::new(ErrorCode::TaskNotFound, format!("Task `{number}` not found."))),
    }
}
