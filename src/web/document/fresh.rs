//! Which operations ask a person for a fresh proof of who it is, as one table: the document of the API and the
//! page for people are made of it, and a test asks every operation with an old proof.
//!
//! The rooms ask (`Actor::require_fresh`), not this table. Easy to get wrong: a key and whoever comes by the local
//! socket have nobody to be asked again, and are not.

/// Method, path and what is done, by what it is about.
pub const FRESH: &[(&str, &str, &str)] = &[
    ("post", "/users", "invite a person"),
    ("patch", "/users/{user}", "change a person: its role, lock, networks, SMTP accounts"),
    ("delete", "/users/{user}", "remove a person"),
    ("post", "/users/{user}/reset", "make a link for a new password"),
    ("delete", "/users/{user}/second-factor", "take somebody's second factor away"),
    ("put", "/second-factor-policy", "say which roles must have a second factor"),
    ("post", "/session/password", "choose a new password for oneself"),
    ("post", "/session/second-factor", "set up a second factor"),
    ("post", "/session/second-factor/prove", "put a second factor to work"),
    ("delete", "/session/second-factor", "remove one's own second factor"),
    ("post", "/session/passkeys/offer", "set up a passkey"),
    ("post", "/session/passkeys", "put a passkey to work"),
    ("delete", "/session/passkeys/{passkey}", "remove one of one's own passkeys"),
    ("post", "/session/recovery-codes", "make new recovery codes"),
    ("post", "/keys", "make an API key"),
    ("patch", "/keys/{key}", "change an API key"),
    ("post", "/keys/{key}/rotate", "give an API key a new text"),
    ("delete", "/keys/{key}", "remove an API key"),
    ("post", "/smtp-accounts", "make an SMTP account, which shows its password"),
    ("post", "/smtp-accounts/{login}/rotate", "give an SMTP account a new password, which is shown"),
    ("delete", "/smtp-accounts/{login}", "remove an SMTP account"),
    ("post", "/tenants/{tenant}/domains/{domain}/rotate", "make a domain's next DKIM keys"),
    ("delete", "/tenants/{tenant}/domains/{domain}/rotate", "drop a domain's next DKIM keys"),
    ("delete", "/tenants/{tenant}/domains/{domain}", "remove a domain and its DKIM keys"),
    ("post", "/tenants/{tenant}/webhooks", "make a webhook, which shows its secret"),
    ("patch", "/tenants/{tenant}/webhooks/{webhook}", "change a webhook: where it goes, what it tells"),
    ("post", "/tenants/{tenant}/webhooks/{webhook}/rotate", "give a webhook a new secret, which is shown"),
    ("delete", "/tenants/{tenant}/webhooks/{webhook}", "remove a webhook"),
    ("post", "/tenants/{tenant}/suppression-exports", "export a black- or whitelist"),
    ("post", "/tenants/{tenant}/export", "export everything of a tenant"),
    (
        "get",
        "/tenants/{tenant}/operations/{operation}/result",
        "fetch the export of a whole tenant (a list's asks nothing more)",
    ),
    ("delete", "/tenants/{tenant}", "remove an empty tenant"),
    ("post", "/tenants/{tenant}/deletion", "have a tenant deleted"),
    ("post", "/queue-sweeps", "cancel or expire all mail that fits a filter (other acts ask nothing)"),
    ("post", "/queue/{id}/erase", "erase what is kept of a message"),
    ("post", "/routes", "make a route, by which mail goes elsewhere"),
    ("patch", "/routes/{route}", "change a route"),
    ("delete", "/routes/{route}", "remove a route"),
    ("delete", "/vips/{vip}", "remove a virtual IP"),
];

/// Whether an operation may ask for a fresh proof.
pub fn asks(method: &str, path: &str) -> bool {
    FRESH.iter().any(|(known, at, _)| (*known, *at) == (method, path))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;
    use crate::access::PROOF_FRESH;
    use crate::people::WRONG_CONFIRMATIONS_MAX;

    /// The page of the documentation.
    fn page() -> String {
        let minutes = PROOF_FRESH.as_secs() / 60;
        let mut page = format!(
            "# What asks for a fresh proof\n\nMade from the code by a test; do not edit.\n\n\
             A person who does one of these must have given its password, or proved a second factor, within the \
             last {minutes} minutes: at the login, or by `POST /session/confirm`.\nElse the answer is 403 with the code \
             `confirm_identity`, and nothing was done: confirm, then send the same again.\nA confirmation gives the session \
             a new cookie and a new token; {WRONG_CONFIRMATIONS_MAX} wrong ones end it.\nAPI keys and the local socket \
             (`postern` as root, the daemon's user or the group `admin.group`) are not asked: there is nobody to ask \
             again.\n\n| Act | Operation |\n| --- | --- |\n"
        );
        for (method, path, act) in FRESH {
            let _ = writeln!(page, "| {act} | `{} {path}` |", method.to_uppercase());
        }
        page
    }

    #[test]
    fn the_page_is_the_one_in_the_documentation() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/api/fresh-proof.md");
        if std::env::var_os("POSTERN_WRITE_DOCUMENTS").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        let stands = std::fs::read_to_string(path).unwrap_or_default();
        assert!(stands == page(), "run POSTERN_WRITE_DOCUMENTS=1 cargo test --lib web::document");
    }
}
