//! `postern try`: the whole service on loopback, one message end to end, nothing left behind.
//!
//! The daemon is the real one with a temporary data folder; around it stand a local DNS zone and a
//! receiving MX that is not our code. Easy to get wrong: only what was observed is printed, and the
//! signature of what *arrived* is verified, by another implementation, with the key from DNS.

mod advice;
mod client;
mod stage;
mod verify;

use std::collections::VecDeque;
use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

pub use crate::daemon::MailLog;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::events::{Event, EventKind, InstanceEvent, MailEvent};
use crate::ext::Timestamp;
use crate::mail::{QueueId, printable};
use crate::sink::Received;

use stage::Stage;

/// How long the message may take to arrive.
const ARRIVAL_PATIENCE: Duration = Duration::from_secs(30);
/// A message that arrived is judged after its delivery was shown, or after this.
const TOLD_PATIENCE: Duration = Duration::from_secs(2);
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

/// Runs the trial on a runtime of its own; the daemon's log goes where `log` says.
pub fn run(afterwards: Afterwards, log: MailLog) -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.to_string()),
    };
    let ended = runtime.block_on(trial(afterwards, log));
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

async fn trial(afterwards: Afterwards, log: MailLog) -> Result<ExitCode, String> {
    let mut stop = Stop::install().map_err(|error| error.to_string())?;
    let trail = Trail { began: Instant::now(), began_at: Timestamp::now() };
    trail.line("start", "the daemon, a DNS zone and a receiving MX, all on 127.0.0.1, data in a temporary folder");
    let stage = tokio::select! {
        stage = Stage::set(&trail, log) => stage?,
        () = stop.asked() => return Err("interrupted".to_owned()),
    };
    let began_message = Instant::now();
    let observed = tokio::select! {
        observed = one_message(&stage, &trail) => observed,
        () = stop.asked() => Err("interrupted".to_owned()),
    };
    let seconds = began_message.elapsed().as_secs_f64();
    let observed = match observed {
        Ok(observed) => observed,
        Err(reason) => {
            stage.strike().await;
            return Err(reason);
        }
    };
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
            say(format_args!("{summary}"));
        }
        Afterwards::Stay => {
            advice::print(&stage);
            let followed = follow(&stage, &trail, &mut stop).await;
            stage.strike().await;
            followed?;
            trail.line("end", "the daemon has stopped, the temporary folder is gone");
        }
    }
    Ok(if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints a line; nobody reading any more is no reason to stop half-way.
fn say(line: fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Ctrl-C, a polite kill, or the terminal going away.
struct Stop([Signal; 3]);

impl Stop {
    fn install() -> std::io::Result<Self> {
        Ok(Self([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?]))
    }

    async fn asked(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
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
    trail.line("sending", &format!("from {from} to {to}, login {}, port {}", stage.user, stage.door.port()));
    let (reply, tls) = client::send(&stage.login(), &from, &to, &message)
        .await
        .map_err(|error| format!("the message could not be handed in: {error}"))?;
    let answered = Timestamp::now();
    let mut observed = Observed { accepted: 1, dkim: "none", ..Observed::default() };
    for event in stage.events_after(&mut seen)? {
        observed.delivered += trail.event(&event);
    }
    trail.line_at(answered, "answered", &format!("250 {reply} (by {tls}, AUTH PLAIN)"));
    let arrived = stage.next_arrival(ARRIVAL_PATIENCE).await;
    let settled = Instant::now();
    // The peer has it; its reply is on our side's disk a moment later.
    while observed.delivered == 0 && settled.elapsed() < ARRIVAL_PATIENCE {
        for event in stage.events_after(&mut seen)? {
            observed.delivered += trail.event(&event);
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
async fn follow(stage: &Stage, trail: &Trail, stop: &mut Stop) -> Result<(), String> {
    let mut seen = stage.newest_event()?;
    let mut arrived = VecDeque::new();
    let mut delivered = 0_u32;
    loop {
        tokio::select! {
            () = stop.asked() => return Ok(()),
            () = tokio::time::sleep(LOOK) => {}
        }
        for event in stage.events_after(&mut seen)? {
            delivered = delivered.saturating_add(trail.event(&event));
        }
        while let Ok(received) = stage.arrived_now() {
            arrived.push_back((Instant::now(), received));
        }
        // The peer has a message a moment before our side has written down that it does.
        let is_told = |delivered: u32, since: &Instant| delivered > 0 || since.elapsed() > TOLD_PATIENCE;
        while arrived.front().is_some_and(|(since, _)| is_told(delivered, since)) {
            delivered = delivered.saturating_sub(1);
            if let Some((_, received)) = arrived.pop_front() {
                judge(stage, trail, &received).await?;
            }
        }
    }
}

/// Writes the readable trail.
pub(crate) struct Trail {
    began: Instant,
    began_at: Timestamp,
}

impl Trail {
    /// One step, with the time since the start.
    fn line(&self, step: &str, text: &str) {
        self.write(self.began.elapsed(), step, text);
    }

    /// One step that was at `moment`.
    fn line_at(&self, moment: Timestamp, step: &str, text: &str) {
        self.write(moment.since(self.began_at), step, text);
    }

    fn write(&self, after: Duration, step: &str, text: &str) {
        say(format_args!("{:>8.3} s  {step:<12}  {}", after.as_secs_f64(), printable(text)));
    }

    /// What an event says to somebody who sends mail; 1 if it is a delivery.
    fn event(&self, event: &Event) -> u32 {
        match &event.kind {
            EventKind::Mail(id, fact) => {
                self.fact(event.at, *id, fact);
                u32::from(matches!(fact, MailEvent::Delivered { .. }))
            }
            EventKind::Instance(InstanceEvent::LoginRefused { login, reason, .. }) => {
                self.line_at(event.at, "no login", &format!("{login}: {reason}"));
                0
            }
            EventKind::Instance(InstanceEvent::Refused { reply, .. }) => {
                self.line_at(event.at, "refused", reply);
                0
            }
            EventKind::Instance(_) | EventKind::Audit(_) => 0,
        }
    }

    /// One fact of a message's life.
    fn fact(&self, at: Timestamp, id: QueueId, fact: &MailEvent) {
        match fact {
            MailEvent::Accepted(facts) => {
                let text = format!("as {id}, {} octets, on disk before the answer", facts.size_bytes);
                self.line_at(at, "accepted", &text);
                for signature in &facts.signatures {
                    self.line_at(at, "signed", signature);
                }
            }
            MailEvent::Delivered { peer, reply, .. } => {
                self.line_at(at, "MX found", &format!("{} at {}", peer.host, peer.address));
                self.line_at(at, "connected", &format!("from {}, TLS: {}", peer.source, peer.tls));
                self.line_at(at, "delivered", &format!("the peer said: {reply}"));
            }
            MailEvent::Retired => self.line_at(at, "finished", "nothing is owed any more; the body's space is free"),
            MailEvent::Deferred { detail, due_in_secs, .. } => {
                self.line_at(at, "deferred", &format!("{detail}; next try in {due_in_secs} s"));
            }
            MailEvent::Bounced { detail, .. } => self.line_at(at, "bounced", detail),
            // What was said, step by step, is for `postern messages show --dialogue`; the facts beside it say what it
            // came to.
            MailEvent::Attempted { .. } => {}
            other => self.line_at(at, "event", &format!("{other:?}")),
        }
    }
}
