//! Errors in Meilisearch's own shape: `{message, code, type, link}`.

use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use serde_json::json;

use crate::services::Failure;
use crate::services::tasks::error_object;
use crate::types::ErrorCode;

/// What a handler returns instead of an answer.
#[derive(Debug, Clone)]
pub struct ApiError(pub Failure);

impl ApiError {
    /// An error of the mesh's own.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(Failure::new(code, message))
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        Self(failure)
    }
}

/// What every handler returns.
pub type ApiResult<T = Response> = Result<T, ApiError>;

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, body) = match self.0 {
            Failure::Node { status, body } => (status, body),
            Failure::Mesh { code, message, task } => {
                if code == ErrorCode::Internal {
                    tracing::error!(message, "a request failed inside");
                }
                let mut object = error_object(code, &message);
                if let Some(task) = task {
                    object["taskUid"] = json!(task);
                }
                (code.status(), object.to_string().into())
            }
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = json_bytes(status, body);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("10"));
        }
        response
    }
}

/// A response with a body that is JSON already.
pub fn json_bytes(status: StatusCode, body: bytes::Bytes) -> Response {
    let mut response = Response::new(axum::body::Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A response with this value as JSON.
pub fn json_value(status: StatusCode, value: &impl serde::Serialize) -> ApiResult {
    let body = serde_json::to_vec(value).map_err(|e| Failure::internal(e.to_string()))?;
    Ok(json_bytes(status, body.into()))
}

/// A header of the mesh's own on a response.
pub fn mark(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}
