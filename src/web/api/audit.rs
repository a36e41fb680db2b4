//! `/audit`: who changed what, newest first, and whether that log is whole.
//!
//! There is one log per tenant and one of the instance. Easy to get wrong: checking walks all of it,
//! so it runs off the async workers.

use axum::extract::{Query, State};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Answer, Shared, off_workers, tenant_called};
use crate::access::Actor;
use crate::mail::TenantId;
use crate::records::{Audit, Difference, Numbered};
use crate::web::Parts;
use crate::web::paging::{self, PageJson, Paging};
use crate::web::problem::Problem;

/// An entry of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditEntryJson {
    /// Its place in its log, counted from 1.
    pub number: u64,
    /// When.
    pub at: String,
    /// Who: a name with an id.
    pub actor: String,
    /// Where the request came from, if it came over a network.
    pub from: Option<String>,
    /// The request, as the daemon's log names it.
    pub request_id: Option<String>,
    /// What: `tenant.add`, `queue.cancel`.
    pub act: String,
    /// To what: ids, names, and pseudonyms of addresses (`#...`).
    pub subject: String,
    /// What changed.
    pub changes: Vec<DifferenceJson>,
    /// How many records, if one act concerned many.
    pub count: Option<u64>,
    /// SHA-256, in hexadecimal, of what was handed in, if one act concerned many.
    pub input: Option<String>,
    /// SHA-256, in hexadecimal, over this entry and all before it.
    pub hash: String,
}

/// One value that changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DifferenceJson {
    /// Which.
    pub field: String,
    /// What it was; absent if there was none.
    pub before: Option<String>,
    /// What it is; absent if there is none any more.
    pub after: Option<String>,
}

/// How checking the log ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditVerifiedJson {
    /// Whether every entry is what was written and none is missing.
    pub whole: bool,
    /// The first thing that is wrong.
    pub broken: Option<String>,
    /// Sound entries from the start.
    pub count: u64,
    /// The hash of the last of them; keep it elsewhere to compare with later.
    pub hash: String,
}

#[derive(Deserialize)]
pub(super) struct Chosen {
    tenant: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Expected {
    tenant: Option<String>,
    number: Option<u64>,
    hash: Option<String>,
}

fn chain(parts: &Parts, actor: &Actor, tenant: Option<&str>) -> Result<Option<TenantId>, Problem> {
    match tenant {
        // Whoever belongs to a tenant means that one.
        None => Ok(actor.role.tenant()),
        Some(name) => Ok(Some(tenant_called(parts, actor, name)?.id)),
    }
}

fn json(numbered: Numbered) -> AuditEntryJson {
    let Numbered { number, hash, entry } = numbered;
    let change = |Difference { field, before, after }| DifferenceJson { field, before, after };
    AuditEntryJson {
        number,
        at: entry.at.rfc3339(),
        actor: entry.actor,
        from: entry.from,
        request_id: entry.request_id,
        act: entry.act,
        subject: entry.subject,
        changes: entry.changes.into_iter().map(change).collect(),
        count: entry.count,
        input: entry.input.map(|input| hexadecimal(&input)),
        hash: hexadecimal(&hash),
    }
}

fn hexadecimal(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

fn from_hexadecimal(text: &str) -> Option<[u8; 32]> {
    let pairs = text.as_bytes().chunks(2);
    let octet = |pair: &[u8]| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
    pairs.map(octet).collect::<Option<Vec<u8>>>()?.try_into().ok()
}

#[utoipa::path(
    get,
    path = "/audit",
    operation_id = "audit_list",
    tag = "audit",
    summary = "List: audit.",
    params(("limit" = Option<u16>, Query, minimum = 1, maximum = 250), ("cursor" = Option<String>, Query), ("tenant" = Option<String>, Query)),
    responses((status = 200, body = PageJson<AuditEntryJson>, description = "done"))
)]
pub(super) async fn list(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Query(chosen): Query<Chosen>,
    paging: Paging,
) -> Answer<PageJson<AuditEntryJson>> {
    let tenant = chain(&parts, &actor, chosen.tenant.as_deref())?;
    let unread = || Problem::field("cursor", "this is no cursor of this list");
    let before = paging.after.as_deref().map(|text| text.parse::<u64>().map_err(|_| unread())).transpose()?;
    let (audit, limit) = (Audit::open(parts.store.clone()), paging.limit);
    let entries = off_workers(move || audit.list(&actor, tenant, before, limit)).await?;
    let next = entries.last().map(|entry| entry.number).filter(|number| *number > 1 && entries.len() == limit);
    let next = next.map(|number| paging::wrap(&number.to_string()));
    Ok(Json(PageJson { rows: entries.into_iter().map(json).collect(), next }))
}

#[utoipa::path(
    get,
    path = "/audit/verify",
    operation_id = "audit_verify",
    tag = "audit",
    summary = "Verify: audit.",
    params(("tenant" = Option<String>, Query), ("number" = Option<u64>, Query), ("hash" = Option<String>, Query)),
    responses((status = 200, body = AuditVerifiedJson, description = "done"))
)]
pub(super) async fn verify(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Query(asked): Query<Expected>,
) -> Answer<AuditVerifiedJson> {
    let tenant = chain(&parts, &actor, asked.tenant.as_deref())?;
    let expected = match (asked.number, asked.hash) {
        (None, None) => None,
        (Some(number), Some(hash)) => {
            let unread = || Problem::field("hash", "must be 64 hexadecimal digits");
            Some((number, from_hexadecimal(&hash).ok_or_else(unread)?))
        }
        _ => return Err(Problem::field("hash", "give number and hash, or neither")),
    };
    let audit = Audit::open(parts.store.clone());
    let verified = off_workers(move || audit.verify(&actor, tenant, expected)).await?;
    Ok(Json(AuditVerifiedJson {
        whole: verified.broken.is_none(),
        broken: verified.broken,
        count: verified.count,
        hash: hexadecimal(&verified.hash),
    }))
}
