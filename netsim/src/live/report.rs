//! What came of each scenario, for people and for machines.
//!
//! Must not know: how scenarios run.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

/// Exit code: something could not be tried here.
pub const NOT_RUN: u8 = 3;

/// How a scenario ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// All was as it must be.
    Passed,
    /// Something was not.
    Failed {
        /// What.
        why: String,
    },
    /// It was not tried.
    NotRun {
        /// For want of what.
        why: String,
    },
}

/// A time that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Measured {
    /// Of what.
    pub what: String,
    /// Milliseconds.
    pub ms: u64,
}

impl Measured {
    /// A time.
    pub fn new(what: impl Into<String>, time: Duration) -> Self {
        Self { what: what.into(), ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX) }
    }
}

/// One scenario.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Its name.
    pub scenario: String,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// How long it took.
    pub seconds: u64,
    /// Times that were taken.
    pub measured: Vec<Measured>,
}

/// All scenarios.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In the order in which they ran.
    pub scenarios: Vec<Line>,
}

impl Report {
    /// 1 if one failed; otherwise 3 if one was not run; otherwise 0.
    pub fn code(&self) -> u8 {
        let any = |is: fn(&Outcome) -> bool| self.scenarios.iter().any(|line| is(&line.outcome));
        match () {
            () if any(|o| matches!(o, Outcome::Failed { .. })) => 1,
            () if any(|o| matches!(o, Outcome::NotRun { .. })) => NOT_RUN,
            () => 0,
        }
    }

    /// The same for `main`.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for line in &self.scenarios {
            let (scenario, seconds) = (&line.scenario, line.seconds);
            let _ = match &line.outcome {
                Outcome::Passed => writeln!(text, "passed   {scenario} ({seconds} s)"),
                Outcome::Failed { why } => writeln!(text, "FAILED   {scenario} ({seconds} s): {why}"),
                Outcome::NotRun { why } => writeln!(text, "not run  {scenario}: {why}"),
            };
            for measured in &line.measured {
                let _ = writeln!(text, "  {:>7} ms  {}", measured.ms, measured.what);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcomes: &[Outcome]) -> Report {
        let line = |outcome: &Outcome| Line {
            scenario: "links".into(),
            outcome: outcome.clone(),
            seconds: 7,
            measured: vec![Measured::new("start", Duration::from_millis(1_234))],
        };
        Report { scenarios: outcomes.iter().map(line).collect() }
    }

    #[test]
    fn what_failed_outweighs_what_was_not_run() {
        let failed = Outcome::Failed { why: "x".into() };
        let not_run = Outcome::NotRun { why: "y".into() };
        assert_eq!(report(&[Outcome::Passed, Outcome::Passed]).code(), 0);
        assert_eq!(report(&[Outcome::Passed, not_run.clone()]).code(), NOT_RUN);
        assert_eq!(report(&[not_run, failed, Outcome::Passed]).code(), 1);
    }

    #[test]
    fn texts_and_json_say_the_same() {
        let report = report(&[Outcome::Passed, Outcome::NotRun { why: "no nft".into() }]);
        assert_eq!(
            report.text(),
            "passed   links (7 s)\n     1234 ms  start\nnot run  links: no nft\n     1234 ms  start\n"
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["scenarios"][0]["outcome"], "passed");
        assert_eq!(json["scenarios"][1]["why"], "no nft");
        assert_eq!(json["scenarios"][1]["measured"][0]["ms"], 1_234);
    }
}
