//! Functions that edit documents, of which the stand-in runs a few words only.
//!
//! Statements on fields of `doc` at its top: `doc.f = JSON`, `doc.f += NUMBER`, `doc.remove("f")`, `doc = ()`; blocks
//! `doc = { let doc = doc; … doc }` and `if type_of(doc) == "map" { … }`, which run their statements; functions, which are not run.
//! Rule: whatever else there is, is refused when it is sent, never half done.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::error::{ApiError, Result};

/// A statement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Step {
    /// Sets a field.
    Set(String, Value),
    /// Adds to a number.
    Add(String, i64),
    /// Takes a field out.
    Remove(String),
    /// Deletes the document.
    Delete,
}

fn refused(text: &str) -> ApiError {
    let text: String = text.chars().take(80).collect();
    ApiError::new("bad_request", format!("The stand-in can't run this function (line 1, position 1): `{text}`"))
}

/// Reads a function.
pub fn parse(function: &str) -> Result<Vec<Step>> {
    let (mut steps, mut rest) = (Vec::new(), function.trim());
    while !rest.is_empty() {
        rest = statement(rest, &mut steps)?.trim_start();
    }
    Ok(steps)
}

fn statement<'a>(text: &'a str, steps: &mut Vec<Step>) -> Result<&'a str> {
    let error = || refused(text);
    if let Some(rest) = text.strip_prefix(';') {
        return Ok(rest);
    }
    if text.starts_with("fn ") {
        return Ok(block(text).ok_or_else(error)?.1);
    }
    if text.starts_with("if type_of(doc) == \"map\" {") {
        let (inside, rest) = block(text).ok_or_else(error)?;
        steps.extend(parse(inside)?);
        return Ok(rest);
    }
    if text.starts_with("doc = {") {
        let (inside, rest) = block(text).ok_or_else(error)?;
        let inside = inside.trim().strip_prefix("let doc = doc;").ok_or_else(error)?;
        steps.extend(parse(inside.strip_suffix("doc").ok_or_else(error)?)?);
        return Ok(rest);
    }
    let (one, rest) = text.split_once(';').unwrap_or((text, ""));
    let one = one.trim();
    if one == "doc = ()" {
        steps.push(Step::Delete);
        return Ok(rest);
    }
    let field = one.strip_prefix("doc.").ok_or_else(error)?;
    let step = if let Some(name) = field.strip_prefix("remove(\"").and_then(|f| f.strip_suffix("\")")) {
        Step::Remove(name.to_owned())
    } else {
        let (name, value) = field.split_once('=').ok_or_else(error)?;
        let (adds, name) = name.trim().strip_suffix('+').map_or((false, name.trim()), |name| (true, name.trim()));
        let value: Value = serde_json::from_str(value.trim()).map_err(|_| error())?;
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') || name.is_empty() {
            return Err(error());
        }
        match adds {
            true => Step::Add(name.to_owned(), value.as_i64().ok_or_else(error)?),
            false => Step::Set(name.to_owned(), value),
        }
    };
    steps.push(step);
    Ok(rest)
}

/// What stands in the first braces, and behind them.
fn block(text: &str) -> Option<(&str, &str)> {
    let open = text.find('{')?;
    let mut level = 0_usize;
    for (at, byte) in text.bytes().enumerate().skip(open) {
        match byte {
            b'{' => level += 1,
            b'}' => level = level.checked_sub(1)?,
            _ => {}
        }
        if level == 0 {
            return Some((&text[open + 1..at], &text[at + 1..]));
        }
    }
    None
}

/// Edits a document; `None`: it is to be deleted.
pub fn run(steps: &[Step], document: Map<String, Value>) -> Result<Option<Map<String, Value>>> {
    let mut document = Some(document);
    for step in steps {
        let Some(tree) = &mut document else { continue };
        match step {
            Step::Set(name, value) => drop(tree.insert(name.clone(), value.clone())),
            Step::Remove(name) => drop(tree.shift_remove(name)),
            Step::Delete => document = None,
            Step::Add(name, by) => {
                let sum = tree.get(name).and_then(Value::as_i64).and_then(|number| number.checked_add(*by));
                let error = || ApiError::new("edit_documents_by_function_error", format!("`{name}` is no number"));
                tree.insert(name.clone(), json!(sum.ok_or_else(error)?));
            }
        }
    }
    Ok(document)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_statements_are_run_and_all_else_is_refused() {
        let run = |function: &str| {
            let document = json!({"id": 1, "n": 2}).as_object().cloned().unwrap();
            super::run(&parse(function).unwrap(), document).unwrap().map(Value::Object)
        };
        assert_eq!(run("doc.n += 1; doc.a = \"x\""), Some(json!({"id": 1, "n": 3, "a": "x"})));
        assert_eq!(run("doc = ()"), None);
        let wrapped = "fn f() { 1 } doc = { let doc = doc; doc.remove(\"n\");\ndoc.m = 1\n; doc };\nif type_of(doc) == \"map\" { doc.n = 5; }";
        assert_eq!(run(wrapped), Some(json!({"id": 1, "m": 1, "n": 5})));
        for bad in ["doc.n = x", "exit()", "doc.n += 1 }", "doc = { doc }", "}", "doc.a.b = 1", "let x = 1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
