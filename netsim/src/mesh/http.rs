//! A small HTTP/1.1 client: one kept connection, bounded answers, a deadline for each request.
//!
//! Must not know: Meilisearch.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{HeaderMap, Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

const ANSWER_MAX_BYTES: usize = 256 << 20;

/// An answer, read to its end.
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("not JSON: {}", self.text()))
    }

    /// A header's value, if it is there and text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The beginning of the body, for people.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body[..self.body.len().min(500)]).into_owned()
    }

    /// The answer if its status is a success.
    pub fn success(self) -> anyhow::Result<Self> {
        if (200..300).contains(&self.status) { Ok(self) } else { bail!("HTTP {}: {}", self.status, self.text()) }
    }
}

/// One server, one connection, opened when it is needed.
pub struct Client {
    address: SocketAddr,
    key: Option<String>,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    /// A client that sends `key`, if there is one, as Bearer.
    pub fn new(address: SocketAddr, key: Option<&str>) -> Self {
        Self { address, key: key.map(str::to_owned), connection: None }
    }

    /// The same over a connection that is there already, for a server that can't be reached from here. When that is closed,
    /// requests fail.
    pub async fn over(stream: std::net::TcpStream, key: Option<&str>) -> anyhow::Result<Self> {
        let address = stream.peer_addr().context("can't say where a connection leads")?;
        stream.set_nonblocking(true).context("can't use a connection")?;
        let stream = TcpStream::from_std(stream).context("can't use a connection")?;
        let (sender, driver) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move { driver.await.ok() });
        Ok(Self { address, key: key.map(str::to_owned), connection: Some(sender) })
    }

    /// `GET`, within 10 s.
    pub async fn get(&mut self, path: &str) -> anyhow::Result<Answer> {
        self.send(Method::GET, path, "", Bytes::new(), Duration::from_secs(10)).await
    }

    /// A request with a JSON body, within 60 s.
    pub async fn json(&mut self, method: Method, path: &str, body: &Value) -> anyhow::Result<Answer> {
        let body = Bytes::from(body.to_string());
        self.send(method, path, "application/json", body, Duration::from_secs(60)).await
    }

    /// Any request. One on a connection that the server has closed meanwhile is sent again on a new one, so requests
    /// must bear being sent twice.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
        within: Duration,
    ) -> anyhow::Result<Answer> {
        let context = || format!("{method} http://{}{path}", self.address);
        let context = context();
        let attempts = async {
            let kept = self.connection.is_some();
            match self.attempt(&method, path, content_type, body.clone()).await {
                Err(_) if kept => self.attempt(&method, path, content_type, body).await,
                other => other,
            }
        };
        match tokio::time::timeout(within, attempts).await {
            Ok(answer) => answer.context(context),
            Err(_) => bail!("{context}: no answer within {} s", within.as_secs()),
        }
    }

    async fn attempt(&mut self, method: &Method, path: &str, content: &str, body: Bytes) -> anyhow::Result<Answer> {
        let mut connection = match self.connection.take() {
            Some(kept) => kept,
            None => {
                #[expect(clippy::disallowed_methods, reason = "an address, so nothing is looked up")]
                let stream = TcpStream::connect(self.address).await?;
                stream.set_nodelay(true)?;
                let (sender, driver) = handshake(TokioIo::new(stream)).await?;
                // Its error is the request's error, too, and is seen there.
                tokio::spawn(async move { driver.await.ok() });
                sender
            }
        };
        connection.ready().await?;
        let mut request = Request::builder().method(method).uri(path).header("host", self.address.to_string());
        if !content.is_empty() {
            request = request.header("content-type", content);
        }
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let answer = connection.send_request(request.body(Full::new(body))?).await?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_MAX_BYTES).collect().await;
        let body = body.map_err(|e| anyhow::anyhow!(e))?.to_bytes();
        self.connection = Some(connection);
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
    }
}
