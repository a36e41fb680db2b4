//! The table of settings, one entry each: key, kind = default as TOML, where it is shown and when a
//! change is taken over; what it does; which operator changes it, and when.
//!
//! A setting that no operator would change is a constant in its room, not an entry here.

use super::settings::{Applied, Presence, Setting};
use super::value::Kind;

use Applied::{AtStart, OnReload};
use Kind::{
    Addresses, Choice, Count, Flag, Group, Line, Loopback, Mailbox, Name, NameOrNone, Path, PathOrNone, Ports, Secret,
    Size, Span,
};
use Presence::{Rare, Required, Shown};

const MINUTE: u64 = 60;
const HOUR: u64 = 3600;
const DAY: u64 = 86_400;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

macro_rules! setting {
    ($key:literal, $kind:expr => $default:literal, $presence:ident $applied:ident, $meaning:literal, $who:literal) => {
        Setting {
            key: $key,
            kind: $kind,
            default: $default,
            presence: $presence,
            meaning: $meaning,
            who: $who,
            applied: $applied,
        }
    };
}

/// Every setting there is.
#[rustfmt::skip] // rustfmt leaves macro calls with such arguments alone, but not their indentation
pub(super) const SETTINGS: &[Setting] = &[
    setting!("hostname", Name => "\"mx.example.com\"", Required AtStart,
        "The name of this machine: its certificate is the one shown when nothing better fits, and notices of the \
         instance come from it.",
        "Everybody, once, before the first start."),
    setting!("data", Path => "\"/var/lib/postern\"", Shown AtStart,
        "The folder of the records and of mail that is still owed. It must be on a local disk that keeps what it \
         has synced, and belong to one daemon alone.",
        "Whoever has a separate disk for mail."),
    setting!("allow_root", Flag => "false", Rare AtStart,
        "Whether the daemon may serve as root. It needs no right beyond binding to low ports \
         (CAP_NET_BIND_SERVICE), which the unit file gives it.",
        "Whoever runs it in a container whose only user is root."),
    setting!("tls.certificates", Path => "\"/etc/postern/certificates\"", Shown AtStart,
        "The folder of certificates: NAME/fullchain.pem and NAME/privkey.pem, as certbot keeps them. It is looked \
         at every 30 seconds; a new certificate is used for new sessions, and one that cannot be read leaves the \
         old one in use. Chosen by the name the client asks for, else by the virtual IP's EHLO name, else \
         `hostname`.",
        "Whoever keeps certificates elsewhere, such as /etc/letsencrypt/live."),
    setting!("tls.trusted_roots", PathOrNone => "\"\"", Rare AtStart,
        "A PEM file of certificate authorities that are trusted beside Mozilla's where a certificate of somebody \
         else is checked: relays, receivers that must be verified, webhooks.",
        "Whoever sends by a relay whose certificate comes from an authority of their own."),
    setting!("secrets.master_key", Secret => "\"/etc/postern/master.key\"", Shown AtStart,
        "The key that seals DKIM private keys and relay passwords in the data folder. Keep it out of the data \
         folder and out of its backups, and keep a copy in a safe place: without it nothing can be signed.",
        "Whoever hands secrets to services as systemd credentials."),
    setting!("secrets.backup_key", Secret => "\"/etc/postern/backup.key\"", Shown AtStart,
        "The key under which `postern backup make` seals; `postern backup key` makes it. Another one than the master \
         key, which is in every backup. Keep a copy where this machine is not: without it no backup opens.",
        "Whoever hands secrets to services as systemd credentials."),
    setting!("submission.tls_ports", Ports => "[465]", Shown AtStart,
        "Ports where TLS comes first (RFC 8314).",
        "Whoever cannot bind to low ports, or must serve clients behind a firewall that closes them."),
    setting!("submission.starttls_ports", Ports => "[587, 2525]", Shown AtStart,
        "Ports where the client says STARTTLS before it logs in (RFC 6409).",
        "Whoever cannot bind to low ports, or must serve clients behind a firewall that closes them."),
    setting!("submission.message_bytes_max", Size(64 * KIB, GIB) => "\"25 MiB\"", Shown OnReload,
        "The largest message taken, as advertised by SIZE. Many receivers refuse more than 25 MiB.",
        "Whoever sends large attachments to receivers known to take them."),
    setting!("submission.bare_line_ends", Choice(&["normalise", "refuse"]) => "\"normalise\"", Rare OnReload,
        "What a bare CR or LF in a message does: it becomes CRLF in what is stored, or the message is refused with \
         554. It never ends the message.",
        "Whoever must know which of their programs write bad line ends."),
    setting!("submission.command_octets_max", Count(1024, 65_536) => "4096", Rare OnReload,
        "Octets of a command line; more is answered 500.",
        "Whoever has clients with very long addresses or parameters."),
    setting!("submission.header_bytes_max", Size(16 * KIB, 16 * MIB) => "\"256 KiB\"", Rare OnReload,
        "The largest header block of a message; more is answered 552.",
        "Whoever has programs that put much into headers."),
    setting!("submission.header_fields_max", Count(100, 100_000) => "2000", Rare OnReload,
        "Fields of a header block, whatever their size; more is answered 552.",
        "Whoever has programs that put much into headers."),
    setting!("submission.recipients_max", Count(100, 50_000) => "1000", Rare OnReload,
        "Recipients of one message; more are answered 452, and the client sends them in another message (RFC 5321 \
         s4.5.3.1.8 asks for at least 100).",
        "Whoever has programs that address many recipients at once."),
    setting!("submission.errors_max", Count(1, 1000) => "20", Rare OnReload,
        "Refused commands in one session before it is closed with 421. Chunks (BDAT) that a client had sent behind a \
         refused one are not counted, up to 1000 and twice submission.message_bytes_max.",
        "Whoever has clients with long lists of bad recipients."),
    setting!("submission.idle_commands_max", Count(10, 100_000) => "100", Rare OnReload,
        "Commands without effect (NOOP, RSET, VRFY, ...) without a message between before the session is closed \
         with 421.",
        "Whoever has clients that hold sessions open with NOOP."),
    setting!("submission.login_failures_max", Count(1, 20) => "6", Rare OnReload,
        "Failed logins in one session; the last is followed by 421. Some clients (Thunderbird) try a wrong password \
         by two mechanisms, which counts as two.",
        "Whoever has clients that try several passwords in turn."),
    setting!("submission.hold_max", Span(0, 7 * DAY) => "\"7d\"", Rare OnReload,
        "How far ahead a client may ask for delivery (FUTURERELEASE, RFC 4865).",
        "Whoever wants mail gone sooner, or not planned at all."),
    setting!("submission.drafts_bytes_max", Size(64 * MIB, 1024 * GIB) => "\"1 GiB\"", Rare OnReload,
        "Bytes of all messages being handed in at one moment; more is answered 452.",
        "Whoever has little or plenty of disk."),
    setting!("submission.drafts_bytes_per_tenant_max", Size(16 * MIB, 1024 * GIB) => "\"512 MiB\"", Rare OnReload,
        "Of these, bytes of one tenant's messages, so that no tenant keeps the others out; more is answered 452.",
        "Whoever has one tenant alone, or many of very different size."),
    setting!("submission.sessions_max", Count(10, 1_000_000) => "10000", Rare OnReload,
        "Sessions at one moment; more are answered 421.",
        "Whoever has a very small or a very large machine."),
    setting!("submission.sessions_per_peer_max", Count(1, 1_000_000) => "200", Rare OnReload,
        "Sessions of one address (or one IPv6 /64) at one moment; more are answered 421.",
        "Whoever has many clients behind one address."),
    setting!("submission.sessions_per_account_max", Count(1, 1_000_000) => "200", Rare OnReload,
        "Sessions of one SMTP account at one moment; more are answered 421 after the login.",
        "Whoever has one account used by many machines."),
    setting!("submission.handshake_timeout", Span(1, 10 * MINUTE) => "\"30s\"", Rare OnReload,
        "How long a TLS handshake may take.",
        "Whoever serves very slow links."),
    setting!("submission.login_timeout", Span(5, HOUR) => "\"2m\"", Rare OnReload,
        "From the connection to the login.",
        "Whoever serves very slow links, or is under attack by silent sessions."),
    setting!("submission.command_timeout", Span(10, HOUR) => "\"5m\"", Rare OnReload,
        "From our reply to the end of the next command (RFC 5321 s4.5.3.2.7 asks for 5 minutes).",
        "Whoever is short of sessions."),
    setting!("submission.session_time_max", Span(MINUTE, 7 * DAY) => "\"1h\"", Rare OnReload,
        "A whole session; a message under way is finished first.",
        "Whoever has clients that keep a session for ever."),
    setting!("submission.data_bytes_per_second_min", Count(1, 1_000_000) => "512", Rare OnReload,
        "The slowest a message may come in on average, counted after `submission.data_grace`; slower is answered 421.",
        "Whoever serves very slow links."),
    setting!("submission.data_grace", Span(5, HOUR) => "\"1m\"", Rare OnReload,
        "The head start of a message before `submission.data_bytes_per_second_min` counts.",
        "Whoever serves links that pause."),
    setting!("submission.write_timeout", Span(5, HOUR) => "\"1m\"", Rare OnReload,
        "How long a client may take to read our replies; one that does not is hung up on.",
        "Whoever serves very slow links, or is short of sessions."),
    setting!("submission.client_address", Choice(&["hide", "show"]) => "\"hide\"", Rare OnReload,
        "Whether the Received field of a message names the address of the client that handed it in.",
        "Whoever must trace mail to machines of their own from the mail alone."),
    setting!("feedback.door", Choice(&["auto", "on", "off"]) => "\"auto\"", Shown AtStart,
        "Whether `feedback.ports` are open: `auto` as soon as some domain has a return-path (`postern domain return-path`), \
         always, or never. Nothing is ever passed on from here.",
        "Whoever wants mail to postmaster before any return-path is set, or takes notices elsewhere."),
    setting!("feedback.ports", Ports => "[25]", Shown AtStart,
        "The ports on every virtual IP. Other servers only ever come to 25.",
        "Whoever forwards port 25 to another one, or has another mail server on this machine."),
    setting!("feedback.listen", Addresses => "[]", Rare AtStart,
        "Addresses with ports to listen at besides the virtual IPs.",
        "Whoever's MX leads to an address of this machine that is no virtual IP's."),
    setting!("feedback.message_bytes_max", Size(64 * KIB, 64 * MIB) => "\"10 MiB\"", Rare AtStart,
        "The largest message taken here, as advertised by SIZE. Notices may carry the whole message they are about.",
        "Whoever has very little memory."),
    setting!("feedback.sessions_max", Count(1, 100_000) => "200", Rare AtStart,
        "Sessions at one moment; more are answered 421, and the notice comes later.",
        "Whoever sends very much mail."),
    setting!("feedback.sessions_per_peer_max", Count(1, 10_000) => "20", Rare AtStart,
        "Sessions of one address (or one IPv6 /64) at one moment; more are answered 421.",
        "Whoever gets notices through one relay."),
    setting!("feedback.tag_age_max", Span(DAY, 365 * DAY) => "\"30d\"", Rare AtStart,
        "How old a return-path may be; what comes to an older one is refused. More than `events.history_kept` does not help: \
         nothing is known of the message any more.",
        "Whoever gets complaints about old mail."),
    setting!("feedback.forward_to", Mailbox => "\"\"", Shown AtStart,
        "Where mail to postmaster, abuse and fbl is forwarded to, as an attachment; it is kept here too. Not an address \
         whose mail comes here.",
        "Whoever reads a mailbox rather than `postern mailbox`."),
    setting!("feedback.letters_max", Count(10, 100_000) => "1000", Rare AtStart,
        "Letters to postmaster, abuse and fbl that are kept; the oldest goes when another comes. Of each, 64 KiB.",
        "Whoever has little disk."),
    setting!("feedback.letters_per_hour_max", Count(10, 100_000) => "200", Rare AtStart,
        "Letters taken within an hour, and a tenth of that from one network (/24, /48); more are answered 452.",
        "Whoever gets many by hand."),
    setting!("pipeline.signatures", Choice(&["both", "rsa"]) => "\"both\"", Rare OnReload,
        "DKIM signatures of a message: RSA-2048 and Ed25519, or RSA-2048 alone. The Ed25519 one is left out while a \
         verified domain's record for it has not been found in DNS.",
        "Whoever must save CPU: receivers that check Ed25519 check RSA too."),
    setting!("accounts.login_failures_free_max", Count(1, 1000) => "3", Rare OnReload,
        "Failed logins with one name from one network before each further answer is delayed.",
        "Whoever is under attack, or has clients with many wrong passwords behind one address."),
    setting!("accounts.network_failures_max", Count(1, 1_000_000) => "100", Rare OnReload,
        "Failed logins from one network (/24 or /64) within an hour before it is answered 454.",
        "Whoever is under attack, or has many clients behind one address."),
    setting!("accounts.login_delay_max", Span(1, 5 * MINUTE) => "\"10s\"", Rare OnReload,
        "The longest an answer to a failed login is delayed.",
        "Whoever is under attack."),
    setting!("accounts.network_trust", Span(HOUR, 365 * DAY) => "\"30d\"", Rare OnReload,
        "How long a network that logged in is never blocked by the failures of others. At most 4,096 networks (/24 \
         or /64) are remembered for each tenant; a further one takes the place of the one not seen for longest.",
        "Whoever has customers that send less than once a month."),
    setting!("breaker.failures_percent", Count(0, 100) => "10", Shown OnReload,
        "An SMTP account is paused when more than so many in 100 of its recipients within an hour do not exist; 0 for \
         no such limit. Limits of one class, tenant or account are set with `postern breaker set`.",
        "Whoever has customers with old lists, or wants to be stricter."),
    setting!("breaker.blocks_percent", Count(0, 100) => "10", Rare OnReload,
        "The same for recipients refused for good for reputation or content.",
        "Whoever has customers with old lists, or wants to be stricter."),
    setting!("breaker.recipients_min", Count(10, 1_000_000) => "200", Rare OnReload,
        "Recipients within an hour, delivered or given up, before these two are judged.",
        "Whoever has customers that send very little, or very much."),
    setting!("breaker.complaints_per_thousand", Count(0, 1000) => "3", Rare OnReload,
        "An SMTP account is paused when more than so many in 1,000 of its deliveries within a day are complained \
         about, and at least 5; 0 for no such limit.",
        "Whoever is told by a receiver to stay below another rate."),
    setting!("breaker.volume_factor", Count(0, 10_000) => "10", Shown OnReload,
        "An SMTP account is paused when it hands in more than so many times its usual messages within an hour; 0 for \
         no such limit. Usual is the mean of the hours of the last 7 days in which it sent, once there are 24 of them.",
        "Whoever has customers that send rare large mailings."),
    setting!("breaker.volume_min", Count(1, 100_000_000) => "500", Rare OnReload,
        "Messages within an hour, before the volume is judged.",
        "Whoever has customers that send very little, or very much."),
    setting!("queue.retry_first", Span(10, DAY) => "\"5m\"", Shown OnReload,
        "How long after the first failed try a message is tried again. Later pauses grow, with some chance in them.",
        "Whoever sends mail that is only good for minutes, such as login codes."),
    setting!("queue.retry_max", Span(MINUTE, 2 * DAY) => "\"4h\"", Shown OnReload,
        "The longest pause between two tries.",
        "Whoever has recipients with long outages or strict greylisting."),
    setting!("queue.expire_after", Span(10 * MINUTE, 30 * DAY) => "\"3d\"", Shown OnReload,
        "How long a message is tried before its sender is told that it was given up. There is always a try after \
         that time.",
        "Whoever must know sooner (hours), or whose recipients are down for days (RFC 5321 s4.5.4.1 says 4 to 5)."),
    setting!("queue.delay_notice_after", Span(10 * MINUTE, 30 * DAY) => "\"4h\"", Rare OnReload,
        "When senders who asked for it are told that a message is late.",
        "Whoever promises delivery times."),
    setting!("queue.notice_gather", Span(0, HOUR) => "\"10m\"", Rare OnReload,
        "Failures of one message within this time after the first share one notice.",
        "Whoever wants notices at once."),
    setting!("domains.spf_include", NameOrNone => "\"\"", Shown AtStart,
        "A name whose SPF record permits every virtual IP; `postern vip spf` prints what to publish there. Tenants are \
         then told to publish `include:` of it instead of each address. Empty: they name each address.",
        "Whoever adds virtual IPs while tenants send, so that a new one changes one record and not one of every tenant."),
    setting!("tls_reports.send", Flag => "false", Shown OnReload,
        "Whether sessions with receivers are counted, and each recipient domain that publishes `_smtp._tls` is sent one \
         report a day about what TLS came to (RFC 8460).",
        "Whoever sends much, so that receivers learn that their policies fail. Domains then see how many sessions they had."),
    setting!("tls_reports.organization", Line(200) => "\"\"", Rare OnReload,
        "Who reports, by name; `hostname` if empty.",
        "Whoever wants receivers to read a company's name."),
    setting!("tls_reports.contact", Mailbox => "\"\"", Rare OnReload,
        "Whom receivers may ask about reports; postmaster at `hostname` if empty.",
        "Whoever does not read `postern mailbox`."),
    setting!("overload.memory_max", Size(0, 1024 * GIB) => "\"0 B\"", Rare AtStart,
        "Memory this process may take, beside the limits of its control group, its resource limits and the machine, \
         which it finds out by itself; the tightest counts. 0 B for no limit of its own.",
        "Whoever shares a machine with other programs and sets no limit in the unit."),
    setting!("overload.memory_percent", Count(10, 95) => "75", Rare AtStart,
        "While more than this part of the memory is taken, new sessions are answered 421 and new messages 452; \
         mail already accepted is delivered. It ends 10 points below.",
        "Whoever has a very small machine, or one for this alone."),
    setting!("overload.descriptors_percent", Count(10, 95) => "75", Rare AtStart,
        "While more than this part of the file descriptors (LimitNOFILE) is open, new sessions are answered 421. Half of \
         the rest is for deliveries, the other half for the store, DNS and the command line. It ends 10 points below.",
        "Whoever cannot raise the limit of open files."),
    setting!("dns.servers", Addresses => "[]", Shown AtStart,
        "The resolvers to ask, each with its port; empty for those in /etc/resolv.conf. A resolver on this machine \
         is best: public ones are refused by many blocklists.",
        "Whoever runs a resolver of their own on this machine."),
    setting!("dns.validation", Choice(&["loopback", "trusted", "off"]) => "\"loopback\"", Rare AtStart,
        "Whose word counts that an answer was validated by DNSSEC, which DANE needs: that of resolvers on loopback \
         addresses, that of every resolver asked (the way to them must be as safe as this machine), or nobody's.",
        "Whoever has a validating resolver beside this machine, or none that can be believed."),
    setting!("delivery.port", Count(1, 65_535) => "25", Rare OnReload,
        "The port of the recipients' mail exchangers.",
        "Whoever tests against receivers of their own. Never in production."),
    setting!("delivery.private_addresses", Choice(&["refuse", "allow"]) => "\"refuse\"", Rare OnReload,
        "Whether mail may be delivered to mail exchangers at loopback, private or link-local addresses.",
        "Whoever delivers to mail servers inside their own network."),
    setting!("delivery.tls", Choice(&["opportunistic", "encrypted", "verified"]) => "\"opportunistic\"", Rare OnReload,
        "TLS towards mail exchangers: where it is offered; always, with any certificate; or always, with a certificate \
         that verifies. With the latter two, mail to many receivers waits and comes back.",
        "Whoever must not send mail in plain text by contract."),
    setting!("delivery.connections_max", Count(1, 100_000) => "1000", Rare OnReload,
        "Connections to other servers at one moment, in all. The last twentieth is for tenants that have none.",
        "Whoever has a very small or a very large machine."),
    setting!("delivery.connections_per_tenant_max", Count(1, 100_000) => "750", Rare OnReload,
        "Of these, connections for one tenant's mail, so that peers of one tenant that never answer do not keep the \
         mail of the others waiting.",
        "Whoever has one tenant alone, or many of very different size."),
    setting!("delivery.connections_per_site_max", Count(1, 1000) => "10", Shown OnReload,
        "Connections from one virtual IP to one receiving site at one moment.",
        "Whoever is told by a receiver that there are too many, or has leave for more."),
    setting!("delivery.messages_per_connection_max", Count(1, 100_000) => "500", Rare OnReload,
        "Messages over one connection before it is closed.",
        "Whoever is told by a receiver that there are too many."),
    setting!("store.free_bytes_min", Size(16 * MIB, 1024 * GIB) => "\"512 MiB\"", Rare AtStart,
        "Mail is answered 452 while less than this is free on the disk of the data folder, so that what was \
         accepted can still be delivered and recorded.",
        "Whoever has a very small or a very large disk."),
    setting!("store.free_inodes_min", Count(100, 1_000_000_000) => "1000", Rare AtStart,
        "Mail is answered 452 while fewer inodes than this are free there.",
        "Whoever shares the disk with something that makes many files."),
    setting!("store.cache_bytes", Size(8 * MIB, 64 * GIB) => "\"64 MiB\"", Rare AtStart,
        "Memory for records that were read.",
        "Whoever has millions of messages waiting, or a very small machine."),
    setting!("backup.overdue_after", Span(0, 3650 * DAY) => "\"7d\"", Shown AtStart,
        "The instance is told once when no backup was finished for so long, counted from the first start if there was \
         none (a notification `backup-overdue`, mailed to who wishes it); `\"0s\"` is never.",
        "Whoever takes backups less often, or copies the machine by other means."),
    setting!("events.history_kept", Span(DAY, 3650 * DAY) => "\"90d\"", Shown AtStart,
        "How long the trail of a message can be shown: who handed it in, every try and every reply, in compressed files of \
         one day each.",
        "Whoever must keep records longer, or may not keep them so long."),
    setting!("search.messages_kept", Span(DAY, 3650 * DAY) => "\"15d\"", Shown AtStart,
        "How long messages can be found and shown, with their addresses, unless a tenant says otherwise \
         (`postern tenant set NAME --retention-days`); at most as long as `events.history_kept`. Statistics are kept longer.",
        "Whoever must answer questions about older mail, or may not keep addresses so long."),
    setting!("statistics.hours_kept", Span(2 * DAY, 3650 * DAY) => "\"62d\"", Shown AtStart,
        "How long counts of single hours are kept.",
        "Whoever compares hours of longer ago, or has very many tenants and little disk."),
    setting!("statistics.days_kept", Span(2 * DAY, 36500 * DAY) => "\"1096d\"", Shown AtStart,
        "How long counts of single days are kept; they outlive what was kept of each message.",
        "Whoever compares years, or may not keep figures so long."),
    setting!("webhooks.private_addresses", Choice(&["refuse", "allow"]) => "\"refuse\"", Rare AtStart,
        "Whether webhooks may lead to loopback, private or link-local addresses. Whoever may set a webhook can then \
         make this machine speak to anything in its own network.",
        "Whoever alone manages all tenants, and has receivers inside their own network."),
    setting!("webhooks.requests_max", Count(1, 10_000) => "64", Rare AtStart,
        "Requests to webhooks at one moment, in all; further ones wait their turn.",
        "Whoever has very many webhooks, or a very small machine."),
    setting!("admin.socket", Path => "\"/run/postern/admin.sock\"", Rare AtStart,
        "The Unix socket of the command line and the admin API.",
        "Whoever runs two instances on one machine."),
    setting!("admin.group", Group => "\"\"", Shown AtStart,
        "A Unix group whose members may use the command line beside root and the daemon's own user.",
        "Whoever lets operators manage mail without becoming root."),
    setting!("admin.listen", Addresses => "[\"127.0.0.1:8443\"]", Shown AtStart,
        "Where the admin API is served over TLS with this machine's certificate; an empty list for the local socket only.",
        "Whoever administers from elsewhere, or runs two instances on one machine."),
    setting!("admin.origin", Line(300) => "\"\"", Shown AtStart,
        "Where people's browsers reach the admin API, as they see it: https://HOST or https://HOST:PORT; empty for \
         `hostname` and the first port of `admin.listen`. Passkeys are bound to its host: those of another host are no \
         longer good after a change.",
        "Whoever lets people log in with passkeys by another name, or behind a proxy."),
    setting!("admin.connections_max", Count(8, 100_000) => "256", Rare AtStart,
        "Connections to `admin.listen` at one moment, and never more than an eighth of the limit of open files. When all \
         places are taken, the connection that has been idle longest ends for a new one; if none is idle, the new one \
         is closed. The local socket has 64 places of its own.",
        "Whoever has many machines that send or ask over HTTPS."),
    setting!("admin.requests_per_minute_max", Count(1, 1_000_000) => "600", Rare AtStart,
        "Requests a minute of one person or key over the network, and half of what one network (/24, /64) may make; more are answered 429.",
        "Whoever has machines that ask more often."),
    setting!("monitor.listen", Loopback => "\"127.0.0.1:9125\"", Shown AtStart,
        "Where /health/live, /health/ready and /metrics (Prometheus) are served, on this machine only; empty for \
         nowhere.",
        "Whoever scrapes metrics, or runs two instances on one machine."),
    setting!("log.format", Choice(&["text", "json"]) => "\"text\"", Shown AtStart,
        "Lines for people, or one JSON object per line for machines.",
        "Whoever collects logs with a tool that reads JSON."),
    setting!("log.level", Choice(&["error", "warn", "info", "debug", "trace"]) => "\"info\"", Shown OnReload,
        "How much is written. `debug` and `trace` show addresses and SMTP dialogues; never passwords or contents of \
         mail.",
        "Whoever looks for a fault."),
];
