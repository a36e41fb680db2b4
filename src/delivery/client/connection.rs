//! One SMTP conversation up to the point where mail can be sent: greeting, EHLO, STARTTLS, AUTH.
//!
//! It refuses to know messages and queues. Easy to get wrong: each reply has one deadline as a
//! whole, so that a peer that drips bytes gains nothing; and whatever was received before the TLS
//! handshake must not survive it (RFC 3207 s4.2).

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use zeroize::{Zeroize as _, Zeroizing};

use super::Need;
use super::opening::{TlsSaid, dial, lack_of};
use super::stream::Stream;
use crate::delivery::Settings;
use crate::delivery::mx::TlsMemory;
use crate::delivery::outcome::{Failure, Phase, Trouble, of_verdict, passed_on};
use crate::delivery::replies::Rules;
use crate::delivery::shaping::Signal;
use crate::delivery::transport::{Login, Progress, Standing, TlsUse};
use crate::events::Peer;
use crate::mail::{Address, Domain, QueueId, Reply, Sent, Severity, VipId, printable};
use crate::net::{ClientTls, Dialer, HandshakeError, HandshakeFault, Proof, Verify, is_tls_fault};
use crate::queue::Outcome;
use crate::routing::Lane;
use crate::smtp::{Extensions, ReplyParser};
use crate::tlsrpt::{Applied, Lack, LackKind, TlsReports};
use crate::trace::{Direction, Facts, Script, Side, Tap, Tracer};

/// Octets kept of a reply's text, as people read it: more than any honest peer says.
const REPLY_KEPT_OCTETS: usize = 2048;
/// Octets that code, status and line end add to each line.
const REPLY_LINE_EXTRA_OCTETS: usize = 12;
/// What stands where the rest of a reply was cut off.
const CUT: &str = " [...]";
/// Words about our pace kept of one message, at most.
const HEARD_MAX: usize = 16;
/// Octets read at a time.
const READ_BYTES: usize = 4 * 1024;

/// Which connections may stand in for each other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// The peer.
    pub address: SocketAddr,
    /// Our side.
    pub vip: VipId,
    /// What TLS meant when it was opened: mail that demands more never gets this connection.
    pub tls: TlsUse,
    /// Whether the host was proved to be its domain's: what one domain proved, another did not.
    pub standing: Standing,
    /// The name that was proved, if one was: one address may have many names.
    pub named: Option<Arc<str>>,
    /// Whose login, 0 for none.
    pub realm: u64,
}

/// Where and how to connect.
pub(super) struct Call<'a> {
    pub(super) host: &'a str,
    /// Whose mail, and for which domain.
    pub(super) lane: &'a Lane,
    /// Who demands TLS, if a policy does.
    pub(super) policy: Option<&'a Arc<str>>,
    pub(super) source: IpAddr,
    pub(super) key: PoolKey,
    pub(super) ehlo: &'a Domain,
    pub(super) login: Option<&'a Arc<Login>>,
    /// What the message demands.
    pub(super) need: Need,
    /// Whose rules for replies hold.
    pub(super) provider: Option<&'a Arc<str>>,
    /// Messages it may carry.
    pub(super) messages_max: usize,
    /// Under which policies the session is reported.
    pub(super) reported: &'a [Applied],
    /// Why there is no TLS, once that shows.
    pub(super) lack: Mutex<Option<Lack>>,
}

/// The return-path of ours for a recipient of a message, at a name.
pub type ReturnAddress = Arc<dyn Fn(QueueId, u16, &Domain) -> Address + Send + Sync>;

/// What connecting needs.
pub(super) struct Tools<'a> {
    pub(super) return_path: &'a ReturnAddress,
    pub(super) dialer: &'a dyn Dialer,
    pub(super) tls: &'a ClientTls,
    pub(super) settings: &'a Settings,
    pub(super) progress: &'a Progress,
    pub(super) tracer: &'a Arc<Tracer>,
    /// Where what is said is kept for the record.
    pub(super) script: &'a Script,
    pub(super) tls_memory: Option<&'a TlsMemory>,
    pub(super) reports: Option<&'a TlsReports>,
}

/// An open conversation, ready for MAIL.
pub struct Connection {
    pub(super) stream: Stream,
    pub(super) parser: ReplyParser,
    pub(super) inbox: BytesMut,
    pub(super) out: Vec<u8>,
    /// What the peer offers, as of the last EHLO.
    pub(super) extensions: Extensions,
    /// For the trail, as it concerns the domain that is served now.
    pub(super) peer: Peer,
    /// What TLS came to, whatever policy it is held against; `None` if it was never meant to be.
    pub(super) tls: Option<String>,
    pub(super) key: PoolKey,
    pub(super) opened: Instant,
    /// Transactions begun.
    pub(super) uses: usize,
    /// Recipient domains offered so far; kept only for a peer that limits them.
    domains: Vec<Domain>,
    /// The last transaction was not ended by a final dot: RSET goes before the next MAIL.
    pub(super) needs_reset: bool,
    /// What vouched for the peer's certificate.
    pub(super) proof: Option<Proof>,
    /// It broke by what the peer's TLS said or did.
    tls_faulted: bool,
    /// What it lacks of verified TLS.
    pub(super) lack: Option<Lack>,
    /// The domains it was counted for in reports.
    pub(super) counted_for: Vec<Domain>,
    /// Messages it may carry.
    messages_max: usize,
    pub(super) rules: Arc<Rules>,
    pub(super) provider: Option<Arc<str>>,
    /// Makes return-paths.
    pub(super) return_path: ReturnAddress,
    pub(super) tap: Tap,
    /// What the peer said about our pace or address since it was last taken.
    pub(super) signals: Vec<Signal>,
    /// What was sent to log in, in every form, until the peer has replied to what came next: some quote it.
    secrets: Vec<Zeroizing<String>>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Connection({} from {})", self.key.address, self.peer.source)
    }
}

/// Where a session goes, for those who follow it.
pub(super) fn towards(host: &str, lane: &Lane) -> String {
    format!("{host} for {}", lane.next_hop)
}

impl Call<'_> {
    /// There is no TLS in this session, for this reason.
    pub(super) fn lacks(&self, kind: LackKind, reason: impl Into<String>) {
        *self.lack.lock().unwrap_or_else(PoisonError::into_inner) = Some(Lack { kind, reason: reason.into() });
    }

    /// TLS is required and not there. With a policy that is said in its name and with its status
    /// (RFC 3463 s3.8: 7.4 for a missing feature, 7.5 for a certificate); else it is a fault like others.
    pub(super) fn lacking(&self, status: &str, reason: String) -> Trouble {
        match self.policy {
            Some(policy) => Trouble::Policy(format!("451 {status} {}: {reason}; demanded by {policy}", self.host)),
            None => Trouble::Tls(reason),
        }
    }
}

pub(super) async fn open_once(call: &Call<'_>, tools: &Tools<'_>, tls: &TlsUse) -> Result<Connection, Failure> {
    let timeouts = &tools.settings.timeouts;
    let peer = Peer {
        host: call.host.to_owned(),
        address: call.key.address.to_string(),
        source: call.source.to_string(),
        tls: "none".to_owned(),
    };
    let stream = dial(call, tools, &peer).await?;
    let towards = towards(call.host, call.lane);
    let facts = Facts {
        direction: Direction::Out,
        tenant: Some(call.lane.tenant),
        vip: call.key.vip,
        peer: call.key.address,
        towards: Some(towards),
    };
    let mut tap = tools.tracer.tap(facts);
    tap.keep(Some(tools.script));
    tap.note(|| format!("(connected from {})", call.source));
    let mut connection = Connection {
        tap,
        stream: Stream::Plain(stream),
        parser: ReplyParser::new(),
        inbox: BytesMut::new(),
        out: Vec::new(),
        extensions: Extensions::default(),
        peer,
        tls: None,
        key: call.key.clone(),
        opened: Instant::now(),
        uses: 0,
        domains: Vec::new(),
        needs_reset: false,
        proof: None,
        tls_faulted: false,
        lack: None,
        counted_for: Vec::new(),
        messages_max: call.messages_max,
        rules: Arc::clone(&tools.settings.replies),
        provider: call.provider.cloned(),
        return_path: Arc::clone(tools.return_path),
        signals: Vec::new(),
        secrets: Vec::new(),
    };
    if *tls == TlsUse::Implicit {
        connection = connection.secure(call, tools, &Verify::Required).await?;
    }
    connection.tap.sent(Sent::Greeting);
    let greeting = connection.reply(Phase::Greeting, timeouts.greeting, tools.progress).await?;
    if !greeting.is_completion() {
        return Err(connection.failure(Phase::Greeting, Trouble::Refused(greeting)));
    }
    connection.greet(call.ehlo, tools).await?;
    connection = connection.starttls(call, tools, tls).await?;
    if let Some(login) = call.login {
        connection.login(login, tools).await?;
    }
    Ok(connection)
}

impl Connection {
    /// A failure of this conversation.
    pub(super) fn failure(&self, phase: Phase, trouble: Trouble) -> Failure {
        let failure = Failure { phase, trouble, peer: Some(Box::new(self.peer.clone())) };
        self.tap.note(|| format!("(over: {})", printable(&failure.describe())));
        // What the peer said is there already; what else was asked had no answer.
        if !matches!(failure.trouble, Trouble::Refused(_)) {
            self.tap.failed(&failure.describe());
        }
        failure
    }

    /// The outcome for recipients whom `reply` concerns, by the rules for this peer.
    pub(super) fn outcome(&mut self, reply: &Reply, phase: Phase) -> Outcome {
        let judged = self.rules.judge(reply, phase, self.provider.as_deref());
        if self.signals.len() < HEARD_MAX {
            self.signals.extend(judged.signal(reply));
        }
        passed_on(of_verdict(judged.verdict, reply, phase, &self.peer), &self.extensions)
    }

    /// The key under which it may be kept.
    pub fn key(&self) -> &PoolKey {
        &self.key
    }

    /// Whether the peer is one of the domain's, beyond doubt, and nobody else reads along
    /// (RFC 8689 s4.2.1, steps 2 to 4).
    pub(super) fn is_proven(&self) -> bool {
        self.proof.is_some() && self.key.standing == Standing::Proven
    }

    /// Whether mail that asks for TLS all the way may go this way.
    pub(super) fn keeps_tls(&self) -> bool {
        self.is_proven() && self.extensions.requiretls
    }

    /// Whether it is worth another message.
    pub fn is_fresh(&self, settings: &Settings, now: Instant) -> bool {
        let mails_max = self.extensions.limits.mail_max.and_then(|most| usize::try_from(most).ok());
        self.uses < self.messages_max
            && mails_max.is_none_or(|most| self.uses < most)
            && now.duration_since(self.opened) < settings.connection_age_max
    }

    /// Whether recipients in `domain` may be offered too (`LIMITS RCPTDOMAINMAX`, RFC 9422 s4.3: so many
    /// domains in one session).
    pub fn takes_domain(&self, domain: &Domain) -> bool {
        let most = self.extensions.limits.rcpt_domain_max.and_then(|most| usize::try_from(most).ok());
        most.is_none_or(|most| self.domains.len() < most || self.domains.contains(domain))
    }

    /// Recipients in `domain` are offered from now on.
    pub(super) fn note_domain(&mut self, domain: &Domain) {
        let is_limited = self.extensions.limits.rcpt_domain_max.is_some();
        if is_limited && !self.domains.contains(domain) {
            self.domains.push(domain.clone());
        }
    }

    /// Whether the peer has neither spoken nor hung up since it was last used.
    pub fn is_quiet(&mut self) -> bool {
        self.inbox.is_empty() && !self.parser.is_midway() && self.stream.is_quiet()
    }

    /// Sends what is in `out` in one write.
    pub(super) async fn flush(&mut self, phase: Phase, patience: Duration) -> Result<(), Failure> {
        // Between AUTH and its end every line is part of the login.
        match phase == Phase::Login && !self.out.starts_with(b"AUTH") {
            true => self.tap.secret(Side::Ours),
            false => self.tap.commands(Side::Ours, &self.out),
        }
        let written = tokio::time::timeout(patience, async {
            self.stream.write_all(&self.out).await?;
            self.stream.flush().await
        });
        let result = match written.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.lost(&error)),
            Err(_) => Err(Trouble::TimedOut),
        };
        self.out.clear();
        result.map_err(|trouble| self.failure(phase, trouble))
    }

    /// The next reply, whole, within `patience` as a whole.
    pub(super) async fn reply(
        &mut self,
        phase: Phase,
        patience: Duration,
        progress: &Progress,
    ) -> Result<Reply, Failure> {
        // The usual case first: it came with what was read before; no timer is needed.
        let parsed = self.parse();
        let result = match parsed {
            Ok(None) => match tokio::time::timeout(patience, self.read_reply()).await {
                Ok(result) => result,
                Err(_) => Err(Trouble::TimedOut),
            },
            Ok(Some(reply)) => Ok(reply),
            Err(trouble) => Err(trouble),
        };
        progress.step(phase);
        if let Ok(reply) = &result {
            self.tap.reply(reply);
        }
        if phase != Phase::Login {
            self.secrets.clear();
        }
        let is_list = |reply: &Reply| phase == Phase::Hello && reply.is_completion();
        let result = result.map(|reply| if is_list(&reply) { reply } else { shortened(reply) });
        result.map_err(|trouble| self.failure(phase, trouble))
    }

    fn parse(&mut self) -> Result<Option<Reply>, Trouble> {
        let mut unread: &[u8] = &self.inbox;
        let before = unread.len();
        let parsed = self.parser.parse(&mut unread);
        let taken = before.saturating_sub(unread.len());
        self.inbox.advance(taken);
        match parsed {
            Ok(Some(reply)) => {
                let secrets: Vec<&str> = self.secrets.iter().map(|secret| secret.as_str()).collect();
                Ok(Some(reply.hiding(&secrets)))
            }
            Ok(None) => Ok(None),
            Err(error) if self.secrets.is_empty() => Err(Trouble::Malformed(error.to_string())),
            Err(_) => Err(Trouble::Malformed("what the peer said to the login is not SMTP".to_owned())),
        }
    }

    async fn read_reply(&mut self) -> Result<Reply, Trouble> {
        loop {
            self.inbox.reserve(READ_BYTES);
            match self.stream.read_buf(&mut self.inbox).await {
                Ok(0) => return Err(Trouble::Lost("closed by the peer".to_owned())),
                Ok(_) => {}
                Err(error) => return Err(self.lost(&error)),
            }
            if let Some(reply) = self.parse()? {
                return Ok(reply);
            }
        }
    }

    fn lost(&mut self, error: &std::io::Error) -> Trouble {
        self.tls_faulted = is_tls_fault(error);
        Trouble::Lost(printable(&error.to_string()))
    }

    /// Nothing may be waiting when we are about to speak: a reply before its command is either a
    /// goodbye or an attempt to make us take one reply for another.
    pub(super) fn expect_silence(&mut self, phase: Phase) -> Result<(), Failure> {
        match self.parse() {
            Ok(None) if self.inbox.is_empty() && !self.parser.is_midway() => Ok(()),
            Ok(Some(reply)) if reply.code.0 == 421 => {
                self.tap.reply(&reply);
                Err(self.failure(phase, Trouble::Refused(shortened(reply))))
            }
            Err(trouble) => Err(self.failure(phase, trouble)),
            Ok(_) => {
                let trouble = Trouble::Malformed("the peer replied before it was asked".to_owned());
                Err(self.failure(phase, trouble))
            }
        }
    }

    /// One command, one reply.
    async fn ask(
        &mut self,
        line: &[u8],
        phase: Phase,
        patience: Duration,
        progress: &Progress,
    ) -> Result<Reply, Failure> {
        self.expect_silence(phase)?;
        self.out.extend_from_slice(line);
        self.out.extend_from_slice(b"\r\n");
        self.flush(phase, patience).await?;
        self.reply(phase, patience, progress).await
    }

    /// EHLO, and HELO where EHLO is not known (RFC 5321 s3.2).
    async fn greet(&mut self, name: &Domain, tools: &Tools<'_>) -> Result<(), Failure> {
        let reply = self.hello("EHLO", name, tools).await?;
        self.greeted(reply, name, tools).await
    }

    async fn hello(&mut self, verb: &str, name: &Domain, tools: &Tools<'_>) -> Result<Reply, Failure> {
        let patience = tools.settings.timeouts.hello;
        self.ask(format!("{verb} {name}").as_bytes(), Phase::Hello, patience, tools.progress).await
    }

    /// `reply` came to EHLO.
    async fn greeted(&mut self, reply: Reply, name: &Domain, tools: &Tools<'_>) -> Result<(), Failure> {
        if reply.is_completion() {
            self.extensions = Extensions::from_reply(&reply);
            return Ok(());
        }
        if reply.severity() != Severity::Permanent {
            return Err(self.failure(Phase::Hello, Trouble::Refused(reply)));
        }
        let reply = self.hello("HELO", name, tools).await?;
        if !reply.is_completion() {
            return Err(self.failure(Phase::Hello, Trouble::Refused(reply)));
        }
        self.extensions = Extensions::default();
        Ok(())
    }

    async fn starttls(mut self, call: &Call<'_>, tools: &Tools<'_>, tls: &TlsUse) -> Result<Self, Failure> {
        let (verify, is_required) = match tls {
            TlsUse::Never | TlsUse::Implicit => return Ok(self),
            TlsUse::Opportunistic => (&Verify::Opportunistic, false),
            TlsUse::Required(verify) => (verify, true),
        };
        if !self.extensions.starttls {
            call.lacks(LackKind::NotOffered, "STARTTLS is not offered");
            if is_required {
                let trouble = call.lacking("4.7.4", "required, and the peer does not offer STARTTLS".to_owned());
                return Err(self.failure(Phase::StartTls, trouble));
            }
            self.note_tls("none (not offered)".to_owned(), call.policy);
            return Ok(self);
        }
        let patience = tools.settings.timeouts.starttls;
        let asked = self.ask(b"STARTTLS", Phase::StartTls, patience, tools.progress).await;
        // Something on the way that lets nobody encrypt swallows the command or cuts the connection.
        let reply = asked.map_err(|failure| call.without_tls(failure, TlsSaid::Nothing))?;
        if reply.code.0 != 220 {
            if reply.code.0 == 421 {
                return Err(self.failure(Phase::StartTls, Trouble::Refused(reply)));
            }
            call.lacks(LackKind::NotOffered, format!("STARTTLS was refused: {reply}"));
            if is_required {
                let trouble = call.lacking("4.7.4", format!("required, and the peer said {reply}"));
                return Err(self.failure(Phase::StartTls, trouble));
            }
            // RFC 3207 s4: after a refusal the conversation may go on in plain text.
            self.note_tls(format!("none (refused: {reply})"), call.policy);
            return Ok(self);
        }
        // RFC 3207 s6 and CVE-2011-0411: what came before the handshake is not the peer's word.
        if !self.inbox.is_empty() || self.parser.is_midway() {
            return Err(self.failure(Phase::StartTls, Trouble::Injected));
        }
        let mut secured = self.secure(call, tools, verify).await?;
        secured.extensions = Extensions::default();
        // Under TLS 1.3 our side is done before the peer has judged it: a certificate of ours that it demands is
        // missed only now (RFC 8446 s4.4.2.4).
        let reply = match secured.hello("EHLO", call.ehlo, tools).await {
            Ok(reply) => reply,
            Err(failure) if failure.trouble == Trouble::TimedOut => return Err(failure),
            Err(failure) => {
                let said = if secured.tls_faulted { TlsSaid::Refusal } else { TlsSaid::Nothing };
                return Err(call.without_tls(failure, said));
            }
        };
        secured.greeted(reply, call.ehlo, tools).await?;
        Ok(secured)
    }

    async fn secure(mut self, call: &Call<'_>, tools: &Tools<'_>, verify: &Verify) -> Result<Self, Failure> {
        let patience = tools.settings.timeouts.starttls;
        tools.progress.step(Phase::StartTls);
        let Stream::Plain(plain) = self.stream else { return Ok(self) };
        let failure = |reason, is_lost| Failure {
            phase: Phase::StartTls,
            // Without encryption no policy is met; with it, those that may say so are the demanding ones.
            trouble: match (&call.key.tls, is_lost) {
                (TlsUse::Opportunistic, true) => Trouble::TlsLost(reason),
                (TlsUse::Opportunistic, false) => Trouble::Tls(reason),
                _ => call.lacking("4.7.5", reason),
            },
            peer: Some(Box::new(self.peer.clone())),
        };
        self.tap.sent(Sent::Handshake);
        let shaken = tokio::time::timeout(patience, tools.tls.connect(verify, call.host, plain)).await;
        let (stream, secured) = match shaken {
            Ok(Ok(done)) => done,
            Ok(Err(error)) => {
                self.tap.failed(&printable(&error.reason));
                call.lacks(lack_of(&error), error.reason.clone());
                return Err(failure(error.reason, error.kind == HandshakeFault::Lost));
            }
            Err(_) => {
                let reason = format!("no handshake within {} s", patience.as_secs());
                self.tap.failed(&reason);
                call.lacks(LackKind::Other, reason.clone());
                return Err(failure(reason, true));
            }
        };
        self.tap.done();
        self.stream = Stream::Tls(Box::new(stream));
        self.note_tls(secured.describe(), call.policy);
        self.tap.note(|| format!("(TLS: {})", self.peer.tls));
        let lack = |error: &HandshakeError| Lack { kind: lack_of(error), reason: error.reason.clone() };
        self.lack = secured.verified.as_ref().err().map(lack);
        self.proof = secured.verified.ok();
        Ok(self)
    }

    /// AUTH PLAIN, or LOGIN where only that is offered (RFC 4954).
    async fn login(&mut self, login: &Login, tools: &Tools<'_>) -> Result<(), Failure> {
        let is_secured = matches!(self.stream, Stream::Tls(_));
        if !is_secured && !self.key.address.ip().to_canonical().is_loopback() {
            let trouble = Trouble::Login("the password is never sent without TLS".to_owned());
            return Err(self.failure(Phase::Login, trouble));
        }
        let (patience, progress) = (tools.settings.timeouts.login, tools.progress);
        let plain = Zeroizing::new(format!("\0{}\0{}", login.user, *login.password));
        let [plain, password] =
            [&plain, &login.password].map(|secret| Zeroizing::new(BASE64.encode(secret.as_bytes())));
        self.secrets = vec![plain.clone(), password, login.password.clone()];
        let reply = if self.extensions.offers_mechanism("PLAIN") {
            let line = Zeroizing::new(format!("AUTH PLAIN {}", *plain));
            self.ask(line.as_bytes(), Phase::Login, patience, progress).await?
        } else if self.extensions.offers_mechanism("LOGIN") {
            let mut reply = self.ask(b"AUTH LOGIN", Phase::Login, patience, progress).await?;
            for secret in [login.user.as_str(), login.password.as_str()] {
                if reply.code.0 != 334 {
                    break;
                }
                let line = Zeroizing::new(BASE64.encode(secret.as_bytes()));
                reply = self.ask(line.as_bytes(), Phase::Login, patience, progress).await?;
            }
            reply
        } else {
            let trouble = Trouble::Login("the relay offers neither AUTH PLAIN nor AUTH LOGIN".to_owned());
            return Err(self.failure(Phase::Login, trouble));
        };
        self.out.zeroize();
        if reply.is_completion() {
            return Ok(());
        }
        Err(self.failure(Phase::Login, Trouble::Refused(reply)))
    }

    /// Says QUIT and closes. The reply is waited for shortly, so that the peer closes first.
    pub async fn quit(mut self, patience: Duration) {
        let progress = Progress::default();
        if self.ask(b"QUIT", Phase::Hello, patience, &progress).await.is_ok() {
            let _ = tokio::time::timeout(patience, self.stream.shutdown()).await;
        }
    }
}

/// What a peer says is kept with each recipient, in events and in notices: no more of it than people
/// read. A peer of ill will says 64 KiB about each of a thousand.
fn shortened(mut reply: Reply) -> Reply {
    let mut left = REPLY_KEPT_OCTETS;
    for number in 0..reply.text.len() {
        let Some(line) = reply.text.get_mut(number) else { break };
        let room = left.checked_sub(REPLY_LINE_EXTRA_OCTETS);
        if room.is_none_or(|room| line.len() > room) {
            let room = room.unwrap_or(0);
            let kept = (0..=room).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
            line.truncate(kept);
            line.push_str(CUT);
            reply.text.truncate(number.saturating_add(1));
            break;
        }
        left = room.unwrap_or(0).saturating_sub(line.len());
    }
    reply
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::ReplyCode;

    #[test]
    fn a_reply_is_kept_whole_and_of_an_endless_one_the_beginning_with_a_mark() {
        let reply = |text: Vec<String>| Reply { code: ReplyCode(550), status: None, text };
        let kept = shortened(reply(vec!["\u{fffd}".repeat(600); 200]));
        assert_eq!((kept.code.0, kept.text.len()), (550, 2));
        assert!(kept.whole().ends_with(CUT), "{kept}");
        let many = shortened(reply(vec![String::new(); 200]));
        assert_eq!((many.text.len(), many.text.last().map(String::as_str)), (171, Some(CUT)));
        for cut in [kept, many] {
            assert!(cut.whole().len() <= REPLY_KEPT_OCTETS + CUT.len(), "{}", cut.whole().len());
        }
        let short = Reply::enhanced(550, 1, 1, "no such user");
        assert_eq!(shortened(short.clone()), short);
        let honest = reply((0..12).map(|number| format!("{number} {}", "why ".repeat(30))).collect());
        assert_eq!(shortened(honest.clone()), honest);
    }
}
