//! Which shard a document belongs to, and which members a shard belongs to: rendezvous hashing, the same everywhere.
//!
//! The hash is XxHash64 with seed 0; the order of equal values is by lower id, so every member comes to the same answer.
//! Must not know: which members are alive. Source: Thaler and Ravishankar, "Using name-based mappings to increase hit
//! rates", 1998 (highest random weight).

use std::collections::BTreeMap;

use twox_hash::XxHash64;

use crate::types::{GroupId, MemberId, ReplicaState, ShardId, ShardRecord, ShardReplica};

/// The shard of the document with this id (in its text form: `1` and `"1"` are the same document), of `s` shards.
///
/// # Panics
/// If `s` is 0: an index has at least one shard.
pub fn shard_of(document_id: &str, s: u16) -> ShardId {
    let shard = XxHash64::oneshot(0, document_id.as_bytes()) % u64::from(s);
    ShardId(u16::try_from(shard).expect("the remainder by a u16 is a u16"))
}

/// The weight of a member for a shard; the members with the highest weights hold it.
pub fn weight(shard: ShardId, member: &MemberId) -> u64 {
    let mut text = u32::from(shard.0).to_le_bytes().to_vec();
    text.extend_from_slice(member.as_str().as_bytes());
    XxHash64::oneshot(0, &text)
}

/// The `rf` members of one group that hold a shard, heaviest first; fewer if the group is smaller.
pub fn members_of<'a>(shard: ShardId, group: &[&'a MemberId], rf: usize) -> Vec<&'a MemberId> {
    let mut ranked: Vec<_> = group.iter().map(|m| (std::cmp::Reverse(weight(shard, m)), *m)).collect();
    ranked.sort();
    ranked.into_iter().take(rf).map(|(_, m)| m).collect()
}

/// The placement of a new index of `s` shards: every group holds every shard `rf` times.
pub fn place(s: u16, members: &BTreeMap<MemberId, GroupId>, rf: usize) -> Vec<ShardRecord> {
    let mut groups: BTreeMap<&GroupId, Vec<&MemberId>> = BTreeMap::new();
    for (member, group) in members {
        groups.entry(group).or_default().push(member);
    }
    let replicas_of = |shard| {
        let held = groups.values().flat_map(|g| members_of(shard, g, rf));
        held.map(|m| ShardReplica { member: m.clone(), state: ReplicaState::Replica }).collect()
    };
    (0..s).map(|i| ShardRecord { replicas: replicas_of(ShardId(i)) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn m(n: usize) -> MemberId {
        MemberId::new(format!("m{n}")).unwrap()
    }

    #[test]
    fn the_hash_is_the_published_one() {
        // XxHash64 test vectors: the empty text with seed 0, and "a".
        assert_eq!(XxHash64::oneshot(0, b""), 0xEF46_DB37_51D8_E999);
        assert_eq!(XxHash64::oneshot(0, b"a"), 0xD24E_C4F1_A98C_6E5B);
        assert_eq!(shard_of("a", 64), ShardId(0x1b));
    }

    #[test]
    fn a_new_member_takes_shards_and_moves_none_between_the_others() {
        let three: Vec<_> = (1..=3).map(m).collect();
        let four: Vec<_> = (1..=4).map(m).collect();
        let mut moved = 0;
        for s in (0..1024).map(ShardId) {
            let before = members_of(s, &three.iter().collect::<Vec<_>>(), 1)[0].clone();
            let after = members_of(s, &four.iter().collect::<Vec<_>>(), 1)[0].clone();
            if after != before {
                assert_eq!(after, m(4));
                moved += 1;
            }
        }
        assert!((180..340).contains(&moved), "about a quarter moves: {moved}");
    }

    #[test]
    fn every_group_holds_every_shard() {
        let members: BTreeMap<_, _> = (1..=5).map(|i| (m(i), GroupId::new(format!("g{}", i % 2)).unwrap())).collect();
        for shard in place(64, &members, 2) {
            assert_eq!(shard.replicas.len(), 4);
            for g in ["g0", "g1"] {
                assert_eq!(shard.replicas.iter().filter(|r| members[&r.member].as_str() == g).count(), 2);
            }
        }
    }
}
