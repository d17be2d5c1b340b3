//! Filters: whether a client's filter names the reserved field, which ids it pins, and the filter on shards.
//!
//! A filter is read token by token and never rewritten: the node parses it, and refuses it in its own words. Where this
//! reading is unsure, nothing is pinned. Must not know: which attributes are filterable.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::proto::json;
use crate::types::SHARD_FIELD;
use crate::types::{ShardId, ShardSet};

/// A filter's text taken apart as Meilisearch's grammar does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    /// Without its quotes; escapes left as they are.
    Quoted(&'a str),
    Symbol(char),
}

fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.')
}

/// The tokens; `None` if a quote is left open.
fn tokens(text: &str) -> Option<Vec<Token<'_>>> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let after = &rest[first.len_utf8()..];
        if first == '"' || first == '\'' {
            let end = quote_end(after, first)?;
            out.push(Token::Quoted(&after[..end]));
            rest = &after[end + 1..];
        } else if is_word_char(first) {
            let end = rest.find(|c| !is_word_char(c)).unwrap_or(rest.len());
            out.push(Token::Word(&rest[..end]));
            rest = &rest[end..];
        } else {
            if !first.is_whitespace() {
                out.push(Token::Symbol(first));
            }
            rest = after;
        }
    }
    Some(out)
}

fn quote_end(text: &str, quote: char) -> Option<usize> {
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        if c == quote {
            return Some(at);
        }
        if c == '\\' {
            chars.next();
        }
    }
    None
}

/// Whether the text has the reserved field as a word of its own: in `sort`, `facets` and the like.
pub(super) fn has_shard_word(text: &str) -> bool {
    text.split(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-'))).any(|word| word == SHARD_FIELD)
}

/// Whether a quoted name can stand for the reserved field. Meilisearch resolves numeric escapes (`\u005f`) in names.
fn quoted_can_be_shard_field(text: &str) -> bool {
    if !text.contains('\\') {
        return text == SHARD_FIELD;
    }
    // What is left without the numeric escapes must fit into the field's name, in order.
    let mut wanted = SHARD_FIELD.chars();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\\' {
            if !wanted.by_ref().any(|w| w == c) {
                return false;
            }
            continue;
        }
        match chars.next() {
            Some('u' | 'x') | Some('0'..='9') => {
                while chars.peek().is_some_and(|c| c.is_ascii_hexdigit() || matches!(c, '{' | '}')) {
                    chars.next();
                }
                // Digits that belong to the name, not to the escape, may have been taken: they only make this laxer.
            }
            _ => return false,
        }
    }
    true
}

fn text_names_shard_field(text: &str) -> bool {
    let Some(tokens) = tokens(text) else { return has_shard_word(text) };
    tokens.iter().enumerate().any(|(i, token)| match token {
        Token::Word(word) => has_shard_word(word),
        // A quoted text is an attribute if something follows that only an attribute has behind it.
        Token::Quoted(text) => {
            let value =
                matches!(tokens.get(i + 1), None | Some(Token::Symbol(')' | ']' | ',') | Token::Word("AND" | "OR")));
            !value && quoted_can_be_shard_field(text)
        }
        Token::Symbol(_) => false,
    })
}

/// Whether a client's filter names the reserved field as an attribute.
pub fn names_shard_field(filter: &Value) -> bool {
    match filter {
        Value::String(text) => text_names_shard_field(text),
        Value::Array(items) => items.iter().any(names_shard_field),
        _ => false,
    }
}

/// The document ids that a filter allows at most, if it pins the primary key; `None` if it does not, or if in doubt.
///
/// Every document that matches has one of these ids in its text form. Ids with letters pin nothing, because Meilisearch
/// compares without case.
pub fn pinned_ids(filter: &Value, primary_key: &str) -> Option<BTreeSet<String>> {
    let pinned = match filter {
        Value::String(text) => pinned_by_text(text, primary_key),
        // Elements are AND-ed: any of them that pins is enough.
        Value::Array(items) => {
            items.iter().filter_map(|item| pinned_by_element(item, primary_key)).min_by_key(BTreeSet::len)
        }
        _ => None,
    };
    pinned.filter(|ids| !ids.is_empty())
}

fn pinned_by_element(element: &Value, primary_key: &str) -> Option<BTreeSet<String>> {
    match element {
        Value::String(text) => pinned_by_text(text, primary_key),
        // The elements of an inner array are OR-ed: all of them must pin.
        Value::Array(items) if !items.is_empty() => {
            let each = items.iter().map(|item| match item {
                Value::String(text) => pinned_by_text(text, primary_key),
                _ => None,
            });
            Some(each.collect::<Option<Vec<_>>>()?.into_iter().flatten().collect())
        }
        _ => None,
    }
}

fn pinned_by_text(text: &str, primary_key: &str) -> Option<BTreeSet<String>> {
    let tokens = tokens(text).filter(|_| !text.contains('\\'))?;
    let tangled = |t: &Token| matches!(t, Token::Symbol('(' | ')') | Token::Word("OR" | "NOT"));
    if tokens.iter().any(tangled) {
        return None;
    }
    let clauses = tokens.split(|t| *t == Token::Word("AND"));
    clauses.filter_map(|clause| pinned_by_clause(clause, primary_key)).min_by_key(BTreeSet::len)
}

fn pinned_by_clause(clause: &[Token<'_>], primary_key: &str) -> Option<BTreeSet<String>> {
    let [Token::Word(name) | Token::Quoted(name), rest @ ..] = clause else { return None };
    if *name != primary_key {
        return None;
    }
    match rest {
        [Token::Symbol('='), value] => Some(BTreeSet::from([pinnable(value)?])),
        [Token::Word("IN"), Token::Symbol('['), values @ .., Token::Symbol(']')] => {
            let mut ids = BTreeSet::new();
            for pair in values.chunks(2) {
                match pair {
                    [value] | [value, Token::Symbol(',')] => ids.insert(pinnable(value)?),
                    _ => return None,
                };
            }
            Some(ids)
        }
        _ => None,
    }
}

/// The one id that a value of the filter can match, if there is only one.
///
/// Meilisearch compares a value as a number too, and texts without case and compatibly decomposed. That leaves: digits
/// without a leading zero, small enough to be exact as a 64-bit float, and texts of digits, `-` and `_` that are no number.
fn pinnable(value: &Token<'_>) -> Option<String> {
    let (Token::Word(text) | Token::Quoted(text)) = value else { return None };
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'-' | b'_')) {
        return None;
    }
    let exact = match text.parse::<f64>() {
        Err(_) => true,
        Ok(_) => text.parse::<i64>().is_ok_and(|n| n.abs() < (1 << 53) && n.to_string() == **text),
    };
    exact.then(|| (*text).to_owned())
}

/// A body (search, documents/fetch, facet-search) with the filter on `shards`, of an index of `s`, AND-ed to the client's.
///
/// The client's filter stays as it is, as an element of its own. A body that is no object, or whose filter is neither
/// text nor list, is returned as it came: the node refuses it.
pub fn with_shard_filter(body: &[u8], shards: &ShardSet, s: u16) -> Vec<u8> {
    with_filter(body, &shard_filter(shards, s)).unwrap_or_else(|| body.to_vec())
}

/// `_miroir_shard IN [..]`, or NOT IN where that is shorter.
fn shard_filter(shards: &ShardSet, s: u16) -> String {
    let others = ShardSet::all(s).minus(shards);
    let (operator, list) = if others.len() < shards.len() { ("NOT IN", &others) } else { ("IN", shards) };
    let mut out = format!("{SHARD_FIELD} {operator} [");
    for (i, ShardId(shard)) in list.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        out.push('"');
        out.push(ShardId(shard).letter());
        out.push('"');
    }
    out.push(']');
    out
}

fn with_filter(body: &[u8], ours: &str) -> Option<Vec<u8>> {
    let ours = serde_json::to_string(ours).expect("a text encodes");
    let mut theirs: Option<&[u8]> = None;
    let mut out = Vec::with_capacity(body.len() + ours.len() + 32);
    out.push(b'{');
    let mut members = json::members(body, 0).ok()?;
    for member in members.by_ref() {
        let member = member.ok()?;
        if member.is("filter") {
            // As for a node, the last of several counts.
            theirs = Some(member.value);
        } else {
            out.extend_from_slice(&body[member.start..member.end]);
            out.push(b',');
        }
    }
    if json::skip_space(body, members.end()?) != body.len() {
        return None;
    }
    out.extend_from_slice(b"\"filter\":");
    match theirs {
        None | Some(b"null") => out.extend_from_slice(ours.as_bytes()),
        Some(text @ [b'"', ..]) => {
            out.push(b'[');
            out.extend_from_slice(text);
            out.push(b',');
            out.extend_from_slice(ours.as_bytes());
            out.push(b']');
        }
        Some(list @ [b'[', inner @ .., b']']) => {
            out.extend_from_slice(&list[..list.len() - 1]);
            if json::skip_space(inner, 0) < inner.len() {
                out.push(b',');
            }
            out.extend_from_slice(ours.as_bytes());
            out.push(b']');
        }
        Some(_) => return None,
    }
    out.push(b'}');
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn ids(list: &[&str]) -> Option<BTreeSet<String>> {
        Some(list.iter().map(|s| (*s).to_owned()).collect())
    }

    fn set(shards: &[u16]) -> ShardSet {
        shards.iter().copied().map(ShardId).collect()
    }

    fn filtered(body: Value, shards: &[u16]) -> Value {
        serde_json::from_slice(&with_shard_filter(body.to_string().as_bytes(), &set(shards), 64)).unwrap()
    }

    #[test]
    fn the_reserved_field_is_found_as_attribute_only() {
        for named in [
            "_miroir_shard = a",
            "a = 1 AND _miroir_shard EXISTS",
            "(_miroir_shard=a)",
            "NOT '_miroir_shard' IN [a]",
            "\"_miroir_shard\" = a",
            r#""\u005fmiroir_shard" = a"#,
            r#""_miroir\u{5f}shard" = a"#,
            r#""\x5fmiroir_shard" = a"#,
            r#""\137miroir_shard" = a"#,
            "_miroir_shard",
            "a = b _miroir_shard 'open",
        ] {
            assert!(names_shard_field(&json!(named)), "{named}");
            assert!(names_shard_field(&json!(["x = 1", [named]])), "{named}");
        }
        for harmless in [
            "name = '_miroir_shard'",
            "name = '_miroir_shard' AND a = 1",
            "name IN ['_miroir_shard', b]",
            "(name = \"_miroir_shard\")",
            "my_miroir_shard = 1",
            "_miroir_shards = 1",
            r#""caf\u00e9" = 1"#,
            r#"a = "it\"s _miroir_shard = 1""#,
        ] {
            assert!(!names_shard_field(&json!(harmless)), "{harmless}");
        }
    }

    #[test]
    fn the_shard_filter_is_put_beside_the_clients() {
        let ours = "_miroir_shard IN [\"ꀀ\",\"ꀂ\"]";
        assert_eq!(filtered(json!({"q": "x"}), &[0, 2]), json!({"q": "x", "filter": ours}));
        assert_eq!(filtered(json!({}), &[0, 2]), json!({"filter": ours}));
        assert_eq!(filtered(json!({"filter": null}), &[0, 2]), json!({"filter": ours}));
        assert_eq!(filtered(json!({"filter": "a = 1"}), &[0, 2]), json!({"filter": ["a = 1", ours]}));
        assert_eq!(filtered(json!({"filter": []}), &[0, 2]), json!({"filter": [ours]}));
        let nested = json!({"filter": ["a", ["b", "c"]], "limit": 1});
        assert_eq!(filtered(nested, &[0, 2]), json!({"limit": 1, "filter": ["a", ["b", "c"], ours]}));
        let most: Vec<u16> = (1..64).collect();
        assert_eq!(filtered(json!({}), &most), json!({"filter": "_miroir_shard NOT IN [\"ꀀ\"]"}));
        assert_eq!(filtered(json!({}), &[]), json!({"filter": "_miroir_shard IN []"}));
    }

    #[test]
    fn what_the_node_must_refuse_stays_as_it_is() {
        for body in [r#"{"filter": 5}"#, "[]", "", "{\"a\":1", "{\"filter\": \"a\"} x", "{\"filter\":{}}"] {
            assert_eq!(with_shard_filter(body.as_bytes(), &set(&[0]), 64), body.as_bytes(), "{body}");
        }
    }

    #[test]
    fn ids_are_pinned_where_it_is_certain() {
        for (filter, pinned) in [
            (json!("id = 17"), ids(&["17"])),
            (json!("id = '17' AND a > 3"), ids(&["17"])),
            (json!("a = x AND id IN [1, 2,'3',]"), ids(&["1", "2", "3"])),
            (json!(["a = 1", "id = 12-3"]), ids(&["12-3"])),
            (json!([["id = 1", "id = 2"]]), ids(&["1", "2"])),
            (json!([["id = 1", "a = 2"]]), None),
            (json!("id = abc"), None),
            (json!("id = 017"), None),
            (json!("id = 9007199254740993"), None),
            (json!("id = 1 OR a = 1"), None),
            (json!("NOT id = 1"), None),
            (json!("(id = 1)"), None),
            (json!("id != 1"), None),
            (json!("id NOT IN [1]"), None),
            (json!("id IN []"), None),
            (json!("id 1 TO 5"), None),
            (json!("a = 'id = 1'"), None),
            (json!("id = -0"), None),
            (json!(5), None),
        ] {
            assert_eq!(pinned_ids(&filter, "id"), pinned, "{filter}");
        }
    }

    /// A filter of a small grammar, together with its meaning.
    #[derive(Debug, Clone)]
    enum Expr {
        Id(&'static str, Vec<u32>),
        Group(u32),
        Not(Box<Expr>),
        And(Vec<Expr>),
        Or(Vec<Expr>),
    }

    impl Expr {
        fn text(&self) -> String {
            match self {
                Self::Id("=", ids) => format!("id = {}", ids[0]),
                Self::Id(op, ids) => {
                    let list: Vec<_> = ids.iter().map(|i| format!("\"{i}\"")).collect();
                    format!("'id' {op} [{}]", list.join(", "))
                }
                Self::Group(g) => format!("g = {g}"),
                Self::Not(e) => format!("NOT ({})", e.text()),
                Self::And(list) => {
                    let bare = |e: &Expr| if matches!(e, Self::Or(_)) { format!("({})", e.text()) } else { e.text() };
                    list.iter().map(bare).collect::<Vec<_>>().join(" AND ")
                }
                Self::Or(list) => list.iter().map(Self::text).collect::<Vec<_>>().join(" OR "),
            }
        }

        fn matches(&self, id: u32) -> bool {
            match self {
                Self::Id("=", ids) => ids[0] == id,
                Self::Id("IN", ids) => ids.contains(&id),
                Self::Id(_, ids) => !ids.contains(&id),
                Self::Group(g) => id % 3 == *g,
                Self::Not(e) => !e.matches(id),
                Self::And(list) => list.iter().all(|e| e.matches(id)),
                Self::Or(list) => list.iter().any(|e| e.matches(id)),
            }
        }
    }

    fn expr() -> impl Strategy<Value = Expr> {
        let id = (prop::sample::select(vec!["=", "IN", "NOT IN"]), prop::collection::vec(0..12_u32, 1..4));
        let leaf = prop_oneof![id.prop_map(|(op, ids)| Expr::Id(op, ids)), (0..3_u32).prop_map(Expr::Group)];
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                inner.clone().prop_map(|e| Expr::Not(Box::new(e))),
                prop::collection::vec(inner.clone(), 2..4).prop_map(Expr::And),
                prop::collection::vec(inner, 2..4).prop_map(Expr::Or),
            ]
        })
    }

    proptest! {
        #[test]
        fn narrowing_never_drops_a_match(outer in prop::collection::vec(prop::collection::vec(expr(), 1..3), 1..4)) {
            let filter = json!(outer.iter().map(|or| or.iter().map(Expr::text).collect::<Vec<_>>()).collect::<Vec<_>>());
            let text = json!(outer[0][0].text());
            for id in 0..12_u32 {
                if outer.iter().all(|or| or.iter().any(|e| e.matches(id))) {
                    prop_assert!(pinned_ids(&filter, "id").is_none_or(|ids| ids.contains(&id.to_string())), "{filter} {id}");
                }
                if outer[0][0].matches(id) {
                    prop_assert!(pinned_ids(&text, "id").is_none_or(|ids| ids.contains(&id.to_string())), "{text} {id}");
                }
            }
        }

        #[test]
        fn any_text_is_read_without_panic(text in "[_a-z'\"\\\\ =()\\[\\],\u{e9}0-9]{0,40}") {
            let _ = names_shard_field(&json!(text));
            let _ = pinned_ids(&json!(text), "id");
            let _ = with_shard_filter(text.as_bytes(), &set(&[1]), 64);
        }

        #[test]
        fn the_shard_filter_names_exactly_the_shards(shards in prop::collection::btree_set(0..64_u16, 0..64)) {
            let text = shard_filter(&shards.iter().copied().map(ShardId).collect(), 64);
            let listed: BTreeSet<u16> = text.chars().filter_map(ShardId::of_letter).map(|s| s.0).collect();
            let named = if text.contains("NOT IN") { (0..64).filter(|s| !listed.contains(s)).collect() } else { listed };
            prop_assert_eq!(named, shards);
        }
    }
}
