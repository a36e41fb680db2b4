//! What a sender attaches to a message for itself: tags to count by, and metadata it gets back with every
//! event. Recipients never see them. Pure.
//!
//! Easy to get wrong: they come from whoever sends and are kept and shown for long, so number and length are
//! bounded and nothing but printable text gets in.

use serde::{Deserialize, Serialize};

/// Tags of a message, at most.
pub const TAGS_MAX: usize = 10;
/// Octets of a tag, at most.
pub const TAG_OCTETS_MAX: usize = 128;
/// Pairs of metadata of a message, at most.
pub const METADATA_MAX: usize = 20;
/// Octets of a name in metadata, at most.
pub const METADATA_NAME_OCTETS_MAX: usize = 64;
/// Octets of a value in metadata, at most.
pub const METADATA_VALUE_OCTETS_MAX: usize = 512;

/// Another service whose header fields say the same as ours, so that who moves here changes the host name and
/// nothing else. Append new variants at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum HeaderDialect {
    /// `X-Mailgun-*`.
    Mailgun,
    /// `X-PM-*`.
    Postmark,
    /// `X-SMTPAPI`.
    Sendgrid,
    /// `X-Postal-Tag`, `X-AMP`.
    Postal,
    /// `X-MAILTAGS`, `X-TAGS`.
    Emaillabs,
}

impl HeaderDialect {
    /// Every one of them.
    pub const ALL: &[Self] = &[Self::Mailgun, Self::Postmark, Self::Sendgrid, Self::Postal, Self::Emaillabs];

    /// Its name in the API and on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Mailgun => "mailgun",
            Self::Postmark => "postmark",
            Self::Sendgrid => "sendgrid",
            Self::Postal => "postal",
            Self::Emaillabs => "emaillabs",
        }
    }

    /// The one of that name.
    pub fn called(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|dialect| dialect.word() == word)
    }
}

/// Tags and metadata of one message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels {
    tags: Vec<String>,
    metadata: Vec<(String, String)>,
}

/// Why a label was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// Too many tags.
    #[error("a message has at most {TAGS_MAX} tags")]
    Tags,
    /// A tag that is empty, too long or not printable.
    #[error("a tag is 1 to {TAG_OCTETS_MAX} octets of printable text without commas")]
    Tag,
    /// Too many pairs.
    #[error("a message has at most {METADATA_MAX} pairs of metadata")]
    Pairs,
    /// A name that is none.
    #[error("a name in metadata is 1 to {METADATA_NAME_OCTETS_MAX} letters, digits, - _ or .")]
    Name,
    /// A value that is too long or not printable.
    #[error("a value in metadata is at most {METADATA_VALUE_OCTETS_MAX} octets of printable text")]
    Value,
}

impl Labels {
    /// The tags, in the order they were given, each once.
    pub fn tags(&self) -> &[String] {
        &self.tags
    }

    /// The metadata, in the order it was given; names are unique and in lower case.
    pub fn metadata(&self) -> &[(String, String)] {
        &self.metadata
    }

    /// Adds a tag; one that is there already changes nothing.
    pub fn tag(&mut self, text: &str) -> Result<(), LabelError> {
        let text = text.trim();
        if text.is_empty() || text.len() > TAG_OCTETS_MAX || !is_printable(text) || text.contains(',') {
            return Err(LabelError::Tag);
        }
        if self.tags.iter().any(|tag| tag == text) {
            return Ok(());
        }
        if self.tags.len() >= TAGS_MAX {
            return Err(LabelError::Tags);
        }
        self.tags.push(text.to_owned());
        Ok(())
    }

    /// Gives a name a value; the last one counts. Names are compared in lower case, since header fields
    /// come in any.
    pub fn describe(&mut self, name: &str, value: &str) -> Result<(), LabelError> {
        let is_name_character = |octet: u8| octet.is_ascii_alphanumeric() || b"-_.".contains(&octet);
        if !(1..=METADATA_NAME_OCTETS_MAX).contains(&name.len()) || !name.bytes().all(is_name_character) {
            return Err(LabelError::Name);
        }
        let value = value.trim();
        if value.len() > METADATA_VALUE_OCTETS_MAX || !is_printable(value) {
            return Err(LabelError::Value);
        }
        let name = name.to_ascii_lowercase();
        if let Some((_, old)) = self.metadata.iter_mut().find(|(known, _)| *known == name) {
            value.clone_into(old);
            return Ok(());
        }
        if self.metadata.len() >= METADATA_MAX {
            return Err(LabelError::Pairs);
        }
        self.metadata.push((name, value.to_owned()));
        Ok(())
    }

    /// The same without metadata, which may be about a person.
    #[must_use]
    pub fn without_metadata(self) -> Self {
        Self { tags: self.tags, metadata: Vec::new() }
    }
}

fn is_printable(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_kept_once_in_order_and_bounded() {
        let mut labels = Labels::default();
        for tag in ["order", " newsletter ", "order", "größe"] {
            labels.tag(tag).unwrap();
        }
        assert_eq!(labels.tags(), ["order", "newsletter", "größe"]);
        let long = "x".repeat(TAG_OCTETS_MAX + 1);
        for wrong in ["", "  ", "a,b", "a\r\nb", &long] {
            assert_eq!(labels.tag(wrong), Err(LabelError::Tag), "{wrong:?}");
        }
        (3..TAGS_MAX).for_each(|number| labels.tag(&number.to_string()).unwrap());
        assert_eq!(labels.tag("one more"), Err(LabelError::Tags));
        assert_eq!(labels.tag("order"), Ok(()), "one that is there is no further one");
    }

    #[test]
    fn metadata_has_one_value_a_name_in_any_case() {
        let mut labels = Labels::default();
        labels.describe("Order-Id", "1").unwrap();
        labels.describe("order-id", "2").unwrap();
        assert_eq!(labels.metadata(), [("order-id".to_owned(), "2".to_owned())]);
        assert_eq!(labels.describe("a b", "x"), Err(LabelError::Name));
        assert_eq!(labels.describe("", "x"), Err(LabelError::Name));
        assert_eq!(labels.describe("a", "x\ny"), Err(LabelError::Value));
        assert_eq!(labels.describe("a", &"x".repeat(METADATA_VALUE_OCTETS_MAX + 1)), Err(LabelError::Value));
        (1..METADATA_MAX).for_each(|number| labels.describe(&number.to_string(), "x").unwrap());
        assert_eq!(labels.describe("further", "x"), Err(LabelError::Pairs));
        assert!(labels.without_metadata().metadata().is_empty());
    }
}
