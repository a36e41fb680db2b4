//! Virtual IPs: the addresses tenants log in on and send from, their EHLO names and owners.
//!
//! Records refer to a virtual IP by id, never by address. Whether it is present on this host is
//! looked up by `net`, not here. Easy to get wrong: the *public* address (NAT) is for DNS advice
//! only; sockets bind to the local one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::mail::{Domain, TenantId, VipId};

/// One virtual IP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vip {
    /// Its id.
    pub id: VipId,
    /// The local IPv4 address, if it has one.
    pub ipv4: Option<Ipv4Addr>,
    /// The local IPv6 address, if it has one.
    pub ipv6: Option<Ipv6Addr>,
    /// What the world sees instead of `ipv4` (NAT).
    pub public_ipv4: Option<Ipv4Addr>,
    /// What the world sees instead of `ipv6`.
    pub public_ipv6: Option<Ipv6Addr>,
    /// What it says in EHLO, what its PTR should be, and the host part of its notices' From.
    pub ehlo: Domain,
    /// Who may use it.
    pub owner: Owner,
}

/// Who may use a virtual IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Owner {
    /// This tenant only.
    Tenant(TenantId),
    /// Every tenant.
    Shared,
}

impl Vip {
    /// The local addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.ipv4.map(IpAddr::V4).into_iter().chain(self.ipv6.map(IpAddr::V6))
    }

    /// Whether `tenant` may log in on it and send from it.
    pub fn serves(&self, tenant: TenantId) -> bool {
        match self.owner {
            Owner::Tenant(owner) => owner == tenant,
            Owner::Shared => true,
        }
    }
}
