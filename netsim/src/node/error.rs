//! Errors of the stand-in in Meilisearch's shape.
//!
//! Rule: every refusal carries one of Meilisearch's codes, and status and type follow from the code alone, so that the
//! same code can't be answered in two ways. Must not know: routes, documents, search.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// A refusal: of a request, or of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// Meilisearch's code, for example `index_not_found`.
    pub code: &'static str,
    /// The text for people.
    pub message: String,
}

/// What every fallible step of the stand-in returns.
pub type Result<T> = std::result::Result<T, ApiError>;

impl ApiError {
    /// An error with this code and text.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The error for an index that does not exist.
    pub fn index_not_found(uid: &str) -> Self {
        Self::new("index_not_found", format!("Index `{uid}` not found."))
    }

    /// The error for a document that does not exist.
    pub fn document_not_found(id: &str) -> Self {
        Self::new("document_not_found", format!("Document `{id}` not found."))
    }

    /// The error for a failure of the stand-in itself.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        Self::new("internal", message.to_string())
    }

    /// The HTTP status that goes with the code.
    pub fn status(&self) -> StatusCode {
        match self.code {
            "index_not_found" | "document_not_found" | "task_not_found" | "not_found" => StatusCode::NOT_FOUND,
            "missing_authorization_header" | "missing_master_key" => StatusCode::UNAUTHORIZED,
            "invalid_api_key" => StatusCode::FORBIDDEN,
            "payload_too_large" => StatusCode::PAYLOAD_TOO_LARGE,
            "missing_content_type" | "invalid_content_type" => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "internal" => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// The four fields that clients see, and that failed tasks keep.
    pub fn to_json(&self) -> Value {
        let kind = match self.code {
            "missing_authorization_header" | "missing_master_key" | "invalid_api_key" => "auth",
            "internal" => "internal",
            _ => "invalid_request",
        };
        let link = format!("https://docs.meilisearch.com/errors#{}", self.code);
        json!({"message": self.message, "code": self.code, "type": kind, "link": link})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status(), axum::Json(self.to_json())).into_response()
    }
}
