//! Messages as a whole: header blocks, the From field, what the pipeline makes final, notices.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use mail_parser::MessageParser;
use postern::domains::Signer;
use postern::ext::Timestamp;
use postern::mail::dkim::{self, Algorithms, SigningKeys};
use postern::mail::dsn::{self, Action, Diagnostic, Kind, Notice, Reported};
use postern::mail::{
    Address, Body, Class, Domain, Draft, EnhancedStatus, Envelope, ForwardPath, HeaderBlock, MailParameters, Mailbox,
    QueueId, Refusal, Reply, Ret, ReversePath, SmtpAccountId, TenantId, VipId, parse_mailboxes, split_entity,
};
use postern::pipeline::{About, Octets, Parts, Pipeline, Settings, SmtpFacts, Source, Way};
use postern::smtp::DotStuffer;

use super::feed::{Feed, assert_line_ends, with_line_ends};

const NOW: Timestamp = Timestamp(1_795_342_500_000);

/// A header block is written back to the octet, and no value can write a field.
pub fn header(input: &[u8]) {
    let mut feed = Feed(input);
    let (name, value) = (["X-Tag", "Subject", "From"][feed.below(3)], feed.text());
    let bytes = with_line_ends(feed.rest());
    let Ok(mut block) = HeaderBlock::parse(&bytes) else { return };
    assert_eq!(block.to_bytes(), bytes);
    assert_eq!(block.length(), bytes.len());
    let (fields, named) = (block.fields().len(), block.count(name));
    block.prepend(name, &value);
    block.append(name, &value);
    let again = reread(&block);
    assert_eq!((again.fields().len(), again.count(name)), (fields + 2, named + 2), "{value:?} wrote a field");
    block.set(name, &value);
    let again = reread(&block);
    assert_eq!((again.fields().len(), again.count(name)), (fields - named + 1, 1));
    assert_eq!(block.remove(name), 1);
    assert_eq!(reread(&block).count(name), 0);
}

fn reread(block: &HeaderBlock) -> HeaderBlock {
    let bytes = block.to_bytes();
    assert_line_ends(&bytes, "a header block");
    let again = HeaderBlock::parse(&bytes).expect("a block of ours is a header block");
    assert_eq!(&again, block);
    again
}

/// What is accepted as a From field names the same domains to a lenient reader, and to ourselves
/// when it is written again.
pub fn from(input: &[u8]) {
    let value = with_line_ends(input);
    let Ok(mailboxes) = parse_mailboxes(&value) else { return };
    assert!((1..=postern::mail::MAILBOXES_MAX).contains(&mailboxes.len()));
    let written: Vec<String> = mailboxes.iter().map(|mailbox| format!("<{}>", mailbox.address)).collect();
    let again = parse_mailboxes(written.join(", ").as_bytes()).expect("addresses of ours are read");
    let addresses = |list: &[Mailbox]| list.iter().map(|mailbox| mailbox.address.clone()).collect::<Vec<Address>>();
    assert_eq!(addresses(&again), addresses(&mailboxes));
    // The field as it stands in a message: one that is folded as a header block allows.
    let field = [b"From: ", &value[..], b"\r\n"].concat();
    if HeaderBlock::parse(&field).is_ok_and(|block| block.fields().len() == 1) {
        assert_eq!(domains_seen(&field), domains_of(&mailboxes), "{:?}", String::from_utf8_lossy(&value));
    }
}

fn domains_of(mailboxes: &[Mailbox]) -> Vec<String> {
    mailboxes.iter().map(|mailbox| mailbox.address.domain().to_string()).collect()
}

/// The domains of the From addresses as mail-parser reads them.
fn domains_seen(head: &[u8]) -> Vec<String> {
    let message = [head, b"\r\nx\r\n"].concat();
    let parsed = MessageParser::default().parse(&message).expect("a message");
    let from = parsed.from().and_then(|from| from.as_list()).unwrap_or_default();
    from.iter()
        .map(|address| {
            let text = address.address().unwrap_or_default();
            let domain = text.rsplit_once('@').map_or(text, |(_, domain)| domain);
            Domain::parse(domain).map_or_else(|_| format!("no domain: {text}"), |domain| domain.to_string())
        })
        .collect()
}

static KEYS: LazyLock<SigningKeys> = LazyLock::new(|| {
    let made = dkim::generate().unwrap();
    SigningKeys::from_pkcs8(&made.rsa, &made.ed25519).unwrap()
});

static RUNTIME: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap());

static PIPELINE: LazyLock<Pipeline> = LazyLock::new(|| {
    let own = Domain::parse("shop.example").unwrap();
    let signer = Arc::new(Signer {
        domain: own.clone(),
        rsa_selector: "r1".to_owned(),
        ed25519_selector: "e1".to_owned(),
        keys: KEYS.clone(),
        algorithms: Algorithms::Both,
    });
    let parts = Parts {
        signer: Arc::new(move |_, domain| {
            let known = domain.is_within(&own).then(|| Arc::clone(&signer));
            known.ok_or_else(|| Refusal::plain(Reply::enhanced(550, 7, 1, format!("{domain} is not verified"))))
        }),
        name_signer: Arc::new(|_, _| None),
        suppressed: Arc::new(|_, _, _| Ok(false)),
        count: Arc::new(|_, _, _| Ok(())),
        marks: Arc::new(|_, _, _| None),
        uncount: Arc::new(|_, _| {}),
        sender: Arc::new(|_, _| Ok(())),
        dialects: Arc::new(|_| Vec::new()),
    };
    Pipeline::new(parts, Settings { spill_folder: std::env::temp_dir(), ..Settings::default() })
});

fn about() -> About {
    let way = Way::Smtp(SmtpFacts {
        helo: "client".to_owned(),
        peer: ([198, 51, 100, 9], 50_000).into(),
        tls: "TLSv1.3 TLS_AES_256_GCM_SHA384".to_owned(),
    });
    let source = Source {
        tenant: TenantId(1),
        account: Some(SmtpAccountId(2)),
        vip: VipId(3),
        vip_name: Domain::parse("mx.shop.example").unwrap(),
        class: Class::Transactional,
        way,
    };
    let envelope = Envelope {
        reverse_path: ReversePath(Some("a@shop.example".parse().unwrap())),
        parameters: MailParameters::default(),
        recipients: vec![ForwardPath::plain("b@x.example".parse().unwrap())],
    };
    About::new(QueueId::new(NOW), NOW, source, envelope)
}

/// What leaves the pipeline is signed, has one From in a verified domain, CR LF only and the
/// octets it says; what does not leave it is refused with a reply.
pub fn pipeline(input: &[u8]) {
    let message = with_line_ends(input);
    let Some((header, body)) = split_entity(&message) else { return };
    let draft = Draft { header, body: Body::Memory(Bytes::copy_from_slice(body)) };
    let prepared = match RUNTIME.block_on(PIPELINE.prepare(draft, about())) {
        Ok(prepared) => prepared,
        Err(refusal) => {
            assert!((400..600).contains(&refusal.reply.code.0), "{refusal}");
            assert!(refusal.reply.text.iter().all(|line| !line.chars().any(char::is_control)), "{refusal}");
            return;
        }
    };
    let head = prepared.sealed.head.to_vec();
    let mut whole = head.clone();
    prepared.sealed.body.slices().for_each(|slice| whole.extend_from_slice(&slice.unwrap()));
    assert_line_ends(&whole, "a final message");
    assert!(!whole.contains(&0));
    assert_eq!(whole.len() as u64, prepared.sealed.length());
    assert_eq!(prepared.octets, Octets::of(&whole));
    let block = HeaderBlock::parse(head.strip_suffix(b"\r\n").unwrap()).expect("a header block");
    for (name, count) in [("From", 1), ("Bcc", 0), ("Resent-Bcc", 0), ("Return-Path", 0), ("Received", 1)] {
        let given = if name == "Received" { Feed(&message).received() } else { 0 };
        assert_eq!(block.count(name), count + given, "{name}");
    }
    assert!(block.count("Date") >= 1 && block.count("Message-ID") >= 1);
    assert_eq!(prepared.signatures.len(), 2);
    assert!(block.fields()[..2].iter().all(|field| field.name == dkim::FIELD_NAME), "signatures stand on top");
    let seen = domains_seen(&head[..head.len() - 2]);
    let own = Domain::parse("shop.example").unwrap();
    assert!(!seen.is_empty());
    for domain in &seen {
        assert!(Domain::parse(domain).is_ok_and(|domain| domain.is_within(&own)), "{seen:?}");
    }
    let mut wire = Vec::new();
    let mut stuffer = DotStuffer::new();
    stuffer.write(&whole, &mut wire);
    stuffer.end(&mut wire);
    let bare = wire.windows(5).position(|five| five == b"\r\n.\r\n").map(|at| at + 5);
    assert_eq!(bare, Some(wire.len()), "a dot alone within the message");
}

impl Feed<'_> {
    /// How many Received fields the message came with.
    fn received(&self) -> usize {
        split_entity(self.0).map_or(0, |(header, _)| header.count("Received"))
    }
}

fn reported(feed: &mut Feed<'_>) -> Option<Reported> {
    let address = feed.text().parse().ok()?;
    let choices = feed.byte();
    let text = feed.text();
    let status = EnhancedStatus::new([2, 4, 5][feed.below(3)], u16::from(feed.byte()), u16::from(feed.byte()));
    Some(Reported {
        address,
        orcpt: (choices & 1 == 1).then(|| format!("rfc822;{}", feed.text())),
        action: [Action::Failed, Action::Delayed, Action::Delivered, Action::Relayed][usize::from(choices >> 6)],
        status,
        remote_mta: (choices & 2 == 2).then(|| feed.text()),
        diagnostic: match choices & 12 {
            4 => Some(Diagnostic::Smtp(text)),
            8 => Some(Diagnostic::Own(text)),
            _ => None,
        },
        last_attempt: (choices & 16 == 16).then_some(NOW),
        will_retry_until: (choices & 32 == 32).then(|| Timestamp(feed.number())),
    })
}

/// No reply, name or original can write a field, a part or a recipient into a notice.
pub fn notice(input: &[u8]) {
    let mut feed = Feed(input);
    let choices = feed.byte();
    let to: Address = match choices & 3 {
        0 => "ą@shop.example".parse().unwrap(),
        _ => "a@shop.example".parse().unwrap(),
    };
    let envid = feed.text();
    let recipients: Vec<Reported> = (0..feed.below(4)).map_while(|_| reported(&mut feed)).collect();
    let original = with_line_ends(feed.rest());
    let mta = Domain::parse("mx.shop.example").unwrap();
    let notice = Notice {
        kind: [Kind::Failure, Kind::Delay, Kind::Success][usize::from(choices >> 2) % 3],
        reporting_mta: &mta,
        to: &to,
        about: QueueId([7; 16]),
        envid: (choices & 16 == 16).then_some(envid.as_str()),
        ret: [None, Some(Ret::Full), Some(Ret::Headers)][usize::from(choices >> 5) % 3],
        arrival: NOW,
        recipients: &recipients,
        original: &original,
        original_length: original.len() as u64 + u64::from(choices >> 7),
    };
    let draft = dsn::write(&notice, NOW);
    let (needs_utf8, length) = (to.needs_smtputf8(), original.len());
    assert_notice(draft, &recipients, needs_utf8, length);
}

fn assert_notice(draft: Draft, recipients: &[Reported], needs_utf8: bool, original: usize) {
    let head = draft.header.to_bytes();
    HeaderBlock::parse(&head).expect("a header block");
    let boundary = draft.header.text("Content-Type").unwrap().split('"').nth(1).unwrap().to_owned();
    let body: Vec<u8> = draft.body.slices().flat_map(|slice| slice.unwrap().to_vec()).collect();
    assert_line_ends(&body, "a notice");
    assert!(needs_utf8 || body.is_ascii(), "a notice with 8-bit octets");
    assert!(body.len() <= 4_000 + original * 4 + recipients.len() * 80_000, "{} octets", body.len());
    let text = String::from_utf8_lossy(&body);
    let parts: Vec<&str> = text.split(&format!("\r\n--{boundary}")).collect();
    assert!((4..=5).contains(&parts.len()), "{} parts", parts.len());
    assert_eq!(parts.last(), Some(&"--\r\n"));
    let status = parts[2].split_once("\r\n\r\n").unwrap().1;
    let groups: Vec<&str> = status.split("\r\n\r\n").filter(|group| !group.trim().is_empty()).collect();
    assert_eq!(groups.len(), recipients.len() + 1, "{status}");
    for (number, group) in groups.iter().enumerate() {
        let block = HeaderBlock::parse(format!("{}\r\n", group.trim_end_matches("\r\n")).as_bytes());
        let block = block.expect("a group of fields");
        let is_recipient = usize::from(number > 0);
        for (name, count) in [("Reporting-MTA", 1 - is_recipient), ("Final-Recipient", is_recipient)] {
            assert_eq!(block.count(name), count, "{group}");
        }
        for name in ["Action", "Status"] {
            assert_eq!(block.count(name), is_recipient, "{group}");
        }
    }
}
