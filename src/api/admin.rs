//! `/_miroir/*`: what an operator asks.

use std::collections::BTreeMap;

use axum::extract::State;
use http::StatusCode;
use serde_json::{Value, json};

use super::error::{ApiResult, json_value};
use super::routes::Api;
use crate::services::cluster::Seen;
use crate::services::search::coverage;

/// `GET /_miroir/topology`: members, health, groups, shards, coverage.
pub async fn topology(State(api): State<Api>) -> ApiResult {
    let topology = api.cluster.topology();
    let (seen, unknown) = (api.cluster.seen(), Seen::unknown());
    let members: Vec<Value> = topology
        .members
        .iter()
        .map(|m| {
            let s = seen.get(&m.id).unwrap_or(&unknown);
            let unserved: BTreeMap<_, Vec<u16>> =
                s.unserved.iter().map(|(index, shards)| (index, shards.iter().map(|s| s.0).collect())).collect();
            json!({
                "id": m.id,
                "group": m.group,
                "mesh": m.address,
                "http": s.http,
                "version": s.version,
                "state": s.state.map(|state| state.as_str()),
                "witness": m.witness,
                "suspect": s.suspect,
                "serving": s.serving(),
                "unserved": unserved,
                "diskFull": s.disk_full,
                "node": s.node,
                "records": s.records,
            })
        })
        .collect();
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for m in &topology.members {
        groups.entry(m.group.as_str()).or_default().push(m.id.as_str());
    }
    let snapshot = api.indexes.records().snapshot();
    let names = snapshot.names().value.indexes.keys();
    let indexes: Vec<Value> = names
        .filter_map(|uid| {
            let index = snapshot.find(uid)?;
            let record = &index.value;
            let covered = coverage(record, &api.cluster);
            let missing: Vec<u16> = covered.missing.iter().map(|s| s.0).collect();
            let shards: Vec<Vec<&str>> =
                record.shards.iter().map(|s| s.replicas.iter().map(|r| r.member.as_str()).collect()).collect();
            Some(json!({
                "uid": uid,
                "physical": record.physical,
                "primaryKey": record.primary_key,
                "recordVersion": index.version,
                "settingsVersion": record.settings_version,
                "shards": shards,
                "coverage": {"total": record.shards.len(), "served": record.shards.len() - missing.len(), "missing": missing},
            }))
        })
        .collect();
    json_value(
        StatusCode::OK,
        &json!({
            "mesh": topology.mesh.to_string(),
            "member": topology.own,
            "rf": topology.rf,
            "ledger": super::mesh::ledger(&api),
            "recordsDigest": snapshot.digest(),
            "groups": groups,
            "members": members,
            "indexes": indexes,
        }),
    )
}
