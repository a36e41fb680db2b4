//! Whether an SPF record permits an address (RFC 7208), by mail-auth's verifier over our own resolver.
//!
//! It refuses to know what follows from that. Easy to get wrong: an answer is good for as long as the
//! shortest-lived record it rests on, so the verifier is given a cache that keeps nothing but that moment; and a
//! pass must hold whoever of the domain sends, and by records that every verifier reads the same.

use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use hickory_resolver::TokioResolver;
use mail_auth::spf::verify::SpfParameters;
use mail_auth::{MessageAuthenticator, Parameters, ResolverCache, SpfResult, Txt};

use super::Resolver;
use crate::mail::Domain;

/// A local part that nobody's record is likely to name.
const NOBODY: &str = "no-such-sender";
/// A judgement takes no longer than this.
const PATIENCE: Duration = Duration::from_secs(15);
/// Addresses that are judged at a time.
const AT_A_TIME: usize = 8;

/// A question: may `address` send as everybody of `sender`'s domain, greeting as `helo`?
#[derive(Clone, Copy, Debug)]
pub struct SpfQuestion<'a> {
    /// The address the peer will see.
    pub address: IpAddr,
    /// The reverse-path; without one it is `postmaster@` the EHLO name (RFC 7208 s2.4).
    pub sender: &'a str,
    /// The EHLO name.
    pub helo: &'a Domain,
}

/// What came of it (RFC 7208 s2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spf {
    /// The address may send.
    Pass,
    /// It may not.
    Fail,
    /// Rather not.
    SoftFail,
    /// The record does not say, or says it of some senders of the domain only (RFC 7208 s7).
    Neutral,
    /// There is no record.
    None,
    /// DNS did not answer.
    TemporaryError,
    /// The record cannot be read, or asks too many questions.
    PermanentError,
}

impl Spf {
    /// As RFC 7208 writes it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::SoftFail => "softfail",
            Self::Neutral => "neutral",
            Self::None => "none",
            Self::TemporaryError => "temperror",
            Self::PermanentError => "permerror",
        }
    }
}

/// An answer, and until when the records it rests on are good; `None` if nothing says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpfAnswer {
    /// What the record says.
    pub result: Spf,
    /// Until when.
    pub good_until: Option<Instant>,
}

/// Octets of a record with its name, at most, so that the answer fits where it must (RFC 7208 s3.4).
pub const SPF_OCTETS_MAX: usize = 450;

/// What the record of `domain` says of `address`, whoever of the domain sends.
pub async fn spf_of(resolver: &dyn Resolver, domain: &Domain, address: IpAddr) -> Spf {
    let sender = format!("postmaster@{domain}");
    resolver.spf(&SpfQuestion { address, sender: &sender, helo: domain }).await.result
}

/// The same of each address, some at a time; those without an answer by `until` have a temporary error.
pub async fn spf_of_each(
    resolver: &dyn Resolver,
    domain: &Domain,
    addresses: &[IpAddr],
    until: tokio::time::Instant,
) -> Vec<(IpAddr, Spf)> {
    let one = async |address: IpAddr| {
        let said = tokio::time::timeout_at(until, spf_of(resolver, domain, address)).await;
        (address, said.unwrap_or(Spf::TemporaryError))
    };
    stream::iter(addresses.iter().copied().map(one)).buffered(AT_A_TIME).collect().await
}

/// Whether a TXT record is an SPF record (RFC 7208 s4.5).
pub fn is_spf_record(text: &str) -> bool {
    text.split(' ').next().is_some_and(|word| word.eq_ignore_ascii_case("v=spf1"))
}

/// What an answer rests on.
pub(super) struct Judgement {
    pub(super) answer: SpfAnswer,
    /// Names whose TXT records were read.
    pub(super) read: Vec<String>,
}

/// Asks, over the resolver that everything else asks. A pass holds for other senders of the domain, too.
pub(super) async fn judge(resolver: &TokioResolver, asked: &SpfQuestion<'_>) -> Judgement {
    let judgement = judge_one(resolver, asked).await;
    let Some((_, domain)) = asked.sender.rsplit_once('@').filter(|_| judgement.answer.result == Spf::Pass) else {
        return judgement;
    };
    let another = format!("{NOBODY}@{domain}");
    let mut again = judge_one(resolver, &SpfQuestion { sender: &another, ..*asked }).await;
    if !matches!(again.answer.result, Spf::Pass | Spf::TemporaryError) {
        again.answer.result = Spf::Neutral;
    }
    again
}

async fn judge_one(resolver: &TokioResolver, asked: &SpfQuestion<'_>) -> Judgement {
    let verifier = MessageAuthenticator(resolver.clone());
    let (soonest, read) = (Soonest::default(), Read::default());
    let helo = asked.helo.as_str();
    let parameters = Parameters {
        params: SpfParameters::verify_mail_from(asked.address, helo, helo, asked.sender),
        cache_txt: Some(&read),
        cache_mx: Some(&soonest),
        cache_ptr: Some(&soonest),
        cache_ipv4: Some(&soonest),
        cache_ipv6: Some(&soonest),
    };
    let result = match tokio::time::timeout(PATIENCE, verifier.check_host(parameters)).await {
        Ok(output) => output.result(),
        Err(_) => SpfResult::TempError,
    };
    let result = match result {
        SpfResult::Pass => Spf::Pass,
        SpfResult::Fail => Spf::Fail,
        SpfResult::SoftFail => Spf::SoftFail,
        SpfResult::Neutral => Spf::Neutral,
        SpfResult::None => Spf::None,
        SpfResult::TempError => Spf::TemporaryError,
        SpfResult::PermError => Spf::PermanentError,
    };
    let Read { soonest: of_records, names } = read;
    let moments = [soonest, of_records].map(|one| one.0.into_inner().unwrap_or_default());
    let answer = SpfAnswer { result, good_until: moments.into_iter().flatten().min() };
    Judgement { answer, read: names.into_inner().unwrap_or_default() }
}

/// As [`Soonest`], and which names were asked for their SPF records.
#[derive(Default)]
struct Read {
    soonest: Soonest,
    names: Mutex<Vec<String>>,
}

impl ResolverCache<Box<str>, Txt> for Read {
    fn get<Q>(&self, _: &Q) -> Option<Txt>
    where
        Box<str>: std::borrow::Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        None
    }

    fn remove<Q>(&self, _: &Q) -> Option<Txt>
    where
        Box<str>: std::borrow::Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        None
    }

    fn insert(&self, name: Box<str>, record: Txt, valid_until: Instant) {
        if let Ok(mut names) = self.names.lock() {
            names.push(name.clone().into_string());
        }
        self.soonest.insert(name, record, valid_until);
    }
}

/// Keeps nothing of what it is given but until when that is good; the resolver has a cache of its own.
#[derive(Default)]
struct Soonest(Mutex<Option<Instant>>);

impl<K, V> ResolverCache<K, V> for Soonest {
    fn get<Q>(&self, _: &Q) -> Option<V>
    where
        K: std::borrow::Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        None
    }

    fn remove<Q>(&self, _: &Q) -> Option<V>
    where
        K: std::borrow::Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        None
    }

    fn insert(&self, _: K, _: V, valid_until: Instant) {
        if let Ok(mut soonest) = self.0.lock() {
            *soonest = Some(soonest.map_or(valid_until, |known| known.min(valid_until)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;
    use crate::net::{DnsSettings, LookupError, Mx, SystemResolver, Trouble, Zone, ZoneServer};

    async fn resolver(zone: Zone) -> (ZoneServer, SystemResolver) {
        let server = ZoneServer::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), zone).await.unwrap();
        let settings = DnsSettings {
            servers: vec![server.address()],
            timeout: Duration::from_millis(300),
            attempts: 1,
            ..DnsSettings::default()
        };
        let resolver = SystemResolver::new(&settings).unwrap();
        (server, resolver)
    }

    async fn asked(resolver: &SystemResolver, sender: &str, address: &str) -> SpfAnswer {
        let helo = Domain::parse("mx2.vips.example").unwrap();
        resolver.spf(&SpfQuestion { address: address.parse().unwrap(), sender, helo: &helo }).await
    }

    #[tokio::test]
    async fn only_a_record_that_names_the_address_lets_it_pass() {
        let zone = Zone::new()
            .txt("pass.example", "v=spf1 ip4:192.0.2.0/24 -all")
            .txt("soft.example", "v=spf1 ~all")
            .txt("neutral.example", "v=spf1 ip4:198.51.100.1")
            .txt("other.example", "some text")
            .txt("broken.example", "v=spf1 ip4:192.0.2 -all")
            .txt("chain.example", "v=spf1 include:pass.example include:gone.example -all")
            .txt("circle.example", "v=spf1 include:circle.example -all")
            .txt("silent.example", "x")
            .txt("six.example", "v=spf1 ip6:2001:db8::/32 -all")
            .txt("twice.example", "v=spf1 ip4:192.0.2.9 -all")
            .txt("twice.example", "v=spf1 ip4:192.0.2.0/24 -all")
            .txt("includes.example", "v=spf1 include:twice.example -all")
            .txt("parts.example", "v=spf1 exists:%{l}.senders.parts.example -all")
            .ipv4("ann.senders.parts.example", Ipv4Addr::LOCALHOST)
            .trouble("silent.example", Trouble::ServerFailure);
        let (_server, resolver) = resolver(zone).await;
        for (sender, address, expected) in [
            ("b+1@pass.example", "192.0.2.9", Spf::Pass),
            ("b+1@pass.example", "192.0.3.9", Spf::Fail),
            ("b@soft.example", "192.0.2.9", Spf::SoftFail),
            ("b@neutral.example", "192.0.2.9", Spf::Neutral),
            ("b@other.example", "192.0.2.9", Spf::None),
            ("b@gone.example", "192.0.2.9", Spf::None),
            ("b@broken.example", "192.0.2.9", Spf::PermanentError),
            ("b@chain.example", "192.0.2.9", Spf::Pass),
            // RFC 7208 s5.2: an include of a domain without a record is an error.
            ("b@chain.example", "192.0.3.9", Spf::PermanentError),
            ("b@circle.example", "192.0.2.9", Spf::PermanentError),
            ("b@silent.example", "192.0.2.9", Spf::TemporaryError),
            // RFC 7208 s4.5: of two records neither counts.
            ("b@twice.example", "192.0.2.9", Spf::PermanentError),
            ("b@includes.example", "192.0.2.9", Spf::PermanentError),
            // RFC 7208 s7: this one lets some senders pass; whose mail it is may be anybody's.
            ("ann@parts.example", "192.0.2.9", Spf::Neutral),
            ("bert@parts.example", "192.0.2.9", Spf::Fail),
            ("b@six.example", "2001:db8::7", Spf::Pass),
            ("b@six.example", "192.0.2.9", Spf::Fail),
        ] {
            assert_eq!(asked(&resolver, sender, address).await.result, expected, "{sender} from {address}");
        }
        let good_until = asked(&resolver, "b@pass.example", "192.0.2.9").await.good_until.unwrap();
        assert!(good_until > Instant::now());
        assert_eq!(asked(&resolver, "b@gone.example", "192.0.2.9").await.good_until, None);
    }

    /// Answers once [`AT_A_TIME`] have asked, and of one address never.
    struct Slow(tokio::sync::Barrier);

    #[async_trait::async_trait]
    impl Resolver for Slow {
        async fn mx(&self, _: &Domain) -> Result<Vec<Mx>, LookupError> {
            Err(LookupError::NoRecord)
        }
        async fn ipv4(&self, _: &Domain) -> Result<Vec<Ipv4Addr>, LookupError> {
            Err(LookupError::NoRecord)
        }
        async fn ipv6(&self, _: &Domain) -> Result<Vec<std::net::Ipv6Addr>, LookupError> {
            Err(LookupError::NoRecord)
        }
        async fn txt(&self, _: &Domain) -> Result<Vec<String>, LookupError> {
            Err(LookupError::NoRecord)
        }
        async fn ptr(&self, _: IpAddr) -> Result<Vec<Domain>, LookupError> {
            Err(LookupError::NoRecord)
        }
        async fn spf(&self, asked: &SpfQuestion<'_>) -> SpfAnswer {
            self.0.wait().await;
            if asked.address == IpAddr::from([192, 0, 2, 3]) {
                std::future::pending::<()>().await;
            }
            SpfAnswer { result: Spf::Pass, good_until: None }
        }
    }

    #[tokio::test]
    async fn many_addresses_are_judged_at_a_time_and_in_bounded_time() {
        let slow = Slow(tokio::sync::Barrier::new(AT_A_TIME));
        let shop = Domain::parse("shop.example").unwrap();
        let all: Vec<IpAddr> = (10..18).map(|host| IpAddr::from([192, 0, 2, host])).collect();
        let far = tokio::time::Instant::now() + Duration::from_secs(3600);
        let said = spf_of_each(&slow, &shop, &all, far).await;
        assert_eq!(said, all.iter().map(|own| (*own, Spf::Pass)).collect::<Vec<_>>());
        let silent = [IpAddr::from([192, 0, 2, 3])];
        let said = spf_of_each(&slow, &shop, &silent, tokio::time::Instant::now()).await;
        assert_eq!(said, [(silent[0], Spf::TemporaryError)]);
    }
}
