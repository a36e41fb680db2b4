//! `/mailbox`: letters to postmaster, abuse and fbl of this server's names.
//!
//! Easy to get wrong: a letter is a stranger's text; it is told as data and never shown as a page.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Answer, Shared};
use crate::access::Actor;
use crate::ext::Timestamp;
use crate::feedback::Letter;
use crate::web::paging::{self, PageJson, Paging};
use crate::web::problem::Problem;

/// A letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LetterJson {
    /// Its id.
    pub id: String,
    /// When it came.
    pub at: String,
    /// To whom.
    pub to: String,
    /// Its reverse-path, as SMTP said it.
    pub from: String,
    /// The peer that brought it: address, and what it called itself.
    pub peer: String,
    /// Its subject.
    pub subject: String,
    /// How long it was.
    pub size_bytes: u64,
    /// Its beginning, as text; of one letter only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Whether that is not all of it.
    #[serde(default)]
    pub cut: bool,
}

fn json(letter: Letter, text: bool) -> LetterJson {
    let cut = letter.size_bytes > letter.octets.len() as u64;
    LetterJson {
        id: letter.id,
        at: letter.at.rfc3339(),
        to: letter.to,
        from: letter.from,
        peer: letter.peer,
        subject: letter.subject,
        size_bytes: letter.size_bytes,
        text: text.then(|| String::from_utf8_lossy(&letter.octets).into_owned()),
        cut,
    }
}

#[utoipa::path(
    get,
    path = "/mailbox",
    operation_id = "mailbox_list",
    tag = "mailbox",
    summary = "List: mailbox.",
    params(
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 250),
        ("cursor" = Option<String>, Query)
    ),
    responses((status = 200, body = PageJson<LetterJson>, description = "newest first"))
)]
pub(super) async fn list(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    paging: Paging,
) -> Answer<PageJson<LetterJson>> {
    super::require_instance(&actor)?;
    let (feedback, limit, after) = (parts.feedback.clone(), paging.limit, paging.after);
    let page = super::off_workers(move || feedback.letters(&actor, after.as_deref(), limit)).await?;
    let next = page.next.map(|id| paging::wrap(&id));
    Ok(Json(PageJson { rows: page.letters.into_iter().map(|letter| json(letter, false)).collect(), next }))
}

#[utoipa::path(
    get,
    path = "/mailbox/{letter}",
    operation_id = "mailbox_show",
    tag = "mailbox",
    summary = "Show: mailbox.",
    params(("letter" = String, Path)),
    responses((status = 200, body = LetterJson, description = "with its text"))
)]
pub(super) async fn show(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(letter): Path<String>,
) -> Answer<LetterJson> {
    super::require_instance(&actor)?;
    let letter = parts.feedback.letter(&actor, &letter)?;
    Ok(Json(json(letter, true)))
}

#[utoipa::path(
    delete,
    path = "/mailbox/{letter}",
    operation_id = "mailbox_remove",
    tag = "mailbox",
    summary = "Remove: mailbox.",
    params(("letter" = String, Path)),
    responses((status = 204, description = "done"))
)]
pub(super) async fn remove(
    State(parts): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(letter): Path<String>,
) -> Result<StatusCode, Problem> {
    parts.feedback.remove_letter(&actor, &letter, Timestamp::now()).await?;
    Ok(StatusCode::NO_CONTENT)
}
