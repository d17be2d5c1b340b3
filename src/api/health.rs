//! `/`, `/health`, `/version`, `/stats`.

use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use serde_json::json;

use super::error::{ApiError, ApiResult, json_value};
use super::params::Params;
use super::routes::Api;
use super::search::marked;
use super::service::MemberState;
use crate::types::ErrorCode;
use crate::types::TraceId;

/// `GET /`
pub async fn root() -> ApiResult {
    json_value(StatusCode::OK, &json!({"status": "Meilisearch is running"}))
}

/// `GET /health`: this member can answer; what the others can is in `/_miroir/topology`.
pub async fn health(State(api): State<Api>) -> ApiResult {
    let own = api.cluster.own();
    if api.cluster.serving(own) || api.mesh.witness() && api.cluster.active(own) {
        return json_value(StatusCode::OK, &json!({"status": "available"}));
    }
    let seen = api.cluster.seen();
    let own = seen.get(own);
    let why = match own {
        Some(seen) if seen.state == Some(MemberState::Draining) => Some("it is draining".into()),
        Some(seen) if !api.mesh.witness() && seen.node.error.is_some() => seen.node.error.clone(),
        Some(seen) if seen.state == Some(MemberState::Active) => None,
        _ => Some(api.mesh.missing()),
    };
    let why = why.unwrap_or_else(|| "its node has not been probed yet".into());
    let message = format!("This member is not in service: {why}.");
    Err(ApiError::new(ErrorCode::MiroirShardsUnavailable, message))
}

/// `GET /version`: the own node's version, as far as a client asks; all members' are in `/_miroir/topology`.
pub async fn version(State(api): State<Api>) -> ApiResult {
    let seen = api.cluster.seen();
    let own = seen.get(api.cluster.own()).and_then(|s| s.node.version.clone());
    let any = own.or_else(|| seen.values().find_map(|s| s.node.version.clone()));
    let Some(version) = any else {
        return Err(ApiError::new(ErrorCode::MiroirShardsUnavailable, "No node of the mesh has answered yet."));
    };
    json_value(StatusCode::OK, &json!({"commitSha": "unknown", "commitDate": "unknown", "pkgVersion": version}))
}

/// `GET /stats`
pub async fn stats(State(api): State<Api>, trace: axum::Extension<TraceId>, request: Request) -> ApiResult<Response> {
    Params::parse(request.uri().query(), &["sizeFormat", "showInternalDatabaseSizes"])?;
    let (stats, missing) = api.stats.all(*trace).await?;
    Ok(marked(json_value(StatusCode::OK, &stats)?, &missing))
}
