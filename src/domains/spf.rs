//! Whether an SPF record permits an address (RFC 7208): the verifier of `net`, asked of a domain. It follows
//! includes and macros, and finds out records that no verifier can evaluate.
//!
//! Easy to get wrong: a lookup that failed proves nothing.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::mail::Domain;
use crate::net::{Resolver, Spf, spf_of_each};

/// Why nobody can evaluate a record, for people (RFC 7208 s4.6).
pub(super) const UNREADABLE: &str = "it cannot be evaluated (permerror): it includes itself, asks more than 10 \
                                     questions, includes a name without a record, or a term is misspelt";

/// All addresses of one record are judged within this time.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the record of a domain says of our addresses.
pub(super) struct Judged {
    /// Those it does not permit, with what it says.
    pub(super) refused: Vec<(IpAddr, Spf)>,
    /// The service's record, if it is that one which does not permit the first of them.
    pub(super) of_service: Option<String>,
}

impl Judged {
    /// Whether nobody can evaluate the record.
    pub(super) fn is_unreadable(&self) -> bool {
        self.refused.iter().any(|(_, said)| *said == Spf::PermanentError)
    }
}

/// What the record of `domain` says of `addresses`, whoever of the domain sends, and whose fault it is if it does not
/// permit all: whatever the domain has published, without that of the service its include permits nothing.
///
/// # Errors
/// If DNS did not answer.
pub(super) async fn judge(
    resolver: &dyn Resolver,
    domain: &Domain,
    (addresses, include): (&[IpAddr], Option<&Domain>),
) -> Result<Judged, String> {
    let refused = refused(resolver, domain, addresses).await?;
    let (mut of_service, include) = (None, include.filter(|include| *include != domain));
    // A name without a record includes nothing.
    let asks_service = refused.first().filter(|(_, said)| *said != Spf::None);
    if let (Some((first, _)), Some(service)) = (asks_service, include)
        && !self::refused(resolver, service, &[*first]).await?.is_empty()
    {
        of_service = Some(format!(
            "the record of this service at {service} does not permit {first}: whoever runs the service publishes what \
             `postern vip spf` prints"
        ));
    }
    Ok(Judged { refused, of_service })
}

async fn refused(resolver: &dyn Resolver, domain: &Domain, addresses: &[IpAddr]) -> Result<Vec<(IpAddr, Spf)>, String> {
    let mut all = spf_of_each(resolver, domain, addresses, Instant::now() + PATIENCE).await;
    let is_unanswered = all.iter().any(|(_, said)| *said == Spf::TemporaryError);
    all.retain(|(_, said)| !matches!(said, Spf::Pass | Spf::TemporaryError));
    // What is proven of one address stands, whatever DNS did not answer of another.
    if all.is_empty() && is_unanswered {
        return Err(format!("a record that {domain} or one it includes asks for"));
    }
    Ok(all)
}
