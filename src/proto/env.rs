//! What a core is told of the world: the instant, and where its dice come from.
//!
//! Rule: everything else that a core knows came in as an input, so the same inputs give the same outputs. Must not know:
//! any real clock or generator.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Microseconds on the member's own clock, one that also runs while the machine sleeps (CLOCK_BOOTTIME). Instants of
/// different members are never compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Instant(pub u64);

impl Instant {
    /// `self` later by `span`; the end of time stays the end of time.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(micros(span)))
    }

    /// `self` earlier by `span`, not before the clock's beginning.
    #[must_use]
    pub fn minus(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(micros(span)))
    }

    /// How long ago `earlier` was; zero if it is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// `self` later by `span`, or `None` beyond the end of time.
    pub fn checked_plus(self, span: Duration) -> Option<Self> {
        self.0.checked_add(u64::try_from(span.as_micros()).ok()?).map(Self)
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// Handed to every handler of a core.
#[derive(Debug)]
pub struct Env<'a> {
    /// Never earlier than at the call before.
    pub now: Instant,
    /// In the binary seeded by the operating system, under test by the run's seed.
    pub rng: &'a mut fastrand::Rng,
}

impl Env<'_> {
    /// A span between half of `span` and the whole of it, so that rivals part.
    pub fn jitter(&mut self, span: Duration) -> Duration {
        let span = micros(span);
        Duration::from_micros(self.rng.u64(span / 2..=span))
    }

    /// 16 bytes that nobody else draws.
    pub fn random_id(&mut self) -> [u8; 16] {
        self.rng.u128(..).to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_do_not_leave_the_clock() {
        let second = Duration::from_secs(1);
        assert_eq!(Instant(5).minus(second), Instant(0));
        assert_eq!(Instant(u64::MAX).plus(second), Instant(u64::MAX));
        assert_eq!(Instant(u64::MAX).checked_plus(second), None);
        assert_eq!(Instant(1).since(Instant(2)), Duration::ZERO);
        assert_eq!(Instant(7).plus(second).since(Instant(7)), second);
        assert_eq!(Instant(0).plus(Duration::MAX), Instant(u64::MAX));
    }

    #[test]
    fn jitter_stays_within_half_and_whole() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut env = Env { now: Instant(0), rng: &mut rng };
        for _ in 0..100 {
            let d = env.jitter(Duration::from_millis(10));
            assert!((Duration::from_millis(5)..=Duration::from_millis(10)).contains(&d));
        }
        assert_eq!(env.jitter(Duration::ZERO), Duration::ZERO);
    }
}
