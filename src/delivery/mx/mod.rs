//! The transport that goes straight to the recipient domain's mail exchangers.

mod destinations;
mod lookup;
mod mta_sts;
mod policies;
mod reported;
mod rules;
mod tls_memory;
mod tls_policy;

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::sync::{Notify, watch};

pub use self::destinations::{Destination, DestinationRule, Destinations, Diversion};
// For tests/fuzz only, see docs/how-to/fuzz.md; not part of the face.
#[doc(hidden)]
pub use self::mta_sts::announced as announced_policy;
pub use self::mta_sts::{Mode as StsMode, Policy as StsPolicy};
pub use self::policies::{KeptPolicy, TlsPolicies};
pub use self::rules::DomainRule;
pub use self::tls_memory::{FailingTls, SeenTls, Spoken, TlsLevel, TlsMemory};
pub use self::tls_policy::DomainTls;
pub(super) use self::tls_policy::voice;

use self::destinations::Whither;
use self::lookup::{Exchangers, Ourselves};
use self::policies::Asking;
use self::tls_policy::{Demand, Voices};
use super::Settings;
use super::client::Client;
use super::settings::PrivateAddresses;
use super::smarthost::Smarthost;
use super::transport::{Families, Host, Job, NoSite, Report, Site, Standing, Transport};
use crate::background::{Shutdown, periodically};
use crate::events::Why;
use crate::ext::Timestamp;
use crate::mail::Domain;
use crate::metrics::TLS_UNMET;
use crate::net::{Dane, FetchLimits, Fetcher, LookupError, Reach, Resolver};
use crate::routing::{Lane, TransportName};
use crate::tlsrpt::{Applied, Protection, Session, TlsReports};
use crate::vips::Vips;

/// What the transport works with.
pub struct Parts {
    /// DNS.
    pub resolver: Arc<dyn Resolver>,
    /// Our own names and addresses.
    pub vips: Arc<Vips>,
    /// Conversations.
    pub client: Arc<Client>,
    /// Policies of recipient domains.
    pub policies: Arc<TlsPolicies>,
    /// Destinations that are blocked or go another way.
    pub destinations: Arc<Destinations>,
    /// The other way.
    pub relays: Arc<Smarthost>,
    /// What is reported to them.
    pub reports: Arc<TlsReports>,
    /// How policies are fetched.
    pub fetcher: Fetcher,
    /// Settings, followed as they change.
    pub settings: watch::Receiver<Arc<Settings>>,
}

/// Straight to the MX hosts.
pub struct Mx(Parts);

impl Mx {
    /// The transport.
    pub fn new(parts: Parts) -> Self {
        Self(parts)
    }

    /// Keeps policies of recipient domains fresh until `shutdown`.
    pub async fn keep_policies(&self, shutdown: &Shutdown) {
        let look = || async {
            let settings = self.0.settings.borrow().clone();
            self.0.policies.refresh(&self.asking(&settings), Timestamp::now()).await;
        };
        let every = self.0.settings.borrow().policies_every;
        periodically(every, &Notify::new(), shutdown, look).await;
    }

    fn asking(&self, settings: &Settings) -> Asking<'_> {
        let reach = match settings.private_addresses {
            PrivateAddresses::Refused => Reach::Public,
            PrivateAddresses::Allowed => Reach::Anywhere,
        };
        let limits = FetchLimits {
            port: settings.policy_port,
            reach,
            patience: settings.policy_patience,
            body_bytes_max: settings.policy_bytes_max,
        };
        Asking { resolver: &*self.0.resolver, fetcher: &self.0.fetcher, limits }
    }

    /// The hosts of the lane's domain that may have its mail, each with what is demanded of it. This is about
    /// one domain; others that share its hosts have their own answer.
    async fn judged(&self, lane: &Lane, hosts: Vec<Host>, settings: &Settings) -> Result<Vec<Host>, NoSite> {
        let (domain, now) = (&lane.next_hop, Timestamp::now());
        if lane.transport == TransportName::MxDespiteTls {
            return self.despite_tls(domain, hosts, settings);
        }
        let asking = self.asking(settings);
        let (sts, proven) =
            tokio::join!(self.0.policies.policy(domain, &asking, now), self.0.resolver.proven_mx(domain));
        let proven = proven.map_err(|error| self.bogus(lane, domain, (&format!("MX of {domain}"), &error)))?;
        let proven = proven.unwrap_or_default();
        let port = settings.mx_port;
        let dane = join_all(hosts.iter().map(|host| self.dane(&proven, host, port))).await;
        let voices =
            Voices { domain, local: settings.mx_tls, operator: self.0.policies.rule(domain), sts: sts.as_ref() };
        let (mut kept, mut why_not) = (Vec::new(), None);
        for (host, dane) in hosts.into_iter().zip(dane) {
            match self.heard(lane, &voices, host, (&proven, dane)) {
                Ok(host) => kept.push(host),
                // What DNS did not answer may be answered soon: that is said rather than the rest.
                Err(no_site @ NoSite::Deferred(Why::Dns, _)) => why_not = Some(no_site),
                Err(no_site) => drop(why_not.get_or_insert(no_site)),
            }
        }
        match why_not {
            Some(no_site) if kept.is_empty() => Err(no_site),
            _ => Ok(kept),
        }
    }

    /// What a rule makes of a lane.
    async fn diverted(&self, rule: &DestinationRule, lane: &Lane, families: Families) -> Result<Site, NoSite> {
        match rule.diversion {
            Diversion::Block => Err(NoSite::Bounced(Why::OurConfiguration, rule.refusal(&lane.next_hop))),
            Diversion::Reroute(route) => {
                let by_relay = Lane { transport: TransportName::Smarthost(route), ..lane.clone() };
                self.0.relays.site(&by_relay, families).await
            }
        }
    }

    /// The hosts for mail that must not fail by what the domain demands: what our own operator demands of all
    /// mail holds, and nothing is reported.
    fn despite_tls(&self, domain: &Domain, hosts: Vec<Host>, settings: &Settings) -> Result<Vec<Host>, NoSite> {
        let voices = Voices { domain, local: settings.mx_tls, operator: None, sts: None };
        hosts.into_iter().map(|host| demanded(&voices, host, &[], None)).collect()
    }

    fn heard(
        &self,
        lane: &Lane,
        voices: &Voices<'_>,
        host: Host,
        (proven, dane): (&[Domain], Result<Option<Dane>, LookupError>),
    ) -> Result<Host, NoSite> {
        let name = Domain::parse(&host.name).unwrap_or_else(|_| voices.domain.clone());
        let dane = dane.map_err(|error| self.bogus(lane, &name, (&format!("TLSA of {}", host.name), &error)))?;
        let demanded = demanded(voices, host, proven, dane.as_ref());
        if !self.0.reports.is_on() {
            return demanded;
        }
        match demanded {
            Ok(host) => {
                let fault = self.0.policies.fault(voices.domain, Timestamp::now());
                Ok(Host { reported: reported::applied(voices, &name, dane.as_ref(), fault).into(), ..host })
            }
            Err(no_site) => {
                if let Some(applied) = reported::unnamed(voices) {
                    self.failed(lane, Some(name.as_str()), applied);
                }
                Err(no_site)
            }
        }
    }

    /// An answer that is not there, or that DNSSEC refutes, keeps mail waiting (RFC 7672 s2.1.2).
    fn bogus(&self, lane: &Lane, name: &Domain, (what, error): (&str, &LookupError)) -> NoSite {
        if matches!(error, LookupError::Bogus(_)) {
            self.failed(lane, None, reported::refuted(name, format!("{what}: {error}")));
        }
        NoSite::Deferred(Why::Dns, format!("451 4.4.3 {what}: {error}"))
    }

    /// What kept a session from coming about is reported as one that failed.
    fn failed(&self, lane: &Lane, host: Option<&str>, applied: Applied) {
        let session = Session { domain: &lane.next_hop, vip: lane.vip, source: None, host, address: None };
        self.0.reports.count(&session, &[applied], &Protection::Verified, Timestamp::now());
    }

    /// DANE counts only for hosts that DNSSEC proves to be the domain's (RFC 7672 s2.2.1).
    async fn dane(&self, proven: &[Domain], host: &Host, port: u16) -> Result<Option<Dane>, LookupError> {
        match proven.iter().find(|name| name.as_str() == host.name) {
            Some(name) => self.0.resolver.dane(name, port).await,
            None => Ok(None),
        }
    }
}

/// Only a policy of the domain's own refuses a host.
fn unmet(why: &str) -> NoSite {
    metrics::counter!(TLS_UNMET, "by" => "mta-sts").increment(1);
    NoSite::Deferred(Why::TlsPolicy, format!("451 4.7.4 {why}"))
}

fn demanded(voices: &Voices<'_>, host: Host, proven: &[Domain], dane: Option<&Dane>) -> Result<Host, NoSite> {
    let Demand { tls, policy } = tls_policy::demand(voices, &host.name, dane).map_err(|why| unmet(&why))?;
    let is_proven = proven.iter().any(|name| name.as_str() == host.name) || tls_policy::vouches(voices.sts, &host.name);
    let standing = if is_proven { Standing::Proven } else { Standing::Claimed };
    Ok(Host { tls, policy: policy.map(Arc::from), standing, ..host })
}

/// Whose mailboxes these hosts are for. Spare hosts may be anybody's; the best ones are where the mailboxes are.
fn of_provider<'s>(settings: &'s Settings, hosts: &[Host]) -> Option<&'s str> {
    let best = hosts.iter().map(|host| host.preference).min();
    let best = hosts.iter().filter(|host| Some(host.preference) == best).map(|host| host.name.as_str());
    settings.providers.of_hosts(best).map(|provider| &*provider.name)
}

#[async_trait]
impl Transport for Mx {
    async fn site(&self, lane: &Lane, families: Families) -> Result<Site, NoSite> {
        let settings = self.0.settings.borrow().clone();
        // Rules by recipient domain need no answer of DNS, and hold where there is none.
        let named = Whither { domain: &lane.next_hop, hosts: &[], provider: None };
        if let Some(rule) = self.0.destinations.rule_for(&named) {
            return self.diverted(&rule, lane, families).await;
        }
        let ourselves = Ourselves::of(&self.0.vips.all());
        let found = lookup::hosts(&*self.0.resolver, &lane.next_hop, families, &ourselves, &settings).await?;
        let Exchangers { hosts, better } = found;
        let whither = Whither { domain: &lane.next_hop, hosts: &hosts, provider: of_provider(&settings, &hosts) };
        if let Some(rule) = self.0.destinations.rule_for(&whither) {
            return match better {
                // The best host decides, and that is none of these.
                Some(no_site) => Err(no_site),
                None => self.diverted(&rule, lane, families).await,
            };
        }
        let hosts = self.judged(lane, hosts, &settings).await?;
        let provider = of_provider(&settings, &hosts).and_then(|name| settings.providers.named(name));
        let provider = provider.map(|provider| provider.name.clone());
        Ok(Site {
            name: lookup::site_name(&hosts).into(),
            provider,
            hosts,
            port: settings.mx_port,
            realm: 0,
            login: None,
        })
    }

    fn revision(&self) -> u64 {
        // Both only grow: their sum is another after each change of either.
        self.0.destinations.revision().wrapping_add(self.0.relays.revision())
    }

    async fn attempt(&self, job: Job) -> Report {
        self.0.client.drain(job).await
    }
}
