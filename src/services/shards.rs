//! The shards of an index: who holds each, who is in sync, who orders its writes, who is behind.
//!
//! What the record says is this member's copy; how far a copy is its own member says. The homes of tasks are shown under a name of
//! their own, as an index of which nothing is on the nodes. Must not know: HTTP, how shards are kept in step.

mod elect;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use serde::Serialize;

pub use self::elect::Elected;
use super::failure::Failure;
use super::indexes::{Index, Indexes};
use super::journal::{JournalHandle, ShardStatus};
use super::members::Members;
use crate::net::Call;
use crate::types::{
    Epoch, Holder, IndexUid, JournalRecord, MemberId, PhysicalIndex, ReplicaState, ShardId, ShardState, StoreId,
    TraceId,
};
use crate::wire::verbs::{Reply, Request};

/// How an operator names the homes of tasks.
pub const HOMES_OF_TASKS: &str = "_miroir_tasks";

/// How long members may take to say how far they are.
const PATIENCE: Duration = Duration::from_secs(2);

/// The service; cheap to clone.
#[derive(Debug, Clone)]
pub struct Shards {
    indexes: Indexes,
    journal: JournalHandle,
    members: Members,
}

/// An index with all its shards.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IndexView {
    /// The client's name of it.
    pub uid: IndexUid,
    /// Its name on the nodes.
    pub physical: PhysicalIndex,
    /// The primary key, once settled.
    pub primary_key: Option<String>,
    /// Counts the changes of its settings.
    pub settings_version: u64,
    /// By number.
    pub shards: Vec<ShardView>,
    /// Members that did not say how far they are, and why.
    pub silent: BTreeMap<MemberId, String>,
}

/// One shard.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShardView {
    /// Its number.
    pub shard: ShardId,
    /// Who orders its writes; nobody before the first election.
    pub primary: Option<MemberId>,
    /// Goes up with every primary.
    pub epoch: Epoch,
    /// Goes up with every change of who holds it, who is in sync, or who is primary.
    pub set: u64,
    /// In the order of the placement.
    pub replicas: Vec<CopyView>,
}

/// One copy of a shard.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CopyView {
    /// Whose.
    pub member: MemberId,
    /// In which store.
    pub store: String,
    /// Learner, replica or leaving.
    pub state: ReplicaState,
    /// It stores every write before that is acknowledged.
    pub in_sync: bool,
    /// How far it is; absent if its member did not say.
    #[serde(flatten)]
    pub progress: Option<Progress>,
}

/// How far a copy is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// It orders the writes now, by its own word.
    pub leads: bool,
    /// The last entry of its journal.
    pub last: u64,
    /// Up to here its entries are known to be committed.
    pub committed: u64,
    /// Up to here its node has applied entries.
    pub applied: u64,
    /// It must be made anew, and is not served.
    pub rebuild: bool,
    /// How far that is, and what is in the way; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub making: Option<String>,
    /// Entries that are committed somewhere and not in its journal.
    pub lag: u64,
}

/// An index in a list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// The client's name of it.
    pub uid: IndexUid,
    /// Its name on the nodes.
    pub physical: PhysicalIndex,
    /// How many shards it has.
    pub shards: usize,
    /// How many copies each has.
    pub copies: usize,
    /// Shards without a primary.
    pub without_primary: usize,
    /// Copies that are not in sync.
    pub not_in_sync: usize,
    /// How many shards each member is primary of.
    pub primaries: BTreeMap<MemberId, usize>,
}

impl Shards {
    /// The service over its parts.
    pub fn new(indexes: Indexes, journal: JournalHandle, members: Members) -> Self {
        Self { indexes, journal, members }
    }

    /// All indexes, by this member's copies of the records.
    pub fn all(&self) -> Vec<Summary> {
        let snapshot = self.indexes.records().snapshot();
        let named = |(uid, physical): (&IndexUid, &PhysicalIndex)| {
            let index = snapshot.index(physical).filter(|index| !index.value.deleted)?;
            Some(self.summary(uid, &index))
        };
        snapshot.names().value.indexes.iter().filter_map(named).collect()
    }

    fn summary(&self, uid: &IndexUid, index: &Index) -> Summary {
        let record = self.journal.record(&index.value.physical).unwrap_or_default();
        let mut primaries = BTreeMap::new();
        for primary in record.shards.iter().filter_map(|state| state.primary.as_ref()) {
            *primaries.entry(primary.member.clone()).or_default() += 1;
        }
        Summary {
            uid: uid.clone(),
            physical: index.value.physical.clone(),
            shards: index.value.shards.len(),
            copies: index.value.shards.first().map_or(0, |shard| shard.replicas.len()),
            without_primary: index.value.shards.len() - primaries.values().sum::<usize>(),
            not_in_sync: record.shards.iter().map(ShardState::out_of_sync).sum(),
            primaries,
        }
    }

    /// One index with all its shards; an alias means its index, [`HOMES_OF_TASKS`] the homes of tasks.
    ///
    /// # Errors
    /// `index_not_found`.
    pub async fn one(&self, uid: &IndexUid, trace: TraceId) -> Result<IndexView, Failure> {
        let (index, (uid, physical)) = if uid.as_str() == HOMES_OF_TASKS {
            (None, self.homes(uid)?)
        } else {
            let index = self.indexes.find(uid)?;
            let names = (index.value.uid.clone(), index.value.physical.clone());
            (Some(index), names)
        };
        let record = self.journal.record(&physical).unwrap_or_default();
        let (told, silent) = self.told(&record, &physical, trace).await;
        Ok(IndexView {
            uid,
            physical,
            primary_key: index.as_ref().and_then(|index| index.value.primary_key.clone()),
            settings_version: index.map_or(0, |index| index.value.settings_version),
            shards: views(&record, &told),
            silent,
        })
    }

    /// The homes of tasks, once they were made.
    fn homes(&self, uid: &IndexUid) -> Result<(IndexUid, PhysicalIndex), Failure> {
        let physical = PhysicalIndex::of_tasks();
        let there = self.journal.record(&physical).is_some_and(|record| !record.shards.is_empty());
        if there { Ok((uid.clone(), physical)) } else { Err(Failure::index_not_found(uid)) }
    }

    /// Whether the nodes have applied everything that stands in the journals of an index; `false` if a member can't be asked.
    pub async fn at_rest(&self, index: &Index, trace: TraceId) -> bool {
        let physical = &index.value.physical;
        let record = self.journal.record(physical).unwrap_or_default();
        is_at_rest(&record, &self.told(&record, physical, trace).await.0)
    }

    /// What each holder says, and why others say nothing.
    async fn told(
        &self,
        record: &JournalRecord,
        physical: &PhysicalIndex,
        trace: TraceId,
    ) -> (BTreeMap<MemberId, Told>, BTreeMap<MemberId, String>) {
        let mut holders: Vec<&MemberId> =
            record.shards.iter().flat_map(|state| &state.replicas).map(|copy| &copy.id.member).collect();
        holders.sort_unstable();
        holders.dedup();
        let asked = holders
            .into_iter()
            .map(|member| async move { (member, ask(&self.members, member, physical, trace).await) });
        let (mut told, mut silent) = (BTreeMap::new(), BTreeMap::new());
        for (member, answer) in join_all(asked).await {
            match answer {
                Ok(status) => drop(told.insert(member.clone(), status)),
                Err(reason) => drop(silent.insert(member.clone(), reason)),
            }
        }
        (told, silent)
    }
}

/// Whether copies that did not say how far they are could be behind, or any of them has entries that its node has not applied.
fn is_at_rest(record: &JournalRecord, told: &BTreeMap<MemberId, Told>) -> bool {
    (0..).map(ShardId).zip(&record.shards).all(|(shard, state)| {
        state.replicas.iter().all(|copy| {
            let status = told.get(&copy.id.member).and_then(|told| told.get(&shard));
            status.is_some_and(|status| status.applied >= status.last)
        })
    })
}

/// Asks a member how far its copies of an index are.
///
/// Cancel-safe.
///
/// # Errors
/// Why it did not say, for people.
pub(super) async fn ask(
    members: &Members,
    member: &MemberId,
    index: &PhysicalIndex,
    trace: TraceId,
) -> Result<Told, String> {
    let deadline = Instant::now() + PATIENCE;
    let call = Call { request: Request::Shards(index.clone()), body: Bytes::new(), deadline, trace };
    let answer = members.call(member, call).await.map_err(|e| e.to_string())?;
    match answer.reply {
        Reply::Json => serde_json::from_slice(&answer.body).map_err(|e| format!("its answer makes no sense: {e}")),
        other => Err(format!("unexpected answer {other:?}")),
    }
}

/// How a member's copies stand.
pub(super) type Told = BTreeMap<ShardId, ShardStatus>;

fn views(record: &JournalRecord, told: &BTreeMap<MemberId, Told>) -> Vec<ShardView> {
    let view = |(shard, state): (ShardId, &ShardState)| {
        let of = |member: &MemberId| told.get(member).and_then(|told| told.get(&shard));
        // What is committed anywhere stands in every journal that is in sync.
        let committed =
            state.replicas.iter().filter_map(|copy| of(&copy.id.member)).map(|s| s.commit).max().unwrap_or(0);
        let copies = state.replicas.iter().map(|copy| CopyView {
            member: copy.id.member.clone(),
            store: store(copy.id.store),
            state: copy.state,
            in_sync: state.is_in_sync(&copy.id),
            progress: of(&copy.id.member).map(|s| Progress {
                leads: s.primary,
                last: s.last,
                committed: s.commit,
                applied: s.applied,
                rebuild: s.rebuild,
                making: s.making.clone(),
                lag: committed.saturating_sub(s.last),
            }),
        });
        let primary = state.primary.as_ref().map(|Holder { member, .. }| member.clone());
        ShardView { shard, primary, epoch: state.epoch, set: state.set, replicas: copies.collect() }
    };
    (0..).map(ShardId).zip(&record.shards).map(view).collect()
}

fn store(store: StoreId) -> String {
    store.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ReplicaId, ShardCopy};

    #[test]
    fn a_copy_is_behind_what_is_committed_anywhere() {
        let id = |n: u8| ReplicaId { member: MemberId::new(format!("m{n}")).unwrap(), store: StoreId([n; 16]) };
        let copy = |n| ShardCopy { id: id(n), state: ReplicaState::Replica };
        let state = ShardState {
            replicas: vec![copy(1), copy(2), copy(3)],
            in_sync: vec![id(1), id(2)],
            primary: Some(Holder { member: id(1).member, start: 7 }),
            epoch: Epoch::new(4).unwrap(),
            set: 9,
        };
        let status = |last, commit, primary| ShardStatus { last, commit, primary, ..ShardStatus::default() };
        let told = [
            (id(1).member, [(ShardId(0), status(12, 10, true))].into()),
            (id(2).member, [(ShardId(0), status(7, 7, false))].into()),
        ];
        let (record, mut told) = (JournalRecord { shards: vec![state] }, BTreeMap::from(told));
        let views = views(&record, &told);
        assert!(!is_at_rest(&record, &told));
        for n in 1..=3 {
            let applied = ShardStatus { applied: 12, ..status(12, 12, false) };
            assert!(!is_at_rest(&record, &told), "{n}");
            told.insert(id(n).member, [(ShardId(0), applied)].into());
        }
        assert!(is_at_rest(&record, &told));
        let json = serde_json::to_value(&views[0]).unwrap();
        assert_eq!(
            (json["primary"].as_str(), json["epoch"].as_u64(), json["set"].as_u64()),
            (Some("m1"), Some(4), Some(9))
        );
        let replicas = json["replicas"].as_array().unwrap();
        let lag: Vec<_> = replicas.iter().map(|r| (r["inSync"].as_bool(), r["lag"].as_u64())).collect();
        assert_eq!(lag, [(Some(true), Some(0)), (Some(true), Some(3)), (Some(false), None)]);
        assert_eq!((replicas[0]["leads"].as_bool(), replicas[1]["leads"].as_bool()), (Some(true), Some(false)));
    }
}
