//! The table against itself and against the rooms' own defaults, and the generated documents.

use super::settings::{SECTIONS, SETTINGS};
use super::*;

const MINIMAL: &str = "hostname = \"mx.example.com\"\n";

fn problems(text: &str) -> Vec<String> {
    let found = read(Path::new("postern.toml"), text).err().unwrap_or_default();
    found.iter().map(ToString::to_string).collect()
}

fn minimal() -> Config {
    read(Path::new("postern.toml"), MINIMAL).unwrap()
}

#[test]
fn a_host_name_alone_is_a_configuration() {
    let config = minimal();
    assert_eq!(config.hostname.as_str(), "mx.example.com");
    assert_eq!(config.submission.tls_ports, [465]);
    assert_eq!(config.submission.starttls_ports, [587, 2525]);
    assert_eq!(config.monitor.unwrap().to_string(), "127.0.0.1:9125");
}

#[test]
fn every_setting_has_an_effect_a_section_and_words() {
    let path = Path::new("postern.toml");
    let file = file::File::read(path, MINIMAL);
    check::build_for_tests(path, &file);
    assert_eq!(file.unused(), [""; 0], "settings that nothing reads");
    for setting in SETTINGS {
        setting.default_value();
        assert!(SECTIONS.iter().any(|(section, _)| *section == setting.section()), "{}", setting.key);
        assert!(setting.meaning.ends_with('.') && setting.who.ends_with('.'), "{}", setting.key);
    }
    let sections = SECTIONS.iter().filter(|(section, _)| !SETTINGS.iter().any(|setting| setting.section() == *section));
    assert_eq!(sections.count(), 0, "sections without settings");
}

#[test]
fn the_documented_defaults_are_those_of_the_rooms() {
    let config = minimal();
    assert_eq!(config.accounts, accounts::Settings::default());
    assert_eq!(config.breaker, breaker::Limits::default());
    assert_eq!(config.queue, queue::Settings::default());
    assert_eq!(config.submission, submission::Settings::default());
    assert_eq!(config.delivery, delivery::Settings::default());
    assert_eq!(config.pipeline, pipeline::Settings::default());
    assert_eq!(config.store, store::Settings::default());
    let site = crate::people::Site::parse("https://mx.example.com:8443").ok();
    assert_eq!(config.web, web::Settings { site, ..Default::default() });
    assert_eq!(config.dns, DnsSettings::default());
}

#[test]
fn all_problems_are_told_at_once_and_by_line() {
    let text =
        "hostnam = \"mx.example.com\"\n[queue]\nretry_first = 300\nexpire_after = \"3 weeks\"\n[delivry]\nport = 25\n";
    let told = problems(text);
    assert_eq!(
        told,
        [
            "postern.toml: hostname: is missing; write hostname = \"mx.example.com\"",
            "postern.toml:1: hostnam: there is no such setting; did you mean hostname?",
            "postern.toml:3: queue.retry_first: must be a string; put it in quotes, with its unit if it has one",
            "postern.toml:4: queue.expire_after: must be a duration such as \"5m\" (units s, m, h, d), not \"3 weeks\"",
            "postern.toml:5: delivry: there is no such setting; did you mean delivery?",
        ]
    );
}

#[test]
fn text_that_is_not_toml_is_told_with_its_line() {
    let told = problems("hostname = \"mx.example.com\"\n[queue\nretry_first = \"5m\"\n");
    assert!(told[0].starts_with("postern.toml:2: "), "{told:?}");
}

#[test]
fn a_problem_is_one_line_whatever_the_key_holds() {
    let problems = problems("hostname = \"mx.example.com\"\n\"a\\nb\" = 1\n[log]\n\"le\\u007fvel\" = \"\\u001b\"\n");
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems.iter().all(|problem| !problem.chars().any(char::is_control)), "{problems:?}");
}

#[test]
fn two_configurations_are_compared_by_setting() {
    let old = minimal();
    let new = read(Path::new("other.toml"), "hostname = \"mx.example.com\"\n[log]\nlevel = \"debug\"\n").unwrap();
    let changed: Vec<_> = new.changes_from(&old).iter().map(|setting| (setting.key, setting.applied)).collect();
    assert_eq!(changed, [("log.level", Applied::OnReload)]);
    assert!(old.changes_from(&minimal()).is_empty());
}

#[test]
fn a_credential_is_found_in_the_folder_systemd_gives() {
    let text = "hostname = \"mx.example.com\"\n[secrets]\nmaster_key = \"credential:master-key\"\n";
    let config = read(Path::new("postern.toml"), text).unwrap();
    let found = config.master_key_file(Some(Path::new("/run/credentials/postern.service"))).unwrap();
    assert_eq!(found, Path::new("/run/credentials/postern.service/master-key"));
    assert!(config.master_key_file(None).unwrap_err().contains("LoadCredential="));
}

#[test]
fn the_documents_are_those_the_table_gives() {
    // To write them anew: POSTERN_WRITE_DOCUMENTS=1 cargo test --lib config::
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let documents = [
        (root.join("docs/config.md"), reference()),
        (root.join("etc/postern.toml"), example(&Domain::parse("mx.example.com").unwrap())),
    ];
    for (path, text) in documents {
        if std::env::var_os("POSTERN_WRITE_DOCUMENTS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(written == text, "{} is out of date; set POSTERN_WRITE_DOCUMENTS=1 and run this test", path.display());
    }
}

#[test]
fn the_example_checks_and_sets_nothing_but_the_name() {
    let config = read(Path::new("postern.toml"), &example(&Domain::parse("mx.example.com").unwrap())).unwrap();
    assert!(config.changes_from(&minimal()).is_empty());
    // With every comment taken as a setting it checks as well.
    let all: Vec<String> = example(&Domain::parse("mx.example.com").unwrap())
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => rest.to_owned(),
            _ => line.to_owned(),
        })
        .collect();
    let config = read(Path::new("postern.toml"), &all.join("\n")).unwrap();
    assert!(config.changes_from(&minimal()).is_empty());
}
