//! How much mail is being handed in over HTTP at one moment: bodies are in memory whole, some times over,
//! so their octets are reserved before the first is read.
//!
//! Easy to get wrong: what is reserved must be held as long as the work goes on, also after its client went
//! away; so it travels with the request.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::Problem;
use crate::gate::{Gate, Work};

/// Octets of bodies being handed in at one moment, at most (128 MiB); in memory they may be three times that.
pub const SENDING_BYTES_MAX: u64 = 128 * 1024 * 1024;
/// A client that meets a full house asks again after this, in seconds.
const AGAIN_SECS: u64 = 5;
const KIB: u64 = 1024;

/// What was reserved for a request, given back when the last copy is dropped.
#[derive(Clone, Debug)]
pub struct Held(#[expect(dead_code, reason = "held, not read")] Arc<OwnedSemaphorePermit>);

/// The room there is.
pub struct Burden {
    gate: Arc<Gate>,
    kib: Arc<Semaphore>,
    body_bytes_max: u64,
}

impl Burden {
    /// Room for [`SENDING_BYTES_MAX`], and for one body of `body_bytes_max` in any case.
    pub fn new(gate: Arc<Gate>, body_bytes_max: u64) -> Self {
        let kib = (SENDING_BYTES_MAX / KIB).max(body_bytes_max.div_ceil(KIB));
        let kib = usize::try_from(kib).unwrap_or(Semaphore::MAX_PERMITS).min(Semaphore::MAX_PERMITS);
        Self { gate, kib: Arc::new(Semaphore::new(kib)), body_bytes_max }
    }

    fn reserve(&self, length: Option<u64>) -> Option<Held> {
        // Who does not say how long it is may send as much as anybody.
        let octets = length.unwrap_or(self.body_bytes_max).min(self.body_bytes_max);
        let kib = u32::try_from(octets.div_ceil(KIB)).unwrap_or(u32::MAX).max(1);
        let permit = Arc::clone(&self.kib).try_acquire_many_owned(kib).ok()?;
        Some(Held(Arc::new(permit)))
    }
}

/// Lets a message in if there is room for it.
pub async fn admit(State(burden): State<Arc<Burden>>, mut request: Request, next: Next) -> Response {
    if let Err(shortage) = burden.gate.admit(Work::Message) {
        let detail = format!("{} runs short here; try again later", shortage.name());
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail).into_response();
    }
    let length = request.headers().get(header::CONTENT_LENGTH).map(HeaderValue::to_str);
    let length = length.and_then(|text| text.ok()?.parse().ok());
    let Some(held) = burden.reserve(length) else {
        let detail = "too much mail is being handed in; try again in a moment";
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail).again_in(AGAIN_SECS);
        return problem.into_response();
    };
    request.extensions_mut().insert(held.clone());
    let answer = next.run(request).await;
    drop(held);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_reserved_by_length_and_comes_back() {
        let gate = Arc::new(Gate::new(crate::gate::Settings::default()));
        let burden = Burden::new(gate, 64 * 1024 * 1024);
        let first = burden.reserve(None).unwrap();
        let second = burden.reserve(Some(64 * 1024 * 1024)).unwrap();
        assert!(burden.reserve(Some(1)).is_none(), "all of it is taken");
        let copy = second.clone();
        drop(second);
        assert!(burden.reserve(Some(1)).is_none(), "work goes on with the copy");
        drop((first, copy));
        assert!(burden.reserve(Some(u64::MAX)).is_some(), "what is too long is refused when it is read");
    }
}
