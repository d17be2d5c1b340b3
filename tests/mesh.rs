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
use miroir::net::peers::{ClassLimits, Mesh, MeshConfig, PeerAddress};
use miroir::net::tls::{ALPN_CONTROL, ALPN_DATA, TlsFiles};
use miroir::net::{Answer, Call, CallError, Handler, Peers, TraceId};
use miroir::pki::{self, CaPair, MemberPair};
use miroir::types::{MemberId, MeshId, PhysicalIndex, ShardSet, TaskUid};
use miroir::wire::frame::{ANSWER_HEAD_BYTES, Hello, PROTOCOL_VERSION, RequestHead};
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
        Mesh::start(config, self.addresses(), Some(handler), tokio::runtime::Handle::current()).unwrap()
    }

    fn start(&self, id: &str, start: u64, handler: Arc<dyn Handler>) -> Mesh {
        self.start_with(self.config(id, start), handler)
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
    Arc::new(Fun(async |_from: MemberId, call: Call| Answer { reply: Reply::Enqueued(7), body: call.body }) as Fun<_>)
}

fn query() -> Request {
    Request::Task(TaskUid(1))
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

fn call(request: Request) -> Call {
    call_of(request, Bytes::new(), LONG)
}

async fn wait_suspects(mesh: &Mesh, want: &[&str]) {
    let want: BTreeSet<_> = want.iter().map(|s| m(s)).collect();
    let mut suspects = mesh.suspects();
    within(&format!("suspects {want:?}"), suspects.wait_for(|s| *s == want)).await.unwrap();
}
