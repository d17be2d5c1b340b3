//! Finds the parts of a JSON text by its bytes, without building trees: members of an object, elements of an array.
//!
//! The scanner checks structure (brackets, strings, separators, depth) and leaves the inside of scalars unchecked; a text
//! that must be valid through and through is checked by serde first. Must not know: what the text means.

use crate::types::limits::JSON_DEPTH_MAX;

/// Why a text can't be taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// The byte at this position can't stand there, or the text ends too early.
    #[error("unexpected byte at {0}")]
    Unexpected(usize),
    /// Nested deeper than [`JSON_DEPTH_MAX`].
    #[error("nested deeper than {JSON_DEPTH_MAX} levels at {0}")]
    TooDeep(usize),
}

/// One member of an object: where key and value lie in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member<'a> {
    /// The key between its quotes, escapes left as they are.
    pub raw_key: &'a [u8],
    /// Position of the key's opening quote.
    pub start: usize,
    /// The value's bytes, without white space around it.
    pub value: &'a [u8],
    /// Position of the value's first byte.
    pub value_start: usize,
    /// Position just behind the value.
    pub end: usize,
}

/// The key of a member whose value has not been looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key<'a> {
    /// The key between its quotes, escapes left as they are.
    pub raw_key: &'a [u8],
    /// Position of the key's opening quote.
    pub start: usize,
    /// Position of the value's first byte.
    pub value_start: usize,
}

impl Member<'_> {
    /// Whether the key, unescaped, is `name`.
    pub fn is(&self, name: &str) -> bool {
        if !self.raw_key.contains(&b'\\') {
            return self.raw_key == name.as_bytes();
        }
        self.key().is_some_and(|k| k == name)
    }

    /// The key, unescaped; `None` if its escapes are not valid.
    pub fn key(&self) -> Option<String> {
        let mut quoted = Vec::with_capacity(self.raw_key.len() + 2);
        quoted.push(b'"');
        quoted.extend_from_slice(self.raw_key);
        quoted.push(b'"');
        serde_json::from_slice(&quoted).ok()
    }
}

/// Position of the first byte from `at` on that is not white space.
pub fn skip_space(text: &[u8], mut at: usize) -> usize {
    while matches!(text.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
        at += 1;
    }
    at
}

/// The high bit of each byte of `word` that is zero; bits above the lowest one set may be wrong.
const fn zero_bytes(word: u64) -> u64 {
    word.wrapping_sub(u64::from_ne_bytes([0x01; 8])) & !word & u64::from_ne_bytes([0x80; 8])
}

/// Strings up to this length are looked through here, longer ones by `memchr`, whose call costs as much as a short string.
const SHORT: usize = 48;

/// Position of the first quote or backslash from `at` on.
fn quote_or_backslash(text: &[u8], at: usize) -> Option<usize> {
    let mut i = at;
    while i < at + SHORT {
        let Some(eight) = text.get(i..).and_then(|rest| rest.first_chunk::<8>()) else { break };
        let word = u64::from_le_bytes(*eight);
        let found =
            zero_bytes(word ^ u64::from_ne_bytes([b'"'; 8])) | zero_bytes(word ^ u64::from_ne_bytes([b'\\'; 8]));
        if found != 0 {
            return Some(i + found.trailing_zeros() as usize / 8);
        }
        i += 8;
    }
    memchr::memchr2(b'"', b'\\', text.get(i..)?).map(|found| i + found)
}

/// Position behind the string that begins with the quote at `at`.
fn skip_string(text: &[u8], at: usize) -> Result<usize, ScanError> {
    let mut i = at + 1;
    while let Some(found) = quote_or_backslash(text, i) {
        if text[found] == b'"' {
            return Ok(found + 1);
        }
        i = found + 2;
    }
    Err(ScanError::Unexpected(text.len()))
}

/// Position behind the value that begins at `at` (its first byte, no white space).
///
/// # Errors
/// [`ScanError`] where the structure ends or breaks.
pub fn skip_value(text: &[u8], at: usize) -> Result<usize, ScanError> {
    match text.get(at) {
        Some(b'"') => skip_string(text, at),
        Some(b'{' | b'[') => skip_nested(text, at),
        Some(b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => {
            let rest = &text[at..];
            let len = rest
                .iter()
                .position(|b| {
                    matches!(b, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r' | b'"' | b'{' | b'[' | b':')
                })
                .unwrap_or(rest.len());
            Ok(at + len)
        }
        _ => Err(ScanError::Unexpected(at)),
    }
}

/// Skips an object or array by its brackets; their kinds must match.
fn skip_nested(text: &[u8], at: usize) -> Result<usize, ScanError> {
    // One bit a level: 1 for an object.
    let mut kinds: u128 = 0;
    let mut depth = 0;
    let mut i = at;
    while let Some(byte) = text.get(i) {
        match byte {
            b'"' => {
                i = skip_string(text, i)?;
                continue;
            }
            b'{' | b'[' => {
                if depth == JSON_DEPTH_MAX {
                    return Err(ScanError::TooDeep(i));
                }
                kinds = (kinds << 1) | u128::from(*byte == b'{');
                depth += 1;
            }
            b'}' | b']' => {
                if (kinds & 1 == 1) != (*byte == b'}') {
                    return Err(ScanError::Unexpected(i));
                }
                kinds >>= 1;
                depth -= 1;
                if depth == 0 {
                    return Ok(i + 1);
                }
            }
            _ => {}
        }
        i += 1;
    }
    Err(ScanError::Unexpected(text.len()))
}

const _: () = assert!(JSON_DEPTH_MAX <= 128, "the kinds of all levels fit a u128");

/// The members of an object, one after the other. Ends after the closing brace; [`Members::end`] is then its position.
#[derive(Debug)]
pub struct Members<'a> {
    text: &'a [u8],
    at: usize,
    state: State,
}

/// The elements of an array, one after the other, as `(position, bytes)`.
#[derive(Debug)]
pub struct Elements<'a> {
    text: &'a [u8],
    at: usize,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    First,
    Next,
    Done,
}

/// Walks the object whose `{` is the first byte from `at` on that is not white space.
///
/// # Errors
/// [`ScanError::Unexpected`] if there is no object.
pub fn members(text: &[u8], at: usize) -> Result<Members<'_>, ScanError> {
    let at = skip_space(text, at);
    if text.get(at) != Some(&b'{') {
        return Err(ScanError::Unexpected(at));
    }
    Ok(Members { text, at: at + 1, state: State::First })
}

/// Walks the array whose `[` is the first byte from `at` on that is not white space.
///
/// # Errors
/// [`ScanError::Unexpected`] if there is no array.
pub fn elements(text: &[u8], at: usize) -> Result<Elements<'_>, ScanError> {
    let at = skip_space(text, at);
    if text.get(at) != Some(&b'[') {
        return Err(ScanError::Unexpected(at));
    }
    Ok(Elements { text, at: at + 1, state: State::First })
}

/// Moves to the next item: `Ok(Some(position))`, or `Ok(None)` behind the closing bracket.
fn advance(text: &[u8], at: &mut usize, state: &mut State, close: u8) -> Result<Option<usize>, ScanError> {
    *at = skip_space(text, *at);
    match (text.get(*at), *state) {
        (_, State::Done) => Ok(None),
        (Some(b), _) if *b == close => {
            *at += 1;
            *state = State::Done;
            Ok(None)
        }
        (Some(b','), State::Next) => {
            *at = skip_space(text, *at + 1);
            Ok(Some(*at))
        }
        (Some(_), State::First) => {
            *state = State::Next;
            Ok(Some(*at))
        }
        _ => Err(ScanError::Unexpected(*at)),
    }
}

impl<'a> Members<'a> {
    /// Position behind the closing brace, once the walk has ended.
    pub fn end(&self) -> Option<usize> {
        (self.state == State::Done).then_some(self.at)
    }

    /// The next member's key alone. Whoever looks at the value tells its end to [`Members::resume`]; without that the walk
    /// can't go on.
    ///
    /// # Errors
    /// [`ScanError`] where the object breaks.
    pub fn next_key(&mut self) -> Result<Option<Key<'a>>, ScanError> {
        let Some(start) = advance(self.text, &mut self.at, &mut self.state, b'}')? else { return Ok(None) };
        if self.text.get(start) != Some(&b'"') {
            return Err(ScanError::Unexpected(start));
        }
        let key_end = skip_string(self.text, start)?;
        let colon = skip_space(self.text, key_end);
        if self.text.get(colon) != Some(&b':') {
            return Err(ScanError::Unexpected(colon));
        }
        let value_start = skip_space(self.text, colon + 1);
        self.at = value_start;
        Ok(Some(Key { raw_key: &self.text[start + 1..key_end - 1], start, value_start }))
    }

    /// Goes on behind the value that ends at `end`.
    pub fn resume(&mut self, end: usize) {
        self.at = end;
    }

    fn step(&mut self) -> Result<Option<Member<'a>>, ScanError> {
        let Some(Key { raw_key, start, value_start }) = self.next_key()? else { return Ok(None) };
        let end = skip_value(self.text, value_start)?;
        self.resume(end);
        Ok(Some(Member { raw_key, start, value: &self.text[value_start..end], value_start, end }))
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = Result<Member<'a>, ScanError>;
    fn next(&mut self) -> Option<Self::Item> {
        let item = self.step();
        if item.is_err() {
            self.state = State::Done;
        }
        item.transpose()
    }
}

impl Elements<'_> {
    /// Position behind the closing bracket, once the walk has ended.
    pub fn end(&self) -> Option<usize> {
        (self.state == State::Done).then_some(self.at)
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<(usize, &'a [u8]), ScanError>;
    fn next(&mut self) -> Option<Self::Item> {
        let item = advance(self.text, &mut self.at, &mut self.state, b']').and_then(|start| {
            let Some(start) = start else { return Ok(None) };
            let end = skip_value(self.text, start)?;
            self.at = end;
            Ok(Some((start, &self.text[start..end])))
        });
        if item.is_err() {
            self.state = State::Done;
        }
        item.transpose()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            // Quarters: serde_json reads other fractions to the last bit only with a feature of its own.
            any::<i32>().prop_map(|q| Value::from(f64::from(q) / 4.0)),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 64, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((".*", inner), 0..6).prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn finds_what_serde_finds(value in any_json(), pretty in any::<bool>()) {
            let text = if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) }.unwrap();
            prop_assert_eq!(skip_value(&text, 0), Ok(text.len()));
            if let Value::Object(map) = &value {
                let found: Vec<_> = members(&text, 0).unwrap().map(|m| m.unwrap()).collect();
                prop_assert_eq!(found.len(), map.len());
                for (m, (k, v)) in found.iter().zip(map) {
                    prop_assert!(m.is(k));
                    prop_assert_eq!(&text[m.value_start..m.end], m.value);
                    prop_assert_eq!(&serde_json::from_slice::<Value>(m.value).unwrap(), v);
                }
            }
            if let Value::Array(list) = &value {
                let found: Vec<_> = elements(&text, 0).unwrap().map(|e| e.unwrap()).collect();
                prop_assert_eq!(found.len(), list.len());
                for ((_, e), v) in found.iter().zip(list) {
                    prop_assert_eq!(&serde_json::from_slice::<Value>(e).unwrap(), v);
                }
            }
        }

        #[test]
        fn garbage_neither_panics_nor_hangs(text in prop::collection::vec(prop::sample::select(b"{}[]\",:\\ a1-tn".to_vec()), 0..60)) {
            if let Ok(m) = members(&text, 0) { let _ = m.count(); }
            if let Ok(e) = elements(&text, 0) { let _ = e.count(); }
            let _ = skip_value(&text, 0);
        }
    }

    #[test]
    fn strings_of_any_length_end_at_their_quote() {
        for length in 0..150 {
            for special in ["", "\\\"", "\\\\", "é"] {
                for at in 0..=length {
                    let text = format!("\"{}{special}{}\",1", "x".repeat(at), "\u{1}".repeat(length - at));
                    assert_eq!(skip_value(text.as_bytes(), 0), Ok(text.len() - 2), "{text}");
                }
            }
        }
        assert!(skip_value(b"\"open", 0).is_err());
        assert!(skip_value(b"\"open\\", 0).is_err());
    }

    #[test]
    fn depth_is_bounded() {
        let deep = |n: usize| [vec![b'['; n], vec![b']'; n]].concat();
        assert!(skip_value(&deep(JSON_DEPTH_MAX), 0).is_ok());
        assert_eq!(skip_value(&deep(JSON_DEPTH_MAX + 1), 0), Err(ScanError::TooDeep(JSON_DEPTH_MAX)));
    }

    #[test]
    fn escaped_key_is_recognised() {
        let text = br#"{"\u005fmiroir_shard": 1}"#;
        assert!(members(text, 0).unwrap().next().unwrap().unwrap().is("_miroir_shard"));
        assert_eq!(serde_json::from_slice::<Value>(text).unwrap(), json!({"_miroir_shard": 1}));
    }

    #[test]
    fn wrong_brackets_are_refused() {
        for bad in ["{]", "[}", "[1 2]", "{\"a\" 1}", "{\"a\":}", "[,]", "{,}", "[1,,2]", "{\"a\":1,}"] {
            let text = bad.as_bytes();
            let ok = if bad.starts_with('{') {
                members(text, 0).unwrap().all(|m| m.is_ok())
            } else {
                elements(text, 0).unwrap().all(|e| e.is_ok())
            };
            assert!(!ok, "{bad}");
        }
    }
}
