//! The mesh itself: how it is made, who belongs to it, what people see of it, and how survivors go on.
//!
//! Rule: once the ledger has a record of the mesh, that record says who belongs to it; the list in the config, or an
//! operator's, only makes it. Must not know: how agreement is reached, HTTP.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::cluster::{Cluster, Listed, MemberState, Topology};
use super::ledger::{ChangeRequest, LedgerHandle, Status};
use crate::net::not_a_member;
use crate::net::peers::{Mesh, PeerAddress};
use crate::proto::ledger::{Answer, Bootstrap, BootstrapMember};
use crate::store::{Identity, Store};
use crate::types::limits::{MEMBERS_MAX, SHARDS_MAX};
use crate::types::{
    GroupId, MemberId, MemberState as Recorded, MeshId, MeshRecord, RecordKey, Voter, VoterList, VotersState,
};

/// How long a member that knew its mesh before waits to hear whether its copies are the newest, before it serves from them.
const FRESH_PATIENCE: Duration = Duration::from_secs(5);
/// How long a change of the mesh's record may take.
const CHANGE_PATIENCE: Duration = Duration::from_secs(5);
/// Between two attempts at one.
const CHANGE_PAUSE: Duration = Duration::from_secs(1);
/// How long a member that is otherwise ready waits for members that it has not heard of.
const HEARING: Duration = Duration::from_secs(2);
/// Copies of a shard inside a group at most.
const RF_MAX: u16 = 16;

/// A bootstrap list as operators write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// In an order that is the same on all members; the first makes the mesh.
    pub members: Vec<ListEntry>,
    /// Copies of each shard inside a group.
    pub rf: u16,
    /// Shards of an index unless configured.
    pub shards: u16,
}

/// One member of a [`List`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListEntry {
    /// Its name.
    pub id: MemberId,
    /// Its replica group.
    pub group: GroupId,
    /// Host and port of its mesh socket.
    pub address: String,
    /// A sidecar without a node.
    #[serde(default)]
    pub witness: bool,
}

impl List {
    /// Checks what can be checked on one member and gives the list to the ledger's form.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn check(&self, own: &MemberId, witness: bool) -> Result<Bootstrap, String> {
        let (mut ids, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        let mut groups: BTreeMap<&GroupId, usize> = BTreeMap::new();
        if self.members.is_empty() || self.members.len() > MEMBERS_MAX {
            return Err(format!("expected 1 to {MEMBERS_MAX} members, found {}", self.members.len()));
        }
        if !(1..=RF_MAX).contains(&self.rf) || !(1..=SHARDS_MAX).contains(&self.shards) {
            return Err(format!("expected rf from 1 to {RF_MAX} and shards from 1 to {SHARDS_MAX}"));
        }
        for m in &self.members {
            crate::names::split(&m.address).map_err(|e| format!("the address of {}: {e}", m.id))?;
            if !ids.insert(&m.id) || !addresses.insert(&m.address) {
                return Err(format!("the member {} or its address stands there twice", m.id));
            }
            if !m.witness {
                *groups.entry(&m.group).or_default() += 1;
            }
        }
        match self.members.iter().find(|m| m.id == *own) {
            None => return Err(format!("this member, {own}, is not in it")),
            Some(entry) if entry.witness != witness => {
                return Err(format!("this member, {own}, has [node] witness = {witness} in its config"));
            }
            Some(_) => {}
        }
        if let Some((group, n)) = groups.iter().find(|(_, n)| **n < usize::from(self.rf)) {
            return Err(format!("group {group} has {n} members with a node, expected at least rf = {}", self.rf));
        }
        if groups.is_empty() {
            return Err("expected a member with a node, found witnesses only".to_owned());
        }
        let member = |m: &ListEntry| BootstrapMember {
            id: m.id.clone(),
            group: m.group.clone(),
            address: m.address.clone(),
            witness: m.witness,
        };
        let members = self.members.iter().map(member).collect();
        Ok(Bootstrap { members, rf: self.rf, shards: self.shards })
    }

    /// The list as it is stored.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("a struct of texts and numbers has a JSON form")
    }
}

/// What this member knows of the mesh's list: the record, before that the bootstrap list, before that itself alone.
pub fn topology(own: &MemberId, record: Option<&MeshRecord>, list: Option<&Bootstrap>) -> Topology {
    let listed = |id: &MemberId, group: &GroupId, address: &str, witness| Listed {
        id: id.clone(),
        group: group.clone(),
        address: address.to_owned(),
        witness,
    };
    let (mesh, members, rf, shards) = match (record, list) {
        (Some(r), _) => {
            let members = r.present().map(|m| listed(&m.id, &m.group, &m.address, m.witness)).collect();
            (r.mesh, members, r.rf, r.shards)
        }
        (None, Some(l)) => {
            let members = l.members.iter().map(|m| listed(&m.id, &m.group, &m.address, m.witness)).collect();
            (MeshId::NONE, members, l.rf, l.shards)
        }
        (None, None) => (MeshId::NONE, Vec::new(), 1, 1),
    };
    Topology { own: own.clone(), mesh, members, rf: usize::from(rf), shards }
}

/// Whether most of the voters refuse to speak with this member because their mesh has none of that name.
fn refused_by_most<'a>(own: &MemberId, list: &VoterList, reason: impl Fn(&MemberId) -> Option<&'a str>) -> bool {
    let refusal = not_a_member(own);
    let refuses = |voter: &&Voter| reason(&voter.member).is_some_and(|reason| reason.contains(&refusal));
    list.voters.iter().filter(refuses).count() >= list.majority()
}

/// The members of a topology, as the transport dials them.
pub fn addresses(topology: &Topology) -> Vec<PeerAddress> {
    let address = |m: &Listed| PeerAddress { id: m.id.clone(), address: m.address.clone() };
    topology.members.iter().map(address).collect()
}

/// A peer's connections, for people.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerView {
    /// Where it is dialled.
    pub address: String,
    /// Whether both connections are open.
    pub connected: bool,
    /// Why they are not.
    pub reason: Option<String>,
}

/// The service; cheap to clone.
#[derive(Clone)]
pub struct MeshService {
    ledger: LedgerHandle,
    cluster: Cluster,
    mesh: Arc<Mesh>,
    store: Store,
    identity: Identity,
    witness: bool,
}

impl std::fmt::Debug for MeshService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeshService").finish_non_exhaustive()
    }
}

/// Why an operator's order about the mesh is not followed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OrderError {
    /// The order makes no sense.
    #[error("{0}")]
    Malformed(String),
    /// The member is in no state to follow it.
    #[error("{0}")]
    Refused(String),
}

impl MeshService {
    /// The service over its parts.
    pub fn new(
        ledger: LedgerHandle,
        cluster: Cluster,
        mesh: Arc<Mesh>,
        store: Store,
        identity: Identity,
        witness: bool,
    ) -> Self {
        Self { ledger, cluster, mesh, store, identity, witness }
    }

    /// The ledger.
    pub fn ledger(&self) -> &LedgerHandle {
        &self.ledger
    }

    /// Whether this member is without a node.
    pub fn witness(&self) -> bool {
        self.witness
    }

    /// This store and process.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Every peer's connections.
    pub fn peers(&self) -> BTreeMap<MemberId, PeerView> {
        let view = |(id, s): (MemberId, crate::net::peers::PeerStatus)| {
            (id, PeerView { address: s.address, connected: s.control && s.data, reason: s.reason })
        };
        self.mesh.status().into_iter().map(view).collect()
    }

    /// Why this member does not serve clients yet, for people.
    pub fn missing(&self) -> String {
        let status = self.ledger.status();
        let status = status.borrow();
        if let Some(text) = status.rolled_back.clone().or_else(|| self.removed()) {
            return text;
        }
        if let Some(recovery) = &status.recovering {
            return format!(
                "it has left its mesh on an operator's order, and {} makes the new one; see `miroir-ctl mesh status` there",
                recovery.leader
            );
        }
        match (&status.mesh, &status.record) {
            (None, _) if !status.bootstrap => {
                "it belongs to no mesh and has no list to make one with; see `miroir-ctl mesh init`".to_owned()
            }
            (None, _) => "its mesh is not made yet; see `miroir-ctl mesh status`".to_owned(),
            (Some(_), None) => "it has no copy of its mesh's record yet".to_owned(),
            (Some(mesh), Some(record)) if record.member(self.cluster.own()).is_none() => {
                format!("the mesh {mesh} does not list it")
            }
            _ => "it is comparing its records with the voters'".to_owned(),
        }
    }

    /// What to do if this member was removed from its mesh: the record says so, or most of the voters that it knows of will not
    /// have it.
    pub fn removed(&self) -> Option<String> {
        let status = self.ledger.status();
        let status = status.borrow();
        let own = self.cluster.own();
        let listed = status.record.as_ref().and_then(|r| r.member(own)).is_some_and(|m| m.state == Recorded::Removed);
        let peers = self.mesh.status();
        let reason = |voter: &MemberId| peers.get(voter).and_then(|peer| peer.reason.as_deref());
        let gone = listed || status.voters.as_ref().is_some_and(|list| refused_by_most(own, list, reason));
        gone.then(|| {
            format!(
                "the member {own} was removed from its mesh, and what it holds is out of date. Nothing of it is needed any more. To \
                 use this host again, stop it, move its data directory and its node's away, and start it under another id"
            )
        })
    }

    /// Waits until every other member has been heard, its node healthy, or [`HEARING`] has passed: who serves before it knows
    /// of the others answers from its own shards alone.
    async fn others_heard(&self) {
        let mut changes = self.cluster.watch();
        let heard = async {
            loop {
                changes.mark_unchanged();
                let (topology, seen) = (self.cluster.topology(), self.cluster.seen());
                let well =
                    |id: &MemberId| seen.get(id).is_some_and(|s| !s.suspect && s.state.is_some() && s.node.healthy);
                let all = topology.holders().all(|id| id == self.cluster.own() || well(id));
                if all || changes.changed().await.is_err() {
                    return;
                }
            }
        };
        // Whoever has not been heard by then is away.
        let _ = tokio::time::timeout(HEARING, heard).await;
    }

    /// An operator's order: make a mesh with this list. The same order goes to each member of the list.
    ///
    /// # Errors
    /// [`OrderError`]; nothing has changed then.
    pub async fn init(&self, list: List) -> Result<(), OrderError> {
        let bootstrap = list.check(self.cluster.own(), self.witness).map_err(OrderError::Malformed)?;
        let (topology, text) = (topology(self.cluster.own(), None, Some(&bootstrap)), list.to_text());
        self.ledger.init(bootstrap, text).await.map_err(|e| OrderError::Refused(e.to_string()))?;
        self.take(topology);
        Ok(())
    }

    /// An operator's order: these members, this one among them, go on without the others as a new mesh. Followed in the
    /// background, until every survivor takes part.
    ///
    /// # Errors
    /// [`OrderError`]; nothing has changed then.
    pub async fn recover(&self, survivors: BTreeSet<MemberId>) -> Result<(), OrderError> {
        let record = self.ledger.status().borrow().record.clone();
        let Some(record) = record else {
            return Err(OrderError::Refused("this member belongs to no mesh".to_owned()));
        };
        if !survivors.contains(self.cluster.own()) {
            let text = format!("this member, {}, is not among the survivors; ask one that is", self.cluster.own());
            return Err(OrderError::Malformed(text));
        }
        let known = |id: &MemberId| record.present().any(|m| m.id == *id);
        if let Some(stranger) = survivors.iter().find(|id| !known(id)) {
            return Err(OrderError::Malformed(format!("{stranger} is no member of the mesh")));
        }
        if survivors.len() == record.present().count() {
            return Err(OrderError::Malformed("all members survive: there is nothing to recover from".to_owned()));
        }
        self.ledger.recover(survivors).await;
        Ok(())
    }

    /// Puts a list into use.
    fn take(&self, topology: Topology) {
        if let Err(error) = self.mesh.set_members(addresses(&topology)) {
            tracing::error!(%error, "the mesh's list of members can't be used; the one before stays in use");
            return;
        }
        self.cluster.set_topology(topology);
    }

    /// Keeps transport and cluster by the ledger's word, until the ledger's driver ends.
    pub async fn follow_ledger(self) {
        let mut status = self.ledger.status();
        let mut used: Option<(Option<MeshId>, Option<Arc<MeshRecord>>)> = None;
        loop {
            let now = {
                let status = status.borrow_and_update();
                (status.mesh, status.record.clone())
            };
            if used.as_ref() != Some(&now) {
                self.follow(&now).await;
                used = Some(now);
            }
            if status.changed().await.is_err() {
                return;
            }
        }
    }

    async fn follow(&self, (mesh, record): &(Option<MeshId>, Option<Arc<MeshRecord>>)) {
        // Before its record is known to be chosen, and while survivors make a new one, a mesh's id says nothing.
        self.mesh.set_mesh_id(mesh.unwrap_or(MeshId::NONE));
        let Some(record) = record else { return };
        if let Some(remedy) = self.removed() {
            tracing::error!(remedy, "this member does not belong to its mesh any more");
        }
        let listed = topology(self.cluster.own(), Some(record), None);
        tracing::info!(
            mesh = %record.mesh,
            members = listed.members.len(),
            voters = record.voters.voters.len(),
            list = record.voters.number,
            settled = record.voters_state == VotersState::Settled,
            "the mesh's record"
        );
        let others = listed.others().cloned().collect();
        self.take(listed);
        self.ledger.set_peers(others).await;
    }

    /// Has the mesh's record name the store that this member has now, if it names another: the disk was lost. Only then can it
    /// become a voter again.
    pub async fn keep_own_store(self) {
        let (own, store) = (self.cluster.own(), self.identity.store);
        let other =
            |record: &MeshRecord| record.member(own).is_some_and(|m| m.store != store && m.state != Recorded::Removed);
        let mut status = self.ledger.status();
        loop {
            if status.wait_for(|s| s.mesh.is_some() && s.record.as_deref().is_some_and(other)).await.is_err() {
                return;
            }
            self.ledger.wait_fresh().await;
            let copy = self.ledger.copies().get(&RecordKey::mesh()).cloned();
            let record = copy.as_ref().and_then(|copy| MeshRecord::from_json(&copy.value).ok()).filter(|r| other(r));
            if let (Some(copy), Some(mut record)) = (copy, record) {
                record.members.iter_mut().filter(|m| m.id == *own).for_each(|m| m.store = store);
                let change = ChangeRequest {
                    key: RecordKey::mesh(),
                    expected: copy.version,
                    value: record.to_json().into(),
                    quiet: false,
                };
                match self.ledger.change(change, CHANGE_PATIENCE).await {
                    Answer::Changed { .. } => tracing::info!(%store, "the mesh's record names this member's new store"),
                    answer => tracing::warn!(?answer, "the mesh's record does not name this member's new store yet"),
                }
            }
            // Rivals and missing voters are given time; what was changed shows in the record.
            tokio::time::sleep(CHANGE_PAUSE).await;
        }
    }

    /// Waits until this member may serve clients: it is listed in a mesh, and its copies are the newest, or have been once
    /// and the voters can't be asked now. One that was removed serves nobody.
    ///
    /// # Errors
    /// [`crate::store::StoreError`].
    pub async fn ready(&self) -> Result<(), crate::store::StoreError> {
        let own = self.cluster.own();
        let listed = |s: &Status| {
            let in_record = s.record.as_ref().and_then(|r| r.member(own)).is_some_and(|m| m.state != Recorded::Removed);
            s.mesh.filter(|_| in_record)
        };
        let mut status = self.ledger.status();
        let Ok(mesh) = status.wait_for(|s| listed(s).is_some()).await.map(|s| s.mesh.unwrap_or(MeshId::NONE)) else {
            return std::future::pending().await;
        };
        let whole_before = self.store.was_whole(mesh).await?;
        let fresh = self.ledger.wait_fresh();
        if whole_before {
            let mut fresh = std::pin::pin!(fresh);
            let mut told = false;
            while tokio::time::timeout(FRESH_PATIENCE, &mut fresh).await.is_err() {
                let Some(remedy) = self.removed() else {
                    tracing::warn!("no majority of the voters answers; this member serves from copies that may be old");
                    break;
                };
                if !std::mem::replace(&mut told, true) {
                    tracing::error!(remedy, "this member does not belong to its mesh any more, and serves nobody");
                }
            }
        } else {
            fresh.await;
            self.store.note_whole(mesh).await?;
        }
        Ok(())
    }
}

/// Takes a starting member into service as soon as it is ready.
///
/// # Errors
/// [`crate::store::StoreError`].
pub async fn enter_service(
    mesh: &MeshService,
    state: &watch::Sender<MemberState>,
) -> Result<bool, crate::store::StoreError> {
    mesh.ready().await?;
    mesh.others_heard().await;
    Ok(state.send_if_modified(|state| {
        let joining = *state == MemberState::Joining;
        if joining {
            *state = MemberState::Active;
        }
        joining
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(members: &[(&str, &str, bool)], rf: u16) -> List {
        let entry = |(i, (id, group, witness)): (usize, &(&str, &str, bool))| ListEntry {
            id: MemberId::new(*id).unwrap(),
            group: GroupId::new(*group).unwrap(),
            address: format!("10.0.0.{i}:7781"),
            witness: *witness,
        };
        List { members: members.iter().enumerate().map(entry).collect(), rf, shards: 64 }
    }

    #[test]
    fn a_list_that_can_make_no_mesh_is_refused() {
        let own = MemberId::new("m1").unwrap();
        let m1 = ("m1", "g1", false);
        assert!(list(&[m1, ("m2", "g2", false), ("w", "g1", true)], 1).check(&own, false).is_ok());
        for (bad, fault) in [
            (list(&[], 1), "1 to 128"),
            (list(&[m1, m1], 1), "twice"),
            (list(&[("m2", "g1", false)], 1), "is not in it"),
            (list(&[m1, ("w", "g1", true)], 2), "at least rf = 2"),
            (list(&[m1], 0), "rf from 1"),
            (list(&[("m1", "g1", true)], 1), "witness = false"),
        ] {
            let error = bad.check(&own, false).unwrap_err();
            assert!(error.contains(fault), "{error}");
        }
        let error = list(&[("m1", "g1", true)], 1).check(&own, true).unwrap_err();
        assert!(error.contains("witnesses only"), "{error}");
    }

    #[test]
    fn a_member_that_most_voters_refuse_was_removed() {
        let id = |n: u8| MemberId::new(format!("m{n}")).unwrap();
        let voters = (1..=3).map(|n| Voter { member: id(n), store: crate::types::StoreId([n; 16]) }).collect();
        let list = VoterList::new(4, voters);
        let reason = format!("the peer closed the connection: {}", not_a_member(&id(3)));
        let by = |refusing: &[u8], reason: &str| {
            let refusing: Vec<MemberId> = refusing.iter().map(|n| id(*n)).collect();
            refused_by_most(&id(3), &list, |m| refusing.contains(m).then_some(reason))
        };
        assert!(by(&[1, 2], &reason));
        assert!(!by(&[1], &reason), "one of three may be wrong");
        assert!(!by(&[1, 2], "timed out"));
    }

    #[test]
    fn a_stored_list_is_read_back_and_holds_no_documents_on_witnesses() {
        let own = MemberId::new("m1").unwrap();
        let given = list(&[("m1", "g1", false), ("w", "g1", true)], 1);
        let read: List = serde_json::from_str(&given.to_text()).unwrap();
        assert_eq!(read, given);
        let topology = topology(&own, None, Some(&read.check(&own, false).unwrap()));
        assert_eq!(topology.groups().len(), 1);
        assert_eq!((topology.members.len(), topology.holders().count(), topology.mesh), (2, 1, MeshId::NONE));
    }
}
