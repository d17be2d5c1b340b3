//! Values as Meilisearch compares them: facet texts in their normal form, distinct values.
//!
//! Must not know: hits, facets.

use serde_json::Value;
use unicode_normalization::UnicodeNormalization;

/// The form in which facet values are equal: trimmed, compatibly decomposed, in lower case.
pub fn normalise(text: &str) -> String {
    let text = text.trim();
    if text.is_ascii() { text.to_ascii_lowercase() } else { text.nfkd().collect::<String>().to_lowercase() }
}

/// A value by which hits are distinct.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Distinct {
    /// A number, by its bits in an order of their own; 1 and 1.0 are the same.
    Number(u64),
    /// A text in its normal form; booleans are texts.
    Text(String),
}

/// The distinct values of `attribute` (a path with dots) in a document; none if it is missing or null.
pub fn distinct_values(document: &Value, attribute: &str) -> Vec<Distinct> {
    let mut out = Vec::new();
    visit(document, attribute, &mut |leaf| push_leaf(leaf, &mut out));
    out
}

fn push_leaf(leaf: &Value, out: &mut Vec<Distinct>) {
    match leaf {
        Value::Array(items) => items.iter().filter(|i| !i.is_array()).for_each(|item| push_leaf(item, out)),
        Value::Bool(b) => out.push(Distinct::Text(b.to_string())),
        // Adding zero turns -0 into 0.
        Value::Number(n) => out.extend(n.as_f64().map(|f| Distinct::Number((f + 0.0).to_bits()))),
        Value::String(s) => out.push(Distinct::Text(normalise(s))),
        Value::Null | Value::Object(_) => {}
    }
}

/// Calls `found` for everything at `path`, through arrays, and with keys that hold dots themselves.
fn visit(value: &Value, path: &str, found: &mut impl FnMut(&Value)) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                match path.strip_prefix(key.as_str()) {
                    Some("") => found(inner),
                    Some(rest) if rest.starts_with('.') => visit(inner, &rest[1..], found),
                    _ => {}
                }
            }
        }
        Value::Array(items) => {
            for item in items.iter().filter(|i| i.is_object()) {
                visit(item, path, found);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_are_equal_in_their_normal_form() {
        assert_eq!(normalise(" Ünï "), "u\u{308}ni\u{308}");
        assert_eq!(normalise("ﬁ"), "fi");
        assert_eq!(normalise(" FOO"), "foo");
    }

    #[test]
    fn distinct_values_lie_along_the_path() {
        let doc = json!({"a": [{"b": "X"}, {"b": ["y ", 1]}], "a.b": true, "n": null, "z": -0.0});
        let text = |s: &str| Distinct::Text(s.into());
        let one = Distinct::Number(1.0_f64.to_bits());
        assert_eq!(distinct_values(&doc, "a.b"), vec![text("x"), text("y"), one, text("true")]);
        assert_eq!(distinct_values(&doc, "n"), vec![]);
        assert_eq!(distinct_values(&doc, "missing"), vec![]);
        assert_eq!(distinct_values(&doc, "z"), vec![Distinct::Number(0)]);
    }
}
