//! What a node accepts as the vectors that a document brings along: `_vectors`.
//!
//! The form is looked at whichever embedders there are; numbers only for embedders of the index. The rule: the same
//! verdict and the same words as a node's, which shows what its JSON parser says: the parser is the same here, and
//! driven alike. Must not know: settings, other fields.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::error::{SHOWN_MAX_BYTES, cut, shown};
use super::special::{Flaw, Stage};
use crate::proto::json;
use crate::types::ErrorCode;

/// Of so many flawed values of one document it is seen that a later one of the same name counts instead.
const FLAWED_MAX: usize = 64;

/// What is wrong with the `_vectors` of the document with this id.
pub(super) fn flaw(id: &str, raw: &[u8], embedders: &BTreeMap<String, Option<usize>>) -> Option<Flaw> {
    let Ok(members) = json::members(raw, 0) else {
        return Some(Flaw { stage: Stage::Form, code: ErrorCode::Internal, message: no_map(raw) });
    };
    let mut own: BTreeMap<&str, Vectors<'_>> = BTreeMap::new();
    let mut flawed: BTreeMap<Cow<'_, str>, (usize, Problem)> = BTreeMap::new();
    for (at, member) in members.flatten().enumerate() {
        let name = match str::from_utf8(member.raw_key) {
            Ok(name) if !name.contains('\\') => Cow::Borrowed(name),
            _ => Cow::Owned(member.key().unwrap_or_default()),
        };
        let entry = embedders.get_key_value(&*name);
        match vectors(&name, member.value) {
            Ok(found) => {
                flawed.remove(&name);
                if let Some((name, _)) = entry {
                    own.insert(name, found);
                }
            }
            Err(problem) => {
                flawed.insert(name, (at, problem));
                if flawed.len() > FLAWED_MAX {
                    break;
                }
            }
        }
    }
    let (stage, problem) = match flawed.into_values().min_by_key(|(at, _)| *at) {
        Some((_, problem)) => (Stage::Form, Some(problem)),
        None => {
            let wrong = |(name, vectors): (&str, Vectors<'_>)| {
                let wanted = embedders.get(name).copied().flatten();
                vectors.check(id, name, wanted).err()
            };
            (Stage::Embeddings, own.into_iter().find_map(wrong))
        }
    };
    problem.map(|problem| match problem {
        Problem::Form(why) => {
            let message = format!("Bad embedder configuration in the document with id: `{id}`. {}", cut(&why));
            Flaw { stage, code: ErrorCode::InvalidVectorsType, message }
        }
        Problem::Length(message) => Flaw { stage, code: ErrorCode::InvalidVectorDimensions, message },
    })
}

/// Why vectors can't be taken.
enum Problem {
    /// They are not what they should be.
    Form(String),
    /// They are too short or too long.
    Length(String),
}

/// What the parser says of a value that is no object.
fn no_map(raw: &[u8]) -> String {
    struct Map;
    impl<'de> Visitor<'de> for Map {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(())
        }
    }
    // The parser repeats a text, and more than once.
    if raw.len() > SHOWN_MAX_BYTES && raw.first() == Some(&b'"') {
        return format!("invalid type: string {}, expected a map", shown(raw));
    }
    let said = serde_json::Deserializer::from_slice(raw).deserialize_map(Map);
    cut(&said.err().map_or_else(|| "expected a map".to_owned(), |e| e.to_string()))
}

/// The vectors of one embedder, not looked at yet.
#[derive(Debug, Default)]
struct Vectors<'a> {
    raw: Option<&'a [u8]>,
    /// They stand in an object, beside `regenerate`.
    explicit: bool,
}

/// Takes the value of one embedder apart.
fn vectors<'a>(name: &str, raw: &'a [u8]) -> Result<Vectors<'a>, Problem> {
    match raw.first() {
        Some(b'n') => return Ok(Vectors::default()),
        Some(b'[') => return Ok(Vectors { raw: Some(raw), explicit: false }),
        _ => {}
    }
    if raw.len() > SHOWN_MAX_BYTES
        && let Some(long) = long_part(raw)
    {
        return Err(Problem::Form(format!("Could not parse `._vectors.{name}`: unexpected `{}`", shown(long))));
    }
    let parsed = serde_json::Deserializer::from_slice(raw).deserialize_any(OfEmbedder { name });
    match parsed {
        Ok(Ok(embeddings)) => Ok(Vectors { raw: embeddings.map(|raw| raw.get().as_bytes()), explicit: true }),
        Ok(Err(why)) => Err(Problem::Form(why)),
        Err(why) => Err(Problem::Form(format!("Could not parse `._vectors.{name}`: {why}"))),
    }
}

/// A name or a value, other than of `embeddings`, that is too long to be right, and that the parser would repeat.
fn long_part(raw: &[u8]) -> Option<&[u8]> {
    let mut members = json::members(raw, 0).into_iter().flatten().flatten();
    members.find_map(|member| {
        let long = |part: &&[u8]| part.len() > SHOWN_MAX_BYTES;
        Some(member.raw_key).filter(long).or(Some(member.value).filter(long).filter(|_| !member.is("embeddings")))
    })
}

/// Reads a value of `_vectors` that is neither null nor an array. What is found wrong on the way ends it, and if the
/// parser can't go on from there, that is what is told.
struct OfEmbedder<'n> {
    name: &'n str,
}

impl OfEmbedder<'_> {
    fn wrong<T>(&self, kind: &str, value: impl fmt::Display) -> Result<T, String> {
        Err(format!(
            "Expected `._vectors.{}` to be an array of floats, an array of arrays of floats, or an object with at \
             least the field `regenerate`, but got the {kind} `{value}`",
            self.name
        ))
    }
}

impl<'de> Visitor<'de> for OfEmbedder<'_> {
    type Value = Result<Option<&'de RawValue>, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the vectors of an embedder")
    }
    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(self.wrong("boolean", value))
    }
    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        Ok(self.wrong("integer", value))
    }
    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        Ok(self.wrong("integer", value))
    }
    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        Ok(self.wrong("number", value))
    }
    fn visit_str<E: Error>(self, value: &str) -> Result<Self::Value, E> {
        Ok(self.wrong("string", cut(value)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let name = self.name;
        let (mut said, mut embeddings) = (false, None);
        loop {
            match map.next_key::<&str>() {
                Ok(None) => break,
                Ok(Some("regenerate")) => match map.next_value::<bool>() {
                    Ok(_) => said = true,
                    Err(e) => return Ok(Err(format!("Could not parse `._vectors.{name}.regenerate`: {e}"))),
                },
                Ok(Some("embeddings")) => match map.next_value::<&RawValue>() {
                    Ok(null) if null.get() == "null" => {}
                    Ok(raw) => embeddings = Some(raw),
                    Err(e) => return Ok(Err(format!("Could not parse `._vectors.{name}.embeddings`: {e}"))),
                },
                Ok(Some(other)) => {
                    let other = cut(other);
                    return Ok(Err(format!(
                        "Unexpected field `._vectors.{name}.{other}`\n  - note: the allowed fields are `regenerate` \
                         and `embeddings`"
                    )));
                }
                Err(e) => return Ok(Err(format!("Could not parse a field at `._vectors.{name}`: {e}"))),
            }
        }
        if said {
            return Ok(Ok(embeddings));
        }
        Ok(Err(format!(
            "Missing field `._vectors.{name}.regenerate`\n  - note: `._vectors.{name}` must be an array of floats, an \
             array of arrays of floats, or an object with field `regenerate`"
        )))
    }
}

impl Vectors<'_> {
    /// Checks the numbers, and how many there are in each vector.
    fn check(&self, id: &str, name: &str, wanted: Option<usize>) -> Result<(), Problem> {
        let Some(raw) = self.raw else { return Ok(()) };
        let place = if self.explicit { format!("._vectors.{name}.embeddings") } else { format!("._vectors.{name}") };
        let wrong = |place: &str, expected: &str, raw: &[u8]| {
            let found = kind(raw);
            Problem::Form(format!("Invalid value type at `{place}`: expected {expected}, but found {found}"))
        };
        let Ok(items) = json::elements(raw, 0) else { return Err(wrong(&place, "null or an array", raw)) };
        let mut lengths = Lengths { wanted, ..Lengths::default() };
        let mut one = None;
        for (at, (_, item)) in items.flatten().enumerate() {
            let here = || format!("{place}[{at}]");
            let one = *one.get_or_insert(is_number(item));
            match (one, item.first()) {
                (true, _) if is_number(item) => lengths.numbers += 1,
                (true, _) => return Err(wrong(&here(), "a number", item)),
                (false, Some(b'[')) => {
                    for (inner, (_, number)) in json::elements(item, 0).into_iter().flatten().flatten().enumerate() {
                        if !is_number(number) {
                            return Err(wrong(&format!("{}[{inner}]", here()), "a number", number));
                        }
                        lengths.numbers += 1;
                    }
                    lengths.end(at);
                }
                (false, _) if at == 0 => return Err(wrong(&here(), "a number or an array", item)),
                (false, _) => return Err(wrong(&here(), "an array", item)),
            }
        }
        if one == Some(true) {
            lengths.end(0);
        }
        match (lengths.other, wanted) {
            (Some((at, found)), Some(wanted)) => Err(Problem::Length(format!(
                "Invalid vector dimensions in document with id `{id}` in `._vectors.{name}`.\n  - note: embedding \
                 #{at} has dimensions {found}\n  - note: embedder `{name}` requires {wanted}"
            ))),
            _ => Ok(()),
        }
    }
}

/// Counts the numbers of each vector, and keeps the first count that is not the wanted one.
#[derive(Default)]
struct Lengths {
    wanted: Option<usize>,
    numbers: usize,
    other: Option<(usize, usize)>,
}

impl Lengths {
    fn end(&mut self, at: usize) {
        let numbers = std::mem::take(&mut self.numbers);
        if self.wanted.is_some_and(|wanted| wanted != numbers) {
            self.other.get_or_insert((at, numbers));
        }
    }
}

fn is_number(raw: &[u8]) -> bool {
    matches!(raw.first(), Some(b'-' | b'0'..=b'9'))
}

/// A value with its kind before it, as a node's messages name it.
fn kind(raw: &[u8]) -> String {
    let kind = match raw.first() {
        Some(b'n') => return "null".to_owned(),
        Some(b't' | b'f') => "a boolean",
        Some(b'"') => "a string",
        Some(b'[') => "an array",
        Some(b'{') => "an object",
        _ if raw.len() > SHOWN_MAX_BYTES => "a number",
        _ => match serde_json::from_slice(raw) {
            Ok(Value::Number(n)) if n.is_u64() => "a positive integer",
            Ok(Value::Number(n)) if n.is_i64() => "a negative integer",
            _ => "a number",
        },
    };
    format!("{kind}: `{}`", shown(raw))
}
