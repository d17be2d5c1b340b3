//! Why a client's request fails: an error of the mesh's own, or the node's, in the client's words.

use bytes::Bytes;

use crate::store::StoreError;
use crate::types::{ErrorCode, IndexUid, TaskUid};

/// What a client gets instead of an answer.
#[derive(Debug, Clone)]
pub enum Failure {
    /// An error that the mesh gives itself.
    Mesh {
        /// Its code.
        code: ErrorCode,
        /// For people, with the remedy.
        message: String,
        /// The task under which an unknown write can be followed.
        task: Option<TaskUid>,
    },
    /// A node's own error, its text already put back to the client's view.
    Node {
        /// HTTP status.
        status: u16,
        /// Meilisearch's error object.
        body: Bytes,
    },
}

impl Failure {
    /// An error of the mesh's own.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::Mesh { code, message: message.into(), task: None }
    }

    /// Meilisearch's answer about an index that is not there.
    pub fn index_not_found(uid: &IndexUid) -> Self {
        Self::new(ErrorCode::IndexNotFound, format!("Index `{uid}` not found."))
    }

    /// Something that should not happen; the text is for the operator.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }
}

impl From<StoreError> for Failure {
    fn from(e: StoreError) -> Self {
        Self::internal(e.to_string())
    }
}
