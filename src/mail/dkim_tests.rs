//! Signatures judged by mail-auth's verifier, and messages tampered with.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::LazyLock;
use std::time::Instant;

use bytes::Bytes;
use mail_auth::common::cache::NoCache;
use mail_auth::common::parse::TxtRecordParser;
use mail_auth::common::verify::DomainKey;
use mail_auth::hickory_resolver::config::{ResolverConfig, ResolverOpts};
use mail_auth::{AuthenticatedMessage, DkimResult, MessageAuthenticator, Parameters, ResolverCache, Txt};

use super::*;

static KEYS: LazyLock<SigningKeys> = LazyLock::new(|| {
    let made = generate().unwrap();
    SigningKeys::from_pkcs8(&made.rsa, &made.ed25519).unwrap()
});

const NOW: Timestamp = Timestamp(1_795_342_500_123);

fn draft(bytes: &str) -> Draft {
    let (head, body) = bytes.split_once("\r\n\r\n").unwrap();
    Draft {
        header: HeaderBlock::parse(format!("{head}\r\n").as_bytes()).unwrap(),
        body: Body::Memory(Bytes::copy_from_slice(body.as_bytes())),
    }
}

fn signed(bytes: &str, algorithms: Algorithms) -> Vec<Field> {
    let domain = Domain::parse("shop.example.com").unwrap();
    let signer = SignAs { domain: &domain, rsa_selector: "r1", ed25519_selector: "e1", keys: &KEYS };
    sign(&draft(bytes), &signer, algorithms, NOW).unwrap()
}

fn tag(field: &Field, name: &str) -> Option<String> {
    let value: String = field.text().split_whitespace().collect();
    value.split(';').find_map(|tag| tag.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
}

/// Everything mail-auth would ask DNS for.
struct Zone(HashMap<Box<str>, Txt>);

impl ResolverCache<Box<str>, Txt> for Zone {
    fn get<Q: Hash + Eq + ?Sized>(&self, name: &Q) -> Option<Txt>
    where
        Box<str>: Borrow<Q>,
    {
        self.0.get(name).cloned()
    }
    fn remove<Q: Hash + Eq + ?Sized>(&self, _: &Q) -> Option<Txt>
    where
        Box<str>: Borrow<Q>,
    {
        None
    }
    fn insert(&self, _: Box<str>, _: Txt, _: Instant) {}
}

async fn verdicts(message: &[u8]) -> Vec<DkimResult> {
    let key = |algorithm| Txt::DomainKey(Arc::new(DomainKey::parse(KEYS.public_record(algorithm).as_bytes()).unwrap()));
    let zone = Zone(HashMap::from([
        ("r1._domainkey.shop.example.com.".into(), key(Algorithm::Rsa)),
        ("e1._domainkey.shop.example.com.".into(), key(Algorithm::Ed25519)),
    ]));
    let authenticator = MessageAuthenticator::new(ResolverConfig::default(), ResolverOpts::default()).unwrap();
    let parsed = AuthenticatedMessage::parse(message).unwrap();
    let parameters: Parameters<'_, _, NoCache<_, Txt>, _, _, _, _> = Parameters::new(&parsed);
    let outputs = authenticator.verify_dkim(parameters.with_txt_cache(&zone)).await;
    outputs.iter().map(|output| output.result().clone()).collect()
}

fn with_signatures(bytes: &str, algorithms: Algorithms) -> Vec<u8> {
    let mut out = Vec::new();
    for field in signed(bytes, algorithms) {
        out.extend_from_slice(field.name.as_bytes());
        out.push(b':');
        out.extend_from_slice(&field.raw_value);
    }
    out.extend_from_slice(bytes.as_bytes());
    out
}

const PLAIN: &str = "From: Shop <news@shop.example.com>\r\nTo: a@x.example,\r\n\tb@y.example\r\n\
    Subject: Your  order\r\nDate: Sun, 22 Nov 2026 10:15:00 +0000\r\nMessage-ID: <1@shop.example.com>\r\n\
    MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nHello  there\t \r\n\r\n  world\r\n\r\n\r\n";

#[test]
fn the_fields_signed_are_exactly_those_promised() {
    let fields = signed(PLAIN, Algorithms::Both);
    for field in &fields {
        assert_eq!(
            tag(field, "h").as_deref(),
            Some(
                "From:From:Reply-To:To:To:Cc:Subject:Subject:Date:Date:Message-ID:Message-ID:\
                 MIME-Version:MIME-Version:Content-Type:Content-Type"
            )
        );
        assert_eq!(tag(field, "c").as_deref(), Some("relaxed/relaxed"));
        assert_eq!(tag(field, "t").as_deref(), Some("1795342500"));
        assert_eq!(tag(field, "d").as_deref(), Some("shop.example.com"));
        assert_eq!((tag(field, "x"), tag(field, "l")), (None, None));
        assert!(field.raw_value.split(|byte| *byte == b'\n').all(|line| line.len() <= 90));
    }
    let algorithms: Vec<_> = fields.iter().map(|field| tag(field, "a").unwrap()).collect();
    assert_eq!(algorithms, ["rsa-sha256", "ed25519-sha256"]);
}

#[test]
fn fields_that_are_not_over_signed_are_named_only_when_present() {
    let message = PLAIN.replace(
        "\r\n\r\nHello",
        "\r\nSender: s@shop.example.com\r\nReply-To: r@shop.example.com\r\nCc: c@x.example\r\nIn-Reply-To: <0@x>\r\n\
         References: <0@x>\r\nContent-Transfer-Encoding: 7bit\r\nList-Id: <l.shop.example.com>\r\n\
         List-Unsubscribe: <https://x.example/>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n\
         X-Own: unsigned\r\n\r\nHello",
    );
    let fields = signed(&message, Algorithms::RsaOnly);
    assert_eq!(fields.len(), 1);
    assert_eq!(
        tag(&fields[0], "h").as_deref(),
        Some(
            "From:From:Sender:Reply-To:Reply-To:To:To:Cc:Cc:Subject:Subject:Date:Date:Message-ID:Message-ID:\
             In-Reply-To:References:MIME-Version:MIME-Version:Content-Type:Content-Type:\
             Content-Transfer-Encoding:List-Id:List-Unsubscribe:List-Unsubscribe-Post"
        )
    );
}

#[tokio::test]
async fn both_signatures_pass_another_verifier() {
    let message = with_signatures(PLAIN, Algorithms::Both);
    assert_eq!(verdicts(&message).await, [DkimResult::Pass, DkimResult::Pass]);
}

#[tokio::test]
async fn an_empty_body_and_repeated_fields_are_signed_too() {
    let message = "From: n@shop.example.com\r\nTo: a@x.example\r\nTo: b@x.example\r\nReferences: <1@a>\r\n\
        References: <2@a>\r\n\r\n";
    let message = with_signatures(message, Algorithms::Both);
    assert_eq!(verdicts(&message).await, [DkimResult::Pass, DkimResult::Pass]);
}

#[tokio::test]
async fn any_tampering_breaks_every_signature() {
    let message = String::from_utf8(with_signatures(PLAIN, Algorithms::Both)).unwrap();
    let from = "From: Shop <news@shop.example.com>\r\n";
    let mut tampered = vec![
        message.replace("Hello", "Hallo"),
        message.replace("Your  order", "Your other order"),
        message.replace("\r\nMIME-Version: 1.0", ""),
    ];
    // A second field above or below, for every over-signed name, present or not.
    for name in ["From", "To", "Cc", "Subject", "Date", "Message-ID", "Reply-To", "MIME-Version", "Content-Type"] {
        tampered.push(format!("{name}: <x@evil.example>\r\n{message}"));
        tampered.push(message.replace(from, &format!("{from}{name}: <x@evil.example>\r\n")));
    }
    for message in tampered {
        let verdicts = verdicts(message.as_bytes()).await;
        assert_eq!(verdicts.len(), 2, "{message}");
        assert!(!verdicts.contains(&DkimResult::Pass), "{message}");
    }
}

#[test]
fn a_message_without_from_is_not_signed() {
    let domain = Domain::parse("shop.example.com").unwrap();
    let signer = SignAs { domain: &domain, rsa_selector: "r1", ed25519_selector: "e1", keys: &KEYS };
    let result = sign(&draft("To: a@x.example\r\n\r\nx\r\n"), &signer, Algorithms::Both, NOW);
    assert!(matches!(result, Err(SignError::NoFrom)));
}

#[test]
fn a_published_record_is_recognised_in_any_spelling_and_no_other_is() {
    for algorithm in [Algorithm::Rsa, Algorithm::Ed25519] {
        let record = KEYS.public_record(algorithm);
        assert!(KEYS.is_published_by(algorithm, &record));
        assert!(KEYS.is_published_by(algorithm, &format!(" {} ; t=y; n=note;", record.replace(';', " ; "))));
        let spaced = record.replacen("p=", "p= ", 1);
        assert!(KEYS.is_published_by(algorithm, &format!("{}  {}", &spaced[..40], &spaced[40..])));
        assert!(!KEYS.is_published_by(algorithm, &record[..record.len() - 8]));
        assert!(!KEYS.is_published_by(algorithm, "v=DKIM1; k=rsa; p="));
        assert!(!KEYS.is_published_by(algorithm, &format!("{record}; p=")));
        assert!(!KEYS.is_published_by(algorithm, &format!("{record}; s=tlsrpt")));
        assert!(!KEYS.is_published_by(algorithm, &format!("{record}; h=sha1")));
        assert!(!KEYS.is_published_by(algorithm, &record.replace("DKIM1", "DKIM2")));
        assert!(!KEYS.is_published_by(algorithm, ""));
        for blank in ["\u{a0}", "\u{b}", "\u{c}", "\u{2003}"] {
            assert!(!KEYS.is_published_by(algorithm, &record.replace("; p", &format!(";{blank}p"))), "{blank:?}");
        }
    }
    assert!(!KEYS.is_published_by(Algorithm::Rsa, &KEYS.public_record(Algorithm::Ed25519)));
}

#[test]
fn keys_that_are_no_keys_are_refused_without_showing_them() {
    assert!(SigningKeys::from_pkcs8(b"rubbish", b"rubbish").is_err());
    assert_eq!(format!("{:?}", *KEYS), "SigningKeys");
}
