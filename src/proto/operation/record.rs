//! Which changes of a scope's record of operations are allowed: functions from the record to the changed one.
//!
//! Each tells "nothing to do" from "not allowed", so that repeating one whose answer was lost is safe. Must not know: the
//! ledger, leases, time.

use super::kind::{Kind, Outcome};
use crate::types::limits::{
    OPERATION_ERROR_MAX_BYTES, OPERATION_EXTRA_MAX_BYTES, OPERATION_PAST_EXTRA_MAX_BYTES, OPERATIONS_PAST_MAX,
};
use crate::types::{Epoch, OperationEntry, OperationRecord, OperationState, Progress};

/// What anybody may want of a scope's operations.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// Begin one, in the first phase of its kind.
    Begin {
        /// Names it for ever; drawn by whoever begins it.
        id: String,
        /// The kind.
        kind: &'static Kind,
        /// Its parameters.
        extra: serde_json::Value,
    },
    /// Stop working on it, where it is.
    Pause {
        /// The operation.
        id: String,
    },
    /// Go on where it was paused.
    Resume {
        /// The operation.
        id: String,
    },
    /// Undo it.
    Cancel {
        /// The operation.
        id: String,
    },
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// One at a time in a scope.
    #[error("operation {id} is not finished")]
    Busy {
        /// The one that is not.
        id: String,
    },
    /// There is no such operation here.
    #[error("operation {id} not found")]
    NotFound {
        /// The one asked for.
        id: String,
    },
    /// Nothing will be done of it any more.
    #[error("operation {id} is finished")]
    Finished {
        /// The one asked for.
        id: String,
    },
    /// It is past the point from which it can be undone, or it is being undone.
    #[error("operation {id} can't be changed so in {phase}")]
    TooLate {
        /// The one asked for.
        id: String,
        /// Where it is.
        phase: String,
    },
    /// Its parameters are larger than a record may hold, or too many requests wait.
    #[error("no room for the request")]
    Full,
    /// This version of the program does not know the kind.
    #[error("the kind of operation {id} is not known to this version")]
    UnknownKind {
        /// The one asked for.
        id: String,
    },
    /// The ledger has no majority; nothing was done.
    #[error("no majority of the voters answers")]
    NoQuorum,
    /// A change for it was given to the ledger, and nobody says what became of it: it may stand there, or may yet.
    #[error("whether the request was taken is not known")]
    Unknown,
}

impl Request {
    /// The operation that is meant.
    pub fn id(&self) -> &str {
        let (Self::Begin { id, .. } | Self::Pause { id } | Self::Resume { id } | Self::Cancel { id }) = self;
        id
    }
}

/// The record after a request; `None` if it stands so already.
pub fn request(
    record: &OperationRecord,
    request: &Request,
    kinds: &[&'static Kind],
    at: &str,
) -> Result<Option<OperationRecord>, RequestError> {
    let mut new = record.clone();
    if let Request::Begin { id, kind, extra } = request {
        if record.past.iter().chain(&record.current).any(|op| op.id == *id) {
            return Ok(None);
        }
        if let Some(op) = &record.current {
            return Err(RequestError::Busy { id: op.id.clone() });
        }
        if extra.to_string().len() > OPERATION_EXTRA_MAX_BYTES {
            return Err(RequestError::Full);
        }
        let phase = kind.phases.first().expect("a kind has phases");
        let mut op = OperationEntry {
            id: id.clone(),
            kind: kind.name.to_owned(),
            phase: (*phase).to_owned(),
            extra: extra.clone(),
            state: OperationState::Running,
            history: Vec::new(),
            progress: Progress::default(),
            error: None,
        };
        op.note(*phase, record.epoch, at);
        new.current = Some(op);
        return Ok(Some(new));
    }
    let (Request::Pause { id } | Request::Resume { id } | Request::Cancel { id } | Request::Begin { id, .. }) = request;
    let op = match &mut new.current {
        Some(op) if op.id == *id => op,
        _ => {
            let past = record.past.iter().find(|op| op.id == *id);
            return match (past.map(|op| op.state), request) {
                (Some(OperationState::Cancelled), Request::Cancel { .. }) => Ok(None),
                (Some(_), _) => Err(RequestError::Finished { id: id.clone() }),
                (None, _) => Err(RequestError::NotFound { id: id.clone() }),
            };
        }
    };
    let too_late = || RequestError::TooLate { id: id.clone(), phase: op.phase.clone() };
    let (state, word) = match (request, op.state) {
        (Request::Pause { .. }, OperationState::Paused) | (Request::Resume { .. }, OperationState::Running) => {
            return Ok(None);
        }
        (Request::Cancel { .. }, OperationState::Cancelling) => return Ok(None),
        (_, OperationState::Cancelling) => return Err(too_late()),
        (Request::Pause { .. }, _) => (OperationState::Paused, "paused"),
        (Request::Resume { .. }, _) => (OperationState::Running, "resumed"),
        _ => {
            let kind = kinds.iter().find(|k| k.name == op.kind);
            let kind = kind.ok_or_else(|| RequestError::UnknownKind { id: id.clone() })?;
            if !kind.is_undoable(&op.phase) {
                return Err(too_late());
            }
            (OperationState::Cancelling, "cancelled")
        }
    };
    op.state = state;
    op.note(word, record.epoch, at);
    Ok(Some(new))
}

/// The record with a new leader's epoch; `None` if it stands there. The caller has looked that no higher one does.
pub fn fence(record: &OperationRecord, epoch: Epoch) -> Option<OperationRecord> {
    (record.epoch < epoch).then(|| OperationRecord { epoch, ..record.clone() })
}

/// The record after a run of `phase` of the operation `id` ended so; `None` if that is recorded already or nobody waits for
/// it. A phase never goes back: an outcome that would is a failure of the operation.
pub fn finish_run(
    record: &OperationRecord,
    kind: &Kind,
    (id, phase, undo): (&str, &str, bool),
    outcome: &Outcome,
    at: &str,
) -> Option<OperationRecord> {
    let mut new = record.clone();
    let epoch = record.epoch;
    let op = new.current.as_mut().filter(|op| op.id == id && op.phase == phase)?;
    if undo != (op.state == OperationState::Cancelling) {
        return None;
    }
    let state = match outcome {
        Outcome::Next { phase: next, extra } if !undo => {
            if kind.place(next) > kind.place(phase) && extra.to_string().len() <= OPERATION_EXTRA_MAX_BYTES {
                (op.phase, op.extra, op.progress) = (next.clone(), extra.clone(), Progress::default());
                op.note(next.clone(), epoch, at);
                return Some(new);
            }
            op.error = Some(cut(&format!("phase {phase} can't be followed by {next}")));
            OperationState::Failed
        }
        Outcome::Next { .. } => {
            op.error = Some("an undoing has no phases".to_owned());
            OperationState::Failed
        }
        Outcome::Done if undo && op.error.is_none() => OperationState::Cancelled,
        Outcome::Done if undo => OperationState::Failed,
        Outcome::Done => OperationState::Done,
        Outcome::Failed { why, .. } => {
            op.error = Some(cut(why));
            if !undo && kind.is_undoable(phase) { OperationState::Cancelling } else { OperationState::Failed }
        }
    };
    op.state = state;
    let word = match state {
        OperationState::Done => "done",
        OperationState::Cancelled => "cancelled",
        OperationState::Cancelling => "undoing",
        _ => "failed",
    };
    op.note(word, epoch, at);
    if state.is_final() {
        let mut op = new.current.take().expect("found above");
        if op.extra.to_string().len() > OPERATION_PAST_EXTRA_MAX_BYTES {
            op.extra = serde_json::Value::Null;
        }
        if new.past.len() >= OPERATIONS_PAST_MAX {
            new.past.remove(0);
        }
        new.past.push(op);
    }
    Some(new)
}

/// The record with what is done so far; `None` if the operation is not in this phase.
pub fn progress(record: &OperationRecord, id: &str, phase: &str, progress: &Progress) -> Option<OperationRecord> {
    let mut new = record.clone();
    let op = new.current.as_mut().filter(|op| op.id == id && op.phase == phase && op.progress != *progress)?;
    op.progress = progress.clone();
    Some(new)
}

fn cut(text: &str) -> String {
    let end = (0..=text.len().min(OPERATION_ERROR_MAX_BYTES)).rev().find(|i| text.is_char_boundary(*i));
    text[..end.unwrap_or(0)].to_owned()
}
