//! Takes out of the header what its sender says to us and to nobody else: `X-Tag`, `X-Metadata-*`,
//! `X-Send-At`. Recipients never see these fields, and no signature covers them.
//!
//! What came by the API is there already and stays. Easy to get wrong: a time that cannot be read refuses the
//! message, since mail that leaves at once cannot be called back.

use std::time::Duration;

use async_trait::async_trait;

use super::Stage;
use super::about::{About, Way};
use crate::ext::Timestamp;
use crate::mail::{Draft, Hold, Labels as Attached, Refusal, Reply};

const TAG: &str = "X-Tag";
const METADATA: &str = "X-Metadata-";
const SEND_AT: &str = "X-Send-At";

/// The stage.
pub struct Labels {
    /// How far ahead a message may be scheduled.
    pub(super) hold_max: Duration,
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
        let mut labels = match &about.source.way {
            Way::Http(facts) => facts.labels.clone(),
            Way::Smtp(_) | Way::Notice { .. } => Attached::default(),
        };
        for field in draft.header.all(TAG) {
            for tag in field.text().split(',').filter(|tag| !tag.trim().is_empty()) {
                labels.tag(tag).map_err(|error| refused(TAG, &error.to_string()))?;
            }
        }
        let mut names = Vec::new();
        for field in draft.header.fields() {
            let starts = field.name.get(..METADATA.len()).is_some_and(|start| start.eq_ignore_ascii_case(METADATA));
            if let (true, Some(name)) = (starts, field.name.get(METADATA.len()..)) {
                labels.describe(name, &field.text()).map_err(|error| refused(&field.name, &error.to_string()))?;
                names.push(field.name.clone());
            }
        }
        if let Some(text) = draft.header.text(SEND_AT) {
            let moment = self.moment(&text, about.now)?;
            about.envelope.parameters.hold.get_or_insert(Hold::Until(moment));
        }
        for name in names.iter().map(String::as_str).chain([TAG, SEND_AT]) {
            draft.header.remove(name);
        }
        about.labels = labels;
        Ok(())
    }
}

impl Labels {
    fn moment(&self, text: &str, now: Timestamp) -> Result<Timestamp, Refusal> {
        let Some(moment) = Timestamp::from_rfc3339(text) else {
            return Err(refused(SEND_AT, "must be a time such as 2027-01-31T12:00:00Z"));
        };
        if moment.since(now) > self.hold_max {
            let days = self.hold_max.as_secs() / 3600;
            return Err(refused(SEND_AT, &format!("may be at most {days} hours ahead")));
        }
        Ok(moment)
    }
}

fn refused(field: &str, text: &str) -> Refusal {
    Refusal::plain(Reply::enhanced(550, 6, 0, format!("{field}: {text}")))
}

#[cfg(test)]
mod tests {
    use super::super::samples::{self, smtp_about};
    use super::*;

    async fn read(header: &str) -> Result<(About, String), Refusal> {
        let mut draft = samples::draft(&format!("{header}From: a@shop.example\r\n\r\nx\r\n"));
        let mut about = smtp_about("a@shop.example", &["b@x.example"]);
        let stage = Labels { hold_max: Duration::from_secs(7 * 86_400) };
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
        ] {
            let reply = read(header).await.err().expect(header).reply.one_line();
            assert!(reply.starts_with("550 5.6.0 ") && reply.contains(name), "{reply}");
        }
        let many: String = (0..11).map(|number| format!("X-Tag: {number}\r\n")).collect();
        assert!(read(&many).await.err().unwrap().reply.one_line().contains("at most 10 tags"));
    }

    #[tokio::test]
    async fn what_smtp_said_of_the_time_counts_and_without_fields_there_is_nothing() {
        let mut draft = samples::draft("X-Send-At: 2026-11-23T10:15:00Z\r\n\r\nx\r\n");
        let mut about = smtp_about("a@shop.example", &["b@x.example"]);
        let said = Hold::For(Duration::from_secs(60));
        about.envelope.parameters.hold = Some(said);
        Labels { hold_max: Duration::from_secs(7 * 86_400) }.apply(&mut draft, &mut about).await.unwrap();
        assert_eq!(about.envelope.parameters.hold, Some(said));
        let (about, _) = read("").await.unwrap();
        assert_eq!((about.labels, about.envelope.parameters.hold), (Attached::default(), None));
    }
}
