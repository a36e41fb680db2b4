//! How what comes back is connected: its room, its door, the marks of what goes out, the feed of suppressions.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

use super::StartError;
use super::rooms::Rooms;
use super::world::World;
use crate::config::{Config, FeedbackDoor};
use crate::delivery::{Action, Phase, ReplyRules, ReturnAddress, read_reply};
use crate::domains::{Domains, Expected};
use crate::events::Bell;
use crate::ext::Timestamp;
use crate::feedback::{self, Feedback};
use crate::mail::Domain;
use crate::net::{self, Certificates};
use crate::pipeline::{Marks, MarksLookup};
use crate::seal::MasterKey;
use crate::store::Store;
use crate::submission::{self, Arrival, Reception};
use crate::suppression::{Feed, Suppression};
use crate::vips::{Vip, Vips};

/// The room, and what it and the domains ask of each other.
pub(super) async fn open(
    config: &Config,
    (store, key): (Arc<dyn Store>, &MasterKey),
    (domains, vips, world): (&Arc<Domains>, &Arc<Vips>, &World),
    bell: &Bell,
) -> Result<Arc<Feedback>, StartError> {
    let (all, hostname) = (Arc::clone(vips), config.hostname.clone());
    domains.expect_return_paths(Arc::new(move |tenant| expected(&all.all(), tenant, &hostname)));
    let rules = Arc::clone(&config.delivery.replies);
    let parts = feedback::Parts {
        store,
        domains: Arc::clone(domains),
        vips: Arc::clone(vips),
        resolver: Arc::clone(&world.resolver),
        judge: Arc::new(move |reply| rules.judge(reply, Phase::Rcpt, None).class.why()),
        hostname: config.hostname.clone(),
        bell: bell.clone(),
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
    let addresses = own().flat_map(|vip| {
        let ipv4 = vip.public_ipv4.or(vip.ipv4).map(std::net::IpAddr::V4);
        let ipv6 = vip.public_ipv6.or(vip.ipv6).map(std::net::IpAddr::V6);
        ipv4.into_iter().chain(ipv6)
    });
    // What cannot be seen from outside, SPF need not name.
    Expected { names, addresses: addresses.filter(|address| net::is_public(*address)).collect() }
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

/// The consumer that puts recipients on the list, by the rules for replies.
pub(super) fn feed(suppression: &Arc<Suppression>, rules: &Arc<ReplyRules>) -> Feed {
    let rules = Arc::clone(rules);
    Feed::new(Arc::clone(suppression), Arc::new(move |detail| suppresses(&rules, detail)))
}

/// The trail adds to a reply in which phase it came: what is said of a message as a whole suppresses nobody.
fn suppresses(rules: &ReplyRules, detail: &str) -> bool {
    let (said, phase) = match detail.rsplit_once(" (after ") {
        Some((said, phase)) => (said, phase.strip_suffix(')').and_then(Phase::described)),
        None => (detail, Some(Phase::Rcpt)),
    };
    // The trail has a reply's lines as they were said.
    let (Ok(reply), Some(phase)) = (read_reply(&said.replace('\n', " / ")), phase) else { return false };
    rules.judge(&reply, phase, None).action == Action::Suppress
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

    #[test]
    fn only_what_is_said_of_one_recipient_for_good_suppresses() {
        let rules = ReplyRules::built_in();
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
            assert_eq!(suppresses(&rules, detail), expected, "{detail}");
        }
    }
}
