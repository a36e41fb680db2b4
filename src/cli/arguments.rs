//! What can be typed after `postern`: the tree of sub-commands, their arguments and their help.
//!
//! It refuses to know what a command does. The sentences here are the help texts and, through a
//! test, `docs/cli.md`. Easy to get wrong: a tenant is named by its short name everywhere, a virtual
//! IP by its address, an SMTP account by its login; ids are understood too.

mod breaker;
mod copies;
mod domains;
mod lists;
mod messages;
mod people;
mod queue;
mod site;
mod smtp_accounts;
mod statistics;
mod vips;
mod webhooks;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::delivery::Delivery;
use super::mailbox::Mailbox;
use super::notification::Notification;
use super::tls::Tls;
use crate::mail::Domain;

pub use breaker::{Breaker, BreakerLimits, BreakerScope};
pub use copies::{Backup, MasterKey, Restore, Store};
pub use domains::{Cover, DomainCommand};
pub use lists::{ListName, Suppression};
pub use messages::{Messages, MessagesSearch, MessagesSend};
pub use people::{Audit, Key, User, UserSet};
pub use queue::{Queue, QueueCommand, QueueFilter, QueueList, QueueMany, RecipientStanding};
pub use site::{Classify, Site, SiteLimits, SiteScope};
pub use smtp_accounts::{MailClass, SmtpAccount, SmtpAccountAdd, SmtpAccountSet};
pub use statistics::{Stats, StatsBy};
pub use vips::{Vip, VipAdd, VipSet};
pub use webhooks::{Webhook, WebhookAdd, WebhookName, WebhookReplay, WebhookSet};

/// Your own mail sending service in one binary.
#[derive(Debug, Parser)]
#[command(name = "postern", version, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 69 the daemon cannot be reached, \
    78 the configuration is wrong.")]
pub struct Arguments {
    #[command(flatten)]
    pub everywhere: Everywhere,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub struct Everywhere {
    /// The configuration file
    #[arg(long, global = true, value_name = "FILE", default_value = crate::config::DEFAULT_PATH)]
    pub config: PathBuf,
    /// The daemon's socket, instead of the one the configuration names
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print what the daemon answers, as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon in the foreground; systemd starts this
    Serve(Serve),
    /// Check the configuration without starting; prints every problem with file and line
    Check,
    /// Show the whole service at work on this machine: no root, no configuration, nothing left behind
    Try(Try),
    /// Set up this machine: configuration, data folder, master key, first certificate
    Init(Init),
    /// Whether the daemon runs, and what it has to do
    Status,
    /// What happens at this moment: rates of the last minute, queue, providers; refreshed until interrupted
    Top(Top),
    /// Follow live sessions, in or out, line by line; logins and messages are never shown
    Trace(Trace),
    /// Check everything that mail depends on, one line each, with a remedy
    Doctor(Doctor),
    /// Tenants: who sends through this machine
    #[command(subcommand)]
    Tenant(Tenant),
    /// Virtual IPs: the addresses tenants log in on and send from
    #[command(subcommand)]
    Vip(Vip),
    /// Sending domains: DNS records, verification, keys
    #[command(subcommand)]
    Domain(DomainCommand),
    /// SMTP accounts: logins of shops, sites and mail programs
    #[command(subcommand)]
    SmtpAccount(SmtpAccount),
    /// SMTP accounts that are paused because their mail went wrong, and the limits for that
    #[command(subcommand)]
    Breaker(Breaker),
    /// Recipients a tenant never mails
    #[command(subcommand)]
    Suppression(Suppression),
    /// Smarthosts: relays for mail that cannot go straight to its recipients' servers
    #[command(subcommand)]
    Route(Route),
    /// Mail that is still owed: list it, find it, act on one message or on all that fits
    Queue(Box<QueueCommand>),
    /// Say what each recipient of a message waits for; the same as `queue why`
    Why {
        /// The queue id
        id: String,
    },
    /// Finding messages, and everything about one
    #[command(subcommand)]
    Messages(Messages),
    /// What happened to recipients, in numbers: per hour or day, by domain, provider, account, tag
    Stats(Stats),
    /// Suspend delivery of some mail, see what is suspended, resume it
    #[command(subcommand)]
    Delivery(Delivery),
    /// People who administer: invite, lock, reset, second factors
    #[command(subcommand)]
    User(User),
    /// API keys of machines
    #[command(subcommand)]
    Key(Key),
    /// Who changed what, and whether that log is whole
    #[command(subcommand)]
    Audit(Audit),
    /// Receiving sites: what they are sent, how fast, and why not faster
    #[command(subcommand)]
    Site(Site),
    /// What is demanded of TLS towards recipient domains, and by whom
    #[command(subcommand)]
    Tls(Tls),
    /// Letters to postmaster, abuse and fbl of this server
    #[command(subcommand)]
    Mailbox(Mailbox),
    /// Endpoints that are told what happened to a tenant's mail
    #[command(subcommand)]
    Webhook(Webhook),
    /// What you should know without looking for it
    #[command(subcommand)]
    Notification(Notification),
    /// What a reply of a receiving server means: its class, and what is done about it
    Classify(Classify),
    /// Sealed copies of everything, taken while the daemon serves
    #[command(subcommand)]
    Backup(Backup),
    /// Make a data folder and a configuration folder from a backup
    Restore(Restore),
    /// The data folder, offline: the daemon must not be running
    #[command(subcommand)]
    Store(Store),
    /// The key that seals secrets in the data folder, offline: the daemon must not be running
    #[command(subcommand)]
    Masterkey(MasterKey),
}

#[derive(Args, Debug)]
pub struct Serve {
    /// Serve even as root, for containers whose only user is root; the same as `allow_root = true`
    #[arg(long)]
    pub allow_root: bool,
}

#[derive(Args, Debug)]
pub struct Try {
    /// Exit after the one message: 0 only if it arrived and its signature verified; the last line is JSON
    #[arg(long)]
    pub once: bool,
    /// Show the daemon's own log too, on standard error
    #[arg(long)]
    pub log: bool,
}

#[derive(Args, Debug)]
pub struct Init {
    /// This machine's own name, for example mx.example.com
    #[arg(long, value_name = "NAME")]
    pub hostname: Domain,
    /// Where the configuration, the master key and the certificates go
    #[arg(long, value_name = "FOLDER", default_value = "/etc/postern")]
    pub config_dir: PathBuf,
    /// Where records and mail are kept
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/postern")]
    pub data_dir: PathBuf,
}

#[derive(Args, Debug)]
pub struct Top {
    /// Show it once
    #[arg(long)]
    pub once: bool,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub every: u64,
}

#[derive(Args, Debug)]
pub struct Trace {
    /// Only sessions that go this way
    #[arg(long, value_enum)]
    pub direction: Option<TraceDirection>,
    /// Of this tenant, once that is known
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
    /// On this virtual IP
    #[arg(long, value_name = "VIP")]
    pub vip: Option<String>,
    /// With this peer
    #[arg(long, value_name = "ADDRESS")]
    pub peer: Option<std::net::IpAddr>,
    /// Towards a mail host or domain with this in its name
    #[arg(long, value_name = "TEXT")]
    pub to: Option<String>,
    /// That name this address in MAIL or RCPT; followed from that line on
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<String>,
}

/// Which way a session goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TraceDirection {
    /// Clients hand mail in
    In,
    /// We deliver
    Out,
}

#[derive(Args, Debug)]
pub struct Doctor {
    /// Leave out checks that talk to other machines: DNS and port 25
    #[arg(long)]
    pub offline: bool,
    /// Whose port 25 is tried, from each address of each virtual IP
    #[arg(long, value_name = "HOST", default_value = "gmail-smtp-in.l.google.com")]
    pub probe: String,
}

#[derive(Debug, Subcommand)]
pub enum Tenant {
    /// Make a tenant
    Add {
        /// Its short name: lower-case letters, digits and hyphens
        name: String,
    },
    /// List all tenants
    List,
    /// Show one tenant with its virtual IPs, domains and SMTP accounts
    Show {
        /// The tenant
        name: String,
    },
    /// Take no more mail from it; logging in still works, and mail it has handed in is still delivered
    Suspend {
        /// The tenant
        name: String,
    },
    /// Take its mail again
    Resume {
        /// The tenant
        name: String,
    },
    /// Limit how many messages it may hand in; without options, show the limits
    Limits {
        /// The tenant
        name: String,
        /// Messages in any hour; `none` for no limit
        #[arg(long, value_name = "MESSAGES")]
        hourly: Option<Ceiling>,
        /// Messages in any day; `none` for no limit
        #[arg(long, value_name = "MESSAGES")]
        daily: Option<Ceiling>,
    },
    /// Change how its mail is treated; without options, show it
    Set(TenantSet),
    /// Remove a tenant that has no SMTP accounts, domains and queued mail any more
    Remove {
        /// The tenant
        name: String,
    },
    /// Delete a tenant and everything kept of it after a grace period, once its mail is done; it stops sending now
    Delete {
        /// The tenant
        name: String,
        /// Days within which that can be taken back (7 unless said)
        #[arg(long, value_name = "DAYS")]
        grace_days: Option<u16>,
        /// Take it back
        #[arg(long, conflicts_with = "grace_days")]
        undo: bool,
    },
    /// Write everything kept of a tenant into a file: compressed (zstd) lines of JSON
    Export {
        /// The tenant
        name: String,
        /// Where to; must not be there yet
        file: PathBuf,
    },
}

#[derive(Args, Debug)]
pub struct TenantSet {
    /// The tenant
    pub name: String,
    /// Whether waiting mail may be moved to a shared virtual IP by `queue move`
    #[arg(long, value_name = "YES|NO")]
    pub move_to_shared: Option<Switch>,
    /// The shared virtual IPs that mail moves to by itself which a warm-up has no room for, where SPF permits it:
    /// addresses or ids, or `none`
    #[arg(long, value_name = "VIP,VIP", value_delimiter = ',')]
    pub warm_up_overflow: Option<Vec<String>>,
    /// Whether delay notices go to senders who did not ask for them
    #[arg(long, value_name = "YES|NO")]
    pub delay_notices: Option<Switch>,
    /// The virtual IP that mail handed in otherwise than by SMTP leaves by: an address or id, or `none`
    #[arg(long, value_name = "VIP")]
    pub default_vip: Option<String>,
    /// Where its data may be kept, in your words; it changes nothing by itself
    #[arg(long, value_name = "TEXT")]
    pub region: Option<String>,
    /// Forget what is kept of its finished messages after so many days; 0 for when the instance does it
    #[arg(long, value_name = "DAYS")]
    pub retention_days: Option<u16>,
}

/// Yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Yes
    Yes,
    /// No
    No,
}

/// A number of messages, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ceiling(pub Option<u64>);

impl std::str::FromStr for Ceiling {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(None)),
            _ => {
                text.parse().map(|most| Self(Some(most))).map_err(|_| "write a number of messages, or none".to_owned())
            }
        }
    }
}

/// Programs settings can be printed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Program {
    /// Mozilla Thunderbird
    Thunderbird,
    /// WordPress with WP Mail SMTP
    Wordpress,
    /// PrestaShop
    Prestashop,
    /// PHPMailer
    Phpmailer,
    /// Symfony Mailer
    Symfony,
    /// Nodemailer
    Nodemailer,
    /// Django
    Django,
    /// swaks
    Swaks,
}

#[derive(Debug, Subcommand)]
pub enum Route {
    /// Send by a relay: all mail, one tenant's mail, or mail to one domain
    Add(RouteAdd),
    /// List relays
    List,
    /// Change a relay in place: mail that is queued for it goes the new way
    Set(RouteSet),
    /// Remove a relay; mail that is queued for it waits until it is cancelled
    Remove {
        /// Its id
        id: String,
    },
}

#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("scope").required(true).args(["all", "tenant", "to", "on_demand"]))]
pub struct RouteAdd {
    /// Host name or address of the relay
    pub host: String,
    /// All mail
    #[arg(long)]
    pub all: bool,
    /// Mail of this tenant
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
    /// Mail to this domain and the names below it
    #[arg(long, value_name = "DOMAIN")]
    pub to: Option<Domain>,
    /// Only mail that `delivery reroute` sends there
    #[arg(long)]
    pub on_demand: bool,
    /// The relay's port
    #[arg(long, default_value_t = 587)]
    pub port: u16,
    /// How the connection is secured
    #[arg(long, value_enum, default_value_t = RouteTls::Starttls)]
    pub tls: RouteTls,
    /// The user name at the relay
    #[arg(long, value_name = "NAME", requires = "password_file")]
    pub user: Option<String>,
    /// A file with the password at the relay; `-` reads standard input
    #[arg(long, value_name = "FILE", requires = "user")]
    pub password_file: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true)
    .args(["host", "port", "tls", "user", "password_file", "no_login"]))]
pub struct RouteSet {
    /// Its id, as `route list` shows it
    pub id: String,
    /// Host name or address of the relay
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// The relay's port
    #[arg(long)]
    pub port: Option<u16>,
    /// How the connection is secured
    #[arg(long, value_enum)]
    pub tls: Option<RouteTls>,
    /// The user name at the relay
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// A file with the password at the relay; `-` reads standard input
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// Do not log in any more
    #[arg(long, conflicts_with_all = ["user", "password_file"])]
    pub no_login: bool,
}

/// How a relay is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RouteTls {
    /// TLS first (port 465), certificate verified
    Implicit,
    /// STARTTLS required, certificate verified
    Starttls,
    /// STARTTLS if offered, certificate not verified; no login
    Opportunistic,
    /// No TLS; for relays on this host
    None,
}
