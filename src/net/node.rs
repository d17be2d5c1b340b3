//! The HTTP client of the own Meilisearch: the only code that talks to the node.
//!
//! It tells "certainly not sent" from "perhaps carried out", because writes depend on it. Must not know: what a request
//! means, retries, other members.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::resolve::Names;
use crate::types::limits::CALL_BODY_MAX_BYTES;

/// How long a connection to the node may take; it is on the same machine.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
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
}

impl NodeRequest {
    /// A GET.
    pub fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), content_type: None, body: Bytes::new(), order_values: false }
    }

    /// A request with a JSON body.
    pub fn json(method: Method, path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        let content_type = Some("application/json");
        Self { method, path: path.into(), content_type, body: body.into(), order_values: false }
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

/// A pool of connections to the node; cheap to clone.
#[derive(Clone)]
pub struct NodeClient {
    client: Client<Connector, Full<Bytes>>,
    base: String,
    authorization: Option<HeaderValue>,
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
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(64)
            .build(Connector { names: Names::from_system() });
        Ok(Self { client, base, authorization: key.map(header).transpose()? })
    }

    /// Sends one request and reads the whole answer, until `deadline`.
    ///
    /// Cancel-safe: dropping the future closes the connection, and the node drops a search.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn send(&self, request: NodeRequest, deadline: Instant) -> Result<NodeAnswer, NodeError> {
        let mut builder = Request::builder().method(request.method).uri(format!("{}{}", self.base, request.path));
        if let Some(value) = &self.authorization {
            builder = builder.header(AUTHORIZATION, value.clone());
        }
        if let Some(kind) = request.content_type {
            builder = builder.header(CONTENT_TYPE, kind);
        }
        if request.order_values {
            builder = builder.header(PROXY_SEARCH, "true");
        }
        let request =
            builder.body(Full::new(request.body)).map_err(|e| NodeError::Down(format!("malformed request: {e}")))?;
        let exchange = async {
            let response = self.client.request(request).await.map_err(|e| {
                let reason = chain(&e);
                if e.is_connect() { NodeError::Down(reason) } else { NodeError::Unknown(reason) }
            })?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), CALL_BODY_MAX_BYTES);
            let body = body.collect().await.map_err(|e| NodeError::Unknown(e.to_string()))?;
            Ok(NodeAnswer { status, body: body.to_bytes() })
        };
        match tokio::time::timeout_at(deadline.into(), exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(NodeError::Unknown("it took longer than the request's deadline".into())),
        }
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

/// Connects by the mesh's own resolver, because `getaddrinfo` in a static binary can crash.
#[derive(Clone)]
struct Connector {
    names: Names,
}

type Connecting = Pin<Box<dyn Future<Output = std::io::Result<TokioIo<TcpStream>>> + Send>>;

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = std::io::Error;
    type Future = Connecting;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Connecting {
        let names = self.names.clone();
        Box::pin(async move {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let addresses = names.resolve(&format_address(&host, uri.port_u16().unwrap_or(80))).await;
            let addresses = addresses.map_err(std::io::Error::other)?;
            let connect = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(addresses.as_slice()));
            let stream = connect.await.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(stream))
        })
    }
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
}
