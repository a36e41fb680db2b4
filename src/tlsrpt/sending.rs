//! Sends what is due: asks DNS who wants a report, brings it there by mail or HTTPS, tries again within bounds.
//!
//! Easy to get wrong: a report is mail about policies that fail, so it must not fail by them (RFC 8460 s3); a
//! day is reported once, so its recipients and their message ids are on disk before anything leaves; and all
//! senders of the world end their day at the same second, so each report has an hour of its own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use sha2::{Digest as _, Sha256};

use super::counts::{Day, DomainDay, Due, Fate, Recipient, Sent, Stage, begins, day_of};
use super::letter::{Egress, Letter};
use super::record::{Whereto, name_of, recipients, whereto};
use super::report::{Report, Submitter};
use super::{KEPT, Of, TlsReports};
use crate::domains::INSTANCE;
use crate::events::history_key;
use crate::ext::Timestamp;
use crate::intake::Intake;
use crate::mail::{Domain, QueueId, Severity, VipId, printable};
use crate::metrics::TLS_REPORTS;
use crate::net::{LookupError, Outgoing, PostError, Target};
use crate::records;
use crate::vips::Owner;

/// Reports of a day leave within this time after it (s4.1 of the RFC: several hours).
const SPREAD: Duration = Duration::from_secs(4 * 60 * 60);
/// The second try is this long after the first; the time between doubles.
const RETRY_FIRST: Duration = Duration::from_secs(15 * 60);
/// Tries are no further apart than this.
const RETRY_MAX: Duration = Duration::from_secs(4 * 60 * 60);
/// So long after its first try a report is given up (s5.5).
const TRIED_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// Reports looked at in one round, at most.
const ROUND_MAX: usize = 500;
/// Reports sent at a time.
const AT_ONCE: usize = 8;
/// A POST may take so long.
const POST_PATIENCE: Duration = Duration::from_secs(30);
/// Characters kept of an error.
const ERROR_CHARACTERS_MAX: usize = 300;

/// When the report of a day is tried first: always the same moment for one domain and day.
pub fn due_at(day: Day, domain: &Domain) -> Timestamp {
    let digest = Sha256::new().chain_update(domain.as_str()).chain_update(day.to_be_bytes()).finalize();
    let lot: [u8; 8] = digest.first_chunk().copied().unwrap_or_default();
    let spread = u64::try_from(SPREAD.as_millis()).unwrap_or(u64::MAX).max(1);
    let later = Duration::from_millis(u64::from_be_bytes(lot) % spread);
    begins(day.saturating_add(1)).plus(later)
}

/// What one try came to.
enum Tried {
    /// The domain asks for no report.
    Unasked,
    /// It is not known who asks, or somebody could not be reached.
    Later(String),
    /// Nobody is left to be tried.
    Over,
}

impl TlsReports {
    /// Sends what is due at `now` and forgets what is old.
    pub(super) async fn round(&self, intake: &Arc<Intake>, now: Timestamp) {
        self.forget(self.parts.calendar.cap(now)).await;
        if !self.is_on() {
            return;
        }
        let due: Vec<DomainDay> = {
            let kept = records::lock(&self.kept);
            kept.days.values().filter(|day| is_due(day, now)).take(ROUND_MAX).cloned().collect()
        };
        let sent = futures_util::stream::iter(due).map(|day| self.send(day, intake, now));
        sent.buffer_unordered(AT_ONCE).for_each(|()| async {}).await;
    }

    /// Removes days that ended [`KEPT`] ago.
    async fn forget(&self, now: Timestamp) {
        let old: BTreeSet<Of> = {
            let kept = records::lock(&self.kept);
            let is_old = |day: Day| now.since(begins(day.saturating_add(1))) >= KEPT;
            kept.days.keys().take_while(|(day, _)| is_old(*day)).cloned().collect()
        };
        if old.is_empty() {
            return;
        }
        {
            let mut kept = records::lock(&self.kept);
            for of in &old {
                let gone = kept.days.remove(of).map_or(0, |day| day.octets());
                kept.octets = kept.octets.saturating_sub(gone);
            }
            kept.changed.extend(old);
        }
        self.write().await;
    }

    /// One try with one report.
    async fn send(&self, mut day: DomainDay, intake: &Arc<Intake>, now: Timestamp) {
        let of = (day.day, day.domain.clone());
        let mut due = match std::mem::replace(&mut day.stage, Stage::Counting) {
            Stage::Due(due) => due,
            Stage::Counting | Stage::Sent(_) => Due {
                id: QueueId::new(now),
                first: now,
                next: now,
                tries: 0,
                recipients: Vec::new(),
                error: String::new(),
            },
        };
        due.tries = due.tries.saturating_add(1);
        let tried = self.attempt(&day, &mut due, (intake, now)).await;
        let taken = due.recipients.iter().filter(|one| one.fate == Fate::Taken).map(|one| one.uri.clone());
        let to: Vec<String> = taken.collect();
        let is_given_up = self.parts.calendar.cap(now).since(due.first) >= TRIED_FOR;
        match tried {
            Tried::Unasked => drop(self.put(of, None).await),
            Tried::Later(error) if !is_given_up => {
                due.error = printable(&error).chars().take(ERROR_CHARACTERS_MAX).collect();
                due.next = now.plus(pause_after(due.tries));
                tracing::info!(domain = %of.1, error = due.error, "a TLS report is tried again later");
                day.stage = Stage::Due(due);
                let _ = self.put(of, Some(day)).await;
            }
            Tried::Later(_) | Tried::Over if !to.is_empty() => {
                let (successful, failed) = day.totals();
                tracing::info!(domain = %of.1, to = to.join(" "), "a TLS report was sent");
                ::metrics::counter!(TLS_REPORTS, "result" => "sent").increment(1);
                let sent = Sent { at: now, to, successful, failed };
                let day = DomainDay { policies: Vec::new(), stage: Stage::Sent(sent), ..day };
                let _ = self.put(of, Some(day)).await;
            }
            Tried::Later(_) | Tried::Over => {
                let refused = due.recipients.iter().filter_map(|one| match &one.fate {
                    Fate::Refused(why) => Some(why.as_str()),
                    Fate::Open | Fate::Taken => None,
                });
                let why = refused.chain([due.error.as_str()]).find(|why| !why.is_empty()).unwrap_or_default();
                tracing::warn!(domain = %of.1, why, "a TLS report is given up");
                ::metrics::counter!(TLS_REPORTS, "result" => "given-up").increment(1);
                let _ = self.put(of, None).await;
            }
        }
    }

    async fn attempt(&self, day: &DomainDay, due: &mut Due, (intake, now): (&Arc<Intake>, Timestamp)) -> Tried {
        if day.policies.is_empty() {
            return Tried::Unasked;
        }
        if due.recipients.is_empty() {
            match self.asked(&day.domain, now).await {
                Ok(found) if found.is_empty() => return Tried::Unasked,
                Ok(found) => due.recipients = found,
                Err(error) => return Tried::Later(error),
            }
            // Their ids before anything leaves under them.
            let known = DomainDay { stage: Stage::Due(due.clone()), ..day.clone() };
            if let Err(error) = self.put((day.day, day.domain.clone()), Some(known)).await {
                return Tried::Later(error.to_string());
            }
        }
        let mut last = None;
        for number in 0..due.recipients.len() {
            let Some(recipient) = due.recipients.get(number).filter(|one| one.fate == Fate::Open).cloned() else {
                continue;
            };
            let fate = match whereto(&recipient.uri) {
                Ok(Whereto::Mail(address)) => self.mail((day, due.id), &recipient, &address, (intake, now)).await,
                Ok(Whereto::Post(target)) => self.post((day, due.id), &target).await,
                Err(why) => Ok(Fate::Refused(why)),
            };
            match (fate, due.recipients.get_mut(number)) {
                (Ok(fate), Some(recipient)) => recipient.fate = fate,
                (Err(error), _) => last = Some(format!("{}: {error}", recipient.uri)),
                (Ok(_), None) => {}
            }
        }
        last.map_or(Tried::Over, Tried::Later)
    }

    /// To whom a domain wants its reports; none if it asks for none.
    async fn asked(&self, domain: &Domain, now: Timestamp) -> Result<Vec<Recipient>, String> {
        let Some(name) = name_of(domain) else { return Ok(Vec::new()) };
        match self.parts.resolver.txt(&name).await {
            Ok(records) => {
                let recipient = |uri| Recipient { uri, id: QueueId::new(now), fate: Fate::Open };
                Ok(recipients(&records).into_iter().map(recipient).collect())
            }
            Err(LookupError::NoSuchName | LookupError::NoRecord) => Ok(Vec::new()),
            Err(error) => Err(format!("TXT of {name}: {error}")),
        }
    }

    /// By which virtual IP a report goes by mail, and as whose: a shared one as the instance's own, else that of
    /// the last session as its tenant's. Never by an address that belongs to somebody else.
    pub(super) fn egress(&self, of_session: VipId) -> Result<Egress, String> {
        let all = self.parts.vips.all();
        let shared = all.iter().find(|vip| vip.owner == Owner::Shared);
        let Some(vip) = shared.or_else(|| all.iter().find(|vip| vip.id == of_session)) else {
            return Err("no virtual IP may send it: the one of its sessions is gone, and none is shared".to_owned());
        };
        let tenant = match vip.owner {
            Owner::Tenant(tenant) => tenant,
            Owner::Shared => INSTANCE,
        };
        // RFC 8460 s5.3: a report without a signature is ignored.
        let signed_as = (self.parts.signed_as)(vip, tenant).ok_or_else(|| {
            format!(
                "nothing signs for {}: publish the DKIM records of this instance (postern init shows them)",
                vip.ehlo
            )
        })?;
        Ok(Egress { vip: vip.clone(), tenant, signed_as })
    }

    fn report(&self, (day, id): (&DomainDay, QueueId), submitter: &Domain) -> Result<Vec<u8>, String> {
        let settings = self.settings();
        let by = Submitter { organization: &settings.organization, contact: &settings.contact, domain: submitter };
        let report = Report::of(day, id, &by, &|address| self.seen_as(address));
        report.to_gzip().map_err(|error| error.to_string())
    }

    /// By mail. `Err`: it is tried again.
    async fn mail(
        &self,
        (day, id): (&DomainDay, QueueId),
        recipient: &Recipient,
        to: &crate::mail::Address,
        (intake, now): (&Arc<Intake>, Timestamp),
    ) -> Result<Fate, String> {
        // Accepted by an earlier try whose end was not written.
        match self.parts.store.get(&history_key(recipient.id)) {
            Ok(Some(_)) => return Ok(Fate::Taken),
            Ok(None) => {}
            Err(error) => return Err(error.to_string()),
        }
        let egress = self.egress(day.vip)?;
        let gzip = self.report((day, id), &egress.signed_as)?;
        let settings = self.settings();
        let letter = Letter { day, id, to, gzip: &gzip, organization: &settings.organization };
        match intake.accept_as(recipient.id, letter.submission(&egress, now), now).await {
            Ok(_) => Ok(Fate::Taken),
            Err(refusal) if refusal.reply.severity() == Severity::Permanent => Ok(Fate::Refused(refusal.to_string())),
            Err(refusal) => Err(refusal.to_string()),
        }
    }

    /// By HTTPS (s5.4). `Err`: it is tried again.
    async fn post(&self, (day, id): (&DomainDay, QueueId), target: &Target) -> Result<Fate, String> {
        let submitter = match self.egress(day.vip) {
            Ok(egress) => egress.signed_as,
            // Nobody signs a POST.
            Err(_) => self.parts.vips.get(day.vip).map_or_else(|| day.domain.clone(), |vip| vip.ehlo),
        };
        let gzip = self.report((day, id), &submitter)?;
        let fields = vec![("content-type", "application/tlsrpt+gzip".to_owned())];
        let request = Outgoing { fields, body: Bytes::from(gzip) };
        match self.parts.post.post(&self.line, target, request, POST_PATIENCE).await {
            Ok(answer) if (200..300).contains(&answer.status) => Ok(Fate::Taken),
            Ok(answer) => Err(format!("{} answered {}", target.host(), answer.status)),
            Err(error @ PostError::Private(..)) => Ok(Fate::Refused(error.to_string())),
            Err(error) => Err(error.to_string()),
        }
    }
}

fn is_due(day: &DomainDay, now: Timestamp) -> bool {
    match &day.stage {
        Stage::Counting => day.day < day_of(now) && due_at(day.day, &day.domain) <= now,
        Stage::Due(due) => due.next <= now,
        Stage::Sent(_) => false,
    }
}

fn pause_after(tries: u32) -> Duration {
    let doubled = 1_u32.checked_shl(tries.saturating_sub(1)).unwrap_or(u32::MAX);
    RETRY_FIRST.saturating_mul(doubled).min(RETRY_MAX)
}
