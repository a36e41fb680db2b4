//! What comes back: return-paths with keyed tags, and what arrives at them and at postmaster, abuse and fbl.
//!
//! Recipe: [`Feedback::return_address`] for each recipient of a message that has a return-path; for mail that
//! arrives, [`Feedback::recipient`] at RCPT and [`Feedback::accept`] at its end, which returns after what it
//! means is on disk; [`Feedback::run`] tells clients of what came later, and forwards. It never passes mail on
//! for anybody else. Easy to get wrong: a tag proves that we sent a message, never who reports about it now, so
//! a complaint counts only if its reporter's signature proves it too.

mod arrival;
mod key;
mod mailbox;
mod onward;
mod tag;
mod verdict;

use std::net::IpAddr;
use std::sync::{Arc, OnceLock, RwLock, Weak};
use std::time::Duration;

use crate::calendar::Calendar;
use crate::domains::{Domains, INSTANCE};
use crate::events::{Bell, Why};
use crate::ext::Timestamp;
use crate::intake::Intake;
use crate::mail::{Address, Domain, QueueId, Refusal, Reply, ReversePath, TenantId, VipId};
use crate::metrics::FEEDBACK;
use crate::net::Resolver;
use crate::records;
use crate::store::Store;
use crate::vips::{Owner, Vip, Vips};

pub use arrival::Arrival;
// For tests/fuzz only, see docs/how-to/fuzz.md; not part of the face.
#[doc(hidden)]
pub use key::Record as TagKeyRecord;
pub use key::{KeyError, reseal};
pub use mailbox::{Letter, LetterPage};
#[doc(hidden)]
pub use onward::Onward;
pub use tag::{KEY_OCTETS, Purpose, TagError, Tagged, Tags};

use mailbox::Mailbox;
use tag::Purpose::{Return, Unsubscribe};

/// What the operator may set. Defaults in parentheses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How old a tag may be (30 days).
    pub tag_age_max: Duration,
    /// Letters to postmaster, abuse and fbl that are kept (1,000); the oldest goes when another comes.
    pub letters_max: usize,
    /// Letters taken within an hour (200), and a tenth of that from one network; more: `452 4.7.1`.
    pub letters_per_hour_max: u32,
    /// Where they are forwarded to; nowhere if `None`.
    pub forward_to: Option<Address>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tag_age_max: Duration::from_secs(30 * 24 * 3600),
            letters_max: 1_000,
            letters_per_hour_max: 200,
            forward_to: None,
        }
    }
}

/// What a reply in a notice about a recipient in that domain (if it is still known), written by that host, means: the
/// class that events carry. The same rules that judge replies at delivery.
pub type Judge = Arc<dyn Fn(&Reply, Option<&Domain>, &str) -> Why + Send + Sync>;

/// Whether whoever proved to be the first domain may speak for recipients in the second: one provider runs both.
pub type SpeaksFor = Arc<dyn Fn(&Domain, &Domain) -> bool + Send + Sync>;

/// The rooms it works with.
pub struct Parts {
    /// Records and events.
    pub store: Arc<dyn Store>,
    /// Return-paths.
    pub domains: Arc<Domains>,
    /// Our other names, and by which address notices leave.
    pub vips: Arc<Vips>,
    /// Keys of signatures.
    pub resolver: Arc<dyn Resolver>,
    /// What replies mean.
    pub judge: Judge,
    /// Who may complain for whom.
    pub speaks_for: SpeaksFor,
    /// This machine's name.
    pub hostname: Domain,
    /// Rung when something was recorded.
    pub bell: Bell,
    /// By which facts of messages lapse.
    pub calendar: Calendar,
}

/// What an address at our door is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// A tag.
    Tag(Tagged),
    /// postmaster, abuse.
    Role,
    /// fbl: complaints.
    Complaints,
}

/// Return-paths, and what comes to them.
pub struct Feedback {
    parts: Parts,
    tags: Tags,
    settings: RwLock<Settings>,
    mailbox: Mailbox,
    /// Not held: the intake's pipeline asks this room for marks.
    intake: OnceLock<Weak<Intake>>,
    owed: tokio::sync::Notify,
}

impl Feedback {
    /// Opens the key of tags, which is made at the first start.
    ///
    /// # Errors
    /// If it cannot be had: then no return-path would be recognised.
    pub async fn open(parts: Parts, master: &crate::seal::MasterKey, settings: Settings) -> Result<Self, KeyError> {
        let key = key::open(&*parts.store, master).await?;
        let tags = Tags::new(&key);
        let mailbox = Mailbox::open(Arc::clone(&parts.store))?;
        Ok(Self {
            parts,
            tags,
            settings: RwLock::new(settings),
            mailbox,
            intake: OnceLock::new(),
            owed: tokio::sync::Notify::new(),
        })
    }

    /// Other settings from now on.
    pub fn adjust(&self, settings: Settings) {
        *records::write(&self.settings) = settings;
    }

    fn settings(&self) -> Settings {
        records::read(&self.settings).clone()
    }

    /// The tags.
    pub fn tags(&self) -> &Tags {
        &self.tags
    }

    /// The return-path at `name` for a recipient of a message.
    pub fn return_address(&self, id: QueueId, number: u16, name: &Domain) -> Address {
        self.tags.address(Tagged { purpose: Return, id, number }, name)
    }

    /// The address at `name` by which a recipient of a message unsubscribes.
    pub fn unsubscribe_address(&self, id: QueueId, number: u16, name: &Domain) -> Address {
        self.tags.address(Tagged { purpose: Unsubscribe, id, number }, name)
    }

    /// The value of the trace field of a message.
    pub fn trace(&self, id: QueueId) -> String {
        self.tags.trace(id)
    }

    /// Whether mail of `path` is taken at all. Reports come from anywhere, with the null reverse-path or another.
    ///
    /// # Errors
    /// For what claims to come from an address of ours: nothing of ours sends to this door.
    pub fn sender(&self, path: &ReversePath) -> Result<(), Refusal> {
        match &path.0 {
            Some(address) if self.parts.domains.is_return_name(address.domain()) => {
                let reply = Reply::enhanced(550, 7, 1, "Return-paths of this server send no mail");
                Err(Refusal::plain(reply))
            }
            _ => Ok(()),
        }
    }

    /// Whether mail may come to `address`, from `peer`.
    ///
    /// # Errors
    /// For everything but tags that count, and postmaster, abuse and fbl of our names.
    pub fn recipient(&self, peer: IpAddr, address: &Address, now: Timestamp) -> Result<(), Refusal> {
        let kind = self.kind(address, now)?;
        if kind == Kind::Role {
            self.mailbox.has_room(peer, self.settings().letters_per_hour_max, now)?;
        }
        Ok(())
    }

    fn kind(&self, address: &Address, now: Timestamp) -> Result<Kind, Refusal> {
        let domain = address.domain();
        let is_return = self.parts.domains.is_return_name(domain);
        if !is_return && !self.is_own_name(domain) {
            metrics::counter!(FEEDBACK, "kind" => "relay-refused").increment(1);
            let text = format!("This server takes no mail for {domain}");
            return Err(Refusal::plain(Reply::enhanced(550, 7, 1, text)));
        }
        match address.local_part().to_ascii_lowercase().as_str() {
            "postmaster" | "abuse" => return Ok(Kind::Role),
            "fbl" => return Ok(Kind::Complaints),
            _ if !is_return => {}
            _ => match self.tags.read(address, (now, self.settings().tag_age_max)) {
                Ok(tagged) => return Ok(Kind::Tag(tagged)),
                Err(TagError::Lapsed) => {
                    metrics::counter!(FEEDBACK, "kind" => "lapsed").increment(1);
                    let text = "That return-path is too old";
                    return Err(Refusal::plain(Reply::enhanced(550, 1, 6, text)));
                }
                Err(TagError::Unknown) => {}
            },
        }
        metrics::counter!(FEEDBACK, "kind" => "forged").increment(1);
        Err(Refusal::plain(Reply::enhanced(550, 1, 1, "There is no such address here")))
    }

    /// The hostname, and the names virtual IPs say in EHLO.
    fn is_own_name(&self, domain: &Domain) -> bool {
        *domain == self.parts.hostname || self.parts.vips.all().iter().any(|vip| vip.ehlo == *domain)
    }

    /// By which virtual IP a letter is forwarded, and as whose mail: a shared one as the instance's own, else the
    /// one it came to as its tenant's. Never by an address that belongs to somebody else.
    fn egress(&self, came_to: Option<VipId>) -> Option<(Vip, TenantId)> {
        let all = self.parts.vips.all();
        if let Some(shared) = all.iter().find(|vip| vip.owner == Owner::Shared) {
            return Some((shared.clone(), INSTANCE));
        }
        let own = all.iter().find(|vip| Some(vip.id) == came_to)?;
        match own.owner {
            Owner::Tenant(tenant) => Some((own.clone(), tenant)),
            Owner::Shared => None,
        }
    }
}

#[cfg(test)]
mod tests;
