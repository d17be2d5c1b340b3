//! `netsim`: trials for Miroir.

use anyhow::Result;
use clap::{Parser, Subcommand};
use netsim::node;

#[derive(Parser)]
#[command(name = "netsim", about = "Trials for Miroir")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a stand-in for a Meilisearch node.
    #[command(hide = true)]
    Node(node::Args),
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    match Cli::parse().command {
        Command::Node(args) => runtime.block_on(node::run(args)),
    }
}
