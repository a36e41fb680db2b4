//! The signature of what arrived, judged by mail-auth's verifier with the key from the zone.

use std::net::SocketAddr;

use mail_auth::hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use mail_auth::{AuthenticatedMessage, DkimResult, MessageAuthenticator};

/// What the signatures of a message proved.
pub(super) struct Verdict {
    /// Signatures that verified, as `algorithm selector._domainkey.domain`.
    pub(super) passed: Vec<String>,
    /// Why others did not.
    pub(super) failed: Vec<String>,
}

impl Verdict {
    /// `pass`, `fail` or `none`, as in an Authentication-Results field.
    pub(super) fn word(&self) -> &'static str {
        match (self.passed.is_empty(), self.failed.is_empty()) {
            (false, true) => "pass",
            (_, false) => "fail",
            (true, true) => "none",
        }
    }
}

/// Verifies every signature of `message` with keys looked up at `dns`.
pub(super) async fn verify(message: &[u8], dns: SocketAddr) -> Result<Verdict, String> {
    let mut udp = ConnectionConfig::udp();
    udp.port = dns.port();
    let mut tcp = ConnectionConfig::tcp();
    tcp.port = dns.port();
    let server = NameServerConfig::new(dns.ip(), true, vec![udp, tcp]);
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
    let judge = MessageAuthenticator::new(config, ResolverOpts::default()).map_err(|error| error.to_string())?;
    let parsed = AuthenticatedMessage::parse(message).ok_or("what arrived is not a message")?;
    let mut verdict = Verdict { passed: Vec::new(), failed: Vec::new() };
    for output in judge.verify_dkim(&parsed).await {
        let name = output.signature().map_or_else(
            || "a signature that cannot be read".to_owned(),
            |signature| format!("{:?} {}._domainkey.{}", signature.a, signature.s, signature.d),
        );
        match output.result() {
            DkimResult::Pass => verdict.passed.push(name),
            other => verdict.failed.push(format!("{name}: {other:?}")),
        }
    }
    Ok(verdict)
}
