//! Virtual IPs as delivery sees them: which of their addresses are on this host now.
//!
//! Easy to get wrong: a missing address is told once when it goes and once when it is back, not at
//! each look; and mail never leaves by an address of another virtual IP meanwhile.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Settings;
use super::transport::Source;
use crate::events::{Event, EventKind, InstanceEvent, record};
use crate::ext::Timestamp;
use crate::mail::{TenantId, VipId};
use crate::net::is_present;
use crate::store::{Batch, Store};
use crate::vips::{Owner, Vip, Vips};

struct Known {
    source: Result<Arc<Source>, String>,
    missing: BTreeSet<String>,
    looked: Instant,
}

/// Sources by virtual IP.
pub(super) struct Sources {
    vips: Arc<Vips>,
    changes: watch::Receiver<u64>,
    store: Arc<dyn Store>,
    known: HashMap<VipId, Known>,
}

impl Sources {
    pub(super) fn new(vips: Arc<Vips>, store: Arc<dyn Store>) -> Self {
        let changes = vips.changed();
        Self { vips, changes, store, known: HashMap::new() }
    }

    /// Resolves when virtual IPs were added, changed or removed.
    pub(super) async fn changed(&mut self) {
        match self.changes.changed().await {
            Ok(()) => self.known.values_mut().for_each(|known| known.looked = long_ago(known.looked)),
            // Nobody will change them any more.
            Err(_) => std::future::pending().await,
        }
    }

    /// The virtual IP as a source, or why its mail waits.
    pub(super) fn source(&mut self, vip: VipId, settings: &Settings, now: Instant) -> Result<Arc<Source>, String> {
        if let Some(known) = self.known.get(&vip)
            && now.duration_since(known.looked) < settings.vip_check
        {
            return known.source.clone();
        }
        let (source, missing) = self.look(vip);
        self.adopt(vip, Known { source: source.clone(), missing, looked: now });
        source
    }

    /// Whether the virtual IP is the tenant's own or shared. Nothing should ever have put mail into
    /// another lane; if something did, it waits rather than leaves.
    pub(super) fn serves(&self, vip: VipId, tenant: TenantId) -> Result<(), String> {
        match self.vips.get(vip) {
            Some(vip) if !vip.serves(tenant) => {
                tracing::error!(vip = %vip.id, %tenant, "mail waits at another tenant's virtual IP");
                Err(format!("the virtual IP {} belongs to another tenant", vip.ehlo))
            }
            _ => Ok(()),
        }
    }

    /// One that every tenant may use.
    pub(super) fn shared(&self, id: VipId) -> Option<Vip> {
        self.vips.get(id).filter(|vip| vip.owner == Owner::Shared)
    }

    /// An attempt found that `address` is not on this host.
    pub(super) fn missing(&mut self, vip: VipId, address: IpAddr, now: Instant) {
        let reason = format!("its address {address} is not on this host");
        let missing = BTreeSet::from([address.to_string()]);
        self.adopt(vip, Known { source: Err(reason), missing, looked: now });
    }

    fn look(&self, id: VipId) -> (Result<Arc<Source>, String>, BTreeSet<String>) {
        let Some(vip) = self.vips.get(id) else {
            return (Err("its virtual IP was removed".to_owned()), BTreeSet::from(["removed".to_owned()]));
        };
        let (present, missing): (Vec<IpAddr>, Vec<IpAddr>) = vip.addresses().partition(|own| is_present(*own));
        let missing: BTreeSet<String> = missing.iter().map(IpAddr::to_string).collect();
        if present.is_empty() {
            let names = missing.iter().cloned().collect::<Vec<_>>().join(", ");
            return (Err(format!("its virtual IP {} ({names}) is not on this host", vip.ehlo)), missing);
        }
        (Ok(Arc::new(Source { vip: id, ehlo: vip.ehlo, addresses: present })), missing)
    }

    fn adopt(&mut self, vip: VipId, known: Known) {
        let none = BTreeSet::new();
        let before = self.known.get(&vip).map_or(&none, |known| &known.missing);
        let mut events: Vec<InstanceEvent> = Vec::new();
        for address in known.missing.difference(before) {
            tracing::warn!(%vip, address, "a virtual IP is not on this host; its mail waits");
            events.push(InstanceEvent::VipMissing { vip, address: address.clone() });
        }
        for address in before.difference(&known.missing) {
            events.push(InstanceEvent::VipPresent { vip, address: address.clone() });
        }
        self.known.insert(vip, known);
        if events.is_empty() {
            return;
        }
        let store = self.store.clone();
        tokio::spawn(async move {
            let mut batch = Batch::new();
            let at = Timestamp::now();
            events.into_iter().for_each(|event| record(&mut batch, &Event { at, kind: EventKind::Instance(event) }));
            if let Err(error) = store.commit(batch).await {
                tracing::warn!("an event about a virtual IP was not recorded: {error}");
            }
        });
    }
}

/// So long ago that the next look is due.
fn long_ago(moment: Instant) -> Instant {
    moment.checked_sub(Duration::from_secs(86_400)).unwrap_or(moment)
}

/// `now` plus `span`, or `now` if there is no such moment.
pub(super) fn after(now: Instant, span: Duration) -> Instant {
    now.checked_add(span).unwrap_or(now)
}

/// The earlier one of a moment known, if there is one, and another.
pub(super) fn earlier(known: Option<Instant>, other: Instant) -> Option<Instant> {
    Some(known.map_or(other, |known| known.min(other)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Actor;
    use crate::mail::Domain;
    use crate::store::MemoryStore;
    use crate::vips::NewVip;

    #[tokio::test]
    async fn mail_in_a_lane_of_another_tenants_address_waits() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let vips = Arc::new(Vips::open(store.clone()).unwrap());
        let mut made = Vec::new();
        for (last, owner) in [(1, Owner::Tenant(TenantId(1))), (2, Owner::Shared)] {
            let ehlo = Domain::parse("mx.example.com").unwrap();
            let ipv4 = Some([127, 0, 5, last].into());
            let new = NewVip { ipv4, ipv6: None, public_ipv4: None, public_ipv6: None, ehlo, owner };
            made.push(vips.add(&Actor::local(0), new, Timestamp(0)).await.unwrap().id);
        }
        let sources = Sources::new(vips, store);
        for (vip, tenant, serves) in [(made[0], 1, true), (made[0], 2, false), (made[1], 2, true)] {
            assert_eq!(sources.serves(vip, TenantId(tenant)).is_ok(), serves);
        }
    }
}
