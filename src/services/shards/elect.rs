//! A primary that an operator orders.
//!
//! Rule: before anything is written every member that holds the shard is asked how far its copy is, so that what is given up is
//! said and logged. Must not know: HTTP; which orders are carried out (`proto::journal::ordered`).

use std::collections::BTreeMap;

use serde::Serialize;

use super::{HOMES_OF_TASKS, Shards};
use crate::proto::journal::ordered::{self, Order, OrderError};
use crate::services::failure::Failure;
use crate::services::journal::AskError;
use crate::types::{
    Epoch, ErrorCode, IndexUid, JournalKey, MemberId, PhysicalIndex, ShardId, ShardState, StoreId, TraceId,
};

/// What became of an order.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Elected {
    /// The client's name of the index.
    pub uid: IndexUid,
    /// Its name on the nodes.
    pub physical: PhysicalIndex,
    /// The shard.
    pub shard: ShardId,
    /// Whether anything was changed; not where it was the primary already.
    pub changed: bool,
    /// How the record stood.
    pub before: Standing,
    /// How it stands.
    pub after: Standing,
    /// All copies, before.
    pub copies: Vec<CopyStood>,
    /// What is given up; absent if nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub given_up: Option<GivenUpView>,
}

/// What a shard's record says.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Standing {
    /// Who orders its writes.
    pub primary: Option<MemberId>,
    /// Goes up with every primary.
    pub epoch: Epoch,
    /// Goes up with every change.
    pub set: u64,
    /// Who has every acknowledged write.
    pub in_sync: Vec<MemberId>,
}

impl Standing {
    fn of(state: &ShardState) -> Self {
        Self {
            primary: state.primary.as_ref().map(|primary| primary.member.clone()),
            epoch: state.epoch,
            set: state.set,
            in_sync: state.in_sync.iter().map(|id| id.member.clone()).collect(),
        }
    }
}

/// One copy, as its member said before anything was changed.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CopyStood {
    /// Whose.
    pub member: MemberId,
    /// In which store, by the record.
    pub store: StoreId,
    /// It was in sync.
    pub in_sync: bool,
    /// The last entry of its journal; absent if its member did not say, like the next two.
    pub last: Option<u64>,
    /// Up to here it knew entries to be committed.
    pub committed: Option<u64>,
    /// Up to here its node had applied entries.
    pub applied: Option<u64>,
    /// Why its member did not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub silent: Option<String>,
}

/// What is given up.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GivenUpView {
    /// Nothing behind this entry is kept.
    pub behind: u64,
    /// The last entry that is known to be anywhere else.
    pub last: u64,
    /// Members that have more.
    pub only: Vec<MemberId>,
    /// Members in sync that could not be asked: they may have more.
    pub unknown: Vec<MemberId>,
    /// The elected copy's journal was lost with its store.
    pub journal: bool,
    /// All of that, for people.
    pub text: String,
}

impl From<&ordered::GivenUp> for GivenUpView {
    fn from(lost: &ordered::GivenUp) -> Self {
        let ordered::GivenUp { behind, last, only, unknown, journal } = lost.clone();
        Self { behind, last, only, unknown, journal, text: lost.to_string() }
    }
}

impl Shards {
    /// Makes a member the primary of a shard: one in sync, or where the loss is accepted any other that holds a full copy.
    ///
    /// Not cancel-safe in the sense that it may be written after the future is dropped.
    ///
    /// # Errors
    /// `index_not_found`, `bad_request` for a shard that the index does not have, `miroir_mesh_state` with the reason for an order
    /// that is not carried out, `miroir_no_quorum`, `miroir_write_unknown`.
    pub async fn elect(
        &self,
        uid: &IndexUid,
        shard: ShardId,
        order: Order,
        trace: TraceId,
    ) -> Result<Elected, Failure> {
        let (uid, physical) = if uid.as_str() == HOMES_OF_TASKS {
            self.homes(uid)?
        } else {
            let index = self.indexes.find(uid)?;
            (index.value.uid.clone(), index.value.physical.clone())
        };
        let record = self.journal.record(&physical).unwrap_or_default();
        if record.shard(shard).is_none() {
            let last = record.shards.len().saturating_sub(1);
            let message = format!("Index `{uid}` has no shard {shard}: they are numbered from 0 to {last}.");
            return Err(Failure::new(ErrorCode::BadRequest, message));
        }
        let (told, silent) = self.told(&record, &physical, trace).await;
        let of_shard = told.iter().filter_map(|(member, told)| {
            let says = told.get(&shard)?;
            let of_no_use = says.rebuild;
            Some((member.clone(), ordered::Told { last: says.last, committed: says.commit, of_no_use }))
        });
        let says: BTreeMap<MemberId, ordered::Told> = of_shard.collect();
        let (seen, by, min) = (self.journal.seen(), self.journal.holder(), self.journal.configured_min());
        let key = JournalKey { index: physical.clone(), shard };
        let mut lost = None;
        let chosen = self.journal.change(&key, |state| {
            lost = ordered::given_up(state, &order, &seen.sight, &says);
            ordered::change(state, &order, &by, &seen.sight, &says, min)
        });
        let (before, after) = match chosen.await {
            Ok(states) => states,
            Err(AskError::Refused(error)) => return Err(refused(&uid, shard, &order, &error, lost.as_ref(), &silent)),
            Err(error) => return Err(failed(&uid, shard, &error)),
        };
        let changed = before != after;
        let lost = lost.filter(|_| changed);
        let copies = before.replicas.iter().map(|copy| {
            let says = told.get(&copy.id.member).and_then(|told| told.get(&shard));
            CopyStood {
                member: copy.id.member.clone(),
                store: copy.id.store,
                in_sync: before.is_in_sync(&copy.id),
                last: says.map(|says| says.last),
                committed: says.map(|says| says.commit),
                applied: says.map(|says| says.applied),
                silent: silent.get(&copy.id.member).cloned(),
            }
        });
        let elected = Elected {
            uid,
            physical,
            shard,
            changed,
            before: Standing::of(&before),
            after: Standing::of(&after),
            copies: copies.collect(),
            given_up: lost.as_ref().map(GivenUpView::from),
        };
        log(&elected, &order);
        Ok(elected)
    }
}

fn log(elected: &Elected, order: &Order) {
    let Elected { uid, physical, shard, changed, before, after, copies, given_up } = elected;
    if !changed {
        return;
    }
    let given_up = given_up.as_ref().map_or("nothing", |lost| lost.text.as_str());
    tracing::warn!(
        index = %uid, %physical, %shard, member = %order.to, accept_data_loss = order.accept_loss, given_up, ?before, ?after, ?copies,
        "an operator has ordered a primary"
    );
}

/// An order that is not carried out, as the operator reads it.
fn refused(
    uid: &IndexUid,
    shard: ShardId,
    order: &Order,
    error: &OrderError,
    lost: Option<&ordered::GivenUp>,
    silent: &BTreeMap<MemberId, String>,
) -> Failure {
    let to = &order.to;
    let why = match (error, silent.get(to)) {
        (OrderError::Silent, Some(why)) => format!(" ({why})"),
        _ => String::new(),
    };
    let mut message = format!(
        "Refused: `{to}` is not made the primary of shard {shard} of `{uid}`: {error}{why}. Nothing was changed."
    );
    if let (OrderError::OutOfSync, Some(lost)) = (error, lost) {
        message += &format!(
            " If it were: {lost}. If those who are in sync are gone for good, and only then, say so with `acceptDataLoss` \
             (miroir-ctl: --accept-data-loss)."
        );
    }
    Failure::new(ErrorCode::MiroirMeshState, message)
}

fn failed(uid: &IndexUid, shard: ShardId, error: &AskError<OrderError>) -> Failure {
    tracing::warn!(index = %uid, %shard, ?error, "a primary that an operator ordered was not elected");
    match error {
        AskError::Gone => Failure::index_not_found(uid),
        AskError::Unknown => Failure::new(
            ErrorCode::MiroirWriteUnknown,
            format!(
                "Whether the order about shard {shard} of `{uid}` was carried out is not known; `miroir-ctl shards {uid}` shows it \
                 when the mesh's records can be changed again."
            ),
        ),
        AskError::NotAllowed(error) => {
            let message = format!("Refused: shard {shard} of `{uid}`: {error}. Nothing was changed.");
            Failure::new(ErrorCode::MiroirMeshState, message)
        }
        AskError::Refused(_) | AskError::NoQuorum => Failure::new(
            ErrorCode::MiroirNoQuorum,
            "The mesh's records can't be changed now. Nothing was changed; give the order again, or to another member.",
        ),
    }
}
