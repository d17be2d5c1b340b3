//! `/_miroir/indexes*`: who holds which shard, who orders its writes, who is behind.

use axum::Extension;
use axum::extract::{Path, Request, State};
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::body::{json_object, optional_text};
use super::error::{ApiError, ApiResult, json_value};
use super::params::index_uid;
use super::routes::Api;
use crate::proto::journal::ordered::Order;
use crate::types::{ErrorCode, MemberId, ShardId, TraceId};

/// `GET /_miroir/indexes`: all of them, in short.
pub async fn list(State(api): State<Api>) -> ApiResult {
    json_value(StatusCode::OK, &json!({"indexes": api.shards.all()}))
}

/// `GET /_miroir/indexes/{uid}`: one, shard by shard.
pub async fn get(State(api): State<Api>, Extension(trace): Extension<TraceId>, Path(uid): Path<String>) -> ApiResult {
    json_value(StatusCode::OK, &api.shards.one(&index_uid(&uid)?, trace).await?)
}

/// `POST /_miroir/indexes/{uid}/shards/{shard}/elect`: `member` is made the shard's primary; one that is not in sync only with
/// `acceptDataLoss`.
pub async fn elect(
    State(api): State<Api>,
    Extension(trace): Extension<TraceId>,
    Path((uid, shard)): Path<(String, String)>,
    request: Request,
) -> ApiResult {
    let uid = index_uid(&uid)?;
    let shard = shard.parse().map(ShardId).map_err(|_| bad(format!("`{shard}` is not the number of a shard.")))?;
    let map = json_object(&api, request, &["member", "acceptDataLoss"]).await?;
    let order = order_of(&map)?;
    // Carried out to its end, also if who asked goes: what was given up is logged.
    let shards = api.shards.clone();
    let elected = tokio::spawn(async move { shards.elect(&uid, shard, order, trace).await }).await;
    let elected =
        elected.map_err(|e| ApiError::new(ErrorCode::Internal, format!("the order failed inside: {e}")))??;
    json_value(StatusCode::OK, &elected)
}

fn bad(message: String) -> ApiError {
    ApiError::new(ErrorCode::BadRequest, message)
}

fn order_of(map: &Map<String, Value>) -> Result<Order, ApiError> {
    let Some(member) = optional_text(map, "member", ErrorCode::BadRequest)? else {
        return Err(bad("Missing field `member`".to_owned()));
    };
    let to = MemberId::new(member.as_str()).map_err(|e| bad(format!("Invalid value at `.member`: {e}")))?;
    let accept_loss = match map.get("acceptDataLoss") {
        None => false,
        Some(Value::Bool(accepted)) => *accepted,
        Some(_) => return Err(bad("Invalid value type at `.acceptDataLoss`: expected a boolean".to_owned())),
    };
    Ok(Order { to, accept_loss })
}
