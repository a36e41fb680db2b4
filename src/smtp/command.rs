//! Commands of a client (RFC 5321 s4.1): the smtp-proto crate's parser behind our own type.
//!
//! The crate recognises verbs and their simple arguments. Paths and parameters are read here,
//! because the crate strips the quotes of local parts, so that a local part could carry a fake
//! parameter, and repairs broken xtext. Easy to get wrong: a line comes without its CR LF and
//! must hold no other control character; the caller never passes a line that ended otherwise.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use smtp_proto::{AUTH_LOGIN, AUTH_PLAIN, Request};
use zeroize::Zeroizing;

use crate::ext::Timestamp;
use crate::mail::{
    Address, AddressError, BodyType, Domain, ForwardPath, Hold, MailParameters, Notify, Reply, RequireTls, Ret,
    ReversePath, Smtputf8, printable,
};

/// Octets of `ENVID`, decoded, at most (RFC 3461 s4.4).
const ENVID_OCTETS_MAX: usize = 100;
/// Octets of the address of `ORCPT`, decoded, at most (RFC 3461 s4.2: 500 with everything).
const ORCPT_OCTETS_MAX: usize = 450;

/// The one mailbox that may be named without a domain, in any case.
const POSTMASTER: &str = "postmaster";

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `EHLO`, with what the client calls itself, printable.
    Ehlo(String),
    /// `HELO`, likewise: no extensions.
    Helo(String),
    /// `STARTTLS` (RFC 3207).
    StartTls,
    /// `AUTH` (RFC 4954).
    Auth {
        /// Which mechanism.
        mechanism: Mechanism,
        /// The initial response in base64, `=` for an empty one.
        initial: Option<InitialResponse>,
    },
    /// `MAIL FROM`.
    Mail(MailCommand),
    /// `RCPT TO`.
    Rcpt(ForwardPath),
    /// `DATA`.
    Data,
    /// `BDAT` (RFC 3030).
    Bdat {
        /// Octets that follow the line.
        octets: u64,
        /// Whether this chunk ends the message.
        last: bool,
    },
    /// `RSET`.
    Rset,
    /// `NOOP`.
    Noop,
    /// `VRFY`.
    Vrfy,
    /// `EXPN`.
    Expn,
    /// `HELP`.
    Help,
    /// `QUIT`.
    Quit,
}

/// The initial response of `AUTH` in base64: login and password, so never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct InitialResponse(Zeroizing<String>);

impl InitialResponse {
    /// As the client wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for InitialResponse {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl fmt::Debug for InitialResponse {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("InitialResponse(..)")
    }
}

/// A SASL mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// RFC 4616.
    Plain,
    /// The old two-question mechanism that many clients still prefer.
    Login,
    /// Anything else: 504.
    Other,
}

/// `MAIL FROM` with its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailCommand {
    /// The address.
    pub reverse_path: ReversePath,
    /// `SIZE=`, in octets.
    pub size: Option<u64>,
    /// The parameters that the envelope keeps. `AUTH=` is checked and not kept: we are the
    /// first to know the sender (RFC 4954 s5).
    pub parameters: MailParameters,
}

/// Why a line is not a command that we know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// No such verb.
    #[error("unknown command")]
    Unknown,
    /// A verb of SMTP that we do not implement.
    #[error("not implemented")]
    NotImplemented,
    /// A control character, or text that is not UTF-8.
    #[error("control character")]
    Characters,
    /// The arguments are not those of that verb; holds how it is written.
    #[error("write {0}")]
    Syntax(&'static str),
    /// The path cannot be used.
    #[error("{1}")]
    Path(Side, PathError),
    /// A parameter's value is wrong or given twice; holds its name.
    #[error("parameter {0}")]
    Parameter(&'static str),
    /// A parameter that we did not offer.
    #[error("unknown parameter {0}")]
    UnknownParameter(String),
}

/// Which address is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// MAIL.
    Sender,
    /// RCPT.
    Recipient,
}

/// Why a path cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// `<@a,@b:c@d>` (RFC 5321 s4.1.1.3 lets us refuse it).
    #[error("source routes are not accepted here")]
    SourceRoute,
    /// See [`AddressError`].
    #[error(transparent)]
    Address(#[from] AddressError),
}

impl CommandError {
    /// What the client is told.
    pub fn reply(&self) -> Reply {
        match self {
            Self::Unknown => Reply::enhanced(500, 5, 1, "Command not recognised"),
            Self::NotImplemented => Reply::enhanced(502, 5, 1, "Command not implemented"),
            Self::Characters => Reply::enhanced(500, 5, 2, "A command is UTF-8 without control characters"),
            Self::Syntax(how) => Reply::enhanced(501, 5, 4, format!("Syntax: {how}")),
            Self::Path(Side::Sender, why) => Reply::enhanced(553, 1, 7, format!("Sender address: {why}")),
            Self::Path(Side::Recipient, why) => Reply::enhanced(553, 1, 3, format!("Recipient address: {why}")),
            Self::Parameter(name) => Reply::enhanced(501, 5, 4, format!("The value of {name} cannot be used")),
            Self::UnknownParameter(name) => Reply::enhanced(555, 5, 4, format!("Parameter {name} is not supported")),
        }
    }
}

impl Command {
    /// Reads one line, given without its CR LF, by the server called `here`.
    pub fn parse(line: &[u8], here: &Domain) -> Result<Self, CommandError> {
        if line.iter().any(|byte| (*byte < 32 && *byte != b'\t') || *byte == 127) {
            return Err(CommandError::Characters);
        }
        let line = std::str::from_utf8(line).map_err(|_| CommandError::Characters)?;
        let line = line.trim_end_matches([' ', '\t']);
        let (verb, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        let rest = rest.trim_start_matches([' ', '\t']);
        match verb.as_bytes() {
            verb if verb.eq_ignore_ascii_case(b"MAIL") => mail(rest).map(Self::Mail),
            verb if verb.eq_ignore_ascii_case(b"RCPT") => rcpt(rest, here).map(Self::Rcpt),
            _ => simple(verb, rest),
        }
    }
}

/// Every verb but MAIL and RCPT, over the crate, from one canonical spelling of the line.
fn simple(verb: &str, rest: &str) -> Result<Command, CommandError> {
    let canonical = format!("{verb}{}{rest}\r\n", if rest.is_empty() { "" } else { " " });
    let request = match Request::parse(&mut canonical.as_bytes().iter()) {
        Ok(request) => request,
        Err(smtp_proto::Error::SyntaxError { syntax }) => return Err(CommandError::Syntax(syntax)),
        Err(_) => return Err(CommandError::Unknown),
    };
    let bare = |command: Command, how: &'static str| {
        if rest.is_empty() { Ok(command) } else { Err(CommandError::Syntax(how)) }
    };
    match request {
        Request::Ehlo { host } => Ok(Command::Ehlo(printable(&host))),
        Request::Helo { host } => Ok(Command::Helo(printable(&host))),
        Request::StartTls => bare(Command::StartTls, "STARTTLS"),
        Request::Auth { mechanism, initial_response } => {
            let mechanism = match mechanism {
                AUTH_PLAIN => Mechanism::Plain,
                AUTH_LOGIN => Mechanism::Login,
                _ => Mechanism::Other,
            };
            let initial = (!initial_response.is_empty()).then(|| InitialResponse::from(initial_response.into_owned()));
            if mechanism != Mechanism::Other && rest.split_ascii_whitespace().nth(2).is_some() {
                return Err(CommandError::Syntax("AUTH mechanism [initial-response]"));
            }
            Ok(Command::Auth { mechanism, initial })
        }
        Request::Data => bare(Command::Data, "DATA"),
        Request::Bdat { .. } => bdat(rest),
        Request::Rset => bare(Command::Rset, "RSET"),
        Request::Noop { .. } => Ok(Command::Noop),
        Request::Vrfy { .. } => Ok(Command::Vrfy),
        Request::Expn { .. } => Ok(Command::Expn),
        Request::Help { .. } => Ok(Command::Help),
        Request::Quit => bare(Command::Quit, "QUIT"),
        Request::Lhlo { .. } | Request::Etrn { .. } | Request::Atrn { .. } | Request::Burl { .. } => {
            Err(CommandError::NotImplemented)
        }
        Request::Mail { .. } | Request::Rcpt { .. } => Err(CommandError::Unknown),
    }
}

/// The arguments of BDAT, read exactly: the crate wraps a size that does not fit.
fn bdat(rest: &str) -> Result<Command, CommandError> {
    let wrong = CommandError::Syntax("BDAT chunk-size [LAST]");
    let mut words = rest.split_ascii_whitespace();
    let octets = words.next().and_then(|word| number(word, 19)).ok_or(wrong.clone())?;
    let last = match words.next() {
        None => false,
        Some(word) if word.eq_ignore_ascii_case("LAST") => true,
        Some(_) => return Err(wrong),
    };
    if words.next().is_some() { Err(wrong) } else { Ok(Command::Bdat { octets, last }) }
}

/// Cuts `KEYWORD:` (any case, spaces before and after the colon) and `<path>` off `text`: what
/// stands between the angle brackets, and the parameters.
fn path<'a>(text: &'a str, keyword: &str, how: &'static str) -> Result<(&'a str, &'a str), CommandError> {
    let wrong = CommandError::Syntax(how);
    let (word, rest) = text.split_once(':').ok_or(wrong.clone())?;
    if !word.trim_end().eq_ignore_ascii_case(keyword) {
        return Err(wrong);
    }
    // RFC 5321 s3.3 forbids a space after the colon; many clients send one all the same.
    let rest = rest.trim_start().strip_prefix('<').ok_or(wrong.clone())?;
    let (mut quoted, mut escaped) = (false, false);
    for (at, character) in rest.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '>' if !quoted => {
                let (inner, after) = rest.split_at(at);
                let after = after.strip_prefix('>').unwrap_or_default();
                if !after.is_empty() && !after.starts_with([' ', '\t']) {
                    return Err(wrong);
                }
                return Ok((inner.trim_matches(' '), after));
            }
            _ => {}
        }
    }
    Err(wrong)
}

fn address(text: &str, side: Side) -> Result<Address, CommandError> {
    let refused = |why: PathError| CommandError::Path(side, why);
    if text.starts_with('@') {
        return Err(refused(PathError::SourceRoute));
    }
    Address::parse(text).map_err(|why| refused(why.into()))
}

const MAIL_SYNTAX: &str = "MAIL FROM:<address> [parameters]";
const RCPT_SYNTAX: &str = "RCPT TO:<address> [parameters]";

fn mail(text: &str) -> Result<MailCommand, CommandError> {
    let (inner, rest) = path(text, "FROM", MAIL_SYNTAX)?;
    let reverse_path = ReversePath(if inner.is_empty() { None } else { Some(address(inner, Side::Sender)?) });
    let mut mail = MailCommand { reverse_path, size: None, parameters: MailParameters::default() };
    let mut seen = Seen::default();
    for word in rest.split_ascii_whitespace() {
        let (name, value) = parameter(word);
        let kept = &mut mail.parameters;
        match name.as_ref() {
            "SIZE" => mail.size = Some(seen.value("SIZE", value.and_then(|value| number(value, 20)))?),
            "BODY" => kept.body = seen.value("BODY", value.and_then(body_type))?,
            "SMTPUTF8" => kept.smtputf8 = seen.value("SMTPUTF8", value.is_none().then_some(Smtputf8::Needed))?,
            "REQUIRETLS" => {
                kept.require_tls = seen.value("REQUIRETLS", value.is_none().then_some(RequireTls::Asked))?;
            }
            "RET" => kept.ret = Some(seen.value("RET", value.and_then(ret))?),
            "ENVID" => {
                let envid = value.and_then(|value| xtext_within(value, ENVID_OCTETS_MAX));
                kept.envid = Some(seen.value("ENVID", envid)?);
            }
            "AUTH" => {
                // Checked for its form only: `<>` or an address in xtext.
                seen.value("AUTH", value.and_then(|value| xtext_within(value, ORCPT_OCTETS_MAX)))?;
            }
            // RFC 4865 s4: one of the two, so they share a name here.
            "HOLDFOR" => kept.hold = Some(seen.value("HOLD", value.and_then(hold_for))?),
            "HOLDUNTIL" => kept.hold = Some(seen.value("HOLD", value.and_then(hold_until))?),
            other => return Err(CommandError::UnknownParameter(other.chars().take(40).collect())),
        }
    }
    Ok(mail)
}

fn rcpt(text: &str, here: &Domain) -> Result<ForwardPath, CommandError> {
    let (inner, rest) = path(text, "TO", RCPT_SYNTAX)?;
    if inner.is_empty() {
        return Err(CommandError::Syntax(RCPT_SYNTAX));
    }
    let address = match inner.eq_ignore_ascii_case(POSTMASTER) {
        // RFC 5321 s4.1.1.3 and s4.5.1: without a domain it is whoever runs this server.
        true => Address::from_parts(inner.to_owned(), here.clone())
            .map_err(|why| CommandError::Path(Side::Recipient, why.into()))?,
        false => address(inner, Side::Recipient)?,
    };
    let mut forward_path = ForwardPath::plain(address);
    let mut seen = Seen::default();
    for word in rest.split_ascii_whitespace() {
        let (name, value) = parameter(word);
        match name.as_ref() {
            "NOTIFY" => forward_path.notify = seen.value("NOTIFY", value.and_then(notify))?,
            "ORCPT" => forward_path.orcpt = Some(seen.value("ORCPT", value.and_then(orcpt))?),
            other => return Err(CommandError::UnknownParameter(other.chars().take(40).collect())),
        }
    }
    Ok(forward_path)
}

/// Names of parameters seen in one command: each may stand once (RFC 5321 s4.1.1.11).
#[derive(Default)]
struct Seen(Vec<&'static str>);

impl Seen {
    fn value<T>(&mut self, name: &'static str, value: Option<T>) -> Result<T, CommandError> {
        let value = value.filter(|_| !self.0.contains(&name)).ok_or(CommandError::Parameter(name))?;
        self.0.push(name);
        Ok(value)
    }
}

/// `NAME=value` or `NAME`; the name in upper case.
fn parameter(word: &str) -> (Cow<'_, str>, Option<&str>) {
    let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
    let is_upper = name.bytes().all(|byte| !byte.is_ascii_lowercase());
    (if is_upper { Cow::Borrowed(name) } else { Cow::Owned(name.to_ascii_uppercase()) }, value)
}

/// Digits only, at most `digits_max` of them.
fn number(text: &str, digits_max: usize) -> Option<u64> {
    let is_number = (1..=digits_max).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

fn body_type(value: &str) -> Option<BodyType> {
    match value.to_ascii_uppercase().as_str() {
        "7BIT" => Some(BodyType::SevenBit),
        "8BITMIME" => Some(BodyType::EightBitMime),
        _ => None,
    }
}

fn ret(value: &str) -> Option<Ret> {
    match value.to_ascii_uppercase().as_str() {
        "FULL" => Some(Ret::Full),
        "HDRS" => Some(Ret::Headers),
        _ => None,
    }
}

/// RFC 4865 s3: 1 to 9 digits, seconds.
fn hold_for(value: &str) -> Option<Hold> {
    number(value, 9).map(|seconds| Hold::For(Duration::from_secs(seconds)))
}

/// RFC 4865 s3: a date and time of RFC 3339 with zone.
fn hold_until(value: &str) -> Option<Hold> {
    Timestamp::from_rfc3339(value).map(Hold::Until)
}

fn notify(value: &str) -> Option<Notify> {
    if value.eq_ignore_ascii_case("NEVER") {
        return Some(Notify::NEVER);
    }
    let mut notify = Notify::NEVER;
    for word in value.split(',') {
        let wanted = match word.to_ascii_uppercase().as_str() {
            "SUCCESS" => &mut notify.success,
            "FAILURE" => &mut notify.failure,
            "DELAY" => &mut notify.delay,
            _ => return None,
        };
        if *wanted {
            return None;
        }
        *wanted = true;
    }
    Some(notify)
}

/// `type;xtext`. With `utf-8` also the escapes of RFC 6533 s3, which are kept as written.
fn orcpt(value: &str) -> Option<String> {
    let (kind, address) = value.split_once(';')?;
    let is_atom = !kind.is_empty() && kind.len() <= 20 && kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let address = if is_atom && kind.eq_ignore_ascii_case("utf-8") && !address.is_ascii() {
        let is_sound = (1..=ORCPT_OCTETS_MAX).contains(&address.len()) && !address.chars().any(char::is_control);
        is_sound.then(|| address.to_owned())?
    } else {
        xtext_within(address, ORCPT_OCTETS_MAX).filter(|_| is_atom)?
    };
    Some(format!("{};{}", kind.to_ascii_lowercase(), address))
}

fn xtext_within(text: &str, octets_max: usize) -> Option<String> {
    decode_xtext(text).filter(|decoded| (1..=octets_max).contains(&decoded.len()))
}

/// Decodes xtext (RFC 3461 s4): `+` and two upper-case hex digits for an octet. `None` if it is
/// not xtext or does not decode to printable UTF-8.
pub fn decode_xtext(text: &str) -> Option<String> {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => {
                let (high, low) = (char::from(rest.next()?), char::from(rest.next()?));
                if high.is_ascii_lowercase() || low.is_ascii_lowercase() {
                    return None;
                }
                octets.push(u8::try_from(high.to_digit(16)? * 16 + low.to_digit(16)?).ok()?);
            }
            33..=126 if byte != b'=' => octets.push(byte),
            _ => return None,
        }
    }
    let decoded = String::from_utf8(octets).ok()?;
    (!decoded.chars().any(char::is_control)).then_some(decoded)
}

/// Encodes text as xtext (RFC 3461 s4).
pub fn encode_xtext(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'+' | b'=' => encoded.push_str(if byte == b'+' { "+2B" } else { "+3D" }),
            33..=126 => encoded.push(char::from(byte)),
            _ => {
                encoded.push('+');
                for digit in [byte >> 4, byte & 15] {
                    encoded.extend(char::from_digit(u32::from(digit), 16).map(|digit| digit.to_ascii_uppercase()));
                }
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests;
