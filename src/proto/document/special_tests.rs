//! What is refused of the fields that nodes read themselves. The texts are those of `netsim/tests/golden/special.json`,
//! which a real node is asked for; here stands what only the core can show.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::proto::settings::DocumentView;

/// `_geo` and `_geojson` are read, and the embedder `e` takes two numbers, `f` any.
fn all() -> DocumentView {
    let embedders = [("e".to_owned(), Some(2)), ("f".to_owned(), None)].into();
    DocumentView { geo: true, geojson: true, embedders }
}

fn read(format: Format, body: &str) -> Batch {
    Payload::parse(Bytes::copy_from_slice(body.as_bytes()), format).unwrap().batch("id", 64).unwrap()
}

/// Code and text of the refusal.
fn refusal(body: &str, view: &DocumentView, merge: bool) -> Option<(String, String)> {
    let refused = read(Format::Json, body).check("i", view, merge).err()?;
    assert!(matches!(refused, DocumentError::Task { .. }));
    let text = refused.to_string();
    Some((refused.code().as_str().to_owned(), text.strip_prefix("Index `i`: ").expect("the index").to_owned()))
}

fn code(body: &str, view: &DocumentView) -> Option<String> {
    refusal(body, view, false).map(|(code, _)| code)
}

#[test]
fn a_place_is_read_only_where_settings_say_so() {
    for bad in ["1", r#""1,2""#, "[]", "{}", r#"{"lat":1}"#, r#"{"lat":1,"lng":"x"}"#, r#"{"lat":1,"lng":2,"z":3}"#] {
        let body = format!(r#"[{{"id":1}},{{"id":2,"_geo":{bad}}}]"#);
        assert_eq!(code(&body, &all()).as_deref(), Some("invalid_document_geo_field"), "{bad}");
        assert_eq!(code(&body, &DocumentView { geo: false, ..all() }), None, "{bad}");
    }
    for good in
        ["null", r#"{"lat":1,"lng":-2.5e1}"#, r#"{"lng":"180.0","lat":" x","lat":"9"}"#, r#"{"lat":1e300,"lng":0}"#]
    {
        assert_eq!(code(&format!(r#"[{{"id":2,"_geo":{good}}}]"#), &all()), None, "{good}");
    }
    let nested = r#"[{"id":1,"x":{"_geo":1,"_vectors":2},"y":"_geo","_geoloc":3,"_vectors2":4}]"#;
    assert_eq!(code(nested, &all()), None);
}

#[test]
fn names_count_however_they_are_spelled_and_the_last_value_counts() {
    for (body, wanted) in [
        (r#"[{"id":1,"_g\u0065o":5}]"#, Some("invalid_document_geo_field")),
        (r#"[{"id":1,"\u005fvectors":5}]"#, Some("internal")),
        (r#"[{"id":1,"_geo":5,"_geo":null}]"#, None),
        (r#"[{"id":1,"_geo":null,"_geo":5}]"#, Some("invalid_document_geo_field")),
        (r#"[{"id":1,"_vectors":{"e":5,"x":1,"e":null,"x":null}}]"#, None),
        (r#"[{"id":1,"_vectors":{"e":null,"\u0065":[1]}}]"#, Some("invalid_vector_dimensions")),
    ] {
        assert_eq!(code(body, &all()).as_deref(), wanted, "{body}");
    }
}

#[test]
fn the_flaw_that_a_node_comes_to_first_is_told() {
    let form = r#"{"id":1,"_vectors":{"e":5}}"#;
    let geo = r#"{"id":2,"_geo":5}"#;
    let length = r#"{"id":3,"_vectors":{"e":[1]}}"#;
    let shape = r#"{"id":4,"_geojson":5}"#;
    let codes = |list: &[&str]| code(&format!("[{}]", list.join(",")), &all()).unwrap();
    assert_eq!(codes(&[shape, length, geo, form]), "invalid_vectors_type");
    assert_eq!(codes(&[shape, length, geo]), "invalid_document_geo_field");
    assert_eq!(codes(&[shape, length]), "invalid_vector_dimensions");
    let (_, text) = refusal(&format!("[{geo},{}]", geo.replace('2', "9")), &all(), false).unwrap();
    assert!(text.contains(r#"the id: `"2"`"#), "{text}");
    let both = r#"[{"id":1,"_geo":5,"_vectors":{"f":["x"]}}]"#;
    assert_eq!(code(both, &all()).as_deref(), Some("invalid_document_geo_field"));
}

#[test]
fn a_document_that_is_replaced_is_neither_read_nor_sent() {
    let body = r#"[{"id":1,"_geo":5},{"id":2},{"id":"1","_geo":null},{"id":3,"n":1},{"id":3,"n":2}]"#;
    let mut batch = read(Format::Json, body);
    batch.check("i", &all(), false).unwrap();
    assert_eq!((batch.received(), batch.distinct_ids()), (5, 3));
    let ids: Vec<_> = batch.documents().map(|d| (d.id.to_owned(), d.text.contains(&b'5'))).collect();
    assert_eq!(ids, [("2", false), ("1", false), ("3", false), ("3", false)].map(|(id, bad)| (id.to_owned(), bad)));
    // What is merged counts, each for itself.
    assert!(refusal(body, &all(), true).is_some());
    let last = r#"[{"id":1,"_geo":null},{"id":2},{"id":1,"_geo":5}]"#;
    assert!(refusal(last, &all(), false).is_some());
}

#[test]
fn shapes_are_read_as_far_as_their_form_goes() {
    let point = json!({"type": "Point", "coordinates": [1, 2]});
    let unknown = "Encountered an unknown 'geometry' object type: `type`";
    for (bad, text) in [
        (json!(null), "Expected an owned Object, but got `null`"),
        (json!("x"), r#"Expected an owned Object, but got `"x"`"#),
        (json!({}), unknown),
        (json!({"type": 5}), unknown),
        (json!({"type": "Circle"}), "Expected a Feature, FeatureCollection, or Geometry, but got an empty type"),
        (json!({"type": "Point"}), "Expected a GeoJSON property for `coordinates`, but got None"),
        (json!({"type": "Point", "coordinates": "x"}), "Expected an Array value, but got `None`"),
        (json!({"type": "Point", "coordinates": [1]}), "A position must contain two or more elements, but got `1`"),
        (json!({"type": "Point", "coordinates": [1, "2"]}), "Expected a floating-point value, but got None"),
        (json!({"type": "Polygon", "coordinates": [[1, 2]]}), "Expected an Array value, but got `None`"),
        (
            json!({"type": "MultiPolygon", "coordinates": [[[[1, 2], []]]]}),
            "A position must contain two or more elements, but got `0`",
        ),
        (
            json!({"type": "Point", "coordinates": [1], "bbox": 7}),
            "Encountered non-array value for a 'bbox' object: `7`",
        ),
        (
            json!({"type": "Point", "coordinates": [1], "bbox": [1, null]}),
            "Encountered non-numeric value within 'bbox' array",
        ),
        (json!({"type": "GeometryCollection", "geometries": null}), "Expected an Array value, but got `Null`"),
        (
            json!({"type": "GeometryCollection", "geometries": [point, {"type": "Feature"}]}),
            "Encountered an unknown 'geometry' object type: `Feature`",
        ),
        (
            json!({"type": "GeometryCollection", "geometries": [point, {"type": 1}]}),
            "Expected a String value, but got a `1`",
        ),
        (json!({"type": "Feature"}), "Expected a GeoJSON property for `geometry`, but got None"),
        (
            json!({"type": "Feature", "geometry": 1}),
            "Encountered neither object type nor null type for 'geometry' field on 'feature' object: `1`",
        ),
        (
            json!({"type": "Feature", "geometry": point, "properties": []}),
            "Encountered neither object type nor null type for 'properties' object: `[]`",
        ),
        (
            json!({"type": "Feature", "geometry": point, "id": null}),
            "Encountered neither number type nor string type for 'id' field on 'feature' object: `null`",
        ),
        (
            json!({"a": 1, "type": "Feature", "id": 3, "geometry": null, "bbox": [1, 2.5], "b": 2}),
            "Attempted to a convert a feature without a geometry into a geo_types::Geometry: \
             `{\"type\":\"Feature\",\"geometry\":null,\"properties\":null,\"bbox\":[1.0,2.5],\
             \"id\":3,\"a\":1,\"b\":2}`",
        ),
        (json!({"type": "FeatureCollection", "features": [point]}), "Expected a Feature mapping, but got a `Point`"),
        (json!({"type": "FeatureCollection"}), "Expected a GeoJSON property for `features`, but got None"),
    ] {
        let body = json!([{"id": 1, "_geojson": bad}]).to_string();
        let expected = ("invalid_document_geo_field".to_owned(), text.to_owned());
        assert_eq!(refusal(&body, &all(), false), Some(expected), "{bad}");
        assert_eq!(refusal(&body, &DocumentView { geojson: false, ..all() }, false), None);
    }
    for good in [
        point.clone(),
        json!({"type": "LineString", "coordinates": [[1, 2], [3, 4, 5]], "bbox": null}),
        json!({"type": "Polygon", "coordinates": [[[1, 2], [3, 4], [5, 6], [1, 2]]], "x": {}}),
        json!({"type": "GeometryCollection", "geometries": [point, {"type": "MultiPoint", "coordinates": []}]}),
        json!({"type": "Feature", "geometry": point, "properties": null, "id": "a", "bbox": [1, 2]}),
        json!({"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": null}]}),
    ] {
        assert_eq!(code(&json!([{"id": 1, "_geojson": good}]).to_string(), &all()), None, "{good}");
    }
}

#[test]
fn positions_are_those_of_the_text_that_a_node_gets() {
    let spaced = r#"{"id":1, "_vectors":{"e": {"regenerate" : 1}}}"#;
    let text = |body: &str| refusal(body, &all(), false).unwrap().1;
    assert!(text(&format!("[{spaced}]")).ends_with("integer `1`, expected a boolean at line 1 column 17"));
    // An object alone is spelled anew.
    assert!(text(spaced).ends_with("integer `1`, expected a boolean at line 1 column 15"));
}

#[test]
fn what_the_parser_stumbles_over_is_told_in_its_words() {
    for (value, text) in [
        (r#"{"x":1}"#, "Could not parse `._vectors.e`: trailing characters at line 1 column 5"),
        (r#"{"regenerate":[]}"#, "Could not parse `._vectors.e`: trailing characters at line 1 column 15"),
        (
            r#"{"regenerate":true,"embedding":[]}"#,
            "Could not parse `._vectors.e`: trailing characters at line 1 column 31",
        ),
    ] {
        let body = format!(r#"[{{"id":1,"_vectors":{{"e":{value}}}}}]"#);
        let (code, found) = refusal(&body, &all(), false).unwrap();
        assert_eq!(code, "invalid_vectors_type");
        assert_eq!(found, format!("Bad embedder configuration in the document with id: `1`. {text}"));
    }
}

#[test]
fn an_object_among_numbers_is_refused_although_it_makes_a_node_crash() {
    for (value, place, expected, shown) in [
        ("[1,{\"a\":1}]", "e[1]", "a number", r#"an object: `{"a":1}`"#),
        ("[1,[{}]]", "e[1]", "a number", "an array: `[{}]`"),
        (r#"{"regenerate":false,"embeddings":{}}"#, "e.embeddings", "null or an array", "an object: `{}`"),
    ] {
        let body = format!(r#"[{{"id":1,"_vectors":{{"e":{value}}}}}]"#);
        let text = format!("Invalid value type at `._vectors.{place}`: expected {expected}, but found {shown}");
        let (code, found) = refusal(&body, &all(), false).unwrap();
        assert_eq!((&*code, found.ends_with(&text)), ("invalid_vectors_type", true), "{found}");
    }
}

#[test]
fn a_large_value_is_cut_and_many_flaws_are_not_kept() {
    let long = "x".repeat(1 << 20);
    for value in [
        format!("\"{long}\""),
        format!("{{\"e\":\"{long}\"}}"),
        format!("{{\"e\":[\"{long}\"]}}"),
        format!("{{\"e\":{{\"{long}\":1}}}}"),
        format!("{{\"e\":{{\"regenerate\":\"{long}\"}}}}"),
        format!("{{\"e\":{{\"regenerate\":true,\"embeddings\":\"{long}\"}}}}"),
    ] {
        let (_, text) = refusal(&format!(r#"[{{"id":1,"_vectors":{value}}}]"#), &all(), false).unwrap();
        assert!(text.len() < 40_000, "{}", text.len());
    }
    for value in [format!(r#"{{"lat":"{long}","lng":1}}"#), format!(r#"{{"lat":1,"lng":1,"x":"{long}"}}"#)] {
        let (_, text) = refusal(&format!(r#"[{{"id":1,"_geo":{value}}}]"#), &all(), false).unwrap();
        assert!(text.len() < 40_000);
    }
    let numbers = format!("[{}1,2]", "[1,2],".repeat(100_000));
    let fine = format!(r#"[{{"id":1,"_vectors":{{"f":{{"embeddings":{numbers},"regenerate":false}}}}}}]"#);
    let end = "`._vectors.f.embeddings[100000]`: expected an array, but found a positive integer: `1`";
    assert!(refusal(&fine, &all(), false).unwrap().1.ends_with(end));
    let many: String = (0..2_000).map(|n| format!("\"n{n}\":1,")).collect();
    let body = format!(r#"[{{"id":1,"_vectors":{{{many}"last":null}}}}]"#);
    let (_, text) = refusal(&body, &all(), false).unwrap();
    assert!(text.contains("`._vectors.n0`"), "{text}");
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3_i64..3).prop_map(Value::from),
        "[a-z0-9.]{0,3}".prop_map(Value::from),
    ];
    let name = prop_oneof![
        Just("lat"),
        Just("lng"),
        Just("e"),
        Just("f"),
        Just("regenerate"),
        Just("embeddings"),
        Just("type"),
        Just("coordinates"),
        Just("geometry"),
    ];
    leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((name.clone().prop_map(str::to_owned), inner), 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn whatever_the_values_are_a_verdict_is_found(geo in any_value(), vectors in any_value(), shape in any_value()) {
        let body = json!([{"id": 1, "_geo": geo, "_vectors": vectors, "_geojson": shape}]).to_string();
        let judged = refusal(&body, &all(), false);
        // With good numbers there is a place, whatever else is in the document.
        let place = geo.is_null() || geo.as_object().is_some_and(|map| {
            let parsed = |value: &Value| value.as_f64().or_else(|| value.as_str()?.parse().ok());
            let number = |value: &Value| parsed(value).is_some_and(f64::is_finite);
            map.len() == 2 && ["lat", "lng"].iter().all(|name| map.get(*name).is_some_and(number))
        });
        let only = json!([{"id": 1, "_geo": geo}]).to_string();
        prop_assert_eq!(refusal(&only, &all(), false).is_none(), place);
        prop_assert!(judged.is_some() || place);
    }
}
