//! Who is seen to live, and who reaches whom.
//!
//! Rule: it is a hint. Elections are kept apart by the record, so a picture that is wrong costs time, never a write. Must not
//! know: how probes and gossip work.

use std::collections::{BTreeMap, BTreeSet};

use super::effect::{Alive, Sight};
use super::election::Reach;
use crate::types::{JournalKey, MemberId, PhysicalIndex, ReplicaId, ShardSet, StoreId};
use crate::wire::gossip::Unreached;

/// The mesh, as this member sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The members whose probes are answered, the own one included.
    pub sight: Sight,
    /// The stores and processes of all members that anybody sees.
    pub known: Sight,
    /// Who reaches whom, as each member tells of itself.
    pub reach: Reach,
    /// This member's disk is almost full.
    pub full: bool,
    /// Members whose nodes are down, this one among them: their copies fall behind.
    pub idle: BTreeSet<MemberId>,
    /// Shards that members do not serve, as they tell.
    pub unserved: BTreeMap<MemberId, BTreeMap<PhysicalIndex, ShardSet>>,
}

/// What is known of one other member.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    /// Its probes are answered.
    pub reached: bool,
    /// The process at the other end of the connection, which its certificate proves.
    pub connected: Option<u64>,
    /// The store that the mesh's record lists.
    pub listed: Option<StoreId>,
    /// The store and the process of which gossip tells.
    pub gossiped: Option<(StoreId, u64)>,
    /// Whom it does not reach, by gossip of a member that lives.
    pub unreached: Option<Unreached>,
    /// Its disk is almost full, by its gossip: it takes part in no journal.
    pub full: bool,
    /// Its node is down, by its gossip.
    pub idle: bool,
    /// Shards that it does not serve, by its gossip.
    pub unserved: BTreeMap<PhysicalIndex, ShardSet>,
}

/// What this member knows of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Own {
    /// Its process.
    pub start: u64,
    /// Its disk is almost full.
    pub full: bool,
    /// Its node is down.
    pub idle: bool,
}

impl Peer {
    /// The process that is at work, with its store. Which store that is neither connection nor record prove alone, but the
    /// number of a process tells whether it is of a store.
    fn alive(&self) -> Option<Alive> {
        let start = self.connected.or(self.gossiped.map(|(_, start)| start))?;
        let gossiped = self.gossiped.filter(|(_, of)| *of == start).map(|(store, _)| store);
        let store = gossiped.or(self.listed).filter(|store| store.may_have_run(start))?;
        Some(Alive { store, start })
    }
}

impl Seen {
    /// Whether a member tells that it does not serve a shard, or nothing at all.
    pub fn lacks(&self, member: &MemberId, key: &JournalKey) -> bool {
        if self.idle.contains(member) {
            return true;
        }
        let of = self.unserved.get(member).and_then(|unserved| unserved.get(&key.index));
        of.is_some_and(|shards| shards.contains(key.shard))
    }

    /// The picture that `own` has, of what it knows of all others that are listed. Whose disk is almost full is to journals as
    /// somebody who is not there, this member among them.
    pub fn of(own: &ReplicaId, is: Own, peers: &BTreeMap<MemberId, Peer>) -> Self {
        let Own { start, full, idle } = is;
        let idle =
            peers.iter().filter(|(_, peer)| peer.idle).map(|(m, _)| m.clone()).chain(idle.then(|| own.member.clone()));
        let idle = idle.collect();
        let peers: BTreeMap<&MemberId, &Peer> = peers.iter().filter(|(_, peer)| !peer.full).collect();
        let me = || (!full).then(|| (own.member.clone(), Alive { store: own.store, start }));
        let alive = |(member, peer): (&&MemberId, &&Peer)| Some(((*member).clone(), peer.alive()?));
        let sees = |peer: &Peer| peer.reached && peer.connected.is_some();
        let everybody = || peers.keys().copied().chain([&own.member]);
        // The last word of one whom neither this member reaches nor anybody whom it reaches says nothing: two that are gone would
        // reach each other for ever.
        let heard = |member: &MemberId| {
            let by = |(other, p): (&&MemberId, &&Peer)| {
                p.reached && *other != member && p.unreached.as_ref().is_some_and(|u| u.reaches(member))
            };
            peers.iter().any(by)
        };
        let told = |(member, peer): (&&MemberId, &&Peer)| {
            let unreached = peer.unreached.as_ref().filter(|_| peer.reached || heard(member))?;
            Some(((*member).clone(), everybody().filter(|other| unreached.reaches(other)).cloned().collect()))
        };
        let reached: BTreeSet<MemberId> =
            peers.iter().filter(|(_, peer)| peer.reached).map(|(m, _)| *m).chain([&own.member]).cloned().collect();
        let own = (!full).then(|| (own.member.clone(), reached));
        Self {
            sight: peers.iter().filter(|(_, peer)| sees(peer)).filter_map(alive).chain(me()).collect(),
            known: peers.iter().filter_map(alive).chain(me()).collect(),
            unserved: peers
                .iter()
                .filter(|(_, p)| !p.unserved.is_empty())
                .map(|(m, p)| ((*m).clone(), p.unserved.clone()))
                .collect(),
            reach: peers.iter().filter_map(told).chain(own).collect(),
            full,
            idle,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str) -> MemberId {
        MemberId::new(name).unwrap()
    }

    fn store(n: u8) -> StoreId {
        StoreId([n; 16])
    }

    fn first(n: u8) -> u64 {
        store(n).first_start() + 1
    }

    fn seen(peers: impl IntoIterator<Item = (&'static str, Peer)>) -> Seen {
        let own = ReplicaId { member: member("m0"), store: store(9) };
        Seen::of(
            &own,
            Own { start: first(9), ..Own::default() },
            &peers.into_iter().map(|(name, peer)| (member(name), peer)).collect(),
        )
    }

    /// A member that is connected, with its first process on the store of that number.
    fn connected(n: u8) -> Peer {
        let gossiped = Some((store(n), first(n)));
        let unreached = Some(Unreached::default());
        Peer {
            reached: true,
            connected: Some(first(n)),
            listed: Some(store(n)),
            gossiped,
            unreached,
            ..Peer::default()
        }
    }

    #[test]
    fn a_process_is_seen_as_soon_as_it_is_connected() {
        let restarted = Peer { connected: Some(first(1) + 1), ..connected(1) };
        let seen = seen([("m1", restarted)]);
        assert_eq!(seen.sight[&member("m1")], Alive { store: store(1), start: first(1) + 1 });
        assert_eq!(seen.sight[&member("m0")], Alive { store: store(9), start: first(9) });
    }

    #[test]
    fn a_process_on_another_store_than_the_record_lists_waits_for_gossip() {
        let anew = Peer { connected: Some(first(2)), ..connected(1) };
        assert_eq!(seen([("m1", anew.clone())]).sight.get(&member("m1")), None);
        let told = Peer { gossiped: Some((store(2), first(2))), ..anew };
        assert_eq!(seen([("m1", told)]).sight[&member("m1")].store, store(2));
        let lies = Peer { gossiped: Some((store(3), first(1))), ..connected(1) };
        assert_eq!(seen([("m1", lies)]).sight.get(&member("m1")), None, "no process of that number was on that store");
    }

    #[test]
    fn who_answers_no_probe_is_known_and_not_seen() {
        let away = Peer { reached: false, connected: None, ..connected(1) };
        let frozen = Peer { reached: false, ..connected(2) };
        let seen = seen([("m1", away), ("m2", frozen)]);
        assert_eq!(seen.sight.keys().collect::<Vec<_>>(), [&member("m0")]);
        assert_eq!(seen.known.len(), 3);
        assert_eq!(seen.reach[&member("m0")], [member("m0")].into());
    }

    #[test]
    fn who_has_no_room_is_not_there() {
        let full = Peer { full: true, ..connected(1) };
        let peers = [(member("m1"), full), (member("m2"), connected(2))].into();
        let own = ReplicaId { member: member("m0"), store: store(9) };
        for (own_full, there) in [(false, vec!["m0", "m2"]), (true, vec!["m2"])] {
            let seen = Seen::of(&own, Own { start: first(9), full: own_full, idle: false }, &peers);
            assert_eq!(seen.sight.keys().map(MemberId::as_str).collect::<Vec<_>>(), there);
            assert_eq!(seen.known.len(), there.len());
            assert_eq!(seen.reach.keys().map(MemberId::as_str).collect::<Vec<_>>(), there);
        }
    }

    #[test]
    fn whose_node_is_down_lacks_everything() {
        let peers = [(member("m1"), Peer { idle: true, ..connected(1) }), (member("m2"), connected(2))].into();
        let own = ReplicaId { member: member("m0"), store: store(9) };
        let seen = Seen::of(&own, Own { start: first(9), full: false, idle: true }, &peers);
        let key = JournalKey { index: PhysicalIndex::new("a__m00000001").unwrap(), shard: crate::types::ShardId(0) };
        assert_eq!(["m0", "m1", "m2"].map(|m| seen.lacks(&member(m), &key)), [true, true, false]);
        assert_eq!(seen.sight.len(), 3, "their journals go on");
    }

    #[test]
    fn the_last_words_of_those_whom_nobody_reaches_are_forgotten() {
        let (gone, tells) = (["m1", "m2"].map(member), |of: &[&str]| {
            Some(Unreached::Some(of.iter().map(|name| member(name)).collect()))
        });
        let away = |n| Peer { reached: false, connected: None, ..connected(n) };
        let noticed = Peer { unreached: tells(&["m1", "m2"]), ..connected(3) };
        let late = Peer { unreached: tells(&["m1"]), ..connected(3) };
        let known = |third: Peer| {
            let reach = seen([("m1", away(1)), ("m2", away(2)), ("m3", third)]).reach;
            gone.clone().map(|member| reach.contains_key(&member))
        };
        assert_eq!(known(noticed), [false, false]);
        // Another reaches one of them still: only the way from here may be cut.
        assert_eq!(known(late), [false, true]);
    }

    #[test]
    fn each_tells_whom_it_does_not_reach() {
        let cut = Peer { unreached: Some(Unreached::Some([member("m2")].into())), ..connected(1) };
        let silent = Peer { unreached: None, ..connected(2) };
        let lonely = Peer { unreached: Some(Unreached::Many), ..connected(3) };
        let reach = seen([("m1", cut), ("m2", silent), ("m3", lonely)]).reach;
        let names = |of: &str| reach.get(&member(of)).map(|all| all.iter().map(MemberId::as_str).collect::<Vec<_>>());
        assert_eq!(names("m0").unwrap(), ["m0", "m1", "m2", "m3"]);
        assert_eq!(names("m1").unwrap(), ["m0", "m1", "m3"]);
        assert_eq!((names("m2"), names("m3").unwrap().len()), (None, 0));
    }
}
