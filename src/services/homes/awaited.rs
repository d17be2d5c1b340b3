//! Who is to apply what of an index, by this member's copy of the record and by what members say that they do not serve.
//!
//! Rule: an index whose record is not known here says nothing; one whose record says that it is gone is gone. Must not know:
//! tasks.

use std::collections::{BTreeMap, BTreeSet};

use crate::proto::tasks::home::Awaited;
use crate::services::cluster::Cluster;
use crate::services::journal::JournalHandle;
use crate::types::{MemberId, PhysicalIndex, ShardId};

/// `None`: not known here.
pub(super) fn awaited(journals: &JournalHandle, cluster: &Cluster, index: &PhysicalIndex) -> Option<Awaited> {
    let record = journals.record(index)?;
    if record.shards.is_empty() {
        return Some(None);
    }
    let seen = cluster.seen();
    let serves = |member: &MemberId, shard: ShardId| {
        seen.get(member).is_none_or(|seen| {
            // Of whom nothing was heard has said nothing.
            let node = seen.state.is_none() || seen.node.healthy;
            node && seen.unserved.get(index).is_none_or(|shards| !shards.contains(shard))
        })
    };
    let mut all: BTreeMap<u16, BTreeSet<MemberId>> = BTreeMap::new();
    for (shard, state) in (0..).zip(&record.shards) {
        let members = state.in_sync.iter().map(|id| &id.member);
        all.insert(shard, members.filter(|m| serves(m, ShardId(shard))).cloned().collect());
    }
    Some(Some(all))
}
