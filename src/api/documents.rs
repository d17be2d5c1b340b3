//! `/indexes/{uid}/documents` and below.

use axum::Extension;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::body;
use super::error::{ApiError, ApiResult, json_value, mark};
use super::params::{Params, decode, index_uid};
use super::routes::Api;
use super::search::answer;
use super::service::DEGRADED;
use crate::proto::document::{Format, IdList};
use crate::proto::tasks::home::entry::KEY_MAX_BYTES;
use crate::services::documents::{Addition, With, failure};
use crate::services::tasks::Accepted;
use crate::types::ErrorCode;
use crate::types::TraceId;

const DOCUMENT_TYPES: &[&str] = &["application/json", "application/x-ndjson", "text/csv"];

/// `POST` and `PUT /indexes/{uid}/documents`
pub async fn add(
    State(api): State<Api>,
    Extension(trace): Extension<TraceId>,
    Path(uid): Path<String>,
    request: Request,
) -> ApiResult {
    let uid = index_uid(&uid)?;
    let known = ["primaryKey", "csvDelimiter", "customMetadata", "skipCreation"];
    let params = Params::parse(request.uri().query(), &known)?;
    let merge = request.method() == Method::PUT;
    let kind = body::media_type(request.headers(), DOCUMENT_TYPES)?;
    let add = Addition {
        format: format(&kind, params.get("csvDelimiter"))?,
        merge,
        skip_creation: skip_creation(params.get("skipCreation"))?,
        primary_key: params.get("primaryKey").map(str::to_owned),
        with: With { custom_metadata: params.get("customMetadata").map(str::to_owned), key: None },
    };
    let (hold, key) = (body::account(&request), IdempotencyKey::of(&request)?);
    let (_, bytes) = body::read(&api, request).await?;
    let add = Addition { with: With { key: key.map(|key| key.with(&bytes)), ..add.with }, ..add };
    accepted(api.documents.add(&uid, bytes, add, hold, trace).await?)
}

/// The header by which a client repeats a write without doing it twice.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Such a key, with all of the request but its body.
struct IdempotencyKey {
    key: String,
    request: Sha256,
}

impl IdempotencyKey {
    fn of(request: &Request) -> Result<Option<Self>, ApiError> {
        let Some(value) = request.headers().get(IDEMPOTENCY_KEY) else { return Ok(None) };
        let key = value.to_str().ok().filter(|key| (1..=KEY_MAX_BYTES).contains(&key.len()));
        let Some(key) = key else {
            let message =
                format!("Invalid header `Idempotency-Key`: expected 1 to {KEY_MAX_BYTES} printable ASCII characters.");
            return Err(ApiError::new(ErrorCode::BadRequest, message));
        };
        let mut hash = Sha256::new();
        for part in [request.method().as_str(), request.uri().path(), request.uri().query().unwrap_or_default()] {
            hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            hash.update(part);
        }
        Ok(Some(Self { key: key.to_owned(), request: hash }))
    }

    /// The key, and the hash of the whole request.
    fn with(mut self, body: &[u8]) -> (String, [u8; 32]) {
        self.request.update(body);
        (self.key, self.request.finalize().into())
    }
}

/// The answer to a write that was taken.
fn accepted(accepted: Accepted) -> ApiResult {
    let mut response = json_value(StatusCode::ACCEPTED, &accepted.summary)?;
    if let Some((in_sync, copies)) = accepted.copies.filter(|(in_sync, copies)| in_sync < copies) {
        mark(response.headers_mut(), DEGRADED, &format!("copies={in_sync}/{copies}"));
    }
    Ok(response)
}

fn skip_creation(value: Option<&str>) -> Result<bool, ApiError> {
    match value {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => {
            let message = format!("skipCreation must be either `true` or `false`. Found: `{other}`");
            Err(ApiError::new(ErrorCode::InvalidSkipCreation, message))
        }
    }
}

fn format(kind: &str, delimiter: Option<&str>) -> Result<Format, ApiError> {
    let csv = kind == "text/csv";
    match (csv, delimiter) {
        (true, None) => Ok(Format::Csv { delimiter: b',' }),
        (true, Some(text)) => match text.as_bytes() {
            [one] if one.is_ascii() => Ok(Format::Csv { delimiter: *one }),
            [] => {
                let message = "Invalid value in parameter `csvDelimiter`: expected a string of one character, but found an empty string";
                Err(ApiError::new(ErrorCode::InvalidDocumentCsvDelimiter, message))
            }
            _ => {
                let message = match text.chars().count() {
                    1 => format!("csv delimiter must be an ascii character. Found: `{text}`"),
                    parts => format!(
                        "Invalid value in parameter `csvDelimiter`: expected a string of one character, but found the \
                         following string of {parts} characters: `{text}`"
                    ),
                };
                Err(ApiError::new(ErrorCode::InvalidDocumentCsvDelimiter, message))
            }
        },
        (false, Some(_)) => {
            let message = format!(
                "The Content-Type `{kind}` does not support the use of a csv delimiter. The csv delimiter can only be used with the Content-Type `text/csv`."
            );
            Err(ApiError::new(ErrorCode::InvalidContentType, message))
        }
        (false, None) if kind == "application/json" => Ok(Format::Json),
        (false, None) => Ok(Format::Ndjson),
    }
}

/// `GET /indexes/{uid}/documents`
pub async fn list(
    State(api): State<Api>,
    Extension(trace): Extension<TraceId>,
    Path(uid): Path<String>,
    request: Request,
) -> ApiResult {
    let uid = index_uid(&uid)?;
    let pairs = decode(request.uri().query());
    Ok(answer(api.reads.list_by_pairs(&uid, pairs, trace).await?))
}

/// `POST /indexes/{uid}/documents/fetch`
pub async fn fetch(
    State(api): State<Api>,
    Extension(trace): Extension<TraceId>,
    Path(uid): Path<String>,
    request: Request,
) -> ApiResult {
    let uid = index_uid(&uid)?;
    let bytes = body::tree_bytes(&api, request).await?;
    Ok(answer(api.reads.list(&uid, &bytes, trace).await?))
}

/// `GET /indexes/{uid}/documents/{id}`
pub async fn get(
    State(api): State<Api>,
    Extension(trace): Extension<TraceId>,
    Path((uid, id)): Path<(String, String)>,
    request: Request,
) -> ApiResult {
    let uid = index_uid(&uid)?;
    let params = Params::parse(request.uri().query(), &["fields", "retrieveVectors", "useNetwork"])?;
    let fields = params.get("fields").map(|f| f.split(',').map(str::to_owned).collect::<Vec<_>>());
    let fields = fields.filter(|fields| !fields.iter().any(|f| f == "*"));
    let vectors = params.flag("retrieveVectors", ErrorCode::InvalidDocumentRetrieveVectors)?;
    Ok(answer(api.reads.document(&uid, &id, fields, vectors, trace).await?))
}

/// `DELETE /indexes/{uid}/documents/{id}`
pub async fn delete_one(
    State(api): State<Api>,
    Extension(trace): Extension<TraceId>,
    Path((uid, id)): Path<(String, String)>,
    request: Request,
) -> ApiResult {
    let (metadata, key) = (metadata(&request)?, IdempotencyKey::of(&request)?);
    let body = Bytes::from(json!([id]).to_string());
    deleted(api, &uid, body, metadata, key, trace).await
}

/// The one parameter that deletions and editions have.
fn metadata(request: &Request) -> Result<Option<String>, ApiError> {
    Ok(Params::parse(request.uri().query(), &["customMetadata"])?.get("customMetadata").map(str::to_owned))
}

/// `POST /indexes/{uid}/documents/delete-batch`
pub async fn delete_batch(
    State(api): State<Api>,
    Extension(trace): Extension<TraceId>,
    Path(uid): Path<String>,
    request: Request,
) -> ApiResult {
    index_uid(&uid)?;
    let (metadata, key) = (metadata(&request)?, IdempotencyKey::of(&request)?);
    let body = body::json_bytes(&api, request).await?;
    deleted(api, &uid, body, metadata, key, trace).await
}

async fn deleted(
    api: Api,
    uid: &str,
    body: Bytes,
    custom_metadata: Option<String>,
    key: Option<IdempotencyKey>,
    trace: TraceId,
) -> ApiResult<Response> {
    let uid = index_uid(uid)?;
    let with = With { custom_metadata, key: key.map(|key| key.with(&body)) };
    let list = IdList::parse(body).map_err(|e| failure(&e))?;
    accepted(api.documents.delete_ids(&uid, list, with, trace).await?)
}

/// `POST /indexes/{uid}/documents/delete`
pub async fn delete_by_filter(
    State(api): State<Api>,
    Extension(trace): Extension<TraceId>,
    Path(uid): Path<String>,
    request: Request,
) -> ApiResult {
    let uid = index_uid(&uid)?;
    let (custom_metadata, key) = (metadata(&request)?, IdempotencyKey::of(&request)?);
    let map = body::json_object(&api, request, &["filter"]).await?;
    let Some(filter) = map.get("filter") else {
        return Err(ApiError::new(ErrorCode::MissingDocumentFilter, "Missing field `filter`"));
    };
    if filter.is_null() {
        let message = "Invalid syntax for the filter parameter: `expected String, Array, found: null`.";
        return Err(ApiError::new(ErrorCode::InvalidDocumentFilter, message));
    }
    if matches!(filter, Value::String(s) if s.trim().is_empty()) || matches!(filter, Value::Array(a) if a.is_empty()) {
        return Err(ApiError::new(ErrorCode::InvalidDocumentFilter, "Sending an empty filter is forbidden."));
    }
    let body = Bytes::from(json!({ "filter": filter }).to_string());
    let with = With { custom_metadata, key: key.map(|key| key.with(&body)) };
    api.reads.check_filter(&uid, filter, trace).await?;
    accepted(api.documents.delete_by_filter(&uid, filter, body, with, trace).await?)
}

/// `POST /indexes/{uid}/documents/edit`
pub async fn edit(
    State(api): State<Api>,
    Extension(trace): Extension<TraceId>,
    Path(uid): Path<String>,
    request: Request,
) -> ApiResult {
    let uid = index_uid(&uid)?;
    let (custom_metadata, key) = (metadata(&request)?, IdempotencyKey::of(&request)?);
    let edition = body::json_object(&api, request, &["filter", "context", "function"]).await?;
    let body = Value::Object(edition.clone()).to_string();
    let with = With { custom_metadata, key: key.map(|key| key.with(body.as_bytes())) };
    accepted(api.documents.edit(&uid, edition, with, trace).await?)
}

/// `DELETE /indexes/{uid}/documents`
pub async fn delete_all(
    State(api): State<Api>,
    Extension(trace): Extension<TraceId>,
    Path(uid): Path<String>,
    request: Request,
) -> ApiResult {
    let uid = index_uid(&uid)?;
    let (custom_metadata, key) = (metadata(&request)?, IdempotencyKey::of(&request)?);
    let with = With { custom_metadata, key: key.map(|key| key.with(b"")) };
    accepted(api.documents.delete_all(&uid, with, trace).await?)
}
