//! From the raw file to [`Config`]: the rules across keys, all of them, and one `Settings` per room.
//! After this nothing parses. It looks at no disk and asks no system; `postern doctor` does that.

use std::path::{Path, PathBuf};

use super::file::File;
use super::secret::SecretPlace;
use super::settings::{Applied, SETTINGS, Setting};
use super::{Config, Feedback, FeedbackDoor, Log, LogFormat, Problem, RootPolicy};
use crate::delivery::{MxTls, PrivateAddresses};
use crate::mail::Address;
use crate::mail::dkim::Algorithms;
use crate::net::{DnsSettings, Reach, Validation};
use crate::pipeline::ClientAddress;
use crate::smtp::BareLineEnds;
use crate::{
    accounts, breaker, delivery, domains, feedback, gate, people, pipeline, queue, smtp, store, submission, tlsrpt, web,
};

/// Checks a file's text; `path` is named in problems.
pub(super) fn check(path: &Path, text: &str) -> Result<Config, Vec<Problem>> {
    let file = File::read(path, text);
    let config = build(path, &file);
    rules(&file, &config);
    if file.is_clean() { Ok(config) } else { Err(file.into_problems()) }
}

fn build(path: &Path, file: &File) -> Config {
    Config {
        file: path.to_owned(),
        hostname: file.name("hostname"),
        data: file.path("data"),
        root: if file.flag("allow_root") { RootPolicy::Allow } else { RootPolicy::Refuse },
        certificates: file.path("tls.certificates"),
        trusted_roots: Some(file.path("tls.trusted_roots")).filter(|path| !path.as_os_str().is_empty()),
        master_key: SecretPlace::parse(&file.text("secrets.master_key")),
        backup_key: SecretPlace::parse(&file.text("secrets.backup_key")),
        submission: submission(file),
        feedback: feedback(file),
        pipeline: pipeline(file),
        store: store::Settings {
            folder: file.path("data").join("store"),
            free_bytes_min: file.count("store.free_bytes_min"),
            free_inodes_min: file.count("store.free_inodes_min"),
            cache_bytes: file.size("store.cache_bytes"),
            ..Default::default()
        },
        domains: domains(file),
        delivery: delivery(file),
        tls_reports: tls_reports(file),
        history_kept: file.span("events.history_kept"),
        notifications: crate::notifications::Settings { backup_overdue_after: file.span("backup.overdue_after") },
        search: crate::search::Settings {
            kept: file.span("search.messages_kept").min(file.span("events.history_kept")),
            free_bytes_min: file.count("store.free_bytes_min").saturating_mul(2),
        },
        statistics: crate::statistics::Settings {
            hours_kept: file.span("statistics.hours_kept"),
            days_kept: file.span("statistics.days_kept"),
        },
        webhooks: crate::webhooks::Settings {
            reach: match file.text("webhooks.private_addresses").as_str() {
                "allow" => Reach::Anywhere,
                _ => Reach::Public,
            },
            requests_max: file.size("webhooks.requests_max"),
        },
        accounts: accounts::Settings {
            login_failures_free_max: file.small("accounts.login_failures_free_max"),
            network_failures_max: file.small("accounts.network_failures_max"),
            login_delay_max: file.span("accounts.login_delay_max"),
            network_trust: file.span("accounts.network_trust"),
        },
        queue: queue::Settings {
            retry_first: file.span("queue.retry_first"),
            retry_max: file.span("queue.retry_max"),
            expire_after: file.span("queue.expire_after"),
            delay_notice_after: file.span("queue.delay_notice_after"),
            notice_gather: file.span("queue.notice_gather"),
        },
        breaker: breaker(file),
        gate: gate(file),
        dns: dns(file),
        web: admin(file),
        monitor: file.addresses("monitor.listen").first().copied(),
        log: Log {
            format: if file.text("log.format") == "json" { LogFormat::Json } else { LogFormat::Text },
            level: file.text("log.level"),
        },
        effective: file.effective(),
    }
}

fn domains(file: &File) -> domains::Settings {
    let spf_include = crate::mail::Domain::parse(&file.text("domains.spf_include")).ok();
    domains::Settings { spf_include, ..Default::default() }
}

fn tls_reports(file: &File) -> tlsrpt::Settings {
    let (hostname, organization) = (file.name("hostname"), file.text("tls_reports.organization"));
    let contact = file.text("tls_reports.contact");
    tlsrpt::Settings {
        sending: if file.flag("tls_reports.send") { tlsrpt::Sending::On } else { tlsrpt::Sending::Off },
        organization: if organization.is_empty() { hostname.to_string() } else { organization },
        contact: if contact.is_empty() { format!("postmaster@{hostname}") } else { contact },
    }
}

fn submission(file: &File) -> submission::Settings {
    submission::Settings {
        tls_ports: file.ports("submission.tls_ports"),
        starttls_ports: file.ports("submission.starttls_ports"),
        session: smtp::Settings {
            command_octets_max: file.size("submission.command_octets_max"),
            message_bytes_max: file.count("submission.message_bytes_max"),
            recipients_max: file.size("submission.recipients_max"),
            errors_max: file.small("submission.errors_max"),
            idle_commands_max: file.small("submission.idle_commands_max"),
            login_failures_max: file.small("submission.login_failures_max"),
            hold_max: file.span("submission.hold_max"),
        },
        header_bytes_max: file.size("submission.header_bytes_max"),
        header_fields_max: file.size("submission.header_fields_max"),
        bare_line_ends: match file.text("submission.bare_line_ends").as_str() {
            "refuse" => BareLineEnds::Refuse,
            _ => BareLineEnds::Normalise,
        },
        drafts_bytes_max: file.count("submission.drafts_bytes_max"),
        drafts_bytes_per_tenant_max: file.count("submission.drafts_bytes_per_tenant_max"),
        sessions_max: file.size("submission.sessions_max"),
        sessions_per_peer_max: file.size("submission.sessions_per_peer_max"),
        sessions_per_account_max: file.size("submission.sessions_per_account_max"),
        handshake_timeout: file.span("submission.handshake_timeout"),
        login_timeout: file.span("submission.login_timeout"),
        command_timeout: file.span("submission.command_timeout"),
        session_time_max: file.span("submission.session_time_max"),
        data_bytes_per_second_min: file.count("submission.data_bytes_per_second_min"),
        data_grace: file.span("submission.data_grace"),
        write_timeout: file.span("submission.write_timeout"),
        ..submission::Settings::default()
    }
}

/// The door has the limits of the one for submission, but for those that are its own.
fn feedback(file: &File) -> Feedback {
    let message_bytes_max = file.count("feedback.message_bytes_max");
    let room = message_bytes_max.saturating_mul(2).max(FEEDBACK_ROOM);
    Feedback {
        room: feedback::Settings {
            tag_age_max: file.span("feedback.tag_age_max"),
            letters_max: file.size("feedback.letters_max"),
            letters_per_hour_max: file.small("feedback.letters_per_hour_max"),
            forward_to: Address::parse(&file.text("feedback.forward_to")).ok(),
        },
        door: match file.text("feedback.door").as_str() {
            "on" => FeedbackDoor::On,
            "off" => FeedbackDoor::Off,
            _ => FeedbackDoor::Auto,
        },
        submission: submission::Settings {
            tls_ports: Vec::new(),
            starttls_ports: file.ports("feedback.ports"),
            session: smtp::Settings {
                message_bytes_max,
                recipients_max: FEEDBACK_RECIPIENTS,
                errors_max: FEEDBACK_ERRORS,
                ..smtp::Settings::default()
            },
            drafts_bytes_max: room,
            drafts_bytes_per_tenant_max: room,
            sessions_max: file.size("feedback.sessions_max"),
            sessions_per_peer_max: file.size("feedback.sessions_per_peer_max"),
            ..submission::Settings::default()
        },
        listen: file.addresses("feedback.listen"),
    }
}

/// Bytes of messages that come in at one moment, at least.
const FEEDBACK_ROOM: u64 = 64 << 20;
/// Recipients of one notice (RFC 5321 s4.5.3.1.8 asks for 100).
const FEEDBACK_RECIPIENTS: usize = 100;
/// Refused commands in one session.
const FEEDBACK_ERRORS: u32 = 10;

fn dns(file: &File) -> DnsSettings {
    DnsSettings {
        servers: file.addresses("dns.servers"),
        validation: match file.text("dns.validation").as_str() {
            "trusted" => Validation::Trusted,
            "off" => Validation::Off,
            _ => Validation::Loopback,
        },
        ..Default::default()
    }
}

fn breaker(file: &File) -> breaker::Limits {
    breaker::Limits {
        failures_percent: file.small("breaker.failures_percent"),
        blocks_percent: file.small("breaker.blocks_percent"),
        recipients_min: file.count("breaker.recipients_min"),
        complaints_per_thousand: file.small("breaker.complaints_per_thousand"),
        volume_factor: file.small("breaker.volume_factor"),
        volume_min: file.count("breaker.volume_min"),
    }
}

fn gate(file: &File) -> gate::Settings {
    let percent = |key| u8::try_from(file.count(key)).unwrap_or(100);
    gate::Settings {
        memory_bytes_max: file.count("overload.memory_max"),
        memory_percent: percent("overload.memory_percent"),
        descriptors_percent: percent("overload.descriptors_percent"),
    }
}

fn pipeline(file: &File) -> pipeline::Settings {
    pipeline::Settings {
        algorithms: match file.text("pipeline.signatures").as_str() {
            "rsa" => Algorithms::RsaOnly,
            _ => Algorithms::Both,
        },
        client_address: match file.text("submission.client_address").as_str() {
            "show" => ClientAddress::Shown,
            _ => ClientAddress::Hidden,
        },
        spill_folder: file.path("data").join("spill"),
        message_bytes_max: file.count("submission.message_bytes_max"),
        ..pipeline::Settings::default()
    }
}

fn delivery(file: &File) -> delivery::Settings {
    let default = delivery::Settings::default();
    delivery::Settings {
        mx_port: u16::try_from(file.count("delivery.port")).unwrap_or(default.mx_port),
        mx_tls: match file.text("delivery.tls").as_str() {
            "encrypted" => MxTls::Encrypted,
            "verified" => MxTls::Verified,
            _ => MxTls::Opportunistic,
        },
        private_addresses: match file.text("delivery.private_addresses").as_str() {
            "allow" => PrivateAddresses::Allowed,
            _ => PrivateAddresses::Refused,
        },
        shaping: delivery::Limits {
            connections_max: file.size("delivery.connections_per_site_max"),
            ..default.shaping
        },
        connections_max: file.size("delivery.connections_max"),
        connections_per_tenant_max: file.size("delivery.connections_per_tenant_max"),
        messages_per_connection_max: file.size("delivery.messages_per_connection_max"),
        ..default
    }
}

/// Builds without the rules, for the test that every setting is read.
#[cfg(test)]
pub(super) fn build_for_tests(path: &Path, file: &File) -> Config {
    build(path, file)
}

/// Rules that concern more than one setting.
fn rules(file: &File, config: &Config) {
    ports(file, config);
    sizes(file, config);
    times(file, config);
    places(file, config);
    names(file, config);
    if file.is_sound("admin.origin")
        && file.is_sound("hostname")
        && let Err(wrong) = site(file)
    {
        file.refuse("admin.origin", wrong);
    }
}

fn admin(file: &File) -> web::Settings {
    web::Settings {
        socket: file.path("admin.socket"),
        group: file.text("admin.group"),
        listen: file.addresses("admin.listen"),
        site: site(file).ok(),
        requests_per_minute_max: file.count("admin.requests_per_minute_max"),
        connections_max: file.size("admin.connections_max"),
        ..Default::default()
    }
}

/// Where browsers reach the admin API; unless it is said, this machine's name and the first port.
fn site(file: &File) -> Result<people::Site, String> {
    let text = file.text("admin.origin");
    if !text.is_empty() {
        return people::Site::parse(&text);
    }
    let port = file.addresses("admin.listen").first().map_or(443, std::net::SocketAddr::port);
    people::Site::parse(&format!("https://{}:{port}", file.name("hostname")))
}

/// The record has names below it, and the name of this machine may be a tenant's or have a record of its own.
fn names(file: &File, config: &Config) {
    let Some(name) = &config.domains.spf_include else { return };
    let key = "domains.spf_include";
    if *name == config.hostname {
        file.refuse(key, format!("{name} is `hostname`; take a name of its own, such as spf.{name}"));
    }
    if name.as_str().len() > domains::SPF_NAME_OCTETS_MAX {
        let most = domains::SPF_NAME_OCTETS_MAX;
        file.refuse(
            key,
            format!("must be at most {most} characters, so that its record has room for the names it includes"),
        );
    }
}

fn ports(file: &File, config: &Config) {
    if !(file.is_sound("submission.tls_ports") && file.is_sound("submission.starttls_ports")) {
        return;
    }
    let (tls, starttls) = ("submission.tls_ports", "submission.starttls_ports");
    let (at, other) = if file.sets(starttls) { (starttls, tls) } else { (tls, starttls) };
    for port in config.submission.starttls_ports.iter().filter(|port| config.submission.tls_ports.contains(port)) {
        file.refuse(at, format!("port {port} is in {other} too; it can only be one"));
    }
    if config.submission.tls_ports.is_empty() && config.submission.starttls_ports.is_empty() {
        file.refuse(
            "submission.tls_ports",
            "no port is left to log in at; give at least one here or in submission.starttls_ports".to_owned(),
        );
    }
    for port in &config.feedback.submission.starttls_ports {
        if config.submission.starttls_ports.contains(port) || config.submission.tls_ports.contains(port) {
            file.refuse("feedback.ports", format!("port {port} is a submission port too"));
        }
    }
    if let Some(monitor) = config.monitor
        && config
            .submission
            .tls_ports
            .iter()
            .chain(&config.submission.starttls_ports)
            .any(|port| *port == monitor.port())
    {
        file.refuse("monitor.listen", format!("port {} is a submission port too", monitor.port()));
    }
}

/// A message that never finds room would be answered 452 for ever.
fn sizes(file: &File, config: &Config) {
    let (key, door) = ("submission.message_bytes_max", &config.submission);
    for (room, bytes) in [
        ("submission.drafts_bytes_max", door.drafts_bytes_max),
        ("submission.drafts_bytes_per_tenant_max", door.drafts_bytes_per_tenant_max),
    ] {
        if file.is_sound(key) && file.is_sound(room) && bytes < door.session.message_bytes_max {
            let (at, other, than) = if file.sets(room) { (room, key, "less") } else { (key, room, "more") };
            file.refuse(at, format!("is {than} than {other}; the largest message would never find room"));
        }
    }
}

fn times(file: &File, config: &Config) {
    let queue = config.queue;
    let orders = [
        ("queue.retry_max", queue.retry_max, "queue.retry_first", queue.retry_first),
        ("queue.expire_after", queue.expire_after, "queue.retry_first", queue.retry_first),
        ("queue.expire_after", queue.expire_after, "queue.delay_notice_after", queue.delay_notice_after),
    ];
    for (longer, long, shorter, short) in orders {
        if file.is_sound(longer) && file.is_sound(shorter) && long < short {
            let (long, short) = (super::value::span(long.as_secs()), super::value::span(short.as_secs()));
            file.refuse(longer, format!("{long} is less than {shorter}, which is {short}"));
        }
    }
}

fn places(file: &File, config: &Config) {
    let inside = |path: &Path| file.is_sound("data") && path.starts_with(&config.data);
    if let SecretPlace::File(path) = &config.master_key
        && file.is_sound("secrets.master_key")
        && inside(path)
    {
        file.refuse(
            "secrets.master_key",
            "is inside the data folder; a copy of that folder would then hold the key to its own secrets".to_owned(),
        );
    }
    if file.is_sound("tls.certificates") && config.certificates == config.data {
        file.refuse(
            "tls.certificates",
            "is the data folder itself; give certificates a folder of their own".to_owned(),
        );
    }
    if config.data == Path::new("/") {
        file.refuse("data", "is the root of the file system; give mail a folder of its own".to_owned());
    }
    if file.is_sound("admin.socket") && config.web.socket.as_os_str().len() > SOCKET_PATH_MAX {
        file.refuse(
            "admin.socket",
            format!("is longer than {SOCKET_PATH_MAX} bytes, the most a Unix socket's path may have"),
        );
    }
}

/// `sun_path` without its final zero.
const SOCKET_PATH_MAX: usize = 107;

impl Config {
    /// The settings whose values differ between two configurations.
    pub fn changes_from(&self, old: &Self) -> Vec<&'static Setting> {
        let differs = |setting: &&Setting| self.effective.get(setting.key) != old.effective.get(setting.key);
        SETTINGS.iter().filter(differs).collect()
    }

    /// Takes over what a reload may change; the rest stays as it was at the start.
    pub fn take_over(&mut self, new: &Self) {
        self.log.level.clone_from(&new.log.level);
        self.delivery = new.delivery.clone();
        self.submission = submission::Settings {
            tls_ports: self.submission.tls_ports.clone(),
            starttls_ports: self.submission.starttls_ports.clone(),
            ..new.submission.clone()
        };
        self.pipeline.algorithms = new.pipeline.algorithms;
        self.pipeline.client_address = new.pipeline.client_address;
        self.accounts = new.accounts;
        self.queue = new.queue;
        for setting in SETTINGS.iter().filter(|setting| setting.applied == Applied::OnReload) {
            if let Some(value) = new.effective.get(setting.key) {
                self.effective.insert(setting.key, value.clone());
            }
        }
    }

    /// The file of the master key; `credentials` is what `CREDENTIALS_DIRECTORY` says.
    ///
    /// # Errors
    /// A sentence, if it is a credential and there are none.
    pub fn master_key_file(&self, credentials: Option<&Path>) -> Result<PathBuf, String> {
        self.master_key.path(credentials)
    }
}
