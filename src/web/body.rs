//! What a request carries: a JSON body read strictly, with the path of the field that is wrong.
//!
//! Unknown fields are refused by the types in `api`: a misspelt limit must not be silently no limit.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;

use super::problem::Problem;

/// A JSON body of type `T`.
#[derive(Debug)]
pub struct JsonBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
        require_json(kind.split(';').next().unwrap_or_default().trim())?;
        read(&whole(Bytes::from_request(request, state).await)?).map(Self)
    }
}

/// Refuses a body of another kind; `kind` is without parameters.
pub fn require_json(kind: &str) -> Result<(), Problem> {
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let detail = "the body must be JSON, with Content-Type: application/json";
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", detail))
}

/// The octets of a body, if they came whole and are not too many.
pub fn whole(read: Result<Bytes, BytesRejection>) -> Result<Bytes, Problem> {
    read.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "the body is too large")
        }
        status => Problem::new(status, "unreadable", "the body could not be read"),
    })
}

/// Reads a body.
pub fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(misread)?;
    reader.end().map_err(|error| malformed(&error))?;
    Ok(value)
}

/// Reads a part of a body.
pub fn read_value<T: DeserializeOwned>(value: serde_json::Value) -> Result<T, Problem> {
    serde_path_to_error::deserialize(value).map_err(misread)
}

fn misread(error: serde_path_to_error::Error<serde_json::Error>) -> Problem {
    let path = error.path().to_string();
    let cause = error.into_inner();
    if cause.is_data() && path != "." {
        Problem::field(path, without_position(&cause))
    } else if cause.is_data() {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", without_position(&cause))
    } else {
        malformed(&cause)
    }
}

fn malformed(error: &serde_json::Error) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "malformed", format!("the body is not JSON: {error}"))
}

/// The message without ` at line 1 column 2`, which says nothing to whoever typed a command.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}
