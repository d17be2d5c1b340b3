//! Embeddings that documents bring along (`userProvided`), and their similarity.
//!
//! Rule: similarity is exact, by comparing with every document: an approximation would hide errors of a merge. Must not
//! know: HTTP, ranking rules.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::error::{ApiError, Result as Checked};
use super::index::Doc;
use super::settings::Settings;

/// A refusal of the value at a place.
fn wrong(place: &str, expected: &str, value: &Value) -> String {
    let kind = match value {
        Value::Null => return format!("Invalid value type at `{place}`: expected {expected}, but found null"),
        Value::Bool(_) => "a boolean",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
        Value::Number(number) if number.is_u64() => "a positive integer",
        Value::Number(number) if number.is_i64() => "a negative integer",
        Value::Number(_) => "a number",
    };
    format!("Invalid value type at `{place}`: expected {expected}, but found {kind}: `{value}`")
}

fn vector(place: &str, value: &Value) -> Result<Vec<f32>, String> {
    let items = value.as_array().ok_or_else(|| wrong(place, "an array", value))?;
    let number = |(at, item): (usize, &Value)| {
        let number = item.as_f64().map(|number| number as f32);
        number.ok_or_else(|| wrong(&format!("{place}[{at}]"), "a number", item))
    };
    items.iter().enumerate().map(number).collect()
}

/// One vector, or a list of them; else what is wrong.
fn vectors(place: &str, value: &Value) -> Result<Vec<Vec<f32>>, String> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(items) => match items.first() {
            None => Ok(Vec::new()),
            Some(Value::Array(_)) => {
                items.iter().enumerate().map(|(at, item)| vector(&format!("{place}[{at}]"), item)).collect()
            }
            Some(Value::Number(_)) => Ok(vec![vector(place, value)?]),
            Some(other) => Err(wrong(&format!("{place}[0]"), "a number or an array", other)),
        },
        other => Err(wrong(place, "null or an array", other)),
    }
}

/// The vectors of one embedder in a document.
fn of_embedder(name: &str, value: &Value) -> Result<Vec<Vec<f32>>, String> {
    match value {
        Value::Object(map) => {
            vectors(&format!("._vectors.{name}.embeddings"), map.get("embeddings").unwrap_or(&Value::Null))
        }
        value => vectors(&format!("._vectors.{name}"), value),
    }
}

/// The embeddings in the value of `_vectors`, for the embedders that the index has.
pub fn embeddings(settings: &Settings, given: Option<&Value>) -> BTreeMap<String, Vec<Vec<f32>>> {
    let Some(Value::Object(given)) = given else { return BTreeMap::new() };
    let known = given.iter().filter(|(name, _)| settings.embedders.contains_key(*name));
    known.filter_map(|(name, value)| Some((name.clone(), of_embedder(name, value).ok()?))).collect()
}

/// Checks that a document brings what each embedder of the index needs.
pub fn check(settings: &Settings, uid: &str, id: &str, tree: &Map<String, Value>) -> Checked<()> {
    for (name, dimensions) in &settings.embedders {
        let Some(given) = tree.get("_vectors").and_then(|given| given.get(name)) else {
            let text = format!(
                "Index `{uid}`: While embedding documents for embedder `{name}`: no vectors provided for document `{id}`\n\
                 - Note: `{name}` has `source: userProvided`, so documents must provide embeddings as an array in \
                 `_vectors.{name}`.\n- Hint: opt-out for a document with `_vectors.{name}: null`"
            );
            return Err(ApiError::new("vector_embedding_error", text));
        };
        let found = of_embedder(name, given).map_err(|why| {
            let text = format!("Index `{uid}`: Bad embedder configuration in the document with id: `{id}`. {why}");
            ApiError::new("invalid_vectors_type", text)
        })?;
        let wanted = dimensions.unwrap_or(0);
        if let Some((at, bad)) = found.iter().enumerate().find(|(_, vector)| vector.len() != wanted) {
            let text = format!(
                "Index `{uid}`: Invalid vector dimensions in document with id `{id}` in `._vectors.{name}`.\n  \
                 - note: embedding #{at} has dimensions {}\n  - note: embedder `{name}` requires {wanted}",
                bad.len()
            );
            return Err(ApiError::new("invalid_vector_dimensions", text));
        }
    }
    Ok(())
}

/// How similar the nearest vector of the document is, from 0 to 1; `None` if it has none.
pub fn similarity(doc: &Doc, embedder: &str, wanted: &[f32]) -> Option<f32> {
    let all = doc.embeddings.get(embedder)?;
    all.iter().map(|vector| (1.0 + cosine(vector, wanted)) / 2.0).max_by(f32::total_cmp)
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
    let length = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
    let lengths = length(a) * length(b);
    if lengths == 0.0 { 0.0 } else { dot / lengths }
}

/// The value of `_vectors` as answers show it when vectors are asked for.
pub fn shown(doc: &Doc) -> Value {
    let mut shown = Map::new();
    if let Some(Value::Object(given)) = &doc.vectors {
        shown.extend(given.clone());
    }
    for (name, vectors) in &doc.embeddings {
        let regenerate = doc.vectors.as_ref().and_then(|given| given.get(name)?.get("regenerate")?.as_bool());
        shown.insert(name.clone(), json!({"embeddings": vectors, "regenerate": regenerate.unwrap_or(false)}));
    }
    Value::Object(shown)
}
