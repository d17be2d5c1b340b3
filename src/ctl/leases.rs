//! `miroir-ctl leases`: who leads what.

use http::Method;
use serde_json::Value;

use super::client::{Client, ClientError};
use super::table::Table;

/// The leases as the asked member knows them, for people, or its answer as it is.
///
/// # Errors
/// [`ClientError`].
pub fn leases(client: &Client, json: bool) -> Result<String, ClientError> {
    let leases = client.ask(Method::GET, "/_miroir/leases", None)?;
    Ok(if json { format!("{leases}\n") } else { for_people(&leases) })
}

fn for_people(leases: &Value) -> String {
    let mut table = Table::new(["SCOPE", "HOLDER", "EPOCH", "UNLESS RENEWED, UNTIL", "HELD HERE"]);
    for lease in leases["leases"].as_array().into_iter().flatten() {
        let text = |name: &str, absent: &str| match &lease[name] {
            Value::String(s) => s.clone(),
            Value::Null => absent.to_owned(),
            other => other.to_string(),
        };
        let here = if lease["heldHere"] == true { "yes" } else { "no" };
        table.row([
            text("scope", "-"),
            text("holder", "nobody"),
            text("epoch", "-"),
            text("expiresAt", "over"),
            here.to_owned(),
        ]);
    }
    if table.is_empty() { "no leases yet\n".to_owned() } else { table.to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_lease_without_a_holder_is_shown_as_over() {
        let shown = for_people(&json!({"leases": [
            {"scope": "task_ids", "holder": "m1", "epoch": 4, "expiresAt": "2026-01-01T00:00:00Z", "heldHere": true},
            {"scope": "membership", "holder": null, "epoch": 2, "expiresAt": null, "heldHere": false},
        ]}));
        let lines: Vec<Vec<&str>> = shown.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["task_ids", "m1", "4", "2026-01-01T00:00:00Z", "yes"]);
        assert_eq!(lines[2], ["membership", "nobody", "2", "over", "no"]);
        assert_eq!(for_people(&json!({})), "no leases yet\n");
    }
}
