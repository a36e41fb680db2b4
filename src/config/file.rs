//! The raw file: keys, values and the lines they are on; unknown keys and values of the wrong
//! kind are problems. It knows the shape only; rules across keys are in `check`.
//!
//! Easy to get wrong: stopping at the first problem. The TOML is walked by hand along the table of
//! settings rather than deserialised, because serde gives up at the first key it does not like.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Problem;
use super::settings::{self, Presence, SETTINGS, Setting};
use super::value::Value;

/// Octets of a key that is quoted; no setting's is as long.
const KEY_OCTETS_MAX: usize = 100;

/// A file that was read: what it sets, and what is wrong with it so far.
pub(super) struct File {
    path: PathBuf,
    set: BTreeMap<&'static str, (Value, usize)>,
    /// Keys the file sets to something unusable: their defaults must not start further complaints.
    broken: BTreeSet<&'static str>,
    /// After a line that is not TOML, a key may belong to a section that was not understood.
    unclear_from: usize,
    asked: RefCell<BTreeSet<&'static str>>,
    problems: RefCell<Vec<Problem>>,
}

impl File {
    /// Reads `text`; `path` is only named in problems.
    pub(super) fn read(path: &Path, text: &str) -> Self {
        let mut file = Self {
            path: path.to_owned(),
            set: BTreeMap::new(),
            broken: BTreeSet::new(),
            unclear_from: usize::MAX,
            asked: RefCell::default(),
            problems: RefCell::default(),
        };
        let lines = Lines(text);
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let line = error.span().map(|span| lines.of(span.start));
            file.unclear_from = file.unclear_from.min(line.unwrap_or(0));
            file.problem(line, "", told(error, text));
        }
        file.walk("", table.get_ref(), &lines);
        // A file that is not TOML is read only in part: what seems missing may be there.
        if errors.is_empty() {
            file.require();
        }
        file
    }

    fn walk(&mut self, section: &str, table: &DeTable<'_>, lines: &Lines<'_>) {
        for (name, value) in table {
            let key =
                if section.is_empty() { name.get_ref().to_string() } else { format!("{section}.{}", name.get_ref()) };
            let line = lines.of(name.span().start);
            if let Some(setting) = settings::named(&key) {
                self.take(setting, value, line);
            } else if settings::is_section(&key) {
                match value.get_ref() {
                    DeValue::Table(inner) => self.walk(&key, inner, lines),
                    _ => self.problem(Some(line), &key, format!("is a section: write [{key}] on a line of its own")),
                }
            } else if !section.is_empty() || line < self.unclear_from {
                let advice = settings::nearest(&key).map(|near| format!("; did you mean {near}?")).unwrap_or_default();
                self.problem(Some(line), &key, format!("there is no such setting{advice}"));
            }
        }
    }

    fn take(&mut self, setting: &'static Setting, value: &Spanned<DeValue<'_>>, line: usize) {
        match setting.kind.read(value.get_ref()) {
            Ok(value) => {
                self.set.insert(setting.key, (value, line));
            }
            Err(reason) => {
                self.broken.insert(setting.key);
                self.problem(Some(line), setting.key, reason);
            }
        }
    }

    fn require(&mut self) {
        for setting in SETTINGS {
            let given = self.set.contains_key(setting.key) || self.broken.contains(setting.key);
            if matches!(setting.presence, Presence::Required) && !given {
                self.problem(None, setting.key, format!("is missing; write {} = {}", setting.key, setting.default));
            }
        }
    }

    /// Notes a problem found by a rule, at the line where `key` is set.
    pub(super) fn refuse(&self, key: &'static str, text: String) {
        self.problem(self.set.get(key).map(|(_, line)| *line), key, text);
    }

    /// Whether the file sets `key`.
    pub(super) fn sets(&self, key: &str) -> bool {
        self.set.contains_key(key)
    }

    /// Whether the value of `key` can be relied on.
    pub(super) fn is_sound(&self, key: &str) -> bool {
        !self.broken.contains(key)
    }

    fn problem(&self, line: Option<usize>, key: &str, text: String) {
        let problem = Problem { file: self.path.clone(), line, key: key.to_owned(), text };
        self.problems.borrow_mut().push(problem);
    }

    /// The value of a setting, or its default.
    ///
    /// # Panics
    /// If the table of settings has no such key; a test asks for every key.
    #[expect(clippy::expect_used, reason = "keys are constants of this room, each asked for by a test")]
    pub(super) fn value(&self, key: &str) -> Value {
        let setting = settings::named(key).expect("only settings in the table are asked for");
        self.asked.borrow_mut().insert(setting.key);
        self.set.get(setting.key).map_or_else(|| setting.default_value(), |(value, _)| value.clone())
    }

    /// Settings nobody has asked for.
    #[cfg(test)]
    pub(super) fn unused(&self) -> Vec<&'static str> {
        SETTINGS.iter().map(|setting| setting.key).filter(|key| !self.asked.borrow().contains(key)).collect()
    }

    /// All problems, by line.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| (problem.line.unwrap_or(0), problem.key.clone()));
        problems
    }

    /// Whether anything is wrong.
    pub(super) fn is_clean(&self) -> bool {
        self.problems.borrow().is_empty()
    }

    /// Every setting with the value in effect, for comparing two configurations.
    pub(super) fn effective(&self) -> BTreeMap<&'static str, Value> {
        SETTINGS
            .iter()
            .map(|setting| {
                let value =
                    self.set.get(setting.key).map_or_else(|| setting.default_value(), |(value, _)| value.clone());
                (setting.key, value)
            })
            .collect()
    }
}

/// What is wrong with the TOML; a key that is there twice is named.
fn told(error: &toml::de::Error, text: &str) -> String {
    let message = error.message().to_owned();
    let key = error.span().and_then(|span| text.get(span)).filter(|key| key.len() <= KEY_OCTETS_MAX);
    match key {
        Some(key) if message == "duplicate key" => format!("{message}: {key}"),
        _ => message,
    }
}

#[expect(clippy::panic, reason = "the kind is fixed by the table of settings; a test asks for every key")]
fn wrong_kind(key: &str, what: &str, value: &Value) -> ! {
    panic!("{key} is not a {what}: {value:?}")
}

macro_rules! getter {
    ($name:ident, $variant:ident, $type:ty, $what:literal) => {
        #[doc = concat!("The ", $what, " of a setting, or its default.")]
        pub(super) fn $name(&self, key: &str) -> $type {
            match self.value(key) {
                Value::$variant(value) => value,
                other => wrong_kind(key, $what, &other),
            }
        }
    };
}

impl File {
    getter!(name, Name, crate::mail::Domain, "name");
    getter!(path, Path, PathBuf, "path");
    getter!(text, Text, String, "text");
    getter!(flag, Flag, bool, "flag");
    getter!(count, Count, u64, "number or size");
    getter!(span, Span, std::time::Duration, "duration");
    getter!(ports, Ports, Vec<u16>, "ports");
    getter!(addresses, Addresses, Vec<std::net::SocketAddr>, "addresses");

    /// A number that its range keeps within `usize`.
    pub(super) fn size(&self, key: &str) -> usize {
        usize::try_from(self.count(key)).unwrap_or(usize::MAX)
    }

    /// A number that its range keeps within `u32`.
    pub(super) fn small(&self, key: &str) -> u32 {
        u32::try_from(self.count(key)).unwrap_or(u32::MAX)
    }
}

/// Turns offsets into line numbers.
struct Lines<'a>(&'a str);

impl Lines<'_> {
    fn of(&self, offset: usize) -> usize {
        self.0.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
    }
}
