//! How many files the process may have open: sockets, above all.
//!
//! Must not know: who opens them.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises this process's own limit of open files to what the system allows it, because service managers often leave it at
/// 1,024; gives the limit that holds now.
pub fn raise_limit() -> usize {
    let found = getrlimit(Resource::Nofile);
    let all = Rlimit { current: found.maximum, maximum: found.maximum };
    let holds = match setrlimit(Resource::Nofile, all) {
        Ok(()) => all,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files could not be raised");
            found
        }
    };
    holds.current.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX))
}
