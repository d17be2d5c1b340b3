//! Free ports of this machine.
//!
//! They are taken from below the range that the kernel gives to outgoing connections, so that none is lost between
//! looking and using. Must not know: who listens on them.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use anyhow::bail;

const FIRST: u16 = 12_000;
const LAST: u16 = 31_999;

/// Hands out free ports, each once.
pub struct Ports {
    taken: BTreeSet<u16>,
    next: u16,
}

impl Ports {
    /// Never hands out one of `reserved`.
    pub fn new(reserved: impl IntoIterator<Item = u16>) -> Self {
        // Two demos that start at once begin at different places.
        let random = RandomState::new().build_hasher().finish();
        let start = FIRST + u16::try_from(random % u64::from(LAST - FIRST)).unwrap_or(0);
        Self { taken: reserved.into_iter().collect(), next: start }
    }

    /// A port on loopback that is free for TCP and for UDP.
    pub fn free(&mut self) -> anyhow::Result<SocketAddr> {
        for _ in FIRST..=LAST {
            let port = self.next;
            self.next = if port == LAST { FIRST } else { port + 1 };
            if !self.taken.contains(&port) && is_free(port) {
                self.taken.insert(port);
                return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
            }
        }
        bail!("no port between {FIRST} and {LAST} is free")
    }
}

/// Whether nobody listens on the port.
pub fn is_free(port: u16) -> bool {
    let address = (Ipv4Addr::LOCALHOST, port);
    TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_different() {
        let mut ports = Ports::new([]);
        let first = ports.free().unwrap();
        let second = ports.free().unwrap();
        assert_ne!(first, second);
        let held = TcpListener::bind(first).unwrap();
        assert!(!is_free(first.port()));
        drop(held);
        assert!(is_free(first.port()));
    }

    #[test]
    fn reserved_ports_are_left_alone() {
        let mut ports = Ports::new(FIRST..=LAST);
        assert!(ports.free().is_err());
    }
}
