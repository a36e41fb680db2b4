//! Whom a connection serves now, and what is told of it: the policy, the host and the rules of that domain.
//!
//! Easy to get wrong: domains of equal demand share connections, and tenants do; what is told to one must not name
//! another.

use std::sync::Arc;

use super::connection::{Connection, towards};
use crate::delivery::transport::{Host, Job, Site};

impl Connection {
    /// What TLS came to, with the policy it is held against.
    pub(super) fn note_tls(&mut self, tls: String, policy: Option<&Arc<str>>) {
        self.peer.tls = match policy {
            Some(policy) => format!("{tls}; policy: {policy}"),
            None => tls.clone(),
        };
        self.tls = Some(tls);
    }

    /// From now on it carries this job's mail: what is told of it is what concerns that domain and nobody else's.
    pub(super) fn serve(&mut self, job: &Job) {
        let host = self.host_in(&job.site);
        if let Some(host) = host {
            self.peer.host.clone_from(&host.name);
        }
        if let Some(tls) = self.tls.take() {
            self.note_tls(tls, host.and_then(|host| host.policy.as_ref()));
        }
        (self.rules, self.provider) = (Arc::clone(&job.settings.replies), job.site.provider.clone());
        let towards = towards(&self.peer.host, &job.lane);
        self.tap.serves(job.lane.tenant, towards);
        self.tap.keep(Some(job.hand.script()));
    }

    /// The host of a site that it leads to, under the same demand; that of the same name, where several do.
    pub(super) fn host_in<'s>(&self, site: &'s Site) -> Option<&'s Host> {
        let (address, key) = (self.key.address.ip(), &self.key);
        let leads_here = |host: &&Host| host.addresses.contains(&address) && host.standing == key.standing;
        let mut hosts = site.hosts.iter().filter(leads_here).filter(|host| host.tls == key.tls);
        let same_name = |host: &&Host| host.name == self.peer.host || Some(host.name.as_str()) == key.named.as_deref();
        hosts.clone().find(same_name).or_else(|| hosts.next())
    }
}
