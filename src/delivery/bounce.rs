//! Pays the notices the queue says are owed, through intake like any other mail.
//!
//! Recipe: [`run`], nudged and periodic; each round is idempotent, because the queue forgets a
//! debt in the batch that owes the notice. Easy to get wrong: a notice leaves by the virtual IP of
//! the message it reports, with the null reverse-path, and never about a notice.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Settings;
use crate::background::Shutdown;
use crate::events::{NoticeKind, Said, Why};
use crate::ext::Timestamp;
use crate::intake::{Intake, Source, Submission, Way};
use crate::mail::dsn::{self, Action, Diagnostic, Kind, Notice, ORIGINAL_BYTES_MAX, Reported};
use crate::mail::{
    Address, EnhancedStatus, Envelope, ForwardPath, MailParameters, Notify, QueueId, RequireTls, Ret, ReversePath,
    Severity, Smtputf8,
};
use crate::queue::{NoticeOwed, Queue, QueuedMessage, QueuedRecipient};
use crate::vips::{Vip, Vips};

/// Notices paid in one round, at most.
const NOTICES_PER_ROUND: usize = 64;
/// After a round in which something could not be paid, this long passes before the next.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(10);
/// A notice that could not be paid is tried again after this; the others go before it.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// What paying needs.
#[derive(Clone)]
pub(super) struct Cashier {
    pub(super) queue: Arc<Queue>,
    pub(super) intake: Arc<Intake>,
    pub(super) vips: Arc<Vips>,
}

/// What became of one debt.
enum Paid {
    /// The notice is owed as mail now, or the debt was dropped on record.
    Yes,
    /// It stays owed.
    Later,
}

/// Pays until `shutdown`.
pub(super) async fn run(cashier: Cashier, mut settings: watch::Receiver<Arc<Settings>>, shutdown: Shutdown) {
    let mut unpaid = Unpaid::new();
    loop {
        let every = settings.borrow_and_update().notices_every;
        let pause = match cashier.round(&mut unpaid, Instant::now()).await {
            Round::More if !shutdown.is_cancelled() => continue,
            Round::More => return,
            Round::Done => cashier.queue.next_notice_due().map_or(every, |due| due.min(every)),
            Round::Troubled => PAUSE_AFTER_FAILURE,
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = cashier.queue.notice_nudged() => {}
            // Zero would mean that one is due that could not be paid just now.
            () = tokio::time::sleep(pause.max(Duration::from_millis(50))) => {}
        }
        if shutdown.is_cancelled() {
            return;
        }
    }
}

/// Messages whose notice could not be paid, and when that is tried again.
type Unpaid = HashMap<QueueId, Instant>;

enum Round {
    More,
    Done,
    Troubled,
}

impl Cashier {
    /// One look at what is due, past those that could not be paid lately.
    async fn round(&self, unpaid: &mut Unpaid, now: Instant) -> Round {
        unpaid.retain(|_, again| *again > now);
        let owed = match self.queue.owed_notices_but(NOTICES_PER_ROUND, &|id| unpaid.contains_key(&id)) {
            Ok(owed) => owed,
            Err(error) => {
                tracing::warn!("owed notices cannot be read: {error}");
                return Round::Troubled;
            }
        };
        let is_full = owed.len() >= NOTICES_PER_ROUND;
        let mut is_paid = false;
        for notice in &owed {
            match self.pay(notice).await {
                Paid::Yes => is_paid = true,
                Paid::Later => {
                    unpaid.insert(notice.queue_id, now.checked_add(TRY_AGAIN_AFTER).unwrap_or(now));
                }
            }
        }
        match (is_full, unpaid.is_empty()) {
            // A round in which nothing could be paid means that nothing can be paid now.
            (true, _) if is_paid => Round::More,
            (_, false) => Round::Troubled,
            (true, true) => Round::More,
            (false, true) => Round::Done,
        }
    }

    async fn pay(&self, owed: &NoticeOwed) -> Paid {
        let now = Timestamp::now();
        let message = match self.queue.message(owed.queue_id) {
            Ok(Some(message)) => message,
            // Nothing is known of it any more: nobody can be told.
            Ok(None) => return self.forget(owed, now).await,
            Err(error) => {
                tracing::warn!(about = %owed.queue_id, "a notice waits, its message cannot be read: {error}");
                return Paid::Later;
            }
        };
        // The null reverse-path: no notice about a notice (RFC 5321 s4.5.5).
        let Some(to) = message.reverse_path.0.clone() else { return self.forget(owed, now).await };
        let Some(vip) = self.vips.get(message.vip) else {
            // It will not come back under that id, and by another one a notice never leaves.
            tracing::warn!(about = %owed.queue_id, "a notice cannot be sent, its virtual IP was removed");
            return self.forget(owed, now).await;
        };
        let original = self.original(owed).await;
        let until = now.plus(self.queue.tried_for(&message));
        let submission = write((owed, until), &message, &vip, &to, (&original, now));
        match self.intake.accept(submission, now).await {
            Ok(_) => Paid::Yes,
            Err(refusal) if refusal.reply.severity() == Severity::Permanent => {
                tracing::warn!(about = %owed.queue_id, "a notice was refused for good: {refusal}");
                self.forget(owed, now).await
            }
            Err(refusal) => {
                tracing::warn!(about = %owed.queue_id, "a notice waits: {refusal}");
                Paid::Later
            }
        }
    }

    async fn forget(&self, owed: &NoticeOwed, now: Timestamp) -> Paid {
        match self.queue.drop_notice(owed, now).await {
            Ok(()) => Paid::Yes,
            Err(error) => {
                tracing::warn!(about = %owed.queue_id, "a notice that cannot be sent was not dropped: {error}");
                Paid::Later
            }
        }
    }

    /// The beginning of the message, as much as a notice may return; empty if it cannot be read.
    async fn original(&self, owed: &NoticeOwed) -> Vec<u8> {
        let (queue, id) = (self.queue.clone(), owed.queue_id);
        let reading = tokio::task::spawn_blocking(move || {
            let mut beginning = Vec::new();
            let Ok(Some(mut reader)) = queue.open_message(id) else { return beginning };
            while beginning.len() < ORIGINAL_BYTES_MAX {
                match reader.next_slice() {
                    Ok(Some(slice)) => beginning.extend_from_slice(&slice),
                    Ok(None) => break,
                    // Damaged: what was read before must not be used.
                    Err(_) => return Vec::new(),
                }
            }
            beginning.truncate(ORIGINAL_BYTES_MAX);
            beginning
        });
        reading.await.unwrap_or_default()
    }
}

/// The notice as a submission: by the virtual IP of the message it reports, from nobody.
fn write(
    (owed, until): (&NoticeOwed, Timestamp),
    message: &QueuedMessage,
    vip: &Vip,
    to: &Address,
    (original, now): (&[u8], Timestamp),
) -> Submission {
    let recipients: Vec<Reported> =
        owed.recipients.iter().map(|recipient| reported(recipient, owed.kind, until)).collect();
    let notice = Notice {
        kind: match owed.kind {
            NoticeKind::Failure => Kind::Failure,
            NoticeKind::Delay => Kind::Delay,
            NoticeKind::Success => Kind::Success,
        },
        reporting_mta: &vip.ehlo,
        to,
        about: owed.queue_id,
        envid: message.parameters.envid.as_deref(),
        ret: match message.parameters.require_tls {
            // RFC 8689 s5: what must not be read on its way does not go back in full.
            RequireTls::Asked => Some(Ret::Headers),
            RequireTls::NotAsked => message.parameters.ret,
        },
        arrival: message.accepted,
        recipients: &recipients,
        original,
        original_length: message.size_bytes,
    };
    let smtputf8 = if to.needs_smtputf8() { Smtputf8::Needed } else { Smtputf8::NotNeeded };
    Submission {
        envelope: Envelope {
            reverse_path: ReversePath(None),
            parameters: MailParameters {
                smtputf8,
                require_tls: message.parameters.require_tls,
                ..MailParameters::default()
            },
            recipients: vec![ForwardPath { address: to.clone(), notify: Notify::NEVER, orcpt: None }],
        },
        draft: dsn::write(&notice, now),
        source: Source {
            tenant: message.tenant,
            account: None,
            vip: vip.id,
            vip_name: vip.ehlo.clone(),
            class: message.class,
            way: Way::Notice { about: owed.queue_id },
        },
    }
}

/// `until` is when trying ends; only delays tell it (RFC 3464 s2.3.9).
fn reported(recipient: &QueuedRecipient, kind: NoticeKind, until: Timestamp) -> Reported {
    let action = match kind {
        NoticeKind::Failure => Action::Failed,
        NoticeKind::Delay => Action::Delayed,
        // Never "delivered" or "expanded": we have no mailboxes and no lists. The peer took it and
        // tells nobody (RFC 3461 s5.2.2); of one that does, no success notice is owed.
        NoticeKind::Success => Action::Relayed,
    };
    let detail = recipient.last_detail.clone();
    let status = detail.as_deref().and_then(status_in).filter(|status| status.class == class_of(kind));
    let host = recipient.last_peer.as_ref().map(|peer| peer.host.clone());
    Reported {
        address: recipient.address.clone(),
        orcpt: recipient.orcpt.clone(),
        action,
        status: status.unwrap_or_else(|| status_for(recipient.last_why, kind)),
        remote_mta: host.clone(),
        diagnostic: detail.map(|detail| {
            // What a policy demanded are our own words, also where a peer was met.
            let is_quoted = is_reply(&detail) && host.is_some() && recipient.last_why != Some(Why::TlsPolicy);
            match kind {
                _ if !is_quoted => Diagnostic::Own(detail),
                NoticeKind::Success => Diagnostic::Smtp(detail),
                NoticeKind::Failure | NoticeKind::Delay => Diagnostic::Smtp(as_said(&detail).to_owned()),
            }
        }),
        last_attempt: recipient.last_attempt,
        will_retry_until: (kind == NoticeKind::Delay).then_some(until),
    }
}

fn class_of(kind: NoticeKind) -> u8 {
    match kind {
        NoticeKind::Failure => 5,
        NoticeKind::Delay => 4,
        NoticeKind::Success => 2,
    }
}

/// The peer's own words, without the phase that the trail adds to a refusal: a diagnostic code is
/// what the peer said (RFC 3464 s2.3.6).
fn as_said(detail: &str) -> &str {
    Said::read(detail).reply
}

/// Whether a detail begins with a reply code, as delivery writes what peers said.
fn is_reply(detail: &str) -> bool {
    let code = detail.get(..3).is_some_and(|code| code.bytes().all(|byte| byte.is_ascii_digit()));
    code && matches!(detail.as_bytes().get(3), None | Some(b' ' | b'-'))
}

/// The enhanced status after the reply code.
fn status_in(detail: &str) -> Option<EnhancedStatus> {
    let line = detail.lines().next().filter(|_| is_reply(detail))?;
    EnhancedStatus::split_from(line.get(4..)?).map(|(status, _)| status)
}

/// A status where the peer gave none of that class (RFC 3463).
fn status_for(why: Option<Why>, kind: NoticeKind) -> EnhancedStatus {
    let (subject, detail) = match (kind, why) {
        (NoticeKind::Success, _) => (0, 0),
        (_, Some(Why::RecipientGone)) => (1, 1),
        (_, Some(Why::MailboxFull)) => (2, 2),
        (_, Some(Why::PolicyOrReputation)) => (7, 1),
        (_, Some(Why::Content)) => (6, 0),
        (_, Some(Why::TooLarge)) => (3, 4),
        (_, Some(Why::NoSuchDomain)) => (1, 2),
        (_, Some(Why::Dns)) => (4, 3),
        (_, Some(Why::Network)) => (4, 1),
        (_, Some(Why::UnknownOutcome)) => (4, 2),
        (_, Some(Why::TryLater)) => (4, 7),
        (_, Some(Why::Unsupported)) => (6, 3),
        (_, Some(Why::OurConfiguration)) => (3, 5),
        (_, Some(Why::TlsPolicy)) => (7, 4),
        (_, Some(Why::Other) | None) => (0, 0),
    };
    EnhancedStatus::new(class_of(kind), subject, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipient(detail: &str, why: Why) -> QueuedRecipient {
        QueuedRecipient {
            number: 0,
            address: Address::parse("ann@shop.example").unwrap(),
            notify: Notify::default(),
            orcpt: None,
            state: crate::queue::RecipientState::Waiting,
            last_why: Some(why),
            last_detail: Some(detail.to_owned()),
            last_peer: None,
            delay_told: false,
            last_attempt: Some(Timestamp(1_000)),
        }
    }

    #[test]
    fn a_notice_carries_the_peers_own_status_or_one_of_its_class() {
        for (detail, why, kind, expected) in [
            ("550 5.1.1 no such user (after RCPT)", Why::RecipientGone, NoticeKind::Failure, "5.1.1"),
            ("450 4.2.0 greylisted (after RCPT)", Why::TryLater, NoticeKind::Delay, "4.2.0"),
            // Expired on a 4xx: the failure is ours to name.
            ("450 4.2.0 greylisted (after RCPT)", Why::TryLater, NoticeKind::Failure, "5.4.7"),
            ("550-5.7.26 no\n550 5.7.26 DKIM (after final dot)", Why::OurConfiguration, NoticeKind::Failure, "5.7.26"),
            ("550-gone\n550 5.1.1 for ever (after RCPT)", Why::Content, NoticeKind::Failure, "5.6.0"),
            ("connect: refused", Why::Network, NoticeKind::Failure, "5.4.1"),
            ("250 2.0.0 queued", Why::Other, NoticeKind::Success, "2.0.0"),
        ] {
            assert_eq!(reported(&recipient(detail, why), kind, Timestamp(0)).status.to_string(), expected, "{detail}");
        }
    }

    #[test]
    fn a_notice_says_when_it_was_tried_last_and_a_delay_until_when_it_will_be() {
        let waits = recipient("450 4.2.0 greylisted (after RCPT)", Why::TryLater);
        let delay = reported(&waits, NoticeKind::Delay, Timestamp(9_000));
        assert_eq!((delay.last_attempt, delay.will_retry_until), (Some(Timestamp(1_000)), Some(Timestamp(9_000))));
        let failure = reported(&waits, NoticeKind::Failure, Timestamp(9_000));
        assert_eq!((failure.last_attempt, failure.will_retry_until), (Some(Timestamp(1_000)), None));
    }

    #[test]
    fn a_refusal_is_quoted_without_our_remark() {
        assert_eq!(as_said("550 5.1.1 gone (after final dot)"), "550 5.1.1 gone");
        assert_eq!(as_said("550 gone (after all) (after RCPT)"), "550 gone (after all)");
        assert_eq!(as_said("550 gone (after all"), "550 gone (after all");
        assert_eq!(as_said("550-5.1.1 gone\n550 5.1.1 for good (after RCPT)"), "550-5.1.1 gone\n550 5.1.1 for good");
        assert!(is_reply("550-5.1.1 gone\n550 5.1.1 for good") && is_reply("550") && !is_reply("5500 x"));
    }

    #[test]
    fn only_what_a_peer_said_is_quoted_as_a_reply() {
        let own = reported(&recipient("556 5.1.10 null MX", Why::NoSuchDomain), NoticeKind::Failure, Timestamp(0));
        assert!(matches!(own.diagnostic, Some(Diagnostic::Own(_))));
        let (host, address) = ("mx.shop.example".to_owned(), "192.0.2.1:25".to_owned());
        let peer = Some(crate::events::Peer { host, address, source: "192.0.2.9".to_owned(), tls: "none".to_owned() });
        for (why, is_quoted) in [(Why::TlsPolicy, false), (Why::TryLater, true)] {
            let met =
                QueuedRecipient { last_peer: peer.clone(), ..recipient("451 4.7.4 mx.shop.example: no TLS", why) };
            let said = reported(&met, NoticeKind::Delay, Timestamp(0)).diagnostic;
            assert_eq!(matches!(said, Some(Diagnostic::Smtp(_))), is_quoted, "{why:?}");
        }
    }
}
