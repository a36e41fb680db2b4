//! The room over a store in memory, a zone made of maps, a host that answers POSTs by script, and a clock that is
//! a value.

use std::collections::HashMap;
use std::io::Read as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU16, Ordering};

use async_trait::async_trait;
use mail_parser::MimeHeaders as _;
use serde_json::{Value, json};

use super::sending::due_at;
use super::*;
use crate::access::Role;
use crate::intake;
use crate::mail::split_entity;
use crate::net::{Answer, LookupError, Mx, Outgoing, PostError, Target};
use crate::pipeline::{self, Pipeline, samples};
use crate::queue::{self, Queue};
use crate::routing::{Routes, TransportName};
use crate::seal::MasterKey;
use crate::store::{Blobs, MemoryStore, after_prefix};
use crate::vips::{NewVip, Owner};

const HOST: &str = "mx.host.example";
/// The day that is reported.
const DAY: Day = 20_780;
const RETRY_FIRST: Duration = Duration::from_secs(15 * 60);
const HOUR: Duration = Duration::from_secs(3_600);

fn domain(name: &str) -> Domain {
    Domain::parse(name).unwrap()
}

/// TXT records by name; `silent.example` never answers.
#[derive(Default)]
struct Dns(Mutex<HashMap<String, Vec<String>>>);

#[async_trait]
impl Resolver for Dns {
    async fn mx(&self, _: &Domain) -> Result<Vec<Mx>, LookupError> {
        Err(LookupError::NoRecord)
    }
    async fn ipv4(&self, _: &Domain) -> Result<Vec<Ipv4Addr>, LookupError> {
        Err(LookupError::NoRecord)
    }
    async fn ipv6(&self, _: &Domain) -> Result<Vec<Ipv6Addr>, LookupError> {
        Err(LookupError::NoRecord)
    }
    async fn txt(&self, name: &Domain) -> Result<Vec<String>, LookupError> {
        match name.as_str().ends_with("silent.example") {
            true => Err(LookupError::Temporary("no answer".to_owned())),
            false => records::lock(&self.0).get(name.as_str()).cloned().ok_or(LookupError::NoRecord),
        }
    }
    async fn ptr(&self, _: IpAddr) -> Result<Vec<Domain>, LookupError> {
        Err(LookupError::NoRecord)
    }
}

/// Answers with the status it was told.
#[derive(Default)]
struct Host {
    status: AtomicU16,
    posted: Mutex<Vec<(String, Outgoing)>>,
}

#[async_trait]
impl Post for Host {
    async fn post(&self, _: &Line, target: &Target, request: Outgoing, _: Duration) -> Result<Answer, PostError> {
        records::lock(&self.posted).push((target.host(), request));
        match self.status.load(Ordering::SeqCst) {
            0 => Err(PostError::Private(target.host(), Ipv4Addr::LOCALHOST.into())),
            status => {
                let peer = ([192, 0, 2, 1], 443).into();
                Ok(Answer { status, retry_after: None, body: Vec::new(), peer })
            }
        }
    }
}

/// The room and what is around it.
pub(super) struct Room {
    pub(super) reports: TlsReports,
    store: Arc<MemoryStore>,
    dns: Arc<Dns>,
    host: Arc<Host>,
}

/// The room over what `store` holds.
pub(super) fn room(store: Arc<MemoryStore>, sending: Sending) -> Room {
    let (dns, host) = (Arc::new(Dns::default()), Arc::new(Host::default()));
    let parts = Parts {
        store: store.clone(),
        resolver: dns.clone(),
        post: host.clone(),
        vips: Arc::new(Vips::open(store.clone()).unwrap()),
        signed_as: Arc::new(|vip, _| (vip.ehlo.as_str() == HOST).then(|| vip.ehlo.clone())),
        calendar: Default::default(),
    };
    let (organization, contact) = ("Host & Co".to_owned(), "postmaster@mx.host.example".to_owned());
    let settings = Settings { sending, organization, contact };
    Room { reports: TlsReports::open(parts, settings).unwrap(), store, dns, host }
}

impl Room {
    /// With a shared virtual IP behind a NAT.
    async fn with_vip(ehlo: &str) -> Self {
        let store = Arc::new(MemoryStore::new());
        let new = NewVip {
            ipv4: Some([192, 0, 2, 1].into()),
            ipv6: None,
            public_ipv4: Some([203, 0, 113, 9].into()),
            public_ipv6: None,
            ehlo: domain(ehlo),
            owner: Owner::Shared,
        };
        Vips::open(store.clone()).unwrap().add(&Actor::local(0), new, Timestamp(0)).await.unwrap();
        room(store, Sending::On)
    }

    /// The same over the same records, as after a restart.
    async fn restarted(self) -> Self {
        let next = room(self.store.clone(), Sending::On);
        std::mem::swap(&mut *records::lock(&next.dns.0), &mut *records::lock(&self.dns.0));
        next
    }

    fn publishes(&self, name: &str, rua: &str) {
        records::lock(&self.dns.0).insert(format!("_smtp._tls.{name}"), vec![format!("v=TLSRPTv1; rua={rua}")]);
    }

    fn count(&self, name: &str, protection: &Protection, at: Timestamp) {
        let domain = domain(name);
        let session = Session {
            domain: &domain,
            vip: crate::mail::VipId(1),
            source: Some([192, 0, 2, 1].into()),
            host: Some("mx.there.example"),
            address: Some([198, 51, 100, 7].into()),
        };
        self.reports.count(&session, &[Policy::none(&domain).into()], protection, at);
    }

    async fn intake(&self) -> (Arc<Intake>, Arc<Queue>) {
        let records: Arc<dyn Store> = self.store.clone();
        let bodies: Arc<dyn Blobs> = self.store.clone();
        let queue = Queue::open(records.clone(), bodies, queue::Settings::default()).await.unwrap();
        let routes = Routes::open(records.clone(), Arc::new(MasterKey::from_bytes([7; 32]))).unwrap();
        let parts = pipeline::Parts {
            signer: samples::signer_for(&[]),
            name_signer: Arc::new(|_, _| Some(samples::signer(HOST))),
            suppressed: Arc::new(|_, _, _| Ok(false)),
            count: Arc::new(|_, _, _| Ok(())),
            marks: Arc::new(|_, _, _| None),
            uncount: Arc::new(|_, _| {}),
            sender: samples::any_sender(),
            dialects: Arc::new(|_| Vec::new()),
        };
        let settings = pipeline::Settings { spill_folder: std::env::temp_dir(), ..Default::default() };
        let (pipeline, queue) = (Arc::new(Pipeline::new(parts, settings)), Arc::new(queue));
        let may_enter = Arc::new(|_: &intake::Entering<'_>, _: Timestamp| Ok(()));
        let (routes, calendar) = (Arc::new(routes), Default::default());
        let parts = intake::Parts { pipeline, routes, queue: queue.clone(), store: records, may_enter, calendar };
        (Arc::new(Intake::new(parts)), queue)
    }

    /// What was mailed so far.
    fn mailed(&self) -> Vec<String> {
        let texts = self.store.bodies().into_iter().map(|id| {
            let mut reader = self.store.open(id).unwrap().unwrap();
            let mut bytes = Vec::new();
            while let Some(slice) = reader.next_slice().unwrap() {
                bytes.extend_from_slice(&slice);
            }
            String::from_utf8(bytes).unwrap()
        });
        texts.collect()
    }

    fn stages(&self) -> Vec<&'static str> {
        let listed = self.reports.list(&Actor::local(0)).unwrap();
        let words = listed.iter().map(|one| match one.stage {
            Stage::Counting => "counting",
            Stage::Due(_) => "due",
            Stage::Sent(_) => "sent",
        });
        words.collect()
    }
}

fn verified() -> Protection {
    Protection::Verified
}

fn not_offered() -> Protection {
    Protection::Plain(Lack { kind: LackKind::NotOffered, reason: "STARTTLS is not offered".to_owned() })
}

/// A moment of the day, and one when its report is due.
fn noon() -> Timestamp {
    begins(DAY).plus(12 * HOUR)
}

fn due(name: &str) -> Timestamp {
    due_at(DAY, &domain(name))
}

fn unpacked(gzip: &[u8]) -> Value {
    let mut json = String::new();
    flate2::read::GzDecoder::new(gzip).read_to_string(&mut json).unwrap();
    serde_json::from_str(&json).unwrap()
}

/// A member, what it must be, and whether it must be there.
type Rule = (&'static str, fn(&Value) -> bool, bool);
fn is_text(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !text.is_empty())
}
fn is_moment(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.len() == 20 && Timestamp::from_rfc3339(text).is_some())
}
fn is_address(value: &Value) -> bool {
    value.as_str().is_some_and(|text| crate::mail::Address::parse(text).is_ok())
}
fn is_texts(value: &Value) -> bool {
    value.as_array().is_some_and(|all| !all.is_empty() && all.iter().all(is_text))
}
fn is_name(value: &Value) -> bool {
    value.as_str().is_some_and(|text| Domain::parse(text).is_ok())
}
fn is_ip(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.parse::<IpAddr>().is_ok())
}
fn is_kind(value: &Value) -> bool {
    matches!(value.as_str(), Some("tlsa" | "sts" | "no-policy-found"))
}
fn is_result(value: &Value) -> bool {
    const ALL: [&str; 11] = [
        "starttls-not-supported",
        "certificate-host-mismatch",
        "certificate-expired",
        "certificate-not-trusted",
        "validation-failure",
        "tlsa-invalid",
        "dnssec-invalid",
        "dane-required",
        "sts-policy-fetch-error",
        "sts-policy-invalid",
        "sts-webpki-invalid",
    ];
    value.as_str().is_some_and(|text| ALL.contains(&text))
}
fn check(value: &Value, rules: &[Rule]) {
    let object = value.as_object().unwrap_or_else(|| panic!("no object: {value}"));
    for (name, is_fine, is_needed) in rules {
        match object.get(*name) {
            Some(member) => assert!(is_fine(member), "{name}: {member}"),
            None => assert!(!is_needed, "{name} is missing in {value}"),
        }
    }
    let strange = object.keys().find(|name| !rules.iter().any(|(known, _, _)| known == name));
    assert_eq!(strange, None, "{value}");
}

/// What RFC 8460 s4.4 says a report consists of: each member, its type, whether it must be there, and no other.
fn check_schema(report: &Value) {
    let any = |_: &Value| true;
    check(
        report,
        &[
            ("organization-name", is_text, true),
            ("date-range", any, true),
            ("contact-info", is_address, true),
            ("report-id", is_text, true),
            ("policies", Value::is_array, true),
        ],
    );
    check(&report["date-range"], &[("start-datetime", is_moment, true), ("end-datetime", is_moment, true)]);
    for policy in report["policies"].as_array().unwrap() {
        check(policy, &[("policy", any, true), ("summary", any, true), ("failure-details", Value::is_array, false)]);
        check(
            &policy["policy"],
            &[
                ("policy-type", is_kind, true),
                ("policy-string", is_texts, false),
                ("policy-domain", is_name, true),
                ("mx-host", is_texts, false),
            ],
        );
        check(
            &policy["summary"],
            &[
                ("total-successful-session-count", Value::is_u64, true),
                ("total-failure-session-count", Value::is_u64, true),
            ],
        );
        for detail in policy["failure-details"].as_array().unwrap_or(&Vec::new()) {
            check(
                detail,
                &[
                    ("result-type", is_result, true),
                    ("sending-mta-ip", is_ip, false),
                    ("receiving-mx-hostname", is_text, false),
                    ("receiving-mx-helo", is_text, false),
                    ("receiving-ip", is_ip, false),
                    ("failed-session-count", Value::is_u64, true),
                    ("additional-information", is_text, false),
                    ("failure-reason-code", is_text, false),
                ],
            );
        }
    }
}

fn expected_report(lines: &[&str], (mx1, mx2): (&str, &str), id: QueueId) -> Value {
    json!({
        "organization-name": "Company-X",
        "date-range": {"start-datetime": "2016-04-01T00:00:00Z", "end-datetime": "2016-04-01T23:59:59Z"},
        "contact-info": "sts-reporting@company-x.example",
        "report-id": format!("{id}@mail.company-x.example"),
        "policies": [
            {
                "policy": {
                    "policy-type": "sts",
                    "policy-string": lines,
                    "policy-domain": "company-y.example",
                    "mx-host": ["*.mail.company-y.example"]
                },
                "summary": {"total-successful-session-count": 5326, "total-failure-session-count": 303},
                "failure-details": [
                    {
                        "result-type": "certificate-expired",
                        "sending-mta-ip": "2001:db8:abcd:12::1",
                        "receiving-mx-hostname": mx1,
                        "failed-session-count": 100
                    },
                    {
                        "result-type": "starttls-not-supported",
                        "sending-mta-ip": "2001:db8:abcd:13::1",
                        "receiving-mx-hostname": mx2,
                        "receiving-ip": "203.0.113.56",
                        "failed-session-count": 200
                    },
                    {
                        "result-type": "validation-failure",
                        "sending-mta-ip": "198.51.100.62",
                        "receiving-mx-hostname": mx2,
                        "receiving-ip": "203.0.113.58",
                        "failed-session-count": 3,
                        "failure-reason-code": "odd chain"
                    }
                ]
            },
            {
                "policy": {
                    "policy-type": "tlsa",
                    "policy-string": [format!("3 1 1 {}", "1f".repeat(32))],
                    "policy-domain": mx1
                },
                "summary": {"total-successful-session-count": 7, "total-failure-session-count": 0}
            },
            {
                "policy": {"policy-type": "no-policy-found", "policy-domain": "company-y.example"},
                "summary": {"total-successful-session-count": 1, "total-failure-session-count": 0}
            }
        ]
    })
}

/// RFC 8460 s4.4 and appendix B: the shapes of its examples, an MTA-STS policy in testing mode whose hosts have
/// an expired certificate, no STARTTLS, and something else wrong; with a DANE policy and none beside it.
#[test]
fn a_report_has_the_members_of_the_rfc_and_the_shape_of_its_examples() {
    let own = domain("company-y.example");
    let lines = ["version: STSv1", "mode: testing", "mx: *.mail.company-y.example", "max_age: 86400"];
    let sts = Policy::sts(&own, lines.map(str::to_owned).to_vec(), vec!["*.mail.company-y.example".to_owned()]);
    let failures = |result, source: &str, host: &str, address: Option<&str>, sessions, reason: &str| Failures {
        result,
        source: Some(source.parse().unwrap()),
        host: Some(host.to_owned()),
        address: address.map(|address| address.parse().unwrap()),
        reason: reason.to_owned(),
        sessions,
    };
    let (mx1, mx2) = ("mx1.mail.company-y.example", "mx2.mail.company-y.example");
    let under = |policy, successful, failed, failures| UnderPolicy { policy, successful, failed, failures };
    let policies = vec![
        under(
            sts,
            5326,
            303,
            vec![
                failures(ResultType::CertificateExpired, "2001:db8:abcd:12::1", mx1, None, 100, ""),
                failures(ResultType::StarttlsNotSupported, "2001:db8:abcd:13::1", mx2, Some("203.0.113.56"), 200, ""),
                failures(ResultType::ValidationFailure, "198.51.100.62", mx2, Some("203.0.113.58"), 3, "odd chain"),
            ],
        ),
        under(Policy::tlsa(&domain(mx1), vec![format!("3 1 1 {}", "1f".repeat(32))]), 7, 0, Vec::new()),
        under(Policy::none(&own), 1, 0, Vec::new()),
    ];
    let day = DomainDay { policies, ..DomainDay::new(&own, 16_892, crate::mail::VipId(1)) };
    let submitter = domain("mail.company-x.example");
    let by = Submitter { organization: "Company-X", contact: "sts-reporting@company-x.example", domain: &submitter };
    let id = QueueId([7; 16]);
    let report = Report::of(&day, id, &by, &|address| address);
    let found: Value = serde_json::from_slice(&report.to_json()).unwrap();
    check_schema(&found);
    let expected = expected_report(&lines, (mx1, mx2), id);
    assert_eq!(found, expected);
    assert_eq!(serde_json::from_value::<Report>(found).unwrap(), report);
    let name = report::file_name(&day, id, &submitter);
    assert_eq!(name, format!("mail.company-x.example!company-y.example!1459468800!1459555199!{id}.json.gz"));
}

#[tokio::test]
async fn a_day_is_reported_once_by_signed_mail_that_no_policy_holds_up() {
    let room = Room::with_vip(HOST).await;
    let (intake, queue) = room.intake().await;
    room.publishes("shop.example", "mailto:tls@reports.example");
    for protection in [verified(), verified(), not_offered()] {
        room.count("shop.example", &protection, noon());
    }
    room.reports.round(&intake, Timestamp(due("shop.example").0 - 1)).await;
    assert_eq!((room.mailed().len(), room.stages()), (0, vec!["counting"]), "it has its own hour");
    room.reports.round(&intake, due("shop.example")).await;
    let mailed = room.mailed();
    assert_eq!((mailed.len(), room.stages()), (1, vec!["sent"]));
    let lanes = queue.lanes();
    assert!(lanes.iter().all(|due| due.lane.transport == TransportName::MxDespiteTls) && lanes.len() == 1);
    let (header, _) = split_entity(mailed[0].as_bytes()).unwrap();
    let field = |name: &str| header.text(name).unwrap_or_default();
    assert_eq!((field("TLS-Report-Domain"), field("TLS-Report-Submitter")), ("shop.example".into(), HOST.into()));
    assert_eq!((field("From"), field("To")), (format!("<postmaster@{HOST}>"), "<tls@reports.example>".into()));
    assert!(field("Content-Type").starts_with("multipart/report; report-type=\"tlsrpt\";"), "{}", mailed[0]);
    let signed = field("DKIM-Signature").to_ascii_lowercase();
    for name in ["tls-report-domain", "tls-report-submitter", "subject", "from", &format!("d={HOST};")] {
        assert!(signed.contains(name), "{name}: {signed}");
    }
    assert!(!signed.contains("; l="), "RFC 8460 s3: the whole body is signed: {signed}");
    // A MIME reader that is not ours finds the attachment.
    let parsed = mail_parser::MessageParser::default().parse(&mailed[0]).unwrap();
    let attached: Vec<_> = parsed.attachments().collect();
    assert_eq!((attached.len(), parsed.text_bodies().count()), (1, 1));
    let kind = attached[0].content_type().unwrap();
    assert_eq!((kind.ctype(), kind.subtype()), ("application", Some("tlsrpt+gzip")));
    let name = attached[0].attachment_name().unwrap();
    assert!(name.starts_with(&format!("{HOST}!shop.example!1795392000!1795478399!")), "{name}");
    assert!(name.ends_with(".json.gz"), "{name}");
    let report = unpacked(attached[0].contents());
    check_schema(&report);
    assert_eq!(report["organization-name"], "Host & Co");
    let summary = &report["policies"][0]["summary"];
    assert_eq!(summary, &json!({"total-successful-session-count": 2, "total-failure-session-count": 1}));
    let detail = &report["policies"][0]["failure-details"][0];
    assert_eq!(detail["sending-mta-ip"], "203.0.113.9", "what the world sees of it");
    let id = report["report-id"].as_str().unwrap();
    assert_eq!(field("Subject"), format!("Report Domain: shop.example Submitter: {HOST} Report-ID: <{id}>"));
    // Neither later nor after a restart is it reported again.
    room.reports.round(&intake, due("shop.example").plus(24 * HOUR)).await;
    let room = room.restarted().await;
    room.reports.round(&intake, due("shop.example").plus(24 * HOUR)).await;
    assert_eq!((room.mailed().len(), room.stages()), (1, vec!["sent"]));
    let listed = room.reports.list(&Actor::local(0)).unwrap().remove(0);
    assert_eq!((listed.successful, listed.failed, listed.next), (2, 1, None));
    assert!(room.reports.preview(&Actor::local(0), &domain("shop.example")).is_err(), "its counts are forgotten");
}

#[tokio::test]
async fn a_report_that_was_mailed_when_the_daemon_died_is_not_mailed_again() {
    let room = Room::with_vip(HOST).await;
    let (intake, _) = room.intake().await;
    room.publishes("shop.example", "mailto:tls@reports.example,https://down.example/");
    room.host.status.store(503, Ordering::SeqCst);
    room.count("shop.example", &verified(), noon());
    let first = due("shop.example");
    room.reports.round(&intake, first).await;
    assert_eq!((room.mailed().len(), room.stages()), (1, vec!["due"]));
    // As it was written before the mail was taken: nobody has it yet.
    let (of, mut day) = {
        let kept = records::lock(&room.reports.kept);
        let (of, day) = kept.days.iter().next().unwrap();
        (of.clone(), day.clone())
    };
    let Stage::Due(due) = &mut day.stage else { panic!("{day:?}") };
    due.recipients.iter_mut().for_each(|one| one.fate = Fate::Open);
    let mut batch = Batch::new();
    batch.set(key(&of), codec::encode(&day));
    room.store.commit(batch).await.unwrap();
    let room = room.restarted().await;
    room.host.status.store(200, Ordering::SeqCst);
    room.reports.round(&intake, first.plus(RETRY_FIRST)).await;
    assert_eq!((room.mailed().len(), room.stages()), (1, vec!["sent"]));
    let listed = room.reports.list(&Actor::local(0)).unwrap().remove(0);
    let Stage::Sent(sent) = listed.stage else { panic!("{listed:?}") };
    assert_eq!(sent.to, ["mailto:tls@reports.example", "https://down.example/"]);
}

#[tokio::test]
async fn a_report_by_https_is_posted_as_gzip_and_tried_again_until_it_is_taken() {
    let room = Room::with_vip(HOST).await;
    let (intake, _) = room.intake().await;
    room.publishes("shop.example", "https://in.reports.example/v1");
    room.count("shop.example", &not_offered(), noon());
    let first = due("shop.example");
    let posted = || records::lock(&room.host.posted).clone();
    for (status, at, times) in [
        (500, first, 1),
        (500, first.plus(RETRY_FIRST / 2), 1),
        // A redirect is followed nowhere, and takes nothing.
        (302, first.plus(RETRY_FIRST), 2),
        (200, first.plus(2 * RETRY_FIRST), 2),
        (202, first.plus(3 * RETRY_FIRST), 3),
        (202, first.plus(20 * RETRY_FIRST), 3),
    ] {
        room.host.status.store(status, Ordering::SeqCst);
        room.reports.round(&intake, at).await;
        assert_eq!(posted().len(), times, "{status}");
    }
    assert_eq!(room.stages(), ["sent"]);
    let all = posted();
    let (host, request) = &all[0];
    assert_eq!(host, "in.reports.example");
    assert_eq!(request.fields, [("content-type", "application/tlsrpt+gzip".to_owned())]);
    check_schema(&unpacked(&request.body));
    let ids: Vec<Value> = all.iter().map(|(_, request)| unpacked(&request.body)["report-id"].clone()).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "receivers know a repetition by its id: {ids:?}");
}

#[tokio::test]
async fn a_report_is_given_up_after_a_day_or_at_once_where_it_may_not_go() {
    let room = Room::with_vip(HOST).await;
    let (intake, _) = room.intake().await;
    room.publishes("private.example", "https://inside.example/");
    room.count("private.example", &verified(), noon());
    let first = begins(DAY + 1).plus(5 * HOUR);
    room.reports.round(&intake, first).await;
    assert!(room.stages().is_empty() && room.mailed().is_empty(), "{:?}", room.stages());
    room.publishes("down.example", "https://down.example/");
    room.host.status.store(503, Ordering::SeqCst);
    for name in ["down.example", "silent.example"] {
        room.count(name, &verified(), noon());
    }
    let mut now = first;
    while now < first.plus(24 * HOUR) {
        room.reports.round(&intake, now).await;
        assert_eq!(room.stages(), ["due", "due"]);
        now = now.plus(RETRY_FIRST);
    }
    room.reports.round(&intake, first.plus(28 * HOUR)).await;
    assert!(room.stages().is_empty());
    let tries = records::lock(&room.host.posted).iter().filter(|(host, _)| host == "down.example").count();
    assert!((7..=12).contains(&tries), "{tries}");
}

#[tokio::test]
async fn who_asks_for_no_report_gets_none_and_everything_is_forgotten_after_two_days() {
    let room = Room::with_vip(HOST).await;
    let (intake, _) = room.intake().await;
    room.publishes("shop.example", "mailto:tls@reports.example");
    for name in ["shop.example", "other.example"] {
        room.count(name, &verified(), noon());
    }
    room.reports.write().await;
    room.reports.round(&intake, begins(DAY + 1).plus(5 * HOUR)).await;
    assert_eq!((room.mailed().len(), room.stages()), (1, vec!["sent"]));
    room.reports.round(&intake, begins(DAY + 3)).await;
    let all = [prefix::TLS_REPORT];
    assert!(room.stages().is_empty() && room.store.range(&all, &after_prefix(&all), 10).unwrap().is_empty());
    assert_eq!(records::lock(&room.reports.kept).octets, 0);
}

#[tokio::test]
async fn mail_that_nobody_would_sign_waits() {
    let room = Room::with_vip("unsigned.host.example").await;
    let (intake, _) = room.intake().await;
    room.publishes("shop.example", "mailto:tls@reports.example");
    room.count("shop.example", &verified(), noon());
    room.reports.round(&intake, due("shop.example")).await;
    assert!(room.mailed().is_empty());
    let listed = room.reports.list(&Actor::local(0)).unwrap().remove(0);
    let Stage::Due(waits) = listed.stage else { panic!("{listed:?}") };
    assert!(waits.error.contains("nothing signs for unsigned.host.example"), "{}", waits.error);
}

#[tokio::test]
async fn counts_survive_a_restart_and_go_on_and_off_nothing_is_counted() {
    let room = Room::with_vip(HOST).await;
    room.count("shop.example", &verified(), noon());
    room.reports.write().await;
    let room = room.restarted().await;
    room.count("shop.example", &not_offered(), noon());
    let (_, report) = room.reports.preview(&Actor::local(0), &domain("shop.example")).unwrap();
    let summary = report.policies[0].summary;
    assert_eq!((summary.total_successful_session_count, summary.total_failure_session_count), (1, 1));
    room.reports.adjust(&Settings::default());
    room.count("shop.example", &verified(), noon());
    room.count("other.example", &verified(), noon());
    let listed = room.reports.list(&Actor::local(0)).unwrap();
    assert_eq!((listed.len(), listed[0].successful), (1, 1));
    let owner = Actor::of("o", Role::TenantOwner(TenantId(1)));
    assert!(room.reports.list(&owner).is_err() && room.reports.preview(&owner, &domain("shop.example")).is_err());
}

#[test]
fn each_report_has_an_hour_of_its_own_within_four_of_the_end_of_its_day() {
    let mut hours = BTreeSet::new();
    for number in 0..200 {
        let name = domain(&format!("d{number}.example"));
        let after = due_at(DAY, &name).since(begins(DAY + 1));
        assert!(after < 4 * HOUR, "{after:?}");
        assert_eq!(due_at(DAY, &name), due_at(DAY, &name));
        hours.insert(after.as_secs() / 600);
    }
    assert!(hours.len() > 20, "{hours:?}");
}
