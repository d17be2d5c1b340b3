//! What rows of all files share: numbers as SQLite has them, and a hash of the columns.
//!
//! Rule: a row that carries a hash is read only if it is what was written. Must not know: which rows there are.

use std::hash::Hasher as _;

use rusqlite::types::ValueRef;
use twox_hash::XxHash64;

use super::StoreError;

/// Something that is stored is not what was written.
pub(super) fn malformed(what: &'static str, reason: impl ToString) -> StoreError {
    StoreError::Malformed { what, reason: reason.to_string() }
}

/// A number as a column holds it.
pub(super) fn to_sql(n: u64) -> Result<i64, StoreError> {
    i64::try_from(n).map_err(|_| malformed("counter", format!("{n} is too large")))
}

/// A column's number.
pub(super) fn from_sql(n: i64) -> Result<u64, StoreError> {
    u64::try_from(n).map_err(|_| malformed("counter", format!("{n} is negative")))
}

/// Over columns with their types and lengths.
pub(super) struct Hash(XxHash64);

impl Default for Hash {
    fn default() -> Self {
        Self(XxHash64::with_seed(0))
    }
}

impl Hash {
    pub(super) fn add(&mut self, value: ValueRef<'_>) {
        let mut part = |kind: u8, bytes: &[u8]| {
            self.0.write(&[kind]);
            self.0.write(&(bytes.len() as u64).to_le_bytes());
            self.0.write(bytes);
        };
        match value {
            ValueRef::Null => part(0, &[]),
            ValueRef::Integer(n) => part(1, &n.to_le_bytes()),
            ValueRef::Real(x) => part(2, &x.to_le_bytes()),
            ValueRef::Text(text) => part(3, text),
            ValueRef::Blob(blob) => part(4, blob),
        }
    }

    pub(super) fn value(self) -> i64 {
        self.0.finish().cast_signed()
    }
}
