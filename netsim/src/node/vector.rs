//! Embeddings that documents bring along (`userProvided`), and their similarity.
//!
//! Rule: similarity is exact, by comparing with every document: an approximation would hide errors of a merge. Must not
//! know: HTTP, ranking rules.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::error::{ApiError, Result};
use super::index::Doc;
use super::settings::Settings;

fn vector(value: &Value) -> Option<Vec<f32>> {
    value.as_array()?.iter().map(|number| number.as_f64().map(|number| number as f32)).collect()
}

/// One vector, or a list of them.
fn vectors(value: &Value) -> Option<Vec<Vec<f32>>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::Array(items) if items.is_empty() => Some(Vec::new()),
        Value::Array(items) if items[0].is_array() => items.iter().map(vector).collect(),
        Value::Array(_) => Some(vec![vector(value)?]),
        Value::Object(map) => vectors(map.get("embeddings")?),
        _ => None,
    }
}

/// The embeddings in the value of `_vectors`, for the embedders that the index has.
pub fn embeddings(settings: &Settings, given: Option<&Value>) -> BTreeMap<String, Vec<Vec<f32>>> {
    let Some(Value::Object(given)) = given else { return BTreeMap::new() };
    let known = given.iter().filter(|(name, _)| settings.embedders.contains_key(*name));
    known.filter_map(|(name, value)| Some((name.clone(), vectors(value)?))).collect()
}

/// Checks that a document brings what each embedder of the index needs.
pub fn check(settings: &Settings, uid: &str, id: &str, tree: &Map<String, Value>) -> Result<()> {
    for (name, dimensions) in &settings.embedders {
        let Some(given) = tree.get("_vectors").and_then(|given| given.get(name)) else {
            let text = format!(
                "Index `{uid}`: While embedding documents for embedder `{name}`: no vectors provided for document `{id}`\n\
                 - Note: `{name}` has `source: userProvided`, so documents must provide embeddings as an array in \
                 `_vectors.{name}`.\n- Hint: opt-out for a document with `_vectors.{name}: null`"
            );
            return Err(ApiError::new("vector_embedding_error", text));
        };
        let Some(found) = vectors(given) else {
            let text = format!(
                "Index `{uid}`: Bad embedder configuration in the document with id: `{id}`. Invalid value type at `._vectors.{name}`"
            );
            return Err(ApiError::new("invalid_vectors_type", text));
        };
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
