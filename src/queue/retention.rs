//! Forgetting: history records of messages that are done and older than the retention, and erasing
//! one message's addresses on request.
//!
//! Queue ids begin with the time they were made, so the records to forget come first in their range.
//! Easy to get wrong: a message still owed keeps its history, however old it is. Whoever remembers
//! history records in memory drops one when it reads the audit event [`ERASE_ACT`] of that message.

use super::Queue;
use super::filter::first_id;
use super::key;
use super::show::may_by_history;
use crate::access::{Action, Actor};
use crate::events::{ERASE_ACT, ERASED, History, history_key};
use crate::ext::Timestamp;
use crate::mail::{Address, Domain, QueueId, ReversePath, TenantId};
use crate::records::{Act, AdminError, record};
use crate::store::{Batch, CommitError, Key, prefix};

use super::settle::refused;

/// Records forgotten in one batch, at most.
const FORGOTTEN_AT_ONCE: usize = 1_000;

impl Queue {
    /// Removes history records of finished messages accepted before `before`; returns how many.
    pub async fn forget_histories(&self, before: Timestamp) -> Result<usize, CommitError> {
        let end = first_of(before);
        let mut from: Key = vec![prefix::HISTORY];
        let mut forgotten = 0;
        loop {
            let page = self.store.range(&from, &end, FORGOTTEN_AT_ONCE).map_err(refused)?;
            let Some((last, _)) = page.last() else { return Ok(forgotten) };
            from.clone_from(last);
            from.push(0);
            let mut batch = Batch::new();
            for (own, _) in page {
                let owed = match key::id_of(&own) {
                    Some(id) => self.store.get(&key::message(id)).map_err(refused)?.is_some(),
                    None => false,
                };
                if !owed {
                    batch.remove(own);
                }
            }
            if !batch.changes.is_empty() {
                forgotten += batch.changes.len();
                self.store.commit(batch).await?;
            }
        }
    }

    /// Removes history records of finished messages of some tenants: those accepted before the moment that
    /// `before` names for their tenant. Reads every record that was accepted before `latest`; returns how many
    /// went.
    pub async fn forget_histories_of(
        &self,
        before: &(dyn Fn(TenantId) -> Option<Timestamp> + Sync),
        latest: Timestamp,
    ) -> Result<usize, CommitError> {
        let end = first_of(latest);
        let mut from: Key = vec![prefix::HISTORY];
        let mut forgotten = 0;
        loop {
            let page = self.store.range(&from, &end, FORGOTTEN_AT_ONCE).map_err(refused)?;
            let Some((last, _)) = page.last() else { return Ok(forgotten) };
            from.clone_from(last);
            from.push(0);
            let mut batch = Batch::new();
            for (own, bytes) in page {
                let Ok(history) = History::from_bytes(&bytes) else { continue };
                let is_over = before(history.tenant).is_some_and(|moment| history.accepted < moment);
                let Some(id) = key::id_of(&own).filter(|_| is_over) else { continue };
                if self.store.get(&key::message(id)).map_err(refused)?.is_none() {
                    batch.remove(own);
                }
            }
            if !batch.changes.is_empty() {
                forgotten += batch.changes.len();
                self.store.commit(batch).await?;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Removes the history records of these messages, as far as they are finished; returns of which.
    pub async fn forget(&self, ids: &[QueueId]) -> Result<Vec<QueueId>, CommitError> {
        let (mut batch, mut forgotten) = (Batch::new(), Vec::new());
        for id in ids {
            if self.store.get(&key::message(*id)).map_err(refused)?.is_none() {
                batch.remove(history_key(*id));
                forgotten.push(*id);
            }
        }
        if !forgotten.is_empty() {
            self.store.commit(batch).await?;
        }
        Ok(forgotten)
    }

    /// Overwrites the addresses and header facts of a finished message; its events name numbers, and
    /// what peers said is in them without the message's addresses. A notice about the message is a
    /// message of its own.
    pub async fn erase(&self, actor: &Actor, id: QueueId, now: Timestamp) -> Result<(), AdminError> {
        let _lock = self.locks.lock(id).await;
        let history = self.history(id)?.ok_or_else(|| AdminError::Missing(format!("message {id}")))?;
        may_by_history(actor, Action::Write, &history)?;
        actor.require_fresh(now)?;
        if self.message(id)?.is_some() {
            return Err(AdminError::Invalid(format!("message {id} is still owed: cancel it first")));
        }
        let (local, domain) = ERASED;
        let erased = Domain::parse(domain)
            .and_then(|domain| Address::from_parts(local.to_owned(), domain))
            .map_err(|error| AdminError::Invalid(error.to_string()))?;
        let recipients = vec![erased; history.recipients.len()];
        let empty = History {
            reverse_path: ReversePath(None),
            header_from: String::new(),
            subject: String::new(),
            message_id: String::new(),
            recipients,
            labels: history.labels.clone().without_metadata(),
            returns: None,
            ..history
        };
        let mut batch = Batch::new();
        batch.set(history_key(id), empty.to_bytes());
        record(&mut batch, actor, Act::new(ERASE_ACT, id.to_string()).of(history.tenant), now);
        self.commit(batch).await?;
        Ok(())
    }
}

/// The first key that a history record made at `moment` can have.
fn first_of(moment: Timestamp) -> Key {
    history_key(first_id(moment))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::access::Role;
    use crate::calendar::Calendar;
    use crate::events::{EventKind, MailEvent, Why};
    use crate::mail::Reply;
    use crate::queue::tests::{Bench, WALL, all, delivered, message, peer};
    use crate::queue::{Onward, Outcome};
    use crate::store::Store as _;

    #[tokio::test]
    async fn histories_are_forgotten_after_their_time_but_not_while_owed() {
        let bench = Bench::new().await;
        let (done, owed) = (message(&["a@one.example"]), message(&["a@two.example"]));
        let (done_id, owed_id) = (done.id, owed.id);
        bench.queue.enqueue(done, WALL).await.unwrap();
        let claim = bench.claim_all().remove(0);
        let outcomes = all(&claim, &delivered());
        bench.queue.settle(claim, outcomes, WALL).await.unwrap();
        bench.queue.enqueue(owed, WALL).await.unwrap();
        assert_eq!(bench.queue.forget_histories(WALL).await, Ok(0));
        assert_eq!(bench.queue.forget_histories(Timestamp(WALL.0 + 1)).await, Ok(1));
        assert_eq!(bench.queue.history(done_id), Ok(None));
        assert!(bench.queue.history(owed_id).unwrap().is_some());
    }

    #[tokio::test]
    async fn a_clock_ten_years_ahead_forgets_no_history_until_it_is_believed() {
        let mut bench = Bench::new().await;
        let (done, jumped) = (message(&["a@one.example"]), WALL.plus(Duration::from_secs(3_650 * 86_400)));
        let id = done.id;
        bench.queue.enqueue(done, WALL).await.unwrap();
        let claim = bench.claim_all().remove(0);
        let outcomes = all(&claim, &delivered());
        bench.queue.settle(claim, outcomes, WALL).await.unwrap();
        for (calendar, is_kept) in [(Calendar::resume(None, WALL), true), (Calendar::default(), false)] {
            bench.queue = bench.queue.with_calendar(calendar);
            bench.queue.forget_old(jumped).await;
            assert_eq!(bench.queue.history(id).unwrap().is_some(), is_kept);
        }
    }

    /// Every record whose value holds `text`, in any case.
    fn holding(bench: &Bench, text: &str) -> Vec<String> {
        let all = bench.store.range(&[0], &[u8::MAX], usize::MAX).unwrap();
        let holds = |value: &[u8]| String::from_utf8_lossy(value).to_ascii_lowercase().contains(text);
        let found = all.into_iter().filter(|(_, value)| holds(value));
        found.map(|(key, _)| String::from_utf8_lossy(&key).into_owned()).collect()
    }

    #[tokio::test]
    async fn erasing_is_one_overwrite_also_if_peers_have_quoted_the_addresses() {
        let bench = Bench::new().await;
        let new = message(&["Anna.Weber@one.example", "bob@one.example"]);
        let id = new.id;
        bench.queue.enqueue(new, WALL).await.unwrap();
        let quoting = "<anna.weber@ONE.example> bob@one.example (from SHOP@shop.example)";
        let outcomes = [
            Outcome::Deferred { why: Why::TryLater, detail: format!("451 {quoting}"), peer: Some(peer()) },
            Outcome::Bounced { why: Why::RecipientGone, detail: format!("550 {quoting}"), peer: Some(peer()) },
        ];
        for outcome in outcomes {
            bench.pass(4 * 3_600_000);
            let claim = bench.claim_all().remove(0);
            let outcomes = all(&claim, &outcome);
            bench.queue.settle(claim, outcomes, WALL).await.unwrap();
        }
        let details = bench.mail_events().into_iter().filter_map(|event| match event {
            MailEvent::Deferred { detail, recipients, .. } | MailEvent::Bounced { detail, recipients, .. } => {
                Some((detail, recipients))
            }
            _ => None,
        });
        let kept = "<recipient> <recipient> (from <sender>)";
        let both = vec![0, 1];
        assert_eq!(
            details.collect::<Vec<_>>(),
            [(format!("451 {kept}"), both.clone()), (format!("550 {kept}"), both)],
            "outcomes that differ in nothing else are still one event"
        );
        bench.pass(3_600_000);
        let notice = bench.queue.owed_notices(1).unwrap().remove(0);
        let told = notice.recipients[0].last_detail.clone().unwrap();
        assert_eq!(told, format!("550 {quoting}"), "the sender is told the whole reply");
        bench.queue.drop_notice(&notice, WALL).await.unwrap();
        assert_eq!(holding(&bench, "weber").len(), 1, "the history record alone");
        bench.queue.erase(&Actor::local(0), id, WALL).await.unwrap();
        for word in ["weber", "bob@", "shop@shop"] {
            assert_eq!(holding(&bench, word), Vec::<String>::new(), "{word}");
        }
    }

    #[tokio::test]
    async fn a_reply_to_a_delivery_is_kept_without_addresses_too() {
        let bench = Bench::new().await;
        bench.queue.enqueue(message(&["a@one.example"]), WALL).await.unwrap();
        let claim = bench.claim_all().remove(0);
        let reply = Reply::enhanced(250, 0, 0, "<A@one.example> ok, queued as 4F2@mx");
        let outcome = Outcome::Delivered { peer: peer(), reply, onward: Onward::Ourselves };
        let outcomes = all(&claim, &outcome);
        bench.queue.settle(claim, outcomes, WALL).await.unwrap();
        let replies = bench.mail_events().into_iter().filter_map(|event| match event {
            MailEvent::Delivered { reply, .. } => Some(reply.one_line()),
            _ => None,
        });
        assert_eq!(replies.collect::<Vec<_>>(), ["250 2.0.0 <recipient> ok, queued as 4F2@mx"]);
    }

    #[tokio::test]
    async fn whoever_may_not_write_erases_nothing() {
        let bench = Bench::new().await;
        let new = message(&["a@one.example"]);
        let (id, tenant) = (new.id, new.tenant);
        bench.queue.enqueue(new, WALL).await.unwrap();
        let claim = bench.claim_all().remove(0);
        let outcomes = all(&claim, &delivered());
        bench.queue.settle(claim, outcomes, WALL).await.unwrap();
        for role in [Role::Analyst(tenant), Role::Support(tenant), Role::TenantOwner(TenantId(77))] {
            let refused = bench.queue.erase(&Actor::of("x", role), id, WALL).await;
            assert!(matches!(refused, Err(AdminError::Forbidden(_))), "{refused:?}");
        }
        assert_eq!(bench.queue.history(id).unwrap().unwrap().recipients[0].to_string(), "a@one.example");
        let unknown = bench.queue.erase(&Actor::local(0), QueueId([9; 16]), WALL).await;
        assert!(matches!(unknown, Err(AdminError::Missing(_))), "{unknown:?}");
        bench.queue.erase(&Actor::of("x", Role::Developer(tenant)), id, WALL).await.unwrap();
        let acts = bench.events().into_iter().filter_map(|event| match event {
            EventKind::Audit(audit) => Some((audit.act, audit.subject)),
            _ => None,
        });
        assert_eq!(acts.collect::<Vec<_>>(), [(ERASE_ACT.to_owned(), id.to_string())]);
    }

    #[tokio::test]
    async fn erasing_leaves_numbers_only_and_not_what_is_owed() {
        let bench = Bench::new().await;
        let new = message(&["a@one.example"]);
        let id = new.id;
        bench.queue.enqueue(new, WALL).await.unwrap();
        let admin = Actor::local(0);
        assert!(matches!(bench.queue.erase(&admin, id, WALL).await, Err(AdminError::Invalid(_))));
        let claim = bench.claim_all().remove(0);
        let outcomes = all(&claim, &delivered());
        bench.queue.settle(claim, outcomes, WALL).await.unwrap();
        bench.queue.erase(&admin, id, WALL).await.unwrap();
        let history = bench.queue.history(id).unwrap().unwrap();
        assert_eq!(history.recipients[0].to_string(), "erased@erased.invalid");
        assert_eq!(history.reverse_path, ReversePath(None));
    }
}
