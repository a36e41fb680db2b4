//! The kinds of value a setting can have, and how each is written: durations with a unit, sizes
//! with a unit, addresses with a port. Pure. A bare number is never taken for seconds or bytes:
//! the unit is always asked for, since guessing one wrong is how mail gets lost for days.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use crate::mail::{Address, Domain};

/// What a setting may be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// A fully qualified domain name.
    Name,
    /// A fully qualified domain name, or empty for none.
    NameOrNone,
    /// An absolute path.
    Path,
    /// An absolute path, or empty for none.
    PathOrNone,
    /// An absolute path, or `credential:NAME`.
    Secret,
    /// A name of a Unix group; may be empty.
    Group,
    /// A mail address; may be empty.
    Mailbox,
    /// One line of at most so many characters; may be empty.
    Line(usize),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `true` or `false`.
    Flag,
    /// A whole number in a range.
    Count(u64, u64),
    /// A duration in a range, in seconds.
    Span(u64, u64),
    /// A size in a range, in bytes.
    Size(u64, u64),
    /// Port numbers.
    Ports,
    /// `ADDRESS:PORT` strings.
    Addresses,
    /// One `ADDRESS:PORT` on this host only, or empty for off.
    Loopback,
}

/// A value that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Name(Domain),
    Path(PathBuf),
    Text(String),
    Flag(bool),
    Count(u64),
    Span(Duration),
    Ports(Vec<u16>),
    Addresses(Vec<SocketAddr>),
}

impl Kind {
    /// For the reference page.
    pub(super) fn describe(self) -> String {
        match self {
            Self::Name => "a fully qualified domain name".to_owned(),
            Self::NameOrNone => "a fully qualified domain name, or empty for none".to_owned(),
            Self::Path => "an absolute path".to_owned(),
            Self::PathOrNone => "an absolute path, or empty for none".to_owned(),
            Self::Secret => "an absolute path, or `credential:NAME` for a systemd credential".to_owned(),
            Self::Group => "the name of a Unix group, or empty".to_owned(),
            Self::Mailbox => "a mail address, or empty".to_owned(),
            Self::Line(most) => format!("a line of at most {most} characters, or empty"),
            Self::Choice(words) => {
                let words: Vec<String> = words.iter().map(|word| format!("`\"{word}\"`")).collect();
                words.join(" or ")
            }
            Self::Flag => "`true` or `false`".to_owned(),
            Self::Count(least, most) => format!("a whole number from {least} to {most}"),
            Self::Span(least, most) => {
                format!(
                    "a duration from {} to {}, such as `\"90s\"`, `\"5m\"`, `\"4h\"`, `\"3d\"`",
                    span(least),
                    span(most)
                )
            }
            Self::Size(least, most) => {
                format!(
                    "a size from {} to {}, such as `\"512 KiB\"`, `\"25 MiB\"`, `\"2 GiB\"`",
                    size(least),
                    size(most)
                )
            }
            Self::Ports => "a list of port numbers".to_owned(),
            Self::Addresses => "a list of `\"ADDRESS:PORT\"`, IPv6 in brackets".to_owned(),
            Self::Loopback => "`\"ADDRESS:PORT\"` with a loopback address, or empty for off".to_owned(),
        }
    }

    /// Reads a value of this kind; the error is a sentence without the key.
    pub(super) fn read(self, value: &DeValue<'_>) -> Result<Value, String> {
        match self {
            Self::Flag => value.as_bool().map(Value::Flag).ok_or_else(|| "must be true or false".to_owned()),
            Self::Count(least, most) => read_count(value, least, most).map(Value::Count),
            Self::Ports => read_list(value, |item| {
                read_count(item, 1, u64::from(u16::MAX)).and_then(|port| u16::try_from(port).map_err(|_| String::new()))
            })
            .map(Value::Ports),
            Self::Addresses => read_list(value, |item| read_address(read_text(item)?)).map(Value::Addresses),
            Self::Choice(words) if value.as_str().is_none() => {
                Err(format!("must be one of {}, not {}", words.join(", "), type_name(value)))
            }
            _ => self.read_text(read_text(value)?),
        }
    }

    fn read_text(self, text: &str) -> Result<Value, String> {
        match self {
            Self::Name => read_name(text).map(Value::Name),
            Self::NameOrNone if text.is_empty() => Ok(Value::Text(String::new())),
            Self::NameOrNone => read_name(text).map(|name| Value::Text(name.to_string())),
            Self::Path => read_path(text).map(Value::Path),
            Self::PathOrNone if text.is_empty() => Ok(Value::Path(PathBuf::new())),
            Self::PathOrNone => read_path(text).map(Value::Path),
            Self::Secret => match text.strip_prefix("credential:") {
                Some(name) if !name.is_empty() && !name.contains(['/', '\0']) => Ok(Value::Text(text.to_owned())),
                Some(_) => Err("must name a credential after \"credential:\", without slashes".to_owned()),
                None => read_path(text).map(|_| Value::Text(text.to_owned())),
            },
            Self::Group => {
                let fits = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.');
                if text.len() <= 32 && text.chars().all(fits) {
                    Ok(Value::Text(text.to_owned()))
                } else {
                    Err(format!("{text:?} is not a name of a group"))
                }
            }
            Self::Mailbox if text.is_empty() => Ok(Value::Text(String::new())),
            Self::Mailbox => match Address::parse(text) {
                Ok(address) => Ok(Value::Text(address.to_string())),
                Err(error) => Err(format!("{text:?} is not a mail address: {error}")),
            },
            Self::Line(most) if text.chars().count() > most || text.contains(char::is_control) => {
                Err(format!("must be one line of at most {most} characters"))
            }
            Self::Line(_) => Ok(Value::Text(text.trim().to_owned())),
            Self::Choice(words) if words.contains(&text) => Ok(Value::Text(text.to_owned())),
            Self::Choice(words) => Err(format!("must be one of {}, not {text:?}", words.join(", "))),
            Self::Span(least, most) => read_unit(text, SPAN_UNITS, "a duration such as \"5m\" (units s, m, h, d)")
                .and_then(|seconds| within(seconds, least, most, span))
                .map(|seconds| Value::Span(Duration::from_secs(seconds))),
            Self::Size(least, most) => {
                read_unit(text, SIZE_UNITS, "a size such as \"25 MiB\" (units B, KiB, MiB, GiB)")
                    .and_then(|bytes| within(bytes, least, most, size))
                    .map(Value::Count)
            }
            Self::Loopback if text.is_empty() => Ok(Value::Addresses(Vec::new())),
            Self::Loopback => {
                let address = read_address(text)?;
                if address.ip().is_loopback() {
                    Ok(Value::Addresses(vec![address]))
                } else {
                    Err(format!("{address} is not a loopback address; what is served there has no login"))
                }
            }
            Self::Flag | Self::Count(..) | Self::Ports | Self::Addresses => Err("must not be a string".to_owned()),
        }
    }
}

fn read_text<'a>(value: &'a DeValue<'_>) -> Result<&'a str, String> {
    value.as_str().ok_or_else(|| match value {
        DeValue::Integer(_) => "must be a string; put it in quotes, with its unit if it has one".to_owned(),
        other => format!("must be a string, not {}", type_name(other)),
    })
}

fn read_count(value: &DeValue<'_>, least: u64, most: u64) -> Result<u64, String> {
    let DeValue::Integer(integer) = value else {
        return Err(format!("must be a whole number, not {}", type_name(value)));
    };
    let number = i128::from_str_radix(integer.as_str(), integer.radix()).ok();
    number
        .and_then(|number| u64::try_from(number).ok())
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| format!("must be from {least} to {most}, not {}", integer.as_str()))
}

fn read_list<T>(value: &DeValue<'_>, read: impl Fn(&DeValue<'_>) -> Result<T, String>) -> Result<Vec<T>, String>
where
    T: PartialEq + std::fmt::Display,
{
    let items = value.as_array().ok_or_else(|| format!("must be a list, not {}", type_name(value)))?;
    let mut list = Vec::new();
    for item in items {
        let item = read(item.get_ref()).map_err(|reason| format!("each entry {reason}"))?;
        if list.contains(&item) {
            return Err(format!("lists {item} twice"));
        }
        list.push(item);
    }
    Ok(list)
}

fn read_name(text: &str) -> Result<Domain, String> {
    if text.parse::<std::net::IpAddr>().is_ok() {
        return Err(format!("{text:?} is an address; a host name is needed, as in the PTR record"));
    }
    let name = Domain::parse(text).map_err(|error| format!("{text:?} is not a domain name: {error}"))?;
    if name.as_str().contains('.') {
        Ok(name)
    } else {
        Err(format!("{text:?} is not fully qualified; write it with its domain, such as \"{text}.example.com\""))
    }
}

fn read_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() && !text.contains('\0') {
        Ok(path)
    } else {
        Err(format!("must be an absolute path, not {text:?}"))
    }
}

fn read_address(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
    address.ok_or_else(|| format!("must be an address with a port such as \"127.0.0.1:53\", not {text:?}"))
}

const SPAN_UNITS: &[(&str, u64)] = &[("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)];
const SIZE_UNITS: &[(&str, u64)] = &[("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

fn read_unit(text: &str, units: &[(&str, u64)], wanted: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|letter: char| letter.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let factor = units.iter().find(|(name, _)| *name == unit.trim()).map(|(_, factor)| *factor);
    let amount = number.parse::<u64>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    amount.ok_or_else(|| format!("must be {wanted}, not {text:?}"))
}

fn within(amount: u64, least: u64, most: u64, show: impl Fn(u64) -> String) -> Result<u64, String> {
    if (least..=most).contains(&amount) {
        Ok(amount)
    } else {
        Err(format!("must be from {} to {}, not {}", show(least), show(most), show(amount)))
    }
}

/// A duration as it would be written in the file.
pub(super) fn span(seconds: u64) -> String {
    shortest(seconds, SPAN_UNITS, "")
}

fn size(bytes: u64) -> String {
    shortest(bytes, SIZE_UNITS, " ")
}

fn shortest(amount: u64, units: &[(&str, u64)], between: &str) -> String {
    let fits = units.iter().rev().find(|(_, factor)| amount >= *factor && amount.is_multiple_of(*factor));
    let (name, factor) = fits.or(units.first()).copied().unwrap_or(("", 1));
    format!("{}{between}{name}", amount / factor)
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}
