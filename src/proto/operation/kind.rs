//! What a kind of operation is, and the guard that its steps ask before every effect.
//!
//! Must not know: any one kind; when steps are run.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::types::{Epoch, OperationRecord, OperationState, Order, RecordVersion, Scope};

/// The phases of a kind of operation.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// Names the kind in records.
    pub name: &'static str,
    /// In order; phases may be skipped, never gone back to.
    pub phases: &'static [&'static str],
    /// Those in which everything done so far can be undone.
    pub undoable: &'static [&'static str],
    /// Those whose effects can't be taken back: receivers read the record from the majority before them.
    pub destructive: &'static [&'static str],
}

impl Kind {
    /// Where a phase stands among all.
    pub fn place(&self, phase: &str) -> Option<usize> {
        self.phases.iter().position(|p| *p == phase)
    }

    /// Whether an operation in this phase can be undone.
    pub fn is_undoable(&self, phase: &str) -> bool {
        self.undoable.contains(&phase)
    }

    /// Whether the phase's effects can't be taken back.
    pub fn is_destructive(&self, phase: &str) -> bool {
        self.destructive.contains(&phase)
    }
}

/// What is to be done next in a phase.
#[derive(Debug, Clone, PartialEq)]
pub enum Step<Extra, Act> {
    /// Do these, each under the guard and so that twice is once; then ask again, when something has changed or after a while.
    Do(Vec<Act>),
    /// The phase is complete: this is to be recorded before anything of the next one is done.
    Next {
        /// A later phase.
        phase: &'static str,
        /// What the next phases need to know.
        extra: Extra,
    },
    /// The operation, or its undoing, is complete.
    Done,
}

/// One kind of operation with its parameters: pure, so it is asked again and again with what is seen now.
pub trait Operation {
    /// What one phase decides for the next ones; kept in the record.
    type Extra: Serialize + DeserializeOwned;
    /// What the leader sees.
    type View<'a>;
    /// What the leader does.
    type Act;
    /// Why a step can't be done.
    type Error: std::error::Error;

    /// Its phases.
    fn kind(&self) -> &'static Kind;

    /// Whose leader does it.
    fn scope(&self) -> Scope;

    /// What is to be done next.
    ///
    /// # Errors
    /// What stands in the way.
    fn step(
        &self,
        phase: &str,
        extra: &Self::Extra,
        view: &Self::View<'_>,
    ) -> Result<Step<Self::Extra, Self::Act>, Self::Error>;

    /// What is to be done next to undo what was done, from this phase.
    ///
    /// # Errors
    /// What stands in the way.
    fn undo(
        &self,
        phase: &str,
        extra: &Self::Extra,
        view: &Self::View<'_>,
    ) -> Result<Step<Self::Extra, Self::Act>, Self::Error>;
}

/// How a run of a phase ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The phase is complete.
    Next {
        /// A later phase.
        phase: String,
        /// For the record.
        extra: serde_json::Value,
    },
    /// The operation is complete, or undone.
    Done,
    /// It could not be done.
    Failed {
        /// For people.
        why: String,
        /// Whether trying again may help.
        retry: bool,
    },
}

/// What a run of a phase may rely on; it asks before every effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// The scope that is led.
    pub scope: Scope,
    /// Under this epoch.
    pub epoch: Epoch,
    /// The operation.
    pub operation: String,
    /// Its phase.
    pub phase: String,
    /// Whether this undoes.
    pub undo: bool,
    /// The version of the record that calls for the phase.
    pub version: RecordVersion,
}

impl Guard {
    /// The key of the record that calls for the phase.
    pub fn record(&self) -> String {
        record_key(&self.scope)
    }

    /// Whether effects are still allowed: `believed` is the epoch under which the member holds the scope *now*, `record` what
    /// it knows of the scope's operations.
    pub fn permits(&self, believed: Option<Epoch>, record: &OperationRecord) -> bool {
        believed == Some(self.epoch) && self.is_called_for(record)
    }

    /// Whether the record calls for what the guard stands for. A receiver of an order asks this of its own copy.
    pub fn is_called_for(&self, record: &OperationRecord) -> bool {
        let state = if self.undo { OperationState::Cancelling } else { OperationState::Running };
        record.epoch == self.epoch
            && record
                .current
                .as_ref()
                .is_some_and(|op| op.id == self.operation && op.phase == self.phase && op.state == state)
    }

    /// The head of an order sent under the guard.
    pub fn order(&self) -> Order {
        Order { scope: self.scope.clone(), epoch: self.epoch, record: self.record(), version: self.version }
    }
}

/// The ledger's key of a scope's operations.
pub fn record_key(scope: &Scope) -> String {
    format!("operation:{scope}")
}

/// The scope whose operations the ledger keeps under `key`, if it is one.
pub fn scope_of_record(key: &str) -> Option<Scope> {
    key.strip_prefix("operation:")?.parse().ok()
}
