//! `postern try`: the whole service on loopback, one message end to end, nothing left behind.
//!
//! The daemon is the real one with a temporary data folder; around it stand a local DNS zone and a
//! receiving MX that is not our code. Easy to get wrong: only what was observed is printed, and the
//! signature of what *arrived* is verified, by another implementation, with the key from DNS.

mod advice;
mod client;
mod stage;
mod verify;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use crate::events::{EventKind, MailEvent};
use crate::ext::Timestamp;
use crate::mail::QueueId;
use crate::sink::Received;

use stage::Stage;

/// How long the message may take to arrive.
const ARRIVAL_PATIENCE: Duration = Duration::from_secs(30);
/// How often new facts are looked for.
const LOOK: Duration = Duration::from_millis(20);

/// What to do after the one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Afterwards {
    /// Stay up and say how to send more.
    Stay,
    /// Exit: 0 only if the message arrived and its signature verified; the last line is JSON.
    Exit,
}

/// Runs the trial on a runtime of its own.
pub fn run(afterwards: Afterwards) -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.to_string()),
    };
    let ended = runtime.block_on(trial(afterwards));
    // The sink's thread has no stop; it ends with the process.
    runtime.shutdown_timeout(Duration::from_secs(2));
    match ended {
        Ok(code) => code,
        Err(reason) => failed(&reason),
    }
}

fn failed(reason: &str) -> ExitCode {
    eprintln!("postern try: {reason}");
    ExitCode::FAILURE
}

/// What was observed of the one message.
#[derive(Clone, Copy, Debug, Default)]
struct Observed {
    accepted: u32,
    delivered: u32,
    dkim: &'static str,
}

async fn trial(afterwards: Afterwards) -> Result<ExitCode, String> {
    let began = Instant::now();
    let trail = Trail { began };
    trail.line("start", "the daemon, a DNS zone and a receiving MX, all on 127.0.0.1, data in a temporary folder");
    let stage = Stage::set(&trail).await?;
    let began_message = Instant::now();
    let observed = one_message(&stage, &trail).await?;
    let seconds = began_message.elapsed().as_secs_f64();
    let is_fine = observed.accepted == 1 && observed.delivered == 1 && observed.dkim == "pass";
    match afterwards {
        Afterwards::Exit => {
            stage.strike().await;
            let summary = serde_json::json!({
                "accepted": observed.accepted,
                "delivered": observed.delivered,
                "dkim": observed.dkim,
                "seconds": (seconds * 1000.0).round() / 1000.0,
            });
            println!("{summary}");
            let _ = std::io::stdout().flush();
        }
        Afterwards::Stay => {
            advice::print(&stage);
            follow(&stage, &trail).await?;
            stage.strike().await;
        }
    }
    Ok(if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Sends one message through the real door and watches it arrive.
async fn one_message(stage: &Stage, trail: &Trail) -> Result<Observed, String> {
    let mut seen = stage.newest_event()?;
    let from = format!("orders@{}", stage::SENDER_DOMAIN);
    let to = format!("anna@{}", stage::INBOX_DOMAIN);
    let message = format!(
        "From: Shop <{from}>\r\nTo: Anna <{to}>\r\nSubject: Your order 1042\r\nDate: {}\r\n\r\n\
         Thank you for your order.\r\n",
        Timestamp::now().rfc5322()
    );
    let (reply, tls) = client::send(&stage.login(), &from, &to, &message)
        .await
        .map_err(|error| format!("the message could not be handed in: {error}"))?;
    trail.line("submitted", &format!("by {} on port {} ({tls}, AUTH PLAIN); answer: {reply}", from, stage.door.port()));
    let mut observed = Observed { accepted: 1, dkim: "none", ..Observed::default() };
    let arrived = stage.next_arrival(ARRIVAL_PATIENCE).await;
    let settled = Instant::now();
    // The peer has it; its reply is on our side's disk a moment later.
    while observed.delivered == 0 && settled.elapsed() < ARRIVAL_PATIENCE {
        for (id, fact) in stage.events_after(&mut seen)? {
            observed.delivered += u32::from(matches!(fact, MailEvent::Delivered { .. }));
            trail.fact(id, &fact);
        }
        tokio::time::sleep(LOOK).await;
    }
    match arrived {
        Ok(received) => observed.dkim = judge(stage, trail, &received).await?,
        Err(RecvTimeoutError::Timeout) => trail.line("missing", "the message did not arrive in 30 seconds"),
        Err(RecvTimeoutError::Disconnected) => trail.line("missing", "the receiving MX has stopped"),
    }
    Ok(observed)
}

/// Says what arrived and what its signatures prove.
async fn judge(stage: &Stage, trail: &Trail, received: &Received) -> Result<&'static str, String> {
    let from = received.peer;
    trail.line("arrived", &format!("{} octets from {from}, which said EHLO {}", received.message.len(), received.helo));
    let verdict = verify::verify(&received.message, stage.dns()).await?;
    for name in &verdict.passed {
        trail.line("verified", &format!("{name}: key found in DNS, signature good"));
    }
    for reason in &verdict.failed {
        trail.line("not verified", reason);
    }
    Ok(verdict.word())
}

/// Shows facts of further mail until the user ends the trial.
async fn follow(stage: &Stage, trail: &Trail) -> Result<(), String> {
    let mut seen = stage.newest_event()?;
    let ended = tokio::signal::ctrl_c();
    tokio::pin!(ended);
    loop {
        tokio::select! {
            _ = &mut ended => return Ok(()),
            () = tokio::time::sleep(LOOK) => {}
        }
        for (id, fact) in stage.events_after(&mut seen)? {
            trail.fact(id, &fact);
        }
        while let Ok(received) = stage.arrived_now() {
            judge(stage, trail, &received).await?;
        }
    }
}

/// Writes the readable trail.
pub(crate) struct Trail {
    began: Instant,
}

impl Trail {
    /// One step, with the time since the start.
    fn line(&self, step: &str, text: &str) {
        println!("{:>8.3} s  {step:<12}  {text}", self.began.elapsed().as_secs_f64());
    }

    /// One fact of a message's life.
    fn fact(&self, id: QueueId, fact: &MailEvent) {
        match fact {
            MailEvent::Accepted(facts) => {
                self.line("accepted", &format!("as {id}, {} octets, on disk before the answer", facts.size_bytes));
                for signature in &facts.signatures {
                    self.line("signed", signature);
                }
            }
            MailEvent::Delivered { peer, reply, .. } => {
                self.line("MX found", &format!("{} at {}", peer.host, peer.address));
                self.line("connected", &format!("from {}, TLS: {}", peer.source, peer.tls));
                self.line("delivered", &format!("the peer said: {reply}"));
            }
            MailEvent::Retired => self.line("finished", "nothing is owed any more; the body's space is free"),
            MailEvent::Deferred { detail, due_in_secs, .. } => {
                self.line("deferred", &format!("{detail}; next try in {due_in_secs} s"));
            }
            MailEvent::Bounced { detail, .. } => self.line("bounced", detail),
            other => self.line("event", &format!("{other:?}")),
        }
    }
}

/// The mail fact of an event, if it is one.
fn mail_fact(kind: EventKind) -> Option<(QueueId, MailEvent)> {
    match kind {
        EventKind::Mail(id, fact) => Some((id, fact)),
        EventKind::Instance(_) | EventKind::Audit(_) => None,
    }
}
