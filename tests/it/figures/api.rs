//! Requests a second of a list, of searches and of sending, by clients over TLS that keep their connections,
//! without mail and beside mail by SMTP.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::asking::{Answered, Question, Span, ask_all};
use super::flow::{End, Flow};
use super::{PATIENCE, Stand, describe_machine, runtime, span, wanted};

/// Messages a second by SMTP beside the requests, unless `POSTERN_FIGURES_RATE` says otherwise.
const FLOW: u64 = 500;
/// The flow must keep this part of its rate while nothing is asked, or the machine is too slow for the question.
const FLOW_KEPT_MIN: f64 = 0.95;
/// What there is to be listed and found.
const ACCOUNTS: usize = 100;
const SUPPRESSED: usize = 10_000;
const SUPPRESSED_AT_ONCE: usize = 1_000;
const MESSAGES: u64 = 20_000;
/// Octets of a text sent over the API.
const TEXT_BYTES: usize = 2_048;

/// `messages` are known: each tenth of them went to d1.test.
fn questions(messages: u64) -> Vec<Question> {
    let get = |name, path: &str| Question { name, method: "GET", path: path.to_owned(), body: None, known: messages };
    let letter = json!({
        "tenant": "shop",
        "from": "Shop <orders@shop.test>",
        "to": ["by-http-{n}@d1.test"],
        "subject": "Your order {n}",
        "text": "thank you for your order ".repeat(TEXT_BYTES / 25),
        "tags": ["order"],
    });
    vec![
        get("list: 50 of 100 SMTP accounts", "/smtp-accounts?tenant=shop&limit=50"),
        get("list: 50 of 10,000 on the blacklist", "/tenants/shop/suppressions?limit=50"),
        get("search: the newest 50 of a tenant", "/messages?tenant=shop&limit=50"),
        get("search: by recipient", "/messages?tenant=shop&recipient=user{known}%40d1.test&limit=50"),
        get("search: delivered, by a word of the subject", "/messages?tenant=shop&status=ok&subject=serial&limit=50"),
        Question {
            name: "send: one message of 2 KiB",
            method: "POST",
            path: "/messages".to_owned(),
            body: Some(letter.to_string()),
            known: messages,
        },
    ]
}

/// Accounts, a blacklist, and messages that were delivered and are found; the serial of the next message.
async fn fill(stand: &Stand) -> u64 {
    let mut caller = stand.caller().await;
    for number in 1..ACCOUNTS {
        let new = json!({"tenant": "shop", "name": format!("account {number}")});
        caller.json("POST", "/smtp-accounts", Some(new.to_string())).await;
    }
    for first in (0..SUPPRESSED).step_by(SUPPRESSED_AT_ONCE) {
        let subject = |number: usize| json!({"subject": format!("gone{number}@blocked.test")});
        let add: Vec<Value> = (first..first + SUPPRESSED_AT_ONCE).map(subject).collect();
        caller.json("PATCH", "/tenants/shop/suppressions", Some(json!({"add": add}).to_string())).await;
    }
    let messages = wanted("POSTERN_FIGURES_MESSAGES", MESSAGES).max(1);
    let (began, flow) = (Instant::now(), Flow::start(stand, 0..messages, None));
    let (accepted, refused) = flow.end(End::WhenAllIsSent).await;
    let rate = accepted as f64 / began.elapsed().as_secs_f64();
    println!("before: {accepted} messages by SMTP, {rate:.0}/s, sessions that broke: {refused}");
    stand.until_nothing_is_queued().await;
    until_found(stand, messages - 1).await;
    messages
}

/// Waits until the search knows a message, and so all before it.
async fn until_found(stand: &Stand, serial: u64) {
    let (mut caller, began) = (stand.caller().await, Instant::now());
    let domain = super::recipient_domain(usize::try_from(serial).unwrap());
    let path = format!("/messages?tenant=shop&status=ok&recipient=user{serial}%40{domain}");
    while caller.json("GET", &path, None).await["rows"].as_array().is_none_or(Vec::is_empty) {
        assert!(began.elapsed() < PATIENCE, "message {serial} is never found");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// One row: what was asked, and what the mail beside it came to.
async fn measure(stand: &Stand, question: Option<&Question>, flow: Option<&Flow>) -> f64 {
    let clients = wanted("POSTERN_FIGURES_CLIENTS", 16).max(1);
    let mut callers = Vec::new();
    for _ in 0..clients {
        callers.push(stand.caller().await);
    }
    let span = Span::after_warm_up(span());
    let asked = question.cloned();
    let asking = tokio::spawn(async move {
        match asked {
            Some(question) => ask_all(callers, &question, span).await,
            None => Answered::default(),
        }
    });
    span.begins().await;
    flow.map(Flow::look);
    let (before, arrived) = (stand.use_now(), stand.arrivals.len());
    span.ends().await;
    let (flowed, after, arrived) = (flow.map(Flow::look), stand.use_now(), stand.arrivals.len() - arrived);
    let (daemon, around) = after.since(&before);
    let (answered, seconds) = (asking.await.unwrap(), (after.at - before.at).as_secs_f64());
    let name = question.map_or("nothing is asked", |question| question.name);
    let (requests, waits) = match question {
        Some(_) => {
            let waits = [0.5, 0.99, 1.0].map(|part| format!("{:.1}", answered.wait(part))).join(" / ");
            (format!("{:.0}", answered.per_second()), waits)
        }
        None => ("-".to_owned(), "-".to_owned()),
    };
    let rate = flowed.as_ref().map_or(0.0, |flowed| flowed.accepted as f64 / seconds);
    let mail = flowed.map_or("- | - | -".to_owned(), |flowed| {
        format!("{rate:.0} | {:.0} | {:.1}", arrived as f64 / seconds, flowed.wait(0.99))
    });
    let failed: Vec<String> = answered.failed.iter().map(|(status, count)| format!("{count} x {status}")).collect();
    let failed = if failed.is_empty() { "0".to_owned() } else { failed.join(", ") };
    println!(
        "| {name} | {requests} | {waits} | {failed} | {mail} | {daemon:.2} | {around:.2} | {} |",
        stand.resident()
    );
    assert!(answered.failed.is_empty(), "{name}: {failed}\n{}", stand.instance.log_tail());
    rate
}

#[test]
#[ignore = "a measurement, minutes of full load"]
fn requests_beside_500_messages_a_second() {
    runtime().block_on(async {
        describe_machine();
        let stand = Stand::start(&[], None).await;
        let next = fill(&stand).await;
        println!(
            "| asked | requests/s | p50 / p99 / max ms | failed | SMTP accepted/s | SMTP delivered/s \
             | SMTP p99 ms | processors: daemon | processors: around it | MiB resident |"
        );
        println!("|{}", "---|".repeat(10));
        for question in &questions(next) {
            measure(&stand, Some(question), None).await;
            stand.until_nothing_is_queued().await;
        }
        let rate = wanted("POSTERN_FIGURES_RATE", FLOW).max(1) as f64;
        let flow = Flow::start(&stand, next..u64::MAX, Some(rate));
        let alone = measure(&stand, None, Some(&flow)).await;
        for question in &questions(next) {
            measure(&stand, Some(question), Some(&flow)).await;
        }
        let (sent, broken) = (flow.reached() - next, flow.end(End::Now).await.1);
        stand.until_nothing_is_queued().await;
        println!("the flow: {sent} messages, sessions that broke: {broken}");
        assert_eq!(broken, 0);
        assert!(alone >= rate * FLOW_KEPT_MIN, "the machine is too slow: {alone:.0} of {rate} messages/s");
    });
}
