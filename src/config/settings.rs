//! Every setting there is: its key, kind, default, meaning, who changes it, and when a change is
//! taken over. The reference page, the example file and the checks all come from this table.
//!
//! A setting must name the operator who will change it; otherwise it is a constant in its room.

use toml::de::DeTable;

use super::value::{Kind, Value};

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// `section.name`, or a bare name at the top of the file.
    pub key: &'static str,
    /// What it may be.
    pub(super) kind: Kind,
    /// Its default as TOML text; an example value if it must be given.
    pub default: &'static str,
    /// Whether the file must have it.
    pub presence: Presence,
    /// What it does.
    pub meaning: &'static str,
    /// Which operator changes it, and when.
    pub who: &'static str,
    /// When a change is taken over.
    pub applied: Applied,
}

/// Whether the file must have a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// There is no default.
    Required,
    /// Shown in the example file, commented out.
    Shown,
    /// In the reference page only.
    Rare,
}

/// When a changed setting is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// By a reload (SIGHUP).
    OnReload,
    /// When the daemon starts again.
    AtStart,
}

/// Sections, in the order of the reference page, with what each is about.
pub(super) const SECTIONS: &[(&str, &str)] = &[
    ("", "What this machine is called and where things are."),
    ("tls", "Certificates of the submission ports."),
    ("secrets", "Where secrets are; never the secrets themselves."),
    ("submission", "The door clients log in at, on every virtual IP."),
    ("accounts", "How failed logins slow those who try."),
    ("queue", "When mail is tried again and when it is given up."),
    ("delivery", "How mail leaves."),
    ("dns", "Who is asked for names."),
    ("store", "The records and bodies on disk."),
    ("admin", "The local socket the command line talks to."),
    ("monitor", "Health and metrics for machines."),
    ("log", "What is written to standard error, and so to the journal."),
];

use Applied::{AtStart, OnReload};
use Kind::{Addresses, Choice, Count, Flag, Group, Loopback, Name, Path, Ports, Secret, Size, Span};
use Presence::{Rare, Required, Shown};

const MINUTE: u64 = 60;
const HOUR: u64 = 3600;
const DAY: u64 = 86_400;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The table.
pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        key: "hostname",
        kind: Name,
        default: "\"mx.example.com\"",
        presence: Required,
        meaning: "The name of this machine: its certificate is the one shown when nothing better fits, and notices of \
                  the instance come from it.",
        who: "Everybody, once, before the first start.",
        applied: AtStart,
    },
    Setting {
        key: "data",
        kind: Path,
        default: "\"/var/lib/postern\"",
        presence: Shown,
        meaning: "The folder of the records and of mail that is still owed. It must be on a local disk that keeps what \
                  it has synced, and belong to one daemon alone.",
        who: "Whoever has a separate disk for mail.",
        applied: AtStart,
    },
    Setting {
        key: "allow_root",
        kind: Flag,
        default: "false",
        presence: Rare,
        meaning: "Whether the daemon may serve as root. It needs no right beyond binding to low ports \
                  (CAP_NET_BIND_SERVICE), which the unit file gives it.",
        who: "Whoever runs it in a container whose only user is root.",
        applied: AtStart,
    },
    Setting {
        key: "tls.certificates",
        kind: Path,
        default: "\"/etc/postern/certificates\"",
        presence: Shown,
        meaning: "The folder of certificates: NAME/fullchain.pem and NAME/privkey.pem, as certbot keeps them. It is \
                  looked at every 30 seconds; a new certificate is used for new sessions, and one that cannot be read \
                  leaves the old one in use. Chosen by the name the client asks for, else by the virtual IP's EHLO \
                  name, else `hostname`.",
        who: "Whoever keeps certificates elsewhere, such as /etc/letsencrypt/live.",
        applied: AtStart,
    },
    Setting {
        key: "secrets.master_key",
        kind: Secret,
        default: "\"/etc/postern/master.key\"",
        presence: Shown,
        meaning: "The key that seals DKIM private keys and relay passwords in the data folder. Keep it out of the data \
                  folder and out of its backups, and keep a copy in a safe place: without it nothing can be signed.",
        who: "Whoever hands secrets to services as systemd credentials.",
        applied: AtStart,
    },
    Setting {
        key: "submission.tls_ports",
        kind: Ports,
        default: "[465]",
        presence: Shown,
        meaning: "Ports where TLS comes first (RFC 8314).",
        who: "Whoever cannot bind to low ports, or must serve clients behind a firewall that closes them.",
        applied: AtStart,
    },
    Setting {
        key: "submission.starttls_ports",
        kind: Ports,
        default: "[587, 2525]",
        presence: Shown,
        meaning: "Ports where the client says STARTTLS before it logs in (RFC 6409).",
        who: "Whoever cannot bind to low ports, or must serve clients behind a firewall that closes them.",
        applied: AtStart,
    },
    Setting {
        key: "submission.message_bytes_max",
        kind: Size(64 * KIB, GIB),
        default: "\"25 MiB\"",
        presence: Shown,
        meaning: "The largest message taken, as advertised by SIZE. Many receivers refuse more than 25 MiB.",
        who: "Whoever sends large attachments to receivers known to take them.",
        applied: AtStart,
    },
    Setting {
        key: "accounts.login_failures_free_max",
        kind: Count(1, 1000),
        default: "5",
        presence: Rare,
        meaning: "Failed logins with one name from one network before each further answer is delayed.",
        who: "Whoever is under attack, or has clients with many wrong passwords behind one address.",
        applied: AtStart,
    },
    Setting {
        key: "accounts.network_failures_max",
        kind: Count(1, 1_000_000),
        default: "100",
        presence: Rare,
        meaning: "Failed logins from one network (/24 or /64) within an hour before it is answered 454.",
        who: "Whoever is under attack, or has many clients behind one address.",
        applied: AtStart,
    },
    Setting {
        key: "accounts.login_delay_max",
        kind: Span(1, 5 * MINUTE),
        default: "\"30s\"",
        presence: Rare,
        meaning: "The longest an answer to a failed login is delayed.",
        who: "Whoever is under attack.",
        applied: AtStart,
    },
    Setting {
        key: "accounts.network_trust",
        kind: Span(HOUR, 365 * DAY),
        default: "\"30d\"",
        presence: Rare,
        meaning: "How long a network that logged in is never blocked by the failures of others.",
        who: "Whoever has customers that send less than once a month.",
        applied: AtStart,
    },
    Setting {
        key: "queue.retry_first",
        kind: Span(10, DAY),
        default: "\"5m\"",
        presence: Shown,
        meaning: "How long after the first failed try a message is tried again. Later pauses grow, with some chance in \
                  them.",
        who: "Whoever sends mail that is only good for minutes, such as login codes.",
        applied: AtStart,
    },
    Setting {
        key: "queue.retry_max",
        kind: Span(MINUTE, 2 * DAY),
        default: "\"4h\"",
        presence: Shown,
        meaning: "The longest pause between two tries.",
        who: "Whoever has recipients with long outages or strict greylisting.",
        applied: AtStart,
    },
    Setting {
        key: "queue.expire_after",
        kind: Span(10 * MINUTE, 30 * DAY),
        default: "\"3d\"",
        presence: Shown,
        meaning: "How long a message is tried before its sender is told that it was given up. There is always a try \
                  after that time.",
        who: "Whoever must know sooner (hours), or whose recipients are down for days (RFC 5321 s4.5.4.1 says 4 to 5).",
        applied: AtStart,
    },
    Setting {
        key: "queue.delay_notice_after",
        kind: Span(10 * MINUTE, 30 * DAY),
        default: "\"4h\"",
        presence: Rare,
        meaning: "When senders who asked for it are told that a message is late.",
        who: "Whoever promises delivery times.",
        applied: AtStart,
    },
    Setting {
        key: "queue.notice_gather",
        kind: Span(0, HOUR),
        default: "\"10m\"",
        presence: Rare,
        meaning: "Failures of one message within this time after the first share one notice.",
        who: "Whoever wants notices at once.",
        applied: AtStart,
    },
    Setting {
        key: "dns.servers",
        kind: Addresses,
        default: "[]",
        presence: Shown,
        meaning: "The resolvers to ask, each with its port; empty for those in /etc/resolv.conf. A resolver on this \
                  machine is best: public ones are refused by many blocklists.",
        who: "Whoever runs a resolver of their own on this machine.",
        applied: AtStart,
    },
    Setting {
        key: "delivery.port",
        kind: Count(1, 65_535),
        default: "25",
        presence: Rare,
        meaning: "The port of the recipients' mail exchangers.",
        who: "Whoever tests against receivers of their own. Never in production.",
        applied: AtStart,
    },
    Setting {
        key: "delivery.private_addresses",
        kind: Choice(&["refuse", "allow"]),
        default: "\"refuse\"",
        presence: Rare,
        meaning: "Whether mail may be delivered to mail exchangers at loopback, private or link-local addresses.",
        who: "Whoever delivers to mail servers inside their own network.",
        applied: AtStart,
    },
    Setting {
        key: "store.free_bytes_min",
        kind: Size(16 * MIB, 1024 * GIB),
        default: "\"1 GiB\"",
        presence: Rare,
        meaning: "Mail is answered 452 while less than this is free on the disk of the data folder, so that what was \
                  accepted can still be delivered and recorded.",
        who: "Whoever has a very small or a very large disk.",
        applied: AtStart,
    },
    Setting {
        key: "admin.socket",
        kind: Path,
        default: "\"/run/postern/postern.sock\"",
        presence: Rare,
        meaning: "The Unix socket of the command line and the admin API.",
        who: "Whoever runs two instances on one machine.",
        applied: AtStart,
    },
    Setting {
        key: "admin.group",
        kind: Group,
        default: "\"\"",
        presence: Shown,
        meaning: "A Unix group whose members may use the command line beside root and the daemon's own user.",
        who: "Whoever lets operators manage mail without becoming root.",
        applied: AtStart,
    },
    Setting {
        key: "monitor.listen",
        kind: Loopback,
        default: "\"127.0.0.1:9125\"",
        presence: Shown,
        meaning: "Where /health/live, /health/ready and /metrics (Prometheus) are served, on this machine only; empty \
                  for nowhere.",
        who: "Whoever scrapes metrics, or runs two instances on one machine.",
        applied: AtStart,
    },
    Setting {
        key: "log.format",
        kind: Choice(&["text", "json"]),
        default: "\"text\"",
        presence: Shown,
        meaning: "Lines for people, or one JSON object per line for machines.",
        who: "Whoever collects logs with a tool that reads JSON.",
        applied: AtStart,
    },
    Setting {
        key: "log.level",
        kind: Choice(&["error", "warn", "info", "debug", "trace"]),
        default: "\"info\"",
        presence: Shown,
        meaning: "How much is written. `debug` and `trace` show addresses and SMTP dialogues; never passwords or \
                  contents of mail.",
        who: "Whoever looks for a fault.",
        applied: OnReload,
    },
];

impl Setting {
    /// The default as a value.
    ///
    /// # Panics
    /// If the table's text is not of its kind; a test reads them all.
    #[expect(clippy::expect_used, reason = "the table is constant and a test reads every default")]
    pub(super) fn default_value(&self) -> Value {
        let text = format!("value = {}", self.default);
        let table = DeTable::parse(&text).expect("defaults are TOML");
        let value = table.get_ref().get("value").expect("the value was just written");
        self.kind.read(value.get_ref()).expect("defaults are of their kind")
    }

    /// The section it is in; empty at the top of the file.
    pub fn section(&self) -> &'static str {
        self.key.rsplit_once('.').map_or("", |(section, _)| section)
    }

    /// Its name within the section.
    pub fn name(&self) -> &'static str {
        self.key.rsplit_once('.').map_or(self.key, |(_, name)| name)
    }
}

/// The setting of that key.
pub(super) fn named(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

/// Whether `key` is a section.
pub(super) fn is_section(key: &str) -> bool {
    !key.is_empty() && SECTIONS.iter().any(|(section, _)| *section == key)
}

/// The setting or section somebody probably meant: one with a like spelling, or of the same name
/// in another section.
pub(super) fn nearest(key: &str) -> Option<String> {
    let last = key.rsplit('.').next().unwrap_or(key);
    let keys = SETTINGS.iter().map(|setting| setting.key);
    let sections = SECTIONS.iter().map(|(section, _)| *section).filter(|section| !section.is_empty());
    let near = keys.clone().chain(sections).map(|known| (distance(key, known), known)).min();
    if let Some((steps, known)) = near
        && steps <= 1 + key.len() / 6
    {
        return Some(known.to_owned());
    }
    let mut same_name = keys.filter(|known| known.rsplit('.').next() == Some(last));
    same_name.next().map(str::to_owned)
}

/// Single-letter changes between two words.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (at, letter) in left.chars().enumerate() {
        let mut next = vec![at + 1];
        for (column, other) in right.iter().enumerate() {
            let swapped = row.get(column).copied().unwrap_or(usize::MAX - 1) + usize::from(letter != *other);
            let dropped = row.get(column + 1).copied().unwrap_or(usize::MAX - 1) + 1;
            let added = next.last().copied().unwrap_or(usize::MAX - 1) + 1;
            next.push(swapped.min(dropped).min(added));
        }
        row = next;
    }
    row.last().copied().unwrap_or(usize::MAX)
}
