//! What can be typed after `postern smtp-account`.

use clap::{Args, Subcommand, ValueEnum};

use super::{Ceiling, Program};

#[derive(Debug, Subcommand)]
pub enum SmtpAccount {
    /// Make an SMTP account; its password is shown once, with settings for common programs
    Add(SmtpAccountAdd),
    /// List SMTP accounts
    List {
        /// Of this tenant only
        tenant: Option<String>,
    },
    /// Refuse its logins
    Disable {
        /// The login
        login: String,
    },
    /// Take its logins again
    Enable {
        /// The login
        login: String,
    },
    /// Make a new password; the old one works until the next rotation or --finish
    Rotate {
        /// The login
        login: String,
        /// End the old password now instead of making a new one
        #[arg(long)]
        finish: bool,
        /// How many hours the old password works beside the new one
        #[arg(long, value_name = "HOURS", conflicts_with = "finish")]
        overlap: Option<u32>,
    },
    /// Change its name, whom it may send as, when it ends, whose header fields are read; without options, show it
    Set(SmtpAccountSet),
    /// Its last logins: when, from where, under which TLS, and how they ended
    Logins {
        /// The login
        login: String,
    },
    /// Set the addresses it may log in from
    AllowFrom {
        /// The login
        login: String,
        /// Addresses or networks, for example 192.0.2.0/24; none means anywhere
        #[arg(value_name = "CIDR")]
        networks: Vec<String>,
    },
    /// Limit how many messages it may hand in, beside its tenant's limits; without options, show the limits
    Limits {
        /// The login
        login: String,
        /// Messages in any hour; `none` for no limit
        #[arg(long, value_name = "MESSAGES")]
        hourly: Option<Ceiling>,
        /// Messages in any day; `none` for no limit
        #[arg(long, value_name = "MESSAGES")]
        daily: Option<Ceiling>,
    },
    /// Take and send none of its mail: submissions are answered 451, what is queued is held, not lost
    Pause {
        /// The login
        login: String,
        /// Why; its programs are told, so write nothing secret
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// End a pause, also one of the breaker: its mail is taken, what was held goes on, counting begins anew
    Release {
        /// The login
        login: String,
    },
    /// Remove an SMTP account
    Remove {
        /// The login
        login: String,
    },
}

#[derive(Args, Debug)]
pub struct SmtpAccountAdd {
    /// The tenant
    pub tenant: String,
    /// What its mail is
    #[arg(long, value_enum, default_value_t = MailClass::Transactional)]
    pub class: MailClass,
    /// It may log in only from these addresses or networks
    #[arg(long, value_name = "CIDR")]
    pub allow_from: Vec<String>,
    /// Print settings for this program only
    #[arg(long = "for", value_enum, value_name = "PROGRAM")]
    pub program: Option<Program>,
}

/// What an SMTP account's mail is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MailClass {
    /// Orders, password resets, notices: goes first
    Transactional,
    /// Newsletters and campaigns
    Marketing,
}

#[derive(Args, Debug)]
pub struct SmtpAccountSet {
    /// The login
    pub login: String,
    /// What people call it
    #[arg(long, value_name = "TEXT")]
    pub name: Option<String>,
    /// It may send only as this domain (with its subdomains) or address; may be given several times
    #[arg(long, value_name = "SENDER")]
    pub allow_sender: Vec<String>,
    /// It may send as everything its tenant may
    #[arg(long, conflicts_with = "allow_sender")]
    pub any_sender: bool,
    /// From when on it may neither log in nor send, such as 2027-01-31T12:00:00Z; `never` takes that back
    #[arg(long, value_name = "TIME")]
    pub expires: Option<String>,
    /// Read the header fields of this service beside ours; may be given several times
    #[arg(long, value_name = "SERVICE", value_parser = ["mailgun", "postmark", "sendgrid", "postal", "emaillabs"])]
    pub headers: Vec<String>,
    /// Read our own header fields only
    #[arg(long, conflicts_with = "headers")]
    pub own_headers: bool,
}
