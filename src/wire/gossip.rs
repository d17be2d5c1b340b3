//! What a member says of itself by gossip: typed values and the texts that travel.
//!
//! Rule: a key that is not known, or a value that makes no sense, is passed over: members of other versions gossip, too.
//! Must not know: how gossip travels, and who is believed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::types::limits::{GOSSIP_OWN_MAX_BYTES, LEASE_SIGNS_MAX, LEASE_TTL_MAX_MS, NAMES_MAX, SHARDS_MAX};
use crate::types::{Epoch, GroupId, LeaseSign, MemberId, PhysicalIndex, ShardId, ShardSet, StoreId};

/// Longest text for people that is gossiped.
const TEXT_MAX_CHARS: usize = 300;
/// Longest text of leases; what is beyond it is not gossiped, and others hear of it otherwise.
const LEASES_MAX_BYTES: usize = 2_048;
/// Names of indexes in a list that is told.
const NAMED_MAX: usize = 4;
/// Bytes of the `unserved` text at most.
const UNSERVED_MAX_BYTES: usize = 3_072;
/// Bytes of the `unreached` text at most.
const UNREACHED_MAX_BYTES: usize = 1_024;

/// Too much to gossip.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("own gossip of {size} bytes is over the limit of {limit}")]
pub struct GossipTooLarge {
    /// Its size in bytes.
    pub size: usize,
    /// The limit in bytes.
    pub limit: usize,
}

/// Where a member is in its life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MemberState {
    /// Not serving yet.
    #[default]
    Joining,
    /// Serving.
    Active,
    /// Going: takes no new work.
    Draining,
    /// Gone for good.
    Removed,
}

impl MemberState {
    /// The text that travels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Removed => "removed",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Joining, Self::Active, Self::Draining, Self::Removed].into_iter().find(|s| s.as_str() == text)
    }
}

/// Members of the mesh that a member does not reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unreached {
    /// These; it reaches all others.
    Some(BTreeSet<MemberId>),
    /// More than can be named.
    Many,
}

impl Default for Unreached {
    fn default() -> Self {
        Self::Some(BTreeSet::new())
    }
}

impl Unreached {
    /// Whether the member reaches `other`.
    pub fn reaches(&self, other: &MemberId) -> bool {
        matches!(self, Self::Some(unreached) if !unreached.contains(other))
    }

    /// As an answer to a probe says it.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.text().unwrap_or_default().into_bytes()
    }

    /// From an answer to a probe; `None` if it makes no sense.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() { Some(Self::default()) } else { Self::parse(std::str::from_utf8(bytes).ok()?) }
    }

    fn parse(text: &str) -> Option<Self> {
        if text == MANY {
            return Some(Self::Many);
        }
        if text.len() > UNREACHED_MAX_BYTES {
            return None;
        }
        text.split(',').map(|id| MemberId::new(id).ok()).collect::<Option<_>>().map(Self::Some)
    }

    /// Nothing where all are reached. No character of it but the comma can stand between ids.
    fn text(&self) -> Option<String> {
        let Self::Some(unreached) = self else { return Some(MANY.to_owned()) };
        let ids: Vec<&str> = unreached.iter().map(MemberId::as_str).collect();
        let text = ids.join(",");
        if text.len() > UNREACHED_MAX_BYTES {
            return Some(MANY.to_owned());
        }
        (!ids.is_empty()).then_some(text)
    }
}

/// What stands for more members, or indexes, than can be named; none is named that.
const MANY: &str = "*";

/// What a member says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberGossip {
    /// Where it serves HTTP, as `host:port`.
    pub http: String,
    /// Where its mesh port is, as `host:port`.
    pub mesh: String,
    /// Its replica group.
    pub group: Option<GroupId>,
    /// Its version of Miroir.
    pub version: String,
    /// Its version of the mesh protocol.
    pub protocol: u16,
    /// Where it is in its life.
    pub state: MemberState,
    /// Whether its node answers.
    pub node_healthy: bool,
    /// Its node's version of Meilisearch.
    pub node_version: Option<String>,
    /// Why its node is of no use, for people.
    pub node_error: Option<String>,
    /// Shards of which it holds copies that it does not serve now.
    pub unserved: BTreeMap<PhysicalIndex, ShardSet>,
    /// Indexes of which its node has more to do than it should, so that it wants no more writes.
    pub pressed: BTreeSet<PhysicalIndex>,
    /// These are more than can be named: as heard, it stands for every index.
    pub pressed_all: bool,
    /// The disk of its store is almost full: it orders and stores no writes.
    pub disk_full: bool,
    /// Indexes that its node has lost.
    pub lost: BTreeSet<PhysicalIndex>,
    /// These are more than can be named: as heard, it stands for every index.
    pub lost_all: bool,
    /// The members that do not answer its probes.
    pub unreached: Unreached,
    /// Requests under way.
    pub load: u32,
    /// Digest of the versions of all records that it knows, in hexadecimal.
    pub records_digest: String,
    /// When its process began, RFC 3339.
    pub started_at: String,
    /// The store that its process works on.
    pub store: Option<StoreId>,
    /// The number of that process.
    pub start: Option<u64>,
    /// The leases that it holds, with the newest renewal of each.
    pub leases: Vec<LeaseSign>,
    /// The TTL of leases by which it goes, in milliseconds.
    pub lease_ttl_ms: Option<u64>,
}

/// Keys and texts, as they travel.
pub type Pairs = BTreeMap<&'static str, String>;

impl MemberGossip {
    /// The same, short enough to travel: a node that lacks more indexes than can be named is of no use at all.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        if unserved_text(&self.unserved).len() > UNSERVED_MAX_BYTES {
            self.node_healthy = false;
            self.node_error = Some(format!(
                "copies of {} indexes are lost or behind; if the node lost its data, give it back",
                self.unserved.len()
            ));
            self.unserved.clear();
        }
        self
    }

    /// The texts that travel; absent values have none.
    ///
    /// # Errors
    /// [`GossipTooLarge`] over 8 KiB in all.
    pub fn to_pairs(&self) -> Result<Pairs, GossipTooLarge> {
        let text = |t: &str| t.chars().take(TEXT_MAX_CHARS).collect::<String>();
        let mut pairs = Pairs::from([
            ("http", text(&self.http)),
            ("mesh", text(&self.mesh)),
            ("version", text(&self.version)),
            ("protocol", self.protocol.to_string()),
            ("state", self.state.as_str().to_owned()),
            ("node.healthy", self.node_healthy.to_string()),
            ("load", self.load.to_string()),
            ("records", text(&self.records_digest)),
            ("started", text(&self.started_at)),
        ]);
        if let Some(group) = &self.group {
            pairs.insert("group", group.as_str().to_owned());
        }
        if let Some(version) = &self.node_version {
            pairs.insert("node.version", text(version));
        }
        if let Some(error) = &self.node_error {
            pairs.insert("node.error", text(error));
        }
        if !self.unserved.is_empty() {
            pairs.insert("unserved", unserved_text(&self.unserved));
        }
        if let Some(pressed) = names_text(&self.pressed, self.pressed_all) {
            pairs.insert("pressed", pressed);
        }
        if let Some(lost) = names_text(&self.lost, self.lost_all) {
            pairs.insert("lost", lost);
        }
        if self.disk_full {
            pairs.insert("disk.full", true.to_string());
        }
        if let Some(unreached) = self.unreached.text() {
            pairs.insert("unreached", unreached);
        }
        if let Some(store) = self.store {
            pairs.insert("store", store.to_string());
        }
        if let Some(start) = self.start {
            pairs.insert("start", start.to_string());
        }
        if let Some(ttl_ms) = self.lease_ttl_ms {
            pairs.insert("lease.ttl", ttl_ms.to_string());
        }
        let leases = leases_text(&self.leases);
        if !leases.is_empty() {
            pairs.insert("leases", leases);
        }
        let size = pairs.iter().map(|(k, v)| k.len() + v.len()).sum();
        if size > GOSSIP_OWN_MAX_BYTES {
            return Err(GossipTooLarge { size, limit: GOSSIP_OWN_MAX_BYTES });
        }
        Ok(pairs)
    }

    /// Reads what came; the number says how many values made no sense and were passed over.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> (Self, usize) {
        let (mut gossip, mut malformed) = (Self::default(), 0);
        for (key, value) in pairs {
            if gossip.take(key, value).is_none() {
                malformed += 1;
            }
        }
        (gossip, malformed)
    }

    /// Takes one value in; `None` if it makes no sense.
    fn take(&mut self, key: &str, value: &str) -> Option<()> {
        let text = || (value.chars().count() <= TEXT_MAX_CHARS).then(|| value.to_owned());
        match key {
            "http" => self.http = text()?,
            "mesh" => self.mesh = text()?,
            "group" => self.group = Some(GroupId::new(value).ok()?),
            "version" => self.version = text()?,
            "protocol" => self.protocol = value.parse().ok()?,
            "state" => self.state = MemberState::parse(value)?,
            "node.healthy" => self.node_healthy = value.parse().ok()?,
            "node.version" => self.node_version = Some(text()?),
            "node.error" => self.node_error = Some(text()?),
            "unserved" => self.unserved = parse_unserved(value)?,
            "lost" => (self.lost, self.lost_all) = parse_names(value)?,
            "pressed" => (self.pressed, self.pressed_all) = parse_names(value)?,
            "disk.full" => self.disk_full = value.parse().ok()?,
            "unreached" => self.unreached = Unreached::parse(value)?,
            "load" => self.load = value.parse().ok()?,
            "records" => self.records_digest = text().filter(|t| t.bytes().all(|b| b.is_ascii_hexdigit()))?,
            "started" => self.started_at = text()?,
            "store" => self.store = Some(value.parse().ok()?),
            "start" => self.start = Some(value.parse().ok()?),
            "lease.ttl" => self.lease_ttl_ms = Some(value.parse().ok().filter(|ms| *ms <= LEASE_TTL_MAX_MS)?),
            "leases" => self.leases = parse_leases(value)?,
            _ => {}
        }
        Some(())
    }
}

/// `<physical>=<first>-<last>,<one>;…`: no character of it can stand in a physical name.
fn unserved_text(unserved: &BTreeMap<PhysicalIndex, ShardSet>) -> String {
    let mut out = String::new();
    for (index, shards) in unserved {
        if !out.is_empty() {
            out.push(';');
        }
        write!(out, "{index}=").expect("a string takes all text");
        for (n, (first, last)) in ranges(shards).into_iter().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            if first == last {
                write!(out, "{comma}{first}").expect("a string takes all text");
            } else {
                write!(out, "{comma}{first}-{last}").expect("a string takes all text");
            }
        }
    }
    out
}

/// Names, or what stands for more of them than are told; nothing where there are none.
fn names_text(indexes: &BTreeSet<PhysicalIndex>, all: bool) -> Option<String> {
    if all || indexes.len() > NAMED_MAX {
        return Some(MANY.to_owned());
    }
    let names: Vec<&str> = indexes.iter().map(PhysicalIndex::as_str).collect();
    (!names.is_empty()).then(|| names.join(";"))
}

/// The names, and whether they are more than are told.
fn parse_names(text: &str) -> Option<(BTreeSet<PhysicalIndex>, bool)> {
    if text == MANY {
        return Some((BTreeSet::new(), true));
    }
    let names: BTreeSet<_> = text.split(';').map(PhysicalIndex::new).collect::<Result<_, _>>().ok()?;
    (names.len() <= NAMED_MAX).then_some((names, false))
}

fn ranges(shards: &ShardSet) -> Vec<(u16, u16)> {
    let mut ranges: Vec<(u16, u16)> = vec![];
    for ShardId(n) in shards.iter() {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == n => *last = n,
            _ => ranges.push((n, n)),
        }
    }
    ranges
}

fn parse_unserved(text: &str) -> Option<BTreeMap<PhysicalIndex, ShardSet>> {
    let mut unserved = BTreeMap::new();
    for part in text.split(';').filter(|p| !p.is_empty()) {
        let (index, shards) = part.split_once('=')?;
        unserved.insert(PhysicalIndex::new(index).ok()?, parse_shards(shards)?);
        if unserved.len() > NAMES_MAX {
            return None;
        }
    }
    Some(unserved)
}

fn parse_shards(text: &str) -> Option<ShardSet> {
    let mut shards = ShardSet::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= SHARDS_MAX {
            return None;
        }
        for n in first..=last {
            shards.insert(ShardId(n));
        }
    }
    Some(shards)
}

/// `<scope>=<epoch>.<start>.<renewal>;…`: neither `=` nor `;` can stand in a scope.
fn leases_text(leases: &[LeaseSign]) -> String {
    let mut out = String::new();
    for LeaseSign { scope, epoch, start, renewal } in leases.iter().take(LEASE_SIGNS_MAX) {
        let separator = if out.is_empty() { "" } else { ";" };
        let one = format!("{separator}{scope}={epoch}.{start}.{renewal}");
        if out.len() + one.len() > LEASES_MAX_BYTES {
            break;
        }
        out.push_str(&one);
    }
    out
}

fn parse_leases(text: &str) -> Option<Vec<LeaseSign>> {
    if text.len() > LEASES_MAX_BYTES {
        return None;
    }
    let sign = |part: &str| {
        let (scope, numbers) = part.split_once('=')?;
        let mut numbers = numbers.split('.').map(|n| n.parse::<u64>().ok());
        let sign = LeaseSign {
            scope: scope.parse().ok()?,
            epoch: Epoch::new(numbers.next()??)?,
            start: numbers.next()??,
            renewal: numbers.next()??,
        };
        numbers.next().is_none().then_some(sign)
    };
    let signs: Vec<LeaseSign> = text.split(';').filter(|p| !p.is_empty()).map(sign).collect::<Option<_>>()?;
    (signs.len() <= LEASE_SIGNS_MAX).then_some(signs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(pairs: &Pairs) -> (MemberGossip, usize) {
        MemberGossip::from_pairs(pairs.iter().map(|(k, v)| (*k, v.as_str())))
    }

    proptest! {
        #[test]
        fn gossip_survives_the_wire(
            text in "[a-z0-9:.]{0,40}",
            optional in prop::option::of("[a-z ]{0,40}"),
            protocol: u16, load: u32, node_healthy: bool,
            state in prop::sample::select(vec![MemberState::Joining, MemberState::Active, MemberState::Draining, MemberState::Removed]),
            unserved in prop::collection::btree_map(0_u32..9, prop::collection::btree_set(0..SHARDS_MAX, 0..60), 0..5),
            pressed in prop::collection::btree_set(0_u32..9, 0..=NAMED_MAX),
            lost in prop::collection::btree_set(0_u32..9, 0..=NAMED_MAX),
            lease_ttl_ms in prop::option::of(0..=LEASE_TTL_MAX_MS),
            process in prop::option::of((any::<[u8; 16]>(), any::<u64>())),
            unreached in prop::option::of(prop::collection::btree_set("[a-z][a-z0-9]{0,20}", 0..9)),
            leases in prop::collection::vec((0_usize..6, 0_u64..=1 << 53, any::<u64>(), any::<u64>()), 0..9),
        ) {
            let sign = |(scope, epoch, start, renewal): (usize, u64, u64, u64)| {
                let scopes = ["membership", "alive:m1", "alias_flip:a_B-c", "rebalance:a__m00000001", "ilm", "task_ids"];
                LeaseSign { scope: scopes[scope].parse().unwrap(), epoch: Epoch::new(epoch).unwrap(), start, renewal }
            };
            let leases = leases.into_iter().map(sign).collect();
            let index = |n: u32| PhysicalIndex::new(format!("a-b_c__m{n:08x}")).unwrap();
            let unserved = unserved.into_iter().map(|(n, s)| (index(n), s.into_iter().map(ShardId).collect())).collect();
            let gossip = MemberGossip {
                http: text.clone(), mesh: text.clone(), group: Some(GroupId::new("g1").unwrap()), version: text.clone(),
                protocol, state, node_healthy, node_version: optional.clone(), node_error: optional, unserved, load,
                pressed: pressed.into_iter().map(index).collect(), lost: lost.into_iter().map(index).collect(), pressed_all: false, lost_all: false, disk_full: node_healthy ^ (load > 9), records_digest: "00ff".into(), started_at: text, leases, lease_ttl_ms,
                unreached: unreached.map_or(Unreached::Many, |ids| {
                    Unreached::Some(ids.into_iter().map(|id| MemberId::new(id).unwrap()).collect())
                }),
                store: process.map(|p| StoreId(p.0)), start: process.map(|p| p.1),
            };
            prop_assert_eq!(read(&gossip.to_pairs().unwrap()), (gossip, 0));
        }

        #[test]
        fn garbage_is_passed_over(key in "[a-z.]{0,12}", value: String, shards in "[0-9,=;a_m-]{0,40}", leases in "(task_ids|ilm|=|;|\\.|[0-9]){0,20}") {
            let pairs = [(key.as_str(), value.as_str()), ("unserved", &shards), ("leases", &leases), ("unreached", &value)];
            let _ = MemberGossip::from_pairs(pairs);
        }
    }

    #[test]
    fn an_answer_to_a_probe_says_whom_the_member_does_not_reach() {
        let some = |ids: &[&str]| Unreached::Some(ids.iter().map(|id| MemberId::new(*id).unwrap()).collect());
        for unreached in [some(&[]), some(&["m1"]), some(&["m1", "m2"]), Unreached::Many] {
            assert_eq!(Unreached::from_bytes(&unreached.to_bytes()), Some(unreached));
        }
        let long = "m,".repeat(UNREACHED_MAX_BYTES).into_bytes();
        for garbage in [&b"\xff"[..], b",", b"m1,,m2", &long] {
            assert_eq!(Unreached::from_bytes(garbage), None);
        }
    }

    #[test]
    fn unknown_keys_and_malformed_values_change_nothing_else() {
        let known = MemberGossip { load: 3, ..MemberGossip::default() };
        let mut pairs = known.to_pairs().unwrap();
        pairs.insert("of tomorrow", "x".into());
        assert_eq!(read(&pairs), (known.clone(), 0));
        for (key, value) in
            [("state", "asleep"), ("protocol", "-1"), ("unserved", "p__m00000001=5-2"), ("group", ""), ("store", "0g")]
        {
            let mut pairs = known.to_pairs().unwrap();
            pairs.insert(key, value.into());
            let (gossip, malformed) = read(&pairs);
            assert_eq!((gossip.load, malformed), (3, 1), "{key}");
        }
    }

    #[test]
    fn who_has_more_to_do_than_can_be_named_wants_no_writes_at_all() {
        let ids = |n: usize| (0..n).map(|i| PhysicalIndex::new(format!("i{i}__m00000001")).unwrap()).collect();
        let heard = |n| {
            let gossip = MemberGossip { pressed: ids(n), lost: ids(n), ..MemberGossip::default() };
            let (heard, malformed) = read(&gossip.to_pairs().unwrap());
            assert_eq!((&heard.lost, heard.lost_all, malformed), (&heard.pressed, heard.pressed_all, 0));
            (heard.pressed, heard.pressed_all)
        };
        assert_eq!(heard(0), (ids(0), false));
        assert_eq!(heard(NAMED_MAX), (ids(NAMED_MAX), false));
        assert_eq!(heard(NAMED_MAX + 1), (ids(0), true));
    }

    #[test]
    fn shards_out_of_range_are_refused() {
        for bad in ["1024", "0-1024", "70000", "1-", "-1", "a", "9-3"] {
            assert_eq!(parse_shards(bad), None, "{bad}");
        }
        assert_eq!(parse_shards("0-1023").unwrap(), ShardSet::all(SHARDS_MAX));
    }

    #[test]
    fn who_reaches_too_few_to_name_the_others_reaches_nobody() {
        let ids = |n: usize| (0..n).map(|i| MemberId::new(format!("m{i:0>50}")).unwrap()).collect();
        let said = |n| {
            let gossip = MemberGossip { unreached: Unreached::Some(ids(n)), ..MemberGossip::default() };
            read(&gossip.to_pairs().unwrap()).0.unreached
        };
        assert_eq!((said(0), said(19)), (Unreached::default(), Unreached::Some(ids(19))));
        assert_eq!(said(20), Unreached::Many);
        let other = MemberId::new("m-other").unwrap();
        assert!(said(19).reaches(&other) && !said(19).reaches(ids(1).first().unwrap()) && !said(20).reaches(&other));
    }

    #[test]
    fn as_many_leases_travel_as_there_is_room_for() {
        let sign = |n: u64| LeaseSign {
            scope: format!("alias_flip:{}{n}", "x".repeat(380)).parse().unwrap(),
            epoch: Epoch::new(1 << 53).unwrap(),
            start: u64::MAX,
            renewal: n,
        };
        let gossip = MemberGossip { leases: (0..99).map(sign).collect(), ..MemberGossip::default() };
        let heard = read(&gossip.to_pairs().unwrap()).0.leases;
        assert!(!heard.is_empty() && heard[..] == gossip.leases[..heard.len()]);
        for bad in ["ilm", "ilm=1", "ilm=1.2", "ilm=1.2.3.4", "ilm=9007199254740993.1.1", "x=1.1.1", "ilm=1.-2.3"] {
            assert_eq!(parse_leases(bad), None, "{bad}");
        }
        assert_eq!(parse_leases(&"ilm=1.2.3;".repeat(LEASE_SIGNS_MAX + 1)), None);
    }

    #[test]
    fn too_much_is_refused_before_it_is_sent() {
        let index = |n: u32| PhysicalIndex::new(format!("packages__m{n:08x}")).unwrap();
        let gossip = MemberGossip {
            unserved: (0..400).map(|n| (index(n), ShardSet::all(64))).collect(),
            ..MemberGossip::default()
        };
        assert!(gossip.to_pairs().is_err());
        let long = MemberGossip { node_error: Some("é".repeat(10_000)), ..MemberGossip::default() };
        assert_eq!(read(&long.to_pairs().unwrap()).0.node_error.unwrap().chars().count(), TEXT_MAX_CHARS);
    }
}
