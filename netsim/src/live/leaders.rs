//! Who leads, as the members' metrics tell it all the time: at most one a scope, and none only while one is being replaced.
//!
//! Members are looked at beside one another, not at one instant; so two leaders count as two only if both lead in two
//! looks running (`holdings` judges by the members' own clocks). Must not know: what faults there are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::members::Members;
use crate::mesh::Client;

/// Scopes that always have a leader.
pub const STANDING: [&str; 3] = ["membership", "shard_leaders", "task_ids"];
const INTERVAL: Duration = Duration::from_millis(100);
const LOOK_PATIENCE: Duration = Duration::from_millis(300);
/// Where less of the looks had an answer from every member that runs, nothing can be said.
const WHOLE_LOOKS_MIN_PERCENT: usize = 30;

/// One look at all members.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// When it began, since the first.
    pub from: Duration,
    /// When the last member had answered.
    pub to: Duration,
    /// Scope → who leads it.
    pub leaders: BTreeMap<String, BTreeSet<usize>>,
    /// Who runs but did not answer in time.
    pub silent: BTreeSet<usize>,
}

impl Look {
    fn leaders_of(&self, scope: &str) -> BTreeSet<usize> {
        self.leaders.get(scope).cloned().unwrap_or_default()
    }
}

/// Looks without end, until it is dropped.
pub struct Watch {
    began: Instant,
    looks: Arc<Mutex<Vec<Look>>>,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// Begins to look.
    pub fn begin(members: &Members) -> Self {
        let mut clients: Vec<Client> = (0..members.count()).map(|m| members.metrics(m)).collect();
        let (pictures, began) = (members.pictures(), Instant::now());
        let looks: Arc<Mutex<Vec<Look>>> = Arc::default();
        let kept = Arc::clone(&looks);
        let task = tokio::spawn(async move {
            loop {
                let from = began.elapsed();
                let answers = join_all(clients.iter_mut().map(async |client| {
                    let text = timeout(LOOK_PATIENCE, client.get("/metrics")).await.ok()?.ok()?.success().ok()?;
                    Some(led(&String::from_utf8_lossy(&text.body)))
                }));
                let answers = answers.await;
                let mut look = Look { from, to: began.elapsed(), ..Look::default() };
                let down = pictures.read().now.down;
                for (member, answer) in answers.into_iter().enumerate() {
                    match answer {
                        Some(scopes) => {
                            for scope in scopes {
                                look.leaders.entry(scope).or_default().insert(member);
                            }
                        }
                        None if !down.contains(&member) => {
                            look.silent.insert(member);
                        }
                        None => {}
                    }
                }
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(look);
                sleep_until(began + from + INTERVAL).await;
            }
        });
        Self { began, looks, task }
    }

    /// Now, on the clock of the looks.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// All so far.
    pub fn looks(&self) -> Vec<Look> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last one.
    pub fn last(&self) -> Option<Look> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner).last().cloned()
    }
}

/// The scopes that an exposition says its member leads.
pub fn led(exposition: &str) -> Vec<String> {
    let scope = |line: &str| {
        let (scope, value) = line.strip_prefix("miroir_leader{")?.split_once("} ")?;
        let scope = scope.split(',').find_map(|label| label.strip_prefix("scope=\"")?.strip_suffix('"'))?;
        (value.trim() == "1").then(|| scope.to_owned())
    };
    exposition.lines().filter_map(scope).collect()
}

/// One sentence for each thing that was not as it must be. Within `gaps` a scope may be without a leader.
pub fn faults(looks: &[Look], gaps: &[(Duration, Duration)]) -> Vec<String> {
    let mut faults = Vec::new();
    let scopes: BTreeSet<&String> = looks.iter().flat_map(|look| look.leaders.keys()).collect();
    for scope in scopes {
        for pair in looks.windows(2) {
            let before = pair[0].leaders_of(scope);
            let both: Vec<String> =
                pair[1].leaders_of(scope).intersection(&before).map(|m| format!("m{}", m + 1)).collect();
            if both.len() > 1 {
                faults.push(format!(
                    "{scope} was led by {} at once, {:?} after the first look",
                    both.join(" and "),
                    pair[1].from
                ));
            }
        }
    }
    let whole = looks.iter().filter(|look| look.silent.is_empty());
    let count = whole.clone().count();
    if count * 100 < looks.len() * WHOLE_LOOKS_MIN_PERCENT {
        faults.push(format!("only {count} of {} looks were answered by every member", looks.len()));
    }
    for scope in STANDING {
        let without = |look: &&Look| look.leaders_of(scope).is_empty();
        let expected = |look: &&Look| gaps.iter().any(|(from, to)| look.to >= *from && look.from <= *to);
        if let Some(look) = whole.clone().filter(without).find(|look| !expected(look)) {
            faults.push(format!("{scope} was without a leader {:?} after the first look, for no reason", look.from));
        }
    }
    faults
}

/// The longest time that one scope was without a leader, from the last look that showed one to the next.
pub fn longest_gap(looks: &[Look]) -> Duration {
    let gap = |scope: &&str| {
        let led = looks.iter().filter(|look| !look.leaders_of(scope).is_empty());
        // Between two looks running there is no gap that was seen.
        let gaps = led
            .clone()
            .zip(led.skip(1))
            .filter(|(a, b)| looks.iter().any(|look| look.from > a.from && look.from < b.from));
        gaps.map(|(a, b)| b.from.saturating_sub(a.to)).max().unwrap_or_default()
    };
    STANDING.iter().map(gap).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(at: u64, leaders: &[usize]) -> Look {
        let of = |scope: &str| (scope.to_owned(), leaders.iter().copied().collect());
        Look {
            from: Duration::from_millis(at),
            to: Duration::from_millis(at + 10),
            leaders: STANDING.map(of).into(),
            silent: BTreeSet::new(),
        }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn metrics_name_the_scopes_that_are_led() {
        let text = "# TYPE miroir_leader gauge\nmiroir_leader{scope=\"task_ids\"} 1\nmiroir_leader{scope=\"ilm\"} 0\n\
                    miroir_leader{scope=\"reshard:a,b\"} 1\nmiroir_leader_acquisitions_total{scope=\"ilm\"} 1\n";
        assert_eq!(led(text)[0], "task_ids");
        assert!(!led(text).contains(&"ilm".to_owned()));
    }

    #[test]
    fn a_leader_after_another_is_as_it_must_be() {
        let looks = [look(0, &[0]), look(100, &[0]), look(200, &[]), look(300, &[]), look(400, &[1])];
        assert!(faults(&looks, &[(ms(150), ms(350))]).is_empty());
        assert_eq!(longest_gap(&looks), ms(290));
        // Handed over between two members' looks: one look has both, or none with both before and after.
        assert!(faults(&[look(0, &[0]), look(100, &[0, 1]), look(200, &[1])], &[]).is_empty());
        assert_eq!(longest_gap(&looks[..2]), ms(0));
    }

    #[test]
    fn two_in_two_looks_are_two() {
        let faults = faults(&[look(0, &[0, 1]), look(100, &[0, 1])], &[]);
        assert!(faults.len() == 3 && faults[0].starts_with("membership was led by m1 and m2 at once"), "{faults:?}");
    }

    #[test]
    fn none_is_a_fault_outside_of_the_gaps_only() {
        let looks = [look(0, &[0]), look(100, &[]), look(200, &[0])];
        assert_eq!(faults(&looks, &[]).len(), 3);
        assert_eq!(faults(&looks, &[(ms(120), ms(300))]).len(), 3);
        assert!(faults(&looks, &[(ms(90), ms(120))]).is_empty());
    }

    #[test]
    fn who_does_not_answer_may_lead_but_not_for_long() {
        let silent = |at| Look { silent: BTreeSet::from([0]), ..look(at, &[]) };
        assert!(faults(&[look(0, &[0]), silent(100), look(200, &[0])], &[]).is_empty());
        assert_eq!(faults(&[look(0, &[0]), silent(100), silent(200), silent(300)], &[]).len(), 1);
    }
}
