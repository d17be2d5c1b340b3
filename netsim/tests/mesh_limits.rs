//! What clients must not do, and what strangers send: clear errors, bounded memory, everybody else served. And access,
//! nodes that can't be used, and configurations that are wrong.

mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{ADMIN_KEY, Answer, Client, Dice, Mesh, NETSIM, Plan, exit_code, wait_until};
use serde_json::{Value, json};

const LIMIT: usize = 1 << 20;
const BODY_TIMEOUT: Duration = Duration::from_secs(2);
/// What a slow machine may take on top.
const SLACK: Duration = Duration::from_secs(6);
const DEPTH: usize = 100_000;
/// What a few requests of the largest size may cost.
const GROWTH_MIB: u64 = 64;

fn small() -> Mesh {
    let plan = Plan::of(2, 1).env("MIROIR_HTTP__MAX_BODY_BYTES", "1048576").env("MIROIR_HTTP__BODY_TIMEOUT_S", "2");
    let mesh = Mesh::start(plan);
    let client = mesh.client(0);
    client.done("POST", "/indexes", &json!({"uid": "i", "primaryKey": "id"}));
    let documents: Vec<Value> = (0..50).map(|id| json!({"id": id, "text": "some words"})).collect();
    client.done("POST", "/indexes/i/documents", &json!(documents));
    mesh
}

/// The mesh is as it was: the same processes, all documents, writes taken.
#[track_caller]
fn assert_well(mesh: &mut Mesh) {
    for i in 0..mesh.members.len() {
        assert!(mesh.sidecar(i).exited().is_none(), "{}", mesh.sidecar(i).last_words());
        let words = mesh.sidecar(i).last_words();
        assert!(!words.contains("panicked"), "{words}");
        let client = mesh.client(i);
        assert_eq!(client.get("/health").expect(200)["status"], "available");
        let answer = client.search("i", &json!({"hitsPerPage": 1}));
        assert_eq!((answer.header("x-miroir-degraded"), answer.expect(200)["totalHits"].as_u64()), (None, Some(50)));
        client.done("PUT", "/indexes/i/documents", &json!([{"id": 7, "text": "some words"}]));
    }
}

#[test]
fn garbage_on_both_ports_changes_nothing() {
    let mut mesh = small();
    let mut dice = Dice::new(5);
    let mut noise = |length: usize| -> Vec<u8> { (0..length).map(|_| dice.below(256) as u8).collect() };
    let before = mesh.sidecar(0).rss_mib();
    let fixed: [&[u8]; 8] = [
        b"\r\n\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /indexes HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /indexes HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"POST /indexes HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ];
    let random: Vec<Vec<u8>> = (0..100).map(|i| noise(1 + 37 * i)).collect();
    let long = [b"GET /".to_vec(), vec![b'a'; 1 << 20], b" HTTP/1.1\r\n\r\n".to_vec()].concat();
    let many = [b"GET / HTTP/1.1\r\n".to_vec(), b"x-a: b\r\n".repeat(100_000), b"\r\n".to_vec()].concat();
    for bytes in fixed.iter().map(|b| b.to_vec()).chain(random).chain([long, many]) {
        let mut stream = TcpStream::connect(mesh.members[0].http).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
        // The server may close before it has read all, or while it is read: both are its right.
        stream.write_all(&bytes).ok();
        stream.shutdown(std::net::Shutdown::Write).ok();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok();
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(100)]).into_owned();
        assert!(answer.is_empty() || shown.starts_with("HTTP/1.1 4"), "{shown}");
    }
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    for i in 0..5_000 {
        let mut bytes = noise(1 + (i * 7) % 1_400);
        if i % 2 == 0 {
            // The first packet of a QUIC connection, version 1 or one that nobody knows.
            bytes[0] = 0xc0 | (bytes[0] & 0x0f);
            let version: [u8; 4] = if i % 4 == 0 { [0, 0, 0, 1] } else { [0xba, 0xba, 0xba, 0xba] };
            bytes.iter_mut().skip(1).zip(version).for_each(|(byte, v)| *byte = v);
        }
        socket.send_to(&bytes, mesh.members[i % 2].mesh).unwrap();
    }
    assert_well(&mut mesh);
    let after = mesh.sidecar(0).rss_mib();
    assert!(after < before + GROWTH_MIB, "{before} MiB before, {after} MiB after");
}

#[test]
fn bodies_that_are_too_large_or_too_deep_are_refused_and_cost_little() {
    let mut mesh = small();
    let client = mesh.client(0);
    let documents = "/indexes/i/documents";
    let json_type = ("content-type", "application/json");
    // Warm: what the process takes once.
    client.search("i", &json!({"q": "some"})).expect(200);
    let before = mesh.sidecar(0).rss_mib();

    let large = format!("[{{\"id\":1,\"text\":\"{}\"}}]", "x".repeat(LIMIT));
    let refusal = client.call("POST", documents, &[json_type], large.as_bytes()).expect_error(413, "payload_too_large");
    assert!(refusal["message"].as_str().unwrap().contains("1 MiB"), "{refusal}");
    for path in ["/indexes/i/search", "/indexes/i/documents/fetch", "/multi-search", "/indexes"] {
        client.call("POST", path, &[json_type], large.as_bytes()).expect_error(413, "payload_too_large");
    }
    client.call("PATCH", "/indexes/i/settings", &[json_type], large.as_bytes()).expect_error(413, "payload_too_large");

    // One that is announced is not waited for.
    let announced = begun(&mesh, &format!("{HEAD}content-length: 99999999999\r\n\r\n"));
    let answer = ended(announced, BODY_TIMEOUT / 2).expect("a body over the limit is refused by its head");
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");

    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..600 {
        bomb.write_all(&vec![b' '; 1 << 20]).unwrap();
    }
    let bomb = bomb.finish().unwrap();
    assert!(bomb.len() < LIMIT);
    let headers = [json_type, ("content-encoding", "gzip")];
    for path in [documents, "/indexes/i/search"] {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| client.call("POST", path, &headers, &bomb).expect_error(413, "payload_too_large"));
            }
        });
    }

    // A table of which each short record repeats a long name as JSON.
    let table = format!("id,{}\n{}", "n".repeat(100_000), (0..100_000).map(|i| format!("{i},\n")).collect::<String>());
    assert!(table.len() < LIMIT);
    client
        .call("POST", documents, &[("content-type", "text/csv")], table.as_bytes())
        .expect_error(413, "payload_too_large");

    let deep = format!("{}{}", "[".repeat(DEPTH), "]".repeat(DEPTH));
    let objects = format!("{}1{}", "{\"a\":".repeat(DEPTH), "}".repeat(DEPTH));
    for nested in [&deep, &objects] {
        for (method, path, body) in [
            ("POST", documents, format!("[{{\"id\":1,\"a\":{nested}}}]")),
            ("PUT", documents, nested.clone()),
            ("POST", "/indexes/i/search", format!("{{\"filter\":{nested}}}")),
            ("POST", "/indexes/i/documents/fetch", format!("{{\"filter\":{nested}}}")),
            ("POST", "/indexes/i/documents/delete", format!("{{\"filter\":{nested}}}")),
            ("POST", "/indexes/i/documents/delete-batch", nested.clone()),
            ("POST", "/multi-search", format!("{{\"queries\":{nested}}}")),
            ("PATCH", "/indexes/i/settings", format!("{{\"synonyms\":{nested}}}")),
            ("PUT", "/indexes/i/settings/filterable-attributes", nested.clone()),
            ("POST", "/indexes", nested.clone()),
        ] {
            let answer = client.call(method, path, &[json_type], body.as_bytes());
            assert_eq!(answer.status, 400, "{method} {path}: {}", answer.text());
            let error = answer.json();
            assert!(error["code"].as_str().is_some_and(|c| !c.is_empty()), "{error}");
            assert!(answer.body.len() < 4_000 + 3 * body.len(), "{method} {path}: {} bytes", answer.body.len());
        }
    }
    let filter = json!({"filter": format!("{}id = 1{}", "(".repeat(10_000), ")".repeat(10_000))});
    let answer = client.search("i", &filter);
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert_well(&mut mesh);
    let after = mesh.sidecar(0).rss_mib();
    assert!(after < before + GROWTH_MIB, "{before} MiB before, {after} MiB after");
}

/// Opens a connection that has sent a part of a request.
fn begun(mesh: &Mesh, part: &str) -> TcpStream {
    let mut stream = TcpStream::connect(mesh.members[0].http).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(part.as_bytes()).unwrap();
    stream
}

/// Waits until the server answers or closes; what it said.
fn ended(mut stream: TcpStream, patience: Duration) -> Option<String> {
    stream.set_read_timeout(Some(patience)).unwrap();
    let mut said = Vec::new();
    // A reset is an end, too.
    match stream.read_to_end(&mut said) {
        Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => None,
        _ => Some(String::from_utf8_lossy(&said).into_owned()),
    }
}

const HEAD: &str =
    "POST /indexes/i/search HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n";

#[test]
fn slow_and_idle_clients_are_cut_and_hold_nobody_up() {
    let mut mesh = small();
    let idle: Vec<TcpStream> = (0..500).map(|_| begun(&mesh, "")).collect();
    let heads: Vec<TcpStream> = (0..50).map(|_| begun(&mesh, "GET /health HTTP/1.1\r\nho")).collect();
    let began = Instant::now();
    let bodies: Vec<TcpStream> =
        (0..50).map(|_| begun(&mesh, &format!("{HEAD}content-length: 900\r\n\r\n{{\"q\":"))).collect();

    let client = mesh.client(0);
    for _ in 0..50 {
        let sent = Instant::now();
        client.search("i", &json!({"q": "some"})).expect(200);
        assert!(sent.elapsed() < BODY_TIMEOUT, "{:?}", sent.elapsed());
    }
    // Slow, but its head comes in time, and its body is never still for too long: served.
    let body = "{\"q\":\"some words\"}";
    let mut slow = begun(&mesh, "");
    let request = format!("{HEAD}content-length: {}\r\n\r\n{body}", body.len());
    for byte in request.bytes() {
        slow.write_all(&[byte]).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    let answer = ended(slow, SLACK).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    for stream in bodies {
        let said = ended(stream, SLACK).expect("a client that stalls is cut");
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{said}");
    }
    assert!(began.elapsed() >= BODY_TIMEOUT, "not before its time");
    for stream in heads {
        let said = ended(stream, SLACK).expect("a client that stalls in its head is cut");
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{said}");
    }
    assert_well(&mut mesh);
    drop(idle);
    assert_well(&mut mesh);
}

#[test]
fn keys_open_what_they_should_and_browsers_may_ask() {
    let mesh = Mesh::start(Plan { master_key: Some("sixteen-bytes-or-more"), ..Plan::of(1, 1) });
    let with = |key: Option<&str>| Client { key: key.map(str::to_owned), ..mesh.client(0) };
    let (nobody, wrong, master, admin) =
        (with(None), with(Some("no-such-key-at-all")), with(Some("sixteen-bytes-or-more")), with(Some(ADMIN_KEY)));
    for client in [&nobody, &wrong, &master] {
        assert_eq!(client.get("/health").expect(200), json!({"status": "available"}));
        client.get("/").expect(200);
    }
    for path in ["/indexes", "/version", "/stats", "/tasks/0", "/indexes/x/search?q=a", "/keys"] {
        nobody.get(path).expect_error(401, "missing_authorization_header");
        wrong.get(path).expect_error(403, "invalid_api_key");
        admin.get(path).expect_error(403, "invalid_api_key");
    }
    master.get("/version").expect(200);
    nobody.get("/_miroir/topology").expect_error(401, "missing_authorization_header");
    master.get("/_miroir/topology").expect_error(403, "invalid_api_key");
    assert_eq!(admin.get("/_miroir/topology").expect(200)["members"][0]["id"], "m1");
    let topology = admin.get("/_miroir/topology").text();
    for secret in ["sixteen-bytes-or-more", ADMIN_KEY, common::NODE_KEY] {
        assert!(!topology.contains(secret));
    }

    let asked = [
        ("origin", "https://example.org"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,content-type"),
    ];
    let preflight = nobody.call("OPTIONS", "/indexes/x/search", &asked, b"");
    assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (200, Some("*")));
    let allowed = |answer: &Answer, name: &str| answer.header(name).unwrap_or_default().to_ascii_lowercase();
    assert!(allowed(&preflight, "access-control-allow-headers").contains("authorization"));
    assert!(allowed(&preflight, "access-control-allow-methods").contains("post"));
    let refused = nobody.call("GET", "/indexes", &asked[..1], b"");
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, Some("*")));
}

/// Answers as a node of another version does, until the test ends.
fn old_node(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut request = [0; 4096];
            let Ok(read) = stream.read(&mut request) else { continue };
            let body = match request[..read].starts_with(b"GET /health") {
                true => r#"{"status":"available"}"#,
                false => r#"{"commitSha":"x","commitDate":"x","pkgVersion":"1.13.3"}"#,
            };
            let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length:";
            // A sidecar that has gone away hears nothing.
            write!(stream, "{head} {}\r\n\r\n{body}", body.len()).ok();
        }
    });
}

/// What `/health` and the topology say about a node that can't be used.
fn node_trouble(mesh: &Mesh) -> String {
    let (client, admin) = (mesh.client(0), mesh.admin(0));
    let told = |a: &Answer| a.status == 503 && a.text().contains("the node");
    wait_until("the node's trouble to be known", Duration::from_secs(20), || {
        client.try_call("GET", "/health", &[], b"").is_ok_and(|a| told(&a))
    });
    let error = client.get("/health").expect_error(503, "miroir_shards_unavailable");
    let member = admin.get("/_miroir/topology").expect(200)["members"][0].clone();
    assert_eq!((&member["serving"], &member["node"]["healthy"]), (&json!(false), &json!(false)), "{member}");
    let why = member["node"]["error"].as_str().unwrap().to_owned();
    assert!(error["message"].as_str().unwrap().contains(&why), "{error} {why}");
    why
}

#[test]
fn a_node_that_can_not_be_used_is_named_with_the_remedy() {
    let mut mesh = Mesh::prepare(Plan::of(1, 1));
    fs::write(mesh.members[0].dir.join("node.key"), "another-key-than-the-nodes").unwrap();
    mesh.start_node(0);
    mesh.start_sidecar(0);
    let why = node_trouble(&mesh);
    assert!(why.contains("[meilisearch] key_file") && !why.contains("another-key"), "{why}");

    let mut mesh = Mesh::prepare(Plan::of(1, 1));
    old_node(TcpListener::bind(mesh.members[0].node_address).unwrap());
    mesh.start_sidecar(0);
    let why = node_trouble(&mesh);
    assert!(why.contains("1.13.3") && why.contains("1.26"), "{why}");

    let mut mesh = Mesh::prepare(Plan::of(1, 1));
    mesh.start_sidecar(0);
    let why = node_trouble(&mesh);
    assert!(why.contains("[meilisearch] url"), "{why}");
}

#[test]
fn check_config_says_by_its_exit_code_what_it_found() {
    let mesh = Mesh::prepare(Plan::of(1, 1));
    let dir = &mesh.members[0].dir;
    let check = |file: &str, env: &[(&str, &str)]| {
        let mut command = Command::new(NETSIM);
        command.args(["sidecar", "check-config", "--config", file]).current_dir(dir).envs(env.iter().copied());
        let out = command.output().unwrap();
        (exit_code(out.status), String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    let (code, stdout, stderr) = check("miroir.toml", &[]);
    assert_eq!((code, &*stderr), (0, ""));
    assert!(stdout.contains("m1"), "{stdout}");

    let text = fs::read_to_string(dir.join("miroir.toml")).unwrap();
    fs::write(dir.join("unknown.toml"), format!("{text}\n[search]\nno_such_key = 1\nhedge = 5\n")).unwrap();
    let (code, stdout, stderr) = check("unknown.toml", &[]);
    assert_eq!((code, &*stdout), (2, ""));
    for part in ["unknown.toml", "no_such_key", "hedge"] {
        assert!(stderr.contains(part), "all faults at once: {stderr}");
    }
    let (code, _, stderr) = check("miroir.toml", &[("MIROIR_HTTP__MAX_BODY_BYTES", "many")]);
    assert!(code == 2 && stderr.contains("MIROIR_HTTP__MAX_BODY_BYTES"), "{code} {stderr}");
    assert_eq!(check("nowhere.toml", &[]).0, 2);
    assert_eq!(check("miroir.toml", &[]).0, 0, "nothing was bound or changed");
    assert!(!dir.join("store").exists());

    let (code, _, stderr) = check("miroir.toml", &[("MIROIR_HTTP__LISTEN", "0.0.0.0:1")]);
    assert!(code == 0 && stderr.starts_with("warning: ") && stderr.contains("no master key"), "{code} {stderr}");
    let file = |name: &str| dir.join(name).display().to_string();
    let mut alone = Command::new(NETSIM);
    alone.args(["sidecar", "check-config"]).env_remove("MIROIR_CONFIG").envs([
        ("MIROIR_NODE__ID", "m1".to_owned()),
        ("MIROIR_MESH__CA_FILE", file("ca.pem")),
        ("MIROIR_MESH__CERT_FILE", file("member.pem")),
        ("MIROIR_MESH__KEY_FILE", file("member-key.pem")),
    ]);
    let out = alone.output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(
        said.starts_with("the environment is valid: member m1, no list"),
        "{said}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let (code, _, stderr) = check("miroir.toml", &[("MIROIR_NODE__ID", "7")]);
    assert!(code == 2 && stderr.contains("not digits only"), "{code} {stderr}");
}
