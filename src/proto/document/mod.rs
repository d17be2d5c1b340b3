//! proto/document/mod.
