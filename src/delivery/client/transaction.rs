//! One transaction: MAIL, RCPT for each recipient, DATA, the message, the final dot; a verdict
//! for every recipient.
//!
//! It refuses to know retries and queues. Easy to get wrong: with PIPELINING (RFC 2920) all
//! replies are read even if the first says no, and a peer may say 354 although nobody is left to
//! receive; then a lone final dot ends it and nothing was sent.

use std::fmt::Write as _;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use super::body::Text;
use super::connection::Connection;
use crate::delivery::outcome::{Failure, Phase, Trouble, is_too_many_recipients, told_of};
use crate::delivery::settings::Timeouts;
use crate::delivery::transport::{Held, Progress, is_waiting};
use crate::events::{Audience, Why};
use crate::mail::{BodyType, Masks, Notify, Reply, RequireTls, Ret, Sent, Smtputf8, printable};
use crate::queue::{Claim, Needs8bit, Outcome, QueuedRecipient};
use crate::smtp::{DotStuffer, Extensions, encode_xtext};
use crate::store::StoreError;

/// How long a peer that broke the connection within the message may still be heard.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A claim on its way through one or more transactions.
pub(super) struct Round {
    /// The claim, and verdicts so far.
    pub(super) held: Held,
    /// Recipients still without a verdict, as indices into the lane record.
    pub(super) pending: Vec<usize>,
    /// Recipients in the next transaction, at most.
    pub(super) limit: usize,
}

impl Round {
    /// Who was never tried comes first, then who was tried longest ago: whatever ends a round early, the
    /// next one goes on with the others.
    pub(super) fn new(held: Held, limit: usize) -> Self {
        let mut pending: Vec<usize> = held.undecided().into_iter().map(|(place, _)| place).collect();
        if let Some(claim) = held.claim() {
            pending.sort_by_key(|place| claim.record.recipients.get(*place).and_then(|one| one.last_attempt));
        }
        Self { held, pending, limit: limit.max(1) }
    }

    /// One refusal for all of them: who is meant is known only where there is one, or where it has an address.
    fn decide_at_once(&mut self, places: &[usize], outcome: &Outcome) {
        let Outcome::Bounced { detail, .. } = outcome else { return self.decide(places, outcome) };
        if places.len() <= 1 {
            return self.decide(places, outcome);
        }
        let recipients = self.held.claim().map(|claim| claim.record.recipients.as_slice()).unwrap_or_default();
        let is_named = |place: &usize| {
            let address = recipients.get(*place).map(|recipient| &recipient.address);
            Masks::of(None, address).are_in(detail)
        };
        let (named, others): (Vec<usize>, Vec<usize>) = places.iter().partition(|place| is_named(place));
        self.decide(&named, &told_of(outcome, Audience::Named));
        self.decide(&others, &told_of(outcome, Audience::Several(places.len())));
    }

    fn decide(&mut self, places: &[usize], outcome: &Outcome) {
        let recipients = self.held.claim().map(|claim| claim.record.recipients.as_slice()).unwrap_or_default();
        let numbers = places.iter().filter_map(|place| recipients.get(*place)).map(|recipient| recipient.number);
        for number in numbers.collect::<Vec<u16>>() {
            self.held.decide(number, outcome.clone());
        }
    }

    /// A verdict for those whom the broken conversation left without one.
    pub(super) fn decide_rest(&mut self, failure: &Failure) {
        let told = Failure { phase: failure.phase.min(Phase::Body), ..failure.clone() }.outcome();
        let dotted = failure.outcome();
        for (place, number) in self.held.undecided() {
            // If time ran out after the final dot, those it was sent for are neither pending nor decided.
            let is_dotted = failure.phase == Phase::FinalDot && !self.pending.contains(&place);
            self.held.decide(number, if is_dotted { dotted.clone() } else { told.clone() });
        }
    }
}

/// What keeps a message from being offered to this peer at all (final, and the peer is not asked).
pub(super) fn obstacle(connection: &Connection, claim: &Claim) -> Option<Outcome> {
    let extensions = &connection.extensions;
    if demands_tls(claim) && !connection.keeps_tls() {
        // Whoever chose this connection should have known; it never leaves this way.
        let detail = format!("550 5.7.30 REQUIRETLS: {} does not keep it", connection.peer.host);
        let (why, peer) = (Why::TlsPolicy, Some(connection.peer.clone()));
        return Some(Outcome::Bounced { why, detail, peer });
    }
    let bounced = |why, detail: String| Some(Outcome::Bounced { why, detail, peer: Some(connection.peer.clone()) });
    if claim.message.needs_8bit == Needs8bit::Yes && !extensions.eight_bit_mime {
        // RFC 6152 s3: it may not be sent, and it was signed as it is.
        return bounced(
            Why::Unsupported,
            "554 5.6.3 the peer does not offer 8BITMIME, which this message needs".into(),
        );
    }
    if needs_smtputf8(claim) && !extensions.smtputf8 {
        return bounced(
            Why::Unsupported,
            "553 5.6.7 the peer does not offer SMTPUTF8, which this message needs".into(),
        );
    }
    match extensions.size {
        Some(size) if claim.message.size_bytes > size => bounced(
            Why::TooLarge,
            format!("552 5.3.4 the message has {} octets, the peer takes {size} at most", claim.message.size_bytes),
        ),
        _ => None,
    }
}

/// Whether the message may only go where TLS is kept all the way. A notice asks for it and is not
/// lost for want of it (RFC 8689 s5).
pub(super) fn demands_tls(claim: &Claim) -> bool {
    claim.message.parameters.require_tls == RequireTls::Asked && claim.message.reverse_path.0.is_some()
}

fn needs_smtputf8(claim: &Claim) -> bool {
    // A return-path of ours is ASCII.
    let reverse = claim.message.reverse_path.0.as_ref().filter(|_| claim.message.return_path.is_none());
    claim.message.parameters.smtputf8 == Smtputf8::Needed
        || reverse.is_some_and(crate::mail::Address::needs_smtputf8)
        || claim.record.recipients.iter().any(|recipient| is_waiting(recipient) && recipient.address.needs_smtputf8())
}

/// Replies as far as they came.
#[derive(Default)]
struct Answers {
    mail: Option<Reply>,
    recipients: Vec<Reply>,
    data: Option<Reply>,
}

/// Carries out one transaction for up to `round.limit` pending recipients. Verdicts go into
/// `round`; `Err` means the connection is of no use any more, and recipients left in
/// `round.pending` were not decided.
pub(super) async fn send(
    connection: &mut Connection,
    round: &mut Round,
    text: &mut Text<'_>,
    timeouts: &Timeouts,
    progress: &Progress,
) -> Result<(), Failure> {
    // Before anything else: where the transaction before this one ended says nothing about this one.
    progress.step(Phase::Mail);
    let rcpt_max = connection.extensions.limits.rcpt_max.and_then(|most| usize::try_from(most).ok());
    // A return-path names one recipient, so each has a transaction of its own.
    let own = if round.held.claim().is_some_and(|claim| claim.message.return_path.is_some()) { 1 } else { round.limit };
    let count = round.limit.min(own).min(rcpt_max.unwrap_or(usize::MAX)).min(round.pending.len());
    let rest = round.pending.split_off(count);
    let batch = std::mem::replace(&mut round.pending, rest);
    connection.uses = connection.uses.saturating_add(1);
    let mut answers = Answers::default();
    let Some(claim) = round.held.claim() else { return Ok(()) };
    let named = batch.iter().filter_map(|place| claim.record.recipients.get(*place));
    round.held.names(named.map(|recipient| recipient.number).collect());
    let asked = if connection.extensions.pipelining {
        ask_together(connection, claim, &batch, &mut answers, (timeouts, progress)).await
    } else {
        ask_one_by_one(connection, claim, &batch, &mut answers, (timeouts, progress)).await
    };
    let accepted = judge(connection, round, &batch, &answers, asked.is_err());
    asked?;
    let is_open = answers.data.as_ref().is_some_and(|reply| reply.code.0 == 354);
    if accepted.is_empty() {
        connection.needs_reset = true;
        if is_open {
            // RFC 2920 s3.1: the peer waits for a message that has no recipient.
            connection.out.extend_from_slice(b".\r\n");
            connection.flush(Phase::Data, timeouts.body).await?;
            connection.reply(Phase::Data, timeouts.final_dot, progress).await?;
        }
        return Ok(());
    }
    if let (Some(reply), false) = (&answers.data, is_open) {
        connection.needs_reset = true;
        let outcome = connection.outcome(reply, Phase::Data);
        round.decide_at_once(&accepted, &outcome);
        return Ok(());
    }
    let result = transfer(connection, text, timeouts, progress).await;
    let outcome = match &result {
        Ok(reply) => connection.outcome(reply, Phase::FinalDot),
        Err((_, Some(reply))) => connection.outcome(reply, Phase::Body),
        Err((failure, None)) => failure.outcome(),
    };
    round.decide_at_once(&accepted, &outcome);
    match result {
        Ok(reply) if reply.code.0 == 421 => Err(connection.failure(Phase::FinalDot, Trouble::Refused(reply))),
        Ok(_) => Ok(()),
        Err((failure, _)) => Err(failure),
    }
}

/// Judges the replies to MAIL and RCPT; gives those who may receive. Recipients the peer had no
/// room for go back to `pending`, and so does everyone undecided if the conversation broke.
fn judge(
    connection: &mut Connection,
    round: &mut Round,
    batch: &[usize],
    answers: &Answers,
    is_broken: bool,
) -> Vec<usize> {
    if let Some(mail) = answers.mail.as_ref().filter(|mail| !mail.is_completion()) {
        round.decide(batch, &connection.outcome(mail, Phase::Mail));
        return Vec::new();
    }
    let (mut accepted, mut again) = (Vec::new(), Vec::new());
    let mut replies = answers.recipients.iter();
    for index in batch {
        match replies.next() {
            Some(reply) if reply.is_completion() => accepted.push(*index),
            // RFC 5321 s4.5.3.1.10: so many and no more; the others get a transaction of their own.
            Some(reply) if is_too_many_recipients(reply) && !accepted.is_empty() && !is_broken => again.push(*index),
            Some(reply) => round.decide(&[*index], &connection.outcome(reply, Phase::Rcpt)),
            None => again.push(*index),
        }
    }
    if is_broken {
        again.append(&mut accepted);
    } else if !again.is_empty() {
        round.limit = accepted.len().max(1);
    }
    again.append(&mut round.pending);
    round.pending = again;
    accepted
}

/// RFC 2920: all commands in one write, then all replies.
async fn ask_together(
    connection: &mut Connection,
    claim: &Claim,
    batch: &[usize],
    answers: &mut Answers,
    (timeouts, progress): (&Timeouts, &Progress),
) -> Result<(), Failure> {
    connection.expect_silence(Phase::Mail)?;
    let has_reset = std::mem::take(&mut connection.needs_reset);
    let mut lines = String::with_capacity(128);
    if has_reset {
        lines.push_str("RSET\r\n");
    }
    mail_line(&mut lines, (claim, batch), connection);
    for recipient in batch.iter().filter_map(|index| claim.record.recipients.get(*index)) {
        rcpt_line(&mut lines, (claim, recipient), &connection.extensions);
    }
    lines.push_str("DATA\r\n");
    connection.out.extend_from_slice(lines.as_bytes());
    connection.flush(Phase::Mail, timeouts.mail).await?;
    if has_reset {
        expect_to_stay(connection.reply(Phase::Mail, timeouts.mail, progress).await?, Phase::Mail, connection)?;
    }
    let mail = connection.reply(Phase::Mail, timeouts.mail, progress).await?;
    answers.mail = Some(expect_to_stay(mail, Phase::Mail, connection)?);
    for _ in batch {
        let reply = connection.reply(Phase::Rcpt, timeouts.rcpt, progress).await?;
        answers.recipients.push(expect_to_stay(reply, Phase::Rcpt, connection)?);
    }
    let data = connection.reply(Phase::Data, timeouts.data, progress).await?;
    answers.data = Some(expect_to_stay(data, Phase::Data, connection)?);
    connection.expect_silence(Phase::Data)
}

async fn ask_one_by_one(
    connection: &mut Connection,
    claim: &Claim,
    batch: &[usize],
    answers: &mut Answers,
    (timeouts, progress): (&Timeouts, &Progress),
) -> Result<(), Failure> {
    if std::mem::take(&mut connection.needs_reset) {
        step(connection, "RSET\r\n", (Phase::Mail, timeouts.mail), progress).await?;
    }
    let mut line = String::with_capacity(128);
    mail_line(&mut line, (claim, batch), connection);
    let mail = step(connection, &line, (Phase::Mail, timeouts.mail), progress).await?;
    let is_refused = !mail.is_completion();
    answers.mail = Some(mail);
    if is_refused {
        return Ok(());
    }
    for recipient in batch.iter().filter_map(|index| claim.record.recipients.get(*index)) {
        line.clear();
        rcpt_line(&mut line, (claim, recipient), &connection.extensions);
        let reply = step(connection, &line, (Phase::Rcpt, timeouts.rcpt), progress).await?;
        answers.recipients.push(reply);
    }
    if answers.recipients.iter().any(Reply::is_completion) {
        answers.data = Some(step(connection, "DATA\r\n", (Phase::Data, timeouts.data), progress).await?);
        connection.expect_silence(Phase::Data)?;
    }
    Ok(())
}

async fn step(
    connection: &mut Connection,
    line: &str,
    (phase, patience): (Phase, Duration),
    progress: &Progress,
) -> Result<Reply, Failure> {
    connection.expect_silence(phase)?;
    connection.out.extend_from_slice(line.as_bytes());
    connection.flush(phase, patience).await?;
    let reply = connection.reply(phase, patience, progress).await?;
    expect_to_stay(reply, phase, connection)
}

/// 421 means the peer is closing, whatever it answers (RFC 5321 s3.8).
fn expect_to_stay(reply: Reply, phase: Phase, connection: &Connection) -> Result<Reply, Failure> {
    if reply.code.0 == 421 { Err(connection.failure(phase, Trouble::Refused(reply))) } else { Ok(reply) }
}

/// Writes the message and the final dot and waits for the verdict. An error may carry the reply
/// with which the peer cut us short.
async fn transfer(
    connection: &mut Connection,
    text: &mut Text<'_>,
    timeouts: &Timeouts,
    progress: &Progress,
) -> Result<Reply, (Failure, Option<Reply>)> {
    progress.step(Phase::Body);
    connection.tap.note(|| "(the message)".to_owned());
    connection.tap.sent(Sent::Text);
    let written = match text {
        Text::Whole(stuffed) => write(connection, stuffed, timeouts.body).await,
        Text::Streamed(_) => stream(connection, text, timeouts, progress).await,
    };
    if let Err(failure) = written {
        let reply = match failure.trouble {
            Trouble::Lost(_) => connection.reply(Phase::Body, LAST_WORDS, progress).await.ok(),
            _ => None,
        };
        return Err((failure, reply.filter(|reply| reply.code.0 >= 400)));
    }
    progress.step(Phase::FinalDot);
    connection.tap.done();
    connection.tap.sent(Sent::Dot);
    connection.reply(Phase::FinalDot, timeouts.final_dot, progress).await.map_err(|failure| (failure, None))
}

async fn stream(
    connection: &mut Connection,
    text: &mut Text<'_>,
    timeouts: &Timeouts,
    progress: &Progress,
) -> Result<(), Failure> {
    let mut stuffer = DotStuffer::new();
    let mut stuffed = Vec::new();
    loop {
        // A damaged body is found at its end: the dot is then never said.
        let slice = text.next_slice().await;
        let slice = slice.map_err(|error| match error {
            StoreError::Damaged(how) => Trouble::Damaged(how),
            StoreError::Failed(why) => Trouble::Stored(why),
        });
        match slice.map_err(|trouble| connection.failure(Phase::Body, trouble))? {
            Some(slice) => stuffer.write(&slice, &mut stuffed),
            None => break,
        }
        write(connection, &stuffed, timeouts.body).await?;
        progress.step(Phase::Body);
        stuffed.clear();
    }
    stuffer.end(&mut stuffed);
    write(connection, &stuffed, timeouts.body).await
}

async fn write(connection: &mut Connection, bytes: &[u8], patience: Duration) -> Result<(), Failure> {
    let written = tokio::time::timeout(patience, async {
        connection.stream.write_all(bytes).await?;
        connection.stream.flush().await
    });
    // The dot is the last octet of all: if not everything was taken, it was not said.
    let trouble = match written.await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => Trouble::Lost(printable(&error.to_string())),
        Err(_) => Trouble::TimedOut,
    };
    Err(connection.failure(Phase::Body, trouble))
}

fn mail_line(line: &mut String, (claim, batch): (&Claim, &[usize]), connection: &Connection) {
    let (parameters, extensions) = (&claim.message.parameters, &connection.extensions);
    let recipient = batch.first().and_then(|place| claim.record.recipients.get(*place));
    // Writing to a String cannot fail.
    let _ = match (&claim.message.return_path, recipient) {
        (Some(name), Some(recipient)) => {
            write!(line, "MAIL FROM:<{}>", (connection.return_path)(claim.queue_id, recipient.number, name))
        }
        _ => write!(line, "MAIL FROM:{}", claim.message.reverse_path),
    };
    if extensions.takes_size {
        let _ = write!(line, " SIZE={}", claim.message.size_bytes);
    }
    let is_8bit = claim.message.needs_8bit == Needs8bit::Yes || parameters.body == BodyType::EightBitMime;
    if extensions.eight_bit_mime && is_8bit {
        line.push_str(" BODY=8BITMIME");
    }
    if extensions.smtputf8 && needs_smtputf8(claim) {
        line.push_str(" SMTPUTF8");
    }
    if parameters.require_tls == RequireTls::Asked && connection.keeps_tls() {
        line.push_str(" REQUIRETLS");
    }
    if extensions.dsn {
        match parameters.ret {
            Some(Ret::Full) => line.push_str(" RET=FULL"),
            Some(Ret::Headers) => line.push_str(" RET=HDRS"),
            None => {}
        }
        if let Some(envid) = &parameters.envid {
            let _ = write!(line, " ENVID={}", encode_xtext(envid));
        }
    }
    line.push_str("\r\n");
}

fn rcpt_line(line: &mut String, (claim, recipient): (&Claim, &QueuedRecipient), extensions: &Extensions) {
    let _ = write!(line, "RCPT TO:<{}>", recipient.address);
    if extensions.dsn {
        // Failures are wanted at a return-path of ours; whether the client is told is decided when one comes.
        let failure = recipient.notify.failure || claim.message.return_path.is_some();
        if let Some(wanted) = notify_words(Notify { failure, ..recipient.notify }) {
            let _ = write!(line, " NOTIFY={wanted}");
        }
        let orcpt = recipient.orcpt.as_deref().and_then(|orcpt| orcpt.split_once(';'));
        let is_word = |kind: &str| kind.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if let Some((kind, address)) = orcpt.filter(|(kind, _)| is_word(kind)) {
            let _ = write!(line, " ORCPT={kind};{}", encode_xtext(address));
        }
    }
    line.push_str("\r\n");
}

/// RFC 3461 s4.1; nothing is said where the default was wanted.
fn notify_words(notify: Notify) -> Option<String> {
    if notify == Notify::default() {
        return None;
    }
    let words: Vec<&str> = [(notify.success, "SUCCESS"), (notify.failure, "FAILURE"), (notify.delay, "DELAY")]
        .into_iter()
        .filter_map(|(wanted, word)| wanted.then_some(word))
        .collect();
    Some(if words.is_empty() { "NEVER".to_owned() } else { words.join(",") })
}
