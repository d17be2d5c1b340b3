//! `netsim`: trials for Miroir. `demo` runs a mesh of real processes, `bench` compares one with a single node, `live`
//! puts one under real faults; `sim` runs the protocol cores under simulated faults and `replay` shows one such run; `node`
//! is the stand-in for Meilisearch.
//!
//! The hidden subcommand `sidecar` is `miroir`'s own `main`: meshes run this same executable again, so that nothing
//! stale runs.

mod bench;
mod demo;
mod live;
mod mesh;
mod sim;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use netsim::node;

/// Trials for Miroir.
#[derive(Debug, Parser)]
#[command(name = "netsim", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a mesh of real processes on this machine, loads documents and waits for Ctrl-C.
    Demo(demo::DemoArguments),
    /// Compares meshes of 1 and 3 members with a single node.
    Bench(bench::BenchArguments),
    /// Tries a mesh of real processes in network namespaces under faults of links and processes.
    Live(live::LiveArguments),
    /// Runs the protocol cores under simulated faults, one seed a run.
    Sim(sim::SimArguments),
    /// Runs one seed of `sim` again and shows everything that happens.
    Replay(sim::ReplayArguments),
    /// Runs a stand-in for a Meilisearch node.
    #[command(hide = true)]
    Node(node::Args),
}

fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    if arguments.get(1).is_some_and(|a| a == mesh::SIDECAR_COMMAND) {
        arguments.remove(1);
        return miroir::cli::main_from(arguments);
    }
    let result = match Arguments::parse_from(arguments).command {
        Command::Demo(arguments) => run(demo::run(arguments)).map(|()| ExitCode::SUCCESS),
        Command::Bench(arguments) => run(bench::run(arguments)).map(|()| ExitCode::SUCCESS),
        Command::Live(arguments) => run(live::run(arguments)),
        Command::Sim(arguments) => Ok(sim::sim(&arguments)),
        Command::Replay(arguments) => Ok(sim::replay(&arguments)),
        Command::Node(arguments) => run(node::run(arguments)).map(|()| ExitCode::SUCCESS),
    };
    match result {
        Ok(code) => code,
        Err(e) => {
            eprintln!("netsim: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs on the main thread: children die with the thread that started them.
fn run<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(command)
}
