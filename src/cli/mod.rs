//! The command line: parse, do one thing, print, exit. A door: it translates and never decides.
//!
//! Recipe: [`run`] with the arguments of the process. Commands about data are clients of the
//! daemon's socket and never open the store beside it; only `store verify` and `store salvage` do,
//! under the folder's lock. Easy to get wrong: scripts rely on the exit codes of [`exit`].

mod arguments;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command};

/// Exit codes scripts and systemd rely on.
pub mod exit {
    /// Something was not done; the message says what.
    pub const FAILED: u8 = 1;
    /// Wrong usage.
    pub const USAGE: u8 = 2;
    /// The daemon cannot be reached (EX_UNAVAILABLE).
    pub const UNREACHABLE: u8 = 69;
    /// The configuration is wrong (EX_CONFIG).
    pub const CONFIGURATION: u8 = 78;
}

/// Runs what `arguments` (the program's name first) ask for.
pub fn run<I, T>(arguments: I) -> ExitCode
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = u8::try_from(error.exit_code()).unwrap_or(exit::USAGE);
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match &arguments.command {
        Command::Serve | Command::Check => missing("serve"),
        _ => missing("this command"),
    }
}

fn missing(what: &str) -> ExitCode {
    eprintln!("postern: {what} is not part of this build yet");
    ExitCode::from(exit::FAILED)
}
