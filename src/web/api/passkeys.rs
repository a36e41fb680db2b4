//! `/session/passkeys`: one's own passkeys.
//!
//! Easy to get wrong: what the browser makes goes to the room as it came; nothing of it is understood here.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::session::{octets, stay};
use super::{Answer, Shared};
use crate::access::Actor;
use crate::ext::Timestamp;
use crate::people::Passkey;
use crate::web::body::JsonBody;
use crate::web::identity::Stay;
use crate::web::problem::Problem;

/// A passkey.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PasskeyJson {
    /// Its id.
    pub id: String,
    /// What the person calls it.
    pub name: String,
    /// When it was set up.
    pub created: String,
    /// When it was last used.
    pub last_used: Option<String>,
    /// When it was last refused because it counted less than before: somebody may have a copy, so take it away.
    pub copied: Option<String>,
    /// The host it was made for; if browsers reach the API by another one now, it cannot be used: take it away.
    pub host: String,
}

/// What a browser needs to make a passkey; good for five minutes in this session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PasskeyOfferJson {
    /// For `PublicKeyCredential.parseCreationOptionsFromJSON`.
    #[schema(value_type = Object)]
    pub public_key: Value,
}

/// A passkey that the browser has made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPasskeyJson {
    /// What the person calls it, such as the device.
    pub name: String,
    /// What the browser made (`PublicKeyCredential.toJSON()`).
    #[schema(value_type = Object)]
    pub credential: Value,
}

/// A passkey that was set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MadePasskeyJson {
    /// The passkey.
    pub passkey: PasskeyJson,
    /// With the first second factor, codes that each replace it once, shown this once; else none: those that are
    /// there stay.
    pub recovery_codes: Vec<String>,
}

/// Another name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PasskeyNameJson {
    /// What the person calls it.
    pub name: String,
}

fn json(passkey: &Passkey) -> PasskeyJson {
    PasskeyJson {
        id: passkey.id(),
        name: passkey.name.clone(),
        created: passkey.created.rfc3339(),
        last_used: passkey.last_used.map(Timestamp::rfc3339),
        copied: passkey.copied.map(Timestamp::rfc3339),
        host: passkey.host.clone(),
    }
}

#[utoipa::path(
    get,
    path = "/session/passkeys",
    operation_id = "session_passkeys",
    tag = "session",
    summary = "List: one's own passkeys.",
    responses((status = 200, body = Vec<PasskeyJson>, description = "done"))
)]
pub(super) async fn list(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    own: Option<Extension<Stay>>,
) -> Answer<Vec<PasskeyJson>> {
    let own = stay(own)?;
    Ok(Json(parts.people.passkeys(&actor, own.user.id)?.iter().map(json).collect()))
}

#[utoipa::path(
    post,
    path = "/session/passkeys/offer",
    operation_id = "session_offer_passkey",
    tag = "session",
    summary = "Offer: what a browser needs to make a passkey.",
    responses((status = 200, body = PasskeyOfferJson, description = "done"))
)]
pub(super) async fn offer(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    own: Option<Extension<Stay>>,
) -> Answer<PasskeyOfferJson> {
    let own = stay(own)?;
    let whose = (own.user.id, own.session.digest);
    Ok(Json(PasskeyOfferJson { public_key: parts.people.offer_passkey(&actor, whose, Timestamp::now())? }))
}

#[utoipa::path(
    post,
    path = "/session/passkeys",
    operation_id = "session_add_passkey",
    tag = "session",
    summary = "Add: a passkey the browser has made; the other sessions end.",
    request_body = NewPasskeyJson,
    responses((status = 201, body = MadePasskeyJson, description = "done"))
)]
pub(super) async fn add(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    own: Option<Extension<Stay>>,
    JsonBody(asked): JsonBody<NewPasskeyJson>,
) -> Result<(StatusCode, Json<MadePasskeyJson>), Problem> {
    let own = stay(own)?;
    let whose = (own.user.id, own.session.digest);
    let credential = octets(&asked.credential);
    let added = parts.people.add_passkey(&actor, whose, (&asked.name, &credential), Timestamp::now()).await?;
    let recovery_codes = added.1.iter().map(|code| code.to_string()).collect();
    Ok((StatusCode::CREATED, Json(MadePasskeyJson { passkey: json(&added.0), recovery_codes })))
}

#[utoipa::path(
    patch,
    path = "/session/passkeys/{passkey}",
    operation_id = "session_rename_passkey",
    tag = "session",
    summary = "Rename: one of one's own passkeys.",
    params(("passkey" = String, Path)),
    request_body = PasskeyNameJson,
    responses((status = 200, body = PasskeyJson, description = "done"))
)]
pub(super) async fn rename(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    own: Option<Extension<Stay>>,
    Path(passkey): Path<String>,
    JsonBody(asked): JsonBody<PasskeyNameJson>,
) -> Answer<PasskeyJson> {
    let own = stay(own)?;
    let which = (own.user.id, passkey.as_str());
    Ok(Json(json(&parts.people.rename_passkey(&actor, which, &asked.name, Timestamp::now()).await?)))
}

#[utoipa::path(
    delete,
    path = "/session/passkeys/{passkey}",
    operation_id = "session_remove_passkey",
    tag = "session",
    summary = "Remove: one of one's own passkeys; the other sessions end.",
    params(("passkey" = String, Path)),
    responses((status = 204, description = "done"))
)]
pub(super) async fn remove(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    own: Option<Extension<Stay>>,
    Path(passkey): Path<String>,
) -> Result<StatusCode, Problem> {
    let own = stay(own)?;
    let whose = (own.user.id, own.session.digest);
    parts.people.remove_passkey(&actor, whose, &passkey, Timestamp::now()).await?;
    Ok(StatusCode::NO_CONTENT)
}
