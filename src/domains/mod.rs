//! Sending domains: which tenant may use which domain in From and MAIL, and the keys that sign.
//!
//! Verified means: the TXT record at this tenant's own selector holds the public key made for this
//! tenant and domain. Another tenant's record proves nothing; several tenants may verify one domain.
//! Easy to get wrong: a failed lookup never unverifies; only a proven absence of 7 days does.

use std::sync::Arc;

use crate::mail::dkim::SigningKeys;
use crate::mail::{Domain, Refusal, TenantId};
use crate::store::Store;

/// What may sign mail of a domain: a loaded, decrypted pair of keys.
pub struct Signer {
    /// `d=`: the verified domain that covers the header From.
    pub domain: Domain,
    /// RSA-2048 selector.
    pub rsa_selector: String,
    /// Ed25519 selector.
    pub ed25519_selector: String,
    /// The keys whose public halves those selectors publish.
    pub keys: SigningKeys,
}

/// All sending domains.
pub struct Domains {
    store: Arc<dyn Store>,
}

#[expect(clippy::todo, reason = "face first")]
impl Domains {
    /// Whether `tenant` may send as `domain`, and what signs it.
    /// `Err` is the refusal of RFC 5321's 550 5.7.1 naming the domain and what to do,
    /// or 451 if the keys cannot be used now.
    pub fn signer(&self, tenant: TenantId, domain: &Domain) -> Result<Arc<Signer>, Refusal> {
        let _ = (&self.store, tenant, domain);
        todo!("domains room")
    }
}
