//! Plays every file of `tests/data/dialogues` against a real door, each against a door of its own.
//! The format is described in `tests/data/dialogues/README.md`; anyone can add one without Rust.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postern::mail::Body;
use postern::smtp::BareLineEnds;
use postern::submission::Settings;

use crate::harness::door::{Client, Door, base64_of, plain};

#[test]
fn every_dialogue_goes_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/dialogues");
    let mut files: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    assert!(files.len() > 40, "the dialogues are found");
    let mut failures = Vec::new();
    for batch in files.chunks(8) {
        std::thread::scope(|scope| {
            let played: Vec<_> = batch.iter().map(|path| (path, scope.spawn(|| play(path)))).collect();
            for (path, thread) in played {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                match thread.join() {
                    Ok(Ok(())) => {}
                    Ok(Err(why)) => failures.push(format!("{name}: {why}")),
                    Err(_) => failures.push(format!("{name}: panicked")),
                }
            }
        });
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

struct Player {
    door: Door,
    client: Client,
}

fn play(path: &Path) -> Result<(), String> {
    let text = fs::read_to_string(path).unwrap();
    let lines: Vec<(usize, &str)> = text
        .lines()
        .enumerate()
        .map(|(number, line)| (number + 1, line))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .collect();
    let mut settings = quick();
    let mut port = "starttls";
    let mut rest = lines.as_slice();
    while let [(number, line), after @ ..] = rest {
        match line.split_once(' ') {
            Some(("SETTING", setting)) => set(&mut settings, setting).map_err(|why| format!("line {number}: {why}"))?,
            Some(("PORT", name)) => port = name,
            _ => break,
        }
        rest = after;
    }
    let door = if port == "reception" { Door::start_for_reception(settings) } else { Door::start(settings) };
    let client = Client::connect(if port == "tls" { door.tls_port } else { door.starttls_port });
    let mut player = Player { door, client };
    if port == "tls" {
        player.client.secure();
    }
    for (number, line) in rest {
        player.step(line).map_err(|why| format!("line {number}: {line}: {why}"))?;
    }
    Ok(())
}

fn quick() -> Settings {
    Settings { stop_grace: Duration::from_secs(2), ..Settings::default() }
}

fn set(settings: &mut Settings, text: &str) -> Result<(), String> {
    let (name, value) = text.split_once(' ').ok_or("SETTING name value")?;
    let number = || value.parse::<u64>().map_err(|_| format!("{value} is not a number"));
    let small = || value.parse::<usize>().map_err(|_| format!("{value} is not a number"));
    let count = || value.parse::<u32>().map_err(|_| format!("{value} is not a number"));
    match name {
        "message_bytes_max" => settings.session.message_bytes_max = number()?,
        "header_bytes_max" => settings.header_bytes_max = small()?,
        "header_fields_max" => settings.header_fields_max = small()?,
        "recipients_max" => settings.session.recipients_max = small()?,
        "errors_max" => settings.session.errors_max = count()?,
        "login_failures_max" => settings.session.login_failures_max = count()?,
        "idle_commands_max" => settings.session.idle_commands_max = count()?,
        "drafts_bytes_max" => settings.drafts_bytes_max = number()?,
        "sessions_max" => settings.sessions_max = small()?,
        "sessions_per_peer_max" => settings.sessions_per_peer_max = small()?,
        "sessions_per_account_max" => settings.sessions_per_account_max = small()?,
        "command_timeout_ms" => settings.command_timeout = Duration::from_millis(number()?),
        "login_timeout_ms" => settings.login_timeout = Duration::from_millis(number()?),
        "session_time_max_ms" => settings.session_time_max = Duration::from_millis(number()?),
        "handshake_timeout_ms" => settings.handshake_timeout = Duration::from_millis(number()?),
        "data_grace_ms" => settings.data_grace = Duration::from_millis(number()?),
        "data_bytes_per_second_min" => settings.data_bytes_per_second_min = number()?,
        "bare_line_ends" if value == "refuse" => settings.bare_line_ends = BareLineEnds::Refuse,
        _ => return Err("no such setting".to_owned()),
    }
    Ok(())
}

impl Player {
    fn step(&mut self, line: &str) -> Result<(), String> {
        if let Some(text) = line.strip_prefix("C:") {
            let text = self.filled(text.strip_prefix(' ').unwrap_or(text));
            return self.send(format!("{text}\r\n").as_bytes());
        }
        if let Some(pattern) = line.strip_prefix("S:") {
            let found = self.client.line().map_err(|error| error.to_string())?.ok_or("the server closed")?;
            return matches(pattern.trim(), &found);
        }
        let (word, argument) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "REPLY" => matches(argument, &self.client.reply()),
            "RAW" => {
                let octets = unescape(&self.filled(argument))?;
                self.send(&octets)
            }
            "SLOWLY" => unescape(&self.filled(argument))?.into_iter().try_for_each(|octet| {
                std::thread::sleep(Duration::from_millis(2));
                self.send(&[octet])
            }),
            "TIMES" => self.times(argument),
            "TLS" => self.client.try_secure().map_err(|error| error.to_string()),
            "LOGIN" => self.log_in(),
            "WAIT" => {
                std::thread::sleep(Duration::from_millis(argument.parse().map_err(|_| "WAIT milliseconds")?));
                Ok(())
            }
            "QUIET" => self.quiet(),
            "CLOSED" => self.client.is_at_end().then_some(()).ok_or_else(|| "the server did not close".to_owned()),
            "SUSPEND" => self.suspend(),
            "STOP" => {
                self.door.stop.cancel();
                Ok(())
            }
            "SECOND" => {
                self.client = Client::connect(self.door.starttls_port);
                Ok(())
            }
            _ => self.check(word, argument),
        }
    }

    /// What was accepted, and how.
    fn check(&self, word: &str, argument: &str) -> Result<(), String> {
        if word == "ARRIVED" {
            return same(argument, &self.door.arrived.lock().unwrap().len().to_string());
        }
        let accepted = self.door.accepted.lock().unwrap();
        if word == "ACCEPTED" {
            return same(argument, &accepted.len().to_string());
        }
        let last = accepted.last().ok_or("nothing was accepted")?;
        let envelope = &last.envelope;
        match word {
            "SENDER" => same(argument, &envelope.reverse_path.to_string()),
            "RECIPIENTS" => {
                let addresses = envelope.recipients.iter().map(|path| path.address.to_string());
                same(argument, &addresses.collect::<Vec<_>>().join(" "))
            }
            "PARAMETERS" => same(argument, &format!("{:?}", envelope.parameters)),
            "NOTIFY" => {
                same(argument, &format!("{:?} {:?}", envelope.recipients[0].notify, envelope.recipients[0].orcpt))
            }
            "HEADER" => same(argument, &last.draft.header.to_bytes().escape_ascii().to_string()),
            "BODY" => {
                let octets: Vec<u8> = last.draft.body.slices().flat_map(|slice| slice.unwrap().to_vec()).collect();
                same(argument, &octets.escape_ascii().to_string())
            }
            "SPILLED" => same(argument, &matches!(last.draft.body, Body::Spilled(_)).to_string()),
            "LENGTH" => same(argument, &last.draft.body.length().to_string()),
            _ => Err("no such directive".to_owned()),
        }
    }

    fn send(&mut self, octets: &[u8]) -> Result<(), String> {
        self.client.send(octets).map_err(|error| error.to_string())
    }

    /// `TIMES count octets`: sends them that often, and does not mind if the peer has closed.
    fn times(&mut self, argument: &str) -> Result<(), String> {
        let (count, octets) = argument.split_once(' ').ok_or("TIMES count octets")?;
        let octets = unescape(octets)?.repeat(count.parse().map_err(|_| "TIMES count octets")?);
        let _ = self.client.send(&octets);
        Ok(())
    }

    fn log_in(&mut self) -> Result<(), String> {
        let login = plain(&self.door.login, &self.door.password);
        for (line, code) in [("EHLO c.example".to_owned(), "250"), (format!("AUTH PLAIN {login}"), "235")] {
            self.client.say(&line);
            matches(code, &self.client.reply())?;
        }
        Ok(())
    }

    fn quiet(&mut self) -> Result<(), String> {
        self.client.set_patience(Duration::from_millis(200));
        let found = self.client.line();
        self.client.set_patience(Duration::from_secs(20));
        match found {
            Err(_) => Ok(()),
            Ok(line) => Err(format!("not quiet: {line:?}")),
        }
    }

    fn suspend(&mut self) -> Result<(), String> {
        let tenant = self.door.accounts.tenant_named("shop").unwrap();
        let actor = postern::access::Actor::system("test");
        let change = self.door.accounts.set_sending(
            &actor,
            tenant.id,
            postern::accounts::Sending::Suspended,
            postern::ext::Timestamp::now(),
        );
        self.door.block_on(change).map(|_| ()).map_err(|error| error.to_string())
    }

    fn filled(&self, text: &str) -> String {
        let (login, password) = (&self.door.login, &self.door.password);
        text.replace("${plain}", &plain(login, password))
            .replace("${login64}", &base64_of(login.as_bytes()))
            .replace("${password64}", &base64_of(password.as_bytes()))
            .replace("${foreign}", &base64_of(format!("admin\0{login}\0{password}").as_bytes()))
            .replace("${own}", &base64_of(format!("{login}\0{login}\0{password}").as_bytes()))
    }
}

/// A pattern is the beginning of a line; `...` in it stands for anything.
fn matches(pattern: &str, line: &str) -> Result<(), String> {
    let mut parts = pattern.split("...");
    let first = parts.next().unwrap_or_default();
    let mut rest = line.strip_prefix(first).ok_or_else(|| format!("got {line:?}"))?;
    for part in parts {
        let at = rest.find(part).ok_or_else(|| format!("got {line:?}"))?;
        rest = &rest[at + part.len()..];
    }
    Ok(())
}

fn same(wanted: &str, found: &str) -> Result<(), String> {
    if wanted == found { Ok(()) } else { Err(format!("got {found}")) }
}

/// `\r`, `\n`, `\t`, `\0`, `\\` and `\xHH`.
fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let mut octets = Vec::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            octets.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        match characters.next() {
            Some('r') => octets.push(b'\r'),
            Some('n') => octets.push(b'\n'),
            Some('t') => octets.push(b'\t'),
            Some('0') => octets.push(0),
            Some('\\') => octets.push(b'\\'),
            Some('x') => {
                let digits: String = characters.by_ref().take(2).collect();
                octets.push(u8::from_str_radix(&digits, 16).map_err(|_| "\\xHH")?);
            }
            _ => return Err("an escape is \\r \\n \\t \\0 \\\\ or \\xHH".to_owned()),
        }
    }
    Ok(octets)
}
