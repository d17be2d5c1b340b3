//! `miroir-ctl mesh`: shows how the mesh stands, gives members the list to make one with, and lets survivors go on.

use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};

use super::client::{Client, ClientError};
use super::table::Table;

/// What can be done with the mesh itself.
#[derive(Debug, Clone, Subcommand)]
pub enum MeshCommand {
    /// Shows the mesh as the asked member knows it: who belongs to it, who votes, what is wrong. Works before there is one.
    Status,
    /// Gives the asked member the list of members to make a mesh with. Give every member of the list the same list in the
    /// same order (with --url, one after another): the mesh is made once, when all have it. Not needed where `[mesh]
    /// bootstrap` is configured.
    Init {
        /// A member: ID,GROUP,HOST:PORT and `,witness` for one without a node. Once for each, this one among them.
        #[arg(long = "member", required = true, value_name = "ID,GROUP,ADDRESS[,witness]", value_parser = entry)]
        members: Vec<Value>,
        /// Copies of each shard inside a group.
        #[arg(long, default_value_t = 1)]
        rf: u16,
        /// Shards of an index unless configured.
        #[arg(long, default_value_t = crate::types::limits::SHARDS_DEFAULT)]
        shards: u16,
    },
    /// When hosts are gone for good and with them the majority: the named members, the asked one among them, go on as a new
    /// mesh. What the others alone had accepted is lost; if one of them comes back, it stays outside. Every survivor must
    /// be running. Give the order to one of them only.
    Recover {
        /// A member that goes on. Once for each.
        #[arg(long = "survivor", required = true, value_name = "ID")]
        survivors: Vec<String>,
        /// Says that all other members are gone for good.
        #[arg(long, required = true)]
        others_are_gone_for_good: bool,
    },
}

fn entry(text: &str) -> Result<Value, String> {
    let parts: Vec<&str> = text.split(',').collect();
    let (id, group, address, witness) = match parts[..] {
        [id, group, address] => (id, group, address, false),
        [id, group, address, "witness"] => (id, group, address, true),
        _ => return Err("expected ID,GROUP,HOST:PORT or ID,GROUP,HOST:PORT,witness".to_owned()),
    };
    Ok(json!({"id": id, "group": group, "address": address, "witness": witness}))
}

/// Carries out the command; the text for people, or the answer as it is.
///
/// # Errors
/// [`ClientError`].
pub fn mesh(client: &Client, command: &MeshCommand, as_json: bool) -> Result<String, ClientError> {
    let (answer, words) = match command {
        MeshCommand::Status => {
            let status = client.ask(Method::GET, "/_miroir/mesh", None)?;
            let words = for_people(&status);
            (status, words)
        }
        MeshCommand::Init { members, rf, shards } => {
            let list = json!({"members": members, "rf": rf, "shards": shards});
            let answer = client.ask(Method::POST, "/_miroir/mesh/init", Some(&list))?;
            let others = members.len().saturating_sub(1);
            let words = format!(
                "{} has the list. The mesh is made when the other {others} have it too; `miroir-ctl mesh status` shows who is \
                 missing.\n",
                answer["member"].as_str().unwrap_or("the member")
            );
            (answer, words)
        }
        // The flag is required, so whoever comes here has written it.
        MeshCommand::Recover { survivors, .. } => {
            let order = json!({"survivors": survivors, "confirm": "the others are gone for good"});
            let answer = client.ask(Method::POST, "/_miroir/mesh/recover", Some(&order))?;
            let words =
                "The order is taken. It is carried out as soon as every survivor takes part; `miroir-ctl mesh status` \
                         shows the new mesh.\n"
                    .to_owned();
            (answer, words)
        }
    };
    Ok(if as_json { format!("{answer}\n") } else { words })
}

fn for_people(status: &Value) -> String {
    let text = |v: &Value| match v {
        Value::String(s) => s.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let ledger = &status["ledger"];
    let voters: Vec<&str> = ledger["voters"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let names = |v: &Value| v.as_array().into_iter().flatten().map(text).collect::<Vec<_>>().join(", ");
    let recovering = &status["recovering"];
    let mesh = match (&status["mesh"], &status["bootstrap"]) {
        _ if recovering.is_object() => {
            format!(
                "no mesh: it has left its own on an operator's order, and is to belong to {}",
                text(&recovering["new"])
            )
        }
        (Value::String(mesh), _) => format!("mesh {mesh}"),
        (_, Value::Bool(true)) => "no mesh yet: it is made when all members of the list have answered".to_owned(),
        _ => "no mesh, and no list to make one with: see `miroir-ctl mesh init --help`".to_owned(),
    };
    let mut out = format!(
        "{mesh}\nmember {}, store {}, start {}\n",
        text(&status["member"]),
        text(&status["store"]),
        text(&status["start"])
    );
    if status["mesh"].is_string() && !recovering.is_object() {
        let settled = if ledger["settled"] == true { "" } else { ", being changed" };
        let fresh =
            if ledger["fresh"] == true { "the newest" } else { "perhaps old: no majority of the voters answers" };
        out += &format!(
            "voters {} (list {}{settled})\n{} records, {fresh}\n",
            voters.join(", "),
            text(&ledger["list"]),
            text(&ledger["copies"])
        );
    }
    if recovering.is_object() {
        let missing = match names(&recovering["missing"]) {
            none if none.is_empty() => {
                format!("`miroir-ctl mesh status` at {} shows who is missing", text(&recovering["leader"]))
            }
            missing => format!("waiting for {missing}"),
        };
        out += &format!(
            "survivors {}, the new mesh is made by {} when all have handed over their records: {missing}\n",
            names(&recovering["survivors"]),
            text(&recovering["leader"])
        );
    } else if status["waitsToVote"].is_array() {
        out += &format!(
            "it does not vote yet: it has to show first that its store was not put back from a copy, and {} have not answered\n",
            names(&status["waitsToVote"])
        );
    }
    for remedy in [&status["rolledBack"], &status["removed"]].into_iter().filter_map(Value::as_str) {
        out += &format!("\nOUT OF ACTION: {remedy}\n");
    }
    for (member, ttl) in status["otherLeaseTtlsMs"].as_object().into_iter().flatten() {
        out += &format!(
            "\n{member} has another [leader_election] lease_ttl_s ({ttl} ms, here {} ms): give all members the same. Until then \
             changes of aliases wait for the longest.\n",
            text(&status["leaseTtlMs"])
        );
    }
    let mut members = Table::new(["MEMBER", "GROUP", "STATE", "VOTES", "WITNESS", "ADDRESS", "CONNECTED", "REMARK"]);
    let yes = |v: bool| if v { "yes" } else { "no" }.to_owned();
    let own = text(&status["member"]);
    for m in status["members"].as_array().into_iter().flatten() {
        let id = text(&m["id"]);
        let peer = &status["peers"][&id];
        let connected = if id == own { "-".to_owned() } else { yes(peer["connected"] == true) };
        members.row([
            id.clone(),
            text(&m["group"]),
            text(&m["state"]),
            if id == own && status["waitsToVote"].is_array() && m["votes"] == true {
                "not yet".to_owned()
            } else {
                yes(m["votes"] == true)
            },
            yes(m["witness"] == true),
            text(&m["address"]),
            connected,
            peer["reason"].as_str().unwrap_or_default().to_owned(),
        ]);
    }
    if members.is_empty() {
        let mut peers = Table::new(["PEER", "ADDRESS", "CONNECTED", "REMARK"]);
        for (id, peer) in status["peers"].as_object().into_iter().flatten() {
            let remark = peer["reason"].as_str().unwrap_or_default().to_owned();
            peers.row([id.clone(), text(&peer["address"]), yes(peer["connected"] == true), remark]);
        }
        if !peers.is_empty() {
            out += &format!("\n{peers}");
        }
    } else {
        out += &format!("\n{members}");
    }
    let mut notices = Table::new(["TIME", "NOTICE"]);
    for n in status["notices"].as_array().into_iter().flatten() {
        notices.row([text(&n["at"]), text(&n["notice"])]);
    }
    if !notices.is_empty() {
        out += &format!("\n{notices}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_written_in_three_or_four_parts() {
        assert_eq!(entry("m1,g1,a:1").unwrap()["witness"], false);
        assert_eq!(entry("m1,g1,a:1,witness").unwrap()["witness"], true);
        for bad in ["", "m1", "m1,g1", "m1,g1,a:1,voter", "m1,g1,a:1,witness,x"] {
            assert!(entry(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn people_see_what_is_missing() {
        let alone = json!({"member": "m1", "store": "ab", "start": 1, "mesh": null, "bootstrap": true, "ledger": {},
            "members": [], "peers": {"m2": {"address": "b:1", "connected": false, "reason": "no answer"}},
            "notices": [{"at": "now", "notice": "m2 have not answered"}]});
        let shown = for_people(&alone);
        assert!(shown.starts_with("no mesh yet") && shown.contains("m2    b:1      no         no answer"), "{shown}");
        assert!(shown.contains("have not answered"), "{shown}");
        let whole = json!({"member": "m1", "mesh": "ff", "ledger": {"voters": ["m1"], "list": 4, "settled": false, "copies": 2,
            "fresh": false}, "members": [{"id": "m1", "group": "g1", "state": "active", "address": "a:1"}],
            "rolledBack": "move the store away"});
        let shown = for_people(&whole);
        for words in ["voters m1 (list 4, being changed)", "perhaps old", "OUT OF ACTION: move the store away"] {
            assert!(shown.contains(words), "{shown}");
        }
        assert!(for_people(&json!({})).contains("no mesh"));
        let mut differs = whole.clone();
        (differs["leaseTtlMs"], differs["otherLeaseTtlsMs"]) = (json!(10_000), json!({"m2": 20_000}));
        assert!(
            for_people(&differs).contains("m2 has another [leader_election] lease_ttl_s (20000 ms, here 10000 ms)")
        );
        let mut waits = whole.clone();
        waits["members"][0]["votes"] = json!(true);
        assert!(for_people(&waits).contains("m1      g1     active  yes"), "{}", for_people(&waits));
        waits["waitsToVote"] = json!(["m2", "m3"]);
        let shown = for_people(&waits);
        assert!(
            shown.contains("m1      g1     active  not yet") && shown.contains("m2, m3 have not answered"),
            "{shown}"
        );
        let mut left = whole;
        left["recovering"] = json!({"new": "aa", "leader": "m2", "survivors": ["m1", "m2"], "missing": []});
        left["removed"] = json!("was removed");
        let shown = for_people(&left);
        for words in [
            "is to belong to aa",
            "survivors m1, m2, the new mesh is made by m2",
            "at m2 shows",
            "OUT OF ACTION: was removed",
        ] {
            assert!(shown.contains(words), "{shown}");
        }
        left["recovering"]["missing"] = json!(["m1"]);
        assert!(for_people(&left).contains("waiting for m1"));
    }
}
