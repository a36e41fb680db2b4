//! The real resolver: hickory, asked for fully qualified names only.
//!
//! It refuses to know what a name is for. Easy to get wrong: NXDOMAIN, "no such record" and "no
//! answer" are three different things for mail, and only the first two may ever be final; a CNAME
//! that leads nowhere in time is "no answer", never "no such name".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};

use super::dane::Dane;
use super::validated::{Validation, Validators};
use super::{LookupError, Mx, Resolver, Spf, SpfAnswer, SpfQuestion, spf};
use crate::mail::{Domain, printable};

/// Which servers are asked, and how patiently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsSettings {
    /// Server addresses with ports, asked over UDP and, when truncated, TCP. Empty: what
    /// `/etc/resolv.conf` names.
    pub servers: Vec<SocketAddr>,
    /// One question to one server waits this long (5 s).
    pub timeout: Duration,
    /// Each question is repeated so often before it counts as unanswered (2).
    pub attempts: usize,
    /// Answers kept, at most (8,192).
    pub cache_answers_max: u64,
    /// No answer is kept longer than this, whatever its TTL (1 hour).
    pub ttl_max: Duration,
    /// A proven absence is kept at most this long (5 minutes).
    pub negative_ttl_max: Duration,
    /// Whose word counts that an answer was validated by DNSSEC (resolvers on loopback).
    pub validation: Validation,
}

impl Default for DnsSettings {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            timeout: Duration::from_secs(5),
            attempts: 2,
            cache_answers_max: 8_192,
            ttl_max: Duration::from_secs(3_600),
            negative_ttl_max: Duration::from_secs(300),
            validation: Validation::default(),
        }
    }
}

/// The resolver servers cannot be used as configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the resolver cannot be set up: {0}")]
pub struct ResolverUnusable(pub String);

/// DNS over the network, with a cache that honours TTLs.
pub struct SystemResolver {
    resolver: TokioResolver,
    validators: Validators,
}

impl SystemResolver {
    /// Sets up a resolver; asks nothing yet.
    pub fn new(settings: &DnsSettings) -> Result<Self, ResolverUnusable> {
        let unusable = |error: NetError| ResolverUnusable(printable(&error.to_string()));
        let mut builder = if settings.servers.is_empty() {
            TokioResolver::builder_tokio().map_err(unusable)?
        } else {
            let config = ResolverConfig::from_name_servers(settings.servers.iter().map(server_at).collect());
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        apply(settings, builder.options_mut());
        let resolver = builder.build().map_err(unusable)?;
        let servers = match settings.servers.is_empty() {
            true => configured(&hickory_resolver::system_conf::read_system_conf().map_err(unusable)?.0),
            false => settings.servers.clone(),
        };
        Ok(Self { resolver, validators: Validators::of(settings, &servers) })
    }

    /// Whether answers come validated by DNSSEC from somebody whose word counts; `None` if there is
    /// nobody to ask. For doctor.
    ///
    /// # Errors
    /// If nobody answered.
    pub async fn validates(&self) -> Result<Option<bool>, LookupError> {
        if self.validators.are_there() { self.validators.validate().await.map(Some) } else { Ok(None) }
    }

    /// The records of one type; other types in the answer (CNAMEs on the way) are left out.
    async fn records(&self, name: &str, kind: RecordType) -> Result<Vec<RData>, LookupError> {
        let mut name = Name::from_ascii(name).map_err(|_| LookupError::NoSuchName)?;
        name.set_fqdn(true);
        let lookup = match self.resolver.lookup(name.clone(), kind).await {
            Ok(lookup) => lookup,
            Err(error) if is_unproven(&error) && self.is_alias(name).await => {
                return Err(LookupError::Temporary("the name is an alias that leads nowhere".to_owned()));
            }
            Err(error) => return Err(failure(&error)),
        };
        let found: Vec<RData> = lookup
            .answers()
            .iter()
            .filter(|record| record.record_type() == kind)
            .map(|record| record.data.clone())
            .collect();
        // Only CNAMEs came back: the chain was longer than the resolver follows, or a loop.
        if found.is_empty() {
            return Err(LookupError::Temporary("the answer held no record of the type asked for".to_owned()));
        }
        Ok(found)
    }
}

impl SystemResolver {
    async fn is_alias(&self, name: Name) -> bool {
        let found = self.resolver.lookup(name, RecordType::CNAME).await;
        found.is_ok_and(|found| found.answers().iter().any(|record| record.record_type() == RecordType::CNAME))
    }
}

/// "No such record" without the SOA that proves it (RFC 2308 s2.2): an alias that leads to itself
/// looks like this too.
fn is_unproven(error: &NetError) -> bool {
    matches!(error, NetError::Dns(DnsError::NoRecordsFound(none))
        if none.response_code == ResponseCode::NoError && none.soa.is_none())
}

/// The servers that `/etc/resolv.conf` names.
fn configured(config: &ResolverConfig) -> Vec<SocketAddr> {
    let port = |server: &NameServerConfig| server.connections.first().map_or(53, |connection| connection.port);
    config.name_servers().iter().map(|server| SocketAddr::new(server.ip, port(server))).collect()
}

fn server_at(address: &SocketAddr) -> NameServerConfig {
    let (mut udp, mut tcp) = (ConnectionConfig::udp(), ConnectionConfig::tcp());
    udp.port = address.port();
    tcp.port = address.port();
    NameServerConfig::new(address.ip(), true, vec![udp, tcp])
}

fn apply(settings: &DnsSettings, options: &mut ResolverOpts) {
    options.timeout = settings.timeout;
    options.attempts = settings.attempts.max(1);
    options.cache_size = settings.cache_answers_max;
    options.edns0 = true;
    options.try_tcp_on_error = true;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    // Mail goes where DNS says; a line in /etc/hosts must not turn it elsewhere.
    options.use_hosts_file = ResolveHosts::Never;
    options.positive_max_ttl = Some(settings.ttl_max);
    options.negative_max_ttl = Some(settings.negative_ttl_max);
}

/// Which of the three kinds of nothing this is.
fn failure(error: &NetError) -> LookupError {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NXDomain => LookupError::NoSuchName,
            ResponseCode::NoError => LookupError::NoRecord,
            other => LookupError::Temporary(printable(&other.to_string())),
        },
        other => LookupError::Temporary(printable(&other.to_string())),
    }
}

/// A name from DNS as a domain; `None` if it is not a host name.
fn domain_of(name: &Name) -> Option<Domain> {
    Domain::parse(&name.to_ascii()).ok()
}

#[async_trait]
impl Resolver for SystemResolver {
    async fn mx(&self, domain: &Domain) -> Result<Vec<Mx>, LookupError> {
        let records = self.records(domain.as_str(), RecordType::MX).await?;
        let found: Vec<Mx> = records
            .iter()
            .filter_map(|data| match data {
                RData::MX(mx) if mx.exchange.is_root() => Some(Mx { preference: mx.preference, host: None }),
                RData::MX(mx) => domain_of(&mx.exchange).map(|host| Mx { preference: mx.preference, host: Some(host) }),
                _ => None,
            })
            .collect();
        // An address or rubbish in place of a host name: its owner may notice and mend it.
        if found.is_empty() {
            return Err(LookupError::Temporary("no MX record names a valid host".to_owned()));
        }
        Ok(found)
    }

    async fn ipv4(&self, host: &Domain) -> Result<Vec<Ipv4Addr>, LookupError> {
        let records = self.records(host.as_str(), RecordType::A).await?;
        Ok(records.iter().filter_map(|data| if let RData::A(a) = data { Some(a.0) } else { None }).collect())
    }

    async fn ipv6(&self, host: &Domain) -> Result<Vec<Ipv6Addr>, LookupError> {
        let records = self.records(host.as_str(), RecordType::AAAA).await?;
        Ok(records.iter().filter_map(|data| if let RData::AAAA(a) = data { Some(a.0) } else { None }).collect())
    }

    async fn txt(&self, name: &Domain) -> Result<Vec<String>, LookupError> {
        let records = self.records(name.as_str(), RecordType::TXT).await?;
        Ok(records
            .iter()
            .filter_map(|data| {
                let RData::TXT(txt) = data else { return None };
                let joined: Vec<u8> = txt.txt_data.iter().flat_map(|part| part.iter().copied()).collect();
                Some(String::from_utf8_lossy(&joined).into_owned())
            })
            .collect())
    }

    async fn ptr(&self, address: IpAddr) -> Result<Vec<Domain>, LookupError> {
        let records = self.records(&Name::from(address).to_ascii(), RecordType::PTR).await?;
        Ok(records
            .iter()
            .filter_map(|data| if let RData::PTR(ptr) = data { domain_of(&ptr.0) } else { None })
            .collect())
    }

    async fn proven_mx(&self, domain: &Domain) -> Result<Option<Vec<Domain>>, LookupError> {
        self.validators.mx_hosts(domain).await
    }

    async fn dane(&self, host: &Domain, port: u16) -> Result<Option<Dane>, LookupError> {
        self.validators.dane(host, port).await
    }

    async fn spf(&self, asked: &SpfQuestion<'_>) -> SpfAnswer {
        let spf::Judgement { answer, read } = spf::judge(&self.resolver, asked).await;
        if answer.result != Spf::Pass {
            return answer;
        }
        // The verifier takes the first of several records of a name; with more than one none counts (RFC 7208 s4.5).
        for name in read {
            let Ok(domain) = Domain::parse(name.trim_end_matches('.')) else { continue };
            match self.txt(&domain).await {
                Ok(texts) if texts.iter().filter(|text| spf::is_spf_record(text)).count() > 1 => {
                    return SpfAnswer { result: Spf::PermanentError, good_until: None };
                }
                Ok(_) => {}
                Err(_) => return SpfAnswer { result: Spf::TemporaryError, good_until: None },
            }
        }
        answer
    }
}
