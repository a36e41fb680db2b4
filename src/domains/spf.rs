//! Whether an SPF record permits an address (RFC 7208): the verifier of `net`, asked of a domain. It follows
//! includes and macros, and finds out records that no verifier can evaluate.
//!
//! Easy to get wrong: a lookup that failed proves nothing.

use std::net::IpAddr;

use crate::mail::Domain;
use crate::net::{Resolver, Spf, spf_of};

/// Why nobody can evaluate a record, for people (RFC 7208 s4.6).
pub(super) const UNREADABLE: &str = "it cannot be evaluated (permerror): it includes itself, asks more than 10 \
                                     questions, includes a name without a record, or a term is misspelt";

/// What the record of `domain` says of `address`, whoever of the domain sends.
///
/// # Errors
/// If DNS did not answer.
pub(super) async fn judge(resolver: &dyn Resolver, domain: &Domain, address: IpAddr) -> Result<Spf, String> {
    match spf_of(resolver, domain, address).await {
        Spf::TemporaryError => Err(format!("a record that {domain} or one it includes asks for")),
        said => Ok(said),
    }
}
