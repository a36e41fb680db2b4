//! What a setting is: key, kind, default, meaning, who changes it, and when a change is taken
//! over. The reference page, the example file and the checks all come from [`SETTINGS`].
//!
//! A setting must name the operator who will change it; otherwise it is a constant in its room.

use toml::de::DeTable;

pub(super) use super::table::SETTINGS;
use super::value::{Kind, Value};

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// `section.name`, or a bare name at the top of the file.
    pub key: &'static str,
    /// What it may be.
    pub(super) kind: Kind,
    /// Its default as TOML text; an example value if it must be given.
    pub default: &'static str,
    /// Whether the file must have it.
    pub presence: Presence,
    /// What it does.
    pub meaning: &'static str,
    /// Which operator changes it, and when.
    pub who: &'static str,
    /// When a change is taken over.
    pub applied: Applied,
}

/// Whether the file must have a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// There is no default.
    Required,
    /// Shown in the example file, commented out.
    Shown,
    /// In the reference page only.
    Rare,
}

/// When a changed setting is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// By a reload (SIGHUP).
    OnReload,
    /// When the daemon starts again.
    AtStart,
}

/// Sections, in the order of the reference page, with what each is about.
pub(super) const SECTIONS: &[(&str, &str)] = &[
    ("", "What this machine is called and where things are."),
    ("tls", "Certificates of the submission ports."),
    ("secrets", "Where secrets are; never the secrets themselves."),
    ("submission", "The door clients log in at, on every virtual IP."),
    ("feedback", "The door for what comes back: return-paths, postmaster, abuse and fbl."),
    ("pipeline", "What is done to a message before it is owed."),
    ("accounts", "How failed logins slow those who try."),
    ("breaker", "When an SMTP account is paused because its mail goes wrong."),
    ("queue", "When mail is tried again and when it is given up."),
    ("delivery", "How mail leaves."),
    ("domains", "What tenants publish for their sending domains."),
    ("tls_reports", "What TLS came to, told to recipient domains that ask for it (TLS-RPT)."),
    ("overload", "When new work is refused so that accepted work goes on."),
    ("dns", "Who is asked for names."),
    ("store", "The records and bodies on disk."),
    ("backup", "Copies of everything, and whether they are made."),
    ("events", "What happened to each message."),
    ("search", "Finding messages."),
    ("statistics", "What happened to recipients, in numbers."),
    ("webhooks", "Endpoints that are told what happened."),
    ("admin", "The admin API: the local socket the command line talks to, and a port with TLS."),
    ("monitor", "Health and metrics for machines."),
    ("log", "What is written to standard error, and so to the journal."),
];

impl Setting {
    /// The default as a value.
    ///
    /// # Panics
    /// If the table's text is not of its kind; a test reads them all.
    #[expect(clippy::expect_used, reason = "the table is constant and a test reads every default")]
    pub(super) fn default_value(&self) -> Value {
        let text = format!("value = {}", self.default);
        let table = DeTable::parse(&text).expect("defaults are TOML");
        let value = table.get_ref().get("value").expect("the value was just written");
        self.kind.read(value.get_ref()).expect("defaults are of their kind")
    }

    /// The section it is in; empty at the top of the file.
    pub fn section(&self) -> &'static str {
        self.key.rsplit_once('.').map_or("", |(section, _)| section)
    }

    /// Its name within the section.
    pub fn name(&self) -> &'static str {
        self.key.rsplit_once('.').map_or(self.key, |(_, name)| name)
    }
}

/// The setting of that key.
pub(super) fn named(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

/// Whether `key` is a section.
pub(super) fn is_section(key: &str) -> bool {
    !key.is_empty() && SECTIONS.iter().any(|(section, _)| *section == key)
}

/// The setting or section somebody probably meant: one with a like spelling, or of the same name
/// in another section.
pub(super) fn nearest(key: &str) -> Option<String> {
    let last = key.rsplit('.').next().unwrap_or(key);
    let keys = SETTINGS.iter().map(|setting| setting.key);
    let sections = SECTIONS.iter().map(|(section, _)| *section).filter(|section| !section.is_empty());
    let near = keys.clone().chain(sections).map(|known| (distance(key, known), known)).min();
    if let Some((steps, known)) = near
        && steps <= 1 + key.len() / 6
    {
        return Some(known.to_owned());
    }
    let mut same_name = keys.filter(|known| known.rsplit('.').next() == Some(last));
    same_name.next().map(str::to_owned)
}

/// Single-letter changes between two words.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (at, letter) in left.chars().enumerate() {
        let mut next = vec![at + 1];
        for (column, other) in right.iter().enumerate() {
            let swapped = row.get(column).copied().unwrap_or(usize::MAX - 1) + usize::from(letter != *other);
            let dropped = row.get(column + 1).copied().unwrap_or(usize::MAX - 1) + 1;
            let added = next.last().copied().unwrap_or(usize::MAX - 1) + 1;
            next.push(swapped.min(dropped).min(added));
        }
        row = next;
    }
    row.last().copied().unwrap_or(usize::MAX)
}
