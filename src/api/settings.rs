//! `/indexes/{uid}/settings` and its sub-routes.

use axum::Extension;
use axum::extract::{Path, Request, State};
use http::{Method, StatusCode};
use serde_json::{Map, Value};

use super::body;
use super::error::{ApiError, ApiResult, json_value};
use super::params::index_uid;
use super::routes::Api;
use crate::proto::settings::{self, SubRoute, route_error_text, sub_route};
use crate::services::Failure;
use crate::types::ErrorCode;
use crate::types::TraceId;

/// `GET`, `PATCH`, `DELETE /indexes/{uid}/settings`
pub async fn all(
    State(api): State<Api>,
    Extension(trace): Extension<TraceId>,
    Path(uid): Path<String>,
    request: Request,
) -> ApiResult {
    let uid = index_uid(&uid)?;
    match *request.method() {
        Method::GET => json_value(StatusCode::OK, &api.settings.get(&uid, trace).await?),
        Method::DELETE => json_value(StatusCode::ACCEPTED, &api.settings.reset(&uid, trace).await?),
        _ => {
            let patch = body::object(body::json(&api, request).await?)?;
            json_value(StatusCode::ACCEPTED, &api.settings.patch(&uid, patch, trace).await?)
        }
    }
}

/// `GET`, `PUT` or `PATCH`, `DELETE /indexes/{uid}/settings/{sub}`
pub async fn one(
    State(api): State<Api>,
    Extension(trace): Extension<TraceId>,
    Path((uid, sub)): Path<(String, String)>,
    request: Request,
) -> ApiResult {
    let Some(route) = sub_route(&sub) else {
        return Ok(axum::response::IntoResponse::into_response(StatusCode::NOT_FOUND));
    };
    let uid = index_uid(&uid)?;
    if !takes(route, request.method()) {
        return Ok(axum::response::IntoResponse::into_response(StatusCode::METHOD_NOT_ALLOWED));
    }
    let only = |value| Map::from_iter([(route.key.to_owned(), value)]);
    match *request.method() {
        Method::GET => {
            let mut all = api.settings.get(&uid, trace).await?;
            match all.remove(route.key) {
                Some(value) => json_value(StatusCode::OK, &value),
                None => {
                    let message = format!("The setting `{}` needs an experimental feature of the nodes.", route.key);
                    Err(ApiError::new(ErrorCode::FeatureNotEnabled, message))
                }
            }
        }
        Method::DELETE => {
            json_value(StatusCode::ACCEPTED, &api.settings.reset_some(&uid, only(Value::Null), trace).await?)
        }
        _ => {
            let value = body::json(&api, request).await?;
            let done = api.settings.patch(&uid, only(value), trace).await;
            json_value(StatusCode::ACCEPTED, &done.map_err(|e| of_sub_route(route, e))?)
        }
    }
}

/// A node's error about a setting names its place in the whole; a sub-route's body begins at the setting itself.
fn of_sub_route(route: &SubRoute, failure: Failure) -> ApiError {
    let Failure::Node { status, body } = &failure else { return ApiError(failure) };
    let Ok(mut error) = serde_json::from_slice::<Value>(body) else { return ApiError(failure) };
    let text = error.get("message").and_then(Value::as_str).unwrap_or_default();
    error["message"] = Value::String(route_error_text(text, route.key));
    ApiError(Failure::Node { status: *status, body: error.to_string().into() })
}

fn takes(route: &SubRoute, method: &Method) -> bool {
    let write = match route.method {
        settings::Method::Put => Method::PUT,
        settings::Method::Patch => Method::PATCH,
    };
    matches!(*method, Method::GET | Method::DELETE) || *method == write
}
