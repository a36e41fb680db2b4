//! Counts what happens to each SMTP account's mail, from the log of events, and decides.
//!
//! An event names a message; whose it is stands in the event of its acceptance or, later and after a
//! restart, in its history record. Easy to get wrong: nothing may be counted before every lookup of
//! the page has succeeded, or a page that is read again counts twice.

use async_trait::async_trait;

use super::watch::{Fact, Return, judge};
use super::{Breaker, Memory, Pause, Stage, watch_key, write_pause};
use crate::accounts::SmtpAccount;
use crate::events::{Event, EventKind, History, MailEvent, Retry, Said, Tally, Urgency, Why, history_key};
use crate::ext::Timestamp;
use crate::mail::{QueueId, SmtpAccountId};
use crate::metrics::ACCOUNTS_TRIPPED;
use crate::records;
use crate::store::{Batch, Change, StoreError, codec};

/// Messages whose account is remembered, at most.
const KNOWN_MAX: usize = 100_000;
/// Who pauses an account whose mail passed a limit.
const BY: &str = "the breaker";

/// One fact about an account's mail.
struct Counted {
    account: SmtpAccountId,
    fact: Fact,
    at: Timestamp,
}

#[async_trait]
impl Tally for Breaker {
    fn name(&self) -> &'static str {
        "breaker"
    }

    fn take(&self, events: &[Event]) -> Result<Urgency, Retry> {
        let facts = self.facts(events)?;
        let mut urgency = Urgency::WhenDue;
        for counted in facts {
            // An account that was removed meanwhile has no mail to judge.
            let Some(account) = self.accounts.smtp_account(counted.account) else { continue };
            if self.count(&account, &counted) {
                urgency = Urgency::Now;
            }
        }
        Ok(urgency)
    }

    async fn keep(&self, mut batch: Batch) -> Result<(), Retry> {
        let turn = self.desk.turn().await;
        let (changed, tripped) = {
            let mut memory = records::lock(&self.memory);
            (std::mem::take(&mut memory.changed), std::mem::take(&mut memory.tripped))
        };
        for account in &tripped {
            if let Some(pause) = self.pause_of(*account) {
                write_pause(&mut batch, &pause);
            }
        }
        {
            let (mut memory, now) = (records::lock(&self.memory), Timestamp::now());
            for account in &changed {
                batch.changes.push(memory.stored(*account, now));
            }
        }
        let committed = turn.commit(batch, || {}).await;
        if committed.is_err() {
            let mut memory = records::lock(&self.memory);
            memory.changed.extend(changed);
            memory.tripped.extend(tripped);
        }
        Ok(committed?)
    }
}

impl Memory {
    /// The change that stores a watch, or removes one with nothing in it.
    fn stored(&mut self, account: SmtpAccountId, now: Timestamp) -> Change {
        match self.watches.get(&account) {
            Some(watch) if !watch.is_empty(now) => Change::Set(watch_key(account), codec::encode(watch)),
            _ => {
                self.watches.remove(&account);
                Change::Remove(watch_key(account))
            }
        }
    }
}

impl Breaker {
    /// What the events say about accounts. Changes nothing that counts.
    fn facts(&self, events: &[Event]) -> Result<Vec<Counted>, Retry> {
        let mut facts = Vec::new();
        for event in events {
            let EventKind::Mail(id, told) = &event.kind else { continue };
            if let MailEvent::Accepted(accepted) = told {
                self.remember(*id, accepted.account);
            }
            let Some(fact) = fact(*id, told) else { continue };
            if let Some(account) = self.account_of(*id)? {
                facts.push(Counted { account, fact, at: event.at });
            }
        }
        Ok(facts)
    }

    fn remember(&self, id: QueueId, account: Option<SmtpAccountId>) {
        let mut memory = records::lock(&self.memory);
        if memory.known.len() >= KNOWN_MAX {
            memory.known.clear();
        }
        memory.known.insert(id, account);
    }

    fn account_of(&self, id: QueueId) -> Result<Option<SmtpAccountId>, Retry> {
        if let Some(account) = records::lock(&self.memory).known.get(&id) {
            return Ok(*account);
        }
        let read = self.desk.store().get(&history_key(id));
        let read = read.and_then(|bytes| bytes.map(|bytes| History::from_bytes(&bytes)).transpose());
        let account = match read {
            Ok(history) => history.and_then(|history| history.entry).and_then(|entry| entry.account),
            // It stays damaged: the other mail is counted.
            Err(StoreError::Damaged(_)) => None,
            Err(error @ StoreError::Failed(_)) => return Err(Retry(error.to_string())),
        };
        self.remember(id, account);
        Ok(account)
    }

    /// Counts a fact; whether it paused the account.
    fn count(&self, account: &SmtpAccount, counted: &Counted) -> bool {
        let limits = self.limits_of(account);
        let is_paused = self.pause_of(account.id).is_some();
        let cause = {
            let mut memory = records::lock(&self.memory);
            memory.changed.insert(account.id);
            let watch = memory.watches.entry(account.id).or_default();
            watch.count(counted.fact, counted.at);
            let cause = judge(&watch.figures(counted.at), &limits);
            let is_waived = memory.waivers.get(&account.id).is_some_and(|waiver| waiver.holds(counted.at));
            let cause = cause.filter(|_| !is_waived && !is_paused);
            if cause.is_some() {
                memory.tripped.push(account.id);
            }
            cause
        };
        let Some(cause) = cause else { return false };
        metrics::counter!(ACCOUNTS_TRIPPED, "cause" => cause.word()).increment(1);
        tracing::warn!(login = account.login, %cause, "an SMTP account is paused: nothing of it is taken or sent");
        let pause = Pause {
            account: account.id,
            tenant: account.tenant,
            login: account.login.clone(),
            cause,
            by: BY.to_owned(),
            since: counted.at,
            stage: Stage::Holding,
        };
        records::write(&self.pauses).insert(account.id, pause);
        self.changed.notify_one();
        true
    }
}

/// What an event counts as.
fn fact(id: QueueId, told: &MailEvent) -> Option<Fact> {
    let count = |recipients: &[u16]| u64::try_from(recipients.len()).unwrap_or(u64::MAX);
    match told {
        MailEvent::Accepted(_) => Some(Fact::Accepted),
        MailEvent::Delivered { recipients, .. } => Some(Fact::Delivered(count(recipients))),
        MailEvent::Bounced { recipients, why, detail, .. } => Some(match why {
            // Of several recipients at once it is not known who is gone.
            Why::RecipientGone if !Said::read(detail).is_of_each(recipients.len()) => Fact::GivenUp(count(recipients)),
            Why::RecipientGone | Why::NoSuchDomain => Fact::Gone(count(recipients)),
            Why::PolicyOrReputation | Why::Content => Fact::Blocked(count(recipients)),
            _ => Fact::GivenUp(count(recipients)),
        }),
        MailEvent::BouncedLater { recipients, why, .. } => {
            let as_what = match why {
                Why::RecipientGone | Why::NoSuchDomain => Return::Gone,
                Why::PolicyOrReputation | Why::Content => Return::Blocked,
                _ => return None,
            };
            Some(Fact::Returned { count: count(recipients), as_what, accepted: id.made() })
        }
        MailEvent::Expired { recipients, .. } => Some(Fact::GivenUp(count(recipients))),
        MailEvent::Complained { recipients, .. } => Some(Fact::Complained(count(recipients))),
        _ => None,
    }
}
