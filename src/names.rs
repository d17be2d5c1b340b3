//! Turns `host:port` into addresses: numeric ones as they are, names by `/etc/hosts` and DNS.
//!
//! Rule: nothing here calls the C library's resolver, which blocks a thread for as long as it likes. Both files are read
//! again when they change. Must not know: whose address it is, and what is said there.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hickory_resolver::config::{LookupIpStrategy, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::{Hosts, TokioResolver};
use tokio::net::TcpStream;

/// How long one name may take.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How long an answer of a name server is kept at most: a peer that moved is to be found soon.
const TTL_MAX: Duration = Duration::from_secs(5);
/// Most addresses of one name that are used.
const ADDRESSES_MAX: usize = 16;

/// Why there is no address.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ResolveError {
    /// Not of the form `host:port`.
    #[error("`{address}` is no address: {reason}")]
    Malformed {
        /// The text.
        address: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The name has no address, or no name server answered.
    #[error("can't look up `{host}`: {reason}")]
    Lookup {
        /// The name.
        host: String,
        /// The resolver's reason.
        reason: String,
    },
}

/// Largest configuration file that is read; what lies behind is cut off.
const FILE_MAX_BYTES: u64 = 4 << 20;

/// Looks names up; clones share one cache.
#[derive(Clone)]
pub struct Names {
    files: Arc<Files>,
    inner: Arc<Mutex<Option<(Stamp, TokioResolver)>>>,
}

struct Files {
    resolv_conf: PathBuf,
    hosts: PathBuf,
}

type Stamp = [Option<(SystemTime, u64)>; 2];

impl Names {
    /// A resolver with the system's configuration, which it reads when it is first needed.
    pub fn from_system() -> Self {
        Self::from_files("/etc/resolv.conf".into(), "/etc/hosts".into())
    }

    fn from_files(resolv_conf: PathBuf, hosts: PathBuf) -> Self {
        Self { files: Arc::new(Files { resolv_conf, hosts }), inner: Arc::default() }
    }

    /// All addresses of `host:port`, at least one.
    ///
    /// # Errors
    /// [`ResolveError`], after 2 seconds at the latest.
    pub async fn resolve(&self, address: &str) -> Result<Vec<SocketAddr>, ResolveError> {
        if let Ok(numeric) = address.parse() {
            return Ok(vec![numeric]);
        }
        let (host, port) = split(address)?;
        if let Ok(ip) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let failed = |reason: String| ResolveError::Lookup { host: host.to_owned(), reason };
        let resolver = self.resolver().map_err(&failed)?;
        let found = match tokio::time::timeout(TIMEOUT, resolver.lookup_ip(host)).await {
            Ok(found) => found.map_err(|e| failed(e.to_string()))?,
            Err(_) => return Err(failed(format!("no answer within {} s", TIMEOUT.as_secs()))),
        };
        let addresses: Vec<_> = found.iter().take(ADDRESSES_MAX).map(|ip| SocketAddr::new(ip, port)).collect();
        if addresses.is_empty() { Err(failed("it has no address".to_owned())) } else { Ok(addresses) }
    }

    /// Connects to `host:port`, at the first of its addresses that answers.
    ///
    /// # Errors
    /// [`ResolveError`] as an `io::Error`, or the system's for the last address.
    #[expect(clippy::disallowed_methods, reason = "these are addresses, so nothing is looked up")]
    pub async fn connect(&self, address: &str) -> io::Result<TcpStream> {
        let addresses = self.resolve(address).await.map_err(io::Error::other)?;
        TcpStream::connect(addresses.as_slice()).await
    }

    fn resolver(&self) -> Result<TokioResolver, String> {
        let changed = |p: &Path| std::fs::metadata(p).and_then(|m| Ok((m.modified()?, m.len()))).ok();
        let stamp = [changed(&self.files.resolv_conf), changed(&self.files.hosts)];
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read_at, resolver)) = &*inner
            && *read_at == stamp
        {
            return Ok(resolver.clone());
        }
        let resolver = build(&self.files).map_err(|e| e.to_string())?;
        *inner = Some((stamp, resolver.clone()));
        Ok(resolver)
    }
}

/// Splits `host:port`.
///
/// # Errors
/// [`ResolveError::Malformed`].
pub fn split(address: &str) -> Result<(&str, u16), ResolveError> {
    let malformed = |reason| ResolveError::Malformed { address: address.chars().take(300).collect(), reason };
    let (host, port) = address.rsplit_once(':').ok_or_else(|| malformed("it has no port"))?;
    let port = port.parse().map_err(|_| malformed("the port is no number up to 65535"))?;
    if port == 0 {
        return Err(malformed("port 0 is none"));
    }
    let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    if host.is_empty() {
        return Err(malformed("it has no host"));
    }
    if inner.is_none() && host.contains(':') {
        return Err(malformed("an IPv6 address stands in square brackets"));
    }
    Ok((host, port))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    use io::Read as _;

    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(FILE_MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A resolver by both files; without a `resolv.conf` (or with a broken one) by the hosts file alone, and the other way
/// round.
fn build(files: &Files) -> io::Result<TokioResolver> {
    let system = read(&files.resolv_conf)
        .map_err(|e| e.to_string())
        .and_then(|text| hickory_resolver::system_conf::parse_resolv_conf(text).map_err(|e| e.to_string()));
    let (config, options) = match system {
        Ok((config, options)) => (config, Some(options)),
        Err(reason) => {
            tracing::warn!(file = %files.resolv_conf.display(), reason, "no name server is used, only the hosts file");
            (ResolverConfig::from_parts(None, vec![], vec![]), None)
        }
    };
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    let to = builder.options_mut();
    if let Some(options) = options {
        *to = options;
    }
    to.timeout = to.timeout.min(Duration::from_secs(1));
    to.attempts = to.attempts.min(2);
    to.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    to.positive_max_ttl = Some(TTL_MAX);
    to.negative_max_ttl = Some(Duration::from_secs(1));
    // The file is read here, where it can be read again.
    to.use_hosts_file = ResolveHosts::Never;
    let mut resolver = builder.build().map_err(io::Error::other)?;
    let mut hosts = Hosts::default();
    if let Err(error) = read(&files.hosts).and_then(|text| hosts.read_hosts_conf(&text[..])) {
        tracing::warn!(file = %files.hosts.display(), %error, "the hosts file is used as far as it could be read");
    }
    resolver.set_hosts(Arc::new(hosts));
    Ok(resolver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn numeric_addresses_pass_through() {
        let names = Names::from_system();
        for (text, want) in [("10.0.0.1:7781", "10.0.0.1:7781"), ("[::1]:9", "[::1]:9")] {
            assert_eq!(names.resolve(text).await.unwrap(), vec![want.parse().unwrap()]);
        }
        assert!(names.inner.lock().unwrap().is_none(), "no file was read for it");
    }

    #[test]
    fn malformed_addresses_are_refused() {
        for bad in ["", "host", ":7781", "host:", "host:0", "host:70000", "::1:80", "host:-1"] {
            assert!(matches!(split(bad), Err(ResolveError::Malformed { .. })), "{bad}");
        }
        assert_eq!(split("a.example:1").unwrap(), ("a.example", 1));
    }

    #[tokio::test]
    async fn hosts_file_works_without_resolv_conf_and_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let (resolv_conf, hosts) = (dir.path().join("resolv.conf"), dir.path().join("hosts"));
        let names = Names::from_files(resolv_conf.clone(), hosts.clone());
        let unknown = tokio::time::timeout(TIMEOUT, names.resolve("node-a:1")).await;
        assert!(unknown.unwrap().is_err(), "ends at once when there is nobody to ask");
        std::fs::write(&hosts, "10.9.8.7 node-a node-a.example # it\nfd00::7 node-a\nnonsense\n").unwrap();
        for resolv in ["", "\u{fffd} nameserver what\nnameserver", "options"] {
            std::fs::write(&resolv_conf, resolv).unwrap();
            let found = names.resolve("node-a:7781").await.unwrap();
            assert!(found.contains(&"10.9.8.7:7781".parse().unwrap()), "{found:?}");
            assert!(found.contains(&"[fd00::7]:7781".parse().unwrap()), "{found:?}");
            assert_eq!(names.resolve("node-a.example:1").await.unwrap(), ["10.9.8.7:1".parse().unwrap()]);
        }
        std::fs::write(&hosts, "10.9.8.70 node-a\n").unwrap();
        assert_eq!(names.resolve("node-a:1").await.unwrap(), ["10.9.8.70:1".parse().unwrap()]);
    }

    #[tokio::test]
    async fn names_are_connected_to_by_the_files_that_are_given() {
        let dir = tempfile::tempdir().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let hosts = dir.path().join("hosts");
        std::fs::write(&hosts, "127.0.0.1 only-in-this-file\n").unwrap();
        let names = Names::from_files(dir.path().join("none"), hosts);
        let stream = names.connect(&format!("only-in-this-file:{}", address.port())).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address);
        assert!(names.connect("in-no-file:1").await.is_err());
    }

    #[tokio::test]
    async fn localhost_is_found_by_the_system() {
        let found = Names::from_system().resolve("localhost:7781").await.unwrap();
        assert!(found.iter().all(|a| a.ip().is_loopback() && a.port() == 7781));
    }
}
