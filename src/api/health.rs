//! `/`, `/health`, `/version`, `/stats`.

use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};

use super::error::{ApiError, ApiResult, json_value};
use super::params::Params;
use super::routes::Api;
use super::search::marked;
use super::service::MemberState;
use crate::types::ErrorCode;
use crate::types::TraceId;

/// `GET /`
pub async fn root() -> ApiResult {
    json_value(StatusCode::OK, &json!({"status": "Meilisearch is running"}))
}

/// `GET /health`: this member can answer; what the others can is in `/_miroir/topology`.
pub async fn health(State(api): State<Api>) -> ApiResult {
    let own = api.cluster.own();
    if api.cluster.serving(own) || api.mesh.witness() && api.cluster.active(own) {
        return json_value(StatusCode::OK, &json!({"status": "available"}));
    }
    let seen = api.cluster.seen();
    let own = seen.get(own);
    let why = match own {
        Some(seen) if seen.state == Some(MemberState::Draining) => Some("it is draining".into()),
        Some(seen) if !api.mesh.witness() && seen.node.error.is_some() => seen.node.error.clone(),
        Some(seen) if seen.state == Some(MemberState::Active) => None,
        _ => Some(api.mesh.missing()),
    };
    let why = why.unwrap_or_else(|| "its node has not been probed yet".into());
    let message = format!("This member is not in service: {why}.");
    Err(ApiError::new(ErrorCode::MiroirShardsUnavailable, message))
}

/// `GET /version`: the own node's version, as far as a client asks; all members' are in `/_miroir/topology`.
pub async fn version(State(api): State<Api>) -> ApiResult {
    let seen = api.cluster.seen();
    let own = seen.get(api.cluster.own()).and_then(|s| s.node.version.clone());
    let any = own.or_else(|| seen.values().find_map(|s| s.node.version.clone()));
    let Some(version) = any else {
        return Err(ApiError::new(ErrorCode::MiroirShardsUnavailable, "No node of the mesh has answered yet."));
    };
    json_value(StatusCode::OK, &json!({"commitSha": "unknown", "commitDate": "unknown", "pkgVersion": version}))
}

/// `GET /stats`
pub async fn stats(State(api): State<Api>, trace: axum::Extension<TraceId>, request: Request) -> ApiResult<Response> {
    let how = StatsParams::of(&request)?;
    let (stats, missing) = api.stats.all(how.internal, *trace).await?;
    Ok(marked(json_value(StatusCode::OK, &how.shown(stats))?, &missing))
}

/// How statistics are shown.
#[derive(Debug)]
pub struct StatsParams {
    /// With the size of each of the nodes' tables.
    pub internal: bool,
    human: bool,
}

impl StatsParams {
    /// What the request asks for.
    ///
    /// # Errors
    /// Meilisearch's about parameters.
    pub fn of(request: &Request) -> Result<Self, ApiError> {
        let params = Params::parse(request.uri().query(), &["showInternalDatabaseSizes", "sizeFormat"])?;
        let internal = params.flag("showInternalDatabaseSizes", ErrorCode::InvalidStatsShowInternalDatabaseSizes)?;
        let human = match params.get("sizeFormat") {
            None | Some("raw") => false,
            Some("human") => true,
            Some(other) => {
                let message =
                    format!("Unknown value `{other}` for parameter `sizeFormat`: expected one of `human`, `raw`");
                return Err(ApiError::new(ErrorCode::InvalidStatsSizeFormat, message));
            }
        };
        Ok(Self { internal, human })
    }

    /// The statistics with their sizes as asked for.
    pub fn shown(&self, mut stats: Value) -> Value {
        if self.human {
            human_sizes(&mut stats);
        }
        stats
    }
}

fn human_sizes(stats: &mut Value) {
    let Some(map) = stats.as_object_mut() else { return };
    for (name, value) in map {
        match name.as_str() {
            "databaseSize" | "usedDatabaseSize" | "rawDocumentDbSize" | "avgDocumentSize" => in_units(value),
            "internalDatabaseSizes" => value.as_object_mut().into_iter().flatten().for_each(|(_, size)| in_units(size)),
            "indexes" => value.as_object_mut().into_iter().flatten().for_each(|(_, index)| human_sizes(index)),
            _ => {}
        }
    }
}

/// A number of bytes as a node shows it to people: two decimals at most.
fn in_units(size: &mut Value) {
    let Some(bytes) = size.as_u64() else { return };
    let mut value = bytes as f64;
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    while value >= 1024.0
        && let Some(next) = units.next()
    {
        value /= 1024.0;
        unit = next;
    }
    *size = format!("{} {unit}", (value * 100.0).round() / 100.0).into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_a_node_writes_them() {
        let mut stats = json!({"databaseSize": 15_323_136, "indexes": {"a": {"avgDocumentSize": 1_071, "numberOfDocuments": 2_500,
            "rawDocumentDbSize": 0, "internalDatabaseSizes": {"main": 4_096}}}});
        human_sizes(&mut stats);
        let shown = json!({"databaseSize": "14.61 MiB", "indexes": {"a": {"avgDocumentSize": "1.05 KiB", "numberOfDocuments": 2_500,
            "rawDocumentDbSize": "0 B", "internalDatabaseSizes": {"main": "4 KiB"}}}});
        assert_eq!(stats, shown);
    }
}
