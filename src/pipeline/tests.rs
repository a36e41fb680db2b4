//! The stages together.

use super::samples::{self, notice_about, smtp_about};
use super::*;
use crate::mail::Reply;

fn parts() -> Parts {
    Parts {
        signer: samples::signer_for(&["shop.example"]),
        name_signer: Arc::new(|_, _| None),
        suppressed: Arc::new(|_, _, address| Ok(address.local_part() == "no")),
        count: Arc::new(|_, _, _| Ok(())),
        marks: Arc::new(|_, _, _| None),
        uncount: Arc::new(|_, _| {}),
        sender: Arc::new(|_, _| Ok(())),
        dialects: Arc::new(|_| Vec::new()),
    }
}

fn pipeline(parts: Parts) -> Pipeline {
    Pipeline::new(parts, Settings { spill_folder: std::env::temp_dir(), ..Settings::default() })
}

fn bytes_of(prepared: &Prepared) -> String {
    let mut bytes = prepared.sealed.head.to_vec();
    prepared.sealed.body.slices().for_each(|slice| bytes.extend_from_slice(&slice.unwrap()));
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn a_draft_becomes_final_in_order() {
    let mut about = smtp_about("a@shop.example", &["b@x.example", "no@x.example"]);
    about.envelope.parameters.smtputf8 = Smtputf8::Needed;
    let draft = samples::draft_of(&samples::sample("eight-bit-utf8.eml"));
    let prepared = pipeline(parts()).prepare(draft, about).await.unwrap();
    let text = bytes_of(&prepared);
    let names: Vec<_> = text
        .lines()
        .filter(|line| !line.starts_with(['\t', ' ']))
        .map(|line| line.split(':').next().unwrap())
        .collect();
    assert_eq!(names[..4], ["DKIM-Signature", "DKIM-Signature", "Received", "From"]);
    assert!(text.contains("Gr=C3=BC=C3=9Fe"));
    assert_eq!(prepared.suppressed, [1]);
    assert_eq!(prepared.subject, "eight-bit");
    assert_eq!(prepared.message_id, "<eight-bit@shop.example>");
    assert_eq!(prepared.header_from, "Shop <a@shop.example>");
    assert_eq!(prepared.octets, Octets::Seven);
    assert_eq!(prepared.signatures.len(), 2);
    assert_eq!(prepared.envelope.parameters.smtputf8, Smtputf8::NotNeeded, "nothing in it needs SMTPUTF8");
}

#[tokio::test]
async fn what_a_message_is_sent_as_is_kept_and_both_fields_of_one_click_are_signed() {
    let plain = String::from_utf8(samples::sample("plain.eml")).unwrap();
    let fields = "List-Unsubscribe: <https://shop.example/u>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n";
    for (message, offers_one_click) in [(plain.clone(), false), (format!("{fields}{plain}"), true)] {
        let about = smtp_about("a@shop.example", &["b@x.example"]);
        let draft = samples::draft_of(message.as_bytes());
        let prepared = pipeline(parts()).prepare(draft, about).await.unwrap();
        let signed = Signed { by: Domain::parse("shop.example").unwrap(), offers_one_click };
        assert_eq!(prepared.signed, Some(signed));
        let text = bytes_of(&prepared).replace("\r\n\t", "").replace("\r\n ", "");
        let signatures: Vec<&str> = text.lines().filter(|line| line.starts_with("DKIM-Signature:")).collect();
        assert_eq!(signatures.len(), 2);
        for signature in signatures {
            assert_eq!(signature.contains(":List-Unsubscribe:List-Unsubscribe-Post"), offers_one_click, "{signature}");
        }
    }
}

#[tokio::test]
async fn smtputf8_stays_where_an_address_or_header_needs_it() {
    use Smtputf8::{Needed, NotNeeded};
    let utf8 = String::from_utf8(samples::sample("utf8-headers.eml")).unwrap();
    for (message, recipient, expected) in [
        (String::from_utf8(samples::sample("plain.eml")).unwrap(), "jürgen@x.example", Needed),
        // An address in the header, whether or not the client said so.
        (utf8.replace("b@x", "zoë@x"), "b@x.example", Needed),
        // Names and the subject are encoded.
        (utf8, "b@x.example", NotNeeded),
    ] {
        for said in [Needed, NotNeeded] {
            let mut about = smtp_about("a@shop.example", &[recipient]);
            about.envelope.parameters.smtputf8 = said;
            let draft = samples::draft_of(message.as_bytes());
            let prepared = pipeline(parts()).prepare(draft, about).await.unwrap();
            assert_eq!(prepared.envelope.parameters.smtputf8, expected);
        }
    }
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_after_identity_and_before_anything_costly() {
    let refusing = |code: u16| {
        let count: Count =
            Arc::new(move |_, _, _| Err(Refusal::plain(Reply::enhanced(code, 7, 0, "limit until 11:00"))));
        pipeline(Parts { count, ..parts() })
    };
    let draft = samples::draft(samples::PLAIN);
    let refusal = refusing(452).prepare(draft, smtp_about("a@shop.example", &["b@x.example"])).await.unwrap_err();
    assert_eq!(refusal.reply.code.0, 452);
    assert!(refusal.cause.starts_with("limits: "), "{}", refusal.cause);
    let foreign = samples::draft("From: a@evil.example\r\n\r\nx\r\n");
    let refusal = refusing(452).prepare(foreign, smtp_about("a@shop.example", &["b@x.example"])).await.unwrap_err();
    assert_eq!(refusal.reply.code.0, 550, "a refused message is not counted");
}

#[tokio::test]
async fn a_notice_skips_sender_rules_limits_and_suppression() {
    let count: Count = Arc::new(|_, _, _| Err(Refusal::plain(Reply::enhanced(452, 7, 0, "no"))));
    let draft = samples::draft("From: MAILER-DAEMON@mx.host.example\r\nSubject: notice\r\n\r\nx\r\n");
    let about = notice_about("mx.host.example", "no@shop.example");
    let prepared = pipeline(Parts { count, ..parts() }).prepare(draft, about).await.unwrap();
    assert!(prepared.signatures.is_empty() && prepared.suppressed.is_empty());
    assert!(!bytes_of(&prepared).contains("Received:"));
}

/// Rough figures, printed: `cargo test --release --lib pipeline -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn time_of_preparing_20_kib() {
    for algorithms in [Algorithms::RsaOnly, Algorithms::Both] {
        let settings = Settings { spill_folder: std::env::temp_dir(), algorithms, ..Settings::default() };
        let pipeline = Pipeline::new(parts(), settings);
        let message = format!(
            "{}{}",
            samples::PLAIN,
            "A line of ordinary text, seventy-odd octets long, as mail has.\r\n".repeat(320)
        );
        let draft = samples::draft(&message);
        let began = std::time::Instant::now();
        for _ in 0..1000 {
            pipeline.prepare(draft.clone(), smtp_about("a@shop.example", &["b@x.example"])).await.unwrap();
        }
        println!("{algorithms:?}: {:?} per message of {} octets", began.elapsed() / 1000, message.len());
    }
}
