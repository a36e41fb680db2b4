//! How many requests an address, and a person or key, may make: a bucket each that fills steadily.
//!
//! Pure: the time is a value. Bounded: an attacker who comes from many networks pushes out old
//! buckets, mostly his own. Easy to get wrong: who is answered 429 must be told when to come back.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;

use super::door::NetworkPeer;
use super::problem::Problem;
use crate::access::Actor;
use crate::accounts::Network;
use crate::ext::Timestamp;

/// Buckets remembered, at most.
const BUCKETS_MAX: usize = 16_384;
const MINUTE_MILLIS: u64 = 60_000;

/// Whose bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Whose {
    Network(Network),
    Actor(String),
}

#[derive(Clone, Copy)]
struct Bucket {
    /// Requests left, in units of 1/60000.
    level: u64,
    at: Timestamp,
}

/// All buckets.
pub struct Rates {
    per_minute: u64,
    buckets: Mutex<HashMap<Whose, Bucket>>,
}

/// What a request was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Requests a minute.
    pub limit: u64,
    /// Left now.
    pub remaining: u64,
    /// Seconds until there is one again, if there is none.
    pub wait: Option<u64>,
    /// Seconds until all are there again.
    pub reset: u64,
}

impl Rates {
    /// `per_minute` requests for each person or key, and twice that for a network.
    pub fn new(per_minute: u64) -> Self {
        Self { per_minute: per_minute.max(1), buckets: Mutex::default() }
    }

    fn take(&self, whose: Whose, now: Timestamp) -> Standing {
        let limit = match whose {
            Whose::Network(_) => self.per_minute.saturating_mul(2),
            Whose::Actor(_) => self.per_minute,
        };
        let full = limit.saturating_mul(MINUTE_MILLIS);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= BUCKETS_MAX && !buckets.contains_key(&whose) {
            buckets.retain(|_, bucket| now.since(bucket.at).as_secs() < 60);
            if buckets.len() >= BUCKETS_MAX {
                buckets.clear();
            }
        }
        let bucket = buckets.entry(whose).or_insert(Bucket { level: full, at: now });
        let passed = u64::try_from(now.since(bucket.at).as_millis()).unwrap_or(u64::MAX);
        bucket.level = bucket.level.saturating_add(passed.saturating_mul(limit)).min(full);
        bucket.at = now;
        let wait = match bucket.level.checked_sub(MINUTE_MILLIS) {
            Some(left) => {
                bucket.level = left;
                None
            }
            None => Some((MINUTE_MILLIS - bucket.level).div_ceil(limit).div_ceil(1000).max(1)),
        };
        let reset = (full - bucket.level).div_ceil(limit).div_ceil(1000);
        Standing { limit, remaining: bucket.level / MINUTE_MILLIS, wait, reset }
    }
}

/// Books a request of a network before anybody looks who it is.
pub async fn by_network(State(rates): State<Arc<Rates>>, request: Request, next: Next) -> Response {
    let peer: Option<IpAddr> = request.extensions().get::<NetworkPeer>().map(|peer| peer.0);
    let Some(peer) = peer else { return next.run(request).await };
    let standing = rates.take(Whose::Network(Network::of(peer)), Timestamp::now());
    if let Some(wait) = standing.wait {
        return told(refused(wait), standing);
    }
    let response = next.run(request).await;
    if response.headers().contains_key(LIMIT) { response } else { told(response, standing) }
}

/// Books a request of a person or key. The local socket has no limit.
pub async fn by_actor(State(rates): State<Arc<Rates>>, request: Request, next: Next) -> Response {
    let is_from_network = request.extensions().get::<NetworkPeer>().is_some();
    let actor = request.extensions().get::<Actor>().filter(|_| is_from_network).map(|actor| actor.name.clone());
    let Some(name) = actor else { return next.run(request).await };
    let standing = rates.take(Whose::Actor(name), Timestamp::now());
    match standing.wait {
        Some(wait) => told(refused(wait), standing),
        None => told(next.run(request).await, standing),
    }
}

fn refused(wait: u64) -> Response {
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", format!("too many requests; again in {wait} s"))
        .again_in(wait)
        .into_response()
}

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

fn told(mut response: Response, standing: Standing) -> Response {
    let headers = response.headers_mut();
    headers.insert(LIMIT, HeaderValue::from(standing.limit));
    headers.insert(REMAINING, HeaderValue::from(standing.remaining));
    headers.insert(RESET, HeaderValue::from(standing.reset));
    if let Some(wait) = standing.wait {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(wait));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_empties_and_fills_steadily_and_others_have_their_own() {
        let (rates, now) = (Rates::new(6), Timestamp(1_800_000_000_000));
        let take = |name: &str, now| rates.take(Whose::Actor(name.to_owned()), now);
        for left in (0..6).rev() {
            assert_eq!((take("a", now).wait, take("b", now).remaining), (None, left));
        }
        let refused = take("a", now);
        assert_eq!((refused.wait, refused.reset, refused.limit), (Some(10), 60, 6));
        assert_eq!(take("a", Timestamp(now.0 + 10_000)).wait, None, "one again after ten seconds");
        assert_eq!(take("a", Timestamp(now.0 + 10_000)).wait, Some(10));
    }

    #[test]
    fn a_flood_of_networks_does_not_grow_the_memory() {
        let rates = Rates::new(6);
        for number in 0..(BUCKETS_MAX as u32 * 2) {
            let network = Network::of(IpAddr::V4(std::net::Ipv4Addr::from_bits(number << 8)));
            rates.take(Whose::Network(network), Timestamp(1));
        }
        assert!(rates.buckets.lock().unwrap().len() <= BUCKETS_MAX);
    }
}
