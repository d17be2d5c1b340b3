//! What a client sent about a read: fields of a body, or parameters of a GET put where a POST has them.
//!
//! The rule: only what the mesh must understand is looked at, and what is mistyped is left for a node to refuse. Must not
//! know: what the fields mean.

use serde_json::{Map, Value};

use super::filter;

/// Why a read is refused by the mesh itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// 400 `miroir_reserved_field`.
    #[error("the field `_miroir_shard` is reserved and can't be used in `{parameter}`")]
    Reserved {
        /// The parameter that names the field.
        parameter: String,
    },
}

/// What came from the client, for a node that is to refuse it in its own words.
#[derive(Debug, Clone, PartialEq)]
pub enum Original {
    /// The body of a POST.
    Body(Vec<u8>),
    /// The parameters of a GET, decoded.
    Parameters(Vec<(String, String)>),
}

/// A read as it came.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sent {
    /// The fields of the body, or what a body with the same meaning would have.
    pub(super) fields: Map<String, Value>,
    /// What came.
    pub(super) original: Original,
    /// Some of it can't be understood.
    pub(super) invalid: bool,
}

/// A field of the wrong type: the node refuses it better.
pub(super) struct Mistyped;

impl Sent {
    /// Takes a body; `attributes` are the fields that name attributes.
    pub(super) fn from_json(body: &[u8], attributes: &[&str]) -> Result<Self, QueryError> {
        let (fields, invalid) = match serde_json::from_slice::<Value>(body) {
            Ok(Value::Object(fields)) => (fields, false),
            _ => (Map::new(), true),
        };
        check_reserved(&fields, attributes)?;
        Ok(Self { fields, original: Original::Body(body.to_vec()), invalid })
    }

    /// Takes decoded parameters; `take` puts one of them where a body has it.
    pub(super) fn from_pairs<K: AsRef<str>, V: AsRef<str>>(
        pairs: impl IntoIterator<Item = (K, V)>,
        attributes: &[&str],
        take: impl Fn(&mut Map<String, Value>, &str, &str) -> Result<(), Mistyped>,
    ) -> Result<Self, QueryError> {
        let pairs: Vec<_> = pairs.into_iter().map(|(k, v)| (k.as_ref().to_owned(), v.as_ref().to_owned())).collect();
        let mut fields = Map::new();
        let mut invalid = false;
        for (key, value) in &pairs {
            invalid |= take(&mut fields, key, value).is_err();
        }
        check_reserved(&fields, attributes)?;
        Ok(Self { fields, original: Original::Parameters(pairs), invalid })
    }

    pub(super) fn number(&self, key: &str, null: bool) -> Result<Option<usize>, Mistyped> {
        match self.fields.get(key) {
            None => Ok(None),
            Some(Value::Null) if null => Ok(None),
            Some(v) => v.as_u64().and_then(|n| usize::try_from(n).ok()).map(Some).ok_or(Mistyped),
        }
    }

    pub(super) fn flag(&self, key: &str) -> Result<bool, Mistyped> {
        match self.fields.get(key) {
            None => Ok(false),
            Some(v) => v.as_bool().ok_or(Mistyped),
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<String>, Mistyped> {
        match self.fields.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => v.as_str().map(|s| Some(s.to_owned())).ok_or(Mistyped),
        }
    }

    pub(super) fn list(&self, key: &str) -> Result<Option<Vec<String>>, Mistyped> {
        match self.fields.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(items)) => {
                let texts = items.iter().map(|v| v.as_str().map(str::to_owned));
                texts.collect::<Option<_>>().map(Some).ok_or(Mistyped)
            }
            Some(_) => Err(Mistyped),
        }
    }
}

/// The shard field is named neither in the filter nor in a field that names attributes.
fn check_reserved(fields: &Map<String, Value>, attributes: &[&str]) -> Result<(), QueryError> {
    let reserved = |parameter: &str| QueryError::Reserved { parameter: parameter.to_owned() };
    if fields.get("filter").is_some_and(filter::names_shard_field) {
        return Err(reserved("filter"));
    }
    for parameter in attributes {
        let names = |v: &Value| v.as_str().is_some_and(filter::has_shard_word);
        let found = match fields.get(*parameter) {
            Some(Value::Array(items)) => items.iter().any(names),
            Some(v) => names(v),
            None => false,
        };
        if found {
            return Err(reserved(parameter));
        }
    }
    Ok(())
}

/// A comma-separated parameter; as on a node, empty items are left out.
pub(super) fn words(value: &str) -> Vec<&str> {
    value.split(',').filter(|s| !s.is_empty()).collect()
}

/// A parameter that is a number without a sign.
pub(super) fn size(value: &str) -> Result<Value, Mistyped> {
    value.parse::<usize>().map(Value::from).map_err(|_| Mistyped)
}

/// A parameter that is `true` or `false`.
pub(super) fn boolean(value: &str) -> Result<Value, Mistyped> {
    value.parse::<bool>().map(Value::from).map_err(|_| Mistyped)
}

/// A filter may be JSON or a filter's text.
pub(super) fn filter_parameter(value: &str) -> Value {
    serde_json::from_str(value).unwrap_or_else(|_| value.into())
}

/// Splits `sort` at its commas, but not at those inside `_geoPoint(…)`.
pub(super) fn sort_parameter(value: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut open = false;
    for piece in value.trim_matches('"').split(',').map(str::trim) {
        match out.last_mut() {
            Some(last) if open => {
                last.push(',');
                last.push_str(piece);
                open = !(piece.ends_with("):asc") || piece.ends_with("):desc"));
            }
            _ => {
                open = piece.starts_with("_geoPoint(");
                out.push(piece.to_owned());
            }
        }
    }
    out
}
