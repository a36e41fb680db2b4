//! Notices read by a program that is not ours: Python's email package.

use std::process::Command;

use postern::ext::Timestamp;
use postern::mail::dsn::{self, Action, Diagnostic, Kind, Notice, Reported};
use postern::mail::{Domain, EnhancedStatus, QueueId, Ret};

use crate::harness::not_run;

fn reported(address: &str) -> Reported {
    Reported {
        address: address.parse().unwrap(),
        orcpt: Some(format!("rfc822;{address}")),
        action: Action::Failed,
        status: EnhancedStatus::new(5, 1, 1),
        remote_mta: Some("mx.x.example".to_owned()),
        diagnostic: Some(Diagnostic::Smtp("550-5.1.1 no such user\r\n550 5.1.1 see https://x.example/".to_owned())),
        last_attempt: Some(Timestamp(1_795_342_500_000)),
        will_retry_until: None,
    }
}

#[test]
fn python_reads_a_failure_notice() {
    if Command::new("python3").arg("--version").output().is_err() {
        return not_run("DSN read by Python's email package", "python3 is not installed");
    }
    let folder = tempfile::tempdir().unwrap();
    let original = b"From: a@shop.example\r\nSubject: the order\r\n\r\nbody\r\n";
    for (ret, kind) in [(None, "text/rfc822-headers"), (Some(Ret::Full), "message/rfc822")] {
        let notice = Notice {
            kind: Kind::Failure,
            reporting_mta: &Domain::parse("mx.shop.example").unwrap(),
            to: &"a@shop.example".parse().unwrap(),
            about: QueueId([1; 16]),
            envid: Some("QQ314159"),
            ret,
            arrival: Timestamp(1_795_342_000_000),
            recipients: &[reported("b@x.example"), reported("c@x.example")],
            original,
            original_length: original.len() as u64,
        };
        let sealed = dsn::write(&notice, Timestamp(1_795_342_600_000)).seal();
        let mut bytes = sealed.head.to_vec();
        sealed.body.slices().for_each(|slice| bytes.extend_from_slice(&slice.unwrap()));
        let path = folder.path().join("notice");
        std::fs::write(&path, bytes).unwrap();
        let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/foreign/read_notice.py");
        let output = Command::new("python3").arg(script).arg(&path).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let recipient = |address: &str| {
            format!(
                "recipient: rfc822;{address} | rfc822; {address} | failed | 5.1.1 | dns; mx.x.example | \
                 smtp; 550-5.1.1 no such user 550 5.1.1 see https://x.example/"
            )
        };
        let expected = format!(
            "about: dns; mx.shop.example QQ314159 Sun, 22 Nov 2026 10:06:40 +0000\n{}\n{}\n\
             original: {kind} the order\ntext: text/plain True\n",
            recipient("b@x.example"),
            recipient("c@x.example"),
        );
        assert_eq!(text, expected, "{}", String::from_utf8_lossy(&output.stderr));
    }
}
