//! Takes out of the header what its sender says to us and to nobody else: `X-Tag`, `X-Metadata-*`,
//! `X-Send-At`, `X-Track-*`, `X-Idempotency-Key`, and the like of other services where the SMTP account asked
//! for it. Recipients never see these fields, and no signature covers them.
//!
//! What came by the API is there already and stays; our own fields count before those of others. Easy to get
//! wrong: a time that cannot be read refuses the message, since mail that leaves at once cannot be called back.

use std::time::Duration;

use async_trait::async_trait;
use mail_parser::MessageParser;

use super::about::{About, Way};
use super::dialects::{self, after};
use super::{DialectsLookup, Stage};
use crate::ext::Timestamp;
use crate::mail::{Address, Draft, Field, HeaderBlock, Hold, Labels as Attached, Refusal, Reply};

const TAG: &str = "X-Tag";
const METADATA: &str = "X-Metadata-";
const SEND_AT: &str = "X-Send-At";
const TRACK: &str = "X-Track-";
/// Read by the intake, before anything is done for the message; see there.
pub const ONCE: &str = "X-Idempotency-Key";

/// The stage.
pub struct Labels {
    /// How far ahead a message may be scheduled.
    pub(super) hold_max: Duration,
    /// Whose fields are read beside ours.
    pub(super) dialects: DialectsLookup,
}

/// What is read, and which fields are to be taken out.
pub(super) struct Wishes {
    labels: Attached,
    send_at: Option<Timestamp>,
    taken: Vec<String>,
    hold_max: Duration,
    now: Timestamp,
}

#[async_trait]
impl Stage for Labels {
    fn name(&self) -> &'static str {
        "labels"
    }

    fn concerns(&self, about: &About) -> bool {
        !about.is_notice()
    }

    async fn apply(&self, draft: &mut Draft, about: &mut About) -> Result<(), Refusal> {
        let labels = match &about.source.way {
            Way::Http(facts) => facts.labels.clone(),
            Way::Smtp(_) | Way::Notice { .. } | Way::Report | Way::TlsReport => Attached::default(),
        };
        let mut wishes = Wishes { labels, send_at: None, taken: Vec::new(), hold_max: self.hold_max, now: about.now };
        let recipients: Vec<&Address> = about.envelope.recipients.iter().map(|recipient| &recipient.address).collect();
        for dialect in about.source.account.map(|account| (self.dialects)(account)).unwrap_or_default() {
            dialects::read(dialect, &draft.header, &recipients, &mut wishes)?;
        }
        own(&draft.header, &mut wishes)?;
        let Wishes { labels, send_at, taken, .. } = wishes;
        if let Some(moment) = send_at {
            about.envelope.parameters.hold.get_or_insert(Hold::Until(moment));
        }
        taken.iter().for_each(|name| {
            draft.header.remove(name);
        });
        about.labels = labels;
        Ok(())
    }
}

/// Reads our own fields; they come last, so that they count.
fn own(header: &HeaderBlock, wishes: &mut Wishes) -> Result<(), Refusal> {
    for field in header.fields() {
        if field.name.eq_ignore_ascii_case(TAG) {
            for tag in decoded(field).split(',').filter(|tag| !tag.trim().is_empty()) {
                wishes.tag(field, tag)?;
            }
        } else if let Some(name) = after(&field.name, METADATA) {
            wishes.describe(field, name, &decoded(field))?;
            wishes.take(&field.name);
        } else if let Some(name) = after(&field.name, TRACK) {
            check_tracking(field, name)?;
            wishes.take(&field.name);
        }
    }
    if let Some(text) = header.text(SEND_AT) {
        let moment = Timestamp::from_rfc3339(&text);
        let moment = moment.ok_or_else(|| refused(SEND_AT, "must be a time such as 2027-01-31T12:00:00Z"))?;
        wishes.send_at(SEND_AT, moment)?;
    }
    [TAG, SEND_AT, ONCE].iter().for_each(|name| wishes.take(name));
    Ok(())
}

/// Nothing is tracked here, so the fields change nothing; a value that means nothing is a mistake all the same.
fn check_tracking(field: &Field, name: &str) -> Result<(), Refusal> {
    let words: &[&str] = match name.to_ascii_lowercase().as_str() {
        "opens" => &["yes", "no"],
        "clicks" => &["yes", "no", "htmlonly"],
        _ => return Err(refused(&field.name, "is not known; there are X-Track-Opens and X-Track-Clicks")),
    };
    let text = field.text();
    if words.iter().any(|word| text.eq_ignore_ascii_case(word)) {
        return Ok(());
    }
    Err(refused(&field.name, &format!("must be one of: {}", words.join(", "))))
}

impl Wishes {
    /// Adds a tag.
    pub(super) fn tag(&mut self, field: &Field, tag: &str) -> Result<(), Refusal> {
        self.labels.tag(tag).map_err(|error| refused(&field.name, &error.to_string()))
    }

    /// Adds a pair of metadata.
    pub(super) fn describe(&mut self, field: &Field, name: &str, value: &str) -> Result<(), Refusal> {
        self.labels.describe(name, value).map_err(|error| refused(&field.name, &error.to_string()))
    }

    /// Not before this; the last one counts.
    pub(super) fn send_at(&mut self, field: &str, moment: Timestamp) -> Result<(), Refusal> {
        if moment.since(self.now) > self.hold_max {
            let hours = self.hold_max.as_secs() / 3600;
            return Err(refused(field, &format!("may be at most {hours} hours ahead")));
        }
        self.send_at = Some(moment);
        Ok(())
    }

    /// Every field of that name is taken out.
    pub(super) fn take(&mut self, name: &str) {
        if !self.taken.iter().any(|taken| taken.eq_ignore_ascii_case(name)) {
            self.taken.push(name.to_owned());
        }
    }
}

/// The text of a field, with encoded words (RFC 2047) read: programs write a tag that is not ASCII in them.
fn decoded(field: &Field) -> String {
    let text = field.text();
    if !text.contains("=?") {
        return text;
    }
    let whole = [b"Comments:", &field.raw_value[..], b"\r\n"].concat();
    let parsed = MessageParser::new().default_header_text().parse_headers(&whole[..]);
    let read = parsed.as_ref().and_then(|message| message.header("Comments")).and_then(|value| value.as_text());
    read.map_or(text, str::to_owned)
}

pub(super) fn refused(field: &str, text: &str) -> Refusal {
    Refusal::plain(Reply::enhanced(550, 6, 0, format!("{field}: {text}")))
}

#[cfg(test)]
mod tests {
    use super::super::samples::{self, smtp_about};
    use super::*;

    fn stage() -> Labels {
        Labels { hold_max: Duration::from_secs(7 * 86_400), dialects: samples::dialects(&[]) }
    }

    async fn read(header: &str) -> Result<(About, String), Refusal> {
        let mut draft = samples::draft(&format!("{header}From: a@shop.example\r\n\r\nx\r\n"));
        let mut about = smtp_about("a@shop.example", &["b@x.example"]);
        let stage = stage();
        stage.apply(&mut draft, &mut about).await?;
        Ok((about, String::from_utf8(draft.header.to_bytes()).unwrap()))
    }

    #[tokio::test]
    async fn labels_are_read_in_any_case_and_taken_out() {
        let header = "x-tag: order, confirmation\r\nX-TAG: second\r\nX-Metadata-Order-Id: 4711\r\nX-metadata-b: \
            two words\r\nX-Send-At: 2026-11-23T10:15:00Z\r\nX-Mailer: stays\r\n";
        let (about, left) = read(header).await.unwrap();
        assert_eq!(about.labels.tags(), ["order", "confirmation", "second"]);
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(about.labels.metadata(), [pair("order-id", "4711"), pair("b", "two words")]);
        let tomorrow = Timestamp(samples::NOW.0 + 86_400_000);
        assert_eq!(about.envelope.parameters.hold, Some(Hold::Until(tomorrow)));
        assert_eq!(left, "X-Mailer: stays\r\nFrom: a@shop.example\r\n");
    }

    #[tokio::test]
    async fn what_cannot_be_read_refuses_the_message_by_name() {
        for (header, name) in [
            ("X-Send-At: tomorrow\r\n", "X-Send-At"),
            ("X-Send-At: 2026-12-24T00:00:00Z\r\n", "X-Send-At"),
            ("X-Metadata-: x\r\n", "X-Metadata-"),
            ("X-Track-Opens: perhaps\r\n", "X-Track-Opens"),
            ("X-Track-Everything: yes\r\n", "X-Track-Everything"),
        ] {
            let reply = read(header).await.err().expect(header).reply.one_line();
            assert!(reply.starts_with("550 5.6.0 ") && reply.contains(name), "{reply}");
        }
        let many: String = (0..11).map(|number| format!("X-Tag: {number}\r\n")).collect();
        assert!(read(&many).await.err().unwrap().reply.one_line().contains("at most 10 tags"));
    }

    #[tokio::test]
    async fn switches_and_keys_leave_no_trace_and_encoded_words_are_read() {
        let header = "X-Track-Opens: No\r\nX-Track-Clicks: htmlonly\r\nX-Idempotency-Key: order-1\r\nX-Tag: \
            =?UTF-8?Q?zam=C3=B3wienie?=\r\nX-Mailgun-Tag: stays\r\n";
        let (about, left) = read(header).await.unwrap();
        assert_eq!(about.labels.tags(), ["zamówienie"]);
        assert_eq!(left, "X-Mailgun-Tag: stays\r\nFrom: a@shop.example\r\n");
    }

    #[tokio::test]
    async fn what_smtp_said_of_the_time_counts_and_without_fields_there_is_nothing() {
        let mut draft = samples::draft("X-Send-At: 2026-11-23T10:15:00Z\r\n\r\nx\r\n");
        let mut about = smtp_about("a@shop.example", &["b@x.example"]);
        let said = Hold::For(Duration::from_secs(60));
        about.envelope.parameters.hold = Some(said);
        stage().apply(&mut draft, &mut about).await.unwrap();
        assert_eq!(about.envelope.parameters.hold, Some(said));
        let (about, _) = read("").await.unwrap();
        assert_eq!((about.labels, about.envelope.parameters.hold), (Attached::default(), None));
    }
}
