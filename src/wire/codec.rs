//! The one place that names bincode: every mesh header is encoded and decoded here, each decode with a size limit.
//!
//! bincode is no longer maintained; if it has to be replaced, this file is what changes.

use serde::{Serialize, de::DeserializeOwned};

/// Bytes that are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The bytes do not decode as the wanted type.
    #[error("malformed {what}: {reason}")]
    Malformed {
        /// What was expected.
        what: &'static str,
        /// The decoder's reason.
        reason: String,
    },
    /// Bytes are left over behind a whole value.
    #[error("malformed {what}: {extra} bytes too many")]
    Trailing {
        /// What was expected.
        what: &'static str,
        /// How many bytes are left.
        extra: usize,
    },
    /// Larger than the limit that applies.
    #[error("{what} of {size} bytes is over the limit of {limit}")]
    TooLarge {
        /// What was to be encoded or decoded.
        what: &'static str,
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard()
}

/// Encodes `value`; refuses more than `limit` bytes.
///
/// # Errors
/// [`CodecError::TooLarge`], or `Malformed` for a value that has no encoding.
pub fn encode<T: Serialize>(what: &'static str, value: &T, limit: usize) -> Result<Vec<u8>, CodecError> {
    let bytes = bincode::serde::encode_to_vec(value, config())
        .map_err(|e| CodecError::Malformed { what, reason: e.to_string() })?;
    if bytes.len() > limit {
        return Err(CodecError::TooLarge { what, size: bytes.len(), limit });
    }
    Ok(bytes)
}

/// Decodes exactly one `T` from `bytes`, never allocating more than `LIMIT` bytes on a peer's word.
///
/// # Errors
/// [`CodecError`] naming what is wrong.
pub fn decode<T: DeserializeOwned, const LIMIT: usize>(what: &'static str, bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > LIMIT {
        return Err(CodecError::TooLarge { what, size: bytes.len(), limit: LIMIT });
    }
    let config = bincode::config::standard().with_limit::<LIMIT>();
    let (value, used) = bincode::serde::decode_from_slice(bytes, config)
        .map_err(|e| CodecError::Malformed { what, reason: e.to_string() })?;
    match bytes.len() - used {
        0 => Ok(value),
        extra => Err(CodecError::Trailing { what, extra }),
    }
}
