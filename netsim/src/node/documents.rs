//! Documents as clients send them: payload formats, primary keys, ids.
//!
//! Rule: a payload is parsed wholly before a task is made of it; what only the task can find out (ids, primary key) is
//! a task's error. Must not know: HTTP types, the store, search.

use std::io::Read;

use serde_json::{Map, Value};

use super::error::{ApiError, Result};

/// The largest payload, after decompression.
pub const MAX_PAYLOAD: usize = 104_857_600;

const ID_RULE: &str = "A document identifier can be of type integer or string, only composed of alphanumeric characters \
    (a-z A-Z 0-9), hyphens (-) and underscores (_), and can not be more than 511 bytes.";

/// Payload formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One document or an array of them.
    Json,
    /// One document a line.
    Ndjson,
    /// A header line, then one document a line.
    Csv,
}

/// Undoes `Content-Encoding: gzip`; what is larger than [`MAX_PAYLOAD`] is refused.
pub fn decompress(body: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut reader = flate2::read::MultiGzDecoder::new(body).take(MAX_PAYLOAD as u64 + 1);
    reader.read_to_end(&mut out).map_err(|e| ApiError::new("bad_request", e.to_string()))?;
    check_size(out.len())?;
    Ok(out)
}

/// Refuses a payload that is too large.
pub fn check_size(length: usize) -> Result<()> {
    match length > MAX_PAYLOAD {
        true => Err(ApiError::new(
            "payload_too_large",
            "The provided payload reached the size limit. The maximum accepted payload size is 100 MiB.",
        )),
        false => Ok(()),
    }
}

/// Parses a payload into documents.
pub fn parse(body: &[u8], format: Format, delimiter: u8) -> Result<Vec<Map<String, Value>>> {
    match format {
        Format::Json => parse_json(body),
        Format::Ndjson => parse_ndjson(body),
        Format::Csv => parse_csv(body, delimiter),
    }
}

fn malformed(format: &str, why: impl std::fmt::Display) -> ApiError {
    let text = format!("The `{format}` payload provided is malformed. `Couldn't serialize document value: {why}`.");
    ApiError::new("malformed_payload", text)
}

fn parse_json(body: &[u8]) -> Result<Vec<Map<String, Value>>> {
    match serde_json::from_slice(body).map_err(|e| malformed("json", e))? {
        Value::Object(document) => Ok(vec![document]),
        Value::Array(items) => items
            .into_iter()
            .map(|item| match item {
                Value::Object(document) => Ok(document),
                other => Err(ApiError::internal(format!(
                    "invalid type: {}, expected a map at line 1 column 1",
                    serde_kind(&other)
                ))),
            })
            .collect(),
        _ => Err(malformed("json", "data are neither an object nor a list of objects")),
    }
}

/// A value as serde's errors name it.
pub fn serde_kind(value: &Value) -> String {
    match value {
        Value::Object(_) => "map".to_owned(),
        Value::Array(_) => "sequence".to_owned(),
        Value::String(text) => format!("string {text:?}"),
        Value::Number(number) if number.is_f64() => format!("floating point `{number}`"),
        Value::Number(number) => format!("integer `{number}`"),
        Value::Bool(flag) => format!("boolean `{flag}`"),
        Value::Null => "null".to_owned(),
    }
}

fn parse_ndjson(body: &[u8]) -> Result<Vec<Map<String, Value>>> {
    let stream = serde_json::Deserializer::from_slice(body).into_iter::<Map<String, Value>>();
    stream.map(|document| document.map_err(|e| malformed("ndjson", e))).collect()
}

fn parse_csv(body: &[u8], delimiter: u8) -> Result<Vec<Map<String, Value>>> {
    let bad =
        |why: String| ApiError::new("malformed_payload", format!("The `csv` payload provided is malformed: `{why}`."));
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(body);
    let headers: Vec<(String, String)> = reader
        .headers()
        .map_err(|e| bad(e.to_string()))?
        .iter()
        .map(|header| match header.rsplit_once(':') {
            Some((name, kind @ ("number" | "boolean" | "string"))) => (name.to_owned(), kind.to_owned()),
            _ => (header.to_owned(), "string".to_owned()),
        })
        .collect();
    let mut documents = Vec::new();
    for (at, record) in reader.records().enumerate() {
        let record = record.map_err(|e| bad(e.to_string()))?;
        let mut document = Map::new();
        for ((name, kind), text) in headers.iter().zip(record.iter()) {
            let value = match (kind.as_str(), text) {
                (_, "") => Value::Null,
                ("number", text) => csv_number(text).ok_or_else(|| {
                    bad(format!("Error parsing number {text:?} at line {}: invalid float literal", at + 1))
                })?,
                ("boolean", text) => text.trim().parse().map(Value::Bool).map_err(|_| {
                    bad(format!(
                        "Error parsing boolean {text:?} at line {}: provided string was not `true` or `false`",
                        at + 1
                    ))
                })?,
                (_, text) => Value::String(text.to_owned()),
            };
            document.insert(name.clone(), value);
        }
        documents.push(document);
    }
    Ok(documents)
}

fn csv_number(text: &str) -> Option<Value> {
    let text = text.trim();
    if let Ok(integer) = text.parse::<i64>() {
        return Some(integer.into());
    }
    serde_json::Number::from_f64(text.parse().ok()?).map(Value::Number)
}

/// The value at a path with dots.
pub fn id_at<'a>(document: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    if let Some(value) = document.get(path) {
        return Some(value);
    }
    let mut parts = path.split('.');
    let first = document.get(parts.next()?)?;
    parts.try_fold(first, |value, part| value.get(part))
}

/// The text of a valid document id.
pub fn id_text(value: &Value) -> Option<String> {
    match value {
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        Value::String(text) if is_valid_id(text) => Some(text.clone()),
        _ => None,
    }
}

/// Whether a text may be a document id.
pub fn is_valid_id(text: &str) -> bool {
    (1..=511).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// The error for a value that can't be a document id.
pub fn invalid_id(value: &Value) -> ApiError {
    ApiError::new("invalid_document_id", format!("Document identifier `{value}` is invalid. {ID_RULE}"))
}

/// The id of a document.
pub fn id_of(document: &Map<String, Value>, primary_key: &str) -> Result<String> {
    match id_at(document, primary_key) {
        Some(value) => id_text(value).ok_or_else(|| invalid_id(value)),
        None => {
            let shown = Value::Object(document.clone());
            let text = format!("Document doesn't have a `{primary_key}` attribute: `{shown}`.");
            Err(ApiError::new("missing_document_id", text))
        }
    }
}

/// The primary key that the first document suggests.
pub fn infer_primary_key(document: &Map<String, Value>) -> Result<String> {
    let mut candidates: Vec<&String> = document.keys().filter(|name| name.to_lowercase().ends_with("id")).collect();
    candidates.sort();
    match candidates[..] {
        [one] => Ok(one.clone()),
        [] => Err(ApiError::new(
            "index_primary_key_no_candidate_found",
            "The primary key inference failed as the engine did not find any field ending with `id` in its name. Please \
             specify the primary key manually using the `primaryKey` query parameter.",
        )),
        [first, second, ..] => Err(ApiError::new(
            "index_primary_key_multiple_candidates_found",
            format!(
                "The primary key inference failed as the engine found {} fields ending with `id` in their names: '{first}' \
                 and '{second}'. Please specify the primary key manually using the `primaryKey` query parameter.",
                candidates.len()
            ),
        )),
    }
}

/// Whether a text may be the name of an index.
pub fn is_valid_uid(uid: &str) -> bool {
    (1..=400).contains(&uid.len()) && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// Refuses what can't be the name of an index.
pub fn check_uid(uid: &str, place: &str) -> Result<()> {
    if is_valid_uid(uid) {
        return Ok(());
    }
    let text = format!(
        "{place}`{uid}` is not a valid index uid. Index uid can be an integer or a string containing only alphanumeric \
         characters, hyphens (-) and underscores (_), and can not be more than 512 bytes."
    );
    Err(ApiError::new("invalid_index_uid", text))
}
