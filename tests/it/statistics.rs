//! Statistics of a whole daemon that is killed again and again: afterwards they are those of the log.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use postern::events::{Archive, EventKind, EventLog, MailEvent};
use postern::statistics::{Said, Status};
use serde_json::Value;

use crate::harness::load::SinkMood;
use crate::harness::moments::pause;
use crate::harness::not_run;
use crate::harness::promise::{Promise, is_quick, rounds};

const ROUNDS: u64 = 6;
/// Counts are stored every ten seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the log says of tenants' own mail, and how many recipients each sending domain reached.
fn counted_from_the_log(data: &std::path::Path) -> (BTreeMap<&'static str, u64>, BTreeMap<String, u64>) {
    let settings = postern::store::Settings { folder: data.join("store"), ..Default::default() };
    let opened = postern::store::open(settings).unwrap();
    let archive = Arc::new(Archive::open(data.join("history")).unwrap());
    let log = EventLog::new(opened.records).with_archive(archive);
    let mut reader = log.reader(EventLog::beginning());
    let mut counts = BTreeMap::<&'static str, u64>::new();
    let mut notices = std::collections::HashSet::new();
    let (mut senders, mut reached) = (HashMap::new(), BTreeMap::<String, u64>::new());
    loop {
        let page = reader.next_page(4_096).unwrap();
        for (_, event) in &page.events {
            let EventKind::Mail(id, told) = &event.kind else { continue };
            if let MailEvent::Accepted(accepted) = told {
                if accepted.source == "notice" {
                    notices.insert(*id);
                    continue;
                }
                let (_, domain) = accepted.signatures[0].split_once("._domainkey.").unwrap();
                senders.insert(*id, domain.to_owned());
                *counts.entry("messages").or_default() += 1;
                *counts.entry(Status::Injected.word()).or_default() += u64::from(accepted.recipients);
            } else if let Some(said) = Said::by(told).filter(|_| !notices.contains(id)) {
                *counts.entry(said.status.word()).or_default() += said.recipients.len() as u64;
                if said.status == Status::Ok {
                    *reached.entry(senders[id].clone()).or_default() += said.recipients.len() as u64;
                }
            }
        }
        if page.is_end {
            return (counts, reached);
        }
    }
}

#[test]
fn after_kills_at_any_moment_the_counts_are_those_of_the_log() {
    if is_quick() {
        return not_run("kill rounds of statistics", "left out of the quick run");
    }
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut promise = Promise::make(folder.path(), &data, SinkMood::DefersEvery(10));
    for round in 0..rounds(ROUNDS) {
        let senders = promise.senders();
        thread::sleep(pause(round));
        // Every second round ends in order, so that counts are stored; the next goes on from them.
        if round % 2 == 0 {
            promise.instance.kill();
        } else {
            promise.instance.stop();
        }
        senders.stop();
        promise.instance.start();
        promise.instance.wait_for_door();
    }
    let missing = promise.settle();
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?}");
    promise.instance.stop();
    let (expected, reached) = counted_from_the_log(&data);
    assert!(expected["injected"] > 20 && expected["ok"] > 20 && expected["deferred"] > 0, "{expected:?}");
    promise.instance.start();
    let began = Instant::now();
    loop {
        let ask = |more: &[&str]| -> Value {
            let arguments: Vec<&str> = ["stats", "--step", "total", "--json"].iter().chain(more).copied().collect();
            serde_json::from_str(&promise.instance.tool(&arguments)).unwrap()
        };
        let totals = ask(&[])["totals"].clone();
        let differing: Vec<_> = expected.iter().filter(|(word, count)| totals[**word] != **count).collect();
        if differing.is_empty() {
            for by in ["tenant", "smtp-account", "domain", "provider", "vip"] {
                let rows = ask(&["--by", by])["rows"].clone();
                let sum: u64 = rows.as_array().unwrap().iter().map(|row| row["ok"].as_u64().unwrap()).sum();
                assert_eq!(sum, expected["ok"], "by {by}: {rows}");
            }
            let rows = ask(&["--by", "sending-domain"])["rows"].clone();
            let row = |row: &Value| (row["group"].as_str().unwrap().to_owned(), row["ok"].as_u64().unwrap());
            let counted: BTreeMap<String, u64> = rows.as_array().unwrap().iter().map(row).collect();
            assert_eq!(counted, reached, "by sending domain");
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{differing:?} differ from {totals}");
        thread::sleep(Duration::from_millis(200));
    }
}
