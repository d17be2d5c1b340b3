//! From a path and an environment to a valid [`Config`], or to all that is wrong.
//!
//! Must not know: what the values are used for.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::Path;

use super::errors::{ConfigError, ConfigErrors, Place};
use super::reader::{File, Reader};
use super::sections::{
    AccessConfig, HttpConfig, IndexConfig, JournalConfig, KEYS, LeaderElectionConfig, LogConfig, MeilisearchConfig,
    MeshConfig, MetricsConfig, NodeConfig, SearchConfig, TasksConfig,
};

const FILE_MAX_BYTES: u64 = 1 << 20;

/// A valid configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// This member.
    pub node: NodeConfig,
    /// The node beside it.
    pub meilisearch: MeilisearchConfig,
    /// The API for clients.
    pub http: HttpConfig,
    /// The other members.
    pub mesh: MeshConfig,
    /// Leases.
    pub leader_election: LeaderElectionConfig,
    /// Journals.
    pub journal: JournalConfig,
    /// Tasks.
    pub tasks: TasksConfig,
    /// Prometheus.
    pub metrics: MetricsConfig,
    /// Keys.
    pub access: AccessConfig,
    /// New indexes.
    pub index: IndexConfig,
    /// Searches.
    pub search: SearchConfig,
    /// Logs.
    pub log: LogConfig,
}

impl Config {
    /// Reads the file (if there is one), puts the environment over it and checks everything.
    ///
    /// Of `env` only names that begin with `MIROIR_` count; [`environment`] gives this process's. Relative paths are
    /// relative to the working directory.
    ///
    /// # Errors
    /// All faults at once.
    pub fn load(path: Option<&Path>, env: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigErrors> {
        let env: BTreeMap<String, String> = env.collect();
        let name = path.map(|p| p.display().to_string()).unwrap_or_default();
        let text = match path.map(|p| read_bounded(p, FILE_MAX_BYTES)).transpose() {
            Ok(text) => text,
            Err(e) => {
                let fault = format!("can't read the config file: {e}");
                return Err(ConfigErrors(vec![ConfigError { place: Place::File(name), fault }]));
            }
        };
        let file = text.as_deref().map(|text| File { name: &name, text });
        Self::read(Reader::new(file.as_ref(), &env, KEYS)?)
    }

    fn read(mut reader: Reader<'_>) -> Result<Self, ConfigErrors> {
        let r = &mut reader;
        let node = NodeConfig::read(r);
        let meilisearch = MeilisearchConfig::read(r);
        let http = HttpConfig::read(r);
        let mesh = MeshConfig::read(r);
        let leader_election = LeaderElectionConfig::read(r);
        let journal = JournalConfig::read(r);
        let tasks = TasksConfig::read(r);
        let metrics = MetricsConfig::read(r);
        let access = AccessConfig::read(r);
        let index = IndexConfig::read(r);
        let search = SearchConfig::read(r);
        let log = LogConfig::read(r);
        let whole = || {
            let (node, meilisearch, http) = (node?, meilisearch?, http?);
            let (mesh, metrics, access) = (mesh?, metrics?, access?);
            let (leader_election, journal, tasks) = (leader_election?, journal?, tasks?);
            let (index, search, log) = (index?, search?, log?);
            Some(Self {
                node,
                meilisearch,
                http,
                mesh,
                leader_election,
                journal,
                tasks,
                metrics,
                access,
                index,
                search,
                log,
            })
        };
        match whole() {
            Some(config) => {
                config.check(&mut reader);
                if reader.is_clean() { Ok(config) } else { Err(reader.into_errors()) }
            }
            None => Err(reader.into_errors()),
        }
    }
}

/// This process's variables that begin with `MIROIR_`. A value that is not UTF-8 gets replacement characters, which no
/// key takes for what was meant.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok().filter(|n| n.starts_with("MIROIR_"))?;
        Some((name, value.to_string_lossy().into_owned()))
    })
}

/// Reads a text file of at most `max_bytes`.
///
/// # Errors
/// What the system says; `FileTooLarge` for a larger one.
pub fn read_bounded(path: &Path, max_bytes: u64) -> io::Result<String> {
    let mut text = String::new();
    let read = std::fs::File::open(path)?.take(max_bytes + 1).read_to_string(&mut text)?;
    if read as u64 > max_bytes {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {max_bytes} bytes")));
    }
    Ok(text)
}
