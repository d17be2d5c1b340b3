//! `/indexes/{uid}/documents` and below.

use axum::Extension;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::body;
use super::error::{ApiError, ApiResult, json_value};
use super::params::{Params, decode, index_uid};
use super::routes::Api;
use super::search::answer;
use crate::proto::document::{Format, IdList};
use crate::services::documents::{Addition, failure};
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
        custom_metadata: params.get("customMetadata").map(str::to_owned),
    };
    let hold = body::account(&request);
    let (_, bytes) = body::read(&api, request).await?;
    json_value(StatusCode::ACCEPTED, &api.documents.add(&uid, bytes, add, hold, trace).await?)
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
    let metadata = metadata(&request)?;
    let body = Bytes::from(json!([id]).to_string());
    accepted(api, &uid, body, metadata, trace).await
}

/// The one parameter that deletions have.
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
    let metadata = metadata(&request)?;
    let body = body::json_bytes(&api, request).await?;
    accepted(api, &uid, body, metadata, trace).await
}

async fn accepted(api: Api, uid: &str, body: Bytes, metadata: Option<String>, trace: TraceId) -> ApiResult<Response> {
    let uid = index_uid(uid)?;
    let list = IdList::parse(body).map_err(|e| failure(&e))?;
    json_value(StatusCode::ACCEPTED, &api.documents.delete_ids(&uid, list, metadata, trace).await?)
}

/// `POST /indexes/{uid}/documents/delete`
pub async fn delete_by_filter(
    State(api): State<Api>,
    Extension(trace): Extension<TraceId>,
    Path(uid): Path<String>,
    request: Request,
) -> ApiResult {
    let uid = index_uid(&uid)?;
    let metadata = metadata(&request)?;
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
    json_value(StatusCode::ACCEPTED, &api.documents.delete_by_filter(&uid, filter, body, metadata, trace).await?)
}

/// `DELETE /indexes/{uid}/documents`
pub async fn delete_all(
    State(api): State<Api>,
    Extension(trace): Extension<TraceId>,
    Path(uid): Path<String>,
    request: Request,
) -> ApiResult {
    let uid = index_uid(&uid)?;
    let metadata = metadata(&request)?;
    json_value(StatusCode::ACCEPTED, &api.documents.delete_all(&uid, metadata, trace).await?)
}
