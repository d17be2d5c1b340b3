//! What every client's request meets before its handler: whether this member serves yet, and how fresh what it knows is.
//!
//! Must not know: what is asked.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::HeaderMap;

use super::error::{ApiError, mark};
use super::routes::Api;
pub use crate::services::cluster::MemberState;
use crate::types::ErrorCode;

/// The header that marks an answer that lacks something, or may be old.
pub const DEGRADED: &str = "x-miroir-degraded";

/// The middleware. A member that has no records yet would say of every index that there is none.
pub async fn in_service(State(api): State<Api>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if path.starts_with("/_miroir/") || matches!(path, "/" | "/health" | "/version") {
        return next.run(request).await;
    }
    let seen = api.cluster.seen();
    let state = seen.get(api.cluster.own()).and_then(|s| s.state);
    if !matches!(state, Some(MemberState::Active | MemberState::Draining)) {
        let message = format!("This member is not in service yet: {}.", api.mesh.missing().trim_end_matches('.'));
        return ApiError::new(ErrorCode::MiroirShardsUnavailable, message).into_response();
    }
    let mut response = next.run(request).await;
    if !api.mesh.ledger().fresh() {
        mark_stale(response.headers_mut());
    }
    response
}

/// Says of an answer that it may be old.
pub fn mark_stale(headers: &mut HeaderMap) {
    let said = headers.get(DEGRADED).and_then(|v| v.to_str().ok());
    let says = match said {
        None => "stale".to_owned(),
        Some(said) if said.ends_with("stale") => return,
        Some(said) => format!("{said}; stale"),
    };
    mark(headers, DEGRADED, &says);
}
