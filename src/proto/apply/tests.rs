//! Runs of the small world: some time of entries and faults, then everything must be applied and right.
//!
//! `MIROIR_SEEDS=first..end` runs those seeds; a single one tells what happens. Rule: a test looks at what is durable and at
//! the node, never into the core.

use std::collections::{BTreeMap, BTreeSet};
#[cfg(test)]
use std::env;
use std::time::Duration;

use super::effect::{LaneRow, Probed};
use super::notes::State;
use super::simulated::{Faults, World};
use super::{
    Answer, Applier, Config, Copied, Effect, Flaw, Group, Head, Listed, Note, Outcome, Page, Span, Status, Stop,
    Stored, Tag, TaskRef,
};
use crate::proto::env::{Env, Instant};
use crate::proto::journal::Kind;
use crate::proto::snapshot::Source;
use crate::types::ShardId;

const KIND: Faults = Faults {
    lost: 0,
    late: 0,
    crash: 0,
    restart: 0,
    put_back: 0,
    repeat: 0,
    unseen: 0,
    trouble: 0,
    cancel: 0,
    prune: 0,
    trim: 0,
    unread: 0,
};

/// Runs so many seeds, or those that a person asks for, and adds up what was seen; `None` if a person asked.
fn run(count: u64, faults: impl Fn(u64) -> Faults) -> Option<BTreeMap<&'static str, u64>> {
    let text = env::var("MIROIR_SEEDS").ok();
    let asked = text.as_deref().and_then(|s| s.split_once(".."));
    let asked = asked.map(|(first, end)| first.parse().unwrap()..end.parse().unwrap());
    let seeds = asked.clone().unwrap_or(0..count);
    let trace = seeds.end == seeds.start + 1;
    let mut counts = BTreeMap::new();
    for seed in seeds {
        let mut world = World::new(seed, 1 + (seed % 5) as u16, faults(seed));
        world.trace = trace;
        world.run(Duration::from_secs(4));
        world.heal();
        world.run(Duration::from_secs(120));
        world.check_end();
        for (what, n) in world.counts {
            *counts.entry(what).or_default() += n;
        }
    }
    asked.is_none().then_some(counts)
}

/// What a test is about was there often enough.
fn assert_seen(counts: Option<BTreeMap<&'static str, u64>>, wanted: &[(&str, u64)]) {
    let Some(counts) = counts else { return };
    for (what, least) in wanted {
        assert!(counts.get(what).is_some_and(|n| n >= least), "{what}: {counts:?}");
    }
}

#[test]
fn bad_entries_are_found_and_the_rest_is_applied() {
    let counts = run(40, |_| KIND);
    let often = ["verdicts", "own verdicts", "asked", "mismatches", "takes", "troubles"].map(|what| (what, 10));
    assert_seen(counts.clone(), &often);
    assert_seen(counts, &[("compared", 1_000)]);
}

#[test]
fn nothing_is_lost_or_done_twice_whatever_dies() {
    let counts = run(40, |_| Faults { lost: 60, crash: 8, restart: 20, trouble: 20, unread: 20, ..KIND });
    assert_seen(counts, &[("crashes", 100), ("restarts", 20), ("compared", 1_000)]);
}

#[test]
fn a_node_that_was_put_back_is_brought_up_again() {
    let counts = run(60, |seed| Faults {
        lost: 20,
        crash: if seed % 2 == 0 { 0 } else { 5 },
        restart: 30,
        put_back: 400,
        unseen: if seed % 3 == 0 { 500 } else { 0 },
        trim: 50,
        ..KIND
    });
    assert_seen(counts, &[("put back", 20), ("unapplied", 20), ("rebuilt", 10)]);
}

#[test]
fn what_a_node_does_again_after_it_died_is_done_once() {
    let counts = run(60, |seed| Faults { restart: 150, repeat: 900, lost: 20, crash: seed as u32 % 2 * 4, ..KIND });
    assert_seen(counts, &[("repeated", 10), ("rebuilt", 20)]);
}

#[test]
fn an_operator_at_the_node_does_no_harm() {
    let counts = run(40, |_| Faults { cancel: 40, prune: 40, lost: 20, crash: 4, ..KIND });
    assert_seen(counts, &[("canceled", 50), ("pruned", 50), ("probes", 10)]);
}

#[test]
fn what_comes_after_it_was_given_up_is_set_right() {
    let counts = run(90, |_| Faults { late: 20, lost: 20, crash: 2, ..KIND });
    assert_seen(counts, &[("unapplied", 10), ("rebuilt", 10)]);
}

#[test]
fn everything_at_once_is_survived() {
    let faults = Faults {
        lost: 30,
        late: 5,
        crash: 5,
        restart: 20,
        put_back: 200,
        repeat: 100,
        unseen: 100,
        trouble: 20,
        cancel: 10,
        prune: 10,
        trim: 20,
        unread: 10,
    };
    run(60, |_| faults);
}

/// An applier of one shard, driven by hand; the node's list is always the same.
struct Scripted {
    core: Applier,
    rng: fastrand::Rng,
    now: Instant,
    page: Page,
    deletion: Option<TaskRef>,
    kind: Kind,
    seen: Vec<Effect>,
}

const SHARD: ShardId = ShardId(0);

fn task(uid: u32, stamp: &str) -> TaskRef {
    TaskRef { uid, enqueued_at: stamp.to_owned() }
}

fn listed(uid: u32, stamp: &str) -> Listed {
    let (task, tag) = (task(uid, stamp), Tag::None);
    Listed { task, batch: Some(uid), group: Group::Addition, tag, status: Status::Succeeded, began: None, count: None }
}

fn done(seq: u64, kind: Kind, task: TaskRef) -> Note {
    let spans = vec![Span { shard: SHARD, first: seq, last: seq }];
    let (state, without, first) = (State::Done(task), [].into(), (SHARD, seq));
    Note { after: None, kind, spans, without, entries: 1, first, alone: false, state }
}

impl Scripted {
    fn begin(stored: Stored, page: Page, deletion: Option<TaskRef>) -> Self {
        let (mut rng, now) = (fastrand::Rng::with_seed(1), Instant(0));
        let config = Config { gather: Duration::ZERO, ..Config::default() };
        let core = Applier::recover(&mut Env { now, rng: &mut rng }, config, stored);
        let mut scripted = Self { core, rng, now, page, deletion, kind: Kind::Edit, seen: Vec::new() };
        scripted.tell(|core, env| core.handle_node(env, true));
        scripted
    }

    fn tell(&mut self, input: impl FnOnce(&mut Applier, &mut Env)) {
        input(&mut self.core, &mut Env { now: self.now, rng: &mut self.rng });
        while let Some(effect) = self.core.poll_effect() {
            let mut env = Env { now: self.now, rng: &mut self.rng };
            match &effect {
                Effect::List { ticket, .. } => self.core.handle_page(&mut env, *ticket, self.page.clone()),
                Effect::Probe { ticket, .. } => {
                    let probed = Probed { enqueued_at: None, deletion: self.deletion.clone() };
                    self.core.handle_probed(&mut env, *ticket, probed);
                }
                Effect::Load { ticket, shard, from: 1, .. } => {
                    let head = Head { seq: 1, kind: self.kind, weight: 1, failed: false, part: None };
                    self.core.handle_heads(&mut env, *shard, *ticket, vec![head]);
                }
                _ => {}
            }
            self.seen.push(effect);
        }
        self.core.check();
    }

    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds * 10 {
            self.now = self.now.plus(Duration::from_millis(100));
            self.tell(Applier::handle_tick);
        }
    }

    fn saw(&self, effect: &Effect) -> bool {
        self.seen.contains(effect)
    }

    /// The shards of each request, in order.
    fn sent(&self) -> Vec<Vec<u16>> {
        let shards = |effect: &Effect| match effect {
            Effect::Enqueue(request) => Some(request.spans.iter().map(|span| span.shard.0).collect()),
            _ => None,
        };
        self.seen.iter().filter_map(shards).collect()
    }

    /// With so many shards to which nothing was applied.
    fn of(shards: u16, kind: Kind) -> Self {
        let lanes = (0..shards).map(|shard| (ShardId(shard), LaneRow::default())).collect();
        let mut scripted = Self::begin(Stored { lanes, ..Stored::default() }, Page::default(), None);
        scripted.kind = kind;
        scripted.pass(1);
        scripted
    }
}

/// What keeps conditional entries waiting would wait itself for one that has gone to the node and is not done.
#[test]
fn a_conditional_entry_that_did_not_get_through_goes_again_whatever_is_to_wait() {
    let mut scripted = Scripted::of(1, Kind::Edit);
    scripted.tell(|core, env| core.handle_committed(env, SHARD, 1));
    scripted.tell(|core, env| core.handle_answered(env, 1, Answer::NotSent));
    assert_eq!(scripted.core.standing(SHARD).map(|s| (s.conditional, s.applied)), Some((1, 0)));
    let until = scripted.now.plus(Duration::from_secs(600));
    scripted.tell(|core, env| core.handle_stop(env, SHARD, Some((Stop::Conditional, until))));
    scripted.pass(2);
    assert_eq!(scripted.sent(), [[0], [0]]);
    // One that never went waits.
    let mut scripted = Scripted::of(1, Kind::Edit);
    let until = scripted.now.plus(Duration::from_secs(600));
    scripted.tell(|core, env| core.handle_stop(env, SHARD, Some((Stop::Conditional, until))));
    scripted.tell(|core, env| core.handle_committed(env, SHARD, 1));
    scripted.pass(2);
    assert!(scripted.sent().is_empty());
}

#[test]
fn what_could_not_be_sent_for_long_goes_at_once_when_it_can() {
    let mut scripted = Scripted::of(1, Kind::Delete);
    scripted.tell(|core, env| core.handle_committed(env, SHARD, 1));
    for note in 1..=12 {
        assert_eq!(scripted.sent().len(), note);
        scripted.tell(|core, env| core.handle_answered(env, note as u64, Answer::NotSent));
        if note < 12 {
            scripted.pass(60);
        }
    }
    scripted.pass(5);
    assert_eq!(scripted.sent().len(), 12, "it waits");
    scripted.tell(Applier::handle_ready);
    assert_eq!(scripted.sent().len(), 13);
}

#[test]
fn an_entry_that_another_primary_has_applied_has_not_failed_any_more() {
    let row = LaneRow { applied: 3, ..LaneRow::default() };
    let mut scripted =
        Scripted::begin(Stored { lanes: [(SHARD, row)].into(), ..Stored::default() }, Page::default(), None);
    scripted.tell(|core, env| core.handle_applied_elsewhere(env, SHARD, 2));
    assert!(scripted.saw(&Effect::Mismatch { shard: SHARD, seq: 2 }));
    let unfailed = |effect: &Effect| matches!(effect, Effect::Persist(rows) if rows.unfailed.contains(&(SHARD, 2)));
    assert!(scripted.seen.iter().any(unfailed), "it would be passed over when it is done again");
}

#[test]
fn only_what_waits_of_shards_that_the_member_leads_has_writes_refused() {
    let mut scripted = Scripted::of(2, Kind::Set { skip_creation: false });
    let (own, followed) = (ShardId(0), ShardId(1));
    scripted.core.config.behind = 5;
    scripted.tell(|core, env| core.handle_reign(env, own, true));
    scripted.tell(|core, env| core.handle_committed(env, followed, 50));
    scripted.tell(|core, env| core.handle_committed(env, own, 5));
    assert!(!scripted.saw(&Effect::Pressure(true)), "its node may be the only one that takes nothing");
    scripted.tell(|core, env| core.handle_committed(env, own, 6));
    assert!(scripted.saw(&Effect::Pressure(true)));
    scripted.tell(|core, env| core.handle_reign(env, own, false));
    assert!(scripted.saw(&Effect::Pressure(false)), "somebody else leads it now");
    scripted.tell(|core, env| core.handle_reign(env, followed, true));
    assert_eq!(scripted.seen.last(), Some(&Effect::Pressure(true)));
}

#[test]
fn a_shard_that_is_to_wait_keeps_no_other_waiting_after_a_failure() {
    let mut scripted = Scripted::of(3, Kind::Set { skip_creation: false });
    let [one, two, other] = [0, 1, 2].map(ShardId);
    scripted.core.config.gather = Duration::from_millis(5);
    scripted.tell(|core, env| core.handle_committed(env, one, 1));
    scripted.tell(|core, env| core.handle_committed(env, two, 1));
    scripted.pass(1);
    assert_eq!(scripted.sent(), [[0, 1]]);
    let full = Answer::Refused(Flaw::new("no_space_left_on_device", "full"));
    scripted.tell(|core, env| core.handle_answered(env, 1, full));
    scripted.tell(|core, env| core.handle_unmade(env, one));
    let copied = Copied { compare_at: Some(0), ..Copied::default() };
    scripted.tell(|core, env| core.handle_copied(env, one, copied));
    scripted.tell(|core, env| core.handle_shard_gone(env, two));
    scripted.tell(|core, env| core.handle_committed(env, other, 1));
    scripted.pass(2);
    assert_eq!(scripted.sent(), [vec![0, 1], vec![2]], "the first waits to be compared");
}

#[test]
fn a_conditional_entry_whose_task_may_have_been_deleted_is_not_done_again() {
    for deletion in [None, Some(task(7, "a"))] {
        let stored = Stored { lanes: [(SHARD, Default::default())].into(), ..Stored::default() };
        let mut scripted = Scripted::begin(stored, Page::default(), deletion.clone());
        scripted.tell(|core, env| core.handle_committed(env, SHARD, 1));
        scripted.tell(|core, env| core.handle_answered(env, 1, Answer::Unknown));
        scripted.pass(8);
        let requests = scripted.seen.iter().filter(|effect| matches!(effect, Effect::Enqueue(_))).count();
        assert_eq!(requests, if deletion.is_some() { 1 } else { 2 });
        assert_eq!(scripted.saw(&Effect::Rebuild { shard: SHARD }), deletion.is_some());
    }
}

#[test]
fn a_node_with_nothing_to_do_is_given_what_comes_within_a_moment_in_one_request() {
    let (one, other) = (SHARD, ShardId(SHARD.0 + 1));
    let lanes = [(one, LaneRow::default()), (other, LaneRow::default())].into();
    let mut scripted = Scripted::begin(Stored { lanes, ..Stored::default() }, Page::default(), None);
    scripted.core.config.gather = Duration::from_millis(5);
    scripted.kind = Kind::Set { skip_creation: false };
    scripted.pass(1);
    scripted.tell(|core, env| core.handle_committed(env, one, 1));
    scripted.tell(|core, env| core.handle_committed(env, other, 1));
    let sent = |scripted: &Scripted| -> Vec<usize> {
        let spans =
            |effect: &Effect| if let Effect::Enqueue(request) = effect { Some(request.spans.len()) } else { None };
        scripted.seen.iter().filter_map(spans).collect()
    };
    assert!(sent(&scripted).is_empty(), "the first waits for the second");
    assert!(scripted.core.next_wake().is_some_and(|at| at <= scripted.now.plus(Duration::from_millis(5))));
    scripted.now = scripted.now.plus(Duration::from_millis(5));
    scripted.tell(Applier::handle_tick);
    assert_eq!(sent(&scripted), [2]);
}

/// The node's list with one edit that it began then.
fn edit(status: Status, began: i64) -> Page {
    let listed = Listed { group: Group::Edition, tag: Tag::Note(1), status, began: Some(began), ..listed(7, "a") };
    Page { tasks: vec![listed], newest: Some(7), next: None }
}

/// An edit is under way; then the node says `began` of it twice, or is told to come again, and then that it is done.
fn edited(alone: bool, began: [i64; 2], comes: bool) -> Vec<Effect> {
    let mut scripted = Scripted::of(1, Kind::Edit);
    scripted.tell(|core, env| core.handle_alone(env, SHARD, alone));
    scripted.tell(|core, env| core.handle_committed(env, SHARD, 1));
    scripted.tell(|core, env| core.handle_answered(env, 1, Answer::Taken(task(7, "a"))));
    scripted.page = edit(Status::Waiting, began[0]);
    scripted.pass(1);
    if comes {
        scripted.tell(|core, env| core.handle_node(env, true));
    }
    scripted.page = edit(Status::Succeeded, began[1]);
    scripted.pass(1);
    assert_eq!(scripted.core.standing(SHARD).map(|s| s.idle), Some(true));
    scripted.seen
}

#[test]
fn an_edit_that_may_have_been_done_twice_leads_to_a_new_copy_where_there_is_another() {
    let (rebuild, doubtful) = (Effect::Rebuild { shard: SHARD }, Effect::Doubtful { shard: SHARD, seq: 1 });
    let applied = Effect::Applied { shard: SHARD, to: 1 };
    for (began, comes, twice) in [([5, 5], false, false), ([5, 6], false, true), ([5, 5], true, true)] {
        let seen = edited(false, began, comes);
        assert_eq!((seen.contains(&rebuild), seen.contains(&doubtful)), (twice, false), "{began:?} {comes}");
        let seen = edited(true, began, comes);
        assert_eq!((seen.contains(&rebuild), seen.contains(&doubtful)), (false, twice), "{began:?} {comes}");
        assert!(seen.contains(&applied), "it must go on");
    }
}

#[test]
fn a_copy_in_doubt_may_stay_unless_more_is_wrong_with_it() {
    let doubted = || {
        let mut scripted = Scripted::of(1, Kind::Edit);
        scripted.tell(|core, env| core.handle_committed(env, SHARD, 1));
        scripted.tell(|core, env| core.handle_answered(env, 1, Answer::Taken(task(7, "a"))));
        scripted.page = edit(Status::Waiting, 5);
        scripted.pass(1);
        scripted.tell(|core, env| core.handle_node(env, true));
        scripted
    };
    let standing = |scripted: &Scripted| scripted.core.standing(SHARD).unwrap();
    let mut scripted = doubted();
    scripted.tell(|core, env| core.handle_kept(env, SHARD));
    let now = standing(&scripted);
    assert!(now.rebuild && now.doubtful && !now.idle, "what is under way ends first: {now:?}");
    scripted.page = edit(Status::Succeeded, 5);
    scripted.pass(2);
    scripted.tell(|core, env| core.handle_kept(env, SHARD));
    scripted.pass(2);
    let now = standing(&scripted);
    assert!(!now.rebuild && !now.doubtful && now.sound && now.applied == 1, "{now:?}");
    scripted.seen.clear();
    scripted.tell(|core, env| core.handle_committed(env, SHARD, 2));
    assert!(scripted.seen.iter().any(|effect| matches!(effect, Effect::Load { from: 2, .. })), "it goes on");

    for wrong in [Applier::handle_emptied as fn(&mut Applier, &mut Env<'_>), |core, env| core.handle_unmade(env, SHARD)]
    {
        let mut scripted = doubted();
        scripted.page = edit(Status::Succeeded, 5);
        scripted.pass(2);
        scripted.tell(wrong);
        scripted.pass(2);
        scripted.tell(|core, env| core.handle_kept(env, SHARD));
        let now = standing(&scripted);
        assert!(now.rebuild && !now.doubtful, "{now:?}");
    }
}

#[test]
fn documents_that_nobody_gives_lead_to_a_new_copy_where_there_is_another() {
    for alone in [false, true] {
        let row = LaneRow { applied: 3, ..LaneRow::default() };
        let stored = Stored { lanes: [(SHARD, row)].into(), ..Stored::default() };
        let mut scripted = Scripted::begin(stored, Page::default(), None);
        scripted.pass(1);
        scripted.tell(|core, env| core.handle_alone(env, SHARD, alone));
        scripted.tell(|core, env| core.handle_verdict(env, SHARD, 2, Outcome::Failed(Flaw::new("bad", "it is"))));
        scripted.pass(2);
        let seqs: BTreeSet<u64> = [2].into();
        assert!(scripted.saw(&Effect::Take { shard: SHARD, seqs: seqs.clone() }));
        scripted.tell(|core, env| core.handle_taken(env, SHARD, None));
        scripted.pass(2);
        assert_eq!(scripted.saw(&Effect::Rebuild { shard: SHARD }), !alone);
        assert_eq!(scripted.saw(&Effect::Untaken { shard: SHARD, seqs }), alone);
        assert_eq!(scripted.core.standing(SHARD).unwrap().sound, alone);
    }
}

/// It may have come between the documents of the copy, or behind them.
#[test]
fn a_copy_into_which_a_request_came_that_was_given_up_is_made_once_more() {
    for comes in [false, true] {
        let mut scripted = Scripted::of(1, Kind::Clear);
        scripted.tell(|core, env| core.handle_committed(env, SHARD, 1));
        scripted.tell(|core, env| core.handle_answered(env, 1, Answer::Unknown));
        scripted.pass(8);
        scripted.tell(|core, env| core.handle_answered(env, 2, Answer::NotSent));
        scripted.tell(|core, env| core.handle_unmade(env, SHARD));
        scripted.pass(1);
        assert!(scripted.saw(&Effect::Rebuild { shard: SHARD }));
        let copy = Listed { tag: Tag::Other, ..listed(4, "c") };
        let late = Listed { group: Group::Deletion, tag: Tag::Note(1), ..listed(5, "b") };
        let tasks = if comes { vec![late, copy] } else { vec![copy] };
        scripted.page = Page { newest: tasks.first().map(|listed| listed.task.uid), tasks, next: None };
        scripted.pass(10);
        scripted.seen.clear();
        scripted.tell(|core, env| core.handle_shard(env, SHARD, 1, Some(task(4, "c"))));
        scripted.pass(10);
        assert_eq!(scripted.saw(&Effect::Rebuild { shard: SHARD }), comes);
    }
}

#[test]
fn a_copy_stands_where_its_node_is_and_not_where_its_journal_is() {
    let row = LaneRow { applied: 3, ..LaneRow::default() };
    let stored = Stored { lanes: [(SHARD, row)].into(), ..Stored::default() };
    let mut scripted = Scripted::begin(stored, Page::default(), None);
    scripted.pass(1);
    scripted.tell(|core, env| core.handle_committed(env, SHARD, 9));
    let standing = scripted.core.standing(SHARD).unwrap();
    assert!(standing.sound, "{standing:?}");
    assert_eq!((standing.applied, Source::position(&standing)), (3, Some(3)), "a read of it may begin there");
}

#[test]
fn a_conditional_entry_done_where_earlier_ones_were_lost_is_not_done_again() {
    let set = Kind::Set { skip_creation: false };
    let notes =
        [(1, done(1, set, task(10, "a"))), (2, done(2, set, task(11, "b"))), (3, done(3, Kind::Edit, task(12, "c")))];
    let row = LaneRow { applied: 3, conditional: 3, ..LaneRow::default() };
    let stored = Stored { lanes: [(SHARD, row)].into(), notes: notes.into(), next_note: 4 };
    for (last, rebuilt) in [("c", true), ("other", false)] {
        let tasks = vec![listed(12, last), listed(11, "other"), listed(10, "a")];
        let page = Page { tasks, newest: Some(12), next: None };
        let mut scripted = Scripted::begin(stored.clone(), page, None);
        scripted.pass(2);
        assert_eq!(scripted.saw(&Effect::Rebuild { shard: SHARD }), rebuilt);
        assert!(scripted.saw(&Effect::Unapplied { shard: SHARD, to: 1 }) && scripted.saw(&Effect::Trusted(true)));
    }
}
