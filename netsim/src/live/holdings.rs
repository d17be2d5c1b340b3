//! Who believed when to hold which lease, by the members' logs, and whether that was ever two at once.
//!
//! Each change of a holding is a line of JSON with target `miroir::holdings`: `became` and `renewed` carry `until_us`, the
//! instant at which belief ends unless it is renewed, `lost` carries `at_us`, at which it ended before that. All are
//! microseconds of CLOCK_BOOTTIME, which is one clock for all members of one machine. Rule: what can't be read is a fault,
//! not a holding less; a doubt makes a holding longer. Must not know: how leases are held.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

const TARGET: &str = "miroir::holdings";

/// One member's belief in one lease, `[from_us, to_us)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// The lease.
    pub scope: String,
    /// Who held it.
    pub member: String,
    /// In which epoch.
    pub epoch: u64,
    /// When belief began.
    pub from_us: u64,
    /// When it ended, or would have.
    pub to_us: u64,
}

impl Holding {
    fn describe(&self) -> String {
        format!("{} in epoch {} from {} to {} µs", self.member, self.epoch, self.from_us, self.to_us)
    }
}

/// All holdings that the members' logs tell, as `(member, log)`.
pub fn read<'a>(logs: impl IntoIterator<Item = (&'a str, &'a str)>) -> anyhow::Result<Vec<Holding>> {
    let mut all = Vec::new();
    for (member, log) in logs {
        all.extend(read_one(member, log).with_context(|| format!("the log of {member}"))?);
    }
    Ok(all)
}

fn read_one(member: &str, log: &str) -> anyhow::Result<Vec<Holding>> {
    // The flag: whether it was lost.
    let mut holdings: BTreeMap<(String, u64), (Holding, bool)> = BTreeMap::new();
    for line in log.lines().filter(|line| line.contains(TARGET)) {
        let event: Value = match serde_json::from_str(line) {
            Ok(event) => event,
            // The process was killed in the middle of it.
            Err(_) if !line.ends_with('}') => continue,
            Err(e) => bail!("not JSON ({e}): {line}"),
        };
        if event["target"] == TARGET {
            take(&mut holdings, member, &event).with_context(|| line.to_owned())?;
        }
    }
    Ok(holdings.into_values().map(|(holding, _)| holding).collect())
}

fn take(holdings: &mut BTreeMap<(String, u64), (Holding, bool)>, member: &str, event: &Value) -> anyhow::Result<()> {
    let number = |field: &str| {
        let value = &event[field];
        let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
        number.with_context(|| format!("expected a number `{field}`"))
    };
    let scope = event["scope"].as_str().context("expected a text `scope`")?.to_owned();
    let epoch = number("epoch")?;
    let entry = holdings.entry((scope.clone(), epoch));
    match (event["event"].as_str(), entry) {
        (Some("became"), Entry::Vacant(free)) => {
            let (from_us, to_us) = (number("from_us")?, number("until_us")?);
            free.insert((Holding { scope, member: member.to_owned(), epoch, from_us, to_us }, false));
        }
        (Some("became"), Entry::Occupied(_)) => bail!("it had this epoch before"),
        (Some("renewed"), Entry::Occupied(mut held)) => {
            let (holding, lost) = held.get_mut();
            ensure!(!*lost, "renewed after it was lost");
            // Belief may have ended between; whoever took the lease then has another epoch, and is found.
            holding.to_us = holding.to_us.max(number("until_us")?);
        }
        (Some("lost"), Entry::Occupied(mut held)) => {
            let (holding, lost) = held.get_mut();
            holding.to_us = holding.to_us.min(number("at_us")?);
            *lost = true;
        }
        (Some("renewed" | "lost"), Entry::Vacant(_)) => bail!("it never became the holder in this epoch"),
        _ => bail!("expected `event` to be became, renewed or lost"),
    }
    Ok(())
}

/// One sentence for each time that two members believed in one lease at once, or that epochs were not as they must be.
pub fn faults(holdings: &[Holding]) -> Vec<String> {
    let mut scopes: BTreeMap<&str, Vec<&Holding>> = BTreeMap::new();
    for holding in holdings {
        scopes.entry(&holding.scope).or_default().push(holding);
    }
    let mut faults = Vec::new();
    for (scope, mut held) in scopes {
        held.sort_by_key(|h| (h.from_us, h.epoch));
        for (i, first) in held.iter().enumerate() {
            for second in held[i + 1..].iter().filter(|h| h.member != first.member) {
                let both = || format!("{} and {}", first.describe(), second.describe());
                if first.from_us.max(second.from_us) < first.to_us.min(second.to_us) {
                    faults.push(format!("{scope} had two holders at once: {}", both()));
                }
                if first.epoch == second.epoch {
                    faults.push(format!("an epoch of {scope} had two holders: {}", both()));
                }
            }
        }
        for pair in held.windows(2).filter(|pair| pair[0].epoch > pair[1].epoch) {
            faults.push(format!("epochs of {scope} went back: {}, then {}", pair[0].describe(), pair[1].describe()));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(event: &str, scope: &str, epoch: u64, fields: &str) -> String {
        format!(
            r#"{{"timestamp":"2026-01-01T00:00:00Z","level":"INFO","event":"{event}","scope":"{scope}","epoch":{epoch},{fields},"target":"miroir::holdings"}}"#
        )
    }

    fn became(scope: &str, epoch: u64, from: u64, until: u64) -> String {
        line("became", scope, epoch, &format!(r#""from_us":{from},"until_us":{until}"#))
    }

    fn renewed(scope: &str, epoch: u64, from: u64, until: u64) -> String {
        line("renewed", scope, epoch, &format!(r#""from_us":{from},"until_us":{until}"#))
    }

    fn lost(scope: &str, epoch: u64, at: u64) -> String {
        line("lost", scope, epoch, &format!(r#""at_us":{at}"#))
    }

    fn faults_of(m1: &[String], m2: &[String]) -> Vec<String> {
        faults(&read([("m1", &*m1.join("\n")), ("m2", &*m2.join("\n"))]).unwrap())
    }

    #[test]
    fn a_holding_lasts_until_its_last_renewal_or_its_loss() {
        let log = [
            r#"{"level":"INFO","message":"in service","target":"miroir::app"}"#.to_owned(),
            became("ilm", 1, 100, 200),
            renewed("ilm", 1, 150, 250),
            became("task_ids", 4, 10, 30),
            renewed("task_ids", 4, 20, 40),
            lost("task_ids", 4, 35),
            "not JSON at all".to_owned(),
        ];
        let holdings = read([("m1", &*log.join("\n"))]).unwrap();
        let times: Vec<_> = holdings.iter().map(|h| (&*h.scope, h.epoch, h.from_us, h.to_us)).collect();
        assert_eq!(times, [("ilm", 1, 100, 250), ("task_ids", 4, 10, 35)]);
        // A loss that is noticed late does not make it longer.
        let late = [became("ilm", 1, 100, 200), lost("ilm", 1, 900)].join("\n");
        assert_eq!(read([("m1", &*late)]).unwrap()[0].to_us, 200);
    }

    #[test]
    fn one_after_the_other_is_as_it_must_be() {
        let m1 = [became("ilm", 1, 100, 200), renewed("ilm", 1, 150, 250), became("ilm", 3, 400, 500)];
        let m2 = [became("ilm", 2, 250, 400), became("task_ids", 1, 100, 500)];
        assert_eq!(faults_of(&m1, &m2), Vec::<String>::new());
    }

    #[test]
    fn two_at_once_are_found_whoever_began() {
        let m1 = [became("ilm", 1, 100, 200), renewed("ilm", 1, 150, 251)];
        let m2 = [became("ilm", 2, 250, 350)];
        for (a, b) in [(&m1[..], &m2[..]), (&m2[..], &m1[..])] {
            let faults = faults_of(a, b);
            assert!(faults.len() == 1 && faults[0].starts_with("ilm had two holders at once: "), "{faults:?}");
        }
        // Within the other's time.
        assert_eq!(faults_of(&[became("ilm", 1, 100, 900)], &[became("ilm", 2, 300, 400)]).len(), 1);
        // A release ends belief at once, and what is lost in time is no overlap.
        assert!(faults_of(&[m1[0].clone(), m1[1].clone(), lost("ilm", 1, 240)], &m2).is_empty());
        // Not only neighbours are compared.
        let m1 = [became("ilm", 1, 100, 900), became("ilm", 2, 150, 200)];
        assert_eq!(faults_of(&m1, &[became("ilm", 3, 300, 400)]).len(), 1);
    }

    #[test]
    fn epochs_have_one_holder_and_do_not_go_back() {
        let faults = faults_of(&[became("ilm", 1, 100, 200)], &[became("ilm", 1, 300, 400)]);
        assert!(faults.len() == 1 && faults[0].starts_with("an epoch of ilm had two holders"), "{faults:?}");
        let faults = faults_of(&[became("ilm", 2, 100, 200)], &[became("ilm", 1, 300, 400)]);
        assert!(faults.len() == 1 && faults[0].starts_with("epochs of ilm went back"), "{faults:?}");
    }

    #[test]
    fn what_can_not_be_read_is_a_fault() {
        for (log, expected) in [
            (renewed("ilm", 1, 1, 2), "it never became the holder"),
            (line("became", "ilm", 1, r#""from_us":1"#), "expected a number `until_us`"),
            (line("grew", "ilm", 1, r#""from_us":1"#), "expected `event`"),
            ([became("ilm", 1, 1, 2), became("ilm", 1, 3, 4)].join("\n"), "it had this epoch before"),
            ([became("ilm", 1, 1, 2), lost("ilm", 1, 2), renewed("ilm", 1, 2, 3)].join("\n"), "renewed after"),
            (r#"{"target":"miroir::holdings",,}"#.to_owned(), "not JSON"),
        ] {
            let error = format!("{:#}", read([("m1", &*log)]).unwrap_err());
            assert!(error.starts_with("the log of m1: ") && error.contains(expected), "{error}");
        }
        // Killed in the middle of a line: what was said before stands.
        let cut = [became("ilm", 1, 1, 2), renewed("ilm", 1, 2, 3)[..60].to_owned()].join("\n");
        assert_eq!(read([("m1", &*cut)]).unwrap().len(), 1);
    }

    #[test]
    fn numbers_may_be_texts() {
        let log = line("became", "ilm", 7, r#""from_us":"5","until_us":"9""#);
        assert_eq!(read([("m1", &*log)]).unwrap()[0].to_us, 9);
    }
}
