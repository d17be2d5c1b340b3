//! Who may begin a handshake, before it is known who it is.
//!
//! Rule: strangers take nothing from members. Addresses at which members were found have places of their own; all others
//! share the rest, with few for each, so that no single host takes all of them. Must not know: certificates.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Handshakes under way at once from where members are, and from everywhere else.
const PLACES: usize = 64;
/// Of those from everywhere else, the most from one host.
const PLACES_OF_ONE: usize = 16;
/// From so many on, whoever knocks first has to show that its address is its own.
const UNPROVEN_MAX: usize = 16;

/// Counts handshakes under way.
#[derive(Default)]
pub(super) struct Door {
    under_way: Mutex<UnderWay>,
}

#[derive(Default)]
struct UnderWay {
    of_members: usize,
    of_others: BTreeMap<IpAddr, usize>,
}

/// What is done with one who knocks.
pub(super) enum Entry {
    /// It may try.
    Open(Pass),
    /// It may come again with a proof of its address.
    Prove,
    /// Nothing: too many are trying.
    Shut,
}

/// One handshake under way, until it is dropped.
pub(super) struct Pass {
    door: Arc<Door>,
    /// `None`: a member's address.
    host: Option<IpAddr>,
}

impl Door {
    /// Decides about one who knocks from `from`, where a member may have been found before, and who may have shown that the
    /// address is its own.
    pub(super) fn knock(self: &Arc<Self>, from: IpAddr, of_member: bool, proven: bool) -> Entry {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let host = (!of_member).then(|| host_of(from));
        let all = match host {
            None => under_way.of_members,
            Some(_) => under_way.of_others.values().sum(),
        };
        let of_host = host.and_then(|host| under_way.of_others.get(&host).copied()).unwrap_or_default();
        if all >= PLACES || of_host >= PLACES_OF_ONE {
            return Entry::Shut;
        }
        if all >= UNPROVEN_MAX && !proven {
            return Entry::Prove;
        }
        match host {
            None => under_way.of_members += 1,
            Some(host) => *under_way.of_others.entry(host).or_default() += 1,
        }
        Entry::Open(Pass { door: Arc::clone(self), host })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut under_way = self.door.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(host) = self.host else {
            under_way.of_members -= 1;
            return;
        };
        if let Some(count) = under_way.of_others.get_mut(&host) {
            *count -= 1;
            if *count == 0 {
                under_way.of_others.remove(&host);
            }
        }
    }
}

/// What one host has: an IPv4 address, or all IPv6 addresses of its network.
fn host_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Knocks until nobody else is let in.
    fn fill(door: &Arc<Door>, mut from: impl FnMut(usize) -> (IpAddr, bool, bool)) -> Vec<Pass> {
        let knock = |n| {
            let (from, of_member, proven) = from(n);
            match door.knock(from, of_member, proven) {
                Entry::Open(pass) => Some(pass),
                Entry::Prove | Entry::Shut => None,
            }
        };
        (0..1_000).map_while(knock).collect()
    }

    #[test]
    fn one_host_takes_few_places_and_all_strangers_none_of_the_members() {
        let door = Arc::new(Door::default());
        let one = fill(&door, |_| (ip("192.0.2.1"), false, true));
        assert_eq!(one.len(), PLACES_OF_ONE);
        let network = fill(&door, |n| (Ipv6Addr::from_bits((0x2001 << 112) + n as u128).into(), false, true));
        assert_eq!(network.len(), PLACES_OF_ONE, "addresses of one network are one host");
        assert!(matches!(door.knock(ip("::ffff:192.0.2.1"), false, true), Entry::Shut), "it is the same one");
        let many =
            fill(&door, |n| (Ipv6Addr::from_bits((0x2002_u128 << 112) + ((n as u128) << 64)).into(), false, true));
        assert_eq!(many.len(), PLACES - 2 * PLACES_OF_ONE);
        assert!(matches!(door.knock(ip("192.0.2.7"), false, true), Entry::Shut));
        assert_eq!(fill(&door, |_| (ip("192.0.2.2"), true, true)).len(), PLACES, "members still have theirs");
        drop(one);
        assert!(matches!(door.knock(ip("192.0.2.7"), false, true), Entry::Open(_)));
        drop((network, many));
        assert!(door.under_way.lock().unwrap().of_others.is_empty(), "nothing is kept of who has gone");
    }

    #[test]
    fn whoever_only_says_where_it_is_takes_few_places() {
        let door = Arc::new(Door::default());
        let spoofed = fill(&door, |n| (IpAddr::from([192, 0, 2, n as u8]), false, false));
        assert_eq!(spoofed.len(), UNPROVEN_MAX);
        assert!(matches!(door.knock(ip("192.0.2.99"), false, false), Entry::Prove));
        assert!(matches!(door.knock(ip("192.0.2.99"), false, true), Entry::Open(_)));
        let as_member = fill(&door, |_| (ip("198.51.100.1"), true, false));
        assert_eq!(as_member.len(), UNPROVEN_MAX);
        assert!(matches!(door.knock(ip("198.51.100.1"), true, true), Entry::Open(_)));
    }
}
