//! What a reply or a failure means for the recipients concerned. Pure: tables and one loop.
//!
//! It refuses to know when the next attempt is (the queue) and whether to go slower (shaping).
//! Easy to get wrong: a 5xx is final only where the peer speaks about this message; said in the
//! greeting, to EHLO, STARTTLS or AUTH it speaks about us, and the mail waits.

use std::net::IpAddr;

use crate::events::{AFTER_MAIL, AFTER_RCPT, Audience, Peer, Said, Why};
use crate::mail::{EnhancedStatus, Reply, Severity};
use crate::queue::{Onward, Outcome};
use crate::smtp::Extensions;

/// Where in a conversation something was said or went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Not begun: DNS, choosing a host.
    Start,
    /// Connecting.
    Connect,
    /// The peer's first reply.
    Greeting,
    /// EHLO or HELO.
    Hello,
    /// STARTTLS and the handshake.
    StartTls,
    /// AUTH.
    Login,
    /// MAIL.
    Mail,
    /// RCPT.
    Rcpt,
    /// DATA, before the message.
    Data,
    /// The message, before the final dot.
    Body,
    /// The final dot was sent.
    FinalDot,
}

impl Phase {
    /// The phase of that [`Phase::name`].
    pub fn described(name: &str) -> Option<Self> {
        (0..=Self::FinalDot as u8).map(Self::from_number).find(|phase| phase.name() == name)
    }

    /// As people read it: "the peer closed the connection after `...`".
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Connect => "connecting",
            Self::Greeting => "greeting",
            Self::Hello => "EHLO",
            Self::StartTls => "STARTTLS",
            Self::Login => "AUTH",
            Self::Mail => AFTER_MAIL,
            Self::Rcpt => AFTER_RCPT,
            Self::Data => "DATA",
            Self::Body => "message text",
            Self::FinalDot => "final dot",
        }
    }

    /// The phase people call that: `greeting`, `ehlo`, `starttls`, `auth`, `mail`, `rcpt`, `data`, `body`, `dot`.
    pub fn called(name: &str) -> Option<Self> {
        Some(match name {
            "greeting" => Self::Greeting,
            "ehlo" => Self::Hello,
            "starttls" => Self::StartTls,
            "auth" => Self::Login,
            "mail" => Self::Mail,
            "rcpt" => Self::Rcpt,
            "data" => Self::Data,
            "body" => Self::Body,
            "dot" => Self::FinalDot,
            _ => return None,
        })
    }

    /// The phase of that number, as the watchdog reads it back.
    pub fn from_number(number: u8) -> Self {
        const ALL: [Phase; 11] = [
            Phase::Start,
            Phase::Connect,
            Phase::Greeting,
            Phase::Hello,
            Phase::StartTls,
            Phase::Login,
            Phase::Mail,
            Phase::Rcpt,
            Phase::Data,
            Phase::Body,
            Phase::FinalDot,
        ];
        ALL.get(usize::from(number)).copied().unwrap_or(Self::Start)
    }
}

/// What went wrong without a verdict of the peer about the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Our own address is not on this host: the mail waits, nothing is counted.
    SourceMissing(IpAddr),
    /// Refused, unreachable, no answer.
    Unreachable(String),
    /// A reply did not come in time.
    TimedOut,
    /// The attempt made no progress, for a reason nobody thought of, and was ended.
    Stalled,
    /// The peer closed the connection, or it broke.
    Lost(String),
    /// Bytes that are no reply, or a reply nobody asked for.
    Malformed(String),
    /// A reply that ends the conversation.
    Refused(Reply),
    /// TLS failed or is not offered though required.
    Tls(String),
    /// The connection broke, or time ran out, during the handshake: about the peer's TLS that says nothing.
    TlsLost(String),
    /// What the recipient domain's policy demands is not there: the whole sentence, code first.
    Policy(String),
    /// The message asked for TLS all the way (REQUIRETLS), and this is not it: the whole sentence.
    RequireTls(String),
    /// Plain text came between the 220 to STARTTLS and the handshake.
    Injected,
    /// We cannot log in at the relay as configured.
    Login(String),
    /// The stored message cannot be read now; the connection was dropped before the final dot.
    Stored(String),
    /// The stored message is damaged; the connection was dropped before the final dot.
    Damaged(String),
}

/// A conversation that ended before its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Where.
    pub phase: Phase,
    /// What.
    pub trouble: Trouble,
    /// With whom, as far as we got.
    pub peer: Option<Box<Peer>>,
}

impl Failure {
    /// For the trail: one line, or the lines of a reply.
    pub fn describe(&self) -> String {
        let phase = self.phase.name();
        let what = match &self.trouble {
            Trouble::SourceMissing(address) => format!("our address {address} is not on this host"),
            Trouble::Unreachable(reason) => reason.clone(),
            Trouble::TimedOut => format!("no reply in time after {phase}"),
            Trouble::Stalled => format!("no progress after {phase}; the attempt was ended by the watchdog"),
            Trouble::Lost(reason) => format!("connection lost after {phase}: {reason}"),
            Trouble::Malformed(reason) => Said::words(reason, phase, Audience::One),
            Trouble::Refused(reply) => Said::words(&reply.whole(), phase, Audience::One),
            Trouble::Tls(reason) | Trouble::TlsLost(reason) => format!("TLS: {reason}"),
            Trouble::Policy(sentence) | Trouble::RequireTls(sentence) => sentence.clone(),
            Trouble::Injected => "plain text was injected between STARTTLS and the handshake".to_owned(),
            Trouble::Login(reason) => format!("login at the relay: {reason}"),
            Trouble::Stored(reason) | Trouble::Damaged(reason) => {
                format!("the stored message cannot be read: {reason}")
            }
        };
        match (&self.trouble, self.phase) {
            (Trouble::Refused(_) | Trouble::Stored(_) | Trouble::Damaged(_), _) => what,
            (_, Phase::FinalDot) => format!("{what}; the peer may have taken the message"),
            _ => what,
        }
    }

    /// The class of the deferral.
    pub fn why(&self) -> Why {
        match &self.trouble {
            Trouble::Refused(reply) => why_of(reply, self.phase),
            Trouble::SourceMissing(_) | Trouble::Login(_) | Trouble::Stored(_) | Trouble::Damaged(_) => {
                Why::OurConfiguration
            }
            Trouble::Policy(_) | Trouble::RequireTls(_) => Why::TlsPolicy,
            _ if self.phase == Phase::FinalDot => Why::UnknownOutcome,
            _ => Why::Network,
        }
    }

    /// A failure is a deferral: the peer has not spoken about the message. The exception is a message
    /// that asked for TLS all the way where there is none (RFC 8689 s4.2.1).
    pub fn outcome(&self) -> Outcome {
        let (why, detail, peer) = (self.why(), self.describe(), self.peer.as_deref().cloned());
        match self.trouble {
            Trouble::RequireTls(_) => Outcome::Bounced { why, detail, peer },
            _ => Outcome::Deferred { why, detail, peer },
        }
    }
}

/// What a reply means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The peer took responsibility.
    Delivered,
    /// Try again later.
    Deferred(Why),
    /// Never again.
    Bounced(Why),
}

/// Judges one reply that was said in `phase`.
pub fn classify(reply: &Reply, phase: Phase) -> Verdict {
    if reply.severity() == Severity::Success {
        return match (phase, reply.code.0) {
            (Phase::FinalDot, 200..300) => Verdict::Delivered,
            _ => Verdict::Deferred(Why::Other),
        };
    }
    let why = why_of(reply, phase);
    let is_final = reply.severity() == Severity::Permanent && phase >= Phase::Mail && !is_too_many_recipients(reply);
    if is_final { Verdict::Bounced(why) } else { Verdict::Deferred(why) }
}

/// The outcome for recipients whom `reply` concerns; the reply is kept whole.
pub fn of_verdict(verdict: Verdict, reply: &Reply, phase: Phase, peer: &Peer) -> Outcome {
    let detail = || Said::words(&reply.whole(), phase.name(), Audience::One);
    match verdict {
        Verdict::Delivered => {
            Outcome::Delivered { peer: peer.clone(), reply: reply.clone(), onward: Onward::Ourselves }
        }
        Verdict::Deferred(why) => Outcome::Deferred { why, detail: detail(), peer: Some(peer.clone()) },
        Verdict::Bounced(why) => Outcome::Bounced { why, detail: detail(), peer: Some(peer.clone()) },
    }
}

/// The same, if it is a refusal for good that concerns several recipients at once: as it is told of those whom
/// `audience` is.
pub fn told_of(outcome: &Outcome, audience: Audience) -> Outcome {
    let mut told = outcome.clone();
    if let Outcome::Bounced { detail, .. } = &mut told {
        let Said { reply, after, .. } = Said::read(detail);
        if let Some(after) = after {
            *detail = Said::words(reply, after, audience);
        }
    }
    told
}

/// The same if the peer took the message: one that offers DSN was told with RCPT which notices the
/// sender wants.
pub fn passed_on(outcome: Outcome, extensions: &Extensions) -> Outcome {
    match outcome {
        Outcome::Delivered { peer, reply, .. } if extensions.dsn => {
            Outcome::Delivered { peer, reply, onward: Onward::Peer }
        }
        other => other,
    }
}

/// "Too many recipients", also where it is said with 552 (RFC 5321 s4.5.3.1.10).
pub fn is_too_many_recipients(reply: &Reply) -> bool {
    let by_status = reply.status.is_some_and(|status| (status.subject, status.detail) == (5, 3));
    match reply.code.0 {
        452 => by_status || reply.status.is_none_or(|status| (status.subject, status.detail) == (0, 0)),
        552 | 451 | 450 => by_status,
        _ => false,
    }
}

fn why_of(reply: &Reply, phase: Phase) -> Why {
    if is_too_many_recipients(reply) {
        return Why::TryLater;
    }
    // 421 is about the connection, whatever else is in it (RFC 5321 s3.8).
    if reply.code.0 == 421 && reply.status.is_none_or(|status| status.subject != 7) {
        return Why::TryLater;
    }
    let by_status = reply.status.and_then(by_status);
    if let Some((why, Certainty::Sure)) = by_status {
        return why;
    }
    let text = reply.text.join(" ").to_ascii_lowercase();
    let by_text = HINTS.iter().find(|(_, needles)| needles.iter().any(|needle| text.contains(needle)));
    match (by_text, by_status) {
        (Some((Why::TryLater, _)), _) if reply.severity() == Severity::Permanent => by_code(reply.code.0, phase),
        (Some((why, _)), _) => *why,
        (None, Some((why, _))) => why,
        (None, None) => by_code(reply.code.0, phase),
    }
}

/// Whether a status says it all, or the text may know better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Certainty {
    Sure,
    Vague,
}

/// RFC 3463 and the registry of RFC 5248, by subject and detail; 4.x.x and 5.x.x alike.
fn by_status(status: EnhancedStatus) -> Option<(Why, Certainty)> {
    use Certainty::{Sure, Vague};
    Some(match (status.subject, status.detail) {
        (1, 2 | 10) => (Why::NoSuchDomain, Sure),
        (1, 7 | 8) => (Why::OurConfiguration, Sure),
        (1, 0) => (Why::RecipientGone, Vague),
        (1, _) | (2, 1) => (Why::RecipientGone, Sure),
        (2, 2) => (Why::MailboxFull, Sure),
        (2, 3) | (3, 4) => (Why::TooLarge, Sure),
        (3, 3) | (6, 3 | 7..=9) => (Why::Unsupported, Sure),
        (3, 1 | 2) => (Why::TryLater, Sure),
        (4, 3) => (Why::Dns, Sure),
        (4, 5) => (Why::TryLater, Sure),
        (4, _) => (Why::Network, Sure),
        (6, _) => (Why::Content, Sure),
        // Authentication of the sender: our login, SPF, DKIM, DMARC, reverse DNS, null MX.
        (7, 8 | 9 | 11 | 20..=27) => (Why::OurConfiguration, Sure),
        (7, 0 | 1) => (Why::PolicyOrReputation, Vague),
        (7, _) => (Why::PolicyOrReputation, Sure),
        _ => return None,
    })
}

/// What peers write when their codes say little; the first class with a match wins.
const HINTS: &[(Why, &[&str])] = &[
    (Why::MailboxFull, &["quota", "mailbox full", "mailbox is full", "inbox is full", "out of storage"]),
    (
        Why::PolicyOrReputation,
        &[
            "spamhaus",
            "blocklist",
            "blacklist",
            "block list",
            " listed",
            "dnsbl",
            "reputation",
            "rate limit",
            "too many",
            "throttl",
        ],
    ),
    (
        Why::TryLater,
        &["greylist", "graylist", "grey-list", "gray-list", "greylisted", "try again", "try later", "come back later"],
    ),
    (
        Why::RecipientGone,
        &[
            "user unknown",
            "unknown user",
            "no such user",
            "no such mailbox",
            "does not exist",
            "doesn't exist",
            "recipient unknown",
            "unknown recipient",
            "invalid recipient",
            "recipient rejected",
            "recipient address rejected",
            "account disabled",
            "account is disabled",
            "mailbox unavailable",
            "mailbox not found",
            "user not found",
        ],
    ),
    (Why::TooLarge, &["message size", "size limit", "too large", "too big"]),
    (Why::Content, &["spam", "virus", "malware", "phish", "message content", "content rejected"]),
];

/// RFC 5321 s4.2.3, with what the codes mean in practice in each phase.
fn by_code(code: u16, phase: Phase) -> Why {
    match (code, phase) {
        (421 | 450..=452, _) => Why::TryLater,
        (454, Phase::StartTls) => Why::Network,
        (454 | 530 | 534 | 535 | 538, _) => Why::OurConfiguration,
        (521 | 556, _) => Why::NoSuchDomain,
        (550 | 551 | 553, Phase::Rcpt) => Why::RecipientGone,
        (553, Phase::Mail) => Why::OurConfiguration,
        (552, Phase::Rcpt) => Why::MailboxFull,
        (552 | 523, _) => Why::TooLarge,
        (554, Phase::Data | Phase::Body | Phase::FinalDot) => Why::Content,
        (550 | 554, _) => Why::PolicyOrReputation,
        (555, _) => Why::Unsupported,
        _ => Why::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::ReplyParser;

    #[test]
    fn replies_are_classified_as_the_table_says() {
        let table = include_str!("../../tests/data/replies/outcomes.txt");
        let mut cases = 0;
        for line in table.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let [name, said, expected] = line.split(" | ").collect::<Vec<_>>()[..] else { panic!("{line}") };
            let bytes = said.replace(" / ", "\r\n") + "\r\n";
            let reply = ReplyParser::new().parse(&mut bytes.as_bytes()).unwrap().unwrap();
            let verdict = match classify(&reply, Phase::called(name.trim()).unwrap_or_else(|| panic!("{line}"))) {
                Verdict::Delivered => "delivered".to_owned(),
                Verdict::Deferred(why) => format!("deferred {why:?}"),
                Verdict::Bounced(why) => format!("bounced {why:?}"),
            };
            assert_eq!(verdict, expected.trim(), "{line}");
            cases += 1;
        }
        assert!(cases > 50, "{cases}");
    }

    #[test]
    fn a_connection_lost_after_the_final_dot_is_an_unknown_outcome_and_never_a_bounce() {
        for trouble in [Trouble::Lost("closed".to_owned()), Trouble::TimedOut, Trouble::Malformed("?".to_owned())] {
            let failure = Failure { phase: Phase::FinalDot, trouble, peer: None };
            assert!(matches!(failure.outcome(), Outcome::Deferred { why: Why::UnknownOutcome, .. }));
        }
    }

    #[test]
    fn phases_read_back_from_their_numbers() {
        for number in 0..11 {
            assert_eq!(Phase::from_number(number) as u8, number);
        }
    }
}
