//! The transport through a relay people configured: host, port, TLS and login from the routes.
//!
//! Easy to get wrong: whatever is wrong with the route is the operator's to mend, so mail waits
//! and is never bounced for it. A relay may be on a private network: it was named by the operator.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};

use super::client::Client;
use super::shaping::LOGIN_MARK;
use super::transport::{Families, Host, Job, Login, NoSite, Report, Site, Standing, TlsUse, Transport};
use crate::events::Why;
use crate::ext::base32;
use crate::mail::Domain;
use crate::net::{LookupError, Resolver};
use crate::routing::{Lane, RelayTls, Route, Routes, TransportName};

/// Through one configured relay.
pub struct Smarthost {
    resolver: Arc<dyn Resolver>,
    routes: Arc<Routes>,
    client: Arc<Client>,
}

impl Smarthost {
    /// The transport.
    pub fn new(resolver: Arc<dyn Resolver>, routes: Arc<Routes>, client: Arc<Client>) -> Self {
        Self { resolver, routes, client }
    }

    async fn addresses(&self, host: &str, families: Families) -> Result<Vec<IpAddr>, NoSite> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![address]);
        }
        let wrong = |detail: String| NoSite::Deferred(Why::OurConfiguration, detail);
        let name = Domain::parse(host).map_err(|error| wrong(format!("relay {host}: {error}")))?;
        let (ipv4, ipv6) = tokio::join!(
            async { if families.ipv4 { self.resolver.ipv4(&name).await } else { Err(LookupError::NoRecord) } },
            async { if families.ipv6 { self.resolver.ipv6(&name).await } else { Err(LookupError::NoRecord) } },
        );
        let mut found: Vec<IpAddr> = Vec::new();
        let mut last = None;
        match ipv4 {
            Ok(addresses) => found.extend(addresses.into_iter().map(IpAddr::V4)),
            Err(error) => last = Some(error),
        }
        match ipv6 {
            Ok(addresses) => found.extend(addresses.into_iter().map(IpAddr::V6)),
            Err(LookupError::NoRecord) => {}
            Err(error) => last = Some(error),
        }
        match (found.is_empty(), last) {
            (false, _) => Ok(found),
            (true, Some(LookupError::Temporary(reason) | LookupError::Bogus(reason))) => {
                Err(NoSite::Deferred(Why::Dns, format!("relay {host}: {reason}")))
            }
            (true, _) => Err(wrong(format!("relay {host} has no address this virtual IP can reach"))),
        }
    }
}

/// `host:port`; with a login `host:port/route`, since what a relay says to one login, and how much it takes
/// from it, is not about the others. See [`super::shaping::is_called`].
fn site_name(route: &Route) -> String {
    let relay = format!("{}:{}", route.host, route.port);
    match route.login {
        None => relay,
        Some(_) => format!("{relay}{LOGIN_MARK}{}", base32(&route.id.to_be_bytes())),
    }
}

/// Which idle connections may serve a route: those opened for it and logged in as it says now. Nothing of
/// the password can be read from it: it goes in as it is sealed.
fn realm(route: &Route) -> u64 {
    let mut hash = Sha256::new_with_prefix(route.id.to_be_bytes());
    if let Some(login) = &route.login {
        hash.update([1]);
        hash.update(login.user.len().to_be_bytes());
        hash.update(&login.user);
        hash.update(&login.sealed_password);
    }
    let octets: [u8; 8] = hash.finalize().first_chunk().copied().unwrap_or_default();
    // 0 is for no relay.
    u64::from_be_bytes(octets).max(1)
}

#[async_trait]
impl Transport for Smarthost {
    async fn site(&self, lane: &Lane, families: Families) -> Result<Site, NoSite> {
        let wrong = |detail: String| NoSite::Deferred(Why::OurConfiguration, detail);
        let TransportName::Smarthost(id) = lane.transport else {
            return Err(wrong("this lane does not go through a relay".to_owned()));
        };
        let route = self.routes.route(id).ok_or_else(|| wrong("its route was removed".to_owned()))?;
        let login = match (&route.login, self.routes.login(&route)) {
            (None, _) => None,
            (Some(_), Some((user, password))) => Some(Arc::new(Login { user, password })),
            (Some(_), None) => return Err(wrong("the login of its route cannot be opened".to_owned())),
        };
        let addresses = self.addresses(&route.host, families).await?;
        let tls = match route.tls {
            RelayTls::Implicit => TlsUse::Implicit,
            RelayTls::Starttls => TlsUse::Required(crate::net::Verify::Required),
            RelayTls::Opportunistic => TlsUse::Opportunistic,
            RelayTls::None => TlsUse::Never,
        };
        Ok(Site {
            name: site_name(&route).into(),
            provider: None,
            hosts: vec![Host {
                name: route.host.clone(),
                preference: 0,
                addresses,
                tls,
                policy: None,
                standing: Standing::Proven,
                reported: Arc::default(),
            }],
            port: route.port,
            realm: realm(&route),
            login,
        })
    }

    fn revision(&self) -> u64 {
        self.routes.revision()
    }

    async fn attempt(&self, job: Job) -> Report {
        self.client.drain(job).await
    }
}

#[cfg(test)]
mod tests {
    use super::super::shaping::is_called;
    use super::*;
    use crate::routing::{RelayLogin, RouteScope};

    fn route(id: u64, user: Option<&str>) -> Route {
        let login = user.map(|user| RelayLogin { user: user.to_owned(), sealed_password: vec![1, 2, 3] });
        let (host, port) = ("relay.example".to_owned(), 587);
        Route { id, scope: RouteScope::Instance, host, port, tls: RelayTls::Starttls, login }
    }

    #[test]
    fn each_login_at_a_relay_is_a_site_of_its_own() {
        let (one, other) = (site_name(&route(1, Some("a"))), site_name(&route(2, Some("b"))));
        assert_ne!(one, other, "a revoked password of one is not the other's");
        assert_eq!(site_name(&route(3, None)), "relay.example:587");
        for name in [&one, &other] {
            assert!(is_called(name, "relay.example:587"), "{name}: what is set for the relay holds for it");
            assert!(is_called(name, name) && !is_called(name, "relay.example:25") && !is_called(name, "relay"));
        }
        assert!(!is_called(&one, &other) && !is_called("relay.example:587", &one));
    }

    #[test]
    fn a_changed_login_is_served_by_no_connection_of_the_old_one() {
        let before = route(1, Some("a"));
        let of = |user: &str, sealed_password: Vec<u8>| {
            let login = Some(RelayLogin { user: user.to_owned(), sealed_password });
            realm(&Route { login, ..before.clone() })
        };
        let realms = [
            realm(&before),
            of("b", vec![1, 2, 3]),
            of("a", vec![1, 2, 4]),
            // Not told apart by where the user's name ends.
            of("a\u{1}", vec![2, 3]),
            realm(&Route { login: None, ..before.clone() }),
            realm(&Route { id: 2, ..before.clone() }),
            0,
        ];
        for (number, one) in realms.iter().enumerate() {
            assert!(!realms[..number].contains(one), "{number}");
        }
        assert_eq!(of("a", vec![1, 2, 3]), realm(&before));
    }
}
