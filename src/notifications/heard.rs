//! Which events are news for people, and what they are told.

use async_trait::async_trait;

use super::{INSTANCE, Kind, News, Notifications};
use crate::events::{Consumer, Event, EventKind, InstanceEvent, Retry};
use crate::ext::Timestamp;
use crate::records::AdminError;

#[async_trait]
impl Consumer for Notifications {
    fn name(&self) -> &'static str {
        "notifications"
    }

    async fn consume(&self, events: &[Event]) -> Result<(), Retry> {
        for event in events {
            let done = match &event.kind {
                EventKind::Instance(told) => self.heard_of_instance(told, event.at).await,
                EventKind::Audit(told) => self.heard_of_person(told, event.at).await,
                EventKind::Mail(..) => continue,
            };
            done.map_err(|error| Retry(error.to_string()))?;
        }
        Ok(())
    }
}

impl Notifications {
    async fn heard_of_instance(&self, told: &InstanceEvent, at: Timestamp) -> Result<(), AdminError> {
        if matches!(told, InstanceEvent::BackupTaken { .. }) {
            self.note_backup(at).await?;
        }
        match self.heard(told) {
            Some(news) => self.tell(news, at).await,
            None => Ok(()),
        }
    }

    fn heard(&self, told: &InstanceEvent) -> Option<News> {
        Some(match told {
            InstanceEvent::DomainUnverified { tenant, domain, reason } => News {
                tenant: *tenant,
                kind: Kind::DomainFailing,
                subject: domain.to_string(),
                text: format!("{domain} may not be used any more: {reason}"),
            },
            InstanceEvent::ReturnPathUnverified { tenant, domain, name, reason } => News {
                tenant: *tenant,
                kind: Kind::DomainFailing,
                subject: name.to_string(),
                text: format!("{name}, the return-path of {domain}, is not used any more: {reason}"),
            },
            InstanceEvent::WebhookDisabled { tenant, webhook, reason } => News {
                tenant: *tenant,
                kind: Kind::WebhookDisabled,
                subject: webhook.to_string(),
                text: format!("webhook {webhook} gets nothing more until it is enabled: {reason}"),
            },
            InstanceEvent::AccountPaused { tenant, account, login, cause, .. } => News {
                tenant: *tenant,
                kind: Kind::AccountPaused,
                subject: account.to_string(),
                text: format!("SMTP account {login} is paused: {cause}"),
            },
            InstanceEvent::SiteParked { vip, site, reply, .. } => {
                let (tenant, name) = (self.vips)(*vip);
                let text = format!("{site} says that virtual IP {name} is listed: {reply}");
                News { tenant, kind: Kind::AddressListed, subject: format!("{name} at {site}"), text }
            }
            InstanceEvent::VipMissing { vip, address } => {
                let (_, name) = (self.vips)(*vip);
                let text = format!("{address} of virtual IP {name} is not on this host; its mail waits");
                News { tenant: INSTANCE, kind: Kind::AddressMissing, subject: address.clone(), text }
            }
            InstanceEvent::RecordDamaged { key, detail } => News {
                tenant: INSTANCE,
                kind: Kind::RecordDamaged,
                subject: key.clone(),
                text: format!("a stored record cannot be read and is set aside: {detail}"),
            },
            InstanceEvent::BackupFailed { reason } => News {
                tenant: INSTANCE,
                kind: Kind::BackupFailed,
                subject: "backup".to_owned(),
                text: format!("a backup was not made: {reason}"),
            },
            _ => return None,
        })
    }
}
