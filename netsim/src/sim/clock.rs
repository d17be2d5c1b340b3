//! A member's clock: how its own CLOCK_BOOTTIME relates to true time.
//!
//! It runs a little too fast or too slow, and stands still while its whole machine is paused. It never goes back. Must not
//! know: who reads it.

/// Parts per million by which a clock may be off: design §7 promises safety within 5 %.
pub const DRIFT_MAX_PPM: i64 = 50_000;

/// One machine's clock. All times are in microseconds.
#[derive(Debug, Clone)]
pub struct Clock {
    // At `since` (true time) it showed `shown`, and runs at `rate_ppm` from there.
    since: u64,
    shown: u64,
    rate_ppm: u64,
    stopped: bool,
}

impl Clock {
    /// A clock that shows `shown` now and runs `drift_ppm` too fast.
    pub fn new(now: u64, shown: u64, drift_ppm: i64) -> Self {
        let rate = 1_000_000 + drift_ppm.clamp(-DRIFT_MAX_PPM, DRIFT_MAX_PPM);
        Self { since: now, shown, rate_ppm: rate.unsigned_abs(), stopped: false }
    }

    /// What it shows at a true time.
    pub fn at(&self, now: u64) -> u64 {
        if self.stopped {
            return self.shown;
        }
        let passed = u128::from(now.saturating_sub(self.since)) * u128::from(self.rate_ppm) / 1_000_000;
        self.shown + u64::try_from(passed).unwrap_or(u64::MAX)
    }

    /// The first true time at which it shows at least `shown`; `None` while it stands still.
    pub fn when(&self, shown: u64) -> Option<u64> {
        if self.stopped {
            return None;
        }
        let wait = u128::from(shown.saturating_sub(self.shown)) * 1_000_000;
        Some(self.since + u64::try_from(wait.div_ceil(u128::from(self.rate_ppm))).unwrap_or(u64::MAX))
    }

    /// From now on it runs at another rate.
    pub fn drift(&mut self, now: u64, drift_ppm: i64) {
        let stopped = self.stopped;
        *self = Self::new(now, self.at(now), drift_ppm);
        self.stopped = stopped;
    }

    /// It jumps ahead, as after a sleep of the machine that CLOCK_BOOTTIME counts.
    pub fn jump(&mut self, now: u64, by: u64) {
        self.shown = self.at(now) + by;
        self.since = now;
    }

    /// Stands still: the host has paused the machine.
    pub fn stop(&mut self, now: u64) {
        self.shown = self.at(now);
        self.since = now;
        self.stopped = true;
    }

    /// Whether it stands still.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Runs on from where it stood.
    pub fn go_on(&mut self, now: u64) {
        self.shown = self.at(now);
        self.since = now;
        self.stopped = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_shows_at_when_what_when_was_asked_for() {
        for drift in [-50_000, -333, 0, 1, 50_000] {
            let clock = Clock::new(10, 1_000, drift);
            for shown in [0, 1_000, 1_001, 77_777, 9_999_999] {
                let when = clock.when(shown).unwrap();
                assert!(clock.at(when) >= shown, "{drift} {shown}");
                assert!(when <= 10 || shown <= 1_000 || clock.at(when - 1) < shown, "{drift} {shown}");
            }
        }
    }

    #[test]
    fn a_stopped_clock_goes_on_where_it_stood() {
        let mut clock = Clock::new(0, 0, 0);
        clock.stop(100);
        assert_eq!((clock.at(5_000), clock.when(200)), (100, None));
        clock.go_on(5_000);
        assert_eq!((clock.at(5_100), clock.when(200)), (200, Some(5_100)));
    }

    #[test]
    fn a_new_rate_does_not_change_what_was_shown() {
        let mut clock = Clock::new(0, 0, 50_000);
        let before = clock.at(1_000_000);
        clock.drift(1_000_000, -50_000);
        assert_eq!(clock.at(1_000_000), before);
        assert_eq!(clock.at(2_000_000), before + 950_000);
    }
}
