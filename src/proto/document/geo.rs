//! What a node accepts as a place: `_geo` of an index in which it is filterable or sortable.
//!
//! The rule: the same verdict and the same words as a node's. Must not know: settings, other fields.

use serde_json::{Map, Value};

use super::error::{SHOWN_MAX_BYTES, shown};
use super::special::{Flaw, Stage};
use crate::proto::json;
use crate::types::ErrorCode;

/// What is wrong with the `_geo` of the document with this id.
pub(super) fn flaw(id: &str, raw: &[u8]) -> Option<Flaw> {
    // A node takes an id for a JSON value, and shows its quotes.
    let id = Value::from(id);
    let message = match raw.first() {
        Some(b'n') => return None,
        Some(b'{') => in_object(&id, raw)?,
        _ => format!(
            "The `_geo` field in the document with the id: `{id}` is not an object. Was expecting an object with the \
             `_geo.lat` and `_geo.lng` fields but instead got `{}`.",
            shown(raw)
        ),
    };
    Some(Flaw { stage: Stage::Geo, code: ErrorCode::InvalidDocumentGeoField, message })
}

fn in_object(id: &Value, raw: &[u8]) -> Option<String> {
    let (mut lat, mut lng, mut more) = (None, None, false);
    for member in json::members(raw, 0).into_iter().flatten().flatten() {
        if member.is("lat") {
            lat = Some(member.value);
        } else if member.is("lng") {
            lng = Some(member.value);
        } else {
            more = true;
        }
    }
    let (lat, lng) = match (lat, lng) {
        (Some(lat), Some(lng)) => (lat, lng),
        (Some(_), None) => {
            return Some(format!(
                "Could not find longitude in the document with the id: `{id}`. Was expecting a `_geo.lng` field."
            ));
        }
        (None, Some(_)) => {
            return Some(format!(
                "Could not find latitude in the document with the id: `{id}`. Was expecting a `_geo.lat` field."
            ));
        }
        (None, None) => {
            return Some(format!(
                "Could not find latitude nor longitude in the document with the id: `{id}`. Was expecting `_geo.lat` \
                 and `_geo.lng` fields."
            ));
        }
    };
    if more {
        return Some(format!(
            "The `_geo` field in the document with the id: `{id}` contains the following unexpected fields: `{}`.",
            without_place(raw)
        ));
    }
    match (is_finite(lat), is_finite(lng)) {
        (true, true) => None,
        (true, false) => Some(format!(
            "Could not parse longitude in the document with the id: `{id}`. Was expecting a finite number but instead \
             got `{}`.",
            shown(lng)
        )),
        (false, true) => Some(format!(
            "Could not parse latitude in the document with the id: `{id}`. Was expecting a finite number but instead \
             got `{}`.",
            shown(lat)
        )),
        (false, false) => Some(format!(
            "Could not parse latitude nor longitude in the document with the id: `{id}`. Was expecting finite numbers \
             but instead got `{}` and `{}`.",
            shown(lat),
            shown(lng)
        )),
    }
}

/// The members that are neither coordinate, in the order that is left when a node has taken the coordinates out.
fn without_place(raw: &[u8]) -> String {
    let beginning = &raw[..raw.len().min(SHOWN_MAX_BYTES)];
    match serde_json::from_slice::<Map<String, Value>>(beginning) {
        Ok(mut map) => {
            map.swap_remove("lat");
            map.swap_remove("lng");
            Value::Object(map).to_string()
        }
        Err(_) => shown(raw),
    }
}

/// Whether a value is a coordinate: a number, or the text of one.
fn is_finite(raw: &[u8]) -> bool {
    let number = match raw {
        [b'"', ..] => serde_json::from_slice::<String>(raw).ok().and_then(|text| text.parse::<f64>().ok()),
        [b'-' | b'0'..=b'9', ..] => str::from_utf8(raw).ok().and_then(|text| text.parse::<f64>().ok()),
        _ => None,
    };
    number.is_some_and(f64::is_finite)
}
