//! What the ledger says of operations and aliases, checked as it comes to be known: phases never go back, and one flip is
//! one new version of its alias.
//!
//! Source: design §8. Must not know: who leads.

use std::collections::{BTreeMap, BTreeSet};

use miroir::proto::alias::FlipPlan;
use miroir::proto::operation::Kind;
use miroir::types::{AliasRecord, IndexUid, NamesRecord, OperationRecord, OperationState, RecordVersion, Scope};

use super::Broken;

/// What is known of all operations and aliases.
#[derive(Debug)]
pub struct Steps {
    kind: &'static Kind,
    records: BTreeMap<Scope, BTreeMap<u64, OperationRecord>>,
    names: BTreeMap<u64, NamesRecord>,
    // Which operation made which version of an alias.
    flips: BTreeMap<(IndexUid, String), u64>,
    // The version of names that each flip has to have confirmed, and those flips that are known to be done.
    confirms: BTreeMap<String, RecordVersion>,
    done: BTreeSet<String>,
}

impl Steps {
    /// Nothing is known yet; all operations are of this kind.
    pub fn new(kind: &'static Kind) -> Self {
        Self {
            kind,
            records: BTreeMap::new(),
            names: BTreeMap::new(),
            flips: BTreeMap::new(),
            confirms: BTreeMap::new(),
            done: BTreeSet::new(),
        }
    }

    /// This record of a scope's operations was agreed on.
    ///
    /// # Errors
    /// [`Broken`] if that can't be, beside the versions before and after it.
    pub fn recorded(&mut self, scope: &Scope, version: u64, record: &OperationRecord) -> Result<(), Broken> {
        let kind = self.kind;
        let records = self.records.entry(scope.clone()).or_default();
        let before = records.range(..version).next_back().map(|(_, r)| r);
        let after = records.range(version + 1..).next().map(|(_, r)| r);
        for (earlier, later) in before.map(|b| (b, record)).into_iter().chain(after.map(|a| (record, a))) {
            follows(kind, earlier, later).map_err(|why| {
                Broken::new("phases_never_go_back", format!("{scope}: {why}: {earlier:?}, then {later:?}"))
            })?;
        }
        records.insert(version, record.clone());
        if let Some(op) = record.current.as_ref().filter(|op| op.phase == "confirm")
            && let Ok(plan) = serde_json::from_value::<FlipPlan>(op.extra.clone())
        {
            self.confirms.entry(op.id.clone()).or_insert(plan.names);
        }
        Ok(())
    }

    /// If a record says for the first time that a flip is done: the version of names that members must have, if fresh.
    pub fn newly_done(&mut self, record: &OperationRecord) -> Option<RecordVersion> {
        let done = record.past.iter().filter(|op| op.state == OperationState::Done);
        let new: Vec<&String> = done.map(|op| &op.id).filter(|id| !self.done.contains(*id)).collect();
        self.done.extend(new.iter().map(|id| (*id).clone()));
        new.into_iter().filter_map(|id| self.confirms.remove(id)).max()
    }

    /// This record of names was agreed on.
    ///
    /// # Errors
    /// [`Broken`] if an alias has gone back, or one flip has made two versions of it.
    pub fn named(&mut self, version: u64, names: &NamesRecord) -> Result<(), Broken> {
        let before = self.names.range(..version).next_back().map(|(_, n)| n);
        let after = self.names.range(version + 1..).next().map(|(_, n)| n);
        for (earlier, later) in before.map(|b| (b, names)).into_iter().chain(after.map(|a| (names, a))) {
            for (name, old) in &earlier.aliases {
                let Some(new) = later.aliases.get(name) else { continue };
                if new.version < old.version
                    || new.epoch < old.epoch
                    || new.version == old.version && new.target != old.target
                {
                    let what = format!("{name}: {old:?}, then {new:?}");
                    return Err(Broken::new("aliases_never_go_back", what));
                }
            }
        }
        for (name, alias) in &names.aliases {
            self.flipped(name, alias)?;
        }
        self.names.insert(version, names.clone());
        Ok(())
    }

    fn flipped(&mut self, name: &IndexUid, alias: &AliasRecord) -> Result<(), Broken> {
        // The history says at which operation each former target ended; the last one made this version.
        let made = alias.history.iter().rev().zip((1..=alias.version).rev());
        for (former, version) in made {
            let known = *self.flips.entry((name.clone(), former.until.clone())).or_insert(version);
            if known != version {
                let what = format!("{name}: {} made versions {known} and {version}", former.until);
                return Err(Broken::new("a_flip_is_carried_out_once", what));
            }
        }
        Ok(())
    }
}

fn follows(kind: &Kind, earlier: &OperationRecord, later: &OperationRecord) -> Result<(), &'static str> {
    if later.epoch < earlier.epoch {
        return Err("an epoch goes back");
    }
    let Some(new) = &later.current else { return Ok(()) };
    if earlier.past.iter().any(|op| op.id == new.id) {
        return Err("a finished operation goes on");
    }
    let Some(old) = earlier.current.as_ref().filter(|op| op.id == new.id) else { return Ok(()) };
    if kind.place(&new.phase) < kind.place(&old.phase) {
        return Err("a phase goes back");
    }
    if old.state == OperationState::Cancelling && new.state != OperationState::Cancelling {
        return Err("an undoing ends with its operation unfinished");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use miroir::proto::alias::ALIAS_FLIP;
    use miroir::types::{Epoch, FormerTarget, OperationEntry, Progress};

    use super::*;

    fn record(id: &str, phase: &str) -> OperationRecord {
        let current = OperationEntry {
            id: id.into(),
            kind: "alias_flip".into(),
            phase: phase.into(),
            extra: serde_json::Value::Null,
            state: OperationState::Running,
            history: Vec::new(),
            progress: Progress::default(),
            error: None,
        };
        OperationRecord { epoch: Epoch::ZERO, current: Some(current), past: Vec::new() }
    }

    fn names(version: u64, by: &[&str]) -> NamesRecord {
        let uid = |text: &str| IndexUid::new(text).unwrap();
        let former = |by: &&str| FormerTarget { target: uid("i"), until: (*by).to_owned() };
        let history = by.iter().map(former).collect();
        let alias = AliasRecord { target: uid("i"), version, epoch: Epoch::ZERO, history };
        NamesRecord { aliases: [(uid("a"), alias)].into(), ..NamesRecord::default() }
    }

    #[test]
    fn a_phase_that_goes_back_is_found() {
        let mut steps = Steps::new(&ALIAS_FLIP);
        steps.recorded(&Scope::Ilm, 1, &record("x", "prepare")).unwrap();
        steps.recorded(&Scope::Ilm, 5, &record("x", "confirm")).unwrap();
        steps.recorded(&Scope::Ilm, 3, &record("x", "flip")).unwrap();
        assert!(steps.recorded(&Scope::Ilm, 7, &record("x", "flip")).is_err());
        steps.recorded(&Scope::Ilm, 8, &record("y", "prepare")).unwrap();
    }

    #[test]
    fn a_flip_that_is_carried_out_twice_is_found() {
        let mut steps = Steps::new(&ALIAS_FLIP);
        steps.named(2, &names(2, &["x"])).unwrap();
        steps.named(3, &names(2, &["x"])).unwrap();
        steps.named(4, &names(3, &["x", "y"])).unwrap();
        assert!(steps.named(5, &names(4, &["x", "y", "x"])).is_err());
        assert!(steps.named(6, &names(2, &["x"])).is_err());
    }
}
