//! The rules of the house that a machine can check: arrows between rooms, where external crates may
//! be used, sizes, module comments, names, numbered decisions. A new arrow is a line in this file,
//! so a reviewer sees it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Which rooms a room may use besides the floor ([`FLOOR`]). `*` is every room.
const ARROWS: &[(&str, &[&str])] = &[
    ("ext", &[]),
    ("background", &[]),
    ("calendar", &[]),
    ("metrics", &[]),
    ("seal", &[]),
    ("gate", &[]),
    ("access", &["mail"]),
    ("mail", &[]),
    ("smtp", &["mail"]),
    ("trace", &["mail"]),
    ("store", &["mail"]),
    ("net", &["mail"]),
    ("events", &["mail", "access", "store"]),
    ("records", &["mail", "access", "store", "events"]),
    ("vips", &["mail", "access", "store", "events", "records"]),
    ("people", &["mail", "access", "store", "events", "records", "accounts"]),
    ("accounts", &["mail", "access", "store", "events", "records", "vips"]),
    ("routing", &["mail", "access", "store", "events", "records"]),
    ("suppression", &["mail", "access", "store", "events", "records"]),
    ("notifications", &["mail", "access", "store", "events", "records"]),
    ("operations", &["mail", "access", "store", "events", "records", "suppression"]),
    ("statistics", &["mail", "access", "store", "events", "records"]),
    ("search", &["mail", "access", "store", "events", "records", "statistics"]),
    ("webhooks", &["mail", "access", "net", "store", "events", "records"]),
    ("domains", &["mail", "access", "store", "events", "records", "net", "vips"]),
    ("pipeline", &["mail", "accounts", "domains", "suppression", "vips"]),
    ("tlsrpt", &["mail", "access", "net", "store", "events", "records", "vips", "domains", "intake"]),
    ("queue", &["mail", "routing", "access", "store", "events", "records"]),
    ("breaker", &["mail", "access", "store", "events", "records", "accounts", "queue"]),
    (
        "tenancy",
        &[
            "mail",
            "access",
            "store",
            "events",
            "records",
            "accounts",
            "domains",
            "vips",
            "people",
            "routing",
            "webhooks",
            "suppression",
            "operations",
            "queue",
            "breaker",
            "delivery",
        ],
    ),
    ("intake", &["mail", "routing", "store", "pipeline", "queue", "events", "vips", "accounts", "domains"]),
    (
        "submission",
        &["mail", "smtp", "net", "store", "accounts", "domains", "intake", "vips", "events", "gate", "trace"],
    ),
    ("backup", &["mail", "access", "store", "events", "records", "queue"]),
    ("keyring", &["store", "records", "domains", "routing", "people", "webhooks", "feedback"]),
    ("feedback", &["mail", "access", "net", "store", "events", "records", "vips", "domains", "intake"]),
    (
        "delivery",
        &[
            "mail",
            "smtp",
            "routing",
            "suppression",
            "access",
            "net",
            "store",
            "events",
            "queue",
            "intake",
            "domains",
            "vips",
            "accounts",
            "gate",
            "records",
            "trace",
            "tlsrpt",
        ],
    ),
    (
        "web",
        &[
            "mail",
            "access",
            "store",
            "events",
            "records",
            "vips",
            "accounts",
            "routing",
            "suppression",
            "domains",
            "queue",
            "delivery",
            "breaker",
            "net",
            "gate",
            "people",
            "backup",
            "operations",
            // The API hands messages in.
            "intake",
            "webhooks",
            "tenancy",
            "notifications",
            "feedback",
            "statistics",
            "search",
            "trace",
            "tlsrpt",
        ],
    ),
    ("sink", &[]),
    ("trial", &["config", "daemon", "sink", "net", "mail", "access", "accounts", "domains", "vips", "events", "store"]),
    ("config", &["*"]),
    // delivery: `classify` judges a reply without a daemon.
    (
        "cli",
        &[
            "config", "web", "net", "store", "mail", "daemon", "trial", "queue", "delivery", "backup", "keyring",
            "access",
        ],
    ),
    ("daemon", &["*"]),
    ("main", &["cli"]),
];

/// Rooms everybody may use.
const FLOOR: &[&str] = &["ext", "background", "calendar", "metrics", "seal"];

/// External crates that live behind one or a few rooms, so that a change of mind is a change of file.
const CRATES: &[(&str, &[&str])] = &[
    ("sled", &["store"]),
    ("smtp_proto", &["smtp"]),
    ("hickory_resolver", &["net", "trial"]),
    ("hickory_proto", &["net"]),
    ("mail_auth", &["mail", "net", "trial"]),
    ("mail_parser", &["mail", "pipeline"]),
    ("mail_builder", &["mail"]),
    ("mailin_embedded", &["sink"]),
    ("axum", &["web"]),
    ("aes_gcm", &["seal"]),
    ("argon2", &["people"]),
    ("qrcode", &["people"]),
    ("webauthn_rp", &["people"]),
    ("utoipa", &["web"]),
    ("utoipa_axum", &["web"]),
    ("clap", &["cli"]),
    ("rcgen", &["net", "sink"]),
    // delivery: its data files of providers and replies.
    ("tantivy", &["search"]),
    ("flate2", &["tlsrpt"]),
    ("toml", &["config", "delivery"]),
];

/// Lines of a file before its tests.
const FILE_LINES_MAX: usize = 600;
/// Words that say nothing, as names of rooms and files.
const BANNED_NAMES: &[&str] = &[
    "util",
    "utils",
    "helper",
    "helpers",
    "common",
    "core",
    "misc",
    "manager",
    "service",
    "model",
    "types",
    "handler",
    "data_types",
    "info",
    "item",
    "context",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn sources() -> Vec<(String, PathBuf, String)> {
    let source = root().join("src");
    let mut files = Vec::new();
    rust_files(&source, &mut files);
    files
        .into_iter()
        .map(|path| {
            let relative = path.strip_prefix(&source).unwrap();
            let first = relative.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
            let room = first.trim_end_matches(".rs").to_owned();
            let text = fs::read_to_string(&path).unwrap();
            (room, path, text)
        })
        .collect()
}

/// The text before the first `#[cfg(test)]` that opens a module, without comments and literals of doc tests.
fn before_tests(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or(text);
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn is_test_file(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_string_lossy();
    name == "tests.rs"
        || name == "conformance.rs"
        || name == "bench.rs"
        || name.ends_with("_tests.rs")
        || path.components().any(|part| part.as_os_str() == "tests")
}

/// Names that follow `crate::` in `code`, also within one level of braces.
fn rooms_used(code: &str) -> Vec<String> {
    let mut used = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let word = |text: &str| text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
        if let Some(inside) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut part = String::new();
            for character in inside.chars() {
                match character {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        used.push(word(part.trim()));
                        part.clear();
                    }
                    _ => {}
                }
                part.push(if character == ',' && depth == 0 { ' ' } else { character });
            }
            used.push(word(part.trim()));
        } else {
            used.push(word(rest));
        }
    }
    used.retain(|name| !name.is_empty() && name.starts_with(|c: char| c.is_ascii_lowercase()));
    used
}

#[test]
fn a_room_uses_only_the_rooms_on_its_line() {
    let arrows: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    let mut problems = Vec::new();
    for (room, path, text) in sources() {
        if room == "lib" || is_test_file(&path) {
            continue;
        }
        let Some(allowed) = arrows.get(room.as_str()) else {
            problems.push(format!("{}: room {room} has no line in ARROWS", path.display()));
            continue;
        };
        for used in rooms_used(&before_tests(&text)) {
            let is_fine = used == room
                || allowed.contains(&"*")
                || allowed.contains(&used.as_str())
                || (FLOOR.contains(&used.as_str()) && room != "ext");
            if !is_fine {
                problems.push(format!("{}: {room} may not use {used}", path.display()));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn what_a_room_seals_is_sealed_anew_when_the_master_key_changes() {
    let keyring = fs::read_to_string(root().join("src/keyring.rs")).unwrap();
    let mut sealing = std::collections::BTreeSet::new();
    for (room, path, text) in sources() {
        if !is_test_file(&path) && before_tests(&text).contains("key.seal(") {
            sealing.insert(room);
        }
    }
    sealing.remove("seal");
    assert!(sealing.len() >= 3, "{sealing:?}: sealing is no longer recognised");
    for room in sealing {
        assert!(keyring.contains(&format!("{room}::reseal(store, new, both)")), "keyring does not know {room}");
    }
}

#[test]
fn no_two_kinds_of_records_share_a_prefix() {
    let text = fs::read_to_string(root().join("src/store/mod.rs")).unwrap();
    let mut seen = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.trim().strip_prefix("pub const ")) {
        let Some((name, value)) = line.split_once(": u8 = ") else { continue };
        if let Some(other) = seen.insert(value.to_owned(), name.to_owned()) {
            panic!("{name} and {other} are both {value}");
        }
    }
    assert!(seen.len() > 15, "prefixes are no longer recognised");
}

#[test]
fn an_external_crate_stays_behind_its_room() {
    let mut problems = Vec::new();
    for (room, path, text) in sources() {
        if is_test_file(&path) {
            continue;
        }
        let code = before_tests(&text);
        for (name, rooms) in CRATES {
            if code.contains(&format!("{name}::")) && !rooms.contains(&room.as_str()) {
                problems.push(format!("{}: {name} belongs to {rooms:?}", path.display()));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn files_stay_small_and_say_what_they_are_for() {
    let mut problems = Vec::new();
    for (_, path, text) in sources() {
        if !text.starts_with("//!") && !is_test_file(&path) {
            problems.push(format!("{}: no module comment", path.display()));
        }
        let lines = text.split("#[cfg(test)]\nmod ").next().unwrap_or(&text).lines().count();
        if lines > FILE_LINES_MAX && !is_test_file(&path) {
            problems.push(format!("{}: {lines} lines, the wall is {FILE_LINES_MAX}", path.display()));
        }
        let stem = path.file_stem().unwrap().to_string_lossy();
        if BANNED_NAMES.contains(&stem.as_ref()) {
            problems.push(format!("{}: the name says nothing", path.display()));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn rooms_hide_their_files() {
    let mut problems = Vec::new();
    for (_, path, text) in sources() {
        let is_root = path.file_name().is_some_and(|name| name == "lib.rs");
        for line in before_tests(&text).lines() {
            let opens = line.trim_start().strip_prefix("pub mod ").filter(|_| !is_root);
            // Two tables of names are public on purpose, and three formats whose verbs need their noun
            // (`dkim::sign`, `dsn::write`, `returned::read`); everything else is re-exported by name.
            if opens.is_some_and(|rest| {
                rest.ends_with(';')
                    && !matches!(rest, "codec;" | "lease;" | "conformance;" | "dkim;" | "dsn;" | "returned;")
            }) {
                problems.push(format!("{}: {line}", path.display()));
            }
            if line.contains("pub use") && line.contains("::*") {
                problems.push(format!("{}: {line}", path.display()));
            }
            if line.contains("static mut ") || line.contains("lazy_static!") {
                problems.push(format!("{}: {line}", path.display()));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn rfc_citations_are_well_formed() {
    let mut problems = Vec::new();
    for (_, path, text) in sources() {
        for (at, _) in text.match_indices("RFC") {
            let rest = &text[at + 3..];
            let digits = rest.trim_start_matches(' ').chars().take_while(char::is_ascii_digit).count();
            if rest.starts_with(' ')
                && !(3..=5).contains(&digits)
                && rest[1..].starts_with(|c: char| c.is_ascii_digit())
            {
                problems.push(format!("{}: RFC{}", path.display(), rest.lines().next().unwrap_or("")));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn decisions_are_numbered_once_each() {
    let mut seen = BTreeMap::new();
    for entry in fs::read_dir(root().join("docs/decisions")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        let number = name.split('-').next().unwrap_or_default().to_owned();
        assert!(number.len() == 4 && number.bytes().all(|byte| byte.is_ascii_digit()), "{name} has no number");
        if let Some(other) = seen.insert(number, name.clone()) {
            panic!("{name} and {other} have the same number");
        }
    }
}

/// README, CHANGELOG and everything below `docs`.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![root().join("README.md"), root().join("CHANGELOG.md")];
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    pages
}

#[test]
fn every_relative_link_in_the_documentation_leads_somewhere() {
    let (mut problems, mut followed) = (Vec::new(), 0);
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for (at, opening) in text.match_indices("](") {
            let rest = &text[at + opening.len()..];
            let target = rest.split([')', '#', ' ']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            followed += 1;
            if !page.parent().unwrap().join(target).exists() {
                problems.push(format!("{}: {target} does not exist", page.display()));
            }
        }
    }
    assert!(followed > 10, "links are no longer recognised");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn pages_named_in_messages_exist() {
    let mut problems = Vec::new();
    for (_, path, text) in sources().into_iter().filter(|(_, path, _)| !is_test_file(path)) {
        for (at, _) in text.match_indices("docs/") {
            let name: String =
                text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || "/-_.".contains(*c)).collect();
            let name = name.trim_end_matches('.');
            if name.ends_with(".md") && !root().join(name).exists() {
                problems.push(format!("{}: {name} does not exist", path.display()));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn every_point_of_the_promise_names_tests_that_exist() {
    let page = fs::read_to_string(root().join("docs/promise.md")).unwrap();
    let (mut problems, mut points, mut proofs) = (Vec::new(), 0, 0);
    for section in page.split("\n## ").skip(1).filter(|section| section.starts_with(|c: char| c.is_ascii_digit())) {
        points += 1;
        let title = section.lines().next().unwrap_or_default();
        let mut named = 0;
        for (at, opening) in section.match_indices("[`") {
            let rest = &section[at + opening.len()..];
            let Some((name, rest)) = rest.split_once("`](../") else { continue };
            let file = rest.split(')').next().unwrap_or_default();
            let text = fs::read_to_string(root().join(file)).unwrap_or_default();
            if !text.contains(&format!("fn {name}(")) {
                problems.push(format!("{title}: {file} has no test {name}"));
            }
            named += 1;
        }
        proofs += named;
        if named == 0 && !section.contains("**Not shown yet.**") {
            problems.push(format!("{title}: neither a test nor a word that there is none"));
        }
    }
    assert!(points == 10 && proofs > 15, "{points} points and {proofs} proofs: the page is no longer understood");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// What lies at the top of the repository, besides dot files and licences; nothing creeps in unseen.
const TOP: &[&str] = &[
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "README.md",
    "docs",
    "etc",
    "src",
    "systemd",
    "tests",
    // A crate with six changes of our own: docs/decisions/0003-sled-version-and-successor.md.
    "vendor",
];

#[test]
fn the_top_of_the_repository_holds_only_what_it_should() {
    let listed = std::process::Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    let listed = listed.ok().filter(|listed| listed.status.success() && root().join(".git").exists());
    let names: std::collections::BTreeSet<String> = match listed {
        Some(listed) => {
            let text = String::from_utf8(listed.stdout).unwrap();
            text.split_terminator('\0').map(|path| path.split('/').next().unwrap().to_owned()).collect()
        }
        // An unpacked release: what is there, besides what a build made.
        None => {
            let entries = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name());
            entries.map(|name| name.to_string_lossy().into_owned()).filter(|name| name != "target").collect()
        }
    };
    let is_fine =
        |name: &&String| name.starts_with('.') || name.starts_with("LICENSE-") || TOP.contains(&name.as_str());
    let strange: Vec<_> = names.iter().filter(|name| !is_fine(name)).collect();
    assert!(strange.is_empty(), "{strange:?}: find these a place below, or give a reason in TOP");
    let gone: Vec<_> = TOP.iter().filter(|name| !names.contains(**name)).collect();
    assert!(gone.is_empty(), "{gone:?} are no longer there");
    assert!(names.iter().any(|name| name.starts_with("LICENSE-")), "no licence");
}
