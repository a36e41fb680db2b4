//! Lists in pages: `limit` from 1 to 250, and an opaque cursor that says where the next page starts.
//!
//! A cursor is the text of the last key that was shown, wrapped so that nobody builds one by hand
//! and a later release may change what is in it. Easy to get wrong: the row a cursor names may be
//! gone by the next request; the page starts after where it was.

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::problem::Problem;

/// Rows in a page, at most.
pub const LIMIT_MAX: usize = 250;
/// Rows in a page if nobody says.
pub const LIMIT_DEFAULT: usize = 50;

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PageJson<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// What to give as `cursor` for the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Which page is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paging {
    /// Rows wanted, 1 to [`LIMIT_MAX`].
    pub limit: usize,
    /// The key after which the page starts.
    pub after: Option<String>,
}

#[derive(Deserialize)]
struct Asked {
    limit: Option<String>,
    cursor: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Paging {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Query(asked) = Query::<Asked>::from_request_parts(parts, state)
            .await
            .map_err(|error| Problem::field("query", error.body_text()))?;
        let limit = match asked.limit {
            None => LIMIT_DEFAULT,
            Some(text) => (text.parse().ok())
                .filter(|limit| (1..=LIMIT_MAX).contains(limit))
                .ok_or_else(|| Problem::field("limit", format!("must be a number from 1 to {LIMIT_MAX}")))?,
        };
        let after = match asked.cursor {
            None => None,
            Some(text) => Some(unwrap(&text).ok_or_else(|| {
                Problem::field("cursor", "is not one this service gave out; start again without a cursor")
            })?),
        };
        Ok(Self { limit, after })
    }
}

impl Paging {
    /// The page of a list that is all in memory. `key` names a row, each another, and gives the order: a page
    /// starts behind where the cursor's row is or was, so that a row removed meanwhile ends nothing.
    pub fn of<T>(&self, mut rows: Vec<T>, key: impl Fn(&T) -> String) -> PageJson<T> {
        rows.sort_by_cached_key(&key);
        let start = match &self.after {
            None => 0,
            Some(after) => rows.partition_point(|row| key(row) <= *after),
        };
        let left = rows.len().saturating_sub(start);
        let rows: Vec<T> = rows.into_iter().skip(start).take(self.limit).collect();
        let next = (left > self.limit).then(|| rows.last().map(|row| wrap(&key(row)))).flatten();
        PageJson { rows, next }
    }
}

/// Makes a cursor of a key.
pub fn wrap(key: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("1:{key}"))
}

fn unwrap(cursor: &str) -> Option<String> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
    String::from_utf8(bytes).ok()?.strip_prefix("1:").map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_cover_a_list_without_gap_or_overlap() {
        let all: Vec<u32> = (0..10).collect();
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = Paging { limit: 4, after }.of(all.clone(), u32::to_string);
            seen.extend(page.rows);
            let Some(next) = page.next else { break };
            after = unwrap(&next);
            assert!(after.is_some());
        }
        assert_eq!(seen, all);
    }

    #[test]
    fn a_page_follows_even_if_the_row_of_its_cursor_was_removed() {
        let names = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let all = names(&["d", "a", "c", "b"]);
        let first = Paging { limit: 2, after: None }.of(all, String::clone);
        assert_eq!(first.rows, ["a", "b"]);
        let after = unwrap(&first.next.unwrap());
        for (left, expected) in [(names(&["a", "c", "d"]), vec!["c", "d"]), (names(&["d"]), vec!["d"])] {
            let next = Paging { limit: 2, after: after.clone() }.of(left, String::clone);
            assert_eq!((next.rows, next.next), (names(&expected), None));
        }
    }

    #[test]
    fn a_cursor_made_by_hand_is_refused() {
        assert_eq!(unwrap("abc"), None);
        assert_eq!(unwrap(&URL_SAFE_NO_PAD.encode("2:x")), None);
        assert_eq!(unwrap(&wrap("x y")).as_deref(), Some("x y"));
    }
}
