//! Named invariants: the same predicates in production, in the simulator and in the model.
//!
//! | name | holds |
//! | --- | --- |
//! | `one_value_per_version` | of a key's version there is one chosen value, across all members and for ever |
//! | `versions_never_go_back` | what a member has as chosen is never replaced by an earlier version |
//! | `a_ballot_has_one_value` | all acceptances at one ballot of a key are of the same value |
//! | `copies_are_chosen` | a copy is of a value that a majority of some voter list accepted at one ballot |
//! | `promises_never_go_back` | a voter's promise for a key only grows, and is never below what it accepted |
//! | `a_number_has_one_list` | all voter lists with one number are the same, and it differs from the one before by one voter |
//! | `one_answer_per_version` | at most one change of a key is answered with a version |
//!
//! A predicate answers with what it saw, as [`Broken`]; whoever asks decides what follows: tests panic, production
//! reports and fences. Rule: nothing here changes anything. Must not know: which core asks.

use std::collections::BTreeMap;

use crate::types::{Ballot, RecordKey, Versioned, Voter, VoterList};

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{invariant} is broken for `{key}`: {saw}")]
pub struct Broken {
    /// The invariant's name.
    pub invariant: &'static str,
    /// Which record.
    pub key: RecordKey,
    /// What was seen, for people.
    pub saw: String,
}

fn broken(invariant: &'static str, key: &RecordKey, saw: String) -> Result<(), Broken> {
    Err(Broken { invariant, key: key.clone(), saw })
}

/// `versions_never_go_back`, for one replacement.
///
/// # Errors
/// [`Broken`] if `new` is an earlier version, or another value of the same one.
pub fn versions_never_go_back(key: &RecordKey, old: Option<&Versioned>, new: &Versioned) -> Result<(), Broken> {
    match old {
        Some(old) if old.version > new.version => {
            broken("versions_never_go_back", key, format!("version {} after {}", new.version, old.version))
        }
        Some(old) if old.version == new.version => one_value_per_version(key, old, new),
        _ => Ok(()),
    }
}

/// `one_value_per_version`, for two values that are both chosen.
///
/// # Errors
/// [`Broken`] if they are of the same version and differ.
pub fn one_value_per_version(key: &RecordKey, a: &Versioned, b: &Versioned) -> Result<(), Broken> {
    if a.version == b.version && a != b {
        return broken("one_value_per_version", key, format!("{a:?} and {b:?}"));
    }
    Ok(())
}

/// `a_ballot_has_one_value`, for two acceptances.
///
/// # Errors
/// [`Broken`] if they are at the same ballot and differ.
pub fn a_ballot_has_one_value(key: &RecordKey, a: &(Ballot, Versioned), b: &(Ballot, Versioned)) -> Result<(), Broken> {
    if a.0 == b.0 && a.1 != b.1 {
        return broken("a_ballot_has_one_value", key, format!("{:?} with {:?} and {:?}", a.0, a.1, b.1));
    }
    Ok(())
}

/// `promises_never_go_back`, for one replacement of a voter's promise.
///
/// # Errors
/// [`Broken`] if the new promise is lower, or below what was accepted.
pub fn promises_never_go_back(
    key: &RecordKey,
    old: Option<&Ballot>,
    new: Option<&Ballot>,
    accepted: Option<&Ballot>,
) -> Result<(), Broken> {
    if new < old || new < accepted {
        return broken("promises_never_go_back", key, format!("{new:?} after {old:?}, accepted {accepted:?}"));
    }
    Ok(())
}

/// A value, and who accepted it under which list.
type Acceptances = (Versioned, Vec<(Voter, u64)>);

/// Everything that was ever accepted, chosen or answered in one mesh: what the invariants across members are asked of.
/// Grows without bound, for tests, simulator and model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    lists: BTreeMap<u64, VoterList>,
    accepted: BTreeMap<(RecordKey, Ballot), Acceptances>,
    /// Key and version → the chosen value.
    chosen: BTreeMap<(RecordKey, u64), Versioned>,
    /// Key and version → how many changes were answered with it.
    answered: BTreeMap<(RecordKey, u64), u32>,
}

impl History {
    /// A voter list was seen.
    ///
    /// # Errors
    /// [`Broken`] for a second list of the same number, or one that is not one voter away from its neighbours.
    pub fn listed(&mut self, list: &VoterList) -> Result<(), Broken> {
        let name = "a_number_has_one_list";
        let known = self.lists.entry(list.number).or_insert_with(|| list.clone());
        if known != list {
            return broken(name, &RecordKey::mesh(), format!("{known:?} and {list:?}"));
        }
        for other in [list.number.wrapping_sub(1), list.number.wrapping_add(1)] {
            let Some(other) = self.lists.get(&other) else { continue };
            let differ = |a: &VoterList, b: &VoterList| a.voters.iter().filter(|v| !b.has(v)).count();
            if differ(list, other) + differ(other, list) != 1 {
                return broken(name, &RecordKey::mesh(), format!("{other:?} beside {list:?}"));
            }
        }
        Ok(())
    }

    /// A voter has made an acceptance durable, under the list of this number.
    ///
    /// Votes under a list and under the one before it count together for the newer one: the two differ by one voter, so
    /// every later round of either meets them.
    ///
    /// # Errors
    /// [`Broken`] if the ballot had another value, or if this makes a second value of a version chosen.
    pub fn accepted(
        &mut self,
        voter: &Voter,
        list: u64,
        key: &RecordKey,
        ballot: &Ballot,
        record: &Versioned,
    ) -> Result<(), Broken> {
        let entry = self.accepted.entry((key.clone(), ballot.clone()));
        let (known, voters) = entry.or_insert_with(|| (record.clone(), Vec::new()));
        a_ballot_has_one_value(key, &(ballot.clone(), known.clone()), &(ballot.clone(), record.clone()))?;
        if !voters.iter().any(|(v, _)| v == voter) {
            voters.push((voter.clone(), list));
        }
        let (voters, lists) = (&*voters, &self.lists);
        let votes = |l: &VoterList, v: &(Voter, u64)| (v.1 == l.number || v.1 + 1 == l.number) && l.has(&v.0);
        let won = |l: &VoterList| voters.iter().filter(|v| votes(l, v)).count() >= l.majority();
        if lists.values().any(won) {
            let chosen = self.chosen.entry((key.clone(), record.version)).or_insert_with(|| record.clone());
            one_value_per_version(key, chosen, record)?;
        }
        Ok(())
    }

    /// Somebody holds or tells this value as chosen.
    ///
    /// A majority of a list that holds one ballot is enough, whenever its voters accepted it: no later round misses it.
    ///
    /// # Errors
    /// [`Broken`] if no majority accepted it, or if another value of the version is chosen.
    pub fn told_as_chosen(&mut self, key: &RecordKey, record: &Versioned) -> Result<(), Broken> {
        if let Some(chosen) = self.chosen.get(&(key.clone(), record.version)) {
            return one_value_per_version(key, chosen, record);
        }
        let lists = &self.lists;
        let held = |voters: &[(Voter, u64)]| {
            let votes = |l: &VoterList| voters.iter().filter(|(v, under)| *under <= l.number && l.has(v)).count();
            lists.values().any(|l| votes(l) >= l.majority())
        };
        let of_key = self.accepted.iter().filter(|((k, _), (known, _))| k == key && known == record);
        if !of_key.map(|(_, (_, voters))| voters).any(|voters| held(voters)) {
            return broken("copies_are_chosen", key, format!("{record:?} was accepted by no majority"));
        }
        self.chosen.insert((key.clone(), record.version), record.clone());
        Ok(())
    }

    /// A change was answered with this version.
    ///
    /// # Errors
    /// [`Broken`] if another one was before.
    pub fn changed(&mut self, key: &RecordKey, version: u64) -> Result<(), Broken> {
        let count = self.answered.entry((key.clone(), version)).or_insert(0);
        *count += 1;
        if *count > 1 {
            return broken("one_answer_per_version", key, format!("version {version} twice"));
        }
        Ok(())
    }

    /// The chosen value of a version.
    pub fn chosen(&self, key: &RecordKey, version: u64) -> Option<&Versioned> {
        self.chosen.get(&(key.clone(), version))
    }

    /// Whether a text is the chosen value of any version of a key.
    pub fn has_chosen(&self, key: &RecordKey, value: &str) -> bool {
        self.versions(key).any(|(_, chosen)| &*chosen.value == value)
    }

    fn versions(&self, key: &RecordKey) -> impl DoubleEndedIterator<Item = (&(RecordKey, u64), &Versioned)> {
        self.chosen.range((key.clone(), 0)..=(key.clone(), u64::MAX))
    }

    /// The newest chosen version of a key; 0 if there is none.
    pub fn newest(&self, key: &RecordKey) -> u64 {
        self.versions(key).next_back().map_or(0, |((_, v), _)| *v)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{MemberId, StoreId};

    fn voter(i: u8) -> Voter {
        Voter { member: MemberId::new(format!("m{i}")).unwrap(), store: StoreId([i; 16]) }
    }

    fn list(number: u64, voters: &[u8]) -> VoterList {
        VoterList::new(number, voters.iter().map(|i| voter(*i)).collect())
    }

    fn ballot(counter: u64) -> Ballot {
        Ballot { counter, member: voter(1).member, start: 1 }
    }

    fn value(version: u64, text: &str) -> Versioned {
        Versioned { version, announced: version, value: text.into() }
    }

    fn key() -> RecordKey {
        RecordKey::new("k").unwrap()
    }

    #[test]
    fn lists_are_one_voter_apart() {
        let mut h = History::default();
        assert!(h.listed(&list(1, &[1, 2, 3])).is_ok());
        assert!(h.listed(&list(1, &[1, 2, 3])).is_ok());
        assert!(h.listed(&list(1, &[1, 2, 4])).is_err(), "another list of the same number");
        assert!(h.listed(&list(2, &[1, 2, 4])).is_err(), "one out and one in");
    }

    #[test]
    fn two_chosen_values_of_a_version_are_seen() {
        let mut h = History::default();
        h.listed(&list(1, &[1, 2, 3])).unwrap();
        for i in [1, 2] {
            assert!(h.accepted(&voter(i), 1, &key(), &ballot(1), &value(1, "x")).is_ok());
        }
        assert!(h.told_as_chosen(&key(), &value(1, "x")).is_ok());
        assert!(h.accepted(&voter(2), 1, &key(), &ballot(2), &value(1, "y")).is_ok(), "not chosen yet");
        assert!(h.told_as_chosen(&key(), &value(1, "y")).is_err());
        assert!(h.accepted(&voter(3), 1, &key(), &ballot(2), &value(1, "y")).is_err());
    }

    #[test]
    fn votes_of_stores_that_are_not_listed_do_not_choose() {
        let mut h = History::default();
        h.listed(&list(1, &[1, 2, 3])).unwrap();
        let emptied = Voter { store: StoreId([9; 16]), ..voter(2) };
        h.accepted(&voter(1), 1, &key(), &ballot(1), &value(1, "x")).unwrap();
        h.accepted(&emptied, 1, &key(), &ballot(1), &value(1, "x")).unwrap();
        h.accepted(&voter(1), 1, &key(), &ballot(1), &value(1, "x")).unwrap();
        assert_eq!(h.newest(&key()), 0);
    }

    #[test]
    fn a_ballot_with_two_values_is_seen() {
        let mut h = History::default();
        h.accepted(&voter(1), 1, &key(), &ballot(1), &value(1, "x")).unwrap();
        assert!(h.accepted(&voter(2), 1, &key(), &ballot(1), &value(1, "y")).is_err());
    }

    #[test]
    fn steps_back_are_seen() {
        assert!(versions_never_go_back(&key(), Some(&value(2, "x")), &value(1, "x")).is_err());
        assert!(versions_never_go_back(&key(), Some(&value(2, "x")), &value(2, "y")).is_err());
        assert!(versions_never_go_back(&key(), Some(&value(2, "x")), &value(2, "x")).is_ok());
        assert!(promises_never_go_back(&key(), Some(&ballot(2)), Some(&ballot(1)), None).is_err());
        assert!(promises_never_go_back(&key(), None, Some(&ballot(1)), Some(&ballot(2))).is_err());
        let mut h = History::default();
        assert!(h.changed(&key(), 1).is_ok() && h.changed(&key(), 1).is_err());
    }
}
