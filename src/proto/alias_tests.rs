//! What aliases promise, as facts.

use super::*;

fn uid(name: &str) -> IndexUid {
    IndexUid::new(name).unwrap()
}

fn epoch(n: u64) -> Epoch {
    Epoch::new(n).unwrap()
}

/// Indexes `a` and `b`, alias `live` for `a`.
fn names() -> NamesRecord {
    let indexes = [("a", 1), ("b", 2)].map(|(name, n)| (uid(name), PhysicalIndex::of(&uid(name), n)));
    let names = NamesRecord { indexes: indexes.into(), ..NamesRecord::default() };
    create(&names, 0, &uid("live"), &uid("a")).unwrap()
}

fn plan(to: &str, version: u64) -> FlipPlan {
    FlipPlan { version, ..FlipPlan::new(uid(to)) }
}

fn physical(names: &NamesRecord, name: &str) -> String {
    resolve(names, &uid(name)).unwrap().to_string()
}

#[test]
fn a_name_is_never_index_and_alias_at_once() {
    let names = names();
    assert_eq!(create(&names, 0, &uid("b"), &uid("a")), Err(AliasError::IsIndex { name: uid("b") }));
    assert_eq!(check_new_index(&names, &uid("live")), Err(AliasError::IsAlias { name: uid("live") }));
    assert_eq!(create(&names, 0, &uid("live"), &uid("b")), Err(AliasError::IsAlias { name: uid("live") }));
    assert_eq!(create(&names, 0, &uid("x"), &uid("live")), Err(AliasError::IsAlias { name: uid("live") }));
    assert_eq!(create(&names, 0, &uid("x"), &uid("none")), Err(AliasError::NoTarget { target: uid("none") }));
    assert_eq!(rename_index(&names, &uid("a"), &uid("live")), Err(AliasError::IsAlias { name: uid("live") }));
    assert_eq!(resolve(&names, &uid("none")), None);
}

#[test]
fn a_flip_is_one_change_with_history_and_twice_is_once() {
    let before = names();
    assert_eq!(physical(&before, "live"), "a__m00000001");
    let after = flip(&before, &uid("live"), &plan("b", 2), epoch(1), "2026").unwrap().unwrap();
    assert_eq!(physical(&after, "live"), "b__m00000002");
    assert_eq!(after.aliases[&uid("live")].history, [FormerTarget { target: uid("a"), until: "2026".into() }]);
    assert_eq!(flip(&after, &uid("live"), &plan("b", 2), epoch(1), "2027"), Ok(None));
    let moved = AliasError::Moved { name: uid("live"), version: 2 };
    assert_eq!(flip(&after, &uid("live"), &plan("a", 2), epoch(1), "2027"), Err(moved));
}

#[test]
fn history_is_bounded() {
    let mut names = names();
    for version in 2..30 {
        let to = if version % 2 == 0 { "b" } else { "a" };
        names = flip(&names, &uid("live"), &plan(to, version), epoch(1), "t").unwrap().unwrap();
    }
    assert_eq!(names.aliases[&uid("live")].history.len(), ALIAS_HISTORY_MAX);
}

#[test]
fn an_earlier_leader_flips_nothing() {
    let fenced = fence(&names(), &uid("live"), epoch(3)).unwrap().unwrap();
    assert_eq!(fence(&fenced, &uid("live"), epoch(3)), Ok(None));
    let stale = || AliasError::Stale { name: uid("live"), epoch: epoch(2), highest: epoch(3) };
    assert_eq!(fence(&fenced, &uid("live"), epoch(2)), Err(stale()));
    assert_eq!(flip(&fenced, &uid("live"), &plan("b", 2), epoch(2), "t"), Err(stale()));
}

#[test]
fn an_index_that_an_alias_stands_for_is_not_deleted_and_its_new_name_is_followed() {
    let names = names();
    let in_use = AliasError::InUse { uid: uid("a"), alias: uid("live") };
    assert_eq!(check_delete_index(&names, &uid("a")), Err(in_use));
    assert_eq!(check_delete_index(&names, &uid("b")), Ok(()));
    let renamed = rename_index(&names, &uid("a"), &uid("c")).unwrap();
    assert_eq!(physical(&renamed, "live"), "a__m00000001");
    let gone = delete(&renamed, &uid("live")).unwrap();
    assert_eq!(check_delete_index(&gone, &uid("c")), Ok(()));
    assert_eq!(delete(&gone, &uid("live")), Err(AliasError::NotFound { name: uid("live") }));
}

#[test]
fn a_flip_planned_for_a_deleted_alias_does_nothing_to_one_made_again() {
    let names = names();
    let planned = plan("b", names.aliases[&uid("live")].version + 1);
    // The first change made it, the next two have deleted it and made it again.
    let again = create(&delete(&names, &uid("live")).unwrap(), 2, &uid("live"), &uid("a")).unwrap();
    let refused = flip(&again, &uid("live"), &planned, epoch(4), "now").unwrap_err();
    assert_eq!(refused, AliasError::Moved { name: uid("live"), version: 3 });
}

#[test]
fn names_are_bounded_by_count_and_by_bytes() {
    let mut names = names();
    for i in names.indexes.len()..NAMES_MAX - 1 {
        let name = uid(&format!("i{i}"));
        names.indexes.insert(name.clone(), PhysicalIndex::of(&name, 0));
    }
    assert_eq!(create(&names, 0, &uid("more"), &uid("a")), Err(AliasError::Full));
    assert_eq!(check_new_index(&names, &uid("more")), Err(AliasError::Full));
    let mut names = self::names();
    let long = |n: usize| uid(&format!("{n:0>400}"));
    let add = |names: &mut NamesRecord, name: IndexUid| names.indexes.insert(name.clone(), PhysicalIndex::of(&name, 0));
    (0..1_305).for_each(|n| drop(add(&mut names, long(n))));
    while check_new_index(&names, &long(names.indexes.len())).is_ok() {
        let name = long(names.indexes.len());
        add(&mut names, name);
    }
    assert!(names.indexes.len() < NAMES_MAX && encoded(&names) <= RECORD_MAX_BYTES);
}

#[test]
fn names_without_aliases_read_as_before() {
    let old = r#"{"indexes":{"a":"a__m00000001"}}"#;
    let names: NamesRecord = serde_json::from_str(old).unwrap();
    assert!(names.aliases.is_empty());
    assert_eq!(serde_json::to_string(&names).unwrap(), old);
}

struct Seen {
    names: NamesRecord,
    version: u64,
    confirmed: BTreeMap<MemberId, RecordVersion>,
    active: Vec<MemberId>,
    now: u64,
}

impl Seen {
    fn new() -> Self {
        let active = ["m1", "m2", "m3"].map(|m| MemberId::new(m).unwrap()).to_vec();
        Self { names: names(), version: 7, confirmed: BTreeMap::new(), active, now: 0 }
    }

    fn step(&self, e: u64, phase: &str, extra: &FlipPlan) -> Result<Step<FlipPlan, FlipAct>, AliasError> {
        let view = FlipView {
            names: (self.version, &self.names),
            confirmed: &self.confirmed,
            active: &self.active,
            epoch: epoch(e),
            now: Instant(self.now),
            since: Instant(0),
            at: "t",
            ttl_ms: 10_000,
        };
        AliasFlip { name: uid("live") }.step(phase, extra, &view)
    }

    /// Does steps until the phase is complete.
    fn phase(&mut self, e: u64, phase: &str, mut extra: FlipPlan) -> FlipPlan {
        loop {
            match self.step(e, phase, &extra).unwrap() {
                Step::Do(acts) => {
                    for act in acts {
                        let FlipAct::Write { expected, names } = act else { panic!("an order in {phase}") };
                        assert_eq!(expected, self.version);
                        (self.names, self.version) = (names, expected + 1);
                    }
                }
                Step::Next { extra: next, .. } => {
                    extra = next;
                    return extra;
                }
                Step::Done => return extra,
            }
        }
    }
}

#[test]
fn a_flip_is_confirmed_by_every_active_member_or_by_time() {
    let mut seen = Seen::new();
    let extra = seen.phase(4, "prepare", plan("b", 0));
    assert_eq!(extra.version, 2);
    let extra = seen.phase(4, "flip", extra);
    assert_eq!((physical(&seen.names, "live").as_str(), extra.names), ("b__m00000002", seen.version));
    let orders = seen.step(4, "confirm", &extra).unwrap();
    assert_eq!(orders, Step::Do(vec![FlipAct::Confirm { to: seen.active.clone(), version: extra.names }]));
    for m in seen.active.clone() {
        assert!(matches!(seen.step(4, "confirm", &extra), Ok(Step::Do(_))));
        seen.confirmed.insert(m, extra.names);
    }
    assert_eq!(seen.step(4, "confirm", &extra), Ok(Step::Done));
    seen.confirmed.clear();
    seen.now = 10_499_999;
    assert!(matches!(seen.step(4, "confirm", &extra), Ok(Step::Do(_))));
    seen.now = 10_500_000;
    let Ok(Step::Next { phase: "unconfirmed", extra: told }) = seen.step(4, "confirm", &extra) else {
        panic!("whoever has not heard of it is stale")
    };
    assert_eq!(told, FlipPlan { unconfirmed: seen.active.clone(), ..extra });
    assert_eq!(seen.step(4, "unconfirmed", &told), Ok(Step::Done));
}

#[test]
fn a_new_leader_goes_on_with_the_same_flip_after_it_has_fenced_the_old_one() {
    let mut seen = Seen::new();
    let extra = seen.phase(4, "prepare", plan("b", 0));
    seen.phase(4, "flip", extra.clone());
    // The flip is there but not recorded; the next leader finds it done.
    let again = seen.phase(5, "flip", extra.clone());
    assert_eq!((seen.names.aliases[&uid("live")].version, again.version), (2, 2));
    assert!(matches!(seen.step(4, "confirm", &again), Err(AliasError::Stale { .. })));
    assert!(matches!(seen.step(5, "confirm", &again), Ok(Step::Do(_))));
}
