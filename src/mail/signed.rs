//! As what a message is sent: the domain that signs it, and whether it can be unsubscribed from with one click.
//!
//! Easy to get wrong: a `mailto:` is no one-click address (RFC 8058 s3.1 asks for `https`), and two fields of a
//! name that may occur once say nothing.

use serde::{Deserialize, Serialize};

use super::{Domain, HeaderBlock};

/// As what a message was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// The sending domain that signed it: `d=`.
    pub by: Domain,
    /// Whether recipients can unsubscribe with one click, by fields that are signed; see [`offers_one_click`].
    pub offers_one_click: bool,
}

/// The one value of List-Unsubscribe-Post (RFC 8058 s3.1).
const ONE_CLICK: &str = "List-Unsubscribe=One-Click";

/// Whether a header block has what one-click unsubscribing needs (RFC 8058 s3.1): an `https` address in
/// List-Unsubscribe (RFC 2369 s3.2: each in angle brackets), and List-Unsubscribe-Post; each field once.
pub fn offers_one_click(header: &HeaderBlock) -> bool {
    if header.count("List-Unsubscribe") != 1 || header.count("List-Unsubscribe-Post") != 1 {
        return false;
    }
    let post = header.text("List-Unsubscribe-Post").unwrap_or_default();
    let addresses = header.text("List-Unsubscribe").unwrap_or_default();
    let mut addresses = addresses.split('<').skip(1).filter_map(|rest| rest.split_once('>'));
    let is_https = |address: &str| {
        let (scheme, rest) = address.split_once("://").unwrap_or_default();
        scheme.eq_ignore_ascii_case("https") && !rest.is_empty()
    };
    post.trim().eq_ignore_ascii_case(ONE_CLICK) && addresses.any(|(address, _)| is_https(address.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_click_needs_an_https_address_and_the_post_field_each_once_rfc_8058_s3_1() {
        let post = "List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n";
        for (fields, offered) in [
            (format!("List-Unsubscribe: <https://shop.example/u?x=1>\r\n{post}"), true),
            (format!("list-unsubscribe: <mailto:u@shop.example>,\r\n <HTTPS://shop.example/u>\r\n{post}"), true),
            ("List-Unsubscribe: <https://shop.example/u>\r\n".to_owned(), false),
            (format!("List-Unsubscribe: <mailto:u@shop.example?subject=https://>\r\n{post}"), false),
            (format!("List-Unsubscribe: <http://shop.example/u>\r\n{post}"), false),
            (format!("List-Unsubscribe: https://shop.example/u\r\n{post}"), false),
            (format!("List-Unsubscribe: <https://>\r\n{post}"), false),
            (format!("List-Unsubscribe: <https://shop.example/u>\r\n{post}{post}"), false),
            ("List-Unsubscribe: <https://a.example/u>\r\nList-Unsubscribe-Post: yes\r\n".to_owned(), false),
            (
                format!("List-Unsubscribe: <https://a.example/>\r\nList-Unsubscribe: <https://b.example/>\r\n{post}"),
                false,
            ),
            (post.to_owned(), false),
        ] {
            let header = HeaderBlock::parse(format!("From: a@shop.example\r\n{fields}").as_bytes()).unwrap();
            assert_eq!(offers_one_click(&header), offered, "{fields}");
        }
    }
}
