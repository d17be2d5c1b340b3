//! `/_miroir/aliases*`: names that stand for an index.

use axum::Extension;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::body::{json_object, optional_text};
use super::error::{ApiError, ApiResult, json_value};
use super::params::{index_uid, invalid_index_uid};
use super::routes::Api;
use crate::services::aliases::Pointed;
use crate::types::{AliasRecord, ErrorCode, IndexUid, TraceId};

fn view(api: &Api, name: &IndexUid, alias: &AliasRecord) -> Value {
    let history: Vec<Value> =
        alias.history.iter().map(|former| json!({"index": former.target, "until": former.until})).collect();
    json!({
        "name": name,
        "index": alias.target,
        "version": alias.version,
        "history": history,
        "operation": api.aliases.flip_of(name).map(|flip| flip.id),
    })
}

fn one(api: &Api, status: StatusCode, name: &IndexUid) -> ApiResult {
    json_value(status, &view(api, name, &api.aliases.get(name)?))
}

/// A name in a body.
fn name_at(map: &Map<String, Value>, field: &str) -> Result<IndexUid, ApiError> {
    let Some(text) = optional_text(map, field, ErrorCode::InvalidIndexUid)? else {
        return Err(ApiError::new(ErrorCode::BadRequest, format!("Missing field `{field}`")));
    };
    IndexUid::new(text.as_str()).map_err(|_| {
        let message = format!("Invalid value at `.{field}`: {}", invalid_index_uid(&text));
        ApiError::new(ErrorCode::InvalidIndexUid, message)
    })
}

/// `GET /_miroir/aliases`
pub async fn list(State(api): State<Api>) -> ApiResult {
    let aliases: Vec<Value> = api.aliases.all().iter().map(|(name, alias)| view(&api, name, alias)).collect();
    json_value(StatusCode::OK, &json!({"aliases": aliases}))
}

/// `GET /_miroir/aliases/{name}`
pub async fn get(State(api): State<Api>, Path(name): Path<String>) -> ApiResult {
    one(&api, StatusCode::OK, &index_uid(&name)?)
}

/// `POST /_miroir/aliases`: a new one.
pub async fn create(State(api): State<Api>, Extension(trace): Extension<TraceId>, request: Request) -> ApiResult {
    let map = json_object(&api, request, &["name", "index"]).await?;
    let (name, index) = (name_at(&map, "name")?, name_at(&map, "index")?);
    api.aliases.create(&name, &index, trace).await?;
    one(&api, StatusCode::CREATED, &name)
}

/// `PUT /_miroir/aliases/{name}`: 201 made, 200 it stands for that index already, 202 an operation flips it.
pub async fn put(
    State(api): State<Api>,
    Extension(trace): Extension<TraceId>,
    Path(name): Path<String>,
    request: Request,
) -> ApiResult {
    let name = index_uid(&name)?;
    let map = json_object(&api, request, &["index"]).await?;
    match api.aliases.point(&name, &name_at(&map, "index")?, trace).await? {
        Pointed::Created => one(&api, StatusCode::CREATED, &name),
        Pointed::Same => one(&api, StatusCode::OK, &name),
        Pointed::Begun(operation) => {
            let mut view = view(&api, &name, &api.aliases.get(&name)?);
            // Also if it is over already.
            view["operation"] = json!(operation);
            json_value(StatusCode::ACCEPTED, &view)
        }
    }
}

/// `DELETE /_miroir/aliases/{name}`: the index stays.
pub async fn delete(
    State(api): State<Api>,
    Extension(trace): Extension<TraceId>,
    Path(name): Path<String>,
) -> ApiResult<Response> {
    api.aliases.delete(&index_uid(&name)?, trace).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
