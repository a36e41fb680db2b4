//! How what comes back is connected: its room, its door, the marks of what goes out, the feed of suppressions.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

use super::StartError;
use super::rooms::Rooms;
use super::world::World;
use crate::calendar::Calendar;
use crate::config::{Config, FeedbackDoor};
use crate::delivery::{self, Action, Complaints, Pacing, Phase, Provider, Providers, ReturnAddress, read_reply};
use crate::domains::{Domains, Expected};
use crate::events::{Bell, Said, Tally};
use crate::ext::Timestamp;
use crate::feedback::{self, Feedback};
use crate::mail::Domain;
use crate::net::{self, Certificates};
use crate::pipeline::{Marks, MarksLookup};
use crate::queue::Queue;
use crate::seal::MasterKey;
use crate::store::Store;
use crate::submission::{self, Arrival, Reception};
use crate::suppression::{Failure, Feed, Suppression};
use crate::vips::{Vip, Vips};

/// Which provider a domain's mail was seen to go to.
type Seen<'s> = &'s dyn Fn(&Domain) -> Option<Arc<str>>;
/// What delivery is set to now.
pub(super) type SettingsNow = watch::Receiver<Arc<delivery::Settings>>;

/// The room, and what it and the domains ask of each other.
pub(super) async fn open(
    config: &Config,
    (store, key): (Arc<dyn Store>, &MasterKey),
    (domains, vips, world): (&Arc<Domains>, &Arc<Vips>, &World),
    (bell, settings, pacing, calendar): (&Bell, &SettingsNow, &Arc<Pacing>, &Calendar),
) -> Result<Arc<Feedback>, StartError> {
    let (all, hostname) = (Arc::clone(vips), config.hostname.clone());
    domains.expect_return_paths(Arc::new(move |tenant| expected(&all.all(), tenant, &hostname)));
    let (settings, pacing, seen) = (settings.clone(), Arc::clone(pacing), Arc::clone(pacing));
    let parts = feedback::Parts {
        store,
        domains: Arc::clone(domains),
        vips: Arc::clone(vips),
        resolver: Arc::clone(&world.resolver),
        judge: Arc::new(move |reply, domain, reporter| {
            let now = Arc::clone(&settings.borrow());
            let seen = |domain: &Domain| seen.provider_of(domain);
            let provider = provider_of_notice(&now.providers, reporter, (domain, &seen));
            now.replies.judge(reply, Phase::Rcpt, provider.as_deref()).class.why()
        }),
        speaks_for: Arc::new(move |reporter, domain| {
            let providers = pacing.providers();
            let provider = pacing.site_of(domain).and_then(|site| providers.named(&site));
            provider.is_some_and(|provider| provider.speaks_as(reporter.as_str()))
        }),
        hostname: config.hostname.clone(),
        bell: bell.clone(),
        calendar: calendar.clone(),
    };
    let opened = Feedback::open(parts, key, config.feedback.room.clone()).await;
    opened.map(Arc::new).map_err(|error| match error {
        feedback::KeyError::Seal(_) => StartError::Configuration(error.to_string()),
        error => StartError::Unavailable(error.to_string()),
    })
}

/// What the records of a tenant's return-paths must lead to: our names, and the public addresses its mail leaves by.
fn expected(all: &[Vip], tenant: crate::mail::TenantId, hostname: &Domain) -> Expected {
    let own = || all.iter().filter(|vip| vip.serves(tenant));
    let mut names: Vec<Domain> = own().map(|vip| vip.ehlo.clone()).collect();
    names.push(hostname.clone());
    names.dedup();
    // What cannot be seen from outside, SPF need not name.
    let addresses = own().flat_map(Vip::public_addresses).filter(|address| net::is_public(*address)).collect();
    Expected { names, addresses, ..Expected::default() }
}

/// What marks mail of domains that have return-paths.
pub(super) fn marks(domains: &Arc<Domains>, feedback: &Arc<Feedback>) -> MarksLookup {
    let (domains, feedback) = (Arc::clone(domains), Arc::clone(feedback));
    Arc::new(move |tenant, domain, id| {
        let return_path = domains.return_name(tenant, domain)?;
        let unsubscribe = feedback.unsubscribe_address(id, 0, &return_path);
        Some(Marks { trace: feedback.trace(id), unsubscribe, return_path })
    })
}

/// What is said in MAIL.
pub(super) fn return_address(feedback: &Arc<Feedback>) -> ReturnAddress {
    let feedback = Arc::clone(feedback);
    Arc::new(move |id, number, name| feedback.return_address(id, number, name))
}

/// The consumer that puts recipients on the list, by the rules for replies as they are now.
pub(super) fn feed(suppression: &Arc<Suppression>, settings: &SettingsNow, pacing: &Arc<Pacing>) -> Feed {
    let (settings, pacing) = (settings.clone(), Arc::clone(pacing));
    let seen = move |domain: &Domain| pacing.provider_of(domain);
    Feed::new(Arc::clone(suppression), Arc::new(move |failure| suppresses(&settings.borrow(), failure, &seen)))
}

/// What counts complaints for warm-ups.
pub(super) fn complaints(pacing: &Arc<Pacing>, queue: &Arc<Queue>) -> Arc<dyn Tally> {
    let queue = Arc::clone(queue);
    Arc::new(Complaints::new(Arc::clone(pacing), Arc::new(move || queue.now())))
}

/// Whether a reply is of this recipient for good, as its provider means it.
fn suppresses(settings: &delivery::Settings, failure: &Failure<'_>, seen: Seen<'_>) -> bool {
    let said = Said::read(failure.detail);
    if !said.is_of_each(failure.recipients) {
        return false;
    }
    // What came back later is judged as if it had been said at once.
    let phase = said.after.map_or(Some(Phase::Rcpt), Phase::described);
    // The trail has a reply's lines as they were said.
    let (Ok(reply), Some(phase)) = (read_reply(&said.reply.replace('\n', " / ")), phase) else { return false };
    let provider = match said.after {
        Some(_) => settings.providers.of_hosts(std::iter::once(failure.host)).map(|known| Arc::clone(&known.name)),
        None => provider_of_notice(&settings.providers, failure.host, (Some(failure.domain), seen)),
    };
    settings.replies.judge(&reply, phase, provider.as_deref()).action == Action::Suppress
}

/// Whose words a notice has that came back: by the host that wrote it, else by the recipient's domain, which may be
/// listed or was `seen` to go there.
fn provider_of_notice(
    known: &Providers,
    reporter: &str,
    (domain, seen): (Option<&Domain>, Seen<'_>),
) -> Option<Arc<str>> {
    let name = |provider: &Provider| Arc::clone(&provider.name);
    let by_host = known.of_hosts(std::iter::once(reporter).filter(|host| !host.is_empty()));
    by_host.map(name).or_else(|| {
        let domain = domain?;
        known.of_domain(domain.as_str()).map(name).or_else(|| seen(domain))
    })
}

/// The door, unless it is never open.
pub(super) fn door(
    config: &Config,
    rooms: &Rooms,
    (certificates, drafts_folder): (&Arc<Certificates>, &Path),
) -> Option<submission::Parts> {
    let settings = &config.feedback;
    let (domains, feedback) = (Arc::clone(&rooms.domains), Arc::clone(&rooms.feedback));
    let is_open: Arc<dyn Fn() -> bool + Send + Sync> = match settings.door {
        FeedbackDoor::Off => return None,
        FeedbackDoor::On => Arc::new(|| true),
        FeedbackDoor::Auto => Arc::new(move || domains.has_return_paths()),
    };
    let (senders, recipients) = (Arc::clone(&feedback), Arc::clone(&feedback));
    let reception = Reception {
        is_open,
        addresses: settings.listen.clone(),
        hostname: config.hostname.clone(),
        sender: Arc::new(move |path| senders.sender(path)),
        recipient: Arc::new(move |peer, path, now| recipients.recipient(peer, &path.address, now)),
        accept: Arc::new(move |arrival, now| {
            let feedback = Arc::clone(&feedback);
            Box::pin(accept(feedback, arrival, now))
        }),
    };
    Some(submission::Parts {
        // Nothing of it changes while the daemon runs.
        settings: watch::channel(Arc::new(settings.submission.clone())).1,
        gate: Arc::clone(&rooms.gate),
        duty: submission::Duty::Reception(reception),
        vips: Arc::clone(&rooms.vips),
        certificates: Arc::clone(certificates),
        drafts_folder: PathBuf::from(drafts_folder),
        tracer: Arc::clone(&rooms.tracer),
        given_sockets: Vec::new(),
    })
}

async fn accept(feedback: Arc<Feedback>, arrival: Arrival, now: Timestamp) -> Result<(), crate::mail::Refusal> {
    let Arrival { envelope, draft, helo, peer, vip } = arrival;
    feedback.accept(feedback::Arrival { envelope, draft, helo, peer, vip }, now).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::ReplyRules;
    use crate::events::{Consumer as _, Event, EventKind, History, MailEvent, Why, history_key};
    use crate::mail::{Address, Labels, QueueId, ReversePath, TenantId};
    use crate::queue::QueueTime;
    use crate::store::{Batch, MemoryStore};

    fn is_suppressed(settings: &delivery::Settings, detail: &str, host: &str, recipients: usize) -> bool {
        let domain = Domain::parse("there.example").unwrap();
        suppresses(settings, &Failure { detail, host, domain: &domain, recipients }, &|_| None)
    }

    #[test]
    fn only_what_is_said_of_one_recipient_for_good_suppresses() {
        let settings = delivery::Settings::default();
        for (detail, expected) in [
            ("550 5.1.1 <recipient> no such user (after RCPT)", true),
            (
                "550-5.1.1 The email account that you tried to reach\n550-5.1.1 does not exist.\n550 5.1.1 gsmtp (after RCPT)",
                true,
            ),
            ("550 5.1.1 came back later", true),
            ("550 5.1.1 no such user (after MAIL)", false),
            ("552 5.2.2 mailbox full (after RCPT)", false),
            ("550 5.7.1 Client host blocked using Spamhaus (after RCPT)", false),
            ("450 4.2.1 later (after RCPT)", false),
            ("no reply in time after RCPT", false),
        ] {
            assert_eq!(is_suppressed(&settings, detail, "mx.there.example", 1), expected, "{detail}");
        }
    }

    #[test]
    fn a_reply_to_a_whole_transaction_stops_nobody_but_whom_it_names() {
        let settings = delivery::Settings::default();
        let gone = "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient <recipient> not found";
        let of = |words: &str, recipients| {
            is_suppressed(&settings, &format!("{gone} ({words})"), "mx.x.example", recipients)
        };
        assert!(of("after final dot", 1), "there was only one");
        assert!(!of("after final dot", 2) && !of("after DATA", 2), "recorded before replies told their number");
        assert!(!of("after final dot for 2 recipients", 1) && !of("after final dot for 2 recipients", 2));
        assert!(of("after final dot, naming the recipient", 1) && of("after final dot, naming the recipient", 2));
        assert!(of("after RCPT", 2), "each was told it");
    }

    #[test]
    fn a_reply_means_what_its_own_provider_means_by_it() {
        let settings = delivery::Settings::default();
        let said = "550 Requested action not taken: mailbox unavailable (after RCPT)";
        assert!(is_suppressed(&settings, said, "hotmail-com.olc.protection.outlook.com", 1));
        assert!(is_suppressed(&settings, said, "mx00.gmx.net", 1));
        assert!(
            !is_suppressed(&settings, said, "gmail-smtp-in.l.google.com", 1),
            "a rule of Microsoft's is not Google's"
        );
        assert!(!is_suppressed(&settings, said, "mx.there.example", 1), "and nobody else's");
        let later = "550 Requested action not taken: mailbox unavailable";
        let microsoft = |_: &Domain| Some("microsoft-consumer".into());
        let domain = Domain::parse("there.example").unwrap();
        let failure = Failure { detail: later, host: "gateway.there.example", domain: &domain, recipients: 1 };
        assert!(suppresses(&settings, &failure, &microsoft), "where its mail was seen to go");
        assert!(!suppresses(&settings, &failure, &|_| None));
        let live = Domain::parse("hotmail.com").unwrap();
        assert!(suppresses(&settings, &Failure { domain: &live, ..failure }, &|_| None));
    }

    #[tokio::test]
    async fn rules_that_are_read_anew_hold_for_what_comes_back_too() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let settings = watch::Sender::new(Arc::new(delivery::Settings::default()));
        let pacing = Arc::new(Pacing::open(Arc::clone(&store), &settings.borrow(), QueueTime(0)).unwrap());
        let list = Arc::new(Suppression::open(Arc::clone(&store)));
        let feed = feed(&list, &settings.subscribe(), &pacing);
        let bounced = async |to: &str| {
            let (id, now) = (QueueId::new(Timestamp::now()), Timestamp::now());
            let history = History {
                tenant: TenantId(1),
                accepted: now,
                reverse_path: ReversePath(None),
                header_from: String::new(),
                subject: String::new(),
                message_id: String::new(),
                recipients: vec![Address::parse(to).unwrap()],
                labels: Labels::default(),
                entry: None,
                returns: None,
                signed: None,
            };
            let mut batch = Batch::new();
            batch.set(history_key(id), history.to_bytes());
            store.commit(batch).await.unwrap();
            let detail = "550 5.1.1 Our dear partner says no such user (after RCPT)".to_owned();
            let told = MailEvent::Bounced { recipients: vec![0], peer: None, why: Why::RecipientGone, detail };
            feed.consume(&[Event { at: now, kind: EventKind::Mail(id, told) }]).await.unwrap();
            list.contains(TenantId(1), None, &Address::parse(to).unwrap(), Timestamp::now()).unwrap()
        };
        assert!(bounced("ann@partner.example").await);
        let rule =
            "[[rule]]\ncode = \"550\"\ntext = [\"our dear partner\"]\nclass = \"recipient-gone\"\naction = \"give-up\"";
        let replies = ReplyRules::with(rule).unwrap();
        settings.send_replace(Arc::new(delivery::Settings { replies, ..delivery::Settings::default() }));
        assert!(!bounced("bob@partner.example").await);
    }
}
