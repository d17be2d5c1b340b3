//! Takes the reserved field out of what nodes answer.
//!
//! The rule: a client never sees the field; every other byte stays, in its order. Must not know: what else an answer holds.

use std::borrow::Cow;
use std::ops::Range;

use memchr::memmem;

use crate::proto::json::{self, ScanError};
use crate::types::SHARD_FIELD;

/// How a document that was split by us begins, up to the letter.
const OPENING: &[u8] = br#"{"_miroir_shard":""#;

/// The object without the reserved field, which is also taken out of `_formatted` and `_matchesPosition`.
///
/// # Errors
/// [`ScanError`] if the text, as far as it has to be looked at, is no JSON object; a node's answers always are.
pub fn strip_shard(object: &[u8]) -> Result<Cow<'_, [u8]>, ScanError> {
    if !may_name_field(object) {
        return Ok(Cow::Borrowed(object));
    }
    let mut out = Vec::with_capacity(object.len());
    strip_shard_into(object, &mut out)?;
    Ok(Cow::Owned(out))
}

/// As [`strip_shard`], appending to `out`; nothing is appended on an error.
///
/// # Errors
/// As [`strip_shard`].
pub fn strip_shard_into(object: &[u8], out: &mut Vec<u8>) -> Result<(), ScanError> {
    if let Some(rest) = behind_opening(object) {
        // The field is named once, at the beginning.
        if !may_name_field(rest) {
            out.push(b'{');
            out.extend_from_slice(rest);
            return Ok(());
        }
    } else if !may_name_field(object) {
        out.extend_from_slice(object);
        return Ok(());
    }
    let mut cuts = Vec::new();
    find_cuts(object, 0, true, &mut cuts)?;
    let mut at = 0;
    for cut in cuts {
        out.extend_from_slice(&object[at..cut.start]);
        at = cut.end;
    }
    out.extend_from_slice(&object[at..]);
    Ok(())
}

/// Whether the reserved field can be in the text at all: spelled as it is, or with escapes of the form `\u`.
fn may_name_field(text: &[u8]) -> bool {
    memmem::find(text, SHARD_FIELD.as_bytes()).is_some() || memmem::find(text, b"\\u").is_some()
}

/// What follows the reserved field if it is the first member, written as we and nodes write it.
fn behind_opening(object: &[u8]) -> Option<&[u8]> {
    let rest = object.strip_prefix(OPENING)?;
    let close = memchr::memchr(b'"', rest.get(..5)?)?;
    if rest[..close].contains(&b'\\') {
        return None;
    }
    match rest.get(close + 1)? {
        b',' => Some(&rest[close + 2..]),
        b'}' => Some(&rest[close + 1..]),
        _ => None,
    }
}

/// Notes what to leave out of the object at `at`: members with the comma that goes with them, in ascending order.
fn find_cuts(text: &[u8], at: usize, outermost: bool, cuts: &mut Vec<Range<usize>>) -> Result<(), ScanError> {
    // Where the cut begins that waits for the next member to be kept; only before the first kept member.
    let mut open = None;
    let mut last_end = at;
    let mut kept = false;
    for member in json::members(text, at)? {
        let member = member?;
        if member.is(SHARD_FIELD) {
            if kept {
                cuts.push(last_end..member.end);
                // Nodes list the field behind the primary key, and that is all of it.
                if outermost && !may_name_field(&text[member.end..]) {
                    return Ok(());
                }
            } else if open.is_none() {
                open = Some(member.start);
            }
            last_end = member.end;
            continue;
        }
        if let Some(start) = open.take() {
            cuts.push(start..member.start);
        }
        kept = true;
        last_end = member.end;
        let nested = outermost && (member.is("_formatted") || member.is("_matchesPosition"));
        if nested && member.value.first() == Some(&b'{') {
            find_cuts(text, member.value_start, false, cuts)?;
        }
    }
    if let Some(start) = open {
        cuts.push(start..last_end);
    }
    Ok(())
}
