//! What is known of a task: what was asked for, and what became of it.
//!
//! Rule: a [`Head`] never changes; an [`Outcome`] is made once. Must not know: who works on it.

use serde::{Deserialize, Serialize};

use super::home::Work;
use super::kind::{Status, TaskKind};
use super::when::When;
use crate::types::ErrorCode;

/// Longest message of an error that is kept with a task.
pub const ERROR_MAX_BYTES: usize = 4_096;

/// What a task is about: its type, and the details that are known from the beginning. JSON texts are as they are shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subject {
    /// Documents: how many were received, and how many different ids they have.
    Documents {
        /// All documents of the request.
        received: u64,
        /// Different ids among them.
        distinct: u64,
    },
    /// Documents to edit.
    Edition {
        /// The filter as JSON text, as the client sent it.
        original_filter: Option<String>,
        /// JSON.
        context: Option<String>,
        /// The function's text.
        function: String,
    },
    /// Documents to delete by id.
    DeletionByIds {
        /// Ids of the request.
        provided: u64,
    },
    /// Documents to delete by this filter, as JSON text.
    DeletionByFilter(String),
    /// All documents to delete.
    Clear,
    /// Settings as JSON, secrets masked.
    Settings(String),
    /// A new index with this primary key.
    IndexCreation(Option<String>),
    /// Another primary key, and the old and the new uid of one that is renamed.
    IndexUpdate {
        /// The key.
        primary_key: Option<String>,
        /// From and to.
        renamed: Option<(String, String)>,
    },
    /// An index to delete.
    IndexDeletion,
    /// Pairs of indexes, and whether the second is only a new name.
    Swap(Vec<(String, String, bool)>),
    /// Tasks to cancel: the query as it was sent.
    Cancelation(String),
    /// Tasks to delete: the query as it was sent.
    Deletion(String),
    /// Anything else: its details as JSON, if it has any.
    Other(TaskKind, Option<String>),
}

impl Subject {
    /// Meilisearch's type.
    pub fn kind(&self) -> TaskKind {
        match self {
            Self::Documents { .. } => TaskKind::DocumentAdditionOrUpdate,
            Self::Edition { .. } => TaskKind::DocumentEdition,
            Self::DeletionByIds { .. } | Self::DeletionByFilter(_) | Self::Clear => TaskKind::DocumentDeletion,
            Self::Settings(_) => TaskKind::SettingsUpdate,
            Self::IndexCreation(_) => TaskKind::IndexCreation,
            Self::IndexUpdate { .. } => TaskKind::IndexUpdate,
            Self::IndexDeletion => TaskKind::IndexDeletion,
            Self::Swap(_) => TaskKind::IndexSwap,
            Self::Cancelation(_) => TaskKind::TaskCancelation,
            Self::Deletion(_) => TaskKind::TaskDeletion,
            Self::Other(kind, _) => *kind,
        }
    }

    /// Documents that a success has changed, where the request says it; otherwise it must be counted.
    pub fn changes(&self) -> Option<u64> {
        match self {
            Self::Documents { distinct, .. } => Some(*distinct),
            _ => None,
        }
    }
}

/// A task as it was taken: what its home is told first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The client's name of the index.
    pub index_uid: Option<String>,
    /// What it is about.
    pub subject: Subject,
    /// Who does it.
    pub work: Work,
    /// When it was taken.
    pub enqueued: When,
    /// What the client attached.
    pub custom_metadata: Option<String>,
    /// The `Idempotency-Key`, and the hash of the body.
    pub key: Option<(String, [u8; 32])>,
}

/// Meilisearch's error object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TaskError {
    /// For people.
    pub message: String,
    /// For programs.
    pub code: String,
    /// Who is to blame.
    #[serde(rename = "type")]
    pub kind: String,
    /// Where it is explained.
    pub link: String,
}

impl TaskError {
    /// An error of the mesh's own.
    pub fn of(code: ErrorCode, message: &str) -> Self {
        let (kind, link) = (code.kind().as_str().to_owned(), code.link());
        Self { message: cut(message), code: code.as_str().to_owned(), kind, link }
    }

    /// An error of a node, with its code.
    pub fn of_node(code: &str, message: &str) -> Self {
        let kind = if code == "internal" { "internal" } else { "invalid_request" };
        let link = format!("https://docs.meilisearch.com/errors#{code}");
        Self { message: cut(message), code: code.to_owned(), kind: kind.to_owned(), link }
    }
}

fn cut(message: &str) -> String {
    message[..message.floor_char_boundary(ERROR_MAX_BYTES)].to_owned()
}

/// What became of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Succeeded, failed or canceled.
    pub status: Status,
    /// Why it failed.
    pub error: Option<TaskError>,
    /// Documents changed, or tasks canceled or deleted.
    pub changed: u64,
    /// Tasks that a cancelation or deletion found.
    pub matched: u64,
    /// When the first part was begun.
    pub started: When,
    /// When the last was done.
    pub finished: When,
}

/// A task as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// What was asked for.
    pub head: Head,
    /// Its state now.
    pub status: Status,
    /// The task that canceled it.
    pub canceled_by: Option<u32>,
    /// When the first part was begun.
    pub started: Option<When>,
    /// How many parts are done, of how many.
    pub progress: Option<(u64, u64)>,
    /// How many parts were refused and are never done.
    #[serde(default)]
    pub refused: u64,
    /// What became of it.
    pub outcome: Option<Outcome>,
}
