//! Operations and jobs as values: what the ledger keeps of them, and what people are shown.
//!
//! Must not know: what a kind of operation does, who leads it now.

use serde::{Deserialize, Serialize};

use super::lease::{Epoch, Holder};
use super::limits::OPERATION_HISTORY_MAX;

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// The leader of its scope works on the recorded phase.
    Running,
    /// Nobody works on it until it is resumed.
    Paused,
    /// What was done is being undone.
    Cancelling,
    /// Complete.
    Done,
    /// Given up because of an error.
    Failed,
    /// Undone because somebody wanted it so.
    Cancelled,
}

impl OperationState {
    /// Its name in records, answers and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Cancelling => "cancelling",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing will be done any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }

    /// Whether somebody has to lead it.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Running | Self::Cancelling)
    }
}

/// How far the recorded phase is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Units done.
    pub done: u64,
    /// Units in all; 0 if nobody knows.
    pub total: u64,
    /// What is counted ("documents").
    pub unit: String,
    /// Units a second, smoothed.
    pub rate: f64,
}

impl Progress {
    /// Seconds that are left at this rate; `None` if that can't be said.
    pub fn seconds_left(&self) -> Option<f64> {
        let left = self.total.checked_sub(self.done)?;
        // Counts of documents are far below 2^52.
        (self.total > 0 && self.rate > 0.0).then(|| left as f64 / self.rate)
    }
}

/// One line of an operation's history: a phase, and who began it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The phase that was entered, or the state if no phase was.
    pub phase: String,
    /// The epoch under which it was written.
    pub epoch: Epoch,
    /// When, by the writer's clock, RFC 3339; for people.
    pub at: String,
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OperationEntry {
    /// Names it for ever.
    pub id: String,
    /// What it does; decides its phases.
    pub kind: String,
    /// The phase that is to be worked on.
    pub phase: String,
    /// What the phases before have decided.
    pub extra: serde_json::Value,
    /// Where it stands.
    pub state: OperationState,
    /// Every phase entered, oldest first, at most [`OPERATION_HISTORY_MAX`].
    pub history: Vec<HistoryEntry>,
    /// How far the phase is, as last recorded.
    #[serde(default)]
    pub progress: Progress,
    /// Why it failed, or why it is being undone.
    #[serde(default)]
    pub error: Option<String>,
}

impl OperationEntry {
    /// Adds a line to the history; the oldest goes when it is full.
    pub fn note(&mut self, what: impl Into<String>, epoch: Epoch, at: &str) {
        if self.history.len() >= OPERATION_HISTORY_MAX {
            self.history.remove(0);
        }
        self.history.push(HistoryEntry { phase: what.into(), epoch, at: at.to_owned() });
    }
}

/// The ledger's record of a scope's operations, under `operation:<scope>`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OperationRecord {
    /// The highest epoch that has led; a new leader's first act is to write its own.
    pub epoch: Epoch,
    /// The one that is not finished.
    pub current: Option<OperationEntry>,
    /// The last finished ones, oldest first, with their extra state if it is small.
    pub past: Vec<OperationEntry>,
}

/// A piece of long work that any member may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Names it within its queue.
    pub id: String,
    /// What is to be done.
    pub work: serde_json::Value,
    /// How far it is, in the worker's own terms.
    #[serde(default)]
    pub cursor: Option<serde_json::Value>,
    /// Who works on it.
    #[serde(default)]
    pub claim: Option<Claim>,
    /// How often it was given back since it last got further.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failures: u32,
    /// Why it was given back last, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// A member's claim of a job: it stands as long as that member's `alive:` lease stands under that epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Who.
    pub holder: Holder,
    /// The epoch of its `alive:` lease.
    pub epoch: Epoch,
}

/// The ledger's record of a queue, under `jobs:<queue>`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobsRecord {
    /// In the order in which they were added.
    pub jobs: Vec<Job>,
}
