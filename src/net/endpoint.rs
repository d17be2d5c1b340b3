//! The UDP sockets, the thread that drives them, and QUIC's parameters.
//!
//! Rule: the endpoint that listens, and all connections over it, are driven by one thread of their own, so that probes are
//! answered while the rest of the process is busy. The data connections that this member dials have a socket of their own
//! on the main runtime: who calls a peer then sends the packets and takes the answer itself. The keys of stateless resets and of connection ids come from the store: a restarted
//! process answers packets of its former connections with a reset. Must not know: calls.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    AckFrequencyConfig, ClientConfig, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig,
    TransportConfig, VarInt,
};
// `quinn` re-exports the trait of connection id generators, but not the generators.
use quinn_proto::HashedConnectionIdGenerator;
use tokio::runtime;
use tokio::sync::watch;

use super::peers::MeshError;
use super::window;

/// Bytes of the secret from which reset and connection id keys are taken.
pub const RESET_SECRET_BYTES: usize = 64;

/// Calls of one peer under way on the data connection, of all classes. Above the sum of the classes' limits.
pub const DATA_STREAMS_MAX: u32 = 1_024;
/// Calls of one peer under way on the control connection.
pub const CONTROL_STREAMS_MAX: u32 = 256;
/// Gossip messages of one peer under way.
pub const GOSSIP_STREAMS_MAX: u32 = 32;

/// A control connection without a sign of life for so long is lost.
const CONTROL_IDLE: Duration = Duration::from_secs(5);
/// A data connection without a sign of life for so long is lost.
const DATA_IDLE: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Members are near one another; a lost first packet is to be sent again soon.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Bytes of one stream under way. More than bandwidth × delay of 10 Gbit/s over 5 ms.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
/// Bytes of one connection under way, received and not yet read, or sent and not yet confirmed.
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
const CONTROL_STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONTROL_WINDOW_BYTES: u32 = 16 << 20;
/// Largest packet that is tried where the network carries it (loopback, jumbo frames): fewer packets are less work. A send
/// joins up to ten, and ten of them still fit what UDP carries at once.
const PACKET_MAX_BYTES: u16 = 6_400;
/// Packets that a peer may take in before it confirms them; a confirmation costs a packet of its own.
const ACK_AFTER: u32 = 20;
/// The longest that a peer may wait to confirm fewer.
const ACK_DELAY: Duration = Duration::from_millis(5);
/// Between two stateless resets. A reset is smaller than the packet that it answers, and few but former peers can make
/// a packet that is answered.
const RESET_INTERVAL_MIN: Duration = Duration::from_millis(1);
/// What is asked of the system for the socket; it may give less.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Connections whose handshake has not begun that are kept waiting, and bytes kept for them.
const INCOMING_MAX: usize = 256;
const INCOMING_BUFFER_BYTES: u64 = 64 << 10;
const INCOMING_BUFFER_TOTAL_BYTES: u64 = 4 << 20;
/// How long a closing endpoint waits at most until its peers have heard.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// Why a connection was closed, as peers see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCode {
    /// The member is going down.
    Shutdown = 1,
    /// The hello was refused; the reason says why.
    Refused = 2,
    /// A newer connection takes this one's place.
    Replaced = 3,
}

/// Why a stream was reset or is read no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetCode {
    /// Whoever waits for the answer no longer wants it, or the handler is gone.
    Dropped = 1,
    /// The deadline has passed.
    Deadline = 2,
    /// What is needed has been read; an answer follows or stands.
    Enough = 3,
}

impl From<CloseCode> for VarInt {
    fn from(code: CloseCode) -> Self {
        VarInt::from_u32(code as u32)
    }
}

impl From<ResetCode> for VarInt {
    fn from(code: ResetCode) -> Self {
        VarInt::from_u32(code as u32)
    }
}

/// What both sides of a connection have in common.
fn transport() -> TransportConfig {
    let mut t = TransportConfig::default();
    t.initial_rtt(INITIAL_RTT).datagram_receive_buffer_size(None);
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(PACKET_MAX_BYTES);
    t.mtu_discovery_config(Some(mtu));
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_AFTER)).max_ack_delay(Some(ACK_DELAY));
    t.ack_frequency_config(Some(acks));
    t.congestion_controller_factory(Arc::new(window::Config));
    t
}

fn idle(timeout: Duration) -> Option<IdleTimeout> {
    IdleTimeout::try_from(timeout).ok()
}

fn server_transport() -> TransportConfig {
    let mut t = transport();
    // Before its hello a peer may open the one stream for it; then `server` raises both.
    t.max_concurrent_bidi_streams(VarInt::from_u32(1)).max_concurrent_uni_streams(VarInt::from_u32(0));
    t.max_idle_timeout(idle(DATA_IDLE));
    t.stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES));
    t.receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES)).send_window(CONNECTION_WINDOW_BYTES.into());
    t
}

/// A peer never opens streams on a connection that this member dialled.
fn client_transport(control: bool) -> TransportConfig {
    let mut t = transport();
    t.max_concurrent_bidi_streams(VarInt::from_u32(0)).max_concurrent_uni_streams(VarInt::from_u32(0));
    t.keep_alive_interval(Some(KEEP_ALIVE));
    let (idle_timeout, stream, connection) = if control {
        (CONTROL_IDLE, CONTROL_STREAM_WINDOW_BYTES, CONTROL_WINDOW_BYTES)
    } else {
        (DATA_IDLE, STREAM_WINDOW_BYTES, CONNECTION_WINDOW_BYTES)
    };
    t.max_idle_timeout(idle(idle_timeout));
    t.stream_receive_window(VarInt::from_u32(stream));
    t.receive_window(VarInt::from_u32(connection)).send_window(connection.into());
    t
}

/// The server side of every connection that a peer opens.
pub fn server_config(crypto: Arc<QuicServerConfig>) -> ServerConfig {
    let mut config = ServerConfig::with_crypto(crypto);
    config.transport_config(Arc::new(server_transport())).migration(false);
    config.max_incoming(INCOMING_MAX).incoming_buffer_size(INCOMING_BUFFER_BYTES);
    config.incoming_buffer_size_total(INCOMING_BUFFER_TOTAL_BYTES);
    config
}

/// The client side of a connection to a peer.
pub fn client_config(crypto: Arc<QuicClientConfig>, control: bool) -> ClientConfig {
    let mut config = ClientConfig::new(crypto);
    config.transport_config(Arc::new(client_transport(control)));
    config
}

fn endpoint_config(secret: &[u8; RESET_SECRET_BYTES]) -> EndpointConfig {
    let (reset, rest) = secret.split_at(32);
    let mut config = EndpointConfig::new(Arc::new(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, reset)));
    let cid_key = u64::from_be_bytes(*rest.first_chunk().expect("64 bytes without 32 are more than 8"));
    // All connections of all peers are to end at once; the default would let only 50 of them end in a second.
    config.min_reset_interval(RESET_INTERVAL_MIN);
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(cid_key)));
    config
        .max_udp_payload_size(PACKET_MAX_BYTES)
        .expect("a constant between QUIC's least and greatest size of a packet");
    config
}

/// How the thread is to end.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stop {
    /// Not yet.
    Run,
    /// Tell all peers, with this reason, and wait so long until they have heard.
    Close(String, Duration),
    /// Say nothing, as a killed process does.
    Vanish,
}

/// The mesh thread, as the rest of the process sees it.
pub struct MeshThread {
    /// Runs what has to run on the mesh thread.
    pub runtime: runtime::Handle,
    /// The endpoint; its driver lives on the mesh thread.
    pub endpoint: Endpoint,
    /// For the data connections that this member dials; takes none. Its driver lives on the main runtime.
    pub calls: Endpoint,
    /// Where it listens.
    pub local_addr: SocketAddr,
    /// Segments that one send may carry (1: no offload).
    pub gso_segments: usize,
    stop: watch::Sender<Stop>,
    done: watch::Receiver<bool>,
    vanished: Arc<AtomicBool>,
}

impl MeshThread {
    /// Waits until the socket for calls is closed or has failed.
    pub fn calls_ended(&self) -> impl Future<Output = ()> + use<> {
        let calls = self.calls.clone();
        // Nobody is let in: the endpoint has no server's configuration.
        async move { while calls.accept().await.is_some() {} }
    }

    /// Closes all connections with a reason and ends the thread; waits until it has ended, about `patience` and about a
    /// second at most.
    pub async fn close(&self, reason: &str, patience: Duration) {
        self.stop.send_if_modified(|s| {
            let first = *s == Stop::Run;
            if first {
                *s = Stop::Close(reason.to_owned(), patience.min(CLOSE_WAIT));
            }
            first
        });
        self.ended().await;
    }

    /// Ends the thread without a word to anyone, as a kill does.
    pub async fn vanish(&self) {
        self.vanished.store(true, Ordering::SeqCst);
        self.stop.send_replace(Stop::Vanish);
        self.ended().await;
    }

    async fn ended(&self) {
        // An error says that the thread is gone.
        let _ = self.done.clone().wait_for(|done| *done).await;
    }
}

impl Drop for MeshThread {
    fn drop(&mut self) {
        self.stop.send_if_modified(|s| {
            let first = *s == Stop::Run;
            if first {
                *s = Stop::Close("the member is gone".to_owned(), CLOSE_WAIT);
            }
            first
        });
    }
}

/// quinn on the main runtime, wherever it is called.
#[derive(Debug)]
struct OnMain {
    main: runtime::Handle,
    /// Nothing is driven any more.
    vanished: Arc<AtomicBool>,
}

impl quinn::Runtime for OnMain {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn quinn::AsyncTimer>> {
        let _on_it = self.main.enter();
        quinn::TokioRuntime.new_timer(at)
    }

    fn spawn(&self, mut driver: Pin<Box<dyn Future<Output = ()> + Send>>) {
        let vanished = self.vanished.clone();
        drop(self.main.spawn(poll_fn(move |cx| match vanished.load(Ordering::Relaxed) {
            true => Poll::Ready(()),
            false => driver.as_mut().poll(cx),
        })));
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        let _on_it = self.main.enter();
        quinn::TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        quinn::TokioRuntime.now()
    }
}

/// Binds the port and starts the thread; what this member dials for its calls is driven on `main`.
///
/// # Errors
/// [`MeshError::Listen`] or [`MeshError::Thread`].
pub fn start(
    listen: SocketAddr,
    secret: &[u8; RESET_SECRET_BYTES],
    crypto: Arc<QuicServerConfig>,
    main: &runtime::Handle,
) -> Result<MeshThread, MeshError> {
    let socket = UdpSocket::bind(listen).map_err(|reason| MeshError::Listen { listen, reason })?;
    let runtime =
        runtime::Builder::new_current_thread().enable_all().build().map_err(|source| MeshError::Thread { source })?;
    let (endpoint, gso_segments) = {
        let _on_it = runtime.enter();
        endpoint_on(socket, endpoint_config(secret), Some(server_config(crypto)), Arc::new(quinn::TokioRuntime))
    }
    .map_err(|reason| MeshError::Listen { listen, reason })?;
    let vanished = Arc::new(AtomicBool::new(false));
    let on_main = Arc::new(OnMain { main: main.clone(), vanished: vanished.clone() });
    let any_port = SocketAddr::new(listen.ip(), 0);
    let (calls, _) = UdpSocket::bind(any_port)
        .and_then(|socket| endpoint_on(socket, endpoint_config(secret), None, on_main))
        .map_err(|reason| MeshError::Listen { listen: any_port, reason })?;
    let local_addr = endpoint.local_addr().map_err(|reason| MeshError::Listen { listen, reason })?;

    let (stop, mut stopped) = watch::channel(Stop::Run);
    let (ended, done) = watch::channel(false);
    let handle = runtime.handle().clone();
    let on_thread = [endpoint.clone(), calls.clone()];
    let body = move || {
        runtime.block_on(async {
            let stop = match stopped.wait_for(|s| *s != Stop::Run).await {
                Ok(stop) => stop.clone(),
                Err(_) => Stop::Close("the member is gone".to_owned(), CLOSE_WAIT),
            };
            if let Stop::Close(reason, patience) = stop {
                for endpoint in &on_thread {
                    endpoint.close(CloseCode::Shutdown.into(), reason.as_bytes());
                }
                // Who has not heard by then finds out by its probes.
                let idle = join_all(on_thread.iter().map(Endpoint::wait_idle));
                let _ = tokio::time::timeout(patience, idle).await;
            }
        });
        drop(on_thread);
        runtime.shutdown_background();
        ended.send_replace(true);
    };
    std::thread::Builder::new()
        .name("miroir-mesh".to_owned())
        .spawn(body)
        .map_err(|source| MeshError::Thread { source })?;
    Ok(MeshThread { runtime: handle, endpoint, calls, local_addr, gso_segments, stop, done, vanished })
}

fn endpoint_on(
    socket: UdpSocket,
    config: EndpointConfig,
    server: Option<ServerConfig>,
    runtime: Arc<dyn quinn::Runtime>,
) -> io::Result<(Endpoint, usize)> {
    let state = quinn::udp::UdpSocketState::new((&socket).into())?;
    for asked in [
        state.set_recv_buffer_size((&socket).into(), SOCKET_BUFFER_BYTES),
        state.set_send_buffer_size((&socket).into(), SOCKET_BUFFER_BYTES),
    ] {
        if let Err(error) = asked {
            tracing::debug!(%error, "the system keeps its own size of the socket's buffers");
        }
    }
    let socket = runtime.wrap_udp_socket(socket)?;
    let gso_segments = socket.max_transmit_segments();
    let endpoint = Endpoint::new_with_abstract_socket(config, server, socket, runtime)?;
    Ok((endpoint, gso_segments))
}
