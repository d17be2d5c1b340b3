//! What the process says about itself: log lines on stderr and Prometheus series.
//!
//! Must not know: sockets (the exposition is served by `app`), what the numbers mean to anybody.

pub mod logs;
pub mod metrics;
mod process;

pub use logs::LogStyle;
pub use metrics::Metrics;
