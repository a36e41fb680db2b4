//! What each `code` of a problem document means and what to do, as the reference page shows it.
//!
//! One table, so that a code means one thing everywhere. Easy to get wrong: a code is a promise to
//! programs; its meaning never changes, and one that is no longer given stays in the table.

use std::fmt::Write;

/// Where the page of the codes is.
const PAGE: &str = "/api/reference";

/// Every code: what happened, what to do.
pub const CODES: &[(&str, &str)] = &[
    ("missing_api_key", "Nobody is known to ask. Send a key (Authorization: Bearer), or log in."),
    ("invalid_api_key", "The key is wrong, has ended, or may not come from this network."),
    ("no_session", "There is no session. Log in."),
    ("wrong_credentials", "The login failed; the answer is the same for every reason."),
    (
        "second_factor_required",
        "Send the code of the second factor, too, or what a passkey made of the problem's `passkey`.",
    ),
    ("second_factor_enrolment", "The role must have a second factor: set one up first."),
    ("confirm_identity", "This act wants a fresh proof: POST /session/confirm, then the same again."),
    ("csrf", "The session's token is missing or wrong, or a page of another site asked."),
    (
        "forbidden",
        "The role or the key's scopes do not reach that far, or whoever asks is bound to some SMTP accounts or domains.",
    ),
    ("local_only", "This is done over the local socket only."),
    ("not_found", "There is none, or it belongs to somebody else."),
    ("method_not_allowed", "The resource does not know that method."),
    ("malformed", "The path, the query or the body could not be read."),
    ("unreadable", "The body did not arrive whole."),
    ("not_json", "The body must be JSON: Content-Type: application/json."),
    ("too_large", "The body is larger than this resource takes."),
    ("invalid", "A value is not acceptable; errors names each field, if it lies in fields."),
    ("exists", "There is one of that name already."),
    ("in_use", "Something else still needs it."),
    ("ambiguous", "The name fits more than one thing."),
    ("conflict", "It was changed at the same moment; read it and try again."),
    ("no_backup_key", "There is no backup key yet."),
    ("precondition_failed", "It is not any more what If-Match names: read it again, then decide."),
    ("invalid_idempotency_key", "Idempotency-Key must be 1 to 255 printable ASCII characters, once."),
    (
        "invalid_idempotent_request",
        "This Idempotency-Key was used for another request. Use a new key for a new request.",
    ),
    ("concurrent_idempotent_requests", "The first request with this Idempotency-Key is still under way; again soon."),
    (
        "idempotent_answer_not_kept",
        "The request was carried out already; its answer showed a secret, or was too large, and is not kept.",
    ),
    (
        "idempotent_outcome_unknown",
        "The daemon stopped while it carried the request out: look whether it was done, then use a new key.",
    ),
    ("too_many_idempotency_keys", "Too many keys within 24 hours; the oldest ones lapse by and by."),
    ("message_refused", "The message cannot be sent as it is; detail has what SMTP would have answered."),
    (
        "no_virtual_ip",
        "The tenant has no virtual IP of its own and none chosen: nothing can leave until it has. Retry-After says when to come back.",
    ),
    ("sending_suspended", "Sending is suspended for the tenant, or the SMTP account may not send."),
    ("limit_reached", "A limit of messages is reached; detail says when it lifts."),
    ("try_later", "The message was not taken for a fault of ours; the same again later."),
    ("overloaded", "Too much is going on; again after Retry-After."),
    ("too_many_open", "As many are under way as may be at once. End one, or ask again after Retry-After."),
    ("rate_limit_exceeded", "Too many requests; Retry-After says when to come back."),
    ("too_many_failures", "Too many failed logins; Retry-After says when to come back."),
    ("failed", "Ours; the daemon's log has the details under the request_id."),
    ("damaged", "A stored record is damaged; the daemon's log has the details."),
    ("storage_full", "The disk is full or nearly so. Nothing was changed; try again later."),
    ("storage_failed", "The change could not be written. Nothing was changed; try again later."),
    ("storage_stopped", "Storage has stopped until the daemon restarts."),
    ("too_slow", "It took too long and was given up; whether it was done is not known without an Idempotency-Key."),
];

/// Where `code` is explained.
pub fn link(code: &str) -> String {
    format!("{PAGE}#code-{code}")
}

/// The part of the reference page that [`link`] points to.
pub fn page() -> String {
    let mut page = String::from("<h2 id=\"codes\">Codes of problems</h2><table>");
    for (code, meaning) in CODES {
        let _ = write!(page, "<tr id=\"code-{code}\"><td><code>{code}</code><td>{meaning}");
    }
    page.push_str("</table>");
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The second argument of each call that makes a problem, in every file of this room.
    fn used() -> Vec<String> {
        let mut files = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src/web"))];
        let mut found = Vec::new();
        while let Some(path) = files.pop() {
            if path.is_dir() {
                files.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for call in ["Problem::new(", "Self::new(", "Problem::inner(", "Self::inner("] {
                for (at, _) in text.match_indices(call) {
                    let Some((_, rest)) = text[at + call.len()..].split_once(',') else { continue };
                    let Some(rest) = rest.trim_start().strip_prefix('"') else { continue };
                    let code = rest.split('"').next().unwrap();
                    if code.bytes().all(|octet| octet.is_ascii_lowercase() || octet == b'_') {
                        found.push(code.to_owned());
                    }
                }
            }
        }
        found
    }

    #[test]
    fn every_code_that_is_given_is_explained_once() {
        let mut known: Vec<&str> = CODES.iter().map(|(code, _)| *code).collect();
        let count = known.len();
        known.sort_unstable();
        known.dedup();
        assert_eq!(known.len(), count, "a code is explained twice");
        let used = used();
        assert!(used.len() > 20, "codes are no longer recognised: {used:?}");
        for code in used {
            assert!(known.contains(&&*code), "{code} has no line in CODES (src/web/codes.rs)");
        }
    }

    #[test]
    fn a_link_leads_to_its_line() {
        let page = page();
        for (code, _) in CODES {
            let link = link(code);
            let (_, anchor) = link.split_once('#').unwrap();
            assert!(page.contains(&format!("id=\"{anchor}\"")), "{link}");
        }
    }
}
