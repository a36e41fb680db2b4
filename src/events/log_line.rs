//! The mail log for people: one line per event, as text or JSON. Rendered from events, nowhere else.
//!
//! Addresses are looked up in the history record, so an erased message logs numbers only. Easy to
//! get wrong: what peers said is made printable here, so that nobody can forge a line.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::{
    AuditEvent, Consumer, ERASE_ACT, Event, EventKind, History, InstanceEvent, MailEvent, Peer, Retry, history_key,
};
use crate::mail::{Domain, QueueId, TenantId, VipId, printable_lines};
use crate::store::Store;

/// History records remembered, at most.
const REMEMBERED_MAX: usize = 1_024;
/// Addresses named in one line, at most.
const ADDRESSES_MAX: usize = 20;

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// `time queue-id event key=value ...`
    #[default]
    Text,
    /// One JSON object per line with the same names.
    Json,
}

/// The consumer that writes the mail log.
pub struct LogLine {
    store: Arc<dyn Store>,
    format: LogFormat,
    out: Mutex<Box<dyn Write + Send>>,
    remembered: Mutex<HashMap<QueueId, Option<Arc<History>>>>,
}

impl LogLine {
    /// Writes to standard error.
    pub fn new(store: Arc<dyn Store>, format: LogFormat) -> Self {
        Self::to(store, format, Box::new(std::io::stderr()))
    }

    /// Writes to `out`.
    pub fn to(store: Arc<dyn Store>, format: LogFormat, out: Box<dyn Write + Send>) -> Self {
        Self { store, format, out: Mutex::new(out), remembered: Mutex::default() }
    }

    fn history(&self, id: QueueId) -> Option<Arc<History>> {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = remembered.get(&id) {
            return known.clone();
        }
        let read = self.store.get(&history_key(id)).ok().flatten();
        let read = read.and_then(|bytes| History::from_bytes(&bytes).ok()).map(Arc::new);
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(id, read.clone());
        read
    }

    /// An erased message logs numbers only, also if its addresses were read before.
    fn forget_erased(&self, told: &AuditEvent) {
        if let (ERASE_ACT, Ok(id)) = (told.act.as_str(), told.subject.parse()) {
            self.remembered.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
    }
}

#[async_trait]
impl Consumer for LogLine {
    fn name(&self) -> &'static str {
        "log-line"
    }

    async fn consume(&self, events: &[Event]) -> Result<(), Retry> {
        let mut text = String::with_capacity(events.len() * 200);
        for event in events {
            // What was said before the outcome is for the message's page: the log has one line for each outcome.
            if matches!(&event.kind, EventKind::Mail(_, MailEvent::Attempted { .. })) {
                continue;
            }
            let line = match &event.kind {
                EventKind::Mail(id, told) => mail_line(*id, told, self.history(*id).as_deref()),
                EventKind::Instance(told) => instance_line(told),
                EventKind::Audit(told) => {
                    self.forget_erased(told);
                    let mut line = Line::new(None, "audit");
                    line.field("actor", &told.actor).field("act", &told.act).field("subject", &told.subject);
                    line
                }
            };
            line.render(event, self.format, &mut text);
        }
        // A log nobody reads any more (a closed stderr) must not stop the other consumers.
        let _ = self.out.lock().unwrap_or_else(PoisonError::into_inner).write_all(text.as_bytes());
        Ok(())
    }
}

struct Line {
    id: Option<QueueId>,
    event: &'static str,
    fields: Vec<(&'static str, String)>,
}

impl Line {
    fn new(id: Option<QueueId>, event: &'static str) -> Self {
        Self { id, event, fields: Vec::new() }
    }

    fn field(&mut self, name: &'static str, value: impl ToString) -> &mut Self {
        self.fields.push((name, printable_lines(&value.to_string())));
        self
    }

    fn peer(&mut self, peer: Option<&Peer>) -> &mut Self {
        if let Some(peer) = peer {
            self.field("peer", &peer.host).field("address", &peer.address);
            self.field("source", &peer.source).field("tls", &peer.tls);
        }
        self
    }

    fn recipients(&mut self, numbers: &[u16], history: Option<&History>) -> &mut Self {
        let mut text = String::new();
        for number in numbers.iter().take(ADDRESSES_MAX) {
            let separator = if text.is_empty() { "" } else { "," };
            let address = history.and_then(|history| history.recipients.get(usize::from(*number)));
            let _ = match address {
                Some(address) => write!(text, "{separator}<{address}>"),
                None => write!(text, "{separator}#{number}"),
            };
        }
        if numbers.len() > ADDRESSES_MAX {
            let _ = write!(text, " and {} more", numbers.len() - ADDRESSES_MAX);
        }
        self.field("to", text)
    }

    fn render(&self, event: &Event, format: LogFormat, text: &mut String) {
        match format {
            LogFormat::Text => {
                let _ = write!(text, "{} ", event.at);
                match self.id {
                    Some(id) => {
                        let _ = write!(text, "{id} {}", self.event);
                    }
                    None => text.push_str(self.event),
                }
                for (name, value) in &self.fields {
                    let plain = !value.is_empty() && !value.contains([' ', '"', '=', '\n']);
                    // In quotes, the line ends of a reply are written as `\n`: an event stays one line.
                    let _ = match plain {
                        true => write!(text, " {name}={value}"),
                        false => write!(text, " {name}={value:?}"),
                    };
                }
            }
            LogFormat::Json => {
                let mut object = serde_json::Map::new();
                object.insert("at".into(), event.at.rfc3339().into());
                if let Some(id) = self.id {
                    object.insert("queue_id".into(), id.to_string().into());
                }
                object.insert("event".into(), self.event.into());
                for (name, value) in &self.fields {
                    object.insert((*name).into(), value.as_str().into());
                }
                let _ = write!(text, "{}", serde_json::Value::Object(object));
            }
        }
        text.push('\n');
    }
}

fn mail_line(id: QueueId, event: &MailEvent, history: Option<&History>) -> Line {
    let mut line = Line::new(Some(id), mail_name(event));
    match event {
        MailEvent::Accepted(accepted) => {
            if let Some(history) = history {
                line.field("from", &history.reverse_path);
                let numbers: Vec<u16> = (0..accepted.recipients).collect();
                line.recipients(&numbers, Some(history)).field("message_id", &history.message_id);
            }
            line.field("tenant", accepted.tenant).field("vip", accepted.vip).field("source", &accepted.source);
            if let Some(account) = accepted.account {
                line.field("account", account);
            }
            line.field("recipients", accepted.recipients).field("size", accepted.size_bytes);
            line.field("signed", accepted.signatures.join(","));
        }
        MailEvent::Delivered { recipients, peer, reply } => {
            line.recipients(recipients, history).peer(Some(peer)).field("reply", reply.whole());
        }
        MailEvent::Deferred { recipients, peer, why, detail, due_in_secs } => {
            line.recipients(recipients, history).field("why", format!("{why:?}")).field("reply", detail);
            line.field("next_try_secs", due_in_secs).peer(peer.as_ref());
        }
        MailEvent::Bounced { recipients, peer, why, detail } => {
            line.recipients(recipients, history).field("why", format!("{why:?}")).field("reply", detail);
            line.peer(peer.as_ref());
        }
        MailEvent::Expired { recipients, last } => {
            line.recipients(recipients, history).field("reply", last);
        }
        MailEvent::Suppressed { recipients }
        | MailEvent::Salvaged { recipients }
        | MailEvent::Attempted { recipients, .. } => {
            line.recipients(recipients, history);
        }
        MailEvent::Held { recipients, by }
        | MailEvent::Released { recipients, by }
        | MailEvent::Retried { recipients, by }
        | MailEvent::Cancelled { recipients, by } => {
            line.recipients(recipients, history).field("by", by);
        }
        MailEvent::VipMissing { recipients, vip } => {
            line.recipients(recipients, history).field("vip", vip);
        }
        MailEvent::Stalled { recipients, phase } => {
            line.recipients(recipients, history).field("phase", phase);
        }
        MailEvent::Moved { recipients, from, to, by } => {
            line.recipients(recipients, history).field("vip", to).field("from_vip", from).field("by", by);
        }
        MailEvent::NoticeSent { recipients, kind, notice } => {
            line.recipients(recipients, history).field("kind", format!("{kind:?}")).field("notice", notice);
        }
        MailEvent::NoticeDropped { recipients, kind } => {
            line.recipients(recipients, history).field("kind", format!("{kind:?}"));
        }
        MailEvent::Damaged { detail } | MailEvent::Faulted { detail } => {
            line.field("detail", detail);
        }
        MailEvent::NoticeUnsigned | MailEvent::Retired => {}
        MailEvent::Complained { .. }
        | MailEvent::BouncedLater { .. }
        | MailEvent::ReportedLater { .. }
        | MailEvent::ComplaintDoubted { .. }
        | MailEvent::Unsubscribed { .. }
        | MailEvent::AutoReplied { .. } => feedback_fields(&mut line, event, history),
    }
    line
}

/// Of what comes back after delivery.
fn feedback_fields(line: &mut Line, event: &MailEvent, history: Option<&History>) {
    match event {
        MailEvent::Complained { recipients, reporter } => {
            line.recipients(recipients, history).field("reporter", reporter);
        }
        MailEvent::BouncedLater { recipients, reporter, why, detail } => {
            line.recipients(recipients, history).field("why", format!("{why:?}")).field("reply", detail);
            line.field("reporter", reporter);
        }
        MailEvent::ReportedLater { recipients, kind, reporter, detail } => {
            line.recipients(recipients, history).field("kind", format!("{kind:?}")).field("reply", detail);
            line.field("reporter", reporter);
        }
        MailEvent::ComplaintDoubted { recipients, reporter, doubt } => {
            line.recipients(recipients, history).field("reporter", reporter).field("doubt", doubt);
        }
        MailEvent::Unsubscribed { recipients, way } => {
            line.recipients(recipients, history).field("way", way);
        }
        MailEvent::AutoReplied { recipients, reporter } => {
            line.recipients(recipients, history).field("reporter", reporter);
        }
        _ => {}
    }
}

fn mail_name(event: &MailEvent) -> &'static str {
    match event {
        MailEvent::Accepted(_) => "accepted",
        MailEvent::Suppressed { .. } => "suppressed",
        MailEvent::Delivered { .. } => "delivered",
        MailEvent::Deferred { .. } => "deferred",
        MailEvent::Bounced { .. } => "bounced",
        MailEvent::Expired { .. } => "expired",
        MailEvent::Held { .. } => "held",
        MailEvent::Released { .. } => "released",
        MailEvent::Retried { .. } => "retried",
        MailEvent::Cancelled { .. } => "cancelled",
        MailEvent::VipMissing { .. } => "vip-missing",
        MailEvent::Moved { .. } => "moved",
        MailEvent::NoticeSent { .. } => "notice-sent",
        MailEvent::NoticeUnsigned => "notice-unsigned",
        MailEvent::Damaged { .. } => "damaged",
        MailEvent::Retired => "retired",
        MailEvent::NoticeDropped { .. } => "notice-dropped",
        MailEvent::Salvaged { .. } => "salvaged",
        MailEvent::Faulted { .. } => "faulted",
        MailEvent::Complained { .. } => "complained",
        MailEvent::BouncedLater { .. } => "bounced-later",
        MailEvent::ReportedLater { .. } => "reported-later",
        MailEvent::ComplaintDoubted { .. } => "complaint-doubted",
        MailEvent::Unsubscribed { .. } => "unsubscribed",
        MailEvent::AutoReplied { .. } => "auto-replied",
        MailEvent::Stalled { .. } => "stalled",
        MailEvent::Attempted { .. } => "attempted",
    }
}

fn return_path_fields(tenant: &TenantId, domain: &Domain, name: &Domain) -> Vec<(&'static str, String)> {
    vec![("tenant", tenant.to_string()), ("domain", domain.to_string()), ("name", name.to_string())]
}

/// A field's name and its value.
type Field = (&'static str, String);

fn site_fields(vip: VipId, site: &str, more: Field, reply: &str) -> Vec<Field> {
    vec![("vip", vip.to_string()), ("site", site.to_owned()), more, ("reply", reply.to_owned())]
}

fn account_fields<const N: usize>(tenant: TenantId, login: &str, more: [(&'static str, &String); N]) -> Vec<Field> {
    let more = more.into_iter().map(|(name, value)| (name, value.clone()));
    [("tenant", tenant.to_string()), ("login", login.to_owned())].into_iter().chain(more).collect()
}

fn downgrade_fields(values: [&String; 5]) -> Vec<Field> {
    ["domain", "host", "from", "to", "detail"].into_iter().zip(values.map(String::clone)).collect()
}

fn vip_fields(vip: VipId, address: &str) -> Vec<Field> {
    vec![("vip", vip.to_string()), ("address", address.to_owned())]
}

fn backup_fields(key: &str, messages: u64, unreadable: u64) -> Vec<Field> {
    vec![("key", key.to_owned()), ("messages", messages.to_string()), ("unreadable", unreadable.to_string())]
}

fn instance_line(event: &InstanceEvent) -> Line {
    let (name, fields): (_, Vec<(&'static str, String)>) = match event {
        InstanceEvent::Started { version } => ("started", vec![("version", version.clone())]),
        InstanceEvent::Stopping => ("stopping", Vec::new()),
        InstanceEvent::LoginRefused { login, peer, vip, reason } => {
            let vip = vip.map_or_else(|| "none".to_owned(), |vip| vip.to_string());
            let (login, peer, reason) = (login.clone(), peer.clone(), reason.clone());
            ("login-refused", vec![("login", login), ("peer", peer), ("vip", vip), ("reason", reason)])
        }
        InstanceEvent::LoginSlowed { login, network } => {
            ("login-slowed", vec![("login", login.clone()), ("network", network.clone())])
        }
        InstanceEvent::VipMissing { vip, address } => ("vip-missing", vip_fields(*vip, address)),
        InstanceEvent::VipPresent { vip, address } => ("vip-present", vip_fields(*vip, address)),
        InstanceEvent::DomainVerified { tenant, domain } => {
            ("domain-verified", vec![("tenant", tenant.to_string()), ("domain", domain.to_string())])
        }
        InstanceEvent::DomainUnverified { tenant, domain, reason } => {
            let (tenant, domain) = (tenant.to_string(), domain.to_string());
            ("domain-unverified", vec![("tenant", tenant), ("domain", domain), ("reason", reason.clone())])
        }
        InstanceEvent::RecordDamaged { key, detail } => {
            ("record-damaged", vec![("key", key.clone()), ("detail", detail.clone())])
        }
        InstanceEvent::SiteSlowed { vip, site, per_minute, reply } => {
            ("site-slowed", site_fields(*vip, site, ("per_minute", per_minute.to_string()), reply))
        }
        InstanceEvent::SiteParked { vip, site, secs, reply } => {
            ("site-parked", site_fields(*vip, site, ("secs", secs.to_string()), reply))
        }
        InstanceEvent::SiteRecovered { vip, site } => {
            ("site-recovered", vec![("vip", vip.to_string()), ("site", site.clone())])
        }
        InstanceEvent::WebhookDisabled { tenant, webhook, reason } => {
            let (tenant, webhook) = (tenant.to_string(), webhook.to_string());
            ("webhook-disabled", vec![("tenant", tenant), ("webhook", webhook), ("reason", reason.clone())])
        }
        InstanceEvent::AccountPaused { tenant, login, cause, by, .. } => {
            ("account-paused", account_fields(*tenant, login, [("cause", cause), ("by", by)]))
        }
        InstanceEvent::AccountReleased { tenant, login, by, .. } => {
            ("account-released", account_fields(*tenant, login, [("by", by)]))
        }
        InstanceEvent::ReturnPathVerified { tenant, domain, name } => {
            ("return-path-verified", return_path_fields(tenant, domain, name))
        }
        InstanceEvent::ReturnPathUnverified { tenant, domain, name, reason } => {
            let mut fields = return_path_fields(tenant, domain, name);
            fields.push(("reason", reason.clone()));
            ("return-path-unverified", fields)
        }
        InstanceEvent::TlsDowngraded { domain, host, from, to, detail } => {
            ("tls-downgraded", downgrade_fields([domain, host, from, to, detail]))
        }
        InstanceEvent::BackupTaken { key, messages, unreadable } => {
            ("backup-taken", backup_fields(key, *messages, *unreadable))
        }
        InstanceEvent::BackupFailed { reason } => ("backup-failed", vec![("reason", reason.clone())]),
        InstanceEvent::Refused { tenant, account, reply, cause } => {
            let account = account.map_or_else(|| "none".to_owned(), |account| account.to_string());
            let (tenant, reply, cause) = (tenant.to_string(), reply.clone(), cause.clone());
            ("refused", vec![("tenant", tenant), ("account", account), ("reply", reply), ("cause", cause)])
        }
    };
    let mut line = Line::new(None, name);
    for (name, value) in fields {
        line.field(name, value);
    }
    line
}
