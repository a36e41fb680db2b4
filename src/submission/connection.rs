//! Drives one [`Session`] over one connection: reads lines, answers the questions its steps ask,
//! sends the replies of pipelined commands in one write.
//!
//! Easy to get wrong: octets read before STARTTLS are dropped with the input buffer, and every
//! wait ends at a deadline, at the peer's end or at the stop of the daemon.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, info, warn};

use crate::accounts::{Login, LoginAttempt, Sender};
use crate::ext::Timestamp;
use crate::gate::{Shortage, Work};
use crate::mail::{ForwardPath, Refusal, Reply, ReversePath, SmtpAccountId, printable};
use crate::metrics::LOGINS;
use crate::smtp::{Credentials, LoginAnswer, Security, Session, Step, write_reply};
use crate::trace::{Direction, Facts, Side, Tap};
use crate::vips::Vip;

use super::counts::Place;
use super::line::{Front, LineReader};
use super::listener::{Door, PortMode};
use super::message::Incoming;
use super::wire::Wire;
use super::{Duty, Submitting, authorize};

/// Room in the input buffer while commands are read.
const COMMAND_READ_OCTETS: usize = 4096;
/// Replies held back while more commands are at hand (RFC 2920 s3.2), at most.
const REPLIES_OCTETS_MAX: usize = 4096;

/// How long, and for how many octets, a peer is listened to after our last word.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_OCTETS_MAX: usize = 1024 * 1024;

/// One connection and everything known about it.
pub(super) struct Connection {
    pub(super) door: Arc<Door>,
    pub(super) wire: Wire,
    pub(super) session: Session,
    pub(super) input: BytesMut,
    pub(super) out: Vec<u8>,
    lines: LineReader,
    pub(super) tap: Tap,
    pub(super) peer: SocketAddr,
    pub(super) vip: Arc<Vip>,
    pub(super) sender: Option<Box<LoggedIn>>,
    /// The message whose chunks are coming.
    pub(super) incoming: Option<Box<Incoming>>,
    begun: Instant,
    /// When the last command was taken, or the greeting was said.
    asked: Instant,
}

/// A login that was accepted, and its place among those of its account.
pub(super) struct LoggedIn {
    pub(super) sender: Sender,
    _place: Place<SmtpAccountId>,
}

/// Why a session ends before its peer says QUIT.
#[derive(Debug)]
pub(super) enum End {
    /// The session said its last word, or the peer is gone.
    Quiet,
    /// The peer is told why, as `421` with this text.
    Told(&'static str),
    /// The peer is refused with this reply, and does not stop by itself.
    Refused(Box<Reply>),
    /// The connection failed.
    Failed(io::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

pub(super) const STOPPING: End = End::Told("4.3.2 Stopping; come back later");
pub(super) const TOO_SLOW: End = End::Told("4.4.2 Too slow");

impl Connection {
    pub(super) fn new(door: Arc<Door>, wire: Wire, peer: SocketAddr, vip: Arc<Vip>, mode: PortMode) -> Self {
        let security = match mode {
            PortMode::TlsFirst => Security::Tls,
            PortMode::Starttls => Security::Plain,
        };
        let facts = Facts { direction: Direction::In, tenant: None, vip: vip.id, peer, towards: None };
        let tap = door.tracer.tap(facts);
        let session = match &door.duty {
            Duty::Submission(_) => Session::new(Arc::clone(&door.session), vip.ehlo.clone(), security),
            Duty::Reception(_) => Session::receiving(Arc::clone(&door.session), vip.ehlo.clone()),
        };
        Self {
            door,
            wire,
            session,
            input: BytesMut::new(),
            out: Vec::new(),
            lines: LineReader::default(),
            tap,
            peer,
            vip,
            sender: None,
            incoming: None,
            begun: Instant::now(),
            asked: Instant::now(),
        }
    }

    /// Serves to the end.
    pub(super) async fn serve(mut self, mode: PortMode) {
        let end = match mode {
            PortMode::TlsFirst => Box::pin(self.secure()).await,
            PortMode::Starttls => Ok(()),
        };
        let end = match end {
            Ok(()) => self.converse().await,
            Err(end) => end,
        };
        match end {
            End::Quiet => {}
            End::Told(why) => {
                debug!(peer = %self.peer, why, "session ended by us");
                self.session.close_with(why, &mut self.out);
            }
            End::Refused(reply) => write_reply(&reply, &mut self.out),
            End::Failed(error) => {
                debug!(peer = %self.peer, %error, "session failed");
                return;
            }
        }
        self.tap.replies(Side::Ours, &self.out);
        let patience = self.door.settings.write_timeout;
        // A peer that does not wait for our last words has a right to that.
        let _ = timeout(patience, async {
            self.wire.write(&self.out).await?;
            self.wire.end().await
        })
        .await;
        let _ = timeout(LINGER, self.drain()).await;
    }

    /// Reads what the peer still sends: closing on unread octets would reset the connection, and
    /// the peer would lose our last reply.
    async fn drain(&mut self) -> io::Result<()> {
        let mut octets = 0;
        while octets < LINGER_OCTETS_MAX {
            self.input.clear();
            match self.wire.read(&mut self.input, COMMAND_READ_OCTETS).await? {
                0 => return Ok(()),
                count => octets += count,
            }
        }
        Ok(())
    }

    async fn converse(&mut self) -> End {
        self.session.greet(&mut self.out);
        loop {
            if let Err(end) = self.take_lines().await {
                return end;
            }
            if !self.out.is_empty() {
                self.asked = Instant::now();
            }
            if let Err(end) = self.flush().await {
                return end;
            }
            if let Err(end) = self.read_command().await {
                return end;
            }
        }
    }

    /// Takes every whole line at hand.
    async fn take_lines(&mut self) -> Result<(), End> {
        loop {
            let step = match self.lines.front(&mut self.input) {
                Front::Partial => return Ok(()),
                Front::Endless => return Err(End::Told("4.7.0 The line does not end")),
                Front::TooLong => self.session.line_too_long(&mut self.out),
                Front::BareLf => self.session.bare_line_end(&mut self.out),
                Front::Line(length) => {
                    let line = self.input.get(..length).unwrap_or_default();
                    match self.session.awaits_secret() {
                        true => self.tap.secret(Side::Theirs),
                        false => self.tap.commands(Side::Theirs, line),
                    }
                    let step = self.session.line(line, Timestamp::now(), &mut self.out);
                    self.lines.consume(&mut self.input, length);
                    step
                }
            };
            // RSET and EHLO give the message up; NOOP between two chunks does not.
            if !self.session.is_in_transaction() {
                self.incoming = None;
            }
            if self.act(step).await? == Step::Close {
                return Err(End::Quiet);
            }
            if self.out.len() > REPLIES_OCTETS_MAX {
                self.flush().await?;
            }
        }
    }

    /// Does what the session asks for; the step that its answer led to, `Next` or `Close`.
    async fn act(&mut self, step: Step) -> Result<Step, End> {
        match step {
            Step::Next | Step::Close => Ok(step),
            Step::CheckSender(path) => {
                let answer = self.check_sender(&path).map_err(|refusal| self.told(&refusal));
                Ok(self.session.sender_checked(answer, &mut self.out))
            }
            Step::CheckRecipient(path) => {
                let answer = self.check_recipient(&path).map_err(|refusal| self.told(&refusal));
                Ok(self.session.recipient_checked(answer, &mut self.out))
            }
            Step::ReadData => Box::pin(self.read_data()).await,
            Step::ReadChunk { octets, last } => Box::pin(self.read_chunk(octets, last)).await,
            Step::SkipChunk { octets } => Box::pin(self.skip_chunk(octets)).await.map(|()| Step::Next),
            Step::CheckLogin(credentials) => Box::pin(self.check_login(credentials)).await,
            Step::UpgradeTls => {
                self.flush().await?;
                Box::pin(self.secure()).await?;
                self.session.secured();
                Ok(Step::Next)
            }
        }
    }

    /// Shakes hands. Whatever the peer typed before is dropped (RFC 3207 s4.2).
    async fn secure(&mut self) -> Result<(), End> {
        self.input = BytesMut::new();
        self.lines.restart();
        let config = self.door.certificates.server_config(&self.vip.ehlo);
        let patience = self.patient_with(self.door.settings.handshake_timeout);
        match timeout(patience, self.wire.secure(config)).await {
            Ok(done) => {
                done?;
                self.tap.note(|| format!("(TLS: {})", self.wire.tls()));
                Ok(())
            }
            Err(_) => Err(End::Quiet),
        }
    }

    fn check_recipient(&self, path: &ForwardPath) -> Result<(), Refusal> {
        match &self.door.duty {
            Duty::Submission(submitting) => {
                let login = self.sender.as_ref().ok_or_else(not_logged_in)?;
                authorize::forward_path(submitting, &login.sender, &self.vip, path)
            }
            Duty::Reception(reception) => (reception.recipient)(self.peer.ip().to_canonical(), path, Timestamp::now()),
        }
    }

    fn check_sender(&self, path: &ReversePath) -> Result<(), Refusal> {
        let tenant = self.tenant();
        if let Err(shortage) = self.door.gate.admit(Work::Message) {
            let (code, what) = match shortage {
                Shortage::Memory => (1, "Too busy for more mail; try again in a minute"),
                Shortage::Descriptors => (2, "Too many connections are open for more mail; try again in a minute"),
            };
            return Err(Refusal::with_cause(Reply::enhanced(452, 3, code, what), shortage.words()));
        }
        if !self.door.drafts.has_room(tenant, 1) {
            let reply = Reply::enhanced(452, 3, 1, "Too much mail is being handed in; try again in a minute");
            return Err(Refusal::with_cause(reply, "drafts_bytes_max or drafts_bytes_per_tenant_max reached"));
        }
        match &self.door.duty {
            Duty::Submission(submitting) => {
                let login = self.sender.as_ref().ok_or_else(not_logged_in)?;
                authorize::reverse_path((submitting, &self.door.vips), &login.sender, &self.vip, path)
            }
            Duty::Reception(reception) => (reception.sender)(path),
        }
    }

    /// Logs a refusal's cause; gives the reply, which is all that the peer sees.
    pub(super) fn told(&self, refusal: &Refusal) -> Reply {
        let login = self.sender.as_ref().map_or("", |login| login.sender.login.as_str());
        // A plain refusal's cause is its reply; one is enough.
        let reply = refusal.reply.one_line();
        let cause = Some(refusal.cause.as_str()).filter(|cause| !cause.ends_with(&reply));
        info!(peer = %self.peer, login = printable(login), reply, cause, "refused");
        refusal.reply.clone()
    }

    async fn check_login(&mut self, credentials: Credentials) -> Result<Step, End> {
        let door = Arc::clone(&self.door);
        let vip = Arc::clone(&self.vip);
        let tls = self.wire.tls();
        let attempt = LoginAttempt {
            login: &credentials.login,
            password: &credentials.password,
            peer: self.peer.ip().to_canonical(),
            vip: &vip,
            tls: &tls,
        };
        let Duty::Submission(Submitting { accounts, .. }) = &door.duty else {
            // The session asks for no login then.
            return Ok(self.session.login_checked(LoginAnswer::Unavailable, &mut self.out));
        };
        let answer = match accounts.authenticate(&attempt, Timestamp::now()).await {
            Login::Accepted(sender) => {
                let Some(place) = door.by_account.take(sender.account) else {
                    info!(login = printable(&sender.login), "sessions_per_account_max reached");
                    return Err(End::Told("4.7.0 Too many sessions of this login"));
                };
                self.tap.belongs_to(sender.tenant);
                self.sender = Some(Box::new(LoggedIn { sender, _place: place }));
                LoginAnswer::Accepted
            }
            Login::Refused { delay } => {
                self.sleep(delay).await?;
                LoginAnswer::Refused
            }
            Login::Slowed { delay } => {
                self.sleep(delay).await?;
                LoginAnswer::Unavailable
            }
            Login::Unavailable(cause) => {
                warn!(cause, "logins cannot be checked");
                LoginAnswer::Unavailable
            }
        };
        let result = match answer {
            LoginAnswer::Accepted => "accepted",
            LoginAnswer::Refused => "refused",
            LoginAnswer::Unavailable => "unavailable",
        };
        metrics::counter!(LOGINS, "result" => result).increment(1);
        Ok(self.session.login_checked(answer, &mut self.out))
    }

    async fn sleep(&self, delay: Duration) -> Result<(), End> {
        tokio::select! {
            () = tokio::time::sleep(delay) => Ok(()),
            () = self.door.stop.cancelled() => Err(STOPPING),
        }
    }

    /// Sends the replies held back.
    pub(super) async fn flush(&mut self) -> Result<(), End> {
        if self.out.is_empty() {
            return Ok(());
        }
        self.tap.replies(Side::Ours, &self.out);
        match timeout(self.door.settings.write_timeout, self.wire.write(&self.out)).await {
            Ok(written) => written?,
            Err(_) => return Err(End::Failed(io::ErrorKind::TimedOut.into())),
        }
        if self.out.capacity() > 2 * REPLIES_OCTETS_MAX {
            self.out = Vec::new();
        }
        self.out.clear();
        Ok(())
    }

    /// When even a message in progress is given up.
    pub(super) fn last_moment(&self) -> Instant {
        self.begun + self.door.settings.session_time_max.saturating_mul(2)
    }

    /// How long a peer that has not logged in may take: less while new sessions are refused.
    fn patient_with(&self, patience: Duration) -> Duration {
        match self.door.gate.is_open_to(Work::Session) {
            true => patience,
            false => patience.min(self.door.settings.login_timeout_short),
        }
    }

    /// Waits for more of a command.
    async fn read_command(&mut self) -> Result<(), End> {
        loop {
            let deadline = self.command_deadline();
            // A stranger is looked at again now and then: room may have run short meanwhile.
            let is_stranger = self.is_stranger();
            let pause = if is_stranger { self.door.settings.login_timeout_short / 2 } else { Duration::MAX };
            let look = Instant::now().checked_add(pause).unwrap_or(deadline);
            match self.read_until_moment(deadline.min(look)).await {
                Some(read) => return read,
                None if Instant::now() >= deadline => return Err(TOO_SLOW),
                None => {}
            }
        }
    }

    /// Whether it should have logged in by and by.
    fn is_stranger(&self) -> bool {
        matches!(self.door.duty, Duty::Submission(_)) && !self.session.is_logged_in()
    }

    /// When the peer has been silent for too long.
    fn command_deadline(&self) -> Instant {
        let settings = &self.door.settings;
        // One command has one deadline, however slowly its octets drip.
        let mut deadline = self.asked + settings.command_timeout;
        if self.is_stranger() {
            deadline = deadline.min(self.begun + self.patient_with(settings.login_timeout));
        }
        deadline.min(match self.session.is_in_transaction() {
            true => self.last_moment(),
            false => self.begun + settings.session_time_max,
        })
    }

    /// Reads once; `None` if nothing came until `moment`.
    async fn read_until_moment(&mut self, moment: Instant) -> Option<Result<(), End>> {
        if self.input.is_empty() {
            // Nothing is kept for a peer that may be silent for long.
            self.input = BytesMut::new();
        }
        let is_idle = !self.session.is_in_transaction();
        let read = tokio::select! {
            biased;
            () = self.door.stop.cancelled(), if is_idle => return Some(Err(STOPPING)),
            read = timeout_at(moment, self.wire.read(&mut self.input, COMMAND_READ_OCTETS)) => read,
        };
        Some(match read.ok()? {
            Ok(0) => Err(End::Quiet),
            Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        })
    }
}

fn not_logged_in() -> Refusal {
    Refusal::plain(Reply::enhanced(530, 7, 0, "Log in first"))
}
