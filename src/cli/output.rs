//! How answers look on a terminal: aligned tables, colours only where a person looks, times in the
//! local zone with how long ago.
//!
//! Easy to get wrong: text from peers and clients may hold escape sequences; everything printed here
//! goes through [`printable`].

use std::io::{IsTerminal, Write};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::client::Fault;
use crate::ext::Timestamp;
use crate::mail::printable;
use crate::web::LimitsJson;

/// Whether colours are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// Yes: a terminal, and `NO_COLOR` is not set.
    Shown,
    /// No.
    Plain,
}

impl Colour {
    /// What standard output can show.
    pub fn of_output() -> Self {
        let is_wanted = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        if is_wanted { Self::Shown } else { Self::Plain }
    }

    fn wrap(self, code: &str, text: &str) -> String {
        match self {
            Self::Shown => format!("\x1b[{code}m{text}\x1b[0m"),
            Self::Plain => text.to_owned(),
        }
    }

    /// Good.
    pub fn green(self, text: &str) -> String {
        self.wrap("32", text)
    }

    /// Worth a look.
    pub fn yellow(self, text: &str) -> String {
        self.wrap("33", text)
    }

    /// Wrong.
    pub fn red(self, text: &str) -> String {
        self.wrap("31", text)
    }

    /// Headings.
    pub fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }
}

/// Rows under a heading, columns aligned by two spaces.
pub struct Table {
    heading: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new(heading: &[&'static str]) -> Self {
        Self { heading: heading.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; control characters become `?`.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    /// The table, or `empty` if it has no rows.
    pub fn text(&self, colour: Colour, empty: &str) -> String {
        if self.rows.is_empty() {
            return format!("{empty}\n");
        }
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain(self.heading.get(column).map(|cell| cell.len())).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.heading.len()).map(width).collect();
        let line = |cells: &[String]| {
            let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        let heading: Vec<String> = self.heading.iter().map(|cell| (*cell).to_owned()).collect();
        let mut text = format!("{}\n", colour.bold(&line(&heading)));
        for row in &self.rows {
            text.push_str(&line(row));
            text.push('\n');
        }
        text
    }
}

/// Prints; a closed pipe is not an error.
pub fn print(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// Prints JSON for programs.
pub fn print_json(value: &Value) {
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    print(&format!("{text}\n"));
}

/// Reads an answer as the type it should be.
pub fn read<T: DeserializeOwned>(value: &Value) -> Result<T, Fault> {
    T::deserialize(value).map_err(|error| {
        Fault::Failed(format!(
            "the daemon's answer is of another release ({error}); compare postern --version and status"
        ))
    })
}

/// An RFC 3339 time in the local zone with how long ago or ahead: `2026-11-22 12:15:00 (3 min ago)`.
pub fn when(text: &str, now: Timestamp) -> String {
    let Ok(moment) = text.parse::<jiff::Timestamp>() else { return printable(text) };
    let local = moment.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S");
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX).saturating_sub(moment.as_second());
    let length = span(seconds.unsigned_abs());
    if seconds >= 0 { format!("{local} ({length} ago)") } else { format!("{local} (in {length})") }
}

/// A length of time in its largest unit.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Reads a length of time such as `30m`, in seconds.
pub fn read_span(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|letter: char| letter.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3_600),
        "d" => Some(86_400),
        _ => None,
    };
    let seconds = number.parse::<u64>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    seconds.filter(|seconds| *seconds > 0).ok_or_else(|| "give a length of time such as 30m, 2h or 1d".to_owned())
}

/// A number of octets in its largest unit.
pub fn size(octets: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let fitting = units.iter().find(|(_, shift)| octets >= 1 << shift);
    fitting.map_or_else(|| format!("{octets} B"), |(unit, shift)| format!("{} {unit}", octets >> shift))
}

/// `-` for nothing.
pub fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

/// How many messages may be handed in, and how many were.
pub fn limits(limits: &LimitsJson, used: &LimitsJson) -> String {
    let most = |limit: Option<u64>| limit.map_or_else(|| "no limit".to_owned(), |most| most.to_string());
    format!(
        "hourly {} ({} used), daily {} ({} used)",
        most(limits.hourly),
        used.hourly.unwrap_or_default(),
        most(limits.daily),
        used.daily.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_time_needs_a_number_and_a_unit() {
        for (text, seconds) in [("45s", 45), ("30m", 1_800), ("2h", 7_200), ("1d", 86_400)] {
            assert_eq!(read_span(text), Ok(seconds));
        }
        for text in ["", "5", "m", "0m", "-1h", "1 h", "1w", "99999999999999999999d"] {
            assert!(read_span(text).is_err(), "{text}");
        }
    }

    #[test]
    fn columns_are_aligned_and_escape_sequences_are_harmless() {
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row(["a".to_owned(), "ok".to_owned()]);
        table.row(["longer".to_owned(), "\x1b[31mred".to_owned()]);
        assert_eq!(table.text(Colour::Plain, "none"), "NAME    STATE\na       ok\nlonger  ?[31mred\n");
        assert_eq!(Table::new(&["X"]).text(Colour::Plain, "no tenants yet"), "no tenants yet\n");
    }

    #[test]
    fn times_say_how_long_ago() {
        let text = when("2026-11-22T10:15:00.000Z", Timestamp(1_795_342_500_000 + 180_000));
        assert!(text.ends_with("(3 min ago)"), "{text}");
        let text = when("2026-11-22T10:15:00.000Z", Timestamp(1_795_342_500_000 - 7_200_000));
        assert!(text.ends_with("(in 2 h)"), "{text}");
        assert_eq!(when("never", Timestamp(0)), "never");
    }

    #[test]
    fn lengths_and_sizes_take_their_largest_unit() {
        assert_eq!((span(59), span(180), span(90_000), span(400_000)).3, "4 d");
        assert_eq!(span(90_000), "25 h");
        assert_eq!(size(1_536), "1 KiB");
        assert_eq!(size(5 << 30), "5 GiB");
    }
}
