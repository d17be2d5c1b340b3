//! The commands: many runs on all processors, or one with its trace.
//!
//! Must not know: what happens in a run.

use std::io::{BufWriter, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::run::{Outcome, Passed, run};
use super::trace::Trace;

/// What `sim` takes.
#[derive(Debug, clap::Args)]
pub struct SimArguments {
    /// The first run's seed: decimal, or hexadecimal (a commit's hash).
    #[arg(long, value_parser = seed, default_value = "1")]
    seed: u64,
    /// How many runs.
    #[arg(long, default_value_t = 1_000)]
    runs: u64,
    /// Runs at the same time [default: one a processor].
    #[arg(long)]
    jobs: Option<usize>,
    /// One line of JSON at the end, and nothing else on stdout.
    #[arg(long)]
    json: bool,
}

/// What `replay` takes.
#[derive(Debug, clap::Args)]
pub struct ReplayArguments {
    /// The run's seed.
    #[arg(long, value_parser = seed)]
    seed: u64,
    /// The last event to show; to the end without it.
    #[arg(long)]
    until: Option<u64>,
}

/// Decimal digits as they are; otherwise hexadecimal, of which the last 15 digits count, so that adding the number of a
/// run to it never overflows.
fn seed(text: &str) -> Result<u64, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let digits = text.strip_prefix("0x").unwrap_or(text);
    if !digits.is_ascii() {
        return Err("expected a number or hexadecimal digits".to_owned());
    }
    let last = &digits[digits.len().saturating_sub(15)..];
    u64::from_str_radix(last, 16).map_err(|_| "expected a number or hexadecimal digits".to_owned())
}

/// A run that did not pass.
struct Failure {
    seed: u64,
    outcome: Outcome,
    event: u64,
}

#[derive(Default)]
struct Totals {
    runs: u64,
    events: u64,
    changes: u64,
    flips: u64,
    most_lists: u64,
    longest_healing: u64,
    majority_lost: u64,
    put_back: [u64; 2],
}

impl Totals {
    fn add(&mut self, passed: Passed) {
        self.runs += 1;
        self.events += passed.events;
        self.changes += passed.changes;
        self.flips += passed.flips;
        self.most_lists = self.most_lists.max(passed.lists);
        self.majority_lost += u64::from(passed.majority_lost);
        for (sum, n) in self.put_back.iter_mut().zip(passed.put_back) {
            *sum += n;
        }
        self.longest_healing = self.longest_healing.max(passed.healed_after);
    }
}

/// Runs seeds until one fails or all have passed.
pub fn sim(arguments: &SimArguments) -> ExitCode {
    // A run's panic is an outcome, told with its replay command; the hook's text would come from several threads at once.
    std::panic::set_hook(Box::new(|_| {}));
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let found: Mutex<Option<Failure>> = Mutex::new(None);
    let totals = Mutex::new(Totals::default());
    let jobs = arguments.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= arguments.runs {
                        break;
                    }
                    let seed = arguments.seed.wrapping_add(number);
                    match run(seed, None, Trace::off(), u64::MAX) {
                        (Outcome::Passed(passed), _) => {
                            let mut totals = locked(&totals);
                            totals.add(passed);
                            progress(&totals, arguments, began);
                        }
                        (outcome, event) => {
                            // Runs under way go on to their end, and of those that fail the first seed is told.
                            next.store(arguments.runs, Ordering::Relaxed);
                            let mut found = locked(&found);
                            if found.as_ref().is_none_or(|f| f.seed > seed) {
                                *found = Some(Failure { seed, outcome, event });
                            }
                        }
                    }
                }
            });
        }
    });
    let totals = totals.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let failure = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    report(arguments, &totals, failure.as_ref(), began);
    ExitCode::from(failure.map_or(0, |f| code(&f.outcome)))
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn code(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::Passed(_) | Outcome::Until => 0,
        Outcome::Broken(_) => 2,
        Outcome::Stuck(_) => 3,
        Outcome::Crashed(_) => 4,
    }
}

fn told(outcome: &Outcome) -> (&'static str, &str) {
    match outcome {
        Outcome::Passed(_) => ("passed", ""),
        Outcome::Until => ("stopped where it was to stop", ""),
        Outcome::Broken(what) => ("a property does not hold", what),
        Outcome::Stuck(what) => ("no progress after healing", what),
        Outcome::Crashed(what) => ("crashed", what),
    }
}

fn progress(totals: &Totals, arguments: &SimArguments, began: Instant) {
    if arguments.json || !std::io::stderr().is_terminal() || !totals.runs.is_multiple_of(20) {
        return;
    }
    let rate = totals.runs as f64 / began.elapsed().as_secs_f64().max(0.001);
    let left = (arguments.runs - totals.runs) as f64 / rate.max(0.001);
    // Nobody reads a closed stderr.
    let _ = write!(std::io::stderr(), "\r{} of {} runs, {rate:.0}/s, {left:.0} s left   ", totals.runs, arguments.runs);
}

fn report(arguments: &SimArguments, totals: &Totals, failure: Option<&Failure>, began: Instant) {
    let seconds = began.elapsed().as_secs_f64();
    if arguments.json {
        let failed = failure.map(|f| {
            let (kind, what) = told(&f.outcome);
            serde_json::json!({"seed": f.seed, "event": f.event, "kind": kind, "what": what})
        });
        println!(
            "{}",
            serde_json::json!({
                "seed": arguments.seed, "passed": totals.runs, "events": totals.events, "changes": totals.changes,
                "flips": totals.flips, "majority_lost": totals.majority_lost, "put_back": totals.put_back[0], "given_up": totals.put_back[1],
                "seconds": seconds, "failure": failed,
            })
        );
        return;
    }
    if std::io::stderr().is_terminal() {
        eprintln!();
    }
    println!(
        "{} runs passed in {seconds:.1} s: {} events, {} changes, {} flips; at most {} voter lists, at rest at most {:.0} s after healing",
        totals.runs,
        totals.events,
        totals.changes,
        totals.flips,
        totals.most_lists,
        totals.longest_healing as f64 / 1e6
    );
    if totals.put_back[0] > 0 {
        println!(
            "{} stores were put back from copies, {} of them where all who could have told were out of reach: taken away",
            totals.put_back[0], totals.put_back[1]
        );
    }
    if totals.majority_lost > 0 {
        println!("in {} of them a store was lost that had just become needed: safety only", totals.majority_lost);
    }
    if let Some(failure) = failure {
        let (kind, what) = told(&failure.outcome);
        println!("seed {}: {kind} at event {}: {what}", failure.seed, failure.event);
        println!("replay: cargo run --release -p netsim -- replay --seed {} --until {}", failure.seed, failure.event);
    }
}

/// Runs one seed with its trace on stdout.
pub fn replay(arguments: &ReplayArguments) -> ExitCode {
    let out = BufWriter::with_capacity(1 << 20, std::io::stdout());
    let (outcome, event) = run(arguments.seed, None, Trace::to(Box::new(out)), arguments.until.unwrap_or(u64::MAX));
    let (kind, what) = told(&outcome);
    println!("seed {}: {kind} at event {event}{}{what}", arguments.seed, if what.is_empty() { "" } else { ": " });
    ExitCode::from(code(&outcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_may_be_a_commits_hash() {
        assert_eq!(seed("17"), Ok(17));
        assert_eq!(seed("0xff"), Ok(255));
        assert_eq!(seed("eef2e08d6b7a4c8f9e0a1b2c3d4e5f6071829304"), Ok(0x0d4e_5f60_7182_9304));
        assert!(seed("").is_err() && seed("xyz").is_err() && seed("ü").is_err());
    }
}
