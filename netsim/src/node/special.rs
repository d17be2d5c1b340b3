//! Fields of documents that a node reads itself: the form of `_vectors`, and places in `_geo`.
//!
//! Rule: what a real node refuses only while it carries a task out is refused here in its words, all documents for one
//! thing after the other. Must not know: the store, search.

use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::error::{ApiError, Result};
use super::settings::Settings;
use super::vector;

/// Checks documents, each with its id, in the order in which they were sent.
pub fn check(settings: &Settings, uid: &str, documents: &[(&String, &Map<String, Value>)]) -> Result<()> {
    for (id, document) in documents {
        if let Some(vectors) = document.get("_vectors") {
            form(uid, id, vectors)?;
        }
    }
    let named = |list: &str| {
        let names = settings.values.get(list).and_then(Value::as_array);
        names.is_some_and(|names| names.iter().any(|name| name == "_geo"))
    };
    if named("filterableAttributes") || named("sortableAttributes") {
        for (id, document) in documents {
            if let Some(why) = document.get("_geo").and_then(|geo| place(&Value::from(id.as_str()), geo)) {
                return Err(ApiError::new("invalid_document_geo_field", format!("Index `{uid}`: {why}")));
            }
        }
    }
    documents.iter().try_for_each(|(id, document)| vector::check(settings, uid, id, document))
}

/// `_vectors` whichever embedders there are.
fn form(uid: &str, id: &str, vectors: &Value) -> Result<()> {
    let Value::Object(map) = vectors else {
        let said = serde_json::from_str::<std::collections::BTreeMap<String, IgnoredAny>>(&vectors.to_string());
        let why = said.err().map(|e| e.to_string()).unwrap_or_default();
        return Err(ApiError::internal(format!("Index `{uid}`: {why}")));
    };
    for (name, value) in map {
        if let Some(why) = wrong_vectors(name, value) {
            let text = format!("Index `{uid}`: Bad embedder configuration in the document with id: `{id}`. {why}");
            return Err(ApiError::new("invalid_vectors_type", text));
        }
    }
    Ok(())
}

/// What the parser is asked for in an object.
#[derive(serde::Deserialize)]
struct Regenerate {
    #[serde(rename = "regenerate")]
    _flag: bool,
}

fn wrong_vectors(name: &str, value: &Value) -> Option<String> {
    let (kind, shown) = match value {
        Value::Null | Value::Array(_) => return None,
        Value::Object(map) => {
            return match map.get("regenerate") {
                Some(Value::Bool(_)) => None,
                Some(_) => {
                    let said = serde_json::from_str::<Regenerate>(&value.to_string());
                    Some(format!("Could not parse `._vectors.{name}.regenerate`: {}", said.err()?))
                }
                None => Some(format!(
                    "Missing field `._vectors.{name}.regenerate`\n  - note: `._vectors.{name}` must be an array of \
                     floats, an array of arrays of floats, or an object with field `regenerate`"
                )),
            };
        }
        Value::Bool(flag) => ("boolean", flag.to_string()),
        Value::String(text) => ("string", text.clone()),
        Value::Number(number) if number.is_f64() => ("number", number.to_string()),
        Value::Number(number) => ("integer", number.to_string()),
    };
    Some(format!(
        "Expected `._vectors.{name}` to be an array of floats, an array of arrays of floats, or an object with at \
         least the field `regenerate`, but got the {kind} `{shown}`"
    ))
}

/// What is wrong with a place.
fn place(id: &Value, geo: &Value) -> Option<String> {
    let map = match geo {
        Value::Null => return None,
        Value::Object(map) => map,
        other => {
            return Some(format!(
                "The `_geo` field in the document with the id: `{id}` is not an object. Was expecting an object with \
                 the `_geo.lat` and `_geo.lng` fields but instead got `{other}`."
            ));
        }
    };
    let document = format!("in the document with the id: `{id}`");
    let (lat, lng) = match (map.get("lat"), map.get("lng")) {
        (Some(lat), Some(lng)) => (lat, lng),
        (Some(_), None) => {
            return Some(format!("Could not find longitude {document}. Was expecting a `_geo.lng` field."));
        }
        (None, Some(_)) => {
            return Some(format!("Could not find latitude {document}. Was expecting a `_geo.lat` field."));
        }
        (None, None) => {
            return Some(format!(
                "Could not find latitude nor longitude {document}. Was expecting `_geo.lat` and `_geo.lng` fields."
            ));
        }
    };
    if map.len() > 2 {
        let mut rest = map.clone();
        for name in ["lat", "lng"] {
            rest.swap_remove(name);
        }
        let rest = Value::Object(rest);
        return Some(format!("The `_geo` field {document} contains the following unexpected fields: `{rest}`."));
    }
    let one = "Was expecting a finite number but instead got";
    match (is_finite(lat), is_finite(lng)) {
        (true, true) => None,
        (true, false) => Some(format!("Could not parse longitude {document}. {one} `{lng}`.")),
        (false, true) => Some(format!("Could not parse latitude {document}. {one} `{lat}`.")),
        (false, false) => Some(format!(
            "Could not parse latitude nor longitude {document}. Was expecting finite numbers but instead got `{lat}` \
             and `{lng}`."
        )),
    }
}

fn is_finite(value: &Value) -> bool {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    number.is_some_and(f64::is_finite)
}
