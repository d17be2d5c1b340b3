//! Probes the own node every second: does it answer, is its version supported, is the key right.

use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::sync::watch;

use super::cluster::NodeHealth;
use crate::net::node::{NodeClient, NodeRequest};

/// Time between two probes.
const INTERVAL: Duration = Duration::from_secs(1);
/// A node that takes longer than this for `/health` is not healthy.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The oldest Meilisearch that the mesh works with.
const OLDEST: (u64, u64) = (1, 26);

/// What is wrong when the node refuses the sidecar's key.
pub const WRONG_KEY: &str = "the node refuses the key; set [meilisearch] key_file or MIROIR_MEILISEARCH__KEY to the node's \
     master key";

/// Probes until the process ends; the newest result is in `result`.
pub async fn watch_node(node: NodeClient, result: watch::Sender<NodeHealth>) {
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let health = probe(&node).await;
        result.send_if_modified(|old| {
            if *old == health {
                return false;
            }
            match (&health.error, &health.version) {
                (Some(error), _) => tracing::warn!(error, "the node is not healthy"),
                (None, version) => tracing::info!(version, "the node is healthy"),
            }
            *old = health;
            true
        });
    }
}

/// One probe.
pub async fn probe(node: &NodeClient) -> NodeHealth {
    let sick = |error: String| NodeHealth { healthy: false, version: None, error: Some(error) };
    let deadline = Instant::now() + TIMEOUT;
    match node.send(NodeRequest::get("/health"), deadline).await {
        Ok(a) if a.status == 200 => {}
        Ok(a) => return sick(format!("the node answers /health with status {}; look at its log", a.status)),
        Err(e) => return sick(format!("{e}; check that Meilisearch runs and that [meilisearch] url is right")),
    }
    let answer = match node.send(NodeRequest::get("/version"), deadline).await {
        Ok(answer) => answer,
        Err(e) => return sick(e.to_string()),
    };
    match answer.status {
        200 => {}
        401 | 403 => return sick(WRONG_KEY.into()),
        status => return sick(format!("the node answers /version with status {status}")),
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Version {
        pkg_version: String,
    }
    let version = match serde_json::from_slice::<Version>(&answer.body) {
        Ok(v) => v.pkg_version,
        Err(e) => return sick(format!("the node's /version is not Meilisearch's: {e}")),
    };
    if supported(&version) {
        NodeHealth { healthy: true, version: Some(version), error: None }
    } else {
        let (major, minor) = OLDEST;
        let error = format!("Meilisearch {version} is too old; upgrade the node to v{major}.{minor} or newer");
        NodeHealth { healthy: false, version: Some(version), error: Some(error) }
    }
}

fn supported(version: &str) -> bool {
    let mut parts = version.split(['.', '-']).map(|p| p.parse::<u64>());
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= OLDEST,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for (version, ok) in
            [("1.26.0", true), ("1.25.9", false), ("1.50.0", true), ("2.0.0-rc.1", true), ("1", false), ("x.y", false)]
        {
            assert_eq!(supported(version), ok, "{version}");
        }
    }
}
