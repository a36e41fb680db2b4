//! What the API answers when it does not do what was asked: RFC 9457 problem documents.
//!
//! Each has a stable `code` for programs, a sentence for people, the path of each field that is
//! wrong, and the request's id. Easy to get wrong: a cause from inside (a path, a storage error)
//! belongs in the log under the request's id, never in the answer.

use std::borrow::Cow;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::codes;
use crate::access::{Forbidden, Sight};
use crate::records::AdminError;
use crate::store::{CommitError, StoreError};

/// The body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProblemJson {
    /// `urn:postern:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The HTTP status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// For programs; never changes its meaning.
    pub code: String,
    /// For people: one sentence.
    pub detail: String,
    /// The fields that are wrong, if the fault lies in fields.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldJson>,
    /// Names this request in the daemon's log.
    #[serde(default)]
    pub request_id: String,
    /// Where this daemon says what the code means and what to do.
    #[serde(default)]
    pub doc: String,
    /// With `second_factor_required`, if the person has passkeys: what the browser needs to prove one
    /// (`PublicKeyCredential.parseRequestOptionsFromJSON`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub passkey: Option<serde_json::Value>,
}

/// One field that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldJson {
    /// Where it is: `address`, `allowed_from[1]`.
    pub field: String,
    /// What is wrong with it.
    pub detail: String,
}

/// What is said to be missing where an actor must not learn whether it exists.
const HIDDEN: &str = "such resource";

/// An answer that is not a success, on its way out.
#[derive(Clone, Debug)]
pub struct Problem {
    status: StatusCode,
    code: Cow<'static, str>,
    detail: String,
    errors: Vec<FieldJson>,
    /// For the log only.
    cause: Option<Box<str>>,
    /// Seconds after which trying again may help.
    retry_after: Option<u64>,
    /// What a browser needs to prove a passkey.
    passkey: Option<Box<serde_json::Value>>,
}

impl Problem {
    /// A problem with a sentence for people.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        let code = Cow::Borrowed(code);
        let (errors, detail) = (Vec::new(), detail.into());
        Self { status, code, detail, errors, cause: None, retry_after: None, passkey: None }
    }

    /// With what a browser needs to prove a passkey.
    #[must_use]
    pub fn with_passkey(mut self, options: Option<serde_json::Value>) -> Self {
        self.passkey = options.map(Box::new);
        self
    }

    /// Trying again may help after `seconds`.
    #[must_use]
    pub fn again_in(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Its code.
    #[cfg(test)]
    pub(super) fn code(&self) -> &str {
        &self.code
    }

    /// 404: no such record.
    pub fn missing(what: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no {what}"))
    }

    /// The same answer for what does not exist and for what must not be seen.
    #[must_use]
    pub(super) fn without_a_trace(mut self) -> Self {
        if self.status == StatusCode::NOT_FOUND {
            self.detail = format!("there is no {HIDDEN}");
        }
        self
    }

    /// 409: the name fits more than one.
    pub fn ambiguous(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "ambiguous", detail)
    }

    /// 409: it is still needed by something else.
    pub fn in_use(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "in_use", detail)
    }

    /// 422: one field is wrong.
    pub fn field(field: impl Into<String>, detail: impl Into<String>) -> Self {
        let (field, detail) = (field.into(), detail.into());
        let mut problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", format!("{field}: {detail}"));
        problem.errors.push(FieldJson { field, detail });
        problem
    }

    /// Both, if both are about fields: whoever asked is told at once. Else the first.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        if !self.errors.is_empty() && !other.errors.is_empty() {
            self.detail.push_str("; ");
            self.detail.push_str(&other.detail);
            self.errors.extend(other.errors);
        }
        self
    }

    /// 500 or 503: ours. `cause` is logged and not told.
    pub fn inner(
        status: StatusCode,
        code: &'static str,
        detail: impl Into<String>,
        cause: impl std::fmt::Display,
    ) -> Self {
        Self { cause: Some(cause.to_string().into_boxed_str()), ..Self::new(status, code, detail) }
    }

    /// The body for `request_id`; logs the cause, if there is one.
    pub(super) fn into_json(self, request_id: &str) -> ProblemJson {
        if let Some(cause) = &self.cause {
            tracing::error!(request_id, code = %self.code, cause, "a request failed inside");
        }
        ProblemJson {
            kind: format!("urn:postern:problem:{}", self.code),
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status.as_u16(),
            doc: codes::link(&self.code),
            code: self.code.into_owned(),
            detail: self.detail,
            errors: self.errors,
            request_id: request_id.to_owned(),
            passkey: self.passkey.map(|options| *options),
        }
    }

    /// The document for `request_id`.
    pub(super) fn into_document(self, request_id: &str) -> Response {
        let (status, retry_after) = (self.status, self.retry_after);
        let body = serde_json::to_vec(&self.into_json(request_id)).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        let default = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(5);
        if let Some(seconds) = retry_after.or(default) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"postern\""));
        }
        response
    }
}

/// What was read of each, or everything that is wrong with the fields they were read of.
pub fn all_read<T>(read: impl IntoIterator<Item = Result<T, Problem>>) -> Result<Vec<T>, Problem> {
    let (mut good, mut wrong) = (Vec::new(), None::<Problem>);
    for one in read {
        match one {
            Ok(one) => good.push(one),
            Err(problem) => {
                wrong = Some(match wrong.take() {
                    None => problem,
                    Some(before) => before.and(problem),
                })
            }
        }
    }
    wrong.map_or(Ok(good), Err)
}

/// Both, or everything that is wrong with the fields they were read of.
pub fn both<A, B>(one: Result<A, Problem>, other: Result<B, Problem>) -> Result<(A, B), Problem> {
    match (one, other) {
        (Ok(one), Ok(other)) => Ok((one, other)),
        (Err(problem), Ok(_)) | (Ok(_), Err(problem)) => Err(problem),
        (Err(problem), Err(other)) => Err(problem.and(other)),
    }
}

/// The problem rides in the extensions; [`super::server`]'s outer layer writes it, since only it
/// knows the request's id.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<AdminError> for Problem {
    fn from(error: AdminError) -> Self {
        let sentence = error.to_string();
        match error {
            AdminError::Forbidden(forbidden) => forbidden.into(),
            AdminError::Missing(_) => Self::new(StatusCode::NOT_FOUND, "not_found", sentence),
            AdminError::Exists(_) => Self::new(StatusCode::CONFLICT, "exists", sentence),
            AdminError::Invalid(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", sentence),
            AdminError::Full(_, secs) => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_open", sentence).again_in(secs)
            }
            AdminError::Fields(wrong) => {
                let errors = wrong.into_iter().map(|wrong| FieldJson { field: wrong.field, detail: wrong.detail });
                let problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", sentence);
                Self { errors: errors.collect(), ..problem }
            }
            AdminError::Store(error) => error.into(),
            AdminError::Commit(error) => error.into(),
        }
    }
}

impl From<Forbidden> for Problem {
    fn from(forbidden: Forbidden) -> Self {
        match forbidden.sight {
            Sight::Hidden => Self::missing(HIDDEN),
            Sight::Seen | Sight::Whole => Self::new(StatusCode::FORBIDDEN, "forbidden", forbidden.to_string()),
            Sight::ProofIsOld => Self::new(StatusCode::FORBIDDEN, "confirm_identity", forbidden.to_string()),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let (code, detail) = match error {
            StoreError::Damaged(_) => ("damaged", "a stored record is damaged; the log has the details"),
            StoreError::Failed(_) => ("storage_failed", "the records could not be read; the log has the details"),
        };
        Self::inner(StatusCode::INTERNAL_SERVER_ERROR, code, detail, error)
    }
}

impl From<CommitError> for Problem {
    fn from(error: CommitError) -> Self {
        let (status, code, detail) = match error {
            CommitError::Conflict => (StatusCode::CONFLICT, "conflict", "the record changed meanwhile; try again"),
            CommitError::Full(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "storage_full", "the disk is full or nearly so; nothing was changed")
            }
            CommitError::Failed(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "storage_failed", "the change could not be written")
            }
            CommitError::Stopped(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "storage_stopped", "storage has stopped until the daemon restarts")
            }
        };
        Self::inner(status, code, detail, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ceiling_that_is_reached_says_when_to_come_back() {
        let problem = Problem::from(AdminError::Full("20 acts are not over".to_owned(), 30));
        assert_eq!((problem.code(), problem.detail.as_str()), ("too_many_open", "20 acts are not over"));
        let response = problem.into_document("r1");
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers().get(header::RETRY_AFTER), Some(&HeaderValue::from_static("30")));
    }
}
