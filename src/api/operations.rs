//! `/_miroir/operations*`: work that one member leads at a time, as the asked member knows it.

use axum::extract::{Path, State};
use http::StatusCode;
use serde_json::{Value, json};

use super::error::{ApiError, ApiResult, json_value};
use super::routes::Api;
use crate::proto::operation::RequestError;
use crate::services::aliases::operation_failed;
use crate::services::operations::Wish;
use crate::types::{ErrorCode, OperationEntry, Scope};

fn view(api: &Api, scope: &Scope, op: &OperationEntry) -> Value {
    let leases = api.leases.rows();
    let leader = leases.leader(scope, api.leases.now()).filter(|_| op.state.is_active());
    let progress = &op.progress;
    json!({
        "id": op.id,
        "scope": scope,
        "kind": op.kind,
        "state": op.state,
        "phase": op.phase,
        "leader": leader,
        "progress": {
            "done": progress.done,
            "total": progress.total,
            "unit": progress.unit,
            "perSecond": progress.rate,
            "secondsLeft": progress.seconds_left(),
        },
        "error": op.error,
        // What a flip ends with where somebody is away; other kinds have nothing of the name.
        "unconfirmed": op.extra.get("unconfirmed").filter(|members| members.is_array()),
        "history": op.history,
    })
}

/// `GET /_miroir/operations`
pub async fn list(State(api): State<Api>) -> ApiResult {
    let known = api.operations.view();
    let operations: Vec<Value> = known.operations().map(|(scope, op)| view(&api, scope, op)).collect();
    json_value(StatusCode::OK, &json!({"operations": operations}))
}

/// `GET /_miroir/operations/{id}`
pub async fn get(State(api): State<Api>, Path(id): Path<String>) -> ApiResult {
    let known = api.operations.known(&id).await;
    match known.find(&id) {
        Some((scope, op)) => json_value(StatusCode::OK, &view(&api, scope, op)),
        None => Err(ApiError(operation_failed(&RequestError::NotFound { id }.into()))),
    }
}

/// `POST /_miroir/operations/{id}/{pause|resume|cancel}`: the operation as it stands then.
pub async fn change(State(api): State<Api>, Path((id, wish)): Path<(String, String)>) -> ApiResult {
    let wish = match wish.as_str() {
        "pause" => Wish::Pause,
        "resume" => Wish::Resume,
        "cancel" => Wish::Cancel,
        other => {
            let message = format!("`{other}` is nothing that an operation can be told: `pause`, `resume`, `cancel`.");
            return Err(ApiError::new(ErrorCode::BadRequest, message));
        }
    };
    api.operations.change(&id, wish).await.map_err(|e| operation_failed(&e))?;
    get(State(api), Path(id)).await
}
