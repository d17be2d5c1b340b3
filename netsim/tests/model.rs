//! Every order in which a few members' messages can arrive: the production cores of ledger, lease and operations under a model
//! checker.
//!
//! Within the bounds that each test states, all interleavings of deliveries, losses, late and repeated messages, timers, and
//! crashes with or without the last transaction are explored. Where the simulator looks far along few paths, this looks at
//! all paths, not far. `docs/verification.md` says how many there are; larger bounds, which take minutes and gigabytes:
//! `cargo test --release -p netsim --test model -- --ignored --test-threads 1 --nocapture`.

#[path = "model/lease.rs"]
mod lease;
#[path = "model/ledger.rs"]
mod ledger;
#[path = "model/operation.rs"]
mod operation;
#[path = "model/table.rs"]
mod table;

use std::time::Instant;

use stateright::{Checker, Expectation, Model};

use ledger::Ask::{Change, Delete, Quiet, Read};
use ledger::{Beginning, Ledgers, Setting};

/// Explores a model to its end, or so many steps deep; says what it saw, and panics at what is broken, and at what is
/// nowhere to be found that must be somewhere, unless that is said to lie beyond the depth.
fn explore<M>(
    name: &str,
    model: M,
    depth: Option<usize>,
    beyond: &[&str],
    broken: impl Fn(&M, &M::State, &[M::Action]) -> String,
) where
    M: Model + Send + Sync + 'static,
    M::State: Clone + PartialEq + std::hash::Hash + std::fmt::Debug + Send + Sync + 'static,
    M::Action: Clone + PartialEq + std::fmt::Debug + Send + Sync + 'static,
{
    let began = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut checker = model.checker().threads(threads);
    if let Some(depth) = depth {
        checker = checker.target_max_depth(depth);
    }
    let checker = checker.spawn_bfs().join();
    println!(
        "{name}: {} steps, {} states, depth {}{}, {:.1} s",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        if depth.is_some() { "" } else { " (the end)" },
        began.elapsed().as_secs_f64()
    );
    if let Some(path) = checker.discovery("nothing is broken") {
        let last = path.last_state().clone();
        panic!("{name}: {}", broken(checker.model(), &last, &path.into_actions()));
    }
    // What must come about somewhere does, within the depth as well, or is said to lie beyond it.
    for property in checker.model().properties() {
        if matches!(property.expectation, Expectation::Sometimes) {
            let (found, is_beyond) = (checker.discovery(property.name).is_some(), beyond.contains(&property.name));
            assert!(found != is_beyond, "{name}: {}: found: {found}, beyond: {is_beyond}", property.name);
        }
    }
}

fn ledgers(setting: Setting, depth: Option<usize>) {
    explore(setting.name, Ledgers::new(setting.clone()), depth, setting.beyond, |model, state, actions| {
        format!("{}\nafter\n{}", model.broken(state).unwrap_or_default(), model.told(actions))
    });
}

fn leases(name: &'static str, steps: u8, budget: lease::Budget) {
    leases_of(name, lease::Setting { members: 2, steps, waits: 0, budget });
}

fn leases_of(name: &'static str, setting: lease::Setting) {
    explore(name, lease::Leases::new(setting), None, &[], |model, state, actions| {
        format!("{}\nafter\n{}", model.broken(state).unwrap_or_default(), model.told(actions))
    });
}

fn operations(name: &str, depth: Option<usize>, beyond: &[&str], budget: operation::Budget) {
    explore(name, operation::Operating::new(budget), depth, beyond, |model, state, actions| {
        format!("{}\nafter\n{}", model.broken(state).unwrap_or_default(), model.told(actions))
    });
}

fn budget() -> ledger::Budget {
    ledger::Budget::default()
}

fn rivals() -> Setting {
    Setting { name: "two rivals", first: vec![(0, Change(0)), (1, Change(0))], ..Setting::default() }
}

fn change_and_read() -> Setting {
    Setting { first: vec![(0, Change(0)), (1, Read)], ..Setting::default() }
}

fn crashing_proposer() -> Setting {
    Setting {
        name: "a change, its member crashes and asks again, another reads",
        first: vec![(0, Change(0))],
        later: vec![(1, Read)],
        crashing: vec![0],
        again: true,
        budget: ledger::Budget { crashes: 1, ..budget() },
        ..Setting::default()
    }
}

fn crashing_voter() -> Setting {
    Setting {
        name: "two rivals, a voter crashes",
        crashing: vec![2],
        budget: ledger::Budget { crashes: 1, ..budget() },
        ..rivals()
    }
}

fn adding() -> Setting {
    Setting {
        name: "a fourth voter is added, a change beside it",
        others: 1,
        first: vec![(1, Change(0))],
        begins: Beginning::Adding,
        ..Setting::default()
    }
}

/// Few enough for the whole change of the list.
fn adding_to_two() -> Setting {
    Setting {
        name: "a third voter is added, a change beside it and a read behind it",
        voters: 2,
        later: vec![(2, Read)],
        ..adding()
    }
}

fn removing() -> Setting {
    Setting {
        name: "a voter of three is removed, a change beside it",
        first: vec![(1, Change(0))],
        begins: Beginning::Removing,
        ..Setting::default()
    }
}

#[test]
fn rivals_agree_on_every_version() {
    ledgers(rivals(), None);
}

#[test]
fn a_read_is_of_what_was_chosen_before_it() {
    ledgers(
        Setting {
            name: "a change, a quiet one after it, reads beside and behind, all pushed",
            first: vec![(0, Change(0)), (0, Quiet(1)), (1, Read)],
            later: vec![(2, Read)],
            pushes: true,
            ..Setting::default()
        },
        Some(14),
    );
}

#[test]
fn a_late_message_changes_nothing() {
    let budget = ledger::Budget { late: 1, ..budget() };
    ledgers(Setting { name: "a change and a read, one message late", budget, ..change_and_read() }, None);
}

#[test]
fn repeated_messages_change_nothing() {
    let budget = ledger::Budget { repeats: 1, ..budget() };
    ledgers(Setting { name: "a change and a read, one message repeated", budget, ..change_and_read() }, None);
}

#[test]
fn a_round_that_takes_too_long_is_begun_anew() {
    let budget = ledger::Budget { ticks: 1, ..budget() };
    ledgers(Setting { name: "a change and a read, one timer", budget, ..change_and_read() }, Some(14));
}

#[test]
fn a_voter_that_crashes_forgets_nothing() {
    ledgers(crashing_voter(), Some(17));
}

#[test]
fn a_proposer_that_crashes_begins_anew() {
    ledgers(crashing_proposer(), Some(15));
}

#[test]
fn a_kept_promise_is_as_good_as_a_new_one() {
    let first = vec![(0, Change(0)), (0, Change(1))];
    ledgers(
        Setting {
            name: "one member changes twice, another reads",
            first,
            later: vec![(1, Read)],
            ..Setting::default()
        },
        None,
    );
}

#[test]
fn versions_go_on_after_a_deletion() {
    let first = vec![(0, Delete(0)), (1, Change(0))];
    ledgers(Setting { name: "a record is deleted while a rival writes it", first, ..Setting::default() }, None);
}

#[test]
fn a_voter_is_added_while_a_record_changes() {
    ledgers(Setting { beyond: &["the new list is settled"], ..adding() }, Some(14));
}

#[test]
fn an_added_voter_has_part_in_what_is_chosen() {
    ledgers(adding_to_two(), Some(15));
}

#[test]
fn a_voter_is_removed_while_a_record_changes() {
    let budget = ledger::Budget { late: 1, repeats: 1, ..budget() };
    ledgers(Setting { budget, ..removing() }, None);
}

#[test]
fn a_kept_promise_belongs_to_one_list() {
    let name = "a voter of three is removed, one member changes a record before and after";
    ledgers(Setting { name, later: vec![(1, Change(1))], ..removing() }, None);
}

fn lease_budget() -> lease::Budget {
    lease::Budget::default()
}

#[test]
fn one_member_holds_a_lease_at_a_time() {
    leases("two members, two TTLs", 10, lease_budget());
}

#[test]
fn an_attempt_proves_nothing_but_itself() {
    let name = "a request held up, of which nobody knows, but which another member sees before it may lead";
    let budget = lease::Budget { unknown: 1, held: 1, signs: 1, ..lease_budget() };
    leases_of(name, lease::Setting { members: 2, steps: 5, waits: 1, budget });
}

#[test]
fn a_restarted_holder_holds_nothing() {
    leases("one crash", 5, lease::Budget { crashes: 1, ..lease_budget() });
}

#[test]
fn signs_of_life_do_no_harm() {
    leases(
        "a sign of an attempt, a gossip, a push",
        5,
        lease::Budget { signs: 1, gossip: 1, pushes: 1, ..lease_budget() },
    );
}

#[test]
fn a_stale_order_is_refused() {
    leases("one release, one order", 1, lease::Budget { releases: 1, orders: 1, ..lease_budget() });
}

#[test]
fn phases_never_go_back_whoever_leads() {
    let budget = operation::Budget { leads: 2, repeats: 1, ..operation::Budget::default() };
    operations("an operation, two leaders, a push repeated", None, &[], budget);
}

#[test]
fn an_operation_is_gone_on_with_where_nobody_knows_what_was_written() {
    let budget = operation::Budget { leads: 2, unknown: 1, ticks: 1, ..operation::Budget::default() };
    let beyond = &["the operation is done, begun and ended by two leaders"];
    operations("an operation, two leaders, one write unknown", Some(18), beyond, budget);
}

#[test]
fn phases_never_go_back_whoever_dies() {
    let budget = operation::Budget { leads: 2, crashes: 1, ..operation::Budget::default() };
    operations("an operation, two leaders, a process ends", None, &[], budget);
}

#[test]
fn an_undoing_is_gone_on_with_whoever_leads() {
    let budget = operation::Budget { leads: 2, cancels: 1, ..operation::Budget::default() };
    operations("an operation, two leaders, undone", None, &[], budget);
}

#[test]
#[ignore = "minutes"]
fn rivals_with_late_and_repeated_messages_to_the_end() {
    ledgers(
        Setting { name: "two rivals, a message late", budget: ledger::Budget { late: 1, ..budget() }, ..rivals() },
        None,
    );
    let budget = ledger::Budget { repeats: 1, ..budget() };
    ledgers(Setting { name: "two rivals, a message repeated", budget, ..rivals() }, None);
}

#[test]
#[ignore = "minutes"]
fn crashes_to_the_end() {
    ledgers(crashing_voter(), None);
    ledgers(crashing_proposer(), None);
}

#[test]
#[ignore = "minutes"]
fn a_voter_is_added_deeper() {
    ledgers(adding_to_two(), Some(18));
    let budget = ledger::Budget { unheard: 1, ..budget() };
    let name = "a fourth voter is added, a change beside it, prompt answers, one lost";
    ledgers(Setting { name, prompt: true, budget, ..adding() }, Some(14));
}

#[test]
#[ignore = "minutes"]
fn two_changes_of_one_member_and_a_rival_to_the_end() {
    let first = vec![(0, Change(0)), (0, Change(1)), (1, Change(0))];
    ledgers(Setting { name: "one member changes twice, a rival once", first, ..Setting::default() }, None);
}

#[test]
#[ignore = "minutes"]
fn leases_for_longer() {
    leases("one crash, longer", 6, lease::Budget { crashes: 1, ..lease_budget() });
    leases("signs, longer", 7, lease::Budget { signs: 1, gossip: 1, pushes: 1, ..lease_budget() });
    leases("one release, two orders", 2, lease::Budget { releases: 1, orders: 2, ..lease_budget() });
    leases("two members, longer", 12, lease_budget());
    leases("two held up, one unknown", 5, lease::Budget { unknown: 1, held: 2, ..lease_budget() });
}
