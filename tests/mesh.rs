//! The mesh transport, between real endpoints on loopback.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use miroir::net::classes::ClassLimits;
use miroir::net::gossip::{Gossip, GossipConfig, Members, gossip_address};
use miroir::net::peers::{Mesh, MeshConfig, MeshError, PeerAddress};
use miroir::net::tls::{ALPN_CONTROL, ALPN_DATA, TlsFiles};
use miroir::net::{Answer, Call, CallError, Handler, Peers};
use miroir::pki::{self, CaPair, MemberPair};
use miroir::types::TraceId;
use miroir::types::{MemberId, MeshId, PhysicalIndex, ShardSet};
use miroir::wire::frame::{ANSWER_HEAD_BYTES, Hello, PROTOCOL_VERSION, RequestHead};
use miroir::wire::gossip::{MemberGossip, MemberState};
use miroir::wire::verbs::{NodeQuestion, Refusal, Reply, Request, Write, WriteKind};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::{Notify, Semaphore, mpsc};

/// Nothing here takes nearly so long, unless it never happens.
const LONG: Duration = Duration::from_secs(30);
const PORT: u16 = 17_781;
const MESH: MeshId = MeshId([7; 16]);

fn m(id: &str) -> MemberId {
    MemberId::new(id).unwrap()
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.unwrap_or_else(|_| panic!("never happened: {what}"))
}

/// Each test has a network of its own in 127.0.0.0/8, so that a member can come back under its address.
struct Net {
    net: u8,
    dir: tempfile::TempDir,
    ca: CaPair,
    members: Vec<String>,
}

impl Net {
    fn new(members: &[&str]) -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        Self {
            net: NEXT.fetch_add(1, Ordering::Relaxed),
            dir: tempfile::tempdir().unwrap(),
            ca: pki::create_ca("test", 10).unwrap(),
            members: members.iter().map(|s| (*s).to_owned()).collect(),
        }
    }

    fn address(&self, id: &str) -> SocketAddr {
        let n = self.members.iter().position(|x| x == id).map_or(200, |n| u8::try_from(n).unwrap() + 1);
        // The process id keeps two runs of the tests apart.
        let run = u8::try_from(std::process::id() % 200).unwrap() + 20;
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, run, self.net, n)), PORT)
    }

    fn issue(&self, id: &str) -> MemberPair {
        pki::issue(&self.ca.cert_pem, &self.ca.key_pem, &m(id), &[], 5).unwrap()
    }

    fn files(&self, id: &str) -> TlsFiles {
        let path = |n: &str| self.dir.path().join(format!("{id}-{n}"));
        TlsFiles { ca: path("ca.pem"), cert: path("cert.pem"), key: path("key.pem") }
    }

    fn write_files(&self, id: &str, ca: &str, pair: &MemberPair) -> TlsFiles {
        let files = self.files(id);
        let put = |path: &PathBuf, text: &str| fs::write(path, text).unwrap();
        put(&files.ca, ca);
        put(&files.key, &pair.key_pem);
        put(&files.cert, &pair.cert_pem);
        files
    }

    fn config(&self, id: &str, start: u64) -> MeshConfig {
        let tls = self.write_files(id, &self.ca.cert_pem, &self.issue(id));
        let mut secret = [0; 64];
        secret[..id.len()].copy_from_slice(id.as_bytes());
        let mut config = MeshConfig::new(m(id), MESH, self.address(id), tls, secret, start);
        config.tls_poll_interval = Duration::from_millis(50);
        config
    }

    fn addresses(&self) -> Vec<PeerAddress> {
        let of = |id: &String| PeerAddress { id: m(id), address: self.address(id).to_string() };
        self.members.iter().map(of).collect()
    }

    fn start_with(&self, config: MeshConfig, handler: Arc<dyn Handler>) -> Mesh {
        start_when_free(&config, &self.addresses(), &handler)
    }

    fn start(&self, id: &str, start: u64, handler: Arc<dyn Handler>) -> Mesh {
        self.start_with(self.config(id, start), handler)
    }
}

/// A member that was killed in this process lets go of its port when the last task of its calls has noticed.
fn start_when_free(config: &MeshConfig, members: &[PeerAddress], handler: &Arc<dyn Handler>) -> Mesh {
    let begun = Instant::now();
    loop {
        let runtime = tokio::runtime::Handle::current();
        match Mesh::start(config.clone(), members.to_vec(), Some(handler.clone()), runtime) {
            Err(MeshError::Listen { reason, .. })
                if reason.kind() == std::io::ErrorKind::AddrInUse && begun.elapsed() < LONG =>
            {
                std::thread::yield_now();
            }
            started => return started.unwrap(),
        }
    }
}

/// A handler made of a function.
struct Fun<F>(F);

#[async_trait]
impl<F, R> Handler for Fun<F>
where
    F: Fn(MemberId, Call) -> R + Send + Sync + 'static,
    R: Future<Output = Answer> + Send,
{
    async fn handle(&self, from: &MemberId, call: Call) -> Answer {
        (self.0)(from.clone(), call).await
    }
}

/// Answers with the body that came.
fn echo() -> Arc<dyn Handler> {
    Arc::new(Fun(|_from, call: Call| async move { Answer { reply: Reply::Enqueued(7), body: call.body } }))
}

fn query() -> Request {
    Request::Shards(PhysicalIndex::new("packages__m00000001").unwrap())
}

fn write() -> Request {
    Request::Write(Write {
        index: PhysicalIndex::new("packages__m00000001").unwrap(),
        record_version: 1,
        shards: ShardSet::all(4),
        kind: WriteKind::DeleteAll,
    })
}

fn call_of(request: Request, body: impl Into<Bytes>, within: Duration) -> Call {
    Call { request, body: body.into(), deadline: Instant::now() + within, trace: TraceId(0xabc) }
}

/// With a deadline behind all others, so that it never is what ends a wait.
fn call(request: Request) -> Call {
    call_of(request, Bytes::new(), LONG * 10)
}

async fn wait_suspects(mesh: &Mesh, want: &[&str]) {
    let want: BTreeSet<_> = want.iter().map(|s| m(s)).collect();
    let mut suspects = mesh.suspects();
    within(&format!("suspects {want:?}"), suspects.wait_for(|s| *s == want)).await.unwrap();
}

/// Somebody who speaks QUIC without being a [`Mesh`].
struct Stranger {
    endpoint: quinn::Endpoint,
}

impl Stranger {
    /// With this CA's roots and, if given, this certificate.
    fn new(ca: &str, pair: Option<&MemberPair>, alpn: &[u8]) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match pair {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let cert = CertificateDer::from_pem_slice(pair.cert_pem.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![cert], key).unwrap()
            }
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let crypto = Arc::new(QuicClientConfig::try_from(config).unwrap());
        endpoint.set_default_client_config(quinn::ClientConfig::new(crypto));
        Self { endpoint }
    }

    /// Handshake, hello, welcome; what went wrong as text.
    async fn join(&self, to: SocketAddr, name: &str, hello: &Hello) -> Result<quinn::Connection, String> {
        let connection = self.endpoint.connect(to, name).unwrap().await.map_err(|e| e.to_string())?;
        let told = |e: String| connection.close_reason().map_or(e, |c| c.to_string());
        let (mut send, mut recv) = connection.open_bi().await.map_err(|e| told(e.to_string()))?;
        send.write_all(&hello.encode()).await.map_err(|e| told(e.to_string()))?;
        send.finish().map_err(|e| told(e.to_string()))?;
        let welcome = recv.read_to_end(100).await;
        match welcome {
            Ok(bytes) if !bytes.is_empty() => Ok(connection.clone()),
            other => {
                let reason = connection.closed().await;
                Err(format!("{other:?} {reason}"))
            }
        }
    }
}

fn hello(id: &str) -> Hello {
    Hello { version: PROTOCOL_VERSION, mesh: MESH, start: 1, member: m(id) }
}

fn head(verb: u16, header_len: usize) -> RequestHead {
    RequestHead {
        version: PROTOCOL_VERSION,
        verb,
        mesh: MESH,
        deadline_ms: 30_000,
        trace: 5,
        header_len: u32::try_from(header_len).unwrap(),
    }
}

/// Sends raw bytes as a call and reads the reply.
async fn raw_call(connection: &quinn::Connection, parts: &[&[u8]]) -> Reply {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    for part in parts {
        // Whoever refuses early reads no further.
        if send.write_all(part).await.is_err() {
            break;
        }
    }
    let _ = send.finish();
    let bytes = within("an answer", recv.read_to_end(1 << 20)).await.unwrap();
    let len = u32::from_be_bytes(bytes[2..6].try_into().unwrap()) as usize;
    miroir::wire::codec::decode::<Reply, 100_000>("reply", &bytes[ANSWER_HEAD_BYTES..ANSWER_HEAD_BYTES + len]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_carry_large_bodies_both_ways() {
    let net = Net::new(&["m1", "m2"]);
    let seen = Arc::new(OnceLock::new());
    let noted = seen.clone();
    let m2 = net.start(
        "m2",
        1,
        Arc::new(Fun(move |from, call: Call| {
            let noted = noted.clone();
            async move {
                noted.set((from, call.trace, call.request.clone())).ok();
                Answer { reply: Reply::Enqueued(7), body: call.body }
            }
        })),
    );
    let m1 = net.start("m1", 1, echo());
    within("connected", m1.connected(&m("m2"))).await;
    let body: Bytes = (0..50_000_000_u32).map(|i| (i ^ (i >> 9)) as u8).collect();
    let answer = within("an answer", m1.call(&m("m2"), call_of(write(), body.clone(), LONG))).await.unwrap();
    assert_eq!(answer.reply, Reply::Enqueued(7));
    assert!(answer.body == body, "the body comes back as it was");
    assert_eq!(*seen.get().unwrap(), (m("m1"), TraceId(0xabc), write()));
    // And from the other side, without a body.
    within("connected", m2.connected(&m("m1"))).await;
    let answer = within("an answer", m2.call(&m("m1"), call(query()))).await.unwrap();
    assert!(answer.body.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go_while_the_mesh_runs() {
    let net = Net::new(&["m1", "m2", "m3"]);
    let only = |ids: &[&str]| net.addresses().into_iter().filter(|p| ids.contains(&p.id.as_str())).collect::<Vec<_>>();
    let m1 = start_when_free(&net.config("m1", 1), &only(&["m1", "m2"]), &echo());
    let m2 = net.start("m2", 1, echo());
    let m3 = net.start("m3", 1, echo());
    within("connected", m1.connected(&m("m2"))).await;
    assert!(matches!(m1.call(&m("m3"), call(query())).await, Err(CallError::NotSent { .. })), "not a member yet");
    wait_suspects(&m3, &["m1"]).await;

    m1.set_members(net.addresses()).unwrap();
    within("connected", m1.connected(&m("m3"))).await;
    within("connected", m3.connected(&m("m1"))).await;
    within("an answer", m3.call(&m("m1"), call(query()))).await.unwrap();

    m1.set_members(only(&["m1", "m2"])).unwrap();
    assert!(m1.set_members([only(&["m2"]), only(&["m2"])].concat()).is_err(), "twice the same");
    assert!(matches!(m1.call(&m("m3"), call(query())).await, Err(CallError::NotSent { .. })), "no member any more");
    // Its connections are closed, and new ones are refused.
    wait_suspects(&m3, &["m1"]).await;
    assert!(m3.call(&m("m1"), call(query())).await.is_err());
    wait_suspects(&m1, &[]).await;
    within("an answer", m1.call(&m("m2"), call(query()))).await.unwrap();
    drop(m2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_a_mesh_may_connect_but_not_call() {
    let net = Net::new(&["m1", "m2"]);
    let m1 = net.start("m1", 1, echo());
    let m2 = net.start_with(MeshConfig { mesh_id: MeshId::NONE, ..net.config("m2", 1) }, echo());
    within("connected", m1.connected(&m("m2"))).await;
    within("connected", m2.connected(&m("m1"))).await;
    wait_suspects(&m1, &[]).await;
    let refused = within("an answer", m2.call(&m("m1"), call(query()))).await;
    assert!(matches!(refused, Err(CallError::Refused { refusal: Refusal::WrongMesh, .. })), "{refused:?}");
    m2.set_mesh_id(MESH);
    within("an answer", m2.call(&m("m1"), call(query()))).await.unwrap();
    within("an answer", m1.call(&m("m2"), call(query()))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused() {
    let net = Net::new(&["m1", "m2"]);
    let handled = Arc::new(AtomicUsize::new(0));
    let count = handled.clone();
    let m1 = net.start(
        "m1",
        1,
        Arc::new(Fun(move |_, _| {
            count.fetch_add(1, Ordering::SeqCst);
            async { Answer::of(Reply::Done) }
        })),
    );
    let to = m1.local_addr();
    let (ca, good) = (&net.ca.cert_pem, net.issue("m2"));
    let other_ca = pki::create_ca("test", 10).unwrap();
    let other = pki::issue(&other_ca.cert_pem, &other_ca.key_pem, &m("m2"), &[], 5).unwrap();
    let now = time::OffsetDateTime::now_utc();
    let past = pki::Validity { from: now - time::Duration::days(2), until: now - time::Duration::days(1) };
    let expired = pki::issue_within(&net.ca.cert_pem, &net.ca.key_pem, &m("m2"), &[], past).unwrap();
    let other_mesh = Hello { mesh: MeshId([8; 16]), ..hello("m2") };

    let cases: [(&str, Option<&MemberPair>, Hello, &str); 8] = [
        ("no certificate", None, hello("m2"), "certificate"),
        ("another CA's", Some(&other), hello("m2"), "certificate"),
        ("an expired one", Some(&expired), hello("m2"), "certificate"),
        ("another member's id", Some(&net.issue("m3")), hello("m2"), "does not name the member m2"),
        ("the asked member's own id", Some(&good), hello("m1"), "does not name the member m1"),
        ("another mesh id", Some(&good), other_mesh, "another mesh"),
        ("no member of the mesh", Some(&net.issue("m9")), hello("m9"), "not a member"),
        ("the member itself", Some(&net.issue("m1")), hello("m1"), "this member itself"),
    ];
    for (what, pair, hello, reason) in cases {
        for alpn in [ALPN_CONTROL, ALPN_DATA] {
            let stranger = Stranger::new(ca, pair, alpn);
            let refused = within(what, stranger.join(to, "m1", &hello)).await.err();
            let refused = refused.unwrap_or_else(|| panic!("{what} was let in"));
            assert!(refused.contains(reason), "{what}: {refused}");
        }
    }
    let stranger = Stranger::new(ca, Some(&good), b"h3");
    assert!(within("refused", stranger.join(to, "m1", &hello("m2"))).await.is_err(), "another protocol");
    // The same one with everything right is let in.
    let friend = Stranger::new(ca, Some(&good), ALPN_DATA);
    let connection = within("let in", friend.join(to, "m1", &hello("m2"))).await.unwrap();
    let payload = query().encode_payload().unwrap();
    let reply = raw_call(&connection, &[&head(query().verb(), payload.len()).encode(), &payload]).await;
    assert_eq!(reply, Reply::Done);
    assert_eq!(handled.load(Ordering::SeqCst), 1, "nobody else was served");
    // Two for each of the eight, and one more.
    assert_eq!(m1.counters().refused_connections.load(Ordering::Relaxed), 17);
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_is_not_the_dialled_member_is_not_called() {
    let net = Net::new(&["m1", "m2"]);
    // At m2's address sits a member with m1's certificate... as a member called m3 would.
    let mut config = net.config("m2", 1);
    config.tls = net.write_files("m3", &net.ca.cert_pem, &net.issue("m3"));
    config.member = m("m3");
    let _m3 = net.start_with(config, echo());
    let m1 = net.start("m1", 1, echo());
    let reason = within("a reason", async {
        loop {
            match m1.call(&m("m2"), call(query())).await {
                Err(CallError::NotSent { reason, .. }) if reason.contains("certificate") => break reason,
                Err(CallError::NotSent { .. }) => tokio::task::yield_now().await,
                other => panic!("{other:?}"),
            }
        }
    })
    .await;
    assert!(!reason.is_empty());
    assert!(m1.is_suspect(&m("m2")));
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_call_drops_the_handlers_future() {
    struct OnDrop(mpsc::Sender<()>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            let _ = self.0.try_send(());
        }
    }
    let net = Net::new(&["m1", "m2"]);
    let (begun, mut has_begun) = mpsc::channel(64);
    let (dropped, mut was_dropped) = mpsc::channel(64);
    let _m2 = net.start(
        "m2",
        1,
        Arc::new(Fun(move |_, _| {
            let (begun, guard) = (begun.clone(), OnDrop(dropped.clone()));
            async move {
                begun.try_send(()).unwrap();
                std::future::pending::<()>().await;
                drop(guard);
                Answer::of(Reply::Done)
            }
        })),
    );
    let m1 = Arc::new(net.start("m1", 1, echo()));
    within("connected", m1.connected(&m("m2"))).await;
    for request in [query(), write(), Request::Ledger] {
        let caller = {
            let (m1, request) = (m1.clone(), request.clone());
            tokio::spawn(async move { m1.call(&m("m2"), call(request)).await })
        };
        within("the handler begins", has_begun.recv()).await.unwrap();
        caller.abort();
        within("the handler is dropped", was_dropped.recv()).await.unwrap();
    }
    // The deadline does the same, and the caller hears that it does not know.
    let late = m1.call(&m("m2"), call_of(query(), Bytes::new(), Duration::from_millis(300))).await;
    assert!(matches!(late, Err(CallError::NoAnswer { .. })), "{late:?}");
    within("the handler is dropped", was_dropped.recv()).await.unwrap();
    // A caller that is gone altogether, too.
    has_begun.recv().await.unwrap();
    let m1_ = m1.clone();
    let caller = tokio::spawn(async move { m1_.call(&m("m2"), call(query())).await });
    within("the handler begins", has_begun.recv()).await.unwrap();
    m1.shutdown("test").await;
    within("the handler is dropped", was_dropped.recv()).await.unwrap();
    assert!(matches!(caller.await.unwrap(), Err(CallError::NoAnswer { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_hears_nothing_holds_up_no_end() {
    let net = Net::new(&["m1", "m2"]);
    let (m1, m2) = (net.start("m1", 1, echo()), net.start("m2", 1, echo()));
    within("connected", m1.connected(&m("m2"))).await;
    m2.vanish_for_test().await;
    let told = Instant::now();
    m1.shutdown_within("test", Duration::from_millis(100)).await;
    assert!(told.elapsed() < Duration::from_millis(700), "{:?}", told.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_that_takes_no_more_connections_is_told() {
    let net = Net::new(&["m1", "m2"]);
    let config = net.config("m1", 1);
    let essential = config.essential.clone();
    let m1 = net.start_with(config, echo());
    let m2 = net.start("m2", 1, echo());
    within("connected", m2.connected(&m("m1"))).await;
    let ended = async |patience| tokio::time::timeout(patience, essential.failed()).await.ok();
    assert_eq!(ended(Duration::from_millis(200)).await, None);
    // As a socket that fails, this ends what takes connections.
    m1.shutdown("test").await;
    let told = ended(LONG).await.expect("it is told");
    assert!(told.ends_with(" ended: it returned"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_taken_before_a_member_that_waits_for_it_goes() {
    let net = Net::new(&["m1", "m2"]);
    let (handled, mut was_handled) = mpsc::channel(1);
    let m2 = net.start(
        "m2",
        1,
        Arc::new(Fun(move |_, _| {
            let handled = handled.clone();
            async move {
                handled.send(()).await.unwrap();
                Answer { reply: Reply::Done, body: vec![3; 48 << 20].into() }
            }
        })),
    );
    let m1 = Arc::new(net.start("m1", 1, echo()));
    within("connected", m1.connected(&m("m2"))).await;
    let caller = {
        let m1 = m1.clone();
        tokio::spawn(async move { m1.call(&m("m2"), call_of(write(), Bytes::new(), LONG)).await })
    };
    within("handled", was_handled.recv()).await.unwrap();
    within("taken", m2.answered()).await;
    m2.shutdown("test").await;
    assert_eq!(caller.await.unwrap().unwrap().body.len(), 48 << 20);
    within("nothing to wait for", m1.answered()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_have_been_done_is_told_from_what_may_have() {
    let net = Net::new(&["m1", "m2"]);
    let m1 = net.start("m1", 1, echo());
    let not_sent = m1.call(&m("m2"), call(query())).await;
    assert!(matches!(not_sent, Err(CallError::NotSent { .. })), "nobody there: {not_sent:?}");
    let not_sent = m1.call(&m("m9"), call(query())).await;
    assert!(matches!(not_sent, Err(CallError::NotSent { .. })), "no member: {not_sent:?}");
    let past = Call { deadline: Instant::now(), ..call(query()) };
    assert!(matches!(m1.call(&m("m2"), past).await, Err(CallError::NotSent { .. })));
    let m2 = net.start("m2", 1, Arc::new(Fun(|_, _| async { Answer::of(Reply::Refused(Refusal::Draining)) })));
    within("connected", m1.connected(&m("m2"))).await;
    let refused = m1.call(&m("m2"), call(query())).await;
    assert!(matches!(refused, Err(CallError::Refused { refusal: Refusal::Draining, .. })), "{refused:?}");
    m2.shutdown("test").await;
    wait_suspects(&m1, &["m2"]).await;
    let not_sent = m1.call(&m("m2"), call(query())).await;
    assert!(matches!(not_sent, Err(CallError::NotSent { .. })), "gone: {not_sent:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn panicking_handler_is_no_answer_and_others_are_served() {
    let net = Net::new(&["m1", "m2"]);
    let _m2 = net.start(
        "m2",
        1,
        Arc::new(Fun(|_, call: Call| async move {
            assert!(call.body.is_empty(), "on purpose");
            Answer::of(Reply::Done)
        })),
    );
    let m1 = net.start("m1", 1, echo());
    within("connected", m1.connected(&m("m2"))).await;
    let broken = m1.call(&m("m2"), call_of(query(), "x", LONG)).await;
    assert!(matches!(broken, Err(CallError::NoAnswer { .. })), "{broken:?}");
    assert_eq!(m1.call(&m("m2"), call(query())).await.unwrap().reply, Reply::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_and_verbs_of_tomorrow_are_answered() {
    let net = Net::new(&["m1", "m2"]);
    let m1 = net.start("m1", 1, echo());
    let newer = Hello { version: PROTOCOL_VERSION + 1, ..hello("m2") };
    let data = Stranger::new(&net.ca.cert_pem, Some(&net.issue("m2")), ALPN_DATA);
    let data = within("let in", data.join(m1.local_addr(), "m1", &newer)).await.unwrap();
    let payload = query().encode_payload().unwrap();
    let newer = RequestHead { version: PROTOCOL_VERSION + 1, ..head(query().verb(), payload.len()) };
    assert_eq!(raw_call(&data, &[&newer.encode(), &payload]).await, Reply::Enqueued(7), "a known verb");
    let unknown = head(60_000, 1 << 20);
    let reply = raw_call(&data, &[&unknown.encode(), &vec![1; 1 << 20], &vec![2; 20 << 20]]).await;
    assert_eq!(reply, Reply::Refused(Refusal::UnknownVerb(60_000)));
    let wrong = RequestHead { mesh: MeshId([9; 16]), ..head(query().verb(), payload.len()) };
    assert_eq!(raw_call(&data, &[&wrong.encode(), &payload]).await, Reply::Refused(Refusal::WrongMesh));
    let reply = raw_call(&data, &[&head(query().verb(), 3).encode(), b"\xff\xff\xff"]).await;
    assert!(matches!(reply, Reply::Refused(Refusal::Malformed(_))), "{reply:?}");
    let reply = raw_call(&data, &[&head(query().verb(), 2 << 20 | 1).encode()]).await;
    assert!(matches!(reply, Reply::Refused(Refusal::Malformed(_))), "a header over the limit: {reply:?}");
    let reply = raw_call(&data, &[&head(Request::Ledger.verb(), 0).encode()]).await;
    assert!(
        matches!(reply, Reply::Refused(Refusal::Malformed(_))),
        "control calls have their own connection: {reply:?}"
    );

    let control = Stranger::new(&net.ca.cert_pem, Some(&net.issue("m2")), ALPN_CONTROL);
    let control = within("let in", control.join(m1.local_addr(), "m1", &hello("m2"))).await.unwrap();
    let reply = raw_call(&control, &[&head(Request::Ledger.verb(), 0).encode(), &vec![0; 7 << 20]]).await;
    assert!(matches!(reply, Reply::Refused(Refusal::Malformed(_))), "a body over the limit of its class: {reply:?}");
    let reply = raw_call(&control, &[&head(Request::Probe.verb(), 0).encode()]).await;
    assert_eq!(reply, Reply::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_and_garbage_streams_leave_others_served() {
    let net = Net::new(&["m1", "m2", "m3"]);
    let handled = Arc::new(AtomicUsize::new(0));
    let count = handled.clone();
    let m1 = net.start(
        "m1",
        1,
        Arc::new(Fun(move |_, call: Call| {
            count.fetch_add(1, Ordering::SeqCst);
            async { Answer { reply: Reply::Done, body: call.body } }
        })),
    );
    let m3 = net.start("m3", 1, echo());
    within("connected", m3.connected(&m("m1"))).await;
    let stranger = Stranger::new(&net.ca.cert_pem, Some(&net.issue("m2")), ALPN_DATA);
    let bad = within("let in", stranger.join(m1.local_addr(), "m1", &hello("m2"))).await.unwrap();
    let payload = query().encode_payload().unwrap();
    let short = RequestHead { deadline_ms: 500, ..head(query().verb(), payload.len()) };

    let mut open = vec![];
    for round in 0..50_usize {
        let (mut send, recv) = bad.open_bi().await.unwrap();
        match round % 4 {
            // Half a head, half a header, half a body, and then nothing.
            0 => send.write_all(&short.encode()[..20]).await.unwrap(),
            1 => send.write_all(&short.encode()).await.unwrap(),
            2 => send.write_all(&[&short.encode()[..], &payload, b"half a body"].concat()).await.unwrap(),
            // Garbage.
            _ => {
                let _ = send.write_all(&[0xA5; 4_000]).await;
            }
        }
        open.push((send, recv));
    }
    // Garbage on the port itself.
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    for n in 0..500_u16 {
        let bytes: Vec<u8> = (0..n * 2).map(|i| (i.wrapping_mul(31) ^ n) as u8).collect();
        udp.send_to(&bytes, m1.local_addr()).unwrap();
        // One that looks like the first packet of a handshake.
        udp.send_to(&[&[0xC3, 0, 0, 0, 1, 8][..], &[9; 1_300]].concat(), m1.local_addr()).unwrap();
    }
    for _ in 0..20 {
        let answer = within("an answer", m3.call(&m("m1"), call_of(query(), "hello", LONG))).await.unwrap();
        assert_eq!(answer.body, "hello");
    }
    // Each stalled stream is cut at its deadline, and nothing of it was handled.
    for (_send, mut recv) in open {
        match within("the stream is cut", recv.read_to_end(1 << 20)).await {
            Ok(refused) => assert!(!refused.is_empty()),
            Err(e) => assert!(e.to_string().contains("reset"), "{e}"),
        }
    }
    assert_eq!(handled.load(Ordering::SeqCst), 20);
    // The connection itself is still good.
    let reply = raw_call(&bad, &[&head(query().verb(), payload.len()).encode(), &payload]).await;
    assert_eq!(reply, Reply::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_strangers_leave_half_done_hold_up_no_member() {
    let net = Net::new(&["m1", "m2"]);
    let m1 = net.start("m1", 1, echo());
    // Begins handshakes and hears nothing of the answers, as one who only wants the places does.
    let relay = UdpSocket::bind("127.0.0.1:0").unwrap();
    let stranger = Stranger::new(&net.ca.cert_pem, None, ALPN_CONTROL);
    let mut half_done = vec![];
    let mut packet = [0; 2_048];
    for _ in 0..64 {
        half_done.push(stranger.endpoint.connect(relay.local_addr().unwrap(), "m1").unwrap());
        let (len, _) = relay.recv_from(&mut packet).unwrap();
        relay.send_to(&packet[..len], m1.local_addr()).unwrap();
    }
    let m2 = net.start("m2", 1, echo());
    let begun = Instant::now();
    within("connected", m2.connected(&m("m1"))).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}: before the first of them ran out", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_request_is_never_handled() {
    let net = Net::new(&["m1", "m2"]);
    let handled = Arc::new(AtomicUsize::new(0));
    let count = handled.clone();
    let m1 = net.start(
        "m1",
        1,
        Arc::new(Fun(move |_, _| {
            count.fetch_add(1, Ordering::SeqCst);
            async { Answer::of(Reply::Done) }
        })),
    );
    let stranger = Stranger::new(&net.ca.cert_pem, Some(&net.issue("m2")), ALPN_DATA);
    let peer = within("let in", stranger.join(m1.local_addr(), "m1", &hello("m2"))).await.unwrap();
    let payload = query().encode_payload().unwrap();
    let whole = [&head(query().verb(), payload.len()).encode()[..], &payload, b"body"].concat();
    for cut in 0..=whole.len() {
        let (mut send, mut recv) = peer.open_bi().await.unwrap();
        send.write_all(&whole[..cut]).await.unwrap();
        send.reset(quinn::VarInt::from_u32(1)).unwrap();
        assert!(within("the stream is given up", recv.read_to_end(10)).await.is_err(), "{cut}");
    }
    assert_eq!(handled.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_class_has_its_own_limit_on_both_sides() {
    let net = Net::new(&["m1", "m2"]);
    let (gate, under_way) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (open, count, arrived) = (gate.clone(), under_way.clone(), Arc::new(Notify::new()));
    let arrives = arrived.clone();
    let mut config = net.config("m2", 1);
    config.served_max = Some(ClassLimits { control: 4, replicate: 3, query: 4, bulk: 4 });
    let _m2 = net.start_with(
        config,
        Arc::new(Fun(move |_, call: Call| {
            let (open, count, arrives) = (open.clone(), count.clone(), arrives.clone());
            async move {
                if matches!(call.request, Request::Write(_)) {
                    count.fetch_add(1, Ordering::SeqCst);
                    arrives.notify_one();
                    open.acquire().await.unwrap().forget();
                }
                Answer::of(Reply::Done)
            }
        })),
    );
    let m1 = Arc::new(net.start("m1", 1, echo()));
    within("connected", m1.connected(&m("m2"))).await;
    let mut writes = vec![];
    for n in 1..=3 {
        let m1 = m1.clone();
        writes.push(tokio::spawn(async move { m1.call(&m("m2"), call_of(write(), "x", LONG)).await }));
        within("the write arrives", async {
            while under_way.load(Ordering::SeqCst) < n {
                arrived.notified().await;
            }
        })
        .await;
    }
    let busy = m1.call(&m("m2"), call(write())).await;
    assert!(matches!(busy, Err(CallError::Refused { refusal: Refusal::Busy, .. })), "{busy:?}");
    // The other classes, and probes, do not notice.
    for request in [query(), Request::Ledger, Request::Node(NodeQuestion::Stats { internal: false })] {
        assert_eq!(m1.call(&m("m2"), call(request)).await.unwrap().reply, Reply::Done);
    }
    assert!(!m1.is_suspect(&m("m2")));
    gate.add_permits(10);
    for write in writes {
        assert_eq!(write.await.unwrap().unwrap().reply, Reply::Done);
    }
    assert_eq!(m1.call(&m("m2"), call(write())).await.unwrap().reply, Reply::Done);

    // A caller sends no more than its own limit; those beyond wait within their deadlines, and were not sent.
    let before = under_way.load(Ordering::SeqCst);
    gate.forget_permits(100);
    let many: Vec<_> = (0..ClassLimits::CALLED.replicate + 5)
        .map(|_| {
            let m1 = m1.clone();
            tokio::spawn(async move { m1.call(&m("m2"), call_of(write(), "x", Duration::from_secs(2))).await })
        })
        .collect();
    let (mut not_sent, mut no_answer, mut refused) = (0, 0, 0);
    for one in many {
        match one.await.unwrap() {
            Err(CallError::NotSent { .. }) => not_sent += 1,
            Err(CallError::NoAnswer { .. }) => no_answer += 1,
            Err(CallError::Refused { .. }) => refused += 1,
            Ok(_) => panic!("the gate is shut"),
        }
    }
    assert_eq!(no_answer, under_way.load(Ordering::SeqCst) - before, "each that began, and no other, is unknown");
    assert_eq!(not_sent + no_answer + refused, ClassLimits::CALLED.replicate + 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_over_the_memory_are_refused_not_held() {
    let net = Net::new(&["m1", "m2"]);
    let mut config = net.config("m2", 1);
    config.call_memory_bytes = 2 << 20;
    let _m2 = net.start_with(config, echo());
    let m1 = net.start("m1", 1, echo());
    within("connected", m1.connected(&m("m2"))).await;
    for _ in 0..3 {
        let busy = m1.call(&m("m2"), call_of(write(), vec![1; 8 << 20], LONG)).await;
        assert!(matches!(busy, Err(CallError::Refused { refusal: Refusal::Busy, .. })), "{busy:?}");
        let fits = m1.call(&m("m2"), call_of(write(), vec![1; 512 << 10], LONG)).await.unwrap();
        assert_eq!(fits.body.len(), 512 << 10, "what was held is free again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_too_large_together_are_given_up_and_small_ones_are_not() {
    let net = Net::new(&["m1", "m2"]);
    let mut config = net.config("m1", 1);
    config.answer_memory_bytes = 3 << 20;
    let m1 = net.start_with(config, echo());
    let _m2 = net.start("m2", 1, echo());
    within("connected", m1.connected(&m("m2"))).await;
    let ask = async |size: usize| m1.call(&m("m2"), call_of(write(), vec![1; size], LONG)).await;
    let first = ask(2 << 20).await.unwrap();
    let refused = ask(2 << 20).await;
    assert!(
        matches!(&refused, Err(CallError::NoAnswer { reason, .. }) if reason.contains("too large together")),
        "{refused:?}"
    );
    assert_eq!(ask(10_000).await.unwrap().body.len(), 10_000);
    drop(first);
    assert_eq!(ask(2 << 20).await.unwrap().body.len(), 2 << 20, "what was held is free again");
}

/// Takes all the memory for calls that one peer gets, by calls that never end.
async fn hold_all_memory(connection: &quinn::Connection) -> Vec<(quinn::SendStream, quinn::RecvStream)> {
    let payload = write().encode_payload().unwrap();
    let mut held = vec![];
    loop {
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        let sent = async {
            send.write_all(&RequestHead { deadline_ms: 600_000, ..head(write().verb(), payload.len()) }.encode())
                .await?;
            send.write_all(&payload).await?;
            send.write_all(&vec![1; 1 << 20]).await
        };
        // Whoever refuses reads no further and answers; whoever holds it waits for the rest.
        let full = within("taken or refused", async {
            tokio::select! {
                _ = recv.received_reset() => true,
                sent = sent => sent.is_err(),
            }
        });
        let full = full.await || tokio::time::timeout(Duration::from_millis(100), send.stopped()).await.is_ok();
        if full {
            return held;
        }
        held.push((send, recv));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_that_one_peer_holds_is_not_missed_by_others_nor_by_control_calls() {
    let net = Net::new(&["m1", "m2", "m3"]);
    let mut config = net.config("m2", 1);
    config.call_memory_bytes = 16 << 20;
    let m2 = net.start_with(config, echo());
    let m1 = net.start("m1", 1, echo());
    within("connected", m1.connected(&m("m2"))).await;
    let join = async |alpn| {
        let stranger = Stranger::new(&net.ca.cert_pem, Some(&net.issue("m3")), alpn);
        within("let in", stranger.join(m2.local_addr(), "m2", &hello("m3"))).await.unwrap()
    };
    let (data, control) = (join(ALPN_DATA).await, join(ALPN_CONTROL).await);
    let held = hold_all_memory(&data).await;
    assert!((4..=8).contains(&held.len()), "half of it and no more: {}", held.len());
    let reply = raw_call(&control, &[&head(Request::Ledger.verb(), 0).encode(), b"a vote"]).await;
    assert_eq!(reply, Reply::Enqueued(7), "its own votes");
    let vote = within("a vote", m1.call(&m("m2"), call_of(Request::Ledger, "a vote", LONG))).await.unwrap();
    assert_eq!(vote.body, "a vote");
    let documents = within("documents", m1.call(&m("m2"), call_of(write(), vec![1; 3 << 20], LONG))).await.unwrap();
    assert_eq!(documents.body.len(), 3 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn header_that_was_only_announced_takes_no_memory() {
    let net = Net::new(&["m1", "m2"]);
    let mut config = net.config("m1", 1);
    config.call_memory_bytes = 1 << 20;
    let m1 = net.start_with(config, echo());
    let stranger = Stranger::new(&net.ca.cert_pem, Some(&net.issue("m2")), ALPN_DATA);
    let peer = within("let in", stranger.join(m1.local_addr(), "m1", &hello("m2"))).await.unwrap();
    let mut open = vec![];
    for _ in 0..4 {
        let (mut send, recv) = peer.open_bi().await.unwrap();
        send.write_all(&head(write().verb(), 512 << 10).encode()).await.unwrap();
        open.push((send, recv));
    }
    let payload = query().encode_payload().unwrap();
    let whole = [&head(query().verb(), payload.len()).encode()[..], &payload, b"body"];
    assert_eq!(raw_call(&peer, &whole).await, Reply::Enqueued(7));
}

#[tokio::test(flavor = "multi_thread")]
async fn suspects_appear_and_clear() {
    let net = Net::new(&["m1", "m2", "m3"]);
    let m1 = net.start("m1", 1, echo());
    wait_suspects(&m1, &["m2", "m3"]).await;
    let m2 = net.start("m2", 1, echo());
    let m3 = net.start("m3", 1, echo());
    wait_suspects(&m1, &[]).await;
    assert!(!m1.is_suspect(&m("m1")) && !m1.is_suspect(&m("m9")), "neither the member itself nor strangers");
    // A clean goodbye is heard at once, a kill by the probes.
    m2.shutdown("going down").await;
    wait_suspects(&m1, &["m2"]).await;
    m3.vanish_for_test().await;
    let killed = Instant::now();
    wait_suspects(&m1, &["m2", "m3"]).await;
    assert!(killed.elapsed() < Duration::from_secs(5), "by probes, not by the idle timeout");
    drop((m2, m3));
    let _m2 = net.start("m2", 2, echo());
    let _m3 = net.start("m3", 2, echo());
    wait_suspects(&m1, &[]).await;
    within("data, too", m1.connected(&m("m3"))).await;
    assert_eq!(m1.status()[&m("m3")].start, Some(2));
    assert!(m1.call(&m("m3"), call(query())).await.is_ok());
    assert!(m1.status()[&m("m3")].rtt.is_some() || m1.status()[&m("m3")].control);
}

#[tokio::test(flavor = "multi_thread")]
async fn restarted_peer_ends_its_old_connections_at_once() {
    let net = Net::new(&["m1", "m2"]);
    let mut config = net.config("m1", 1);
    // No probe gets in the way: only the reset can tell, and the idle timeout is far off.
    config.probe_interval = Duration::from_secs(60);
    let m1 = net.start_with(config, echo());
    let m2 = net.start("m2", 1, echo());
    wait_suspects(&m1, &[]).await;
    within("connected", m1.connected(&m("m2"))).await;
    m2.vanish_for_test().await;
    drop(m2);
    // The new process does not reach m1, so that its hello can't tell either.
    let nowhere = vec![PeerAddress { id: m("m1"), address: net.address("nobody").to_string() }];
    let _m2 = start_when_free(&net.config("m2", 2), &nowhere, &echo());
    within("the new process is known", async {
        let mut suspects = m1.suspects();
        while m1.status()[&m("m2")].start != Some(2) {
            suspects.changed().await.unwrap();
        }
    })
    .await;
    let resets = m1.counters().resets.load(Ordering::Relaxed);
    assert!(resets > 0, "the old connections ended by a reset, not by the idle timeout");
    within("connected", m1.connected(&m("m2"))).await;
    assert!(m1.call(&m("m2"), call(query())).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_goes_to_a_process_that_is_known_to_be_over() {
    let net = Net::new(&["m1", "m2"]);
    let m1 = net.start("m1", 1, echo());
    let m2 = net.start("m2", 1, echo());
    within("connected", m1.connected(&m("m2"))).await;
    // Two probes on, the data connection is quiet: nothing but a call or its keep-alive would show that it leads nowhere.
    let rtt = || m1.status()[&m("m2")].rtt;
    within("two probes", async {
        let mut seen = BTreeSet::new();
        while seen.len() < 3 {
            seen.insert(rtt());
            tokio::task::yield_now().await;
        }
    })
    .await;
    m2.vanish_for_test().await;
    drop(m2);
    let _m2 = net.start("m2", 2, echo());
    within("the new process is known", async {
        let mut suspects = m1.suspects();
        while m1.status()[&m("m2")].start != Some(2) {
            suspects.changed().await.unwrap();
        }
    })
    .await;
    within("an answer", async {
        loop {
            match m1.call(&m("m2"), call(query())).await {
                Ok(_) => break,
                Err(CallError::NotSent { .. }) => tokio::task::yield_now().await,
                Err(e) => panic!("sent to the old process: {e}"),
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_reloaded() {
    let net = Net::new(&["m1", "m2"]);
    let m1 = net.start("m1", 1, echo());
    let m2 = net.start("m2", 1, echo());
    within("connected", m1.connected(&m("m2"))).await;

    // A broken file changes nothing and is reported.
    fs::write(net.files("m1").cert, "half a certificate").unwrap();
    let e = m1.reload_tls().unwrap_err().to_string();
    assert!(e.contains("m1-cert.pem"), "{e}");
    assert!(m1.call(&m("m2"), call(query())).await.is_ok());

    // The whole mesh moves to a new CA; nobody calls `reload_tls`.
    let old_ca = net.ca.cert_pem.clone();
    let new_ca = pki::create_ca("new", 10).unwrap();
    for id in ["m1", "m2"] {
        let pair = pki::issue(&new_ca.cert_pem, &new_ca.key_pem, &m(id), &[], 5).unwrap();
        net.write_files(id, &new_ca.cert_pem, &pair);
    }
    let pair = pki::issue(&new_ca.cert_pem, &new_ca.key_pem, &m("m2"), &[], 5).unwrap();
    let friend = Stranger::new(&new_ca.cert_pem, Some(&pair), ALPN_DATA);
    within("the new certificates are used", async {
        while friend.join(m1.local_addr(), "m1", &hello("m2")).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let old = Stranger::new(&old_ca, Some(&net.issue("m2")), ALPN_DATA);
    assert!(within("refused", old.join(m1.local_addr(), "m1", &hello("m2"))).await.is_err());
    drop(friend);
    // And the members still find each other with them.
    m2.shutdown("restart").await;
    drop(m2);
    wait_suspects(&m1, &["m2"]).await;
    let tls = net.write_files("m2", &new_ca.cert_pem, &pair);
    let mut config = MeshConfig::new(m("m2"), MESH, net.address("m2"), tls, [2; 64], 2);
    config.probe_interval = Duration::from_millis(100);
    let _m2 = net.start_with(config, echo());
    wait_suspects(&m1, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn start_names_what_is_wrong() {
    let net = Net::new(&["m1", "m2"]);
    let start = |config, members| Mesh::start(config, members, None, tokio::runtime::Handle::current()).err().unwrap();
    let taken = UdpSocket::bind(net.address("m1")).unwrap();
    let e = start(net.config("m1", 1), net.addresses()).to_string();
    assert!(e.contains("can't listen on UDP") && e.contains("17781"), "{e}");
    drop(taken);
    let bad = vec![PeerAddress { id: m("m2"), address: "nowhere".into() }];
    let e = start(net.config("m1", 1), bad).to_string();
    assert!(e.contains("member m2") && e.contains("no port"), "{e}");
    let e = start(net.config("m1", 1), [net.addresses(), net.addresses()].concat()).to_string();
    assert!(e.contains("listed twice"), "{e}");
    let mut config = net.config("m1", 1);
    config.member = m("m2");
    let e = start(config, net.addresses()).to_string();
    assert!(e.contains("m1-cert.pem") && e.contains("does not name the member `m2`"), "{e}");
}

fn gossip_config(start: u64) -> GossipConfig {
    GossipConfig {
        interval: Duration::from_millis(100),
        start,
        next_start: Arc::new(|| Err("no further start is expected".into())),
    }
}

fn says(version: &str) -> MemberGossip {
    MemberGossip { version: version.into(), state: MemberState::Active, ..MemberGossip::default() }
}

async fn wait_members(gossip: &Gossip, what: &str, want: impl FnMut(&Members) -> bool) {
    let mut members = gossip.members();
    if tokio::time::timeout(LONG, members.wait_for(want)).await.is_err() {
        panic!("never happened: {what}; {:?}", gossip.members().borrow());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_answers_again_is_called_at_once() {
    let net = Net::new(&["m1", "m2"]);
    let m1 = net.start("m1", 1, echo());
    for start in 1..=6 {
        let m2 = net.start("m2", start, echo());
        wait_suspects(&m1, &[]).await;
        // Its data connection may be made later than the one by which it is known to be there.
        let answer = m1.call(&m("m2"), call_of(write(), vec![1; 100], LONG)).await;
        assert_eq!(answer.unwrap().body.len(), 100, "start {start}");
        m2.shutdown("restart").await;
        wait_suspects(&m1, &["m2"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gossip_converges_and_a_restart_replaces_what_was_said() {
    let net = Net::new(&["m1", "m2", "m3"]);
    let meshes: Vec<_> = ["m1", "m2", "m3"].map(|id| net.start(id, 1, echo())).into();
    let mut gossips: Vec<_> = meshes
        .iter()
        .zip(["v1", "v2", "v3"])
        .map(|(mesh, v)| Gossip::start(mesh, gossip_config(1), &says(v)).unwrap())
        .collect();
    assert!(Gossip::start(&meshes[0], gossip_config(1), &says("v1")).is_err(), "there is one");
    for gossip in &gossips {
        wait_members(gossip, "all three", |members| {
            let said: Vec<_> = members.iter().map(|(id, g)| (id.as_str(), g.version.as_str())).collect();
            said == [("m1", "v1"), ("m2", "v2"), ("m3", "v3")]
        })
        .await;
    }
    // What changes is heard, and what is taken back, too.
    gossips[1].publish(&MemberGossip { node_error: Some("down".into()), load: 9, ..says("v2") }).unwrap();
    wait_members(&gossips[0], "the change", |members| {
        members.get(&m("m2")).is_some_and(|g| g.load == 9 && g.node_error.as_deref() == Some("down"))
    })
    .await;
    gossips[1].publish(&says("v2")).unwrap();
    wait_members(&gossips[2], "taken back", |ms| {
        ms.get(&m("m2")).is_some_and(|g| g.node_error.is_none() && g.load == 0)
    })
    .await;
    let too_much = MemberGossip {
        unserved: (0..500).map(|n| (PhysicalIndex::new(format!("p__m{n:08x}")).unwrap(), ShardSet::all(64))).collect(),
        ..says("v2")
    };
    assert!(gossips[1].publish(&too_much).is_err());

    // m3 is killed and comes back: its new incarnation says less, and nothing of the old one stays.
    gossips[2].publish(&MemberGossip { node_error: Some("old".into()), ..says("v3") }).unwrap();
    wait_members(&gossips[0], "the old one", |ms| ms.get(&m("m3")).is_some_and(|g| g.node_error.is_some())).await;
    drop(gossips.pop());
    let mut meshes = meshes;
    let m3 = meshes.pop().unwrap();
    m3.vanish_for_test().await;
    drop(m3);
    let m3 = net.start("m3", 2, echo());
    let gossip3 = Gossip::start(&m3, gossip_config(2), &says("v3.1")).unwrap();
    for gossip in gossips.iter().chain([&gossip3]) {
        wait_members(gossip, "the new incarnation", |members| {
            members.len() == 3 && members.get(&m("m3")).is_some_and(|g| g.version == "v3.1" && g.node_error.is_none())
        })
        .await;
    }
    // A member that stays away is no longer among the living.
    drop(gossip3);
    m3.shutdown("going down").await;
    wait_members(&gossips[0], "m3 is gone", |members| !members.contains_key(&m("m3"))).await;
}

/// A digest entry and a message in chitchat's form.
fn gossip_message(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    [&45_139_u16.to_le_bytes()[..], &[0, kind], &parts.concat()].concat()
}

fn gossip_id(id: &str, generation: u64, address: SocketAddr) -> Vec<u8> {
    let SocketAddr::V6(address) = address else { panic!("gossip addresses are IPv6") };
    let len = u16::try_from(id.len()).unwrap().to_le_bytes();
    let (generation, port) = (generation.to_le_bytes(), address.port().to_le_bytes());
    [&len[..], id.as_bytes(), &generation, &[6], &address.ip().octets(), &port].concat()
}

fn gossip_text(text: &str) -> Vec<u8> {
    [&u16::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes()].concat()
}

async fn send_gossip(connection: &quinn::Connection, message: &[u8]) {
    let mut send = connection.open_uni().await.unwrap();
    // Too much is stopped by the other side.
    let _ = send.write_all(message).await;
    let _ = send.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn gossip_outlives_crafted_messages_and_ignores_strangers() {
    let net = Net::new(&["m1", "m2", "m3"]);
    let m1 = net.start("m1", 1, echo());
    let m3 = net.start("m3", 1, echo());
    let starts = Arc::new(AtomicUsize::new(1));
    let next = starts.clone();
    let config = GossipConfig {
        next_start: Arc::new(move || Ok(next.fetch_add(1, Ordering::SeqCst) as u64 + 1)),
        ..gossip_config(1)
    };
    let gossip1 = Gossip::start(&m1, config, &says("v1")).unwrap();
    let gossip3 = Gossip::start(&m3, gossip_config(1), &says("v3")).unwrap();
    let both = |members: &Members| members.len() == 2 && members[&m("m1")].version == "v1";
    wait_members(&gossip1, "both", both).await;
    wait_members(&gossip3, "both", both).await;

    let evil = Stranger::new(&net.ca.cert_pem, Some(&net.issue("m2")), ALPN_CONTROL);
    let evil = within("let in", evil.join(m1.local_addr(), "m1", &hello("m2"))).await.unwrap();
    // Garbage of every size.
    for n in [0, 1, 3, 4, 5, 100, 4_000, 65_536, 70_000, 1 << 20] {
        send_gossip(&evil, &vec![0xAB; n]).await;
        send_gossip(&evil, &gossip_message(1, &[&vec![0; n]])).await;
    }
    // A digest full of strangers, and of members under wrong addresses.
    let numbers = [1_u64, 0, 0].map(u64::to_le_bytes).concat();
    let mut entries = vec![];
    for n in 0..500_u16 {
        entries.extend(gossip_id(&format!("x{n}"), 9, gossip_address(&m("x1"))));
        entries.extend(&numbers);
    }
    entries.extend(gossip_id("m3", 99, gossip_address(&m("m2"))));
    entries.extend(&numbers);
    let cluster = gossip_text(&MESH.to_string());
    send_gossip(&evil, &gossip_message(0, &[&501_u16.to_le_bytes(), &entries, &cluster])).await;

    // Introduces an incarnation of m2, and then tells of it in a way that chitchat does not survive.
    let id = gossip_id("m2", 5, gossip_address(&m("m2")));
    send_gossip(&evil, &gossip_message(0, &[&1_u16.to_le_bytes(), &id, &numbers, &cluster])).await;
    let node = [&[0][..], &id, &[0; 16]].concat();
    let value = [&[1][..], &gossip_text("k"), &gossip_text("v"), &5_u64.to_le_bytes(), &[0]].concat();
    let lower = [&[2][..], &1_u64.to_le_bytes()].concat();
    let ops = [node, value, lower].concat();
    let block = [&[2][..], &u16::try_from(ops.len()).unwrap().to_le_bytes(), &ops, &[0]].concat();
    within("chitchat ends", async {
        while m1.counters().gossip_restarts.load(Ordering::SeqCst) == 0 {
            // The two messages may overtake each other.
            send_gossip(&evil, &gossip_message(2, &[&block])).await;
            tokio::task::yield_now().await;
        }
    })
    .await;
    gossip1.publish(&says("v1.1")).unwrap();
    wait_members(&gossip3, "m1 under its next start", |members| {
        members.get(&m("m1")).is_some_and(|g| g.version == "v1.1")
    })
    .await;
    wait_members(&gossip1, "m3 again", |members| members.contains_key(&m("m3"))).await;
    assert!(starts.load(Ordering::SeqCst) >= 2);
    assert!(m1.counters().gossip_malformed.load(Ordering::SeqCst) > 0);
    // A member that never gossiped by itself is not there, whatever was said of it; nor is any stranger.
    let known = gossip1.members().borrow().keys().map(|id| id.as_str().to_owned()).collect::<Vec<_>>();
    assert_eq!(known, ["m1", "m3"]);
    within("connected", m3.connected(&m("m1"))).await;
    assert!(m3.call(&m("m1"), call(query())).await.is_ok(), "and calls never noticed");
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_writes_holds_up_neither_control_calls_nor_probes() {
    // Longer than a busy machine stops a thread for, and much shorter than the flood.
    const SOON: Duration = Duration::from_secs(2);
    let net = Net::new(&["m1", "m2"]);
    let config = |id| MeshConfig { probe_interval: SOON / 4, call_memory_bytes: 32 << 20, ..net.config(id, 1) };
    let m2 = net.start_with(config("m2"), echo());
    let m1 = Arc::new(net.start_with(config("m1"), echo()));
    for (mesh, to) in [(&*m1, "m2"), (&m2, "m1")] {
        within("connected", mesh.connected(&m(to))).await;
        wait_suspects(mesh, &[]).await;
    }
    let suspects = [m1.suspects(), m2.suspects()].map(|mut s| {
        s.mark_unchanged();
        s
    });
    let lost = || [&*m1, &m2].map(|mesh| mesh.counters().probes_lost.load(Ordering::Relaxed));
    let lost_before = lost();
    let (body, busy) = (Bytes::from(vec![7; 4 << 20]), Arc::new(AtomicUsize::new(0)));
    let flood: Vec<_> = (0..24)
        .map(|_| {
            let (m1, body, busy) = (m1.clone(), body.clone(), busy.clone());
            tokio::spawn(async move {
                loop {
                    match m1.call(&m("m2"), call_of(write(), body.clone(), LONG * 4)).await {
                        Err(CallError::Refused { refusal: Refusal::Busy, .. }) => {
                            busy.fetch_add(1, Ordering::Relaxed);
                        }
                        other => return other.map(|a| a.body.len()),
                    }
                }
            })
        })
        .collect();
    let (mut answered, mut slowest) = (0, Duration::ZERO);
    while !flood.iter().all(tokio::task::JoinHandle::is_finished) {
        let sent = Instant::now();
        let vote = call_of(Request::Ledger, "a vote", LONG);
        within("a control call in the flood", m1.call(&m("m2"), vote)).await.unwrap();
        (answered, slowest) = (answered + 1, slowest.max(sent.elapsed()));
    }
    assert!(answered > 0);
    assert!(slowest < SOON, "{slowest:?}");
    for one in flood {
        assert_eq!(one.await.unwrap().unwrap(), 4 << 20);
    }
    assert!(busy.load(Ordering::Relaxed) > 0, "the memory was full");
    assert_eq!(lost(), lost_before, "every probe was answered before the next");
    assert!(suspects.iter().all(|s| !s.has_changed().unwrap()), "nobody was suspected");
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_mesh_connects_and_each_pair_once() {
    let names = ["m1", "m2", "m3", "m4", "m5"];
    let net = Net::new(&names);
    let meshes: Vec<_> = names.iter().map(|id| net.start(id, 1, echo())).collect();
    for mesh in &meshes {
        wait_suspects(mesh, &[]).await;
        for id in names {
            within("connected", mesh.connected(&m(id))).await;
        }
    }
    for (mesh, own) in meshes.iter().zip(names) {
        for to in names.into_iter().filter(|to| *to != own) {
            assert!(mesh.call(&m(to), call(query())).await.is_ok(), "{own} to {to}");
        }
        assert_eq!(mesh.counters().connections.load(Ordering::Relaxed), 8, "two to each peer, and none again");
    }
}
