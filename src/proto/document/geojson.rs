//! What a node accepts as a shape: `_geojson` of an index in which it is filterable.
//!
//! The rule: the same verdict and the same words as a node's, as far as the form goes; whether a node can index a shape
//! of valid form (rings that are closed, coordinates on the globe) it alone knows. Must not know: settings, other
//! fields.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::error::{SHOWN_MAX_BYTES, cut, shown};
use super::special::{Flaw, Stage};
use crate::proto::json;
use crate::types::ErrorCode;

/// What is wrong with a `_geojson`.
pub(super) fn flaw(raw: &[u8]) -> Option<Flaw> {
    let message = check(raw).err()?;
    Some(Flaw { stage: Stage::GeoJson, code: ErrorCode::InvalidDocumentGeoField, message })
}

/// The members of an object that mean something; of repeated names the last counts.
#[derive(Default)]
struct Object<'a> {
    kind: Option<&'a [u8]>,
    bbox: Option<&'a [u8]>,
    coordinates: Option<&'a [u8]>,
    geometries: Option<&'a [u8]>,
    geometry: Option<&'a [u8]>,
    properties: Option<&'a [u8]>,
    features: Option<&'a [u8]>,
    id: Option<&'a [u8]>,
}

impl<'a> Object<'a> {
    fn of(raw: &'a [u8]) -> Result<Self, String> {
        let Ok(members) = json::members(raw, 0) else {
            return Err(format!("Expected an owned Object, but got `{}`", shown(raw)));
        };
        let mut object = Self::default();
        for member in members.flatten() {
            let Some(name) = name(member.raw_key, &member) else { continue };
            let place = match &*name {
                "type" => &mut object.kind,
                "bbox" => &mut object.bbox,
                "coordinates" => &mut object.coordinates,
                "geometries" => &mut object.geometries,
                "geometry" => &mut object.geometry,
                "properties" => &mut object.properties,
                "features" => &mut object.features,
                "id" => &mut object.id,
                _ => continue,
            };
            *place = Some(member.value);
        }
        Ok(object)
    }

    /// The text of `type`.
    fn type_name(&self) -> Result<String, String> {
        let raw = property(self.kind, "type")?;
        text(raw).ok_or_else(|| format!("Expected a String value, but got a `{}`", shown(raw)))
    }

    fn check_bbox(&self) -> Result<(), String> {
        let Some(raw) = self.bbox.filter(|raw| !is_null(raw)) else { return Ok(()) };
        let Ok(mut numbers) = json::elements(raw, 0) else {
            return Err(format!("Encountered non-array value for a 'bbox' object: `{}`", shown(raw)));
        };
        match numbers.all(|item| item.is_ok_and(|(_, number)| is_number(number))) {
            true => Ok(()),
            false => Err("Encountered non-numeric value within 'bbox' array".to_owned()),
        }
    }

    fn geometry(&self) -> Result<(), String> {
        self.check_bbox()?;
        let kind = self.type_name()?;
        let levels = match &*kind {
            "Point" => 0,
            "MultiPoint" | "LineString" => 1,
            "MultiLineString" | "Polygon" => 2,
            "MultiPolygon" => 3,
            "GeometryCollection" => {
                let list = property(self.geometries, "geometries")?;
                return each(list, |item| Object::of(item)?.geometry());
            }
            _ => return Err(unknown(&kind)),
        };
        positions(property(self.coordinates, "coordinates")?, levels)
    }

    fn feature(&self) -> Result<(), String> {
        let kind = self.type_name()?;
        if kind != "Feature" {
            return Err(format!("Expected a Feature mapping, but got a `{}`", cut(&kind)));
        }
        match property(self.geometry, "geometry")? {
            object @ [b'{', ..] => Object::of(object)?.geometry()?,
            null if is_null(null) => {}
            other => {
                return Err(format!(
                    "Encountered neither object type nor null type for 'geometry' field on 'feature' object: `{}`",
                    shown(other)
                ));
            }
        }
        if let Some(other) = self.properties.filter(|raw| !matches!(raw.first(), Some(b'{' | b'n'))) {
            return Err(format!(
                "Encountered neither object type nor null type for 'properties' object: `{}`",
                shown(other)
            ));
        }
        if let Some(other) = self.id.filter(|raw| !is_number(raw) && raw.first() != Some(&b'"')) {
            return Err(format!(
                "Encountered neither number type nor string type for 'id' field on 'feature' object: `{}`",
                shown(other)
            ));
        }
        self.check_bbox()
    }
}

fn check(raw: &[u8]) -> Result<(), String> {
    let object = Object::of(raw)?;
    let Some(kind) = object.kind.and_then(text) else { return Err(unknown("type")) };
    match &*kind {
        "Feature" => {
            object.feature()?;
            match object.geometry {
                Some(null) if is_null(null) => Err(format!(
                    "Attempted to a convert a feature without a geometry into a geo_types::Geometry: `{}`",
                    without_geometry(raw)
                )),
                _ => Ok(()),
            }
        }
        "FeatureCollection" => {
            object.check_bbox()?;
            each(property(object.features, "features")?, |item| Object::of(item)?.feature())
        }
        "Point" | "MultiPoint" | "LineString" | "MultiLineString" | "Polygon" | "MultiPolygon"
        | "GeometryCollection" => object.geometry(),
        _ => Err("Expected a Feature, FeatureCollection, or Geometry, but got an empty type".to_owned()),
    }
}

/// A feature without a geometry as a node prints it.
fn without_geometry(raw: &[u8]) -> String {
    let Ok(mut rest) = serde_json::from_slice::<Map<String, Value>>(&raw[..raw.len().min(SHOWN_MAX_BYTES)]) else {
        return shown(raw);
    };
    // Taken out in the parser's order, which decides the order of what is left.
    let mut take = |name| rest.swap_remove(name).filter(|value| !value.is_null());
    let (kind, _) = (take("type"), take("geometry"));
    let (properties, id, bbox) = (take("properties"), take("id"), take("bbox"));
    let numbers = |list: Vec<Value>| Value::from(list.iter().filter_map(Value::as_f64).collect::<Vec<_>>());
    let bbox = bbox.map(|bbox| if let Value::Array(list) = bbox { numbers(list) } else { bbox });
    let mut shown = Map::new();
    shown.extend(kind.map(|kind| ("type".to_owned(), kind)));
    shown.insert("geometry".to_owned(), Value::Null);
    shown.insert("properties".to_owned(), properties.unwrap_or_default());
    shown.extend(bbox.map(|bbox| ("bbox".to_owned(), bbox)));
    shown.extend(id.map(|id| ("id".to_owned(), id)));
    shown.extend(rest);
    Value::Object(shown).to_string()
}

/// Positions nested in so many lists.
fn positions(raw: &[u8], levels: usize) -> Result<(), String> {
    let Ok(items) = json::elements(raw, 0) else {
        return Err("Expected an Array value, but got `None`".to_owned());
    };
    let mut items = items.flatten();
    if levels > 0 {
        return items.try_for_each(|(_, item)| positions(item, levels - 1));
    }
    let (mut count, mut numbers) = (0, true);
    for (_, item) in items {
        count += 1;
        numbers &= is_number(item);
    }
    match (count, numbers) {
        (0 | 1, _) => Err(format!("A position must contain two or more elements, but got `{count}`")),
        (_, false) => Err("Expected a floating-point value, but got None".to_owned()),
        (_, true) => Ok(()),
    }
}

/// Checks each item of a list.
fn each(raw: &[u8], check: impl Fn(&[u8]) -> Result<(), String>) -> Result<(), String> {
    let Ok(items) = json::elements(raw, 0) else {
        let kind = match raw.first() {
            Some(b'n') => "Null",
            Some(b't' | b'f') => "Bool",
            Some(b'"') => "String",
            Some(b'{') => "Object",
            _ => "Number",
        };
        return Err(format!("Expected an Array value, but got `{kind}`"));
    };
    items.flatten().try_for_each(|(_, item)| check(item))
}

fn property<'a>(raw: Option<&'a [u8]>, name: &str) -> Result<&'a [u8], String> {
    raw.ok_or_else(|| format!("Expected a GeoJSON property for `{name}`, but got None"))
}

fn unknown(kind: &str) -> String {
    format!("Encountered an unknown 'geometry' object type: `{}`", cut(kind))
}

fn name<'a>(raw_key: &'a [u8], member: &json::Member<'_>) -> Option<Cow<'a, str>> {
    if raw_key.contains(&b'\\') {
        return member.key().map(Cow::Owned);
    }
    str::from_utf8(raw_key).ok().map(Cow::Borrowed)
}

fn text(raw: &[u8]) -> Option<String> {
    serde_json::from_slice(raw).ok()
}

fn is_null(raw: &[u8]) -> bool {
    raw.first() == Some(&b'n')
}

fn is_number(raw: &[u8]) -> bool {
    matches!(raw.first(), Some(b'-' | b'0'..=b'9'))
}
