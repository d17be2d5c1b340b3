//! What the tests of a running mesh share: real processes, a small blocking client that looks at every byte of every
//! answer, and patience with a deadline.
//!
//! Must not know: what a test is about.

#![allow(dead_code, reason = "no test file uses all of it")]

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use miroir::pki;
use miroir::types::MemberId;
use serde_json::{Value, json};
use tempfile::TempDir;

pub const NETSIM: &str = env!("CARGO_BIN_EXE_netsim");
pub const NODE_KEY: &str = "the-nodes-own-master-key";
pub const ADMIN_KEY: &str = "the-admin-key-of-a-test";
const POLL: Duration = Duration::from_millis(20);
const START_PATIENCE: Duration = Duration::from_secs(60);

/// What the nodes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Engine {
    Meilisearch(PathBuf),
    StandIn,
}

impl Engine {
    /// A real Meilisearch if there is one; says which.
    pub fn found() -> Self {
        let named = std::env::var_os("MEILISEARCH_BIN").filter(|v| !v.is_empty()).map(PathBuf::from);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let on_path = || std::env::split_paths(&path).map(|dir| dir.join("meilisearch")).find(|p| p.is_file());
        let engine = named.or_else(on_path).map_or(Self::StandIn, Self::Meilisearch);
        static SAID: Once = Once::new();
        SAID.call_once(|| say(&format!("engine: {engine:?}")));
        engine
    }

    pub fn is_real(&self) -> bool {
        matches!(self, Self::Meilisearch(_))
    }
}

/// A line on stderr that the test harness does not swallow.
pub fn say(text: &str) {
    writeln!(io::stderr(), "{text}").expect("stderr is open");
}

/// A port that is free for TCP and UDP, from below the range of outgoing connections, never handed out twice here.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 20_000 + u16::try_from(std::process::id() % 600).expect("below 600") * 17;
    for _ in 0..10_000 {
        let port = start + NEXT.fetch_add(1, Ordering::SeqCst) % 2_000;
        let address = (Ipv4Addr::LOCALHOST, port);
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Polls until it is so; panics with `what` after `patience`.
pub fn wait_until(what: &str, patience: Duration, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < patience, "waited {} s for {what}", patience.as_secs());
        std::thread::sleep(POLL);
    }
}

/// A child process, killed when dropped, and by the kernel when the thread that started it ends.
pub struct Process {
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    pub fn start(mut command: Command, log: &Path) -> Self {
        let output = File::options().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        // SAFETY: between fork and exec only prctl is called, which is async-signal-safe.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        Self { child: command.spawn().unwrap(), log: log.to_owned(), ended: None }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn signal(&mut self, signal: i32) {
        assert!(self.exited().is_none(), "it has ended already: {}", self.last_words());
        let pid = i32::try_from(self.child.id()).expect("a pid is an i32");
        // SAFETY: no memory is involved; the child was not waited for, so the number is still its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// SIGKILL, and gone.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.ended = Some(self.child.wait().unwrap());
    }

    pub fn terminate(&mut self) {
        self.signal(libc::SIGTERM);
    }

    /// SIGSTOP: it stands still, its sockets stay open, and its clock goes on.
    pub fn pause(&mut self) {
        self.signal(libc::SIGSTOP);
    }

    /// SIGCONT.
    pub fn resume(&mut self) {
        self.signal(libc::SIGCONT);
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().unwrap();
        }
        self.ended
    }

    /// Waits for its end.
    pub fn wait_exit(&mut self, patience: Duration) -> ExitStatus {
        wait_until("a process to end", patience, || self.exited().is_some());
        self.ended.unwrap()
    }

    /// Resident memory in MiB.
    pub fn rss_mib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
    }

    pub fn last_words(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(3_000)..]).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended.is_none() {
            // Nothing can be done about one that is gone already.
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

/// What a mesh is to be.
#[derive(Debug, Clone)]
pub struct Plan {
    pub members: usize,
    /// Each member's group.
    pub groups: Vec<usize>,
    pub rf: usize,
    pub shards: usize,
    pub master_key: Option<&'static str>,
    /// Environment of every sidecar.
    pub env: Vec<(&'static str, &'static str)>,
    pub engine: Engine,
}

impl Plan {
    /// One group of `members` with `rf` copies.
    pub fn of(members: usize, rf: usize) -> Self {
        Self {
            members,
            groups: vec![1; members],
            rf,
            shards: 16,
            master_key: None,
            env: Vec::new(),
            engine: Engine::found(),
        }
    }

    /// `RF` 1 over groups of these sizes.
    pub fn groups(sizes: &[usize]) -> Self {
        let groups: Vec<usize> = (1..).zip(sizes).flat_map(|(g, size)| vec![g; *size]).collect();
        Self { groups, ..Self::of(sizes.iter().sum(), 1) }
    }

    pub fn env(mut self, name: &'static str, value: &'static str) -> Self {
        self.env.push((name, value));
        self
    }
}

pub struct Member {
    pub id: String,
    pub dir: PathBuf,
    pub http: SocketAddr,
    pub metrics: SocketAddr,
    pub mesh: SocketAddr,
    pub node_address: SocketAddr,
    pub sidecar: Option<Process>,
    pub node: Option<Process>,
}

/// A running mesh; everything ends when it is dropped.
pub struct Mesh {
    pub members: Vec<Member>,
    pub plan: Plan,
    _dir: TempDir,
}

impl Mesh {
    /// Starts one and waits until it is whole.
    pub fn start(plan: Plan) -> Self {
        let mut mesh = Self::prepare(plan);
        for i in 0..mesh.members.len() {
            mesh.start_node(i);
        }
        for i in 0..mesh.members.len() {
            mesh.start_sidecar(i);
        }
        mesh.wait_whole();
        mesh
    }

    /// Writes files and starts nothing.
    pub fn prepare(plan: Plan) -> Self {
        let dir = tempfile::Builder::new().prefix("mesh-").tempdir().unwrap();
        let members: Vec<Member> = (1..=plan.members)
            .map(|i| Member {
                id: format!("m{i}"),
                dir: dir.path().join(format!("m{i}")),
                http: loopback(free_port()),
                metrics: loopback(free_port()),
                mesh: loopback(free_port()),
                node_address: loopback(free_port()),
                sidecar: None,
                node: None,
            })
            .collect();
        let ca = pki::create_ca("test CA", 30).unwrap();
        let bootstrap: String = members
            .iter()
            .zip(&plan.groups)
            .map(|(m, g)| format!("{{ id = \"{}\", group = \"g{g}\", address = \"{}\" }},", m.id, m.mesh))
            .collect();
        for m in &members {
            fs::create_dir_all(m.dir.join("node")).unwrap();
            let pair = pki::issue(&ca.cert_pem, &ca.key_pem, &MemberId::new(&*m.id).unwrap(), &[], 30).unwrap();
            let write =
                |name: &str, text: &str| pki::write_new(&m.dir.join(name), text.as_bytes(), pki::KEY_MODE).unwrap();
            write("ca.pem", &ca.cert_pem);
            write("member.pem", &pair.cert_pem);
            write("member-key.pem", &pair.key_pem);
            write("node.key", NODE_KEY);
            write("admin.key", ADMIN_KEY);
            write("master.key", plan.master_key.unwrap_or_default());
            let master = plan.master_key.map_or("", |_| "master_key_file = \"master.key\"\n");
            let config = format!(
                "[node]\nid = \"{}\"\ndata_dir = \"store\"\nshutdown_drain_s = 5\n[meilisearch]\nurl = \"http://{}\"\n\
                 key_file = \"node.key\"\n[http]\nlisten = \"{}\"\n[mesh]\nlisten = \"{}\"\nbootstrap = [{bootstrap}]\n\
                 rf = {}\nca_file = \"ca.pem\"\ncert_file = \"member.pem\"\nkey_file = \"member-key.pem\"\n[metrics]\n\
                 listen = \"{}\"\n[access]\n{master}admin_key_file = \"admin.key\"\n[index]\nshards = {}\n",
                m.id, m.node_address, m.http, m.mesh, plan.rf, m.metrics, plan.shards
            );
            write("miroir.toml", &config);
        }
        Self { members, plan, _dir: dir }
    }

    pub fn start_node(&mut self, i: usize) {
        let m = &mut self.members[i];
        m.node = Some(start_engine(&self.plan.engine, m.node_address, &m.dir));
        let address = m.node_address;
        wait_until("a node to answer", START_PATIENCE, || {
            let node = m.node.as_mut().unwrap();
            assert!(node.exited().is_none(), "the node ended: {}", node.last_words());
            Client::at(address).try_call("GET", "/health", &[], b"").is_ok_and(|a| a.status == 200)
        });
    }

    pub fn start_sidecar(&mut self, i: usize) {
        let m = &mut self.members[i];
        let mut command = Command::new(NETSIM);
        without(&mut command, "MIROIR_");
        command.args(["sidecar", "--config", "miroir.toml"]).current_dir(&m.dir).envs(self.plan.env.iter().copied());
        m.sidecar = Some(Process::start(command, &m.dir.join("sidecar.log")));
    }

    pub fn sidecar(&mut self, i: usize) -> &mut Process {
        self.members[i].sidecar.as_mut().unwrap()
    }

    pub fn node(&mut self, i: usize) -> &mut Process {
        self.members[i].node.as_mut().unwrap()
    }

    /// Waits until every sidecar sees all members active with healthy nodes.
    pub fn wait_whole(&mut self) {
        for i in 0..self.members.len() {
            self.wait_seen("a whole mesh", i, |m| {
                m["state"] == "active" && m["serving"] == true && m["unserved"] == serde_json::json!({})
            });
        }
    }

    /// Waits until member `i` sees all members as `sound` says.
    pub fn wait_seen(&mut self, what: &str, i: usize, sound: impl Fn(&Value) -> bool) {
        let count = self.members.len();
        let client = self.admin(i);
        let began = Instant::now();
        loop {
            let sidecar = self.sidecar(i);
            assert!(sidecar.exited().is_none(), "sidecar {i} ended: {}", sidecar.last_words());
            let seen = client.try_call("GET", "/_miroir/topology", &[], b"").map(|a| a.json()).unwrap_or_default();
            if seen["members"].as_array().is_some_and(|all| all.len() == count && all.iter().all(&sound)) {
                return;
            }
            let words = self.sidecar(i).last_words();
            assert!(began.elapsed() < START_PATIENCE, "waited for {what} at member {i}: {seen}\n{words}");
            std::thread::sleep(POLL);
        }
    }

    /// A client of one member, with the master key if there is one.
    pub fn client(&self, i: usize) -> Client {
        Client { key: self.plan.master_key.map(str::to_owned), is_mesh: true, ..Client::at(self.members[i].http) }
    }

    /// A client of one member with the admin key.
    pub fn admin(&self, i: usize) -> Client {
        Client { key: Some(ADMIN_KEY.into()), ..Client::at(self.members[i].http) }
    }

    /// A client of one member's node.
    pub fn node_client(&self, i: usize) -> Client {
        Client { key: Some(NODE_KEY.into()), ..Client::at(self.members[i].node_address) }
    }

    pub fn topology(&self, i: usize) -> Value {
        self.admin(i).get("/_miroir/topology").json()
    }
}

/// One node with nobody beside it.
pub struct Single {
    pub client: Client,
    _process: Process,
    _dir: TempDir,
}

impl Single {
    pub fn start(engine: &Engine) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("node")).unwrap();
        let address = loopback(free_port());
        let process = start_engine(engine, address, dir.path());
        let client = Client { key: Some(NODE_KEY.into()), ..Client::at(address) };
        wait_until("the single node to answer", START_PATIENCE, || {
            client.try_call("GET", "/version", &[], b"").is_ok_and(|a| a.status == 200)
        });
        Self { client, _process: process, _dir: dir }
    }
}

fn start_engine(engine: &Engine, at: SocketAddr, dir: &Path) -> Process {
    let mut command = match engine {
        Engine::Meilisearch(path) => Command::new(path),
        Engine::StandIn => Command::new(NETSIM),
    };
    if *engine == Engine::StandIn {
        command.arg("node");
    }
    without(&mut command, "MEILI_");
    let data = dir.join("node");
    command.args(["--http-addr", &at.to_string(), "--db-path"]).arg(data.join("data.ms"));
    command.env("MEILI_MASTER_KEY", NODE_KEY).env("MEILI_NO_ANALYTICS", "true").current_dir(data);
    // Several nodes share the machine; each would take half of it for indexing.
    command.env("MEILI_MAX_INDEXING_THREADS", "1").env("MEILI_MAX_INDEXING_MEMORY", "256MiB");
    Process::start(command, &dir.join("node.log"))
}

fn without(command: &mut Command, prefix: &str) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with(prefix)) {
        command.env_remove(name);
    }
}

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        match self.body.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text())),
        }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body[..self.body.len().min(2_000)]).into_owned()
    }

    /// A header's value, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The JSON of an answer with this status.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        self.json()
    }

    /// Asserts status and code of an error.
    #[track_caller]
    pub fn expect_error(&self, status: u16, code: &str) -> Value {
        let error = self.expect(status);
        assert_eq!(error["code"], code, "{error}");
        for field in ["message", "type", "link"] {
            assert!(error[field].as_str().is_some_and(|t| !t.is_empty()), "{field} in {error}");
        }
        error
    }
}

/// One server; every request has a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    pub address: SocketAddr,
    pub key: Option<String>,
    /// Whether answers must not show the mesh's own names.
    pub is_mesh: bool,
}

impl Client {
    pub fn at(address: SocketAddr) -> Self {
        Self { address, key: None, is_mesh: false }
    }

    pub fn try_call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Answer> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(90)))?;
        stream.set_nodelay(true)?;
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", self.address);
        if let Some(key) = &self.key {
            head += &format!("authorization: Bearer {key}\r\n");
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() || !matches!(method, "GET" | "DELETE") {
            head += &format!("content-length: {}\r\n", body.len());
        }
        head += "\r\n";
        stream.write_all(head.as_bytes())?;
        // A server may answer and close before it has read the whole body: its answer counts.
        let sent = stream.write_all(body);
        let mut raw = Vec::new();
        let read = stream.read_to_end(&mut raw);
        if raw.is_empty() {
            sent?;
            read?;
        }
        let answer = parse(&raw)?;
        if self.is_mesh {
            self.assert_clean(method, path, &answer);
        }
        Ok(answer)
    }

    /// Nothing of the mesh's own is shown, but where the client's own text is spoken of.
    fn assert_clean(&self, method: &str, path: &str, answer: &Answer) {
        let shown = || format!("{method} {path}: {}", answer.text());
        let reserved = find(&answer.body, b"\"miroir_reserved_field\"");
        assert!(reserved || !find(&answer.body, b"_miroir_shard"), "{}", shown());
        let physical =
            answer.body.windows(11).any(|w| w.starts_with(b"__m") && w[3..].iter().all(u8::is_ascii_hexdigit));
        assert!(!physical, "{}", shown());
        // U+A000 to U+A3FF: how shards are named on the nodes.
        let shard = answer.body.windows(3).any(|w| w[0] == 0xea && (0x80..=0x8f).contains(&w[1]) && w[2] >= 0x80);
        assert!(!shard, "{}", shown());
    }

    #[track_caller]
    pub fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        match self.try_call(method, path, headers, body) {
            Ok(answer) => answer,
            Err(e) => panic!("{method} http://{}{path}: {e}", self.address),
        }
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], b"")
    }

    #[track_caller]
    pub fn json(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.call(method, path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    #[track_caller]
    pub fn search(&self, index: &str, body: &Value) -> Answer {
        self.json("POST", &format!("/indexes/{index}/search"), body)
    }

    /// The task of an answer, once it is finished.
    #[track_caller]
    pub fn finished(&self, answer: &Answer) -> Value {
        let summary = answer.expect(202);
        let uid = summary["taskUid"].as_u64().unwrap_or_else(|| panic!("no task in {summary}"));
        let began = Instant::now();
        loop {
            let task = self.get(&format!("/tasks/{uid}")).expect(200);
            if task["status"] != "enqueued" && task["status"] != "processing" {
                return task;
            }
            assert!(began.elapsed() < Duration::from_secs(150), "task {uid} does not end: {task}");
            std::thread::sleep(POLL);
        }
    }

    /// Carries out a write and waits for its success.
    #[track_caller]
    pub fn done(&self, method: &str, path: &str, body: &Value) -> Value {
        let answer = match body {
            Value::Null => self.call(method, path, &[], b""),
            body => self.json(method, path, body),
        };
        let task = self.finished(&answer);
        assert_eq!(task["status"], "succeeded", "{task}");
        task
    }
}

fn find(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|w| w == wanted)
}

fn parse(raw: &[u8]) -> io::Result<Answer> {
    let bad =
        |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{what}: {:?}", String::from_utf8_lossy(raw)));
    let end = raw.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(|| bad("no head"))?;
    let head = String::from_utf8_lossy(&raw[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|l| l.split(' ').nth(1)).and_then(|s| s.parse().ok());
    let status = status.ok_or_else(|| bad("no status"))?;
    let headers: Vec<(String, String)> =
        lines.filter_map(|l| l.split_once(':')).map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned())).collect();
    let header = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let mut rest = &raw[end + 4..];
    let body = if header("transfer-encoding") == Some("chunked") {
        let mut body = Vec::new();
        loop {
            let line = rest.windows(2).position(|w| w == b"\r\n").ok_or_else(|| bad("a cut chunk"))?;
            let size = std::str::from_utf8(&rest[..line]).ok().and_then(|s| usize::from_str_radix(s, 16).ok());
            let size = size.ok_or_else(|| bad("a chunk without a size"))?;
            rest = &rest[line + 2..];
            if size == 0 {
                break body;
            }
            body.extend_from_slice(rest.get(..size).ok_or_else(|| bad("a cut chunk"))?);
            rest = rest.get(size + 2..).ok_or_else(|| bad("a cut chunk"))?;
        }
    } else {
        let length = header("content-length").and_then(|l| l.parse().ok()).unwrap_or(rest.len());
        rest.get(..length).ok_or_else(|| bad("a cut body"))?.to_vec()
    };
    Ok(Answer { status, headers, body })
}

/// How an exit looks to a shell.
pub fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

pub const SAMPLE_SIZE: u64 = 3_000;

/// The committed sample as it lies there: gzip of NDJSON.
pub fn sample_gz() -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("data/packages-3000.ndjson.gz")).unwrap()
}

/// The committed sample.
pub fn sample() -> Vec<Value> {
    documents(&sample_gz())
}

/// Documents of gzip of NDJSON.
pub fn documents(gz: &[u8]) -> Vec<Value> {
    let mut text = String::new();
    flate2::read::MultiGzDecoder::new(gz).read_to_string(&mut text).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// Settings under which the sample can be filtered, sorted and faceted.
pub fn package_settings() -> Value {
    json!({
        "searchableAttributes": ["name", "summary", "description", "section", "tags"],
        "filterableAttributes": ["section", "priority", "size", "installed_size", "tags", "maintainer", "id"],
        "sortableAttributes": ["size", "installed_size", "name"],
    })
}

/// Makes the index `packages` with the settings and all documents of the sample.
pub fn load_sample(client: &Client, settings: &Value) {
    client.done("POST", "/indexes", &json!({"uid": "packages", "primaryKey": "id"}));
    if !settings.is_null() {
        client.done("PATCH", "/indexes/packages/settings", settings);
    }
    let headers = [("content-type", "application/x-ndjson"), ("content-encoding", "gzip")];
    let task = client.finished(&client.call("POST", "/indexes/packages/documents", &headers, &sample_gz()));
    assert_eq!(task["status"], "succeeded", "{task}");
    assert_eq!(task["details"]["indexedDocuments"], SAMPLE_SIZE, "{task}");
}

/// Numbers that look random and are the same in every run.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % bound as u64).expect("below a usize")
    }

    pub fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}
