//! `GET /_miroir/leases`: who leads what, as the asked member knows it.

use axum::extract::State;
use http::StatusCode;
use serde_json::{Value, json};

use super::error::{ApiResult, json_value};
use super::routes::Api;
use crate::rt::clock;

/// `GET /_miroir/leases`
pub async fn list(State(api): State<Api>) -> ApiResult {
    let (view, now) = (api.leases.rows(), api.leases.now());
    let lease = |row: &crate::services::leases::Row| {
        json!({
            "scope": row.scope,
            "holder": row.holder.as_ref().map(|holder| &holder.member),
            "epoch": row.epoch,
            "expiresAt": row.expires_in(now).map(clock::rfc3339_after),
            "heldHere": view.believes(&row.scope, now).is_some(),
        })
    };
    let leases: Vec<Value> = view.rows().iter().map(lease).collect();
    json_value(StatusCode::OK, &json!({"leases": leases}))
}
