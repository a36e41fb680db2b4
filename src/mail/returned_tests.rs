//! Every sample in `tests/data/returned` is read as its table says.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::*;

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/returned")
}

fn sample(name: &str) -> Vec<u8> {
    fs::read_to_string(folder().join(name)).unwrap().replace("\r\n", "\n").replace('\n', "\r\n").into_bytes()
}

fn or_dash(words: Vec<String>) -> String {
    if words.is_empty() { "-".to_owned() } else { words.join(" ") }
}

fn words(returned: &Returned) -> Vec<String> {
    let addresses = |addresses: &[Address]| or_dash(addresses.iter().map(ToString::to_string).collect());
    match returned {
        Returned::Report(report) => {
            let one = &report.recipients[0];
            vec![
                format!("{:?}", report.form),
                format!("{:?}", one.action),
                one.address.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
                one.status.map_or_else(|| "-".to_owned(), |status| status.to_string()),
                one.diagnostic.clone(),
            ]
        }
        Returned::Complaint(complaint) => vec![
            "Complaint".to_owned(),
            format!("{:?}", complaint.kind),
            complaint.reporter.clone(),
            addresses(&complaint.recipients),
            addresses(&complaint.reverse_paths),
            complaint.trace.clone().unwrap_or_else(|| "-".to_owned()),
        ],
        Returned::AutoReply => vec!["AutoReply".to_owned()],
        Returned::Other => vec!["Other".to_owned()],
    }
}

#[test]
fn every_sample_is_read_as_the_table_says() {
    let table = fs::read_to_string(folder().join("expected.txt")).unwrap();
    let mut failures = Vec::new();
    let mut seen = 0;
    for line in table.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        seen += 1;
        let expected: Vec<&str> = line.split(" | ").collect();
        let found = words(&read(&sample(expected[0])));
        // Of a report's diagnostic the table has the beginning.
        let is_report = expected.len() == 6;
        let fits = found.len() == expected.len() - 1
            && found.iter().zip(&expected[1..]).enumerate().all(|(at, (found, expected))| {
                if at == 4 && is_report { found.starts_with(expected) } else { found == expected }
            });
        if !fits {
            failures.push(format!("{line}\n    found {found:?}"));
        }
    }
    let files = fs::read_dir(folder())
        .unwrap()
        .filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "eml"));
    assert_eq!(seen, files.count(), "every file is in the table");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn our_own_notices_are_read_too() {
    use crate::ext::Timestamp;
    use crate::mail::dsn::{self, Diagnostic, Kind, Notice};
    use crate::mail::{Domain, QueueId};
    let (host, to) = (Domain::parse("mx.there.example").unwrap(), Address::parse("b0@bounce.shop.example").unwrap());
    let recipients = [dsn::Reported {
        address: Address::parse("ann@there.example").unwrap(),
        orcpt: None,
        action: dsn::Action::Failed,
        status: EnhancedStatus::new(5, 1, 1),
        remote_mta: Some("store.there.example".to_owned()),
        diagnostic: Some(Diagnostic::Smtp("550 5.1.1 gone\r\nfor good".to_owned())),
        last_attempt: None,
        will_retry_until: None,
    }];
    let notice = Notice {
        kind: Kind::Failure,
        reporting_mta: &host,
        to: &to,
        about: QueueId::new(Timestamp(1)),
        envid: None,
        ret: None,
        arrival: Timestamp(1_000),
        recipients: &recipients,
        original: b"From: a@shop.example\r\n\r\n",
        original_length: 24,
    };
    let draft = dsn::write(&notice, Timestamp(2_000));
    let mut octets = draft.header.to_bytes();
    octets.extend_from_slice(b"\r\n");
    draft.body.slices().for_each(|slice| octets.extend_from_slice(&slice.unwrap()));
    let found = words(&read(&octets));
    assert_eq!(found, ["Standard", "Failed", "ann@there.example", "5.1.1", "550 5.1.1 gone for good"]);
}

#[test]
fn a_report_of_very_many_recipients_is_read_within_bounds() {
    let mut text = String::from(
        "From: MAILER-DAEMON@x.example\r\nMIME-Version: 1.0\r\nContent-Type: multipart/report; boundary=\"b\"\r\n\r\n\
         --b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; x.example\r\n\r\n",
    );
    for number in 0..5_000 {
        text.push_str(&format!(
            "Final-Recipient: rfc822; a{number}@x.example\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\n"
        ));
    }
    text.push_str("--b--\r\n");
    let Returned::Report(report) = read(text.as_bytes()) else { panic!("a report") };
    assert_eq!(report.recipients.len(), REPORTED_MAX);
}

proptest! {
    #[test]
    fn whatever_comes_is_read_without_a_panic(octets in proptest::collection::vec(any::<u8>(), 0..2_000)) {
        let _ = read(&octets);
    }

    #[test]
    fn a_sample_with_octets_changed_is_read_without_a_panic(
        which in 0..21_usize,
        changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..20),
    ) {
        let mut files: Vec<_> = fs::read_dir(folder()).unwrap().map(|file| file.unwrap().file_name()).collect();
        files.sort();
        let name = files[which % files.len()].to_string_lossy().into_owned();
        let mut octets = sample(&name);
        for (at, to) in changes {
            let at = usize::from(at) % octets.len();
            octets[at] = to;
        }
        let _ = read(&octets);
    }
}
