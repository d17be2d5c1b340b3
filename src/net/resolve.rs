//! Turns a peer's `host:port` into addresses: numeric ones as they are, names by `/etc/hosts` and DNS.
//!
//! Rule: nothing here calls the C library's resolver, which blocks a thread for as long as it likes. Both files are read
//! again when they change. Must not know: whose address it is.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;

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

/// Looks names up; clones share one cache.
#[derive(Clone, Default)]
pub struct Names {
    inner: Arc<Mutex<Option<(Stamp, TokioResolver)>>>,
}

type Stamp = [Option<SystemTime>; 2];

impl Names {
    /// A resolver with the system's configuration, which it reads when it is first needed.
    pub fn from_system() -> Self {
        Self::default()
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

    fn resolver(&self) -> Result<TokioResolver, String> {
        let stamp = ["/etc/resolv.conf", "/etc/hosts"].map(|p| std::fs::metadata(p).and_then(|m| m.modified()).ok());
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read_at, resolver)) = &*inner
            && *read_at == stamp
        {
            return Ok(resolver.clone());
        }
        let resolver = build(Path::new("/etc/resolv.conf")).map_err(|e| e.to_string())?;
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

/// A resolver by `resolv_conf`; without it (or with a broken one) by the hosts file alone.
fn build(resolv_conf: &Path) -> io::Result<TokioResolver> {
    let system = std::fs::read(resolv_conf)
        .map_err(|e| e.to_string())
        .and_then(|text| hickory_resolver::system_conf::parse_resolv_conf(text).map_err(|e| e.to_string()));
    let (config, options) = match system {
        Ok((config, options)) => (config, Some(options)),
        Err(reason) => {
            tracing::warn!(file = %resolv_conf.display(), reason, "no name server is used, only the hosts file");
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
    builder.build().map_err(io::Error::other)
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
    async fn hosts_file_works_without_resolv_conf() {
        let dir = tempfile::tempdir().unwrap();
        let resolver = build(&dir.path().join("absent")).unwrap();
        let found = resolver.lookup_ip("localhost").await.unwrap();
        assert!(found.iter().all(|ip| ip.is_loopback()) && found.iter().next().is_some());
        let broken = dir.path().join("broken");
        std::fs::write(&broken, b"\xff\xfe nameserver what\nnameserver").unwrap();
        let resolver = build(&broken).unwrap();
        assert!(resolver.lookup_ip("localhost").await.unwrap().iter().next().is_some());
        let unknown = tokio::time::timeout(TIMEOUT, resolver.lookup_ip("no-such-host.invalid")).await;
        assert!(unknown.unwrap().is_err(), "an unknown name ends at once when there is nobody to ask");
    }

    #[tokio::test]
    async fn localhost_is_found_by_the_system() {
        let found = Names::from_system().resolve("localhost:7781").await.unwrap();
        assert!(found.iter().all(|a| a.ip().is_loopback() && a.port() == 7781));
    }
}
