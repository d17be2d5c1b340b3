//! `miroir-ctl shard`: orders about one shard, or about all that need it.

use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};

use super::client::{Client, ClientError};
use super::operations::name_step;

/// What can be ordered.
#[derive(Debug, Clone, Subcommand)]
pub enum ShardCommand {
    /// Makes a member the primary of a shard. Normally primaries are elected without help; this is for a shard that has none,
    /// because all who are in sync are gone. A member that is not in sync may lack acknowledged writes: it is elected only with
    /// --accept-data-loss, and everything that only others have is given up for good, also if they come back: their copies are
    /// made anew from the elected one. What that is is printed, and logged by the member that is asked. Without the flag it
    /// is said and nothing is changed. Ends with a failure if any order was refused.
    Elect {
        /// The index, or an alias of it; `_miroir_tasks` for the homes of tasks.
        index: String,
        /// The number of the shard, as `miroir-ctl shards INDEX` shows it.
        #[arg(required_unless_present = "all")]
        shard: Option<u16>,
        /// Every shard of the index that has no primary that works and of which the member holds a copy.
        #[arg(long, conflicts_with = "shard")]
        all: bool,
        /// The member that is to be primary. It must be running, hold a full copy, and be seen by the member that is asked.
        #[arg(long, value_name = "MEMBER")]
        to: String,
        /// Elect the member also if it is not in sync. Whoever is in sync must be gone for good.
        #[arg(long)]
        accept_data_loss: bool,
    },
}

/// Carries out the command; the text for people, or the answers as they are.
///
/// # Errors
/// [`ClientError`]; `Failed` if some of several orders were refused.
pub fn shard(client: &Client, command: &ShardCommand, as_json: bool) -> Result<String, ClientError> {
    let ShardCommand::Elect { index, shard, to, accept_data_loss, .. } = command;
    let path = format!("/_miroir/indexes/{}", name_step(index)?);
    let elect = |shard: u64| {
        let order = json!({"member": to, "acceptDataLoss": accept_data_loss});
        client.ask(Method::POST, &format!("{path}/shards/{shard}/elect"), Some(&order))
    };
    if let Some(shard) = shard {
        let elected = elect(u64::from(*shard))?;
        return Ok(if as_json { format!("{elected}\n") } else { one(&elected) });
    }
    let wanted = without_primary(&client.ask(Method::GET, &path, None)?, to);
    let (mut elected, mut refused) = (Vec::new(), Vec::new());
    for shard in wanted {
        match elect(shard) {
            Ok(answer) => elected.push(answer),
            Err(ClientError::Refused { message, code }) => {
                refused.push(json!({"shard": shard, "message": message, "code": code}));
            }
            // Nobody is asked any more, but what was done is said.
            Err(other) => {
                print!("{}", all(index, to, &elected, &refused, as_json));
                return Err(other);
            }
        }
    }
    let text = all(index, to, &elected, &refused, as_json);
    if refused.is_empty() {
        return Ok(text);
    }
    print!("{text}");
    let of = elected.len() + refused.len();
    Err(ClientError::Failed(format!("{} of {of} orders were refused", refused.len())))
}

/// The shards without a primary that works, of which the member holds a copy. It does not if nobody says to be primary, or while
/// it waits for somebody in sync who says nothing.
fn without_primary(index: &Value, member: &str) -> Vec<u64> {
    let of = |shard: &Value| {
        let copies = shard["replicas"].as_array()?;
        let waits = copies.iter().any(|copy| copy["inSync"] == true && copy["last"].is_null());
        let led = !waits && copies.iter().any(|copy| copy["leads"] == true);
        let holds = copies.iter().any(|copy| copy["member"] == member);
        shard["shard"].as_u64().filter(|_| holds && !led)
    };
    index["shards"].as_array().into_iter().flatten().filter_map(of).collect()
}

fn one(elected: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("nobody").to_owned();
    let (before, after) = (&elected["before"], &elected["after"]);
    let (shard, primary) = (&elected["shard"], text(&after["primary"]));
    if elected["changed"] != true {
        return format!("shard {shard}: {primary} is its primary already, epoch {}\n", after["epoch"]);
    }
    let names = |state: &Value| {
        let names: Vec<&str> = state["inSync"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        names.join(", ")
    };
    let lost = match elected["givenUp"]["text"].as_str() {
        Some(lost) => format!("  LOSS ACCEPTED: {lost}\n"),
        None => "  nothing is given up\n".to_owned(),
    };
    format!(
        "shard {shard}: {primary} is its primary from epoch {} on; in sync: {}\n  before: {}, epoch {}; in sync: {}\n{lost}",
        after["epoch"],
        names(after),
        text(&before["primary"]),
        before["epoch"],
        names(before),
    )
}

fn all(index: &str, to: &str, elected: &[Value], refused: &[Value], as_json: bool) -> String {
    if as_json {
        return format!("{}\n", json!({"elected": elected, "refused": refused}));
    }
    if elected.is_empty() && refused.is_empty() {
        return format!("every shard of {index} of which {to} holds a copy has a primary\n");
    }
    let failed =
        |refused: &Value| format!("shard {}: {}\n", refused["shard"], refused["message"].as_str().unwrap_or("?"));
    elected.iter().map(one).chain(refused.iter().map(failed)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shards_without_a_primary_that_works_are_taken() {
        let copy = |member: &str, leads: Option<bool>| match leads {
            Some(leads) => json!({"member": member, "leads": leads, "last": 4}),
            None => json!({"member": member}),
        };
        let index = json!({"shards": [
            {"shard": 0, "replicas": [copy("m1", None), copy("m2", Some(false))]},
            {"shard": 1, "replicas": [copy("m2", Some(false)), copy("m3", Some(true))]},
            {"shard": 2, "replicas": [copy("m1", None), copy("m3", Some(false))]},
            {"shard": 3, "replicas": [{"member": "m1", "inSync": true}, copy("m3", Some(true))]},
        ]});
        assert_eq!((without_primary(&index, "m2"), without_primary(&index, "m3")), (vec![0], vec![2, 3]));
    }

    #[test]
    fn what_is_given_up_is_shown() {
        let mut elected = json!({
            "shard": 3, "changed": true, "givenUp": {"text": "entries 41 to 57, which only m1 has, are given up"},
            "before": {"primary": "m1", "epoch": 4, "inSync": ["m1"]}, "after": {"primary": "m2", "epoch": 5, "inSync": ["m2"]},
        });
        let shown = one(&elected);
        assert!(
            shown.starts_with("shard 3: m2 is its primary from epoch 5 on; in sync: m2\n  before: m1, epoch 4"),
            "{shown}"
        );
        assert!(shown.ends_with("LOSS ACCEPTED: entries 41 to 57, which only m1 has, are given up\n"), "{shown}");
        elected["givenUp"] = Value::Null;
        assert!(one(&elected).ends_with("nothing is given up\n"));
        elected["changed"] = json!(false);
        assert_eq!(one(&elected), "shard 3: m2 is its primary already, epoch 5\n");
        let refused = [json!({"shard": 4, "message": "no"})];
        assert_eq!(all("books", "m2", &[], &refused, false), "shard 4: no\n");
        assert!(all("books", "m2", &[], &[], false).contains("has a primary"));
    }
}
