//! The command line: parse, do one thing, print, exit. A door: it translates and never decides.
//!
//! Recipe: [`run`] with the arguments of the process. Commands about data are clients of the
//! daemon's socket and never open the store beside it; only `store` and `masterkey` do,
//! under the folder's lock. Easy to get wrong: scripts rely on the exit codes of [`exit`].

mod arguments;
mod audit;
mod backup;
mod breaker;
mod classify;
mod client;
mod delivery;
mod doctor;
mod domain;
mod init;
mod key;
mod mailbox;
mod masterkey;
mod messages;
mod notification;
mod output;
mod page;
mod queue;
mod return_path;
mod route;
mod site;
mod smtp_account;
mod snippets;
mod statistics;
mod status;
mod store;
mod suppression;
mod tenant;
mod tls;
mod top;
mod trace;
mod transfer;
mod user;
mod vip;
mod webhook;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::config::{self, Config};
use crate::daemon;
use crate::ext::Timestamp;
use crate::trial;
use arguments::{Arguments, Command, Everywhere};
use client::{Client, Fault};
use output::Colour;

/// Exit codes scripts and systemd rely on.
pub mod exit {
    /// Something was not done; the message says what.
    pub const FAILED: u8 = 1;
    /// Wrong usage.
    pub const USAGE: u8 = 2;
    /// A file is damaged or not what it should be (EX_DATAERR).
    pub const DAMAGED: u8 = 65;
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
    daemon::keep_memory_private();
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = u8::try_from(error.exit_code()).unwrap_or(exit::USAGE);
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let ended = match &arguments.command {
        Command::Serve(options) => {
            let root = if options.allow_root { config::RootPolicy::Allow } else { config::RootPolicy::Refuse };
            return daemon::serve(&arguments.everywhere.config, root);
        }
        Command::Try(options) => {
            let afterwards = if options.once { trial::Afterwards::Exit } else { trial::Afterwards::Stay };
            let log = if options.log { trial::MailLog::Shown } else { trial::MailLog::Silent };
            return trial::run(afterwards, log);
        }
        Command::Doctor(asked) => match runtime() {
            Ok(runtime) => return runtime.block_on(doctor::run(&arguments.everywhere, asked)),
            Err(fault) => Err(fault),
        },
        Command::Init(init) => init::run(init),
        Command::Store(command) => offline(&arguments.everywhere, command),
        Command::Backup(command @ (arguments::Backup::Verify { .. } | arguments::Backup::Key)) => {
            backup::offline(&arguments.everywhere, || load(&arguments.everywhere.config), command)
        }
        Command::Restore(asked) => {
            runtime().and_then(|runtime| runtime.block_on(backup::restore(&arguments.everywhere, asked)))
        }
        Command::Masterkey(asked) => load(&arguments.everywhere.config)
            .and_then(|config| runtime()?.block_on(masterkey::run(&arguments.everywhere, &config, asked))),
        Command::Check => check(&arguments.everywhere.config),
        Command::Classify(asked) => classify::run(&arguments.everywhere, asked),
        command => online(&arguments.everywhere, command),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("postern: {fault}");
            ExitCode::from(fault.code())
        }
    }
}

fn load(path: &Path) -> Result<Config, Fault> {
    config::load(path).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Fault::Configuration(lines.join("\npostern: "))
    })
}

/// The file itself, then the files it names that the daemon cannot start without.
fn check(path: &Path) -> Result<(), Fault> {
    let config = load(path)?;
    let look = daemon::look(&config);
    for line in &look.unseen {
        eprintln!("postern: not looked at: {line}");
    }
    if !look.problems.is_empty() {
        return Err(Fault::Configuration(look.problems.join("\npostern: ")));
    }
    output::print(&format!("{} is fine\n", path.display()));
    Ok(())
}

/// Commands on a folder no daemon has open.
fn offline(everywhere: &Everywhere, command: &arguments::Store) -> Result<(), Fault> {
    let config = load(&everywhere.config)?;
    runtime()?.block_on(store::run(everywhere, &config, command))
}

/// Commands that speak to the daemon.
fn online(everywhere: &Everywhere, command: &Command) -> Result<(), Fault> {
    let session = Session::open(everywhere)?;
    runtime()?.block_on(async {
        match command {
            Command::Status => status::run(&session).await,
            Command::Tenant(command) => tenant::run(&session, command).await,
            Command::Vip(command) => vip::run(&session, command).await,
            Command::Domain(command) => domain::run(&session, command).await,
            Command::SmtpAccount(command) => smtp_account::run(&session, command).await,
            Command::User(command) => user::run(&session, command).await,
            Command::Key(command) => key::run(&session, command).await,
            Command::Audit(command) => audit::run(&session, command).await,
            Command::Breaker(command) => breaker::run(&session, command).await,
            Command::Suppression(command) => suppression::run(&session, command).await,
            Command::Messages(command) => messages::run(&session, command).await,
            Command::Stats(asked) => statistics::run(&session, asked).await,
            Command::Queue(command) => queue::run(&session, command).await,
            Command::Top(asked) => top::run(&session, asked).await,
            Command::Trace(asked) => trace::run(&session, asked).await,
            Command::Why { id } => queue::why(&session, id).await,
            Command::Delivery(command) => delivery::run(&session, command).await,
            Command::Route(command) => route::run(&session, command).await,
            Command::Backup(arguments::Backup::Make { file }) => backup::make(&session, file).await,
            Command::Site(command) => site::run(&session, command).await,
            Command::Tls(command) => tls::run(&session, command).await,
            Command::Mailbox(command) => mailbox::run(&session, command).await,
            Command::Webhook(command) => webhook::run(&session, command).await,
            Command::Notification(command) => notification::run(&session, command).await,
            _ => Err(Fault::Failed("this command needs no daemon".to_owned())),
        }
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, Fault> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|error| Fault::Failed(format!("the runtime cannot start: {error}")))
}

/// One command's client and the way it prints.
struct Session {
    client: Client,
    form: Form,
    colour: Colour,
    now: Timestamp,
}

/// What is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    People,
    Json,
}

impl Session {
    /// The socket is `--socket`, else the configuration's, else the default if there is no file.
    fn open(everywhere: &Everywhere) -> Result<Self, Fault> {
        let socket = match &everywhere.socket {
            Some(socket) => socket.clone(),
            None if everywhere.config.exists() => load(&everywhere.config)?.web.socket,
            None => crate::web::Settings::default().socket,
        };
        let form = if everywhere.json { Form::Json } else { Form::People };
        Ok(Self { client: Client { socket }, form, colour: Colour::of_output(), now: Timestamp::now() })
    }

    fn is_json(&self) -> bool {
        self.form == Form::Json
    }

    /// Prints an answer: as it came, or in words.
    fn show<T: DeserializeOwned>(&self, value: &Value, words: impl FnOnce(&Self, T) -> String) -> Result<(), Fault> {
        match self.form {
            Form::Json => output::print_json(value),
            Form::People => output::print(&words(self, output::read(value)?)),
        }
        Ok(())
    }

    /// Prints that something without an answer of its own is done.
    fn done(&self, value: &Value, words: &str) -> Result<(), Fault> {
        match self.form {
            Form::Json => output::print_json(value),
            Form::People => output::print(&format!("{words}\n")),
        }
        Ok(())
    }
}

/// The rows of a list.
fn rows<T: DeserializeOwned>(list: &Value) -> Result<Vec<T>, Fault> {
    let rows = list.get("rows").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    rows.iter().map(output::read).collect()
}
