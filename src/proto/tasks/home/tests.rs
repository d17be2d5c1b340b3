//! A home's promises, one by one.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::super::filter::Filter;
use super::super::kind::Status;
use super::super::page::PAGE_MAX;
use super::super::query::{Action, Listing, Query};
use super::super::task::{Head, Outcome, Subject};
use super::super::when::When;
use super::state::KEYS_MAX;
use super::*;
use crate::proto::env::{Env, Instant};
use crate::types::{MemberId, PhysicalIndex, TaskUid};

const T: TaskUid = TaskUid(16);

fn index() -> PhysicalIndex {
    PhysicalIndex::new("a__m00000001").unwrap()
}

fn member(name: &str) -> MemberId {
    MemberId::new(name).unwrap()
}

fn part(shard: u16) -> PartRef {
    PartRef { shard, part: 0 }
}

fn head(subject: Subject, work: Work) -> Head {
    Head { index_uid: Some("a".into()), subject, work, enqueued: When(5), custom_metadata: None, key: None }
}

fn clear(shards: &[u16]) -> Head {
    head(Subject::Clear, Work::Parts { index: index(), parts: Parts::one_each(shards.iter().copied()) })
}

fn done(changed: u64, error: Option<&str>, at: i64) -> Said {
    let error = error.map(|code| (code.to_owned(), "Bad.".to_owned()));
    Said::Done(Done { error, changed, started: When(at), finished: When(at + 10) })
}

fn outcome(status: Status, finished: i64) -> Outcome {
    Outcome { status, error: None, changed: 0, matched: 0, started: When(5), finished: When(finished) }
}

/// A home whose entries are committed as they are appended.
struct Lone {
    home: Home,
    rng: fastrand::Rng,
    now: Instant,
    seq: u64,
    effects: Vec<Effect>,
    /// Nothing is committed.
    held: bool,
}

impl Lone {
    fn new() -> Self {
        let mut rng = fastrand::Rng::with_seed(1);
        let env = &mut Env { now: Instant(0), rng: &mut rng };
        let home = Home::recover(env, When(100), Config::default(), HomeState::default(), false);
        Self { home, rng, now: Instant(0), seq: 0, effects: Vec::new(), held: false }
    }

    fn tell(&mut self, with: impl FnOnce(&mut Home, &mut Env<'_>)) -> Vec<Effect> {
        with(&mut self.home, &mut Env { now: self.now, rng: &mut self.rng });
        let mut out = Vec::new();
        while let Some(effect) = self.home.poll_effect() {
            if let Effect::Append { entry, .. } = &effect
                && !self.held
            {
                let entry = HomeEntry::clone(entry);
                self.seq += 1;
                let env = &mut Env { now: self.now, rng: &mut self.rng };
                self.home.handle_committed(env, When(100), self.seq, Some(entry));
            } else {
                out.push(effect);
            }
        }
        self.effects.clone_from(&out);
        out
    }

    fn wait(&mut self, span: Duration) -> Vec<Effect> {
        self.now = self.now.plus(span);
        self.tell(|home, env| home.handle_tick(env, When(100)))
    }

    fn take(&mut self, uid: TaskUid, head: Head) -> Answer {
        self.ask(|home, env, op| home.handle_head(env, op, uid, head))
    }

    fn ask(&mut self, with: impl FnOnce(&mut Home, &mut Env<'_>, OpId)) -> Answer {
        let effects = self.tell(|home, env| with(home, env, OpId(1)));
        let answers = effects.into_iter().filter_map(|e| match e {
            Effect::Answer { answer, .. } => Some(answer),
            _ => None,
        });
        let answers: Vec<Answer> = answers.collect();
        assert_eq!(answers.len(), 1, "one answer");
        answers.into_iter().next().unwrap()
    }

    fn awaited(&mut self, shards: &[(u16, &[&str])]) {
        let set = |names: &[&str]| names.iter().map(|n| member(n)).collect::<BTreeSet<_>>();
        let shards = shards.iter().map(|(shard, names)| (*shard, set(names))).collect();
        self.tell(|home, env| home.handle_awaited(env, When(100), index(), Some(shards)));
    }

    fn report(&mut self, from: &str, parts: Vec<(TaskUid, PartRef, Said)>) -> Vec<Effect> {
        let report = Report { parts, heads: Vec::new() };
        self.tell(|home, env| home.handle_report(env, When(100), &member(from), report))
    }

    fn outcome(&self, uid: TaskUid) -> Option<Outcome> {
        self.home.state().task(uid).and_then(|row| row.outcome.clone())
    }
}

#[test]
fn a_task_succeeds_when_every_awaited_replica_has_applied_every_part() {
    let mut t = Lone::new();
    assert_eq!(t.take(T, clear(&[0, 1])), Answer::Taken);
    t.awaited(&[(0, &["m1", "m2"]), (1, &["m2"])]);
    assert_eq!(t.home.status(T), Some(Status::Enqueued));
    t.report("m1", vec![(T, part(0), done(3, None, 20))]);
    assert_eq!(t.home.status(T), Some(Status::Processing));
    t.report("m2", vec![(T, part(1), done(4, None, 30))]);
    assert_eq!(t.outcome(T), None);
    t.report("m2", vec![(T, part(0), done(3, None, 10))]);
    let expected = Outcome { changed: 7, started: When(10), finished: When(40), ..outcome(Status::Succeeded, 0) };
    assert_eq!(t.outcome(T), Some(expected));
}

#[test]
fn a_replica_that_does_not_serve_is_not_awaited_but_somebody_must_have_applied_it() {
    let mut t = Lone::new();
    t.take(T, clear(&[0]));
    t.awaited(&[(0, &[])]);
    assert_eq!(t.outcome(T), None);
    t.awaited(&[(0, &["m1", "m2"])]);
    t.report("m1", vec![(T, part(0), done(3, None, 20))]);
    assert_eq!(t.outcome(T), None);
    t.awaited(&[(0, &["m1"])]);
    assert_eq!(t.outcome(T).unwrap().changed, 3);
}

#[test]
fn what_went_with_its_index_is_done() {
    let mut t = Lone::new();
    t.take(T, clear(&[0]));
    t.tell(|home, env| home.handle_awaited(env, When(100), index(), None));
    assert_eq!(t.outcome(T), None);
    t.report("m1", vec![(T, part(0), Said::There)]);
    assert_eq!(t.outcome(T).unwrap().status, Status::Succeeded);
}

#[test]
fn a_task_of_an_index_that_is_gone_does_not_wait_for_the_deadline() {
    let mut t = Lone::new();
    t.take(T, clear(&[0, 1]));
    t.tell(|home, env| home.handle_awaited(env, When(100), index(), None));
    t.report("m1", vec![(T, part(0), Said::There)]);
    t.wait(Duration::ZERO);
    assert!(t.home.state().task(T).unwrap().given_up);
    let effects = t.wait(Duration::from_secs(1));
    assert!(effects.contains(&Effect::Refuse { uid: T, index: index(), parts: vec![part(1)] }), "{effects:?}");
    t.tell(|home, env| home.handle_refusals(env, When(100), T, &[(part(1), Refusal::There)]));
    assert_eq!(t.outcome(T).unwrap().status, Status::Succeeded);
}

#[test]
fn what_ends_while_a_webhook_is_told_goes_together_with_the_next_call() {
    let mut t = Lone::new();
    t.home.set_hooks(true);
    let ended = || head(Subject::Clear, Work::Nothing(outcome(Status::Succeeded, 9)));
    let hooks = |effects: Vec<Effect>| {
        let of = |e| {
            if let Effect::Hook(tasks) = e { Some(tasks.into_iter().map(|(uid, _)| uid.0).collect()) } else { None }
        };
        effects.into_iter().filter_map(of).collect::<Vec<Vec<u32>>>()
    };
    let take = |t: &mut Lone, uid| hooks(t.tell(|home, env| home.handle_head(env, OpId(1), TaskUid(uid), ended())));
    assert_eq!(take(&mut t, 16), [[16]]);
    for uid in [32, 48, 64] {
        assert!(take(&mut t, uid).is_empty());
    }
    let told = t.tell(|home, env| home.handle_hooked(env, &[TaskUid(16)].into()));
    assert_eq!(hooks(told), [[32, 48, 64]]);
    let told = t.tell(|home, env| home.handle_hooked(env, &[TaskUid(32), TaskUid(48), TaskUid(64)].into()));
    assert!(hooks(told).is_empty() && t.home.state().unhooked().is_empty());
}

#[test]
fn what_ended_long_ago_is_forgotten_batch_after_batch() {
    let mut t = Lone::new();
    for n in 1..=1_200 {
        t.take(TaskUid(16 * n), head(Subject::Clear, Work::Nothing(outcome(Status::Succeeded, 9))));
    }
    let late = |t: &mut Lone, span| {
        t.now = t.now.plus(span);
        t.tell(|home, env| home.handle_tick(env, When(i64::MAX)));
        t.home.state().tasks().count()
    };
    assert_eq!(late(&mut t, Duration::from_secs(120)), 700);
    assert_eq!(late(&mut t, Duration::from_secs(1)), 200);
    assert_eq!(late(&mut t, Duration::from_secs(1)), 0);
}

#[test]
fn keys_of_a_home_are_bounded_and_the_oldest_go() {
    let mut state = HomeState::default();
    let key = |n: usize| format!("key {n}");
    let settle = |n: usize, replaces| {
        let (uid, at) = (TaskUid(u32::try_from(n).unwrap()), When(i64::try_from(n).unwrap()));
        HomeEntry::Key { key: key(n), hash: [1; 32], uid, replaces, at }
    };
    for n in 0..KEYS_MAX {
        state.apply(n as u64 + 1, Some(settle(n, None)));
    }
    // The oldest is settled anew, which makes it the newest.
    let HomeEntry::Key { key: first, hash, .. } = settle(0, None) else { unreachable!() };
    let again = TaskUid(u32::MAX);
    let anew = HomeEntry::Key { key: first, hash, uid: again, replaces: Some(TaskUid(0)), at: When(i64::MAX) };
    state.apply(KEYS_MAX as u64 + 1, Some(anew));
    let touched = state.apply(KEYS_MAX as u64 + 2, Some(settle(KEYS_MAX, None)));
    assert_eq!(state.keys().count(), KEYS_MAX);
    assert_eq!(touched, [Touched::Key(key(1)), Touched::Key(key(KEYS_MAX))].into());
    assert_eq!((state.key(&key(0)).map(|row| row.uid), state.key(&key(1))), (Some(again), None));
    let rows: Vec<StoredRow> = state.keys().filter_map(|(key, _)| state.row(&Touched::Key(key.to_owned()))).collect();
    assert_eq!(HomeState::recover(state.applied(), rows), state);
}

#[test]
fn a_failed_part_fails_the_task_and_its_error_names_what_stands() {
    let mut t = Lone::new();
    t.take(T, clear(&[0, 1, 2]));
    t.awaited(&[(0, &["m1"]), (1, &["m1"]), (2, &["m1"])]);
    let bad = done(0, Some("invalid_document_id"), 1);
    t.report("m1", vec![(T, part(0), bad), (T, part(1), done(2, None, 1)), (T, part(2), done(2, None, 1))]);
    let outcome = t.outcome(T).unwrap();
    assert_eq!((outcome.status, outcome.changed), (Status::Failed, 4));
    let error = outcome.error.unwrap();
    assert_eq!(error.message, "Bad. What belongs to these shards was applied: 1, 2.");
    assert_eq!(error.link, "https://docs.meilisearch.com/errors#invalid_document_id");
    let mut t = Lone::new();
    t.take(T, clear(&[0]));
    t.awaited(&[(0, &["m1"])]);
    t.report("m1", vec![(T, part(0), done(0, Some("internal"), 1))]);
    let error = t.outcome(T).unwrap().error.unwrap();
    assert_eq!((error.message.as_str(), error.kind.as_str()), ("Bad.", "internal"));
}

#[test]
fn what_a_request_says_of_itself_is_not_counted() {
    let parts = Work::Parts { index: index(), parts: Parts::one_each([0]) };
    let mut t = Lone::new();
    t.take(T, head(Subject::Documents { received: 3, distinct: 2 }, parts));
    t.awaited(&[(0, &["m1"])]);
    t.report("m1", vec![(T, part(0), done(0, None, 1))]);
    assert_eq!(t.outcome(T).unwrap().changed, 2);
}

#[test]
fn parts_that_nobody_has_are_refused_after_the_deadline_and_only_those() {
    let mut t = Lone::new();
    t.take(T, clear(&[0, 1, 2]));
    t.awaited(&[(0, &["m1"]), (1, &["m1"]), (2, &["m1"])]);
    t.report("m1", vec![(T, part(0), done(3, None, 20)), (T, part(1), Said::There)]);
    t.wait(Duration::from_secs(59));
    assert!(!t.home.state().task(T).unwrap().given_up);
    t.wait(Duration::from_secs(10));
    assert!(t.home.state().task(T).unwrap().given_up);
    let effects = t.wait(Duration::ZERO);
    assert!(effects.contains(&Effect::Refuse { uid: T, index: index(), parts: vec![part(2)] }), "{effects:?}");
    t.tell(|home, env| home.handle_refusals(env, When(100), T, &[(part(2), Refusal::Refused)]));
    assert_eq!(t.outcome(T), None);
    t.report("m1", vec![(T, part(1), done(4, None, 20))]);
    let outcome = t.outcome(T).unwrap();
    assert_eq!((outcome.status, outcome.changed), (Status::Failed, 7));
    let error = outcome.error.unwrap();
    assert_eq!(error.code, "miroir_incomplete");
    assert!(error.message.starts_with("1 of the 3 parts") && error.message.ends_with("applied: 0, 1."), "{error:?}");
}

#[test]
fn nothing_is_refused_before_it_is_committed_that_the_task_is_given_up() {
    let mut t = Lone::new();
    t.take(T, clear(&[0]));
    t.awaited(&[(0, &["m1"])]);
    t.held = true;
    let of_kind = |effects: &[Effect]| {
        let gives_up =
            |e: &Effect| matches!(e, Effect::Append { entry, .. } if **entry == HomeEntry::GiveUp { uid: T });
        let refuses = |e: &Effect| matches!(e, Effect::Refuse { .. });
        (effects.iter().any(gives_up), effects.iter().any(refuses))
    };
    let effects = t.wait(Duration::from_secs(61));
    assert_eq!(of_kind(&effects), (true, false));
    let effects = t.wait(Duration::from_secs(61));
    assert_eq!(of_kind(&effects), (true, false), "appended again, for it was not answered");
}

#[test]
fn a_part_that_was_there_after_all_runs() {
    let mut t = Lone::new();
    t.take(T, clear(&[0]));
    t.awaited(&[(0, &["m1"])]);
    t.wait(Duration::from_secs(61));
    t.tell(|home, env| home.handle_refusals(env, When(100), T, &[(part(0), Refusal::There)]));
    t.report("m1", vec![(T, part(0), done(3, None, 20))]);
    assert_eq!(t.outcome(T).unwrap().status, Status::Succeeded);
}

#[test]
fn a_report_about_what_was_refused_is_an_alarm() {
    let mut t = Lone::new();
    t.take(T, clear(&[0, 1]));
    t.awaited(&[(0, &["m1"]), (1, &["m1"])]);
    t.wait(Duration::from_secs(61));
    t.tell(|home, env| home.handle_refusals(env, When(100), T, &[(part(0), Refusal::Refused)]));
    let effects = t.report("m1", vec![(T, part(0), done(3, None, 20))]);
    assert!(effects.contains(&Effect::Broken { uid: T, part: part(0) }));
    assert!(t.report("m1", vec![(T, part(7), done(3, None, 20))]).len() == 1, "only that it was heard");
}

#[test]
fn a_task_without_a_head_gets_it_from_its_parts() {
    let mut t = Lone::new();
    let effects = t.report("m1", vec![(T, part(0), done(3, None, 20))]);
    assert_eq!(effects, [Effect::WantHead { member: member("m1"), uid: T }]);
    let report = Report { parts: Vec::new(), heads: vec![(T, clear(&[0, 1]))] };
    t.tell(|home, env| home.handle_report(env, When(100), &member("m1"), report));
    assert_eq!(t.home.status(T), Some(Status::Enqueued));
    // The same head by its late sender is the same task; another one is not.
    assert_eq!(t.take(T, clear(&[0, 1])), Answer::Taken);
    assert_eq!(t.take(T, clear(&[0])), Answer::Other);
}

#[test]
fn a_void_number_never_becomes_a_task() {
    let mut t = Lone::new();
    assert_eq!(t.ask(|home, env, op| home.handle_void(env, op, T)), Answer::Void);
    assert_eq!(t.take(T, clear(&[0])), Answer::Void);
    let effects = t.report("m1", vec![(T, part(0), done(3, None, 20))]);
    assert_eq!(effects, [Effect::Heard { member: member("m1"), uids: [T].into() }]);
    let other = TaskUid(32);
    t.take(other, clear(&[0]));
    assert_eq!(t.ask(|home, env, op| home.handle_void(env, op, other)), Answer::Other);
}

#[test]
fn a_key_stands_for_the_task_that_settled_it_first() {
    let mut t = Lone::new();
    let mut settle = |hash: u8, uid: u32, replaces: Option<u32>| {
        let (key, replaces) = (("k".to_owned(), [hash; 32]), replaces.map(TaskUid));
        t.ask(|home, env, op| home.handle_key(env, When(100), op, key, TaskUid(uid), replaces))
    };
    let is = |uid: u32, same_body| Answer::Settled { uid: TaskUid(uid), same_body };
    assert_eq!(settle(1, 7, None), is(7, true));
    assert_eq!(settle(1, 8, None), is(7, true));
    assert_eq!(settle(2, 9, None), is(7, false));
    assert_eq!(settle(1, 10, Some(6)), is(7, true));
    assert_eq!(settle(1, 11, Some(7)), is(11, true));
    assert_eq!(settle(1, 12, Some(7)), is(11, true));
}

#[test]
fn of_two_keys_at_once_the_first_in_the_journal_counts() {
    let key = |uid: u32, replaces: Option<u32>| HomeEntry::Key {
        key: "k".into(),
        hash: [uid as u8; 32],
        uid: TaskUid(uid),
        replaces: replaces.map(TaskUid),
        at: When(0),
    };
    let mut state = HomeState::default();
    for (i, entry) in [key(1, None), key(2, None), key(3, Some(1)), key(4, Some(1))].into_iter().enumerate() {
        state.apply(i as u64 + 1, Some(entry));
    }
    assert_eq!(state.key("k").unwrap().uid, TaskUid(3));
}

#[test]
fn canceling_takes_back_what_was_not_begun_and_nothing_else() {
    let mut t = Lone::new();
    let (whole, order, begun, late) = (TaskUid(16), TaskUid(32), TaskUid(48), TaskUid(80));
    t.take(whole, clear(&[0]));
    t.take(order, head(Subject::IndexDeletion, Work::Order));
    t.take(begun, head(Subject::IndexDeletion, Work::Order));
    t.take(late, clear(&[0]));
    t.awaited(&[(0, &["m1"])]);
    let sweep =
        |t: &mut Lone| t.ask(|h, env, op| h.handle_sweep(env, op, TaskUid(64), Action::Cancel, Filter::default()));
    assert_eq!(sweep(&mut t), Answer::Swept(Swept { matched: 3, changed: 0, waiting: 3 }));
    t.wait(Duration::from_secs(1));
    assert!(t.effects.contains(&Effect::RefuseOrder { uid: order, late: false }));
    t.tell(|home, env| home.handle_order_refusal(env, When(100), order, Refusal::Refused));
    t.tell(|home, env| home.handle_order_refusal(env, When(100), begun, Refusal::There));
    t.tell(|home, env| home.handle_refusals(env, When(100), whole, &[(part(0), Refusal::There)]));
    t.report("m1", vec![(whole, part(0), done(1, None, 20))]);
    assert_eq!(sweep(&mut t), Answer::Swept(Swept { matched: 3, changed: 1, waiting: 0 }));
    t.ask(|home, env, op| home.handle_outcome(env, op, begun, outcome(Status::Succeeded, 50)));
    assert_eq!(sweep(&mut t), Answer::Swept(Swept { matched: 3, changed: 1, waiting: 0 }));
    let status = |uid| t.home.status(uid).unwrap();
    assert_eq!(status(whole), Status::Succeeded);
    assert_eq!(status(order), Status::Canceled);
    assert_eq!(status(begun), Status::Succeeded);
    assert_eq!(t.home.shown(order).unwrap().canceled_by, Some(64));
    assert_eq!(t.home.shown(whole).unwrap().canceled_by, None);
    assert!(t.home.state().task(late).unwrap().cancel.is_none());
}

#[test]
fn a_cancelation_does_not_wait_for_what_it_can_not_cancel() {
    let mut t = Lone::new();
    let (write, order, by) = (TaskUid(16), TaskUid(32), TaskUid(64));
    t.take(write, clear(&[0, 1]));
    t.take(order, head(Subject::IndexDeletion, Work::Order));
    t.awaited(&[(0, &["m1"]), (1, &["m1"])]);
    let sweep = |t: &mut Lone, by| t.ask(|h, env, op| h.handle_sweep(env, op, by, Action::Cancel, Filter::default()));
    let found = |waiting| Answer::Swept(Swept { matched: 2, changed: 0, waiting });
    assert_eq!(sweep(&mut t, by), found(2));
    t.report("m1", vec![(write, part(0), Said::There)]);
    assert_eq!(sweep(&mut t, by), found(2), "the other part may be refused yet");
    t.tell(|home, env| home.handle_refusals(env, When(100), write, &[(part(1), Refusal::There)]));
    assert_eq!(sweep(&mut t, by), found(1));
    t.tell(|home, env| home.handle_order_refusal(env, When(100), order, Refusal::There));
    assert_eq!(sweep(&mut t, by), found(0));
    // Nor does a later one, whoever leads by then.
    let state = t.home.state().clone();
    t.home = Home::recover(&mut Env { now: t.now, rng: &mut t.rng }, When(100), Config::default(), state, false);
    assert_eq!(sweep(&mut t, TaskUid(80)), found(0));
    t.awaited(&[(0, &["m1"]), (1, &["m1"])]);
    t.report("m1", vec![(write, part(0), done(1, None, 20)), (write, part(1), done(1, None, 20))]);
    t.ask(|home, env, op| home.handle_outcome(env, op, order, outcome(Status::Succeeded, 50)));
    assert_eq!([write, order].map(|uid| t.home.status(uid)), [Some(Status::Succeeded); 2]);
    assert_eq!(sweep(&mut t, by), found(0));
}

#[test]
fn a_write_of_which_a_part_was_applied_is_not_canceled_but_incomplete() {
    let mut t = Lone::new();
    t.take(T, clear(&[0, 1]));
    t.awaited(&[(0, &["m1"]), (1, &["m1"])]);
    let by = TaskUid(64);
    let sweep = |t: &mut Lone| t.ask(|h, env, op| h.handle_sweep(env, op, by, Action::Cancel, Filter::default()));
    sweep(&mut t);
    t.tell(|home, env| home.handle_refusals(env, When(100), T, &[(part(1), Refusal::Refused)]));
    t.report("m1", vec![(T, part(0), done(3, None, 20))]);
    let outcome = t.outcome(T).unwrap();
    assert_eq!((outcome.status, outcome.changed), (Status::Failed, 3));
    let error = outcome.error.unwrap();
    assert_eq!(error.code, "miroir_incomplete");
    assert!(error.message.starts_with("1 of the 2 parts of this write had not arrived when task 64"), "{error:?}");
    assert!(error.message.ends_with("What belongs to these shards was applied: 0."), "{error:?}");
    assert_eq!(sweep(&mut t), Answer::Swept(Swept { matched: 1, changed: 0, waiting: 0 }));
}

#[test]
fn an_order_that_was_begun_is_asked_after_in_the_end_for_its_process_may_be_gone() {
    let mut t = Lone::new();
    t.take(T, head(Subject::IndexDeletion, Work::Order));
    t.tell(|home, _| home.handle_begun(T, When(7)));
    assert_eq!(t.home.status(T), Some(Status::Processing));
    t.wait(Duration::from_secs(61));
    let effects = t.wait(Duration::from_secs(61));
    assert!(effects.contains(&Effect::RefuseOrder { uid: T, late: true }), "{effects:?}");
    t.tell(|home, env| home.handle_order_refusal(env, When(100), T, Refusal::There));
    assert_eq!(t.outcome(T), None);
    t.tell(|home, env| home.handle_order_refusal(env, When(100), T, Refusal::Refused));
    assert_eq!(t.outcome(T).unwrap().status, Status::Failed);
}

#[test]
fn what_is_deleted_before_a_webhook_was_told_is_not_found_and_told_all_the_same() {
    let mut t = Lone::new();
    t.home.set_hooks(true);
    let uids = [TaskUid(16), TaskUid(32)];
    for uid in uids {
        let head = head(Subject::Clear, Work::Nothing(outcome(Status::Succeeded, 50)));
        t.tell(|home, env| home.handle_head(env, OpId(1), uid, head));
    }
    // The first is being told; the second waits.
    let sweep = |t: &mut Lone, by| t.tell(|h, env| h.handle_sweep(env, OpId(1), by, Action::Delete, Filter::default()));
    let swept = |matched| Answer::Swept(Swept { matched, changed: matched, waiting: 0 });
    assert!(sweep(&mut t, TaskUid(64)).contains(&Effect::Answer { op: OpId(1), answer: swept(2) }));
    assert_eq!(uids.map(|uid| t.home.shown(uid).is_some() || t.home.has(uid)), [false; 2]);
    assert_eq!(t.home.page(&Query::all(Listing::Tasks), None, 20).total, 0);
    assert!(sweep(&mut t, TaskUid(80)).contains(&Effect::Answer { op: OpId(1), answer: swept(0) }));
    let effects = t.tell(|home, env| home.handle_hooked(env, &[uids[0]].into()));
    let [Effect::Hook(tasks)] = &effects[..] else { panic!("the second is told: {effects:?}") };
    assert_eq!(tasks.iter().map(|(uid, _)| *uid).collect::<Vec<_>>(), [uids[1]]);
    assert_eq!(uids.map(|uid| t.home.state().task(uid).is_some()), [false, true]);
    t.tell(|home, env| home.handle_hooked(env, &[uids[1]].into()));
    assert_eq!(t.home.state().tasks().count(), 0);
}

#[test]
fn a_sweep_of_all_homes_sums_what_they_found() {
    let mut t = Lone::new();
    let sweep = Work::Sweep { action: Action::Delete, filter: Filter::default() };
    t.take(T, head(Subject::Deletion("?uids=*".into()), sweep));
    let asked = t.wait(Duration::from_secs(1));
    assert_eq!(asked.iter().filter(|e| matches!(e, Effect::Sweep { by, .. } if *by == T)).count(), 16);
    for home in 0..17 {
        assert_eq!(t.outcome(T), None, "{home}");
        let swept = Swept { matched: 3, changed: 2, waiting: u64::from(home == 3) };
        t.tell(|h, env| h.handle_swept(env, When(100), T, home, swept));
    }
    t.tell(|h, env| h.handle_swept(env, When(100), T, 3, Swept { matched: 3, changed: 3, waiting: 0 }));
    let outcome = t.outcome(T).unwrap();
    assert_eq!((outcome.matched, outcome.changed), (48, 33));
}

#[test]
fn deleting_takes_only_what_has_ended_and_it_does_not_come_back() {
    let mut t = Lone::new();
    let (ended, open) = (TaskUid(16), TaskUid(32));
    t.take(ended, head(Subject::Clear, Work::Nothing(outcome(Status::Succeeded, 50))));
    t.take(open, clear(&[0]));
    assert_eq!(t.home.status(ended), Some(Status::Succeeded));
    let answer = t.ask(|h, env, op| h.handle_sweep(env, op, TaskUid(64), Action::Delete, Filter::default()));
    assert_eq!(answer, Answer::Swept(Swept { matched: 2, changed: 1, waiting: 0 }));
    assert_eq!((t.home.status(ended), t.home.status(open)), (None, Some(Status::Enqueued)));
    // The journal has its head already: the append is answered with where that stands.
    let report = Report { parts: Vec::new(), heads: vec![(ended, clear(&[0]))] };
    let part = crate::types::TaskPart { task: ended, part: 0 };
    let env = &mut Env { now: t.now, rng: &mut t.rng };
    t.home.handle_report(env, When(100), &member("m1"), report);
    t.home.handle_appended(env, part, Appended::Committed(1));
    while t.home.poll_effect().is_some() {}
    let effects = t.report("m1", vec![(ended, super::PartRef { shard: 0, part: 0 }, Said::There)]);
    assert_eq!(effects, [Effect::Heard { member: member("m1"), uids: [ended].into() }]);
}

#[test]
fn what_ended_long_ago_is_forgotten_and_then_its_key() {
    let mut t = Lone::new();
    t.take(T, head(Subject::Clear, Work::Nothing(outcome(Status::Succeeded, 50))));
    t.ask(|home, env, op| home.handle_key(env, When(100), op, ("k".into(), [1; 32]), T, None));
    let week = i64::try_from(Config::default().task_retention.as_nanos()).unwrap();
    let tick = |t: &mut Lone, wall: i64| {
        t.now = t.now.plus(Duration::from_secs(61));
        t.tell(|home, env| home.handle_tick(env, When(wall)))
    };
    tick(&mut t, week + 50);
    assert!(t.home.state().task(T).is_some());
    let effects = tick(&mut t, week + 101);
    assert!(t.home.state().task(T).is_none());
    assert_eq!(effects, [Effect::AskGone([T].into())]);
    t.tell(|home, env| home.handle_gone(env, When(week + 101), &[TaskUid(7)].into()));
    assert!(t.home.state().key("k").is_some());
    t.tell(|home, env| home.handle_gone(env, When(week + 101), &[T].into()));
    assert!(t.home.state().key("k").is_none());
}

#[test]
fn webhooks_hear_of_what_ends_while_there_are_any() {
    let mut t = Lone::new();
    let nothing = || head(Subject::Clear, Work::Nothing(outcome(Status::Succeeded, 50)));
    t.take(TaskUid(16), nothing());
    assert!(t.home.state().unhooked().is_empty());
    t.home.set_hooks(true);
    let effects = t.tell(|home, env| home.handle_head(env, OpId(1), TaskUid(32), nothing()));
    let hooks = |effects: &[Effect]| effects.iter().filter(|e| matches!(e, Effect::Hook(_))).count();
    assert_eq!(hooks(&effects), 1);
    // The next primary finds it untold; told, it is told to nobody again.
    let state = t.home.state().clone();
    let recovered = |t: &mut Lone, state| {
        t.home = Home::recover(&mut Env { now: t.now, rng: &mut t.rng }, When(100), Config::default(), state, true);
        t.tell(|_, _| {})
    };
    assert_eq!(hooks(&recovered(&mut t, state)), 1);
    t.tell(|home, env| home.handle_hooked(env, &[TaskUid(32)].into()));
    let state = t.home.state().clone();
    assert_eq!(hooks(&recovered(&mut t, state)), 0);
}

#[test]
fn a_page_lists_what_the_filter_finds_by_the_state_that_clients_see() {
    let mut t = Lone::new();
    for i in 1..=150 {
        t.take(TaskUid(i * 16), clear(&[0]));
    }
    t.awaited(&[(0, &["m1", "m2"])]);
    t.report("m1", (1..=3).map(|i| (TaskUid(i * 16), part(0), done(1, None, 9))).collect());
    let all = Query::all(Listing::Tasks);
    let page = t.home.page(&all, Some(160), 1_000);
    assert_eq!((page.total, page.tasks.len(), page.more, page.tasks[0].0.0), (150, 10, false, 160));
    let page = t.home.page(&Query { reverse: true, ..all.clone() }, None, 1_000);
    assert_eq!((page.tasks.len(), page.more, page.tasks[0].0.0), (PAGE_MAX, true, 16));
    let filter = Filter { statuses: Some([Status::Processing].into()), ..Filter::default() };
    assert_eq!(t.home.page(&Query { filter, ..all }, None, 20).total, 3);
    assert_eq!(t.home.page(&Query::all(Listing::Batches), None, 20).total, 3);
}

#[test]
fn what_breaks_the_bounds_is_refused_and_changes_nothing() {
    let mut t = Lone::new();
    let many = Parts([(0, parts::PARTS_MAX + 1)].into());
    for bad in [clear(&[]), clear(&[2_000]), head(Subject::Clear, Work::Parts { index: index(), parts: many })] {
        assert_eq!(t.take(T, bad.clone()), Answer::Refused);
        let entry = HomeEntry::Head { uid: T, head: Box::new(bad) };
        assert_eq!(entry.encode(), None);
        let mut state = HomeState::default();
        state.apply(1, Some(entry));
        assert!(state.task(T).is_none() && state.applied() == 1);
    }
    let long = "x".repeat(entry::KEY_MAX_BYTES + 1);
    let answer = t.ask(|home, env, op| home.handle_key(env, When(0), op, (long, [0; 32]), T, None));
    assert_eq!(answer, Answer::Refused);
    assert_eq!(HomeEntry::decode(b"{}"), None);
    assert_eq!(HomeEntry::decode(&[b' '; entry::HOME_ENTRY_MAX_BYTES + 1]), None);
    let order = || head(Subject::IndexDeletion, Work::Order);
    for uid in 1..primary::OPEN_MAX as u32 {
        t.take(TaskUid(uid), order());
    }
    let again = |t: &mut Lone, op| t.tell(|home, env| home.handle_head(env, OpId(op), TaskUid(888_888), order()));
    t.held = true;
    assert!(matches!(again(&mut t, 1)[..], [Effect::Append { .. }]));
    t.held = false;
    t.take(TaskUid(primary::OPEN_MAX as u32), order());
    assert_eq!(t.take(TaskUid(999_999), clear(&[0])), Answer::Busy);
    assert_eq!(again(&mut t, 2), [], "it is on its way, and may come to be kept");
}

#[test]
fn beyond_the_bounds_what_ended_first_is_forgotten() {
    let mut state = HomeState::default();
    for i in 1..=state::TASKS_MAX as u32 + 2 {
        let seq = 2 * u64::from(i);
        state.apply(seq - 1, Some(HomeEntry::Head { uid: TaskUid(i), head: Box::new(clear(&[0])) }));
        if i > 1 {
            let outcome = Box::new(outcome(Status::Succeeded, i64::from(i)));
            state.apply(seq, Some(HomeEntry::Finished { uid: TaskUid(i), outcome, hook: false }));
        }
    }
    assert_eq!((state.tasks().count(), state.untold()), (state::TASKS_MAX, 0));
    assert!(state.task(TaskUid(1)).is_some() && state.task(TaskUid(2)).is_none() && state.task(TaskUid(4)).is_some());
    // Who was to be told of one that goes is counted, once.
    let mut next = state::TASKS_MAX as u32 + 2;
    let mut seq = 2 * u64::from(next);
    let mut put = |state: &mut HomeState, hook| {
        (next, seq) = (next + 1, seq + 2);
        state.apply(seq - 1, Some(HomeEntry::Head { uid: TaskUid(next), head: Box::new(clear(&[0])) }));
        let untold = state.untold();
        let outcome = Box::new(outcome(Status::Succeeded, if hook { 0 } else { i64::from(next) }));
        state.apply(seq, Some(HomeEntry::Finished { uid: TaskUid(next), outcome, hook }));
        (untold, state.untold())
    };
    assert_eq!([put(&mut state, true), put(&mut state, false)], [(0, 0), (1, 0)]);
}

fn entries() -> impl Strategy<Value = Vec<HomeEntry>> {
    let uid = || (1_u32..8).prop_map(TaskUid);
    let refused = prop::collection::btree_set((0_u16..2).prop_map(part), 1..3);
    let one = prop_oneof![
        uid().prop_map(|uid| HomeEntry::Head { uid, head: Box::new(clear(&[0, 1])) }),
        uid().prop_map(|uid| HomeEntry::Void { uid }),
        uid().prop_map(|uid| HomeEntry::GiveUp { uid }),
        uid().prop_map(|uid| HomeEntry::Stays { uid }),
        (uid(), refused).prop_map(|(uid, parts)| HomeEntry::Refused { uid, parts }),
        (uid(), prop::sample::select(&[Status::Succeeded, Status::Canceled][..]), any::<bool>(), 0_i64..50).prop_map(
            |(uid, status, hook, at)| HomeEntry::Finished { uid, outcome: Box::new(outcome(status, at)), hook }
        ),
        uid().prop_map(|uid| HomeEntry::Hooked { uids: [uid].into() }),
        (uid(), any::<bool>()).prop_map(|(by, cancel)| HomeEntry::Sweep {
            by,
            action: if cancel { Action::Cancel } else { Action::Delete },
            filter: Box::default(),
        }),
        uid().prop_map(|uid| HomeEntry::Forget { uids: [uid].into() }),
        (uid(), prop::option::of(uid())).prop_map(|(uid, replaces)| HomeEntry::Key {
            key: "k".into(),
            hash: [0; 32],
            uid,
            replaces,
            at: When(0),
        }),
        uid().prop_map(|uid| HomeEntry::ForgetKeys { keys: [(uid, "k".to_owned())].into() }),
    ];
    prop::collection::vec(one, 0..40)
}

proptest! {
    #[test]
    fn entries_applied_again_change_nothing(entries in entries(), cut in 0_usize..40) {
        let mut state = HomeState::default();
        let mut rows: Vec<(Touched, StoredRow)> = Vec::new();
        for (i, entry) in entries.iter().enumerate() {
            let body = entry.encode().unwrap();
            prop_assert_eq!(HomeEntry::decode(&body), Some(entry.clone()));
            for touched in state.apply(i as u64 + 1, Some(entry.clone())) {
                rows.retain(|(t, _)| *t != touched);
                rows.extend(state.row(&touched).map(|row| (touched, row)));
            }
        }
        let mut again = state.clone();
        for (i, entry) in entries.iter().take(cut).enumerate() {
            prop_assert!(again.apply(i as u64 + 1, Some(entry.clone())).is_empty());
        }
        prop_assert_eq!(&again, &state);
        // The indexes inside say the same as the tasks.
        let open: BTreeSet<TaskUid> = state.tasks().filter(|(_, r)| r.outcome.is_none()).map(|(u, _)| u).collect();
        let unhooked: BTreeSet<TaskUid> = state.tasks().filter(|(_, r)| r.hook).map(|(u, _)| u).collect();
        prop_assert_eq!((state.open(), state.unhooked()), (&open, &unhooked));
        prop_assert_eq!(state.ended_before(When(i64::MAX)).count() + open.len(), state.tasks().count());
        // What was stored row by row is all of it.
        let stored = serde_json::to_vec(&rows.into_iter().map(|(_, row)| row).collect::<Vec<_>>()).unwrap();
        let rows: Vec<StoredRow> = serde_json::from_slice(&stored).unwrap();
        prop_assert_eq!(HomeState::recover(state.applied(), rows), state);
    }

    #[test]
    fn reports_in_any_order_give_the_same_outcome(
        reports in Just((0_u16..3).flat_map(|s| ["m1", "m2", "m3"].map(|m| (s, m))).collect::<Vec<_>>()).prop_shuffle(),
        repeated in prop::collection::vec(0_usize..9, 0..9),
        bad in prop::collection::vec(0_u8..4, 3),
        away in 0_u16..3,
    ) {
        let mut t = Lone::new();
        t.take(T, clear(&[0, 1, 2]));
        // A replica that reports and is not awaited changes nothing.
        let awaited: Vec<(u16, &[&str])> =
            (0..3).map(|s| (s, if s == away { &["m1", "m2"][..] } else { &["m1", "m2", "m3"][..] })).collect();
        t.awaited(&awaited);
        let order: Vec<(u16, &str)> = repeated.iter().map(|i| reports[*i]).chain(reports.clone()).collect();
        for (shard, m) in order {
            let code = ["x", "y"].get(usize::from(bad[usize::from(shard)])).copied();
            let odd = shard == away && m == "m3";
            let at = if odd { 1_000 } else { i64::from(shard) + m.len() as i64 };
            let changed = if odd { 99 } else if code.is_some() { 0 } else { u64::from(shard) + 1 };
            t.report(m, vec![(T, part(shard), done(changed, code, at))]);
        }
        let outcome = t.outcome(T).unwrap();
        let failed: Vec<&u8> = bad.iter().filter(|b| **b < 2).collect();
        prop_assert_eq!(outcome.status == Status::Failed, !failed.is_empty());
        let code = failed.iter().min().map(|b| ["x", "y"][usize::from(**b)]);
        prop_assert_eq!(outcome.error.as_ref().map(|e| e.code.as_str()), code);
        let changed: u64 = bad.iter().zip(1_u64..).filter(|(b, _)| **b >= 2).map(|(_, n)| n).sum();
        prop_assert_eq!((outcome.changed, outcome.started, outcome.finished), (changed, When(2), When(14)));
    }
}
