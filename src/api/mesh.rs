//! `/_miroir/mesh*`: the mesh itself, answered also while there is none.

use std::collections::BTreeSet;

use axum::extract::State;
use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::error::{ApiError, ApiResult, json_value};
use super::routes::Api;
use crate::services::ledger::words;
use crate::services::mesh::{List, OrderError};
use crate::types::{ErrorCode, MemberId, VotersState};

/// What an operator must write to let survivors go on without the others.
const CONFIRMATION: &str = "the others are gone for good";

/// What stands of the ledger here, for topology and status.
pub fn ledger(api: &Api) -> Value {
    let ledger = api.mesh.ledger();
    let status = ledger.status();
    let status = status.borrow();
    let voters: Vec<&MemberId> = status.voters.iter().flat_map(|list| list.voters.iter().map(|v| &v.member)).collect();
    let copies = ledger.copies();
    json!({
        "voters": voters,
        "list": status.voters.as_ref().map(|list| list.number),
        "settled": status.record.as_ref().map(|r| r.voters_state == VotersState::Settled),
        "fresh": ledger.fresh(),
        "copies": copies.len(),
        "digest": format!("{:016x}", copies.digest()),
    })
}

/// `GET /_miroir/mesh`
pub async fn status(State(api): State<Api>) -> ApiResult {
    let handle = api.mesh.ledger();
    let ledger = ledger(&api);
    let status = handle.status();
    let status = status.borrow().clone();
    let notices: Vec<Value> =
        status.notices.iter().map(|(at, notice)| json!({"at": at, "notice": words(notice)})).collect();
    let identity = api.mesh.identity();
    let (own_ttl, other_ttls) = api.leases.other_ttls_ms();
    let own_store = |id: &MemberId| (id == handle.member()).then_some(identity.store);
    let members: Vec<Value> = status
        .record
        .iter()
        .flat_map(|record| &record.members)
        .map(|m| {
            let store = own_store(&m.id).filter(|own| *own != m.store);
            // A vote is a store's: who comes back with another one is no voter before the list names that.
            let speaks_from = store.unwrap_or(m.store);
            let votes = status.voters.iter().flat_map(|list| &list.voters);
            let votes = votes.into_iter().any(|v| v.member == m.id && v.store == speaks_from);
            json!({
                "id": m.id, "group": m.group, "address": m.address, "state": m.state, "witness": m.witness,
                "store": m.store, "newStore": store, "votes": votes,
            })
        })
        .collect();
    json_value(
        StatusCode::OK,
        &json!({
            "member": handle.member(),
            "store": identity.store,
            "start": identity.start,
            "mesh": status.mesh.map(|mesh| mesh.to_string()),
            "bootstrap": status.bootstrap,
            "ledger": ledger,
            "members": members,
            "peers": api.mesh.peers(),
            "rolledBack": status.rolled_back,
            "removed": api.mesh.removed(),
            "recovering": status.recovering,
            "waitsToVote": status.waits_to_vote,
            "leaseTtlMs": own_ttl,
            "otherLeaseTtlsMs": other_ttls,
            "notices": notices,
        }),
    )
}

/// `POST /_miroir/mesh/init`: the list with which a mesh is made, to each of its members.
pub async fn init(State(api): State<Api>, body: Bytes) -> ApiResult {
    let list: List = parse(&body)?;
    api.mesh.init(list).await.map_err(refused)?;
    json_value(StatusCode::ACCEPTED, &json!({"member": api.mesh.ledger().member(), "taken": true}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Recover {
    survivors: BTreeSet<MemberId>,
    confirm: String,
}

/// `POST /_miroir/mesh/recover`: the survivors go on as a new mesh.
pub async fn recover(State(api): State<Api>, body: Bytes) -> ApiResult {
    let order: Recover = parse(&body)?;
    if order.confirm != CONFIRMATION {
        let message = format!("`confirm` must be the text `{CONFIRMATION}`.");
        return Err(ApiError::new(ErrorCode::BadRequest, message));
    }
    tracing::warn!(survivors = ?order.survivors, "an operator has ordered that these go on as a new mesh");
    api.mesh.recover(order.survivors).await.map_err(refused)?;
    json_value(StatusCode::ACCEPTED, &json!({"member": api.mesh.ledger().member(), "taken": true}))
}

fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|e| ApiError::new(ErrorCode::BadRequest, format!("The body is not what is expected here: {e}.")))
}

fn refused(error: OrderError) -> ApiError {
    match error {
        OrderError::Malformed(text) => ApiError::new(ErrorCode::BadRequest, format!("Refused: {text}.")),
        OrderError::Refused(text) => ApiError::new(ErrorCode::MiroirMeshState, format!("Refused: {text}.")),
    }
}
