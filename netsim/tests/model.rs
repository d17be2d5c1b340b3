//! Every order in which a few members' messages can arrive: the production cores of ledger and lease under a model checker.
//!
//! Within the bounds that each test states, all interleavings of deliveries, losses (a message that is never delivered),
//! repetitions, timers, and crashes with or without the last transaction are explored. Where the simulator looks far along
//! few paths, this looks at all paths, not far. Larger bounds: `--ignored`.

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
        println!("{} {} {} {:?}", checker.state_count(), checker.unique_state_count(), checker.max_depth(), checker.model().sizes());
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
