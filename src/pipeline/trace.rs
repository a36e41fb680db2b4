//! Writes the Received field (RFC 5321 s4.4) and stops messages that go in circles (s6.3).
//!
//! Without the client's address unless configured: it would tell every recipient where a shop's
//! server or an employee's home is. Easy to get wrong: a `for` clause shows a blind copy's address
//! to the others, so it is written only for a single recipient.

use std::net::IpAddr;

use async_trait::async_trait;

use super::about::{About, HttpFacts, Octets, SmtpFacts, Way};
use super::{ClientAddress, Lives, Stage, live};
use crate::mail::{Draft, Refusal, Reply, Smtputf8};

/// The stage.
pub struct Trace {
    pub(super) live: Lives,
    pub(super) received_max: usize,
}

#[async_trait]
impl Stage for Trace {
    fn name(&self) -> &'static str {
        "trace"
    }

    async fn apply(&self, draft: &mut Draft, about: &mut About) -> Result<(), Refusal> {
        if draft.header.count("Received") > self.received_max {
            let text = format!("more than {} Received fields: the message goes in circles", self.received_max);
            return Err(Refusal::plain(Reply::enhanced(554, 4, 6, text)));
        }
        let value = match &about.source.way {
            Way::Smtp(facts) => self.received(facts, about),
            Way::Http(facts) => self.received_by_http(facts, about),
            Way::Notice { .. } | Way::Report | Way::TlsReport => return Ok(()),
        };
        draft.header.prepend("Received", &value);
        Ok(())
    }
}

impl Trace {
    fn received_by_http(&self, facts: &HttpFacts, about: &About) -> String {
        let shown = facts.peer.filter(|_| live(&self.live).client_address == ClientAddress::Shown);
        let from =
            shown.map_or_else(|| "localhost".to_owned(), |ip| format!("unknown ({})", literal(ip.to_canonical())));
        let start = format!("from {from}\r\n\tby {} (postern) with HTTP\r\n\t", about.source.vip_name);
        format!("{start}{}", ending(about))
    }

    fn received(&self, facts: &SmtpFacts, about: &About) -> String {
        let helo = Some(facts.helo.as_str()).filter(|helo| is_host(helo)).unwrap_or("unknown");
        let ip = facts.peer.ip().to_canonical();
        let from = match live(&self.live).client_address {
            ClientAddress::Shown => format!("{helo} ({})", literal(ip)),
            // What the client calls itself often is its address or its name inside a network.
            ClientAddress::Hidden => "localhost".to_owned(),
        };
        // RFC 6531 s4.3: the keyword says that SMTPUTF8 was used.
        let protocol = match about.envelope.parameters.smtputf8 {
            Smtputf8::Needed => "UTF8SMTPSA",
            Smtputf8::NotNeeded => "ESMTPSA",
        };
        let tls: String = facts.tls.chars().filter(|character| is_comment_text(*character)).collect();
        let mut value = format!("from {from}\r\n\tby {} (postern) with {protocol}\r\n\t", about.source.vip_name);
        if !tls.is_empty() {
            value.push_str(&format!("({tls})\r\n\t"));
        }
        value.push_str(&ending(about));
        value
    }
}

/// An address as RFC 5321 s4.1.3 writes it.
fn literal(ip: IpAddr) -> String {
    if ip.is_ipv6() { format!("[IPv6:{ip}]") } else { format!("[{ip}]") }
}

/// The id, the recipient if there is one only, and the time.
fn ending(about: &About) -> String {
    let mut value = format!("id {}", about.id);
    if let [only] = about.envelope.recipients.as_slice() {
        let address = only.address.to_string();
        if Octets::of(address.as_bytes()) == Octets::Seven {
            value.push_str(&format!("\r\n\tfor <{address}>"));
        }
    }
    value.push_str(&format!(";\r\n\t{}", about.now.rfc5322()));
    value
}

fn is_host(text: &str) -> bool {
    (1..=255).contains(&text.len())
        && text.chars().all(|character| character.is_ascii_alphanumeric() || ".-_:[]".contains(character))
}

fn is_comment_text(character: char) -> bool {
    (character.is_ascii_graphic() || character == ' ') && !"()\\".contains(character)
}

#[cfg(test)]
mod tests {
    use super::super::samples::{self, smtp_about};
    use super::*;

    fn shown_as(client_address: ClientAddress) -> Lives {
        let live = samples::live();
        live.write().unwrap().client_address = client_address;
        live
    }

    async fn received(client_address: ClientAddress, about: &mut About) -> String {
        let mut draft = samples::draft(samples::PLAIN);
        Trace { live: shown_as(client_address), received_max: 100 }.apply(&mut draft, about).await.unwrap();
        let field = draft.header.fields()[0].clone();
        assert_eq!(field.name, "Received");
        assert!(field.raw_value.split(|byte| *byte == b'\n').all(|line| line.len() <= 79));
        field.text()
    }

    #[tokio::test]
    async fn the_client_is_not_shown_unless_configured() {
        let mut about = smtp_about("a@shop.example", &["b@x.example"]);
        let text = received(ClientAddress::Hidden, &mut about).await;
        let id = about.id.to_string();
        assert_eq!(
            text.replace('\t', " "),
            format!(
                "from localhost by mx.shop.example (postern) with ESMTPSA (TLSv1.3 TLS_AES_256_GCM_SHA384) \
                 id {id} for <b@x.example>; Sun, 22 Nov 2026 10:15:00 +0000"
            )
        );
        let text = received(ClientAddress::Shown, &mut about).await;
        assert!(text.starts_with("from laptop.lan ([198.51.100.9])\tby"), "{text}");
    }

    #[tokio::test]
    async fn several_recipients_are_not_shown_to_each_other() {
        let mut about = smtp_about("a@shop.example", &["b@x.example", "c@x.example"]);
        about.envelope.parameters.smtputf8 = Smtputf8::Needed;
        let text = received(ClientAddress::Hidden, &mut about).await;
        assert!(!text.contains("x.example") && text.contains("with UTF8SMTPSA"), "{text}");
    }

    #[tokio::test]
    async fn nothing_can_be_injected_through_what_the_client_calls_itself() {
        let mut about = smtp_about("a@shop.example", &["b@x.example"]);
        if let Way::Smtp(facts) = &mut about.source.way {
            facts.helo = "evil) by x; (".to_owned();
            facts.tls = "TLS)\\(".to_owned();
        }
        let text = received(ClientAddress::Shown, &mut about).await;
        assert!(text.starts_with("from unknown ([198.51.100.9])") && text.contains("(TLS)"), "{text}");
    }

    #[tokio::test]
    async fn a_message_in_circles_is_stopped_rfc_5321_s6_3() {
        let trace = Trace { live: samples::live(), received_max: 100 };
        for (count, is_fine) in [(100, true), (101, false)] {
            let mut draft = samples::draft(&format!("{}{}", "Received: x\r\n".repeat(count), samples::PLAIN));
            let result = trace.apply(&mut draft, &mut smtp_about("a@shop.example", &["b@x.example"])).await;
            assert_eq!(result.is_ok(), is_fine);
            assert!(is_fine || result.unwrap_err().reply.one_line().starts_with("554 5.4.6 "));
        }
    }
}
