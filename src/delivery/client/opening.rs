//! Opening a connection at the best TLS that can be had, and telling what that came to: the memory of levels,
//! and the reports to recipient domains.
//!
//! Easy to get wrong: a handshake that failed and the conversation in the clear after it are one session; and a
//! connection that is used again serves another domain, which is to hear of it too.

use std::sync::PoisonError;

use tokio::net::TcpStream;

use super::Need;
use super::connection::{Call, Connection, Tools, open_once};
use super::stream::Stream;
use crate::delivery::mx::{Spoken, TlsLevel, TlsMemory};
use crate::delivery::outcome::{Failure, Phase, Trouble};
use crate::delivery::transport::{Job, TlsUse};
use crate::events::Peer;
use crate::ext::Timestamp;
use crate::mail::{Domain, Sent, printable, reached};
use crate::metrics::{TLS_FALLBACKS, TLS_SESSIONS};
use crate::net::{CertificateFault, DialError, HandshakeError, HandshakeFault};
use crate::tlsrpt::{Lack, LackKind, Protection, Session, TlsReports};

/// Domains one connection is counted for, at most.
const COUNTED_FOR_MAX: usize = 64;

/// What a peer's TLS said before the connection broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TlsSaid {
    Nothing,
    Refusal,
}

/// Opens a connection; with opportunistic TLS, once more without TLS if TLS is what failed.
pub(super) async fn open(call: &Call<'_>, tools: &Tools<'_>) -> Result<Connection, Failure> {
    // Through a relay nothing is learnt about the recipient domain, and a relay's own TLS is the operator's matter.
    let memory = tools.tls_memory.filter(|_| call.login.is_none() && call.key.realm == 0);
    let mut opened = open_at_best(call, tools, memory).await;
    let lack = call.lack.lock().unwrap_or_else(PoisonError::into_inner).take();
    report(call, tools, (&mut opened, lack));
    if let Ok(open) = &opened {
        metrics::counter!(TLS_SESSIONS, "level" => open.level().word()).increment(1);
    }
    if let (Ok(open), Some(memory)) = (&opened, memory) {
        open.remember(&call.lane.next_hop, memory);
        if open.level() > TlsLevel::Plain {
            memory.succeeded(call.host);
        }
    }
    opened
}

/// In the clear only where nobody demands more, after TLS has failed: now, or a few hours ago.
async fn open_at_best(call: &Call<'_>, tools: &Tools<'_>, memory: Option<&TlsMemory>) -> Result<Connection, Failure> {
    if call.key.tls != TlsUse::Opportunistic {
        return open_once(call, tools, &call.key.tls).await;
    }
    if let Some(known) = memory.and_then(|memory| memory.fails(call.host, Timestamp::now())) {
        let mut connection = open_once(call, tools, &TlsUse::Never).await?;
        let until = known.until.rfc3339();
        call.lacks(LackKind::Other, format!("TLS failed before: {}", known.reason));
        let words = format!("none (TLS failed before: {}; tried again after {until})", known.reason);
        connection.note_tls(words, call.policy);
        metrics::counter!(TLS_FALLBACKS, "because" => "failed-before").increment(1);
        return Ok(connection);
    }
    match open_once(call, tools, &TlsUse::Opportunistic).await {
        Err(Failure { trouble: trouble @ (Trouble::Tls(_) | Trouble::TlsLost(_)), .. }) => {
            let mut connection = open_once(call, tools, &TlsUse::Never).await?;
            // A connection that breaks may break for any reason: only what a peer's TLS said is held against it.
            if let (Trouble::Tls(reason), Some(memory)) = (&trouble, memory) {
                memory.failed(call.host, reason, Timestamp::now());
            }
            let (Trouble::Tls(reason) | Trouble::TlsLost(reason)) = trouble else { return Ok(connection) };
            connection.note_tls(format!("none (TLS failed: {reason})"), call.policy);
            metrics::counter!(TLS_FALLBACKS, "because" => "failed").increment(1);
            Ok(connection)
        }
        other => other,
    }
}

/// Connects; that it is tried is said before, and what came of it behind.
pub(super) async fn dial(call: &Call<'_>, tools: &Tools<'_>, peer: &Peer) -> Result<TcpStream, Failure> {
    tools.progress.step(Phase::Connect);
    tools.script.sent(Sent::Connecting(reached(&peer.host, &peer.address)));
    let patience = tools.settings.timeouts.connect;
    let stream = tools.dialer.dial(call.source, call.key.address, patience).await.map_err(|error| {
        let trouble = match error {
            DialError::SourceMissing(address) => Trouble::SourceMissing(address),
            DialError::Failed(reason) => Trouble::Unreachable(printable(&reason)),
        };
        let failure = Failure { phase: Phase::Connect, trouble, peer: Some(Box::new(peer.clone())) };
        tools.script.failed(&failure.describe());
        failure
    })?;
    tools.script.done();
    Ok(stream)
}

/// What a failed handshake, or a certificate that would not have passed, lacks.
pub(super) fn lack_of(error: &HandshakeError) -> LackKind {
    match error.kind {
        HandshakeFault::Certificate(CertificateFault::OtherName) => LackKind::OtherName,
        HandshakeFault::Certificate(CertificateFault::Expired) => LackKind::Expired,
        HandshakeFault::Certificate(CertificateFault::Untrusted) => LackKind::Untrusted,
        HandshakeFault::Incompatible | HandshakeFault::Lost | HandshakeFault::Other => LackKind::Other,
    }
}

impl Call<'_> {
    /// A conversation that came to its end where TLS was to begin: TLS failed, as in a handshake. Only a message that
    /// asks for TLS all the way waits where the peer said nothing, instead of coming back for a broken connection.
    pub(super) fn without_tls(&self, failure: Failure, said: TlsSaid) -> Failure {
        if !matches!(failure.trouble, Trouble::Lost(_) | Trouble::TimedOut) {
            return failure;
        }
        let reason = failure.describe();
        self.lacks(LackKind::Other, reason.clone());
        let trouble = match (said, &self.key.tls) {
            (TlsSaid::Nothing, TlsUse::Opportunistic) => Trouble::TlsLost(reason),
            (TlsSaid::Refusal, TlsUse::Opportunistic) => Trouble::Tls(reason),
            (TlsSaid::Nothing, _) if self.need == Need::TlsAllTheWay => failure.trouble,
            _ => self.lacking("4.7.5", reason),
        };
        Failure { phase: Phase::StartTls, trouble, peer: failure.peer }
    }
}

/// Counts the session. One that ended before it came to TLS is none.
fn report(call: &Call<'_>, tools: &Tools<'_>, (opened, lack): (&mut Result<Connection, Failure>, Option<Lack>)) {
    let Some(reports) = tools.reports else { return };
    let protection = match opened {
        Ok(open) => {
            if lack.is_some() {
                open.lack = lack;
            }
            open.counted_for.push(call.lane.next_hop.clone());
            open.protection()
        }
        Err(_) => lack.map(Protection::Plain),
    };
    let Some(protection) = protection else { return };
    let session = Session {
        domain: &call.lane.next_hop,
        vip: call.key.vip,
        source: Some(call.source),
        host: Some(call.host),
        address: Some(call.key.address.ip()),
    };
    reports.count(&session, call.reported, &protection, Timestamp::now());
}

impl Connection {
    fn level(&self) -> TlsLevel {
        match (&self.stream, &self.proof) {
            (Stream::Plain(_), _) => TlsLevel::Plain,
            (Stream::Tls(_), None) => TlsLevel::Encrypted,
            (Stream::Tls(_), Some(_)) => TlsLevel::Verified,
        }
    }

    /// This is how mail to the domain leaves now.
    fn remember(&self, domain: &Domain, memory: &TlsMemory) {
        let spoken = Spoken { domain, host: &self.peer.host, level: self.level(), words: &self.peer.tls };
        memory.spoke(&spoken, Timestamp::now());
    }

    /// It serves this job's domain from now on, which is as well protected as whoever it was opened for.
    pub(super) fn remember_again(&self, job: &Job, memory: &TlsMemory) {
        // As when it was opened: of what lies behind a relay nothing is learnt.
        if job.site.login.is_none() && self.key.realm == 0 {
            self.remember(&job.lane.next_hop, memory);
        }
    }

    /// What TLS came to; `None` if it was never meant to be.
    fn protection(&self) -> Option<Protection> {
        match (&self.stream, &self.lack) {
            (Stream::Tls(_), None) => Some(Protection::Verified),
            (Stream::Tls(_), Some(lack)) => Some(Protection::Encrypted(lack.clone())),
            (Stream::Plain(_), lack) => lack.clone().map(Protection::Plain),
        }
    }

    /// It serves this job's domain from now on: if that is another, it is a session of that domain too.
    pub(super) fn report_again(&mut self, job: &Job, reports: &TlsReports) {
        let domain = &job.lane.next_hop;
        if self.counted_for.contains(domain) || self.counted_for.len() >= COUNTED_FOR_MAX {
            return;
        }
        self.counted_for.push(domain.clone());
        let address = self.key.address.ip();
        let (Some(host), Some(protection)) = (self.host_in(&job.site), self.protection()) else { return };
        let source = self.peer.source.parse().ok();
        let session = Session { domain, vip: self.key.vip, source, host: Some(&host.name), address: Some(address) };
        reports.count(&session, &host.reported, &protection, Timestamp::now());
    }
}
