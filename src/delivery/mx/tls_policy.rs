//! What TLS means towards a mail exchanger. Pure.
//!
//! Today one setting decides for all; a domain's MTA-STS policy (RFC 8461) and DANE (RFC 7672)
//! will join here as further arguments, and the strictest wins.

use crate::delivery::settings::MxTls;
use crate::delivery::transport::TlsUse;
use crate::net::Verify;

/// What is required of a connection to an MX host.
pub(super) fn requirement(local: MxTls) -> TlsUse {
    match local {
        MxTls::Opportunistic => TlsUse::Opportunistic,
        MxTls::Encrypted => TlsUse::Required(Verify::Opportunistic),
        MxTls::Verified => TlsUse::Required(Verify::Required),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_decides_where_no_policy_does() {
        assert_eq!(requirement(MxTls::Opportunistic), TlsUse::Opportunistic);
        assert_eq!(requirement(MxTls::Encrypted), TlsUse::Required(Verify::Opportunistic));
        assert_eq!(requirement(MxTls::Verified), TlsUse::Required(Verify::Required));
    }
}
