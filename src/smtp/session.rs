//! The server side of one session as a state machine: line in, replies and a [`Step`] out.
//!
//! It refuses to know sockets, clocks, tenants and stores: its driver answers each question that
//! a `Step` asks. Easy to get wrong: after STARTTLS nothing of before may be remembered
//! (RFC 3207 s4.2), and RSET forgets the transaction but never the login.

mod auth;

use std::sync::Arc;
use std::time::Duration;

use crate::ext::Timestamp;
use crate::mail::{Domain, Envelope, ForwardPath, Hold, Reply, ReversePath, Smtputf8};

use super::command::{Command, MailCommand};
use super::extension::{Duty, Offer, Security};
use super::reply::write_reply;

pub use auth::Credentials;
use auth::Exchange;

/// Octets of a line without CR LF that a driver passes, at most (RFC 4954 s4 for AUTH).
pub const LINE_OCTETS_MAX: usize = 12_288;

/// Chunks behind a refused one that are no errors of their own, at most: a client that pipelines sent them
/// before it could hear of the refusal.
const CHUNKS_BEHIND_MAX: u32 = 1_000;

/// What the session enforces by itself. Defaults in parentheses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Octets of a command line other than AUTH's (4,096); longer: `500 5.5.2`.
    pub command_octets_max: usize,
    /// Octets of a message, advertised as SIZE (25 MiB); more: `552 5.3.4`.
    pub message_bytes_max: u64,
    /// Recipients of one message, advertised as RCPTMAX (1,000); more: `452 4.5.3`.
    pub recipients_max: usize,
    /// Refused commands in one session (20); more: `421 4.7.0`.
    pub errors_max: u32,
    /// NOOP, RSET, VRFY, EXPN, HELP, repeated EHLO without a message between (100); more: `421 4.7.0`.
    pub idle_commands_max: u32,
    /// Failed logins (6): the last is followed by `421 4.7.0`.
    pub login_failures_max: u32,
    /// How far ahead FUTURERELEASE may go (7 days); further: `501 5.5.4`.
    pub hold_max: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            command_octets_max: 4096,
            message_bytes_max: 25 * 1024 * 1024,
            recipients_max: 1000,
            errors_max: 20,
            idle_commands_max: 100,
            login_failures_max: 6,
            hold_max: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

impl Settings {
    /// Octets of a refused message that are read before the peer is hung up on: twice the limit and 1 MiB.
    pub fn drained_octets_max(&self) -> u64 {
        self.message_bytes_max.saturating_mul(2).saturating_add(1024 * 1024)
    }
}

/// What the driver does next. Replies are in its buffer already.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Read the next line.
    Next,
    /// Send the replies, drop every octet read so far, shake hands, call [`Session::secured`].
    UpgradeTls,
    /// Check the login, call [`Session::login_checked`].
    CheckLogin(Credentials),
    /// Check the sender and the tenant, call [`Session::sender_checked`].
    CheckSender(ReversePath),
    /// Check the recipient, call [`Session::recipient_checked`].
    CheckRecipient(ForwardPath),
    /// Send the replies, read to the final dot, then [`Session::take_envelope`].
    ReadData,
    /// Read that many octets of the message; if `last`, then [`Session::take_envelope`],
    /// else [`Session::chunk_taken`].
    ReadChunk {
        /// Octets that follow.
        octets: u64,
        /// Whether they end the message.
        last: bool,
    },
    /// Read that many octets and forget them; the reply is in the buffer.
    SkipChunk {
        /// Octets that follow.
        octets: u64,
    },
    /// Send the replies and close.
    Close,
}

/// How a login went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginAnswer {
    /// 235.
    Accepted,
    /// 535, the same whatever was wrong.
    Refused,
    /// 454: come back later.
    Unavailable,
}

/// One session.
#[derive(Debug)]
pub struct Session {
    settings: Arc<Settings>,
    name: Domain,
    security: Security,
    duty: Duty,
    helo: Option<Helo>,
    exchange: Option<Exchange>,
    is_logged_in: bool,
    asked: Option<Asked>,
    transaction: Option<Box<Transaction>>,
    behind: Option<Behind>,
    errors: u32,
    idle_commands: u32,
    login_failures: u32,
}

/// What came behind a refused chunk: nothing but chunks, and none the last.
#[derive(Clone, Copy, Debug, Default)]
struct Behind {
    chunks: u32,
    octets: u64,
}

#[derive(Debug)]
struct Helo {
    text: String,
    extended: bool,
}

/// What the driver was asked and has not answered.
#[derive(Debug)]
enum Asked {
    Login,
    Sender(Box<MailCommand>),
    Recipient(Box<ForwardPath>),
}

#[derive(Debug)]
struct Transaction {
    envelope: Envelope,
    chunks: Chunks,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunks {
    None,
    Begun,
}

impl Session {
    /// A session on the virtual IP called `name`; `security` is `Tls` where TLS comes first.
    pub fn new(settings: Arc<Settings>, name: Domain, security: Security) -> Self {
        Self {
            settings,
            name,
            security,
            duty: Duty::Submission,
            helo: None,
            exchange: None,
            is_logged_in: false,
            asked: None,
            transaction: None,
            behind: None,
            errors: 0,
            idle_commands: 0,
            login_failures: 0,
        }
    }

    /// A session that takes mail for ourselves, from whoever comes.
    pub fn receiving(settings: Arc<Settings>, name: Domain) -> Self {
        Self { duty: Duty::Reception, ..Self::new(settings, name, Security::Plain) }
    }

    /// Writes the greeting (RFC 5321 s4.2).
    pub fn greet(&self, out: &mut Vec<u8>) {
        say(out, &format!("220 {} ESMTP postern", self.name));
    }

    /// Writes that the service stops (RFC 5321 s3.8): for shutdown, timeouts and limits.
    pub fn close_with(&self, why: &str, out: &mut Vec<u8>) {
        say(out, &format!("421 {why}"));
    }

    /// Whether a login was accepted.
    pub fn is_logged_in(&self) -> bool {
        self.is_logged_in
    }

    /// Whether a message is being handed in.
    pub fn is_in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// Whether the next line is an answer of a login: a secret.
    pub fn awaits_secret(&self) -> bool {
        self.exchange.is_some()
    }

    /// What the client calls itself, printable; empty before EHLO.
    pub fn helo(&self) -> &str {
        self.helo.as_ref().map_or("", |helo| &helo.text)
    }

    /// Takes one line without its CR LF.
    pub fn line(&mut self, line: &[u8], now: Timestamp, out: &mut Vec<u8>) -> Step {
        if let Some(exchange) = self.exchange.take() {
            return self.continue_login(exchange, line, out);
        }
        let is_auth = line.get(..4).is_some_and(|verb| verb.eq_ignore_ascii_case(b"AUTH"));
        let octets_max = if is_auth { LINE_OCTETS_MAX } else { self.settings.command_octets_max };
        if line.len() > octets_max {
            return self.line_too_long(out);
        }
        match Command::parse(line, &self.name) {
            Ok(command) => self.command(command, now, out),
            Err(error) => self.refuse(&error.reply(), out),
        }
    }

    /// A line was longer than [`LINE_OCTETS_MAX`]; the driver dropped it to its end.
    pub fn line_too_long(&mut self, out: &mut Vec<u8>) -> Step {
        self.exchange = None;
        self.wrong("500 5.5.2 The line is too long", out)
    }

    /// A line ended in a bare LF: nothing of it is a command, and nothing after it can be trusted.
    pub fn bare_line_end(&self, out: &mut Vec<u8>) -> Step {
        say(out, "500 5.5.2 Lines end in CR LF; a bare LF was found");
        Step::Close
    }

    fn command(&mut self, command: Command, now: Timestamp, out: &mut Vec<u8>) -> Step {
        if !matches!(command, Command::Bdat { .. }) {
            self.behind = None;
        }
        match command {
            Command::Ehlo(text) => {
                if self.helo.is_some() && self.is_worn_out() {
                    return self.worn_out(out);
                }
                self.transaction = None;
                self.helo = Some(Helo { text, extended: true });
                self.offer().write(now, out);
                Step::Next
            }
            Command::Helo(text) => {
                if self.helo.is_some() && self.is_worn_out() {
                    return self.worn_out(out);
                }
                self.transaction = None;
                self.helo = Some(Helo { text, extended: false });
                say(out, &format!("250 {}", self.name));
                Step::Next
            }
            Command::StartTls => self.starttls(out),
            Command::Auth { .. } if self.duty == Duty::Reception => {
                self.wrong("502 5.5.1 Nobody logs in here; mail is submitted at another port", out)
            }
            Command::Auth { mechanism, initial } => self.begin_login(mechanism, initial, out),
            Command::Mail(mail) => self.mail(mail, now, out),
            Command::Rcpt(path) => self.rcpt(path, out),
            Command::Data => self.data(out),
            Command::Bdat { octets, last } => self.bdat(octets, last, out),
            Command::Rset => {
                self.transaction = None;
                self.idle("250 2.0.0 Reset", out)
            }
            Command::Noop => self.idle("250 2.0.0 OK", out),
            Command::Vrfy => self.idle("252 2.5.0 Not verified here; send it and see", out),
            Command::Expn => self.idle("502 5.5.1 Lists are not expanded here", out),
            Command::Help if self.duty == Duty::Reception => {
                self.idle("214 2.0.0 Notices about our own mail are taken here, and nothing is passed on", out)
            }
            Command::Help => self.idle("214 2.0.0 Log in under TLS, then MAIL, RCPT, DATA (RFC 5321, RFC 6409)", out),
            Command::Quit => {
                say(out, "221 2.0.0 Bye");
                Step::Close
            }
        }
    }

    fn offer(&self) -> Offer<'_> {
        Offer {
            name: self.name.as_str(),
            message_bytes_max: self.settings.message_bytes_max,
            recipients_max: self.settings.recipients_max,
            hold_max: self.settings.hold_max,
            security: self.security,
            duty: self.duty,
        }
    }

    fn starttls(&mut self, out: &mut Vec<u8>) -> Step {
        if self.security == Security::Tls {
            return self.wrong("503 5.5.1 TLS protects this session already", out);
        }
        say(out, "220 2.0.0 Ready for TLS");
        Step::UpgradeTls
    }

    /// The handshake succeeded: everything said in the clear is forgotten (RFC 3207 s4.2).
    pub fn secured(&mut self) {
        let (errors, login_failures, duty) = (self.errors, self.login_failures, self.duty);
        *self = Self::new(Arc::clone(&self.settings), self.name.clone(), Security::Tls);
        (self.errors, self.login_failures, self.duty) = (errors, login_failures, duty);
    }

    fn mail(&mut self, mail: MailCommand, now: Timestamp, out: &mut Vec<u8>) -> Step {
        if self.transaction.is_some() {
            return self.wrong("503 5.5.1 A message is being handed in; send RSET to give it up", out);
        }
        if self.duty == Duty::Reception && self.helo.is_none() {
            return self.wrong("503 5.5.1 Send EHLO first", out);
        }
        if self.duty == Duty::Submission && !self.is_logged_in {
            let what = match self.security {
                Security::Plain => "530 5.7.0 Send STARTTLS, then log in",
                Security::Tls => "530 5.7.0 Log in first",
            };
            return self.wrong(what, out);
        }
        if mail.size.is_some_and(|size| size > self.settings.message_bytes_max) {
            let max = self.settings.message_bytes_max;
            return self.wrong(&format!("552 5.3.4 The message is too large; the limit is {max} octets"), out);
        }
        if self.duty == Duty::Reception && mail.parameters.hold.is_some() {
            return self.wrong("555 5.5.4 Mail is not held here", out);
        }
        // RFC 4865 s4: over the advertised limits the command is refused.
        let is_held_too_long = match mail.parameters.hold {
            None => false,
            Some(Hold::For(span)) => span > self.settings.hold_max,
            Some(Hold::Until(moment)) => moment.since(now) > self.settings.hold_max,
        };
        if is_held_too_long {
            let max = self.settings.hold_max.as_secs();
            return self.wrong(&format!("501 5.5.4 A message may be held for {max} seconds at most"), out);
        }
        let needs_smtputf8 = mail.reverse_path.0.as_ref().is_some_and(crate::mail::Address::needs_smtputf8);
        if needs_smtputf8 && mail.parameters.smtputf8 == Smtputf8::NotNeeded {
            return self.wrong("553 5.6.7 That address needs the parameter SMTPUTF8", out);
        }
        let reverse_path = mail.reverse_path.clone();
        self.asked = Some(Asked::Sender(Box::new(mail)));
        Step::CheckSender(reverse_path)
    }

    /// Answers [`Step::CheckSender`].
    pub fn sender_checked(&mut self, answer: Result<(), Reply>, out: &mut Vec<u8>) -> Step {
        let Some(Asked::Sender(mail)) = self.asked.take() else { return self.out_of_step(out) };
        if let Err(reply) = answer {
            return self.refuse(&reply, out);
        }
        let MailCommand { reverse_path, parameters, .. } = *mail;
        let envelope = Envelope { reverse_path, parameters, recipients: Vec::new() };
        self.transaction = Some(Box::new(Transaction { envelope, chunks: Chunks::None }));
        say(out, "250 2.1.0 Sender OK");
        Step::Next
    }

    fn rcpt(&mut self, path: ForwardPath, out: &mut Vec<u8>) -> Step {
        let recipients_max = self.settings.recipients_max;
        match &self.transaction {
            None => self.wrong("503 5.5.1 Send MAIL first", out),
            Some(transaction) if transaction.chunks == Chunks::Begun => {
                self.wrong("503 5.5.1 The message has begun", out)
            }
            Some(transaction) if transaction.envelope.recipients.len() >= recipients_max => {
                // RFC 5321 s4.5.3.1.10: not an error, the client sends the rest by itself.
                say(out, "452 4.5.3 Too many recipients; send the rest in another message");
                Step::Next
            }
            Some(transaction) => {
                let smtputf8 = transaction.envelope.parameters.smtputf8;
                if path.address.needs_smtputf8() && smtputf8 == Smtputf8::NotNeeded {
                    return self.wrong("553 5.6.7 That address needs the parameter SMTPUTF8 at MAIL", out);
                }
                self.asked = Some(Asked::Recipient(Box::new(path.clone())));
                Step::CheckRecipient(path)
            }
        }
    }

    /// Answers [`Step::CheckRecipient`]. An address given twice is kept once.
    pub fn recipient_checked(&mut self, answer: Result<(), Reply>, out: &mut Vec<u8>) -> Step {
        let Some(Asked::Recipient(path)) = self.asked.take() else { return self.out_of_step(out) };
        if let Err(reply) = answer {
            return self.refuse(&reply, out);
        }
        let Some(transaction) = &mut self.transaction else { return self.out_of_step(out) };
        let recipients = &mut transaction.envelope.recipients;
        if !recipients.iter().any(|known| known.address == path.address) {
            recipients.push(*path);
        }
        say(out, "250 2.1.5 Recipient OK");
        Step::Next
    }

    fn data(&mut self, out: &mut Vec<u8>) -> Step {
        match &self.transaction {
            None => self.wrong("503 5.5.1 Send MAIL and RCPT first", out),
            Some(transaction) if transaction.chunks == Chunks::Begun => {
                self.wrong("503 5.5.1 The message has begun with BDAT", out)
            }
            Some(transaction) if transaction.envelope.recipients.is_empty() => {
                self.wrong("554 5.5.1 No valid recipients", out)
            }
            Some(_) => {
                say(out, "354 Go ahead, end with a dot alone on a line");
                Step::ReadData
            }
        }
    }

    /// BDAT (RFC 3030 s3): whatever the answer is, the octets follow and must be read.
    fn bdat(&mut self, octets: u64, last: bool, out: &mut Vec<u8>) -> Step {
        let refusal = match &mut self.transaction {
            None => "503 5.5.1 Send MAIL and RCPT first",
            Some(transaction) if transaction.envelope.recipients.is_empty() => "554 5.5.1 No valid recipients",
            Some(transaction) => {
                transaction.chunks = Chunks::Begun;
                return Step::ReadChunk { octets, last };
            }
        };
        if self.is_behind(octets, last) {
            say(out, refusal);
            return Step::SkipChunk { octets };
        }
        self.behind = (!last).then(Behind::default);
        match self.wrong(refusal, out) {
            Step::Close => Step::Close,
            _ => Step::SkipChunk { octets },
        }
    }

    /// Whether this chunk belongs to a message of which one was refused; up to so many of them, and so many
    /// octets, as are read of a message that is refused in one piece.
    fn is_behind(&mut self, octets: u64, last: bool) -> bool {
        let Some(mut behind) = self.behind.take() else { return false };
        behind.chunks = behind.chunks.saturating_add(1);
        behind.octets = behind.octets.saturating_add(octets);
        let is_within = behind.chunks <= CHUNKS_BEHIND_MAX && behind.octets <= self.settings.drained_octets_max();
        if is_within && !last {
            self.behind = Some(behind);
        }
        is_within
    }

    /// Answers a [`Step::ReadChunk`] that was not the last.
    pub fn chunk_taken(&mut self, octets: u64, out: &mut Vec<u8>) -> Step {
        say(out, &format!("250 2.0.0 {octets} octets taken"));
        Step::Next
    }

    /// The message is read: its envelope. The transaction is over, whatever comes of it.
    pub fn take_envelope(&mut self) -> Option<Envelope> {
        self.transaction.take().map(|transaction| transaction.envelope)
    }

    /// What became of the message (RFC 5321 s4.1.1.4). Also before its end, when a chunk or the
    /// start of DATA is refused.
    pub fn message_answered(&mut self, reply: &Reply, out: &mut Vec<u8>) -> Step {
        let is_within_chunks = self.transaction.take().is_some_and(|transaction| transaction.chunks == Chunks::Begun);
        self.behind = is_within_chunks.then(Behind::default);
        match reply.code.0 {
            200..300 => {
                self.idle_commands = 0;
                write_reply(reply, out);
                Step::Next
            }
            _ => self.refuse(reply, out),
        }
    }

    fn idle(&mut self, text: &str, out: &mut Vec<u8>) -> Step {
        if self.is_worn_out() {
            return self.worn_out(out);
        }
        say(out, text);
        Step::Next
    }

    /// Counts a command without effect; whether that was one too many.
    fn is_worn_out(&mut self) -> bool {
        self.idle_commands = self.idle_commands.saturating_add(1);
        self.idle_commands > self.settings.idle_commands_max
    }

    fn worn_out(&self, out: &mut Vec<u8>) -> Step {
        self.close_with("4.7.0 Too many commands without effect", out);
        Step::Close
    }

    fn wrong(&mut self, text: &str, out: &mut Vec<u8>) -> Step {
        say(out, text);
        self.count_error(out)
    }

    fn refuse(&mut self, reply: &Reply, out: &mut Vec<u8>) -> Step {
        write_reply(reply, out);
        self.count_error(out)
    }

    fn count_error(&mut self, out: &mut Vec<u8>) -> Step {
        self.errors = self.errors.saturating_add(1);
        if self.errors < self.settings.errors_max {
            return Step::Next;
        }
        self.close_with("4.7.0 Too many errors", out);
        Step::Close
    }

    /// The driver answered what it was not asked: our own fault, told to nobody else.
    fn out_of_step(&mut self, out: &mut Vec<u8>) -> Step {
        self.transaction = None;
        self.close_with("4.3.0 Something went wrong here; try again later", out);
        Step::Close
    }
}

/// Writes one line; `text` is ours and short.
fn say(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
