//! Speaks to the daemon over its local socket: one request, one connection, JSON both ways.
//!
//! It refuses to know what the answers mean. Easy to get wrong: "no daemon", "not for you" and "the
//! daemon says no" are three different things to do next, so each has its own words and exit code.

use std::path::PathBuf;
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use super::exit;
use crate::web::{LIMIT_MAX, ProblemJson};

/// An answer larger than this is not read.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A request that takes longer is given up; the daemon gives up a little earlier.
const PATIENCE: Duration = Duration::from_secs(90);

/// Why a command did not do what was asked. A variant per exit code.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Nobody answers on the socket.
    #[error("{0}")]
    Unreachable(String),
    /// The configuration is wrong: every problem, one per line.
    #[error("{0}")]
    Configuration(String),
    /// A file is damaged, or not what it should be.
    #[error("{0}")]
    Damaged(String),
    /// Anything else: what, and what to do.
    #[error("{0}")]
    Failed(String),
}

impl Fault {
    /// The process's exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Unreachable(_) => exit::UNREACHABLE,
            Self::Configuration(_) => exit::CONFIGURATION,
            Self::Damaged(_) => exit::DAMAGED,
            Self::Failed(_) => exit::FAILED,
        }
    }
}

/// Octets of a file sent at a time.
const PIECE_BYTES: usize = 64 * 1024;

const JSON: &str = "application/json";

/// What is sent: at once, or piece by piece.
type Outgoing = UnsyncBoxBody<Bytes, std::io::Error>;

fn whole(octets: Vec<u8>) -> Outgoing {
    Full::new(Bytes::from(octets)).map_err(|never| match never {}).boxed_unsync()
}

/// A client of one daemon.
pub struct Client {
    /// Its socket.
    pub socket: PathBuf,
}

impl Client {
    /// GET.
    pub async fn get(&self, path: &str) -> Result<Value, Fault> {
        self.call(Method::GET, path, None).await
    }

    /// GET of a list: all of its pages, up to `most` rows.
    pub async fn list(&self, path: &str, most: usize) -> Result<Value, Fault> {
        self.list_from(path, None, most).await
    }

    /// GET of a list from a cursor on.
    pub async fn list_from(&self, path: &str, from: Option<String>, most: usize) -> Result<Value, Fault> {
        let mut rows = Vec::new();
        let mut cursor = from;
        loop {
            let wanted = most.saturating_sub(rows.len()).clamp(1, LIMIT_MAX);
            let mark = if path.contains('?') { '&' } else { '?' };
            let from = cursor.map(|cursor: String| format!("&cursor={}", encoded(&cursor))).unwrap_or_default();
            let mut page = self.get(&format!("{path}{mark}limit={wanted}{from}")).await?;
            if let Some(Value::Array(more)) = page.get_mut("rows").map(Value::take) {
                rows.extend(more);
            }
            cursor = page.get("next").and_then(Value::as_str).map(str::to_owned);
            if cursor.is_none() || rows.len() >= most {
                return Ok(serde_json::json!({ "rows": rows, "next": cursor }));
            }
        }
    }

    /// POST.
    pub async fn post(&self, path: &str, body: &impl Serialize) -> Result<Value, Fault> {
        self.call(Method::POST, path, Some((JSON, written(body)?))).await
    }

    /// POST that is carried out once within 24 hours for each `key`, if there is one.
    pub async fn post_once(&self, path: &str, body: &impl Serialize, key: Option<&str>) -> Result<Value, Fault> {
        let body = Some((JSON, whole(written(body)?)));
        self.within_patience(self.converse_with(Method::POST, path, body, key)).await
    }

    /// PATCH.
    pub async fn patch(&self, path: &str, body: &impl Serialize) -> Result<Value, Fault> {
        self.call(Method::PATCH, path, Some((JSON, written(body)?))).await
    }

    /// PUT.
    pub async fn put(&self, path: &str, body: &impl Serialize) -> Result<Value, Fault> {
        self.call(Method::PUT, path, Some((JSON, written(body)?))).await
    }

    /// DELETE.
    pub async fn delete(&self, path: &str) -> Result<Value, Fault> {
        self.call(Method::DELETE, path, None).await
    }

    /// POST whose answer is written to `out` as it comes, however long it is; its length.
    pub async fn fetch(&self, path: &str, out: &mut (impl AsyncWrite + Unpin)) -> Result<u64, Fault> {
        self.stream(Method::POST, path, out).await
    }

    /// GET whose answer is written to `out` as it comes; its length.
    pub async fn download(&self, path: &str, out: &mut (impl AsyncWrite + Unpin)) -> Result<u64, Fault> {
        self.stream(Method::GET, path, out).await
    }

    /// POST of octets of that kind.
    pub async fn upload(&self, path: &str, kind: &str, octets: Vec<u8>) -> Result<Value, Fault> {
        self.call(Method::POST, path, Some((kind, octets))).await
    }

    /// POST of a file of that kind, which is never held whole.
    pub async fn upload_file(&self, path: &str, kind: &str, file: tokio::fs::File) -> Result<Value, Fault> {
        let pieces = futures_util::stream::try_unfold(file, |mut file| async move {
            let mut piece = vec![0; PIECE_BYTES];
            let read = file.read(&mut piece).await?;
            piece.truncate(read);
            Ok((read > 0).then_some((Frame::data(Bytes::from(piece)), file)))
        });
        self.within_patience(self.converse(Method::POST, path, Some((kind, StreamBody::new(pieces).boxed_unsync()))))
            .await
    }

    async fn stream(&self, method: Method, path: &str, out: &mut (impl AsyncWrite + Unpin)) -> Result<u64, Fault> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let broken = |error: hyper::Error| Fault::Failed(format!("the daemon broke off the conversation: {error}"));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let driver = tokio::spawn(connection);
        let request = Request::builder().method(method).uri(format!("/api/v1{path}")).header("host", "postern");
        let request = request.body(Full::<Bytes>::default()).map_err(|error| Fault::Failed(error.to_string()))?;
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        let mut body = answer.into_body();
        if !status.is_success() {
            let bytes = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let bytes = bytes.map_err(|error| Fault::Failed(error.to_string()))?.to_bytes();
            return Err(refused(status.as_u16(), &bytes));
        }
        let mut length = 0_u64;
        loop {
            let frame = tokio::time::timeout(PATIENCE, body.frame()).await;
            let frame =
                frame.map_err(|_| Fault::Failed(format!("the daemon sent nothing for {} s", PATIENCE.as_secs())))?;
            let Some(frame) = frame else { break };
            let frame = frame
                .map_err(|error| Fault::Failed(format!("the daemon's answer broke off; its log says why ({error})")))?;
            if let Ok(chunk) = frame.into_data() {
                out.write_all(&chunk).await.map_err(|error| Fault::Failed(format!("writing what came: {error}")))?;
                length += chunk.len() as u64;
            }
        }
        driver.abort();
        Ok(length)
    }

    async fn call(&self, method: Method, path: &str, body: Option<(&str, Vec<u8>)>) -> Result<Value, Fault> {
        self.within_patience(self.converse(method, path, body.map(|(kind, octets)| (kind, whole(octets))))).await
    }

    async fn within_patience(&self, answer: impl Future<Output = Result<Value, Fault>>) -> Result<Value, Fault> {
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(Fault::Failed(format!("the daemon did not answer within {} s", PATIENCE.as_secs()))),
        }
    }

    async fn converse(&self, method: Method, path: &str, body: Option<(&str, Outgoing)>) -> Result<Value, Fault> {
        self.converse_with(method, path, body, None).await
    }

    async fn converse_with(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, Outgoing)>,
        idempotency_key: Option<&str>,
    ) -> Result<Value, Fault> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let broken = |error: hyper::Error| Fault::Failed(format!("the daemon broke off the conversation: {error}"));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let driver = tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(format!("/api/v1{path}")).header("host", "postern");
        if let Some((kind, _)) = &body {
            request = request.header("content-type", *kind);
        }
        if let Some(key) = idempotency_key {
            request = request.header("idempotency-key", key);
        }
        let body = body.map_or_else(|| whole(Vec::new()), |(_, body)| body);
        let request = request.body(body).map_err(|error| Fault::Failed(error.to_string()))?;
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        let bytes = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| Fault::Failed(format!("the daemon's answer broke off: {error}")))?
            .to_bytes();
        driver.abort();
        if !status.is_success() {
            return Err(refused(status.as_u16(), &bytes));
        }
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes)
            .map_err(|error| Fault::Failed(format!("the daemon's answer is no JSON: {error}")))
    }

    fn unreachable(&self, error: &std::io::Error) -> Fault {
        let socket = self.socket.display();
        let text = match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
                format!("the daemon is not running: nobody listens on {socket}; try systemctl status postern")
            }
            std::io::ErrorKind::PermissionDenied => {
                format!("{socket} is not open to you: use sudo, or join the group named by admin.group")
            }
            _ => format!("{socket}: {error}"),
        };
        Fault::Unreachable(text)
    }
}

fn refused(status: u16, bytes: &[u8]) -> Fault {
    let Ok(problem) = serde_json::from_slice::<ProblemJson>(bytes) else {
        return Fault::Failed(format!("the daemon answered {status} without saying why"));
    };
    match status {
        500.. => Fault::Failed(format!("{} (request {} in the daemon's log)", problem.detail, problem.request_id)),
        _ => Fault::Failed(problem.detail),
    }
}

fn written(body: &impl Serialize) -> Result<Vec<u8>, Fault> {
    serde_json::to_vec(body).map_err(|error| Fault::Failed(error.to_string()))
}

/// `text` as one segment of a path or one value of a query.
pub fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_typed_can_leave_its_path_segment() {
        assert_eq!(encoded("a@b.example"), "a%40b.example");
        assert_eq!(encoded("../x?y=1#z"), "..%2Fx%3Fy%3D1%23z");
        assert_eq!(encoded("é"), "%C3%A9");
    }

    #[tokio::test]
    async fn a_missing_daemon_is_said_in_one_line_with_its_own_exit_code() {
        let folder = tempfile::tempdir().unwrap();
        let client = Client { socket: folder.path().join("none.sock") };
        let fault = client.get("/status").await.unwrap_err();
        assert_eq!(fault.code(), exit::UNREACHABLE);
        let text = fault.to_string();
        assert!(text.starts_with("the daemon is not running") && text.contains("systemctl status postern"), "{text}");
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn a_refusal_is_the_daemons_sentence() {
        let body =
            br#"{"type":"urn:x","title":"Not Found","status":404,"code":"not_found","detail":"there is no tenant x"}"#;
        assert_eq!(refused(404, body).to_string(), "there is no tenant x");
        assert_eq!(refused(502, b"<html>").to_string(), "the daemon answered 502 without saying why");
    }
}
