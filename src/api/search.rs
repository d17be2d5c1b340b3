//! `/indexes/{uid}/search`, `/indexes/{uid}/facet-search`, `/multi-search`.

use axum::Extension;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use super::body;
use super::error::{ApiError, ApiResult, json_bytes, mark};
use super::params::{decode, index_uid, invalid_index_uid};
use super::routes::Api;
use crate::services::Failure;
use crate::services::search::{Asker, Found};
use crate::services::tasks::error_object;
use crate::types::TraceId;
use crate::types::limits::MULTI_SEARCH_ANSWER_MAX_BYTES;
use crate::types::{ErrorCode, IndexUid, ShardSet};

/// A read's answer with the headers that say how whole it is.
pub fn answer(found: Found) -> Response {
    marked(json_bytes(StatusCode::OK, found.body), &found.missing)
}

/// A response with the header that names the shards that it lacks.
pub fn marked(mut response: Response, missing: &ShardSet) -> Response {
    if !missing.is_empty() {
        mark(response.headers_mut(), "x-miroir-degraded", &format!("shards={missing}"));
    }
    response
}

/// Who asks, and whether answers are to show `metadata`.
fn asker(request: &Request, trace: TraceId) -> Asker {
    let wanted = request.headers().get("meili-include-metadata").and_then(|v| v.to_str().ok());
    Asker::new(trace, wanted.is_some_and(|v| v == "1" || v.eq_ignore_ascii_case("true")))
}

/// `GET /indexes/{uid}/search`
pub async fn by_query(
    State(api): State<Api>,
    Extension(trace): Extension<TraceId>,
    Path(uid): Path<String>,
    request: Request,
) -> ApiResult {
    let uid = index_uid(&uid)?;
    let asker = asker(&request, trace);
    let pairs = decode(request.uri().query());
    Ok(answer(api.searches.by_pairs(&uid, pairs, asker).await?))
}

/// `POST /indexes/{uid}/search`
pub async fn by_body(
    State(api): State<Api>,
    Extension(trace): Extension<TraceId>,
    Path(uid): Path<String>,
    request: Request,
) -> ApiResult {
    let uid = index_uid(&uid)?;
    let asker = asker(&request, trace);
    let bytes = body::tree_bytes(&api, request).await?;
    Ok(answer(api.searches.by_body(&uid, &bytes, asker).await?))
}

/// `POST /indexes/{uid}/facet-search`
pub async fn facet_search(
    State(api): State<Api>,
    Extension(trace): Extension<TraceId>,
    Path(uid): Path<String>,
    request: Request,
) -> ApiResult {
    let uid = index_uid(&uid)?;
    let bytes = body::tree_bytes(&api, request).await?;
    Ok(answer(api.searches.facets(&uid, &bytes, trace).await?))
}

/// `POST /multi-search` without federation: independent searches, answered in their order, ended by the first error.
pub async fn multi(State(api): State<Api>, Extension(trace): Extension<TraceId>, request: Request) -> ApiResult {
    let asker = asker(&request, trace);
    let map = body::json_object(&api, request, &["queries", "federation"]).await?;
    if map.get("federation").is_some_and(|f| !f.is_null()) {
        let message =
            "Federated searches (`federation` in POST /multi-search) are not supported by this version of miroir.";
        return Err(ApiError::new(ErrorCode::MiroirNotSupported, message));
    }
    let queries = match map.get("queries") {
        Some(Value::Array(queries)) => queries,
        Some(other) => {
            let message =
                format!("Invalid value type at `.queries`: expected an array, but found {}", body::describe(other));
            return Err(ApiError::new(ErrorCode::BadRequest, message));
        }
        None => return Err(ApiError::new(ErrorCode::BadRequest, "Missing field `queries`")),
    };
    let mut results: Vec<Bytes> = Vec::with_capacity(queries.len());
    let (mut missing, mut bytes) = (ShardSet::new(), 0_usize);
    for (i, query) in queries.iter().enumerate() {
        let found = one_of_many(&api, query, asker).await.map_err(|e| inside(&format!(".queries[{i}]"), e))?;
        missing = missing.union(&found.missing);
        bytes += found.body.len();
        if bytes > MULTI_SEARCH_ANSWER_MAX_BYTES {
            let message = format!(
                "The answers to this multi-search come to more than {MULTI_SEARCH_ANSWER_MAX_BYTES} bytes. Ask for fewer hits or \
                 attributes, or send the queries in several requests."
            );
            return Err(ApiError::new(ErrorCode::PayloadTooLarge, message));
        }
        results.push(found.body);
    }
    let mut out = Vec::with_capacity(results.iter().map(Bytes::len).sum::<usize>() + 32);
    out.extend_from_slice(b"{\"results\":[");
    for (i, result) in results.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(result);
    }
    out.extend_from_slice(b"]}");
    Ok(answer(Found { body: out.into(), missing }))
}

async fn one_of_many(api: &Api, query: &Value, asker: Asker) -> Result<Found, ApiError> {
    let Value::Object(fields) = query else {
        let message = format!("Invalid value type at `.`: expected an object, but found {}", body::describe(query));
        return Err(ApiError::new(ErrorCode::BadRequest, message));
    };
    let mut fields = fields.clone();
    let uid = match fields.shift_remove("indexUid") {
        Some(Value::String(uid)) => uid,
        Some(other) => {
            let message =
                format!("Invalid value type at `.indexUid`: expected a string, but found {}", body::describe(&other));
            return Err(ApiError::new(ErrorCode::InvalidIndexUid, message));
        }
        None => return Err(ApiError::new(ErrorCode::MissingIndexUid, "Missing field `indexUid`")),
    };
    if fields.shift_remove("federationOptions").is_some_and(|f| !f.is_null()) {
        let message = "Using `federationOptions` is not allowed in a non-federated search.\n - Hint: remove `federationOptions` \
                       from the query or add `federation` to the request.";
        return Err(ApiError::new(ErrorCode::InvalidMultiSearchFederationOptions, message));
    }
    let uid = IndexUid::new(uid.as_str()).map_err(|_| {
        let message = format!("Invalid value at `.indexUid`: {}", invalid_index_uid(&uid));
        ApiError::new(ErrorCode::InvalidIndexUid, message)
    })?;
    let body = Value::Object(fields).to_string();
    let found = api.searches.by_body(&uid, body.as_bytes(), asker).await?;
    // Each result begins with the name of its index.
    let mut named = format!("{{\"indexUid\":{},", json!(uid)).into_bytes();
    named.extend_from_slice(found.body.get(1..).unwrap_or_default());
    Ok(Found { body: named.into(), ..found })
}

/// An error of one query among many: Meilisearch names the query, and a missing index is the request's fault.
fn inside(place: &str, error: ApiError) -> ApiError {
    ApiError(match error.0 {
        Failure::Mesh { code, message, .. } if code.status() >= 500 => Failure::new(code, message),
        Failure::Mesh { code, message, .. } => {
            let body = error_object(code, &relocate(place, &message)).to_string();
            let status = if code == ErrorCode::IndexNotFound { 400 } else { code.status() };
            Failure::Node { status, body: body.into() }
        }
        Failure::Node { status, body } => match serde_json::from_slice::<Value>(&body) {
            Ok(mut error) => {
                let text = error.get("message").and_then(Value::as_str).unwrap_or_default();
                error["message"] = json!(relocate(place, text));
                Failure::Node { status, body: error.to_string().into() }
            }
            Err(_) => Failure::Node { status, body },
        },
    })
}

/// Meilisearch's texts about a field name its place inside the request; all others are introduced by it.
fn relocate(place: &str, message: &str) -> String {
    if message.starts_with("Invalid value") && message.contains(" at `.") {
        // A place that is nothing but a dot is the query itself.
        message.replacen(" at `.", &format!(" at `{place}."), 1).replacen(
            &format!("`{place}.`"),
            &format!("`{place}`"),
            1,
        )
    } else if message.starts_with("Missing field ") {
        format!("{message} inside `{place}`")
    } else if message.starts_with("Unknown field ") {
        let placed = message.replacen("`:", &format!("` inside `{place}`:"), 1);
        // The query of a multi-search knows two fields more than a search.
        placed.replacen("expected one of ", "expected one of `indexUid`, ", 1) + ", `federationOptions`"
    } else {
        format!("Inside `{place}`: {message}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_their_query_as_a_node_does() {
        for (alone, among) in [
            ("Index `zz` not found.", "Inside `.queries[1]`: Index `zz` not found."),
            ("Missing field `indexUid`", "Missing field `indexUid` inside `.queries[1]`"),
            (
                "Invalid value type at `.limit`: expected a positive integer, but found a string: `\"x\"`",
                "Invalid value type at `.queries[1].limit`: expected a positive integer, but found a string: `\"x\"`",
            ),
        ] {
            assert_eq!(relocate(".queries[1]", alone), among);
        }
    }
}
