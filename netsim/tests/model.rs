//! Every order in which a few members' messages can arrive: the production core of the ledger under a model checker.
//!
//! Within the bounds that each test states, all interleavings of deliveries, losses (a message that is never delivered),
//! repetitions, timers, and crashes with or without the last transaction are explored. Where the simulator looks far along
//! few paths, this looks at all paths, not far.

#[path = "model/ledger.rs"]
mod ledger;

use stateright::{Checker as _, Model as _};

use ledger::{Budget, Ledgers, Setting};

/// Explores a setting to its end, and asserts that nothing is broken and that what is to be reached is reached.
fn explore(setting: Setting) {
    let name = setting.name;
    let began = std::time::Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let checker = Ledgers::new(setting).checker().threads(threads).spawn_bfs().join();
    println!(
        "{name}: {} states, {} of them different, depth {}, {:.1} s",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        began.elapsed().as_secs_f64()
    );
    if let Some(path) = checker.discovery("nothing is broken") {
        let broken = path.last_state().broken().map(str::to_owned);
        panic!("{name}: {broken:?}\nafter {:?}", path.into_actions());
    }
    checker.assert_properties();
}

#[test]
fn rivals_agree_on_every_version() {
    explore(Setting {
        name: "two rivals, three voters, one timer each",
        voters: 3,
        changes: vec![(0, 0), (1, 0)],
        budget: Budget { ticks: 1, ..Budget::default() },
        ..Setting::default()
    });
}

#[test]
fn repeated_messages_change_nothing() {
    explore(Setting {
        name: "two rivals, three voters, two repeated messages",
        voters: 3,
        changes: vec![(0, 0), (1, 0)],
        budget: Budget { repeats: 2, ..Budget::default() },
        ..Setting::default()
    });
}

#[test]
fn a_crash_between_storing_and_sending_loses_nothing() {
    explore(Setting {
        name: "two rivals, three voters, one crash with or without the last transaction",
        voters: 3,
        changes: vec![(0, 0), (1, 0)],
        budget: Budget { crashes: 1, ..Budget::default() },
        ..Setting::default()
    });
}

#[test]
fn a_kept_promise_is_as_good_as_a_new_one() {
    explore(Setting {
        name: "one member changes twice, a rival once, three voters",
        voters: 3,
        changes: vec![(0, 0), (0, 1), (1, 0)],
        ..Setting::default()
    });
}

#[test]
fn voters_change_while_a_record_does() {
    explore(Setting {
        name: "three voters become four, one change beside it",
        voters: 3,
        members: 4,
        changes: vec![(1, 0)],
        budget: Budget { ticks: 2, ..Budget::default() },
        ..Setting::default()
    });
}
