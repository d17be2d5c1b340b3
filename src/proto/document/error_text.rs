//! x
pub fn error_text() {}
