//! What kind of bad day a run has: every option drawn from the run's seed, many of them off.
//!
//! Runs in which some faults never happen reach states that a mixture of all of them hides ("swarm testing", Groce et al.
//! 2012). Must not know: how faults are carried out.

use fastrand::Rng;

use super::clock::DRIFT_MAX_PPM;

/// The options of one run. Times are in microseconds, probabilities in parts per million.
#[derive(Debug, Clone)]
pub struct Swarm {
    /// Members at the start.
    pub members: usize,
    /// Further members that may join.
    pub joiners: usize,
    /// How long faults happen.
    pub faults_for: u64,
    /// Mean time between two faults; 0 for none.
    pub fault_every: u64,
    /// Lost messages.
    pub loss_ppm: u32,
    /// Messages that arrive twice.
    pub duplicate_ppm: u32,
    /// Least delay of a message.
    pub delay_min: u64,
    /// Most delay of an ordinary message.
    pub delay_max: u64,
    /// Messages that take up to fifty times as long.
    pub straggler_ppm: u32,
    /// Most time that a commit to the disk takes.
    pub commit_max: u64,
    /// How far clocks are off at most.
    pub drift_ppm: i64,
    /// Mean time between two requests of a client; 0 for none.
    pub request_every: u64,
    /// Which faults there are.
    pub faults: Faults,
}

/// Switches for the kinds of faults.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Processes killed and started again.
    pub crash: bool,
    /// Links cut: in halves, one way, or between two only.
    pub partition: bool,
    /// Links that deliver nothing for a while, then everything.
    pub clog: bool,
    /// Processes stopped (their clocks run on).
    pub pause: bool,
    /// Machines paused by their host (their clocks stop as well).
    pub freeze: bool,
    /// Clocks that change their rate.
    pub drift: bool,
    /// Clocks that jump ahead.
    pub jump: bool,
    /// Disks lost: the member comes back with a new store.
    pub wipe: bool,
    /// Disks put back from an earlier copy.
    pub restore: bool,
    /// Members that join and leave.
    pub membership: bool,
}

impl Swarm {
    /// A day without any fault.
    #[cfg(test)]
    pub fn calm() -> Self {
        Self {
            members: 3,
            joiners: 0,
            faults_for: 30_000_000,
            fault_every: 0,
            loss_ppm: 0,
            duplicate_ppm: 0,
            delay_min: 200,
            delay_max: 2_000,
            straggler_ppm: 0,
            commit_max: 2_000,
            drift_ppm: 0,
            request_every: 300_000,
            faults: Faults::default(),
        }
    }

    /// Draws a day.
    pub fn draw(rng: &mut Rng) -> Self {
        let sometimes = |rng: &mut Rng, most: u32| if rng.bool() { rng.u32(..most) } else { 0 };
        let faults = Faults {
            crash: rng.u8(..4) > 0,
            partition: rng.u8(..4) > 0,
            clog: rng.bool(),
            pause: rng.bool(),
            freeze: rng.u8(..4) == 0,
            drift: rng.bool(),
            jump: rng.u8(..4) == 0,
            wipe: rng.u8(..3) == 0,
            restore: rng.u8(..3) == 0,
            membership: rng.bool(),
        };
        Self {
            members: [1, 2, 3, 3, 3, 4, 5, 5, 6, 7][rng.usize(..10)],
            joiners: rng.usize(..3),
            faults_for: rng.u64(20_000_000..90_000_000),
            fault_every: rng.u64(200_000..8_000_000),
            loss_ppm: sometimes(rng, 150_000),
            duplicate_ppm: sometimes(rng, 100_000),
            delay_min: rng.u64(50..2_000),
            delay_max: [2_000, 5_000, 40_000, 150_000][rng.usize(..4)],
            straggler_ppm: sometimes(rng, 30_000),
            commit_max: [500, 5_000, 50_000, 400_000][rng.usize(..4)],
            drift_ppm: if rng.bool() { rng.i64(0..=DRIFT_MAX_PPM) } else { 0 },
            request_every: rng.u64(50_000..1_000_000),
            faults,
        }
    }

    /// The delay of one message.
    pub fn delay(&self, rng: &mut Rng) -> u64 {
        let delay = rng.u64(self.delay_min..=self.delay_max.max(self.delay_min));
        if rng.u32(..1_000_000) < self.straggler_ppm { delay * rng.u64(2..50) } else { delay }
    }

    /// How long one commit takes.
    pub fn commit(&self, rng: &mut Rng) -> u64 {
        rng.u64(50..=self.commit_max.max(50))
    }

    /// How far one clock is off.
    pub fn clock_drift(&self, rng: &mut Rng) -> i64 {
        rng.i64(-self.drift_ppm..=self.drift_ppm)
    }
}
