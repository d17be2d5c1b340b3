//! What an alias may be, and how it is pointed at another index: functions over the one record of names.
//!
//! A name is never index and alias at once, and an alias stands for an index, never for another alias. What a flip will
//! write is decided before (target and version), so that doing it twice is doing it once. Must not know: the ledger, who
//! leads, how members hear of it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::proto::env::Instant;
use crate::proto::operation::{Kind, Operation, Step};
use crate::types::limits::{ALIAS_HISTORY_MAX, NAMES_MAX, RECORD_MAX_BYTES};
use crate::types::{
    AliasRecord, Epoch, FormerTarget, IndexUid, LeaseValue, MemberId, NamesRecord, PhysicalIndex, RecordVersion, Scope,
};

/// Why the record of names can't be changed so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AliasError {
    /// An index has the name.
    #[error("`{name}` is an index")]
    IsIndex {
        /// The name.
        name: IndexUid,
    },
    /// An alias has the name.
    #[error("`{name}` is an alias")]
    IsAlias {
        /// The name.
        name: IndexUid,
    },
    /// There is no such alias.
    #[error("alias `{name}` not found")]
    NotFound {
        /// The name.
        name: IndexUid,
    },
    /// There is no such index for an alias to stand for.
    #[error("index `{target}` not found")]
    NoTarget {
        /// The target.
        target: IndexUid,
    },
    /// The index can't be deleted while an alias stands for it.
    #[error("alias `{alias}` stands for index `{uid}`: flip or delete the alias first")]
    InUse {
        /// The index.
        uid: IndexUid,
        /// The first of the aliases.
        alias: IndexUid,
    },
    /// Another leader has begun since.
    #[error("epoch {epoch} is over: alias `{name}` has {highest}")]
    Stale {
        /// The alias.
        name: IndexUid,
        /// The caller's epoch.
        epoch: Epoch,
        /// The alias's.
        highest: Epoch,
    },
    /// Somebody else has changed the alias since the change was planned.
    #[error("alias `{name}` has version {version}, not the one that the change was planned on")]
    Moved {
        /// The alias.
        name: IndexUid,
        /// Its version.
        version: u64,
    },
    /// As many names as one mesh keeps, or as the record holds.
    #[error("a mesh keeps at most {NAMES_MAX} names and {RECORD_MAX_BYTES} bytes of them")]
    Full,
}

/// The physical index that a name stands for: its own, or its alias's target's.
pub fn resolve<'a>(names: &'a NamesRecord, name: &IndexUid) -> Option<&'a PhysicalIndex> {
    names.indexes.get(name).or_else(|| names.indexes.get(&names.aliases.get(name)?.target))
}

/// Whether an index of this name may be made.
///
/// # Errors
/// An alias has the name, or there are too many.
pub fn check_new_index(names: &NamesRecord, uid: &IndexUid) -> Result<(), AliasError> {
    if names.aliases.contains_key(uid) {
        return Err(AliasError::IsAlias { name: uid.clone() });
    }
    if !names.indexes.contains_key(uid) { check_room(names, uid) } else { Ok(()) }
}

/// Whether an index may be deleted: not while an alias stands for it, because every client of the alias would fail without
/// having been told, and the way out (flip, or delete the alias) is one request.
///
/// # Errors
/// An alias that stands for it.
pub fn check_delete_index(names: &NamesRecord, uid: &IndexUid) -> Result<(), AliasError> {
    match names.aliases.iter().find(|(_, a)| a.target == *uid) {
        Some((alias, _)) => Err(AliasError::InUse { uid: uid.clone(), alias: alias.clone() }),
        None => Ok(()),
    }
}

/// The names with an index renamed: aliases that stand for it follow.
///
/// # Errors
/// The index is not there, or the new name is taken.
pub fn rename_index(names: &NamesRecord, from: &IndexUid, to: &IndexUid) -> Result<NamesRecord, AliasError> {
    check_new_index(names, to)?;
    if names.indexes.contains_key(to) {
        return Err(AliasError::IsIndex { name: to.clone() });
    }
    let mut new = names.clone();
    let physical = new.indexes.remove(from).ok_or_else(|| AliasError::NoTarget { target: from.clone() })?;
    new.indexes.insert(to.clone(), physical);
    new.aliases.values_mut().filter(|a| a.target == *from).for_each(|a| a.target = to.clone());
    check_size(new)
}

/// The names with a new alias. `version` is that of `names` as they are, which grows with every change of any alias: so no
/// flip that was planned for an alias that was deleted meets the version of one that was made again.
///
/// # Errors
/// The name is taken, the target is not there, or there are too many names.
pub fn create(
    names: &NamesRecord,
    version: RecordVersion,
    name: &IndexUid,
    target: &IndexUid,
) -> Result<NamesRecord, AliasError> {
    if names.indexes.contains_key(name) {
        return Err(AliasError::IsIndex { name: name.clone() });
    }
    if names.aliases.contains_key(name) {
        return Err(AliasError::IsAlias { name: name.clone() });
    }
    check_room(names, name)?;
    check_target(names, target)?;
    let alias = AliasRecord { target: target.clone(), version: version + 1, epoch: Epoch::ZERO, history: Vec::new() };
    let mut new = names.clone();
    new.aliases.insert(name.clone(), alias);
    check_size(new)
}

/// The names without an alias.
///
/// # Errors
/// There is none of this name.
pub fn delete(names: &NamesRecord, name: &IndexUid) -> Result<NamesRecord, AliasError> {
    let mut new = names.clone();
    new.aliases.remove(name).ok_or_else(|| AliasError::NotFound { name: name.clone() })?;
    Ok(new)
}

/// The names with the leader's epoch written into the alias: the expected version of every earlier leader is wrong from then
/// on. `None` if it stands there already.
///
/// # Errors
/// The alias is not there, or a later leader has been.
pub fn fence(names: &NamesRecord, name: &IndexUid, epoch: Epoch) -> Result<Option<NamesRecord>, AliasError> {
    let alias = led(names, name, epoch)?;
    if alias.epoch == epoch {
        return Ok(None);
    }
    let mut new = names.clone();
    new.aliases.insert(name.clone(), AliasRecord { epoch, ..alias.clone() });
    check_size(new).map(Some)
}

/// The names with the alias flipped as planned; `None` if it has been already.
///
/// # Errors
/// The alias or the target is not there, a later leader has been, or somebody has changed the alias since.
pub fn flip(
    names: &NamesRecord,
    name: &IndexUid,
    plan: &FlipPlan,
    epoch: Epoch,
    at: &str,
) -> Result<Option<NamesRecord>, AliasError> {
    let alias = led(names, name, epoch)?;
    if alias.version == plan.version && alias.target == plan.to {
        return Ok(None);
    }
    if alias.version + 1 != plan.version {
        return Err(AliasError::Moved { name: name.clone(), version: alias.version });
    }
    check_target(names, &plan.to)?;
    let mut new = names.clone();
    let mut flipped = AliasRecord { epoch, version: plan.version, ..alias.clone() };
    let former = std::mem::replace(&mut flipped.target, plan.to.clone());
    if flipped.history.len() >= ALIAS_HISTORY_MAX {
        flipped.history.remove(0);
    }
    flipped.history.push(FormerTarget { target: former, until: at.to_owned() });
    new.aliases.insert(name.clone(), flipped);
    check_size(new).map(Some)
}

fn led<'a>(names: &'a NamesRecord, name: &IndexUid, epoch: Epoch) -> Result<&'a AliasRecord, AliasError> {
    let alias = names.aliases.get(name).ok_or_else(|| AliasError::NotFound { name: name.clone() })?;
    let highest = alias.epoch;
    if highest > epoch { Err(AliasError::Stale { name: name.clone(), epoch, highest }) } else { Ok(alias) }
}

/// Whether an alias may stand for it.
///
/// # Errors
/// It is an alias itself, or there is no such index.
pub fn check_target(names: &NamesRecord, target: &IndexUid) -> Result<(), AliasError> {
    if names.aliases.contains_key(target) {
        return Err(AliasError::IsAlias { name: target.clone() });
    }
    if names.indexes.contains_key(target) { Ok(()) } else { Err(AliasError::NoTarget { target: target.clone() }) }
}

/// Whether one more name, as long as this one, fits beside its physical index.
fn check_room(names: &NamesRecord, name: &IndexUid) -> Result<(), AliasError> {
    let count = names.indexes.len() + names.aliases.len();
    if count >= NAMES_MAX || encoded(names) + 2 * name.as_str().len() + 64 > RECORD_MAX_BYTES {
        return Err(AliasError::Full);
    }
    Ok(())
}

fn check_size(names: NamesRecord) -> Result<NamesRecord, AliasError> {
    if encoded(&names) > RECORD_MAX_BYTES { Err(AliasError::Full) } else { Ok(names) }
}

fn encoded(names: &NamesRecord) -> usize {
    serde_json::to_string(names).expect("names and numbers are always JSON").len()
}

/// What a flip will write; decided in its first phase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlipPlan {
    /// The new target.
    pub to: IndexUid,
    /// The version that the alias will have.
    #[serde(default)]
    pub version: u64,
    /// The version of `names` that every member has to know.
    #[serde(default)]
    pub names: RecordVersion,
    /// Who had not confirmed it when the time was over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unconfirmed: Vec<MemberId>,
}

impl FlipPlan {
    /// Nothing but the target is decided yet.
    pub fn new(to: IndexUid) -> Self {
        Self { to, version: 0, names: 0, unconfirmed: Vec::new() }
    }
}

/// The operation `alias_flip:<name>`: prepare (decide the version), flip (one change of `names`), confirm (an order to every
/// member; over when all have answered, or when a TTL and the margin have passed, because whoever has not heard of the flip by
/// then is stale and resolves no alias for writing), and in the second case unconfirmed, which says who has not.
#[derive(Debug, Clone)]
pub struct AliasFlip {
    /// The alias.
    pub name: IndexUid,
}

/// What the leader of a flip sees when it asks for the next step.
#[derive(Debug)]
pub struct FlipView<'a> {
    /// The newest `names` known, with its version.
    pub names: (RecordVersion, &'a NamesRecord),
    /// The version of `names` that each member has confirmed.
    pub confirmed: &'a BTreeMap<MemberId, RecordVersion>,
    /// The members that may have to know.
    pub active: &'a [MemberId],
    /// The leader's epoch.
    pub epoch: Epoch,
    /// Now.
    pub now: Instant,
    /// When this leader began the phase.
    pub since: Instant,
    /// Now, for people.
    pub at: &'a str,
    /// The longest TTL that a member goes by, in milliseconds.
    pub ttl_ms: u64,
}

/// What the leader of a flip does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlipAct {
    /// Change `names`, if it still has this version.
    Write {
        /// The version that was seen.
        expected: RecordVersion,
        /// The new names.
        names: NamesRecord,
    },
    /// Order these members to know `names` at this version, under the leader's scope and epoch.
    Confirm {
        /// Who has not confirmed.
        to: Vec<MemberId>,
        /// The version.
        version: RecordVersion,
    },
}

/// The kind of [`AliasFlip`]. Once `names` has turned, a flip is taken back by another flip, which is atomic, confirmed and in
/// the history like any other; so only its first phase is undone.
pub static ALIAS_FLIP: Kind = Kind {
    name: "alias_flip",
    phases: &["prepare", "flip", "confirm", "unconfirmed"],
    undoable: &["prepare"],
    destructive: &[],
};

impl Operation for AliasFlip {
    type Extra = FlipPlan;
    type View<'a> = FlipView<'a>;
    type Act = FlipAct;
    type Error = AliasError;

    fn kind(&self) -> &'static Kind {
        &ALIAS_FLIP
    }

    fn scope(&self) -> Scope {
        Scope::AliasFlip(self.name.clone())
    }

    fn step(&self, phase: &str, plan: &FlipPlan, view: &FlipView<'_>) -> Result<Step<FlipPlan, FlipAct>, AliasError> {
        let (version, names) = view.names;
        // A new leader's first act, in whatever phase it begins.
        if let Some(names) = fence(names, &self.name, view.epoch)? {
            return Ok(Step::Do(vec![FlipAct::Write { expected: version, names }]));
        }
        match phase {
            "prepare" => {
                check_target(names, &plan.to)?;
                let alias = led(names, &self.name, view.epoch)?;
                Ok(Step::Next { phase: "flip", extra: FlipPlan { version: alias.version + 1, ..plan.clone() } })
            }
            "flip" => Ok(match flip(names, &self.name, plan, view.epoch, view.at)? {
                Some(names) => Step::Do(vec![FlipAct::Write { expected: version, names }]),
                None => Step::Next { phase: "confirm", extra: FlipPlan { names: version, ..plan.clone() } },
            }),
            "confirm" => Ok(self.confirm(plan, view)),
            _ => Ok(Step::Done),
        }
    }

    fn undo(&self, _: &str, _: &FlipPlan, _: &FlipView<'_>) -> Result<Step<FlipPlan, FlipAct>, AliasError> {
        // What may be undone has written nothing but an epoch.
        Ok(Step::Done)
    }
}

impl AliasFlip {
    fn confirm(&self, plan: &FlipPlan, view: &FlipView<'_>) -> Step<FlipPlan, FlipAct> {
        let version = plan.names;
        let knows = |m: &&MemberId| view.confirmed.get(*m).is_some_and(|known| *known >= version);
        let missing: Vec<MemberId> = view.active.iter().filter(|m| !knows(m)).cloned().collect();
        let over = view.since.plus(Duration::from_micros(view.ttl_ms * LeaseValue::PATIENCE_PER_MS));
        if missing.is_empty() {
            return Step::Done;
        }
        if view.now >= over {
            return Step::Next { phase: "unconfirmed", extra: FlipPlan { unconfirmed: missing, ..plan.clone() } };
        }
        Step::Do(vec![FlipAct::Confirm { to: missing, version }])
    }
}

#[cfg(test)]
#[path = "alias_tests.rs"]
mod tests;
