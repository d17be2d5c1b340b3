//! Reading typed parameters out of JSON bodies and query strings, with Meilisearch's error texts.
//!
//! Rule: a field or parameter that the route does not list is refused, and a wrong type is reported with the path, the
//! type expected and the value found, before anything else is done. Must not know: what the parameters are for.

use serde_json::{Map, Value};

use super::error::{ApiError, Result};

/// A JSON object being read, with the path at which it stands (empty at the top).
pub struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: String,
}

/// `a positive integer: `5``, and so on for every kind of JSON value.
pub fn describe(value: &Value) -> String {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(n) if n.is_u64() => "a positive integer",
        Value::Number(n) if n.is_i64() => "a negative integer",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    format!("{kind}: `{value}`")
}

/// The error for a value of the wrong type at `path` (empty: the body itself).
pub fn wrong_type(code: &'static str, path: &str, expected: &str, found: &Value) -> ApiError {
    let at = if path.is_empty() { String::new() } else { format!(" at `{path}`") };
    ApiError::new(code, format!("Invalid value type{at}: expected {expected}, but found {}", describe(found)))
}

/// The list of allowed names as it stands in Meilisearch's texts.
pub fn name_list(allowed: &[&str]) -> String {
    allowed.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// A list of strings; `path` names where it stands.
pub fn string_list(code: &'static str, path: &str, value: &Value) -> Result<Vec<String>> {
    let Value::Array(items) = value else { return Err(wrong_type(code, path, "an array", value)) };
    let mut strings = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        match item {
            Value::String(text) => strings.push(text.clone()),
            other => return Err(wrong_type(code, &format!("{path}[{index}]"), "a string", other)),
        }
    }
    Ok(strings)
}

impl<'a> Fields<'a> {
    /// Starts reading `value`, which must be an object with no fields but `allowed`.
    pub fn open(value: &'a Value, path: &str, code: &'static str, allowed: &[&str]) -> Result<Self> {
        let Value::Object(map) = value else { return Err(wrong_type(code, path, "an object", value)) };
        if let Some(unknown) = map.keys().find(|key| !allowed.contains(&key.as_str())) {
            let inside = if path.is_empty() { String::new() } else { format!(" inside `{path}`") };
            let text = format!("Unknown field `{unknown}`{inside}: expected one of {}", name_list(allowed));
            return Err(ApiError::new(code, text));
        }
        Ok(Self { map, path: path.to_owned() })
    }

    /// The value of a field; `null` counts as absent.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// The path of a field, as error texts name it.
    pub fn path(&self, name: &str) -> String {
        format!("{}.{name}", self.path)
    }

    /// The error for a required field that is absent.
    pub fn missing(&self, name: &str, code: &'static str) -> ApiError {
        let inside = if self.path.is_empty() { String::new() } else { format!(" inside `{}`", self.path) };
        ApiError::new(code, format!("Missing field `{name}`{inside}"))
    }

    /// A string field.
    pub fn string(&self, name: &str, code: &'static str) -> Result<Option<String>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(wrong_type(code, &self.path(name), "a string", other)),
        }
    }

    /// A boolean field.
    pub fn boolean(&self, name: &str, code: &'static str) -> Result<Option<bool>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(wrong_type(code, &self.path(name), "a boolean", other)),
        }
    }

    /// A field with a non-negative integer.
    pub fn count(&self, name: &str, code: &'static str) -> Result<Option<usize>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Number(n)) if n.is_u64() => Ok(n.as_u64().map(|n| usize::try_from(n).unwrap_or(usize::MAX))),
            Some(other) => Err(wrong_type(code, &self.path(name), "a positive integer", other)),
        }
    }

    /// A field with any number.
    pub fn number(&self, name: &str, code: &'static str) -> Result<Option<f64>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Number(n)) => Ok(n.as_f64()),
            Some(other) => Err(wrong_type(code, &self.path(name), "a number", other)),
        }
    }

    /// A field with a list of strings.
    pub fn strings(&self, name: &str, code: &'static str) -> Result<Option<Vec<String>>> {
        self.get(name).map(|value| string_list(code, &self.path(name), value)).transpose()
    }

    /// A field with one of a few words.
    pub fn word(&self, name: &str, code: &'static str, allowed: &[&'static str]) -> Result<Option<&'static str>> {
        let Some(text) = self.string(name, code)? else { return Ok(None) };
        match allowed.iter().find(|word| **word == text) {
            Some(word) => Ok(Some(word)),
            None => {
                let path = self.path(name);
                let text = format!("Unknown value `{text}` at `{path}`: expected one of {}", name_list(allowed));
                Err(ApiError::new(code, text))
            }
        }
    }
}

/// The query string of a request, checked against the parameters that the route knows.
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Reads a query string; a parameter that is not in `allowed` is refused.
    pub fn read(raw: Option<&str>, allowed: &[&str]) -> Result<Self> {
        let mut pairs = Vec::new();
        for part in raw.unwrap_or("").split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let name = percent_decode(name);
            if !allowed.contains(&name.as_str()) {
                let text = format!("Unknown parameter `{name}`: expected one of {}", name_list(allowed));
                return Err(ApiError::new("bad_request", text));
            }
            pairs.push((name, percent_decode(value)));
        }
        Ok(Self { pairs })
    }

    /// The text of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A parameter with a non-negative integer.
    pub fn count(&self, name: &str, code: &'static str) -> Result<Option<usize>> {
        self.get(name).map(|text| parse_count(name, text, code)).transpose()
    }

    /// A parameter that is `true` or `false`.
    pub fn boolean(&self, name: &str, code: &'static str) -> Result<Option<bool>> {
        match self.get(name) {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => {
                let why = format!("could not parse `{other}` as a boolean, expected either `true` or `false`");
                Err(ApiError::new(code, format!("Invalid value in parameter `{name}`: {why}")))
            }
        }
    }

    /// A parameter with a decimal number.
    pub fn number(&self, name: &str, code: &'static str) -> Result<Option<f64>> {
        let Some(text) = self.get(name) else { return Ok(None) };
        match text.parse::<f64>() {
            Ok(number) => Ok(Some(number)),
            Err(e) => Err(ApiError::new(code, format!("Invalid value in parameter `{name}`: {e}"))),
        }
    }

    /// A parameter with a comma-separated list; `*` alone and absence mean no restriction.
    pub fn list(&self, name: &str) -> Option<Vec<String>> {
        let text = self.get(name)?;
        Some(text.split(',').map(str::to_owned).filter(|item| !item.is_empty()).collect())
    }

    /// A comma-separated list of non-negative integers; `*` means no restriction.
    pub fn counts(&self, name: &str, code: &'static str) -> Result<Option<Vec<usize>>> {
        let Some(items) = self.list(name) else { return Ok(None) };
        if items == ["*"] {
            return Ok(None);
        }
        items.iter().map(|item| parse_count(name, item, code)).collect::<Result<Vec<_>>>().map(Some)
    }
}

fn parse_count(name: &str, text: &str, code: &'static str) -> Result<usize> {
    text.trim().parse::<usize>().map_err(|_| {
        ApiError::new(
            code,
            format!("Invalid value in parameter `{name}`: could not parse `{text}` as a positive integer"),
        )
    })
}

/// Undoes `%XX` and `+`; what is not valid UTF-8 afterwards becomes replacement characters.
pub fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|pair| std::str::from_utf8(pair).ok());
        match (bytes[at], hex.and_then(|pair| u8::from_str_radix(pair, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (b'+', _) => {
                out.push(b' ');
                at += 1;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
