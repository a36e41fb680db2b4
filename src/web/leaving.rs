//! Everything of a tenant as lines of JSON: each row of each list that its owner may read by this API, and what
//! is kept of each message, and what was counted.
//!
//! The lists are asked through the routes themselves, so an export shows nobody more than the API does, and no
//! secret: no route shows one again. Easy to get wrong: a list comes in pages, and an export ends before the
//! last one only with an error.

use std::sync::{Arc, Weak};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use futures_util::FutureExt;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tower::ServiceExt;

use super::{Parts, api};
use crate::access::{Actor, Role};
use crate::ext::Timestamp;
use crate::mail::TenantId;
use crate::operations::Lines;
use crate::statistics::Span;

/// Messages read from the store at a time.
const HISTORY_PAGE: usize = 500;

/// How a tenant is written. It keeps none of the rooms alive, or those would keep each other.
pub(super) fn lines(parts: Weak<Parts>) -> Lines {
    Arc::new(move |tenant, sender| {
        let parts = parts.upgrade();
        async move {
            let parts = parts.ok_or("the API is no longer served")?;
            Writing { router: api::router(Arc::clone(&parts)), parts, tenant, sender }.all().await
        }
        .boxed()
    })
}

struct Writing {
    router: Router,
    parts: Arc<Parts>,
    tenant: TenantId,
    sender: mpsc::Sender<Vec<u8>>,
}

impl Writing {
    async fn all(&self) -> Result<(), String> {
        let known = self.parts.accounts.tenant(self.tenant).ok_or("the tenant is gone")?;
        let name = known.name;
        let own = self.ask(&format!("/tenants/{name}")).await?;
        self.line("tenant", &own).await?;
        for (kind, path) in [
            ("domain", format!("/tenants/{name}/domains")),
            ("smtp_account", format!("/smtp-accounts?tenant={name}")),
            ("user", format!("/users?tenant={name}")),
            ("api_key", format!("/keys?tenant={name}")),
            ("webhook", format!("/tenants/{name}/webhooks")),
            ("blacklist", format!("/tenants/{name}/suppressions?list=black")),
            ("whitelist", format!("/tenants/{name}/suppressions?list=white")),
        ] {
            self.list(kind, &path).await?;
        }
        let mut logins: Vec<String> = Vec::new();
        for account in
            self.parts.accounts.smtp_accounts(&self.actor(), self.tenant).map_err(|error| error.to_string())?
        {
            logins.push(account.login);
        }
        for login in logins {
            for (kind, list) in [("account_blacklist", "black"), ("account_whitelist", "white")] {
                self.list(kind, &format!("/tenants/{name}/suppressions?list={list}&smtp_account={login}")).await?;
            }
        }
        self.list("operation", &format!("/tenants/{name}/operations")).await?;
        self.list("audit_entry", &format!("/audit?tenant={name}")).await?;
        self.messages().await?;
        self.statistics().await
    }

    /// As the owner of the tenant reads it.
    fn actor(&self) -> Actor {
        Actor::of("export of the tenant", Role::TenantOwner(self.tenant))
    }

    async fn ask(&self, path: &str) -> Result<Value, String> {
        let mut asked = Request::new(Body::empty());
        *asked.uri_mut() = path.parse().map_err(|_| format!("{path} is no path"))?;
        asked.extensions_mut().insert(self.actor());
        asked.extensions_mut().insert(super::server::RequestId("export".to_owned()));
        let answer = self.router.clone().oneshot(asked).await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let octets = answer.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
        if status != StatusCode::OK {
            return Err(format!("{path}: {status}"));
        }
        serde_json::from_slice(&octets).map_err(|error| format!("{path}: {error}"))
    }

    /// Every row of a list, a page at a time.
    async fn list(&self, kind: &str, path: &str) -> Result<(), String> {
        let joint = if path.contains('?') { '&' } else { '?' };
        let mut cursor = String::new();
        loop {
            let page = self.ask(&format!("{path}{joint}limit={}{cursor}", super::LIMIT_MAX)).await?;
            for row in page.get("rows").and_then(Value::as_array).into_iter().flatten() {
                self.line(kind, row).await?;
            }
            match page.get("next").and_then(Value::as_str) {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(()),
            }
        }
    }

    async fn messages(&self) -> Result<(), String> {
        let mut from = None;
        loop {
            let (queue, tenant) = (Arc::clone(&self.parts.queue), self.tenant);
            let read = tokio::task::spawn_blocking(move || queue.histories_of(tenant, from, HISTORY_PAGE)).await;
            let (page, next) = read.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
            for (id, history) in page {
                let addresses: Vec<String> = history.recipients.iter().map(ToString::to_string).collect();
                let metadata: serde_json::Map<String, Value> =
                    history.labels.metadata().iter().map(|(name, value)| (name.clone(), json!(value))).collect();
                let row = json!({
                    "id": id.to_string(),
                    "accepted": Timestamp::rfc3339(history.accepted),
                    "from": history.header_from,
                    "return_path": history.reverse_path.0.as_ref().map(ToString::to_string),
                    "recipients": addresses,
                    "subject": history.subject,
                    "message_id": history.message_id,
                    "tags": history.labels.tags(),
                    "metadata": metadata,
                });
                self.line("message", &row).await?;
            }
            let Some(next) = next else { return Ok(()) };
            from = Some(next);
        }
    }

    /// Every count that is stored: days, then hours.
    async fn statistics(&self) -> Result<(), String> {
        for span in [Span::Day, Span::Hour] {
            let mut from = Timestamp(0);
            loop {
                let (statistics, actor, tenant) = (Arc::clone(&self.parts.statistics), self.actor(), self.tenant);
                let read = move || statistics.copy_of(&actor, (tenant, span), from);
                let read = tokio::task::spawn_blocking(read).await.map_err(|error| error.to_string())?;
                let Some(copied) = read.map_err(|error| error.to_string())? else { break };
                for row in &copied.rows {
                    let row = api::statistics::copied_row(&self.parts, (copied.at, span), row);
                    self.line("statistics", &row).await?;
                }
                from = copied.until;
            }
        }
        Ok(())
    }

    async fn line(&self, kind: &str, row: &Value) -> Result<(), String> {
        let mut line = serde_json::to_vec(&json!({"kind": kind, "row": row})).map_err(|error| error.to_string())?;
        line.push(b'\n');
        self.sender.send(line).await.map_err(|_| "nobody takes the lines any more".to_owned())
    }
}
