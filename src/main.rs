//! Parses arguments, then runs the daemon or a command; nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    postern::cli::run(std::env::args_os())
}
