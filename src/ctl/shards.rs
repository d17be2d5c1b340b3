//! `miroir-ctl shards`: who holds which shard, who orders its writes, who is behind.

use http::Method;
use serde_json::Value;

use super::client::{Client, ClientError};
use super::operations::name_step;
use super::table::Table;

/// One index shard by shard, or all of them in short; for people, or the answer as it is.
///
/// # Errors
/// [`ClientError`].
pub fn shards(client: &Client, index: Option<&str>, json: bool) -> Result<String, ClientError> {
    let (path, shown): (String, fn(&Value) -> String) = match index {
        Some(index) => (format!("/_miroir/indexes/{}", name_step(index)?), one),
        None => ("/_miroir/indexes".to_owned(), all),
    };
    let answer = client.ask(Method::GET, &path, None)?;
    Ok(if json { format!("{answer}\n") } else { shown(&answer) })
}

fn number(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".to_owned(), |n| n.to_string())
}

fn all(answer: &Value) -> String {
    let mut table = Table::new(["INDEX", "SHARDS", "COPIES", "WITHOUT PRIMARY", "COPIES NOT IN SYNC", "PRIMARIES"]);
    for index in answer["indexes"].as_array().into_iter().flatten() {
        let primaries = index["primaries"].as_object().into_iter().flatten();
        let primaries: Vec<String> = primaries.map(|(member, shards)| format!("{member}:{shards}")).collect();
        table.row([
            index["uid"].as_str().unwrap_or("-").to_owned(),
            number(&index["shards"]),
            number(&index["copies"]),
            number(&index["withoutPrimary"]),
            number(&index["notInSync"]),
            if primaries.is_empty() { "-".to_owned() } else { primaries.join(" ") },
        ]);
    }
    if table.is_empty() { "no indexes yet\n".to_owned() } else { table.to_string() }
}

/// How a copy stands, in a word or two.
fn copy(copy: &Value) -> String {
    let member = copy["member"].as_str().unwrap_or("?");
    let mut notes = Vec::new();
    if let Some(state) = copy["state"].as_str().filter(|state| *state != "replica") {
        notes.push(state.to_owned());
    }
    if copy["inSync"] != true {
        notes.push("not in sync".to_owned());
    }
    if copy["rebuild"] == true {
        notes.push("to be made anew".to_owned());
    }
    match copy["lag"].as_u64() {
        Some(0) => {}
        Some(lag) => notes.push(format!("{lag} behind")),
        None => notes.push("silent".to_owned()),
    }
    if notes.is_empty() { member.to_owned() } else { format!("{member} ({})", notes.join(", ")) }
}

fn one(answer: &Value) -> String {
    let mut table = Table::new(["SHARD", "PRIMARY", "EPOCH", "COMMITTED", "COPIES"]);
    for shard in answer["shards"].as_array().into_iter().flatten() {
        let copies = || shard["replicas"].as_array().into_iter().flatten();
        let committed = copies().filter_map(|copy| copy["committed"].as_u64()).max();
        table.row([
            number(&shard["shard"]),
            shard["primary"].as_str().unwrap_or("nobody").to_owned(),
            number(&shard["epoch"]),
            committed.map_or_else(|| "-".to_owned(), |n| n.to_string()),
            copies().map(copy).collect::<Vec<_>>().join(" "),
        ]);
    }
    let silent = answer["silent"].as_object().into_iter().flatten();
    let silent: String = silent
        .map(|(member, why)| format!("{member} did not say how far it is: {}\n", why.as_str().unwrap_or("?")))
        .collect();
    let physical = answer["physical"].as_str().unwrap_or("-");
    format!("index {} ({physical} on the nodes)\n{table}{silent}", answer["uid"].as_str().unwrap_or("-"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_as_it_should_be_stands_beside_its_copy() {
        let shown = one(&json!({"uid": "movies", "physical": "movies__m1", "silent": {"m3": "it is gone"}, "shards": [
            {"shard": 0, "primary": "m1", "epoch": 2, "set": 4, "replicas": [
                {"member": "m1", "state": "replica", "inSync": true, "lag": 0, "committed": 8},
                {"member": "m2", "state": "learner", "inSync": false, "lag": 5, "committed": 3, "rebuild": true},
                {"member": "m3", "state": "replica", "inSync": true},
            ]},
            {"shard": 1, "primary": null, "epoch": 0, "set": 1, "replicas": []},
        ]}));
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[0], "index movies (movies__m1 on the nodes)");
        assert!(lines[2].ends_with("m1 m2 (learner, not in sync, to be made anew, 5 behind) m3 (silent)"), "{shown}");
        assert_eq!(lines[3].split_whitespace().collect::<Vec<_>>(), ["1", "nobody", "0", "-"]);
        assert_eq!(lines[4], "m3 did not say how far it is: it is gone");
        assert_eq!(all(&json!({"indexes": []})), "no indexes yet\n");
    }
}
