//! Changes of settings that members have yet to get, because they were away when the others got them.
//!
//! Each change is kept under its task, in the index's record, until its members have it: settings are sent as they came, so the
//! same changes in the same order give the same settings, and what a node hides when it is asked is not lost. Their order is
//! that of the record's versions with which they came: tasks that are begun later may have lower numbers. Rule: a member that
//! misses one serves nothing of the index, and gets no later one before it, or gets the later one once more behind it:
//! also one that was on its way to all when the member got what it had missed. Must not know: who is away, nodes, the
//! ledger.

use std::collections::BTreeSet;

use crate::types::limits::MISSED_SETTINGS_MAX_BYTES;
use crate::types::{CaughtUp, IndexRecord, MemberId, MissedSettings, RecordVersion, TaskUid};

/// Whether a change of so many bytes may be kept beside those that are there.
pub fn has_room(record: &IndexRecord, bytes: usize) -> bool {
    let kept: usize = record.missed_settings.values().map(|missed| missed.patch.len()).sum();
    kept.saturating_add(bytes) <= MISSED_SETTINGS_MAX_BYTES
}

/// These members miss the change of a task, which came with version `place`; of others than `holders` nothing is kept any more.
pub fn add(
    record: &mut IndexRecord,
    (task, place): (TaskUid, RecordVersion),
    members: &BTreeSet<MemberId>,
    patch: &str,
    holders: &BTreeSet<MemberId>,
) {
    if !members.is_empty() {
        let new = || MissedSettings { place, members: BTreeSet::new(), patch: patch.to_owned() };
        record.missed_settings.entry(task).or_insert_with(new).members.extend(members.iter().cloned());
    }
    keep(record, |member| holders.contains(member));
    record.caught_up.retain(|member, _| holders.contains(member));
}

/// The change that a member is to get next.
pub fn next<'a>(record: &'a IndexRecord, member: &MemberId) -> Option<(TaskUid, &'a str)> {
    let all = record.missed_settings.iter().filter(|(_, missed)| missed.members.contains(member));
    let next = all.min_by_key(|(task, missed)| (missed.place, **task));
    next.map(|(task, missed)| (*task, &*missed.patch))
}

/// Whether a member misses a change behind that place.
pub fn misses_later(record: &IndexRecord, place: RecordVersion, member: &MemberId) -> bool {
    record.missed_settings.values().any(|missed| missed.place > place && missed.members.contains(member))
}

/// Whose node has all settings of the index: this member's, or another's that holds copies and is not `me`.
pub fn settled<'a>(record: &'a IndexRecord, first: &'a MemberId, me: &MemberId) -> Option<&'a MemberId> {
    let others = record.members().into_iter().filter(|member| *member != me);
    std::iter::once(first).chain(others).find(|member| !record.misses_settings(member))
}

/// Whether a member has got a change that it had missed, and said so behind that version of the record: what it took by
/// an order of that version, or an earlier one, may stand before that change in its node.
pub fn got_since(record: &IndexRecord, version: RecordVersion, member: &MemberId) -> bool {
    record.caught_up.get(member).is_some_and(|got| got.at > version)
}

/// The same, where what it got is to stand before the change with that place.
pub fn got_since_before(
    record: &IndexRecord,
    (version, place): (RecordVersion, RecordVersion),
    member: &MemberId,
) -> bool {
    record.caught_up.get(member).is_some_and(|got| got.at > version && got.place < place)
}

/// A member has got the change of a task, as this version of the record says first: unless an earlier one was noted
/// meanwhile, behind which it needs this one again.
pub fn got(record: &mut IndexRecord, task: TaskUid, member: &MemberId, version: RecordVersion) {
    let is_next = next(record, member).is_some_and(|(next, _)| next == task);
    if let Some(missed) = record.missed_settings.get_mut(&task).filter(|_| is_next) {
        missed.members.remove(member);
        record.caught_up.insert(member.clone(), CaughtUp { at: version, place: missed.place });
    }
    keep(record, |_| true);
}

/// Nobody gets the change of a task: all who were there have refused it.
pub fn withdraw(record: &mut IndexRecord, task: TaskUid) {
    record.missed_settings.remove(&task);
}

fn keep(record: &mut IndexRecord, stays: impl Fn(&MemberId) -> bool) {
    record.missed_settings.retain(|_, missed| {
        missed.members.retain(|member| stays(member));
        !missed.members.is_empty()
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{IndexUid, PhysicalIndex, ReplicaState, ShardRecord, ShardReplica};

    fn record() -> IndexRecord {
        IndexRecord {
            uid: IndexUid::new("a").unwrap(),
            physical: PhysicalIndex::new("a__m00000001").unwrap(),
            primary_key: None,
            settings_version: 0,
            client_settings: Default::default(),
            missed_settings: Default::default(),
            caught_up: Default::default(),
            shards: Vec::new(),
            created_at: String::new(),
            updated_at: String::new(),
            deleted: false,
        }
    }

    fn set(members: &[&str]) -> BTreeSet<MemberId> {
        members.iter().map(|m| MemberId::new(*m).unwrap()).collect()
    }

    fn member(name: &str) -> MemberId {
        MemberId::new(name).unwrap()
    }

    #[test]
    fn a_member_gets_what_it_missed_in_the_order_of_the_record_and_then_misses_nothing() {
        let (mut record, all) = (record(), set(&["a", "b", "c"]));
        // Whoever begun the second had numbers to spare.
        add(&mut record, (TaskUid(9), 2), &set(&["b", "c"]), "nine", &all);
        add(&mut record, (TaskUid(4), 3), &set(&["b"]), "four", &all);
        // Somebody who had taken it is found to be away.
        add(&mut record, (TaskUid(4), 5), &set(&["a"]), "four", &all);
        assert!(["a", "b", "c"].iter().all(|m| record.misses_settings(&member(m))));
        assert_eq!(next(&record, &member("b")), Some((TaskUid(9), "nine")));
        assert!(misses_later(&record, 2, &member("b")) && !misses_later(&record, 3, &member("b")));
        got(&mut record, TaskUid(9), &member("b"), 10);
        assert_eq!(next(&record, &member("b")), Some((TaskUid(4), "four")));
        got(&mut record, TaskUid(4), &member("b"), 11);
        assert!(next(&record, &member("b")).is_none() && !record.misses_settings(&member("b")));
        got(&mut record, TaskUid(4), &member("a"), 12);
        got(&mut record, TaskUid(9), &member("c"), 13);
        got(&mut record, TaskUid(9), &member("c"), 14);
        assert!(record.missed_settings.is_empty());
    }

    #[test]
    fn a_change_that_was_got_before_an_earlier_one_was_noted_is_got_again_behind_it() {
        let (mut record, all, b) = (record(), set(&["a", "b"]), member("b"));
        add(&mut record, (TaskUid(2), 7), &set(&["b"]), "later", &all);
        // While the member is at it, it is found to have gone away before it had done another.
        assert_eq!(next(&record, &b), Some((TaskUid(2), "later")));
        add(&mut record, (TaskUid(1), 5), &set(&["b"]), "earlier", &all);
        got(&mut record, TaskUid(2), &b, 15);
        assert_eq!(next(&record, &b), Some((TaskUid(1), "earlier")));
        got(&mut record, TaskUid(1), &b, 16);
        assert_eq!(next(&record, &b), Some((TaskUid(2), "later")));
        got(&mut record, TaskUid(2), &b, 17);
        assert!(record.missed_settings.is_empty());
    }

    #[test]
    fn it_is_known_since_when_a_member_has_got_what_it_had_missed() {
        let (mut record, all, b) = (record(), set(&["a", "b"]), member("b"));
        add(&mut record, (TaskUid(1), 3), &set(&["b"]), "one", &all);
        add(&mut record, (TaskUid(2), 4), &set(&["b"]), "two", &all);
        // Not the next: it stays as it is.
        got(&mut record, TaskUid(2), &b, 5);
        assert!(!got_since(&record, 0, &b));
        got(&mut record, TaskUid(1), &b, 6);
        assert_eq!([5, 6].map(|version| got_since(&record, version, &b)), [true, false]);
        got(&mut record, TaskUid(2), &b, 8);
        assert_eq!([7, 8].map(|version| got_since(&record, version, &b)), [true, false]);
        // What it got came with version 4: a change that came with 3 stands before that everywhere.
        let cases = [(7, 5), (7, 3), (8, 5)];
        assert_eq!(cases.map(|given| got_since_before(&record, given, &b)), [true, false, false]);
        // Twice is once.
        got(&mut record, TaskUid(2), &b, 9);
        assert!(!got_since(&record, 8, &b) && !got_since(&record, 0, &member("a")));
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<IndexRecord>(&text).unwrap(), record);
        // Of members that are gone nothing is kept.
        add(&mut record, (TaskUid(3), 10), &set(&[]), "three", &set(&["a"]));
        assert!(record.caught_up.is_empty());
    }

    #[test]
    fn what_nobody_is_to_get_any_more_is_not_kept() {
        let (mut record, all) = (record(), set(&["a", "b", "c"]));
        add(&mut record, (TaskUid(1), 1), &set(&[]), "one", &all);
        assert!(record.missed_settings.is_empty());
        add(&mut record, (TaskUid(1), 1), &set(&["b", "c"]), "one", &all);
        add(&mut record, (TaskUid(2), 2), &set(&["b"]), "two", &all);
        withdraw(&mut record, TaskUid(2));
        assert_eq!(record.missed_settings.len(), 1);
        add(&mut record, (TaskUid(3), 3), &set(&[]), "three", &set(&["a", "c"]));
        assert_eq!(record.missed_settings[&TaskUid(1)].members, set(&["c"]));
    }

    #[test]
    fn settings_are_taken_from_who_misses_none() {
        let copy = |name| ShardReplica { member: member(name), state: ReplicaState::Replica };
        let shard = |names: [&'static str; 2]| ShardRecord { replicas: names.map(copy).into() };
        let mut record = IndexRecord { shards: vec![shard(["a", "b"]), shard(["c", "b"])], ..record() };
        let (me, source) = (member("a"), member("b"));
        assert_eq!(settled(&record, &source, &me), Some(&source));
        add(&mut record, (TaskUid(1), 1), &set(&["b"]), "{}", &set(&["a", "b", "c"]));
        assert_eq!(settled(&record, &source, &me), Some(&member("c")));
        add(&mut record, (TaskUid(1), 1), &set(&["c"]), "{}", &set(&["a", "b", "c"]));
        assert_eq!(settled(&record, &source, &me), None);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let (mut record, all) = (record(), set(&["a"]));
        assert!(has_room(&record, MISSED_SETTINGS_MAX_BYTES) && !has_room(&record, usize::MAX));
        add(&mut record, (TaskUid(1), 1), &all, &"x".repeat(100), &all);
        assert!(has_room(&record, MISSED_SETTINGS_MAX_BYTES - 100));
        assert!(!has_room(&record, MISSED_SETTINGS_MAX_BYTES - 99));
    }

    #[test]
    fn a_record_of_before_reads_and_one_without_says_nothing_of_it() {
        let text = serde_json::to_string(&record()).unwrap();
        assert!(!text.contains("missed") && !text.contains("caught_up"), "{text}");
        assert_eq!(serde_json::from_str::<IndexRecord>(&text).unwrap(), record());
        let mut some = record();
        add(&mut some, (TaskUid(7), 3), &set(&["b"]), "{\"a\":1}", &set(&["b"]));
        let text = serde_json::to_string(&some).unwrap();
        assert_eq!(serde_json::from_str::<IndexRecord>(&text).unwrap(), some);
    }
}
