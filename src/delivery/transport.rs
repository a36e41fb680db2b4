//! The seam between the dispatcher and the ways mail can leave: a [`Transport`] says where a lane
//! goes now ([`Site`]) and drains claims towards it ([`Job`] in, [`Report`] out).
//!
//! Easy to get wrong: a claim must be given back exactly once, also when an attempt is aborted or
//! panics, and what became of its recipients by then must not be forgotten. [`Held`] sees to both:
//! dropped unsettled, it has its outcomes recorded, or releases its claim if there are none. One that the
//! watchdog ended has an outcome for everybody.

use std::collections::{HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use super::Settings;
use super::client::Connection;
use super::outcome::{Failure, Phase, Trouble};
pub use super::progress::Progress;
use super::shaping::{Permit, Signal};
use crate::background::Shutdown;
use crate::events::Why;
use crate::mail::{BodyId, Dialogue, Domain, VipId};
use crate::net::Verify;
use crate::queue::{Claim, Conversation, Outcome};
use crate::routing::Lane;
use crate::store::{BodyReader, StoreError};
use crate::tlsrpt::Applied;
use crate::trace::Script;

/// A virtual IP as a source of connections: its addresses that are on this host now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Which.
    pub vip: VipId,
    /// What it says in EHLO.
    pub ehlo: Domain,
    /// At most one of each family; never empty when a job has it.
    pub addresses: Vec<IpAddr>,
}

impl Source {
    /// The address that can reach `target`.
    pub fn towards(&self, target: IpAddr) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|own| own.is_ipv4() == target.is_ipv4())
    }
}

/// What TLS means towards a host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TlsUse {
    /// Never.
    Never,
    /// STARTTLS if offered; if it fails, once more without.
    Opportunistic,
    /// STARTTLS or nothing.
    Required(Verify),
    /// TLS from the first byte, verified.
    Implicit,
}

impl TlsUse {
    /// At least a certificate that verifies.
    #[must_use]
    pub fn verified(&self) -> Self {
        match self {
            Self::Never | Self::Opportunistic | Self::Required(Verify::Opportunistic) => {
                Self::Required(Verify::Required)
            }
            Self::Required(Verify::Required | Verify::Dane(_)) | Self::Implicit => self.clone(),
        }
    }

    /// Whether a connection under it proves the host's name, so that it is good for that name alone.
    pub fn proves_name(&self) -> bool {
        match self {
            Self::Never | Self::Opportunistic | Self::Required(Verify::Opportunistic) => false,
            Self::Required(Verify::Required | Verify::Dane(_)) | Self::Implicit => true,
        }
    }
}

/// A login at a relay.
#[derive(Clone)]
pub struct Login {
    /// User name.
    pub user: String,
    /// Password; wiped when dropped.
    pub password: Zeroizing<String>,
}

/// One host of a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its name, or its address as text for a relay given by address.
    pub name: String,
    /// MX preference; lower first.
    pub preference: u16,
    /// Where it is.
    pub addresses: Vec<IpAddr>,
    /// What TLS means here, for mail to this lane's domain.
    pub tls: TlsUse,
    /// Who demands that, for people; `None` where no policy speaks.
    pub policy: Option<Arc<str>>,
    /// Whether somebody we believe says that it is a host of the domain: DNSSEC, MTA-STS, or the
    /// operator who named it.
    pub standing: Standing,
    /// Under which policies sessions with it are reported to the domain; none if they are not.
    pub reported: Arc<[Applied]>,
}

/// Whether a host is proved to be one of its domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Standing {
    /// DNS says so, and nothing proves it.
    #[default]
    Claimed,
    /// Proved.
    Proven,
}

/// Where a lane's mail goes now: the unit of shaping and reuse.
#[derive(Clone)]
pub struct Site {
    /// Sorted host names: lanes with the same hosts share connections.
    pub name: Arc<str>,
    /// Whose mailboxes these are, if that is known: its sites share limits.
    pub provider: Option<Arc<str>>,
    /// By preference; random among equals when tried.
    pub hosts: Vec<Host>,
    /// The port.
    pub port: u16,
    /// Connections serve others of the same realm only: made of the route's id and login, or 0.
    pub realm: u64,
    /// The login, for relays.
    pub login: Option<Arc<Login>>,
}

impl Site {
    /// The name under which limits are shared.
    pub fn paced_as(&self) -> &Arc<str> {
        self.provider.as_ref().unwrap_or(&self.name)
    }
}

/// Why a lane has no site now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoSite {
    /// Try again later.
    Deferred(Why, String),
    /// Never.
    Bounced(Why, String),
}

impl NoSite {
    /// The outcome for every recipient of the lane.
    pub fn outcome(&self) -> Outcome {
        match self.clone() {
            Self::Deferred(why, detail) => Outcome::Deferred { why, detail, peer: None },
            Self::Bounced(why, detail) => Outcome::Bounced { why, detail, peer: None },
        }
    }
}

/// Address families of a virtual IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Families {
    /// It has an IPv4 address.
    pub ipv4: bool,
    /// It has an IPv6 address.
    pub ipv6: bool,
}

/// A way mail can leave.
#[async_trait]
pub trait Transport: Send + Sync {
    /// Where the lane goes now. Asked by the dispatcher, which remembers the answer for a while.
    async fn site(&self, lane: &Lane, families: Families) -> Result<Site, NoSite>;

    /// Changes whenever people changed where lanes go: answers of before count no more.
    fn revision(&self) -> u64 {
        0
    }

    /// Drains claims over connections to the site until there are none, or the job's bounds are
    /// reached. Every outcome goes through the job's [`Hand`].
    async fn attempt(&self, job: Job) -> Report;
}

/// What became of recipients, by number.
pub type Outcomes = Vec<(u16, Outcome)>;
/// Opens a body; blocks on the disk.
pub type OpenBody = Arc<dyn Fn(BodyId) -> Result<Option<Box<dyn BodyReader>>, StoreError> + Send + Sync>;
/// Records what is final among the outcomes of a claim whose attempt goes on; gives back the claim and
/// what is to be settled with it in the end, or nothing if the attempt is over.
pub type RecordPart = Arc<dyn Fn(Claim, Outcomes) -> BoxFuture<'static, Option<(Claim, Outcomes)>> + Send + Sync>;
/// Gives a claim back untouched, due after a pause.
pub type Release = Arc<dyn Fn(Claim, Duration) + Send + Sync>;
/// Claims up to so many further records of the lane.
pub type ClaimMore = Arc<dyn Fn(usize) -> Vec<Claim> + Send + Sync>;
/// What is decided about a claim before it is tried: who was suppressed meanwhile. `Err`: that
/// cannot be told now, and the claim waits for so long.
pub type ScreenClaim = Arc<dyn Fn(&Claim) -> Result<Outcomes, Duration> + Send + Sync>;

/// A claim with what became of its recipients so far. Dropped unsettled, it has that recorded, or is
/// released if there is nothing to record.
pub struct Held {
    claim: Option<Claim>,
    outcomes: Outcomes,
    /// Of the outcomes, how many were there before it was tried.
    screened: usize,
    moves: Arc<Moves>,
    pause: Duration,
    /// Whether it was taken out of the hand to be worked on.
    is_tried: bool,
    /// Says whether the watchdog ends the attempt.
    progress: Arc<Progress>,
    /// What is said in its attempt.
    script: Script,
}

impl Held {
    fn take(mut self) -> Option<(Claim, Outcomes)> {
        Some((self.claim.take()?, std::mem::take(&mut self.outcomes)))
    }

    fn give_back(mut self) {
        self.pause = Duration::ZERO;
    }

    /// The claim; always there until it is settled.
    pub fn claim(&self) -> Option<&Claim> {
        self.claim.as_ref()
    }

    /// What became of its recipients and is not recorded yet.
    pub fn outcomes(&self) -> &[(u16, Outcome)] {
        &self.outcomes
    }

    /// Whether an attempt has decided about somebody in it.
    pub fn has_verdicts(&self) -> bool {
        self.outcomes.len() > self.screened
    }

    /// The outcome for one recipient.
    pub fn decide(&mut self, number: u16, outcome: Outcome) {
        self.outcomes.push((number, outcome));
    }

    /// Waiting recipients without an outcome: their places in the record, and their numbers.
    pub fn undecided(&self) -> Vec<(usize, u16)> {
        let recipients = self.claim.iter().flat_map(|claim| claim.record.recipients.iter().enumerate());
        let is_decided = |number: u16| self.outcomes.iter().any(|(decided, _)| *decided == number);
        let left = recipients.filter(|(_, recipient)| is_waiting(recipient) && !is_decided(recipient.number));
        left.map(|(place, recipient)| (place, recipient.number)).collect()
    }

    /// The transaction that begins is for these recipients, in this order.
    pub fn names(&self, recipients: Vec<u16>) {
        self.script.concerns(recipients);
    }

    /// What was said until now belongs to it, and is recorded with its outcomes. Before these are known: what was
    /// said before a recipient was named is about all who have none.
    pub fn note_dialogue(&mut self) {
        let Some((named, dialogue)) = self.script.take() else { return };
        self.note_said(named, dialogue);
    }

    fn note_said(&mut self, named: Vec<u16>, dialogue: Dialogue) {
        let recipients = match named.is_empty() {
            true => self.undecided().into_iter().map(|(_, number)| number).collect(),
            false => named,
        };
        if let Some(claim) = &mut self.claim {
            claim.note(Conversation { recipients, dialogue });
        }
    }

    /// The watchdog ended its attempt, which is one like others: the pause grows, it may be the last, and behind
    /// the final dot nobody knows what became of it (RFC 5321 s4.5.4.1).
    fn end_stalled(&mut self) {
        self.note_dialogue();
        let undecided: Vec<u16> = self.undecided().into_iter().map(|(_, number)| number).collect();
        let Some(claim) = &self.claim else { return };
        let phase = self.progress.phase();
        (self.moves.stalled)(claim, undecided.clone(), phase);
        let outcome = Failure { phase, trouble: Trouble::Stalled, peer: None }.outcome();
        undecided.into_iter().for_each(|number| self.decide(number, outcome.clone()));
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.is_tried && self.progress.is_stalled() {
            self.end_stalled();
        }
        let Some(claim) = self.claim.take() else { return };
        // What was decided before it was tried is decided again.
        if self.has_verdicts() {
            // The pause after these is the queue's. A panic is not counted then: whoever is left comes
            // sooner the next time, and the count begins once there is nothing before it.
            return (self.moves.late)(claim, std::mem::take(&mut self.outcomes));
        }
        // Dropped while a panic unwinds: the one that was worked on is what the panic is about.
        let is_culprit = self.is_tried && std::thread::panicking();
        (if is_culprit { &self.moves.panicked } else { &self.moves.release })(claim, self.pause);
    }
}

/// Has outcomes recorded by and by.
pub type Late = Arc<dyn Fn(Claim, Outcomes) + Send + Sync>;
/// Notes for these recipients of a claim in which phase the watchdog ended its attempt.
pub type Stalled = Arc<dyn Fn(&Claim, Vec<u16>, Phase) + Send + Sync>;
/// Sets a claim aside whose body is damaged, and says how.
pub type SetAside = Arc<dyn Fn(Claim, &str) + Send + Sync>;

/// A settled claim on its way to the queue. Dropped on that way, because its attempt was aborted,
/// it is recorded late: what became of it is known and must not be forgotten.
pub struct Settled {
    claim: Option<Claim>,
    outcomes: Outcomes,
    late: Late,
}

impl Settled {
    /// What was claimed, and what became of its recipients.
    pub fn take(mut self) -> Option<(Claim, Outcomes)> {
        let claim = self.claim.take()?;
        Some((claim, std::mem::take(&mut self.outcomes)))
    }
}

impl Drop for Settled {
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take() {
            (self.late)(claim, std::mem::take(&mut self.outcomes));
        }
    }
}

/// What a hand does with the queue.
pub struct Moves {
    /// Claims more.
    pub more: ClaimMore,
    /// Looks at what was claimed before it is tried.
    pub screen: ScreenClaim,
    /// Opens bodies.
    pub open: OpenBody,
    /// Records while an attempt goes on.
    pub record: RecordPart,
    /// Gives back.
    pub release: Release,
    /// Gives back what an attempt panicked at.
    pub panicked: Release,
    /// Records late.
    pub late: Late,
    /// Sets aside.
    pub set_aside: SetAside,
    /// Notes where the watchdog ended an attempt.
    pub stalled: Stalled,
}

/// What an attempt may ask of the queue.
pub struct Hand {
    held: VecDeque<Held>,
    moves: Arc<Moves>,
    settled: mpsc::Sender<Settled>,
    pause: Duration,
    progress: Arc<Progress>,
    script: Script,
}

/// Records claimed at a time: few, so that several connections share a short backlog.
const CLAIMS_AT_ONCE: usize = 4;
/// Claims nobody in which is left to try that are settled in a row; others want their turn too.
const DECIDED_AT_ONCE_MAX: usize = 64;

impl Hand {
    /// A hand that gives what it drops back with `pause`.
    pub fn new(moves: Moves, settled: mpsc::Sender<Settled>, pause: Duration) -> Self {
        Self {
            held: VecDeque::new(),
            moves: Arc::new(moves),
            settled,
            pause,
            progress: Arc::default(),
            script: Script::new(),
        }
    }

    /// The same hand: what is dropped because the watchdog ended its attempt says so, and where it was.
    #[must_use]
    pub fn watched(self, progress: Arc<Progress>) -> Self {
        Self { progress, ..self }
    }

    /// The next claim with somebody to try in it, or `None` if the lane has nothing ready. One in which
    /// nobody is left to try is settled like any other, so that whoever records sets the pace.
    pub async fn next_claim(&mut self) -> Option<Held> {
        for _ in 0..DECIDED_AT_ONCE_MAX {
            let mut next = self.take_next()?;
            match next.claim().map(|claim| (self.moves.screen)(claim)) {
                Some(Ok(outcomes)) => (next.screened, next.outcomes) = (outcomes.len(), outcomes),
                Some(Err(pause)) => {
                    next.pause = pause;
                    continue;
                }
                None => continue,
            }
            if !next.undecided().is_empty() {
                next.is_tried = true;
                return Some(next);
            }
            self.settle(next, Outcomes::new()).await;
        }
        None
    }

    fn take_next(&mut self) -> Option<Held> {
        if self.held.is_empty() {
            let (moves, pause, progress, script) = (&self.moves, self.pause, &self.progress, &self.script);
            let claims = (moves.more)(CLAIMS_AT_ONCE);
            self.held.extend(claims.into_iter().map(|claim| Held {
                claim: Some(claim),
                outcomes: Outcomes::new(),
                screened: 0,
                moves: moves.clone(),
                pause,
                is_tried: false,
                progress: progress.clone(),
                script: script.clone(),
            }));
        }
        self.held.pop_front()
    }

    /// Puts a claim back to be the next one, looked at again before it is tried. One with verdicts of an attempt
    /// is recorded instead.
    pub fn put_back(&mut self, mut held: Held) {
        if held.has_verdicts() {
            return;
        }
        held.is_tried = false;
        (held.screened, held.outcomes) = (0, Outcomes::new());
        self.held.push_front(held);
    }

    /// Releases everything held, due at once.
    pub fn give_back(&mut self) {
        for held in self.held.drain(..) {
            held.give_back();
        }
    }

    /// Where what is said in the attempts of its claims is kept for their record.
    pub fn script(&self) -> &Script {
        &self.script
    }

    /// How bodies are opened.
    pub fn opener(&self) -> OpenBody {
        self.moves.open.clone()
    }

    /// Sets a claim aside whose body is damaged: it is not tried again until people looked at it.
    pub fn set_aside(&self, held: Held, how: &str) {
        if let Some((claim, _)) = held.take() {
            (self.moves.set_aside)(claim, how);
        }
    }

    /// Has what is final among the outcomes so far on disk before the attempt goes on with others of the
    /// claim; `None` ends the attempt at this claim, which is settled then.
    pub async fn record(&self, mut held: Held) -> Option<Held> {
        let claim = held.claim.take()?;
        let recorded = (self.moves.record)(claim, std::mem::take(&mut held.outcomes)).await;
        let (claim, outcomes) = recorded?;
        (held.claim, held.outcomes, held.screened) = (Some(claim), outcomes, 0);
        Some(held)
    }

    /// Hands what became of the claim over to be recorded, `outcomes` with what it holds already. Waits
    /// only when very many are not recorded yet.
    pub async fn settle(&self, mut held: Held, outcomes: Outcomes) {
        held.outcomes.extend(outcomes);
        if let Some((claim, outcomes)) = held.take() {
            let settled = Settled { claim: Some(claim), outcomes, late: self.moves.late.clone() };
            // The receiver outlives every job; were it gone, the outcomes are recorded late.
            let _ = self.settled.send(settled).await;
        }
    }

    /// The same outcome for every waiting recipient of up to `most` claims, and what was said to others before it.
    pub async fn settle_all(&mut self, outcome: &Outcome, said: Option<&Dialogue>, most: usize) -> usize {
        let mut count = 0;
        while count < most {
            let Some(mut held) = self.next_claim().await else { break };
            if let Some(said) = said {
                held.note_said(Vec::new(), said.clone());
            }
            let outcomes = held.undecided().into_iter().map(|(_, number)| (number, outcome.clone())).collect();
            self.settle(held, outcomes).await;
            count += 1;
        }
        count
    }
}

/// `outcome` for every waiting recipient of `claim`.
#[cfg(test)]
pub fn same_for_all(claim: &Claim, outcome: &Outcome) -> Outcomes {
    let waiting = claim.record.recipients.iter().filter(|recipient| is_waiting(recipient));
    waiting.map(|recipient| (recipient.number, outcome.clone())).collect()
}

/// Whether a recipient is to be tried.
pub fn is_waiting(recipient: &crate::queue::QueuedRecipient) -> bool {
    recipient.state == crate::queue::RecipientState::Waiting
}

/// One connection's work: drain a lane towards a site.
pub struct Job {
    /// Which lane.
    pub lane: Lane,
    /// Where to.
    pub site: Arc<Site>,
    /// From where.
    pub source: Arc<Source>,
    /// A connection to the site that is open already.
    pub idle: Option<Connection>,
    /// The claims.
    pub hand: Hand,
    /// Addresses that failed lately: tried last.
    pub avoid: Arc<HashSet<SocketAddr>>,
    /// Limits.
    pub settings: Arc<Settings>,
    /// What it may do, of messages and connections.
    pub permit: Permit,
    /// Raised when somebody else's mail should have the connection next; whoever sees it lowers it.
    pub yields: Arc<AtomicBool>,
    /// No further claim is begun once this is cancelled.
    pub stop: Shutdown,
    /// Read by the watchdog.
    pub progress: Arc<Progress>,
}

/// How a job ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// Nothing ready any more.
    #[default]
    Drained,
    /// Its turn is over: others wait for this site too.
    TurnOver,
    /// It was told to stop.
    Stopped,
    /// Our address is not on this host.
    SourceMissing(IpAddr),
    /// No address of the site served us; why, and what that would mean for a message.
    Unreachable(String, Outcome),
    /// The site is there and does not meet the TLS policy of this lane's domain; what that means for
    /// a message. It says nothing about mail to other domains there.
    Unmet(Outcome),
    /// The site served us and then broke off, or sent us away.
    Failed(String),
}

/// What the dispatcher learns from a job.
#[derive(Default)]
pub struct Report {
    /// How it ended.
    pub ending: Ending,
    /// Messages that got a reply of their own from the peer.
    pub messages: usize,
    /// Transactions begun.
    pub transactions: usize,
    /// Connections at whose other end somebody spoke.
    pub dialled: usize,
    /// What the peer said about our pace or address.
    pub signals: Vec<Signal>,
    /// An open connection to keep.
    pub idle: Option<Connection>,
    /// What was said where none could be opened.
    pub said: Option<Dialogue>,
    /// Addresses that could not be used.
    pub failed: Vec<SocketAddr>,
    /// Addresses that could.
    pub reached: Vec<SocketAddr>,
}
