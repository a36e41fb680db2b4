//! A small authoritative DNS server over UDP and TCP, for `postern try` and the tests.
//!
//! It refuses to be a real name server: no transfers, no delegation, no signatures (it only says of
//! names that it validated them, as a resolver would), nothing is read from disk. Easy to get wrong: the kinds of nothing must differ (NXDOMAIN, an empty answer, no
//! answer at all), and negative answers need an SOA or no resolver will remember them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, MX, PTR, SOA, TLSA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::dane::Tlsa;
use crate::background::Shutdown;

/// Seconds an answer may be kept.
const TTL_SECS: u32 = 60;
/// CNAMEs followed within the zone, at most; a loop is SERVFAIL, as recursive servers have it.
const CNAME_HOPS_MAX: usize = 8;
/// Octets of a UDP answer; longer ones are truncated and asked again over TCP.
const UDP_OCTETS_MAX: usize = 1_232;
/// A silent TCP client is dropped after this.
const TCP_PATIENCE: Duration = Duration::from_secs(10);
/// Octets in one string of a TXT record (RFC 1035 s3.3.14).
const TXT_STRING_OCTETS_MAX: usize = 255;

/// How a name misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// SERVFAIL.
    ServerFailure,
    /// REFUSED.
    Refused,
    /// No answer at all.
    Silence,
}

/// Names and their records. A name without any record does not exist (NXDOMAIN) unless a longer
/// name ends in it.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    records: BTreeMap<String, Vec<RData>>,
    troubles: BTreeMap<String, Trouble>,
    empty: BTreeSet<String>,
    signed: BTreeSet<String>,
}

impl Zone {
    /// An empty zone: every name is NXDOMAIN.
    pub fn new() -> Self {
        Self::default()
    }

    fn add(mut self, name: &str, data: RData) -> Self {
        self.records.entry(key(name)).or_default().push(data);
        self
    }

    /// An A record.
    #[must_use]
    pub fn ipv4(self, name: &str, address: Ipv4Addr) -> Self {
        self.add(name, RData::A(A(address)))
    }

    /// An AAAA record.
    #[must_use]
    pub fn ipv6(self, name: &str, address: Ipv6Addr) -> Self {
        self.add(name, RData::AAAA(AAAA(address)))
    }

    /// An MX record; the host `.` makes it a null MX (RFC 7505).
    #[must_use]
    pub fn mx(self, name: &str, preference: u16, host: &str) -> Self {
        self.add(name, RData::MX(MX::new(preference, dns_name(host))))
    }

    /// A TXT record, split into strings as needed.
    #[must_use]
    pub fn txt(self, name: &str, text: &str) -> Self {
        let strings = text.as_bytes().chunks(TXT_STRING_OCTETS_MAX).collect();
        self.add(name, RData::TXT(TXT::from_bytes(strings)))
    }

    /// A CNAME record.
    #[must_use]
    pub fn cname(self, name: &str, target: &str) -> Self {
        self.add(name, RData::CNAME(CNAME(dns_name(target))))
    }

    /// A PTR record of `address`.
    #[must_use]
    pub fn ptr(self, address: IpAddr, host: &str) -> Self {
        self.add(&Name::from(address).to_ascii(), RData::PTR(PTR(dns_name(host))))
    }

    /// A TLSA record.
    #[must_use]
    pub fn tlsa(self, name: &str, record: &Tlsa) -> Self {
        let Tlsa { usage, selector, matching, data } = record.clone();
        self.add(name, RData::TLSA(TLSA::new(usage.into(), selector.into(), matching.into(), data)))
    }

    /// Answers about the name, and all below it, are said to have been validated by DNSSEC (the AD
    /// bit), to those who ask for that.
    #[must_use]
    pub fn signed(mut self, name: &str) -> Self {
        self.signed.insert(key(name));
        self
    }

    /// The name exists and has no record.
    #[must_use]
    pub fn empty(mut self, name: &str) -> Self {
        self.empty.insert(key(name));
        self
    }

    /// Questions about the name, of whatever type, meet this trouble.
    #[must_use]
    pub fn trouble(mut self, name: &str, trouble: Trouble) -> Self {
        self.troubles.insert(key(name), trouble);
        self
    }

    fn exists(&self, name: &str) -> bool {
        let below = format!(".{name}");
        self.empty.contains(name)
            || self.records.contains_key(name)
            || self.records.keys().any(|known| known.ends_with(&below))
    }

    fn is_signed(&self, name: &str) -> bool {
        let within = |zone: &String| name == zone || zone.is_empty() || name.ends_with(&format!(".{zone}"));
        self.signed.iter().any(within)
    }

    /// The answer to `question`, or `None` for silence.
    fn answer(&self, question: &Message) -> Option<Message> {
        let mut reply = Message::response(question.metadata.id, question.metadata.op_code);
        reply.metadata.recursion_desired = question.metadata.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.metadata.authoritative = true;
        let Some(asked) = question.queries.first().filter(|_| question.metadata.op_code == OpCode::Query) else {
            reply.metadata.response_code = ResponseCode::NotImp;
            return Some(reply);
        };
        reply.add_query(asked.clone());
        let mut name = asked.name().clone();
        let mut spelled = key(&name.to_ascii());
        let wants_proof =
            question.metadata.authentic_data || question.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        reply.metadata.authentic_data = wants_proof && self.is_signed(&spelled);
        for hop in 0..=CNAME_HOPS_MAX {
            if hop == CNAME_HOPS_MAX {
                reply.metadata.response_code = ResponseCode::ServFail;
                reply.answers.clear();
                return Some(reply);
            }
            match self.troubles.get(&spelled) {
                Some(Trouble::Silence) => return None,
                Some(Trouble::ServerFailure) => reply.metadata.response_code = ResponseCode::ServFail,
                Some(Trouble::Refused) => reply.metadata.response_code = ResponseCode::Refused,
                None => {}
            }
            if reply.metadata.response_code != ResponseCode::NoError {
                return Some(reply);
            }
            let records = self.records.get(&spelled).map(Vec::as_slice).unwrap_or_default();
            for data in records.iter().filter(|data| data.record_type() == asked.query_type()) {
                reply.add_answer(Record::from_rdata(name.clone(), TTL_SECS, data.clone()));
            }
            let alias =
                records.iter().find_map(|data| if let RData::CNAME(target) = data { Some(&target.0) } else { None });
            match alias {
                Some(target) if asked.query_type() != RecordType::CNAME => {
                    reply.add_answer(Record::from_rdata(name, TTL_SECS, RData::CNAME(CNAME(target.clone()))));
                    name = target.clone();
                    spelled = key(&name.to_ascii());
                    // One link that nobody signed, and nothing is proved.
                    reply.metadata.authentic_data &= self.is_signed(&spelled);
                }
                _ => break,
            }
        }
        if !reply.answers.iter().any(|record| record.record_type() == asked.query_type()) {
            if !self.exists(&spelled) {
                reply.metadata.response_code = ResponseCode::NXDomain;
            }
            reply.add_authority(soa(&name));
        }
        Some(reply)
    }
}

/// One spelling for a name: lower case, no trailing dot.
fn key(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// A name as DNS spells it; what cannot be one becomes the root.
fn dns_name(text: &str) -> Name {
    let mut name = Name::from_ascii(text).unwrap_or_else(|_| Name::root());
    name.set_fqdn(true);
    name
}

fn soa(name: &Name) -> Record {
    let zone = name.base_name();
    let ttl = i32::try_from(TTL_SECS).unwrap_or(i32::MAX);
    let data = SOA::new(dns_name("ns.invalid"), dns_name("hostmaster.invalid"), 1, ttl, ttl, ttl, TTL_SECS);
    Record::from_rdata(zone, TTL_SECS, RData::SOA(data))
}

/// The server; dropping it stops it.
pub struct ZoneServer {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    shutdown: Shutdown,
}

impl ZoneServer {
    /// Serves `zone` on UDP and TCP at `address`; port 0 picks one that is free for both.
    pub async fn bind(address: SocketAddr, zone: Zone) -> io::Result<Self> {
        let mut tries_left = 20_u8;
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind(address).await?;
            match TcpListener::bind(udp.local_addr()?).await {
                Ok(tcp) => break (udp, tcp),
                Err(error) if address.port() != 0 || tries_left == 0 => return Err(error),
                Err(_) => tries_left = tries_left.saturating_sub(1),
            }
        };
        let server = Self { address: udp.local_addr()?, zone: Arc::new(Mutex::new(zone)), shutdown: Shutdown::new() };
        tokio::spawn(server.shutdown.clone().run_until_cancelled_owned(serve_udp(udp, server.zone.clone())));
        tokio::spawn(server.shutdown.clone().run_until_cancelled_owned(serve_tcp(tcp, server.zone.clone())));
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers from `zone` from now on.
    pub fn replace(&self, zone: Zone) {
        *self.zone.lock().unwrap_or_else(PoisonError::into_inner) = zone;
    }
}

impl Drop for ZoneServer {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// The bytes to send back, or `None` for silence (or a question nobody can read).
fn respond(zone: &Mutex<Zone>, question: &[u8], octets_max: usize) -> Option<Vec<u8>> {
    let question = Message::from_vec(question).ok()?;
    if question.metadata.message_type != MessageType::Query {
        return None;
    }
    let reply = zone.lock().unwrap_or_else(PoisonError::into_inner).answer(&question)?;
    let bytes = reply.to_vec().ok()?;
    if bytes.len() <= octets_max { Some(bytes) } else { reply.truncate().to_vec().ok() }
}

async fn serve_udp(socket: UdpSocket, zone: Arc<Mutex<Zone>>) {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
        if let Some(reply) = buffer.get(..length).and_then(|question| respond(&zone, question, UDP_OCTETS_MAX)) {
            let _ = socket.send_to(&reply, peer).await;
        }
    }
}

async fn serve_tcp(listener: TcpListener, zone: Arc<Mutex<Zone>>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let zone = zone.clone();
        tokio::spawn(async move {
            let _ = tokio::time::timeout(TCP_PATIENCE, converse(stream, &zone)).await;
        });
    }
}

async fn converse(mut stream: TcpStream, zone: &Mutex<Zone>) -> io::Result<()> {
    loop {
        let length = stream.read_u16().await?;
        let mut question = vec![0; usize::from(length)];
        stream.read_exact(&mut question).await?;
        let Some(reply) = respond(zone, &question, usize::from(u16::MAX)) else { continue };
        let mut framed = u16::try_from(reply.len()).unwrap_or(u16::MAX).to_be_bytes().to_vec();
        framed.extend_from_slice(&reply);
        stream.write_all(&framed).await?;
    }
}

#[cfg(test)]
mod tests;
