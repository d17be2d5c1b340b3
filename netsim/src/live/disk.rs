//! A small disk of its own for one member's store, that can be filled up.
//!
//! Rule: only to be made in a mount namespace of its own (see `outside`), with which it goes away. Must not know: what is
//! stored on it.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use super::lab::tool;

/// What takes the room away.
const FILLER: &str = "filler";
/// Room is taken in steps of so many bytes.
const STEP: u64 = 1 << 20;

/// Puts what is in `dir` on a disk of `bytes` bytes, which is mounted there; nobody may use `dir` meanwhile.
pub async fn give(dir: &Path, bytes: u64) -> anyhow::Result<()> {
    let path = dir.to_str().context("expected a path in UTF-8")?;
    let before = dir.with_extension("before");
    fs::rename(dir, &before)?;
    fs::create_dir(dir)?;
    let options = format!("size={bytes},mode=0700");
    tool("mount", &["-t", "tmpfs", "-o", &options, "miroir-live", path], "", None).await?;
    for entry in fs::read_dir(&before)? {
        let entry = entry?;
        ensure!(entry.file_type()?.is_file(), "{} is no file", entry.path().display());
        fs::copy(entry.path(), dir.join(entry.file_name()))?;
    }
    fs::remove_dir_all(&before).context("can't remove what was copied")
}

/// Takes `bytes` bytes of its room away, or all that there is; how many were taken.
pub async fn fill(dir: PathBuf, bytes: Option<u64>) -> anyhow::Result<u64> {
    tokio::task::spawn_blocking(move || {
        let mut file = File::options().append(true).create(true).open(dir.join(FILLER))?;
        let mut taken = 0;
        while bytes.is_none_or(|bytes| taken < bytes) {
            match io::copy(&mut io::repeat(1).take(STEP), &mut file) {
                Ok(some) => taken += some,
                Err(error) if bytes.is_none() && error.kind() == io::ErrorKind::StorageFull => break,
                Err(error) => return Err(error).context("can't fill the disk"),
            }
        }
        file.flush()?;
        Ok(taken)
    })
    .await?
}

/// Gives back all that was taken.
pub fn empty(dir: &Path) -> anyhow::Result<()> {
    fs::remove_file(dir.join(FILLER)).context("can't empty the disk")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn room_is_taken_and_given_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(fill(dir.path().to_path_buf(), Some(3 * STEP)).await.unwrap(), 3 * STEP);
        assert_eq!(fs::metadata(dir.path().join(FILLER)).unwrap().len(), 3 * STEP);
        empty(dir.path()).unwrap();
        assert!(empty(dir.path()).is_err());
    }
}
