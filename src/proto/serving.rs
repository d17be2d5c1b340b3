//! Whether a replica serves searches: in sync and serving are two things.
//!
//! A replica in sync has stored everything that is committed, so what it had stored at one moment covers all that was committed
//! then: it begins to serve when its node has applied that. Where more comes all the while, it first tells that it is awaited, so
//! that no task ends without it any more, and serves what it had stored when all know that. It ends when its node is behind the furthest replica for longer than it
//! may be, also where it has left the set; a load that all replicas are working through takes nobody out, nor does a cut during
//! which nothing is written. Rule: a copy that is to be made anew, or whose node is not known to have what was noted, serves
//! nothing. Must not know: searches, the node.

use std::collections::VecDeque;
use std::time::Duration;

use super::env::Instant;

/// What comes while a replica applies what it had is committed and told to be done without it: so often it takes that in, too,
/// each time in less time, before it is awaited. More often a replica under load would never serve.
const ROUNDS: u32 = 3;
/// A replica that has not served for so long should not order writes, if another one serves.
const UNFIT: Duration = Duration::from_secs(10);
/// Positions of others that are remembered.
const SAMPLES: usize = 64;

/// What is known of a replica at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sight {
    /// The record counts it in sync.
    pub in_sync: bool,
    /// Its node has what was noted, and its copy is one that entries are applied to.
    pub whole: bool,
    /// The last entry that it has stored.
    pub last: u64,
    /// The last entry that it knows to be committed.
    pub committed: u64,
    /// Up to here its node has applied them.
    pub applied: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Serves when this is applied, and awaited when that was so many times in a row; `None` while it is not in sync.
    Waits {
        until: Option<u64>,
        rounds: u32,
    },
    /// Tells since then that it is awaited, and serves when this is applied; `None` until all may know it.
    Awaited {
        since: Instant,
        until: Option<u64>,
    },
    Serves,
}

impl State {
    const WAITS: Self = Self::Waits { until: None, rounds: ROUNDS };
}

/// One replica; see the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serving {
    /// How long it may be behind.
    lag: Duration,
    /// How long it takes until all know what it tells.
    told: Duration,
    state: State,
    /// Up to here its node had applied entries when it was last seen.
    applied: u64,
    /// Since when it is out of sync.
    outside: Option<Instant>,
    /// Up to where it was to be applied, and since when.
    behind: Option<(u64, Instant)>,
    /// Where the furthest replica was, and when; only what is not applied here yet.
    furthest: VecDeque<(Instant, u64)>,
    /// Since when it has not served.
    unserved: Option<Instant>,
}

impl Serving {
    /// A replica of a process that has just begun: how long it may be behind, and how long it takes until all know what it tells.
    pub fn new(lag: Duration, told: Duration) -> Self {
        let state = State::WAITS;
        Self { lag, told, state, applied: 0, outside: None, behind: None, furthest: VecDeque::new(), unserved: None }
    }

    /// Whether it serves, as far as was seen.
    pub fn serves(&self) -> bool {
        self.state == State::Serves
    }

    /// Whether tasks are to wait for it, as far as was seen: it serves, or will serve what it has by now only when it is applied.
    pub fn is_awaited(&self) -> bool {
        !matches!(self.state, State::Waits { .. })
    }

    /// Whether somebody else should order writes, if another replica serves: its node does not get on, and whoever orders writes judges
    /// them by what its own node makes of them.
    pub fn is_unfit(&self, now: Instant) -> bool {
        self.unserved.is_some_and(|since| since.plus(UNFIT) <= now)
    }

    /// Whether it has to be looked at again soon.
    pub fn is_at_rest(&self) -> bool {
        self.serves() && self.outside.is_none() && self.behind.is_none() && self.furthest.is_empty()
    }

    /// Whether it must be found out how far the other replicas are: it has been behind for half as long as it may be, or is out
    /// of sync, so that it does not hear what is committed.
    pub fn asks(&self, now: Instant) -> bool {
        let behind = self.behind.is_some_and(|(_, since)| since.plus(self.lag / 2) <= now);
        self.is_awaited() && (behind || self.outside.is_some())
    }

    /// What is so now. Says whether it serves.
    pub fn handle_sight(&mut self, now: Instant, sight: Sight) -> bool {
        while self.furthest.front().is_some_and(|(_, to)| *to <= sight.applied) {
            self.furthest.pop_front();
        }
        if self.behind.is_some_and(|(to, _)| to <= sight.applied) {
            self.behind = None;
        }
        if sight.applied < sight.committed {
            self.behind.get_or_insert((sight.committed, now));
        }
        self.outside = if sight.in_sync { None } else { self.outside.or(Some(now)) };
        // Its node has lost what it had.
        let back = sight.applied < std::mem::replace(&mut self.applied, sight.applied);
        let behind = self.furthest.front().is_some_and(|(at, _)| at.plus(self.lag) <= now);
        let fails = !sight.whole || behind || back;
        match &mut self.state {
            State::Waits { until, rounds } => {
                *until = sight.in_sync.then(|| until.unwrap_or(sight.last)).filter(|_| sight.whole && !back);
                if until.is_some_and(|until| until <= sight.applied) {
                    if sight.last <= sight.applied {
                        self.state = State::Serves;
                    } else if *rounds == 1 {
                        self.state = State::Awaited { since: now, until: None };
                    } else {
                        (*until, *rounds) = (Some(sight.last), *rounds - 1);
                    }
                }
            }
            State::Awaited { .. } if fails || !sight.in_sync => self.state = State::WAITS,
            State::Awaited { since, until } => {
                if since.plus(self.told) <= now && *until.get_or_insert(sight.last) <= sight.applied {
                    self.state = State::Serves;
                }
            }
            State::Serves if fails => self.state = State::WAITS,
            State::Serves => {}
        }
        self.unserved = if self.is_awaited() { None } else { self.unserved.or(Some(now)) };
        self.serves()
    }

    /// The furthest of the other replicas has applied everything up to `to`.
    pub fn handle_furthest(&mut self, now: Instant, to: u64) {
        let more = self.furthest.back().is_none_or(|(_, known)| *known < to);
        if more && self.furthest.len() < SAMPLES {
            self.furthest.push_back((now, to));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAG: Duration = Duration::from_secs(5);
    const TOLD: Duration = Duration::from_secs(3);

    fn at(seconds: u64) -> Instant {
        Instant(0).plus(Duration::from_secs(seconds))
    }

    fn sight(applied: u64, committed: u64) -> Sight {
        Sight { in_sync: true, whole: true, last: committed, committed, applied }
    }

    fn serving() -> Serving {
        let mut one = Serving::new(LAG, TOLD);
        assert!(!one.serves());
        assert!(one.handle_sight(at(0), sight(3, 3)));
        assert!(one.is_at_rest());
        one
    }

    #[test]
    fn it_begins_when_what_was_stored_is_applied_and_not_what_came_since() {
        let mut one = Serving::new(LAG, TOLD);
        let outside = Sight { in_sync: false, ..sight(9, 9) };
        assert!(!one.handle_sight(at(0), outside));
        assert!(!one.handle_sight(at(1), Sight { last: 12, ..sight(9, 9) }), "12 may be committed");
        assert!(!one.handle_sight(at(2), Sight { last: 90, ..sight(11, 50) }));
        assert!(
            !one.handle_sight(at(3), Sight { last: 99, ..sight(12, 60) }),
            "tasks of what came since may be told as done"
        );
        assert!(!one.handle_sight(at(4), Sight { last: 120, ..sight(99, 120) }));
        assert!(!one.is_awaited());
        // Under load there is always more.
        let mut look = |s, last, applied| {
            let serves = one.handle_sight(at(s), Sight { last, ..sight(applied, last) });
            (serves, one.is_awaited())
        };
        assert_eq!(look(5, 130, 120), (false, true), "of what came meanwhile tasks may have ended without it");
        assert_eq!(look(7, 150, 149), (false, true), "not all may know that it is awaited");
        assert_eq!(look(8, 160, 155), (false, true));
        assert_eq!(look(9, 190, 159), (false, true));
        assert_eq!(look(10, 210, 160), (true, true), "of what came since no task ends without it");
    }

    #[test]
    fn who_is_awaited_and_does_not_keep_up_is_not_any_more() {
        let awaited = || {
            let mut one = Serving::new(LAG, TOLD);
            for (s, applied) in (0..).zip([0, 10, 20, 30]) {
                assert!(!one.handle_sight(at(s), Sight { last: applied + 10, ..sight(applied, applied) }));
            }
            assert!(one.is_awaited() && !one.is_at_rest() && !one.is_unfit(at(60)));
            one
        };
        let more = |applied| Sight { last: 99, ..sight(applied, 99) };
        let mut left = awaited();
        assert!(!left.handle_sight(at(4), Sight { in_sync: false, ..more(31) }) && !left.is_awaited());
        let mut lost = awaited();
        assert!(!lost.handle_sight(at(4), Sight { whole: false, ..more(31) }) && !lost.is_awaited());
        let mut slow = awaited();
        assert!(!slow.handle_sight(at(4), more(31)) && slow.asks(at(7)));
        slow.handle_furthest(at(7), 90);
        assert!(!slow.handle_sight(at(11), more(40)) && slow.is_awaited());
        assert!(!slow.handle_sight(at(12), more(41)) && !slow.is_awaited());
    }

    #[test]
    fn a_node_that_has_lost_what_it_had_serves_nothing_until_it_has_it_again() {
        let mut one = serving();
        assert!(one.handle_sight(at(1), sight(9, 9)));
        assert!(!one.handle_sight(at(2), sight(0, 9)), "it went back");
        assert!(!one.handle_sight(at(3), sight(8, 9)) && one.handle_sight(at(4), sight(9, 9)));
    }

    #[test]
    fn who_leaves_the_set_while_waiting_waits_for_what_it_has_when_it_is_back() {
        let mut one = Serving::new(LAG, TOLD);
        assert!(!one.handle_sight(at(0), Sight { last: 5, ..sight(1, 5) }));
        assert!(!one.handle_sight(at(1), Sight { in_sync: false, ..sight(4, 5) }));
        assert!(!one.handle_sight(at(2), Sight { last: 8, ..sight(5, 8) }));
        assert!(one.handle_sight(at(3), sight(8, 8)));
    }

    #[test]
    fn a_copy_that_is_not_whole_serves_nothing_at_once() {
        let mut one = serving();
        assert!(!one.handle_sight(at(1), Sight { whole: false, ..sight(3, 3) }));
        assert!(!one.handle_sight(at(2), Sight { whole: false, ..sight(3, 3) }));
        assert!(one.handle_sight(at(3), sight(3, 3)));
    }

    #[test]
    fn who_does_not_get_on_leaves_writes_to_another_after_a_while() {
        let mut one = serving();
        one.handle_furthest(at(1), 9);
        assert!(one.handle_sight(at(5), sight(3, 9)) && !one.handle_sight(at(6), sight(3, 9)));
        assert!(!one.is_unfit(at(15)) && one.is_unfit(at(16)));
        assert!(one.handle_sight(at(17), sight(9, 9)) && !one.is_unfit(at(60)), "it is as far as the others");
        // Where all are behind alike nobody is further.
        assert!(one.handle_sight(at(20), sight(9, 99)) && one.handle_sight(at(90), sight(9, 99)));
        assert!(!one.is_unfit(at(90)));
    }

    #[test]
    fn who_is_out_of_sync_serves_until_others_are_further_for_long() {
        let mut one = serving();
        let outside = Sight { in_sync: false, ..sight(3, 3) };
        assert!(one.handle_sight(at(1), outside) && one.asks(at(1)) && !one.is_at_rest());
        for s in 2..=60 {
            one.handle_furthest(at(s), 3);
        }
        assert!(one.handle_sight(at(60), outside), "nothing was written");
        for s in 61..=66 {
            one.handle_furthest(at(s), 4);
            assert_eq!(one.handle_sight(at(s), outside), s < 66, "4 was applied elsewhere five seconds ago");
        }
        assert!(!one.handle_sight(at(67), Sight { in_sync: false, ..sight(4, 4) }), "it begins again only in sync");
        assert!(one.handle_sight(at(68), sight(4, 4)) && one.is_at_rest());
    }

    #[test]
    fn a_load_that_all_work_through_takes_nobody_out() {
        let mut one = serving();
        for s in 1..100 {
            // All are a hundred entries, and ten seconds, behind.
            assert!(one.handle_sight(at(s), sight(10 * s, 10 * s + 100)));
            if one.asks(at(s)) {
                one.handle_furthest(at(s), 10 * s + 20);
            }
        }
        assert!(one.furthest.len() < 9);
    }

    #[test]
    fn who_is_behind_the_furthest_for_long_serves_no_more() {
        let mut one = serving();
        assert!(one.handle_sight(at(1), sight(3, 50)) && !one.asks(at(3)) && one.asks(at(4)));
        one.handle_furthest(at(4), 40);
        one.handle_furthest(at(6), 50);
        assert!(one.handle_sight(at(8), sight(39, 50)));
        assert!(!one.handle_sight(at(9), sight(39, 50)), "40 was applied elsewhere five seconds ago");
        assert!(!one.handle_sight(at(10), sight(49, 50)));
        assert!(one.handle_sight(at(11), sight(50, 50)));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut one = serving();
        for s in 1..1_000 {
            one.handle_furthest(at(s), 10 * s);
        }
        assert_eq!(one.furthest.len(), SAMPLES);
    }
}
