//! Every order in which a few members' messages can arrive: the production cores of ledger and lease under a model checker.
//!
//! Within the bounds that each test states, all interleavings of deliveries, losses (a message that is never delivered),
//! repetitions, timers, and crashes with or without the last transaction are explored. Where the simulator looks far along
//! few paths, this looks at all paths, not far. Larger bounds: `--ignored`.

#[path = "model/lease.rs"]
mod lease;
#[path = "model/ledger.rs"]
mod ledger;
#[path = "model/table.rs"]
mod table;

use stateright::{Checker as _, Model as _};

use ledger::{Ask, Beginning, Budget, Ledgers, Setting};

/// Explores a setting to its end, and asserts that nothing is broken and that what is to be reached is reached.
fn explore(setting: Setting) {
    let name = setting.name;
    let began = std::time::Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let depth = std::env::var("MODEL_DEPTH").ok().map_or(1000, |d| d.parse().unwrap());
    let checker = Ledgers::new(setting).checker().threads(threads).target_max_depth(depth).spawn_bfs();
    while !checker.is_done() {
        std::thread::sleep(std::time::Duration::from_secs(5));
        println!(
            "{} {} {} {:?}",
            checker.state_count(),
            checker.unique_state_count(),
            checker.max_depth(),
            checker.model().sizes()
        );
    }
    println!(
        "{name}: {} states, {} of them different, depth {}, {} states of single members, {:.1} s",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        checker.model().nodes(),
        began.elapsed().as_secs_f64()
    );
    if let Some(path) = checker.discovery("nothing is broken") {
        let broken = checker.model().broken(path.last_state());
        panic!("{name}: {broken:?}\nafter\n{}", checker.model().told(&path.into_actions()));
    }
    checker.assert_properties();
}

#[test]
fn rivals_agree_on_every_version() {
    explore(Setting {
        name: "two rivals, three voters",
        first: vec![(0, Ask::Change(0)), (1, Ask::Change(0))],
        ..Setting::default()
    });
}

#[test]
fn repeated_messages_change_nothing() {
    explore(Setting {
        name: "two rivals, three voters, one repeated message",
        first: vec![(0, Ask::Change(0)), (1, Ask::Change(0))],
        budget: Budget { repeats: 1, ..Budget::default() },
        ..Setting::default()
    });
}

#[test]
fn a_voter_that_crashes_forgets_nothing() {
    explore(Setting {
        name: "two rivals, three voters, a voter that crashes once",
        first: vec![(0, Ask::Change(0)), (1, Ask::Change(0))],
        crashing: vec![2],
        budget: Budget { crashes: 1, ..Budget::default() },
        ..Setting::default()
    });
}

#[test]
fn a_proposer_that_crashes_begins_anew() {
    explore(Setting {
        name: "a change, its member crashes once and asks again; another reads",
        first: vec![(0, Ask::Change(0))],
        crashing: vec![0],
        again: true,
        later: vec![(1, Ask::Read)],
        budget: Budget { crashes: 1, ..Budget::default() },
        ..Setting::default()
    });
}

#[test]
fn a_kept_promise_is_as_good_as_a_new_one() {
    explore(Setting {
        name: "one member changes twice, a rival once",
        first: vec![(0, Ask::Change(0)), (0, Ask::Change(1)), (1, Ask::Change(0))],
        ..Setting::default()
    });
}

#[test]
fn a_kept_promise_belongs_to_one_list() {
    explore(Setting {
        name: "a voter of three is removed, one member changes a record before and after",
        first: vec![(1, Ask::Change(0))],
        later: vec![(1, Ask::Change(1))],
        begins: Beginning::Removing,
        ..Setting::default()
    });
}

#[test]
fn versions_go_on_after_a_deletion() {
    explore(Setting {
        name: "a record is deleted while a rival writes it",
        first: vec![(0, Ask::Delete(0)), (1, Ask::Change(0))],
        ..Setting::default()
    });
}

#[test]
fn a_voter_is_added_while_a_record_changes() {
    explore(Setting {
        name: "a fourth voter is added, one change beside it",
        others: 1,
        first: vec![(1, Ask::Change(0))],
        begins: Beginning::Adding,
        ..Setting::default()
    });
}

#[test]
fn a_voter_is_removed_while_a_record_changes() {
    explore(Setting {
        name: "a voter of three is removed, one change beside it",
        first: vec![(1, Ask::Change(0))],
        begins: Beginning::Removing,
        ..Setting::default()
    });
}

fn explore_leases(setting: lease::Setting) {
    let name = setting.name;
    let began = std::time::Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let depth = std::env::var("MODEL_DEPTH").ok().map_or(1000, |d| d.parse().unwrap());
    let checker = lease::Leases::new(setting).checker().threads(threads).target_max_depth(depth).spawn_bfs();
    while !checker.is_done() {
        std::thread::sleep(std::time::Duration::from_secs(2));
        println!(
            "{} {} {} {:?}",
            checker.state_count(),
            checker.unique_state_count(),
            checker.max_depth(),
            checker.model().nodes()
        );
    }
    println!(
        "{name}: {} states, {} of them different, depth {}, {} states of single members, {:.1} s",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        checker.model().nodes(),
        began.elapsed().as_secs_f64()
    );
    if let Some(path) = checker.discovery("nothing is broken") {
        let broken = checker.model().broken(path.last_state());
        panic!("{name}: {broken:?}\nafter\n{}", checker.model().told(&path.into_actions()));
    }
    checker.assert_properties();
}

#[test]
fn one_member_holds_a_lease_at_a_time() {
    explore_leases(lease::Setting {
        name: "two members, clocks a twentieth off",
        members: 2,
        steps: 10,
        budget: lease::Budget::default(),
    });
}

#[test]
fn an_attempt_proves_nothing_but_itself() {
    explore_leases(lease::Setting {
        name: "two members; a request is held up, nobody knows of it, and another member sees it before it takes effect",
        members: 2,
        steps: 5,
        budget: lease::Budget { unknown: 1, held: 1, signs: 1, ..lease::Budget::default() },
    });
}

#[test]
fn a_restarted_holder_holds_nothing() {
    explore_leases(lease::Setting {
        name: "two members, one crash",
        members: 2,
        steps: 6,
        budget: lease::Budget { crashes: 1, ..lease::Budget::default() },
    });
}

#[test]
fn signs_of_life_do_no_harm() {
    explore_leases(lease::Setting {
        name: "two members, one sign of an attempt, one gossip heard, one push",
        members: 2,
        steps: 6,
        budget: lease::Budget { signs: 1, gossip: 1, pushes: 1, ..lease::Budget::default() },
    });
}

#[test]
fn a_stale_order_is_refused() {
    explore_leases(lease::Setting {
        name: "two members, one release, one order",
        members: 2,
        steps: 2,
        budget: lease::Budget { releases: 1, orders: 1, ..lease::Budget::default() },
    });
}
