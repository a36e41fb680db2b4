//! Every folder of `tests/data/bad-configs` is a mistake somebody may make: `postern.toml` and
//! what `postern check` says about it, word by word, in `expected.txt`.
//!
//! After a change of wording: `POSTERN_WRITE_DOCUMENTS=1 cargo test --test it config_mistakes`,
//! then read the difference.

use std::fs;
use std::path::Path;

#[test]
fn every_mistake_in_a_configuration_is_told_with_its_line_and_remedy() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bad-configs");
    let mut played = 0;
    let mut wrong = Vec::new();
    let mut cases: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    for case in cases {
        let text = fs::read_to_string(case.join("postern.toml")).unwrap();
        let problems = postern::config::read(Path::new("postern.toml"), &text).err().unwrap_or_default();
        let told: String = problems.iter().map(|problem| format!("{problem}\n")).collect();
        if std::env::var_os("POSTERN_WRITE_DOCUMENTS").is_some() {
            fs::write(case.join("expected.txt"), &told).unwrap();
        }
        let expected = fs::read_to_string(case.join("expected.txt")).unwrap_or_default();
        if told != expected || told.is_empty() {
            wrong.push(format!("{}:\n--- expected\n{expected}--- told\n{told}", case.display()));
        }
        played += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(played >= 15, "only {played} mistakes are there");
}
