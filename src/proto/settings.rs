//! proto/settings.
