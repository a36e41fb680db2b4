//! EHLO keywords (RFC 5321 s4.1.1.1): those we offer, and those a peer offers.
//!
//! A keyword stands in our reply only if the session really does what it says.
//! Easy to get wrong: AUTH and REQUIRETLS are offered under TLS only, STARTTLS before it only.

use std::time::Duration;

use crate::ext::Timestamp;
use crate::mail::Reply;

/// Mechanisms of a peer that are remembered, at most.
const MECHANISMS_MAX: usize = 32;

/// What our EHLO reply depends on.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    /// Our name: the EHLO name of the virtual IP.
    pub name: &'a str,
    /// `SIZE`.
    pub message_bytes_max: u64,
    /// `LIMITS RCPTMAX` (RFC 9422).
    pub recipients_max: usize,
    /// `FUTURERELEASE`: how far ahead (RFC 4865).
    pub hold_max: Duration,
    /// Whether TLS protects the session already.
    pub security: Security,
    /// What the session is for.
    pub duty: Duty,
}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Mail of those who log in (RFC 6409).
    Submission,
    /// Mail from anybody to ourselves: nobody logs in, nothing is passed on.
    Reception,
}

/// Whether TLS protects a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// Not yet: STARTTLS is offered.
    Plain,
    /// Yes: AUTH is offered.
    Tls,
}

impl Offer<'_> {
    /// Writes the whole reply to EHLO.
    pub fn write(&self, now: Timestamp, out: &mut Vec<u8>) {
        if self.duty == Duty::Reception {
            return self.write_reception(out);
        }
        let hold = self.hold_max.as_secs();
        // RFC 4865 s4: the longest interval in seconds and the latest moment, no fraction needed.
        let until = now.plus(self.hold_max).rfc3339();
        let until = until.split_once('.').map_or(until.as_str(), |(seconds, _)| seconds);
        let secured = match self.security {
            Security::Plain => "STARTTLS",
            // RFC 8689 s2: only within a session that TLS protects already.
            Security::Tls => "AUTH PLAIN LOGIN\r\n250-REQUIRETLS",
        };
        let lines = format!(
            "250-{name}\r\n250-PIPELINING\r\n250-SIZE {size}\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n\
             250-ENHANCEDSTATUSCODES\r\n250-CHUNKING\r\n250-DSN\r\n250-{secured}\r\n\
             250-LIMITS RCPTMAX={recipients}\r\n250 FUTURERELEASE {hold} {until}Z\r\n",
            name = self.name,
            size = self.message_bytes_max,
            recipients = self.recipients_max,
        );
        out.extend_from_slice(lines.as_bytes());
    }

    /// Neither AUTH nor what only makes sense for mail that goes on (DSN, FUTURERELEASE, REQUIRETLS).
    fn write_reception(&self, out: &mut Vec<u8>) {
        let secured = match self.security {
            Security::Plain => "250-STARTTLS\r\n",
            Security::Tls => "",
        };
        let lines = format!(
            "250-{name}\r\n250-PIPELINING\r\n250-SIZE {size}\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n\
             250-ENHANCEDSTATUSCODES\r\n250-CHUNKING\r\n{secured}250 LIMITS RCPTMAX={recipients}\r\n",
            name = self.name,
            size = self.message_bytes_max,
            recipients = self.recipients_max,
        );
        out.extend_from_slice(lines.as_bytes());
    }
}

/// What a peer said in answer to EHLO. Unknown keywords are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// `SIZE` with a limit in octets; `None` if there is no limit or none is told (RFC 1870).
    pub size: Option<u64>,
    /// RFC 2920.
    pub pipelining: bool,
    /// RFC 6152.
    pub eight_bit_mime: bool,
    /// RFC 6531.
    pub smtputf8: bool,
    /// RFC 3207.
    pub starttls: bool,
    /// RFC 3030.
    pub chunking: bool,
    /// RFC 3461.
    pub dsn: bool,
    /// RFC 2034.
    pub enhanced_status_codes: bool,
    /// RFC 8689.
    pub requiretls: bool,
    /// Whether `SIZE` was offered at all, so that MAIL may carry `SIZE=`.
    pub takes_size: bool,
    /// SASL mechanisms in upper case (RFC 4954), also from the old spelling `AUTH=`.
    pub mechanisms: Vec<String>,
    /// RFC 9422.
    pub limits: PeerLimits,
}

/// `LIMITS` of a peer (RFC 9422 s4); `None` where nothing usable is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerLimits {
    /// Transactions in one session.
    pub mail_max: Option<u32>,
    /// Recipients in one transaction.
    pub rcpt_max: Option<u32>,
    /// Recipient domains in one session.
    pub rcpt_domain_max: Option<u32>,
}

impl Extensions {
    /// Reads a 250 to EHLO: the first line is the peer's name, each further line one keyword.
    pub fn from_reply(reply: &Reply) -> Self {
        let mut found = Self::default();
        for line in reply.text.iter().skip(1) {
            let mut words = line.split_ascii_whitespace();
            let keyword = words.next().unwrap_or_default().to_ascii_uppercase();
            match keyword.as_str() {
                "SIZE" => {
                    found.takes_size = true;
                    found.size = words.next().and_then(|word| word.parse().ok()).filter(|size| *size > 0);
                }
                "PIPELINING" => found.pipelining = true,
                "8BITMIME" => found.eight_bit_mime = true,
                "SMTPUTF8" => found.smtputf8 = true,
                "STARTTLS" => found.starttls = true,
                "CHUNKING" => found.chunking = true,
                "DSN" => found.dsn = true,
                "ENHANCEDSTATUSCODES" => found.enhanced_status_codes = true,
                "REQUIRETLS" => found.requiretls = true,
                "LIMITS" => found.limits.read(words),
                "AUTH" => found.add_mechanisms(words),
                other => {
                    if let Some(first) = other.strip_prefix("AUTH=") {
                        found.add_mechanisms(std::iter::once(first).chain(words));
                    }
                }
            }
        }
        found
    }

    /// Whether the peer offers that SASL mechanism, given in upper case.
    pub fn offers_mechanism(&self, name: &str) -> bool {
        self.mechanisms.iter().any(|mechanism| mechanism == name)
    }

    fn add_mechanisms<'a>(&mut self, words: impl Iterator<Item = &'a str>) {
        for word in words.map(str::to_ascii_uppercase) {
            if self.mechanisms.len() < MECHANISMS_MAX && !word.is_empty() && !self.offers_mechanism(&word) {
                self.mechanisms.push(word);
            }
        }
    }
}

impl PeerLimits {
    fn read<'a>(&mut self, words: impl Iterator<Item = &'a str>) {
        for word in words {
            let Some((name, value)) = word.split_once('=') else { continue };
            // RFC 9422 s3: a limit is a positive number; anything else is as if it were not said.
            let value = value.parse::<u32>().ok().filter(|value| *value > 0);
            match name.to_ascii_uppercase().as_str() {
                "MAILMAX" => self.mail_max = value,
                "RCPTMAX" => self.rcpt_max = value,
                "RCPTDOMAINMAX" => self.rcpt_domain_max = value,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::ReplyParser;

    fn extensions(text: &str) -> Extensions {
        let reply = ReplyParser::new().parse(&mut text.as_bytes()).unwrap().unwrap();
        Extensions::from_reply(&reply)
    }

    #[test]
    fn our_own_offer_is_understood_by_our_own_client() {
        let mut bytes = Vec::new();
        let offer = Offer {
            name: "mx.example.com",
            message_bytes_max: 1000,
            recipients_max: 7,
            hold_max: Duration::from_secs(604_800),
            security: Security::Tls,
            duty: Duty::Submission,
        };
        offer.write(Timestamp(1_795_342_500_123), &mut bytes);
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.ends_with("250 FUTURERELEASE 604800 2026-11-29T10:15:00Z\r\n"), "{text}");
        let found = extensions(&text);
        assert_eq!((found.size, found.limits.rcpt_max, found.starttls), (Some(1000), Some(7), false));
        assert!(found.pipelining && found.eight_bit_mime && found.smtputf8 && found.chunking && found.dsn);
        assert_eq!(found.mechanisms, ["PLAIN", "LOGIN"]);
    }

    #[test]
    fn auth_and_requiretls_are_not_offered_before_tls_nor_starttls_after_it() {
        for (security, starttls, mechanisms) in [(Security::Plain, true, 0), (Security::Tls, false, 2)] {
            let mut bytes = Vec::new();
            let hold_max = Duration::ZERO;
            Offer { name: "a", message_bytes_max: 1, recipients_max: 1, hold_max, security, duty: Duty::Submission }
                .write(Timestamp(0), &mut bytes);
            let found = extensions(&String::from_utf8(bytes).unwrap());
            assert_eq!((found.starttls, found.mechanisms.len()), (starttls, mechanisms));
            assert_eq!(found.requiretls, !starttls, "RFC 8689 s2");
        }
    }

    #[test]
    fn the_keywords_of_peers_are_read_whatever_their_spelling() {
        let found = extensions(
            "250-PIPELINING\r\n250-size\r\n250-Starttls\r\n250-AUTH=LOGIN plain\r\n250-AUTH LOGIN\r\n250-X-ODD 1 2\r\n250 LIMITS RCPTMAX=0 MAILMAX=5 X=1 RCPTDOMAINMAX=x\r\n",
        );
        assert!(!found.pipelining, "the first line is a name, not a keyword");
        assert!(found.takes_size && found.size.is_none() && found.starttls);
        assert_eq!(found.mechanisms, ["LOGIN", "PLAIN"]);
        assert_eq!(found.limits, PeerLimits { mail_max: Some(5), rcpt_max: None, rcpt_domain_max: None });
    }
}
