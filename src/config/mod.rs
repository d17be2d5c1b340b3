//! Typed configuration: one TOML file, the environment over it, checked wholly before anything is bound.
//!
//! A section is a struct, and each constructor of the other rooms receives its section only. A value of [`Config`] is
//! valid: ranges, relations between keys, and the readability of the files that it names have been checked. Must not
//! know: what the values are used for.

mod check;
mod errors;
mod load;
mod reader;
mod secret;
mod sections;
mod values;

pub use errors::{ConfigError, ConfigErrors, Place};
pub use load::{Config, environment, read_bounded};
pub use secret::{SECRET_MAX_BYTES, Secret};
pub use sections::{
    AccessConfig, HttpConfig, IndexConfig, JournalConfig, KEYS, Key, KeyDefault, LeaderElectionConfig, LogConfig,
    MeilisearchConfig, MeshConfig, MetricsConfig, NodeConfig, SearchConfig, TasksConfig,
};
pub use values::{BootstrapMember, LogFilter, LogFormat, MeshAddress, MeshHost, NodeUrl, UnavailableShardPolicy};
