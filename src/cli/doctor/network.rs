//! Checks that ask others: DNS, port 25 from each address, each virtual IP's name and the way back.
//!
//! Easy to get wrong: whether port 25 is open is a question for each address and family. A provider
//! blocks some of them, and a receiver may have listed one.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::super::vip::{HIDDEN, HIDDEN_REMEDY};
use super::{Finding, Known, domains, spf};
use crate::mail::{Domain, printable};
use crate::net::{
    BoundDialer, DialError, Dialer, DnsSettings, LookupError, Resolver, SystemResolver, is_present, is_public,
    seen_from_outside,
};
use crate::web::VipJson;

/// How long port 25 of the probe may take to answer.
const PROBE_PATIENCE: Duration = Duration::from_secs(10);
/// Octets read of its greeting, at most.
const GREETING_OCTETS_MAX: usize = 1024;
/// Questions under way at a time.
const AT_A_TIME: usize = 8;

/// What the checks ask with.
pub(super) struct World<'a> {
    pub(super) resolver: &'a dyn Resolver,
    pub(super) dialer: &'a dyn Dialer,
    pub(super) is_present: fn(IpAddr) -> bool,
    /// The port of mail exchangers.
    pub(super) port: u16,
    pub(super) patience: Duration,
}

/// Everything that needs the network.
pub(super) async fn check(dns: &DnsSettings, known: Option<&Known>, probe: &str) -> Vec<Finding> {
    let resolver = match SystemResolver::new(dns) {
        Ok(resolver) => resolver,
        Err(error) => return vec![Finding::fail("DNS", error.to_string(), "correct dns.servers or /etc/resolv.conf")],
    };
    let world = World { resolver: &resolver, dialer: &BoundDialer, is_present, port: 25, patience: PROBE_PATIENCE };
    let (vips, domains, relay) = known.map_or((&[][..], &[][..], None), |known| {
        (known.vips.as_slice(), known.domains.as_slice(), known.relay.as_deref())
    });
    let (mut found, host) = world.dns(probe).await;
    let Some(host) = host else { return found };
    found.push(validation(resolver.validates().await));
    found.extend(world.port_25(&host, vips, relay).await);
    found.extend(hidden(vips));
    found.extend(world.ways_back(vips).await);
    let mut service = None;
    if let Some((finding, own)) = spf::check_service(&resolver, known.map(|known| &known.spf)).await {
        found.push(finding);
        service = own;
    }
    found.extend(domains::check_records(&resolver, domains, (vips, service.as_ref())).await);
    found
}

/// Whether DANE can be used: somebody whose word counts must validate.
fn validation(said: Result<Option<bool>, LookupError>) -> Finding {
    let check = "DNSSEC";
    let remedy = "run a validating resolver such as unbound on this machine and set dns.servers = [\"127.0.0.1:53\"]";
    match said {
        Ok(Some(true)) => Finding::ok(check, "the resolver validates: receivers' TLSA records (DANE) are heeded"),
        Ok(Some(false)) => Finding::warn(check, "the resolver does not validate: no DANE", remedy),
        Ok(None) => Finding::warn(check, "no resolver whose validation counts (dns.validation): no DANE", remedy),
        Err(error) => {
            Finding::warn(check, format!("whether the resolver validates is not known: {error}"), "try again")
        }
    }
}

/// The host whose port 25 is tried.
pub(super) struct Probe {
    pub(super) name: Domain,
    pub(super) addresses: Vec<IpAddr>,
}

impl Probe {
    fn towards(&self, source: IpAddr) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| address.is_ipv4() == source.is_ipv4())
    }
}

const BLOCKED: &str = "ask your provider to open port 25 outbound, or send by a relay: postern route add";

impl World<'_> {
    /// Whether names are found, by that of the probe.
    pub(super) async fn dns(&self, probe: &str) -> (Vec<Finding>, Option<Probe>) {
        let Ok(name) = Domain::parse(probe) else {
            let text = format!("{probe:?} is not a host name");
            return (vec![Finding::fail("port 25", text, "give --probe another host")], None);
        };
        let (ipv4, ipv6) = tokio::join!(self.resolver.ipv4(&name), self.resolver.ipv6(&name));
        let failed = |error: LookupError| {
            let remedy = match error {
                LookupError::Temporary(_) | LookupError::Bogus(_) => {
                    "without DNS no mail leaves; a local resolver such as unbound is best"
                }
                _ => "give --probe another host",
            };
            let blind = Finding::warn("port 25", "not checked for want of DNS", "mend DNS first");
            (vec![Finding::fail("DNS", format!("{probe}: {error}"), remedy), blind], None)
        };
        let mut addresses: Vec<IpAddr> = Vec::new();
        let mut trouble = None;
        match ipv4 {
            Ok(found) => addresses.extend(found.into_iter().map(IpAddr::V4)),
            Err(error) => trouble = Some(error),
        }
        match ipv6 {
            Ok(found) => addresses.extend(found.into_iter().map(IpAddr::V6)),
            Err(LookupError::NoRecord) if trouble.is_some() => {}
            Err(error) => trouble = Some(error),
        }
        match (addresses.is_empty(), trouble) {
            (true, trouble) => failed(trouble.unwrap_or(LookupError::NoRecord)),
            (false, _) => (vec![Finding::ok("DNS", format!("{name} was found"))], Some(Probe { name, addresses })),
        }
    }

    /// Port 25 from each address of each virtual IP; from wherever the system likes if there is none yet.
    pub(super) async fn port_25(&self, probe: &Probe, vips: &[VipJson], relay: Option<&str>) -> Vec<Finding> {
        let sources: Vec<IpAddr> = vips.iter().flat_map(local).collect();
        if sources.is_empty() {
            let Some(address) = probe.addresses.first() else { return Vec::new() };
            let target = SocketAddr::new(*address, self.port);
            let connect = async {
                TcpStream::connect(target).await.map_err(|error| DialError::Failed(format!("connect: {error}")))
            };
            let said = self.greeting_of(connect).await;
            return vec![judged("port 25".to_owned(), probe, said, relay)];
        }
        let asked = sources.into_iter().map(|source| self.from(source, probe, relay));
        stream::iter(asked).buffered(AT_A_TIME).collect().await
    }

    async fn from(&self, source: IpAddr, probe: &Probe, relay: Option<&str>) -> Finding {
        let check = format!("port 25 from {source}");
        if source.is_loopback() {
            return Finding::warn(check, "a loopback address reaches nobody", "only trials use loopback addresses");
        }
        if !(self.is_present)(source) {
            return Finding::warn(check, "not checked: the address is not on this host", "put it back, then try again");
        }
        let Some(address) = probe.towards(source) else {
            let family = if source.is_ipv4() { "IPv4" } else { "IPv6" };
            let text = format!("not checked: {} has no {family} address", probe.name);
            return Finding::warn(check, text, "give --probe another host");
        };
        let target = SocketAddr::new(address, self.port);
        let said = self.greeting_of(self.dialer.dial(source, target, self.patience)).await;
        judged(check, probe, said, relay)
    }

    /// The first line that the host says.
    async fn greeting_of(
        &self,
        connecting: impl Future<Output = Result<TcpStream, DialError>>,
    ) -> Result<String, String> {
        let asked = tokio::time::timeout(self.patience, async {
            let mut stream = connecting.await.map_err(|error| error.to_string())?;
            let mut line = Vec::new();
            while !line.contains(&b'\n') && line.len() < GREETING_OCTETS_MAX {
                let count = stream.read_buf(&mut line).await.map_err(|error| error.to_string())?;
                if count == 0 {
                    return Err("hung up without a greeting".to_owned());
                }
            }
            // A goodbye is good manners; nothing depends on it.
            let _ = stream.write_all(b"QUIT\r\n").await;
            let text = String::from_utf8_lossy(&line);
            Ok(printable(text.lines().next().unwrap_or_default()))
        });
        asked.await.unwrap_or_else(|_| Err(format!("no answer within {} s", self.patience.as_secs())))
    }

    /// PTR and forward match of every address the world sees.
    pub(super) async fn ways_back(&self, vips: &[VipJson]) -> Vec<Finding> {
        let seen = |vip: &VipJson| seen_from_outside(vip.public_addresses());
        let all = vips.iter().flat_map(|vip| seen(vip).into_iter().map(move |address| (vip, address)));
        let asked = all.map(|(vip, address)| way_back(self.resolver, vip, address));
        stream::iter(asked).buffered(AT_A_TIME).collect().await
    }
}

/// `relay` carries all mail, if there is such a one.
fn judged(check: String, probe: &Probe, said: Result<String, String>, relay: Option<&str>) -> Finding {
    let host = &probe.name;
    match (said, relay) {
        (Ok(greeting), _) if greeting.starts_with("220") => Finding::ok(check, format!("{host} answers")),
        (Ok(greeting), _) => {
            let remedy = "that host wants no mail from this address; see whether a blocklist names it, or try --probe";
            Finding::warn(check, format!("{host} says {greeting}"), remedy)
        }
        (Err(error), Some(relay)) => {
            let text = format!("{host}: {error}; all mail goes by the relay {relay}");
            Finding::warn(check, text, "nothing, as long as that route stands: postern route list")
        }
        (Err(error), None) => Finding::fail(check, format!("{host}: {error}"), BLOCKED),
    }
}

fn local(vip: &VipJson) -> impl Iterator<Item = IpAddr> {
    vip.ipv4.map(IpAddr::V4).into_iter().chain(vip.ipv6.map(IpAddr::V6))
}

/// Addresses that no receiver sees: what it sees instead is in no record that is printed here.
pub(super) fn hidden(vips: &[VipJson]) -> Vec<Finding> {
    let all = vips.iter().flat_map(|vip| vip.public_addresses().map(move |address| (vip, address)));
    let hidden = all.filter(|(_, address)| !is_public(*address) && !address.is_loopback());
    let finding = |(vip, address): (&VipJson, IpAddr)| {
        let remedy = HIDDEN_REMEDY.replace("EHLO-NAME", &vip.ehlo);
        Finding::warn(format!("public address of {address}"), format!("{address} {HIDDEN}"), remedy)
    };
    hidden.map(finding).collect()
}

/// The address must lead to the name (PTR) and the name back to the address.
async fn way_back(resolver: &dyn Resolver, vip: &VipJson, address: IpAddr) -> Finding {
    let check = format!("PTR of {address}");
    if address.is_loopback() {
        return Finding::warn(check, "a loopback address has none", "only trials use loopback addresses");
    }
    let Ok(name) = Domain::parse(&vip.ehlo) else {
        return Finding::fail(check, format!("{} is not a name", vip.ehlo), "remove the virtual IP and add it anew");
    };
    let set = format!("set it to {name} where you rent the address");
    match resolver.ptr(address).await {
        Ok(names) if names.contains(&name) => {}
        Ok(names) => {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            return Finding::fail(check, format!("is {}, not {name}", names.join(", ")), set);
        }
        Err(LookupError::Temporary(text) | LookupError::Bogus(text)) => return Finding::warn(check, text, "try again"),
        Err(error) => return Finding::fail(check, error.to_string(), set),
    }
    let forward: Result<Vec<IpAddr>, LookupError> = match address {
        IpAddr::V4(_) => resolver.ipv4(&name).await.map(|found| found.into_iter().map(IpAddr::V4).collect()),
        IpAddr::V6(_) => resolver.ipv6(&name).await.map(|found| found.into_iter().map(IpAddr::V6).collect()),
    };
    let kind = if address.is_ipv4() { "A" } else { "AAAA" };
    let publish = format!("publish {name}. {kind} {address}");
    match forward {
        Ok(found) if found.contains(&address) => Finding::ok(check, format!("is {name}, which leads back")),
        Ok(_) => Finding::fail(check, format!("is {name}, which leads elsewhere"), publish),
        Err(LookupError::Temporary(text) | LookupError::Bogus(text)) => Finding::warn(check, text, "try again"),
        Err(error) => Finding::fail(check, format!("is {name}, and that name leads nowhere: {error}"), publish),
    }
}

#[cfg(test)]
#[path = "network_tests.rs"]
mod tests;
