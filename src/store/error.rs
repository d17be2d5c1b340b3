//! What can go wrong with the store, and whether the member may go on.

use std::path::PathBuf;

use crate::types::JournalKey;

/// A failure of the store.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The file can't be opened, or the directory made.
    #[error("can't open the store {path}: {reason}; check that the directory exists and belongs to this user")]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// The file is damaged; it is never replaced silently.
    #[error(
        "the store {path} is damaged ({reason}); move it away and start again to rejoin the mesh with an empty store"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What the check found.
        reason: String,
    },
    /// The file comes from a newer version of miroir.
    #[error("the store {path} has schema {found}, this version knows {known}; run the newer miroir again")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Schema number in the file.
        found: i64,
        /// Highest schema number that this version knows.
        known: i64,
    },
    /// Another process has the file open.
    #[error("the store {path} is in use by another process; a member runs once, and its directory belongs to it alone")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The directory belongs to another member.
    #[error("the store {path} belongs to member {owner}, the config says {member}; ids are never reused")]
    OtherMember {
        /// The file.
        path: PathBuf,
        /// Whose store it is.
        owner: String,
        /// Who was to run on it.
        member: String,
    },
    /// The member's files were not written side by side: one of them is missing, or comes from a copy.
    #[error(
        "{file} does not belong beside {other} ({reason}): one of them was put back from a copy, taken away or replaced. A \
         member never goes on from old files: move the whole directory away and start again, and it rejoins the mesh \
         with an empty store"
    )]
    Mismatch {
        /// One file.
        file: PathBuf,
        /// The other one.
        other: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A statement failed.
    #[error("the store failed: {reason}")]
    Sql {
        /// The cause.
        reason: String,
        /// Disk full, I/O error or damage: the member must leave service.
        fatal: bool,
    },
    /// A stored value is not what was written.
    #[error("the store holds a malformed {what}: {reason}")]
    Malformed {
        /// What was read.
        what: &'static str,
        /// The cause.
        reason: String,
    },
    /// One journal is not what was written; the others are not touched by it.
    #[error("the journal of {journal} is damaged: {reason}")]
    Damaged {
        /// Which.
        journal: JournalKey,
        /// What was found.
        reason: String,
    },
    /// The writer thread has ended.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// Whether the member must turn itself off: its store can no longer be trusted to keep what it is given.
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Sql { fatal, .. } => *fatal,
            Self::Damaged { .. } => false,
            Self::Open { .. }
            | Self::Corrupt { .. }
            | Self::Newer { .. }
            | Self::InUse { .. }
            | Self::OtherMember { .. }
            | Self::Mismatch { .. }
            | Self::Malformed { .. }
            | Self::Closed => true,
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(e: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode as C;
        let fatal = matches!(
            e.sqlite_error_code(),
            Some(
                C::DiskFull
                    | C::SystemIoFailure
                    | C::DatabaseCorrupt
                    | C::NotADatabase
                    | C::ReadOnly
                    | C::CannotOpen
                    | C::PermissionDenied
            )
        );
        Self::Sql { reason: e.to_string(), fatal }
    }
}
