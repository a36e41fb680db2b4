//! What can be typed after `postern queue` and `postern why`.

use clap::{Args, Subcommand, ValueEnum};

use super::MailClass;
use crate::cli::output::read_span;

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct QueueCommand {
    #[command(subcommand)]
    pub command: Option<Queue>,
    #[command(flatten)]
    pub list: QueueList,
}

#[derive(Debug, Subcommand)]
pub enum Queue {
    /// List queued messages, oldest first; `postern queue` does the same
    List(QueueList),
    /// How many messages and recipients fit
    Totals(QueueFilter),
    /// How much waits for whom, by age in minutes
    Shape {
        #[command(flatten)]
        filter: QueueFilter,
        /// Destinations shown
        #[arg(long, value_name = "ROWS", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=250))]
        limit: u16,
    },
    /// Show a message: envelope, every recipient, everything that happened
    Show {
        /// The queue id
        id: String,
    },
    /// Say in a sentence per recipient why a message is still here, and what will happen next
    Why {
        /// The queue id
        id: String,
    },
    /// Try now instead of at the next due time: one message, or all that fits
    Retry(QueueMany),
    /// Do not try until released: one message, or all that fits
    Hold(QueueMany),
    /// End a hold: of one message, or of all that fits
    Release(QueueMany),
    /// Drop for good, nobody is told: one message, or all that fits
    Cancel(QueueMany),
    /// Give up now as if it had waited too long, senders are told: one message, or all that fits
    Expire(QueueMany),
    /// List acts on many messages: what is under way or lasts, and what is over
    Acts {
        /// Of this tenant only
        #[arg(long, value_name = "NAME")]
        tenant: Option<String>,
    },
    /// End an act on many messages that is not over; what it did stays done
    End {
        /// Its number, as `queue acts` prints it
        number: u64,
    },
    /// Erase the addresses, subject and header facts kept of a finished message
    Erase {
        /// The queue id
        id: String,
    },
    /// Let waiting mail leave by another virtual IP
    Move {
        /// The queue id
        id: String,
        /// The virtual IP's address or id; it must be shared and the tenant must permit it
        #[arg(long, value_name = "VIP")]
        to: String,
    },
}

/// Where a recipient stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RecipientStanding {
    /// Waits for its due time
    Waiting,
    /// Being tried now
    InFlight,
    /// Held by an operator
    Held,
    /// Its SMTP account is paused
    Paused,
}

#[derive(Args, Clone, Debug, Default)]
pub struct QueueFilter {
    /// Of this tenant only
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
    /// Handed in with this SMTP account
    #[arg(long, value_name = "LOGIN")]
    pub account: Option<String>,
    /// Leaving by this virtual IP
    #[arg(long, value_name = "VIP")]
    pub vip: Option<String>,
    /// Of this class
    #[arg(long, value_enum)]
    pub class: Option<MailClass>,
    /// With this envelope sender: an address, a domain and what is below it, or `<>`
    #[arg(long, value_name = "SENDER")]
    pub from: Option<String>,
    /// With a recipient in this domain or below
    #[arg(long, value_name = "DOMAIN")]
    pub to: Option<String>,
    /// With a recipient of this address
    #[arg(long, value_name = "ADDRESS")]
    pub to_address: Option<String>,
    /// With a recipient of this provider or site
    #[arg(long, value_name = "PROVIDER")]
    pub provider: Option<String>,
    /// With a recipient in this state
    #[arg(long, value_enum)]
    pub state: Option<RecipientStanding>,
    /// Accepted longer ago than this, such as 30m, 2h or 1d
    #[arg(long, value_name = "SPAN", value_parser = read_span)]
    pub older: Option<u64>,
    /// Accepted not longer ago than this
    #[arg(long, value_name = "SPAN", value_parser = read_span)]
    pub newer: Option<u64>,
    /// Tried at least so often
    #[arg(long, value_name = "TIMES")]
    pub attempts: Option<u32>,
    /// With this text in the last reply or cause
    #[arg(long, value_name = "TEXT")]
    pub last: Option<String>,
}

#[derive(Args, Debug)]
pub struct QueueList {
    #[command(flatten)]
    pub filter: QueueFilter,
    /// At most so many
    #[arg(long, value_name = "MESSAGES", default_value_t = 50)]
    pub limit: usize,
    /// Go on where a list ended: what it gave as `next`
    #[arg(long, value_name = "NEXT")]
    pub cursor: Option<String>,
}

#[derive(Args, Debug)]
pub struct QueueMany {
    /// The queue id of one message; without it, what fits the options
    pub id: Option<String>,
    /// Of one message only this recipient, by number as `queue show` prints it; may be repeated
    #[arg(long, value_name = "NUMBER", requires = "id")]
    pub recipient: Vec<u16>,
    #[command(flatten)]
    pub filter: QueueFilter,
    /// Everything that is queued
    #[arg(long, conflicts_with = "id")]
    pub all: bool,
    /// Apply to mail that comes to fit later too, for so long, such as 30m, 2h or 1d
    #[arg(long = "for", value_name = "SPAN", value_parser = read_span, conflicts_with = "id")]
    pub lasting: Option<u64>,
    /// Why, for the audit log
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, conflicts_with = "id")]
    pub reason: String,
    /// Only say what it would apply to
    #[arg(long, conflicts_with = "id")]
    pub dry_run: bool,
    /// Do not ask before dropping or giving up many messages
    #[arg(long)]
    pub yes: bool,
}
