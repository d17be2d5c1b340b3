//! The part of `netsim live` that runs on the machine as it is: it looks whether namespaces can be had, and runs itself
//! again inside some.
//!
//! Inside are a network, mounts, and process ids of its own; its first process dies with this one, and all others with
//! that, whatever ends this one. Rule: nothing is changed out here but the files in one directory. Must not know: what is
//! tried inside.

use std::fs::File;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::process::Command;

use super::lab::{TOOLS, find_tool};
use super::report::NOT_RUN;
use super::run::{LiveArguments, chosen};
use super::scenarios::SCENARIOS;
use crate::mesh::{Child, Dir, Stop, end, say};

const UNSHARE: [&str; 8] =
    ["--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "--propagation", "private"];
/// Inside, processes are killed and waited for; this is for busy machines.
const PATIENCE: Duration = Duration::from_secs(20);

/// Looks, runs itself inside, and gives its exit code on.
pub async fn run(arguments: LiveArguments) -> anyhow::Result<ExitCode> {
    if arguments.list {
        print!("{}", list());
        return Ok(ExitCode::SUCCESS);
    }
    let scenarios = chosen(&arguments.scenarios)?;
    if !(3..=9).contains(&arguments.members) {
        bail!("--members: expected 3 to 9, found {}", arguments.members);
    }
    let mut stop = Stop::install()?;
    if let Err(why) = can_run().await {
        say(&format!("netsim live: not run: {why:#}"));
        return Ok(ExitCode::from(NOT_RUN));
    }
    let dir = Dir::make(arguments.dir.as_deref(), "miroir-live-")?;
    let mut command = unshare()?;
    command.arg("live").arg("--outside").arg(network_id()?).arg("--dir").arg(dir.path());
    command.arg("--members").arg(arguments.members.to_string());
    if arguments.json {
        command.arg("--json");
    }
    command.args(scenarios.iter().map(|s| s.name));
    let mut inside = Child::attached("the lab".into(), command)?;
    let ended = tokio::select! {
        ended = inside.wait() => Some(ended?),
        () = stop.asked() => None,
    };
    let Some(ended) = ended else {
        say("ending all processes");
        let all = &mut [&mut inside];
        tokio::select! {
            () = end(all, PATIENCE) => {}
            // Asked twice: no patience. It dies with this process.
            () = stop.asked() => {}
        }
        return Ok(ExitCode::FAILURE);
    };
    let failed = !ended.success() && ended.code() != Some(i32::from(NOT_RUN));
    if arguments.keep || failed || arguments.dir.is_some() {
        say(&format!("configs and logs are kept in {}", dir.keep().display()));
    }
    Ok(code_of(ended))
}

fn list() -> String {
    let line = |s: &super::scenarios::Scenario| {
        let ci = if s.ci { "ci" } else { "" };
        format!("{:<14} {ci:<3} {}\n", s.name, s.about)
    };
    SCENARIOS.iter().map(line).collect()
}

/// Whether a lab can be built here; otherwise why not, and what helps.
async fn can_run() -> anyhow::Result<()> {
    let missing: Vec<(&str, &str)> = TOOLS.into_iter().filter(|(tool, _)| find_tool(tool).is_none()).collect();
    if !missing.is_empty() {
        let tools: Vec<String> = missing.iter().map(|(tool, _)| format!("`{tool}`")).collect();
        let packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
        bail!("{} not found; on Debian: apt-get install {}", tools.join(", "), packages.join(" "));
    }
    let mut command = unshare()?;
    // `--version` does nothing, inside.
    let output = command.arg("--version").kill_on_drop(true).output().await.context("can't run unshare")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("namespaces can't be made here ({}); root is needed, with CAP_SYS_ADMIN and CAP_NET_ADMIN", said.trim());
    }
    Ok(())
}

/// This very executable in namespaces of its own. It is handed over as stdin, because inside `/proc/self/exe` is `unshare`
/// until that has run it, and the file may have been replaced since this process began.
fn unshare() -> anyhow::Result<Command> {
    let mut command = Command::new(find_tool("unshare").context("`unshare` was found before")?);
    let own = File::open("/proc/self/exe").context("can't open this executable")?;
    command.args(UNSHARE).arg("/proc/self/fd/0").stdin(own);
    Ok(command)
}

/// The kernel's name of the network that this process is in.
pub fn network_id() -> anyhow::Result<String> {
    let id = std::fs::read_link("/proc/self/ns/net").context("can't read /proc/self/ns/net")?;
    Ok(id.to_string_lossy().into_owned())
}

fn code_of(status: ExitStatus) -> ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_has_a_line_for_each_scenario() {
        let list = list();
        assert_eq!(list.lines().count(), SCENARIOS.len());
        assert!(list.starts_with("links          ci  "), "{list}");
    }

    #[test]
    fn networks_have_names() {
        assert!(network_id().unwrap().starts_with("net:["));
    }
}
