//! What a mesh is to be, checked before anything is started.
//!
//! Must not know: how it is started.

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};

/// What serves as the node beside each sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeChoice {
    /// This Meilisearch executable.
    Meilisearch(PathBuf),
    /// netsim's stand-in.
    Builtin,
}

impl NodeChoice {
    /// The choice that `--node` names; without one, a Meilisearch if there is one.
    pub fn of(given: Option<&str>) -> anyhow::Result<Self> {
        match given {
            Some("builtin") => Ok(Self::Builtin),
            Some(path) => match executable(Path::new(path)) {
                true => Ok(Self::Meilisearch(std::path::absolute(path)?)),
                false => bail!("--node: {path} is no executable file (expected a path or `builtin`)"),
            },
            None => match std::env::var_os("MEILISEARCH_BIN").filter(|v| !v.is_empty()) {
                Some(path) if executable(Path::new(&path)) => Ok(Self::Meilisearch(std::path::absolute(path)?)),
                Some(path) => bail!("MEILISEARCH_BIN: {} is no executable file", path.display()),
                None => {
                    let path = std::env::var_os("PATH").unwrap_or_default();
                    let found = std::env::split_paths(&path).map(|dir| dir.join("meilisearch")).find(|p| executable(p));
                    Ok(found.map_or(Self::Builtin, Self::Meilisearch))
                }
            },
        }
    }

    /// For people.
    pub fn describe(&self) -> String {
        match self {
            Self::Meilisearch(path) => format!("Meilisearch ({})", path.display()),
            Self::Builtin => "the built-in stand-in for Meilisearch (for trials only)".to_owned(),
        }
    }
}

fn executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// A mesh to start.
#[derive(Debug, Clone)]
pub struct MeshOptions {
    /// Members in all.
    pub members: u16,
    /// Replica groups; member *i* is in group `(i − 1) mod groups`.
    pub groups: u16,
    /// Copies of each shard inside one group.
    pub rf: u8,
    /// Shards of new indexes.
    pub shards: u16,
    /// Member *i* serves HTTP on this port + 10 · (i − 1); `None`: on free ports.
    pub http_port: Option<u16>,
    /// The key that clients send; `None`: the mesh is open.
    pub master_key: Option<String>,
    /// The nodes.
    pub node: NodeChoice,
    /// Further sections for each member's config, TOML.
    pub more_config: String,
}

impl MeshOptions {
    /// Refuses what can't be started, naming the flag.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!((1..=64).contains(&self.members), "--members: expected 1 to 64, found {}", self.members);
        ensure!(
            (1..=self.members).contains(&self.groups),
            "--groups: expected 1 to --members = {}, found {}",
            self.members,
            self.groups
        );
        // Groups differ by one member at most; the last one is a smallest.
        let smallest = self.members / self.groups;
        ensure!(
            (1..=smallest).contains(&u16::from(self.rf)),
            "--rf: expected 1 to {smallest}, the members of the smallest group, found {}",
            self.rf
        );
        ensure!((1..=1024).contains(&self.shards), "--shards: expected 1 to 1024, found {}", self.shards);
        ensure!(
            self.http_port.is_none_or(|p| p > 0 && u32::from(p) + 10 * u32::from(self.members - 1) <= 65_535),
            "--http-port: the ports of all members must lie between 1 and 65535"
        );
        if let Some(key) = &self.master_key {
            ensure!(
                key.len() >= 16 && key.bytes().all(|b| b.is_ascii_graphic()),
                "--master-key: expected at least 16 bytes of visible ASCII"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> MeshOptions {
        MeshOptions {
            members: 3,
            groups: 1,
            rf: 1,
            shards: 64,
            http_port: Some(7780),
            master_key: None,
            node: NodeChoice::Builtin,
            more_config: String::new(),
        }
    }

    #[test]
    fn what_can_not_be_started_is_refused_by_the_name_of_its_flag() {
        sound().check().unwrap();
        for (options, flag) in [
            (MeshOptions { members: 0, ..sound() }, "--members"),
            (MeshOptions { groups: 4, ..sound() }, "--groups"),
            (MeshOptions { groups: 0, ..sound() }, "--groups"),
            (MeshOptions { groups: 2, rf: 2, ..sound() }, "--rf"),
            (MeshOptions { rf: 0, ..sound() }, "--rf"),
            (MeshOptions { shards: 1025, ..sound() }, "--shards"),
            (MeshOptions { http_port: Some(65_530), ..sound() }, "--http-port"),
            (MeshOptions { http_port: Some(0), ..sound() }, "--http-port"),
            (MeshOptions { master_key: Some("short".into()), ..sound() }, "--master-key"),
        ] {
            let error = options.check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{flag}: ")), "{error}");
        }
    }

    #[test]
    fn a_node_that_is_no_executable_is_refused() {
        assert_eq!(NodeChoice::of(Some("builtin")).unwrap(), NodeChoice::Builtin);
        assert!(NodeChoice::of(Some("/nowhere/meilisearch")).unwrap_err().to_string().starts_with("--node: /nowhere"));
        assert!(NodeChoice::of(Some("/bin")).is_err());
        assert_eq!(NodeChoice::of(Some("/bin/sh")).unwrap(), NodeChoice::Meilisearch("/bin/sh".into()));
    }
}
