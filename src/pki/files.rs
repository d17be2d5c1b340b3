//! Writing key material: whole or not at all, with the right mode from the first byte, and never over a file.
//!
//! Must not know: what is in the files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Mode of a file that holds a key: its owner reads and writes it, nobody else does anything.
pub const KEY_MODE: u32 = 0o600;
/// Mode of a file that holds a certificate.
pub const PUBLIC_MODE: u32 = 0o644;

/// Why a file was not written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is one already.
    #[error("{} exists already and is not overwritten", path.display())]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// The system refused.
    #[error("can't {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

pub(super) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError::Io { what, path, source }
}

/// Writes a file that must not exist yet. After an error, or a crash, there is no part of it under its name.
///
/// # Errors
/// [`FileError::Exists`], or what the system says.
pub fn write_new(path: &Path, contents: &[u8], mode: u32) -> Result<(), FileError> {
    let parent = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let draft = parent.join(format!(".{name}.{}.new", std::process::id()));
    let written = write_draft(&draft, contents, mode).and_then(|()| {
        // A link, unlike a rename, fails if the name is taken.
        fs::hard_link(&draft, path).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => FileError::Exists { path: path.to_owned() },
            _ => io_error("write", path)(e),
        })
    });
    match fs::remove_file(&draft) {
        Err(e) if written.is_ok() && e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &draft)(e)),
        _ => written,
    }?;
    File::open(parent).and_then(|d| d.sync_all()).map_err(io_error("sync", parent))
}

fn write_draft(draft: &Path, contents: &[u8], mode: u32) -> Result<(), FileError> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(draft)?;
        file.write_all(contents)?;
        file.sync_all()
    };
    write().map_err(io_error("write", draft))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn file_has_its_mode_and_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        write_new(&path, b"one", KEY_MODE).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, KEY_MODE);
        assert!(matches!(write_new(&path, b"two", KEY_MODE), Err(FileError::Exists { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn missing_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let e = write_new(&dir.path().join("none/key.pem"), b"x", KEY_MODE).unwrap_err();
        assert!(e.to_string().contains("none"), "{e}");
    }
}
