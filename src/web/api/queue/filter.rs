//! Which queued messages are meant, as people say it: by names, in a query or in a body.
//!
//! Easy to get wrong: a misspelt filter must not be silently none, neither in a body nor in a query.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::{FromRequestParts, Query};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::super::{tenant_called, tenant_name, vip_called};
use crate::access::Actor;
use crate::ext::Timestamp;
use crate::mail::{Address, Class, Domain};
use crate::queue::{Filter, SenderIs, Standing};
use crate::web::Parts;
use crate::web::body::read_value;
use crate::web::problem::Problem;

/// Keys of a query that belong to the page, not to the filter.
const OF_THE_PAGE: [&str; 3] = ["limit", "cursor", "act"];
/// Characters of the text asked for in the last reply, at most.
const LAST_CHARACTERS_MAX: usize = 200;
/// Keys of a query that are numbers.
const NUMBERS: [&str; 3] = ["older_secs", "newer_secs", "attempts_min"];

/// Which queued messages are meant: those that fit everything that is said; nothing said is all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct QueueFilterJson {
    /// Of this tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Handed in with this SMTP account: its login.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smtp_account: Option<String>,
    /// Leaving by this virtual IP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vip: Option<String>,
    /// `transactional`, `marketing`.
    #[schema(value_type = Option<String>)]
    #[param(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
    /// With this envelope sender: an address, a domain (and below it), or `<>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    /// With an unfinished recipient of this address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// With an unfinished recipient in this domain or below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// With an unfinished recipient of this provider, or of this site.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// With an unfinished recipient in this state: `waiting`, `in-flight`, `held`, `paused`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Accepted more than so many seconds ago.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub older_secs: Option<u64>,
    /// Accepted at most so many seconds ago.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newer_secs: Option<u64>,
    /// Tried at least so often.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts_min: Option<u32>,
    /// With this in the last reply or cause, in any case; at most 200 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
}

/// A filter in a query, beside what belongs to the page.
pub(in crate::web::api) struct Filtered(pub(super) QueueFilterJson);

impl<S: Send + Sync> FromRequestParts<S> for Filtered {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, state: &S) -> Result<Self, Problem> {
        let Query(asked) = Query::<BTreeMap<String, String>>::from_request_parts(parts, state)
            .await
            .map_err(|error| Problem::field("query", error.body_text()))?;
        let mut fields = serde_json::Map::new();
        for (name, text) in asked {
            if OF_THE_PAGE.contains(&name.as_str()) {
                continue;
            }
            let value = match NUMBERS.contains(&name.as_str()) {
                true => text.parse::<u64>().map(serde_json::Value::from).unwrap_or(serde_json::Value::String(text)),
                false => serde_json::Value::String(text),
            };
            fields.insert(name, value);
        }
        read_value(serde_json::Value::Object(fields)).map(Self)
    }
}

/// What is meant, by ids. A tenant's people mean their own tenant's mail if they name none.
pub(super) fn read(parts: &Parts, actor: &Actor, asked: &QueueFilterJson) -> Result<Filter, Problem> {
    let tenant = match &asked.tenant {
        Some(name) => Some(tenant_called(parts, actor, name)?.id),
        None => actor.role.tenant(),
    };
    let account = asked.smtp_account.as_deref();
    let account = account.map(|login| super::super::smtp_accounts::called(parts, actor, login)).transpose()?;
    let vip = asked.vip.as_deref().map(|vip| vip_called(parts, actor, vip)).transpose()?;
    let wrong = |field: &'static str| move |error: crate::mail::AddressError| Problem::field(field, error.to_string());
    if let Some(provider) = &asked.provider
        && parts.pacing.site_called(provider).is_none()
    {
        let text = "name a provider (as `site list` does), or a domain that mail has gone to since the daemon started";
        return Err(Problem::field("provider", text));
    }
    let ago = |seconds: u64| {
        let span = u64::try_from(Duration::from_secs(seconds).as_millis()).unwrap_or(u64::MAX);
        Timestamp(Timestamp::now().0.saturating_sub(span))
    };
    Ok(Filter {
        tenant,
        account: account.map(|account| account.id),
        class: asked.class,
        sender: asked.sender.as_deref().map(SenderIs::parse).transpose().map_err(wrong("sender"))?,
        accepted_before: asked.older_secs.map(ago),
        accepted_from: asked.newer_secs.map(ago),
        recipient: asked.recipient.as_deref().map(Address::parse).transpose().map_err(wrong("recipient"))?,
        recipient_domain: asked.to.as_deref().map(Domain::parse).transpose().map_err(wrong("to"))?,
        provider: asked.provider.clone(),
        site: None,
        state: asked.state.as_deref().map(standing).transpose()?,
        attempts_min: asked.attempts_min,
        last: last(asked)?,
        vip: vip.map(|vip| vip.id),
    })
}

fn last(asked: &QueueFilterJson) -> Result<Option<String>, Problem> {
    let text = asked.last.as_deref().filter(|text| !text.is_empty());
    if text.is_some_and(|text| text.chars().count() > LAST_CHARACTERS_MAX) {
        return Err(Problem::field("last", format!("has at most {LAST_CHARACTERS_MAX} characters")));
    }
    Ok(text.map(str::to_lowercase))
}

fn standing(text: &str) -> Result<Standing, Problem> {
    match text {
        "waiting" => Ok(Standing::Waiting),
        "in-flight" => Ok(Standing::InFlight),
        "held" => Ok(Standing::Held),
        "paused" => Ok(Standing::Paused),
        _ => Err(Problem::field("state", "is one of waiting, in-flight, held, paused")),
    }
}

/// What a filter means, by names. Ages are as of `at`.
pub(super) fn json(parts: &Parts, filter: &Filter, at: Timestamp) -> QueueFilterJson {
    let account = |id| parts.accounts.smtp_account(id).map_or_else(|| format!("{id}"), |account| account.login);
    let vip = |id| parts.vips.get(id).map_or_else(|| format!("{id} (removed)"), |vip| vip.ehlo.to_string());
    QueueFilterJson {
        tenant: filter.tenant.map(|tenant| tenant_name(parts, tenant)),
        smtp_account: filter.account.map(account),
        vip: filter.vip.map(vip),
        class: filter.class,
        sender: filter.sender.as_ref().map(|sender| match sender {
            SenderIs::Nobody => "<>".to_owned(),
            SenderIs::Address(address) => address.to_string(),
            SenderIs::Domain(domain) => domain.to_string(),
        }),
        recipient: filter.recipient.as_ref().map(Address::to_string),
        to: filter.recipient_domain.as_ref().map(Domain::to_string),
        provider: filter.provider.clone(),
        state: filter.state.map(|state| {
            let word = match state {
                Standing::Waiting => "waiting",
                Standing::InFlight => "in-flight",
                Standing::Held => "held",
                Standing::Paused => "paused",
            };
            word.to_owned()
        }),
        older_secs: filter.accepted_before.map(|moment| at.since(moment).as_secs()),
        newer_secs: filter.accepted_from.map(|moment| at.since(moment).as_secs()),
        attempts_min: filter.attempts_min,
        last: filter.last.clone(),
    }
}
