//! `netsim live` as a user runs it. What needs network namespaces is left out, with a word, where none can be made.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const NOT_RUN: i32 = 3;

fn live(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netsim"));
    command.arg("live").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether a scenario was not run here; says so.
fn not_run(out: &Output) -> bool {
    let is = out.status.code() == Some(NOT_RUN);
    if is {
        eprintln!("not run: {}", text(&out.stderr));
    }
    is
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(30), "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn signal(name: &str, pid: u32) {
    assert!(Command::new("sh").args(["-c", &format!("kill {name} {pid}")]).status().unwrap().success());
}

/// Processes whose arguments name something.
fn naming(what: &str) -> BTreeSet<u32> {
    let processes =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let names = |pid: &u32| text(&std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).contains(what);
    processes.filter(names).collect()
}

/// What a run must not change: links, named networks, mounts.
fn machine() -> [String; 3] {
    let mut links: Vec<String> = text(&std::fs::read("/proc/self/net/dev").unwrap())
        .lines()
        .filter_map(|line| line.split_once(':').map(|(name, _)| name.trim().to_owned()))
        .collect();
    links.sort();
    let named = std::fs::read_dir("/run/netns").map_or_else(|_| "none".to_owned(), |d| d.count().to_string());
    [links.join(" "), named, text(&std::fs::read("/proc/self/mounts").unwrap())]
}

#[test]
fn scenarios_are_listed_and_unknown_ones_refused() {
    let out = live(&["--list"]).output().unwrap();
    let list = text(&out.stdout);
    assert!(out.status.success() && list.lines().any(|line| line.starts_with("links ")), "{list}");
    for (arguments, expected) in [
        (&["lins"][..], "there is no scenario `lins`: `netsim live --list` shows all"),
        (&["links", "--members", "2"], "--members: expected 3 to 9, found 2"),
    ] {
        let out = live(arguments).output().unwrap();
        assert!(out.status.code() == Some(1) && text(&out.stderr).contains(expected), "{}", text(&out.stderr));
        assert!(out.stdout.is_empty());
    }
}

#[test]
fn it_is_not_run_where_namespaces_can_not_be_made_and_says_why() {
    let tools = tempfile::tempdir().unwrap();
    let refuses = tools.path().join("unshare");
    std::fs::write(&refuses, "#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2\nexit 1\n").unwrap();
    std::fs::set_permissions(&refuses, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap();
    for tool in ["ip", "nft"] {
        std::fs::write(tools.path().join(tool), "").unwrap();
    }
    let dir = tools.path().join("dir");
    let mut command = live(&["links", "--dir", dir.to_str().unwrap()]);
    let out = command.env("PATH", format!("{}:{path}", tools.path().display())).output().unwrap();
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(NOT_RUN), "{said}");
    assert!(
        said.starts_with("netsim live: not run: namespaces can't be made here (unshare failed: Operation"),
        "{said}"
    );
    assert!(said.contains("root is needed") && out.stdout.is_empty() && !dir.exists());
}

#[test]
fn the_part_for_inside_refuses_the_machines_own_network() {
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let before = machine();
    let out = live(&["links", "--dir", "/nowhere", "--outside", own.to_str().unwrap()]).output().unwrap();
    assert!(!out.status.success() && text(&out.stderr).contains("still in the machine's own network"));
    assert_eq!(machine(), before);
}

#[test]
fn links_of_three_members_are_cut_and_healed_and_nothing_is_left_behind() {
    let outer = tempfile::tempdir().unwrap();
    let before = machine();
    let out = live(&["links", "--members", "3", "--json"]).env("TMPDIR", outer.path()).output().unwrap();
    assert_eq!(machine(), before);
    assert_eq!(naming(outer.path().to_str().unwrap()), BTreeSet::new());
    if not_run(&out) {
        return;
    }
    assert!(out.status.success(), "{}\n{}", text(&out.stdout), text(&out.stderr));
    assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 0, "a temporary directory is removed");
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    let line = &report["scenarios"][0];
    assert_eq!((&line["scenario"], &line["outcome"]), (&"links".into(), &"passed".into()));
    assert!(line["measured"].as_array().unwrap().len() > 20, "{line}");
}

/// A run whose members have started, and what it still says.
fn running(outer: &Path) -> Option<(Child, BufReader<ChildStderr>)> {
    let mut child = live(&["links", "--members", "3"]).env("TMPDIR", outer).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("whole mesh") {
        line.clear();
        if said.read_line(&mut line).unwrap() == 0 {
            assert_eq!(child.wait().unwrap().code(), Some(NOT_RUN), "it ended too soon");
            eprintln!("not run: namespaces can't be made here");
            return None;
        }
    }
    Some((child, said))
}

#[test]
fn interrupted_it_leaves_nothing_behind() {
    for name in ["-INT", "-TERM"] {
        let outer = tempfile::tempdir().unwrap();
        let before = machine();
        let Some((mut child, mut said)) = running(outer.path()) else { return };
        // Itself, the tool, itself inside, and a sidecar for each member at least.
        assert!(naming(outer.path().to_str().unwrap()).len() >= 5);
        signal(name, child.id());
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{rest}");
        assert_eq!(naming(outer.path().to_str().unwrap()), BTreeSet::new(), "{rest}");
        assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 0, "{rest}");
        assert_eq!(machine(), before);
    }
}

#[test]
fn killed_it_takes_everything_along() {
    let outer = tempfile::tempdir().unwrap();
    let before = machine();
    let Some((mut child, _said)) = running(outer.path()) else { return };
    signal("-KILL", child.id());
    child.wait().unwrap();
    wait_until("all processes to end", || naming(outer.path().to_str().unwrap()).is_empty());
    assert_eq!(machine(), before);
}
