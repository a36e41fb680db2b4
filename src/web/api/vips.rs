//! `/vips`: virtual IPs. Whether an address is on this host is looked up when it is shown.
//!
//! Easy to get wrong: a virtual IP is removed only when nothing waits for it: its queued mail could
//! never leave again.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::domains::RecordJson;
use super::{Answer, Shared, off_workers, require_instance, tenant_called, tenant_name, vip_called};
use crate::access::{Actor, Permission};
use crate::domains::service_spf;
use crate::ext::Timestamp;
use crate::mail::{Domain, VipId};
use crate::net;
use crate::vips::{NewVip, Owner, Seen, Vip};
use crate::web::Parts;
use crate::web::body::JsonBody;
use crate::web::paging::{PageJson, Paging};
use crate::web::problem::Problem;

/// A virtual IP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VipJson {
    /// Its id.
    pub id: String,
    /// The local IPv4 address.
    #[schema(value_type = Option<String>)]
    pub ipv4: Option<Ipv4Addr>,
    /// The local IPv6 address.
    #[schema(value_type = Option<String>)]
    pub ipv6: Option<Ipv6Addr>,
    /// What the world sees instead of `ipv4`.
    #[schema(value_type = Option<String>)]
    pub public_ipv4: Option<Ipv4Addr>,
    /// What the world sees instead of `ipv6`.
    #[schema(value_type = Option<String>)]
    pub public_ipv6: Option<Ipv6Addr>,
    /// What it says in EHLO.
    pub ehlo: String,
    /// The only tenant that may use it; absent if it is shared.
    pub tenant: Option<String>,
    /// Local addresses that are not on this host: their mail waits.
    #[schema(value_type = Vec<String>)]
    pub missing: Vec<IpAddr>,
}

impl VipJson {
    /// The addresses as the world sees them.
    pub fn public_addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let ipv4 = self.public_ipv4.or(self.ipv4).map(IpAddr::V4);
        ipv4.into_iter().chain(self.public_ipv6.or(self.ipv6).map(IpAddr::V6))
    }
}

/// A virtual IP to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewVipJson {
    /// The id it had, when the records were lost and salvaged mail names it; absent for a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The local IPv4 address.
    #[schema(value_type = Option<String>)]
    pub ipv4: Option<Ipv4Addr>,
    /// The local IPv6 address.
    #[schema(value_type = Option<String>)]
    pub ipv6: Option<Ipv6Addr>,
    /// What the world sees instead of `ipv4`.
    #[schema(value_type = Option<String>)]
    pub public_ipv4: Option<Ipv4Addr>,
    /// What the world sees instead of `ipv6`.
    #[schema(value_type = Option<String>)]
    pub public_ipv6: Option<Ipv6Addr>,
    /// What it says in EHLO.
    #[schema(value_type = String)]
    pub ehlo: Domain,
    /// The only tenant that may use it; absent for shared, then `shared` must be true.
    pub tenant: Option<String>,
    /// Every tenant may use it.
    #[serde(default)]
    pub shared: bool,
}

/// What the world is to see of a virtual IP. Its local addresses and its owner stay for good: queued
/// mail relies on them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VipChangeJson {
    /// What it says in EHLO.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub ehlo: Option<Domain>,
    /// What the world sees instead of its local addresses, at most one of each family, in place of
    /// those set before; empty is nothing else.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub public: Option<Vec<IpAddr>>,
}

/// What an operator publishes so that tenants can include it in their SPF records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceSpfJson {
    /// The name tenants include; absent if they name each address.
    pub name: Option<String>,
    /// In the order to publish them: the one that tenants include is last.
    pub records: Vec<RecordJson>,
    /// The public addresses of all virtual IPs.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// How many of them the records have no room for.
    pub left_out: usize,
    /// Addresses of virtual IPs that are not of the public Internet, without word of what receivers see instead (NAT).
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub hidden: Vec<IpAddr>,
}

fn json(parts: &Parts, vip: &Vip) -> VipJson {
    VipJson {
        id: vip.id.to_string(),
        ipv4: vip.ipv4,
        ipv6: vip.ipv6,
        public_ipv4: vip.public_ipv4,
        public_ipv6: vip.public_ipv6,
        ehlo: vip.ehlo.to_string(),
        tenant: match vip.owner {
            Owner::Tenant(id) => Some(tenant_name(parts, id)),
            Owner::Shared => None,
        },
        missing: vip.addresses().filter(|address| !net::is_present(*address)).collect(),
    }
}

#[utoipa::path(
    get,
    path = "/vips",
    operation_id = "vips_list",
    tag = "vips",
    summary = "List: vips.",
    params(("limit" = Option<u16>, Query, minimum = 1, maximum = 250), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = PageJson<VipJson>, description = "done"))
)]
pub(super) async fn list(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    paging: Paging,
) -> Answer<PageJson<VipJson>> {
    require_instance(&actor)?;
    let page = paging.of(parts.vips.all().to_vec(), |vip: &Vip| format!("{} {}", vip.ehlo, vip.id));
    let rows = page.rows.iter().map(|vip| json(&parts, vip)).collect();
    Ok(Json(PageJson { rows, next: page.next }))
}

#[utoipa::path(
    get,
    path = "/spf-record",
    operation_id = "vips_spf",
    tag = "vips",
    summary = "Show: the SPF record that permits every virtual IP, for tenants to include.",
    responses((status = 200, body = ServiceSpfJson, description = "done"))
)]
pub(super) async fn spf(State(parts): State<Shared>, Extension(actor): Extension<Actor>) -> Answer<ServiceSpfJson> {
    require_instance(&actor)?;
    let Some(name) = parts.domains.spf_include() else { return Ok(Json(ServiceSpfJson::default())) };
    let service = service_spf(name, &parts.vips.all());
    Ok(Json(ServiceSpfJson {
        name: Some(name.to_string()),
        records: service.records.iter().map(|record| RecordJson::of(record, None)).collect(),
        addresses: service.addresses,
        left_out: service.left_out,
        hidden: service.hidden,
    }))
}

#[utoipa::path(
    get,
    path = "/vips/{vip}",
    operation_id = "vips_show",
    tag = "vips",
    summary = "Show: vips.",
    params(("vip" = String, Path)),
    responses((status = 200, body = VipJson, description = "done"))
)]
pub(super) async fn show(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(vip): Path<String>,
) -> Answer<VipJson> {
    require_instance(&actor)?;
    Ok(Json(json(&parts, &vip_called(&parts, &actor, &vip)?)))
}

#[utoipa::path(
    post,
    path = "/vips",
    operation_id = "vips_add",
    tag = "vips",
    summary = "Make: vips.",
    request_body = NewVipJson,
    responses((status = 201, body = VipJson, description = "done"))
)]
pub(super) async fn add(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    JsonBody(asked): JsonBody<NewVipJson>,
) -> Result<(StatusCode, Json<VipJson>), Problem> {
    let owner = match (&asked.tenant, asked.shared) {
        (Some(name), false) => Owner::Tenant(tenant_called(&parts, &actor, name)?.id),
        (None, true) => Owner::Shared,
        _ => return Err(Problem::field("tenant", "name a tenant, or set shared to true, not both")),
    };
    let new = NewVip {
        ipv4: asked.ipv4,
        ipv6: asked.ipv6,
        public_ipv4: asked.public_ipv4,
        public_ipv6: asked.public_ipv6,
        ehlo: asked.ehlo,
        owner,
    };
    let id = match asked.id.as_deref().map(str::parse) {
        None => VipId::random(),
        Some(Ok(id)) => id,
        Some(Err(_)) => return Err(Problem::field("id", "this is not the id of a virtual IP")),
    };
    let vip = parts.vips.add_as(&actor, id, new, Timestamp::now()).await?;
    Ok((StatusCode::CREATED, Json(json(&parts, &vip))))
}

#[utoipa::path(
    patch,
    path = "/vips/{vip}",
    operation_id = "vips_change",
    tag = "vips",
    summary = "Change: vips.",
    params(("vip" = String, Path)),
    request_body = VipChangeJson,
    responses((status = 200, body = VipJson, description = "done"))
)]
pub(super) async fn change(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(vip): Path<String>,
    JsonBody(asked): JsonBody<VipChangeJson>,
) -> Answer<VipJson> {
    require_instance(&actor)?;
    let id = vip_called(&parts, &actor, &vip)?.id;
    let seen = Seen { ehlo: asked.ehlo, public: asked.public };
    let vip = parts.vips.describe_anew(&actor, id, seen, Timestamp::now()).await?;
    Ok(Json(json(&parts, &vip)))
}

#[utoipa::path(
    delete,
    path = "/vips/{vip}",
    operation_id = "vips_remove",
    tag = "vips",
    summary = "Remove: vips.",
    params(("vip" = String, Path)),
    responses((status = 204, description = "done"))
)]
pub(super) async fn remove(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(vip): Path<String>,
) -> Result<StatusCode, Problem> {
    // Before anything is said about what it is used for.
    actor.require(Permission::ManageInstance)?;
    let vip = vip_called(&parts, &actor, &vip)?;
    let default_of = parts.accounts.tenants(&actor).into_iter().find(|tenant| tenant.default_vip == Some(vip.id));
    if let Some(tenant) = default_of {
        return Err(Problem::in_use(format!(
            "it is the default virtual IP of tenant {}: postern tenant set",
            tenant.name
        )));
    }
    let named_by = parts.accounts.tenants(&actor).into_iter().find(|tenant| tenant.overflow_to.contains(&vip.id));
    if let Some(tenant) = named_by {
        let name = tenant.name;
        return Err(Problem::in_use(format!(
            "what warm-ups of tenant {name} have no room for may leave by it: postern tenant set {name} --warm-up-overflow"
        )));
    }
    let queue = parts.queue.clone();
    if off_workers(move || Ok(queue.has_mail_at(vip.id)?)).await? {
        return Err(Problem::in_use(
            "mail that leaves by this virtual IP or was accepted for it is not settled yet, and notices about it leave by it \
             too; wait, or cancel that mail (postern queue list)",
        ));
    }
    parts.vips.remove(&actor, vip.id, Timestamp::now()).await?;
    Ok(StatusCode::NO_CONTENT)
}
