//! Questions whose answers somebody we trust has validated by DNSSEC: the AD bit of a resolver on
//! this machine (RFC 4035 s3.2.3), as Postfix does it.
//!
//! The resolver crate never asks for that bit, so these questions go out on their own, without a
//! cache: the resolver beside us has one. Easy to get wrong: the bit means nothing if it crossed a
//! network; and a bogus answer is SERVFAIL, which must never look like "there is no such record".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use super::dane::{Dane, Tlsa};
use super::{DnsSettings, LookupError};
use crate::ext::random_bytes;
use crate::mail::{Domain, printable};

/// Octets of an answer over UDP; longer ones come over TCP.
const UDP_OCTETS_MAX: u16 = 1_232;
/// TLSA records of one name looked at, at most.
const RECORDS_MAX: usize = 64;
/// Aliases followed from a host to the name of its addresses, at most.
const ALIASES_MAX: usize = 8;

/// Whose word counts that an answer was validated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Validation {
    /// That of resolvers on loopback addresses.
    #[default]
    Loopback,
    /// That of all configured resolvers: the way to them is as safe as this machine.
    Trusted,
    /// Nobody's: no DANE.
    Off,
}

/// Resolvers whose word counts.
pub(super) struct Validators {
    servers: Vec<SocketAddr>,
    timeout: Duration,
    attempts: usize,
}

impl Validators {
    pub(super) fn of(settings: &DnsSettings, servers: &[SocketAddr]) -> Self {
        let counts = |server: &&SocketAddr| match settings.validation {
            Validation::Loopback => server.ip().to_canonical().is_loopback(),
            Validation::Trusted => true,
            Validation::Off => false,
        };
        Self {
            servers: servers.iter().filter(counts).copied().collect(),
            timeout: settings.timeout,
            attempts: settings.attempts.max(1),
        }
    }

    /// Whether there is one to ask.
    pub(super) fn are_there(&self) -> bool {
        !self.servers.is_empty()
    }

    /// Whether the answers come validated: the root's own records say so.
    pub(super) async fn validate(&self) -> Result<bool, LookupError> {
        Ok(self.ask(&Name::root(), RecordType::NS).await?.metadata.authentic_data)
    }

    /// The mail exchangers of `domain`, itself if it has no MX record; `None` if nothing proves them.
    pub(super) async fn mx_hosts(&self, domain: &Domain) -> Result<Option<Vec<Domain>>, LookupError> {
        if !self.are_there() {
            return Ok(None);
        }
        let answer = self.ask(&name_of(domain.as_str())?, RecordType::MX).await?;
        if !answer.metadata.authentic_data {
            return Ok(None);
        }
        let mut hosts: Vec<Domain> = answer
            .answers
            .iter()
            .filter_map(|record| match &record.data {
                RData::MX(mx) => Domain::parse(&mx.exchange.to_ascii()).ok(),
                _ => None,
            })
            .collect();
        if hosts.is_empty() && answer.metadata.response_code == ResponseCode::NoError {
            hosts.push(domain.clone());
        }
        Ok(Some(hosts))
    }

    /// What DANE says about `host`; `None` without proof that its addresses are its own, or without
    /// TLSA records (RFC 7672 s2.2).
    pub(super) async fn dane(&self, host: &Domain, port: u16) -> Result<Option<Dane>, LookupError> {
        if !self.are_there() {
            return Ok(None);
        }
        let name = name_of(host.as_str())?;
        let mut address = self.ask(&name, RecordType::A).await?;
        if !has(&address, RecordType::A) {
            address = self.ask(&name, RecordType::AAAA).await?;
        }
        if !address.metadata.authentic_data {
            return Ok(None);
        }
        // RFC 7672 s2.1.3: where the host is an alias, what it stands for is asked first.
        let expanded = expansion(&address, &name);
        for base in expanded.iter().chain([&name]) {
            let asked = name_of(&format!("_{port}._tcp.{}", base.to_ascii()))?;
            let answer = self.ask(&asked, RecordType::TLSA).await?;
            if !answer.metadata.authentic_data || !has(&answer, RecordType::TLSA) {
                continue;
            }
            let found = answer.answers.iter().filter_map(|record| match &record.data {
                RData::TLSA(tlsa) => Some(Tlsa {
                    usage: tlsa.cert_usage.into(),
                    selector: tlsa.selector.into(),
                    matching: tlsa.matching.into(),
                    data: tlsa.cert_data.clone(),
                }),
                _ => None,
            });
            let base = Domain::parse(&base.to_ascii()).unwrap_or_else(|_| host.clone());
            return Ok(Some(Dane::of(found.take(RECORDS_MAX).collect(), &base)));
        }
        Ok(None)
    }

    /// Whether there is an answer if nobody validates it: then SERVFAIL meant that it is bogus, and not that
    /// nobody could be asked.
    async fn is_there_unchecked(&self, server: SocketAddr, name: &Name, kind: RecordType) -> bool {
        let asked = exchange(server, name, kind, Checking::Disabled);
        let answer = tokio::time::timeout(self.timeout, asked).await;
        let code = answer.ok().and_then(Result::ok).map(|answer| answer.metadata.response_code);
        matches!(code, Some(ResponseCode::NoError | ResponseCode::NXDomain))
    }

    /// NOERROR and NXDOMAIN are answers; anything else, bogus answers with it, is none.
    async fn ask(&self, name: &Name, kind: RecordType) -> Result<Message, LookupError> {
        let mut last = "no validating resolver is configured".to_owned();
        for server in self.servers.iter().cycle().take(self.servers.len().saturating_mul(self.attempts)) {
            let asked = exchange(*server, name, kind, Checking::Asked);
            let answer = tokio::time::timeout(self.timeout, asked).await;
            match answer {
                Ok(Ok(answer)) => match answer.metadata.response_code {
                    ResponseCode::NoError | ResponseCode::NXDomain => return Ok(answer),
                    ResponseCode::ServFail if self.is_there_unchecked(*server, name, kind).await => {
                        return Err(LookupError::Bogus(printable(&format!("{kind} of {name}: {server} said so"))));
                    }
                    code => last = format!("{server} said {code}"),
                },
                Ok(Err(error)) => last = format!("{server}: {error}"),
                Err(_) => last = format!("{server} did not answer within {} s", self.timeout.as_secs()),
            }
        }
        Err(LookupError::Temporary(printable(&format!("{kind} of {name}: {last}"))))
    }
}

/// Whether the resolver is to validate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Checking {
    /// It is.
    Asked,
    /// It is to hand over what it has (RFC 4035 s3.2.2).
    Disabled,
}

fn name_of(text: &str) -> Result<Name, LookupError> {
    let mut name = Name::from_ascii(text).map_err(|_| LookupError::NoSuchName)?;
    name.set_fqdn(true);
    Ok(name)
}

fn has(answer: &Message, kind: RecordType) -> bool {
    answer.answers.iter().any(|record| record.record_type() == kind)
}

/// The name that `name` is an alias of, if it is one.
fn expansion(answer: &Message, name: &Name) -> Option<Name> {
    let mut at = name.clone();
    for _ in 0..ALIASES_MAX {
        let next = answer.answers.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == at => Some(target.0.clone()),
            _ => None,
        });
        let Some(next) = next else { break };
        at = next;
    }
    (at != *name).then_some(at)
}

fn question(id: u16, name: &Name, kind: RecordType, checking: Checking) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    // RFC 6840 s5.7: either of the two asks for the bit; not every resolver knows both.
    message.metadata.authentic_data = true;
    message.metadata.checking_disabled = checking == Checking::Disabled;
    message.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_OCTETS_MAX).set_version(0).set_dnssec_ok(true);
    message.set_edns(edns);
    message
}

/// Whether `answer` is one to this question.
fn is_answer(answer: &Message, id: u16, name: &Name, kind: RecordType) -> bool {
    answer.metadata.id == id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries.first().is_some_and(|asked| asked.name() == name && asked.query_type() == kind)
}

async fn exchange(server: SocketAddr, name: &Name, kind: RecordType, checking: Checking) -> std::io::Result<Message> {
    let id = u16::from_be_bytes(random_bytes());
    let bytes = question(id, name, kind, checking).to_vec().map_err(std::io::Error::other)?;
    let own: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(own, 0)).await?;
    socket.connect(server).await?;
    socket.send(&bytes).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    let answer = loop {
        let length = socket.recv(&mut buffer).await?;
        let read = buffer.get(..length).and_then(|bytes| Message::from_vec(bytes).ok());
        if let Some(answer) = read.filter(|answer| is_answer(answer, id, name, kind)) {
            break answer;
        }
    };
    if answer.metadata.truncation { over_tcp(server, &bytes, (id, name, kind)).await } else { Ok(answer) }
}

async fn over_tcp(
    server: SocketAddr,
    bytes: &[u8],
    (id, name, kind): (u16, &Name, RecordType),
) -> std::io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let mut framed = u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes().to_vec();
    framed.extend_from_slice(bytes);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await?;
    let answer = Message::from_vec(&buffer).map_err(std::io::Error::other)?;
    if is_answer(&answer, id, name, kind) {
        Ok(answer)
    } else {
        Err(std::io::Error::other("an answer to another question"))
    }
}

#[cfg(test)]
#[path = "validated_tests.rs"]
mod tests;
