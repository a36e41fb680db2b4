//! Messages and facts for the tests of the stages.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;

use super::*;
use crate::mail::dkim::{self, SigningKeys};
use crate::mail::{Body, Class, ForwardPath, MailParameters, QueueId, Reply, ReversePath, Spill};

/// A message that needs nothing.
pub const PLAIN: &str = "From: A <a@shop.example>\r\nTo: b@x.example\r\nSubject: one\r\nDate: x\r\n\
    Message-ID: <1@shop.example>\r\n\r\nplain\r\n";

/// Keys for all signers of the tests.
pub static KEYS: LazyLock<SigningKeys> = LazyLock::new(|| {
    let made = dkim::generate().unwrap();
    SigningKeys::from_pkcs8(&made.rsa, &made.ed25519).unwrap()
});

/// Reads a message whose lines end in CRLF.
pub fn draft(text: &str) -> Draft {
    draft_of(text.as_bytes())
}

/// Reads a message whose lines end in CRLF.
pub fn draft_of(bytes: &[u8]) -> Draft {
    let (header, body) = crate::mail::split_entity(bytes).unwrap();
    Draft { header, body: Body::Memory(Bytes::copy_from_slice(body)) }
}

/// A body in memory.
pub fn body(text: &str) -> Body {
    Body::Memory(Bytes::copy_from_slice(text.as_bytes()))
}

/// A body that says it is longer than its file.
pub fn unreadable_body() -> Body {
    let file = std::fs::File::from(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
    Body::Spilled(Arc::new(Spill { file, length: 1000 }))
}

/// All bytes of a draft.
pub fn bytes_of(draft: &Draft) -> Vec<u8> {
    let mut bytes = draft.header.to_bytes();
    bytes.extend_from_slice(b"\r\n");
    draft.body.slices().for_each(|slice| bytes.extend_from_slice(&slice.unwrap()));
    bytes
}

/// A signer for `domain` with the tests' keys.
pub fn signer(domain: &str) -> Arc<Signer> {
    Arc::new(Signer {
        domain: Domain::parse(domain).unwrap(),
        rsa_selector: "r1".to_owned(),
        ed25519_selector: "e1".to_owned(),
        keys: KEYS.clone(),
        algorithms: Algorithms::Both,
    })
}

/// A tenant that has verified these domains.
pub fn signer_for(domains: &[&'static str]) -> SignerLookup {
    let signers: Vec<_> = domains.iter().map(|domain| signer(domain)).collect();
    Arc::new(move |_, domain| {
        let found = signers.iter().find(|signer| domain.is_within(&signer.domain));
        found.cloned().ok_or_else(|| {
            Refusal::plain(Reply::enhanced(550, 7, 1, format!("{domain} is not verified for this account")))
        })
    })
}

/// An SMTP account that may send as everybody its tenant may.
pub fn any_sender() -> SenderLookup {
    Arc::new(|_, _| Ok(()))
}

/// An SMTP account whose mail is read in these dialects.
pub fn dialects(dialects: &[HeaderDialect]) -> DialectsLookup {
    let dialects = dialects.to_vec();
    Arc::new(move |_| dialects.clone())
}

/// 2026-11-22 10:15:00 UTC.
pub const NOW: Timestamp = Timestamp(1_795_342_500_000);

fn about(way: Way, vip_name: &str, from: Option<&str>, recipients: &[&str]) -> About {
    let source = Source {
        tenant: TenantId(1),
        account: Some(SmtpAccountId(2)),
        vip: VipId(3),
        vip_name: Domain::parse(vip_name).unwrap(),
        class: Class::Transactional,
        way,
    };
    let envelope = Envelope {
        reverse_path: ReversePath(from.map(|from| from.parse().unwrap())),
        parameters: MailParameters::default(),
        recipients: recipients.iter().map(|address| ForwardPath::plain(address.parse().unwrap())).collect(),
    };
    About::new(QueueId::new(NOW), NOW, source, envelope)
}

/// A message handed in by SMTP.
pub fn smtp_about(from: &str, recipients: &[&str]) -> About {
    let facts = SmtpFacts {
        helo: "laptop.lan".to_owned(),
        peer: SocketAddr::from(([198, 51, 100, 9], 50_000)),
        tls: "TLSv1.3 TLS_AES_256_GCM_SHA384".to_owned(),
    };
    about(Way::Smtp(facts), "mx.shop.example", Some(from), recipients)
}

/// A notice of ours.
pub fn notice_about(vip_name: &str, to: &str) -> About {
    about(Way::Notice { about: QueueId([9; 16]) }, vip_name, None, &[to])
}

/// A file of `tests/data/messages` with CRLF line ends.
pub fn sample(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/messages").join(name);
    let bytes = std::fs::read(path).unwrap();
    let mut out = Vec::with_capacity(bytes.len() + 100);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        out.extend_from_slice(text.strip_suffix(b"\r").unwrap_or(text));
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// The settings that may change, as they are by default.
pub fn live() -> Lives {
    Arc::new(RwLock::new(Live::from(&Settings::default())))
}
