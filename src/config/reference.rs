//! The documents written from the table of settings: the reference page and the example file.
//! Neither is edited by hand; a test compares both with what is in the repository.

use std::fmt::Write;

use super::settings::{Applied, Presence, SECTIONS, SETTINGS, Setting};
use crate::mail::Domain;

const REFERENCE_INTRODUCTION: &str = "\
# Configuration reference

<!-- Generated from src/config/settings.rs; do not edit. -->

The file is `/etc/postern/postern.toml` unless `--config` says otherwise, in [TOML](https://toml.io).
It holds what a machine needs to start.
Tenants, virtual IPs, domains, SMTP accounts, routes and suppression lists are records, managed by the `postern` command while the daemon runs.

`postern check` reads the file without starting anything, prints every problem with its line, and exits with 78 if there is one.
If there is none, it looks at the master key, the certificates and the roots the file names, as the daemon would at its start.
Unknown keys are problems, so that a misspelt setting is never silently ignored.

`systemctl reload postern` (SIGHUP) reads the file again.
A file that does not check changes nothing: the daemon goes on with the old configuration and says why in its log.
Settings marked *by a reload* are then taken over at once; for the others the log says that a restart is needed.

Durations are written with a unit: `\"90s\"`, `\"5m\"`, `\"4h\"`, `\"3d\"`.
Sizes too: `\"512 KiB\"`, `\"25 MiB\"`, `\"2 GiB\"`.
";

/// The reference page, in markdown.
pub fn reference() -> String {
    let mut page = REFERENCE_INTRODUCTION.to_owned();
    for (section, about) in SECTIONS {
        let title = if section.is_empty() { "At the top of the file".to_owned() } else { format!("`[{section}]`") };
        let _ = write!(page, "\n## {title}\n\n{about}\n");
        for setting in SETTINGS.iter().filter(|setting| setting.section() == *section) {
            describe(&mut page, setting);
        }
    }
    page
}

fn describe(page: &mut String, setting: &Setting) {
    let default = match setting.presence {
        Presence::Required => "none, it must be given".to_owned(),
        Presence::Shown | Presence::Rare => format!("`{}`", setting.default),
    };
    let applied = match setting.applied {
        Applied::OnReload => "by a reload",
        Applied::AtStart => "at the next start",
    };
    let _ = write!(
        page,
        "\n### `{}`\n\n{}\n\n- Value: {}\n- Default: {default}\n- Who changes it: {}\n- Taken over: {applied}\n",
        setting.key,
        sentences(setting.meaning),
        setting.kind.describe(),
        setting.who,
    );
}

/// One sentence per line.
fn sentences(text: &str) -> String {
    text.replace(". ", ".\n")
}

/// The example file for a machine of that name: what is often changed, commented out.
pub fn example(hostname: &Domain) -> String {
    let mut file = String::from(
        "# Configuration of postern: what this machine needs to start.\n\
         # Commented lines show the defaults. Every setting: docs/config.md. Check it with: postern check\n",
    );
    for (section, _) in SECTIONS {
        let shown: Vec<&Setting> = SETTINGS
            .iter()
            .filter(|setting| setting.section() == *section && setting.presence != Presence::Rare)
            .collect();
        if shown.is_empty() {
            continue;
        }
        if !section.is_empty() {
            let _ = write!(file, "\n[{section}]\n");
        }
        for setting in shown {
            let separator = if section.is_empty() { "\n" } else { "" };
            let _ = write!(file, "{separator}{}", wrapped(setting.meaning));
            let _ = match setting.presence {
                Presence::Required => writeln!(file, "{} = \"{hostname}\"", setting.name()),
                Presence::Shown | Presence::Rare => writeln!(file, "#{} = {}", setting.name(), setting.default),
            };
        }
    }
    file
}

/// The first sentence as comment lines of at most 100 columns.
fn wrapped(text: &str) -> String {
    let first = text.split_once(". ").map_or(text, |(first, _)| first).trim_end_matches('.');
    let mut lines = String::new();
    let mut line = String::from("#");
    for word in first.split_whitespace() {
        if line.len() + word.len() + 1 > 100 {
            lines.push_str(&line);
            lines.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    lines + &line + "\n"
}
