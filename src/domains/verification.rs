//! What DNS says about a domain's keys, and what follows from it. [`decide`] is pure.
//!
//! Verified needs the RSA record; Ed25519 is used as soon as its record is there too.
//! Easy to get wrong: only an answer proves absence (no such name, no such record, another key).
//! A lookup that failed proves nothing and changes nothing.

use std::time::Duration;

use super::record::{Key, KeyPair, Published, SendingDomain, State};
use crate::ext::Timestamp;
use crate::mail::dkim::{Algorithm, SigningKeys};
use crate::mail::{Domain, printable};
use crate::net::{LookupError, Resolver};

/// Characters of a foreign record that are shown to people.
const SHOWN_MAX: usize = 120;

/// What was found at one selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Our public key.
    Published,
    /// Nothing, and DNS says so.
    Absent,
    /// Something else; the first such text, shortened.
    Different(String),
    /// DNS did not answer.
    Unknown(String),
}

/// What was found for a pair of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings {
    /// At the RSA selector.
    pub rsa: Finding,
    /// At the Ed25519 selector.
    pub ed25519: Finding,
}

/// What a check changes beyond the bare findings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The domain may be used from now on.
    Verified,
    /// It may not any more, because of this.
    Unverified(String),
    /// The next keys are in use, the old ones erased.
    Rotated,
}

impl Finding {
    /// Whether DNS answered and our key was not there.
    pub fn proves_absence(&self) -> bool {
        matches!(self, Self::Absent | Self::Different(_))
    }

    fn note(&self, key: &mut Key) {
        match self {
            Self::Published => key.published = Published::Yes,
            Self::Absent | Self::Different(_) => key.published = Published::No,
            Self::Unknown(_) => {}
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Published => "published".to_owned(),
            Self::Absent => "there is no TXT record".to_owned(),
            Self::Different(found) => format!("the TXT record holds another key: {found}"),
            Self::Unknown(error) => error.clone(),
        }
    }
}

/// Looks both selectors of a pair up.
pub async fn look(resolver: &dyn Resolver, domain: &Domain, pair: &KeyPair, keys: &SigningKeys) -> Findings {
    let (rsa, ed25519) = tokio::join!(
        look_one(resolver, domain, &pair.rsa.selector, (keys, Algorithm::Rsa)),
        look_one(resolver, domain, &pair.ed25519.selector, (keys, Algorithm::Ed25519)),
    );
    Findings { rsa, ed25519 }
}

/// Whether DNS says that nothing is left at `selector`.
pub async fn is_gone(resolver: &dyn Resolver, domain: &Domain, selector: &str) -> bool {
    let Ok(name) = key_name(domain, selector) else { return false };
    matches!(resolver.txt(&name).await, Err(LookupError::NoSuchName | LookupError::NoRecord))
}

async fn look_one(
    resolver: &dyn Resolver,
    domain: &Domain,
    selector: &str,
    (keys, algorithm): (&SigningKeys, Algorithm),
) -> Finding {
    let name = match key_name(domain, selector) {
        Ok(name) => name,
        Err(error) => return Finding::Unknown(error),
    };
    match resolver.txt(&name).await {
        Ok(texts) if texts.iter().any(|text| keys.is_published_by(algorithm, text)) => Finding::Published,
        Ok(texts) => match texts.first() {
            Some(text) => Finding::Different(printable(&text.chars().take(SHOWN_MAX).collect::<String>())),
            None => Finding::Absent,
        },
        Err(LookupError::NoSuchName | LookupError::NoRecord) => Finding::Absent,
        Err(LookupError::Temporary(error) | LookupError::Bogus(error)) => Finding::Unknown(error),
    }
}

/// `selector._domainkey.domain` as a name to look up; fails if it grows too long.
pub fn key_name(domain: &Domain, selector: &str) -> Result<Domain, String> {
    Domain::parse(&format!("{selector}._domainkey.{domain}")).map_err(|error| error.to_string())
}

/// Applies what DNS said to `record`: findings about the keys in use, and about the next ones if
/// there are any.
pub fn decide(
    record: &mut SendingDomain,
    current: &Findings,
    next: Option<&Findings>,
    (grace, now): (Duration, Timestamp),
) -> Vec<Turn> {
    let mut turns = Vec::new();
    record.last_check = Some(now);
    current.rsa.note(&mut record.keys.rsa);
    current.ed25519.note(&mut record.keys.ed25519);
    let mut proof = current.rsa.clone();
    if let (Some(next), Some(pair)) = (next, &mut record.next_keys) {
        next.rsa.note(&mut pair.rsa);
        next.ed25519.note(&mut pair.ed25519);
        if next.rsa == Finding::Published {
            record.use_next_keys(now);
            turns.push(Turn::Rotated);
            proof = Finding::Published;
        }
    }
    match (&proof, record.state) {
        (Finding::Published, State::Verified(_)) => record.absent_since = None,
        (Finding::Published, State::Pending | State::Unverified(_)) => {
            record.state = State::Verified(now);
            record.absent_since = None;
            turns.push(Turn::Verified);
        }
        (absent, State::Verified(_)) if absent.proves_absence() => {
            let since = *record.absent_since.get_or_insert(now);
            if now.since(since) >= grace {
                record.state = State::Unverified(now);
                record.absent_since = None;
                turns.push(Turn::Unverified(absent.words()));
            }
        }
        _ => {}
    }
    turns
}
