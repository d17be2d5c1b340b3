//! Query parameters and path parts, refused in Meilisearch's words.

use super::error::ApiError;
use crate::types::{ErrorCode, IndexUid};

/// The decoded parameters of a request; every one is known.
#[derive(Debug)]
pub struct Params(Vec<(String, String)>);

impl Params {
    /// Decodes a query string of which only `known` parameters are allowed.
    ///
    /// # Errors
    /// `bad_request` naming the unknown one.
    pub fn parse(query: Option<&str>, known: &[&str]) -> Result<Self, ApiError> {
        let pairs = decode(query);
        if let Some((name, _)) = pairs.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            let list: Vec<_> = known.iter().map(|k| format!("`{k}`")).collect();
            let message = format!("Unknown parameter `{name}`: expected one of {}", list.join(", "));
            return Err(ApiError::new(ErrorCode::BadRequest, message));
        }
        Ok(Self(pairs))
    }

    /// The value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// A parameter that is a number.
    ///
    /// # Errors
    /// `code` with Meilisearch's text.
    pub fn number(&self, name: &str, default: usize, code: ErrorCode) -> Result<usize, ApiError> {
        let Some(text) = self.get(name) else { return Ok(default) };
        text.parse().map_err(|_| {
            let message =
                format!("Invalid value in parameter `{name}`: could not parse `{text}` as a positive integer");
            ApiError::new(code, message)
        })
    }

    /// A parameter that is `true` or `false`.
    ///
    /// # Errors
    /// `code` with Meilisearch's text.
    pub fn flag(&self, name: &str, code: ErrorCode) -> Result<bool, ApiError> {
        match self.get(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(text) => {
                let message = format!(
                    "Invalid value in parameter `{name}`: could not parse `{text}` as a boolean, expected either `true` or `false`"
                );
                Err(ApiError::new(code, message))
            }
        }
    }
}

/// The decoded pairs of a query string.
pub fn decode(query: Option<&str>) -> Vec<(String, String)> {
    form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect()
}

/// The index that a path names.
///
/// # Errors
/// `invalid_index_uid`.
pub fn index_uid(text: &str) -> Result<IndexUid, ApiError> {
    IndexUid::new(text).map_err(|_| ApiError::new(ErrorCode::InvalidIndexUid, invalid_index_uid(text)))
}

/// Meilisearch's text about a uid that is none.
pub fn invalid_index_uid(text: &str) -> String {
    format!(
        "`{text}` is not a valid index uid. Index uid can be an integer or a string containing only alphanumeric \
         characters, hyphens (-) and underscores (_), and can not be more than 512 bytes."
    )
}
