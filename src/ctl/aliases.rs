//! `miroir-ctl aliases`: names that stand for an index.

use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};

use super::client::{Client, ClientError};
use super::operations::{name_step, unconfirmed, watch};
use super::table::Table;

/// What can be done with aliases.
#[derive(Debug, Clone, Subcommand)]
pub enum AliasesCommand {
    /// Shows all aliases and what they stand for.
    List,
    /// Has an alias stand for an index: makes it, or flips it, and waits until every member has confirmed that. A member that
    /// can't be reached is waited for until it must have found its own records old (`[leader_election]` lease_ttl_s and a
    /// twentieth); it is named then, writes nothing through the alias, and may still search the former index.
    Set {
        /// The alias.
        name: String,
        /// The index.
        index: String,
        /// Do not wait for a flip to be done.
        #[arg(long)]
        no_wait: bool,
    },
    /// Deletes an alias; the index stays.
    Delete {
        /// The alias.
        name: String,
    },
    /// Shows which indexes an alias stood for.
    History {
        /// The alias.
        name: String,
    },
}

/// Carries out the command; the text for people, or the answer as it is.
///
/// # Errors
/// [`ClientError`].
pub fn aliases(client: &Client, command: &AliasesCommand, as_json: bool) -> Result<String, ClientError> {
    let shown = |answer: Value, people: &dyn Fn(&Value) -> String| {
        if as_json { format!("{answer}\n") } else { people(&answer) }
    };
    match command {
        AliasesCommand::List => Ok(shown(client.ask(Method::GET, "/_miroir/aliases", None)?, &list)),
        AliasesCommand::Set { name, index, no_wait } => {
            let path = format!("/_miroir/aliases/{}", name_step(name)?);
            let mut alias = client.ask(Method::PUT, &path, Some(&json!({"index": index})))?;
            let mut away = None;
            if let Some(operation) = alias["operation"].as_str().filter(|_| !no_wait) {
                away = unconfirmed(&watch(client, operation, as_json)?);
                alias = client.ask(Method::GET, &path, None)?;
            }
            Ok(shown(alias, &|alias| one(alias) + &away.as_deref().map(still_away).unwrap_or_default()))
        }
        AliasesCommand::Delete { name } => {
            client.ask(Method::DELETE, &format!("/_miroir/aliases/{}", name_step(name)?), None)?;
            Ok(shown(json!({"name": name, "deleted": true}), &|_| format!("alias {name} is deleted\n")))
        }
        AliasesCommand::History { name } => {
            let alias = client.ask(Method::GET, &format!("/_miroir/aliases/{}", name_step(name)?), None)?;
            Ok(shown(alias, &history))
        }
    }
}

fn text(alias: &Value, field: &str) -> String {
    match &alias[field] {
        Value::String(s) => s.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn one(alias: &Value) -> String {
    let flip = alias["operation"].as_str().map(|id| format!("; operation {id} is flipping it")).unwrap_or_default();
    format!("alias {} stands for index {}{flip}\n", text(alias, "name"), text(alias, "index"))
}

fn still_away(members: &str) -> String {
    format!(
        "not confirmed by {members}: until they are back they write nothing through it, and may search its former index\n"
    )
}

fn list(all: &Value) -> String {
    let mut table = Table::new(["ALIAS", "INDEX", "VERSION", "OPERATION"]);
    for alias in all["aliases"].as_array().into_iter().flatten() {
        table.row(["name", "index", "version", "operation"].map(|field| text(alias, field)));
    }
    if table.is_empty() { "no aliases\n".to_owned() } else { table.to_string() }
}

fn history(alias: &Value) -> String {
    let mut table = Table::new(["INDEX", "UNTIL"]);
    for former in alias["history"].as_array().into_iter().flatten() {
        table.row([text(former, "index"), text(former, "until")]);
    }
    table.row([text(alias, "index"), "now".to_owned()]);
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_ends_with_the_index_of_now() {
        let alias = json!({"name": "live", "index": "b", "version": 2, "operation": null,
            "history": [{"index": "a", "until": "2026-01-01T00:00:00Z"}]});
        assert_eq!(history(&alias), "INDEX  UNTIL\na      2026-01-01T00:00:00Z\nb      now\n");
        assert_eq!(one(&alias), "alias live stands for index b\n");
        assert!(list(&json!({"aliases": [alias]})).contains("live   b      2        -"));
        assert_eq!(list(&json!({})), "no aliases\n");
    }
}
