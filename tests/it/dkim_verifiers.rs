//! What the pipeline signs is verified by programs that are not ours: dkimpy and Perl's Mail::DKIM.
//! Every sample message goes through, and each verifier must also see a second From.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use postern::domains::Signer;
use postern::ext::Timestamp;
use postern::mail::dkim::{self, Algorithm, Algorithms, SigningKeys};
use postern::mail::{
    Body, BodyWriter, Class, Domain, Draft, Envelope, ForwardPath, MailParameters, QueueId, ReversePath, TenantId,
    VipId, split_entity,
};
use postern::pipeline::{About, Parts, Pipeline, Settings, SmtpFacts, Source, Way};

use crate::harness::not_run;

const NOW: Timestamp = Timestamp(1_795_342_500_000);

struct Signed {
    folder: tempfile::TempDir,
    zone: PathBuf,
    /// Final messages as the pipeline made them.
    good: Vec<PathBuf>,
    /// The same with a second From.
    tampered: Vec<PathBuf>,
}

fn samples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/messages");
    let mut found: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "eml"));
    found.sort();
    found
}

fn about() -> About {
    let facts = SmtpFacts { helo: "client".into(), peer: ([192, 0, 2, 1], 4000).into(), tls: "TLSv1.3".into() };
    let source = Source {
        tenant: TenantId(1),
        account: None,
        vip: VipId(1),
        vip_name: Domain::parse("mx.shop.example").unwrap(),
        class: Class::Transactional,
        way: Way::Smtp(facts),
    };
    let envelope = Envelope {
        reverse_path: ReversePath(Some("a@shop.example".parse().unwrap())),
        parameters: MailParameters::default(),
        recipients: vec![ForwardPath::plain("b@x.example".parse().unwrap())],
    };
    About::new(QueueId::new(NOW), NOW, source, envelope)
}

/// Reads a file with any line ends as a draft with CRLF.
fn draft(path: &Path, spill_folder: &Path) -> Draft {
    let bytes = std::fs::read(path).unwrap();
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let message =
        lines.flat_map(|line| [line.strip_suffix(b"\n").unwrap_or(line), b"\r\n"].concat()).collect::<Vec<_>>();
    let (header, body) = split_entity(&message).unwrap();
    let mut writer = BodyWriter::new(spill_folder);
    writer.write(body).unwrap();
    Draft { header, body: writer.finish().unwrap() }
}

async fn sign_samples() -> Signed {
    let folder = tempfile::tempdir().unwrap();
    let made = dkim::generate().unwrap();
    let keys = SigningKeys::from_pkcs8(&made.rsa, &made.ed25519).unwrap();
    let zone = folder.path().join("zone");
    let record =
        |selector: &str, algorithm| format!("{selector}._domainkey.shop.example\t{}\n", keys.public_record(algorithm));
    std::fs::write(&zone, record("r1", Algorithm::Rsa) + &record("e1", Algorithm::Ed25519)).unwrap();
    let signer = Arc::new(Signer {
        domain: Domain::parse("shop.example").unwrap(),
        rsa_selector: "r1".to_owned(),
        ed25519_selector: "e1".to_owned(),
        keys,
        algorithms: Algorithms::Both,
    });
    let parts = Parts {
        signer: Arc::new(move |_, _| Ok(Arc::clone(&signer))),
        name_signer: Arc::new(|_, _| None),
        suppressed: Arc::new(|_, _, _| Ok(false)),
        count: Arc::new(|_, _, _| Ok(())),
        marks: Arc::new(|_, _, _| None),
        uncount: Arc::new(|_, _| {}),
        sender: Arc::new(|_, _| Ok(())),
        dialects: Arc::new(|_| Vec::new()),
    };
    let settings = Settings { spill_folder: folder.path().to_owned(), ..Settings::default() };
    let pipeline = Pipeline::new(parts, settings);
    let (mut good, mut tampered) = (Vec::new(), Vec::new());
    let mut drafts: Vec<_> = samples().iter().map(|path| draft(path, folder.path())).collect();
    let mut long = drafts[0].clone();
    let mut writer = BodyWriter::new(folder.path());
    (0..30_000).for_each(|line| writer.write(format!("line {line}  of a spilled body \r\n").as_bytes()).unwrap());
    long.body = writer.finish().unwrap();
    assert!(matches!(long.body, Body::Spilled(_)));
    drafts.push(long);
    for (number, draft) in drafts.into_iter().enumerate() {
        let prepared = pipeline.prepare(draft, about()).await.unwrap();
        let mut bytes = prepared.sealed.head.to_vec();
        prepared.sealed.body.slices().for_each(|slice| bytes.extend_from_slice(&slice.unwrap()));
        let path = folder.path().join(format!("good-{number}"));
        std::fs::write(&path, &bytes).unwrap();
        good.push(path);
        let path = folder.path().join(format!("tampered-{number}"));
        std::fs::write(&path, [b"From: b@evil.example\r\n".as_slice(), &bytes].concat()).unwrap();
        tampered.push(path);
    }
    assert!(good.len() >= 15);
    Signed { folder, zone, good, tampered }
}

/// One line per message.
pub fn verdicts(command: &mut Command, zone: &Path, messages: &[PathBuf]) -> Vec<Vec<String>> {
    let output = command.arg(zone).args(messages).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Vec<String>> =
        text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect();
    assert_eq!(lines.len(), messages.len());
    lines
}

pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/foreign").join(name)
}

pub fn runs(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

#[tokio::test]
async fn dkimpy_verifies_both_signatures_and_sees_a_second_from() {
    let python = ["python3", "/usr/bin/python3"].into_iter().find(|program| runs(program, &["-c", "import dkim"]));
    let Some(python) = python else {
        return not_run("DKIM verified by dkimpy", "python3-dkim is not installed");
    };
    let has_ed25519 = runs(python, &["-c", "import nacl.signing"]);
    if !has_ed25519 {
        not_run("Ed25519 DKIM verified by dkimpy", "python3-nacl is not installed");
    }
    let signed = sign_samples().await;
    let run =
        |messages: &[PathBuf]| verdicts(Command::new(python).arg(script("verify_dkim.py")), &signed.zone, messages);
    for (path, line) in signed.good.iter().zip(run(&signed.good)) {
        assert_eq!(line.len(), 2, "{path:?}");
        assert_eq!(line[0], "pass", "RSA, {path:?}: {}", std::fs::read_to_string(path).unwrap_or_default());
        assert!(!has_ed25519 || line[1] == "pass", "Ed25519, {path:?}: {line:?}");
    }
    for line in run(&signed.tampered) {
        assert!(line.iter().all(|verdict| verdict != "pass"), "{line:?}");
    }
    drop(signed.folder);
}

#[tokio::test]
async fn mail_dkim_of_perl_verifies_what_it_can_and_sees_a_second_from() {
    if !runs("perl", &["-MMail::DKIM::Verifier", "-e", "1"]) {
        return not_run("DKIM verified by Mail::DKIM", "libmail-dkim-perl is not installed");
    }
    let has_ed25519 = runs("perl", &["-MMail::DKIM::Algorithm::ed25519_sha256", "-e", "1"]);
    if !has_ed25519 {
        not_run("Ed25519 DKIM verified by Mail::DKIM", "this version of it knows RSA only");
    }
    let signed = sign_samples().await;
    let run =
        |messages: &[PathBuf]| verdicts(Command::new("perl").arg(script("verify_dkim.pl")), &signed.zone, messages);
    for (path, line) in signed.good.iter().zip(run(&signed.good)) {
        assert_eq!(line.len(), 2, "{path:?}");
        assert_eq!(line[0], "pass", "RSA, {path:?}");
        assert!(!has_ed25519 || line[1] == "pass", "Ed25519, {path:?}: {line:?}");
    }
    for line in run(&signed.tampered) {
        assert!(line.iter().all(|verdict| verdict != "pass"), "{line:?}");
    }
}
