//! A copy of the records that a later release wrote: nobody guesses what is in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::copy::{self, FOLDER, FORMAT};
use super::frame::Salt;
use super::tests::{Place, eventually};
use super::{OpenError, Settings, open, prefix, salvage_records};

/// Every file below `folder` with its octets.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => drop(found.insert(path.clone(), fs::read(&path).unwrap())),
        }
    }
    found
}

/// A closed store with some records and their copy, which says that it has `format`.
fn with_copy_of(format: u32) -> Place {
    let place = Place::new();
    let opened = place.open();
    for number in 0..20 {
        place.put(&opened, &format!("T{number:02}"), 500);
    }
    let folder = place.settings.folder.join(FOLDER);
    let copies = || fs::read_dir(&folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let is_copy = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "records");
    eventually("a copy is there", || copies().any(|path| is_copy(&path)));
    drop(opened);
    let path = copies().filter(is_copy).max().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let mut salt = [0; 24];
    salt.copy_from_slice(&bytes[12..36]);
    let head = copy::head(Salt(salt), format);
    bytes[..head.len()].copy_from_slice(&head);
    fs::write(&path, bytes).unwrap();
    place
}

fn assert_refused(settings: &Settings, what: &str) {
    let before = files(&settings.folder);
    let error = open(settings.clone()).err().unwrap_or_else(|| panic!("{what}: opened"));
    let text = error.to_string();
    assert!(matches!(error, OpenError::Newer(_)), "{what}: {text}");
    assert!(text.contains(".records has format 2, and this release reads up to 1"), "{what}: {text}");
    assert!(files(&settings.folder) == before, "{what}: something was touched");
}

#[test]
fn a_store_whose_copy_has_a_newer_format_is_refused_and_stays_as_it_was() {
    let place = with_copy_of(FORMAT + 1);
    assert_refused(&place.settings, "whole records");
    // Without the records it must not be taken for a new store, nor be made anew from the journal alone.
    fs::remove_dir_all(place.settings.folder.join("records")).unwrap();
    assert_refused(&place.settings, "no records");
}

#[test]
fn the_same_store_is_opened_by_a_release_that_knows_the_format() {
    let place = with_copy_of(FORMAT);
    let opened = place.open();
    assert_eq!(opened.records.range(&[prefix::TENANT], &[prefix::TENANT + 1], 100).unwrap().len(), 20);
    assert_eq!(opened.engine.damage(), Vec::<String>::new());
}

#[test]
fn salvage_says_that_it_cannot_read_a_copy_of_a_newer_format_and_takes_what_the_journal_has() {
    let place = with_copy_of(FORMAT + 1);
    let before = files(&place.settings.folder);
    let found = salvage_records(&place.settings.folder, |key| key.first() == Some(&prefix::TENANT)).unwrap();
    assert_eq!(found.records.len(), 20);
    assert!(found.lacking.iter().any(|text| text.contains("has format 2")), "{:?}", found.lacking);
    assert!(files(&place.settings.folder) == before);
}
