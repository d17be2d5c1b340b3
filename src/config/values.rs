//! The types of single values, each refusing what is malformed.
//!
//! Must not know: which key holds which value.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::types::{GroupId, MemberId};

/// The port of the mesh where an address names none.
pub const MESH_PORT: u16 = 7781;

/// One member of the list that a mesh begins with.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootstrapMember {
    /// Its id.
    pub id: MemberId,
    /// The replica group that it belongs to.
    pub group: GroupId,
    /// Where the others reach its mesh port (UDP).
    pub address: MeshAddress,
    /// It has no node.
    #[serde(default)]
    pub witness: bool,
}

/// The host of a member.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum MeshHost {
    /// An address.
    Address(IpAddr),
    /// A DNS name, looked up again for every attempt to connect.
    Name(String),
}

/// Where a member's mesh port is: `name`, `name:port`, `address` or `address:port`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MeshAddress {
    /// Name or address.
    pub host: MeshHost,
    /// The mesh port there, UDP.
    pub port: u16,
}

impl MeshAddress {
    fn parse(text: &str) -> Result<Self, &'static str> {
        const RULE: &str = "an address is a DNS name or an IP address, with or without a port";
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { host: MeshHost::Address(address.ip()), port: address.port() });
        }
        if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            return Ok(Self { host: MeshHost::Address(ip), port: MESH_PORT });
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (name, port.parse::<u16>().ok().filter(|p| *p > 0).ok_or(RULE)?),
            None => (text, MESH_PORT),
        };
        if !is_host_name(name) {
            return Err(RULE);
        }
        Ok(Self { host: MeshHost::Name(name.to_owned()), port })
    }
}

/// Labels of letters, digits, hyphens and underscores; not all digits at the end, or it is a mistyped address.
fn is_host_name(name: &str) -> bool {
    let bare = name.strip_suffix('.').unwrap_or(name);
    let is_label =
        |l: &str| (1..=63).contains(&l.len()) && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    bare.len() <= 253
        && bare.split('.').all(is_label)
        && !bare.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
}

impl MeshAddress {
    /// Whether others can send there: a name, or an address of one host.
    pub fn is_reachable(&self) -> bool {
        self.port != 0 && !matches!(&self.host, MeshHost::Address(ip) if ip.is_unspecified())
    }
}

impl<'de> Deserialize<'de> for MeshAddress {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(d)?).map_err(D::Error::custom)
    }
}

impl fmt::Display for MeshAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            MeshHost::Address(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            MeshHost::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// The base URL of the own node: `http://host:port`, nothing after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeUrl {
    host: String,
    port: u16,
}

impl NodeUrl {
    /// A name or an IP address (IPv6 without brackets).
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        const RULE: &str = "a node URL is http://host:port without a path";
        let uri: http::Uri = text.parse().map_err(|_| RULE)?;
        let authority = uri.authority().ok_or(RULE)?;
        let bare = uri.scheme_str() == Some("http")
            && matches!(uri.path(), "" | "/")
            && uri.query().is_none()
            && !text.contains(['#', '@']);
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if !bare || !(host.parse::<IpAddr>().is_ok() || is_host_name(host)) {
            return Err(RULE);
        }
        // `Authority::port` is `None` both for no port and for a broken one.
        let port = match &authority.as_str()[authority.host().len()..] {
            "" => 80,
            port => port.strip_prefix(':').and_then(|p| p.parse().ok()).filter(|p| *p > 0).ok_or(RULE)?,
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for NodeUrl {
    /// `http://host:port`, no slash at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.parse::<IpAddr>() {
            Ok(ip) => write!(f, "http://{}", SocketAddr::new(ip, self.port)),
            Err(_) => write!(f, "http://{}:{}", self.host, self.port),
        }
    }
}

impl<'de> Deserialize<'de> for NodeUrl {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(d)?).map_err(D::Error::custom)
    }
}

/// What a search does when no copy of a shard can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnavailableShardPolicy {
    /// Answers from the other shards and says so.
    Partial,
    /// 503 `miroir_shards_unavailable`.
    Error,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Which log lines are written, in the words of `tracing`: `info`, `warn,miroir::net=debug`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(String);

impl LogFilter {
    /// The filter as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for LogFilter {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        // An empty filter would be a silent process.
        match tracing_subscriber::EnvFilter::builder().parse(&text) {
            Ok(_) if !text.trim().is_empty() => Ok(Self(text)),
            _ => Err(D::Error::custom("malformed log filter")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Option<String> {
        MeshAddress::parse(text).ok().map(|s| s.to_string())
    }

    #[test]
    fn address_is_a_name_or_an_address_with_or_without_port() {
        assert_eq!(address("mesh.example.org").as_deref(), Some("mesh.example.org:7781"));
        assert_eq!(address("mesh.example.org.:1").as_deref(), Some("mesh.example.org.:1"));
        assert_eq!(address("10.0.0.1").as_deref(), Some("10.0.0.1:7781"));
        assert_eq!(address("10.0.0.1:9").as_deref(), Some("10.0.0.1:9"));
        assert_eq!(address("::1").as_deref(), Some("[::1]:7781"));
        assert_eq!(address("[::1]:9").as_deref(), Some("[::1]:9"));
        for bad in ["", ":7781", "a b", "a..b", "name:0", "name:70000", "name:x", "10.0.0.256", "http://m1", "ä.de"] {
            assert_eq!(address(bad), None, "{bad}");
        }
    }

    #[test]
    fn node_url_is_plain_http_without_a_path() {
        let url = |t: &str| NodeUrl::parse(t).ok().map(|u| u.to_string());
        assert_eq!(url("http://127.0.0.1:7700").as_deref(), Some("http://127.0.0.1:7700"));
        assert_eq!(url("http://localhost:7700/").as_deref(), Some("http://localhost:7700"));
        assert_eq!(url("http://[::1]:7700").as_deref(), Some("http://[::1]:7700"));
        assert_eq!(url("http://node").as_deref(), Some("http://node:80"));
        for bad in [
            "127.0.0.1:7700",
            "https://a:1",
            "http://",
            "http://a:1/x",
            "http://a:1?q",
            "http://u:p@a:1",
            "http://a:0",
            "http://a:99999",
            "http://a:1/#f",
            "",
        ] {
            assert_eq!(url(bad), None, "{bad}");
        }
    }
}
