//! Where the files of a mesh lie: a given directory is kept, a temporary one removed.
//!
//! Must not know: what lies in it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use tempfile::TempDir;

/// See the module.
pub enum Dir {
    /// `--dir`.
    Given(PathBuf),
    /// Removed with this value.
    Temporary(TempDir),
}

impl Dir {
    /// The given directory, which must be new or empty, or a temporary one whose name begins with `prefix`.
    pub fn make(given: Option<&Path>, prefix: &str) -> anyhow::Result<Self> {
        let Some(path) = given else {
            return Ok(Self::Temporary(tempfile::Builder::new().prefix(prefix).tempdir()?));
        };
        std::fs::create_dir_all(path).with_context(|| format!("--dir: can't make {}", path.display()))?;
        let path = path.canonicalize().with_context(|| format!("--dir: can't use {}", path.display()))?;
        let mut entries = std::fs::read_dir(&path).with_context(|| format!("--dir: can't read {}", path.display()))?;
        if entries.next().is_some() {
            bail!("--dir: {} is not empty: give a new or an empty directory", path.display());
        }
        Ok(Self::Given(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Self::Given(path) => path,
            Self::Temporary(dir) => dir.path(),
        }
    }

    /// Keeps it in any case; where it is.
    pub fn keep(self) -> PathBuf {
        match self {
            Self::Given(path) => path,
            Self::Temporary(dir) => dir.keep(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_directory_is_made_and_kept_and_must_be_empty() {
        let outer = tempfile::tempdir().unwrap();
        let path = outer.path().join("a/b");
        drop(Dir::make(Some(&path), "x-").unwrap());
        assert!(path.is_dir());
        std::fs::write(path.join("x"), "").unwrap();
        assert!(Dir::make(Some(&path), "x-").err().unwrap().to_string().starts_with("--dir: "));
    }

    #[test]
    fn temporary_directory_is_removed_unless_it_is_kept() {
        let dir = Dir::make(None, "miroir-test-").unwrap();
        let path = dir.path().to_owned();
        assert!(path.is_dir());
        drop(dir);
        assert!(!path.exists());
        let kept = Dir::make(None, "miroir-test-").unwrap().keep();
        assert!(kept.is_dir());
        std::fs::remove_dir(kept).unwrap();
    }
}
