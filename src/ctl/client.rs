//! Asking a sidecar's admin API.
//!
//! Rule: the admin key comes from a file or the environment, never from the command line, and no error shows it. Must not
//! know: what is asked.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use crate::config::{self, Config, Secret};
use crate::names::Names;

/// Where a member's configuration usually is.
const CONFIG: &str = "/etc/miroir/miroir.toml";
/// Where a member usually listens.
const URL: &str = "http://127.0.0.1:7780";
/// Largest answer that is read.
const ANSWER_MAX_BYTES: usize = 64 << 20;

/// Which sidecar to ask, and how to show what it says.
#[derive(Debug, Clone, clap::Args)]
pub struct Target {
    /// The sidecar's HTTP address; without it, that of --config.
    #[arg(long, global = true, env = "MIROIR_URL", value_name = "URL")]
    pub url: Option<String>,
    /// The configuration of the member on this host: gives address and admin key [default: /etc/miroir/miroir.toml, if it
    /// is there].
    #[arg(long, global = true, env = "MIROIR_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A file with the admin key; the variable MIROIR_ACCESS__ADMIN_KEY is taken as well.
    #[arg(long, global = true, env = "MIROIR_ADMIN_KEY_FILE", value_name = "FILE")]
    pub admin_key_file: Option<PathBuf>,
    /// Print what the sidecar answers, as JSON, for scripts.
    #[arg(long, global = true)]
    pub json: bool,
    /// Seconds to wait for an answer.
    #[arg(long, global = true, default_value_t = 15, value_name = "SECONDS")]
    pub timeout_s: u64,
}

/// Why there is no answer, with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A configuration that does not load.
    #[error("{0}")]
    Config(String),
    /// An address that is none.
    #[error("`{0}` is not an address of a sidecar: it looks like http://127.0.0.1:7780")]
    Url(String),
    /// A key file that can't be used.
    #[error("can't take the admin key from {}: {reason}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody there, or nobody who speaks HTTP.
    #[error("can't ask {url}: {reason}. Is the sidecar running? --url names another, --config reads a member's own")]
    Unreachable {
        /// Who was asked.
        url: String,
        /// What happened.
        reason: String,
    },
    /// No access.
    #[error("{url} refuses: {message} Give the admin key with --admin-key-file or MIROIR_ACCESS__ADMIN_KEY")]
    Access {
        /// Who was asked.
        url: String,
        /// What it says.
        message: String,
    },
    /// Something on the command line that can't be asked for.
    #[error("{0}")]
    Argument(String),
    /// What was waited for ended otherwise than it should.
    #[error("{0}")]
    Failed(String),
    /// Any other refusal, in the sidecar's own words.
    #[error("{message} ({code})")]
    Refused {
        /// What it says.
        message: String,
        /// The code in its answer, or the HTTP status.
        code: String,
    },
}

/// A sidecar that can be asked.
#[derive(Debug)]
pub struct Client {
    url: String,
    authority: String,
    key: Option<Secret>,
    timeout: Duration,
    runtime: tokio::runtime::Runtime,
}

impl Client {
    /// Works out whom to ask, with which key.
    ///
    /// # Errors
    /// [`ClientError`], before anything is asked.
    pub fn new(target: &Target) -> Result<Self, ClientError> {
        let config = member_config(target)?;
        let url = match (&target.url, &config) {
            (Some(url), _) => url.trim_end_matches('/').to_owned(),
            (None, Some(config)) => format!("http://{}", reachable(config.http.listen)),
            (None, None) => URL.to_owned(),
        };
        let uri: Uri = url.parse().map_err(|_| ClientError::Url(url.clone()))?;
        let authority = match (uri.scheme_str(), uri.authority(), uri.path()) {
            (Some("http"), Some(authority), "/" | "") => authority.clone(),
            _ => return Err(ClientError::Url(url)),
        };
        let port = authority.port_u16().unwrap_or(80);
        let key = match (&target.admin_key_file, std::env::var("MIROIR_ACCESS__ADMIN_KEY").ok(), config) {
            (Some(path), ..) => Some(key_file(path)?),
            (None, Some(key), _) => Some(Secret::new(&key).map_err(|reason| ClientError::Key {
                path: PathBuf::from("MIROIR_ACCESS__ADMIN_KEY"),
                reason: reason.to_owned(),
            })?),
            (None, None, Some(config)) => config.access.admin_key.or(config.access.master_key),
            (None, None, None) => None,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| ClientError::Unreachable { url: url.clone(), reason: e.to_string() })?;
        let authority = format!("{}:{port}", authority.host());
        Ok(Self { url, authority, key, timeout: Duration::from_secs(target.timeout_s.max(1)), runtime })
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// [`ClientError`]; a refusal is told in the sidecar's words.
    pub fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        let asked = async { tokio::time::timeout(self.timeout, self.exchange(method, path, body)).await };
        let unreachable = |reason: String| ClientError::Unreachable { url: self.url.clone(), reason };
        let (status, bytes) = match self.runtime.block_on(asked) {
            Ok(Ok(answer)) => answer,
            Ok(Err(e)) => return Err(unreachable(e.to_string())),
            Err(_) => return Err(unreachable(format!("no answer within {} s", self.timeout.as_secs()))),
        };
        let value: Value = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes).map_err(|_| unreachable("its answer is not JSON".to_owned()))?
        };
        if status.is_success() {
            return Ok(value);
        }
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        let message = text("message").unwrap_or_else(|| status.to_string());
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ClientError::Access { url: self.url.clone(), message },
            _ => ClientError::Refused { message, code: text("code").unwrap_or_else(|| status.as_u16().to_string()) },
        })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
        let stream = Names::from_system().connect(&self.authority).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Its error shows in the request's.
        drop(tokio::spawn(connection));
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, &self.authority);
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", key.expose()));
        }
        let body = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(body.to_string())
            }
            None => Bytes::new(),
        };
        let answer = sender.send_request(request.body(Full::new(body))?).await?;
        let status = answer.status();
        let bytes = Limited::new(answer.into_body(), ANSWER_MAX_BYTES).collect().await?.to_bytes();
        Ok((status, bytes))
    }
}

/// The member's configuration, if one is named or lies where it usually does and no address is given.
fn member_config(target: &Target) -> Result<Option<Config>, ClientError> {
    let path = match &target.config {
        Some(path) => path.clone(),
        None if target.url.is_none() && Path::new(CONFIG).exists() => PathBuf::from(CONFIG),
        None => return Ok(None),
    };
    Config::load(Some(&path), config::environment()).map(Some).map_err(|faults| {
        ClientError::Config(format!("{faults}\n(--url names a sidecar without a configuration file)"))
    })
}

/// A sidecar that listens on all addresses is asked on the loopback one.
fn reachable(mut listen: std::net::SocketAddr) -> std::net::SocketAddr {
    if listen.ip().is_unspecified() {
        listen.set_ip(if listen.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    listen
}

fn key_file(path: &Path) -> Result<Secret, ClientError> {
    let failed = |reason: String| ClientError::Key { path: path.to_owned(), reason };
    let text = config::read_bounded(path, config::SECRET_MAX_BYTES as u64 + 2).map_err(|e| failed(e.to_string()))?;
    Secret::new(text.trim_end_matches(['\r', '\n'])).map_err(|reason| failed(reason.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Target {
        Target { url: Some(url.into()), config: None, admin_key_file: None, json: false, timeout_s: 2 }
    }

    #[test]
    fn what_is_no_address_is_refused_before_anything_is_asked() {
        for bad in ["", "127.0.0.1:7780", "https://a:1", "http://a:1/x", "http://", "ftp://a"] {
            assert!(matches!(Client::new(&target(bad)), Err(ClientError::Url(_))), "{bad}");
        }
        assert!(Client::new(&target("http://[::1]:7780/")).is_ok());
    }

    #[test]
    fn nobody_there_is_told_with_the_remedy() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let client = Client::new(&target(&format!("http://{free}"))).unwrap();
        let error = client.ask(Method::GET, "/health", None).unwrap_err().to_string();
        assert!(error.contains(&free.to_string()) && error.contains("--url"), "{error}");
    }

    #[test]
    fn a_key_file_is_read_without_its_line_end_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "s3cret-s3cret-s3cret\n").unwrap();
        let with_key = Target { admin_key_file: Some(path.clone()), ..target("http://a:1") };
        let client = Client::new(&with_key).unwrap();
        assert_eq!(client.key.as_ref().unwrap().expose(), "s3cret-s3cret-s3cret");
        assert!(!format!("{client:?}").contains("s3cret"));
        std::fs::write(&path, "two words").unwrap();
        let error = Client::new(&with_key).unwrap_err().to_string();
        assert!(error.contains("visible ASCII") && !error.contains("two"), "{error}");
    }
}
