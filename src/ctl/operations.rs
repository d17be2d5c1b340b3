//! `miroir-ctl operations`: work that one member leads at a time.

use std::time::Duration;

use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};

use super::client::{Client, ClientError};
use super::table::Table;

/// Between two looks at what is watched.
const WATCH: Duration = Duration::from_millis(500);

/// What can be asked about operations.
#[derive(Debug, Clone, Subcommand)]
pub enum OperationsCommand {
    /// Shows all operations that are kept: those under way, and the last 20 finished ones of each scope.
    List,
    /// Shows an operation whenever something of it changes, until it is finished; without an ID, the first of all that are
    /// under way. Ends with a failure if the operation does.
    Watch {
        /// The operation.
        #[arg(value_name = "ID")]
        id: Option<String>,
    },
    /// Stops working on an operation, where it is, until it is resumed.
    Pause {
        /// The operation.
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Goes on with a paused operation where it was.
    Resume {
        /// The operation.
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Undoes an operation, as long as it can be undone.
    Cancel {
        /// The operation.
        #[arg(value_name = "ID")]
        id: String,
    },
}

/// Carries out the command; the text for people, or the answer as it is.
///
/// # Errors
/// [`ClientError`].
pub fn operations(client: &Client, command: Option<&OperationsCommand>, as_json: bool) -> Result<String, ClientError> {
    let change = |id: &str, wish: &str| {
        let path = format!("/_miroir/operations/{}/{wish}", step_of(id)?);
        let operation = client.ask(Method::POST, &path, Some(&json!({})))?;
        Ok(if as_json { format!("{operation}\n") } else { line(&operation) })
    };
    match command.unwrap_or(&OperationsCommand::List) {
        OperationsCommand::List => {
            let all = client.ask(Method::GET, "/_miroir/operations", None)?;
            Ok(if as_json { format!("{all}\n") } else { for_people(&all) })
        }
        OperationsCommand::Watch { id } => {
            let id = match id {
                Some(id) => id.clone(),
                None => match under_way(&client.ask(Method::GET, "/_miroir/operations", None)?) {
                    Some(id) => id,
                    None => return Ok(if as_json { String::new() } else { "no operation is under way\n".to_owned() }),
                },
            };
            watch(client, &id, as_json).map(|_| String::new())
        }
        OperationsCommand::Pause { id } => change(id, "pause"),
        OperationsCommand::Resume { id } => change(id, "resume"),
        OperationsCommand::Cancel { id } => change(id, "cancel"),
    }
}

/// Prints an operation whenever it changes, until it is finished; the finished one.
///
/// # Errors
/// [`ClientError`]; `Failed` if the operation was not done.
pub fn watch(client: &Client, id: &str, as_json: bool) -> Result<Value, ClientError> {
    let path = format!("/_miroir/operations/{}", step_of(id)?);
    let mut shown = Value::Null;
    loop {
        let operation = client.ask(Method::GET, &path, None)?;
        if operation != shown {
            print!("{}", if as_json { format!("{operation}\n") } else { line(&operation) });
        }
        match operation["state"].as_str() {
            Some("done") => return Ok(operation),
            Some(state @ ("failed" | "cancelled")) => {
                let why = operation["error"].as_str().map(|why| format!(": {why}")).unwrap_or_default();
                return Err(ClientError::Failed(format!("operation {id} was {state}{why}")));
            }
            _ => {}
        }
        shown = operation;
        std::thread::sleep(WATCH);
    }
}

/// An id as a part of a path.
fn step_of(id: &str) -> Result<&str, ClientError> {
    let plain = !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if plain { Ok(id) } else { Err(ClientError::Argument(format!("`{id}` is no id or name"))) }
}

/// A name of an alias as a part of a path.
pub(super) fn name_step(name: &str) -> Result<&str, ClientError> {
    step_of(name)
}

fn under_way(all: &Value) -> Option<String> {
    let mut all = all["operations"].as_array()?.iter();
    let open = all.find(|op| matches!(op["state"].as_str(), Some("running" | "paused" | "cancelling")))?;
    open["id"].as_str().map(str::to_owned)
}

fn text(v: &Value) -> String {
    match v {
        Value::String(s) => s.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// How far it is: "3 of 5 members, 1.5/s, 2 s left".
fn progress(op: &Value) -> String {
    let (p, number) = (&op["progress"], |v: &Value| v.as_f64().unwrap_or(0.0));
    if number(&p["total"]) == 0.0 && number(&p["done"]) == 0.0 {
        return "-".to_owned();
    }
    let mut out = format!("{} of {} {}", text(&p["done"]), text(&p["total"]), p["unit"].as_str().unwrap_or_default());
    if number(&p["perSecond"]) > 0.0 {
        out += &format!(", {:.1}/s", number(&p["perSecond"]));
    }
    if let Some(left) = p["secondsLeft"].as_f64() {
        out += &format!(", {left:.0} s left");
    }
    out
}

fn line(op: &Value) -> String {
    let mut out = format!(
        "{} {}: {}, phase {}, led by {}",
        text(&op["scope"]),
        text(&op["id"]),
        text(&op["state"]),
        text(&op["phase"]),
        op["leader"].as_str().unwrap_or("nobody"),
    );
    if progress(op) != "-" {
        out += &format!(", {}", progress(op));
    }
    if let Some(error) = op["error"].as_str() {
        out += &format!("; {error}");
    }
    if let Some(members) = unconfirmed(op) {
        out += &format!("; not confirmed by {members}");
    }
    out + "\n"
}

/// Who has not confirmed what an operation did: they are away, and may answer as before.
pub(super) fn unconfirmed(op: &Value) -> Option<String> {
    let members: Vec<&str> = op["unconfirmed"].as_array()?.iter().filter_map(Value::as_str).collect();
    (!members.is_empty()).then(|| members.join(", "))
}

fn for_people(all: &Value) -> String {
    let mut table = Table::new(["ID", "SCOPE", "STATE", "PHASE", "LEADER", "PROGRESS", "SINCE", "ERROR"]);
    for op in all["operations"].as_array().into_iter().flatten() {
        let last = op["history"].as_array().and_then(|h| h.last());
        table.row([
            text(&op["id"]),
            text(&op["scope"]),
            text(&op["state"]),
            text(&op["phase"]),
            text(&op["leader"]),
            progress(op),
            last.map_or_else(|| "-".to_owned(), |h| text(&h["at"])),
            op["error"].as_str().unwrap_or_default().to_owned(),
        ]);
    }
    if table.is_empty() { "no operations yet\n".to_owned() } else { table.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(state: &str) -> Value {
        json!({
            "id": "0af", "scope": "alias_flip:live", "state": state, "phase": "confirm", "leader": "m2", "error": null,
            "progress": {"done": 3, "total": 5, "unit": "members", "perSecond": 1.5, "secondsLeft": 1.4},
            "history": [{"phase": "confirm", "epoch": 4, "at": "2026-01-01T00:00:00Z"}],
        })
    }

    #[test]
    fn how_far_an_operation_is_is_shown() {
        let shown = for_people(&json!({"operations": [operation("running")]}));
        assert!(shown.contains("3 of 5 members, 1.5/s, 1 s left  2026-01-01T00:00:00Z"), "{shown}");
        let line = line(&operation("running"));
        assert!(line.starts_with("alias_flip:live 0af: running, phase confirm, led by m2, 3 of 5"), "{line}");
        assert_eq!(for_people(&json!({})), "no operations yet\n");
        let mut away = operation("done");
        away["unconfirmed"] = json!(["m3", "m4"]);
        assert!(super::line(&away).ends_with("; not confirmed by m3, m4\n"));
    }

    #[test]
    fn what_is_watched_without_an_id_is_not_finished() {
        let all = json!({"operations": [operation("done"), operation("paused")]});
        assert_eq!(under_way(&all).as_deref(), Some("0af"));
        assert_eq!(under_way(&json!({"operations": [operation("done")]})), None);
    }

    #[test]
    fn an_id_is_one_step_of_a_path() {
        for bad in ["", "a/b", "..", "a?b", "a b"] {
            assert!(matches!(step_of(bad), Err(ClientError::Argument(_))), "{bad}");
        }
        assert_eq!(step_of("0af-_").unwrap(), "0af-_");
    }
}
