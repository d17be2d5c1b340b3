//! A text that is never shown: keys of clients, of the operator, of the node.
//!
//! `Debug` and `Display` hide it, so that a struct which holds one can be logged. It can't be deserialized, so no file
//! format reads one by accident. Must not know: what it protects.

use std::fmt;

/// Longest secret that is read, from a file or from the environment.
pub const SECRET_MAX_BYTES: usize = 4 << 10;

/// A secret text: visible ASCII, 1 to 4,096 bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a text as a secret.
    ///
    /// # Errors
    /// The rule that the text breaks, without the text.
    pub fn new(text: impl Into<String>) -> Result<Self, &'static str> {
        let text = text.into();
        if text.is_empty() {
            return Err("it is empty");
        }
        if text.len() > SECRET_MAX_BYTES {
            return Err("it is longer than 4096 bytes");
        }
        // It travels in a header, and keys with spaces or controls are broken copies.
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("it has characters other than visible ASCII");
        }
        Ok(Self(text))
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
    }
}
