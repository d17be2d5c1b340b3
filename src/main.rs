//! The sidecar: arguments → config → run → exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    miroir::cli::main_from(std::env::args_os())
}
