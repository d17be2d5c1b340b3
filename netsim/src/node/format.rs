//! How hits are shown: which attributes, highlighted and cropped text, and where the matches are.
//!
//! Rule: nothing is shown that the settings do not display. Must not know: ranking, HTTP.

use serde_json::{Map, Value, json};

use super::query::Query;
use super::settings::{Settings, covers};
use super::text::{Token, tokenize};

/// How a request wants text shown.
#[derive(Debug, Clone)]
pub struct Formatting {
    /// Attributes to show; `None`: all.
    pub retrieve: Option<Vec<String>>,
    /// Attributes to highlight.
    pub highlight: Option<Vec<String>>,
    /// Attributes to crop, with the number of words.
    pub crop: Option<Vec<(String, usize)>>,
    /// Stands in for what was cut off.
    pub crop_marker: String,
    /// Before a match.
    pub pre_tag: String,
    /// After a match.
    pub post_tag: String,
    /// Show where matches are.
    pub positions: bool,
}

fn wants(names: &[String], path: &str) -> bool {
    names.iter().any(|name| name == "*" || covers(name, path) || covers(path, name))
}

/// The part of a document that these names select.
pub fn select(tree: &Map<String, Value>, names: Option<&[String]>, settings: Option<&Settings>) -> Map<String, Value> {
    let keep = |path: &str| {
        names.is_none_or(|names| wants(names, path)) && settings.is_none_or(|settings| settings.is_displayed(path))
    };
    select_inside(tree, "", &keep)
}

fn select_inside(tree: &Map<String, Value>, prefix: &str, keep: &impl Fn(&str) -> bool) -> Map<String, Value> {
    let mut out = Map::new();
    for (name, value) in tree {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        if !keep(&path) {
            continue;
        }
        let value = match value {
            Value::Object(inner) => Value::Object(select_inside(inner, &path, keep)),
            other => other.clone(),
        };
        out.insert(name.clone(), value);
    }
    out
}

/// A match in a text: token from, token behind the last, bytes of the last token that count.
type Found = (usize, usize, usize);

fn find(query: &Query, text: &str, tokens: &[Token]) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let mut best: Option<Found> = None;
        for term in &query.terms {
            for derivation in &term.derivations {
                let here = tokens.get(at..at + derivation.words.len());
                if !here.is_some_and(|here| here.iter().map(|t| &t.word).eq(derivation.words.iter())) {
                    continue;
                }
                let last = &tokens[at + derivation.words.len() - 1];
                let whole = !derivation.prefix || derivation.typos > 0;
                let typed = term.words.last().map_or(0, |word| word.chars().count());
                let length = match whole {
                    true => last.length,
                    false => text[last.start..last.start + last.length].chars().take(typed).map(char::len_utf8).sum(),
                };
                let end = at + derivation.words.len();
                if best.is_none_or(|(_, known, bytes)| (end, length) > (known, bytes)) {
                    best = Some((at, end, length));
                }
            }
        }
        at = best.map_or(at + 1, |(_, end, _)| end);
        found.extend(best);
    }
    found
}

/// Shows one text with tags around matches, cut to `crop` words.
fn show(query: &Query, text: &str, tags: Option<(&str, &str)>, crop: Option<usize>, marker: &str) -> String {
    let tokens = tokenize(text, 0);
    let found = find(query, text, &tokens);
    let (from, to) = match crop {
        Some(words) if words > 0 && words < tokens.len() => {
            let (first, behind) = found.first().map_or((0, 0), |(a, b, _)| (*a, *b));
            let spare = words.saturating_sub(behind - first);
            let start = if found.is_empty() { 0 } else { first.saturating_sub(spare / 2) };
            let start = start.min(tokens.len() - words);
            (start, start + words)
        }
        _ => (0, tokens.len()),
    };
    let cut = crop.is_some();
    let start = if from == 0 || !cut { 0 } else { tokens[from].start };
    let end = if to >= tokens.len() || !cut { text.len() } else { tokens[to - 1].start + tokens[to - 1].length };
    let mut out = String::new();
    out.push_str(if start > 0 { marker } else { "" });
    let mut at = start;
    if let Some((pre, post)) = tags {
        for (first, behind, length) in found.iter().filter(|(first, behind, _)| *first >= from && *behind <= to) {
            let last = &tokens[behind - 1];
            let (match_start, match_end) = (tokens[*first].start, last.start + length);
            out.push_str(&text[at..match_start]);
            out.push_str(pre);
            out.push_str(&text[match_start..match_end]);
            out.push_str(post);
            at = match_end;
        }
    }
    out.push_str(&text[at..end]);
    out.push_str(if end < text.len() { marker } else { "" });
    out
}

impl Formatting {
    /// Whether hits get `_formatted`.
    pub fn formats(&self) -> bool {
        self.highlight.is_some() || self.crop.is_some()
    }

    /// The value of `_formatted`.
    pub fn formatted(&self, tree: &Map<String, Value>, settings: &Settings, query: &Query) -> Value {
        let mut names = self.retrieve.clone();
        if let Some(names) = &mut names {
            names.extend(self.highlight.iter().flatten().cloned());
            names.extend(self.crop.iter().flatten().map(|(name, _)| name.clone()));
        }
        let shown = select(tree, names.as_deref(), Some(settings));
        Value::Object(shown.iter().map(|(name, value)| (name.clone(), self.format_value(name, value, query))).collect())
    }

    fn format_value(&self, path: &str, value: &Value, query: &Query) -> Value {
        match value {
            Value::Null => Value::Null,
            Value::Bool(_) | Value::Number(_) => self.format_text(path, &value.to_string(), query),
            Value::String(text) => self.format_text(path, text, query),
            Value::Array(items) => items.iter().map(|item| self.format_value(path, item, query)).collect(),
            Value::Object(map) => {
                let inner = map.iter();
                Value::Object(
                    inner
                        .map(|(name, value)| (name.clone(), self.format_value(&format!("{path}.{name}"), value, query)))
                        .collect(),
                )
            }
        }
    }

    fn format_text(&self, path: &str, text: &str, query: &Query) -> Value {
        let inside = |name: &str| name == "*" || covers(name, path);
        let tags = self.highlight.iter().flatten().any(|name| inside(name));
        let tags = tags.then_some((self.pre_tag.as_str(), self.post_tag.as_str()));
        let crop = self.crop.iter().flatten().find(|(name, _)| inside(name)).map(|(_, words)| *words);
        json!(show(query, text, tags, crop, &self.crop_marker))
    }
}

/// The value of `_matchesPosition`.
pub fn positions(tree: &Map<String, Value>, settings: &Settings, query: &Query) -> Value {
    let mut out = Map::new();
    for (name, value) in &select(tree, None, Some(settings)) {
        note_positions(name, value, &mut Vec::new(), query, &mut out);
    }
    Value::Object(out)
}

fn note_positions(path: &str, value: &Value, indices: &mut Vec<usize>, query: &Query, out: &mut Map<String, Value>) {
    let text = match value {
        Value::Null => return,
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                indices.push(at);
                note_positions(path, item, indices, query, out);
                indices.pop();
            }
            return;
        }
        Value::Object(map) => {
            map.iter().for_each(|(name, item)| note_positions(&format!("{path}.{name}"), item, indices, query, out));
            return;
        }
    };
    let tokens = tokenize(&text, 0);
    for (first, behind, length) in find(query, &text, &tokens) {
        let start = tokens[first].start;
        let length = tokens[behind - 1].start + length - start;
        let mut entry = json!({"start": start, "length": length});
        if !indices.is_empty() {
            entry["indices"] = json!(indices);
        }
        if let Value::Array(list) = out.entry(path).or_insert_with(|| json!([])) {
            list.push(entry);
        }
    }
}
