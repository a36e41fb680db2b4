//! Header fields as those services' libraries write them.

use std::time::Duration;

use super::super::labels::Labels;
use super::super::samples::{self, smtp_about};
use super::super::{About, Stage};
use super::*;
use crate::mail::Hold;

async fn read(dialect: HeaderDialect, header: &str) -> Result<(About, String), Refusal> {
    let mut draft = samples::draft(&format!("{header}From: a@shop.example\r\n\r\nx\r\n"));
    let mut about = smtp_about("a@shop.example", &["b@x.example"]);
    let stage = Labels { hold_max: Duration::from_secs(7 * 86_400), dialects: samples::dialects(&[dialect]) };
    stage.apply(&mut draft, &mut about).await?;
    Ok((about, String::from_utf8(draft.header.to_bytes()).unwrap()))
}

fn metadata(about: &About) -> Vec<(&str, &str)> {
    about.labels.metadata().iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

const ONLY_FROM: &str = "From: a@shop.example\r\n";
const TOMORROW: Timestamp = Timestamp(samples::NOW.0 + 86_400_000);

#[tokio::test]
async fn mailgun_fields_are_read_and_taken_out() {
    let header = "X-Mailgun-Tag: newsletter\r\nX-Mailgun-Tag: june\r\nX-Mailgun-Variables: {\"my_message_id\": 123, \
        \"customer\":\r\n \"shop 7\", \"deep\": {\"a\": [1]}}\r\nX-Mailgun-Deliver-By: Mon, 23 Nov 2026 10:15:00 +0000\r\n\
        X-Mailgun-Track: yes\r\nX-Mailgun-Track-Clicks: htmlonly\r\nX-Mailgun-Dkim: yes\r\n\
        X-Mailgun-Drop-Message: no\r\nX-Mailgun-Recipient-Variables: {}\r\n";
    let (about, left) = read(HeaderDialect::Mailgun, header).await.unwrap();
    assert_eq!(about.labels.tags(), ["newsletter", "june"]);
    let expected = [("customer", "shop 7"), ("deep", "{\"a\":[1]}"), ("my_message_id", "123")];
    assert_eq!(metadata(&about), expected);
    assert_eq!(about.envelope.parameters.hold, Some(Hold::Until(TOMORROW)));
    assert_eq!(left, ONLY_FROM);
}

#[tokio::test]
async fn postmark_fields_are_read_and_taken_out() {
    let header = "X-PM-Tag: welcome-email\r\nX-PM-Metadata-Color: blue\r\nx-pm-metadata-client-id: 12345\r\n\
        X-PM-Message-Stream: broadcast\r\nX-PM-TrackOpens: true\r\nX-PM-TrackLinks: HtmlOnly\r\nX-PM-KeepID: true\r\n";
    let (about, left) = read(HeaderDialect::Postmark, header).await.unwrap();
    assert_eq!(about.labels.tags(), ["welcome-email"]);
    assert_eq!(metadata(&about), [("color", "blue"), ("client-id", "12345")]);
    assert_eq!(left, ONLY_FROM);
}

#[tokio::test]
async fn the_sendgrid_object_is_read_and_taken_out() {
    let header = "X-SMTPAPI: {\"category\": [\"orders\", \"vip\"], \"unique_args\": {\"customerAccountNumber\":\r\n \
        \"55555\", \"New Argument 1\": \"one\"}, \"to\": [\"B <B@x.example>\"], \"send_at\": 1795428900,\r\n \
        \"filters\": {\"opentrack\": {\"settings\": {\"enable\": 0}}}, \"asm_group_id\": 1}\r\n\
        X-SMTPAPI: {\"category\": \"the first one counts\"}\r\n";
    let (about, left) = read(HeaderDialect::Sendgrid, header).await.unwrap();
    assert_eq!(about.labels.tags(), ["orders", "vip"]);
    assert_eq!(metadata(&about), [("new-argument-1", "one"), ("customeraccountnumber", "55555")]);
    assert_eq!(about.envelope.parameters.hold, Some(Hold::Until(TOMORROW)));
    assert_eq!(left, ONLY_FROM);
    let (about, _) = read(HeaderDialect::Sendgrid, "X-SMTPAPI: {\"category\": \"one\"}\r\n").await.unwrap();
    assert_eq!(about.labels.tags(), ["one"]);
}

#[tokio::test]
async fn postal_and_emaillabs_tags_are_read_and_taken_out() {
    let header = "X-Postal-Tag: invoice\r\nX-AMP: skip\r\nX-Postal-MsgID: stays\r\n";
    let (about, left) = read(HeaderDialect::Postal, header).await.unwrap();
    assert_eq!(about.labels.tags(), ["invoice"]);
    assert_eq!(left, format!("X-Postal-MsgID: stays\r\n{ONLY_FROM}"));
    let header = "X-MAILTAGS: registration;promo ; \r\nX-Tags: [\\\"escaped\\\", \"plain\"]\r\n";
    let (about, left) = read(HeaderDialect::Emaillabs, header).await.unwrap();
    assert_eq!(about.labels.tags(), ["registration", "promo", "escaped", "plain"]);
    assert_eq!(left, ONLY_FROM);
}

#[tokio::test]
async fn our_own_fields_count_before_those_of_others() {
    let header = "X-Metadata-Color: red\r\nX-PM-Metadata-Color: blue\r\nX-Tag: own\r\nX-PM-Tag: theirs\r\n";
    let (about, _) = read(HeaderDialect::Postmark, header).await.unwrap();
    assert_eq!(metadata(&about), [("color", "red")]);
    assert_eq!(about.labels.tags(), ["theirs", "own"]);
}

#[tokio::test]
async fn what_is_not_done_here_refuses_the_message_and_names_the_field() {
    use HeaderDialect::{Emaillabs, Mailgun, Postmark, Sendgrid};
    for (dialect, field) in [
        (Mailgun, "X-Mailgun-Drop-Message: yes"),
        (Mailgun, "X-Mailgun-Require-TLS: True"),
        (Mailgun, "X-Mailgun-Recipient-Variables: {\"b@x.example\": {\"a\": 1}}"),
        (Mailgun, "X-Mailgun-Variables: no object"),
        (Mailgun, "X-Mailgun-Deliver-By: soon"),
        (Mailgun, "X-Mailgun-Deliver-By: Wed, 23 Dec 2026 10:15:00 +0000"),
        (Postmark, "X-PM-Metadata-: x"),
        (Postmark, "X-PM-Tag: a, b"),
        (Sendgrid, "X-SMTPAPI: {\"sub\": {\"-name-\": [\"A\"]}}"),
        (Sendgrid, "X-SMTPAPI: {\"to\": [\"b@x.example\", \"c@x.example\"]}"),
        (Sendgrid, "X-SMTPAPI: {\"to\": [\"c@x.example\"]}"),
        (Sendgrid, "X-SMTPAPI: {\"send_each_at\": [1, 2]}"),
        (Sendgrid, "X-SMTPAPI: {\"filters\": {\"templates\": {\"settings\": {\"enable\": 1}}}}"),
        (Sendgrid, "X-SMTPAPI: [1]"),
        (Sendgrid, "X-SMTPAPI: {\"category\": 7}"),
        (Sendgrid, "X-SMTPAPI: {\"send_at\": \"soon\"}"),
        (Emaillabs, "X-TAGS: order, news"),
    ] {
        let reply = read(dialect, &format!("{field}\r\n")).await.err().expect(field).reply.one_line();
        let name = field.split(':').next().unwrap();
        assert!(reply.starts_with("550 5.6.0 ") && reply.contains(name), "{field}: {reply}");
    }
}

#[tokio::test]
async fn fields_of_a_service_that_was_not_asked_for_stay() {
    let header = "X-Mailgun-Tag: a\r\nX-PM-Tag: b\r\nX-SMTPAPI: {\r\n";
    let (about, left) = read(HeaderDialect::Postal, header).await.unwrap();
    assert!(about.labels.tags().is_empty());
    assert_eq!(left, format!("{header}{ONLY_FROM}"));
}
