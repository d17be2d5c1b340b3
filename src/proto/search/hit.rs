//! A hit as the bytes that a node sent: where its extras lie, and how it is written without what the client may not see.
//!
//! Must not know: other hits.

use std::ops::Range;

use crate::proto::json::{self, Member, ScanError};
use crate::proto::settings::{IndexView, is_within};
use crate::types::SHARD_FIELD;

/// What a node, or the mesh, has added to a hit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extra {
    /// Position of the key's opening quote.
    start: usize,
    /// The value.
    pub value: Range<usize>,
}

/// One hit inside a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawHit {
    /// The object, braces included.
    pub span: Range<usize>,
    /// `_rankingScoreDetails`
    pub details: Option<Extra>,
    /// `_rankingScore`
    pub score: Option<Extra>,
    /// `_federation`
    pub federation: Option<Extra>,
    /// The reserved field.
    shard: Option<Extra>,
    /// Nothing else of it tells of other fields.
    plain: bool,
}

/// Finds the hits of the array at `at`, at most `max` of them, and the position behind the array.
///
/// # Errors
/// [`ScanError`] where the text is no array of objects.
pub fn scan_hits(text: &[u8], at: usize, max: usize) -> Result<(Vec<RawHit>, usize), ScanError> {
    let mut at = json::skip_space(text, at);
    if text.get(at) != Some(&b'[') {
        return Err(ScanError::Unexpected(at));
    }
    at = json::skip_space(text, at + 1);
    let mut hits = Vec::new();
    if text.get(at) == Some(&b']') {
        return Ok((hits, at + 1));
    }
    loop {
        let hit = scan_hit(text, at)?;
        at = json::skip_space(text, hit.span.end);
        if hits.len() < max {
            hits.push(hit);
        }
        match text.get(at) {
            Some(b',') => at = json::skip_space(text, at + 1),
            Some(b']') => return Ok((hits, at + 1)),
            _ => return Err(ScanError::Unexpected(at)),
        }
    }
}

fn scan_hit(text: &[u8], start: usize) -> Result<RawHit, ScanError> {
    let mut hit = RawHit { span: start..start, details: None, score: None, federation: None, shard: None, plain: true };
    let mut members = json::members(text, start)?;
    for member in members.by_ref() {
        let m = member?;
        // A document may have fields of these names; the node's own come last.
        if m.raw_key.first() == Some(&b'_') {
            let extra = Extra { start: m.start, value: m.value_start..m.end };
            match m.raw_key {
                b"_rankingScoreDetails" => hit.details = Some(extra),
                b"_rankingScore" => hit.score = Some(extra),
                b"_federation" => hit.federation = Some(extra),
                b"_formatted" | b"_matchesPosition" => hit.plain = false,
                key if key == SHARD_FIELD.as_bytes() && hit.shard.is_none() => hit.shard = Some(extra),
                // A second one, or one behind escapes.
                _ => hit.plain &= !m.is(SHARD_FIELD),
            }
        }
    }
    hit.span.end = members.end().ok_or(ScanError::Unexpected(start))?;
    Ok(hit)
}

/// What is left out of hits. The reserved field always is.
#[derive(Debug, Clone, Default)]
pub struct HitStyle<'a> {
    /// Leave out the ranking score, asked for by the mesh alone.
    pub cut_score: bool,
    /// Leave out the details, asked for by the mesh alone.
    pub cut_details: bool,
    /// Leave out what a node adds to listed documents.
    pub cut_federation: bool,
    /// An attribute that only the mesh asked for.
    pub extra: Option<&'a str>,
    /// Mask and cut what this index does not display.
    pub view: Option<&'a IndexView>,
}

impl HitStyle<'_> {
    /// Whether hits may have to be changed beyond the reserved field.
    pub fn changes(&self) -> bool {
        self.cut_score || self.cut_details || self.cut_federation || self.extra.is_some() || self.view.is_some()
    }
}

/// An object under construction: puts the commas.
struct Object<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl<'a> Object<'a> {
    fn open(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, first: true }
    }

    fn comma(&mut self) {
        if !self.first {
            self.out.push(b',');
        }
        self.first = false;
    }

    /// Key and value as they are.
    fn copy(&mut self, text: &[u8], member: &Member<'_>) {
        self.comma();
        self.out.extend_from_slice(&text[member.start..member.end]);
    }

    fn key(&mut self, text: &[u8], member: &Member<'_>) -> &mut Vec<u8> {
        self.comma();
        self.out.extend_from_slice(&text[member.start..member.value_start]);
        self.out
    }
}

/// Writes a hit of `text` as the client may see it.
///
/// # Errors
/// [`ScanError`] if an extra is not what it should be.
pub fn write_hit(out: &mut Vec<u8>, text: &[u8], hit: &RawHit, style: &HitStyle<'_>) -> Result<(), ScanError> {
    let shows_details = hit.details.is_some() && !style.cut_details;
    if hit.plain && style.extra.is_none() && !(shows_details && style.view.is_some()) {
        write_plain(out, text, hit, style);
        return Ok(());
    }
    let is = |m: &Member<'_>, extra: &Option<Extra>| extra.as_ref().is_some_and(|e| e.start == m.start);
    let mut object = Object::open(out);
    for member in json::members(text, hit.span.start)? {
        let m = member?;
        if m.raw_key.first() == Some(&b'_') {
            if m.is(SHARD_FIELD)
                || (style.cut_score && is(&m, &hit.score))
                || (style.cut_details && is(&m, &hit.details))
                || (style.cut_federation && is(&m, &hit.federation))
            {
                continue;
            }
            match (m.raw_key, m.value.first(), style.view) {
                (b"_formatted", Some(b'{'), _) => {
                    write_formatted(object.key(text, &m), text, &m, style)?;
                    continue;
                }
                (b"_matchesPosition", Some(b'{'), view) => {
                    write_positions(object.key(text, &m), text, &m, view)?;
                    continue;
                }
                (b"_rankingScoreDetails", _, Some(view)) if is(&m, &hit.details) => {
                    write_details(object.key(text, &m), text, &m, view)?;
                    continue;
                }
                _ => {}
            }
        }
        match style.extra {
            Some(extra) => copy_without(&mut object, text, &m, extra),
            None => object.copy(text, &m),
        }
    }
    out.push(b'}');
    Ok(())
}

/// Writes a hit of which at most whole members are cut: what lies between them is moved as it is.
fn write_plain(out: &mut Vec<u8>, text: &[u8], hit: &RawHit, style: &HitStyle<'_>) {
    let cut = |extra: &Option<Extra>, cut: bool| {
        extra.as_ref().filter(|_| cut).map_or(hit.span.end..hit.span.end, |e| e.start..e.value.end)
    };
    // The last one is always empty and stands for the end.
    let mut cuts = [
        cut(&None, true),
        cut(&hit.shard, true),
        cut(&hit.score, style.cut_score),
        cut(&hit.details, style.cut_details),
        cut(&hit.federation, style.cut_federation),
    ];
    cuts.sort_unstable_by_key(|c| c.start);
    out.push(b'{');
    let (mut at, mut first) = (hit.span.start + 1, true);
    for cut in cuts {
        let piece = trim(&text[at..cut.start.min(hit.span.end - 1)]);
        if !piece.is_empty() {
            if !first {
                out.push(b',');
            }
            first = false;
            out.extend_from_slice(piece);
        }
        if cut.is_empty() {
            break;
        }
        at = cut.end;
    }
    out.push(b'}');
}

/// Members without the commas and the white space around them.
fn trim(mut members: &[u8]) -> &[u8] {
    while let [b',' | b' ' | b'\t' | b'\n' | b'\r', rest @ ..] = members {
        members = rest;
    }
    while let [rest @ .., b',' | b' ' | b'\t' | b'\n' | b'\r'] = members {
        members = rest;
    }
    members
}

/// Copies a member, but not what lies at `path` in it.
fn copy_without(object: &mut Object<'_>, text: &[u8], member: &Member<'_>, path: &str) {
    let rest = member.key().and_then(|key| path.strip_prefix(key.as_str()).map(str::to_owned));
    match rest.as_deref() {
        Some("") => {}
        Some(rest) if rest.starts_with('.') => {
            // Nested: the value is small and rare enough for a tree.
            let Ok(mut tree) = serde_json::from_slice::<serde_json::Value>(member.value) else { return };
            remove(&mut tree, &rest[1..]);
            if !is_hollow(&tree) {
                let value = serde_json::to_vec(&tree).unwrap_or_default();
                object.key(text, member).extend_from_slice(&value);
            }
        }
        _ => object.copy(text, member),
    }
}

fn remove(tree: &mut serde_json::Value, path: &str) {
    match tree {
        serde_json::Value::Object(map) => {
            map.retain(|key, value| match path.strip_prefix(key.as_str()) {
                Some("") => false,
                Some(rest) if rest.starts_with('.') => {
                    remove(value, &rest[1..]);
                    !is_hollow(value)
                }
                _ => true,
            });
        }
        serde_json::Value::Array(items) => {
            items.iter_mut().for_each(|item| remove(item, path));
            items.retain(|item| !is_hollow(item));
        }
        _ => {}
    }
}

fn is_hollow(tree: &serde_json::Value) -> bool {
    tree.as_object().is_some_and(serde_json::Map::is_empty) || tree.as_array().is_some_and(Vec::is_empty)
}

fn write_formatted(out: &mut Vec<u8>, text: &[u8], at: &Member<'_>, style: &HitStyle<'_>) -> Result<(), ScanError> {
    let mut object = Object::open(out);
    for member in json::members(text, at.value_start)? {
        let m = member?;
        if m.is(SHARD_FIELD) {
            continue;
        }
        match style.extra {
            Some(extra) => copy_without(&mut object, text, &m, extra),
            None => object.copy(text, &m),
        }
    }
    out.push(b'}');
    Ok(())
}

/// Positions are told for every field that a node displays, by path.
fn write_positions(out: &mut Vec<u8>, text: &[u8], at: &Member<'_>, view: Option<&IndexView>) -> Result<(), ScanError> {
    let mut object = Object::open(out);
    for member in json::members(text, at.value_start)? {
        let m = member?;
        let shown = !m.is(SHARD_FIELD) && view.is_none_or(|v| m.key().is_some_and(|k| v.shows(&k)));
        if shown {
            object.copy(text, &m);
        }
    }
    out.push(b'}');
    Ok(())
}

/// Sorts on fields that are not displayed show neither name nor value, as on a node.
fn write_details(out: &mut Vec<u8>, text: &[u8], at: &Member<'_>, view: &IndexView) -> Result<(), ScanError> {
    let mut object = Object::open(out);
    for member in json::members(text, at.value_start)? {
        let m = member?;
        let hidden = m.key().is_none_or(|key| {
            let field = key.strip_suffix(":asc").or_else(|| key.strip_suffix(":desc"));
            field.is_some_and(|f| !f.starts_with("_geoPoint(") && !is_displayed_by_name(view, f))
        });
        if !hidden {
            object.copy(text, &m);
            continue;
        }
        let mut order: &[u8] = b"0";
        for field in json::members(text, m.value_start)? {
            let field = field?;
            if field.is("order") && field.value.iter().all(u8::is_ascii_digit) {
                order = field.value;
            }
        }
        object.comma();
        for piece in [b"\"<hidden-rule-".as_slice(), order, b">\":{\"order\":", order, b",\"value\":\"<hidden>\"}"] {
            object.out.extend_from_slice(piece);
        }
    }
    out.push(b'}');
    Ok(())
}

/// For details a node wants the very name in the list.
fn is_displayed_by_name(view: &IndexView, field: &str) -> bool {
    view.displayed.as_ref().is_none_or(|list| list.iter().any(|d| d == field || d == "*"))
}

/// The part of a hit that holds its distinct values, as a small tree: only the members that the path can lie in.
pub fn tree_around(text: &[u8], hit: &RawHit, path: &str) -> Result<serde_json::Value, ScanError> {
    let mut map = serde_json::Map::new();
    for member in json::members(text, hit.span.start)? {
        let m = member?;
        if let Some(key) = m.key().filter(|key| is_within(path, key)) {
            let value = serde_json::from_slice(m.value).map_err(|_| ScanError::Unexpected(m.value_start))?;
            map.insert(key, value);
        }
    }
    Ok(map.into())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn write(hit: &Value, style: &HitStyle<'_>) -> Value {
        let text = format!(" [ {hit} , {hit}]");
        let (hits, end) = scan_hits(text.as_bytes(), 0, 9).unwrap();
        assert_eq!((hits.len(), end), (2, text.len()));
        let mut out = Vec::new();
        write_hit(&mut out, text.as_bytes(), &hits[1], style).unwrap();
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn the_shard_is_never_shown() {
        let hit = json!({"_miroir_shard": "ꀀ", "id": 1, "_formatted": {"id": "1", "_miroir_shard": "ꀀ"},
            "_matchesPosition": {"_miroir_shard": [], "id": []}, "x": {"_miroir_shard": "inner"}});
        let seen = json!({"id": 1, "_formatted": {"id": "1"}, "_matchesPosition": {"id": []}, "x": {"_miroir_shard": "inner"}});
        assert_eq!(write(&hit, &HitStyle::default()), seen);
        assert_eq!(write(&json!({"_miroir_shard": "ꀀ"}), &HitStyle::default()), json!({}));
        assert_eq!(write(&json!({"a": 1, "_miroir_shard": "ꀀ"}), &HitStyle::default()), json!({"a": 1}));
    }

    #[test]
    fn a_document_keeps_its_own_field_of_the_same_name() {
        let text = br#"[{"_rankingScore":"mine","id":1,"_rankingScore":0.5,"_rankingScoreDetails":{}}]"#;
        let (hits, _) = scan_hits(text, 0, 9).unwrap();
        let mut out = Vec::new();
        let style = HitStyle { cut_score: true, cut_details: true, ..HitStyle::default() };
        write_hit(&mut out, text, &hits[0], &style).unwrap();
        assert_eq!(out, br#"{"_rankingScore":"mine","id":1}"#);
    }

    #[test]
    fn an_attribute_asked_for_by_the_mesh_is_cut_also_when_nested() {
        let hit = json!({"id": 1, "a": {"b": 1, "c": 2}, "_formatted": {"a": {"b": "1"}}});
        let style = HitStyle { extra: Some("a.b"), ..HitStyle::default() };
        assert_eq!(write(&hit, &style), json!({"id": 1, "a": {"c": 2}, "_formatted": {}}));
        let style = HitStyle { extra: Some("a"), ..HitStyle::default() };
        assert_eq!(write(&hit, &style), json!({"id": 1, "_formatted": {}}));
        let hit = json!({"a": [{"b": 1}, {"b": 2}]});
        assert_eq!(write(&hit, &HitStyle { extra: Some("a.b"), ..HitStyle::default() }), json!({}));
    }

    #[test]
    fn what_is_not_displayed_is_masked_as_on_a_node() {
        let view = IndexView { displayed: Some(vec!["id".into(), "a".into()]), ..IndexView::default() };
        let hit = json!({"id": 1, "_matchesPosition": {"a.b": [], "secret": []}, "_rankingScoreDetails": {
            "secret:asc": {"order": 0, "value": "x"}, "a:desc": {"order": 1, "value": 2.0},
            "_geoPoint(1, 2):asc": {"order": 2, "value": null, "distance": null}}});
        let seen = json!({"id": 1, "_matchesPosition": {"a.b": []}, "_rankingScoreDetails": {
            "<hidden-rule-0>": {"order": 0, "value": "<hidden>"}, "a:desc": {"order": 1, "value": 2.0},
            "_geoPoint(1, 2):asc": {"order": 2, "value": null, "distance": null}}});
        assert_eq!(write(&hit, &HitStyle { view: Some(&view), ..HitStyle::default() }), seen);
    }

    #[test]
    fn lists_that_are_none_are_refused() {
        for bad in ["", "[", "[1]", "[{}", "[{},]", "[{}{}]", "{}", "[{]", "[{\"a\":1}", "[[]]"] {
            assert!(scan_hits(bad.as_bytes(), 0, 9).is_err(), "{bad}");
        }
        assert_eq!(scan_hits(b"[]", 0, 9).unwrap(), (vec![], 2));
    }

    #[test]
    fn hits_moved_in_pieces_are_as_those_written_member_by_member() {
        let members = [
            r#""_miroir_shard":"ꀀ""#,
            r#""a":{"_rankingScore":",}"}"#,
            r#""_rankingScore":0.5"#,
            r#""_rankingScoreDetails":{"words":{"order":0}}"#,
            r#""_federation":{}"#,
        ];
        // Every choice of members, in the order given and in reverse, under every style.
        for choice in 0..32_usize {
            let mut chosen: Vec<&str> = (0..5).filter(|i| choice >> i & 1 == 1).map(|i| members[i]).collect();
            for _ in 0..2 {
                chosen.reverse();
                let text = format!("[{{{}}}]", chosen.join(","));
                for style in 0..8_usize {
                    let cut = |bit: usize| style >> bit & 1 == 1;
                    let style = HitStyle {
                        cut_score: cut(0),
                        cut_details: cut(1),
                        cut_federation: cut(2),
                        ..HitStyle::default()
                    };
                    let mut hit = scan_hits(text.as_bytes(), 0, 9).unwrap().0.remove(0);
                    let (mut moved, mut written) = (Vec::new(), Vec::new());
                    assert!(hit.plain);
                    write_hit(&mut moved, text.as_bytes(), &hit, &style).unwrap();
                    hit.plain = false;
                    write_hit(&mut written, text.as_bytes(), &hit, &style).unwrap();
                    assert_eq!(String::from_utf8(moved), String::from_utf8(written), "{text} {style:?}");
                }
            }
        }
    }

    #[test]
    fn a_peer_can_not_make_the_list_longer_than_asked() {
        assert_eq!(scan_hits(b"[{},{},{}]", 0, 2).unwrap().0.len(), 2);
    }
}
