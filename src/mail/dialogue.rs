//! What was said in one transaction with a receiving server, step by step, with times: as it is kept of an attempt.
//!
//! Recipe: `trace::Script` makes one of what a session says, [`Dialogue::hide`] takes the message's addresses out,
//! [`Dialogue::to_bytes`] is its stored form. Easy to get wrong: what is stored outlives the history record, so
//! where an address of the message stood there is only a place for it; whoever shows a dialogue puts those back
//! that the history record still has ([`Sent::words`]).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::address::{Address, Domain};
use super::envelope::ReversePath;
use super::masks::{Masks, without_addresses};
use super::status::{EnhancedStatus, Reply, printable_lines};

/// Octets kept of one line that was sent, and of the text of one reply.
pub const STEP_OCTETS_MAX: usize = 512;
/// Octets kept of one dialogue.
pub const DIALOGUE_OCTETS_MAX: usize = 4 * 1024;
/// What stands where something was cut off.
pub const CUT: &str = "[...]";
/// The first octet of the stored form.
const VERSION: u8 = 1;
/// Stands in the parameters of RCPT where ORCPT names the very address (RFC 3461 s4.2).
const SAME: &str = "<>";
/// Stands where a value was left out: ENVID is the client's own, and an ORCPT may name somebody.
const LEFT_OUT: &str = "...";

/// Over what something was said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Over {
    /// A connection that was opened for it: opening it is part of the dialogue.
    #[default]
    New,
    /// A connection that had carried mail before.
    Reused,
    /// None: no connection could be had, by an attempt for all mail that waited for it.
    None,
}

/// One transaction, or an attempt that did not come as far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dialogue {
    /// Over what.
    pub over: Over,
    /// In the order they were taken; RCPTs in the order of the recipients they are recorded with.
    pub steps: Vec<Step>,
    /// Steps that were left out for want of room: with hosts between the first and the last, and RCPTs behind the
    /// first ones. Where no step is left, of all that was said in one or several transactions.
    pub left_out: u16,
    /// From the first step to the end of the last one, in milliseconds.
    pub took_ms: u32,
}

/// One thing that was sent or done, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What was sent or done.
    pub sent: Sent,
    /// What came of it.
    pub heard: Heard,
    /// How long that took, in milliseconds. Of commands that were sent together (RFC 2920), the first has the time
    /// from sending to its reply, each other that from the reply before its own.
    pub took_ms: u32,
}

/// What was sent or done. The stored form numbers the variants: append at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sent {
    /// Connecting to this host and address; empty if the outcome names them.
    Connecting(String),
    /// The handshake of TLS.
    Handshake,
    /// Nothing: the peer speaks first.
    Greeting,
    /// This line.
    Line(String),
    /// `MAIL FROM:` with the message's reverse-path and these parameters.
    Mail(String),
    /// The same with the return-path of ours for the first recipient.
    MailReturn(String),
    /// `RCPT TO:` with the address of the next recipient and these parameters.
    Rcpt(String),
    /// The message.
    Text,
    /// The final dot.
    Dot,
    /// Nothing, and the peer spoke.
    Nothing,
}

/// What came of a step. The stored form numbers the variants: append at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Heard {
    /// Nothing, and nobody waited for it any more.
    Nothing,
    /// It went well, and nothing is said to it.
    Done,
    /// A reply: its code, its enhanced status, its lines with LF between them.
    Reply(u16, Option<EnhancedStatus>, String),
    /// The reply with which the recipients' delivery is recorded.
    Outcome,
    /// It went wrong, in our words.
    Failed(String),
}

/// The addresses of a message that stand in its dialogues.
pub struct Named<'a> {
    /// Its reverse-path.
    pub reverse_path: &'a ReversePath,
    /// The name of its return-paths, if it has some.
    pub return_name: Option<&'a Domain>,
    /// The recipients of the transaction, in the order of their RCPTs.
    pub recipients: &'a [&'a Address],
}

impl Heard {
    /// As much of a reply as is kept in `room` octets.
    pub fn reply(reply: &Reply, room: usize) -> Self {
        let whole = reply.text.join("\n");
        Self::Reply(reply.code.0, reply.status, cut(&whole, room.min(STEP_OCTETS_MAX)))
    }

    /// Whether it may quote somebody.
    fn may_quote(&self) -> bool {
        matches!(self, Self::Reply(_, _, text) | Self::Failed(text) if text.contains('@'))
    }

    /// Octets of its text.
    pub fn octets(&self) -> usize {
        match self {
            Self::Reply(_, _, text) | Self::Failed(text) => text.len(),
            Self::Nothing | Self::Done | Self::Outcome => 0,
        }
    }
}

impl Sent {
    /// With the addresses of those whom `named` still knows: the wire line, or in words what was done. `number` is
    /// the place of an RCPT among those of the dialogue.
    pub fn words(&self, number: usize, named: &dyn Fn(Place) -> String) -> String {
        match self {
            Self::Connecting(to) => to.clone(),
            Self::Handshake | Self::Greeting | Self::Text | Self::Nothing => String::new(),
            Self::Line(line) => line.clone(),
            Self::Dot => ".".to_owned(),
            Self::Mail(parameters) => format!("MAIL FROM:<{}>{parameters}", named(Place::ReversePath)),
            Self::MailReturn(parameters) => format!("MAIL FROM:<{}>{parameters}", named(Place::ReturnPath)),
            Self::Rcpt(parameters) => {
                let address = named(Place::Recipient(number));
                let same = parameters.replace(SAME, &address.replace('+', "+2B").replace('=', "+3D"));
                format!("RCPT TO:<{address}>{same}")
            }
        }
    }

    fn octets(&self) -> usize {
        match self {
            Self::Connecting(text) | Self::Line(text) => text.len(),
            Self::Mail(text) | Self::MailReturn(text) | Self::Rcpt(text) => text.len(),
            Self::Handshake | Self::Greeting | Self::Text | Self::Dot | Self::Nothing => 0,
        }
    }

    /// The same line without the message's addresses.
    fn hidden(&self, rcpt: &mut usize, (named, masks): (&Named<'_>, &Masks)) -> Self {
        let Self::Line(line) = self else { return self.clone() };
        if line.starts_with("MAIL FROM:")
            && let Some((by_return, rest)) = named.after_mail(line)
        {
            let parameters = unnamed(&without_value(rest, "ENVID="), masks);
            return if by_return { Self::MailReturn(parameters) } else { Self::Mail(parameters) };
        }
        if let Some(path) = line.strip_prefix("RCPT TO:") {
            let address = named.recipients.get(*rcpt).map(ToString::to_string).unwrap_or_default();
            *rcpt = rcpt.saturating_add(1);
            let bare = path.strip_prefix('<').and_then(|path| path.strip_prefix(&address));
            if let Some(rest) = bare.and_then(|rest| rest.strip_prefix('>')) {
                return Self::Rcpt(unnamed(&own_orcpt(rest, &address), masks));
            }
            // It was cut, or it is not who is thought to be meant: nobody is named then.
            return Self::Line(format!("RCPT TO:<{CUT}>"));
        }
        if line.starts_with("MAIL FROM:") {
            return Self::Line(format!("MAIL FROM:<{CUT}>"));
        }
        Self::Line(unnamed(line, masks))
    }
}

/// Whose address stands in a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The message's reverse-path.
    ReversePath,
    /// The return-path of ours for the first recipient of the transaction.
    ReturnPath,
    /// The recipient at this place in the transaction.
    Recipient(usize),
}

impl Named<'_> {
    /// What comes behind the address of a MAIL, and whether that is a return-path of ours.
    fn after_mail<'l>(&self, line: &'l str) -> Option<(bool, &'l str)> {
        let path = line.strip_prefix("MAIL FROM:")?;
        match self.return_name {
            Some(name) => {
                let (address, rest) = path.strip_prefix('<')?.split_once('>')?;
                let (_, domain) = address.rsplit_once('@')?;
                (domain == name.as_str()).then_some((true, rest))
            }
            None => path.strip_prefix(&self.reverse_path.to_string()).map(|rest| (false, rest)),
        }
    }
}

impl Dialogue {
    /// Whether somebody's address may stand in a reply.
    pub fn may_quote(&self) -> bool {
        self.steps.iter().any(|step| step.heard.may_quote())
    }

    /// Keeps how many steps there were, and none of them.
    pub fn leave_out(&mut self) {
        let count = u16::try_from(self.steps.len()).unwrap_or(u16::MAX);
        self.left_out = self.left_out.saturating_add(count);
        self.steps.clear();
    }

    /// Whether no step of it is kept.
    pub fn is_left_out(&self) -> bool {
        self.steps.is_empty() && self.left_out > 0
    }

    /// Octets of its lines and replies.
    pub fn octets(&self) -> usize {
        self.steps.iter().map(|step| step.sent.octets().saturating_add(step.heard.octets())).sum()
    }

    /// The same without the addresses of the message: with places for them in what we sent, and with words for them
    /// in what the peer said.
    #[must_use]
    pub fn hide(&self, named: &Named<'_>, masks: &Masks) -> Self {
        let mut rcpt = 0;
        let steps = self.steps.iter().map(|step| {
            let heard = match &step.heard {
                Heard::Reply(code, status, text) => Heard::Reply(*code, *status, masks.apply(text).into_owned()),
                Heard::Failed(text) => Heard::Failed(masks.apply(text).into_owned()),
                other => other.clone(),
            };
            Step { sent: step.sent.hidden(&mut rcpt, (named, masks)), heard, took_ms: step.took_ms }
        });
        Self { steps: steps.collect(), ..self.clone() }
    }

    /// Leaves out what the record of a delivery by `host` at `address` with this reply says itself.
    pub fn shorten(&mut self, (host, address): (&str, &str), reply: &Reply) {
        if let Some(last) = self.steps.last_mut()
            && last.sent == Sent::Dot
            && last.heard == Heard::reply(reply, STEP_OCTETS_MAX)
        {
            last.heard = Heard::Outcome;
        }
        for step in &mut self.steps {
            if let (Sent::Connecting(to), Heard::Done) = (&mut step.sent, &step.heard)
                && *to == reached(host, address)
            {
                to.clear();
            }
        }
    }

    /// As it is stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Strings and numbers only: there is nothing that postcard cannot write.
        postcard::to_extend(self, vec![VERSION]).unwrap_or_default()
    }

    /// Reads [`Dialogue::to_bytes`]; `None` if it was made by a later release, or is damaged.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first() {
            Some((&VERSION, rest)) => match postcard::take_from_bytes(rest) {
                Ok((dialogue, [])) => Some(dialogue),
                _ => None,
            },
            _ => None,
        }
    }
}

/// How a host that is connected to is called.
pub fn reached(host: &str, address: &str) -> String {
    format!("{host} {address}")
}

/// At most so many octets of `text`, printable but for its line ends, with a mark where more was cut off. No word is
/// cut in two: of half an address nobody could tell any more that it is one.
pub fn cut(text: &str, octets_max: usize) -> String {
    if text.len() <= octets_max {
        return printable_lines(text);
    }
    let room = octets_max.saturating_sub(CUT.len());
    let end = (0..=room).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let kept = text.get(..end).unwrap_or_default();
    let whole = kept.rfind(is_between_words).map_or("", |last| kept.get(..last).unwrap_or_default());
    // A local part in quotes may have blanks (RFC 5321 s4.1.2).
    let is_quoted = whole.matches('"').count() % 2 == 1;
    let whole = whole.rsplit_once('"').filter(|_| is_quoted).map_or(whole, |(before, _)| before);
    format!("{}{CUT}", printable_lines(whole))
}

/// Whether no address goes on over it, but for blanks in quotes.
fn is_between_words(character: char) -> bool {
    character.is_whitespace() || matches!(character, '<' | '>' | '(' | ')' | '[' | ']' | ':' | ';' | ',')
}

/// `text` without anybody's address.
fn unnamed(text: &str, masks: &Masks) -> String {
    without_addresses(&masks.apply(text)).into_owned()
}

/// `parameters` with dots for the value of the one that begins with `name`.
fn without_value(parameters: &str, name: &str) -> String {
    let words = parameters.split(' ').map(|word| match word.strip_prefix(name) {
        Some(_) => format!("{name}{LEFT_OUT}"),
        None => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// The parameters of an RCPT: where ORCPT says the very address, a place for it; where it says another, dots.
fn own_orcpt(parameters: &str, address: &str) -> String {
    let words =
        parameters.split(' ').map(|word| match word.strip_prefix("ORCPT=").and_then(|own| own.split_once(';')) {
            Some((kind, said)) if said.replace("+2B", "+").replace("+3D", "=") == address => {
                format!("ORCPT={kind};{SAME}")
            }
            Some((kind, _)) => format!("ORCPT={kind};{LEFT_OUT}"),
            None => word.to_owned(),
        });
    words.collect::<Vec<_>>().join(" ")
}

/// A dialogue as events hold it: read only by whoever asks for it.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredDialogue(Vec<u8>);

impl StoredDialogue {
    /// Without addresses, see [`Dialogue::hide`].
    pub fn of(dialogue: &Dialogue) -> Self {
        Self(dialogue.to_bytes())
    }

    /// What was said; `None` if a later release stored it, or it is damaged.
    pub fn read(&self) -> Option<Dialogue> {
        Dialogue::from_bytes(&self.0)
    }

    /// Octets.
    pub fn octets(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Debug for StoredDialogue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "StoredDialogue({:?})", self.read())
    }
}

impl Serialize for StoredDialogue {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for StoredDialogue {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Octets;
        impl serde::de::Visitor<'_> for Octets {
            type Value = Vec<u8>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("octets")
            }

            fn visit_bytes<E>(self, octets: &[u8]) -> Result<Vec<u8>, E> {
                Ok(octets.to_vec())
            }

            fn visit_byte_buf<E>(self, octets: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(octets)
            }
        }
        deserializer.deserialize_byte_buf(Octets).map(Self)
    }
}

#[cfg(test)]
#[path = "dialogue_tests.rs"]
mod tests;
