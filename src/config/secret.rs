//! A text that is never shown: keys of clients, of the operator, of the node.
//!
//! `Debug` and `Display` hide it, so that a struct which holds one can be logged. It can't be deserialized, so no file
//! format reads one by accident. Must not know: what it protects.

use std::fmt;

/// Longest secret that is read, from a file or from the environment.
pub const SECRET_MAX_BYTES: usize = 4 << 10;

/// A secret text: visible ASCII, with spaces only in the value of a header, 1 to 4,096 bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a text as a secret without spaces.
    ///
    /// # Errors
    /// The rule that the text breaks, without the text.
    pub fn new(text: &str) -> Result<Self, &'static str> {
        // It travels in a header, and keys with spaces or controls are broken copies.
        Self::of(text, |b| b.is_ascii_graphic(), "it has characters other than visible ASCII")
    }

    /// Takes the whole value of a header as a secret: words with a space between them, such as `Bearer abc`.
    ///
    /// # Errors
    /// The rule that the text breaks, without the text.
    pub fn header(text: &str) -> Result<Self, &'static str> {
        if text.trim() != text {
            return Err("it begins or ends with a space");
        }
        Self::of(text, |b| b == b' ' || b.is_ascii_graphic(), "it has characters other than visible ASCII and spaces")
    }

    fn of(text: &str, may_have: fn(u8) -> bool, else_is: &'static str) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Err("it is empty");
        }
        if text.len() > SECRET_MAX_BYTES {
            return Err("it is longer than 4096 bytes");
        }
        if !text.bytes().all(may_have) {
            return Err(else_is);
        }
        Ok(Self(text.to_owned()))
    }

    /// The text, for the one place that uses it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether a text that somebody sent is this secret, in a time that does not depend on where they differ.
    pub fn is(&self, sent: &str) -> bool {
        let (a, b) = (self.0.as_bytes(), sent.as_bytes());
        let differing = a.iter().zip(b).fold(0_u8, |acc, (x, y)| acc | (x ^ y));
        // `black_box` keeps the compiler from leaving the loop at the first difference.
        a.len() == b.len() && std::hint::black_box(differing) == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_shown() {
        let s = Secret::new("correct-horse-battery").unwrap();
        assert_eq!(format!("{s} {s:?} {:#?}", Some(&s)).matches("horse").count(), 0);
    }

    #[test]
    fn compares_whole_texts() {
        let s = Secret::new("abc").unwrap();
        assert!(s.is("abc"));
        for other in ["", "ab", "abcd", "abd", "Abc"] {
            assert!(!s.is(other), "{other}");
        }
    }

    #[test]
    fn refuses_what_no_header_can_carry() {
        for bad in ["", "two words", "line\nbreak", "schlüssel", &"x".repeat(SECRET_MAX_BYTES + 1)] {
            assert!(Secret::new(bad).is_err());
        }
        for bad in ["", " Bearer abc", "Bearer abc ", "line\nbreak", "tab\tstop", "schlüssel"] {
            assert!(Secret::header(bad).is_err(), "{bad:?}");
        }
        assert_eq!(Secret::header("Bearer abc").unwrap().expose(), "Bearer abc");
    }
}
