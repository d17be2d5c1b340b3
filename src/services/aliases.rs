//! Aliases: names that stand for an index. Made and deleted by one change of names, pointed elsewhere by an operation.
//!
//! Must not know: what an alias may be (`proto::alias`), how a flip goes, HTTP.

use serde_json::json;

use super::failure::Failure;
use super::indexes::{change_failed, names_refused};
use super::leases::LeaseHandle;
use super::operations::{OperationError, OperationsHandle};
use super::records::{ChangeError, NAMES, Records, key_of};
use crate::proto::alias::{self, ALIAS_FLIP, AliasError, FlipPlan};
use crate::proto::operation::{RequestError, record_key};
use crate::types::{
    AliasRecord, ErrorCode, IndexUid, NamesRecord, OperationEntry, OperationRecord, RecordVersion, Scope, TraceId,
};
use crate::wire::verbs::RecordAt;

/// Attempts against rivals; each lost one means that another change was made.
const ATTEMPTS: usize = 16;

/// What became of the wish that an alias stands for an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pointed {
    /// There was none of that name; there is one now.
    Created,
    /// It stands for that index already.
    Same,
    /// This operation sees to it.
    Begun(String),
}

/// The service; cheap to clone.
#[derive(Debug, Clone)]
pub struct Aliases {
    records: Records,
    operations: OperationsHandle,
    leases: LeaseHandle,
}

impl Aliases {
    /// The service over its parts.
    pub fn new(records: Records, operations: OperationsHandle, leases: LeaseHandle) -> Self {
        Self { records, operations, leases }
    }

    /// All aliases, by name.
    pub fn all(&self) -> Vec<(IndexUid, AliasRecord)> {
        let snapshot = self.records.snapshot();
        snapshot.names().value.aliases.iter().map(|(name, alias)| (name.clone(), alias.clone())).collect()
    }

    /// One alias.
    ///
    /// # Errors
    /// `miroir_alias_not_found`.
    pub fn get(&self, name: &IndexUid) -> Result<AliasRecord, Failure> {
        let alias = self.records.snapshot().names().value.aliases.get(name).cloned();
        alias.ok_or_else(|| names_refused(&AliasError::NotFound { name: name.clone() }))
    }

    /// The flip of an alias that is under way, as a majority knows it now.
    async fn newest_flip_of(&self, name: &IndexUid) -> Result<Option<OperationEntry>, Failure> {
        let key = key_of(&record_key(&Scope::AliasFlip(name.clone())));
        self.records.refresh(&key).await.map_err(|e| change_failed(&e))?;
        let copies = self.records.ledger().copies();
        let Some(copy) = copies.get(&key) else { return Ok(None) };
        let record: OperationRecord = serde_json::from_str(&copy.value).map_err(|_| {
            // What it is doing can't be known.
            operation_failed(&RequestError::UnknownKind { id: key.to_string() }.into())
        })?;
        Ok(record.current)
    }

    /// The flip of an alias that is under way.
    pub fn flip_of(&self, name: &IndexUid) -> Option<OperationEntry> {
        self.operations.view().record(&Scope::AliasFlip(name.clone()))?.current.clone()
    }

    /// Makes an alias. Every member knows it then, or is stale.
    ///
    /// # Errors
    /// `miroir_alias_conflict`, `index_not_found`, or as for every change of names.
    pub async fn create(&self, name: &IndexUid, target: &IndexUid, trace: TraceId) -> Result<(), Failure> {
        self.records.refresh(&key_of(NAMES)).await.map_err(|e| change_failed(&e))?;
        self.change(trace, |names, version| alias::create(names, version, name, target)).await
    }

    /// Deletes an alias; the index that it stood for stays. Every member knows that then, or is stale.
    ///
    /// # Errors
    /// `miroir_alias_not_found`, `miroir_operation_state` while it is being flipped, or as for every change of names.
    pub async fn delete(&self, name: &IndexUid, trace: TraceId) -> Result<(), Failure> {
        self.records.refresh(&key_of(NAMES)).await.map_err(|e| change_failed(&e))?;
        if let Some(flip) = self.newest_flip_of(name).await? {
            return Err(operation_failed(&RequestError::Busy { id: flip.id }.into()));
        }
        self.change(trace, |names, _| alias::delete(names, name)).await
    }

    /// Has an alias stand for an index: makes it, or begins a flip.
    ///
    /// # Errors
    /// `miroir_operation_state` while another flip is under way; otherwise as [`Self::create`].
    pub async fn point(&self, name: &IndexUid, target: &IndexUid, trace: TraceId) -> Result<Pointed, Failure> {
        self.records.refresh(&key_of(NAMES)).await.map_err(|e| change_failed(&e))?;
        let snapshot = self.records.snapshot();
        let names = &snapshot.names().value;
        let Some(alias) = names.aliases.get(name) else {
            return self.create(name, target, trace).await.map(|()| Pointed::Created);
        };
        if alias.target == *target && self.newest_flip_of(name).await?.is_none() {
            return Ok(Pointed::Same);
        }
        // Refused at once where it can be known; the operation looks again.
        alias::check_target(names, target).map_err(|e| names_refused(&e))?;
        let plan = json!(FlipPlan::new(target.clone()));
        let begun = self.operations.begin(Scope::AliasFlip(name.clone()), &ALIAS_FLIP, plan).await;
        begun.map(Pointed::Begun).map_err(|e| operation_failed(&e))
    }

    async fn change(
        &self,
        trace: TraceId,
        edit: impl Fn(&NamesRecord, RecordVersion) -> Result<NamesRecord, AliasError>,
    ) -> Result<(), Failure> {
        for _ in 0..ATTEMPTS {
            let snapshot = self.records.snapshot();
            let names = edit(&snapshot.names().value, snapshot.names().version).map_err(|e| names_refused(&e))?;
            match self.records.write(NAMES, snapshot.names().version, &names).await {
                Ok(version) => {
                    let (record, ttl_ms) = (RecordAt { key: key_of(NAMES), version }, self.leases.longest_ttl_ms());
                    for member in self.records.confirmed_or_stale(&record, ttl_ms, trace).await {
                        tracing::warn!(%member, "it has not confirmed a change of aliases, and is stale by now");
                    }
                    return Ok(());
                }
                Err(ChangeError::Conflict(_)) => {}
                Err(error) => return Err(change_failed(&error)),
            }
        }
        Err(change_failed(&ChangeError::Conflict(0)))
    }
}

/// Why a request about an operation failed, as an operator reads it.
pub fn operation_failed(error: &OperationError) -> Failure {
    let state = |message: String| Failure::new(ErrorCode::MiroirOperationState, message);
    let unknown = |what: &str| {
        let message = format!(
            "Whether the request about {what} was taken is not known; GET /_miroir/operations shows it when the mesh's records can \
             be changed again."
        );
        Failure::new(ErrorCode::MiroirWriteUnknown, message)
    };
    match error {
        OperationError::Refused(refused) => match refused {
            RequestError::Busy { id } => state(format!(
                "Operation `{id}` is under way here. Wait for it (GET /_miroir/operations/{id}), or cancel it \
                 (POST /_miroir/operations/{id}/cancel)."
            )),
            RequestError::NotFound { id } => {
                Failure::new(ErrorCode::MiroirOperationNotFound, format!("Operation `{id}` not found."))
            }
            RequestError::Finished { id } => {
                state(format!("Operation `{id}` is finished: nothing of it can be changed."))
            }
            RequestError::TooLate { id, phase } => state(format!(
                "Operation `{id}` is in phase {phase}, in which that can't be done any more. Let it finish; an alias is put back by \
                 pointing it at its former index."
            )),
            RequestError::UnknownKind { id } => state(format!(
                "Operation `{id}` is of a kind that this member's version does not know. Ask a member of a newer version."
            )),
            RequestError::Full | RequestError::NoQuorum => {
                let message = format!("Nothing was done: {refused}. Send the request again.");
                Failure::new(ErrorCode::MiroirNoQuorum, message)
            }
            RequestError::Unknown => unknown("an operation"),
        },
        OperationError::Unknown { id } => unknown(&format!("operation `{id}`")),
        OperationError::Ended => Failure::internal("this member's operations have ended"),
    }
}
