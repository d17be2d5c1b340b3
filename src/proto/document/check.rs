//! The checks that skipping over JSON leaves out: nesting, surrogates, numbers out of range.
//!
//! The rule: what passes here can be parsed into a tree by every node, so that no part of a request fails after another
//! was applied. Must not know: documents' meaning.

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::DOCUMENT_DEPTH_MAX;

/// Digits from which on a number without exponent may be out of range for a double.
const LONG_NUMBER: usize = 300;

/// What is wrong with a value that is otherwise valid JSON.
#[derive(Debug)]
pub(super) enum Flaw {
    /// Nested too deeply, at this position.
    TooDeep(usize),
    /// Can't be parsed into a tree.
    Unparsable(serde_json::Error),
}

/// Checks a value whose syntax is known to be valid.
pub(super) fn through_and_through(value: &[u8]) -> Result<(), Flaw> {
    let mut depth = 0_usize;
    let mut suspicious = false;
    let mut i = 0;
    while let Some(byte) = value.get(i) {
        match byte {
            b'"' => {
                let (end, surrogate) = string_end(value, i);
                suspicious |= surrogate;
                i = end;
                continue;
            }
            b'{' | b'[' => {
                depth += 1;
                if depth > DOCUMENT_DEPTH_MAX {
                    return Err(Flaw::TooDeep(i));
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'0'..=b'9' => {
                let rest = &value[i..];
                let is_number = |b: &&u8| matches!(b, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-');
                let len = rest.iter().take_while(is_number).count();
                suspicious |= len > LONG_NUMBER || rest[..len].iter().any(|b| matches!(b, b'e' | b'E'));
                i += len;
                continue;
            }
            _ => {}
        }
        i += 1;
    }
    if suspicious {
        serde_json::from_slice::<Discarded>(value).map_err(Flaw::Unparsable)?;
    }
    Ok(())
}

/// Position behind the string that begins at `at`, and whether an escape in it names a surrogate.
fn string_end(text: &[u8], at: usize) -> (usize, bool) {
    let mut surrogate = false;
    let mut i = at + 1;
    while let Some(found) = text.get(i..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        i += found;
        if text[i] == b'"' {
            return (i + 1, surrogate);
        }
        surrogate |= matches!(text.get(i + 1..i + 3), Some([b'u', b'd' | b'D']));
        i += 2;
    }
    (text.len(), surrogate)
}

/// A value that is parsed in full and thrown away.
struct Discarded;

impl<'de> Deserialize<'de> for Discarded {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Discarded {
    type Value = Self;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any JSON value")
    }
    fn visit_bool<E: Error>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_i64<E: Error>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_u64<E: Error>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_f64<E: Error>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_str<E: Error>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_unit<E: Error>(self) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self, A::Error> {
        while seq.next_element::<Self>()?.is_some() {}
        Ok(self)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        while map.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_a_node_stumbles_over_later() {
        for bad in [r#""\ud800""#, r#"{"\uDC00":1}"#, r#"["\ud800\u0041"]"#, "1e999", "[-1E+400]"] {
            assert!(matches!(through_and_through(bad.as_bytes()), Err(Flaw::Unparsable(_))), "{bad}");
        }
        assert!(through_and_through("9".repeat(400).as_bytes()).is_err());
        for good in [r#""\ud83d\ude00""#, "1e300", "123456789012345678901234567890", r#"{"true":[false,"\\ud800"]}"#] {
            assert!(through_and_through(good.as_bytes()).is_ok(), "{good}");
        }
    }

    #[test]
    fn nesting_is_bounded_and_brackets_in_strings_do_not_nest() {
        let nested = |n: usize| format!("{}1{}", "[".repeat(n), "]".repeat(n));
        assert!(through_and_through(nested(DOCUMENT_DEPTH_MAX).as_bytes()).is_ok());
        let deep = nested(DOCUMENT_DEPTH_MAX + 1);
        assert!(matches!(through_and_through(deep.as_bytes()), Err(Flaw::TooDeep(DOCUMENT_DEPTH_MAX))));
        assert!(through_and_through(format!("[\"{}\"]", "[".repeat(1000)).as_bytes()).is_ok());
    }
}
