//! `/backup`: a sealed copy of everything, streamed while it is made.

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::{Problem, Shared};
use crate::access::Actor;
use crate::backup::BackupError;
use crate::ext::Timestamp;
use crate::records::AdminError;

#[utoipa::path(
    post,
    path = "/backup",
    operation_id = "backup_take",
    tag = "backup",
    summary = "Take: backup, over the local socket.",
    responses((status = 200, content_type = "application/octet-stream", description = "the sealed file, as it is made"))
)]
pub(super) async fn take(State(parts): State<Shared>, Extension(actor): Extension<Actor>) -> Result<Response, Problem> {
    if actor.from.is_some() {
        let detail = "a backup is taken over the local socket: postern backup make FILE";
        return Err(Problem::new(StatusCode::FORBIDDEN, "local_only", detail));
    }
    let mut chunks = parts.backup.take(&actor, Timestamp::now()).await.map_err(|error| match error {
        BackupError::Forbidden(forbidden) => AdminError::from(forbidden).into(),
        BackupError::Key(detail) => Problem::new(StatusCode::CONFLICT, "no_backup_key", detail),
        BackupError::Busy => Problem::in_use(error.to_string()),
        _ => Problem::inner(StatusCode::INTERNAL_SERVER_ERROR, "failed", "the backup could not begin", error),
    })?;
    // An error among the chunks breaks the connection off, so that nobody takes a part for the whole.
    let chunks = futures_util::stream::poll_fn(move |context| chunks.poll_recv(context));
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], Body::from_stream(chunks)).into_response())
}
