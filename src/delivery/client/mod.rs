//! SMTP as a client: one job drains the claims of its lane over one connection after another.
//!
//! Recipe: [`Client::drain`] takes a [`Job`]; outcomes leave through the job's hand; the report
//! says how it ended and may bring an open connection back for the [`Pool`].
//! Easy to get wrong: a kept connection may die the moment it is used again. As long as nothing of
//! the message was sent, that says nothing about the peer, and the same claim is tried once more
//! over a new connection.

mod body;
mod connection;
mod opening;
mod pool;
mod serving;
mod stream;
mod transaction;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

pub use connection::{Connection, PoolKey, ReturnAddress};
pub use pool::Pool;

use self::body::{Loaded, Text};
use self::connection::{Call, Tools};
use self::transaction::Round;
use super::mx::{TlsMemory, voice};
use super::outcome::{Failure, Phase, Trouble};
use super::shaping::Signal;
use super::transport::{Ending, Held, Host, Job, Report, Site, Source, Standing};
use crate::ext::random_bytes;
use crate::mail::{Dialogue, Over};
use crate::metrics::TLS_UNMET;
use crate::net::{ClientTls, Dialer};
use crate::queue::{Claim, Outcome};
use crate::store::StoreError;
use crate::tlsrpt::TlsReports;
use crate::trace::Tracer;

/// Bytes of the text buffer kept between messages.
const BUFFER_KEPT_BYTES: usize = 1024 * 1024;
/// Conversations that may break in one job before the site counts as failing.
const BROKEN_MAX: usize = 2;

/// What every conversation needs.
pub struct Client {
    dialer: Arc<dyn Dialer>,
    tls: Arc<ClientTls>,
    return_path: ReturnAddress,
    tracer: Arc<Tracer>,
    tls_memory: Option<Arc<TlsMemory>>,
    reports: Option<Arc<TlsReports>>,
}

/// One address to try.
#[derive(Clone, Debug)]
struct Target<'a> {
    host: &'a Host,
    key: PoolKey,
}

/// The addresses of a site that `source` can reach, best preference first, in the hosts' order.
fn targets<'a>(hosts: impl Iterator<Item = &'a Host>, site: &Site, source: &Source) -> Vec<Target<'a>> {
    let mut found = Vec::new();
    for host in hosts {
        for address in host.addresses.iter().filter(|address| source.towards(**address).is_some()) {
            let is_named = host.tls.proves_name() || host.standing == Standing::Proven;
            let key = PoolKey {
                address: SocketAddr::new(*address, site.port),
                vip: source.vip,
                tls: host.tls.clone(),
                standing: host.standing,
                named: is_named.then(|| host.name.as_str().into()),
                realm: site.realm,
            };
            found.push(Target { host, key });
        }
    }
    found
}

/// The keys under which an idle connection to the site's best hosts may be found.
pub fn pool_keys(site: &Site, source: &Source) -> Vec<PoolKey> {
    let best = site.hosts.iter().map(|host| host.preference).min();
    let hosts = site.hosts.iter().filter(|host| Some(host.preference) == best);
    targets(hosts, site, source).into_iter().map(|target| target.key).collect()
}

/// Hosts by preference, random among equals (RFC 5321 s5.1).
fn ordered(hosts: &[Host]) -> Vec<&Host> {
    let mut drawn: Vec<(u16, [u8; 4], &Host)> =
        hosts.iter().map(|host| (host.preference, random_bytes(), host)).collect();
    drawn.sort_by_key(|(preference, lot, _)| (*preference, *lot));
    drawn.into_iter().map(|(_, _, host)| host).collect()
}

/// What one claim's transactions came to.
enum CameTo {
    /// Settled, or its rest back in the hand; the connection may go on.
    Done,
    /// Settled, and the conversation is over.
    Broken(Failure),
    /// The kept connection was dead; the claim is back in the hand.
    Again,
}

impl Client {
    /// A client that dials with `dialer`, secures with `tls`, says `return_path`s, and shows its sessions to
    /// whoever follows.
    pub fn new(dialer: Arc<dyn Dialer>, tls: Arc<ClientTls>, return_path: ReturnAddress, tracer: Arc<Tracer>) -> Self {
        Self { dialer, tls, return_path, tracer, tls_memory: None, reports: None }
    }

    /// The same client, telling this memory what TLS came to, and asking it.
    #[must_use]
    pub fn remembering(self, memory: Arc<TlsMemory>) -> Self {
        Self { tls_memory: Some(memory), ..self }
    }

    /// The same client, counting its sessions for reports.
    #[must_use]
    pub fn reporting(self, reports: Arc<TlsReports>) -> Self {
        Self { reports: Some(reports), ..self }
    }

    /// Drains claims until there are none, the turn is over, or the site fails.
    pub async fn drain(&self, mut job: Job) -> Report {
        let mut report = Report::default();
        let mut connection = job.idle.take();
        connection.iter_mut().for_each(|idle| self.take_over(idle, &job));
        let mut is_kept = connection.is_some();
        let script = job.hand.script().clone();
        let mut buffer = Vec::new();
        let mut broken = 0_usize;
        report.ending = loop {
            if let Some(over) = is_over(&job, &report) {
                break over;
            }
            let Some(held) = job.hand.next_claim().await else { break Ending::Drained };
            let need = held.claim().map_or(Need::Any, Need::of);
            let at_hand = need.met_by(connection.take(), &job).await;
            script.begin(if at_hand.is_some() { Over::Reused } else { Over::New });
            let mut open = match self.connection(at_hand, (&job, need), &mut report).await {
                Ok(open) => open,
                Err(Ending::Unmet(outcome)) if need == Need::TlsAllTheWay => {
                    // This message's own affair: those behind it may leave.
                    settle_alike(&job, held, &outcome).await;
                    continue;
                }
                Err(ending) => {
                    report.said = script.take().map(|(_, dialogue)| Dialogue { over: Over::None, ..dialogue });
                    job.hand.put_back(held);
                    break ending;
                }
            };
            open.note_domain(&job.lane.next_hop);
            let before = open.uses;
            let most = at_most(job.permit.quota.messages).saturating_sub(report.transactions);
            let sent = deliver(&mut open, held, &mut job, &mut buffer, (is_kept, most)).await;
            report.transactions = report.transactions.saturating_add(open.uses.saturating_sub(before));
            report.signals.append(&mut open.signals);
            match sent {
                CameTo::Done => {
                    report.messages = report.messages.saturating_add(1);
                    (is_kept, broken) = (false, 0);
                    if open.is_fresh(&job.settings, Instant::now()) {
                        connection = Some(open);
                    } else {
                        open.quit(job.settings.timeouts.quit).await;
                    }
                }
                CameTo::Again => is_kept = false,
                CameTo::Broken(failure) => {
                    is_kept = false;
                    report.signals.extend(signal(&job, &failure));
                    // What is wrong with our own disk says nothing about the site.
                    let is_ours = matches!(failure.trouble, Trouble::Damaged(_) | Trouble::Stored(_));
                    broken = broken.saturating_add(usize::from(!is_ours));
                    let is_goodbye = matches!(failure.trouble, Trouble::Refused(_));
                    if broken >= BROKEN_MAX || is_goodbye {
                        break Ending::Failed(failure.describe());
                    }
                }
            }
            if buffer.capacity() > BUFFER_KEPT_BYTES {
                buffer = Vec::new();
            }
        };
        job.hand.give_back();
        if let Some(open) = &mut connection {
            open.tap.keep(None);
        }
        report.idle = connection;
        report
    }

    /// A connection that was kept serves this job now.
    fn take_over(&self, idle: &mut Connection, job: &Job) {
        idle.serve(job);
        if let Some(memory) = &self.tls_memory {
            idle.remember_again(job, memory);
        }
        if let Some(reports) = &self.reports {
            idle.report_again(job, reports);
        }
    }

    /// The connection at hand, or a new one if the permit has one left.
    async fn connection(
        &self,
        at_hand: Option<Connection>,
        (job, need): (&Job, Need),
        report: &mut Report,
    ) -> Result<Connection, Ending> {
        if let Some(open) = at_hand {
            return Ok(open);
        }
        if report.dialled >= at_most(job.permit.quota.connections) {
            return Err(Ending::TurnOver);
        }
        self.connect((job, need), report).await.map_err(|failure| {
            report.signals.extend(signal(job, &failure));
            match failure.trouble {
                Trouble::SourceMissing(address) => Ending::SourceMissing(address),
                Trouble::Policy(_) | Trouble::RequireTls(_) => {
                    metrics::counter!(TLS_UNMET, "by" => demanding(job, &failure)).increment(1);
                    Ending::Unmet(failure.outcome())
                }
                _ => Ending::Unreachable(failure.describe(), failure.outcome()),
            }
        })
    }

    /// A new connection to the first address that serves us.
    async fn connect(&self, (job, need): (&Job, Need), report: &mut Report) -> Result<Connection, Failure> {
        let mut candidates = need.candidates(job)?;
        // What failed lately goes last; the sort keeps the order otherwise.
        candidates.sort_by_key(|target| job.avoid.contains(&target.key.address));
        let tools = Tools {
            return_path: &self.return_path,
            dialer: &*self.dialer,
            tls: &self.tls,
            settings: &job.settings,
            progress: &job.progress,
            tracer: &self.tracer,
            script: job.hand.script(),
            tls_memory: self.tls_memory.as_deref(),
            reports: self.reports.as_deref(),
        };
        let mut unmet = None;
        let mut last = Failure {
            phase: Phase::Start,
            trouble: Trouble::Unreachable("no host has an address of a family this virtual IP has".to_owned()),
            peer: None,
        };
        for target in candidates.into_iter().take(job.settings.addresses_tried_max) {
            let address = target.key.address;
            let Some(source) = job.source.towards(address.ip()) else { continue };
            // Where a message demands more than the domain, what it lacks is not the domain's.
            let is_domains = target.key.tls == target.host.tls;
            let call = Call {
                reported: if is_domains { &target.host.reported } else { &[] },
                lack: Mutex::default(),
                host: &target.host.name,
                lane: &job.lane,
                policy: target.host.policy.as_ref(),
                source,
                key: target.key,
                ehlo: &job.source.ehlo,
                login: job.site.login.as_ref(),
                need,
                provider: job.site.provider.as_ref(),
                messages_max: at_most(job.permit.messages_per_connection),
            };
            let opened = opening::open(&call, &tools).await;
            match need.judged(opened, job).await {
                Ok(open) => {
                    report.dialled = report.dialled.saturating_add(1);
                    report.reached.push(address);
                    return Ok(open);
                }
                Err(failure) if matches!(failure.trouble, Trouble::SourceMissing(_)) => return Err(failure),
                Err(failure) if matches!(failure.trouble, Trouble::Policy(_) | Trouble::RequireTls(_)) => {
                    // Good enough for others, perhaps: it is not avoided.
                    report.dialled = report.dialled.saturating_add(1);
                    unmet = Some(failure);
                }
                Err(failure) => {
                    report.failed.push(address);
                    report.dialled = report.dialled.saturating_add(usize::from(failure.phase > Phase::Connect));
                    // Its other hosts would say the same, and each would count it as one more connection.
                    if signal(job, &failure).is_some() {
                        return Err(failure);
                    }
                    last = failure;
                }
            }
            if job.stop.is_cancelled() {
                break;
            }
        }
        // A host that could not be asked may be the one that keeps TLS: the message waits for it.
        let is_undecided = need == Need::TlsAllTheWay && last.phase > Phase::Start;
        Err(if is_undecided { last } else { unmet.unwrap_or(last) })
    }
}

/// What a message needs of a connection beyond what its domain's policy demands of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// Nothing.
    Any,
    /// A proven host, verified TLS, and REQUIRETLS there too (RFC 8689 s4.2.1).
    TlsAllTheWay,
}

impl Need {
    fn of(claim: &Claim) -> Self {
        if transaction::demands_tls(claim) { Self::TlsAllTheWay } else { Self::Any }
    }

    /// The connection, if it will do; else it is closed.
    async fn met_by(self, connection: Option<Connection>, job: &Job) -> Option<Connection> {
        let connection = connection?;
        if self == Self::Any || connection.keeps_tls() {
            return Some(connection);
        }
        connection.quit(job.settings.timeouts.quit).await;
        None
    }

    /// The addresses to try; an error if no host will do.
    fn candidates(self, job: &Job) -> Result<Vec<Target<'_>>, Failure> {
        let hosts = ordered(&job.site.hosts).into_iter();
        if self == Self::Any {
            return Ok(targets(hosts, &job.site, &job.source));
        }
        let proven = hosts.filter(|host| host.standing == Standing::Proven);
        let mut found = targets(proven, &job.site, &job.source);
        for target in &mut found {
            target.key.tls = target.key.tls.verified();
            target.key.named = Some(target.host.name.as_str().into());
        }
        if found.is_empty() {
            let domain = &job.lane.next_hop;
            let sentence = format!(
                "550 5.7.30 REQUIRETLS: no mail host of {domain} is proved to be its own, by MTA-STS or DNSSEC"
            );
            return Err(Failure { phase: Phase::Start, trouble: Trouble::RequireTls(sentence), peer: None });
        }
        Ok(found)
    }

    /// What was opened, if it will do.
    async fn judged(self, opened: Result<Connection, Failure>, job: &Job) -> Result<Connection, Failure> {
        if self == Self::Any {
            return opened;
        }
        match opened {
            Ok(open) if open.keeps_tls() => Ok(open),
            Ok(open) => {
                let sentence = format!("550 5.7.30 REQUIRETLS: {} does not offer it", open.peer.host);
                let failure = open.failure(Phase::StartTls, Trouble::RequireTls(sentence));
                open.quit(job.settings.timeouts.quit).await;
                Err(failure)
            }
            Err(failure) => match lack_of_tls(&failure) {
                Some(reason) => {
                    let trouble = Trouble::RequireTls(format!("550 5.7.10 REQUIRETLS: {reason}"));
                    Err(Failure { trouble, ..failure })
                }
                None => Err(failure),
            },
        }
    }
}

/// Why there was no verified TLS, if that is what went wrong.
fn lack_of_tls(failure: &Failure) -> Option<String> {
    match &failure.trouble {
        Trouble::Tls(reason) | Trouble::TlsLost(reason) => {
            let host = failure.peer.as_ref().map_or("the peer", |peer| peer.host.as_str());
            Some(format!("{host}: {reason}"))
        }
        // What comes behind code and status.
        Trouble::Policy(sentence) => sentence.splitn(3, ' ').nth(2).map(str::to_owned),
        _ => None,
    }
}

/// Who demands the TLS that is not there.
fn demanding(job: &Job, failure: &Failure) -> &'static str {
    let policies = job.site.hosts.iter().filter_map(|host| host.policy.as_deref());
    match failure.trouble {
        Trouble::RequireTls(_) => "message",
        _ => policies.map(voice).next().unwrap_or("operator"),
    }
}

/// Why no further claim is begun.
fn is_over(job: &Job, report: &Report) -> Option<Ending> {
    if job.stop.is_cancelled() {
        return Some(Ending::Stopped);
    }
    let is_used_up = report.transactions >= at_most(job.permit.quota.messages);
    let is_turn_over = report.messages >= job.settings.messages_per_turn_max;
    // Once something was said about our pace, that is looked at before anything more is sent.
    let is_told = !report.signals.is_empty();
    let yields = report.messages > 0 && job.yields.swap(false, Ordering::AcqRel);
    (is_used_up || is_turn_over || is_told || yields).then_some(Ending::TurnOver)
}

/// What the pace should learn from a refusal of the whole conversation.
fn signal(job: &Job, failure: &Failure) -> Option<Signal> {
    let Trouble::Refused(reply) = &failure.trouble else { return None };
    job.settings.replies.judge(reply, failure.phase, job.site.provider.as_deref()).signal(reply)
}

fn at_most(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// The transactions of one claim, `most` of them at most. What is over after one is on disk before the
/// next begins; what is left when they must end goes back.
async fn deliver(
    open: &mut Connection,
    held: Held,
    job: &mut Job,
    buffer: &mut Vec<u8>,
    (is_kept, most): (bool, usize),
) -> CameTo {
    let Some(claim) = held.claim() else { return CameTo::Done };
    let (body, size_bytes) = (claim.record.body, claim.message.size_bytes);
    let opener = job.hand.opener();
    let mut loaded = match body::load(body, size_bytes, &opener, buffer).await {
        Ok(loaded) => loaded,
        Err(error) => return unreadable(job, held, error).await,
    };
    if let Some(obstacle) = held.claim().and_then(|claim| transaction::obstacle(open, claim)) {
        settle_alike(job, held, &obstacle).await;
        return CameTo::Done;
    }
    let mut round = Round::new(held, at_most(job.permit.recipients_per_transaction));
    let mut begun = 0_usize;
    loop {
        begun = begun.saturating_add(1);
        let mut text = match loaded {
            Loaded::Streamed(reader) => Text::Streamed(Some(reader)),
            Loaded::Whole => Text::Whole(buffer),
        };
        let sending = transaction::send(open, &mut round, &mut text, &job.settings.timeouts, &job.progress);
        let sent = tokio::time::timeout(job.settings.timeouts.transaction, sending).await;
        let result = sent.unwrap_or_else(|_| Err(open.failure(job.progress.phase(), Trouble::TimedOut)));
        round.held.note_dialogue();
        if let Err(failure) = result {
            return broken(job, round, failure, is_kept && begun == 1).await;
        }
        let is_whole = matches!(text, Text::Whole(_));
        if round.pending.is_empty() {
            job.hand.settle(round.held, Vec::new()).await;
            return CameTo::Done;
        }
        let Round { held, pending, limit } = round;
        let Some(held) = job.hand.record(held).await else { return CameTo::Done };
        if begun >= most || must_end(open, job) {
            give_back_rest(job, held).await;
            return CameTo::Done;
        }
        round = Round { held, pending, limit };
        // A streamed text has been read, and begins anew.
        let again = if is_whole { Ok(Loaded::Whole) } else { body::stream(body, &opener).await };
        loaded = match again {
            Ok(again) => again,
            Err(error) => return unreadable(job, round.held, error).await,
        };
    }
}

/// Whether a claim may have no further transaction over this connection, or not now.
fn must_end(open: &Connection, job: &Job) -> bool {
    // What was said about our pace is looked at before anything more is sent.
    let is_told = !open.signals.is_empty();
    job.stop.is_cancelled() || is_told || !open.is_fresh(&job.settings, Instant::now())
}

/// What is left of a claim between two transactions: it is the next one again, or, if some were put
/// off, settled with them.
async fn give_back_rest(job: &mut Job, held: Held) {
    if !held.has_verdicts() {
        job.hand.put_back(held);
    } else {
        job.hand.settle(held, Vec::new()).await;
    }
}

/// The stored message cannot be read.
async fn unreadable(job: &mut Job, held: Held, error: StoreError) -> CameTo {
    match error {
        StoreError::Damaged(how) => set_aside(job, held, &how).await,
        StoreError::Failed(reason) => {
            let failure = Failure { phase: Phase::Start, trouble: Trouble::Stored(reason), peer: None };
            settle_alike(job, held, &failure.outcome()).await;
        }
    }
    CameTo::Done
}

/// Sets a claim aside; who is done is done all the same.
async fn set_aside(job: &Job, held: Held, how: &str) {
    if let Some(held) = job.hand.record(held).await {
        job.hand.set_aside(held, how);
    }
}

/// A transaction did not end as it should. `is_first`: it was the first over a kept connection.
async fn broken(job: &mut Job, mut round: Round, failure: Failure, is_first: bool) -> CameTo {
    if let Trouble::Damaged(how) = &failure.trouble {
        // Found at the end of a streamed text: nobody was sent it whole. Trying again would end alike.
        set_aside(job, round.held, how).await;
        return CameTo::Broken(failure);
    }
    let is_harmless = is_first && !round.held.has_verdicts() && failure.phase < Phase::Body;
    if is_harmless && matches!(failure.trouble, Trouble::Lost(_) | Trouble::Refused(_)) {
        job.hand.put_back(round.held);
        return CameTo::Again;
    }
    round.decide_rest(&failure);
    job.hand.settle(round.held, Vec::new()).await;
    CameTo::Broken(failure)
}

/// The same outcome for everybody who has none yet.
async fn settle_alike(job: &Job, mut held: Held, outcome: &Outcome) {
    held.note_dialogue();
    let outcomes = held.undecided().into_iter().map(|(_, number)| (number, outcome.clone())).collect();
    job.hand.settle(held, outcomes).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::TlsUse;
    use crate::mail::{Domain, VipId};

    fn site(host: &str, standing: Standing) -> Site {
        let host = Host {
            name: host.to_owned(),
            preference: 10,
            addresses: vec!["192.0.2.1".parse().unwrap()],
            tls: TlsUse::Opportunistic,
            policy: None,
            standing,
            reported: Arc::default(),
        };
        Site { name: "one".into(), provider: None, hosts: vec![host], port: 25, realm: 0, login: None }
    }

    #[test]
    fn what_was_proved_for_one_domain_serves_no_other_at_the_same_address() {
        let ehlo = Domain::parse("mx.shop.example").unwrap();
        let source = Source { vip: VipId(1), ehlo, addresses: vec!["192.0.2.9".parse().unwrap()] };
        let key = |name, standing| pool_keys(&site(name, standing), &source).remove(0);
        let proven = key("mx.one.example", Standing::Proven);
        assert_eq!(proven, key("mx.one.example", Standing::Proven));
        assert_ne!(proven, key("mx.one.example", Standing::Claimed));
        assert_ne!(proven, key("mx.two.example", Standing::Proven));
        assert_eq!(key("mx.one.example", Standing::Claimed), key("mx.two.example", Standing::Claimed));
    }
}
