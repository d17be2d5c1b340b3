//! Makes the reserved index whose shards the homes of tasks are, where there is none.
//!
//! Whoever leads `shard_leaders` makes it, once enough members are seen: three, or all where there are fewer; witnesses hold
//! copies only where three could not be had without them. Rule: the ledger takes one such record, whoever is quickest. Must
//! not know: what homes do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::proto::placement::weight;
use crate::services::cluster::{Cluster, Topology};
use crate::services::journal::{CreateError, JournalHandle, Seen};
use crate::services::leases::LeaseHandle;
use crate::types::limits::HOMES;
use crate::types::{GroupId, MemberId, PhysicalIndex, ReplicaId, Scope, ShardId};

/// Copies of each home.
const COPIES: usize = 3;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// So long it waits for the third member, where two are seen.
const WAIT: Duration = Duration::from_secs(30);
/// So long the first member that is seen leaves it to whoever leads the shards' leaders: there may be no such lease.
const LEADER: Duration = Duration::from_secs(2);
/// How long the record may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Makes the index once it is this member's to make, and ends when there is one.
///
/// Cancel-safe: what was begun is finished by whoever looks next.
pub async fn found(
    journals: JournalHandle,
    leases: LeaseHandle,
    cluster: Cluster,
    mut seen: watch::Receiver<Arc<Seen>>,
) {
    let tasks = PhysicalIndex::of_tasks();
    let mut since: Option<Instant> = None;
    let began = Instant::now();
    while journals.record(&tasks).is_none() {
        let alone = began.elapsed() >= LEADER && is_first(&cluster.topology(), &seen.borrow(), &journals.me().member);
        if alone || leases.believes(&Scope::ShardLeaders).is_some() {
            let since = *since.get_or_insert_with(Instant::now);
            let copies = copies(&cluster.topology(), &seen.borrow(), since.elapsed() >= WAIT);
            if let Some(copies) = copies {
                match journals.create(&tasks, copies, PATIENCE).await {
                    Ok(()) => tracing::info!("the homes of tasks are made"),
                    Err(CreateError::Exists) => tracing::debug!("the homes of tasks were made by another member"),
                    Err(error) => tracing::warn!(%error, "the homes of tasks could not be made; it is tried again"),
                }
            }
        } else {
            since = None;
        }
        // A picture that does not change any more is looked at all the same.
        drop(tokio::time::timeout(LOOK, seen.changed()).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether no member that is seen comes before this one.
fn is_first(topology: &Topology, seen: &Seen, me: &MemberId) -> bool {
    let mut there = topology.members.iter().filter(|m| m.id == *me || seen.sight.contains_key(&m.id));
    there.next().is_some_and(|m| m.id == *me)
}

/// Who holds each home, the first of each its preferred primary; `None` while too few are seen.
fn copies(topology: &Topology, seen: &Seen, waited: bool) -> Option<Vec<Vec<ReplicaId>>> {
    let id = |member: &MemberId| Some(ReplicaId { member: member.clone(), store: seen.sight.get(member)?.store });
    let there: Vec<(ReplicaId, &GroupId, bool)> =
        topology.members.iter().filter_map(|m| Some((id(&m.id)?, &m.group, m.witness))).collect();
    let want = COPIES.min(topology.members.len());
    let least = if waited { 2.min(want) } else { want };
    if there.is_empty() || there.len() < least {
        return None;
    }
    Some((0..HOMES).map(|home| of_home(ShardId(home), &there, want)).collect())
}

/// Members of many groups before many of one, those with a node before witnesses, and the heaviest first.
fn of_home(home: ShardId, there: &[(ReplicaId, &GroupId, bool)], want: usize) -> Vec<ReplicaId> {
    let mut chosen: Vec<ReplicaId> = Vec::new();
    let mut taken: BTreeMap<&GroupId, usize> = BTreeMap::new();
    let mut left: BTreeSet<usize> = (0..there.len()).collect();
    while chosen.len() < want {
        let rank = |i: &usize| {
            let (id, group, witness) = &there[*i];
            let in_group = taken.get(group).copied().unwrap_or(0);
            (*witness, in_group, std::cmp::Reverse(weight(home, &id.member)), id.member.clone())
        };
        let Some(next) = left.iter().copied().min_by_key(rank) else { break };
        left.remove(&next);
        let (id, group, _) = &there[next];
        *taken.entry(group).or_default() += 1;
        chosen.push(id.clone());
    }
    chosen
}
