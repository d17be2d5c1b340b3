//! The HTTP client of the own Meilisearch: the only code that talks to the node.
//!
//! It tells "certainly not sent" from "perhaps carried out", because writes depend on it. Must not know: what a request
//! means, retries, other members.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::runtime;

use super::memory::{ANSWER_MEMORY_DEFAULT_BYTES, ANSWERS_TOO_LARGE, Held, Share};
use crate::names::Names;
use crate::types::limits::CALL_BODY_MAX_BYTES;

/// How long a connection to the node may take; it is on the same machine.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections that are kept for later; more are closed after their request.
const IDLE_MAX: usize = 64;
/// A connection that nobody used for so long is not used again: nodes hang up after 5 s by default.
const IDLE_FOR: Duration = Duration::from_secs(4);
/// Asks a node for the values that it sorted by (semantics of `Meili-Proxy-Search`).
const PROXY_SEARCH: HeaderName = HeaderName::from_static("meili-proxy-search");

/// One request to the node.
#[derive(Debug, Clone)]
pub struct NodeRequest {
    /// HTTP method.
    pub method: Method,
    /// Path and query, beginning with `/`, already percent-encoded.
    pub path: String,
    /// Media type of the body, if there is one.
    pub content_type: Option<&'static str>,
    /// The body.
    pub body: Bytes,
    /// Whether to ask for the values behind the order of the results.
    pub order_values: bool,
    /// Whether it changes nothing, so that it may be sent again on another connection.
    pub read: bool,
}

impl NodeRequest {
    /// A GET.
    pub fn get(path: impl Into<String>) -> Self {
        let (path, body) = (path.into(), Bytes::new());
        Self { method: Method::GET, path, content_type: None, body, order_values: false, read: true }
    }

    /// A request with a JSON body that may change something.
    pub fn json(method: Method, path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        let content_type = Some("application/json");
        let (path, body) = (path.into(), body.into());
        Self { method, path, content_type, body, order_values: false, read: false }
    }
}

/// The node's answer, whatever its status.
#[derive(Debug, Clone)]
pub struct NodeAnswer {
    /// HTTP status.
    pub status: u16,
    /// The whole body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// The request certainly did not reach the node.
    #[error("the node can't be reached: {0}")]
    Down(String),
    /// The request may have been carried out.
    #[error("the node did not answer: {0}")]
    Unknown(String),
}

type Connection = http1::Connection<TokioIo<TcpStream>, Full<Bytes>>;

/// A connection and the end that sends on it. Nobody else drives it: whoever sends also polls it, which saves the two
/// changes of task that a request over a task of its own costs.
struct Line {
    sender: http1::SendRequest<Full<Bytes>>,
    connection: Pin<Box<Connection>>,
    used: Instant,
}

/// Open connections without a request, of each runtime its own: a connection's task belongs to one.
type Pools = Vec<(runtime::Id, Vec<Line>)>;

/// A pool of connections to the node; cheap to clone.
#[derive(Clone)]
pub struct NodeClient {
    // For each runtime its own: a connection wakes whoever waits for it from the thread that it was made on.
    idle: Arc<Mutex<Pools>>,
    names: Names,
    base: String,
    host: HeaderValue,
    address: String,
    authorization: Option<HeaderValue>,
    answer_memory: Arc<Share>,
}

impl std::fmt::Debug for NodeClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeClient").field("base", &self.base).finish_non_exhaustive()
    }
}

/// A node URL or key that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeConfigError {
    /// Not an `http://host:port` URL.
    #[error("`{url}` is not an http URL such as http://127.0.0.1:7700")]
    Url {
        /// The refused text.
        url: String,
    },
    /// The key has characters that no header can carry.
    #[error("the node's key has characters that an HTTP header can't carry")]
    Key,
}

impl NodeClient {
    /// A client for the node at `url` (`http://host:port`), with its key if it has one.
    ///
    /// # Errors
    /// [`NodeConfigError`].
    pub fn new(url: &str, key: Option<&str>) -> Result<Self, NodeConfigError> {
        let bad = || NodeConfigError::Url { url: url.to_owned() };
        let base = url.trim_end_matches('/').to_owned();
        let uri: Uri = base.parse().map_err(|_| bad())?;
        if uri.scheme_str() != Some("http") || uri.host().is_none() || uri.path() != "/" {
            return Err(bad());
        }
        let header = |key: &str| {
            let mut value = HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| NodeConfigError::Key)?;
            value.set_sensitive(true);
            Ok(value)
        };
        let authority = uri.authority().ok_or_else(bad)?.as_str();
        let host = HeaderValue::from_str(authority).map_err(|_| bad())?;
        let name = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let address = format_address(name, uri.port_u16().unwrap_or(80));
        let authorization = key.map(header).transpose()?;
        let (idle, names, answer_memory) =
            (Arc::default(), Names::from_system(), Share::alone(ANSWER_MEMORY_DEFAULT_BYTES));
        Ok(Self { idle, names, base, host, address, authorization, answer_memory })
    }

    /// Sends one request and reads the whole answer, until `deadline`.
    ///
    /// Cancel-safe: dropping the future closes the connection, and the node drops a search.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn send(&self, request: NodeRequest, deadline: Instant) -> Result<NodeAnswer, NodeError> {
        match tokio::time::timeout_at(deadline.into(), self.exchange(&request)).await {
            Ok(answer) => answer,
            Err(_) => Err(NodeError::Unknown("it took longer than the request's deadline".into())),
        }
    }

    async fn exchange(&self, request: &NodeRequest) -> Result<NodeAnswer, NodeError> {
        while let Some(line) = self.take_idle().await {
            match self.exchange_on(line, self.message(request)?).await {
                Ok(answer) => return Ok(answer),
                // The node has hung up on a connection that lay idle; a write is only repeated if it was never sent.
                Err(TalkError::Lost { sent, .. }) if !sent || request.read => {}
                Err(e) => return Err(NodeError::Unknown(e.to_string())),
            }
        }
        let line = self.connect().await.map_err(|e| NodeError::Down(chain(&e)))?;
        let answer = self.exchange_on(line, self.message(request)?).await;
        answer.map_err(|e| NodeError::Unknown(e.to_string()))
    }

    fn message(&self, request: &NodeRequest) -> Result<Request<Full<Bytes>>, NodeError> {
        let mut builder = Request::builder().method(&request.method).uri(&request.path).header(HOST, &self.host);
        if let Some(value) = &self.authorization {
            builder = builder.header(AUTHORIZATION, value);
        }
        if let Some(kind) = request.content_type {
            builder = builder.header(CONTENT_TYPE, kind);
        }
        if request.order_values {
            builder = builder.header(PROXY_SEARCH, "true");
        }
        let message = builder.body(Full::new(request.body.clone()));
        message.map_err(|e| NodeError::Down(format!("malformed request: {e}")))
    }

    /// An idle connection that the node has not closed, the one used last first.
    async fn take_idle(&self) -> Option<Line> {
        let here = runtime::Handle::current().id();
        loop {
            let mut line = {
                let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
                idle.iter_mut().find(|(of, _)| *of == here).and_then(|(_, lines)| lines.pop())?
            };
            let ended = poll_fn(|cx| Poll::Ready(line.connection.as_mut().poll(cx).is_ready())).await;
            if !ended && line.used.elapsed() < IDLE_FOR && line.sender.is_ready() {
                return Some(line);
            }
        }
    }

    /// Puts a connection aside for the next request from this runtime, and closes those that nobody used for long: the one
    /// used last goes first, so nobody else would ever look at them.
    fn keep(&self, line: Line) {
        let here = runtime::Handle::current().id();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, lines) in idle.iter_mut() {
            lines.retain(|line| line.used.elapsed() < IDLE_FOR);
        }
        match idle.iter_mut().find(|(of, _)| *of == here) {
            Some((_, lines)) if lines.len() < IDLE_MAX => lines.push(line),
            Some(_) => {}
            None => idle.push((here, vec![line])),
        }
    }

    async fn connect(&self) -> std::io::Result<Line> {
        let connect = tokio::time::timeout(CONNECT_TIMEOUT, self.names.connect(&self.address));
        let stream = connect.await.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
        Ok(Line { sender, connection: Box::pin(connection), used: Instant::now() })
    }

    async fn read_body(&self, mut body: Incoming) -> Result<Bytes, TalkError> {
        let (mut held, mut size, mut pieces) = (Held::of(&self.answer_memory), 0, Vec::new());
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            size += data.len();
            if size > CALL_BODY_MAX_BYTES {
                return Err(TalkError::TooLarge);
            }
            if !held.grow_answer(size) {
                return Err(TalkError::NoRoom);
            }
            pieces.push(data);
        }
        let whole = match &mut pieces[..] {
            [one] => std::mem::take(one),
            many => {
                let mut whole = BytesMut::with_capacity(size);
                many.iter().for_each(|piece| whole.extend_from_slice(piece));
                whole.freeze()
            }
        };
        Ok(held.keep(whole))
    }

    async fn exchange_on(&self, line: Line, message: Request<Full<Bytes>>) -> Result<NodeAnswer, TalkError> {
        let Line { mut sender, mut connection, .. } = line;
        let sending = sender.send_request(message);
        let talk = async {
            let response = sending.await?;
            let status = response.status().as_u16();
            let body = self.read_body(response.into_body()).await?;
            Ok::<_, TalkError>(NodeAnswer { status, body })
        };
        let mut talk = pin!(talk);
        let mut ended = false;
        let answer = poll_fn(|cx| {
            // Once before the connection, to give it the request, and once after it, to take what it has read.
            if let Poll::Ready(done) = talk.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            if !ended {
                ended = connection.as_mut().poll(cx).is_ready();
            }
            talk.as_mut().poll(cx)
        })
        .await?;
        if !ended {
            self.keep(Line { sender, connection, used: Instant::now() });
        }
        Ok(answer)
    }
}

/// Why a request on one connection has no answer.
#[derive(Debug, thiserror::Error)]
enum TalkError {
    #[error("{reason}")]
    Lost { sent: bool, reason: String },
    #[error("its answer is over the limit of {CALL_BODY_MAX_BYTES} bytes")]
    TooLarge,
    #[error("{ANSWERS_TOO_LARGE}")]
    NoRoom,
}

impl From<hyper::Error> for TalkError {
    fn from(e: hyper::Error) -> Self {
        // Canceled: the connection was closed before anything of the request was written.
        Self::Lost { sent: !e.is_canceled(), reason: chain(&e) }
    }
}

/// An error with its causes, because hyper's own text says only "client error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(c) = cause {
        text.push_str(": ");
        text.push_str(&c.to_string());
        cause = c.source();
    }
    text
}

fn format_address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_no_http_url() {
        for bad in ["", "127.0.0.1:7700", "https://node", "http://", "http://a/b", "unix:/x"] {
            assert!(NodeClient::new(bad, None).is_err(), "{bad}");
        }
        assert!(NodeClient::new("http://127.0.0.1:7700/", None).is_ok());
        assert_eq!(NodeClient::new("http://n:1", Some("a\nb")).unwrap_err(), NodeConfigError::Key);
    }

    #[tokio::test]
    async fn a_closed_port_is_certainly_not_sent() {
        let port = {
            let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            socket.local_addr().unwrap().port()
        };
        let client = NodeClient::new(&format!("http://127.0.0.1:{port}"), None).unwrap();
        let error = client.send(NodeRequest::get("/health"), Instant::now() + Duration::from_secs(5)).await;
        assert!(matches!(error, Err(NodeError::Down(_))), "{error:?}");
    }

    #[tokio::test]
    async fn a_node_that_hangs_up_may_have_done_it() {
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = NodeClient::new(&format!("http://{}", socket.local_addr().unwrap()), None).unwrap();
        let hang_up = async {
            use tokio::io::AsyncReadExt;
            let (mut stream, _) = socket.accept().await.unwrap();
            let mut some = [0; 4];
            stream.read_exact(&mut some).await.unwrap();
        };
        let deadline = Instant::now() + Duration::from_secs(5);
        let (_, answer) = tokio::join!(hang_up, client.send(NodeRequest::get("/x"), deadline));
        assert!(matches!(answer, Err(NodeError::Unknown(_))), "{answer:?}");
    }

    #[tokio::test]
    async fn connections_that_nobody_used_for_long_are_closed() {
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = NodeClient::new(&format!("http://{}", socket.local_addr().unwrap()), None).unwrap();
        let (old, new) = (client.connect().await.unwrap(), client.connect().await.unwrap());
        let kept = || client.idle.lock().unwrap()[0].1.len();
        client.keep(Line { used: Instant::now().checked_sub(IDLE_FOR).unwrap(), ..old });
        assert_eq!(kept(), 1);
        client.keep(new);
        assert_eq!(kept(), 1, "the old one was let go of");
    }

    /// Answers `per_connection` requests on each connection, then hangs up; gives the number of connections.
    async fn hang_up_after(socket: tokio::net::TcpListener, per_connection: usize, connections: usize) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        for _ in 0..connections {
            let (mut stream, _) = socket.accept().await.unwrap();
            for _ in 0..per_connection {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn connections_are_used_again_until_the_node_hangs_up() {
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = NodeClient::new(&format!("http://{}", socket.local_addr().unwrap()), None).unwrap();
        let requests = async {
            for _ in 0..6 {
                // Not a read: it may not be sent twice, so a connection that is over must be seen before.
                let request = NodeRequest { read: false, ..NodeRequest::get("/x") };
                let answer = client.send(request, Instant::now() + Duration::from_secs(5)).await.unwrap();
                assert_eq!((answer.status, answer.body.as_ref()), (200, b"ok".as_slice()));
                // Lets the end of the connection arrive; both sides run on this one thread.
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
            }
        };
        tokio::join!(hang_up_after(socket, 2, 3), requests);
    }
}
