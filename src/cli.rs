//! The command line of `miroir`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::app;
use crate::config::{self, Config, LogFormat};
use crate::telemetry::logs::{self, LogStyle};

/// Read if no other file is named and it is there.
const CONFIG_DEFAULT: &str = "/etc/miroir/miroir.toml";

/// The sidecar that turns a fleet of Meilisearch nodes into one search engine.
#[derive(Debug, Parser)]
#[command(name = "miroir", version, about)]
struct Args {
    /// The configuration file; without it `/etc/miroir/miroir.toml` if that is there, else the environment alone.
    #[arg(long, short, global = true, env = "MIROIR_CONFIG")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run this member (what happens without a command).
    Run,
    /// Check the configuration and end: status 0 and what is rarely meant if it is valid, 2 and every fault if it is not.
    CheckConfig,
}

/// What `main` does: parses the arguments (the first is the program's name), runs, and says how it ended.
///
/// Exit codes: 0 ended as told, 1 failed, 2 wrong arguments or configuration.
pub fn main_from(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(e) => {
            // Help and version are "errors" with status 0.
            let code = u8::try_from(e.exit_code()).unwrap_or(2);
            return if e.print().is_ok() { ExitCode::from(code) } else { ExitCode::FAILURE };
        }
    };
    let default = Path::new(CONFIG_DEFAULT);
    let file = args.config.as_deref().or_else(|| default.exists().then_some(default));
    let named = file.map_or_else(|| "the environment".to_owned(), |file| file.display().to_string());
    let config = match Config::load(file, config::environment()) {
        Ok(config) => config,
        Err(faults) => {
            eprintln!("{faults}");
            return ExitCode::from(2);
        }
    };
    match args.command.unwrap_or(Command::Run) {
        Command::CheckConfig => {
            if let Err(fault) = app::check_files(&config) {
                eprintln!("{named}: {fault}");
                return ExitCode::from(2);
            }
            let mesh = match config.mesh.bootstrap.len() {
                0 => "no list of members: it waits for `miroir-ctl mesh init`".to_owned(),
                members => format!("one of {members} in the list"),
            };
            println!("{named} is valid: member {}, {mesh}", config.node.id);
            for warning in config.warnings() {
                eprintln!("warning: {warning}");
            }
            ExitCode::SUCCESS
        }
        Command::Run => run(config),
    }
}

fn run(config: Config) -> ExitCode {
    let style = match config.log.format {
        LogFormat::Text => LogStyle::Text,
        LogFormat::Json => LogStyle::Json,
    };
    if let Err(e) = logs::init(style, config.log.filter.as_str()) {
        eprintln!("miroir: {e}");
        return ExitCode::from(2);
    }
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let runtime = match crate::app::runtime() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("miroir: the runtime could not be started: {e}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(crate::app::run(config));
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("miroir: {e:#}");
            ExitCode::FAILURE
        }
    }
}
