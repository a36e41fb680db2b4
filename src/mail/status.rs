//! What SMTP says: reply codes (RFC 5321 s4.2), enhanced status codes (RFC 3463), whole replies.
//! Severity is read from the code and stored nowhere.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::masks::without_addresses;

/// A three-digit reply code, 200 to 599 (RFC 5321 s4.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplyCode(pub u16);

/// Which way the first digit points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// 2xx and 3xx.
    Success,
    /// 4xx: the same may succeed later.
    Transient,
    /// 5xx: do not repeat it.
    Permanent,
}

/// An enhanced status code `class.subject.detail` (RFC 3463, RFC 5248).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EnhancedStatus {
    /// 2, 4 or 5.
    pub class: u8,
    /// 0 to 999.
    pub subject: u16,
    /// 0 to 999.
    pub detail: u16,
}

impl EnhancedStatus {
    /// `class.subject.detail` as given.
    pub const fn new(class: u8, subject: u16, detail: u16) -> Self {
        Self { class, subject, detail }
    }

    /// Reads the code that opens `text`, and what follows it.
    pub fn split_from(text: &str) -> Option<(Self, &str)> {
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        let mut parts = word.split('.');
        let class = parts.next()?;
        let (subject, detail) = (parts.next()?, parts.next()?);
        let small = |digits: &str| {
            (1..=3).contains(&digits.len()).then_some(())?;
            digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse::<u16>().ok())?
        };
        if parts.next().is_some() || !matches!(class, "2" | "4" | "5") {
            return None;
        }
        Some((Self { class: class.parse().ok()?, subject: small(subject)?, detail: small(detail)? }, rest))
    }
}

impl fmt::Display for EnhancedStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

/// One whole reply: the code, the enhanced status if there is one, and every line of text.
///
/// The text holds no CR, LF or NUL; [`Reply::new`] and the parser see to that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The three digits.
    pub code: ReplyCode,
    /// The enhanced status, if the reply carried one.
    pub status: Option<EnhancedStatus>,
    /// The lines, without code and without enhanced status.
    pub text: Vec<String>,
}

impl Reply {
    /// A reply of one line. Control characters in `text` become `?`, so nothing can be injected.
    pub fn new(code: u16, status: Option<EnhancedStatus>, text: impl AsRef<str>) -> Self {
        Self { code: ReplyCode(code), status, text: vec![printable(text.as_ref())] }
    }

    /// A reply with an enhanced status whose class is the code's first digit.
    pub fn enhanced(code: u16, subject: u16, detail: u16, text: impl AsRef<str>) -> Self {
        let class = u8::try_from(code / 100).unwrap_or(5);
        Self::new(code, Some(EnhancedStatus::new(class, subject, detail)), text)
    }

    /// Whether the peer did what it was asked: a positive completion reply (RFC 5321 s4.2.1). A 3xx is none, it asks
    /// for more.
    pub fn is_completion(&self) -> bool {
        self.code.0 / 100 == 2
    }

    /// Where the first digit points.
    pub fn severity(&self) -> Severity {
        match self.code.0 {
            ..400 => Severity::Success,
            400..500 => Severity::Transient,
            _ => Severity::Permanent,
        }
    }

    /// The reply as it was said, for the trail and for notices: each line with code and status
    /// (RFC 2034 s4), LF between them.
    pub fn whole(&self) -> String {
        let status = self.status.map(|status| format!("{status} ")).unwrap_or_default();
        let last = self.text.len().saturating_sub(1);
        let line = |(number, text): (usize, &String)| {
            let mark = if number == last { ' ' } else { '-' };
            format!("{}{mark}{status}{text}", self.code.0)
        };
        match self.text.is_empty() {
            true => self.one_line(),
            false => self.text.iter().enumerate().map(line).collect::<Vec<_>>().join("\n"),
        }
    }

    /// The same with `[...]` wherever one of these secrets stands in its text.
    #[must_use]
    pub fn hiding(mut self, secrets: &[&str]) -> Self {
        for line in &mut self.text {
            for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
                *line = line.replace(secret, "[...]");
            }
        }
        self
    }

    /// The reply on one line, for where there is room for no more.
    pub fn one_line(&self) -> String {
        let text = self.text.join(" ");
        match self.status {
            Some(status) => format!("{} {status} {text}", self.code.0),
            None => format!("{} {text}", self.code.0),
        }
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.one_line())
    }
}

/// Why something was not accepted: `reply` is for the peer, `cause` for the log only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the peer is told; says what the sender can do.
    pub reply: Reply,
    /// What happened inside; never leaves the log.
    pub cause: String,
    /// What `reply` repeats of the message's own text; see [`Refusal::kept_reply`].
    pub quoted: Option<String>,
}

impl Refusal {
    /// A refusal whose cause is the reply's own text.
    pub fn plain(reply: Reply) -> Self {
        let cause = reply.one_line();
        Self { reply, cause, quoted: None }
    }

    /// A refusal whose reply repeats `quoted`, a part of the message, so that its sender finds the place.
    pub fn quoting(reply: Reply, quoted: impl AsRef<str>) -> Self {
        let quoted = Some(printable(quoted.as_ref())).filter(|quoted| !quoted.is_empty());
        let mut refusal = Self { reply, cause: String::new(), quoted };
        refusal.cause = refusal.kept_reply();
        refusal
    }

    /// A refusal with an inner cause that the peer is not shown.
    pub fn with_cause(reply: Reply, cause: impl fmt::Display) -> Self {
        Self { reply, cause: cause.to_string(), quoted: None }
    }

    /// The reply on one line as an event keeps it: without what it repeats of the message, and
    /// without addresses. A refused message has no record that could be erased later.
    pub fn kept_reply(&self) -> String {
        let said = self.reply.one_line();
        let said = self.quoted.as_ref().map_or_else(|| said.clone(), |quoted| said.replace(quoted, "..."));
        without_addresses(&said).into_owned()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({})", self.reply, self.cause)
    }
}

/// `text` with every control character replaced by `?`: safe in a reply, a header, a log line.
pub fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '?' } else { character }).collect()
}

/// The same with its line ends left: for texts that quote replies of several lines.
pub fn printable_lines(text: &str) -> String {
    text.chars().map(|character| if character.is_control() && character != '\n' { '?' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_enhanced_status_is_read_and_written() {
        let read = EnhancedStatus::split_from("5.1.10 no such host");
        assert_eq!(read, Some((EnhancedStatus::new(5, 1, 10), "no such host")));
        for text in ["3.1.1 x", "5.1 x", "5.1.1.1 x", "5..1 x", "5.1.1000 x", "hello"] {
            assert_eq!(EnhancedStatus::split_from(text), None, "{text}");
        }
    }

    #[test]
    fn a_reply_of_several_lines_is_kept_as_it_was_said() {
        let reply = Reply {
            code: ReplyCode(550),
            status: Some(EnhancedStatus::new(5, 7, 26)),
            text: vec!["Your mail is unauthenticated.".to_owned(), String::new(), "See https://x.example/".to_owned()],
        };
        assert_eq!(
            reply.whole(),
            "550-5.7.26 Your mail is unauthenticated.\n550-5.7.26 \n550 5.7.26 See https://x.example/"
        );
        let short = Reply::new(421, None, "bye");
        assert_eq!(short.whole(), short.one_line());
        assert_eq!(Reply { code: ReplyCode(354), status: None, text: Vec::new() }.whole(), "354 ");
        assert_eq!(printable_lines("a\nb\r\x1bc"), "a\nb??c");
    }

    #[test]
    fn nothing_can_be_injected_through_the_text_of_a_reply() {
        assert_eq!(Reply::enhanced(550, 7, 1, "a\r\n250 b").one_line(), "550 5.7.1 a??250 b");
    }

    #[test]
    fn what_is_kept_of_a_refusal_repeats_nothing_of_the_message() {
        let text = "the From field has no address: Ann Example a@x.example\r; write it as From: Name <address>";
        let refusal = Refusal::quoting(Reply::enhanced(550, 7, 1, text), "Ann Example a@x.example\r");
        assert!(refusal.reply.one_line().contains(": Ann Example a@x.example?; write"));
        let kept = "550 5.7.1 the From field has no address: ...; write it as From: Name <address>";
        assert_eq!((refusal.kept_reply().as_str(), refusal.cause.as_str()), (kept, kept));
        let plain = Refusal::plain(Reply::enhanced(550, 7, 1, "no mail from b@x.example"));
        assert_eq!(plain.kept_reply(), "550 5.7.1 no mail from <address>");
        let nothing = Refusal::quoting(Reply::enhanced(550, 7, 1, "no"), "");
        assert_eq!(nothing.kept_reply(), "550 5.7.1 no");
    }

    #[test]
    fn severity_follows_the_first_digit() {
        assert_eq!(Reply::new(354, None, "").severity(), Severity::Success);
        let completes = |code| Reply::new(code, None, "").is_completion();
        assert_eq!([199, 200, 299, 354, 450, 550].map(completes), [false, true, true, false, false, false]);
        assert_eq!(Reply::new(421, None, "").severity(), Severity::Transient);
        assert_eq!(Reply::new(554, None, "").severity(), Severity::Permanent);
    }
}
