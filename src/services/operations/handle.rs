//! What other services ask of operations.
//!
//! Rule: what is shown has been agreed on; only a leader's own picture of a run is ahead of it. Must not know: how the core
//! is run, what any kind does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use crate::proto::operation::{Guard, Kind, Request, RequestError};
use crate::types::{OperationEntry, OperationRecord, Scope};

/// How long a request waits for the ledger.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long news of an operation that is not known here is waited for.
const ON_ITS_WAY: Duration = Duration::from_millis(300);

/// What the driver is told by this process.
#[derive(Debug)]
pub(super) enum Input {
    Request(Scope, Request, oneshot::Sender<Result<(), RequestError>>),
    /// So many of `total` units are done.
    Progress(Guard, u64, u64, &'static str),
}

/// What somebody wants of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Stop working on it, where it is.
    Pause,
    /// Go on where it was paused.
    Resume,
    /// Undo it.
    Cancel,
}

/// Why a request about an operation was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperationError {
    /// The record of the scope's operations does not allow it, or could not be changed.
    #[error(transparent)]
    Refused(#[from] RequestError),
    /// No answer in time, or none that is certain: it may stand in the ledger, or may yet.
    #[error("whether the request about operation {id} was taken is not known")]
    Unknown {
        /// The operation.
        id: String,
    },
    /// The driver has ended, and so will the process.
    #[error("this member's operations have ended")]
    Ended,
}

/// The records of all scopes' operations at one moment; cheap to clone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    pub(super) records: BTreeMap<Scope, Arc<OperationRecord>>,
}

impl View {
    /// The operations of one scope.
    pub fn record(&self, scope: &Scope) -> Option<&Arc<OperationRecord>> {
        self.records.get(scope)
    }

    /// The operations of all scopes, in the order of scopes.
    pub fn records(&self) -> impl Iterator<Item = (&Scope, &Arc<OperationRecord>)> {
        self.records.iter()
    }

    /// Every operation that is kept: of each scope the finished ones, oldest first, then the one that is not finished.
    pub fn operations(&self) -> impl Iterator<Item = (&Scope, &OperationEntry)> {
        self.records.iter().flat_map(|(scope, r)| r.past.iter().chain(&r.current).map(move |op| (scope, op)))
    }

    /// The operation of that id.
    pub fn find(&self, id: &str) -> Option<(&Scope, &OperationEntry)> {
        self.operations().find(|(_, op)| op.id == id)
    }
}

/// Operations, as other services use them; cheap to clone.
#[derive(Debug, Clone)]
pub struct OperationsHandle {
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) view: Arc<watch::Sender<Arc<View>>>,
}

impl OperationsHandle {
    /// Begins an operation in the first phase of its kind, and returns its id. When this returns it stands in the ledger;
    /// whoever comes to lead the scope works on it.
    ///
    /// Dropping the future does not undo it: it may begin all the same.
    ///
    /// # Errors
    /// [`OperationError`].
    pub async fn begin(
        &self,
        scope: Scope,
        kind: &'static Kind,
        extra: serde_json::Value,
    ) -> Result<String, OperationError> {
        // In the order of time, for people.
        let id = Uuid::now_v7().simple().to_string();
        self.request(scope, Request::Begin { id: id.clone(), kind, extra }, &id).await?;
        Ok(id)
    }

    /// Pauses, resumes or cancels an operation. When this returns, that stands in the ledger.
    ///
    /// Dropping the future does not undo it.
    ///
    /// # Errors
    /// [`OperationError`]; `NotFound` also if this member does not hear of the operation in time.
    pub async fn change(&self, id: &str, wish: Wish) -> Result<(), OperationError> {
        let name = id.to_owned();
        let known = self.known(id).await;
        let Some(scope) = known.find(id).map(|(scope, _)| scope.clone()) else {
            return Err(RequestError::NotFound { id: name }.into());
        };
        let request = match wish {
            Wish::Pause => Request::Pause { id: name },
            Wish::Resume => Request::Resume { id: name },
            Wish::Cancel => Request::Cancel { id: name },
        };
        self.request(scope, request, id).await
    }

    async fn request(&self, scope: Scope, request: Request, id: &str) -> Result<(), OperationError> {
        let (answer, wait) = oneshot::channel();
        let unknown = || OperationError::Unknown { id: id.to_owned() };
        let asked = async {
            let input = Input::Request(scope, request, answer);
            self.inputs.send(input).await.map_err(|_| OperationError::Ended)?;
            wait.await.map_err(|_| OperationError::Ended)?.map_err(|refused| match refused {
                RequestError::Unknown => unknown(),
                refused => refused.into(),
            })
        };
        tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err(unknown()))
    }

    /// What is known once this operation is, or when news of it should have come: another member may just have begun it.
    ///
    /// Cancel-safe.
    pub async fn known(&self, id: &str) -> Arc<View> {
        let mut views = self.watch();
        let heard = tokio::time::timeout(ON_ITS_WAY, views.wait_for(|view| view.find(id).is_some())).await;
        heard.map_or_else(|_| self.view(), |view| view.map_or_else(|_| self.view(), |view| Arc::clone(&view)))
    }

    /// What is known at this instant.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// What is known at this instant; wakes whenever it changes.
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.view.subscribe()
    }
}
