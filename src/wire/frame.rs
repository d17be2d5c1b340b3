//! wire/frame.
