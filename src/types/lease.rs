//! Leases as values: the scopes that can be held, epochs, and what a lease's record says.
//!
//! A value of these types is well formed: names are checked, numbers stay where JSON keeps them exact. Must not know: when
//! a lease may be taken (`proto::lease`).

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ids::{IndexUid, MemberId, PhysicalIndex};
use super::limits::{EPOCH_MAX, LEASE_TTL_MAX_MS, LEASE_TTL_MIN_MS};

/// What a lease is about. Its text is its name everywhere: in records, orders, logs and metrics.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// That this member's process lives; only the member itself ever holds it.
    Alive(MemberId),
    /// Members and groups: adding, draining, removing. Standing.
    Membership,
    /// Elections of primaries. Standing.
    ShardLeaders,
    /// Handing out task ids. Standing.
    TaskIds,
    /// Moving shards of one index.
    Rebalance(PhysicalIndex),
    /// Changing the number of shards of one index.
    Reshard(PhysicalIndex),
    /// A change of settings of one index.
    SettingsBroadcast(PhysicalIndex),
    /// Pointing one alias at another index.
    AliasFlip(IndexUid),
    /// Life cycles of indexes.
    Ilm,
    /// New keys for the search page of one index.
    SearchUiKeyRotation(PhysicalIndex),
}

/// Why a text is no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a scope")]
pub struct ScopeError {
    /// The refused text, cut to 64 characters.
    pub text: String,
}

impl Scope {
    /// The scopes that somebody holds from the first start on, also without work.
    pub const STANDING: [Scope; 3] = [Scope::Membership, Scope::ShardLeaders, Scope::TaskIds];

    /// Whether the scope is held also without work.
    pub fn is_standing(&self) -> bool {
        Self::STANDING.contains(self)
    }

    /// Whether its holder leads something: the lease of a member's life says only that it lives.
    pub fn is_led(&self) -> bool {
        !matches!(self, Self::Alive(_))
    }

    /// The ledger's key of the scope's lease.
    pub fn lease_key(&self) -> String {
        format!("lease:{self}")
    }

    /// The scope whose lease the ledger keeps under `key`, if it is one.
    pub fn of_lease_key(key: &str) -> Option<Self> {
        key.strip_prefix("lease:")?.parse().ok()
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alive(member) => write!(f, "alive:{member}"),
            Self::Membership => f.write_str("membership"),
            Self::ShardLeaders => f.write_str("shard_leaders"),
            Self::TaskIds => f.write_str("task_ids"),
            Self::Rebalance(index) => write!(f, "rebalance:{index}"),
            Self::Reshard(index) => write!(f, "reshard:{index}"),
            Self::SettingsBroadcast(index) => write!(f, "settings_broadcast:{index}"),
            Self::AliasFlip(name) => write!(f, "alias_flip:{name}"),
            Self::Ilm => f.write_str("ilm"),
            Self::SearchUiKeyRotation(index) => write!(f, "search_ui_key_rotation:{index}"),
        }
    }
}

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        let (kind, name) = text.split_once(':').map_or((text, None), |(kind, name)| (kind, Some(name)));
        let index = || name.and_then(|n| PhysicalIndex::new(n).ok());
        let scope = match (kind, name) {
            ("alive", Some(name)) => MemberId::new(name).ok().map(Self::Alive),
            ("membership", None) => Some(Self::Membership),
            ("shard_leaders", None) => Some(Self::ShardLeaders),
            ("task_ids", None) => Some(Self::TaskIds),
            ("rebalance", Some(_)) => index().map(Self::Rebalance),
            ("reshard", Some(_)) => index().map(Self::Reshard),
            ("settings_broadcast", Some(_)) => index().map(Self::SettingsBroadcast),
            ("alias_flip", Some(name)) => IndexUid::new(name).ok().map(Self::AliasFlip),
            ("ilm", None) => Some(Self::Ilm),
            ("search_ui_key_rotation", Some(_)) => index().map(Self::SearchUiKeyRotation),
            _ => None,
        };
        scope.ok_or_else(|| ScopeError { text: text.chars().take(64).collect() })
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Fences a scope: it only grows, every order carries it, and whoever has seen a higher one refuses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Epoch(u64);

impl Epoch {
    /// Below every epoch that is ever held.
    pub const ZERO: Epoch = Epoch(0);

    /// The epoch of this number; `None` above [`EPOCH_MAX`].
    pub fn new(number: u64) -> Option<Self> {
        (number <= EPOCH_MAX).then_some(Self(number))
    }

    /// Its number.
    pub fn number(self) -> u64 {
        self.0
    }

    /// The one after it; `None` after the last.
    pub fn next(self) -> Option<Self> {
        Self::new(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Epoch {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::new(u64::deserialize(d)?).ok_or_else(|| serde::de::Error::custom("an epoch beyond 2^53"))
    }
}

/// One process of one member.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// The member.
    pub member: MemberId,
    /// Which of its processes.
    pub start: u64,
}

/// What a lease's record says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseValue {
    /// Whose it is.
    pub holder: Holder,
    /// Goes up by at least one with every new holder.
    pub epoch: Epoch,
    /// The number of the attempt that wrote this; a process never sends one twice.
    pub renewal: u64,
    /// How long the lease lasts, in milliseconds.
    pub ttl_ms: u64,
    /// Given back: anybody may take it at once.
    pub released: bool,
}

/// Why a text is no lease.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Not JSON of this form.
    #[error("the record is not a lease: {source}")]
    Malformed {
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A TTL that nobody may configure.
    #[error("a lease of {ttl_ms} ms is outside the bounds")]
    Ttl {
        /// What the record says.
        ttl_ms: u64,
    },
}

impl LeaseValue {
    /// Microseconds of belief for each millisecond of the TTL.
    pub const BELIEF_PER_MS: u64 = 950;
    /// Microseconds of patience for each millisecond of the TTL.
    pub const PATIENCE_PER_MS: u64 = 1_050;

    /// Reads a record's text.
    ///
    /// # Errors
    /// [`LeaseError`] if it is not a lease, or not one that could have been configured.
    pub fn parse(text: &str) -> Result<Self, LeaseError> {
        let value: Self = serde_json::from_str(text).map_err(|source| LeaseError::Malformed { source })?;
        if !(LEASE_TTL_MIN_MS..=LEASE_TTL_MAX_MS).contains(&value.ttl_ms) {
            return Err(LeaseError::Ttl { ttl_ms: value.ttl_ms });
        }
        Ok(value)
    }

    /// The record's text.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers, ids and a boolean are always JSON")
    }

    /// How long its holder may believe, from before it sent the attempt: the TTL less a twentieth.
    pub fn belief(&self) -> Duration {
        Duration::from_micros(self.ttl_ms * Self::BELIEF_PER_MS)
    }

    /// How long everybody else must see it unchanged: the TTL and a twentieth.
    pub fn patience(&self) -> Duration {
        Duration::from_micros(self.ttl_ms * Self::PATIENCE_PER_MS)
    }
}

/// What gossip tells of a lease that the telling member holds: a sign of life, no proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseSign {
    /// The scope.
    pub scope: Scope,
    /// Under which epoch the teller holds it.
    pub epoch: Epoch,
    /// The teller's process.
    pub start: u64,
    /// The newest attempt that the ledger took.
    pub renewal: u64,
}

/// What every order of a leader carries, so that the receiver can refuse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// What the sender leads.
    pub scope: Scope,
    /// Under which epoch.
    pub epoch: Epoch,
    /// The record that calls for the order.
    pub record: String,
    /// Its version that does.
    pub version: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scopes() -> Vec<Scope> {
        let index = || PhysicalIndex::new(format!("{}__m0123abcd", "p".repeat(380))).unwrap();
        vec![
            Scope::Alive(MemberId::new("m1").unwrap()),
            Scope::Membership,
            Scope::ShardLeaders,
            Scope::TaskIds,
            Scope::Rebalance(index()),
            Scope::Reshard(index()),
            Scope::SettingsBroadcast(index()),
            Scope::AliasFlip(IndexUid::new("x".repeat(400)).unwrap()),
            Scope::Ilm,
            Scope::SearchUiKeyRotation(index()),
        ]
    }

    #[test]
    fn a_scope_reads_back_as_it_is_printed() {
        for scope in scopes() {
            assert_eq!(scope.to_string().parse(), Ok(scope.clone()));
            assert_eq!(Scope::of_lease_key(&scope.lease_key()), Some(scope.clone()));
            assert_eq!(serde_json::from_str::<Scope>(&serde_json::to_string(&scope).unwrap()).unwrap(), scope);
            assert!(scope.lease_key().len() <= 512, "a ledger's key");
        }
        for bad in ["", "membership:", "membership:x", "alive", "alive:M", "rebalance:packages", "alias_flip:a b", "x"]
        {
            assert!(bad.parse::<Scope>().is_err(), "{bad}");
        }
        assert_eq!(Scope::of_lease_key("membership"), None);
    }

    #[test]
    fn a_lease_that_nobody_could_have_written_is_refused() {
        let value = LeaseValue {
            holder: Holder { member: MemberId::new("m1").unwrap(), start: 3 },
            epoch: Epoch::new(7).unwrap(),
            renewal: 9,
            ttl_ms: 10_000,
            released: false,
        };
        let text = value.to_json();
        assert_eq!(LeaseValue::parse(&text).unwrap(), value);
        for (from, to) in [
            ("10000", "0"),
            ("10000", "18446744073709551615"),
            ("\"epoch\":7", "\"epoch\":9007199254740993"),
            ("m1", "M1"),
            ("{", "["),
        ] {
            assert!(text.contains(from), "{from}");
            assert!(LeaseValue::parse(&text.replacen(from, to, 1)).is_err(), "{from} → {to}");
        }
    }

    #[test]
    fn belief_ends_before_patience_does_on_clocks_that_differ_by_five_percent() {
        let value = |ttl_ms| LeaseValue {
            holder: Holder { member: MemberId::new("m1").unwrap(), start: 0 },
            epoch: Epoch::ZERO,
            renewal: 0,
            ttl_ms,
            released: false,
        };
        for ttl_ms in [LEASE_TTL_MIN_MS, 10_000, LEASE_TTL_MAX_MS] {
            let v = value(ttl_ms);
            // The holder's clock at 95 % of the right pace, the other's at 105 %.
            assert!(v.belief().as_micros() * 100 / 95 <= v.patience().as_micros() * 100 / 105);
        }
    }
}
