//! The transport that goes straight to the recipient domain's mail exchangers.

mod lookup;
mod tls_policy;

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use self::lookup::Ourselves;
use super::Settings;
use super::client::Client;
use super::transport::{Families, Job, NoSite, Report, Site, Transport};
use crate::net::Resolver;
use crate::routing::Lane;
use crate::vips::Vips;

/// Straight to the MX hosts.
pub struct Mx {
    resolver: Arc<dyn Resolver>,
    vips: Arc<Vips>,
    client: Arc<Client>,
    settings: watch::Receiver<Arc<Settings>>,
}

impl Mx {
    /// The transport.
    pub fn new(
        resolver: Arc<dyn Resolver>,
        vips: Arc<Vips>,
        client: Arc<Client>,
        settings: watch::Receiver<Arc<Settings>>,
    ) -> Self {
        Self { resolver, vips, client, settings }
    }
}

#[async_trait]
impl Transport for Mx {
    async fn site(&self, lane: &Lane, families: Families) -> Result<Site, NoSite> {
        let settings = self.settings.borrow().clone();
        let ourselves = Ourselves::of(&self.vips.all());
        let hosts = lookup::hosts(&*self.resolver, &lane.next_hop, families, &ourselves, &settings).await?;
        // Spare hosts may be anybody's; the best ones are where the mailboxes are.
        let best = hosts.iter().map(|host| host.preference).min();
        let best = hosts.iter().filter(|host| Some(host.preference) == best).map(|host| host.name.as_str());
        let provider = settings.providers.of_hosts(best).map(|provider| provider.name.clone());
        Ok(Site {
            name: lookup::site_name(&hosts).into(),
            provider,
            hosts,
            port: settings.mx_port,
            tls: tls_policy::requirement(settings.mx_tls),
            realm: 0,
            login: None,
        })
    }

    async fn attempt(&self, job: Job) -> Report {
        self.client.drain(job).await
    }
}
