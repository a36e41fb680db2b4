//! One attempt: a signed request to an endpoint, at its secondary address too if the first one fails.
//!
//! It decides nothing about what comes next but that: whoever asked writes down what is returned here. Easy to
//! get wrong: the signature covers the time of this attempt, so it is made anew each time, over the same body.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Bytes;
use zeroize::Zeroizing;

use super::record::{Ending, Pending, Webhook};
use super::resealing::{password_purpose, secret_purpose};
use super::{Shared, signature};
use crate::ext::Timestamp;
use crate::mail::printable;
use crate::metrics::WEBHOOK_REQUESTS;
use crate::net::{Answer, Line, Outgoing, PostError, Target};

/// The whole of a request takes this long, at most.
const PATIENCE: Duration = Duration::from_secs(15);
/// Characters of an answer that are kept.
const ANSWER_CHARACTERS_MAX: usize = 1_000;

/// Connections to both addresses of an endpoint.
#[derive(Default)]
pub struct Lines {
    first: Line,
    second: Line,
}

/// How one request ended.
pub struct Tried {
    /// When it began.
    pub at: Timestamp,
    /// Whether it went to the secondary address.
    pub is_secondary: bool,
    /// How it ended.
    pub ending: Ending,
    /// How long it took, in milliseconds.
    pub took_ms: u32,
    /// The beginning of the answer.
    pub answer: String,
    /// When the receiver asked to be asked again.
    pub retry_after: Option<Duration>,
}

impl Tried {
    /// Whether the endpoint took it.
    pub fn is_success(&self) -> bool {
        matches!(self.ending, Ending::Answered(200..300))
    }

    /// Whether the endpoint says that it is gone for good (RFC 9110 s15.5.11).
    pub fn is_gone(&self) -> bool {
        !self.is_secondary && self.ending == Ending::Answered(410)
    }

    /// In words, for people.
    pub fn reason(&self) -> String {
        match &self.ending {
            Ending::Answered(status) => format!("answered {status}"),
            Ending::Failed(reason) => reason.clone(),
        }
    }
}

/// Makes the request, once at each address until one takes it; what became of each.
pub(super) async fn carry_out(shared: &Shared, webhook: &Webhook, lines: &Lines, request: &Pending) -> Vec<Tried> {
    let mut all = Vec::new();
    let first = to(shared, webhook, (&lines.first, &webhook.url), request).await;
    let is_final = first.is_success() || first.is_gone();
    all.push(first);
    if let (false, Some(url)) = (is_final, &webhook.secondary_url) {
        let second = to(shared, webhook, (&lines.second, url), request).await;
        all.push(Tried { is_secondary: true, ..second });
    }
    all
}

async fn to(shared: &Shared, webhook: &Webhook, (line, url): (&Line, &str), request: &Pending) -> Tried {
    // Never closed while lanes run.
    let _permit = shared.permits.acquire().await;
    let (at, began) = (shared.now(), Instant::now());
    let posted = match outgoing(shared, webhook, request, at) {
        Ok(outgoing) => post(shared, line, url, outgoing).await,
        Err(reason) => Err(reason),
    };
    let took_ms = u32::try_from(began.elapsed().as_millis()).unwrap_or(u32::MAX);
    let (ending, answer, retry_after) = match posted {
        Ok(answer) => (Ending::Answered(answer.status), beginning(&answer.body), answer.retry_after),
        Err(reason) => (Ending::Failed(reason), String::new(), None),
    };
    let tried = Tried { at, is_secondary: false, ending, took_ms, answer, retry_after };
    let result = if tried.is_success() { "taken" } else { "failed" };
    metrics::counter!(WEBHOOK_REQUESTS, "result" => result).increment(1);
    tried
}

async fn post(shared: &Shared, line: &Line, url: &str, outgoing: Outgoing) -> Result<Answer, String> {
    let target = Target::parse(url).map_err(|error| format!("the address {error}"))?;
    let posted = shared.parts.post.post(line, &target, outgoing, PATIENCE).await;
    posted.map_err(|error: PostError| printable(&error.to_string()))
}

fn outgoing(shared: &Shared, webhook: &Webhook, request: &Pending, at: Timestamp) -> Result<Outgoing, String> {
    let secrets = open_secrets(shared, webhook, at)?;
    let signature = signature::sign(&secrets, &request.id, at, request.body.as_bytes());
    let mut fields = vec![
        ("content-type", "application/json".to_owned()),
        ("webhook-id", request.id.clone()),
        ("webhook-timestamp", at.as_secs().to_string()),
        ("webhook-signature", signature),
    ];
    if let Some(login) = &webhook.login {
        let opened = shared.parts.key.open(&password_purpose(webhook.id), &login.sealed_password);
        let mut pair = Zeroizing::new(login.user.clone().into_bytes());
        pair.push(b':');
        pair.extend_from_slice(&opened.map_err(|error| format!("its password: {error}"))?);
        fields.push(("authorization", format!("Basic {}", STANDARD.encode(&*pair))));
    }
    Ok(Outgoing { fields, body: Bytes::from(request.body.clone()) })
}

/// Those that are good at `at`, newest first.
fn open_secrets(shared: &Shared, webhook: &Webhook, at: Timestamp) -> Result<Vec<Zeroizing<Vec<u8>>>, String> {
    let purpose = secret_purpose(webhook.id);
    let good = webhook.secrets.iter().filter(|secret| secret.expires.is_none_or(|ends| at < ends));
    let opened = good.map(|secret| shared.parts.key.open(&purpose, &secret.sealed));
    opened.collect::<Result<_, _>>().map_err(|error| format!("its signing secret: {error}"))
}

fn beginning(body: &[u8]) -> String {
    printable(&String::from_utf8_lossy(body)).chars().take(ANSWER_CHARACTERS_MAX).collect()
}
