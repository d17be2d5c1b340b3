//! A task's status and type, in Meilisearch's words.
//!
//! Rule: the texts are what clients read and write; case matters only where they are written by us. Must not know: what a
//! task of some type does.

use serde::{Deserialize, Serialize};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// All, in the order in which Meilisearch names them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// As clients read it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// As clients may write it, in any case.
            pub fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|word| word.as_str().eq_ignore_ascii_case(text))
            }

            /// All of them as Meilisearch lists them in its errors.
            pub(super) fn list() -> String {
                let all: Vec<_> = Self::ALL.iter().map(|word| format!("`{}`", word.as_str())).collect();
                all.join(", ")
            }
        }
    };
}

words! {
    /// Meilisearch's `status`.
    Status {
        /// Nobody has begun.
        Enqueued "enqueued",
        /// Some replica has done a part of it.
        Processing "processing",
        /// Done, as far as anyone who serves searches is concerned.
        Succeeded "succeeded",
        /// Not done, or not whole.
        Failed "failed",
        /// Taken back by the client before it was whole.
        Canceled "canceled",
    }
}

impl Status {
    /// Whether nothing will change any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Canceled)
    }
}

words! {
    /// Meilisearch's `type`.
    TaskKind {
        /// Documents written.
        DocumentAdditionOrUpdate "documentAdditionOrUpdate",
        /// Documents edited by a function.
        DocumentEdition "documentEdition",
        /// Documents deleted.
        DocumentDeletion "documentDeletion",
        /// Settings changed.
        SettingsUpdate "settingsUpdate",
        /// An index made.
        IndexCreation "indexCreation",
        /// An index deleted.
        IndexDeletion "indexDeletion",
        /// Another primary key or uid.
        IndexUpdate "indexUpdate",
        /// Indexes that exchange their names.
        IndexSwap "indexSwap",
        /// Tasks canceled.
        TaskCancelation "taskCancelation",
        /// Tasks deleted.
        TaskDeletion "taskDeletion",
        /// A dump.
        DumpCreation "dumpCreation",
        /// A snapshot.
        SnapshotCreation "snapshotCreation",
        /// An export to another instance.
        Export "export",
        /// Meilisearch's own, after an upgrade.
        UpgradeDatabase "upgradeDatabase",
        /// An index made smaller on disk.
        IndexCompaction "indexCompaction",
        /// Meilisearch's own sharding.
        NetworkTopologyChange "networkTopologyChange",
        /// Dynamic search rules changed.
        DsrUpdate "dsrUpdate",
        /// Dynamic search rules deleted.
        DsrClear "dsrClear",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_in_any_case_and_written_in_one() {
        for kind in TaskKind::ALL {
            assert_eq!(TaskKind::parse(&kind.as_str().to_uppercase()), Some(*kind));
            assert_eq!(serde_json::to_string(kind).unwrap(), format!("\"{}\"", kind.as_str()));
        }
        assert_eq!(Status::parse("Failed"), Some(Status::Failed));
        assert_eq!(Status::parse("cancelled"), None);
        assert_eq!(TaskKind::ALL.len(), 18);
        assert_eq!(Status::ALL.iter().filter(|s| s.is_final()).count(), 3);
    }
}
