//! Where mail for a recipient goes next: the lane, known without DNS. [`RouteTable::lane`] is pure.
//!
//! Recipe: intake takes [`Routes::table`] and asks it for each recipient's lane; delivery asks
//! [`Routes::route`] and [`Routes::login`] when a lane names a smarthost.

mod routes;

// For tests/fuzz only, see docs/how-to/fuzz.md; not part of the face.
#[doc(hidden)]
pub use routes::Record;
pub use routes::{LoginChange, NewRoute, RELAY_LOGIN_OCTETS_MAX, RouteChange, Routes, reseal};

use serde::{Deserialize, Serialize};

use crate::mail::{Class, Domain, TenantId, VipId};

/// The unit of queueing. All of it is in the key of the due index from the first day.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lane {
    /// The only virtual IP this mail may leave by.
    pub vip: VipId,
    /// Whose mail.
    pub tenant: TenantId,
    /// Transactional goes first.
    pub class: Class,
    /// Straight to the MX hosts, or through a smarthost.
    pub transport: TransportName,
    /// Recipient domain for `Mx`; the route's id for `Smarthost` mail is in `transport`.
    pub next_hop: Domain,
}

/// Which transport carries a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TransportName {
    /// The recipient domain's mail exchangers.
    Mx,
    /// A configured relay, by route id.
    Smarthost(u64),
    /// The recipient domain's mail exchangers, whatever its policies demand of TLS: reports about TLS, which
    /// must not fail by what they report (RFC 8460 s3).
    MxDespiteTls,
}

/// A smarthost people configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Its id.
    pub id: u64,
    /// For which mail.
    pub scope: RouteScope,
    /// Host name or address of the relay.
    pub host: String,
    /// Its port, often 587 or 465.
    pub port: u16,
    /// How to secure it.
    pub tls: RelayTls,
    /// The login there, sealed under the master key by whoever stores it.
    pub login: Option<RelayLogin>,
}

/// Which mail a route takes: the narrowest that fits wins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RouteScope {
    /// All mail.
    Instance,
    /// One tenant's mail.
    Tenant(TenantId),
    /// Mail to this domain (and below), of everyone.
    RecipientDomain(Domain),
    /// Only what a rule about destinations sends there.
    OnDemand,
}

/// TLS towards a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RelayTls {
    /// TLS first (port 465), certificate verified.
    Implicit,
    /// STARTTLS required, certificate verified.
    Starttls,
    /// STARTTLS if offered, not verified.
    Opportunistic,
    /// Never; for relays on this host.
    None,
}

/// A login at a relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayLogin {
    /// User name.
    pub user: String,
    /// Password, AES-256-GCM under the master key.
    pub sealed_password: Vec<u8>,
}

/// All routes, narrowest first when asked.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    /// In no order.
    pub routes: Vec<Route>,
}

impl RouteTable {
    /// The lane of a recipient in `domain`. Recipient domain beats tenant beats instance.
    pub fn lane(&self, vip: VipId, tenant: TenantId, class: Class, domain: &Domain) -> Lane {
        let rank = |route: &&Route| match &route.scope {
            RouteScope::RecipientDomain(scope) if domain.is_within(scope) => 100 + scope.as_str().len(),
            RouteScope::Tenant(scope) if *scope == tenant => 2,
            RouteScope::Instance => 1,
            _ => 0,
        };
        let route = self.routes.iter().filter(|route| rank(route) > 0).max_by_key(rank);
        let transport = route.map_or(TransportName::Mx, |route| TransportName::Smarthost(route.id));
        Lane { vip, tenant, class, transport, next_hop: domain.clone() }
    }
}
