//! Latencies from requests sent alternately, throughput from rounds A-B-A.
//!
//! Whatever slows the machine down for a moment hits both sides alike; A against A shows what is left of it. Must not know:
//! who A and B are.

use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::task::JoinSet;

use super::lane::{Lane, Target};

const WARM_UP: usize = 200;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Requests of each of the three sides of a latency measurement.
    pub requests: usize,
    /// Rounds A-B-A of a throughput measurement.
    pub rounds: usize,
    /// The length of each third of a round.
    pub third: Duration,
    /// Connections of a throughput measurement.
    pub connections: usize,
}

/// One number of A, of B, and their ratios.
#[derive(Debug, Clone, Serialize)]
pub struct Compared {
    /// What is compared.
    pub what: &'static str,
    /// A's value.
    pub a: f64,
    /// B's value.
    pub b: f64,
    /// B over A.
    pub ratio: f64,
    /// A over A, from the same run: a ratio no further from 1 than this one is no difference.
    pub a_over_a: f64,
}

impl Compared {
    /// Whether the ratio says more than the measurement's own noise.
    pub fn differs(&self) -> bool {
        (self.ratio - 1.0).abs() > (self.a_over_a - 1.0).abs()
    }
}

/// p50, p95 and p99 in milliseconds, at one connection each.
pub async fn latencies(a: &Target, b: &Target, effort: Effort) -> anyhow::Result<Vec<Compared>> {
    let mut lanes = [a.lane(), b.lane(), a.lane()];
    for lane in &mut lanes {
        for i in 0..WARM_UP {
            lane.ask(i).await?;
        }
    }
    let mut taken: [Vec<f64>; 3] = Default::default();
    for i in 0..effort.requests {
        // Who comes first finds colder caches, so everybody does in turn.
        for side in (0..3).map(|k| (i + k) % 3) {
            taken[side].push(timed(&mut lanes[side], i).await?);
        }
    }
    Ok(percentiles(taken, &[("p50 ms", 0.50), ("p95 ms", 0.95), ("p99 ms", 0.99)]))
}

/// Percentiles of what was taken of A, of B, and of A again.
pub fn percentiles(taken: [Vec<f64>; 3], shares: &[(&'static str, f64)]) -> Vec<Compared> {
    let [first, of_b, second] = taken.map(sorted);
    let of_a = sorted([first.clone(), second.clone()].concat());
    let at = |(what, share): &(&'static str, f64)| {
        let (a, b) = (percentile(&of_a, *share), percentile(&of_b, *share));
        Compared { what, a, b, ratio: b / a, a_over_a: percentile(&second, *share) / percentile(&first, *share) }
    };
    shares.iter().map(at).collect()
}

/// Medians over rounds A-B-A.
pub fn compared(what: &'static str, rounds: &[[f64; 3]]) -> Compared {
    let median = |of: &dyn Fn(&[f64; 3]) -> f64| percentile(&sorted(rounds.iter().map(of).collect()), 0.5);
    Compared {
        what,
        a: median(&|[first, _, last]| (first + last) / 2.0),
        b: median(&|[_, middle, _]| *middle),
        ratio: median(&|[first, middle, last]| 2.0 * middle / (first + last)),
        a_over_a: median(&|[first, _, last]| last / first),
    }
}

async fn timed(lane: &mut Lane, number: usize) -> anyhow::Result<f64> {
    let began = Instant::now();
    lane.ask(number).await?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

/// Searches per second at several connections; medians over the rounds.
pub async fn throughput(a: &Target, b: &Target, effort: Effort) -> anyhow::Result<Compared> {
    let lanes = |target: &Target| (0..effort.connections).map(|_| target.lane()).collect::<Vec<_>>();
    let (mut of_a, mut of_b) = (lanes(a), lanes(b));
    let mut rounds = Vec::new();
    for _ in 0..effort.rounds {
        let first = rate(&mut of_a, effort.third).await?;
        let middle = rate(&mut of_b, effort.third).await?;
        let last = rate(&mut of_a, effort.third).await?;
        rounds.push([first, middle, last]);
    }
    Ok(compared("searches/s", &rounds))
}

/// Searches per second of all lanes together. Each ends the search that it has begun, and that counts with its time.
async fn rate(lanes: &mut Vec<Lane>, length: Duration) -> anyhow::Result<f64> {
    let began = Instant::now();
    let mut running = JoinSet::new();
    for (start, mut lane) in lanes.drain(..).enumerate() {
        running.spawn(async move {
            let mut done = 0;
            while began.elapsed() < length {
                // Apart from one another, so that no two send the same search at once.
                lane.ask(start * 97 + done).await?;
                done += 1;
            }
            anyhow::Ok((lane, done))
        });
    }
    let mut total = 0;
    while let Some(ended) = running.join_next().await {
        let (lane, done) = ended??;
        lanes.push(lane);
        total += done;
    }
    Ok(total as f64 / began.elapsed().as_secs_f64())
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// The value below which `share` of the sorted values lie.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_of_the_list() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(
            (percentile(&values, 0.5), percentile(&values, 0.95), percentile(&values, 0.99)),
            (50.0, 95.0, 99.0)
        );
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
        assert_eq!(percentile(&values, 0.0), 1.0);
    }

    #[test]
    fn a_difference_within_the_noise_is_none() {
        let of = |ratio, a_over_a| Compared { what: "x", a: 1.0, b: 1.0, ratio, a_over_a };
        assert!(!of(1.03, 0.96).differs());
        assert!(of(1.05, 0.96).differs());
        assert!(of(0.90, 1.02).differs());
    }
}
