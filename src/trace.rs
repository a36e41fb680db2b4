//! Live sessions, in and out, for whoever follows them: line by line, secrets masked, in bounded memory.
//!
//! Recipe: each session has a [`Tap`] and gives it its lines; [`Tracer::follow`] gets those that fit. Easy to
//! get wrong: while nobody follows, a line costs one read of a number; nothing of a message's text and
//! nothing that logs anybody in ever comes here; and a follower who does not read loses lines, never
//! slows a session.

mod script;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use script::Script;
use tokio::sync::Notify;

use crate::ext::Timestamp;
use crate::mail::{Reply, Sent, TenantId, VipId, printable};

/// Followers at a time, at most.
pub const FOLLOWERS_MAX: usize = 10;
/// Of these, followers of single tenants' sessions: the others are kept for who runs the instance.
pub const FOLLOWERS_OF_TENANTS_MAX: usize = 8;
/// Of these, of one tenant's.
pub const FOLLOWERS_PER_TENANT_MAX: usize = 2;
/// Lines kept for a follower until it reads them, at most; further ones are left out and counted.
pub const LINES_MAX: usize = 2_000;
/// Characters of a line, at most.
const LINE_CHARACTERS_MAX: usize = 512;
/// A follower that has not read for so long is gone.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Sessions a follower waits for an address in, at most.
const MATCHED_MAX: usize = 10_000;

/// Which way a session goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// A client handed mail in.
    In,
    /// We deliver.
    Out,
}

/// Who said a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// We did.
    Ours,
    /// The peer did.
    Theirs,
    /// Nobody: something happened.
    Note,
}

/// What is known of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Which way.
    pub direction: Direction,
    /// Whose, once that is known.
    pub tenant: Option<TenantId>,
    /// On which virtual IP.
    pub vip: VipId,
    /// With whom.
    pub peer: SocketAddr,
    /// Where to: the mail host, and the domain it is for.
    pub towards: Option<String>,
}

/// One line of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracedLine {
    /// When.
    pub at: Timestamp,
    /// Of which session; the number says nothing but that.
    pub session: u64,
    /// What is known of it.
    pub facts: Arc<Facts>,
    /// Who said it.
    pub side: Side,
    /// What, with secrets masked.
    pub text: String,
}

/// Which sessions are followed: those that fit everything that is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceFilter {
    /// Which way.
    pub direction: Option<Direction>,
    /// Of this tenant; of a session that has not logged in nobody knows whose it is.
    pub tenant: Option<TenantId>,
    /// On this virtual IP.
    pub vip: Option<VipId>,
    /// With this peer.
    pub peer: Option<IpAddr>,
    /// Towards a mail host or domain with this in its name.
    pub towards: Option<String>,
    /// That name this address in MAIL or RCPT; followed from that line on.
    pub address: Option<String>,
}

impl TraceFilter {
    fn fits(&self, facts: &Facts) -> bool {
        let is_towards = |text: &String| facts.towards.as_ref().is_some_and(|towards| towards.contains(text.as_str()));
        self.direction.is_none_or(|direction| direction == facts.direction)
            && self.tenant.is_none_or(|tenant| facts.tenant == Some(tenant))
            && self.vip.is_none_or(|vip| vip == facts.vip)
            && self.peer.is_none_or(|peer| peer == facts.peer.ip().to_canonical())
            && self.towards.as_ref().is_none_or(is_towards)
    }
}

#[derive(Debug)]
struct Follower {
    filter: TraceFilter,
    lines: VecDeque<TracedLine>,
    left_out: u64,
    /// Sessions in which the address it waits for was named.
    matched: HashSet<u64>,
    read: Instant,
    nudge: Arc<Notify>,
}

impl Follower {
    fn takes(&mut self, line: &TracedLine) -> bool {
        if !self.filter.fits(&line.facts) {
            return false;
        }
        let Some(address) = &self.filter.address else { return true };
        if self.matched.contains(&line.session) {
            return true;
        }
        let names = line.text.to_ascii_lowercase().contains(address.as_str());
        if names && self.matched.len() < MATCHED_MAX {
            self.matched.insert(line.session);
        }
        names
    }
}

/// What a follower reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traced {
    /// In the order they were said.
    pub lines: Vec<TracedLine>,
    /// Lines left out before these, because nobody read.
    pub left_out: u64,
}

/// All sessions that may be followed.
#[derive(Debug, Default)]
pub struct Tracer {
    followed: AtomicUsize,
    sessions: AtomicU64,
    followers: Mutex<(u64, BTreeMap<u64, Follower>)>,
}

impl Tracer {
    /// Nobody follows.
    pub fn new() -> Self {
        Self::default()
    }

    /// A session's hand.
    pub fn tap(self: &Arc<Self>, facts: Facts) -> Tap {
        let session = self.sessions.fetch_add(1, Ordering::Relaxed);
        let is_after_login = AtomicBool::new(false);
        Tap { tracer: Arc::clone(self), session, facts: Arc::new(facts), script: None, is_after_login }
    }

    fn kept(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Follower>)> {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the sessions that fit from now on; the number to read by.
    ///
    /// # Errors
    /// If [`FOLLOWERS_MAX`] follow already, or the most that may of tenants or of this one.
    pub fn follow(&self, filter: TraceFilter) -> Result<u64, String> {
        let lower = |text: Option<String>| text.map(|text| text.to_ascii_lowercase());
        let filter = TraceFilter { address: lower(filter.address), towards: lower(filter.towards), ..filter };
        let mut kept = self.kept();
        kept.1.retain(|_, follower| follower.read.elapsed() < IDLE_MAX);
        if kept.1.len() >= FOLLOWERS_MAX {
            return Err(format!("{FOLLOWERS_MAX} follow sessions already, the most there may be"));
        }
        if filter.tenant.is_some() {
            let of_tenants = kept.1.values().filter_map(|follower| follower.filter.tenant);
            let (own, all) = of_tenants.fold((0_usize, 0_usize), |(own, all), tenant| {
                (own + usize::from(Some(tenant) == filter.tenant), all + 1)
            });
            if own >= FOLLOWERS_PER_TENANT_MAX || all >= FOLLOWERS_OF_TENANTS_MAX {
                return Err(format!(
                    "{own} follow sessions of this tenant already and {all} those of any; the most are \
                     {FOLLOWERS_PER_TENANT_MAX} and {FOLLOWERS_OF_TENANTS_MAX}"
                ));
            }
        }
        kept.0 = kept.0.saturating_add(1);
        let number = kept.0;
        let follower = Follower {
            filter,
            lines: VecDeque::new(),
            left_out: 0,
            matched: HashSet::new(),
            read: Instant::now(),
            nudge: Arc::default(),
        };
        kept.1.insert(number, follower);
        self.followed.store(kept.1.len(), Ordering::Release);
        Ok(number)
    }

    /// What was said since the last time; waits up to `patience` for something. `None` if nobody follows by
    /// that number, or not any more.
    pub async fn read(&self, number: u64, patience: Duration) -> Option<Traced> {
        let nudge = {
            let mut kept = self.kept();
            let follower = kept.1.get_mut(&number)?;
            follower.read = Instant::now();
            match follower.lines.is_empty() {
                true => Some(Arc::clone(&follower.nudge)),
                false => None,
            }
        };
        if let Some(nudge) = nudge {
            let _ = tokio::time::timeout(patience, nudge.notified()).await;
        }
        let mut kept = self.kept();
        let follower = kept.1.get_mut(&number)?;
        follower.read = Instant::now();
        let left_out = std::mem::take(&mut follower.left_out);
        Some(Traced { lines: follower.lines.drain(..).collect(), left_out })
    }

    /// What a follower asked for.
    pub fn filter_of(&self, number: u64) -> Option<TraceFilter> {
        self.kept().1.get(&number).map(|follower| follower.filter.clone())
    }

    /// Follows no more; whether somebody did.
    pub fn leave(&self, number: u64) -> bool {
        let mut kept = self.kept();
        let was_there = kept.1.remove(&number).is_some();
        self.followed.store(kept.1.len(), Ordering::Release);
        was_there
    }

    fn is_followed(&self) -> bool {
        self.followed.load(Ordering::Acquire) > 0
    }

    fn tell(&self, line: &TracedLine) {
        let mut kept = self.kept();
        kept.1.retain(|_, follower| follower.read.elapsed() < IDLE_MAX);
        self.followed.store(kept.1.len(), Ordering::Release);
        for follower in kept.1.values_mut() {
            if !follower.takes(line) {
                continue;
            }
            if follower.lines.len() >= LINES_MAX {
                follower.left_out = follower.left_out.saturating_add(1);
                continue;
            }
            follower.lines.push_back(line.clone());
            follower.nudge.notify_one();
        }
    }
}

/// Commands a client may say; what is none may be a secret that was sent too early.
const VERBS: [&str; 14] = [
    "EHLO", "HELO", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "QUIT", "VRFY", "EXPN", "HELP", "STARTTLS", "AUTH",
];

/// One session's hand: what it says goes to those who follow it, and into the record of the attempt it serves.
#[derive(Debug)]
pub struct Tap {
    tracer: Arc<Tracer>,
    session: u64,
    facts: Arc<Facts>,
    /// Where it is kept for the record, of sessions in which we deliver.
    script: Option<Script>,
    /// The last command logs in: what is said to it, or after it without being asked, may repeat it.
    is_after_login: AtomicBool,
}

impl Tap {
    /// From now on it is kept there, or nowhere.
    pub fn keep(&mut self, script: Option<&Script>) {
        self.script = script.cloned();
    }

    /// It is known now whose session it is.
    pub fn belongs_to(&mut self, tenant: TenantId) {
        let facts = Facts { tenant: Some(tenant), ..(*self.facts).clone() };
        self.facts = Arc::new(facts);
    }

    /// From now on it is for that tenant's mail, and goes there.
    pub fn serves(&mut self, tenant: TenantId, towards: String) {
        let facts = Facts { tenant: Some(tenant), towards: Some(towards), ..(*self.facts).clone() };
        self.facts = Arc::new(facts);
    }

    /// Commands of whoever is the client; what logs in is masked, and so is what is no command.
    pub fn commands(&self, side: Side, octets: &[u8]) {
        self.is_after_login.store(is_login(octets), Ordering::Relaxed);
        if self.tracer.is_followed() {
            lines(octets).for_each(|line| self.tell(side, masked(line)));
        }
        if let Some(script) = &self.script {
            match without_secret(octets) {
                Some(login) => script.line(masked(login)),
                None => lines(octets).for_each(|line| script.line(masked(line))),
            }
        }
    }

    /// A line that logs in.
    pub fn secret(&self, side: Side) {
        self.is_after_login.store(true, Ordering::Relaxed);
        if self.tracer.is_followed() {
            self.tell(side, SECRET.to_owned());
        }
        if let Some(script) = &self.script {
            script.line(SECRET.to_owned());
        }
    }

    /// Replies of whoever is the server.
    pub fn replies(&self, side: Side, octets: &[u8]) {
        if self.tracer.is_followed() {
            lines(octets).for_each(|line| self.tell(side, line));
        }
    }

    /// One reply of the peer; of what is said to a login only the codes are shown.
    pub fn reply(&self, reply: &Reply) {
        if self.tracer.is_followed() {
            let line = match self.is_after_login.load(Ordering::Relaxed) {
                true => Reply { text: vec![UNSHOWN.to_owned()], ..reply.clone() }.one_line(),
                false => reply.one_line(),
            };
            self.replies(Side::Theirs, line.as_bytes());
        }
        if let Some(script) = &self.script {
            script.reply(reply);
        }
    }

    /// Something that happened.
    pub fn note(&self, what: impl FnOnce() -> String) {
        if self.tracer.is_followed() {
            self.tell(Side::Note, what());
        }
    }

    /// Something is sent or done that is no line; what comes of it is waited for.
    pub fn sent(&self, sent: Sent) {
        if let Some(script) = &self.script {
            script.sent(sent);
        }
    }

    /// What is waited for went well.
    pub fn done(&self) {
        if let Some(script) = &self.script {
            script.done();
        }
    }

    /// What is waited for went wrong.
    pub fn failed(&self, reason: &str) {
        if let Some(script) = &self.script {
            script.failed(reason);
        }
    }

    fn tell(&self, side: Side, text: String) {
        let (session, facts) = (self.session, Arc::clone(&self.facts));
        self.tracer.tell(&TracedLine { at: Timestamp::now(), session, facts, side, text });
    }
}

/// What may follow AUTH; anything else is taken for a secret.
const MECHANISMS: [&str; 8] =
    ["PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2", "OAUTHBEARER", "SCRAM-SHA-1", "SCRAM-SHA-256", "EXTERNAL"];
/// Stands for what logs somebody in.
const SECRET: &str = "(a secret)";
/// Stands for what is said to it.
const UNSHOWN: &str = "(not shown)";

fn is_login(octets: &[u8]) -> bool {
    octets.get(..4).is_some_and(|verb| verb.eq_ignore_ascii_case(b"AUTH"))
}

/// A line that logs in as far as it may be copied: a password is wiped where it is held, and is held nowhere else.
fn without_secret(octets: &[u8]) -> Option<String> {
    let words: Vec<&[u8]> =
        is_login(octets).then(|| octets.trim_ascii_end().splitn(3, |octet| *octet == b' ').collect())?;
    let open = words.iter().take(2).map(|word| String::from_utf8_lossy(word).into_owned());
    let more = words.get(2).map(|_| SECRET.to_owned());
    Some(open.chain(more).collect::<Vec<_>>().join(" "))
}

/// A command without its secret.
fn masked(line: String) -> String {
    let mut words = line.splitn(3, ' ');
    let verb = words.next().unwrap_or_default().to_ascii_uppercase();
    if verb == "AUTH" {
        let mechanism = words.next().unwrap_or_default();
        let is_mechanism = MECHANISMS.iter().any(|known| mechanism.eq_ignore_ascii_case(known));
        return match (is_mechanism, words.next()) {
            (true, None) => line,
            (true, Some(_)) => format!("AUTH {mechanism} {SECRET}"),
            (false, _) => format!("AUTH {SECRET}"),
        };
    }
    // The lone dot that ends a message without a recipient.
    if verb == "." || VERBS.contains(&verb.as_str()) {
        return line;
    }
    format!("(no command, {} octets)", line.len())
}

/// Printable lines of what was sent at once.
fn lines(octets: &[u8]) -> impl Iterator<Item = String> + '_ {
    let whole = octets.split(|octet| *octet == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    whole.filter(|line| !line.is_empty()).map(|line| {
        let text: String = String::from_utf8_lossy(line).chars().take(LINE_CHARACTERS_MAX).collect();
        printable(&text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(direction: Direction) -> Facts {
        let peer = "192.0.2.9:25".parse().unwrap();
        Facts { direction, tenant: None, vip: VipId(1), peer, towards: Some("mx.shop.example for shop.example".into()) }
    }

    async fn heard(tracer: &Tracer, number: u64) -> Vec<String> {
        let traced = tracer.read(number, Duration::ZERO).await.unwrap();
        traced.lines.into_iter().map(|line| line.text).collect()
    }

    #[tokio::test]
    async fn what_logs_in_is_masked_however_it_is_sent() {
        let tracer = Arc::new(Tracer::new());
        let number = tracer.follow(TraceFilter::default()).unwrap();
        let tap = tracer.tap(facts(Direction::In));
        tap.commands(Side::Theirs, b"EHLO client.example\r\n");
        tap.commands(Side::Theirs, b"auth plain AHVzZXIAc2VjcmV0\r\n");
        tap.replies(Side::Ours, b"535 5.7.8 no\r\n");
        tap.commands(Side::Theirs, b"AUTH LOGIN\r\n");
        tap.secret(Side::Theirs);
        // Sent before it was asked for, and so taken for a command.
        tap.commands(Side::Theirs, b"c2VjcmV0\r\n");
        tap.commands(Side::Theirs, b"MAIL FROM:<a@shop.example>\r\nRCPT TO:<b@c.example>\r\n");
        let heard = heard(&tracer, number).await;
        assert_eq!(heard[1], "AUTH plain (a secret)");
        assert_eq!(heard[3..6], ["AUTH LOGIN", "(a secret)", "(no command, 8 octets)"]);
        assert_eq!(heard.last().unwrap(), "RCPT TO:<b@c.example>");
    }

    #[tokio::test]
    async fn what_a_relay_says_to_a_login_or_unasked_after_it_is_shown_by_its_codes_alone() {
        let tracer = Arc::new(Tracer::new());
        let number = tracer.follow(TraceFilter::default()).unwrap();
        let tap = tracer.tap(facts(Direction::Out));
        tap.commands(Side::Ours, b"AUTH LOGIN\r\n");
        tap.reply(&Reply::new(334, None, "VXNlcm5hbWU6"));
        tap.secret(Side::Ours);
        tap.reply(&Reply::enhanced(535, 7, 8, "what is hunter2?"));
        tap.reply(&Reply::enhanced(421, 7, 0, "goodbye, hunter2"));
        tap.commands(Side::Ours, b"RSET\r\n");
        tap.reply(&Reply::new(250, None, "ok"));
        let heard = heard(&tracer, number).await;
        assert_eq!(heard[1], "334 (not shown)");
        assert_eq!(heard[3..5], ["535 5.7.8 (not shown)", "421 4.7.0 (not shown)"]);
        assert_eq!(heard[6], "250 ok");
    }

    #[test]
    fn whatever_follows_auth_and_is_no_mechanism_is_a_secret() {
        for (line, shown) in [
            ("AUTH LOGIN", "AUTH LOGIN"),
            ("auth scram-sha-256", "auth scram-sha-256"),
            ("AUTH PLAIN AHVz", "AUTH PLAIN (a secret)"),
            ("AUTH PLAIN?AHVzZXIAc2VjcmV0", "AUTH (a secret)"),
            ("AUTH AHVzZXIAc2VjcmV0", "AUTH (a secret)"),
            ("AUTH  AHVzZXIAc2VjcmV0", "AUTH (a secret)"),
        ] {
            assert_eq!(masked(line.to_owned()), shown);
        }
    }

    #[test]
    fn tenants_never_take_all_places_of_followers() {
        let tracer = Arc::new(Tracer::new());
        let of = |number: u64| TraceFilter { tenant: Some(TenantId(number)), ..TraceFilter::default() };
        for number in 0..FOLLOWERS_OF_TENANTS_MAX as u64 / FOLLOWERS_PER_TENANT_MAX as u64 {
            for _ in 0..FOLLOWERS_PER_TENANT_MAX {
                tracer.follow(of(number)).unwrap();
            }
            assert!(tracer.follow(of(number)).unwrap_err().contains("of this tenant"));
        }
        assert!(tracer.follow(of(99)).is_err());
        for _ in FOLLOWERS_OF_TENANTS_MAX..FOLLOWERS_MAX {
            tracer.follow(TraceFilter::default()).unwrap();
        }
        assert!(tracer.follow(TraceFilter::default()).is_err());
    }

    #[tokio::test]
    async fn only_what_fits_is_followed_and_an_address_from_its_line_on() {
        let tracer = Arc::new(Tracer::new());
        let fits = |filter: TraceFilter| (filter.clone(), tracer.follow(filter).unwrap());
        let out = fits(TraceFilter { direction: Some(Direction::Out), ..TraceFilter::default() });
        let tenant = fits(TraceFilter { tenant: Some(TenantId(3)), ..TraceFilter::default() });
        let towards = fits(TraceFilter { towards: Some("SHOP.example".into()), ..TraceFilter::default() });
        let address = fits(TraceFilter { address: Some("B@c.example".into()), ..TraceFilter::default() });
        let peer = fits(TraceFilter { peer: Some("192.0.2.8".parse().unwrap()), ..TraceFilter::default() });
        let mut tap = tracer.tap(facts(Direction::In));
        tap.commands(Side::Theirs, b"EHLO x\r\n");
        tap.belongs_to(TenantId(3));
        tap.commands(Side::Theirs, b"RCPT TO:<b@c.example>\r\n");
        tap.note(|| "(message, 7 octets)".to_owned());
        assert!(heard(&tracer, out.1).await.is_empty() && heard(&tracer, peer.1).await.is_empty());
        assert_eq!(heard(&tracer, tenant.1).await, ["RCPT TO:<b@c.example>", "(message, 7 octets)"]);
        assert_eq!(heard(&tracer, towards.1).await.len(), 3);
        assert_eq!(heard(&tracer, address.1).await, ["RCPT TO:<b@c.example>", "(message, 7 octets)"]);
    }

    #[tokio::test]
    async fn who_does_not_read_loses_lines_and_is_told_how_many() {
        let tracer = Arc::new(Tracer::new());
        let number = tracer.follow(TraceFilter::default()).unwrap();
        let tap = tracer.tap(facts(Direction::Out));
        for _ in 0..LINES_MAX + 5 {
            tap.commands(Side::Ours, b"NOOP\r\n");
        }
        let traced = tracer.read(number, Duration::ZERO).await.unwrap();
        assert_eq!((traced.lines.len(), traced.left_out), (LINES_MAX, 5));
        assert!(tracer.leave(number) && !tracer.leave(number));
        assert_eq!(tracer.read(number, Duration::ZERO).await, None);
        assert!(!tracer.is_followed());
        for _ in 0..FOLLOWERS_MAX {
            tracer.follow(TraceFilter::default()).unwrap();
        }
        assert!(tracer.follow(TraceFilter::default()).is_err());
    }
}
