//! `netsim demo` as a user runs it: real processes, with the stand-in as the nodes.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const MEMBERS: usize = 2;

/// A port whose next ones in steps of ten are free, too, for the test of this number (0 to 9).
fn http_port(test: u16) -> u16 {
    let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    // Below the ports of outgoing connections and those that demos choose for themselves; runs beside one another begin
    // at different places.
    let first = 5_000 + 10 * u16::try_from(std::process::id() % 600).unwrap() + test;
    (first..11_000).step_by(10).find(|port| (0..MEMBERS).all(|i| is_free(port + 10 * i as u16))).unwrap()
}

fn demo(port: u16, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netsim"));
    command.args(["demo", "--node", "builtin", "--members", &MEMBERS.to_string(), "--http-port", &port.to_string()]);
    command.args(more).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A running demo, killed if the test fails.
struct Running {
    child: Child,
    line: Value,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        if line.is_empty() {
            let mut stderr = String::new();
            child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
            panic!("no line:\n{stderr}");
        }
        child.stdout = Some(stdout.into_inner());
        Self { child, line: serde_json::from_str(&line).unwrap() }
    }

    fn pids(&self) -> Vec<u32> {
        let members = self.line["members"].as_array().unwrap();
        let pid = |m: &Value, key: &str| u32::try_from(m[key].as_u64().unwrap()).unwrap();
        members.iter().flat_map(|m| [pid(m, "sidecar_pid"), pid(m, "node_pid")]).collect()
    }

    fn signal(&self, name: &str) {
        signal(name, self.child.id());
    }

    /// What is left on stdout and stderr, and how it ended.
    fn ended(mut self) -> (bool, String, String) {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (self.child.wait().unwrap().success(), stdout, stderr)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn signal(name: &str, pid: u32) {
    // The shell's own `kill`: not every machine has it as a program.
    assert!(Command::new("sh").args(["-c", &format!("kill {name} {pid}")]).status().unwrap().success());
}

/// Whether the process runs; one that has ended and was not waited for does not.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(20), "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The body of an answer with status 200.
fn get(url: &str) -> String {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

#[test]
fn one_json_line_tells_everything_and_sigterm_leaves_nothing_behind() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("kept");
    let port = http_port(0);
    let running = Running::start(demo(port, &["--json", "--shards", "8", "--dir", dir.to_str().unwrap()]));
    let line = &running.line;
    assert_eq!((line["index"].as_str(), line["documents"].as_u64()), (Some("packages"), Some(3_000)));
    assert_eq!((&line["master_key"], line["dir"].as_str()), (&Value::Null, dir.to_str()));
    assert!(line["admin_key"].as_str().unwrap().len() >= 16 && line["node_key"].as_str().unwrap().len() >= 16);
    let members = line["members"].as_array().unwrap();
    assert_eq!(members.len(), MEMBERS);
    for (i, m) in members.iter().enumerate() {
        assert_eq!(m["id"], format!("m{}", i + 1));
        assert_eq!(m["http"], format!("http://127.0.0.1:{}", usize::from(port) + 10 * i));
        assert!(m["node_url"].as_str().unwrap().starts_with("http://127.0.0.1:"));
        assert!(m["mesh"].as_str().unwrap().parse::<std::net::SocketAddr>().is_ok());
        let member_dir = Path::new(m["dir"].as_str().unwrap());
        assert!(member_dir.starts_with(&dir) && member_dir.join("sidecar.log").is_file());
        let found: Value =
            serde_json::from_str(&get(&format!("{}/indexes/packages/search?q=game", m["http"].as_str().unwrap())))
                .unwrap();
        assert!(found["estimatedTotalHits"].as_u64().unwrap() > 20, "{found}");
        // The gauge is set once a second.
        let metrics = m["metrics"].as_str().unwrap();
        wait_until("all shards to be served", || get(metrics).contains("\nmiroir_shards_served 8\n"));
    }

    let pids = running.pids();
    assert!(pids.iter().all(|pid| runs(*pid)));
    running.signal("-TERM");
    wait_until("the children to end", || !pids.iter().any(|pid| runs(*pid)));
    let (success, stdout, stderr) = running.ended();
    assert!(success, "{stderr}");
    assert_eq!(stdout, "", "nothing after the line");
    assert!(dir.join("m1/miroir.toml").is_file(), "a given directory is kept");
}

#[test]
fn a_dead_child_is_reported_and_the_killed_demo_takes_its_children_along() {
    let port = http_port(1);
    let running = Running::start(demo(port, &["--json"]));
    let pids = running.pids();
    let dir = running.line["dir"].as_str().unwrap().to_owned();
    let node = pids[3];
    signal("-KILL", node);
    wait_until("the node to end", || !runs(node));
    // Time to notice, and the chance to start it again wrongly.
    std::thread::sleep(Duration::from_millis(600));
    assert!(pids[..3].iter().all(|pid| runs(*pid)), "the rest goes on");
    running.signal("-KILL");
    wait_until("the children to end", || !pids.iter().any(|pid| runs(*pid)));
    let (_, _, stderr) = running.ended();
    assert!(stderr.contains(&format!("member m2: the node (pid {node}) ended: signal 9")), "{stderr}");
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn interrupted_while_it_starts_it_leaves_nothing_behind() {
    let port = http_port(2);
    let outer = tempfile::tempdir().unwrap();
    let mut command = demo(port, &["--json", "--master-key", "sixteen-bytes-or-more"]);
    command.env("TMPDIR", outer.path());
    let mut child = command.spawn().unwrap();
    let mut first = String::new();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    stderr.read_line(&mut first).unwrap();
    assert!(first.starts_with("starting 2 members"), "{first}");
    signal("-INT", child.id());
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert!(child.wait().unwrap().success(), "{rest}");
    let mut stdout = String::new();
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    assert_eq!(stdout, "");
    assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 0, "a temporary directory is removed");
}

#[test]
fn arguments_that_can_not_be_met_are_refused_by_name() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = held.local_addr().unwrap().port();
    for (port, more, expected) in [
        (taken, &[][..], format!("port {taken} is taken: choose others with --http-port")),
        (http_port(3), &["--rf", "3"][..], "--rf: expected 1 to 2".to_owned()),
        (http_port(3), &["--docs", "/nowhere.ndjson"][..], "--docs: can't read /nowhere.ndjson".to_owned()),
    ] {
        let out = demo(port, more).output().unwrap();
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert!(!out.status.success() && stderr.contains(&expected), "{stderr}");
        assert!(out.stdout.is_empty());
    }
}
