//! `tracing` on stderr, as text or JSON, with a filter that can be changed while the process runs.
//!
//! stdout is never written to: it belongs to commands. Must not know: which spans and fields others use.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStyle {
    /// For people; coloured on a terminal.
    Text,
    /// One JSON object a line, the event's fields at its top, `spans` with the fields of the spans around it.
    Json,
}

/// Why logs can't be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is malformed.
    #[error("log filter `{filter}` is malformed: {source}")]
    Filter {
        /// The filter as given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The process already has a subscriber.
    #[error("logs are set up already")]
    AlreadySet,
}

/// Sets up the process's logs; once.
///
/// # Errors
/// [`LogError::Filter`], or [`LogError::AlreadySet`] the second time.
pub fn init(style: LogStyle, filter: &str) -> Result<(), LogError> {
    let filter = parse(filter)?;
    // A closed stderr must not end the process: the layer's own complaints would go there, too.
    let lines = fmt::layer().with_writer(io::stderr).log_internal_errors(false);
    let lines = match style {
        LogStyle::Text => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        LogStyle::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(true).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(|_| LogError::AlreadySet)
}

fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::builder().parse(filter).map_err(|source| LogError::Filter { filter: filter.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sound_filter_is_set_once() {
        assert!(matches!(init(LogStyle::Json, "info,,="), Err(LogError::Filter { .. })));
        init(LogStyle::Json, "off").unwrap();
        assert!(!tracing::enabled!(tracing::Level::ERROR));
        assert!(matches!(init(LogStyle::Text, "info"), Err(LogError::AlreadySet)));
    }
}
