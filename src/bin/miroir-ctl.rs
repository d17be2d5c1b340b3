//! `miroir-ctl`: the operator's tool.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use miroir::pki;

/// Looks after a mesh of Miroir sidecars.
#[derive(Parser)]
#[command(name = "miroir-ctl", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The mesh's certificate authority.
    #[command(subcommand)]
    Ca(pki::CaCommand),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Ca(command) => pki::run(&command),
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
