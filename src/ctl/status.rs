//! `miroir-ctl status`: members, their nodes, and what of each index is served.

use http::Method;
use serde_json::Value;

use super::client::{Client, ClientError};
use super::table::Table;

/// The mesh as the asked member sees it, for people, or its answer as it is.
///
/// # Errors
/// [`ClientError`].
pub fn status(client: &Client, json: bool) -> Result<String, ClientError> {
    let topology = client.ask(Method::GET, "/_miroir/topology", None)?;
    Ok(if json { format!("{topology}\n") } else { for_people(&topology) })
}

fn for_people(topology: &Value) -> String {
    let text = |v: &Value, name: &str| match &v[name] {
        Value::String(s) => s.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let list = |name: &str| topology[name].as_array().cloned().unwrap_or_default();
    let mut members = Table::new(["MEMBER", "GROUP", "STATE", "SERVING", "NODE", "MESH ADDRESS", "REMARK"]);
    for m in list("members") {
        let state = if m["suspect"] == true { "suspect".to_owned() } else { text(&m, "state") };
        let serving = if m["serving"] == true { "yes" } else { "no" };
        let lacks: Vec<&str> =
            m["unserved"].as_object().into_iter().flatten().map(|(index, _)| index.as_str()).collect();
        let full = (m["diskFull"] == true).then(|| "the disk of its store is almost full".to_owned());
        let error = m["node"]["error"].as_str().map(str::to_owned);
        let lacks = (!lacks.is_empty()).then(|| format!("not all of {} is served", lacks.join(", ")));
        let remarks: Vec<String> = full.into_iter().chain(error.or(lacks)).collect();
        let remark = remarks.join("; ");
        let node = text(&m["node"], "version");
        members.row([text(&m, "id"), text(&m, "group"), state, serving.into(), node, text(&m, "mesh"), remark]);
    }
    let mut indexes = Table::new(["INDEX", "PRIMARY KEY", "SHARDS SERVED", "MISSING"]);
    for i in list("indexes") {
        let covered = &i["coverage"];
        let missing: Vec<String> =
            covered["missing"].as_array().into_iter().flatten().map(ToString::to_string).collect();
        let served = format!("{} of {}", text(covered, "served"), text(covered, "total"));
        let missing = if missing.is_empty() { "-".to_owned() } else { missing.join(",") };
        indexes.row([text(&i, "uid"), text(&i, "primaryKey"), served, missing]);
    }
    let head = format!("mesh {} as {} sees it\n\n{members}", text(topology, "mesh"), text(topology, "member"));
    if indexes.is_empty() { format!("{head}\nno indexes\n") } else { format!("{head}\n{indexes}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_missing_is_shown() {
        let topology = json!({
            "mesh": "ab", "member": "m1",
            "members": [
                {"id": "m1", "group": "g1", "state": "active", "suspect": false, "serving": true, "mesh": "a:1", "node": {"version": "1.50.0"},
                 "unserved": {"movies__m0000000a": [1, 3]}, "diskFull": true},
                {"id": "m2", "group": "g1", "state": null, "suspect": true, "serving": false, "mesh": "b:1", "node": {"error": "wrong key"}},
            ],
            "indexes": [{"uid": "movies", "primaryKey": "id", "coverage": {"total": 4, "served": 2, "missing": [1, 3]}}],
        });
        let shown = for_people(&topology);
        assert!(shown.contains("m2      g1     suspect  no       -       b:1           wrong key"), "{shown}");
        assert!(shown.contains("disk of its store is almost full; not all of movies__m0000000a is served"), "{shown}");
        assert!(shown.contains("movies  id           2 of 4         1,3"), "{shown}");
        assert!(for_people(&json!({"members": "nonsense"})).contains("no indexes"));
    }
}
