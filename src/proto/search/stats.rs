//! What a member remembers of the others' answers: latency, errors, calls under way, and how often it may hedge.
//!
//! Instants are passed in. Must not know: who the members are, what was asked.

use std::time::{Duration, Instant};

/// Each sample moves the smoothed latency by one part in this many.
const SMOOTHING: f64 = 8.0;
/// Latencies remembered for the 95th percentile.
const WINDOW: usize = 64;
/// Fewer samples than this say nothing about a percentile.
const WINDOW_MIN: usize = 8;
/// Errors, and the latency of a member that is not asked, halve in this time: so a slow member is tried again.
const HALF_LIFE: Duration = Duration::from_secs(10);
/// Nobody is hedged earlier.
const HEDGE_AFTER_MIN: Duration = Duration::from_millis(5);
/// Errors remembered at most.
const ERRORS_MAX: f64 = 100.0;

/// One member's answers.
#[derive(Debug, Clone)]
pub struct MemberStats {
    latency_us: f64,
    sampled: Option<Instant>,
    /// A ring of the latest latencies, in microseconds.
    window: Vec<u32>,
    next: usize,
    errors: f64,
    failed: Option<Instant>,
    in_flight: u32,
}

impl Default for MemberStats {
    fn default() -> Self {
        Self { latency_us: 0.0, sampled: None, window: Vec::new(), next: 0, errors: 0.0, failed: None, in_flight: 0 }
    }
}

/// What is left of 1 after this time.
fn fade(since: Option<Instant>, now: Instant) -> f64 {
    let age = since.map_or(Duration::ZERO, |s| now.saturating_duration_since(s));
    0.5_f64.powf(age.as_secs_f64() / HALF_LIFE.as_secs_f64())
}

impl MemberStats {
    /// A call was sent.
    pub fn sent(&mut self) {
        self.in_flight = self.in_flight.saturating_add(1);
    }

    /// A call was answered after `latency`.
    pub fn answered(&mut self, now: Instant, latency: Duration) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let us = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX).max(1);
        let known = self.faded_latency(now);
        self.latency_us =
            if self.sampled.is_none() { f64::from(us) } else { known + (f64::from(us) - known) / SMOOTHING };
        self.sampled = Some(now);
        if self.window.len() < WINDOW {
            self.window.push(us);
        } else {
            self.window[self.next] = us;
        }
        self.next = (self.next + 1) % WINDOW;
    }

    /// A call failed.
    pub fn failed(&mut self, now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.errors = (self.recent_errors(now) + 1.0).min(ERRORS_MAX);
        self.failed = Some(now);
    }

    /// A call was given up because another answered first, or the client left: neither good nor bad, but it took at least
    /// this long.
    pub fn cancelled(&mut self, now: Instant, waited: Duration) {
        let known = self.faded_latency(now);
        if f64::from(u32::try_from(waited.as_micros()).unwrap_or(u32::MAX)) > known {
            self.answered(now, waited);
        } else {
            self.in_flight = self.in_flight.saturating_sub(1);
        }
    }

    fn faded_latency(&self, now: Instant) -> f64 {
        self.latency_us * fade(self.sampled, now)
    }

    /// Smoothed latency in microseconds; 0 without a sample.
    pub fn latency_us(&self, now: Instant) -> u64 {
        if self.sampled.is_none() {
            return 0;
        }
        // Between 1 and 2^32.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let us = self.faded_latency(now).max(1.0) as u64;
        us
    }

    /// Errors lately.
    pub fn recent_errors(&self, now: Instant) -> f64 {
        self.errors * fade(self.failed, now)
    }

    /// Calls under way.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// When a call to this member is late: its 95th percentile, if there are samples enough.
    pub fn hedge_after(&self) -> Option<Duration> {
        if self.window.len() < WINDOW_MIN {
            return None;
        }
        let mut sorted = self.window.clone();
        sorted.sort_unstable();
        let us = sorted[(sorted.len() * 95 / 100).min(sorted.len() - 1)];
        Some(Duration::from_micros(us.into()).max(HEDGE_AFTER_MIN))
    }
}

/// How often searches may be hedged: so many in a hundred, and 10 at once.
#[derive(Debug, Clone)]
pub struct HedgeBudget {
    /// Hundredths of a hedge.
    left: u32,
    per_request: u32,
}

impl HedgeBudget {
    const PER_HEDGE: u32 = 100;
    const MAX: u32 = 10 * Self::PER_HEDGE;

    /// A full budget of so many hedges in a hundred searches.
    pub fn new(percent: u8) -> Self {
        Self { left: Self::MAX, per_request: u32::from(percent) }
    }

    /// Counts a search.
    pub fn request(&mut self) {
        self.left = (self.left + self.per_request).min(Self::MAX);
    }

    /// Takes one hedge; `false` if there is none left.
    pub fn take(&mut self) -> bool {
        match self.left.checked_sub(Self::PER_HEDGE) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }

    /// Gives a hedge back that had nobody to ask.
    pub fn give_back(&mut self) {
        self.left = (self.left + Self::PER_HEDGE).min(Self::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn latency_follows_the_samples_and_fades_when_there_are_none() {
        let start = Instant::now();
        let mut stats = MemberStats::default();
        assert_eq!(stats.latency_us(start), 0);
        stats.answered(start, 8 * MS);
        assert_eq!(stats.latency_us(start), 8_000);
        stats.answered(start, 16 * MS);
        assert_eq!(stats.latency_us(start), 9_000);
        assert_eq!(stats.latency_us(start + HALF_LIFE), 4_500);
        assert_eq!(stats.latency_us(start + HALF_LIFE * 1_000), 1);
    }

    #[test]
    fn errors_fade() {
        let start = Instant::now();
        let mut stats = MemberStats::default();
        (0..200).for_each(|_| stats.failed(start));
        assert!((stats.recent_errors(start) - ERRORS_MAX).abs() < 1e-9);
        assert!((stats.recent_errors(start + HALF_LIFE * 2) - ERRORS_MAX / 4.0).abs() < 1e-9);
    }

    #[test]
    fn calls_under_way_are_counted() {
        let now = Instant::now();
        let mut stats = MemberStats::default();
        (0..4).for_each(|_| stats.sent());
        stats.answered(now, MS);
        stats.failed(now);
        stats.cancelled(now, MS / 2);
        assert_eq!(stats.in_flight(), 1);
        assert_eq!(stats.latency_us(now), 1_000, "a short wait given up says nothing");
        stats.cancelled(now, 9 * MS);
        assert_eq!((stats.in_flight(), stats.latency_us(now)), (0, 2_000));
    }

    #[test]
    fn late_is_what_is_slower_than_nearly_all() {
        let now = Instant::now();
        let mut stats = MemberStats::default();
        (0..7).for_each(|_| stats.answered(now, MS));
        assert_eq!(stats.hedge_after(), None);
        for i in 1..=200 {
            stats.answered(now, MS * i);
        }
        // The last 64: 137 to 200 ms.
        assert_eq!(stats.hedge_after(), Some(MS * 197));
        (0..64).for_each(|_| stats.answered(now, MS));
        assert_eq!(stats.hedge_after(), Some(HEDGE_AFTER_MIN));
    }

    #[test]
    fn hedges_are_five_in_a_hundred() {
        let mut budget = HedgeBudget::new(5);
        assert_eq!((0..20).filter(|_| budget.take()).count(), 10);
        let hedged = (0..1_000).filter(|_| {
            budget.request();
            budget.take()
        });
        assert_eq!(hedged.count(), 50);
        budget.give_back();
        assert!(budget.take() && !budget.take());
    }
}
