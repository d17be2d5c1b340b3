//! `miroir-ctl`: the operator's tool.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use miroir::ctl::{self, Client, Target};
use miroir::pki;

/// Looks after a mesh of Miroir sidecars.
#[derive(Parser)]
#[command(name = "miroir-ctl", version, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The mesh's certificate authority.
    #[command(subcommand)]
    Ca(pki::CaCommand),
    /// The mesh itself: how it stands, how it is made, how survivors go on.
    #[command(subcommand)]
    Mesh(ctl::MeshCommand),
    /// Shows who leads what: every lease with its holder and epoch.
    Leases,
    /// Work that one member leads at a time: shown, watched, paused, resumed, cancelled.
    Operations {
        /// Shows all of them if nothing is said.
        #[command(subcommand)]
        command: Option<ctl::OperationsCommand>,
    },
    /// Names that stand for an index: made, pointed elsewhere, deleted.
    #[command(subcommand)]
    Aliases(ctl::AliasesCommand),
    /// Shows who holds which shard, who is its primary, and who is behind: of one index, or of all in short.
    Shards {
        /// The index, or an alias of it; `_miroir_tasks` for the homes of tasks.
        index: Option<String>,
    },
    /// Orders about one shard, or about all that need it: which member is to be its primary.
    #[command(subcommand)]
    Shard(ctl::ShardCommand),
    /// Shows the members, their nodes, and what of each index is served.
    Status,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let asked = |ask: fn(&Client, bool) -> Result<String, ctl::ClientError>| {
        Client::new(&cli.target).and_then(|client| ask(&client, cli.target.json)).map_err(|e| e.to_string())
    };
    let done = match &cli.command {
        Command::Ca(command) => pki::run(command).map_err(|e| e.to_string()),
        Command::Mesh(command) => Client::new(&cli.target)
            .and_then(|client| ctl::mesh(&client, command, cli.target.json))
            .map_err(|e| e.to_string()),
        Command::Operations { command } => Client::new(&cli.target)
            .and_then(|client| ctl::operations(&client, command.as_ref(), cli.target.json))
            .map_err(|e| e.to_string()),
        Command::Aliases(command) => Client::new(&cli.target)
            .and_then(|client| ctl::aliases(&client, command, cli.target.json))
            .map_err(|e| e.to_string()),
        Command::Shards { index } => Client::new(&cli.target)
            .and_then(|client| ctl::shards(&client, index.as_deref(), cli.target.json))
            .map_err(|e| e.to_string()),
        Command::Shard(command) => Client::new(&cli.target)
            .and_then(|client| ctl::shard(&client, command, cli.target.json))
            .map_err(|e| e.to_string()),
        Command::Leases => asked(ctl::leases),
        Command::Status => asked(ctl::status),
    };
    match done {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("miroir-ctl: {error}");
            ExitCode::FAILURE
        }
    }
}
