//! The routes of documents.
//!
//! Rule: a payload is checked as far as Meilisearch checks it before the `202`; everything else is the task's error.
//! Must not know: how documents are kept.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, header};
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::documents::{self, Format, check_size, check_uid, id_text, invalid_id};
use super::edit;
use super::error::{ApiError, Result};
use super::filter::{self, Filter, Wording};
use super::format::select;
use super::http::{Reply, Server, Shared, accepted, aside, content_type, json_body, object, ok, with_index};
use super::index::{Doc, DocId, Index};
use super::params::{Fields, Query, wrong_type};
use super::search::{check_sorts, parse_sorts, weighted_sorts};
use super::tasks::Work;
use super::{rank, vector};

const CODE: &str = "invalid_document_filter";
const FETCH: [&str; 8] = ["offset", "limit", "fields", "retrieveVectors", "ids", "filter", "sort", "useNetwork"];

/// The routes under `/indexes/{uid}/documents`.
pub fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/indexes/{uid}/documents", get(list).post(replace).put(merge).delete(clear))
        .route("/indexes/{uid}/documents/fetch", post(fetch))
        .route("/indexes/{uid}/documents/delete", post(delete_filtered))
        .route("/indexes/{uid}/documents/edit", post(edit_filtered))
        .route("/indexes/{uid}/documents/delete-batch", post(delete_batch))
        .route("/indexes/{uid}/documents/{id}", get(one).delete(delete_one))
}

async fn replace(state: Shared, uid: Path<String>, query: RawQuery, headers: HeaderMap, body: Bytes) -> Reply {
    add(state, uid, query, headers, body, false).await
}

async fn merge(state: Shared, uid: Path<String>, query: RawQuery, headers: HeaderMap, body: Bytes) -> Reply {
    add(state, uid, query, headers, body, true).await
}

fn format_of(headers: &HeaderMap) -> Result<(Format, &'static str)> {
    let list =
        "Accepted values for the Content-Type header are: `application/json`, `application/x-ndjson`, `text/csv`";
    match content_type(headers).as_deref() {
        Some("application/json") => Ok((Format::Json, "application/json")),
        Some("application/x-ndjson") => Ok((Format::Ndjson, "application/x-ndjson")),
        Some("text/csv") => Ok((Format::Csv, "text/csv")),
        None => Err(ApiError::new("missing_content_type", format!("A Content-Type header is missing. {list}"))),
        Some(other) => {
            Err(ApiError::new("invalid_content_type", format!("The Content-Type `{other}` is invalid. {list}")))
        }
    }
}

fn delimiter_of(query: &Query, (format, media): (Format, &str)) -> Result<u8> {
    let Some(text) = query.get("csvDelimiter") else { return Ok(b',') };
    let code = "invalid_document_csv_delimiter";
    let place = "Invalid value in parameter `csvDelimiter`: expected a string of one character, but found";
    let delimiter = match text.as_bytes() {
        [byte] if byte.is_ascii() => *byte,
        [] => return Err(ApiError::new(code, format!("{place} an empty string"))),
        _ => {
            let count = text.chars().count();
            return Err(ApiError::new(code, format!("{place} the following string of {count} characters: `{text}`")));
        }
    };
    if format != Format::Csv {
        let text = format!(
            "The Content-Type `{media}` does not support the use of a csv delimiter. The csv delimiter can only be used with the Content-Type `text/csv`."
        );
        return Err(ApiError::new("invalid_content_type", text));
    }
    Ok(delimiter)
}

async fn add(
    State(server): Shared,
    Path(uid): Path<String>,
    RawQuery(raw): RawQuery,
    headers: HeaderMap,
    body: Bytes,
    merge: bool,
) -> Reply {
    check_uid(&uid, "")?;
    let query = Query::read(raw.as_deref(), &["primaryKey", "csvDelimiter", "customMetadata", "skipCreation"])?;
    let skip_creation = match query.get("skipCreation") {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => {
            let text = format!("skipCreation must be either `true` or `false`. Found: `{other}`");
            return Err(ApiError::new("invalid_skip_creation", text));
        }
    };
    let format = format_of(&headers)?;
    let delimiter = delimiter_of(&query, format)?;
    let primary_key = query.get("primaryKey").map(str::to_owned);
    let metadata = query.get("customMetadata").map(str::to_owned);
    let gzip = headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding == "gzip");
    let name = ["json", "ndjson", "csv"][format.0 as usize];
    let summary = aside(move || {
        check_size(body.len())?;
        let body = if gzip { Bytes::from(documents::decompress(&body)?) } else { body };
        if body.is_empty() {
            return Err(ApiError::new("missing_payload", format!("A {name} payload is missing.")));
        }
        let documents = documents::parse(&body, format.0, delimiter)?;
        let details = object(json!({"receivedDocuments": documents.len(), "indexedDocuments": null}));
        let work = Work::Documents { merge, skip_creation, primary_key, documents };
        server.engine.enqueue_with(&uid, "documentAdditionOrUpdate", details, work, metadata)
    })
    .await?;
    accepted(summary)
}

/// A checked request for documents.
struct Fetch {
    offset: usize,
    limit: usize,
    fields: Option<Vec<String>>,
    vectors: bool,
    ids: Option<Vec<String>>,
    filter: Option<Filter>,
    sort: Vec<(String, bool)>,
    proxied: bool,
}

async fn list(State(server): Shared, Path(uid): Path<String>, RawQuery(raw): RawQuery) -> Reply {
    check_uid(&uid, "")?;
    let query = Query::read(raw.as_deref(), &FETCH)?;
    let filter = query.get("filter").map(|text| filter::parse(&json!(text), CODE)).transpose()?.flatten();
    let ids = query.list("ids").map(|ids| check_ids(ids.iter().map(|id| json!(id)))).transpose()?;
    let fetch = Fetch {
        offset: query.count("offset", "invalid_document_offset")?.unwrap_or(0),
        limit: query.count("limit", "invalid_document_limit")?.unwrap_or(20),
        fields: starred(query.list("fields")),
        vectors: query.boolean("retrieveVectors", "invalid_document_retrieve_vectors")?.unwrap_or(false),
        ids,
        filter,
        sort: parse_sorts(query.list("sort").unwrap_or_default(), "invalid_document_sort")?,
        proxied: false,
    };
    run(server, uid, fetch).await
}

async fn fetch(State(server): Shared, Path(uid): Path<String>, headers: HeaderMap, body: Bytes) -> Reply {
    check_uid(&uid, "")?;
    let body = json_body(&headers, &body)?;
    let fields = Fields::open(&body, "", "bad_request", &FETCH)?;
    let ids = match fields.get("ids") {
        None => None,
        Some(Value::Array(ids)) => Some(check_ids(ids.iter().cloned())?),
        Some(other) => return Err(super::params::wrong_type("invalid_document_ids", ".ids", "an array", other)),
    };
    let fetch = Fetch {
        offset: fields.count("offset", "invalid_document_offset")?.unwrap_or(0),
        limit: fields.count("limit", "invalid_document_limit")?.unwrap_or(20),
        fields: fields.strings("fields", "invalid_document_fields")?.map(without_star),
        vectors: fields.boolean("retrieveVectors", "invalid_document_retrieve_vectors")?.unwrap_or(false),
        ids,
        filter: fields.get("filter").map(|value| filter::parse(value, CODE)).transpose()?.flatten(),
        sort: parse_sorts(
            fields.strings("sort", "invalid_document_sort")?.unwrap_or_default(),
            "invalid_document_sort",
        )?,
        proxied: headers.get("Meili-Proxy-Search").is_some_and(|value| value == "true"),
    };
    run(server, uid, fetch).await
}

fn check_ids(ids: impl Iterator<Item = Value>) -> Result<Vec<String>> {
    ids.enumerate()
        .map(|(at, id)| {
            id_text(&id).ok_or_else(|| {
                ApiError::new("invalid_document_ids", format!("In `.ids[{at}]`: {}", invalid_id(&id).message))
            })
        })
        .collect()
}

/// Fields that a GET names; only there a star is all of them.
fn starred(fields: Option<Vec<String>>) -> Option<Vec<String>> {
    fields.filter(|fields| !fields.iter().any(|field| field == "*"))
}

/// Fields that a POST names: a star is a field that no document has.
fn without_star(mut fields: Vec<String>) -> Vec<String> {
    fields.retain(|field| field != "*");
    fields
}

async fn run(server: Arc<Server>, uid: String, fetch: Fetch) -> Reply {
    let answer = aside(move || with_index(&server.engine, &uid, |index| fetch.run(index))).await?;
    ok(answer)
}

/// A document as it is shown, `fields` of it.
fn shown(doc: &Doc, fields: Option<&[String]>, vectors: bool) -> Value {
    let all = fields.is_none();
    let tree = doc.tree();
    let mut shown = if all { tree } else { select(&tree, fields, None) };
    if vectors {
        shown.insert("_vectors".to_owned(), vector::shown(doc));
    } else if let Some(Value::Object(given)) = &doc.vectors {
        let unknown = given.iter().filter(|(name, _)| !doc.embeddings.contains_key(*name));
        let unknown: serde_json::Map<_, _> = unknown.map(|(name, value)| (name.clone(), value.clone())).collect();
        if doc.embeddings.is_empty() && !unknown.is_empty() && all {
            shown.insert("_vectors".to_owned(), Value::Object(unknown));
        }
    }
    Value::Object(shown)
}

fn has_value_or_no_field(doc: &Doc, field: &str, asc: bool) -> bool {
    doc.facts(field).is_none() || rank::sort_value(doc, field, asc) != rank::SortValue::Missing
}

impl Fetch {
    fn run(&self, index: &Index) -> Result<Value> {
        if let Some(filter) = &self.filter {
            filter.check(&index.settings, Wording { code: CODE, index: None, canonical: false })?;
        }
        check_sorts(index, &self.sort, "invalid_document_sort", "")?;
        let mut found: Vec<(DocId, &Doc)> = match &self.ids {
            None => index.docs().collect(),
            Some(ids) => {
                let mut docids: Vec<DocId> = ids.iter().filter_map(|id| index.docid(id)).collect();
                docids.sort_unstable();
                docids.dedup();
                docids.into_iter().filter_map(|docid| Some((docid, index.doc(docid)?))).collect()
            }
        };
        if let Some(filter) = &self.filter {
            found.retain(|(_, doc)| filter.passes(doc));
        }
        let total = found.len();
        if !self.sort.is_empty() {
            // As on a real node: a field that is there without a value (null, an empty array) loses its document.
            found.retain(|(_, doc)| self.sort.iter().all(|(field, asc)| has_value_or_no_field(doc, field, *asc)));
            found.sort_by(|(_, a), (_, b)| {
                let by = |(field, asc): &(String, bool)| {
                    rank::compare_sort(rank::sort_value(a, field, *asc), rank::sort_value(b, field, *asc), *asc)
                };
                self.sort.iter().map(by).fold(std::cmp::Ordering::Equal, std::cmp::Ordering::then)
            });
        }
        let page = found.iter().skip(self.offset).take(self.limit);
        let results: Vec<Value> = page
            .map(|(_, doc)| {
                let mut document = shown(doc, self.fields.as_deref(), self.vectors);
                if self.proxied {
                    document["_federation"] = json!({"weightedScoreValues": weighted_sorts(doc, &self.sort)});
                }
                document
            })
            .collect();
        Ok(json!({"results": results, "offset": self.offset, "limit": self.limit, "total": total}))
    }
}

async fn one(State(server): Shared, Path((uid, id)): Path<(String, String)>, RawQuery(raw): RawQuery) -> Reply {
    let query = Query::read(raw.as_deref(), &["fields", "retrieveVectors"])?;
    let vectors = query.boolean("retrieveVectors", "invalid_document_retrieve_vectors")?.unwrap_or(false);
    let fields = starred(query.list("fields"));
    ok(with_index(&server.engine, &uid, |index| {
        let doc = index.docid(&id).and_then(|docid| index.doc(docid));
        let doc = doc.ok_or_else(|| ApiError::document_not_found(&id))?;
        Ok(shown(doc, fields.as_deref(), vectors))
    })?)
}

/// The one parameter that deletions and editions have.
fn metadata(raw: Option<&str>) -> Result<Option<String>> {
    Ok(Query::read(raw, &["customMetadata"])?.get("customMetadata").map(str::to_owned))
}

fn enqueue_deletion(server: &Server, uid: &str, details: Value, work: Work, metadata: Option<String>) -> Reply {
    accepted(server.engine.enqueue_with(uid, "documentDeletion", object(details), work, metadata)?)
}

fn enqueue_ids(server: &Server, uid: &str, ids: Vec<String>, metadata: Option<String>) -> Reply {
    let details = json!({"providedIds": ids.len(), "deletedDocuments": null, "originalFilter": null});
    enqueue_deletion(server, uid, details, Work::DeleteIds(ids), metadata)
}

async fn delete_one(State(server): Shared, Path((uid, id)): Path<(String, String)>, RawQuery(raw): RawQuery) -> Reply {
    check_uid(&uid, "")?;
    enqueue_ids(&server, &uid, vec![id], metadata(raw.as_deref())?)
}

async fn delete_batch(
    State(server): Shared,
    Path(uid): Path<String>,
    RawQuery(raw): RawQuery,
    headers: HeaderMap,
    body: Bytes,
) -> Reply {
    check_uid(&uid, "")?;
    let metadata = metadata(raw.as_deref())?;
    let body = json_body(&headers, &body)?;
    let Value::Array(ids) = body else {
        let kind = documents::serde_kind(&body);
        let text = format!("Json deserialize error: invalid type: {kind}, expected a sequence at line 1 column 0");
        return Err(ApiError::new("bad_request", text));
    };
    let text = |id: &Value| id.as_str().map_or_else(|| id.to_string(), str::to_owned);
    enqueue_ids(&server, &uid, ids.iter().map(text).collect(), metadata)
}

async fn delete_filtered(
    State(server): Shared,
    Path(uid): Path<String>,
    RawQuery(raw): RawQuery,
    headers: HeaderMap,
    body: Bytes,
) -> Reply {
    check_uid(&uid, "")?;
    let metadata = metadata(raw.as_deref())?;
    let body = json_body(&headers, &body)?;
    let fields = Fields::open(&body, "", "bad_request", &["filter"])?;
    let value = fields.get("filter").ok_or_else(|| fields.missing("filter", "missing_document_filter"))?;
    if filter::parse(value, CODE)?.is_none() {
        return Err(ApiError::new(CODE, "Sending an empty filter is forbidden."));
    }
    let original = value.to_string();
    let details = json!({"providedIds": 0, "deletedDocuments": null, "originalFilter": original});
    enqueue_deletion(&server, &uid, details, Work::DeleteFilter(value.clone()), metadata)
}

async fn edit_filtered(
    State(server): Shared,
    Path(uid): Path<String>,
    RawQuery(raw): RawQuery,
    headers: HeaderMap,
    body: Bytes,
) -> Reply {
    let metadata = metadata(raw.as_deref())?;
    let body = json_body(&headers, &body)?;
    let fields = Fields::open(&body, "", "bad_request", &["filter", "context", "function"])?;
    let code = "invalid_document_edition_function_filter";
    let function = match body.get("function") {
        None => return Err(fields.missing("function", "missing_document_edition_function")),
        Some(Value::String(function)) => function,
        Some(Value::Null) => {
            return Err(ApiError::new(code, "Invalid value type at `.function`: expected a string, but found null"));
        }
        Some(other) => return Err(wrong_type(code, ".function", "a string", other)),
    };
    if server.engine.features().get("editDocumentsByFunction") != Some(&json!(true)) {
        let text = "Using the documents edit route requires enabling the `edit documents by function` experimental feature. See https://github.com/orgs/meilisearch/discussions/762";
        return Err(ApiError::new("feature_not_enabled", text));
    }
    check_uid(&uid, "")?;
    let steps = edit::parse(function)?;
    let filter = fields.get("filter").cloned();
    if let Some(filter) = &filter
        && filter::parse(filter, CODE)?.is_none()
    {
        return Err(ApiError::new(CODE, "Sending an empty filter is forbidden."));
    }
    let context = fields.get("context");
    if context.is_some_and(|context| !context.is_object()) {
        return Err(ApiError::new("invalid_document_edition_context", "The context must be an object"));
    }
    let details = json!({
        "editedDocuments": null, "deletedDocuments": null, "originalFilter": filter.as_ref().map(Value::to_string),
        "context": context, "function": function,
    });
    let work = Work::Edit { filter, steps };
    accepted(server.engine.enqueue_with(&uid, "documentEdition", object(details), work, metadata)?)
}

async fn clear(State(server): Shared, Path(uid): Path<String>, RawQuery(raw): RawQuery) -> Reply {
    check_uid(&uid, "")?;
    let metadata = metadata(raw.as_deref())?;
    enqueue_deletion(&server, &uid, json!({"deletedDocuments": null}), Work::Clear, metadata)
}
