//! The part of `netsim live` that runs inside namespaces of its own: a lab, and in it one mesh after another.
//!
//! stdout has the result only (with `--json` exactly one line); how far things are goes to stderr. Must not know: how it
//! came into the namespaces.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tokio::time::timeout;

use super::lab::Lab;
use super::members::{Members, has_leases};
use super::outside::{self, network_id};
use super::report::{Line, NOT_RUN, Outcome, Report};
use super::scenarios::{SCENARIOS, Scenario};
use super::trial::{Trial, more_config};
use crate::mesh::{Stop, say};

/// The longest that a scenario may take.
const SCENARIO_PATIENCE: Duration = Duration::from_secs(300);

/// What `netsim live` takes.
#[derive(Debug, clap::Args)]
pub struct LiveArguments {
    /// Names of scenarios, `all`, or `ci`: those that every change is tried with.
    #[arg(value_name = "SCENARIO", default_value = "all")]
    pub scenarios: Vec<String>,
    /// Members in all: a host with a sidecar and a node each.
    #[arg(long, default_value_t = 5)]
    pub members: u16,
    /// Print the scenarios and end.
    #[arg(long)]
    pub list: bool,
    /// Where everything lies; made if it is not there, and kept. By default a temporary directory.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Print one line of JSON in the end, and nothing else, to stdout.
    #[arg(long)]
    pub json: bool,
    /// Keep the temporary directory also if all went well.
    #[arg(long)]
    pub keep: bool,
    /// Given by `netsim live` to itself: the network that it must not be in.
    #[arg(long, hide = true)]
    outside: Option<String>,
}

/// Runs scenarios and says what came of them.
///
/// # Errors
/// Arguments that can't be met. What fails in a scenario is in the report, and in the exit code: 1; 3 if something was not
/// run.
pub async fn run(arguments: LiveArguments) -> anyhow::Result<ExitCode> {
    match arguments.outside.clone() {
        None => outside::run(arguments).await,
        Some(network) => inside(arguments, &network).await,
    }
}

/// The scenarios that the names name, each once.
pub fn chosen(names: &[String]) -> anyhow::Result<Vec<&'static Scenario>> {
    let known = |name: &str| name == "all" || name == "ci" || SCENARIOS.iter().any(|s| s.name == name);
    if let Some(name) = names.iter().find(|name| !known(name)) {
        bail!("there is no scenario `{name}`: `netsim live --list` shows all");
    }
    let wanted = |s: &&Scenario| names.iter().any(|name| name == "all" || name == "ci" && s.ci || name == s.name);
    Ok(SCENARIOS.iter().filter(wanted).collect())
}

async fn inside(arguments: LiveArguments, outside: &str) -> anyhow::Result<ExitCode> {
    // What follows would change the machine's own links.
    ensure!(network_id()? != outside, "still in the machine's own network");
    let mut stop = Stop::install()?;
    let dir = arguments.dir.clone().context("--dir is given by the process outside")?;
    let began = Instant::now();
    let lab = match Lab::build(usize::from(arguments.members)).await {
        Ok(lab) => Arc::new(lab),
        Err(why) => {
            say(&format!("netsim live: not run: the lab can't be built here: {why:#}"));
            return Ok(ExitCode::from(NOT_RUN));
        }
    };
    say(&format!("{} hosts in {} ms", arguments.members, began.elapsed().as_millis()));
    let mut report = Report::default();
    for scenario in chosen(&arguments.scenarios)? {
        let dir = dir.join(scenario.name);
        let mut members = Members::prepare(Arc::clone(&lab), &dir, &more_config())?;
        let began = Instant::now();
        if scenario.leases && !has_leases() {
            let outcome = Outcome::NotRun { why: "this build of Miroir has no leases".into() };
            report.scenarios.push(line(scenario, outcome, began, Vec::new()));
            continue;
        }
        say(&format!("{}: {}", scenario.name, scenario.about));
        let mut trial = Trial::new(scenario.name, members);
        let tried = tokio::select! {
            tried = timeout(SCENARIO_PATIENCE, try_out(scenario, &mut trial)) => {
                tried.unwrap_or_else(|_| bail!("not done after {} s", SCENARIO_PATIENCE.as_secs()))
            }
            () = stop.asked() => {
                trial.members.end().await?;
                bail!("interrupted");
            }
        };
        members = trial.members;
        members.end().await.context("the processes of a scenario were not ended")?;
        let outcome = match tried {
            Ok(()) => Outcome::Passed,
            Err(why) => Outcome::Failed { why: format!("{why:#}") },
        };
        report.scenarios.push(line(scenario, outcome, began, trial.measured));
    }
    let text = if arguments.json { format!("{}\n", serde_json::to_string(&report)?) } else { report.text() };
    let mut stdout = std::io::stdout();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("can't write to stdout")?;
    Ok(report.exit_code())
}

async fn try_out(scenario: &Scenario, trial: &mut Trial) -> anyhow::Result<()> {
    trial.begin().await?;
    let tried = (scenario.run)(trial).await;
    // Both say something: what was not seen, and what must never be.
    let ended = trial.end();
    match (tried, ended) {
        (Err(why), Err(more)) => bail!("{why:#}\n{more:#}"),
        (tried, ended) => tried.and(ended),
    }
}

fn line(scenario: &Scenario, outcome: Outcome, began: Instant, measured: Vec<super::report::Measured>) -> Line {
    Line { scenario: scenario.name.to_owned(), outcome, seconds: began.elapsed().as_secs(), measured }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(given: &[&str]) -> anyhow::Result<Vec<&'static str>> {
        let given: Vec<String> = given.iter().map(|s| (*s).to_owned()).collect();
        Ok(chosen(&given)?.iter().map(|s| s.name).collect())
    }

    #[test]
    fn scenarios_are_chosen_once_each_by_name_or_group() {
        assert_eq!(names(&["pause", "links", "pause"]).unwrap(), ["links", "pause"]);
        assert_eq!(names(&["all"]).unwrap().len(), SCENARIOS.len());
        assert!(names(&["ci", "loss"]).unwrap().ends_with(&["stale-leader", "loss", "primary-cut", "full-disk"]));
        assert!(names(&["links", "lins"]).unwrap_err().to_string().starts_with("there is no scenario `lins`"));
    }
}
