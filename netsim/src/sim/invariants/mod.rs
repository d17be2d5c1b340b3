//! What must hold in every run, one file a property.
//!
//! | property | file | source |
//! | --- | --- | --- |
//! | each key is one register | `history` | linearizability |
//! | one holder of a scope | `holders` | design of the leases |
//! | what is inside a member (promises, copies, phases) | `miroir::proto::invariant` | shared with the model and the binary |

mod history;
mod holders;

pub use history::History;
pub use holders::Holders;

/// A property that did not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {what}")]
pub struct Broken {
    /// The property's name.
    pub name: &'static str,
    /// What was seen instead.
    pub what: String,
}

impl Broken {
    /// A property that did not hold, and what was seen.
    pub fn new(name: &'static str, what: impl Into<String>) -> Self {
        Self { name, what: what.into() }
    }
}
