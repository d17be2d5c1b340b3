//! The answers of a real node (Meilisearch v1.50.0), recorded, against ours; and properties of splitting and stripping.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::*;
use crate::proto::placement::shard_of;
use crate::types::{ErrorCode, SHARD_FIELD, ShardId};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    format: String,
    body: String,
    primary_key: Option<String>,
    received: Option<usize>,
    indexed: Option<usize>,
    key: Option<String>,
    documents: Option<Vec<Value>>,
    task: Option<String>,
    sync: Option<String>,
    message: Option<String>,
}

/// What a node fails with `internal` (a value that it can't parse, data that are no objects) is malformed to us.
fn ours(case: &Case) -> (Option<&str>, Option<&str>) {
    match (case.sync.as_deref(), case.task.as_deref()) {
        (Some("internal"), _) | (_, Some("internal")) => (Some("malformed_payload"), None),
        other => other,
    }
}

fn read(format: Format, body: &[u8], key: Option<&str>, shards: u16) -> Result<Option<Batch>, DocumentError> {
    let payload = Payload::parse(Bytes::copy_from_slice(body), format)?;
    let Some(key) = payload.primary_key(None, key)? else { return Ok(None) };
    payload.batch(&key, shards).map(Some)
}

fn format_of(name: &str) -> Format {
    match name {
        "json" => Format::Json,
        "ndjson" => Format::Ndjson,
        _ => Format::Csv { delimiter: b',' },
    }
}

/// What a node would hold after it got these lines: by id, the last of each; without the letter.
fn stored(body: &[u8], batch: &Batch) -> Vec<Value> {
    let mut order = Vec::new();
    let mut by_id = BTreeMap::new();
    for (line, document) in body.split(|b| *b == b'\n').zip(batch.documents()) {
        let mut value: Map<String, Value> = serde_json::from_slice(line).unwrap();
        let letter = value.shift_remove(SHARD_FIELD).unwrap();
        assert_eq!(letter, json!(document.shard.letter().to_string()));
        if by_id.insert(document.id.to_owned(), Value::Object(value)).is_none() {
            order.push(document.id.to_owned());
        }
    }
    order.into_iter().map(|id| by_id[&id].clone()).collect()
}

#[test]
fn answers_are_those_of_a_real_node() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("golden.json")).unwrap();
    assert!(cases.len() > 150);
    let mut wrong = Vec::new();
    for case in &cases {
        let result = read(format_of(&case.format), case.body.as_bytes(), case.primary_key.as_deref(), 64);
        let mut fail = |what: String| wrong.push(format!("{} {:?}: {what}", case.format, case.body));
        match (&result, ours(case)) {
            (Err(DocumentError::Sync { code, message }), (Some(expected), _))
            | (Err(DocumentError::Task { code, message }), (_, Some(expected))) => {
                if code.as_str() != expected {
                    fail(format!("{code:?} instead of {expected}"));
                }
                let internal = [&case.sync, &case.task].iter().any(|c| c.as_deref() == Some("internal"));
                if !internal && Some(message) != case.message.as_ref() {
                    fail(format!("\n  ours   {message}\n  theirs {:?}", case.message));
                }
            }
            (Ok(batch), (None, None)) => {
                let Some(batch) = batch else {
                    assert_eq!((case.received, case.key.as_ref()), (Some(0), None));
                    continue;
                };
                let all = [0];
                let body = batch.split(1, |_| &all).remove(0).body;
                let ours = (batch.received(), batch.distinct_ids(), Some(batch.primary_key()));
                let theirs = (case.received.unwrap(), case.indexed.unwrap(), case.key.as_deref());
                if ours != theirs {
                    fail(format!("{ours:?} instead of {theirs:?}"));
                }
                let held = stored(&body, batch);
                // The node prints a number too large for an integer as a double.
                let same = held.len() == case.documents.as_ref().unwrap().len()
                    && held.iter().zip(case.documents.as_ref().unwrap()).all(|(a, b)| a == b);
                if !same {
                    fail(format!("{held:?} instead of {:?}", case.documents));
                }
            }
            (result, expected) => {
                fail(format!("{:?} instead of {expected:?} {:?}", result.as_ref().err(), case.message))
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn bytes_that_are_no_text_are_refused_in_every_format() {
    let code = |format, body: &[u8]| read(format, body, None, 8).unwrap_err();
    let json = code(Format::Json, b"[{\"id\":1,\"b\":\"\xff\"}]").to_string();
    assert!(json.contains("`Couldn't serialize document value: invalid unicode code point at line 1"), "{json}");
    code(Format::Ndjson, b"{\"id\":1,\"b\":\"\xff\"}");
    let csv = code(Format::Csv { delimiter: b',' }, b"id,a\n1,\xff\n");
    assert_eq!(
        csv.to_string(),
        "The `csv` payload provided is malformed: `CSV parse error: record 1 (line 2, field: 1, byte: 5): invalid \
         utf-8: invalid UTF-8 in field 1 near byte index 0`."
    );
}

#[test]
fn the_reserved_field_is_refused_however_it_is_spelled() {
    for (format, body) in [
        (Format::Json, r#"[{"id":1},{"id":2,"_miroir_shard":"x"}]"#),
        (Format::Json, r#"{"\u005fmiroir_shard":1,"id":2}"#),
        (Format::Ndjson, r#"{"id":2,"_miroir\u005Fshard":null}"#),
        (Format::Csv { delimiter: b',' }, "id,_miroir_shard\n1,2"),
        (Format::Csv { delimiter: b',' }, "id,_miroir_shard:number\n"),
    ] {
        let error = read(format, body.as_bytes(), None, 8).unwrap_err();
        assert!(matches!(error, DocumentError::Sync { code: ErrorCode::MiroirReservedField, .. }), "{body}: {error}");
    }
    for fine in
        [r#"{"id":1,"x":{"_miroir_shard":1}}"#, r#"{"id":1,"x":"_miroir_shard"}"#, r#"{"id":1,"_miroir_shards":1}"#]
    {
        assert!(read(Format::Json, fine.as_bytes(), None, 8).is_ok(), "{fine}");
    }
}

#[test]
fn nesting_beyond_the_bound_is_malformed() {
    let nested = |n: usize| format!("[{{\"id\":1,\n\"b\":{}{}}}]", "[".repeat(n), "]".repeat(n));
    assert!(read(Format::Json, nested(DOCUMENT_DEPTH_MAX - 1).as_bytes(), None, 8).is_ok());
    let error = read(Format::Json, nested(DOCUMENT_DEPTH_MAX).as_bytes(), None, 8).unwrap_err();
    assert_eq!(error.code(), ErrorCode::MalformedPayload);
    assert!(error.to_string().contains("line 2 column 124"), "{error}");
    assert!(read(Format::Json, nested(1_000_000).as_bytes(), None, 8).is_err());
    assert!(read(Format::Ndjson, nested(1_000_000).as_bytes(), None, 8).is_err());
}

#[test]
fn csv_that_grows_without_bound_is_refused() {
    let name = "n".repeat(1 << 20);
    let body = format!("id,{name}\n{}", "1,2\n".repeat(10_000));
    let error =
        csv::to_json(body.as_bytes(), b',', 64 << 20, &mut |_| Ok::<(), DocumentError>(())).map(|_| ()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::PayloadTooLarge);
}

#[test]
fn the_request_key_yields_to_the_index_but_never_to_another() {
    let payload = |body: &str| Payload::parse(Bytes::copy_from_slice(body.as_bytes()), Format::Json).unwrap();
    let one = payload(r#"[{"id":1}]"#);
    let error = one.primary_key(Some("id"), Some("foo")).unwrap_err();
    assert_eq!(error.to_string(), "Index already has a primary key: `id`.");
    assert!(matches!(error, DocumentError::Task { code: ErrorCode::IndexPrimaryKeyAlreadyExists, .. }));
    assert_eq!(one.primary_key(Some("sku"), Some("sku")).unwrap().as_deref(), Some("sku"));
    assert_eq!(one.primary_key(Some("sku"), None).unwrap().as_deref(), Some("sku"));
    assert_eq!(payload("[]").primary_key(Some("id"), Some("foo")).unwrap().as_deref(), Some("id"));
    assert_eq!(payload("[]").primary_key(None, None).unwrap(), None);
}

#[test]
fn a_line_is_the_document_behind_its_letter() {
    let batch =
        read(Format::Json, b"[{\n  \"id\" : 1,\r\n\"x\": 1.50, \"s\": \"a\\nb\" }]", None, 64).unwrap().unwrap();
    let owners = [0];
    let part = batch.split(1, |_| &owners).remove(0);
    let letter = shard_of("1", 64).letter();
    let line = format!("{{\"_miroir_shard\":\"{letter}\",   \"id\" : 1,  \"x\": 1.50, \"s\": \"a\\nb\" }}\n");
    assert_eq!(String::from_utf8(part.body).unwrap(), line);
}

#[test]
fn ids_to_delete_are_read_as_a_node_reads_them() {
    let text = |body: &str| IdList::parse(Bytes::copy_from_slice(body.as_bytes()));
    let list =
        text(r#"[1,"a",2,"\u0061","a b",1.5,null,[1],{"id":1},-0,"-0",-7,18446744073709551616,"01"," 1"]"#).unwrap();
    assert_eq!(list.provided(), 15);
    assert_eq!(list.ids().collect::<Vec<_>>(), ["1", "a", "2", "a", "-0", "-7", "01"]);
    assert_eq!(text("[]").unwrap().provided(), 0);
    for (body, code, message) in [
        ("", "missing_payload", "A json payload is missing."),
        (
            "1",
            "bad_request",
            "Json deserialize error: invalid type: integer `1`, expected a sequence at line 1 column 1",
        ),
        ("{}", "bad_request", "Json deserialize error: invalid type: map, expected a sequence at line 1 column 0"),
        (
            "\"a\"",
            "bad_request",
            "Json deserialize error: invalid type: string \"a\", expected a sequence at line 1 column 3",
        ),
        (
            "[1",
            "malformed_payload",
            "The json payload provided is malformed. `EOF while parsing a list at line 1 column 2`.",
        ),
        ("nope", "malformed_payload", "The json payload provided is malformed. `expected ident at line 1 column 2`."),
        (
            " ",
            "malformed_payload",
            "The json payload provided is malformed. `EOF while parsing a value at line 1 column 1`.",
        ),
        (
            "[1] x",
            "malformed_payload",
            "The json payload provided is malformed. `trailing characters at line 1 column 5`.",
        ),
        (
            r#"["\ud800"]"#,
            "malformed_payload",
            "The json payload provided is malformed. `unexpected end of hex escape at line 1 column 9`.",
        ),
        (
            r#"["a",1e999]"#,
            "malformed_payload",
            "The json payload provided is malformed. `number out of range at line 1 column 10`.",
        ),
    ] {
        let error = text(body).unwrap_err();
        assert_eq!((error.code().as_str(), error.to_string().as_str()), (code, message), "{body}");
    }
    assert!(text(&format!("[{}{}]", "[".repeat(200), "]".repeat(200))).is_err());
}

#[test]
fn ids_to_delete_go_to_the_owners_of_their_shard() {
    let list = IdList::parse(Bytes::from_static(br#"[1,"a",2,"x y"]"#)).unwrap();
    let owners: Vec<Vec<usize>> = (0..8).map(|s| vec![s % 2, 2]).collect();
    let parts = list.split(8, 3, |s| &owners[usize::from(s.0)]);
    assert_eq!(parts[2].body, br#"["1","a","2"]"#);
    assert_eq!(parts[0].ids + parts[1].ids, 3);
    assert_eq!(list.split(8, 1, |_| &[]).remove(0).body, b"[]");
}

#[test]
fn pieces_end_at_line_ends() {
    let cut = |max| pieces(b"aa\nbbbbbb\nc\nd\n", max).map(<[u8]>::len).collect::<Vec<_>>();
    assert_eq!(cut(100), [14]);
    assert_eq!(cut(7), [3, 7, 4]);
    assert_eq!(cut(3), [3, 7, 2, 2]);
    assert_eq!(cut(0), [3, 7, 2, 2]);
}

#[test]
fn stripping_leaves_every_other_byte() {
    for (with, without) in [
        (r#"{"_miroir_shard":"ꀀ","id":1}"#, r#"{"id":1}"#),
        (r#"{"_miroir_shard":"ꀀ"}"#, "{}"),
        (r#"{"id":1,"_miroir_shard":"ꀀ"}"#, r#"{"id":1}"#),
        (r#"{ "id" : 1 , "_miroir_shard" : "ꀀ" , "b":2}"#, r#"{ "id" : 1 , "b":2}"#),
        (r#"{ "_miroir_shard":"ꀀ" }"#, "{  }"),
        (r#"{"\u005fmiroir_shard":[1],"_miroir_shard":2,"a":3}"#, r#"{"a":3}"#),
        (
            r#"{"id":1,"_formatted":{"_miroir_shard":"ꀀ","id":"1"},"_matchesPosition":{"a":[],"_miroir_shard":[{}]}}"#,
            r#"{"id":1,"_formatted":{"id":"1"},"_matchesPosition":{"a":[]}}"#,
        ),
        (
            r#"{"_miroir_shard":"ꀀ","_formatted":{"_miroir_shard":"ꀀ"},"x":{"_miroir_shard":1}}"#,
            r#"{"_formatted":{},"x":{"_miroir_shard":1}}"#,
        ),
        (r#"{"id":1}"#, r#"{"id":1}"#),
        (r#"{"_miroir_shard":"\"","a":",\"b"}"#, r#"{"a":",\"b"}"#),
        (r#"{"_miroir_shard":"","a":1}"#, r#"{"a":1}"#),
        (r#"{"_miroir_shard":"longer than a letter","a":1}"#, r#"{"a":1}"#),
        (r#"{"_miroir_shard":"ꀀ" ,"a":"\u0001"}"#, r#"{"a":"\u0001"}"#),
    ] {
        assert_eq!(str::from_utf8(&strip_shard(with.as_bytes()).unwrap()).unwrap(), without);
        let mut appended = b"x".to_vec();
        strip_shard_into(with.as_bytes(), &mut appended).unwrap();
        assert_eq!(str::from_utf8(&appended[1..]).unwrap(), without);
    }
    assert!(strip_shard(br#"["_miroir_shard"]"#).is_err());
    assert!(strip_shard(br#"{"_miroir_shard":1"#).is_err());
}

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<i32>().prop_map(|n| Value::from(f64::from(n) / 4.0)),
        ".{0,12}".prop_map(Value::from),
    ]
}

fn any_value() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(3, 24, 4, |inner| {
        let key = prop_oneof!["[a-c_]{0,3}", Just(SHARD_FIELD.to_owned()), Just("_formatted".to_owned())];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..4).prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

fn any_object(reserved: bool) -> impl Strategy<Value = Map<String, Value>> {
    let names = if reserved { vec![SHARD_FIELD, "_formatted", "_matchesPosition", "a"] } else { vec!["a", "b"] };
    let key = prop_oneof![prop::sample::select(names).prop_map(str::to_owned), "[a-z\"\\\\é\u{1}]{0,4}"];
    prop::collection::vec((key, any_value()), 0..6).prop_map(|m| m.into_iter().collect())
}

fn written(value: &Value, pretty: bool) -> Vec<u8> {
    if pretty { serde_json::to_vec_pretty(value) } else { serde_json::to_vec(value) }.unwrap()
}

proptest! {
    #[test]
    fn stripping_equals_removing_the_key_from_the_tree(object in any_object(true), pretty in any::<bool>()) {
        let text = written(&Value::Object(object.clone()), pretty);
        let stripped = strip_shard(&text).unwrap();
        let mut expected = object;
        expected.shift_remove(SHARD_FIELD);
        for nested in ["_formatted", "_matchesPosition"] {
            if let Some(Value::Object(o)) = expected.get_mut(nested) { o.shift_remove(SHARD_FIELD); }
        }
        prop_assert_eq!(serde_json::from_slice::<Value>(&stripped).unwrap(), Value::Object(expected.clone()));
        if !pretty {
            // Compact text shows that the order and all other bytes stay.
            prop_assert_eq!(&*stripped, &serde_json::to_vec(&expected).unwrap()[..]);
        }
    }

    #[test]
    fn splitting_keeps_documents_order_and_owners(
        objects in prop::collection::vec((any_object(false), "[a-zA-Z0-9_-]{1,6}"), 0..12),
        pretty in any::<bool>(),
        array in any::<bool>(),
        shards in 1..20_u16,
    ) {
        let documents: Vec<Value> = objects.into_iter().map(|(mut o, id)| { o.insert("pk".into(), id.into()); o.into() }).collect();
        let body = if array {
            written(&Value::Array(documents.clone()), pretty)
        } else {
            documents.iter().flat_map(|d| [written(d, pretty), b"\n".to_vec()].concat()).chain(*b" ").collect()
        };
        let format = if array { Format::Json } else { Format::Ndjson };
        let batch = read(format, &body, Some("pk"), shards).unwrap().unwrap();
        prop_assert_eq!(batch.received(), documents.len());
        // Shard s belongs to member s mod 3 and to member 3.
        let owners: Vec<Vec<usize>> = (0..usize::from(shards)).map(|s| vec![s % 3, 3]).collect();
        let parts = batch.split(4, |s| &owners[usize::from(s.0)]);
        for (m, part) in parts.iter().enumerate() {
            let expected: Vec<Value> = documents.iter().filter_map(|d| {
                let shard = shard_of(d["pk"].as_str().unwrap(), shards);
                if m != 3 && usize::from(shard.0) % 3 != m { return None; }
                let mut with = Map::new();
                with.insert(SHARD_FIELD.into(), shard.letter().to_string().into());
                with.extend(d.as_object().unwrap().clone());
                Some(Value::Object(with))
            }).collect();
            let lines: Vec<&[u8]> = part.body.split_inclusive(|b| *b == b'\n').collect();
            let got: Vec<Value> = lines.iter().map(|l| serde_json::from_slice(l).unwrap()).collect();
            prop_assert_eq!(&got, &expected);
            prop_assert_eq!(part.documents, expected.len());
            for (line, document) in lines.iter().zip(&expected) {
                let mut plain = document.as_object().unwrap().clone();
                plain.shift_remove(SHARD_FIELD);
                let stripped = strip_shard(line).unwrap();
                prop_assert_eq!(serde_json::from_slice::<Value>(&stripped).unwrap(), Value::Object(plain));
                let letter = document[SHARD_FIELD].as_str().unwrap().chars().next().unwrap();
                prop_assert!(part.shards.contains(ShardId::of_letter(letter).unwrap()));
            }
        }
    }

    #[test]
    fn garbage_neither_panics_nor_hangs(
        body in prop::collection::vec(prop::sample::select(b"{}[]\",:\\ aid1-.eu\nd8_miroshad\xff".to_vec()), 0..80),
        nested in any::<bool>(),
    ) {
        let key = if nested { "a.id" } else { "id" };
        for format in [Format::Json, Format::Ndjson, Format::Csv { delimiter: b',' }] {
            if let Ok(Some(batch)) = read(format, &body, Some(key), 7) {
                let all = [0];
                prop_assert_eq!(batch.split(1, |_| &all)[0].documents, batch.received());
            }
        }
        let _ = IdList::parse(Bytes::from(body.clone()));
        let _ = strip_shard(&body);
        let _ = gunzip::<DocumentError>(&body, 1000, |_| Ok(()));
    }
}

#[test]
fn what_a_body_grows_to_is_asked_for_before_it_is_held() {
    let names = "n".repeat(1_000);
    let csv = format!("id,{names}\n{}", (0..500).map(|i| format!("{i},x\n")).collect::<String>());
    let body = Bytes::from(csv.clone());
    let mut held = 0;
    let payload = Payload::parse_within(body.clone(), Format::Csv { delimiter: b',' }, |bytes| {
        held += bytes;
        Ok::<(), DocumentError>(())
    })
    .unwrap();
    let grown: usize = payload.documents().map(<[u8]>::len).sum();
    assert!(grown > 50 * csv.len() && held > grown && held < 3 * grown, "{held} {grown}");
    let refused = Payload::parse_within(body, Format::Csv { delimiter: b',' }, |bytes| {
        held = held.checked_sub(bytes).filter(|left| *left > grown).ok_or_else(|| DocumentError::too_large(7))?;
        Ok::<(), DocumentError>(())
    });
    assert_eq!(refused.unwrap_err(), DocumentError::too_large(7));

    let batch = payload.batch("id", 64).unwrap();
    let owners: &[usize] = &[0, 1];
    let sizes = batch.sizes(2, |_| owners);
    for (part, size) in batch.split(2, |_| owners).into_iter().zip(sizes) {
        assert!(part.body.len() <= size && size < part.body.len() + 600, "{} {size}", part.body.len());
    }
}
