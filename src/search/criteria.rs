//! What is looked for, and what fits it. Pure: this is what the index must agree with.
//!
//! Everything that is said must fit. Ids and addresses are compared whole, the rest by beginnings: a domain,
//! provider or tag by its own, a subject or reply by those of its words if they are long enough to say something.

use std::collections::{BTreeMap, BTreeSet};

use super::entry::Fate;
use super::words;
use crate::access::Action;
use crate::events::History;
use crate::ext::Timestamp;
use crate::mail::{QueueId, SmtpAccountId, TenantId};
use crate::statistics::Status;

/// Characters that make the beginning of a word of a subject or reply; a shorter text is compared whole.
pub const BEGINNING_MIN: usize = 3;
/// Words of a subject or reply that are looked for, at most.
pub const WORDS_ASKED_MAX: usize = 10;

/// What is looked for; empty is every message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Criteria {
    /// Whose; `None` is everybody's.
    pub tenant: Option<TenantId>,
    /// Only mail of these SMTP accounts: what whoever asks may see.
    pub granted: Option<BTreeMap<SmtpAccountId, Action>>,
    /// Of this SMTP account.
    pub account: Option<SmtpAccountId>,
    /// Accepted at this moment or later.
    pub from: Option<Timestamp>,
    /// Accepted before this moment.
    pub until: Option<Timestamp>,
    /// With this queue id.
    pub id: Option<QueueId>,
    /// With this Message-ID.
    pub message_id: Option<String>,
    /// To this address.
    pub recipient: Option<String>,
    /// From this address, or from an address of this domain: of the envelope or the header.
    pub sender: Option<String>,
    /// To a domain that begins so.
    pub domain: Option<String>,
    /// To a provider whose name begins so.
    pub provider: Option<String>,
    /// With a tag that begins so.
    pub tag: Option<String>,
    /// With a subject whose words begin so.
    pub subject: Option<String>,
    /// With replies or causes whose words begin so.
    pub reply: Option<String>,
    /// With a recipient in this state, or that did this.
    pub status: Option<Status>,
}

/// What a message is found by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    pub recipients: BTreeSet<String>,
    pub domains: BTreeSet<String>,
    pub senders: BTreeSet<String>,
    pub subject: BTreeSet<String>,
    pub message_id: String,
    pub tags: BTreeSet<String>,
    pub providers: BTreeSet<String>,
    pub replies: BTreeSet<String>,
    pub statuses: BTreeSet<Status>,
}

impl Terms {
    /// Those of a message.
    pub fn of(history: &History, fate: &Fate) -> Self {
        let mut senders = words::addresses(&history.header_from);
        senders.extend(history.reverse_path.0.as_ref().map(|address| address.folded().to_string().to_lowercase()));
        let of_domain = |address: &String| address.rsplit_once('@').map(|(_, domain)| format!("@{domain}"));
        let domains: Vec<String> = senders.iter().filter_map(of_domain).collect();
        senders.extend(domains);
        Self {
            recipients: history.recipients.iter().map(|to| to.folded().to_string().to_lowercase()).collect(),
            domains: history.recipients.iter().map(|to| words::folded(to.domain().as_str())).collect(),
            senders,
            subject: words::words(&history.subject),
            message_id: words::message_id(&history.message_id),
            tags: history.labels.tags().iter().map(|tag| words::folded(tag)).collect(),
            providers: fate.providers.iter().map(|provider| words::folded(provider)).collect(),
            replies: fate.replies.iter().flat_map(|reply| words::words(reply)).collect(),
            statuses: fate.statuses(),
        }
    }
}

impl Criteria {
    /// As the index compares it: folded, brackets and spaces gone.
    #[must_use]
    pub fn folded(mut self) -> Self {
        let fold = |text: &mut Option<String>, how: &dyn Fn(&str) -> String| {
            *text = text.as_deref().map(how).filter(|text| !text.is_empty());
        };
        fold(&mut self.message_id, &words::message_id);
        fold(&mut self.recipient, &|text| text.trim().to_lowercase());
        fold(&mut self.sender, &|text| {
            let text = text.trim().to_lowercase();
            if text.is_empty() || text.contains('@') { text } else { format!("@{text}") }
        });
        fold(&mut self.domain, &words::folded);
        fold(&mut self.provider, &words::folded);
        fold(&mut self.tag, &words::folded);
        self
    }

    /// Whether a message fits; `self` is folded.
    pub fn fits(&self, (id, history, fate): (QueueId, &History, &Fate)) -> bool {
        let terms = Terms::of(history, fate);
        let account = history.entry.as_ref().and_then(|entry| entry.account);
        let has = |asked: &Option<String>, own: &BTreeSet<String>| asked.as_ref().is_none_or(|text| own.contains(text));
        let begins = |asked: &Option<String>, own: &BTreeSet<String>| {
            asked.as_ref().is_none_or(|text| own.iter().any(|word| word.starts_with(text)))
        };
        let all_begin = |asked: &Option<String>, own: &BTreeSet<String>| {
            asked_words(asked).iter().all(|asked| own.iter().any(|word| asked.fits(word)))
        };
        self.tenant.is_none_or(|tenant| history.tenant == tenant)
            && self.granted.as_ref().is_none_or(|granted| account.is_some_and(|own| granted.contains_key(&own)))
            && self.account.is_none_or(|asked| account == Some(asked))
            && self.from.is_none_or(|from| history.accepted >= from)
            && self.until.is_none_or(|until| history.accepted < until)
            && self.id.is_none_or(|asked| asked == id)
            && self.message_id.as_ref().is_none_or(|asked| *asked == terms.message_id)
            && has(&self.recipient, &terms.recipients)
            && has(&self.sender, &terms.senders)
            && begins(&self.domain, &terms.domains)
            && begins(&self.provider, &terms.providers)
            && begins(&self.tag, &terms.tags)
            && all_begin(&self.subject, &terms.subject)
            && all_begin(&self.reply, &terms.replies)
            && self.status.is_none_or(|status| fate.has(status))
    }
}

/// A word that is looked for in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AskedWord {
    /// A word that begins so.
    Beginning(String),
    /// This word: it is so short that very many begin so.
    Whole(String),
}

impl AskedWord {
    fn fits(&self, word: &str) -> bool {
        match self {
            Self::Beginning(text) => word.starts_with(text),
            Self::Whole(text) => word == text,
        }
    }
}

/// The words that are looked for in a text.
pub fn asked_words(asked: &Option<String>) -> Vec<AskedWord> {
    let words = asked.as_deref().map(words::words).unwrap_or_default().into_iter().take(WORDS_ASKED_MAX);
    let asked = |word: String| {
        if word.chars().count() < BEGINNING_MIN { AskedWord::Whole(word) } else { AskedWord::Beginning(word) }
    };
    words.map(asked).collect()
}
