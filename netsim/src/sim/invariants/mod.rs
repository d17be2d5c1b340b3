//! What must hold in every run, one file a property.
//!
//! | property | file | source |
//! | --- | --- | --- |
//! | each key is one register | `history` | linearizability |
//! | epochs of leases | `leases` | design §7 |
//! | phases, and what flips make of aliases | `operations` | design §8 |
//! | what is inside a member (promises, copies, phases) | `miroir::proto::invariant` | shared with the model and the binary |

mod history;
mod leases;
mod operations;

pub use history::History;
pub use leases::Leases;
pub use operations::Steps;

/// A property that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
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

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name, self.what)
    }
}
