//! Virtual IPs: the addresses tenants log in on and send from, their EHLO names and owners.
//!
//! Recipe: `by_address` tells which virtual IP a connection came in on; `default_for` picks the one
//! for mail that did not come by SMTP; `changed` wakes whoever listens on them.
//! Whether one is present on this host is looked up by `net`, not here. Easy to get wrong: the
//! *public* address (NAT) is for DNS advice only; sockets bind to the local one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, RwLock};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::access::{Actor, Permission};
use crate::ext::Timestamp;
use crate::mail::{Domain, TenantId, VipId};
use crate::records::{self, Act, AdminError, Damage, Desk};
use crate::store::{Batch, Key, Store, StoreError, codec, prefix};

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

    /// The addresses as the world sees them.
    pub fn public_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let ipv4 = self.public_ipv4.or(self.ipv4).map(IpAddr::V4);
        ipv4.into_iter().chain(self.public_ipv6.or(self.ipv6).map(IpAddr::V6))
    }

    /// Whether `tenant` may log in on it and send from it.
    pub fn serves(&self, tenant: TenantId) -> bool {
        match self.owner {
            Owner::Tenant(owner) => owner == tenant,
            Owner::Shared => true,
        }
    }
}

/// A virtual IP to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVip {
    /// The local IPv4 address, if it is to have one.
    pub ipv4: Option<Ipv4Addr>,
    /// The local IPv6 address, if it is to have one.
    pub ipv6: Option<Ipv6Addr>,
    /// What the world sees instead of `ipv4` (NAT).
    pub public_ipv4: Option<Ipv4Addr>,
    /// What the world sees instead of `ipv6`.
    pub public_ipv6: Option<Ipv6Addr>,
    /// What it says in EHLO; has at least one dot.
    pub ehlo: Domain,
    /// Who may use it. That the tenant exists is the caller's check.
    pub owner: Owner,
}

/// All virtual IPs, in memory, oldest first.
pub struct Vips {
    desk: Desk,
    memory: Arc<Memory>,
    damaged: Vec<Damage>,
}

struct Memory {
    all: RwLock<Arc<Vec<Vip>>>,
    changed: watch::Sender<u64>,
}

/// As stored: `V i id`. Beside it `V a address` -> id keeps an address with one virtual IP.
// For tests/fuzz only, see docs/how-to/fuzz.md; not part of the face.
#[doc(hidden)]
#[derive(Serialize, Deserialize)]
pub struct Record {
    vip: Vip,
    added: Timestamp,
}

impl Vips {
    /// Reads all records.
    pub fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let (records, damaged) = records::load::<Record>(&*store, &[prefix::VIP, b'i'])?;
        let mut records: Vec<Record> = records.into_iter().map(|(_, record)| record).collect();
        records.sort_by_key(|record| (record.added, record.vip.id));
        let all = records.into_iter().map(|record| record.vip).collect();
        let memory = Memory { all: RwLock::new(Arc::new(all)), changed: watch::Sender::new(0) };
        Ok(Self { desk: Desk::new(store), memory: Arc::new(memory), damaged })
    }

    /// Records that could not be read at open.
    pub fn damaged(&self) -> &[Damage] {
        &self.damaged
    }

    /// All of them, oldest first.
    pub fn all(&self) -> Arc<Vec<Vip>> {
        Arc::clone(&records::read(&self.memory.all))
    }

    /// One by its id.
    pub fn get(&self, id: VipId) -> Option<Vip> {
        self.all().iter().find(|vip| vip.id == id).cloned()
    }

    /// The one that has this local address.
    pub fn by_address(&self, address: IpAddr) -> Option<Vip> {
        let address = address.to_canonical();
        self.all().iter().find(|vip| vip.addresses().any(|own| own == address)).cloned()
    }

    /// The virtual IP of a tenant's mail that did not come by SMTP: the one the tenant was given
    /// (`chosen`) if that still serves it, else the oldest of its own. A notice about a message leaves
    /// by that message's virtual IP instead.
    /// A shared one is never taken unless chosen: whoever shares an address has said so.
    pub fn default_for(&self, tenant: TenantId, chosen: Option<VipId>) -> Option<Vip> {
        let all = self.all();
        let given = all.iter().find(|vip| Some(vip.id) == chosen && vip.serves(tenant));
        given.or_else(|| all.iter().find(|vip| vip.owner == Owner::Tenant(tenant))).cloned()
    }

    /// Counts up with every change.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.memory.changed.subscribe()
    }

    /// Makes one. An address belongs to one virtual IP only.
    pub async fn add(&self, actor: &Actor, new: NewVip, now: Timestamp) -> Result<Vip, AdminError> {
        self.add_as(actor, VipId::random(), new, now).await
    }

    /// Makes one with a given id: the one that salvaged mail names when the records are lost.
    pub async fn add_as(&self, actor: &Actor, id: VipId, new: NewVip, now: Timestamp) -> Result<Vip, AdminError> {
        actor.require(Permission::ManageInstance)?;
        check(&new)?;
        let vip = Vip {
            id,
            ipv4: new.ipv4,
            ipv6: new.ipv6,
            public_ipv4: new.public_ipv4,
            public_ipv6: new.public_ipv6,
            ehlo: new.ehlo,
            owner: new.owner,
        };
        let turn = self.desk.turn().await;
        let mut batch = Batch::new();
        if self.get(id).is_some() {
            return Err(AdminError::Exists(format!("a virtual IP with the id {id}")));
        }
        for address in vip.addresses() {
            if self.by_address(address).is_some() {
                return Err(AdminError::Exists(format!("a virtual IP with the address {address}")));
            }
            batch.if_absent(address_key(address)).set(address_key(address), codec::encode(&vip.id));
        }
        let record = codec::encode(&Record { vip: vip.clone(), added: now });
        batch.if_absent(key(vip.id)).set(key(vip.id), record);
        records::audit(&mut batch, actor, "vip.add", describe(&vip), now);
        let (memory, added) = (Arc::clone(&self.memory), vip.clone());
        turn.commit(batch, move || memory.change(|all| all.push(added))).await?;
        Ok(vip)
    }

    /// Changes its EHLO name and public addresses. The local addresses and the owner stay for
    /// good: queued mail relies on them.
    pub async fn describe_anew(&self, actor: &Actor, id: VipId, seen: Seen, now: Timestamp) -> Result<Vip, AdminError> {
        actor.require(Permission::ManageInstance)?;
        let turn = self.desk.turn().await;
        let (before, mut record) = self.stored(id)?;
        let known = record.vip.clone();
        record.vip.ehlo = seen.ehlo.unwrap_or(record.vip.ehlo);
        if let Some(public) = seen.public {
            (record.vip.public_ipv4, record.vip.public_ipv6) = one_of_each(&public)?;
        }
        check(&NewVip::from(&record.vip))?;
        let mut batch = Batch::new();
        batch.if_equals(key(id), before).set(key(id), codec::encode(&record));
        let act = Act::new("vip.change", record.vip.id.to_string()).changes(facts(&known), facts(&record.vip));
        records::record(&mut batch, actor, act.shown(describe(&record.vip)), now);
        let (memory, vip) = (Arc::clone(&self.memory), record.vip.clone());
        turn.commit(batch, move || {
            memory.change(|all| all.iter_mut().filter(|known| known.id == id).for_each(|known| known.clone_from(&vip)));
        })
        .await?;
        Ok(record.vip)
    }

    /// Removes one. That no tenant has it as default and no queued mail waits for it is the
    /// caller's check: other rooms know.
    pub async fn remove(&self, actor: &Actor, id: VipId, now: Timestamp) -> Result<(), AdminError> {
        actor.require(Permission::ManageInstance)?;
        actor.require_fresh(now)?;
        let turn = self.desk.turn().await;
        let (before, record) = self.stored(id)?;
        let mut batch = Batch::new();
        batch.if_equals(key(id), before).remove(key(id));
        for address in record.vip.addresses() {
            batch.remove(address_key(address));
        }
        records::audit(&mut batch, actor, "vip.remove", describe(&record.vip), now);
        let memory = Arc::clone(&self.memory);
        turn.commit(batch, move || memory.change(|all| all.retain(|vip| vip.id != id))).await?;
        Ok(())
    }

    fn stored(&self, id: VipId) -> Result<(Vec<u8>, Record), AdminError> {
        let missing = || AdminError::Missing(format!("virtual IP {id}"));
        let bytes = self.desk.store().get(&key(id))?.ok_or_else(missing)?;
        let record = codec::decode(&bytes)?;
        Ok((bytes, record))
    }
}

/// What the world is to see of a virtual IP; see [`Vips::describe_anew`]. What is left out stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The EHLO name; has at least one dot.
    pub ehlo: Option<Domain>,
    /// What the world sees instead of the local addresses, at most one of each family; empty is nothing else.
    pub public: Option<Vec<IpAddr>>,
}

/// The addresses by family.
fn one_of_each(addresses: &[IpAddr]) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), AdminError> {
    let (mut ipv4, mut ipv6) = (None, None);
    for address in addresses {
        let twice = match address.to_canonical() {
            IpAddr::V4(address) => ipv4.replace(address).is_some(),
            IpAddr::V6(address) => ipv6.replace(address).is_some(),
        };
        if twice {
            return Err(AdminError::Invalid("at most one public address of each family".into()));
        }
    }
    Ok((ipv4, ipv6))
}

impl Memory {
    fn change(&self, change: impl FnOnce(&mut Vec<Vip>)) {
        change(Arc::make_mut(&mut records::write(&self.all)));
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl From<&Vip> for NewVip {
    fn from(vip: &Vip) -> Self {
        Self {
            ipv4: vip.ipv4,
            ipv6: vip.ipv6,
            public_ipv4: vip.public_ipv4,
            public_ipv6: vip.public_ipv6,
            ehlo: vip.ehlo.clone(),
            owner: vip.owner,
        }
    }
}

/// What can be bound to and sent from. Loopback is fine: trials and tests live there, and
/// `doctor` warns about it.
fn check(new: &NewVip) -> Result<(), AdminError> {
    let invalid = |text: String| Err(AdminError::Invalid(text));
    if new.ipv4.is_none() && new.ipv6.is_none() {
        return invalid("a virtual IP needs an IPv4 or an IPv6 address".into());
    }
    if let Some(address) = new.ipv4.iter().chain(&new.public_ipv4).find(|address| !is_host_ipv4(**address)) {
        return invalid(format!("{address} is not the address of a host"));
    }
    if let Some(address) = new.ipv6.iter().chain(&new.public_ipv6).find(|address| !is_host_ipv6(**address)) {
        return invalid(format!("{address} is not the address of a host that others can reach"));
    }
    if (new.public_ipv4.is_some() && new.ipv4.is_none()) || (new.public_ipv6.is_some() && new.ipv6.is_none()) {
        return invalid("a public address needs a local address of the same family".into());
    }
    if !new.ehlo.as_str().contains('.') {
        return invalid(format!("{} is not a fully qualified name; peers refuse such an EHLO", new.ehlo));
    }
    Ok(())
}

fn is_host_ipv4(address: Ipv4Addr) -> bool {
    !(address.is_unspecified() || address.is_multicast() || address.is_broadcast())
}

fn is_host_ipv6(address: Ipv6Addr) -> bool {
    let is_link_local = address.segments().first().is_some_and(|first| first & 0xffc0 == 0xfe80);
    !(address.is_unspecified() || address.is_multicast() || is_link_local || address.to_ipv4_mapped().is_some())
}

fn facts(vip: &Vip) -> Vec<(&'static str, String)> {
    let or_none = |address: Option<String>| address.unwrap_or_else(|| "none".to_owned());
    vec![
        ("ehlo", vip.ehlo.to_string()),
        ("public_ipv4", or_none(vip.public_ipv4.map(|address| address.to_string()))),
        ("public_ipv6", or_none(vip.public_ipv6.map(|address| address.to_string()))),
    ]
}

fn describe(vip: &Vip) -> String {
    let addresses: Vec<String> = vip.addresses().map(|address| address.to_string()).collect();
    let owner = match vip.owner {
        Owner::Tenant(tenant) => format!("tenant {tenant}"),
        Owner::Shared => "shared".to_owned(),
    };
    format!("{} {} {} {owner}", vip.id, addresses.join(" "), vip.ehlo)
}

fn key(id: VipId) -> Key {
    [&[prefix::VIP, b'i'][..], &id.0.to_be_bytes()].concat()
}

fn address_key(address: IpAddr) -> Key {
    match address {
        IpAddr::V4(address) => [&[prefix::VIP, b'a'][..], &address.octets()].concat(),
        IpAddr::V6(address) => [&[prefix::VIP, b'a'][..], &address.octets()].concat(),
    }
}

#[cfg(test)]
mod tests;
