//! The command line of `miroir`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::app;
use crate::config::{self, Config, LogFormat};
use crate::telemetry::logs::{self, LogStyle};

/// The sidecar that turns a fleet of Meilisearch nodes into one search engine.
#[derive(Debug, Parser)]
#[command(name = "miroir", version, about)]
struct Args {
    /// The configuration file.
    #[arg(long, short, global = true, env = "MIROIR_CONFIG", default_value = "/etc/miroir/miroir.toml")]
    config: PathBuf,
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
    let config = match Config::load(Some(&args.config), config::environment()) {
        Ok(config) => config,
        Err(faults) => {
            eprintln!("{faults}");
            return ExitCode::from(2);
        }
    };
    match args.command.unwrap_or(Command::Run) {
        Command::CheckConfig => {
            if let Err(fault) = app::check_files(&config) {
                eprintln!("{}: {fault}", args.config.display());
                return ExitCode::from(2);
            }
            println!(
                "{} is valid: member {} of {}",
                args.config.display(),
                config.node.id,
                config.mesh.bootstrap.len()
            );
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
