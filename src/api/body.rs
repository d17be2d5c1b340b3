//! Request bodies: media type, gzip, size and patience, each bounded, each refused in Meilisearch's words.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::Request;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http_body_util::BodyExt;
use serde_json::{Map, Value};

use super::error::ApiError;
use super::room::Bodies;
use super::routes::Api;
use crate::proto::document::size_text;
use crate::services::Failure;
use crate::services::documents::gunzip;
use crate::types::ErrorCode;

/// Bytes a second at which a body must come, beyond the first patience.
const LEAST_RATE: usize = 16 << 10;
/// Bytes that a body is counted by at a time.
const HOLD_STEP: usize = 64 << 10;

/// A tree of JSON values takes so many times the room of its text.
const TREE_FACTOR: usize = 40;
/// A body that is read as a tree may have this part of the largest size …
const TREE_SHARE: usize = 10;
/// … but at least so many bytes.
const TREE_LEAST: usize = 1 << 20;

/// What JSON routes accept.
pub const JSON: &[&str] = &["application/json"];

/// Reads a whole body and inflates it; nothing larger than the configured limit is ever held.
///
/// # Errors
/// `payload_too_large`, `bad_request` for a body that stops coming or has an encoding that is not known.
pub async fn read(api: &Api, request: Request) -> Result<(HeaderMap, Bytes), ApiError> {
    let (parts, body) = request.into_parts();
    let limit = api.options.max_body_bytes;
    let bodies = parts.extensions.get::<Bodies>().cloned();
    let grow = account_of(bodies.clone());
    let bytes = collect(body, limit, api, bodies.as_ref()).await?;
    let encoding = parts.headers.get(CONTENT_ENCODING).and_then(|v| v.to_str().ok()).unwrap_or("identity");
    let bytes = match encoding.trim().to_ascii_lowercase().as_str() {
        "identity" | "" => bytes,
        "gzip" | "x-gzip" => gunzip(bytes, limit, grow).await?,
        other => {
            let message = format!("The Content-Encoding `{other}` is not supported; send the body plain or as gzip.");
            return Err(ApiError::new(ErrorCode::BadRequest, message));
        }
    };
    Ok((parts.headers, bytes))
}

/// What is asked before a service holds so many bytes more for this request.
pub fn account(request: &Request) -> impl Fn(usize) -> Result<(), Failure> + Clone + Send + use<> {
    account_of(request.extensions().get::<Bodies>().cloned())
}

fn account_of(bodies: Option<Bodies>) -> impl Fn(usize) -> Result<(), Failure> + Clone + Send {
    move |bytes| hold(bodies.as_ref(), bytes).map_err(|e| e.0)
}

/// Counts bytes as held by the request; a request that no server counts (in a test) holds what it likes.
fn hold(bodies: Option<&Bodies>, bytes: usize) -> Result<(), ApiError> {
    bodies.map_or(Ok(()), |b| b.hold(bytes))
}

async fn collect(mut body: Body, limit: usize, api: &Api, bodies: Option<&Bodies>) -> Result<Bytes, ApiError> {
    // What the head already says is too much is not waited for.
    if http_body::Body::size_hint(&body).lower() > limit as u64 {
        return Err(too_large(limit));
    }
    let (mut whole, mut counted) = (BytesMut::new(), 0);
    let began = Instant::now();
    loop {
        // A body that trickles is given up as well: it must come at a least rate.
        let earned = Duration::from_secs((whole.len() / LEAST_RATE) as u64);
        let until = (began + api.options.body_timeout + earned).min(Instant::now() + api.options.body_timeout);
        let frame = tokio::time::timeout_at(until.into(), body.frame()).await;
        let Ok(frame) = frame else {
            let message = format!(
                "The request's body stopped coming for {} s, or came at less than {} KiB a second.",
                api.options.body_timeout.as_secs(),
                LEAST_RATE >> 10
            );
            return Err(ApiError::new(ErrorCode::BadRequest, message));
        };
        let Some(frame) = frame else { return Ok(whole.freeze()) };
        let frame = frame
            .map_err(|e| ApiError::new(ErrorCode::BadRequest, format!("The request's body could not be read: {e}.")))?;
        if let Ok(data) = frame.into_data() {
            if whole.len() + data.len() > limit {
                return Err(too_large(limit));
            }
            if counted < whole.len() + data.len() {
                // In steps, so that a slow body does not hold its whole size from the start.
                let step = (whole.len() + data.len() - counted).max(HOLD_STEP);
                hold(bodies, step)?;
                counted += step;
            }
            whole.extend_from_slice(&data);
        }
    }
}

/// Meilisearch's error about a body over the limit.
pub fn too_large(limit: usize) -> ApiError {
    let message = format!(
        "The provided payload reached the size limit. The maximum accepted payload size is {}.",
        size_text(limit)
    );
    ApiError::new(ErrorCode::PayloadTooLarge, message)
}

/// The media type without its parameters, which must be one of `accepted`.
///
/// # Errors
/// `missing_content_type`, `invalid_content_type`.
pub fn media_type(headers: &HeaderMap, accepted: &[&str]) -> Result<String, ApiError> {
    let list: Vec<_> = accepted.iter().map(|a| format!("`{a}`")).collect();
    let list = list.join(", ");
    let Some(value) = headers.get(CONTENT_TYPE) else {
        let message =
            format!("A Content-Type header is missing. Accepted values for the Content-Type header are: {list}");
        return Err(ApiError::new(ErrorCode::MissingContentType, message));
    };
    let text = String::from_utf8_lossy(value.as_bytes());
    let kind = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if accepted.contains(&kind.as_str()) {
        return Ok(kind);
    }
    let message =
        format!("The Content-Type `{text}` is invalid. Accepted values for the Content-Type header are: {list}");
    Err(ApiError::new(ErrorCode::InvalidContentType, message))
}

/// A JSON body as bytes, not empty.
///
/// # Errors
/// As [`read`] and [`media_type`], or `missing_payload`.
pub async fn json_bytes(api: &Api, request: Request) -> Result<Bytes, ApiError> {
    media_type(request.headers(), JSON)?;
    let (_, bytes) = read(api, request).await?;
    if bytes.is_empty() {
        return Err(ApiError::new(ErrorCode::MissingPayload, "A json payload is missing."));
    }
    Ok(bytes)
}

/// A JSON body that will be read as a tree: smaller, and counted as large as the tree.
///
/// # Errors
/// As [`json_bytes`].
pub async fn tree_bytes(api: &Api, request: Request) -> Result<Bytes, ApiError> {
    let bodies = request.extensions().get::<Bodies>().cloned();
    let bytes = json_bytes(api, request).await?;
    let limit = (api.options.max_body_bytes / TREE_SHARE).max(TREE_LEAST).min(api.options.max_body_bytes);
    if bytes.len() > limit {
        return Err(too_large(limit));
    }
    hold(bodies.as_ref(), bytes.len().saturating_mul(TREE_FACTOR))?;
    Ok(bytes)
}

/// A JSON body as a value; its depth is bounded by the parser.
///
/// # Errors
/// As [`tree_bytes`], or `malformed_payload`.
pub async fn json(api: &Api, request: Request) -> Result<Value, ApiError> {
    let bytes = tree_bytes(api, request).await?;
    serde_json::from_slice(&bytes).map_err(|e| {
        ApiError::new(ErrorCode::MalformedPayload, format!("The json payload provided is malformed. `{e}`."))
    })
}

/// A JSON object of which only `known` fields are allowed.
///
/// # Errors
/// As [`json`], or `bad_request`.
pub async fn json_object(api: &Api, request: Request, known: &[&str]) -> Result<Map<String, Value>, ApiError> {
    let map = object(json(api, request).await?)?;
    self::known(&map, known)?;
    Ok(map)
}

/// Checks that an object has only `known` fields.
///
/// # Errors
/// `bad_request`.
pub fn known(map: &Map<String, Value>, known: &[&str]) -> Result<(), ApiError> {
    if let Some(name) = map.keys().find(|k| !known.contains(&k.as_str())) {
        let list: Vec<_> = known.iter().map(|k| format!("`{k}`")).collect();
        let message = format!("Unknown field `{name}`: expected one of {}", list.join(", "));
        return Err(ApiError::new(ErrorCode::BadRequest, message));
    }
    Ok(())
}

/// A value that must be an object.
///
/// # Errors
/// `bad_request` with Meilisearch's text.
pub fn object(value: Value) -> Result<Map<String, Value>, ApiError> {
    match value {
        Value::Object(map) => Ok(map),
        other => {
            let message = format!("Invalid value type: expected an object, but found {}", describe(&other));
            Err(ApiError::new(ErrorCode::BadRequest, message))
        }
    }
}

/// A value as Meilisearch's type errors name it.
pub fn describe(value: &Value) -> String {
    let text = || value.to_string();
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => format!("a boolean: `{}`", text()),
        Value::Number(n) if n.is_u64() => format!("a positive integer: `{n}`"),
        Value::Number(n) if n.is_i64() => format!("a negative integer: `{n}`"),
        Value::Number(n) => format!("a number: `{n}`"),
        Value::String(_) => format!("a string: `{}`", text()),
        Value::Array(_) => format!("an array: `{}`", text()),
        Value::Object(_) => format!("an object: `{}`", text()),
    }
}

/// A field that is a string or null.
///
/// # Errors
/// `code` with Meilisearch's text.
pub fn optional_text(map: &Map<String, Value>, name: &str, code: ErrorCode) -> Result<Option<String>, ApiError> {
    match map.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => {
            let message = format!("Invalid value type at `.{name}`: expected a string, but found {}", describe(other));
            Err(ApiError::new(code, message))
        }
    }
}
